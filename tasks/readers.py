"""Rows of files, tsv as GLUE publishes it, csv, JSON, Parquet, and the examples in them; a broken line is named.

`datasets`, whose import takes seconds, waits until there are rows: the command line imports this module by `data`.
"""

import csv
import filecmp
import glob
import itertools
import json
import re
import textwrap
from pathlib import Path

from encoders.label_names import numeric


class Skipped:
    """Counts broken examples: the first one stops the run, or, with --skip_bad_examples, all are counted."""

    def __init__(self, allowed=False):
        self.allowed, self.reports = allowed, []

    def bad(self, message):
        """Raise ValueError with the message, or note it where skipping was asked for."""
        if not self.allowed:
            raise ValueError(message)
        self.reports.append(message)


def listed(names):
    """Names for a message: on one line whatever they hold, not too many, in quotes where blanks are part of them."""
    names = (name if name and name == name.strip() else repr(name) for name in map(str, names))
    return textwrap.shorten(", ".join(names), 300, placeholder=" ...")


def read_lines(path):
    """(line number, text) of a UTF-8 file, split at newlines only, without its byte-order mark.

    Raises ValueError for a file that is missing, empty or not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check --data_dir and the names of its files")
    number = 0
    with path.open("rb") as f:
        for number, raw in enumerate(f, 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file") from error
            if "\0" in text:
                raise ValueError(f"{path}, line {number}: holds a NUL character, so it is not a text file")
            yield number, text.rstrip("\r\n")
    if not number:
        raise ValueError(f"{path}: the file is empty; download it again")


def read_tsv(path, header=(), skipped=None):
    """(line number, {column: text}) of a tab-separated file without quoting, as GLUE publishes them.

    header: column names of a file that has no header line. A line with another number of columns is broken.
    """
    skipped = skipped or Skipped()
    lines = read_lines(path)
    if not header:
        number, first = next(lines)
        _check_line_ends(path, first)
        header = tuple(first.split("\t"))
        if len(set(header)) < len(header):
            raise ValueError(f"{path}, line {number}: the header names a column twice: {listed(header)}")
    for number, text in lines:
        fields = text.split("\t")
        if not text.strip() and len(header) == 1:
            continue  # a blank line, not an example without words
        if len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))
        else:
            skipped.bad(
                f"{path}, line {number}: {len(fields)} columns where {len(header)} are due ({listed(header)}); "
                "mend the line or pass --skip_bad_examples"
            )


QUOTED = re.compile(r'"(?:[^"]|"")*+"')


def _bad_quote(text):
    """Where the quoted field begins that makes the text of a record invalid csv; None if no quote does."""
    at = 0
    while 0 <= at < len(text):
        end = at
        if text[at] == '"':
            quoted = QUOTED.match(text, at)
            if not quoted or text[quoted.end()] not in ",\n":
                return at
            end = quoted.end()
        at = min(text.find(sign, end) + 1 or len(text) for sign in ",\n")
    return None


def _csv_fault(path, lines, number, error):
    """What is wrong with a record that the csv module refused; lines: of the record, number: of the first."""
    text = "".join(line + "\n" for line in lines)
    quote, last = _bad_quote(text), number + len(lines) - 1
    if "\r" in text and "new-line" in str(error):
        return (
            f"{path}, line {number}: a carriage return stands in a field without quotes; take it out, or put the "
            "field in quotes, or pass --skip_bad_examples"
        )
    if quote is not None:
        number += text.count("\n", 0, quote)
        ended = "is never closed" if "end of data" in str(error) else f"closes in line {last} inside a field"
        error = f"the quote that opens here {ended}"
    return f"{path}, line {number}: not valid csv ({error}); mend the quotes or pass --skip_bad_examples"


def _next_record(reader):
    """The next record of a csv reader, however long its fields: the limit is one of the whole process."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(limit)


def _read_csv(path, skipped):
    """Of a broken record only the first line is lost: the next one is read anew, else an open quote took all along."""
    lines = [text for _, text in read_lines(path)]
    _check_line_ends(path, lines[0] if len(lines) == 1 else "")
    at, header = 0, None

    def feed():
        """Lines from `at` on, which it moves, so that the reader can begin anew."""
        nonlocal at
        while at < len(lines):
            at += 1
            yield lines[at - 1] + "\n"

    reader = csv.reader(feed(), strict=True)
    while at < len(lines):
        start = at
        try:
            fields = _next_record(reader)
        except csv.Error as error:
            fault = _csv_fault(path, lines[start:at], start + 1, error)
            if header is None:
                raise ValueError(f"{fault} (this is the header)") from error
        else:
            if header is None:
                header = fields
                if len(set(header)) < len(header):
                    raise ValueError(f"{path}, line 1: the header names a column twice: {listed(header)}")
                continue
            if not fields:
                continue  # a blank line
            if len(fields) == len(header):
                yield start + 1, dict(zip(header, fields, strict=True))
                continue
            upto = f" (a quote reaches to line {at})" if at > start + 1 else ""
            fault = (
                f"{path}, line {start + 1}: {len(fields)} columns{upto} where {len(header)} are due "
                f"({listed(header)}); mend the line or pass --skip_bad_examples"
            )
        skipped.bad(fault)
        at, reader = start + 1, csv.reader(feed(), strict=True)


