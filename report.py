"""Tables (Markdown) and plots (PNG) of finished runs: `python report.py runs/cola --baseline kd`; reads run.json."""

import argparse
import json
import math
import os
import re
import reprlib
import statistics
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

METHODS = ["teacher", "finetune", "kd", "pkd", "tinybert", "distilbert", "minilm", "ckd"]  # order of the rows
TASKS = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax", "squad", "squad_v2"]
SHAPE = ["layers", "hidden_size", "heads", "intermediate_size", "vocab_size"]
SIZES = (("params (M)", "parameters", 1e6, ".2f"),
         ("w/o emb (M)", "parameters_without_embeddings", 1e6, ".2f"),
         ("GFLOPs", "flops_per_sequence", 1e9, ".3g"))
STAGES = {"finetune": "## Fine-tuning", "pretrain": "## Pre-training"}
NOTE = """Scores: mean over seeds ± sample standard deviation (number of seeds), fractions x 100. best: the checkpoint
with the best headline score on the dev set; last: the end of training. The headline score is the only metric of a task
or, where it has two, their mean; differences, plots and the average over tasks are taken from it. Params: in millions,
with and without embeddings. GFLOPs: 10^9 operations for one sequence. Speed-up: latency of the teacher / latency of the
student, batch 1 / batch 32. Time: training time of one run, mean over seeds; *: with the teacher's outputs read from a
cache, which was filled before. Interval: Student t, confidence 95 %."""
WIDTH = 120  # columns of a terminal; wider tables are continued below

# Every entry of a finished run.json that is read here. "?": may be null or missing, with what is below it; "*": each.
KINDS = {
    "an object": lambda v: isinstance(v, dict),
    "a printable text": lambda v: isinstance(v, str) and v.strip() != "" and v.isprintable(),
    "an integer": lambda v: type(v) is int and abs(v) < 2**63,
    # The bounds keep out NaN, infinities and integers that no float can hold.
    "a finite number": lambda v: type(v) in (int, float) and -1e30 < v < 1e30,
    "a positive number": lambda v: type(v) in (int, float) and 1e-30 < v < 1e30,
    "'finetune' or 'pretrain'": lambda v: v in ("finetune", "pretrain"),
}
FIELDS = {
    "'finetune' or 'pretrain'": ["stage"],
    "a printable text": ["task", "name", "metric", "hardware.device", "hardware.cpu", "hardware.gpu?",
                         "hardware.precision", "versions.*?", "git?.commit?"],
    "an integer": ["seed", "hardware.cpu_count", "hardware.gpu_count", "hardware.processes"],
    "a positive number": ["model.parameters", "model.parameters_without_embeddings", "model.flops_per_sequence",
                          "time.train_s", "latency?.speedup?.*", *(f"model.{key}" for key in SHAPE),
                          *(f"teacher?.{key}" for key in SHAPE)],
    "a finite number": ["best.score", "last.score", "best.metrics.*", "last.metrics.*"],
    "an object": ["options"],
}
REMEDY = "run it again or move this folder away"

# Okabe and Ito's colours with wine for their yellow (too faint on white); 8 and 9 have no common factor: 72 looks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
MARKERS = "osD^vPX*<"

# Options in which the runs of one method may differ: they say where things are or how it runs, not what is trained.
OUTSIDE_RECIPE = ("output_dir", "data_dir", "train_file", "validation_file", "test_file", "corpus", "validation_corpus",
                  "run_name", "seed", "overwrite", "do_predict", "keep_checkpoints", "num_workers", "cache_teacher",
                  "cache_limit_gb", "save_minutes", "timeout_minutes")


class ReportError(Exception):
    """A mistake of the user or a damaged file; the text is the one line to print."""


class Measure(NamedTuple):
    """One printed number of a run: an entry of its metrics, or (key None) its headline score."""

    key: str | None
    title: str
    scale: float = 100.0  # fractions are printed times 100
    digits: int = 1

    def of(self, entry):
        """The number to print for run["best"] or run["last"]."""
        return self.scale * (entry["score"] if self.key is None else entry["metrics"][self.key])


