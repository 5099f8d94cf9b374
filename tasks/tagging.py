"""Words with tags: readers, tagging schemes, windows of pieces, and the predictions of windows joined again."""

import functools
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
from datasets import Dataset, Value
from tokenizers.pre_tokenizers import BertPreTokenizer

import data
from encoders.label_names import in_order
from tasks import readers
from tasks.hub import load_hub


class Sentence(NamedTuple):
    """One sentence as read: words, tags (none in a test set) and its lines."""

    where: str  # file or data set
    start: int  # line of the first word, or row of the data set
    words: list
    tags: list
    lines: list
    head: list = ()  # the -DOCSTART- lines before it
    numbers: list = ()  # the words' line numbers in the file

    def place(self, i):
        """Return the place of word i for a message."""
        if self.numbers:
            return f"{self.where}, line {self.numbers[i]}"
        return f"{self.where}, row {self.start}, word {i + 1}"


# --- reading --------------------------------------------------------------------------------------------------------


def _fields(line):
    """Return the columns of a line, cut at tabs if it has any, else at blanks."""
    return [field.strip(" ") for field in line.split("\t")] if "\t" in line else re.split(" +", line.strip(" "))


def _paragraphs(path):
    """Yield (-DOCSTART- lines, [(line number, line), ...]) of the lines between blank ones.

    Blanks, tabs and carriage returns make a line blank; other spaces of Unicode may be words.
    """
    head, lines, ud = [], [], is_conllu(path)
    for number, line in readers.read_lines(path):
        if ud and (line.startswith("#") or re.match(r"\d+[-.]\d+\t", line)):
            continue  # a comment, a range of words, or an empty node
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
    """Return whether a file is CoNLL-U, by its ending."""
    return Path(path).suffix.lower() == ".conllu"


def _number(column, default):
    """Return a column's number from 1, given as number or UD's name; "label" means `default`. Raises ValueError."""
    column = default if column == "label" else column
    if not (column in data.UD or re.fullmatch("[0-9]{1,4}", str(column))):
        raise ValueError(f"--label_column {column!r} must be a column's number, or one of {', '.join(data.UD)}")
    return data.UD.index(column) + 1 if column in data.UD else int(column)


def read_columns(path, token_column, label_column, skipped, plain=False):
    """Return the Sentences of a file with a word a line, as the CoNLL shared tasks publish them.

    token_column: number from 1 or UD's name. label_column: the same; 0 or "label" = the last; None = tags are not read.
    In a .conllu file the defaults are form and upos. plain: whether tags follow no scheme; None: they follow none if
    no tag looks like one of a scheme. A line with another number of columns than the first, an empty word or a tag of
    no scheme breaks its sentence. Raises ValueError for a column that the file lacks.
    """
    found, before, ud = [], len(skipped.reports), is_conllu(path)
    token = _number(token_column, 1)
    token = 2 if ud and token == 1 else token  # column 1 numbers the words
    paragraphs = [(head, lines, [_fields(line) for _, line in lines]) for head, lines in _paragraphs(path)]
    if not paragraphs:
        raise readers.nothing_in(path, "sentences", ())
    _, lines, rows = paragraphs[0]
    due = len(rows[0])
    label = None if label_column is None else _number(label_column, 0) or (data.UD.index("upos") + 1 if ud else due)
    _check_columns(path, lines[0][0], due, token, label)
    if plain is None and label:
        plain = is_plain({row[label - 1] for _, _, rows in paragraphs for row in rows if len(row) >= label})
    for head, lines, rows in paragraphs:
        faults = (
            (number, _fault(row, due, token, label, plain, ud)) for (number, _), row in zip(lines, rows, strict=True)
        )
        number, fault = next(((number, fault) for number, fault in faults if fault), (0, ""))
        if fault:
            skipped.bad(f"{path}, line {number}: {fault}; mend it, or pass --skip_bad_examples to skip its sentence")
            continue
        words, tags = [row[token - 1] for row in rows], [row[label - 1] for row in rows] if label else []
        numbers, texts = map(list, zip(*lines, strict=True))
        found.append(Sentence(str(path), numbers[0], words, tags, texts, head, numbers))
    if not found:
        raise readers.nothing_in(path, "sentences", skipped.reports[before:])
    return found


