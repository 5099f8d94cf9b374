"""What a reader of a table must know of its runs beside their numbers, as lines: unlike data and options, recipes."""

import json
import re

from reporting.exports import without_folders
from reporting.records import DISTILLING, SCORED_ON, recipe_text, same_examples, students, task_alone

# Options that differ between methods by their nature, or are said in another place of the report.
SAID = {"task", "terms", "hard_weight", "temperature", "stages", *SCORED_ON}


def set_words(runs):
    """Return {name of an evaluation set: what it is} for tasks that were scored on several, as `records.with_sets` has
    it.
    """
    found = {}
    for name, own in runs[runs["scored on"] != ""].groupby("task", observed=True):
        words = min(own["scored on"], key=lambda text: not text[0].isdigit())  # what knows their number, if any does
        found[name] = words.replace("examples", "other examples") if words in found.values() else words
    return found


def set_lines(runs):
    """Lines that say on which evaluation sets runs of one stage were scored, for tasks that were on several."""
    parts = {}
    for name, words in set_words(runs).items():
        methods = _names(runs["name"][runs["task"] == name].unique())
        parts.setdefault(task_alone(name), []).append(f"{name} is {words} ({methods})")
    return [
        f"Unlike evaluation sets of {task}, between which nothing is compared: {'; '.join(of)}"
        for task, of in parts.items()
    ]


def unlike_lines(runs, named=()):
    """Lines that name the options and training data in which the students of one stage and task differ.

    Left out are options that their recipes name or `named`, and those of distilling where a run has no teacher.
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
                if len(values) == 1:  # seeds that differ are a line of `mixed_lines`
                    groups.setdefault(*values, []).append(name)
            if len(groups) > 1:
                parts.append(f"{key} " + ", ".join(_grouped(groups)))
        if parts:
            lines.append(f"Unlike on {task}: {'; '.join(parts)}")
    return lines


def chosen_alike(runs):
    """Return whether all runs, as far as is known, learned from the same examples and held out the same ones to choose
    by.
    """
    shares = {str(recipe.get("held_out")) for recipe in runs["recipe"]}
    return len(shares) < 2 and all(len({*same_examples(runs, split)} - {None}) < 2 for split in ("train", "held_out"))


def settings(runs):
    """For each run of a task {what: value, in words} of what may have made its scores and its recipe does not name."""
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
    """Return an option's value as it would be typed; typed: that of the run, where value may be without its seed."""
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
    """'value (names)' for each of {value: names}; the largest group is "the others" where it is large."""
    rest = max(groups, key=lambda value: len(groups[value]))
    named = {value: _names(names) for value, names in groups.items()}
    if len(groups[rest]) > 3:
        named[rest] = "the others"
    return [f"{value} ({named[value]})" for value in [*(value for value in groups if value != rest), rest]]


def mixed_lines(runs):
    """Lines that name the options and data in which the seeds of one method differ, whose mean then means little."""
    lines = []
    for (_, task, name), own in runs.groupby(["stage", "task", "name"], observed=True):
        said = f"Mixed: the runs of {name} on {task} differ in"
        for key in sorted(own["recipe"].iloc[0]):
            values = dict.fromkeys(json.dumps(recipe[key], sort_keys=True) for recipe in own["recipe"])
            lines += [f"{said} --{key}: {', '.join(values)}"] * (len(values) > 1)
        lines += [f"{said} their training data"] * (len({*same_examples(own, "train")} - {None}) > 1)
    return lines


def recipe_lines(runs):
    """Lines that name what each distilled method was trained with, as options of the command line."""
    lines, found = [], {}
    for stage, task, name, options in zip(*(runs[key] for key in ("stage", "task", "name", "options")), strict=True):
        if text := recipe_text(options):
            found.setdefault((stage, name), {}).setdefault(text, {})[task] = None
    for (_, name), texts in found.items():
        for text, tasks in texts.items():
            where = f" on {', '.join(tasks)}" if len(texts) > 1 else ""
            lines.append(f"Recipe of {name}{where}: {text}")
    return lines
