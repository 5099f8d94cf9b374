"""--cache_teacher: what is read from disk trains as what the teacher says."""

import subprocess
import sys
import threading

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

import distill_finetune
from engine import checkpoints, teacher_cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "FOLDER", tmp_path / "cache")
    return tmp_path / "cache"


def terms_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
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
    # Of a preset in two stages each term has its half.
    assert set(direct) == set(cached) and all(len(v) in (6, 12) for v in cached.values())
    for tag in direct:
        assert cached[tag] == pytest.approx(direct[tag], rel=2e-3, abs=1e-6), tag
    # One example to see the shapes, then 96 in batches of 64; a second run, of another seed, computes only the first.
    assert len(calls) == 3
    finetune(*options, "--seed", "2", "--max_steps", "2", "--output_dir", tmp_path / "again", "--cache_teacher")
    assert len(calls) == 4 and len(list(folder.iterdir())) == 1


def test_question_answering_too(world, tmp_path):
    def run(name, *more):
        AcceleratorState._reset_state(reset_partial_state=True)
        distill_finetune.main(
            [
                *(
                    f"--task squad --data_dir {world}/squad --max_seq_length 48 --doc_stride 16 "
                    "--max_query_length 16 --num_train_epochs 1 --per_device_train_batch_size 16 "
                    f"--logging_steps 1 --output_dir {tmp_path}/{name}"
                ).split(),
                *more,
            ]
        )
        return tmp_path / name

    teacher = run("teacher", "--student", str(world / "bert"))
    options = ("--teacher", str(teacher), "--student_layers", "2", "--terms", "ckd")
    direct, cached = terms_of(run("direct", *options)), terms_of(run("cached", *options, "--cache_teacher"))
    for tag in direct:
        assert cached[tag] == pytest.approx(direct[tag], rel=2e-3, abs=1e-6), tag


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
    options = (
        f"--teacher {teacher} --student_layers 2 --terms ckd --max_steps 1 --cache_teacher --output_dir {tmp_path}/run"
    ).split()

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
    options = (
        f"--student_layers 2 --terms kd --max_steps 1 --cache_teacher --overwrite --output_dir {tmp_path}/run"
    ).split()
    finetune("--teacher", teacher, *options)
    finetune("--teacher", teacher, *options, "--max_train_samples", "80")
    finetune("--student", world / "bert", "--max_steps", "1", "--seed", "3", "--output_dir", tmp_path / "other")
    finetune("--teacher", tmp_path / "other", *options)
    assert len(list(folder.iterdir())) == 3


def test_what_is_too_large_is_refused_and_nothing_is_lost(finetune, teacher, tmp_path, folder):
    options = (f"--teacher {teacher} --student_layers 2 --terms ckd --max_steps 1 --output_dir {tmp_path}/run").split()
    finetune(*options)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"needs 0.00\d+ GB for 96 examples, above --cache_limit_gb 1e-06: raise it"):
        finetune(*options, "--overwrite", "--cache_teacher", "--cache_limit_gb", "1e-6")
    assert (tmp_path / "run" / "run.json").read_bytes() == before and not folder.exists()
    with pytest.raises(ValueError, match="--cache_teacher keeps what a teacher says: pass --teacher"):
        finetune("--student", teacher, "--cache_teacher")


def test_a_damaged_file_is_refused_with_its_remedy(finetune, teacher, tmp_path, folder):
    options = (
        f"--teacher {teacher} --student_layers 2 --terms ckd --max_steps 1 --cache_teacher "
        f"--output_dir {tmp_path}/run --overwrite"
    ).split()
    finetune(*options)
    (cache,) = folder.iterdir()
    for name in ("hidden_states.2.bin", "fields.json", "checksums.json"):
        kept = (cache / name).read_bytes()
        (cache / name).write_bytes(bytes(len(kept)))
        with pytest.raises(ValueError, match=rf"{cache} is damaged \(.+\): delete this folder, then run the same"):
            finetune(*options)
        (cache / name).unlink()
        with pytest.raises(ValueError, match=r"is damaged .*delete this folder"):
            finetune(*options)
        (cache / name).write_bytes(kept)
    finetune(*options)


