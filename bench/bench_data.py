"""What one core prepares: tokens per second of its own CPU time, so that other load does not count.

    python bench/bench_data.py [--model my/bert] [--corpus my/text.txt]

Without options: a word-piece vocabulary and a text of the artificial language.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core
import numpy as np
import timing
import torch
from datasets import Dataset
from transformers import AutoTokenizer

import data
import synthetic
from engine import command_line
from tasks import batching, plain_text

ROUNDS = 5


def cpu_seconds(function, rounds=ROUNDS):
    """Median of the CPU seconds of a call."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return float(np.median(times))


def text_rows(texts, tokenizer, length, batch):
    """Rows of the table for text: tokenizer alone, with packing, masked batches from the blocks."""
    parts = [texts[i : i + plain_text.DOCUMENTS] for i in range(0, len(texts), plain_text.DOCUMENTS)]
    cut, blocks = plain_text.cutter(tokenizer, length), []

    def alone():
        for part in parts:
            tokenizer(
                part, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
            )

    def packed():
        blocks[:] = [cut(part) for part in parts]

    packed()
    tokens = sum(part.size for part in blocks)
    rows = [["tokenizer alone", rate(tokens, alone)], ["tokenise and pack", rate(tokens, packed)]]
    kept = plain_text.Rows(Dataset.from_dict({"input_ids": np.concatenate(blocks)}))
    special = np.zeros(data.id_count(tokenizer), dtype=bool)
    special[tokenizer.all_special_ids] = True
    count = int(kept.ends[-1])
    orders = np.random.default_rng(1).integers(count, size=(50, batch)).tolist()

    def masked():
        for indices in orders:
            plain_text.draw_masks(
                kept[indices], plain_text.row_seeds(1, 0, indices), 0.15, tokenizer.mask_token_id, special, len(special)
            )

    return [*rows, [f"masked batches of {batch} x {length}", rate(50 * batch * length, masked)]]


def stream_rows(path, tokenizer, length, shares=(1, 2, 8)):
    """Rows of the table for a stream: what one of so many processes or workers gets done."""
    for number in shares:
        texts, cut, made = plain_text.load_texts(path, streaming=True), plain_text.cutter(tokenizer, length), []

        def read(number=number, texts=texts, cut=cut, made=made):
            stream = plain_text.Stream(texts, cut, 1, (0, number), pool=10**9)  # one pool: the whole text
            stream.take(1)
            made[:] = [stream.pool.size]

        seconds = cpu_seconds(read, rounds=3)
        yield [f"stream, one of {number}", f"{made[0] / seconds:,.0f} tokens/s"]


def rate(tokens, function):
    """Tokens per second of CPU time, as text."""
    return f"{tokens / cpu_seconds(function):,.0f} tokens/s"


def glue_rows():
    """Rows of the table for a batch of 32 sentences of CoLA's lengths, row by row and from flat arrays."""
    draw = np.random.default_rng(1)
    lists = [[1] * n for n in draw.integers(5, 25, size=8551)]
    dataset = Dataset.from_dict(dict.fromkeys(batching.INPUTS, lists) | {"labels": [0] * len(lists)})
    arrays, orders = batching.Arrays(dataset, batching.TRAINING), draw.integers(len(lists), size=(200, 32)).tolist()
    sides = {
        "row by row": lambda: [data.collate([dataset[i] for i in indices], 0) for indices in orders],
        "from flat arrays": lambda: [arrays.batch(indices, 0) for indices in orders],
    }
    return [
        [f"a GLUE batch of 32, {name}", f"{1000 * cpu_seconds(side) / len(orders):.2f} ms"]
        for name, side in sides.items()
    ]


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", help="folder whose tokenizer is used")
    parser.add_argument("--corpus", help="text file")
    parser.add_argument("--seq_length", type=int, default=128, help="tokens of a block")
    parser.add_argument("--batch_size", type=int, default=64, help="blocks of a batch")
    parser.add_argument("--documents", type=int, default=20_000, help="lines of the text that are used")
    args = parser.parse_args()
    command_line.quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if not (args.model and args.corpus):
            print("making the artificial language ...", file=sys.stderr)
            synthetic.main(["--output_dir", folder])
        source = Path(args.corpus or f"{folder}/text/train.txt")
        lines = source.read_text(encoding="utf-8").splitlines()[: args.documents]
        path = Path(folder) / "lines.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(args.model or f"{folder}/bert")
        print(
            f"{timing.machine('cpu')}; {source.name}, {len(lines)} documents, {len(tokenizer)} words; CPU "
            "time of one core, medians\n"
        )
        rows = text_rows(lines, tokenizer, args.seq_length, args.batch_size)
        rows += stream_rows(str(path), tokenizer, args.seq_length)
        timing.table(["what", "rate"], rows + glue_rows())


if __name__ == "__main__":
    main()
