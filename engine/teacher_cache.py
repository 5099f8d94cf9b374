"""The frozen teacher's outputs for the training set, computed once and kept on disk in half precision.

A cache belongs to one teacher, one set of tokenised examples and the outputs that the terms need. Runs that agree in
these share it, whatever their student, seed or weights. Each field is a flat file, read through a memory map. Every run
verifies the checksums when it opens the cache, which reads the files once: some seconds for 10 GB.
"""

import contextlib
import hashlib
import json
import os
from array import array
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list

import losses
from encoders import model_outputs
from engine import checkpoints, command_line
from tasks import batching

FOLDER = Path("cache")
PREFIX = "teacher."  # precedes a field's name in a batch


def fields_of(out, layers, qkv_layers):
    """Return the tensors of a teacher's outputs that the cache keeps, {name: tensor}, logits first.

    layers: of the hidden states. qkv_layers: of the queries, keys and values.
    """
    fields = {name: out[name] for name in out if name.endswith("logits")}
    fields |= {f"hidden_states.{i}": out["hidden_states"][i] for i in layers}
    return fields | {f"qkv.{layer}.{i}": out["qkv"][layer][i] for layer in qkv_layers for i in range(3)}


def outputs(batch):
    """Return the teacher's outputs in a batch of `TeacherCache.batch`, as the terms read them; None if it has none."""
    fields = {name.removeprefix(PREFIX): value for name, value in batch.items() if name.startswith(PREFIX)}
    if not fields:
        return None
    out = {name: value for name, value in fields.items() if "logits" in name}
    out["hidden_states"] = {int(n.split(".")[1]): v for n, v in fields.items() if n.startswith("hidden_states.")}
    layers = sorted({int(name.split(".")[1]) for name in fields if name.startswith("qkv.")})
    out["qkv"] = {layer: tuple(fields[f"qkv.{layer}.{i}"] for i in range(3)) for layer in layers}
    return out


class TeacherCache:
    """Reads the fields of a finished cache.

    folder: its folder. starts: each example's first row in the files with a row per token, and their end.
    """

    def __init__(self, folder, starts):
        self.starts, self.files = starts, {}
        for name, (kind, shape, per_token) in json.loads((folder / "fields.json").read_text()).items():
            self.files[name] = np.memmap(folder / f"{name}.bin", kind, "r", shape=tuple(shape)), per_token

    def batch(self, indices):
        """Return {"teacher.<field>": [B, T, ...] or [B, ...]} of some examples, padded with 0 to the longest."""
        found, starts = {}, self.starts[indices]
        lengths = self.starts[np.asarray(indices) + 1] - starts
        for name, (rows, per_token) in self.files.items():
            if per_token:
                value = np.zeros((len(indices), lengths.max(), *rows.shape[1:]), rows.dtype)
                for into, start, length in zip(value, starts, lengths, strict=True):
                    into[:length] = rows[start : start + length]
            else:
                value = rows[indices]
            found[PREFIX + name] = torch.from_numpy(value)
        return found


