"""DynaBERT with CKD: one student that runs at several widths and depths, distilled from a task's teacher.

    python distill_dynabert.py --task cola --teacher runs/cola/teacher/seed1
    python distill_dynabert.py --task cola --teacher runs/cola/ckd-width/seed1 --depth_mults 1.0 0.75 0.5
    python distill_dynabert.py --export runs/cola/ckd-depth/seed1 --width 0.5 --depth 0.75 --output_dir small

Stage 1 (widths) starts from the rewired teacher. Stage 2 (--depth_mults) starts from the network of stage 1, which is
also its teacher. Stage 3 (--student without --teacher) trains the sub-networks of stage 2 on the labels. Source:
arXiv:2004.04037.
"""

from engine.checks import check_dynabert as check_args
from options import begin
from options import dynabert_parser as build_parser

if __name__ == "__main__":
    begin(build_parser(), check_args)  # before the imports below, which take seconds

import dataclasses
import math
from pathlib import Path

import torch

import distill_finetune
import losses
import metrics
import models
import training
from encoders import families, layer_maps, model_outputs, students
from engine import checkpoints, command_line, cost, run_folder
from methods import dynabert, recipes
from tasks import batching, kinds


def check_stage(args, config):
    """Return the sizes to train. Raises ValueError if the model to begin with is wrong for this stage.

    config: the model's configuration; that of a width-adaptive network has an entry dynabert: {"width_mults": [...],
    "depth_mults": [...]}.
    """
    trained, what = getattr(config, "dynabert", None), f"--{'teacher' if args.teacher else 'student'} {args.student!r}"
    if not families.family(config, what).parts:
        able = ", ".join(name for name, known in families.FAMILIES.items() if known.parts)
        raise ValueError(
            f"{what} is of type {config.model_type!r}, whose heads and neurons are not known here: take a model of "
            f"type {able}"
        )
    if hasattr(config, "kept_heads"):
        raise ValueError(f"{what} is an exported sub-network: begin with the run that it was exported from")
    if not args.teacher and trained is None:
        raise ValueError(f"--student {args.student!r} is no run of this script: pass --teacher to make one of it first")
    if args.teacher and trained is None and args.depth_mults != [1.0]:
        raise ValueError(
            f"--depth_mults is for the second stage, and --teacher {args.teacher!r} is no width-adaptive network: run "
            "without --depth_mults first, then pass that run as --teacher"
        )
    missing = [f"{mult:g}" for mult in args.width_mults if trained and mult not in trained["width_mults"]]
    if missing:
        known = " ".join(f"{mult:g}" for mult in trained["width_mults"])
        raise ValueError(f"--width_mults {' '.join(missing)}: {args.student} was trained for {known}: take of these")
    return dynabert.sizes(config, args.width_mults, args.depth_mults)


def rewire(args, loaded, accelerator):
    """Sort the student's heads and neurons, in place, by their importance for the training set's labels."""
    kind, splits, student, tokenizer = loaded.kind, loaded.splits, loaded.student, loaded.tokenizer
    arrays = batching.Arrays(splits["train"], batching.TRAINING)
    batches = batching.sorted_batches(arrays.lengths(), args.per_device_eval_batch_size)

    def loss(model, batch):
        """Return the losses on the labels, one per example."""
        logits = kind.logits(model(**model_outputs.model_inputs(model, batch)), batch["attention_mask"])
        labels = kind.labels(batch)
        return torch.stack([kind.hard_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels))])

    def mine():
        """Yield this process's share of the training set, on its device."""
        for indices in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = arrays.batch(indices, tokenizer.pad_token_id)
            yield {k: v.to(accelerator.device) for k, v in batch.items()}

    if accelerator.is_main_process:
        print(f"rewiring by {len(arrays.lengths())} training examples", flush=True)
    found = accelerator.reduce(dynabert.importance(student.eval(), mine(), loss))
    dynabert.rewire(student, found)


def make_loss(args, objective, kind, teacher, sizes):
    """Return the function (student, batch) -> (weighted sum, {term: unweighted value}) for sub-network batch["part"].

    The teacher runs once per batch. Values of a term are summed over sub-networks; the weighted sum of each sub-network
    is added under its name.
    """
    pairs = {size: aligned(args, len(size.layers), teacher) if teacher else [] for size in sizes}
    said = {"ids": None, "out": None}  # the last batch's words and what the teacher said of them

    def teach(teacher, batch, need_hidden):
        """Return the teacher's outputs, computed once for each batch."""
        if said["ids"] is not batch["input_ids"]:
            said.update(ids=None, out=None)
            said.update(ids=batch["input_ids"], out=distill_finetune.taught(teacher, batch, need_hidden))
        return said["out"]

    def resized(student, batch, _):
        """Switch the student to its sub-network; return the layers to compare."""
        dynabert.resize(student, batch["part"])
        return pairs[batch["part"]]

    whole = distill_finetune.make_loss(objective, kind, teacher, teach, resized)

    def loss(student, batch):
        """Return weighted sum and terms of one sub-network's pass."""
        total, values = whole(student, batch)
        return total, {**values, str(batch["part"]): total.detach()}

    return loss


