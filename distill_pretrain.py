"""Task-agnostic distillation of a masked language model on plain text; without --teacher: plain MLM pre-training.

    python distill_pretrain.py --teacher google-bert/bert-base-multilingual-cased --student_layers 6 \
        --corpus wikimedia/wikipedia:20231101.en --validation_corpus wikimedia/wikipedia:20231101.simple \
        --max_steps 100000
"""

from engine.checks import check_pretrain as check_args
from options import begin
from options import pretrain_parser as build_parser

if __name__ == "__main__":
    begin(build_parser(), check_args)  # before the imports below, which take seconds

import math
import sys

import numpy as np
import torch
from accelerate import PartialState
from transformers import AutoModelForMaskedLM

import data
import losses
import models
import training
from encoders import layer_maps, model_outputs
from engine import card, command_line, cost, run_folder
from methods import mlm_head, term_weights
from tasks import batching, plain_text

# About 20 GB of text at some 4.5 bytes a WordPiece: only for the estimate of an epoch's hours.
ENGLISH_WIKIPEDIA_TOKENS = 4.5e9
EVALUATION = 2**63  # in place of an epoch, for the masks of held-out text


def load_everything(args):
    """(training blocks, evaluation blocks, student, teacher, tokenizer); raises ValueError.

    Blocks are Datasets; those of --streaming are what `open_streams` returns.
    """
    student, teacher, tokenizer = models.load_pair(
        args,
        AutoModelForMaskedLM,
        need_head="logits" in args.terms,
        fine_tune_command="leave out logits (--terms ckd logits=0), or python distill_pretrain.py --student ...",
    )
    sizes = [model.config.num_hidden_layers for model in (student, teacher) if model]
    args.layer_pairs = layer_maps.layer_maps(args, *sizes) if teacher else []
    losses.check_terms(args.terms, args.layer_pairs, student.config, teacher and teacher.config)
    for model in filter(None, (student, teacher)):
        if args.seq_length > model_outputs.max_tokens(model.config):
            raise ValueError(
                f"--seq_length {args.seq_length} exceeds the model's "
                f"{model_outputs.max_tokens(model.config)} positions: lower it"
            )
    missing = [name for name in ("mask", "cls", "sep") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise ValueError(
            f"the tokenizer of {args.student or args.teacher} has no {missing[0]} token, which masked "
            "language modelling needs: choose a model that was pre-trained with it"
        )
    if args.whole_word_mask:
        plain_text.word_starts(tokenizer)  # there are some
    same = args.validation_corpus and plain_text.shared_file(args.corpus, args.validation_corpus)
    if same and PartialState().is_main_process:
        print(
            f"warning: {same} of --validation_corpus is a part of --corpus too, so its loss says nothing about new "
            "texts: evaluate on others",
            file=sys.stderr,
        )
    if args.streaming:
        blocks = open_streams(args, tokenizer)
    else:
        blocks = plain_text.load_blocks(args.corpus, tokenizer, args.seq_length, args.num_proc, column=args.text_column)
    if args.validation_corpus:
        held_out = plain_text.load_blocks(
            args.validation_corpus, tokenizer, args.seq_length, args.num_proc, column=args.text_column
        )
        held_out = data.drawn(held_out, args.max_eval_samples)
    else:
        size = min(args.max_eval_samples, len(blocks) // 10)
        if not size:
            raise ValueError(
                f"--corpus {args.corpus!r} has {len(blocks)} blocks, too few to hold any out: pass --validation_corpus"
            )
        held_out, blocks = blocks.select(range(size)), blocks.select(range(size, len(blocks)))
    if np.isin(np.concatenate(plain_text.Rows(held_out).parts), tokenizer.all_special_ids).all():
        raise ValueError(
            f"--{'validation_corpus' if args.validation_corpus else 'corpus'}: the {len(held_out)} blocks "
            "to evaluate on hold no token that could be masked; are its words in the vocabulary of "
            f"{args.student or args.teacher}?"
        )
    if not args.streaming:
        blocks = data.drawn(blocks, args.max_train_samples)
    return blocks, held_out, student, teacher, tokenizer


def open_streams(args, tokenizer):
    """The function (worker, position) -> Stream of the share that a worker of this process reads.

    Raises ValueError if a share does not fill one block.
    """
    state, workers = PartialState(), max(1, args.num_workers)
    texts = plain_text.load_texts(args.corpus, streaming=True, column=args.text_column)
    cut = plain_text.cutter(tokenizer, args.seq_length)

    def stream(worker, position=None, **options):
        share = state.process_index * workers + worker, state.num_processes * workers
        return plain_text.Stream(texts, cut, args.seed, share, position, name=f"--corpus {args.corpus!r}", **options)

    for worker in range(workers):
        stream(worker, pool=1).take(1)
    return stream


def make_stream_reader(args, open_stream, positions):
    """The function indices -> (blocks [B, T], {worker: its position after them}), called where the worker is.

    positions: {worker: position} from a checkpoint, looked at when the first block is wanted.
    """
    streams, workers = {}, max(1, args.num_workers)
    size = args.per_device_train_batch_size * PartialState().num_processes

    def read(indices):
        worker = indices[0] // size % workers  # as the DataLoader hands out batches, also after a restart
        if worker not in streams:
            streams[worker] = open_stream(worker, positions[str(worker)])
        return streams[worker].take(len(indices)), {str(worker): streams[worker].position}

    return read


def make_collate(args, read, tokenizer, vocab_size):
    """The function (indices, epoch) -> batch with masks that depend on seed, epoch and block alone.

    read: from indices to (blocks [B, T], position or None).
    """
    special = np.zeros(vocab_size, dtype=bool)
    special[tokenizer.all_special_ids] = True
    starts = plain_text.word_starts(tokenizer) if args.whole_word_mask else None
    count = data.id_count(tokenizer)

    def collate(indices, epoch):
        """Blocks with these numbers, masked: input_ids, positions [M] in the flat batch, labels [M].

        No attention_mask: blocks are full, and what knows that takes fewer passes over its data.
        """
        ids, position = read(indices)
        masked, positions, labels = plain_text.draw_masks(
            ids,
            plain_text.row_seeds(args.seed, epoch, indices),
            args.mlm_probability,
            tokenizer.mask_token_id,
            special,
            count,
            starts,
        )
        batch = {"input_ids": masked, "positions": positions, "labels": labels}
        return batch | ({"position": position} if position else {})

    return collate


def outputs(model, inner, batch):
    """What the terms see of a model: hidden states, the head at the masked positions, what terms asked for."""
    out = model(model_outputs.model_inputs(inner.model, batch), batch["positions"])
    decoder = out.pop("decoder")
    if batch.get("empty"):  # this process had no block left: all it computed counts nothing
        out = losses.no_rows(out)
    return {**out, "head": mlm_head.Head(out["features"], *(inner.narrow or decoder))}


def headless(args):
    """Whether nothing trains the language-model head, which then gives no score."""
    return bool(args.terms) and "logits" not in args.terms and not args.hard_weight


def measured(args, model):
    """The part of a `model_outputs.MaskedLM` whose size and speed count: without a head that nothing trains."""
    return model.model.base_model if headless(args) else model.model


def make_losses(args, teacher):
    """The function (student, batch) -> (weighted sum, {term: unweighted scalar}, outputs of both), and the weights.

    The loss on the masked words is named hard. across_processes: as in `relations.masked_mean`.
    """
    s_layers, t_layers = args.layer_pairs.sides() if teacher else ((), ())

    def terms(student, batch, across_processes=False):
        """Weighted sum and terms of one batch, in evaluation of all terms, and the outputs of student and teacher."""
        now = term_weights.args_at(args, batch["progress"]) if "progress" in batch else args
        s_out = outputs(student, getattr(student, "module", student), batch)
        with torch.no_grad():
            t_out = outputs(teacher, teacher, batch) if now.terms else None
        view = losses.ModelView(s_out, s_layers, None, across_processes)
        t_view = t_out and losses.ModelView(t_out, t_layers, None)

        def hard_loss():
            """The loss on the masked words."""
            labels = batch["labels"][: len(s_out["head"].inputs)]
            return mlm_head.head_cross_entropy(
                s_out["head"], labels, across_processes=across_processes, compiled=args.compile
            )

        return *losses.objective(view, t_view, batch, now, hard_loss), s_out, t_out

    return terms, term_weights.weights_of(args)


def make_figures(args, teacher, held_out, tokenizer, accelerator):
    """The function model -> {name: figure} of its relations beside the teacher's in the first held-out block."""
    ids = held_out[0]["input_ids"][:24]
    tokens, ids = tokenizer.convert_ids_to_tokens(ids), torch.tensor([ids], device=accelerator.device)
    block = {"input_ids": ids}

    def figures(model):
        """See above; none without a teacher, and in the main process only."""
        if not (teacher and args.layer_pairs and accelerator.is_main_process):
            return {}
        with accelerator.autocast():
            return model_outputs.relation_figures(model, teacher, args.layer_pairs, block, tokens)

    return figures


def make_evaluate(args, terms, weights, teacher, held_out, collate, accelerator, figures):
    """The function model -> (metrics, score, figures) over the held-out blocks, with masks that never change.

    figures: from a model to them.
    """
    size = args.per_device_eval_batch_size
    batches = [list(range(i, min(i + size, len(held_out)))) for i in range(0, len(held_out), size)]
    trained_head = not headless(args)

    @torch.no_grad()
    def evaluate(model):
        """Means over all held-out blocks, each process its share of the batches."""
        model, sums = accelerator.unwrap_model(model), {}
        with accelerator.autocast():  # around all batches: at its end the casts of the weights are gone
            for indices in batches[accelerator.process_index :: accelerator.num_processes]:
                batch = {k: v.to(accelerator.device) for k, v in collate(indices, EVALUATION).items()}
                _, values, s_out, t_out = terms(model, batch)
                count = len(batch["labels"])
                values = {k: v * len(indices) for k, v in values.items() if k != "hard"}
                values |= {"blocks": torch.tensor(float(len(indices))), "masked": torch.tensor(float(count))}
                if trained_head:
                    values["mlm_loss"] = mlm_head.head_cross_entropy(s_out["head"], batch["labels"]) * count
                if trained_head and teacher and "logits" in weights:
                    values["teacher_agreement"] = mlm_head.agreement(s_out["head"], t_out["head"])
                for name, value in values.items():
                    sums[name] = sums.get(name, 0) + value.double().to(accelerator.device)
        sums = training.sum_over_processes(accelerator, sums)
        result = {name: sums[name] / sums["blocks"] for name in weights if name in sums}
        total = sum(weights[name] * value for name, value in result.items())
        if trained_head:
            loss = sums["mlm_loss"] / sums["masked"]
            result = {"mlm_loss": loss, "perplexity": math.exp(min(loss, 50)), **result}
            if "teacher_agreement" in sums:
                result["teacher_agreement"] = sums["teacher_agreement"] / sums["masked"]
            return {**result, "loss": loss}, -loss, figures(model)
        return {"relation_loss": total, **result, "loss": total}, -total, figures(model)

    return evaluate


def make_recipe(args, blocks, held_out, student, teacher, tokenizer, accelerator):
    """What the loop needs to know of this corpus and objective."""
    terms, weights = make_losses(args, teacher)
    vocab_size = student.model.config.vocab_size
    count = 0 if args.streaming else len(blocks)
    base = card.base_metadata(args.student or args.teacher) if accelerator.is_main_process else {}

    def loss(model, batch):
        total, values, _, _ = terms(model, batch, losses.several_processes())
        return total, {name: value.detach() for name, value in values.items()}

    def plan(size, epoch):
        """The steps of an epoch, so many blocks each, in an order of its own."""
        if args.streaming:
            return batching.Steps(range(args.max_steps * size), size)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(args.seed * 1_000_003 + epoch))
        return batching.Steps(order, size)

    def save(folder, model, entry):
        """Write model, tokenizer and card of an evaluation."""
        model.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(args, entry, base), encoding="utf-8")

    positions = {str(worker): None for worker in range(max(1, args.num_workers))} if args.streaming else {}
    rows, held_rows = None if args.streaming else plain_text.Rows(blocks), plain_text.Rows(held_out)
    read = make_stream_reader(args, blocks, positions) if args.streaming else lambda indices: (rows[indices], None)
    figures = make_figures(args, teacher, held_out, tokenizer, accelerator)
    check = make_collate(args, lambda indices: (held_rows[indices], None), tokenizer, vocab_size)
    return training.Recipe(
        lengths=batching.Constant(args.seq_length),
        plan=plan,
        loss=loss,
        save=save,
        weights=dict.fromkeys(losses.TERMS, 0.0) | weights,
        weights_at=(lambda progress: term_weights.weights_of(term_weights.args_at(args, progress)))
        if args.stages
        else None,
        scored=lambda progress: headless(args) or term_weights.head_trained(args, progress),
        collate=make_collate(args, read, tokenizer, vocab_size),
        positions=positions,
        evaluate=make_evaluate(args, terms, weights, teacher, held_out, check, accelerator, figures),
    )