def _no_number(word):
    raise ValueError(f"{word} is no number in JSON")


def _parsed(texts, path, skipped):
    """(place, value) of JSON texts given as (place, text)."""
    for place, text in texts:
        try:
            value = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:  # ValueError alone: a whole number of thousands of digits
            line = place or getattr(error, "lineno", 1)
            skipped.bad(f"{path}, line {line}: not valid JSON ({getattr(error, 'msg', error)})")
        else:
            yield place, value


def _read_json(path, skipped):
    """JSON lines, one JSON list of objects, or one object in which a single list of objects stands, as "data"."""
    lines = list(read_lines(path))
    whole = "\n".join(text for _, text in lines)
    items = _objects_within(whole, path)
    if items is not None:
        rows = ((f"item {i}", row) for i, row in enumerate(items, 1))
    else:
        rows = _parsed(((number, text) for number, text in lines if text.strip()), path, skipped)
    for place, row in rows:
        if isinstance(row, dict):
            yield place, row
        else:
            skipped.bad(f"{path}, line {place}: not a JSON object with the columns as keys")


def _objects_within(whole, path):
    """The list of objects that the text of a JSON file is or holds; None for JSON lines."""
    if whole.lstrip().startswith("["):
        return next(_parsed([(None, whole)], path, Skipped()))[1]
    try:
        content = json.loads(whole, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    if isinstance(content, dict):
        lists = {
            name: value
            for name, value in content.items()
            if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
        }
        if len(lists) == 1:
            return next(iter(lists.values()))
        if whole.strip().count("\n"):
            raise ValueError(
                f"{path}: one JSON object over several lines, with the keys {listed(content)}; wanted are "
                "JSON lines, an object with its columns a line, or a list of such objects"
            )
    return None


def _check_line_ends(path, first):
    """Raise ValueError if the first of a table's lines ends in carriage returns alone, so that it is all of them."""
    if "\r" in first.rstrip("\r"):
        raise ValueError(
            f"{path}: its lines end with carriage returns, as Excel on a Mac writes them; save it as CSV "
            "UTF-8, or convert it: tr '\\r' '\\n' < FILE > NEW_FILE"
        )


def same_files(ours, paths, theirs, others):
    """A warning where a file of one option is a file of the other, by name or content; "" where none is.

    ours, theirs: names of the options. paths, others: their files; None is passed over.
    """
    for path, other in itertools.product(map(Path, filter(None, paths)), map(Path, filter(None, others))):
        if path.is_file() and other.is_file() and filecmp.cmp(path, other, shallow=False):
            return (
                f"warning: --{ours} and --{theirs} hold the same text ({path}), so scores say nothing of texts "
                "that were not trained on"
            )
    return ""


def read_parquet(path):
    """The rows of a Parquet file as an IterableDataset, read where they are: no copy of it is made."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; check the names of the files")
    from datasets import load_dataset

    try:
        name = glob.escape(str(Path(path).resolve()))
        return load_dataset("parquet", data_files=name, split="train", streaming=True)
    except Exception as error:  # datasets and pyarrow each raise their own
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a Parquet file ({said}); write it again") from error


def dataset_rows(dataset):
    """("row 1", {column: value}), ... of a Dataset, with the names of classes in place of their ids."""
    names = {column: found for column in dataset.features or () if (found := label_names(dataset, column))}

    def named(column, value):
        """A value of a column with names for ids, also of those in lists."""
        if isinstance(value, list):
            return [named(column, one) for one in value]
        return names[column][value] if isinstance(value, int) and value >= 0 else value  # -1: not known

    for number, row in enumerate(dataset, 1):
        yield f"row {number}", row | {column: named(column, row[column]) for column in names}


def lists_joined(rows, where, column, separator):
    """Rows in which the column holds text where it held a list, as `data` wants it."""
    for number, row in rows:
        if isinstance(row.get(column), list):
            words = list(map(str, row[column]))
            if any(separator in word for word in words):
                raise ValueError(
                    f"{where}, {line_name(number)}: column {column!r} holds {listed(words)}, in which "
                    f"{separator!r} cannot part the labels: pass another --label_separator"
                )
            row = row | {column: separator.join(words)}
        yield number, row


def label_names(dataset, column):
    """The names of a column of classes, or of lists of classes, in the order of their ids; () for any other column."""
    from datasets import ClassLabel

    feature = (dataset.features or {}).get(column)
    feature = getattr(feature, "feature", feature)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


def line_name(number):
    """What a message calls an example; number: of its line, or "row 1" where there are no lines."""
    return number if str(number).startswith("row ") else f"line {number}"


def read_table(path, skipped=None):
    """(line number, {column: value}) of a .csv, .tsv, .json or .jsonl file with named columns."""
    suffix = Path(path).suffix.lower()
    if suffix == ".tsv":
        return read_tsv(path, skipped=skipped)
    if suffix == ".csv":
        return _read_csv(path, skipped or Skipped())
    if suffix == ".txt":
        return ((number, {"text": text}) for number, text in read_lines(path) if text.strip())
    if suffix in (".json", ".jsonl"):
        return _read_json(path, skipped or Skipped())
    raise ValueError(
        f"{path}: unknown ending {suffix!r}; use .csv, .tsv, .json, .jsonl, .parquet or, for text alone, .txt"
    )


# --- rows -> examples --------------------------------------------------------------------------------------------


def _label_id(word, labels, where, skipped):
    if word in labels:
        return labels.index(word)
    skipped.bad(f"{where}: unknown label {word!r}; the labels of this task are {listed(labels)}")


def _label_set(cell, task, where, skipped):
    """Several labels as a list of 0 and 1, one for each label of the task; an empty cell: none of them."""
    words = [word.strip() for word in cell.split(task.separator)] if cell.strip() else []
    if "" in words or len(set(words)) < len(words):
        fault = "an empty label" if "" in words else "a label twice"
        return skipped.bad(f"{where}: {cell!r}, cut at {task.separator!r}, holds {fault}; mend the line")
    ids = [_label_id(word, task.labels, where, skipped) for word in words[: len(task.labels)]]
    return None if None in ids else [int(i in ids) for i in range(len(task.labels))]


def _number(word, where, skipped):
    value = numeric(word)
    if value is not None and abs(float(value)) < float("inf"):
        return float(value)
    skipped.bad(f"{where}: the score {word!r} is not a finite number")


def pick(row, columns, path, number, skipped):
    """The named columns as strings, or None where one is missing or holds no text and the row is skipped."""
    missing = [c for c in columns if c not in row]
    if missing:
        return skipped.bad(f"{path}, {line_name(number)}: no column {missing[0]!r}; there are: {listed(row)}")
    for column in columns:
        value = row[column]
        if isinstance(value, (dict, list, bytes)) or value is None:
            kind = "null" if value is None else type(value).__name__
            return skipped.bad(f"{path}, {line_name(number)}: column {column!r} holds a {kind}, not text")
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):  # JSON can spell what UTF-8 cannot
            return skipped.bad(f"{path}, {line_name(number)}: column {column!r} holds half a surrogate pair, not text")
    return [str(row[column]) for column in columns]


def examples_from_rows(rows, path, text_columns, label_column, task, skipped):
    """Rows of a file -> Dataset with text_a, (text_b), label and idx. label_column None: no labels.

    idx counts the file's examples from 0, skipped ones too: submissions are matched by it.
    """
    from datasets import Dataset

    before = len(skipped.reports)
    columns = {"text_a": [], "text_b": [], "label": [], "idx": []}
    for number, row in rows:
        values = pick(row, text_columns + ((label_column,) if label_column else ()), path, number, skipped)
        if values is None:
            continue
        label = -1
        if label_column:
            where = f"{path}, {line_name(number)}"
            if task.separator:
                label = _label_set(values[-1], task, where, skipped)
            elif task.labels:
                label = _label_id(values[-1], task.labels, where, skipped)
            else:
                label = _number(values[-1], where, skipped)
            if label is None:
                continue
        columns["text_a"].append(values[0])
        columns["text_b"].append(values[1] if len(text_columns) > 1 else "")
        columns["label"].append(label)
        columns["idx"].append(len(columns["idx"]) + len(skipped.reports) - before)
    if not columns["idx"]:
        broken = skipped.reports[before:]
        raise ValueError(f"{path}: holds no examples" + (f" that are whole; the first: {broken[0]}" if broken else ""))
    if len(text_columns) == 1:
        del columns["text_b"]
    return Dataset.from_dict(columns)
