"""The run folder: its lock, its record run.json, and what must not change when a run is resumed."""

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from engine import environment
from engine.files import OLD, write_text
from options import FREE_OPTIONS, NAMES, PLACES

OPTIMIZER = "optimizer.bin"  # Accelerate's name of AdamW's state in a checkpoint, two thirds of it


class TrainingError(RuntimeError):
    """The run cannot go on. What it had saved is intact."""


class Diverged(TrainingError):
    """The run cannot go on, and the same command would end in the same way."""

    def __init__(self, what, remedy, folder=None):
        """Say what happened and the remedy; folder: of the run, to say whether it has a checkpoint."""
        left = ""
        if folder:
            saved = any(Path(folder).glob("checkpoints/step-*"))
            left = "; the last checkpoint is intact" if saved else "; there was no checkpoint yet"
        super().__init__(f"{what}{left}: {remedy}")


@contextlib.contextmanager
def writing(folder, temporary=None):
    """Turn disk errors within the block into a TrainingError, and remove `temporary` then.

    Disk errors arrive as OSError, or as a writer's own error that has the OSError behind it or in its text. Other
    errors pass unchanged.
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
        reason = disk_error(error)
        if not reason:
            raise
        hint, remedy = ("is the disk full? ", "make room") if reason in FULL else ("", "mend that")
        raise TrainingError(
            f"could not write to {folder} ({reason}): {hint}What was saved before is intact; {remedy}, "
            "then run the same command again"
        ) from error


UNKNOWN = "file write failed"  # torch.save writes in C++ and gives no reason
FULL = [UNKNOWN, *(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))]


def disk_error(error):
    """Return what the operating system said about a failed write, "" if the error has another cause."""
    chain = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    for link in reversed(chain):
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
    said = " ".join(map(str, chain))
    if number := re.search(r"\(os error (\d+)\)", said):  # safetensors writes in Rust
        return os.strerror(int(number[1]))
    return UNKNOWN if re.search("PytorchStreamWriter failed|unexpected pos|iostream error", said) else ""


# --- the record --------------------------------------------------------------------------------------------------


def finite(content):
    """Return a copy for JSON, which has no NaN and no infinity: None in their place."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path, content):
    """Write JSON so that the file is always whole; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_record(folder):
    """Return the run.json of a folder, None if there is none. Raises ValueError if it is damaged."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["options"], dict) or not all(isinstance(record[k], str) for k in ("status", "stage")):
            raise ValueError("options, status or stage missing")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): look into it, choose another --output_dir, or pass "
            "--overwrite, which moves it aside"
        ) from error
    return record


def _lock(folder):
    """Hold the folder's lock until this process and its forks end."""
    path = folder / ".lock"
    if path.is_symlink() or (path.exists() and not (path.is_file() and path.stat().st_nlink == 1)):
        raise ValueError(f"{path} is a link or no file, which the lock of a run must not be: delete it")
    lock = FileLock(path, is_singleton=True)  # this process may open the folder again
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        holder = path.read_text(encoding="utf-8", errors="replace").strip() or "unknown process"
        raise ValueError(f"{folder} is in use by another run ({holder}): wait or choose another folder") from error
    path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
    return lock


def options_of(args):
    """Return the resolved options as run.json holds them."""
    others = ("defaults", "asked", "filled", "unfilled", "check_only")
    return {name: value for name, value in vars(args).items() if name not in others}


