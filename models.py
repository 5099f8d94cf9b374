"""Models: loading a teacher, building and initialising a student, aligning layers."""
import argparse
import copy
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

import labels as label_names
import losses
import measure

STRATEGIES = ("uniform", "last", "first", "ends")
INITS = ("uniform", "first", "last", "random")


# --- model types -------------------------------------------------------------------------------------------------


def _bert_head(model, x):
    return model.cls.predictions.transform(x)


def _roberta_head(model, x):
    return model.lm_head.layer_norm(torch.nn.functional.gelu(model.lm_head.dense(x)))


def _distilbert_head(model, x):
    return model.vocab_layer_norm(model.activation(model.vocab_transform(x)))


def _electra_head(model, x):
    return model.generator_predictions(x)


class Family(NamedTuple):
    """What this code knows of a model type; hidden states and logits are transformers' own for all of them.

    fast_mask: a bool [B, 1, 1, T] mask means the same to it as a [B, T] mask. layers: the stack of layers, a path below
    base_model; "" = its layers can be neither cut nor copied. qkv: the linear layers of query, key and value, paths
    below a layer; () = no terms of attention. parts: the other linear layers of one: of what was attended to, up to the
    neurons, down from them. mlm: (model, last hidden states [M, D]) -> what its decoder multiplies; None = no
    pre-training. skipped: config -> rows of the position table that no word takes.
    """

    fast_mask: bool
    layers: str = ""
    qkv: tuple = ()
    parts: tuple = ()
    mlm: Callable | None = None
    skipped: Callable = lambda config: 0


_BERT = (tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
         ("attention.output.dense", "intermediate.dense", "output.dense"))  # fmt: skip
_DISTILBERT = tuple(f"attention.{x}_lin" for x in "qkv"), ("attention.out_lin", "ffn.lin1", "ffn.lin2")
_ROBERTA = Family(True, "encoder.layer", *_BERT, _roberta_head, lambda config: config.pad_token_id + 1)
# config.model_type -> what works. The README has the same table.
FAMILIES = {
    "bert": Family(True, "encoder.layer", *_BERT, _bert_head),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Family(True, "transformer.layer", *_DISTILBERT, _distilbert_head),
    "electra": Family(True, "encoder.layer", *_BERT, _electra_head),
    # Attention that adds its mask to biases of relative positions, or multiplies it, takes no bool [B, 1, 1, T].
    "deberta-v2": Family(False, "encoder.layer"),
    "mpnet": Family(False, "encoder.layer", skipped=lambda config: 2),  # whatever its padding id
    "albert": Family(True),  # one layer, applied again and again: there is nothing to cut or to copy
    "modernbert": Family(False),  # layers of two kinds, local and global, which may not take each other's place
}


def family(config, what, auto=None):
    """The Family of a configuration; what: the model's name in errors.

    Raises ValueError, listing the types that work, for a model type that this code does not know, for a decoder, and
    if auto is AutoModelForMaskedLM for one that works in fine-tuning only.
    """
    known = FAMILIES.get(config.model_type)
    if not known or getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        decoder = " used as a decoder" if known else ""
        raise ValueError(f"{what} is of type {config.model_type!r}{decoder}, which does not work here: take a model of "
                         f"type {', '.join(FAMILIES)}")  # fmt: skip
    if auto is AutoModelForMaskedLM and not known.mlm:
        raise ValueError(f"{what} is of type {config.model_type!r}, which works in fine-tuning only: pre-train one of "
                         f"type {', '.join(name for name, f in FAMILIES.items() if f.mlm)}")  # fmt: skip
    return known


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
    """The losses.LayerPairs of one layer map of two models; no_embeddings leaves out (0, 0)."""
    options = argparse.Namespace(layer_map=strategy, wr_layer_map=None, ltr_layer_map=None, no_embeddings=no_embeddings)
    return layer_maps(options, student.config.num_hidden_layers, teacher.config.num_hidden_layers)


