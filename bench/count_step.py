"""What a distillation step moves and multiplies on a GPU, counted operation by operation without one.

python bench/count_step.py                      multilingual BERT 12 -> 6, 64 x 128, bf16, pre-training, kd and ckd
python bench/count_step.py --compile            what --compile fuses counted as one operation

No weights are loaded: all tensors are of torch's device `meta`, which have shapes and no values and go the way that a
GPU's do. It is a count, not a measurement: each operation reads its inputs and writes its outputs once, and takes as
long as the slower of its bytes and its products on an H100 would at best.
"""

import argparse
import collections
import contextlib
import functools
from unittest import mock

import bench_step
import timing
import torch
from accelerate import Accelerator
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import relations
from encoders import model_outputs
from methods import mlm_head

BYTES_PER_S = 3.3e12  # of an H100's memory
FLOPS_PER_S = {torch.float32: 60e12, torch.bfloat16: 650e12}  # that it reaches in products of these types
PARTS = ("student forward", "student backward", "teacher forward", "head", "relations", "clipping, AdamW", "rest")
AT_ROWS = ("embedding", "index", "index_select", "gather")  # read no more of their first input than they give
WRITE_ONLY = ("fill_", "zero_", "copy_")  # do not read what they overwrite


class Count(timing.Counted):
    """Sums of bytes, floating-point operations, roofline seconds and operations of each part of a step."""

    def __init__(self):
        super().__init__()
        self.sums, self.part = collections.defaultdict(collections.Counter), "rest"
        self.fused, self.there = None, set()  # bytes of a function that is counted as one, storages that are in memory

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(function, types, args, kwargs)
        name = function.overloadpacket.__name__
        if function.is_view or name.startswith("empty") or name in ("new_empty", "_unsafe_view"):
            return out
        flops, first = 0, next((x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)), None)
        if function.overloadpacket in flop_registry:
            flops = flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=out)
        read = [args, {k: v for k, v in (kwargs or {}).items() if k != "out"}]
        if name in AT_ROWS:
            read = [args[1:], out]
        elif name in WRITE_ONLY:
            read = args[1:]
        elif name.startswith("new_"):
            read = []
        if self.fused is not None and not self.within_one(function, read, out):
            return out
        self.add(nbytes(read) + nbytes(out), flops, first.dtype if flops else None)
        return out

    def add(self, moved, flops=0, dtype=None):
        """Count one operation."""
        seconds = max(moved / BYTES_PER_S, flops / FLOPS_PER_S[dtype] if flops else 0)
        self.sums[self.part].update(bytes=moved, flops=flops, seconds=seconds, operations=1)

    @contextlib.contextmanager
    def of(self, part):
        """Within it, operations count for this part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def within(self, part, function):
        """The function, whose operations count for the part."""

        def run(*args, **kwargs):
            with self.of(part):
                return function(*args, **kwargs)

        return run

    def as_one(self, function):
        """The function counted as torch.compile would make it at best; one operation and one for each product.

        Products and paddings, whose windows are read, are written and read as ever. All else is fused with what reads
        it: inputs and what the products made are read twice, because a softmax or a mean has to come before what uses
        it; what leaves the function or enters a product is written.
        """

        def run(*args, **kwargs):
            self.fused, there = nbytes((args, kwargs)) * 2, self.there
            self.there = {storage(x) for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
            out = function(*args, **kwargs)
            moved, self.fused, self.there = self.fused + nbytes(out), None, there
            self.add(moved)
            return out

        return run

    def within_one(self, function, read, out):
        """Count an operation of a function that is counted as one; whether it is counted for itself, too."""
        if function.overloadpacket not in flop_registry and "pad" not in function.overloadpacket.__name__:
            return False
        self.fused += 2 * nbytes(out) + sum(nbytes(x) for x in tree_leaves(read) if storage(x) not in self.there)
        self.there |= {storage(x) for x in tree_leaves(out)}
        return True


def storage(x):
    """What tells the memory of a tensor from that of others."""
    return x.untyped_storage()._cdata if torch.is_tensor(x) else None


def nbytes(tree):
    """Bytes of the tensors, each counted once; of one that shows an element often (expanded, windows) what there is."""
    there = {(storage(x), x.storage_offset(), x.numel()): x for x in tree_leaves(tree) if torch.is_tensor(x)}
    return sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in there.values())


class Autocast(TorchFunctionMode):
    """What torch.autocast does on CUDA for the functions that these models call, on the device `meta`."""

    NARROW = (torch._C._nn.linear, torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__)

    def __init__(self):
        super().__init__()
        self.states = [False]  # of the autocasts that are entered: enabled or not

    @property
    def enabled(self):
        """Whether the innermost autocast is on."""
        return self.states[-1]

    @contextlib.contextmanager
    def autocast(self, device_type=None, dtype=None, enabled=True, **_):
        """In place of torch.autocast."""
        self.states.append(enabled)
        try:
            yield
        finally:
            self.states.pop()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, dtype = kwargs or {}, None
        if function is torch._C._nn.scaled_dot_product_attention:
            return attention(*args, dtype=torch.bfloat16 if self.enabled else None, **kwargs)
        if self.enabled and function in self.NARROW:
            dtype = torch.bfloat16
        elif self.enabled and function is torch.layer_norm:
            dtype = torch.float32
        if dtype:
            args = [x.to(dtype) if torch.is_tensor(x) else x for x in args]
        return function(*args, **kwargs)


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, dtype=None):
    """torch's fused attention for a mask, as CUDA takes it: a bool mask becomes a bias in the products' precision."""
    q, k, v = (x.to(dtype or x.dtype) for x in (q, k, v))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    if attn_mask is not None:
        attn_mask = attn_mask.to(q.dtype).expand(*q.shape[:-1], k.shape[-2])
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    return fused(q, k, v, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]


@contextlib.contextmanager
def on_apart(count):
    """Within it, torch and this code take the device `meta` for a GPU, and know the parts of a step."""
    cast = Autocast()

    def adamw(self, closure=None):
        """Fused AdamW: reads weight, gradient and two moments, writes weight and moments."""
        count.add(7 * 4 * sum(p.numel() for g in self.param_groups for p in g["params"] if p.grad is not None))

    def optimiser(name, owner):
        return mock.patch.object(owner, name, count.within("clipping, AdamW", getattr(owner, name)))

    def functions(owner, part):  # of an autograd.Function
        return [
            mock.patch.object(owner, name, staticmethod(count.within(part, getattr(owner, name))))
            for name in ("forward", "backward")
        ]

    patches = [
        cast,
        mock.patch.object(torch, "autocast", cast.autocast),
        mock.patch.object(torch, "is_autocast_enabled", lambda kind=None: cast.enabled),
        mock.patch.object(torch, "get_autocast_dtype", lambda kind: torch.bfloat16),
        mock.patch.object(Accelerator, "device", torch.device("meta")),
        mock.patch.object(torch.optim.AdamW, "step", count.within("clipping, AdamW", adamw)),
        optimiser("clip_grad_norm_", Accelerator),
        mock.patch.object(mlm_head, "WIDE", {"meta"}),
        mock.patch.dict(mlm_head.MULTIPLE, meta=mlm_head.MULTIPLE["cuda"]),
        mock.patch.object(relations, "_compiled", count.as_one),
        mock.patch.object(model_outputs, "compile_models", lambda *models: None),  # Inductor's kernels are unknown
        mock.patch.object(Accelerator, "backward", count.within("student backward", Accelerator.backward)),
        *functions(relations._Relations, "relations"),
        *functions(mlm_head._HeadLoss, "head"),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def counted(terms, options):
    """The Count of an optimiser step."""
    count = Count()
    with on_apart(count), torch.device("meta"):
        step = bench_step.make("pre-training", terms, options, options.compile, count.within)
        with count:
            step()
    return count


def table_of(count):
    """Rows of the table of parts, and of their sum."""
    sums = {part: count.sums[part] for part in PARTS if count.sums[part]}
    total = functools.reduce(lambda a, b: a + b, sums.values(), collections.Counter())
    for part, found in [*sums.items(), ("step", total)]:
        yield [
            part,
            f"{found['flops'] / 1e12:.3f}",
            f"{found['bytes'] / 1e9:.2f}",
            f"{1000 * found['seconds']:.2f}",
            found["operations"],
        ]


def total_of(count):
    """Sums over all parts: a Counter of bytes, flops, seconds, operations."""
    return sum(count.sums.values(), collections.Counter())


def main():
    """Print a table for kd and for ckd."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", default="128")
    parser.add_argument("--layers", type=int, default=12, help="of the teacher; the student has half")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--compile", action="store_true", help="count as with --compile")
    options = parser.parse_args()
    options.device, options.precision = "meta", "bf16"
    for terms in ("kd", "ckd"):
        print(f"\n{terms}\n")
        timing.table(["part", "TFLOP", "GB", "roofline ms", "operations"], table_of(counted(terms, options)))


if __name__ == "__main__":
    main()