# Tasks that are customarily given by more than their headline score.
CUSTOMARY = {
    **dict.fromkeys(("mrpc", "qqp"), (Measure("f1", "F1"), Measure("accuracy", "acc"))),
    "stsb": (Measure("pearson", "Pearson"), Measure("spearman", "Spearman")),
    "mnli": (Measure("accuracy_matched", "m"), Measure("accuracy_mismatched", "mm")),
    **dict.fromkeys(("squad", "squad_v2"), (Measure("exact_match", "EM"), Measure("f1", "F1"))),
    "pretrain": (Measure("perplexity", "perplexity", 1, 2), Measure("mlm_loss", "loss", 1, 3),
                 Measure("teacher_agreement", "agreement %")),
}
TITLES = {"matthews_correlation": "Matthews", "accuracy": "acc", "accuracy_matched": "acc m", "exact_match": "EM",
          "f1": "F1", "pearson": "Pearson", "spearman": "Spearman"}


def check(value, parts, kind, at=""):
    """Raises ReportError unless the entry at the end of the path `parts` below `value` is of that kind."""
    expected = "an object" if parts else kind
    if not KINDS[expected](value):
        raise ReportError(f"{at[1:]} is {reprlib.repr(value)}, not {expected}")
    name = parts[0].rstrip("?") if parts else None
    for key in () if name is None else value if name == "*" else [name]:
        if value.get(key) is not None or not parts[0].endswith("?"):
            if key not in value:
                raise ReportError(f"{at}.{key}"[1:] + " is missing")
            check(value[key], parts[1:], kind, f"{at}.{ascii(key)[1:-1]}")


def read_run(path):
    """Reads one run.json; returns the record with its folder, checked against FIELDS when the run is complete."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict):
            raise ReportError(f"holds {reprlib.repr(run)}, not an object")
        if run.get("status") not in ("running", "complete", "failed"):
            raise ReportError(f"status is {reprlib.repr(run.get('status'))}, not 'running', 'complete' or 'failed'")
        for kind, fields in FIELDS.items() if run["status"] == "complete" else ():
            for field in fields:
                check(run, field.split("."), kind)
        for part in ("best", "last") if run["status"] == "complete" and run["stage"] == "pretrain" else ():
            check(run, [part, "metrics", run["metric"]], "a finite number")
        run["recipe"] = recipe(run) if run["status"] == "complete" else None
    except ReportError as error:
        raise ReportError(f"{path}: {error}; {REMEDY}") from None
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, absurd nesting
        raise ReportError(f"{path}: not readable as JSON ({error}); {REMEDY}") from None
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}; check its permissions") from None
    return run | {"folder": path.parent}


def recipe(run):
    """{option: value} of what was trained: equal for runs that differ in the seed, in paths and in speed only."""
    own = {key: value for key, value in run["options"].items() if key not in OUTSIDE_RECIPE}
    return {key: re.sub(r"seed\d+", "seed", value) if isinstance(value, str) else value for key, value in own.items()}


def read_runs(folders):
    """Finds run.json under the folders; returns the (complete, incomplete) records."""
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder} is not a folder; give a folder that holds run folders, e.g. runs")
    paths = {path.resolve(): path for folder in folders for path in sorted(folder.rglob("run.json"))}
    runs = [read_run(path) for path in paths.values()]
    complete = [run for run in runs if run["status"] == "complete"]
    incomplete = [run for run in runs if run["status"] != "complete"]
    if not complete:
        where = ", ".join(map(str, folders))
        raise ReportError(
            f"no complete run under {where}; {len(incomplete)} incomplete, the first is {incomplete[0]['folder']} "
            f"({incomplete[0]['status']}): give its command again to finish it" if incomplete else
            f"no run.json found under {where}; train something first, e.g. bash run_glue.sh demo")
    return complete, incomplete


def select(runs, methods, baseline):
    """The runs of the wanted methods; refuses unknown names, a seed that occurs twice, a task with two metrics."""
    found = ordered({run["name"] for run in runs}, METHODS)
    for name in methods or ():
        if name not in found:
            raise ReportError(f"--methods {name}: no complete run of that name; choose from {', '.join(found)}")
    found = [name for name in found if not methods or name in methods]
    if baseline is not None and baseline not in found:
        raise ReportError(f"--baseline {baseline}: not among the methods in the table; choose from {', '.join(found)}")
    runs, seen = [run for run in runs if run["name"] in found], {}
    for run in runs:
        group = (run["stage"], run["task"])
        other = seen.setdefault((*group, run["name"], run["seed"]), run)
        if other is not run:
            raise ReportError(f"{other['folder']} and {run['folder']} both hold task {run['task']}, method "
                              f"{run['name']}, seed {run['seed']}; report them separately")
        other = seen.setdefault(group, run)
        if other["metric"] != run["metric"]:
            raise ReportError(f"{other['folder']} and {run['folder']} differ in their headline metric "
                              f"({other['metric']}, {run['metric']}); report them separately")
    return runs


def ordered(names, convention):
    """The names in their conventional order; those without a place in it come last, alphabetically."""
    return [name for name in convention if name in names] + sorted(set(names) - set(convention))


def split(runs, key):
    """{key(run): [runs]} in order of first appearance."""
    groups = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def by_task(runs):
    """{(stage, task): [runs]}, fine-tuning first, tasks in GLUE's order."""
    tasks = ordered({run["task"] for run in runs}, TASKS)
    return split(sorted(runs, key=lambda run: (run["stage"], tasks.index(run["task"]))),
                 lambda run: (run["stage"], run["task"]))


