"""Table of the tries of run_sweep.sh and the best of each method: `python -m reporting.sweep runs/fair/sweep/cola`.

The best score on the held-out part of the training set (--held_out) decides, never the dev set. The choice goes to
recipes.txt in that folder, a line "METHOD OPTION..." for each method: RECIPES of run_glue.sh.
"""

import json
import sys

import pandas as pd

import report
from engine.files import write_text
from options import Parser, named_folder, one_line
from reporting import table_notes
from reporting.records import CHOICE, DISTILLING, METHODS, POSITIVE, ReportError, check, read_runs, recipe_text, select


def recipe(run):
    """Return the options by which a try differs from others. Raises ReportError if the record lacks them."""
    try:
        rate = check(run, {"options.learning_rate": POSITIVE})["options.learning_rate"]
    except ReportError as error:
        raise ReportError(f"{run['folder']}: {error}") from error
    words = [recipe_text(run["options"])]
    if not words[0] and not run["name"].startswith("finetune-"):
        raise ReportError(f"{run['folder']}: no terms that it was distilled with: run it again or move it away")
    for name in DISTILLING if words[0] else ():
        if name in run["asked"]:
            value = run["options"].get(name)
            words.append(f"--{name}" if value is True else f"--{name} {'all' if value is None else value}")
    return " ".join([*filter(None, words), f"--learning_rate {rate:g}"])


def tries(runs):
    """Return a row for each try: method, number, seeds, recipe, score x 100 (mean over seeds), its spread.

    runs: from `records.read_runs`, named METHOD-NUMBER. The score is that on the held-out part, NaN if it is not finite
    for a seed. Raises ReportError for a run of another name or without that score, for seeds of a try that differ in
    more than the seed, and for tries that held out or trained on different examples.
    """
    unknown = runs[~runs["name"].astype(str).str.fullmatch(r"\w+-[1-9]\d*")]
    if len(unknown):
        folder, name = unknown[["folder", "name"]].iloc[0]
        raise ReportError(f"{folder} holds {name!r}, not a try of run_sweep.sh (METHOD-NUMBER): name a sweep's folder")
    rows = []
    for run in runs.assign(name=runs["name"].astype(str)).to_dict("records"):
        if CHOICE not in run["best"]["metrics"]:
            raise ReportError(f"{run['folder']} has no {CHOICE}: train it with --held_out 0.1")
        value, (method, _, number) = run["best"]["metrics"][CHOICE], run["name"].rpartition("-")
        rows.append(
            {
                "method": method,
                "number": int(number),
                "seed": run["seed"],
                "recipe": recipe(run),
                "score": float("nan") if value is None else 100 * value,
                "share": run["options"].get("held_out"),
                "all": json.dumps(run["recipe"], sort_keys=True, default=str),
            }
        )
    table = pd.DataFrame(rows)
    if table["share"].nunique(dropna=False) > 1:
        shares = " and ".join(sorted(map(str, table["share"].unique())))
        raise ReportError(f"tries held out different shares, {shares}: sweep into an empty folder")
    if not table_notes.chosen_alike(runs):
        raise ReportError("tries learned from unlike examples or held unlike ones out: sweep into an empty folder")
    groups = table.groupby(["method", "number"])
    mixed = groups["all"].nunique()
    if (mixed > 1).any():
        worst = "-".join(map(str, mixed.idxmax()))
        raise ReportError(f"the seeds of {worst} differ in their options: sweep into an empty folder")
    found = groups.agg(
        recipe=("recipe", "first"),
        score=("score", lambda values: values.mean(skipna=False)),
        spread=("score", "std"),
        seeds=("seed", lambda seeds: tuple(sorted(seeds))),
    )
    order = {name: i for i, name in enumerate(METHODS)}
    return found.reset_index().sort_values(
        ["method", "number"],
        ignore_index=True,
        key=lambda column: column.map(order).fillna(99) if column.name == "method" else column,
    )


