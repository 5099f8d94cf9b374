"""How the training scripts run: quiet libraries, mistakes in one line, exit statuses. Their options: options.py."""

import datetime
import logging
import os
import re
import sys
import time
from pathlib import Path

import datasets
import torch
import transformers
from huggingface_hub.utils import disable_progress_bars as disable_hub_progress_bars
from tqdm.auto import tqdm

from engine.run_folder import TrainingError
from options import one_line


def quiet():
    """Leave the screen to the run: switch off the libraries' progress bars, load reports and retry messages."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("datasets.utils.file_utils").setLevel(logging.WARNING)  # a stream may wait minutes for its host
    if not shows_bars():
        datasets.disable_progress_bars()  # of tokenising
    disable_hub_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it warns each time that tied weights are saved once


def shows_bars():
    """Return whether this process shows progress bars: the main one, at a terminal, unless TQDM_DISABLE is 1."""
    wanted = os.environ.get("RANK", "0") == "0" and os.environ.get("TQDM_DISABLE", "0") in ("", "0")
    return wanted and sys.stderr.isatty()


def bar(items=None, **options):
    """Return a tqdm progress bar around items or of a total; silent if no bars are shown."""
    return tqdm(items, disable=not shows_bars(), **options)


def say_progress(step, total, left_s, points):
    """Print the losses and rates of a step, for runs without a bar; points: {TensorBoard tag: number}."""
    left = datetime.timedelta(seconds=round(left_s))
    losses = ", ".join(f"{tag[5:]} {value:.4g}" for tag, value in points.items() if tag.startswith("loss/"))
    rates = ", ".join(f"{tag} {value:.4g}" for tag, value in points.items() if tag.startswith(("perf/", "optim/")))
    print(f"training: step {step} of {total}, {left} left: loss {losses}\ntraining: {rates}", flush=True)


def say(text, file=None):
    """Print a text, if there is one, in the main process only; file: as in print."""
    if text and os.environ.get("RANK", "0") == "0":
        print(text, file=file)


def run_script(main):
    """Call main and exit: after a user's mistake with one line on stderr and status 2, after a failed run status 1.

    Ctrl-C ends in one line and status 130; within `training.train`, which saves first, in a line of its own.
    """
    status, message = 0, ""
    try:
        main()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except (ValueError, OSError, TrainingError) as error:
        if os.environ.get("CKD_TRACEBACK"):
            raise
        status, message = 2 if isinstance(error, ValueError) else 1, str(error)
        if "DataLoader worker process" in message:  # torch puts a traceback before the message
            message = re.split(rf"\n[\w.]*{type(error).__name__}: ", message)[-1]
    except KeyboardInterrupt:
        status, message = 130, "stopped by Ctrl-C outside the training steps: the same command goes on"
    except torch.OutOfMemoryError as error:
        status = 1
        message = (
            "the GPU's memory is full: lower --per_device_train_batch_size and raise "
            "--gradient_accumulation_steps by the same factor, or shorten the sequences "
            f"({' '.join(str(error).split()[:12])} ...)"
        )
    except RuntimeError as error:
        silent = "" if os.environ.get("CKD_TRACEBACK") else lost_processes(error)
        if not silent:
            raise
        status = 1
        message = (
            f"{silent} did not answer within --timeout_minutes, stopped or dead: end what is left of this run, "
            "then run the same command again; what it had saved is intact"
        )
    if message:
        process = f" (process {os.environ['RANK']})" if os.environ.get("RANK", "0") != "0" else ""
        print(f"{Path(sys.argv[0]).name}: error{process}: {one_line(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(status)


def lost_processes(error, patience_s=10):
    """Return in words which processes no longer answer, if the error says that some do not; else "".

    Those that live all meet such an error at about the same time. Each reports in the launcher's store, and whoever has
    not reported within patience_s is lost. Between GPUs NCCL waits instead, and its watchdog ends the process with its
    own message.
    """
    signs = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "timed out")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or not any(sign in str(error) for sign in signs):
        return ""
    try:
        store = torch.distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=datetime.timedelta(seconds=patience_s),
        )
        keys = [f"waited/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{rank}" for rank in range(count)]
        store.set(keys[int(os.environ["RANK"])], "1")
        end = time.monotonic() + patience_s
        while (silent := [rank for rank, key in enumerate(keys) if not store.check([key])]) and time.monotonic() < end:
            time.sleep(0.2)
    except (RuntimeError, KeyError):  # the store lives in a process that does not answer either
        silent = []
    return f"process{'es' if len(silent) > 1 else ''} {', '.join(map(str, silent))}" if silent else "another process"
