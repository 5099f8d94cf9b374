"""The user's own data: Parquet, data sets of the hub, their names, chosen metrics, and text without labels. Files as
people have them: separators, quoting, folders, one-hot columns, annotation tools, SQuAD's format.
"""

import argparse
import json

import datasets
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import data
import distill_finetune
import evaluate
import metrics
import report
from encoders import label_names
from reporting import plots
from tasks import kinds, readers

TEXTS = ["the dog runs .", "a cat sees the bird .", "dogs run", 'it\'s 1,5\t"ü"']


def parse(*options):
    args = distill_finetune.build_parser().parse_args(["--task", "custom", "--student", "x", *map(str, options)])
    distill_finetune.check_args(args)
    return args


def load(*options, skip=False):
    skipped = readers.Skipped(skip)
    task, splits = kinds.chosen(parse(*options)).read(parse(*options), skipped)
    return task, splits, skipped.reports


def files(tmp_path, train, dev=None):
    """Options that name Parquet files of these tables (Datasets or what pandas takes)."""
    for name, table in (("train", train), ("dev", train if dev is None else dev)):
        path = tmp_path / f"{name}.parquet"
        table.to_parquet(path) if isinstance(table, Dataset) else pd.DataFrame(table).to_parquet(path)
    return "--train_file", tmp_path / "train.parquet", "--validation_file", tmp_path / "dev.parquet"


def test_the_index_of_an_example_counts_the_broken_ones_before_it_once(tmp_path):
    lines = ['{"text": "a", "label": ["x", "y"]}', "broken", '{"text": "b", "label": ["y"]}']
    odd = ['{"text": "c", "label": ["what", "who"]}', '{"text": "d", "label": ["x"]}']  # two unknown labels, one report
    for name, content in (("train", lines), ("dev", [*lines, *odd])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(content) + "\n")
    names = ("--train_file", tmp_path / "train.jsonl", "--validation_file", tmp_path / "dev.jsonl")
    _, splits, reports = load(*names, "--kind", "multilabel", skip=True)
    assert splits["train"]["idx"][:] == [0, 2] and splits["validation"]["idx"][:] == [0, 2, 4]
    assert len(reports) == 3 and "unknown label 'what'" in reports[-1]


def rows(dataset):
    return list(zip(dataset["text_a"], dataset["label"], strict=True))


# --- Parquet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, names, ids",
    [
        (["no", "yes", "no", "yes"], ("no", "yes"), [0, 1, 0, 1]),
        ([3, 1, 3, 1], ("1", "3"), [1, 0, 1, 0]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
    ],
)
def test_parquet_of_pandas(tmp_path, labels, names, ids):
    table = {"text": TEXTS, "label": labels, "other": [b"\0\xff", b"", b"", b""]}
    task, splits, _ = load(*files(tmp_path, table))
    assert task.labels == names
    assert rows(splits["train"]) == rows(splits["validation"]) == list(zip(TEXTS, ids, strict=True))


def test_classes_that_a_parquet_file_names_keep_their_order(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["zebra", "ape", "yak"])})
    table = Dataset.from_dict({"text": TEXTS, "label": [2, 0, 0, 1]}, features=features)
    task, splits, _ = load(*files(tmp_path, table, table.select([1, 2])))
    assert task.labels == ("zebra", "ape", "yak")
    assert splits["train"]["label"] == [2, 0, 0, 1] and splits["validation"]["label"] == [0, 0]


@pytest.mark.parametrize(
    "given, order",
    [
        ("10 9 2 0 11 1", "0 1 2 9 10 11"),
        ("-1 -2 3 -10", "-10 -2 -1 3"),
        ("1.5 10 2.25 -0.5", "-0.5 1.5 2.25 10"),
        ("10 01 09", "01 09 10"),
        ("1e3 5 2E-1", "2E-1 5 1e3"),
        ("9007199254740993 9007199254740992 5", "5 9007199254740992 9007199254740993"),
        ("+2 -2 1", "-2 1 +2"),
        ("\u0662 \u0661\u0660 \u0661", "\u0661 \u0662 \u0661\u0660"),
        ("10 9 nan", "10 9 nan"),
        ("10 9 infinity", "10 9 infinity"),
        ("10 9 1_0", "10 1_0 9"),
        ("10 9 b", "10 9 b"),
        ("True False", "False True"),
        ("10 9 0x1", "0x1 10 9"),
    ],
)
def test_labels_that_are_all_numbers_are_in_the_order_of_numbers(tmp_path, given, order):
    """Of files, of several labels a text, of the teacher, and of types of words; others are sorted as text."""
    given, order = given.split(), tuple(order.split())
    options = files(tmp_path, {"text": ["a"] * len(given), "label": given})
    assert load(*options)[0].labels == order
    assert load(*options, "--kind", "multilabel")[0].labels == order
    (tmp_path / "bare.csv").write_text("text\na\n")
    args = parse("--train_file", tmp_path / "bare.csv", *options[2:])
    numbers = None not in map(label_names.number_of, given)
    for teachers in ((), tuple(given)):
        task, splits = data.load_examples(args, readers.Skipped(), teachers)
        assert task.labels == (order if numbers or not teachers else tuple(given))
        assert [task.labels[i] for i in splits["validation"]["label"]] == given
    features = Features({"text": Value("string"), "label": ClassLabel(names=given)})
    table = Dataset.from_dict({"text": ["a"] * len(given), "label": [*range(len(given))]}, features=features)
    task, splits, _ = load(*files(tmp_path, table))
    assert task.labels == (order if numbers else tuple(given))
    assert [task.labels[i] for i in splits["train"]["label"]] == given
    for name in ("train", "dev"):
        (tmp_path / f"{name}.conll").write_text("".join(f"a B-{word}\nb I-{word}\n" for word in given))
    task, _, _ = load(
        "--kind", "token", "--train_file", tmp_path / "train.conll", "--validation_file", tmp_path / "dev.conll"
    )
    assert [tag[2:] for tag in task.labels if tag[0] == "B"] == list(order)