def hardware(run):
    """One line, equal for two runs exactly when their times may be compared."""
    own = run["hardware"]
    gpu = "" if own["device"] == "cpu" else f"{own['gpu_count']} x {own.get('gpu') or own['device']}, "
    precision = "float32" if own["precision"] == "no" else own["precision"]
    return f"{gpu}{own['cpu']} ({own['cpu_count']} cores), {own['processes']} process(es), {precision}"


def summary(values):
    """(mean, sample standard deviation, NaN for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def t_quantile(degrees, confidence=0.95):
    """Two-sided quantile of Student's t, P(|T| < t) = confidence.

    With t = sqrt(degrees) tan(u) the density becomes cos(u)^(degrees-1) on (-pi/2, pi/2): bounded and smooth, so
    one cumulative trapezoid sum over u gives more digits than any table prints.
    """
    u = np.linspace(0.0, np.pi / 2, 100_001)
    density = np.cos(u) ** (degrees - 1)
    mass = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return math.sqrt(degrees) * math.tan(np.interp(confidence, mass / mass[-1], u))


def customary(runs):
    """The customary Measures of the runs' task that every run has."""
    wanted = CUSTOMARY.get("pretrain" if runs[0]["stage"] == "pretrain" else runs[0]["task"], ())
    entries = [run[part]["metrics"] for run in runs for part in ("best", "last")]
    return [measure for measure in wanted if all(measure.key in entry for entry in entries)]


def headline(runs):
    """The Measure by which these runs of one task chose their best checkpoint."""
    metric, found = runs[0]["metric"], customary(runs)
    if runs[0]["stage"] == "pretrain":  # lower is better; the score is its negative
        return next((one for one in found if one.key == metric), Measure(metric, metric.replace("_", " "), 1, 3))
    title = "mean of " + " and ".join(one.title for one in found) if len(found) > 1 else TITLES.get(metric, metric)
    return Measure(None, title)


def measures(runs):
    """The Measures printed for these runs of one task: the customary ones, else the headline."""
    return customary(runs) or [headline(runs)]


