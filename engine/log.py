"""What a run writes to TensorBoard and other trackers: means of the terms, scores, figures, options."""

import itertools
import json
import math
import os
import platform
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from engine.environment import max_mem_gb
from engine.run_folder import Diverged, writing
from options import FREE_OPTIONS, TRACKERS

# Steps that a scaler may skip before anything is wrong: it begins with 2^16 and halves that at each skipped step.
SCALER_START = 16


def hyperparameters(options, weights):
    """Return {name: number or word} for the HParams page: options that may change a result, weights as terms/<name>.

    weights: of all terms, 0 for those not computed; the page would take a missing value for an equal one.
    """
    shown = {k: str(v) if isinstance(v, bool) else v for k, v in options.items() if k not in FREE_OPTIONS}
    if options.get("stages"):
        shown["stages"] = json.dumps(options["stages"])
    shown |= {f"terms/{name}": float(weight) for name, weight in weights.items()}
    return {k: v for k, v in shown.items() if isinstance(v, (int, float, str))}


class Events:
    """TensorBoard's event file; each record is written when it is added.

    The libraries' own writers write in a thread, where the error of a full disk is noticed too late.
    """

    def __init__(self, folder, step):
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{platform.node()}.{os.getpid()}.{rest:09d}"
        self.file = (folder / name).open("wb")
        self.records = RecordWriter(self.file)
        self._write(Event(file_version="brain.Event:2"))
        # The run goes on from this step: later points that an earlier part of it wrote are void.
        self._write(Event(step=step + 1 if step else 0, session_log=SessionLog(status=SessionLog.START)))

    def _write(self, event):
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())

    def add(self, content, step):
        """Write a Summary."""
        self._write(Event(step=step, summary=content))


