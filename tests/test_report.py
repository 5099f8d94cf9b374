"""report.py: numbers against hand-computed ones, what is kept apart, what is refused, and the plots."""

import copy
import html
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas
import pytest
import scipy.stats
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import itertools

import report
from methods.term_weights import split
from reporting import exports, pictures, plots, records, significance

STUDENT = {
    "layers": 3,
    "hidden_size": 384,
    "heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
    "parameters": 17_390_000,
    "parameters_without_embeddings": 5_500_000,
    "seq_length": 128,
    "flops_per_sequence": 1.4e9,
}
TEACHER = STUDENT | {
    "layers": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "parameters": 109_500_000,
    "parameters_without_embeddings": 85_600_000,
    "flops_per_sequence": 22.4e9,
}
CPU = {
    "device": "cpu",
    "cpu": "AMD EPYC",
    "cpu_count": 2,
    "gpu": None,
    "gpu_count": 0,
    "processes": 1,
    "precision": "no",
}
GPU = CPU | {"device": "cuda", "gpu": "NVIDIA H200", "gpu_count": 1}


def make_run(name="ckd", task="cola", seed=1, score=0.25, *, last=None, metrics=None, **changes):
    """A finished run.json as training.py writes it; `changes` replace whole entries."""
    metric = next(iter(metrics)) if metrics else "matthews_correlation"
    if metrics and changes.get("stage") != "pretrain":
        score = sum(metrics.values()) / len(metrics)
    entry = {"step": 268, "epoch": 1.0, "score": score, "metrics": metrics or {metric: score}}
    taught = name not in ("teacher", "finetune")
    latency = {"seq_length": 128, "student_ms": {"1": 3.0, "32": 60.0}}
    if taught:
        latency |= {"teacher_ms": {"1": 6.0, "32": 150.0}, "speedup": {"1": 2.0, "32": 2.5}}
    return {
        "status": "complete",
        "stage": "finetune",
        "task": task,
        "name": name,
        "seed": seed,
        "options": {"learning_rate": 5e-5, "window": 21, "terms": {"logits": 1.0, "wr_triple": 10.0}},
        "git": {"commit": "abcdef0123456789", "dirty": True},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": CPU,
        "model": TEACHER if name == "teacher" else STUDENT,
        "teacher": TEACHER | {"path": "runs/cola/teacher/seed1"} if taught else None,
        "latency": latency,
        "time": {"train_s": 300.0, "total_s": 320.0},
        "throughput": {"examples_per_s": 140.0, "tokens_per_s": 1600.0},
        "max_mem_gb": 1.9,
        "metric": metric,
        "history": [entry],
        "best": entry,
        "last": entry | {"score": score if last is None else last},
    } | changes


def write(root, *runs):
    """Writes the runs into the folders that training.py gives them; returns the root as a command-line argument."""
    for run in runs:
        folder = root / run["task"] / run["name"] / f"seed{run['seed']}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return str(root)


@pytest.fixture
def tables(capsys, monkeypatch):
    """Runs report.main without the plots (the slow part) and returns what it printed."""

    def call(*argv, said=()):
        def panels_alone(runs, *_):
            for _, own in runs.groupby(["stage", "task"], observed=True):
                plots.curve_panels("", own, {})
            return []

        monkeypatch.setattr(plots, "write_plots", panels_alone)
        assert report.main([str(arg) for arg in argv]) == 0
        out, err = capsys.readouterr()
        if said is None:  # at most one damaged record, anything else is an error
            said = ["report.py: left out: "] * err.count("\n")
        assert all(line.startswith(part) for line, part in zip(err.splitlines(), said, strict=True))
        return out

    return call


def refused(capsys, *argv):
    """Runs report.main, which must end with status 2 and one line; returns the line."""
    with pytest.raises(SystemExit) as caught:
        report.main([str(arg) for arg in argv])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("report.py: error: ") and err.count("\n") == 1 and err.endswith("\n")
    return err


