"""Kinds of task, a class each: its head, logits, losses, predictions and scores.

A new kind is one class here and one line of `data.KINDS`; a new task of a known kind is one line of `data.TASKS`.
"""

import contextlib
import csv
import io
import itertools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object
from torch.nn import functional as F

import data
import losses
import metrics
import models
from encoders import label_names, model_outputs
from engine import run_folder
from tasks import batching, similarity, squad, summaries, tagging

ANSWERS = [name for name in batching.TRAINING if name not in batching.INPUTS]  # columns that hold labels


class Kind:
    """What a kind of task means to reading, training, scoring and predicting; a subclass defines what differs.

    auto: transformers' class of the head. head: more of the model's configuration, beside the labels. token_axis: the
    axis of the logits that counts tokens; None if a row is an example. custom: whether --kind may name it. scores:
    metrics that --metrics may choose.
    """

    auto: type
    head: Mapping = MappingProxyType({})
    token_axis: int | None = None
    custom = True
    scores: tuple = ()
    headless = False  # whether the model is an encoder alone, without a head to train
    bounds: Mapping = MappingProxyType({})  # {name: scores} of the dev set without a model, for the record
    usage = ""  # lines of the model card
    class_weights = None  # [C], of `hard_loss`: --class_weights
    held_out = None  # another Kind of the same task; its own `splits` choose the best model
    theirs = None  # ({split: Dataset tokenised for the teacher}, its tokenizer) if the teacher has its own tokenizer
    described = None  # what `run_folder.describe_data` returns, in the main process

    def __init__(self, task):
        self.task = task
        self.rows = {}  # {split: rows of its tokenised Dataset for each example}; 1 if not named

    @staticmethod
    def read(args, skipped):
        """Return (task, {split: examples}) from files or the hub. Raises ValueError. skipped: a readers.Skipped."""
        raise NotImplementedError

    def tokenize(self, splits, tokenizer, args):
        """Return ({split: tokenised Dataset}, a text to print or None); training sets have the columns of `labels`."""
        raise NotImplementedError

    def prepare(self, model, args):
        """Extend a loaded model if its forward does not return what this kind reads."""

    def save(self, folder, model, args):
        """Write additional files beside a saved model."""

    def labels(self, batch):
        """Return the true labels of a batch, a row an example; integers are classes, -100 means no label."""
        return batch["labels"]

    def logits(self, out, mask):
        """Return the logits of a model's output, a row an example: what is distilled and scored."""
        return out["logits"]

    def hard_loss(self, logits, labels, across_processes=False):
        """Return cross-entropy with the class weights, mean over the labels that are not -100; scalar.

        across_processes: see `relations.masked_mean`.
        """
        if self.class_weights is not None:  # logits of a dev set may be on another device than those of a batch
            self.class_weights = self.class_weights.to(logits.device)
        rows, labels = logits.float().flatten(0, -2), labels.flatten()
        values = F.cross_entropy(rows, labels, self.class_weights, reduction="none", ignore_index=-100)
        return losses.masked_mean(values.sum(), (labels != -100).sum(), across_processes)

    def soft_loss(self, student, teacher, batch, args, mask=None):
        """Return the term `logits` of two ModelViews: KL at args.temperature, mean over rows (of the mask); scalar."""
        views, across = (student.logits, teacher.logits), student.across_processes
        return losses.soft_logits(*views, temperature=args.temperature, mask=mask, across_processes=across)

    def evaluate(self, model, splits, tokenizer, args, accelerator):
        """Return ({metric: float} on the dev sets, {file name: text} of predictions to keep with the model)."""
        names = [name for name in splits if name.startswith("validation")]
        logits = {name: predict(self, model, splits[name], tokenizer, args, accelerator) for name in names}
        return self.score(logits, splits, args)

    def score(self, logits, splits, args):
        """Return what `evaluate` returns, from {dev set: logits}; the metric `loss` is the mean over all examples."""
        result, files, loss = {}, {}, 0.0
        for name, values in logits.items():
            scores, texts = self.score_set(name, values, splits, args)
            result, files = result | scores, files | texts
            loss += self.dev_loss(values, splits[name]) * len(values)
        return result | {"loss": loss / sum(map(len, logits.values()))}, files

    def score_set(self, name, logits, splits, args):
        """Return ({metric: float}, {file name: text}) of one dev set."""
        raise NotImplementedError

    @staticmethod
    def read_set(args, path, labels, skipped):
        """Return (task, examples) of one labelled file; labels: a model's label names, which give the ids."""
        return data.read_set(args, path, labels, skipped)

    def table(self, logits, splits, args):
        """Return {file name: text} of labels and predictions of the split validation, beside the files of `score`."""
        return {}

    def dev_loss(self, logits, dataset):
        """Return `hard_loss` over a tokenised dev set, a float; logits [N, ...] from `predict`."""
        batch = batching.Arrays(dataset, ANSWERS).batch(range(len(dataset)), 0)
        labels = self.labels(batch)
        # Logits of tokens are padded to --max_seq_length, labels to the longest example.
        return self.hard_loss(logits[:, : labels.shape[1]] if self.token_axis == 1 else logits, labels).item()

    def words(self, logits, args):
        """Return the test set's predictions as a submission spells them, from logits [N, C]."""
        raise NotImplementedError

    def submission(self, split, dataset, logits, args):
        """Return (text of a test set's prediction file, count); by default lines `index<tab>prediction`.

        index: the example's place in its file, counted from 0, skipped examples included.
        """
        words = self.words(logits, args)
        lines = "".join(f"{i}\t{word}\n" for i, word in zip(dataset["idx"], words, strict=True))
        return "index\tprediction\n" + lines, len(words)


