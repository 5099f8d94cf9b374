"""Every command of the README: its script exists, its options are known, its variables are read by the script."""
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import distill_finetune
import distill_pretrain
import report
import synthetic

SCRIPTS = {
    "distill_finetune.py": distill_finetune, "distill_pretrain.py": distill_pretrain, "report.py": report,
    "synthetic.py": synthetic,
}  # fmt: skip
BLOCKS = re.findall(r"^```bash\n(.*?)^```", Path("README.md").read_text(encoding="utf-8"), re.S | re.M)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def parts(command):
    """(variables, script, its arguments) of a command line."""
    words = shlex.split(command, comments=True)
    variables = {}
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.S):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    at = next(i for i, word in enumerate(words) if word.endswith((".py", ".sh")))
    return variables, words[at], words[at + 1 :]


def test_the_readme_shows_commands():
    assert {"run_glue.sh", "run_squad.sh", "run_pretrain.sh", "run_tests.sh", "distill_finetune.py"} <= {
        parts(command)[1] for command in COMMANDS
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_would_start(command):
    variables, script, arguments = parts(command)
    assert Path(script).is_file()
    text = Path(script).read_text(encoding="utf-8")
    if script.endswith(".sh"):
        assert all(re.search(rf"^{name}=\$\{{{name}:?-", text, re.M) for name in variables)
        assert ("demo" not in arguments) or '"${1:-}" = demo' in text
        if script != "run_tests.sh":
            known = SCRIPTS["distill_pretrain.py" if "pretrain" in script else "distill_finetune.py"].build_parser()
            options = {o for action in known._actions for o in action.option_strings}
            assert all(word in options for word in arguments if word.startswith("--"))
    elif script in SCRIPTS:
        args = SCRIPTS[script].build_parser().parse_args(arguments)
        if hasattr(SCRIPTS[script], "check_args"):
            SCRIPTS[script].check_args(args)


def test_every_command_of_the_ablation_would_start():
    """DRY_RUN=1 prints what would run: each line is parsed and checked as distill_finetune.py would."""
    environment = {**os.environ, "DRY_RUN": "1", "TASKS": "mrpc rte", "SEEDS": "1 2", "RUNS": "my runs"}
    shown = subprocess.run(["bash", "run_ablation.sh", "--max_steps", "5"], env=environment, check=True,
                           capture_output=True, text=True).stdout.splitlines()  # fmt: skip
    runs = {}
    for line in shown:
        words = shlex.split(line)
        assert words[:2] == ["python", "distill_finetune.py"]
        args = distill_finetune.build_parser().parse_args(words[2:])
        distill_finetune.check_args(args)
        assert args.max_steps == 5 and args.teacher == f"my runs/{args.task}/teacher/seed1"
        runs.setdefault(args.run_name, []).append(args)
    assert all(len({run.output_dir for run in of}) == len(of) == 4 for of in runs.values())
    relations = {"wr_pair", "wr_triple", "ltr_pair", "ltr_triple"}
    for name, missing in (
        ("ckd", set()), ("no-wr-pair", {"wr_pair"}), ("no-wr-triple", {"wr_triple"}),
        ("no-wr", {"wr_pair", "wr_triple"}), ("no-ltr-pair", {"ltr_pair"}), ("no-ltr-triple", {"ltr_triple"}),
        ("no-ltr", {"ltr_pair", "ltr_triple"}), ("no-relations", relations),
    ):  # fmt: skip
        assert set(runs[name][0].terms) == {"logits"} | relations - missing
    assert [runs[f"window-{window}"][0].window for window in ("3", "5", "11", "all")] == [3, 5, 11, None]
    assert runs["ckd"][0].window == 21 and runs["ckd"][0].layer_map == "uniform"
    # The presets of the tasks, with weights scaled by temperature^2 as the logits are.
    assert [(run.temperature, run.terms["wr_pair"], run.terms["ltr_triple"]) for run in runs["ckd"][::2]] == [
        (4, 16, 16), (3, 9, 90)
    ]  # fmt: skip
    sizes = [(of[0].student_layers, of[0].student_hidden) for name, of in runs.items() if name.startswith("size-")]
    assert sizes == [(6, 768), (4, 512), (4, 312), (2, 128)]


def test_scripts_say_what_they_are_and_stop_at_errors():
    for script in Path().glob("run_*.sh"):
        text = script.read_text(encoding="utf-8")
        assert text.startswith("#!/usr/bin/env bash\n# ") and "set -euo pipefail" in text
        assert not re.search(r"\\[ \t]+$", text, re.M)


def test_the_new_term_of_the_readme_works_as_pasted(world, teacher, tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```", Path("README.md").read_text(encoding="utf-8"), re.S | re.M)
    for source in Path().glob("*.py"):
        text = source.read_text(encoding="utf-8")
        if source.name == "losses.py":
            text = text.replace("\nPRESETS = {", f"\n{block}\n\nPRESETS = {{", 1)
            assert block in text
        (tmp_path / source.name).write_text(text, encoding="utf-8")
    command = [sys.executable, "distill_finetune.py", "--task", "cola", "--data_dir", world / "glue",
               "--teacher", teacher, "--student_layers", "2", "--max_steps", "1", "--output_dir", "run",
               "--terms", "ckd", "sentence_pair=10"]  # fmt: skip
    subprocess.run(list(map(str, command)), cwd=tmp_path, check=True, capture_output=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["options"]["terms"]["sentence_pair"] == 10 and record["name"] == "ckd-sentence_pair10"
