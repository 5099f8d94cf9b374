"""metrics.py against values computed by hand, scikit-learn and SciPy. evaluate.py: scores beside an independent
computation, a text at a time; files of predictions; bad input.
"""

import csv
import itertools
import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from accelerate.state import AcceleratorState
from conftest import forked
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import data
import distill_finetune
import evaluate
import metrics


def two_class(tp, fn, fp, tn):
    """Logits [N, 2] and labels [N] with the given confusion table."""
    predictions = torch.tensor([1] * tp + [0] * fn + [1] * fp + [0] * tn)
    labels = torch.tensor([1] * (tp + fn) + [0] * (fp + tn))
    return torch.stack([-predictions, predictions], dim=1).float(), labels


def compute(name, logits, labels):
    result = metrics.compute_metrics([name], logits, labels)
    assert list(result) == [name]
    assert type(result[name]) is float
    return result[name]


@pytest.mark.parametrize(
    ("table", "matthews", "f1", "accuracy"),
    [
        ((4, 1, 2, 3), (4 * 3 - 2 * 1) / math.sqrt(6 * 5 * 5 * 4), 8 / 11, 0.7),
        ((1, 3, 2, 0), (0 - 6) / math.sqrt(3 * 4 * 2 * 3), 2 / 7, 1 / 6),
        ((5, 0, 0, 5), 1.0, 1.0, 1.0),
        ((0, 5, 5, 0), -1.0, 0.0, 0.0),
        ((5, 0, 5, 0), 0.0, 2 / 3, 0.5),  # always predicts 1
        ((0, 5, 0, 5), 0.0, 0.0, 0.5),  # always predicts 0
        ((0, 0, 0, 4), 0.0, 0.0, 1.0),  # nothing but class 0
        ((3, 0, 0, 0), 0.0, 1.0, 1.0),  # nothing but class 1
        ((3, 1, 0, 0), 0.0, 6 / 7, 0.75),  # one label, two predictions
    ],
)
def test_two_classes(table, matthews, f1, accuracy):
    logits, labels = two_class(*table)
    assert compute("matthews_correlation", logits, labels) == pytest.approx(matthews, abs=1e-6)
    assert compute("f1", logits, labels) == pytest.approx(f1, abs=1e-6)
    assert compute("accuracy", logits, labels) == pytest.approx(accuracy, abs=1e-6)


def tables(largest):
    return [table for table in itertools.product(range(largest + 1), repeat=4) if 0 < sum(table) <= largest]


def matthews_by_definition(tp, fn, fp, tn):
    below = (tp + fn) * (tp + fp) * (tn + fn) * (tn + fp)
    return (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0


def test_the_matthews_correlation_of_every_table_of_up_to_9_examples():
    """0 where a row or a column of the table is empty, as in scikit-learn."""
    assert len(tables(9)) == math.comb(13, 4) - 1
    for table in tables(9):
        assert compute("matthews_correlation", *two_class(*table)) == pytest.approx(matthews_by_definition(*table))


@pytest.mark.filterwarnings("ignore")
def test_every_table_of_up_to_5_examples_as_in_scikit_learn():
    for tp, fn, fp, tn in tables(5):
        logits, labels = two_class(tp, fn, fp, tn)
        got = metrics.compute_metrics(["matthews_correlation", "f1", "accuracy"], logits, labels)
        assert got["f1"] == pytest.approx(2 * tp / (2 * tp + fn + fp) if tp else 0)
        assert got["accuracy"] == pytest.approx((tp + tn) / (tp + fn + fp + tn))
        assert got == {
            "matthews_correlation": sklearn.metrics.matthews_corrcoef(labels, logits.argmax(-1)),
            "f1": sklearn.metrics.f1_score(labels, logits.argmax(-1), zero_division=0),
            "accuracy": sklearn.metrics.accuracy_score(labels, logits.argmax(-1)),
        }


def test_accuracy_of_three_classes_is_a_share_of_examples_not_a_mean_over_classes():
    logits = torch.eye(3)[[0, 0, 0, 0, 1, 2]]
    labels = torch.tensor([0, 0, 0, 0, 2, 2])
    assert compute("accuracy", logits, labels) == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("predictions", "labels", "pearson", "spearman"),
    [
        ([1, 2, 3, 4], [2.0, 4.0, 6.0, 8.0], 1.0, 1.0),
        ([1, 2, 3, 4], [5.0, 4.0, 3.0, 2.0], -1.0, -1.0),
        ([1, 2, 3, 10], [1.0, 2.0, 4.0, 3.0], 7 / math.sqrt(50 * 5), 0.8),
        # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5.
        ([0, 1, 1, 5], [0.0, 2.0, 1.0, 3.0], 7.5 / math.sqrt(14.75 * 5), 4.5 / math.sqrt(4.5 * 5)),
        ([3.3] * 50, [0.1 * i for i in range(50)], 0.0, 0.0),
        ([0.1 * i for i in range(50)], [2.7] * 50, 0.0, 0.0),
        ([1], [1.0], 0.0, 0.0),
    ],
)
def test_correlations(predictions, labels, pearson, spearman):
    logits = torch.tensor(predictions, dtype=torch.float32)[:, None]
    assert compute("pearson", logits, torch.tensor(labels)) == pytest.approx(pearson, abs=1e-5)
    assert compute("spearman", logits, torch.tensor(labels)) == pytest.approx(spearman, abs=1e-5)