def test_the_labels_of_any_file_are_in_order():
    """Also where a model's names are matched with them, as in evaluation."""
    for given, order in (("12 1 10 2", "1 2 10 12"), ("b 10 9", "10 9 b")):
        table = enumerate([{"label": word} for word in given.split()], 2)
        assert data._label_words(table, "x.csv", "label", readers.Skipped()) == order.split()


def test_labels_that_are_the_same_number_are_refused(tmp_path):
    for first, second in (("1", "01"), ("0.10", ".1"), ("-0", "0"), ("1", "\uff11"), ("100", "1e2")):
        with pytest.raises(ValueError, match=f"row 3: the label {second!r} is written {first!r} in row 1"):
            load(*files(tmp_path, {"text": TEXTS[:3], "label": [first, "2", second]}))


def test_a_copy_of_a_teacher_of_twelve_classes_says_what_the_teacher_says(finetune, world, tmp_path):
    """Its classes are LABEL_0 to LABEL_11; as --student and as --teacher, with labels to train on and without."""
    config = AutoConfig.from_pretrained(world / "bert", num_labels=12)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=5)
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")
    tokenizer.save_pretrained(tmp_path / "teacher")
    words = ("the", "a", "dog", "cat", "bird", "runs", "sees", ".")
    texts = [" ".join(one) for one in np.random.default_rng(0).choice(words, size=(200, 5))]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        model.classifier.bias -= model(**batch).logits.mean(0)
        said = model(**batch).logits.argmax(-1).tolist()
    model.save_pretrained(tmp_path / "teacher")
    assert len({*said} & {2, 3, 9, 10, 11}) >= 3  # whose places in the order of text are others
    table = pd.DataFrame({"text": texts, "label": said})
    table.to_csv(tmp_path / "dev.csv", index=False)
    table.assign(label=[i % 12 for i in range(200)]).to_csv(tmp_path / "train.csv", index=False)
    table[["text"]].to_csv(tmp_path / "bare.csv", index=False)
    copy = (
        f"--student {tmp_path}/teacher --learning_rate 1e-12 --max_steps 1 --do_predict --test_file {tmp_path}/bare.csv"
    ).split()
    kd = ("--teacher", tmp_path / "teacher", "--terms", "kd")
    ways = {"student": ("train", *copy), "both": ("train", *copy, *kd), "bare": ("bare", *copy, *kd)}
    ways["labels"] = ("train", *copy, *kd, "--hard_weight", "1")
    for name, (train, *options) in ways.items():
        run(finetune, tmp_path, "--train_file", tmp_path / f"{train}.csv", *options, "--output_dir", tmp_path / name)
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert record["best"]["score"] == 1.0
        found = (tmp_path / name / "predictions.tsv").read_text().splitlines()
        assert found == ["index\tprediction", *(f"{i}\t{word}" for i, word in enumerate(said))]
        config = AutoConfig.from_pretrained(tmp_path / name)
        assert [config.id2label[i] for i in range(12)] == [str(i) for i in range(12)]


def test_lists_of_labels_and_numbers_to_predict(tmp_path):
    table = {"text": TEXTS, "label": [["b", "a"], [], ["c"], ["a"]], "score": [1.5, -2, 0, 3]}
    task, splits, _ = load(*files(tmp_path, table), "--kind", "multilabel", "--label_separator", ";")
    assert task.labels == ("a", "b", "c") and splits["train"]["label"] == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    _, splits, _ = load(*files(tmp_path, table), "--regression", "--label_column", "score")
    assert splits["train"]["label"] == [1.5, -2, 0, 3]
    table["label"] = [["a,b"], [], ["c"], ["a"]]
    with pytest.raises(ValueError, match=r"train.parquet, row 1: column 'label' holds 'a,b', which contain ','"):
        load(*files(tmp_path, table), "--kind", "multilabel")


@pytest.mark.parametrize(
    "table, said",
    [
        ({"text": ["a", None], "label": ["x", "y"]}, "row 2: column 'text' holds a null"),
        ({"text": ["a", "b"], "label": ["x", None]}, "row 2: column 'label' holds a null"),
        ({"text": [b"a", b"b"], "label": ["x", "y"]}, "row 1: column 'text' holds a bytes, not text"),
        ({"text": [{"a": 1}, {"a": 2}], "label": ["x", "y"]}, "row 1: column 'text' holds a dict"),
        ({"txt": ["a", "b"], "label": ["x", "y"]}, "row 1: no column 'text'; there are: txt, label"),
        ({"text": ["a", "b"], "label": ["x", " x"]}, "row 2: the label ' x' is written 'x' in row 1"),
    ],
)
def test_a_broken_row_is_named(tmp_path, table, said):
    with pytest.raises(ValueError, match=rf"train\.parquet, {said}") as error:
        load(*files(tmp_path, table))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text,label\na,b\n", b"PAR1" + bytes(200) + b"PAR1"])
