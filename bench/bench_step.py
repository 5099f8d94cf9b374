"""A whole distillation step of a multilingual-BERT-shaped teacher and a 6-layer student: kd against ckd.

python bench/bench_step.py                              fine-tuning and pre-training, B=32, T=128
python bench/bench_step.py --precision bf16 --batch 64 --compile
python bench/bench_step.py --stages fine-tuning --tokens cola
"""

import argparse
import functools
import itertools

import numpy as np
import timing
import torch
from accelerate import Accelerator
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig

import distill_finetune
import distill_pretrain
import training
from encoders import layer_maps, model_outputs, students
from methods import term_weights
from tasks import batching, kinds

SHAPE = {"vocab_size": 119547, "max_position_embeddings": 512}
# Tokens of CoLA's 8,551 training sentences, [CLS] and [SEP] among them, in the 0th, 5th, ..., 100th of a hundred parts;
# counted with the word pieces of google-bert/bert-base-uncased.
COLA = (4, 6, 7, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11, 12, 12, 13, 14, 15, 17, 20, 47)


def masks(options):
    """A mask [B, T] for each step to take: full, or of CoLA's lengths as fine-tuning groups them in an epoch."""
    if options.tokens != "cola":
        steps = 10 if options.device == "cuda" else 1  # there a single one is short
        return [torch.ones(options.batch, int(options.tokens), dtype=torch.long)] * steps
    lengths = np.interp(np.linspace(0, 100, 8551), np.linspace(0, 100, len(COLA)), COLA).astype(int).tolist()
    plan = batching.grouped_batches(lengths, options.batch, 1, 0)[: options.steps]
    steps = [torch.tensor([lengths[i] for i in indices]) for indices in plan]
    return [(torch.arange(int(n.max())) < n[:, None]).long() for n in steps]


def make_batch(stage, mask):
    """A batch of random words, 15 % masked in pre-training."""
    ids = torch.randint(1000, 100000, mask.shape)
    batch = {"input_ids": ids, "empty": False}
    if stage == "fine-tuning":
        return batch | {"attention_mask": mask, "labels": torch.zeros(len(ids), dtype=torch.long)}
    batch["positions"] = torch.randperm(ids.numel())[: round(0.15 * ids.numel())].sort().values
    return batch | {"labels": ids.flatten()[batch["positions"]]}