def best(table):
    """Return {method: row of its best try}, the first of equals; methods without a finite score are left out."""
    rows = table.dropna(subset="score").sort_values("score", ascending=False, kind="stable")
    rows = rows.groupby("method", sort=False).head(1).set_index("method")
    return {method: rows.loc[method] for method in table["method"].unique() if method in rows.index}


def sweep_text(table, chosen, metric, notes=()):
    """Return Markdown: the table of all tries, chosen ones in bold, notes, and how many tries each method had."""

    def row(one):
        """Return the cells of one try."""
        mark = "**" if one["method"] in chosen and chosen[one["method"]]["number"] == one["number"] else ""
        spread = f" ± {one['spread']:.1f}" if len(one["seeds"]) > 1 else ""
        cells = [
            one["method"],
            str(one["number"]),
            report.escape(one["recipe"]),
            f"{mark}{one['score']:.1f}{spread}{mark} ({len(one['seeds'])})",
        ]
        return dict(zip(("method", "try", "options", f"held-out {report.escape(metric)}"), cells, strict=True))

    frame = pd.DataFrame([row(one) for one in table.to_dict("records")])
    given = {method: (len(own), *own["seeds"]) for method, own in table.groupby("method", sort=False)}
    if len({*given.values()}) == 1 and table["seeds"].nunique() == 1:
        count, seeds = next(iter(given.values()))[:2]
        said = f"Each method: {count} tries of seed {', '.join(map(str, seeds))}"
    else:
        said = "Unequal: " + "; ".join(
            f"{method}: {count} tries of {sum(map(len, seeds))} runs" for method, (count, *seeds) in given.items()
        )
        said += "; finish the sweep before its choice is called fair"
    ties = {method: (table[table["method"] == method]["score"] == row["score"]).sum() for method, row in chosen.items()}
    tied = ", ".join(f"{method} ({count} tries)" for method, count in ties.items() if count > 1)
    if tied:
        said += f". Tied for the best, of whom the first was taken: {tied}; with more steps they may differ"
    table = frame.to_markdown(index=False, disable_numparse=True, colalign=["left", "right", "left", "right"])
    return "\n\n".join([table, *(report.wrapped(report.escape(line)) for line in notes), report.wrapped(said)])


def main(argv=None):
    """Print the table and write recipes.txt; return the exit status."""
    parser = Parser(prog="reporting/sweep.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=named_folder, metavar="SWEEP", help="folder that run_sweep.sh filled")
    folder = parser.parse_args(argv).folder
    try:
        if not folder.is_dir():
            raise ReportError(f"{folder} is not a folder: name the one that run_sweep.sh filled")
        runs, left_out = read_runs([folder])
        if any(runs["scored on"]):
            raise ReportError(f"{folder} holds tries of unlike dev sets: sweep into an empty folder")
        if runs["task"].nunique() > 1:
            raise ReportError(f"{folder} holds runs of {' and '.join(runs['task'].unique())}: name one task's folder")
        runs = select(runs, None, None)
        table = tries(runs)
        chosen = best(table)
        if not chosen:
            raise ReportError(f"{folder}: no try has a finite score on what was held out: lower the learning rates")
        notes = table_notes.unlike_lines(runs, ("learning_rate", *DISTILLING))  # the table shows these
        print(sweep_text(table, chosen, f"{report.headline(runs).title} x 100", notes))
        for line in [*left_out["damaged"], *left_out["incomplete"]]:
            print(f"{parser.prog}: left out: {one_line(line)}", file=sys.stderr)
        lines = [f"{method} {row['recipe']}" for method, row in chosen.items()]
        write_text(folder / "recipes.txt", "\n".join(lines) + "\n")
        print(f"\nChosen: {folder / 'recipes.txt'}")
    except ReportError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{folder}: {error.strerror}; make room, or check its permissions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