class Classification(Kind):
    """One label for a text or a pair of texts: logits [B, C], labels [B]."""

    auto = transformers.AutoModelForSequenceClassification
    scores = ("accuracy", "balanced_accuracy", "f1", "macro_f1", "weighted_f1", "matthews_correlation", "cohen_kappa")

    @staticmethod
    def read(args, skipped):
        """See Kind; training examples of custom need no labels if the student learns from the teacher alone."""
        teachers = None
        if args.task == "custom" and args.teacher and not args.hard_weight:
            names = label_names.stored_names(models.load_config(args.teacher, "--teacher"))
            given = dict(word.rpartition("=")[::2] for word in args.label_map or ())
            generic = not given and all(re.fullmatch(r"LABEL_\d+", name) for name in names)
            teachers = () if generic else tuple(given.get(name, name) for name in names)
        task, splits = data.load_examples(args, skipped, teachers)
        if "f1" in args.metrics and len(task.labels) > 2:
            raise ValueError(
                f"--metrics f1 scores the second of two labels, and there are {len(task.labels)}: try macro_f1"
            )
        return _with_test_set(args, task, splits)

    def tokenize(self, splits, tokenizer, args):
        return {name: data.tokenize(split, tokenizer, args.max_seq_length) for name, split in splits.items()}, None

    def score_set(self, name, logits, splits, args):
        names = [metric for metric in self.task.metrics if metric.endswith(name.removeprefix("validation"))]
        return metrics.compute_metrics(names, logits, torch.tensor(splits[name]["labels"])), {}

    def table(self, logits, splits, args):
        """Return a csv with a row an example: place in the file, label, prediction, probability of each label."""
        words, chances = self.task.labels, logits.double().softmax(-1).tolist()
        rows = [
            (words[label], words[max(range(len(row)), key=row.__getitem__)], *row)
            for label, row in zip(splits["validation"]["labels"], chances, strict=True)
        ]
        return _csv(splits["validation"]["idx"], ("label", "prediction", *words), rows)

    def words(self, logits, args):
        return [escaped(self.task.labels[i]) for i in logits.argmax(-1).tolist()]


