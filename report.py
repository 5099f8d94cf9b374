"""Tables and plots of finished runs, from their run.json: `python report.py runs/cola --baseline kd`."""

import argparse
import html
import math
import os
import re
import sys
import tempfile
import textwrap
from pathlib import Path

import pandas as pd
import tabulate

from options import Parser, group, named_folder, one_line
from reporting import exports, plots, significance, subnetworks, table_notes
from reporting.records import (
    SIZES,
    Measure,
    ReportError,
    by_task,
    customary,
    displayed,
    headline,
    read_runs,
    same_examples,
    select,
    students,
    task_alone,
    time_unit,
)

STAGES = {"finetune": "## Fine-tuning", "pretrain": "## Pre-training", "dynabert": "## DynaBERT"}
NOTE = """Scores: mean over seeds ± sample standard deviation (number of seeds), fractions x 100. best: the checkpoint
with the best headline score on the dev set or, with --held_out, on that part of the training set, whose score then
has its own column; last: the end of training. The headline score is the only metric of a task or the mean of several;
differences, plots and the average over tasks use it. Params: in millions, with / without embeddings. GFLOPs: 10^9
operations for one sequence. Speed-up: latency of the teacher / latency of the student, batch 1 / batch 32. Time:
training time of one run, mean over seeds; *: with the teacher's outputs read from a cache that was filled before. GB:
peak memory of one run, 10^9 bytes, mean over seeds, of the task that needs most; the GPU's allocations, on a CPU the
process's resident set. Interval: Student t, confidence 95 %. Bold: the best mean of the students' headline scores, and
all that do not differ significantly from it: the interval of the paired difference over common seeds holds 0 or has no
width. Nothing is bold with one seed."""
WIDTH = 120  # columns of a terminal; wider tables continue below
tabulate.MIN_PADDING = 0  # otherwise it makes columns wider than their headers


def escape(text):
    """Return the text on one line, so that Markdown and HTML take it for plain text."""
    return re.sub(r"[\\`|*\[\]]", r"\\\g<0>", html.escape(one_line(text), quote=False))


def wrapped(line):
    """Return the line broken to the width of a terminal."""
    return textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False)


def summary(values, digits):
    """Return '25.1 ± 0.8', mean and sample standard deviation; '-' if a value is unknown."""
    mean = values.mean(skipna=False)
    spread = "" if len(values) == 1 else f" ± {values.std():.{digits}f}"
    return "-" if math.isnan(mean) else f"{mean:.{digits}f}{spread}"


def markdown(names, columns):
    """Return a Markdown table of columns, Series of cells by method. Columns beyond WIDTH continue in a table below."""
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
    return "\n\n".join(
        pd.concat(block, axis=1).to_markdown(disable_numparse=True, colalign=["left", *["right"] * len(block)])
        for block in blocks
    )


def grid_markdown(table):
    """Return the Markdown of a table whose cells, columns and index are texts."""
    return table.map(escape).rename(index=escape).to_markdown(disable_numparse=True)


def by_seed(runs, part):
    """Return headline scores, higher is better: a row per seed, a column per student whose scores are all known.

    The part "held-out" has none if the students held out different examples.
    """
    own = students(runs)
    if part == "held-out" and not table_notes.chosen_alike(own):
        own = own[:0]
    scores = own.assign(score=own[part].map(Measure(None, "").of)).astype({"name": str})
    unknown = set(scores["name"][scores["score"].isna()])
    return scores[~scores["name"].isin(unknown)].pivot(index="seed", columns="name", values="score")


def score_column(runs, part, chosen, title):
    """Return cells '25.1 ± 0.8 (3)' of the chosen Measures: mean, spread, number of seeds; leaders are bold."""
    bold, cells = significance.leaders(by_seed(runs, part)), {}
    for name, entries in runs.groupby("name", observed=True)[part]:
        text = " / ".join(summary(entries.map(measure.of), measure.digits) for measure in chosen)
        cells[name] = (f"**{text}**" if name in bold else text) + f" ({len(entries)})"
    return pd.Series(cells, name=title)


