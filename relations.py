"""Relations of contextual knowledge distillation (CKD, arXiv:2109.08359): as they are defined, then made fast.

Axes: B batch, L aligned layers, T tokens, D width (student and teacher may differ), W window.
`mask` is [B, T], 1 = real token, 0 = padding; None = all tokens are real. The argument order is always (student,
teacher, mask).

A word relation (WR) relates the words of one layer, a layer transforming relation (LTR) the layers of one word:

    pair    a_ij  = cos(h_i, h_j)                              how similar two members of the set are
    triple  c_ijk = cos of the angle between h_i - h_j and h_k - h_j, the angle at j

Both are taken inside the teacher and inside the student, and compared number by number.
"""

import contextlib
import functools
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch.nn import functional as F

NAMES = ("wr_pair", "wr_triple", "ltr_pair", "ltr_triple")
LAYERS = {"wr_pair": 1, "wr_triple": 1, "ltr_pair": 2, "ltr_triple": 3}  # aligned layers that it needs
DISTANCES = ("cosine", "l2")
CRITERIA = ("kl", "mse", "l1", "huber")


class Options(NamedTuple):
    """What the relations are compared by; the same for words and for layers."""

    distance: str = "cosine"  # similarity of a pair, one of DISTANCES
    pair_criterion: str = "kl"  # between the similarities of both models, one of CRITERIA
    triple_criterion: str = "mse"  # between the cosines of their angles, one of CRITERIA but "kl"
    window: int | None = 21  # words that an angle spans, odd; None = all
    compiled: bool = False  # the elementwise part by torch.compile


# --- as they are defined -----------------------------------------------------------------------------------------


def similarities(h, distance="cosine"):
    """a_ij of a set of vectors h [n, D], as [n, n]: cosines, or distances divided by their mean over i != j."""
    if distance == "cosine":
        return F.cosine_similarity(h[:, None], h[None], dim=-1, eps=1e-12)
    length = torch.linalg.vector_norm(h[:, None] - h[None], dim=-1)
    return length * (len(h) * (len(h) - 1) / length.sum())


def angles(h):
    """c_ijk of a set of vectors h [n, D], as [n, n, n]: the cosine of the angle at j; 0 where an arm has no length."""
    arms = h[:, None] - h[None]  # arms[i, j] = h_i - h_j
    return F.cosine_similarity(arms[:, :, None], arms.mT.permute(2, 0, 1)[None], dim=-1, eps=1e-12)


def compare(student, teacher, criterion):
    """Return a criterion between equal numbers of relations: "mse", "l1" or "huber", one value for each."""
    difference = student - teacher
    if criterion == "mse":
        return difference.square()
    far = difference.abs()
    return far if criterion == "l1" else torch.where(far < 1, difference.square() / 2, far - 0.5)


def pair_values(student, teacher, distance="cosine", criterion="kl"):
    """Return the term of every ordered pair i != j of one set; student [n, Ds], teacher [n, Dt] -> [n (n - 1)]."""
    n = len(student)
    if n < 2:
        return student.new_zeros(0)
    others = ~torch.eye(n, dtype=torch.bool)
    a_s, a_t = (similarities(h, distance)[others].view(n, n - 1) for h in (student, teacher))
    if criterion != "kl":
        return compare(a_s, a_t, criterion).flatten()
    p_s, p_t = a_s.softmax(-1), a_t.softmax(-1)
    return (p_t * (p_t / p_s).log()).flatten()


def triple_values(student, teacher, places, window=None, criterion="mse"):
    """Return the term of every ordered triple (i, j, k) of distinct members of one set, i and k in the window around j.

    student [n, Ds], teacher [n, Dt]; places [n]: positions in the sentence; window: odd, None = all. Returns [triples].
    """
    n = len(places)
    apart = (places[:, None] - places[None]).abs()
    near = (apart > 0) & (apart <= ((window or math.inf) - 1) / 2)  # near[i, j]
    chosen = near[:, :, None] & near.T[None] & ~torch.eye(n, dtype=torch.bool)[:, None]
    return compare(angles(student)[chosen], angles(teacher)[chosen], criterion)


def as_defined(name, student, teacher, mask, *, distance="cosine", criterion=None, window=21):
    """One relation, set by set and with every difference of vectors formed: what the fast functions below must equal.

    name: one of NAMES. Arguments as in the function of that name. Returns the mean over all relations of the batch.
    """
    values = [student.new_zeros(0)]
    for b, row in enumerate(mask):
        real = row.nonzero().flatten()
        if name.startswith("wr"):  # the words of each layer
            sets = [(student[b, layer, real], teacher[b, layer, real], real) for layer in range(student.shape[1])]
        else:  # the layers of each word
            sets = [(student[b, :, i], teacher[b, :, i], torch.arange(student.shape[1])) for i in real]
        for s, t, places in sets:
            if name.endswith("pair"):
                values.append(pair_values(s, t, distance, criterion or "kl"))
            else:
                values.append(triple_values(s, t, places, window if name == "wr_triple" else None, criterion or "mse"))
    values = torch.cat(values)
    return values.sum() / max(1, len(values))