def inspect_run(args, inputs=None):
    """Return what the run folder holds: "new" (nothing, or a run that --overwrite moves aside), "resume" or "complete".

    inputs: from `describe_inputs`, once they are known; without them a complete run counts as one to "resume" if its
    inputs were given by other paths. Reads only. Raises ValueError for a run with other options, for one with other
    inputs that would be resumed or had other paths, and for a folder that holds something else.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file: choose another folder")
    if not folder.exists():
        return "new"
    if args.overwrite and (folder / "run.json").is_file():
        _check_overwrite(args, folder)
        return "new"
    record = read_record(folder)
    if record is None:
        # The lock and an unfinished record are a run's.
        strangers = sorted(path.name for path in folder.iterdir() if path.name not in (".lock", ".run.json.tmp"))
        if strangers:
            named = ", ".join(strangers[:5]) + (f" and {len(strangers) - 5} more" if len(strangers) > 5 else "")
            raise ValueError(f"--output_dir {folder} is not empty and holds no run ({named}): choose another folder")
        return "new"
    kept = "" if "filled" in record else _keep_older(args, record["options"])
    renamed = _compare_options(args, folder, record)
    if kept and os.environ.get("RANK", "0") == "0":
        print(f"{folder}: begun before tasks had recipes and left as it began ({kept})")
    if record["status"] == "complete" and not renamed:
        return "complete"
    changed = []
    for name, old in (record.get("inputs") or {}).items() if inputs else ():  # older records have no inputs
        new, words = inputs.get(name), name.replace("_", " ")
        if isinstance(old, int) and old != new:
            changed.append(f"{words} {old} there, {new} here")
        elif old != new:
            changed.append(f"the {words} {'changed' if new else 'is missing'}")
    if changed:
        raise ValueError(
            f"{folder} holds a run that began with other inputs ({'; '.join(changed)}): put back what it began with, "
            "choose another --output_dir, or pass --overwrite to start anew"
        )
    return "complete" if record["status"] == "complete" and inputs else "resume"


def _keep_older(args, theirs):
    """Give args the options of a run that began before tasks had recipes, if only the recipe would change them.

    So the command of that time leaves a complete run alone and resumes another one. Returns what was kept, in words.
    """
    older = json.loads(json.dumps(finite(getattr(args, "unfilled", {}))))
    now = json.loads(json.dumps(finite({name: getattr(args, name) for name in older})))
    if not older or any(theirs.get(name) not in (older[name], now[name]) for name in older):
        return ""
    kept = {name: value for name, value in older.items() if theirs.get(name) != now[name]}
    vars(args).update(kept, filled=None, unfilled={})
    return ", ".join(f"--{name} {value!r}, now {now[name]!r}" for name, value in kept.items())


def _compare_options(args, folder, record):
    """Return whether the run began with other paths of its inputs. Raises ValueError if it has other options.

    An option that the record lacks counts as the default, in the value that this command gives it if the user left it
    alone, since a default may depend on other options. Paths count only if the record has no digests of the inputs.
    """
    theirs = record["options"]
    free = {*FREE_OPTIONS, *NAMES}
    mine = json.loads(json.dumps(finite({k: v for k, v in options_of(args).items() if k not in free})))
    missing = {k: v for k, v in getattr(args, "defaults", {}).items() if k not in theirs}
    missing = {k: v if k in args.asked else mine.get(k) for k, v in missing.items()}
    theirs = missing | {k: v for k, v in theirs.items() if k not in free}
    differ = [k for k in sorted({*mine, *theirs} - free) if mine.get(k) != theirs.get(k)]
    differ = [k for k in differ if k not in PLACES or not _same_place(mine.get(k), theirs.get(k))]
    known = PLACES if record.get("inputs") else ()
    if theirs.get("streaming"):  # a stream of the hub has no digest
        known = {*known} - {"corpus"}
    if {*differ} - {*known}:
        listed = ", ".join(f"--{k} {theirs.get(k)!r} there, {mine.get(k)!r} here" for k in differ)
        raise ValueError(
            f"{folder} holds a run with other options ({listed}): choose another --output_dir, or pass "
            "--overwrite to move it aside"
        )
    return bool(differ)


def _same_place(one, other):
    """Return whether two values of an option name the same files or folders."""
    one, other = ([value] if isinstance(value, str) else value or [] for value in (one, other))
    return bool(one) and list(map(os.path.realpath, one)) == list(map(os.path.realpath, other))


def _check_overwrite(args, folder):
    """Raise ValueError if the run folder is or holds the current folder or an input, and so cannot be moved aside."""
    here = folder.resolve()
    if here in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(f"--overwrite: --output_dir {folder} is the current folder or holds it: choose another folder")
    words = [(name, word) for name, of in vars(args).items() for word in (of if isinstance(of, list) else [of])]
    for name, value in words:
        if name == "output_dir" or not isinstance(value, str):
            continue
        for path in named_files(value) or named_files(value.partition("=")[2]):
            if here in (path.resolve(), *path.resolve().parents, *Path(os.path.abspath(path)).parents):
                what = f"holds what this command reads (--{name} {value})"
                raise ValueError(f"--overwrite: --output_dir {folder} {what}: choose another folder")


def _move_aside(folder):
    """Rename a run folder to <folder>.old-<time>, unless another process uses it, and print that."""
    _lock(folder).release()
    aside = folder.with_name(f"{folder.name}{OLD}{time.strftime('%Y%m%d-%H%M%S')}")
    if aside.exists():
        raise ValueError(f"{aside} is there already: give the same command again")
    folder.rename(aside)
    print(f"--overwrite: {folder} is now {aside}; delete that folder if you do not need it", file=sys.stderr)


def named_files(value):
    """Return the paths that an option's value names: a file, a folder, or the matches of a glob."""
    if not value:
        return []
    path = Path(value)
    if path.exists():
        return [path]
    return sorted(map(Path, glob.glob(value, recursive=True))) if glob.has_magic(value) else []


def open_run(args, inputs=None):
    """Make and lock the run folder; return (answer of `inspect_run`, the lock). With --overwrite the folder is new.

    Keep a reference to the lock for as long as the folder is in use.
    """
    folder = Path(args.output_dir)
    inspect_run(args)
    try:
        if args.overwrite and (folder / "run.json").is_file():
            _move_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except OSError as error:
        raise ValueError(f"--output_dir {folder} cannot be written ({error.strerror}): choose another one") from error
    return inspect_run(args, inputs), lock


