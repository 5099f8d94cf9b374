"""The table of tasks, readers of GLUE and of the user's own files, tokenisation, and the checks of data options.

Readers raise ValueError with file and line number for the first broken line; they drop nothing unless asked to.
`datasets` takes seconds to import, so functions import it where they need it: --help stays fast.
"""

import copy
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from encoders.label_names import Labels, in_order, number_of
from tasks import readers
from tasks.hub import load_hub
from tasks.readers import examples_from_rows, line_name, listed, pick

# Kinds of task -> their classes in tasks/kinds.py, by name, since that module takes seconds to import.
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
    """Describe one task: columns as the hub names them, labels in the order of their ids, metrics, files."""

    kind: str  # a name of KINDS
    columns: tuple  # text columns on the hub
    labels: tuple  # as GLUE's files and submissions spell them, in the order of their ids; (): labels are numbers
    metrics: tuple  # headline metrics; the score of a run is their mean
    hub: tuple  # (id, configuration)
    folder: str = ""  # under --data_dir
    file_columns: tuple = ()  # text columns in GLUE's own files, then the label column
    header: tuple = ()  # columns of train and dev files without a header line
    dev: tuple = ("",)  # suffixes of the dev and test sets
    submission: tuple = ()  # file names of the test predictions
    limits: tuple = ()  # lowest and highest number of a submission
    files: tuple = ()  # possible file names of the training, dev and test set; (): no such file
    separator: str = ""  # between the labels of one example; "": an example has one label
    names: tuple = ()  # what saved models call the labels; (): the same as `labels`
    sentences: int = 0  # in a summary


YES_NO = ("0", "1")
NLI = ("entailment", "neutral", "contradiction")
ENTAIL = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
UD = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")  # columns of CoNLL-U
ROUGE = ("rouge1", "rouge2", "rougeL")


def bio(*types):
    """Return the BIO tags of these entity types, in the order of their ids."""
    return ("O", *(f"{letter}-{name}" for name in types for letter in "BI"))


def data_folder(data_dir):
    """Return --data_dir as a Path. Raises ValueError if it is not a folder."""
    if not Path(data_dir).is_dir():
        raise ValueError(f"--data_dir {str(data_dir)!r} is not a folder")
    return Path(data_dir)


def _glue(name, folder, columns, labels, metrics, file_columns, kind="classification", **others):
    """Return a task of GLUE; its predictions are submitted as FOLDER.tsv."""
    others = {"submission": (f"{folder}.tsv",)} | others
    return Task(kind, columns, labels, metrics, ("nyu-mll/glue", name), folder, file_columns, **others)


