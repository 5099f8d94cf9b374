"""metrics.py against values computed by hand, scikit-learn and SciPy."""

import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
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