def test_what_is_no_parquet_file_is_refused_in_one_line(tmp_path, content):
    options = files(tmp_path, {"text": TEXTS, "label": list("abab")})
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.parquet: not a Parquet file") as error:
        load(*options)
    assert "\n" not in str(error.value)
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(ValueError, match=r"train\.parquet: no such file"):
        load(*options)


def test_a_file_whose_name_is_a_pattern(tmp_path):
    folder = tmp_path / "[a]*b"
    folder.mkdir()
    assert len(load(*files(folder, {"text": TEXTS, "label": list("abab")}))[1]["train"]) == 4


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub with one data set of two classes; what was asked of it is noted."""
    features = Features({"sentence": Value("string"), "topic": ClassLabel(names=["sport", "art"])})
    splits = {
        name: Dataset.from_dict({"sentence": TEXTS, "topic": ids}, features=features)
        for name, ids in (("train", [1, 0, 1, 0]), ("dev", [0, 0, 1, 1]), ("test", [-1] * 4))
    }
    splits, asked = DatasetDict(splits), []
    monkeypatch.setattr("datasets.load_dataset", lambda *hub: asked.append(hub) or splits)
    return asked


HUB = ("--hub_dataset", "owner/topics-v2:small", "--text_columns", "sentence", "--label_column", "topic")


def test_a_data_set_of_the_hub(hub):
    task, splits, _ = load(*HUB, "--validation_split", "dev", "--do_predict")
    assert hub == [("owner/topics-v2", "small")] and task.labels == ("sport", "art") and task.hub == hub[0]
    assert rows(splits["train"]) == list(zip(TEXTS, [1, 0, 1, 0], strict=True))
    assert splits["validation"]["label"] == [0, 0, 1, 1] and splits["test"]["label"] == [-1] * 4
    assert parse(*HUB).output_dir == "runs/topics-v2-small/finetune/seed1"
    with pytest.raises(ValueError, match=r"has no split 'validation' but train, dev, test: name .* --validation_split"):
        load(*HUB)
    datasets.load_dataset("owner", None).pop("test")
    with pytest.raises(ValueError, match="has no split 'test' but train, dev: leave out --do_predict"):
        load(*HUB, "--validation_split", "dev", "--do_predict")


def test_glue_of_another_owner_may_lack_numbers_and_labels(monkeypatch):
    whole = Dataset.from_dict({"sentence": TEXTS, "label": [1, 0, 1, 0]})
    splits = DatasetDict(train=whole, validation=whole, test=whole.remove_columns("label"))
    monkeypatch.setattr("datasets.load_dataset", lambda *hub: splits)
    args = argparse.Namespace(task="cola", data_dir=None, max_train_samples=0, max_eval_samples=0)
    _, found = data.load_examples(args, readers.Skipped())
    assert found["train"]["idx"] == [0, 1, 2, 3] and found["test"]["label"] == [-1] * 4
    assert found["train"]["label"] == [1, 0, 1, 0]


FILES = ("--train_file", "a.csv", "--validation_file", "b.csv")


@pytest.mark.parametrize(
    "options, said",
    [
        ((*FILES, "--dataset_name", "cola"), "--dataset_name 'cola' becomes a folder beside those of cola"),
        ((*FILES, "--dataset_name", "../x"), "--dataset_name '../x' becomes a folder"),
        ((*FILES, *HUB), "--hub_dataset and --train_file exclude each other"),
        (("--hub_dataset", "https://a/b"), "'https://a/b' must be owner/name or owner/name:config"),
        (("--hub_dataset", "ag_news"), "'ag_news' must be owner/name or owner/name:configuration, such as"),
        ((*FILES, "--validation_split", "dev"), "--validation_split is for --hub_dataset"),
        (
            (*FILES, "--metrics", "bleu"),
            "--metrics 'bleu' is not a metric of classification: choose accuracy, balanced_accuracy",
        ),
        ((*FILES, "--metrics", "macro_f1", "accuracy", "macro_f1"), "--metrics names 'macro_f1' twice"),
        ((*FILES, "--regression", "--metrics", "accuracy"), "'accuracy' is not a metric of regression: choose pearson"),
        ((), "needs --train_file: .* or --hub_dataset"),
        (("--task", "cola", "--dataset_name", "x"), "--dataset_name is for --task custom, not cola"),
        (("--task", "cola", "--hub_dataset", "a/b"), "--hub_dataset is for --task custom"),
        (("--task", "cola", "--metrics", "accuracy"), "--metrics is for --task custom"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        parse(*options)


# --- metrics --------------------------------------------------------------------------------------------------------

OF_SKLEARN = {
    "accuracy": sklearn.metrics.accuracy_score,
    "balanced_accuracy": sklearn.metrics.balanced_accuracy_score,
    "macro_f1": lambda y, p: np.mean(sklearn.metrics.f1_score(y, p, average=None, zero_division=0)),
    "weighted_f1": lambda y, p: sklearn.metrics.classification_report(y, p, output_dict=True, zero_division=0)[
        "weighted avg"
    ]["f1-score"],
    "cohen_kappa": sklearn.metrics.cohen_kappa_score,
    "matthews_correlation": sklearn.metrics.matthews_corrcoef,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["random", "constant predictions", "one class", "one example"])
def test_every_metric_of_choice_is_scikit_learns(case):
    draw = np.random.default_rng(0)
    labels, predictions = draw.integers(3, size=(2, 60))
    if case == "constant predictions":
        predictions[:] = 1
    elif case == "one class":
        labels[:], predictions[:] = 2, 2
    elif case == "one example":
        labels, predictions = labels[:1], predictions[:1]
    logits = torch.nn.functional.one_hot(torch.tensor(predictions), 3).float()
    found = metrics.compute_metrics(list(OF_SKLEARN), logits, torch.tensor(labels))
    for name, function in OF_SKLEARN.items():
        expected = function(labels, predictions)
        assert found[name] == pytest.approx(0.0 if np.isnan(expected) else expected), name
    assert set(kinds.KINDS["classification"].scores) - {"f1"} == set(OF_SKLEARN)
    values = draw.normal(size=(2, len(labels)))
    found = metrics.compute_metrics(["r2"], torch.tensor(values[0])[:, None], torch.tensor(values[1]))["r2"]
    assert found == (
        0.0
        if len(labels) == 1
        else pytest.approx(1 - ((values[1] - values[0]) ** 2).sum() / ((values[1] - values[1].mean()) ** 2).sum())
    )


def test_the_f1_of_two_labels_is_refused_for_three(tmp_path):
    table = {"text": TEXTS, "label": list("abca")}
    with pytest.raises(ValueError, match="--metrics f1 scores the second of two labels, and there are 3: try"):
        load(*files(tmp_path, table), "--metrics", "f1")


# --- whole runs, and text without labels ------------------------------------------------------------------------------


@pytest.fixture
def animals(tmp_path):
    """Files of the artificial language: the label is the animal of the text. Also train.txt.csv, without labels."""
    draw = np.random.default_rng(1)
    for name, count in (("train", 48), ("dev", 24)):
        chosen = [("dog", "cat", "bird")[i] for i in draw.integers(3, size=count)]
        pd.DataFrame({"text": [f"the {word} runs ." for word in chosen], "label": chosen}).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
        pd.DataFrame({"text": [f"the {word} sees ." for word in chosen]}).to_csv(
            tmp_path / f"{name}.bare.csv", index=False
        )
    return tmp_path


def run(finetune, folder, *options):
    finetune(
        *(f"--task custom --validation_file {folder}/dev.csv --max_train_samples 0 --max_eval_samples 0").split(),
        *options,
    )


def test_a_student_learns_from_text_without_labels(finetune, world, animals, capsys, monkeypatch):
    monkeypatch.chdir(animals)
    named = ("--dataset_name", "animals", "--metrics", "macro_f1", "accuracy")
    run(
        finetune,
        animals,
        *f"--train_file train.csv --student {world}/bert --run_name teacher".split(),
        *named,
        *["--learning_rate", "2e-3", "--num_train_epochs", "5"],
    )
    (animals / "dev.csv").write_text((animals / "dev.csv").read_text().replace(",bird", ",dog"))  # lacks a label
    teacher = animals / "runs" / "animals" / "teacher" / "seed1"
    student = ("--teacher", teacher, "--student_layers", "2", "--train_file", "train.bare.csv", "--max_steps", "2")
    run(finetune, animals, *student, *named, "--cache_teacher")
    record, taught = (
        json.loads((animals / "runs" / "animals" / name / "seed1" / "run.json").read_text())
        for name in ("ckd", "teacher")
    )
    assert record["task"] == "animals" and record["train_examples"] == 48
    assert {split: of["examples"] for split, of in record["data"].items()} == {"train": 48, "validation": 24}
    # The texts are the same, but not their labels, of which a student of logits has none, and one word is new.
    assert all(record["data"][split]["sha256"] != taught["data"][split]["sha256"] for split in record["data"])
    best = record["best"]["metrics"]
    assert set(best) == {"macro_f1", "accuracy"} and record["best"]["score"] == pytest.approx(sum(best.values()) / 2)
    config = AutoModelForSequenceClassification.from_pretrained(animals / "runs/animals/ckd/seed1").config
    assert config.id2label == {0: "bird", 1: "cat", 2: "dog"}
    # Labels that are there are not looked at: the same run.
    text = (animals / "train.bare.csv").read_text().splitlines()
    (animals / "train.bare.csv").write_text("\n".join([text[0] + ",label", *(line + ",cat" for line in text[1:])]))
    with pytest.raises(ValueError, match="holds only the label"):
        run(finetune, animals, *student, "--run_name", "again")
    capsys.readouterr()
    monkeypatch.setattr(plots, "write_plots", lambda *_: [])
    report.main(["runs"])
    out = capsys.readouterr().out
    scores = f"{100 * best['macro_f1']:.1f} / {100 * best['accuracy']:.1f}"
    assert "animals set 1 (macro F1 / acc)" in out and scores in out  # the teacher's dev set had a label more
    assert "Unlike evaluation sets of animals" in out


def test_text_without_labels_needs_a_teacher_and_labels_to_score(finetune, world, teacher, animals):
    bare = ("--train_file", animals / "train.bare.csv", "--output_dir", animals / "run")
    said = r"train\.bare\.csv, line 2: no column 'label'; there are: text"
    with pytest.raises(ValueError, match=said):
        run(finetune, animals, *bare, "--student", world / "bert")
    with pytest.raises(ValueError, match=said):
        run(finetune, animals, *bare, "--teacher", teacher, "--student_layers", "2", "--hard_weight", "0.5")
    with pytest.raises(ValueError, match=r"dev\.bare\.csv, line 2: no column 'label'"):
        run(
            finetune,
            animals,
            *bare,
            *f"--teacher {teacher} --student_layers 2 --validation_file {animals}/dev.bare.csv".split(),
        )
    assert not (animals / "run").exists()
    table = pd.read_csv(animals / "dev.csv")
    table[table["label"] != "bird"].to_csv(animals / "dev.csv", index=False)
    run(
        finetune,
        animals,
        *bare,
        *(
            f"--teacher {teacher} --student_layers 2 --terms kd --max_steps 1 "
            "--label_map acceptable=cat unacceptable=dog"
        ).split(),
    )
    config = AutoModelForSequenceClassification.from_pretrained(animals / "run").config
    assert config.id2label == {0: "dog", 1: "cat"}


def test_several_labels_and_numbers_without_labels(finetune, world, animals, tmp_path):
    """The labels are the teacher's; what a student of nothing but text learns does not depend on labels there."""
    table = pd.read_csv(animals / "train.csv")
    for kind, column in (("multilabel", table["label"]), ("regression", table["label"].str.len())):
        folder = tmp_path / kind
        folder.mkdir()
        table.assign(label=column).to_csv(folder / "train.csv", index=False)
        table.assign(label=column).head(9).to_csv(folder / "dev.csv", index=False)
        table[["text"]].to_csv(folder / "bare.csv", index=False)
        own = ("--kind", kind, "--max_steps", "2", "--logging_steps", "1", "--output_dir")
        run(finetune, folder, "--train_file", folder / "train.csv", "--student", world / "bert", *own, folder / "t")
        for name in ("train", "bare"):
            run(
                finetune,
                folder,
                "--train_file",
                folder / f"{name}.csv",
                "--teacher",
                folder / "t",
                "--student_layers",
                "2",
                "--terms",
                "kd",
                *own,
                folder / name,
            )
        a, b = (load_file(folder / name / "model.safetensors") for name in ("train", "bare"))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_lists_are_labels_of_several_and_never_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": ["y", "x"]}\n{"text": "b", "label": []}\n')
    task, splits, _ = load(
        "--kind", "multilabel", *("--train_file", tmp_path / "a.jsonl"), "--validation_file", tmp_path / "a.jsonl"
    )
    assert task.labels == ("x", "y") and splits["train"]["label"] == [[1, 1], [0, 0]]
    with pytest.raises(ValueError, match=r"train\.parquet, row 1: column 'text' holds a list, not text"):
        load(*files(tmp_path, {"text": [["a", "b"]], "label": ["x,y"]}), "--kind", "multilabel")
    with pytest.raises(ValueError, match=r"train\.parquet, row 1: column 'label' holds a list, not text"):
        load(*files(tmp_path, {"text": ["a"], "label": [["x", "y"]]}), "--metrics", "accuracy")


