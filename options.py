"""The command line: the parser class and the options of every script. engine/checks.py checks how they go together.

This module imports neither torch nor anything that imports it, so `--help` and mistakes are answered at once.
`python options.py` prints what the shell scripts need to know, for scripts/presets.sh.
"""

import argparse
import math
import os
import shlex
import sys
from pathlib import Path

import data
from encoders import layer_maps
from methods import recipes

LONG_EPOCH = 5000  # steps; a longer epoch is also evaluated every LONG_EPOCH steps
# Options that a resumed or finished run may change, because they do not affect its result.
FREE_OPTIONS = (
    *("overwrite", "do_predict", "test_file", "output_dir", "keep_checkpoints", "num_workers", "num_proc"),
    *("cache_limit_gb", "save_minutes", "timeout_minutes", "log_with", "logging_steps", "keep_optimizer"),
)
NAMES = ("run_name", "dataset_name")  # they do not affect the result either, but they make up the run folder's path
# Options that say where an input is. The digests in run.json say what it contains.
INPUT_FILES = ("data_dir", "train_file", "validation_file", "corpus", "validation_corpus")
PLACES = ("teacher", "more_teachers", "student", *INPUT_FILES)
# Accelerate's trackers -> the argument that takes the run's name, if any. TensorBoard's files are written by Log.
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
    """Answer --help, mistakes and --check_only before the script's slow imports.

    check(args): raises ValueError for options that do not go together. Scripts without it have no --check_only.
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
    """Return the text with every unprintable character, line ends included, written as an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


# --- the parser and its types -------------------------------------------------------------------------------------


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except empty ones."""

    def _get_help_string(self, action):
        silent = action.required or action.default in (None, False) or action.default == []
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that accepts no abbreviations and reports a mistake in one line with exit status 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=_Formatter, **kwargs)

    def parse_args(self, args=None, namespace=None):
        """Return the options, with `defaults` (all default values) and `asked` (names of options with other values)."""
        found = super().parse_args(args, namespace)
        defaults = {action.dest: action.default for action in self._actions if action.dest in vars(found)}
        found.asked = [name for name, default in defaults.items() if getattr(found, name) != default]
        found.defaults = defaults
        return found

    def error(self, message):
        """Print the message in one line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


class OneOrMore(argparse.Action):
    """Stores a single word as it is, several words as a list."""

    def __call__(self, parser, args, values, option=None):
        setattr(args, self.dest, values if len(values) > 1 else values[0])


class Typed(argparse.Action):
    """Stores the value and records in args.typed that the option was given, since the value may equal the default."""

    def __call__(self, parser, args, values, option=None):
        setattr(args, self.dest, self.const if self.nargs == 0 else values)
        args.typed = [*getattr(args, "typed", []), option]


def named_folder(text):
    """Convert the text to a Path (an argparse type). Refuses blank text, which would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no folder: is a variable unset?")
    return Path(text)


def number(kind, low, high=math.inf, open_low=False):
    """Return an argparse type for numbers of this kind from low to high; open_low excludes low itself."""
    limits = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if open_low else low <= value) or not value <= high or value == math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} must be {'a whole' if kind is int else 'a'} number {limits}")
        return value

    return convert


COUNT, POSITIVE = number(int, 0), number(int, 1)
BATCH_SIZE = number(int, 1, 10**5)


def column(text):
    """Convert the text to a column's number if it is one; otherwise return it as the column's name."""
    try:
        return int(text)
    except ValueError:
        return text


def group(parser, title, **shared):
    """Return a function add(option, help, default, type, ...) that adds an option to this group of the help page.

    A default of False makes it a switch. shared: arguments of add_argument for all options of the group.
    """
    argument = parser.add_argument_group(title).add_argument

    def add(option, help, default=None, type=None, **own):
        own = ({"type": type} if type else {}) | shared | own
        argument(option, help=help, default=default, **({"action": "store_true"} if default is False else {}) | own)

    return add


# --- groups of options --------------------------------------------------------------------------------------------


def add_paths(parser, output_dir, run_name):
    """Add the options for the run's folder and name."""
    add = group(parser, "paths")
    add("--output_dir", f"run folder; {output_dir} by default")
    add("--run_name", f"method's name in tables; {run_name}")


