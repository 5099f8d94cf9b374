"""The options of the training scripts: known before torch is loaded, and the same as the code that they are about."""
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


@pytest.mark.parametrize("module, name", [(data, "TASKS"), (losses, "TERMS"), (losses, "PRESETS"), (students, "INITS"),
    (relations, "DISTANCES"), (relations, "CRITERIA"), (events, "TRACKERS"), (training, "LONG_EPOCH")])  # fmt: skip
def test_what_is_read_without_importing_is_what_the_module_has(module, name):
    value = getattr(module, name)
    assert options.literal(module.__name__, name) == (tuple(value) if isinstance(value, dict) else value)
