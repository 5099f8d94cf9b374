"""The summary of the examples that a run prints before it trains: their number, classes and oddities."""

from collections import Counter

import data
from tasks import batching
from tasks.readers import listed

TEXTS = ("text_a", "text_b", "words", "question", "context", "sentences")  # columns that a model reads
NAMES = {"words": "sentences", "question": "questions", "sentences": "documents"}  # column -> name of the examples


def lines(kind, splits, tokenised, tokenizer, args):
    """Return a line for each split: examples, classes, cut and empty texts, dev texts that are in training, too.

    splits, tokenised: {name: Dataset} of examples as they were read and as `kind.tokenize` returned them.
    """
    found = []
    for name, rows in splits.items():
        what = next((word for column, word in NAMES.items() if column in rows.column_names), "examples")
        parts = [f"{len(rows):,} {what}", *classes(rows, kind.task.names or kind.task.labels)]
        if "text_a" in rows.column_names:
            texts = data.texts_apart(rows, args.text_prefix) if kind.headless else rows
            parts += cut(texts, tokenised[name], tokenizer, args.max_seq_length)
            parts += empty(rows)
        if name != "train" and not name.startswith("test") and "train" in splits:
            parts += known(rows, splits["train"])
        found.append(f"{name}: " + "; ".join(parts))
    return "\n".join(found)


def text_columns(rows):
    """Return the columns of a Dataset that a model reads."""
    return [name for name in TEXTS if name in rows.column_names]


def share(count, total):
    """Return a count and its share of a total as text."""
    return f"{count:,} ({100 * count / total:.1f} %)"


def classes(rows, labels):
    """Return [text] on the largest and smallest class, or on the range of numbers; [] for other answers."""
    if "texts" in rows.column_names:
        return [f"{share(without, len(rows))} without an answer"] if (without := rows["texts"][:].count([])) else []
    if "tags" in rows.column_names:
        counts = Counter(tag for tags in rows["tags"][:] for tag in tags)
        total, unit = counts.total(), "words, "
    elif "label" in rows.column_names:
        values = rows["label"][:]
        if all(value == -1 for value in values):
            return ["no labels"]
        if not labels:
            return [f"labels from {min(values):g} to {max(values):g}, mean {sum(values) / len(values):.3g}"]
        several = isinstance(values[0], list)
        counts = Counter(i for row in values for i, on in enumerate(row) if on) if several else Counter(values)
        total, unit = len(rows), ""
    else:
        return []
    if not total or not labels:
        return []
    ids = sorted(range(len(labels)), key=lambda i: -counts[i])
    ends = [f"{listed([labels[i]])} with {share(counts[i], total)}" for i in (ids[0], ids[-1])]
    return [f"{total:,} {unit}" * bool(unit) + f"{len(labels)} classes, largest {ends[0]}, smallest {ends[1]}"]


def cut(rows, tokenised, tokenizer, max_length):
    """Return [text] on how many rows of text_a, (text_b) were cut, and the share of tokens lost; [] for none."""
    lengths = batching.Arrays(tokenised, ("input_ids",)).lengths()
    full = rows.select([i for i, length in enumerate(lengths) if length == max_length])
    names, lost = text_columns(rows), []
    for batch in full.iter(1000):  # shorter rows are not cut, so they need not be tokenised again
        whole = tokenizer(*(batch[name] for name in names), verbose=False)["input_ids"]
        lost += [len(ids) - max_length for ids in whole if len(ids) > max_length]
    tokens = 100 * sum(lost) / (sum(lengths) + sum(lost))
    said = f"{share(len(lost), len(rows))} are longer than {max_length} tokens and cut, {tokens:.1f} % of all tokens"
    return [said] if lost else []


def empty(rows):
    """Return [text] on how many rows have an empty text; [] for none."""
    columns = [rows[name][:] for name in text_columns(rows)]
    count = sum(not all(map(str.strip, texts)) for texts in zip(*columns, strict=True))
    return [f"{share(count, len(rows))} with an empty text"] if count else []


def known(rows, train):
    """Return [text] on how many rows have the same texts as a training example; [] for none."""
    names = text_columns(rows)
    if not {*names} <= {*train.column_names}:
        return []
    ours, theirs = (list(zip(*(map(str, split[name][:]) for name in names), strict=True)) for split in (rows, train))
    if not (count := sum(map({*theirs}.__contains__, ours))):
        return []
    remedy = ": its scores say nothing about new texts, so evaluate on others" if count == len(rows) else ""
    return [f"{share(count, len(rows))} with the same texts as in training{remedy}"]