class Regression(Classification):
    """A number for a text or a pair of texts: logits [B, 1], labels [B]."""

    head = MappingProxyType({"num_labels": 1, "problem_type": "regression"})
    scores = ("pearson", "spearman", "r2")

    def numbers(self, logits):
        """Return the predicted numbers [B], float32."""
        return logits.float().squeeze(-1)

    def hard_loss(self, logits, labels, across_processes=False):
        """Return the squared error, mean over examples."""
        return _mean((self.numbers(logits) - labels.float()).square(), across_processes)

    def soft_loss(self, student, teacher, batch, args):
        """Return the squared error between the models; a softmax over one class would say nothing."""
        errors = self.numbers(student.logits) - self.numbers(teacher.logits.detach())
        return _mean(errors.square(), student.across_processes)

    def table(self, logits, splits, args):
        """Return a csv with a row an example: place in the file, label, predicted number."""
        numbers, rows = self.numbers(logits).tolist(), splits["validation"]
        each = len(rows) // len(numbers)  # rows of the Dataset for a number
        return _csv(rows["idx"][::each], ("label", "prediction"), zip(rows["labels"][::each], numbers, strict=True))

    def words(self, logits, args):
        """Return the numbers as text: for GLUE within the task's limits and rounded to 0.001, for own data exact."""
        numbers = self.numbers(logits)
        if not self.task.limits:
            return [f"{value:.9g}" for value in numbers.tolist()]
        return [f"{value:.3f}" for value in numbers.clamp(*self.task.limits).tolist()]


class MultiLabel(Classification):
    """Any number of labels for a text or a pair of texts: logits [B, C], labels [B, C] of 0 and 1."""

    head = MappingProxyType({"problem_type": "multi_label_classification"})
    scores = ("micro_f1", "macro_f1", "micro_f1_at_0.5", "macro_f1_at_0.5", "mean_average_precision")

    def hard_loss(self, logits, labels, across_processes=False):
        """Return binary cross-entropy, mean over labels and examples."""
        values = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        return _mean(values, across_processes)

    def soft_loss(self, student, teacher, batch, args):
        """Return the binary KL of each label at args.temperature, times its square, mean over labels and examples."""
        # A sigmoid is a softmax over the logit and 0.
        both = (torch.stack([view.logits, torch.zeros_like(view.logits)], -1) for view in (student, teacher))
        return losses.soft_logits(*both, temperature=args.temperature, across_processes=student.across_processes)

    def score_set(self, name, logits, splits, args):
        return metrics.label_set_metrics(logits, torch.tensor(splits[name]["labels"])), {}

    def table(self, logits, splits, args):
        """Return a csv with a row an example: place, labels, labels at the set's best threshold, all probabilities."""
        truth, chances = splits["validation"]["labels"], logits.double().sigmoid()
        threshold = metrics.label_set_metrics(logits, torch.tensor(truth))["threshold"]

        def named(flags):
            return self.task.separator.join(itertools.compress(self.task.labels, flags))

        rows = [(named(t), named(p >= threshold), *p.tolist()) for t, p in zip(truth, chances, strict=True)]
        return _csv(splits["validation"]["idx"], ("labels", "prediction", *self.task.labels), rows)

    def words(self, logits, args):
        """Return the labels at the threshold that the dev set chose for the saved model, joined by the separator."""
        record = run_folder.read_record(args.output_dir)
        chosen = logits.double().sigmoid() >= record[run_folder.kept(args)]["metrics"]["threshold"]
        labels = list(map(escaped, self.task.labels))
        return [self.task.separator.join(itertools.compress(labels, row)) for row in chosen.tolist()]