def layer_maps(args, n_student, n_teacher):
    """The losses.LayerPairs of the options' layer maps for models of so many layers; --no_embeddings leaves out (0, 0).

    Raises ValueError as `layer_map` does, naming the option of a map that is not --layer_map.
    """
    def pairs(option):
        strategy = getattr(args, option)
        try:
            found = layer_map(n_student, n_teacher, strategy) if strategy else ()
        except ValueError as error:
            raise ValueError(f"--{option}: {error}" if option != "layer_map" else str(error)) from error
        return [pair for pair in found if not (args.no_embeddings and pair == (0, 0))] if strategy else None

    return losses.LayerPairs(*map(pairs, ("layer_map", "wr_layer_map", "ltr_layer_map")))


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
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub, the file system and the parser each raise their own
        raise _explain(what, name, error) from error


def load_tokenizer(name, what="tokenizer of"):
    """Fast tokenizer of a hub id or folder; ValueError in one line where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise _explain(what, name, error) from error
    if not tokenizer.is_fast:
        raise ValueError(f"{what} {str(name)!r} has no fast tokenizer (tokenizer.json): convert it with transformers")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes one up where the files are missing
        raise ValueError(f"{what} {str(name)!r} has no words: tokenizer.json is missing there; copy it from its source")
    return tokenizer


def load_model(name, auto, what="model", *, labels=(), **head):
    """Model of a hub id or folder with a head, and the names of parameters the files did not hold.

    auto: transformers' AutoModelFor... class of the head. labels: a labels.Labels, or words in the order of their ids;
    logits of a head that is there are brought into this order, with a line on stderr if their names are others. head:
    what else the configuration says of the head, such as num_labels. Weights are float32, on the CPU.
    Returns (model in eval mode, names of the parameters of a new head). Raises ValueError in one line, also where
    anything but the head is missing, or a weight is not finite; names on stderr what the files hold and the model does
    not take.
    """
    config, labels = load_config(name, what), as_labels(labels)
    family(config, f"{what} {str(name)!r}", auto)
    loader = narrow(auto._model_mapping[type(config)]) if hasattr(config, "kept_heads") else auto
    options = {"dtype": torch.float32, "trust_remote_code": False, **head}
    if labels:
        options |= {"num_labels": len(labels.names), "id2label": dict(enumerate(labels.names)),
                    "label2id": {word: i for i, word in enumerate(labels.names)}}  # fmt: skip
    try:
        model, info = loader.from_pretrained(name, output_loading_info=True, **options)
    except Exception as error:
        raise _explain(what, name, error) from error
    missing = check_loaded(model, info, f"{what} {str(name)!r}")
    if labels and not missing:
        reorder_head(model, config, labels, f"{what} {str(name)!r}")
    return model.eval(), missing


def as_labels(labels):
    """A labels.Labels from one, or from words that are names too; None where there are no labels."""
    if isinstance(labels, label_names.Labels):
        return labels if labels.words else None
    return label_names.Labels(tuple(labels), tuple(labels), {}) if labels else None


@torch.no_grad()
def reorder_head(model, config, labels, what):
    """Bring a trained head's logits into the order of the labels; of unknown names they stay as they are.

    config: the model's own, with its names. what: the model's name for the line that says which names were matched.
    """
    stored = label_names.stored_names(config)
    order = labels.order(stored)
    if order is None:
        return
    if stored not in (list(labels.words), list(labels.names)) and os.environ.get("RANK", "0") == "0":
        names = [labels.names[order.index(place)] for place in range(len(stored))]
        print(f"{what}: its labels {', '.join(stored)} are taken as {', '.join(names)}; --label_map says otherwise",
              file=sys.stderr)  # fmt: skip
    prefix = f"{model.base_model_prefix}."
    last = [module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
            and not name.startswith(prefix) and module.out_features == len(order)][-1]  # fmt: skip
    for parameter in last.parameters():
        parameter.copy_(parameter[order])


@functools.cache
def narrow(base):
    """The subclass of a transformers model class whose attention has config.kept_heads heads, as `dynabert.extract`
    cuts them: of their old size, so that together they are narrower than the hidden states."""

    class Narrow(base):
        def __init__(self, config, *args, **kwargs):
            super().__init__(config, *args, **kwargs)
            inner = config.kept_heads * (config.hidden_size // config.num_attention_heads)
            for layer in encoder_layers(self):
                for name, linear in layer_parts(layer, config).items():
                    if name in ("query", "key", "value"):
                        linear.__init__(config.hidden_size, inner)
                    elif name == "attended":
                        linear.__init__(inner, config.hidden_size)
                    self._init_weights(linear)

    Narrow.__name__ = Narrow.__qualname__ = base.__name__  # what save_pretrained writes into config.json
    return Narrow


# Of heads that fine-tuning or another task leaves behind, below or beside the encoder; position_ids of old files.
DROPPED = re.compile(r"(cls|lm_head|pooler|classifier|pre_classifier|sop_classifier|qa_outputs|head|decoder|vocab_\w+|"
                     r"predictions|\w+_predictions|generator_lm_head)\.|.*\bposition_ids$")  # fmt: skip


def check_loaded(model, info, what):
    """The sorted names of parameters that the files lacked, all of a head; info: transformers' loading info.

    Raises ValueError if others are missing: transformers leaves them at random values. A head is what lies outside
    base_model, and its pooler, which files of masked language models lack; each of its modules is there or not, never a
    part of it. Raises ValueError too for a weight that is not finite. Tensors that nothing takes are named in a line on
    stderr.
    """
    prefix, missing = f"{model.base_model_prefix}.", sorted(info["missing_keys"])
    if odd := [name for name, value in model.named_parameters() if not value.detach().isfinite().all()]:
        raise ValueError(f"{what}: {len(odd)} of its tensors hold NaN or infinity, first {odd[0]}: the run that made "
                         "it diverged, or the file is damaged; take another one")  # fmt: skip
    lost = [name for name in missing if name.startswith(prefix) and not name.startswith(f"{prefix}pooler.")]
    extra = sorted(n for n in info["unexpected_keys"] if not DROPPED.match(n.removeprefix(prefix)))
    named = f", among them {', '.join(extra[:3])}" if extra else ""
    if lost:
        raise ValueError(
            f"{what}: its files lack {len(lost)} tensors that its config.json describes, first {lost[0]}, which would "
            f"be random, and hold {len(extra)} unknown ones{named}: take files that belong together"
        )
    if half := _half_there(model, missing, prefix):
        raise ValueError(f"{what}: its files hold a part of a head only: {half} is missing and would be random: take "
                         "files that belong together")  # fmt: skip
    if extra and os.environ.get("RANK", "0") == "0":
        print(f"{what}: its files hold {len(extra)} tensors that the model does not take{named}", file=sys.stderr)
    return missing


def _half_there(model, missing, prefix):
    """The first missing parameter of a head's module of which the files held others; None if there is none."""
    def module(name):
        return re.match(rf"({re.escape(prefix)})?[^.]+", name)[0]

    # Of tied weights one name will do, and those that are the encoder's say nothing of the head.
    state = {name: value.data_ptr() for name, value in model.state_dict().items()}
    there = {name: at for name, at in state.items() if name not in missing}
    encoder = {at for name, at in state.items() if name.startswith(prefix) and "pooler." not in name}
    begun = {module(name) for name, at in there.items() if at not in encoder}
    lost = (name for name in missing if state.get(name) not in there.values() and module(name) in begun)
    return next(lost, None)


