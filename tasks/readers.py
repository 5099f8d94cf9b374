"""Readers of files (tsv as GLUE publishes it, csv, JSON, Parquet, folders) and of the examples in them.

Every broken line is reported with its number. `datasets` takes seconds to import, so functions import it where they
need it: the command line imports this module through `data`.
"""

import bz2
import contextlib
import csv
import glob
import gzip
import itertools
import json
import lzma
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from encoders.label_names import number_of


class Skipped:
    """Handles broken examples: the first stops the run; with --skip_bad_examples all are counted instead."""

    def __init__(self, allowed=False):
        self.allowed, self.reports = allowed, []

    def bad(self, message):
        """Raise ValueError with the message, or keep it if skipping is allowed."""
        if not self.allowed:
            remedy = "" if "--skip_bad_examples" in message else "; mend it or pass --skip_bad_examples"
            raise ValueError(message + remedy)
        self.reports.append(message)


def listed(names):
    """Return names for a message on one line, cut to 300 characters; names with blanks or commas are in quotes."""
    text = ", ".join(name if re.fullmatch(r"[^\s,'\"]+", name) else repr(name) for name in map(str, names))
    return text if len(text) <= 300 else (text[:300].rpartition(", ")[0] or text[:300]) + " ..."


# First bytes of packed files -> the function that opens them.
PACKED = {rb"\x1f\x8b\x08": gzip.open, rb"BZh[1-9](1AY&SY|\x17rE8)": bz2.open, rb"\xfd7zXZ\0": lzma.open}
# First bytes of files that are not lines of UTF-8 -> their form.
OTHER_FORMS = {
    rb"PK\x03\x04": "a zip archive or a document of an office program",
    rb"\xd0\xcf\x11\xe0": "a document of an office program",
    rb"7z\xbc\xaf": "a 7z archive",
    rb"(?s:.{257}ustar)": "a tar archive",
    rb"\x28\xb5\x2f\xfd": "packed by zstd",
    rb"\x04\x22\x4d\x18": "packed by lz4",
    rb"%PDF-": "a PDF",
    rb"\{\\rtf": "RTF",
    rb"PAR1": "Parquet",
    rb"ARROW1": "an Arrow file",
    rb"\xff\xfe|\xfe\xff": "UTF-16",
    rb"version https://git-lfs": "a pointer of Git LFS to a file that was not fetched",
}


def opened(path):
    """Return a file opened for reading bytes, unpacked if gzip, bzip2 or xz packed it, whatever its name."""
    with open(path, "rb") as f:
        start = f.read(10)
    return next((unpack for magic, unpack in PACKED.items() if re.match(magic, start)), open)(path, "rb")


def ending(path):
    """Return the ending of a file's name in lower case, without .gz, .bz2 or .xz."""
    path = Path(path)
    path = path.with_suffix("") if path.suffix.lower() in (".gz", ".bz2", ".xz") else path
    return path.suffix.lower()


def read_lines(path):
    """Yield (line number, text) of a UTF-8 file, packed or not, without byte-order mark, split at newlines only.

    A file whose only newline is at its end is split at carriage returns, as old Mac programs wrote them. Raises
    ValueError for a file that is missing, empty, not UTF-8 or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path, or --data_dir and the names of its files")
    number = 0
    with unpacking(path), opened(path) as f:
        begin = [*itertools.islice(f, 2)]
        if len(begin) == 1:
            begin = begin[0].rstrip(b"\r\n").split(b"\r")
        for number, raw in enumerate(itertools.chain(begin, f), 1):
            for magic, form in OTHER_FORMS.items() if number == 1 else ():
                if re.match(magic, raw):
                    raise ValueError(f"{path}: is {form}, not UTF-8 text; unpack, convert or fetch it")
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file") from error
            if "\0" in text:
                raise ValueError(f"{path}, line {number}: holds a NUL character, so it is not a text file")
            yield number, text.rstrip("\r\n")
    if not number:
        raise ValueError(f"{path}: the file is empty; make or download it again")


@contextlib.contextmanager
def unpacking(path):
    """Raise ValueError if a file cannot be read or unpacked completely."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: cannot be read whole ({error}); download it again") from error


def _check_header(header, path, number):
    """Raise ValueError if a header names a column twice."""
    if len(set(header)) < len(header):
        raise ValueError(f"{path}, line {number}: the header names a column twice: {listed(header)}")