class Similarity(Regression):
    """Similarity of the two texts of a pair: the cosine of their vectors, from an encoder without a head.

    Each text is a row; the two rows of a pair follow each other: logits [2 B, D], the vectors; labels [B], numbers.
    Single texts, to be distilled by relations, have logits [B, D] and no labels.
    """

    auto = transformers.AutoModel
    head = MappingProxyType({})
    headless = True
    scores = ("spearman", "pearson")

    @staticmethod
    def read(args, skipped):
        """See Kind; training texts may be single, a line each in a .txt file, without labels."""
        if len(args.text_columns) != 2:
            raise ValueError(
                f"--kind {args.kind} compares two texts: name both columns, as in --text_columns "
                "sentence1 sentence2 (a .txt file to train on has one text a line)"
            )
        task, splits = data.load_examples(args, skipped, ())
        values = splits["train"]["label"]
        if "text_b" not in splits["train"].column_names or all(value == -1 for value in values):
            values = splits["validation"]["label"]
        return _with_test_set(args, task._replace(limits=(min(values), max(values))), splits)

    def prepare(self, model, args):
        similarity.give_vectors(model, self.pooling(args))

    @staticmethod
    def pooling(args):
        """Return the pooling of the teacher, or, without one, of the encoder that training starts from."""
        return similarity.pooling_of(args.teacher or args.student)

    def tokenize(self, splits, tokenizer, args):
        """See Kind; a row for each text, with --text_prefix before it."""
        found = {}
        for name, split in splits.items():
            self.rows[name] = 2 if "text_b" in split.column_names else 1
            found[name] = data.tokenize(data.texts_apart(split, args.text_prefix), tokenizer, args.max_seq_length)
        if self.rows.get("train") == 1 and "logits" in args.terms:
            raise ValueError(
                "the term logits compares cosines of pairs, but the training file has single texts: leave the term "
                "out, as in --terms ckd logits=0 sentence_pair=1"
            )
        if self.rows.get("train") == 1 and (args.hard_weight or not args.teacher):
            raise ValueError(
                "single texts without labels: pass --teacher and leave out --hard_weight, or train on pairs"
            )
        return found, None

    def labels(self, batch):
        """See Kind; both rows of a pair have its label."""
        return batch["labels"][:: self.rows.get("train", 2)]

    def numbers(self, logits):
        return similarity.cosines(logits)

    def hard_loss(self, logits, labels, across_processes=False):
        """Return the squared error between cosines and labels, scaled from the task's limits to 0..1; mean of pairs."""
        low, high = self.task.limits
        return super().hard_loss(logits, (labels.float() - low) / max(high - low, 1e-12), across_processes)

    def dev_loss(self, logits, dataset):
        return self.hard_loss(logits, torch.tensor(dataset["labels"])[::2]).item()

    @staticmethod
    def read_set(args, path, labels, skipped):
        task, examples = data.read_set(args, path, labels, skipped)
        return task._replace(limits=(min(examples["label"]), max(examples["label"]))), examples

    def score_set(self, name, logits, splits, args):
        labels = torch.tensor(splits[name]["labels"])[::2]
        return metrics.compute_metrics(self.task.metrics, self.numbers(logits)[:, None], labels), {}

    def words(self, logits, args):
        return [f"{value:.6f}" for value in self.numbers(logits).tolist()]

    def submission(self, split, dataset, logits, args):
        return super().submission(split, {"idx": dataset["idx"][::2]}, logits, args)

    def save(self, folder, model, args):
        """Write what sentence-transformers needs to open the folder."""
        source, width = args.teacher or args.student, model.config.hidden_size
        similarity.save_pooling(folder, source, width, self.pooling(args), args.max_seq_length, args.text_prefix)