def cells(text, method):
    """The cells of every table row of that method, tables in order of appearance."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row[1:] for row in rows if row[0].strip() == method]


def test_one_task_is_one_table_with_hand_computed_numbers(tmp_path, tables):
    root = write(
        tmp_path,
        make_run("teacher", score=0.5),
        make_run("finetune", score=-0.02),
        *(
            make_run("ckd", seed=seed, score=score, last=score - 0.1, time={"train_s": 100.0 * seed})
            for seed, score in ((1, 0.20), (2, 0.22), (3, 0.30))
        ),
    )
    text = tables(root)
    # mean 24, deviations -4 -2 6: sample variance (16 + 4 + 36) / 2 = 28, std 5.29
    assert cells(text, "ckd") == [
        ["24.0 ± 5.3 (3)", "14.0 ± 5.3 (3)", "17.39 / 5.50", "1.4", "2.00x / 2.50x", "200.0", "1.90"]
    ]
    # The plain student borrows the speed of its shape, the teacher is the reference.
    rest = ["17.39 / 5.50", "1.4", "2.00x / 2.50x", "300.0", "1.90"]
    assert cells(text, "finetune") == [["-2.0 (1)", "-2.0 (1)", *rest]]
    rest = ["109.50 / 85.60", "22.4", "1.00x / 1.00x", "300.0", "1.90"]
    assert cells(text, "teacher") == [["50.0 (1)", "50.0 (1)", *rest]]
    for part in ("cola (Matthews) best", "train (s)", "AMD EPYC (2 cores)", "torch 2.13.0", "abcdef0123 (dirty)"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120


def test_peak_memory_is_that_of_the_task_that_needs_most(tmp_path, tables):
    root = write(
        tmp_path,
        *(
            make_run(task=task, seed=seed, max_mem_gb=gb)
            for task, seed, gb in (("cola", 1, 1.0), ("rte", 1, 3.0), ("rte", 2, 4.0))
        ),
    )
    assert cells(tables(root), "ckd")[-1][-1] == "3.50"


def test_no_speed_is_invented(tmp_path, tables):
    assert cells(tables(write(tmp_path / "a", make_run("finetune"))), "finetune")[0][4] == "-"
    # Another machine's, another task's and another shape's speed-up are not borrowed.
    other = make_run("kd", model=STUDENT | {"layers": 4})
    root = write(tmp_path / "b", make_run("finetune"), other, make_run("ckd", hardware=GPU), make_run("pkd", "rte"))
    assert [row[2] for row in cells(tables(root), "finetune")[2:]] == ["-"]


def test_rows_stand_in_the_conventional_order(tmp_path, tables):
    names = ["teacher", "finetune", "kd", "pkd", "tinybert", "distilbert", "minilm", "ckd", "alpha", "zeta"]
    text = tables(write(tmp_path, *(make_run(name) for name in reversed(names))))
    assert [line.split("|")[1].strip() for line in text.splitlines() if line[:1] == "|"][2:] == names
    assert cells(tables(tmp_path, "--methods", "zeta,kd"), "ckd") == []


def test_several_tasks_with_two_metrics_and_average(tmp_path, tables):
    mrpc = {"f1": 0.8, "accuracy": 0.7}
    squad = {"f1": 0.9, "exact_match": 0.6}
    text = tables(
        write(
            tmp_path,
            make_run("kd", score=0.4),
            make_run("kd", "mrpc", metrics=mrpc),
            make_run("kd", "squad", metrics=squad),
            make_run("ckd", score=0.5),
            make_run("ckd", "mrpc", metrics={"f1": 0.9, "accuracy": 0.7}),
        ),
        "--baseline",
        "kd",
    )
    best, _, cost = cells(text, "kd")
    assert best == ["40.0 (1)", "80.0 / 70.0 (1)", "60.0 / 90.0 (1)", "63.3"]  # (40 + 75 + 75) / 3
    assert cost == ["17.39 / 5.50", "1.4", "2.00x / 2.50x", "300.0", "300.0", "300.0", "1.90"]
    assert cells(text, "ckd")[0] == ["50.0 (1)", "90.0 / 70.0 (1)", "-", "-"]
    assert "mrpc (F1 / acc)" in text and "squad (EM / F1)" in text
    # The difference is that of the headline, the mean of both, and says so.
    assert cells(text, "ckd")[-1] == ["+10.0 (n=1, no interval)", "+5.0 (n=1, no interval)", "-"]
    assert "mrpc (mean of F1 and acc)" in text


def test_pretraining_has_a_table_of_its_own(tmp_path, tables):
    metrics = {"perplexity": 12.5, "mlm_loss": 2.5257, "teacher_agreement": 0.615}
    run = make_run("ckd", "mlm", score=-2.5257, metrics=metrics, stage="pretrain", metric="mlm_loss")
    text = tables(write(tmp_path, make_run(), run))
    assert cells(text, "ckd")[1][0] == "12.50 / 2.526 / 61.5 (1)"
    measure = report.headline(pandas.DataFrame([run]))
    assert measure.of(run["best"]) == 2.5257  # a loss, although the score is its negative
    assert "average" not in text.split("Scores:")[0] and text.index("## Fine-tuning") < text.index("## Pre-training")


@pytest.mark.parametrize("n, quantile", [(2, 12.7062), (3, 4.30265), (5, 2.77645), (30, 2.04523), (101, 1.98397)])
def test_intervals_equal_the_printed_table_and_a_paired_t_test(tmp_path, tables, n, quantile):
    draw = random.Random(n)
    kd, ckd = ([draw.uniform(0.1, 0.9) for _ in range(n)] for _ in range(2))
    runs = [
        make_run(name, seed=seed, score=score)
        for name, scores in (("kd", kd), ("ckd", ckd))
        for seed, score in enumerate(scores)
    ]
    frame, _ = report.read_runs([Path(write(tmp_path, *runs))])
    scores = frame.assign(score=[best["score"] for best in frame["best"]])
    scores = scores.pivot(index="seed", columns="name", values="score")
    row = significance.paired(scores, "kd").loc["ckd"]
    mean, low, high = row["mean"], row["low"], row["high"]
    differences = [a - b for a, b in zip(ckd, kd, strict=True)]
    half = quantile * statistics.stdev(differences) / math.sqrt(n)
    assert mean == pytest.approx(statistics.fmean(differences), abs=2e-9)
    assert (high - low) / 2 == pytest.approx(half, rel=2e-5)
    expected = scipy.stats.ttest_rel(ckd, kd).confidence_interval(0.95)
    assert (low, high) == pytest.approx(tuple(expected), abs=2e-9) and row["n"] == n
    assert row["p"] == pytest.approx(scipy.stats.ttest_rel(ckd, kd).pvalue)


def test_equal_differences_have_an_interval_of_no_width_which_tells_nothing(tmp_path, tables):
    """0.3 - 0.1 and 0.4 - 0.2 are the same but for their rounding."""
    scores = {"kd": (0.1, 0.2, 0.7), "ckd": (0.3, 0.4, 0.9), "minilm": (0.1, 0.2, 0.7), "pkd": (0.2, 0.3, 0.81)}
    runs = [make_run(name, seed=seed, score=score) for name, of in scores.items() for seed, score in enumerate(of)]
    text = tables(write(tmp_path, *runs), "--baseline", "kd")
    assert [cells(text, name)[1] for name in ("ckd", "minilm", "pkd")] == [
        ["+20.0 [+20.0, +20.0] (3)"],
        ["+0.0 [+0.0, +0.0] (3)"],
        ["+10.3* [+8.9, +11.8] (3)"],
    ]
    assert "significantly different from kd (paired t tests, Holm's correction for the 2 of" in " ".join(text.split())
    # Nor does it tell anything from the best: ckd and kd are bold.
    assert [cells(text, name)[0][0].startswith("**") for name in ("ckd", "kd", "pkd")] == [True, True, False]
    text = tables(write(tmp_path / "two", *(run for run in runs if run["name"] in ("kd", "ckd"))), "--baseline", "kd")
    assert "Nothing can be said about differences to kd: they are of one seed, or the same in all seeds." in text


def test_baseline_interval_is_paired_by_seed(tmp_path, tables):
    runs = [make_run("kd", seed=seed, score=score) for seed, score in ((1, 0.10), (2, 0.30), (3, 0.20), (7, 0.9))]
    runs += [make_run("ckd", seed=seed, score=score) for seed, score in ((1, 0.11), (2, 0.32), (3, 0.23), (8, 0.1))]
    text = tables(
        write(tmp_path, *runs, make_run("pkd", seed=2, score=0.25), make_run("minilm", seed=99)), "--baseline", "kd"
    )
    # differences 1, 2, 3: mean 2, std 1, half width 4.30265 / sqrt(3) = 2.484
    assert cells(text, "ckd")[-1] == ["+2.0 [-0.5, +4.5] (3)"]
    assert cells(text, "pkd")[-1] == ["-5.0 (n=1, no interval)"]
    assert cells(text, "minilm")[-1] == ["-"]


def test_bold_is_the_best_student_and_all_that_a_paired_test_cannot_tell_from_it(tmp_path, tables):
    draw, scores = random.Random(1), {}
    for name, mean in (("teacher", 0.9), ("finetune", 0.2), ("kd", 0.47), ("pkd", 0.3), ("minilm", 0.45), ("ckd", 0.5)):
        scores[name] = [mean + draw.gauss(0, 0.05) for _ in range(4)]
    runs = [
        make_run(name, task, seed, score)
        for task in ("cola", "rte")
        for name, of in scores.items()
        for seed, score in enumerate(of)
    ]
    text = tables(write(tmp_path, *runs, make_run("distilbert", seed=1, score=0.8), make_run("ckd", seed=9, score=0.5)))
    best = {
        name
        for name, of in scores.items()
        if name != "teacher" and (name == "ckd" or scipy.stats.ttest_rel(scores["ckd"], of).pvalue >= 0.05)
    }
    assert 1 < len(best) < 5
    for name in scores:  # also of the average over tasks; one seed, though better, says nothing
        first = cells(text, name)[0]
        assert [cell.startswith("**") for cell in (first[0], first[1], first[2])] == [name in best] * 3, name
    assert cells(text, "distilbert")[0][0] == "80.0 (1)"
    # Lower is better in pre-training, and a score that is not known is not compared.
    runs = [
        make_run(
            name,
            "mlm",
            seed,
            -loss,
            stage="pretrain",
            metrics={"mlm_loss": loss},
            last=math.nan if (name, seed) == ("ckd", 1) else -loss,
        )
        for name, of in (("kd", (2.0, 2.1)), ("ckd", (1.0, 1.2)), ("pkd", (3.1, 3.21)))
        for seed, loss in enumerate(of)
    ]
    text = tables(write(tmp_path / "pretrain", *runs))
    assert [cells(text, name)[0][0][:2] == "**" for name in ("kd", "ckd", "pkd")] == [False, True, False]
    assert [cells(text, name)[0][1][:2] == "**" for name in ("kd", "ckd", "pkd")] == [True, False, False]


def test_the_recipe_of_a_row_is_named_as_options(tmp_path, tables):
    def options(**changes):
        return {"terms": {"logits": 5.0, "hidden_cosine": 1.0}, "hard_weight": 2.0, "temperature": 2.0} | changes

    stages = [[0.0, {"minilm": 1.0}], [0.5, {"logits": [0.0, 1.0], "hard": 0.5}]]
    text = tables(
        write(
            tmp_path,
            make_run("finetune", options={"terms": {}}),
            make_run("distilbert", options=options()),
            make_run("distilbert", "rte", options=options()),
            make_run("minilm", options=options(stages=stages)),
            make_run("minilm", "rte", options=options(temperature=1.0)),
            make_run("odd", options={"terms": 3}),
        )
    )
    text = " ".join(text.split())
    assert "Recipe of distilbert: --terms logits=5 hidden_cosine=1 --hard_weight 2 --temperature 2 Recipe" in text
    staged = "--stages minilm=1 0.5 logits=0..1 hard=0.5 --temperature 2"
    assert f"Recipe of minilm on cola: {staged} Recipe of minilm on rte: --terms" in text
    assert "Recipe of finetune" not in text and "Recipe of odd" not in text
    split(staged.split()[1:-2])  # as it would be typed


def test_incomplete_runs_are_named_and_left_out(tmp_path, tables):
    running = {"status": "running", "task": "cola", "name": "kd", "seed": 2}
    text = tables(write(tmp_path, make_run("kd", score=0.3), running, make_run("ckd", seed=5, status="failed")))
    assert cells(text, "kd")[0][0] == "30.0 (1)" and cells(text, "ckd") == []
    assert f"- {tmp_path / 'cola/kd/seed2'} (running)\n" in text
    assert f"- {tmp_path / 'cola/ckd/seed5'} (failed)\n" in text


def test_times_of_different_hardware_are_kept_apart(tmp_path, tables):
    runs = [
        make_run("ckd", seed=1, time={"train_s": 100.0}),
        make_run("ckd", seed=2, time={"train_s": 20.0}, hardware=GPU),
        make_run("ckd", seed=3, time={"train_s": 50.0}, hardware=CPU | {"processes": 2}),
    ]
    text = tables(write(tmp_path, *runs))
    assert sorted(row[-2] for row in cells(text, "ckd")[2:]) == ["100.0", "20.0", "50.0"]
    assert "time: 1 x NVIDIA H200, AMD EPYC (2 cores), 1 process(es), float32" in text
    assert cells(text, "ckd")[0] == ["25.0 ± 0.0 (3)"]


def test_without_a_language_model_the_loss_of_the_relations_is_the_headline(tmp_path, tables):
    run = make_run("ckd", "mlm", score=-0.065, metrics={"relation_loss": 0.065}, stage="pretrain")
    assert cells(tables(write(tmp_path, run)), "ckd")[0][0] == "0.065 (1)"


def test_cached_times_are_marked_and_unlike_seeds_are_named(tmp_path, tables):
    def options(**changes):
        return make_run()["options"] | {"output_dir": "/a", "run_name": "x"} | changes

    runs = [
        make_run("kd", options=options(cache_teacher=True)),
        make_run("ckd", seed=1, options=options()),
        make_run("ckd", seed=2, options=options(output_dir="/b", learning_rate=1e-3, new=1), git={"commit": None}),
    ]
    text = tables(write(tmp_path, *runs))
    assert cells(text, "kd")[0][-2] == "300.0*" and cells(text, "ckd")[0][-2] == "300.0"
    assert "Mixed: the runs of ckd on cola differ in --learning_rate: 5e-05, 0.001\n" in text
    assert text.count("Mixed:") == 1 and "Code: abcdef0123 (dirty), unknown for 1 of 3 runs" in text


def test_an_option_that_an_older_run_lacks_counts_as_its_default(tmp_path, tables):
    old = make_run()["options"]
    stages = [[0.0, {"wr_triple": 1.0}], [0.5, {"logits": 1.0}]]
    runs = [
        make_run("ckd", seed=1, options=old),
        make_run("kd", seed=1, options=old),
        make_run("ckd", seed=2, options=old | {"save": "best", "stages": None}, asked=["window"]),
        make_run("kd", seed=2, options=old | {"save": "best", "stages": stages}, asked=["stages"]),
    ]
    text = " ".join(tables(write(tmp_path, *runs)).split())
    assert text.count("Mixed:") == 1 and 'Mixed: the runs of kd on cola differ in --stages: "default", ' in text
    # So runs of two windows still make a curve.
    runs[0]["options"] = old | {"window": 5}
    runs[2]["options"]["window"], runs[2]["seed"] = 21, 1
    found, _ = records.read_runs([Path(write(tmp_path / "windows", runs[0], runs[2] | {"name": "wide"}))])
    assert [sorted(windows) for windows in plots.option_curves(found, "window").values()] == [[5, 21]]


def test_the_speed_up_of_a_shape_is_the_median_of_its_runs(tmp_path, tables):
    def latency(one):
        return {"speedup": {"1": one, "32": 2.0}}

    runs = [make_run("kd", seed=seed, latency=latency(one)) for seed, one in ((1, 1.0), (2, 2.0), (3, 9.0))]
    text = tables(write(tmp_path, make_run("finetune"), *runs))
    assert cells(text, "finetune")[0][-3] == cells(text, "kd")[0][-3] == "2.00x / 2.00x"


def test_wide_tables_continue_below(tmp_path, tables):
    tasks = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    text = tables(
        write(
            tmp_path, *(make_run(name, task, seed) for name in ("teacher", "kd") for task in tasks for seed in (1, 2))
        ),
        "--baseline",
        "kd",
    )
    assert max(map(len, text.splitlines())) <= 120
    assert len([row for row in cells(text, "kd") for _ in row]) == 9 + 9 + 4 + 8


def test_refusals_name_the_value_and_the_remedy(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no run.json found" in refused(capsys, empty)
    assert "is not a folder" in refused(capsys, tmp_path / "absent")
    one = tmp_path / "one-run"
    root = Path(write(one, make_run("kd"))) / "cola" / "kd" / "seed1"
    assert f"give the folder that it lies in, {root}\n" in refused(capsys, root / "run.json")
    write(empty, {"status": "running", "task": "cola", "name": "kd", "seed": 2})
    assert "no complete run" in refused(capsys, empty)
    one, two = write(tmp_path / "one", make_run("kd")), write(tmp_path / "two", make_run("kd"))
    line = refused(capsys, one, two)
    assert f"{one}/cola/kd/seed1" in line and f"{two}/cola/kd/seed1" in line
    assert "--baseline nope" in refused(capsys, one, "--baseline", "nope")
    assert "--methods nope" in refused(capsys, one, "--methods", "kd,nope")
    assert "unrecognized" in refused(capsys, one, "--base", "kd")
    write(tmp_path / "one", make_run("kd", seed=2, metrics={"accuracy": 0.5}))
    assert "headline metric" in refused(capsys, one)
    (tmp_path / "file").write_text("")
    assert "--output_dir" in refused(capsys, two, "--output_dir", tmp_path / "file" / "below")


def test_a_folder_given_twice_is_read_once(tmp_path, tables):
    root = write(tmp_path, make_run("kd"))
    assert cells(tables(root, Path(root) / "cola", root), "kd")[0][0] == "25.0 (1)"


def read_from(run, dev="a", train="t", dev_size=400, train_size=1000, **options):
    """The record of a run on these examples, as the scripts write it; each letter stands for other ones."""
    data = {
        "train": {"examples": train_size, "sha256": train * 64},
        "validation": {"examples": dev_size, "sha256": dev * 64},
    }
    return run | {"data": data, "options": run["options"] | options}


def older(run, dev="a", **options):
    """The record of a run of an earlier version, which knows what the tokenizer made of the examples only."""
    return run | {
        "inputs": {"train_examples": "c" * 64, "validation_examples": dev * 64, "examples_per_step": 32},
        "options": run["options"] | options,
        "asked": [*options],
    }


@pytest.mark.parametrize(
    "of, words",
    [
        (lambda run, dev, n: read_from(run, dev=dev, dev_size=n), ("400 examples", "100 examples")),
        (lambda run, dev, n: read_from(run, dev=dev, dev_size=400), ("400 examples", "400 other examples")),
        (lambda run, dev, n: older(run, dev), ("examples of unknown number", "other examples of unknown number")),
        (
            lambda run, dev, n: (
                run | {"options": {"max_eval_samples": n % 400}, "asked": ["max_eval_samples"] * (n == 100)}
            ),
            ("examples of unknown number", "examples of unknown number, --max_eval_samples 100"),
        ),
    ],
    ids=["sizes", "mended file", "earlier version", "no digests"],
)
def test_scores_on_unlike_evaluation_sets_are_told_apart_and_not_compared(tmp_path, tables, monkeypatch, of, words):
    runs = [
        of(make_run(name, seed=seed, score=score + 0.01 * seed * seed), "a", 400)
        for seed in (1, 2, 3)
        for name, score in (("teacher", 0.8), ("finetune", 0.2), ("kd", 0.25))
    ]
    runs += [of(make_run("ckd", seed=seed, score=0.9 + 0.01 * seed), "b", 100) for seed in (1, 2, 3)]
    root = write(tmp_path, *runs, make_run("ckd", "rte", metrics={"accuracy": 0.5}))
    text = tables(root, "--baseline", "kd")
    first = next(line for line in text.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in first.split("|")[1:-1]] == [
        "method",
        "cola set 1 (Matthews)",
        "cola set 2 (Matthews)",
        "rte (acc)",
    ]
    assert "average" not in text.split("## Notes")[0]
    assert cells(text, "ckd")[0][:2] == ["-", "92.0 ± 1.0 (3)"] and cells(text, "kd")[0][1] == "-"
    assert cells(text, "kd")[0][0].startswith("**29.7 ± ") and cells(text, "teacher")[0][1] == "-"
    assert cells(text, "ckd")[-1] == ["-"] and cells(text, "finetune")[-1][0].startswith("-5.0 [")
    said = " ".join(text.split("### Last score")[0].split())
    assert (
        f"Unlike evaluation sets of cola, between which nothing is compared: cola set 1 is {words[0]} (teacher, "
        f"finetune, kd); cola set 2 is {words[1]} (ckd)"
    ) in said
    # From a csv it is the same, and no plot puts them together.
    tables(root, "--output_dir", tmp_path / "out", "--tables", "runs", "latex", "csv")
    again = tables(tmp_path / "out" / "runs.csv", "--baseline", "kd")
    assert again.split("Plots:")[0] == text.split("Plots:")[0]
    assert "cola set 2 is " in (tmp_path / "out" / "report.tex").read_text()
    numbers = pandas.read_csv(tmp_path / "out" / "report.csv").set_index(["task", "method"])
    assert numbers.loc[("cola set 2", "ckd"), "best_mean"] == pytest.approx(92)
    drawn = {}
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "draw_panels", lambda path, panels, *rest: drawn.update({path.stem: panels}) or [])
    frame, _ = report.read_runs([Path(root)])
    plots.write_plots(frame, tmp_path)
    panels = {panel[0]["title"]: (set(panel[1]["name"]), panel[0].get("teacher")) for panel in drawn["report_scores"]}
    assert panels["cola set 1"] == ({"finetune", "kd"}, pytest.approx(84.67, abs=0.01))
    assert panels["cola set 2"] == ({"ckd"}, None)


def test_evaluation_sets_are_one_where_nothing_says_that_they_differ(tmp_path, tables):
    other_words = {"model": STUDENT | {"vocab_size": 9_000}}
    for name, runs in {
        # Digests of tokens say nothing beside another tokenizer or length.
        "tokenizers": [older(make_run("kd"), "a"), older(make_run("ckd", **other_words), "b")],
        "lengths": [older(make_run("kd"), "a"), older(make_run("ckd", model=STUDENT | {"seq_length": 64}), "b")],
        "versions": [older(read_from(make_run("kd")), "a"), older(make_run("ckd"), "a")],
        "unknown": [read_from(make_run("kd")), make_run("ckd")],
        "enough": [read_from(make_run("kd"), max_eval_samples=0), read_from(make_run("ckd"), max_eval_samples=900)],
        "training": [read_from(make_run("kd")), read_from(make_run("ckd"), train="u")],
    }.items():
        text = tables(write(tmp_path / name, *runs), "--baseline", "kd")
        assert "cola (Matthews) best" in text and " set " not in text.split("## Notes")[0], name
        compared = cells(text, "ckd")[-1] == ["+0.0 (n=1, no interval)"]
        assert compared == (name != "training"), name  # what learned from other examples is not compared, but shown


def test_a_run_of_unknown_set_joins_the_one_of_its_options(tmp_path, tables):
    runs = [
        read_from(make_run("kd"), max_eval_samples=0),
        make_run("ckd", options={"max_eval_samples": 100}),
        read_from(make_run("pkd"), dev="b", dev_size=100, max_eval_samples=100),
    ]
    text = tables(write(tmp_path, *runs))
    assert [cell != "-" for cell in cells(text, "ckd")[0]] == [False, True]


def test_masks_are_part_of_what_is_scored_in_pre_training(tmp_path, tables):
    runs = [
        read_from(make_run(name, "mlm", metrics={"mlm_loss": 2.5}, score=-2.5, stage="pretrain"), mlm_probability=share)
        for name, share in (("kd", 0.15), ("ckd", 0.4))
    ]
    text = " ".join(tables(write(tmp_path, *runs)).split())
    assert "mlm set 2 is 400 examples, --mlm_probability 0.4 (ckd)" in text


def test_several_dev_sets_are_one_evaluation_set(tmp_path, tables):
    metrics = {"accuracy_matched": 0.5, "accuracy_mismatched": 0.4}
    runs = [make_run(name, "mnli", metrics=metrics) for name in ("kd", "ckd", "pkd")]
    for run, last in zip(runs, "aab", strict=True):
        run["data"] = {
            f"validation_{name}": {"examples": 50, "sha256": of * 64}
            for name, of in (("matched", "a"), ("mismatched", last))
        }
    text = " ".join(tables(write(tmp_path, *runs)).split())
    assert "mnli set 1 is 100 examples (kd, ckd); mnli set 2 is 100 other examples (pkd)" in text
    assert "mnli set 1 (m / mm)" in text


def test_students_that_differ_in_what_their_recipes_do_not_name_are_told_apart(tmp_path, tables):
    def run(name, seed=1, train="t", train_size=1000, taught=True, **options):
        options = {
            "learning_rate": 5e-5,
            "window": 21,
            "no_embeddings": False,
            "save_steps": 0,
            "terms": {name: 1.0},
            "student": "/home/me/models/bert",
            "temperature": 1.0,
            "max_train_samples": 0,
            "teacher": f"/x/cola/teacher/seed{seed}" if taught else None,
        } | options
        run = read_from(make_run(name, seed=seed), train=train, train_size=train_size, **options)
        return run | {"asked": [*options]}

    root = write(
        tmp_path / "a",
        make_run("teacher", options={"learning_rate": 1.0}),
        *(run(name, seed, save_steps=seed) for name in ("kd", "pkd", "minilm", "tinybert") for seed in (1, 2)),
        run("finetune", taught=False, window=3, max_train_samples=900, train="u", train_size=900),
        run("ckd", learning_rate=1e-4, temperature=4.0, window=5, no_embeddings=True),
        run("own", student="some/other"),
    )
    text = " ".join(tables(root).split("## Notes")[0].split())
    assert text.endswith(
        "Unlike on cola: --learning_rate 0.0001 (ckd), 5e-05 (the others); --no_embeddings on (ckd), off (the others); "
        "--student some/other (own), bert (the others); --window 5 (ckd), 21 (the others); training data 900 examples "
        "(finetune), 1000 examples (the others)"
    )
    # Of the seeds of one method it is said below; nothing is said of runs that are alike, or of one.
    text = tables(write(tmp_path / "b", run("kd"), run("kd", 2, train="u", learning_rate=1.0), run("ckd")))
    assert "Unlike" not in text and "Mixed: the runs of kd on cola differ in --learning_rate: 5e-05, 1.0\n" in text
    assert "Mixed: the runs of kd on cola differ in their training data\n" in text and text.count("Mixed") == 2
    # Equally many other examples.
    text = " ".join(tables(write(tmp_path / "c", run("kd"), run("ckd", train="e"))).split())
    assert "Unlike on cola: training data 1000 examples eeeeee (ckd), 1000 examples tttttt (kd)" in text


def test_unlike_parts_of_the_training_set_choose_without_comparison(tmp_path, tables):
    def run(name, seed, share):
        run = make_run(name, seed=seed, score=0.2 + 0.01 * seed)
        run["options"]["held_out"] = share
        run["best"]["metrics"]["held_out/score"] = 0.5 + 0.1 * (name == "ckd") + 0.01 * seed * seed
        return run

    for shares, bold in (((0.1, 0.1), True), ((0.1, 0.2), False)):
        root = tmp_path / str(bold)
        write(
            root,
            *(run(name, seed, share) for name, share in zip(("kd", "ckd"), shares, strict=True) for seed in (1, 2, 3)),
        )
        best, held_out, *_ = cells(tables(root), "ckd")[0]
        assert best.startswith("**") and held_out.startswith("**") == bold


def test_methods_have_display_names_everywhere(tmp_path, capsys):
    runs = [
        make_run(name, seed=seed, score=score + 0.01 * seed**2)
        for seed in (1, 2, 3)
        for name, score in (("teacher", 0.9), ("kd", 0.5), ("ckd", 0.6))
    ]
    root, out = write(tmp_path, *runs), tmp_path / "out"
    report.main(
        [
            root,
            "--baseline",
            "kd",
            "--output_dir",
            str(out),
            "--tables",
            "latex",
            "csv",
            "runs",
            "--formats",
            "svg",
            "--names",
            "kd=KD",
            "ckd=CKD (ours) & 100%",
            "teacher=BERT",
        ]
    )
    text, err = capsys.readouterr()
    assert err == "" and not re.search(r"\b(kd|ckd|teacher)\b", text.split("Scores:")[0])
    assert cells(text, "BERT") and not cells(text, "BERT")[0][0].startswith("**")  # still no student
    assert "### Difference to KD in best score" in text
    assert cells(text, "CKD (ours) &amp; 100%")[-1] == ["+10.0 [+10.0, +10.0] (3)"]
    drawn = (out / "report_scores.svg").read_text()
    assert "CKD (ours)" in drawn and ">kd<" not in drawn
    assert r"CKD (ours) \& 100\% & \textbf{" in (out / "report.tex").read_text()
    assert set(pandas.read_csv(out / "report.csv")["method"]) == {"KD", "BERT", "CKD (ours) & 100%"}
    assert set(pandas.read_csv(out / "runs.csv")["name"]) == {"kd", "ckd", "teacher"}  # which are names of runs
    for names, said in (
        ("kd", "'kd' is not NAME=TEXT"),
        ("pkd=PKD", "--names pkd=PKD: no complete run of that name"),
        ("kd=ckd", "--names would give two methods the name 'ckd'"),
        ("kd= ", "is not NAME=TEXT"),
    ):
        assert said in refused(capsys, root, "--names", names)


def test_students_of_several_shapes_stand_in_one_table(tmp_path, tables, capsys):
    shapes = {"3-384": STUDENT, "12-96": STUDENT | {"layers": 12, "hidden_size": 96}}
    for folder, shape in shapes.items():
        runs = [make_run(name, seed=seed, model=shape) for name in ("ckd", "kd", "own") for seed in (1, 2)]
        write(tmp_path / folder, *runs, *[make_run("ckd", task="mrpc", model=shape)] * (folder == "3-384"))
    write(tmp_path, make_run("teacher"), make_run("minilm"), make_run("kd", stage="pretrain", task="mlm"))
    text = tables(str(tmp_path), "--baseline", "ckd 3/384")
    fine = re.findall(r"^\| *([^|]*?) *\|", text.partition("## Pre-training")[0], re.MULTILINE)
    order = ["teacher", "kd 12/96", "kd 3/384", "minilm", "ckd 12/96", "ckd 3/384", "own 12/96", "own 3/384"]
    assert [name for name in fine if name in order][: len(order)] == order
    assert cells(text, "ckd 3/384")[0][:2] == ["**25.0 ± 0.0** (2)", "25.0 (1)"] and cells(text, "kd")
    write(tmp_path / "again", make_run("kd", model=STUDENT))
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    assert "both hold task cola, method kd 3/384, seed 1" in capsys.readouterr().err


DAMAGED = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"[" * 100_000,
    b"1" * 5000,
    b'{"status": "done"}',
    b'{"status": "complete"}',
    b'{"status": []}',
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_files_are_named(tmp_path, capsys, content):
    root = write(tmp_path, make_run("kd"))
    path = tmp_path / "cola" / "kd" / "seed1" / "run.json"
    path.write_bytes(content)
    assert str(path) in refused(capsys, root)


@pytest.mark.parametrize(
    "where, value, said",
    [
        (("best", "score"), float("nan"), "best.score is nan"),
        (("best", "score"), None, "best.score is None"),
        (("best",), 3, "best is 3"),
        (("model", "layers"), True, "model.layers is True"),
        (("time", "train_s"), -1, "time.train_s is -1"),
        (("name",), "a\nb", "name is 'a\\nb'"),
        (("seed",), "1", "seed is '1'"),
        (("latency", "speedup"), [], "latency.speedup is []"),
        (("teacher", "heads"), 0, "teacher.heads is 0"),
        (("best", "metrics"), {"f1": "x"}, "best.metrics is {'f1': 'x'}, not an object of numbers"),
        (("stage",), [], "stage is []"),
        (("history", 0, "step"), "1", "history is [{'"),
        (("history",), 1, "history is 1, not a list of evaluations"),
        (("history", 0), None, "history is [None], not a list of evaluations"),
        (("history", 0, "loss"), float("inf"), "history is [{'"),
        (("asked",), 1, "asked is 1"),
        (("git", "commit"), 7, "git.commit is 7"),
        (("hardware", "gpu"), " ", "hardware.gpu is ' ', not printable text"),
    ],
)
def test_wrong_values_are_named(tmp_path, capsys, where, value, said):
    run = copy.deepcopy(make_run("kd"))
    parent = run
    for key in where[:-1]:
        parent = parent[key]
    parent[where[-1]] = value
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    assert f"{folder}/run.json: {said}" in refused(capsys, tmp_path)
    del parent[where[-1]]
    (folder / "run.json").write_text(json.dumps(run))
    if where[0] not in ("latency", "history", "asked", "git") and where != ("hardware", "gpu"):  # which may be absent
        assert f"{'.'.join(where)} is missing" in refused(capsys, tmp_path)


def leaves(value, path=()):
    """Every path into a JSON value, the inner ones too."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from leaves(value[key], (*path, key))


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([0, 10**400, 1e300, 1e-300, "", "$x_1$ \\ |", "\ud800", "running", "pretrain"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
PATHS = [path for path in leaves(make_run("kd")) if path]


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(changes=[((key,), None) for key in ("history", "asked", "data", "teacher")])
@given(changes=st.lists(st.tuples(st.sampled_from(PATHS), JUNK | st.just("DELETE")), min_size=1, max_size=3))
def test_a_damaged_file_never_gives_a_traceback(tmp_path, tables, capsys, changes):
    run = copy.deepcopy(make_run("kd"))
    for path, value in changes:
        try:
            parent = run
            for key in path[:-1]:
                parent = parent[key]
            if value == "DELETE":
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
        except (KeyError, TypeError, IndexError):  # an earlier change took the place away
            continue
    root = write(tmp_path, make_run("ckd"), make_run("kd", seed=2))
    (tmp_path / "changed").mkdir(exist_ok=True)
    (tmp_path / "changed" / "run.json").write_text(json.dumps(run))
    try:
        tables(root, "--baseline", "ckd", "--tables", "latex", "csv", said=None)
    except SystemExit as stop:  # a whole record that clashes with the others
        err = capsys.readouterr().err
        assert stop.code == 2 and err.startswith("report.py: error: ") and err.count("\n") == 1


@settings(max_examples=30, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
def test_any_bytes_are_refused(tmp_path, capsys, content):
    (tmp_path / "run.json").write_bytes(content)
    refused(capsys, tmp_path)


DAMAGE = {"cut": "{", "nan": json.dumps(make_run() | {"best": {"score": math.nan, "metrics": {}}}), "bytes": "\\xff"}


def test_damaged_records_are_named_and_the_others_reported(tmp_path, tables, capsys):
    root = write(tmp_path, make_run("kd", score=0.3))
    paths = [tmp_path / "cola" / f"bad {name}|\n<b>" / "run.json" for name in DAMAGE]
    for path, content in zip(paths, DAMAGE.values(), strict=True):
        path.parent.mkdir(parents=True)
        path.write_bytes(content.replace("\\xff", "\xff").encode("latin-1"))
    text = tables(
        root, said=[f"report.py: left out: {tmp_path}/cola/bad {name}|\\n<b>/run.json: " for name in sorted(DAMAGE)]
    )
    assert cells(text, "kd")[0][0] == "30.0 (1)"
    end = text[text.index("Damaged runs, not in the tables:") :].splitlines()
    assert [line[:4] for line in end if line.startswith("- ")] == ["- " + str(tmp_path)[:2]] * 3
    assert "best.score is nan" in text and "<b>" not in text and "bad nan\\|\\\\n&lt;b&gt;/run.json" in text
    (tmp_path / "cola" / "kd" / "seed1" / "run.json").unlink()
    assert "no complete run" in (line := refused(capsys, root)) and "3 damaged" in line and str(tmp_path) in line


@pytest.mark.parametrize("broken", [None, math.nan, math.inf, 10**400])
def test_numbers_that_were_not_finite_take_nothing_else_down(tmp_path, tables, broken):
    """A NaN from older code or a null: the cell is '-', the run and its other numbers stay."""
    metrics = {"mlm_loss": 2.5, "perplexity": 12.5, "teacher_agreement": 0.5}
    runs = [make_run("ckd", "mlm", seed, -2.5, metrics=metrics, stage="pretrain", metric="mlm_loss") for seed in (1, 2)]
    runs[1]["best"] = runs[1]["best"] | {"metrics": metrics | {"perplexity": broken}}
    runs[1]["last"] = runs[1]["last"] | {"score": broken, "metrics": dict.fromkeys(metrics, broken)}
    best, last = cells(tables(write(tmp_path, *runs)), "ckd")[0][:2]
    assert best == "- / 2.500 ± 0.000 / 50.0 ± 0.0 (2)" and last == "- / - / - (2)"


@pytest.mark.parametrize("broken", [None, math.nan, -math.inf])
def test_an_unknown_last_score_is_a_dash_in_the_table_and_its_average(tmp_path, tables, broken):
    run = make_run("kd", "rte", metrics={"accuracy": 0.5})
    run["last"] = run["last"] | {"score": broken}
    best, last, _ = cells(tables(write(tmp_path, make_run("kd"), run)), "kd")
    assert best == ["25.0 (1)", "50.0 (1)", "37.5"] and last == ["25.0 (1)", "- (1)", "-"]


def test_names_are_text_and_nothing_else_in_the_report(tmp_path, tables):
    """A Markdown reader must see each name as it is: no new cell, tag, code, link or line."""
    evil = "a|b `c` <img src=x onerror=alert(1)> [d](http://e) *f* & \\"
    versions, git = {evil: "1\n\n# not a heading"}, {"commit": "<b>`|"}
    runs = [
        make_run(
            evil,
            evil,
            seed,
            metrics={evil: 0.5},
            versions=versions,
            git=git,
            hardware=CPU | {"cpu": evil},
            options={"x": seed, evil: [seed]},
        )
        for seed in (1, 2)
    ]
    for seed, run in enumerate(runs):
        write(tmp_path / str(seed), run | {"task": "t", "name": "n"})
        path = tmp_path / str(seed) / "t" / "n" / f"seed{run['seed']}" / "run.json"
        path.write_text(json.dumps(run))
    text = tables(tmp_path, "--baseline", evil)
    assert "<" not in text and ">" not in text and "\n# " not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows[:3]}) == 1
    shown = re.sub(r"\\([\\`|*\[\]])", r"\1", html.unescape(text))
    assert shown.count(evil) >= 6 and "commit" not in text
    assert not re.search(r"(?<!\\)(?:\\\\)*[`\[]", text.split("Scores:")[0])


def assert_picture(path):
    """The PNG is readable, of sensible size and not one colour."""
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 150 and pixels[..., :3].std() > 0.02


def test_plots_and_report_file(tmp_path, capsys):
    long = "a very long method name that goes on and on with $x_1$ | and {braces} in it"
    runs = [make_run(name, seed=seed, score=0.1 * seed - 0.2) for name in ("kd", long) for seed in (1, 2)]
    root = write(tmp_path / "runs", *runs, make_run("teacher", hardware=GPU))
    out = tmp_path / "out"
    assert report.main([root, "--output_dir", str(out), "--baseline", "kd"]) == 0
    assert {path.name for path in out.iterdir()} == {
        "report.md",
        "report_scores.png",
        "report_flops.png",
        "report_latency.png",
        "report_time.png",
    }
    printed, err = capsys.readouterr()
    assert err == "" and printed.startswith((out / "report.md").read_text(encoding="utf-8"))
    assert long.replace("|", "\\|") in printed
    for path in out.glob("*.png"):
        assert_picture(path)
    assert not list((tmp_path / "runs").glob("*.png"))


def trained(name, seed, scores, losses=None, **changes):
    """A run with one evaluation for each score, every 10 steps."""
    history = [
        {
            "step": 10 * i,
            "epoch": i / 2,
            "score": score,
            "metrics": {"matthews_correlation": score},
            "loss": losses and losses[i - 1],
        }
        for i, score in enumerate(scores, 1)
    ]
    return make_run(name, seed=seed, score=max(scores), history=history, **changes)


def test_figures_and_tables_for_a_paper(tmp_path, capsys):
    runs = [trained("kd_$x", seed, [0.1, 0.2 * seed], [0.7, 0.6]) for seed in (1, 2)]
    root, out = write(tmp_path / "runs", *runs, make_run("teacher", score=0.5)), tmp_path / "out"
    assert report.main([root, "--output_dir", str(out), "--formats", "pdf", "svg", "--tables", "latex", "csv"]) == 0
    kinds = ("scores", "flops", "latency", "time", "curves")
    assert {path.name for path in out.iterdir()} == {
        "report.md",
        "report.tex",
        "report.csv",
        *(f"report_{kind}.{form}" for kind in kinds for form in ("pdf", "svg")),
    }
    assert all((out / f"report_{kind}.pdf").read_bytes().startswith(b"%PDF-") for kind in kinds)
    drawn = xml.etree.ElementTree.parse(out / "report_curves.svg")
    texts = {"".join(element.itertext()).strip() for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"kd_$x", "teacher (line)", "Matthews x 100", "loss on the dev set"} <= texts
    table = pandas.read_csv(out / "report.csv").set_index("method").loc["kd_$x"]
    assert (table["seeds"], table["best_mean"], table["parameters"]) == (2, pytest.approx(30), 17_390_000)
    assert table["best_std"] == pytest.approx(statistics.stdev([20, 40])) and table["speedup_batch_32"] == 2.5
    text = (out / "report.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 1
    row = r"kd\_\$x & 30.0 $\pm$ 14.1 (2) & 30.0 $\pm$ 14.1 (2) & 17.39 / 5.50 & 1.4 & 2.00x / 2.50x & 300.0 & 1.90 \\"
    assert row in text


def test_tables_that_go_on_below_are_one_in_latex_and_bold_stays_bold():
    text = (
        "## A & B\n\n### Best score\n\n| method | x\\|y |\n|:--|--:|\n| a\\*\\*b | **1.0 ± 0.1** (3) |\n\n"
        "| method | z |\n|:--|--:|\n| a\\*\\*b | 5 % |\n\nUnlike on x: --a_b 1\n(c\\*)\n\n"
        "### Last: 1\n\n| method | x |\n|:--|--:|\n| &lt;q\\\\ | - |\n\n"
        "### Last: 2\n\n| method | GB |\n|:--|--:|\n| q | - |\n\nScores: of no table | at all."
    )
    found = exports.latex(text)
    captions = re.findall(r"caption\[\{(.*?)\}\]\{(.*)\}", found)
    assert captions == [
        (
            r"A \& B: Best score",
            r"A \& B: Best score. Mean over seeds $\pm$ sample standard deviation (number of "
            r"seeds), fractions $\times$ 100. Bold: the best mean of the students and all that do not differ "
            r"significantly from it. Unlike on x: -{}-a\_b 1 (c*).",
        ),
        (r"A \& B: Last: 1", r"A \& B: Last: 1."),
        (r"A \& B: Last: 2", r"A \& B: Last: 2. GB: peak memory of a run, $10^9$ bytes."),
    ]
    assert re.findall(r"label\{(.*)\}", found) == ["tab:a-b-best-score", "tab:a-b-last", "tab:a-b-last.2"]
    assert r"method & x|y & z \\" in found and r"a**b & \textbf{1.0 $\pm$ 0.1} (3) & 5 \% \\" in found
    assert r"\textless{}q\textbackslash{} & - \\" in found and "of no table" not in found


def test_learning_curves_are_means_where_every_seed_was_evaluated(tmp_path):
    runs = [
        trained("kd", 1, [0.1, 0.2, 0.3]),
        trained("kd", 2, [0.3, 0.4]),
        trained("ckd", 1, [0.5], [0.25]),
        make_run("teacher", score=0.9),
    ]
    frame, _ = report.read_runs([Path(write(tmp_path, *runs))])
    own, teacher = plots.without_teacher(frame)
    assert set(own["name"]) == {"kd", "ckd"} and teacher == 90
    (panel,) = plots.curve_panels("cola", own, {"teacher": teacher})  # the loss was noted once: no curve
    properties, means, _ = panel
    assert sorted(zip(means["name"], means["x"], means["y"].round(6), strict=True)) == [
        ("ckd", 10, 50),
        ("kd", 10, 20),
        ("kd", 20, 30),
    ]
    threads = properties["threads"]
    assert len(threads) == 6 and properties["teacher"] == 90
    assert threads[(threads["seed"] == 1) & (threads["name"] == "kd")]["y"].tolist() == pytest.approx([10, 20, 30])
    assert plots.without_teacher(frame[frame["name"] == "teacher"])[1] is None  # alone it is a point


def test_seeds_are_points_and_the_teacher_a_line(tmp_path, monkeypatch):
    runs = [make_run("ckd", seed=seed, score=seed / 10, time={"train_s": 10.0 * seed}) for seed in (1, 2, 4)]
    frame, _ = report.read_runs([Path(write(tmp_path, *runs, make_run("teacher", score=0.5)))])
    drawn = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.update({Path(path).name: figure}))
    plots.write_plots(frame, tmp_path)
    for figure in drawn.values():  # all that is written stands within the picture
        figure.draw_without_rendering()
        box = figure._supxlabel.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.height > 0
    for name, axis in (("report_time.png", 1), ("report_scores.png", 0)):
        (ax,) = drawn[name].axes
        assert sorted(ax.collections[0].get_offsets()[:, axis]) == [10, 20, 40], name
        assert any(
            {*(line.get_xdata() if axis == 0 else line.get_ydata())} == {50} and line.get_linestyle() == "--"
            for line in ax.lines
        )


def test_window_curve_needs_two_windows_of_one_recipe(tmp_path):
    def run(window, seed, **options):
        options = {
            "window": window,
            "terms": {"wr_triple": 1.0},
            "run_name": f"w{window}",
            "output_dir": f"/x/{window}/{seed}",
            "teacher": f"runs/cola/teacher/seed{seed}",
        } | options
        return make_run(options["run_name"], seed=seed, score=0.1 * seed, options=options, asked=[*options])

    runs = [run(window, seed) for window in (None, 21, 5) for seed in (1, 2)]
    runs += [run(21, seed, run_name="w21-again") for seed in (1, 2)]
    curves = plots.option_curves(report.read_runs([Path(write(tmp_path, *runs))])[0], "window")
    assert list(curves) == ["w21"] and sorted(curves["w21"]) == [5, 21, math.inf]
    assert [len(curves["w21"][window]) for window in (5, 21, math.inf)] == [2, 2, 2]
    assert report.main([str(tmp_path)]) == 0  # plots go into the first folder
    assert_picture(tmp_path / "report_window.png")
    # A run that does not use the window, or differs in more than the window, is no point of a curve.
    other = [run(5, 1, terms={"logits": 1.0}), run(21, 1), run(7, 1, learning_rate=1.0), run(3, 1, teacher="a/bert")]
    assert plots.option_curves(report.read_runs([Path(write(tmp_path / "b", *other))])[0], "window") == {}


def test_runs_that_differ_in_one_number_make_its_curve(tmp_path):
    def run(name, seed=1, data=None, **options):
        run = make_run(name, seed=seed, train_examples=data)
        return run | {"options": run["options"] | {"temperature": 3.0, "terms": terms(3)} | options}

    def terms(temperature, triple=10):
        return {"logits": 1.0, "wr_pair": 1.0 * temperature**2, "wr_triple": 1.0 * triple * temperature**2}

    runs = [run("ckd", seed) for seed in (1, 2)]
    runs += [run(f"t{t}", seed, temperature=t, terms=terms(t)) for t in (1.0, 0.3) for seed in (1, 2)]
    runs += [run("odd", temperature=2.0, terms=terms(3))]  # its weights did not follow
    runs += [run(f"w{w}", terms=terms(3, w)) for w in (0, 30)] + [run("pair", terms=terms(3) | {"wr_pair": 1.0})]
    runs += [run(f"n{n}", data=n, max_train_samples=n) for n in (100, 200, 300)]
    runs += [run(f"s{n}", student_layers=n) | {"model": STUDENT | {"layers": n}} for n in (1, 2, 3)]
    found, _ = records.read_runs([Path(write(tmp_path, *runs))])
    panels = plots.option_panels("cola", found, "x", {})
    labels = {option: properties["xticklabels"] for option, (properties, _, _) in panels.items()}
    assert labels["temperature"] == ["0.3", "1", "3"] and labels["wr_triple"] == ["0", "90", "270"]
    assert labels["student_layers"] == ["1", "2", "3"] and labels["max_train_samples"] == ["100", "200", "300"]
    assert set(labels) == {"temperature", "wr_triple", "student_layers", "max_train_samples"}
    (curve,) = plots.option_curves(found, "temperature").values()
    assert [len(same) for same in curve.values()] == [2, 2, 2]


def test_a_full_disk_leaves_the_old_report_whole(tmp_path, capsys, monkeypatch):
    """Writing fails in the second picture: one line, the files of the last report as they were, nothing beside them."""
    root, out = write(tmp_path / "runs", make_run("kd")), tmp_path / "out"
    assert report.main([root, "--output_dir", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write(tmp_path / "runs", make_run("ckd"))
    calls, save = [], Figure.savefig

    def full(figure, path):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(figure, path)

    monkeypatch.setattr(Figure, "savefig", full)
    line = refused(capsys, root, "--output_dir", out)
    assert f"{out}: No space left on device" in line and "--output_dir" in line
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_in_the_place_of_a_plot_ends_in_one_line(tmp_path, capsys):
    root = write(tmp_path / "runs", make_run("kd"))
    (tmp_path / "runs" / "report_scores.png").mkdir()
    assert "Is a directory" in refused(capsys, root)
    assert not [path for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_standard_output_ends_in_one_line_and_torch_is_not_loaded(tmp_path):
    root = write(tmp_path, make_run("kd"))
    code = (
        "import sys, report\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "sys.exit(report.main(sys.argv[1:]))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, root],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(report.__file__).parent,
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("report.py: error: standard output: No space left on device")


def test_the_relation_figure_shows_both_models_and_their_difference():
    teacher, student = np.eye(40), np.full((40, 40), -0.5)
    figure = pictures.relation_figure(teacher, student, [f"$word_{i}" for i in range(40)])
    shown = [axes.images[0].get_array() for axes in figure.axes[:3]]
    expected = (teacher, student, student - teacher)
    assert all((image == values).all() for image, values in zip(shown, expected, strict=True))
    assert [axes.get_title() for axes in figure.axes[:3]] == ["teacher", "student", "difference"]
    words = list(figure.axes[0].get_yticklabels())
    assert [label.get_text() for label in words][:2] == ["$word_0", "$word_5"] and len(words) == 8
    assert min(label.get_fontsize() for label in words) >= 18  # 12 inches wide, seen at a quarter of it
    figure.canvas.draw()


def test_the_colours_of_a_relation_figure_span_the_teachers_range():
    """So two students of one teacher that are both near it do not look alike; a word beside itself says nothing."""
    teacher = np.linspace(0.8, 0.9, 400).reshape(20, 20)
    np.fill_diagonal(teacher, 1)
    for student in (teacher - 0.05, np.zeros((20, 20))):
        first, second, third = pictures.relation_figure(teacher, student, ["word"] * 20, ("6", "3")).axes[:3]
        low, high = first.images[0].get_clim()
        assert 0.8 < low < 0.81 and 0.89 < high < 0.9 and second.images[0].get_clim() == (low, high)
        assert third.images[0].get_clim() == pytest.approx((low - high, high - low))
    assert (
        pictures.teacher_range(np.ones((1, 1)), True) == pictures.teacher_range(np.ones((3, 3)), True) == (0.99, 1.01)
    )
    pairs = [f"{i}-{j}" for i in range(7) for j in range(i + 1, 7)]
    figure = pictures.relation_figure(np.ones((24, 21)), np.ones((24, 21)), ["word"] * 24, (pairs, pairs))
    figure.draw_without_rendering()
    boxes = [ax.get_xaxis().get_tightbbox() for ax in figure.axes[:3]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))  # captions do not overlap
