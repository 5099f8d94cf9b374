"""Task-specific distillation: GLUE, SQuAD, words, several labels, your own files; without --teacher: fine-tuning.

python distill_finetune.py --task cola --student google-bert/bert-base-multilingual-cased --run_name teacher
python distill_finetune.py --task cola --teacher runs/cola/teacher/seed1 --student_layers 6 --terms ckd
"""

from engine.checks import check_finetune as check_args
from options import begin
from options import finetune_parser as build_parser

if __name__ == "__main__":
    begin(build_parser(), check_args)  # before the imports below, which take seconds

import math
import os
from pathlib import Path
from typing import NamedTuple

import torch

import losses
import metrics
import models
import training
from encoders import label_names, layer_maps, model_outputs
from engine import card, command_line, cost, run_folder, teacher_cache
from methods import recipes, term_weights
from tasks import batching, kinds, overview, readers


class Loaded(NamedTuple):
    """What a run is made from."""

    objective: term_weights.Objective
    kind: kinds.Kind
    splits: dict  # {name: tokenised Dataset}
    student: torch.nn.Module
    teacher: torch.nn.Module | None
    tokenizer: object


def load_everything(args):
    """Return the Loaded data and models that the options name; raises ValueError."""
    skipped = readers.Skipped(args.skip_bad_examples)
    task, splits = kinds.chosen(args).read(args, skipped)
    kind = kinds.chosen(args)(task)
    source = args.student if args.student != args.teacher else None  # in distill_dynabert.py they are the same
    command = (
        f"python distill_finetune.py --task {args.task}{' ...' if args.task == 'custom' else ''} --student "
        f"{source or 'google-bert/bert-base-multilingual-cased'} --run_name teacher"
    )
    student, teacher, tokenizer = models.load_pair(
        args,
        kind.auto,
        labels=label_names.of(task, args.label_map),
        need_head=not kind.headless,
        fine_tune_command=command,
        whole_texts=kind.token_axis is None,
        **kind.head,
    )
    for model in filter(None, (student, teacher)):
        kind.prepare(model, args)
    if args.more_teachers:
        model_outputs.average_logits(teacher, more_teachers(args, kind, teacher, tokenizer, command))
    held_out = hold_out(args, splits)
    if os.environ.get("RANK", "0") == "0":  # only torchrun's first process writes the record
        read = splits | ({"held_out": held_out["validation"]} if held_out else {})
        kind.described = run_folder.describe_data(read, task.labels)
    objective = objective_for(args, student, teacher)
    if held_out:  # the dev set that chooses the best model has a kind of its own
        kind.held_out = kinds.chosen(args)(task)
        kind.held_out.splits, _ = kind.held_out.tokenize(held_out, tokenizer, args)
    if theirs := models.teachers_tokenizer(args, tokenizer):
        kind.theirs = kind.tokenize(splits, theirs, args)[0], theirs
        command_line.say("teacher and student have different vocabularies: each is given its own pieces of the texts")
    splits, said = kind.tokenize(splits, tokenizer, args)
    if args.class_weights:
        kind.class_weights = kinds.balanced(splits["train"]["labels"][:], len(task.labels))
    if skipped.reports:
        command_line.say(f"skipped {len(skipped.reports)} broken examples, the first: {skipped.reports[0]}")
    command_line.say(said)
    if os.environ.get("RANK", "0") == "0":
        tokenised = splits | ({"held_out": kind.held_out.splits["validation"]} if held_out else {})
        print(overview.lines(kind, read, tokenised, tokenizer, args))
    command_line.say(held_out and taught_more(args))
    return Loaded(objective, kind, splits, student, teacher, tokenizer)


def objective_for(args, student, teacher):
    """Return the objective of the options; the models are prepared for its terms.

    Raises ValueError for terms that the models or their aligned layers cannot give, and for inputs too long for them.
    """
    sizes = [model.config.num_hidden_layers for model in (student, teacher) if model]
    objective = term_weights.objective_of(args, layer_maps.layer_maps(args, *sizes) if teacher else ())
    if teacher and sizes[0] > sizes[1]:
        command_line.say(
            f"the student has {sizes[0]} layers and its teacher {sizes[1]}: several layers learn from the same one"
        )
    if teacher:
        losses.check_terms(objective.terms, objective.layer_pairs, student.config, teacher.config)
        model_outputs.add_term_outputs(objective, student, teacher, args.seed)
    for model in filter(None, (student, teacher, *getattr(teacher, "others", ()))):
        if args.max_seq_length > model_outputs.max_tokens(model.config):
            raise ValueError(
                f"--max_seq_length {args.max_seq_length} exceeds the model's "
                f"{model_outputs.max_tokens(model.config)} positions: lower it"
            )
    return objective


