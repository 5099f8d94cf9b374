"""The head of a masked language model, a chunk of the vocabulary's logits at a time: imports torch and relations only.

Axes: M masked positions, D width (student and teacher may differ), V vocabulary. [M, V] is never held: of 119,547
words and 1,229 positions (64 x 128 tokens, 15 % masked) it would take 0.6 GB, and its gradients as much again.
"""
from typing import NamedTuple

import torch
from torch.nn import functional as F

from relations import masked_mean

# Logits of one chunk: on a CPU they shall stay near the cache, on a GPU be a large product in bounded memory (0.5 GB).
CHUNK = {"cpu": 2**22, "cuda": 2**27}
# Rows of logits are filled up to a multiple of this: a GPU's fast products in half precision want rows that begin at a
# multiple of 16 bytes, and 119,547 is odd.
MULTIPLE = {"cuda": 64}
FILL = -1e4  # logit of a word that there is not: of no probability, and a number in half precision
# Most of a large vocabulary's probabilities are below what float16 can tell from 0, and the scaler's factor comes after
# the gradients here: they are made of slopes times this. Not of more, or the sum over a frequent word would overflow.
SCALE = {torch.float16: 64.0}


class Head(NamedTuple):
    """What a language-model head needs to give logits: inputs [M, D], weight [V, D], bias [V] or None."""

    inputs: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None

    def narrow(self):
        """The same head in the precision of autocast, in which its products are taken; cast once, not once a chunk.

        In half precision on a GPU the vocabulary is filled up.
        """
        kind = self.inputs.device.type
        if not torch.is_autocast_enabled(kind):
            return Head(*(x if x is None else x.to(torch.float32) for x in self))
        inputs, weight, bias = (x if x is None else x.to(torch.get_autocast_dtype(kind)) for x in self)
        missing = -len(weight) % MULTIPLE.get(kind, 1)
        if missing:
            bias = weight.new_zeros(len(weight)) if bias is None else bias
            weight, bias = F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=FILL)
        return Head(inputs, weight, bias)

    def logits(self, rows):
        """Float32 logits [m, V] of a slice of rows."""
        return F.linear(self.inputs[rows], self.weight, self.bias).float()

    def chunks(self):
        """Slices of rows whose logits together make a chunk."""
        step = max(1, CHUNK.get(self.inputs.device.type, CHUNK["cuda"]) // self.weight.shape[0])
        return [slice(i, i + step) for i in range(0, len(self.inputs), step)]


class _HeadLoss(torch.autograd.Function):
    """Sum over rows of T^2 KL(teacher || student), or of the cross-entropy with labels where there is no teacher.

    Gradients are taken chunk by chunk in the forward pass, in the precision of autocast, and added up in float32: at
    most a chunk of logits exists, and none is computed twice.
    """

    @staticmethod
    def forward(ctx, inputs, weight, bias, teacher, labels, temperature):
        """inputs [N, D], weight [V, D], bias [V] of the student's head; teacher: a Head or None; labels [N] or None."""
        student, teacher = Head(inputs, weight, bias).narrow(), teacher and teacher.narrow()
        # Of a frozen word embedding, which the decoder may be, there is none: it would be the largest of all.
        grads = [torch.zeros_like(x, dtype=torch.float32) if need else None
                 for x, need in zip(student, ctx.needs_input_grad, strict=False)]  # fmt: skip
        total = inputs.new_zeros((), dtype=torch.float32)
        scale = SCALE.get(student.weight.dtype, 1.0)
        words = len(weight)
        for rows in student.chunks():
            log_s = student.logits(rows).div_(temperature).log_softmax(-1)
            if teacher is None:
                total -= log_s.gather(1, labels[rows, None]).sum()
                slope = log_s.exp_()
                slope.scatter_add_(1, labels[rows, None], slope.new_full((len(slope), 1), -1.0))
            else:
                log_t = teacher.logits(rows).div_(temperature).log_softmax(-1)
                p_t = log_t.exp()
                total += temperature**2 * (log_t.sub_(log_s).mul_(p_t)).sum()
                slope = log_s.exp_().sub_(p_t).mul_(temperature)
            if grads[2] is not None:
                grads[2] += slope.sum(0)
            if grads[0] is not None or grads[1] is not None:
                narrow = (slope if scale == 1 else slope.mul_(scale)).to(student.weight.dtype)
            if grads[0] is not None:
                grads[0][rows] = (narrow @ student.weight).float()
            if grads[1] is not None:
                grads[1].add_(narrow.mT @ student.inputs[rows])
        for grad in filter(lambda grad: grad is not None and scale != 1, grads[:2]):
            grad.div_(scale)
        grads[1:] = [None if grad is None else grad[:words] for grad in grads[1:]]
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        grads = [None if g is None else g * grad_output for g in ctx.saved_tensors]
        return *grads, None, None, None


def soft_head_logits(student, teacher, *, temperature=1.0, across_processes=False):
    """`losses.soft_logits` of two Heads over the same M rows, without ever holding [M, V]; float32 scalar.

    Gradients flow to the student's inputs, weight and bias. Widths may differ, the vocabulary may not.
    across_processes: as in `relations.masked_mean`.
    """
    teacher = Head(*(x if x is None else x.detach() for x in teacher))
    total = _HeadLoss.apply(*student, teacher, None, temperature)
    return masked_mean(total, len(student.inputs), across_processes)


def head_cross_entropy(student, labels, *, across_processes=False):
    """Mean cross-entropy of a Head with labels [M], without ever holding [M, V]; float32 scalar."""
    total = _HeadLoss.apply(*student, None, labels, 1.0)
    return masked_mean(total, len(labels), across_processes)


def agreement(student, teacher):
    """Number of rows (float scalar) whose most likely word is the same for two Heads."""
    student, teacher = student.narrow(), teacher.narrow()
    total = student.inputs.new_zeros((), dtype=torch.float32)
    for rows in student.chunks():
        total += (student.logits(rows).argmax(-1) == teacher.logits(rows).argmax(-1)).sum()
    return total
