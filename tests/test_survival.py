"""Full disks, folders that cannot be written or vanish, skipped steps: one clear line, and nothing lost."""

import contextlib
import json
import math
import pickle
import resource
import shutil
import sys

import pytest
import torch
from accelerate import Accelerator
from conftest import forked
from safetensors.torch import load_file

import distill_finetune
import report
import training
from engine import checkpoints, run_folder

OPTIONS = (
    "--max_train_samples 96 --max_eval_samples 32 --num_train_epochs 2 "
    "--per_device_train_batch_size 16 --max_seq_length 32 --save_steps 3 --logging_steps 2"
).split()


def with_file_limit(limit, world, folder):
    """`forked` of a run whose files cannot grow beyond `limit` bytes, which writers meet like a full disk."""
    return forked(
        distill_finetune,
        *f"--task cola --data_dir {world}/glue --student {world}/bert".split(),
        *OPTIONS,
        "--output_dir",
        folder,
        prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


@pytest.mark.parametrize("limit", [300_000, 3_000_000], ids=["model", "optimiser"])
def test_a_full_disk_leaves_the_last_checkpoint(finetune, world, tmp_path, cut_at, once, limit):
    run, options = tmp_path / "run", ("--student", world / "bert", *OPTIONS)
    whole = once("never-full", lambda folder: finetune(*options, "--output_dir", folder / "run"))
    cut_at(5)
    with pytest.raises(KeyboardInterrupt):
        finetune(*options, "--output_dir", run)
    record = (run / "run.json").read_bytes()
    status, said = with_file_limit(limit, world, run)
    assert status == 1 and "Traceback" not in said
    errors = [line for line in said.splitlines() if "error:" in line]
    assert len(errors) == 1 and f"could not write to {run} (" in errors[0]
    assert "is the disk full? What was saved before is intact; make room" in errors[0]
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert checkpoints.newest_checkpoint(run).name == "step-00000003"
    assert json.loads(record)["steps"] == 3 == json.loads((run / "run.json").read_text())["steps"]
    finetune(*options, "--output_dir", run)
    a, b = (load_file(f / "checkpoints/step-00000012/model.safetensors") for f in (whole / "run", run))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_that_could_not_even_begin_can_be_started_again(finetune, world, tmp_path):
    status, said = with_file_limit(50, world, tmp_path / "run")
    assert status == 1 and "could not write to" in said and "Traceback" not in said
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    finetune("--student", world / "bert", "--max_steps", "1", "--output_dir", tmp_path / "run")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder where even root may not write")
def test_a_folder_that_cannot_be_written_is_refused(finetune, world):
    with pytest.raises(ValueError, match=r"--output_dir /proc/run cannot be written .*: choose another one"):
        finetune("--student", world / "bert", "--max_steps", "1", "--output_dir", "/proc/run")


def test_a_folder_removed_meanwhile_is_named(finetune, world, tmp_path, cut_at):
    folder = tmp_path / "run"
    cut_at(2, lambda: shutil.rmtree(folder))
    with pytest.raises(training.TrainingError, match="run was removed while this run was using it"):
        finetune("--student", world / "bert", *OPTIONS, "--output_dir", folder)
    assert not folder.exists()


def test_a_checkpoint_file_removed_meanwhile_is_named_and_an_older_one_used(finetune, world, tmp_path, cut_at, capsys):
    options = ("--student", world / "bert", *OPTIONS, "--keep_checkpoints", "2")
    finetune(*options, "--output_dir", tmp_path / "whole")
    cut_at(8)
    with pytest.raises(KeyboardInterrupt):
        finetune(*options, "--output_dir", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors").unlink()
    finetune(*options, "--output_dir", tmp_path / "run")
    assert "step-00000006 is damaged" in capsys.readouterr().err
    a, b = (load_file(tmp_path / f / "checkpoints/step-00000012/model.safetensors") for f in ("whole", "run"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def in_fp16(monkeypatch, norms):
    """Steps of a run in fp16 on the CPU, whose gradients have these norms; where they are infinite none is taken."""
    step, norms = training.training_step, iter(norms)

    def one(args, accelerator, recipe, model, optimizer, *rest):
        norm = next(norms)
        with contextlib.nullcontext() if math.isfinite(norm) else monkeypatch.context() as skipped:
            if skipped:
                skipped.setattr(optimizer, "step", lambda: None)
            return step(args, accelerator, recipe, model, optimizer, *rest) | {"grad_norm": torch.tensor(norm)}

    monkeypatch.setattr(training, "training_step", one)
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    monkeypatch.setattr(Accelerator, "autocast", lambda self: contextlib.nullcontext())


def test_steps_that_the_scaler_skips_are_counted(finetune, world, tmp_path, monkeypatch, cut_at, capsys):
    """Those whose gradient is infinite, in fp16; also by a run that went on. The fused AdamW tells nobody of them."""
    in_fp16(monkeypatch, [1.0, math.inf, math.nan, 1.0, math.inf, 1.0])
    options = ["--student", world / "bert", "--max_steps", "6", "--save_steps", "1", "--output_dir", tmp_path / "run"]
    cut_at(4)
    with pytest.raises(KeyboardInterrupt):
        finetune(*options)
    finetune(*options)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["steps"] == 6 and record["skipped_steps"] == 3
    assert "fp16: 3 of 6 steps were skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    "interval, norms, stopped_at",
    [
        (2, [math.inf] * 6, 6),  # nothing was learnt
        (1, [math.inf] * 40, 17),  # a scaler that begins with 2^16 may skip 16
        (5, [math.inf] * 40, 20),
        (20, [math.inf] * 40, 20),
        (50, [math.inf] * 40, 40),
        (20, [1.0] * 10 + [math.inf] * 30, 40),  # those of the last interval, not of the one in which it began
        (10, [1.0] + [math.inf] * 18 + [1.0], None),  # more than 16, but not all of an interval
    ],
)
def test_a_run_that_skips_all_steps_of_an_interval_stops(
    finetune, world, tmp_path, monkeypatch, interval, norms, stopped_at
):
    in_fp16(monkeypatch, norms)
    options = [
        "--student",
        world / "bert",
        "--max_steps",
        len(norms),
        "--logging_steps",
        interval,
        "--eval_steps",
        "100",
        "--output_dir",
        tmp_path / "run",
    ]
    said = rf"fp16: the last \d+ steps were all skipped, .*\({stopped_at if norms[0] != 1 else 30} of {stopped_at} in"
    with pytest.raises(training.TrainingError, match=said) if stopped_at else contextlib.nullcontext():
        finetune(*options)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == ("failed" if stopped_at else "complete")
    assert record["skipped_steps"] == sum(map(math.isinf, norms[:stopped_at]))
    assert not stopped_at or (record["steps"] == stopped_at and "steps were all skipped" in record["error"])


def test_a_model_whose_steps_were_all_skipped_is_never_the_best(finetune, world, tmp_path, monkeypatch):
    """Of 8 steps the first 4 are skipped, in a log interval of 2: no error, and only what was trained is scored."""
    scores = iter([0.5, 0.9, 0.9, 0.1, 0.2])
    monkeypatch.setattr("metrics.compute_metrics", lambda *_: {"matthews_correlation": next(scores, 1.0)})
    in_fp16(monkeypatch, [math.inf] * 4 + [1.0] * 4)
    finetune("--student", world / "bert", "--max_steps", "8", "--eval_steps", "2", "--output_dir", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [entry["score"] for entry in record["history"]] == [0.9, 0.9, 0.1, 0.2]
    assert record["best"]["step"] == 8 and record["skipped_steps"] == 4


@pytest.mark.parametrize("saved", [False, True])
def test_a_run_that_diverges_says_what_is_left_and_that_it_would_do_so_again(
    finetune, world, tmp_path, capsys, saved, monkeypatch
):
    step, calls = training.training_step, []

    def one(*args):
        calls.append(1)
        return step(*args) | ({"total": torch.tensor(math.nan)} if len(calls) == 3 else {})

    monkeypatch.setattr(training, "training_step", one)
    with pytest.raises(training.TrainingError) as error:
        finetune("--student", world / "bert", "--save_steps", 2 if saved else 100, "--output_dir", tmp_path / "run")
    said = "the last checkpoint is intact: lower" if saved else "there was no checkpoint yet: lower"
    assert "non-finite loss: total at step 3 (examples " in str(error.value) and said in str(error.value)
    assert not saved or checkpoints.newest_checkpoint(tmp_path / "run").name == "step-00000002"
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    line = capsys.readouterr().err
    assert "(failed: non-finite loss: total at step 3" in line and "the same command would fail again" in line
    assert "give its command again" not in line


def test_a_model_whose_outputs_are_not_finite_is_a_run_that_failed(finetune, world, tmp_path, monkeypatch):
    step = training.training_step

    def one(args, accelerator, recipe, model, *rest):
        values = step(args, accelerator, recipe, model, *rest)
        model.classifier.weight.data.fill_(3e38)  # a finite number
        return values

    monkeypatch.setattr(training, "training_step", one)
    with pytest.raises(training.TrainingError, match=r"outputs are not finite .* diverged: lower --learning_rate"):
        finetune("--student", world / "bert", "--max_steps", 1, "--output_dir", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed" and record["error"].startswith("the model's outputs are not finite")


class Opens:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_nothing_that_stands_in_a_checkpoint_is_executed(finetune, world, tmp_path, cut_at, name):
    options = ("--student", world / "bert", *OPTIONS, "--output_dir", tmp_path / "run")
    cut_at(5)
    with pytest.raises(KeyboardInterrupt):
        finetune(*options)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
    with (checkpoint / name).open("wb") as f:
        pickle.dump(Opens(tmp_path / "executed"), f)
    sums = json.loads((checkpoint / "checksums.json").read_text())
    run_folder.write_json(checkpoint / "checksums.json", sums | {name: checkpoints._digest(checkpoint / name)})
    if name == "optimizer.bin":
        with pytest.raises(training.TrainingError, match=r"step-00000003 holds more than weights .* pass --overwrite"):
            finetune(*options)
    else:  # a model without dropout has not drawn a number yet: it can do without
        finetune(*options)
    assert not (tmp_path / "executed").exists()


def test_nothing_that_stands_in_a_model_folder_is_executed(finetune, world, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(world / "bert", folder)
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as f:
        pickle.dump(Opens(tmp_path / "executed"), f)
    with pytest.raises(ValueError, match=r"--student .* could not be loaded"):
        finetune("--student", folder, *OPTIONS, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "executed").exists()
