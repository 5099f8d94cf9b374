"""Each relation term, forward and backward, against the direct formulation: form the differences, normalise, multiply.

python bench/bench_losses.py                         B=8, T=128, L=7, D=768
python bench/bench_losses.py --batch 32 --tokens 384
python bench/bench_losses.py --exact                 instead: errors of values and gradients, each precision
"""

import functools
import math
import sys
from types import SimpleNamespace

import timing
import torch
from torch.nn import functional as F

import losses
from methods import mlm_head


def direct_pair(student, teacher, mask):
    """KL of cosines over all ordered pairs of the second-to-last axis, every sentence full."""
    n = student.shape[-2]
    off = ~torch.eye(n, dtype=torch.bool, device=student.device)
    s, t = (F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).mT for x in (student, teacher))
    s, t = (x.masked_fill(~off, -1e4).log_softmax(-1) for x in (s, t))
    return (t.exp() * (t - s) * off).sum() / (off.sum() * student[..., 0, 0].numel())


def direct_triple(student, teacher, mask, window=None):
    """MSE of the cosines of angles, from explicit differences [..., n, w, D]."""
    n = student.shape[-2]
    if window is None:
        neighbours = torch.arange(n, device=student.device).expand(n, n)
    else:
        reach = window // 2
        offsets = torch.arange(-reach, reach + 1, device=student.device)
        neighbours = torch.arange(n, device=student.device)[:, None] + offsets
    inside = (neighbours >= 0) & (neighbours < n)
    real = inside & (neighbours != torch.arange(n, device=student.device)[:, None])
    neighbours = neighbours.clamp(0, n - 1)
    angles = []
    for x in (student, teacher):
        difference = F.normalize(x[..., neighbours, :] - x[..., :, None, :], dim=-1)
        angles.append(difference @ difference.mT)
    distinct = ~torch.eye(neighbours.shape[1], dtype=torch.bool, device=student.device)
    both = real[:, :, None] & real[:, None, :] & distinct
    return ((angles[0] - angles[1]).square() * both).sum() / (both.sum() * student[..., 0, 0].numel())


ARGS = SimpleNamespace(distance="cosine", pair_criterion="kl", triple_criterion="mse", window=21)
NAMES = ("wr_pair", "wr_triple", "ltr_pair", "ltr_triple")


def all_terms(student, teacher, mask):
    """The four terms as the scripts compute them: one Gram matrix for pairs and triples."""
    layers = range(student.shape[1])
    views = [losses.ModelView({"hidden_states": x.unbind(1)}, layers, mask) for x in (student, teacher)]
    return sum(losses.TERMS[name](*views, {}, ARGS) for name in NAMES)


SIDES = {
    "wr_pair": (losses.wr_pair, direct_pair),
    "wr_triple W=21": (losses.wr_triple, lambda s, t, m: direct_triple(s, t, m, 21)),
    "wr_triple all": (lambda s, t, m: losses.wr_triple(s, t, m, window=None), direct_triple),
    "ltr_pair": (losses.ltr_pair, lambda s, t, m: direct_pair(s.transpose(1, 2), t.transpose(1, 2), m)),
    "ltr_triple": (losses.ltr_triple, lambda s, t, m: direct_triple(s.transpose(1, 2), t.transpose(1, 2), m)),
    "all four, W=21": (all_terms, lambda s, t, m: direct_triple(s, t, m, 21)),
}


def make(name, side, shape, device):
    """A function that runs one side of one case forward and backward."""
    generator = torch.Generator(device).manual_seed(1)
    student, teacher = (torch.randn(*shape, device=device, generator=generator) for _ in range(2))
    student.requires_grad_()
    mask = torch.ones(shape[0], shape[2], device=device)

    def run():
        student.grad = None
        SIDES[name][side](student, teacher, mask).backward()

    return run


LIMITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # largest relative error that passes


def cases(generator, shape):
    """{name: (function of (first, *rest) in a precision, the same in float64 by the definition, inputs)}."""
    b, _, t, d = shape
    states = [torch.randn(shape, generator=generator) for _ in range(2)]
    found = {}
    for name, (here, direct) in SIDES.items():
        if name not in ("wr_triple all", "all four, W=21"):
            mask = torch.ones(b, t)
            found[name] = (
                lambda s, t, f=here, m=mask: f(s, t, m.to(s.device)),
                lambda s, t, f=direct, m=mask: f(s, t, m),
                states,
            )
    rows, words = 3 * b, 4 * d
    logits = [3 * torch.randn(rows, 3, generator=generator) for _ in range(2)]
    found["logits, T=3"] = (
        functools.partial(losses.soft_logits, temperature=3.0),
        functools.partial(direct_kl, 3.0),
        logits,
    )
    head = [torch.randn(rows, d, generator=generator), d**-0.5 * torch.randn(words, d, generator=generator)]
    other = [torch.randn(rows, d, generator=generator), d**-0.5 * torch.randn(words, d, generator=generator)]
    labels = torch.randint(words, (rows,), generator=generator)
    found["head, labels"] = (
        lambda x, w: mlm_head.head_cross_entropy(mlm_head.Head(x, w, w[:, 0] * 0), labels.to(x.device)),
        lambda x, w: F.cross_entropy(x @ w.T, labels),
        head,
    )
    found["head, teacher"] = (
        lambda x, w, y, v: mlm_head.soft_head_logits(
            mlm_head.Head(x, w, w[:, 0] * 0), mlm_head.Head(y, v, v[:, 0] * 0)
        ),
        lambda x, w, y, v: direct_kl(1.0, x @ w.T, y @ v.T),
        head + other,
    )
    return found


