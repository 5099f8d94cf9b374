"""data.py: files as GLUE publishes them, the user's own files, broken files, batches."""

import contextlib
import csv
import itertools
import json
import random
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast

import data
import distill_finetune
from engine import run_folder
from tasks import batching, kinds, overview, readers

FUZZ = settings(max_examples=20, deadline=None)


def tsv(*lines, tail="\n"):
    return "\n".join("\t".join(fields) for fields in lines) + tail


def parse(task, *options):
    args = distill_finetune.build_parser().parse_args(["--task", task, *map(str, options)])
    data.check_args(args)
    return args


def load(task, *options, skip=False):
    """(task, {split: Dataset}, reports of skipped examples)."""
    skipped = readers.Skipped(skip)
    return *data.load_examples(parse(task, *options), skipped), skipped.reports


def write(folder, files):
    for name, text in files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def rows(dataset):
    """Examples as (text_a, [text_b,] label); idx must count them."""
    assert dataset["idx"] == list(range(len(dataset)))
    return list(zip(*(dataset[c] for c in ("text_a", "text_b", "label") if c in dataset.column_names), strict=True))


# --- GLUE's files, with GLUE's quirks: one task, its files, what has to be read -------------------------------

PARSES = tuple(f"sentence{i}_{kind}" for kind in ("binary_parse", "parse") for i in (1, 2))
MNLI_HEADER = ("index", "promptID", "pairID", "genre", *PARSES, "sentence1", "sentence2")
MNLI_DEV = (*MNLI_HEADER, *(f"label{i}" for i in range(1, 6)), "gold_label")
MRPC_IDS = ("#1 ID", "#2 ID", "#1 String", "#2 String")
STSB_HEADER = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2")
PAIRS = ("index", "sentence1", "sentence2")


def mnli(index, first, second, *labels):
    return (index, "31193", "31193n", "government", "( a )", "( b )", "(ROOT a)", "(ROOT b)", first, second, *labels)


def stsb(index, first, second, *score):
    return (index, "main-captions", "MSRvid", "2012test", "0001", "none", "none", first, second, *score)


GLUE = {
    "cola": (
        {
            "CoLA/train.tsv": tsv(("gj04", "1", "", 'She said "no.'), ("cj99", "0", "*", "They drank the pub.")),
            "CoLA/dev.tsv": tsv(("gj04", "0", "*", "Him ran.")),
            "CoLA/test.tsv": tsv(("index", "sentence"), ("0", "Bill whistled past the house."), ("1", "He ran.")),
        },
        {
            "train": [('She said "no.', 1), ("They drank the pub.", 0)],
            "validation": [("Him ran.", 0)],
            "test": [("Bill whistled past the house.", -1), ("He ran.", -1)],
        },
    ),
    "sst2": (
        {
            "SST-2/train.tsv": tsv(("sentence", "label"), ("hide new secretions ", "0"), ("a gem ", "1")),
            "SST-2/dev.tsv": tsv(("sentence", "label"), ("it 's a charming journey . ", "1")),
            "SST-2/test.tsv": tsv(("index", "sentence"), ("0", "uneasy mishmash .")),
        },
        {
            "train": [("hide new secretions ", 0), ("a gem ", 1)],
            "validation": [("it 's a charming journey . ", 1)],
            "test": [("uneasy mishmash .", -1)],
        },
    ),
    "mrpc": (
        {
            "MRPC/train.tsv": "\ufeff"
            + tsv(
                ("Quality", *MRPC_IDS),
                ("1", "702876", "702977", 'He called him " the witness " .', '" The witness " , he said'),
                ("0", "2108705", "2108831", '" A quote left open .', "Sold for $ 2.5 billion ."),
            ),
            "MRPC/dev.tsv": "\ufeff" + tsv(("Quality", *MRPC_IDS), ("1", "1", "2", "Pies .", '" Pies .'), tail=""),
            "MRPC/test.tsv": "\ufeff" + tsv(("index", *MRPC_IDS), ("0", "1089874", "1089925", "PCCW 's", "Chief")),
        },
        {
            "train": [
                ('He called him " the witness " .', '" The witness " , he said', 1),
                ('" A quote left open .', "Sold for $ 2.5 billion .", 0),
            ],
            "validation": [("Pies .", '" Pies .', 1)],
            "test": [("PCCW 's", "Chief", -1)],
        },
    ),
    "stsb": (
        {
            "STS-B/train.tsv": tsv(
                (*STSB_HEADER, "score"),
                stsb("0", "A plane takes off.", "An air plane is taking off.", "5.000"),
                stsb("1", 'A "man.', "A woman.", "0.25"),
            ),
            "STS-B/dev.tsv": tsv((*STSB_HEADER, "score"), stsb("0", "A hard hat.", "A hat.", "3")),
            "STS-B/test.tsv": tsv(STSB_HEADER, stsb("0", "A girl.", "A boy.")),
        },
        {
            "train": [("A plane takes off.", "An air plane is taking off.", 5.0), ('A "man.', "A woman.", 0.25)],
            "validation": [("A hard hat.", "A hat.", 3.0)],
            "test": [("A girl.", "A boy.", -1)],
        },
    ),
    "qqp": (
        {
            "QQP/train.tsv": tsv(
                ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
                ("133273", "213221", "213222", "How is the life?", "", "0"),
                ("402555", "536040", "536041", 'What "is?', "What is it?", "1"),
            ),
            "QQP/dev.tsv": tsv(
                ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
                ("1", "2", "3", "Why?", "Why so?", "1"),
            ),
            "QQP/test.tsv": tsv(("id", "question1", "question2"), ("0", "Would it?", "What if?")),
        },
        {
            "train": [("How is the life?", "", 0), ('What "is?', "What is it?", 1)],
            "validation": [("Why?", "Why so?", 1)],
            "test": [("Would it?", "What if?", -1)],
        },
    ),
    "mnli": (
        {
            "MNLI/train.tsv": tsv(
                (*MNLI_HEADER, "label1", "gold_label"),
                mnli("0", "Cream skimming.", "Products matter.", "neutral", "neutral"),
                mnli("1", "You know.", "You lose.", "neutral", "entailment"),
                mnli("2", "One.", "Two.", "contradiction", "contradiction"),
            ),
            "MNLI/dev_matched.tsv": tsv(MNLI_DEV, mnli("0", "Hm.", "Oh.", *["entailment"] * 5, "contradiction")),
            "MNLI/dev_mismatched.tsv": tsv(MNLI_DEV, mnli("0", "Boats.", "Ships.", *["neutral"] * 5, "entailment")),
            "MNLI/test_matched.tsv": tsv(MNLI_HEADER, mnli("0", "Hotels.", "Inns.")),
            "MNLI/test_mismatched.tsv": tsv(MNLI_HEADER, mnli("0", "What?", "Nothing.")),
        },
        {
            "train": [("Cream skimming.", "Products matter.", 1), ("You know.", "You lose.", 0), ("One.", "Two.", 2)],
            "validation_matched": [("Hm.", "Oh.", 2)],
            "validation_mismatched": [("Boats.", "Ships.", 0)],
            "test_matched": [("Hotels.", "Inns.", -1)],
            "test_mismatched": [("What?", "Nothing.", -1)],
        },
    ),
    "qnli": (
        {
            "QNLI/train.tsv": tsv(
                ("index", "question", "sentence", "label"),
                ("0", "When did it end?", 'It "ended in 1899.', "entailment"),
                ("1", "Who?", "It rained.", "not_entailment"),
            ),
            "QNLI/dev.tsv": tsv(("index", "question", "sentence", "label"), ("0", "Where?", "Here.", "entailment")),
            "QNLI/test.tsv": tsv(("index", "question", "sentence"), ("0", "What?", "That.")),
        },
        {
            "train": [("When did it end?", 'It "ended in 1899.', 0), ("Who?", "It rained.", 1)],
            "validation": [("Where?", "Here.", 0)],
            "test": [("What?", "That.", -1)],
        },
    ),
    "rte": (
        {
            "RTE/train.tsv": tsv(
                (*PAIRS, "label"), ("0", "None found.", "Found.", "not_entailment"), ("1", "A.", "B.", "entailment")
            ),
            "RTE/dev.tsv": tsv((*PAIRS, "label"), ("0", "Reeve died.", "An accident.", "not_entailment")),
            "RTE/test.tsv": tsv(PAIRS, ("0", "Mangla was summoned.", "Shukla is related.")),
        },
        {
            "train": [("None found.", "Found.", 1), ("A.", "B.", 0)],
            "validation": [("Reeve died.", "An accident.", 1)],
            "test": [("Mangla was summoned.", "Shukla is related.", -1)],
        },
    ),
    "wnli": (
        {
            "WNLI/train.tsv": tsv(
                (*PAIRS, "label"), ("0", "I stuck a pin.", "It has a hole.", "1"), ("1", "A", "B", "0")
            ),
            "WNLI/dev.tsv": tsv((*PAIRS, "label"), ("0", "The drain is clogged.", "The hair is clean.", "0")),
            "WNLI/test.tsv": tsv(PAIRS, ("0", "Maude and Dora.", "The trains.")),
        },
        {
            "train": [("I stuck a pin.", "It has a hole.", 1), ("A", "B", 0)],
            "validation": [("The drain is clogged.", "The hair is clean.", 0)],
            "test": [("Maude and Dora.", "The trains.", -1)],
        },
    ),
    "ax": (
        {"AX/AX.tsv": tsv(PAIRS, ("0", "The cat sat.", "The cat did not sit."), ("1", 'A "b', "C"))},
        {"test": [("The cat sat.", "The cat did not sit.", -1), ('A "b', "C", -1)]},
    ),
}
LAYOUTS = [(task, name) for task, (files, _) in GLUE.items() for name in files]


