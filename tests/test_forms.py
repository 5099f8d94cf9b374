"""Files as people have them: separators, quoting, folders, one-hot columns, annotation tools, SQuAD's format."""

import json

import datasets
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

import distill_finetune
import evaluate
from tasks import kinds, readers

TEXTS = ['He said "no"', "a;b|c,d", "two\nlines", "tab\there", '"whole"', " x "]


def arguments(path, *options, task="custom"):
    files = ("--train_file", path, "--validation_file", path) if path else ()
    args = distill_finetune.build_parser().parse_args(
        list(map(str, ["--task", task, "--student", "x", *files, *options]))
    )
    distill_finetune.check_args(args)
    return args


def load(path, *options, task="custom", skip=False):
    """(the task, its training examples) of a file that is the dev set too."""
    args = arguments(path, *options, task=task)
    task, splits = kinds.chosen(args).read(args, readers.Skipped(skip))
    return task, splits["train"]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("sign", [",", ";", "|", "\t"])
@pytest.mark.parametrize("quoting", [0, 1, 2])  # where it is needed, everywhere, all but numbers
def test_a_table_of_any_separator_is_read_as_pandas_wrote_it(tmp_path, ending, sign, quoting):
    table = pd.DataFrame({"n": range(6), "text": TEXTS, "label": list("xyxyxy")})
    table.to_csv(tmp_path / f"a.{ending}", sep=sign, index=False, quoting=quoting)
    task, rows = load(tmp_path / f"a.{ending}")
    assert rows["text_a"][:] == TEXTS and task.labels == ("x", "y")


@pytest.mark.parametrize(
    "texts",
    [['"I went home.', 'Then I slept."'], ['" i know', 'Then "I slept"'], ['"a" b', '"c"'], ['5" long', 'so "big"']],
)
def test_quotes_that_are_text_stay_in_a_table_of_tabs(tmp_path, texts):
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{text}\t{i}\n" for i, text in enumerate(texts)))
    assert load(path)[1]["text_a"][:] == texts


def test_a_broken_line_of_another_separator_is_named_and_skipped(tmp_path):
    path = write(tmp_path / "a.csv", 'text;label\na;x\nb;y;z\n"c;y\n"d;";y\n')
    with pytest.raises(ValueError, match=r"line 3: 3 columns where 2 are due \(text, label\)"):
        load(path)
    assert load(path, skip=True)[1]["text_a"][:] == ["a", "d;"]
    path.write_text('text;label\na;x\n"c" d;y\n')
    with pytest.raises(ValueError, match=r"line 3: not valid csv .the quote that opens here closes in line 3"):
        load(path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", '{"text": "a", "label": "x"}\n', "is JSON, but its name ends in .csv: rename"),
        ("a.tsv", '[\n{"text": "a"}]\n', "is JSON, but its name ends in .tsv"),
        ("a.csv", "<!DOCTYPE html>\n", "is XML or HTML, but"),
        ("a.json", "text,label\na,x\n", "is not JSON, which begins with"),
        ("a.xlsx", "PK\x03\x04 ", "is a zip archive or a document of an office program"),
        ("a.pkl", "abc", "unknown ending '.pkl'; use .csv"),
        ("a/b.pkl", "abc", "neither saved by datasets nor a folder of .txt files"),
    ],
)
def test_what_is_not_read_is_named_by_its_form(tmp_path, name, text, said):
    write(tmp_path / name, text)
    with pytest.raises(ValueError, match=said):
        load(tmp_path / name.split("/")[0])


def test_a_folder_of_a_folder_for_each_class(tmp_path):
    for name, text in (("pos/2", "good"), ("pos/10", "very\n\ngood\n"), ("neg/1", "bad"), ("neg/3", "")):
        write(tmp_path / "set" / f"{name}.txt", text)
    write(tmp_path / "set/.hidden/1.txt", "no")
    write(tmp_path / "set/urls.txt", "no")
    task, rows = load(tmp_path / "set")
    assert task.labels == ("neg", "pos")
    assert list(zip(rows["text_a"], rows["label"], strict=True)) == [
        ("bad", 0),
        ("", 0),
        ("very\n\ngood", 1),
        ("good", 1),
    ]


