"""Shared by the benchmarks: alternating timing, operations, peak memory in a fresh process, the machine's name."""

import argparse
import collections
import contextlib
import platform
import queue as queues
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from engine import environment


def parser(doc):
    """Options that every benchmark has."""
    p = argparse.ArgumentParser(description=doc.split("\n")[0], allow_abbrev=False)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    p.add_argument("--rounds", type=int, default=5, help="measurements of each side, taken in turns")
    return p


def machine(device):
    """One line: hardware and versions."""

    class Stub:
        num_processes, mixed_precision = 1, "no"

    Stub.device = torch.device(device)
    found = environment.hardware(Stub)
    name = f"{found['cpu']}, {torch.get_num_threads()} threads"
    if found["gpu"]:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = "unknown"
        with contextlib.suppress(OSError, subprocess.CalledProcessError, IndexError):
            driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        name = f"{found['gpu']}, driver {driver}, CUDA {torch.version.cuda}, {found['cpu_count']} cores, {found['cpu']}"
    return (
        f"{name}; torch {torch.__version__}, transformers {transformers.__version__}, Python "
        f"{platform.python_version()}, {platform.system()}"
    )


def once(function, device):
    """Seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(functions, device, rounds):
    """{name: [seconds, ...]}: all functions warm up once, then take turns."""
    for function in functions.values():
        once(function, device)
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(once(function, device))
    return times


class Counted(TorchDispatchMode):
    """Counts operations that are not views, by name."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.calls[function.overloadpacket._qualified_op_name.replace("::", ".")] += 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self):
        return sum(self.calls.values())


OPERATIONS = {"cuda": "launches", "cpu": "operations"}  # what `operations` counts


def operations(function, device):
    """(number, seconds that the device is busy with them) of the operations of one call.

    On CUDA kernels and copies as the profiler sees them; on a CPU operations that are not views, and no seconds.
    """
    if device != "cuda":
        with Counted() as counted:
            function()
        return counted.total, None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    once(function, device)
    with torch.profiler.profile(activities=activities) as found:
        once(function, device)
    spans = sorted(
        (e.time_range.start, e.time_range.end)
        for e in found.events()
        if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation
    )
    busy, end = 0, 0
    for start, stop in spans:  # streams overlap: the time that any of them is at work
        busy += max(0, stop - max(start, end))
        end = max(end, stop)
    return len(spans), busy / 1e6


def share(busy, seconds):
    """The part of the seconds in which the device was busy, in words."""
    return "--" if busy is None else f"{100 * busy / seconds:.0f} %"


def spread(times):
    """Median with the range in brackets, in milliseconds."""
    low, middle, high = (1000 * f(times) for f in (min, statistics.median, max))
    return f"{middle:.1f} [{low:.1f}-{high:.1f}]"


def ratio(slow, fast):
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _measure(queue, make, arguments, device, extra):
    function = make(*arguments)
    before = 0
    if extra:
        before = torch.cuda.memory_allocated() if device == "cuda" else _resident()
    function()  # a first step makes what stays, as the optimiser's moments
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        function()
        return queue.put((torch.cuda.max_memory_allocated() - before) / 1e9)
    peak, done = [0], threading.Event()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], _resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return queue.put((peak[0] - before) / 1e9)


def peak_memory(make, arguments, device, extra=True):
    """Peak memory in 10^9 bytes of the second call of make(*arguments)() in a fresh process; nan if that dies.

    extra: count only what comes on top of what make has left.
    """
    context = mp.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(queue, make, arguments, device, extra))
    process.start()
    value = None
    while value is None:
        alive = process.is_alive()
        try:
            value = queue.get(timeout=1)
        except queues.Empty:
            value = None if alive else float("nan")
    process.join()
    return value


def table(header, rows):
    """Print a Markdown table, each row as soon as the iterable gives it."""
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
