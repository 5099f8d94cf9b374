"""Models: loading a teacher, building and initialising a student, aligning layers."""
import copy
import inspect
import re
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import baselines

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


def load_model(name, kind, what="model", *, labels=None):
    """Model of a hub id or folder with the head of its kind, and the names of parameters the files did not hold.

    kind: "classification", "regression", "qa" or "mlm". labels: label words in the order of their ids, for
    classification. Weights are float32, on the CPU.
    Returns (model in eval mode, list of missing parameter names). Raises ValueError in one line.
    """
    options = {"attn_implementation": "sdpa", "dtype": torch.float32}
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


def load_teacher(name, kind, *, labels=None, need_head=True, fine_tune_command="distill_finetune.py"):
    """The frozen teacher; its head must have been trained, unless need_head is false.

    Arguments as in `load_model`. Raises ValueError if the head would be freshly initialised or has other labels.
    """
    check_labels(load_config(name, "--teacher"), kind, labels, f"--teacher {name!r}", fine_tune_command)
    model, missing = load_model(name, kind, "--teacher", labels=labels)
    if missing and need_head:
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


def load_pair(args, kind, *, labels=None, need_head=True, fine_tune_command=""):
    """(student, teacher or None, tokenizer) as the options say; the student is float32, in train mode later.

    Raises ValueError in one line for a model that cannot be had, other vocabularies or an untrained teacher.
    """
    tokenizer = load_tokenizer(args.teacher or args.student, "tokenizer of")
    if args.teacher and args.student and args.student != args.teacher:
        check_vocabulary(load_tokenizer(args.student, "tokenizer of --student"), tokenizer, args.student, args.teacher)
    teacher = None
    if args.teacher:
        teacher = load_teacher(args.teacher, kind, labels=labels, need_head=need_head,
                               fine_tune_command=fine_tune_command)  # fmt: skip
    if args.student:
        student, _ = load_model(args.student, kind, "--student", labels=labels)
    shape = student_shape(args)
    if shape:
        student = build_student(student if args.student else teacher, kind, shape, args.student_init)
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
        model = self.model
        if hasattr(model, "cls"):  # BERT
            return model.cls.predictions.transform(x)
        if hasattr(model, "lm_head"):  # RoBERTa, XLM-R
            return model.lm_head.layer_norm(torch.nn.functional.gelu(model.lm_head.dense(x)))
        return model.vocab_layer_norm(model.activation(model.vocab_transform(x)))  # DistilBERT

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
        for i, linear in enumerate(_qkv_linears(encoder_layers(inner)[layer - 1])):
            linear.register_forward_hook(lambda _, args, out, key=(layer, i): captured.__setitem__(key, out))
    if projected:
        generator = torch.Generator().manual_seed(seed)
        model.projections = torch.nn.ModuleDict()
        for term in projected:
            linear = torch.nn.Linear(inner.config.hidden_size, width, bias=False)
            torch.nn.init.normal_(linear.weight, std=0.02, generator=generator)  # as BERT's own layers
            model.projections[term] = linear

    def extend(model, args, out):
        out, heads = dict(out), inner.config.num_attention_heads
        if qkv_layers:
            out["qkv"] = {
                layer: tuple(captured.pop((layer, i)).unflatten(-1, (heads, -1)) for i in range(3))
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
    qkv, width = baselines.qkv_pairs(args.terms, args.layer_pairs), configs[1].hidden_size
    projected = {} if configs[0].hidden_size == width else baselines.projected_layers(args.terms, args.layer_pairs)
    add_outputs(student, [s for s, _ in qkv], projected, width, args.seed)
    add_outputs(teacher, [t for _, t in qkv])


def _qkv_linears(layer):
    """The query, key and value layers of a BERT, RoBERTa or DistilBERT layer."""
    attention = getattr(layer.attention, "self", layer.attention)
    names = ("query", "key", "value") if hasattr(attention, "query") else ("q_lin", "k_lin", "v_lin")
    return [getattr(attention, name) for name in names]


def saved_state(model):
    """The model's state dict without what `add_outputs` added to it."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("projections.")}


# --- inputs --------------------------------------------------------------------------------------------------------


def model_inputs(model, batch):
    """The part of a batch that a model's forward takes: no token types where it has none, no labels.

    The mask goes in as bool [B, 1, 1, T], the form in which attention wants it: from [B, T] transformers would make it
    itself, after asking the device whether there is any padding.
    """
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].bool()[:, None, None]}
    # Of the class: what the model's own attribute is wrapped in may hide the signature.
    takes = inspect.signature(type(model).forward).parameters
    if "token_type_ids" in batch and "token_type_ids" in takes and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = batch["token_type_ids"]
    return inputs


def max_tokens(config):
    """Longest input in tokens. RoBERTa counts its positions from the padding id on."""
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return config.max_position_embeddings - offset


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
        hidden = model(**model_inputs(model, inputs), output_hidden_states=True)["hidden_states"][layer][0].float()
        unit = torch.nn.functional.normalize(hidden, dim=-1)
        image = axes.imshow((unit @ unit.T).cpu(), vmin=-1, vmax=1, cmap="RdBu_r")
        axes.set_title(f"{name}, layer {layer}")
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=7)
    figure.colorbar(image, ax=figure.axes, label="cosine of word pairs")
    return figure