def speedup(run, everyone):
    """{"1": teacher's latency / student's at batch 1, "32": ...}, or {} where nothing was measured.

    Speed is a property of the shape: the median of all runs of the same task, shape and hardware that measured it, also
    for a run without teacher; a model of the teacher's own shape is the reference.
    """
    def shape(model):
        return [model[key] for key in SHAPE] if model else None

    peers = [other for other in everyone if (other["stage"], other["task"]) == (run["stage"], run["task"])]
    same = [(other.get("latency") or {}).get("speedup") or {} for other in peers
            if shape(other["model"]) == shape(run["model"]) and other["hardware"] == run["hardware"]
            and (not run.get("teacher") or shape(other.get("teacher")) == shape(run["teacher"]))]
    if not any(same) and shape(run["model"]) in [shape(other.get("teacher")) for other in peers]:
        return {"1": 1.0, "32": 1.0}
    found = {batch: [ratios[batch] for ratios in same if batch in ratios] for batch in ("1", "32")}
    return {batch: statistics.median(ratios) for batch, ratios in found.items() if ratios}


def markdown(names, columns):
    """A Markdown table, one row for each method, of columns (header, {method: cell}); padded for the terminal.

    Columns beyond WIDTH go on in a table below it, which repeats the methods.
    """
    columns = [[text.replace("|", "\\|") for text in (header, *(cells.get(name, "-") for name in names))]
               for header, cells in [("method", dict(zip(names, names, strict=True))), *columns]]
    blocks = []
    for column in columns:
        width = max(map(len, column))
        first = column is columns[0]
        column.insert(1, "-" * (width - 1) + ("-" if first else ":"))
        column[:] = [text.ljust(width) if first else text.rjust(width) for text in column]
        if not blocks or (len(blocks[-1]) > 1 and sum(len(one[0]) + 3 for one in (*blocks[-1], column)) >= WIDTH):
            blocks.append(columns[:1])
        if not first:
            blocks[-1].append(column)
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in zip(*block, strict=True)) for block in blocks)


def score_cell(runs, part, chosen):
    """'25.1 ± 0.8 (3)': the chosen Measures of the best or last entries, and the number of seeds."""
    texts = []
    for measure in chosen:
        mean, std = summary([measure.of(run[part]) for run in runs])
        texts.append(f"{mean:.{measure.digits}f}" + ("" if len(runs) == 1 else f" ± {std:.{measure.digits}f}"))
    return " / ".join(texts) + f" ({len(runs)})"


def difference_cell(runs, base, measure):
    """Best score minus the baseline's over their common seeds: '+1.2 [-0.3, +2.7] (3)'."""
    base = {run["seed"]: measure.of(run["best"]) for run in base}
    values = [measure.of(run["best"]) - base[run["seed"]] for run in runs if run["seed"] in base]
    if not values:
        return "-"
    (mean, std), sign = summary(values), f"+.{measure.digits}f"
    if len(values) == 1:
        return f"{mean:{sign}} (n=1, no interval)"
    half = t_quantile(len(values) - 1) * std / math.sqrt(len(values))
    return f"{mean:{sign}} [{mean - half:{sign}}, {mean + half:{sign}}] ({len(values)})"


def time_unit(runs):
    """(name, seconds in it) of the unit in which the training times of these runs read well."""
    longest = max(run["time"]["train_s"] for run in runs)
    return ("s", 1) if longest < 600 else ("min", 60) if longest < 36_000 else ("h", 3600)


def cost_columns(runs, everyone):
    """Columns of size, arithmetic, speed-up and training time, for runs of one stage on one hardware."""
    unit, seconds = time_unit(runs)
    methods, tasks = split(runs, lambda run: run["name"]), by_task(runs)
    columns = []
    for header, key, size, form in SIZES:  # one number, or a range where it varies with the task (the heads differ)
        columns.append((header, cells := {}))
        for name, own in methods.items():
            values = [run["model"][key] / size for run in own]
            cells[name] = "-".join(dict.fromkeys(f"{value:{form}}" for value in (min(values), max(values))))
    columns.append(("speed-up b1/b32", cells := {}))
    for name, own in methods.items():
        ratios = [speedup(run, everyone) for run in own]
        by_batch = [[ratio[batch] for ratio in ratios if batch in ratio] for batch in ("1", "32")]
        if any(by_batch):
            cells[name] = " / ".join(f"{statistics.fmean(values):.2f}x" if values else "-" for values in by_batch)
    for (_, task), own in tasks.items():
        columns.append((f"{task} ({unit})" if len(tasks) > 1 else f"train ({unit})", cells := {}))
        for name, of in split(own, lambda run: run["name"]).items():
            mean, _ = summary([run["time"]["train_s"] / seconds for run in of])
            cells[name] = f"{mean:.1f}" + "*" * any(run["options"].get("cache_teacher") for run in of)
    return columns


