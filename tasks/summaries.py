"""Documents and their summaries: reading, labels of sentences by ROUGE, markers and windows, the chosen sentences.

Summaries are extractive, as in arXiv:1903.10318: the model reads [CLS] sentence [SEP] [CLS] sentence [SEP] ..., with
the tokenizer's names for these two tokens, and scores a sentence at its [CLS], called its marker here.
"""

import itertools
import json
from collections import Counter
from pathlib import Path

import datasets
from datasets import Dataset

import metrics
from data import TASKS, fewer_examples, own_rows, own_tables, task_files
from tasks import readers
from tasks.batching import cached_windows
from tasks.hub import load_hub
from tasks.tagging import joined, owned_windows

VERSION = 3  # of labels and windows; raise it when they change, so that old caches are not used
TEXTS, NUMBERS, SMALL = (datasets.List(datasets.Value(name)) for name in ("string", "int32", "int8"))
DOCUMENT = datasets.Features({"sentences": TEXTS, "references": TEXTS, "labels": SMALL, "idx": datasets.Value("int64")})
WINDOW = datasets.Features(
    {"input_ids": NUMBERS, "token_type_ids": SMALL, "attention_mask": SMALL, "labels": SMALL}
    | {"places": NUMBERS, "owned": NUMBERS}
    | {"source": datasets.Value("int32"), "cut_off": datasets.Value("int32")}
)


# The model card's section on use; it follows `_cut`.
USAGE = """
## Use

The model reads a document as `[CLS] sentence [SEP] [CLS] sentence [SEP] ...`; your tokenizer may name these two tokens
otherwise. The output at a sentence's first token is the sentence's score; the best sentences make the summary.

```python
import itertools
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

folder = "."  # this one, or the model's name on the hub
model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
sentences = ["Here is a first sentence.", "And this is a second one."]
pieces = tokenizer(sentences, add_special_tokens=False, split_special_tokens=True)["input_ids"]
ids = [i for own in pieces for i in (tokenizer.cls_token_id, *own, tokenizer.sep_token_id)]
markers = [0, *itertools.accumulate(len(own) + 2 for own in pieces)][:-1]
inputs = {"input_ids": torch.tensor([ids])}
if getattr(model.config, "type_vocab_size", 0) > 1:  # segments, as of BERT
    inputs["token_type_ids"] = torch.tensor([[n % 2 for n, own in enumerate(pieces) for _ in range(len(own) + 2)]])
with torch.no_grad():
    scores = model(**inputs).logits[0, markers].softmax(-1)[:, 1].tolist()
```

Split a document that is longer than the model's training windows between sentences, and score the parts.
"""


# --- reading ------------------------------------------------------------------------------------------------------


def splitter():
    """Return the function from an English text to its sentences. Raises ValueError if its package is missing."""
    try:
        from sentencex import segment
    except ImportError as error:
        raise ValueError(
            "the package sentencex cuts articles into sentences and is missing: pip install sentencex"
        ) from error
    return lambda text: list(segment("en", text))


def _shown(value):
    return json.dumps(value, default=str)[:60]


def _texts(row, column, one=False):
    """Return the texts of a cell that holds a list of them, with single blanks.

    one: a single text will do, too, and blanks stay. Raises ValueError for anything else.
    """
    if column not in row:
        raise ValueError(f"no column {column!r}; there are: {readers.listed(row)}")
    value = [row[column]] if one and isinstance(row[column], str) else row[column]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        due = "a text or a list of them" if one else "a list of sentences"
        raise ValueError(f"column {column!r} holds {_shown(value)}, not {due}")
    if any(map(readers.HALF_PAIR.search, value)):
        raise ValueError(f"column {column!r} holds half a surrogate pair, not text")
    return value if one else [" ".join(text.split()) for text in value]


def _references(row, column):
    """Return the reference summaries of a row. Raises ValueError if ROUGE can compare none of them."""
    texts = [text.strip() for text in (_texts(row, column, one=True) if row.get(column) else ())]
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError(f"no summary in column {column!r}")
    if not any(map(metrics.rouge_words, texts)):
        raise ValueError(f"the summary in column {column!r} has no letter a to z and no digit; ROUGE reads no others")
    return texts


def _labels(row, column, sentences):
    """Return the labels of a row's sentences, [] if it has none. Raises ValueError unless each sentence has 0 or 1."""
    labels = row.get(column)
    if labels is None:
        return []
    if not isinstance(labels, list) or any(label not in (0, 1) for label in labels):
        raise ValueError(f"column {column!r} holds {_shown(labels)}, not a list of 0 and 1")
    if len(labels) != len(sentences):
        raise ValueError(f"column {column!r} has {len(labels)} labels for {len(sentences)} sentences")
    return [int(label) for label in labels]