def test_lists_of_classes_are_named():
    features = Features({"a": List(ClassLabel(names=["x", "y"])), "b": Value("int64")})
    table = Dataset.from_dict({"a": [[0, 1]], "b": [1]}, features=features)
    assert readers.label_names(table, "a") == ("x", "y") and readers.label_names(table, "b") == ()
    assert list(readers.dataset_rows(table)) == [("row 1", {"a": ["x", "y"], "b": 1})]


# --- forms -----------------------------------------------------------------------------------------------------------

FORMS_TEXTS = ['He said "no"', "a;b|c,d", "two\nlines", "tab\there", '"whole"', " x "]


def arguments(path, *options, task="custom"):
    files = ("--train_file", path, "--validation_file", path) if path else ()
    args = distill_finetune.build_parser().parse_args(
        list(map(str, ["--task", task, "--student", "x", *files, *options]))
    )
    distill_finetune.check_args(args)
    return args


def load_of_forms(path, *options, task="custom", skip=False):
    """(the task, its training examples) of a file that is the dev set too."""
    args = arguments(path, *options, task=task)
    task, splits = kinds.chosen(args).read(args, readers.Skipped(skip))
    return task, splits["train"]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("sign", [",", ";", "|", "\t"])
@pytest.mark.parametrize("quoting", [0, 1, 2])  # where it is needed, everywhere, all but numbers
def test_a_table_of_any_separator_is_read_as_pandas_wrote_it(tmp_path, ending, sign, quoting):
    table = pd.DataFrame({"n": range(6), "text": FORMS_TEXTS, "label": list("xyxyxy")})
    table.to_csv(tmp_path / f"a.{ending}", sep=sign, index=False, quoting=quoting)
    task, rows = load_of_forms(tmp_path / f"a.{ending}")
    assert rows["text_a"][:] == FORMS_TEXTS and task.labels == ("x", "y")


