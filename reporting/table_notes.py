"""Lines that a reader of a table needs besides its numbers: different data and options, recipes."""

import json
import re

from reporting.exports import without_folders
from reporting.records import DISTILLING, SCORED_ON, recipe_text, same_examples, students, task_alone

# Options that differ between methods by their nature, or that the report shows elsewhere.
SAID = {"task", "terms", "hard_weight", "temperature", "stages", *SCORED_ON}


def set_words(runs):
    """Return {name of an evaluation set: its description} for tasks that `records.with_sets` split."""
    found = {}
    for name, own in runs[runs["scored on"] != ""].groupby("task", observed=True):
        words = min(own["scored on"], key=lambda text: not text[0].isdigit())  # one with the number of examples, if any
        found[name] = words.replace("examples", "other examples") if words in found.values() else words
    return found


def set_lines(runs):
    """Return lines about the evaluation sets of tasks that were scored on several, for runs of one stage."""
    parts = {}
    for name, words in set_words(runs).items():
        methods = _names(runs["name"][runs["task"] == name].unique())
        parts.setdefault(task_alone(name), []).append(f"{name} is {words} ({methods})")
    return [
        f"Unlike evaluation sets of {task}, between which nothing is compared: {'; '.join(of)}"
        for task, of in parts.items()
    ]


def unlike_lines(runs, named=()):
    """Return lines about options and training data in which the students of one stage and task differ.

    They leave out options that recipes show or that are `named`, and those of distilling if a run has no teacher.
    """
    lines = []
    for task, own in students(runs).groupby(runs["task"].map(task_alone), observed=True):
        found = {}
        for name, values in zip(own["name"].astype(str), settings(own), strict=True):
            for key, value in values.items():
                found.setdefault(key, {}).setdefault(name, set()).add(value)
        parts = []
        for key in sorted({*found} - {f"--{name}" for name in named}):
            groups = {}
            for name, values in found[key].items():
                if len(values) == 1:  # `mixed_lines` names seeds that differ
                    groups.setdefault(*values, []).append(name)
            if len(groups) > 1:
                parts.append(f"{key} " + ", ".join(_grouped(groups)))
        if parts:
            lines.append(f"Unlike on {task}: {'; '.join(parts)}")
    return lines


def chosen_alike(runs):
    """Return whether all runs, as far as known, learned from the same examples and held out the same ones."""
    shares = {str(recipe.get("held_out")) for recipe in runs["recipe"]}
    return len(shares) < 2 and all(len({*same_examples(runs, split)} - {None}) < 2 for split in ("train", "held_out"))


def settings(runs):
    """Return for each run of a task {what: value, in words} of all that may affect its scores, except its recipe."""
    data, counts, found = same_examples(runs, "train"), [one.count for one in runs["train"]], []
    for recipe, options, digest, count in zip(runs["recipe"], runs["options"], data, counts, strict=True):
        keys = {*recipe} - SAID - ({*()} if options.get("teacher") else {"teacher", *DISTILLING})
        values = {f"--{key}": in_words(recipe[key], options.get(key)) for key in keys}
        if digest and None not in data:
            values.pop("--max_train_samples", None)
            twins = {other for other, same in zip(data, counts, strict=True) if same == count}
            mark = f" {next(iter(json.loads(digest).values()))[:6]}" if len(twins) > 1 else ""
            values["training data"] = ("" if count is None else f"{count:g} ") + "examples" + mark
        found.append(values)
    return found


def in_words(value, typed=None):
    """Return an option's value as it would be typed; typed: the run's own value, if `value` may lack its seed."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, list):
        return " ".join(map(in_words, value)) or "none"
    if isinstance(value, str) and isinstance(typed, str) and value != typed:
        return value if value == "default" else re.sub(r"seed\d+", "seed", without_folders(typed))
    return f"{value:g}" if isinstance(value, float) else str(without_folders(value))


def _names(names):
    return ", ".join(map(str, names))


def _grouped(groups):
    """Return 'value (names)' for each of {value: names}; a large largest group is called "the others"."""
    rest = max(groups, key=lambda value: len(groups[value]))
    named = {value: _names(names) for value, names in groups.items()}
    if len(groups[rest]) > 3:
        named[rest] = "the others"
    return [f"{value} ({named[value]})" for value in [*(value for value in groups if value != rest), rest]]


def mixed_lines(runs):
    """Return lines about options and data in which the seeds of one method differ, so that their mean means little."""
    lines = []
    for (_, task, name), own in runs.groupby(["stage", "task", "name"], observed=True):
        said = f"Mixed: the runs of {name} on {task} differ in"
        for key in sorted(own["recipe"].iloc[0]):
            values = dict.fromkeys(json.dumps(recipe[key], sort_keys=True) for recipe in own["recipe"])
            lines += [f"{said} --{key}: {', '.join(values)}"] * (len(values) > 1)
        lines += [f"{said} their training data"] * (len({*same_examples(own, "train")} - {None}) > 1)
    return lines


def recipe_lines(runs):
    """Return lines with what each distilled method was trained with, as options of the command line."""
    lines, found = [], {}
    for stage, task, name, options in zip(*(runs[key] for key in ("stage", "task", "name", "options")), strict=True):
        if text := recipe_text(options):
            found.setdefault((stage, name), {}).setdefault(text, {})[task] = None
    for (_, name), texts in found.items():
        for text, tasks in texts.items():
            where = f" on {', '.join(tasks)}" if len(texts) > 1 else ""
            lines.append(f"Recipe of {name}{where}: {text}")
    return lines