def stage_tables(runs, everyone, baseline):
    """All tables of the runs of one stage, as a list of Markdown texts."""
    tasks, names = by_task(runs), ordered({run["name"] for run in runs}, METHODS)
    machines = split(sorted(runs, key=hardware), hardware)
    scores, differences = {"best": [], "last": []}, []
    averages = {part: {name: [] for name in names} for part in scores}
    for (_, task), own in tasks.items():
        methods, chosen, main = split(own, lambda run: run["name"]), measures(own), headline(own)
        for part, columns in scores.items():
            title = f"{task} ({' / '.join(measure.title for measure in chosen)})"
            columns.append((title, {name: score_cell(of, part, chosen) for name, of in methods.items()}))
            for name, of in methods.items():
                averages[part][name].append(statistics.fmean([main.of(run[part]) for run in of]))
        if baseline in methods:
            differences.append((f"{task} ({main.title})", {
                name: difference_cell(of, methods[baseline], main) for name, of in methods.items()}))
    if len(tasks) > 1 and runs[0]["stage"] == "finetune":
        for part, columns in scores.items():
            columns.append(("average", {name: f"{statistics.fmean(means):.1f}" for name, means in averages[part].items()
                                        if len(means) == len(tasks)}))
    if len(tasks) == len(machines) == 1:
        (title, best), (_, last) = scores["best"][0], scores["last"][0]
        texts = [markdown(names, [(f"{title} best", best), ("last", last), *cost_columns(runs, everyone)])]
    else:
        texts = [text for part in scores for text in (f"### {part.capitalize()} score", markdown(names, scores[part]))]
        for label, own in machines.items():
            texts += [f"### Cost and training time: {label}", markdown(
                ordered({run["name"] for run in own}, METHODS), cost_columns(own, everyone))]
    if differences and len(names) > 1:
        texts += [f"### Difference to {baseline} in best score: mean [95 % interval] (pairs of one seed)",
                  markdown([name for name in names if name not in (baseline, "teacher")], differences)]
    return texts


def mixed_options(runs):
    """Lines that name the options in which the seeds of one method differ, whose mean then means little."""
    lines = []
    for (_, task, name), own in split(runs, lambda run: (run["stage"], run["task"], run["name"])).items():
        shared = set.intersection(*(set(run["recipe"]) for run in own))  # an older run may lack a newer option
        for key in sorted(shared):
            values = list(dict.fromkeys(json.dumps(run["recipe"][key], sort_keys=True) for run in own))
            if len(values) > 1:
                lines.append(f"Mixed: the runs of {name} on {task} differ in --{key}: {', '.join(values)}")
    return lines


def report_text(runs, everyone, incomplete, baseline):
    """The whole Markdown report: tables, what their numbers mean and were measured on, and what is missing."""
    texts = []
    for stage, own in split(sorted(runs, key=lambda run: run["stage"]), lambda run: run["stage"]).items():
        texts += [STAGES[stage], *stage_tables(own, everyone, baseline)]
    versions = {f"{name} {version}" for run in runs for name, version in run["versions"].items() if version}
    gits = [run.get("git") or {} for run in runs]
    commits = {git["commit"][:10] + (" (dirty)" if git.get("dirty") else "") for git in gits if git.get("commit")}
    unknown = sum(not git.get("commit") for git in gits)
    code = [*sorted(commits), *([f"unknown for {unknown} of {len(runs)} runs"] if unknown else [])]
    lines = [*mixed_options(runs), NOTE, *(f"Hardware: {label}" for label in sorted({hardware(run) for run in runs})),
             "Versions: " + ", ".join(sorted(versions)), "Code: " + ", ".join(code)]
    texts += [textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False) for line in lines]
    if incomplete:
        folders = (f"- {run['folder']} ({run['status']})" for run in incomplete)
        texts.append("Incomplete runs, not in the tables:\n\n" + "\n".join(folders))
    return "\n\n".join(texts)