class Token(Kind):
    """A tag for each word of a sentence; an example is a window.

    logits [B, T, C]; labels [B, T], -100 except at the first piece of a word.
    """

    auto = transformers.AutoModelForTokenClassification
    token_axis = 1
    scores = ("f1", "precision", "recall", "accuracy")  # accuracy is for plain tags, the others for a scheme

    @staticmethod
    def read_set(args, path, labels, skipped):
        return tagging.read_set(args, path, labels, skipped)

    @staticmethod
    def read(args, skipped):
        return _with_test_set(args, *tagging.load_sentences(args, data.TASKS[args.task], skipped))

    def tokenize(self, splits, tokenizer, args):
        """See Kind; keeps the sentences of the windows for scores and predictions."""
        self.sentences, found, said = splits, {}, []
        for name, sentences in splits.items():
            found[name], unknown, cut_off = tagging.windows(sentences, tokenizer, args.max_seq_length)
            if unknown:
                said.append(f"{name}: the tokenizer drops {unknown} words; they become {tokenizer.unk_token}")
            if cut_off:
                said.append(f"{name}: {cut_off} words are longer than --max_seq_length {args.max_seq_length} and cut")
        return found, "; ".join(said)

    def soft_loss(self, student, teacher, batch, args):
        """See Kind; mean over the first pieces of words."""
        return super().soft_loss(student, teacher, batch, args, self.labels(batch) != -100)

    def named(self, rows):
        """Return lists of tag ids as lists of tags."""
        return [[self.task.labels[i] for i in row] for row in rows]

    def tags(self, split, dataset, logits):
        """Return the predicted tag of each word, a list a sentence, from the logits of the split's windows."""
        return self.named(tagging.joined(dataset, logits.argmax(-1), self.sentences[split]["words"]))

    def score_set(self, name, logits, splits, args):
        """See Kind; predictions.conll has the columns of the dev set and one with the predictions."""
        found, sentences = self.tags(name, splits[name], logits), self.sentences[name]
        scored = metrics.tag_metrics if tagging.is_plain(self.task.labels) else metrics.entity_metrics
        result = scored(self.named(sentences["tags"]), found)
        return result, {"predictions.conll": tagging.with_column(sentences, found)}

    def submission(self, split, dataset, logits, args):
        """Return the columns of the test set and one with the predictions, and the number of words."""
        found = self.tags(split, dataset, logits)
        return tagging.with_column(self.sentences[split], found), sum(map(len, found))


class Summary(Token):
    """The sentences of a document that make its summary; an example is a window.

    logits [B, T, 2]; labels [B, T], 0 or 1 at the markers of sentences, -100 elsewhere.
    """

    scores = tuple(metrics.ROUGE)
    usage = summaries.USAGE

    @staticmethod
    def read_set(args, path, labels, skipped):
        return summaries.read_set(args, path, skipped)

    @staticmethod
    def read(args, skipped):
        return _with_test_set(args, *summaries.load_documents(args, data.TASKS[args.task], skipped))

    def tokenize(self, splits, tokenizer, args):
        """See Kind; keeps the documents of the windows and the bounds of the dev set."""
        self.documents, found, said = splits, {}, []
        for name, documents in splits.items():
            found[name] = summaries.windows(documents, tokenizer, args)
            said.append(summaries.cut_line(name, documents, found[name], args.max_seq_length))
        self.bounds = summaries.bounds(splits["validation"], args.summary_sentences)
        said += [f"validation, without a model, {name}: {_shown(scores)}" for name, scores in self.bounds.items()]
        return found, "\n".join(filter(None, said))

    def means(self, rows):
        """Return the mean of each score over rows of `summaries.predictions`."""
        return {name: sum(row[name] for row in rows) / len(rows) for name in self.scores}

    def score_set(self, name, logits, splits, args):
        rows = summaries.predictions(self.documents[name], splits[name], logits, args.summary_sentences)
        return self.means(rows), {"summaries.jsonl": summaries.json_lines(rows)}

    def submission(self, split, dataset, logits, args):
        """Return the predictions of the test set and their number; print their scores if there are references."""
        rows = summaries.predictions(self.documents[split], dataset, logits, args.summary_sentences)
        if scored := [row for row in rows if row["references"]]:
            print(f"{split}: {_shown(self.means(scored))}")
        return summaries.json_lines(rows), len(rows)


