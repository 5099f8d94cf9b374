"""What a run says of its data before it trains, beside counts made by hand; labels that are a slip are refused."""

import argparse
import json
import types

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

import data
import distill_finetune
from tasks import kinds, overview, readers


def said(world, kind, splits, labels=(), length=8):
    """The overview's lines of text splits of a kind, by split."""
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")
    args = argparse.Namespace(max_seq_length=length, text_prefix="")
    of = types.SimpleNamespace(task=data.TASKS["custom"]._replace(labels=labels), headless=kind == "similarity")
    rows = {name: data.texts_apart(split) if of.headless else split for name, split in splits.items()}
    tokenised = {name: data.tokenize(split, tokenizer, length) for name, split in rows.items()}
    lines = overview.lines(of, splits, tokenised, tokenizer, args).splitlines()
    return dict(line.split(": ", 1) for line in lines), tokenizer


def rows(texts, labels, **more):
    return Dataset.from_dict({"text_a": texts, "label": labels, "idx": range(len(texts)), **more})


WORDS = ["the", "dog", "sees", "a", "big", "cat", "and", "the", "bird", "runs"]


@pytest.mark.parametrize("pair", [False, True])
def test_texts_that_are_cut_are_counted_as_tokenising_each_whole_says(world, pair):
    texts = [" ".join((WORDS * 3)[:count]) for count in (0, 1, 4, 5, 6, 7, 8, 30)]
    more = {"text_b": ["the cat"] * len(texts)} if pair else {}
    found, tokenizer = said(world, "classification", {"train": rows(texts, [0, 1] * 4, **more)}, ("no", "yes"))
    whole = [len(tokenizer(*row)["input_ids"]) for row in zip(texts, *more.values(), strict=True)]
    lost = [max(0, count - 8) for count in whole]
    cut = sum(map(bool, lost))
    assert 0 < cut < len(texts)
    share = 100 * sum(lost) / sum(whole)
    assert f"{cut} ({12.5 * cut:.1f} %) are longer than 8 tokens and cut, {share:.1f} % of all tokens" in found["train"]
    assert "; 1 (12.5 %) with an empty text" in found["train"]


def test_classes_and_texts_known_from_training_are_counted(world):
    train = rows(["a", "b", "b", "c", " \t"], [0, 0, 1, 0, 0])
    splits = {"train": train, "validation": rows(["b", "b", "d"], [1, 1, 1]), "test": rows(["a"], [-1])}
    found, _ = said(world, "classification", splits, ("no", "don't know"))
    assert found == {
        "train": '5 examples; 2 classes, largest no with 4 (80.0 %), smallest "don\'t know" with 1 (20.0 %); '
        "1 (20.0 %) with an empty text",
        "validation": '3 examples; 2 classes, largest "don\'t know" with 3 (100.0 %), smallest no with 0 (0.0 %); '
        "2 (66.7 %) with the same texts as in training",
        "test": "1 examples; no labels",
    }
    found, _ = said(world, "classification", {"train": train, "validation": rows(["c", "a"], [0, 1])}, ("x", "y"))
    assert found["validation"].endswith(
        "2 (100.0 %) with the same texts as in training: its scores say nothing about new texts, so evaluate on others"
    )
    pairs = {name: split.add_column("text_b", [name] * len(split)) for name, split in splits.items()}
    assert "as in training" not in said(world, "classification", pairs, ("x", "y"))[0]["validation"]


def test_numbers_several_labels_and_pairs_apart(world):
    assert said(world, "regression", {"train": rows(["a", "b"], [0.5, 4.0])})[0]["train"] == (
        "2 examples; labels from 0.5 to 4, mean 2.25"
    )
    several = rows(["a", "b", "c"], [[1, 0, 1], [1, 0, 0], [0, 0, 0]])
    assert (
        "3 classes, largest x with 2 (66.7 %), smallest y with 0"
        in (said(world, "multilabel", {"train": several}, ("x", "y", "z"))[0]["train"])
    )
    pair = rows([" ".join(WORDS)], [1.0], text_b=["dog"])
    assert "; 1 (50.0 %) are longer" in said(world, "similarity", {"train": pair})[0]["train"]


