"""Task-agnostic distillation of a masked language model on plain text; without --teacher: plain MLM pre-training.

    python distill_pretrain.py --teacher google-bert/bert-base-multilingual-cased --student_layers 6 \
        --corpus wikimedia/wikipedia:20231101.en --validation_corpus wikimedia/wikipedia:20231101.simple \
        --max_steps 100000
"""

from engine.checks import by_language, headless
from engine.checks import check_pretrain as check_args
from options import begin
from options import pretrain_parser as build_parser

if __name__ == "__main__":
    begin(build_parser(), check_args)  # before the imports below, which take seconds

import itertools
import math
import sys

import datasets
import numpy as np
import torch
from accelerate import PartialState
from transformers import AutoModel, AutoModelForMaskedLM

import data
import distill_finetune
import losses
import models
import training
from encoders import layer_maps, model_outputs
from engine import card, command_line, cost, run_folder
from methods import mlm_head, term_weights
from reporting.exports import without_folders
from tasks import batching, plain_text, similarity

# About 20 GB of text at some 4.5 bytes per WordPiece, to estimate the hours of an epoch.
ENGLISH_WIKIPEDIA_TOKENS = 4.5e9
UNKNOWN = 0.5  # from this share of unknown words on, a text counts as one in a language that the model lacks
EVALUATION = 2**63  # takes the place of an epoch for the masks of held-out text


def load_everything(args):
    """Return (objective, training blocks, evaluation blocks, student, teacher, tokenizer). Raises ValueError.

    Blocks are {language: Dataset}. With --streaming the training blocks are what `open_streams` returns.
    """
    student, teacher, tokenizer = models.load_pair(
        args,
        AutoModel if headless(args) else AutoModelForMaskedLM,
        need_head="logits" in args.terms,
        fine_tune_command="leave out logits (--terms ckd logits=0), or python distill_pretrain.py --student ...",
    )
    if headless(args):
        for model in (student, teacher):
            similarity.drop_pooler(model)
    sizes = [model.config.num_hidden_layers for model in (student, teacher) if model]
    objective = term_weights.objective_of(args, layer_maps.layer_maps(args, *sizes) if teacher else ())
    losses.check_terms(objective.terms, objective.layer_pairs, student.config, teacher and teacher.config)
    for model in filter(None, (student, teacher)):
        if args.seq_length > model_outputs.max_tokens(model.config):
            most = model_outputs.max_tokens(model.config)
            raise ValueError(f"--seq_length {args.seq_length} exceeds the model's {most} positions: lower it")
    if args.mlm_probability and tokenizer.mask_token_id is None:  # an encoder without a head may lack it
        source = args.student or args.teacher
        raise ValueError(f"the tokenizer of {source} has no mask token: choose another model, or --mlm_probability 0")
    if args.whole_word_mask:
        plain_text.word_starts(tokenizer)  # raises ValueError if there are none
    return objective, *load_text(args, tokenizer), student, teacher, tokenizer


