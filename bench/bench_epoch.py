"""CoLA distillation as the scripts do it, against sentences padded to 128 tokens and relations from differences.

python bench/bench_epoch.py --data_dir glue --teacher runs/cola/teacher/seed1 --student_layers 3 [--cache_teacher]
"""

import functools
import statistics

import timing
import torch
from accelerate import Accelerator
from bench_losses import direct_pair, direct_triple

import distill_finetune
import losses
import training
from encoders import model_outputs
from engine import command_line
from tasks import batching


def direct_terms(student, teacher, mask):
    """The four relations from differences; padding is left in, which costs the same."""
    transposed = [x.transpose(1, 2) for x in (student, teacher)]
    return {
        "wr_pair": direct_pair(student, teacher, mask),
        "wr_triple": direct_triple(student, teacher, mask, 21),
        "ltr_pair": direct_pair(*transposed, mask),
        "ltr_triple": direct_triple(*transposed, mask),
    }


def direct_objective(student, teacher, batch, recipe, hard_loss):
    """As losses.objective, the relations by the direct formulation."""
    values = {"logits": losses.TERMS["logits"](student, teacher, batch, recipe)}
    values |= direct_terms(student.hidden, teacher.hidden, student.mask)
    return sum(recipe.terms[name] * value for name, value in values.items()), values


def pad(batch, length):
    """The batch with every sentence padded to the given length."""
    return {k: torch.nn.functional.pad(v, (0, length - v.shape[1])) if v.ndim == 2 else v for k, v in batch.items()}


def run_steps(args, accelerator, model, optimizer, steps, recipe, length, objective):
    """Take the optimiser steps, padded to length where one is given."""
    kept = losses.objective
    losses.objective = objective
    for indices in steps:
        batch = recipe.collate(indices, 0)
        batch = {k: v.to(accelerator.device) for k, v in (pad(batch, length) if length else batch).items()}
        batch["empty"] = False
        training.training_step(args, accelerator, recipe, model, optimizer, [(batch, 1.0)], 1e-5)
    losses.objective = kept


def main():
    """Print the table."""
    parser = timing.parser(__doc__)
    parser.add_argument("--steps", type=int, default=8, help="steps of an epoch to measure, spread over its lengths")
    options, rest = parser.parse_known_args()
    args = distill_finetune.build_parser().parse_args(["--task", "cola", "--terms", "ckd", *rest])
    distill_finetune.check_args(args)
    command_line.quiet()
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=options.device == "cpu")
    loaded = distill_finetune.load_everything(args)
    student, teacher = loaded.student, loaded.teacher
    teacher.to(accelerator.device).eval()
    student.to(accelerator.device)
    recipe = distill_finetune.make_recipe(args, loaded, accelerator)
    model, optimizer = accelerator.prepare(student.train(), training.make_optimizer(student, args))
    plan = batching.grouped_batches(recipe.lengths, args.per_device_train_batch_size, args.seed, 0)
    steps = plan[: options.steps]  # a random sample: the order of batches is shuffled
    take = functools.partial(run_steps, args, accelerator, model, optimizer, steps)
    sides = {
        "here": lambda: take(recipe, 0, losses.objective),
        "padded to 128, direct": lambda: take(recipe, args.max_seq_length, direct_objective),
    }
    if args.cache_teacher:
        cache = distill_finetune.open_cache(args, loaded, accelerator)
        cached = distill_finetune.make_recipe(args, loaded, accelerator, cache)
        sides["here, --cache_teacher"] = lambda: take(cached, 0, losses.objective)
    model_outputs.cast_linears(teacher, accelerator)
    times = timing.alternate(sides, options.device, options.rounds)
    print(
        f"{timing.machine(options.device)}; {len(steps)} of {len(plan)} steps of an epoch, batch "
        f"{args.per_device_train_batch_size}, precision {args.mixed_precision}. Seconds are extrapolated.\n"
    )
    counts = {name: timing.operations(side, options.device) for name, side in sides.items()}
    whole, slow = len(plan) / len(steps), times["padded to 128, direct"]
    rows = [
        [
            name,
            f"{statistics.median(t) * whole:.0f} [{min(t) * whole:.0f}-{max(t) * whole:.0f}]",
            f"{timing.ratio(slow, t):.1f}",
            f"{counts[name][0] / len(steps):.0f}",
            timing.share(counts[name][1], statistics.median(t)),
        ]
        for name, t in times.items()
    ]
    count = f"{timing.OPERATIONS[options.device]} a step"
    timing.table(["loop", "seconds an epoch", "times as fast", count, "device busy"], rows)


if __name__ == "__main__":
    main()