# fmt: off
TASKS = {
    "cola": _glue("cola", "CoLA", ("sentence",), YES_NO, ("matthews_correlation",), ("sentence", "label"),
                  header=("source", "label", "star", "sentence"), names=("unacceptable", "acceptable")),
    "sst2": _glue("sst2", "SST-2", ("sentence",), YES_NO, ("accuracy",), ("sentence", "label"),
                  names=("negative", "positive")),
    "mrpc": _glue("mrpc", "MRPC", PAIR, YES_NO, ("f1", "accuracy"), ("#1 String", "#2 String", "Quality"),
                  names=("not_equivalent", "equivalent")),
    "stsb": _glue("stsb", "STS-B", PAIR, (), ("pearson", "spearman"), (*PAIR, "score"),
                  kind="regression", limits=(0.0, 5.0)),
    "qqp": _glue("qqp", "QQP", QUESTIONS, YES_NO, ("f1", "accuracy"), (*QUESTIONS, "is_duplicate"),
                 names=("not_duplicate", "duplicate")),
    "mnli": _glue("mnli", "MNLI", ("premise", "hypothesis"), NLI, ("accuracy_matched", "accuracy_mismatched"),
                  (*PAIR, "gold_label"), dev=("_matched", "_mismatched"), submission=("MNLI-m.tsv", "MNLI-mm.tsv")),
    "qnli": _glue("qnli", "QNLI", ("question", "sentence"), ENTAIL, ("accuracy",), ("question", "sentence", "label")),
    "rte": _glue("rte", "RTE", PAIR, ENTAIL, ("accuracy",), (*PAIR, "label")),
    "wnli": _glue("wnli", "WNLI", PAIR, YES_NO, ("accuracy",), (*PAIR, "label"),
                  names=("not_entailment", "entailment")),
    # A model trained on mnli predicts it; it has a test set only.
    "ax": _glue("ax", "AX", ("premise", "hypothesis"), NLI, (), PAIR, dev=()),
    "squad": Task("qa", ("question", "context"), (), ("f1", "exact_match"), ("rajpurkar/squad", None)),
    "squad_v2": Task("qa", ("question", "context"), (), ("f1", "exact_match"), ("rajpurkar/squad_v2", None)),
    # columns: words and tags on the hub. labels: the tags in BIO; files in another scheme get tags of their own.
    "conll2003": Task("token", ("tokens", "ner_tags"), bio("PER", "ORG", "LOC", "MISC"), ("f1",),
                      ("eriktks/conll2003", None), "conll2003", submission=("predictions.test.conll",),
                      files=(("train.txt", "eng.train"), ("valid.txt", "eng.testa"), ("test.txt", "eng.testb"))),
    "wnut17": Task("token", ("tokens", "ner_tags"),
                   bio("corporation", "creative-work", "group", "location", "person", "product"), ("f1",),
                   ("leondz/wnut_17", None), "wnut17", submission=("predictions.test.conll",),
                   files=(("train.conll",), ("dev.conll",), ("test.conll",))),
    # The literature reports its test set, so that is the dev set here.
    "conll2000": Task("token", ("tokens", "chunk_tags"),
                      bio("ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP"), ("f1",),
                      ("eriktks/conll2000", None), "conll2000", files=(("train.txt",), ("test.txt",), ())),
    "goemotions": Task("multilabel", ("text",), (), ("micro_f1", "macro_f1"),
                       ("google-research-datasets/go_emotions", "simplified"), "goemotions",
                       submission=("predictions.tsv",), header=("text", "labels", "id"), separator=",",
                       files=(("train.tsv",), ("dev.tsv",), ("test.tsv",))),
    # columns: sentences or text, and summaries. docs/summaries.md says why SciTLDR's own labels are not read.
    "scitldr": Task("summary", ("source", "target"), YES_NO, ROUGE, ("allenai/scitldr", "Abstract"), "scitldr",
                    submission=("summaries.test.jsonl",), names=("other", "summary"), sentences=1,
                    files=(("train.jsonl",), ("dev.jsonl",), ("test.jsonl",))),
    "cnn_dailymail": Task("summary", ("article", "highlights"), YES_NO, ("rouge1", "rouge2", "rougeLsum"),
                          ("abisee/cnn_dailymail", "3.0.0"), submission=("summaries.test.jsonl",),
                          names=("other", "summary"), sentences=3),
    "custom": Task("classification", (), (), ("accuracy",), (None, None), submission=("predictions.tsv",)),
}
# fmt: on
AX_FILES = ("AX/AX.tsv", "AX/diagnostic.tsv", "diagnostic/diagnostic.tsv")


# --- examples ---------------------------------------------------------------------------------------------------


def _glue_from_files(name, data_dir, skipped):
    """Return {split: Dataset} of a GLUE task from its published files."""
    task, folder = TASKS[name], data_folder(data_dir)
    text, label = task.file_columns[: len(task.columns)], task.file_columns[-1]
    if name == "ax":
        path = next((folder / file for file in AX_FILES if (folder / file).is_file()), folder / AX_FILES[0])
        return {"test": examples_from_rows(readers.read_tsv(path, skipped=skipped), path, text, None, task, skipped)}
    split_of = {"train": "train"} | {f"dev{suffix}": f"validation{suffix}" for suffix in task.dev}
    split_of |= {f"test{suffix}": f"test{suffix}" for suffix in task.dev}
    splits = {}
    for file, split in split_of.items():
        path, is_test = folder / task.folder / f"{file}.tsv", split.startswith("test")
        if is_test and not path.is_file():
            continue
        rows = readers.read_tsv(path, () if is_test else task.header, skipped)
        splits[split] = examples_from_rows(rows, path, text, None if is_test else label, task, skipped)
    return splits


def _glue_from_hub(name):
    """Return {split: Dataset} of a GLUE task from the hub."""
    task, splits = TASKS[name], {}
    names = dict(zip(task.columns, ("text_a", "text_b"), strict=False))
    for split, rows in load_hub(task.hub).items():
        for column, values in (("label", [-1] * len(rows)), ("idx", range(len(rows)))):
            rows = rows if column in rows.column_names else rows.add_column(column, list(values))
        splits[split] = rows.rename_columns(names).select_columns([*names.values(), "label", "idx"])
    return splits


