"""The records of many runs, run.json, as one checked table: a row for each run (pandas)."""

import csv
import functools
import json
import math
import operator
import re
import reprlib
import textwrap
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from options import FREE_OPTIONS, PLACES

METHODS = ["teacher", "finetune", "kd", "pkd", "tinybert", "distilbert", "minilm", "ckd"]  # order of the rows
TASKS = [
    "cola",
    "sst2",
    "mrpc",
    "stsb",
    "qqp",
    "mnli",
    "qnli",
    "rte",
    "wnli",
    "ax",
    "squad",
    "squad_v2",
    "conll2003",
    "wnut17",
    "conll2000",
    "goemotions",
    "scitldr",
    "cnn_dailymail",
]

CHOICE = "held_out/score"  # the metric that chose the best model in place of the dev set's, with --held_out
SHAPE = ["layers", "hidden_size", "heads", "intermediate_size", "vocab_size"]
TEXTS = ("folder", "stage", "task", "name", "metric")  # cells of a runs.csv that are text; the others are JSON

# Options of distilling that `recipe_text` does not name.
DISTILLING = (
    "layer_map",
    "wr_layer_map",
    "ltr_layer_map",
    "no_embeddings",
    "window",
    "distance",
    "pair_criterion",
    "triple_criterion",
)

# Options in which the runs of one method may differ: they say where things are or how it runs, not what is trained.
OUTSIDE_RECIPE = (
    *(name for name in (*FREE_OPTIONS, *PLACES) if name not in ("teacher", "more_teachers", "student")),
    "run_name",
    "seed",
    "cache_teacher",
    "save_steps",
    "per_device_eval_batch_size",
)


OLD = ".old-"  # as run folders have it; what imports it there would import torch


class ReportError(Exception):
    """A mistake of the user or a damaged file; the text is the one line to print."""


# --- what a record holds: kinds of values, each with the words for it, and the tables of what is read ----------------


def is_text(value):
    """printable text"""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def is_number(value):
    """a finite number"""
    return type(value) in (int, float) and abs(value) < 1e30


def is_positive(value):
    """a number above 0"""
    return is_number(value) and value > 1e-30


def is_maybe(value):
    """a number or null, as a run that diverged has it"""
    return value is None or type(value) in (int, float)


def is_stage(value):
    """finetune, pretrain or dynabert"""
    return value in ("finetune", "pretrain", "dynabert")


def is_mapping(value):
    """an object"""
    return isinstance(value, dict)


def is_array(value):
    """a list"""
    return isinstance(value, list)


def is_numbers(value):
    """an object of numbers"""
    return isinstance(value, dict) and all(map(is_maybe, value.values()))


def are_of_batches(value):
    """an object of numbers above 0"""
    return isinstance(value, dict) and all(
        value[key] is None or is_positive(value[key]) for key in {"1", "32"} & {*value}
    )


def is_splits(value):
    """an object of splits with examples and sha256"""
    return isinstance(value, dict) and all(
        (one["examples"] is None or is_number(one["examples"])) and (one["sha256"] is None or is_text(one["sha256"]))
        for one in value.values()
    )


def is_bounds(value):
    """an object of objects of numbers"""
    return isinstance(value, dict) and all(
        isinstance(of, dict) and all(map(is_number, of.values())) for of in value.values()
    )


def is_history(value):
    """a list of evaluations"""
    return isinstance(value, list) and all(
        is_number(one["step"])
        and isinstance(one["metrics"], dict)
        and all(one.get(key) is None or is_number(one[key]) for key in ("score", "loss"))
        for one in value
    )


def is_names(value):
    """a list of names"""
    return isinstance(value, list) and all(map(is_text, value))


