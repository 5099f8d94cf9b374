"""Tables and plots of finished runs: `python report.py runs/cola --baseline kd`; reads their run.json."""

import argparse
import html
import json
import math
import os
import re
import sys
import tempfile
import textwrap
from pathlib import Path

import pandas as pd
import tabulate
from scipy import stats

import pictures
import report_dynabert
from records import Measure, ReportError, customary, headline, read_runs, recipe_text, select

STAGES = {"finetune": "## Fine-tuning", "pretrain": "## Pre-training", "dynabert": "## DynaBERT"}
SIZES = {"params (M)": ("model.parameters", 1e6, ".2f"),
         "w/o emb (M)": ("model.parameters_without_embeddings", 1e6, ".2f"),
         "GFLOPs": ("model.flops_per_sequence", 1e9, ".3g")}  # fmt: skip
NOTE = """Scores: mean over seeds ± sample standard deviation (number of seeds), fractions x 100. best: the checkpoint
with the best headline score on the dev set; last: the end of training. The headline score is the only metric of a task
or, where it has two, their mean; differences, plots and the average over tasks are taken from it. Params: in millions,
with and without embeddings. GFLOPs: 10^9 operations for one sequence. Speed-up: latency of the teacher / latency of the
student, batch 1 / batch 32. Time: training time of one run, mean over seeds; *: with the teacher's outputs read from a
cache, which was filled before. Interval: Student t, confidence 95 %. Bold: the best mean of the students' headline
scores, and all that cannot be told from it, as the interval of the paired difference over common seeds holds 0; of one
seed nothing is said."""
WIDTH = 120  # columns of a terminal; wider tables are continued below
tabulate.MIN_PADDING = 0  # by which it makes columns wider than their headers


def one_line(text):
    """The text with everything that is not printable, line ends too, written as an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def escape(text):
    """The text on one line that neither Markdown nor HTML takes for anything but text."""
    return re.sub(r"[\\`|*\[\]]", r"\\\g<0>", html.escape(one_line(text), quote=False))


def summary(values, digits):
    """'25.1 ± 0.8': mean and sample standard deviation; '-' where a value is not known."""
    mean = values.mean(skipna=False)
    spread = "" if len(values) == 1 else f" ± {values.std():.{digits}f}"
    return "-" if math.isnan(mean) else f"{mean:.{digits}f}{spread}"


def markdown(names, columns):
    """A Markdown table of columns, Series of cells by method; those beyond WIDTH go on in another one below it."""
    index = pd.Index(map(escape, names), name="method")
    room, blocks = 0, []
    for column in columns:
        cells = column.astype(object).reindex(names).fillna("-").set_axis(index)
        width = max(map(len, [cells.name, *cells])) + 3
        if not blocks or (width > room and blocks[-1]):
            blocks.append([])
            room = WIDTH - max(map(len, ["method", *index])) - 4
        blocks[-1].append(cells)
        room -= width
    return "\n\n".join(pd.concat(block, axis=1).to_markdown(
        disable_numparse=True, colalign=["left", *["right"] * len(block)]) for block in blocks)  # fmt: skip


def grid_markdown(table):
    """The Markdown of a table whose cells, columns and index are texts."""
    return table.map(escape).rename(index=escape).to_markdown(disable_numparse=True)


def students(runs):
    """The runs without those named teacher, and without those from which others of them learned."""
    taught = {Path(str(options.get("teacher"))).parts[-3:] for options in runs["options"]}
    return runs[(runs["name"] != "teacher") & ~runs["folder"].map(lambda folder: folder.parts[-3:] in taught)]


def by_seed(runs, part):
    """Headline scores, higher is better: a row for each seed, a column for each student whose scores are all known."""
    own = students(runs)
    scores = own.assign(score=own[part].map(Measure(None, "").of)).astype({"name": str})
    unknown = set(scores["name"][scores["score"].isna()])
    return scores[~scores["name"].isin(unknown)].pivot(index="seed", columns="name", values="score")


def leaders(scores):
    """The columns of `by_seed` to be bold: the best mean and all that cannot be told from it, of two or more seeds."""
    scores = scores.loc[:, scores.count() > 1]
    if scores.empty:
        return set()
    best = scores.mean().idxmax()
    gaps = scores.drop(columns=best).rsub(scores[best], axis=0)
    gaps = gaps.loc[:, gaps.count() > 1]
    low = gaps.mean() - stats.t.ppf(0.975, gaps.count() - 1) * gaps.sem()
    return {best, *low.index[low <= 0]} if len(low) else set()


def score_column(runs, part, chosen, title):
    """'25.1 ± 0.8 (3)': the chosen Measures of the best or last entries, and the number of seeds; leaders are bold."""
    bold, cells = leaders(by_seed(runs, part)), {}
    for name, entries in runs.groupby("name", observed=True)[part]:
        text = " / ".join(summary(entries.map(measure.of), measure.digits) for measure in chosen)
        cells[name] = (f"**{text}**" if name in bold else text) + f" ({len(entries)})"
    return pd.Series(cells, name=title)


def difference_column(runs, baseline, measure, title):
    """Best score minus the baseline's over their common seeds: '+1.2 [-0.3, +2.7] (3)'."""
    scores = runs.assign(score=runs["best"].map(measure.of)).pivot(index="seed", columns="name", values="score")
    sign, cells = f"+.{measure.digits}f", {}
    for name, values in scores.sub(scores[baseline], axis=0).items():
        mean, n = values.mean(), values.count()
        half = stats.t.ppf(0.975, n - 1) * values.sem()
        if n:
            interval = f"[{mean - half:{sign}}, {mean + half:{sign}}] ({n})" if n > 1 else "(n=1, no interval)"
            cells[name] = f"{mean:{sign}} {interval}"
    return pd.Series(cells, name=title, dtype=object)


