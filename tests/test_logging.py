"""What a run shows while it trains: score lines, the dev set's loss, other trackers, and when it evaluates."""

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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import data
import training
from engine import command_line, log, run_folder
from tasks import kinds


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
