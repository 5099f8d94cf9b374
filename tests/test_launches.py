"""What a GPU would wait for, counted on the CPU: operations launched, float32 products, reads by the host."""
import collections
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import heads
import losses
import relations

ARGS = SimpleNamespace(distance="cosine", pair_criterion="kl", triple_criterion="mse", window=21, temperature=2.0)
READS = ("aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.equal", "aten.is_nonzero")


class Counted(TorchDispatchMode):
    """Counts operations that are not views, by name."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.calls[function.overloadpacket._qualified_op_name.replace("::", ".")] += 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self):
        return sum(self.calls.values())

    @property
    def reads(self):
        return {name: n for name, n in self.calls.items() if name.startswith(READS)}


@pytest.fixture(autouse=True)
def blocks_of_cuda(monkeypatch):
    monkeypatch.setitem(relations.BLOCK, "cpu", relations.BLOCK["cuda"])
    monkeypatch.setitem(heads.CHUNK, "cpu", heads.CHUNK["cuda"])


def states(width, grad, layers=7, tokens=40):
    return [torch.randn(3, tokens, width, requires_grad=grad) for _ in range(layers)]


@pytest.mark.parametrize("width, limit", [(24, 150), (32, 165)], ids=["equal widths", "unlike widths"])
@pytest.mark.parametrize("tokens, window", [(40, 21), (12, 21), (40, None)])
def test_the_four_terms(width, limit, tokens, window):
    student, teacher = states(24, True, tokens=tokens), states(width, False, tokens=tokens)
    mask = torch.ones(3, tokens, dtype=torch.long)
    args = SimpleNamespace(**(vars(ARGS) | {"window": window}))
    with Counted() as counted:
        views = [losses.ModelView({"hidden_states": x}, range(7), mask) for x in (student, teacher)]
        sum(losses.TERMS[name](*views, {}, args) for name in relations.NAMES).backward()
    assert 100 < counted.total <= limit and not counted.reads, counted.calls


@pytest.mark.parametrize("name", relations.NAMES)
def test_a_relation_alone(name):
    student, teacher = torch.randn(3, 7, 40, 24, requires_grad=True), torch.randn(3, 7, 40, 24)
    mask = torch.ones(3, 40)
    with Counted() as counted:
        getattr(losses, name)(student, teacher, mask).backward()
    assert 30 < counted.total <= 60 and not counted.reads, counted.calls


class Products(FlopCounterMode):
    """Counts matrix products by the type of their first matrix, besides what FlopCounterMode counts."""

    def __init__(self):
        super().__init__(display=False)
        self.by_type = collections.Counter()

    def _count_flops(self, func, out, args, kwargs):
        before = self.get_total_flops()
        result = super()._count_flops(func, out, args, kwargs)
        matrix = next((x for x in args if torch.is_tensor(x) and x.ndim > 1), None)
        self.by_type[None if matrix is None else matrix.dtype] += self.get_total_flops() - before
        return result


@pytest.mark.parametrize("labels", [None, torch.arange(20)], ids=["soft", "hard"])
def test_the_language_model_head_takes_no_float32_product_under_bf16(labels):
    student = [x.requires_grad_() for x in (torch.randn(20, 8), torch.randn(300, 8), torch.randn(300))]
    teacher = heads.Head(torch.randn(20, 6), torch.randn(300, 6), torch.randn(300))
    with Products() as products, torch.autocast("cpu", dtype=torch.bfloat16):
        head = heads.Head(*student)
        value = heads.soft_head_logits(head, teacher) if labels is None else heads.head_cross_entropy(head, labels)
        value.backward()
    assert products.by_type[torch.float32] == 0
    assert products.by_type[torch.bfloat16] == 2 * 20 * 300 * (8 * 3 + (6 if labels is None else 0))


def test_head_gradients_in_bf16_are_those_of_a_linear_layer_to_its_rounding():
    torch.manual_seed(1)
    x, weight, bias = torch.randn(64, 32), 0.3 * torch.randn(500, 32), torch.randn(500)
    labels = torch.randint(500, (64,))
    grads = []
    for precise in (True, False):
        leaves = [t.double().requires_grad_() if precise else t.clone().requires_grad_() for t in (x, weight, bias)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not precise):
            if precise:
                value = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*leaves), labels)
            else:
                value = heads.head_cross_entropy(heads.Head(*leaves), labels)
        value.backward()
        grads.append([t.grad.double() for t in leaves])
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() < 0.01 * a.norm()
