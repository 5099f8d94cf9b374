"""Data: GLUE, SQuAD, plain text and the user's own files -> tokenised datasets and batches.

Readers raise ValueError with file and line number for the first broken line; nothing is dropped without being asked.
The command line needs the table and the checks of options: `datasets`, whose import takes seconds, waits for a reader.
"""

import copy
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from encoders.label_names import Labels, in_order, number_of
from tasks import readers
from tasks.hub import load_hub
from tasks.readers import examples_from_rows, line_name, listed, pick

GLUE_HUB = "nyu-mll/glue"


# The kinds of task, by their classes in tasks/kinds.py, which --help shall not wait for.
KINDS = {
    "classification": "Classification",
    "regression": "Regression",
    "multilabel": "MultiLabel",
    "similarity": "Similarity",
    "token": "Token",
    "summary": "Summary",
    "qa": "QuestionAnswering",
}


class Task(NamedTuple):
    """One task: columns as the hub names them, label words in the order of their ids, headline metrics, files."""

    kind: str  # a name of KINDS
    columns: tuple  # text columns on the hub
    labels: tuple  # label words as GLUE's files and submissions spell them, ids count from 0; none: labels are numbers
    metrics: tuple  # headline metrics; the score of a run is their mean
    hub: tuple  # (id, configuration)
    folder: str = ""  # under --data_dir
    file_columns: tuple = ()  # text columns in GLUE's own files, then the label column
    header: tuple = ()  # columns of train and dev files that have no header line
    dev: tuple = ("",)  # suffixes of the dev and test sets
    submission: tuple = ()  # file names of the test predictions
    limits: tuple = ()  # lowest and highest number of a submission
    files: tuple = ()  # of training, dev and test set: the names that each may have; () = the task has no such file
    separator: str = ""  # between the labels of one example; none: it has one label
    names: tuple = ()  # what saved models call the labels; none: as the files do
    sentences: int = 0  # of a summary


YES_NO = ("0", "1")
NLI = ("entailment", "neutral", "contradiction")
ENTAIL = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
MATCHED = ("_matched", "_mismatched")
COLA_HEADER = ("source", "label", "star", "sentence")
UD = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")  # columns of CoNLL-U
ROUGE = ("rouge1", "rouge2", "rougeL")


def bio(*types):
    """Return the tags of the scheme BIO for entities of these types, in the order of their ids."""
    return ("O", *(f"{letter}-{name}" for name in types for letter in "BI"))


