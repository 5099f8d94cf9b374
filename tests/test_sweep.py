"""run_sweep.sh, reporting/sweep.py and RECIPES: from six tries a method to the options of every later run; runs.csv."""

import json
import math
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_readme import dry_run
from test_report import CPU, cells, make_run, refused, write

import report
from methods.term_weights import HARD
from reporting import exports, significance, sweep

METHODS = "finetune kd ckd pkd tinybert distilbert minilm"


def tried(method, number, seed, score, **options):
    """The record of a try, whose score on the dev set says the opposite of the one on what was held out."""
    run = make_run(f"{method}-{number}", seed=seed, score=1 - (score or 0))
    run["best"]["metrics"]["held_out/score"] = score
    chosen = {"terms": {"logits": 1.0}, "temperature": float(number), "hard_weight": 0.0, "stages": None}
    run["options"] = {"learning_rate": 1e-4, **({} if method == "finetune" else chosen), **options}
    return run


def read(train, dev, held_out, number=1, **options):
    """The record of a try of kd on these examples; each letter stands for other ones."""
    data = {
        name: {"examples": 50, "sha256": of * 64}
        for name, of in (("train", train), ("validation", dev), ("held_out", held_out))
    }
    return tried("kd", number, 1, 0.1, held_out=0.1, **options) | {"data": data}


def swept(root, capsys, *runs):
    """(what reporting/sweep.py printed, its errors, the lines of recipes.txt)."""
    write(root, *runs)
    assert sweep.main([str(root)]) == 0
    return *capsys.readouterr(), (root / "recipes.txt").read_text().splitlines()


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_the_step_down_procedure(seed):
    """Against its definition: reject from the smallest p on, as long as p <= level / (hypotheses left)."""
    draw = random.Random(seed)
    p = [draw.choice([draw.random() ** 4, 0.01, 0.05 / 3, 0.0, 1.0, math.nan]) for _ in range(draw.randrange(9))]
    corrected = significance.holm(pd.Series(p, dtype=float))
    assert corrected.isna().tolist() == [math.isnan(value) for value in p]
    for level in (0.01, 0.05, 0.2, 0.5):
        rejected, known = set(), sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
        for step, (value, i) in enumerate(known):
            if value > level / (len(known) - step) + 1e-15:
                break
            rejected.add(i)
        assert set(corrected.index[corrected <= level + 1e-15]) == rejected


def test_a_difference_that_is_sure_alone_is_not_sure_among_many(tmp_path, capsys):
    """p of ckd is 0.02: below 5 % alone, above it as one of four; the table says what was corrected for."""
    base = {1: 0.30, 2: 0.31, 3: 0.35, 4: 0.28}
    gains = {
        "ckd": (0.01, 0.02, 0.03, 0.04),
        "pkd": (0.0, 0.0, 0.0, 0.0),
        "minilm": (-0.1, 0.1, -0.1, 0.1),
        "tinybert": (0.10, 0.101, 0.099, 0.1),
    }
    runs = [make_run("kd", seed=seed, score=score) for seed, score in base.items()]
    runs += [
        make_run(name, seed=seed, score=base[seed] + gain)
        for name, of in gains.items()
        for seed, gain in enumerate(of, 1)
    ]
    root = write(tmp_path, *runs)
    report.main([root, "--baseline", "kd", "--methods", "kd,ckd"])
    text = capsys.readouterr().out
    assert cells(text, "ckd")[-1] == ["+2.5* [+0.4, +4.6] (4)"] and "of this table, level 5 %): ckd." in text
    report.main([root, "--baseline", "kd"])
    text = capsys.readouterr().out
    assert cells(text, "ckd")[-1] == ["+2.5 [+0.4, +4.6] (4)"] and cells(text, "pkd")[-1][0].startswith("+0.0 [")
    said = " ".join(text.split())
    assert (
        "different from kd (paired t tests, Holm's correction for the 4 of this table, level 5 %): tinybert. T" in said
    )


# --- the choice -------------------------------------------------------------------------------------------------------


