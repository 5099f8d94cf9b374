"""The options of the training scripts: known before torch is loaded, and the same as the code that they are about."""
import atexit
import gc
import subprocess
import sys

import pytest

import data
import events
import losses
import options
import relations
import students
import training

# Stands for a script's own start: whoever imports one of these has waited for seconds.
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "datasets", "accelerate", "numpy")))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["distill_finetune.py", "distill_pretrain.py", "distill_dynabert.py"])
def test_help_and_a_slip_import_nothing_that_takes_seconds(script):
    for words, status in ((["--help"], 0), (["--help", "--terms", "ckd"], 0), (["--corpus", "x", "--task", "cola"], 2),
                          (["--task", "cola", "--corpus", "x", "--sead", "3"], 2)):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", WITHOUT, script, *words], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        if status:
            assert done.stderr.startswith(f"{script}: error: ") and len(done.stderr.splitlines()) == 1
        else:
            assert all(name in done.stdout for name in ("--teacher", "--terms", "--learning_rate", "wr_triple"))


def test_garbage_is_looked_for_again_once_what_stays_is_imported(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["distill_finetune.py", "--task", "cola", "--student", "x"])
    before = gc.get_freeze_count()
    try:
        options.begin(options.finetune_parser())
        assert not gc.isenabled()
        training.make_accelerator(options.finetune_parser().parse_args())
        assert gc.isenabled() and gc.get_freeze_count() > before
    finally:
        gc.enable()
        gc.unfreeze()
        atexit.unregister(gc.freeze)


@pytest.mark.parametrize("module, name", [(data, "TASKS"), (losses, "TERMS"), (losses, "PRESETS"), (students, "INITS"),
    (relations, "DISTANCES"), (relations, "CRITERIA"), (events, "TRACKERS"), (training, "LONG_EPOCH")])  # fmt: skip
def test_what_is_read_without_importing_is_what_the_module_has(module, name):
    value = getattr(module, name)
    assert options.literal(module.__name__, name) == (tuple(value) if isinstance(value, dict) else value)


def test_a_term_added_below_the_table_is_known_too(tmp_path, monkeypatch):
    lines = 'TERMS: dict = {"a": 1}', 'OTHER["c"] = 1', 'TERMS["b"] = abs', "x.y = z = 3", "SIZES = (1, 2)"
    (tmp_path / "losses.py").write_text("\n".join(lines))
    monkeypatch.setattr(options, "__file__", str(tmp_path / "options.py"))
    assert options.literal("losses", "TERMS") == ("a", "b") and options.literal("losses", "SIZES") == (1, 2)


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
