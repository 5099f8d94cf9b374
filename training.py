"""The training loop on Hugging Face Accelerate: devices, precision, accumulation, resume, logging, run.json.

It knows nothing about distillation: a Recipe gives it the loss of a batch and the evaluation.
"""

import contextlib
import ctypes
import dataclasses
import datetime
import functools
import math
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator, DDPCommunicationHookType, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from tqdm.auto import tqdm

from engine import command_line
from engine.checkpoints import load_checkpoint, save_checkpoint
from engine.environment import max_mem_gb
from engine.log import Log
from engine.run_folder import Diverged, finite, read_record, write_json, writing
from engine.run_folder import TrainingError as TrainingError
from options import LONG_EPOCH
from tasks import batching

CHOICE = "held_out/score"  # if this metric was computed, it chooses the best model in place of the score

# --- setting up ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Recipe:
    """What the loop needs to know about a task.

    lengths: tokens of each training example. plan(size, epoch): the optimiser steps of an epoch, each a list of example
    indices; a list, or a lazy sequence such as `batching.Steps` (len, [i], slices). collate(indices, epoch): those
    examples as a dict of tensors. loss(model, batch): (scalar to minimise, {term: detached unweighted scalar}).
    evaluate(model): ({metric: float}, score, {name: matplotlib figure}), called by all processes; the metric "loss" is
    the loss on the dev set's labels, which run.json keeps apart. save(folder, model, entry): writes the model as a
    Hugging Face folder, in the main process only; entry: the evaluation as in run.json.
    """

    lengths: list
    plan: Callable
    collate: Callable
    loss: Callable
    evaluate: Callable
    save: Callable
    weights: dict = dataclasses.field(default_factory=dict)  # term -> weight, 0 if not computed, for the log
    # The loss is computed once for each part, as batch["part"], and the gradients are summed. DDP needs the last part's
    # pass to reach all parameters.
    parts: Sequence = (None,)
    # If weights change over time: progress (the share of the steps done before this one, batch["progress"]) -> the
    # weights of the step. `weights` then holds the largest.
    weights_at: Callable | None = None
    # progress of the last step -> whether the score means anything yet, so that the model may be the best one.
    scored: Callable = lambda progress: True
    # For a stream: worker -> its position in the text, or None. Batches bring it as "position"; checkpoints keep it.
    positions: dict = dataclasses.field(default_factory=dict)


def keep_memory():
    """Let glibc keep freed memory, because every step frees and takes the same buffers and new pages must be zeroed.

    The gradient of 30,522 words of width 384 alone is 47 MB. bench/RESULTS.md says how much time this saves.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mappings for single blocks, which free would always give back
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: free bytes at the end of the heap before it shrinks


def check_precision(args):
    """Set TF32 and print hints about speed. Raises ValueError for a precision that the device lacks."""
    if not torch.cuda.is_available():
        for option, given in (("--mixed_precision fp16", args.mixed_precision == "fp16"), ("--tf32", args.tf32)):
            if given:
                raise ValueError(f"{option} needs a CUDA device: use --mixed_precision bf16 or no")
        if Path("/proc/driver/nvidia").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            print(
                "warning: this machine has NVIDIA's driver, but torch sees no CUDA device and runs on the CPU: install "
                "torch for this driver's CUDA (pytorch.org/get-started/locally), or set CUDA_VISIBLE_DEVICES= to use "
                "the CPU",
                file=sys.stderr,
            )
        return
    recent = torch.cuda.get_device_capability()[0] >= 8
    if args.mixed_precision == "bf16" and not recent:
        raise ValueError(f"--mixed_precision bf16: {torch.cuda.get_device_name()} only emulates it: use fp16")
    if args.tf32:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    elif args.mixed_precision == "no" and recent:
        print("float32: on this GPU --mixed_precision bf16, or --tf32, is about three times as fast", file=sys.stderr)


def make_accelerator(args, unused_parameters=False):
    """Return the Accelerator of this process and set the seed. unused_parameters: as in DDP."""
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    ddp = DistributedDataParallelKwargs(
        find_unused_parameters=unused_parameters,
        broadcast_buffers=False,  # they are constant in these models
        comm_hook=DDPCommunicationHookType(args.ddp_comm),
    )
    check_precision(args)
    trackers = [name for name in args.log_with if name != "tensorboard"]  # engine/log.py writes TensorBoard's files
    for name in trackers:
        if name not in map(str, get_available_trackers()):
            package = name.replace("_", "-")
            raise ValueError(f"--log_with {name}: its package is missing here: pip install {package}, or leave it out")
    # Without cpu=True, processes that torchrun starts on a machine without GPU would not form one group.
    cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    wait = InitProcessGroupKwargs(timeout=datetime.timedelta(minutes=args.timeout_minutes))
    if cpu:
        keep_memory()
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision, kwargs_handlers=[ddp, wait], cpu=cpu, log_with=trackers or None
    )
    set_seed(args.seed)
    if batching.workers(args):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the workers' fork
    return accelerator


def make_optimizer(model, args):
    """Return fused AdamW, without weight decay on biases and LayerNorm weights (all vectors).

    Change it here to use another optimiser, to freeze layers, or to scale a group's learning rate by its entry "rate".
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.learning_rate, fused=True)