TASKS = {
    "cola": Task(
        "classification",
        ("sentence",),
        YES_NO,
        ("matthews_correlation",),
        (GLUE_HUB, "cola"),
        "CoLA",
        ("sentence", "label"),
        COLA_HEADER,
        submission=("CoLA.tsv",),
        names=("unacceptable", "acceptable"),
    ),
    "sst2": Task(
        "classification",
        ("sentence",),
        YES_NO,
        ("accuracy",),
        (GLUE_HUB, "sst2"),
        "SST-2",
        ("sentence", "label"),
        submission=("SST-2.tsv",),
        names=("negative", "positive"),
    ),
    "mrpc": Task(
        "classification",
        PAIR,
        YES_NO,
        ("f1", "accuracy"),
        (GLUE_HUB, "mrpc"),
        "MRPC",
        ("#1 String", "#2 String", "Quality"),
        submission=("MRPC.tsv",),
        names=("not_equivalent", "equivalent"),
    ),
    "stsb": Task(
        "regression",
        PAIR,
        (),
        ("pearson", "spearman"),
        (GLUE_HUB, "stsb"),
        "STS-B",
        PAIR + ("score",),
        submission=("STS-B.tsv",),
        limits=(0.0, 5.0),
    ),
    "qqp": Task(
        "classification",
        ("question1", "question2"),
        YES_NO,
        ("f1", "accuracy"),
        (GLUE_HUB, "qqp"),
        "QQP",
        ("question1", "question2", "is_duplicate"),
        submission=("QQP.tsv",),
        names=("not_duplicate", "duplicate"),
    ),
    "mnli": Task(
        "classification",
        ("premise", "hypothesis"),
        NLI,
        ("accuracy_matched", "accuracy_mismatched"),
        (GLUE_HUB, "mnli"),
        "MNLI",
        PAIR + ("gold_label",),
        dev=MATCHED,
        submission=("MNLI-m.tsv", "MNLI-mm.tsv"),
    ),
    "qnli": Task(
        "classification",
        ("question", "sentence"),
        ENTAIL,
        ("accuracy",),
        (GLUE_HUB, "qnli"),
        "QNLI",
        ("question", "sentence", "label"),
        submission=("QNLI.tsv",),
    ),
    "rte": Task(
        "classification",
        PAIR,
        ENTAIL,
        ("accuracy",),
        (GLUE_HUB, "rte"),
        "RTE",
        PAIR + ("label",),
        submission=("RTE.tsv",),
    ),
    "wnli": Task(
        "classification",
        PAIR,
        YES_NO,
        ("accuracy",),
        (GLUE_HUB, "wnli"),
        "WNLI",
        PAIR + ("label",),
        submission=("WNLI.tsv",),
        names=("not_entailment", "entailment"),
    ),
    # Prediction only, by a model trained on mnli.
    "ax": Task(
        "classification",
        ("premise", "hypothesis"),
        NLI,
        (),
        (GLUE_HUB, "ax"),
        "AX",
        PAIR,
        dev=(),
        submission=("AX.tsv",),
    ),
    "squad": Task("qa", ("question", "context"), (), ("f1", "exact_match"), ("rajpurkar/squad", None)),
    "squad_v2": Task("qa", ("question", "context"), (), ("f1", "exact_match"), ("rajpurkar/squad_v2", None)),
    # columns: words and tags on the hub; labels: those of BIO, made anew for the scheme of the files.
    "conll2003": Task(
        "token",
        ("tokens", "ner_tags"),
        bio("PER", "ORG", "LOC", "MISC"),
        ("f1",),
        ("eriktks/conll2003", None),
        "conll2003",
        submission=("predictions.test.conll",),
        files=(("train.txt", "eng.train"), ("valid.txt", "eng.testa"), ("test.txt", "eng.testb")),
    ),
    "wnut17": Task(
        "token",
        ("tokens", "ner_tags"),
        bio("corporation", "creative-work", "group", "location", "person", "product"),
        ("f1",),
        ("leondz/wnut_17", None),
        "wnut17",
        submission=("predictions.test.conll",),
        files=(("train.conll",), ("dev.conll",), ("test.conll",)),
    ),
    # Its test set is what everybody reports, so it is the dev set.
    "conll2000": Task(
        "token",
        ("tokens", "chunk_tags"),
        bio("ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP"),
        ("f1",),
        ("eriktks/conll2000", None),
        "conll2000",
        files=(("train.txt",), ("test.txt",), ()),
    ),
    "goemotions": Task(
        "multilabel",
        ("text",),
        (),
        ("micro_f1", "macro_f1"),
        ("google-research-datasets/go_emotions", "simplified"),
        "goemotions",
        submission=("predictions.tsv",),
        header=("text", "labels", "id"),
        files=(("train.tsv",), ("dev.tsv",), ("test.tsv",)),
        separator=",",
    ),
    # columns: sentences or text, and summaries. SciTLDR's own labels are not read: docs/summaries.md says why.
    "scitldr": Task(
        "summary",
        ("source", "target"),
        YES_NO,
        ROUGE,
        ("allenai/scitldr", "Abstract"),
        "scitldr",
        submission=("summaries.test.jsonl",),
        names=("other", "summary"),
        sentences=1,
        files=(("train.jsonl",), ("dev.jsonl",), ("test.jsonl",)),
    ),
    "cnn_dailymail": Task(
        "summary",
        ("article", "highlights"),
        YES_NO,
        ("rouge1", "rouge2", "rougeLsum"),
        ("abisee/cnn_dailymail", "3.0.0"),
        submission=("summaries.test.jsonl",),
        names=("other", "summary"),
        sentences=3,
    ),
    "custom": Task("classification", (), (), ("accuracy",), (None, None), submission=("predictions.tsv",)),
}
AX_FILES = ("AX/AX.tsv", "AX/diagnostic.tsv", "diagnostic/diagnostic.tsv")