class QuestionAnswering(Kind):
    """Start and end of the answer in a context; an example is a window.

    logits [B, 2, T]; labels [B, 2], positions.
    """

    auto = transformers.AutoModelForQuestionAnswering
    token_axis = 2
    custom = False

    @staticmethod
    def read(args, skipped):
        return data.TASKS[args.task], squad.load_questions(args, skipped)

    @staticmethod
    def read_set(args, path, labels, skipped):
        return data.TASKS[args.task], squad.read_squad(path, args.task == "squad_v2", skipped)

    def tokenize(self, splits, tokenizer, args):
        """See Kind; the split `questions` holds the dev set's questions, without windows."""
        windows = {name: squad.windows(split, tokenizer, args) for name, split in splits.items()}
        said = squad.inexact_answers(splits["train"], windows["train"]) if "train" in splits else None
        return windows | {"questions": splits["validation"]}, said

    def labels(self, batch):
        return torch.stack([batch["start_positions"], batch["end_positions"]], 1)

    def logits(self, out, mask):
        """See Kind; -inf at padding."""
        both = torch.stack([out["start_logits"], out["end_logits"]], 1)
        return both.float().masked_fill(mask[:, None] == 0, float("-inf"))

    def score_set(self, name, logits, splits, args):
        """See Kind; predictions.json has the form that the official evaluation reads."""
        questions = splits["questions"]
        found = squad.answers(questions, splits[name], logits, args.n_best_size, args.max_answer_length)
        golds = dict(zip(questions["id"], questions["texts"], strict=True))
        result, texts = metrics.squad_metrics(found, golds, args.task == "squad_v2")
        return result, {"predictions.json": json.dumps(texts, indent=1, ensure_ascii=False) + "\n"}


KINDS = {name: globals()[own] for name, own in data.KINDS.items()}


def balanced(labels, count):
    """Return weights [count] that give each class with labels the same share of the loss; their mean over labels is 1.

    labels: class ids, or lists of them, -100 for none. A class without labels has weight 1.
    """
    found = torch.from_numpy(np.hstack(labels))
    counts = found[found >= 0].bincount(minlength=count)
    return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp(min=1)), 1.0)


def chosen(args):
    """Return the class of the options' kind. Raises ValueError for an unknown --kind or --metrics."""
    name = data.kind_of(args)
    if args.kind and not (name in KINDS and KINDS[name].custom):
        known = ", ".join(name for name, kind in KINDS.items() if kind.custom)
        raise ValueError(f"--kind {name!r} is not one of: {known}")
    for metric in args.metrics:
        if metric not in KINDS[name].scores:
            raise ValueError(f"--metrics {metric!r} is not a metric of {name}: choose {', '.join(KINDS[name].scores)}")
        if args.metrics.count(metric) > 1:
            raise ValueError(f"--metrics names {metric!r} twice: their mean would weigh it double")
    return KINDS[name]


def constant_answer(kind, splits, args):
    """Return (label, headline score) of the best constant prediction on the dev sets; None except in classification."""
    if type(kind) is not Classification:
        return None
    dev = {name: split for name, split in splits.items() if name.startswith("validation")}
    found = Counter(label for split in dev.values() for label in split["labels"])
    scores = {}
    for label in {found.most_common(1)[0][0], 1}:  # F1 scores the second of two labels
        always = F.one_hot(torch.tensor(label), len(kind.task.labels)).float()
        result, _ = kind.score({name: always.expand(len(split), -1) for name, split in dev.items()}, dev, args)
        scores[kind.task.labels[label]] = metrics.score(result, kind.task.metrics)
    return max(scores.items(), key=lambda item: item[1])