def _wrong_count(where, fields, header, note=""):
    """Return the message for a line with too many or too few columns."""
    return (
        f"{where}: {len(fields)} columns{note} where {len(header)} are due ({listed(header)}); "
        "mend the line or pass --skip_bad_examples"
    )


def read_tsv(path, header=(), skipped=None):
    """Yield (line number, {column: text}) of a tab-separated file without quoting, as GLUE publishes them.

    header: column names of a file without a header line. A line with another number of columns is broken.
    """
    skipped = skipped or Skipped()
    lines = read_lines(path)
    if not header:
        number, first = next(lines)
        header = tuple(first.split("\t"))
        _check_header(header, path, number)
    for number, text in lines:
        fields = text.split("\t")
        if not text.strip() and len(header) == 1:
            continue  # a blank line, not an example without words
        if len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))
        else:
            skipped.bad(_wrong_count(f"{path}, line {number}", fields, header))


QUOTED = re.compile(r'"(?:[^"]|"")*+"')
SEPARATORS = ",;|\t"


def _separator(header):
    """Return the character that cuts a header line into the most columns; a comma if none does."""

    def columns(sign):
        try:
            return len(next(csv.reader([header], delimiter=sign, strict=True), ()))
        except csv.Error:
            return 0

    best = max(SEPARATORS, key=columns)
    return best if columns(best) > 1 else SEPARATORS[0]


def _is_quoted(lines):
    """Return whether a tab-separated file quotes as csv does: every field that begins with a quote ends with one.

    In a file without quoting a quotation may begin in one example and end in another. As a quoted field it would hold
    tabs and newlines.
    """
    if not any(text.startswith('"') or '\t"' in text for text in lines):
        return False
    reader = csv.reader((text + "\n" for text in lines), delimiter="\t", strict=True)
    try:
        while True:
            if any("\t" in field and "\n" in field for field in _next_record(reader)):
                return False
    except StopIteration:
        return True
    except csv.Error:
        return False


def _read_columns(path, skipped):
    """Yield (line number, {column: text}) of a table with a header; finds its separator and whether tabs are quoted.

    Raises ValueError for JSON or markup in a file that is named as a table.
    """
    lines = [text for _, text in read_lines(path)]
    header = next((text for text in lines if text.strip()), "")
    if form := form_of_text(header):
        raise ValueError(f"{path}: is {form}, but its name ends in {ending(path)}: rename or convert it")
    sign = _separator(header)
    if sign != "\t" and not (ending(path) == ".tsv" and sign not in header):
        return _read_csv(path, skipped, lines, sign)
    return _read_csv(path, skipped, lines, "\t") if _is_quoted(lines) else read_tsv(path, skipped=skipped)


def form_of_text(first):
    """Return "JSON" or "XML or HTML" if a text's first line begins as one; else ""."""
    if re.match(r"""\s*(\{\s*("|$)|\[\s*([{\["]|$))""", first):
        return "JSON"
    return "XML or HTML" if re.match(r"\s*<(\?xml|!doctype|html)\b", first, re.IGNORECASE) else ""


def _bad_quote(text, sign):
    """Return where the quoted field begins that makes a record invalid csv; None if no quote does."""
    at = 0
    while 0 <= at < len(text):
        end = at
        if text[at] == '"':
            quoted = QUOTED.match(text, at)
            if not quoted or text[quoted.end()] not in f"{sign}\n\r":
                return at
            end = quoted.end()
        at = min(text.find(stop, end) + 1 or len(text) for stop in (sign, "\n"))
    return None


def _csv_fault(path, lines, number, error, sign):
    """Return the message for a record that the csv module refused; number: of the first of its lines."""
    text = "".join(line + "\n" for line in lines)
    quote, last = _bad_quote(text, sign), number + len(lines) - 1
    if quote is None and "\r" in text:
        return (
            f"{path}, line {number}: a carriage return outside quotes, where a line may end or a text go on: remove "
            "it, put the text in quotes, or pass --skip_bad_examples"
        )
    if quote is not None:
        number += text.count("\n", 0, quote)
        ended = "is never closed" if "end of data" in str(error) else f"closes in line {last} inside a field"
        error = f"the quote that opens here {ended}"
    return f"{path}, line {number}: not valid csv ({error}); mend the quotes or pass --skip_bad_examples"


