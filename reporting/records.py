"""The records of many runs (run.json) as one checked pandas table, a row per run."""

import csv
import functools
import json
import math
import operator
import re
import reprlib
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import data
from engine.files import OLD
from options import FREE_OPTIONS, INPUT_FILES

METHODS = ["teacher", "finetune", "kd", "pkd", "tinybert", "distilbert", "minilm", "ckd"]  # order of the rows
TASKS = [name for name in data.TASKS if name != "custom"]  # order of the rows and columns
CHOICE = "held_out/score"  # with --held_out, the metric that chose the best model
SHAPE = ["layers", "hidden_size", "heads", "intermediate_size", "vocab_size"]
TEXTS = ("folder", "stage", "task", "name", "metric")  # columns of runs.csv that hold text; the others hold JSON
# Options of distilling that `recipe_text` does not show.
LAYER_MAPS = ("layer_map", "wr_layer_map", "ltr_layer_map", "no_embeddings")
DISTILLING = (*LAYER_MAPS, "window", "distance", "pair_criterion", "triple_criterion")
# Options that may differ between the runs of one method, because they do not change what is trained.
OUTSIDE_RECIPE = (
    *FREE_OPTIONS,
    *INPUT_FILES,
    *("run_name", "seed", "cache_teacher", "save_steps", "per_device_eval_batch_size"),
)


class ReportError(Exception):
    """A user's mistake or a damaged file; the text is the one line to print."""


# --- what a record must hold ----------------------------------------------------------------------------------------


def is_text(value):
    """Return whether the value is printable text."""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def is_number(value):
    """Return whether the value is a finite number."""
    return type(value) in (int, float) and abs(value) < 1e30


def is_positive(value):
    """Return whether the value is a number above 0."""
    return is_number(value) and value > 1e-30


def is_maybe(value):
    """Return whether the value is a number or null, which stands for one that is not finite."""
    return value is None or type(value) in (int, float)


def is_evaluation(entry):
    """Return whether the value is an entry of a run's history."""
    numbers = all(entry.get(key) is None or is_number(entry[key]) for key in ("score", "loss"))
    return numbers and is_number(entry["step"]) and isinstance(entry["metrics"], dict)


class Kind(NamedTuple):
    """What an entry must be: in words, and as a check, which may also raise TypeError, KeyError or AttributeError."""

    words: str
    fits: Callable


TEXT, NUMBER = Kind("printable text", is_text), Kind("a finite number", is_number)
POSITIVE = Kind("a number above 0", is_positive)
MAYBE = Kind("a number or null (not finite)", is_maybe)
STAGE = Kind("finetune, pretrain or dynabert", lambda value: value in ("finetune", "pretrain", "dynabert"))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
ARRAY = Kind("a list", lambda value: isinstance(value, list))
NAMES = Kind("a list of names", lambda value: isinstance(value, list) and all(map(is_text, value)))
NUMBERS = Kind("an object of numbers", lambda value: all(map(is_maybe, value.values())))
BY_BATCH = Kind(
    "an object of numbers above 0",
    lambda value: all(number is None or is_positive(number) for number in (value.get("1"), value.get("32"))),
)
SPLITS = Kind(
    "an object of splits with examples and sha256",
    lambda value: all(
        (one["examples"] is None or is_number(one["examples"])) and (one["sha256"] is None or is_text(one["sha256"]))
        for one in value.values()
    ),
)
BOUNDS = Kind(
    "an object of objects of numbers",
    lambda value: all(is_number(score) for scores in value.values() for score in scores.values()),
)
HISTORY = Kind("a list of evaluations", lambda value: isinstance(value, list) and all(map(is_evaluation, value)))