def open_cache(args, objective, teacher, examples, accelerator, logits_per_token):
    """Return the TeacherCache of these examples (a tokenised Dataset), computed by all processes if it is missing.

    logits_per_token: whether the task's logits are [B, T, ...] and must be cut at each example's length. Raises
    ValueError if the cache would exceed args.cache_limit_gb, if half precision cannot hold an output, or if files on
    disk are damaged; OSError if the disk is full.
    """
    layers = losses.teacher_layers(objective.terms, objective.layer_pairs)
    qkv_layers = sorted({t for _, t in losses.qkv_pairs(objective.terms, objective.layer_pairs)})
    examples = examples.select_columns([c for c in batching.INPUTS if c in examples.column_names])
    arrays = batching.Arrays(examples, batching.INPUTS)
    lengths = arrays.lengths()
    starts = np.concatenate([[0], np.cumsum(lengths)])

    @torch.no_grad()
    def compute(indices):
        """Return the fields of these examples from a pass of the teacher."""
        batch = arrays.batch(indices, teacher.config.pad_token_id or 0)
        batch = {k: v.to(accelerator.device) for k, v in batch.items()}
        with accelerator.autocast():
            out = teacher(**model_outputs.model_inputs(teacher, batch), output_hidden_states=bool(layers))
        return fields_of(out, layers, qkv_layers)

    files = plan_files(compute([0]), len(lengths), int(starts[-1]), logits_per_token)
    size = sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape, _ in files.values())
    if size > args.cache_limit_gb * 1e9:
        raise ValueError(
            f"--cache_teacher needs {size / 1e9:.3g} GB for {len(lengths)} examples, above "
            f"--cache_limit_gb {args.cache_limit_gb:g}: raise it or drop --cache_teacher"
        )
    batches = batching.sorted_batches(lengths, args.per_device_eval_batch_size)
    made_by = [accelerator.mixed_precision, accelerator.num_processes, args.per_device_eval_batch_size]
    folder = FOLDER / f"teacher-{key(teacher, examples, [files, *made_by])}"
    main = accelerator.is_main_process
    with checkpoints.building(folder) if main else contextlib.nullcontext() as temporary:
        todo = [temporary and str(temporary)]
        if accelerator.num_processes > 1:
            broadcast_object_list(todo)
        if todo[0]:
            if main:
                print(f"{folder}: {size / 1e9:.2f} GB of the teacher's outputs, computed once", flush=True)
            fill(Path(todo[0]), folder, files, compute, batches, starts, accelerator)
    if main and not todo[0] and (reason := checkpoints.damage(folder, "fields.json")):
        raise ValueError(f"{folder} is damaged ({reason}): delete this folder, then run the same command again")
    return TeacherCache(folder, starts)


def plan_files(fields, examples, tokens, logits_per_token):
    """Return {field: (NumPy type, shape of its file, whether a row is a token)} from the fields of one example."""
    files = {}
    for name, value in fields.items():
        logits = name.endswith("logits")
        per_token = logits_per_token or not logits
        kind = "float32" if logits else "float16"  # logits are few: they keep their digits
        files[name] = (kind, [tokens, *value.shape[2:]] if per_token else [examples, *value.shape[1:]], per_token)
    return files


def key(teacher, examples, settings):
    """Return the name of a cache, a hexadecimal digest of teacher, examples, settings and versions."""
    config = {k: v for k, v in teacher.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    known = [config, settings, examples.column_names, torch.__version__, transformers.__version__]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    for name, value in teacher.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    for column in examples.column_names:
        for row in examples[column]:
            digest.update(array("q", [len(row), *row]).tobytes())
    return digest.hexdigest()[:16]


def fill(temporary, folder, files, compute, batches, starts, accelerator):
    """Compute every batch and write it into the temporary folder, which is renamed to `folder` once it is complete."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    if accelerator.is_main_process:
        for name, (kind, shape, _) in files.items():
            path = temporary / f"{name}.bin"
            try:  # allocating shows a full disk here; the memory map would crash
                with path.open("wb") as f:
                    os.posix_fallocate(f.fileno(), 0, np.dtype(kind).itemsize * int(np.prod(shape)))
            except OSError as error:
                raise OSError(f"{path}: {error.strerror or error}: make room or leave out --cache_teacher") from error
        (temporary / "fields.json").write_text(json.dumps(files))
    accelerator.wait_for_everyone()
    maps = {
        name: np.memmap(temporary / f"{name}.bin", kind, "r+", shape=tuple(shape))
        for name, (kind, shape, _) in files.items()
    }
    for indices in command_line.bar(batches[rank::processes], desc="teacher's cache", unit="batch"):
        for name, value in compute(indices).items():
            value = value.to(getattr(torch, files[name][0])).cpu().numpy()
            if not np.isfinite(value).all():
                raise ValueError(f"--cache_teacher: {name} of the teacher does not fit half precision: leave it out")
            for row, i in zip(value, indices, strict=True):
                if files[name][2]:
                    maps[name][starts[i] : starts[i + 1]] = row[: starts[i + 1] - starts[i]]
                else:
                    maps[name][i] = row
    for rows in maps.values():
        rows.flush()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        checkpoints.seal(temporary, folder)
    accelerator.wait_for_everyone()
