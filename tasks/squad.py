"""SQuAD 1.1 and 2.0: reading, cutting long contexts into windows, and joining the windows' answers again."""

import hashlib
import itertools
import json
import re
from pathlib import Path

import datasets
import torch
from datasets import Dataset

from data import TASKS, fewer_examples, whole_texts, with_offsets
from engine import checkpoints
from tasks.hub import load_hub
from tasks.readers import read_dataset, read_table

VERSION = 3  # of the windows below; raise it when they change, so that old caches are not used
FILES = {"squad": ("train-v1.1.json", "dev-v1.1.json"), "squad_v2": ("train-v2.0.json", "dev-v2.0.json")}


# --- questions ----------------------------------------------------------------------------------------------------


def _question(qa, context, where, v2, skipped):
    """Return one row of the data set, or None for a broken question that is to be skipped."""
    try:
        key, question, answers = qa["id"], qa["question"], qa["answers"]
        impossible = qa.get("is_impossible", False)
        texts, starts = [a["text"] for a in answers], [a["answer_start"] for a in answers]
        good = isinstance(key, str) and isinstance(question, str) and isinstance(impossible, bool)
        good = good and all(isinstance(t, str) for t in texts) and all(type(s) is int for s in starts)
    except (KeyError, TypeError, AttributeError):
        good, key = False, qa.get("id") if isinstance(qa, dict) else qa
    if not good:
        return skipped.bad(f"{where}: question {key!r} is not as SQuAD has it: id, question and answers are needed")
    if impossible:
        if not v2:
            return skipped.bad(f"{where}: question {key!r} has no answer: use --task squad_v2")
        texts, starts = [], []
    elif not texts:
        return skipped.bad(f"{where}: question {key!r} has no answers and is not marked is_impossible")
    for text, start in zip(texts, starts, strict=True):
        if start < 0 or context[start : start + len(text)] != text or not text:
            return skipped.bad(
                f"{where}: question {key!r}: the answer {text!r} does not stand at answer_start {start}; mend the file "
                "or pass --skip_bad_examples"
            )
    return {"id": key, "question": question, "context": context, "texts": texts, "starts": starts}


def _paragraphs(path):
    """Return [(context, its questions), ...] of a file as SQuAD publishes it, or of rows as `datasets` has them."""
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
    """Questions of a SQuAD file as a Dataset with id, question, context, texts and starts of the answers.

    Raises ValueError, naming file and question id, for a file that is not SQuAD's JSON, an id that comes twice, or an
    answer that does not stand where answer_start says; `skipped` may count the latter instead.
    """
    try:
        paragraphs = _paragraphs(path)
        if not all(isinstance(context, str) and isinstance(qas, list) for context, qas in paragraphs):
            raise TypeError("a context is not text or its questions are not a list")
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not in SQuAD's format ({type(error).__name__}: {error}): wanted is data, paragraphs, context and "
            "qas, or rows with id, question, context and answers (text, answer_start)"
        ) from error
    rows, seen = [], set()
    for context, qas in paragraphs:
        for qa in qas:
            row = _question(qa, context, path, v2, skipped)
            if row and row["id"] in seen:
                skipped.bad(f"{path}: the question id {row['id']!r} comes twice")
            elif row:
                seen.add(row["id"])
                rows.append(row)
    if not rows:
        raise ValueError(f"{path}: holds no questions")
    return Dataset.from_dict({key: [row[key] for row in rows] for key in rows[0]}, features=FEATURES)


FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "question": datasets.Value("string"),
        "context": datasets.Value("string"),
        "texts": datasets.List(datasets.Value("string")),
        "starts": datasets.List(datasets.Value("int64")),
    }
)


def load_questions(args, skipped):
    """Return {"train": Dataset, "validation": Dataset} of questions from the user's files, args.data_dir or the hub."""
    v2 = args.task == "squad_v2"
    if args.data_dir:
        if not Path(args.data_dir).is_dir():
            raise ValueError(f"--data_dir {args.data_dir!r} is not a folder")
        paths = dict(zip(("train", "validation"), FILES[args.task], strict=True))
        splits = {split: read_squad(Path(args.data_dir) / name, v2, skipped) for split, name in paths.items()}
    elif args.train_file:
        paths = {"train": args.train_file, "validation": args.validation_file}
        splits = {split: read_squad(path, v2, skipped) for split, path in paths.items()}
    else:
        splits = dict(load_hub(TASKS[args.task].hub))
        for split, data in splits.items():
            flat = data.map(lambda row: {"texts": row["answers"]["text"], "starts": row["answers"]["answer_start"]})
            splits[split] = flat.select_columns(list(FEATURES))
    return fewer_examples(splits, args)


# --- windows ------------------------------------------------------------------------------------------------------


def _cut_questions(questions, tokenizer, length):
    """Return the questions' texts, ending where their first `length` tokens end."""
    encoded = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True)
    return [
        q if len(offsets) <= length else q[: offsets[length - 1][1]]
        for q, offsets in zip(questions, encoded["offset_mapping"], strict=True)
    ]


NONE, NEAREST, EXACT = range(3)  # of the column "answer": what a window can give of the first answer


