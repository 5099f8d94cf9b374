"""What a GPU would wait for, counted on the CPU: operations launched, float32 products, reads by the host."""

import collections
import contextlib
import functools
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig

import distill_dynabert
import distill_finetune
import distill_pretrain
import losses
import relations
import training
from bench import timing
from encoders import model_outputs
from methods import dynabert, mlm_head
from tasks import batching, kinds

ARGS = SimpleNamespace(distance="cosine", pair_criterion="kl", triple_criterion="mse", window=21, temperature=2.0)
APART = torch.device("meta")  # stands in for a GPU: tensors have shapes and no values, and what reads one raises


@pytest.fixture(autouse=True)
def on_apart(monkeypatch):
    """What of torch does not know the device yet."""
    autocast, enabled, adamw = torch.autocast, torch.is_autocast_enabled, torch.optim.AdamW
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda kind, **options: contextlib.nullcontext() if kind == "meta" else autocast(kind, **options),
    )
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, fused: adamw(groups, lr=lr, foreach=True))


def states(width, grad, layers=7, tokens=40):
    return [torch.randn(3, tokens, width, requires_grad=grad, device=APART) for _ in range(layers)]


@pytest.mark.parametrize("width, limit", [(24, 150), (32, 165)], ids=["equal widths", "unlike widths"])
@pytest.mark.parametrize("tokens, window", [(40, 21), (12, 21), (40, None)])
def test_the_four_terms(width, limit, tokens, window):
    student, teacher = states(24, True, tokens=tokens), states(width, False, tokens=tokens)
    mask = torch.ones(3, tokens, dtype=torch.long, device=APART)
    args = SimpleNamespace(**(vars(ARGS) | {"window": window}))
    with timing.Counted() as counted:
        views = [losses.ModelView({"hidden_states": x}, range(7), mask) for x in (student, teacher)]
        sum(losses.TERMS[name](*views, {}, args) for name in relations.NAMES).backward()
    assert 100 < counted.total <= limit, counted.calls


@pytest.mark.parametrize("name", relations.NAMES)
def test_a_relation_alone(name):
    student, teacher = (torch.randn(3, 7, 40, 24, requires_grad=grad, device=APART) for grad in (True, False))
    mask = torch.ones(3, 40, device=APART)
    with timing.Counted() as counted:
        getattr(losses, name)(student, teacher, mask).backward()
    assert 30 < counted.total <= 60, counted.calls


class Apart(timing.Counted):
    """Notes what on a GPU waits for it or fails: operations on tensors here and there, copies, new tensors of numbers.

    Counts the operations, too, as timing.Counted.
    """

    def __init__(self):
        super().__init__()
        self.found, self._functions = [], _NewTensors(self)

    def __enter__(self):
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(function, types, args, kwargs)
        devices = {x.device.type for x in tree_leaves((args, kwargs)) if torch.is_tensor(x) and x.ndim}
        if len(devices | {x.device.type for x in tree_leaves(out) if torch.is_tensor(x)}) > 1:
            self.found.append(str(function))
        return out


class _NewTensors(TorchFunctionMode):
    """For Apart: numbers copied to the device, which its tensors do not let the dispatcher see."""

    def __init__(self, apart):
        super().__init__()
        self.apart = apart

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor) and str((kwargs or {}).get("device")) == "meta":
            self.apart.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def apart(monkeypatch):
    """apart(script, options) -> Apart of an optimiser step of the script, from forward pass to AdamW and its log."""

    def run(script, *options):
        args = script.build_parser().parse_args([*map(str, options), "--max_train_samples", "64", "--num_workers", "0"])
        script.check_args(args)
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = training.make_accelerator(args)
        monkeypatch.setattr(type(accelerator), "device", APART)
        if script is distill_pretrain:
            *inputs, student, teacher, tokenizer = script.load_everything(args)
            student, teacher = model_outputs.MaskedLM(student), model_outputs.MaskedLM(teacher)
            model_outputs.add_term_outputs(inputs[0], student, teacher, args.seed)
            student.to(APART).train()
            recipe = script.make_recipe(args, *inputs, student, teacher.to(APART).eval(), tokenizer, accelerator)
        else:
            loaded = distill_finetune.load_everything(args)
            student, more = loaded.student, {}
            if script is distill_dynabert:
                more = {"sizes": dynabert.sizes(student.config, args.width_mults, args.depth_mults)}
                dynabert.make_dynamic(student)
            student.to(APART).train()
            loaded.teacher.to(APART).eval()
            recipe = script.make_recipe(args, loaded, accelerator=accelerator, cache=None, **more)
        model, optimizer = accelerator.prepare(student, training.make_optimizer(student, args))
        steps = batching.steps_from(args, accelerator, recipe, 0, 2, 2)
        log = training.Log(args, accelerator, recipe, 0)
        for indices, batches in steps:  # the first one makes AdamW's moments and what is kept for all steps
            with Apart() as noted:
                log.add(1, indices, training.training_step(args, accelerator, recipe, model, optimizer, batches, 1e-4))
        return noted

    return run


