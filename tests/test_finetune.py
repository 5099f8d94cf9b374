"""distill_finetune.py through its command line, on tiny models: results, resume, refusals."""

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from conftest import forked
from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast

import data
import distill_finetune
import losses
import models
import training
from encoders import model_outputs
from engine import checkpoints, run_folder, teacher_cache
from tasks import kinds, readers

CKD = ("--student_layers", "2", "--terms", "ckd")


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def scalars(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.mark.whole
def test_a_distilled_student_and_all_that_belongs_to_it(finetune, teacher, tmp_path):
    folder = tmp_path / "run"
    finetune("--teacher", teacher, *CKD, "--window", "5", "--output_dir", folder, "--do_predict")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_hidden_layers == 2 and model.config.label2id == {"unacceptable": 0, "acceptable": 1}
    assert AutoTokenizer.from_pretrained(folder)("the dog runs .")["input_ids"]
    card = ModelCard.load(folder / "README.md")
    assert "arXiv:2109.08359" in card.text and not ModelCardData(**card.data.to_dict()).base_model
    (result,) = card.data.eval_results
    assert (result.task_type, result.metric_type) == ("text-classification", "matthews_correlation")
    assert (result.dataset_name, result.dataset_type, result.dataset_split) == ("CoLA", "cola", "validation")
    assert result.metric_value == record_of(folder)["best"]["metrics"]["matthews_correlation"]
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-classification"
    record = record_of(folder)
    assert record["status"] == "complete" and record["steps"] == 12 and record["name"] == "ckd"
    assert record["options"]["terms"] == {
        "logits": 1.0,
        "wr_pair": 9.0,
        "wr_triple": 90.0,
        "ltr_pair": 9.0,
        "ltr_triple": 90.0,
    }
    assert [entry["epoch"] for entry in record["history"]] == [1.0, 2.0]
    assert record["teacher"]["flops_per_sequence"] > record["model"]["flops_per_sequence"] > 0
    assert set(record["latency"]["speedup"]) == {"1", "32"} and record["time"]["train_s"] > 0
    assert record["hardware"]["cpu"] and record["versions"]["torch"] == torch.__version__
    events = scalars(folder)
    tags = set(events.Tags()["scalars"])
    assert {f"loss/{name}" for name in ("total", *losses.PRESETS["ckd"])} <= tags
    assert {"optim/lr", "optim/grad_norm", "perf/examples_per_s", "perf/tokens_per_s", "perf/max_mem_gb"} <= tags
    assert "eval/matthews_correlation" in tags
    assert events.Tags()["images"] == ["relations/words", "relations/layers"]
    unweighted, weighted = (events.Scalars(tag) for tag in ("loss/wr_triple", "loss_weighted/wr_triple"))
    assert weighted[0].value == pytest.approx(90 * unweighted[0].value)
    assert [e.step for e in unweighted] == [2, 4, 6, 8, 10, 12]
    lines = (folder / "CoLA.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 65
    assert {line.split("\t")[1] for line in lines[1:]} <= {"0", "1"}


def test_curves_begin_at_step_0_and_end_with_a_whole_interval(finetune, world, tmp_path, cut_at, monkeypatch):
    """Also of a run that was interrupted before its first checkpoint and begins anew."""
    options = ("--student", world / "bert", "--num_train_epochs", "1")
    finetune(*options, "--logging_steps", "1", "--output_dir", tmp_path / "every")
    cut_at(6)
    with pytest.raises(KeyboardInterrupt):
        finetune(*options, "--logging_steps", "4", "--output_dir", tmp_path / "run")
    monkeypatch.undo()
    finetune(*options, "--logging_steps", "4", "--output_dir", tmp_path / "run")
    every, points = (
        [(e.step, e.value) for e in scalars(tmp_path / name).Scalars("loss/total")] for name in ("every", "run")
    )
    means = [sum(value for step, value in every if last - 4 < step <= last) / 4 for last in (4, 6)]
    assert points == [(4, pytest.approx(means[0])), (6, pytest.approx(means[1]))]
    assert [e.step for e in scalars(tmp_path / "run").Scalars("eval/matthews_correlation")] == [0, 6]
    assert [entry["step"] for entry in record_of(tmp_path / "run")["history"]] == [6]


def test_the_hparams_page_finds_runs_their_options_and_the_best_score(
    finetune, teacher, world, tmp_path, cut_at, monkeypatch
):
    """As the page itself reads them: a finished run that was interrupted once, and one that was given up."""
    options = ("--max_steps", "3", "--save_steps", "1", "--eval_steps", "1", "--output_dir")
    for more in (
        ("--student", world / "bert", *options, tmp_path / "tb" / "finetune"),
        ("--teacher", teacher, *CKD, *options, tmp_path / "tb" / "ckd"),
    ):
        cut_at(3)
        with contextlib.suppress(KeyboardInterrupt):
            finetune(*more)
    monkeypatch.undo()
    finetune("--student", world / "bert", *options, tmp_path / "tb" / "finetune")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "tb"))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = Context(base_plugin.TBContext(data_provider=provider))
    every = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    request = api_pb2.ListSessionGroupsRequest(slice_size=9, allowed_statuses=every)
    found = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    rows = {row.name: row for row in found}
    assert {name: row.sessions[0].status for name, row in rows.items()} == {
        "finetune": api_pb2.STATUS_SUCCESS,
        "ckd": api_pb2.STATUS_UNKNOWN,
    }
    best = {v.name.tag: v.value for v in rows["finetune"].metric_values}["best/score"]
    assert best == pytest.approx(record_of(tmp_path / "tb" / "finetune")["best"]["score"])
    values = {name: row.hparams for name, row in rows.items()}
    assert values["ckd"]["terms/wr_triple"].number_value == 90 and values["ckd"]["run_name"].string_value == "ckd"
    assert values["finetune"]["learning_rate"].number_value == 5e-5 and "output_dir" not in values["ckd"]
    whole = context.experiment_from_metadata(
        RequestContext(), "", True, context.hparams_metadata(RequestContext(), ""), None
    )
    # Its parallel view leaves out runs that lack one of the first five metrics.
    first = {info.name.tag for info in list(whole.metric_infos)[:5]}
    assert all(first <= {value.name.tag for value in row.metric_values} for row in rows.values()) and len(first) == 5
    infos = whole.hparam_infos
    differ = {info.name for info in infos if info.differs}
    assert differ == {"run_name", "temperature", *(f"terms/{name}" for name in losses.PRESETS["ckd"])}


