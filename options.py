"""The command line: a parser, and every option of the scripts. Their checks: engine/checks.py.

It imports neither torch nor what does, so that --help, a slip and options that do not go together are answered at once.
`python options.py` prints for presets.sh what the scripts know of the tables.
"""

import argparse
import functools
import math
import os
import shlex
import sys
from pathlib import Path

import data
from encoders import layer_maps
from methods import recipes

LONG_EPOCH = 5000  # steps after which an epoch is evaluated before its end
# Options that a resumed or finished run may change: they do not touch its result.
FREE_OPTIONS = (
    "overwrite",
    "do_predict",
    "test_file",
    "output_dir",
    "keep_checkpoints",
    "num_workers",
    "num_proc",
    "cache_limit_gb",
    "save_minutes",
    "timeout_minutes",
    "log_with",
    "logging_steps",
    "keep_optimizer",
)
NAMES = ("run_name", "dataset_name")  # as free, but part of what a run is found by
# Options that say where an input lies; what it is say the digests of the record.
PLACES = (
    "teacher",
    "more_teachers",
    "student",
    "data_dir",
    "train_file",
    "validation_file",
    "corpus",
    "validation_corpus",
)
# Accelerate's -> its name for a run's name, where it takes one; TensorBoard's files are written by Log itself
TRACKERS = {
    "tensorboard": None,
    "wandb": "name",
    "mlflow": "run_name",
    "trackio": "name",
    "swanlab": "experiment_name",
    "clearml": "task_name",
    "comet_ml": None,
    "dvclive": None,
}


def begin(parser, check=None):
    """What a script does before its slow imports: answer --help, a mistake in the options, and --check_only.

    check(args): raises ValueError for options that do not go together; a script without it has no --check_only.
    """
    args = parser.parse_args()
    if not check:
        return
    try:
        check(args)
    except ValueError as error:
        if os.environ.get("CKD_TRACEBACK"):
            raise
        parser.error(" ".join(str(error).split()))
    if args.check_only:
        sys.exit()