def _next_record(reader):
    """Return the next record of a csv reader, however long its fields; csv's limit is global to the process."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(limit)


def _read_csv(path, skipped, lines, sign):
    """Yield (line number, {column: text}) of the lines of a quoted table whose separator is `sign`.

    A broken record loses its first line only: the reader starts again at the next one, since an open quote would
    swallow all lines. Blank lines are passed over; an empty text alone in its line is written "".
    """
    at, header = 0, None

    def feed():
        """Yield the lines from `at` on and move it, so that a new reader can begin anywhere."""
        nonlocal at
        while at < len(lines):
            at += 1
            yield lines[at - 1] + "\n"

    reader = csv.reader(feed(), strict=True, delimiter=sign)
    while at < len(lines):
        if not lines[at].strip(" \t\r"):
            at += 1
            continue
        start = at
        try:
            fields = _next_record(reader)
        except csv.Error as error:
            fault = _csv_fault(path, lines[start:at], start + 1, error, sign)
            if header is None:
                raise ValueError(f"{fault} (this is the header)") from error
        else:
            if header is None:
                header = fields
                _check_header(header, path, start + 1)
                continue
            if len(fields) == len(header):
                yield start + 1, dict(zip(header, fields, strict=True))
                continue
            note = f" (a quote reaches to line {at})" if at > start + 1 else ""
            fault = _wrong_count(f"{path}, line {start + 1}", fields, header, note)
        skipped.bad(fault)
        at, reader = start + 1, csv.reader(feed(), strict=True, delimiter=sign)


def _no_number(word):
    raise ValueError(f"{word} is no number in JSON")


def _parsed(texts, path, skipped):
    """Yield (place, value) of JSON texts given as (place, text)."""
    for place, text in texts:
        try:
            value = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:  # a plain ValueError: an integer of thousands of digits
            line = place or getattr(error, "lineno", 1)
            skipped.bad(f"{path}, line {line}: not valid JSON ({getattr(error, 'msg', error)})")
        else:
            yield place, value


def _json_items(whole, path):
    """Return the objects of a JSON text that is a list of them or an object with such a list; None for JSON lines.

    In an object the list is the value of `data` or the only value. Raises ValueError for invalid JSON, and for an
    object over several lines without such a list.
    """
    if whole.lstrip().startswith("["):
        return next(_parsed([(None, whole)], path, Skipped()))[1]
    try:
        content = json.loads(whole, parse_constant=_no_number)
    except (ValueError, RecursionError):
        if re.match(r"\s*{\s*\n", whole):  # not JSON lines, so report the error in the whole text
            next(_parsed([(None, whole)], path, Skipped()))
        return None
    if not isinstance(content, dict):
        return None
    for value in content.values() if len(content) == 1 else (content.get("data"),):
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return value
    if "\n" in whole.strip():
        raise ValueError(
            f"{path}: one JSON object over several lines, with the keys {listed(content)}: write an object a line, "
            "with the columns as keys, or a list of them, alone or as 'data'"
        )
    return None


def _read_json(path, skipped):
    """Yield (place, row) of JSON lines, of a JSON list of objects, or of an object around such a list."""
    lines = list(read_lines(path))
    if not any(text.lstrip().startswith(("{", "[")) for _, text in lines):
        raise ValueError(
            f"{path}: is not JSON, which begins with {{ or [; end a table's name in .csv or .tsv, a text's in .txt"
        )
    items = _json_items("\n".join(text for _, text in lines), path)
    if items is None:
        rows = _parsed(((number, text) for number, text in lines if text.strip(" \t\r")), path, skipped)
    else:
        rows = ((f"item {i}", row) for i, row in enumerate(items, 1))
    for place, row in rows:
        if isinstance(row, dict):
            yield place, row
        else:
            skipped.bad(f"{path}, line {place}: not a JSON object with the columns as keys")


def _in_short(error):
    """Return an error's message on one line; datasets and pyarrow each raise their own long ones."""
    return " ".join(str(error).split())[:200]