def aligned(args, layers, teacher):
    """Return the layer maps of a sub-network with this many layers."""
    return layer_maps.layer_maps(args, layers, teacher.config.num_hidden_layers)


def make_evaluate(args, loaded, sizes, accelerator, figures):
    """Return the function model -> (metrics, mean score of the sub-networks, figures).

    A metric's name ends in its sub-network, such as accuracy/w0.5_d1; mean_score and loss are means over all. figures:
    model -> {name: figure}.
    """
    kind = loaded.kind

    def evaluate(model):
        model, result, scores, lost = accelerator.unwrap_model(model), {}, [], []
        for size in sizes[::-1]:
            dynabert.resize(model, size)
            found, _ = kind.evaluate(model, loaded.splits, loaded.tokenizer, args, accelerator)
            lost.append(found.pop("loss"))
            result |= {f"{name}/{size}": value for name, value in found.items() if "/" not in name}
            scores.append(metrics.score(found, kind.task.metrics))
        dynabert.resize(model)
        mean = sum(scores) / len(scores)
        return {"mean_score": mean, **result, "loss": sum(lost) / len(lost)}, mean, figures(model)

    return evaluate


def finish(args, loaded, sizes, accelerator, record):
    """Add the shape, cost and best scores of every sub-network to the record and write it as complete."""
    rows, names = [], record["headline"]
    with accelerator.autocast(), torch.compiler.set_stance("force_eager"):
        for size in sizes[::-1]:
            small = dynabert.extract(loaded.student, size)
            found = {name: record[run_folder.kept(args)]["metrics"][f"{name}/{size}"] for name in names}
            score = None if None in found.values() else metrics.score(found, names)  # not defined
            rows.append(
                {
                    "width": size.width,
                    "depth": size.depth,
                    "score": score,
                    "metrics": found,
                    **cost.describe(small, args.max_seq_length),
                    "heads": size.heads,
                    "latency": cost.latency_record(small, loaded.teacher, args.max_seq_length),
                }
            )
    record |= {"subnetworks": rows, "latency": rows[0]["latency"]}
    run_folder.complete(args, record)
    for row in rows:
        best = ", ".join(f"{name} {training.shown(value)}" for name, value in row["metrics"].items())
        print(f"{args.output_dir}: width {row['width']:g}, depth {row['depth']:g}: {best}")
    kept = record[run_folder.kept(args)]
    print(
        f"{args.output_dir}: {run_folder.kept(args)} mean score {training.shown(kept['score'])} at step "
        f"{kept['step']}, {record['time']['train_s']:.0f} s of training"
    )


def main(argv=None):
    """Run the script with the given arguments, sys.argv's by default."""
    args = build_parser().parse_args(argv)
    check_args(args)
    if args.check_only:
        return
    command_line.quiet()
    if args.export:
        export(args)
        return
    sizes = check_stage(args, models.load_config(args.student, "--teacher" if args.teacher else "--student"))
    if run_folder.inspect_run(args) == "complete":
        print(f"{args.output_dir}: complete already, nothing to do")
        return
    command_line.say(recipes.filled_line(args))
    accelerator = training.make_accelerator(args, unused_parameters=bool(args.stages))
    loaded = distill_finetune.load_everything(args)
    student, teacher = loaded.student, loaded.teacher
    steps = math.ceil(len(loaded.splits["train"]) / batching.step_size(args, accelerator))
    loaded.objective.check_steps(training.total_steps(args, steps))
    rewired = hasattr(student.config, "dynabert")
    check_parts(args, loaded, sizes, rewired)
    cache = place(args, loaded, sizes, accelerator)
    inputs = distill_finetune.describe_inputs(args, loaded, accelerator)
    how, _lock = run_folder.open_run_everywhere(args, accelerator, inputs)
    if how == "complete":
        command_line.say(f"{args.output_dir}: complete already, nothing to do")
        return
    resuming = how == "resume" and checkpoints.newest_everywhere(accelerator, Path(args.output_dir))
    if not rewired and not resuming:  # a checkpoint holds the rewired weights
        rewire(args, loaded, accelerator)
    if teacher:  # after its weights went into the digest
        model_outputs.cast_linears(teacher, accelerator)
    student.config.dynabert = {"width_mults": args.width_mults, "depth_mults": args.depth_mults}
    recipe = make_recipe(args, loaded, sizes, accelerator, cache)
    scores = distill_finetune.teacher_scores(args, loaded, accelerator)
    examples = len(recipe.lengths)
    record = distill_finetune.new_record(args, loaded, accelerator, "dynabert", examples, inputs, scores)
    record = training.train(args, accelerator, recipe, student, record, how)
    if accelerator.is_main_process:
        finish(args, loaded, sizes, accelerator, record)