def one_line(text):
    """Return the text with everything that is not printable, line ends too, written as an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the defaults that say something."""

    def _get_help_string(self, action):
        silent = action.required or action.default in (None, False) or action.default == []
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and exit status 2, and which takes no abbreviated options."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=_Formatter, **kwargs)

    def parse_args(self, args=None, namespace=None):
        """Return the options; for records older than an option also the `defaults`, and `asked`: names with other
        values.
        """
        found = super().parse_args(args, namespace)
        defaults = {action.dest: action.default for action in self._actions if action.dest in vars(found)}
        found.asked = [name for name, default in defaults.items() if getattr(found, name) != default]
        found.defaults = defaults
        return found

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def named_folder(text):
    """Return an argparse type: a path. Nothing, as an unset variable of the shell leaves it, would be the folder one is
    in.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no folder: is a variable unset?")
    return Path(text)


def number(kind, low, high=math.inf, open_low=False):
    """Return an argparse type: a number of the kind, from low (itself left out if open_low) to high."""
    return functools.partial(_number, kind=kind, low=low, high=high, open_low=open_low)


def _number(text, kind, low, high, open_low):
    """Return the text as a number within the limits of `number`."""
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (low < value if open_low else low <= value) or not value <= high or value == math.inf:
        limits = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
        raise argparse.ArgumentTypeError(f"{text!r} must be {'a whole' if kind is int else 'a'} number {limits}")
    return value


def _column(text):
    """Return an argparse type: the number of a column, or the text that names it."""
    try:
        return int(text)
    except ValueError:
        return text


class OneOrMore(argparse.Action):
    """Stores one word as it is, several as a list."""

    def __call__(self, parser, args, values, option=None):
        setattr(args, self.dest, values if len(values) > 1 else values[0])


def add_data(parser, required=True):
    """Options that name the task, which may be required, and its data."""
    add = parser.add_argument_group("data").add_argument
    add("--task", required=required, choices=data.TASKS, metavar="TASK", help=", ".join(data.TASKS))
    add(
        "--data_dir",
        help="folder with the files as they are published (CoLA/train.tsv, train-v1.1.json, "
        "wnut17/train.conll, ...) instead of the hub",
    )
    add(
        "--kind",
        help="custom: kind of task, classification if not given: "
        + ", ".join(name for name in data.KINDS if name != "qa"),
    )
    add("--dataset_name", help="custom and squad: the data's name in folders and tables; by default the hub's")
    add(
        "--hub_dataset",
        help="custom: data set of the hub, owner/name or owner/name:configuration, or a saved DatasetDict's folder",
    )
    add("--validation_split", default="validation", help="--hub_dataset: name of the split to evaluate on")
    add(
        "--train_file",
        help="custom and squad: file or folder to train on, in one of the forms of docs/data.md (without the label "
        "column: text to distil on)",
    )
    add("--validation_file", help="custom and squad: file or folder to evaluate on")
    add("--test_file", help="custom: file without labels for --do_predict")
    add(
        "--text_columns",
        nargs="+",
        default=["text"],
        help="custom: one or two columns with text; words of "
        "--hub_dataset: the column with lists of them, tokens by default",
    )
    add(
        "--label_column",
        nargs="+",
        action=OneOrMore,
        default="label",
        help="custom: column with the label, or several columns of 0 and 1, each a label; words: the tag's number "
        "or UD's name, the last, or upos of .conllu, by "
        "default; of --hub_dataset its name, ner_tags by default",
    )
    add(
        "--metrics",
        nargs="+",
        default=[],
        metavar="METRIC",
        help="custom: headline metrics, whose mean chooses the "
        "best student: accuracy, balanced_accuracy, f1 (of the second of two labels), macro_f1, weighted_f1, "
        "matthews_correlation, cohen_kappa; regression: pearson, spearman, r2; what other kinds compute",
    )
    add("--text_prefix", default="", help="similarity: what stands before every text, as 'query: ' for E5 models")
    add("--token_column", type=_column, default=1, help="words: column with the word, its number from 1 or UD's name")
    add("--label_separator", default=",", help="custom, multilabel: what stands between the labels of one example")
    add(
        "--summary_sentences",
        type=number(int, 1),
        help="summaries: sentences of each; if not given 1 for scitldr, else 3",
    )
    add(
        "--label_map",
        nargs="+",
        metavar="THEIRS=OURS",
        help="what the teacher's names of the labels mean here, all "
        "of them, as bad=0 good=1, where names and known synonyms do not say it",
    )
    add("--regression", action="store_true", help="custom: the label is a number to predict: --kind regression")
    add("--max_seq_length", type=number(int, 8), default=128, help="tokens of the longest input; longer ones are cut")
    add(
        "--max_train_samples",
        type=number(int, 0),
        default=0,
        help="use only that many training examples, drawn by chance, the same for every seed and method; 0 = all",
    )
    add(
        "--max_eval_samples",
        type=number(int, 0),
        default=0,
        help="use only that many examples of each dev set, drawn in the same way; 0 = all",
    )
    add("--doc_stride", type=number(int, 0), default=128, help="squad: tokens that two windows of one context share")
    add(
        "--max_query_length",
        type=number(int, 1),
        default=64,
        help="squad: tokens of the longest question; longer ones are cut",
    )
    add(
        "--n_best_size",
        type=number(int, 1),
        default=20,
        help="squad: starts and ends that are paired to find an answer",
    )
    add("--max_answer_length", type=number(int, 1), default=30, help="squad: tokens of the longest answer")
    add("--skip_bad_examples", action="store_true", help="count and report broken examples instead of stopping")


def add_models(parser):
    """Options that name and shape the two models."""
    add = parser.add_argument_group("model").add_argument
    add("--teacher", help="hub id or folder of the teacher; without it the student is trained on the labels alone")
    add(
        "--student",
        help="hub id or folder of the student, or, with --student_layers, of what it is cut from; "
        "without it the student is cut from the teacher",
    )
    # The largest is what is not taken for a slip; memory is a limit of its own.
    add("--student_layers", type=number(int, 1, 1000), help="build a student with this many layers")
    add("--student_hidden", type=number(int, 1, 10**6), help="build a student of this width (its source's by default)")
    add("--student_heads", type=number(int, 1, 10**4), help="build a student with this many attention heads a layer")
    add(
        "--student_intermediate",
        type=number(int, 1, 10**7),
        help="build a student with this width of the feed-forward layers",
    )
    add(
        "--student_init",
        choices=("uniform", "first", "last", "random"),
        help="layers to copy into a built student; uniform if the widths agree",
    )
    add_freezing(add)


def add_freezing(add):
    """The option that leaves word embeddings as they are, for a group of any training script."""
    add(
        "--freeze_embeddings",
        action="store_true",
        help="do not train the student's word embeddings, nor the decoder "
        "of a masked language model that is tied to them: no gradient, no state of AdamW",
    )


class Typed(argparse.Action):
    """Stores an option's value and notes in args.typed that it was given, for it may equal the default."""

    def __call__(self, parser, args, values, option=None):
        setattr(args, self.dest, self.const if self.nargs == 0 else values)
        args.typed = [*getattr(args, "typed", []), option]


