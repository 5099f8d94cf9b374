"""Models: load a teacher, a student and their tokenizer, and check that they go together."""

import functools
import json
import os
import re
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

import data
import losses
from encoders import families, label_names, students
from encoders.layer_maps import layer_map as layer_map  # offered here by name
from engine import command_line
from engine.checks import student_shape
from tasks import hub

# --- loading -----------------------------------------------------------------------------------------------------


def _explain(what, name, error):
    """Return a ValueError whose one line explains why a model or tokenizer could not be loaded."""
    if "ignore_mismatched_sizes" in str(error):
        return ValueError(
            f"{what} {str(name)!r} has a head for another number of labels than this task's (or weights of another "
            "shape than its config.json says): pass a model of this task or one without a head"
        )
    if not Path(name).is_dir() and (str(name).startswith((".", "/", "~")) or str(name).count("/") > 1):
        return ValueError(f"{what} {str(name)!r} is not a folder: check the path")
    if Path(name).is_dir():
        return ValueError(f"{what} {str(name)!r} could not be loaded: {hub.said(error)}")
    return ValueError(
        f"{what} {str(name)!r} is no local folder and could not be had from the Hugging Face hub "
        f"{hub.explained(str(name), error, 'model', 'download it and pass its folder')}"
    )


def _check_folder(name, what):
    """Raise ValueError for the folder of an adapter, or one whose model is in a folder below."""
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise ValueError(
            f"{what} {str(name)!r} holds an adapter of PEFT (LoRA), no whole model: merge it, in Python, by "
            f"PeftModel.from_pretrained(model, {str(name)!r}).merge_and_unload().save_pretrained('merged'), where "
            f"model is {base or 'the base model'} with its head, save the tokenizer there too, and pass merged"
        )
    below = sorted(path.parent for path in folder.glob("*_Transformer/config.json"))
    if below and not (folder / "config.json").is_file():
        raise ValueError(f"{what} {str(name)!r} is of sentence-transformers, whose model is in {below[0]}: pass that")


def load_config(name, what="model"):
    """Return the configuration of a hub id or folder. Raises ValueError in one line if there is none."""
    _check_folder(name, what)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub, the file system and the parser each raise their own
        raise _explain(what, name, error) from error


def load_tokenizer(name, what="tokenizer of"):
    """Return the fast tokenizer of a hub id or folder. Raises ValueError in one line if there is none.

    Warns on stderr if it lower-cases texts although its words have capitals, as that of a cased BERT without
    tokenizer_config.json does.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise _explain(what, name, error) from error
    if not tokenizer.is_fast:
        raise ValueError(f"{what} {str(name)!r} has no fast tokenizer (tokenizer.json): convert it with transformers")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes one up if the files are missing
        raise ValueError(f"{what} {str(name)!r} has no words: tokenizer.json is missing there; copy it from its source")
    if said := _lost_capitals(tokenizer):
        command_line.say(f"{what} {str(name)!r} {said}", file=sys.stderr)
    return tokenizer


def _lost_capitals(tokenizer):
    """Return the warning about a tokenizer that lower-cases texts although its words have capitals; "" for others."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if not normalizer or "A" in normalizer.normalize_str("A"):
        return ""
    known = tokenizer.get_vocab()
    special = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    lost = sorted((word for word in known if word != word.lower() and word not in special), key=known.get)
    if len(lost) <= len(known) / 100:  # a newer Unicode may know a capital of a rare letter in an uncased vocabulary
        return ""
    return (
        f"lower-cases every text, so {len(lost)} of its {len(known)} words, such as {lost[0]!r}, never occur: if "
        'the model is cased, its tokenizer_config.json must say {"do_lower_case": false}'
    )