# --- what a training script calls ----------------------------------------------------------------------------------


def wr_pair(student, teacher, mask, *, distance="cosine", criterion="kl"):
    """Word relation of pairs: similarity of every two words of a sentence, in each aligned layer.

    student [B, L, T, Ds], teacher [B, L, T, Dt]: hidden states of any float type; gradients flow to the student only.
    mask [B, T]: 1 = real token. distance: "cosine", or "l2": |h_i - h_j| divided by its mean over the pairs of the
    sentence and layer. criterion: "kl" (cosine only), p^t_ij log(p^t_ij / p^s_ij) with p_i. the softmax of a_ij over
    j != i, or "mse", "l1", "huber" between a^s_ij and a^t_ij.
    Returns the mean over ordered pairs i != j of real tokens in the whole batch, float32 scalar.
    Raises ValueError for unknown or impossible options. Source: arXiv:2109.08359, section 3.1.
    """
    check_options(distance, criterion)
    return _one("wr_pair", student, teacher, mask, distance=distance, pair_criterion=criterion)


def wr_triple(student, teacher, mask, *, window=21, criterion="mse"):
    """Word relation of triples: the angle at word j between words i and k near it, in each aligned layer.

    student [B, L, T, Ds], teacher [B, L, T, Dt]: hidden states of any float type; gradients flow to the student only.
    mask [B, T]: 1 = real token. window: odd, i and k stand within (window - 1) / 2 positions of j; None = all triples.
    criterion: "mse", "l1" or "huber" between the cosines of the angles; a cosine with an arm of length 0 is 0.
    Returns the mean over ordered triples of distinct real tokens in the whole batch, float32 scalar.
    Raises ValueError for unknown or impossible options. Source: arXiv:2109.08359, section 3.1.
    """
    check_options(triple_criterion=criterion, window=window)
    return _one("wr_triple", student, teacher, mask, triple_criterion=criterion, window=window)


def ltr_pair(student, teacher, mask, *, distance="cosine", criterion="kl"):
    """Layer transforming relation of pairs: similarity of every two aligned layers of one word.

    Arguments as in `wr_pair`, with layers in place of words; at least 2 aligned layers.
    Returns the mean over ordered pairs of distinct layers of each real token in the whole batch, float32 scalar.
    Raises ValueError for unknown or impossible options. Source: arXiv:2109.08359, section 3.2.
    """
    check_options(distance, criterion)
    return _one("ltr_pair", student, teacher, mask, distance=distance, pair_criterion=criterion)


def ltr_triple(student, teacher, mask, *, criterion="mse"):
    """Layer transforming relation of triples: the angle at layer m between layers l and o of one word.

    Arguments as in `wr_triple`, with layers in place of words and no window; at least 3 aligned layers.
    Returns the mean over ordered triples of distinct layers of each real token in the whole batch, float32 scalar.
    Raises ValueError for unknown or impossible options. Source: arXiv:2109.08359, section 3.2.
    """
    check_options(triple_criterion=criterion)
    return _one("ltr_triple", student, teacher, mask, triple_criterion=criterion)


def relation_losses(student, teacher, mask, names=NAMES, options=None, *, across_processes=False):
    """Several relations of the same hidden states at once: {name: mean}, each as its function above has it.

    student, teacher: L hidden states each, [B, T, Ds] and [B, T, Dt]. names: of NAMES. options: Options. Together they
    cost little more than the dearest of them: masks, counts, products of vectors and the passes over vectors are
    shared, and so is the one product with which the gradient reaches the vectors.
    across_processes: as in `masked_mean`; all processes must call this with the same names.
    """
    options = options or Options()
    means = _Relations.apply(mask, names, options, across_processes, len(student), *student, *teacher)
    return dict(zip(names, means.unbind(0), strict=True))


def masked_mean(total, count, across_processes=False):
    """total / count as a scalar that is 0, with a graph, where nothing was counted.

    total: scalar, the sum over valid elements. count: their number, a scalar tensor (never read by the host), or a
    number that the host knows, of which no tensor is made: its copy to a GPU would wait for all that was launched.
    across_processes: the mean is over the batch of all processes of torch.distributed, which must take the same means
    in the same order. It is scaled so that its average over processes, which DistributedDataParallel takes of
    gradients, is the mean over the global batch.
    """
    if not torch.is_tensor(count):
        if not across_processes:
            return total / max(count, 1)
        count = total.new_full((), count)
    return total / divisor(count.to(total.dtype), across_processes)


