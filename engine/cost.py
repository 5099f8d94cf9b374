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
    """Return (all parameters, parameters without the embedding block), tied ones counted once; no learned
    projections.
    """
    embeddings = sum(p.numel() for p in model.base_model.embeddings.parameters())
    total = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("projections."))
    return total, total - embeddings


def count_flops(model, seq_len):
    """Floating-point operations (a multiply-add is two) of one forward pass over one sequence of seq_len tokens.

    Counted by torch.utils.flop_counter on a copy without storage, with attention written out, because fused kernels
    are not counted on every device.
    """
    with torch.device("meta"):
        twin = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
        twin.config.pad_token_id = None  # DeBERTa would look for it among ids that have no storage
        ids = torch.zeros(1, seq_len, dtype=torch.long)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin(input_ids=ids)
    return counter.get_total_flops()


def describe(model, seq_len):
    """Shape and size of a model as they stand in run.json."""
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
    """Measure the latency of the student, and of the teacher and the speed-up where there is one, for run.json."""
    found = measure_latency({"student": student} | ({"teacher": teacher} if teacher else {}), seq_length)
    record = {"seq_length": seq_length, "student_ms": found["student"]}
    if teacher:
        t, s = found["teacher"], found["student"]
        record |= {"teacher_ms": t, "speedup": {size: round(t[size] / s[size], 3) for size in s}}
    return record


@contextlib.contextmanager
def cast_once(models):
    """Within it, autocast keeps the casts of all weights of these models, an iterable, from one forward to the next.

    It keeps those of weights that require a gradient alone: a frozen teacher would cast all of its own in every pass,
    which the student beside it does not, and nobody does who deploys either.
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
    """Median milliseconds of a forward pass of each model, taken in turns so that noise meets all alike.

    Under autocast without the casts of weights, which the pass that warms up makes (where one autocast holds the call).
    At least `repeats` passes of each, and up to 100 while they have taken fewer than `seconds` for a batch size: two
    seconds in all, but for models of which a pass alone takes longer.

    models: name -> model, all on one device, put into eval mode. Returns name -> {batch size: milliseconds}.
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
    """Bytes of memory that this machine has, or that its container may take."""
    limit = Path("/sys/fs/cgroup/memory.max")
    limit = limit.read_text().strip() if limit.is_file() else "max"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total, int(limit)) if limit.isdigit() else total
