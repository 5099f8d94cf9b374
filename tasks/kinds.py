"""Kinds of tasks, a class each: the head, what its logits are, its losses, predictions and scores.

A new kind is one class here and one line of `data.KINDS`; a new task of a known kind is one line of `data.TASKS`.
"""

import contextlib
import csv
import io
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
from accelerate.utils import gather_object
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import data
import losses
import metrics
import models
from encoders import model_outputs
from engine import run_folder
from tasks import batching, similarity, squad, summaries, tagging

ANSWERS = [name for name in batching.TRAINING if name not in batching.INPUTS]  # columns that hold labels


class Kind:
    """What one kind of task means to reading, training, scoring and predicting; a subclass names what differs.

    auto: transformers' class of the head. head: what the model's configuration says of it beside the labels.
    token_axis: the axis of the logits that counts tokens; None where a row is an example. custom: whether the user's
    own files may be of this kind, by --kind. scores: names that --metrics may choose as headline metrics.
    """

    auto: type
    head: Mapping = MappingProxyType({})
    token_axis: int | None = None
    custom = True
    scores: tuple = ()
    headless = False  # whether the encoder alone is the model, so that nothing has to train a head
    bounds: Mapping = MappingProxyType({})  # scores of the dev set that need no model, by name, for the record
    usage = ""  # lines of the model card
    class_weights = None  # [C], of `hard_loss`: --class_weights
    held_out = None  # another Kind of the same task, with `splits` of its own that choose the best model
    theirs = None  # ({split: Dataset tokenised for the teacher}, its tokenizer), where it is not the student's
    described = None  # what `run_folder.describe_data` says of the examples, in the main process

    def __init__(self, task):
        self.task = task
        self.rows = {}  # of each split, how many rows of the tokenised Dataset make an example; 1 where it is not named

    @staticmethod
    def read(args, skipped):
        """(task, {split: examples}) from files or the hub; `skipped` is a readers.Skipped. Raises ValueError."""
        raise NotImplementedError

    def tokenize(self, splits, tokenizer, args):
        """({split: tokenised Dataset}, a line to print or None); training examples have the columns of `labels`."""
        raise NotImplementedError

    def prepare(self, model, args):
        """Make a loaded model return what this kind reads, where that is more than its own forward gives."""

    def save(self, folder, model, args):
        """Write what goes with a saved model beside its own files."""

    def labels(self, batch):
        """Return the true labels of a batch, a row an example; whole numbers are classes, -100 where nothing is to be
        said.
        """
        return batch["labels"]

    def logits(self, out, mask):
        """Logits of a model's output, a row an example; what is compared with the teacher and scored."""
        return out["logits"]

    def hard_loss(self, logits, labels, across_processes=False):
        """Loss on the true labels, times the weights of their classes, mean over those that are not -100; scalar.

        across_processes: as in `relations.masked_mean`.
        """
        if self.class_weights is not None:  # a copy where a dev set's logits are on another device than a batch's
            self.class_weights = self.class_weights.to(logits.device)
        rows, labels = logits.float().flatten(0, -2), labels.flatten()
        values = F.cross_entropy(rows, labels, self.class_weights, reduction="none", ignore_index=-100)
        return losses.masked_mean(values.sum(), (labels != -100).sum(), across_processes)

    def soft_loss(self, student, teacher, batch, args):
        """Return the term `logits` between two ModelViews: KL at args.temperature, mean over rows; scalar."""
        return losses.soft_logits(
            student.logits, teacher.logits, temperature=args.temperature, across_processes=student.across_processes
        )

    def evaluate(self, model, splits, tokenizer, args, accelerator):
        """Return ({metric: float} on the dev sets, {file name: text} of predictions that are kept with the model).

        The metric `loss` is `dev_loss`.
        """
        names = [name for name in splits if name.startswith("validation")]
        logits = {name: predict(self, model, splits[name], tokenizer, args, accelerator) for name in names}
        return self.score(logits, splits, args)

    def score(self, logits, splits, args):
        """What `evaluate` returns, from {name of a dev set: its logits}."""
        raise NotImplementedError

    @staticmethod
    def read_set(args, path, labels, skipped):
        """Return (task, examples) of one labelled file; labels: names of a model's labels, whose numbers it takes."""
        return data.read_set(args, path, labels, skipped)

    def table(self, logits, splits, args):
        """Return {file name: text} of labels and predictions of the split validation beside those of `score`."""
        return {}

    def dev_loss(self, logits, dataset):
        """`hard_loss` over a whole tokenised dev set: logits [N, ...] as `predict` gives them; a float."""
        batch = batching.Arrays(dataset, ANSWERS).batch(range(len(dataset)), 0)
        labels = self.labels(batch)
        # Where every token has a label, the logits go on in padding to --max_seq_length.
        return self.hard_loss(logits[:, : labels.shape[1]] if self.token_axis == 1 else logits, labels).item()

    def words(self, logits, args):
        """Predictions of the test set as they stand in a submission, from logits [N, C]."""
        raise NotImplementedError

    def submission(self, split, dataset, logits, args):
        """(text of the file of predictions for a test set, their number); by default a line `index<tab>prediction`.

        index: the example's place in its file, from 0, skipped ones counted.
        """
        words = self.words(logits, args)
        lines = "".join(f"{i}\t{word}\n" for i, word in zip(dataset["idx"], words, strict=True))
        return "index\tprediction\n" + lines, len(words)