def check_labels(config, labels, what, remedy):
    """Raise ValueError if a trained classifier has other labels than the task, whatever their order and spelling."""
    labels = as_labels(labels)
    if not labels:
        return
    stored, ours = label_names.stored_names(config), list(labels.names)
    if labels.given and set(labels.given) != set(stored):
        raise ValueError(f"--label_map names {list(labels.given)}, {what} has labels {stored}: name each of these once")
    if labels.order(stored) is None:
        alike = len(stored) == len(ours)
        by_hand = f"say which is which by --label_map {stored[0]}={ours[0]} ..., or " if alike else ""
        raise ValueError(f"{what} was trained on labels {stored}, the task has {ours}: {by_hand}make a model for this "
                         f"task first: {remedy}")  # fmt: skip


def load_teacher(name, auto, *, labels=(), need_head=True, fine_tune_command="distill_finetune.py", **head):
    """The frozen teacher; its head must have been trained, unless need_head is false.

    Arguments as in `load_model`. Raises ValueError if the head would be freshly initialised or has other labels.
    """
    config = load_config(name, "--teacher")
    check_labels(config, labels, f"--teacher {name!r}", fine_tune_command)
    model, missing = load_model(name, auto, "--teacher", labels=labels, **head)
    if missing and need_head:
        needs = "language-model" if auto is AutoModelForMaskedLM else "task"
        raise ValueError(
            f"--teacher {name!r} carries no trained {needs} head ({', '.join(missing[:2])} would be random): "
            f"make one first: {fine_tune_command}"
        )
    ending, trained = type(model).__name__.partition("For")[2], (config.architectures or [""])[0]
    if need_head and auto is not AutoModelForMaskedLM and trained and not trained.endswith(ending):
        raise ValueError(  # ModernBERT's heads for questions and for classes have the same names and shapes
            f"--teacher {name!r} is a {trained}, this task needs a {type(model).__name__}: make one "
            f"first: {fine_tune_command}"
        )
    return model.requires_grad_(False)