def divisor(count, across_processes=False):
    """Return what `masked_mean` divides by, for one count or a tensor of several."""
    if not across_processes:
        return count.clamp(min=1)
    count = count.detach().clone()
    torch.distributed.all_reduce(count)
    return count.clamp_(min=1) / torch.distributed.get_world_size()


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


def check_layers(name, n_aligned):
    """Raise ValueError if fewer layers are aligned than the relation needs (LTR: 2 for pairs, 3 for triples)."""
    if n_aligned < LAYERS[name]:
        raise ValueError(
            f"{name} relates {LAYERS[name]} layers but only {n_aligned} are aligned: align more layers or leave {name} "
            f"out ({name}=0)"
        )


def _one(name, student, teacher, mask, **options):
    batch_and_tokens = student.shape[::2][:2]
    masked = batch_and_tokens if mask is None else mask.shape
    if student.ndim != 4 or student.shape[:3] != teacher.shape[:3] or batch_and_tokens != masked:
        raise ValueError(
            f"student {list(student.shape)}, teacher {list(teacher.shape)} and mask {list(masked)} "
            "do not share batch, layers and tokens: pass [B, L, T, D], [B, L, T, D] and [B, T]"
        )
    check_layers(name, student.shape[1])
    return relation_losses(student.unbind(1), teacher.unbind(1), mask, (name,), Options(**options))[name]


# --- made fast ----------------------------------------------------------------------------------------------------
#
# No difference of two vectors is ever formed. Everything is elementwise in the inner products of a set of vectors:
#
#     d_ij  = |h_i - h_j|^2 = G_ii + G_jj - 2 G_ij
#     cos_ij = (q_i + q_j - d_ij) / (2 |h_i| |h_j|)  with q_i = |h_i|^2
#     c_ijk  = (d_ij + d_kj - d_ik) / (2 |h_i - h_j| |h_k - h_j|)
#
# which costs T^2 D + T W^2 operations where the differences cost T W^2 D, and memory that does not grow with D. G is
# taken of vectors less their mean: that changes no distance, and keeps its digits in float32.
#
# Gradients are written by hand. Of every relation they are a symmetric matrix F over the set with dH = 2 F H, so one
# product carries all of them to the vectors, however many relations there are. For a loss of the distances, F is
# diag(row sums of S) - S with S = g + g^T of the loss's gradient g with respect to d.
#
# On a GPU the number of operations is what a small batch costs, so all relations of both models are made together, by
# as few operations as can be, and nothing is read by the host. On a CPU the same functions work on some sentences at a
# time, which stay in the cache and are handed whole to threads of one core each.

# Elements of one block of intermediate results: on a CPU it has to stay in the cache, on a GPU to fill the device.
BLOCK = {"cpu": 2**18, "cuda": 2**26}
# What the operations of one more part of a batch cost on a CPU, as so many elements of vectors to work on.
PART = 10**5
# Below this share of |a|^2 + |b|^2 float32 cannot tell a squared distance from rounding noise: the two are equal.
EQUAL = 1e-6
# Finite, so that a row without partners becomes uniform in both models and counts 0, where -inf would give NaN; its
# exponential, 2e-22, counts for nothing and is far from the numbers that a CPU is slow with.
NO_PARTNER = -50.0
# What a criterion's sum has to be divided by, and its slope multiplied with: pairs, then triples, whose angles are
# compared by 2 cos because halving would be one more operation. (Sums are of d^2 for mse, slopes d.)
PAIR_UNITS = {"kl": (1, 1), "mse": (1, 2), "l1": (1, 1), "huber": (1, 1)}
TRIPLE_UNITS = {"mse": (4, 2), "l1": (2, 1), "huber": (4, 1)}