@pytest.mark.parametrize(
    "texts",
    [['"I went home.', 'Then I slept."'], ['" i know', 'Then "I slept"'], ['"a" b', '"c"'], ['5" long', 'so "big"']],
)
def test_quotes_that_are_text_stay_in_a_table_of_tabs(tmp_path, texts):
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{text}\t{i}\n" for i, text in enumerate(texts)))
    assert load_of_forms(path)[1]["text_a"][:] == texts


def test_a_broken_line_of_another_separator_is_named_and_skipped(tmp_path):
    path = write(tmp_path / "a.csv", 'text;label\na;x\nb;y;z\n"c;y\n"d;";y\n')
    with pytest.raises(ValueError, match=r"line 3: 3 columns where 2 are due \(text, label\)"):
        load_of_forms(path)
    assert load_of_forms(path, skip=True)[1]["text_a"][:] == ["a", "d;"]
    path.write_text('text;label\na;x\n"c" d;y\n')
    with pytest.raises(ValueError, match=r"line 3: not valid csv .the quote that opens here closes in line 3"):
        load_of_forms(path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", '{"text": "a", "label": "x"}\n', "is JSON, but its name ends in .csv: rename"),
        ("a.tsv", '[\n{"text": "a"}]\n', "is JSON, but its name ends in .tsv"),
        ("a.csv", "<!DOCTYPE html>\n", "is XML or HTML, but"),
        ("a.json", "text,label\na,x\n", "is not JSON, which begins with"),
        ("a.xlsx", "PK\x03\x04 ", "is a zip archive or a document of an office program"),
        ("a.pkl", "abc", "unknown ending '.pkl'; use .csv"),
        ("a/b.pkl", "abc", "neither saved by datasets nor a folder of .txt files"),
    ],
)
def test_what_is_not_read_is_named_by_its_form(tmp_path, name, text, said):
    write(tmp_path / name, text)
    with pytest.raises(ValueError, match=said):
        load_of_forms(tmp_path / name.split("/")[0])


