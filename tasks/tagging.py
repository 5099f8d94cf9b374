"""Words with tags: column files and tagging schemes; words cut into pieces and windows, and put together again."""

import functools
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
from datasets import Dataset, Value
from tokenizers.pre_tokenizers import BertPreTokenizer

from data import (
    TASKS,
    UD,
    fewer_examples,
    hub_id,
    hub_splits,
    label_of,
    saved_splits,
    task_files,
    whole_texts,
    with_offsets,
)
from encoders.label_names import in_order
from tasks.hub import load_hub
from tasks.readers import form_of_text, is_table, label_names, line_name, listed, read_dataset, read_lines, read_table


class Sentence(NamedTuple):
    """One sentence as it was read: its words, its tags (none in a test set), the lines of its file."""

    where: str  # file or data set
    start: int  # line of the first word, or row of the data set
    words: list
    tags: list
    lines: list
    head: list = ()  # -DOCSTART- lines that stand before it
    numbers: list = ()  # of the words' lines in the file

    def place(self, i):
        """Where word i stands, for a message."""
        line = f"{self.where}, line {self.numbers[i]}" if self.numbers else ""
        return line or f"{self.where}, row {self.start}, word {i + 1}"


# --- reading --------------------------------------------------------------------------------------------------------


def _fields(line):
    """Return the columns of a line: cut at tabs if it has any, else at blanks."""
    return [field.strip(" ") for field in line.split("\t")] if "\t" in line else re.split(" +", line.strip(" "))


def _paragraphs(path):
    """(-DOCSTART- lines, [(line number, line), ...]) of what stands between blank lines and those.

    Blanks, tabs and carriage returns make a line blank; others of Unicode's spaces may be words.
    """
    head, lines, ud = [], [], is_conllu(path)
    for number, line in read_lines(path):
        if ud and (line.startswith("#") or re.match(r"\d+[-.]\d+\t", line)):
            continue  # a comment, the range of several words, or an empty node
        blank = not line.strip(" \t\r")
        if not blank and not line.startswith("-DOCSTART-"):
            lines.append((number, line))
            continue
        if lines:
            yield head, lines
            head, lines = [], []
        if not blank:
            head.append(line)
    if lines:
        yield head, lines


def is_conllu(path):
    """Whether a file is CoNLL-U, by its ending."""
    return Path(path).suffix.lower() == ".conllu"


def _number(column, default):
    """Return the number of a column given by number or UD's name; `default` for none given. Raises ValueError for
    others.
    """
    column = default if column == "label" else column
    if not (column in UD or re.fullmatch("[0-9]{1,4}", str(column))):
        raise ValueError(f"--label_column {column!r} must be the number of a column, or one of {', '.join(UD)}")
    return UD.index(column) + 1 if column in UD else int(column)


def read_columns(path, token_column, label_column, skipped, plain=False):
    """Sentences of a file with a word a line, as the shared tasks of CoNLL publish them.

    token_column: number from 1 or UD's name. label_column: the same, 0 or "label" = the last, None = the file has no
    tags to be read. Of a .conllu file they are form and upos by default, and comments, ranges and empty nodes are
    passed over. plain: whether tags follow no scheme; None: they do not if none of them looks like a scheme's.
    A line with another number of columns than the first, an empty word or a tag that follows no scheme is broken, and
    so is its sentence. Raises ValueError for a column that the file does not have.
    """
    due, found, before, ud = 0, [], len(skipped.reports), is_conllu(path)
    token_column = _number(token_column, 1)
    if ud and token_column == 1:  # which numbers the words
        token_column = 2
    if label_column is not None:
        label_column = _number(label_column, "upos" if ud else 0) or (UD.index("upos") + 1 if ud else 0)
    paragraphs = [(head, lines, [_fields(line) for _, line in lines]) for head, lines in _paragraphs(path)]
    if plain is None:
        at = label_column - 1 if label_column else -1
        plain = is_plain({row[at] for _, _, rows in paragraphs for row in rows if len(row) > at})
    for head, lines, rows in paragraphs:
        if not due:
            due = len(rows[0])
            label = due if label_column == 0 else label_column
            _check_columns(path, lines[0][0], due, token_column, label)
        fault = next(
            (
                f"{path}, line {number}: {reason}"
                for (number, _), row in zip(lines, rows, strict=True)
                if (reason := _fault(row, due, token_column, label, plain, ud))
            ),
            "",
        )
        if fault:
            skipped.bad(f"{fault}; mend the line, or pass --skip_bad_examples to leave out its sentence")
        else:
            found.append(
                Sentence(
                    str(path),
                    lines[0][0],
                    [row[token_column - 1] for row in rows],
                    [row[label - 1] for row in rows] if label else [],
                    [line for _, line in lines],
                    head,
                    [number for number, _ in lines],
                )
            )
    if not found:
        broken = skipped.reports[before:]
        raise ValueError(f"{path}: holds no sentences" + (f" that are whole; the first: {broken[0]}" if broken else ""))
    return found