@pytest.mark.parametrize("task", GLUE)
def test_glue_files_as_published(task, tmp_path):
    files, expected = GLUE[task]
    name, splits, reports = load(task, "--data_dir", write(tmp_path, files))
    assert name == data.TASKS[task]
    assert {split: rows(dataset) for split, dataset in splits.items()} == expected
    assert reports == []


@pytest.mark.parametrize("task", GLUE)
def test_crlf_and_no_test_set_change_nothing(task, tmp_path):
    files, expected = GLUE[task]
    files = {name: text.replace("\n", "\r\n") for name, text in files.items() if task == "ax" or "test" not in name}
    splits = load(task, "--data_dir", write(tmp_path, files))[1]
    kept = {split: expected[split] for split in expected if task == "ax" or not split.startswith("test")}
    assert {split: rows(dataset) for split, dataset in splits.items()} == kept


@pytest.mark.parametrize("name", data.AX_FILES)
def test_diagnostic_set_under_each_of_its_names(name, tmp_path):
    files, expected = GLUE["ax"]
    splits = load("ax", "--data_dir", write(tmp_path, {name: files["AX/AX.tsv"]}))[1]
    assert rows(splits["test"]) == expected["test"]


def test_limits_cut_training_and_dev_sets_but_never_a_test_set(tmp_path):
    files = GLUE["cola"][0] | {"CoLA/dev.tsv": GLUE["cola"][0]["CoLA/train.tsv"]}
    options = ("--data_dir", write(tmp_path, files), "--max_train_samples", 1, "--max_eval_samples", 1)
    assert {split: len(d) for split, d in load("cola", *options)[1].items()} == {"train": 1, "validation": 1, "test": 2}


@pytest.mark.parametrize("sizes", [(10, 7), (40, 40), (41, 0), (200, 1000)])
def test_of_a_sorted_file_a_part_has_all_classes_and_is_the_same_in_every_run(sizes, tmp_path):
    """The same whatever the seed and the method; in the order of the file; a larger part has the smaller one."""
    table = "text,label\n" + "".join(f"number {i:03},{'ab'[i >= 60]}\n" for i in range(120))
    for name, text in (("train", table), ("dev", table.replace("number", "dev"))):
        (tmp_path / f"{name}.csv").write_text(text)
    options = (
        "--train_file",
        tmp_path / "train.csv",
        "--validation_file",
        tmp_path / "dev.csv",
        "--test_file",
        tmp_path / "dev.csv",
        "--max_train_samples",
        sizes[0],
        "--max_eval_samples",
        sizes[1],
    )
    found = {}
    for more in ((), ("--seed", 5, "--teacher", "t"), ("--seed", 9, "--terms", "kd", "--overwrite")):
        _, splits, _ = load("custom", *options, *more)
        texts = {split: rows["text_a"][:] for split, rows in splits.items()}
        assert texts == found or not found
        found = texts
    for split, size in zip(("train", "validation"), sizes, strict=True):
        assert len(found[split]) == min(size or 120, 120) and found[split] == sorted(set(found[split]))
        assert abs(sum(splits[split]["label"]) / len(found[split]) - 0.5) < 0.3
        assert [int(text[-3:]) for text in found[split]] == splits[split]["idx"]
    assert len(found["test"]) == 120
    _, more, _ = load("custom", *options, "--max_train_samples", sizes[0] + 5)
    assert {*found["train"]} <= {*more["train"]["text_a"]}