def _check_columns(path, number, due, token, label):
    """Raise ValueError unless the columns of words and tags are two different ones of the file's `due` columns."""
    for option, column in (("token", token), ("label", label or 1)):
        if column > due:
            raise ValueError(
                f"{path}, line {number}: no --{option}_column {column}: the line has {due} columns, from 1 on"
            )
    if token == label:
        raise ValueError(
            f"{path}, line {number}: {due} columns, and column {token} cannot be both word and tag: write a word and "
            "its tag on each line, with a tab or blanks between them"
        )


TAG = re.compile(r"O|[BIES]-.+")
MAY_LACK = ("lemma", "feats", "misc")  # columns of CoNLL-U in which _ means "none", not "unknown"


def is_plain(tags):
    """Return whether tags follow no scheme: some differ from O, and none looks like B-type, I-type, ..."""
    return bool(set(tags) - {"O"}) and not any(re.fullmatch("[BIES]-.+", tag) for tag in tags)


def _fault(row, due, token, label, plain, ud):
    """Return what is wrong with the columns of a line; "" if nothing is."""
    if len(row) != due:
        return f"{len(row)} columns where {due} are due"
    if not row[token - 1]:
        return f"the word in column {token} is empty"
    tag = row[label - 1] if label else "O"
    if plain and (not tag or (ud and tag == "_" and data.UD[label - 1] not in MAY_LACK)):
        return f"the tag in column {label} is empty"
    if not plain and not TAG.fullmatch(tag):
        return f"the tag {tag!r} follows no scheme (BIO, IOB1 or BIOES: O, B-type, I-type, ...)"
    return ""


def _columns_of(args, features):
    """Return the columns of words and of tags: the options', else the usual names among the columns that hold lists."""
    there = {name for name, value in features.items() if isinstance(value, list) or hasattr(value, "feature")}
    words, tags = args.text_columns[0], data.label_of(args)
    if words == "text":
        words = next((name for name in ("text", "tokens", "words") if name in there), "tokens")
    if tags == "label":
        usual = ("label", "ner_tags", "tags", "labels", "upos", "pos_tags", "chunk_tags")
        tags = next((name for name in usual if name in there), "ner_tags")
    return words, tags


def _hub_rows(args, task):
    """Return (task, {split: (its name in messages, Dataset)}) from the hub; --hub_dataset sets columns and labels."""
    if not args.hub_dataset:
        hub, found = load_hub(task.hub), {"train": "train", "validation": "test"}
        if task.files[2]:
            found |= {"validation": "validation", "test": "test"}
        return task, {split: (f"{task.hub[0]} {name}", hub[name]) for split, name in found.items()}
    rows = data.hub_splits(args)
    columns = _columns_of(args, rows["train"][1].features)
    task = task._replace(columns=columns, labels=readers.label_names(rows["train"][1], columns[1]))
    return task if data.saved_splits(args.hub_dataset) else task._replace(hub=data.hub_id(args)), rows