def learning_rate(args, step, total):
    """Return the learning rate of step `step` (from 0) of `total`: linear warm-up, then args.lr_scheduler_type.

    It depends on the step alone, so checkpoints need not hold it. transformers' warm-up begins with a rate of 0, a step
    that changes nothing; here it begins one step later.
    """
    warmup = math.ceil(args.warmup_ratio * total)
    schedule = _schedule(args.lr_scheduler_type, warmup, total)
    return args.learning_rate * (1.0 if step + 1 == warmup else schedule(step + (step < warmup)))


@functools.lru_cache(maxsize=4)
def _schedule(kind, warmup, total):
    """Return the function of a transformers schedule: step -> share of the peak rate."""
    return transformers.get_scheduler(kind, torch.optim.SGD([torch.zeros(1)]), warmup, total).lr_lambdas[0]


def sum_over_processes(accelerator, values):
    """Return {name: float} of {name: scalar tensor}, each summed over all processes; a process may lack a name."""
    gathered = gather_object([{name: value.item() for name, value in values.items()}])
    return {name: sum(part.get(name, 0.0) for part in gathered) for name in {n for part in gathered for n in part}}


def training_step(args, accelerator, recipe, model, optimizer, batches, lr):
    """Take one optimiser step over its batches; return the terms' values, total first, gradient norm last.

    batches: [(batch, its share of the step)]. The values stay on the device.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)
    values = {}
    for i, (batch, share) in enumerate(batches):
        last = i == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            with accelerator.autocast():
                loss, terms = recipe.loss(model, batch)
            accelerator.backward(loss * share)
        for name, value in {"total": loss.detach(), **terms}.items():
            values[name] = values.get(name, 0) + value * share
    norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return values | {"grad_norm": norm}


def evaluate(args, accelerator, recipe, model, state, log, scored=True):
    """Evaluate, add the result to log and state, and save the model if --save asks for it.

    Before the first step the result is only logged, as the start of the curves. An untrained model is never the best,
    nor is one whose score means nothing yet (not scored).
    """
    model.eval()
    metrics, score, figures = recipe.evaluate(model)
    model.train()
    metrics, score = finite(metrics), finite(score)  # None: not defined
    points = {f"eval/{name}": value for name, value in metrics.items() if value is not None}
    loss, said = metrics.pop("loss", None), "before training"
    if state["step"]:
        entry = {"step": state["step"], "epoch": round(state["epoch"], 4)}
        entry |= {"score": score, "metrics": metrics, "loss": loss}
        state["history"].append(entry)
        # None, not 0, stands for no score: a first score below 0 is the best so far.
        best, now = state["best"] and choice(state["best"]), choice(entry)
        better = scored and (state["best"] is None or (now is not None and (best is None or now > best)))
        if better:
            state["best"] = entry
        if accelerator.is_main_process:
            if better or args.save == "last":
                save_model(args, accelerator, recipe, model, entry)
            if args.save == "both":
                save_model(args, accelerator, recipe, model, entry, "last")
        if state["best"] and state["best"]["score"] is not None:
            # The HParams page shows the first five tags, and in its parallel view only runs that have them all.
            points |= {f"best/{name}": state["best"][name] for name in ("score", "step", "epoch")}
        said = f"epoch {state['epoch']:.2f}" + ", the best so far" * (state["best"] is entry)
    if accelerator.is_main_process:
        scores = metrics | ({} if loss is None else {"loss": loss})
        scores = ", ".join(f"{k} {shown(v)}" for k, v in scores.items() if "/" not in k)  # "/": a part, such as a class
        tqdm.write(f"step {state['step']}: {scores} ({said})")
    log.scalars(points, state["step"])
    log.figures(figures, state["step"])


def choice(entry):
    """Return the number by which the best evaluation is chosen; entry: an evaluation of run.json."""
    return entry["metrics"].get(CHOICE, entry["score"])


def shown(value):
    """Return a score as text."""
    return "undefined" if value is None else f"{value:.2e}" if 0 < abs(value) < 0.001 else f"{value:.4f}"


def check_weights(model, step, folder):
    """Raise Diverged if a weight of the model is not finite. Reads one value from the device; folder: of the run."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.numel()}
    if torch.nn.utils.get_total_norm(parameters.values(), math.inf).isfinite():
        return
    bad = next(name for name, value in parameters.items() if not value.isfinite().all())
    bad = bad.removeprefix("module.")
    raise Diverged(f"non-finite weights: {bad} after step {step}", "lower --learning_rate", folder)