def _meaning(word):
    """Return the number that a label is, true and false being 1 and 0, else its text without case, blanks, accents."""
    value = number_of(word)
    text = unicodedata.normalize("NFC", word).strip().casefold()
    return {"true": 1, "false": 0}.get(text, text) if value is None else value


LIST = re.compile(r"""\s*([\[({]\s*['"]|\[\s*[\d\]])""")  # the beginning of a Python list that was written as text


def _label_words(rows, path, column, skipped, separator=""):
    """Return the labels of a training file in the order of their ids.

    separator: between several labels of one example. Raises ValueError if two spellings mean the same label, if a cell
    holds a Python list, or if cells hold another common separator and none holds the default one.
    """
    first, several, others = {}, False, Counter()  # others: cells that hold another common separator
    skipped = readers.Skipped(True) if skipped.allowed else skipped  # `examples_from_rows` counts the broken rows
    for number, row in rows:
        where, cells = f"{path}, {line_name(number)}", pick(row, (column,), path, number, skipped)
        for cell in cells or ():
            if LIST.match(cell):
                raise ValueError(
                    f"{where}: column {column!r} holds {cell!r}, a list that was written as text: write the "
                    "labels with commas between them (in pandas df[column].map(','.join)), or lists in JSON lines or "
                    "Parquet, and pass --kind multilabel"
                )
            if not separator and not cell.strip():
                skipped.bad(f"{where}: unknown label {cell!r}: the cell is blank")
                continue
            words = [word.strip() for word in cell.split(separator) if word.strip()] if separator else [cell]
            several |= len(words) > 1
            others.update({";", "|"} & {*cell})
            for word in words:
                known, line = first.setdefault(_meaning(word), (word, number))
                if known != word:
                    raise ValueError(
                        f"{where}: the label {word!r} is written {known!r} in {line_name(line)}, which would make two "
                        "classes of one: use one spelling, or give two classes names that differ by more"
                    )
    other, count = next(iter(others.most_common(1)), ("", 0))
    if separator == "," and not several and count > 1:  # labels that do hold ; or | need another --label_separator
        raise ValueError(
            f"{path}: no cell of column {column!r} holds two labels with {separator!r} between them, and {count} hold "
            f"{other!r}: pass --label_separator '{other}'"
        )
    return in_order(sorted(word for word, _ in first.values()))


def kind_of(args):
    """Return the name of the task's kind; --kind or --regression set it for custom."""
    return args.kind or ("regression" if args.regression else TASKS[args.task].kind)


def hub_id(args):
    """Return (id, configuration or None) of --hub_dataset."""
    name, _, config = args.hub_dataset.partition(":")
    return name, config or None


def saved_splits(path):
    """Return whether a path is a folder of several splits that `datasets` has saved."""
    return (Path(path) / "dataset_dict.json").is_file()


def hub_splits(args):
    """Return {split: (its name in messages, Dataset)} of --hub_dataset; test only with --do_predict."""
    if saved_splits(args.hub_dataset):
        from datasets import load_from_disk

        hub = load_from_disk(args.hub_dataset)
    else:
        hub = load_hub(hub_id(args), "download its files and pass --train_file and --validation_file")
    wanted = {"train": "train", "validation": args.validation_split} | ({"test": "test"} if args.do_predict else {})
    remedies = {"train": "choose another data set", "test": "leave out --do_predict"}
    for split in wanted.values():
        if split not in hub:
            remedy = remedies.get(split, "name the split to evaluate on by --validation_split")
            raise ValueError(f"--hub_dataset {args.hub_dataset}: has no split {split!r} but {listed(hub)}: {remedy}")
    return {split: (f"{args.hub_dataset} {name}", hub[name]) for split, name in wanted.items()}


def label_of(args):
    """Return the label's column: --label_column, or the one that `readers.columns_joined` makes of several."""
    return args.label_column if isinstance(args.label_column, str) else " ".join(args.label_column)