class Classification(Kind):
    """One of some labels for a text or a pair of texts: logits [B, C], labels [B]."""

    auto = AutoModelForSequenceClassification
    scores = ("accuracy", "balanced_accuracy", "f1", "macro_f1", "weighted_f1", "matthews_correlation", "cohen_kappa")

    @staticmethod
    def read(args, skipped):
        """See Kind; the user's own text needs no labels where none are learned from, but the dev set does."""
        teachers = None
        if args.task == "custom" and args.teacher and not args.hard_weight:
            names = models.load_config(args.teacher, "--teacher").id2label
            generic = all(re.fullmatch(r"LABEL_\d+", word) for word in names.values())
            given = {theirs: ours for theirs, _, ours in (word.rpartition("=") for word in args.label_map or ())}
            generic &= not given
            teachers = () if generic else tuple(given.get(names[i], names[i]) for i in sorted(names))
        task, splits = data.load_examples(args, skipped, teachers)
        if "f1" in args.metrics and len(task.labels) > 2:
            raise ValueError(
                f"--metrics f1 is that of the second of two labels, and there are {len(task.labels)}: "
                "choose macro_f1 or weighted_f1"
            )
        return _with_test_set(args, task, splits)

    def tokenize(self, splits, tokenizer, args):
        """See Kind."""
        return {name: data.tokenize(split, tokenizer, args.max_seq_length) for name, split in splits.items()}, None

    def score(self, logits, splits, args):
        """See Kind; the loss is the mean over the examples of all dev sets."""
        result, found = {}, []
        for split, values in logits.items():
            names = [name for name in self.task.metrics if name.endswith(split.removeprefix("validation"))]
            result |= metrics.compute_metrics(names, values, torch.tensor(splits[split]["labels"]))
            found.append((self.dev_loss(values, splits[split]), len(values)))
        return result | {"loss": sum(loss * n for loss, n in found) / sum(n for _, n in found)}, {}

    def table(self, logits, splits, args):
        """Return a csv row an example: its place in the file, label, prediction, probability of each label."""
        words, chances = self.task.labels, logits.double().softmax(-1).tolist()
        rows = [
            (words[label], words[max(range(len(row)), key=row.__getitem__)], *row)
            for label, row in zip(splits["validation"]["labels"], chances, strict=True)
        ]
        return _csv(splits["validation"]["idx"], ("label", "prediction", *words), rows)

    def words(self, logits, args):
        """Labels, escaped: a backslash, control characters and line separators as in a Python string."""
        return [escaped(self.task.labels[i]) for i in logits.argmax(-1).tolist()]