def _with_test_set(args, task, splits):
    """Return the task and its splits. Raises ValueError if --do_predict finds no test set."""
    if args.do_predict and not any(split.startswith("test") for split in splits):
        raise ValueError(
            f"--do_predict: {args.data_dir or 'the hub'} has no test set of {args.task}: add it or drop the option"
        )
    return task, splits


def _csv(places, header, rows):
    """Return {"predictions.csv": text} of a table with a row an example."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("index", *header))
    writer.writerows((place, *row) for place, row in zip(places, rows, strict=True))
    return {"predictions.csv": text.getvalue()}


def _shown(scores):
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


def _mean(values, across_processes):
    return losses.masked_mean(values.sum(), values.numel(), across_processes)


@torch.no_grad()
def predict(kind, model, dataset, tokenizer, args, accelerator):
    """Return the logits of each example of a tokenised dataset, in order, on the CPU, the same in all processes.

    [N, ...], padded with -inf to args.max_seq_length along the axis of tokens. Raises TrainingError if the model
    returns a value that is not finite.
    """
    arrays = batching.Arrays(dataset, batching.INPUTS)
    batches = batching.sorted_batches(arrays.lengths(), args.per_device_eval_batch_size)
    found, odd = [], []
    with accelerator.autocast():  # around all batches, since autocast drops its casts of the weights when it ends
        for indices in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = arrays.batch(indices, tokenizer.pad_token_id)
            batch = {k: v.to(accelerator.device) for k, v in batch.items()}
            out = model(**model_outputs.model_inputs(model, batch))
            logits = kind.logits(out, batch["attention_mask"]).float().cpu()
            bad = ~logits.isfinite()
            if kind.token_axis is not None:
                bad = bad.movedim(kind.token_axis, 1)
                bad &= batch["attention_mask"].bool().cpu().view(*bad.shape[:2], *[1] * (bad.ndim - 2))
                missing = args.max_seq_length - logits.shape[kind.token_axis]
                logits = F.pad(logits, (0, 0) * (logits.ndim - 1 - kind.token_axis) + (0, missing), value=float("-inf"))
            odd += itertools.compress(indices, bad.flatten(1).any(1).tolist())
            found.append((indices, logits))
    if accelerator.num_processes > 1:  # whole batches: a pickled row of a tensor carries its whole batch
        found, odd = gather_object(found), gather_object(odd)
    if odd:
        raise run_folder.Diverged(
            f"the model's outputs are not finite (example {min(odd)} of {len(dataset)}), as its weights diverged",
            "lower --learning_rate",
        )
    order = torch.tensor([i for indices, _ in found for i in indices]).argsort()
    return torch.cat([logits for _, logits in found])[order]


def write_predictions(kind, model, splits, tokenizer, args, accelerator):
    """Write the predictions of all test sets into the run folder, over those of an earlier call."""
    names = {f"test{suffix}": name for suffix, name in zip(kind.task.dev or ("",), kind.task.submission, strict=True)}
    for split in (split for split in splits if split.startswith("test")):
        path = Path(args.output_dir) / names[split]
        logits = predict(kind, model, splits[split], tokenizer, args, accelerator)
        if accelerator.is_main_process:
            text, count = kind.submission(split, splits[split], logits, args)
            write_text(path, text)
            print(f"{path}: {count} predictions")


def escaped(label):
    """Return a label for a file of tabs and lines; special characters become Python's escapes.

    These are backslashes, control characters and line separators: a tab becomes \\t, a backslash \\\\, U+2028 \\u2028.
    """
    odd = (c == "\\" or unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in label)
    return "".join(c.encode("unicode_escape").decode() if o else c for c, o in zip(label, odd, strict=True))


def write_text(path, text):
    """Write a text file atomically, making its folder. Raises TrainingError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise run_folder.TrainingError(
            f"{path} cannot be written ({error.strerror}): make room or choose another "
            "--output_dir, then run the same command again"
        ) from error
