"""The README and the pages of docs/: their commands would start, what they name and link to is there, examples work."""

import ast
import contextlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
import yaml
from conftest import run_script
from datasets import Dataset
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import data
import distill_dynabert
import distill_finetune
import distill_pretrain
import evaluate
import losses
import report
import synthetic
import training
import trim_vocabulary
from encoders import layer_maps
from options import Parser, add_distillation
from reporting import records
from tasks import kinds

SCRIPTS = {
    "distill_finetune.py": distill_finetune,
    "distill_pretrain.py": distill_pretrain,
    "report.py": report,
    "distill_dynabert.py": distill_dynabert,
    "synthetic.py": synthetic,
    "trim_vocabulary.py": trim_vocabulary,
    "evaluate.py": evaluate,
}
README = Path("README.md")
PAGES = [README, *sorted(Path("docs").rglob("*.md"))]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
]
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


def test_the_pages_show_commands():
    assert {
        "run_glue.sh",
        "run_squad.sh",
        "run_pretrain.sh",
        "run_tests.sh",
        "distill_finetune.py",
        "bench/bench_step.py",
        "run_ablation.sh",
    } <= {parts(command)[1] for command in COMMANDS}


def anchors(page):
    """The headings of a page as GitHub's links name them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)", prose, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    """[(target as written, the file or folder that it names, its anchor)] of a page's links inside the repository."""
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    parted = [(target, *target.partition("#")[::2]) for target in targets if not target.startswith("https://")]
    return [
        (target, (page.parent / path).resolve() if path else page.resolve(), anchor) for target, path, anchor in parted
    ]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_a_page_links_to_is_there(page):
    found = links(page)
    assert found
    for target, path, anchor in found:
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_every_page_is_reached_from_the_readme():
    reached, todo = set(), [README.resolve()]
    while todo:
        page = todo.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            todo += [path for _, path, _ in links(page)]
    assert {page.resolve() for page in PAGES} <= reached


def section(page, heading):
    """The text of a page below a heading, to the next one of its level."""
    level = "#" * (len(heading) - len(heading.lstrip("#")))
    text = page.read_text(encoding="utf-8")
    return re.search(rf"^{re.escape(heading)}\n(.*?)(?=^{level} |\Z)", text, re.S | re.M)[1]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_script_and_module_that_a_page_names_is_there(page):
    names = re.findall(r"`([\w./*-]+\.(?:py|sh))`", page.read_text(encoding="utf-8"))
    assert [name for name in names if not list(Path().glob(name))] == []


def top_names(path):
    """What a module defines, or imports by name, at its top."""
    found = set()
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        found |= {alias.asname or alias.name for alias in getattr(node, "names", ())}
        found |= {getattr(target, "id", "") for target in getattr(node, "targets", [getattr(node, "target", None)])}
        found.add(getattr(node, "name", ""))
    return found


def test_every_place_to_change_something_is_there():
    places = re.findall(r"`([\w/]+\.py)`: `(\w+)`", section(README, "## I want to change ..."))
    assert len(places) >= 14
    assert [(path, name) for path, name in places if not Path(path).is_file() or name not in top_names(path)] == []


def test_the_readme_draws_the_whole_tree():
    lines = [line for line in section(README, "## Files").splitlines() if line.startswith("    ")]
    drawn = {name for line in lines for name in line[:25].split()}
    assert [name for name in drawn if not list(Path().glob(name))] == []
    there = {path.name for path in Path().glob("*.py")} | {
        path.parent.name + "/" for path in Path().glob("*/__init__.py")
    }
    assert there <= drawn


def test_every_module_has_its_line_in_the_docs():
    text = section(Path("docs/extending.md"), "## Every file")
    rows = re.findall(r"`([\w/]+\.py)`", "\n".join(line.split(" | ")[0] for line in text.splitlines()))
    there = {
        path.as_posix()
        for path in [*Path().glob("*.py"), *Path().glob("*/*.py")]
        if path.parts[0] not in ("bench", "docs", "tests") and path.name != "__init__.py"
    }
    assert set(rows) == there and len(rows) == len(set(rows))


def test_every_file_of_runs_is_read_by_some_page():
    there = {path.as_posix() for path in Path("docs/runs").glob("*.csv")}
    read = {name for page in PAGES for name in re.findall(r"docs/runs/[\w-]+\.csv", page.read_text(encoding="utf-8"))}
    assert read <= there
    patterns = re.findall(r"`([\w*-]+\.csv)`", Path("docs/runs/README.md").read_text(encoding="utf-8"))
    explained = [{path.as_posix() for path in Path("docs/runs").glob(pattern)} for pattern in patterns]
    assert all(explained) and set.union(*explained) == there