def more_teachers(args, kind, teacher, tokenizer, command):
    """Return the models of --more_teachers; command: fine-tunes a teacher.

    Raises ValueError for one whose type or vocabulary is not that of the first teacher.
    """
    found, labels = [], label_names.of(kind.task, args.label_map)
    for name in args.more_teachers:
        own = models.load_config(name, "--more_teachers").model_type
        if own != teacher.config.model_type:
            raise ValueError(
                f"--more_teachers {name!r} is of type {own!r}, --teacher of {teacher.config.model_type!r}: "
                "take teachers of one type"
            )
        if models.load_tokenizer(name, "tokenizer of --more_teachers").get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"--more_teachers {name!r} has another vocabulary than --teacher: take teachers of one")
        found.append(models.load_teacher(name, kind.auto, labels=labels, fine_tune_command=command, **kind.head))
    return found


def hold_out(args, splits):
    """Move the share --held_out of the training examples into a dev set of its own.

    Returns {"train": the rest, "validation": the held-out examples}, or None without --held_out. All seeds and methods
    hold out the same examples. Raises ValueError if either part is empty or the examples have no labels.
    """
    if not args.held_out:
        return None
    train, count = splits["train"], round(args.held_out * len(splits["train"]))
    if not 0 < count < len(train):
        raise ValueError(
            f"--held_out {args.held_out:g} of {len(train)} training examples leaves {count} to choose by "
            f"and {len(train) - count} to train on: take another share"
        )
    if "label" in train.column_names and all(label == -1 for label in train["label"]):
        raise ValueError("--held_out needs labels to choose by, which the training texts lack: leave it out")
    parts = train.train_test_split(test_size=count, seed=0)
    splits["train"] = parts["train"]
    return {"train": parts["train"], "validation": parts["test"]}


def taught_more(args):
    """Return a warning if the teacher was trained on other examples than the student will be, else "".

    The teacher's run.json tells; a teacher without one raises no warning.
    """
    try:
        options = (run_folder.read_record(args.teacher) or {}).get("options", {}) if args.teacher else {}
    except ValueError:
        return ""
    other = {
        name: options[name]
        for name in ("held_out", "max_train_samples")
        if name in options and options[name] != getattr(args, name)
    }
    if not other:
        return ""
    had = ", ".join(f"--{name} {value or 0}" for name, value in other.items())
    return (
        f"--held_out: the teacher was trained with {had} and may have seen the held-out examples, which flatters the "
        "students that copy it: train the teacher with the same options"
    )


THEIRS = "theirs."  # prefix of a batch's inputs for a teacher that has a tokenizer of its own


def taught(teacher, batch, need_hidden):
    """Return the teacher's outputs for a batch, from the cache if the batch holds them, else from a forward pass."""
    out = teacher_cache.outputs(batch)
    batch = {key.removeprefix(THEIRS): value for key, value in batch.items() if key.startswith(THEIRS)} or batch
    if out is None:
        with torch.no_grad():
            out = teacher(**model_outputs.model_inputs(teacher, batch), output_hidden_states=need_hidden)
    return out