def _from_lists(rows, name, columns, with_tags, skipped, plain=None):
    """Return the Sentences of a Dataset with lists of words and of tags, as text or as ids that its features name.

    plain: see `read_columns`. A last row without words is not a sentence: it comes from a blank line at a file's end.
    """
    words, tags = columns
    inner = {column: getattr(feature, "feature", None) for column, feature in rows.features.items()}
    text, names = Value("string"), readers.label_names(rows, tags)
    if inner.get(words) != text or (with_tags and not (names or inner.get(tags) == text)):
        raise ValueError(
            f"{name}: needs a column {words!r} of lists of words (--text_columns) and a column {tags!r} of lists of "
            f"tags, as text or as numbers with names (--label_column); there are {readers.listed(rows.features)}"
        )
    if plain is None and with_tags:
        plain = is_plain(names or {tag for row in rows[tags] for tag in row})
    found = []
    for number, row in enumerate(rows, 1):
        given, own = row.get(tags) or [], row[words]
        given = [names[i] if 0 <= i < len(names) else str(i) for i in given] if names else given
        bad = [tag for tag in given if with_tags and not (tag if plain else TAG.fullmatch(str(tag)))]
        if not own and not given and number == len(rows):
            continue
        if not own:
            skipped.bad(f"{name}, row {number}: an empty sentence; pass --skip_bad_examples to leave it out")
        elif None in own:
            skipped.bad(f"{name}, row {number}: word {own.index(None) + 1} is null")
        elif with_tags and len(given) != len(own):
            skipped.bad(f"{name}, row {number}: {len(own)} words and {len(given)} tags")
        elif bad:
            fault = "is empty" if plain else "follows no scheme (BIO, IOB1 or BIOES)"
            skipped.bad(f"{name}, row {number}: the tag {bad[0]!r} {fault}")
        else:
            found.append(_sentence(name, number, own, given if len(given) == len(own) else [], with_tags))
    if not found:
        raise readers.nothing_in(name, "sentences", ())
    return found


def _sentence(where, number, words, tags, with_tags):
    """Return the Sentence of a row, with the lines of a column file."""
    clean = [re.sub(r"[ \t\r\n]+", " ", word) for word in words]  # one line, one column
    lines = [f"{word}\t{tag}" for word, tag in zip(clean, tags, strict=True)] if tags else clean
    return Sentence(where, number, clean, list(tags) if with_tags else [], lines)


def read_words(args, path, with_tags, skipped, plain=False):
    """Return the Sentences of a user's file: columns, rows with lists of words and tags, or texts with spans."""
    if not readers.is_table(path):
        if with_tags and (form := _form_of(path)):  # without tags, a line may be any word
            raise ValueError(
                f"{path}: is {form}; write a file of columns (a word and its tag a line, with a tab or blanks between) "
                "or JSON (lists tokens and ner_tags, or texts with spans) whose name ends in .json or .jsonl"
            )
        label = args.label_column if with_tags else None
        return read_columns(Path(path), args.token_column, label, skipped, plain)
    rows = readers.read_dataset(path)
    if rows is None:
        numbered = list(readers.read_table(path, skipped))
        rows = [row for _, row in numbered]
        if not any(_has_words(row.get(_columns_of(args, row)[0])) for row in rows):
            return _from_spans(numbered, str(path), data.label_of(args), with_tags, skipped)
        columns = _columns_of(args, rows[0])
        try:
            rows = Dataset.from_list([{name: row.get(name) for name in columns if name in row} for row in rows])
        except (pyarrow.ArrowException, TypeError) as error:
            raise ValueError(f"{path}: the lists hold values of several types ({error})") from error
    elif not isinstance(rows, Dataset):  # Parquet is read as a stream
        rows = Dataset.from_list(list(rows), features=rows.features)
    return _from_lists(rows, str(path), _columns_of(args, rows.features), with_tags, skipped, plain)


def _has_words(value):
    """Return whether a value is a list of words, possibly with nulls."""
    return isinstance(value, list) and all(word is None or isinstance(word, str) for word in value)


def _form_of(path):
    """Return the form of a file that should hold columns, by its first line; "" for columns."""
    first = next((line for _, line in readers.read_lines(path) if line.strip()), "")
    comma = not re.search(r"[ \t]", first.strip()) and "," in first.strip(",")
    return readers.form_of_text(first) or ("a table with commas" if comma else "")


# --- texts with spans -------------------------------------------------------------------------------------------------


def _text_of(row):
    """Return the text of a row of doccano, Prodigy or Label Studio; None if it has none."""
    content = row.get("data", row)
    return content.get("text") if isinstance(content, dict) else None