def read_parquet(path):
    """Return the rows of a Parquet file as an IterableDataset, which reads them in place."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; check the names of the files")
    from datasets import load_dataset

    try:
        name = glob.escape(str(Path(path).resolve()))
        return load_dataset("parquet", data_files=name, split="train", streaming=True)
    except Exception as error:
        raise ValueError(f"{path}: not a Parquet file ({_in_short(error)}); write it again") from error


def dataset_rows(dataset):
    """Yield ("row 1", {column: value}), ... of a Dataset, with class names in place of their ids."""
    names = {column: found for column in dataset.features or () if (found := label_names(dataset, column))}

    def named(column, value):
        """Return a value with class names, also inside lists."""
        if isinstance(value, list):
            return [named(column, one) for one in value]
        return names[column][value] if isinstance(value, int) and value >= 0 else value  # -1: unknown

    for number, row in enumerate(dataset, 1):
        yield f"row {number}", row | {column: named(column, row[column]) for column in names}


def lists_joined(rows, where, column, separator):
    """Yield rows whose lists in the column are joined to text by the separator.

    Lists of 0 and 1 that all have the same length, at least two, mark labels by their position.
    """
    rows = list(rows)
    lists = [row[column] for _, row in rows if isinstance(row.get(column), list)]
    hot = len({*map(len, lists)}) == 1 and len(lists[0]) > 1 and all(value in (0, 1) for row in lists for value in row)
    for number, row in rows:
        if isinstance(row.get(column), list):
            words = [str(i) for i, on in enumerate(row[column]) if on] if hot else list(map(str, row[column]))
            row = row | {column: _joined(words, separator, f"{where}, {line_name(number)}: column {column!r}")}
        yield number, row


def _joined(words, separator, what):
    """Return labels joined to one text. Raises ValueError if a label contains the separator."""
    if any(separator in word for word in words):
        raise ValueError(f"{what} holds {listed(words)}, which contain {separator!r}: pass another --label_separator")
    return separator.join(words)


def columns_joined(rows, where, columns, separator, skipped):
    """Yield rows with one more column, named by all `columns`: the names of the columns that hold 1.

    separator: between the names; "" if exactly one column must hold 1. Rows without any of the columns stay as they
    are.
    """
    for number, row in rows:
        there = [column for column in columns if column in row]
        if there:
            place = f"{where}, {line_name(number)}"
            texts = {column: str(row[column]).casefold() for column in there}
            values = {column: {"true": 1, "false": 0}.get(text, number_of(text)) for column, text in texts.items()}
            odd = [column for column in columns if values.get(column) not in (0, 1)]
            on = [column for column in columns if values.get(column) == 1]
            if odd:
                skipped.bad(f"{place}: column {odd[0]!r} holds {row.get(odd[0])!r} instead of 0 or 1")
                continue
            if not separator and len(on) != 1:
                skipped.bad(
                    f"{place}: {len(on)} of the columns {listed(columns)} hold 1, not one; try --kind multilabel"
                )
                continue
            row = row | {" ".join(columns): _joined(on, separator, f"{place}: --label_column") if separator else on[0]}
        yield number, row


def label_names(dataset, column):
    """Return the class names of a column of classes, or of lists of classes, in the order of their ids; else ()."""
    from datasets import ClassLabel

    feature = (dataset.features or {}).get(column)
    feature = getattr(feature, "feature", feature)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


class Place(NamedTuple):
    """The place of an example: its number (of a line, or "row 1"), and its index from 0, broken examples counted."""

    number: int | str
    index: int


def placed(rows, skipped):
    """Yield (Place, row) of (number, row), ...; whatever `rows` reports to `skipped` while it is read counts, too."""
    rows, index = iter(rows), 0
    while True:
        before = len(skipped.reports)
        number, row = next(rows, (None, None))
        index += len(skipped.reports) - before
        if number is None:
            return
        yield number if isinstance(number, Place) else Place(number, index), row
        index += 1


def line_name(number):
    """Return the name of an example in messages; number: of its line, or "row 1" without lines, or its Place."""
    number = number.number if isinstance(number, Place) else number
    return number if str(number).startswith("row ") else f"line {number}"


def read_dataset(path):
    """Return a Parquet file or a folder that `datasets` has saved as a Dataset; None for other forms."""
    path = Path(path)
    if (path / "dataset_dict.json").is_file():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise ValueError(f"{path}: holds the splits {listed(splits)}: name the folder of one, as {path / splits[0]}")
    if (path / "state.json").is_file():
        from datasets import load_from_disk

        try:
            return load_from_disk(str(path))
        except Exception as error:
            raise ValueError(f"{path}: cannot be read as a data set that was saved ({_in_short(error)})") from error
    return read_parquet(path) if path.suffix.lower() == ".parquet" else None


def _read_classes(folder):
    """Yield ("row pos/1.txt", {"text", "label"}) of a folder with a subfolder of .txt files, one text each, a class."""
    files = [path for path in sorted(folder.glob("[!.]*/[!.]*")) if path.suffix.lower() == ".txt"]
    if not files:
        raise ValueError(f"{folder}: neither saved by datasets nor a folder of .txt files for each class: name a file")
    for path in files:
        text = "\n".join(text for _, text in read_lines(path)) if path.stat().st_size else ""
        yield f"row {path.relative_to(folder)}", {"text": text, "label": path.parent.name}


JSON = (".json", ".jsonl", ".ndjson")


def read_table(path, skipped=None):
    """Return (line number, {column: value}), ... of a file with named columns, plain text, or a folder of texts."""
    suffix = ending(path)
    if Path(path).is_dir():
        return _read_classes(Path(path))
    if suffix in (".csv", ".tsv"):
        return _read_columns(path, skipped or Skipped())
    if suffix == ".txt":
        return ((number, {"text": text}) for number, text in read_lines(path) if text.strip())
    if suffix in JSON:
        return _read_json(path, skipped or Skipped())
    if Path(path).is_file():
        next(read_lines(path))  # names the form of a file that is not text
    raise ValueError(f"{path}: unknown ending {suffix!r}; use .csv, .tsv, .json, .jsonl, .parquet or .txt")


def is_table(path):
    """Return whether a path's name says rows with named columns: JSON, Parquet or a folder."""
    return ending(path) in (*JSON, ".parquet") or Path(path).is_dir()


