"""Words with tags: column files, schemes, alignment with pieces, windows, entity F1, and whole runs. Tokenizers of
every make: whose characters and words their pieces are, and vocabularies as people have made them.
"""

import argparse
import itertools
import json
import random
import unicodedata

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from test_encoders import ROBERTA_WORDS, make_tokenizer
from test_teacher_cache import terms_of
from tokenizers import Regex, Tokenizer, processors, trainers
from tokenizers import models as token_models
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

import data
import distill_finetune
import distill_pretrain
import losses
import metrics
import models
from engine import teacher_cache
from tasks import batching, kinds, plain_text, readers, squad, tagging

# --- entity F1 ------------------------------------------------------------------------------------------------------


def conlleval(golds, found):
    """Counts by conlleval's own way: one pass over the words that compares the two taggings as it goes."""

    def ends(before, tag):
        if before == "O":
            return False
        return tag == "O" or tag[0] == "B" or before[2:] != tag[2:]

    def begins(before, tag):
        if tag == "O":
            return False
        return tag[0] == "B" or before == "O" or before[2:] != tag[2:]

    counts = {}  # type -> [correct, there, found]
    of = lambda tag: counts.setdefault(tag[2:], [0, 0, 0])  # noqa: E731
    inside, last = False, ("O", "O")
    for pair in [pair for g, f in zip(golds, found, strict=True) for pair in [*zip(g, f, strict=True), ("O", "O")]]:
        over = [ends(b, t) for b, t in zip(last, pair, strict=True)]
        new = [begins(b, t) for b, t in zip(last, pair, strict=True)]
        if inside and all(over):
            of(last[0])[0] += 1
        inside = inside and not any(over) and pair[0][2:] == pair[1][2:]
        if all(new) and pair[0][2:] == pair[1][2:]:
            inside = True
        for i in (0, 1):
            if new[i]:
                of(pair[i])[1 + i] += 1
        last = pair
    result = {}
    totals = [sum(column) for column in zip(*counts.values(), strict=True)] or [0, 0, 0]
    for suffix, (correct, there, guessed) in {"": totals, **{f"/{k}": v for k, v in counts.items()}}.items():
        p, r = correct / guessed if guessed else 0.0, correct / there if there else 0.0
        result |= {f"precision{suffix}": p, f"recall{suffix}": r, f"f1{suffix}": 2 * p * r / (p + r) if p + r else 0.0}
    return result


@pytest.mark.parametrize(
    "gold, found, f1",
    [
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", 1),
        ("B-PER I-PER O B-LOC", "B-PER O O B-LOC", 1 / 2),  # half an entity is none
        ("I-PER I-PER O I-LOC", "B-PER I-PER O B-LOC", 1),  # IOB1 begins with I-
        ("I-PER B-PER I-PER", "I-PER I-PER I-PER", 0),  # its B- parts two neighbours of one type
        ("I-PER I-LOC", "B-PER B-LOC", 1),  # another type begins another entity
        ("B-PER I-LOC I-LOC", "B-PER B-LOC I-LOC", 1),
        ("O O", "O O", 0),
        ("O O", "B-X O", 0),
        ("B-X O", "O O", 0),
        ("S-X O B-Y I-Y E-Y", "S-X O B-Y I-Y E-Y", 1),
        ("B-Y E-Y S-Y", "B-Y E-Y O", 2 / 3),
    ],
)
def test_worked_examples_of_entity_f1(gold, found, f1):
    assert metrics.entity_metrics([gold.split()], [found.split()])["f1"] == pytest.approx(f1)


def test_entity_scores_are_conllevals_on_any_tagging():
    draw = random.Random(1)
    tags = ["O", "O", "B-X", "I-X", "B-Y", "I-Y", "I-creative-work"]
    for size in (1, 2, 3, 8, 30):
        for _ in range(30):
            golds, found = ([[draw.choice(tags) for _ in range(1 + i % size)] for i in range(4)] for _ in range(2))
            if size < 8:
                found = [
                    [t if draw.random() < 0.7 else f for t, f in zip(*pair, strict=True)]
                    for pair in zip(golds, found, strict=True)
                ]
            got = metrics.entity_metrics(golds, found)
            assert got == pytest.approx(conlleval(golds, found)), (golds, found)
    golds = found = [["B-X"]] * 2
    assert metrics.entity_metrics(golds, [["B-X"], ["O"]])["recall/X"] == 0.5  # entities of sentences stay apart


# --- column files ---------------------------------------------------------------------------------------------------


def read(tmp_path, text, token=1, label=0, skip=False):
    path = tmp_path / "x.conll"
    path.write_bytes(text.encode())
    return tagging.read_columns(path, token, label, readers.Skipped(skip))


@pytest.mark.parametrize(
    "text, found",
    [
        ("a O\nb B-X\n\nc O\n", [("a b", "O B-X"), ("c", "O")]),
        ("a\tO\r\nb\tB-X\r\n \t \r\n\r\n\r\nc\tO", [("a b", "O B-X"), ("c", "O")]),
        (
            "-DOCSTART- -X- O O\n\na DT B-NP O\nb NN I-NP I-X\n\n-DOCSTART- -X- O O\n\nc NN B-NP O\n",
            [("a b", "O I-X"), ("c", "O")],
        ),
        ("10 000\tNUM\tO\n", [("10 000", "O")]),
        ("a\u00a0b  O \n\u3000 O\n", [("a\u00a0b \u3000", "O O")]),
    ],
)
def test_column_files_as_they_are_published(tmp_path, text, found):
    got = [(" ".join(s.words), " ".join(s.tags)) for s in read(tmp_path, "\ufeff" + text)]
    assert got == found


def test_columns_by_number(tmp_path):
    (sentence,) = read(tmp_path, "1 a DT B-NP O\n2 b NN I-NP B-X\n", token=2, label=4)
    assert sentence.words == ["a", "b"] and sentence.tags == ["B-NP", "I-NP"]
    assert read(tmp_path, "a DT\nb NN\n", label=None)[0].tags == []  # a test set has none