class Log:
    """Collects the terms on the device and reads them once per logging interval; the main process writes."""

    def __init__(self, args, accelerator, recipe, step):
        self.args, self.accelerator, self.recipe = args, accelerator, recipe
        self.pending, self.where, self.weights, self.rows = [], [], [], []
        self.names, self.folder = None, Path(args.output_dir)
        self.skipped, self.in_a_row, self.steps = 0, 0, 0  # of all steps, of the last ones, steps since the last point
        self.restart()
        self.events = None
        if accelerator.is_main_process:
            with writing(self.folder):
                # TensorBoard would make a folder of their own part of the run's name. Runs of an earlier version have
                # such a folder and go on there.
                older = self.folder / "tb"
                self.events = Events(older if older.is_dir() else self.folder, step)

    def begin(self, options):
        """Add the run to the HParams page, and to the project ckd of every other tracker."""
        # We write no record of the whole experiment: the page would take one run's and hide what only others have.
        # Without one it collects all options itself and finds those that differ.
        _, begun, _ = summary.hparams(hyperparameters(options, self.recipe.weights), {})
        self.put(0, [begun])
        names = {name: {TRACKERS[name]: str(self.folder)} for name in self.args.log_with if TRACKERS[name]}
        self.accelerator.init_trackers("ckd", hyperparameters(options, self.recipe.weights), names)

    def end(self, step):
        """Mark the run as complete."""
        _, _, ended = summary.hparams({}, {})
        self.put(step, [ended])
        for tracker in self.accelerator.trackers:  # end_training would end the process group too
            tracker.finish()

    def add(self, step, indices, values, weights=None):
        """Keep the values of one step. It reads from the device only if the step computed other terms than the last.

        weights: those of this step, if they change over time.
        """
        if self.names != [*values]:
            self.read()
            self.names = [*values]
        self.weights.append(weights)
        self.pending.append(torch.stack([v.float().reshape(()) for v in values.values()]))
        self.where.append((step, indices))
        self.steps += 1
        self.examples += len(indices)
        self.tokens += sum(self.recipe.lengths[i] for i in indices)

    def read(self):
        """Read the pending values from the device. Raises Diverged at the first one that is not finite."""
        if not self.pending:
            return
        # The one host read of the loop: it waits for the device.
        stacked = self.accelerator.reduce(torch.stack(self.pending), "mean").cpu()
        scaled = self.accelerator.mixed_precision == "fp16"  # there the scaler skips steps with infinite gradients
        for finite in stacked[:, -1].isfinite().tolist() if scaled else ():  # the fused optimiser does not report it
            self.skipped, self.in_a_row = self.skipped + (not finite), 0 if finite else self.in_a_row + 1
        checked = stacked[:, :-1] if scaled else stacked
        for row, (step, indices) in zip(checked, self.where, strict=True):
            bad = [name for name, value in zip(self.names, row.tolist(), strict=False) if not math.isfinite(value)]
            if bad:
                bad = [name for name in bad if name != "total"] or bad
                raise Diverged(
                    f"non-finite loss: {bad[0]} at step {step} (examples {', '.join(map(str, indices[:64]))})",
                    "lower --learning_rate or look at these examples",
                    self.folder,
                )
        rows = [dict(zip(self.names, row, strict=True)) for row in stacked.tolist()]
        self.rows += zip(rows, self.weights, strict=True)
        self.pending, self.where, self.weights = [], [], []

    def write(self, step, lr):
        """Write a point: means over the last --logging_steps steps; return {tag: number}.

        loss/<term> is the mean over the steps that computed the term, loss_weighted/<term> that over all steps, so that
        these add up to the total.
        """
        self.read()
        self.rows = self.rows[-self.args.logging_steps :]
        rows, fixed, last = [row for row, _ in self.rows], self.recipe.weights, self.rows[-1][1]
        names = dict.fromkeys(itertools.chain(*rows))
        means = {name: statistics.fmean(row[name] for row in rows if name in row) for name in names}
        seconds = time.perf_counter() - self.start
        points = {f"loss/{name}": value for name, value in means.items() if name != "grad_norm"}
        points |= {
            f"loss_weighted/{name}": sum(
                row.get(name, 0.0) * (fixed if now is None else now).get(name, 0.0) for row, now in self.rows
            )
            / len(rows)
            for name in self.recipe.weights
            if name in means
        }
        if last is not None:
            points |= {f"weight/{name}": last.get(name, 0.0) for name, weight in fixed.items() if weight}
        points |= {
            "optim/lr": lr,
            "optim/grad_norm": means["grad_norm"],
            "perf/examples_per_s": self.examples / seconds,
            "perf/tokens_per_s": self.tokens / seconds,
            "perf/max_mem_gb": max_mem_gb(self.accelerator),
        }
        self.scalars(points, step)
        self.restart()
        return points

    def check_skipped(self, step, at_end):
        """Raise Diverged if fp16 skipped all steps of the run or, since the last check, more than at a scaler's start.

        Call it after `write`, which reads them.
        """
        since, self.steps = self.steps, 0
        if self.in_a_row >= max(since, SCALER_START + 1) or (at_end and self.skipped == step):
            raise Diverged(
                f"fp16: the last {self.in_a_row} steps were all skipped, as their gradients overflowed "
                f"({self.skipped} of {step} in all)",
                "take --mixed_precision bf16 or no, or lower the weights of --terms",
                self.folder,
            )

    def scalars(self, points, step):
        """Write {tag: number}, to the other trackers too."""
        self.put(step, [summary.scalar(tag, value) for tag, value in points.items()])
        self.accelerator.log(points, step=step)

    def figures(self, figures, step):
        """Write {tag: matplotlib figure} as pictures."""
        if not figures:
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes 0.3 s, and fine-tuning draws nothing

        for tag, figure in figures.items():
            canvas = FigureCanvasAgg(figure)
            with warnings.catch_warnings():  # the font lacks the letters of many languages and draws boxes
                warnings.filterwarnings("ignore", "Glyph .* missing")
                canvas.draw()
            self.put(step, [summary.image(tag, np.asarray(canvas.buffer_rgba()), dataformats="HWC")])

    def text(self, tag, text):
        """Write a Markdown text."""
        self.put(0, [summary.text(tag, text)])

    def put(self, step, summaries):
        """Write Summaries in the main process. Raises TrainingError if the disk takes no more."""
        if self.events:
            with writing(self.folder):
                for content in summaries:
                    self.events.add(content, step)
                self.events.file.flush()

    def restart(self):
        """Restart the clock: after a point, an evaluation or a checkpoint."""
        self.start, self.tokens, self.examples = time.perf_counter(), 0, 0
