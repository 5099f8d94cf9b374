"""Models: loading a teacher, building and initialising a student, aligning layers, counting parameters and FLOPs."""
import copy
import inspect
import re
import statistics
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

AUTO = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "qa": AutoModelForQuestionAnswering,
    "mlm": AutoModelForMaskedLM,
}
STRATEGIES = ("uniform", "last", "first", "ends")
INITS = ("uniform", "first", "last", "random")


def layer_map(n_student, n_teacher, strategy):
    """Aligned pairs [(student index, teacher index), ...] over hidden_states, where 0 is the embedding output.

    n_student, n_teacher: numbers of layers. strategy: "uniform" (s with round(s * n_teacher / n_student)), "first" (s
    with s), "last" (the last n_student layers, and the embeddings), "ends" (embeddings, middle, last), or explicit
    pairs as "0:0,1:2,6:12". Raises ValueError for an unknown strategy or a pair outside the models.
    """
    if strategy == "uniform":
        return [(s, round(s * n_teacher / n_student)) for s in range(n_student + 1)]
    if strategy in ("first", "last"):
        if n_student > n_teacher:
            raise ValueError(
                f"layer map {strategy!r} needs a teacher at least as deep as the student, not {n_teacher} layers for "
                f"{n_student}: use 'uniform' or explicit pairs"
            )
        skip = n_teacher - n_student if strategy == "last" else 0
        return [(0, 0)] + [(s, s + skip) for s in range(1, n_student + 1)]
    if strategy == "ends":
        return sorted({(0, 0), (n_student // 2, n_teacher // 2 if n_student > 1 else 0), (n_student, n_teacher)})
    if not re.fullmatch(r"\d{1,4}:\d{1,4}(,\d{1,4}:\d{1,4})*", strategy, re.ASCII):
        raise ValueError(
            f"unknown layer map {strategy!r}: choose {', '.join(STRATEGIES)}, or pairs student:teacher as in 0:0,6:12"
        )
    pairs = [tuple(int(i) for i in pair.split(":")) for pair in strategy.split(",")]
    for s, t in pairs:
        if s > n_student or t > n_teacher:
            raise ValueError(
                f"layer map pair {s}:{t} lies outside the models: the student has hidden states 0 to {n_student}, "
                f"the teacher 0 to {n_teacher}"
            )
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"layer map {strategy!r} holds a pair twice: give every pair once")
    return pairs


def aligned(student, teacher, strategy, no_embeddings=False):
    """The layer map of two models; no_embeddings leaves out (0, 0)."""
    pairs = layer_map(len(encoder_layers(student)), len(encoder_layers(teacher)), strategy)
    return [pair for pair in pairs if not (no_embeddings and pair == (0, 0))]


# --- loading -----------------------------------------------------------------------------------------------------


def _explain(what, name, error):
    """One line for a model or tokenizer that could not be loaded."""
    if "ignore_mismatched_sizes" in str(error):
        return ValueError(
            f"{what} {str(name)!r} has a head for another number of labels than this task's (or weights of another "
            "shape than its config.json says): pass a model of this task or one without a head"
        )
    if not Path(name).is_dir() and (str(name).startswith((".", "/", "~")) or str(name).count("/") > 1):
        return ValueError(f"{what} {str(name)!r} is not a folder: check the path")
    if Path(name).is_dir():
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return ValueError(f"{what} {str(name)!r} could not be loaded: {first}")
    return ValueError(
        f"{what} {str(name)!r} is no local folder and could not be had from the Hugging Face hub "
        f"({type(error).__name__}): check the name and the network, or download it and pass its folder"
    )


def load_config(name, what="model"):
    """Configuration of a hub id or folder; ValueError in one line where there is none."""
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:  # the hub, the file system and the parser each raise their own
        raise _explain(what, name, error) from error


def load_tokenizer(name, what="tokenizer of"):
    """Fast tokenizer of a hub id or folder; ValueError in one line where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise _explain(what, name, error) from error
    if not tokenizer.is_fast:
        raise ValueError(f"{what} {str(name)!r} has no fast tokenizer (tokenizer.json): convert it with transformers")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes one up where the files are missing
        raise ValueError(f"{what} {str(name)!r} has no words: tokenizer.json is missing there; copy it from its source")
    return tokenizer


def load_model(name, kind, what="model", *, labels=None, attentions=False):
    """Model of a hub id or folder with the head of its kind, and the names of parameters the files did not hold.

    kind: "classification", "regression", "qa" or "mlm". labels: label words in the order of their ids, for
    classification. attentions: whether attention probabilities will be asked for. Weights are float32, on the CPU.
    Returns (model in eval mode, list of missing parameter names). Raises ValueError in one line.
    """
    options = {"attn_implementation": "eager" if attentions else "sdpa", "dtype": torch.float32}
    if kind == "regression":
        options |= {"num_labels": 1, "problem_type": "regression"}
    elif labels:
        options |= {"num_labels": len(labels), "id2label": dict(enumerate(labels)),
                    "label2id": {word: i for i, word in enumerate(labels)}}  # fmt: skip
    try:
        model, info = AUTO[kind].from_pretrained(name, output_loading_info=True, **options)
    except Exception as error:
        raise _explain(what, name, error) from error
    return model.eval(), sorted(info["missing_keys"])


def check_labels(config, kind, labels, what, remedy):
    """Raise ValueError if a trained classifier has other labels, or the same in another order, than the task."""
    if kind != "classification" or not labels:
        return
    stored = [config.id2label[i] for i in sorted(config.id2label)]
    generic = all(re.fullmatch(r"LABEL_\d+", word) for word in stored)
    if len(stored) != len(labels) or (not generic and stored != list(labels)):
        raise ValueError(
            f"{what} was trained on labels {stored}, the task has {list(labels)}: make a model for this task first: "
            f"{remedy}"
        )


def load_teacher(name, kind, *, labels=None, attentions=False, fine_tune_command="distill_finetune.py"):
    """The frozen teacher; its head must have been trained.

    Arguments as in `load_model`. Raises ValueError if the head would be freshly initialised or has other labels.
    """
    check_labels(load_config(name, "--teacher"), kind, labels, f"--teacher {name!r}", fine_tune_command)
    model, missing = load_model(name, kind, "--teacher", labels=labels, attentions=attentions)
    if missing:
        needs = "language-model" if kind == "mlm" else "task"
        raise ValueError(
            f"--teacher {name!r} carries no trained {needs} head ({', '.join(missing[:2])} would be random): "
            f"make one first: {fine_tune_command}"
        )
    return model.requires_grad_(False)


def check_vocabulary(student, teacher, student_name, teacher_name):
    """Raise ValueError unless the two tokenizers map the same words to the same ids."""
    s, t = student.get_vocab(), teacher.get_vocab()
    if s != t:
        raise ValueError(
            f"student {student_name!r} ({len(s)} words) and teacher {teacher_name!r} ({len(t)} words) have different "
            "vocabularies: take a student with the teacher's vocabulary, or build one with --student_layers"
        )


# --- building a student --------------------------------------------------------------------------------------------


def student_config(source, layers=None, hidden=None, heads=None, intermediate=None):
    """Copy of a configuration with another shape; None keeps the source's number. Raises ValueError if impossible."""
    config = copy.deepcopy(source)
    names = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    names["hidden_dim" if config.model_type == "distilbert" else "intermediate_size"] = intermediate
    for name, value in names.items():
        if value is not None:
            setattr(config, name, value)
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"--student_hidden {config.hidden_size} is not a multiple of {config.num_attention_heads} heads: "
            "choose --student_heads that divides it"
        )
    return config


def encoder_layers(model):
    """The ModuleList of transformer layers of a BERT, RoBERTa/XLM-R or DistilBERT model, whatever its head."""
    base = model.base_model
    encoder = getattr(base, "encoder", None) or getattr(base, "transformer", None)
    layers = getattr(encoder, "layer", None)
    if layers is None:
        raise ValueError(f"{type(model).__name__} has no known stack of layers: use BERT, RoBERTa or DistilBERT")
    return layers


def copy_weights(student, source, init):
    """Copy the source's layers into the student by an initialisation strategy, and all else whose shape fits.

    init: "uniform", "first" or "last", as in `layer_map`. Raises ValueError if the layers' shapes or heads differ.
    Returns the names of student parameters that kept their random values.
    """
    to_layers, from_layers = encoder_layers(student), encoder_layers(source)
    if student.config.num_attention_heads != source.config.num_attention_heads:
        raise ValueError(
            f"--student_init {init} copies layers with {source.config.num_attention_heads} heads, the student has "
            f"{student.config.num_attention_heads}: use --student_init random"
        )
    for s, t in layer_map(len(to_layers), len(from_layers), init)[1:]:
        try:
            # A student more than twice as deep aligns its first layers with the embeddings: those take layer 1.
            to_layers[s - 1].load_state_dict(from_layers[max(t, 1) - 1].state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"--student_init {init} copies layers of width {source.config.hidden_size}, the student's shape "
                "differs: use --student_init random"
            ) from error
    state = source.state_dict()
    inside = {id(p) for p in to_layers.parameters()}
    left = []
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if id(parameter) in inside:
                continue
            if name in state and state[name].shape == parameter.shape:
                parameter.copy_(state[name])
            else:
                left.append(name)
    return left


def build_student(source, kind, shape, init=None):
    """A student of the given shape, initialised from the layers of the source model.

    source: a model with the head of its kind. shape: keyword arguments of `student_config`. init: one of INITS; None
    takes "uniform" where the width allows it, else "random", which copies nothing.
    """
    config = student_config(source.config, **shape)
    student = AUTO[kind].from_config(config, attn_implementation=source.config._attn_implementation)
    if init is None:
        shapes = [
            [model.config.num_attention_heads, *(p.shape for p in encoder_layers(model)[0].parameters())]
            for model in (student, source)
        ]
        init = "uniform" if shapes[0] == shapes[1] else "random"
    if init != "random":
        copy_weights(student, source, init)
    return student


def add_arguments(parser):
    """Options that name and shape the two models."""
    add = parser.add_argument_group("model").add_argument
    add("--teacher", help="hub id or folder of the teacher; without it the student is trained on the labels alone")
    add("--student", help="hub id or folder of the student, or, with --student_layers, of what it is cut from; "
        "without it the student is cut from the teacher")
    add("--student_layers", type=int, help="build a student with this many layers")
    add("--student_hidden", type=int, help="build a student of this width (its source's by default)")
    add("--student_heads", type=int, help="build a student with this many attention heads a layer")
    add("--student_intermediate", type=int, help="build a student with this width of the feed-forward layers")
    add("--student_init", choices=INITS, help="layers to copy into a built student; uniform if the widths agree")


SHAPE = ("layers", "hidden", "heads", "intermediate")


def student_shape(args):
    """The shape options that were given, as keyword arguments of `student_config`."""
    given = {name: getattr(args, f"student_{name}") for name in SHAPE}
    return {name: value for name, value in given.items() if value is not None}


def check_args(args):
    """Check the options of `add_arguments`; raises ValueError."""
    shape = student_shape(args)
    for name, value in shape.items():
        if value < 1:
            raise ValueError(f"--student_{name} {value} must be at least 1")
    if not args.teacher and not args.student:
        raise ValueError("--student is missing: pass a hub id or folder, such as bert-base-multilingual-cased")
    if not args.student and not shape:
        raise ValueError("pass --student (hub id or folder), or --student_layers to cut a student from the teacher")
    if args.student_init and not shape:
        raise ValueError(f"--student_init {args.student_init} is for a student built with --student_layers: add that")


def load_pair(args, kind, *, labels=None, attentions=False, fine_tune_command=""):
    """(student, teacher or None, tokenizer) as the options say; the student is float32, in train mode later.

    Raises ValueError in one line for a model that cannot be had, other vocabularies or an untrained teacher.
    """
    tokenizer = load_tokenizer(args.teacher or args.student, "tokenizer of")
    if args.teacher and args.student and args.student != args.teacher:
        check_vocabulary(load_tokenizer(args.student, "tokenizer of --student"), tokenizer, args.student, args.teacher)
    teacher = None
    if args.teacher:
        teacher = load_teacher(args.teacher, kind, labels=labels, attentions=attentions,
                               fine_tune_command=fine_tune_command)  # fmt: skip
    if args.student:
        student, _ = load_model(args.student, kind, "--student", labels=labels, attentions=attentions)
    shape = student_shape(args)
    if shape:
        student = build_student(student if args.student else teacher, kind, shape, args.student_init)
    return student, teacher, tokenizer


# --- inputs, counts and latency ------------------------------------------------------------------------------------


def model_inputs(model, batch):
    """The part of a batch that a model's forward takes: no token types where it has none, no labels."""
    names = ["input_ids", "attention_mask"]
    takes = inspect.signature(model.forward).parameters
    if "token_type_ids" in takes and getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    return {name: batch[name] for name in names if name in batch}


def max_tokens(config):
    """Longest input in tokens. RoBERTa counts its positions from the padding id on."""
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return config.max_position_embeddings - offset


def count_parameters(model):
    """(all parameters, parameters without the embedding block), tied ones counted once."""
    embeddings = sum(p.numel() for p in model.base_model.embeddings.parameters())
    total = sum(p.numel() for p in model.parameters())
    return total, total - embeddings


def count_flops(model, seq_len):
    """Floating-point operations (a multiply-add is two) of one forward pass over one sequence of seq_len tokens.

    Counted by torch.utils.flop_counter on a copy without storage, with attention written out, because fused kernels
    are not counted on every device.
    """
    with torch.device("meta"):
        twin = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
        ids = torch.zeros(1, seq_len, dtype=torch.long)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin(input_ids=ids)
    return counter.get_total_flops()


def describe(model, seq_len):
    """Shape and size of a model as they stand in run.json."""
    config, (total, without) = model.config, count_parameters(model)
    return {
        "type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "intermediate_size": getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None),
        "vocab_size": config.vocab_size,
        "parameters": total,
        "parameters_without_embeddings": without,
        "seq_length": seq_len,
        "flops_per_sequence": count_flops(model, seq_len),
    }


@torch.no_grad()
def measure_latency(models, seq_len, batch_sizes=(1, 32), repeats=5):
    """Median milliseconds of a forward pass of each model, taken in turns so that noise meets all alike.

    models: name -> model, all on one device, put into eval mode. Returns name -> {batch size: milliseconds}.
    """
    result = {name: {} for name in models}
    for size in batch_sizes:
        times = {name: [] for name in models}
        for repeat in range(repeats + 1):
            for name, model in models.items():
                ids = torch.full((size, seq_len), 5, device=model.device)
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                model.eval()
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                start = time.perf_counter()
                model(**inputs)
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                if repeat:  # the first pass warms up
                    times[name].append(1000 * (time.perf_counter() - start))
        for name in models:
            result[name][str(size)] = round(statistics.median(times[name]), 3)
    return result


@torch.no_grad()
def relation_figure(student, teacher, pairs, inputs, tokens):
    """Figure of the cosines between the words of one sentence, teacher and student side by side, in the last pair.

    inputs: tensors [1, T] for both models. tokens: the T words to write at the axes.
    """
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    s, t = pairs[-1]
    for axes, name, model, layer in zip(
        figure.subplots(1, 2), ("teacher", "student"), (teacher, student), (t, s), strict=True
    ):
        hidden = model(**model_inputs(model, inputs), output_hidden_states=True).hidden_states[layer][0].float()
        unit = torch.nn.functional.normalize(hidden, dim=-1)
        image = axes.imshow((unit @ unit.T).cpu(), vmin=-1, vmax=1, cmap="RdBu_r")
        axes.set_title(f"{name}, layer {layer}")
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=7)
    figure.colorbar(image, ax=figure.axes, label="cosine of word pairs")
    return figure