def model_card(args, entry, base):
    """Text of the README.md that goes with a saved model; base: what `card.base_metadata` found."""
    name = args.validation_corpus or args.corpus
    hub, _, config = ("", "", "") if plain_text.find_files(name) else name.partition(":")
    dataset = {
        "dataset_name": name,
        "dataset_type": hub or "text",
        "dataset_config": config or None,
        "dataset_split": "train" if hub else "validation",
        "dataset_args": {"blocks": args.max_eval_samples, "tokens": args.seq_length},
    }
    about = f"A masked language model, trained on `{args.corpus}` in blocks of {args.seq_length} tokens."
    return card.model_card(args, entry, AutoModelForMaskedLM, about, dataset, base)


def finish(args, record, student, teacher, accelerator):
    """Add latency and the paper's accounting (tokens, rate, hours) to the record and write it as complete."""
    with accelerator.autocast(), torch.compiler.set_stance("force_eager"):  # for both alike, never compiled
        record["latency"] = cost.latency_record(
            measured(args, student), teacher and measured(args, teacher), args.seq_length
        )
    rate = record["throughput"]["tokens_per_s"]
    record["accounting"] = {
        "tokens_seen": record["tokens_seen"],
        "tokens_per_s": rate,
        "hours": round(record["time"]["train_s"] / 3600, 4),
        "english_wikipedia_tokens_assumed": ENGLISH_WIKIPEDIA_TOKENS,
        "hours_for_one_epoch_of_english_wikipedia": round(ENGLISH_WIKIPEDIA_TOKENS / max(rate, 1e-9) / 3600, 1),
    }
    run_folder.complete(args, record)
    kept = record[run_folder.kept(args)]
    scores = ", ".join(f"{k} {training.shown(v)}" for k, v in kept["metrics"].items())
    account = record["accounting"]
    print(
        f"{args.output_dir}: {run_folder.kept(args)} {scores} at step {kept['step']}\n"
        f"{account['tokens_seen']} tokens at {rate:.0f} tokens/s; an epoch of English Wikipedia would take about "
        f"{account['hours_for_one_epoch_of_english_wikipedia']} h on this machine"
    )


