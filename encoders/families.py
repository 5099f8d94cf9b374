"""Model types: the structure of each that transformers does not describe in a uniform way."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import AutoModelForMaskedLM


def _bert_head(model, x):
    return model.cls.predictions.transform(x)


def _roberta_head(model, x):
    return model.lm_head.layer_norm(torch.nn.functional.gelu(model.lm_head.dense(x)))


def _distilbert_head(model, x):
    return model.vocab_layer_norm(model.activation(model.vocab_transform(x)))


def _electra_head(model, x):
    return model.generator_predictions(x)


class Family(NamedTuple):
    """The structure of a model type; transformers gives hidden states and logits of all.

    fast_mask: whether a [B, 1, 1, T] mask works like a [B, T] mask. layers: path of the stack of layers below
    base_model; "" = its layers can be neither cut nor copied. qkv: paths of the linear layers of query, key and value
    below a layer; () = no attention terms. parts: paths of its other linear layers: attention output, up to the
    neurons, down from them. mlm: (model, last hidden states [M, D]) -> input of the decoder; None = pre-training by
    relations alone. skipped: config -> number of rows of the position table that no token uses.
    """

    fast_mask: bool
    layers: str = ""
    qkv: tuple = ()
    parts: tuple = ()
    mlm: Callable | None = None
    skipped: Callable = lambda config: 0


_BERT = (
    tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
    ("attention.output.dense", "intermediate.dense", "output.dense"),
)
_DISTILBERT = tuple(f"attention.{x}_lin" for x in "qkv"), ("attention.out_lin", "ffn.lin1", "ffn.lin2")
_MPNET = tuple(f"attention.attn.{x}" for x in "qkv")
_ROBERTA = Family(True, "encoder.layer", *_BERT, _roberta_head, lambda config: config.pad_token_id + 1)
# config.model_type -> Family. docs/models.md has the same table.
FAMILIES = {
    "bert": Family(True, "encoder.layer", *_BERT, _bert_head),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Family(True, "transformer.layer", *_DISTILBERT, _distilbert_head),
    "electra": Family(True, "encoder.layer", *_BERT, _electra_head),
    # Its attention adds the mask to biases of relative positions, or multiplies by it, so no fast_mask.
    "deberta-v2": Family(False, "encoder.layer"),
    # The biases of relative positions are not part of queries and keys and cannot be cut with heads: no `parts`.
    # Positions begin at 2, whatever the padding id.
    "mpnet": Family(False, "encoder.layer", _MPNET, (), _roberta_head, lambda config: 2),
    "albert": Family(True),  # one layer, applied again and again: nothing to cut or copy
    "modernbert": Family(False),  # local and global layers, which cannot replace each other
}


def family(config, what, auto=None):
    """Return the Family of a configuration; what: the model's name in errors.

    Raises ValueError, listing the types that work, for an unknown model type, for a decoder, and, if auto is
    AutoModelForMaskedLM, for an unknown language-model head.
    """
    known = FAMILIES.get(config.model_type)
    if not known or getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        decoder = " used as a decoder" if known else ""
        raise ValueError(
            f"{what} is of type {config.model_type!r}{decoder}, which does not work here: take {', '.join(FAMILIES)}"
        )
    if auto is AutoModelForMaskedLM and not known.mlm:
        raise ValueError(
            f"{what} is of type {config.model_type!r}, whose language-model head is not known here: distil relations "
            f"alone (--terms ckd logits=0), or take one of type {', '.join(n for n, f in FAMILIES.items() if f.mlm)}"
        )
    return known


def encoder_layers(model):
    """Return the ModuleList of a model's transformer layers. Raises ValueError if they cannot be cut or copied."""
    check_layers_known(model.config, type(model).__name__)
    return model.base_model.get_submodule(FAMILIES[model.config.model_type].layers)


def layer_parts(layer, config):
    """Return the six linear layers of a transformer layer: {"query", "key", "value", "attended", "up", "down": Linear}.

    attended: the output layer of attention. up, down: to the neurons of the feed-forward layer and from them.
    """
    known = FAMILIES[config.model_type]
    names = ("query", "key", "value", "attended", "up", "down")
    return {name: layer.get_submodule(path) for name, path in zip(names, known.qkv + known.parts, strict=True)}


def feed_forward_size(config):
    """Return the number of neurons of a feed-forward layer."""
    return config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size


def check_layers_known(config, what):
    """Raise ValueError if the layers of a model can neither be cut nor copied."""
    if not family(config, what).layers:
        able = ", ".join(name for name, f in FAMILIES.items() if f.layers)
        raise ValueError(
            f"{what}: a student cannot be cut from a model of type {config.model_type!r}, whose layers "
            f"are shared or of two kinds, only from {able}: pass a small one as --student"
        )