def own_rows(args, where, dataset, skipped):
    """Return (rows, label names or ()) of a user's file, or of a Dataset."""
    dataset = readers.read_dataset(where) if dataset is None else dataset
    if dataset is None:
        rows, names = readers.read_table(where, skipped), ()
    else:
        rows, names = readers.dataset_rows(dataset), readers.label_names(dataset, label_of(args))
    separator, rows = args.label_separator if kind_of(args) == "multilabel" else "", readers.placed(rows, skipped)
    if not isinstance(args.label_column, str):
        columns = tuple(args.label_column)
        return readers.columns_joined(rows, where, columns, separator, skipped), columns
    return readers.lists_joined(rows, where, args.label_column, separator) if separator else rows, names


def own_tables(args, skipped):
    """Return {split: (its name in messages, rows, label names or ())} of the user's files or --hub_dataset."""
    if args.hub_dataset:
        sources = hub_splits(args)
    else:
        files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        sources = {split: (path, None) for split, path in files.items() if path}
    return {split: (where, *own_rows(args, where, rows, skipped)) for split, (where, rows) in sources.items()}


NUMERIC = {"regression": ("pearson", "spearman"), "similarity": ("spearman",)}  # kinds without classes: their metrics


def _own_task(args):
    """Return the task custom as the options describe it, still without labels."""
    task = TASKS["custom"]._replace(kind=kind_of(args), columns=tuple(args.text_columns))
    if task.kind == "multilabel":
        task = task._replace(metrics=TASKS["goemotions"].metrics, separator=args.label_separator)
    return task._replace(metrics=tuple(args.metrics) or NUMERIC.get(task.kind, task.metrics))


def _custom(args, skipped, teachers=None):
    """Return (task, {split: Dataset}) of the user's own files or --hub_dataset.

    teachers: None if the training set must have labels; else the teacher's labels, which count if the training set has
    none, or () to take them from the dev set then.
    """
    task, label, tables = _own_task(args), label_of(args), own_tables(args, skipped)
    if args.hub_dataset and not saved_splits(args.hub_dataset):
        task = task._replace(hub=hub_id(args))
    where, rows, names = tables["train"]
    tables["train"] = where, list(rows), ()
    labelled = teachers is None or any(label in row for _, row in tables["train"][1])
    if task.kind not in NUMERIC:
        labels = names or (() if labelled else teachers)
        if not labels:
            source = "train" if labelled else "validation"
            where, rows, _ = tables[source]
            tables[source] = where, list(rows), ()
            labels = _label_words(tables[source][1], where, label, skipped, task.separator)
        task = task._replace(labels=tuple(in_order(labels)))
        if not task.labels:
            raise ValueError(f"{where}: holds no examples")
        if len(task.labels) < 2:
            raise ValueError(f"{where}: column {label!r} holds only the label {list(task.labels)}; two are needed")
    splits = {}
    for split, (where, rows, _) in tables.items():
        text = ("text",) if split == "train" and readers.ending(where) == ".txt" else task.columns
        column = None if split == "test" or (split == "train" and not labelled) else label
        splits[split] = examples_from_rows(rows, where, text, column, task, skipped)
    return task, splits