def open_run_everywhere(args, accelerator, inputs=None):
    """Call `open_run` in the main process and return its answer in all. The others need neither inputs nor lock."""
    answer, lock = open_run(args, inputs) if accelerator.is_main_process else (None, None)
    answer = [answer]
    if accelerator.num_processes > 1:
        broadcast_object_list(answer)
    return answer[0], lock


# --- what a run was made from --------------------------------------------------------------------------------------


def describe_inputs(args, accelerator, data, models):
    """Return {name: SHA-256 or number} of what must not change when a run is resumed, for run.json.

    data: {name: Dataset, or list of files to be streamed}. models: {name: model or None}, before training. Digests are
    of contents, not of paths or times; of a streamed file: its size and its first and last MiB.
    """
    found = {name: digest_files(rows) if isinstance(rows, list) else digest_rows(rows) for name, rows in data.items()}
    found |= {name: digest_model(model) for name, model in models.items() if model}
    size = args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    return found | {"number_of_processes": accelerator.num_processes, "examples_per_step": size}


def describe_data(splits, labels=()):
    """Return what a run is trained and scored on, for run.json: {split: {"examples": number, "sha256": digest}}.

    splits: {name: Dataset of examples as they were read}. labels: as in `digest_examples`.
    """
    return {
        name: {"examples": len(rows), "sha256": digest_examples(rows, labels)}
        for name, rows in splits.items()
        if not name.startswith("test")
    }


def digest_rows(dataset):
    """Return the SHA-256 of a Dataset's rows, whatever files they came from and however they are stored."""
    digest = hashlib.sha256(json.dumps(dataset.column_names).encode())
    for table in dataset.with_format("arrow").iter(10_000):
        for batch in table.replace_schema_metadata(None).combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def digest_examples(dataset, labels=()):
    """Return the SHA-256 of examples as they were read, in any order: texts and the names of their labels.

    It is the same for all tokenizers, file formats and numberings of the classes. labels: the classes' names, empty if
    labels are numbers.
    """

    def named(key, value):
        """Return the value of a column, with labels by name; -1 means no label."""
        if not labels or key not in ("label", "tags"):
            return value
        if key == "tags":
            return [labels[i] for i in value]
        if isinstance(value, list):  # multilabel: for each class whether the text has it
            return sorted(labels[i] for i, own in enumerate(value) if own)
        return labels[value] if value >= 0 else value

    keys, digests = sorted({*dataset.column_names} - {"idx", "lines", "head"}), []  # these are places in a file
    for batch in dataset.with_format(None).select_columns(keys).iter(10_000):
        columns = [[named(key, value) for value in values] for key, values in batch.items()]
        digests += [hashlib.sha256(ascii(row).encode()).digest() for row in zip(*columns, strict=True)]
    return hashlib.sha256(b"".join([ascii(keys).encode(), *sorted(digests)])).hexdigest()


def digest_model(model):
    """Return the SHA-256 of a model's configuration and tensors, without its path and the library's version."""
    passing = ("transformers_version", "architectures", "dtype", "torch_dtype")  # depend on how it was made or loaded
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_") and k not in passing}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def digest_files(paths, ends=2**20):
    """Return the SHA-256 of the sizes and the first and last bytes of files too large to read twice."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as f:
            size = f.seek(0, os.SEEK_END)
            digest.update(f"{size} ".encode())
            for at in (0, max(0, size - ends)):
                f.seek(at)
                digest.update(f.read(ends))
    return digest.hexdigest()


def kept(args):
    """Return the evaluation, "best" or "last", whose model a run keeps in its folder."""
    return "last" if args.save == "last" else "best"


def new_record(args, accelerator, stage, task, **more):
    """Return run.json before there are results."""
    return {
        "status": "running",
        "stage": stage,
        "task": task,
        "name": args.run_name,
        "seed": args.seed,
        "command": command(),
        "options": options_of(args),
        "asked": sorted({*getattr(args, "asked", ())}),  # options that differ from their default, typed or filled in
        "git": environment.git_state(),
        "versions": environment.versions(),
        "hardware": environment.hardware(accelerator),
        **more,
    } | ({} if getattr(args, "filled", None) is None else {"filled": args.filled})


def command():
    """Return a shell command that starts the same run again."""
    processes = {
        "--nnodes": int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        "--nproc_per_node": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    }
    counts = [str(word) for option, count in processes.items() if count > 1 for word in (option, count)]
    return shlex.join(["torchrun", *counts, *sys.argv] if counts else ["python", *sys.argv])


def complete(args, record):
    """Write the record of a finished run and, unless --keep_optimizer, drop AdamW's state from its checkpoints."""
    folder = Path(args.output_dir)
    record["status"] = "complete"
    with writing(folder):
        write_json(folder / "run.json", record)
        for path in () if args.keep_optimizer else folder.glob(f"checkpoints/step-*/{OPTIMIZER}"):
            sums = json.loads((path.parent / "checksums.json").read_text())
            write_json(path.parent / "checksums.json", {name: of for name, of in sums.items() if name != OPTIMIZER})
            path.unlink()
