"""Corpora on disk in every form: the same documents and blocks, streamed or not; what is no text is named."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from engine import command_line, run_folder
from tasks import documents, plain_text

TEXTS = [
    "the dog sleeps .",
    'a "quoted" bird , and\ttabs',
    "",
    "the caf\u00e9 sees\u2028 one cat .",
    "2020-01-01",
    "None",
    "{1}",
    "12",
    "nan",
] * 3


def table(column="text"):
    return pd.DataFrame({"id": range(len(TEXTS)), column: TEXTS})


def json_lines(texts=TEXTS, **options):
    rows = ({"id": i, "text": text, "more": [{}, i]} for i, text in enumerate(texts))
    return "".join(json.dumps(row, **options) + "\n" for row in rows)


def parquet(frame):
    out = io.BytesIO()
    frame.to_parquet(out)
    return out.getvalue()


FORMS = {
    "a.txt": "\n".join(TEXTS),
    "no_ending": "\r\n".join(TEXTS),
    "mac.txt": "\r".join(TEXTS),
    "a.jsonl": json_lines(),
    "a.ndjson": json_lines(ensure_ascii=False),
    "a.json": json_lines(),
    "b.txt": json_lines(),
    "list.json": json.dumps([{"text": text} for text in TEXTS], indent=1),
    "a.csv": table().to_csv(index=False),
    "a.parquet": parquet(table()),
    "c.txt": parquet(table()),
    "large.parquet": parquet(table().astype({"text": "string"})),
}
PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts_of(path, tmp_path, **options):
    """The documents of a corpus, read both ways."""
    whole = plain_text.load_texts(str(path), cache_dir=str(tmp_path / "copy"), **options)["text"][:]
    assert whole == [row["text"] for row in plain_text.load_texts(str(path), streaming=True, **options)]
    return whole


@pytest.mark.parametrize("packed", ["", *PACKERS, "nameless"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_holds_the_same_documents(tmp_path, name, packed):
    content = FORMS[name] if isinstance(FORMS[name], bytes) else FORMS[name].encode()
    path = tmp_path / (name + packed.replace("nameless", ""))
    path.write_bytes(PACKERS.get(packed, gzip.compress)(content) if packed else content)
    if packed and content.startswith(b"PAR1"):  # it packs itself
        with pytest.raises(ValueError, match="Parquet"):
            texts_of(path, tmp_path)
    else:
        assert texts_of(path, tmp_path) == TEXTS


def test_blocks_do_not_depend_on_the_form_but_their_cache_does(world, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")
    lines = (world / "text" / "train.txt").read_text().splitlines()[:60]
    one, other = write(tmp_path / "a.txt", "\n".join(lines)), write(tmp_path / "a.jsonl", json_lines(lines))
    load = lambda path, **options: plain_text.load_blocks(path, tokenizer, 8, 1, tmp_path / "cache", **options)  # noqa: E731
    assert load(one)["input_ids"][:] == load(other)["input_ids"][:] and len(list((tmp_path / "cache").iterdir())) == 2
    streams = [
        plain_text.Stream(plain_text.load_texts(path, streaming=True), plain_text.cutter(tokenizer, 8), 1, pool=20)
        for path in (one, other)
    ]
    assert np.array_equal(streams[0].take(50), streams[1].take(50))
    # The same bytes by another name are other documents, and so is another column of the same file.
    text = '"text","body"\n' + "".join(f'"{a}","{b}"\n' for a, b in zip(lines, lines[::-1], strict=True))
    found = [
        load(write(tmp_path / name, text), **options)["input_ids"][:]
        for name, options in (("b.txt", {}), ("b.csv", {}), ("b.csv", {"column": "body"}))
    ]
    assert found[1] == load(one)["input_ids"][:] and found[0] != found[1] != found[2]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8), min_size=1))
def test_tables_keep_any_text(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("texts", numbered=True)
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["text"], *([text.replace("\r", "")] for text in texts)])
    files = {"a.jsonl": json_lines(texts), "a.csv": out.getvalue(), "a.parquet": parquet(pd.DataFrame({"text": texts}))}
    for name, content in files.items():
        expected = [text.replace("\r", "") if name == "a.csv" else text for text in texts]
        read = (row["text"] for row in documents.documents([write(folder / name, content)], "text"))
        if any(text.strip() for text in expected):
            assert list(read) == expected, name
        else:
            with pytest.raises(ValueError, match="holds no text"):
                list(read)


def test_another_column_and_nulls(tmp_path):
    frame = table("body")
    frame.loc[1, "body"] = None
    files = {"a.parquet": parquet(frame), "a.jsonl": frame.to_json(orient="records", lines=True)}
    for name, content in files.items():
        path = write(tmp_path / name, content)
        assert texts_of(path, tmp_path, column="body") == [TEXTS[0], "", *TEXTS[2:]]
        with pytest.raises(ValueError, match=rf"{name}.*: has no column 'text' but id, body; name .* by --text_column"):
            texts_of(path, tmp_path)


def archive(make, content=b"the dog sleeps ."):
    """The bytes of a zip or tar archive with one file."""
    out = io.BytesIO()
    if make == "zip":
        with zipfile.ZipFile(out, "w") as f:
            f.writestr("a.txt", content)
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as f:
            info = tarfile.TarInfo("a.txt")
            info.size = len(content)
            f.addfile(info, io.BytesIO(content))
    return out.getvalue()


LONG = "the dog sleeps .\n" * 9000
HALF = slice(0, -300)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.docx", archive("zip"), "a.docx: is a zip archive or a document of an office program, not UTF-8 text"),
        ("a.tar.gz", archive("tar"), "a.tar.gz: is a tar archive"),
        ("a.txt", b"%PDF-1.7\n\xe2\n", "a.txt: is a PDF"),
        ("a.txt.zst", b"\x28\xb5\x2f\xfd\0\0", "is packed by zstd"),
        ("a.txt", "\ufeffa b".encode("utf-16-le"), "is UTF-16"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "is a pointer of Git LFS"),
        ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "not a Parquet file"),
        ("a.csv", parquet(table())[4:], "not UTF-8|NUL"),
        ("a.bin", bytes(range(256)), "line 1: holds a NUL"),
        ("a.txt", b"ab\ncaf\xe9\n", "a.txt, line 2: not UTF-8"),
        ("a.txt", "<?xml version='1.0'?>\n<a>b</a>", "XML or HTML; extract the text first"),
        ("a.xml.bz2", bz2.compress(b" <mediawiki xml:lang='en'>\n<page>"), "XML or HTML"),
        ("a", "\n\n<!DOCTYPE html>\n<html>", "XML or HTML"),
        ("a.txt.gz", gzip.compress(LONG.encode())[HALF], "a.txt.gz: cannot be read whole .*; download it again"),
        ("a.txt", bz2.compress(LONG.encode())[:-9], "a.txt: cannot be read whole"),
        ("a.txt.xz", lzma.compress(LONG.encode())[:-40], "cannot be read whole"),
        ("a.parquet", parquet(table())[:-50], "a.parquet: not a Parquet file"),
        ("a.jsonl", json_lines() + '{"text": "a', f"a.jsonl, line {len(TEXTS) + 1}: not valid JSON"),
        ("a.jsonl", json_lines() + '["a"]\n', f"line {len(TEXTS) + 1}: not a JSON object with the columns as keys"),
        ("a.jsonl", json_lines() + '\n{"id": 1}\n', f"line {len(TEXTS) + 2}: has no column 'text' but id"),
        ("a.jsonl", json_lines() + '{"text": ["a"]}\n', f"line {len(TEXTS) + 1}: column 'text' holds a list, not text"),
        ("a.jsonl", '{"text": " "}\n{"text": null}\n', "a.jsonl: holds no text"),
        ("a.jsonl", "", "the file is empty"),
        ("a.csv", 'text\n"ab\n', "a.csv, line 2: .* never closed\\); mend the quotes$"),
        ("a.csv", "id,text\n1,a\n2\n", "a.csv, line 3: 1 columns where 2 are due .*; mend the line$"),
        ("a.parquet", parquet(pd.DataFrame({"text": [1, 2]})), "column 'text' holds .*int64.*, not text"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, name, content, said):
    path = write(tmp_path / name, content)
    for streaming in (False, True):
        with pytest.raises(ValueError, match=said) as error:
            plain_text.load_texts(path, streaming=streaming, cache_dir=str(tmp_path / "copy"))
        assert path in str(error.value) and "\n" not in str(error.value)


def test_a_hole_in_a_parquet_file_is_found_before_training(tmp_path):
    content = bytearray(parquet(pd.DataFrame({"text": [f"the dog {i} sleeps ." for i in range(3000)]})))
    content[2000:2400] = bytes(400)
    path = write(tmp_path / "a.parquet", bytes(content))
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"a.parquet: cannot be read whole \(.*\); write it again"):
            plain_text.load_texts(path, streaming=streaming, cache_dir=str(tmp_path / "copy"))


def test_folders_are_read_if_they_hold_one_form(tmp_path):
    a = tmp_path / "a"
    (a / "deep").mkdir(parents=True)
    write(a / "1.jsonl", json_lines(["one dog"]))
    write(a / "deep" / "2.json.gz", gzip.compress(json_lines(["two cats"]).encode()))
    write(a / "README.md", "# Not a document")
    assert texts_of(a, tmp_path) == ["one dog", "two cats"]
    write(a / "3.txt", "three birds")
    with pytest.raises(ValueError, match=r"several forms \(1 .jsonl, 1 .txt, 1 .json\); name those to read by a glob"):
        documents.find_files(str(a))
    assert [str(a / "3.txt")] == documents.find_files(f"{a}/**/*.txt")
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="a folder that `datasets` has saved; write it as Parquet"):
        documents.find_files(str(tmp_path / "saved"))
    for missing in ("no.txt", "owner/no.txt", "owner/no.jsonl.gz"):  # no id of the hub is looked for
        with pytest.raises(ValueError, match="no such file, folder or glob"):
            plain_text.load_texts(missing)


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_the_column_of_a_data_set_of_the_hub(world, tmp_path, monkeypatch, streaming):
    lines = (world / "text" / "train.txt").read_text().splitlines()[:40]
    rows = {"id": list(range(41)), "body": [None, *lines], "tags": [["a"]] * 41}
    whole = Dataset.from_dict(
        rows, features=Features({"id": Value("int64"), "body": Value("string"), "tags": List(Value("string"))})
    )
    nameless = IterableDataset.from_generator(lambda: iter(whole))  # says nothing of its columns
    for data in (whole.to_iterable_dataset(), nameless) if streaming else (whole,):
        monkeypatch.setattr(plain_text, "load_hub", lambda *_, data=data, **__: data)
        texts = plain_text.load_texts("owner/news:small", streaming=streaming, column="body")
        assert [row["text"] for row in texts] == [None, *lines]
        with pytest.raises(ValueError, match="corpus 'owner/news': has no column 'text' but id, body, tags; name"):
            plain_text.load_texts("owner/news", streaming=streaming)
        if data is not nameless:
            with pytest.raises(ValueError, match=r"column 'tags' holds List\(.*\), not text"):
                plain_text.load_texts("owner/news", streaming=streaming, column="tags")
        tokenizer = AutoTokenizer.from_pretrained(world / "bert")
        if streaming:  # a null is a text without words
            assert plain_text.Stream(texts, plain_text.cutter(tokenizer, 8), 1).take(3).shape == (3, 8)
        else:
            assert len(plain_text.load_blocks("owner/news", tokenizer, 8, 1, tmp_path / "cache", column="body"))


def test_a_stream_that_breaks_off_names_the_corpus_and_says_how_to_go_on(world):
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")

    def rows():
        yield from ({"text": "the dog sees the cat ."} for _ in range(3 * plain_text.DOCUMENTS))
        raise ConnectionError("Server Disconnected") from OSError("peer closed connection")

    texts = IterableDataset.from_generator(rows, features=plain_text.FEATURES)
    stream = plain_text.Stream(texts, plain_text.cutter(tokenizer, 8), 1, pool=500, name="--corpus 'owner/news'")
    stream.take(500)
    with pytest.raises(run_folder.TrainingError) as error:
        stream.take(10_000)
    assert str(error.value) == (
        "--corpus 'owner/news': the text cannot be read any further: peer closed connection; once it "
        "can, the same command continues from its last checkpoint"
    )


class Broken(torch.utils.data.Dataset):
    """Rows that cannot be read."""

    def __len__(self):
        return 1

    def __getitem__(self, i):
        try:
            raise OSError("peer closed connection")
        except OSError as error:
            raise self.error("--corpus 'owner/news': broke off\nthe same command goes on") from error


@pytest.mark.parametrize("error, status", [(run_folder.TrainingError, 1), (ValueError, 2)])
def test_an_error_in_a_worker_is_told_without_its_traceback(capsys, error, status):
    Broken.error = error
    loader = torch.utils.data.DataLoader(Broken(), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(SystemExit) as stop:
        command_line.run_script(lambda: list(loader))
    said = capsys.readouterr().err
    assert stop.value.code == status
    assert said.partition(": error: ")[2] == "--corpus 'owner/news': broke off the same command goes on\n"
