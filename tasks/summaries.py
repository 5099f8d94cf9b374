"""Documents and their summaries: reading, labels of sentences by ROUGE, markers and windows, the chosen sentences.

Extractive, as arXiv:1903.10318: the model reads [CLS] sentence [SEP] [CLS] sentence [SEP] ..., by whatever names its
tokenizer has these two words, and scores a sentence at its [CLS], which is called its marker here.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import datasets
from datasets import Dataset

import metrics
from data import TASKS, fewer_examples, own_rows, own_tables, task_files, whole_texts
from engine import checkpoints
from tasks import readers
from tasks.hub import load_hub
from tasks.tagging import spans

VERSION = 1  # of labels and windows below; raise it when they change, so that old caches are not used
TEXTS, NUMBERS = datasets.List(datasets.Value("string")), datasets.List(datasets.Value("int32"))
SMALL = datasets.List(datasets.Value("int8"))
DOCUMENT = datasets.Features({"sentences": TEXTS, "references": TEXTS, "labels": SMALL, "idx": datasets.Value("int64")})
WINDOW = datasets.Features(
    {
        "input_ids": NUMBERS,
        "attention_mask": SMALL,
        "labels": SMALL,
        "places": NUMBERS,
        "owned": NUMBERS,
        "document": datasets.Value("int32"),
        "cut_off": datasets.Value("int32"),
    }
)


# What a model card says of the use, as `_cut` has it.
USAGE = """
## Use

A document is read as `[CLS] sentence [SEP] [CLS] sentence [SEP] ...`, by whatever names the tokenizer has these two
words. What the model says at the first word of a sentence is the sentence's score; the best ones make the summary.

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
with torch.no_grad():
    scores = model(torch.tensor([ids])).logits[0, markers].softmax(-1)[:, 1].tolist()