def test_leftovers_of_dead_builders_are_removed_and_never_used(finetune, teacher, tmp_path, folder):
    options = (
        f"--teacher {teacher} --student_layers 2 --terms kd --max_steps 1 --cache_teacher "
        f"--output_dir {tmp_path}/run --overwrite"
    ).split()
    finetune(*options)
    (cache,) = folder.iterdir()
    whole = (cache / "logits.bin").read_bytes()
    temporary = cache.rename(cache.with_name(f".tmp-{cache.name}"))
    (temporary / "logits.bin").write_bytes(bytes(len(whole)))
    (temporary / "stranger").mkdir()
    (folder / ".tmp-teacher-of-another").mkdir()
    finetune(*options)
    assert [p.name for p in folder.iterdir()] == [cache.name] and (cache / "logits.bin").read_bytes() == whole
    assert {p.name for p in cache.iterdir()} == {"checksums.json", "fields.json", "logits.bin"}


def test_the_name_depends_on_configuration_and_row_boundaries(world):
    config = AutoConfig.from_pretrained(world / "bert")
    bert = AutoModel.from_config(config)
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3]]})
    known = teacher_cache.key(bert, rows, [])
    again = AutoModel.from_config(AutoConfig.from_pretrained(world / "bert"))
    again.load_state_dict(bert.state_dict())
    assert known == teacher_cache.key(again, Dataset.from_dict({"input_ids": [[1, 2], [3]]}), [])
    for other in ([[1], [2, 3]], [[1, 2, 3]], [[1, 2], [3], []]):
        assert teacher_cache.key(bert, Dataset.from_dict({"input_ids": other}), []) != known
    bert.config.layer_norm_eps *= 2
    assert teacher_cache.key(bert, rows, []) != known


HOLDER = """
import os, pathlib, sys
from filelock import FileLock
final = pathlib.Path(sys.argv[1])
temporary = final.with_name(f".tmp-{final.name}")
temporary.mkdir(parents=True)
lock = FileLock(temporary / ".lock")
lock.acquire()
if sys.argv[2] == "forks" and not os.fork():
    sys.stdin.read()  # outlives its parent, as worker processes do
    sys.exit()
print("locked", flush=True)
sys.stdin.read()
if sys.argv[2] == "builds":
    temporary.rename(final)
"""


@pytest.fixture
def holder(folder):
    """Start another process that is making the cache `x`: it finishes ("builds") or gives up when its input ends."""

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, folder / "x", how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "locked\n"
        return process

    return start


@pytest.mark.parametrize("how", ["builds", "gives up"])
def test_who_waits_for_another_builder_says_so(folder, holder, how, capsys):
    process = holder(how)
    threading.Timer(0.3, process.stdin.close).start()
    with checkpoints.building(folder / "x") as temporary:
        assert (temporary is None) == (how == "builds")
        if temporary:
            checkpoints.seal(temporary, folder / "x")
    process.wait()
    assert f"{folder / 'x'}: another process is making it; waiting for it" in capsys.readouterr().out
    assert [p.name for p in folder.iterdir()] == ["x"]


def test_the_living_are_left_alone_and_children_of_the_dead_hold_no_lock(folder, holder, capsys):
    process = holder("forks")
    with checkpoints.building(folder / "y") as temporary:
        assert {p.name for p in folder.iterdir()} == {".tmp-x", ".tmp-y"}
        (temporary / "data").write_text("content")
        checkpoints.seal(temporary, folder / "y")
    process.kill()
    process.wait()
    with checkpoints.building(folder / "x") as temporary:
        checkpoints.seal(temporary, folder / "x")
    process.stdin.close()
    assert "waiting" not in capsys.readouterr().out and not checkpoints.damage(folder / "y", "data")
    assert {p.name for p in folder.iterdir()} == {"x", "y"}