def _check_columns(path, number, due, token, label):
    """Raise ValueError unless a file of `due` columns has these two, and they are two."""
    for option, column in (("token", token), ("label", label or 1)):
        if column > due:
            raise ValueError(
                f"{path}, line {number}: {due} columns, so --{option}_column {column} is none of them; "
                "columns count from 1"
            )
    if token == label:
        raise ValueError(
            f"{path}, line {number}: {due} columns, and word and tag cannot both be column {token}: a "
            "line is a word and its tag, between them a tab or blanks"
        )


TAG = re.compile(r"O|[BIES]-.+")
MAY_LACK = ("lemma", "feats", "misc")  # columns of CoNLL-U in which _ says "none", not "unknown"


def is_plain(tags):
    """Whether tags follow no scheme: none of them looks like B-type, I-type, ..., and there are others than O."""
    return bool(set(tags) - {"O"}) and not any(re.fullmatch("[BIES]-.+", tag) for tag in tags)


def _fault(row, due, token, label, plain, ud):
    """Return what is wrong with the columns of a line, in words; "" if nothing."""
    if len(row) != due:
        return f"{len(row)} columns where {due} are due"
    if not row[token - 1]:
        return f"the word in column {token} is empty"
    if label and plain and (not row[label - 1] or (ud and row[label - 1] == "_" and UD[label - 1] not in MAY_LACK)):
        return f"the tag in column {label} is empty"
    if label and not plain and not TAG.fullmatch(row[label - 1]):
        return f"the tag {row[label - 1]!r} follows no scheme (BIO, IOB1 or BIOES: O, B-type, I-type, ...)"
    return ""


def _columns_of(args, there):
    """Return the columns of words and of tags: those of the options, else usual names; there: columns that
    hold lists.
    """
    words, tags = args.text_columns[0], label_of(args)
    if words == "text":
        words = next((name for name in ("text", "tokens", "words") if name in there), "tokens")
    if tags == "label":
        usual = ("label", "ner_tags", "tags", "labels", "upos", "pos_tags", "chunk_tags")
        tags = next((name for name in usual if name in there), "ner_tags")
    return words, tags


def _lists(row):
    """Return the names of the columns of a row, or of features, that hold lists."""
    return {name for name, value in row.items() if isinstance(value, list) or hasattr(value, "feature")}


def _hub_rows(args, task):
    """(task, {split: (its name in messages, Dataset)}) of --hub_dataset, whose columns and types become the task's, or
    of a task that has its own."""
    if not args.hub_dataset:
        hub, found = load_hub(task.hub), {"train": "train", "validation": "test"}
        if task.files[2]:
            found = {"train": "train", "validation": "validation", "test": "test"}
        return task, {split: (f"{task.hub[0]} {name}", hub[name]) for split, name in found.items()}
    rows = hub_splits(args)
    columns = _columns_of(args, _lists(rows["train"][1].features))
    task = task._replace(columns=columns, labels=label_names(rows["train"][1], columns[1]))
    return task if saved_splits(args.hub_dataset) else task._replace(hub=hub_id(args)), rows


