"""What a run shows while it trains: score lines, the dev set's loss, other trackers, and when it evaluates. Model
cards: what huggingface_hub's own parser reads in them. What a run says of its data before it trains, beside counts
made by hand; labels that are a slip are refused.
"""

import argparse
import io
import json
import re
import sys
import types

import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from datasets import Dataset
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import data
import distill_finetune
import distill_pretrain
import training
from engine import card, command_line, log, run_folder
from tasks import kinds, overview, readers


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def test_every_evaluation_is_a_line_on_the_screen_with_the_loss_on_the_labels(finetune, world, tmp_path, capsys):
    folder = tmp_path / "runs" / "cola" / "finetune" / "seed1"
    finetune("--student", world / "bert", "--output_dir", folder)
    out, err = capsys.readouterr()
    first, *lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert first.startswith("step 0: matthews_correlation ") and first.endswith(" (before training)")
    history = record_of(folder)["history"]
    assert [line.split(" (epoch")[0] for line in lines] == [
        f"step {e['step']}: matthews_correlation {e['score']:.4f}, loss {e['loss']:.4f}" for e in history
    ]
    assert "(epoch 1.00, the best so far)" in lines[0] and "matthews" not in err
    # Here is no terminal: no bar, but at each log step the losses and the rates, a line each.
    assert "\r" not in out + err
    said = [line.removeprefix("training: ") for line in out.splitlines() if line.startswith("training: ")]
    steps, rates = (
        [re.match(r"step (\d+) of 12, \d:\d\d:\d\d left: loss total (\S+),", x) for x in said[::2]],
        said[1::2],
    )
    assert [int(found[1]) for found in steps] == [2, 4, 6, 8, 10, 12] and len(rates) == 6
    assert all("perf/tokens_per_s " in line and "loss" not in line for line in rates)
    # TensorBoard calls the run by its folder alone.
    (name,) = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "runs")).Reload().Runs()
    assert name == "cola/finetune/seed1"
    events = EventAccumulator(str(folder)).Reload()
    assert [float(found[2]) for found in steps] == pytest.approx(
        [e.value for e in events.Scalars("loss/total")], rel=1e-3
    )
    assert [e.step for e in events.Scalars("eval/loss")] == [0, 6, 12]
    assert [e.value for e in events.Scalars("eval/loss")][1:] == pytest.approx([e["loss"] for e in history])
    # The loss is what transformers has for each sentence of the dev set, on average.
    model, words = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [line.split("\t") for line in (world / "glue" / "CoLA" / "dev.tsv").read_text().splitlines()]
    rows = [rows[i] for i in sorted(np.random.RandomState(0).permutation(len(rows))[:32])]  # as they are drawn
    with torch.no_grad():
        each = [
            model.eval()(**words(row[3], return_tensors="pt"), labels=torch.tensor([int(row[1])])).loss.item()
            for row in rows
        ]
    best = record_of(folder)["best"]
    assert best["loss"] == pytest.approx(sum(each) / 32, abs=1e-5) and "loss" not in best["metrics"]


def test_bars_are_for_terminals_of_the_main_process_and_can_be_switched_off(monkeypatch):
    def shown(terminal, **variables):
        screen = io.StringIO()
        screen.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stderr", screen)
        for name in ("RANK", "TQDM_DISABLE"):
            monkeypatch.setenv(name, variables[name]) if name in variables else monkeypatch.delenv(name, raising=False)
        assert list(command_line.bar([1, 2], desc="work", mininterval=0)) == [1, 2]
        return "work" in screen.getvalue()

    assert [shown(True), shown(True, TQDM_DISABLE="0"), shown(True, RANK="0")] == [True] * 3
    assert [shown(False), shown(True, TQDM_DISABLE="1"), shown(True, RANK="1")] == [False] * 3


def test_the_text_of_options_holds_the_command_and_what_is_not_a_default():
    record = {"command": "python x.py --a 3", "asked": ["a", "gone"], "options": {"a": "b|c", "d": None}}
    text = training.options_text(record, {"a": None, "d": None})
    assert text == "`python x.py --a 3`\n\n|option|value|default|\n|-|-|-|\n|a|b&#124;c|None|\n|gone|None|None|\n"


