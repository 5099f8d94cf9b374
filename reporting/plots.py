"""The plots of a report: scores over cost, over an option's values, over training steps. pictures.py draws them."""

import json
import math

import pandas as pd

from methods.recipes import PRESETS
from reporting import pictures, subnetworks, table_notes
from reporting.records import headline, same_examples, time_unit

RELATIONS = {*PRESETS["ckd"]} - {"logits"}


def panel(title, xlabel, means, line="none", **properties):
    """Return a panel for `pictures.draw_panels`; line: its style; properties: of the axes, and what lies beneath."""
    return {"title": title, "xlabel": xlabel, **properties}, means, line


def seed_points(runs, x):
    """Return a row for each run: x and its best headline score y."""
    return pd.DataFrame({"name": runs["name"], "x": x, "y": runs["best"].map(headline(runs).of)})


def points(runs, x):
    """Return a row for each method: mean and standard deviation of x and of the best headline score."""
    scores = seed_points(runs, x)
    means, stds = (getattr(scores.groupby("name", observed=True), of)() for of in ("mean", "std"))
    return means.join(stds.add_prefix("d")).reset_index()


def side_by_side(table):
    """Return the points, with those of equal x moved apart a little."""
    same = table.groupby("x")["x"]
    step = (0.06 / same.transform("size")).clip(upper=0.015) * table["x"].max()
    return table.assign(x=table["x"] + step * (same.cumcount() - (same.transform("size") - 1) / 2))


def size_panels(task, runs, x, xlabel, label, teacher):
    """Return the panel of scores over x, which runs of one shape share; [] if no run knows it."""
    known = points(runs, x).dropna(subset="x")
    if known.empty:
        return []
    means = side_by_side(known)
    seeds = seed_points(runs, runs["name"].astype(str).map(dict(zip(means["name"], means["x"], strict=True))))
    xlabel += "\n(equal values side by side)"
    return [panel(task, xlabel, means, ylabel=label, seeds=seeds, **teacher)]


def value_of(options, option):
    """Return a run's number for an option, or for the weight terms/<name>; NaN if it has none."""
    terms = options.get("terms") if isinstance(options.get("terms"), dict) else {}
    if option == "window" and ((options.get("terms") and not terms.get("wr_triple")) or "window" not in options):
        return math.nan  # this run uses no window
    value = terms.get(option.removeprefix("terms/"), 0) if "/" in option else options.get(option)
    if option == "window" and value in (None, 0):
        return math.inf  # all triples
    return value if type(value) in (int, float) and abs(value) < 2**31 else math.nan


def but_for(option, run):
    """Return as text everything that must be equal in two runs that differ in this option only."""
    recipe, terms = {**run["recipe"], option: None}, run["recipe"].get("terms")
    if isinstance(terms, dict):  # weights of relations follow the temperature
        unit = run["options"].get("temperature") or 1 if option == "temperature" else 1
        weights = {name: f"{w / unit ** (2 * (name in RELATIONS)):.5g}" for name, w in terms.items()}
        recipe["terms"] = {name: weight for name, weight in weights.items() if f"terms/{name}" != option}
    follows = [] if option.startswith("student_") else [run["model"]]
    follows += [] if option == "max_train_samples" else [run["examples"]]
    return json.dumps([*follows, recipe], sort_keys=True, default=str)


def option_curves(runs, option):
    """Return {method: {value: its runs, one for each seed}} of runs that differ in this number only.

    A curve has at least three values, of windows two. A relation that is left out has only two weights, and has a row
    in the table.
    """
    values = runs["options"].map(lambda options: value_of(options, option))
    least, curves = 2 if option == "window" else 3, {}
    if values.nunique() < least:
        return {}
    runs = runs.assign(examples=same_examples(runs, "train"), value=values)[values.notna()]
    for _, own in runs.groupby([but_for(option, run) for run in runs.to_dict("records")]):
        if own["value"].nunique() >= least:
            curves[own["name"].min()] = {x: same.drop_duplicates("seed") for x, same in own.groupby("value")}
    return curves


def without_teacher(runs):
    """Return (a task's runs without the teacher's, its best headline score), or (all runs, None) if that is nothing."""
    teachers = runs[runs["teaches"]]
    if not 0 < len(teachers) < len(runs):
        return runs, None
    return runs[~runs["teaches"]], teachers["best"].map(headline(teachers).of).mean()


def learning_curves(runs, value):
    """Return (means over seeds, each seed's values) of value(entry) at the evaluations that all seeds have.

    Both are empty if no method was evaluated twice.
    """
    rows = [
        (name, seed, entry["step"], value(entry))
        for name, seed, entries in zip(runs["name"], runs["seed"], runs["history"], strict=True)
        for entry in entries
    ]
    threads = pd.DataFrame(rows, columns=["name", "seed", "x", "y"]).dropna()
    names = threads.groupby("name", observed=True)
    if threads.empty or names["x"].nunique().max() < 2:
        return threads[:0], threads[:0]
    means = threads.groupby(["name", "x"], observed=True)["y"].agg(["mean", "count"]).reset_index()
    means = means[means["count"] == means["name"].astype(str).map(names["seed"].nunique().rename(index=str))]
    return means.rename(columns={"mean": "y"}).assign(dx=math.nan, dy=math.nan), threads


