"""Scores: GLUE tasks from torchmetrics, SQuAD as its official evaluation has them."""
import math
import re
import string
import warnings
from collections import Counter

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


# --- SQuAD --------------------------------------------------------------------------------------------------------


def normalize_answer(text):
    """Lower case, without punctuation, articles and extra blanks, as the official evaluation of SQuAD does."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _f1(prediction, gold, v2):
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if v2 and not (predicted and wanted):
        return float(predicted == wanted)
    same = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * same / (len(predicted) + len(wanted)) if same else 0.0


def squad_scores(prediction, golds, v2=False):
    """(exact match, F1) of one predicted text, the best over the gold texts, as the official evaluation has them.

    v2: the rules of SQuAD 2.0, in which no gold text means that the question has no answer. Written here because the
    search for a threshold needs the score of every question, where torchmetrics gives the total.
    """
    if v2:
        golds = [gold for gold in golds if normalize_answer(gold)] or [""]
    exact = max(float(normalize_answer(prediction) == normalize_answer(gold)) for gold in golds)
    return exact, max(_f1(prediction, gold, v2) for gold in golds)


def squad_metrics(answers, golds, v2=False):
    """Metrics as fractions, and the final predictions {id: text}.

    answers: {id: (text, null score - its score)}; golds: {id: [text, ...]}, empty where there is no answer. For v2 the
    threshold of the difference above which a question counts as unanswerable is the one with the best F1 here.
    """
    scored = {key: squad_scores(text, golds[key], v2) for key, (text, _) in answers.items()}
    texts = {key: text for key, (text, _) in answers.items()}
    if not v2:
        exact, f1 = (sum(pair[i] for pair in scored.values()) / len(scored) for i in (0, 1))
        return {"f1": f1, "exact_match": exact}, texts
    empty = {key: squad_scores("", golds[key], v2) for key in answers}
    order = sorted(answers, key=lambda key: answers[key][1])
    # Start with no question answered, then answer them from the most certain one on.
    f1 = best = sum(pair[1] for pair in empty.values())
    threshold = answers[order[0]][1] - 1.0
    for i, key in enumerate(order):
        f1 += scored[key][1] - empty[key][1]
        tied = i + 1 < len(order) and answers[order[i + 1]][1] == answers[key][1]
        if f1 > best and not tied and math.isfinite(answers[key][1]):
            best, threshold = f1, answers[key][1]

    def totals(limit):
        chosen = [scored[k] if answers[k][1] <= limit else empty[k] for k in answers]
        return [sum(pair[i] for pair in chosen) / len(chosen) for i in (0, 1)]

    (exact, f1), (exact_at_0, f1_at_0) = totals(threshold), totals(0.0)
    texts = {key: text if answers[key][1] <= threshold else "" for key, text in texts.items()}
    return {
        "f1": f1, "exact_match": exact, "null_threshold": threshold, "f1_at_0": f1_at_0, "exact_match_at_0": exact_at_0,
    }, texts  # fmt: skip
