"""The training loop on Hugging Face Accelerate: devices, precision, accumulation, resume, logging, the run record.

It knows nothing of distillation: it is handed a function that gives the loss of a batch and one that evaluates.
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
from accelerate.utils import gather_object, set_seed
from tqdm.auto import tqdm

from engine import command_line
from engine.checkpoints import load_checkpoint, save_checkpoint
from engine.environment import max_mem_gb
from engine.log import Log
from engine.run_folder import Diverged, finite, write_json, writing
from engine.run_folder import TrainingError as TrainingError
from options import LONG_EPOCH
from tasks import batching

CHOICE = "held_out/score"  # a metric that chooses the best model in place of the score, where there is one

# --- the loop -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Recipe:
    """What the loop needs to know of a task.

    lengths: tokens of each training example. plan(size, epoch): the epoch as a sequence of optimiser steps, each a list
    of example indices; a list, or lazy as `batching.Steps`: len, [i] and slices are asked of it. collate(indices,
    epoch): those examples as a dict of tensors. loss(model, batch): (scalar to minimise, {term: detached unweighted
    scalar}). evaluate(model): ({metric: float}, score, {name: matplotlib figure}), called by all processes; "loss"
    among the metrics is the loss on the dev set's labels, which is noted beside them. save(folder, model,
    metrics): writes the model as a Hugging Face folder, main process only.
    """

    lengths: list
    plan: Callable
    collate: Callable
    loss: Callable
    evaluate: Callable
    save: Callable
    weights: dict = dataclasses.field(default_factory=dict)  # term -> weight, 0 if not computed, for the log
    # What `loss` finds in batch["part"], in a pass for each; gradients are summed. The last one's pass reaches all
    # parameters, as DDP wants.
    parts: Sequence = (None,)
    # Where weights change in time: the share of the steps done before a step, which its batches bring as "progress", ->
    # the weights of that step; `weights` then holds the largest.
    weights_at: Callable | None = None
    # That share for the last step -> whether the score says something by now, so that the model may be the best.
    scored: Callable = lambda progress: True
    # Of a stream: worker -> where it stands, or None. Batches bring it as "position"; it is part of the checkpoint.
    positions: dict = dataclasses.field(default_factory=dict)


def keep_memory():
    """Let glibc keep freed memory: a step frees and takes the same buffers, and new pages have to be filled with zeros.

    The gradient of 30,522 words of 384 alone is 47 MB; bench/RESULTS.md has what it saves. No result changes.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped for itself, which free would always give back
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes free at the end of the heap before it shrinks