def _spans_of(row, column):
    """Return [(begin, end, label), ...] in characters, sorted, of a row that doccano, Label Studio or Prodigy exports.

    Raises ValueError, KeyError, TypeError or IndexError for other forms.
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
    """Return the Sentences of texts with spans, cut at blanks, punctuation and the ends of spans, with BIO tags."""
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
            reason = error if type(error) is ValueError else "its spans have an unknown form"
            skipped.bad(f"{where}, {readers.line_name(number)}: {reason}; mend it or pass --skip_bad_examples")
            continue
        edges, words, tags = sorted({0, len(text), *(edge for span in spans for edge in span[:2])}), [], []
        labels = {begin: label for begin, _, label in spans}
        for begin, end in itertools.pairwise(edges):
            part = [word for word, _ in cut(text[begin:end])]
            words += part
            tags += [f"{'I' if i else 'B'}-{labels[begin]}" if begin in labels else "O" for i in range(len(part))]
        found.append(_sentence(where, len(found) + 1, words, tags if with_tags else [], with_tags))
    if not found:
        raise readers.nothing_in(where, "sentences", skipped.reports)
    return found


# --- schemes --------------------------------------------------------------------------------------------------------


def _same(before, tag, kinds):
    """Return whether the tag before has one of these letters and the same type."""
    return before[0] in kinds and before[2:] == tag[2:]


# name -> (letters of its tags, whether a tag may follow another, the rule in words)
SCHEMES = {
    "BIO": (
        "BI",
        lambda before, tag: tag[0] in "OB" or (tag[0] == "I" and _same(before, tag, "BI")),
        "an I- tag continues a chunk of its own type, which begins with B-",
    ),
    "IOB1": (
        "BI",
        lambda before, tag: tag[0] in "OI" or (tag[0] == "B" and _same(before, tag, "BI")),
        "a B- tag only begins a chunk right after one of the same type",
    ),
    "BIOES": (
        "BIES",
        lambda before, tag: tag[0] in "IE" and _same(before, tag, "BI") if before[0] in "BI" else tag[0] in "OBS",
        "a chunk is S-, or B-, any number of I- and E-, all of one type",
    ),
}


def _breaks(tags, scheme):
    """Return the number of the first tag that the scheme forbids, len(tags) for an early end; None if all is well."""
    _, may_follow, _ = SCHEMES[scheme]
    pairs = itertools.pairwise(["O", *tags, "O"])
    return next((i for i, (before, tag) in enumerate(pairs) if not may_follow(before, tag)), None)


def scheme_of(sentences):
    """Return the scheme of tagged sentences: BIOES if any tag is E- or S-, else the less broken one of BIO and IOB1."""
    if any(tag[0] in "ES" for sentence in sentences for tag in sentence.tags):
        return "BIOES"
    broken = {name: sum(_breaks(s.tags, name) is not None for s in sentences) for name in ("BIO", "IOB1")}
    return min(broken, key=broken.get)


def load_sentences(args, task, skipped):
    """Return (task, {split: Dataset of `_numbered`}) from --data_dir, the hub or the custom files.

    A task without types of its own takes those of its training set. Tags of a test set are not read.
    """
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    if args.task != "custom":
        files = data.task_files(args.task, args.data_dir) if args.data_dir else {}
    if files and not args.hub_dataset:
        sources, read = {split: path for split, path in files.items() if path}, functools.partial(read_words, args)
    else:
        task, sources = _hub_rows(args, task)

        def read(source, with_tags, skipped, plain):
            """Return the Sentences of a split of the hub."""
            return _from_lists(source[1], source[0], task.columns, with_tags, skipped, plain)

    splits, plain = {}, is_plain(task.labels) if task.labels else None
    for split, source in sources.items():
        splits[split] = read(source, split != "test", skipped, plain)
        if plain is None:  # the training set comes first and decides
            plain = is_plain({tag for sentence in splits[split] for tag in sentence.tags})
    labels = _labels_of(splits["train"], task, args)
    if len(labels) < 2:
        raise ValueError(f"{splits['train'][0].where}: every tag is {labels[0]}, so there is nothing to learn")
    return _task(task, labels, args), data.fewer_examples(_numbered(splits, labels, skipped), args)


def read_set(args, path, labels, skipped):
    """Return (task, Dataset) of one file of words; `labels`, a model's, give the ids of its tags.

    LABEL_0, LABEL_1, ... stand for as many tags of the file, in the order that training on it would give them.
    """
    task, generic = data.TASKS[args.task], all(re.fullmatch(r"LABEL_\d+", name) for name in labels)
    plain = is_plain(task.labels or labels) if task.labels or not generic else None
    sentences = read_words(args, path, True, skipped, plain)
    if generic:
        labels, unnamed = _labels_of(sentences, task, args), labels
        if len(labels) != len(unnamed):
            raise ValueError(
                f"{path}: {len(labels)} tags, but the model has {len(unnamed)} labels without names ({unnamed[0]}, "
                "...): write the names as id2label into its config.json"
            )
    return _task(task, tuple(labels), args), _numbered({"": sentences}, labels, skipped)[""]


def _labels_of(sentences, task, args):
    """Return the tags of training sentences in the order of their ids."""
    tags = {tag for sentence in sentences for tag in sentence.tags}
    if is_plain(task.labels or tags):
        return task.labels or tuple(in_order(sorted(tags)))
    types = [tag[2:] for tag in task.labels if tag != "O" and TAG.fullmatch(tag)]
    types = types or in_order(sorted({tag[2:] for tag in tags if tag != "O"}))
    if not types:
        raise ValueError(f"{sentences[0].where}: every tag is O: is --label_column {args.label_column} the right one?")
    folded = {}
    for name in types:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise ValueError(
                f"{sentences[0].where}: the types {other!r} and {name!r} differ in case only: use one spelling"
            )
    letters = SCHEMES[scheme_of(sentences)][0]
    return ("O", *(f"{letter}-{name}" for name in dict.fromkeys(types) for letter in letters))


def _task(task, labels, args):
    """Return the task with these labels. Raises ValueError for --metrics that do not fit its tags."""
    due = ("accuracy",) if is_plain(labels) else ("f1", "precision", "recall")
    if wrong := [name for name in args.metrics if name not in due]:
        what = "plain tags" if is_plain(labels) else "tags of a scheme"
        raise ValueError(f"--metrics {wrong[0]}: {what} are scored by {', '.join(due)}")
    metrics = tuple(args.metrics) or due[:1]
    return task._replace(labels=labels, kind="token", metrics=metrics, submission=("predictions.test.conll",))


def _numbered(splits, labels, skipped):
    """Return {split: Dataset with words, tags (ids), lines and head} of sentences; skip those with wrong tags."""
    ids, found = {tag: i for i, tag in enumerate(labels)}, {}
    scheme = None if is_plain(labels) else scheme_of(next(iter(splits.values())))
    for split, sentences in splits.items():
        good = []
        for sentence in sentences:
            if fault := _tag_fault(sentence, ids, scheme):
                skipped.bad(fault)
            else:
                good.append(sentence)
        if not good:
            raise ValueError(f"{sentences[0].where}: holds no sentences that are whole")
        rows = ((s.words, [ids[tag] for tag in s.tags], s.lines, list(s.head)) for s in good)
        columns = zip(("words", "tags", "lines", "head"), zip(*rows, strict=True), strict=True)
        found[split] = Dataset.from_dict(dict(columns))
    return found


def _tag_fault(sentence, ids, scheme):
    """Return what is wrong with the tags of a sentence; "" if they follow the scheme, if any, and all have an id."""
    i = _breaks(sentence.tags, scheme) if scheme else None
    if i is not None:
        tags = ["O", *sentence.tags, "the end of the sentence"]
        return (
            f"{sentence.place(min(i, len(sentence.tags) - 1))}: {tags[i + 1]} follows {tags[i]}, but in {scheme}, the "
            f"training set's scheme, {SCHEMES[scheme][2]}; mend the tag, or pass --skip_bad_examples to leave out its "
            "sentence"
        )
    i = next((i for i, tag in enumerate(sentence.tags) if tag not in ids), None)
    if i is None:
        return ""
    types = ", ".join(ids if is_plain(ids) else dict.fromkeys(tag[2:] for tag in ids if tag != "O"))
    what = "tags" if is_plain(ids) else "types"
    return f"{sentence.place(i)}: unknown tag {sentence.tags[i]!r}; the {what} of this task are {types}"


# --- pieces and windows -----------------------------------------------------------------------------------------------


def pieces(sentences, tokenizer):
    """Return for each sentence (a list of words) and each word the ids of its pieces; none, as for control characters.

    The tokenizer reads a sentence as a text, with a blank between words, so a word has the same pieces as in running
    text. A piece belongs to the word of its first character that is not a blank; a piece of blanks alone, such as the
    mark that some tokenizers put before a word, belongs to the word after the blank.
    """
    texts = [" ".join(words) for words in sentences]
    encoded = data.with_offsets(tokenizer, texts, add_special_tokens=False, return_attention_mask=False)
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
    """Return the windows [(start, first, last, end), ...] of a sentence; sizes: the number of pieces of each word.

    A window holds the words start:end, at most `room` pieces unless a single word has more. It owns the words
    first:last; each word is owned once. The other words are context, up to a quarter of the room on each side.
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