@pytest.mark.parametrize(
    "way", ["path", "link", "copy", "line ends", "csv and Parquet", "shuffled", "train.tsv", "qa", "words", "summary"]
)
def test_a_dev_file_with_the_texts_of_the_training_file_is_named(way, world, tmp_path):
    lines = [f"text {i},{i % 2}" for i in range(9)]
    train, dev = tmp_path / "train.csv", tmp_path / "dev.csv"
    train.write_text("\n".join(["text,label", *lines]) + "\n")
    options = ("--train_file", train, "--validation_file", dev)
    if way == "path":
        options = ("--train_file", train, "--validation_file", tmp_path / ".." / tmp_path.name / "train.csv")
    elif way == "link":
        dev.symlink_to(train)
    elif way == "copy":
        shutil.copy(train, dev)
    elif way == "line ends":
        dev.write_bytes(b"\xef\xbb\xbf" + train.read_bytes().replace(b"\n", b"\r\n"))
    elif way == "csv and Parquet":
        options = (*options[:3], tmp_path / "dev.parquet")
        pd.read_csv(train).to_parquet(tmp_path / "dev.parquet")
    elif way == "shuffled":
        dev.write_text("\n".join(["text,label", *lines[::-1]]) + "\n")
    task, kind = "custom", ()
    if way == "train.tsv":
        files = GLUE["mnli"][0]
        write(tmp_path, files | {"MNLI/dev_mismatched.tsv": files["MNLI/train.tsv"]})
        task, options = "mnli", ("--data_dir", tmp_path)
    elif way == "qa":
        text = (world / "squad" / "train-v1.1.json").read_text()
        write(tmp_path, {"train-v1.1.json": text, "dev-v1.1.json": text})
        task, options = "squad", ("--data_dir", tmp_path, "--max_seq_length", "384")
    elif way == "words":
        write(tmp_path, {"train.conll": "a B-X\nb O\n\nc O\n", "dev.conll": "\n\na\tB-X\nb\tI-X\n\nc\tO\n"})
        options = ("--train_file", tmp_path / "train.conll", "--validation_file", tmp_path / "dev.conll")
        kind = ("--kind", "token")
    elif way == "summary":
        lines = [json.dumps({"sentences": [f"a {i}", "b"], "summary": "a"}) + "\n" for i in range(4)]
        write(tmp_path, {"train.jsonl": "".join(lines), "dev.jsonl": "".join(lines[::-1])})
        options = ("--train_file", tmp_path / "train.jsonl", "--validation_file", tmp_path / "dev.jsonl")
        kind = ("--kind", "summary")
    args = parse(task, *options, *kind)
    _, splits = kinds.chosen(args).read(args, readers.Skipped())
    dev = splits["validation_mismatched" if task == "mnli" else "validation"]
    assert overview.known(dev, splits["train"])[0].startswith(f"{len(dev)} (100.0 %) with the same texts as in")


ENTAIL = {"entailment": 0, "not_entailment": 1}
NLI = {"entailment": 0, "neutral": 1, "contradiction": 2}
ZERO_ONE = {"0": 0, "1": 1}


@pytest.mark.parametrize(
    ("task", "ids"),
    [
        *((task, ZERO_ONE) for task in ("cola", "sst2", "mrpc", "qqp", "wnli")),
        *((task, ENTAIL) for task in ("qnli", "rte")),
        *((task, NLI) for task in ("mnli", "ax")),
        ("stsb", {}),
    ],
)
def test_label_ids_are_the_hubs(task, ids):
    assert {word: i for i, word in enumerate(data.TASKS[task].labels)} == ids


@pytest.mark.parametrize("task", ["cola", "mnli"])
def test_hub_columns_get_the_common_names(task, monkeypatch):
    columns = {name: [f"{name} {i}" for i in range(2)] for name in data.TASKS[task].columns}
    table = Dataset.from_dict({"idx": [7, 9], "label": [1, 0], **columns})
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *hub: asked.append(hub) or DatasetDict(train=table, test=table))
    splits = load(task)[1]
    assert asked == [("nyu-mll/glue", task)]
    assert splits["test"]["idx"] == [7, 9]
    texts = [splits["train"][c] for c in ("text_a", "text_b")[: len(columns)]]
    assert texts == list(columns.values())
    texts = {"text_a", "text_b"} if len(columns) == 2 else {"text_a"}
    assert set(splits["train"].column_names) == texts | {"label", "idx"}


def test_unreachable_hub_says_what_to_pass(monkeypatch):
    def fail(*hub):
        raise ConnectionError("two\nlines")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(ValueError, match=r"nyu-mll/glue.*--data_dir") as error:
        load("cola")
    assert "\n" not in str(error.value)


# --- broken files ---------------------------------------------------------------------------------------------

COLA = GLUE["cola"][0]["CoLA/train.tsv"]


def cola(tmp_path, train, skip=False):
    return load("cola", "--data_dir", write(tmp_path, GLUE["cola"][0] | {"CoLA/train.tsv": train}), skip=skip)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (COLA + "gj04\t1\tno star\n", r"CoLA/train\.tsv, line 3: 3 columns where 4 are due \(source, label, star"),
        (COLA + "gj04\t1\t\ta\tb\n", r"train\.tsv, line 3: 5 columns"),
        (COLA + "\n" + COLA, r"train\.tsv, line 3: 1 columns"),
        (COLA + "gj04\t2\t\tYes.\n", r"train\.tsv, line 3: unknown label '2'.* 0, 1"),
        (COLA + "gj04\t\t\tYes.\n", r"train\.tsv, line 3: unknown label ''"),
        (COLA.encode() + b"gj04\t1\t\tcaf\xe9\n", r"train\.tsv, line 3: not UTF-8"),
        (COLA.encode("utf-16"), r"train\.tsv: is UTF-16, not UTF-8 text"),
        (COLA + "gj04\t1\t\ta\0b\n", r"train\.tsv, line 3: holds a NUL"),
        ("", r"train\.tsv: the file is empty"),
        ("\ufeff", r"train\.tsv, line 1: 1 columns"),
    ],
)
def test_first_broken_line_is_named(train, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        cola(tmp_path, train)


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("index\tsentence1\tsentence2\tgold", "0\ta\tb\tentailment", r"line 2: no column 'label'; there are: index"),
        ("index\tsentence1\tsentence1\tlabel", "0\ta\tb\tentailment", r"line 1: the header names a column twice"),
        ("index\tsentence1\tsentence2\tlabel", "", r"holds no examples"),
    ],
)
def test_wrong_header(header, line, message, tmp_path):
    files = GLUE["rte"][0] | {"RTE/train.tsv": header + ("\n" + line if line else "")}
    with pytest.raises(ValueError, match=r"RTE/train\.tsv.*" + message):
        load("rte", "--data_dir", write(tmp_path, files))


@pytest.mark.parametrize("missing", ["CoLA/train.tsv", "CoLA/dev.tsv"])
def test_missing_file(missing, tmp_path):
    write(tmp_path, {name: text for name, text in GLUE["cola"][0].items() if name != missing})
    with pytest.raises(ValueError, match=f"{missing}: no such file.*--data_dir"):
        load("cola", "--data_dir", tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match=r"--data_dir '.*/none' is not a folder"):
        load("cola", "--data_dir", tmp_path / "none")


@pytest.mark.parametrize("score", ["", "high", "nan", "inf"])
def test_score_that_is_no_number(score, tmp_path):
    train = tsv((*STSB_HEADER, "score"), stsb("0", "a", "b", score))
    with pytest.raises(ValueError, match=r"train\.tsv, line 2: the score '.*' is not a finite number"):
        load("stsb", "--data_dir", write(tmp_path, GLUE["stsb"][0] | {"STS-B/train.tsv": train}))


def test_skipping_counts_every_broken_line_and_keeps_the_rest(tmp_path):
    train = "short\n" + COLA + "gj04\t2\t\tYes.\n\n" + tsv(("gj04", "1", "", "Last."))
    _, splits, reports = cola(tmp_path, train, skip=True)
    assert [int(report.split("line ")[1].split(":")[0]) for report in reports] == [1, 4, 5]
    assert list(splits["train"]["text_a"]) == ['She said "no.', "They drank the pub.", "Last."]
    with pytest.raises(ValueError, match="holds no examples"):
        cola(tmp_path, "short\n", skip=True)