def load_text(args, tokenizer):
    """Return (training blocks, evaluation blocks) as `load_everything` does. Raises ValueError if there are none."""
    corpora, others = by_language(args.corpus), by_language(args.validation_corpus or ())
    for text in itertools.chain(*corpora.values(), *others.values()):
        plain_text.check_name(text)  # check all before the first is read
    if same := plain_text.shared_text(corpora, others):
        said = f"warning: {same} of --validation_corpus is a part of --corpus too, so its loss says nothing about new"
        command_line.say(f"{said} texts: evaluate on others", file=sys.stderr)

    def load(texts):
        """Return the blocks of some texts, one text after the other."""
        options = {"column": args.text_column, "whole": args.whole_texts}
        found = [plain_text.load_blocks(one, tokenizer, args.seq_length, args.num_proc, **options) for one in texts]
        return datasets.concatenate_datasets(found)

    blocks = open_streams(args, tokenizer) if args.streaming else {name: load(own) for name, own in corpora.items()}
    size = max(1, args.max_eval_samples // len(others or corpora))
    held_out = {name: data.drawn(load(own), size) for name, own in others.items()}
    for name, own in {} if others else blocks.items():
        count = min(size, len(own) // 10)
        if not count:
            texts = repr(corpora[name])
            raise ValueError(f"--corpus {texts} has {len(own)} blocks, too few to hold out: pass --validation_corpus")
        held_out[name], blocks[name] = own.select(range(count)), own.select(range(count, len(own)))
    for name, own in held_out.items():
        share = plain_text.unknown_share(np.concatenate(plain_text.Rows(own).parts), tokenizer)
        if share >= UNKNOWN:
            raise ValueError(
                f"--{'validation_corpus' if others else 'corpus'}: {share:.0%} of the words to evaluate on "
                f"{f'of {name} ' if name else ''}are unknown to the tokenizer of {args.student or args.teacher}, which "
                "was not made for this language: take another model"
            )
    if not args.streaming:
        whole = sum(map(len, blocks.values()))
        part = min(1, args.max_train_samples / whole) if args.max_train_samples else 0  # of each language
        blocks = {name: data.drawn(own, part and max(1, round(part * len(own)))) for name, own in blocks.items()}
    return blocks, held_out


def joined(blocks):
    """Return {language: Dataset} as one Dataset, one language after the other."""
    return datasets.concatenate_datasets(list(blocks.values()))


def open_streams(args, tokenizer):
    """Return the function (worker, position) -> Stream of the share of the text that a worker of this process reads.

    Raises ValueError if a share does not fill one block.
    """
    state, workers = PartialState(), max(1, batching.workers(args))
    (own,) = by_language(args.corpus).values()
    texts = [plain_text.load_texts(corpus, streaming=True, column=args.text_column) for corpus in own]
    texts, name = datasets.concatenate_datasets(texts) if len(texts) > 1 else texts[0], ", ".join(map(repr, own))
    cut = plain_text.cutter(tokenizer, args.seq_length)

    def stream(worker, position=None, **options):
        share = state.process_index * workers + worker, state.num_processes * workers
        return plain_text.Stream(texts, cut, args.seed, share, position, name=f"--corpus {name}", **options)

    for worker in range(workers):
        stream(worker, pool=1).take(1)
    return stream


def read_stream(args, open_stream, positions):
    """Return (indices -> (blocks [B, T], {worker: its position after them}), lengths, plan); it reads in the worker.

    positions: {worker: position} from a checkpoint, read when the first block is needed. lengths, plan: as in Recipe.
    """
    streams, workers = {}, max(1, batching.workers(args))
    size = args.per_device_train_batch_size * PartialState().num_processes

    def read(indices):
        worker = indices[0] // size % workers  # the DataLoader hands out batches in this order, also after a restart
        if worker not in streams:
            streams[worker] = open_stream(worker, positions[str(worker)])
        return streams[worker].take(len(indices)), {str(worker): streams[worker].position}

    def plan(size, epoch):
        return batching.Steps(range(args.max_steps * size), size)

    return read, batching.Constant(args.seq_length), plan


def read_blocks(args, blocks, tokenizer):
    """Return (indices -> (blocks [B, T], None), lengths, plan) of {language: Dataset}; lengths, plan: as in Recipe."""
    sizes = {language: len(own) for language, own in blocks.items()}
    counts = plain_text.shares(sizes, args.language_exponent)
    if len(sizes) > 1:
        parts = (f"{name} {size:,} blocks, {counts[name]:,} in an epoch" for name, size in sizes.items())
        command_line.say("; ".join(parts))
    rows, total, lengths = plain_text.Rows(joined(blocks)), sum(sizes.values()), batching.Constant(args.seq_length)
    if args.whole_texts:
        lengths = batching.Repeated(rows.lengths(tokenizer.pad_token_id).tolist())

    def plan(size, epoch):
        order = plain_text.epoch_order(sizes, counts, args.seed, epoch)
        if args.whole_texts:
            return batching.grouped_batches(lengths, size, args.seed, epoch, order.tolist())
        return batching.Steps(order, size)

    return lambda indices: (rows[[i % total for i in indices]], None), lengths, plan


def make_collate(args, read, tokenizer, vocab_size):
    """Return the function (indices, epoch) -> batch; its masks depend on seed, epoch and block alone.

    read: indices -> (blocks [B, T], position or None).
    """
    special = np.zeros(vocab_size, dtype=bool)
    special[tokenizer.all_special_ids] = True
    starts = plain_text.word_starts(tokenizer) if args.whole_word_mask else None
    count = data.id_count(tokenizer)

    def collate(indices, epoch):
        """Return these blocks, masked: input_ids, positions [M] in the flat batch, labels [M].

        With --whole_texts also their attention_mask. Full blocks need none, and a model without a mask is faster.
        """
        ids, position = read(indices)
        mask = {}
        if args.whole_texts:
            lengths = plain_text.lengths_of(ids, tokenizer.pad_token_id)
            ids = ids[:, : lengths.max()]
            mask["attention_mask"] = torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64))
        masked, positions, labels = plain_text.draw_masks(
            ids,
            plain_text.row_seeds(args.seed, epoch, indices),
            args.mlm_probability,
            tokenizer.mask_token_id,
            special,
            count,
            starts,
        )
        batch = {**mask, "input_ids": masked, "positions": positions, "labels": labels}
        return batch | ({"position": position} if position else {})

    return collate


