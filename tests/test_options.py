"""The options of the training scripts: known before torch is loaded, and the same as the code that they are about.
What `--terms ckd` means: the recipe of the task wherever it is asked for, what was typed wins, older runs stay.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from conftest import forked

import data
import distill_dynabert
import distill_finetune
import distill_pretrain
import losses
import options
import relations
import training
from engine import checks, log, run_folder
from methods import recipes, term_weights

# Stands for a script's own start: whoever imports one of these has waited for seconds.
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "datasets", "accelerate", "numpy")))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["distill_finetune.py", "distill_pretrain.py", "distill_dynabert.py"])
def test_help_and_a_slip_import_nothing_that_takes_seconds(script):
    for words, status in (
        (["--help"], 0),
        (["--help", "--terms", "ckd"], 0),
        (["--corpus", "x", "--task", "cola"], 2),
        (["--task", "cola", "--corpus", "x", "--sead", "3"], 2),
    ):
        done = subprocess.run([sys.executable, "-c", WITHOUT, script, *words], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        if status:
            assert done.stderr.startswith(f"{script}: error: ") and len(done.stderr.splitlines()) == 1
        else:
            assert all(name in done.stdout for name in ("--teacher", "--terms", "--learning_rate", "wr_triple"))


STUDENT = ["--task", "cola", "--teacher", "no/such/teacher", "--student_layers", "6"]
PRETRAIN = ["--corpus", "no/such/text", "--teacher", "t", "--student_layers", "6"]
DYNABERT = ["--task", "squad", "--max_seq_length", "384", "--teacher", "no/such/teacher"]
GOOD = [
    ("distill_finetune.py", [*STUDENT, "--terms", "tinybert", "--stages", "hidden_mse", "0.5", "logits", "hard=1"]),
    ("distill_finetune.py", ["--task", "wnut17", "--student", "no/such/model", "--token_column", "2"]),
    ("distill_pretrain.py", PRETRAIN),
    ("distill_dynabert.py", DYNABERT),
    ("distill_dynabert.py", ["--export", "no/such/run", "--output_dir", "x"]),
]
MISTAKES = [
    ("distill_finetune.py", [*STUDENT, *more], said)
    for more, said in (
        (["--terms", "ckdd"], "'ckdd' is neither a preset"),
        (["--terms", "kd", "pkd"], "names two presets"),
        (["--terms", "ckd", "logits=-1"], "number >= 0"),
        (["--terms", "wr_pair=1"], "trains no task head"),
        (["--window", "10"], "--window 10 must be odd and at least 3, such as 11, or 'all'"),
        (["--window", "None"], "--window 'None' must be an odd number or 'all'"),
        (["--window", "1"], "--window 1 must be odd and at least 3, such as 3, or 'all'"),
        (["--distance", "l2"], "criterion 'kl' needs distance 'cosine', not 'l2': pass --pair_criterion mse"),
        (["--temperature", "0"], "--temperature 0.0 must be positive"),
        (["--hard_weight", "-1"], "must be 0 or more"),
        (["--layer_map", "unifrom"], "unknown layer map 'unifrom': choose uniform, last, first, ends, or pairs"),
        (["--ltr_layer_map", "0:0,0:0"], "--ltr_layer_map: layer map '0:0,0:0' holds a pair twice"),
        (["--stages", "logits", "2", "hard"], "a stage begins at a share"),
        (["--run_name", "a/b"], "becomes a folder"),
        (["--num_train_epochs", "three"], "'three' must be a number above 0"),
        (["--train_file", "x.csv"], "--train_file is for --task custom"),
        (["--student", " "], "names no model"),
        (["--task", "squad"], "leaves no room for a context"),
        (["--label_separator", ";"], "--label_separator is for"),
        (["--token_column", "2"], "--token_column is for tasks of words"),
        (["--class_weights", "balanced"], "--class_weights is for the loss on the labels, which has no weight"),
        (
            ["--task", "stsb", "--class_weights", "balanced", "--hard_weight", "1"],
            "is for tasks with one of some classes",
        ),
        (["--task", "wnut17", "--label_column", "tag"], "'tag' must be a column's number"),
    )
] + [
    ("distill_finetune.py", ["--task", "cola"], "--student is missing"),
    ("distill_finetune.py", ["--task", "cola", "--student", "s", "--window", "21"], "is for distilling from a teacher"),
    ("distill_finetune.py", ["--task", "cola", "--student", "s", "--cache_teacher"], "--cache_teacher keeps what"),
    ("distill_finetune.py", ["--task", "cola", "--student", "s", "--more_teachers", "a"], "adds to the logits of"),
    ("distill_finetune.py", ["--task", "cola", "--student", "s", "--label_map", "a=0"], "--label_map is for"),
    ("distill_pretrain.py", [*PRETRAIN, "--streaming"], "--streaming knows no epochs"),
    ("distill_pretrain.py", [*PRETRAIN, "--terms", "ckdd"], "neither a preset"),
    ("distill_dynabert.py", [*DYNABERT, "--student", "s"], "--student is for training on the labels"),
    ("distill_dynabert.py", [*DYNABERT, "--width", "0.5"], "--width says what --export writes"),
    ("distill_dynabert.py", DYNABERT[:4], "pass --teacher, a run of the task's teacher"),
]


@pytest.mark.parametrize("script, words", GOOD)
def test_options_are_checked_and_nothing_is_loaded(script, words):
    command = [sys.executable, "-c", WITHOUT, script, *words, "--check_only"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("script, words, said", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_loaded(script, words, said):
    """With --check_only and without it."""
    for more in ([], ["--check_only"]):
        done = subprocess.run([sys.executable, "-c", WITHOUT, script, *words, *more], capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert done.stderr.startswith(f"{script}: error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "script, words", [(distill_finetune, STUDENT), (distill_pretrain, PRETRAIN), (distill_dynabert, DYNABERT)]
)
def test_a_call_in_code_checks_only_too(script, words, tmp_path, capsys):
    script.main([*words, "--output_dir", str(tmp_path / "run"), "--check_only"])
    assert not (tmp_path / "run").exists() and capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="--window 4 must be odd"):
        script.main([*words, "--window", "4", "--check_only"])


def test_a_kind_of_own_data_and_its_metrics_are_checked_where_the_kinds_are_known():
    own = ["--task", "custom", "--student", "s", "--train_file", "a", "--validation_file", "b", "--check_only"]
    for more, said in (
        (["--kind", "tokens"], "'tokens' is not one of: classification"),
        (["--metrics", "bleu"], "'bleu' is not a metric of classification"),
    ):
        status, error = forked(distill_finetune, *own, *more)
        assert status == 2 and said in error and len(error.splitlines()) == 1


def test_a_term_that_no_preset_has_is_known_too(monkeypatch):
    own = {"sentence_pair", "sentence_triple", "sentence_mse"}  # of no preset
    assert recipes.all_terms() == tuple(name for name in losses.TERMS if name not in own)
    assert recipes.all_terms(["sentence_pair"]) == tuple(losses.TERMS)
    assert all({*preset} - {*recipes.OPTIONS} <= set(losses.TERMS) for preset in losses.PRESETS.values())
    with pytest.raises(ValueError, match="unknown term 'mine', choose from: logits, "):
        losses.parse_terms(["ckd", "mine=2"])
    monkeypatch.setitem(losses.TERMS, "mine", abs)
    words = ["--terms", "kd", "mine=2", "--stages", "mine", "0.5", "logits"]
    args = options.finetune_parser().parse_args([*STUDENT, *words])
    checks.check_finetune(args)
    assert args.terms == {"logits": 1, "mine": 2} and args.stages == [[0.0, {"mine": 2.0}], [0.5, {"logits": 1.0}]]
    args = options.finetune_parser().parse_args([*STUDENT, "--stages", "mine=1", "0.5", "logits"])
    checks.check_finetune(args)
    assert args.stages[0] == [0.0, {"mine": 1.0}]


def test_the_command_line_refuses_what_the_relations_refuse_and_nothing_else():
    parser = options.finetune_parser()
    choices = {action.dest: action.choices for action in parser._actions}
    assert choices["distance"] == relations.DISTANCES and choices["pair_criterion"] == relations.CRITERIA
    assert choices["triple_criterion"] == relations.CRITERIA[1:]
    names = "distance", "pair_criterion", "triple_criterion", "window"
    for values in itertools.product(*(choices[name] for name in names[:3]), ["0", "1", "2", "3", "4", "21", "all"]):
        words = [word for name, value in zip(names, values, strict=True) for word in (f"--{name}", value)]
        refused = []
        for check in (
            lambda words=words: checks.check_finetune(parser.parse_args([*STUDENT, *words])),
            lambda v=values: relations.check_options(*v[:3], None if v[3] == "all" else int(v[3])),
        ):
            try:
                check()
            except ValueError:
                refused.append(check)
        assert len(refused) in (0, 2), values


def test_other_modules_take_their_tables_from_here():
    assert log.TRACKERS is options.TRACKERS and training.LONG_EPOCH == options.LONG_EPOCH
    for parser in (options.finetune_parser(), options.dynabert_parser()):
        assert next(action.choices for action in parser._actions if action.dest == "task") is data.TASKS


@pytest.mark.parametrize("text", ["1" + 400 * "0", "inf", "nan", "-inf", "1.5", "", "x\ny\x1b[31m"])
def test_what_is_no_number_is_one_line(text, capsys):
    parser = options.Parser(prog="p")
    parser.add_argument("--size", type=options.number(int, 0, 10))
    parser.add_argument("--any", type=options.number(int, 0))
    for option in ("--size", *["--any"] * (text[0:2] != "10")):
        with pytest.raises(SystemExit) as end:
            parser.parse_args([f"{option}={text}"])
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.startswith(f"p: error: argument {option}: ") and len(said.splitlines()) == 1
        assert said.rstrip("\n").isprintable()


def test_help_says_defaults_that_say_something():
    said = " ".join(options.finetune_parser().format_help().split())
    assert "(default: 5e-05)" in said and "(default: None)" not in said and "(default: False)" not in said
    assert "(default: [])" not in said


# --- recipes ---------------------------------------------------------------------------------------------------------

SCRIPTS = {f"{script.__name__}.py": script for script in (distill_finetune, distill_pretrain, distill_dynabert)}
# temperature, pairs, triples, learning rate, epochs, as arXiv:2109.08359 has them: logits are not scaled there.
PUBLISHED = {
    "cola": (3, 1, 10, 5e-5, 4),
    "sst2": (4, 100, 1000, 4e-5, 4),
    "mrpc": (4, 1, 1, 3e-5, 4),
    "stsb": (1, 0.1, 0.1, 5e-5, 4),
    "qqp": (2, 10, 10, 5e-5, 4),
    "mnli": (4, 100, 1, 4e-5, 4),
    "qnli": (3, 10, 1, 4e-5, 4),
    "rte": (3, 1, 10, 5e-5, 6),
}
OURS = {
    "wnli": (3, 1, 10, 5e-5, 4),
    "squad": (1, 1, 10, 5e-5, 3),
    "squad_v2": (1, 1, 10, 5e-5, 3),
    "custom": (1, 1, 10, 5e-5, 3),
    **dict.fromkeys(("conll2003", "wnut17", "conll2000", "goemotions"), (1, 1, 10, 5e-5, 4)),
    "scitldr": (1, 1, 10, 5e-5, 4),
    "cnn_dailymail": (1, 1, 10, 5e-5, 4),
}
PLAIN = {"logits": 1.0, "wr_pair": 1.0, "wr_triple": 10.0, "ltr_pair": 1.0, "ltr_triple": 10.0}
OBJECTIVE = (
    "terms",
    "temperature",
    "hard_weight",
    "stages",
    "window",
    "layer_map",
    "distance",
    "pair_criterion",
    "triple_criterion",
)
CUSTOM = ("--train_file", "a.csv", "--validation_file", "b.csv")


def resolved(script, *words):
    """The options of a script as its own parser and checks leave them."""
    args = script.build_parser().parse_args(list(map(str, words)))
    script.check_args(args)
    return args


def student(*words, task="cola"):
    """Options of distill_finetune.py for a student with a teacher."""
    more = CUSTOM if task == "custom" else ("--max_seq_length", "384") if task.startswith("squad") else ()
    return resolved(distill_finetune, "--task", task, "--teacher", "t", "--student_layers", "6", *more, *words)


def ckd(task, temperature=None):
    """The weights that --terms ckd has for a task, from the tables above."""
    own, pair, triple, *_ = (PUBLISHED | OURS)[task]
    square = (temperature or own) ** 2
    return {
        "logits": 1.0,
        "wr_pair": pair * square,
        "wr_triple": triple * square,
        "ltr_pair": pair * square,
        "ltr_triple": triple * square,
    }


def commands(script, **variables):
    """{run name: its resolved options} of the commands that DRY_RUN=1 prints for one task and seed."""
    shown = subprocess.run(
        ["bash", script],
        env={**os.environ, "DRY_RUN": "1", "SEEDS": "1", **variables},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = {}
    for line in shown.splitlines():
        _, script, *words = shlex.split(line)
        args = resolved(SCRIPTS[script], *words)
        found[args.run_name] = args
    return found


# --- the tables -----------------------------------------------------------------------------------------------------


def test_the_recipes_are_the_published_ones_and_there_is_one_for_every_task():
    assert losses.RECIPES is recipes.RECIPES == PUBLISHED | OURS
    assert set(recipes.RECIPES) == set(data.TASKS) - {"ax"}
    assert recipes.recipe_of("a task without a line") == OURS["custom"]
    nothing = vars(distill_finetune.build_parser().parse_args(["--task", "custom"]))
    assert OURS["custom"][0] == nothing["temperature"] and OURS["custom"][3:] == (
        nothing["learning_rate"],
        nothing["num_train_epochs"],
    )


@pytest.mark.parametrize("task", [task for task in data.TASKS if task not in ("ax", "custom")])
def test_the_scripts_and_the_plain_command_train_a_task_with_its_recipe(task):
    squad = task.startswith("squad")
    script, variables = ("run_squad.sh", {"TASK": task}) if squad else ("run_glue.sh", {"TASKS": task})
    found = commands(script, METHODS="finetune kd ckd tinybert", **variables)
    temperature, _, _, rate, epochs = (PUBLISHED | OURS)[task]
    for name, args in found.items():
        assert name == "teacher" or (args.learning_rate, args.num_train_epochs) == (rate, epochs)
    for method in ("kd", "ckd", "tinybert"):
        own = student("--terms", method, task=task)
        for name in (*OBJECTIVE, "learning_rate", "num_train_epochs"):
            assert getattr(found[method], name) == getattr(own, name), name
    assert found["ckd"].terms == pytest.approx(ckd(task)) and found["ckd"].hard_weight == 0
    assert found["ckd"].temperature == found["kd"].temperature == temperature and found["kd"].terms == {"logits": 1.0}
    assert found["tinybert"].temperature == 1


def test_teachers_and_students_of_labels_alone_have_the_options_own_numbers_and_no_terms():
    args = resolved(distill_finetune, "--task", "rte", "--student", "x")
    assert (args.learning_rate, args.num_train_epochs, args.terms, args.filled) == (5e-5, 3, {}, {})


def test_dynabert_has_the_weights_and_temperature_of_the_task_and_its_own_schedule():
    found = commands("run_dynabert.sh", TASKS="sst2", OBJECTIVES="ckd kd dynabert")
    for words, name in (((), "ckd-width"), (("--depth_mults", "1", "0.5"), "ckd-depth")):
        own = resolved(distill_dynabert, "--task", "sst2", "--teacher", "t", *words)
        assert own.terms == found[name].terms == ckd("sst2") and own.temperature == found[name].temperature == 4
        assert (own.learning_rate, own.num_train_epochs) == (5e-5, 3) and found[name].learning_rate == 2e-5
    assert found["kd-width"].temperature == 4 and found["dynabert-width"].temperature == 1


def test_pre_training_knows_no_task():
    args = resolved(distill_pretrain, "--corpus", "c", "--teacher", "t", "--student_layers", "6")
    assert (args.terms, args.temperature, args.learning_rate, args.num_train_epochs) == (PLAIN, 1, 5e-5, 3)
    assert args.filled == args.unfilled == {}


def test_ablations_and_tries_begin_at_the_recipe():
    found = commands("run_ablation.sh", TASKS="qqp", GRID="leave_one_out stages")
    assert found["ckd"].terms == ckd("qqp") and found["ckd"].temperature == 2
    assert found["no-wr-pair"].terms == {k: v for k, v in ckd("qqp").items() if k != "wr_pair"}
    assert found["relations-first"].stages == [
        [0.0, {k: v for k, v in ckd("qqp").items() if k != "logits"}],
        [0.5, {"logits": 1.0}],
    ]
    found = commands("run_sweep.sh", TASK="stsb", METHODS="ckd")  # two rates each: as published, ten times, at T = 3
    for number, weights, temperature in (
        (1, ckd("stsb"), 1),
        (5, ckd("stsb", 3), 3),
        (3, {k: v * 10 ** (k != "logits") for k, v in ckd("stsb").items()}, 1),
    ):
        assert found[f"ckd-{number}"].terms == pytest.approx(weights)
        assert found[f"ckd-{number}"].temperature == temperature


# --- what is typed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, terms, temperature, rate, epochs",
    [
        ((), ckd("sst2"), 4, 4e-5, 4),
        (
            ("--terms", "ckd", "wr_triple=5", "ltr_pair=0"),
            {"logits": 1.0, "wr_pair": 1600, "wr_triple": 5, "ltr_triple": 16000},
            4,
            4e-5,
            4,
        ),
        (("--temperature", "1"), ckd("sst2", 1), 1, 4e-5, 4),  # also at the default; weights follow its square
        (("--temperature=2",), ckd("sst2", 2), 2, 4e-5, 4),
        (("--learning_rate", "5e-5", "--num_train_epochs", "3"), ckd("sst2"), 4, 5e-5, 3),  # also at the defaults
        (("--max_steps", "7"), ckd("sst2"), 4, 4e-5, 3),  # epochs say nothing then
        (("--terms", "kd"), {"logits": 1.0}, 4, 4e-5, 4),
        (("--terms", "logits=1", "wr_pair=2"), {"logits": 1.0, "wr_pair": 2}, 4, 4e-5, 4),
        (("--terms", "pkd"), {"logits": 0.5, "pkd": 100}, 10, 4e-5, 4),
        (("--terms", "minilm"), {"minilm": 1}, 1, 4e-5, 4),
        (("--terms", "distilbert", "--temperature", "3"), {"logits": 5, "hidden_cosine": 1}, 3, 4e-5, 4),
    ],
)
def test_what_is_typed_wins_and_a_preset_that_has_its_own_keeps_it(words, terms, temperature, rate, epochs):
    args = student(*words, task="sst2")
    assert args.terms == terms and args.temperature == temperature
    assert (args.learning_rate, args.num_train_epochs) == (rate, epochs)


def test_stages_have_the_weights_of_the_recipe():
    args = student("--stages", "wr_pair", "wr_triple=7", "0.5", "logits", "ltr_pair=0..1")
    assert args.stages == [[0.0, {"wr_pair": 9.0, "wr_triple": 7.0}], [0.5, {"logits": 1.0, "ltr_pair": [0.0, 1.0]}]]
    assert args.filled == {
        "temperature": 3,
        "wr_pair": 9,
        "wr_triple": 90,
        "ltr_pair": 9,
        "learning_rate": 5e-5,
        "num_train_epochs": 4,
    }
    assert term_weights.objective_of(args).at(0.6).weights["logits"] == 1


@pytest.mark.parametrize(
    "words", [(), ("--terms", "ckd", "wr_triple=5"), ("--temperature", "1.23456"), ("--max_steps", "5")]
)
def test_the_line_on_the_screen_typed_behind_the_command_changes_nothing(words):
    args = student(*words, task="mnli")
    line = recipes.filled_line(args)
    assert line.startswith("the recipe of mnli ") and "\n" not in line
    typed = shlex.split(line.partition(": ")[2])
    if "--terms" in words:  # weights that were typed stand in words already
        typed.remove("--terms")
        typed.remove("ckd")
        words = ("--terms", "ckd", "wr_triple=5", *typed)
    again = student(*(words if "--terms" in words else (*words, *typed)), task="mnli")
    assert not again.filled and all(
        getattr(again, name) == getattr(args, name) for name in (*OBJECTIVE, "learning_rate", "num_train_epochs")
    )
    assert recipes.filled_line(again) == "" == recipes.filled_line(argparse.Namespace())


# --- the README -------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_readme_train_with_the_weights_of_its_table():
    with open("docs/runs/glue.csv", encoding="utf-8") as f:
        rows = [row for row in csv.DictReader(f) if (row["task"], row["name"]) == ("cola", "ckd")]
    table = {json.dumps([(o := json.loads(row["options"]))["terms"], o["temperature"]]) for row in rows}
    examples = re.sub(
        r"\\\n\s*",
        "",
        "\n".join(page.read_text(encoding="utf-8") for page in [Path("README.md"), *Path("docs").glob("*.md")]),
    )
    examples = re.findall(r"^python distill_finetune\.py (--task cola .*--terms ckd.*)$", examples, re.M)
    assert len(rows) >= 3 and len(examples) >= 2
    for words in examples:
        args = resolved(distill_finetune, *shlex.split(words))
        if args.stages is None:
            assert table == {json.dumps([args.terms, args.temperature])}
        else:
            assert set(args.terms.items()) <= set(ckd("cola").items()) and args.temperature == 3


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def older(monkeypatch):
    """Within it, the code as it was before tasks had recipes: nothing is filled, and the record does not say so."""

    @contextlib.contextmanager
    def code():
        with monkeypatch.context() as patched:
            patched.setattr(recipes, "recipe_of", lambda task: None)
            new = run_folder.new_record
            patched.setattr(
                run_folder,
                "new_record",
                lambda *a, **k: {key: value for key, value in new(*a, **k).items() if key != "filled"},
            )
            yield

    return code


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.fixture
def run(world, teacher):
    """Run distill_finetune.py in this process for a student with a teacher; epochs and rate are left to it."""

    def train(*options):
        AcceleratorState._reset_state(reset_partial_state=True)
        distill_finetune.main(
            [
                *(
                    f"--task cola --data_dir {world}/glue --teacher {teacher} --student_layers 2 "
                    "--max_train_samples 16 --max_eval_samples 32 --per_device_train_batch_size 16 "
                    "--max_seq_length 32 --logging_steps 2"
                ).split(),
                *map(str, options),
            ]
        )

    return train


def test_what_was_filled_stands_on_the_screen_and_in_the_record(run, tmp_path, capsys):
    run("--learning_rate", "1e-4", "--output_dir", tmp_path / "run")
    record, out = record_of(tmp_path / "run"), capsys.readouterr().out
    assert record["filled"] == {
        "temperature": 3.0,
        "num_train_epochs": 4.0,
        "wr_pair": 9.0,
        "wr_triple": 90.0,
        "ltr_pair": 9.0,
        "ltr_triple": 90.0,
    }
    assert {"temperature", "num_train_epochs"} <= set(record["asked"])
    assert record["options"]["terms"] == ckd("cola") and record["steps"] == 4
    assert not {"filled", "unfilled", "typed", "check_only"} & set(record["options"])
    (line,) = [line for line in out.splitlines() if line.startswith("the recipe of cola")]
    assert line.endswith(
        ": --terms ckd wr_pair=9 wr_triple=90 ltr_pair=9 ltr_triple=90 --temperature 3 --num_train_epochs 4"
    )
    run("--learning_rate", "1e-4", "--output_dir", tmp_path / "run")
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: complete already, nothing to do\n"
    with pytest.raises(ValueError, match=r"--temperature 3\.0 there, 2\.0 here, --terms"):
        run("--learning_rate", "1e-4", "--temperature", "2", "--output_dir", tmp_path / "run")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--terms", "kd"),
        ("--temperature", "3"),
        ("--terms", "ckd", "wr_triple=2", "--stages", "wr_pair", "wr_triple", "0.5", "logits"),
    ],
)
def test_a_finished_run_of_an_earlier_version_stays_complete(run, tmp_path, capsys, older, words):
    options = (*words, "--output_dir", tmp_path / "run")
    with older():
        run(*options)
    record = record_of(tmp_path / "run")
    assert (
        "filled" not in record
        and record["steps"] == 3
        and record["options"]["temperature"] == (3 if words == ("--temperature", "3") else 1)
    )
    capsys.readouterr()
    run(*options)
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"{tmp_path / 'run'}: complete already, nothing to do" and len(said) == 2
    assert "begun before tasks had recipes and left as it began (" in said[0]
    assert "--num_train_epochs 3.0, now 4.0" in said[0]
    assert record_of(tmp_path / "run") == record
    with pytest.raises(ValueError, match=r"--learning_rate 5e-05 there, 0\.01 here") as error:
        run(*options, "--learning_rate", "0.01")
    assert "--num_train_epochs" not in str(error.value) and not capsys.readouterr().out


def test_what_was_typed_is_still_compared_with_a_run_of_an_earlier_version(run, tmp_path, older):
    options = ("--run_name", "a", "--output_dir", tmp_path / "run")
    with older():
        run(*options)
    for words, said in (
        (("--temperature", "2"), "--temperature 1.0 there, 2.0 here"),
        (("--num_train_epochs", "5"), "--num_train_epochs 3.0 there, 5.0 here"),
        (("--terms", "ckd", "wr_pair=9"), "--terms {"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            run(*options, *words)


def test_a_run_of_this_version_with_the_old_weights_is_another_run(run, tmp_path):
    weights = [f"{name}={value:g}" for name, value in PLAIN.items()]
    options = ("--run_name", "a", "--output_dir", tmp_path / "run")
    run(*options, "--terms", "ckd", *weights, "--temperature", "1", "--max_steps", "1")
    with pytest.raises(ValueError, match=r"--temperature 1\.0 there, 3\.0 here"):
        run(*options, "--max_steps", "1")


def test_an_unfinished_run_of_an_earlier_version_goes_on_as_it_began(run, tmp_path, capsys, older, cut_at):
    options = ("--max_train_samples", "48", "--save_steps", "2")
    with older():
        run(*options, "--output_dir", tmp_path / "whole")
        cut_at(5)
        with pytest.raises(KeyboardInterrupt):
            run(*options, "--output_dir", tmp_path / "cut")
    assert record_of(tmp_path / "cut")["status"] == "running"
    run(*options, "--output_dir", tmp_path / "cut")
    out = capsys.readouterr().out
    assert "left as it began" in out and "the recipe of cola" not in out
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    run(*options, "--output_dir", tmp_path / "cut")  # and is complete then
    assert "complete already" in capsys.readouterr().out
