"""The user's own data: Parquet, data sets of the hub, their names, chosen metrics, and text without labels."""

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
        ((), "needs --train_file: .* or pass --hub_dataset"),
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
    with pytest.raises(ValueError, match="--metrics f1 scores the second of two labels, and there are 3: choose"):
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