def load_model(name, auto, what="model", *, labels=(), **head):
    """Load a model with a head from a hub id or folder, as float32 on the CPU, in eval mode.

    auto: transformers' AutoModelFor... class of the head, or a model's own class. labels: a label_names.Labels, or
    words in the order of their ids; the logits of a trained head are put into this order. head: further arguments of
    from_pretrained, such as num_labels or another dtype. Returns (model, names of the parameters of a new head). Raises
    ValueError in one line if the model cannot be had, if more than its head is missing, or if a weight is not finite.
    Reports on stderr what it matched or left out.
    """
    # Otherwise transformers fetches, in a thread, a converted copy of weights that exist as .bin only.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    config, labels = load_config(name, what), as_labels(labels)
    families.family(config, f"{what} {str(name)!r}", auto)
    base = auto._model_mapping[type(config)] if hasattr(auto, "_model_mapping") else auto
    loader = narrow(base) if hasattr(config, "kept_heads") else auto
    options = {"dtype": torch.float32, "trust_remote_code": False, **head}
    if labels:
        options |= {
            "num_labels": len(labels.names),
            "id2label": dict(enumerate(labels.names)),
            "label2id": {word: i for i, word in enumerate(labels.names)},
        }
    try:
        model, info = loader.from_pretrained(name, output_loading_info=True, **options)
    except Exception as error:
        raise _explain(what, name, error) from error
    missing = check_loaded(model, info, f"{what} {str(name)!r}")
    if labels and not missing:
        reorder_head(model, config, labels, f"{what} {str(name)!r}")
    return model.eval(), missing


def as_labels(labels):
    """Return label_names.Labels from such, or from words that are also names; None if there are no labels."""
    if isinstance(labels, label_names.Labels):
        return labels if labels.words else None
    return label_names.Labels(tuple(labels), tuple(labels), {}) if labels else None


@torch.no_grad()
def reorder_head(model, config, labels, what):
    """Put a trained head's logits into the order of the labels; with unknown names they stay as they are.

    config: the model's own, with its names. what: the model's name in the line that reports which names were matched.
    """
    stored = label_names.stored_names(config)
    order = labels.order(stored)
    if order is None:
        return
    if sorted(stored) not in (sorted(labels.words), sorted(labels.names)):
        names = ", ".join(labels.names[order.index(place)] for place in range(len(stored)))
        said = f"{what}: its labels {', '.join(stored)} are taken as {names}; --label_map says otherwise"
        command_line.say(said, file=sys.stderr)
    prefix = f"{model.base_model_prefix}."
    last = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith(prefix) and module.out_features == len(order)
    ][-1]
    for parameter in last.parameters():
        parameter.copy_(parameter[order])


