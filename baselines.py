"""Terms of the methods that CKD is compared with: PKD, TinyBERT, DistilBERT, MiniLM, DynaBERT.

Each is (student, teacher, batch, args) -> scalar with student and teacher a `losses.ModelView`, as all terms of
`losses.TERMS`, and a mean over what its docstring names, of the real tokens of the whole batch.
"""
import math

import torch
from torch.nn import functional as F

from relations import full_float32


def transformer_pairs(layer_pairs):
    """The aligned pairs (student layer, teacher layer) without those that hold an embedding output."""
    return [(s, t) for s, t in layer_pairs if s and t]


def _aligned(student, teacher):
    return transformer_pairs(zip(student.layers, teacher.layers, strict=True))


def _squared_error(student, teacher, valid):
    """Sum of squared differences of [B, T, D] over real tokens."""
    difference = student.float() - teacher.detach().float()
    return torch.where(valid[..., None], difference, 0.0).square().sum()


def _scores(x, y):
    """Scaled products x y^T / sqrt(d), float32 [B, H, T, T], of x and y [B, H, T, d]."""
    with full_float32(x.device.type):
        return x @ y.mT / math.sqrt(x.shape[-1])


def _attention_kl(student, teacher, valid):
    """Sum of KL(softmax teacher || softmax student) of scores [B, H, T, T] over heads and real rows."""
    keys = ~valid[:, None, None]
    # Finite fill: a sentence without real tokens becomes uniform, where -inf would give NaN.
    lowest = torch.finfo(student.dtype).min
    log_s, log_t = (x.masked_fill(keys, lowest).log_softmax(-1) for x in (student, teacher.detach()))
    rows = (log_t.exp() * (log_t - log_s)).sum(-1)
    return torch.where(valid[:, None], rows, 0.0).sum()


def pkd(student, teacher, batch, args):
    """Mean squared difference of the normalised [CLS] states of aligned layers, over sentences, layers and components.

    Source: L_PT in section 3.2 of arXiv:1908.09355, layers as there: neither the embeddings nor the student's last
    layer, which the logits train. The paper sums where the authors' code, and this, takes the mean.
    """
    pairs = pkd_pairs(_aligned(student, teacher), len(student.out["hidden_states"]) - 1)
    real = student.valid[:, 0]
    # The [CLS] states of a sentence without real tokens may hold anything, so they go before the norm is taken.
    s, t = (
        torch.stack([torch.where(real[:, None], view.states(i)[:, 0].float(), 0.0) for i in layers], 1)
        for view, layers in zip((student, teacher), zip(*pairs, strict=True), strict=True)
    )
    s, t = F.normalize(s, dim=-1), F.normalize(t, dim=-1)
    total = _squared_error(s, t, real[:, None].expand(s.shape[:2]))
    return student.mean(total, real.sum() * len(pairs) * s.shape[-1])


def pkd_pairs(pairs, last):
    """The pairs that `pkd` compares: those without the student's last layer."""
    return [(s, t) for s, t in pairs if s != last]


def hidden_mse(student, teacher, batch, args):
    """Mean squared error of hidden states, over real tokens, aligned transformer layers and components.

    Where widths differ, one learned projection for all layers brings the student's to the teacher's width. (The paper's
    W_h has no such condition.) Source: L_hidn, equation (8) of arXiv:1909.10351 (TinyBERT), the value of one layer.
    """
    pairs = _aligned(student, teacher)
    states = [(student.states(s, "hidden_mse"), teacher.states(t)) for s, t in pairs]
    total = sum(_squared_error(s, t, student.valid) for s, t in states)
    return student.mean(total, student.valid.sum() * len(pairs) * states[0][1].shape[-1])


def embedding_mse(student, teacher, batch, args):
    """Mean squared error of the embedding outputs, over real tokens and components, whatever layers are aligned.

    Where widths differ, a learned projection of its own brings the student's to the teacher's width.
    Source: L_embd, equation (9) of arXiv:1909.10351 (TinyBERT).
    """
    s, t = student.states(0, "embedding_mse"), teacher.states(0)
    return student.mean(_squared_error(s, t, student.valid), student.valid.sum() * t.shape[-1])