def add_distillation(parser):
    """Options of the distillation objective; those that were given stand in args.typed until `recipes.check_args`."""
    add = functools.partial(parser.add_argument_group("distillation").add_argument, action=Typed)
    add(
        "--terms",
        nargs="+",
        default=["ckd"],
        metavar="TERM",
        help=f"preset ({', '.join(recipes.PRESETS)}) and/or name=weight with names {', '.join(recipes.all_terms())}; "
        "weight 0: not computed; with --task ckd has that task's published weights times temperature^2",
    )
    add("--hard_weight", type=float, default=0.0, help="weight of the loss on the true labels; 0 = soft targets only")
    add(
        "--temperature",
        type=float,
        default=1.0,
        help="of the logits term, which is scaled by its square; with --task that task's, unless a preset has its own",
    )
    add(
        "--stages",
        nargs="+",
        metavar="WORD",
        help="weights over time: terms and 'hard' (the labels), after a number "
        "from that share of the steps on, as in 'wr_pair wr_triple 0.5 logits hard=1'; what is not named is not "
        "computed, a weight is that of --terms and --hard_weight, name=weight, or name=0..1, which rises evenly",
    )
    maps = ", ".join(layer_maps.STRATEGIES)
    add("--layer_map", default="uniform", help=f"{maps}, or pairs student:teacher: 0:0,1:2,6:12")
    add("--wr_layer_map", help="layer map of the word relations, if not that of the other terms")
    add("--ltr_layer_map", help="layer map of the layer transforming relations, if not that of the other terms")
    add(
        "--no_embeddings",
        nargs=0,
        const=True,
        default=False,
        help="leave the pair 0:0 (embedding outputs) out of the layer maps",
    )
    add("--window", default="21", help="words that an angle spans: odd, or 'all'")
    # relations.py, which stands alone and imports torch, has the same names.
    add("--distance", choices=("cosine", "l2"), default="cosine", help="similarity of a pair")
    add("--pair_criterion", choices=("kl", "mse", "l1", "huber"), default="kl", help="criterion between pairs")
    add("--triple_criterion", choices=("mse", "l1", "huber"), default="mse", help="criterion between angles")