def test_the_best_on_what_was_held_out_is_chosen_and_its_options_written(tmp_path, capsys):
    runs = [
        tried("kd", n, seed, score)
        for n, scores in ((1, (0.2, 0.4)), (2, (0.5, 0.3)), (10, (0.1, 0.2)))
        for seed, score in enumerate(scores)
    ]
    stages = {"stages": [[0.0, {"minilm": 1.0}], [0.25, {"hard": 1.0}]]}
    runs += [tried("minilm", n, seed, 0.1 * n, **stages, learning_rate=n * 1e-4) for n in (1, 2, 3) for seed in (0, 1)]
    runs += [tried("finetune", n, seed, 0.3, learning_rate=n * 1e-5) for n in (1, 2, 3) for seed in (0, 1)]
    out, err, recipes = swept(tmp_path, capsys, *runs)
    assert not err and recipes == [  # the first of equals: fine-tuning's
        "finetune --learning_rate 1e-05",
        "kd --terms logits=1 --hard_weight 0 --temperature 2 --learning_rate 0.0001",
        "minilm --stages minilm=1 0.25 hard=1 --temperature 3 --learning_rate 0.0003",
    ]
    rows = cells(out, "kd")
    assert [row[0] for row in rows] == ["1", "2", "10"] and rows[1][-1] == "**40.0 ± 14.1** (2)"
    assert rows[0][-1] == "30.0 ± 14.1 (2)" and "held-out Matthews x 100" in out
    assert "Each method: 3 tries of seed 0, 1. Tied for the best" in out and "taken: finetune (3 tries); with" in out


def test_unequal_and_unfinished_sweeps_say_so_and_nothing_infinite_is_chosen(tmp_path, capsys):
    runs = [tried("kd", 1, 1, None), tried("kd", 2, 1, 0.1), tried("ckd", 1, 1, None)]
    broken = tried("ckd", 2, 1, 0.9) | {"status": "failed"}
    out, err, recipes = swept(tmp_path, capsys, *runs, broken)
    assert recipes == ["kd --terms logits=1 --hard_weight 0 --temperature 2 --learning_rate 0.0001"]
    assert "Unequal: kd: 2 tries of 2 runs; ckd: 1 tries of 1 runs" in out and "ckd-2/seed1 (failed)" in err


@pytest.mark.parametrize(
    "runs, said",
    [
        ([tried("kd", 1, 1, 0.1), make_run("kd-2")], "kd-2/seed1 has no held_out/score: train it with --held_out"),
        ([make_run("kd")], "holds 'kd', not a try of run_sweep.sh"),
        ([tried("kd", 1, 1, 0.1), tried("kd", 1, 2, 0.1, learning_rate=5.0)], "the seeds of kd-1 differ"),
        ([tried("kd", 1, 1, 0.1, window=21), tried("kd", 1, 2, 0.1, window=5)], "the seeds of kd-1 differ"),
        ([tried("kd", 1, 1, 0.1, held_out=0.1), tried("kd", 2, 1, 0.1, held_out=0.5)], "held out different shares"),
        ([tried("kd", 1, 1, 0.1), tried("kd", 1, 1, 0.1) | {"task": "rte"}], "holds runs of cola and rte"),
        ([read("a", "b", "c"), read("a", "b", "d", number=2)], "learned from unlike examples or held unlike ones out"),
        ([read("a", "b", "c"), read("e", "b", "c", number=2)], "learned from unlike examples or held unlike ones out"),
        (
            [read("a", "b", "c"), read("a", "e", "c", number=2)],
            "holds tries of unlike dev sets: sweep into an empty folder",
        ),
        ([tried("kd", 1, 1, None), tried("ckd", 1, 1, None)], "no try has a finite score"),
        ([tried("kd", 1, 1, 0.1, terms=["kd"])], "no terms that it was distilled with"),
        ([tried("kd", 1, 1, 0.1, learning_rate=None)], "options.learning_rate is None"),
        ([tried("kd", 1, 1, 0.1) | {"name": "kd-01"}], "holds 'kd-01', not a try"),
    ],
)
def test_a_folder_that_is_no_sweep_is_refused(tmp_path, capsys, runs, said):
    root = write(tmp_path, *runs)
    with pytest.raises(SystemExit) as caught:
        sweep.main([root])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and said in err and err.count("\n") == 1
    assert not (tmp_path / "recipes.txt").exists()