# --- examples ---------------------------------------------------------------------------------------------------


def _glue_from_files(name, data_dir, skipped):
    task = TASKS[name]
    folder = Path(data_dir) / task.folder
    text, label = task.file_columns[: len(task.columns)], (task.file_columns[len(task.columns) :] or (None,))[0]
    if not Path(data_dir).is_dir():
        raise ValueError(f"--data_dir {str(data_dir)!r} is not a folder")
    splits = {}
    if name == "ax":
        path = next((Path(data_dir) / f for f in AX_FILES if (Path(data_dir) / f).is_file()), folder / "AX.tsv")
        return {"test": examples_from_rows(readers.read_tsv(path, skipped=skipped), path, text, None, task, skipped)}
    for split, suffixes in (("train", ("",)), ("dev", task.dev), ("test", task.dev)):
        for suffix in suffixes:
            path = folder / f"{split}{suffix}.tsv"
            if split == "test" and not path.is_file():
                continue
            has_label = split != "test"
            rows = readers.read_tsv(path, task.header if has_label else (), skipped)
            key = {"dev": "validation"}.get(split, split) + suffix
            splits[key] = examples_from_rows(rows, path, text, label if has_label else None, task, skipped)
    return splits


def _glue_from_hub(name):
    task = TASKS[name]
    splits = {}
    for split, data in load_hub(task.hub).items():
        names = dict(zip(task.columns, ("text_a", "text_b"), strict=False))
        for column, values in (("label", [-1] * len(data)), ("idx", range(len(data)))):
            data = data if column in data.column_names else data.add_column(column, list(values))
        splits[split] = data.rename_columns(names).select_columns([*names.values(), "label", "idx"])
    return splits


def _meaning(word):
    """Return what a label says however it is written: a number, or text without case and outer blanks, accents
    composed.
    """
    value = number_of(word)
    return unicodedata.normalize("NFC", word).strip().casefold() if value is None else value


LIST = re.compile(r"""\s*([\[({]\s*['"]|\[\s*[\d\]])""")  # how a list begins that Python wrote as text


def _no_list(word, where, column):
    """Raise ValueError for a label that looks like a list as Python writes it."""
    if LIST.match(word):
        raise ValueError(
            f"{where}: column {column!r} holds {word!r}, a list that was written as text: write the labels of one "
            "example with commas between them (in pandas df[column].map(','.join)), or lists in JSON lines or "
            "Parquet, and pass --kind multilabel"
        )


def _label_words(rows, path, column, skipped):
    """Return the labels of a training file, in the order of their ids. Raises ValueError where two of them mean the
    same.
    """
    first = {}
    for number, row in rows:
        values = pick(row, (column,), path, number, skipped)
        if values and not values[0].strip():
            skipped.bad(f"{path}, {line_name(number)}: unknown label {values[0]!r}: a blank cell is none")
        elif values:
            _no_list(values[0], f"{path}, {line_name(number)}", column)
            word, line = first.setdefault(_meaning(values[0]), (values[0], number))
            if word != values[0]:
                raise ValueError(
                    f"{path}, {line_name(number)}: the label {values[0]!r} is written {word!r} in "
                    f"{line_name(line)}, which would make two classes of one: write it the same way "
                    "everywhere, or give two classes names that differ by more"
                )
    return in_order(sorted(word for word, _ in first.values()))


def kind_of(args):
    """Return the name of the task's kind, which --kind or --regression may give for custom."""
    return args.kind or ("regression" if args.regression else TASKS[args.task].kind)


def _parts(rows, path, column, separator, skipped):
    """Rows of one label each, made of rows of several."""
    for number, row in rows:
        for cell in pick(row, (column,), path, number, skipped) or ():
            _no_list(cell, f"{path}, {line_name(number)}", column)
            yield from ((number, {column: word.strip()}) for word in cell.split(separator) if word.strip())


