"""Rows of files, tsv as GLUE publishes it, csv, JSON, Parquet, and the examples in them; a broken line is named.

`datasets`, whose import takes seconds, waits until there are rows: the command line imports this module by `data`.
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

from encoders.label_names import number_of


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
    """Return names for a message: on one line, not too many, in quotes where blanks or commas are part of them."""
    text = ", ".join(name if re.fullmatch(r"[^\s,'\"]+", name) else repr(name) for name in map(str, names))
    return text if len(text) <= 300 else (text[:300].rpartition(", ")[0] or text[:300]) + " ..."


# How packed files begin, and what opens them.
PACKED = {rb"\x1f\x8b\x08": gzip.open, rb"BZh[1-9](1AY&SY|\x17rE8)": bz2.open, rb"\xfd7zXZ\0": lzma.open}
# How files begin that hold no lines of UTF-8, and what they are.
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
    """Return a file opened to read its bytes, unpacked if gzip, bzip2 or xz packed it, whatever its name says."""
    with open(path, "rb") as f:
        start = f.read(10)
    return next((unpack for magic, unpack in PACKED.items() if re.match(magic, start)), open)(path, "rb")


def ending(path):
    """Return the ending of a file's name in small letters, that before .gz, .bz2 or .xz where the name ends so."""
    path = Path(path)
    path = path.with_suffix("") if path.suffix.lower() in (".gz", ".bz2", ".xz") else path
    return path.suffix.lower()


def read_lines(path):
    """(line number, text) of a UTF-8 file, packed or not, split at newlines only, without its byte-order mark.

    A file without newlines, but for one at its end, is split at carriage returns: old programs of the Mac write such.
    Raises ValueError for a file that is missing, empty, not UTF-8 or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check --data_dir and the names of its files")
    number = 0
    with unpacking(path), opened(path) as f:
        begin = [*itertools.islice(f, 2)]
        if len(begin) == 1:
            begin = begin[0].rstrip(b"\r\n").split(b"\r")
        for number, raw in enumerate(itertools.chain(begin, f), 1):
            if number == 1:
                _check_form(path, raw)
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file") from error
            if "\0" in text:
                raise ValueError(f"{path}, line {number}: holds a NUL character, so it is not a text file")
            yield number, text.rstrip("\r\n")
    if not number:
        raise ValueError(f"{path}: the file is empty; download it again")


def _check_form(path, start):
    """Raise ValueError where a file begins as one of another form than lines of UTF-8."""
    for magic, form in OTHER_FORMS.items():
        if re.match(magic, start):
            raise ValueError(f"{path}: is {form}, not UTF-8 text; unpack, convert or fetch it")


@contextlib.contextmanager
def unpacking(path):
    """Raise ValueError where a file cannot be read, or unpacked, to its end."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: cannot be read whole ({error}); download it again") from error


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


SEPARATORS = ",;|\t"


def _separator(header):
    """Return the sign that cuts a header line into the most columns, a comma in doubt."""

    def columns(sign):
        try:
            return len(next(csv.reader([header], delimiter=sign, strict=True), ()))
        except csv.Error:
            return 0

    best = max(SEPARATORS, key=columns)
    return best if columns(best) > 1 else SEPARATORS[0]


def _is_quoted(lines):
    """Whether a tab-separated file quotes as csv does: some fields, and all that begin with a quote, end with one.

    Without quoting a quotation may begin in one example and end in another: such a field would hold tabs and newlines.
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
    """(line number, {column: text}) of a table with a header: its separator is recognised, and whether tabs are quoted.

    Raises ValueError for JSON or markup with the name of a table.
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
    """Return what a text is by its first line, where that is JSON or markup; else ""."""
    if re.match(r"""\s*(\{\s*("|$)|\[\s*([{\["]|$))""", first):
        return "JSON"
    return "XML or HTML" if re.match(r"\s*<(\?xml|!doctype|html)\b", first, re.IGNORECASE) else ""