class Regression(Classification):
    """A number for a text or a pair of texts: logits [B, 1], labels [B]."""

    head = MappingProxyType({"num_labels": 1, "problem_type": "regression"})
    scores = ("pearson", "spearman", "r2")

    def hard_loss(self, logits, labels, across_processes=False):
        """Squared error, mean over examples."""
        return _mean((logits.float().squeeze(-1) - labels.float()).square(), across_processes)

    def soft_loss(self, student, teacher, batch, args):
        """Squared error between the models: a distribution over one class says nothing."""
        errors = (student.logits.float() - teacher.logits.detach().float()).square()
        return _mean(errors, student.across_processes)

    def table(self, logits, splits, args):
        """Return a csv row an example: its place in the file, label and predicted number."""
        rows = zip(splits["validation"]["labels"], logits.squeeze(-1).tolist(), strict=True)
        return _csv(splits["validation"]["idx"], ("label", "prediction"), rows)

    def words(self, logits, args):
        """Numbers with three digits, within the task's limits where it has some."""
        values = logits.squeeze(-1)
        return [f"{value:.3f}" for value in (values.clamp(*self.task.limits) if self.task.limits else values).tolist()]


class MultiLabel(Classification):
    """Any number of some labels for a text or a pair of texts: logits [B, C], labels [B, C] of 0 and 1."""

    head = MappingProxyType({"problem_type": "multi_label_classification"})
    scores = ("micro_f1", "macro_f1", "micro_f1_at_0.5", "macro_f1_at_0.5", "mean_average_precision")

    def hard_loss(self, logits, labels, across_processes=False):
        """Binary cross-entropy, mean over labels and examples."""
        values = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        return _mean(values, across_processes)

    def soft_loss(self, student, teacher, batch, args):
        """Binary KL of every label at args.temperature, times its square, mean over labels and examples."""
        # A sigmoid is a softmax over the logit and 0.
        both = (torch.stack([view.logits, torch.zeros_like(view.logits)], -1) for view in (student, teacher))
        return losses.soft_logits(*both, temperature=args.temperature, across_processes=student.across_processes)

    def score(self, logits, splits, args):
        """See Kind."""
        logits = logits["validation"]
        result = metrics.label_set_metrics(logits, torch.tensor(splits["validation"]["labels"]))
        return result | {"loss": self.dev_loss(logits, splits["validation"])}, {}

    def table(self, logits, splits, args):
        """Return a csv row an example: its place, labels, those predicted at the set's own threshold, all
        probabilities.
        """
        truth, chances = splits["validation"]["labels"], logits.double().sigmoid()
        threshold = metrics.label_set_metrics(logits, torch.tensor(truth))["threshold"]

        def named(flags):
            return self.task.separator.join(w for w, on in zip(self.task.labels, flags, strict=True) if on)

        rows = [
            (named(t), named([p >= threshold for p in row]), *row)
            for t, row in zip(truth, chances.tolist(), strict=True)
        ]
        return _csv(splits["validation"]["idx"], ("labels", "prediction", *self.task.labels), rows)

    def words(self, logits, args):
        """Return the labels at the threshold that the dev set chose for the saved model, with the task's separator
        between.
        """
        record = run_folder.read_record(args.output_dir)
        chosen = logits.double().sigmoid() >= record[run_folder.kept(args)]["metrics"]["threshold"]
        return [
            self.task.separator.join(escaped(self.task.labels[i]) for i in row.nonzero().flatten().tolist())
            for row in chosen
        ]