COSTS = ("parameters", "parameters_without_embeddings", "flops_per_sequence")
# What is read of a finished run.json: {place: its Kind}. A record may hold other entries too.
RUN = {
    **dict.fromkeys(("best", "last", "hardware", "time", "versions", "options", "model"), OBJECT),
    "stage": STAGE,
    **dict.fromkeys(("task", "name", "metric", "hardware.device", "hardware.cpu", "hardware.precision"), TEXT),
    **dict.fromkeys(("seed", "best.score"), NUMBER),
    **dict.fromkeys(("hardware.cpu_count", "hardware.gpu_count", "hardware.processes"), NUMBER),
    **dict.fromkeys(("time.train_s", *(f"model.{name}" for name in (*COSTS, *SHAPE))), POSITIVE),
    "last.score": MAYBE,
    **dict.fromkeys(("best.metrics", "last.metrics"), NUMBERS),
}
OPTIONAL = {
    "teacher": OBJECT,
    "max_mem_gb": POSITIVE,
    **dict.fromkeys(("hardware.gpu", "git.commit"), TEXT),
    **dict.fromkeys(("latency.speedup", "latency.student_ms"), BY_BATCH),
    "data": SPLITS,
    "inputs": OBJECT,
    "train_examples": NUMBER,
    "headline": NAMES,  # metrics; missing in older records
    "asked": ARRAY,
    "bounds": BOUNDS,  # scores that need no model
    "history": HISTORY,
}
SUBNETWORK = {
    **dict.fromkeys(("width", "depth", "parameters", "flops_per_sequence"), POSITIVE),
    "score": MAYBE,
    "latency.student_ms": BY_BATCH,
}


def at(record, place):
    """Return the entry of a record at a place such as best.score. Raises KeyError or TypeError if it is missing."""
    return functools.reduce(operator.getitem, place.split("."), record)


def check(record, needed, optional=()):
    """Return {place: value} of the entries that two tables {place: Kind} name.

    Raises ReportError for the first entry that is missing or of another kind.
    """
    found = {}
    for place, kind in {**needed, **dict(optional)}.items():
        try:
            found[place] = value = at(record, place)
            fits = (value is None and place not in needed) or kind.fits(value)
        except (KeyError, TypeError, AttributeError, IndexError):
            if place not in found:
                if place in needed:
                    raise ReportError(f"{place} is missing") from None
                continue
            fits = False
        if not fits:
            raise ReportError(f"{place} is {reprlib.repr(value)}, not {kind.words}")
    return found


# --- reading --------------------------------------------------------------------------------------------------------


def whole(digits):
    """Convert the digits of a JSON text to an int, or to infinity where no float can hold the number."""
    return int(digits) if len(digits) < 300 else float(digits)


def read_run(path):
    """Return {column: value} of one run.json. Raises ReportError for the first damaged entry."""
    remedy = "run it again or move this folder away"
    try:
        run = json.loads(path.read_text(encoding="utf-8"), parse_int=whole)
        status = run.get("status") if isinstance(run, dict) else None
        if status not in ("running", "complete", "failed"):
            raise ReportError(f"status is {reprlib.repr(status)}, not 'running', 'complete' or 'failed'")
        row = {"folder": path.parent, "status": status}
        return row | (results(run) if status == "complete" else {"error": run.get("error")})
    except ReportError as error:
        reason = error
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, absurd nesting
        reason = f"not readable as JSON ({error})"
    except OSError as error:
        reason, remedy = error.strerror, "check its permissions"
    raise ReportError(f"{path}: {reason}; {remedy}")


def results(run):
    """Return the columns of a finished run: the entries of RUN and OPTIONAL, and what is compared between runs."""
    row = check(run, RUN, OPTIONAL)
    if row["stage"] == "pretrain":  # the score is the negative of this metric, and the metric is printed
        check(run, {f"best.metrics.{row['metric']}": NUMBER, f"last.metrics.{row['metric']}": MAYBE})
    if run.get("teacher"):
        check(run, {f"teacher.{name}": POSITIVE for name in SHAPE})
    for who in ("model", "teacher"):
        row[who] = str([run[who][key] for key in SHAPE]) if row.get(who) else ""
    row |= by_batch(row.get("latency.speedup"))
    row["ms"] = by_batch(row.get("latency.student_ms"))["1"]
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
    """What a run.json says about the examples of a split; equal texts mean equal examples, None means unknown."""

    digest: str | None  # of the examples as they were read
    tokens: str | None  # of the tokenised examples: all that older records have
    tokenizer: str  # vocabulary and length; tokens of two tokenizers cannot be compared
    count: float | None