def test_folders_that_datasets_has_saved(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["z", "a"])})
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    DatasetDict({"train": rows, "dev": rows}).save_to_disk(tmp_path / "my data")
    task, found = load(tmp_path / "my data/train")
    assert task.labels == ("z", "a") and found["label"][:] == [1, 0]
    with pytest.raises(ValueError, match=r"holds the splits dev, train: name the folder of one, as .*my data/dev"):
        load(tmp_path / "my data")
    args = arguments(None, "--hub_dataset", f"{tmp_path}/my data/", "--validation_split", "dev")
    task, splits = kinds.chosen(args).read(args, readers.Skipped())
    assert task.labels == ("z", "a") and splits["validation"]["text_a"][:] == ["a", "b"] and task.hub == (None, None)
    assert args.output_dir == "runs/my-data/finetune/seed1"
    with pytest.raises(
        ValueError, match=r"must be owner/name or .* a folder of several splits that `datasets` has saved"
    ):
        arguments(None, "--hub_dataset", tmp_path / "my data/train")


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", ["1", "1.0", "True"])
def test_columns_of_0_and_1_are_labels(tmp_path, one):
    zero = {"1": "0", "1.0": "0.0", "True": "False"}[one]
    cells = [(1, 0, 0), (0, 0, 1), (1, 0, 1), (0, 0, 0)]

    def table(rows):
        text = "".join(f"t,{','.join(one if on else zero for on in row)}\n" for row in rows)
        return write(tmp_path / "a.csv", "text,b,a,c d\n" + text)

    columns = ("--label_column", "b", "a", "c d")
    task, rows = load(table(cells), *columns, "--kind", "multilabel")
    assert task.labels == ("b", "a", "c d") and list(map(tuple, rows["label"])) == cells
    task, rows = load(table(cells[:2]), *columns)
    assert task.labels == ("b", "a", "c d") and rows["label"][:] == [0, 2]
    args = arguments(tmp_path / "a.csv", *columns)
    assert evaluate.read(args, tmp_path / "a.csv", ["b", "a", "c d"], readers.Skipped())[1]["validation"]["label"][
        :
    ] == [0, 2]
    for row, count in ((cells[2], 2), (cells[3], 0)):
        with pytest.raises(ValueError, match=f"line 2: {count} of the columns b, a, 'c d' hold 1, not one; try"):
            load(table([row]), *columns)
    with pytest.raises(ValueError, match="line 2: column 'a' holds '2' instead of 0 or 1"):
        load(write(tmp_path / "a.csv", "text,b,a,c d\nt,0,2,1\n"), *columns)
    with pytest.raises(ValueError, match="column 'e' holds None instead of 0 or 1"):
        load(table(cells), "--label_column", "b", "e")
    with pytest.raises(ValueError, match="--label_column b b: several columns need"):
        arguments(tmp_path / "a.csv", "--label_column", "b", "b")


@pytest.mark.parametrize(
    ("lists", "hot"),
    [([[1, 0, 0], [0, 1, 1], [0, 0, 0]], True), ([[1, 0], [0, 1]], True), ([[0, 1], [2]], False), ([[1], [0]], False)],
)
def test_lists_of_0_and_1_are_several_labels(tmp_path, lists, hot):
    path = write(tmp_path / "a.jsonl", lines(*({"text": "t", "label": row} for row in lists)))
    task, rows = load(path, "--kind", "multilabel")
    expected = [{i for i, on in enumerate(row) if on} if hot else {*row} for row in lists]
    assert [{int(task.labels[i]) for i, on in enumerate(row) if on} for row in rows["label"]] == expected


# --- words ----------------------------------------------------------------------------------------------------------


def tagged(path, *options, skip=False):
    """[[word/tag, ...], ...] of a file of words."""
    task, rows = load(path, "--kind", "token", *options, skip=skip)
    return [
        [f"{word}/{task.labels[tag]}" for word, tag in zip(*row, strict=True)]
        for row in zip(rows["words"], rows["tags"], strict=True)
    ]