def hub_id(args):
    """Return (id, configuration or None) of --hub_dataset."""
    name, _, config = args.hub_dataset.partition(":")
    return name, config or None


def saved_splits(path):
    """Return whether a path is a folder in which `datasets` has saved several splits."""
    return (Path(path) / "dataset_dict.json").is_file()


def hub_splits(args):
    """Return {split: (its name in messages, Dataset)} of --hub_dataset; a test set only where predictions
    are wanted.
    """
    if saved_splits(args.hub_dataset):
        from datasets import load_from_disk

        hub = load_from_disk(args.hub_dataset)
    else:
        hub = load_hub(hub_id(args), "download its files and pass --train_file and --validation_file")
    wanted = {"train": "train", "validation": args.validation_split, "test": "test" if args.do_predict else None}
    if missing := [split for split in filter(None, wanted.values()) if split not in hub]:
        remedy = {"train": "choose another data set", "test": "leave out --do_predict"}.get(
            missing[0], "name the one to evaluate on by --validation_split"
        )
        raise ValueError(f"--hub_dataset {args.hub_dataset}: has no split {missing[0]!r} but {listed(hub)}: {remedy}")
    return {split: (f"{args.hub_dataset} {name}", hub[name]) for split, name in wanted.items() if name}


def label_of(args):
    """Return the column of rows that holds the label: --label_column, or what `readers.columns_joined` makes of
    several.
    """
    return args.label_column if isinstance(args.label_column, str) else " ".join(args.label_column)


def own_rows(args, where, dataset, skipped):
    """Return (rows, names of their labels or ()) of one file of the user's, or of a Dataset."""
    several = not isinstance(args.label_column, str)
    if dataset is None:
        dataset = readers.read_dataset(where)
    names = () if dataset is None else readers.label_names(dataset, label_of(args))
    rows = readers.read_table(where, skipped) if dataset is None else readers.dataset_rows(dataset)
    parted = args.label_separator if kind_of(args) == "multilabel" else ""
    if several:
        names = tuple(args.label_column)
        rows = readers.columns_joined(rows, where, names, parted, skipped)
    elif parted:
        rows = readers.lists_joined(rows, where, args.label_column, parted)
    return rows, names


def own_tables(args, skipped):
    """Return {split: (its name in messages, rows, names of its labels or ())} of the user's own files or
    hub data set.
    """
    if args.hub_dataset:
        sources = hub_splits(args)
    else:
        files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        sources = {split: (path, None) for split, path in files.items() if path}
    return {split: (where, *own_rows(args, where, rows, skipped)) for split, (where, rows) in sources.items()}


def _custom(args, skipped, teachers=None):
    """Splits of the user's own files or hub data set, and the task that they make, with the training set's labels.

    teachers: the labels of the teacher, which are the task's where the training set has none, () where only the dev
    set says them; None: the training set must have labels.
    """
    task = TASKS["custom"]._replace(kind=kind_of(args), columns=tuple(args.text_columns))
    if task.kind == "multilabel":
        task = task._replace(metrics=TASKS["goemotions"].metrics, separator=args.label_separator)
    elif task.kind in ("regression", "similarity"):
        task = task._replace(metrics=("pearson", "spearman") if task.kind == "regression" else ("spearman",))
    if args.hub_dataset and not saved_splits(args.hub_dataset):
        task = task._replace(hub=hub_id(args))
    if args.metrics:
        task = task._replace(metrics=tuple(args.metrics))
    tables, label = own_tables(args, skipped), label_of(args)
    where, rows, labels = tables["train"]
    rows = list(rows)
    labelled = teachers is None or any(label in row for _, row in rows)
    once = readers.Skipped(True) if skipped.allowed else skipped  # broken rows are counted when the examples are read
    if task.kind not in ("regression", "similarity"):
        labels = labels or (() if labelled else teachers)
        if not labels:
            source = rows
            if not labelled:
                where, source, _ = tables["validation"]
                source = list(source)
                tables["validation"] = where, source, ()
            words = _parts(source, where, label, task.separator, once) if task.separator else source
            labels = _label_words(words, where, label, once)
        task = task._replace(labels=tuple(in_order(labels)))
        if len(task.labels) < 2:
            raise ValueError(
                f"{where}: column {label!r} holds only the label {list(task.labels)}; at least two are needed"
            )
    tables["train"] = tables["train"][0], rows, ()
    read = {"train": label if labelled else None, "validation": label, "test": None}
    alone = {"train": ("text",)} if readers.ending(tables["train"][0]) == ".txt" else {}
    return task, {
        split: examples_from_rows(rows, where, alone.get(split, task.columns), read[split], task, skipped)
        for split, (where, rows, _) in tables.items()
    }