def test_a_folder_of_a_folder_for_each_class(tmp_path):
    for name, text in (("pos/2", "good"), ("pos/10", "very\n\ngood\n"), ("neg/1", "bad"), ("neg/3", "")):
        write(tmp_path / "set" / f"{name}.txt", text)
    write(tmp_path / "set/.hidden/1.txt", "no")
    write(tmp_path / "set/urls.txt", "no")
    task, rows = load_of_forms(tmp_path / "set")
    assert task.labels == ("neg", "pos")
    assert list(zip(rows["text_a"], rows["label"], strict=True)) == [
        ("bad", 0),
        ("", 0),
        ("very\n\ngood", 1),
        ("good", 1),
    ]


def test_folders_that_datasets_has_saved(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["z", "a"])})
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    DatasetDict({"train": rows, "dev": rows}).save_to_disk(tmp_path / "my data")
    task, found = load_of_forms(tmp_path / "my data/train")
    assert task.labels == ("z", "a") and found["label"][:] == [1, 0]
    with pytest.raises(ValueError, match=r"holds the splits dev, train: name the folder of one, as .*my data/dev"):
        load_of_forms(tmp_path / "my data")
    args = arguments(None, "--hub_dataset", f"{tmp_path}/my data/", "--validation_split", "dev")
    task, splits = kinds.chosen(args).read(args, readers.Skipped())
    assert task.labels == ("z", "a") and splits["validation"]["text_a"][:] == ["a", "b"] and task.hub == (None, None)
    assert args.output_dir == "runs/my-data/finetune/seed1"
    with pytest.raises(
        ValueError, match=r"must be owner/name or .* a folder of several splits that `datasets` has saved"
    ):
        arguments(None, "--hub_dataset", tmp_path / "my data/train")


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", ["1", "1.0", "True"])
def test_columns_of_0_and_1_are_labels(tmp_path, one):
    zero = {"1": "0", "1.0": "0.0", "True": "False"}[one]
    cells = [(1, 0, 0), (0, 0, 1), (1, 0, 1), (0, 0, 0)]

    def table(rows):
        text = "".join(f"t,{','.join(one if on else zero for on in row)}\n" for row in rows)
        return write(tmp_path / "a.csv", "text,b,a,c d\n" + text)

    columns = ("--label_column", "b", "a", "c d")
    task, rows = load_of_forms(table(cells), *columns, "--kind", "multilabel")
    assert task.labels == ("b", "a", "c d") and list(map(tuple, rows["label"])) == cells
    task, rows = load_of_forms(table(cells[:2]), *columns)
    assert task.labels == ("b", "a", "c d") and rows["label"][:] == [0, 2]
    args = arguments(tmp_path / "a.csv", *columns)
    assert evaluate.read(args, tmp_path / "a.csv", ["b", "a", "c d"], readers.Skipped())[1]["validation"]["label"][
        :
    ] == [0, 2]
    for row, count in ((cells[2], 2), (cells[3], 0)):
        with pytest.raises(ValueError, match=f"line 2: {count} of the columns b, a, 'c d' hold 1, not one; try"):
            load_of_forms(table([row]), *columns)
    with pytest.raises(ValueError, match="line 2: column 'a' holds '2' instead of 0 or 1"):
        load_of_forms(write(tmp_path / "a.csv", "text,b,a,c d\nt,0,2,1\n"), *columns)
    with pytest.raises(ValueError, match="column 'e' holds None instead of 0 or 1"):
        load_of_forms(table(cells), "--label_column", "b", "e")
    with pytest.raises(ValueError, match="--label_column b b: several columns need"):
        arguments(tmp_path / "a.csv", "--label_column", "b", "b")