def check_tokenizer(tokenizer, config, what, auto):
    """Raise ValueError unless the model has a row for every word and the tokenizer the special words that are needed.

    config: the model's. what: its name in errors. auto: as in `load_model`.
    """
    last = max(tokenizer.get_vocab().values())
    if last >= config.vocab_size:
        raise ValueError(f"tokenizer of {what} has words up to number {last}, the model's embedding only rows up to "
                         f"{config.vocab_size - 1}: resize_token_embeddings, then save the model again")  # fmt: skip
    for name in ("pad", "cls", "sep") + (("mask",) if auto is AutoModelForMaskedLM else ()):
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise ValueError(f"tokenizer of {what} has no {name}_token: name it in its tokenizer_config.json, or take "
                             "the tokenizer that the model was trained with")  # fmt: skip
    ids = tokenizer("")["input_ids"]
    if auto is not AutoModelForMaskedLM and not {tokenizer.cls_token_id, tokenizer.sep_token_id} <= set(ids):
        raise ValueError(f"tokenizer of {what} puts no {tokenizer.cls_token} and {tokenizer.sep_token} around a text: "
                         "give its tokenizer.json a post_processor that does")  # fmt: skip


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
    if hasattr(config, "pooler_hidden_size"):  # DeBERTa's, which follows the width
        names["pooler_hidden_size"] = hidden
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
    """The ModuleList of transformer layers, whatever the model's head; ValueError where they cannot be told apart."""
    check_layers_known(model.config, type(model).__name__)
    return model.base_model.get_submodule(FAMILIES[model.config.model_type].layers)


def layer_parts(layer, config):
    """The six linear layers of a transformer layer: {"query", "key", "value", "attended", "up", "down": Linear}.

    attended: from what all heads attended to. up, down: to the neurons of the feed-forward layer and from them.
    """
    known = FAMILIES[config.model_type]
    names = ("query", "key", "value", "attended", "up", "down")
    return {name: layer.get_submodule(path) for name, path in zip(names, known.qkv + known.parts, strict=True)}


def feed_forward_size(config):
    """Neurons of a feed-forward layer, whatever the configuration calls them."""
    return config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size


def check_layers_known(config, what):
    """Raise ValueError if the layers of a model can neither be cut nor copied."""
    if not family(config, what).layers:
        able = ", ".join(name for name, f in FAMILIES.items() if f.layers)
        raise ValueError(f"{what}: a student cannot be cut from a model of type {config.model_type!r}, whose layers "
                         f"are shared or of two kinds, only from {able}: pass a small one as --student")  # fmt: skip