class _Relations(torch.autograd.Function):
    """Means of the named relations [k] over L hidden states of the student, then L of the teacher.

    Only each relation's matrix F, which grows with T and L but not with D, is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, mask, names, options, across_processes, layers, *states):
        """mask [B, T] or None; states: the student's `layers` hidden states [B, T, Ds], then the teacher's."""
        student, teacher = states[:layers], states[layers:]
        padding = None if mask is None else mask == 0
        device = student[0].device
        real = torch.ones(student[0].shape[:2], device=device) if mask is None else padding.logical_not().float()
        tokens = real.sum(-1)
        counts = _counts(real, tokens, names, options, layers)
        need = any(ctx.needs_input_grad[5 : 5 + layers])
        tokens.clamp_(min=1)
        ctx.blocks = _sentences(states, real, (options.window or math.inf) if "wr_triple" in names else 0)

        def block(part):
            own = None if padding is None else padding[part]
            if options.compiled:  # which would compile anew for other indices
                sides = ([h[part] for h in side] for side in (student, teacher))
                return _compiled(_block)(*sides, None, own, tokens[part[0]], names, options, need)
            return _block(student, teacher, part, own, tokens[part[0]], names, options, need)

        with full_float32(device.type):
            found = _map(block, ctx.blocks, device, threads=not options.compiled)
        ctx.names, ctx.layers, ctx.options = names, layers, options
        counts = divisor(counts, across_processes)
        ctx.save_for_backward(padding, counts, *student, *(factor for _, factors in found for factor in factors))
        if not found:
            return torch.zeros_like(counts)
        totals = found[0][0] if len(found) == 1 else torch.stack([total for total, _ in found]).sum(0)
        return totals / counts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """grad [k] -> gradients of the student's states that need one; the teacher's have none."""
        padding, counts, *saved = ctx.saved_tensors
        student, factors = saved[: ctx.layers], saved[ctx.layers :]
        if not ctx.blocks:
            return None, None, None, None, None, *(torch.zeros_like(h) for h in student), *[None] * ctx.layers
        weights, k = (grad / counts).unbind(0), len(ctx.names)

        def block(i):
            part = ctx.blocks[i]
            vectors = _vectors(student, part, None if padding is None else padding[part])
            own = dict(zip(ctx.names, zip(factors[k * i : k * (i + 1)], weights, strict=True), strict=True))
            return _vector_gradient(vectors, own, ctx.options)

        device = student[0].device
        with full_float32(device.type):
            found = _map(block, range(len(ctx.blocks)), device)
        found = _put_back(found, ctx.blocks, student[0].shape)
        needed = ctx.needs_input_grad[5 : 5 + ctx.layers]
        grads = [part if need else None for part, need in zip(found.unbind(0), needed, strict=True)]
        return None, None, None, None, None, *grads, *[None] * ctx.layers


@contextlib.contextmanager
def full_float32(device_type):
    """Full float32 matrix products within it, whatever autocast and the user's process say (TF32, bfloat16).

    By torch's fp32_precision, which may be read and restored whether a program uses it or the older switches.
    """
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@functools.lru_cache(maxsize=64)
def _on_device(values, device):
    """Numbers as a tensor, copied to the device once."""
    return torch.tensor(values, dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=4)
def _pool(threads):
    return ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1))


@functools.cache
def _compiled(function):
    """Return the function by torch.compile, once for all lengths; at most torch's recompile_limit of variants."""
    return torch.compile(function, dynamic=True)


def _map(function, items, device, threads=True):
    """Return [function(item), ...]; on a CPU by torch's number of threads, unless not wanted, an item a thread.

    An operation that is itself split among threads waits for the last of them, thousands of times where another process
    holds one of the cores. A block given whole to one thread waits once, and the other threads take what is left.
    """
    if device.type != "cpu" or len(items) < 2 or torch.get_num_threads() == 1 or not threads:
        return [function(item) for item in items]

    def alone(item):
        with torch.no_grad():  # as everything that the main thread set, this holds in one thread only
            return function(item)

    return list(_pool(torch.get_num_threads()).map(alone, items))


def _block_size(device):
    return BLOCK.get(device.type, BLOCK["cuda"])