@pytest.mark.parametrize(
    ("lists", "hot"),
    [([[1, 0, 0], [0, 1, 1], [0, 0, 0]], True), ([[1, 0], [0, 1]], True), ([[0, 1], [2]], False), ([[1], [0]], False)],
)
def test_lists_of_0_and_1_are_several_labels(tmp_path, lists, hot):
    path = write(tmp_path / "a.jsonl", lines(*({"text": "t", "label": row} for row in lists)))
    task, rows = load_of_forms(path, "--kind", "multilabel")
    expected = [{i for i, on in enumerate(row) if on} if hot else {*row} for row in lists]
    assert [{int(task.labels[i]) for i, on in enumerate(row) if on} for row in rows["label"]] == expected


# --- words ----------------------------------------------------------------------------------------------------------


def tagged(path, *options, skip=False):
    """[[word/tag, ...], ...] of a file of words."""
    task, rows = load_of_forms(path, "--kind", "token", *options, skip=skip)
    return [
        [f"{word}/{task.labels[tag]}" for word, tag in zip(*row, strict=True)]
        for row in zip(rows["words"], rows["tags"], strict=True)
    ]


ANN = ["Ann/B-PER", "Lee/I-PER", "runs/O", ",/O", "New/B-LOC", "-/I-LOC", "York/I-LOC", "!/O"]
TEXT, PER, LOC = "Ann Lee runs, New-York!", (0, 7, "PER"), (14, 22, "LOC")
DICTS = [dict(zip(("start", "end", "label"), span, strict=True)) for span in (PER, LOC)]
MIN = [{"start": s, "end": e, "text": TEXT[s:e], "labels": [label]} for s, e, label in (PER, LOC)]
STUDIO = [{"id": 1, "type": "labels", "from_name": "label", "value": value} for value in MIN]
SPANS = {
    "doccano": {"id": 1, "text": TEXT, "label": [LOC, PER]},
    "doccano with relations": {
        "text": TEXT,
        "entities": [{"id": 1, "label": d["label"], "start_offset": d["start"], "end_offset": d["end"]} for d in DICTS],
        "relations": [],
    },
    "Label Studio": {
        "id": 1,
        "data": {"text": TEXT},
        "annotations": [{"result": [*STUDIO, {"type": "choices", "value": {}}]}],
    },
    "Label Studio, JSON-MIN": {"id": 1, "text": TEXT, "label": MIN},
    "Prodigy": {
        "text": TEXT,
        "tokens": [{"text": "Ann", "start": 0, "end": 3, "id": 0}],
        "spans": DICTS,
        "answer": "accept",
    },
    "lists": {"text": TEXT, "tokens": [w.split("/")[0] for w in ANN], "ner_tags": [w.split("/")[1] for w in ANN]},
}


@pytest.mark.parametrize("name", SPANS)
def test_spans_of_annotation_tools_and_lists_are_words_with_tags(tmp_path, name):
    path = write(tmp_path / "a.jsonl", lines(SPANS[name]))
    assert tagged(path) == [ANN]
    write(tmp_path / "a.json", json.dumps([SPANS[name]]))
    assert tagged(tmp_path / "a.json") == [ANN]
    args = arguments(path, "--kind", "token", "--test_file", path)
    test = kinds.chosen(args).read(args, readers.Skipped())[1]["test"]
    assert test["tags"][:] == [[]] and test["lines"][0][0] == ("Ann\tB-PER" if name == "lists" else "Ann")


def test_a_span_within_a_word_cuts_it_and_marks_stay_with_their_letters(tmp_path):
    spans = [[4, 7, "P"], [7, 9, "P"], [10, 18, "Q"]]
    assert tagged(write(tmp_path / "a.jsonl", lines({"text": "der Hausbau हिन्दी", "label": spans[:2]}))) == [
        ["der/O", "Hau/B-P", "sb/B-P", "au/O", "हिन्दी/O"]
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"text": "a b", "label": [[0, 2, "P"], [1, 3, "P"]]},
            "the span 1 to 3 is empty, outside the text, or overlaps",
        ),
        ({"text": "a b", "label": [[0, 4, "P"]]}, "the span 0 to 4 is empty, outside"),
        ({"text": "a b", "label": [[1, 2, "P"]]}, "the span 1 to 2 is empty"),
        ({"text": "a b", "label": [["0", 2, "P"]]}, r"\['0', 2, 'P'\] is no span of two numbers"),
        ({"text": "a b", "label": ["P"]}, "'P' is no span"),
        ({"text": "a b", "label": [[0, 1, ""]]}, "is no span"),
        ({"text": "a b", "label": "P"}, "it has no spans: a list label"),
        ({"text": " ", "label": []}, "it has no text"),
        ({"text": "a b", "spans": [], "answer": "reject"}, "its answer is 'reject'"),
        ({"data": {"text": "a b"}, "annotations": [{"result": [{"value": {"start": 0}}]}]}, "have an unknown form"),
        ({"data": {"text": "a b"}, "annotations": []}, "it has no spans"),
    ],
)
def test_a_row_with_broken_spans_is_named_and_skipped(tmp_path, row, said):
    path = write(tmp_path / "a.jsonl", lines(SPANS["doccano"], row))
    with pytest.raises(ValueError, match=f"line 2: .*{said}"):
        tagged(path)
    assert tagged(path, skip=True) == [ANN]