def make(stage, terms, options, compiled=False, within=lambda part, function: function):
    """A function that takes an optimiser step for each of `masks`; random weights.

    within(part, function): what the models' forward functions are wrapped in.
    """
    torch.manual_seed(1)
    script = distill_finetune if stage == "fine-tuning" else distill_pretrain
    fixed = ["--task", "cola"] if stage == "fine-tuning" else ["--corpus", "none"]
    args = script.build_parser().parse_args(
        [*fixed, "--teacher", "random", "--student_layers", "6", "--terms", terms, *(["--compile"] if compiled else [])]
    )
    script.check_args(args)
    accelerator = Accelerator(mixed_precision=options.precision, cpu=options.device == "cpu")
    auto = AutoModelForSequenceClassification if stage == "fine-tuning" else AutoModelForMaskedLM
    sizes = {
        "num_hidden_layers": options.layers,
        "hidden_size": options.width,
        "num_attention_heads": options.width // 64,
        "intermediate_size": 4 * options.width,
    }
    teacher = auto.from_config(BertConfig(**SHAPE, **sizes)).eval().requires_grad_(False)
    student = students.build_student(teacher, auto, {"layers": options.layers // 2})
    objective = term_weights.objective_of(args, layer_maps.aligned(student, teacher, "uniform"))
    if stage == "fine-tuning":
        model_outputs.add_term_outputs(objective, student, teacher, args.seed)
        teacher.to(accelerator.device)
        loss = distill_finetune.make_loss(objective, kinds.KINDS["classification"](None), teacher)
    else:
        student, teacher = model_outputs.MaskedLM(student), model_outputs.MaskedLM(teacher).to(accelerator.device)
        model_outputs.add_term_outputs(objective, student, teacher, args.seed)
        terms_of = distill_pretrain.make_losses(objective, teacher)

        def loss(model, batch):
            return terms_of(model, batch)[0], {}

    student.to(accelerator.device)
    if compiled:
        model_outputs.compile_models(student, teacher)
    model_outputs.cast_linears(teacher, accelerator)
    student.forward, teacher.forward = (
        within("student forward", student.forward),
        within("teacher forward", teacher.forward),
    )
    batches = [
        {k: v.to(accelerator.device) if torch.is_tensor(v) else v for k, v in make_batch(stage, mask).items()}
        for mask in masks(options)
    ]
    model, optimizer = accelerator.prepare(student.train(), training.make_optimizer(student, args))
    recipe = argparse.Namespace(loss=loss)
    step = functools.partial(training.training_step, args, accelerator, recipe, model, optimizer)

    def run():
        for batch in batches:
            step([(batch, 1.0)], 1e-5)

    return run


def matrix_rate(device, precision):
    """TFLOP/s of a large matrix product in the precision of the step's products."""
    n = 8192 if device == "cuda" else 1024  # bf16 is slow on CPUs without its instructions
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    timing.once(lambda: a @ a, device)  # warms up
    seconds = min(timing.once(lambda: a @ a, device) for _ in range(5))
    return 2 * n**3 / seconds / 1e12


def step_flops(stage, options, mask):
    """Multiply-adds x 2 of a step: teacher forward, student forward and backward (two more), heads where masked."""
    tokens, d = mask.numel(), options.width
    layer = 2 * tokens * 12 * d * d + 4 * tokens * mask.shape[1] * d
    head = 2 * 0.15 * tokens * d * (SHAPE["vocab_size"] + d) if stage == "pre-training" else 0
    return options.layers * layer + head + 3 * (options.layers // 2 * layer + head)


def measure(args, rate):
    """Yield the rows of the table; of several steps their mean."""
    steps = masks(args)
    for compiled, stage in itertools.product(
        (False, True)[: 1 + args.compile], args.stages
    ):  # slow compiling comes last
        sides = {t: make(stage, t, args, compiled) for t in ("kd", "ckd")}
        times = timing.alternate(sides, args.device, args.rounds)
        memory, counts = [float("nan")] * 2, {t: (float("nan"), None) for t in sides}
        if not compiled:  # a fresh process would have to compile again
            memory = [timing.peak_memory(make, (stage, t, args), args.device, extra=False) for t in sides]
        if not compiled or args.device == "cuda":  # what is compiled, the counting of a CPU does not see
            counts = {t: timing.operations(side, args.device) for t, side in sides.items()}
        seconds = min(times["ckd"])
        rate_here = sum(step_flops(stage, args, mask) for mask in steps) / seconds / 1e12
        yield [
            stage,
            "compiled" if compiled else "eager",
            *(timing.spread([s / len(steps) for s in times[t]]) for t in sides),
            f"{timing.ratio(times['ckd'], times['kd']):.3f}",
            *(f"{m:.2f}" for m in memory),
            f"{memory[1] / memory[0]:.3f}",
            *(f"{count / len(steps):.0f}" for count, _ in counts.values()),
            timing.share(counts["ckd"][1], seconds),
            f"{sum(int(mask.sum()) for mask in steps) / seconds:.0f}",
            f"{rate_here:.3g}",
            f"{100 * rate_here / rate:.0f} %",
        ]


def main():
    """Print the table, row by row."""
    parser = timing.parser(__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", default="128", help="of every sentence, or cola: its lengths")
    parser.add_argument("--steps", type=int, default=16, help="steps of CoLA's lengths to take the mean of")
    parser.add_argument("--layers", type=int, default=12, help="of the teacher; the student has half")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--stages", nargs="+", default=["fine-tuning", "pre-training"])
    parser.add_argument("--compile", action="store_true", help="also as the scripts do it with --compile")
    args = parser.parse_args()
    rate = matrix_rate(args.device, args.precision)
    print(
        f"B={args.batch} T={args.tokens}, {args.layers} to {args.layers // 2} layers of {args.width}, vocabulary "
        f"{SHAPE['vocab_size']}, precision {args.precision}. {timing.machine(args.device)}. Matrix product in that "
        f"precision: {rate:.2f} TFLOP/s. Milliseconds: median [range] of {args.rounds}.\n"
    )
    count = timing.OPERATIONS[args.device]
    header = [
        "stage",
        "models",
        "kd ms",
        "ckd ms",
        "time ckd/kd",
        "kd GB",
        "ckd GB",
        "memory ckd/kd",
        f"kd {count}",
        f"ckd {count}",
        "ckd device busy",
        "ckd tokens/s",
        "TFLOP/s",
        "share of matrix rate",
    ]
    timing.table(header, measure(args, rate))


if __name__ == "__main__":
    main()