LOOK_BLANK = ["\xa0", "\u3000", "\u2028", "\u2029", "\x85", "\x1c", "\x1f", "\x0b", "\x0c", "\u200b"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_blanks_tabs_and_carriage_returns_make_a_line_blank(tmp_path, end):
    words = [word for pair in zip("abcdefghij", LOOK_BLANK, strict=True) for word in pair]
    text = end.join([*words, " \t ", "k", "\r", *LOOK_BLANK, ""])
    assert [s.words for s in read(tmp_path, text, label=None)] == [words, ["k"], LOOK_BLANK]
    tagged = end.join([f"{word} O" for word in words] + ["", "k\tO", ""])
    assert [s.words for s in read(tmp_path, tagged)] == [words, ["k"]]
    sentences = read(tmp_path, text, label=None)
    written = tagging.with_column(
        {"lines": [s.lines for s in sentences], "head": [[]] * 3}, [["O"] * len(s.words) for s in sentences]
    )
    assert [s.words for s in read(tmp_path, written)] == [words, ["k"], LOOK_BLANK], "what is written is read again"


BAD = [
    ("a O\nb\n", {}, "line 2: 1 columns where 2 are due"),
    ("a O\n\nb DT O\n", {}, "line 3: 3 columns where 2 are due"),
    ("a O\nb NN\n", {}, "line 2: the tag 'NN' follows no scheme"),
    ("a O\nb B-\n", {}, "line 2: the tag 'B-' follows no scheme"),
    ("a O\nb U-PER\n", {}, "line 2: the tag 'U-PER' follows no scheme"),
    ("a\tX\tO\n\t\tO\n", {}, "line 2: the word in column 1 is empty"),
    ("a\tX\tO\n\tO\n", {}, "line 2: 2 columns where 3"),
    ("a\tX\tO\nb\t \tO\n", {"token": 2}, "line 2: the word in column 2 is empty"),
    ("a\nb\n", {}, "line 1: 1 columns, and column 1 cannot be both word and tag"),
    ("a O\n", {"label": 3}, "line 1: no --label_column 3: the line has 2 columns"),
    ("a O\n", {"token": 3}, "line 1: no --token_column 3: the line has 2 columns"),
    ("\n \n-DOCSTART- O\n", {}, "holds no sentences"),
    ("", {}, "the file is empty"),
    ("a O\n\0 O\n", {}, "line 2: holds a NUL"),
]


@pytest.mark.parametrize("text, options, said", BAD)
def test_a_broken_line_is_named(tmp_path, text, options, said):
    with pytest.raises(ValueError, match=said) as error:
        read(tmp_path, text, **options)
    assert "x.conll" in str(error.value) and "\n" not in str(error.value)


def test_skipping_leaves_out_the_whole_sentence_and_counts_it(tmp_path):
    path, skipped = tmp_path / "x", readers.Skipped(True)
    path.write_text("a O\nb B-X\n\nc O\nd\ne O\nf NN\n\ng O\n")
    assert [s.words for s in tagging.read_columns(path, 1, 0, skipped)] == [["a", "b"], ["g"]]
    assert len(skipped.reports) == 1 and "line 5" in skipped.reports[0]


def arguments(tmp_path, train, dev="a O\n", **more):
    for name, text in (("train", train), ("dev", dev)):
        (tmp_path / f"{name}.txt").write_text(text)
    return argparse.Namespace(
        **{
            "task": "custom",
            "kind": "token",
            "token_column": 1,
            "label_column": "label",
            "data_dir": None,
            "train_file": str(tmp_path / "train.txt"),
            "validation_file": str(tmp_path / "dev.txt"),
            "test_file": None,
            "max_train_samples": 0,
            "max_eval_samples": 0,
            "metrics": [],
            "hub_dataset": None,
            **more,
        }
    )


def load(args, skip=False):
    return tagging.load_sentences(args, data.TASKS[args.task], readers.Skipped(skip))


@pytest.mark.parametrize(
    "train, labels",
    [
        ("a B-X\nb I-X\nc O\nd B-Y\n", "O B-X I-X B-Y I-Y"),
        ("a I-X\nb I-X\nc B-X\nd I-Y\n", "O B-X I-X B-Y I-Y"),
        ("a S-X\nb O\nc B-Y\nd E-Y\n", "O B-X I-X E-X S-X B-Y I-Y E-Y S-Y"),
    ],
)
def test_the_labels_are_those_of_the_training_types_and_scheme(tmp_path, train, labels):
    task, splits = load(arguments(tmp_path, train))
    assert task.labels == tuple(labels.split()) and task.metrics == ("f1",)
    assert [task.labels[i] for i in splits["train"]["tags"][0]] == [line.split()[1] for line in train.splitlines()]


def test_a_part_of_the_sentences_is_not_the_first_ones(tmp_path):
    text = "".join(f"w{i} B-{'XY'[i >= 30]}\n\n" for i in range(60))
    task, splits = load(arguments(tmp_path, text, text, max_train_samples=20, max_eval_samples=10))
    for split, size in (("train", 20), ("validation", 10)):
        tags = [task.labels[tags[0]] for tags in splits[split]["tags"]]
        assert len(tags) == size and {*tags} == {"B-X", "B-Y"} and tags == sorted(tags)
        assert splits[split]["lines"][:] == [
            [f"{words[0]} {tag}"] for words, tag in zip(splits[split]["words"], tags, strict=True)
        ]


@pytest.mark.parametrize(
    "train, dev, said",
    [
        ("a B-X\nb I-X\n\nc O\nd I-Y\n", "a O\n", r"train.txt, line 5: I-Y follows O, but in BIO,"),
        ("a B-X\nb I-Y\n\nc B-Y\n", "a O\n", r"train.txt, line 2: I-Y follows B-X, but in BIO,"),
        ("a I-X\n\nb I-X\n\nc O\nd B-X\n", "a O\n", r"train.txt, line 6: B-X follows O, but in IOB1,"),
        ("a S-X\n\nb B-X\nc O\n", "a O\n", r"train.txt, line 4: O follows B-X, but in BIOES,"),
        ("a S-X\n\nb O\nc B-X\n", "a O\n", r"train.txt, line 4: the end of the sentence follows B-X"),
        ("a B-X\n", "b O\nc I-X\n", r"dev.txt, line 2: I-X follows O, but in BIO, the training set's scheme"),
        ("a B-X\n", "b O\nc B-Z\n", r"dev.txt, line 2: unknown tag 'B-Z'; the types of this task are X"),
        ("a O\n", "b O\n", r"train.txt: every tag is O"),
    ],
)
def test_a_tag_that_breaks_the_scheme_is_named(tmp_path, train, dev, said):
    with pytest.raises(ValueError, match=said):
        load(arguments(tmp_path, train, dev))


def test_tasks_have_fixed_types_and_files_in_their_folder_or_directly(tmp_path):
    folder = tmp_path / "wnut17"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        (folder / f"{name}.conll").write_text("a\tB-person\nb\tO\n \nc\tO\n")
    for data_dir in (tmp_path, folder):
        args = arguments(tmp_path, "", task="wnut17", kind=None, data_dir=str(data_dir), max_eval_samples=1)
        task, splits = load(args)
        assert len(task.labels) == 13 and {k: len(v) for k, v in splits.items()} == {
            "train": 2,
            "validation": 1,
            "test": 2,
        }
    assert splits["test"]["tags"][0] == []
    (folder / "dev.conll").unlink()
    with pytest.raises(ValueError, match=r"wnut17/dev.conll: no such file"):
        load(args)
    with pytest.raises(ValueError, match="is not a folder"):
        load(arguments(tmp_path, "", task="wnut17", data_dir=str(tmp_path / "nowhere")))


def on_hub(words, ids, names, column):
    features = Features({"tokens": List(Value("string")), column: List(ClassLabel(names=names))})
    return Dataset.from_dict({"tokens": words, column: ids}, features=features)


def test_the_hub_has_words_and_numbers_of_tags(tmp_path, monkeypatch):
    names = ["O", "B-person", "I-person", *data.bio("corporation", "creative-work", "group", "location", "product")[1:]]
    rows = on_hub([["a", "b"], ["c"]], [[1, 2], [0]], names, "ner_tags")
    hub = DatasetDict({"train": rows, "validation": rows, "test": rows})
    monkeypatch.setattr(tagging, "load_hub", lambda *_: hub)
    args = arguments(tmp_path, "", task="wnut17")
    task, splits = load(args)
    assert [task.labels[i] for i in splits["train"]["tags"][0]] == ["B-person", "I-person"]
    assert splits["test"]["lines"][0] == ["a\tB-person", "b\tI-person"] and splits["test"]["tags"][0] == []
    hub["train"] = on_hub([["a"], []], [[1], []], names, "ner_tags")  # what stands behind a file's last blank line
    assert load(args)[1]["train"]["words"][:] == [["a"]]
    hub["train"] = on_hub([["a\u00a0b", "\u3000", "c\t\nd"]], [[1, 2, 0]], names, "ner_tags")
    assert load(args)[1]["train"]["words"][0] == ["a\u00a0b", "\u3000", "c d"]
    for words, ids, said in (
        ([["a"], [], ["b"]], [[1], [], [1]], "row 2: an empty sentence"),
        ([["a", None]], [[1, 0]], "row 1: word 2 is null"),
        ([["a"], ["b", "c"]], [[1], [0, 2]], "row 2, word 2: I-person follows O"),
    ):
        hub["train"] = on_hub(words, ids, names, "ner_tags")
        with pytest.raises(ValueError, match=said):
            load(args)
    hub["train"] = on_hub([["a"]], [[0]], ["NN"], "ner_tags")
    with pytest.raises(ValueError, match="leondz/wnut_17 train, row 1: the tag 'NN' follows no scheme"):
        load(args)
    hub["train"] = rows.rename_column("ner_tags", "labels")
    with pytest.raises(ValueError, match=r"needs a column 'tokens' .* \(--text_columns\) and a column 'ner_tags'"):
        load(args)


FRUIT = ["O", "I-pear", "B-pear", "B-apple", "I-apple"]


@pytest.fixture
def own_hub(monkeypatch):
    """own_hub(rows, *options): the task, its splits and the options of a data set of the hub with these rows."""

    def get(rows, *options, hub="owner/fruit:small"):
        asked = []
        monkeypatch.setattr(
            data,
            "load_hub",
            lambda *given: asked.append(given[0]) or DatasetDict(dict.fromkeys(("train", "dev", "test"), rows)),
        )
        args = distill_finetune.build_parser().parse_args(
            [*f"--task custom --kind token --student x --hub_dataset {hub} --validation_split dev".split(), *options]
        )
        distill_finetune.check_args(args)
        task, splits = kinds.chosen(args).read(args, readers.Skipped())
        assert asked == [(hub.partition(":")[0], hub.partition(":")[2] or None)] == [task.hub]
        return task, splits, args

    return get


def test_words_of_any_data_set_of_the_hub(own_hub):
    words, ids = [["an", "apple"], ["a", "ripe", "pear"]], [[0, 3], [0, 2, 1]]
    rows = on_hub(words, ids, FRUIT, "ner_tags")
    task, splits, args = own_hub(rows, "--do_predict")
    assert task.labels == ("O", "B-pear", "I-pear", "B-apple", "I-apple")  # in the order of the hub's names
    assert args.dataset_name == "fruit-small" and splits["train"]["words"][:] == splits["test"]["words"][:] == words
    found = [[task.labels[i] for i in tags] for tags in splits["validation"]["tags"]]
    assert found == [["O", "B-apple"], ["O", "B-pear", "I-pear"]]
    assert splits["test"]["tags"][:] == [[], []]
    tags = [[FRUIT[i] for i in row] for row in ids]
    plain = Dataset.from_dict({"text": words, "label": tags, "tokens": [["x"], ["y"]]})
    task, splits, args = own_hub(plain, hub="owner/wnut17")
    assert task.labels == ("O", "B-apple", "I-apple", "B-pear", "I-pear") and args.dataset_name == "owner-wnut17"
    assert splits["train"]["words"][:] == words and "test" not in splits
    task, splits, _ = own_hub(
        plain.rename_columns({"text": "w", "label": "t"}), "--text_columns", "w", "--label_column", "t"
    )
    assert splits["train"]["words"][:] == words and len(task.labels) == 5


@pytest.mark.parametrize(
    "columns, options, said",
    [
        ({"tokens": ["a b"], "ner_tags": [["O", "O"]]}, (), "needs a column 'tokens' of lists of words"),
        ({"tokens": [["a"]], "ner_tags": [[1]]}, (), "'ner_tags' of lists of tags, as text or as numbers with names"),
        ({"tokens": [["a"]], "pos": [["O"]]}, (), "--label_column.*; there are tokens, pos"),
        (
            {"tokens": [["a"], ["b"]], "ner_tags": [["B-x"], ["NN"]]},
            (),
            "fruit:small train, row 2: the tag 'NN' follows no scheme",
        ),
        ({"tokens": [["a"]], "ner_tags": [["O"]]}, ("--text_columns", "a", "b"), "name the column of words by"),
        ({"tokens": [["a"]], "ner_tags": [["O"]]}, ("--token_column", "2"), "name the column of words by"),
    ],
)
def test_rows_without_lists_of_words_and_tags_are_refused(own_hub, columns, options, said):
    with pytest.raises(ValueError, match=said):
        own_hub(Dataset.from_dict(columns), *options)


# --- words, pieces, windows -----------------------------------------------------------------------------------------

LINES = [
    "the quick brown fox jumps over the lazy dog",
    "unbelievable happenings in New York City , said Dr. O'Neill",
    "naïve café 東京 10 000 #hashtag",
]
SENTENCES = [line.split() for line in LINES] + [
    ["New", "York's", "10 000", "cafe\u0301", "\u200b", "don't", "#hash-tag", "東京", "😀😀"],
    ["\u200d"],
    ["a", "\u00ad", "\ufe0f", "b"],
    ["#"],
]
TOKENIZERS = {
    "bert": (
        "WordPiece",
        {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
    ),
    "roberta": ("BPE", ROBERTA_WORDS),
    "xlm-roberta": ("Unigram", ROBERTA_WORDS),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    made = make_tokenizer(*TOKENIZERS[request.param], LINES * 4)
    if request.param == "bert":
        from tokenizers import normalizers

        made.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    return made


def test_all_pieces_are_those_of_the_text(tokenizer):
    for words, cut in zip(SENTENCES, tagging.pieces(SENTENCES, tokenizer), strict=True):
        text = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        assert len(cut) == len(words) and [*itertools.chain(*cut)] == text
        for at, (word, ids) in enumerate(zip(words, cut, strict=True)):  # cut alone, as any word after another is
            lone = tokenizer((". " if at else "") + word, add_special_tokens=False)["input_ids"]
            assert ids == lone[len(lone) - len(ids) :], word


def test_words_without_any_piece_are_the_unknown_word():
    made = make_tokenizer(*TOKENIZERS["bert"], LINES)
    from tokenizers import normalizers

    made.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    sentences = Dataset.from_dict({"words": [["the", "\u200d", "dog"]], "tags": [[1, 2, 3]]})
    cut, unknown, _ = tagging.windows(sentences, made, 16)
    ((_, the, *_),), ((*places,),) = cut["input_ids"], cut["places"]
    assert unknown == 1 and cut["input_ids"][0][places[1]] == made.unk_token_id != the
    assert [cut["labels"][0][place] for place in places] == [1, 2, 3]
    made.unk_token = None
    with pytest.raises(ValueError, match=r"drops the word '\\u200d'"):
        tagging.windows(sentences, made, 16)


@pytest.mark.parametrize("room", [1, 2, 4, 9, 40])
def test_windows_own_every_word_once_and_fit(room):
    draw = random.Random(room)
    for _ in range(200):
        sizes = [draw.choice((1, 1, 2, 3, min(7, room))) for _ in range(draw.randint(1, 60))]
        sizes = [min(size, room) for size in sizes]
        found = tagging.spans(sizes, room)
        owned = [word for _, first, last, _ in found for word in range(first, last)]
        assert owned == list(range(len(sizes)))
        for start, first, last, end in found:
            assert 0 <= start <= first < last <= end <= len(sizes) and sum(sizes[start:end]) <= room
        if sum(sizes) <= room:
            assert found == [(0, 0, len(sizes), len(sizes))]


def test_inner_words_have_context_on_both_sides():
    for start, first, last, end in tagging.spans([1] * 100, 16)[1:-1]:
        assert (first - start, end - last) == (4, 4)


def test_long_sentences_lose_no_word(tokenizer):
    sentences = Dataset.from_dict(
        {
            "words": [SENTENCES[3] * 9, ["a"], SENTENCES[1]],
            "tags": [[i % 5 for i in range(81)], [4], list(range(10))],
            "lines": [[]] * 3,
            "head": [[]] * 3,
        }
    )
    cut, unknown, _ = tagging.windows(sentences, tokenizer, 16)
    assert max(map(len, cut["input_ids"])) <= 16 and len(cut) > 5
    arrays = batching.Arrays(cut, batching.TRAINING)
    batch = arrays.batch(range(len(cut)), 0)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert ((batch["labels"] != -100) <= (batch["attention_mask"] == 1)).all()
    # The model that says what the labels say, and nonsense elsewhere: the words come back as they were.
    said = torch.where(batch["labels"] == -100, 7, batch["labels"])
    assert tagging.joined(cut, said, sentences["words"]) == sentences["tags"]
    assert (batch["labels"] != -100).sum() == 92
    for ids, labels in zip(cut["input_ids"], cut["labels"], strict=True):
        assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
        assert labels[0] == labels[-1] == -100
    assert (unknown > 0) == (tokenizer.unk_token == "[UNK]")


def test_a_word_longer_than_a_window_is_predicted_too(tokenizer):
    sentences = Dataset.from_dict(
        {"words": [["so", "unbelievablehappenings" * 4, "fox"]], "tags": [[1, 2, 3]], "lines": [[]], "head": [[]]}
    )
    cut, _, cut_off = tagging.windows(sentences, tokenizer, 10)
    assert max(map(len, cut["input_ids"])) == 10 and cut_off == 1
    batch = batching.Arrays(cut, batching.TRAINING).batch(range(len(cut)), 0)
    assert tagging.joined(cut, batch["labels"], sentences["words"]) == [[1, 2, 3]]


# --- losses ---------------------------------------------------------------------------------------------------------


def test_losses_are_means_over_first_pieces_and_padding_counts_nothing():
    torch.manual_seed(0)
    kind, args = kinds.KINDS["token"](data.TASKS["wnut17"]), argparse.Namespace(temperature=2.0)
    student, teacher = torch.randn(2, 3, 5, 13, dtype=torch.float32).unbind()
    student.requires_grad_()
    labels = torch.full((3, 5), -100)
    labels[0, 1], labels[0, 3], labels[1, 2] = 4, 0, 12
    mask = torch.ones(3, 5)
    views = [losses.ModelView({"logits": x}, (), mask, kind=kind) for x in (student, teacher)]
    words = [(0, 1), (0, 3), (1, 2)]
    hard = sum(-student[i, j].log_softmax(-1)[labels[i, j]] for i, j in words) / 3
    torch.testing.assert_close(kind.hard_loss(views[0].logits, labels), hard)
    soft = kind.soft_loss(*views, {"labels": labels}, args)
    by_hand = [
        (teacher[w] / 2).softmax(-1) * ((teacher[w] / 2).log_softmax(-1) - (student[w] / 2).log_softmax(-1))
        for w in words
    ]
    torch.testing.assert_close(soft, 4 * sum(x.sum() for x in by_hand) / 3)
    (gradient,) = torch.autograd.grad(soft, student)
    assert {tuple(i) for i in gradient.abs().sum(-1).nonzero().tolist()} == set(words)
    for empty in (
        kind.soft_loss(*views, {"labels": torch.full((3, 5), -100)}, args),
        kind.hard_loss(views[0].logits, torch.full((3, 5), -100)),
        kind.hard_loss(views[0].logits[:0], labels[:0]),
    ):
        assert empty.item() == 0 and empty.requires_grad


# --- whole runs -----------------------------------------------------------------------------------------------------


def write_sentences(path, count, seed, scheme="BIO"):
    """Names of two types among the words of the artificial language: the words before them tell which."""
    draw, lines = random.Random(seed), []
    for i in range(count):
        if i % 8 == 0:
            lines += ["-DOCSTART- -X- O", ""]
        for _ in range(draw.choice((1, 1, 2, 12))):
            kind, size = draw.choice(("place", "person")), draw.choice((1, 2))
            lines += [f"{'in' if kind == 'place' else 'the'} X O"]
            first = "B" if scheme == "BIO" else "I"
            lines += [f"{draw.choice(('dog', 'cat', 'bird'))} X {first if j == 0 else 'I'}-{kind}" for j in range(size)]
        lines.append("")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    return [
        write_sentences(folder / f"{name}.txt", n, seed)
        for seed, (name, n) in enumerate((("train", 65), ("dev", 20), ("test", 8)))
    ]


@pytest.fixture
def run(world, files):
    def run(folder, *options):
        AcceleratorState._reset_state(reset_partial_state=True)
        train, dev, test = map(str, files)
        distill_finetune.main(
            [
                *(
                    f"--task custom --kind token --train_file {train} --validation_file {dev} "
                    f"--test_file {test} --num_train_epochs 1 --per_device_train_batch_size 16 "
                    f"--max_seq_length 16 --logging_steps 2 --output_dir {folder}"
                ).split(),
                *map(str, options),
            ]
        )
        return json.loads((folder / "run.json").read_text())

    return run


@pytest.fixture(scope="module")
def tagger(world, files, tmp_path_factory):
    """Folder of a trained teacher of words."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    AcceleratorState._reset_state(reset_partial_state=True)
    train, dev, _ = map(str, files)
    distill_finetune.main(
        (
            f"--task custom --kind token --train_file {train} --validation_file {dev} "
            f"--student {world}/bert --num_train_epochs 3 --learning_rate 2e-3 "
            "--per_device_train_batch_size 16 --max_seq_length 16 --run_name teacher "
            f"--output_dir {folder}"
        ).split()
    )
    return folder


def columns_of(path):
    lines = path.read_text().splitlines()
    return [[line.split() for line in group] for full, group in itertools.groupby(lines, key=bool) if full]


def test_every_word_is_predicted_whatever_it_looks_like(run, world, tmp_path):
    path = tmp_path / "odd.txt"
    path.write_text("the\n" + "\n".join(LOOK_BLANK) + "\ndog\n\n\u3000\ncat\n", encoding="utf-8")
    run(tmp_path / "run", "--student", world / "bert", "--max_steps", "1", "--test_file", path, "--do_predict")
    text = (tmp_path / "run" / "predictions.test.conll").read_text(encoding="utf-8")
    assert [line.rsplit(" ", 1)[0] for line in text.split("\n") if line] == ["the", *LOOK_BLANK, "dog", "\u3000", "cat"]


CKD = ("--student_layers", "2", "--terms", "ckd", "--hard_weight", "0.5")


def test_a_whole_run(run, tagger, files, tmp_path):
    folder = tmp_path / "run"
    record = run(folder, "--teacher", tagger, *CKD, "--do_predict", "--learning_rate", "2e-3")
    assert record["status"] == "complete" and record["metric"] == "f1"
    model = AutoModelForTokenClassification.from_pretrained(folder)
    assert model.config.id2label == dict(enumerate(["O", "B-person", "I-person", "B-place", "I-place"]))
    best = record["best"]["metrics"]
    assert set(best) == {f"{m}{t}" for m in ("f1", "precision", "recall") for t in ("", "/person", "/place")}
    assert json.loads((tagger / "run.json").read_text())["best"]["score"] > 0.4  # it can be learned
    for path, name in ((files[1], "predictions.conll"), (files[2], "predictions.test.conll")):
        rows, read = columns_of(folder / name), columns_of(path)
        assert [[row[:-1] for row in group] for group in rows] == read, "the columns of the input stay"
        rows = [group for group in rows if group[0][0] != "-DOCSTART-"]
        if path == files[1]:
            golds, found = ([[row[i] for row in group] for group in rows] for i in (-2, -1))
            assert conlleval(golds, found) == pytest.approx(best)
    assert "f1:" in (folder / "README.md").read_text()
    # As the saved model itself tags them.
    words = AutoTokenizer.from_pretrained(folder)
    group = min(rows, key=len)
    inputs = words(" ".join(row[0] for row in group), return_tensors="pt", return_offsets_mapping=True)
    begins = [begin for begin, _ in inputs.pop("offset_mapping")[0].tolist()]
    ids = model.eval()(**inputs).logits[0].argmax(-1)
    starts = itertools.accumulate((len(row[0]) + 1 for row in group[:-1]), initial=0)
    first = [1 + begins[1:].index(start) for start in starts]
    assert [model.config.id2label[ids[i].item()] for i in first] == [row[-1] for row in group]


def test_a_resumed_run_with_a_cached_teacher_has_the_losses_of_the_teacher_itself(
    run, tagger, tmp_path, cut_at, monkeypatch
):
    monkeypatch.setattr(teacher_cache, "FOLDER", tmp_path / "cache")
    options = ("--teacher", tagger, *CKD, "--save_steps", "2", "--max_steps", "4", "--logging_steps", "1")
    run(tmp_path / "direct", *options)
    cut_at(4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cached", *options, "--cache_teacher")
    assert run(tmp_path / "cached", *options, "--cache_teacher")["time"]["sessions"] == 2
    direct, cached = terms_of(tmp_path / "direct"), terms_of(tmp_path / "cached")
    assert set(direct) == set(cached) and {"loss/hard", "loss/logits", "loss/wr_triple"} <= set(direct)
    for tag in direct:
        assert cached[tag] == pytest.approx(direct[tag], rel=2e-3, abs=1e-7), tag


@pytest.mark.parametrize(
    "options, said",
    [
        (["--text_columns", "a"], "--text_columns is for texts"),
        (["--token_column", "0"], "--token_column '0' must be a column's number"),
        (["--label_column", "ner"], "--label_column 'ner' must be a column's number"),
        (["--label_column", "9"], "train.txt, line 3: no --label_column 9: the line has 3 columns"),
        (["--label_separator", ";"], "--label_separator is for"),
        (
            ["--kind", "tokens"],
            "--kind 'tokens' is not one of: classification, regression, multilabel, similarity, token",
        ),
        (["--kind", "qa"], "--kind 'qa' is not one of"),
        (["--regression"], "--regression and --kind token exclude each other"),
        (["--task", "wnut17"], "--train_file is for --task custom"),
    ],
)
def test_impossible_options_are_one_line(run, world, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "run", "--student", world / "bert", *options)
    assert not (tmp_path / "run").exists()


def test_options_of_words_are_refused_elsewhere(finetune, world, tmp_path):
    for options, said in (
        (["--token_column", "2"], "--token_column is for tasks of words"),
        (["--kind", "token"], "--kind is for --task custom, not cola"),
    ):
        with pytest.raises(ValueError, match=said):
            finetune("--student", world / "bert", *options, "--output_dir", tmp_path / "run")


def test_a_task_without_test_set_predicts_nothing(finetune, world, files, tmp_path):
    (tmp_path / "train.txt").write_text("a X B-NP\n")
    (tmp_path / "test.txt").write_text("a X B-NP\n")
    with pytest.raises(ValueError, match="has no test set of conll2000"):
        finetune(
            *(
                f"--task conll2000 --data_dir {tmp_path} --student {world}/bert --do_predict "
                f"--output_dir {tmp_path}/run"
            ).split()
        )


# --- plain tags, CoNLL-U ----------------------------------------------------------------------------------------------

CONLLU = """# newdoc id = 1
# text = Im Haus # 2
1-2\tIm\t_\t_\t_\t_\t_\t_\t_\t_
1\tIn\tin\tADP\tAPPR\t_\t3\tcase\t_\t_
2\tdem\tder\tDET\tART\t_\t3\tdet\t_\t_
3\tHaus\tHaus\tNOUN\tNN\t_\t0\troot\t_\t_
3.1\tsteht\t_\tVERB\t_\t_\t_\t_\t_\t_
4\t#\t#\tSYM\t$\t_\t3\tdep\t_\t_
5\t10 000\t2\tNUM\tCD\t_\t3\tdep\t_\t_

# text = Ja
1\tJa\tja\tINTJ\tITJ\t_\t0\troot\t_\t_
"""


def test_conllu_skips_what_is_no_word(tmp_path):
    path = tmp_path / "x.conllu"
    path.write_text(CONLLU)
    first, second = tagging.read_columns(path, 1, "label", readers.Skipped(), None)
    assert first.words == ["In", "dem", "Haus", "#", "10 000"] and second.words == ["Ja"]
    assert first.tags == ["ADP", "DET", "NOUN", "SYM", "NUM"] and second.tags == ["INTJ"]
    (first, _) = tagging.read_columns(path, "lemma", "xpos", readers.Skipped(), None)
    assert first.words[:2] == ["in", "der"] and first.tags[:2] == ["APPR", "ART"]
    assert first.place(3).endswith("line 8")
    path.write_text(CONLLU.replace("\tSYM\t", "\t_\t"))
    with pytest.raises(ValueError, match="line 8: the tag in column 4 is empty"):
        tagging.read_columns(path, 1, "label", readers.Skipped(), None)


def test_a_training_set_without_a_scheme_has_plain_tags(tmp_path):
    task, splits = load(arguments(tmp_path, "a O\nb VB\n\nc 10\nd NN-P\n", "d NN-P\nb O\n"))
    assert task.labels == ("10", "NN-P", "O", "VB") and task.metrics == ("accuracy",)
    assert splits["validation"]["tags"] == [[1, 2]]
    assert load(arguments(tmp_path, "a 10\nb 9\n", "b 9\n"))[0].labels == ("9", "10")
    for train, dev, said in (
        ("a O\nb VB\nc B-X\n", "a O\n", "line 2: the tag 'VB' follows no scheme"),
        ("a O\nb VB\n", "a O\nb B-X\n", "line 2: unknown tag 'B-X'; the tags of this task are O, VB"),
        ("a O\nb O\n", "a O\n", "every tag is O"),
        ("a N\nb N\n", "a N\n", "every tag is N"),
    ):
        with pytest.raises(ValueError, match=said):
            load(arguments(tmp_path, train, dev))
    with pytest.raises(ValueError, match="plain tags are scored by accuracy"):
        load(arguments(tmp_path, "a N\nb V\n", "a N\n", metrics=["f1"]))
    with pytest.raises(ValueError, match="scheme are scored by f1"):
        load(arguments(tmp_path, "a O\nb B-X\n", "a O\n", metrics=["accuracy"]))


def test_a_whole_run_on_conllu(world, tmp_path):
    words = (world / "glue/CoLA/dev.tsv").read_text().splitlines()[0].split("\t")[3].split()
    path = tmp_path / "x.conllu"
    path.write_text(
        "# c\n" + "".join(f"{i}\t{w}\t_\t{'AB'[i % 2]}" + "\t_" * 6 + "\n" for i, w in enumerate(words * 9, 1)) + "\n"
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    options = (f"--task custom --kind token --train_file {path} --validation_file {path} --test_file {path}").split()
    options += ["--student", world / "bert", "--max_steps", "2", "--max_seq_length", "16", "--do_predict"]
    distill_finetune.main([*map(str, options), "--output_dir", str(tmp_path / "run")])
    lines = (tmp_path / "run/predictions.conll").read_text().split("\n")
    pairs = [line.split("\t") for line in lines if line]
    assert len(pairs) == 9 * len(words) and {len(row) for row in pairs} == {11}
    best = json.loads((tmp_path / "run/run.json").read_text())["best"]["metrics"]
    assert best["accuracy"] == pytest.approx(sum(row[3] == row[10] for row in pairs) / len(pairs))
    assert (tmp_path / "run/predictions.test.conll").read_text().count("\n") == len(lines) - 1


# --- pieces ----------------------------------------------------------------------------------------------------------

WORDS = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
PIECES_LINES = [
    "the quick brown fox (and a cat), said Dr. O'Neill's friend in New-York for $10,000 I think",
    "naïve cafe\u0301s e\u0323\u0301 ﬁne oﬃce ½ ① ǆ ß ﷺ Ω İs 東京タワー ｶﾞ 北京。 한국어 \u1112\u1161\u11ab",
    "हिन्दी शंख में שָׁלוֹם กำไทย น้ำ 😀😀 👨\u200d👩\u200d👧 x\u00ady a\u200db y\ufe0f",
]
TEMPLATE = processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
)


def learned(model, cut, normalizer=None, processor=TEMPLATE, **options):
    """A small tokenizer of a model, a pre-tokenizer and a normalizer, learned from LINES."""
    kind, trainer = {
        "bpe": (token_models.BPE, trainers.BpeTrainer),
        "word": (token_models.WordPiece, trainers.WordPieceTrainer),
        "unigram": (token_models.Unigram, trainers.UnigramTrainer),
    }[model]
    tokenizer = Tokenizer(kind(**{} if model == "unigram" else {"unk_token": "<unk>"}))
    if cut:
        tokenizer.pre_tokenizer = cut
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(
        PIECES_LINES * 4, trainer(vocab_size=480, special_tokens=list(WORDS.values()), show_progress=False, **options)
    )
    tokenizer.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **WORDS)


def of_bytes(*cut, prefix=True, trim=True, **options):
    """Byte-level BPE as RoBERTa has it, behind pre-tokenizers of its own as RobBERT has them."""
    cut = pre.Sequence([*cut, pre.ByteLevel(add_prefix_space=prefix)])
    ends = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=trim, add_prefix_space=prefix)
    return learned("bpe", cut, **{"processor": ends, **options}, initial_alphabet=pre.ByteLevel.alphabet())


def of_sentences(cut, **options):
    return learned("unigram", cut, **options, unk_token="<unk>")


SPLIT = pre.WhitespaceSplit(), pre.Punctuation()
MAKES = {
    "bert": lambda: learned("word", pre.BertPreTokenizer(), norm.BertNormalizer()),
    "bert cased": lambda: learned("word", pre.BertPreTokenizer(), norm.BertNormalizer(lowercase=False)),
    "word pieces of NFC": lambda: learned("word", pre.BertPreTokenizer(), norm.NFC()),
    "gpt2": lambda: of_bytes(
        prefix=False, processor=processors.Sequence([processors.ByteLevel(trim_offsets=False), TEMPLATE])
    ),
    "gpt2 trimmed": lambda: of_bytes(
        prefix=False,
        processor=processors.Sequence([processors.ByteLevel(trim_offsets=True, add_prefix_space=False), TEMPLATE]),
    ),
    "roberta": lambda: of_bytes(prefix=False),
    "roberta with prefix": lambda: of_bytes(),
    "roberta with prefix, untrimmed": lambda: of_bytes(trim=False),
    "modernbert": lambda: of_bytes(prefix=False, processor=TEMPLATE, normalizer=norm.NFC()),
    "robbert": lambda: of_bytes(*SPLIT),
    "robbert, untrimmed": lambda: of_bytes(*SPLIT, trim=False),
    "robbert without prefix": lambda: of_bytes(*SPLIT, prefix=False),
    "robbert of regular expressions": lambda: of_bytes(pre.Whitespace()),
    "robbert in a sequence": lambda: of_bytes(
        *SPLIT, processor=processors.Sequence([processors.ByteLevel(trim_offsets=True), TEMPLATE])
    ),
    "robbert of NFKC": lambda: of_bytes(*SPLIT, normalizer=norm.NFKC()),
    "xlm-roberta": lambda: of_sentences(
        pre.Metaspace(), normalizer=norm.Sequence([norm.Nmt(), norm.NFKC(), norm.Replace(Regex(" {2,}"), " ")])
    ),
    "unigram": lambda: of_sentences(pre.Metaspace()),
    "unigram of split words": lambda: of_sentences(pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()])),
    "albert": lambda: of_sentences(
        pre.Metaspace(), normalizer=norm.Sequence([norm.Strip(), norm.NFKD(), norm.StripAccents(), norm.Lowercase()])
    ),
    "llama": lambda: learned("bpe", None, norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")])),
}
ACROSS_BLANKS = {"llama"}  # whose pieces may hold the end of a word and the next
FOR_TEXTS = {"gpt2", "gpt2 trimmed", "roberta", "modernbert", "llama"}  # cut a given word as if no blank were before it


@pytest.fixture(scope="module", params=MAKES)
def make(request):
    return request.param, MAKES[request.param]()


def random_text(draw, count):
    """(words, text): words of LINES, some decomposed, between them a blank or several."""
    words = [draw.choice(" ".join(PIECES_LINES).split()) for _ in range(count)]
    words = [unicodedata.normalize("NFD", word) if draw.random() < 0.2 else word for word in words]
    return words, "".join(word + draw.choice((" ", " ", " ", "  ", "\u00a0", "\n")) for word in words).strip()


def in_words(text, begin, end):
    """Where the words begin and end in which the characters begin:end stand."""
    blank = [i for i, c in enumerate(text) if c.isspace()]
    return max((i + 1 for i in blank if i < begin), default=0), min((i for i in blank if i >= end), default=len(text))


def begins_letter(text, i):
    """Whether the character i is no combining mark, and no vowel or final consonant of a Korean syllable."""
    inner = "HANGUL JUNGSEONG", "HANGUL JONGSEONG"
    return unicodedata.category(text[i])[0] != "M" and not unicodedata.name(text[i], "").startswith(inner)


@pytest.mark.parametrize("length", [28, 300])
def test_an_answers_tokens_give_its_text(make, tmp_path, length):
    """Answers from any letter to any other: all of them, and of no other word; whole words exactly."""
    name, tokenizer = make
    draw, rows = random.Random(1), []
    for number in range(60):
        _, text = random_text(draw, draw.randint(1, 14))
        letters = [i for i, c in enumerate(text) if c.isprintable() and c != " " and begins_letter(text, i)]
        begin, last = sorted(draw.choices(letters, k=2))
        begin, end = in_words(text, begin, begin + 1) if number % 2 else (begin, last + 1)
        rows.append(
            {"id": str(number), "question": "who ?", "context": text, "texts": [text[begin:end]], "starts": [begin]}
        )
    args = argparse.Namespace(max_seq_length=length, max_query_length=8, doc_stride=12)
    before = tokenizer.backend_tokenizer.to_str()
    cut = squad.windows(Dataset.from_list(rows, features=squad.FEATURES), tokenizer, args, tmp_path)
    assert tokenizer.backend_tokenizer.to_str() == before
    answered = set()
    for window in cut:
        row = rows[window["question"]]
        if not window["start_positions"]:
            continue
        text, (begin,), (answer,) = row["context"], row["starts"], row["texts"]
        first, last = (window["offsets"][window[key]] for key in ("start_positions", "end_positions"))
        found = text[first[0] : last[1]]
        assert first[0] <= begin and begin + len(answer) <= last[1], (answer, found)
        assert found == found.strip() and found
        if name not in ACROSS_BLANKS:
            left, right = in_words(text, begin, begin + len(answer))
            assert left <= first[0] and last[1] <= right, (answer, found)
            if (left, right) == (begin, begin + len(answer)):
                assert found == answer and window["answer"] == squad.EXACT
        answered.add(window["question"])
    assert len(answered) == len(rows) or (length < 100 and len(answered) > len(rows) / 3)


def test_a_words_pieces_are_its_own(make):
    """Those that it has alone, behind a blank where one is before it; whatever blanks are words, or in them."""
    name, tokenizer = make
    draw, same = random.Random(2), 0
    odd = ["\u00a0", "\u3000", "\u2028", "\x85", "\x1f", "\x0b", "\u200d", "10 000", "a\u00a0b", "\u00b4", "\u0301"]
    for _ in range(60):
        words, _ = random_text(draw, draw.randint(1, 14))
        words = [draw.choice(odd) if draw.random() < 0.1 else word for word in words]
        ((*cut,),) = tagging.pieces([words], tokenizer)
        whole = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        assert len(cut) == len(words) and [*itertools.chain(*cut)] == whole
        if name in ACROSS_BLANKS:
            continue
        for i, (word, ids) in enumerate(zip(words, cut, strict=True)):
            if word not in odd and not (i and words[i - 1] in odd) and not (i + 1 < len(words) and words[i + 1] in odd):
                assert ids == tokenizer((" " if i else "") + word, add_special_tokens=False)["input_ids"], word
        given = tokenizer(words, is_split_into_words=True, add_special_tokens=False)
        if given["input_ids"] == whole:
            same += 1
            assert cut == [
                [piece for piece, at in zip(whole, given.word_ids(), strict=True) if at == i] for i in range(len(words))
            ]
    assert same > 40 or name in FOR_TEXTS


# --- vocabularies with duplicates and holes -------------------------------------------------------------------------


def word_pieces(folder, words, **config):
    """Folder of a tiny BERT whose vocab.txt has these words, and no other file of a tokenizer unless config has any."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=len(special) + len(words), **shape)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join([*special, *words]) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


LETTERS = "abcdefghij"
# A word twice makes a hole: the later number is the word's. 300 holes, and 10 words behind them.
TWICE = [*LETTERS * 30, "##x", "##y", *LETTERS, "##y"]


def test_the_largest_id_counts_where_words_stand_twice(tmp_path):
    folder = word_pieces(tmp_path / "m", TWICE)
    tokenizer = models.load_tokenizer(folder)
    assert len(tokenizer) == 17 and len(TWICE) == 313
    (tmp_path / "text.txt").write_text("a bx cyx\nj ixy h\n" * 50)
    blocks = plain_text.load_blocks(str(tmp_path / "text.txt"), tokenizer, 8, 1, tmp_path / "cache")
    assert set(itertools.chain(*blocks["input_ids"])) == {2, 3, 305, 307, 308, 309, 314, 315, 316, 317}
    starts = plain_text.word_starts(tokenizer)
    assert len(starts) == 318 and np.flatnonzero(~starts).tolist() == [305, 317]


def test_only_a_vocabulary_of_word_pieces_has_inner_pieces():
    """RoBERTa's has the words ## and ####, which are no inner pieces."""
    bytes_ = of_bytes()
    bytes_.add_tokens(["##", "####"])
    for tokenizer in (bytes_, learned("word", pre.BertPreTokenizer(), continuing_subword_prefix="")):
        with pytest.raises(ValueError, match="needs a WordPiece vocabulary"):
            plain_text.word_starts(tokenizer)


def test_whole_words_of_such_a_vocabulary_are_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a bx cyx\nj ixy h\n" * 60)
    AcceleratorState._reset_state(reset_partial_state=True)
    distill_pretrain.main(
        [
            "--student",
            word_pieces(tmp_path / "m", TWICE),
            "--corpus",
            "text.txt",
            "--whole_word_mask",
            "--seq_length",
            "8",
            "--max_steps",
            "2",
            "--per_device_train_batch_size",
            "4",
            "--output_dir",
            "run",
        ]
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"
    saved = models.load_tokenizer("run")
    assert saved("a bx")["input_ids"] == models.load_tokenizer("m")("a bx")["input_ids"]


# --- capitals -------------------------------------------------------------------------------------------------------

CASED = ["the", "cat", "The", "CAT", "##S", "##s", "Éire"]


def said_of(folder, capsys):
    """(what is printed while the tokenizer of a folder is loaded, pieces of a text)."""
    capsys.readouterr()
    found = models.load_tokenizer(folder).tokenize("The CATS")
    return capsys.readouterr().err, found


def test_a_cased_vocabulary_that_is_lower_cased_is_named_with_the_remedy(tmp_path, capsys):
    bare = word_pieces(tmp_path / "bare", CASED)
    said, found = said_of(bare, capsys)
    assert found == ["the", "cat", "##s"] and said.count("\n") == 1
    assert f"tokenizer of {bare!r} lower-cases every text, so 4 of its 12 words, such as 'The', never occur" in said
    for config in ({"do_lower_case": False}, {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}):
        (tmp_path / "bare" / "tokenizer_config.json").write_text(json.dumps(config))  # the remedy
        assert said_of(bare, capsys) == ("", ["The", "CAT", "##S"])
    models.load_tokenizer(bare).save_pretrained(bare)
    (tmp_path / "bare" / "tokenizer_config.json").unlink()  # tokenizer.json alone does not keep the capitals
    said, found = said_of(bare, capsys)
    assert ("never occur" in said) == (found != ["The", "CAT", "##S"])


def test_nothing_is_said_of_an_uncased_vocabulary(tmp_path, capsys, world):
    """Special words have capitals everywhere, and a rare letter has got a small one since the vocabulary was made."""
    words = [*(a + b for a in LETTERS for b in "klmnopqrst"), *"stuvwxyz", "\u13a0"]
    assert said_of(word_pieces(tmp_path / "m", words), capsys)[0] == "" == said_of(str(world / "bert"), capsys)[0]
    for name in ("bert", "bert cased", "robbert", "xlm-roberta", "albert"):
        MAKES[name]().save_pretrained(tmp_path / name)
        assert said_of(str(tmp_path / name), capsys)[0] == ""
