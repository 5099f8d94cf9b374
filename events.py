"""What a run writes to TensorBoard: the terms' means, scores, figures, its options for the HParams page."""
import io
import math
import os
import platform
import time
from pathlib import Path

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from runs import TrainingError, max_mem_gb, writing


class Events:
    """TensorBoard's event file, each record written when it is added.

    The libraries' own writers do that in a thread, where nobody meets the error of a full disk in time.
    """

    def __init__(self, folder, step):
        folder.mkdir(exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{platform.node()}.{os.getpid()}.{rest}"
        self.file = (folder / name).open("wb")
        self.records = RecordWriter(self.file)
        self._write(Event(file_version="brain.Event:2"))
        if step:  # the run goes on from there: points that were written later are void
            self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def _write(self, event):
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())

    def add(self, content, step):
        """Write a Summary."""
        self._write(Event(step=step, summary=content))

    def figure(self, tag, figure):
        """The Summary of a matplotlib figure."""
        png, (width, height) = io.BytesIO(), figure.get_size_inches() * figure.dpi
        figure.savefig(png, format="png", dpi=figure.dpi)
        image = Summary.Image(height=int(height), width=int(width), colorspace=4, encoded_image_string=png.getvalue())
        return Summary(value=[Summary.Value(tag=tag, image=image)])


class Log:
    """Collects the terms on the device and reads them once per logging interval."""

    def __init__(self, args, accelerator, recipe, step):
        self.args, self.accelerator, self.recipe = args, accelerator, recipe
        self.pending, self.where, self.rows, self.folder = [], [], [], Path(args.output_dir)
        self.restart()
        self.events = None
        if accelerator.is_main_process:
            with writing(self.folder):
                self.events = Events(self.folder / "tb", step)

    def add(self, step, indices, values):
        """Keep the values of one step; nothing is read from the device."""
        self.names = list(values)
        self.pending.append(torch.stack([v.float().reshape(()) for v in values.values()]))
        self.where.append((step, indices))
        self.examples += len(indices)
        self.tokens += sum(self.recipe.lengths[i] for i in indices)

    def read(self):
        """Read what is pending from the device. Raises TrainingError at the first non-finite value."""
        if not self.pending:
            return
        # The one host read of the loop: it waits for the device.
        stacked = self.accelerator.reduce(torch.stack(self.pending), "mean").cpu()
        scaled = self.accelerator.mixed_precision == "fp16"  # there the scaler skips steps with infinite gradients
        checked = stacked[:, :-1] if scaled else stacked
        for row, (step, indices) in zip(checked, self.where, strict=True):
            bad = [name for name, value in zip(self.names, row.tolist(), strict=False) if not math.isfinite(value)]
            if bad:
                bad = [name for name in bad if name != "total"] or bad
                raise TrainingError(
                    f"non-finite loss: {bad[0]} at step {step} (examples {', '.join(map(str, indices[:64]))}); the "
                    "last checkpoint is intact: lower --learning_rate or look at these examples"
                )
        self.rows += stacked.tolist()
        self.pending, self.where = [], []

    def write(self, step, lr):
        """Write one TensorBoard point; the means of its values, which are over the steps since the last point."""
        self.read()
        means = dict(zip(self.names, torch.tensor(self.rows, dtype=torch.float64).mean(0).tolist(), strict=True))
        self.rows = []
        seconds = time.perf_counter() - self.start
        if self.events:
            points = {f"loss/{name}": value for name, value in means.items() if name != "grad_norm"}
            points |= {f"loss_weighted/{name}": means[name] * weight for name, weight in self.recipe.weights.items()}
            points |= {"optim/lr": lr, "optim/grad_norm": means["grad_norm"],
                       "perf/examples_per_s": self.examples / seconds, "perf/tokens_per_s": self.tokens / seconds,
                       "perf/max_mem_gb": max_mem_gb(self.accelerator)}  # fmt: skip
            self.scalars(points, step)
        self.restart()
        return means

    def scalars(self, points, step, figures=None):
        """Write {tag: value} and {tag: figure} to TensorBoard."""
        with writing(self.folder):
            for tag, value in points.items():
                self.events.add(summary.scalar(tag, value), step)
            for tag, figure in (figures or {}).items():
                self.events.add(self.events.figure(tag, figure), step)
            self.events.file.flush()

    def text(self, tag, text):
        """Write a Markdown text to TensorBoard."""
        with writing(self.folder):
            self.events.add(summary.text(tag, text), 0)
            self.events.file.flush()

    def restart(self):
        """Start the clock anew: after a point, an evaluation or a checkpoint."""
        self.start, self.tokens, self.examples = time.perf_counter(), 0, 0
