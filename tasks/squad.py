"""SQuAD 1.1 and 2.0: readers, windows of long contexts, and the answers of windows joined again."""

import functools
import itertools
import re
from pathlib import Path

import datasets
import torch
from datasets import Dataset

from data import TASKS, data_folder, fewer_examples, with_offsets
from tasks.batching import cached_windows
from tasks.hub import load_hub
from tasks.readers import read_dataset, read_table

VERSION = 3  # of the windows; raise it when they change, so that old caches are not used
FILES = {"squad": ("train-v1.1.json", "dev-v1.1.json"), "squad_v2": ("train-v2.0.json", "dev-v2.0.json")}


# --- questions ----------------------------------------------------------------------------------------------------


def _question(qa, context, where, v2, skipped):
    """Return one row of the data set; None for a broken question that is skipped."""
    try:
        key, question, answers = qa["id"], qa["question"], qa["answers"]
        impossible = qa.get("is_impossible", False)
        texts, starts = [a["text"] for a in answers], [a["answer_start"] for a in answers]
        good = isinstance(key, str) and isinstance(question, str) and isinstance(impossible, bool)
        good = good and all(isinstance(t, str) for t in texts) and all(type(s) is int for s in starts)
    except (KeyError, TypeError, AttributeError):
        good, key = False, qa.get("id") if isinstance(qa, dict) else qa
    where = f"{where}: question {key!r}"
    if not good:
        return skipped.bad(f"{where} is not in SQuAD's format: it needs id, question and answers")
    if impossible:
        if not v2:
            return skipped.bad(f"{where} has no answer: use --task squad_v2")
        texts, starts = [], []
    elif not texts:
        return skipped.bad(f"{where} has no answers and is not marked is_impossible")
    for text, start in zip(texts, starts, strict=True):
        if start < 0 or context[start : start + len(text)] != text or not text:
            return skipped.bad(
                f"{where}: the answer {text!r} is not at answer_start {start}; mend it or pass --skip_bad_examples"
            )
    return {"id": key, "question": question, "context": context, "texts": texts, "starts": starts}


def _paragraphs(path):
    """Return [(context, its questions), ...] of a file in SQuAD's published form, or of rows as `datasets` has them."""
    rows = read_dataset(path)
    rows = list(rows) if rows is not None else [row for _, row in read_table(path)]
    if any("paragraphs" in row for row in rows):
        return [(paragraph["context"], paragraph["qas"]) for row in rows for paragraph in row["paragraphs"]]
    found = []
    for row in rows:
        given = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        answers = [{"text": text, "answer_start": start} for text, start in given]
        qa = {"id": row["id"], "question": row["question"], "answers": answers, "is_impossible": not answers}
        found.append((row["context"], [qa]))
    return found


def read_squad(path, v2, skipped):
    """Return the questions of a SQuAD file as a Dataset with id, question, context, texts and starts of the answers.

    Raises ValueError with file and question id for another format, a repeated id, or an answer that is not at
    answer_start; `skipped` may count the latter two instead.
    """
    try:
        paragraphs = _paragraphs(path)
        if not all(isinstance(context, str) and isinstance(qas, list) for context, qas in paragraphs):
            raise TypeError("a context is not text or its questions are not a list")
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not in SQuAD's format ({type(error).__name__}: {error}), which is data, paragraphs, context and "
            "qas, or rows with id, question, context and answers (text, answer_start)"
        ) from error
    rows = {}
    for context, qas in paragraphs:
        for qa in qas:
            row = _question(qa, context, path, v2, skipped)
            if row and row["id"] in rows:
                skipped.bad(f"{path}: the question id {row['id']!r} comes twice")
            elif row:
                rows[row["id"]] = row
    if not rows:
        raise ValueError(f"{path}: holds no questions")
    return Dataset.from_list(list(rows.values()), features=FEATURES)


FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("id", "question", "context")}
    | {"texts": datasets.List(datasets.Value("string")), "starts": datasets.List(datasets.Value("int64"))}
)