def _from_lists(rows, name, columns, with_tags, skipped, plain=None):
    """Sentences of a Dataset with lists of words and of tags, which are text, or numbers that its features name.

    plain: as in `read_columns`. A last row without words is what stands behind the last blank line of a file, no
    sentence.
    """
    words, tags = columns
    inner = {column: getattr(feature, "feature", None) for column, feature in rows.features.items()}
    text, names = Value("string"), label_names(rows, tags)
    if inner.get(words) != text or (with_tags and not (names or inner.get(tags) == text)):
        raise ValueError(
            f"{name}: needs a column {words!r} of lists of words (--text_columns) and a column {tags!r} "
            "of lists of tags, as text or as numbers with names (--label_column); there are "
            f"{listed(rows.features)}"
        )
    if plain is None and with_tags:
        plain = is_plain(names or {tag for row in rows[tags] for tag in row})
    found = []
    for number, row in enumerate(rows, 1):
        given = row.get(tags) or []
        given = [names[i] if 0 <= i < len(names) else str(i) for i in given] if names else given
        bad = [tag for tag in given if with_tags and not (tag if plain else TAG.fullmatch(str(tag)))]
        if not row[words] and not given and number == len(rows):
            continue
        if not row[words]:
            skipped.bad(f"{name}, row {number}: an empty sentence; pass --skip_bad_examples to leave it out")
        elif None in row[words]:
            skipped.bad(f"{name}, row {number}: word {row[words].index(None) + 1} is null")
        elif with_tags and len(given) != len(row[words]):
            skipped.bad(f"{name}, row {number}: {len(row[words])} words and {len(given)} tags")
        elif bad:
            fault = "is none" if plain else "follows no scheme (BIO, IOB1 or BIOES)"
            skipped.bad(f"{name}, row {number}: the tag {bad[0]!r} {fault}")
        else:
            given = given if len(given) == len(row[words]) else []
            found.append(_sentence(name, number, row[words], given, with_tags))
    if not found:
        raise ValueError(f"{name}: holds no sentences")
    return found


def _sentence(where, number, words, tags, with_tags):
    """Return the Sentence of a row; lines as a file of columns would have them."""
    clean = [re.sub(r"[ \t\r\n]+", " ", word) for word in words]  # one line, one column
    lines = [f"{word}\t{tag}" for word, tag in zip(clean, tags, strict=True)] if tags else clean
    return Sentence(where, number, clean, list(tags) if with_tags else [], lines)


def read_words(args, path, with_tags, skipped, plain=False):
    """Sentences of a file of the user's: of columns, or rows with lists of words and tags, or texts with spans."""
    if not is_table(path):
        if with_tags and (form := _form_of(path)):  # without tags, a line may be any word
            raise ValueError(
                f"{path}: is {form}; wanted is a file of columns, a line a word and its tag, between them a tab or "
                "blanks, or JSON (lists tokens and ner_tags, or texts with spans) whose name ends in .json or .jsonl"
            )
        label = args.label_column if with_tags else None
        return read_columns(Path(path), args.token_column, label, skipped, plain)
    rows = read_dataset(path)
    if rows is None:
        rows = list(read_table(path, skipped))
        if not any(_has_words(row.get(_columns_of(args, _lists(row))[0])) for _, row in rows):
            return _from_spans(rows, str(path), label_of(args), with_tags, skipped)
        columns = _columns_of(args, _lists(rows[0][1]))
        try:
            rows = Dataset.from_list(
                [{column: row.get(column) for column in columns if column in row} for _, row in rows]
            )
        except (pyarrow.ArrowException, TypeError) as error:
            raise ValueError(f"{path}: the lists hold values of several types ({error})") from error
    elif not isinstance(rows, Dataset):  # Parquet is read as a stream
        rows = Dataset.from_list(list(rows), features=rows.features)
    return _from_lists(rows, str(path), _columns_of(args, _lists(rows.features)), with_tags, skipped, plain)


def _has_words(value):
    """Return whether a value is a list of words; a null may be among them."""
    return isinstance(value, list) and all(word is None or isinstance(word, str) for word in value)


