"""How far a rotation carries students' vectors onto the teacher's: one for all text, and one for each block of it.

    python docs/experiments/frames.py --teacher my/MiniLM-L6 --text english.valid.txt runs/general/3-192/ckd ...

Relations say how vectors of one block lie to each other, not where: two blocks may be turned against each other in the
student and not in the teacher. Printed is the share of the variance around each block's mean that is explained in the
teacher's aligned layers (last column: mean), by rotation and scale (orthogonal Procrustes). The rotation for all text
is fitted on the first three quarters of the blocks and tested on the last; that of a block on the block itself, so that
a student of random weights, of the same width, shows what fits by chance. Blocks are centred one by one: how their
means lie to each other is not looked at.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import svd
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import models
import options
from encoders import layer_maps
from engine import command_line
from tasks import plain_text


@torch.no_grad()
def centred_states(model, blocks, layers):
    """Hidden states of token ids [N, T] less their mean over each block, float64 arrays [N, T, D], one a layer."""
    found = [model(part, output_hidden_states=True).hidden_states for part in blocks.split(32)]
    states = [torch.cat([hidden[layer] for hidden in found]).double() for layer in layers]
    return [(h - h.mean(1, keepdim=True)).numpy() for h in states]


def explained(source, target, fit_source, fit_target):
    """Share of the squares of target [n, Dt] that source [n, Ds] gives by the fitted vectors' rotation and scale."""
    left, sizes, right = svd(fit_source.T @ fit_target, full_matrices=False, lapack_driver="gesvd")
    # A rotation of a wider source drops directions, so the scale is not over all of it.
    turned = sizes.sum() / ((fit_source @ left) ** 2).sum() * source @ left @ right
    return 1 - ((target - turned) ** 2).sum() / (target**2).sum()


def compare(student, teacher):
    """(share by one rotation for all text, mean share by one for each block) of states [N, T, D] of one layer."""
    first = len(student) * 3 // 4
    flat = [h.reshape(-1, h.shape[-1]) for h in (student[first:], teacher[first:], student[:first], teacher[:first])]
    return explained(*flat), np.mean(
        [explained(s, t, s, t) for s, t in zip(student[first:], teacher[first:], strict=True)]
    )


def main():
    """Print the table."""
    parser = options.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("students", nargs="+", help="folders or hub ids")
    parser.add_argument("--teacher", required=True, help="folder or hub id")
    parser.add_argument("--text", required=True, help="text that no student has seen, as --corpus takes it")
    parser.add_argument("--blocks", type=options.number(int, 4), default=160, help="at most, of 128 tokens each")
    args = parser.parse_args()
    command_line.quiet()
    tokenizer = models.load_tokenizer(args.teacher, "tokenizer of")
    for name in args.students:
        models.check_vocabulary(models.load_tokenizer(name, "tokenizer of"), tokenizer, name, args.teacher)
    blocks = plain_text.load_blocks(args.text, tokenizer, 128)
    if len(blocks) < 4:
        raise ValueError(f"--text {args.text}: {len(blocks)} blocks of 128 tokens, too few to fit and to test on")
    blocks = torch.tensor(np.asarray(blocks[: args.blocks]["input_ids"]).astype(np.int64))
    teacher, *students = (models.load_model(name, AutoModel)[0].eval() for name in (args.teacher, *args.students))
    for name, student in zip(args.students, students, strict=True):
        depths = [model.config.num_hidden_layers for model in (student, teacher)]
        pairs = layer_maps.layer_map(*depths, "uniform")
        sides = [
            centred_states(model, blocks, layers)
            for model, layers in zip((student, teacher), zip(*pairs, strict=True), strict=True)
        ]
        found = np.array([compare(*layer) for layer in zip(*sides, strict=True)])
        for what, shares in zip(("one rotation for all text", "one for each block"), found.T, strict=True):
            print(f"| {name} | {what} | {' | '.join(f'{x:.2f}' for x in (*shares, shares.mean()))} |", flush=True)


if __name__ == "__main__":
    command_line.run_script(main)
