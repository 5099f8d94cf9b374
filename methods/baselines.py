"""Terms of the methods that CKD is compared with: PKD, TinyBERT, DistilBERT, MiniLM, DynaBERT.

Each is (student, teacher, batch, args) -> scalar, like all terms of `losses.TERMS`; student and teacher are
`losses.ModelView`s. Each is a mean over what its docstring names, of the real tokens of the whole batch.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from relations import full_float32

# --- what a term needs ---------------------------------------------------------------------------------------------


def all_pairs(layer_pairs):
    """Return all aligned pairs (student layer, teacher layer)."""
    return list(layer_pairs)


def nothing(layer_pairs):
    """Return no pair of layers."""
    return []


def transformer_pairs(layer_pairs):
    """Return the aligned pairs (student layer, teacher layer) without embedding outputs."""
    return [(s, t) for s, t in layer_pairs if s and t]


def last_pair(layer_pairs):
    """Return the student's last aligned transformer layer and its partner, [] if only embeddings are aligned."""
    return sorted(transformer_pairs(layer_pairs))[-1:]


def embeddings(layer_pairs):
    """Return the embedding outputs, whatever layers are aligned."""
    return [(0, 0)]


class Needs(NamedTuple):
    """What a term reads of both models. Their outputs, the cached fields and the checks of shapes follow from it.

    states, qkv: function from the aligned pairs to those whose hidden states, or queries, keys and values, are read.
    projected: whether a learned projection maps the student's states where the widths differ. check: (term, aligned
    pairs, the student's configuration, the teacher's), raises ValueError if they do not go together.
    """

    states: Callable = all_pairs
    qkv: Callable = nothing
    projected: bool = False
    check: Callable | None = None


def needs(**declared):
    """Declare, as a decorator, what a term needs: the fields of `Needs` that differ from their defaults."""

    def declare(term):
        term.needs = Needs(**declared)
        return term

    return declare


def _equal_widths(name, layer_pairs, student, teacher):
    if student.hidden_size != teacher.hidden_size:
        width = teacher.hidden_size
        raise ValueError(
            f"{name} compares states of equal width, the student has {student.hidden_size} and the teacher {width}: "
            f"use hidden_mse, which learns a projection, or --student_hidden {width}"
        )


def _inner_layers(name, layer_pairs, student, teacher):
    if not pkd_pairs(transformer_pairs(layer_pairs), student.num_hidden_layers):
        raise ValueError(f"{name} leaves out the student's last layer and no other is aligned: widen --layer_map")
    _equal_widths(name, layer_pairs, student, teacher)


def heads_of(config):
    """Return the attention heads of a layer; a narrow sub-network has those that it kept."""
    return getattr(config, "kept_heads", config.num_attention_heads)


def _equal_heads(name, layer_pairs, student, teacher):
    if heads_of(student) != heads_of(teacher):
        raise ValueError(
            f"{name} compares head by head, the student has {heads_of(student)} heads and the teacher "
            f"{heads_of(teacher)}: use minilm, which regroups heads, or --student_heads {heads_of(teacher)}"
        )


# --- the terms -----------------------------------------------------------------------------------------------------


def _aligned(student, teacher):
    return list(zip(student.layers, teacher.layers, strict=True))


def _squared_error(student, teacher, valid):
    """Return the sum of squared differences of [B, T, D] over real tokens."""
    difference = student.float() - teacher.detach().float()
    return torch.where(valid[..., None], difference, 0.0).square().sum()


def _scores(x, y):
    """Return the scaled products x y^T / sqrt(d), float32 [B, H, T, T], of x and y [B, H, T, d]."""
    with full_float32(x.device.type):
        return x @ y.mT / math.sqrt(x.shape[-1])


def _attention_kl(student, teacher, valid):
    """Return the sum of KL(softmax teacher || softmax student) of scores [B, H, T, T] over heads and real rows."""
    keys = ~valid[:, None, None]
    # A finite fill makes the rows of a sentence without real tokens uniform, where -inf would make them NaN.
    lowest = torch.finfo(student.dtype).min
    log_s, log_t = (x.masked_fill(keys, lowest).log_softmax(-1) for x in (student, teacher.detach()))
    rows = (log_t.exp() * (log_t - log_s)).sum(-1)
    return torch.where(valid[:, None], rows, 0.0).sum()


@needs(states=transformer_pairs, check=_inner_layers)
def pkd(student, teacher, batch, args):
    """Return the mean squared difference of normalised [CLS] states, over sentences, aligned layers and components.

    Source: L_PT in section 3.2 of arXiv:1908.09355, with its layers: neither the embeddings nor the student's last
    layer, which the logits train. The paper takes the sum, the authors' code and this function the mean.
    """
    pairs = pkd_pairs(transformer_pairs(_aligned(student, teacher)), len(student.out["hidden_states"]) - 1)
    real = student.valid[:, :1]  # [CLS], or no token at all
    # The [CLS] states of a sentence without real tokens may hold anything, so they are dropped before the norm.
    s, t = (
        torch.cat([torch.where(real[..., None], view.states(i)[:, :1].float(), 0.0) for i in layers], 1)
        for view, layers in zip((student, teacher), zip(*pairs, strict=True), strict=True)
    )
    s, t = F.normalize(s, dim=-1), F.normalize(t, dim=-1)
    total = _squared_error(s, t, real.repeat(1, len(pairs)))
    return student.mean(total, real.sum() * len(pairs) * s.shape[-1])


def pkd_pairs(pairs, last):
    """Return the pairs that `pkd` compares: those without the student's last layer."""
    return [(s, t) for s, t in pairs if s != last]