def test_lists_of_plain_tags_and_parquet(tmp_path):
    rows = [{"words": ["I", "run"], "pos": ["PRON", "VERB"]}, {"words": ["go"], "pos": ["VERB"]}]
    path = write(tmp_path / "a.json", json.dumps(rows))
    assert tagged(path, "--label_column", "pos") == [["I/PRON", "run/VERB"], ["go/VERB"]]
    features = Features(
        {"tokens": datasets.List(Value("string")), "upos": datasets.List(ClassLabel(names=["VERB", "PRON"]))}
    )
    Dataset.from_dict({"tokens": [["I", "run"]], "upos": [[1, 0]]}, features=features).to_parquet(
        tmp_path / "a.parquet"
    )
    assert tagged(tmp_path / "a.parquet") == [["I/PRON", "run/VERB"]]
    assert load_of_forms(tmp_path / "a.parquet", "--kind", "token")[0].metrics == ("accuracy",)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "word,tag\nAnn,B-P\n", "is a table with commas; write a file of columns"),
        ("a.conll", '{"tokens": ["a"]}\n', "is JSON; write a file of columns"),
        ("a.jsonl", '{"tokens": ["a"], "ner_tags": [3]}\n', "needs .* as text or as numbers with names"),
        ("a.jsonl", '{"tokens": ["a", null], "ner_tags": ["B-x", "O"]}\n', "row 1: word 2 is null"),
    ],
)
def test_words_in_another_form_are_named(tmp_path, name, text, said):
    with pytest.raises(ValueError, match=said):
        tagged(write(tmp_path / name, text))


@pytest.mark.parametrize("word", ["1,000", "[", "{"])
def test_a_test_file_of_words_alone_may_begin_with_any(tmp_path, word):
    train, test = write(tmp_path / "a.conll", f"{word} O\nAnn B-P\n"), write(tmp_path / "b.conll", f"{word}\nAnn\n")
    args = arguments(train, "--kind", "token", "--test_file", test)
    splits = kinds.chosen(args).read(args, readers.Skipped())[1]
    assert splits["test"]["words"][:] == splits["train"]["words"][:] == [[word, "Ann"]]


# --- questions ------------------------------------------------------------------------------------------------------

QA = {"id": "1", "question": "Who?", "answers": [{"text": "cat", "answer_start": 2}]}
NESTED = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "A cat ran.", "qas": [QA]}]}]}
FLAT = QA | {"title": "t", "context": "A cat ran.", "answers": {"text": ["cat"], "answer_start": [2]}}
SQUAD = ("--max_seq_length", "384")


@pytest.mark.parametrize("form", ["nested", "lines", "list", "Parquet", "saved"])
def test_questions_in_a_file_of_any_name(tmp_path, form):
    path = tmp_path / "my questions.json"
    if form in ("nested", "list"):
        write(path, json.dumps(NESTED if form == "nested" else [FLAT]))
    elif form == "lines":
        path = write(tmp_path / "q.jsonl", lines(FLAT))
    else:
        path = tmp_path / ("q.parquet" if form == "Parquet" else "q")
        rows = Dataset.from_list([FLAT])
        rows.to_parquet(path) if form == "Parquet" else rows.save_to_disk(path)
    _, rows = load_of_forms(path, *SQUAD, task="squad")
    assert rows[0] == {"id": "1", "question": "Who?", "context": "A cat ran.", "texts": ["cat"], "starts": [2]}
    args = arguments(path, *SQUAD, "--dataset_name", "mine", task="squad")
    assert args.output_dir == "runs/mine/finetune/seed1" and evaluate.dev_files(args) == {"dev": str(path)}


def test_rows_without_an_answer_are_of_squad_2(tmp_path):
    path = write(tmp_path / "q.jsonl", lines(FLAT, FLAT | {"id": "2", "answers": {"text": [], "answer_start": []}}))
    assert load_of_forms(path, *SQUAD, task="squad_v2")[1]["texts"][:] == [["cat"], []]
    with pytest.raises(ValueError, match=r"question '2' has no answer: use --task squad_v2"):
        load_of_forms(path, *SQUAD, task="squad")
    with pytest.raises(ValueError, match=r"not in SQuAD's format .KeyError: 'answers'., which is data, paragraphs"):
        load_of_forms(write(path, '{"id": "1", "context": "a"}\n'), *SQUAD, task="squad")
    for options in (("--data_dir", "x"), ("--validation_file", "")):
        with pytest.raises(ValueError, match="--train_file: pass --train_file and --validation_file, both"):
            arguments(path, *SQUAD, *options, task="squad")
    with pytest.raises(ValueError, match="--dataset_name 'cola' becomes a folder beside"):
        arguments(path, *SQUAD, "--dataset_name", "cola", task="squad")