def load_examples(args, skipped, teachers=None):
    """Return (task, {split: Dataset}) for args.task from the hub, --data_dir or the custom files.

    Splits are train, validation (mnli: validation_matched, validation_mismatched) and, if present, test. teachers:
    see `_custom`.
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
    """Return (task, Dataset) of one labelled file of texts; `names`, a model's labels, give the label ids.

    The file is a tsv as GLUE publishes it, or a table for other tasks. Raises ValueError for labels that the model
    lacks.
    """
    task = TASKS[args.task]
    if args.task == "goemotions":
        task = task._replace(labels=tuple(map(str, range(len(names)))))
        rows = readers.read_tsv(path, task.header, skipped)
        return task._replace(labels=tuple(names)), examples_from_rows(rows, path, task.columns, "labels", task, skipped)
    if args.task != "custom":
        *columns, label = task.file_columns
        metrics = dict.fromkeys(re.sub("_(mis)?matched$", "", name) for name in task.metrics)
        rows = readers.read_tsv(path, task.header, skipped)
        task = task._replace(metrics=tuple(metrics))
        return task, examples_from_rows(rows, path, tuple(columns), label, task, skipped)
    task, label, rows = _own_task(args), label_of(args), list(own_rows(args, path, None, skipped)[0])
    if task.kind not in NUMERIC:
        words = _label_words(rows, path, label, skipped, task.separator)
        task = task._replace(labels=words_of_model(words, names, path))
    return task, examples_from_rows(rows, path, task.columns, label, task, skipped)


def words_of_model(words, names, where):
    """Return for each of a model's label names the file's word for it; the name itself if the file has none.

    label_names.Labels matches them. LABEL_0, LABEL_1, ... stand for the words 0, 1, ..., or for as many words in order.
    """
    generic = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    found = [str(i) for i in range(len(names))] if generic else list(names)
    if generic and not set(words) <= set(found) and len(words) == len(names):
        return tuple(words)
    labels, places = Labels(tuple(found), tuple(found), {}), {}
    for word in words:
        place = labels.number(word)
        if place is None or place in places:
            raise ValueError(f"{where}: the label {word!r} is not one of the model's labels: {listed(names)}")
        places[place] = word
    return tuple(places.get(i, name) for i, name in enumerate(found))


def fewer_examples(splits, args):
    """Return the splits cut to --max_train_samples and --max_eval_samples; test sets stay whole."""
    limits = {split: args.max_train_samples if split == "train" else args.max_eval_samples for split in splits}
    return {split: rows if split.startswith("test") else drawn(rows, limits[split]) for split, rows in splits.items()}


def drawn(rows, count):
    """Return at most `count` rows of a Dataset (0 = all), drawn at random, in their order, the same ones every time.

    The first rows would not do: files are often sorted by label. A larger count includes the rows of a smaller one.
    """
    if not 0 < count < len(rows):
        return rows
    import numpy as np  # here: --help stays fast

    # The stream of RandomState never changes between versions, so the drawn rows do not either.
    return rows.select(np.sort(np.random.RandomState(0).permutation(len(rows))[:count]))


def task_files(name, data_dir):
    """Return {split: path} of a task's files in --data_dir or in the task's folder below it.

    The first existing name counts. A missing training or dev file gets its first name; a missing test set, no path.
    """
    task, folder = TASKS[name], data_folder(data_dir)
    folder = folder / task.folder if (folder / task.folder).is_dir() else folder
    found = {}
    for split, names in zip(("train", "validation", "test"), task.files, strict=True):
        there = [folder / name for name in names if (folder / name).is_file()]
        if there or (names and split != "test"):
            found[split] = there[0] if there else folder / names[0]
    return found


def _emotions_from_files(args, skipped):
    """Read GoEmotions as published: the files hold label ids, separated by commas; labels.txt names them."""
    files = task_files(args.task, args.data_dir)
    path = files["train"].with_name("labels.txt")
    names = [text.strip() for _, text in readers.read_lines(path)]
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"{path}: a label's name is blank or comes twice; download it again")
    task = TASKS[args.task]._replace(labels=tuple(map(str, range(len(names)))))  # ids, until all is read

    def checked(path):
        """Yield (line number, row) with label ids without leading zeros."""
        for number, row in readers.read_tsv(path, task.header, skipped):
            ids = [word.strip() for word in row["labels"].split(",")]
            bad = [i for i in ids if not (re.fullmatch("[0-9]{1,4}", i) and int(i) < len(names))]
            if not row["text"].strip():
                skipped.bad(f"{path}, line {number}: the text is empty; mend the line or pass --skip_bad_examples")
            elif bad:
                skipped.bad(
                    f"{path}, line {number}: labels.txt has no label with id {bad[0]!r}, only 0 to {len(names) - 1}"
                )
            else:
                yield number, row | {"labels": ",".join(str(int(i)) for i in ids)}

    splits = {}
    for split, path in files.items():
        column = None if split == "test" else "labels"
        splits[split] = examples_from_rows(checked(path), path, task.columns, column, task, skipped)
    return task._replace(labels=tuple(names)), splits


def _emotions_from_hub(args, skipped):
    """Read GoEmotions from the hub."""
    from datasets import Dataset

    splits, task = {}, TASKS[args.task]
    for split, rows in load_hub(task.hub).items():
        task = task._replace(labels=tuple(rows.features["labels"].feature.names))
        hot = [[int(i in ids) for i in range(len(task.labels))] for ids in rows["labels"]]
        columns = {"text_a": rows["text"], "label": [-1] * len(hot) if split == "test" else hot}
        splits[split] = Dataset.from_dict(columns | {"idx": range(len(hot))})
    return task, splits


def whole_texts(tokenizer):
    """Switch off the truncation and padding that a call leaves in a fast tokenizer; it would be saved with them."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def id_count(tokenizer):
    """Return the largest id plus one; len(tokenizer) is smaller if the vocabulary holds a word twice."""
    return max(tokenizer.get_vocab().values()) + 1