```

Of a longer document than the model was trained for, score parts of whole sentences.
"""


# --- reading ------------------------------------------------------------------------------------------------------


def splitter():
    """Return the function from an English text to its sentences. Raises ValueError where its package is missing."""
    try:
        from sentencex import segment
    except ImportError as error:
        raise ValueError(
            "articles are cut into sentences by the package sentencex, which is missing here: pip install sentencex"
        ) from error
    return lambda text: list(segment("en", text))


def _shown(value):
    return json.dumps(value, default=str)[:60]


def _texts(row, column, one=False):
    """The texts of a cell that holds a list of them, with single blanks; one: a text alone will do, as it stands.

    Raises ValueError for anything else.
    """
    if column not in row:
        raise ValueError(f"no column {column!r}; there are: {readers.listed(row)}")
    value = [row[column]] if one and isinstance(row[column], str) else row[column]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(
            f"column {column!r} holds {_shown(value)}, not "
            + ("a text or a list of them" if one else "a list of sentences")
        )
    if any(re.search("[\ud800-\udfff]", text) for text in value):  # JSON can spell what UTF-8 cannot
        raise ValueError(f"column {column!r} holds half a surrogate pair, not text")
    return value if one else [" ".join(text.split()) for text in value]


def _references(row, column):
    """Return the reference summaries of a row as they stand. Raises ValueError if there is none that ROUGE
    can compare.
    """
    texts = [text.strip() for text in (_texts(row, column, one=True) if row.get(column) else ())]
    texts = [text for text in texts if text]
    if not any(map(metrics.rouge_words, texts)):
        raise ValueError(
            f"the summary in column {column!r} has none of the letters a to z and digits, which alone ROUGE reads"
            if texts
            else f"no summary in column {column!r}"
        )
    return texts


def _labels(row, column, sentences):
    """Return the labels of a row's sentences, [] where it has none. Raises ValueError if they are not 0 and 1, one
    each.
    """
    labels = row.get(column)
    if labels is None:
        return []
    if not isinstance(labels, list) or any(label not in (0, 1) for label in labels):
        raise ValueError(f"column {column!r} holds {_shown(labels)}, not a list of 0 and 1")
    if len(labels) != len(sentences):
        raise ValueError(f"column {column!r} has {len(labels)} labels for {len(sentences)} sentences")
    return [int(label) for label in labels]


def _documents(rows, where, columns, cut, need, skipped):
    """Rows of a file or data set -> Dataset of DOCUMENT. A sentence that holds nothing stays, for its number's sake.

    cut: the function from a text to its sentences, None where the row has a list of them. need: what a document must
    have beside them: "summary"; "either", that or labels; "" for nothing. Labels are [] where ROUGE is to make them;
    idx counts the rows from 0, skipped ones too.
    """
    found, before = {name: [] for name in DOCUMENT}, len(skipped.reports)
    for number, row in rows:
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
            skipped.bad(f"{where}, {readers.line_name(number)}: {error}; mend it or pass --skip_bad_examples")
            continue
        row = (sentences, references, labels, len(found["idx"]) + len(skipped.reports) - before)
        for column, value in zip(found.values(), row, strict=True):
            column.append(value)
    if not found["idx"]:
        broken = "".join(f" that are whole; the first: {report}" for report in skipped.reports[before:][:1])
        raise ValueError(f"{where}: holds no documents{broken}")
    return Dataset.from_dict(found, features=DOCUMENT)


def _task(args, task):
    """Return the task as it stands, or what custom data of documents make of it."""
    if args.task != "custom":
        return task
    return task._replace(
        kind="summary",
        columns=("sentences", "summary", "labels"),
        labels=("0", "1"),
        names=("other", "summary"),
        metrics=tuple(args.metrics) or ("rouge1", "rouge2", "rougeL"),
        submission=("summaries.test.jsonl",),
    )


def read_set(args, path, skipped):
    """Return (task, Dataset of DOCUMENT) of one file of documents with summaries."""
    task, cut = _task(args, TASKS[args.task]), splitter() if args.task == "cnn_dailymail" else None
    rows = own_rows(args, path, None, skipped)[0] if args.task == "custom" else readers.read_table(path, skipped)
    return task, _documents(rows, path, task.columns, cut, "summary", skipped)


def load_documents(args, task, skipped):
    """Return (task, {split: Dataset of DOCUMENT}) from --data_dir, the hub or the custom files.

    Raises ValueError with file and line for the first document without sentences, without a summary where one is
    needed, or with other labels than one for each sentence; `skipped` may count them instead.
    """
    cut = splitter() if args.task == "cnn_dailymail" else None
    task = _task(args, task)
    if args.task == "custom":
        tables = {split: (where, rows) for split, (where, rows, _) in own_tables(args, skipped).items()}
    elif args.data_dir:
        files = task_files(args.task, args.data_dir)
        tables = {split: (path, readers.read_table(path, skipped)) for split, path in files.items()}
    else:
        name, hub = task.hub[0], load_hub(task.hub)
        tables = {
            split: (f"{name} {split}", ((f"row {i}", row) for i, row in enumerate(rows, 1)))
            for split, rows in fewer_examples(hub, args).items()
        }
    need = {"train": "summary" if getattr(args, "held_out", 0) else "either", "validation": "summary", "test": ""}
    return task, fewer_examples(
        {
            split: _documents(rows, where, task.columns, cut, need[split], skipped)
            for split, (where, rows) in tables.items()
        },
        args,
    )


# --- labels ---------------------------------------------------------------------------------------------------------


def _f1(words, golds):
    """F1 of two multisets of n-grams."""
    return 2 * (words & golds).total() / ((words.total() + golds.total()) or 1)


def _ngrams(words):
    return Counter(words), Counter(itertools.pairwise(words))


def oracle(sentences, references, count):
    """Return the numbers of at most `count` sentences, chosen greedily to make the best summary by ROUGE.

    As arXiv:1903.10318: the one is added with which ROUGE-1 + ROUGE-2 (F1) grow most, the first of equals, as long as
    they grow. Both are those of `metrics.rouge`: with stemming, of the whole summary, by the reference with the best
    ROUGE-1. The numbers are in the document's order.
    """
    golds = [_ngrams(metrics.rouge_words(reference)) for reference in references]
    words = [metrics.rouge_words(sentence) for sentence in sentences]

    def gain(numbers):
        """ROUGE-1 + ROUGE-2 of the summary of these sentences."""
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
    """Return the summary of these sentences, each on a line, as `metrics.rouge` wants it."""
    return "\n".join(sentences[i] for i in numbers)


def mean_rouge(texts, references):
    """Return {name: mean of `metrics.rouge`} over summaries and, for each, its references."""
    rows = [metrics.rouge(text, golds) for text, golds in zip(texts, references, strict=True)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def bounds(documents, count):
    """Return {"lead": scores, "oracle": scores} of the first `count` sentences and of those `oracle` chooses."""

    def lead(sentences, references, count):
        return [i for i, sentence in enumerate(sentences) if sentence][:count]

    rows = list(zip(documents["sentences"], documents["references"], strict=True))
    return {
        choose.__name__: mean_rouge([summary_text(s, choose(s, r, count)) for s, r in rows], [r for _, r in rows])
        for choose in (lead, oracle)
    }


# --- markers and windows --------------------------------------------------------------------------------------------


def _cut(rows, indices, tokenizer, max_length, count):
    """Return the windows of a batch of documents, as columns; indices: the documents' numbers."""
    texts = [*itertools.chain(*rows["sentences"])]
    # split_special_tokens: a sentence about "[SEP]" is text, and no marker.
    cut = iter(tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    found, before, after = {name: [] for name in WINDOW}, tokenizer.cls_token_id, tokenizer.sep_token_id
    for number, sentences, references, given in zip(
        indices, rows["sentences"], rows["references"], rows["labels"], strict=True
    ):
        best = [i for i, label in enumerate(given) if label] if given else oracle(sentences, references, count)
        pieces = [(i, ids) for i, ids in zip(range(len(sentences)), cut, strict=False) if ids]
        sizes = [min(len(ids) + 2, max_length) for _, ids in pieces]
        for start, first, last, end in spans(sizes, max_length):
            edges = [*itertools.accumulate(sizes[start:end], initial=0)]
            ids = [i for _, own in pieces[start:end] for i in (before, *own[: max_length - 2], after)]
            places, labels = edges[first - start : last - start], [-100] * len(ids)
            for place, (i, _) in zip(places, pieces[first:last], strict=True):
                labels[place] = int(i in best)
            row = (
                ids,
                [1] * len(ids),
                labels,
                places,
                [i for i, _ in pieces[first:last]],
                number,
                sum(len(own) + 2 > max_length for _, own in pieces[first:last]),
            )
            for column, value in zip(found.values(), row, strict=True):
                column.append(value)
    return found


def windows(documents, tokenizer, args, cache_dir="cache"):
    """Return the Dataset of windows of documents, of at most args.max_seq_length tokens, cut between sentences.

    Columns: input_ids, attention_mask; labels: a number a token, 1 or 0 at the markers of the window's own sentences,
    -100 elsewhere; places and owned: of each of these markers its place and its sentence's number; document: its
    number; cut_off: sentences that lose their end. Sentences around a window's own are context, as in `tagging.spans`.
    One of which the tokenizer makes nothing has no marker. Kept on disk, as `checkpoints.kept_windows`.
    """
    whole_texts(tokenizer)  # what an earlier call left would be part of the name
    content = hashlib.sha256()
    for batch in documents.iter(1000):
        content.update(json.dumps([batch[name] for name in ("sentences", "references", "labels")]).encode())
    settings = (
        VERSION,
        args.max_seq_length,
        args.summary_sentences,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.backend_tokenizer.to_str(),
        content.hexdigest(),
    )
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]
    found = checkpoints.kept_windows(
        documents,
        Path(cache_dir) / f"summary-{name}",
        lambda rows, indices: _cut(rows, indices, tokenizer, args.max_seq_length, args.summary_sentences),
        WINDOW,
    )
    whole_texts(tokenizer)
    if not len(found):
        raise ValueError(f"the tokenizer makes nothing of any sentence, the first {documents['sentences'][0][0]!r}")
    return found


def cut_line(split, documents, cut, max_length):
    """Return a line on the documents that fit into no window and the sentences that do not; "" for none."""
    several = sum(n > 1 for n in Counter(cut["document"]).values())
    lost = sum(cut["cut_off"])
    said = [
        f"{several} of {len(documents)} documents are longer than --max_seq_length {max_length} and read in windows"
    ] * bool(several)
    said += [f"{lost} sentences are longer and lose their end"] * bool(lost)
    return f"{split}: {', '.join(said)}" if said else ""


# --- summaries ------------------------------------------------------------------------------------------------------


def predictions(documents, cut, logits, count):
    """Return what is predicted for each document, a dict each, from the logits [N, S, 2] of its windows.

    index: the document's place in its file, from 0; chosen: numbers of the `count` best sentences, the first of
    equals, in the document's order; summary: their texts; scores: the probability of each sentence, None without a
    marker; references, and the scores of `metrics.rouge` where there are some.
    """
    scores = [[None] * len(sentences) for sentences in documents["sentences"]]
    chances = logits.float().softmax(-1)[..., 1]
    for row, number, places, owned in zip(chances, cut["document"], cut["places"], cut["owned"], strict=True):
        for i, value in zip(owned, row[places].tolist(), strict=True):
            scores[number][i] = value
    found = []
    for index, sentences, references, own in zip(
        documents["idx"], documents["sentences"], documents["references"], scores, strict=True
    ):
        known = [i for i, score in enumerate(own) if score is not None]
        chosen = sorted(sorted(known, key=lambda i: -own[i])[:count])
        row = {
            "index": index,
            "chosen": chosen,
            "summary": [sentences[i] for i in chosen],
            "scores": [score if score is None else round(score, 6) for score in own],
            "references": references,
        }
        found.append(row | (metrics.rouge(summary_text(sentences, chosen), references) if references else {}))
    return found


def json_lines(rows):
    """Return the text of a file of JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