def make_loss(objective, kind, teacher, teach=taught, before=lambda student, batch, pairs: pairs):
    """Return the function (student, batch) -> (weighted sum, {term: unweighted value}) that the loop minimises.

    before(student, batch, aligned pairs) is called before each pass of the student and returns the pairs to compare.
    """

    def loss(student, batch):
        """Run both models, or the student beside the cached teacher; return the weighted sum and the terms."""
        now = objective.at(batch.get("progress", 0.0))
        inner = getattr(student, "module", student)
        pairs = before(inner, batch, objective.layer_pairs)
        need_hidden = bool(losses.teacher_layers(now.terms, pairs))
        s_out = student(**model_outputs.model_inputs(inner, batch), output_hidden_states=need_hidden)
        t_out = teach(teacher, batch, need_hidden) if now.terms else None
        if batch["empty"]:  # this process has no example left: its part counts nothing
            batch, s_out, t_out = losses.no_rows(batch), losses.no_rows(s_out), t_out and losses.no_rows(t_out)
        s_layers, t_layers = pairs.sides() if teacher else ((), ())
        mask = batch["attention_mask"]
        view = losses.ModelView(s_out, s_layers, mask, losses.several_processes(), kind)
        t_view = t_out and losses.ModelView(t_out, t_layers, mask, kind=kind)

        def hard_loss():
            """Return the loss on the true labels."""
            return kind.hard_loss(view.logits, kind.labels(batch), view.across_processes)

        total, values = losses.objective(view, t_view, batch, now, hard_loss)
        return total, {name: value.detach() for name, value in values.items()}

    return loss


def make_figures(layer_pairs, splits, teacher, tokenizer, accelerator):
    """Return a function: model -> {name: figure} of both models' relations in one sentence of the dev set."""
    first = next(split for name, split in splits.items() if name.startswith("validation"))[0]
    tokens = tokenizer.convert_ids_to_tokens(first["input_ids"][:24])
    sentence = {k: torch.tensor([first[k][:24]], device=accelerator.device) for k in batching.INPUTS if k in first}

    def figures(model):
        """Draw them in the main process; return {} in the others, and without a teacher."""
        if not (teacher and layer_pairs and accelerator.is_main_process):
            return {}
        with accelerator.autocast():
            return model_outputs.relation_figures(model, teacher, layer_pairs, sentence, tokens)

    return figures


def make_evaluate(args, loaded, accelerator, files, figures):
    """Return a function: model -> (metrics, score, figures) on the dev sets.

    files: a dict that receives the predictions, {file name: text}. figures: what `make_figures` returns.
    """
    kind, tokenizer = loaded.kind, loaded.tokenizer

    def evaluate(model):
        model = accelerator.unwrap_model(model)
        result, predictions = kind.evaluate(model, loaded.splits, tokenizer, args, accelerator)
        files.update(predictions)
        if kind.held_out:
            found, _ = kind.held_out.evaluate(model, kind.held_out.splits, tokenizer, args, accelerator)
            result[training.CHOICE] = metrics.score(found, kind.task.metrics)
        return result, metrics.score(result, kind.task.metrics), figures(model)

    return evaluate


def make_recipe(args, loaded, accelerator, cache=None):
    """Return the loop's Recipe for this task and objective; cache: a TeacherCache in place of the teacher's passes."""
    objective, kind, splits, _, teacher, tokenizer = loaded
    train, rows = batching.Arrays(splits["train"], batching.TRAINING), kind.rows.get("train", 1)
    lengths = train.lengths()
    lengths = [sum(lengths[i : i + rows]) for i in range(0, len(lengths), rows)]
    theirs = batching.Arrays(kind.theirs[0]["train"], batching.INPUTS) if kind.theirs and not cache else None
    files = {}
    figures = make_figures(objective.layer_pairs, splits, None if kind.theirs else teacher, tokenizer, accelerator)
    base = card.base_metadata(args.student or args.teacher) if accelerator.is_main_process else {}

    def collate(indices, epoch):
        indices = [i * rows + row for i in indices for row in range(rows)]
        batch = train.batch(indices, tokenizer.pad_token_id)
        if theirs:
            pieces = theirs.batch(indices, kind.theirs[1].pad_token_id)
            batch |= {THEIRS + name: value for name, value in pieces.items()}
        return batch | cache.batch(indices) if cache else batch

    def save(folder, model, entry):
        """Write model, tokenizer, card and predictions of an evaluation."""
        if "threshold" in entry["metrics"]:  # a text has a label whose probability is above it
            model.config.threshold = entry["metrics"]["threshold"]
        model.save_pretrained(folder, state_dict=model_outputs.saved_state(model))
        tokenizer.save_pretrained(folder)
        kind.save(folder, model, args)
        (folder / "README.md").write_text(model_card(args, kind, entry, base), encoding="utf-8")
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")

    return training.Recipe(
        lengths=lengths,
        plan=lambda size, epoch: batching.grouped_batches(lengths, size, args.seed, epoch),
        collate=collate,
        loss=make_loss(objective, kind, teacher),
        evaluate=make_evaluate(args, loaded, accelerator, files, figures),
        save=save,
        weights=dict.fromkeys(losses.TERMS, 0.0) | objective.weights,
        weights_at=(lambda progress: objective.at(progress).weights) if objective.stages else None,
        scored=lambda progress: kind.headless or objective.head_trained(progress),
    )