def time_unit(runs):
    """(name, seconds in it) of the unit in which the training times of these runs read well."""
    longest = runs["time.train_s"].max()
    return ("s", 1) if longest < 600 else ("min", 60) if longest < 36_000 else ("h", 3600)


def cost_columns(runs):
    """Columns of size, arithmetic, speed-up and training time, for runs of one stage on one hardware."""
    (unit, seconds), methods, columns = time_unit(runs), runs.groupby("name", observed=True), []
    for title, (place, size, form) in SIZES.items():  # a range where it varies with the task (the heads differ)
        ranges = (methods[place].agg(["min", "max"]) / size).itertuples()
        columns.append(pd.Series({name: "-".join(dict.fromkeys(f"{value:{form}}" for value in values))
                                  for name, *values in ranges}, name=title))  # fmt: skip
    ratios = methods[["1", "32"]].mean().dropna(how="all").itertuples()
    columns.append(pd.Series({
        name: " / ".join("-" if math.isnan(value) else f"{value:.2f}x" for value in values) for name, *values in ratios
    }, name="speed-up b1/b32", dtype=object))  # fmt: skip
    tasks = runs.groupby("task", observed=True)
    for task, own in tasks:
        title = f"{escape(task)} ({unit})" if len(tasks) > 1 else f"train ({unit})"
        cached = set(own["name"][[bool(options.get("cache_teacher")) for options in own["options"]]])
        times = own.groupby("name", observed=True)["time.train_s"].mean() / seconds
        columns.append(pd.Series({name: f"{value:.1f}" + "*" * (name in cached) for name, value in times.items()},
                                 name=title))  # fmt: skip
    return columns