def draw(path, panels, caption):
    """Writes one PNG: for each panel (axes properties, {method: [(x, y, x_error, y_error), ...]}, line style)."""
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    names = ordered({name for _, curves, _ in panels for name in curves}, METHODS)
    by_row = "yticks" in panels[0][0]  # methods are named on the axis: no legend
    height = max(1.8, 1.2 + 0.36 * len(names)) if by_row else 3.0
    legend_columns = 1 if by_row else 1 + (len(names) - 1) // (10 * rows)
    size = 3 * columns + 2.4 * legend_columns, 0.4 + height * rows + 0.16 * caption.count("\n")
    fig = Figure(figsize=size, dpi=120, layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False, sharey=by_row).ravel()
    handles = {}
    for ax, (properties, curves, style) in zip(axes, panels, strict=False):
        for name in (name for name in names if name in curves):
            x, y, x_error, y_error = zip(*curves[name], strict=True)
            look = names.index(name)
            handles[name], *_ = ax.errorbar(x, y, xerr=x_error, yerr=y_error, linestyle=style, capsize=3,
                                            color=COLOURS[look % 8], marker=MARKERS[look % 9])
        ax.set(**properties)
        if "xticks" not in properties and not by_row:  # costs: the axis starts at zero
            left, right = ax.get_xlim()
            ax.set_xlim(min(0, left), 1.04 * right)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(panels):]:
        ax.remove()
    if not by_row and len(handles) > 1:
        fig.legend([handles[name] for name in names], map(short, names), loc="outside right upper", frameon=False,
                   fontsize="small", ncols=legend_columns)
    fig.supxlabel(caption, fontsize="small")
    fig.savefig(path)


def short(text, width=26):
    """The text on at most two lines, for a label."""
    lines = textwrap.wrap(text, width)
    return "\n".join(lines if len(lines) <= 2 else [lines[0], lines[1][: width - 3] + "..."])


def scatter(runs, x_of):
    """{method: [(x, y, x std, y std)]} with y the best headline score; equal x are set a little side by side."""
    main, points = headline(runs), {}
    for name, own in split(runs, lambda run: run["name"]).items():
        (x, dx), (y, dy) = summary([x_of(run) for run in own]), summary([main.of(run["best"]) for run in own])
        points[name] = (x, y, dx, dy)
    widest = max(x for x, *_ in points.values())
    for group in split(points, lambda name: points[name][0]).values():
        step = min(0.015, 0.06 / len(group)) * widest
        for place, name in enumerate(ordered(group, METHODS)):
            x, *rest = points[name]
            points[name] = (x + step * (place - (len(group) - 1) / 2), *rest)
    return {name: [point] for name, point in points.items()}


def window_curves(runs):
    """{method: {window: runs, one for each seed}} of runs that differ in these only; at least two windows."""
    def uses_window(run):
        terms, window = run["options"].get("terms"), run["options"].get("window", "")
        return (window is None or type(window) is int) and (not isinstance(terms, dict) or terms.get("wr_triple"))

    def but_window(run):
        other = {key: value for key, value in run["recipe"].items() if key != "window"}
        return json.dumps([[run["model"][key] for key in SHAPE], other], sort_keys=True)

    curves = {}
    for own in split(filter(uses_window, runs), but_window).values():
        windows = split(own, lambda run: run["options"]["window"] or math.inf)  # None and 0: all triples
        if len(windows) > 1:
            curves[ordered({run["name"] for run in own}, METHODS)[0]] = {
                window: list({run["seed"]: run for run in of}.values()) for window, of in windows.items()}
    return curves


