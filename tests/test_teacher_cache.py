"""--cache_teacher: what is read from disk trains as what the teacher says."""
import json
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import distill_finetune
import teacher_cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "FOLDER", tmp_path / "cache")
    return tmp_path / "cache"


def terms_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"] if tag.startswith("loss/")}


TERMS = [["ckd"], ["kd"], ["tinybert", "pkd=1"], ["minilm", "hidden_cosine=1"]]


@pytest.mark.parametrize("terms", TERMS, ids="-".join)
def test_the_losses_are_those_of_the_teacher_itself(finetune, teacher, tmp_path, folder, monkeypatch, terms):
    options = ("--teacher", teacher, "--student_layers", "2", "--terms", *terms, "--logging_steps", "1")
    finetune(*options, "--output_dir", tmp_path / "direct")
    calls = []
    compute = teacher_cache.fields_of
    monkeypatch.setattr(teacher_cache, "fields_of", lambda *a: (calls.append(1), compute(*a))[1])
    finetune(*options, "--output_dir", tmp_path / "cached", "--cache_teacher")
    # Half precision is within 2^-11 of each component; the steps after the first ones amplify it.
    direct, cached = terms_of(tmp_path / "direct"), terms_of(tmp_path / "cached")
    assert set(direct) == set(cached) and all(len(v) == 12 for v in cached.values())
    for tag in direct:
        assert cached[tag] == pytest.approx(direct[tag], rel=2e-3, abs=1e-7), tag
    # One example to see the shapes, then 96 in batches of 64; a second run, of another seed, computes only the first.
    assert len(calls) == 3
    finetune(*options, "--seed", "2", "--max_steps", "1", "--output_dir", tmp_path / "again", "--cache_teacher")
    assert len(calls) == 4 and len(list(folder.iterdir())) == 1


def test_question_answering_too(world, tmp_path):
    def run(name, *more):
        AcceleratorState._reset_state(reset_partial_state=True)
        distill_finetune.main([
            "--task", "squad", "--data_dir", str(world / "squad"), "--max_seq_length", "48", "--doc_stride", "16",
            "--max_query_length", "16",
            "--num_train_epochs", "1", "--per_device_train_batch_size", "16", "--logging_steps", "1",
            "--output_dir", str(tmp_path / name), *more,
        ])  # fmt: skip
        return tmp_path / name

    teacher = run("teacher", "--student", str(world / "bert"))
    options = ("--teacher", str(teacher), "--student_layers", "2", "--terms", "ckd")
    direct, cached = terms_of(run("direct", *options)), terms_of(run("cached", *options, "--cache_teacher"))
    for tag in direct:
        assert cached[tag] == pytest.approx(direct[tag], rel=2e-3, abs=1e-7), tag


def test_a_resumed_run_has_the_same_weights_bit_for_bit(finetune, teacher, tmp_path, cut_at):
    options = ("--teacher", teacher, "--student_layers", "2", "--terms", "ckd", "--save_steps", "2", "--cache_teacher")
    finetune(*options, "--output_dir", tmp_path / "whole")
    cut_at(9)
    with pytest.raises(KeyboardInterrupt):
        finetune(*options, "--output_dir", tmp_path / "cut")
    finetune(*options, "--output_dir", tmp_path / "cut")
    a, b = (load_file(tmp_path / n / "checkpoints/step-00000012/model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_build_that_was_cut_leaves_nothing_that_looks_whole(finetune, teacher, tmp_path, folder, monkeypatch):
    options = ("--teacher", teacher, "--student_layers", "2", "--terms", "ckd", "--max_steps", "1", "--cache_teacher",
               "--output_dir", tmp_path / "run")  # fmt: skip

    def ill(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(teacher_cache.os, "posix_fallocate", ill)
    with pytest.raises(OSError, match="No space left"):
        finetune(*options)
    assert not list(folder.glob("teacher-*")) and not (tmp_path / "run").exists()
    monkeypatch.undo()
    monkeypatch.setattr(teacher_cache, "FOLDER", folder)
    finetune(*options)
    assert len(list(folder.iterdir())) == 1


def test_another_teacher_or_other_examples_have_another_cache(finetune, world, teacher, tmp_path, folder):
    options = ("--student_layers", "2", "--terms", "kd", "--max_steps", "1", "--cache_teacher", "--overwrite",
               "--output_dir", tmp_path / "run")  # fmt: skip
    finetune("--teacher", teacher, *options)
    finetune("--teacher", teacher, *options, "--max_train_samples", "80")
    finetune("--student", world / "bert", "--max_steps", "1", "--seed", "3", "--output_dir", tmp_path / "other")
    finetune("--teacher", tmp_path / "other", *options)
    assert len(list(folder.iterdir())) == 3


def test_what_is_too_large_is_refused_and_nothing_is_lost(finetune, teacher, tmp_path, folder):
    options = ("--teacher", teacher, "--student_layers", "2", "--terms", "ckd", "--max_steps", "1",
               "--output_dir", tmp_path / "run")  # fmt: skip
    finetune(*options)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"needs 0.00\d+ GB for 96 examples, above --cache_limit_gb 1e-06: raise it"):
        finetune(*options, "--overwrite", "--cache_teacher", "--cache_limit_gb", "1e-6")
    assert (tmp_path / "run" / "run.json").read_bytes() == before and not folder.exists()
    with pytest.raises(ValueError, match="--cache_teacher keeps what a teacher says: pass --teacher"):
        finetune("--student", teacher, "--cache_teacher")


def test_two_processes_fill_one_cache(finetune, world, teacher, tmp_path, monkeypatch):
    options = ["--teacher", teacher, "--student_layers", "2", "--terms", "ckd", "--max_train_samples", "65",
               "--num_train_epochs", "1", "--cache_teacher"]  # fmt: skip
    finetune(*options, "--output_dir", tmp_path / "one")
    script = tmp_path / "run.py"
    script.write_text(
        f"import os, sys, pathlib\nsys.path.insert(0, os.getcwd())\nimport distill_finetune, teacher_cache, training\n"
        f"teacher_cache.FOLDER = pathlib.Path({str(tmp_path / 'two-cache')!r})\n"
        "training.run_script(distill_finetune.main)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29521",
               script, "--task", "cola", "--data_dir", world / "glue", "--max_eval_samples", "32",
               "--max_seq_length", "32", *options, "--per_device_train_batch_size", "8",
               "--output_dir", tmp_path / "two"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert records[0]["steps"] == records[1]["steps"] == 5
    a, b = (load_file(tmp_path / name / "checkpoints/step-00000005/model.safetensors") for name in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5, msg=name)