def _bad_quote(text, sign):
    """Where the quoted field begins that makes the text of a record invalid csv; None if no quote does."""
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
    """Return what is wrong with a record that the csv module refused; lines: of the record, number: of the first."""
    text = "".join(line + "\n" for line in lines)
    quote, last = _bad_quote(text, sign), number + len(lines) - 1
    if quote is None and "\r" in text:
        return (
            f"{path}, line {number}: a carriage return outside quotes, where a line may end or a text go on: take "
            "it out, put the text in quotes, or pass --skip_bad_examples"
        )
    if quote is not None:
        number += text.count("\n", 0, quote)
        ended = "is never closed" if "end of data" in str(error) else f"closes in line {last} inside a field"
        error = f"the quote that opens here {ended}"
    return f"{path}, line {number}: not valid csv ({error}); mend the quotes or pass --skip_bad_examples"


def _next_record(reader):
    """Return the next record of a csv reader, however long its fields: the limit is one of the whole process."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(limit)


def _read_csv(path, skipped, lines, sign):
    """Rows of the lines of a table with quoting, whose separator is `sign`.

    Of a broken record only the first line is lost: the next one is read anew, else an open quote took all along.

    Blank lines are passed over; an empty text alone in its line is written "".
    """
    at, header = 0, None

    def feed():
        """Lines from `at` on, which it moves, so that the reader can begin anew."""
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
                if len(set(header)) < len(header):
                    raise ValueError(f"{path}, line {start + 1}: the header names a column twice: {listed(header)}")
                continue
            if len(fields) == len(header):
                yield start + 1, dict(zip(header, fields, strict=True))
                continue
            upto = f" (a quote reaches to line {at})" if at > start + 1 else ""
            fault = (
                f"{path}, line {start + 1}: {len(fields)} columns{upto} where {len(header)} are due "
                f"({listed(header)}); mend the line or pass --skip_bad_examples"
            )
        skipped.bad(fault)
        at, reader = start + 1, csv.reader(feed(), strict=True, delimiter=sign)


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


def _json_items(whole, path):
    """Return the objects of a JSON file that is one list of them, or an object with that list; None for JSON lines.

    whole: its text. In an object the list is the value of `data` or the only value. Raises ValueError for text that is
    not JSON, and for an object over several lines in which no such list is found.
    """
    if whole.lstrip().startswith("["):
        return next(_parsed([(None, whole)], path, Skipped()))[1]
    try:
        content = json.loads(whole, parse_constant=_no_number)
    except (ValueError, RecursionError):
        if re.match(r"\s*{\s*\n", whole):  # no JSON line, so the error that counts is the whole text's
            next(_parsed([(None, whole)], path, Skipped()))
        return None
    if not isinstance(content, dict):
        return None
    for value in content.values() if len(content) == 1 else (content.get("data"),):
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return value
    if "\n" in whole.strip():
        raise ValueError(
            f"{path}: one JSON object over several lines, with the keys {listed(content)}: wanted is an "
            "object a line, with the columns as keys, or a list of them, alone or as 'data'"
        )
    return None


def _read_json(path, skipped):
    """JSON lines, one JSON list of objects, or an object around such a list."""
    lines = list(read_lines(path))
    if not any(text.lstrip().startswith(("{", "[")) for _, text in lines):
        raise ValueError(
            f"{path}: is not JSON, which begins with {{ or [; a table of columns has the ending .csv or .tsv, text "
            "alone .txt"
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


def read_parquet(path):
    """Return the rows of a Parquet file as an IterableDataset, read where they are: no copy of it is made."""
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
        """Return a value of a column with names for ids, also of those in lists."""
        if isinstance(value, list):
            return [named(column, one) for one in value]
        return names[column][value] if isinstance(value, int) and value >= 0 else value  # -1: not known

    for number, row in enumerate(dataset, 1):
        yield f"row {number}", row | {column: named(column, row[column]) for column in names}


def lists_joined(rows, where, column, separator):
    """Rows in which the column holds text where it held a list, as `data` wants it.

    Lists of 0 and 1, all of the same length of at least two, say of each label whether it is the text's.
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
    """Labels as one text. Raises ValueError if the separator is part of one."""
    if any(separator in word for word in words):
        raise ValueError(
            f"{what} holds {listed(words)}, in which {separator!r} cannot part the labels: pass another "
            "--label_separator"
        )
    return separator.join(words)


TRUTH = {"true": 1, "false": 0}


