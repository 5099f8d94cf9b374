"""The run folder: what --overwrite moves aside, its lock, the inputs a run began with, and what gets into run.json.
Full disks, folders that cannot be written or vanish, skipped steps: one clear line, and nothing lost.
"""

import argparse
import contextlib
import ctypes
import errno
import json
import math
import os
import pickle
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import transformers
from accelerate import Accelerator
from conftest import forked
from datasets import Dataset, concatenate_datasets
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig

import distill_finetune
import distill_pretrain
import report
import training
from engine import checkpoints, checks, command_line, run_folder
from options import finetune_parser
from reporting import records
from tasks import batching

RECORD = {"status": "complete", "stage": "finetune", "options": {}}


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != ".lock")


@pytest.fixture
def finished(tmp_path):
    """A folder as a run leaves it."""
    folder = tmp_path / "runs" / "cola" / "ckd"
    for name in (
        "run.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "CoLA.tsv",
        ".lock",
        "odd_vocabulary.bin",
        "events.out.tfevents.18.host.2.0",
        "tb/events.out.tfevents.17.host.1.0",
        "checkpoints/step-00000007/state.json",
        "checkpoints/step-00000007/model.safetensors",
        "checkpoints/.tmp-step-00000009/optimizer.bin",
        ".tmp-model/config.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    run_folder.write_json(folder / "run.json", RECORD)
    return folder


def overwrite(folder, **options):
    args = argparse.Namespace(output_dir=str(folder), overwrite=True, **options)
    return run_folder.open_run(args)[0]


class TestOverwrite:
    def test_the_run_is_moved_aside_with_all_that_it_holds(self, finished, tmp_path, capsys):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "thesis.tex").write_text("x")
        shutil.rmtree(finished / "checkpoints")
        (finished / "checkpoints").symlink_to(tmp_path / "precious")  # as one does to keep them on a larger disk
        (finished / "notes.txt").write_text("x")
        before = files_of(finished)
        assert overwrite(finished) == "new" and [p.name for p in finished.iterdir()] == [".lock"]
        (aside,) = [path for path in finished.parent.iterdir() if path != finished]
        assert re.fullmatch(r"ckd\.old-\d{8}-\d{6}", aside.name) and str(aside) in capsys.readouterr().err
        assert files_of(aside) == before and (aside / "checkpoints" / "thesis.tex").read_text() == "x"

    def test_so_is_a_run_whose_record_is_damaged(self, finished):
        (finished / "run.json").write_text("{")
        with pytest.raises(ValueError, match=r"run\.json is damaged .* or pass --overwrite, which moves it aside"):
            run_folder.open_run(argparse.Namespace(output_dir=str(finished), overwrite=False))
        assert overwrite(finished) == "new"

    def test_a_folder_without_a_run_stays(self, finished):
        before = files_of(finished.parent.parent)
        for folder in (finished.parent, finished.parent.parent):
            with pytest.raises(ValueError, match="is not empty and holds no run"):
                overwrite(folder)
        assert files_of(finished.parent.parent) == before

    def test_a_run_that_another_process_uses_stays(self, finished):
        code = (
            "import pathlib, sys; from engine import run_folder; held = run_folder._lock(pathlib.Path(sys.argv[1])); "
            "print('held', flush=True); sys.stdin.read()"
        )
        before = files_of(finished)
        with subprocess.Popen(
            [sys.executable, "-c", code, finished], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(ValueError, match="is in use by another run"):
                overwrite(finished)
            other.communicate()
        assert files_of(finished) == before and overwrite(finished) == "new"

    @pytest.mark.parametrize("where", [".", "tb"])
    def test_the_current_folder_and_its_parents_stay(self, finished, monkeypatch, where):
        monkeypatch.chdir(finished / where)
        before = files_of(finished)
        with pytest.raises(ValueError, match="is the current folder or holds it"):
            overwrite(os.path.relpath(finished))
        assert files_of(finished) == before

    @pytest.mark.parametrize(
        "option, value",
        [
            ("teacher", ""),
            ("student", "checkpoints/step-00000007"),
            ("data_dir", ""),
            ("train_file", "CoLA.tsv"),
            ("corpus", "README.md"),
            ("corpus", "*.md"),
            ("validation_corpus", ""),
            ("teacher", "../ckd/../ckd"),
        ],
    )
    def test_what_the_command_reads_stays(self, finished, tmp_path, option, value):
        before = files_of(finished)
        (tmp_path / "link").symlink_to(finished)
        for path in (finished, tmp_path / "link"):
            with pytest.raises(ValueError, match=rf"holds what this command reads \(--{option} "):
                overwrite(path, **{option: str(finished / value)})
        with pytest.raises(ValueError, match=rf"holds what this command reads \(--{option} en="):
            overwrite(finished, **{option: ["x", f"en={finished / value}"]})
        assert files_of(finished) == before

    def test_by_the_command_line(self, finetune, world, tmp_path):
        options = ("--student", world / "bert", "--max_steps", "1", "--output_dir", tmp_path / "run")
        finetune(*options)
        before = files_of(tmp_path / "run")
        finetune(*options, "--overwrite")
        aside, new = sorted(tmp_path.glob("run*"), reverse=True)
        assert before == files_of(aside) and json.loads((new / "run.json").read_text())["status"] == "complete"
        table, left_out = records.read_runs([tmp_path])
        assert list(map(str, table["folder"])) == [str(new)] and not any(left_out.values())


class TestLock:
    @pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
    def test_a_linked_lock_is_refused_and_its_target_kept(self, tmp_path, link):
        (tmp_path / "precious").write_text("precious")
        (tmp_path / "run").mkdir()
        getattr(tmp_path / "run" / ".lock", link)(tmp_path / "precious")
        with pytest.raises(ValueError, match=r"\.lock is .*: delete"):
            run_folder.open_run(argparse.Namespace(output_dir=str(tmp_path / "run"), overwrite=False))
        assert (tmp_path / "precious").read_text() == "precious"

    @pytest.mark.parametrize("name", [".", "..", ".hidden", "a/b", "", "a b"])
    def test_a_name_that_leaves_or_hides_the_folder_is_refused(self, finetune, name, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=r"--run_name .* becomes a folder"):
            checks.check_name(name)
        if name:
            for main in (lambda *o: finetune(*o), lambda *o: distill_pretrain.main(["--corpus", "x", *o])):
                with pytest.raises(ValueError, match=r"--run_name .* becomes a folder"):
                    main("--student", "x", "--run_name", name)
        assert not list(tmp_path.iterdir())


class TestInputs:
    def test_digests_are_of_the_rows_however_they_are_stored(self, tmp_path):
        rows = {"input_ids": [[i, i + 1] for i in range(20)] + [[]], "text": [f"row {i}" for i in range(20)] + [None]}
        whole = Dataset.from_dict(rows)
        digest = run_folder.digest_rows(whole)
        whole.save_to_disk(tmp_path / "d")
        parts, twice = [whole.select(range(7)), whole.select(range(7, 21))], concatenate_datasets([whole, whole])
        for same in (
            concatenate_datasets(parts),
            whole.select([*range(21)]),
            Dataset.load_from_disk(tmp_path / "d"),
            twice.select(range(21, 42)),
            whole.with_format("torch"),
        ):
            assert run_folder.digest_rows(same) == digest
        for other in (whole.select([1, 0, *range(2, 21)]), whole.select(range(20)), whole.rename_column("text", "t")):
            assert run_folder.digest_rows(other) != digest
        parts = [Dataset.from_dict({"a": rows}) for rows in ([[1, 2], [3]], [[1], [2, 3]])]
        assert run_folder.digest_rows(parts[0]) != run_folder.digest_rows(parts[1])

    def test_digests_of_examples_are_of_what_was_read_in_any_order_and_numbering(self):
        def digest(labels, **columns):
            return run_folder.digest_examples(Dataset.from_dict(columns), labels)

        one = {"text_a": ["a", "b", "b"], "label": [0, 1, -1], "idx": [0, 1, 2]}
        same = {"idx": [7, 8, 9], "label": [0, 1, -1], "text_a": ["b", "a", "b"]}
        assert digest(("no", "yes"), **one) == digest(("yes", "no"), **same)
        assert run_folder.digest_examples(Dataset.from_dict(one).with_format("torch"), ("no", "yes")) == digest(
            ("no", "yes"), **one
        )
        for other in (
            one | {"label": [0, 0, -1]},
            one | {"text_a": ["a", "b", "c"]},
            {"text_a": ["a", "b"], "label": [0, 1], "idx": [0, 1]},
            one | {"text_b": ["", "", ""]},
        ):
            assert digest(("no", "yes"), **other) != digest(("no", "yes"), **one)
        # Numbers are labels themselves; several labels of a text, and a tag for each word, have names.
        assert digest((), text_a=["a"], label=[0.5]) != digest((), text_a=["a"], label=[0.25])
        texts = {"text_a": ["a", "b"]}
        assert digest(("x", "y", "z"), **texts, label=[[1, 0, 1], [0, 1, 0]]) == digest(
            ("z", "y", "x"), **texts, label=[[1, 0, 1], [0, 1, 0]]
        )
        assert digest(("x", "y", "z"), **texts, label=[[1, 0, 1], [0, 1, 0]]) != digest(
            ("y", "x", "z"), **texts, label=[[1, 0, 1], [0, 1, 0]]
        )
        words = {"words": [["w", "v"]], "lines": [["w O", "v B-x"]]}
        assert digest(("O", "B-x"), **words, tags=[[0, 1]]) == digest(("B-x", "O"), **words, tags=[[1, 0]])
        assert digest(("O", "B-x"), **words, tags=[[0, 1]]) != digest(("O", "B-x"), **words, tags=[[1, 1]])
        # No two rows run into each other.
        assert digest((), text_a=["a", "b"], text_b=["b", "a"]) != digest((), text_a=["a", "a"], text_b=["b", "b"])

    def test_digests_of_models_and_streamed_files_are_of_their_contents(self, tmp_path):
        torch.manual_seed(0)
        shape = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
        model = AutoModelForSequenceClassification.from_config(BertConfig(intermediate_size=8, **shape))
        digest = run_folder.digest_model(model)
        model.save_pretrained(tmp_path / "there")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "there")
        assert run_folder.digest_model(again) == digest
        again.config.hidden_act = "relu"
        assert run_folder.digest_model(again) != digest
        model.bert.embeddings.word_embeddings.weight.data[0, 0] += 1e-3
        assert run_folder.digest_model(model) != digest
        for name, text in (("a", "x" * 9), ("b", "x" * 9), ("c", "y" + "x" * 8), ("d", "x" * 8 + "y"), ("e", "x" * 8)):
            (tmp_path / name).write_text(text)
        a, *others = [run_folder.digest_files([tmp_path / name], ends=3) for name in "abcde"]
        assert others[0] == a and a not in others[1:]

    @pytest.fixture
    def interrupted(self, finetune, world, teacher, tmp_path, cut_at, monkeypatch):
        """Options of a run in tmp_path/run that was cut after its first checkpoint, all its inputs in tmp_path."""
        shutil.copytree(world / "glue" / "CoLA", tmp_path / "glue" / "CoLA")
        shutil.copytree(teacher, tmp_path / "teacher")
        shutil.copytree(world / "bert", tmp_path / "student")
        options = (
            f"--data_dir {tmp_path}/glue --teacher {tmp_path}/teacher --student {tmp_path}/student "
            "--max_train_samples 0 --max_eval_samples 0 --max_steps 3 --save_steps 1 --eval_steps 9 "
            f"--terms kd --output_dir {tmp_path}/run"
        ).split()
        cut_at(2)
        with pytest.raises(KeyboardInterrupt):
            finetune(*options)
        monkeypatch.undo()
        return options

    def test_a_run_is_not_resumed_with_inputs_that_changed(self, finetune, interrupted, tmp_path, world):
        record = (tmp_path / "run" / "run.json").read_bytes()

        def refused(said):
            with pytest.raises(ValueError, match=rf"began with other inputs \({said}\): put back .* pass --overwrite"):
                finetune(*interrupted)
            assert (tmp_path / "run" / "run.json").read_bytes() == record

        for split, what in (("train", "train"), ("dev", "validation")):
            path = tmp_path / "glue" / "CoLA" / f"{split}.tsv"
            text, times = path.read_bytes(), path.stat()
            path.write_bytes(b"\n".join(reversed(text.splitlines())) + b"\n")  # of the same size, and time
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            refused(f"the {what} examples changed")
            path.write_bytes(text)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher")
        model.classifier.bias.data += 1
        shutil.move(tmp_path / "teacher", tmp_path / "kept")
        shutil.copytree(tmp_path / "kept", tmp_path / "teacher")
        model.save_pretrained(tmp_path / "teacher")
        refused("the teacher changed")
        shutil.rmtree(tmp_path / "teacher")
        shutil.move(tmp_path / "kept", tmp_path / "teacher")
        config = BertConfig.from_pretrained(tmp_path / "student", hidden_size=32, intermediate_size=32)
        shutil.move(tmp_path / "student", tmp_path / "kept")
        shutil.copytree(tmp_path / "kept", tmp_path / "student")
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "student")
        refused("the student changed")
        # Without digests, as an earlier version of this code left it, the misfit of the checkpoint is met in one line.
        old = {k: v for k, v in json.loads(record).items() if k != "inputs"}
        run_folder.write_json(tmp_path / "run" / "run.json", old)
        with pytest.raises(training.TrainingError, match=r"step-00000001 does not fit this student .*--overwrite"):
            finetune(*interrupted)
        shutil.rmtree(tmp_path / "student")
        shutil.move(tmp_path / "kept", tmp_path / "student")
        finetune(*interrupted)
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"

    def test_training_ends_after_evaluations_without_a_better_score(self, finetune, world, tmp_path, capsys):
        """Also where it was killed after its last step; the rate is that of the whole schedule."""
        options = ["--student", world / "bert", "--max_steps", "9", "--eval_steps", "1", "--learning_rate", "1e-9"]
        options += ["--early_stopping_patience", "2", "--output_dir", tmp_path / "run"]
        finetune(*options, "--keep_optimizer")
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert (record["status"], record["steps"], record["best"]["step"]) == ("complete", 3, 1)
        assert "stopped early: 2 evaluations without a better score" in capsys.readouterr().out
        for patience, best, over in ((2, 1, True), (3, 1, False), (0, 1, False), (1, None, False)):
            state = record | {"best": best and record["best"]}
            assert training.out_of_patience(argparse.Namespace(early_stopping_patience=patience), state) == over
        run_folder.write_json(tmp_path / "run" / "run.json", record | {"status": "running"})
        finetune(*options, "--keep_optimizer")  # nothing is left to be done but to say that it is complete
        again = json.loads((tmp_path / "run" / "run.json").read_text())
        assert (again["status"], again["steps"], again["time"]["sessions"]) == ("complete", 3, 2)

    def test_a_run_knows_its_inputs_by_what_they_are(self, finetune, interrupted, tmp_path, capsys):
        """A moved folder, another way to write a path, a new name, and points more often are no other run."""
        shutil.move(tmp_path / "teacher", tmp_path / "moved")
        (tmp_path / "link").symlink_to(tmp_path / "glue")
        renamed = ["--teacher", f"{tmp_path}/moved/", "--data_dir", os.path.relpath(tmp_path / "link")]
        finetune(*interrupted, *renamed, "--run_name", "another", "--logging_steps", "1")
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert (record["status"], record["name"], record["time"]["sessions"]) == ("complete", "another", 2)
        capsys.readouterr()
        finetune(*interrupted, "--teacher", os.path.relpath(tmp_path / "moved"))
        assert capsys.readouterr().out == f"{tmp_path / 'run'}: complete already, nothing to do\n"
        with (tmp_path / "glue" / "CoLA" / "dev.tsv").open("a") as file:
            file.write("x\t1\t\tOne more.\n")
        shutil.move(tmp_path / "moved", tmp_path / "teacher")
        with pytest.raises(ValueError, match=r"began with other inputs \(the validation examples changed\)"):
            finetune(*interrupted)

    def test_names_count_where_the_record_has_no_digests_or_more_differs(self, tmp_path):
        def look(record, inputs=None, **options):
            run_folder.write_json(tmp_path / "run.json", RECORD | record)
            return run_folder.inspect_run(
                argparse.Namespace(output_dir=str(tmp_path), overwrite=False, **options), inputs
            )

        there = {"options": {"teacher": f"{tmp_path}/a", "window": 3}}
        assert look(there, teacher=f"{tmp_path}/b/../a/", window=3) == "complete"
        with pytest.raises(ValueError, match=r"other options .--teacher '.*a' there, '.*b' here"):
            look(there, teacher=f"{tmp_path}/b", window=3)
        known = there | {"inputs": {"teacher": "12"}}
        assert look(known, teacher=f"{tmp_path}/b", window=3) == "resume"
        assert look(known, {"teacher": "12"}, teacher=f"{tmp_path}/b", window=3) == "complete"
        with pytest.raises(ValueError, match="--window 3 there, 5 here"):
            look(known, {"teacher": "12"}, teacher=f"{tmp_path}/b", window=5)
        stream = {"options": {"corpus": "a/x", "streaming": True}, "inputs": {"training_text": "12"}}
        with pytest.raises(ValueError, match="--corpus 'a/x' there, 'a/y' here"):
            look(stream, corpus="a/y", streaming=True)

    def test_processes_and_options_unknown_to_an_older_record(self, tmp_path):
        args = argparse.Namespace(output_dir=str(tmp_path), overwrite=False, old=1, new=2)
        args.defaults, args.asked = {"old": 0, "new": 2}, ["old"]
        there = {"train_examples": "ab", "number_of_processes": 2, "examples_per_step": 32}
        run_folder.write_json(
            tmp_path / "run.json", RECORD | {"status": "running", "options": {"old": 1}, "inputs": there}
        )
        assert run_folder.inspect_run(args, there) == run_folder.inspect_run(args) == "resume"
        with pytest.raises(ValueError, match="of processes 2 there, 1 here; examples per step 32 there, 16 here"):
            run_folder.inspect_run(args, there | {"number_of_processes": 1, "examples_per_step": 16})
        args.new = 3  # what the default became
        assert run_folder.inspect_run(args) == "resume"
        args.asked = ["old", "new"]
        with pytest.raises(ValueError, match=r"other options \(--new 2 there, 3 here\)"):
            run_folder.inspect_run(args)


