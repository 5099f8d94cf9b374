"""Scores of saved models on any number of sets, and the share that each keeps of the first model's scores.

python evaluate.py runs/squad/teacher/seed1 runs/squad/ckd/seed1 --sets en=en.json de=de.json --output_dir scores
"""

from options import begin
from options import evaluate_parser as build_parser

if __name__ == "__main__":
    begin(build_parser())  # before the imports below, which take seconds

import argparse
import csv
import io
from collections import Counter
from pathlib import Path

import data
import metrics
import models
import training
from encoders import label_names
from engine import command_line, run_folder
from options import finetune_parser
from tasks import kinds, readers, squad

OF_FIRST = ("data_dir", "validation_file", "hub_dataset", "validation_split")  # where the task's dev set is


def sets_of(words):
    """Return {name: path} of --sets. Raises ValueError for a malformed word, a missing file or a repeated name."""
    found = {}
    for word in words:
        name, equal, path = word.partition("=")
        if not (equal and name.strip() and path) or "/" in name or name in (".", ".."):
            raise ValueError(f"--sets {word!r} must be NAME=PATH, as in english=dev.json; the name becomes a folder's")
        if name in found:
            raise ValueError(f"--sets names {name!r} twice: give each set a name of its own")
        if not Path(path).exists():
            raise ValueError(f"--sets {word!r}: {path} is no file")
        found[name] = path
    return found


def options_for(args, name):
    """Return the options to score a model with: its run's, then the typed ones. Raises ValueError without a task."""
    typed = {key: value for key, value in vars(args).items() if key in DATA}
    record = run_folder.read_record(name)
    theirs = record["options"] if record and record["stage"] != "pretrain" else {}
    theirs = {key: value for key, value in theirs.items() if key in DATA and key != "max_eval_samples"}
    if "task" in typed and typed["task"] != theirs.get("task"):
        theirs = {}
    if "data_dir" in typed:
        theirs |= {"train_file": None, "validation_file": None}
    if not (task := typed.get("task", theirs.get("task"))):
        models.load_config(name)  # says what is wrong with a name that is none
        raise ValueError(f"{name} is not a run on a task of this repository: pass --task")
    if task == "ax":
        raise ValueError("--task ax has no labels to score by: use distill_finetune.py --do_predict")
    options = vars(finetune_parser().parse_args(["--task", task])) | theirs | typed
    size = args.per_device_eval_batch_size
    options |= {"student": name, "teacher": None, "test_file": None, "per_device_eval_batch_size": size}
    found = argparse.Namespace(**options)
    data.check_args(found, training=False)
    kinds.chosen(found)
    return found


DATA = vars(finetune_parser().parse_args(["--task", "custom"])).keys() & {
    action.dest
    for group in finetune_parser()._action_groups
    if group.title == "data"
    for action in group._group_actions
}


def check_head(name, kind):
    """Return the model's configuration. Raises ValueError if its head is for another kind of task."""
    config = models.load_config(name)
    trained, due = (config.architectures or [""])[0], kind.auto.__name__.removeprefix("AutoModel")
    if not kind.headless and not trained.endswith(due):
        raise ValueError(f"{name!r} is a {trained or 'model without a head'}, this task needs one {due}: fine-tune it")
    return config


def dev_files(args):
    """Return {name: file} of the task's dev sets; {"dev": None} if they are on the hub."""
    if args.task == "custom" and not (args.validation_file or args.hub_dataset):
        raise ValueError("nothing to score on: pass --sets NAME=PATH, or --validation_file")
    if args.task == "custom" or args.validation_file or not args.data_dir:
        return {"dev": args.validation_file}
    task, folder = data.TASKS[args.task], Path(args.data_dir)
    if args.task in squad.FILES:
        return {"dev": folder / squad.FILES[args.task][1]}
    if task.files:
        return {"dev": data.task_files(args.task, folder)["validation"]}
    return {f"dev{suffix}": folder / task.folder / f"dev{suffix}.tsv" for suffix in task.dev}


def read(args, path, names, skipped):
    """Return (task, {split: examples}) of one set; names: the model's label names. path None: the dev set."""
    kind = kinds.chosen(args)
    if path is None:
        task, splits = kind.read(args, skipped)
        return task, {name: split for name, split in splits.items() if name.startswith("validation")}
    task, examples = kind.read_set(args, path, names, skipped)
    return task, {"validation": data.drawn(examples, args.max_eval_samples)}