def load_examples(args, skipped, teachers=None):
    """Return (task, {split: Dataset}) for args.task from the hub, --data_dir or the custom files.

    Splits are train, validation (mnli: validation_matched, validation_mismatched) and, where present, test. teachers:
    as in `_custom`.
    """
    if args.task == "custom":
        task, splits = _custom(args, skipped, teachers)
    elif args.task == "goemotions":
        task, splits = (_emotions_from_files if args.data_dir else _emotions_from_hub)(args, skipped)
    else:
        task = TASKS[args.task]
        splits = _glue_from_files(args.task, args.data_dir, skipped) if args.data_dir else _glue_from_hub(args.task)
    return task, fewer_examples(splits, args)


def read_set(args, path, names, skipped):
    """Return (task, Dataset) of one labelled file of texts, whose labels have the numbers of a model's `names`.

    GLUE's tasks: a tsv file as GLUE has it; others: a table. Raises ValueError for labels that the model lacks.
    """
    task = TASKS[args.task]._replace(kind=kind_of(args))
    if args.task == "goemotions":
        task = task._replace(labels=tuple(map(str, range(len(names)))))
        examples = examples_from_rows(readers.read_tsv(path, task.header), path, task.columns, "labels", task, skipped)
        return task._replace(labels=tuple(names)), examples
    if args.task != "custom":
        columns = task.file_columns
        rows = readers.read_tsv(path, task.header, skipped)
        task = task._replace(
            metrics=tuple(
                dict.fromkeys(name.removesuffix("_matched").removesuffix("_mismatched") for name in task.metrics)
            )
        )
        return task, examples_from_rows(rows, path, columns[:-1], columns[-1], task, skipped)
    label, rows = label_of(args), list(own_rows(args, path, None, skipped)[0])
    task = task._replace(columns=tuple(args.text_columns))
    if task.kind == "multilabel":
        task = task._replace(metrics=TASKS["goemotions"].metrics, separator=args.label_separator)
    elif task.kind in ("regression", "similarity"):
        task = task._replace(metrics=("pearson", "spearman") if task.kind == "regression" else ("spearman",))
    task = task._replace(metrics=tuple(args.metrics) or task.metrics)
    if task.kind not in ("regression", "similarity"):
        once = readers.Skipped(True) if skipped.allowed else skipped
        words = _parts(rows, path, label, task.separator, once) if task.separator else rows
        task = task._replace(labels=words_of_model(_label_words(words, path, label, once), names, path))
    return task, examples_from_rows(rows, path, task.columns, label, task, skipped)


def words_of_model(words, names, where):
    """For each name of a model's labels the word that a file has for it, the name itself where it has none.

    As label_names.Labels matches them; LABEL_0, LABEL_1, ... are the words 0, 1, ... or, of as many, those in order.
    """
    generic = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    found = [str(i) for i in range(len(names))] if generic else list(names)
    if generic and not set(words) <= set(found) and len(words) == len(names):
        return tuple(words)
    labels, places = Labels(tuple(found), tuple(found), {}), {}
    for word in words:
        place = labels.number(word)
        if place is None or place in places:
            raise ValueError(f"{where}: the label {word!r} is none of the model's, which are {listed(names)}")
        places[place] = word
    return tuple(places.get(i, name) for i, name in enumerate(found))


def fewer_examples(splits, args):
    """Return the splits with no more examples than --max_train_samples and --max_eval_samples say; test sets whole."""
    limits = {split: args.max_train_samples if split == "train" else args.max_eval_samples for split in splits}
    return {split: rows if split.startswith("test") else drawn(rows, limits[split]) for split, rows in splits.items()}