def model_card(args, kind, entry, base):
    """Return the README.md of a saved model; base: what `card.base_metadata` found."""
    hub, config = (None, None) if args.data_dir else kind.task.hub
    name = args.dataset_name or kind.task.folder or Path(args.validation_file or args.task).name
    dataset = {
        "dataset_name": name,
        "dataset_type": hub or args.task,
        "dataset_config": config,
        "dataset_split": args.validation_split,
    }
    if args.max_eval_samples:
        dataset["dataset_args"] = {"max_eval_samples": args.max_eval_samples}
    about = f"A model for the task `{args.task}`, of at most {args.max_seq_length} tokens."
    pair = kind.token_axis is None and len(kind.task.columns or getattr(args, "text_columns", ())) == 2
    usage = kind.usage or card.usage(kind.auto, kind.head.get("problem_type"), pair)
    return card.model_card(args, entry, kind.auto, about, dataset, base, kind.task.dev) + usage


def teacher_scores(args, loaded, accelerator):
    """Print and return {metric: score} of the teacher on the dev sets, None without one; called in all processes."""
    kind = loaded.kind
    if not loaded.teacher:
        return None
    try:
        theirs = kind.theirs or (loaded.splits, loaded.tokenizer)
        result, _ = kind.evaluate(loaded.teacher, *theirs, args, accelerator)
    except run_folder.Diverged as error:
        raise ValueError(f"--teacher {args.teacher}: its outputs are not finite; take another one") from error
    told = ", ".join(f"{name} {training.shown(result[name])}" for name in kind.task.metrics)
    command_line.say(f"teacher on the dev set: {told}")
    return result


def open_cache(args, loaded, accelerator):
    """Return the TeacherCache of the training set, in the teacher's own pieces if it has a tokenizer of its own."""
    kind = loaded.kind
    examples = (kind.theirs[0] if kind.theirs else loaded.splits)["train"]
    logits_per_token = kind.token_axis is not None
    return teacher_cache.open_cache(args, loaded.objective, loaded.teacher, examples, accelerator, logits_per_token)


def describe_inputs(args, loaded, accelerator):
    """Return digests of what must not change between the parts of a run; None in all but the main process."""
    if not accelerator.is_main_process:
        return None
    theirs = loaded.kind.theirs
    splits = loaded.splits | ({"teacher_train": theirs[0]["train"]} if theirs else {})
    used = {k if k == "questions" else f"{k}_examples": v for k, v in splits.items() if not k.startswith("test")}
    return run_folder.describe_inputs(args, accelerator, used, {"teacher": loaded.teacher, "student": loaded.student})


def new_record(args, loaded, accelerator, stage, examples, inputs, scores):
    """Return the run.json of a run that has no results yet; examples: to train on; scores: of the teacher."""
    objective, kind, _, student, teacher, _ = loaded
    return run_folder.new_record(
        args,
        accelerator,
        stage,
        args.dataset_name or args.task,
        train_examples=examples,
        metric=kind.task.metrics[0],
        headline=kind.task.metrics,
        inputs=inputs,
        data=kind.described,
        layer_map=objective.layer_pairs,
        **{"bounds": dict(kind.bounds)} if kind.bounds else {},
        model=cost.describe(student, args.max_seq_length),
        teacher=teacher and cost.describe(teacher, args.max_seq_length) | {"path": args.teacher, "scores": scores},
    )


def finish(args, loaded, accelerator, record):
    """Add the latency of both models to the record and write it as complete."""
    # Training has wrapped the student's forward in autocast, but not the teacher's. Compiled models are not timed.
    with accelerator.autocast(), torch.compiler.set_stance("force_eager"):
        record["latency"] = cost.latency_record(loaded.student, loaded.teacher, args.max_seq_length)
    run_folder.complete(args, record)