class TestWriting:
    def test_json_has_no_nan_and_no_infinity(self, tmp_path):
        run_folder.write_json(
            tmp_path / "a.json", {"a": [float("nan"), 1.5, (float("inf"), "NaN")], "b": -float("inf")}
        )
        found = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda c: pytest.fail(c))
        assert found == {"a": [None, 1.5, [None, "NaN"]], "b": None}

    @pytest.mark.parametrize(
        "error, said",
        [
            (OSError(errno.ENOSPC, "No space left on device"), "No space left on device.: is the disk full.*make room"),
            (OSError(errno.EROFS, "Read-only file system"), "Read-only file system.: What was saved.*mend that"),
            (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "is the disk full"),
            (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device.: is the disk"),
        ],
    )
    def test_errors_of_the_disk_are_called_so(self, tmp_path, error, said):
        with pytest.raises(training.TrainingError, match=said), run_folder.writing(tmp_path):
            raise error

    @pytest.mark.parametrize("error", [RuntimeError("CUDA error: device-side assert"), RuntimeError("shapes differ")])
    def test_other_errors_are_not(self, tmp_path, error):
        with pytest.raises(RuntimeError) as raised, run_folder.writing(tmp_path):
            raise error
        assert raised.value is error

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
    def test_tensorboards_file_too(self, finetune, world, tmp_path, monkeypatch):
        start = training.Log.text

        def full(log, *words):
            log.events.records._writer = log.events.file = open("/dev/full", "wb")
            start(log, *words)

        monkeypatch.setattr(training.Log, "text", full)
        with pytest.raises(training.TrainingError, match=r"could not write to .*No space left on device.: is the disk"):
            finetune("--student", world / "bert", "--max_steps", "1", "--output_dir", tmp_path / "run")


class TestStopping:
    def test_the_second_ctrl_c_ends_the_process(self, monkeypatch):
        sent, before = [], signal.getsignal(signal.SIGINT)
        monkeypatch.setattr(training.os, "kill", lambda *a: sent.append(a))
        with training.stop_signals() as asked:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert asked == [signal.SIGTERM, signal.SIGINT] and not sent
            signal.raise_signal(signal.SIGINT)
            assert sent == [(os.getpid(), signal.SIGINT)] and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == before

    def test_a_message_is_one_line_whatever_a_user_typed(self, capsys):
        def refused():
            raise ValueError("a\nb: \x1b[31mred\b: no such file")

        with pytest.raises(SystemExit) as end:
            command_line.run_script(refused)
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.endswith("error: a b: \\x1b[31mred\\x08: no such file\n")

    def test_ctrl_c_outside_the_steps_is_one_line_too(self, capsys):
        def interrupted():
            raise KeyboardInterrupt

        with pytest.raises(SystemExit) as end:
            command_line.run_script(interrupted)
        said = capsys.readouterr().err
        assert end.value.code == 130 and "stopped by Ctrl-C" in said and len(said.splitlines()) == 1

    def test_a_process_that_does_not_answer_is_named(self, monkeypatch, capsys):
        store = torch.distributed.TCPStore("localhost", 0, is_master=True)
        for name, value in {
            "WORLD_SIZE": "4",
            "RANK": "1",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(store.port),
        }.items():
            monkeypatch.setenv(name, value)
        store.set("waited/0/0", "1")
        error = RuntimeError("[unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete")
        assert command_line.lost_processes(error, patience_s=0.5) == "processes 2, 3"
        store.set("waited/0/3", "1")
        assert command_line.lost_processes(error, patience_s=0.5) == "process 2"
        assert command_line.lost_processes(RuntimeError("shapes differ")) == ""

        def main():
            raise error

        monkeypatch.setattr(command_line, "lost_processes", lambda error: "process 2")
        with pytest.raises(SystemExit):
            command_line.run_script(main)
        assert "error (process 1): process 2 did not answer within --timeout_minutes" in capsys.readouterr().err


def options_of(*words):
    return finetune_parser().parse_args(["--task", "cola", *words])


@pytest.mark.parametrize(
    "option",
    [
        "--learning_rate 1e300",
        "--learning_rate nan",
        "--num_train_epochs 1e300",
        "--max_steps 1" + 30 * "0",
        "--seed 99999999999999",
        "--per_device_train_batch_size 1000000000000",
        "--weight_decay 1e300",
        "--per_device_eval_batch_size 1000000000000",
        "--gradient_accumulation_steps 1000000000000",
        "--num_workers 1000000000",
        "--save_minutes nan",
        "--save_minutes -1",
        "--timeout_minutes 0",
        "--timeout_minutes 1e300",
        "--max_steps 1" + 5000 * "0",
        "--max_seq_length 7",
        "--max_eval_samples -1",
        "--doc_stride 1.5",
        "--student_layers 0",
        "--student_layers 100000",
        "--student_hidden -4",
        "--student_hidden 4000000",
        "--held_out 1",
        "--cache_limit_gb 0",
    ],
)
def test_absurd_values_are_one_line(option, capsys):
    with pytest.raises(SystemExit) as end:
        options_of(*option.split())
    said = capsys.readouterr().err
    assert end.value.code == 2 and len(said.splitlines()) == 1 and "number" in said and option.split()[0] in said


def test_the_timeout_reaches_the_process_group(monkeypatch):
    seen = []
    monkeypatch.setattr(training, "InitProcessGroupKwargs", lambda timeout: seen.append(timeout.total_seconds()))
    monkeypatch.setattr(training, "Accelerator", lambda **_: argparse.Namespace(device=torch.device("cpu")))
    training.make_accelerator(options_of("--timeout_minutes", "0.5"))
    assert seen == [30]


class TestPlan:
    def test_steps_are_the_slices_of_the_order(self):
        for count in range(1, 12):
            for order in (range(count), torch.randperm(count), list(range(count))):
                steps, listed = batching.Steps(order, 4), [int(i) for i in order]
                expected = [listed[i : i + 4] for i in range(0, count, 4)]
                assert list(steps) == expected and len(steps) == len(expected) and steps[-1] == expected[-1]
                assert steps[1:] == expected[1:]
                with pytest.raises(IndexError):
                    steps[len(expected)]

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_a_plan_is_made_as_it_is_used(self, num_workers):
        class Alone:
            num_processes, process_index, device = 1, 0, torch.device("cpu")

        args = argparse.Namespace(per_device_train_batch_size=2, num_workers=num_workers)
        recipe = argparse.Namespace(
            collate=lambda indices, epoch: {"x": torch.tensor(indices)}, positions={}, parts=(None,)
        )
        plan = batching.Steps(range(10**15), 4)
        batches = batching.step_batches(args, Alone, recipe, plan, 0, 10**14)
        indices, parts = next(batches)
        assert indices == [4 * 10**14 + i for i in range(4)]
        assert [batch["x"].tolist() for batch, _ in parts] == [indices[:2], indices[2:]]
        assert next(batches)[0][0] == 4 * 10**14 + 4


def test_what_is_due_where_no_number_of_steps_is_given():
    due = [step for step in range(1, 25) if training._due(step, 0, 12, 5)]
    assert due == [5, 10, 12, 17, 22, 24]
    assert [step for step in range(1, 25) if training._due(step, 7, 12, 5)] == [7, 14, 21]
    assert [step for step in range(1, 25) if training._due(step, 0, 12)] == [12, 24]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other settings")
def test_large_buffers_come_from_memory_that_is_kept():
    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")

    class Info(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_size_t) for name in names)

    training.keep_memory()
    asked = ctypes.CDLL(None).mallinfo2
    asked.restype = Info
    before = asked()
    buffer = torch.zeros(2**24)
    now = asked()
    # None is mapped for itself; meanwhile other objects of the process may have gone.
    assert now.hblkhd == before.hblkhd and now.uordblks - before.uordblks > 2**26 - 2**20
    del buffer
    assert asked().arena == now.arena  # nothing was given back