def test_zero_weights_are_not_computed(finetune, teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(losses.TERMS, "wr_triple", lambda *_: pytest.fail("computed a term of weight 0"))
    finetune("--teacher", teacher, *CKD, "wr_triple=0", "--max_steps", "1", "--output_dir", tmp_path / "run")


def test_a_teacher_with_other_label_names_in_another_order_gives_the_same_student(
    finetune, teacher, tmp_path, capsys, monkeypatch
):
    """Also from a cache, with its head copied into the student; a student starts from such a model, too."""
    monkeypatch.setattr(teacher_cache, "FOLDER", tmp_path / "cache")
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter.flip(0))
    for folder, names in (("other", ("Acceptable", "ungrammatical")), ("odd", ("good", "bad"))):
        model.config.id2label, model.config.label2id = dict(enumerate(names)), dict(zip(names, (0, 1), strict=True))
        model.save_pretrained(tmp_path / folder)
        AutoTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / folder)
    options = ("--student_layers", "2", "--terms", "kd", "--hard_weight", "0.5", "--max_steps", "3", "--output_dir")
    finetune("--teacher", teacher, *options, tmp_path / "own")
    finetune("--teacher", tmp_path / "other", *options, tmp_path / "a")
    assert "its labels Acceptable, ungrammatical are taken as acceptable, unacceptable" in capsys.readouterr().err
    finetune("--teacher", tmp_path / "odd", "--label_map", "bad=0", "good=acceptable", *options, tmp_path / "b")
    expected = load_file(tmp_path / "own" / "model.safetensors")
    for folder in "ab":
        found = load_file(tmp_path / folder / "model.safetensors")
        assert all(torch.equal(found[k], expected[k]) for k in expected)
        assert json.loads((tmp_path / folder / "config.json").read_text())["id2label"]["0"] == "unacceptable"
    for name, source in (("c", teacher), ("d", tmp_path / "other")):
        finetune("--teacher", source, "--cache_teacher", *options, tmp_path / name)
    cached = [load_file(tmp_path / name / "model.safetensors") for name in "cd"]
    assert all(torch.equal(cached[0][k], cached[1][k]) for k in expected)
    said = r"trained on labels \['good', 'bad'\].*--label_map good=unacceptable"
    with pytest.raises(ValueError, match=said):
        finetune("--teacher", tmp_path / "odd", *options, tmp_path / "run")
    with pytest.raises(ValueError, match=r"--label_map names \['x', 'y'\], --teacher .* has labels \['good', 'bad'\]"):
        finetune("--teacher", tmp_path / "odd", "--label_map", "x=0", "y=1", *options, tmp_path / "run")
    with pytest.raises(ValueError, match="--label_map is for the names of a teacher's labels"):
        finetune("--student", tmp_path / "odd", "--label_map", "x=0", "y=1", "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


STAGES = (
    "--stages",
    "wr_pair",
    "wr_triple=5",
    "hidden_mse=1",
    "0.25",
    "logits",
    "hard=1..0",
    "0.5",
    "logits=1..2",
    "hard=0.5",
    "attention_mse=1",
)


def test_stages_train_what_they_name_and_resume_bit_for_bit(finetune, teacher, tmp_path, cut_at, monkeypatch):
    """Stopped in the first stage, where the head has no gradient yet, and in the second."""
    computed = dict.fromkeys(losses.TERMS, 0)
    for name, term in losses.TERMS.items():

        def counted(*arguments, name=name, term=term):
            computed[name] += 1
            return term(*arguments)

        counted.needs = losses.needs_of(name)
        monkeypatch.setitem(losses.TERMS, name, counted)
    options = (
        "--teacher",
        teacher,
        *CKD,
        "--student_hidden",
        "24",
        *STAGES,
        *"--save_steps 1 --eval_steps 2 --logging_steps 1".split(),
    )
    finetune(*options, "--output_dir", tmp_path / "whole")
    assert {name: n for name, n in computed.items() if n} == {
        "wr_pair": 3,
        "wr_triple": 3,
        "hidden_mse": 3,
        "logits": 9,
        "attention_mse": 6,
    }
    for call in (3, 3):
        cut_at(call)
        with pytest.raises(KeyboardInterrupt):
            finetune(*options, "--output_dir", tmp_path / "cut")
    finetune(*options, "--output_dir", tmp_path / "cut")
    for name in ("model.safetensors", "checkpoints/step-00000012/model.safetensors"):
        a, b = (load_file(tmp_path / folder / name) for folder in ("whole", "cut"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    record, events = record_of(tmp_path / "whole"), scalars(tmp_path / "whole")
    assert [entry["step"] for entry in record["history"]] == [2, 4, 6, 8, 10, 12] and record["best"]["step"] >= 4
    points = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    assert [points["weight/hard"][step] for step in (3, 4, 6, 7)] == pytest.approx([0, 1, 1 / 3, 0.5])
    assert [points["weight/wr_triple"][step] for step in (1, 3, 4, 12)] == [5, 5, 0, 0]
    assert set(points["loss/wr_pair"]) == {1, 2, 3} and set(points["loss/hard"]) == set(range(4, 13))
    assert not {"weight/pkd", "weight/ltr_pair", "loss/ltr_pair"} & set(points)
    for step, total in points["loss/total"].items():
        parts = [values[step] for tag, values in points.items() if tag.startswith("loss_weighted/") and step in values]
        assert sum(parts) == pytest.approx(total, rel=1e-5), step
        for name in ("logits", "wr_triple", "hard"):
            if step in points[f"loss/{name}"]:
                weighted = points[f"weight/{name}"][step] * points[f"loss/{name}"][step]
                assert points[f"loss_weighted/{name}"][step] == pytest.approx(weighted, rel=1e-5)


def test_a_head_that_was_not_trained_makes_no_best_score(finetune, teacher, tmp_path, monkeypatch):
    scores = iter([0.9, 0.8, 0.7, 0.2, 0.3, 0.25])  # before any step, then each 2 of 10; the head's stage begins at 4
    monkeypatch.setattr("metrics.score", lambda *_: next(scores, 1.0))
    options = ("--teacher", teacher, *CKD, "--max_steps", "10", "--eval_steps", "2", "--output_dir", tmp_path / "run")
    finetune(*options, "--stages", "wr_pair", "0.4", "logits")
    record = record_of(tmp_path / "run")
    assert (record["best"]["step"], record["best"]["score"], record["last"]["score"]) == (8, 0.3, 0.25)
    assert "step 8:" in (tmp_path / "run" / "README.md").read_text()


def stored(folder):
    """The weights of a folder by name; transformers 5.4 still writes gamma and beta for weight and bias."""
    found = load_file(folder / "model.safetensors")
    return {name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): x for name, x in found.items()}


def test_the_last_model_is_kept_where_it_is_asked_for(finetune, world, tmp_path, monkeypatch):
    scores = iter([0.9, 0.5, 0.1])
    monkeypatch.setattr("metrics.score", lambda *_: next(scores, 1.0))
    finetune("--student", world / "bert", "--save", "last", "--output_dir", tmp_path / "run")
    kept, last = stored(tmp_path / "run"), stored(next((tmp_path / "run" / "checkpoints").iterdir()))
    assert all(torch.equal(kept[k], last[k]) for k in kept)
    record = record_of(tmp_path / "run")
    assert record["best"]["step"] == 6 and record["last"]["step"] == 12
    assert "step 12:" in (tmp_path / "run" / "README.md").read_text()


def test_the_best_and_the_last_model_are_kept_where_both_are_asked_for(finetune, world, tmp_path, monkeypatch):
    scores = iter([0.9, 0.5, 0.1, 0.9, 0.5, 0.1])
    monkeypatch.setattr("metrics.score", lambda *_: next(scores, 1.0))
    run = tmp_path / "run"
    options = ("--student", world / "bert", "--save", "both", "--output_dir", run)
    finetune(*options)
    kept, last, end = map(stored, (run, run / "last", next((run / "checkpoints").iterdir())))
    assert all(torch.equal(end[k], last[k]) for k in end) and any(not torch.equal(kept[k], last[k]) for k in kept)
    assert "step 6:" in (run / "README.md").read_text() and "step 12:" in (run / "last" / "README.md").read_text()


def test_a_best_score_of_zero_or_below_is_still_saved(finetune, world, tmp_path, monkeypatch):
    scores = iter([0.9, -0.3, -0.2, -0.4])  # the first before any step, of no candidate
    monkeypatch.setattr("metrics.score", lambda *_: next(scores, 1.0))
    finetune("--student", world / "bert", "--num_train_epochs", "3", "--output_dir", tmp_path / "run")
    record = record_of(tmp_path / "run")
    assert record["best"]["score"] == -0.2 and record["last"]["score"] == -0.4
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_best_constant_answer_equals_scikit_learns_scores():
    """All 0 or all 1, over both dev sets of mnli together; no other kind has one."""
    labels = np.random.default_rng(0).choice(3, 90, p=[0.2, 0.3, 0.5]).tolist()
    for task, own in (("cola", [0, 1, 1, 1]), ("mrpc", [0, 0, 0, 1]), ("rte", [0, 0, 0, 1]), ("mnli", labels)):
        kind = kinds.Classification(data.TASKS[task])
        halves = (
            {"validation": own}
            if task != "mnli"
            else {"validation_matched": own[:50], "validation_mismatched": own[50:]}
        )
        found = kinds.constant_answer(kind, {k: Dataset.from_dict({"labels": v}) for k, v in halves.items()}, None)
        always = {
            "cola": lambda v, c: matthews_corrcoef(v, [c] * len(v)),
            "mrpc": lambda v, c: (accuracy_score(v, [c] * len(v)) + f1_score(v, [c] * len(v), zero_division=0)) / 2,
        }.get(task, lambda v, c: accuracy_score(v, [c] * len(v)))
        best = max(np.mean([always(v, c) for v in halves.values()]) for c in set(own))
        assert found[1] == pytest.approx(best) and found[0] in kind.task.labels
    assert kinds.constant_answer(kinds.Regression(data.TASKS["stsb"]), {}, None) is None


def test_numbers_of_own_data_are_predicted_with_all_their_digits():
    logits = torch.tensor([[0.53812345], [0.53812351], [-1e-7], [7.25]])
    own = kinds.Regression(data.TASKS["custom"]).words(logits, None)
    assert [torch.tensor(float(word)) for word in own] == list(logits[:, 0])
    assert kinds.Regression(data.TASKS["stsb"]).words(logits, None) == ["0.538", "0.538", "0.000", "5.000"]


def test_a_student_deeper_than_its_teacher_is_named(finetune, teacher, tmp_path, capsys):
    finetune("--teacher", teacher, "--student_layers", 5, "--max_steps", 1, "--output_dir", tmp_path)
    assert "the student has 5 layers and its teacher 4: several layers learn from" in capsys.readouterr().out


def test_the_best_model_is_kept_not_the_last(finetune, world, tmp_path, monkeypatch):
    scores, kept = iter([0.9, 0.5, 0.1]), []
    monkeypatch.setattr("metrics.score", lambda *_: next(scores, 1.0))
    save = training.save_model
    monkeypatch.setattr(training, "save_model", lambda *a: (kept.append(1), save(*a))[1])
    finetune("--student", world / "bert", "--output_dir", tmp_path / "run")
    best, last = stored(tmp_path / "run"), stored(next((tmp_path / "run" / "checkpoints").iterdir()))
    assert len(kept) == 1 and any(not torch.equal(best[k], last[k]) for k in best)


def test_the_best_model_is_chosen_on_what_is_held_out(finetune, world, tmp_path, monkeypatch):
    scores = iter([0.9, 0.9, 0.4, 0.1, 0.3, 0.8])  # held out and dev set in turn: before training, epoch 1, epoch 2
    monkeypatch.setattr("metrics.score", lambda *_: next(scores, 1.0))
    finetune("--student", world / "bert", "--held_out", "0.25", "--output_dir", tmp_path / "run")
    record = record_of(tmp_path / "run")
    assert (record["best"]["step"], record["best"]["score"]) == (5, 0.1)  # 72 of 96 examples, in steps of 16
    assert record["best"]["metrics"]["held_out/score"] == 0.4 and record["last"]["score"] == 0.8


@pytest.mark.parametrize(
    "trained_with, said",
    [
        ({"held_out": 0.1, "max_train_samples": 0}, ""),
        ({}, ""),
        (None, ""),
        ("damaged", ""),
        ({"held_out": 0.0, "max_train_samples": 0}, "trained with --held_out 0 and may have seen"),
        ({"held_out": 0.1, "max_train_samples": 96}, "trained with --max_train_samples 96 and may have seen"),
    ],
)
def test_a_teacher_that_may_have_seen_what_is_held_out_is_named(tmp_path, trained_with, said):
    if trained_with is not None:
        record = {"options": trained_with, "status": "complete", "stage": "finetune"}
        (tmp_path / "run.json").write_text(json.dumps(record))
    args = argparse.Namespace(teacher=str(tmp_path), held_out=0.1, max_train_samples=0)
    assert (said in distill_finetune.taught_more(args)) and bool(said) == bool(distill_finetune.taught_more(args))
    assert distill_finetune.taught_more(argparse.Namespace(teacher=None, held_out=0.1, max_train_samples=0)) == ""


def test_what_is_held_out_is_not_trained_on_and_is_the_same_for_every_seed(world, tmp_path):
    found = []
    for seed in ("1", "2"):
        args = distill_finetune.build_parser().parse_args(
            f"--task cola --data_dir {world}/glue --student {world}/bert --held_out 0.1 --seed {seed}".split()
        )
        distill_finetune.check_args(args)
        _, kind, splits, *_ = distill_finetune.load_everything(args)
        parts = [
            [tuple(row) for row in split["input_ids"]]
            for split in (splits["train"], kind.held_out.splits["train"], kind.held_out.splits["validation"])
        ]
        whole = [
            tuple(row)
            for row in data.tokenize(
                data.load_examples(args, readers.Skipped(False))[1]["train"],
                models.load_tokenizer(world / "bert"),
                args.max_seq_length,
            )["input_ids"]
        ]
        assert parts[0] == parts[1] and len(parts[2]) == round(0.1 * len(whole))
        assert sorted(parts[0] + parts[2]) == sorted(whole)
        found.append(parts[2])
    assert found[0] == found[1]


def test_text_without_labels_cannot_choose():
    args, texts = argparse.Namespace(held_out=0.5), {"text_a": ["a", "b", "c", "d"], "label": [-1] * 4}
    with pytest.raises(ValueError, match="--held_out needs labels to choose by"):
        distill_finetune.hold_out(args, {"train": datasets.Dataset.from_dict(texts)})


def test_too_little_to_choose_by_is_refused(finetune, world, tmp_path):
    with pytest.raises(ValueError, match=r"--held_out 0\.001 of 96 training examples leaves 0 to choose by"):
        finetune("--student", world / "bert", "--held_out", "0.001", "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fractional_epochs_end_where_the_schedule_ends(finetune, world, tmp_path):
    options = ("--num_train_epochs", "1.5", "--logging_steps", "1")
    finetune("--student", world / "bert", *options, "--output_dir", tmp_path / "r")
    assert record_of(tmp_path / "r")["steps"] == 9
    rates = [e.value for e in scalars(tmp_path / "r").Scalars("optim/lr")]
    assert rates[0] == pytest.approx(5e-5) and rates[-1] == pytest.approx(5e-5 / 8) and rates == sorted(rates)[::-1]


@pytest.fixture(scope="module")
def whole():
    """Filled by the first test that needs it with the folder of a run that was never interrupted."""
    return {}


def test_a_best_model_that_was_saved_after_the_last_checkpoint_keeps_its_score(finetune, teacher, tmp_path, cut_at):
    """Another device may give it another score the second time; the folder holds the model of the first."""
    options = ("--teacher", teacher, *CKD, "--save_steps", "2", "--max_steps", "6", "--output_dir", tmp_path)
    cut_at(4)
    with pytest.raises(KeyboardInterrupt):
        finetune(*options)
    path, model = tmp_path / "run.json", tmp_path / "model.safetensors"
    best = {"step": 3, "epoch": 0.5, "score": 0.99, "metrics": {"matthews_correlation": 0.99}, "loss": 0.1}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best": best}))
    model.write_bytes(b"the model of step 3")
    finetune(*options)
    record = json.loads(path.read_text())
    assert record["status"] == "complete" and record["best"] == best and record["last"]["step"] == 6
    assert model.read_bytes() == b"the model of step 3"


class TestInterruption:
    OPTIONS = (
        "--save_steps 2 --eval_steps 3 --gradient_accumulation_steps 2 "
        "--per_device_train_batch_size 6 --num_train_epochs 1.5"
    ).split()

    @pytest.mark.parametrize("at", ["step", "evaluation", "checkpoint", "sigterm", "ctrl-c"])
    def test_a_resumed_run_has_the_same_weights_bit_for_bit(
        self, finetune, teacher, tmp_path, monkeypatch, whole, at, capsys
    ):
        options = ("--teacher", teacher, *CKD, *self.OPTIONS)
        if not whole:
            finetune(*options, "--output_dir", tmp_path / "whole")
            whole.update(folder=tmp_path / "whole")
        folder, calls = tmp_path / "cut", []

        def cut(function, call):
            def wrapped(*args, **kwargs):
                calls.append(1)
                if len(calls) == call and at in ("sigterm", "ctrl-c"):
                    os.kill(os.getpid(), signal.SIGTERM if at == "sigterm" else signal.SIGINT)
                elif len(calls) == call:
                    raise KeyboardInterrupt
                return function(*args, **kwargs)

            return wrapped

        where, call = {
            "step": ("training_step", 6),
            "evaluation": ("evaluate", 2),
            "checkpoint": ("write_json", 6),
            "sigterm": ("training_step", 7),
            "ctrl-c": ("training_step", 7),
        }[at]
        owner = run_folder if at == "checkpoint" else training
        monkeypatch.setattr(owner, where, cut(getattr(owner, where), call))
        with pytest.raises((KeyboardInterrupt, SystemExit)) as end:
            finetune(*options, "--output_dir", folder)
        if at in ("sigterm", "ctrl-c"):
            assert end.value.code == (143 if at == "sigterm" else 130)
            said = {"sigterm": "SIGTERM", "ctrl-c": "Ctrl-C"}[at]
            assert f"stopped by {said}: saved at step 7, the same command" in capsys.readouterr().err
            assert checkpoints.newest_checkpoint(folder).name == "step-00000007"
        assert record_of(folder)["status"] == "running"
        monkeypatch.undo()
        finetune(*options, "--output_dir", folder)
        for name in ("model.safetensors", "checkpoints/step-00000012/model.safetensors"):
            a, b = load_file(whole["folder"] / name), load_file(folder / name)
            assert all(torch.equal(a[k], b[k]) for k in a), name
        first, second = record_of(whole["folder"]), record_of(folder)
        assert first["history"] == second["history"] and second["time"]["sessions"] == 2

    def test_a_checkpoint_by_the_clock_changes_nothing(self, finetune, teacher, tmp_path, monkeypatch, whole):
        if not whole:
            finetune("--teacher", teacher, *CKD, *self.OPTIONS, "--output_dir", tmp_path / "whole")
            whole.update(folder=tmp_path / "whole")
        saved, save = [], training.save_checkpoint
        monkeypatch.setattr(training, "save_checkpoint", lambda *a: (saved.append(a[2]["step"]), save(*a)))
        options = (*self.OPTIONS, "--save_steps", "100", "--save_minutes", "1e-9", "--output_dir", tmp_path / "run")
        finetune("--teacher", teacher, *CKD, *options)
        assert saved == list(range(1, 13))
        names = ("model.safetensors", "checkpoints/step-00000012/model.safetensors")
        assert all((tmp_path / "run" / name).read_bytes() == (whole["folder"] / name).read_bytes() for name in names)
        points = [
            [(e.step, e.value) for e in scalars(folder).Scalars("loss/total")]
            for folder in (tmp_path / "run", whole["folder"])
        ]
        assert points[0] == points[1]

    def test_a_damaged_checkpoint_is_named_and_skipped(self, finetune, world, tmp_path, capsys):
        options = (
            f"--student {world}/bert --save_steps 2 --keep_checkpoints 3 --keep_optimizer --output_dir {tmp_path}/r"
        ).split()
        finetune(*options)
        expected = load_file(tmp_path / "r" / "checkpoints" / "step-00000012" / "model.safetensors")
        newest = tmp_path / "r" / "checkpoints" / "step-00000012" / "optimizer.bin"
        newest.write_bytes(newest.read_bytes()[:-10])
        record = record_of(tmp_path / "r")
        run_folder.write_json(tmp_path / "r" / "run.json", record | {"status": "running"})
        finetune(*options)
        assert "step-00000012 is damaged (optimizer.bin changed): skipped" in capsys.readouterr().err
        got = load_file(tmp_path / "r" / "checkpoints" / "step-00000012" / "model.safetensors")
        assert all(torch.equal(got[k], expected[k]) for k in got)


def test_a_non_finite_loss_is_named_and_leaves_the_checkpoint(finetune, teacher, tmp_path, monkeypatch):
    calls = []

    def term(student, teacher, batch, args):
        calls.append(1)
        return student.logits.sum() * (float("nan") if len(calls) == 5 else 0.0)

    monkeypatch.setitem(losses.TERMS, "wr_pair", term)
    with pytest.raises(training.TrainingError, match=r"non-finite loss: wr_pair at step 5 \(examples \d+, "):
        finetune("--teacher", teacher, *CKD, "--save_steps", "3", "--output_dir", tmp_path / "run")
    assert checkpoints.newest_checkpoint(tmp_path / "run").name == "step-00000003"


@pytest.mark.parametrize("at", [3, 12])
def test_non_finite_weights_are_neither_scored_nor_saved(finetune, world, tmp_path, monkeypatch, at):
    step, calls = training.training_step, []

    def ruin(args, accelerator, recipe, model, *rest):
        values = step(args, accelerator, recipe, model, *rest)
        calls.append(1)
        if len(calls) == at:  # after the loss of this step was computed
            model.bert.pooler.dense.weight.data[0, 0] = float("nan" if at == 3 else "inf")
        return values

    monkeypatch.setattr(training, "training_step", ruin)
    with pytest.raises(training.TrainingError, match=rf"weights: bert.pooler.dense.weight after step {at}; the last"):
        options = ("--eval_steps", "3", "--save_steps", "1", "--output_dir", tmp_path / "run")
        finetune("--student", world / "bert", *options)
    assert checkpoints.newest_checkpoint(tmp_path / "run").name == f"step-{at - 1:08d}"
    assert [entry["step"] for entry in record_of(tmp_path / "run")["history"]] == list(range(3, at, 3))


def test_a_score_that_is_not_defined_is_null_and_never_the_best(finetune, world, tmp_path, monkeypatch):
    given = itertools.chain([0.9, float("nan"), -0.2], itertools.repeat(float("nan")))
    monkeypatch.setattr("metrics.compute_metrics", lambda *_: {"matthews_correlation": next(given)})
    finetune("--student", world / "bert", "--num_train_epochs", "3", "--output_dir", tmp_path / "run")
    text = (tmp_path / "run" / "run.json").read_text()
    record = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    assert [entry["score"] for entry in record["history"]] == [None, -0.2, None] and record["best"]["step"] == 12
    assert record["last"]["metrics"] == {"matthews_correlation": None}


def test_a_long_epoch_is_evaluated_before_its_end(finetune, world, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LONG_EPOCH", 4)
    finetune("--student", world / "bert", "--output_dir", tmp_path / "run")
    assert [entry["step"] for entry in record_of(tmp_path / "run")["history"]] == [4, 6, 10, 12]


class TestRunFolder:
    def test_a_finished_run_that_is_older_than_an_option_is_left_alone(self, finetune, teacher, tmp_path, capsys):
        options = ("--teacher", teacher, *CKD, "--max_steps", "2", "--output_dir", tmp_path / "run")
        finetune(*options)
        record, newer = record_of(tmp_path / "run"), ("stages", "save", "label_map")
        assert record["asked"] == sorted(
            [
                "teacher",
                "student_layers",
                "max_steps",
                "output_dir",
                "data_dir",
                "task",
                "max_train_samples",
                "max_eval_samples",
                "num_train_epochs",
                "per_device_train_batch_size",
                "max_seq_length",
                "logging_steps",
                "temperature",
                "terms",
            ]
        )
        record["options"] = {k: v for k, v in record["options"].items() if k not in newer}
        del record["asked"]
        run_folder.write_json(tmp_path / "run" / "run.json", record)
        finetune(*options)
        assert "complete already" in capsys.readouterr().out
        for more, said in (
            (("--save", "last"), "--save 'best' there, 'last' here"),
            (("--stages", "wr_pair", "0.5", "logits"), "--stages None there, \\[\\[0.0, "),
            (("--label_map", "a=0", "b=1"), "--label_map None there"),
        ):
            with pytest.raises(ValueError, match=said):
                finetune(*options, *more)

    def test_a_finished_run_is_not_run_again_nor_overwritten_by_other_options(self, finetune, world, tmp_path, capsys):
        options = ("--student", world / "bert", "--max_steps", "1", "--output_dir", tmp_path / "run")
        finetune(*options)
        before = (tmp_path / "run" / "run.json").read_bytes()
        finetune(*options)
        assert "complete already" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"--learning_rate 5e-05 there, 0.001 here.*--overwrite"):
            finetune(*options, "--learning_rate", "1e-3")
        assert (tmp_path / "run" / "run.json").read_bytes() == before
        finetune(*options, "--learning_rate", "1e-3", "--overwrite")
        assert record_of(tmp_path / "run")["options"]["learning_rate"] == 1e-3

    def test_a_finished_run_keeps_its_weights_and_drops_its_optimiser(self, finetune, world, tmp_path, capsys):
        folder = tmp_path / "run"
        options = (
            f"--student {world}/bert --max_steps 2 --save_steps 1 --keep_checkpoints 2 --output_dir {folder}"
        ).split()
        finetune(*options)
        for path in (folder / "checkpoints").iterdir():
            assert not checkpoints.damage(path, "model.safetensors") and not (path / "optimizer.bin").exists()
        weights = (folder / "checkpoints" / "step-00000002" / "model.safetensors").read_bytes()
        run_folder.write_json(folder / "run.json", record_of(folder) | {"status": "running"})
        finetune(*options)  # as where somebody wants it anew: it cannot go on from there
        said = capsys.readouterr().err
        assert said.count("(of a finished run, without its optimiser): skipped") == 2
        assert (folder / "checkpoints" / "step-00000002" / "model.safetensors").read_bytes() == weights

    def test_a_folder_with_other_things_in_it_is_refused(self, finetune, world, tmp_path):
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(ValueError, match="not empty and holds no run"):
            finetune("--student", world / "bert", "--output_dir", tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_second_run_on_the_same_folder_is_refused_while_the_first_lives(self, finetune, world, tmp_path):
        folder = tmp_path / "run"
        code = (
            "import pathlib, time; from engine import run_folder;"
            f"p = pathlib.Path({str(folder)!r}); p.mkdir(); h = run_folder._lock(p);"
            "import os; child = os.fork(); print(child, flush=True) if child else None; time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
            child = int(holder.stdout.readline())  # as the workers of a DataLoader are
            options = ("--student", world / "bert", "--max_steps", "1", "--output_dir", folder)
            with pytest.raises(ValueError, match=rf"in use by another run .process {holder.pid} on "):
                finetune(*options)
            holder.kill()
            holder.wait()
        try:
            finetune(*options)
        finally:
            os.kill(child, signal.SIGKILL)


BAD = [
    (["--terms", "wr_pears=1"], "unknown term 'wr_pears'"),
    (["--terms", "cdk"], "neither a preset"),
    (["--terms", "ckd", "logits=-1"], "number >= 0"),
    (["--terms", "kd", "logits=0"], "every weight is 0"),
    (["--window", "20"], "window 20 must be odd"),
    (["--window", "many"], "odd number or 'all'"),
    (["--distance", "l2"], "criterion 'kl' needs distance 'cosine'"),
    (["--layer_map", "diagonal"], "unknown layer map 'diagonal'"),
    (["--layer_map", "0:0,2:9"], "pair 2:9 is outside hidden states"),
    (["--layer_map", "2:4"], "ltr_pair relates 2 layers but only 1"),
    (["--temperature", "0"], "must be positive"),
    (["--hard_weight", "-1"], "must be 0 or more"),
    (["--data_dir", "/nowhere"], "'/nowhere' is not a folder"),
    (["--teacher", "/nowhere/model"], "'/nowhere/model' is not a folder: check the path"),
    (["--student_hidden", "30"], "not a multiple of 4 heads"),
    (["--student_hidden", "64", "--student_init", "first"], "use --student_init random"),
    (["--max_seq_length", "4000"], "exceeds the model's 384 positions"),
    (["--train_file", "x.csv"], "--train_file is for --task custom"),
    (["--run_name", "../up"], "becomes a folder"),
    (["--run_name", ".."], "becomes a folder"),
    (["--task", "ax"], "--task ax is prediction only"),
    (["--stages", "wr_pair", "0.5", "ltr_pair"], "trains no task head"),
    (["--stages", "wr_pair", "0.99", "logits"], "the stage from 0.99 on has none of 12 steps"),
]


@pytest.mark.parametrize("options, said", BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_is_one_line_before_anything_is_written(finetune, teacher, tmp_path, options, said):
    with pytest.raises(ValueError, match=said) as error:
        finetune("--teacher", teacher, "--student_layers", "2", "--output_dir", tmp_path / "run", *options)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--terms", "ckd"),
        ("--layer_map", "uniform"),
        ("--temperature", "1"),
        ("--window", "21"),
        ("--hard_weight", "0"),
        ("--no_embeddings",),
        ("--distance", "cosine"),
        ("--pair_criterion", "kl"),
        ("--triple_criterion", "mse"),
        ("--cache_teacher",),
        ("--stages", "logits"),
    ],
)
def test_options_of_distilling_without_a_teacher_are_refused(finetune, world, tmp_path, options):
    """Also at their defaults: the run would train on the labels alone and say ckd."""
    with pytest.raises(ValueError, match=f"^{options[0]} .*: pass --teacher"):
        finetune("--student", world / "bert", "--output_dir", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_models_that_cannot_go_together_are_refused(finetune, teacher, world, tmp_path):
    with pytest.raises(ValueError, match=r"carries no trained task head .*distill_finetune.py --task cola"):
        finetune("--teacher", world / "bert", "--student_layers", "2", "--output_dir", tmp_path / "run")
    other = tmp_path / "other"
    AutoModelForSequenceClassification.from_pretrained(teacher).save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match="have different vocabularies"):
        finetune("--teacher", teacher, "--student", other, "--output_dir", tmp_path / "run")
    with pytest.raises(ValueError, match="pass --student"):
        finetune("--teacher", teacher, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_exit_status_and_one_line_on_stderr(tmp_path):
    """As a user sees it, for a hub that cannot be reached, and an error of argparse and one of ours."""
    offline = ["--task", "cola", "--student", "bert-base-cased", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "distill_finetune.py", *offline],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    ends = [(done.returncode, done.stderr, "pass --data_dir")]
    ends += [
        (*forked(distill_finetune, *options, "--output_dir", tmp_path / "run"), said)
        for options, said in (
            (["--task", "colla"], "invalid choice: 'colla'"),
            (["--task", "cola", "--student", "x", "--learning", "1"], "unrecognized arguments: --learning"),
            (["--task", "cola", "--student", "x", "--window", "4"], "is for distilling from a teacher"),
        )
    ]
    for status, stderr, said in ends:
        assert status == 2 and said in stderr, stderr
        assert len(stderr.splitlines()) == 1 and "Traceback" not in stderr
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_another_vocabulary_is_given_its_own_pieces(world, teacher, tmp_path, capsys):
    """A copy of the teacher whose words have other numbers says the same of the same texts."""
    words, model = (auto.from_pretrained(teacher) for auto in (AutoTokenizer, AutoModelForSequenceClassification))
    known = sorted(words.get_vocab(), key=words.get_vocab().get)
    order = [*range(5), *range(len(known) - 1, 4, -1)]  # special words stay
    (tmp_path / "vocab.txt").write_text("\n".join(known[i] for i in order) + "\n")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "copy")
    embeddings = model.get_input_embeddings().weight
    embeddings.data[: len(order)] = embeddings.data[order].clone()
    model.save_pretrained(tmp_path / "copy")

    def loaded(*terms):
        options = ["--task", "cola", "--data_dir", world / "glue", "--teacher", teacher, "--student", tmp_path / "copy"]
        args = distill_finetune.build_parser().parse_args(list(map(str, [*options, "--terms", *terms])))
        distill_finetune.check_args(args)
        return args, distill_finetune.load_everything(args)

    with pytest.raises(ValueError, match=r"different vocabularies: .* or, for whole texts, compare logits alone"):
        loaded("kd", "pkd=1")
    args, everything = loaded("kd")
    student, own = everything.student, everything.teacher
    assert "each is given its own pieces" in capsys.readouterr().out
    accelerator = training.make_accelerator(args)
    recipe = distill_finetune.make_recipe(args, everything, accelerator)
    batch = recipe.collate([0, 5, 9], 0)
    assert not torch.equal(batch["input_ids"], batch["theirs.input_ids"])
    with torch.no_grad():
        said = student.eval()(**model_outputs.model_inputs(student, batch))["logits"]
        assert torch.allclose(distill_finetune.taught(own.eval(), batch, False)["logits"], said, atol=1e-6)
        _, values = recipe.loss(student, batch | {"empty": False})
    assert values["logits"] == pytest.approx(0, abs=1e-6)
    scores = distill_finetune.teacher_scores(args, everything, accelerator)
    assert scores == pytest.approx(recipe.evaluate(student)[0])
    assert recipe.evaluate(student)[2] == {}  # no figure: there are no words to compare