COSTS = ("parameters", "parameters_without_embeddings", "flops_per_sequence")
# What is read of a finished run.json: {place: what it must be}. Other entries may stand beside it.
RUN = {
    **dict.fromkeys(("best", "last", "hardware", "time", "versions", "options", "model"), is_mapping),
    "stage": is_stage,
    **dict.fromkeys(("task", "name", "metric", "hardware.device", "hardware.cpu", "hardware.precision"), is_text),
    **dict.fromkeys(
        ("seed", "best.score", *(f"hardware.{k}" for k in ("cpu_count", "gpu_count", "processes"))), is_number
    ),
    **dict.fromkeys(("time.train_s", *(f"model.{name}" for name in (*COSTS, *SHAPE))), is_positive),
    "last.score": is_maybe,
    **dict.fromkeys(("best.metrics", "last.metrics"), is_numbers),
}
OPTIONAL = {
    "teacher": is_mapping,
    "max_mem_gb": is_positive,
    **dict.fromkeys(("hardware.gpu", "git.commit"), is_text),
    **dict.fromkeys(("latency.speedup", "latency.student_ms"), are_of_batches),
    "data": is_splits,
    "inputs": is_mapping,
    "train_examples": is_number,
    "headline": is_names,  # metrics; missing in older records
    "asked": is_array,
    "bounds": is_bounds,  # scores that need no model
    "history": is_history,
}
SUBNETWORK = {
    **dict.fromkeys(("width", "depth", "parameters", "flops_per_sequence"), is_positive),
    "score": is_maybe,
    "latency.student_ms": are_of_batches,
}


def at(record, place):
    """Return the entry of a record at a place, such as best.score; KeyError or TypeError where there is none."""
    return functools.reduce(operator.getitem, place.split("."), record)


def check(record, needed, optional=()):
    """Return the entries of a record, {place: value}, that two tables {place: what it must be} name.

    Raises ReportError that names the first one that is missing or something else, and its value.
    """
    found = {}
    for place, kind in {**needed, **dict(optional)}.items():
        try:
            found[place] = value = at(record, place)
            fits = kind(value) or (value is None and place not in needed)
        except (KeyError, TypeError, AttributeError, IndexError):
            if place not in found:
                if place in needed:
                    raise ReportError(f"{place} is missing") from None
                continue
            fits = False
        if not fits:
            raise ReportError(f"{place} is {reprlib.repr(value)}, not {kind.__doc__}")
    return found


# --- reading --------------------------------------------------------------------------------------------------------


def whole(digits):
    """Return a whole number of a JSON text; infinite where no float can hold it."""
    return int(digits) if len(digits) < 300 else float(digits)