def drawn(rows, count):
    """Return at most that many rows of a Dataset, 0 = all, in their order: the same ones, drawn by chance, every time.

    Files are often sorted by label, so that the first rows would be of one class. More rows include fewer.
    """
    if not 0 < count < len(rows):
        return rows
    import numpy as np  # here: --help shall not wait for it

    # The stream of RandomState never changes, so neither does what a number of examples means.
    return rows.select(np.sort(np.random.RandomState(0).permutation(len(rows))[:count]))


def task_files(name, data_dir):
    """Return {split: path} of a task whose files stand in --data_dir or in the folder of the task's name below it.

    The first name that is there counts, and where the file is needed and none is, the first name; no test set, no path.
    """
    task, folder = TASKS[name], Path(data_dir)
    if not folder.is_dir():
        raise ValueError(f"--data_dir {str(data_dir)!r} is not a folder")
    folder = folder / task.folder if (folder / task.folder).is_dir() else folder
    found = {}
    for split, names in zip(("train", "validation", "test"), task.files, strict=True):
        there = [folder / name for name in names if (folder / name).is_file()]
        if there or (names and split != "test"):
            found[split] = there[0] if there else folder / names[0]
    return found


def _emotions_from_files(args, skipped):
    """GoEmotions as its authors publish it: labels.txt names the ids that the files have, separated by commas."""
    files = task_files(args.task, args.data_dir)
    path = files["train"].with_name("labels.txt")
    names = [text.strip() for _, text in readers.read_lines(path)]
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"{path}: a label's name is blank or comes twice; download it again")
    task, splits = TASKS[args.task]._replace(labels=tuple(names)), {}

    def named(path):
        """(line number, row) of a file, the ids of its labels as their names."""
        for number, row in readers.read_tsv(path, task.header, skipped):
            ids = [word.strip() for word in row["labels"].split(",")]
            bad = [i for i in ids if not (re.fullmatch("[0-9]{1,4}", i) and int(i) < len(names))]
            if not row["text"].strip():
                skipped.bad(f"{path}, line {number}: the text is empty; mend the line or pass --skip_bad_examples")
            elif bad:
                skipped.bad(
                    f"{path}, line {number}: the label id {bad[0]!r} is outside labels.txt, which names 0 to "
                    f"{len(names) - 1}"
                )
            else:
                yield number, row | {"labels": ",".join(str(int(i)) for i in ids)}

    of_ids = task._replace(labels=tuple(map(str, range(len(names)))))
    for split, path in files.items():
        column = None if split == "test" else "labels"
        splits[split] = examples_from_rows(named(path), path, task.columns, column, of_ids, skipped)
    return task, splits


def _emotions_from_hub(args, skipped):
    from datasets import Dataset

    splits, task = {}, TASKS[args.task]
    for split, rows in load_hub(task.hub).items():
        task = task._replace(labels=tuple(rows.features["labels"].feature.names))
        hot = [[int(i in ids) for i in range(len(task.labels))] for ids in rows["labels"]]
        columns = {"text_a": rows["text"], "label": [-1] * len(hot) if split == "test" else hot}
        splits[split] = Dataset.from_dict(columns | {"idx": range(len(hot))})
    return task, splits