def test_a_skipped_line_of_a_test_set_does_not_shift_the_indices_of_a_submission(tmp_path):
    test = tsv(("index", "sentence"), ("0", "a"), ("1",), ("2", "c"))
    splits = load("cola", "--data_dir", write(tmp_path, GLUE["cola"][0] | {"CoLA/test.tsv": test}), skip=True)[1]
    assert list(zip(splits["test"]["idx"], splits["test"]["text_a"], strict=True)) == [(0, "a"), (2, "c")]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "a\rb"])
def test_only_newlines_end_a_line(sign, tmp_path):
    splits = cola(tmp_path, tsv(("gj04", "1", "", f"one{sign}two"), ("gj04", "0", "*", "three")))[1]
    assert rows(splits["train"]) == [(f"one{sign}two", 1), ("three", 0)]


# --- the user's own files -------------------------------------------------------------------------------------

TABLE = [
    {"text": "plain", "label": "pos"},
    {"text": 'a, "b"', "label": "neg"},
    {"text": "ü\u2028x", "label": "neutral"},
]


def render(ending, table=TABLE):
    """The table as the text of a file of that ending ("list" is a JSON list)."""
    if ending == "csv":
        return "text,label\r\n" + "".join('"{}",{}\r\n'.format(r["text"].replace('"', '""'), r["label"]) for r in table)
    if ending == "tsv":
        return tsv(("text", "label"), *(r.values() for r in table))
    if ending == "list":
        return json.dumps(table, indent=1)
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in table)


OTHER = '{"text": "b", "label": 1}\n'


def custom(folder, train, validation=None, ending="csv", options=(), skip=False):
    ending = ending.replace("list", "json")
    files = {f"train.{ending}": train, f"dev.{ending}": train if validation is None else validation}
    write(folder, files)
    paths = ("--train_file", folder / f"train.{ending}", "--validation_file", folder / f"dev.{ending}")
    return load("custom", *paths, *options, skip=skip)


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "list"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_custom_files(ending, bom, tmp_path):
    table = TABLE + ([{"text": "two\nlines", "label": "pos"}] if ending != "tsv" else [])
    task, splits, _ = custom(tmp_path, bom + render(ending, table), ending=ending)
    assert (task.labels, task.kind, task.columns) == (("neg", "neutral", "pos"), "classification", ("text",))
    expected = [(row["text"], task.labels.index(row["label"])) for row in table]
    assert rows(splits["train"]) == rows(splits["validation"]) == expected


def test_custom_pairs_numbers_as_labels_and_an_unlabelled_test_file(tmp_path):
    lines = '{"q": "a", "s": "b", "y": 1}\n\n{"q": "c", "s": "d", "y": 0}\n'
    write(tmp_path, {"test.csv": "s,q\nb,a\n"})
    options = ("--text_columns", "q", "s", "--label_column", "y", "--test_file", tmp_path / "test.csv")
    task, splits, _ = custom(tmp_path, lines, ending="json", options=options)
    assert task.labels == ("0", "1")
    assert rows(splits["train"]) == [("a", "b", 1), ("c", "d", 0)]
    assert rows(splits["test"]) == [("a", "b", -1)]


def test_custom_regression(tmp_path):
    task, splits, _ = custom(tmp_path, "text,label\na,1.5\nb,-2\n", options=("--regression",))
    assert (task.kind, task.metrics, task.labels) == ("regression", ("pearson", "spearman"), ())
    assert rows(splits["train"]) == [("a", 1.5), ("b", -2.0)]


