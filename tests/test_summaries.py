"""Summaries: ROUGE, labels by ROUGE, files, markers and windows, and whole runs of every model type and method."""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import types

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import forked, in_two_processes
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from rouge_score.rouge_scorer import RougeScorer
from safetensors.torch import load_file
from test_encoders import TINY, make_tokenizer, tiny_config
from test_teacher_cache import terms_of
from transformers import AutoModel, AutoModelForTokenClassification

import data
import distill_dynabert
import distill_finetune
import losses
import metrics
import report
from encoders import families
from engine import teacher_cache
from options import finetune_parser
from tasks import batching, kinds, readers, summaries

WORDS = [
    "running",
    "runs",
    "ran",
    "run",
    "the",
    "The",
    "THE",
    "dogs",
    "dog's",
    "state-of-the-art",
    "3.5",
    "naïve",
    "東京",
    "cats",
    "cat,",
    "is,",
    ".",
    "!",
    "generously",
    "generous",
    "organization",
]
SCORER = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)


def draw_text(draw, longest=12):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(0, longest)))


# --- ROUGE ----------------------------------------------------------------------------------------------------------


def test_rouge_is_the_packages_with_stemming():
    draw = random.Random(1)
    for _ in range(300):
        summary = "\n".join(draw_text(draw) for _ in range(draw.randint(0, 3)))
        reference = "\n".join(draw_text(draw) for _ in range(draw.randint(1, 3)))
        found = metrics.rouge(summary, [reference])
        assert found == {name: score.fmeasure for name, score in SCORER.score(reference, summary).items()}
        assert list(found) == metrics.ROUGE and all(type(value) is float for value in found.values())


def test_one_reference_counts_for_all_scores():
    """The one with the best ROUGE-1: its ROUGE-2 may be lower than another's, and is taken all the same."""
    summary, references = "the dog ran home", ["home ran dog the", "the dog ran", "the dog ran home again and again"]
    each = [SCORER.score(reference, summary) for reference in references]
    assert each[0]["rouge1"].fmeasure == 1 and each[0]["rouge2"].fmeasure == 0 < each[1]["rouge2"].fmeasure
    assert metrics.rouge(summary, references) == {name: score.fmeasure for name, score in each[0].items()}
    draw = random.Random(2)
    for _ in range(100):
        summary, references = draw_text(draw), [draw_text(draw) for _ in range(draw.randint(1, 4))]
        each = [SCORER.score(reference, summary) for reference in references]
        ones = [score["rouge1"].fmeasure for score in each]
        best = each[ones.index(max(ones))]
        assert metrics.rouge(summary, references) == {name: score.fmeasure for name, score in best.items()}


def test_lines_are_what_rouge_lsum_compares():
    found = metrics.rouge("the dog ran\na cat sat", ["a cat sat\nthe dog ran"])
    assert found["rougeL"] == pytest.approx(0.5) and found["rougeLsum"] == pytest.approx(1)


# --- labels by ROUGE ------------------------------------------------------------------------------------------------


def greedy(sentences, references, count):
    """The oracle by calls of rouge-score alone."""

    def gain(numbers):
        text = " ".join(sentences[i] for i in sorted(numbers))
        each = [SCORER.score(reference, text) for reference in references]
        best = max(each, key=lambda one: one["rouge1"].fmeasure)
        return round(best["rouge1"].fmeasure + best["rouge2"].fmeasure, 9)

    chosen, score = [], 0
    for _ in range(count):
        better = [(gain([*chosen, i]), -i) for i in range(len(sentences)) if i not in chosen]
        if not better or max(better)[0] <= score:
            break
        score, i = max(better)
        chosen.append(-i)
    return sorted(chosen)


def test_the_oracle_is_greedy_by_rouge_score_itself():
    draw, sizes = random.Random(3), set()
    for _ in range(300):
        sentences = [draw_text(draw) for _ in range(draw.randint(1, 9))]
        references = [draw_text(draw, 25) for _ in range(draw.choice((1, 1, 3)))]
        for count in (1, 3):
            found = summaries.oracle(sentences, references, count)
            assert found == greedy(sentences, references, count), (sentences, references)
            sizes.add(len(found))
    assert sizes == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "sentences, references, count, found",
    [
        (["a cat", "a dog ran", "home"], ["a dog ran home"], 1, [1]),
        (["home", "a cat", "a dog ran"], ["a dog ran home"], 3, [0, 2]),  # a third would cost more than it brings
        (["a dog", "a dog"], ["a dog"], 2, [0]),  # the first of equals, and no worse one
        (["cats", "dogs"], ["birds"], 2, []),
        (["東京"], ["birds"], 1, []),
        (["", "birds"], ["birds"], 3, [1]),
        (["one", "birds"], [], 1, []),
        (["red birds", "green birds"], ["blue cats", "green birds"], 1, [1]),  # of several references the best one
    ],
)
def test_worked_examples_of_the_oracle(sentences, references, count, found):
    assert summaries.oracle(sentences, references, count) == found


