"""Losses of contextual knowledge distillation (CKD, arXiv:2109.08359): pure functions on tensors, and TERMS.

Axes: B batch, L aligned layers, T tokens, D width (student and teacher may differ), W window, C classes.
`mask` is [B, T], 1 = real token, 0 = padding. The argument order is always (student, teacher, mask).

Every relation is elementwise in a Gram matrix G = H H^T, so no difference of two vectors is ever formed:
    cos_ij = G_ij / sqrt(G_ii G_jj)     |h_i - h_j|^2 = G_ii + G_jj - 2 G_ij
    <h_i - h_j, h_k - h_j> = G_ik - G_ij - G_jk + G_jj
That costs T^2 D + T W^2 operations where the differences cost T W^2 D, and memory that does not grow with D.
"""
import contextlib
import math
import re
from functools import cached_property
from typing import NamedTuple

import torch
from torch.nn import functional as F

# Below this share of |a|^2 + |b|^2 a float32 Gram matrix cannot tell a squared distance from rounding noise:
# the two vectors count as equal. Centring the vectors first keeps that sum as small as it can be.
EQUAL = 1e-6
# Elements of one block of angles: on a CPU it has to stay in the cache, on a GPU it has to fill the device.
BLOCK = {"cpu": 2**18, "cuda": 2**26}
DISTANCES = ("cosine", "l2")
CRITERIA = ("kl", "mse", "l1", "huber")

_global = {"on": False}


@contextlib.contextmanager
def global_batch():
    """Within it, means are over the batch of all processes of torch.distributed, not over this process's share.

    Every process must then compute the same terms in the same order. The scalars are scaled so that the average over
    processes, which DistributedDataParallel takes of gradients, is the mean over the global batch.
    """
    _global["on"] = torch.distributed.is_available() and torch.distributed.is_initialized()
    try:
        yield
    finally:
        _global["on"] = False


def masked_mean(total, count):
    """total / count as a scalar that is 0, with a graph, where nothing was counted.

    total: scalar, the sum over valid elements. count: their number, a scalar tensor (never read by the host).
    Under `global_batch` the count is that of all processes.
    """
    count = count.to(total.dtype)
    if _global["on"]:
        count = count.detach().clone()
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return total / torch.where(count > 0, count, 1)


# --- Gram matrices -----------------------------------------------------------------------------------------------


class Gram(NamedTuple):
    """Inner products within sets of n vectors; leading axes [B, L] for words of a layer, [B, T] for layers of a word.

    inner [..., n, n]: between centred vectors. shift [..., n]: inner_ij + shift_i + shift_j is the product of the
    vectors as they were. valid [..., n]: bool, False = padding.
    """

    inner: torch.Tensor
    shift: torch.Tensor
    valid: torch.Tensor

    @property
    def square(self):
        """|h_i - centre|^2, [..., n]."""
        return self.inner.diagonal(dim1=-2, dim2=-1)


@contextlib.contextmanager
def _full_float32(x):
    """Full float32 products whatever TF32 setting the user's process has."""
    if not x.is_cuda:
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class _CentredGram(torch.autograd.Function):
    """(inner, shift) of a Gram for the hidden states of L layers, each [B, T, D] of any float type, valid [B, T] bool.

    over "words": inner [B, L, T, T], shift [B, L, T]; over "layers": inner [B, T, L, L], shift [B, T, L].
    Passes over the vectors cost more than the products, so it takes some sentences at a time, which stay in the cache;
    the mean is a row of the product; centring, masking and the mean's own gradient are done to the small factor of the
    backward product; and nothing of the vectors' size is kept for the backward pass but the vectors themselves.
    Padding may hold anything, also NaN; its rows and columns of inner, and its shifts, are 0.
    """

    @staticmethod
    def forward(ctx, valid, over, *states):
        ctx.save_for_backward(valid, *states)
        ctx.over = over
        inner, shift = [], []
        for sentences in _sentences(states):
            rows, real, _ = _centred_rows(states, valid, over, sentences)
            n = real.shape[-1]
            with _full_float32(rows):
                products = rows @ rows.mT
            inner.append(products[..., :n, :n] * real[..., None] * real[..., None, :])
            # h_i h_j = x_i x_j + shift_i + shift_j with x_i = h_i - mean, shift_i = x_i mean + |mean|^2 / 2.
            shift.append((products[..., :n, n] + products[..., n, n:] / 2) * real)
        return torch.cat(inner), torch.cat(shift)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, inner, shift):
        valid, *states = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        grads = [torch.empty_like(h) if need else None for h, need in zip(states, needed, strict=True)]
        for sentences in _sentences(states):
            rows, real, count = _centred_rows(states, valid, ctx.over, sentences)
            real = real[..., None]
            of_shift = shift[sentences, ..., None] * real
            of_vectors = inner[sentences] + inner[sentences].mT
            of_vectors = torch.cat([of_vectors * real * real.mT, of_shift], -1)
            of_mean = torch.cat([of_shift.mT, of_shift.sum(-2, keepdim=True)], -1)
            # A vector counts through itself and, as one of `count`, through the mean of the real ones.
            factor = of_vectors + (of_mean - of_vectors.sum(-2, keepdim=True)) / count * real
            with _full_float32(rows):
                found = factor @ rows
            for grad, part in zip(grads, found.unbind(1 if ctx.over == "words" else 2), strict=True):
                if grad is not None:
                    grad[sentences] = part
        return None, None, *grads