def with_offsets(tokenizer, *texts, **options):
    """Call a fast tokenizer; also return the character offsets of each piece.

    RoBERTa's post-processor shortens the offsets of a piece that begins with a blank, even if the pre-tokenizer added
    that blank and the text has a letter there. This call switches that off.
    """
    backend = tokenizer.backend_tokenizer
    before = backend.post_processor
    plain = copy.deepcopy(before)
    if plain:  # by its state: a processor within a Sequence does not give its attribute trim_offsets
        plain.__setstate__(before.__getstate__().replace(b'"trim_offsets":true', b'"trim_offsets":false'))
        backend.post_processor = plain
    try:
        return tokenizer(*texts, return_offsets_mapping=True, **options)
    finally:
        if plain:
            backend.post_processor = before


def texts_apart(examples, prefix=""):
    """Return a Dataset with each text of text_a, (text_b) as a row; the texts of a pair follow each other."""
    from datasets import Dataset

    names = [name for name in ("text_a", "text_b") if name in examples.column_names]
    pairs = zip(*(examples[name] for name in names), strict=True)
    twice = {name: [value for value in examples[name] for _ in names] for name in ("label", "idx")}
    return Dataset.from_dict({"text_a": [prefix + text for pair in pairs for text in pair], **twice})


def tokenize(examples, tokenizer, max_length):
    """Return a Dataset with input_ids, (token_type_ids), attention_mask, labels, idx from text_a, (text_b), label."""
    from datasets.fingerprint import generate_random_fingerprint

    names = [name for name in ("text_a", "text_b") if name in examples.column_names]
    encoded = examples.map(
        lambda rows: tokenizer(*(rows[name] for name in names), truncation=True, max_length=max_length),
        batched=True,
        remove_columns=names,
        # Rows in memory get no cache file, so their fingerprint need not be computed from the whole vocabulary.
        new_fingerprint=None if examples.cache_files else generate_random_fingerprint(),
        desc="tokenising",
    )
    whole_texts(tokenizer)
    return encoded.rename_column("label", "labels")


# --- options ----------------------------------------------------------------------------------------------------


def check_args(args, training=True):
    """Check the options of the task and its data. Raises ValueError. training: whether training files are needed."""
    if args.data_dir == "":
        raise ValueError("--data_dir is empty: name a folder, or leave it out to read from the hub")
    files = [name for name in ("train_file", "validation_file", "test_file") if getattr(args, name)]
    kind = kind_of(args)
    if args.task == "custom":
        _check_own_source(args, files, training)
        check_dataset_name(args)
        _check_own_columns(args, kind)
    else:
        own = [*files, *filter(vars(args).get, ("dataset_name", "hub_dataset", "metrics", "kind", "regression"))]
        of_questions = ("train_file", "validation_file", "dataset_name") if kind == "qa" else ()
        if wrong := [name for name in own if name not in of_questions]:
            raise ValueError(f"--{wrong[0]} is for --task custom, not {args.task}")
        check_dataset_name(args)
    if args.label_separator != "," and kind != "multilabel":
        raise ValueError("--label_separator is for --task custom --kind multilabel")
    if args.token_column != 1 and kind != "token":
        raise ValueError("--token_column is for tasks of words, such as --task custom --kind token")
    if args.text_prefix and kind != "similarity":
        raise ValueError("--text_prefix is for --kind similarity")
    if args.summary_sentences and kind != "summary":
        raise ValueError("--summary_sentences is for summaries, such as --task scitldr")
    if kind == "token":
        _check_token_columns(args)
    if kind == "summary":
        _check_documents(args)
    if TASKS[args.task].kind == "qa":
        _check_questions(args, training)