def _form_of(path):
    """Return what a file is that should hold columns, by its first line; "" for columns."""
    first = next((line for _, line in read_lines(path) if line.strip()), "")
    comma = not re.search(r"[ \t]", first.strip()) and "," in first.strip(",")
    return form_of_text(first) or ("a table with commas" if comma else "")


# --- texts with spans -------------------------------------------------------------------------------------------------


def _text_of(row):
    """Return the text of a row of doccano or Prodigy, or of an export of Label Studio; None if there is none."""
    content = row.get("data", row)
    return content.get("text") if isinstance(content, dict) else None


def _spans_of(row, column):
    """Return [(begin, end, label), ...] in characters of a row as doccano, Label Studio or Prodigy export it; sorted.

    Raises ValueError or KeyError, TypeError, IndexError for what is none of these.
    """
    if row.get("answer", "accept") != "accept":
        raise ValueError(f"its answer is {row['answer']!r}, not 'accept'")
    there = [name for name in (column, "spans", "entities", "label", "labels") if isinstance(row.get(name), list)]
    if there:
        spans = row[there[0]]
    elif done := row.get("annotations") or row.get("completions"):
        spans = [part["value"] for part in done[0]["result"] if "start" in part.get("value", ())]
    else:
        raise ValueError("it has no spans: a list label, labels, entities or spans, or annotations")
    found = []
    for span in spans:
        if isinstance(span, dict):
            begin, end = (span.get(name, span.get(f"{name}_offset")) for name in ("start", "end"))
            label = span.get("label") or span["labels"][0]
        else:
            begin, end, label = span if isinstance(span, list) and len(span) == 3 else (None, None, None)
        if type(begin) is not int or type(end) is not int or not isinstance(label, str) or not label:
            raise ValueError(f"{span!r} is no span of two numbers of characters and a label")
        found.append((begin, end, label))
    return sorted(found)


def _from_spans(rows, where, column, with_tags, skipped):
    """Sentences of texts with spans, cut at blanks, punctuation and the ends of spans, with tags of BIO."""
    cut, found = BertPreTokenizer().pre_tokenize_str, []
    for number, row in rows:
        try:
            text, spans = _text_of(row), _spans_of(row, column) if with_tags else []
            if not isinstance(text, str) or not text.strip():
                raise ValueError("it has no text")
            for (_, before, _), (begin, end, _) in itertools.pairwise([(0, 0, ""), *spans]):
                if begin < before or end > len(text) or not text[begin:end].strip():
                    raise ValueError(f"the span {begin} to {end} is empty, outside the text, or overlaps another one")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            reason = error if type(error) is ValueError else "its spans are in no form that is known"
            skipped.bad(f"{where}, {line_name(number)}: {reason}; mend it or pass --skip_bad_examples")
            continue
        edges, words, tags = sorted({0, len(text), *(edge for span in spans for edge in span[:2])}), [], []
        labels = {begin: label for begin, _, label in spans}
        for begin, end in itertools.pairwise(edges):
            part = [word for word, _ in cut(text[begin:end])]
            words += part
            tags += [f"{'I' if i else 'B'}-{labels[begin]}" if begin in labels else "O" for i in range(len(part))]
        found.append(_sentence(where, len(found) + 1, words, tags if with_tags else [], with_tags))
    if not found:
        raise ValueError(
            f"{where}: holds no sentences" + (f"; the first: {skipped.reports[0]}" if skipped.reports else "")
        )
    return found


# --- schemes --------------------------------------------------------------------------------------------------------


def _same(before, tag, kinds):
    """Return whether the tag before is one of these kinds, of the same type."""
    return before[0] in kinds and before[2:] == tag[2:]


def _in_bioes(before, tag):
    if before[0] in "BI":
        return tag[0] in "IE" and before[2:] == tag[2:]
    return tag[0] in "OBS"


# name -> (letters of its tags, whether a tag may stand after another, what else is due)
SCHEMES = {
    "BIO": (
        "BI",
        lambda before, tag: tag[0] in "OB" or (tag[0] == "I" and _same(before, tag, "BI")),
        "an I- tag goes on with a chunk of its own type, which begins with B-",
    ),
    "IOB1": (
        "BI",
        lambda before, tag: tag[0] in "OI" or (tag[0] == "B" and _same(before, tag, "BI")),
        "a B- tag begins a chunk right behind one of its own type, and nothing else",
    ),
    "BIOES": ("BIES", _in_bioes, "a chunk is S-, or B-, any number of I- and E-, all of one type"),
}


