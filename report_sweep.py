"""Table of the tries of run_sweep.sh and the best of each method: `python report_sweep.py runs/sweep/cola`.

What judges is the best score on the part of the training set that was held out (--held_out), never the dev set. The
choice goes to recipes.txt in that folder, a line "METHOD OPTION..." for each method: RECIPES of run_glue.sh.
"""

import os
import sys
from pathlib import Path

import pandas as pd

import report
from records import CHOICE, METHODS, ReportError, read_runs, recipe_text


def tries(runs, chosen_by):
    """The table of the tries, a row each: method, number, seeds, recipe, score, judged by metric `chosen_by`.

    runs: as `records.read_runs` gives them, named METHOD-NUMBER. The score is the mean over seeds, NaN where one is not
    finite. Raises ReportError at a run of another name or without that metric, or if the seeds of a try differ in
    more than the seed.
    """
    def held_out(run):
        if chosen_by not in run["best"]["metrics"]:
            raise ReportError(f"{run['folder']} has no {chosen_by}: train it with --held_out 0.1")
        value = run["best"]["metrics"][chosen_by]
        return float("nan") if value is None else 100 * value

    def options(run):
        return f"{recipe_text(run['options'])} --learning_rate {run['options'].get('learning_rate'):g}".strip()

    names = runs["name"].astype(str)
    unknown = runs[~names.str.fullmatch(r"\w+-\d+")]
    if len(unknown):
        raise ReportError(f"{unknown['folder'].iloc[0]} holds {unknown['name'].iloc[0]!r}, not a try of run_sweep.sh "
                          "(METHOD-NUMBER): name the folder of a sweep")  # fmt: skip
    table = runs.assign(method=names.str.rpartition("-")[0], number=names.str.rpartition("-")[2].astype(int),
                        score=runs.apply(held_out, axis=1), recipe=runs.apply(options, axis=1))  # fmt: skip
    mixed = table.groupby("name", observed=True)["recipe"].nunique()
    if (mixed > 1).any():
        raise ReportError(f"the seeds of {mixed.idxmax()} differ in their recipes: sweep into an empty folder")
    table = table.groupby(["method", "number"], as_index=False).agg(
        seeds=("seed", "count"), recipe=("recipe", "first"), score=("score", lambda values: values.mean(skipna=False)),
        spread=("score", "std"))  # fmt: skip
    order = {name: i for i, name in enumerate(METHODS)}
    return table.sort_values(["method", "number"], key=lambda c: c.map(order).fillna(99) if c.name == "method" else c,
                             ignore_index=True)  # fmt: skip


def best(table):
    """{method: row of its best try}, the first of equals; a method without a finite score is left out."""
    rows = table.dropna(subset="score").sort_values("score", ascending=False, kind="stable")
    rows = rows.groupby("method", sort=False).head(1).set_index("method")
    return {method: rows.loc[method] for method in table["method"].unique() if method in rows.index}


def sweep_text(table, chosen, metric):
    """The Markdown table of all tries, the chosen ones bold, and a line if methods differ in what they were given."""
    def row(one):
        mark = "**" if one["method"] in chosen and chosen[one["method"]]["number"] == one["number"] else ""
        spread = f" ± {one['spread']:.1f}" if one["seeds"] > 1 else ""
        cells = [one["method"], str(one["number"]), report.escape(one["recipe"]),
                 f"{mark}{one['score']:.1f}{spread}{mark} ({one['seeds']})"]  # fmt: skip
        return dict(zip(("method", "try", "options", f"held-out {report.escape(metric)}"), cells, strict=True))

    frame = pd.DataFrame([row(one) for one in table.to_dict("records")])
    texts = [frame.to_markdown(index=False, disable_numparse=True, colalign=["left", "right", "left", "right"])]
    counts = table.groupby("method", sort=False).agg(tries=("number", "count"), seeds=("seeds", "sum"))
    if len(counts.drop_duplicates()) > 1:
        given = ", ".join(f"{method} {one['tries']} tries, {one['seeds']} runs" for method, one in counts.iterrows())
        texts.append(f"Unequal: {given}; finish the sweep before its choice is called fair")
    return "\n\n".join(texts)


def main(argv=None):
    """Prints the table and writes recipes.txt; returns the exit status."""
    parser = report.Parser(prog="report_sweep.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="SWEEP", help="folder that run_sweep.sh filled")
    folder = parser.parse_args(argv).folder
    try:
        runs, left_out = read_runs([folder])
        if runs["task"].nunique() > 1:
            raise ReportError(f"{folder} holds runs of {' and '.join(runs['task'].unique())}: name one task's folder")
        table = tries(runs, CHOICE)
        chosen = best(table)
        print(sweep_text(table, chosen, f"{report.headline(runs).title} x 100"))
        for line in [*left_out["damaged"], *left_out["incomplete"]]:
            print(f"{parser.prog}: left out: {report.one_line(line)}", file=sys.stderr)
        lines = [f"{method} {row['recipe']}" for method, row in chosen.items()]
        temporary = folder / ".recipes.txt"
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(temporary, folder / "recipes.txt")
        print(f"\nChosen: {folder / 'recipes.txt'}")
    except ReportError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{folder}: {error.strerror}; make room, or check its permissions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