def stage_tables(runs, baseline):
    """All tables of the runs of one stage, as a list of Markdown texts."""
    if runs["stage"].iloc[0] == "dynabert":
        return report_dynabert.tables(runs, baseline, grid_markdown, summary)
    names, tasks = [*runs["name"].unique().sort_values()], runs.groupby("task", observed=True)
    machines = runs.groupby("machine")
    scores, means, differences = {"best": [], "last": []}, {"best": [], "last": []}, []
    for task, own in tasks:
        chosen, main = customary(own) or [headline(own)], headline(own)
        for part in scores:
            title = f"{escape(task)} ({' / '.join(escape(measure.title) for measure in chosen)})"
            scores[part].append(score_column(own, part, chosen, title))
            means[part].append(own[part].map(main.of).groupby(own["name"], observed=True).mean(skipna=False))
        if baseline in set(own["name"]):
            differences.append(difference_column(own, baseline, main, f"{escape(task)} ({escape(main.title)})"))
    if len(tasks) > 1 and runs["stage"].iloc[0] == "finetune":
        for part in scores:
            average = pd.concat(means[part], axis=1).mean(axis=1, skipna=False).dropna()
            tables = [by_seed(own, part) for _, own in tasks]
            bold = leaders((sum(tables) / len(tables)).dropna(axis=1, how="all"))
            scores[part].append(pd.Series({name: f"**{value:.1f}**" if name in bold else f"{value:.1f}"
                                           for name, value in average.items()}, name="average"))  # fmt: skip
    if len(tasks) == len(machines) == 1:
        best, last = scores["best"][0], scores["last"][0].rename("last")
        texts = [markdown(names, [best.rename(f"{best.name} best"), last, *cost_columns(runs)])]
    else:
        texts = [text for part in scores for text in (f"### {part.capitalize()} score", markdown(names, scores[part]))]
        for machine, own in machines:
            texts += [f"### Cost and training time: {escape(machine)}",
                      markdown([*own["name"].unique().sort_values()], cost_columns(own))]  # fmt: skip
    others = [name for name in names if name not in (baseline, "teacher")]
    if differences and others:
        texts += [f"### Difference to {escape(baseline)} in best score: mean [95 % interval] (pairs of one seed)",
                  markdown(others, differences)]  # fmt: skip
    return texts


def mixed_options(runs):
    """Lines that name the options in which the seeds of one method differ, whose mean then means little."""
    lines = []
    for (_, task, name), recipes in runs.groupby(["stage", "task", "name"], observed=True)["recipe"]:
        for key in sorted(recipes.iloc[0]):
            values = dict.fromkeys(json.dumps(recipe[key], sort_keys=True) for recipe in recipes)
            if len(values) > 1:
                lines.append(escape(f"Mixed: the runs of {name} on {task} differ in --{key}: {', '.join(values)}"))
    return lines


def recipes(runs):
    """Lines that name what each distilled method was trained with, as options of the command line."""
    lines, found = [], {}
    for stage, task, name, options in zip(*(runs[key] for key in ("stage", "task", "name", "options")), strict=True):
        if text := recipe_text(options):
            found.setdefault((stage, name), {}).setdefault(text, {})[task] = None
    for (_, name), texts in found.items():
        for text, tasks in texts.items():
            where = f" on {', '.join(tasks)}" if len(texts) > 1 else ""
            lines.append(escape(f"Recipe of {name}{where}: {text}"))
    return lines


def report_text(runs, left_out, baseline):
    """The whole Markdown report: tables, what their numbers mean and were measured on, and what is missing."""
    texts = [text for stage, own in runs.groupby("stage") for text in (STAGES[stage], *stage_tables(own, baseline))]
    versions = {f"{name} {version}" for run in runs["versions"] for name, version in run.items() if version}
    unknown = runs["code"].isna().sum()
    code = sorted(runs["code"].dropna().unique()) + [f"unknown for {unknown} of {len(runs)} runs"] * bool(unknown)
    lines = [*mixed_options(runs), *recipes(runs), NOTE,
             *(f"Hardware: {escape(one)}" for one in sorted(runs["machine"].unique())),
             "Versions: " + escape(", ".join(sorted(versions))), "Code: " + escape(", ".join(code))]  # fmt: skip
    texts += [textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False) for line in lines]
    for what, found in left_out.items():
        lines = [f"{what.capitalize()} runs, not in the tables:\n", *(f"- {escape(line)}" for line in found)]
        texts += ["\n".join(lines)] * bool(found)
    return "\n\n".join(texts)


def seed_points(runs, x):
    """A row for each run: x and its best headline score y."""
    return pd.DataFrame({"name": runs["name"], "x": x, "y": runs["best"].map(headline(runs).of)})


def points(runs, x):
    """A row for each method: mean and standard deviation of x and of the best headline score."""
    scores = seed_points(runs, x)
    means, stds = (getattr(scores.groupby("name", observed=True), of)() for of in ("mean", "std"))
    return means.join(stds.add_prefix("d")).reset_index()