@pytest.mark.parametrize(
    ("ending", "train", "message"),
    [
        ("doc", "text\tlabel\n", r"train\.doc: unknown ending '\.doc'; use \.csv"),
        ("txt", "a text\n", r"train\.txt, line 1: no column 'label'; there are: text"),
        ("csv", "text , label\na,0\n", r"train\.csv, line 2: no column 'label'; there are: 'text ', ' label'"),
        ("csv", "text,tag\na,b\n", r"train\.csv, line 2: no column 'label'; there are: text, tag"),
        ("csv", "text,label\na,b,c\n", r"train\.csv, line 2: 3 columns where 2 are due"),
        ("csv", 'text,label\n"a\nb",0\nc\n', r"train\.csv, line 4: 1 columns"),
        ("csv", 'text,label\na,0\n"open,1\n', r"train\.csv, line 3: not valid csv .the quote that opens here is never"),
        ("csv", 'text,label\na,0\n"two\nlines","open,1\nb,0\nc,1\n', r"train\.csv, line 4: .* here is never closed"),
        ("csv", 'text,label\na,0\n"open,1\nb,0\n"c",1\n', r"train\.csv, line 3: .* opens here closes in line 5 inside"),
        ("csv", 'text,label\n"a""b",0\n"a"b,0\n', r"train\.csv, line 3: .* opens here closes in line 3 inside"),
        ("csv", 'text,label\na,0\n"open,1\nb,0\n", c",1\n', r"train\.csv, line 3: 3 columns .a quote reaches .* 5"),
        ("csv", 'text,"label\na,0\n', r"train\.csv, line 1: not valid csv .* header"),
        ("csv", "text,label\na\rb,0\n", r"train\.csv, line 2: a carriage return outside quotes"),
        ("csv", 'text,label\na,0\nb,1\r"c",0\nd,1\n', r"train\.csv, line 3: a carriage return outside quotes"),
        ("csv", 'text,label\na,0\n"b"\rc,1\n', r"train\.csv, line 3: a carriage return outside quotes"),
        ("csv", "text,label\ra,0\nb,1\n", r"train\.csv, line 1: a carriage return outside quotes.*the header"),
        (
            "csv",
            "a title, label\na,0\n",
            r"train\.csv, line 2: no column 'label'; there are: 'a title', ' label'; mend it, name yours by --text",
        ),
        ("csv", '"a,b",text\na,0\n', r"train\.csv, line 2: no column 'label'; there are: 'a,b', text; mend"),
        ("tsv", "text \tlabel\na\t0\nb\t1\n", r"train\.tsv, line 2: no column 'text'; there are: 'text ', label; mend"),
        ("csv", "text,label\na,x\nb,\n", r"train\.csv, line 3: unknown label '': the cell is blank"),
        ("csv", "text,label\na,x\nb,\u00a0 \n", r"train\.csv, line 3: unknown label .*: the cell is blank"),
        ("csv", "text,label\na,1\nb,0\nc,1.0\n", r"train\.csv, line 4: the label '1.0' is written '1' in line 2"),
        ("csv", "text,label\na,x\nb,y\nc, x\n", r"train\.csv, line 4: the label ' x' is written 'x' in line 2"),
        ("tsv", "text\tlabel\na\té\nb\te\u0301\n", r"train\.tsv, line 3: the label .* in line 2"),
        ("json", '{"text": "b", "label": true}\n' + OTHER, r"json, line 2: the label '1' is written 'True' in line 1"),
        ("json", OTHER + '{"text": "b", "label": 1.0}\n', r"json, line 2: the label '1.0' is written '1' in line 1"),
        ("json", OTHER + '{"text": "b", "label": NaN}\n', r"train\.json, line 2: not valid JSON .NaN is no number"),
        ("csv", "text,text\na,0\n", r"train\.csv, line 1: the header names a column twice"),
        ("csv", "text,label\na,x\nb,x\n", r"train\.csv: column 'label' holds only the label \['x'\]"),
        ("csv", "text,label\n", r"train\.csv: holds no examples"),
        ("tsv", "text\tlabel\na\n", r"train\.tsv, line 2: 1 columns"),
        ("json", '{"text": "a", "label": 0}\n{"text": \n', r"train\.json, line 2: not valid JSON"),
        ("json", '[{"text": "a", "label": 0},\n{"text": ]', r"train\.json, line 2: not valid JSON"),
        ("json", '{"text": "a", "label": 0}\n3\n', r"train\.json, line 2: not a JSON object"),
        ("json", '[{"text": "a", "label": 0}, []]', r"train\.json, line item 2: not a JSON object"),
        ("json", OTHER + '{"text": null, "label": 0}\n', r"train\.json, line 2: column 'text' holds a null, not text"),
        ("json", OTHER + '{"text": ["a"], "label": 0}\n', r"train\.json, line 2: column 'text' holds a list, not text"),
        ("json", OTHER + '{"text": "\\ud800", "label": 0}\n', r"train\.json, line 2: column 'text' holds half a surr"),
        ("json", f'{{"text": "a", "label": {"1" * 5000}}}\n', r"train\.json, line 1: not valid JSON"),
        ("json", '{"a": ' * 50_000, r"train\.json, line 1: not valid JSON"),
        ("json", "[" * 50_000, r"train\.json, line 1: not valid JSON"),
        (
            "json",
            '{\n "text": ["a", "b"],\n "label": [0, 1]\n}\n',
            r"train\.json: one JSON object over several lines, with the keys text, label: write",
        ),
        ("json", '{\n "text": "a",\n "label": 0,\n}\n', r"train\.json, line 4: not valid JSON .*property name"),
        ("json", '{\n "text": "a"\n}\n{\n "text": "b"\n}\n', r"train\.json, line 4: not valid JSON .Extra data"),
        ("json", '{"data": [\n{"text": "a", "label": 0}, 3]}', r"train\.json: one JSON object .* the keys data: write"),
        ("json", '{"data": []}', r"train\.json: "),
        ("json", '{"text": {"0": "a"}, "label": {"0": 1}}', r"train\.json, line 1: column 'label' holds a dict"),
        ("json", "[]", r"train\.json"),
        ("json", "\n\n", r"train\.json"),
        ("json", "", r"train\.json: the file is empty"),
    ],
    ids=lambda value: repr(value)[1:40],
)
def test_broken_custom_files(ending, train, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        custom(tmp_path, train, ending=ending)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("ending", "train", "broken"),
    [
        ("csv", 'text,label\na,x\n"b" c,x\nd,y\n', ["line 3: not valid csv"]),
        ("csv", 'text,label\na,x\nd,y\n"open,1\n', ["line 4: not valid csv"]),
        ("csv", 'text,label\na,x\n"open,x\nd,y\n', ["line 3: not valid csv"]),
        ("csv", 'text,label\na,x\n"open,x\n"open, too,x\nd,y\n', ["line 3: not valid csv", "line 4: not valid csv"]),
        ("csv", "text,label\na,x\nb,\nd,y\n", ["line 3: unknown label ''"]),
        (
            "jsonl",
            '{"text": "a", "label": "x"}\n{"text": \nnull\n{"text": "d", "label": "y"}\n',
            ["line 2: not valid JSON", "line 3: not a JSON object"],
        ),
        (
            "json",
            '[{"text": "a", "label": "x"}, [], null, {"text": "d", "label": "y"}]',
            ["line item 2: not a JSON object", "line item 3: not a JSON object"],
        ),
        (
            "jsonl",
            '{"text": "a", "label": "x"}\n{"text": null, "label": "x"}\n{"text": "c"}\n{"text": "d", "label": "y"}\n',
            ["line 2: column 'text' holds a null", "line 3: no column 'label'"],
        ),
        (
            "jsonl",
            '{"text": "a", "label": "x"}\n{"text": "b", "label": {}}\n{"text": "d", "label": "y"}\n',
            ["line 2: column 'label' holds a dict"],
        ),
    ],
)
def test_every_broken_custom_row_is_skipped_on_request_and_counted_once(ending, train, broken, tmp_path):
    dev = render(ending, [{"text": "e", "label": "y"}])
    with pytest.raises(ValueError, match="|".join(map(re.escape, broken))):
        custom(tmp_path, train, dev, ending=ending)
    _, splits, reports = custom(tmp_path, train, dev, ending=ending, skip=True)
    assert list(zip(splits["train"]["text_a"], splits["train"]["label"], strict=True)) == [("a", 0), ("d", 1)]
    assert [report.split(", ", 1)[1][: len(said)] for report, said in zip(reports, broken, strict=True)] == broken


def test_an_open_quote_costs_one_line_and_not_the_thousands_behind_it(tmp_path):
    table = [{"text": f"number {i},\nsaid" if i % 7 == 0 else f"number {i}", "label": "xy"[i % 2]} for i in range(3000)]
    lines = render("csv", table).split("\r\n")
    whole = "\n".join(lines[:500] + ['"open,x'] + lines[500:])
    _, splits, reports = custom(tmp_path, whole, "text,label\na,x\n", skip=True)
    assert list(splits["train"]["text_a"]) == [row["text"] for row in table]
    number = whole[: whole.index('"open')].count("\n") + 1
    assert len(reports) == 1 and f"line {number}: not valid csv (the quote that opens here" in reports[0]


def test_a_field_may_be_longer_than_the_csv_module_likes(tmp_path):
    limit, text = csv.field_size_limit(), "long, " * 60_000
    _, splits, _ = custom(tmp_path, f'text,label\n"{text}",x\nb,y\n')
    assert splits["train"]["text_a"] == [text, "b"]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("last", ["", "\r", "\n", "\r\n"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "list"])
def test_lines_may_end_as_old_programs_of_the_mac_end_them(ending, last, tmp_path):
    content = "\ufeff" + render(ending).replace("\r\n", "\n").removesuffix("\n").replace("\n", "\r")
    task, splits, _ = custom(tmp_path, content + last, ending=ending)
    assert rows(splits["train"]) == [(row["text"], task.labels.index(row["label"])) for row in TABLE]
    with pytest.raises(ValueError, match=r"dev\.\w+, line (item )?\d: unknown label 'odd'"):
        custom(tmp_path, content, content.replace("neutral", "odd") + last, ending=ending)


def test_a_carriage_return_in_quotes_is_text(tmp_path):
    _, splits, _ = custom(tmp_path, 'text,label\n"a\rb",x\n"c\r\nd",y\n')
    assert splits["train"]["text_a"] == ["a\rb", "c\nd"]


