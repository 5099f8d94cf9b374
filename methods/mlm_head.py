"""The head of a masked language model, a chunk of the vocabulary's logits at a time: imports torch and relations only.

Axes: M masked positions, D width (student and teacher may differ), V vocabulary. [M, V] is never stored: for 119,547
words and 1,229 positions (64 x 128 tokens, 15 % masked) it would take 0.6 GB, and its gradients as much again.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

import relations
from relations import masked_mean

# Logits of one chunk: small enough for a CPU's cache; on a GPU a large product in bounded memory (1 GB).
CHUNK = {"cpu": 2**22, "cuda": 2**28}
# Rows of logits are padded to a multiple of this, because a GPU's fast products in half precision need rows that begin
# at a multiple of 16 bytes, and 119,547 is odd.
MULTIPLE = {"cuda": 64}
COLUMNS = 8  # columns that padding adds to a decoder for its bias: 16 bytes, as above
FILL = -1e4  # logit of a padding word: probability 0, and a number in half precision
# Devices that can return a product of half-precision matrices in float32, in which they add it up.
WIDE = {"cuda"}
# Most of a large vocabulary's probabilities are 0 in float16, and the scaler's factor only comes after the gradients
# here. So slopes are multiplied by this. No slope is above 1, and their products are float32.
SCALE = {torch.float16: 2.0**15}


class Head(NamedTuple):
    """What a language-model head needs to give logits: inputs [M, D], weight [V, D], bias [V] or None."""

    inputs: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None

    def narrow(self):
        """Return the same head in the precision of autocast, cast once instead of once per chunk."""
        weight, bias = narrow_decoder(self.weight, self.bias)
        inputs = self.inputs.to(weight.dtype)
        if weight.shape[1] > inputs.shape[1]:
            inputs = F.pad(inputs, (0, COLUMNS), value=1.0)  # times the bias and zeros
        return Head(inputs, weight, bias)

    def logits(self, rows, temperature=1.0):
        """Return the float32 logits [m, V] of a slice of rows, divided by the temperature."""
        if self.bias is None:
            logits = _product(self.inputs[rows], self.weight.mT).float()
        else:
            logits = F.linear(self.inputs[rows], self.weight, self.bias).float()
        return logits if temperature == 1 else logits.div_(temperature)

    def chunks(self):
        """Return slices of nearly equal length whose logits fit into a chunk each; at least one, perhaps empty."""
        rows, most = len(self.inputs), CHUNK.get(self.inputs.device.type, CHUNK["cuda"]) // len(self.weight)
        step = math.ceil(rows / math.ceil(rows / max(1, most))) if rows else 1
        return [slice(i, i + step) for i in range(0, rows or 1, step)]  # at least one, empty if there are no rows


def narrow_decoder(weight, bias):
    """Return a decoder (weight [V, D], bias [V] or None) in the precision of autocast; float32 if that is off.

    In half precision on a GPU it is padded with words, and with columns for the bias, so that one product makes the
    logits. A decoder that is narrow already is returned unchanged, so that a frozen model's can be kept.
    """
    kind, (words, width) = weight.device.type, weight.shape
    half = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if half else torch.float32
    multiple = MULTIPLE.get(kind, 1) if half else 1
    if multiple == 1 or (bias is None and words % multiple == 0):
        return weight.to(dtype), None if bias is None else bias.to(dtype)
    filled = weight.new_empty((words + -words % multiple, width + COLUMNS), dtype=dtype)
    filled[:words, :width] = weight
    filled[:, width:] = 0.0
    filled[words:] = 0.0
    filled[words:, width] = FILL
    if bias is not None:
        filled[:words, width] = bias
    return filled, None


def _product(a, b):
    """Return a [n, k] @ b [k, m], as float32 if the device offers that or float16 could not hold it."""
    if a.device.type in WIDE and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float() if a.dtype == torch.float16 else a @ b


def _add_product(total, a, b):
    """Return total + a @ b in float32; total may be None, otherwise it is changed."""
    if total is None:
        return _product(a, b).float()
    if a.device.type in WIDE and a.dtype != torch.float32:
        return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    return total.addmm_(a, b) if a.dtype == torch.float32 else total.add_(_product(a, b))


def _beside_teacher(student, teacher, slope, scale):
    """Return the sum of p_t (log p_t - log p_s) of float32 logits [m, V]; slope, if given, gets scale * (p_s - p_t)."""
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    p_t = teacher.exp()
    total = torch.dot(teacher.sub_(student).flatten(), p_t.flatten())
    if slope is not None and scale == 1:
        torch.sub(student.exp_(), p_t, out=slope)
    elif slope is not None:
        torch.mul(student.exp_().sub_(p_t), scale, out=slope)
    return total


def _against_labels(student, labels, slope, scale):
    """Return the sum of log p at labels [m] of float32 logits [m, V]; slope, if given, gets scale * (p - one-hot)."""
    student = student.log_softmax(-1)
    chosen = student.gather(1, labels[:, None])
    if slope is not None and scale == 1:
        torch.exp(student, out=slope)
    elif slope is not None:
        torch.mul(student.exp_(), scale, out=slope)
    if slope is not None:  # p - 1 before it is rounded: near 1 nothing would be left of it
        slope.scatter_(1, labels[:, None], chosen.expm1().mul_(scale).to(slope.dtype))
    return chosen.sum()


class _HeadLoss(torch.autograd.Function):
    """Sum over rows of T^2 KL(teacher || student), or of the cross-entropy with labels if there is no teacher.

    The forward pass computes the gradients chunk by chunk, in the precision of autocast, and adds them up in float32:
    at most one chunk of logits exists, and none is computed twice.
    """

    @staticmethod
    def forward(ctx, inputs, weight, bias, teacher, labels, temperature, compiled):
        """Return the sum. inputs, weight, bias: of the student's Head; teacher: a Head or None; labels [M] or None."""
        student, teacher = Head(inputs, weight, bias).narrow(), teacher and teacher.narrow()
        (words, width), dtype = weight.shape, student.weight.dtype
        # The decoder may be a frozen word embedding, whose gradient would be the largest of all.
        needs, need = ctx.needs_input_grad[:3], any(ctx.needs_input_grad[:3])
        compare, scale = _beside_teacher if teacher else _against_labels, SCALE.get(dtype, 1.0)
        compare = relations._compiled(compare) if compiled else compare
        total, d_inputs, d_weight, d_bias = inputs.new_zeros((), dtype=torch.float32), [], None, None
        with torch.autocast(inputs.device.type, enabled=False):
            for rows in student.chunks():
                other = teacher.logits(rows, temperature) if teacher else labels[rows]
                slope = other.new_empty((len(other), len(student.weight)), dtype=dtype) if need else None
                total += compare(student.logits(rows, temperature), other, slope, scale)
                if needs[0]:
                    d_inputs.append(_product(slope, student.weight[:, :width]).float())
                if needs[1]:
                    d_weight = _add_product(d_weight, slope.mT, student.inputs[rows, :width])
                if needs[2]:
                    part = slope.sum(0, dtype=torch.float32)
                    d_bias = part if d_bias is None else d_bias.add_(part)
        if need:
            ctx.factor = (temperature if teacher else 1.0) / scale
            d_inputs = torch.cat(d_inputs) if len(d_inputs) > 1 else d_inputs[0] if d_inputs else None
            ctx.save_for_backward(d_inputs, *(None if grad is None else grad[:words] for grad in (d_weight, d_bias)))
        return total.mul_(temperature**2 if teacher else -1.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        factor = grad_output * ctx.factor
        return *(None if x is None else x * factor for x in ctx.saved_tensors), None, None, None, None


def soft_head_logits(student, teacher, *, temperature=1.0, across_processes=False, compiled=False):
    """Return `losses.soft_logits` of two Heads over the same M rows without storing [M, V]; float32 scalar.

    Gradients flow to the student's inputs, weight and bias. Widths may differ, the vocabulary may not.
    across_processes: as in `relations.masked_mean`. compiled: use torch.compile for all but the products.
    """
    teacher = Head(*(x if x is None else x.detach() for x in teacher))
    total = _HeadLoss.apply(*student, teacher, None, temperature, compiled)
    return masked_mean(total, len(student.inputs), across_processes)


def head_cross_entropy(student, labels, *, across_processes=False, compiled=False):
    """Return the mean cross-entropy, a float32 scalar, of a Head with labels [M] without storing [M, V]; see above."""
    total = _HeadLoss.apply(*student, None, labels, 1.0, compiled)
    return masked_mean(total, len(labels), across_processes)


def agreement(student, teacher):
    """Return the number of rows (float scalar) whose most likely word is the same for two Heads."""
    student, teacher = student.narrow(), teacher.narrow()
    total = student.inputs.new_zeros((), dtype=torch.float32)
    for rows in student.chunks():
        total += (student.logits(rows).argmax(-1) == teacher.logits(rows).argmax(-1)).sum()
    return total
