"""Shared by the tests: a small artificial language on disk, and scripts called as from the command line."""

import copy
import fcntl
import functools
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import distill_finetune
import synthetic
import training
from encoders import model_outputs
from engine import command_line, cost

sys.path.append(str(Path(__file__).parents[1] / "bench"))  # its files import each other as scripts


def pytest_configure(config):
    """Ctrl-C is heard also where a shell started the tests in the background, which makes it deaf to it."""
    config.addinivalue_line("markers", "whole: draw the pictures of a run and measure its latencies as ever")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Spare a test what takes most of a tiny run's time, pictures and long latencies, unless it is `whole`."""
    if "whole" not in request.keywords:
        monkeypatch.setattr(model_outputs, "relation_figures", lambda *_: {})
        monkeypatch.setattr(cost, "measure_latency", functools.partial(cost.measure_latency, seconds=0.0))


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """once(name, make): a folder that make(folder) has filled, for all workers of pytest-xdist by one of them."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name, make):
        folder, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return get


def forked(script, *options, prepare=lambda: None):
    """(exit status, stderr) of a script run as by its command line, in a fork that need not import everything anew.

    prepare(): called in the fork before the script.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 70  # of anything that run_script does not know
        try:
            sys.stdout, sys.stderr = open(os.devnull, "w"), os.fdopen(writing, "w", buffering=1)
            sys.argv = [f"{script.__name__}.py", *map(str, options)]
            AcceleratorState._reset_state(reset_partial_state=True)
            prepare()
            command_line.run_script(script.main)
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def torchrun(*command):
    """Run a script in two processes, at a port that is free; the finished launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def in_two_processes(work):
    """Call work() in two forks that torch.distributed joins, as torchrun starts a script; both must return."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in "01":
        child = os.fork()
        if not child:
            status = 1
            try:
                torch.set_num_threads(1)  # a fork has not the threads of OpenMP
                os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
                os.environ["MASTER_PORT"] = str(port)
                AcceleratorState._reset_state(reset_partial_state=True)
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:  # it would wait for the first for ever
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            pytest.fail("one of two processes failed; it says above why")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder with glue/, squad/, text/ and bert/ of the artificial language, in small."""
    folder = tmp_path_factory.mktemp("world")
    synthetic.main(
        (
            f"--output_dir {folder} --train_size 256 --dev_size 64 --text_size 40 "
            "--squad_train_size 60 --squad_dev_size 20 --overwrite"
        ).split()
    )
    return folder


def run_script(script, options):
    """Run a script's main in this process; its options are the same at its end as `check_args` left them."""
    AcceleratorState._reset_state(reset_partial_state=True)
    check, checked = script.check_args, []

    def note(args):
        check(args)
        checked[:] = [args, copy.deepcopy(vars(args))]

    script.check_args = note
    try:
        script.main([*map(str, options)])
    finally:
        script.check_args = check
    args, before = checked
    assert vars(args) == before


@pytest.fixture
def finetune(world):
    """Run distill_finetune.py in this process on the artificial CoLA; later options overrule the defaults here."""

    def run(*options):
        run_script(
            distill_finetune,
            [
                *(
                    f"--task cola --data_dir {world}/glue --max_train_samples 96 --max_eval_samples 32 "
                    "--num_train_epochs 2 --per_device_train_batch_size 16 --max_seq_length 32 "
                    "--logging_steps 2"
                ).split(),
                *map(str, options),
            ],
        )

    return run


@pytest.fixture
def cut_at(monkeypatch):
    """cut_at(call, action): do something, by default be interrupted, in place of the given call of a training step."""

    def interrupt():
        raise KeyboardInterrupt

    def cut(call, action=interrupt):
        calls, step = [], training.training_step

        def wrapped(*args):
            calls.append(1)
            if len(calls) == call:
                action()
            return step(*args)

        monkeypatch.setattr(training, "training_step", wrapped)

    return cut


@pytest.fixture(scope="session")
def teacher(world, tmp_path_factory):
    """Folder of a (badly) fine-tuned teacher."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    AcceleratorState._reset_state(reset_partial_state=True)
    distill_finetune.main(
        (
            f"--task cola --data_dir {world}/glue --student {world}/bert --max_steps 2 "
            f"--run_name teacher --output_dir {folder}"
        ).split()
    )
    torch.manual_seed(0)
    return folder
