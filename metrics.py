"""Scores: GLUE's and several labels' by scikit-learn and SciPy, words' by seqeval, summaries' by rouge-score, SQuAD's
as its official evaluation computes them.
"""

import functools
import math
import re
import string
import types
import warnings
from collections import Counter

import torch


def _of_sklearn(name, **options):
    def metric(predictions, labels):
        import sklearn.metrics  # here: --help stays fast

        value = getattr(sklearn.metrics, name)(labels, predictions, **options)
        return value if math.isfinite(value) else 0.0

    return metric


def _correlation(function):
    def correlation(predictions, labels):
        from scipy import stats

        if (predictions == predictions[0]).all() or (labels == labels[0]).all():  # also for a single example
            return 0.0
        return getattr(stats, function)(predictions, labels).statistic

    return correlation


def _check_finite(logits):
    """Raise ValueError if a logit is not finite: the largest one, or its rank, would mean nothing."""
    bad = (~torch.isfinite(logits)).any(-1).nonzero()
    if len(bad):
        raise ValueError(f"logits that are not finite, the first for example {int(bad[0])}, cannot be scored")


METRICS = {
    "accuracy": _of_sklearn("accuracy_score"),
    "balanced_accuracy": _of_sklearn("balanced_accuracy_score"),
    "f1": _of_sklearn("f1_score", zero_division=0),  # of class 1
    "macro_f1": _of_sklearn("f1_score", average="macro", zero_division=0),
    "weighted_f1": _of_sklearn("f1_score", average="weighted", zero_division=0),
    "matthews_correlation": _of_sklearn("matthews_corrcoef"),
    "cohen_kappa": _of_sklearn("cohen_kappa_score"),
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
    "r2": _of_sklearn("r2_score"),
}


def compute_metrics(names, logits, labels):
    """Return {name: float}, metrics as fractions: logits [N, C] (C = 1 for regression), labels [N].

    A suffix, as in accuracy_matched, does not change a metric. Undefined scores count as 0: a correlation, also
    Matthews', with constant predictions or labels, and F1 without any 1. Raises ValueError if a logit is not finite.
    """
    _check_finite(logits)
    predictions = (logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1)).double().numpy()
    labels = labels.double().numpy()
    result = {}
    for name in names:
        metric = name if name in METRICS else name.rsplit("_", 1)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # labels of one class, nearly constant predictions
            result[name] = float(METRICS[metric](predictions, labels))
    return result


def score(metrics, names):
    """Return the mean of the headline metrics, the one number that runs are compared by."""
    return sum(metrics[name] for name in names) / len(names)


# --- several labels, words -----------------------------------------------------------------------------------------


def label_set_metrics(logits, labels):
    """Return {name: float}, scores as fractions of several labels a text: logits [N, C], labels [N, C] of 0 and 1.

    micro_f1 and macro_f1 count labels with a probability of at least `threshold`, the one with the best micro F1 here;
    micro_f1_at_0.5 and macro_f1_at_0.5 use 0.5; mean_average_precision uses none. All are scikit-learn's: a label that
    is neither there nor predicted has F1 0, a label that is not there has average precision 0. Raises ValueError if a
    logit is not finite.
    """
    from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve

    _check_finite(logits)
    chances, labels = logits.double().sigmoid().numpy(), labels.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels that no example has
        precision, recall, thresholds = precision_recall_curve(labels.ravel(), chances.ravel())
        f1 = 2 * precision * recall / (precision + recall).clip(min=1e-300)
        threshold, result = float(thresholds[f1[:-1].argmax()]), {}
        for limit, suffix in ((threshold, ""), (0.5, "_at_0.5")):
            for average in ("micro", "macro"):
                value = f1_score(labels, chances >= limit, average=average, zero_division=0)
                result[f"{average}_f1{suffix}"] = float(value)
        precision = average_precision_score(labels, chances, average="macro")
    return result | {"threshold": threshold, "mean_average_precision": float(precision)}


def tag_metrics(golds, predictions):
    """Return {"accuracy": share of words with the right tag} of tagged sentences (lists of tags)."""
    pairs = [g == p for gold, found in zip(golds, predictions, strict=True) for g, p in zip(gold, found, strict=True)]
    return {"accuracy": sum(pairs) / len(pairs)}


def entity_metrics(golds, predictions):
    """Return {name: float}, scores as fractions of tagged sentences (lists of tags), as conlleval counts.

    An entity is right if its first word, last word and type are. f1, precision and recall are over all types;
    `f1/<type>`, ... are for each type that is there or predicted. Undefined scores count as 0.
    """
    from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

    names, result = ("precision", "recall", "f1"), {}
    overall = precision_recall_fscore_support(golds, predictions, average="micro", zero_division=0)
    types = sorted({entity[0] for tags in (golds, predictions) for entity in get_entities(tags)})
    each = precision_recall_fscore_support(golds, predictions, average=None, zero_division=0)
    for name, value, values in zip(names, overall, each, strict=False):
        result |= {name: float(value)} | {f"{name}/{one}": float(v) for one, v in zip(types, values, strict=True)}
    return {name: result[name] for name in sorted(result, key=lambda name: ("/" in name, name))}


# --- summaries ----------------------------------------------------------------------------------------------------


@functools.cache
def _rouge():
    """Return (text -> its words, scorer of ROUGE-1, scorer of the others) of rouge-score, with stemming.

    They cache stems and words. The first call takes seconds.
    """
    from nltk.stem.porter import PorterStemmer
    from rouge_score import rouge_scorer, tokenize

    stemmer = types.SimpleNamespace(stem=functools.lru_cache(2**17)(PorterStemmer().stem))
    words = functools.lru_cache(2**14)(lambda text: tokenize.tokenize(text, stemmer))
    tokenizer = types.SimpleNamespace(tokenize=words)
    return words, *(rouge_scorer.RougeScorer(names, tokenizer=tokenizer) for names in (ROUGE[:1], ROUGE[1:]))


ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]  # rouge-score's names