def columns_joined(rows, where, columns, separator, skipped):
    """Rows with one column more, named by all `columns`: the names of those that hold 1; rows without any stay.

    separator: between the names; "" where just one column may hold 1.
    """
    for number, row in rows:
        there = [column for column in columns if column in row]
        if there:
            place = f"{where}, {line_name(number)}"
            texts = {column: str(row[column]) for column in there}
            values = {column: TRUTH.get(text.casefold(), number_of(text)) for column, text in texts.items()}
            odd = [column for column in columns if values.get(column) not in (0, 1)]
            on = [column for column in columns if values.get(column) == 1]
            if odd:
                skipped.bad(f"{place}: column {odd[0]!r} holds {row.get(odd[0])!r}, where 0 or 1 is due")
                continue
            if not separator and len(on) != 1:
                skipped.bad(
                    f"{place}: {len(on)} of the columns {listed(columns)} hold 1, where one has "
                    "to: for several labels pass --kind multilabel"
                )
                continue
            row = row | {" ".join(columns): _joined(on, separator, f"{place}: --label_column") if separator else on[0]}
        yield number, row


def label_names(dataset, column):
    """Return the names of a column of classes, or of lists of classes, in the order of their ids; () for any other
    column.
    """
    from datasets import ClassLabel

    feature = (dataset.features or {}).get(column)
    feature = getattr(feature, "feature", feature)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


def line_name(number):
    """Return what a message calls an example; number: of its line, or "row 1" where there are no lines."""
    return number if str(number).startswith("row ") else f"line {number}"


def read_dataset(path):
    """Return the rows of a Parquet file, or of a folder that `datasets` has saved, as a Dataset; None for any other
    form.
    """
    path = Path(path)
    if (path / "dataset_dict.json").is_file():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise ValueError(f"{path}: holds the splits {listed(splits)}: name the folder of one, as {path / splits[0]}")
    if (path / "state.json").is_file():
        from datasets import load_from_disk

        try:
            return load_from_disk(str(path))
        except Exception as error:  # datasets and pyarrow each raise their own
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: cannot be read as what datasets has saved ({said})") from error
    return read_parquet(path) if path.suffix.lower() == ".parquet" else None


def _read_classes(folder):
    """("row pos/1.txt", {"text", "label"}) of a folder with a folder of .txt files, a text each, for every class."""
    files = [path for path in sorted(folder.glob("[!.]*/[!.]*")) if path.suffix.lower() == ".txt"]
    if not files:
        raise ValueError(
            f"{folder}: is a folder, but neither one that datasets has saved nor one with a folder of .txt files for "
            "each class: name a file"
        )
    for path in files:
        text = "\n".join(text for _, text in read_lines(path)) if path.stat().st_size else ""
        yield f"row {path.relative_to(folder)}", {"text": text, "label": path.parent.name}


def read_table(path, skipped=None):
    """Return (line number, {column: value}) of a .csv, .tsv, .json or .jsonl file with named columns, or a folder of
    texts.
    """
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
        next(read_lines(path))  # names the form of what is no text
    raise ValueError(
        f"{path}: unknown ending {suffix!r}; use .csv, .tsv, .json, .jsonl, .parquet or, for text alone, .txt"
    )


JSON = (".json", ".jsonl", ".ndjson")


def is_table(path):
    """Whether a name says rows with named columns of any type: JSON, Parquet or a folder."""
    return ending(path) in (*JSON, ".parquet") or Path(path).is_dir()


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
    value = number_of(word) if word.strip().isascii() else None
    if value is not None and abs(float(value)) < float("inf"):
        return float(value)
    skipped.bad(f"{where}: the score {word!r} is not a finite number")


def pick(row, columns, path, number, skipped):
    """Return the named columns as strings, or None where one is missing or holds no text and the row is skipped."""
    missing = [c for c in columns if c not in row]
    if missing:
        return skipped.bad(f"{path}, {line_name(number)}: no column {missing[0]!r}; there are: {listed(row)}")
    for column in columns:
        value = row[column]
        if isinstance(value, (dict, list, bytes)) or value is None:
            kind = "null" if value is None else type(value).__name__
            remedy = " (several labels need --kind multilabel)" if isinstance(value, list) else ""
            return skipped.bad(f"{path}, {line_name(number)}: column {column!r} holds a {kind}, not text{remedy}")
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