class Similarity(Regression):
    """How like each other the two texts of a pair are: the cosine of their vectors, by an encoder without any head.

    A text is a row of its own, and the two rows of a pair stand one after the other: logits [2 B, D], the vectors;
    labels [B], numbers. Texts alone, to be distilled on by relations, are logits [B, D] and have no labels.
    """

    auto = AutoModel
    head = MappingProxyType({})
    headless = True
    scores = ("spearman", "pearson")

    @staticmethod
    def read(args, skipped):
        """See Kind; the training texts may stand alone, a line each in a .txt file, and then have no label."""
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
        """See Kind."""
        similarity.give_vectors(model, self.pooling(args))

    @staticmethod
    def pooling(args):
        """Return how the teacher, or without one the encoder that training begins with, pools."""
        return similarity.pooling_of(args.teacher or args.student)

    def tokenize(self, splits, tokenizer, args):
        """See Kind; a row for each text, behind --text_prefix."""
        found = {}
        for name, split in splits.items():
            self.rows[name] = 2 if "text_b" in split.column_names else 1
            found[name] = data.tokenize(data.texts_apart(split, args.text_prefix), tokenizer, args.max_seq_length)
        if self.rows.get("train") == 1 and "logits" in args.terms:
            raise ValueError(
                "the term logits compares cosines of pairs, and the training texts stand alone: leave it "
                "out, as in --terms ckd logits=0 sentence_pair=1"
            )
        if self.rows.get("train") == 1 and (args.hard_weight or not args.teacher):
            raise ValueError(
                "the training texts stand alone and have no labels to learn from: pass --teacher and "
                "leave out --hard_weight, or train on pairs"
            )
        return found, None

    def labels(self, batch):
        """See Kind; a pair has its label on both rows."""
        return batch["labels"][:: self.rows.get("train", 2)]

    def hard_loss(self, logits, labels, across_processes=False):
        """Squared error between cosines and labels, which are brought to 0 to 1 by the task's limits; mean of pairs."""
        low, high = self.task.limits
        wanted = (labels.float() - low) / max(high - low, 1e-12)
        return _mean((similarity.cosines(logits) - wanted).square(), across_processes)

    def soft_loss(self, student, teacher, batch, args):
        """Squared error between the cosines of both models, mean of pairs."""
        errors = similarity.cosines(student.logits) - similarity.cosines(teacher.logits.detach())
        return _mean(errors.square(), student.across_processes)

    def dev_loss(self, logits, dataset):
        """See Kind."""
        return self.hard_loss(logits, torch.tensor(dataset["labels"])[::2]).item()

    @staticmethod
    def read_set(args, path, labels, skipped):
        """See Kind."""
        task, examples = data.read_set(args, path, labels, skipped)
        return task._replace(limits=(min(examples["label"]), max(examples["label"]))), examples

    def table(self, logits, splits, args):
        """Return a csv row a pair: its place in the file, label and cosine."""
        found = splits["validation"]
        rows = zip(found["labels"][::2], similarity.cosines(logits).tolist(), strict=True)
        return _csv(found["idx"][::2], ("label", "prediction"), rows)

    def score(self, logits, splits, args):
        """See Kind."""
        logits = logits["validation"]
        labels = torch.tensor(splits["validation"]["labels"])[::2]
        result = metrics.compute_metrics(self.task.metrics, similarity.cosines(logits)[:, None], labels)
        return result | {"loss": self.dev_loss(logits, splits["validation"])}, {}

    def words(self, logits, args):
        """Cosines with six digits."""
        return [f"{value:.6f}" for value in similarity.cosines(logits).tolist()]

    def submission(self, split, dataset, logits, args):
        """See Kind."""
        return super().submission(split, {"idx": dataset["idx"][::2]}, logits, args)

    def save(self, folder, model, args):
        """See Kind; sentence-transformers opens the folder too."""
        similarity.save_pooling(
            folder,
            args.teacher or args.student,
            model.config.hidden_size,
            self.pooling(args),
            args.max_seq_length,
            args.text_prefix,
        )