def main(argv=None):
    """Run the script with the given arguments, sys.argv's by default."""
    args = build_parser().parse_args(argv)
    check_args(args)
    if args.check_only:
        return
    command_line.quiet()
    if run_folder.inspect_run(args) == "complete":
        print(f"{args.output_dir}: complete already, nothing to do")
        return
    # Where relations are alone the language-model head has no gradient.
    accelerator = training.make_accelerator(args, unused_parameters=headless(args) or bool(args.stages))
    blocks, held_out, student, teacher, tokenizer = load_everything(args)
    vars(student.config).pop("dynabert", None)  # of a width-adaptive network, whose sub-networks are not trained here
    per_epoch = args.max_steps if args.streaming else math.ceil(len(blocks) / batching.step_size(args, accelerator))
    term_weights.check(args, training.total_steps(args, per_epoch))
    inputs = data = None
    if accelerator.is_main_process:
        # Of a hub's stream the id must do.
        train = (plain_text.find_files(args.corpus) or []) if args.streaming else blocks
        inputs = run_folder.describe_inputs(
            args,
            accelerator,
            {"training_text": train, "validation_text": held_out},
            {"teacher": teacher, "student": student},
        )
        data = {
            "train": {
                "examples": None if args.streaming else len(blocks),
                "sha256": inputs["training_text"] if len(train) else None,
            },
            "validation": {"examples": len(held_out), "sha256": inputs["validation_text"]},
        }
    how = run_folder.open_run_everywhere(args, accelerator, inputs)
    student, teacher = model_outputs.MaskedLM(student), teacher and model_outputs.MaskedLM(teacher).eval()
    if teacher:
        model_outputs.add_term_outputs(args, student, teacher)
        teacher.to(accelerator.device)
    student.to(accelerator.device)
    if args.compile:
        model_outputs.compile_models(student, teacher)
    if teacher:  # now that its weights have been described
        model_outputs.cast_linears(teacher, accelerator)
    recipe = make_recipe(args, blocks, held_out, student, teacher, tokenizer, accelerator)
    record = run_folder.new_record(
        args,
        accelerator,
        "pretrain",
        "mlm",
        layer_map=args.layer_pairs,
        inputs=inputs,
        data=data,
        train_examples=None if args.streaming else len(blocks),
        metric="relation_loss" if headless(args) else "mlm_loss",
        model=cost.describe(measured(args, student), args.seq_length),
        teacher=teacher and cost.describe(measured(args, teacher), args.seq_length) | {"path": args.teacher},
    )
    record = training.train(args, accelerator, recipe, student, record, how)
    if accelerator.is_main_process:
        finish(args, record, accelerator.unwrap_model(student), teacher, accelerator)


if __name__ == "__main__":
    command_line.run_script(main)