def read_run(path):
    """Return {column: value} of one run.json; ReportError names the first entry that is damaged."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"), parse_int=whole)
        status = run.get("status") if isinstance(run, dict) else None
        if status not in ("running", "complete", "failed"):
            raise ReportError(f"status is {reprlib.repr(status)}, not 'running', 'complete' or 'failed'")
        row = {"folder": path.parent, "status": status}
        return row | (results(run) if status == "complete" else {"error": run.get("error")})
    except ReportError as error:
        reason, remedy = error, "run it again or move this folder away"
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, absurd nesting
        reason, remedy = f"not readable as JSON ({error})", "run it again or move this folder away"
    except OSError as error:
        reason, remedy = error.strerror, "check its permissions"
    raise ReportError(f"{path}: {reason}; {remedy}")


def results(run):
    """Return the columns of a finished run: what RUN and OPTIONAL name, and what is compared between runs."""
    row = check(run, RUN, OPTIONAL)
    if row["stage"] == "pretrain":  # the score is the negative of this metric, which is what is printed
        check(run, {f"best.metrics.{row['metric']}": is_number, f"last.metrics.{row['metric']}": is_maybe})
    if run.get("teacher"):
        check(run, {f"teacher.{name}": is_positive for name in SHAPE})
    for who in ("model", "teacher"):
        row[who] = str([run[who][key] for key in SHAPE]) if row.get(who) else ""
    row |= ratios(row.get("latency.speedup"))
    row["ms"] = ratios(row.get("latency.student_ms"))["1"]
    row["machine"] = machine(run["hardware"])
    row["max_mem_gb"] = row.get("max_mem_gb") or math.nan
    row["held-out"] = {"score": run["best"]["metrics"].get(CHOICE), "metrics": {}}
    row["subnetworks"] = subnetworks(run) if row["stage"] == "dynabert" else []
    commit = row.get("git.commit")
    row["code"] = commit and commit[:10] + " (dirty)" * bool(run["git"].get("dirty"))
    row |= {name: row.get(name) or [] for name in ("headline", "asked", "history", "bounds")}
    row |= {split: examples(run, split) for split in ("train", "validation", "held_out")}
    own = {key: value for key, value in run["options"].items() if key not in OUTSIDE_RECIPE}
    row["recipe"] = {k: re.sub(r"seed\d+", "seed", v) if isinstance(v, str) else v for k, v in own.items()}
    return row | {"record": run}


class Examples(NamedTuple):
    """What a run.json says of the examples of a split: texts that are equal for equal ones, None where it says none."""

    digest: str | None  # of the examples as they were read
    tokens: str | None  # of what the tokenizer made of them: all that a record of an earlier version has
    tokenizer: str  # vocabulary and length; of two of them the tokens cannot be compared
    count: float | None


def examples(run, split):
    """Return the Examples of a run.json's split, "train", "validation" (several dev sets make one) or "held_out"."""
    parts = {name: part for name, part in (run.get("data") or {}).items() if name.startswith(split)}
    digest = {name: part["sha256"] for name, part in parts.items()}
    counts = [part["examples"] for part in parts.values()] or [run.get("train_examples") if split == "train" else None]
    # train_examples or training_text, validation_examples or validation_text; of SQuAD's windows the questions beside
    tokens = {name: value for name, value in (run.get("inputs") or {}).items() if name.startswith(split)}
    return Examples(
        json.dumps(digest) if digest and None not in digest.values() else None,
        json.dumps(tokens) if tokens else None,
        str([run["model"].get(key) for key in ("vocab_size", "seq_length")]),
        None if None in counts else sum(counts),
    )


def ratios(of_batch):
    """Return {"1": number, "32": number} of what was measured by batch size, NaN where it was not."""
    return {batch: (of_batch or {}).get(batch) or math.nan for batch in ("1", "32")}


def subnetworks(run):
    """Return what is reported of the sub-networks in a run.json of stage dynabert: a list of {column: number}."""
    found = []
    if not (isinstance(run.get("subnetworks"), list) and run["subnetworks"]):
        raise ReportError("subnetworks is missing or no list")
    for i, size in enumerate(run["subnetworks"]):
        try:
            check(size, SUBNETWORK, {"latency.speedup": are_of_batches})
        except ReportError as error:
            raise ReportError(f"subnetworks.{i}.{error}") from error
        row = {name: size[name] for name in ("width", "depth", "parameters", "score")}
        row |= ratios(size["latency"].get("speedup"))
        row |= {"flops": size["flops_per_sequence"], "ms": ratios(size["latency"]["student_ms"])["1"]}
        if any((row["width"], row["depth"]) == (other["width"], other["depth"]) for other in found):
            raise ReportError(f"subnetworks holds width {row['width']}, depth {row['depth']} twice")
        found.append(row)
    return found


def recipe_text(options):
    """Return what a student was distilled with as options of the command line, from a run's options; "" without a
    teacher.
    """

    def words(weights):
        return [
            f"{name}={'..'.join(f'{end:g}' for end in (w if isinstance(w, list) else [w]))}"
            for name, w in weights.items()
        ]

    try:
        if options.get("stages"):
            shown = [word for begin, weights in options["stages"] for word in (f"{begin:g}", *words(weights))]
            shown = ["--stages", *shown[1:]]
        elif options.get("terms"):
            shown = ["--terms", *words(options["terms"]), "--hard_weight", f"{options.get('hard_weight', 0):g}"]
        else:
            return ""
        return " ".join([*shown, "--temperature", f"{options.get('temperature', 1):g}"])
    except (TypeError, ValueError, AttributeError):
        return ""  # a damaged record, or another program's