def test_a_run_of_an_earlier_version_goes_on_where_its_events_are(finetune, world, tmp_path, cut_at, monkeypatch):
    options = ("--student", world / "bert", "--save_steps", "1", "--max_steps", "3", "--output_dir", tmp_path / "run")
    cut_at(3)
    with pytest.raises(KeyboardInterrupt):
        finetune(*options)
    monkeypatch.undo()
    (tmp_path / "run" / "tb").mkdir()
    (events,) = (tmp_path / "run").glob("events*")
    events.rename(tmp_path / "run" / "tb" / events.name)
    finetune(*options)
    assert not list((tmp_path / "run").glob("events*")) and len(list((tmp_path / "run" / "tb").iterdir())) == 2


KINDS = {
    "classification": ({"labels": [2, 0, 1]}, (3, 4), lambda x, row: x.log_softmax(-1)[row["labels"]]),
    "regression": ({"labels": [0.5, -2.0]}, (2, 1), lambda x, row: -((x[0] - row["labels"]) ** 2)),
    "multilabel": (
        {"labels": [[1, 0], [0, 0], [1, 1]]},
        (3, 2),
        lambda x, row: sum((x[i] if one else -x[i]).sigmoid().log() / 2 for i, one in enumerate(row["labels"])),
    ),
    "qa": (
        {"start_positions": [0, 3], "end_positions": [0, 4]},
        (2, 2, 9),
        lambda x, row: (x[0].log_softmax(-1)[row["start_positions"]] + x[1].log_softmax(-1)[row["end_positions"]]) / 2,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_dev_loss_is_the_mean_over_examples(name):
    torch.manual_seed(0)
    columns, shape, gain = KINDS[name]
    logits, dataset = torch.randn(shape), Dataset.from_dict(columns)
    if name == "qa":
        logits[:, :, 7:] = float("-inf")  # padding
    expected = -sum(gain(x.double(), row) for x, row in zip(logits, dataset, strict=True)) / len(dataset)
    found = kinds.KINDS[name](data.TASKS["custom"]).dev_loss(logits, dataset)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_the_dev_loss_of_words_is_the_mean_over_words():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 9, 3), [[-100, 2, -100, 1], [-100, 0]]
    logits[0, 4:], logits[1, 2:] = float("-inf"), float("-inf")  # up to --max_seq_length
    chosen = [logits[i, j].log_softmax(-1)[tag] for i, j, tag in ((0, 1, 2), (0, 3, 1), (1, 1, 0))]
    found = kinds.KINDS["token"](data.TASKS["conll2003"]).dev_loss(logits, Dataset.from_dict({"labels": labels}))
    assert found == pytest.approx(-sum(chosen).item() / 3, rel=1e-5)


@pytest.mark.parametrize(
    "eval_steps, per_epoch, total, expected",
    [
        (0, 6, 12, [6, 12]),
        (0, 6, 9, [6, 9]),
        (0, 6, 7, [7]),
        (0, 1, 3, [1, 2, 3]),
        (4, 6, 12, [4, 8, 12]),
        (4, 6, 9, [4, 9]),
        (4, 6, 10, [4, 8, 10]),
        (1, 6, 3, [1, 2, 3]),
        (2, 6, 3, [3]),
        (100, 268, 1072, [*range(100, 1001, 100), 1072]),
        (100, 268, 1005, [*range(100, 901, 100), 1005]),
        (9, 6, 3, [3]),
        (0, 41, 82, [20, 41, 61, 82]),
        (0, 45, 45, [20, 40, 45]),
    ],
)
def test_no_evaluation_stands_right_before_another(monkeypatch, eval_steps, per_epoch, total, expected):
    monkeypatch.setattr(training, "LONG_EPOCH", 20)
    args = argparse.Namespace(eval_steps=eval_steps)
    assert [step for step in range(1, total + 1) if training._evaluation_due(args, step, per_epoch, total)] == expected


def test_scalars_and_options_go_to_another_tracker_too(finetune, world, tmp_path, monkeypatch):
    """As Accelerate calls wandb, which stands here as what notes the calls."""
    seen = {"config": {}, "points": []}
    run = types.SimpleNamespace(
        log=lambda values, step: seen["points"].append((step, values)), finish=lambda: seen.update(finished=True)
    )
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: seen.update(options) or run
    wandb.config = types.SimpleNamespace(update=lambda values, **_: seen["config"].update(values))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD, LoggerType.WANDB])
    options = ("--student", world / "bert", "--max_steps", "2", "--output_dir", tmp_path / "run")
    finetune(*options, "--log_with", "tensorboard", "wandb")
    assert seen["project"] == "ckd" and seen["name"] == str(tmp_path / "run") and seen["finished"]
    assert seen["config"]["learning_rate"] == 5e-5 and seen["config"]["terms/logits"] == 0
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    for tag in ("loss/total", "eval/matthews_correlation", "eval/loss", "best/score"):
        there = [(step, values[tag]) for step, values in seen["points"] if tag in values]
        assert there == [(e.step, pytest.approx(e.value)) for e in events.Scalars(tag)] and there, tag
    finetune(*options)  # the option does not make another run of it
    assert run_folder.read_record(tmp_path / "run")["status"] == "complete"


