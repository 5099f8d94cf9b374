"""Several labels a text: GoEmotions, the user's own files, binary KL, scores at both thresholds, whole runs."""

import argparse
import json
import random

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from sklearn.metrics import average_precision_score, f1_score
from transformers import AutoModelForSequenceClassification

import data
import distill_finetune
import losses
import metrics
from tasks import kinds, readers

NAMES = "joy\nanger\nlove\n"
ROWS = 'good, really\t0,2\tid1\nbad "quoted\t1\tid2\nso so\t2\tid3\n'


def emotions(tmp_path, train=ROWS, names=NAMES, **more):
    folder = tmp_path / "goemotions"
    folder.mkdir(exist_ok=True)
    for name, text in (("labels.txt", names), ("train.tsv", train), ("dev.tsv", ROWS), ("test.tsv", ROWS)):
        (folder / name).write_text(text)
    return argparse.Namespace(
        **{
            "task": "goemotions",
            "kind": None,
            "regression": False,
            "data_dir": str(tmp_path),
            "max_train_samples": 0,
            "max_eval_samples": 2,
            **more,
        }
    )


def test_goemotions_as_its_authors_publish_it(tmp_path):
    args = emotions(tmp_path)
    for args.data_dir in (str(tmp_path), str(tmp_path / "goemotions")):
        task, splits = data.load_examples(args, readers.Skipped())
        assert task.labels == ("joy", "anger", "love")
        assert {k: len(v) for k, v in splits.items()} == {"train": 3, "validation": 2, "test": 3}
        assert splits["train"]["label"] == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
        assert splits["test"]["label"] == [-1] * 3 and splits["train"]["text_a"][1] == 'bad "quoted'


@pytest.mark.parametrize(
    "train, names, said",
    [
        ("a\t0\tx\nb\t1,3\ty\n", NAMES, r"train.tsv, line 2: labels.txt has no label with id '3', only 0 to 2"),
        ("a\t0\tx\nb\t-1\ty\n", NAMES, "line 2: labels.txt has no label with id '-1'"),
        ("a\t0\tx\nb\tjoy\ty\n", NAMES, "line 2: labels.txt has no label with id 'joy'"),
        ("a\t0\tx\nb\t\ty\n", NAMES, "line 2: labels.txt has no label with id ''"),
        ("a\t0\tx\nb\t1,1\ty\n", NAMES, "line 2: '1,1', cut at ',', holds a label twice"),
        ("a\t0\tx\n \t1\ty\n", NAMES, "line 2: the text is empty"),
        ("a\t0\tx\nb\t1\n", NAMES, "line 2: 2 columns where 3 are due"),
        (ROWS, "joy\njoy\n", "labels.txt: a label's name is blank or comes twice"),
        ("", NAMES, "train.tsv: the file is empty"),
    ],
)
def test_a_broken_line_is_named(tmp_path, train, names, said):
    with pytest.raises(ValueError, match=said) as error:
        data.load_examples(emotions(tmp_path, train, names), readers.Skipped())
    assert "\n" not in str(error.value)


def test_skipped_lines_are_counted_and_keep_their_place(tmp_path):
    skipped = readers.Skipped(True)
    _, splits = data.load_examples(emotions(tmp_path, "a\t0\tx\nb\t9\ty\nc\t1,1\tz\nd\t2\tz\n"), skipped)
    assert splits["train"]["text_a"] == ["a", "d"] and splits["train"]["idx"] == [0, 3] and len(skipped.reports) == 2


def test_goemotions_from_the_hub(tmp_path, monkeypatch):
    features = Features(
        {"text": Value("string"), "labels": List(ClassLabel(names=NAMES.split())), "id": Value("string")}
    )
    rows = Dataset.from_dict({"text": ["a", "b"], "labels": [[2, 0], [1]], "id": ["x", "y"]}, features=features)
    monkeypatch.setattr(data, "load_hub", lambda hub: DatasetDict({"train": rows, "validation": rows, "test": rows}))
    task, splits = data.load_examples(emotions(tmp_path, data_dir=None), readers.Skipped())
    assert task.labels == tuple(NAMES.split()) and splits["train"]["label"] == [[1, 0, 1], [0, 1, 0]]
    assert splits["test"]["label"] == [-1, -1] and splits["test"]["idx"] == [0, 1]


def own(tmp_path, rows, separator=";", dev="text,label\nx,a\n"):
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    (tmp_path / "dev.csv").write_text(dev)
    return argparse.Namespace(
        task="custom",
        kind="multilabel",
        regression=False,
        label_separator=separator,
        text_columns=["text"],
        label_column="label",
        train_file=str(tmp_path / "train.csv"),
        validation_file=str(tmp_path / "dev.csv"),
        test_file=None,
        max_train_samples=0,
        max_eval_samples=0,
        hub_dataset=None,
        metrics=[],
    )


def test_own_files(tmp_path):
    task, splits = data.load_examples(own(tmp_path, "x,b; a\ny,\nz,c\n"), readers.Skipped())
    assert task.labels == ("a", "b", "c") and task.kind == "multilabel"
    assert splits["train"]["label"] == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    "rows, said",
    [
        ("x,a;;b\n", "train.csv, line 2: 'a;;b', cut at ';', holds an empty label"),
        ("x,a;b\ny,b;b\n", "line 3: 'b;b', cut at ';', holds a label twice"),
        ("x,a\ny,a\n", "holds only the label"),
        ("x,a;b\ny,1;1.0\n", "line 3: the label '1.0' is written '1' in line 3"),
    ],
)
def test_own_broken_lines(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said):
        data.load_examples(own(tmp_path, rows), readers.Skipped())
    with pytest.raises(ValueError, match=r"dev.csv, line 2: unknown label 'q'"):
        data.load_examples(own(tmp_path, "x,a;b\n", dev="text,label\nx,a;q\n"), readers.Skipped())