def side_by_side(table):
    """The points with those of equal x set a little side by side."""
    same = table.groupby("x")["x"]
    step = (0.06 / same.transform("size")).clip(upper=0.015) * table["x"].max()
    return table.assign(x=table["x"] + step * (same.cumcount() - (same.transform("size") - 1) / 2))


def window_curves(runs):
    """{method: {window: its runs, one for each seed}} of runs that differ in these only; at least two windows."""
    def uses_window(options):
        terms, window = options.get("terms"), options.get("window", "")
        known = window is None or (type(window) is int and abs(window) < 2**31)
        return known and bool(not isinstance(terms, dict) or terms.get("wr_triple"))

    runs = runs[[uses_window(options) for options in runs["options"]]]
    recipes = [json.dumps([model, recipe | {"window": 0}], sort_keys=True)
               for model, recipe in zip(runs["model"], runs["recipe"], strict=True)]  # fmt: skip
    curves = {}
    for _, own in runs.groupby(recipes):
        windows = own["options"].map(lambda options: options["window"] or math.inf)  # None and 0: all triples
        if windows.nunique() > 1:
            curves[own["name"].min()] = {w: same.drop_duplicates("seed") for w, same in own.groupby(windows)}
    return curves


def without_teacher(runs):
    """(a task's runs without the teacher's, its best headline score); all of them and None where it stands alone."""
    teachers = runs[runs["name"] == "teacher"]
    if not 0 < len(teachers) < len(runs):
        return runs, None
    return runs[runs["name"] != "teacher"], teachers["best"].map(headline(teachers).of).mean()


def learning_curves(runs, value):
    """(means over seeds, each seed's) of value(entry) at every evaluation; means where all seeds were evaluated.

    Empty where no method was evaluated twice.
    """
    rows = [(name, seed, entry["step"], value(entry)) for name, seed, entries in
            zip(runs["name"], runs["seed"], runs["history"], strict=True) for entry in entries]  # fmt: skip
    threads = pd.DataFrame(rows, columns=["name", "seed", "x", "y"]).dropna()
    names = threads.groupby("name", observed=True)
    if threads.empty or names["x"].nunique().max() < 2:
        return threads[:0], threads[:0]
    means = threads.groupby(["name", "x"], observed=True)["y"].agg(["mean", "count"]).reset_index()
    means = means[means["count"] == means["name"].astype(str).map(names["seed"].nunique().rename(index=str))]
    return means.rename(columns={"mean": "y"}).assign(dx=math.nan, dy=math.nan), threads


def curve_panels(task, runs, teacher):
    """The panels of learning curves: the headline score, and the loss on the dev set where it was noted."""
    main, panels = headline(runs), []

    def score(entry):
        return main.of(entry) if main.key is None or main.key in entry["metrics"] else math.nan

    def loss(entry):
        return math.nan if entry.get("loss") is None else entry["loss"]

    for label, value, line in ((main.title + " x 100" * (main.scale == 100), score, teacher),
                               ("loss on the dev set", loss, {})):  # fmt: skip
        means, threads = learning_curves(runs, value)
        if len(means):
            panels.append(({"title": task, "xlabel": "optimiser step", "ylabel": label, "threads": threads, **line},
                           means, "-"))  # fmt: skip
    return panels


def window_panels(task, runs, label, teacher):
    """The panel of scores over windows, if runs differ in these alone."""
    curves = window_curves(runs)
    ticks = sorted({window for windows in curves.values() for window in windows})
    every = [(same.assign(name=name), ticks.index(window)) for name, windows in curves.items()
             for window, same in windows.items()]  # fmt: skip
    if not every:
        return []
    return [({"title": task, "xlabel": "window W (words, evenly spaced)", "ylabel": label, "xticks": range(len(ticks)),
              "xticklabels": ["all" if tick == math.inf else f"{tick:g}" for tick in ticks],
              "seeds": pd.concat([seed_points(same, at) for same, at in every]), **teacher},
             pd.concat([points(same, at).assign(dx=math.nan) for same, at in every]), "-")]  # fmt: skip