def add_loop(parser):
    """Options of the loop: optimisation, logging and runtime."""
    group = parser.add_argument_group("optimisation")
    add = group.add_argument
    add(
        "--learning_rate",
        action=Typed,
        type=number(float, 0, 100, open_low=True),
        default=5e-5,
        help="peak rate of AdamW; fine-tuning with a teacher: the task's",
    )
    add(
        "--num_train_epochs",
        action=Typed,
        type=number(float, 0, 1e6, open_low=True),
        default=3.0,
        help="passes over the data; fine-tuning with a teacher: the task's",
    )
    add("--max_steps", type=number(int, 0, 10**8), default=0, help="optimiser steps, instead of epochs if above 0")
    add(
        "--per_device_train_batch_size",
        type=number(int, 1, 10**5),
        default=32,
        help="examples per process and forward pass",
    )
    add(
        "--gradient_accumulation_steps", type=number(int, 1, 10**4), default=1, help="forward passes per optimiser step"
    )
    add("--warmup_ratio", type=number(float, 0, 1), default=0.1, help="share of the steps in which the rate rises")
    add(
        "--lr_scheduler_type",
        choices=("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"),
        default="linear",
        help="how the rate falls, as transformers has it",
    )
    add("--weight_decay", type=number(float, 0, 1000), default=0.01, help="AdamW's, not for biases and LayerNorm")
    add("--max_grad_norm", type=number(float, 0), default=1.0, help="gradient norm to clip at, 0 = no clipping")
    group = parser.add_argument_group("logging")
    add = group.add_argument
    add("--logging_steps", type=number(int, 1), default=50, help="optimiser steps between two TensorBoard points")
    add(
        "--eval_steps",
        type=number(int, 0),
        default=0,
        help="optimiser steps between evaluations, 0 = at the end of "
        f"each epoch, and every {LONG_EPOCH} steps of a longer one or of a stream",
    )
    add(
        "--log_with",
        nargs="+",
        choices=TRACKERS,
        default=["tensorboard"],
        metavar="TRACKER",
        help="where scalars and "
        f"options go beside TensorBoard's files, which are always written: {', '.join(TRACKERS)}",
    )
    add(
        "--early_stopping_patience",
        type=number(int, 0),
        default=0,
        help="evaluations in a row without a better score after which the training ends, 0 = never",
    )
    add(
        "--save_steps",
        type=number(int, 0),
        default=0,
        help="optimiser steps between checkpoints, 0 = by --save_minutes, or without that once an epoch",
    )
    add(
        "--save",
        choices=("best", "last", "both"),
        default="best",
        help="which evaluated model is kept: the one with "
        "the best score on the dev set, the last, or the best and in its folder last/ the last",
    )
    add(
        "--save_minutes",
        type=number(float, 0),
        default=10.0,
        help="minutes after which there is a checkpoint in any "
        "case, 0 = never; several processes look at the clock every --logging_steps",
    )
    add("--keep_checkpoints", type=number(int, 1), default=1, help="number of newest checkpoints kept")
    add("--keep_optimizer", action="store_true", help="keep AdamW's state in the checkpoints of a finished run, too")
    group = parser.add_argument_group("runtime")
    add = group.add_argument
    add("--seed", type=number(int, 0, 2**31), default=1, help="seed of initialisation, data order and dropout")
    add("--mixed_precision", choices=("no", "bf16", "fp16"), default="no", help="autocast of both models")
    add("--tf32", action="store_true", help="float32 products in TF32 on CUDA, but for relations: 3 digits, faster")
    add(
        "--per_device_eval_batch_size",
        type=number(int, 1, 10**5),
        default=64,
        help="examples per process in evaluation",
    )
    add(
        "--num_workers",
        type=number(int, 0, 1024),
        default=None,
        help="processes that prepare batches; 2 on CUDA, else 0",
    )
    add(
        "--timeout_minutes",
        type=number(float, 0, 10**6, open_low=True),
        default=30.0,
        help="minutes that a process "
        "waits for the others before the run ends; raise it where one alone prepares much data",
    )
    add(
        "--compile",
        action="store_true",
        help="torch.compile for both models and the elementwise part of relations "
        "and language-model head: slow first steps, and so far no card has shown what it gains",
    )
    add(
        "--ddp_comm",
        choices=("no", "bf16"),
        default="no",
        help="precision in which processes send each other gradients",
    )
    add("--deterministic", action="store_true", help="torch's deterministic algorithms (slower on CUDA)")
    add(
        "--overwrite",
        action="store_true",
        help="move the run that the folder holds aside, to <folder>.old-<time>, and start anew",
    )
    add("--check_only", action="store_true", help="check the options and do nothing else; exit status 0 or 2")


def _add_paths(parser, output_dir, run_name):
    """Where a run goes and what it is called."""
    add = parser.add_argument_group("paths").add_argument
    add("--output_dir", help=f"run folder; {output_dir} by default")
    add("--run_name", help=f"method's name in tables; {run_name}")


def _add_cache(parser):
    """Options of the teacher's cache."""
    add = parser.add_argument
    add(
        "--cache_teacher",
        action="store_true",
        help="compute the teacher's outputs for the training set once and keep them on disk in half precision",
    )
    add(
        "--cache_limit_gb",
        type=number(float, 0, open_low=True),
        default=20.0,
        help="largest cache that --cache_teacher may write, in 10^9 bytes",
    )