def _sentences(states):
    """Slices of the batch whose vectors together make a block, one sentence at least."""
    _, tokens, width = states[0].shape
    block = 4 * BLOCK.get(states[0].device.type, BLOCK["cuda"])
    step = max(1, block // max(1, len(states) * tokens * width))
    return [slice(i, i + step) for i in range(0, max(1, len(states[0])), step)]


def _centred_rows(states, valid, over, sentences):
    """Vectors of some sentences less the mean of the real ones of their set, then that mean: [b, ..., n + 1, D].

    Also real [b, ..., n], which of the n are, and count [b, ..., 1, 1], their number but at least 1.
    """
    valid = valid[sentences]
    (b, tokens), width, layers = valid.shape, states[0].shape[-1], len(states)
    shape = (b, layers, tokens + 1, width) if over == "words" else (b, tokens, layers + 1, width)
    rows = torch.empty(shape, dtype=torch.float32, device=valid.device)
    n = shape[2] - 1
    parts = rows[..., :n, :].unbind(1 if over == "words" else 2)
    for part, h in zip(parts, states, strict=True):
        torch.where(valid[..., None], h[sentences].float(), part.new_zeros(()), out=part)
    real = (valid[:, None] if over == "words" else valid[:, :, None]).expand(shape[:2] + (n,))
    count = real.sum(-1).clamp(min=1)[..., None, None]
    mean = rows[..., :n, :].sum(-2, keepdim=True) / count
    rows[..., :n, :] -= mean
    rows[..., n:, :] = mean
    return rows, real, count


def _gram(states, mask, over):
    """Gram in float32 of a sequence of hidden states [B, T, D], one a layer."""
    valid = mask.bool()
    with torch.autocast(states[0].device.type, enabled=False):
        inner, shift = _CentredGram.apply(valid, over, *states)
    return Gram(inner, shift, (valid[:, None] if over == "words" else valid[:, :, None]).expand(shift.shape))


def _both(student, teacher, mask, over):
    """Grams of student and teacher [B, L, T, D]; no gradient flows to the teacher."""
    return _gram(student.unbind(1), mask, over), _gram(teacher.detach().unbind(1), mask, over)


def _inverse_root(x, floor):
    """1 / sqrt(x), and 0 with zero gradient where x <= floor."""
    positive = x > floor
    return torch.where(positive, x, 1.0).rsqrt() * positive


# --- relations of pairs ------------------------------------------------------------------------------------------


def _pair_valid(valid):
    """Ordered pairs of distinct valid elements: [..., n] -> bool [..., n, n]."""
    different = ~torch.eye(valid.shape[-1], dtype=torch.bool, device=valid.device)
    return valid[..., :, None] & valid[..., None, :] & different


def _cosines(gram):
    square = gram.square + 2 * gram.shift
    inverse = _inverse_root(square, EQUAL * (gram.square + 2 * gram.shift.abs()).detach())
    inner = gram.inner + gram.shift[..., :, None] + gram.shift[..., None, :]
    return inner * inverse[..., :, None] * inverse[..., None, :]


def _distances(gram, pairs):
    """Distances divided by their mean over the valid pairs of the set; 0 where all vectors are equal."""
    sums = gram.square[..., :, None] + gram.square[..., None, :]
    squared = sums - 2 * gram.inner
    distance = squared * _inverse_root(squared, EQUAL * sums.detach()) * pairs
    mean = distance.sum((-2, -1), keepdim=True) / pairs.sum((-2, -1), keepdim=True).clamp(min=1)
    return distance / torch.where(mean > 0, mean, 1.0)


def _compare(student, teacher, criterion):
    """Elementwise criterion between two relations of equal shape."""
    if criterion == "mse":
        return (student - teacher).square()
    if criterion == "l1":
        return (student - teacher).abs()
    return F.huber_loss(student, teacher, reduction="none")


def _softmax_kl(student, teacher, pairs):
    """KL(softmax of teacher || softmax of student) of each row over its valid partners, [..., n]; 0 without partners.

    With d = student - teacher it is log E[exp(d - E[d])], the expectation under the teacher: all of second order in d,
    where the difference of two log-softmaxes loses its digits once the models agree.
    """
    # Finite fill: a row without partners becomes uniform, and the mask makes it 0, where -inf would give NaN.
    p = teacher.masked_fill(~pairs, -1e4).softmax(-1) * pairs
    d = student - teacher
    d = d - (p * d).sum(-1, keepdim=True)
    return (p * d.expm1()).sum(-1).log1p()


def _pair_sum(student, teacher, distance, criterion):
    """Sum of the criterion over valid ordered pairs; student and teacher are Grams over the same sets."""
    pairs = _pair_valid(student.valid)
    if distance == "cosine":
        a_s, a_t = _cosines(student), _cosines(teacher)
    else:
        a_s, a_t = _distances(student, pairs), _distances(teacher, pairs)
    if criterion == "kl":
        return _softmax_kl(a_s, a_t, pairs).sum()
    return (_compare(a_s, a_t, criterion) * pairs).sum()


class _PairSum(torch.autograd.Function):
    """`_pair_sum` with its gradient, some sets after the other: of what lies between only a block exists at a time.

    inner [N, n, n] and shift [N, n] of the student; teacher: a Gram of the same shape; valid [N, n].
    """

    @staticmethod
    def forward(ctx, inner, shift, teacher, valid, distance, criterion):
        need, n = inner.requires_grad, inner.shape[-1]
        grads = torch.zeros_like(inner), torch.zeros_like(shift)
        total = inner.new_zeros(())
        step = max(1, BLOCK.get(inner.device.type, BLOCK["cuda"]) // max(1, n**2))
        for r in (slice(i, i + step) for i in range(0, len(inner), step)):
            leaves = [x[r].detach().requires_grad_(need) for x in (inner, shift)]
            with torch.set_grad_enabled(need):
                loss = _pair_sum(Gram(*leaves, valid[r]), Gram(*(x[r] for x in teacher)), distance, criterion)
            total += loss.detach()
            if need:
                for grad, found in zip(grads, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
                    if found is not None:  # distances do not see the shifts
                        grad[r] = found
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        return *(grad * grad_output for grad in ctx.saved_tensors), None, None, None, None


def _pair_loss(student, teacher, distance, criterion):
    """Mean over valid ordered pairs; student and teacher are Grams over the same sets."""
    s, t = (Gram(*(x.reshape(-1, *x.shape[2:]) for x in gram)) for gram in (student, teacher))
    total = _PairSum.apply(s.inner, s.shift, Gram(*(x.detach() for x in t)), s.valid, distance, criterion)
    real = s.valid.sum(-1)
    return masked_mean(total, (real * (real - 1)).sum())


# --- relations of triples ----------------------------------------------------------------------------------------


class _Neighbours(NamedTuple):
    """The inner products that the angles at centres j between neighbours i and k need; w neighbours for each j.

    ends [N, J, w, w]: G_ik. arms [N, J, w]: G_ij. square [N, J, w]: G_ii. centre [N, J]: G_jj.
    """

    ends: torch.Tensor
    arms: torch.Tensor
    square: torch.Tensor
    centre: torch.Tensor


def _dense(gram, centres):
    """Every element is a neighbour of the given slice of centres; views of gram [N, n, n]."""
    square = gram.diagonal(dim1=-2, dim2=-1)
    return _Neighbours(gram[:, None], gram[:, centres], square[:, None], square[:, centres])


def _band(gram, window):
    """Views of gram, padded to [N, n + W - 1, n + W - 1], that give each centre its W nearest positions."""
    rows, size, reach = gram.shape[0], gram.shape[-1], window // 2
    n = size - 2 * reach
    square = gram.diagonal(dim1=-2, dim2=-1)
    return _Neighbours(
        gram.as_strided((rows, n, window, window), (size * size, size + 1, size, 1), gram.storage_offset()),
        gram.as_strided((rows, n, window), (size * size, size + 1, 1), gram.storage_offset() + reach * size),
        square.unfold(-1, window, 1),
        square[:, reach : reach + n],
    )


def _angles(x, ok):
    """Cosines of the angles [N, J, w, w] and the inverse arm lengths [N, J, w], 0 where not ok or of length 0."""
    sums = x.square + x.centre[..., None]
    inverse = _inverse_root(sums - 2 * x.arms, EQUAL * sums) * ok
    # (h_i - h_j)(h_k - h_j) = G_ik - (G_ij - G_jj / 2) - (G_jk - G_jj / 2)
    arms = x.arms - x.centre[..., None] / 2
    cosines = x.ends - arms[..., :, None]
    cosines -= arms[..., None, :]
    cosines *= inverse[..., :, None]
    cosines *= inverse[..., None, :]
    return cosines, inverse


def _angle_loss(student, teacher, ok, criterion):
    """Sum of the criterion over the triples, and its gradient with respect to the student's `_Neighbours`.

    ok [N, J, w]: i and j are real and distinct. Triples with i = k are left out; those with an unreal member have
    cosine 0 in both models and so add nothing.
    """
    cosine, inverse = _angles(student, ok)
    difference = cosine - _angles(teacher, ok)[0]
    difference.diagonal(dim1=-2, dim2=-1).zero_()
    if criterion == "mse":
        loss, slope = torch.linalg.vector_norm(difference).square(), difference.mul_(2)
    elif criterion == "l1":
        loss, slope = difference.abs().sum(), difference.sign()
    else:
        loss = F.huber_loss(difference, torch.zeros_like(difference), reduction="sum")
        slope = difference.clamp_(-1, 1)
    # d cos / d |h_i - h_j|^2 = -cos / (2 |h_i - h_j|^2), once as arm i and once as arm k.
    length = -(cosine.mul_(slope)).sum(-1) * inverse.square()
    ends = slope.mul_(inverse[..., :, None]).mul_(inverse[..., None, :])
    arms = ends.sum(-1) + length
    return loss, _Neighbours(ends, -2 * arms, length, arms.sum(-1))


def _every_triple(student, teacher, valid, criterion, grad):
    """All triples of n elements, one block of sets and centres after the other; adds the gradient to grad."""
    sets, n = valid.shape
    block = BLOCK.get(student.device.type, BLOCK["cuda"])
    n_sets, n_centres = max(1, block // n**3), max(1, block // n**2)
    positions = torch.arange(n, device=valid.device)
    total = student.new_zeros(())
    for r in (slice(i, i + n_sets) for i in range(0, sets, n_sets)):
        for j in (slice(i, min(i + n_centres, n)) for i in range(0, n, n_centres)):
            ok = valid[r, None, :] & valid[r, j, None] & (positions != positions[j, None])
            loss, x = _angle_loss(_dense(student[r], j), _dense(teacher[r], j), ok, criterion)
            total += loss
            grad[r] += x.ends.sum(1)
            grad[r, j] += x.arms
            grad.diagonal(dim1=-2, dim2=-1)[r] += x.square.sum(1)
            grad.diagonal(dim1=-2, dim2=-1)[r, j] += x.centre
    return total


def _windowed_triples(student, teacher, valid, criterion, grad, window):
    """Triples within the window around j, a block of sets at a time; adds the gradient to grad."""
    sets, n = valid.shape
    reach = window // 2
    n_sets = max(1, BLOCK.get(student.device.type, BLOCK["cuda"]) // (n * window**2))
    student, teacher = (F.pad(g, (reach,) * 4) for g in (student, teacher))
    ok = F.pad(valid, (reach, reach)).unfold(-1, window, 1) & valid[..., None]
    ok[..., reach] = False
    padded = torch.zeros_like(student)
    total = student.new_zeros(())
    for r in (slice(i, i + n_sets) for i in range(0, sets, n_sets)):
        loss, x = _angle_loss(_band(student[r], window), _band(teacher[r], window), ok[r], criterion)
        total += loss
        into = _band(padded[r], window)
        into.arms.add_(x.arms)
        into.centre.add_(x.centre)
        for a in range(window):  # one neighbour at a time: for fixed a the elements of the view do not overlap
            into.ends[:, :, a].add_(x.ends[:, :, a])
            into.square[..., a].add_(x.square[..., a])
    grad += padded[:, reach : reach + n, reach : reach + n]
    return total


class _TripleSum(torch.autograd.Function):
    """Sum of the criterion over all triples, its gradient taken block by block in the forward pass.

    Only the gradient [N, n, n] with respect to the student's Gram matrix is kept, so memory does not grow with the
    number of triples, which is n^3 without a window.
    """

    @staticmethod
    def forward(ctx, student, teacher, valid, window, criterion):
        grad = torch.zeros_like(student)
        if window is None or window >= 2 * student.shape[-1] - 1:
            total = _every_triple(student, teacher, valid, criterion, grad)
        else:
            total = _windowed_triples(student, teacher, valid, criterion, grad, window)
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        return ctx.saved_tensors[0] * grad_output, None, None, None, None


def _triple_loss(student, teacher, window, criterion):
    """Mean over valid ordered triples of distinct elements; student and teacher are Grams over the same sets."""
    n = student.valid.shape[-1]
    valid = student.valid.reshape(-1, n)
    total = _TripleSum.apply(
        student.inner.reshape(-1, n, n), teacher.inner.detach().reshape(-1, n, n), valid, window, criterion
    )
    if window is None:
        around = valid.sum(-1, keepdim=True)
    else:  # real tokens within the window of each position
        before = F.pad(valid.cumsum(-1), (1, 0))
        j = torch.arange(n, device=valid.device)
        around = before[:, (j + window // 2 + 1).clamp(max=n)] - before[:, (j - window // 2).clamp(min=0)]
    neighbours = (around - 1) * valid
    return masked_mean(total, (neighbours * (neighbours - 1)).sum())


# --- the public losses -------------------------------------------------------------------------------------------


def check_options(distance="cosine", pair_criterion="kl", triple_criterion="mse", window=21):
    """Raise ValueError, saying what to pass instead, for options that no relation is defined with."""
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}: choose one of {', '.join(DISTANCES)}")
    if pair_criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {pair_criterion!r}: choose one of {', '.join(CRITERIA)}")
    if pair_criterion == "kl" and distance != "cosine":
        raise ValueError(f"criterion 'kl' needs distance 'cosine', not {distance!r}: pass 'mse', 'l1' or 'huber'")
    if triple_criterion not in CRITERIA[1:]:
        raise ValueError(f"criterion {triple_criterion!r} is not for angles: choose one of {', '.join(CRITERIA[1:])}")
    if window is not None and (window < 3 or window % 2 == 0):
        near = max(3, window // 2 * 2 + 1)
        raise ValueError(f"window {window} must be odd and at least 3, such as {near}, or None for all triples")


def _check_shapes(student, teacher, mask, n_layers=1):
    if student.shape[:3] != teacher.shape[:3] or student.shape[::2][:1] + student.shape[2:3] != mask.shape:
        raise ValueError(
            f"student {list(student.shape)}, teacher {list(teacher.shape)} and mask {list(mask.shape)} "
            "do not share batch, layers and tokens: pass [B, L, T, D], [B, L, T, D] and [B, T]"
        )
    check_layers(student.shape[1], n_layers)


def check_layers(n_aligned, n_layers):
    """Raise ValueError if fewer layers are aligned than a layer relation needs (2 for pairs, 3 for triples)."""
    if n_aligned < n_layers:
        name = {2: "ltr_pair", 3: "ltr_triple"}[n_layers]
        raise ValueError(
            f"{name} relates {n_layers} layers but only {n_aligned} are aligned: align more layers or leave {name} out"
        )


def wr_pair(student, teacher, mask, *, distance="cosine", criterion="kl"):
    """Word relation of pairs: similarity of every two words of a sentence, in each aligned layer.

    student [B, L, T, Ds], teacher [B, L, T, Dt]: hidden states of any float type; gradients flow to the student only.
    mask [B, T]: 1 = real token. distance: "cosine", or "l2" divided by its mean over the sentence and layer.
    criterion: "kl" of the softmax over partners (cosine only), "mse", "l1" or "huber".
    Returns the mean over ordered pairs i != j of real tokens in the whole batch, float32 scalar.
    Raises ValueError for unknown or impossible options. Source: arXiv:2109.08359, section 3.1.
    """
    check_options(distance, criterion)
    _check_shapes(student, teacher, mask)
    return _pair_loss(*_both(student, teacher, mask, "words"), distance, criterion)


def wr_triple(student, teacher, mask, *, window=21, criterion="mse"):
    """Word relation of triples: the angle at word j between words i and k near it, in each aligned layer.

    student [B, L, T, Ds], teacher [B, L, T, Dt]: hidden states of any float type; gradients flow to the student only.
    mask [B, T]: 1 = real token. window: odd, i and k stand within (window - 1) / 2 positions of j; None = all triples.
    criterion: "mse", "l1" or "huber" between the cosines of the angles; a cosine with an arm of length 0 is 0.
    Returns the mean over ordered triples of distinct real tokens in the whole batch, float32 scalar.
    Raises ValueError for unknown or impossible options. Source: arXiv:2109.08359, section 3.1.
    """
    check_options(triple_criterion=criterion, window=window)
    _check_shapes(student, teacher, mask)
    return _triple_loss(*_both(student, teacher, mask, "words"), window, criterion)


def ltr_pair(student, teacher, mask, *, distance="cosine", criterion="kl"):
    """Layer transforming relation of pairs: similarity of every two aligned layers of one word.

    Arguments as in `wr_pair`, with layers in place of words; at least 2 aligned layers.
    Returns the mean over ordered pairs of distinct layers of each real token in the whole batch, float32 scalar.
    Raises ValueError for unknown or impossible options. Source: arXiv:2109.08359, section 3.2.
    """
    check_options(distance, criterion)
    _check_shapes(student, teacher, mask, 2)
    return _pair_loss(*_both(student, teacher, mask, "layers"), distance, criterion)


def ltr_triple(student, teacher, mask, *, criterion="mse"):
    """Layer transforming relation of triples: the angle at layer m between layers l and o of one word.

    Arguments as in `wr_triple`, with layers in place of words and no window; at least 3 aligned layers.
    Returns the mean over ordered triples of distinct layers of each real token in the whole batch, float32 scalar.
    Raises ValueError for unknown or impossible options. Source: arXiv:2109.08359, section 3.2.
    """
    check_options(triple_criterion=criterion)
    _check_shapes(student, teacher, mask, 3)
    return _triple_loss(*_both(student, teacher, mask, "layers"), None, criterion)


def soft_logits(student, teacher, *, temperature=1.0):
    """Temperature-scaled distillation of logits: T^2 * KL(teacher || student).

    student, teacher [..., C]: logits of any float type; gradients flow to the student only. temperature: > 0.
    Returns the mean over rows (all leading axes), float32 scalar. The factor T^2 keeps the gradient's size over
    temperatures. Raises ValueError for a temperature that is not positive. Source: Hinton et al., arXiv:1503.02531.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive: try 1.0")
    with torch.autocast(student.device.type, enabled=False):
        log_s = (student.float() / temperature).log_softmax(-1)
        log_t = (teacher.detach().float() / temperature).log_softmax(-1)
        # Not F.kl_div: where both say 0 (-inf logits), 0 * (-inf + inf) has to be 0.
        gap = torch.where(log_t > float("-inf"), log_t - log_s, 0.0)
        rows = (log_t.exp() * gap).sum(-1)
        return temperature**2 * masked_mean(rows.sum(), torch.tensor(rows.numel(), device=rows.device))


# --- language-model heads, a chunk of the vocabulary's logits at a time -------------------------------------------


class Head(NamedTuple):
    """What a language-model head needs to give logits: inputs [M, D], weight [V, D], bias [V] or None."""

    inputs: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None

    def logits(self, rows):
        """Float32 logits [m, V] of a slice of rows, the product in the precision of autocast."""
        kind = self.inputs.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return F.linear(self.inputs[rows].to(dtype), self.weight.to(dtype), self.bias).float()

    def chunks(self):
        """Slices of rows whose logits together stay below a block."""
        step = max(1, BLOCK.get(self.inputs.device.type, BLOCK["cuda"]) * 16 // self.weight.shape[0])
        return [slice(i, i + step) for i in range(0, len(self.inputs), step)]


class _HeadLoss(torch.autograd.Function):
    """Sum over rows of T^2 KL(teacher || student), or of the cross-entropy with labels where there is no teacher.

    Gradients are taken chunk by chunk in the forward pass: at most a chunk of logits exists, and none is computed
    twice.
    """

    @staticmethod
    def forward(ctx, inputs, weight, bias, teacher, labels, temperature):
        student = Head(inputs, weight, bias)
        need = inputs.requires_grad or weight.requires_grad
        grads = [torch.zeros_like(x, dtype=torch.float32) if need and x is not None else None for x in student]
        total = inputs.new_zeros((), dtype=torch.float32)
        for rows in student.chunks():
            log_s = (student.logits(rows) / temperature).log_softmax(-1)
            if teacher is None:
                total -= log_s.gather(1, labels[rows, None]).sum()
                slope = log_s.exp_()
                slope.scatter_add_(1, labels[rows, None], slope.new_full((len(slope), 1), -1.0))
            else:
                log_t = (teacher.logits(rows) / temperature).log_softmax(-1)
                p_t = log_t.exp()
                total += temperature**2 * (log_t.sub_(log_s).mul_(p_t)).sum()
                slope = log_s.exp_().sub_(p_t).mul_(temperature)
            if need:
                with _full_float32(inputs):
                    narrow = slope.to(student.inputs.dtype)
                    grads[0][rows] = (narrow @ weight.to(narrow.dtype)).float()
                    grads[1].addmm_(slope.mT, inputs[rows].float())
                if bias is not None:
                    grads[2] += slope.sum(0)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        grads = [None if g is None else g * grad_output for g in ctx.saved_tensors]
        return *grads, None, None, None


def soft_head_logits(student, teacher, *, temperature=1.0):
    """`soft_logits` of two Heads over the same M rows, without ever holding [M, V]; float32 scalar.

    Gradients flow to the student's inputs, weight and bias. Widths may differ, the vocabulary may not.
    """
    teacher = Head(*(x if x is None else x.detach() for x in teacher))
    total = _HeadLoss.apply(*student, teacher, None, temperature)
    return masked_mean(total, torch.tensor(len(student.inputs), device=total.device))


def head_cross_entropy(student, labels):
    """Mean cross-entropy of a Head with labels [M], without ever holding [M, V]; float32 scalar."""
    total = _HeadLoss.apply(*student, None, labels, 1.0)
    return masked_mean(total, torch.tensor(len(labels), device=total.device))


def agreement(student, teacher):
    """Number of rows (float scalar) whose most likely word is the same for two Heads."""
    total = student.inputs.new_zeros((), dtype=torch.float32)
    for rows in student.chunks():
        total += (student.logits(rows).argmax(-1) == teacher.logits(rows).argmax(-1)).sum()
    return total


# --- terms -------------------------------------------------------------------------------------------------------


class ModelView:
    """What the terms see of one model's outputs: its logits, aligned hidden states, and Gram matrices made once.

    out: a transformers ModelOutput or dict. layers: the indices into its hidden_states that are aligned with the other
    model's, in order. mask [B, T]: 1 = real token. `models.add_outputs` puts "qkv" and "projected" into out.
    """

    def __init__(self, out, layers, mask):
        self.out, self.layers, self.mask = out, layers, mask

    @cached_property
    def logits(self):
        """Logits [B, C]; of question answering those of start and end [B, 2, T], never over padding."""
        if "start_logits" not in self.out:
            return self.out["logits"]
        both = torch.stack([self.out["start_logits"], self.out["end_logits"]], 1)
        return both.float().masked_fill(self.mask[:, None] == 0, float("-inf"))

    @property
    def aligned(self):
        """Aligned hidden states, a tensor [B, T, D] for each of the L layers."""
        return [self.out["hidden_states"][i] for i in self.layers]

    @cached_property
    def hidden(self):
        """Aligned hidden states [B, L, T, D]; a copy, for terms that need them in one tensor."""
        return torch.stack(self.aligned, 1)

    @cached_property
    def valid(self):
        """The mask as bool [B, T]."""
        return self.mask.bool()

    def states(self, layer, term=None):
        """Hidden states [B, T, D] of a layer, in the teacher's width where the term has a learned projection."""
        projected = self.out.get("projected", {})
        return projected.get(term, self.out["hidden_states"])[layer]

    def heads(self, layer):
        """(number of attention heads, width of all of them together) of a layer."""
        heads, size = self.out["qkv"][layer][0].shape[-2:]
        return heads, heads * size

    def qkv(self, layer, heads):
        """Queries, keys and values of a layer, float32 [B, heads, T, D / heads], 0 at padding whatever it held."""
        found = (x.float().flatten(-2) for x in self.out["qkv"][layer])
        found = (torch.where(self.valid[..., None], x, 0.0) for x in found)
        return [x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2) for x in found]

    @cached_property
    def words(self):
        """Gram matrices over the words of each layer."""
        return _gram(self.aligned, self.mask, "words")

    @cached_property
    def layers_of_words(self):
        """Gram matrices over the layers of each word."""
        return _gram(self.aligned, self.mask, "layers")


def _logits_term(student, teacher, batch, args):
    if "head" in student.out:  # masked language modelling
        return soft_head_logits(student.out["head"], teacher.out["head"], temperature=args.temperature)
    if student.logits.shape[-1] == 1:  # regression: a distribution over one class says nothing
        error = (student.logits.float() - teacher.logits.detach().float()).square()
        return masked_mean(error.sum(), torch.tensor(error.numel(), device=error.device))
    return soft_logits(student.logits, teacher.logits, temperature=args.temperature)


def _wr_pair_term(student, teacher, batch, args):
    return _pair_loss(student.words, teacher.words, args.distance, args.pair_criterion)


def _wr_triple_term(student, teacher, batch, args):
    return _triple_loss(student.words, teacher.words, args.window, args.triple_criterion)


def _ltr_pair_term(student, teacher, batch, args):
    return _pair_loss(student.layers_of_words, teacher.layers_of_words, args.distance, args.pair_criterion)


def _ltr_triple_term(student, teacher, batch, args):
    return _triple_loss(student.layers_of_words, teacher.layers_of_words, None, args.triple_criterion)


# --- terms of the methods CKD is compared with: (student, teacher, batch, args) -> scalar, as in TERMS ---------------


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
    with torch.autocast(x.device.type, enabled=False), _full_float32(x):
        return x @ y.mT / math.sqrt(x.shape[-1])


def _attention_kl(student, teacher, valid):
    """Sum of KL(softmax teacher || softmax student) of scores [B, H, T, T] over heads and real rows."""
    keys = ~valid[:, None, None]
    # Finite fill: a sentence without real tokens becomes uniform, where -inf would give NaN.
    lowest = torch.finfo(student.dtype).min
    log_s, log_t = (x.masked_fill(keys, lowest).log_softmax(-1) for x in (student, teacher.detach()))
    rows = (log_t.exp() * (log_t - log_s)).sum(-1)
    return torch.where(valid[:, None], rows, 0.0).sum()


def _pkd_term(student, teacher, batch, args):
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
    return masked_mean(total, real.sum() * len(pairs) * s.shape[-1])


def pkd_pairs(pairs, last):
    """The pairs that `pkd` compares: those without the student's last layer."""
    return [(s, t) for s, t in pairs if s != last]


def _hidden_mse_term(student, teacher, batch, args):
    """Mean squared error of hidden states, over real tokens, aligned transformer layers and components.

    Where widths differ, one learned projection for all layers brings the student's to the teacher's width. (The paper's
    W_h has no such condition.) Source: L_hidn, equation (8) of arXiv:1909.10351 (TinyBERT), the value of one layer.
    """
    pairs = _aligned(student, teacher)
    states = [(student.states(s, "hidden_mse"), teacher.states(t)) for s, t in pairs]
    total = sum(_squared_error(s, t, student.valid) for s, t in states)
    return masked_mean(total, student.valid.sum() * len(pairs) * states[0][1].shape[-1])


def _embedding_mse_term(student, teacher, batch, args):
    """Mean squared error of the embedding outputs, over real tokens and components, whatever layers are aligned.

    Where widths differ, a learned projection of its own brings the student's to the teacher's width.
    Source: L_embd, equation (9) of arXiv:1909.10351 (TinyBERT).
    """
    s, t = student.states(0, "embedding_mse"), teacher.states(0)
    return masked_mean(_squared_error(s, t, student.valid), student.valid.sum() * t.shape[-1])


def _attention_mse_term(student, teacher, batch, args):
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
    return masked_mean(total, both.sum() * len(pairs) * heads)


def _hidden_cosine_term(student, teacher, batch, args):
    """1 - cosine of the hidden states of the student's last aligned layer and its partner, mean over real tokens.

    Source: L_cos in section 2 of arXiv:1910.01108 (DistilBERT).
    """
    s, t = max(_aligned(student, teacher))
    valid = student.valid
    s, t = (torch.where(valid[..., None], x.float(), 0.0) for x in (student.states(s), teacher.states(t).detach()))
    distance = torch.where(valid, 1 - F.cosine_similarity(s, t, dim=-1), 0.0)
    return masked_mean(distance.sum(), valid.sum())


def relation_heads(student, teacher):
    """Heads to compare attention in; student, teacher: (heads, width). Their own number where they agree.

    Else, as in arXiv:2012.15828 (MiniLMv2), the vectors of all heads are joined and split anew into relation heads: as
    many as the smaller model has heads if that divides both widths, or the greatest common divisor of both numbers.
    """
    heads = min(student[0], teacher[0])
    return heads if student[1] % heads == teacher[1] % heads == 0 else math.gcd(student[0], teacher[0])


def _minilm_term(student, teacher, batch, args):
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
    return masked_mean(total, student.valid.sum() * heads)


def qkv_pairs(terms, layer_pairs):
    """The aligned pairs of layers whose queries, keys and values the terms need; [] for terms that need none."""
    pairs = transformer_pairs(layer_pairs)
    return pairs if "attention_mse" in terms else [max(pairs)] if "minilm" in terms and pairs else []


def teacher_layers(terms, layer_pairs):
    """The teacher's hidden states that the terms read, in order; [] for terms that need none."""
    layers = {t for _, t in layer_pairs} if any(name not in NEEDS_NO_HIDDEN for name in terms) else set()
    return sorted(layers | ({0} if "embedding_mse" in terms else set()))


def projected_layers(terms, layer_pairs):
    """{term: student layers that it compares through a learned projection where widths differ}."""
    layers = {"hidden_mse": [s for s, _ in transformer_pairs(layer_pairs)], "embedding_mse": [0]}
    return {name: layers[name] for name in terms if name in layers}


# name -> (student, teacher, batch, args) -> scalar. student, teacher: ModelView; batch: the collated inputs.
TERMS = {
    "logits": _logits_term,
    "wr_pair": _wr_pair_term,
    "wr_triple": _wr_triple_term,
    "ltr_pair": _ltr_pair_term,
    "ltr_triple": _ltr_triple_term,
    "pkd": _pkd_term,
    "hidden_mse": _hidden_mse_term,
    "attention_mse": _attention_mse_term,
    "embedding_mse": _embedding_mse_term,
    "hidden_cosine": _hidden_cosine_term,
    "minilm": _minilm_term,
}
NEEDS_NO_HIDDEN = ("logits", "attention_mse", "minilm")

# Weights of terms only: --hard_weight and --temperature are options of their own.
PRESETS = {
    "kd": {"logits": 1.0},
    "ckd": {"logits": 1.0, "wr_pair": 1.0, "wr_triple": 10.0, "ltr_pair": 1.0, "ltr_triple": 10.0},
    # The paper searches beta in 10, 100, 500, 1000, beside alpha * logits and (1 - alpha) * labels, alpha 0.2 to 0.7.
    "pkd": {"logits": 1.0, "pkd": 100.0},
    # The paper's lambda = 1 for every layer. It sums over layers, these terms are means: for its proportions multiply
    # hidden_mse and attention_mse by the number of layers. It trains on the three first, then on the logits alone.
    "tinybert": {"logits": 1.0, "hidden_mse": 1.0, "attention_mse": 1.0, "embedding_mse": 1.0},
    # The authors' published training command: alpha_ce 5, alpha_cos 1, with alpha_mlm 2 (--hard_weight 2) and
    # temperature 2; the paper itself gives none.
    "distilbert": {"logits": 5.0, "hidden_cosine": 1.0},
    # The paper adds both parts unweighted and uses no logits, which a task's head could not be trained without.
    "minilm": {"logits": 1.0, "minilm": 1.0},
}


def parse_terms(words):
    """["ckd", "wr_triple=5"] -> {"logits": 1.0, ..., "wr_triple": 5.0}; weights of 0 are left out.

    A preset fills only what was not given by name, wherever it stands. Raises ValueError for an unknown term or
    preset, two presets, a term given twice, a weight that is not a finite number >= 0, or no term above 0.
    """
    given, preset = {}, None
    for word in words:
        name, equals, weight = word.partition("=")
        if not equals:
            if name not in PRESETS:
                raise ValueError(
                    f"--terms {word!r} is neither a preset ({', '.join(PRESETS)}) nor name=weight with a name of: "
                    f"{', '.join(TERMS)}"
                )
            if preset:
                raise ValueError(f"--terms names two presets, {preset!r} and {name!r}: give one, then name=weight")
            preset = name
            continue
        if name not in TERMS:
            raise ValueError(f"--terms {word!r}: unknown term {name!r}, choose from: {', '.join(TERMS)}")
        if name in given:
            raise ValueError(f"--terms gives {name!r} twice: give it once")
        try:
            given[name] = float(weight)
        except ValueError:
            given[name] = float("nan")
        if not 0 <= given[name] < float("inf"):
            raise ValueError(f"--terms {word!r}: the weight must be a number >= 0, such as {name}=1")
    weights = {**PRESETS.get(preset, {}), **given}
    weights = {name: weights[name] for name in TERMS if weights.get(name)}
    if not weights:
        raise ValueError(f"--terms {' '.join(words)!r}: every weight is 0, nothing would be distilled; try --terms ckd")
    return weights


def add_arguments(parser):
    """Options of the distillation objective."""
    add = parser.add_argument_group("distillation").add_argument
    add("--terms", nargs="+", default=["ckd"], metavar="TERM",
        help=f"preset ({', '.join(PRESETS)}) and/or name=weight with names {', '.join(TERMS)}; weight 0: not computed")
    add("--hard_weight", type=float, default=0.0, help="weight of the loss on the true labels; 0 = soft targets only")
    add("--temperature", type=float, default=1.0, help="of the logits term, which is scaled by its square")
    add("--layer_map", default="uniform", help="uniform, last, first, ends, or pairs student:teacher: 0:0,1:2,6:12")
    add("--no_embeddings", action="store_true", help="leave the pair 0:0 (embedding outputs) out of the layer map")
    add("--window", default="21", help="words that an angle spans: odd, or 'all'")
    add("--distance", choices=DISTANCES, default="cosine", help="similarity of a pair")
    add("--pair_criterion", choices=CRITERIA, default="kl", help="criterion between pairs")
    add("--triple_criterion", choices=CRITERIA[1:], default="mse", help="criterion between angles")


def check_args(args):
    """Check and convert the options of `add_arguments` in place; args.terms becomes {name: weight}.

    Raises ValueError. Without args.teacher there is nothing to distil and the terms become {}.
    """
    if not re.fullmatch(r"\d{1,6}|all", args.window, re.ASCII):
        raise ValueError(f"--window {args.window!r} must be an odd number or 'all'")
    args.window = None if args.window == "all" else int(args.window)
    check_options(args.distance, args.pair_criterion, args.triple_criterion, args.window)
    if not 0 < args.temperature < float("inf"):
        raise ValueError(f"--temperature {args.temperature} must be positive")
    if not 0 <= args.hard_weight < float("inf"):
        raise ValueError(f"--hard_weight {args.hard_weight} must be 0 or more")
    args.terms = parse_terms(args.terms)
    if not args.teacher:
        args.terms = {}


def check_terms(terms, layer_pairs, student=None, teacher=None):
    """Raise ValueError for a term that the aligned layers or the shapes of the models cannot give.

    student, teacher: the models' configurations; only the terms of CKD can do without.
    """
    for name, needed in (("ltr_pair", 2), ("ltr_triple", 3)):
        if name in terms:
            check_layers(len(layer_pairs), needed)
    if not layer_pairs and any(name != "logits" for name in terms):
        raise ValueError("no layers are aligned: widen --layer_map or drop --no_embeddings")
    pairs = transformer_pairs(layer_pairs)
    for name in ("pkd", "hidden_mse", "attention_mse", "hidden_cosine", "minilm"):
        if name in terms and not pairs:
            raise ValueError(f"{name} compares transformer layers but only embeddings are aligned: widen --layer_map")
    if "pkd" in terms and not pkd_pairs(pairs, student.num_hidden_layers):
        raise ValueError("pkd leaves out the student's last layer and no other is aligned: take a deeper student, or "
                         "widen --layer_map")  # fmt: skip
    for name in ("pkd", "hidden_cosine"):
        if name in terms and student.hidden_size != teacher.hidden_size:
            raise ValueError(
                f"{name} compares states of equal width, the student has {student.hidden_size} and the teacher "
                f"{teacher.hidden_size}: use hidden_mse, which learns a projection, or --student_hidden "
                f"{teacher.hidden_size}"
            )
    if "attention_mse" in terms and student.num_attention_heads != teacher.num_attention_heads:
        raise ValueError(
            f"attention_mse compares head by head, the student has {student.num_attention_heads} heads and the teacher "
            f"{teacher.num_attention_heads}: use minilm, which regroups heads, or --student_heads "
            f"{teacher.num_attention_heads}"
        )


def no_rows(out):
    """A model's outputs without any example, still with a graph: every term of them is 0."""
    if isinstance(out, torch.Tensor):
        return out[:0]
    if isinstance(out, tuple):
        return tuple(no_rows(x) for x in out)
    return type(out)({k: no_rows(v) for k, v in out.items()})


def distillation_losses(student, teacher, batch, args):
    """Unweighted terms {name: scalar} of two ModelViews, those of args.terms only."""
    return {name: TERMS[name](student, teacher, batch, args) for name in args.terms}