ANN = ["Ann/B-PER", "Lee/I-PER", "runs/O", ",/O", "New/B-LOC", "-/I-LOC", "York/I-LOC", "!/O"]
TEXT, PER, LOC = "Ann Lee runs, New-York!", (0, 7, "PER"), (14, 22, "LOC")
DICTS = [dict(zip(("start", "end", "label"), span, strict=True)) for span in (PER, LOC)]
MIN = [{"start": s, "end": e, "text": TEXT[s:e], "labels": [label]} for s, e, label in (PER, LOC)]
STUDIO = [{"id": 1, "type": "labels", "from_name": "label", "value": value} for value in MIN]
SPANS = {
    "doccano": {"id": 1, "text": TEXT, "label": [LOC, PER]},
    "doccano with relations": {
        "text": TEXT,
        "entities": [{"id": 1, "label": d["label"], "start_offset": d["start"], "end_offset": d["end"]} for d in DICTS],
        "relations": [],
    },
    "Label Studio": {
        "id": 1,
        "data": {"text": TEXT},
        "annotations": [{"result": [*STUDIO, {"type": "choices", "value": {}}]}],
    },
    "Label Studio, JSON-MIN": {"id": 1, "text": TEXT, "label": MIN},
    "Prodigy": {
        "text": TEXT,
        "tokens": [{"text": "Ann", "start": 0, "end": 3, "id": 0}],
        "spans": DICTS,
        "answer": "accept",
    },
    "lists": {"text": TEXT, "tokens": [w.split("/")[0] for w in ANN], "ner_tags": [w.split("/")[1] for w in ANN]},
}


@pytest.mark.parametrize("name", SPANS)
def test_spans_of_annotation_tools_and_lists_are_words_with_tags(tmp_path, name):
    path = write(tmp_path / "a.jsonl", lines(SPANS[name]))
    assert tagged(path) == [ANN]
    write(tmp_path / "a.json", json.dumps([SPANS[name]]))
    assert tagged(tmp_path / "a.json") == [ANN]
    args = arguments(path, "--kind", "token", "--test_file", path)
    test = kinds.chosen(args).read(args, readers.Skipped())[1]["test"]
    assert test["tags"][:] == [[]] and test["lines"][0][0] == ("Ann\tB-PER" if name == "lists" else "Ann")


def test_a_span_within_a_word_cuts_it_and_marks_stay_with_their_letters(tmp_path):
    spans = [[4, 7, "P"], [7, 9, "P"], [10, 18, "Q"]]
    assert tagged(write(tmp_path / "a.jsonl", lines({"text": "der Hausbau हिन्दी", "label": spans[:2]}))) == [
        ["der/O", "Hau/B-P", "sb/B-P", "au/O", "हिन्दी/O"]
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"text": "a b", "label": [[0, 2, "P"], [1, 3, "P"]]},
            "the span 1 to 3 is empty, outside the text, or overlaps",
        ),
        ({"text": "a b", "label": [[0, 4, "P"]]}, "the span 0 to 4 is empty, outside"),
        ({"text": "a b", "label": [[1, 2, "P"]]}, "the span 1 to 2 is empty"),
        ({"text": "a b", "label": [["0", 2, "P"]]}, r"\['0', 2, 'P'\] is no span of two numbers"),
        ({"text": "a b", "label": ["P"]}, "'P' is no span"),
        ({"text": "a b", "label": [[0, 1, ""]]}, "is no span"),
        ({"text": "a b", "label": "P"}, "it has no spans: a list label"),
        ({"text": " ", "label": []}, "it has no text"),
        ({"text": "a b", "spans": [], "answer": "reject"}, "its answer is 'reject'"),
        ({"data": {"text": "a b"}, "annotations": [{"result": [{"value": {"start": 0}}]}]}, "have an unknown form"),
        ({"data": {"text": "a b"}, "annotations": []}, "it has no spans"),
    ],
)
def test_a_row_with_broken_spans_is_named_and_skipped(tmp_path, row, said):
    path = write(tmp_path / "a.jsonl", lines(SPANS["doccano"], row))
    with pytest.raises(ValueError, match=f"line 2: .*{said}"):
        tagged(path)
    assert tagged(path, skip=True) == [ANN]