def write_plots(runs, folder, formats=("png",)):
    """Writes the plots into the folder in each of the formats; returns their paths."""
    names, machines = [*runs["name"].unique().sort_values()], sorted(runs["machine"].unique())
    (unit, seconds), plots = time_unit(runs), {kind: [] for kind in ("scores", "flops", "time", "window", "curves")}
    alone = runs[runs["stage"] != "dynabert"]
    plots["dynabert"] = report_dynabert.panels(runs[runs["stage"] == "dynabert"], alone[alone["stage"] == "finetune"])
    tasks = [(task, *without_teacher(own)) for (_, task), own in alone.groupby(["stage", "task"], observed=True)]
    rows = [name for name in names[::-1] if any(name in set(own["name"]) for _, own, _ in tasks)]
    for task, own, score in tasks:
        main, teacher = headline(own), {} if score is None else {"teacher": score}
        label = main.title + (" x 100" if main.scale == 100 else "")
        turned = {"x": "y", "y": "x", "dx": "dy", "dy": "dx"}
        means, seeds = (table.rename(columns=turned).assign(y=[rows.index(name) for name in table["name"]], dy=math.nan)
                        for table in (points(own, 0), seed_points(own, 0)))  # fmt: skip
        plots["scores"].append((
            {"title": task, "xlabel": label, "yticks": range(len(rows)), "ylim": (-0.6, len(rows) - 0.4),
             "yticklabels": [pictures.short(name) for name in rows], "seeds": seeds, **teacher},
            means, "none"))  # fmt: skip
        means = side_by_side(points(own, own["model.flops_per_sequence"] / 1e9))
        seeds = seed_points(own, own["name"].astype(str).map(dict(zip(means["name"], means["x"], strict=True))))
        plots["flops"].append((
            {"title": task, "xlabel": "GFLOPs per sequence\n(equal values side by side)", "ylabel": label,
             "seeds": seeds, **teacher}, means, "none"))  # fmt: skip
        for machine, of in own.groupby("machine"):
            where, took = f", machine {machines.index(machine) + 1}" * (len(machines) > 1), of["time.train_s"] / seconds
            plots["time"].append((
                {"title": task + where, "xlabel": f"training time ({unit})", "ylabel": label,
                 "seeds": seed_points(of, took), **teacher}, side_by_side(points(of, took)), "none"))  # fmt: skip
        plots["window"] += window_panels(task, own, label, teacher)
        plots["curves"] += curve_panels(task, own, teacher)
    paths = []
    for kind, panels in plots.items():
        line = "; dashed: the teacher" * any("teacher" in properties for properties, _, _ in panels)
        caption = [f"best dev score: mean over seeds, bars ± sample standard deviation, small points: seeds{line}"]
        if kind == "curves":
            caption = [f"at each evaluation: mean over seeds, thin lines: seeds{line}"]
        if kind == "dynabert":
            caption = ["dev score, mean over seeds; lines: sub-networks of one run; single points: other runs"]
        if kind == "time" and len(machines) > 1:
            caption += [f"machine {n}: {machine}" for n, machine in enumerate(machines, 1)]
        if panels:
            paths += pictures.draw_panels(folder / f"report_{kind}.png", panels, names, "\n".join(caption), formats)
    return paths


# --- tables for other programs ---------------------------------------------------------------------------------------


TEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "±": r"$\pm$", "~": r"\textasciitilde{}",
       "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
       **{sign: "\\" + sign for sign in "$&%#_"}}  # fmt: skip


def tex_cell(cell):
    """A cell of a Markdown table, as `escape` wrote it and perhaps in bold, for LaTeX."""
    parts = [html.unescape(re.sub(r"\\(.)", r"\1", part)) for part in re.split(r"(?<!\\)\*\*", cell.strip())]
    parts = ["".join(TEX.get(c, c) for c in part) for part in parts]
    return "".join(rf"\textbf{{{part}}}" if i % 2 else part for i, part in enumerate(parts))


