"""Batches: orders of examples, columns cut into tensors, steps for each process, copies to the device."""

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from data import whole_texts
from engine import checkpoints

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
TRAINING = (*INPUTS, "labels", "start_positions", "end_positions")


def grouped_batches(lengths, size, seed, epoch, order=None):
    """Return batches of similar length in random order: lists of indices, all of `size` but the last.

    lengths: tokens of each example. The order depends on seed and epoch alone, or on `order`, a list of indices, as
    well. Lengths are sorted within chunks of 50 batches: batches stay random and have little padding. An incomplete
    batch comes last.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = order or torch.randperm(len(lengths), generator=generator).tolist()
    chunks = [order[i : i + 50 * size] for i in range(0, len(order), 50 * size)]
    order = [i for chunk in chunks for i in sorted(chunk, key=lambda i: lengths[i])]
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    full = [b for b in batches if len(b) == size]
    shuffled = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
    return shuffled + batches[len(full) :]


def cached_windows(place, examples, tokenizer, settings, cut, features=None):
    """Return the Dataset of windows that cut(rows, indices) makes of a Dataset; `checkpoints.kept_windows` keeps it.

    Its folder is `place` and a digest of all that the windows depend on: examples, tokenizer and settings. Raises
    ValueError if the folder is damaged.
    """
    whole_texts(tokenizer)  # settings of an earlier call would change the digest
    digest = hashlib.sha256(json.dumps([settings, tokenizer.backend_tokenizer.to_str()]).encode())
    for batch in examples.iter(1000):
        digest.update(json.dumps(batch).encode())
    folder = place.with_name(f"{place.name}-{digest.hexdigest()[:24]}")
    found = checkpoints.kept_windows(examples, folder, cut, features)
    whole_texts(tokenizer)
    return found


def sorted_batches(lengths, size):
    """Return batches of each example once, longest first, as lists of indices: for evaluation."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]


class Arrays:
    """Columns of a tokenised Dataset as flat arrays on the Dataset's own memory, to cut batches from.

    columns: the wanted ones; the Dataset may lack some.
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
        """Return the number of tokens of each example, a list."""
        return np.diff(self.columns[name][1]).tolist()

    def batch(self, indices, pad_id):
        """Return {column: tensor} of these examples: [B, T] for tokens, padded to the longest, else [B].

        Padding is pad_id in input_ids, -100 in labels, 0 elsewhere; attention_mask: 1 = real token.
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
    """A sequence of unknown length; every element is the value."""

    def __init__(self, value):
        self.value = value

    def __getitem__(self, index):
        return self.value


class Repeated(Constant):
    """A sequence of unknown length that repeats a list of values."""

    def __getitem__(self, index):
        return self.value[index % len(self.value)]


class Steps(Sequence):
    """An order of examples in steps of `size`: [i] is a list of indices, cut on demand.

    order: anything with slices, such as a tensor, or a range for a stream. The last step may be shorter.
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
    """Batches for a DataLoader: the key (epoch, indices) gives a batch, collated in the worker."""

    def __init__(self, collate):
        self.collate = collate

    def __getitem__(self, key):
        epoch, indices = key
        return self.collate(indices, epoch)


def split_step(indices, per_device, processes, rank):
    """Return the share of one process in an optimiser step: [(its indices, share of the step's examples), ...].

    A process without examples in a forward pass gets ([], share): it computes on a stand-in with weight 0.
    """
    size = per_device * processes
    parts = [indices[i : i + size] for i in range(0, len(indices), size)]
    return [(part[rank::processes], len(part) / len(indices)) for part in parts]


def ahead(batches, device):
    """Yield the batches (dicts of tensors and others) on the device; the copy of the next one starts before each."""
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
    """Return the batch once the current CUDA stream may use it."""
    if event:
        torch.cuda.current_stream().wait_event(event)
        for value in filter(torch.is_tensor, batch.values()):
            value.record_stream(torch.cuda.current_stream())
    return batch


def workers(args):
    """Return the number of processes that make batches: --num_workers; by default 2 with a GPU, else 0."""
    return args.num_workers if args.num_workers is not None else 2 * torch.cuda.is_available()


def step_size(args, accelerator):
    """Return the number of examples of an optimiser step, over all processes."""
    return args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps


def step_batches(args, accelerator, recipe, plan, epoch, start):
    """Yield (indices of the step, [(batch on the device, share), ...]) for the steps of an epoch from `start` on."""

    ours = args.per_device_train_batch_size, accelerator.num_processes, accelerator.process_index
    # A generator: a stream has no end.
    keys = ((epoch, mine or plan[at][:1]) for at in range(start, len(plan)) for mine, _ in split_step(plan[at], *ours))
    loader = DataLoader(
        Parts(recipe.collate),
        sampler=keys,
        batch_size=None,
        num_workers=workers(args),
        pin_memory=accelerator.device.type == "cuda",
        multiprocessing_context="fork" if workers(args) else None,  # the collate function cannot be pickled
        generator=torch.Generator(),  # its own, so that the loader does not draw from the generator of dropout
    )
    loader = ahead(loader, accelerator.device)
    for at in range(start, len(plan)):
        batches = []
        for mine, share in split_step(plan[at], *ours):
            batch = next(loader)
            recipe.positions.update(batch.pop("position", {}))
            batches += [({**batch, "empty": not mine, "part": part}, share) for part in recipe.parts]
        yield plan[at], batches


def steps_from(args, accelerator, recipe, step, total, per_epoch):
    """Yield the items of `step_batches`, epoch after epoch, for the optimiser steps from `step` to `total`."""
    while step < total:
        epoch, start = divmod(step, per_epoch)
        plan = recipe.plan(step_size(args, accelerator), epoch)
        steps = step_batches(args, accelerator, recipe, plan, epoch, start)
        for indices, batches in itertools.islice(steps, total - step):
            yield indices, [({**batch, "progress": step / total}, share) for batch, share in batches]
            step += 1