ALL = ["--terms", *(f"{name}=1" for name in losses.TERMS if name != "dynabert_mse"), "--hard_weight", "1"]


@pytest.mark.parametrize(
    "terms",
    [["--terms", "ckd"], ALL, [*ALL, "--distance", "l2", "--pair_criterion", "huber"]],
    ids=["ckd", "all", "l2"],
)
def test_no_step_of_fine_tuning_copies_to_the_device_or_reads_from_it(apart, world, teacher, tmp_path, terms):
    assert (
        apart(
            distill_finetune,
            *f"--task cola --data_dir {world}/glue --teacher {teacher}".split(),
            *terms,
            *f"--student_layers 2 --max_seq_length 32 --output_dir {tmp_path}".split(),
        ).found
        == []
    )


def test_no_step_of_pre_training_copies_to_the_device_or_reads_from_it(apart, world, tmp_path):
    assert (
        apart(
            distill_pretrain,
            *f"--corpus {world}/text --teacher {world}/bert".split(),
            *ALL,
            *f"--student_layers 2 --seq_length 32 --output_dir {tmp_path}".split(),
        ).found
        == []
    )


def test_no_step_of_sub_networks_copies_to_the_device_or_reads_from_it(apart, world, teacher, tmp_path):
    assert (
        apart(
            distill_dynabert,
            *(
                f"--task cola --data_dir {world}/glue --teacher {teacher} --width_mults 0.5 1 "
                f"--max_seq_length 32 --output_dir {tmp_path}"
            ).split(),
        ).found
        == []
    )


def test_a_whole_step_of_kd_and_of_ckd(apart, world, teacher, tmp_path):
    """What ckd adds to a step: the relations, and a sum where the gradient of an aligned layer meets theirs."""
    kd, ckd = (
        apart(
            distill_finetune,
            *(
                f"--task cola --data_dir {world}/glue --teacher {teacher} --terms {terms} "
                f"--student_layers 2 --max_seq_length 32 --output_dir {tmp_path}"
            ).split(),
        ).total
        for terms in ("kd", "ckd")
    )
    assert kd < ckd <= kd + 150 + 30, (kd, ckd)