def test_words_and_questions_have_their_own_names():
    tags = Dataset.from_dict({"words": [["a", "b"], ["c"]], "tags": [[0, 1], [0]]})
    args, task = argparse.Namespace(max_seq_length=8), data.TASKS["custom"]
    kind = types.SimpleNamespace(task=task._replace(labels=("O", "B-x", "I-x")), headless=False)
    assert overview.lines(kind, {"train": tags, "validation": tags}, {}, None, args).splitlines()[0] == (
        "train: 2 sentences; 3 words, 3 classes, largest O with 2 (66.7 %), smallest I-x with 0 (0.0 %)"
    )
    asked = Dataset.from_dict({"question": ["a", "a"], "context": ["b", "c"], "texts": [["b"], []]})
    kind = types.SimpleNamespace(task=task, headless=False)
    assert overview.lines(kind, {"validation": asked}, {}, None, args) == (
        "validation: 2 questions; 1 (50.0 %) without an answer"
    )


def test_a_run_says_what_it_read_and_keeps_its_teachers_score(finetune, teacher, tmp_path, capsys):
    """On the same dev set the teacher has the scores of the run that made it."""
    options = ("--teacher", teacher, "--student_layers", "1", "--terms", "kd", "--max_steps", "1")
    finetune(*options, "--output_dir", tmp_path / "run", "--held_out", "0.25", "--max_eval_samples", "0")
    out = capsys.readouterr().out
    its, ours = (json.loads((folder / "run.json").read_text()) for folder in (teacher, tmp_path / "run"))
    own = ours["teacher"]["scores"]
    score = its["best"]["metrics"]["matthews_correlation"]
    assert own == pytest.approx({"matthews_correlation": score, "loss": its["history"][-1]["loss"]})
    assert its["teacher"] is None
    assert f"teacher on the dev set: matthews_correlation {own['matthews_correlation']:.4f}\n" in out
    for line in ("train: 72 examples; 2 classes, largest", "validation: 64 examples", "held_out: 24 examples"):
        assert f"\n{line}" in f"\n{out}"


@pytest.mark.parametrize(
    "labels, more, message",
    [
        (["pos", "neg", "Neg"], (), "line 4: the label 'Neg' is written 'neg' in line 3.*give two classes names"),
        (["['joy', 'fear']", "['joy']", "x"], (), "line 2: .*\"\\['joy', 'fear'\\]\", a list that was written as text"),
        (["['joy', 'fear']", "['joy']", "x"], ("--kind", "multilabel"), "a list that was written as text: write the"),
        (["[0, 1, 0]", "[1 0 0]", "x"], ("--kind", "multilabel"), "a list that was written as text"),
        (["[]", "x", "y"], ("--kind", "multilabel"), "a list that was written as text"),
    ],
)
def test_labels_that_are_a_slip_are_refused(tmp_path, labels, more, message):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n" + "".join(f"a {i}\t{label}\n" for i, label in enumerate(labels)))
    with pytest.raises(ValueError, match=message):
        load(path, *more)


def test_types_of_words_that_differ_in_case_only_are_refused(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("Ann B-per\n\nBob B-PER\n")
    with pytest.raises(ValueError, match="the types 'PER' and 'per' differ in case only"):
        load(path, "--kind", "token")
    path.write_text("Ann B-per\n\nBob B-person\n")
    assert load(path, "--kind", "token")[0].labels == ("O", "B-per", "I-per", "B-person", "I-person")


def load(path, *options):
    args = ["--task", "custom", "--student", "x", "--train_file", path, "--validation_file", path, *options]
    args = distill_finetune.build_parser().parse_args(list(map(str, args)))
    distill_finetune.check_args(args)
    return kinds.chosen(args).read(args, readers.Skipped())