def _documents(rows, where, columns, cut, need, skipped):
    """Return a Dataset of DOCUMENT from rows. An empty sentence stays, since sentences are known by their numbers.

    cut: the function from a text to its sentences; None if rows have lists of them. need: what a document must have
    beside its sentences: "summary", "either" (a summary or labels) or "". Labels are [] if ROUGE is to make them. idx
    counts the rows from 0, skipped ones included.
    """
    found, before = {name: [] for name in DOCUMENT}, len(skipped.reports)
    for place, row in readers.placed(rows, skipped):
        try:
            if cut and isinstance(row.get(columns[0]), str):
                row = row | {columns[0]: cut(row[columns[0]])}
            sentences = _texts(row, columns[0])
            if not any(sentences):
                raise ValueError("the document has no sentences")
            labels = _labels(row, columns[2], sentences) if need and len(columns) > 2 else []
            must = need == "summary" or (need == "either" and not labels)
            references = _references(row, columns[1]) if must or row.get(columns[1]) else []
        except ValueError as error:
            skipped.bad(f"{where}, {readers.line_name(place)}: {error}; mend it or pass --skip_bad_examples")
            continue
        for column, value in zip(found.values(), (sentences, references, labels, place.index), strict=True):
            column.append(value)
    if not found["idx"]:
        raise readers.nothing_in(where, "documents", skipped.reports[before:])
    return Dataset.from_dict(found, features=DOCUMENT)


def _task(args, task):
    """Return the task; custom gets the columns, labels and metrics of documents."""
    if args.task != "custom":
        return task
    like = TASKS["scitldr"]
    return task._replace(
        kind="summary",
        columns=("sentences", "summary", "labels"),
        labels=like.labels,
        names=like.names,
        metrics=tuple(args.metrics) or like.metrics,
        submission=like.submission,
    )


def read_set(args, path, skipped):
    """Return (task, Dataset of DOCUMENT) of one file of documents with summaries."""
    task, cut = _task(args, TASKS[args.task]), splitter() if args.task == "cnn_dailymail" else None
    rows = own_rows(args, path, None, skipped)[0] if args.task == "custom" else readers.read_table(path, skipped)
    return task, _documents(rows, path, task.columns, cut, "summary", skipped)


def load_documents(args, task, skipped):
    """Return (task, {split: Dataset of DOCUMENT}) from --data_dir, the hub or the custom files.

    Raises ValueError with file and line for the first document without sentences, without a needed summary, or with
    wrong labels; `skipped` may count them instead.
    """
    cut = splitter() if args.task == "cnn_dailymail" else None
    task = _task(args, task)
    if args.task == "custom":
        tables = {split: (where, rows) for split, (where, rows, _) in own_tables(args, skipped).items()}
    elif args.data_dir:
        files = task_files(args.task, args.data_dir)
        tables = {split: (path, readers.read_table(path, skipped)) for split, path in files.items()}
    else:
        hub = fewer_examples(load_hub(task.hub), args)
        tables = {split: (f"{task.hub[0]} {split}", readers.dataset_rows(rows)) for split, rows in hub.items()}
    need = {"train": "summary" if getattr(args, "held_out", 0) else "either", "validation": "summary", "test": ""}
    splits = {
        split: _documents(rows, where, task.columns, cut, need[split], skipped)
        for split, (where, rows) in tables.items()
    }
    return task, fewer_examples(splits, args)


# --- labels ---------------------------------------------------------------------------------------------------------


def _f1(words, golds):
    """Return F1 of two multisets of n-grams."""
    return 2 * (words & golds).total() / ((words.total() + golds.total()) or 1)


def _ngrams(words):
    return Counter(words), Counter(itertools.pairwise(words))


def oracle(sentences, references, count):
    """Return the numbers of at most `count` sentences, chosen greedily for the best ROUGE, in the document's order.

    As arXiv:1903.10318: each step adds the sentence that raises ROUGE-1 + ROUGE-2 (F1) most, the first of equals, and
    stops if none does. Both are those of `metrics.rouge`: stemmed, of the whole summary, against the reference with the
    best ROUGE-1.
    """
    golds = [_ngrams(metrics.rouge_words(reference)) for reference in references]
    words = [metrics.rouge_words(sentence) for sentence in sentences]

    def gain(numbers):
        """Return ROUGE-1 + ROUGE-2 of the summary of these sentences."""
        ones, twos = _ngrams([word for i in sorted(numbers) for word in words[i]])
        first, gold = max(((_f1(ones, gold[0]), gold) for gold in golds), key=lambda pair: pair[0])
        return round(first + _f1(twos, gold[1]), 9)  # so that equals are equal

    chosen, best = [], 0.0
    while golds and len(chosen) < count:
        gains = {i: gain([*chosen, i]) for i in range(len(words)) if words[i] and i not in chosen}
        if not gains or max(gains.values()) <= best:
            break
        best = max(gains.values())
        chosen.append(max(gains, key=gains.get))
    return sorted(chosen)


def summary_text(sentences, numbers):
    """Return the summary of these sentences, one a line, as `metrics.rouge` reads it."""
    return "\n".join(sentences[i] for i in numbers)