def outputs(model, inner, batch):
    """Return a model's outputs for the terms: hidden states, the head at the masked positions, what terms asked for."""
    out = model(model_outputs.model_inputs(inner.model, batch), batch["positions"])
    decoder = out.pop("decoder", None)
    if batch.get("empty"):  # this process had no block left, so nothing that it computed counts
        out = losses.no_rows(out)
    return {**out, "head": mlm_head.Head(out["features"], *(inner.narrow or decoder))} if decoder else out


def make_losses(objective, teacher):
    """Return the function (student, batch) -> (weighted sum, {term: unweighted scalar}, both models' outputs).

    The loss on the masked words is named hard. across_processes: as in `relations.masked_mean`.
    """
    s_layers, t_layers = objective.layer_pairs.sides() if teacher else ((), ())

    def terms(student, batch, across_processes=False):
        """Return the weighted sum, the terms (all of them in evaluation) and the outputs of student and teacher."""
        now = objective.at(batch["progress"]) if "progress" in batch else objective
        s_out = outputs(student, getattr(student, "module", student), batch)
        with torch.no_grad():
            t_out = outputs(teacher, teacher, batch) if now.terms else None
        mask = batch.get("attention_mask")
        if mask is not None and batch.get("empty"):
            mask = mask[:0]
        view = losses.ModelView(s_out, s_layers, mask, across_processes)
        t_view = t_out and losses.ModelView(t_out, t_layers, mask)

        def hard_loss():
            """Return the loss on the masked words."""
            labels = batch["labels"][: len(s_out["head"].inputs)]
            return mlm_head.head_cross_entropy(
                s_out["head"], labels, across_processes=across_processes, compiled=objective.compile
            )

        return *losses.objective(view, t_view, batch, now, hard_loss), s_out, t_out

    return terms


def make_evaluate(args, terms, weights, teacher, sizes, collate, accelerator, figures):
    """Return the function model -> (metrics, score, figures) over the held-out blocks, whose masks never change.

    sizes: {language: number of its blocks}, which lie one language after the other. figures: model -> figures.
    """
    ends = itertools.accumulate(sizes.values())
    batches = [
        (language, list(range(i, min(i + args.per_device_eval_batch_size, end))))
        for (language, size), end in zip(sizes.items(), ends, strict=True)
        for i in range(end - size, end, args.per_device_eval_batch_size)
    ]
    trained_head = not headless(args)

    def means(sums):
        """Return ({metric: float}, score) of {name: sum over blocks}."""
        result = {name: sums[name] / sums["blocks"] for name in weights if name in sums}
        total = sum(weights[name] * value for name, value in result.items())
        if not trained_head:
            return {"relation_loss": total, **result, "loss": total}, -total
        loss = sums["mlm_loss"] / sums["masked"]
        result = {"mlm_loss": loss, "perplexity": math.exp(min(loss, 50)), **result}
        if "teacher_agreement" in sums:
            result["teacher_agreement"] = sums["teacher_agreement"] / sums["masked"]
        return {**result, "loss": loss}, -loss

    @torch.no_grad()
    def evaluate(model):
        """Average over all held-out blocks, and over those of each language; each process takes its share of them."""
        model, sums = accelerator.unwrap_model(model), {}
        with accelerator.autocast():  # around all batches, because leaving it drops the casts of the weights
            for language, indices in batches[accelerator.process_index :: accelerator.num_processes]:
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
                    for key in {("", name), (language, name)}:
                        sums[key] = sums.get(key, 0) + value.double().to(accelerator.device)
        sums = training.sum_over_processes(accelerator, sums)
        result, score = means({name: value for (language, name), value in sums.items() if not language})
        for language in filter(None, sizes):
            own, _ = means({name: value for (whose, name), value in sums.items() if whose == language})
            main = "mlm_loss" if trained_head else "relation_loss"
            result[f"{main}_{language}"] = own.pop("loss")  # also printed; the terms go to TensorBoard alone
            result |= {f"{name}/{language}": value for name, value in own.items() if name != main}
        return result, score, figures(model)

    return evaluate


