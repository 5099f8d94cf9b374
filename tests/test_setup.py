"""setup.sh: which Python and packages it takes, what it says of others; what the run_*.sh check before they train; and
relations.py in another project."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine import run_folder


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def place(tmp_path):
    """A folder with setup.sh, in bin/ this Python, which finds an old transformers where old/ is filled; install(how):
    what comes of `python3 -m venv` and pip."""
    (tmp_path / "scripts").mkdir()
    shutil.copy("scripts/setup.sh", tmp_path / "scripts")
    real = shlex.quote(sys.executable)
    script(tmp_path / "bin" / "python", f'PYTHONPATH=old exec {real} "$@"')
    script(tmp_path / "bin" / "python3", f'[ $1 = -c ] && exec {real} "$@"\n/bin/cp -r made .venv')
    script(tmp_path / "made" / "bin" / "python", f'[ $1 = - ] && exec {real} "$@"\necho "$@" >> pip-log')
    (tmp_path / "made" / "bin" / "activate").write_text("PATH=$PWD/.venv/bin:$PATH\n")
    return tmp_path


def source(place):
    """Exit status and stderr of a script that sources setup.sh, with nothing in PATH but what the folder has."""
    done = subprocess.run(
        ["/bin/bash", "-c", "set -euo pipefail; source scripts/setup.sh; command -v python"],
        cwd=place,
        env={"PATH": str(place / "bin")},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.strip(), done.stderr


def older(place, name, version):
    folder = place / "old" / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_what_is_there_is_used_where_it_is_new_enough(place):
    assert source(place) == (0, str(place / "bin" / "python"), "") and not (place / ".venv").exists()


@pytest.mark.parametrize(
    "name, version, said",
    [("transformers", "4.57.1", "transformers 4.57.1 is older than 5.4"), ("torch", "2.9.1+cu128", "torch 2.9.1")],
)
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
        "setup.sh: error: .venv is of no use (transformers 4.57.1 is older than 5.4): delete it"
    )
    assert "install --quiet --disable-pip-version-check -r requirements.txt" in (place / "pip-log").read_text()


def test_an_old_python_is_named(place):
    for name in ("python", "python3"):
        script(place / "bin" / name, '[ "$1" = --version ] && echo Python 3.9.2\nexit 1')
    status, _, stderr = source(place)
    assert (
        status == 2
        and not (place / ".venv").exists()
        and stderr == ("setup.sh: error: Python 3.11 or newer is needed, and python3 is Python 3.9.2: install one\n")
    )


# --- run_*.sh: what is checked before anything is trained -----------------------------------------------------------


@pytest.fixture
def run_script(world, tmp_path):
    """Run a script on the artificial language: (exit status, stdout, stderr); its runs would be in tmp_path/runs."""

    def run(script, *arguments, **variables):
        own = {
            "TEACHER": str(world / "bert"),
            "DATA_DIR": str(world / "glue"),
            "STUDENT_LAYERS": "2",
            "CORPUS": str(world / "text"),
            "RUNS": str(tmp_path / "runs"),
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            ["bash", script, *arguments], env=os.environ | own | variables, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    "script, variables, said",
    [
        ("run_glue.sh", "TASK=rte", "run_glue.sh: error: TASK is no variable of this script: set TASKS"),
        ("run_glue.sh", "SEED=5", "SEED is no variable of this script: set SEEDS"),
        ("run_glue.sh", "LEARNING_RATES=1e-4", "set LEARNING_RATE "),
        ("run_squad.sh", "TASKS=squad_v2", "run_squad.sh: error: TASKS is no variable of this script: set TASK "),
        ("run_sweep.sh", "TASKS=rte", "set TASK "),
        ("run_sweep.sh", "LEARNING_RATE=1", "set LEARNING_RATES"),
        ("run_pretrain.sh", "TASK=rte", "set TASKS"),
        ("run_pretrain.sh", "METHOD=kd", "set METHODS"),
        ("run_ablation.sh", "CRITERION=l2-l1", "set CRITERIA"),
        ("run_ablation.sh", "SEED=1", "set SEEDS"),
        ("run_ablation.sh", "GRID=seed=1,2", "--seed would be the same in all commands"),
        ("run_ablation.sh --window 3", "GRID=window=3,5", "--window and GRID both say it: leave one out"),
        ("run_glue.sh", "DATA_OPTIONS='--train_file x'", "DATA_OPTIONS are for custom: name it among the tasks"),
        ("run_glue.sh", "TASKS=custom DATA_OPTIONS='--seed 3'", "--seed would be the same in all commands"),
        ("run_sweep.sh", "TASK=custom DATA_OPTIONS='--train_file \"a'", "DATA_OPTIONS has a quote without its end"),
        ("run_dynabert.sh", "OBJECTIVE=ckd", "set OBJECTIVES"),
        ("run_glue.sh", "DRY_RUN=true", "run_glue.sh: error: DRY_RUN is true: use 1 for yes; 0, no or nothing for no"),
        ("run_glue.sh", "CACHE_TEACHER=2", "CACHE_TEACHER is 2: use 1"),
        ("run_sweep.sh", "CACHE_TEACHER=yes", "CACHE_TEACHER is yes: use 1"),
        ("run_dynabert.sh", "CACHE_TEACHER=false", "CACHE_TEACHER is false: use 1"),
        ("run_pretrain.sh", "STREAMING=on", "STREAMING is on: use 1"),
        *[
            (f"run_{name}.sh", "DRY_RUN=x", "DRY_RUN is x: use 1")
            for name in ("squad", "pretrain", "ablation", "dynabert", "sweep", "languages")
        ],
        ("run_glue.sh", "LAUNCH='torchrunn --nproc_per_node 2'", "LAUNCH names 'torchrunn', which is no command here"),
        ("run_pretrain.sh", "LAUNCH=' '", "LAUNCH names '', which is no command"),
        ("run_glue.sh", "TERMS=ckdd", "distill_finetune.py: error: --terms 'ckdd' is neither a preset"),
        ("run_glue.sh", "EPOCHS=three", "argument --num_train_epochs: 'three' must be a number above 0"),
        ("run_glue.sh --window 10", "", "--window 10 must be odd"),
        ("run_glue.sh", "STUDENT=nobody-has-this", "run_glue.sh: error: STUDENT 'nobody-has-this' "),
        ("run_squad.sh --layer_map x", "", "unknown layer map 'x'"),
        ("run_pretrain.sh", "EPOCHS=0", "distill_finetune.py: error: argument --num_train_epochs: '0'"),  # behind it
        ("run_pretrain.sh", "TERMS=ckdd", "distill_pretrain.py: error: --terms 'ckdd'"),
        ("run_languages.sh", "TERMS=ckdd", "distill_pretrain.py: error: --terms 'ckdd'"),
        ("run_languages.sh", "CORPUS=ko=", "--corpus 'ko=' names nothing"),
        ("run_languages.sh", "TASK_EPOCHS=0", "distill_finetune.py: error: argument --num_train_epochs: '0'"),
        ("run_dynabert.sh", "DEPTH_EPOCHS=-1", "distill_dynabert.py: error: argument --num_train_epochs: '-1'"),
        ("run_ablation.sh", "STUDENT_LAYERS=six", "STUDENT_LAYERS names six: use a whole number"),
        ("run_ablation.sh", "TASKS=rte", "/runs/rte/teacher/seed1 holds no trained teacher: run this first: RUNS="),
    ],
)
def test_a_mistake_ends_a_script_in_one_line_before_a_teacher_is_trained(run_script, tmp_path, script, variables, said):
    status, stdout, stderr = run_script(*script.split(), **dict(word.split("=", 1) for word in shlex.split(variables)))
    assert status == 2 and said in stderr and len(stderr.splitlines()) == 1 and not stdout, stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value, on", [("1", True), ("", False), ("0", False), ("no", False)])
def test_a_switch_is_on_with_1_and_off_when_empty_0_or_no(run_script, tmp_path, value, on):
    for script, variable, option in (
        ("run_glue.sh", "CACHE_TEACHER", "--cache_teacher"),
        ("run_dynabert.sh", "CACHE_TEACHER", "--cache_teacher"),
        ("run_sweep.sh", "CACHE_TEACHER", "--cache_teacher"),
        ("run_pretrain.sh", "STREAMING", "--streaming"),
    ):
        status, stdout, stderr = run_script(script, DRY_RUN="1", **{variable: value})
        assert status == 0 and (option in stdout.split()) == on, stderr
    status, stdout, stderr = run_script("run_glue.sh", "--check_only", DRY_RUN=value)
    assert status == 0 and bool(stdout) == on and not stderr and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "script, count",
    [
        ("run_glue.sh", 1 + 3),
        ("run_squad.sh", 1 + 3),
        ("run_pretrain.sh", 1 + 4),
        ("run_dynabert.sh", 1 + 2 * 3),
        ("run_sweep.sh", 1 + 6),
    ],
)
def test_every_command_is_checked_once_for_all_seeds_before_the_first_is_carried_out(tmp_path, script, count):
    """A stand-in for python notes what it is called with."""
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\n[ "$1" = - ] || echo "$@" >> {tmp_path}/log\n')
    fake.chmod(0o755)
    variables = {"SEEDS": "7 8", "LABEL_EPOCHS": "1", "LAUNCH": "env python"}
    variables["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    if script == "run_sweep.sh":
        variables["METHODS"] = "kd"
    subprocess.run(["bash", script], env=os.environ | variables, check=True, capture_output=True)
    lines = (tmp_path / "log").read_text().splitlines()
    own = [line for line in lines if line.startswith("distill_")]
    if script == "run_pretrain.sh":  # the fine-tuning's are checked again, when the student is there
        assert [line.endswith(" --check_only") for line in own] == [True] * 5 + [False] + [True] * 4 + [False] * 7
        return
    assert [line.endswith(" --check_only") for line in own] == [True] * count + [False] * (len(own) - count)
    checked = {line.removesuffix(" --check_only") for line in own[:count]}
    assert len(checked) == count and checked <= set(own[count:]) and not any("--seed 8" in line for line in own[:count])
    assert len(own) - count == 2 * (count - 1) + 1


def test_ablations_take_a_trained_teacher_and_say_where_there_is_none(run_script, world, tmp_path):
    folder = tmp_path / "runs" / "cola" / "teacher" / "seed1"
    folder.mkdir(parents=True)
    for name, text, ready in (
        ("config.json", "{}", True),
        ("run.json", '{\n "status": "running"\n}\n', False),
        ("run.json", '{\n "status": "complete"\n}\n', True),
    ):
        (folder / name).write_text(text)
        status, _, stderr = run_script("run_ablation.sh", "--check_only", GRID="stages", STUDENT=str(world / "bert"))
        assert status == (0 if ready else 2) and ("holds no trained teacher" in stderr) != ready, stderr
    status, stdout, _ = run_script("run_ablation.sh", DRY_RUN="1", RUNS=str(tmp_path / "none"))
    assert status == 0 and stdout


# --- the command in run.json, relations.py in another project -------------------------------------------------------


@pytest.mark.parametrize("count, launcher", [("1", ["python"]), ("4", ["torchrun", "--nproc_per_node", "4"])])
def test_the_command_of_a_record_can_be_pasted(monkeypatch, count, launcher):
    words = ["./distill_finetune.py", "--label_separator", "; ", "--text_columns", "it's", "$HOME *", "--data_dir", ""]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {run_folder.command()}"], capture_output=True, text=True
    ).stdout
    assert shown.split("\0")[:-1] == [*launcher, *words]


def test_the_relations_work_alone_in_another_project_as_the_docs_show(tmp_path):
    page = Path("docs/extending.md").read_text()
    (block,) = [
        block for block in re.findall(r"^```python\n(.*?)^```", page, re.S | re.M) if "from relations import" in block
    ]
    assert block.count("\n") == 10
    for name in ("relations.py", "losses.py"):
        shutil.copy(name, tmp_path)
    shutil.copytree("methods", tmp_path / "methods")
    check = """
import sys
assert not {"transformers", "losses", "methods", "numpy.testing"} & set(sys.modules)
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