def differences(runs, baseline):
    """Return Markdown of best scores minus the baseline's, a column per task, and which are significant; [] if none."""
    found, titles = [], []
    for task, own in runs.groupby("task", observed=True):
        if baseline in set(own["name"]):
            main = headline(own)
            scores = own.assign(score=own["best"].map(main.of)).pivot(index="seed", columns="name", values="score")
            scores = scores.astype(float)[[name for name in scores if name in (*students(own)["name"], baseline)]]
            data = own.assign(data=same_examples(own, "train")).pivot(index="seed", columns="name", values="data")
            known = data.notna() & data[[baseline]].notna().to_numpy()
            scores = scores.mask(known & data.ne(data[baseline], axis=0))  # runs with other examples make no pair
            rows = significance.paired(scores, baseline).drop(index=baseline)
            titles.append(f"{escape(task)} ({escape(main.title)})")
            named = rows.index.astype(str)
            found.append(rows.assign(title=titles[-1], digits=main.digits, name=named, task=str(task)))
    if all(rows.empty for rows in found):
        return []
    table = pd.concat(found, ignore_index=True)
    table["sure"] = significance.holm(table["p"]) < significance.LEVEL
    table["cell"] = [significance.cell(row, row.digits, row.sure) for row in table.itertuples()]
    columns = table.pivot(index="name", columns="title", values="cell").reindex(columns=titles)
    tested = table[table["p"].notna()]
    names = tested["name"] + (" on " + tested["task"] if len(found) > 1 else "")
    sure = dict(zip(names, tested["sure"], strict=True))
    rows = [name for name in runs["name"].cat.categories if name in {*students(runs)["name"]} - {baseline}]
    return [
        f"### Difference to {escape(baseline)} in best score: mean [95 % interval] (pairs of one seed)",
        markdown(rows, [columns[title] for title in titles]),
        wrapped(escape(significance.sentence(sure, baseline))),
    ]


def cost_columns(runs):
    """Return the columns of size, operations, speed-up, time and memory, for runs of one stage on one hardware."""
    methods, columns = runs.groupby("name", observed=True), []
    for title, (places, size, form) in SIZES.items():

        def between(values, size=size, form=form):
            """Return a number, or a range if it varies with the task, whose heads differ."""
            return "-".join(dict.fromkeys(f"{end / size:{form}}" for end in (values.min(), values.max())))

        cells = pd.concat([methods[place].agg(between) for place in places], axis=1)
        columns.append(cells.agg(" / ".join, axis=1).rename(title))
    ratios = methods[["1", "32"]].mean().dropna(how="all")
    ratios = ratios.map(lambda value: "-" if math.isnan(value) else f"{value:.2f}x").astype(object)
    return [*columns, (ratios["1"] + " / " + ratios["32"]).rename("speed-up"), *time_columns(runs)]


def time_columns(runs):
    """Return a column of training time per task and one of peak memory, for runs of one stage on one hardware."""
    (unit, seconds), columns = time_unit(runs), []
    tasks = runs.groupby(runs["task"].map(task_alone), observed=True)  # whatever set they were scored on
    for task, own in tasks:
        title = f"{escape(task)} ({unit})" if len(tasks) > 1 else f"train ({unit})"
        cached = set(own["name"][[bool(options.get("cache_teacher")) for options in own["options"]]])
        times = own.groupby("name", observed=True)["time.train_s"].mean() / seconds
        cells = {name: f"{value:.1f}" + "*" * (name in cached) for name, value in times.items()}
        columns.append(pd.Series(cells, name=title))
    memory = runs.groupby(["task", "name"], observed=True)["max_mem_gb"].mean().groupby("name", observed=True).max()
    memory = memory.dropna()
    return columns + [memory.map("{:.2f}".format).astype(object).rename("GB")] * bool(len(memory))


def costs(runs, title, columns):
    """Return, for each hardware in turn, a heading and a table; columns: function from runs to its columns."""
    parts = [(machine, own, [*own["name"].unique().sort_values()]) for machine, own in runs.groupby("machine")]
    return [
        text
        for machine, own, names in parts
        for text in (f"### {title}: {escape(machine)}", markdown(names, columns(own)))
    ]