def latex(text):
    """The Markdown tables of a report as LaTeX, one for each heading, whole where the report continues them below."""
    tables, heading, last = [], [], False
    for block in text.split("\n\n"):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines() if line.startswith("|")]
        if block.startswith("#"):
            heading = ([] if block.startswith("## ") else heading[:1]) + [tex_cell(block.lstrip("# "))]
        if rows:
            frame = pd.DataFrame([list(map(tex_cell, row)) for row in rows[2:]], columns=map(tex_cell, rows[0]))
            if last and frame.iloc[:, 0].tolist() == tables[-1][1].iloc[:, 0].tolist():
                tables[-1][1] = pd.concat([tables[-1][1], frame.iloc[:, 1:]], axis=1)
            else:
                tables.append([": ".join(heading), frame])
        last = bool(rows)
    return r"% \usepackage{booktabs}" + "\n\n" + "\n".join(
        frame.to_latex(index=False, escape=False, caption=caption, position="htbp",
                       column_format="l" + "r" * (frame.shape[1] - 1)) for caption, frame in tables)  # fmt: skip


def numbers(runs):
    """A row for each stage, task, method and customary metric: means and standard deviations over seeds, as numbers."""
    rows = []
    for (stage, task, name), own in runs.groupby(["stage", "task", "name"], observed=True):
        task_runs = runs[(runs["stage"] == stage) & (runs["task"] == task)]
        for measure in customary(task_runs) or [headline(task_runs)]:
            whole = "mean_score" if stage == "dynabert" else own["metric"].iloc[0]  # over its sub-networks
            row = {"stage": stage, "task": task, "method": name, "metric": measure.key or whole, "seeds": len(own)}
            for part in ("best", "last"):
                values = own[part].map(measure.of)
                row |= {f"{part}_mean": values.mean(skipna=False), f"{part}_std": values.std(skipna=False)}
            means = {place.rpartition(".")[2]: own[place].mean() for place, _, _ in SIZES.values()}
            rows.append(row | means | {"speedup_batch_1": own["1"].mean(), "speedup_batch_32": own["32"].mean(),
                                       "train_s": own["time.train_s"].mean(),
                                       "machine": "; ".join(sorted(own["machine"].unique()))})  # fmt: skip
    return pd.DataFrame(rows)


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, without the usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


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
    table.add_argument("--tables", nargs="+", choices=("latex", "csv"), default=[], metavar="FORM",
                       help="also write report.tex (latex) or report.csv (csv) beside the plots (default: none)")
    paths.add_argument("--formats", nargs="+", choices=("png", "pdf", "svg"), default=["png"], metavar="FORM",
                       help="of the plots: png, pdf, svg (default: png)")
    table.add_argument("--baseline", metavar="NAME",
                       help="method from which paired differences over seeds are taken (default: none)")
    return parser


def main(argv=None):
    """Prints the tables and writes them and the plots; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    folder = where = args.output_dir or args.runs[0]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without "±" still gets its numbers
    try:
        runs, left_out = read_runs(args.runs)
        runs = select(runs, args.methods, args.baseline)
        for line in left_out["damaged"]:
            print(f"{parser.prog}: left out: {one_line(line)}", file=sys.stderr)
        text, where = report_text(runs, left_out, args.baseline), "standard output"
        print(text, flush=True)
        where = folder
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as temporary:  # all is written, then renamed
            if args.output_dir:
                Path(temporary, "report.md").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
            if "latex" in args.tables:
                Path(temporary, "report.tex").write_text(latex(text), encoding="utf-8", errors="backslashreplace")
            if "csv" in args.tables:
                numbers(runs).to_csv(Path(temporary, "report.csv"), index=False)
            paths = write_plots(runs, Path(temporary), args.formats)
            for path in sorted(Path(temporary).iterdir()):
                os.replace(path, folder / path.name)
        where = "standard output"
        print("\nPlots: " + ", ".join(str(folder / path.name) for path in paths), flush=True)
    except ReportError as error:
        parser.error(str(error))
    except OSError as error:
        if where == "standard output":  # Python would complain again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # there the reader, e.g. head, has seen enough
            parser.error(f"{where}: {error.strerror}; make room, or name a writable folder with --output_dir")
    return 0


if __name__ == "__main__":
    sys.exit(main())