@pytest.mark.parametrize("blank", ["", " ", "\t ", "\r"])
def test_a_blank_line_of_a_csv_is_no_example(blank, tmp_path):
    """An empty text in quotes is one, and so is a space that is none of a keyboard."""
    test = ["", "text", "", "a", "", '""', "\u00a0", '"b', "", 'c"', "", ""]
    write(tmp_path, {"test.csv": "\n".join(line or blank for line in test) + "\n"})
    train = f"{blank}\ntext,label\na,x\n{blank}\n\nb,y\n{blank}\n"
    for skip in (False, True):
        _, splits, reports = custom(tmp_path, train, options=("--test_file", tmp_path / "test.csv"), skip=skip)
        assert rows(splits["train"]) == [("a", 0), ("b", 1)] and reports == []
        assert rows(splits["test"]) == [("a", -1), ("", -1), ("\u00a0", -1), (f"b\n{blank.strip(chr(13))}\nc", -1)]
    with pytest.raises(ValueError, match=r"train\.csv, line 6: 1 columns where 2 are due"):
        custom(tmp_path, train.replace("b,y", "b"))


WRAPPED = [
    {"data": TABLE},
    {"version": "1.0", "data": TABLE, "author": None},
    {"rows": TABLE},
    {"schema": {"fields": [{"name": "text"}], "pandas_version": "1.4.0"}, "data": TABLE},  # orient="table"
]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("content", WRAPPED)
def test_a_list_may_stand_in_an_object(content, indent, tmp_path):
    task, splits, _ = custom(tmp_path, json.dumps(content, indent=indent), render("jsonl"), ending="json")
    expected = [(row["text"], task.labels.index(row["label"])) for row in TABLE]
    assert rows(splits["train"]) == rows(splits["validation"]) == expected


def test_a_single_json_line_is_a_row_whatever_else_it_holds(tmp_path):
    one = json.dumps({"text": "a", "label": "pos", "words": [{"text": "b", "label": "neg"}]}) + "\n"
    _, splits, _ = custom(tmp_path, render("jsonl"), one, ending="jsonl")
    assert splits["validation"]["text_a"] == ["a"]


@pytest.mark.parametrize(
    "cell",
    ["1_5", "\uff11\uff15", "\u0663", "infinity", "-Infinity", "nan", "1e400", "1,5", "0x1f", "1e", "--1", ".", "True"],
)
def test_a_cell_that_only_python_takes_for_a_number_is_none(cell, tmp_path):
    train = "text\tlabel\na\t1.5\nb\t" + cell + "\n"
    with pytest.raises(ValueError, match=rf"train\.tsv, line 3: the score {re.escape(repr(cell))} is not a finite"):
        custom(tmp_path, train, ending="tsv", options=("--regression",))


def test_numbers_as_people_write_them(tmp_path):
    cells = {"3": 3, "-2": -2, "+1.50": 1.5, " 4.0 ": 4, ".5": 0.5, "5.": 5, "1e-3": 0.001, "2E+2": 200, "007": 7}
    train = tsv(("text", "label"), *(("a", cell) for cell in cells))
    _, splits, _ = custom(tmp_path, train, ending="tsv", options=("--regression",))
    assert splits["train"]["label"] == list(cells.values())


def test_regression_cells_that_are_blank(tmp_path):
    files = ("\ufefftext,label\na,1.5\nb,\nc,-2\n", "text,label\na,1\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 3: the score '' is not a finite number"):
        custom(tmp_path, *files, options=("--regression",))
    _, splits, reports = custom(tmp_path, *files, options=("--regression",), skip=True)
    assert (splits["train"]["label"], len(reports)) == ([1.5, -2.0], 1)


def test_a_file_of_broken_rows_only_says_what_is_wrong_with_them(tmp_path):
    with pytest.raises(ValueError, match=r"dev\.csv: holds no examples that are whole; .* no column 'label'"):
        custom(tmp_path, "text,label\na,x\nb,y\n", "text,tag\na,x\n", skip=True)


def test_message_stays_one_short_line_whatever_the_column_names_hold(tmp_path):
    with pytest.raises(ValueError, match="line 3: no column 'label'") as error:
        custom(tmp_path, '"te\nxt",' + ",".join(f"c{i}" for i in range(2000)) + "\n" + "," * 2000 + "\n")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_label_that_training_does_not_know(tmp_path):
    message = r"dev\.csv, line 3: unknown label 'c'; the labels of this task are a, b"
    files = ("text,label\nx,a\ny,b\n", 'text,label\nx,a\n"two\nlines",c\n')
    with pytest.raises(ValueError, match=message):
        custom(tmp_path, *files)
    _, splits, reports = custom(tmp_path, *files, skip=True)
    assert (len(splits["validation"]), len(reports)) == (1, 1)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("custom", (), "needs --train_file"),
        ("custom", ("--train_file", "a.csv"), "needs --validation_file"),
        ("custom", ("--train_file", "a", "--validation_file", "b", "--text_columns", *"abc"), "one or two columns"),
        ("cola", ("--train_file", "a.csv"), "--train_file is for --task custom, not cola"),
        ("stsb", ("--regression",), "--regression is for --task custom, not stsb"),
        ("custom", ("--train_file", "a", "--validation_file", "b", "--text_columns", "label"), "would be the input"),
        ("cola", ("--data_dir", ""), "--data_dir is empty"),
    ],
)
def test_options_that_cannot_be(task, options, message):
    with pytest.raises(ValueError, match=message):
        parse(task, *options)


# --- any bytes at all -----------------------------------------------------------------------------------------

BITS = st.one_of(
    st.sampled_from(
        [
            b"\t",
            b"\n",
            b"\r\n",
            b"\r",
            b'"',
            b",",
            b"\0",
            b"\xff",
            b"\xef\xbb\xbf",
            b"\xe2\x80\xa8",
            b"\x85",
            b"[",
            b"]",
            b"{",
            b"}",
            b":",
            b"1",
            b"0",
            b"-1",
            b"1e999",
            b"NaN",
            b"\\ud800",
            b"\n\n",
            b"\t\n",
        ]
    ),
    st.binary(max_size=4),
    st.text("ab \t\n\u2028é", max_size=6).map(str.encode),
)
EDITS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 5), BITS), min_size=1, max_size=3)
DAMAGE = st.one_of(EDITS, EDITS, st.binary(max_size=60))


def damaged(content, damage):
    """The damage itself where it is bytes, else content with some places cut out and overwritten."""
    if isinstance(damage, bytes):
        return damage
    for place, cut, bits in damage:
        at = place % (len(content) + 1)
        content = content[:at] + bits + content[at + cut :]
    return content


def lines_of(content, header):
    lines = content.split(b"\n")
    return lines[header : -1 if lines[-1] == b"" else None]


def attempt(folder, loader):
    """What the loader returns, or None where it raised one line of ValueError that names a file in the folder."""
    try:
        return loader()
    except ValueError as error:
        assert str(folder) in str(error)
        assert len(str(error).splitlines()) == 1


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return tmp_path_factory.mktemp("glue")