def mean_rouge(texts, references):
    """Return {name: mean of `metrics.rouge`} over summaries and their references."""
    rows = [metrics.rouge(text, golds) for text, golds in zip(texts, references, strict=True)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def bounds(documents, count):
    """Return {"lead": scores, "oracle": scores} of the first `count` sentences and of those that `oracle` chooses."""

    def lead(sentences, references, count):
        return [i for i, sentence in enumerate(sentences) if sentence][:count]

    rows = list(zip(documents["sentences"], documents["references"], strict=True))
    return {
        choose.__name__: mean_rouge([summary_text(s, choose(s, r, count)) for s, r in rows], [r for _, r in rows])
        for choose in (lead, oracle)
    }


# --- markers and windows --------------------------------------------------------------------------------------------


def _cut(rows, indices, tokenizer, max_length, count):
    """Return the windows of a batch of documents as columns; indices: the documents' numbers."""
    texts = [*itertools.chain(*rows["sentences"])]
    # split_special_tokens: "[SEP]" in a sentence is text, not a marker.
    cut = iter(tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    found, before, after = {name: [] for name in WINDOW}, tokenizer.cls_token_id, tokenizer.sep_token_id
    documents = zip(indices, rows["sentences"], rows["references"], rows["labels"], strict=True)
    for number, sentences, references, given in documents:
        best = [i for i, label in enumerate(given) if label] if given else oracle(sentences, references, count)
        own = [(i, ids) for i, ids in zip(range(len(sentences)), cut, strict=False) if ids]
        marked = [[before, *ids[: max_length - 2], after] for _, ids in own]
        segments = [[n % 2] * len(ids) for n, ids in enumerate(marked)]  # as long as the sentences, so cut as they are
        of_segments = (types for types, *_ in owned_windows(segments, max_length))
        for (ids, places, first, last), types in zip(owned_windows(marked, max_length), of_segments, strict=True):
            owned, labels = [i for i, _ in own[first:last]], [-100] * len(ids)
            for place, i in zip(places, owned, strict=True):
                labels[place] = int(i in best)
            cut_off = sum(len(ids) + 2 > max_length for _, ids in own[first:last])
            row = (ids, types, [1] * len(ids), labels, places, owned, number, cut_off)
            for column, value in zip(found.values(), row, strict=True):
                column.append(value)
    return found


def windows(documents, tokenizer, args, cache_dir="cache"):
    """Return the Dataset of windows of documents, at most args.max_seq_length tokens long, cut between sentences.

    Columns: input_ids, attention_mask; token_type_ids: 0 and 1 for every other sentence, as BertSum's segments; labels
    [T]: 1 or 0 at the markers of the window's own sentences, -100 elsewhere; places and owned: of each of these markers
    the place and the sentence's number; source: the document's number; cut_off: how many sentences lose their end.
    Other sentences are context, as in `tagging.spans`. A sentence without tokens has no marker. The Dataset is kept on
    disk.
    """
    settings = (VERSION, args.max_seq_length, args.summary_sentences, tokenizer.cls_token_id, tokenizer.sep_token_id)
    found = cached_windows(
        Path(cache_dir) / "summary",
        documents.remove_columns("idx"),
        tokenizer,
        settings,
        lambda rows, indices: _cut(rows, indices, tokenizer, args.max_seq_length, args.summary_sentences),
        WINDOW,
    )
    if not len(found):
        raise ValueError(f"the tokenizer drops all sentences, the first: {documents['sentences'][0][0]!r}")
    return found


def cut_line(split, documents, cut, max_length):
    """Return a line on documents that need several windows and sentences that are cut off; "" if there are none."""
    several, lost = sum(n > 1 for n in Counter(cut["source"]).values()), sum(cut["cut_off"])
    said = []
    if several:
        said.append(
            f"{several} of {len(documents)} documents are longer than --max_seq_length {max_length} and read in windows"
        )
    if lost:
        said.append(f"{lost} sentences are longer and lose their end")
    return f"{split}: {', '.join(said)}" if said else ""


# --- summaries ------------------------------------------------------------------------------------------------------


def predictions(documents, cut, logits, count):
    """Return the prediction for each document as a dict, from the logits [N, T, 2] of its windows.

    index: the document's place in its file, from 0; chosen: numbers of the `count` best sentences, the first of
    equals, in the document's order; summary: their texts; scores: the probability of each sentence, None without a
    marker; references, and their scores by `metrics.rouge` if there are any.
    """
    scores = joined(cut, logits.float().softmax(-1)[..., 1], documents["sentences"])
    found = []
    for document, own in zip(documents, scores, strict=True):
        sentences, references = document["sentences"], document["references"]
        known = [i for i, score in enumerate(own) if score is not None]
        chosen = sorted(sorted(known, key=lambda i: -own[i])[:count])
        row = {
            "index": document["idx"],
            "chosen": chosen,
            "summary": [sentences[i] for i in chosen],
            "scores": [score if score is None else round(score, 6) for score in own],
            "references": references,
        }
        found.append(row | (metrics.rouge(summary_text(sentences, chosen), references) if references else {}))
    return found


def json_lines(rows):
    """Return rows as the text of a JSON lines file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