# --- the scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["mrpc", "stsb", "sst2"])  # whose presets have temperature 4, 1 and 4
def test_every_method_has_six_tries_that_differ_and_a_teacher_that_saw_no_more(task):
    commands = [
        args
        for _, args in dry_run(
            "run_sweep.sh", "--max_steps", "5", TASK=task, SEEDS="1 2", METHODS=METHODS, STUDENT="my student"
        )
    ]
    teacher, *students = commands
    assert teacher.run_name == "teacher" and all(args.held_out == 0.1 and args.max_steps == 5 for args in commands)
    for method in METHODS.split():
        own = [args for args in students if args.run_name.rpartition("-")[0] == method]
        settings = {
            json.dumps([args.learning_rate, args.terms, args.stages, args.temperature, args.hard_weight])
            for args in own
        }
        assert len(own) == 12 and len(settings) == 6
        assert {bool(args.teacher) for args in own} == {method != "finetune"}
    ckd = next(args for args in students if args.run_name == "ckd-3")
    if task == "mrpc":  # ten times its preset
        assert (ckd.temperature, ckd.terms["wr_pair"], ckd.terms["ltr_triple"]) == (4, 160, 160)


def test_recipes_are_what_every_task_is_trained_with(tmp_path, monkeypatch):
    recipes = tmp_path / "recipes.txt"
    recipes.write_text(
        "\ufefffinetune --learning_rate 0.3\r\n\n# kd --terms ckd\n"
        "kd\t--terms kd --temperature 7 --learning_rate 0.1 # the middle one\r\n"
        "minilm --stages minilm=1 0.25 hard=1 --temperature 1 --learning_rate 0.2\n"
    )
    commands = [
        args
        for _, args in dry_run(
            "run_glue.sh",
            "--held_out",
            "0.1",
            RECIPES=str(recipes),
            SEEDS="1",
            TASKS="mrpc sst2",
            METHODS="finetune kd minilm",
        )
    ]
    students = [args for args in commands if args.run_name != "teacher"]
    assert [args.learning_rate for args in students] == [0.3, 0.1, 0.2] * 2
    assert [args.temperature for args in students if args.run_name == "kd"] == [7, 7]
    minilm = students[2]
    assert minilm.stages == [[0.0, {"minilm": 1.0}], [0.25, {HARD: 1.0}]]
    assert all(args.held_out == 0.1 for args in commands)


@pytest.mark.parametrize(
    "script, variables, arguments, said",
    [
        ("run_glue.sh", {"RECIPES": "no/file"}, [], "RECIPES names no/file, which cannot be read"),
        ("run_glue.sh", {"RECIPES": "{}", "METHODS": "kd ckd"}, [], "has no options for ckd: put it into METHODS"),
        ("run_glue.sh", {"RECIPES": "{}", "METHODS": "kd", "TERMS": "ckd"}, [], "TERMS and RECIPES both say"),
        (
            "run_glue.sh",
            {"RECIPES": "{}", "METHODS": "kd"},
            ["--learning_rate", "1"],
            "--learning_rate and RECIPES both",
        ),
        ("run_glue.sh", {"RECIPES": "{}", "METHODS": "kd"}, ["--temperature=1"], "--temperature and RECIPES both"),
        ("run_glue.sh", {"RECIPES": "."}, [], "RECIPES names ., which cannot be read"),
        ("run_sweep.sh", {"HELD_OUT": "0"}, [], "HELD_OUT names 0: use a share above 0"),
        ("run_sweep.sh", {"LEARNING_RATES": "fast"}, [], "LEARNING_RATES names fast: use numbers"),
        ("run_sweep.sh", {}, ["--held_out", "0.2"], "--held_out would be the same for all tries"),
        ("run_sweep.sh", {"METHODS": "dynabert"}, [], "METHODS names dynabert: use finetune kd ckd"),
        ("run_sweep.sh", {"TASK": "cola sst2"}, [], "TASK names cola sst2: use one"),
        ("run_sweep.sh", {}, ["--temperature", "3"], "--temperature is what the tries differ in"),
        ("run_sweep.sh", {}, ["--seed=3"], "--seed would be the same in all commands"),
    ],
)
def test_what_makes_no_fair_comparison_is_refused(tmp_path, script, variables, arguments, said):
    recipes = tmp_path / "recipes.txt"
    recipes.write_text("kd --terms kd --learning_rate 0.1\n")
    variables = {name: value.replace("{}", str(recipes)) for name, value in variables.items()}
    line = " ".join([*(f"{k}={shlex.quote(v)}" for k, v in variables.items()), "DRY_RUN=1", "bash", script, *arguments])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_a_try_that_fails_does_not_end_the_sweep(tmp_path):
    """A stand-in for python: 1 at one try, as after a loss that is not finite, 2 at another, as after a mistake."""
    fake = (
        f'#!/bin/sh\ncase "$*" in *--check_only*) exit ;; esac\necho "$@" >> {tmp_path}/log\n'
        'case "$*" in *kd-2/*) exit $CODE ;; esac\n'
    )
    (tmp_path / "python").write_text(fake)
    (tmp_path / "python").chmod(0o755)
    for code, count, status in (("1", 1 + 6 + 1, 1), ("2", 1 + 2, 2)):
        (tmp_path / "log").write_text("")
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CODE": code,
            "METHODS": "kd",
            "RUNS": str(tmp_path / "runs"),
        }
        done = subprocess.run(["bash", "run_sweep.sh"], env=environment, capture_output=True, text=True)
        commands = [line for line in (tmp_path / "log").read_text().splitlines() if line.split()[0] != "-"]
        assert (done.returncode, len(commands)) == (status, count)
        assert ("left out of the choice: kd-2" in done.stderr) == (code == "1")