def test_lists_of_plain_tags_and_parquet(tmp_path):
    rows = [{"words": ["I", "run"], "pos": ["PRON", "VERB"]}, {"words": ["go"], "pos": ["VERB"]}]
    path = write(tmp_path / "a.json", json.dumps(rows))
    assert tagged(path, "--label_column", "pos") == [["I/PRON", "run/VERB"], ["go/VERB"]]
    features = Features(
        {"tokens": datasets.List(Value("string")), "upos": datasets.List(ClassLabel(names=["VERB", "PRON"]))}
    )
    Dataset.from_dict({"tokens": [["I", "run"]], "upos": [[1, 0]]}, features=features).to_parquet(
        tmp_path / "a.parquet"
    )
    assert tagged(tmp_path / "a.parquet") == [["I/PRON", "run/VERB"]]
    assert load(tmp_path / "a.parquet", "--kind", "token")[0].metrics == ("accuracy",)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "word,tag\nAnn,B-P\n", "is a table with commas; write a file of columns"),
        ("a.conll", '{"tokens": ["a"]}\n', "is JSON; write a file of columns"),
        ("a.jsonl", '{"tokens": ["a"], "ner_tags": [3]}\n', "needs .* as text or as numbers with names"),
        ("a.jsonl", '{"tokens": ["a", null], "ner_tags": ["B-x", "O"]}\n', "row 1: word 2 is null"),
    ],
)
def test_words_in_another_form_are_named(tmp_path, name, text, said):
    with pytest.raises(ValueError, match=said):
        tagged(write(tmp_path / name, text))


@pytest.mark.parametrize("word", ["1,000", "[", "{"])
def test_a_test_file_of_words_alone_may_begin_with_any(tmp_path, word):
    train, test = write(tmp_path / "a.conll", f"{word} O\nAnn B-P\n"), write(tmp_path / "b.conll", f"{word}\nAnn\n")
    args = arguments(train, "--kind", "token", "--test_file", test)
    splits = kinds.chosen(args).read(args, readers.Skipped())[1]
    assert splits["test"]["words"][:] == splits["train"]["words"][:] == [[word, "Ann"]]


# --- questions ------------------------------------------------------------------------------------------------------

QA = {"id": "1", "question": "Who?", "answers": [{"text": "cat", "answer_start": 2}]}
NESTED = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "A cat ran.", "qas": [QA]}]}]}
FLAT = QA | {"title": "t", "context": "A cat ran.", "answers": {"text": ["cat"], "answer_start": [2]}}
SQUAD = ("--max_seq_length", "384")


@pytest.mark.parametrize("form", ["nested", "lines", "list", "Parquet", "saved"])
def test_questions_in_a_file_of_any_name(tmp_path, form):
    path = tmp_path / "my questions.json"
    if form in ("nested", "list"):
        write(path, json.dumps(NESTED if form == "nested" else [FLAT]))
    elif form == "lines":
        path = write(tmp_path / "q.jsonl", lines(FLAT))
    else:
        path = tmp_path / ("q.parquet" if form == "Parquet" else "q")
        rows = Dataset.from_list([FLAT])
        rows.to_parquet(path) if form == "Parquet" else rows.save_to_disk(path)
    _, rows = load(path, *SQUAD, task="squad")
    assert rows[0] == {"id": "1", "question": "Who?", "context": "A cat ran.", "texts": ["cat"], "starts": [2]}
    args = arguments(path, *SQUAD, "--dataset_name", "mine", task="squad")
    assert args.output_dir == "runs/mine/finetune/seed1" and evaluate.dev_files(args) == {"dev": str(path)}


def test_rows_without_an_answer_are_of_squad_2(tmp_path):
    path = write(tmp_path / "q.jsonl", lines(FLAT, FLAT | {"id": "2", "answers": {"text": [], "answer_start": []}}))
    assert load(path, *SQUAD, task="squad_v2")[1]["texts"][:] == [["cat"], []]
    with pytest.raises(ValueError, match=r"question '2' has no answer: use --task squad_v2"):
        load(path, *SQUAD, task="squad")
    with pytest.raises(ValueError, match=r"not in SQuAD's format .KeyError: 'answers'., which is data, paragraphs"):
        load(write(path, '{"id": "1", "context": "a"}\n'), *SQUAD, task="squad")
    for options in (("--data_dir", "x"), ("--validation_file", "")):
        with pytest.raises(ValueError, match="--train_file: pass --train_file and --validation_file, both"):
            arguments(path, *SQUAD, *options, task="squad")
    with pytest.raises(ValueError, match="--dataset_name 'cola' becomes a folder beside"):
        arguments(path, *SQUAD, "--dataset_name", "cola", task="squad")