@pytest.mark.parametrize(("task", "name"), LAYOUTS)
@FUZZ
@given(damage=DAMAGE, skip=st.booleans())
def test_damaged_glue_file_is_refused_or_read_line_by_line(glue, task, name, damage, skip):
    whole = GLUE[task][0][name].removesuffix("\n").split("\n")
    content = damaged("\n".join(whole + whole[-1:] * 3).encode(), damage)
    write(glue, GLUE[task][0] | {name: content})
    found = attempt(glue, lambda: load(task, "--data_dir", glue, skip=skip))
    if found is None:
        return
    _, splits, reports = found
    split = "test" if task == "ax" else Path(name).stem.replace("dev", "validation")
    lines = lines_of(content, header=not (data.TASKS[task].header and "test" not in name))
    assert len(splits[split]) + len(reports) == len(lines)
    assert skip or not reports
    for text, idx in zip(splits[split]["text_a"], splits[split]["idx"], strict=True):
        assert text.encode() in lines[idx]


def csv_records(text):
    """Number of records of a csv file below its header; a broken one is one line long, wherever its quote closes."""
    lines = [line + "\n" for line in text.removesuffix("\n").split("\n")]
    while lines and not lines[0].strip(" \t\r\n"):
        lines.pop(0)
    reader = csv.reader(lines, strict=True)
    columns, at, count = len(next(reader)), reader.line_num, 0
    while at < len(lines):
        if not lines[at].strip(" \t\r\n"):
            at += 1
            continue
        reader, count = csv.reader(lines[at:], strict=True), count + 1
        with contextlib.suppress(csv.Error):
            if len(next(reader)) == columns:
                at += reader.line_num
                continue
        at += 1
    return count


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "list"])
@settings(FUZZ, max_examples=60)
@given(damage=DAMAGE, skip=st.booleans())
def test_damaged_custom_file_is_refused_or_read_whole(tmp_path_factory, ending, damage, skip):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    good = render(ending)
    content = damaged(good.encode(), damage)
    for files in ((good, content), (content, good)):
        found = attempt(folder, lambda files=files: custom(folder, *files, ending=ending, skip=skip))
        if found is None:
            continue
        _, splits, reports = found
        text = content.decode("utf-8-sig")
        if ending == "tsv":
            due = len(lines_of(content, header=True))
        elif ending == "csv":
            due = csv_records(text)
        elif text.lstrip().startswith("["):
            due = len(json.loads(text))
        else:
            due = sum(1 for line in text.split("\n") if line.strip(" \t\r"))
        assert sum(map(len, splits.values())) + len(reports) == due + len(TABLE)
        assert skip or not reports


# --- tokens and batches ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return BertTokenizerFast(str(path))