def finetune_parser():
    """Return the options of distill_finetune.py."""
    parser = Parser(
        description="Task-specific distillation: GLUE, SQuAD, words, several labels, your own files; "
        "without --teacher: fine-tuning."
    )
    _add_paths(parser, "runs/<task>/<run_name>/seed<seed>", "finetune without a teacher, else made from --terms")
    add_data(parser)
    add_models(parser)
    add_distillation(parser)
    add_loop(parser)
    add = parser.add_argument
    add(
        "--do_predict",
        action="store_true",
        help="write the predictions of the test set, of GLUE in the form of its submissions",
    )
    add(
        "--held_out",
        type=number(float, 0, 0.9),
        default=0.0,
        help="share of the training set that is held out and "
        "chooses the best model, in place of the dev set; 0 = the dev set does",
    )
    add(
        "--more_teachers",
        nargs="+",
        default=[],
        metavar="TEACHER",
        help="further teachers of the task: the logits are the mean of all, relations are those of --teacher",
    )
    add(
        "--class_weights",
        choices=("balanced",),
        help="in the loss on the labels every class counts as much as another, however many examples it has",
    )
    _add_cache(parser)
    return parser


def pretrain_parser():
    """Return the options of distill_pretrain.py."""
    parser = Parser(
        description="Task-agnostic distillation of a masked language model on plain text; without "
        "--teacher: plain MLM pre-training."
    )
    _add_paths(parser, "runs/pretrain/<run_name>/seed<seed>", "mlm without a teacher, else made from --terms")
    add = parser.add_argument_group("data").add_argument
    add(
        "--corpus",
        nargs="+",
        required=True,
        metavar="TEXT",
        help="text to train on: files, folders, globs (text, JSON lines, csv, tsv or Parquet, "
        "also packed by gzip, bzip2 or xz), or hub ids as owner/name:config; of several languages en=TEXT ko=TEXT ...",
    )
    add(
        "--validation_corpus",
        nargs="+",
        metavar="TEXT",
        help="text to evaluate on, in the same form; by default blocks held out of --corpus",
    )
    add(
        "--language_exponent",
        type=number(float, 0, 1),
        default=0.7,
        help="a language's share of an epoch is that of its blocks to this power: 1 = as they are, 0 = all alike",
    )
    add("--text_column", default="text", help="column with the text where the corpus is a table, a document a row")
    add("--streaming", action="store_true", help="read a corpus that does not fit the disk as it comes")
    add("--num_proc", type=number(int, 0), default=0, help="processes that tokenise, 0 = one for each core")
    add("--seq_length", type=number(int, 8), default=128, help="tokens of a block")
    add(
        "--whole_texts",
        action="store_true",
        help="a block holds one line or row, cut at --seq_length, not as many as fill it; so in any case "
        "where terms relate sentences",
    )
    add(
        "--mlm_probability",
        type=number(float, 0, 1),
        help="share of tokens masked; 0.15, or 0 for whole texts where no term reads a language-model head",
    )
    add("--whole_word_mask", action="store_true", help="mask all pieces of a word together")
    add(
        "--max_train_samples",
        type=number(int, 0),
        default=0,
        help="use only that many blocks, drawn by chance, the same for every seed and method; 0 = all",
    )
    add(
        "--max_eval_samples",
        type=number(int, 1),
        default=512,
        help="blocks to evaluate on, drawn in the same way from --validation_corpus, or the first ones of --corpus",
    )
    add_models(parser)
    add_distillation(parser)
    add_loop(parser)
    return parser


def dynabert_parser():
    """Return the options of distill_dynabert.py."""
    parser = Parser(
        description="DynaBERT with CKD: one student that runs at any of some widths and depths, distilled "
        "from a task's teacher."
    )
    _add_paths(parser, "runs/<task>/<run_name>/seed<seed>", "made from --terms and the stage by default")
    add_data(parser, required=False)  # an export finds it in the run
    add = parser.add_argument_group("model").add_argument
    add("--teacher", help="folder of the task's teacher (stage 1) or of the run of stage 1 (stage 2)")
    add("--student", help="folder of the run of stage 2, to be trained on the labels (stage 3)")
    add(
        "--width_mults",
        nargs="+",
        type=float,
        default=[1.0, 0.75, 0.5, 0.25],
        metavar="M",
        help="shares of the attention heads and feed-forward neurons that a sub-network has",
    )
    add(
        "--depth_mults",
        nargs="+",
        type=float,
        default=[1.0],
        metavar="M",
        help="shares of the layers, for each width; others than 1.0 are stage 2 or 3",
    )
    add_freezing(add)
    add_distillation(parser)
    add_loop(parser)
    _add_cache(parser)
    add = parser.add_argument_group("export").add_argument
    add("--export", metavar="RUN", help="write a sub-network of this run into --output_dir, in place of training")
    add("--width", type=float, default=1.0, help="of the exported sub-network: one of --width_mults of the run")
    add("--depth", type=float, default=1.0, help="of the exported sub-network: one of --depth_mults of the run")
    # What distill_finetune.py has options for: the student is the teacher, neither cut nor widened.
    cut = {f"student_{name}": None for name in ("layers", "hidden", "heads", "intermediate")}
    parser.set_defaults(do_predict=False, held_out=0.0, class_weights=None, more_teachers=[], student_init=None, **cut)
    return parser


