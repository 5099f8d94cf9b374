"""What a model costs: parameters, floating-point operations, milliseconds, memory."""

import contextlib
import copy
import os
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model):
    """Return (all parameters, those outside the embedding block); tied ones count once, learned projections do not."""
    embeddings = sum(p.numel() for p in model.base_model.embeddings.parameters())
    total = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("projections."))
    return total, total - embeddings


def count_flops(model, seq_len):
    """Return the floating-point operations (a multiply-add is two) of a forward pass over one sequence.

    torch.utils.flop_counter counts them on a copy without storage. Attention is written out there, because fused
    kernels are not counted on every device.
    """
    with torch.device("meta"):
        twin = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
        twin.config.pad_token_id = None  # DeBERTa would look for it among ids that have no storage
        ids = torch.zeros(1, seq_len, dtype=torch.long)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin(input_ids=ids)
    return counter.get_total_flops()


def describe(model, seq_len):
    """Return shape and size of a model for run.json."""
    config, (total, without) = model.config, count_parameters(model)
    return {
        "type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": getattr(config, "kept_heads", config.num_attention_heads),
        "intermediate_size": getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None),
        "vocab_size": config.vocab_size,
        "parameters": total,
        "parameters_without_embeddings": without,
        "seq_length": seq_len,
        "flops_per_sequence": count_flops(model, seq_len),
    }


def latency_record(student, teacher, seq_length):
    """Measure the latency of the student and, with a teacher, the teacher's and the speed-up, for run.json."""
    found = measure_latency({"student": student} | ({"teacher": teacher} if teacher else {}), seq_length)
    record = {"seq_length": seq_length, "student_ms": found["student"]}
    if teacher:
        t, s = found["teacher"], found["student"]
        record |= {"teacher_ms": t, "speedup": {size: round(t[size] / s[size], 3) for size in s}}
    return record


@contextlib.contextmanager
def cast_once(models):
    """Let autocast keep the casts of all weights of these models from one forward pass to the next.

    Autocast keeps only those of weights that require a gradient, so a frozen teacher would cast its weights in every
    pass and the student beside it would not. Neither does so when deployed.
    """
    frozen = [p for model in models for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@torch.no_grad()
def measure_latency(models, seq_len, batch_sizes=(1, 32), repeats=1, seconds=1.0):
    """Return the median milliseconds of a forward pass of each model.

    The models take turns, so that noise affects all alike. The first pass warms up: under one autocast it makes the
    casts of the weights. Then each model makes `repeats` passes, and up to 100 while a batch size has taken less than
    `seconds`: two seconds in all, except for slow models.

    models: {name: model}, all on one device; they are put into eval mode. Returns {name: {batch size: milliseconds}}.
    """
    result = {name: {} for name in models}
    with cast_once(models.values()):
        for size in batch_sizes:
            times = {name: [] for name in models}
            begun = time.perf_counter()
            for repeat in range(101):
                if repeat > repeats and time.perf_counter() - begun > seconds:
                    break
                for name, model in models.items():
                    ids = torch.full((size, seq_len), 5, device=model.device)
                    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                    model.eval()
                    if model.device.type == "cuda":
                        torch.cuda.synchronize()
                    start = time.perf_counter()
                    model(**inputs)
                    if model.device.type == "cuda":
                        torch.cuda.synchronize()
                    if repeat:  # the first pass warms up
                        times[name].append(1000 * (time.perf_counter() - start))
            for name in models:
                result[name][str(size)] = round(statistics.median(times[name]), 3)
    return result


def machine_memory():
    """Return the bytes of memory that this machine has, or that its container may use."""
    limit = Path("/sys/fs/cgroup/memory.max")
    limit = limit.read_text().strip() if limit.is_file() else "max"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total, int(limit)) if limit.isdigit() else total