def stage_tables(runs, baseline):
    """Return all tables of the runs of one stage, as a list of Markdown texts."""
    notes = [wrapped(escape(line)) for line in (*table_notes.set_lines(runs), *table_notes.unlike_lines(runs))]
    if runs["stage"].iloc[0] == "dynabert":
        texts = subnetworks.tables(runs, baseline, grid_markdown, summary)
        texts = [text if text[0] in "#|" else wrapped(escape(text)) for text in texts]
        return texts[:2] + notes + texts[2:] + costs(runs, "Training time and memory", time_columns)
    names, tasks = [*runs["name"].unique().sort_values()], runs.groupby("task", observed=True)
    held_out = runs["stage"].iloc[0] == "finetune" and any(entry["score"] is not None for entry in runs["held-out"])
    parts = ["best", *["held-out"] * held_out, "last"]
    scores, means = {part: [] for part in parts}, {part: [] for part in parts}
    for task, own in tasks:
        for part in scores:
            main = headline(own)
            chosen = (part != "held-out" and customary(own)) or [main]
            title = f"{escape(task)} ({' / '.join(escape(measure.title) for measure in chosen)})"
            scores[part].append(score_column(own, part, chosen, title))
            means[part].append(own[part].map(main.of).groupby(own["name"], observed=True).mean(skipna=False))
    if len(tasks) > 1 and runs["stage"].iloc[0] == "finetune" and not any(runs["scored on"]):
        for part in scores:
            average = pd.concat(means[part], axis=1).mean(axis=1, skipna=False).dropna()
            tables = [by_seed(own, part) for _, own in tasks]
            bold = significance.leaders((sum(tables) / len(tables)).dropna(axis=1, how="all"))
            cells = {name: f"**{value:.1f}**" if name in bold else f"{value:.1f}" for name, value in average.items()}
            scores[part].append(pd.Series(cells, name="average"))
    if len(tasks) == runs["machine"].nunique() == 1:
        best, *others = (column.rename(part) for part, (column,) in scores.items())
        title = f"{scores['best'][0].name} best"
        texts = [markdown(names, [best.rename(title), *others, *cost_columns(runs)]), *notes]
    else:
        texts = [text for part in scores for text in (f"### {part.capitalize()} score", markdown(names, scores[part]))]
        texts = texts[:2] + notes + texts[2:] + costs(runs, "Cost and training time", cost_columns)
    return texts + differences(runs, baseline)


def bounds(runs):
    """Return lines with the scores that need no model, such as those of a document's first sentences."""
    lines = []
    for task, own in runs.groupby("task", observed=True):
        measures, found = by_task(own), {}
        for name, scores in (pair for row in own["bounds"] for pair in dict(row).items()):
            if measures and all(measure.key in scores for measure in measures):
                found[f"{name} {' / '.join(f'{100 * scores[one.key]:.1f}' for one in measures)}"] = None
        if found:
            titles = " / ".join(one.title for one in measures)
            lines.append(escape(f"Without a model on {task} ({titles}): {', '.join(found)}"))
    return lines


def report_text(runs, left_out, baseline):
    """Return the whole Markdown report: tables, notes on their numbers and hardware, and what is missing."""
    texts = [text for stage, own in runs.groupby("stage") for text in (STAGES[stage], *stage_tables(own, baseline))]
    versions = {f"{name} {version}" for run in runs["versions"] for name, version in run.items() if version}
    unknown = runs["code"].isna().sum()
    code = sorted(runs["code"].dropna().unique()) + [f"unknown for {unknown} of {len(runs)} runs"] * bool(unknown)
    lines = [
        *bounds(runs),
        *map(escape, (*table_notes.mixed_lines(runs), *table_notes.recipe_lines(runs))),
        NOTE,
        *(f"Hardware: {escape(one)}" for one in sorted(runs["machine"].unique())),
        "Versions: " + escape(", ".join(sorted(versions))),
        "Code: " + escape(", ".join(code)),
    ]
    texts += ["## Notes", *map(wrapped, lines)]
    for what, found in left_out.items():
        lines = [f"{what.capitalize()} runs, not in the tables:\n", *(f"- {escape(line)}" for line in found)]
        texts += ["\n".join(lines)] * bool(found)
    return "\n\n".join(texts)