def load_questions(args, skipped):
    """Return {"train": Dataset, "validation": Dataset} of questions from the user's files, args.data_dir or the hub."""
    if args.data_dir:
        train, dev = map(data_folder(args.data_dir).joinpath, FILES[args.task])
    else:
        train, dev = args.train_file, args.validation_file
    if train:
        paths = {"train": train, "validation": dev}
        splits = {split: read_squad(path, args.task == "squad_v2", skipped) for split, path in paths.items()}
    else:
        splits = dict(load_hub(TASKS[args.task].hub))
        for split, data in splits.items():
            flat = data.map(lambda row: {"texts": row["answers"]["text"], "starts": row["answers"]["answer_start"]})
            splits[split] = flat.select_columns(list(FEATURES))
    return fewer_examples(splits, args)


# --- windows ------------------------------------------------------------------------------------------------------


def _cut_questions(questions, tokenizer, length):
    """Return the texts of the questions, cut after their first `length` tokens."""
    encoded = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True)
    return [
        q if len(offsets) <= length else q[: offsets[length - 1][1]]
        for q, offsets in zip(questions, encoded["offset_mapping"], strict=True)
    ]


NONE, NEAREST, EXACT = range(3)  # values of the column "answer": how a window can give the first answer


def characters(text, offsets):
    """Return {offsets of a piece: (begin, end) of its characters} for all pieces of a text.

    The blanks at a piece's ends are left out. Visible characters in no piece, since the tokenizer drops them or joins
    them with the letter before, as accents, go to the piece that they follow, else to the one that follows them.
    """
    bare, covered = {}, bytearray(len(text))
    for begin, end in set(offsets):
        part = text[begin:end]
        left = begin + len(part) - len(part.lstrip())
        right = max(left, begin + len(part.rstrip()))
        bare[begin, end] = left, right
        covered[left:right] = b"1" * (right - left)
    begins, ends = {}, {}  # where a piece begins or ends -> where it does together with what goes to it
    for gap in re.finditer(rb"\0+", covered):
        begin, end = gap.span()
        run = text[begin:end]
        left, right = (len(list(itertools.takewhile(_visible, part))) for part in (run, run[::-1]))
        if begin:
            ends[begin] = begin + left
        if not begin or left < len(run):
            begins[end] = end - right
    return {key: (begins.get(left, left), ends.get(right, right)) for key, (left, right) in bare.items()}


def _visible(character):
    return character.isprintable() and character != " "


def _overlapping(parts, begin, end):
    """Return the offsets of the first and the last token that overlap the characters begin:end of a context, or None.

    parts: the offsets of the tokens of each window of the context.
    """
    inside = [offset for offsets in parts for offset in offsets if 0 <= offset[0] < end and offset[1] > begin]
    return (min(inside), max(inside)) if inside else None


def _answer_tokens(offsets, span, cls):
    """Return the positions (first, last) of a span of `_overlapping`; ([CLS], [CLS]) if the window lacks any of it."""
    if span is None or span[0] not in offsets or span[1] not in offsets:
        return cls, cls
    return offsets.index(span[0]), len(offsets) - 1 - offsets[::-1].index(span[1])


def _cut(rows, indices, tokenizer, args):
    """Return the windows of a batch of questions as columns; indices: the questions' numbers."""
    asked = _cut_questions(rows["question"], tokenizer, args.max_query_length)
    out = with_offsets(
        tokenizer,
        asked,
        rows["context"],
        truncation="only_second",
        max_length=args.max_seq_length,
        stride=args.doc_stride,
        return_overflowing_tokens=True,
    )
    sources, parts = out.pop("overflow_to_sample_mapping"), {}
    for i, (source, offsets) in enumerate(zip(sources, out.pop("offset_mapping"), strict=True)):
        offsets = [o if p == 1 else None for o, p in zip(offsets, out.sequence_ids(i), strict=True)]
        parts.setdefault(source, []).append(offsets)
    for source, found in parts.items():
        own = characters(rows["context"][source], filter(None, itertools.chain(*found)))
        parts[source] = [[own.get(o, (-1, -1)) for o in offsets] for offsets in found]
    ends = [
        (starts[0], starts[0] + len(texts[0])) if texts else (0, 0)
        for starts, texts in zip(rows["starts"], rows["texts"], strict=True)
    ]
    spans = {source: _overlapping(offsets, *ends[source]) for source, offsets in parts.items()}
    extra = {"start_positions": [], "end_positions": [], "question": [], "offsets": [], "answer": []}
    for ids, source in zip(out["input_ids"], sources, strict=True):
        offsets, cls = parts[source].pop(0), ids.index(tokenizer.cls_token_id)
        start, end = _answer_tokens(offsets, spans[source], cls)
        answer = NONE if start == cls else EXACT if (offsets[start][0], offsets[end][1]) == ends[source] else NEAREST
        for column, value in zip(extra.values(), (start, end, indices[source], offsets, answer), strict=True):
            column.append(value)
    return {**out, **extra}