def make_recipe(args, objective, blocks, held_out, student, teacher, tokenizer, accelerator):
    """Return the Recipe of this corpus and objective."""
    terms, vocab_size = make_losses(objective, teacher), student.model.config.vocab_size
    held_sizes = {language: len(own) for language, own in held_out.items()}
    held_out, positions = joined(held_out), {}
    if args.streaming:
        positions = {str(worker): None for worker in range(max(1, batching.workers(args)))}
        read, lengths, plan = read_stream(args, blocks, positions)
    else:
        read, lengths, plan = read_blocks(args, blocks, tokenizer)
    held_rows = plain_text.Rows(held_out)
    collate = make_collate(args, lambda indices: (held_rows[indices], None), tokenizer, vocab_size)
    block = {"input_ids": [i for i in held_out[:1]["input_ids"][0] if i != tokenizer.pad_token_id]}
    figures = distill_finetune.make_figures(
        objective.layer_pairs, {"validation": [block]}, teacher, tokenizer, accelerator
    )

    def loss(model, batch):
        total, values, _, _ = terms(model, batch, losses.several_processes())
        return total, {name: value.detach() for name, value in values.items()}

    return training.Recipe(
        lengths=lengths,
        plan=plan,
        loss=loss,
        save=make_save(args, student.model, teacher, tokenizer, accelerator),
        weights=dict.fromkeys(losses.TERMS, 0.0) | objective.weights,
        weights_at=(lambda progress: objective.at(progress).weights) if objective.stages else None,
        scored=lambda progress: headless(args) or objective.head_trained(progress),
        collate=make_collate(args, read, tokenizer, vocab_size),
        positions=positions,
        evaluate=make_evaluate(args, terms, objective.weights, teacher, held_sizes, collate, accelerator, figures),
    )


def make_save(args, student, teacher, tokenizer, accelerator):
    """Return the function (folder, model, entry) that writes model, tokenizer and card of an evaluation."""
    modules = sentence_files(args, student, teacher)
    base = card.base_metadata(args.student or args.teacher) if accelerator.is_main_process else {}

    def save(folder, model, entry):
        model.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        width = model.model.config.hidden_size
        similarity.copy_modules(modules, folder, width)
        if not modules and headless(args) and any(name.startswith("sentence_") for name in args.terms):
            similarity.save_pooling(folder, args.teacher, width, "mean", model_outputs.max_tokens(model.model.config))
        (folder / "README.md").write_text(model_card(args, entry, base), encoding="utf-8")

    return save


def sentence_files(args, student, teacher):
    """Return the files of a sentence encoder that a student without a head takes over from the teacher; {} if none.

    A layer with weights after the pooling fits the teacher's width alone.
    """
    files = similarity.modules_of(args.teacher) if headless(args) else {}
    heavy = [name for name in files if not name.endswith(".json")]
    if heavy and student.config.hidden_size != teacher.model.config.hidden_size:
        command_line.say(f"{args.teacher}: {heavy[0]} does not fit the student's width: the encoder alone is saved")
        return {}
    return files


def model_card(args, entry, base):
    """Return the README.md of a saved model; base: from `card.base_metadata`."""
    words = args.validation_corpus or args.corpus
    (name, *more) = itertools.chain.from_iterable(by_language(words).values())
    hub, _, config = ("", "", "") if more or plain_text.find_files(name) else name.partition(":")
    name = " ".join(map(without_folders, words))
    dataset = {
        "dataset_name": name,
        "dataset_type": hub or "text",
        "dataset_config": config or None,
        "dataset_split": "train" if hub else "validation",
        "dataset_args": {"blocks": args.max_eval_samples, "tokens": args.seq_length},
    }
    texts = " ".join(map(without_folders, args.corpus))
    about = f"{'An encoder' if headless(args) else 'A masked language model'}, trained on `{texts}` in "
    about += f"{'texts of at most' if args.whole_texts else 'blocks of'} {args.seq_length} tokens."
    auto = AutoModel if headless(args) else AutoModelForMaskedLM
    return card.model_card(args, entry, auto, about, dataset, base) + card.usage(auto)