# --- files ----------------------------------------------------------------------------------------------------------


def arguments(**more):
    return argparse.Namespace(
        **{
            "task": "custom",
            "kind": "summary",
            "data_dir": None,
            "hub_dataset": None,
            "train_file": None,
            "validation_file": None,
            "test_file": None,
            "max_train_samples": 0,
            "max_eval_samples": 0,
            "metrics": [],
            "regression": False,
            "label_column": "label",
            "held_out": 0.0,
            "summary_sentences": 2,
            **more,
        }
    )


def lines(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


DOCUMENT = {"sentences": ["A dog ran.", "Cats sat."], "summary": "Cats sat down."}


def load(tmp_path, *train, skip=False, **more):
    args = arguments(
        train_file=lines(tmp_path / "train.jsonl", *train),
        validation_file=lines(tmp_path / "dev.jsonl", DOCUMENT),
        **more,
    )
    skipped = readers.Skipped(skip)
    return *summaries.load_documents(args, data.TASKS[args.task], skipped), skipped


def test_own_json_lines(tmp_path):
    rows = [
        DOCUMENT,
        {
            "sentences": [" A\tdog \n ran. ", "", "  "],
            "summary": ["A dog.\nIt ran.", " ", "Dogs run."],
            "labels": [True, 0, 0],
            "more": 1,
        },
        {"sentences": ["One."], "labels": [0]},
    ]
    task, splits, _ = load(tmp_path, *rows, test_file=lines(tmp_path / "test.jsonl", {"sentences": ["One."]}))
    train = splits["train"]
    assert train["sentences"][:] == [["A dog ran.", "Cats sat."], ["A dog ran.", "", ""], ["One."]]
    assert train["references"][:] == [["Cats sat down."], ["A dog.\nIt ran.", "Dogs run."], []]
    assert train["labels"][:] == [[], [1, 0, 0], [0]] and train["idx"][:] == [0, 1, 2]
    assert splits["test"]["references"][:] == [[]] and splits["validation"]["labels"][:] == [[]]
    assert (task.kind, task.labels, task.metrics) == ("summary", ("0", "1"), ("rouge1", "rouge2", "rougeL"))
    assert load(tmp_path, *rows, metrics=["rougeLsum"])[0].metrics == ("rougeLsum",)


BAD = [
    ({"sentences": [], "summary": "One."}, "the document has no sentences"),
    ({"sentences": ["", " \n"], "summary": "One."}, "the document has no sentences"),
    ({"text": ["One."], "summary": "One."}, "no column 'sentences'; there are: text, summary"),
    ({"sentences": "One. Two.", "summary": "One."}, "column 'sentences' holds \"One. Two.\", not a list of sentences"),
    ({"sentences": ["One.", 2], "summary": "One."}, r"column 'sentences' holds \[\"One.\", 2\], not a list"),
    ({"sentences": None, "summary": "One."}, "column 'sentences' holds null, not a list"),
    ({"sentences": ["One."]}, "no summary in column 'summary'"),
    ({"sentences": ["One."], "summary": None}, "no summary in column 'summary'"),
    ({"sentences": ["One."], "summary": [" "]}, "no summary in column 'summary'"),
    ({"sentences": ["One."], "summary": 3}, "column 'summary' holds 3, not a text or a list of them"),
    ({"sentences": ["하"], "summary": "하"}, "has no letter a to z and no digit; ROUGE reads no others"),
    (DOCUMENT | {"labels": [1]}, "column 'labels' has 1 labels for 2 sentences"),
    (DOCUMENT | {"labels": [1, 2]}, r"column 'labels' holds \[1, 2\], not a list of 0 and 1"),
    (DOCUMENT | {"labels": "10"}, "column 'labels' holds \"10\", not a list of 0 and 1"),
    ('{"sentences": ["\\ud800"], "summary": "One."}', "column 'sentences' holds half a surrogate pair"),
    ('["One."]', "not a JSON object"),
    ("{", "not valid JSON"),
]


@pytest.mark.parametrize("row, said", BAD)
def test_a_broken_document_is_named_or_skipped(tmp_path, row, said):
    with pytest.raises(ValueError, match=rf"train.jsonl, line 2: .*{said}") as error:
        load(tmp_path, DOCUMENT, row)
    assert "\n" not in str(error.value)
    _, splits, skipped = load(tmp_path, DOCUMENT, row, DOCUMENT, skip=True)
    assert splits["train"]["idx"][:] == [0, 2] and len(skipped.reports) == 1


def test_what_is_scored_needs_a_summary(tmp_path):
    given = {"sentences": ["One."], "labels": [1]}
    load(tmp_path, given)
    with pytest.raises(ValueError, match=r"train.jsonl, line 1: no summary"):
        load(tmp_path, given, held_out=0.1)
    lines(tmp_path / "dev.jsonl", given)
    with pytest.raises(ValueError, match=r"dev.jsonl, line 1: no summary in column 'summary'; mend it or pass --skip"):
        summaries.load_documents(
            arguments(train_file=str(tmp_path / "train.jsonl"), validation_file=str(tmp_path / "dev.jsonl")),
            data.TASKS["custom"],
            readers.Skipped(),
        )
    with pytest.raises(ValueError, match=r"holds no documents that are whole; the first: .*line 1: not valid JSON"):
        load(tmp_path, "{", skip=True)


PAPER = {
    "source": ["We study.", "It works.\n"],
    "source_labels": [0, 1],
    "rouge_scores": [0.1, 0.2],
    "paper_id": "x",
    "target": ["It works well.", "Works."],
    "title": "T",
}


def test_scitldr_as_published_and_on_the_hub(tmp_path, monkeypatch):
    folder = tmp_path / "scitldr"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        lines(folder / f"{name}.jsonl", PAPER, PAPER)
    features = Features(
        {
            "source": List(Value("string")),
            "target": List(Value("string")),
            "paper_id": Value("string"),
            "source_labels": List(ClassLabel(names=["non-oracle", "oracle"])),
        }
    )
    rows = Dataset.from_list([{k: PAPER[k] for k in features}] * 2, features=features)
    on_hub = DatasetDict(train=rows, validation=rows, test=rows)
    due = ("allenai/scitldr", "Abstract")
    monkeypatch.setattr(summaries, "load_hub", lambda hub: on_hub if hub == due else None)
    for data_dir in (tmp_path, folder, None):
        args = arguments(task="scitldr", kind=None, data_dir=data_dir and str(data_dir), max_eval_samples=1)
        _, splits = summaries.load_documents(args, data.TASKS["scitldr"], readers.Skipped())
        assert {name: len(split) for name, split in splits.items()} == {"train": 2, "validation": 1, "test": 2}
        assert splits["train"][1] == {
            "sentences": ["We study.", "It works."],
            "labels": [],
            "idx": 1,
            "references": ["It works well.", "Works."],
        }
        assert splits["test"]["references"][0] == PAPER["target"] and splits["test"]["labels"][0] == []


def test_articles_of_the_hub_are_cut_by_a_package(monkeypatch):
    rows = Dataset.from_list([{"article": "Dr. Dog ran. It sat.", "highlights": "It sat .\nIt ran .", "id": "1"}] * 3)
    monkeypatch.setattr(
        summaries,
        "load_hub",
        lambda hub: (
            DatasetDict(train=rows, validation=rows, test=rows) if hub == ("abisee/cnn_dailymail", "3.0.0") else None
        ),
    )
    args = arguments(task="cnn_dailymail", kind=None, max_train_samples=2)
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(ValueError, match="package sentencex cuts articles into sentences and is missing: pip install"):
        summaries.load_documents(args, data.TASKS["cnn_dailymail"], readers.Skipped())
    segment = lambda language, text: re.split("(?<=n. )", text) if language == "en" else None  # noqa: E731
    monkeypatch.setitem(sys.modules, "sentencex", types.SimpleNamespace(segment=segment))
    task, splits = summaries.load_documents(args, data.TASKS["cnn_dailymail"], readers.Skipped())
    assert splits["train"]["sentences"][:] == [["Dr. Dog ran.", "It sat."]] * 2 and len(splits["test"]) == 3
    assert splits["validation"]["references"][0] == ["It sat .\nIt ran ."]  # lines, which rougeLsum compares
    assert task.metrics == ("rouge1", "rouge2", "rougeLsum") and task.sentences == 3


def test_the_package_cuts_news_into_sentences():
    pytest.importorskip("sentencex")
    text = 'The U.S. Navy left on Jan. 5, 2015. "We won\'t go," Mr. Obama said. Prices rose 3.5 percent. Did they?'
    found = summaries.splitter()(text)
    assert [sentence.strip() for sentence in found] == [
        "The U.S. Navy left on Jan. 5, 2015.",
        '"We won\'t go," Mr. Obama said.',
        "Prices rose 3.5 percent.",
        "Did they?",
    ]


# --- markers and windows --------------------------------------------------------------------------------------------

LINES = [
    "the quick brown fox jumps over the lazy dog",
    "unbelievable happenings in New York City , said Dr. O'Neill",
    "naïve café 東京 10 000 #hashtag",
    "[SEP] and </s> [CLS] <s> are words of papers <mask> [MASK]",
]


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def tokenizer(request):
    made = make_tokenizer(*TINY[request.param][:2], LINES * 4)
    if request.param == "bert":
        from tokenizers import normalizers

        made.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    return made


def documents(*rows):
    """A Dataset of documents from (sentences, labels) or (sentences, labels, references)."""
    return Dataset.from_list(
        [{"sentences": row[0], "labels": row[1], "references": list(row[2:]), "idx": i} for i, row in enumerate(rows)],
        features=summaries.DOCUMENT,
    )


def windows(rows, tokenizer, tmp_path, length, count=2):
    args = argparse.Namespace(max_seq_length=length, summary_sentences=count)
    return summaries.windows(rows, tokenizer, args, tmp_path / "cache")


@pytest.mark.parametrize("length", [8, 24, 60, 4000])
def test_every_sentence_has_one_marker_of_its_own(tokenizer, tmp_path, length):
    draw = random.Random(length)
    sentences = [[draw.choice(LINES + ["", "a b", "fox"]) for _ in range(n)] + ["dog"] for n in (0, 1, 5, 30)]
    rows = documents(*((own, [draw.randint(0, 1) for _ in own]) for own in sentences))
    cut = windows(rows, tokenizer, tmp_path, length)
    assert cut[:] == windows(rows, tokenizer, tmp_path, length)[:]  # out of the cache
    pieces = [
        [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in own]
        for own in sentences
    ]
    seen, labels = [[] for _ in sentences], [[None] * len(own) for own in sentences]
    for ids, mask, marks, places, owned, number in zip(
        *(cut[name] for name in ("input_ids", "attention_mask", "labels", "places", "owned", "source")), strict=True
    ):
        assert len(ids) == len(mask) == len(marks) <= length and set(mask) == {1}
        assert [i for i, mark in enumerate(marks) if mark != -100] == places and owned
        for place, i in zip(places, owned, strict=True):
            due = [tokenizer.cls_token_id, *pieces[number][i][: length - 2], tokenizer.sep_token_id]
            assert ids[place : place + len(due)] == due  # the whole sentence stands in its window
            seen[number].append(i)
            labels[number][i] = marks[place]
    assert seen == [[i for i, text in enumerate(own) if text] for own in sentences]
    assert labels == [
        [label if text else None for text, label in zip(own, row, strict=True)]
        for own, row in zip(sentences, rows["labels"], strict=True)
    ]
    assert sum(cut["cut_off"]) == sum(len(own) + 2 > length for of in pieces for own in of)
    for segments, places, owned, number in zip(
        *(cut[name] for name in ("token_type_ids", "places", "owned", "source")), strict=True
    ):  # of a document's sentences with words, every second one is of segment 1, whatever the window
        words = [i for i, text in enumerate(sentences[number]) if text]
        for place, i in zip(places, owned, strict=True):
            size = min(len(pieces[number][i]) + 2, length)
            assert segments[place : place + size] == [words.index(i) % 2] * size
    if length == 4000:
        assert len(cut) == len(sentences) and summaries.cut_line("train", rows, cut, length) == ""
    else:
        assert re.fullmatch(
            rf"dev: [1-3] of 4 documents are longer than --max_seq_length {length} and read in windows"
            r"(, \d+ sentences are longer and lose their end)?",
            summaries.cut_line("dev", rows, cut, length),
        )


def test_a_sentence_about_special_words_is_text(tmp_path):
    made = make_tokenizer(*TINY["bert"][:2], LINES * 4)
    (row,) = windows(documents((["[SEP] and [CLS] are words", "fox [PAD]"], [0, 1])), made, tmp_path, 100)
    assert [row["input_ids"].count(i) for i in (made.cls_token_id, made.sep_token_id, made.pad_token_id)] == [2, 2, 0]
    assert made("[CLS]", add_special_tokens=False)["input_ids"] == [made.cls_token_id]  # nothing of it is left behind


def test_labels_that_are_not_given_are_the_oracles(tokenizer, tmp_path):
    own = ["the dog", "New York", "the lazy fox"]
    cut = windows(
        documents((own, [], "a lazy fox"), (own, []), (own, [1, 0, 0], "a lazy fox")), tokenizer, tmp_path, 400, count=1
    )
    assert [[label for label in row if label >= 0] for row in cut["labels"]] == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_a_sentence_of_which_nothing_is_left_is_never_chosen(tmp_path):
    made = make_tokenizer(*TINY["bert"][:2], LINES * 4)
    from tokenizers import normalizers

    made.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    rows = documents((["\u200d", "fox", "", "dog"], [1, 0, 0, 0]), (["\u200d"], [1]))
    cut = windows(rows, made, tmp_path, 40)
    assert cut["owned"][:] == [[1, 3]] and cut["source"][:] == [0]
    first, second = summaries.predictions(rows, cut, torch.zeros(1, 40, 2), 3)
    assert first["chosen"] == [1, 3] and first["scores"] == [None, 0.5, None, 0.5]
    assert second["chosen"] == [] and second["summary"] == [] and second["scores"] == [None]
    with pytest.raises(ValueError, match=r"the tokenizer drops all sentences, the first: '\\u200d'"):
        windows(documents((["\u200d"], [1])), made, tmp_path, 40)


def test_windows_are_kept_by_all_that_they_depend_on(tokenizer, tmp_path):
    rows, other = documents((["the dog", "fox"], [], "a fox")), documents((["the dog", "fox"], [], "a dog"))
    for own, length, count in ((rows, 40, 1), (other, 40, 1), (rows, 30, 1), (rows, 40, 2), (rows, 40, 1)):
        windows(own, tokenizer, tmp_path, length, count)
    folders = sorted((tmp_path / "cache").glob("summary-*"))
    assert len(folders) == 4
    (folders[0] / "windows.arrow").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is damaged .*: delete this folder"):
        for own, length, count in ((rows, 40, 1), (other, 40, 1), (rows, 30, 1), (rows, 40, 2)):
            windows(own, tokenizer, tmp_path, length, count)


# --- predictions ----------------------------------------------------------------------------------------------------


def test_the_best_sentences_stand_in_the_documents_order(tokenizer, tmp_path):
    rows = documents((["a fox", "the dog", "New York", "10 000"], [], "the dog 10 000", "foxes"), (["a"], []))
    cut = windows(rows, tokenizer, tmp_path, 400)
    for chances, chosen in (
        ([0.1, 0.6, 0.2, 0.9], [1, 3]),
        ([0.5, 0.5, 0.5, 0.5], [0, 1]),
        ([0.1, 0.9, 0.3, 0.3], [1, 2]),
    ):
        logits = torch.full((2, 400, 2), float("-inf"))
        for row, given in ((0, chances), (1, [0.25])):
            logits[row, cut["places"][row]] = torch.tensor([[1 - p, p] for p in given]).log()
        first, second = summaries.predictions(rows, cut, logits, 2)
        assert first["chosen"] == chosen and first["scores"] == pytest.approx(chances, abs=1e-6)
        assert first["summary"] == [rows["sentences"][0][i] for i in chosen]
        assert {name: first[name] for name in metrics.ROUGE} == metrics.rouge(
            "\n".join(first["summary"]), ["the dog 10 000", "foxes"]
        )
        assert (second["chosen"], second["index"]) == ([0], 1) and "rouge1" not in second  # no reference


def test_bounds_are_of_the_first_sentences_and_of_the_oracle():
    rows = documents((["", "the fox", "New York", "a fox"], [1, 0, 0, 0], "a lazy fox"), (["fox"], [], "fox", "dog"))
    found = summaries.bounds(rows, 1)
    for name, texts in (("lead", ("the fox", "fox")), ("oracle", ("a fox", "fox"))):
        each = [SCORER.score(gold, text) for gold, text in zip(("a lazy fox", "fox"), texts, strict=True)]
        assert found[name] == pytest.approx({k: (each[0][k].fmeasure + each[1][k].fmeasure) / 2 for k in each[0]})


# --- whole runs -----------------------------------------------------------------------------------------------------


def write_documents(path, count, seed, **more):
    """Documents of the artificial language's words: the sentence with a bird is the summary."""
    draw = random.Random(seed)
    with path.open("w") as f:
        for _ in range(count):
            sentences = [
                f"the {draw.choice(('dog', 'cat'))} {draw.choice(('sleeps', 'sings'))} ."
                for _ in range(draw.choice((1, 2, 3, 12)))
            ]
            sentences.insert(draw.randint(0, len(sentences)), f"a {draw.choice(('big', 'small'))} bird sings .")
            summary = next(sentence for sentence in sentences if "bird" in sentence)
            f.write(json.dumps({"sentences": sentences, "summary": summary, **more}) + "\n")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    return [
        write_documents(folder / f"{name}.jsonl", n, seed)
        for seed, (name, n) in enumerate((("train", 65), ("dev", 20), ("test", 8)))
    ]


def command(files, folder, *options):
    train, dev, test = map(str, files)
    return [
        *(
            f"--task custom --kind summary --train_file {train} --validation_file {dev} "
            f"--test_file {test} --summary_sentences 1 --per_device_train_batch_size 16 "
            f"--max_seq_length 32 --num_train_epochs 1 --logging_steps 2 --output_dir {folder}"
        ).split(),
        *map(str, options),
    ]


@pytest.fixture
def run(files):
    def run(folder, *options):
        AcceleratorState._reset_state(reset_partial_state=True)
        distill_finetune.main(command(files, folder, *options))
        return json.loads((folder / "run.json").read_text())

    return run


@pytest.fixture(scope="module")
def teacher(world, files, tmp_path_factory):
    """Folder of a trained teacher of summaries."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    AcceleratorState._reset_state(reset_partial_state=True)
    distill_finetune.main(
        command(
            files,
            folder,
            *f"--student {world}/bert --num_train_epochs 4 --learning_rate 2e-3 --run_name teacher".split(),
        )
    )
    return folder


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scores_by_the_card(folder, sentences):
    """What the lines of the model card give for a document."""
    (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    code = code.replace('folder = "."', f"folder = {str(folder)!r}")
    code, replaced = re.subn("sentences = .*", lambda _: f"sentences = {sentences!r}", code, count=1)
    found = {}
    assert replaced
    exec(code, found)
    return found["scores"]


CKD = ("--student_layers", "2", "--terms", "ckd", "--hard_weight", "0.5")


def test_a_whole_run(run, teacher, files, tmp_path, capsys):
    folder = tmp_path / "run"
    record = run(folder, "--teacher", teacher, *CKD, "--do_predict", "--learning_rate", "2e-3")
    said = capsys.readouterr().out
    assert record["status"] == "complete" and record["headline"] == ["rouge1", "rouge2", "rougeL"]
    model = AutoModelForTokenClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "other", 1: "summary"}
    best, taught = record["best"]["metrics"], json.loads((teacher / "run.json").read_text())
    assert taught["best"]["score"] > taught["bounds"]["lead"]["rouge1"] + 0.2  # it can be learned
    golds = read_lines(files[1])
    first = [row["sentences"][0] for row in golds]
    lead = [SCORER.score(row["summary"], text)["rouge2"].fmeasure for row, text in zip(golds, first, strict=True)]
    assert record["bounds"]["lead"]["rouge2"] == pytest.approx(sum(lead) / 20)
    assert record["bounds"]["oracle"] == pytest.approx(dict.fromkeys(metrics.ROUGE, 1.0))
    for name, value in record["bounds"]["lead"].items():
        assert f"{name} {value:.4f}" in next(line for line in said.splitlines() if "without a model, lead:" in line)
    assert re.search(r"train: \d+ of 65 documents are longer than --max_seq_length 32 and read in windows", said)
    for path, name, there in ((files[1], "summaries.jsonl", best), (files[2], "summaries.test.jsonl", None)):
        rows, read = read_lines(folder / name), read_lines(path)
        assert [row["index"] for row in rows] == list(range(len(read)))
        means = dict.fromkeys(metrics.ROUGE, 0.0)
        for row, gold in zip(rows, read, strict=True):
            assert row["references"] == [gold["summary"]] and len(row["scores"]) == len(gold["sentences"])
            assert row["chosen"] == [row["scores"].index(max(row["scores"]))]
            assert row["summary"] == [gold["sentences"][i] for i in row["chosen"]]
            for key, score in SCORER.score(gold["summary"], row["summary"][0]).items():
                assert row[key] == score.fmeasure
                means[key] += score.fmeasure / len(rows)
        if there:
            assert means == pytest.approx(there)
            assert record["best"]["score"] == pytest.approx(sum(best[key] for key in record["headline"]) / 3)
        else:
            assert f"test: rouge1 {means['rouge1']:.4f}" in said
        short = [i for i, gold in enumerate(read) if len(gold["sentences"]) < 4][:3]
        for i in short:  # as the saved model itself scores them
            assert scores_by_the_card(folder, read[i]["sentences"]) == pytest.approx(rows[i]["scores"], abs=1e-5)
    assert {"summaries.jsonl", "summaries.test.jsonl"} <= {path.name for path in folder.iterdir()} and short
    assert report.main([str(folder), "--output_dir", str(tmp_path / "report"), "--tables", "csv", "runs"]) == 0
    for source in (folder, tmp_path / "report" / "runs.csv"):
        capsys.readouterr()
        assert report.main([str(source), "--output_dir", str(tmp_path / "again")]) == 0
        said = capsys.readouterr().out
        lead = " / ".join(f"{100 * record['bounds']['lead'][key]:.1f}" for key in record["headline"])
        assert f"Without a model on custom (R-1 / R-2 / R-L): lead {lead}, oracle 100.0 / 100.0 / 100.0" in said
        assert "custom (R-1 / R-2 / R-L) best" in said


@pytest.mark.parametrize("method", ["finetune", *losses.PRESETS])
def test_every_method_trains_a_student(run, teacher, tmp_path, method):
    options = (
        ("--student", teacher, "--student_layers", 2)
        if method == "finetune"
        else ("--teacher", teacher, "--student_layers", 2, "--terms", method)
    )
    record = run(tmp_path / "run", *options, "--max_steps", 2, "--held_out", 0.2)
    assert record["status"] == "complete" and "held_out/score" in record["best"]["metrics"]
    assert report.main([str(tmp_path / "run"), "--output_dir", str(tmp_path)]) == 0


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_model_type_reads_markers(run, files, tmp_path, name):
    """The lines of the model card give the scores that the run has written."""
    start = tmp_path / "start"
    words = [sentence for row in read_lines(files[0]) for sentence in row["sentences"]]
    tokenizer = make_tokenizer(*TINY[name][:2], words)
    size = 1 + max(tokenizer.get_vocab().values())
    torch.manual_seed(1)
    config = tiny_config(name, layers=2, vocab_size=size, max_position_embeddings=140)
    AutoModel.from_config(config).save_pretrained(start)
    tokenizer.save_pretrained(start)
    options = ("--max_seq_length", 128, "--max_steps", 3, "--learning_rate", "1e-2")
    record = run(tmp_path / "run", "--student", start, *options)
    assert record["status"] == "complete"
    golds = read_lines(files[1])
    compared = 0
    for row, gold in zip(read_lines(tmp_path / "run" / "summaries.jsonl"), golds, strict=True):
        if len(gold["sentences"]) < 4:
            compared += 1
            assert scores_by_the_card(tmp_path / "run", gold["sentences"]) == pytest.approx(row["scores"], abs=1e-4)
            assert len(set(row["scores"])) > 1
    assert compared > 5


def test_a_resumed_run_with_a_cached_teacher_has_the_losses_of_the_teacher_itself(
    run, teacher, tmp_path, cut_at, monkeypatch
):
    monkeypatch.setattr(teacher_cache, "FOLDER", tmp_path / "cache")
    options = ("--teacher", teacher, *CKD, "--save_steps", "2", "--max_steps", "4", "--logging_steps", "1")
    run(tmp_path / "direct", *options)
    cut_at(4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cached", *options, "--cache_teacher")
    assert run(tmp_path / "cached", *options, "--cache_teacher")["time"]["sessions"] == 2
    direct, cached = terms_of(tmp_path / "direct"), terms_of(tmp_path / "cached")
    assert set(direct) == set(cached) and {"loss/hard", "loss/logits", "loss/wr_triple"} <= set(direct)
    for tag in direct:
        assert cached[tag] == pytest.approx(direct[tag], rel=2e-3, abs=1e-7), tag


def test_an_interrupted_run_has_the_weights_of_a_whole_one(run, teacher, tmp_path, cut_at):
    options = ("--teacher", teacher, *CKD, "--save_steps", "2", "--max_steps", "4")
    run(tmp_path / "whole", *options)
    cut_at(4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", *options)
    assert run(tmp_path / "cut", *options)["time"]["sessions"] == 2
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert (tmp_path / "whole/summaries.jsonl").read_text() == (tmp_path / "cut/summaries.jsonl").read_text()


def test_two_processes_train_and_predict_as_one(run, teacher, files, tmp_path):
    """Batches of which one process has few sentences and the other many: means are over those of both."""
    options = ("--teacher", teacher, *CKD, "--do_predict", "--max_steps", 3, "--learning_rate", "1e-3")
    run(tmp_path / "one", *options)
    in_two_processes(lambda: run(tmp_path / "two", *options, "--per_device_train_batch_size", 8))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=2e-4)
    for name in ("summaries.jsonl", "summaries.test.jsonl"):
        rows = [read_lines(tmp_path / folder / name) for folder in ("one", "two")]
        for a, b in zip(*rows, strict=True):
            assert a["scores"] == pytest.approx(b["scores"], abs=1e-3) and a["index"] == b["index"]


def test_a_dynabert_student_chooses_sentences_at_every_width(teacher, files, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    distill_dynabert.main(
        command(files, tmp_path / "run", "--teacher", teacher, "--width_mults", 1.0, 0.5, "--max_steps", 2)
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["subnetworks"]) == 2 and record["bounds"]["oracle"]["rouge1"] == pytest.approx(1)
    assert report.main([str(tmp_path / "run"), "--output_dir", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    "options, said",
    [
        (["--text_columns", "a"], "--text_columns is for other kinds: documents have the columns sentences, summary"),
        (["--label_column", "ner"], "--label_column is for other kinds"),
        (["--metrics", "f1"], "--metrics 'f1' is not a metric of summary: choose rouge1, rouge2, rougeL, rougeLsum"),
        (["--token_column", "2"], "--token_column is for tasks of words"),
        (["--regression"], "--regression and --kind summary exclude each other"),
        (["--task", "scitldr"], "--train_file is for --task custom"),
        (["--kind", "classification"], "--summary_sentences is for summaries"),
    ],
)
def test_impossible_options_are_one_line(run, world, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "run", "--student", world / "bert", *options)
    assert not (tmp_path / "run").exists()


def test_mistakes_end_in_one_line_and_status_2(world, files, tmp_path):
    bad = lines(tmp_path / "bad.jsonl", DOCUMENT, {"sentences": []})
    for options, said in (
        (["--validation_file", bad], "bad.jsonl, line 2: the document has no sentences; mend it or"),
        (["--max_seq_length", "4"], "--max_seq_length: '4' must be a whole number at least 8"),
    ):
        status, stderr = forked(
            distill_finetune, *command(files, tmp_path / "run", "--student", world / "bert"), *options
        )
        assert status == 2 and stderr.count("\n") == 1 and said in stderr
        assert not (tmp_path / "run").exists()
    status, stderr = forked(
        distill_finetune,
        *(f"--task cnn_dailymail --data_dir {tmp_path} --student {world}/bert --output_dir {tmp_path}/run").split(),
    )
    assert status == 2 and stderr.count("\n") == 1 and "cnn_dailymail is read from the hub only" in stderr


def test_the_scripts_know_the_tasks():
    done = subprocess.run(
        ["bash", "run_glue.sh", "--max_seq_length", "512"],
        capture_output=True,
        text=True,
        env=os.environ
        | {"DRY_RUN": "1", "TASKS": "scitldr cnn_dailymail", "SEEDS": "1", "METHODS": "ckd", "DATA_DIR": ""},
    )
    assert done.returncode == 0, done.stderr
    trained = [line for line in done.stdout.splitlines() if "distill_finetune.py" in line]
    assert [line.split("--task ")[1].split()[0] for line in trained] == ["scitldr", "cnn_dailymail"] * 2
    assert all("--max_seq_length 512" in line for line in trained)


def test_tasks_have_their_own_number_of_sentences():
    own = ["--kind", "summary", "--train_file", "x", "--validation_file", "x"]
    for task, more, due in (
        ("scitldr", [], 1),
        ("cnn_dailymail", [], 3),
        ("custom", own, 3),
        ("scitldr", ["--summary_sentences", "2"], 2),
    ):
        args = finetune_parser().parse_args(["--task", task, *more])
        data.check_args(args)
        assert args.summary_sentences == due


def test_padding_and_context_have_no_part_in_the_losses(tokenizer, tmp_path):
    rows = documents((["a fox", "the dog"], [0, 1]), (["New York City", "Dr. O'Neill", "10 000", "café"], [1, 0, 0, 0]))
    cut = windows(rows, tokenizer, tmp_path, 400)
    batch = batching.Arrays(cut, batching.TRAINING).batch([0, 1], 0)
    kind = kinds.KINDS["summary"](data.TASKS["scitldr"])
    logits = torch.randn(*batch["input_ids"].shape, 2, generator=torch.Generator().manual_seed(1))
    own = [
        -logits[i, place].log_softmax(-1)[label]
        for i, row in enumerate(rows["labels"])
        for place, label in zip(cut["places"][i], row, strict=True)
    ]
    torch.testing.assert_close(kind.hard_loss(logits, kind.labels(batch)), torch.stack(own).mean())
    assert len(own) == 6