@pytest.mark.parametrize("name", kinds.KINDS)
def test_no_loss_of_a_kind_of_task_copies_to_the_device_or_reads_from_it(name):
    limits = (1.0, 5.0) if name == "similarity" else None
    kind = kinds.KINDS[name](SimpleNamespace(labels=("a", "b", "c"), limits=limits))
    mask = torch.ones(4, 6, dtype=torch.long, device=APART)
    shape = {"regression": (4, 1), "token": (4, 6, 3), "qa": (4, 6)}.get(name, (4, 3))
    out = {
        key: torch.randn(shape, device=APART, requires_grad=True)
        for key in (("start_logits", "end_logits") if name == "qa" else ("logits",))
    }
    labels = {"regression": (4,), "token": (4, 6), "multilabel": (4, 3)}.get(name, (4,))
    batch = {
        key: torch.ones(labels, dtype=torch.long, device=APART)
        for key in (("start_positions", "end_positions") if name == "qa" else ("labels",))
    }
    student, teacher = (losses.ModelView(out, (), mask, kind=kind) for _ in range(2))
    with Apart() as noted:
        hard = kind.hard_loss(student.logits, kind.labels(batch))
        (hard + kind.soft_loss(student, teacher, batch, ARGS)).backward()
    assert noted.found == []


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x.sum() * torch.tensor(2.0, device=APART),
        lambda x: x[torch.arange(2)],
        lambda x: x + torch.ones(3).to(APART),
    ],
)
def test_what_would_be_copied_is_noted(fault):
    with Apart() as noted:
        fault(torch.ones(3, device=APART))
    assert noted.found
    with Apart(), pytest.raises((RuntimeError, NotImplementedError)):
        bool(torch.ones(3, device=APART).isfinite().all())


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
    teacher = mlm_head.Head(torch.randn(20, 6), torch.randn(300, 6), torch.randn(300))
    with Products() as products, torch.autocast("cpu", dtype=torch.bfloat16):
        head = mlm_head.Head(*student)
        value = (
            mlm_head.soft_head_logits(head, teacher) if labels is None else mlm_head.head_cross_entropy(head, labels)
        )
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
                value = mlm_head.head_cross_entropy(mlm_head.Head(*leaves), labels)
        value.backward()
        grads.append([t.grad.double() for t in leaves])
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() < 0.01 * a.norm()


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("labels", [None, torch.arange(20)], ids=["soft", "hard"])
def test_a_vocabulary_that_is_filled_up_says_the_same(monkeypatch, labels, with_bias):
    torch.manual_seed(1)
    leaves = [torch.randn(20, 8), torch.randn(301, 8), torch.randn(301) if with_bias else None]
    teacher, found = mlm_head.Head(torch.randn(20, 6), torch.randn(301, 6), None), []
    for multiple in (1, 64):
        monkeypatch.setitem(mlm_head.MULTIPLE, "cpu", multiple)
        student = mlm_head.Head(*(x if x is None else x.clone().requires_grad_() for x in leaves))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = (
                mlm_head.soft_head_logits(student, teacher, temperature=3.0)
                if labels is None
                else mlm_head.head_cross_entropy(student, labels)
            )
            found.append(
                [
                    mlm_head.agreement(student, teacher),
                    value,
                    *torch.autograd.grad(value, [x for x in student if x is not None]),
                ]
            )
            assert len(student.narrow().weight) == (301 if multiple == 1 else 320)
    for plain, filled in zip(*found, strict=True):
        torch.testing.assert_close(filled, plain, rtol=1e-5, atol=1e-7)


def test_head_gradients_in_float16_keep_what_small_probabilities_give():
    """Of 20,000 words half have probabilities of at most 1e-7, of which float16 has one digit."""
    torch.manual_seed(1)
    x, weight, labels = torch.randn(2, 48), 0.5 * torch.randn(20_000, 48), torch.arange(2)
    grads = []
    for dtype in (torch.float64, torch.float32):
        leaf = weight.to(dtype).requires_grad_()
        if dtype == torch.float64:
            value = torch.nn.functional.cross_entropy(x.double() @ leaf.T, labels)
        else:
            with torch.autocast("cpu", dtype=torch.float16):
                value = mlm_head.head_cross_entropy(mlm_head.Head(x, leaf, None), labels)
        value.backward()
        grads.append(leaf.grad.double())
    away = (grads[1] - grads[0]).abs() > 0.1 * grads[0].abs()
    assert away.double().mean() < 0.05