def owned_windows(words, room, before=(), after=()):
    """Yield (ids, places, first, last) of the windows of a sentence; words: for each word the ids of its pieces.

    ids: a window's, between `before` and `after`. It owns the words first:last, which begin at the places.
    """
    for start, first, last, end in spans(list(map(len, words)), room):
        edges = [*itertools.accumulate(map(len, words[start:end]), initial=len(before))]
        yield [*before, *itertools.chain(*words[start:end]), *after], edges[first - start : last - start], first, last


def windows(sentences, tokenizer, max_length):
    """Return (Dataset of windows of at most max_length tokens, count of unknown words, count of words cut off).

    sentences: Dataset of `load_sentences`. Columns: input_ids, attention_mask; source: the sentence's number; places
    and owned: for each word that the window owns the place of its first piece and its number in the sentence; labels
    [T]: the word's tag at its first piece, -100 elsewhere. Raises ValueError for a word without pieces if the tokenizer
    has no unknown word.
    """
    data.whole_texts(tokenizer)  # a setting of an earlier call, or of the tokenizer's file
    empty = tokenizer("")["input_ids"]
    at = empty.index(tokenizer.cls_token_id) + 1
    room = max_length - len(empty)
    found, unknown, cut_off, number = [], 0, 0, 0
    for rows in sentences.iter(1000):
        for texts, words, tags in zip(rows["words"], pieces(rows["words"], tokenizer), rows["tags"], strict=True):
            unknown += words.count([])
            if [] in words and tokenizer.unk_token_id is None:
                raise ValueError(
                    f"the tokenizer drops the word {texts[words.index([])]!r} and has no unk_token: take the word out"
                )
            cut_off += sum(len(ids) > room for ids in words)
            words = [ids[:room] or [tokenizer.unk_token_id] for ids in words]
            for ids, places, first, last in owned_windows(words, room, empty[:at], empty[at:]):
                labels = np.full(len(ids), -100)
                labels[places] = tags[first:last] if tags else -100
                owned = {"source": number, "places": places, "owned": list(range(first, last))}
                found.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels.tolist(), **owned})
            number += 1
    return Dataset.from_list(found), unknown, cut_off


def joined(cut, values, lists):
    """Return a value for each item of the lists (words of sentences), from the values of the windows' tokens [N, T].

    cut: the windows, with the columns source, places and owned. An item that no window owns gets None.
    """
    found = [[None] * len(items) for items in lists]
    for row, source, places, owned in zip(values, cut["source"], cut["places"], cut["owned"], strict=True):
        for item, value in zip(owned, row[places].tolist(), strict=True):
            found[source][item] = value
    return found


def with_column(sentences, tags):
    """Return the lines of the sentences as read, with the tags as one more column; -DOCSTART- lines get O."""
    texts = []
    for lines, head, given in zip(sentences["lines"], sentences["head"], tags, strict=True):
        texts += [_added(line, "O") + "\n" for line in head]
        texts += [_added(line, tag) for line, tag in zip(lines, given, strict=True)] + [""]
    return "".join(f"{text}\n" for text in texts)


def _added(line, tag):
    line = line.rstrip(" \t")
    return f"{line}\t{tag}" if "\t" in line else f"{line} {tag}"