def score_model(args, config, sets, wanted, accelerator):
    """Return {set: (headline metrics, all metrics, {file: text} of predictions if wanted)} of one model."""
    given = dict(word.rpartition("=")[::2] for word in args.label_map or ())
    names = [given.get(name, name) for name in label_names.stored_names(config)]
    skipped, found = readers.Skipped(args.skip_bad_examples), {}
    read_sets = {name: read(args, path, names, skipped) for name, path in sets.items()}
    if skipped.reports:
        command_line.say(f"skipped {len(skipped.reports)} broken examples, the first: {skipped.reports[0]}")
    name, own = args.student, kinds.chosen(args)
    tokenizer = models.load_tokenizer(name)
    models.check_tokenizer(tokenizer, config, repr(name), own.auto)
    for title, (task, splits) in read_sets.items():
        kind = own(task)
        by_name = args.task != "custom" and task.labels and task.kind != "token"
        labels = label_names.of(task, args.label_map if by_name else None) if by_name else ()
        models.check_labels(config, labels, repr(name), "pass a model of this task")
        count = len(task.labels) or 1
        if not kind.headless and task.kind != "qa" and config.num_labels != count:
            raise ValueError(f"{name!r} has a head for {config.num_labels} labels, {title} has {count}: another model")
        model, missing = models.load_model(name, kind.auto, labels=labels, **kind.head)
        if missing and not kind.headless:
            raise ValueError(f"{name!r} has no trained head ({missing[0]} is missing): fine-tune it first")
        kind.prepare(model, args)
        model.to(accelerator.device)
        tokenised, said = kind.tokenize(splits, tokenizer, args)
        command_line.say(said)
        dev = [split for split in tokenised if split.startswith("validation")]
        logits = {split: kinds.predict(kind, model, tokenised[split], tokenizer, args, accelerator) for split in dev}
        result, files = kind.score(logits, tokenised, args)
        if wanted:
            for split in dev:
                table = kind.table(logits[split], {"validation": tokenised[split]}, args)
                files |= {split.removeprefix("validation") + file: text for file, text in table.items()}
        found[title] = task.metrics, result, files if wanted else {}
    return found


def rows_of(scores):
    """Return (header, rows) of the table: scores x 100 of each model, then the shares of the first's that they keep."""
    first = next(iter(scores.values()))
    header = ["model", *(f"{title} ({' / '.join(found[0])})" for title, found in first.items())]
    rows, kept = [], []
    for name, sets in scores.items():
        rows.append([name, *(" / ".join(f"{100 * found[1][m]:.1f}" for m in found[0]) for found in sets.values())])
        shares = []
        for title, (headline, result, _) in sets.items():
            whole, own = metrics.score(first[title][1], headline), metrics.score(result, headline)
            shares.append(f"{100 * own / whole:.1f} %" if whole > 0 else "-")
        kept.append([f"{name}, kept", *shares])
    return header, rows + kept[1:]


def main(argv=None):
    """Run the script with the given arguments, sys.argv's by default."""
    args = build_parser().parse_args(argv)
    command_line.quiet()
    if len(set(args.models)) < len(args.models):
        raise ValueError(f"{Counter(args.models).most_common(1)[0][0]!r} is named twice: name each model once")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise ValueError(f"--output_dir {args.output_dir} is a file: choose another folder")
    if old := sorted(args.output_dir.glob("model[0-9]*")):
        raise ValueError(
            f"--output_dir {args.output_dir} holds predictions of another call ({old[0].name}): choose another"
        )
    sets, options = sets_of(args.sets), {name: options_for(args, name) for name in args.models}
    first = next(iter(options.values()))
    for name, own in options.items():
        if (own.task, data.kind_of(own), own.metrics) != (first.task, data.kind_of(first), first.metrics):
            raise ValueError(f"{name!r} is of another task than {args.models[0]!r}: pass one --task, --kind, --metrics")
        vars(own).update({key: getattr(first, key) for key in OF_FIRST})
    configs = {name: check_head(name, kinds.chosen(own)) for name, own in options.items()}
    sets = sets or dev_files(first)
    accelerator = training.make_accelerator(first)
    scores = {
        name: score_model(own, configs[name], sets, args.predictions, accelerator) for name, own in options.items()
    }
    header, rows = rows_of(scores)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    kinds.write_text(args.output_dir / "evaluation.csv", table.getvalue())
    record = {name: {title: found[1] for title, found in of.items()} for name, of in scores.items()}
    run_folder.write_json(
        args.output_dir / "evaluation.json", {"sets": {k: v and str(v) for k, v in sets.items()}, "scores": record}
    )
    for number, of in enumerate(scores.values(), 1):
        for title, (_, _, files) in of.items():
            for file, text in files.items():
                kinds.write_text(args.output_dir / f"model{number}" / title / file, text)
    for row in (header, ["---", *["---:"] * len(sets)], *rows):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    command_line.run_script(main)