@pytest.fixture(scope="module")
def wide_products():
    """A stand-in on the CPU for what CUDA has: the float32 numbers of a product of half-precision matrices."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("mm.dtype", lambda a, b, dtype: (a.float() @ b.float()).to(dtype), "CPU")
    library.impl("addmm.dtype_out", lambda c, a, b, dtype, out: out.copy_(c + a.float() @ b.float()), "CPU")
    yield
    library._destroy()


@pytest.fixture
def as_on_a_gpu(monkeypatch, wide_products):
    """The head takes the way that it takes on a GPU."""
    monkeypatch.setattr(mlm_head, "WIDE", {"cpu"})
    monkeypatch.setitem(mlm_head.MULTIPLE, "cpu", 64)


def by_the_definition(inputs, weight, bias, teacher, labels, temperature):
    """Loss of a head in float64: the mean over rows of T^2 KL(teacher || student), or of -log p at the labels."""
    log_p = ((inputs @ weight.T + bias) / temperature).log_softmax(-1)
    if labels is not None:
        return -log_p[range(len(labels)), labels].mean()
    log_t = ((teacher[0] @ teacher[1].T + teacher[2]) / temperature).log_softmax(-1)
    return temperature**2 * (log_t.exp() * (log_t - log_p)).sum() / len(inputs)


HEADS = {  # rows, words, size of the logits, logits of a chunk, temperature
    "common": (23, 301, 1.0, 301 * 10, 1.0),
    "warm": (23, 301, 1.0, 10**6, 3.0),
    "sure": (23, 301, 30.0, 10**6, 1.0),
    "one row": (1, 301, 1.0, 1, 2.0),
    "two words": (5, 2, 1.0, 10**6, 1.0),
}
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("kind", ["soft", "hard", "teacher is student"])
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "as on a GPU"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_the_head_equals_the_definition_in_float64(request, monkeypatch, dtype, gpu, kind, case):
    rows, words, size, chunk, temperature = HEADS[case]
    monkeypatch.setitem(mlm_head.CHUNK, "cpu", chunk)
    if gpu:
        request.getfixturevalue("as_on_a_gpu")
    torch.manual_seed(2)
    # Of the type of the products already: what is compared is how they are added up, and what is made of them.
    own, other = (
        [x.to(dtype) for x in (size * torch.randn(rows, width), torch.randn(words, width), torch.randn(words))]
        for width in (8, 6)
    )
    other = own if kind == "teacher is student" else other
    labels, temperature = (torch.randint(words, (rows,)), 1.0) if kind == "hard" else (None, temperature)
    leaves, exact = ([x.to(kind, copy=True).requires_grad_() for x in own] for kind in (torch.float32, torch.float64))
    with torch.autocast(
        "cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype, enabled=dtype != torch.float32
    ):
        head, teacher = mlm_head.Head(*leaves), mlm_head.Head(*(x.float() for x in other))
        value = (
            mlm_head.soft_head_logits(head, teacher, temperature=temperature)
            if labels is None
            else mlm_head.head_cross_entropy(head, labels)
        )
    expected = by_the_definition(*exact, [x.double() for x in other], labels, temperature)
    (1.5 * value).backward()
    (1.5 * expected).backward()
    # A logit is about 3 * size; where the product is written in half precision, that is what it is known to.
    logits = (ROUNDING[torch.float32] if gpu else ROUNDING[dtype]) * 3 * size
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=logits)
    for got, right in zip(leaves, exact, strict=True):
        assert got.grad.dtype == torch.float32
        error = (got.grad - right.grad).norm()
        assert error <= max(ROUNDING[dtype], logits) * right.grad.norm() + ROUNDING[torch.float32] * 10


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "as on a GPU"])
def test_head_gradients_in_float16_hold_the_sum_over_a_frequent_word(request, gpu):
    """One word is 6 % of 1,122 rows, and a feature is 20 in all of them: 64 times their sum is beyond float16."""
    if gpu:
        request.getfixturevalue("as_on_a_gpu")
    torch.manual_seed(1)
    x, labels = torch.randn(1122, 16), torch.randint(1, 1000, (1122,))
    x[:, 3], labels[:67] = 20.0, 0
    weight = (0.01 * torch.randn(1000, 16)).requires_grad_()
    exact = weight.detach().double().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        mlm_head.head_cross_entropy(mlm_head.Head(x, weight, None), labels).backward()
    torch.nn.functional.cross_entropy(x.double() @ exact.T, labels).backward()
    assert (weight.grad - exact.grad).norm() < 0.01 * exact.grad.norm()


@pytest.mark.parametrize(
    "rows, most, expected",
    [(1229, 1122, [615, 614]), (10, 10, [10]), (11, 10, [6, 5]), (0, 3, [0]), (3, 0, [1, 1, 1]), (7, 3, [3, 3, 1])],
)
def test_the_chunks_of_a_head_are_about_equally_long(monkeypatch, rows, most, expected):
    monkeypatch.setitem(mlm_head.CHUNK, "cpu", 50 * most)
    head = mlm_head.Head(torch.zeros(rows, 2), torch.zeros(50, 2), None)
    assert [len(head.inputs[chunk]) for chunk in head.chunks()] == expected


def test_the_decoder_of_a_frozen_model_is_made_narrow_once(as_on_a_gpu):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=37)
    model = model_outputs.MaskedLM(AutoModelForMaskedLM.from_config(config)).eval()
    inputs = {"input_ids": torch.arange(6)[None], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    autocast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    logits, made = [], []
    for cast in (False, True):
        if cast:
            model_outputs.cast_linears(model, SimpleNamespace(device=torch.device("cpu"), autocast=autocast))
        with torch.no_grad(), autocast():
            for _ in range(2):
                batch = inputs | {"positions": torch.tensor([1, 4])}
                head = distill_pretrain.outputs(model, model, batch)["head"].narrow()
                logits.append(head.logits(slice(None)))
                made.append(head.weight)
    assert made[0] is not made[1] and made[2] is made[3] and made[2].shape == (64, 16)
    assert all(torch.equal(x, logits[0]) for x in logits) and logits[0].shape == (2, 64)
    assert model.model.get_output_embeddings().weight.dtype == torch.float32


def test_a_compiled_head_says_the_same(monkeypatch):
    """By the backend that only traces, as below."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    relations._compiled.cache_clear()
    for rows in (5, 7, 9):
        torch.manual_seed(rows)
        leaves = [x.requires_grad_() for x in (torch.randn(rows, 8), torch.randn(31, 8), torch.randn(31))]
        teacher, labels = mlm_head.Head(torch.randn(rows, 6), torch.randn(31, 6), None), torch.randint(31, (rows,))
        for dtype in (torch.bfloat16, torch.float16):
            found = []
            for compiled in (False, True):
                with torch.autocast("cpu", dtype=dtype):
                    head = mlm_head.Head(*leaves)
                    value = mlm_head.soft_head_logits(
                        head, teacher, temperature=2.0, compiled=compiled
                    ) + mlm_head.head_cross_entropy(head, labels, compiled=compiled)
                found.append([value, *torch.autograd.grad(value, leaves)])
            torch.testing.assert_close(*found)
    assert 4 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 8  # of two functions
    assert not torch._dynamo.utils.counters["graph_break"]
    relations._compiled.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch):
    """graphs() -> how many were compiled, by the backend of this name, and how many breaks there were."""

    def start(backend):
        torch._dynamo.reset()
        relations._compiled.cache_clear()
        torch._dynamo.utils.counters.clear()
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
        counters = torch._dynamo.utils.counters
        return lambda: (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))

    yield start
    relations._compiled.cache_clear()
    torch._dynamo.reset()