class Token(Kind):
    """A tag for each word of a sentence: logits [B, T, C], labels [B, T], -100 but for first pieces; a window an
    example."""

    auto = AutoModelForTokenClassification
    token_axis = 1
    scores = ("f1", "precision", "recall", "accuracy")  # the last of plain tags, the others of a scheme's

    @staticmethod
    def read_set(args, path, labels, skipped):
        """See Kind."""
        return tagging.read_set(args, path, labels, skipped)

    @staticmethod
    def read(args, skipped):
        """See Kind."""
        return _with_test_set(args, *tagging.load_sentences(args, data.TASKS[args.task], skipped))

    def tokenize(self, splits, tokenizer, args):
        """Windows of the sentences, which are kept beside them for the scores and predictions."""
        self.sentences, found, said = splits, {}, []
        for name, sentences in splits.items():
            found[name], unknown, cut_off = tagging.windows(sentences, tokenizer, args.max_seq_length)
            said += [
                f"{name}: {unknown} words of which the tokenizer makes nothing stand as {tokenizer.unk_token}"
            ] * bool(unknown)
            said += [
                f"{name}: {cut_off} words longer than --max_seq_length {args.max_seq_length} lose their end"
            ] * bool(cut_off)
        return found, "; ".join(said)

    def soft_loss(self, student, teacher, batch, args):
        """See Kind; over the first pieces of words."""
        return losses.soft_logits(
            student.logits,
            teacher.logits,
            temperature=args.temperature,
            mask=self.labels(batch) != -100,
            across_processes=student.across_processes,
        )

    def tags(self, split, dataset, logits):
        """Return the predicted tag of every word, a list for each sentence, from the logits of the split's windows."""
        found = tagging.joined(dataset, logits.argmax(-1), self.sentences[split])
        return [[self.task.labels[i] for i in row] for row in found]

    def score(self, logits, splits, args):
        """See Kind; predictions.conll has the columns of the dev set and one of predictions."""
        logits = logits["validation"]
        found, sentences = self.tags("validation", splits["validation"], logits), self.sentences["validation"]
        golds = [[self.task.labels[i] for i in row] for row in sentences["tags"]]
        scored = metrics.tag_metrics if tagging.is_plain(self.task.labels) else metrics.entity_metrics
        result = scored(golds, found) | {"loss": self.dev_loss(logits, splits["validation"])}
        return result, {"predictions.conll": tagging.with_column(sentences, found)}

    def submission(self, split, dataset, logits, args):
        """Return the columns of the test set and one of predictions."""
        found = self.tags(split, dataset, logits)
        return tagging.with_column(self.sentences[split], found), sum(map(len, found))


class Summary(Token):
    """The sentences of a document that make its summary: logits [B, T, 2], labels [B, T] of 0 and 1 at the markers of
    sentences, -100 elsewhere; a window an example."""

    scores = tuple(metrics.ROUGE)
    usage = summaries.USAGE

    @staticmethod
    def read_set(args, path, labels, skipped):
        """See Kind."""
        return summaries.read_set(args, path, skipped)

    @staticmethod
    def read(args, skipped):
        """See Kind."""
        return _with_test_set(args, *summaries.load_documents(args, data.TASKS[args.task], skipped))

    def tokenize(self, splits, tokenizer, args):
        """Windows of the documents, which are kept beside them; the dev set's bounds."""
        self.documents, found, said = splits, {}, []
        for name, documents in splits.items():
            found[name] = summaries.windows(documents, tokenizer, args)
            said.append(summaries.cut_line(name, documents, found[name], args.max_seq_length))
        self.bounds = summaries.bounds(splits["validation"], args.summary_sentences)
        said += [
            f"validation, without a model, {name}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items())
            for name, scores in self.bounds.items()
        ]
        return found, "\n".join(filter(None, said))

    def score(self, logits, splits, args):
        """See Kind."""
        logits = logits["validation"]
        rows = summaries.predictions(self.documents["validation"], splits["validation"], logits, args.summary_sentences)
        result = {name: sum(row[name] for row in rows) / len(rows) for name in self.scores}
        result |= {"loss": self.dev_loss(logits, splits["validation"])}
        return result, {"summaries.jsonl": summaries.json_lines(rows)}

    def submission(self, split, dataset, logits, args):
        """Return the predictions of the test set, whose scores are printed where it has references."""
        rows = summaries.predictions(self.documents[split], dataset, logits, args.summary_sentences)
        if scored := [row for row in rows if row["references"]]:
            means = {name: sum(row[name] for row in scored) / len(scored) for name in self.scores}
            print(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in means.items()))
        return summaries.json_lines(rows), len(rows)


