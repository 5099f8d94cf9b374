"""A report for other programs: its tables as LaTeX, its numbers and its runs as csv."""

import contextlib
import html
import json
import re

import pandas as pd

from reporting.records import OUTSIDE_RECIPE, SHAPE, SIZES, TEXTS, at, customary, headline

TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "±": r"$\pm$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: "\\" + sign for sign in "$&%#_"},
}


def tex_cell(cell):
    """Return a cell of a Markdown table, escaped by `report.escape` and perhaps bold, as LaTeX."""
    parts = [html.unescape(re.sub(r"\\(.)", r"\1", part)) for part in re.split(r"(?<!\\)\*\*", cell.strip())]
    parts = ["".join(TEX.get(c, c) for c in part).replace("--", "-{}-") for part in parts]
    return "".join(rf"\textbf{{{part}}}" if i % 2 else part for i, part in enumerate(parts))


# {pattern of a cell: what a caption says about tables with such cells}
EXPLAINED = {
    r"^[^[]*\(\d+\)$": r"Mean over seeds $\pm$ sample standard deviation (number of seeds), fractions $\times$ 100",
    r"textbf": "Bold: the best mean of the students and all that do not differ significantly from it",
    r"^params": "Params: with / without embeddings",
    r"^speed-up": "Speed-up: latency of the teacher / of the student, batch 1 / 32",
    r"^GB$": r"GB: peak memory of a run, $10^9$ bytes",
}


def latex(text):
    """Return the Markdown tables of a report as LaTeX, one for each heading; tables that continue below are joined.

    A caption has the heading, what the numbers are, and the notes below the table. A label has the heading.
    """
    tables, heading, last = [], [], False
    for block in re.split(r"\n\n(?=## Notes\n|Scores: )", text + "\n")[0].split("\n\n"):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines() if line.startswith("|")]
        if block.startswith("#"):
            heading = ([] if block.startswith("## ") else heading[:1]) + [tex_cell(block.lstrip("# "))]
        elif not rows and tables:
            tables[-1][2].append(tex_cell(block.replace("\n", " ")))
        if rows:
            frame = pd.DataFrame([list(map(tex_cell, row)) for row in rows[2:]], columns=map(tex_cell, rows[0]))
            if last and frame.iloc[:, 0].tolist() == tables[-1][1].iloc[:, 0].tolist():
                tables[-1][1] = pd.concat([tables[-1][1], frame.iloc[:, 1:]], axis=1)
            else:
                label = re.sub(r"[^a-z0-9]+", "-", " ".join(part.split(":")[0] for part in heading).lower()).strip("-")
                twins = sum(re.sub(r"\.\d+$", "", other) == f"tab:{label}" for *_, other in tables)
                tables.append([": ".join(heading), frame, [], f"tab:{label}" + f".{twins + 1}" * bool(twins)])
        last = bool(rows)
    return r"% \usepackage{booktabs}" + "\n\n" + "\n".join(tex_table(*table) for table in tables)


def tex_table(heading, frame, notes, label):
    """Return a LaTeX table; frame: its cells as LaTeX. The list of tables has the heading alone."""
    texts = [*frame.columns, *frame.to_numpy().flatten()]
    said = [words for pattern, words in EXPLAINED.items() if any(re.search(pattern, text) for text in texts)]
    caption = " ".join(f"{sentence.removesuffix('.')}." for sentence in (heading, *said, *notes))
    return frame.to_latex(
        index=False,
        escape=False,
        caption=(caption, f"{{{heading}}}"),
        label=label,
        position="htbp",
        column_format="l" + "r" * (frame.shape[1] - 1),
    )


def numbers(runs):
    """Return a row for each stage, task, method and customary metric: means and standard deviations over seeds."""
    rows = []
    for (stage, task, name), own in runs.groupby(["stage", "task", "name"], observed=True):
        task_runs = runs[(runs["stage"] == stage) & (runs["task"] == task)]
        for measure in customary(task_runs) or [headline(task_runs)]:
            whole = "mean_score" if stage == "dynabert" else own["metric"].iloc[0]  # the mean over its sub-networks
            row = {"stage": stage, "task": task, "method": name, "metric": measure.key or whole, "seeds": len(own)}
            for part in ("best", "last"):
                values = own[part].map(measure.of)
                row |= {f"{part}_mean": values.mean(skipna=False), f"{part}_std": values.std(skipna=False)}
            means = {place.rpartition(".")[2]: own[place].mean() for places, _, _ in SIZES.values() for place in places}
            row |= means | {"speedup_batch_1": own["1"].mean(), "speedup_batch_32": own["32"].mean()}
            row |= {"train_s": own["time.train_s"].mean(), "machine": "; ".join(sorted(own["machine"].unique()))}
            rows.append(row | {"scored_on": own["scored on"].iloc[0]})
    return pd.DataFrame(rows)


# The entries of run.json that tables need, the most important first. Those in TEXTS are text, the others JSON. Curves
# and figures stay in the run folder.
COLUMNS = [
    *("stage", "task", "name", "seed", "metric", "best.score", "last.score", "time.train_s", "max_mem_gb"),
    *("best.step", "last.step", "best.metrics", "last.metrics", "headline", "model", "teacher"),
    *("latency.student_ms", "latency.speedup", "hardware", "versions", "git", "asked", "options"),
    *("data", "inputs", "train_examples", "subnetworks", "bounds", "folder"),
]
ALWAYS = ["terms", "hard_weight", "temperature", "stages", "window", "save", "cache_teacher"]  # defaults too
MODELS = ("teacher", "more_teachers", "student")  # options that name models, in folders of one machine
SIZE = [*SHAPE, "parameters", "parameters_without_embeddings", "flops_per_sequence", "seq_length"]


def without_folders(path):
    """Return a path without the folders of one machine: task, method and seed of a run, else its name alone.

    Of a relative path it returns the last three parts, of a list the items' results; other values stay.
    """
    if isinstance(path, list):
        return [without_folders(one) for one in path]
    if not isinstance(path, str):
        return path
    parts = re.split(r"[/\\]", path.rstrip("/\\"))
    alone = _absolute(path) and not re.fullmatch(r"seed\d+", parts[-1])
    return "/".join(parts[-1:] if alone else parts[-3:])


def _absolute(value):
    """Return whether an option's value is the path of a place on one machine."""
    return isinstance(value, str) and bool(re.match(r"[/\\~]|[A-Za-z]:[/\\]", value))


def compact(runs):
    """Return a row for each run with all that the tables need; `records.read_runs` reads it like a run.json."""
    asked = {key for keys in runs["asked"] for key in keys if isinstance(key, str)}
    asked = {*ALWAYS, *asked} - {*OUTSIDE_RECIPE} | {"cache_teacher"}
    rows = []
    for run, folder, keys in zip(runs["record"], runs["folder"], runs["asked"], strict=True):
        # A record without `asked` keeps all options of the recipe.
        kept = {k: v for k, v in run["options"].items() if k in asked or not (keys or k in OUTSIDE_RECIPE)}
        short = {k: without_folders(v) for k, v in kept.items() if k in MODELS or _absolute(v)}
        small = {"options": kept | short, "folder": without_folders(str(folder))}
        for who in ("model", "teacher"):
            if run.get(who):
                small[who] = {key: run[who][key] for key in SIZE if key in run[who]}
        run, row = run | small, {}
        for column in COLUMNS:
            with contextlib.suppress(KeyError, TypeError):  # some records lack an entry, or have null
                value = at(run, column)
                row[column] = value if column in TEXTS else json.dumps(value, ensure_ascii=False)
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS).dropna(axis=1, how="all")