def _check_token_columns(args):
    """Check the columns of a task of words."""
    if args.hub_dataset:  # its columns have names
        if args.token_column != 1 or len(args.text_columns) > 1:
            raise ValueError(
                "with --hub_dataset name the column of words by --text_columns and that of tags by --label_column"
            )
        return
    files = [path for path in (args.train_file, args.validation_file, args.test_file) if path]
    if args.task == "custom" and (not files or any(map(readers.is_table, files))):
        return  # their columns have names
    if args.text_columns != ["text"]:
        raise ValueError("--text_columns is for texts; for a column file name the words by --token_column")
    for name, value in (("token_column", str(args.token_column)), ("label_column", label_of(args))):
        if value not in ("label", *UD) and not re.fullmatch("[1-9][0-9]{0,3}", value):
            raise ValueError(f"--{name} {value!r} must be a column's number, counted from 1, or one of {', '.join(UD)}")


def _check_documents(args):
    """Check the options of summaries, and set the default of --summary_sentences."""
    for name, default in (("text_columns", ["text"]), ("label_column", "label")):
        if getattr(args, name) != default:
            raise ValueError(f"--{name} is for other kinds: documents have the columns sentences, summary, (labels)")
    if args.task == "cnn_dailymail" and args.data_dir:
        raise ValueError(
            "cnn_dailymail is read from the hub only: leave out --data_dir, or use --task custom --kind summary"
        )
    args.summary_sentences = args.summary_sentences or TASKS[args.task].sentences or 3


def _check_questions(args, training):
    """Check the options of question answering."""
    if args.do_predict:
        raise ValueError("--do_predict is for GLUE and custom; squad always writes predictions.json of its dev set")
    given = [name for name in ("train_file", "validation_file") if getattr(args, name)]
    if training and (len(given) == 1 or (given and args.data_dir)):
        raise ValueError(
            f"--{given[0]}: pass --train_file and --validation_file, both in SQuAD's format, and no --data_dir"
        )
    if args.max_seq_length - args.max_query_length - 4 <= args.doc_stride:
        raise ValueError(
            f"--max_seq_length {args.max_seq_length} leaves no room for a context beside --max_query_length "
            f"{args.max_query_length} and --doc_stride {args.doc_stride}: try --max_seq_length 384"
        )


def _check_own_source(args, files, training):
    """Check where custom data come from, and name hub data. files: the options of files that were given."""
    if args.hub_dataset:
        if files:
            raise ValueError(f"--hub_dataset and --{files[0]} exclude each other: give one")
        if not saved_splits(args.hub_dataset) and not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.+-]+)?", args.hub_dataset):
            raise ValueError(
                f"--hub_dataset {args.hub_dataset!r} must be owner/name or owner/name:configuration, such as "
                "fancyzhx/ag_news, or a folder of several splits that `datasets` has saved"
            )
        names = [re.sub(r"\W+", "-", name).strip("-") for name in (Path(args.hub_dataset).name, args.hub_dataset)]
        args.dataset_name = args.dataset_name or names[names[0] in TASKS]
        return
    if args.validation_split != "validation":
        raise ValueError("--validation_split is for --hub_dataset; name a file by --validation_file")
    for name in ("train_file", "validation_file") if training else ():
        if name not in files:
            raise ValueError(
                f"--task custom needs --{name}: a csv, tsv, json, jsonl, parquet or column file; or --hub_dataset"
            )


def _check_own_columns(args, kind):
    """Check the columns of custom data."""
    if args.regression and kind != "regression":
        raise ValueError(f"--regression and --kind {kind} exclude each other: give one")
    if not 1 <= len(args.text_columns) <= 2:
        raise ValueError(f"--text_columns takes one or two columns, not {len(args.text_columns)}")
    labels = [args.label_column] if isinstance(args.label_column, str) else args.label_column
    if both := [name for name in labels if name in args.text_columns]:
        raise ValueError(f"--label_column {both[0]!r} is among --text_columns: the label would be the input")
    if len(labels) > 1 and (kind not in ("classification", "multilabel") or len({*labels}) < len(labels)):
        raise ValueError(
            f"--label_column {' '.join(labels)}: several columns need --kind classification or multilabel, once each"
        )


def check_dataset_name(args):
    """Raise ValueError for a --dataset_name that cannot name a run folder of its own."""
    if args.dataset_name and (args.dataset_name in TASKS or not re.fullmatch(r"[\w+-][\w.+-]*", args.dataset_name)):
        raise ValueError(
            f"--dataset_name {args.dataset_name!r} becomes a folder beside those of {', '.join(TASKS)}: "
            "use another name, of letters, digits and . _ + -"
        )