def examples(run, split):
    """Return the Examples of a split: "train", "validation" (all dev sets together) or "held_out"."""
    parts = {name: part for name, part in (run.get("data") or {}).items() if name.startswith(split)}
    digest = {name: part["sha256"] for name, part in parts.items()}
    counts = [part["examples"] for part in parts.values()] or [run.get("train_examples") if split == "train" else None]
    # train_examples or training_text, validation_examples or validation_text
    tokens = {name: value for name, value in (run.get("inputs") or {}).items() if name.startswith(split)}
    return Examples(
        json.dumps(digest) if digest and None not in digest.values() else None,
        json.dumps(tokens) if tokens else None,
        str([run["model"].get(key) for key in ("vocab_size", "seq_length")]),
        None if None in counts else sum(counts),
    )


def by_batch(measured):
    """Return {"1": number, "32": number} of what was measured at these batch sizes, NaN if it was not."""
    return {batch: (measured or {}).get(batch) or math.nan for batch in ("1", "32")}


def subnetworks(run):
    """Return what is reported about the sub-networks of a DynaBERT run: a list of {column: number}."""
    found = []
    if not (isinstance(run.get("subnetworks"), list) and run["subnetworks"]):
        raise ReportError("subnetworks is missing or no list")
    for i, size in enumerate(run["subnetworks"]):
        try:
            check(size, SUBNETWORK, {"latency.speedup": BY_BATCH})
        except ReportError as error:
            raise ReportError(f"subnetworks.{i}.{error}") from error
        row = {name: size[name] for name in ("width", "depth", "parameters", "score")}
        row |= by_batch(size["latency"].get("speedup"))
        row |= {"flops": size["flops_per_sequence"], "ms": by_batch(size["latency"]["student_ms"])["1"]}
        if any((row["width"], row["depth"]) == (other["width"], other["depth"]) for other in found):
            raise ReportError(f"subnetworks holds width {row['width']}, depth {row['depth']} twice")
        found.append(row)
    return found


def recipe_text(options):
    """Return the terms, weights and temperature of a run's options as typed; "" without a teacher."""

    def words(weights):
        ends = {name: w if isinstance(w, list) else [w] for name, w in weights.items()}
        return [f"{name}={'..'.join(f'{end:g}' for end in w)}" for name, w in ends.items()]

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
    """Return a line that is equal for two runs exactly when their times may be compared."""
    gpus = f"{hardware['gpu_count']} x {hardware.get('gpu') or hardware['device']}, " * (hardware["device"] != "cpu")
    precision = "float32" if hardware["precision"] == "no" else hardware["precision"]
    return f"{gpus}{hardware['cpu']} ({hardware['cpu_count']} cores), {hardware['processes']} process(es), {precision}"