def _breaks(tags, scheme):
    """Number of the first tag that may not stand where it does, len(tags) for an end too early; None if all is well."""
    _, may_follow, _ = SCHEMES[scheme]
    pairs = itertools.pairwise(["O", *tags, "O"])
    return next((i for i, (before, tag) in enumerate(pairs) if not may_follow(before, tag)), None)


def scheme_of(sentences):
    """The scheme of tagged sentences: BIOES where there are E- or S- tags, else the one of BIO and IOB1 that fewer
    sentences break."""
    if any(tag[0] in "ES" for sentence in sentences for tag in sentence.tags):
        return "BIOES"
    broken = {name: sum(_breaks(s.tags, name) is not None for s in sentences) for name in ("BIO", "IOB1")}
    return min(broken, key=broken.get)


def check_scheme(sentences, scheme, skipped):
    """Return the sentences whose tags are as the scheme of the training set has them; the others are broken."""
    good = []
    for sentence in sentences:
        i = _breaks(sentence.tags, scheme)
        if i is None:
            good.append(sentence)
            continue
        tags = ["O", *sentence.tags, "the end of the sentence"]
        skipped.bad(
            f"{sentence.place(min(i, len(sentence.tags) - 1))}: {tags[i + 1]} stands behind {tags[i]}, but in "
            f"{scheme}, which the training set follows, {SCHEMES[scheme][2]}; mend the tag, or pass "
            "--skip_bad_examples to leave out its sentence"
        )
    return good


def load_sentences(args, task, skipped):
    """(task, {split: Dataset with words, tags (numbers), lines, head}) from --data_dir, the hub or the custom files.

    A task without types of its own takes those of its training set. The tags of a test set are not looked at.
    """
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    if args.task != "custom":
        files = task_files(args.task, args.data_dir) if args.data_dir else {}
    if files and not args.hub_dataset:
        sources, read = {split: path for split, path in files.items() if path}, functools.partial(read_words, args)
    else:
        task, rows = _hub_rows(args, task)
        sources = {split: split for split in rows}

        def read(split, with_tags, skipped, plain):
            """Sentences of a split of the hub."""
            name, one = rows[split]
            return _from_lists(one, name, task.columns, with_tags, skipped, plain)

    splits, plain = {}, is_plain(task.labels) if task.labels else None
    for split, source in sources.items():
        splits[split] = read(source, split != "test", skipped, plain)
        if plain is None:  # the training set, which comes first, decides
            plain = is_plain({tag for sentence in splits[split] for tag in sentence.tags})
    labels = _labels_of(splits["train"], task, args)
    if len(labels) < 2:
        raise ValueError(f"{splits['train'][0].where}: every tag is {labels[0]}, so there is nothing to learn")
    return _task(task, labels, args), fewer_examples(_numbered(splits, labels, skipped), args)


def read_set(args, path, labels, skipped):
    """Return (task, Dataset) of one file of words whose tags have the numbers of a model's labels.

    LABEL_0, LABEL_1, ... are the tags as a model that is trained on this file would number them, if there are as many.
    """
    task, generic = TASKS[args.task], all(re.fullmatch(r"LABEL_\d+", name) for name in labels)
    plain = is_plain(task.labels or labels) if task.labels or not generic else None
    sentences = read_words(args, path, True, skipped, plain)
    if generic:
        labels, unnamed = _labels_of(sentences, task, args), labels
        if len(labels) != len(unnamed):
            raise ValueError(
                f"{path}: {len(labels)} tags, and the model has {len(unnamed)} without names ({unnamed[0]}, ...): "
                "write the names as id2label into its config.json"
            )
    return _task(task, tuple(labels), args), _numbered({"": sentences}, labels, skipped)[""]


