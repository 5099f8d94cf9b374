"""metrics.py against values computed by hand."""
import math

import pytest
import torch

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


def test_a_suffix_names_the_dev_set_and_not_another_metric():
    logits, labels = two_class(4, 1, 2, 3)
    for name in data.TASKS["mnli"].metrics:
        assert compute(name, logits, labels) == pytest.approx(0.7)


def test_every_headline_metric_of_classification_and_regression_can_be_computed():
    logits, labels = two_class(4, 1, 2, 3)
    for task in data.TASKS.values():
        if task.kind != "qa":
            inputs = (logits, labels) if task.kind == "classification" else (logits[:, :1], labels.float())
            assert metrics.compute_metrics(task.metrics, *inputs).keys() == set(task.metrics)


def test_score_is_the_mean_of_the_headline_metrics_alone():
    assert metrics.score({"f1": 0.9, "accuracy": 0.6, "other": 5.0}, ("f1", "accuracy")) == pytest.approx(0.75)
    assert metrics.score({"matthews_correlation": -0.25}, ("matthews_correlation",)) == -0.25