def add_data(parser, required=True):
    """Add the options that select the task and its data. required: whether --task must be given."""
    add = group(parser, "data")
    add("--task", ", ".join(data.TASKS), required=required, choices=data.TASKS, metavar="TASK")
    add("--data_dir", "folder with the published files (CoLA/train.tsv, train-v1.1.json, ...) in place of the hub")
    kinds = ", ".join(name for name in data.KINDS if name != "qa")
    add("--kind", f"custom: kind of task, classification if not given: {kinds}")
    add_own_files(add)
    add("--text_prefix", "similarity: put before every text, such as 'query: ' for E5 models", "")
    add("--token_column", "words: column of the word, by number from 1 or UD's name", 1, column)
    add("--label_separator", "custom, multilabel: separator between the labels of one example", ",")
    add("--summary_sentences", "summaries: sentences in each; if not given 1 for scitldr, else 3", type=POSITIVE)
    add(
        "--label_map",
        "names of the teacher's labels and names here, where they do not match: bad=0 good=1",
        nargs="+",
        metavar="THEIRS=OURS",
    )
    add("--regression", "custom: the label is a number: --kind regression", False)
    add("--max_seq_length", "maximum tokens of an input; longer ones are cut", 128, number(int, 8))
    add("--max_train_samples", "number of training examples, the same for every seed and method; 0 = all", 0, COUNT)
    add("--max_eval_samples", "number of examples of each dev set, drawn likewise; 0 = all", 0, COUNT)
    add("--doc_stride", "squad: tokens that two windows of one context share", 128, COUNT)
    add("--max_query_length", "squad: maximum tokens of a question; longer ones are cut", 64, POSITIVE)
    add("--n_best_size", "squad: number of starts and ends that are paired to find an answer", 20, POSITIVE)
    add("--max_answer_length", "squad: maximum tokens of an answer", 30, POSITIVE)
    add("--skip_bad_examples", "count and report broken examples instead of stopping", False)


def add_own_files(add):
    """Add the options for the user's own data and its columns; add: from `group`."""
    add("--dataset_name", "custom and squad: the data's name in folders and tables; by default the hub's")
    add("--hub_dataset", "custom: data set of the hub, owner/name or owner/name:config, or a saved DatasetDict")
    add("--validation_split", "--hub_dataset: name of the split to evaluate on", "validation")
    add("--train_file", "custom and squad: file or folder to train on (docs/data.md); without labels: to distil on")
    add("--validation_file", "custom and squad: file or folder to evaluate on")
    add("--test_file", "custom: file without labels for --do_predict")
    add(
        "--text_columns",
        "custom: one or two text columns; words of --hub_dataset: column of words",
        ["text"],
        nargs="+",
    )
    add(
        "--label_column",
        "custom: label column, or several columns of 0 and 1, one for each label; words: number or UD name of the "
        "tag's column, by default the last (.conllu: upos); words of --hub_dataset: its name, ner_tags by default",
        "label",
        nargs="+",
        action=OneOrMore,
    )
    add(
        "--metrics",
        "custom: headline metrics, whose mean chooses the best student: accuracy, balanced_accuracy, f1 (of the "
        "second of two labels), macro_f1, weighted_f1, matthews_correlation, cohen_kappa; regression: pearson, "
        "spearman, r2; other kinds: any metric that they compute",
        [],
        nargs="+",
        metavar="METRIC",
    )


def add_models(parser):
    """Add the options that name and shape the two models. The upper limits catch slips; memory has its own limit."""
    add = group(parser, "model")
    add("--teacher", "hub id or folder of the teacher; without it the student is trained on the labels alone")
    add("--student", "hub id or folder of the student or, with --student_layers, of its source; default: the teacher")
    add("--student_layers", "build a student with this many layers", type=number(int, 1, 1000))
    add("--student_hidden", "build a student of this width (its source's by default)", type=number(int, 1, 10**6))
    add("--student_heads", "build a student with this many attention heads per layer", type=number(int, 1, 10**4))
    add("--student_intermediate", "build a student with feed-forward layers this wide", type=number(int, 1, 10**7))
    add("--student_init", "layers to copy; uniform if the widths agree", choices=("uniform", "first", "last", "random"))
    add_freezing(add)


def add_freezing(add):
    """Add the option that freezes the word embeddings; add: from `group`."""
    add("--freeze_embeddings", "do not train the student's word embeddings, nor a decoder tied to them", False)