def windows(questions, tokenizer, args, cache_dir="cache"):
    """Return a Dataset of windows of questions, at most args.max_seq_length tokens long, that share args.doc_stride.

    Columns: input_ids, attention_mask, (token_type_ids); start_positions and end_positions of the first answer's
    tokens, [CLS] if the window lacks any of them; answer: NONE, EXACT, or NEAREST if the tokens overlap the answer but
    end elsewhere; question: its number; offsets: begin and end characters in the context, [-1, -1] outside it. The
    Dataset is kept on disk.
    """
    settings = (VERSION, datasets.__version__, args.max_seq_length, args.doc_stride, args.max_query_length)
    cut = functools.partial(_cut, tokenizer=tokenizer, args=args)
    return cached_windows(Path(cache_dir) / "squad", questions, tokenizer, settings, cut)


def inexact_answers(questions, cut):
    """Return a line on the training answers that no window gives exactly; "" if there are none."""
    best = [NONE] * len(questions)
    for question, found in zip(cut["question"], cut["answer"], strict=True):
        best[question] = max(best[question], found)
    answered = [found for found, texts in zip(best, questions["texts"], strict=True) if texts]
    lost, near = answered.count(NONE), answered.count(NEAREST)
    if not lost + near:
        return ""
    return (
        f"{lost + near} of {len(answered)} training answers cannot be given exactly: {near} are extended to whole "
        f"tokens; {lost} have no token or fit into no window and count as no answer"
    )


# --- answers ------------------------------------------------------------------------------------------------------


def best_spans(logits, context, n_best, max_answer_length):
    """Return (score [N], start [N], end [N]) of each window's best span among its n_best starts and n_best ends.

    logits [N, 2, T]: of start and end. context [N, T]: bool, True = context token. A span lies in the context and has
    1 to max_answer_length tokens. The score is -inf if no span is possible.
    """
    n_best = min(n_best, logits.shape[-1])
    (start_score, start), (end_score, end) = (
        logits[:, i].masked_fill(~context, float("-inf")).topk(n_best, dim=-1) for i in (0, 1)
    )
    length = end[:, None, :] - start[:, :, None] + 1
    scores = start_score[:, :, None] + end_score[:, None, :]
    scores = scores.masked_fill((length < 1) | (length > max_answer_length), float("-inf"))
    score, best = scores.flatten(1).max(-1)
    return score, start.gather(1, best[:, None] // n_best).squeeze(1), end.gather(1, best[:, None] % n_best).squeeze(1)


def answers(questions, cut, logits, n_best, max_answer_length):
    """Return {id: (text of the best span over all windows of a question, null score - its score)}.

    questions: Dataset of `load_questions`; cut: its `windows`; logits [N, 2, T] of the windows, in their order. The
    null score is the lowest [CLS] score of the windows; the difference is inf if no span is possible.
    """
    offsets = torch.full((len(cut), logits.shape[-1], 2), -1)
    for i, row in enumerate(cut["offsets"]):
        offsets[i, : len(row)] = torch.tensor(row)
    score, start, end = best_spans(logits, offsets[..., 0] >= 0, n_best, max_answer_length)
    rows = torch.arange(len(cut))
    null = (logits[:, 0, 0] + logits[:, 1, 0]).tolist()  # every model here has its [CLS] first
    begin, stop = offsets[rows, start, 0].tolist(), offsets[rows, end, 1].tolist()
    best = {}
    for i, (question, value) in enumerate(zip(cut["question"], score.tolist(), strict=True)):
        old, span, lowest = best.get(question, (float("-inf"), (0, 0), float("inf")))
        lowest = min(lowest, null[i])
        best[question] = (value, (begin[i], stop[i]), lowest) if value > old else (old, span, lowest)
    result = {}
    for question, (key, context) in enumerate(zip(questions["id"], questions["context"], strict=True)):
        value, (left, right), lowest = best[question]
        result[key] = context[left:right], lowest - value
    return result