def describe(args, accelerator, blocks, held_out, student, teacher):
    """Return (inputs, data) for run.json: what must not change, what was read; both None but in the main process."""
    if not accelerator.is_main_process:
        return None, None
    # A stream of the hub has no files; its id must do.
    train = plain_text.files_of(by_language(args.corpus)) if args.streaming else joined(blocks)
    held_out, both = joined(held_out), {"teacher": teacher, "student": student}
    inputs = run_folder.describe_inputs(args, accelerator, {"training_text": train, "validation_text": held_out}, both)
    count, digest = None if args.streaming else len(train), inputs["training_text"] if len(train) else None
    validation = {"examples": len(held_out), "sha256": inputs["validation_text"]}
    return inputs, {"train": {"examples": count, "sha256": digest}, "validation": validation}


def finish(args, record, student, teacher, accelerator):
    """Add latency and the paper's accounting (tokens, rate, hours) to the record and write it as complete."""
    with accelerator.autocast(), torch.compiler.set_stance("force_eager"):  # never compiled, so that both are alike
        record["latency"] = cost.latency_record(student.model, teacher and teacher.model, args.seq_length)
    rate = record["throughput"]["tokens_per_s"]
    record["accounting"] = account = {
        "tokens_seen": record["tokens_seen"],
        "tokens_per_s": rate,
        "hours": round(record["time"]["train_s"] / 3600, 4),
        "english_wikipedia_tokens_assumed": ENGLISH_WIKIPEDIA_TOKENS,
        "hours_for_one_epoch_of_english_wikipedia": round(ENGLISH_WIKIPEDIA_TOKENS / max(rate, 1e-9) / 3600, 1),
    }
    run_folder.complete(args, record)
    kept = record[run_folder.kept(args)]
    scores = ", ".join(f"{k} {training.shown(v)}" for k, v in kept["metrics"].items() if "/" not in k)
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
    # With relations alone the language-model head has no gradient.
    accelerator = training.make_accelerator(args, unused_parameters=headless(args) or bool(args.stages))
    objective, blocks, held_out, student, teacher, tokenizer = load_everything(args)
    vars(student.config).pop("dynabert", None)  # the sub-networks of a width-adaptive network are not trained here
    count = None if args.streaming else sum(map(len, blocks.values()))
    per_epoch = args.max_steps if args.streaming else math.ceil(count / batching.step_size(args, accelerator))
    objective.check_steps(training.total_steps(args, per_epoch))
    inputs, data = describe(args, accelerator, blocks, held_out, student, teacher)
    how, _lock = run_folder.open_run_everywhere(args, accelerator, inputs)
    if how == "complete":
        command_line.say(f"{args.output_dir}: complete already, nothing to do")
        return
    student, teacher = model_outputs.MaskedLM(student), teacher and model_outputs.MaskedLM(teacher).eval()
    if teacher:
        model_outputs.add_term_outputs(objective, student, teacher, args.seed)
        teacher.to(accelerator.device)
    student.to(accelerator.device)
    if args.compile:
        model_outputs.compile_models(student, teacher)
    if teacher:  # after its weights went into the digest
        model_outputs.cast_linears(teacher, accelerator)
    recipe = make_recipe(args, objective, blocks, held_out, student, teacher, tokenizer, accelerator)
    record = run_folder.new_record(
        args,
        accelerator,
        "pretrain",
        "mlm",
        layer_map=objective.layer_pairs,
        inputs=inputs,
        data=data,
        train_examples=count,
        metric="relation_loss" if headless(args) else "mlm_loss",
        model=cost.describe(student.model, args.seq_length),
        teacher=teacher and cost.describe(teacher.model, args.seq_length) | {"path": args.teacher},
    )
    record = training.train(args, accelerator, recipe, student, record, how)
    if accelerator.is_main_process:
        finish(args, record, accelerator.unwrap_model(student), teacher, accelerator)


if __name__ == "__main__":
    command_line.run_script(main)