def trim_parser():
    """Return the options of trim_vocabulary.py."""
    parser = Parser(
        description="A model with the words of some languages only: the same layers, and the rows of those "
        "words that a text uses."
    )
    add = parser.add_argument_group("paths").add_argument
    add("--model", required=True, help="hub id or folder of the model whose words are to be fewer")
    add(
        "--corpus",
        nargs="+",
        required=True,
        metavar="TEXT",
        help="text in all languages that are needed: what distill_pretrain.py takes, files, folders, globs, or hub ids "
        "as owner/name:config, also as en=TEXT",
    )
    add("--text_column", default="text", help="column with the text where the corpus is a table, a document a row")
    add("--output_dir", type=named_folder, required=True, help="new folder for model and tokenizer")
    add(
        "--held_out",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="other texts, of which is counted how much is cut into other words",
    )
    add = parser.add_argument_group("words").add_argument
    add(
        "--min_count",
        type=number(int, 1),
        default=1,
        help="times that the text has a word that is kept; with 1 the text is cut into the same words as before",
    )
    add(
        "--vocab_size",
        type=number(int, 1),
        help="number of words at most: the most frequent ones; special words and characters always stay",
    )
    add(
        "--characters",
        choices=("all", "corpus"),
        default="all",
        help="words of one character that stay: all that the model has, or those of characters that the text has",
    )
    return parser


def evaluate_parser():
    """Return the options of evaluate.py. Data options stand in the result only where they were typed."""
    parser = Parser(description="Scores of saved models on any number of sets, and what each keeps of the first's.")
    add_data(parser, required=False)
    for action in parser._actions:  # a run brings its own, which only typed ones overrule
        action.default = argparse.SUPPRESS
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="folders or hub ids; a run of this repository brings its task")
    add("--sets", nargs="+", default=[], metavar="NAME=PATH", help="files to score on; by default the task's dev set")
    add("--predictions", action="store_true", help="write a file of predictions for each model and set")
    add("--output_dir", type=named_folder, required=True, help="folder for evaluation.json and evaluation.csv")
    add("--per_device_eval_batch_size", type=number(int, 1, 10**5), default=64, help="examples of a forward pass")
    return parser


# --- what presets.sh asks -----------------------------------------------------------------------------------------


def main(argv):
    """Print shell assignments of the names that scripts know, or, after recipe TASK, its numbers as a student has them.

    These are temperature, weight of pairs, weight of triples, both times the temperature's square, rate and epochs.
    """
    if argv[:1] == ["recipe"]:
        recipe = recipes.recipe_of(argv[1])
        weights = recipes.ckd_weights(recipe, recipe.temperature)
        print(
            *(
                f"{x:g}"
                for x in (
                    recipe.temperature,
                    weights["wr_pair"],
                    weights["wr_triple"],
                    recipe.learning_rate,
                    recipe.epochs,
                )
            )
        )
        return
    parser = Parser()
    add_distillation(parser)
    distilling = [option for action in parser._actions for option in action.option_strings if action.dest != "help"]
    names = {
        "ALL_TASKS": [name for name, task in data.TASKS.items() if task.kind != "qa" and name not in ("ax", "custom")],
        "ALL_METHODS": ["finetune", *recipes.PRESETS],
        "ALL_TERMS": recipes.all_terms(),
        "ALL_MAPS": layer_maps.STRATEGIES,
        "DISTILLATION": [*distilling, "--cache_teacher", "--more_teachers"],
    }
    for name, words in names.items():
        print(f"{name}={shlex.quote(' '.join(words))}")


if __name__ == "__main__":
    main(sys.argv[1:])
