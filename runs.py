"""The run folder: its lock, the record run.json with the hardware, and checkpoints that are whole or not there."""
import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pickle
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import accelerate
import datasets
import torch
import transformers
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

# Options that a resumed or finished run may change: they do not touch its result.
FREE_OPTIONS = ("overwrite", "do_predict", "output_dir", "keep_checkpoints", "num_workers", "cache_limit_gb")


class TrainingError(RuntimeError):
    """The run cannot go on; what it had saved is intact."""


@contextlib.contextmanager
def writing(folder, temporary=None):
    """Within it, a run folder that is gone, full or read-only ends in a TrainingError; temporary is then removed.

    Disk errors reach us as OSError, or as the writers' own errors with the OSError behind them.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder} was removed while this run was using it: run the same command again")
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, TrainingError):
            raise
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        chain = [error]
        while chain[-1].__context__:
            chain.append(chain[-1].__context__)
        reason = next((e.strerror for e in reversed(chain) if isinstance(e, OSError) and e.strerror), error)
        raise TrainingError(f"could not write to {folder} ({reason}): is the disk full? What was saved before is "
                            "intact; make room, then run the same command again") from error  # fmt: skip


# --- the record --------------------------------------------------------------------------------------------------


def write_json(path, content):
    """Write JSON so that the file is either the old or the new one, whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as f:
            json.dump(content, f, indent=1, ensure_ascii=False)
            f.write("\n")
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_record(folder):
    """The run.json of a folder, None where there is none. Raises ValueError if it is damaged."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["options"], dict) or not isinstance(record["status"], str):
            raise ValueError("options or status missing")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): pass --overwrite to start this run anew") from error
    return record


def _lock(folder):
    """Hold the folder's lock until this process ends; the kernel frees the lock of a process that died."""
    handle = open(folder / ".lock", "a+", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.seek(0)
        holder = handle.read().strip() or "unknown process"
        raise ValueError(f"{folder} is in use by another run ({holder}): wait or choose another folder") from error
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {platform.node()}\n")
    handle.flush()
    return handle


def options_of(args):
    """The resolved options as they stand in run.json."""
    return {name: value for name, value in vars(args).items() if name not in ("lock", "layer_pairs")}


def inspect_run(args):
    """What the run folder holds: "new" (nothing), "resume" or "complete". Reads only.

    Raises ValueError if it holds a run with other options, or something that is no run.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file: choose another folder")
    if args.overwrite or not folder.exists():
        return "new"
    record = read_record(folder)
    if record is None:
        strangers = [p.name for p in folder.iterdir() if p.name not in (".lock", ".run.json.tmp")]
        if strangers:
            raise ValueError(f"--output_dir {folder} is not empty and holds no run ({strangers[0]}, ...): choose "
                             "another folder, or pass --overwrite to delete its contents")  # fmt: skip
        return "new"
    mine = json.loads(json.dumps({k: v for k, v in options_of(args).items() if k not in FREE_OPTIONS}))
    theirs = {k: v for k, v in record["options"].items() if k not in FREE_OPTIONS}
    differ = [k for k in sorted({*mine, *theirs}) if mine.get(k) != theirs.get(k)]
    if differ:
        listed = ", ".join(f"--{k} {theirs.get(k)!r} there, {mine.get(k)!r} here" for k in differ)
        raise ValueError(f"{folder} holds a run with other options ({listed}): choose another --output_dir, or pass "
                         "--overwrite to discard it")  # fmt: skip
    return "complete" if record["status"] == "complete" else "resume"


def open_run(args):
    """Make and lock the run folder, empty it if --overwrite was passed; what it holds, as `inspect_run` says."""
    folder = Path(args.output_dir)
    inspect_run(args)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        args.lock = _lock(folder)
    except OSError as error:
        raise ValueError(f"--output_dir {folder} cannot be written ({error.strerror}): choose another one") from error
    if args.overwrite:
        for path in folder.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return inspect_run(args)


def open_run_everywhere(args, accelerator):
    """`open_run` in the main process, its answer in all of them."""
    answer = [open_run(args) if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(answer)
    return answer[0]


def new_record(args, accelerator, stage, task, **more):
    """What run.json says of a run before it has results."""
    return {
        "status": "running", "stage": stage, "task": task, "name": args.run_name, "seed": args.seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), "options": options_of(args),
        "git": git_state(), "versions": versions(), "hardware": machine(accelerator), **more,
    }  # fmt: skip


def machine(accelerator):
    """Hardware of the run as it stands in run.json."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    cuda = accelerator.device.type == "cuda"
    return {
        "device": accelerator.device.type,
        "cpu": cpu,
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(accelerator.device) if cuda else None,
        "gpu_count": accelerator.num_processes if cuda else 0,
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
    }


def versions():
    """Versions of Python and of the libraries that decide a result."""
    modules = (torch, transformers, accelerate, datasets)
    found = {"python": platform.python_version()} | {m.__name__: m.__version__ for m in modules}
    return found | {name: importlib.metadata.version(name) for name in ("scikit-learn", "scipy")}


def git_state():
    """Commit and dirty flag of the repository the scripts stand in; None outside git."""
    here = Path(__file__).resolve().parent

    def git(*words):
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain", "-uno").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def max_mem_gb(accelerator):
    """Peak memory in 10^9 bytes: the GPU's allocations, or the process's resident set on a CPU."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# --- checkpoints --------------------------------------------------------------------------------------------------


def _digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sync_folder(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def save_checkpoint(accelerator, folder, state, keep):
    """Write model, optimiser, random states and `state`, whole or not at all, and drop all but the newest `keep`.

    Raises TrainingError if the folder is full, read-only or gone; the checkpoints before are intact.
    """
    final = folder / "checkpoints" / f"step-{state['step']:08d}"
    temporary = final.with_name(f".tmp-{final.name}")
    with writing(folder, temporary):
        if accelerator.is_main_process:
            for left in final.parent.glob(".tmp-*"):
                shutil.rmtree(left)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _seal(temporary, final, state)
            for old in sorted(final.parent.glob("step-*"))[:-keep]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()


def _seal(temporary, final, state):
    """Add `state` and the checksums, flush everything to the disk, and give the folder its name."""
    write_json(temporary / "state.json", state | {"rng": rng_digest()})
    seal(temporary, final)


def seal(temporary, final):
    """Write the checksums of a folder's files, flush everything to the disk, and give the folder its name."""
    files = sorted(p for p in temporary.iterdir() if p.is_file() and p.name != ".lock")
    for path in files:
        with path.open("rb") as f:
            os.fsync(f.fileno())
    write_json(temporary / "checksums.json", {p.name: _digest(p) for p in files})
    shutil.rmtree(final, ignore_errors=True)
    _sync_folder(temporary)
    os.replace(temporary, final)
    _sync_folder(final.parent)


def damage(folder, needed):
    """What is wrong with a sealed folder that must hold the file `needed`: a few words, empty if nothing."""
    try:
        sums = json.loads((folder / "checksums.json").read_text())
        bad = [name for name, digest in sums.items() if _digest(folder / name) != digest]
        return f"{', '.join(bad) or needed} changed" if bad or needed not in sums else ""
    except (OSError, ValueError, AttributeError) as error:
        return str(error)


def newest_checkpoint(folder):
    """The newest checkpoint whose files match their checksums, or None; damaged ones are named on stderr."""
    for path in sorted((Path(folder) / "checkpoints").glob("step-*"), reverse=True):
        reason = damage(path, "state.json")
        if not reason:
            return path
        print(f"{path} is damaged ({reason}): skipped", file=sys.stderr)
    return None


def load_checkpoint(accelerator, folder):
    """Restore the newest complete checkpoint in all processes; its `state`, or None where there is none."""
    paths = [str(newest_checkpoint(folder) or "") if accelerator.is_main_process else ""]
    if accelerator.num_processes > 1:
        broadcast_object_list(paths)
    if not paths[0]:
        return None
    # Accelerate reads these with safetensors and torch.load(weights_only=True): nothing in them is executed.
    try:
        accelerator.load_state(paths[0])
    except pickle.UnpicklingError as error:
        raise TrainingError(f"{paths[0]} holds more than weights and numbers, and was not loaded: delete it, or pass "
                            "--overwrite to start anew") from error  # fmt: skip
    state = json.loads((Path(paths[0]) / "state.json").read_text())
    if accelerator.is_main_process and state["rng"] != rng_digest():  # Accelerate only logs a failure to restore it
        raise TrainingError(f"{paths[0]}: the random state could not be restored: pass --overwrite to start anew")
    return state


def rng_digest():
    """SHA-256 of the state of torch's generator on the CPU."""
    return hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()


# --- caches ------------------------------------------------------------------------------------------------------


def _take(path, wait):
    """The lock file of a folder in the making, locked; None if it is locked already (unless told to wait) or gone."""
    try:
        handle = (path / ".lock").open("a")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # A lock of this kind belongs to one process: those it forks do not keep it alive.
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(handle.fileno()), (path / ".lock").stat()):
            return handle
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN, errno.ENOENT):
            raise
    handle.close()
    return None


@contextlib.contextmanager
def building(final, talk=True):
    """Yield an empty temporary folder in which to make the folder `final`, or None where `final` is there already.

    Another process that is making it is waited for, with a printed line if talk; what dead ones left is removed. It is
    for the caller to `seal` the temporary folder; whatever is left of it at the end is removed.
    """
    temporary = final.with_name(f".tmp-{final.name}")
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(".tmp-*"):
        if left != temporary and (dead := _take(left, wait=False)):
            with dead:
                shutil.rmtree(left, ignore_errors=True)
    lock = None
    while not final.exists() and lock is None:
        temporary.mkdir(exist_ok=True)
        lock = _take(temporary, wait=False)
        if lock is None and temporary.exists():
            if talk:
                print(f"{final}: another process is making it; waiting for it", flush=True)
            lock = _take(temporary, wait=True)
    if lock is None:
        yield None
        return
    with lock:
        try:
            for path in temporary.iterdir() if not final.exists() else ():
                if path.name != ".lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield None if final.exists() else temporary
            (final / ".lock").unlink(missing_ok=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
