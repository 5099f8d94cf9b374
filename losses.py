"""Losses of contextual knowledge distillation (CKD, arXiv:2109.08359): pure functions on tensors, and TERMS.

Axes: B batch, L aligned layers, T tokens, D width (student and teacher may differ), W window, C classes.
`mask` is [B, T], 1 = real token, 0 = padding. The argument order is always (student, teacher, mask).

Every relation is elementwise in a Gram matrix G = H H^T, so no difference of two vectors is ever formed:
    cos_ij = G_ij / sqrt(G_ii G_jj)     |h_i - h_j|^2 = G_ii + G_jj - 2 G_ij
    <h_i - h_j, h_k - h_j> = G_ik - G_ij - G_jk + G_jj
That costs T^2 D + T W^2 operations where the differences cost T W^2 D, and memory that does not grow with D.
"""
import contextlib
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


class _SelfProduct(torch.autograd.Function):
    """x x^T for x [..., n, D]; its backward is one product, (g + g^T) x, where autograd would take two."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with _full_float32(x):
            return x @ x.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with _full_float32(x):
            return (grad + grad.mT) @ x


def _gram(vectors, valid):
    """vectors [..., n, D] of any float type, valid [..., n] bool -> Gram in float32."""
    with torch.autocast(vectors.device.type, enabled=False):
        # where, not a product: padding may hold anything, also NaN.
        x = torch.where(valid[..., None], vectors.float(), 0.0)
        n = valid.sum(-1, keepdim=True).clamp(min=1)
        mean = x.sum(-2) / n
        x = torch.where(valid[..., None], x - mean[..., None, :], 0.0)
        shift = (x @ mean[..., None]).squeeze(-1) + mean.square().sum(-1, keepdim=True) / 2
        return Gram(_SelfProduct.apply(x), shift, valid)


def word_gram(hidden, mask):
    """Gram over the words of each layer: hidden [B, L, T, D], mask [B, T] -> leading axes [B, L], n = T."""
    return _gram(hidden, mask.bool()[:, None].expand(hidden.shape[:3]))


def layer_gram(hidden, mask):
    """Gram over the layers of each word: hidden [B, L, T, D], mask [B, T] -> leading axes [B, T], n = L."""
    hidden = hidden.transpose(1, 2)
    return _gram(hidden, mask.bool()[:, :, None].expand(hidden.shape[:3]))


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


def _pair_loss(student, teacher, distance, criterion):
    """Mean over valid ordered pairs; student and teacher are Grams over the same sets."""
    pairs = _pair_valid(student.valid)
    if distance == "cosine":
        a_s, a_t = _cosines(student), _cosines(teacher)
    else:
        a_s, a_t = _distances(student, pairs), _distances(teacher, pairs)
    if criterion == "kl":
        return masked_mean(_softmax_kl(a_s, a_t, pairs).sum(), pairs.sum())
    values = _compare(a_s, a_t, criterion)
    return masked_mean((values * pairs).sum(), pairs.sum())


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
    return _pair_loss(word_gram(student, mask), word_gram(teacher.detach(), mask), distance, criterion)


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
    return _triple_loss(word_gram(student, mask), word_gram(teacher.detach(), mask), window, criterion)


def ltr_pair(student, teacher, mask, *, distance="cosine", criterion="kl"):
    """Layer transforming relation of pairs: similarity of every two aligned layers of one word.

    Arguments as in `wr_pair`, with layers in place of words; at least 2 aligned layers.
    Returns the mean over ordered pairs of distinct layers of each real token in the whole batch, float32 scalar.
    Raises ValueError for unknown or impossible options. Source: arXiv:2109.08359, section 3.2.
    """
    check_options(distance, criterion)
    _check_shapes(student, teacher, mask, 2)
    return _pair_loss(layer_gram(student, mask), layer_gram(teacher.detach(), mask), distance, criterion)


def ltr_triple(student, teacher, mask, *, criterion="mse"):
    """Layer transforming relation of triples: the angle at layer m between layers l and o of one word.

    Arguments as in `wr_triple`, with layers in place of words and no window; at least 3 aligned layers.
    Returns the mean over ordered triples of distinct layers of each real token in the whole batch, float32 scalar.
    Raises ValueError for unknown or impossible options. Source: arXiv:2109.08359, section 3.2.
    """
    check_options(triple_criterion=criterion)
    _check_shapes(student, teacher, mask, 3)
    return _triple_loss(layer_gram(student, mask), layer_gram(teacher.detach(), mask), None, criterion)


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


# --- terms -------------------------------------------------------------------------------------------------------


class ModelView:
    """What the terms see of one model's outputs: its logits, aligned hidden states, and Gram matrices made once.

    out: a transformers ModelOutput. layers: the indices into out.hidden_states that are aligned with the other
    model's, in order. mask [B, T]: 1 = real token.
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

    @cached_property
    def hidden(self):
        """Aligned hidden states [B, L, T, D]."""
        return torch.stack([self.out.hidden_states[i] for i in self.layers], 1)

    @cached_property
    def words(self):
        """Gram matrices over the words of each layer."""
        return word_gram(self.hidden, self.mask)

    @cached_property
    def layers_of_words(self):
        """Gram matrices over the layers of each word."""
        return layer_gram(self.hidden, self.mask)


def _logits_term(student, teacher, batch, args):
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


# name -> (student, teacher, batch, args) -> scalar. student, teacher: ModelView; batch: the collated inputs.
TERMS = {
    "logits": _logits_term,
    "wr_pair": _wr_pair_term,
    "wr_triple": _wr_triple_term,
    "ltr_pair": _ltr_pair_term,
    "ltr_triple": _ltr_triple_term,
}

PRESETS = {
    "kd": {"logits": 1.0},
    "ckd": {"logits": 1.0, "wr_pair": 1.0, "wr_triple": 10.0, "ltr_pair": 1.0, "ltr_triple": 10.0},
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


def check_terms(terms, layer_pairs):
    """Raise ValueError for a term that the aligned layers cannot give."""
    for name, needed in (("ltr_pair", 2), ("ltr_triple", 3)):
        if name in terms:
            check_layers(len(layer_pairs), needed)
    if not layer_pairs and any(name != "logits" for name in terms):
        raise ValueError("no layers are aligned: widen --layer_map or drop --no_embeddings")


def no_rows(out):
    """A model's outputs without any example, still with a graph: every term of them is 0."""
    return type(out)({k: tuple(x[:0] for x in v) if isinstance(v, tuple) else v[:0] for k, v in out.items()})


def distillation_losses(student, teacher, batch, args):
    """Unweighted terms {name: scalar} of two ModelViews, those of args.terms only."""
    return {name: TERMS[name](student, teacher, batch, args) for name in args.terms}