def train_student(args, loaded, accelerator, cache, inputs, how):
    """Train, complete the record, and print the scores that are kept."""
    if loaded.teacher:  # now that its weights have been described
        model_outputs.cast_linears(loaded.teacher, accelerator)
    recipe = make_recipe(args, loaded, accelerator, cache)
    scores = teacher_scores(args, loaded, accelerator)
    record = new_record(args, loaded, accelerator, "finetune", len(recipe.lengths), inputs, scores)
    record = training.train(args, accelerator, recipe, loaded.student, record, how)
    if not accelerator.is_main_process:
        return
    finish(args, loaded, accelerator, record)
    kept = record[run_folder.kept(args)]
    scores = ", ".join(f"{k} {training.shown(v)}" for k, v in kept["metrics"].items() if "/" not in k)
    print(
        f"{args.output_dir}: {run_folder.kept(args)} {scores} at step {kept['step']}, "
        f"{record['time']['train_s']:.0f} s of training"
    )
    constant = kinds.constant_answer(loaded.kind, loaded.splits, args)
    if constant and (kept["score"] is None or kept["score"] <= constant[1] + 1e-9):
        print(
            f"{args.output_dir}: {constant[0]!r} for every example would score no less ({constant[1]:.4f}): "
            "nothing was learned that the scores show"
        )


def predict(args, loaded, accelerator):
    """Write the predictions of the test set, made by the model that the run kept; for ax by --student, of MNLI."""
    kind = loaded.kind
    folder = args.student if args.task == "ax" else args.output_dir
    remedy = f"python distill_finetune.py --task {'mnli' if args.task == 'ax' else args.task} --student ..."
    # A run's own model has this task's names; a model to predict ax with may have others.
    names = label_names.of(kind.task, args.label_map if args.task == "ax" else None)
    models.check_labels(models.load_config(folder), names, folder, remedy)
    model, missing = models.load_model(folder, kind.auto, labels=names, **kind.head)
    if missing and not kind.headless:
        raise ValueError(f"{folder}: no trained head ({missing[0]} missing): train the model first")
    kind.prepare(model, args)
    kinds.write_predictions(kind, model.to(accelerator.device), loaded.splits, loaded.tokenizer, args, accelerator)


def main(argv=None):
    """Run the script with the given arguments, sys.argv's by default."""
    args = build_parser().parse_args(argv)
    check_args(args)
    if args.check_only:
        return
    command_line.quiet()
    # ax is not trained on: its predictions are always written anew.
    complete = args.task == "ax" or run_folder.inspect_run(args) == "complete"
    if complete and not args.do_predict:
        print(f"{args.output_dir}: complete already, nothing to do")
        return
    if not complete:
        command_line.say(recipes.filled_line(args))
    accelerator = training.make_accelerator(args, unused_parameters=bool(args.stages))  # a head may wait for its stage
    loaded = load_everything(args)
    student, teacher = loaded.student, loaded.teacher
    vars(student.config).pop("dynabert", None)  # this script does not train the sub-networks of DynaBERT
    student.to(accelerator.device)
    if teacher:
        teacher.to(accelerator.device).eval()
    if args.compile:
        model_outputs.compile_models(student, teacher)
    inputs, cache, how, _lock = None, None, "complete", None
    if not complete:
        steps = math.ceil(len(loaded.splits["train"]) / batching.step_size(args, accelerator))
        loaded.objective.check_steps(training.total_steps(args, steps))
        if args.cache_teacher:  # before the folder is opened: it may be refused for its size
            cache = open_cache(args, loaded, accelerator)
        inputs = describe_inputs(args, loaded, accelerator)
    if args.task != "ax":
        how, _lock = run_folder.open_run_everywhere(args, accelerator, inputs)  # ours for as long as the lock lives
    if how != "complete":
        train_student(args, loaded, accelerator, cache, inputs, how)
    elif not args.do_predict:
        command_line.say(f"{args.output_dir}: complete already, nothing to do")
    if args.do_predict:
        predict(args, loaded, accelerator)


if __name__ == "__main__":
    command_line.run_script(main)
