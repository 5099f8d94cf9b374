"""The options of the training scripts: known before torch is loaded, and the same as the code that they are about."""

import itertools
import subprocess
import sys

import pytest

import data
import distill_dynabert
import distill_finetune
import distill_pretrain
import losses
import options
import relations
import training
from engine import checks, log
from methods import recipes

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
        done = subprocess.run([sys.executable, "distill_finetune.py", *own, *more], capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


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