def add_distillation(parser):
    """Add the options of the distillation objective. args.typed lists those given, until `recipes.check_args`."""
    add = group(parser, "distillation", action=Typed)
    add(
        "--terms",
        f"preset ({', '.join(recipes.PRESETS)}) and/or name=weight with names {', '.join(recipes.all_terms())}; "
        "weight 0: not computed; terms between sentences: docs/languages.md; with --task ckd has that task's published "
        "weights times temperature^2",
        ["ckd"],
        nargs="+",
        metavar="TERM",
    )
    add("--hard_weight", "weight of the loss on the true labels; 0 = soft targets only", 0.0, float)
    add("--temperature", "of the logits term, scaled by its square; with --task the task's or the preset's", 1.0, float)
    add(
        "--stages",
        "weights over time: terms and 'hard' (the labels); a number starts the next stage at that share of the steps, "
        "as in 'wr_pair wr_triple 0.5 logits hard=1'; terms not listed are not computed; a term without a weight keeps "
        "that of --terms or --hard_weight; name=0..1 rises evenly",
        nargs="+",
        metavar="WORD",
    )
    maps = ", ".join(layer_maps.STRATEGIES)
    add("--layer_map", f"{maps}, or pairs student:teacher: 0:0,1:2,6:12", "uniform")
    add("--wr_layer_map", "layer map of the word relations; by default --layer_map")
    add("--ltr_layer_map", "layer map of the layer transforming relations; by default --layer_map")
    add("--no_embeddings", "leave the pair 0:0 (embeddings) out of the layer maps", False, nargs=0, const=True)
    add("--window", "words that an angle spans: odd, or 'all'", "21")
    # relations.py has the same names, but it imports torch.
    add("--distance", "similarity of a pair", "cosine", choices=("cosine", "l2"))
    add("--pair_criterion", "criterion between pairs", "kl", choices=("kl", "mse", "l1", "huber"))
    add("--triple_criterion", "criterion between angles", "mse", choices=("mse", "l1", "huber"))


def add_loop(parser):
    """Add the options of the training loop."""
    add_optimisation(parser)
    add_logging(parser)
    add_runtime(parser)


def add_optimisation(parser):
    """Add the options of optimiser, schedule and batches."""
    add = group(parser, "optimisation")
    add(
        "--learning_rate",
        "peak rate of AdamW; fine-tuning with a teacher: the task's",
        5e-5,
        number(float, 0, 100, open_low=True),
        action=Typed,
    )
    add(
        "--num_train_epochs",
        "passes over the data; fine-tuning with a teacher: the task's",
        3.0,
        number(float, 0, 1e6, open_low=True),
        action=Typed,
    )
    add("--max_steps", "optimiser steps, in place of epochs if above 0", 0, number(int, 0, 10**8))
    add("--per_device_train_batch_size", "examples per process and forward pass", 32, BATCH_SIZE)
    add("--gradient_accumulation_steps", "forward passes per optimiser step", 1, number(int, 1, 10**4))
    add("--warmup_ratio", "share of the steps in which the rate rises", 0.1, number(float, 0, 1))
    add(
        "--lr_scheduler_type",
        "how the rate falls after the warm-up",
        "linear",
        choices=("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"),
    )
    add("--weight_decay", "of AdamW, except biases and LayerNorm", 0.01, number(float, 0, 1000))
    add("--max_grad_norm", "maximum gradient norm, 0 = no clipping", 1.0, number(float, 0))


def add_logging(parser):
    """Add the options of logging, evaluation and saving."""
    add = group(parser, "logging")
    add("--logging_steps", "optimiser steps between two TensorBoard points", 50, POSITIVE)
    add(
        "--eval_steps",
        "optimiser steps between evaluations, 0 = at the end of each epoch, and every "
        f"{LONG_EPOCH} steps of a longer epoch or a stream",
        0,
        COUNT,
    )
    add(
        "--log_with",
        f"trackers for scalars and options; TensorBoard's files are always written: {', '.join(TRACKERS)}",
        ["tensorboard"],
        nargs="+",
        choices=TRACKERS,
        metavar="TRACKER",
    )
    add("--early_stopping_patience", "end after so many evaluations without a better score, 0 = never", 0, COUNT)
    add("--save_steps", "steps between checkpoints, 0 = by --save_minutes, else once an epoch", 0, COUNT)
    add(
        "--save",
        "model to keep: the best on the dev set, the last, or both, the last in last/",
        "best",
        choices=("best", "last", "both"),
    )
    add("--save_minutes", "maximum minutes between checkpoints, 0 = no limit", 10.0, number(float, 0))
    add("--keep_checkpoints", "number of newest checkpoints to keep", 1, POSITIVE)
    add("--keep_optimizer", "keep AdamW's state in the checkpoints of a finished run", False)