def characters(text, offsets):
    """Return {offsets of a piece: (begin, end) of the characters that it stands for} for all pieces of a text.

    Blanks at the ends of a piece are left out. What can be seen and is in no piece, because the tokenizer drops it or
    joins it with the letter before, as accents, goes to the piece that it follows, else to the one that follows it.
    """
    bare, covered = {}, bytearray(len(text))
    for begin, end in set(offsets):
        left, right = begin, end
        while left < right and text[left].isspace():
            left += 1
        while left < right and text[right - 1].isspace():
            right -= 1
        bare[begin, end] = left, right
        covered[left:right] = b"1" * (right - left)
    begins, ends = {}, {}  # where a piece begins or ends -> where it does with what goes to it
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
    """Offsets of the first and the last token that overlap the characters begin:end of a context; None for none.

    parts: for each window of the context the offsets of its tokens.
    """
    inside = [offset for offsets in parts for offset in offsets if 0 <= offset[0] < end and offset[1] > begin]
    return (min(inside), max(inside)) if inside else None


def _answer_tokens(offsets, span, cls):
    """Token positions (first, last) of a span of `_overlapping`; ([CLS], [CLS]) if the window lacks any of it."""
    if span is None or span[0] not in offsets or span[1] not in offsets:
        return cls, cls
    return offsets.index(span[0]), len(offsets) - 1 - offsets[::-1].index(span[1])


def _cut(rows, indices, tokenizer, args):
    """Return the windows of a batch of questions, as columns; indices: the questions' numbers."""
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
    """Questions -> Dataset of windows of at most args.max_seq_length tokens that share args.doc_stride tokens.

    Columns: input_ids, attention_mask, (token_type_ids), start_positions and end_positions of the first answer's tokens
    ([CLS] where the window lacks any of them), answer (NONE, EXACT, or NEAREST where the tokens overlap the answer but
    do not end with it), question (index of its question), offsets (begin and end characters in the context, [-1, -1]
    outside it). Kept on disk under a name made from all that they depend on, and verified whenever they are read, which
    costs one reading of the file. Raises ValueError if what is on disk is damaged.
    """
    whole_texts(tokenizer)  # what an earlier call left would be part of the name
    content = hashlib.sha256()
    for batch in questions.iter(1000):
        content.update(json.dumps(batch).encode())
    settings = (
        VERSION,
        datasets.__version__,
        args.max_seq_length,
        args.doc_stride,
        args.max_query_length,
        tokenizer.backend_tokenizer.to_str(),
        content.hexdigest(),
    )
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]
    found = checkpoints.kept_windows(
        questions, Path(cache_dir) / f"squad-{name}", lambda rows, indices: _cut(rows, indices, tokenizer, args)
    )
    whole_texts(tokenizer)
    return found


def inexact_answers(questions, cut):
    """Return one line on the answers that their windows do not give as they stand; empty if there are none."""
    best = [NONE] * len(questions)
    for question, found in zip(cut["question"], cut["answer"], strict=True):
        best[question] = max(best[question], found)
    answered = [found for found, texts in zip(best, questions["texts"], strict=True) if texts]
    lost, near = answered.count(NONE), answered.count(NEAREST)
    if not lost + near:
        return ""
    return (
        f"{lost + near} of {len(answered)} training answers cannot be given exactly: for {near} the tokens that "
        f"overlap them are taken, {lost} have no token or fit into no window and count as no answer"
    )


# --- answers ------------------------------------------------------------------------------------------------------


def best_spans(logits, context, n_best, max_answer_length):
    """Return the best span of each window among the n_best starts and n_best ends.

    logits [N, 2, S]: of start and end. context [N, S]: bool, True = context token. A span ends where it starts or
    later, holds at most max_answer_length tokens and lies in the context.
    Returns (score [N], start [N], end [N]); the score is -inf where no span is possible.
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
    """Join the windows: {id: (text of the best span over all windows, null score - its score)}.

    questions: Dataset of `load_questions`; cut: its `windows`; logits [N, 2, S] of the windows, in their order. The
    null score is the lowest of the windows' [CLS] scores; the difference is inf where no span is possible.
    """
    size = logits.shape[-1]
    offsets = torch.full((len(cut), size, 2), -1)
    for i, row in enumerate(cut["offsets"]):
        offsets[i, : len(row)] = torch.tensor(row)
    cls = torch.zeros(len(cut), dtype=torch.long)  # every model here has its [CLS] first
    score, start, end = best_spans(logits, offsets[..., 0] >= 0, n_best, max_answer_length)
    rows = torch.arange(len(cut))
    null = (logits[rows, 0, cls] + logits[rows, 1, cls]).tolist()
    begin, stop = offsets[rows, start, 0].tolist(), offsets[rows, end, 1].tolist()
    best = {}
    for i, (question, value) in enumerate(zip(cut["question"], score.tolist(), strict=True)):
        old = best.get(question, (float("-inf"), None, float("inf")))
        lowest = min(old[2], null[i])
        best[question] = (value, (begin[i], stop[i]), lowest) if value > old[0] else (*old[:2], lowest)
    result = {}
    for question, (key, context) in enumerate(zip(questions["id"], questions["context"], strict=True)):
        value, span, lowest = best[question]
        result[key] = (context[span[0] : span[1]] if span else "", lowest - value)
    return result