def test_tokenize_single_sentences(tokenizer):
    examples = Dataset.from_dict({"text_a": ["a b", "c d e f g h a b c"], "label": [1, 0], "idx": [0, 1]})
    tokens = data.tokenize(examples, tokenizer, 8)
    assert list(tokens["input_ids"]) == [[2, 5, 6, 3], [2, 7, 8, 9, 10, 11, 12, 3]]
    assert list(tokens["labels"]) == [1, 0]
    assert set(tokens.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels", "idx"}


def test_tokenize_pairs_with_token_types_cutting_the_longer_text(tokenizer):
    table = {"text_a": ["a b c d e f g h", "a"], "text_b": ["g h", ""], "label": [0.5, 1.5], "idx": [0, 1]}
    tokens = data.tokenize(Dataset.from_dict(table), tokenizer, 8)
    assert tokens[0] == {
        "input_ids": [2, 5, 6, 7, 3, 11, 12, 3],
        "token_type_ids": [0, 0, 0, 0, 0, 1, 1, 1],
        "attention_mask": [1] * 8,
        "labels": 0.5,
        "idx": 0,
    }
    assert tokens[1]["token_type_ids"] == [0, 0, 0, 1]


def collate(examples, pad_id):
    """Row by row, the slow reference: list of examples -> dict of tensors [B, T], padded to the longest of them.

    attention_mask: 1 = real token. Everything else that is a number is stacked to [B].
    """
    batch = {}
    for key in examples[0]:
        values = [e[key] for e in examples]
        if isinstance(values[0], list):
            fill = pad_id if key == "input_ids" else 0
            rows = [torch.tensor(v) for v in values]
            batch[key] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
        else:
            batch[key] = torch.tensor(values)
    return batch


@pytest.mark.parametrize("size", [1, 7])
def test_a_batch_cut_from_flat_arrays_equals_collated_rows(size):
    generator = random.Random(size)
    rows = {"input_ids": [], "token_type_ids": [], "odd": [], "labels": [], "score": [], "text": []}
    for i in range(40):
        length = generator.choice([1, 2, 9])
        rows["input_ids"].append([generator.randrange(1, 99) for _ in range(length)])
        rows["token_type_ids"].append([generator.randrange(2) for _ in range(length)])
        rows["odd"].append([generator.randrange(1, 5) for _ in range(generator.randrange(1, 4))])
        rows["labels"].append(i - 1)
        rows["score"].append(i / 7)
        rows["text"].append(str(i))
    whole = Dataset.from_dict(rows)
    shuffled = concatenate_datasets([whole.select(range(5, 40)), whole.select([3, 1])]).shuffle(seed=1)
    wanted = ("input_ids", "token_type_ids", "odd", "labels", "score", "attention_mask")
    for dataset in (whole, whole.select(range(7, 40)), shuffled):
        arrays = batching.Arrays(dataset, wanted)
        assert arrays.lengths() == [len(ids) for ids in dataset["input_ids"]]
        for _ in range(5):
            indices = [generator.randrange(len(dataset)) for _ in range(size)]
            expected = collate([dataset.select_columns(wanted[:5])[i] for i in indices], 77)
            batch = arrays.batch(indices, 77)
            assert set(batch) == set(expected)
            for name, value in expected.items():
                assert batch[name].dtype == value.dtype and torch.equal(batch[name], value), name


LENGTHS = st.lists(st.integers(1, 50), max_size=300)


@FUZZ
@given(LENGTHS, st.integers(1, 7), st.integers(0, 2**31), st.integers(0, 99))
def test_grouped_batches_hold_each_example_once(lengths, size, seed, epoch):
    batches = batching.grouped_batches(lengths, size, seed, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches)
    assert batches == batching.grouped_batches(lengths, size, seed, epoch)


@FUZZ
@given(LENGTHS, st.integers(1, 7))
def test_sorted_batches_hold_each_example_once_longest_first(lengths, size):
    batches = batching.sorted_batches(lengths, size)
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    assert [len(batch) for batch in batches] == [min(size, len(lengths) - i) for i in range(0, len(lengths), size)]


def cola_like_lengths(count=8551):
    """Token counts with CoLA's shape under a word-piece vocabulary: median 10, a long tail, from 4 to 48."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(count, generator=generator) * 0.42 + 2.3).exp().clamp(4, 48).round().int().tolist()


def padding(lengths, batches):
    fed = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths) / fed


def test_grouped_batches_are_random_yet_hold_little_padding():
    lengths = cola_like_lengths()
    epochs = [batching.grouped_batches(lengths, 32, 1, epoch) for epoch in range(3)]
    assert max(padding(lengths, batches) for batches in epochs) < 0.15
    shuffled = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(1)).tolist()
    assert padding(lengths, [shuffled[i : i + 32] for i in range(0, len(lengths), 32)]) > 0.3  # what grouping saves
    others = [*epochs[1:], batching.grouped_batches(lengths, 32, 2, 0)]
    assert all({frozenset(b) for b in epochs[0]}.isdisjoint({frozenset(b) for b in other}) for other in others)
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in epochs[0][:-1]]
    rises = sum(a < b for a, b in itertools.pairwise(means)) / len(means)
    assert 0.4 < rises < 0.6  # short and long batches in a random order


# --- predictions of test sets ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nli_models(world, tmp_path_factory):
    """Folders of two small models with mnli's labels; the outputs of the second overflow."""
    folders = [tmp_path_factory.mktemp("nli") / name for name in ("first", "broken")]
    labels = dict(enumerate(data.TASKS["mnli"].labels))
    options = {"id2label": labels, "label2id": {word: i for i, word in labels.items()}, "num_labels": 3}
    model = AutoModelForSequenceClassification.from_pretrained(world / "bert", **options)
    for folder in folders:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(world / "bert").save_pretrained(folder)
        torch.nn.init.constant_(model.classifier.weight, 3e38)
    return folders


def test_the_diagnostic_set_is_predicted_as_often_as_one_likes_in_a_folder_a_student(
    finetune, nli_models, tmp_path, monkeypatch
):
    monkeypatch.chdir(write(tmp_path, GLUE["ax"][0]))
    options = ("--task", "ax", "--data_dir", ".", "--do_predict")
    finetune(*options, "--student", nli_models[0])
    (folder,) = (tmp_path / "runs" / "ax").iterdir()
    (found,) = folder.rglob("AX.tsv")
    lines = found.read_text().splitlines()
    assert lines[0] == "index\tprediction" and [line.split("\t")[0] for line in lines[1:]] == ["0", "1"]
    assert {line.split("\t")[1] for line in lines[1:]} <= set(data.TASKS["ax"].labels)
    found.write_text("old")
    finetune(*options, "--student", nli_models[0])
    assert found.read_text().splitlines() == lines
    shutil.copytree(nli_models[0], tmp_path / "other")
    finetune(*options, "--student", "./other")
    assert len(list((tmp_path / "runs" / "ax").iterdir())) == 2
    assert (tmp_path / "runs/ax/other/seed1/AX.tsv").read_text().splitlines() == lines
    # Somebody else's model, with the labels in another order and spelling.
    model = AutoModelForSequenceClassification.from_pretrained(nli_models[0])
    for parameter in model.classifier.parameters():
        parameter.data = parameter.data[[2, 0, 1]]
    model.config.id2label = dict(enumerate(("CONTRADICTS", "Entailment", "neutral")))
    model.save_pretrained(tmp_path / "other")
    finetune(*options, "--student", "./other", "--output_dir", "theirs")
    assert (tmp_path / "theirs/AX.tsv").read_text().splitlines() == lines
    found.unlink()
    found.mkdir()
    with pytest.raises(run_folder.TrainingError, match=r"AX\.tsv cannot be written \(Is a directory\)"):
        finetune(*options, "--student", nli_models[0])
    assert [path.name for path in found.parent.iterdir()] == ["AX.tsv"]


@pytest.mark.parametrize("there", [("matched",), ("mismatched",), ("mismatched", "matched")])
def test_of_mnli_each_test_set_that_is_there_is_predicted(finetune, nli_models, tmp_path, capsys, there):
    files = {name: text for name, text in GLUE["mnli"][0].items() if "test" not in name}
    sizes = {"matched": 2, "mismatched": 3}
    for name in there:
        rows = [mnli(str(i), "Hotels.", "Inns.") for i in range(sizes[name])]
        files[f"MNLI/test_{name}.tsv"] = tsv(MNLI_HEADER, *rows)
    finetune(
        "--task",
        "mnli",
        "--data_dir",
        write(tmp_path, files),
        "--student",
        nli_models[0],
        "--max_steps",
        "1",
        "--do_predict",
        "--output_dir",
        tmp_path / "run",
    )
    said = capsys.readouterr().out
    for name, file in (("matched", "MNLI-m.tsv"), ("mismatched", "MNLI-mm.tsv")):
        path = tmp_path / "run" / file
        assert path.exists() == (f"{file}: {sizes[name]} predictions" in said) == (name in there)
        assert name not in there or len(path.read_text().splitlines()) == 1 + sizes[name]


def test_a_model_that_says_nan_predicts_nothing(finetune, nli_models, tmp_path):
    with pytest.raises(run_folder.TrainingError, match=r"outputs are not finite \(example 0 of 2"):
        finetune(
            "--task",
            "ax",
            "--data_dir",
            write(tmp_path, GLUE["ax"][0]),
            "--do_predict",
            "--student",
            nli_models[1],
            "--output_dir",
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_predictions_without_a_test_set_are_refused_before_anything_is_trained(finetune, world, tmp_path):
    files = {name: text for name, text in GLUE["cola"][0].items() if "test" not in name}
    options = ("--student", world / "bert", "--do_predict", "--output_dir", tmp_path / "run")
    with pytest.raises(ValueError, match=r"--do_predict: .* has no test set of cola"):
        finetune("--data_dir", write(tmp_path, files), *options)
    with pytest.raises(ValueError, match="--do_predict needs --test_file"):
        finetune("--task", "custom", "--train_file", "a.csv", "--validation_file", "b.csv", *options)
    assert not (tmp_path / "run").exists()


ODD_LABELS = ("tab\tand\nnewline\r", "back\\slash \\t", "line\u2028\x85 é")


def test_a_label_cannot_break_the_file_of_predictions(finetune, world, tmp_path):
    train = "".join(json.dumps({"text": "the dog runs", "label": label}) + "\n" for label in ODD_LABELS)
    files = {"train.jsonl": train, "test.jsonl": '{"text": "a"}\n{"no": "text"}\n{"text": "c"}\n'}
    write(tmp_path, files)
    finetune(
        *(
            f"--task custom --student {world}/bert --do_predict --max_steps 1 "
            f"--train_file {tmp_path}/train.jsonl --validation_file {tmp_path}/train.jsonl "
            f"--test_file {tmp_path}/test.jsonl --skip_bad_examples --output_dir {tmp_path}/run"
        ).split()
    )
    header, *lines, end = (tmp_path / "run" / "predictions.tsv").read_bytes().decode().split("\n")
    assert header == "index\tprediction" and end == ""
    assert [line.split("\t")[0] for line in lines] == ["0", "2"] and all(line.count("\t") == 1 for line in lines)


def test_an_escaped_label_is_one_cell_and_can_be_read_back():
    escaped = [kinds.escaped(label) for label in ODD_LABELS]
    assert all(len(cell.splitlines()) == 1 and "\t" not in cell for cell in escaped)
    assert [cell.encode("latin-1").decode("unicode_escape") for cell in escaped] == list(ODD_LABELS)
    assert kinds.escaped("not_entailment 日本 é") == "not_entailment 日本 é"