def read_line(cells, where):
    """Return {column: value} of one run in a file of `exports.compact`; `where` names the run in a ReportError."""
    run, cell = {"status": "complete"}, None
    try:
        for cell, text in cells.items():
            if text and cell:
                place = run
                *outer, key = cell.split(".")
                for name in outer:
                    place = place.setdefault(name, {})
                place[key] = text if cell in TEXTS else json.loads(text, parse_int=whole)
        folder = Path(check(run, {"folder": TEXT})["folder"])
        return {"folder": folder, "status": "complete"} | results(run)
    except ReportError as error:
        raise ReportError(f"{where}: {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ReportError(f"{where}, {cell}: {error}") from error


def read_file(path):
    """Yield, for each run of a csv file, a function that reads it as `read_run` does. Raises ReportError."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file, strict=True)
            names = lines.fieldnames or ()
            if "stage" not in names:
                other = next((mark for mark in ";\t" if f"stage{mark}task" in mark.join(names)), None)
                raise ReportError(
                    f"{path} is separated by {other!r}: save it with commas"
                    if other
                    else f"{path} has no column stage: give a file that report.py --tables runs wrote"
                )
            for number, cells in enumerate(lines, 1):
                yield functools.partial(read_line, cells, f"{path}, run {number}")
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}; check its permissions") from error
    except (ValueError, csv.Error) as error:
        raise ReportError(f"{path}: not readable as csv ({error}); write it again with --tables runs") from error


def find_runs(places):
    """Return {path: functions that read its runs} of csv files and of every run.json in folders.

    Runs that --overwrite moved aside are skipped. Raises ReportError for a place that is neither file nor folder.
    """
    readers = {}
    for place in places:
        if place.is_file() and place.suffix == ".json":
            raise ReportError(f"{place} is a file: give the folder that it lies in, {place.parent}")
        if place.is_file():
            readers[place.resolve()] = read_file(place)
        elif place.is_dir():
            found = [path for path in sorted(place.rglob("run.json")) if OLD not in str(path.relative_to(place))]
            readers |= {path.resolve(): [functools.partial(read_run, path)] for path in found}
        else:
            raise ReportError(f"{place} is not a folder; give a folder that holds run folders, e.g. runs, or runs.csv")
    return readers


def read_runs(places):
    """Read the runs in folders and csv files; return (table of the finished runs, lines about the others).

    The table is sorted by stage, task and method in their usual order. The lines are {"incomplete": [...], "damaged":
    [...]}. Raises ReportError if no run is left.
    """
    runs, left_out, advice = [], {"incomplete": [], "damaged": []}, []
    for read in (read for readers in find_runs(places).values() for read in readers):
        try:
            row = read()
            if row["status"] == "complete":
                runs.append(row)
            else:
                left_out["incomplete"].append(unfinished(row))
                advice.append(f"{left_out['incomplete'][-1]}: {REMEDY[row['status']]}")
        except ReportError as error:
            left_out["damaged"].append(str(error))
    where = ", ".join(map(str, places))
    if not runs and not any(left_out.values()):
        raise ReportError(f"no run.json found under {where}; train something first, e.g. bash run_glue.sh demo")
    if not runs:
        counts = ", ".join(f"{len(lines)} {what}" for what, lines in left_out.items() if lines)
        raise ReportError(f"no complete run under {where}; {counts}, the first is {[*left_out['damaged'], *advice][0]}")
    runs = with_sets(with_defaults(with_speedups(with_shapes(pd.DataFrame(runs)))))
    runs = runs.assign(teaches=runs["name"] == "teacher")  # whatever name is displayed
    for column, convention in (("task", TASKS), ("name", METHODS)):
        ranks = {name: i for i, name in enumerate(convention)}
        names = sorted(set(runs[column]), key=lambda name: (ranks.get(name.split()[0], len(ranks)), name))
        runs[column] = pd.Categorical(runs[column], names, ordered=True)
    return runs.sort_values(["stage", "task", "name", "seed"], ignore_index=True), left_out


REMEDY = {
    "running": "give its command again to finish it",
    "failed": "the same command would fail again; what it said is in its run.json",
}


def unfinished(row):
    """Return the line about a run that is not complete, with the reason if its record has one."""
    reason = row["error"].partition(";")[0] if isinstance(row["error"], str) else ""
    return f"{row['folder']} ({row['status']}{': ' * bool(reason)}{textwrap.shorten(reason, 160, placeholder=' ...')})"


# --- which runs can be compared -------------------------------------------------------------------------------------


def same_examples(runs, split):
    """Return for each run a text that is equal for runs with the same examples of a split, None if unknown."""
    found = runs[split]
    of_tokens = {one.tokens: one.digest for one in found if one.digest and one.tokens}
    comparable = len({one.tokenizer for one in found if one.tokens}) == 1
    return [one.digest or of_tokens.get(one.tokens) or (one.tokens if comparable else None) for one in found]


# Options that determine what a run was scored on: the masks always, the others if its record has no digest.
SCORED_ON, MASKS = ("max_eval_samples", "validation_split"), ("mlm_probability", "whole_word_mask")


def with_sets(runs):
    """Return the runs, with a task split into "cola set 1", "cola set 2", ... if it was scored on several sets.

    So nothing is compared between sets. Set 1 is the largest. The new column "scored on" describes the set in words,
    "" if there is only one.
    """
    runs = runs.assign(**{"scored on": ""})
    for _, own in runs.groupby("task"):
        found = evaluation_sets(own)
        if found.nunique() > 1:
            sizes = own["validation"].map(lambda one: one.count or 0).groupby(found).agg(["max", "size"])
            order = sizes.reset_index().sort_values(["max", "size", "index"], ascending=[False, False, True])["index"]
            names = {one: f" set {i}" for i, one in enumerate(order, 1)}
            runs.loc[own.index, "task"] = own["task"] + found.map(names)
            words = [set_in_words(*of) for of in zip(own["validation"], own["recipe"], strict=True)]
            runs.loc[own.index, "scored on"] = words
    return runs


def evaluation_sets(runs):
    """Return for each run of a task a text that is equal for runs scored on the same examples and masks.

    A run with an unknown set counts to the set of the runs with its options, if these have only one.
    """

    def of(keys):
        return [json.dumps([recipe.get(key) for key in keys]) for recipe in runs["recipe"]]

    masks, options = of(MASKS), [*zip(of(SCORED_ON), of(MASKS), strict=True)]
    digests = same_examples(runs, "validation")
    found = [digest and digest + mask for digest, mask in zip(digests, masks, strict=True)]
    known = {}
    for one, own in zip(found, options, strict=True):
        if one:
            known.setdefault(own, set()).add(one)
    alone = {own: next(iter(sets)) for own, sets in known.items() if len(sets) == 1}
    return pd.Series([one or alone.get(own, str(own)) for one, own in zip(found, options, strict=True)], runs.index)


def set_in_words(examples, recipe):
    """Return what is known about an evaluation set, with its masks."""
    count = examples.count and f"{examples.count:g} examples"
    keys = [*(() if count else SCORED_ON), *MASKS]
    words = [f"--{key} {recipe[key]}" for key in keys if recipe.get(key) not in (None, 0, False, "default")]
    return ", ".join([count or "examples of unknown number", *words])


def task_alone(task):
    """Return the name of a task without the " set 1" that `with_sets` added."""
    return re.sub(r" set [0-9]+$", "", task)


def with_shapes(runs):
    """Return the runs; a method with students of several shapes for one seed is split by layers/width: "ckd 3/192"."""
    several = runs.groupby(["stage", "task", "name", "seed"])["model"].transform("nunique") > 1
    of_method = several.groupby([runs["stage"], runs["name"]]).transform("any")
    shapes = runs["model"].map(lambda model: " {}/{}".format(*json.loads(model)[:2]))
    return runs.assign(name=runs["name"] + shapes.where(of_method, ""))


def with_defaults(runs):
    """Return the runs with the same options in every recipe: options that older runs lack count as "default".

    Newer runs have that value too, unless they were asked for another one.
    """
    keys = {key for recipe in runs["recipe"] for key in recipe if not all(key in other for other in runs["recipe"])}
    filled = [
        recipe | {key: recipe[key] if key in recipe and key in asked else "default" for key in keys}
        for recipe, asked in zip(runs["recipe"], runs["asked"], strict=True)
    ]
    return runs.assign(recipe=pd.Series(filled, index=runs.index, dtype=object))


def with_speedups(runs):
    """Return the runs with the speed-up of their shape in columns "1" and "32" (batch sizes), NaN if not measured.

    It is the median over all runs of the same task, shape and hardware, also for a run without teacher. A model with
    the teacher's own shape is the reference: 1.
    """
    same, batches = ["stage", "task", "machine", "model"], ["1", "32"]
    runs = runs.astype(dict.fromkeys(batches, float))
    of_shape = runs.groupby(same)[batches].transform("median")
    found = runs.groupby([*same, "teacher"])[batches].transform("median").where(runs["teacher"] != "", of_shape)
    shapes = pd.MultiIndex.from_frame(runs[["stage", "task", "model"]])
    reference = shapes.isin(pd.MultiIndex.from_frame(runs[["stage", "task", "teacher"]]))
    found[found.isna().all(axis=1) & reference] = 1.0
    return runs.assign(**found)


def students(runs):
    """Return the runs except those named teacher and those that were the teacher of another run."""
    taught = {Path(str(options.get("teacher"))).parts[-3:] for options in runs["options"]}
    return runs[~runs["teaches"] & ~runs["folder"].map(lambda folder: folder.parts[-3:] in taught)]


# --- choosing and naming --------------------------------------------------------------------------------------------


def known_method(runs, option, name):
    """Raise ReportError unless there are runs of the method that an option names."""
    known = [*runs["name"].cat.categories]
    if name not in known:
        raise ReportError(f"{option}: no complete run of that name; choose from {', '.join(known)}")


def displayed(runs, names):
    """Return the runs with methods renamed by {name: displayed name}. Raises ReportError."""
    for name, shown in names.items():
        known_method(runs, f"--names {name}={shown}", name)
    shown = [names.get(name, name) for name in runs["name"].cat.categories]
    if twice := [name for name in shown if shown.count(name) > 1]:
        raise ReportError(f"--names would give two methods the name {twice[0]!r}: choose another one")
    return runs.assign(name=runs["name"].cat.rename_categories(shown))


def select(runs, methods, baseline):
    """Return the runs of the wanted methods, all if None.

    Raises ReportError for an unknown name, a seed that occurs twice, or a task with two headline metrics.
    """
    for name in methods or ():
        known_method(runs, f"--methods {name}", name)
    runs = runs[runs["name"].isin(methods)] if methods else runs
    runs = runs.assign(name=runs["name"].cat.remove_unused_categories())
    if baseline is not None:
        known_method(runs, f"--baseline {baseline}", baseline)
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


SIZES = {  # column: (entries that a cell shows, their unit, their format)
    "params (M)": (("model.parameters", "model.parameters_without_embeddings"), 1e6, ".2f"),
    "GFLOPs": (("model.flops_per_sequence",), 1e9, ".3g"),
}


def time_unit(runs):
    """Return (name, seconds) of a readable unit for the training times of these runs."""
    longest = runs["time.train_s"].max()
    return ("s", 1) if longest < 600 else ("min", 60) if longest < 36_000 else ("h", 3600)


# --- scores ---------------------------------------------------------------------------------------------------------


class Measure(NamedTuple):
    """One printed number of a run: a metric, or (key None) the headline score."""

    key: str | None
    title: str
    scale: float = 100.0  # fractions are printed times 100
    digits: int = 1

    def of(self, entry):
        """Return the number of run["best"] or run["last"]; NaN if it was not finite (null in run.json)."""
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
# Metrics of the tasks that are reported with more than their headline score.
CUSTOMARY = {name: task.metrics for name, task in data.TASKS.items() if len(task.metrics) > 1}
CUSTOMARY |= dict.fromkeys(("squad", "squad_v2"), ("exact_match", "f1"))
PRETRAINING = (
    Measure("perplexity", "perplexity", 1, 2),
    Measure("mlm_loss", "loss", 1, 3),
    Measure("teacher_agreement", "agreement %"),
)


def title_of(metric):
    """Return a metric's title in tables."""
    return TITLES.get(metric, metric.replace("_", " "))


def by_task(runs):
    """Return the Measures with which the runs' task is reported, [] if its score alone is."""
    own = runs["headline"].iloc[0] if "headline" in runs else ()
    keys = CUSTOMARY.get(task_alone(runs["task"].iloc[0])) or (own if len(own) > 1 else ())
    return [Measure(key, title_of(key)) for key in keys]


def customary(runs):
    """Return the Measures of the runs' task that every run has."""
    wanted = PRETRAINING if runs["stage"].iloc[0] == "pretrain" else by_task(runs)
    entries = [entry["metrics"] for entry in [*runs["best"], *runs["last"]]]
    return [measure for measure in wanted if all(measure.key in entry for entry in entries)]


def headline(runs):
    """Return the Measure by which these runs of one task chose their best checkpoint."""
    metric, stage = runs["metric"].iloc[0], runs["stage"].iloc[0]
    found = by_task(runs) if stage == "dynabert" else customary(runs)  # DynaBERT's metrics are named by sub-network
    if stage == "pretrain":  # lower is better; the score is its negative
        return next((one for one in found if one.key == metric), Measure(metric, metric.replace("_", " "), 1, 3))
    return Measure(None, "mean of " + " and ".join(one.title for one in found) if len(found) > 1 else title_of(metric))