PAIRS = st.lists(st.tuples(st.floats(-50, 50, width=32), st.sampled_from([0.0, 1.0, 2.5, 5.0])), min_size=1, max_size=9)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_correlations_are_scipys_and_0_where_it_has_none(pairs):
    predictions, labels = (np.array(column) for column in zip(*pairs, strict=True))
    got = metrics.compute_metrics(["pearson", "spearman"], torch.tensor(predictions)[:, None], torch.tensor(labels))
    for name, function in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = function(predictions, labels).statistic if len(pairs) > 1 else math.nan
        assert got[name] == (0.0 if math.isnan(expected) else expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("width, name", [(1, "pearson"), (1, "spearman"), (2, "accuracy"), (3, "accuracy")])
def test_logits_that_are_not_finite_are_not_scored(value, width, name):
    logits = torch.randn(4, width)
    logits[2, -1] = value
    with pytest.raises(ValueError, match="not finite, the first for example 2"):
        metrics.compute_metrics([name], logits, torch.tensor([0, 1, 0, 1]))


def test_help_does_not_wait_for_scikit_learn():
    code = "import sys, metrics; sys.exit(any(name.split('.')[0] in ('sklearn', 'scipy') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_suffix_names_the_dev_set_and_not_another_metric():
    logits, labels = two_class(4, 1, 2, 3)
    for name in data.TASKS["mnli"].metrics:
        assert compute(name, logits, labels) == pytest.approx(0.7)


def test_every_headline_metric_of_classification_and_regression_can_be_computed():
    logits, labels = two_class(4, 1, 2, 3)
    for task in data.TASKS.values():
        if task.kind in ("classification", "regression"):
            inputs = (logits, labels) if task.kind == "classification" else (logits[:, :1], labels.float())
            assert metrics.compute_metrics(task.metrics, *inputs).keys() == set(task.metrics)


def test_score_is_the_mean_of_the_headline_metrics_alone():
    assert metrics.score({"f1": 0.9, "accuracy": 0.6, "other": 5.0}, ("f1", "accuracy")) == pytest.approx(0.75)
    assert metrics.score({"matthews_correlation": -0.25}, ("matthews_correlation",)) == -0.25


# --- evaluate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """made(auto, labels): folder of a model of the artificial language with a random, but strong head."""
    folder = tmp_path_factory.mktemp("models")

    def make(auto, labels=(), name="model"):
        torch.manual_seed(len(labels))
        options = {"num_labels": len(labels), "id2label": dict(enumerate(labels))} if labels else {}
        model = auto.from_pretrained(world / "bert", **options)
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "classifier" in key or "qa_outputs" in key:
                    value.normal_()
        path = folder / f"{name}-{auto.__name__}-{len(labels)}"
        model.save_pretrained(path)
        AutoTokenizer.from_pretrained(world / "bert").save_pretrained(path)
        return path

    return make


def texts_of(world, count):
    lines = (world / "glue/CoLA/dev.tsv").read_text().splitlines()
    return [line.split("\t")[3] for line in lines[:count]]


def run(out, *options):
    AcceleratorState._reset_state(reset_partial_state=True)
    evaluate.main([*map(str, options), "--output_dir", str(out)])
    return json.loads((out / "evaluation.json").read_text())["scores"]


@torch.no_grad()
def alone(folder, auto, text, **options):
    """transformers' own forward of one text."""
    model, tokenizer = auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    return model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=128, **options))