def check_size(config, auto):
    """Raise ValueError if a student of this configuration is more than the machine's memory holds.

    On a CPU it takes 16 bytes a parameter (weight, gradient, two moments of AdamW), else 4 until it is on the device.
    """
    counts = []
    for layers in (1, 2):  # all layers are alike, and a thousand take long even without storage
        small = copy.deepcopy(config)
        small.num_hidden_layers = layers
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in auto.from_config(small, trust_remote_code=False).parameters()))
    total = counts[0] + (config.num_hidden_layers - 1) * (counts[1] - counts[0])
    needed, there = total * (4 if torch.cuda.is_available() else 16), measure.machine_memory()
    if needed > there:
        raise ValueError(
            f"a student of {config.num_hidden_layers} layers, width {config.hidden_size} has {total:.3g} parameters, "
            f"which take {needed / 1e9:.3g} GB to train, and this machine has {there / 1e9:.3g} GB: lower "
            "--student_layers, --student_hidden or --student_intermediate"
        )


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


def build_student(source, auto, shape, init=None):
    """A student of the given shape, initialised from the layers of the source model.

    source: a model with the head of the class auto. shape: keyword arguments of `student_config`. init: one of INITS;
    None takes "uniform" where the width allows it, else "random", which copies nothing. A source whose layers have
    fewer heads than its width divides into, see `narrow`, gives them to the student, unless the shape says heads or
    width.
    """
    encoder_layers(source)  # it has some that can be told apart
    config = student_config(source.config, **shape)
    if hasattr(config, "kept_heads") and not (shape.get("heads") or shape.get("hidden")):
        student = type(source)._from_config(config, attn_implementation=source.config._attn_implementation)
    else:
        vars(config).pop("kept_heads", None)
        student = auto.from_config(
            config, attn_implementation=source.config._attn_implementation, trust_remote_code=False
        )
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


# Options that shape a student, and the largest that is not taken for a slip; memory is a limit of its own.
SHAPE = {"layers": 1000, "hidden": 1_000_000, "heads": 10_000, "intermediate": 10_000_000}


def student_shape(args):
    """The shape options that were given, as keyword arguments of `student_config`."""
    given = {name: getattr(args, f"student_{name}") for name in SHAPE}
    return {name: value for name, value in given.items() if value is not None}


def check_args(args):
    """Check the options of `add_arguments`; raises ValueError."""
    shape = student_shape(args)
    for name, value in shape.items():
        if not 1 <= value <= SHAPE[name]:
            raise ValueError(f"--student_{name} {value} must be at least 1 and at most {SHAPE[name]}")
    for name in ("teacher", "student"):
        if getattr(args, name) is not None and not getattr(args, name).strip():
            raise ValueError(f"--{name} {getattr(args, name)!r} names no model: pass a hub id or folder, or leave the "
                             "option out")  # fmt: skip
    if not args.teacher and not args.student:
        raise ValueError("--student is missing: pass a hub id or folder, such as bert-base-multilingual-cased")
    if not args.student and not shape:
        raise ValueError("pass --student (hub id or folder), or --student_layers to cut a student from the teacher")
    if args.student_init and not shape:
        raise ValueError(f"--student_init {args.student_init} is for a student built with --student_layers: add that")


def check_types(args, auto):
    """The configurations of teacher and student, by name in errors; ValueError if what is asked for cannot work."""
    configs = {f"--{option} {name!r}": load_config(name, f"--{option}")
               for option, name in (("teacher", args.teacher), ("student", args.student)) if name}  # fmt: skip
    attention = [name for name in getattr(args, "terms", ()) if losses.needs_of(name).qkv is not losses.nothing]
    for what, config in configs.items():
        known = family(config, what, auto)
        if attention and not known.qkv:
            able = ", ".join(name for name, f in FAMILIES.items() if f.qkv)
            raise ValueError(f"{attention[0]} reads queries and keys, which are not known of {what} of type "
                             f"{config.model_type!r}, only of {able}: leave the term out")  # fmt: skip
    what, source = list(configs.items())[-1]
    if student_shape(args):
        check_layers_known(source, what)
        source = student_config(source, **student_shape(args))
        check_size(source, auto)
    sizes = {config.vocab_size for config in configs.values()}
    if len(sizes) > 1 and auto is AutoModelForMaskedLM and "logits" in getattr(args, "terms", ()):
        raise ValueError(f"teacher and student give logits over {' and '.join(map(str, sizes))} words: resize one "
                         "embedding, or leave out logits (--terms ckd logits=0)")  # fmt: skip
    return configs


