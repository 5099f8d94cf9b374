"""Scores of GLUE tasks from torchmetrics."""
import math
import warnings

import torch
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.classification import (
    binary_f1_score,
    binary_matthews_corrcoef,
    multiclass_accuracy,
)


def _matthews(predictions, labels):
    # With one class among the labels the correlation is undefined; 0 by convention, as in scikit-learn.
    return binary_matthews_corrcoef(predictions, labels) if labels.unique().numel() > 1 else torch.tensor(0.0)


METRICS = {
    "accuracy": lambda p, y: multiclass_accuracy(p, y, num_classes=int(max(p.max(), y.max(), 1)) + 1, average="micro"),
    "f1": binary_f1_score,
    "matthews_correlation": _matthews,
    "pearson": pearson_corrcoef,
    "spearman": spearman_corrcoef,
}


def compute_metrics(names, logits, labels):
    """Named metrics as fractions: logits [N, C] (C = 1 for regression), labels [N] -> {name: float}.

    A name with a suffix, as accuracy_matched, is computed as the metric before the suffix. A correlation with constant
    predictions, which is undefined, counts as 0.
    """
    predictions = logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1)
    result = {}
    for name in names:
        metric = name if name in METRICS else name.rsplit("_", 1)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics warns about constant predictions; they are handled here
            value = float(METRICS[metric](predictions, labels))
        result[name] = 0.0 if math.isnan(value) else value
    return result


def score(metrics, names):
    """The one number by which runs are compared: the mean of the headline metrics."""
    return sum(metrics[name] for name in names) / len(names)