def add_runtime(parser):
    """Add the options of seed, precision, processes and what to do with an existing run."""
    add = group(parser, "runtime")
    add("--seed", "seed of initialisation, data order and dropout", 1, number(int, 0, 2**31))
    add("--mixed_precision", "autocast of both models", "no", choices=("no", "bf16", "fp16"))
    add("--tf32", "float32 products in TF32 on CUDA (3 digits, faster), except in relations", False)
    add("--per_device_eval_batch_size", "examples per process in evaluation", 64, BATCH_SIZE)
    add("--num_workers", "processes that prepare batches; 2 on CUDA, else 0", type=number(int, 0, 1024))
    add(
        "--timeout_minutes",
        "minutes that a process waits for the others, such as for one that prepares data",
        30.0,
        number(float, 0, 10**6, open_low=True),
    )
    add("--compile", "torch.compile for models, relations and MLM head: slow first steps, not measured on a GPU", False)
    add("--ddp_comm", "precision of the gradients that processes exchange", "no", choices=("no", "bf16"))
    add("--deterministic", "torch's deterministic algorithms (slower on CUDA)", False)
    add("--overwrite", "move the folder's old run aside, to <folder>.old-<time>, and start anew", False)
    add("--check_only", "check the options and do nothing else; exit status 0 or 2", False)


def add_cache(parser):
    """Add the options of the teacher's cache."""
    add = group(parser, "cache")
    add("--cache_teacher", "keep the teacher's outputs for the training set on disk, in half precision", False)
    add("--cache_limit_gb", "largest cache of --cache_teacher, in 10^9 bytes", 20.0, number(float, 0, open_low=True))


# --- the parsers of the scripts -----------------------------------------------------------------------------------


def finetune_parser():
    """Return the parser of distill_finetune.py."""
    parser = Parser(
        description="Task-specific distillation: GLUE, SQuAD, words, several labels, your own files; "
        "without --teacher: fine-tuning."
    )
    add_paths(parser, "runs/<task>/<run_name>/seed<seed>", "finetune without a teacher, else made from --terms")
    add_data(parser)
    add_models(parser)
    add_distillation(parser)
    add_loop(parser)
    add = group(parser, "fine-tuning")
    add("--do_predict", "write predictions of the test set; for GLUE as its submission files", False)
    add("--held_out", "share of the training set that chooses the best model; 0 = dev set", 0.0, number(float, 0, 0.9))
    add("--more_teachers", "further teachers: the logits are the mean of all", [], nargs="+", metavar="TEACHER")
    add("--class_weights", "balanced: every class counts the same in the loss on the labels", choices=("balanced",))
    add_cache(parser)
    return parser


def pretrain_parser():
    """Return the parser of distill_pretrain.py."""
    parser = Parser(
        description="Task-agnostic distillation of a masked language model on plain text; without "
        "--teacher: plain MLM pre-training."
    )
    add_paths(parser, "runs/pretrain/<run_name>/seed<seed>", "mlm without a teacher, else made from --terms")
    add_corpus(parser)
    add_models(parser)
    add_distillation(parser)
    add_loop(parser)
    return parser


def add_corpus(parser):
    """Add the options of distill_pretrain.py's texts and masks."""
    add = group(parser, "data")
    add(
        "--corpus",
        "text to train on: files, folders, globs (text, JSON lines, csv, tsv or Parquet, also in gzip, bzip2 or xz), "
        "or hub ids as owner/name:config; several languages: en=TEXT ko=TEXT ...",
        nargs="+",
        required=True,
        metavar="TEXT",
    )
    add("--validation_corpus", "text to evaluate on; by default blocks held out of --corpus", nargs="+", metavar="TEXT")
    add(
        "--language_exponent",
        "power of a language's share of the blocks in an epoch: 1 = as it is, 0 = all equal",
        0.7,
        number(float, 0, 1),
    )
    add("--text_column", "text column of a corpus that is a table; each row is a document", "text")
    add("--streaming", "read a corpus that does not fit the disk as it comes", False)
    add("--num_proc", "processes that tokenise, 0 = one for each core", 0, COUNT)
    add("--seq_length", "tokens of a block", 128, number(int, 8))
    add("--whole_texts", "one text per block, cut at --seq_length; always on where terms relate sentences", False)
    add(
        "--mlm_probability", "share of tokens masked; 0.15, or 0 for whole texts without head", type=number(float, 0, 1)
    )
    add("--whole_word_mask", "mask all pieces of a word together", False)
    add("--max_train_samples", "number of training blocks, the same for every seed and method; 0 = all", 0, COUNT)
    add("--max_eval_samples", "blocks to evaluate on: of --validation_corpus, or the first of --corpus", 512, POSITIVE)