def curve_panels(task, runs, teacher):
    """Return the panels of learning curves: the headline score, and the loss on the dev set if it was recorded."""
    main, panels = headline(runs), []

    def score(entry):
        return main.of(entry) if main.key is None or main.key in entry["metrics"] else math.nan

    def loss(entry):
        return math.nan if entry.get("loss") is None else entry["loss"]

    for label, value, line in (
        (main.title + " x 100" * (main.scale == 100), score, teacher),
        ("loss on the dev set", loss, {}),
    ):
        means, threads = learning_curves(runs, value)
        if len(means):
            panels.append(panel(task, "optimiser step", means, "-", ylabel=label, threads=threads, **line))
    return panels


def option_panels(task, runs, label, teacher):
    """Return {option: panel} of scores over the values of every option that alone distinguishes some runs."""
    names = dict.fromkeys(key for recipe in runs["recipe"] for key in recipe)
    terms = [options["terms"] for options in runs["options"] if isinstance(options.get("terms"), dict)]
    names |= dict.fromkeys(f"terms/{name}" for weights in terms for name in weights)
    found = {}
    for option in names:
        curves = option_curves(runs, option)
        ticks = sorted({value for of in curves.values() for value in of})
        every = [(same.assign(name=name), ticks.index(x)) for name, of in curves.items() for x, same in of.items()]
        if every:
            properties = {
                "ylabel": label,
                "xticks": range(len(ticks)),
                "xticklabels": ["all" if tick == math.inf else f"{tick:g}" for tick in ticks],
                "seeds": pd.concat([seed_points(same, at) for same, at in every]),
            }
            means = pd.concat([points(same, at).assign(dx=math.nan) for same, at in every])
            found[option.rpartition("/")[2]] = panel(
                task, f"{option} (evenly spaced)", means, "-", **properties, **teacher
            )
    return found


def score_panel(task, runs, rows, label, teacher):
    """Return the panel of a task's scores, a row per method; rows: the methods from the lowest row on."""
    turned = {"x": "y", "y": "x", "dx": "dy", "dy": "dx"}
    means, seeds = (
        table.rename(columns=turned).assign(y=[rows.index(name) for name in table["name"]], dy=math.nan)
        for table in (points(runs, 0), seed_points(runs, 0))
    )
    ticks = {"yticks": range(len(rows)), "yticklabels": [pictures.short(name) for name in rows]}
    return panel(task, label, means, ylim=(-0.6, len(rows) - 0.4), seeds=seeds, **ticks, **teacher)


def cost_panels(task, runs, machines, unit, label, teacher):
    """Return {kind: panels} of scores over operations and, for each machine, over latency and training time.

    unit: (name, seconds) of the times.
    """
    gflops = runs["model.flops_per_sequence"] / 1e9
    found = {"flops": size_panels(task, runs, gflops, "GFLOPs per sequence", label, teacher), "latency": [], "time": []}
    for machine, own in runs.groupby("machine"):
        title = task + f", machine {machines.index(machine) + 1}" * (len(machines) > 1)
        latency = own.groupby("model")["ms"].transform("median")  # of a shape: each run measured it for itself
        found["latency"] += size_panels(title, own, latency, "latency at batch 1 (ms)", label, teacher)
        took = own["time.train_s"] / unit[1]
        means, seeds = side_by_side(points(own, took)), seed_points(own, took)
        found["time"].append(panel(title, f"training time ({unit[0]})", means, ylabel=label, seeds=seeds, **teacher))
    return found


def caption_of(kind, panels, sets, machines):
    """Return the caption of a figure; sets: {task: what it was scored on} if some were scored on several sets."""
    line = "; dashed: the teacher" * any("teacher" in properties for properties, _, _ in panels)
    texts = {
        "curves": f"at each evaluation: mean over seeds, thin lines: seeds{line}",
        "dynabert": "dev score, mean over seeds; lines: sub-networks of one run; single points: other runs",
    }
    usual = f"best dev score: mean over seeds, bars ± sample standard deviation, small points: seeds{line}"
    found = [texts.get(kind, usual), *(f"{task}: {words}" for task, words in sets.items())]
    if kind in ("time", "latency") and len(machines) > 1:
        found += [f"machine {n}: {machine}" for n, machine in enumerate(machines, 1)]
    return "\n".join(found)


def write_plots(runs, folder, formats=("png",)):
    """Write the plots into the folder in each of the formats; return their paths."""
    names, machines = [*runs["name"].unique().sort_values()], sorted(runs["machine"].unique())
    plots, unit = {kind: [] for kind in ("scores", "flops", "latency", "time", "curves")}, time_unit(runs)
    alone = runs[runs["stage"] != "dynabert"]
    plots["dynabert"] = subnetworks.panels(runs[runs["stage"] == "dynabert"], alone[alone["stage"] == "finetune"])
    tasks = [(task, *without_teacher(own)) for (_, task), own in alone.groupby(["stage", "task"], observed=True)]
    rows = [name for name in names[::-1] if any(name in set(own["name"]) for _, own, _ in tasks)]
    for task, own, score in tasks:
        main, teacher = headline(own), {} if score is None else {"teacher": score}
        label = main.title + (" x 100" if main.scale == 100 else "")
        plots["scores"].append(score_panel(task, own, rows, label, teacher))
        for kind, panels in cost_panels(task, own, machines, unit, label, teacher).items():
            plots[kind] += panels
        for option, of_option in option_panels(task, own, label, teacher).items():
            plots.setdefault(option, []).append(of_option)
        plots["curves"] += curve_panels(task, own, teacher)
    paths, sets = [], table_notes.set_words(runs)
    for kind, panels in plots.items():
        if panels:
            caption = caption_of(kind, panels, sets, machines)
            paths += pictures.draw_panels(folder / f"report_{kind}.png", panels, names, caption, formats)
    return paths