def test_twelve_numeric_labels(world, made, tmp_path):
    names = sorted(map(str, range(1, 13)), key=int)
    folder = made(AutoModelForSequenceClassification, names)
    other = made(AutoModelForSequenceClassification, names, "other")
    texts, draw = texts_of(world, 40), np.random.default_rng(0)
    found = [names[alone(folder, AutoModelForSequenceClassification, t).logits.argmax()] for t in texts]
    truth = [f if draw.random() < 0.6 else names[draw.integers(12)] for f in found]
    for name, part in (("a", slice(0, 40)), ("b", slice(0, 9))):
        with (tmp_path / f"{name}.csv").open("w") as f:
            csv.writer(f).writerows([("text", "label"), *zip(texts[part], truth[part], strict=True)])
    sets = [f"{name}={tmp_path / name}.csv" for name in "ab"]
    given = ("--task", "custom", "--metrics", "accuracy", "macro_f1", "--predictions", "--sets", *sets)
    scores = run(tmp_path / "out", folder, other, *given)
    for name, part in (("a", slice(0, 40)), ("b", slice(0, 9))):
        got = scores[str(folder)][name]
        assert got["accuracy"] == pytest.approx(accuracy_score(truth[part], found[part]))
        assert got["macro_f1"] == pytest.approx(f1_score(truth[part], found[part], average="macro"))
    rows = list(csv.DictReader((tmp_path / "out/model1/a/predictions.csv").open()))
    assert [row["prediction"] for row in rows] == found and [row["label"] for row in rows] == truth
    chances = alone(folder, AutoModelForSequenceClassification, texts[0]).logits[0].softmax(-1)
    assert [float(rows[0][name]) for name in names] == pytest.approx(chances.tolist(), abs=1e-5)
    table = list(csv.reader((tmp_path / "out/evaluation.csv").open()))
    assert len(table) == 4 and table[3][0] == f"{other}, kept"
    mean = {f: (scores[str(f)]["a"]["accuracy"] + scores[str(f)]["a"]["macro_f1"]) / 2 for f in (folder, other)}
    assert table[3][1] == f"{100 * mean[other] / mean[folder]:.1f} %"
    for models, said in (((folder,), "holds predictions of another call .model1."), (("no/run/here",), "no/run/here")):
        with pytest.raises(ValueError, match=said):
            run(tmp_path / ("out" if said.startswith("holds") else "new"), *models, *given[2:])


def test_similarity(world, made, tmp_path):
    folder, texts = made(AutoModel), texts_of(world, 24)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))

    def vector(text):
        return alone(folder, AutoModel, text).last_hidden_state[0].mean(0)

    cosines = [torch.cosine_similarity(vector(a), vector(b), dim=0).item() for a, b in pairs]
    labels = [i % 5 for i in range(len(pairs))]
    with (tmp_path / "s.csv").open("w") as f:
        csv.writer(f).writerows([("x", "y", "label"), *((*p, n) for p, n in zip(pairs, labels, strict=True))])
    given = ("--task", "custom", "--kind", "similarity", "--text_columns", "x", "y", "--predictions")
    scores = run(tmp_path / "out", folder, *given, "--sets", f"s={tmp_path / 's.csv'}")
    assert scores[str(folder)]["s"]["spearman"] == pytest.approx(spearmanr(cosines, labels)[0], abs=1e-6)
    rows = list(csv.DictReader((tmp_path / "out/model1/s/predictions.csv").open()))
    assert [float(row["prediction"]) for row in rows] == pytest.approx(cosines, abs=1e-5)