def dynabert_parser():
    """Return the parser of distill_dynabert.py."""
    parser = Parser(description="DynaBERT with CKD: one student that runs at several widths and depths.")
    add_paths(parser, "runs/<task>/<run_name>/seed<seed>", "made from --terms and the stage by default")
    add_data(parser, required=False)  # --export takes the task from the run
    add = group(parser, "model")
    add("--teacher", "folder of the task's teacher (stage 1) or of the run of stage 1 (stage 2)")
    add("--student", "folder of the run of stage 2, to be trained on the labels (stage 3)")
    add("--width_mults", "shares of heads and neurons", [1.0, 0.75, 0.5, 0.25], float, nargs="+", metavar="M")
    add("--depth_mults", "shares of the layers; not 1.0: stage 2 or 3", [1.0], float, nargs="+", metavar="M")
    add_freezing(add)
    add_distillation(parser)
    add_loop(parser)
    add_cache(parser)
    add = group(parser, "export")
    add("--export", "write a sub-network of this run into --output_dir; nothing is trained", metavar="RUN")
    add("--width", "width of the exported sub-network: one of the run's --width_mults", 1.0, float)
    add("--depth", "depth of the exported sub-network: one of the run's --depth_mults", 1.0, float)
    # Options of distill_finetune.py that have one value here: the student is the whole teacher.
    shape = {f"student_{name}": None for name in ("layers", "hidden", "heads", "intermediate", "init")}
    parser.set_defaults(do_predict=False, held_out=0.0, class_weights=None, more_teachers=[], **shape)
    return parser


def trim_parser():
    """Return the parser of trim_vocabulary.py."""
    parser = Parser(description="Cut a model's vocabulary down to the words of a text; the layers stay the same.")
    add = group(parser, "paths")
    add("--model", "hub id or folder of the model to trim", required=True)
    add("--corpus", "text in all languages to keep: files, globs, hub ids", nargs="+", required=True, metavar="TEXT")
    add("--text_column", "text column of a corpus that is a table; each row is a document", "text")
    add("--output_dir", "new folder for model and tokenizer", type=named_folder, required=True)
    add("--held_out", "other texts, to count how much is cut into other words", [], nargs="+", metavar="TEXT")
    add = group(parser, "words")
    add("--min_count", "minimum count of a kept word; with 1 the text is cut as before", 1, POSITIVE)
    add("--vocab_size", "maximum number of words, the most frequent; special words and characters stay", type=POSITIVE)
    add("--characters", "characters to keep: all of the model's, or of the text", "all", choices=("all", "corpus"))
    return parser


def evaluate_parser():
    """Return the parser of evaluate.py. A data option that is not typed is missing from the result."""
    parser = Parser(description="Scores of saved models on any number of sets, and what each keeps of the first's.")
    add_data(parser, required=False)
    for action in parser._actions:  # a run brings its own options; only typed ones overrule them
        action.default = argparse.SUPPRESS
    add = group(parser, "evaluation")
    add("models", "folders or hub ids; a run of this repository brings its task", nargs="+", metavar="MODEL")
    add("--sets", "files to score on; by default the task's dev set", [], nargs="+", metavar="NAME=PATH")
    add("--predictions", "write a file of predictions for each model and set", False)
    add("--output_dir", "folder for evaluation.json and evaluation.csv", type=named_folder, required=True)
    add("--per_device_eval_batch_size", "examples of a forward pass", 64, BATCH_SIZE)
    return parser


# --- what scripts/presets.sh asks -----------------------------------------------------------------------------------


def main(argv):
    """Print shell assignments of the names that the shell scripts need; after `recipe TASK`, that recipe's numbers.

    The numbers are temperature, weights of pairs and of triples (times temperature^2), learning rate and epochs.
    """
    if argv[:1] == ["recipe"]:
        recipe = recipes.recipe_of(argv[1])
        weights = recipes.ckd_weights(recipe, recipe.temperature)
        numbers = recipe.temperature, weights["wr_pair"], weights["wr_triple"], recipe.learning_rate, recipe.epochs
        print(*(f"{x:g}" for x in numbers))
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