def rouge_words(text):
    """Return the words of a text that ROUGE compares: lower case, letters a to z and digits only, stemmed."""
    return _rouge()[0](text)


def rouge(summary, references):
    """Return {name of ROUGE: F1}, as fractions, of a summary whose sentences are on lines of their own.

    references: texts. As in SciTLDR's paper (arXiv:2004.15011), one of them counts for all scores: the first one with
    the best ROUGE-1. rougeL compares whole texts; rougeLsum compares lines, which papers on news call ROUGE-L.
    """
    _, one, others = _rouge()
    found = [one.score(reference, summary)["rouge1"].fmeasure for reference in references]
    best = others.score(references[found.index(max(found))], summary)
    return {"rouge1": max(found)} | {name: float(score.fmeasure) for name, score in best.items()}


# --- SQuAD --------------------------------------------------------------------------------------------------------


def normalize_answer(text):
    """Return a text in lower case, without punctuation, articles and extra blanks, as SQuAD's official evaluation."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _f1(prediction, gold, v2):
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if v2 and not (predicted and wanted):
        return float(predicted == wanted)
    same = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * same / (len(predicted) + len(wanted)) if same else 0.0


def squad_scores(prediction, golds, v2=False):
    """Return (exact match, F1) of a predicted text, each the best over the gold texts, as the official evaluation.

    v2: the rules of SQuAD 2.0: no gold text means that the question has no answer.
    """
    if v2:
        golds = [gold for gold in golds if normalize_answer(gold)] or [""]
    exact = max(float(normalize_answer(prediction) == normalize_answer(gold)) for gold in golds)
    return exact, max(_f1(prediction, gold, v2) for gold in golds)


def best_threshold(start, gains, differences):
    """Return (total, threshold) of the best total when questions are answered in the order of their differences.

    start: the total with no question answered. gains: {id: what answering it adds}. differences: {id: null score -
    score of the answer}. As in the official evaluation of SQuAD 2.0, the threshold is 0 if answering none is best.
    """
    total = best = start
    threshold = 0.0
    for key in sorted(differences, key=differences.get):
        total += gains[key]
        if total > best:
            best, threshold = total, differences[key]
    return best, threshold


def official_best(scored, answers, golds, differences):
    """Return best_exact, best_f1 and their thresholds, as the official evaluation of SQuAD 2.0 finds them.

    scored: {id: (exact match, F1)} of the answers; for the others see `squad_metrics`. The official evaluation may
    separate questions of equal difference, which no threshold does, and counts a gold text of articles alone as an
    answer.
    """
    unanswerable, result = sum(not gold for gold in golds.values()), {}
    for i, name in enumerate(("exact", "f1")):
        gains = {key: scored[key][i] if golds[key] else -float(bool(text)) for key, (text, _) in answers.items()}
        best, threshold = best_threshold(unanswerable, gains, differences)
        result |= {f"best_{name}": best / len(answers), f"best_{name}_thresh": threshold}
    return result


def usable_threshold(scored, empty, differences):
    """Return the threshold with the best F1; a question with a larger difference counts as unanswerable.

    scored, empty: {id: (exact match, F1)} of answering the question and of calling it unanswerable.
    """
    gains = Counter()
    for key, difference in differences.items():  # questions of equal difference stay together
        gains[difference] += scored[key][1] - empty[key][1]
    best, threshold = best_threshold(0.0, gains, {difference: difference for difference in gains})
    return threshold if best > 0 else min(gains) - 1.0


def squad_metrics(answers, golds, v2=False):
    """Return (metrics as fractions, final predictions {id: text}).

    answers: {id: (text, null score - its score)}; golds: {id: [text, ...]}, empty if there is no answer. With v2 a
    question counts as unanswerable if its difference is above null_threshold, the one with the best F1 here; f1 and
    exact_match are of these predictions. best_exact, best_f1 and their thresholds are the official evaluation's, each
    the best on its own. Raises ValueError if a difference is not a number.
    """
    scored = {key: squad_scores(text, golds[key], v2) for key, (text, _) in answers.items()}
    texts = {key: text for key, (text, _) in answers.items()}
    if not v2:
        exact, f1 = (sum(pair[i] for pair in scored.values()) / len(scored) for i in (0, 1))
        return {"f1": f1, "exact_match": exact}, texts
    bad = [key for key, (_, value) in answers.items() if math.isnan(value)]
    if bad:
        raise ValueError(f"the score of the answer to question {bad[0]!r} is not a number")
    # A difference may be infinite, a threshold in run.json may not.
    differences = {key: min(max(value, -1e9), 1e9) for key, (_, value) in answers.items()}
    empty = {key: squad_scores("", golds[key], v2) for key in answers}
    threshold, result = usable_threshold(scored, empty, differences), {}
    for limit, suffix in ((threshold, ""), (0.0, "_at_0")):
        chosen = [scored[key] if differences[key] <= limit else empty[key] for key in answers]
        for i, name in ((1, "f1"), (0, "exact_match")):
            result[f"{name}{suffix}"] = sum(pair[i] for pair in chosen) / len(chosen)
    result["null_threshold"] = threshold
    texts = {key: text if differences[key] <= threshold else "" for key, text in texts.items()}
    return result | official_best(scored, answers, {key: golds[key] for key in answers}, differences), texts