def test_plain_tags_of_conllu(world, made, tmp_path):
    names = ["ADJ", "NOUN", "VERB"]
    folder, lines, truth, found = made(AutoModelForTokenClassification, names), [], [], []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for number, text in enumerate(texts_of(world, 12)):
        words = text.split()
        logits = alone(folder, AutoModelForTokenClassification, text).logits[0]
        first = tokenizer(words, is_split_into_words=True).word_ids()
        lines += [f"# text = {text}", "1-2\tab\t" + "\t".join("_" * 8)]
        for i, word in enumerate(words):
            truth.append(names[(number + i) % 3])
            found.append(names[logits[first.index(i)].argmax()])
            lines.append(f"{i + 1}\t{word}\t_\t{truth[-1]}" + "\t_" * 6)
        lines.append("")
    (tmp_path / "x.conllu").write_text("\n".join(lines) + "\n")
    given = ("--task", "custom", "--kind", "token", "--predictions", "--sets", f"x={tmp_path / 'x.conllu'}")
    scores = run(tmp_path / "out", folder, *given)
    assert scores[str(folder)]["x"]["accuracy"] == pytest.approx(accuracy_score(truth, found))
    rows = (tmp_path / "out/model1/x/predictions.conll").read_text().split("\n")
    assert [row.split("\t")[-1] for row in rows if row] == found


def test_questions(world, made, tmp_path):
    folder = made(AutoModelForQuestionAnswering)
    path = world / "squad/dev-v1.1.json"
    articles = json.loads(path.read_text())["data"]
    asked = [(p["context"], qa) for a in articles for p in a["paragraphs"] for qa in p["qas"]]
    exact, f1, tokenizer = [], [], AutoTokenizer.from_pretrained(folder)
    for context, qa in asked:
        encoded = tokenizer(qa["question"], context, return_offsets_mapping=True)
        out = alone(folder, AutoModelForQuestionAnswering, qa["question"], text_pair=context)
        inside = [i for i, part in enumerate(encoded.sequence_ids()) if part == 1]
        start, end = (values[0].tolist() for values in (out.start_logits, out.end_logits))
        _, a, b = max((start[a] + end[b], a, b) for a in inside for b in inside if a <= b < a + 30)
        text = context[encoded["offset_mapping"][a][0] : encoded["offset_mapping"][b][1]]
        one = metrics.squad_scores(text, [answer["text"] for answer in qa["answers"]])
        exact.append(one[0])
        f1.append(one[1])
    given = ("--task", "squad", "--max_seq_length", "128", "--doc_stride", "16", "--n_best_size", "128")
    scores = run(tmp_path / "out", folder, *given, "--sets", f"en={path}", "--predictions")
    got = scores[str(folder)]["en"]
    assert (got["exact_match"], got["f1"]) == pytest.approx((np.mean(exact), np.mean(f1)))
    assert len(json.loads((tmp_path / "out/model1/en/predictions.json").read_text())) == len(asked)


def test_unnamed_tags_are_those_of_the_file_in_order_if_there_are_as_many(world, made, tmp_path):
    names = ["ADJ", "NOUN", "VERB"]
    named, unnamed = made(AutoModelForTokenClassification, names), [f"LABEL_{i}" for i in range(3)]
    unnamed = made(AutoModelForTokenClassification, unnamed, "unnamed")  # the same weights
    rows = [f"{word}\t{names[i % 3]}" for i, word in enumerate(texts_of(world, 1)[0].split() * 3)]
    (tmp_path / "all.txt").write_text("\n".join(rows) + "\n")
    (tmp_path / "few.txt").write_text("\n".join(rows[:2]) + "\n")
    given = (unnamed, "--task", "custom", "--kind", "token", "--sets")
    scores = run(tmp_path / "out", named, *given, f"all={tmp_path / 'all.txt'}")
    assert scores[str(unnamed)] == scores[str(named)] and 0 < scores[str(named)]["all"]["accuracy"] < 1
    status, text = forked(evaluate, *given, f"few={tmp_path / 'few.txt'}", "--output_dir", tmp_path / "out2")
    assert status == 2 and "few.txt: 2 tags, but the model has 3 labels without names" in text and text.count("\n") == 1