def display_name(text):
    """Return (name, displayed name) of NAME=TEXT on the command line."""
    name, sign, shown = text.partition("=")
    if not (name and sign and shown.strip() and shown.isprintable()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=TEXT, such as ckd=CKD")
    return name, shown.strip()


def build_parser():
    """Return the command line's parser."""
    parser = Parser(prog="report.py", description=__doc__)
    add = group(parser, "paths")
    runs = "folders, searched for run.json at any depth, and files runs.csv of --tables runs"
    add("runs", runs, nargs="+", type=named_folder, metavar="RUNS")
    where = "folder of report.md and plots; without it no report.md, and plots into the first RUNS"
    add("--output_dir", where, type=named_folder, metavar="DIR")
    forms = ("png", "pdf", "svg")
    add("--formats", "of the plots: png, pdf, svg", nargs="+", choices=forms, default=["png"], metavar="FORM")
    add = group(parser, "tables")
    methods = "names of the methods to report, separated by commas; by default all"
    add("--methods", methods, type=lambda text: text.split(","), metavar="A,B")
    add(
        "--tables",
        "also write, beside the plots, report.tex (latex), report.csv (csv: the numbers of the tables) or runs.csv "
        "(runs: a line for each run, which can be given as RUNS)",
        nargs="+",
        choices=("latex", "csv", "runs"),
        default=[],
        metavar="FORM",
    )
    add("--baseline", "method to take paired differences over seeds from", metavar="NAME")
    names = 'what tables and plots call methods, such as kd=KD ckd="CKD (ours)"'
    add("--names", names, nargs="+", type=display_name, default=[], metavar="NAME=TEXT")
    return parser


def write_files(args, runs, text, folder):
    """Write the report, the tables that were asked for and the plots into the folder; return the plots' paths."""
    with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as temporary:  # all is written, then renamed
        temporary = Path(temporary)
        texts = {"report.md": text + "\n"} if args.output_dir else {}
        texts |= {"report.tex": exports.latex(text)} if "latex" in args.tables else {}
        for name, content in texts.items():
            (temporary / name).write_text(content, encoding="utf-8", errors="backslashreplace")
        if "csv" in args.tables:
            exports.numbers(runs).to_csv(temporary / "report.csv", index=False)
        if "runs" in args.tables:
            exports.compact(runs).to_csv(temporary / "runs.csv", index=False)
        paths = plots.write_plots(runs, temporary, args.formats)
        for path in sorted(temporary.iterdir()):
            os.replace(path, folder / path.name)
    return [folder / path.name for path in paths]


def main(argv=None):
    """Print the tables and write them and the plots; return the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    folder = where = args.output_dir or (args.runs[0].parent if args.runs[0].is_file() else args.runs[0])
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without "±" still gets its numbers
    try:
        runs, left_out = read_runs(args.runs)
        if "runs" in args.tables and (folder / "runs.csv").resolve() in {path.resolve() for path in args.runs}:
            raise ReportError(f"{folder / 'runs.csv'} is read: name another --output_dir to write it anew")
        names = dict(args.names)
        runs = displayed(select(runs, args.methods, args.baseline), names)
        for line in left_out["damaged"]:
            print(f"{parser.prog}: left out: {one_line(line)}", file=sys.stderr)
        text, where = report_text(runs, left_out, names.get(args.baseline, args.baseline)), "standard output"
        print(text, flush=True)
        where = folder
        folder.mkdir(parents=True, exist_ok=True)
        paths = write_files(args, runs, text, folder)
        where = "standard output"
        print("\nPlots: " + ", ".join(map(str, paths)), flush=True)
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