@pytest.mark.parametrize("page, most", [(README, 160), (Path("docs/results.md"), 250)], ids=str)
def test_a_page_is_no_longer_than_it_may_be(page, most):
    assert page.read_text(encoding="utf-8").count("\n") <= most


def test_the_recipes_of_the_docs_are_those_that_are_trained():
    text = section(Path("docs/finetuning.md"), "## What `--terms ckd` means")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.M)
    assert len(rows) == 8
    for task, numbers in rows:
        assert [float(x) for x in numbers.split(" | ")] == list(losses.RECIPES[task]), task


def test_the_first_command_stands_on_the_first_two_screens_below_the_picture():
    text = Path("README.md").read_text(encoding="utf-8")
    before = text[: text.index("```bash\nbash run_glue.sh demo")]
    assert before.count("\n") <= 60 and "docs/relations.png" in before and "itself a distilled model" in before


def docs_script(name):
    """A script of docs/ as a module."""
    path = next(Path("docs").rglob(f"{name}.py"))
    spec = importlib.util.spec_from_file_location(f"docs_{name}", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_picture_is_drawn_by_its_script(tmp_path, monkeypatch):
    """The script draws what is committed: the same size and, but for the rasteriser's rounding, the same pixels."""
    script = docs_script("relations")
    monkeypatch.setattr(script, "__file__", str(tmp_path / "relations.py"))
    script.main()
    drawn, kept = (matplotlib.image.imread(path) for path in (tmp_path / "relations.png", "docs/relations.png"))
    assert drawn.shape == kept.shape and abs(drawn - kept).mean() < 0.01 and drawn.std() > 0.1


def test_frames_tell_one_rotation_from_one_for_each_block():
    frames = docs_script("frames")
    random = np.random.default_rng(1)
    teacher = random.normal(size=(8, 30, 6)) @ np.diag([3, 1, 1, 1, 0, 0]).astype(float)
    teacher -= teacher.mean(1, keepdims=True)
    turns = np.linalg.qr(random.normal(size=(8, 6, 6)))[0]
    together, apart = 2 * teacher @ turns[0], np.einsum("btd,bde->bte", teacher, turns)
    narrow = teacher[..., :4] @ np.linalg.qr(random.normal(size=(4, 4)))[0]
    assert np.allclose([frames.compare(together, teacher), frames.compare(narrow, teacher)], 1)
    for_all, for_each = frames.compare(apart, teacher)
    assert for_all < 0.6 and np.isclose(for_each, 1)


def test_the_probe_reads_what_a_pass_of_one_sentence_gives(world):
    probe, folder = docs_script("probe"), world / "bert"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = ["The dog sleeps.", "These small cats near the boat chase a bird.", "Nuns sing."]
    rows = data.tokenize(Dataset.from_dict({"text_a": texts, "label": [0, 1, 0]}), tokenizer, 32)
    first, mean = probe.text_vectors(model, rows, tokenizer)
    for i, text in enumerate(texts):
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].detach().numpy()
        assert np.allclose(first[i], hidden[0], atol=1e-5) and np.allclose(mean[i], hidden.mean(0), atol=1e-5)
    random = np.random.default_rng(1)
    words = random.normal(size=(300, 5))
    assert probe.accuracy(words[:200], words[:200, 0] > 0, words[200:], words[200:, 0] > 0) > 0.9
    assert probe.accuracy(words[:200], words[:200, 0] > 0, words[200:], words[200:, 1] > 0) < 0.7