class QuestionAnswering(Kind):
    """Start and end of the answer in a context: logits [B, 2, T], labels [B, 2] (positions); a window an example."""

    auto = AutoModelForQuestionAnswering
    token_axis = 2
    custom = False

    @staticmethod
    def read(args, skipped):
        """See Kind."""
        return data.TASKS[args.task], squad.load_questions(args, skipped)

    @staticmethod
    def read_set(args, path, labels, skipped):
        """See Kind; a file in SQuAD's format."""
        return data.TASKS[args.task], squad.read_squad(path, args.task == "squad_v2", skipped)

    def tokenize(self, splits, tokenizer, args):
        """Windows of the questions; the dev set's questions themselves are one split more."""
        windows = {name: squad.windows(split, tokenizer, args) for name, split in splits.items()}
        said = squad.inexact_answers(splits["train"], windows["train"]) if "train" in splits else None
        return windows | {"questions": splits["validation"]}, said

    def labels(self, batch):
        """See Kind."""
        return torch.stack([batch["start_positions"], batch["end_positions"]], 1)

    def logits(self, out, mask):
        """See Kind; never over padding."""
        both = torch.stack([out["start_logits"], out["end_logits"]], 1)
        return both.float().masked_fill(mask[:, None] == 0, float("-inf"))

    def score(self, logits, splits, args):
        """See Kind; predictions.json as the official evaluation reads it."""
        logits = logits["validation"]
        questions = splits["questions"]
        found = squad.answers(questions, splits["validation"], logits, args.n_best_size, args.max_answer_length)
        golds = dict(zip(questions["id"], questions["texts"], strict=True))
        result, texts = metrics.squad_metrics(found, golds, args.task == "squad_v2")
        result |= {"loss": self.dev_loss(logits, splits["validation"])}
        return result, {"predictions.json": json.dumps(texts, indent=1, ensure_ascii=False) + "\n"}


KINDS = {name: globals()[own] for name, own in data.KINDS.items()}


def balanced(labels, count):
    """Weights [count] by which all classes that there are have one share of the loss, 1 on average over the labels.

    labels: numbers of classes, or lists of them, -100 where nothing is to be said. A class without labels has 1.
    """
    found = torch.from_numpy(np.hstack(labels))
    counts = found[found >= 0].bincount(minlength=count)
    return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp(min=1)), 1.0)


def chosen(args):
    """Return the class of the kind that the options name. Raises ValueError for a --kind that there is not."""
    name = data.kind_of(args)
    if args.kind and not (name in KINDS and KINDS[name].custom):
        known = ", ".join(name for name, kind in KINDS.items() if kind.custom)
        raise ValueError(f"--kind {name!r} is none of: {known}")
    for metric in args.metrics:
        if metric not in KINDS[name].scores:
            raise ValueError(f"--metrics {metric!r} is none of those of {name}: {', '.join(KINDS[name].scores)}")
        if args.metrics.count(metric) > 1:
            raise ValueError(f"--metrics names {metric!r} twice: their mean would weigh it double")
    return KINDS[name]