def check_parts(args, loaded, sizes, rewired):
    """Raise ValueError if the student cannot be rewired for want of labels, or a sub-network is too shallow."""
    objective, student, teacher, train = loaded.objective, loaded.student, loaded.teacher, loaded.splits["train"]
    if not rewired and "labels" in train.column_names and all(x == -1 for x in train["labels"]):
        raise ValueError(
            "heads and neurons are sorted by the loss on labels, which the training texts lack: begin with texts that "
            "have some, in --label_column; stage 2 needs none"
        )
    for size in sizes if teacher else ():
        config = students.student_config(student.config, layers=len(size.layers))
        try:
            losses.check_terms(objective.terms, aligned(args, len(size.layers), teacher), config, teacher.config)
        except ValueError as error:
            raise ValueError(f"the sub-networks of depth {size.depth:g}, {len(size.layers)} layers: {error}") from error


def place(args, loaded, sizes, accelerator):
    """Make the student dynamic, put both models on the device and compile them; return the teacher's cache or None."""
    student, teacher = loaded.student, loaded.teacher
    dynabert.make_dynamic(student).to(accelerator.device)
    if teacher:
        teacher.to(accelerator.device).eval()
    if args.compile:
        torch._dynamo.config.recompile_limit *= len(sizes)  # each size is compiled for itself
        model_outputs.compile_models(student, teacher)
    if not args.cache_teacher:
        return None
    # Before the run folder is opened, because the cache may be refused for its size.
    return distill_finetune.open_cache(args, loaded, accelerator)


def make_recipe(args, loaded, sizes, accelerator, cache):
    """Return distill_finetune.py's Recipe with the loss and the scores of every sub-network."""
    objective, kind, splits, _, teacher, tokenizer = loaded
    recipe = distill_finetune.make_recipe(args, loaded, accelerator, cache)
    figures = distill_finetune.make_figures(objective.layer_pairs, splits, teacher, tokenizer, accelerator)
    evaluate = make_evaluate(args, loaded, sizes, accelerator, figures)
    loss = make_loss(args, objective, kind, teacher, sizes)
    return dataclasses.replace(recipe, loss=loss, evaluate=evaluate, parts=sizes)


# --- export ------------------------------------------------------------------------------------------------------


def export(args):
    """Write the sub-network of --width and --depth of the run --export into --output_dir as a model folder."""
    config = models.load_config(args.export, "--export")
    trained = getattr(config, "dynabert", None)
    if trained is None:
        raise ValueError(f"--export {args.export!r} is no run of distill_dynabert.py: its config.json names no widths")
    for name in ("width", "depth"):
        if getattr(args, name) not in trained[f"{name}_mults"]:
            known = ", ".join(f"{mult:g}" for mult in trained[f"{name}_mults"])
            raise ValueError(f"--{name} {getattr(args, name):g} was not trained in {args.export}: take one of {known}")
    folder = Path(args.output_dir)
    checkpoints.check_new(folder)
    head = (config.architectures or [""])[0]
    auto = next(
        (kind.auto for kind in kinds.KINDS.values() if head.endswith(kind.auto.__name__[len("AutoModel") :])), None
    )
    if auto is None:
        raise ValueError(f"--export {args.export!r} holds a {head or 'model without a class'}, no task's model")
    model, _ = models.load_model(args.export, auto, "--export")
    tokenizer = models.load_tokenizer(args.export)
    sizes = {(size.width, size.depth): size for size in dynabert.sizes(config, **trained)}
    size = sizes[args.width, args.depth]
    small = dynabert.extract(model, size)
    with checkpoints.new_folder(folder) as temporary:
        small.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    opened = f"transformers' {auto.__name__}" if size.heads == config.num_attention_heads else "models.load_model"
    total, without = cost.count_parameters(small)
    print(
        f"{folder}: {len(size.layers)} of {config.num_hidden_layers} layers, {size.heads} of "
        f"{config.num_attention_heads} heads, {size.neurons} neurons, {total / 1e6:.2f} million parameters "
        f"({without / 1e6:.2f} without embeddings); opens with {opened}"
    )


if __name__ == "__main__":
    command_line.run_script(main)
