"""The plots of a report: scores against cost, over values of an option, over training; by reporting/pictures.py."""

import json
import math

import pandas as pd

from methods.recipes import PRESETS
from reporting import pictures, subnetworks, table_notes
from reporting.records import headline, same_examples, time_unit

RELATIONS = {*PRESETS["ckd"]} - {"logits"}


def seed_points(runs, x):
    """Return a row for each run: x and its best headline score y."""
    return pd.DataFrame({"name": runs["name"], "x": x, "y": runs["best"].map(headline(runs).of)})


def points(runs, x):
    """Return a row for each method: mean and standard deviation of x and of the best headline score."""
    scores = seed_points(runs, x)
    means, stds = (getattr(scores.groupby("name", observed=True), of)() for of in ("mean", "std"))
    return means.join(stds.add_prefix("d")).reset_index()


def side_by_side(table):
    """Return the points with those of equal x set a little side by side."""
    same = table.groupby("x")["x"]
    step = (0.06 / same.transform("size")).clip(upper=0.015) * table["x"].max()
    return table.assign(x=table["x"] + step * (same.cumcount() - (same.transform("size") - 1) / 2))


def size_panels(task, runs, x, xlabel, label, teacher):
    """Return the panel of scores over x, a number that runs of one shape share; [] where it is known of none."""
    known = points(runs, x).dropna(subset="x")
    if known.empty:
        return []
    means = side_by_side(known)
    seeds = seed_points(runs, runs["name"].astype(str).map(dict(zip(means["name"], means["x"], strict=True))))
    return [
        (
            {
                "title": task,
                "xlabel": f"{xlabel}\n(equal values side by side)",
                "ylabel": label,
                "seeds": seeds,
                **teacher,
            },
            means,
            "none",
        )
    ]


def value_of(options, option):
    """Return the number that a run's options have for one of them, or for the weight terms/<name>; NaN where there is
    none.
    """
    terms = options.get("terms") if isinstance(options.get("terms"), dict) else {}
    if option == "window" and ((options.get("terms") and not terms.get("wr_triple")) or "window" not in options):
        return math.nan  # nothing of this run has a window
    value = terms.get(option.removeprefix("terms/"), 0) if "/" in option else options.get(option)
    if option == "window" and value in (None, 0):
        return math.inf  # all triples
    return value if type(value) in (int, float) and abs(value) < 2**31 else math.nan


def but_for(option, run):
    """Return what of a run must be equal in two runs that differ in this option only, as text."""
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

    At least three values, of windows two: a relation that is left out has two weights, and a row of the table.
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
    """Return (a task's runs without the teacher's, its best headline score); all of them and None where it stands
    alone.
    """
    teachers = runs[runs["teaches"]]
    if not 0 < len(teachers) < len(runs):
        return runs, None
    return runs[~runs["teaches"]], teachers["best"].map(headline(teachers).of).mean()


def learning_curves(runs, value):
    """Return (means over seeds, each seed's) of value(entry) at every evaluation; means where all seeds were evaluated.

    Empty where no method was evaluated twice.
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
    """Return the panels of learning curves: the headline score, and the loss on the dev set where it was noted."""
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
            panels.append(
                ({"title": task, "xlabel": "optimiser step", "ylabel": label, "threads": threads, **line}, means, "-")
            )
    return panels


def option_panels(task, runs, label, teacher):
    """Return {option: panel} of scores over the numbers of every option in which alone some runs differ."""
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
                "title": task,
                "xlabel": f"{option} (evenly spaced)",
                "ylabel": label,
                "xticks": range(len(ticks)),
                "xticklabels": ["all" if tick == math.inf else f"{tick:g}" for tick in ticks],
                "seeds": pd.concat([seed_points(same, at) for same, at in every]),
                **teacher,
            }
            means = pd.concat([points(same, at).assign(dx=math.nan) for same, at in every])
            found[option.rpartition("/")[2]] = (properties, means, "-")
    return found


def write_plots(runs, folder, formats=("png",)):
    """Writes the plots into the folder in each of the formats; returns their paths."""
    names, machines = [*runs["name"].unique().sort_values()], sorted(runs["machine"].unique())
    (unit, seconds), plots = (time_unit(runs), {kind: [] for kind in ("scores", "flops", "latency", "time", "curves")})
    alone = runs[runs["stage"] != "dynabert"]
    plots["dynabert"] = subnetworks.panels(runs[runs["stage"] == "dynabert"], alone[alone["stage"] == "finetune"])
    tasks = [(task, *without_teacher(own)) for (_, task), own in alone.groupby(["stage", "task"], observed=True)]
    rows = [name for name in names[::-1] if any(name in set(own["name"]) for _, own, _ in tasks)]
    for task, own, score in tasks:
        main, teacher = headline(own), {} if score is None else {"teacher": score}
        label = main.title + (" x 100" if main.scale == 100 else "")
        turned = {"x": "y", "y": "x", "dx": "dy", "dy": "dx"}
        means, seeds = (
            table.rename(columns=turned).assign(y=[rows.index(name) for name in table["name"]], dy=math.nan)
            for table in (points(own, 0), seed_points(own, 0))
        )
        plots["scores"].append(
            (
                {
                    "title": task,
                    "xlabel": label,
                    "yticks": range(len(rows)),
                    "ylim": (-0.6, len(rows) - 0.4),
                    "yticklabels": [pictures.short(name) for name in rows],
                    "seeds": seeds,
                    **teacher,
                },
                means,
                "none",
            )
        )
        gflops = own["model.flops_per_sequence"] / 1e9
        plots["flops"] += size_panels(task, own, gflops, "GFLOPs per sequence", label, teacher)
        for machine, of in own.groupby("machine"):
            where, took = f", machine {machines.index(machine) + 1}" * (len(machines) > 1), of["time.train_s"] / seconds
            latency = of.groupby("model")["ms"].transform("median")  # of a shape: each run measured it for itself
            plots["latency"] += size_panels(task + where, of, latency, "latency at batch 1 (ms)", label, teacher)
            plots["time"].append(
                (
                    {
                        "title": task + where,
                        "xlabel": f"training time ({unit})",
                        "ylabel": label,
                        "seeds": seed_points(of, took),
                        **teacher,
                    },
                    side_by_side(points(of, took)),
                    "none",
                )
            )
        for option, panel in option_panels(task, own, label, teacher).items():
            plots.setdefault(option, []).append(panel)
        plots["curves"] += curve_panels(task, own, teacher)
    paths = []
    for kind, panels in plots.items():
        line = "; dashed: the teacher" * any("teacher" in properties for properties, _, _ in panels)
        caption = [f"best dev score: mean over seeds, bars ± sample standard deviation, small points: seeds{line}"]
        if kind == "curves":
            caption = [f"at each evaluation: mean over seeds, thin lines: seeds{line}"]
        if kind == "dynabert":
            caption = ["dev score, mean over seeds; lines: sub-networks of one run; single points: other runs"]
        caption += [f"{task}: {words}" for task, words in table_notes.set_words(runs).items()]
        if kind in ("time", "latency") and len(machines) > 1:
            caption += [f"machine {n}: {machine}" for n, machine in enumerate(machines, 1)]
        if panels:
            paths += pictures.draw_panels(folder / f"report_{kind}.png", panels, names, "\n".join(caption), formats)
    return paths
