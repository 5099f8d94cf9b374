"""setup.sh: which Python and packages it takes, what it says of others; and relations.py in another project."""
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import runs


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def place(tmp_path):
    """A folder with setup.sh, in bin/ this Python, which finds an old transformers where old/ is filled; install(how):
    what comes of `python3 -m venv` and pip."""
    shutil.copy("setup.sh", tmp_path)
    real = shlex.quote(sys.executable)
    script(tmp_path / "bin" / "python", f"PYTHONPATH=old exec {real} \"$@\"")
    script(tmp_path / "bin" / "python3", f"[ $1 = -c ] && exec {real} \"$@\"\n/bin/cp -r made .venv")
    script(tmp_path / "made" / "bin" / "python", f"[ $1 = - ] && exec {real} \"$@\"\necho \"$@\" >> pip-log")
    (tmp_path / "made" / "bin" / "activate").write_text("PATH=$PWD/.venv/bin:$PATH\n")
    return tmp_path


def source(place):
    """Exit status and stderr of a script that sources setup.sh, with nothing in PATH but what the folder has."""
    done = subprocess.run(["/bin/bash", "-c", "set -euo pipefail; source setup.sh; command -v python"], cwd=place,
                          env={"PATH": str(place / "bin")}, capture_output=True, text=True)  # fmt: skip
    return done.returncode, done.stdout.strip(), done.stderr


def older(place, name, version):
    folder = place / "old" / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_what_is_there_is_used_where_it_is_new_enough(place):
    assert source(place) == (0, str(place / "bin" / "python"), "") and not (place / ".venv").exists()


@pytest.mark.parametrize("name, version, said", [
    ("transformers", "4.57.1", "transformers 4.57.1 is older than 5.4"), ("torch", "2.9.1+cu128", "torch 2.9.1"),
])  # fmt: skip
def test_what_is_too_old_is_named_and_an_environment_made(place, name, version, said):
    older(place, name, version)
    status, python, stderr = source(place)
    assert status == 0 and python == str(place / ".venv" / "bin" / "python"), stderr
    assert re.fullmatch(rf"setup.sh: {re.escape(said)}.*: making .venv and installing .*\n", stderr)
    assert not (place / "pip-log").exists()  # this Python has all of them


def test_an_environment_that_stays_wrong_is_named(place):
    older(place, "transformers", "4.57.1")
    path = place / "made" / "bin" / "python"
    path.write_text(path.read_text().replace("exec", "PYTHONPATH=old exec"))
    status, _, stderr = source(place)
    assert status == 2 and stderr.splitlines()[-1].startswith(
        "setup.sh: error: .venv is of no use (transformers 4.57.1 is older than 5.4): delete it")  # fmt: skip
    assert "install --quiet --disable-pip-version-check -r requirements.txt" in (place / "pip-log").read_text()


def test_an_old_python_is_named(place):
    for name in ("python", "python3"):
        script(place / "bin" / name, '[ "$1" = --version ] && echo Python 3.9.2\nexit 1')
    status, _, stderr = source(place)
    assert status == 2 and not (place / ".venv").exists() and stderr == (
        "setup.sh: error: Python 3.11 or newer is needed, and python3 is Python 3.9.2: install one\n")  # fmt: skip


# --- the command in run.json, relations.py in another project -------------------------------------------------------


@pytest.mark.parametrize("count, launcher", [("1", ["python"]), ("4", ["torchrun", "--nproc_per_node", "4"])])
def test_the_command_of_a_record_can_be_pasted(monkeypatch, count, launcher):
    words = ["./distill_finetune.py", "--label_separator", "; ", "--text_columns", "it's", "$HOME *", "--data_dir", ""]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {runs.command()}"], capture_output=True, text=True).stdout
    assert shown.split("\0")[:-1] == [*launcher, *words]


def test_the_relations_work_alone_in_another_project_as_the_docs_show(tmp_path):
    page = Path("docs/extending.md").read_text()
    (block,) = [block for block in re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
                if "from relations import" in block]  # fmt: skip
    assert block.count("\n") == 10
    for name in ("relations.py", "losses.py", "baselines.py", "heads.py", "stages.py"):
        shutil.copy(name, tmp_path)
    check = """
import sys
assert not {"transformers", "losses", "baselines", "heads", "numpy.testing"} & set(sys.modules)
assert all(h.grad.isfinite().all() and h.grad[0].abs().sum() > 0 for h in student) and loss.item() > 0
assert not student[0].grad[1, 4:].any()  # padding
import losses, relations
views = [torch.stack(states, 1) for states in (student, teacher)]
for name in NAMES:
    torch.testing.assert_close(values[name], getattr(losses, name)(*views, mask))
print(losses.soft_logits(torch.zeros(1, 2), torch.zeros(1, 2)).item())
assert not {"transformers", "accelerate", "datasets"} & set(sys.modules)
"""
    (tmp_path / "train.py").write_text(block + check)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "0.0\n", done.stderr


def test_a_run_loads_no_library_for_pictures_or_reports_before_it_draws_one():
    code = "import sys, distill_finetune, distill_pretrain; print({'matplotlib', 'report', 'onnx'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
