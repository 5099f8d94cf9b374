"""Readers of a corpus on disk: lines of plain text, and rows of JSON, csv, tsv and Parquet, packed or not."""

import glob
import itertools
import json
import re
from collections import Counter
from pathlib import Path

from tasks import readers
from tasks.hub import said

# Ending of a file's name -> its form; .gz, .bz2 or .xz may follow.
FORMS = {
    ".txt": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


class Strict(readers.Skipped):
    """Stops at the first broken row: no row of a corpus is skipped."""

    def bad(self, message):
        """Raise ValueError with the message, without its advice to skip the row."""
        raise ValueError(re.sub(",? or pass --skip_bad_examples", "", message))


def find_files(corpus):
    """Return the files of a corpus given as file, folder (all files below it) or glob, as strings; None for others.

    Raises ValueError for a folder or glob without files, or a folder with files of several forms.
    """
    path = Path(corpus)
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        return _files_below(path)
    if not glob.has_magic(corpus):
        return None
    files = sorted(file for file in glob.glob(corpus, recursive=True) if Path(file).is_file())
    if not files:
        raise ValueError(f"corpus {corpus!r}: no file matches")
    return files


def _files_below(folder):
    """Return the files of a folder with an ending of FORMS; they must have one form, or notes could pass for texts."""
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        raise ValueError(f"corpus '{folder}': a folder that `datasets` has saved; write it as Parquet by to_parquet")
    files = [str(path) for path in sorted(folder.rglob("*")) if readers.ending(path) in FORMS and path.is_file()]
    if not files:
        raise ValueError(f"corpus '{folder}': no .txt file in this folder, nor any of {', '.join(list(FORMS)[1:])}")
    if len({FORMS[readers.ending(file)] for file in files}) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(map(readers.ending, files)).most_common())
        raise ValueError(
            f"corpus '{folder}': a folder of several forms ({counts}); name those to read by a glob in "
            f"quotes, such as '{folder}/**/*{readers.ending(files[0])}'"
        )
    return files


def form_of(file):
    """Return text, json, csv, tsv or parquet, by a file's content or ending.

    A file without a known ending is json if its first lines are all objects. Raises ValueError for XML and HTML.
    """
    with readers.unpacking(file), open(file, "rb") as f:
        if f.read(4) == b"PAR1":
            return "parquet"
    form = FORMS.get(readers.ending(file), "text")
    if form != "text":
        return form
    first = list(itertools.islice((text for _, text in readers.read_lines(file) if text.strip()), 10))
    if first and re.match(r"\s*<(\?xml|!doctype|html|mediawiki)\b", first[0], re.IGNORECASE):
        raise ValueError(f"{file}: XML or HTML; extract the text first, or the model would learn the markup")
    return "json" if first and all(map(_is_object, first)) else "text"


def _is_object(text):
    """Return whether a text is one JSON object."""
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def documents(files, column):
    """Yield {"text": document} for each line of text files and each row of tables, which have the text in `column`.

    A null is an empty document. Raises ValueError with file and line for unreadable rows, and for a file without text.
    """
    for file in files:
        blank = True
        for text in _texts(file, column):
            blank = blank and not text.strip()
            yield {"text": text}
        if blank:
            raise ValueError(f"{file}: holds no text")


def _texts(file, column):
    """Yield the documents of one file."""
    form = form_of(file)
    if form == "parquet":
        yield from _parquet_texts(file, column)
    elif form == "text":
        for _, text in readers.read_lines(file):
            yield from text.split("\r")
    else:
        if form == "tsv":  # line by line, to spare memory; unlike the user's own examples it has no quoting
            rows = readers.read_tsv(file, skipped=Strict())
        else:
            rows = _json_rows(file) if form == "json" else readers.read_table(file, Strict())
        for number, row in rows:
            if column not in row:
                raise no_column(f"{file}, {readers.line_name(number)}", column, row)
            yield "" if row[column] is None else readers.pick(row, (column,), file, number, Strict())[0]


def no_column(where, column, there):
    """Return the error for a table without the column of the text."""
    return ValueError(
        f"{where}: has no column {column!r} but {readers.listed(there)}; name the one with the text by --text_column"
    )


def _json_rows(file):
    """Yield (line number, row) of JSON lines, one in memory at a time, or of other JSON that `read_table` reads."""
    lines = ((number, text) for number, text in readers.read_lines(file) if text.strip())
    first = next(lines, (0, ""))
    if not _is_object(first[1]):
        yield from readers.read_table(file, Strict())
        return
    for number, text in itertools.chain([first], lines):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: not valid JSON ({getattr(error, 'msg', error)})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: not a JSON object with the columns as keys")
        yield number, row


def _parquet_texts(file, column):
    """Yield the texts of a Parquet file, some rows in memory at a time."""
    rows = readers.read_parquet(file)
    check_column(file, column, rows.features)
    try:
        for table in rows.select_columns([column]).with_format("arrow").iter(1000):
            yield from (text or "" for text in table[column].to_pylist())
    except OSError as error:
        raise ValueError(f"{file}: cannot be read whole ({said(error)}); write it again") from error


def check_column(where, column, features):
    """Raise ValueError unless a table's features have this column and it holds text."""
    if column not in features:
        raise no_column(where, column, features)
    if getattr(features[column], "dtype", None) not in ("string", "large_string", "string_view"):
        raise ValueError(f"{where}: column {column!r} holds {features[column]}, not text; pass another --text_column")