def test_tries_that_differ_in_what_the_table_does_not_say_are_told_apart(tmp_path, capsys):
    """In a sweep that was half done by an earlier version of this code only some records say what was read."""
    runs = [read("a", "b", "c", number=n, learning_rate=n * 1e-4, num_train_epochs=3.0 + (n == 2)) for n in (1, 2, 3)]
    runs[2]["data"] = None
    out, _, recipes = swept(tmp_path, capsys, *runs)
    assert "Unlike on cola: --num_train_epochs 4 (kd-2), 3 (kd-1, kd-3)\n" in out and len(recipes) == 1


def test_options_of_distilling_that_a_try_was_given_are_part_of_its_recipe(tmp_path, capsys):
    run = tried("kd", 1, 1, 0.1, window=None, layer_map="last", no_embeddings=True, pair_criterion="kl")
    run["asked"] = ["window", "layer_map", "no_embeddings", "learning_rate"]
    _, _, recipes = swept(tmp_path, capsys, run)
    assert recipes[0].endswith("--temperature 1 --layer_map last --no_embeddings --window all --learning_rate 0.0001")


# --- runs.csv ---------------------------------------------------------------------------------------------------------


def every_kind():
    """Records of all stages, as training.py writes them, some of their entries missing."""
    pretrain = make_run(
        "ckd",
        "mlm",
        score=-2.5,
        metric="mlm_loss",
        stage="pretrain",
        metrics={"perplexity": 12.5, "mlm_loss": 2.5, "teacher_agreement": 0.6},
    )
    size = {"depth": 1.0, "parameters": 10.0, "flops_per_sequence": 2e9, "latency": {"student_ms": {"1": 2.0}}}
    dynabert = make_run("dynabert-width", stage="dynabert") | {
        "subnetworks": [size | {"width": width, "score": width / 2} for width in (1.0, 0.5)]
    }
    runs = [
        make_run(name, task, seed, score=seed / 10, hardware=CPU | {"cpu": 'A "B", C'})
        for name in ("teacher", "finetune", "kd", "ckd")
        for task in ("cola", "rte")
        for seed in (1, 2, 3)
    ]
    runs[-1]["last"] = runs[-1]["last"] | {"score": None}
    runs[4]["best"]["metrics"]["held_out/score"] = 0.125
    runs = [pretrain, dynabert, *runs]
    for run in runs:
        run["options"] |= {
            "teacher": f"/home/me/runs/{run['task']}/teacher/seed1",
            "data_dir": "/home/me/data",
            "student": "/home/me/models/small",
            "temperature": 3.0,
            "hard_weight": 0.0,
        }
        run["headline"] = ["matthews_correlation"]
        run["asked"] = ["teacher", "student", 7]
    runs[6]["options"]["learning_rate"] = 1e-3
    runs[6]["asked"] = ["learning_rate"]
    return runs