def write_plots(runs, folder):
    """Writes the PNGs into the folder; returns their paths."""
    names = ordered({run["name"] for run in runs}, METHODS)[::-1]
    machines = sorted({hardware(run) for run in runs})
    unit, seconds = time_unit(runs)
    plots = {"scores": [], "flops": [], "time": [], "window": []}
    for (_, task), own in by_task(runs).items():
        main = headline(own)
        label, methods = main.title + (" x 100" if main.scale == 100 else ""), split(own, lambda run: run["name"])
        stats = {name: summary([main.of(run["best"]) for run in of]) for name, of in methods.items()}
        axes = {"title": task, "xlabel": label, "yticks": range(len(names)), "yticklabels": [*map(short, names)],
                "ylim": (-0.6, len(names) - 0.4)}
        plots["scores"].append((axes, {name: [(mean, names.index(name), std, math.nan)]
                                       for name, (mean, std) in stats.items()}, "none"))
        axes = {"title": task, "xlabel": "GFLOPs per sequence\n(equal values side by side)", "ylabel": label}
        plots["flops"].append((axes, scatter(own, lambda run: run["model"]["flops_per_sequence"] / 1e9), "none"))
        for machine, of in split(own, hardware).items():
            letter = f", machine {machines.index(machine) + 1}" if len(machines) > 1 else ""
            axes = {"title": task + letter, "ylabel": label, "xlabel": f"training time ({unit})"}
            plots["time"].append((axes, scatter(of, lambda run: run["time"]["train_s"] / seconds), "none"))
        curves = window_curves(own)
        ticks = sorted({window for windows in curves.values() for window in windows})
        axes = {"title": task, "xlabel": "window W (words, evenly spaced)", "ylabel": label,
                "xticks": range(len(ticks)), "xticklabels": ["all" if tick == math.inf else tick for tick in ticks]}
        points = {name: [(ticks.index(window), mean, math.nan, std) for window in sorted(windows) for mean, std in
                         [summary([main.of(run["best"]) for run in windows[window]])]]
                  for name, windows in curves.items()}
        plots["window"] += [(axes, points, "-")] if points else []
    paths = {folder / f"report_{kind}.png": panels for kind, panels in plots.items() if panels}
    # A name may hold "$", which must not start a formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        for path, panels in paths.items():
            lines = ["best dev score: mean over seeds, bars ± sample standard deviation"]
            if path.stem == "report_time" and len(machines) > 1:
                lines += [f"machine {n}: {machine}" for n, machine in enumerate(machines, 1)]
            draw(path, panels, "\n".join(lines))
    return list(paths)


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, without the usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def build_parser():
    """Returns the command line's parser."""
    parser = Parser(prog="report.py", description=__doc__, allow_abbrev=False)
    paths = parser.add_argument_group("paths")
    paths.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="folders, searched for run.json at any depth")
    paths.add_argument("--output_dir", type=Path, metavar="DIR",
                       help="folder for report.md and the plots (default: no report.md, plots into the first RUNS)")
    table = parser.add_argument_group("tables")
    table.add_argument("--methods", type=lambda text: text.split(","), metavar="A,B",
                       help="names of the methods to report, separated by commas (default: all)")
    table.add_argument("--baseline", metavar="NAME",
                       help="method from which paired differences over seeds are taken (default: none)")
    return parser


def main(argv=None):
    """Prints the tables and writes the plots; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without "±" still gets its numbers
    try:
        everyone, incomplete = read_runs(args.runs)
        runs = select(everyone, args.methods, args.baseline)
        text = report_text(runs, everyone, incomplete, args.baseline)
        print(text)
        folder = args.output_dir or args.runs[0]
        if args.output_dir:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "report.md").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        print("\nPlots: " + ", ".join(map(str, write_plots(runs, folder))))
    except ReportError as error:
        parser.error(str(error))
    except BrokenPipeError:  # the reader, e.g. head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}; name a writable folder with --output_dir")
    return 0


if __name__ == "__main__":
    sys.exit(main())