def test_the_citation_file_has_what_its_format_demands():
    """Citation File Format 1.2.0: required keys, known types, authors (an entity, persons), the paper as reference."""
    cff = yaml.safe_load(Path("CITATION.cff").read_text(encoding="utf-8"))
    assert (
        {"cff-version", "message", "title", "authors"}
        <= set(cff)
        <= {"cff-version", "message", "title", "authors", "type", "abstract", "license", "keywords", "references"}
    )
    assert (cff["cff-version"], cff["type"], cff["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert all(set(author) == {"name"} for author in cff["authors"])  # an entity
    (paper,) = cff["references"]
    assert {"type", "title", "authors"} <= set(paper) and paper["type"] == "conference-paper"
    assert [f"{one['given-names']} {one['family-names']}" for one in paper["authors"]] == [
        "Geondo Park",
        "Gyeongman Kim",
        "Eunho Yang",
    ]
    assert paper["title"] == "Distilling Linguistic Context for Language Model Compression" and paper["year"] == 2021
    assert all(
        set(one) <= {"type", "value", "description"} and one["type"] in ("doi", "url", "swh", "other")
        for one in paper["identifiers"]
    )
    readme = Path("README.md").read_text(encoding="utf-8")
    assert paper["title"] in readme and "2109.08359" in paper["identifiers"][0]["value"] and paper["url"] in readme


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
    else:  # of docs/ and bench/: a script of its own, with the options of bench/timing.py
        text += Path("bench/timing.py").read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in arguments if word.startswith("--"))


def dry_run(script, *arguments, launch="python", **variables):
    """[(script, its parsed and checked options)] of the commands that DRY_RUN=1 prints, and nothing else on stdout."""
    environment = {**os.environ, "DRY_RUN": "1", "LAUNCH": launch, "RUNS": "my runs", **variables}
    shown = subprocess.run(["bash", script, *arguments], env=environment, check=True, capture_output=True, text=True)
    assert not shown.stderr
    found = []
    for line in shown.stdout.splitlines():
        words = shlex.split(line)
        at = next(i for i, word in enumerate(words) if word in SCRIPTS)
        once = not words[at].startswith("distill") or (script, words[at]) == ("run_pretrain.sh", "distill_finetune.py")
        assert words[:at] == (["python"] if once else launch.split())
        args = SCRIPTS[words[at]].build_parser().parse_args(words[at + 1 :])
        if words[at] not in ("synthetic.py", "evaluate.py"):
            SCRIPTS[words[at]].check_args(args)
        found.append((words[at], args))
    return found


@pytest.mark.parametrize("launch", ["python", "torchrun --nproc_per_node 2"])
@pytest.mark.parametrize(
    "script, arguments, count",
    [
        ("run_glue.sh", [], 2 + 2 * 2 * 3),
        ("run_glue.sh", ["demo"], 2 + 2 * 3),
        ("run_squad.sh", [], 1 + 2 * 3),
        ("run_squad.sh", ["demo"], 2 + 2 * 3),
        ("run_pretrain.sh", [], 1 + 2 + 2 * 2 * 3),
        ("run_pretrain.sh", ["demo"], 3 + 2 * 3),
        ("run_ablation.sh", [], 2 * 2 * 29),
        ("run_dynabert.sh", [], 2 + 2 * 2 * 2 * 2),
        ("run_dynabert.sh", ["demo"], 2 + 2 * 2 * 2),
    ],
)
def test_every_command_that_a_script_prints_would_start_after_those_it_needs(script, arguments, count, launch):
    tasks = {} if script == "run_squad.sh" else {"TASKS": "mrpc rte"}
    commands = dry_run(
        script,
        *arguments,
        "--window",
        "11",
        "--logging_steps=7",
        "--no_embeddings",
        launch=launch,
        SEEDS="1 2",
        DATA_DIR="my data",
        STUDENT_LAYERS="6",
        **tasks,
    )
    made = [args.output_dir for name, args in commands]
    assert len(commands) == count == len(set(made))
    if script == "run_ablation.sh":  # its teachers are made by run_glue.sh
        made = [args.output_dir for _, args in dry_run("run_glue.sh", TASKS="mrpc rte")]
    there, teachers = set(made) if script == "run_ablation.sh" else set(), []
    for name, args in commands:
        if name == "synthetic.py":
            continue
        assert all(folder in there for folder in (args.teacher, args.student) if (folder or "").startswith("my "))
        there.add(args.output_dir)
        teachers.append(args.run_name == "teacher")
        nested = script == "run_pretrain.sh" and name == "distill_finetune.py"
        assert args.logging_steps == (50 if nested else 7)
        if args.teacher and not nested:
            assert args.window in (11, *((3, 5, None) if script == "run_ablation.sh" else ())) and args.no_embeddings
    if script != "run_pretrain.sh":
        assert teachers == sorted(teachers, reverse=True) and any(teachers) == (script != "run_ablation.sh")


@pytest.mark.parametrize("arguments", [[], ["demo"]])
def test_models_of_some_languages_are_made_before_they_are_read(arguments):
    commands = dry_run("run_languages.sh", *arguments, "--mixed_precision", "bf16", launch="env python", SEEDS="1 2")
    made = []
    for name, args in commands:
        read = [getattr(args, key, None) for key in ("model", "teacher", "student")] + getattr(args, "models", [])
        assert all(folder in made for folder in read if (folder or "").startswith("my "))
        precise = name == "distill_finetune.py" or (name == "distill_pretrain.py" and args.teacher)
        assert getattr(args, "mixed_precision", "bf16") == ("bf16" if precise or name[0] != "d" else "no")
        made.append(str(args.output_dir))
    assert len(made) == len(set(made)) == 3 + 2 * 2 + 1 + 2 * len(arguments)
    assert commands[-1][0] == "evaluate.py" and len(commands[-1][1].models) == 1 + 2 * 2


@pytest.mark.parametrize(
    "script",
    ["run_glue.sh", "run_squad.sh", "run_pretrain.sh", "run_ablation.sh", "run_dynabert.sh", "run_languages.sh"],
)
def test_a_dry_run_runs_nothing(shell, script):
    assert shell(script, "--max_steps", "5", DRY_RUN="1") == (0, "", [])


@pytest.mark.parametrize("script", ["run_glue.sh", "run_squad.sh"])
@pytest.mark.parametrize("option", ["--terms", "--seed=3", "--output_dir"])
def test_an_option_that_would_be_the_same_for_all_runs_is_refused(shell, script, option):
    status, stderr, commands = shell(script, option, "ckd")
    assert status == 2 and not commands
    assert re.fullmatch(rf"{script}: error: {option.partition('=')[0]} would be the same .*\n", stderr)


def test_the_scripts_know_which_options_need_a_teacher():
    shown = subprocess.run(
        ["bash", "-c", "source scripts/presets.sh; echo $DISTILLATION"], check=True, capture_output=True, text=True
    ).stdout.split()
    parser = Parser()
    add_distillation(parser)
    assert set(shown) == {o for a in parser._actions for o in a.option_strings} - {"-h", "--help"} | {
        "--cache_teacher",
        "--more_teachers",
    }


# Stand-ins: GNU parallel puts the line, quoted, for {} and the number of the slot, from 1, for {%}; SLURM runs the text
# of --wrap once for each number of --array.
PARALLEL = """#!/usr/bin/env bash
slot=0
while read -r line; do
    slot=$((slot + 1)) line=$(printf %q "$line")
    command=${3%"{}"*}$line${3##*"{}"}
    sh -c "${command/"{%}"/$slot}"
done
"""
SBATCH = """#!/usr/bin/env bash
while [ $# -gt 1 ]; do case $1 in --array) last=${2#1-} ;; --wrap) wrap=$2 ;; esac; shift; done
for ((i = 1; i <= last; i++)); do SLURM_ARRAY_TASK_ID=$i sh -c "$wrap" >&2; done
echo 17
"""
SRUN = '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'


@pytest.mark.parametrize("launcher", ["parallel", "sbatch"])
def test_the_two_waves_of_the_docs_run_as_pasted(launcher, tmp_path):
    blocks = re.findall(r"(?:^    .*\n)+", Path("docs/clusters.md").read_text(encoding="utf-8"), re.M)
    waves = {name: next(block for block in blocks if f"{name} -" in block) for name in ("parallel", "sbatch")}
    split = "".join(line for line in waves["parallel"].splitlines(keepends=True) if "grep" in line)
    fake = f'#!/bin/sh\nprintf "%s\\037" "$CUDA_VISIBLE_DEVICES" "$@" >> {tmp_path}/log; echo >> {tmp_path}/log\n'
    for name, text in (("python", fake), ("parallel", PARALLEL), ("sbatch", SBATCH), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    variables = {"TASKS": "cola rte", "DATA_DIR": 'it\'s $HOME; "my" data', "SEEDS": "1"}
    text = subprocess.run(
        ["bash", "run_glue.sh"],
        env={**os.environ, "DRY_RUN": "1", **variables},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (tmp_path / "jobs.txt").write_text(text)
    block = waves[launcher] if launcher == "parallel" else split + waves[launcher]
    subprocess.run(
        ["bash", "-euc", block],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    done = [line.split("\037")[:-1] for line in (tmp_path / "log").read_text().splitlines()]
    done = [words for words in done if words[1] != "report.py"]
    assert [words[1:] for words in done] == [shlex.split(line)[1:] for line in text.splitlines()]
    assert done[0][1:4] == ["distill_finetune.py", "--task", "cola"] and variables["DATA_DIR"] in done[0]
    if launcher == "parallel":
        assert [words[0] for words in done] == ["0", "1", "0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("script", ["run_glue.sh", "run_squad.sh"])
def test_each_method_has_its_own_recipe_and_what_is_given_wins(script):
    def recipes(*arguments):
        tasks = {} if script == "run_squad.sh" else {"TASKS": "mrpc"}
        commands = dry_run(script, *arguments, METHODS=" ".join(losses.PRESETS), SEEDS="1", TEMPERATURE="4", **tasks)
        return {o.run_name: (o.temperature, o.hard_weight, o.stages) for _, o in commands if o.teacher}

    found = recipes()
    recipe = {
        "kd": (4, 0),
        "pkd": (10, 0.5),
        "tinybert": (1, 0),
        "distilbert": (2, 2),
        "minilm": (1, 1),
        "ckd": (4, 0),
        "dynabert": (1, 0),
    }
    assert {name: found[name][:2] for name in recipe} == recipe  # a preset of one's own may stand beside them
    assert {name for name in recipe if found[name][2]} == {"tinybert", "minilm"}
    found = recipes("--temperature", "1.5", "--hard_weight=3", "--stages", "hard", "logits=1")
    assert set(map(str, found.values())) == {"(1.5, 3.0, None)"}


def test_every_grid_of_the_ablation_is_there():
    commands = dry_run("run_ablation.sh", "--max_steps", "5", TASKS="mrpc rte", SEEDS="1 2")
    runs = {}
    for _, args in commands:
        assert args.max_steps == 5 and args.teacher == f"my runs/{args.task}/teacher/seed1"
        runs.setdefault(args.run_name, []).append(args)
    assert all(len({run.output_dir for run in of}) == len(of) == 4 for of in runs.values())
    relations = {"wr_pair", "wr_triple", "ltr_pair", "ltr_triple"}
    for name, missing in (
        ("ckd", set()),
        ("no-wr-pair", {"wr_pair"}),
        ("no-wr-triple", {"wr_triple"}),
        ("no-wr", {"wr_pair", "wr_triple"}),
        ("no-ltr-pair", {"ltr_pair"}),
        ("no-ltr-triple", {"ltr_triple"}),
        ("no-ltr", {"ltr_pair", "ltr_triple"}),
        ("no-relations", relations),
    ):
        assert set(runs[name][0].terms) == {"logits"} | relations - missing
    assert [runs[f"window-{window}"][0].window for window in ("3", "5", "11", "all")] == [3, 5, 11, None]
    assert runs["ckd"][0].window == 21 and runs["ckd"][0].layer_map == "uniform"
    # The presets of the tasks, with weights scaled by temperature^2 as the logits are.
    assert [(run.temperature, run.terms["wr_pair"], run.terms["ltr_triple"]) for run in runs["ckd"][::2]] == [
        (4, 16, 16),
        (3, 9, 90),
    ]
    first, then = runs["relations-first"][0].stages
    assert first == [0.0, {name: runs["ckd"][0].terms[name] for name in losses.TERMS if name in relations}]
    assert then == [0.5, {"logits": 1.0}]
    sizes = [(of[0].student_layers, of[0].student_hidden) for name, of in runs.items() if name.startswith("size-")]
    assert sizes == [(6, 768), (4, 512), (4, 312), (2, 128)]


def test_any_option_or_weight_is_a_grid_of_the_ablation():
    grid = "temperature=1,2 wr_triple=0,5 no_embeddings=on learning_rate=1e-3 student_layers=2 layer_map=0:0"
    commands = dry_run("run_ablation.sh", GRID=grid, TASKS="cola", SEEDS="1")
    runs = {args.run_name: args for _, args in commands}
    names = ["temperature-1", "temperature-2", "wr_triple-0", "wr_triple-5", "no_embeddings-on"]
    assert [*runs] == ["ckd", *names, "learning_rate-1e-3", "student_layers-2", "layer_map-0-0"]
    weights = {
        name: (run.temperature, run.terms.get("wr_pair"), run.terms.get("wr_triple")) for name, run in runs.items()
    }
    assert [weights[name] for name in names[:4]] == [(1, 1, 10), (2, 4, 40), (3, 9, None), (3, 9, 5)]
    assert (runs["learning_rate-1e-3"].learning_rate, runs["student_layers-2"].student_layers) == (1e-3, 2)
    assert [run.no_embeddings for run in runs.values()] == [name == "no_embeddings-on" for name in runs]
    assert len({run.output_dir for run in runs.values()}) == 9 and runs["layer_map-0-0"].layer_map == "0:0"


def test_own_data_go_through_the_scripts_as_tasks_do():
    words = ["--train_file", "my own/train.csv", "--validation_file", "dev.csv", "--label_column", "topic"]
    own = f"--dataset_name news {shlex.join(words)}"
    commands = [
        args for _, args in dry_run("run_glue.sh", TASKS="custom rte", SEEDS="1", DATA_DIR="x", DATA_OPTIONS=own)
    ]
    news = [args for args in commands if args.task == "custom"]
    assert len(commands) == 8 and [args.run_name for args in news] == ["teacher", "finetune", "kd", "ckd"]
    assert {(args.train_file, args.label_column, args.data_dir) for args in news} == {(words[1], "topic", None)}
    assert {args.teacher for args in news} == {None, "my runs/news/teacher/seed1"}
    assert {args.output_dir for args in news} == {f"my runs/news/{args.run_name}/seed1" for args in news}
    swept = dry_run("run_sweep.sh", "--dataset_name=news", *words, TASK="custom", METHODS="kd")
    assert {args.output_dir.rpartition("/kd-")[0] for _, args in swept[1:]} == {"my runs/sweep/news"}
    grid = dry_run("run_ablation.sh", TASKS="custom", GRID="stages", SEEDS="1", DATA_OPTIONS=own)
    assert {(args.teacher, args.train_file) for _, args in grid} == {("my runs/news/teacher/seed1", words[1])}


def test_scripts_say_what_they_are_and_stop_at_errors():
    for script in Path().glob("run_*.sh"):
        text = script.read_text(encoding="utf-8")
        assert text.startswith("#!/usr/bin/env bash\n# ") and "set -euo pipefail" in text
        assert not re.search(r"\\[ \t]+$", text, re.M)


def test_no_script_trips_over_an_empty_array_in_an_older_bash():
    """Before bash 4.4, "${a[@]}" of an empty array is an unset variable under set -u: ${a[@]+"${a[@]}"} is not."""
    for script in Path().glob("*.sh"):
        text = script.read_text(encoding="utf-8")
        for name in re.findall(r'(?<!\+)"\$\{(\w+)\[@\]\}"', text):
            assigned = re.findall(rf"\b{name}=\(\s*(\S)", text)
            assert assigned and not {")", "$", '"'} & set(assigned), f"{script}: {name} may be empty"


@pytest.mark.parametrize("script", ["distill_finetune.py", "distill_pretrain.py", "distill_dynabert.py"])
def test_the_examples_in_a_docstring_would_start(script):
    examples = SCRIPTS[script].__doc__.replace("\\\n", " ").splitlines()
    examples = [shlex.split(line) for line in examples if line.strip().startswith("python ")]
    assert examples
    for _, name, *arguments in examples:
        args = SCRIPTS[name].build_parser().parse_args(arguments)
        SCRIPTS[name].check_args(args)


@pytest.fixture
def shell(tmp_path):
    """Run a script where python only notes its arguments: (exit status, stderr, [the words of each command]).

    What only checks options is not noted.
    """
    (tmp_path / "bin").mkdir()
    fake, log = tmp_path / "bin" / "python", tmp_path / "log"
    fake.write_text(
        '#!/bin/sh\ncase " $* " in " - "* | *" --check_only "*) exit ;; esac\n'
        f'printf "%s\\037" "$@" "END" >> {shlex.quote(str(log))}\n'
    )
    fake.chmod(0o755)

    def run(script, *arguments, **variables):
        log.write_text("")
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path), **variables}
        done = subprocess.run(["bash", script, *arguments], env=environment, capture_output=True, text=True)
        commands = [command.split("\037")[:-1] for command in log.read_text().split("END\037")[:-1]]
        return done.returncode, done.stderr, commands

    return run


@pytest.mark.parametrize(
    "script, variable, value, known",
    [
        ("run_glue.sh", "METHODS", "kd ckdd", "ckdd: use finetune kd ckd pkd tinybert distilbert minilm"),
        ("run_glue.sh", "METHODS", " ", "METHODS is blank"),
        ("run_glue.sh", "TASKS", "cola sst-2", "sst-2: use cola sst2 mrpc stsb qqp mnli qnli rte wnli"),
        ("run_glue.sh", "SEEDS", "1 two", "two: use whole numbers"),
        ("run_squad.sh", "METHODS", "kd,ckd", "kd,ckd: use finetune kd"),
        ("run_squad.sh", "TASK", "squad2", "squad2: use squad squad_v2"),
        ("run_squad.sh", "SEEDS", "-1", "-1: use whole numbers"),
        ("run_pretrain.sh", "TASKS", "rte colla", "colla: use cola"),
        ("run_pretrain.sh", "METHODS", "kd ckdd", "ckdd: use finetune"),
        ("run_pretrain.sh", "SEEDS", "1,2", "1,2: use whole numbers"),
        ("run_languages.sh", "TASK", "pos", "pos: use squad tags"),
        ("run_languages.sh", "TASK", "tags", "TRAIN_FILE is '': TASK=tags needs a file that is there"),
        ("run_languages.sh", "SETS", "en=none.json", "en=none.json: use NAME=FILE with a file that is there"),
        ("run_ablation.sh", "TASKS", "squad", "squad: use cola"),
        ("run_ablation.sh", "GRID", "window layers", "layers: use leave_one_out window"),
        ("run_ablation.sh", "GRID", "temperature=1,,2", "temperature=1,,2: use leave_one_out window"),
        ("run_ablation.sh", "WINDOWS", "3 4", "4: use odd numbers or all"),
        ("run_ablation.sh", "LAYER_MAPS", "frist", "frist: use uniform last first ends"),
        ("run_ablation.sh", "CRITERIA", "kl", "kl: use cosine-mse"),
        ("run_ablation.sh", "SIZES", "4x312", "4x312: use layers/width"),
        ("run_ablation.sh", "SIZES", "4/100", "4/100: use a width that 64 or 12 divides"),
        ("run_ablation.sh", "SEEDS", "one", "one: use whole numbers"),
        ("run_dynabert.sh", "OBJECTIVES", "ckd minilm", "minilm: use ckd kd dynabert pkd distilbert"),
        ("run_dynabert.sh", "WIDTHS", "1.0,0.5", "1.0,0.5: use shares up to 1"),
        ("run_dynabert.sh", "DEPTHS", "1.0 1.5", "1.5: use shares up to 1"),
        ("run_dynabert.sh", "TASKS", "squad1", "squad1: use cola"),
    ],
)
def test_a_misspelt_name_is_refused_before_anything_runs(shell, script, variable, value, known):
    status, stderr, commands = shell(script, **{variable: value})
    assert status == 2 and not commands
    assert re.fullmatch(rf"{re.escape(script)}: error: ({variable}|TRAIN_FILE) .*\n", stderr) and known in stderr


def test_the_scripts_know_the_tasks_and_methods_of_the_code():
    names = "source scripts/presets.sh; echo $ALL_TASKS; echo $ALL_METHODS"
    shown = subprocess.run(["bash", "-c", names], check=True, capture_output=True, text=True).stdout.splitlines()
    assert shown[0].split() == [name for name in data.TASKS if name not in ("ax", "squad", "squad_v2", "custom")]
    assert shown[1].split() == ["finetune", *losses.PRESETS]
    assert set(records.TASKS) <= set(data.TASKS)  # an order of rows; others come after them


def options_of(command):
    """{option: its words} of a command."""
    found = {}
    for word in command:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found[name] = [value] if equals else []
        elif found:
            found[name].append(word)
    return found


@pytest.mark.parametrize("precision", [["--mixed_precision", "bf16"], ["--mixed_precision=bf16"], []])
@pytest.mark.parametrize("demo", [[], ["demo"]])
def test_pre_training_hands_on_its_precision_and_nothing_else(shell, precision, demo):
    variables = {"SEEDS": "4", "TERMS": "kd", "LEARNING_RATE": "0.125", "STUDENT_LAYERS": "4", "METHODS": "ckd"}
    status, stderr, commands = shell("run_pretrain.sh", *demo, *precision, "--logging_steps", "7", **variables)
    assert status == 0, stderr
    stages = {script: [options_of(c) for c in commands if c[0] == script] for script in SCRIPTS}
    for options in stages["distill_pretrain.py"]:
        assert options["--logging_steps"] == ["7"] and ("--mixed_precision" in options) == bool(precision)
    assert len(stages["distill_finetune.py"]) == (3 if demo else 2)
    for options in stages["distill_finetune.py"]:
        assert ("--mixed_precision" in options) == bool(precision)
        assert options.get("--mixed_precision", ["bf16"]) == ["bf16"]
        assert "--logging_steps" not in options and options["--learning_rate"] != ["0.125"]
    if not demo:
        assert stages["distill_pretrain.py"][0]["--terms"] == ["kd"]
        assert stages["distill_finetune.py"][-1]["--terms"][0] == "ckd"
        assert "--student_layers" not in stages["distill_finetune.py"][-1]


def test_what_is_said_to_be_optional_in_pre_training_can_be_left_empty(shell):
    status, _, commands = shell("run_pretrain.sh", STREAMING="", TASKS="", VALIDATION_CORPUS="")
    assert status == 0 and [command[0] for command in commands] == ["distill_pretrain.py"]
    assert not {"--streaming", "--validation_corpus"} & set(commands[0])
    _, _, commands = shell("run_pretrain.sh", STREAMING="1", TASKS="rte")
    assert "--streaming" in commands[0] and {options_of(c)["--task"][0] for c in commands[1:-1]} == {"rte"}


def example(start):
    """The Python example of docs/extending.md that begins so."""
    blocks = re.findall(r"^```python\n(.*?)^```", Path("docs/extending.md").read_text(encoding="utf-8"), re.S | re.M)
    (block,) = [block for block in blocks if block.startswith(start)]
    return block


def test_the_optimiser_of_the_docs_freezes_layers_and_gives_the_head_a_rate_of_its_own(world):
    space = {"torch": torch}
    exec(example("def make_optimizer"), space)
    model = AutoModelForSequenceClassification.from_pretrained(world / "bert")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = space["make_optimizer"](model, SimpleNamespace(learning_rate=1e-3, weight_decay=0.01))
    accelerator = SimpleNamespace(
        autocast=contextlib.nullcontext,
        backward=lambda loss: loss.backward(),
        clip_grad_norm_=torch.nn.utils.clip_grad_norm_,
    )
    ids = torch.tensor([[2, 9, 10, 3]])
    recipe = SimpleNamespace(loss=lambda model, batch: (model(**batch, labels=torch.tensor([1])).loss, {}))
    args = SimpleNamespace(max_grad_norm=1.0)
    training.training_step(args, accelerator, recipe, model, optimizer, [({"input_ids": ids}, 1.0)], 2e-4)
    assert isinstance(optimizer, torch.optim.RAdam) and [group["lr"] for group in optimizer.param_groups] == [
        2e-4,
        2e-3,
    ]
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    frozen = {name for name in before if ".layer.0." in name or ".layer.1." in name}
    assert frozen <= still and not any(
        name in still for name in before if "layer.2.output" in name or "classif" in name
    )


def test_a_scalar_without_a_weight_is_added_in_one_place():
    text, line = Path("losses.py").read_text(encoding="utf-8"), example("if teacher:")
    place = "    # Here `values"
    assert text.count(place) == 1
    space = {"__name__": "losses_with_a_scalar"}
    exec(text.replace(place, "".join(f"    {row}\n" for row in line.splitlines()) + place), space)
    logits = torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([[1.0, 2.0], [1.0, 3.0]])
    views = [space["ModelView"]({"logits": x}, (), torch.ones(2, 1)) for x in logits]
    args = SimpleNamespace(
        terms={"logits": 2.0}, hard_weight=0.0, temperature=1.0, teacher="t", weights={"logits": 2.0}
    )
    total, values = space["objective"](*views, {}, args)
    assert values["agreement"] == 0.5 and total == 2 * values["logits"]
    assert set(space["objective"](views[0], None, {}, args_without(args), lambda: total)[1]) == {"hard"}


def args_without(args):
    """The same without a teacher."""
    return SimpleNamespace(**vars(args) | {"terms": {}, "teacher": None, "hard_weight": 1.0, "weights": {"hard": 1.0}})


def test_help_names_the_layer_maps_and_kinds_that_there_are(monkeypatch, capsys):
    monkeypatch.setitem(layer_maps.STRATEGIES, "mirrored", lambda s, t: [(i, t - i) for i in range(s + 1)])
    monkeypatch.setitem(data.KINDS, "ordinal", "Ordinal")
    text = " ".join(distill_finetune.build_parser().format_help().split())
    assert "ends, mirrored, or pairs" in text and "summary, ordinal" in text
    assert layer_maps.layer_map(2, 4, "mirrored") == [(0, 4), (1, 3), (2, 2)]


def test_the_new_term_of_the_docs_works_as_pasted(finetune, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(losses, "TERMS", losses.TERMS.copy())
    exec(example("def _sentence_cosine_term"), vars(losses))
    terms = ("--terms", "ckd", "sentence_cosine=10")
    finetune("--teacher", teacher, "--student_layers", 2, *terms, "--max_steps", 1, "--output_dir", tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["options"]["terms"]["sentence_cosine"] == 10 and record["name"] == "ckd-sentence_cosine10"


def test_the_new_kind_of_the_docs_works_as_pasted(world, tmp_path, monkeypatch):
    exec(example("class Ordinal"), vars(kinds))
    line = '"ordinal": "Ordinal",'
    assert line in Path("docs/extending.md").read_text(encoding="utf-8")
    monkeypatch.setitem(data.KINDS, "ordinal", "Ordinal")
    monkeypatch.setitem(kinds.KINDS, "ordinal", kinds.Ordinal)
    stars = tmp_path / "stars.csv"
    stars.write_text("text,label\n" + "".join(f"the dog runs .,{i % 3}\n" for i in range(6)))
    options = f"--kind ordinal --train_file {stars} --validation_file {stars} --test_file {stars} --do_predict"
    options += f" --student {world}/bert --max_steps 1 --output_dir {tmp_path}/run"
    run_script(distill_finetune, ["--task", "custom", *options.split()])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["options"]["kind"] == "ordinal" and set(record["best"]["metrics"]) == {"accuracy"}
    assert len((tmp_path / "run" / "predictions.tsv").read_text().splitlines()) == 7