@needs(states=transformer_pairs, projected=True)
def hidden_mse(student, teacher, batch, args):
    """Return the mean squared error of hidden states, over real tokens, aligned transformer layers and components.

    If the widths differ, one learned projection for all layers maps the student's to the teacher's width; the paper's
    W_h is always there. Source: L_hidn, equation (8) of arXiv:1909.10351 (TinyBERT), the value of one layer.
    """
    pairs = transformer_pairs(_aligned(student, teacher))
    states = [(student.states(s, "hidden_mse"), teacher.states(t)) for s, t in pairs]
    total = sum(_squared_error(s, t, student.valid) for s, t in states)
    return student.mean(total, student.valid.sum() * len(pairs) * states[0][1].shape[-1])


@needs(states=embeddings, projected=True)
def embedding_mse(student, teacher, batch, args):
    """Return the mean squared error of the embedding outputs, over real tokens and components.

    If the widths differ, a projection of its own maps the student's to the teacher's width. Source: L_embd, equation
    (9) of arXiv:1909.10351 (TinyBERT).
    """
    s, t = student.states(0, "embedding_mse"), teacher.states(0)
    return student.mean(_squared_error(s, t, student.valid), student.valid.sum() * t.shape[-1])


@needs(states=nothing, qkv=transformer_pairs, check=_equal_heads)
def attention_mse(student, teacher, batch, args):
    """Return the mean squared error of the attention scores Q K^T / sqrt(d) before the softmax.

    It is over aligned transformer layers, heads and pairs of real tokens; the numbers of heads must agree. Source:
    L_attn, equation (7) of arXiv:1909.10351 (TinyBERT), the value of one layer.
    """
    pairs, valid = transformer_pairs(_aligned(student, teacher)), student.valid
    both, total = valid[:, None, :, None] & valid[:, None, None, :], 0
    for s, t in pairs:
        heads, _ = student.heads(s)
        a_s, a_t = (_scores(*view.qkv(i, heads)[:2]) for view, i in ((student, s), (teacher, t)))
        total = total + torch.where(both, a_s - a_t.detach(), 0.0).square().sum()
    return student.mean(total, both.sum() * len(pairs) * heads)


@needs(states=last_pair, check=_equal_widths)
def hidden_cosine(student, teacher, batch, args):
    """Return 1 - cosine of hidden states of the student's last aligned layer and its partner, mean over real tokens.

    Source: L_cos in section 2 of arXiv:1910.01108 (DistilBERT).
    """
    ((s, t),) = last_pair(_aligned(student, teacher))
    valid = student.valid
    s, t = (torch.where(valid[..., None], x.float(), 0.0) for x in (student.states(s), teacher.states(t).detach()))
    distance = torch.where(valid, 1 - F.cosine_similarity(s, t, dim=-1), 0.0)
    return student.mean(distance.sum(), valid.sum())


def sentence_means(states, valid):
    """Return the means [B, D] of the real tokens' states [B, T, D], 0 if none; valid: bool [B, T], True = real."""
    states = torch.where(valid[..., None], states.float(), 0.0)
    return states.sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


@needs(states=last_pair, projected=True)
def sentence_mse(student, teacher, batch, args):
    """Return the mean squared error over components of sentence vectors, the means of the last layer's real tokens.

    The layer is the last aligned one. If the widths differ, a learned projection maps the student's to the teacher's
    width. Source: arXiv:2004.09813 (sentence-transformers' distillation of a sentence encoder).
    """
    ((s, t),) = last_pair(_aligned(student, teacher))
    s, t = student.states(s, "sentence_mse"), teacher.states(t)
    difference = sentence_means(s, student.valid) - sentence_means(t.detach(), student.valid)
    return student.mean(difference.square().sum(), student.valid.any(1).sum() * t.shape[-1])


@needs(check=_equal_widths)
def dynabert_mse(student, teacher, batch, args):
    """Return the mean squared errors of hidden states, over real tokens and components, summed over the aligned layers.

    The embedding outputs are one of these layers. Both models have the same width. Source: L_emb + L_hidn in sections
    2.1 and 2.2 of arXiv:2004.04037 (DynaBERT).
    """
    pairs = _aligned(student, teacher)
    total = sum(_squared_error(student.states(s), teacher.states(t), student.valid) for s, t in pairs)
    return student.mean(total, student.valid.sum() * student.states(student.layers[0]).shape[-1])


def relation_heads(student, teacher):
    """Return the number of heads to compare attention in; student, teacher: (heads, width).

    It is their number if they agree. Otherwise, as in arXiv:2012.15828 (MiniLMv2), the vectors of all heads are joined
    and split into relation heads: as many as the smaller model has heads, if that divides both widths, else the
    greatest common divisor of both numbers.
    """
    heads = min(student[0], teacher[0])
    return heads if student[1] % heads == teacher[1] % heads == 0 else math.gcd(student[0], teacher[0])


@needs(states=nothing, qkv=last_pair)
def minilm(student, teacher, batch, args):
    """Return KL(teacher || student) of attention distributions plus that of value relations softmax(V V^T / sqrt(d)).

    It compares the student's last aligned layer and its partner; each KL is a mean over heads and real tokens (rows).
    If the numbers of heads differ, it uses relation heads. Source: L_AT and L_VR, sections 3.1 and 3.2 of
    arXiv:2002.10957 (MiniLM).
    """
    ((s, t),) = last_pair(_aligned(student, teacher))
    heads = relation_heads(student.heads(s), teacher.heads(t))
    (q_s, k_s, v_s), (q_t, k_t, v_t) = student.qkv(s, heads), teacher.qkv(t, heads)
    total = _attention_kl(_scores(q_s, k_s), _scores(q_t, k_t), student.valid)
    total = total + _attention_kl(_scores(v_s, v_s), _scores(v_t, v_t), student.valid)
    return student.mean(total, student.valid.sum() * heads)
