"""From tokenised examples to batches on the device."""

import contextlib
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
TRAINING = (*INPUTS, "labels", "start_positions", "end_positions")


def grouped_batches(lengths, size, seed, epoch, order=None):
    """Return a random order of examples as batches of similar length: lists of indices, size each but for the last one.

    lengths: tokens of each example. The order depends on seed and epoch alone, and begins with `order`, a list, if that
    is given. Lengths are sorted within chunks of 50 batches, so batches stay random and little of them is padding; an
    incomplete batch comes last.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = order or torch.randperm(len(lengths), generator=generator).tolist()
    chunks = [order[i : i + 50 * size] for i in range(0, len(order), 50 * size)]
    order = [i for chunk in chunks for i in sorted(chunk, key=lambda i: lengths[i])]
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    full = [b for b in batches if len(b) == size]
    shuffled = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
    return shuffled + batches[len(full) :]


def sorted_batches(lengths, size):
    """Every example once, longest first, as lists of indices: for evaluation."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]


class Arrays:
    """Columns of a tokenised Dataset as flat arrays, read from where the Dataset has them: batches are cut out of them.

    columns: those wanted; the Dataset may lack some.
    """

    def __init__(self, dataset, columns):
        self.columns = {}
        names = [name for name in columns if name in dataset.column_names]
        table = dataset.select_columns(names).with_format("arrow")[:]
        for name in names:
            column = table[name].combine_chunks()
            if hasattr(column, "offsets"):  # a list of tokens
                offsets = column.offsets.to_numpy().astype(np.int64)
                known = (o for _, o in self.columns.values() if o is not None and np.array_equal(o, offsets))
                self.columns[name] = column.values.to_numpy(), next(known, offsets)  # one cut for all of them
            else:
                values = column.to_numpy(zero_copy_only=False)
                self.columns[name] = values.astype(np.float32) if values.dtype.kind == "f" else values, None

    def lengths(self, name="input_ids"):
        """Number of tokens of each example, a list."""
        return np.diff(self.columns[name][1]).tolist()

    def batch(self, indices, pad_id):
        """The examples with these numbers: {column: tensor}, lists of tokens padded to the longest, [B, T], else [B].

        pad_id fills input_ids, -100 labels, 0 everything else; attention_mask: 1 = real token.
        """
        indices, batch, cut = np.asarray(indices), {}, {}
        for name, (values, offsets) in self.columns.items():
            if offsets is None:
                batch[name] = torch.from_numpy(values[indices])
                continue
            if id(offsets) not in cut:
                starts = offsets[indices]
                real = np.arange((offsets[indices + 1] - starts).max()) < (offsets[indices + 1] - starts)[:, None]
                cut[id(offsets)] = real, (starts[:, None] + np.arange(real.shape[1]))[real]
            real, places = cut[id(offsets)]
            fill = {"input_ids": pad_id, "labels": -100}.get(name, 0)
            rows = np.full(real.shape, fill, dtype=np.int64)
            rows[real] = values[places]
            batch[name] = torch.from_numpy(rows)
        return batch


class Constant:
    """A sequence of unknown length whose every element is the value."""

    def __init__(self, value):
        self.value = value

    def __getitem__(self, index):
        return self.value


class Repeated(Constant):
    """A sequence of unknown length that begins again after the last of its values, a list."""

    def __getitem__(self, index):
        return self.value[index % len(self.value)]


class Steps(Sequence):
    """An order of examples in steps of `size`, each cut out when it is asked for: [i] is a list of indices.

    order: anything that can be cut, such as a range for a stream, or a tensor. The last step may be shorter.
    """

    def __init__(self, order, size):
        self.order, self.size = order, size

    def __len__(self):
        return math.ceil(len(self.order) / self.size)

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at %= len(self)
        return list(map(int, self.order[at * self.size : (at + 1) * self.size]))


class Parts(torch.utils.data.Dataset):
    """Batches for a DataLoader: asked with (epoch, indices), it collates them where the worker is."""

    def __init__(self, collate):
        self.collate = collate

    def __getitem__(self, key):
        epoch, indices = key
        return self.collate(indices, epoch)


def split_step(indices, per_device, processes, rank):
    """Return the share of one process in an optimiser step: [(its indices, share of the step's examples), ...].

    A process without examples in a forward pass gets ([], share): it computes on a stand-in that counts nothing.
    """
    size = per_device * processes
    parts = [indices[i : i + size] for i in range(0, len(indices), size)]
    return [(part[rank::processes], len(part) / len(indices)) for part in parts]


def ahead(batches, device):
    """Yield the batches (dicts of tensors and others) on the device; the copy of the next has begun before each."""
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    waiting = []
    for batch in batches:
        with torch.cuda.stream(side) if side else contextlib.nullcontext():
            moved = {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
        waiting.append((moved, side and side.record_event()))
        if len(waiting) == 2:
            yield _arrived(*waiting.pop(0))
    for moved, event in waiting:
        yield _arrived(moved, event)


def _arrived(batch, event):
    """Return the batch, which the current CUDA stream may use from here on."""
    if event:
        torch.cuda.current_stream().wait_event(event)
        for value in filter(torch.is_tensor, batch.values()):
            value.record_stream(torch.cuda.current_stream())
    return batch


def workers(args):
    """Return how many processes make the batches: --num_workers, by default 2 beside a GPU, else none."""
    return args.num_workers if args.num_workers is not None else 2 * torch.cuda.is_available()


def step_size(args, accelerator):
    """Examples of one optimiser step, over all processes."""
    return args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps


def step_batches(args, accelerator, recipe, plan, epoch, start):
    """Yield (indices of the step, [(batch on the device, share), ...]) for the steps of an epoch from `start` on."""

    def parts(at):
        """This process's share of a step."""
        return split_step(
            plan[at], args.per_device_train_batch_size, accelerator.num_processes, accelerator.process_index
        )

    # Made as they are asked for: a stream has no end.
    keys = ((epoch, mine or plan[at][:1]) for at in range(start, len(plan)) for mine, _ in parts(at))
    loader = DataLoader(
        Parts(recipe.collate),
        sampler=keys,
        batch_size=None,
        num_workers=workers(args),
        pin_memory=accelerator.device.type == "cuda",
        multiprocessing_context="fork" if workers(args) else None,  # what collates is no name of a module
        generator=torch.Generator(),  # its own: the loader must not draw from the generator of dropout
    )
    loader = ahead(loader, accelerator.device)
    for at in range(start, len(plan)):
        batches = []
        for mine, share in parts(at):
            batch = next(loader)
            recipe.positions.update(batch.pop("position", {}))
            batches += [({**batch, "empty": not mine, "part": part}, share) for part in recipe.parts]
        yield plan[at], batches


def steps_from(args, accelerator, recipe, step, total, per_epoch):
    """Yield what `step_batches` does, epoch after epoch, for the optimiser steps after `step` up to `total`."""
    while step < total:
        epoch, start = divmod(step, per_epoch)
        plan = recipe.plan(step_size(args, accelerator), epoch)
        steps = step_batches(args, accelerator, recipe, plan, epoch, start)
        for indices, batches in itertools.islice(steps, total - step):
            yield indices, [({**batch, "progress": step / total}, share) for batch, share in batches]
            step += 1