# --- losses and scores ----------------------------------------------------------------------------------------------


def test_the_logits_term_is_the_binary_kl():
    torch.manual_seed(0)
    kind, args = kinds.KINDS["multilabel"](data.TASKS["goemotions"]), argparse.Namespace(temperature=3.0)
    student, teacher = torch.randn(2, 6, 5) * 4
    teacher[0, 0], student[0, 0] = 60.0, -60.0
    student = student.double().float().requires_grad_()
    views = [losses.ModelView({"logits": x}, (), None, kind=kind) for x in (student, teacher)]
    soft = kind.soft_loss(*views, {}, args)
    p, q = (torch.distributions.Bernoulli(logits=x.double() / 3) for x in (teacher, student))
    torch.testing.assert_close(soft.double(), 9 * torch.distributions.kl_divergence(p, q).mean())
    assert torch.autograd.grad(soft, student)[0].isfinite().all()
    labels = torch.randint(2, (6, 5))
    chances = student.double().sigmoid()
    by_hand = -(labels * chances.log() + (1 - labels) * (-student.double()).sigmoid().log()).mean()
    torch.testing.assert_close(kind.hard_loss(student, labels).double(), by_hand)
    assert kind.hard_loss(student[:0], labels[:0]).item() == 0


@pytest.mark.parametrize("degenerate", ["no", "a label missing", "no label at all", "constant", "one example"])
def test_scores_are_scikit_learns(degenerate):
    torch.manual_seed(1)
    logits, labels = torch.randn(40, 4), torch.randint(2, (40, 4))
    logits += 1.5 * labels
    if degenerate == "a label missing":
        labels[:, 2] = 0
    elif degenerate == "no label at all":
        labels[:] = 0
    elif degenerate == "constant":
        logits[:] = 0.25
    elif degenerate == "one example":
        logits, labels = logits[:1], labels[:1]
    got = metrics.label_set_metrics(logits, labels)
    y, chances = labels.numpy(), logits.double().sigmoid().numpy()

    def f1(limit, average):
        return f1_score(y, chances >= limit, average=average, zero_division=0)

    for average in ("micro", "macro"):
        assert got[f"{average}_f1_at_0.5"] == f1(0.5, average)
        assert got[f"{average}_f1"] == f1(got["threshold"], average)
    assert got["micro_f1"] == pytest.approx(max(f1(limit, "micro") for limit in np.unique(chances)))
    with pytest.warns() if "label" in degenerate or degenerate == "one example" else np.errstate():
        assert got["mean_average_precision"] == pytest.approx(average_precision_score(y, chances))
    assert all(np.isfinite(value) and 0 <= value <= 1 for value in got.values())


def test_logits_that_are_not_finite_are_not_scored():
    logits = torch.zeros(3, 2)
    logits[1, 0] = float("nan")
    with pytest.raises(ValueError, match="the first for example 1"):
        metrics.label_set_metrics(logits, torch.ones(3, 2, dtype=torch.long))


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def world_of_labels(tmp_path):
    """GoEmotions of the artificial language: each label is a word that stands in the text."""
    draw, words = random.Random(0), ("dog", "cat", "bird")
    folder = tmp_path / "goemotions"
    folder.mkdir()
    (folder / "labels.txt").write_text("\n".join(words) + "\n")
    for name, count in (("train", 64), ("dev", 24), ("test", 8)):
        rows = []
        for i in range(count):
            chosen = sorted(draw.sample(range(3), draw.choice((1, 1, 2))))
            text = " and ".join(f"the {words[j]} runs" for j in chosen)
            rows.append(f"{text} .\t{','.join(map(str, chosen))}\tid{i}\n")
        (folder / f"{name}.tsv").write_text("".join(rows))
    return tmp_path


def test_a_whole_run(world, world_of_labels, tmp_path):
    def run(name, *options):
        AcceleratorState._reset_state(reset_partial_state=True)
        distill_finetune.main(
            [
                *(
                    f"--task goemotions --data_dir {world_of_labels} --per_device_train_batch_size 16 "
                    "--max_seq_length 24 --learning_rate 2e-3 --logging_steps 2 "
                    f"--output_dir {tmp_path}/{name}"
                ).split(),
                *map(str, options),
            ]
        )
        return json.loads((tmp_path / name / "run.json").read_text())

    teacher = run("teacher", "--student", world / "bert", "--num_train_epochs", "4")
    record = run(
        "run",
        *(
            f"--teacher {tmp_path}/teacher --student_layers 2 --terms ckd --hard_weight 0.5 "
            "--num_train_epochs 1 --do_predict"
        ).split(),
    )
    best = record["best"]["metrics"]
    assert set(best) == {
        "micro_f1",
        "macro_f1",
        "micro_f1_at_0.5",
        "macro_f1_at_0.5",
        "threshold",
        "mean_average_precision",
    }
    assert record["best"]["score"] == pytest.approx((best["micro_f1"] + best["macro_f1"]) / 2)
    assert teacher["best"]["metrics"]["mean_average_precision"] > 0.6
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.problem_type == "multi_label_classification" and model.config.id2label[2] == "bird"
    assert model.config.threshold == best["threshold"]
    lines = (tmp_path / "run" / "predictions.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and [line.split("\t")[0] for line in lines[1:]] == [str(i) for i in range(8)]
    assert {word for line in lines[1:] for word in line.split("\t")[1].split(",")} <= {"dog", "cat", "bird", ""}
    assert "mean_average_precision" in (tmp_path / "run" / "README.md").read_text()