def _labels_of(sentences, task, args):
    """Return the tags of training sentences in the order of their ids."""
    tags = {tag for sentence in sentences for tag in sentence.tags}
    if is_plain(task.labels or tags):
        return task.labels or tuple(in_order(sorted(tags)))
    return _scheme_labels(sentences, task, args)


def _scheme_labels(sentences, task, args):
    """Return the tags of a task in the scheme that its training sentences follow, in the order of their ids."""
    scheme = scheme_of(sentences)
    types = [tag[2:] for tag in task.labels if tag != "O" and TAG.fullmatch(tag)]
    types = types or in_order(sorted({tag[2:] for sentence in sentences for tag in sentence.tags if tag != "O"}))
    if not types:
        raise ValueError(
            f"{sentences[0].where}: every tag is O, so there is nothing to learn: is "
            f"--label_column {args.label_column} the right one?"
        )
    folded = {}
    for name in types:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise ValueError(
                f"{sentences[0].where}: the types {other!r} and {name!r} differ in case only, which would make two of "
                "one: write it the same way everywhere"
            )
    return ("O", *(f"{letter}-{name}" for name in dict.fromkeys(types) for letter in SCHEMES[scheme][0]))


def _task(task, labels, args):
    """Return the task with these labels. Raises ValueError for --metrics that its tags do not have."""
    due = ("accuracy",) if is_plain(labels) else ("f1", "precision", "recall")
    if wrong := [name for name in args.metrics if name not in due]:
        what = "plain tags" if is_plain(labels) else "tags of a scheme"
        raise ValueError(f"--metrics {wrong[0]}: {what} are scored by {', '.join(due)}")
    metrics = tuple(args.metrics) or due[:1]
    return task._replace(labels=labels, kind="token", metrics=metrics, submission=("predictions.test.conll",))


def _numbered(splits, labels, skipped):
    """Return {split: Dataset} of sentences whose tags are labels, and stand as the scheme of the first
    split has them.
    """
    ids, found = {tag: i for i, tag in enumerate(labels)}, {}
    scheme = None if is_plain(labels) else scheme_of(next(iter(splits.values())))
    for split, sentences in splits.items():
        good = check_scheme(sentences, scheme, skipped) if scheme else sentences
        found[split] = _dataset(_known(good, ids, skipped), ids, sentences[0].where)
    return found


def _known(sentences, ids, skipped):
    """Return the sentences whose tags all have a number; the others are broken."""
    good = []
    for sentence in sentences:
        i = next((i for i, tag in enumerate(sentence.tags) if tag not in ids), None)
        if i is None:
            good.append(sentence)
        else:
            types = ", ".join(ids if is_plain(ids) else dict.fromkeys(tag[2:] for tag in ids if tag != "O"))
            what = "tags" if is_plain(ids) else "types"
            skipped.bad(f"{sentence.place(i)}: unknown tag {sentence.tags[i]!r}; the {what} of this task are {types}")
    return good


def _dataset(sentences, ids, where):
    if not sentences:
        raise ValueError(f"{where}: holds no sentences that are whole")
    return Dataset.from_dict(
        {
            "words": [s.words for s in sentences],
            "tags": [[ids[tag] for tag in s.tags] for s in sentences],
            "lines": [s.lines for s in sentences],
            "head": [list(s.head) for s in sentences],
        }
    )


# --- pieces and windows -----------------------------------------------------------------------------------------------