def whole_texts(tokenizer):
    """Undo the truncation and padding that a call leaves in a fast tokenizer, where they would be saved with it."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def id_count(tokenizer):
    """Return one more than the largest id; len(tokenizer) is less if the vocabulary has holes, as words given twice
    leave.
    """
    return max(tokenizer.get_vocab().values()) + 1


def with_offsets(tokenizer, *texts, **options):
    """Call a fast tokenizer for pieces with the offsets of the characters that they were made from.

    RoBERTa's post-processor takes a character off the offsets of a piece that begins with a blank, also where the
    pre-tokenizer had put that blank there and the text has a letter. For this call it does not.
    """
    backend = tokenizer.backend_tokenizer
    before = backend.post_processor
    plain = copy.deepcopy(before)
    if plain:  # the attribute trim_offsets is not to be had of one within a Sequence
        plain.__setstate__(before.__getstate__().replace(b'"trim_offsets":true', b'"trim_offsets":false'))
        backend.post_processor = plain
    try:
        return tokenizer(*texts, return_offsets_mapping=True, **options)
    finally:
        if plain:
            backend.post_processor = before


def texts_apart(examples, prefix=""):
    """Return the texts of a Dataset with text_a, (text_b) as rows of their own, those of a pair one after the other."""
    from datasets import Dataset

    names = [name for name in ("text_a", "text_b") if name in examples.column_names]
    pairs = zip(*(examples[name] for name in names), strict=True)
    twice = {name: [value for value in examples[name] for _ in names] for name in ("label", "idx")}
    return Dataset.from_dict({"text_a": [prefix + text for pair in pairs for text in pair], **twice})


def tokenize(examples, tokenizer, max_length):
    """Dataset with text_a, (text_b) -> with input_ids, (token_type_ids), attention_mask, labels, idx."""
    from datasets.fingerprint import generate_random_fingerprint

    pair = "text_b" in examples.column_names

    def encode(rows):
        texts = (rows["text_a"], rows["text_b"]) if pair else (rows["text_a"],)
        return tokenizer(*texts, truncation=True, max_length=max_length)

    # Of rows in memory no file is kept that the fingerprint of `encode`, made of the whole vocabulary, would name.
    name = None if examples.cache_files else generate_random_fingerprint()
    encoded = examples.map(
        encode,
        batched=True,
        remove_columns=["text_a", *(["text_b"] if pair else [])],
        new_fingerprint=name,
        desc="tokenising",
    )
    whole_texts(tokenizer)
    return encoded.rename_column("label", "labels")


# --- options ----------------------------------------------------------------------------------------------------


def check_args(args, training=True):
    """Check the options of the task and its data; raises ValueError. training: whether files to train on are due."""
    if args.data_dir == "":
        raise ValueError("--data_dir is empty: name a folder, or leave it out to read from the hub")
    files = [name for name in ("train_file", "validation_file", "test_file") if getattr(args, name)]
    if args.task != "custom":
        own = ("dataset_name", "hub_dataset", "metrics", "kind", "regression")
        given = [*files, *(name for name in own if getattr(args, name))]
        if TASKS[args.task].kind == "qa":
            given = [name for name in given if name not in ("train_file", "validation_file", "dataset_name")]
        if given:
            raise ValueError(f"--{given[0]} is for --task custom, not {args.task}")
        _check_name(args)
    else:
        _check_own(args, files, training)
    kind = kind_of(args)
    if args.label_separator != "," and kind != "multilabel":
        raise ValueError("--label_separator is for --task custom --kind multilabel")
    if kind == "token":
        _check_words(args)
    elif args.token_column != 1:
        raise ValueError("--token_column is for tasks of words, such as --task custom --kind token")
    if args.text_prefix and kind != "similarity":
        raise ValueError("--text_prefix is for --kind similarity")
    if kind == "summary":
        _check_documents(args)
    elif args.summary_sentences:
        raise ValueError("--summary_sentences is for summaries, such as --task scitldr")
    if TASKS[args.task].kind == "qa":
        _check_questions(args, training)


def _check_words(args):
    """Check the options of words in columns."""
    if args.hub_dataset:  # its columns have names
        if args.token_column != 1 or len(args.text_columns) > 1:
            raise ValueError(
                "of --hub_dataset one column holds the words: name it by --text_columns, and that of "
                "the tags by --label_column"
            )
        return
    files = [path for path in (args.train_file, args.validation_file, args.test_file) if path]
    if args.task == "custom" and (not files or any(map(readers.is_table, files))):
        return  # their columns have names
    if args.text_columns != ["text"]:
        raise ValueError("--text_columns is for texts; the words of a column file are in --token_column")
    for name, value in (("token_column", str(args.token_column)), ("label_column", label_of(args))):
        if value not in ("label", *UD) and not re.fullmatch("[1-9][0-9]{0,3}", value):
            raise ValueError(
                f"--{name} {value!r} must be the number of a column, counted from 1, or one of {', '.join(UD)}"
            )


def _check_documents(args):
    """Check the options of documents, and fill in the number of sentences of a summary."""
    for name, default in (("text_columns", ["text"]), ("label_column", "label")):
        if getattr(args, name) != default:
            raise ValueError(
                f"--{name} is for other kinds: documents have columns sentences, summary and, if you have them, labels"
            )
    if args.task == "cnn_dailymail" and args.data_dir:
        raise ValueError(
            "cnn_dailymail comes from the hub alone: leave out --data_dir, or cut its articles into "
            "sentences for --task custom --kind summary"
        )
    args.summary_sentences = args.summary_sentences or TASKS[args.task].sentences or 3


def _check_questions(args, training):
    """Check the options of questions about contexts."""
    if args.do_predict:
        raise ValueError("--do_predict is for GLUE and custom; squad writes predictions.json of its dev set anyway")
    given = [name for name in ("train_file", "validation_file") if getattr(args, name)]
    if training and (len(given) == 1 or (given and args.data_dir)):
        raise ValueError(
            f"--{given[0]} is the user's own: pass --train_file and --validation_file, both in SQuAD's format, and no "
            "--data_dir"
        )
    if args.max_seq_length - args.max_query_length - 4 <= args.doc_stride:
        raise ValueError(
            f"--max_seq_length {args.max_seq_length} leaves no room for a context beside --max_query_length "
            f"{args.max_query_length} and --doc_stride {args.doc_stride}: try --max_seq_length 384"
        )


def _check_own(args, files, training):
    """Check the options of --task custom, and name the data; files: options of files that were given."""
    if args.regression and args.kind not in (None, "regression"):
        raise ValueError(f"--regression and --kind {args.kind} exclude each other: give one")
    if args.hub_dataset:
        if files:
            raise ValueError(f"--hub_dataset and --{files[0]} exclude each other: give one")
        if not saved_splits(args.hub_dataset) and not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.+-]+)?", args.hub_dataset):
            raise ValueError(
                f"--hub_dataset {args.hub_dataset!r} must be owner/name or owner/name:configuration, such "
                "as fancyzhx/ag_news, or a folder in which datasets has saved several splits"
            )
        names = [re.sub(r"\W+", "-", name).strip("-") for name in (Path(args.hub_dataset).name, args.hub_dataset)]
        args.dataset_name = args.dataset_name or names[names[0] in TASKS]
    elif args.validation_split != "validation":
        raise ValueError("--validation_split is for --hub_dataset; a file is named by --validation_file")
    for name in () if args.hub_dataset or not training else ("train_file", "validation_file"):
        if not getattr(args, name):
            raise ValueError(
                f"--task custom needs --{name}: a csv, tsv, json, jsonl or parquet file, of columns for "
                "words; or --hub_dataset"
            )
    _check_name(args)
    if not 1 <= len(args.text_columns) <= 2:
        raise ValueError(f"--text_columns takes one or two columns, not {len(args.text_columns)}")
    labels = [args.label_column] if isinstance(args.label_column, str) else args.label_column
    if both := [name for name in labels if name in args.text_columns]:
        raise ValueError(f"--label_column {both[0]!r} is among --text_columns: the label would be the input")
    if len(labels) > 1 and (kind_of(args) not in ("classification", "multilabel") or len({*labels}) < len(labels)):
        raise ValueError(
            f"--label_column {' '.join(labels)}: several columns of 0 and 1, each named once, are for --kind "
            "classification and multilabel"
        )


def _check_name(args):
    """Raise ValueError for a --dataset_name that cannot name a folder of its own."""
    if args.dataset_name and (args.dataset_name in TASKS or not re.fullmatch(r"[\w+-][\w.+-]*", args.dataset_name)):
        raise ValueError(
            f"--dataset_name {args.dataset_name!r} becomes a folder beside those of {', '.join(TASKS)}: "
            "use another name, of letters, digits and . _ + -"
        )