def machine(hardware):
    """Return one line, equal for two runs exactly when their times may be compared."""
    gpus = f"{hardware['gpu_count']} x {hardware.get('gpu') or hardware['device']}, " * (hardware["device"] != "cpu")
    precision = "float32" if hardware["precision"] == "no" else hardware["precision"]
    return f"{gpus}{hardware['cpu']} ({hardware['cpu_count']} cores), {hardware['processes']} process(es), {precision}"


def read_line(cells, where):
    """Return {column: value} of one run of a file that `exports.compact` wrote; ReportError names it by `where`."""
    run, cell = {"status": "complete"}, None
    try:
        for cell, text in cells.items():
            if text and cell:
                place = run
                *outer, key = cell.split(".")
                for name in outer:
                    place = place.setdefault(name, {})
                place[key] = text if cell in TEXTS else json.loads(text, parse_int=whole)
        folder = Path(check(run, {"folder": is_text})["folder"])
        return {"folder": folder, "status": "complete"} | results(run)
    except ReportError as error:
        raise ReportError(f"{where}: {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ReportError(f"{where}, {cell}: {error}") from error


def read_file(path):
    """Yields a function for each run of a csv file, that reads it as `read_run` does; ReportError if it cannot be."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file, strict=True)
            if "stage" not in (lines.fieldnames or ()):
                other = next((mark for mark in ";\t" if f"stage{mark}task" in mark.join(lines.fieldnames or ())), None)
                raise ReportError(
                    f"{path} is separated by {other!r}: save it with commas"
                    if other
                    else f"{path} has no column stage: give a file that report.py --tables runs wrote"
                )
            for number, cells in enumerate(lines, 1):
                yield lambda cells=cells, number=number: read_line(cells, f"{path}, run {number}")
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}; check its permissions") from error
    except (ValueError, csv.Error) as error:
        raise ReportError(f"{path}: not readable as csv ({error}); write it again with --tables runs") from error


def read_runs(places):
    """Finds run.json under folders and reads csv files; returns (table of the finished runs, those left out: lines).

    Runs that --overwrite moved aside are not looked for. The table is in the conventional order of stage, task and
    method. The lines, {"incomplete": [...], "damaged": [...]}, name what is not in it. Raises ReportError if no run is
    left.
    """
    paths = {}
    for place in places:
        if place.is_file() and place.suffix == ".json":
            raise ReportError(f"{place} is a file: give the folder that it lies in, {place.parent}")
        if place.is_file():
            paths[place.resolve()] = read_file(place)
        elif place.is_dir():
            found = [path for path in sorted(place.rglob("run.json")) if OLD not in str(path.relative_to(place))]
            paths |= {path.resolve(): [lambda path=path: read_run(path)] for path in found}
        else:
            raise ReportError(f"{place} is not a folder; give a folder that holds run folders, e.g. runs, or runs.csv")
    where, runs, left_out, advice = ", ".join(map(str, places)), [], {"incomplete": [], "damaged": []}, []
    for read in (read for readers in paths.values() for read in readers):
        try:
            row = read()
            if row["status"] == "complete":
                runs.append(row)
            else:
                left_out["incomplete"].append(unfinished(row))
                advice.append(f"{left_out['incomplete'][-1]}: {REMEDY[row['status']]}")
        except ReportError as error:
            left_out["damaged"].append(str(error))
    if not paths or not (runs or any(left_out.values())):
        raise ReportError(f"no run.json found under {where}; train something first, e.g. bash run_glue.sh demo")
    if not runs:
        counts = ", ".join(f"{len(lines)} {what}" for what, lines in left_out.items() if lines)
        raise ReportError(f"no complete run under {where}; {counts}, the first is {[*left_out['damaged'], *advice][0]}")
    runs = with_sets(with_defaults(with_speedups(with_shapes(pd.DataFrame(runs)))))
    runs = runs.assign(teaches=runs["name"] == "teacher")  # whatever name is displayed
    for column, convention in (("task", TASKS), ("name", METHODS)):
        places = {name: i for i, name in enumerate(convention)}
        names = sorted(set(runs[column]), key=lambda name: (places.get(name.split()[0], len(places)), name))
        runs[column] = pd.Categorical(runs[column], names, ordered=True)
    return runs.sort_values(["stage", "task", "name", "seed"], ignore_index=True), left_out


REMEDY = {
    "running": "give its command again to finish it",
    "failed": "the same command would fail again; what it said is in its run.json",
}


def unfinished(row):
    """Return the words for a run that is not complete, with the reason where its record has one."""
    reason = row["error"].partition(";")[0] if isinstance(row["error"], str) else ""
    return f"{row['folder']} ({row['status']}{': ' * bool(reason)}{textwrap.shorten(reason, 160, placeholder=' ...')})"


def same_examples(runs, split):
    """For each run a text that is the same for the runs with the same examples of a split; None where it is unknown."""
    found = runs[split]
    of_tokens = {one.tokens: one.digest for one in found if one.digest and one.tokens}
    comparable = len({one.tokenizer for one in found if one.tokens}) == 1
    return [one.digest or of_tokens.get(one.tokens) or (one.tokens if comparable else None) for one in found]


# Options that say what a run was scored on: those of masks always, the others where its record has no digest.
SCORED_ON, MASKS = ("max_eval_samples", "validation_split"), ("mlm_probability", "whole_word_mask")


def with_sets(runs):
    """Return the runs; a task that was scored on several evaluation sets is several tasks: "cola set 1" is the largest.

    So nothing is compared between them. The new column "scored on" has a set in words, "" where there is one only.
    """
    runs = runs.assign(**{"scored on": ""})
    for _, own in runs.groupby("task"):
        found = evaluation_sets(own)
        if found.nunique() > 1:
            sizes = own["validation"].map(lambda one: one.count or 0).groupby(found).agg(["max", "size"])
            order = sizes.reset_index().sort_values(["max", "size", "index"], ascending=[False, False, True])["index"]
            names = {one: f" set {i}" for i, one in enumerate(order, 1)}
            runs.loc[own.index, "task"] = own["task"] + found.map(names)
            runs.loc[own.index, "scored on"] = [
                set_in_words(*of) for of in zip(own["validation"], own["recipe"], strict=True)
            ]
    return runs


def evaluation_sets(runs):
    """For each run of a task a text that is the same for the runs that were scored on the same examples and masks.

    A run whose record does not say it counts to the only set of the runs with its options, where there is one.
    """

    def of(keys):
        return [json.dumps([recipe.get(key) for key in keys]) for recipe in runs["recipe"]]

    known, likely = {}, [*zip(of(SCORED_ON), of(MASKS), strict=True)]
    found = [
        digest and digest + masks for digest, (_, masks) in zip(same_examples(runs, "validation"), likely, strict=True)
    ]
    for one, options in zip(found, likely, strict=True):
        if one:
            known.setdefault(options, set()).add(one)
    alone = {options: next(iter(sets)) for options, sets in known.items() if len(sets) == 1}
    return pd.Series(
        [one or alone.get(options, str(options)) for one, options in zip(found, likely, strict=True)], runs.index
    )


def set_in_words(examples, recipe):
    """Return what is known of an evaluation set, its masks included."""
    count = examples.count and f"{examples.count:g} examples"
    keys = [*(() if count else SCORED_ON), *MASKS]
    words = [f"--{key} {recipe[key]}" for key in keys if recipe.get(key) not in (None, 0, False, "default")]
    return ", ".join([count or "examples of unknown number", *words])


def task_alone(task):
    """Return the name of a task without that of an evaluation set that `with_sets` gave it."""
    return re.sub(r" set [0-9]+$", "", task)


def with_shapes(runs):
    """Return the runs; a method that has one seed in students of several shapes is "ckd 3/192": its layers
    and width.
    """
    same = ["stage", "task", "name", "seed"]
    several = runs.groupby(same)["model"].transform("nunique") > 1
    of_method = several.groupby([runs["stage"], runs["name"]]).transform("any")
    shapes = runs["model"].map(lambda model: " {}/{}".format(*json.loads(model)[:2]))
    return runs.assign(name=runs["name"] + shapes.where(of_method, ""))


def with_defaults(runs):
    """Return the runs with the same options in every recipe: one that an older run lacks counts as its default.

    Newer runs have that default where they were not asked for another value.
    """
    keys = {key for recipe in runs["recipe"] for key in recipe if not all(key in other for other in runs["recipe"])}
    filled = [
        recipe | {key: recipe[key] if key in recipe and key in asked else "default" for key in keys}
        for recipe, asked in zip(runs["recipe"], runs["asked"], strict=True)
    ]
    return runs.assign(recipe=pd.Series(filled, index=runs.index, dtype=object))


def with_speedups(runs):
    """The runs with the speed-up of their shape in columns "1" and "32" (batch sizes), NaN where none was measured.

    It is the median of all runs of the same task, shape and hardware that measured it, also for a run without teacher;
    a model of the teacher's own shape is the reference.
    """
    same, ratios = ["stage", "task", "machine", "model"], ["1", "32"]
    runs = runs.astype(dict.fromkeys(ratios, float))
    of_shape = runs.groupby(same)[ratios].transform("median")
    found = runs.groupby([*same, "teacher"])[ratios].transform("median").where(runs["teacher"] != "", of_shape)
    shapes = pd.MultiIndex.from_frame(runs[["stage", "task", "model"]])
    reference = shapes.isin(pd.MultiIndex.from_frame(runs[["stage", "task", "teacher"]]))
    found[found.isna().all(axis=1) & reference] = 1.0
    return runs.assign(**found)


def students(runs):
    """Return the runs without those named teacher, and without those from which others of them learned."""
    taught = {Path(str(options.get("teacher"))).parts[-3:] for options in runs["options"]}
    return runs[~runs["teaches"] & ~runs["folder"].map(lambda folder: folder.parts[-3:] in taught)]


def displayed(runs, names):
    """Return the runs with the names to print: {name of a method: another}. Raises ReportError for what
    cannot be done.
    """
    known = [*runs["name"].cat.categories]
    for name, shown in names.items():
        if name not in known:
            raise ReportError(f"--names {name}={shown}: no complete run of that name; choose from {', '.join(known)}")
    shown = [names.get(name, name) for name in known]
    if twice := [name for name in shown if shown.count(name) > 1]:
        raise ReportError(f"--names would give two methods the name {twice[0]!r}: choose another one")
    return runs.assign(name=runs["name"].cat.rename_categories(shown))


def select(runs, methods, baseline):
    """Return the runs of the wanted methods; refuses unknown names, a seed that occurs twice, a task with
    two metrics.
    """
    for option, names in (("--methods", methods or ()), ("--baseline", [baseline] if baseline is not None else ())):
        found = [*runs["name"].cat.categories]
        for name in names:
            if name not in found:
                raise ReportError(f"{option} {name}: no complete run of that name; choose from {', '.join(found)}")
        runs = runs[runs["name"].isin(methods or found)]
        runs = runs.assign(name=runs["name"].cat.remove_unused_categories())
    for (_, task), own in runs.groupby(["stage", "task"], observed=True):
        for (name, seed), same in own.groupby(["name", "seed"], observed=True):
            if len(same) > 1:
                raise ReportError(
                    f"{' and '.join(map(str, same['folder'][:2]))} both hold task {task}, method {name}, "
                    f"seed {seed}; report them separately"
                )
        unlike = own.drop_duplicates("metric")[:2]
        if len(unlike) > 1:
            raise ReportError(
                f"{' and '.join(map(str, unlike['folder']))} differ in their headline metric "
                f"({', '.join(unlike['metric'])}); report them separately"
            )
    return runs


# --- costs ----------------------------------------------------------------------------------------------------------


SIZES = {  # columns: the entries that a cell holds, the unit they are divided by, their format
    "params (M)": (("model.parameters", "model.parameters_without_embeddings"), 1e6, ".2f"),
    "GFLOPs": (("model.flops_per_sequence",), 1e9, ".3g"),
}


def time_unit(runs):
    """Return (name, seconds in it) of the unit in which the training times of these runs read well."""
    longest = runs["time.train_s"].max()
    return ("s", 1) if longest < 600 else ("min", 60) if longest < 36_000 else ("h", 3600)


# --- scores ---------------------------------------------------------------------------------------------------------


class Measure(NamedTuple):
    """One printed number of a run: an entry of its metrics, or (key None) its headline score."""

    key: str | None
    title: str
    scale: float = 100.0  # fractions are printed times 100
    digits: int = 1

    def of(self, entry):
        """Return the number to print for run["best"] or run["last"]; NaN where it was not finite (null in run.json)."""
        value = entry["score"] if self.key is None else entry["metrics"][self.key]
        return self.scale * value if value is not None and abs(value) < 1e30 else math.nan


TITLES = {
    "matthews_correlation": "Matthews",
    "accuracy": "acc",
    "exact_match": "EM",
    "f1": "F1",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "accuracy_matched": "m",
    "accuracy_mismatched": "mm",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "rouge1": "R-1",
    "rouge2": "R-2",
    "rougeL": "R-L",
    "rougeLsum": "R-Lsum",
}
CUSTOMARY = {
    "mrpc": ("f1", "accuracy"),
    "qqp": ("f1", "accuracy"),
    "stsb": ("pearson", "spearman"),
    "mnli": ("accuracy_matched", "accuracy_mismatched"),
    "squad": ("exact_match", "f1"),
    "squad_v2": ("exact_match", "f1"),
    "goemotions": ("micro_f1", "macro_f1"),
}  # tasks that are given by more than their headline score
PRETRAINING = (
    Measure("perplexity", "perplexity", 1, 2),
    Measure("mlm_loss", "loss", 1, 3),
    Measure("teacher_agreement", "agreement %"),
)


def by_task(runs):
    """Return the Measures by which the runs' task is given, if they are more than one."""
    own = runs["headline"].iloc[0] if "headline" in runs else ()
    keys = CUSTOMARY.get(task_alone(runs["task"].iloc[0])) or (own if len(own) > 1 else ())
    return [Measure(key, TITLES.get(key, key.replace("_", " "))) for key in keys]


def customary(runs):
    """Return the customary Measures of the runs' task that every run has."""
    wanted = PRETRAINING if runs["stage"].iloc[0] == "pretrain" else by_task(runs)
    entries = [entry["metrics"] for entry in [*runs["best"], *runs["last"]]]
    return [measure for measure in wanted if all(measure.key in entry for entry in entries)]


def headline(runs):
    """Return the Measure by which these runs of one task chose their best checkpoint."""
    runs = pd.DataFrame(runs)
    metric, found = runs["metric"].iloc[0], customary(runs)
    if runs["stage"].iloc[0] == "dynabert":  # its runs have each metric of every sub-network, under other names
        found = by_task(runs)
    if runs["stage"].iloc[0] == "pretrain":  # lower is better; the score is its negative
        return next((one for one in found if one.key == metric), Measure(metric, metric.replace("_", " "), 1, 3))
    title = TITLES.get(metric, metric.replace("_", " "))
    return Measure(None, "mean of " + " and ".join(one.title for one in found) if len(found) > 1 else title)