def attention_mse(student, teacher, batch, args):
    """Mean squared error of the attention scores Q K^T / sqrt(d), as they are before the softmax.

    Over aligned transformer layers, heads and pairs of real tokens; the numbers of heads must agree.
    Source: L_attn, equation (7) of arXiv:1909.10351 (TinyBERT), which is the value of one layer.
    """
    pairs, valid = _aligned(student, teacher), student.valid
    both, total = valid[:, None, :, None] & valid[:, None, None, :], 0
    for s, t in pairs:
        heads, _ = student.heads(s)
        a_s, a_t = (_scores(*view.qkv(i, heads)[:2]) for view, i in ((student, s), (teacher, t)))
        total = total + torch.where(both, a_s - a_t.detach(), 0.0).square().sum()
    return student.mean(total, both.sum() * len(pairs) * heads)


def hidden_cosine(student, teacher, batch, args):
    """1 - cosine of the hidden states of the student's last aligned layer and its partner, mean over real tokens.

    Source: L_cos in section 2 of arXiv:1910.01108 (DistilBERT).
    """
    s, t = max(_aligned(student, teacher))
    valid = student.valid
    s, t = (torch.where(valid[..., None], x.float(), 0.0) for x in (student.states(s), teacher.states(t).detach()))
    distance = torch.where(valid, 1 - F.cosine_similarity(s, t, dim=-1), 0.0)
    return student.mean(distance.sum(), valid.sum())


def dynabert_mse(student, teacher, batch, args):
    """Mean squared errors of the hidden states over real tokens and components, the sum over all aligned layers.

    The embedding outputs are one of these layers; both models have the same width. Source: L_emb + L_hidn in sections
    2.1 and 2.2 of arXiv:2004.04037 (DynaBERT).
    """
    pairs = zip(student.layers, teacher.layers, strict=True)
    total = sum(_squared_error(student.states(s), teacher.states(t), student.valid) for s, t in pairs)
    return student.mean(total, student.valid.sum() * student.states(student.layers[0]).shape[-1])


def relation_heads(student, teacher):
    """Heads to compare attention in; student, teacher: (heads, width). Their own number where they agree.

    Else, as in arXiv:2012.15828 (MiniLMv2), the vectors of all heads are joined and split anew into relation heads: as
    many as the smaller model has heads if that divides both widths, or the greatest common divisor of both numbers.
    """
    heads = min(student[0], teacher[0])
    return heads if student[1] % heads == teacher[1] % heads == 0 else math.gcd(student[0], teacher[0])


def minilm(student, teacher, batch, args):
    """KL(teacher || student) of attention distributions plus that of value relations softmax(V V^T / sqrt(d)).

    Of the student's last aligned layer and its partner; each a mean over heads and real tokens (rows). Where the
    numbers of heads differ, in relation heads. Source: L_AT and L_VR, sections 3.1 and 3.2 of arXiv:2002.10957
    (MiniLM).
    """
    s, t = max(_aligned(student, teacher))
    heads = relation_heads(student.heads(s), teacher.heads(t))
    (q_s, k_s, v_s), (q_t, k_t, v_t) = student.qkv(s, heads), teacher.qkv(t, heads)
    total = _attention_kl(_scores(q_s, k_s), _scores(q_t, k_t), student.valid)
    total = total + _attention_kl(_scores(v_s, v_s), _scores(v_t, v_t), student.valid)
    return student.mean(total, student.valid.sum() * heads)


def qkv_pairs(terms, layer_pairs):
    """The aligned pairs of layers whose queries, keys and values the terms need; [] for terms that need none."""
    pairs = transformer_pairs(layer_pairs)
    return pairs if "attention_mse" in terms else [max(pairs)] if "minilm" in terms and pairs else []


def projected_layers(terms, layer_pairs):
    """{term: student layers that it compares through a learned projection where widths differ}."""
    layers = {"hidden_mse": [s for s, _ in transformer_pairs(layer_pairs)], "embedding_mse": [0]}
    return {name: layers[name] for name in terms if name in layers}
