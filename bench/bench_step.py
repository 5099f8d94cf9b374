"""A whole distillation step of a multilingual-BERT-shaped teacher and a 6-layer student: kd against ckd.

    python bench/bench_step.py                              fine-tuning and pre-training, B=32, T=128
    python bench/bench_step.py --precision bf16 --batch 64
"""
import argparse
import functools

import timing
import torch
from accelerate import Accelerator
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig

import distill_finetune
import distill_pretrain
import models
import tasks
import training

SHAPE = {"vocab_size": 119547, "max_position_embeddings": 512}


def make(stage, terms, options):
    """A function that takes one optimiser step; random weights, random words, 15 % masked in pre-training."""
    torch.manual_seed(1)
    script = distill_finetune if stage == "fine-tuning" else distill_pretrain
    fixed = ["--task", "cola"] if stage == "fine-tuning" else ["--corpus", "none"]
    args = script.build_parser().parse_args([*fixed, "--teacher", "random", "--student_layers", "6", "--terms", terms])
    script.check_args(args)
    accelerator = Accelerator(mixed_precision=options.precision, cpu=options.device == "cpu")
    auto = AutoModelForSequenceClassification if stage == "fine-tuning" else AutoModelForMaskedLM
    sizes = {"num_hidden_layers": options.layers, "hidden_size": options.width,
             "num_attention_heads": options.width // 64, "intermediate_size": 4 * options.width}  # fmt: skip
    teacher = auto.from_config(BertConfig(**SHAPE, **sizes)).eval().requires_grad_(False)
    student = models.build_student(teacher, auto, {"layers": options.layers // 2})
    args.layer_pairs = models.aligned(student, teacher, "uniform")
    ids = torch.randint(1000, 100000, (options.batch, options.tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "empty": False}
    if stage == "fine-tuning":
        batch["labels"] = torch.zeros(options.batch, dtype=torch.long)
        teacher.to(accelerator.device)
        loss, _ = distill_finetune.make_loss(args, tasks.KINDS["classification"](None), teacher)
    else:
        student, teacher = models.MaskedLM(student), models.MaskedLM(teacher).to(accelerator.device)
        batch["positions"] = torch.randperm(ids.numel())[: round(0.15 * ids.numel())].sort().values
        batch["labels"] = ids.flatten()[batch["positions"]]
        terms_of, weights = distill_pretrain.make_losses(args, teacher)

        def loss(model, batch):
            values, _, _ = terms_of(model, batch)
            return sum(weights[k] * v for k, v in values.items()), {}

    student.to(accelerator.device)
    batch = {k: v.to(accelerator.device) if torch.is_tensor(v) else v for k, v in batch.items()}
    model, optimizer = accelerator.prepare(student.train(), training.make_optimizer(student, args))
    recipe = argparse.Namespace(loss=loss)
    return functools.partial(training.training_step, args, accelerator, recipe, model, optimizer, [(batch, 1.0)], 1e-5)


def matrix_rate(device, precision):
    """TFLOP/s of a large matrix product in the precision of the step's products."""
    n = 8192 if device == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = min(timing.once(lambda: a @ a, device) for _ in range(5))
    return 2 * n**3 / seconds / 1e12


def step_flops(stage, options):
    """Multiply-adds x 2 of a step: teacher forward, student forward and backward (two more), heads where masked."""
    tokens, d = options.batch * options.tokens, options.width
    layer = 2 * tokens * 12 * d * d + 4 * tokens * options.tokens * d
    head = 2 * 0.15 * tokens * d * (SHAPE["vocab_size"] + d) if stage == "pre-training" else 0
    return options.layers * layer + head + 3 * (options.layers // 2 * layer + head)


def measure(args, rate):
    """Yield the rows of the table."""
    for stage in args.stages:
        times = timing.alternate({t: make(stage, t, args) for t in ("kd", "ckd")}, args.device, args.rounds)
        memory = [timing.peak_memory(make, (stage, terms, args), args.device, extra=False) for terms in ("kd", "ckd")]
        share = step_flops(stage, args) / min(times["ckd"]) / 1e12 / rate
        yield [stage, timing.spread(times["kd"]), timing.spread(times["ckd"]),
               f"{timing.ratio(times['ckd'], times['kd']):.3f}", *(f"{m:.2f}" for m in memory),
               f"{memory[1] / memory[0]:.3f}", f"{args.batch * args.tokens / min(times['ckd']):.0f}",
               f"{100 * share:.0f} %"]  # fmt: skip


def main():
    """Print the table, row by row."""
    parser = timing.parser(__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12, help="of the teacher; the student has half")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--stages", nargs="+", default=["fine-tuning", "pre-training"])
    args = parser.parse_args()
    rate = matrix_rate(args.device, args.precision)
    print(f"B={args.batch} T={args.tokens}, {args.layers} to {args.layers // 2} layers of {args.width}, vocabulary "
          f"{SHAPE['vocab_size']}, precision {args.precision}. {timing.machine(args.device)}. Matrix product in that "
          f"precision: {rate:.2f} TFLOP/s. Milliseconds: median [range] of {args.rounds}.\n")  # fmt: skip
    header = ["stage", "kd ms", "ckd ms", "time ckd/kd", "kd GB", "ckd GB", "memory ckd/kd", "ckd tokens/s",
              "share of matrix rate"]  # fmt: skip
    timing.table(header, measure(args, rate))


if __name__ == "__main__":
    main()