def save_model(args, accelerator, recipe, model, entry, below=""):
    """Write the model into the run folder, or into its folder `below`, renaming each file once it is complete."""
    folder, temporary = Path(args.output_dir) / below, Path(args.output_dir) / ".tmp-model"
    with writing(Path(args.output_dir), temporary):
        folder.mkdir(exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        recipe.save(temporary, accelerator.unwrap_model(model), entry)
        for path in sorted(temporary.iterdir()):
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            os.replace(path, folder / path.name)
        temporary.rmdir()


@contextlib.contextmanager
def stop_signals():
    """Yield a list that collects Ctrl-C, SIGTERM and SIGUSR1 as they arrive; a second Ctrl-C ends the process."""
    asked, before = [], {}

    def note(number, _):
        if number == signal.SIGINT and number in asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked.append(number)

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # schedulers send SIGUSR1 as a warning
            if signal.getsignal(number) != signal.SIG_IGN:  # a shell ignores Ctrl-C for its background jobs
                before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agreed(accelerator, asked, late, at_log_step):
    """Return (signal that asks the run to stop, or 0; whether a checkpoint is overdue), the same in all processes.

    Several processes agree at log steps only, so that all stop or save at the same step. The main one's clock counts.
    """
    stop = max(asked, default=0)  # SIGTERM before SIGUSR1 before Ctrl-C
    if accelerator.num_processes == 1:
        return stop, late
    if not at_log_step:
        return 0, False
    notes = gather_object([(stop, late and accelerator.is_main_process)])
    stops, late = zip(*notes, strict=True)
    return max(stops), any(late)


def _due(step, every, per_epoch, longest=math.inf):
    """Return whether something due every `every` steps is due; 0: at an epoch's end and every `longest` steps in it."""
    inside = (step - 1) % per_epoch + 1
    return step % every == 0 if every else inside == per_epoch or inside % longest == 0


def _evaluation_due(args, step, per_epoch, total):
    """Return whether to evaluate after this step: at the end, or when due and no other evaluation follows shortly."""
    if step == total or not _due(step, args.eval_steps, per_epoch, LONG_EPOCH):
        return step == total
    every = args.eval_steps or min(LONG_EPOCH, per_epoch)
    left = (total if args.eval_steps else min(total, (step // per_epoch + 1) * per_epoch)) - step
    return left >= every or left > max(1, every // 10)


def _start(args, accelerator, recipe, model, record, how):
    """Prepare model and optimiser and restore the newest checkpoint; return (model, optimiser, state, log)."""
    model, optimizer = accelerator.prepare(model, make_optimizer(model, args))
    torch.manual_seed(args.seed + accelerator.process_index)  # dropout differs between processes
    folder = Path(args.output_dir)
    state = load_checkpoint(accelerator, folder) if how == "resume" else None
    if recipe.positions and state and "positions" in state:
        there = state["positions"][accelerator.process_index]
        if set(there) != set(recipe.positions):
            count = len(there)
            count = len(there)
            raise ValueError(f"{folder} was begun with --num_workers {count}: a stream goes on with as many")
        recipe.positions.update(there)
    if state is None:
        state = {"step": 0, "epoch": 0.0, "best": None, "history": [], "train_s": 0.0, "total_s": 0.0}
        state |= dict.fromkeys(("sessions", "examples", "tokens", "skipped_steps"), 0)
    state["sessions"] += 1
    if how == "resume":
        state["best"] = kept_best(accelerator, folder, state)
    if accelerator.is_main_process:
        shutil.rmtree(folder / ".tmp-model", ignore_errors=True)
    note_results(args, accelerator, record, state)  # first of all: run.json marks the folder as a run's
    log = Log(args, accelerator, recipe, state["step"])
    log.skipped = state["skipped_steps"]
    if not state["step"]:
        log.text("options", options_text(record, getattr(args, "defaults", {})))
    log.begin(record["options"])
    return model, optimizer, state, log


def kept_best(accelerator, folder, state):
    """Return the best evaluation of a resumed run, in all processes the same: the one whose model its folder holds.

    The model may be newer than the checkpoint; run.json then knows its score and `state` does not. Repeating the step
    may give another score on devices that do not repeat steps bit for bit.
    """
    later = [(read_record(folder) or {}).get("best") if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(later)
    return later[0] if later[0] and later[0]["step"] > state["step"] else state["best"]


def options_text(record, defaults):
    """Return Markdown with a run's command and its options that differ from the defaults, typed or filled in."""
    cells = [(name, record["options"].get(name), defaults.get(name)) for name in record["asked"]]
    rows = "".join("|" + "|".join(str(cell).replace("|", "&#124;") for cell in row) + "|\n" for row in cells)
    return f"`{record['command']}`\n\n|option|value|default|\n|-|-|-|\n{rows}"


def total_steps(args, per_epoch):
    """Return the optimiser steps of the run. per_epoch: steps of an epoch."""
    return args.max_steps or max(1, math.ceil(args.num_train_epochs * per_epoch))


def train(args, accelerator, recipe, model, record, how):
    """Train by the recipe, resuming if `how` is "resume"; return the record with the results.

    record: run.json without the results. Raises Diverged if a loss or a weight is not finite or fp16 skips all steps,
    and SystemExit after Ctrl-C (130) or SIGTERM (143), with a checkpoint of the last step. The last checkpoint is
    always intact.
    """
    begun = time.perf_counter()
    with stop_signals() as asked:
        model, optimizer, state, log = _start(args, accelerator, recipe, model, record, how)
        begun -= state["total_s"]
        try:
            _take_steps(args, accelerator, recipe, model, optimizer, record, state, log, asked, begun)
        except Diverged as error:
            note_results(args, accelerator, record | {"status": "failed", "error": str(error)}, state)
            raise
    return record | results(accelerator, state)


def _take_steps(args, accelerator, recipe, model, optimizer, record, state, log, asked, begun):
    """Take the remaining optimiser steps; log, evaluate and save when due.

    asked: the signals so far. begun: when the run would have begun without a break, by time.perf_counter().
    """
    per_epoch = len(recipe.plan(batching.step_size(args, accelerator), 0))
    total, first = total_steps(args, per_epoch), state["step"]
    # Without --save_steps the clock alone decides: an epoch of CoLA takes as long as writing 2 GB.
    save_steps = args.save_steps or (total if args.save_minutes else 0)
    bar = command_line.bar(total=total, initial=first, desc=record["name"], mininterval=0.5, unit="step")
    model.train()
    if not first:
        evaluate(args, accelerator, recipe, model, state, log)
    log.restart()
    clock = began = time.perf_counter()
    saved = time.monotonic()
    last = first if out_of_patience(args, state) else total  # the run had stopped early and was killed before its end
    for indices, batches in batching.steps_from(args, accelerator, recipe, first, last, per_epoch):
        lr, done = learning_rate(args, state["step"], total), state["step"] / total
        values = training_step(args, accelerator, recipe, model, optimizer, batches, lr)
        step = count_step(state, recipe, indices, per_epoch)
        log.add(step, indices, values, recipe.weights_at and recipe.weights_at(done))
        bar.update()
        at_end, at_log = step == total, step % args.logging_steps == 0
        if at_log or at_end:
            pace = (time.perf_counter() - began) / (step - first)
            _log_point(accelerator, log, state, bar, lr, total, pace)
        late = 0 < args.save_minutes * 60 <= time.monotonic() - saved
        stop, late = _agreed(accelerator, asked, late, at_log)
        evaluating = _evaluation_due(args, step, per_epoch, total)
        saving = at_end or stop or late or _due(step, save_steps, per_epoch)
        if not evaluating and not saving:
            continue
        log.read()  # raises before anything non-finite gets into a checkpoint or a score
        state["skipped_steps"] = log.skipped
        check_weights(model, step, args.output_dir)
        state["train_s"] += time.perf_counter() - clock
        if evaluating:  # if all steps were skipped, the model is untrained
            evaluate(args, accelerator, recipe, model, state, log, recipe.scored(done) and log.skipped < step)
        state["total_s"] = time.perf_counter() - begun
        at_end = at_end or out_of_patience(args, state)
        if saving or at_end:
            if recipe.positions:
                state["positions"] = gather_object([dict(recipe.positions)])
            save_checkpoint(accelerator, Path(args.output_dir), state, args.keep_checkpoints)
            saved = time.monotonic()
        note_results(args, accelerator, record, state)
        if at_end:
            break
        if stop:
            _stop(accelerator, bar, step, stop)
        log.restart()
        clock = time.perf_counter()
    bar.close()
    log.end(state["step"])
    if state["step"] < total:
        command_line.say(f"stopped early: {args.early_stopping_patience} evaluations without a better score")
    if log.skipped:
        command_line.say(f"fp16: {log.skipped} of {total} steps were skipped, as their gradients overflowed")


def _log_point(accelerator, log, state, bar, lr, total, pace):
    """Write a point of the curves and print progress; pace: seconds of a step. Raises Diverged."""
    step, points = state["step"], log.write(state["step"], lr)
    bar.set_postfix(loss=f"{points['loss/total']:.4g}", refresh=False)
    if bar.disable and accelerator.is_main_process:
        command_line.say_progress(step, total, pace * (total - step), points)
    state["skipped_steps"] = log.skipped
    log.check_skipped(step, step == total)


def _stop(accelerator, bar, step, number):
    """Print in one line that the run stops, and exit with the usual status for the signal of this number."""
    bar.close()
    if accelerator.is_main_process:
        reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        said = f"stopped by {reason}: saved at step {step}, the same command goes on"
        print(f"{Path(sys.argv[0]).name}: {said}", file=sys.stderr)
    raise SystemExit(128 + number)


def out_of_patience(args, state):
    """Return whether --early_stopping_patience evaluations have followed the best one."""
    since = sum(entry["step"] > state["best"]["step"] for entry in state["history"]) if state["best"] else 0
    return 0 < args.early_stopping_patience <= since


def count_step(state, recipe, indices, per_epoch):
    """Count one step in the state; return its number, from 1."""
    state["step"] += 1
    state["epoch"] = state["step"] / per_epoch
    state["examples"] += len(indices)
    state["tokens"] += sum(recipe.lengths[i] for i in indices)
    return state["step"]


def note_results(args, accelerator, record, state):
    """Update run.json with the results so far."""
    if accelerator.is_main_process:
        with writing(Path(args.output_dir)):
            write_json(Path(args.output_dir) / "run.json", record | results(accelerator, state))


def results(accelerator, state):
    """Return the entries of run.json that the loop computes."""
    seconds = max(state["train_s"], 1e-9)
    return {
        "steps": state["step"],
        "skipped_steps": state["skipped_steps"],
        "time": {name: round(state[name], 2) for name in ("train_s", "total_s", "sessions")},
        "throughput": {
            "examples_per_s": round(state["examples"] / seconds, 2),
            "tokens_per_s": round(state["tokens"] / seconds, 1),
        },
        "tokens_seen": state["tokens"],
        "max_mem_gb": round(max_mem_gb(accelerator), 3),
        "history": state["history"],
        "best": state["best"],
        "last": state["history"][-1] if state["history"] else None,
    }