@pytest.mark.parametrize("total, ratio", [(1, 0.1), (7, 0.0), (40, 0.1), (41, 0.33), (10, 1.0)])
def test_the_rate_rises_and_falls_as_before_bit_for_bit_and_never_wastes_a_step(total, ratio):
    args = options_of("--learning_rate", "3e-4", "--warmup_ratio", str(ratio))
    warmup = math.ceil(ratio * total)
    expected = [
        3e-4 * ((step + 1) / warmup if step < warmup else (total - step) / max(1, total - warmup))
        for step in range(total)
    ]
    assert [training.learning_rate(args, step, total) for step in range(total)] == expected and min(expected) > 0


@pytest.mark.parametrize("kind", ["cosine", "constant", "constant_with_warmup", "inverse_sqrt"])
def test_other_schedules_are_those_of_transformers(kind):
    args, total, warmup = options_of("--lr_scheduler_type", kind, "--learning_rate", "1"), 30, 3
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler, rates = transformers.get_scheduler(kind, optimizer, warmup, total), []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    found = [training.learning_rate(args, step, total) for step in range(total)]
    assert found[warmup:] == pytest.approx(rates[warmup:])
    assert found[:warmup] == pytest.approx(rates[1 : warmup + 1])  # one step earlier: theirs begins with 0


# --- survival --------------------------------------------------------------------------------------------------------

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
