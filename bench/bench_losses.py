"""Each relation term, forward and backward, against the direct formulation: form the differences, normalise, multiply.

    python bench/bench_losses.py                         B=8, T=128, L=7, D=768
    python bench/bench_losses.py --batch 32 --tokens 384
"""
from types import SimpleNamespace

import timing
import torch
from torch.nn import functional as F

import losses


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
    views = [
        losses.ModelView({"hidden_states": x.unbind(1)}, layers, mask) for x in (student, teacher)
    ]
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


def main():
    """Print the table, row by row."""
    parser = timing.parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--limit_gb", type=float, default=12, help="leave out direct cases that would need more")
    args = parser.parse_args()
    shape = (args.batch, args.layers, args.tokens, args.width)
    print(f"B={args.batch} L={args.layers} T={args.tokens} D={args.width}, float32, forward and backward. "
          f"{timing.machine(args.device)}. Milliseconds: median [range] of {args.rounds}; 'all four' is compared with "
          "a direct wr_triple W=21.\n")  # fmt: skip
    header = ["term", "here ms", "direct ms", "time ratio", "here GB", "direct GB", "memory ratio"]
    timing.table(header, measure(args, shape))


if __name__ == "__main__":
    main()