def constant_answer(kind, splits, args):
    """Return (label, headline score) of the best answer that is the same for all dev examples; None but in
    classification.
    """
    if type(kind) is not Classification:
        return None
    dev = {name: split for name, split in splits.items() if name.startswith("validation")}
    found = Counter(label for split in dev.values() for label in split["labels"])
    scores = {}
    for label in {found.most_common(1)[0][0], 1}:  # the second of two labels is that of F1
        always = F.one_hot(torch.tensor(label), len(kind.task.labels)).float()
        result, _ = kind.score({name: always.expand(len(split), -1) for name, split in dev.items()}, dev, args)
        scores[kind.task.labels[label]] = metrics.score(result, kind.task.metrics)
    return max(scores.items(), key=lambda item: item[1])


def _with_test_set(args, task, splits):
    """Return the task and its splits. Raises ValueError if predictions are wanted and there is no test set."""
    if args.do_predict and not any(split.startswith("test") for split in splits):
        raise ValueError(
            f"--do_predict: {args.data_dir or 'the hub'} has no test set of {args.task}: add its files or "
            "drop --do_predict"
        )
    return task, splits


def _csv(places, header, rows):
    """Return {"predictions.csv": text} of a table with a row an example."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("index", *header))
    writer.writerows((place, *row) for place, row in zip(places, rows, strict=True))
    return {"predictions.csv": text.getvalue()}


def _mean(values, across_processes):
    return losses.masked_mean(values.sum(), values.numel(), across_processes)


@torch.no_grad()
def predict(kind, model, dataset, tokenizer, args, accelerator):
    """Logits for every example of a tokenised dataset, in its order, on the CPU, the same in all processes.

    [N, ...], padded with -inf to args.max_seq_length where the kind has an axis of tokens. Raises TrainingError if the
    model says something that is not finite.
    """
    arrays = batching.Arrays(dataset, batching.INPUTS)
    batches = batching.sorted_batches(arrays.lengths(), args.per_device_eval_batch_size)
    found, odd = [], []
    with accelerator.autocast():  # around all batches: at its end the casts of the weights are gone
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
            odd += [i for i, one in zip(indices, bad.flatten(1).any(1).tolist(), strict=True) if one]
            found.append((indices, logits))
    if accelerator.num_processes > 1:  # whole batches: a row alone would be sent with all of its batch
        found, odd = gather_object(found), gather_object(odd)
    if odd:
        raise run_folder.Diverged(
            f"the model's outputs are not finite (example {min(odd)} of {len(dataset)} that it was asked for), as its "
            "weights diverged",
            "lower --learning_rate",
        )
    order = torch.tensor([i for indices, _ in found for i in indices]).argsort()
    return torch.cat([logits for _, logits in found])[order]


def write_predictions(kind, model, splits, tokenizer, args, accelerator):
    """Write the predictions of the test sets that there are into the run folder, over those of an earlier call."""
    names = {f"test{suffix}": name for suffix, name in zip(kind.task.dev or ("",), kind.task.submission, strict=True)}
    for split in (split for split in splits if split.startswith("test")):
        name = names[split]
        logits = predict(kind, model, splits[split], tokenizer, args, accelerator)
        if accelerator.is_main_process:
            text, count = kind.submission(split, splits[split], logits, args)
            write_text(Path(args.output_dir) / name, text)
            print(f"{Path(args.output_dir) / name}: {count} predictions")


def escaped(label):
    """A label for a file of tabs and lines: backslashes, control characters and line separators as in Python's strings.

    A tab becomes \\t, a newline \\n, a backslash \\\\, U+2028 \\u2028; everything else stays as it is.
    """
    odd = (c == "\\" or unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in label)
    return "".join(c.encode("unicode_escape").decode() if o else c for c, o in zip(label, odd, strict=True))


def write_text(path, text):
    """Write a text file so that it is either the old or the new one, whole, making its folder; or TrainingError."""
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