# --- rows -> examples --------------------------------------------------------------------------------------------


def _label_id(word, labels, where, skipped):
    if word in labels:
        return labels.index(word)
    skipped.bad(f"{where}: unknown label {word!r}; the labels of this task are {listed(labels)}")


def _label_set(cell, task, where, skipped):
    """Return the labels of a cell as a list of 0 and 1, one for each label of the task; an empty cell has none."""
    words = [word.strip() for word in cell.split(task.separator)] if cell.strip() else []
    if "" in words or len(set(words)) < len(words):
        fault = "an empty label" if "" in words else "a label twice"
        return skipped.bad(f"{where}: {cell!r}, cut at {task.separator!r}, holds {fault}; mend the line")
    for word in words:
        if _label_id(word, task.labels, where, skipped) is None:
            return None
    return [int(label in words) for label in task.labels]


def _number(word, where, skipped):
    value = number_of(word) if word.strip().isascii() else None
    if value is not None and abs(float(value)) < float("inf"):
        return float(value)
    skipped.bad(f"{where}: the score {word!r} is not a finite number")


HALF_PAIR = re.compile("[\ud800-\udfff]")  # a lone surrogate: JSON can spell it, UTF-8 cannot


def pick(row, columns, path, number, skipped):
    """Return the named columns as strings; None for a row that is skipped, since one is missing or not text."""
    where = f"{path}, {line_name(number)}"
    missing = [c for c in columns if c not in row]
    if missing:
        return skipped.bad(
            f"{where}: no column {missing[0]!r}; there are: {listed(row)}; mend it, name yours by --text_columns and "
            "--label_column, or pass --skip_bad_examples"
        )
    for column in columns:
        value = row[column]
        if isinstance(value, (dict, list, bytes)) or value is None:
            kind = "null" if value is None else type(value).__name__
            remedy = " (several labels need --kind multilabel)" if isinstance(value, list) else ""
            return skipped.bad(f"{where}: column {column!r} holds a {kind}, not text{remedy}")
        if isinstance(value, str) and HALF_PAIR.search(value):
            return skipped.bad(f"{where}: column {column!r} holds half a surrogate pair, not text")
    return [str(row[column]) for column in columns]


def nothing_in(path, what, reports):
    """Return the error for a file without usable examples; reports: of its broken ones."""
    first = f" that are whole; the first: {reports[0]}" if reports else ""
    return ValueError(f"{path}: holds no {what}{first}")


def examples_from_rows(rows, path, text_columns, label_column, task, skipped):
    """Return a Dataset with text_a, (text_b), label and idx from the rows of a file; label_column None: no labels.

    idx is the example's place in the file, from 0, skipped examples included; submissions are matched by it.
    """
    from datasets import Dataset

    before = len(skipped.reports)
    columns = {"text_a": [], "text_b": [], "label": [], "idx": []}
    for place, row in placed(rows, skipped):
        values = pick(row, text_columns + ((label_column,) if label_column else ()), path, place, skipped)
        if values is None:
            continue
        label = -1
        if label_column:
            where = f"{path}, {line_name(place)}"
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
        columns["idx"].append(place.index)
    if not columns["idx"]:
        raise nothing_in(path, "examples", skipped.reports[before:])
    if len(text_columns) == 1:
        del columns["text_b"]
    return Dataset.from_dict(columns)
