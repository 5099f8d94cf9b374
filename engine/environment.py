"""What a run ran on, for run.json: hardware, versions, commit, memory."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import accelerate
import datasets
import torch
import transformers


def cpu_name():
    """Return the processor's name."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return name


def hardware(accelerator):
    """Return the hardware of the run for run.json."""
    cuda = accelerator.device.type == "cuda"
    return {
        "device": accelerator.device.type,
        "cpu": cpu_name(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(accelerator.device) if cuda else None,
        "gpu_count": accelerator.num_processes if cuda else 0,
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
    }


def versions():
    """Return the versions of Python and of the libraries that affect a result."""
    modules = (torch, transformers, accelerate, datasets)
    found = {"python": platform.python_version()} | {m.__name__: m.__version__ for m in modules}
    for name in ("scikit-learn", "scipy", "seqeval", "rouge-score"):  # not every run needs all
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_state():
    """Return commit and dirty flag of the repository that holds the scripts; None for both outside git."""
    here = Path(__file__).resolve().parents[1]

    def git(*words):
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain", "-uno").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def max_mem_gb(accelerator):
    """Return the peak memory in 10^9 bytes: the GPU's allocations, or the process's resident set on a CPU."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
