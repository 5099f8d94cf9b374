"""Rows of files: tsv as GLUE publishes it, csv, JSON, Parquet, by line; a broken one is named."""

import csv
import glob
import json
import re
import textwrap
from pathlib import Path

from datasets import ClassLabel, load_dataset


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
    """Names for a message: on one line whatever they hold, and not too many."""
    return textwrap.shorten(", ".join(map(str, names)), 300, placeholder=" ...")


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
        header = tuple(first.split("\t"))
        if len(set(header)) < len(header):
            raise ValueError(f"{path}, line {number}: the header names a column twice: {listed(header)}")
    for number, text in lines:
        fields = text.split("\t")
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
    at, header = 0, None

    def feed():
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
            if len(fields) == len(header):
                yield start + 1, dict(zip(header, fields, strict=True))
                continue
            upto = f" (a quote reaches to line {at})" if at > start + 1 else ""
            fault = (f"{path}, line {start + 1}: {len(fields)} columns{upto} where {len(header)} are due "
                     f"({listed(header)}); mend the line or pass --skip_bad_examples")  # fmt: skip
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
    """JSON lines, or one JSON list of objects."""
    lines = list(read_lines(path))
    whole = "\n".join(text for _, text in lines)
    if whole.lstrip().startswith("["):
        ((_, items),) = _parsed([(None, whole)], path, Skipped())
        rows = ((f"item {i}", row) for i, row in enumerate(items, 1))
    else:
        rows = _parsed(((number, text) for number, text in lines if text.strip()), path, skipped)
    for place, row in rows:
        if isinstance(row, dict):
            yield place, row
        else:
            skipped.bad(f"{path}, line {place}: not a JSON object with the columns as keys")


def read_parquet(path):
    """The rows of a Parquet file as an IterableDataset, read where they are: no copy of it is made."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; check the names of the files")
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
                raise ValueError(f"{where}, {line_name(number)}: column {column!r} holds {listed(words)}, in which "
                                 f"{separator!r} cannot part the labels: pass another --label_separator")  # fmt: skip
            row = row | {column: separator.join(words)}
        yield number, row


def label_names(dataset, column):
    """The names of a column of classes, or of lists of classes, in the order of their ids; () for any other column."""
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
    if suffix in (".json", ".jsonl"):
        return _read_json(path, skipped or Skipped())
    raise ValueError(f"{path}: unknown ending {suffix!r}; use .csv, .tsv, .json, .jsonl or .parquet")