def load_pair(args, auto, *, labels=(), need_head=True, fine_tune_command="", **head):
    """(student, teacher or None, tokenizer) as the options say; the student is float32, in train mode later.

    auto, labels, head: as in `load_model`. need_head, fine_tune_command: as in `load_teacher`.
    Raises ValueError in one line for a model that cannot be had, other vocabularies or an untrained teacher.
    """
    configs = check_types(args, auto)
    tokenizer = load_tokenizer(args.teacher or args.student, "tokenizer of")
    if args.teacher and args.student and args.student != args.teacher:
        check_vocabulary(load_tokenizer(args.student, "tokenizer of --student"), tokenizer, args.student, args.teacher)
    for what, config in configs.items():
        check_tokenizer(tokenizer, config, what, auto)
    teacher = None
    if args.teacher:
        teacher = load_teacher(args.teacher, auto, labels=labels, need_head=need_head,
                               fine_tune_command=fine_tune_command, **head)  # fmt: skip
    if args.student:
        student, _ = load_model(args.student, auto, "--student", labels=labels, **head)
    shape = student_shape(args)
    if shape:
        student = build_student(student if args.student else teacher, auto, shape, args.student_init)
    return student, teacher, tokenizer


class MaskedLM(torch.nn.Module):
    """A masked language model whose head is applied at the masked positions only.

    forward(inputs, positions [M] in the flattened batch) -> {"hidden_states": tuple of [B, T, D], "features": [M, D]},
    where the features times the decoder (`decoder`) are the logits. A multilingual head of 119,547 words would
    otherwise cost as much as twelve layers.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs, positions):
        """See the class."""
        hidden = self.model.base_model(**inputs, output_hidden_states=True).hidden_states
        chosen = hidden[-1].flatten(0, 1)[positions]
        return {"hidden_states": hidden, "features": self._transform(chosen)}

    def _transform(self, x):
        return FAMILIES[self.model.config.model_type].mlm(self.model, x)

    @property
    def decoder(self):
        """(weight [V, D], bias [V]) of the decoder."""
        layer = self.model.get_output_embeddings()
        return layer.weight, layer.bias


# --- what terms need besides hidden states -------------------------------------------------------------------------


def add_outputs(model, qkv_layers=(), projected=None, width=None, seed=0):
    """Add to what the model's forward returns, which becomes a dict, the inputs of the terms of other methods.

    qkv_layers: layers, counted as in hidden_states, whose queries, keys and values come as out["qkv"]: layer -> three
    [B, T, heads, D / heads], taken from the linear layers, so any kernel of attention will do. projected: term ->
    layers whose hidden states come projected to `width`, as out["projected"]: term -> layer -> [B, T, width]; the
    weights, drawn from the seed, are parameters in model.projections. All within forward, where DDP wants it.
    """
    inner, captured = model.model if isinstance(model, MaskedLM) else model, {}
    for layer in qkv_layers:
        for i, path in enumerate(FAMILIES[inner.config.model_type].qkv):
            linear = encoder_layers(inner)[layer - 1].get_submodule(path)
            linear.register_forward_hook(lambda _, args, out, key=(layer, i): captured.__setitem__(key, out))
    if projected:
        generator = torch.Generator().manual_seed(seed)
        model.projections = torch.nn.ModuleDict()
        for term in projected:
            linear = torch.nn.Linear(inner.config.hidden_size, width, bias=False)
            torch.nn.init.normal_(linear.weight, std=0.02, generator=generator)  # as BERT's own layers
            model.projections[term] = linear

    def extend(model, args, out):
        """The hook that adds them: what the linear layers of this forward pass gave, and projected hidden states."""
        out, size = dict(out), inner.config.hidden_size // inner.config.num_attention_heads  # of a head, however many
        if qkv_layers:
            out["qkv"] = {
                layer: tuple(captured.pop((layer, i)).unflatten(-1, (-1, size)) for i in range(3))
                for layer in qkv_layers
            }
        if projected and "hidden_states" in out:
            with torch.autocast(out["hidden_states"][0].device.type, enabled=False):
                out["projected"] = {
                    term: {layer: model.projections[term](out["hidden_states"][layer].float()) for layer in layers}
                    for term, layers in projected.items()
                }
        return out

    if qkv_layers or projected:
        model.register_forward_hook(extend)


def add_term_outputs(args, student, teacher):
    """Make both models (or their MaskedLM) return what args.terms need besides logits and hidden states."""
    configs = [(m.model if isinstance(m, MaskedLM) else m).config for m in (student, teacher)]
    qkv, width = losses.qkv_pairs(args.terms, args.layer_pairs), configs[1].hidden_size
    projected = {} if configs[0].hidden_size == width else losses.projected_layers(args.terms, args.layer_pairs)
    add_outputs(student, [s for s, _ in qkv], projected, width, args.seed)
    add_outputs(teacher, [t for _, t in qkv])


def compile_models(*models):
    """Put the models' forward through torch.compile in place, once for all lengths; None is passed over."""
    for model in filter(None, models):
        model.compile(dynamic=True)


