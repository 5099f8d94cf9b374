"""Checkpoints, and other folders made whole or not at all: sealed with checksums, renamed, locked meanwhile."""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from filelock import FileLock, Timeout

from engine import run_folder


def _digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sync_folder(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def save_checkpoint(accelerator, folder, state, keep):
    """Write model, optimiser, random states and `state` as a whole checkpoint, and keep only the newest `keep`.

    Raises TrainingError if the folder is full, read-only or gone; earlier checkpoints stay intact.
    """
    final = folder / "checkpoints" / f"step-{state['step']:08d}"
    temporary = final.with_name(f".tmp-{final.name}")
    with run_folder.writing(folder, temporary):
        if accelerator.is_main_process:
            for left in final.parent.glob(".tmp-*"):
                shutil.rmtree(left)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            run_folder.write_json(temporary / "state.json", state | {"rng": rng_digest()})
            seal(temporary, final)
            for old in sorted(final.parent.glob("step-*"))[:-keep]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()


def seal(temporary, final):
    """Write the checksums of a folder's files, flush everything to the disk, and give the folder its final name."""
    files = sorted(p for p in temporary.iterdir() if p.is_file() and p.name != ".lock")
    for path in files:
        with path.open("rb") as f:
            os.fsync(f.fileno())
    run_folder.write_json(temporary / "checksums.json", {p.name: _digest(p) for p in files})
    shutil.rmtree(final, ignore_errors=True)
    _sync_folder(temporary)
    os.replace(temporary, final)
    _sync_folder(final.parent)


def damage(folder, needed):
    """Return in a few words what is wrong with a sealed folder that must hold the file `needed`; "" if nothing is."""
    try:
        sums = json.loads((folder / "checksums.json").read_text())
        bad = [name for name, digest in sums.items() if _digest(folder / name) != digest]
        return f"{', '.join(bad) or needed} changed" if bad or needed not in sums else ""
    except (OSError, ValueError, AttributeError) as error:
        return str(error)


def newest_checkpoint(folder):
    """Return the newest checkpoint whose files match their checksums, or None; report damaged ones on stderr."""
    for path in sorted((Path(folder) / "checkpoints").glob("step-*"), reverse=True):
        reason = damage(path, "state.json")
        if not reason and not (path / run_folder.OPTIMIZER).is_file():
            reason = "of a finished run, without its optimiser"
        if not reason:
            return path
        print(f"{path} is damaged ({reason}): skipped", file=sys.stderr)
    return None


def newest_everywhere(accelerator, folder):
    """Return `newest_checkpoint` of the main process in all processes, as text, "" for None."""
    paths = [str(newest_checkpoint(folder) or "") if accelerator.is_main_process else ""]
    if accelerator.num_processes > 1:
        broadcast_object_list(paths)
    return paths[0]


def load_checkpoint(accelerator, folder):
    """Restore the newest complete checkpoint in all processes; return its `state`, or None if there is none."""
    path = newest_everywhere(accelerator, folder)
    if not path:
        return None
    # Accelerate reads them with safetensors and torch.load(weights_only=True), so nothing in them is executed.
    try:
        accelerator.load_state(path)
    except pickle.UnpicklingError as error:
        raise run_folder.TrainingError(
            f"{path} holds more than weights and numbers: delete it, or pass --overwrite to start anew"
        ) from error
    except (RuntimeError, KeyError, ValueError) as error:
        raise run_folder.TrainingError(
            f"{path} does not fit this student ({' '.join(str(error).split())[:200]}): was the model replaced? Put it "
            "back, or pass --overwrite to start anew"
        ) from error
    state = json.loads((Path(path) / "state.json").read_text())
    if accelerator.is_main_process and state["rng"] != rng_digest():  # Accelerate only logs a failure to restore it
        raise run_folder.TrainingError(f"{path}: the random state was not restored: pass --overwrite to start anew")
    return state


def rng_digest():
    """Return the SHA-256 of the states of torch's generators, on the CPU and on CUDA."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]
    return hashlib.sha256(b"".join(state.numpy().tobytes() for state in states)).hexdigest()


def _take(path, wait):
    """Return the held lock of a folder in the making; None if another process holds it, unless wait, or it is gone."""
    try:
        return FileLock(path / ".lock").acquire(blocking=wait)
    except (Timeout, FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def building(final, talk=True):
    """Yield an empty temporary folder in which to make the folder `final`, or None if `final` exists.

    Waits for another process that is making it, with a printed line if talk, and removes what dead ones left. The
    caller must `seal` the temporary folder; otherwise it is removed at the end.
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


def check_new(folder):
    """Raise ValueError unless --output_dir names a folder that can be made: a missing one, or an empty one."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) or folder.samefile(".")):
        raise ValueError(f"--output_dir {folder} is there already: choose a new folder")
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--output_dir {folder} cannot be made, {there} is not writable: choose another place")


@contextlib.contextmanager
def new_folder(folder):
    """Yield an empty temporary folder that gets this folder's name at the end; a failure leaves nothing.

    Raises ValueError as `check_new`.
    """
    check_new(folder)
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def kept_windows(examples, folder, cut, features=None):
    """Return what cut(rows, indices) makes of a Dataset, batch by batch, stored in `folder`, made first if missing.

    folder: a Path whose name covers all that the windows depend on. cut: returns columns of any number of rows.
    features: their types, if they cannot be guessed. Stored windows are verified by their checksums, which reads them
    once. Raises ValueError if they are damaged, OSError if they cannot be written.
    """
    file, first = "windows.arrow", os.environ.get("LOCAL_RANK", "0") == "0"  # one process per machine talks and checks
    with building(folder, talk=first) as temporary:
        if temporary:
            try:
                examples.map(
                    cut,
                    batched=True,
                    with_indices=True,
                    desc="tokenising",
                    remove_columns=examples.column_names,
                    features=features,
                    new_fingerprint=folder.name,
                    cache_file_name=str(temporary / file),
                )
                seal(temporary, folder)
            except OSError as error:
                reason = f"{folder} cannot be written ({error.strerror or error})"
                raise OSError(f"{reason}: make room, then run the same command again") from error
    if first and not temporary and (reason := damage(folder, file)):
        raise ValueError(f"{folder} is damaged ({reason}): delete this folder, then run the same command again")
    return Dataset.from_file(str(folder / file))