@functools.cache
def narrow(base):
    """Return the subclass of a transformers model class whose attention has only config.kept_heads heads.

    `dynabert.extract` cuts such models: the heads keep their size, so together they are narrower than the hidden
    states.
    """

    class Narrow(base):
        def __init__(self, config, *args, **kwargs):
            super().__init__(config, *args, **kwargs)
            inner = config.kept_heads * (config.hidden_size // config.num_attention_heads)
            for layer in families.encoder_layers(self):
                for name, linear in families.layer_parts(layer, config).items():
                    if name in ("query", "key", "value"):
                        linear.__init__(config.hidden_size, inner)
                    elif name == "attended":
                        linear.__init__(inner, config.hidden_size)
                    self._init_weights(linear)

    Narrow.__name__ = Narrow.__qualname__ = base.__name__  # what save_pretrained writes into config.json
    return Narrow


def _finite(value):
    """Return whether a tensor holds neither NaN nor infinity. Its two ends tell, ten times as fast as all of it."""
    return not value.numel() or torch.stack(value.aminmax()).isfinite().all()


def check_loaded(model, info, what):
    """Return the sorted names of parameters that the files lacked, all of a head; info: transformers' loading info.

    Raises ValueError if others are missing, which transformers leaves at random values. The head is everything outside
    base_model, and the pooler, which files of masked language models lack. A module of the head is there or missing,
    never in part. Raises ValueError too for a weight that is not finite. Reports unused tensors on stderr.
    """
    # An encoder without a head has no prefix before its names.
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    missing = sorted(info["missing_keys"])
    if odd := [name for name, value in model.named_parameters() if not _finite(value.detach())]:
        raise ValueError(
            f"{what}: {len(odd)} of its tensors hold NaN or infinity, first {odd[0]}: its run diverged, or the file is "
            "damaged; take another one"
        )
    lost = [name for name in missing if name.startswith(prefix) and not name.startswith(f"{prefix}pooler.")]
    extra = sorted(n for n in info["unexpected_keys"] if not students.DROPPED.match(n.removeprefix(prefix)))
    named = f", among them {', '.join(extra[:3])}" if extra else ""
    if lost:
        raise ValueError(
            f"{what}: its files lack {len(lost)} tensors that its config.json describes, first {lost[0]}, which would "
            f"be random, and hold {len(extra)} unknown ones{named}: take files that belong together"
        )
    if half := _half_there(model, missing, prefix):
        raise ValueError(f"{what}: its files hold a part of a head only: {half} is missing: take whole files")
    if extra:
        said = f"{what}: its files hold {len(extra)} tensors that the model does not take{named}"
        command_line.say(said, file=sys.stderr)
    if prefix and any(name.startswith(f"{prefix}pooler.") for name in missing):
        said = f"{what}: its files have no pooler, so that below the new head is new, too"
        command_line.say(said, file=sys.stderr)
    return missing


def _half_there(model, missing, prefix):
    """Return the first missing parameter of a head's module that the files held in part; None if there is none."""

    def module(name):
        return re.match(rf"({re.escape(prefix)})?[^.]+", name)[0]

    # One name of tied weights is enough, and weights tied to the encoder's say nothing about the head.
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
        raise ValueError(
            f"{what} was trained on labels {stored}, the task has {ours}: {by_hand}make a model for this "
            f"task first: {remedy}"
        )


def load_teacher(name, auto, *, labels=(), need_head=True, fine_tune_command="distill_finetune.py", **head):
    """Return the frozen teacher. Its head must have been trained, unless need_head is false.

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
        raise ValueError(  # ModernBERT's heads for questions and for classes share names and shapes
            f"--teacher {name!r} is a {trained}, this task needs a {type(model).__name__}: make one "
            f"first: {fine_tune_command}"
        )
    return model.requires_grad_(False)


def check_tokenizer(tokenizer, config, what, auto):
    """Raise ValueError unless the model has a row for every word and the tokenizer has the special words that it needs.

    config: the model's. what: its name in errors. auto: as in `load_model`.
    """
    last = data.id_count(tokenizer) - 1
    if last >= config.vocab_size:
        raise ValueError(
            f"tokenizer of {what} has words up to number {last}, the model's embedding only rows up to "
            f"{config.vocab_size - 1}: resize_token_embeddings, then save the model again"
        )
    for name in ("pad", "cls", "sep") + (("mask",) if auto is AutoModelForMaskedLM else ()):
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise ValueError(
                f"tokenizer of {what} has no {name}_token: name it in its tokenizer_config.json, or take "
                "the tokenizer that the model was trained with"
            )
    ids = tokenizer("")["input_ids"]
    if auto is not AutoModelForMaskedLM and not {tokenizer.cls_token_id, tokenizer.sep_token_id} <= set(ids):
        raise ValueError(
            f"tokenizer of {what} puts no {tokenizer.cls_token} and {tokenizer.sep_token} around a text: "
            "give its tokenizer.json a post_processor that does"
        )


def check_vocabulary(student, teacher, student_name, teacher_name):
    """Raise ValueError unless the two tokenizers map the same words to the same ids."""
    s, t = student.get_vocab(), teacher.get_vocab()
    if s != t:
        raise ValueError(
            f"student {student_name!r} ({len(s)} words) and teacher {teacher_name!r} ({len(t)} words) have different "
            "vocabularies: take a student with the teacher's vocabulary, build one with --student_layers, or, for "
            "whole texts, compare logits alone (--terms kd)"
        )


def teachers_tokenizer(args, tokenizer):
    """Return the teacher's tokenizer if `load_pair` allowed it to differ from the student's; else None."""
    if not (args.teacher and args.student and args.student != args.teacher):
        return None
    own = AutoTokenizer.from_pretrained(args.teacher, trust_remote_code=False)
    return own if own.get_vocab() != tokenizer.get_vocab() else None


def _logits_alone(terms):
    """Return whether no term reads hidden states or attention, which are per token."""
    needed = [losses.needs_of(name) for name in terms]
    return bool(needed) and all(need.states is losses.nothing and need.qkv is losses.nothing for need in needed)


# --- both models ---------------------------------------------------------------------------------------------------


def check_types(args, auto):
    """Return {name in errors: configuration} of teacher and student. Raises ValueError if they cannot work."""
    configs = {
        f"--{option} {name!r}": load_config(name, f"--{option}")
        for option, name in (("teacher", args.teacher), ("student", args.student))
        if name
    }
    attention = [name for name in getattr(args, "terms", ()) if losses.needs_of(name).qkv is not losses.nothing]
    for what, config in configs.items():
        known = families.family(config, what, auto)
        if attention and not known.qkv:
            able = ", ".join(name for name, f in families.FAMILIES.items() if f.qkv)
            raise ValueError(
                f"{attention[0]} reads queries and keys, which are not known of {what} of type "
                f"{config.model_type!r}, only of {able}: leave the term out"
            )
    what, source = list(configs.items())[-1]
    if student_shape(args):
        families.check_layers_known(source, what)
        source = students.student_config(source, **student_shape(args))
        students.check_size(source, auto)
    sizes = {config.vocab_size for config in configs.values()}
    if len(sizes) > 1 and auto is AutoModelForMaskedLM and "logits" in getattr(args, "terms", ()):
        words = " and ".join(map(str, sizes))
        raise ValueError(f"teacher and student give logits over {words} words: resize one embedding, or pass logits=0")
    return configs


def load_pair(args, auto, *, labels=(), need_head=True, fine_tune_command="", whole_texts=False, **head):
    """Return (student, teacher or None, tokenizer) as the options say; the student is float32 and in eval mode.

    auto, labels, head: as in `load_model`. need_head, fine_tune_command: as in `load_teacher`. whole_texts: whether
    logits are per text; then, if only logits are compared, the student may have another tokenizer, which is returned.
    Raises ValueError in one line for a model that cannot be had, for other vocabularies or an untrained teacher.
    """
    configs = check_types(args, auto)
    tokenizer = theirs = load_tokenizer(args.teacher or args.student, "tokenizer of")
    if args.teacher and args.student and args.student != args.teacher:
        ours = load_tokenizer(args.student, "tokenizer of --student")
        if not (whole_texts and _logits_alone(getattr(args, "terms", ()))):
            check_vocabulary(ours, tokenizer, args.student, args.teacher)
        elif ours.get_vocab() != theirs.get_vocab():
            tokenizer = ours
    for what, config in configs.items():
        check_tokenizer(theirs if what.startswith("--teacher") else tokenizer, config, what, auto)
    teacher = None
    if args.teacher:
        teacher = load_teacher(
            args.teacher, auto, labels=labels, need_head=need_head, fine_tune_command=fine_tune_command, **head
        )
    if args.student:
        student, _ = load_model(args.student, auto, "--student", labels=labels, **head)
    shape = student_shape(args)
    if shape:
        source = student if args.student else teacher
        student = students.build_student(source, auto, shape, args.student_init)
        if args.freeze_embeddings and not torch.equal(*(m.get_input_embeddings().weight for m in (student, source))):
            raise ValueError(
                "--freeze_embeddings would leave random word embeddings as they are: a student of another width, or "
                "with --student_init random, copies none; leave it out"
            )
    if args.freeze_embeddings:
        student.get_input_embeddings().requires_grad_(False)
    return student, teacher, tokenizer