def saved_state(model):
    """The model's state dict without what `add_outputs` added to it."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("projections.")}


# --- inputs --------------------------------------------------------------------------------------------------------


def model_inputs(model, batch):
    """The part of a batch that a model's forward takes: no token types where it has none, no labels.

    The mask goes in as bool [B, 1, 1, T] where that means the same: from [B, T] transformers would make it itself,
    after asking the device whether there is any padding.
    """
    config, mask = model.config, batch["attention_mask"]
    # Attention written out would add False and True to its scores.
    if FAMILIES[config.model_type].fast_mask and config._attn_implementation == "sdpa":
        mask = mask.bool()[:, None, None]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": mask}
    # Of the class: what the model's own attribute is wrapped in may hide the signature.
    takes = inspect.signature(type(model).forward).parameters
    if "token_type_ids" in batch and "token_type_ids" in takes and getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = batch["token_type_ids"]
    return inputs


def max_tokens(config):
    """Longest input in tokens. RoBERTa and MPNet count their positions from the padding id on."""
    return config.max_position_embeddings - FAMILIES[config.model_type].skipped(config)


@torch.no_grad()
def relation_figures(student, teacher, pairs, inputs, tokens):
    """{tag: figure} of the cosines that both models have in one sentence, teacher and student side by side.

    relations/words: between its words, in the last of the aligned pairs; relations/layers: between every two aligned
    layers, for each word, where there are two. inputs: tensors [1, T] for both models. tokens: the T words.
    """
    import pictures  # here: matplotlib takes 0.3 s, and runs without a teacher draw nothing

    words, layers, pairs = [], [], losses.LayerPairs(pairs, getattr(pairs, "wr", None), getattr(pairs, "ltr", None))
    for model, own in zip((teacher, student), pairs.sides()[::-1], strict=True):
        encoder = (model.model if isinstance(model, MaskedLM) else model).base_model
        hidden = encoder(**model_inputs(encoder, inputs), output_hidden_states=True).hidden_states
        unit = [torch.nn.functional.normalize(h[0].float(), dim=-1) for h in hidden]  # [T, D] each
        words.append((unit[own.wr[-1]] @ unit[own.wr[-1]].T).cpu().numpy())
        through = torch.stack([unit[i] for i in own.ltr], 1)  # [T, L, D]
        layers.append((through @ through.mT)[:, *torch.triu_indices(len(own.ltr), len(own.ltr), 1)].cpu().numpy())
    figures = {"relations/words": pictures.relation_figure(*words, tokens)}
    if len(pairs.ltr) > 1:
        figures["relations/layers"] = pictures.relation_figure(*layers, tokens, "layers 1-2, 1-3, ... of the aligned")
    return figures
