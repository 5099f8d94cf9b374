"""Model types: what this code knows of each, beside what transformers does alike for all."""

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
    """What this code knows of a model type; hidden states and logits are transformers' own for all of them.

    fast_mask: a bool [B, 1, 1, T] mask means the same to it as a [B, T] mask. layers: the stack of layers, a path below
    base_model; "" = its layers can be neither cut nor copied. qkv: the linear layers of query, key and value, paths
    below a layer; () = no terms of attention. parts: the other linear layers of one: of what was attended to, up to the
    neurons, down from them. mlm: (model, last hidden states [M, D]) -> what its decoder multiplies; None = no
    pre-training but by relations alone. skipped: config -> rows of the position table that no word takes.
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
# config.model_type -> what works. docs/models.md has the same table.
FAMILIES = {
    "bert": Family(True, "encoder.layer", *_BERT, _bert_head),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Family(True, "transformer.layer", *_DISTILBERT, _distilbert_head),
    "electra": Family(True, "encoder.layer", *_BERT, _electra_head),
    # Attention that adds its mask to biases of relative positions, or multiplies it, takes no bool [B, 1, 1, T].
    "deberta-v2": Family(False, "encoder.layer"),
    # The biases of relative positions are no part of queries and keys, nor would they be cut with heads: no `parts`.
    # Positions are counted from 2 on, whatever the padding id.
    "mpnet": Family(False, "encoder.layer", _MPNET, (), _roberta_head, lambda config: 2),
    "albert": Family(True),  # one layer, applied again and again: there is nothing to cut or to copy
    "modernbert": Family(False),  # layers of two kinds, local and global, which may not take each other's place
}


def family(config, what, auto=None):
    """Return the Family of a configuration; what: the model's name in errors.

    Raises ValueError, listing the types that work, for a model type that this code does not know, for a decoder, and
    if auto is AutoModelForMaskedLM for one whose head it does not know.
    """
    known = FAMILIES.get(config.model_type)
    if not known or getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        decoder = " used as a decoder" if known else ""
        raise ValueError(
            f"{what} is of type {config.model_type!r}{decoder}, which does not work here: take a model of "
            f"type {', '.join(FAMILIES)}"
        )
    if auto is AutoModelForMaskedLM and not known.mlm:
        raise ValueError(
            f"{what} is of type {config.model_type!r}, whose language-model head is not known here: distil relations "
            f"alone (--terms ckd logits=0), or take one of type {', '.join(n for n, f in FAMILIES.items() if f.mlm)}"
        )
    return known


def encoder_layers(model):
    """Return the ModuleList of transformer layers, whatever the model's head; ValueError where they cannot be told
    apart.
    """
    check_layers_known(model.config, type(model).__name__)
    return model.base_model.get_submodule(FAMILIES[model.config.model_type].layers)


def layer_parts(layer, config):
    """Return the six linear layers of a transformer layer: {"query", "key", "value", "attended", "up", "down": Linear}.

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
        raise ValueError(
            f"{what}: a student cannot be cut from a model of type {config.model_type!r}, whose layers "
            f"are shared or of two kinds, only from {able}: pass a small one as --student"
        )