def test_a_compiled_model_is_compiled_once_for_all_lengths(graphs):
    """A student with what terms of attention and projections add; by the backend that differentiates, too."""
    made = graphs("aot_eager")
    config = BertConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    student, found = AutoModelForSequenceClassification.from_config(config), []
    model_outputs.add_outputs(student, [1], {"embedding_mse": [0]}, 12)
    for compiled in (False, True):
        if compiled:
            model_outputs.compile_models(student, None)
        for tokens in (9, 26):
            generator = torch.Generator().manual_seed(tokens)
            ids, mask = torch.randint(40, (3, tokens), generator=generator), torch.ones(3, tokens, dtype=torch.long)
            mask[1, tokens // 2 :] = 0
            out = student(
                **model_outputs.model_inputs(student, {"input_ids": ids, "attention_mask": mask}),
                output_hidden_states=True,
            )
            total = (
                out["logits"].sum() + out["projected"]["embedding_mse"][0].sum() + sum(x.sum() for x in out["qkv"][1])
            )
            found.append([total, *torch.autograd.grad(total, list(student.bert.encoder.parameters()))])
    torch.testing.assert_close(found[2:], found[:2], rtol=1e-4, atol=1e-5)
    assert made() == (2, 0)  # the model's forward function, and the hook behind it


def test_compiled_relations_say_the_same_in_one_graph_for_like_lengths(graphs):
    """By the backend that only traces; Inductor takes minutes and was tried by hand."""
    made, names = graphs("eager"), relations.NAMES[:2]
    for tokens in (41, 50):
        torch.manual_seed(tokens)
        student = [torch.randn(3, tokens, 8, requires_grad=True) for _ in range(2)]
        teacher, mask = [torch.randn(3, tokens, 8) for _ in range(2)], torch.ones(3, tokens)
        mask[1, tokens // 2 :] = 0
        found = []
        for compiled in (False, True):
            values = relations.relation_losses(student, teacher, mask, names, relations.Options(compiled=compiled))
            found.append([*values.values(), *torch.autograd.grad(sum(values.values()), student)])
        torch.testing.assert_close(*found)
    assert made() == (1, 0)