def pieces(sentences, tokenizer):
    """For each sentence (a list of words) a list, for each word the ids of its pieces; none, as for control characters.

    The sentence is tokenised as a text, its words with a blank between, so that a word has the pieces it has in
    running text whatever the tokenizer does with blanks. A piece belongs to the word of its first character that is no
    blank; one of blanks alone, such as the mark that some tokenizers put before a word, to the word behind the blank.
    """
    texts = [" ".join(words) for words in sentences]
    encoded = with_offsets(tokenizer, texts, add_special_tokens=False, return_attention_mask=False)
    found = []
    for words, text, ids, offsets in zip(
        sentences, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        word_of = [i for i, word in enumerate(words) for _ in f" {word}"][1:]  # for each character of the text
        cut = [[] for _ in words]
        for piece, (begin, end) in zip(ids, offsets, strict=True):
            at = next((i for i in range(begin, end) if not text[i].isspace()), begin)
            cut[word_of[min(at, len(text) - 1)]].append(piece)
        found.append(cut)
    return found


def spans(sizes, room):
    """Windows of a sentence whose words have these numbers of pieces: [(start, first, last, end), ...] of words.

    A window holds the words start:end, at most `room` pieces unless one word has more, and owns first:last; every word
    is owned once. Words around those that it owns, of up to a quarter of its room on each side, are context.
    """
    edges, found, done, margin = [0, *itertools.accumulate(sizes)], [], 0, room // 4
    while done < len(sizes):
        start = done
        while start and edges[done] - edges[start - 1] <= margin and edges[done + 1] - edges[start - 1] <= room:
            start -= 1
        end = done + 1
        while end < len(sizes) and edges[end + 1] - edges[start] <= room:
            end += 1
        last = end
        while end < len(sizes) and last - 1 > done and edges[end] - edges[last - 1] <= margin:
            last -= 1
        found.append((start, done, last, end))
        done = last
    return found


def windows(sentences, tokenizer, max_length):
    """Return (Dataset of windows of at most max_length tokens, words as [UNK], words whose ends are cut off).

    sentences: Dataset of `load_sentences`. Columns: input_ids, attention_mask; sentence (its number); places and owned:
    for each word of the window's own the place of its first piece and its number in the sentence; and where there are
    tags, labels: a number a token, the word's tag at its first piece, -100 elsewhere. Raises ValueError for a word
    without pieces where the tokenizer has no unknown word.
    """
    whole_texts(tokenizer)  # of an earlier call, or of the tokenizer's file
    empty = tokenizer("")["input_ids"]
    at = empty.index(tokenizer.cls_token_id) + 1
    room = max_length - len(empty)
    columns = {name: [] for name in ("input_ids", "attention_mask", "sentence", "places", "owned", "labels")}
    unknown = cut_off = number = 0
    for rows in sentences.iter(1000):
        for texts, words, tags in zip(rows["words"], pieces(rows["words"], tokenizer), rows["tags"], strict=True):
            unknown += words.count([])
            if [] in words and tokenizer.unk_token_id is None:
                raise ValueError(
                    f"the tokenizer makes nothing of the word {texts[words.index([])]!r} and has no "
                    "unk_token to stand for it: take the word out"
                )
            cut_off += sum(len(ids) > room for ids in words)
            words = [ids[:room] or [tokenizer.unk_token_id] for ids in words]
            for start, first, last, end in spans(list(map(len, words)), room):
                edges = [*itertools.accumulate(map(len, words[start:end]), initial=at)]
                ids = [*empty[:at], *itertools.chain(*words[start:end]), *empty[at:]]
                places = edges[first - start : last - start]
                labels = np.full(len(ids), -100)
                labels[places] = tags[first:last] if tags else -100
                row = (ids, [1] * len(ids), number, places, list(range(first, last)), labels.tolist())
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
            number += 1
    return Dataset.from_dict(columns), unknown, cut_off


def joined(cut, predicted, sentences):
    """Return the tag numbers of every word, a list for each sentence, from those of the windows' tokens [N, S]."""
    found = [[None] * len(words) for words in sentences["words"]]
    rows = predicted.numpy()
    for row, number, places, owned in zip(rows, cut["sentence"], cut["places"], cut["owned"], strict=True):
        for place, word in zip(places, owned, strict=True):
            found[number][word] = int(row[place])
    return found


def with_column(sentences, tags):
    """Return the lines of the sentences as they were read with one column more, the given tags; -DOCSTART-
    lines get O.
    """
    texts = []
    for lines, head, given in zip(sentences["lines"], sentences["head"], tags, strict=True):
        texts += [_added(line, "O") + "\n" for line in head]
        texts += [_added(line, tag) for line, tag in zip(lines, given, strict=True)] + [""]
    return "".join(f"{text}\n" for text in texts)


def _added(line, tag):
    line = line.rstrip(" \t")
    return f"{line}\t{tag}" if "\t" in line else f"{line} {tag}"
