"""What a model costs: parameters, floating-point operations, milliseconds, memory."""
import contextlib
import copy
import hashlib
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import environment
import runs

LATENCIES = Path("cache/latency.json")  # what was measured before, by what it depends on


def count_parameters(model):
    """(all parameters, parameters without the embedding block), tied ones counted once; no learned projections."""
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
    """Latency of the student, and of the teacher and the speed-up where there is one, as it stands in run.json.

    Two models of these shapes are measured once on a machine and kept in LATENCIES: a sweep holds many such runs.
    """
    models = {"student": student} | ({"teacher": teacher} if teacher else {})
    key = latency_key(models, seq_length)
    found = kept_latencies().get(key)
    if not _is_latency(found, models):
        found = measure_latency(models, seq_length)
        with contextlib.suppress(OSError):  # a full disk or a folder of another user: the next run measures again
            LATENCIES.parent.mkdir(exist_ok=True)
            runs.write_json(LATENCIES, kept_latencies() | {key: found})
    record = {"seq_length": seq_length, "student_ms": found["student"]}
    if teacher:
        t, s = found["teacher"], found["student"]
        record |= {"teacher_ms": t, "speedup": {size: round(t[size] / s[size], 3) for size in s}}
    return record


def latency_key(models, seq_length):
    """What the latencies of these models, {name: model}, depend on: shapes, hardware, precision, threads, versions."""
    device = next(iter(models.values())).device
    kind = device.type
    shapes = {name: [type(m).__name__, m.config._attn_implementation, m.config.to_dict()] for name, m in models.items()}
    for _, _, config in shapes.values():  # these say where it came from or what its labels are called
        for name in ("_name_or_path", "architectures", "id2label", "label2id", "transformers_version", "dynabert"):
            config.pop(name, None)
    precision = str(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else models["student"].dtype)
    where = [kind, torch.cuda.get_device_name(device) if kind == "cuda" else environment.cpu_name(), platform.node()]
    made_by = [precision, torch.get_num_threads(), torch.__version__, transformers.__version__, "weights cast once"]
    text = json.dumps([shapes, seq_length, where, made_by], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def kept_latencies():
    """The content of LATENCIES, {} where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(LATENCIES.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _is_latency(found, models):
    return (isinstance(found, dict) and found.keys() == models.keys() and all(
        isinstance(times, dict) and times.keys() == {"1", "32"}
        and all(type(ms) in (int, float) and 0 < ms < math.inf for ms in times.values()) for times in found.values()
    ))  # fmt: skip


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
def measure_latency(models, seq_len, batch_sizes=(1, 32), repeats=3, seconds=1.0):
    """Median milliseconds of a forward pass of each model, taken in turns so that noise meets all alike.

    Under autocast without the casts of weights, which the pass that warms up makes (where one autocast holds the call).
    At least `repeats` passes of each and up to 100 as long as they take fewer than `seconds` for a batch size.

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