def test_a_tracker_that_is_not_installed_is_refused_before_anything(finetune, world, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    with pytest.raises(ValueError, match="--log_with comet_ml: its package is missing here: pip install comet-ml"):
        finetune("--student", world / "bert", "--log_with", "comet_ml", "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_event_files_of_one_second_are_read_in_the_order_they_were_made(tmp_path, monkeypatch):
    """A reader takes them by name: 0.06 s must stand before 0.5 s."""
    names = []
    for now in (1_700_000_000_060_000_000, 1_700_000_000_500_000_000, 1_700_000_001_000_000_001):
        monkeypatch.setattr("time.time_ns", lambda now=now: now)
        log.Events(tmp_path, 0)
        names += {path.name for path in tmp_path.iterdir()} - {*names}
    assert len(names) == 3 and names == sorted(names)


# --- card ------------------------------------------------------------------------------------------------------------

OF_MLM = {
    "terms": {"logits": 1.0},
    "seq_length": 32,
    "run_name": "mlm",
    "seed": 1,
    "max_eval_samples": 4,
    "whole_texts": False,
}
BASE = "---\nlicense: apache-2.0\nbase_model: owner/bert\nlanguage:\n- multilingual\n- af\n---\n\n# Text\n"


def saved(tmp_path, text):
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    return ModelCard.load(tmp_path / "README.md")


def finetune_card(tmp_path, task, metrics, base=None, **options):
    args = argparse.Namespace(
        task=task,
        teacher="t",
        terms={"logits": 1.0},
        run_name="a: 'name' # of: mine",
        seed=1,
        data_dir=None,
        max_eval_samples=0,
        max_seq_length=32,
        validation_file=None,
        dataset_name=None,
        validation_split="validation",
    )
    vars(args).update(options)
    kind = kinds.KINDS[data.TASKS[task].kind](data.TASKS[task])
    text = distill_finetune.model_card(args, kind, {"step": 3, "metrics": metrics}, base or {})
    return saved(tmp_path, text)


def test_two_dev_sets_are_two_splits_of_the_hubs_data_set(tmp_path):
    found = finetune_card(tmp_path, "mnli", {"accuracy_matched": 0.5, "accuracy_mismatched": 0.25})
    assert found.data.model_name == "a: 'name' # of: mine" and found.data.datasets == ["nyu-mll/glue"]
    rows = [
        (r.dataset_type, r.dataset_config, r.dataset_split, r.metric_type, r.metric_value)
        for r in found.data.eval_results
    ]
    assert rows == [
        ("nyu-mll/glue", "mnli", "validation_matched", "accuracy", 0.5),
        ("nyu-mll/glue", "mnli", "validation_mismatched", "accuracy", 0.25),
    ]


@pytest.mark.parametrize(
    "task, names, types, pipeline",
    [
        ("stsb", ("pearson", "spearman"), ["pearsonr", "spearmanr"], "text-classification"),
        ("squad", ("f1", "exact_match"), ["f1", "exact_match"], "question-answering"),
    ],
)
def test_metrics_have_the_hubs_names(tmp_path, task, names, types, pipeline):
    found = finetune_card(tmp_path, task, dict.fromkeys(names, 0.5))
    assert [r.metric_type for r in found.data.eval_results] == types
    assert found.data.pipeline_tag == pipeline == found.data.eval_results[0].task_type


def test_files_are_not_called_a_data_set_of_the_hub_and_an_undefined_score_is_left_out(tmp_path):
    found = finetune_card(
        tmp_path, "custom", {"accuracy": None, "f1": 0.5}, validation_file="my/dev.csv", max_eval_samples=8
    )
    (result,) = found.data.eval_results
    assert (result.dataset_name, result.dataset_type, result.dataset_args) == (
        "dev.csv",
        "custom",
        {"max_eval_samples": 8},
    )
    assert found.data.datasets is None and "accuracy: undefined" in found.text
    assert finetune_card(tmp_path, "cola", {"matthews_correlation": None}).data.eval_results is None


def test_what_is_known_of_the_base_model_is_passed_on(tmp_path, monkeypatch):
    expected = {"base_model": "owner/bert", "license": "apache-2.0", "language": "multilingual"}
    (tmp_path / "model").mkdir()
    saved(tmp_path / "model", BASE)
    assert card.base_metadata(str(tmp_path / "model")) == expected
    found = finetune_card(tmp_path, "cola", {"matthews_correlation": 0.5}, card.base_metadata(str(tmp_path / "model")))
    assert {name: found.data.get(name) for name in expected} == expected
    assert card.base_metadata(str(tmp_path)) == expected  # of a student of that student
    for text in ("# no metadata", "---\n: [\n---\n", ""):
        (tmp_path / "model" / "README.md").write_text(text)
        assert card.base_metadata(str(tmp_path / "model")) == {}

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.repocard.hf_hub_download", offline)
    assert card.base_metadata("bert-base-cased") == {"base_model": "bert-base-cased"}
    name = "bert-base-multilingual-cased"
    assert card.base_metadata(name) == {"base_model": name, "language": "multilingual"}


@pytest.mark.parametrize(
    "corpus, dataset",
    [
        ("README.md", ("README.md", "text", None, "validation")),
        (
            "wikimedia/wikipedia:20231101.en",
            ("wikimedia/wikipedia:20231101.en", "wikimedia/wikipedia", "20231101.en", "train"),
        ),
    ],
)
def test_masked_language_models(tmp_path, corpus, dataset):
    args = argparse.Namespace(corpus=[corpus], validation_corpus=None, teacher=None, **OF_MLM)
    found = saved(tmp_path, distill_pretrain.model_card(args, {"step": 1, "metrics": {"perplexity": 9.5}}, {}))
    (result,) = found.data.eval_results
    assert dataset == (result.dataset_name, result.dataset_type, result.dataset_config, result.dataset_split)
    assert (result.task_type, result.metric_type, result.metric_value) == ("fill-mask", "perplexity", 9.5)
    assert found.data.tags == ["mlm"] and found.data.pipeline_tag == "fill-mask"


@pytest.mark.parametrize(
    "task, auto, head",
    [
        ("cola", AutoModelForSequenceClassification, {}),
        ("rte", AutoModelForSequenceClassification, {}),
        ("stsb", AutoModelForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}),
        (
            "goemotions",
            AutoModelForSequenceClassification,
            {"num_labels": 3, "problem_type": "multi_label_classification"},
        ),
        ("conll2003", AutoModelForTokenClassification, {}),
        ("squad", AutoModelForQuestionAnswering, {}),
        ("mlm", AutoModelForMaskedLM, {}),
    ],
)
def test_the_lines_of_use_run_as_pasted(world, tmp_path, monkeypatch, capsys, task, auto, head):
    model = auto.from_pretrained(world / "bert", **head)
    model.config.threshold = 0.0
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(world / "bert").save_pretrained(tmp_path)
    if task == "mlm":
        args = argparse.Namespace(
            corpus=str(tmp_path / "config.json"), validation_corpus=None, teacher="/home/me/bert", **OF_MLM
        )
        found = saved(tmp_path, distill_pretrain.model_card(args, {"step": 1, "metrics": {"perplexity": 9.5}}, {}))
    else:
        found = finetune_card(tmp_path, task, dict.fromkeys(data.TASKS[task].metrics, 0.5), teacher="/home/me/bert")
    assert (
        "/home" not in found.content
        and str(tmp_path) not in found.content
        and "distilled from `bert` with" in found.text
    )
    (code,) = re.findall(r"```python\n(.*?)```", found.text, re.S)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out and ("text_pair" in code) == (task in ("rte", "stsb"))


def test_every_class_that_opens_a_student_has_a_pipeline():
    assert {kind.auto.__name__ for kind in kinds.KINDS.values()} <= set(card.PIPELINES)
    assert {AutoModelForMaskedLM.__name__, AutoModelForSequenceClassification.__name__} <= set(card.PIPELINES)


# --- overview --------------------------------------------------------------------------------------------------------


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