def check_precision(args):
    """Raise ValueError for a precision that the device lacks, set TF32, and say on stderr what would be faster."""
    if not torch.cuda.is_available():
        for option, given in (("--mixed_precision fp16", args.mixed_precision == "fp16"), ("--tf32", args.tf32)):
            if given:
                raise ValueError(f"{option} needs a CUDA device: use --mixed_precision bf16 or no")
        if Path("/proc/driver/nvidia").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            print(
                "warning: this machine has NVIDIA's driver, but torch sees no CUDA device and runs on the CPU: install "
                "torch for this driver's CUDA (pytorch.org/get-started/locally), or set CUDA_VISIBLE_DEVICES= if you "
                "want the CPU",
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
    """Accelerator for this process, seeded; on CUDA with full float32 products unless --mixed_precision says less."""
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    # Buffers of these models are constant: sending them before each pass would be one more thing to wait for.
    ddp = DistributedDataParallelKwargs(
        find_unused_parameters=unused_parameters,
        broadcast_buffers=False,
        comm_hook=DDPCommunicationHookType(args.ddp_comm),
    )
    check_precision(args)
    trackers = [name for name in args.log_with if name != "tensorboard"]  # whose files are our own
    for name in trackers:
        if name not in map(str, get_available_trackers()):
            raise ValueError(
                f"--log_with {name}: its package is missing here: pip install {name.replace('_', '-')}, "
                "or leave it out; TensorBoard's files are written anyway"
            )
    # Without cpu=True, processes that torchrun starts on a machine without GPU would not know of each other.
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
    """AdamW, fused where the device has it; no weight decay on biases and LayerNorm weights (all vectors).

    The place for another optimiser, for frozen layers, and for a rate of their own: a group's "rate" multiplies it.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.learning_rate, fused=True)


def learning_rate(args, step, total):
    """Learning rate of optimiser step `step` (from 0) of `total`: linear warm-up, then as args.lr_scheduler_type says.

    Of the step alone, so that no checkpoint has to hold it. transformers begins the warm-up with a rate of 0, a step
    that would change nothing: here it begins one later.
    """
    warmup = math.ceil(args.warmup_ratio * total)
    schedule = _schedule(args.lr_scheduler_type, warmup, total)
    return args.learning_rate * (1.0 if step + 1 == warmup else schedule(step + (step < warmup)))


@functools.lru_cache(maxsize=4)
def _schedule(kind, warmup, total):
    """Return the function from a step to the share of the peak rate, of one of transformers' schedules."""
    return transformers.get_scheduler(kind, torch.optim.SGD([torch.zeros(1)]), warmup, total).lr_lambdas[0]


def sum_over_processes(accelerator, values):
    """Return {name: scalar tensor} -> {name: float}, each summed over all processes; some may lack a name."""
    gathered = gather_object([{name: value.item() for name, value in values.items()}])
    return {name: sum(part.get(name, 0.0) for part in gathered) for name in {n for part in gathered for n in part}}


def training_step(args, accelerator, recipe, model, optimizer, batches, lr):
    """Return one optimiser step over its batches; the terms' values (total first, gradient norm last), on
    the device.
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
    """Evaluate; note the result in log and state, and save the model if it is what --save wants.

    Before the first step the result is only logged, as the point where the curves begin: an untrained model is never
    the best one, nor is one whose score says nothing yet (not scored).
    """
    model.eval()
    metrics, score, figures = recipe.evaluate(model)
    model.train()
    metrics, score = finite(metrics), finite(score)  # None where a score is not defined
    points = {f"eval/{name}": value for name, value in metrics.items() if value is not None}
    loss, said = metrics.pop("loss", None), "before training"
    if state["step"]:
        entry = {
            "step": state["step"],
            "epoch": round(state["epoch"], 4),
            "score": score,
            "metrics": metrics,
            "loss": loss,
        }
        state["history"].append(entry)
        # None, not 0: a first score below 0 is still the best so far.
        best, now = state["best"] and choice(state["best"]), choice(entry)
        better = scored and (state["best"] is None or (now is not None and (best is None or now > best)))
        if better:
            state["best"] = entry
        best = state["best"] and state["best"]["score"]
        if accelerator.is_main_process:
            if better or args.save == "last":
                save_model(args, accelerator, recipe, model, entry)
            if args.save == "both":
                save_model(args, accelerator, recipe, model, entry, "last")
        if best is not None:
            # The HParams page shows the first five tags, and in its parallel view only runs that have them all.
            points |= {f"best/{name}": state["best"][name] for name in ("score", "step", "epoch")}
        said = f"epoch {state['epoch']:.2f}" + ", the best so far" * (state["best"] is entry)
    if accelerator.is_main_process:
        scores = metrics | ({} if loss is None else {"loss": loss})
        scores = ", ".join(f"{k} {shown(v)}" for k, v in scores.items() if "/" not in k)  # not type by type
        tqdm.write(f"step {state['step']}: {scores} ({said})")
    log.scalars(points, state["step"])
    log.figures(figures, state["step"])


def choice(entry):
    """Return the number of an evaluation by which the best one is chosen."""
    return entry["metrics"].get(CHOICE, entry["score"])


def shown(value):
    """Return a score as it is printed."""
    return "undefined" if value is None else f"{value:.2e}" if 0 < abs(value) < 0.001 else f"{value:.4f}"


def check_weights(model, step, folder):
    """Raise Diverged, of the run in this folder, if a weight is not finite; one value is read from the device."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.numel()}
    if torch.nn.utils.get_total_norm(parameters.values(), math.inf).isfinite():
        return
    bad = next(name for name, value in parameters.items() if not value.isfinite().all())
    bad = bad.removeprefix("module.")
    raise Diverged(f"non-finite weights: {bad} after step {step}", "lower --learning_rate", folder)


def save_model(args, accelerator, recipe, model, entry, below=""):
    """Put the model into the run folder, or a folder below it, file by file, each whole."""
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
    """Within it, Ctrl-C, SIGTERM and SIGUSR1 are noted in the list that it yields; a second Ctrl-C ends the process."""
    asked, before = [], {}

    def note(number, _):
        """The handler."""
        if number == signal.SIGINT and number in asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked.append(number)

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the last is what schedulers send early
            if signal.getsignal(number) != signal.SIG_IGN:  # as a shell does for what runs in the background
                before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agreed(accelerator, asked, late, at_log_step):
    """(the signal by which the run was asked to stop, or 0; whether a checkpoint is late), the same in all processes.

    Several processes compare notes at log steps, so that all stop or save at the same one; the main one's clock counts.
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
    """Return whether what happens every n steps, or for 0 at the end of an epoch and every `longest` steps of it, is
    due.
    """
    inside = (step - 1) % per_epoch + 1
    return step % every == 0 if every else inside == per_epoch or inside % longest == 0


def _evaluation_due(args, step, per_epoch, total):
    """Return whether to evaluate after this step: at the end too, and then not also shortly before, nor before an
    epoch's.
    """
    if step == total or not _due(step, args.eval_steps, per_epoch, LONG_EPOCH):
        return step == total
    every = args.eval_steps or min(LONG_EPOCH, per_epoch)
    left = (total if args.eval_steps else min(total, (step // per_epoch + 1) * per_epoch)) - step
    return left >= every or left > max(1, every // 10)


def _start(args, accelerator, recipe, model, record, how):
    """Prepare model and optimiser and restore the newest checkpoint; (model, optimiser, state, log)."""
    model, optimizer = accelerator.prepare(model, make_optimizer(model, args))
    torch.manual_seed(args.seed + accelerator.process_index)  # dropout differs between processes
    folder = Path(args.output_dir)
    state = load_checkpoint(accelerator, folder) if how == "resume" else None
    if recipe.positions and state and "positions" in state:
        there = state["positions"][accelerator.process_index]
        if set(there) != set(recipe.positions):
            raise ValueError(f"{folder} was begun with --num_workers {len(there)}: a stream goes on with as many")
        recipe.positions.update(there)
    if state is None:
        state = {
            "step": 0,
            "epoch": 0.0,
            "best": None,
            "history": [],
            "train_s": 0.0,
            "total_s": 0.0,
            "sessions": 0,
            "examples": 0,
            "tokens": 0,
            "skipped_steps": 0,
        }
    state["sessions"] += 1
    if accelerator.is_main_process:
        shutil.rmtree(folder / ".tmp-model", ignore_errors=True)
    note_results(args, accelerator, record, state)  # before anything else: it tells a run's folder from a stranger's
    log = Log(args, accelerator, recipe, state["step"])
    log.skipped = state["skipped_steps"]
    if not state["step"]:
        log.text("options", options_text(record, getattr(args, "defaults", {})))
    log.begin(record["options"])
    return model, optimizer, state, log


def options_text(record, defaults):
    """Markdown of a run's command, and of the options that are not at their defaults: by hand, preset or recipe."""
    cells = [(name, record["options"].get(name), defaults.get(name)) for name in record["asked"]]
    rows = "".join("|" + "|".join(str(cell).replace("|", "&#124;") for cell in row) + "|\n" for row in cells)
    return f"`{record['command']}`\n\n|option|value|default|\n|-|-|-|\n{rows}"


def total_steps(args, per_epoch):
    """Optimiser steps of the run, from those of an epoch."""
    return args.max_steps or max(1, math.ceil(args.num_train_epochs * per_epoch))


def train(args, accelerator, recipe, model, record, how):
    """Train by the recipe, resuming where `how` is "resume"; returns the record with the results filled in.

    record: run.json but for the results. Raises Diverged if a loss or a weight is not finite or fp16 skips all steps,
    SystemExit after Ctrl-C (130) or SIGTERM (143) with a checkpoint of the step it stopped at; the last checkpoint is
    always intact.
    """
    begun = time.perf_counter()
    with stop_signals() as asked, contextlib.ExitStack() as stack:
        model, optimizer, state, log = _start(args, accelerator, recipe, model, record, how)
        stack.enter_context(_failure_noted(args, accelerator, record, state))
        per_epoch = len(recipe.plan(batching.step_size(args, accelerator), 0))
        total = total_steps(args, per_epoch)
        # Without --save_steps the clock alone says when: an epoch of CoLA takes as long as writing 2 GB does.
        never = total if args.save_minutes else 0
        before = state["total_s"]
        first = state["step"]
        bar = command_line.bar(total=total, initial=first, desc=record["name"], mininterval=0.5, unit="step")
        model.train()
        if not state["step"]:
            evaluate(args, accelerator, recipe, model, state, log)
        log.restart()
        clock = began = time.perf_counter()
        saved = time.monotonic()
        last = first if out_of_patience(args, state) else total  # it had stopped early, and was killed before its end
        for indices, batches in batching.steps_from(args, accelerator, recipe, first, last, per_epoch):
            lr, done = learning_rate(args, state["step"], total), state["step"] / total
            values = training_step(args, accelerator, recipe, model, optimizer, batches, lr)
            step = count_step(state, recipe, indices, per_epoch)
            log.add(step, indices, values, recipe.weights_at and recipe.weights_at(done))
            bar.update()
            at_end, at_log = step == total, step % args.logging_steps == 0
            if at_log or at_end:
                points = log.write(step, lr)
                bar.set_postfix(loss=f"{points['loss/total']:.4g}", refresh=False)
                if bar.disable and accelerator.is_main_process:
                    left = (time.perf_counter() - began) / (step - first) * (total - step)
                    command_line.say_progress(step, total, left, points)
                state["skipped_steps"] = log.skipped
                log.check_skipped(step, at_end)
            late = 0 < args.save_minutes * 60 <= time.monotonic() - saved
            stop, late = _agreed(accelerator, asked, late, at_log)
            evaluating = _evaluation_due(args, step, per_epoch, total)
            saving = at_end or stop or late or _due(step, args.save_steps or never, per_epoch)
            if not evaluating and not saving:
                continue
            log.read()  # nothing non-finite gets into a checkpoint or a score
            state["skipped_steps"] = log.skipped
            check_weights(model, step, args.output_dir)
            state["train_s"] += time.perf_counter() - clock
            if evaluating:  # a model whose steps were all skipped is an untrained one
                evaluate(args, accelerator, recipe, model, state, log, recipe.scored(done) and log.skipped < step)
            state["total_s"] = before + time.perf_counter() - begun
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
        if log.skipped and accelerator.is_main_process:
            print(f"fp16: {log.skipped} of {total} steps were skipped, as their gradients overflowed")
    return record | results(accelerator, state)


@contextlib.contextmanager
def _failure_noted(args, accelerator, record, state):
    """Within it, a run that cannot go on says so in its run.json, with the reason."""
    try:
        yield
    except Diverged as error:
        note_results(args, accelerator, record | {"status": "failed", "error": str(error)}, state)
        raise


def _stop(accelerator, bar, step, number):
    """Say that the run stops, in one line, and leave with the status customary for the signal of this number."""
    bar.close()
    if accelerator.is_main_process:
        reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        print(
            f"{Path(sys.argv[0]).name}: stopped by {reason}: saved at step {step}, the same command goes on",
            file=sys.stderr,
        )
    raise SystemExit(128 + number)


def out_of_patience(args, state):
    """Return whether --early_stopping_patience evaluations have followed the best one."""
    since = sum(entry["step"] > state["best"]["step"] for entry in state["history"]) if state["best"] else 0
    return 0 < args.early_stopping_patience <= since


def count_step(state, recipe, indices, per_epoch):
    """Count one step in the state; returns its number, from 1."""
    state["step"] += 1
    state["epoch"] = state["step"] / per_epoch
    state["examples"] += len(indices)
    state["tokens"] += sum(recipe.lengths[i] for i in indices)
    return state["step"]


def note_results(args, accelerator, record, state):
    """Bring run.json up to date."""
    if accelerator.is_main_process:
        with writing(Path(args.output_dir)):
            write_json(Path(args.output_dir) / "run.json", record | results(accelerator, state))


def results(accelerator, state):
    """Return the part of run.json that the loop knows."""
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