def test_the_tables_are_the_same_from_the_csv_that_is_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report.plots, "write_plots", lambda *_: [])
    root, out = write(tmp_path / "runs", *every_kind()), tmp_path / "out"
    report.main([root, "--baseline", "kd", "--output_dir", str(out), "--tables", "runs"])
    capsys.readouterr()
    kept = (out / "runs.csv").read_text()
    assert "/home/me" not in kept and str(tmp_path) not in kept and len(kept.splitlines()) == 1 + len(every_kind())
    again = tmp_path / "again"
    report.main([str(out / "runs.csv"), "--baseline", "kd", "--output_dir", str(again), "--tables", "runs"])
    assert (again / "report.md").read_text() == (out / "report.md").read_text()
    assert (again / "runs.csv").read_text() == kept


def test_a_csv_and_folders_are_reported_together_and_a_plot_lies_beside_the_csv(tmp_path, capsys):
    out = tmp_path / "out"
    report.main([write(tmp_path / "a", make_run("kd")), "--output_dir", str(out), "--tables", "runs"])
    (out / "report_scores.png").unlink()
    capsys.readouterr()
    report.main([str(out / "runs.csv"), write(tmp_path / "b", make_run("ckd"))])
    text = capsys.readouterr().out
    assert cells(text, "kd") and cells(text, "ckd") and (out / "report_scores.png").is_file()


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda text: text.replace("stage", "Stage", 1), "has no column stage"),
        (lambda text: "", "has no column stage"),
        (lambda text: text.replace(",", ";"), "is separated by ';': save it with commas"),
        (lambda text: text.replace(",0.25,", ",nought,", 1), "run 1, best.score: Expecting value"),
        (lambda text: text.replace(",0.25,", ",,", 1), "run 1: best.score is missing"),
        (lambda text: text.replace(",0.25,", ",NaN,", 1), "run 1: best.score is nan"),
        (lambda text: text.replace("finetune", "finetuned", 1), "stage is 'finetuned', not finetune, pretrain"),
        (lambda text: text.replace('"', '"x', 1), "run 1, best.metrics: Expecting value"),
        (lambda text: text.splitlines()[0] + "\n", "no run.json found under"),
        (lambda text: text + "\udcff\udcfe", "not readable as csv"),
    ],
)
def test_a_damaged_csv_is_named(tmp_path, capsys, change, said):
    frame, _ = report.read_runs([Path(write(tmp_path / "a", make_run("kd")))])
    text = change(exports.compact(frame).to_csv(index=False))
    path = tmp_path / "runs.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert said in refused(capsys, path)


def test_the_runs_kept_with_the_results_are_whole(capsys):
    paths = sorted(Path("docs/runs").glob("*.csv"))
    assert paths
    for path in paths:
        frame, left_out = report.read_runs([path])
        assert not any(left_out.values()) and frame["code"].notna().all()
        assert not frame["code"].str.contains("dirty").any()
        assert "/home" not in path.read_text() and "/root" not in path.read_text()


@pytest.mark.parametrize(
    "path, kept",
    [
        ("/home/me/runs/cola/teacher/seed1", "cola/teacher/seed1"),
        ("/home/me/teacher", "teacher"),
        ("~/models/x/", "x"),
        ("C:\\Users\\me\\teacher", "teacher"),
        ("runs/general/3-192/ckd", "general/3-192/ckd"),
        ("bert", "bert"),
    ],
)
def test_of_a_path_only_what_says_nothing_of_the_machine_is_kept(path, kept):
    assert exports.without_folders(path) == kept and exports.without_folders([path, path]) == [kept, kept]


def test_the_csv_that_is_read_is_not_replaced(tmp_path, capsys):
    report.main([write(tmp_path / "a", make_run("kd")), "--output_dir", str(tmp_path), "--tables", "runs"])
    before = (tmp_path / "runs.csv").read_text()
    assert "runs.csv is read: name another --output_dir" in refused(capsys, tmp_path / "runs.csv", "--tables", "runs")
    assert (tmp_path / "runs.csv").read_text() == before