def test_the_dev_sets_of_mnli_are_scored_without_its_training_set(world, made, tmp_path, capsys):
    names = ["contradiction", "entailment", "neutral"]  # not in the task's order
    folder, texts = made(AutoModelForSequenceClassification, names), texts_of(world, 12)
    head, expected = ["index", "sentence1", "sentence2", "gold_label"], {}
    (tmp_path / "MNLI").mkdir()
    for suffix, part in (("matched", texts[:6]), ("mismatched", texts[6:])):
        rows = [(str(i), text, texts[0], names[i % 3]) for i, text in enumerate(part)]
        (tmp_path / "MNLI" / f"dev_{suffix}.tsv").write_text("".join("\t".join(row) + "\n" for row in [head, *rows]))
        found = [
            alone(folder, AutoModelForSequenceClassification, a, text_pair=b).logits.argmax() for _, a, b, _ in rows
        ]
        expected[f"dev_{suffix}"] = np.mean([names[f] == row[3] for f, row in zip(found, rows, strict=True)])
    scores = run(tmp_path / "out", folder, "--task", "mnli", "--data_dir", tmp_path)[str(folder)]
    assert {name: found["accuracy"] for name, found in scores.items()} == pytest.approx(expected)
    assert "are taken as" not in capsys.readouterr().err  # the same names


def test_a_run_brings_its_task_and_another_test_file_is_no_other_run(world, tmp_path):
    for name, count in (("train", 16), ("dev", 12)):
        rows = [(text, ("no", "yes")[i % 2]) for i, text in enumerate(texts_of(world, count))]
        with (tmp_path / f"{name}.csv").open("w") as f:
            csv.writer(f).writerows([("text", "label"), *rows])
    words = ["--task", "custom", "--train_file", str(tmp_path / "train.csv"), "--max_steps", "1"]
    words += ["--validation_file", str(tmp_path / "dev.csv"), "--student", str(world / "bert")]
    words += ["--output_dir", str(tmp_path / "run")]
    AcceleratorState._reset_state(reset_partial_state=True)
    distill_finetune.main(words)
    scores = run(tmp_path / "out", tmp_path / "run")[str(tmp_path / "run")]["dev"]
    best = json.loads((tmp_path / "run/run.json").read_text())["best"]["metrics"]
    assert {name: scores[name] for name in best} == pytest.approx(best, abs=1e-5)
    AcceleratorState._reset_state(reset_partial_state=True)
    distill_finetune.main([*words, "--do_predict", "--test_file", str(tmp_path / "dev.csv")])
    assert len((tmp_path / "run/predictions.tsv").read_text().splitlines()) == 13


def test_bad_input_is_one_line_and_status_2(world, made, tmp_path):
    folder = made(AutoModelForSequenceClassification, ["a", "b"])
    (tmp_path / "x.csv").write_text("text,label\na b,a\nb,c\n")
    (tmp_path / "file").write_text("")
    x, task = f"x={tmp_path / 'x.csv'}", ["--task", "custom"]
    for options, said in (
        ([folder, *task, "--sets", "x"], "NAME=PATH"),
        ([folder, *task, "--sets", "x=nothing.csv"], "no file"),
        ([folder, *task, "--sets", x, x], "twice"),
        ([folder, "--sets", x], "--task"),
        ([world / "bert", *task, "--sets", x], "ForSequenceClassification"),
        ([folder, *task, "--kind", "token", "--sets", x], "ForTokenClassification"),
        ([folder, *task], "--sets"),
        ([folder, *task, "--sets", x], "the label 'c' is not one of the model's"),
    ):
        status, text = forked(evaluate, *options, "--output_dir", tmp_path / "out")
        assert status == 2 and said in text and text.count("\n") == 1, (options, text)
    status, text = forked(evaluate, folder, *task, "--sets", x, "--output_dir", tmp_path / "file")
    assert status == 2 and "is a file" in text and not (tmp_path / "out").exists()