def direct_kl(temperature, student, teacher):
    """KL of softened logits times the square of the temperature, mean over rows."""
    return temperature**2 * F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )


def exact(args, shape):
    """Yield the rows of the table of errors: on the device in each precision against float64 on the CPU.

    Both sides start from the inputs rounded to the precision; the loss is scaled by the power of two that brings the
    largest gradient to about 1, as fp16's scaler would.
    """
    for dtype, limit in LIMITS.items():
        for name, (here, direct, inputs) in cases(torch.Generator().manual_seed(1), shape).items():
            inputs = [x.detach().clone().to(args.device, dtype) for x in inputs]
            precise = [x.cpu().double() for x in inputs]
            precise[0].requires_grad_()
            truth = direct(*precise)
            truth.backward()
            scale = 2.0 ** math.floor(-math.log2(precise[0].grad.abs().max()))
            inputs[0].requires_grad_()
            with torch.autocast(args.device, dtype=dtype, enabled=dtype != torch.float32):
                value = here(*inputs)
            (value * scale).backward()
            grad = inputs[0].grad.cpu().double() / scale
            errors = [
                float(abs(value.item() / truth.item() - 1)),
                float((grad - precise[0].grad).norm() / precise[0].grad.norm()),
            ]
            verdict = "ok" if max(errors) <= limit else "TOO LARGE"  # so is nan
            yield [name, str(dtype).removeprefix("torch."), *(f"{e:.1e}" for e in errors), f"{limit:g}", verdict]


def direct_gb(name, b, layers, t, d):
    """Rough memory of the direct formulation, to leave out what cannot fit: two differences and their gradients."""
    w = {"wr_triple all": t, "wr_triple W=21": 21, "all four, W=21": 21}.get(name, layers if "triple" in name else 1)
    return 6 * b * layers * t * w * d * 4 / 1e9


def measure(args, shape):
    """Yield the rows of the table."""
    for name in SIDES:
        sides = {"here": make(name, 0, shape, args.device)}
        fits = direct_gb(name, *shape) <= args.limit_gb
        if fits:
            sides["direct"] = make(name, 1, shape, args.device)
        times = timing.alternate(sides, args.device, args.rounds)
        memory = [timing.peak_memory(make, (name, i, shape, args.device), args.device) for i in range(1 + fits)]
        direct = more = ["--", "--"]
        if fits:
            direct = [timing.spread(times["direct"]), f"{timing.ratio(times['direct'], times['here']):.1f}"]
            more = [f"{memory[1]:.3f}", f"{memory[1] / max(memory[0], 1e-9):.1f}"]
        yield [name, timing.spread(times["here"]), *direct, f"{memory[0]:.3f}", *more]


def kept(iterator, rows):
    """Yield what the iterator gives and put it into rows."""
    for row in iterator:
        rows.append(row)
        yield row


def main():
    """Print the table, row by row."""
    parser = timing.parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--limit_gb", type=float, default=12, help="leave out direct cases that would need more")
    parser.add_argument("--exact", action="store_true", help="compare values and gradients instead of time and memory")
    args = parser.parse_args()
    shape = (args.batch, args.layers, args.tokens, args.width)
    if args.exact:
        print(
            f"B={args.batch} L={args.layers} T={args.tokens} D={args.width}. {timing.machine(args.device)}. Relative "
            "errors against the direct formulation in float64 on the CPU.\n"
        )
        rows = []
        timing.table(["term", "precision", "value", "gradient", "limit", ""], kept(exact(args, shape), rows))
        sys.exit(any(row[-1] != "ok" for row in rows))
    print(
        f"B={args.batch} L={args.layers} T={args.tokens} D={args.width}, float32, forward and backward. "
        f"{timing.machine(args.device)}. Milliseconds: median [range] of {args.rounds}; 'all four' is compared with "
        "a direct wr_triple W=21.\n"
    )
    header = ["term", "here ms", "direct ms", "time ratio", "here GB", "direct GB", "memory ratio"]
    timing.table(header, measure(args, shape))


if __name__ == "__main__":
    main()
