"""Sub-networks in a report: tables of width x depth, differences between objectives, panels of score over cost."""

import math

import pandas as pd

from reporting import significance
from reporting.records import headline


def long_table(runs):
    """Return a row for each sub-network of each run: its columns, task, name, seed, and `score` x 100."""
    rows = [
        {"task": run["task"], "name": run["name"], "seed": run["seed"], **size}
        for run in runs.to_dict("records")
        for size in run["subnetworks"]
    ]
    table = pd.DataFrame(rows)
    return table.assign(score=100 * table["score"].astype(float))


def grid(cells, name):
    """Return {(depth, width): text} as a table of depths (rows) and widths (columns), the largest first."""
    table = pd.Series(cells).unstack().sort_index(ascending=False).sort_index(axis=1, ascending=False)
    table.insert(0, "depth", [f"{depth:g}" for depth in table.index])
    table.columns = ["depth", *(f"width {width:g}" for width in table.columns[1:])]
    return table.set_index(pd.Index([name] * len(table), name="method"))


def stacked(grids):
    """Return grids below each other, with the widths of all from the largest on, "-" for a missing size."""
    table = pd.concat(grids)
    widths = sorted(table.columns.drop("depth"), key=lambda title: -float(title.removeprefix("width ")))
    return table[["depth", *widths]].fillna("-")


def scores(table, summary):
    """Return {name: grid of 'mean ± standard deviation (seeds)'}."""
    found = {}
    for name, own in table.groupby("name", observed=True):
        groups = own.groupby(["depth", "width"])["score"]
        found[name] = grid({size: f"{summary(values, 1)} ({len(values)})" for size, values in groups}, name)
    return found


def differences(table, names, reference):
    """Return ({name: grid of its scores minus the reference's over common seeds}, sentence on what is significant).

    Cells are as in `significance.cell`; Holm's correction covers all cells of all grids.
    """
    rows = {}
    for size, own in table[table["name"].isin([*names, reference])].groupby(["depth", "width"]):
        scores = own.astype({"name": str}).pivot(index="seed", columns="name", values="score")
        if reference in scores:
            found = significance.paired(scores, reference).drop(index=reference, errors="ignore")
            rows |= {(row.Index, size): row for row in found.itertuples()}
    sure = significance.holm(pd.Series([row.p for row in rows.values()], dtype=float)) < significance.LEVEL
    sure = dict(zip(rows, sure, strict=True))
    grids = {}
    for (name, size), row in rows.items():
        grids.setdefault(name, {})[size] = significance.cell(row, 1, sure[name, size])
    tested = {
        f"{name} at depth {size[0]:g}, width {size[1]:g}": sure[name, size]
        for (name, size), row in rows.items()
        if not math.isnan(row.p)
    }
    grids = {name: grid(grids[name], name) for name in map(str, names) if name in grids}
    return grids, significance.sentence(tested, reference)


def costs(table):
    """Return a grid of 'parameters (M) / GFLOPs / speed-up at batch 1 / at batch 32' of every size."""
    cells = {}
    for size, own in table.groupby(["depth", "width"]):
        ratios = " / ".join("-" if math.isnan(own[b].median()) else f"{own[b].median():.2f}x" for b in ("1", "32"))
        cells[size] = f"{own['parameters'].mean() / 1e6:.2f} / {own['flops'].mean() / 1e9:.3g} / {ratios}"
    return grid(cells, "all")


def tables(runs, baseline, markdown, summary):
    """Return the Markdown texts of DynaBERT runs: for each task scores, differences and costs.

    markdown(grid), summary(values, digits): as in report.py. Names whose runs have the same sizes are compared with the
    baseline, or with the last of them if it is not among them.
    """
    texts = []
    for task, own in runs.groupby("task", observed=True):
        table, title = long_table(own), headline(own).title
        found = scores(table, summary)
        last = {options.get("save") == "last" for options in own.get("options", ())} == {True}
        which = "last checkpoint" if last else "checkpoint of the best mean"
        heading = f"### Sub-networks of {task}:"
        texts += [f"{heading} {title} x 100, {which}, by depth and width", markdown(stacked(found.values()))]
        alike = {}
        for name, cells in found.items():
            alike.setdefault((*cells["depth"], *cells.columns), []).append(name)
        for names in alike.values():
            reference = baseline if baseline in names else names[-1]
            minus, said = differences(table, [name for name in names if name != reference], reference)
            if minus:
                texts.append(f"{heading} minus {reference} (mean, 95 % interval, pairs of one seed)")
                texts += [markdown(stacked(minus.values())), said]
        texts += [f"{heading} parameters (M) / GFLOPs / speed-up at batch 1 / 32", markdown(stacked([costs(table)]))]
    return texts


def panels(runs, students):
    """Return panels of score over GFLOPs and over latency: a curve per name of runs, other students as points.

    A curve leaves out sub-networks that a cheaper one equals. runs, students: tables of the stages dynabert and
    finetune. The panels are as `pictures.draw_panels` takes them.
    """
    found = []
    for task, own in runs.groupby("task", observed=True):
        table, label = long_table(own), f"{headline(own).title} x 100"
        alone = students[students["task"] == task]
        if len(alone):
            alone = alone.assign(score=alone["best"].map(headline(alone).of), flops=alone["model.flops_per_sequence"])
        for x, scale, xlabel in (("flops", 1e9, "GFLOPs per sequence"), ("ms", 1, "latency at batch 1 (ms)")):
            points = []
            for rows, by, style in ((table, ["name", "width", "depth"], "-"), (alone, ["name"], "none")):
                if len(rows):
                    mean = rows.assign(x=rows[x] / scale, y=rows["score"]).groupby(by, observed=True)[["x", "y"]].mean()
                    mean = mean.reset_index().sort_values(["x", "y"], ascending=[True, False])
                    if style == "-":
                        before = mean.groupby("name", observed=True)["y"].transform(lambda y: y.cummax().shift())
                        mean = mean[~(mean["y"] <= before)]
                    points.append(mean.assign(dx=math.nan, dy=math.nan, style=style))
            points = pd.concat(points).dropna(subset="x")
            found.append(({"title": task, "xlabel": xlabel, "ylabel": label}, points, "-"))
    return found