def _chunks(size, each, device):
    """Slices of a first axis of `size`, whose members hold `each` elements, so that a slice makes a block."""
    if size * each <= _block_size(device):  # asked first: this leaves a compiled function good for other sizes
        return [slice(0, size)]
    step = max(1, _block_size(device) // max(1, each))
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def _sentences(states, real, window):
    """Parts of the batch whose vectors make a few blocks, as indices (sentences, tokens); [] for an empty batch.

    On a CPU, where the host may look at real [B, T] (1.0 = real token), sentences of like length go together and the
    padding behind the longest of a part is cut off: in an unsorted batch it is most of what there is. window: of the
    angles between words, infinite for all, 0 where there are none.
    """
    batch, tokens = states[0].shape[:2]
    if not batch * tokens:
        return []
    width, block = sum(h.shape[-1] for h in states), 4 * _block_size(states[0].device)
    if real.device.type == "cpu" and 2 * batch * tokens * width > block:
        ends = (real * torch.arange(1, tokens + 1)).amax(-1).int()  # behind the last real token
        ends, order = ends.clamp(min=1).sort(descending=True, stable=True)
        lengths = ends.tolist()
        if sum(lengths) < 0.9 * batch * tokens:
            work = [n * (width + len(states) * min(n, window) ** 2) for n in lengths]
            cuts = _cuts([n * width for n in lengths], work, block // 2)
            return [(order[i:j], slice(lengths[i])) for i, j in itertools.pairwise(cuts)]
    step = -(-batch // math.ceil(batch * tokens * width / block))
    return [(slice(i, i + step), slice(None)) for i in range(0, batch, step)]


def _cuts(sizes, work, most):
    """Where to cut sentences, from long to short, into parts that together cost least: [0, ..., their number].

    All of a part are padded to its first: of sentence i, sizes[i] elements then and the work on them. A part holds at
    most so many elements, or one sentence.
    """
    best, start = [0], [0]  # cost of the first sentences, and where their last part begins
    for end in range(1, len(sizes) + 1):
        found = []
        for i in range(end - 1, -1, -1):
            if found and (end - i) * sizes[i] > most:
                break
            found.append((best[i] + PART + (end - i) * work[i], i))
        cost, i = min(found)
        best.append(cost)
        start.append(i)
    cuts = [len(sizes)]
    while cuts[-1]:
        cuts.append(start[cuts[-1]])
    return cuts[::-1]


def _put_back(parts, blocks, shape):
    """Gradients [L, b, n, D] of the parts of `_sentences` -> [L, B, T, D], 0 where padding was cut off."""
    if isinstance(blocks[0][0], slice):
        return _joined(parts, 1)
    full = parts[0].new_zeros(len(parts[0]), *shape)
    for part, (sentences, near) in zip(parts, blocks, strict=True):
        full[:, :, near].index_copy_(1, sentences, part)
    return full


def _counts(real, tokens, names, options, layers):
    """Number of valid relations of each name times the unit of its sum, [k].

    real [B, T]: 1.0 = real token. tokens [B]: number of real tokens.
    """
    found, units = [], []
    for name in names:
        pair, unit = name.endswith("pair"), _units(name, options)[0]
        if name.startswith("ltr"):
            found.append(tokens.sum())
            units.append(unit * layers * (layers - 1) * (1 if pair else layers - 2))
        else:
            found.append(torch.dot(tokens, tokens - 1) if pair else _triples_of_words(real, tokens, options.window))
            units.append(unit * layers)
    return _stacked(found) * _on_device(tuple(units), real.device)


def _units(name, options):
    pair = name.endswith("pair")
    return PAIR_UNITS[options.pair_criterion] if pair else TRIPLE_UNITS[options.triple_criterion]


def _stacked(scalars):
    return torch.stack(scalars) if len(scalars) > 1 else scalars[0][None]


def _triples_of_words(real, tokens, window):
    """Number of ordered triples (i, j, k) of distinct real tokens with i and k in the window of j, over the batch."""
    if not real.numel():
        return tokens.sum()
    if window is None:
        near = (tokens[:, None] - 1) * real
    else:  # a sum over windows, as an average that is divided by 1
        around = F.avg_pool2d(real[:, None, None], (1, window), 1, (0, window // 2), divisor_override=1)
        near = (around[:, 0, 0] - 1) * real
    return torch.dot(near.flatten(), (near - 1).flatten())


# --- inner products ----------------------------------------------------------------------------------------------


def _vectors(states, part, padding):
    """Hidden states [B, T, D] of several layers -> float32 [layers, b, n, D] of a part, 0 at padding whatever it holds.

    part: one of `_sentences`, None for all there is. padding: bool [b, n], True where the part has padding, or None.
    """
    if part is None or isinstance(part[0], slice) or len({h.dtype for h in states}) > 1:
        vectors = torch.stack(states if part is None else [h[part] for h in states])
    else:  # gathered where they shall lie
        sentences, near = part
        vectors = states[0].new_empty(len(states), len(sentences), *states[0][:1, near].shape[1:])
        for h, into in zip(states, vectors.unbind(0), strict=True):
            torch.index_select(h[:, near], 0, sentences, out=into)
    vectors = vectors.float()
    if padding is None:
        return vectors
    if padding.device.type != "cpu" or torch.compiler.is_compiling():
        return vectors.masked_fill_(padding[..., None], 0.0)
    vectors.flatten(1, 2).index_fill_(1, padding.flatten().nonzero().squeeze(1), 0.0)  # reads where there is some only
    return vectors


class _Sets(NamedTuple):
    """Both models' geometry of sets of n vectors; index 0 of the second axis is the student, 1 the teacher.

    Sets of words are [L, 2, b] with n = T, sets of layers [1, 2, b, T] with n = L. distance [..., n, n]: squared
    distances; where a member is padding they mean nothing. inverse [..., n, n]: 1 / distance, and 0 where two members
    are the same, are equal or one is padding; None unless asked for. norm [..., n]: |h|^2. scale [..., n]: 1 / (sqrt 2
    |h|), 0 where h is 0. Both None unless asked for.
    padding: bool [b, T], True where a member of a set of words is padding; None without padding, and for sets of
    layers. pairs [b, 1, 1], or a number: ordered pairs of a set, at least 1; None unless asked for.
    """

    distance: torch.Tensor
    inverse: torch.Tensor | None
    norm: torch.Tensor | None
    scale: torch.Tensor | None
    padding: torch.Tensor | None
    pairs: torch.Tensor | int | None


def _block(student, teacher, part, padding, tokens, names, options, need):
    """Return (sums of the named relations [k], [F of each]) of a part of the batch; hidden states [B, T, D].

    part: as in `_vectors`. Of the part, padding [b, n], bool, or None, and the number of its real tokens, at least 1,
    tokens [b]. F is None unless it is needed.
    """
    if student[0].shape[-1] == teacher[0].shape[-1] and not options.compiled:  # one product for both models
        groups = [[h for pair in zip(student, teacher, strict=True) for h in pair]]
    else:
        groups = [student, teacher]
    vectors = [_vectors(group, part, padding).unflatten(0, (len(student), -1)) for group in groups]
    norm = scale = None
    pairs = any(name.endswith("pair") for name in names)
    if pairs and options.distance == "cosine":
        norm = _joined([torch.linalg.vector_norm(x, dim=-1) for x in vectors], 1).square_()
        scale = (norm + norm).rsqrt_().nan_to_num_(nan=math.nan, posinf=0.0)
    found = {}
    for kind, sets_of in (("wr", _sets_of_words), ("ltr", _sets_of_layers)):
        own = [name for name in names if name.startswith(kind)]
        if own:
            distances = pairs and options.distance == "l2"
            inverse = distances or f"{kind}_triple" in own
            sets = sets_of(vectors, norm, scale, padding, tokens, inverse, distances)
            found |= {name: _sum_and_factor(name, sets, options, need) for name in own}
    totals, factors = zip(*(found[name] for name in names), strict=True)
    return _stacked(totals), factors


def _joined(parts, axis):
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _sum_and_factor(name, sets, options, need):
    """Return (sum of one relation over the sets, its F or None)."""
    if name.endswith("pair"):
        return _pairs(sets, options, need)
    return _triples(sets, options.window if name == "wr_triple" else None, options, need)


def _sets_of_words(vectors, norm, scale, padding, tokens, inverse, distances):
    """_Sets of the words of each layer, from vectors [L, models, b, T, D] of both models or one of each."""
    products = []
    for x in vectors:
        centred = x - x.sum(-2, keepdim=True) / tokens[:, None, None]
        products.append(_product(centred, centred.mT))
    pairs = (tokens * (tokens - 1)).clamp_(min=1)[:, None, None] if distances else None
    return _geometry(_joined(products, 1), inverse, norm, scale, padding, pairs)


def _product(a, b):
    """a @ b of contiguous [..., n, m] and [..., m, k] or its transpose; without the view that matmul makes anew."""
    return torch.bmm(a.flatten(0, -3), b.flatten(0, -3)).unflatten(0, a.shape[:-2])


def _sets_of_layers(vectors, norm, scale, padding, tokens, inverse, distances):
    """_Sets of the layers of each word, from the same."""
    products = []
    for x in vectors:
        # In place: nothing reads the vectors after this, and on a CPU a new buffer's pages cost more than the sum.
        # [models x b x T, L, D] is a view, which bmm can read.
        centred = x.sub_(x.mean(0)).flatten(1, 3).transpose(0, 1)
        products.append(torch.bmm(centred, centred.mT))
    if norm is not None:
        # Contiguous, as otherwise all that is made of them would lie in another order than the distances.
        norm, scale = (x.permute(1, 2, 3, 0)[None].contiguous() for x in (norm, scale))
    layers = len(vectors[0])
    inner = _joined(products, 0).unflatten(0, (2, *vectors[0].shape[2:4]))[None]
    return _geometry(inner, inverse, norm, scale, None, layers * (layers - 1))


def _geometry(inner, inverse, norm, scale, padding, pairs):
    """_Sets from inner products [..., n, n] of centred vectors; inverse: whether inverse distances are wanted."""
    square = inner.diagonal(dim1=-2, dim2=-1)
    sums = square[..., :, None] + square[..., None, :]
    distance = torch.sub(sums, inner, alpha=2)
    if not inverse:
        return _Sets(distance, None, norm, scale, padding, pairs)
    if padding is None:  # there is none, or it is of layers: those of a word that is padding are equal
        floor = sums.mul_(EQUAL)
    else:
        square = square.masked_fill(padding, math.inf).mul_(EQUAL)
        floor = torch.add(square[..., :, None], square[..., None, :], out=sums)
    inverse = distance.rsqrt().masked_fill_(distance <= floor, 0.0)
    return _Sets(distance, inverse, norm, scale, padding, pairs)


def _vector_gradient(vectors, own, options):
    """Gradient [L, b, T, D] of the vectors [L, b, T, D]; own: relation -> (its F, its weight)."""
    matrices, units = {}, {}
    for name, (factor, weight) in own.items():
        kind, unit = name.split("_")[0], 2 * _units(name, options)[1]  # 2: dH = 2 F H
        if kind in matrices:
            matrices[kind].addcmul_(factor, weight, value=unit / units[kind])
        else:
            matrices[kind], units[kind] = factor * weight, unit
    rows, beta = vectors.flatten(0, 1), 0  # what the gradient holds before the first product is not read
    if "wr" in matrices:
        grad, beta = torch.baddbmm(rows, matrices["wr"].flatten(0, 1), rows, beta=0, alpha=units["wr"]), 1
    else:
        grad = torch.empty_like(rows)
    grad = grad.view_as(vectors)
    if "ltr" in matrices:  # the same in views as [b x T, L, D]
        rows, into = (x.flatten(1, 2).transpose(0, 1) for x in (vectors, grad))
        into.baddbmm_(matrices["ltr"].flatten(0, 2), rows, beta=beta, alpha=units["ltr"])
    return grad


def _of_distances(g):
    """F of a loss whose gradient with respect to the squared distances is -g, [..., n, n]."""
    both = g + g.mT
    both.diagonal(dim1=-2, dim2=-1).sub_(both.sum(-1))
    return both


def _criterion(difference, criterion, delta=1.0):
    """Return (sum, slope) of a criterion over differences student - teacher, which are overwritten; units as named
    above.
    """
    if criterion == "mse":
        flat = difference.flatten()
        return torch.dot(flat, flat), difference
    if criterion == "l1":
        return difference.abs().sum(), difference.sign_()
    total = F.huber_loss(difference, difference.new_zeros(()).expand_as(difference), reduction="sum", delta=delta)
    return total, difference.clamp_(-delta, delta)


# --- pairs and triples -------------------------------------------------------------------------------------------


def _in_chunks(sets, each, function):
    """function(sets) -> (sum, F or None), called on chunks of the first axis; sums added, F joined.

    each: elements that a member of that axis makes of the largest intermediate result.
    """
    chunks = _chunks(len(sets.distance), each, sets.distance.device)
    if len(chunks) == 1:
        return function(sets)
    totals, factors = [], []
    for c in chunks:
        parts = (None if x is None else x[c] for x in sets[:4])
        total, factor = function(_Sets(*parts, *sets[4:]))
        totals.append(total)
        factors.append(factor)
    return torch.stack(totals).sum(), None if factors[0] is None else torch.cat(factors)


def _pairs(sets, options, need):
    """Return (sum over ordered pairs, F or None)."""
    function = _cosine_pairs if options.distance == "cosine" else _distance_pairs
    function = functools.partial(function, criterion=options.pair_criterion, need=need)
    return _in_chunks(sets, sets.distance[0].numel(), function)


def _cosine_pairs(sets, criterion, need):
    norm, scale = sets.norm, sets.scale
    cosine = norm[..., :, None] + norm[..., None, :]
    cosine.sub_(sets.distance).mul_(scale[..., :, None]).mul_(scale[..., None, :])
    if criterion == "kl":
        if sets.padding is not None:
            cosine.masked_fill_(sets.padding[:, None], NO_PARTNER)
        cosine.diagonal(dim1=-2, dim2=-1).fill_(NO_PARTNER)
        # Cosines cannot overflow exp, and torch's softmax of rows shorter than 16 is several times slower than this.
        p = cosine.exp()
        p.div_(p.sum(-1, keepdim=True))
        slope = p[:, 0] - p[:, 1]
        # KL = E_t[log p_t - log p_s] = E_t[r - log(1 + r)] with r = p_s / p_t - 1, whose mean is 0: every summand is of
        # second order in r, where those of the first form cancel each other's digits once the models agree. p_t r is
        # the slope.
        logs = (slope / p[:, 1]).log1p_()
        total = torch.addcmul(slope, p[:, 1], logs, value=-1, out=logs).sum()
    else:
        difference = cosine[:, 0] - cosine[:, 1]
        difference.diagonal(dim1=-2, dim2=-1).zero_()
        total, slope = _criterion(difference, criterion)
    if not need:
        return total, None
    # d cos_ij = dG_ij / (|h_i| |h_j|) - cos_ij (dG_ii / |h_i|^2 + dG_jj / |h_j|^2) / 2
    factor, scale = slope + slope.mT, scale[:, 0]
    own = cosine[:, 0].mul_(factor).sum(-1)
    factor.mul_(scale[..., :, None]).mul_(scale[..., None, :])
    factor.diagonal(dim1=-2, dim2=-1).addcmul_(own, scale.square(), value=-1)
    return total, factor


def _distance_pairs(sets, criterion, need):
    distance = sets.distance * sets.inverse
    over = sets.pairs / distance.sum((-2, -1), keepdim=True)
    over = over.nan_to_num_(nan=0.0, posinf=0.0)  # all vectors equal; the distances themselves keep a NaN
    relative = distance.mul_(over)
    total, slope = _criterion(relative[:, 0] - relative[:, 1], criterion)
    if not need:
        return total, None
    # The mean distance, by which all are divided, has its share in each of them.
    mean = (slope * relative[:, 0]).sum((-2, -1), keepdim=True) / sets.pairs
    return total, _of_distances(torch.sub(mean, slope).mul_(sets.inverse[:, 0]).mul_(over[:, 0] / 2))


def _triples(sets, window, options, need):
    """Return (sum over ordered triples, F or None); window: odd number of positions around j, or None for all."""
    n = sets.distance.shape[-1]
    dense = window is None or 2 * n <= 3 * window  # up to there all triples are made faster than windows are looked up
    if dense and window is not None and n > window // 2 + 1:
        reach = window // 2
        sets = sets._replace(inverse=sets.inverse.triu(-reach).tril_(reach))
    each = sets.distance[0].numel() // 2 * (n if dense else window**2 // n + 1)
    function = _every_triple if dense else functools.partial(_windowed_triples, window=window)
    loss = functools.partial(_angle_loss, criterion=options.triple_criterion, need=need)
    return _in_chunks(sets, each, functools.partial(function, loss=loss, need=need))


def _angle_loss(ends, arms, inverse, criterion, need):
    """Return (sum, slope of ends, slope of arms) over the angles at centres j between neighbours i and k, w for each j.

    ends [A, 2, ..., J, w, w]: squared distances of i and k. arms [A, 2, ..., J, w]: of i and j. inverse, as arms: 1 /
    distance, 0 where i and j make no pair, which makes the cosine 0 in both models. Triples with i = k are left out.
    The slopes, of the student, are those with respect to minus the squared distances.
    """
    cosine = arms[..., :, None] + arms[..., None, :]
    cosine.sub_(ends).mul_(inverse[..., :, None]).mul_(inverse[..., None, :])  # 2 cos
    difference = cosine[:, 0] - cosine[:, 1]
    difference.diagonal(dim1=-2, dim2=-1).zero_()
    total, slope = _criterion(difference, criterion, delta=2.0)
    if not need:
        return total, None, None
    inverse = inverse[:, 0]
    lengths = cosine[:, 0].mul_(slope).sum(-1)  # an arm's length divides the cosine, once as arm i and once as arm k
    slope = slope.mul_(inverse[..., :, None]).mul_(inverse[..., None, :])
    return total, slope, lengths.mul_(inverse).mul_(inverse).sub_(slope.sum(-1), alpha=2)


def _every_triple(sets, loss, need):
    """Return all triples of n members, a block of centres after the other."""
    distance, inverse = sets.distance[..., None, :, :], sets.inverse
    totals, g = [], None
    for j in _chunks(inverse.shape[-1], sets.distance[:, 0].numel(), inverse.device):
        total, ends, arms = loss(distance, sets.distance[..., j, :], inverse[..., j, :])
        totals.append(total)
        if need:
            g = ends.sum(-3) if g is None else g.add_(ends.sum(-3))
            g[..., j, :].add_(arms)
    return totals[0] if len(totals) == 1 else torch.stack(totals).sum(), _of_distances(g) if need else None


def _windowed_triples(sets, window, loss, need):
    """Triples within the window around j: windows are views of matrices with a border, not copies."""
    reach, n = window // 2, sets.distance.shape[-1]
    distance, inverse = (F.pad(x, (reach,) * 4) for x in (sets.distance, sets.inverse))
    size = n + 2 * reach
    outer = distance.stride()[:-2]

    def arms(x):  # [..., j, a]: (j, j + a - reach)
        return x.as_strided((*x.shape[:-2], n, window), (*outer, size + 1, 1), reach * size)

    ends = distance.as_strided((*distance.shape[:-2], n, window, window), (*outer, size + 1, size, 1))
    total, of_ends, of_arms = loss(ends, arms(distance), arms(inverse))
    if not need:
        return total, None
    # Slopes of ends [j, a, b], for i = j + a - reach and k = j + b - reach, with zeros around them.
    width = 2 * window - 1
    slopes = F.pad(of_ends, (0, width - window, 0, 0, reach, reach))
    # All slopes of one pair (i, k) lie on a line of that block: a step of j is one back of a and of b. So their sum is
    # over an axis of a view: [i, k - i + window - 1, window - 1 - a].
    outer = slopes.stride()[:-3]
    lines = slopes.as_strided(
        (*slopes.shape[:-3], n, width, window),
        (*outer, window * width, 1, (window - 1) * width - 1),
        (window - 1) * width,
    )
    band = lines.sum(-1)
    band[..., reach : reach + window].add_(of_arms)
    # Rows that are one longer than those they are read as: row i moves by i, so that it stands at [i, k + window - 1].
    g = F.pad(band, (0, n)).flatten(-2)[..., : n * (n + width - 1)].unflatten(-1, (n, n + width - 1))
    return total, _of_distances(g[..., window - 1 : window - 1 + n])
