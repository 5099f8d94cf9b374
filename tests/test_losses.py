"""The relation losses against a slow float64 reference that forms every difference, and by property. Terms of the
methods CKD is compared with, against slow references from the papers, and through the command line.
"""

import argparse
import copy
import itertools
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, RobertaConfig

import losses
import relations
from encoders import families, model_outputs
from engine import cost
from losses import ltr_pair, ltr_triple, soft_logits, wr_pair, wr_triple
from methods import baselines, term_weights
from options import add_distillation
from tasks import kinds

RELATIONS = {"wr_pair": wr_pair, "wr_triple": wr_triple, "ltr_pair": ltr_pair, "ltr_triple": ltr_triple}


def reference(name, student, teacher, mask, **options):
    """The relation as it is defined, in float64."""
    return relations.as_defined(name, student.double(), teacher.double(), mask, **options)


def hidden(seed, *shape, offset=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset


@pytest.fixture
def batch():
    """Student, teacher and mask: a full sentence, a padded one, one with a hole, one word alone."""
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[1, 6:] = 0
    mask[2, 3] = 0
    mask[3, 1:] = 0
    return hidden(1, 4, 4, 9, 16), hidden(2, 4, 4, 9, 24), mask


PAIR_OPTIONS = [{}] + [{"distance": d, "criterion": c} for d in ("cosine", "l2") for c in ("mse", "l1", "huber")]
CASES = [(name, kw) for name in ("wr_pair", "ltr_pair") for kw in PAIR_OPTIONS]
CASES += [("wr_triple", {"window": w, "criterion": c}) for w in (3, 5, 7, 17, 21, None) for c in ("mse", "l1", "huber")]
CASES += [("ltr_triple", {"criterion": c}) for c in ("mse", "l1", "huber")]


@pytest.mark.parametrize("offset", [0.0, 5.0])
@pytest.mark.parametrize("name, options", CASES, ids=str)
def test_value_and_gradient_equal_the_slow_reference(batch, name, options, offset):
    student, teacher, mask = batch
    student, teacher = student + offset, teacher + offset
    fast, slow = student.clone().requires_grad_(), student.double().requires_grad_()
    got, expected = RELATIONS[name](fast, teacher, mask, **options), reference(name, slow, teacher, mask, **options)
    assert got.dtype == torch.float32 and got.shape == ()
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=0)
    got.backward(), expected.backward()
    assert (fast.grad - slow.grad).norm() <= 1e-4 * slow.grad.norm()


@pytest.mark.parametrize("name", RELATIONS)
def test_real_text_shapes_stay_within_a_thousandth_of_float64(name):
    """Anisotropic states, as trained models have them: a large common vector and a few dominant dimensions."""
    scale = torch.ones(64)
    scale[:3] = 20
    student, teacher = (hidden(seed, 2, 3, 14, 64) * scale + 10 * scale for seed in (3, 4))
    mask = torch.ones(2, 14)
    torch.testing.assert_close(
        RELATIONS[name](student, teacher, mask).double(), reference(name, student, teacher, mask), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("name", RELATIONS)
class TestProperties:
    def test_padding_changes_nothing_whatever_it_holds(self, batch, name):
        student, teacher, mask = batch
        expected = RELATIONS[name](student, teacher, mask)
        for junk in (1e4, float("nan"), float("inf")):
            more = [F.pad(x, (0, 0, 0, 5), value=junk) for x in (student, teacher)]
            for x in more:
                x.mT[..., :9].masked_fill_(~mask.bool()[:, None, None], junk)
            more[0].requires_grad_()
            got = RELATIONS[name](*more, F.pad(mask, (0, 5)))
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
            (grad,) = torch.autograd.grad(got, more[0])
            assert grad.isfinite().all() and grad[:, :, 9:].abs().max() == 0

    def test_order_of_the_batch_does_not_matter(self, batch, name):
        order = torch.tensor([2, 0, 3, 1])
        shuffled = [x[order] for x in batch]
        torch.testing.assert_close(RELATIONS[name](*batch), RELATIONS[name](*shuffled), rtol=1e-5, atol=0)

    def test_mean_is_over_relations_not_over_sentences(self, batch, name):
        student, teacher, mask = batch
        doubled = RELATIONS[name](*(torch.cat([x, x]) for x in batch))
        torch.testing.assert_close(doubled, RELATIONS[name](student, teacher, mask), rtol=1e-5, atol=0)

    def test_rotation_changes_nothing(self, batch, name):
        student, teacher, mask = batch
        rotation = torch.linalg.qr(hidden(5, 16, 16))[0]
        got = RELATIONS[name](3 * student @ rotation, teacher, mask)
        torch.testing.assert_close(got, RELATIONS[name](student, teacher, mask), rtol=1e-4, atol=1e-7)

    def test_student_equal_to_teacher_gives_zero(self, batch, name):
        student, _, mask = batch
        same = student.clone().requires_grad_()
        value = RELATIONS[name](same, student, mask)
        value.backward()
        assert abs(value.item()) < 1e-6 and same.grad.abs().max() < 1e-5

    def test_gradients_reach_the_student_only(self, batch, name):
        student, teacher, mask = (x.clone() for x in batch)
        student.requires_grad_(), teacher.requires_grad_()
        RELATIONS[name](student, teacher, mask).backward()
        assert student.grad.abs().sum() > 0 and teacher.grad is None

    def test_no_valid_relation_gives_zero_with_a_graph(self, batch, name):
        student, teacher, mask = batch
        for s, t, m in ((student, teacher, mask * 0), (student[:0], teacher[:0], mask[:0])):
            s = s.clone().requires_grad_()
            value = RELATIONS[name](s, t, m)
            value.backward()
            assert value.item() == 0 and s.grad is not None and s.grad.isfinite().all()

    def test_equal_and_zero_vectors_give_finite_values_and_no_gradient(self, batch, name):
        student, teacher, mask = batch
        constant = torch.ones_like(student).requires_grad_()
        value = RELATIONS[name](constant, teacher, mask)
        value.backward()
        assert value.isfinite() and constant.grad.abs().max() < 1e-6
        zero = torch.zeros_like(student).requires_grad_()
        RELATIONS[name](zero, teacher, mask).backward()
        assert zero.grad.abs().max() == 0

    def test_one_equal_pair_counts_with_value_zero(self, batch, name):
        student, teacher, mask = (x.clone() for x in batch)
        student[:, :, 2] = student[:, :, 5]  # words
        student[:, 1] = student[:, 2]  # layers
        slow = reference(name, student, teacher, mask)
        torch.testing.assert_close(RELATIONS[name](student, teacher, mask).double(), slow, rtol=1e-4, atol=0)

    def test_bf16_autocast_leaves_the_relations_in_float32(self, batch, name):
        expected = RELATIONS[name](*batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = RELATIONS[name](*batch)
            half = RELATIONS[name](batch[0].bfloat16(), batch[1].bfloat16(), batch[2])
        assert torch.equal(got, expected) and half.dtype == torch.float32
        torch.testing.assert_close(half, expected, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("name", ["wr_triple", "ltr_triple"])
def test_angles_do_not_change_under_translation(batch, name):
    student, teacher, mask = batch
    expected = RELATIONS[name](student, teacher, mask)
    torch.testing.assert_close(RELATIONS[name](student + 100, teacher - 100, mask), expected, rtol=1e-3, atol=0)


def test_window_reaches_by_position_and_wide_windows_are_all_triples(batch):
    student, teacher, mask = batch
    every = wr_triple(student, teacher, mask, window=None)
    torch.testing.assert_close(wr_triple(student, teacher, mask, window=19), every)
    assert abs(wr_triple(student, teacher, mask, window=3) - every) > 1e-3


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_small_batch_equals_the_reference(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    b, layers, t, seed = draw(1, 3), draw(3, 4), draw(1, 8), draw(0, 999)
    mask = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=t, max_size=t), min_size=b, max_size=b)))
    student, teacher = hidden(seed, b, layers, t, 6), hidden(seed + 1, b, layers, t, 5)
    window = data.draw(st.sampled_from([3, 5, 7, 21, None]))
    for name, loss in RELATIONS.items():
        options = {"window": window} if name == "wr_triple" else {}
        torch.testing.assert_close(
            loss(student, teacher, mask, **options).double(),
            reference(name, student, teacher, mask, **options),
            rtol=1e-3,
            atol=1e-7,
        )


def test_blocks_of_triples_add_up(batch, monkeypatch):
    expected = [wr_triple(*batch, window=w) for w in (5, None)]
    monkeypatch.setitem(relations.BLOCK, "cpu", 20)  # one centre at a time
    for want, window in zip(expected, (5, None), strict=True):
        torch.testing.assert_close(wr_triple(*batch, window=window), want)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda s, t, m: wr_triple(s, t, m, window=4), "window 4 must be odd"),
        (lambda s, t, m: wr_triple(s, t, m, window=1), "window 1 must be odd"),
        (lambda s, t, m: wr_triple(s, t, m, criterion="kl"), "choose one of mse"),
        (lambda s, t, m: wr_pair(s, t, m, distance="l2", criterion="kl"), "pass 'mse'"),
        (lambda s, t, m: wr_pair(s, t, m, distance="dot"), "unknown distance 'dot'"),
        (lambda s, t, m: ltr_pair(s, t, m, criterion="mae"), "unknown criterion 'mae'"),
        (lambda s, t, m: ltr_pair(s[:, :1], t[:, :1], m), "ltr_pair relates 2 layers but only 1"),
        (lambda s, t, m: ltr_triple(s[:, :2], t[:, :2], m), "ltr_triple relates 3 layers but only 2"),
        (lambda s, t, m: wr_pair(s[:, :2], t, m), "do not share batch, layers and tokens"),
        (lambda s, t, m: wr_pair(s, t, m[:, :3]), "do not share batch, layers and tokens"),
        (lambda s, t, m: soft_logits(s, s, temperature=0), "temperature 0 must be positive"),
    ],
)
def test_impossible_requests_say_what_to_pass(batch, call, words):
    with pytest.raises(ValueError, match=words):
        call(*batch)


class TestSoftLogits:
    def test_equals_the_formula(self):
        s, t = hidden(1, 5, 3, 7), hidden(2, 5, 3, 7)
        p, q = (t.double() / 2.5).softmax(-1), (s.double() / 2.5).softmax(-1)
        expected = 2.5**2 * (p * (p / q).log()).sum(-1).mean()
        torch.testing.assert_close(soft_logits(s, t, temperature=2.5).double(), expected, rtol=1e-5, atol=0)

    def test_impossible_classes_count_nothing(self):
        s, t = hidden(1, 5, 7).requires_grad_(), hidden(2, 5, 7)
        expected = soft_logits(s[:, :4], t[:, :4])
        for fill in (float("-inf"), -1e9):
            closed = F.pad(s[:, :4], (0, 3), value=fill)
            value = soft_logits(closed, F.pad(t[:, :4], (0, 3), value=fill))
            torch.testing.assert_close(value, expected)
            assert torch.autograd.grad(value, s)[0].isfinite().all()

    def test_no_rows_give_zero_with_a_graph(self):
        s = torch.zeros(0, 3, requires_grad=True)
        value = soft_logits(s, torch.zeros(0, 3))
        value.backward()
        assert value.item() == 0

    def test_gradients_reach_the_student_only(self):
        s, t = hidden(1, 5, 7).requires_grad_(), hidden(2, 5, 7).requires_grad_()
        soft_logits(s, t, temperature=3.0).backward()
        assert s.grad.abs().sum() > 0 and t.grad is None


class TestTerms:
    def test_every_relation_term_is_its_public_function(self, batch):
        student, teacher, mask = batch
        args = argparse.Namespace(distance="l2", pair_criterion="mse", triple_criterion="l1", window=5, temperature=2.0)
        views = []
        for x in (student, teacher):
            out = OutputStub(hidden_states=[x[:, 3], *x.unbind(1)], logits=x[:, 0, 0, :3])
            views.append(losses.ModelView(out, (1, 2, 3, 4), mask))
        expected = {
            "wr_pair": wr_pair(*batch, distance="l2", criterion="mse"),
            "wr_triple": wr_triple(*batch, window=5, criterion="l1"),
            "ltr_pair": ltr_pair(*batch, distance="l2", criterion="mse"),
            "ltr_triple": ltr_triple(*batch, criterion="l1"),
            "logits": soft_logits(student[:, 0, 0, :3], teacher[:, 0, 0, :3], temperature=2.0),
        }
        for name, value in expected.items():
            torch.testing.assert_close(losses.TERMS[name](*views, {}, args), value, msg=name)

    def test_class_weights_are_scikit_learns_and_weigh_the_loss_on_the_labels(self):
        labels = torch.tensor([2, 0, 2, 2, -100, 0, 2])
        real = labels[labels >= 0].numpy()
        expected = torch.tensor(compute_class_weight("balanced", classes=np.array([0, 2]), y=real))
        weights = kinds.balanced(labels.tolist(), 4)
        torch.testing.assert_close(weights[[0, 2]], expected.float())
        assert weights[[1, 3]].tolist() == [1, 1]
        assert torch.equal(kinds.balanced([[2, 0], [2, 2, -100], [0, 2]], 4), weights)
        for name, shape in (("classification", (7,)), ("token", (1, 7))):
            kind, logits = kinds.KINDS[name](None), hidden(1, *shape, 4)
            plain = kind.hard_loss(logits, labels.view(shape))
            kind.class_weights = weights
            rows, own = logits.flatten(0, -2)[labels >= 0], labels[labels >= 0]
            torch.testing.assert_close(kind.hard_loss(logits, labels.view(shape)), F.cross_entropy(rows, own, weights))
            kind.class_weights = torch.ones(4)
            torch.testing.assert_close(kind.hard_loss(logits, labels.view(shape)), plain)

    def test_regression_logits_are_compared_by_squared_error(self):
        kind = kinds.KINDS["regression"](None)
        view = lambda x: losses.ModelView(OutputStub(logits=x), (), None, kind=kind)  # noqa: E731
        value = losses.TERMS["logits"](view(torch.tensor([[1.0], [3.0]])), view(torch.tensor([[2.0], [1.0]])), {}, None)
        assert value.item() == pytest.approx((1 + 4) / 2)

    def test_a_preset_fills_only_what_was_not_given(self):
        assert losses.parse_terms(["wr_triple=5", "ckd", "ltr_pair=0"]) == {
            "logits": 1.0,
            "wr_pair": 1.0,
            "wr_triple": 5.0,
            "ltr_triple": 10.0,
        }
        assert losses.parse_terms(["kd"]) == {"logits": 1.0}

    @pytest.mark.parametrize(
        "words, said",
        [
            (["wr_pairs=1"], "unknown term 'wr_pairs'"),
            (["cdk"], "neither a preset"),
            (["wr_pair"], "neither a preset"),
            (["ckd", "kd"], "two presets"),
            (["logits=1", "logits=2"], "twice"),
            (["logits=-1"], "number >= 0"),
            (["logits=nan"], "number >= 0"),
            (["logits=inf"], "number >= 0"),
            (["logits=x"], "number >= 0"),
            (["kd", "logits=0"], "every weight is 0"),
        ],
    )
    def test_wrong_terms_are_named(self, words, said):
        with pytest.raises(ValueError, match=said):
            losses.parse_terms(words)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.text(max_size=9) | st.sampled_from(["ckd", "kd", "logits=1", "wr_pair=0"]), min_size=1))
    def test_any_words_give_weights_or_one_line(self, words):
        try:
            weights = losses.parse_terms(words)
        except ValueError as error:
            assert str(error)
        else:
            assert weights and set(weights) <= set(losses.TERMS) and all(w > 0 for w in weights.values())


def resolved(*words, pretraining=False, teacher="t"):
    """The options of distilling as `check_args` leaves them."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_distillation(parser)
    args = parser.parse_args(words)
    args.teacher, args.compile = teacher, False
    losses.check_args(args, pretraining)
    return args


class TestRecipes:
    @pytest.mark.parametrize(
        "words, temperature, hard",
        [
            (["distilbert"], 2, 2),
            (["pkd"], 10, 0.5),
            (["ckd"], 1, 0),
            (["distilbert", "logits=1", "--temperature", "1", "--hard_weight", "0"], 1, 0),  # also at the defaults
            (["ckd", "--temperature", "3"], 3, 0),
        ],
    )
    def test_a_preset_fills_what_was_not_given(self, words, temperature, hard):
        args = resolved("--terms", *words)
        assert (args.temperature, args.hard_weight, args.stages) == (temperature, hard, None)

    def test_stages_of_a_preset_take_in_what_is_named_beside_it(self):
        layers = {"hidden_mse": 1.0, "embedding_mse": 1.0}
        args = resolved("--terms", "tinybert", "attention_mse=0", "wr_pair=7", "--hard_weight", "0.5")
        assert args.stages == [
            [0.0, {"wr_pair": 7.0, **layers, "hard": 0.5}],
            [0.5, {"logits": 1.0, "wr_pair": 7.0, "hard": 0.5}],
        ]
        assert args.terms == {"logits": 1.0, "wr_pair": 7.0, **layers} and args.hard_weight == 0.5
        assert resolved("--terms", "tinybert", "--stages", "logits", "0.2", "hidden_mse").stages == [
            [0.0, {"logits": 1.0}],
            [0.2, {"hidden_mse": 1.0}],
        ]

    def test_of_a_presets_stages_only_the_first_is_meant_in_pre_training(self):
        for preset, terms in (("tinybert", ["hidden_mse", "attention_mse", "embedding_mse"]), ("minilm", ["minilm"])):
            args = resolved("--terms", preset, pretraining=True)
            assert (sorted(args.terms), args.hard_weight, args.stages) == (sorted(terms), 0, None)
        assert len(resolved("--terms", "kd", "--stages", "logits", "0.5", "hard=1", pretraining=True).stages) == 2

    def test_weights_are_a_function_of_the_share_of_the_steps(self):
        args = resolved(
            *("--terms ckd wr_triple=5 --stages 0 wr_pair wr_triple 0.3 hard=1..0 wr_triple=2..4 0.8 logits").split()
        )
        assert args.terms == {"logits": 1.0, "wr_pair": 1.0, "wr_triple": 5.0} and args.hard_weight == 1
        for step, weights in {
            0: {"wr_pair": 1, "wr_triple": 5},
            2: {"wr_pair": 1, "wr_triple": 5},
            3: {"wr_triple": 2, "hard": 1},
            5: {"wr_triple": 2.8, "hard": 0.6},
            8: {"logits": 1},
            9: {"logits": 1},
        }.items():
            now = term_weights.objective_of(args).at(step / 10)
            assert now.weights == pytest.approx(weights) and now.window == 21
            assert term_weights.objective_of(args).head_trained(step / 10) == (step >= 3)

    def test_constant_weights_of_one_stage_are_no_stages(self):
        args = resolved("--stages", "wr_pair", "logits=3", "hard=2")
        assert (args.terms, args.hard_weight, args.stages) == ({"logits": 3, "wr_pair": 1}, 2, None)
        objective = term_weights.objective_of(args)
        assert objective.at(0.5) is objective and objective.head_trained(0.0)
        alone = term_weights.objective_of(resolved(teacher=None))
        assert alone.at(0.5).weights == {"hard": 1.0} and alone.head_trained(0.0)

    @pytest.mark.parametrize(
        "words, said",
        [
            ("0.5 logits", "'0.5': a stage begins at a share"),
            ("wr_pair 1 logits", "'1': a stage begins"),
            ("wr_pair 0.5 hard=1 0.5 logits", "'0.5': a stage"),
            ("wr_pair 0.5", "nothing is trained where .* from 0.5"),
            ("0", "nothing is trained"),
            ("wr_pears 0.5 logits", "unknown term 'wr_pears', choose .* hard"),
            ("pkd 0.5 logits", "'pkd' has no weight: write pkd=1"),
            ("hard 0.5 logits", "hard=1, or .* --hard_weight"),
            ("logits=x", "number >= 0"),
            ("logits=1..2..3", "number >= 0"),
            ("wr_pair wr_pair 0.5 logits", "'wr_pair' twice"),
            ("wr_pair 0.5 logits=0..1", "begins above 0"),
            ("hard=1", "nothing would be distilled"),
            ("logits --terms kd pkd=5", "trains 'pkd' at no time"),
            ("logits --hard_weight 1", "trains 'hard' at no time"),
        ],
    )
    def test_wrong_stages_are_named(self, words, said):
        with pytest.raises(ValueError, match=said) as error:
            resolved("--stages", *words.split())
        assert "\n" not in str(error.value)

    def test_a_stage_without_a_step_is_refused(self):
        args = resolved("--stages", "wr_pair", "0.3", "logits", "0.9", "hard=1")
        objective = term_weights.objective_of(args)
        objective.check_steps(10)
        for steps, begin in ((9, "0.9"), (2, "0.9"), (1, "0.3")):
            with pytest.raises(ValueError, match=f"from {begin} on has none of {steps} steps"):
                objective.check_steps(steps)
        term_weights.objective_of(resolved()).check_steps(1)

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.sampled_from(
                ["0", "0.5", ".7", "1e-3", "logits", "hard=1", "wr_pair=0", "pkd=0..2", "wr_pair=3..1", "nan", "-1"]
            )
            | st.text(max_size=5),
            min_size=1,
        ),
        st.floats(0, 1, exclude_max=True),
    )
    def test_any_stages_give_weights_at_any_time_or_one_line(self, words, progress):
        try:
            weights = term_weights.parse(term_weights.split(words), {"logits": 1.0}, losses.TERMS)
        except ValueError as error:
            assert str(error)
        else:
            now = term_weights.objective_of(resolved())._replace(stages=weights).at(progress).weights
            assert now and set(now) <= {*losses.TERMS, "hard"} and all(0 < w <= 3 for w in now.values())


class OutputStub(dict):
    """As much of a transformers ModelOutput as ModelView reads."""

    __getattr__ = dict.__getitem__


def test_all_four_at_once_equal_each_alone_also_in_blocks_and_threads(batch, monkeypatch):
    student, teacher, mask = batch
    for wide in (teacher, teacher[..., :16]):
        expected, grads = [], []
        for name in relations.NAMES:
            leaf = student.clone().requires_grad_()
            expected.append(RELATIONS[name](leaf, wide, mask))
            grads.append(torch.autograd.grad(expected[-1], leaf)[0])
        weights = (1.0, 10.0, 0.5, 3.0)
        for block, threads in ((2**18, 1), (100, 1), (100, 2)):
            monkeypatch.setitem(relations.BLOCK, "cpu", block)
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            leaf = student.clone().requires_grad_()
            got = relations.relation_losses(leaf.unbind(1), wide.unbind(1), mask)
            sum(w * got[name] for w, name in zip(weights, relations.NAMES, strict=True)).backward()
            torch.set_num_threads(before)
            torch.testing.assert_close(list(got.values()), expected)
            whole = sum(w * g for w, g in zip(weights, grads, strict=True))
            assert (leaf.grad - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.parametrize("name, options", CASES, ids=str)
def test_padding_that_is_cut_off_changes_nothing(name, options, monkeypatch):
    """On a CPU, sentences of like length go together: also one alone, one of padding, padding in front and holes."""
    mask = torch.tensor([[1] * 3 + [0] * 23, [0] * 26, [0] * 20 + [1] * 6, [1, 1, 0, 1] * 6 + [0] * 2, [1] * 25 + [0]])
    student, teacher = hidden(1, 5, 3, 26, 8), hidden(2, 5, 3, 26, 8)
    student, teacher = (h.masked_fill(mask[:, None, :, None] == 0, math.nan) for h in (student, teacher))
    for rows in ([0, 1, 2, 3, 4], [3, 0], [0], [1], [2, 1]):
        found = []
        for block in (2**18, 2500, 100):
            monkeypatch.setitem(relations.BLOCK, "cpu", block)
            leaf = student[rows].requires_grad_()
            value = RELATIONS[name](leaf, teacher[rows], mask[rows], **options)
            found.append((value, *torch.autograd.grad(value, leaf)))
        for value, grad in found[1:]:
            torch.testing.assert_close(value, found[0][0], rtol=1e-5, atol=1e-9)
            assert grad.isfinite().all() and (grad - found[0][1]).norm() <= 1e-5 * found[0][1].norm()


def test_padding_is_cut_off_where_it_is_much(monkeypatch):
    monkeypatch.setitem(relations.BLOCK, "cpu", 100)
    states = [torch.zeros(4, 10, 8)] * 2
    real = (torch.arange(10) < torch.tensor([[2], [10], [0], [5]])).float()
    for part, expected in ((0, [([1], 10), ([3], 5), ([0], 2), ([2], 1)]), (10**4, [([1], 10), ([3], 5), ([0, 2], 2)])):
        monkeypatch.setattr(relations, "PART", part)
        parts = [(sentences.tolist(), near.stop) for sentences, near in relations._sentences(states, real, 21)]
        assert parts == expected
    assert all(type(sentences) is slice for sentences, _ in relations._sentences(states, torch.ones(4, 10), 21))


def test_parts_of_a_batch_are_the_cheapest_there_are():
    draw = random.Random(1)
    for _ in range(50):
        lengths = sorted((draw.randint(1, 30) for _ in range(draw.randint(1, 9))), reverse=True)
        sizes, work = [n * 5000 for n in lengths], [n * 5000 + 500 * n**3 for n in lengths]
        most = draw.choice((1, 10**5, 4 * 10**5, 10**9))

        def cost(cuts, sizes=sizes, work=work, most=most):
            parts = list(itertools.pairwise(cuts))
            fits = all(j - i == 1 or (j - i) * sizes[i] <= most for i, j in parts)
            return sum(relations.PART + (j - i) * work[i] for i, j in parts) if fits else math.inf

        inner = range(1, len(lengths))
        every = ([0, *some, len(lengths)] for k in range(len(lengths)) for some in itertools.combinations(inner, k))
        assert cost(relations._cuts(sizes, work, most)) == min(map(cost, every)) < math.inf


@pytest.mark.parametrize("types", [(torch.bfloat16,) * 3, (torch.float32, torch.bfloat16, torch.float32)], ids=str)
def test_parts_of_hidden_states_of_other_types(types, monkeypatch):
    monkeypatch.setitem(relations.BLOCK, "cpu", 100)
    mask = (torch.arange(12) < torch.tensor([[12], [3], [5], [4]])).long()
    student, teacher = (
        [h.to(kind) for h, kind in zip(hidden(i, 4, 3, 12, 8).unbind(1), types, strict=True)] for i in (1, 2)
    )
    wide = ([h.float() for h in states] for states in (student, teacher))
    monkeypatch.setattr(relations, "PART", 0)
    assert relations.relation_losses(student, teacher, mask) == relations.relation_losses(*wide, mask)


def test_short_sentences_in_a_window_equal_the_reference():
    """No longer than the window: made densely, with what lies outside the window left out."""
    student, teacher, mask = hidden(1, 2, 2, 7, 6), hidden(2, 2, 2, 7, 6), torch.ones(2, 7)
    for window in (7, 9, 11, 13):
        got = wr_triple(student, teacher, mask, window=window)
        torch.testing.assert_close(
            got.double(), reference("wr_triple", student, teacher, mask, window=window), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("name", RELATIONS)
@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (1, 3, 0, 4), (0, 3, 0, 4)], ids=str)
def test_an_empty_batch_or_token_axis_gives_zero_with_a_graph(name, shape):
    student = torch.zeros(shape, requires_grad=True)
    value = RELATIONS[name](student, torch.zeros(shape), torch.ones(shape[0], shape[2]))
    value.backward()
    assert value.item() == 0 and student.grad.shape == shape


@pytest.mark.parametrize("name", RELATIONS)
def test_a_non_finite_real_state_is_not_hidden(batch, name):
    student, teacher, mask = batch
    for junk in (float("nan"), float("inf")):
        student = student.clone()
        student[0, 1, 2, 3] = junk
        assert not RELATIONS[name](student, teacher, mask).isfinite()


@pytest.mark.parametrize("switch", ["new", "old", "medium"])
def test_full_precision_whatever_the_process_has_chosen_and_left_as_found(batch, switch):
    expected = [loss(*batch) for loss in RELATIONS.values()]
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision, torch.get_float32_matmul_precision()
    try:
        if switch == "new":
            torch.backends.mkldnn.matmul.fp32_precision = matmul.fp32_precision = "tf32"
        elif switch == "old":
            matmul.allow_tf32 = True
        else:
            torch.set_float32_matmul_precision("medium")  # on a CPU that is bfloat16
        chosen = matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        assert [loss(*batch) for loss in RELATIONS.values()] == expected
        assert (matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision) == chosen
        if switch == "old":
            assert matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[2])
        matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = before[:2]


def test_a_relation_is_made_with_the_others_that_the_options_name(batch, monkeypatch):
    student, teacher, mask = batch
    calls, whole = [], relations.relation_losses
    monkeypatch.setattr(relations, "relation_losses", lambda *a, **k: calls.append(a[3]) or whole(*a, **k))
    args = argparse.Namespace(
        distance="cosine",
        pair_criterion="kl",
        triple_criterion="mse",
        window=5,
        terms={"wr_pair": 1.0, "ltr_triple": 2.0, "logits": 1.0},
    )
    views = [losses.ModelView({"hidden_states": x.unbind(1)}, range(4), mask) for x in (student, teacher)]
    for name in ("ltr_triple", "wr_pair"):
        losses.TERMS[name](*views, {}, args)
    assert calls == [("wr_pair", "ltr_triple")]


# --- comparison ------------------------------------------------------------------------------------------------------

TERMS = ("pkd", "hidden_mse", "attention_mse", "embedding_mse", "hidden_cosine", "minilm")
PAIRS = [(0, 0), (1, 2), (2, 4), (3, 6)]  # uniform map of 3 layers onto 6
B, T = 4, 7
LENGTHS = (7, 4, 1, 0)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(seed, layers, heads, width):
    """Hidden states of layers + 1 and queries, keys and values of each layer, as a model with `add_outputs` gives."""
    hidden = tuple(draw(seed + i, B, T, width) for i in range(layers + 1))
    qkv = {
        i: tuple(2 * draw(seed + 100 * i + n, B, T, heads, width // heads) for n in range(3))
        for i in range(1, layers + 1)
    }
    return {"hidden_states": hidden, "qkv": qkv}


def tensors(out):
    return [*out["hidden_states"], *(x for three in out["qkv"].values() for x in three)]


def mapped(out, function):
    """The outputs with every tensor put through a function."""
    return {
        "hidden_states": tuple(function(x) for x in out["hidden_states"]),
        "qkv": {i: tuple(function(x) for x in three) for i, three in out["qkv"].items()},
    }


def mask_of(lengths, width=T):
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def value(name, student, teacher, mask, pairs=PAIRS):
    s_layers, t_layers = zip(*pairs, strict=True)
    views = losses.ModelView(student, s_layers, mask), losses.ModelView(teacher, t_layers, mask)
    return losses.TERMS[name](*views, {}, None)


# --- slow references: one number at a time, in float64 -----------------------------------------------------------


def head_vectors(x, heads):
    """[T, heads, d] -> [heads][T, D / heads], the vectors of all heads joined and split anew."""
    joined = x.double().reshape(len(x), -1)
    return joined.reshape(len(x), heads, -1).transpose(0, 1)


def softmax(scores):
    e = [math.exp(s - max(scores)) for s in scores]
    return [x / sum(e) for x in e]


def distributions(x, y):
    return [softmax([float(a @ b) / math.sqrt(len(a)) for b in y]) for a in x]


def slow(name, student, teacher, heads=2):
    values = []
    for b, n in enumerate(LENGTHS):
        if n == 0:
            continue
        s_h, t_h = ([h[b, :n].double() for h in out["hidden_states"]] for out in (student, teacher))
        if name == "pkd":  # neither embeddings nor the student's last layer
            for s, t in ((1, 2), (2, 4)):
                values += ((s_h[s][0] / s_h[s][0].norm() - t_h[t][0] / t_h[t][0].norm()) ** 2).tolist()
        elif name in ("hidden_mse", "embedding_mse"):
            for s, t in [(0, 0)] if name == "embedding_mse" else PAIRS[1:]:
                values += ((s_h[s] - t_h[t]) ** 2).flatten().tolist()
        elif name == "hidden_cosine":
            values += [1 - float(x @ y / x.norm() / y.norm()) for x, y in zip(s_h[3], t_h[6], strict=True)]
        elif name == "attention_mse":
            for s, t in PAIRS[1:]:
                (q_s, k_s, _), (q_t, k_t, _) = (
                    [head_vectors(x[b, :n], heads) for x in out["qkv"][i]] for out, i in ((student, s), (teacher, t))
                )
                values += [
                    (
                        float(q_s[h, i] @ k_s[h, j]) / math.sqrt(q_s.shape[-1])
                        - float(q_t[h, i] @ k_t[h, j]) / math.sqrt(q_t.shape[-1])
                    )
                    ** 2
                    for h in range(heads)
                    for i in range(n)
                    for j in range(n)
                ]
        else:
            three_s, three_t = (
                [head_vectors(x[b, :n], heads) for x in out["qkv"][i]] for out, i in ((student, 3), (teacher, 6))
            )
            for h in range(heads):
                rows = [0.0] * n
                for x, y in ((0, 1), (2, 2)):
                    p, q = distributions(three_t[x][h], three_t[y][h]), distributions(three_s[x][h], three_s[y][h])
                    for i in range(n):
                        rows[i] += sum(a * math.log(a / c) for a, c in zip(p[i], q[i], strict=True))
                values += rows
    return sum(values) / len(values)


@pytest.fixture
def pair():
    return outputs(1, 3, 2, 8), outputs(5000, 6, 2, 8)


@pytest.mark.parametrize("name", TERMS)
class TestTerms_of_comparison:
    def test_equals_the_slow_reference(self, pair, name):
        got = value(name, *pair, mask_of(LENGTHS))
        assert got.dtype == torch.float32 and got.shape == ()
        assert got.item() == pytest.approx(slow(name, *pair), rel=1e-5)

    def test_padding_changes_nothing_whatever_it_holds(self, pair, name):
        expected = value(name, *pair, mask_of(LENGTHS))
        real = mask_of(LENGTHS, T + 2).bool()
        for junk in (1e4, float("nan"), float("inf")):

            def spoil(x, junk=junk):
                x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, 2))
                return x.masked_fill(~real.view(*real.shape, *[1] * (x.ndim - 2)), junk)

            student, teacher = (mapped(out, spoil) for out in pair)
            for x in tensors(student):
                x.requires_grad_()
            got = value(name, student, teacher, real.long())
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
            got.backward()
            for x in tensors(student):
                assert x.grad is None or (x.grad.isfinite().all() and not x.grad[~real].any())

    def test_student_equal_to_teacher_gives_zero(self, pair, name):
        same = mapped(pair[0], lambda x: x.clone().requires_grad_())
        got = value(name, same, pair[0], mask_of(LENGTHS), [(i, i) for i in range(4)])
        got.backward()
        assert abs(got.item()) < 1e-6
        assert all(x.grad is None or x.grad.abs().max() < 1e-5 for x in tensors(same))

    def test_gradients_reach_the_student_only(self, pair, name):
        student, teacher = (mapped(out, lambda x: x.clone().requires_grad_()) for out in pair)
        value(name, student, teacher, mask_of(LENGTHS)).backward()
        assert sum(float(x.grad.abs().sum()) for x in tensors(student) if x.grad is not None) > 0
        assert all(x.grad is None for x in tensors(teacher))

    def test_bf16_autocast_leaves_it_in_float32(self, pair, name):
        expected = value(name, *pair, mask_of(LENGTHS))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(value(name, *pair, mask_of(LENGTHS)), expected)
            half = [mapped(out, lambda x: x.bfloat16()) for out in pair]
            assert value(name, *half, mask_of(LENGTHS)).dtype == torch.float32

    def test_no_rows_give_zero_with_a_graph(self, pair, name):
        student = mapped(pair[0], lambda x: x.clone().requires_grad_())
        for mask, cut in (
            (mask_of(LENGTHS)[:0], losses.no_rows),
            (mask_of([0] * B), lambda out: out),
            (mask_of([0] * B, 0), lambda out: mapped(out, lambda x: x[:, :0])),
        ):
            got = value(name, cut(student), cut(pair[1]), mask)
            got.backward()
            assert got.item() == 0
        assert all(x.grad is None or not x.grad.any() for x in tensors(student))

    def test_constant_states_give_finite_gradients(self, pair, name):
        zero = mapped(pair[0], lambda x: torch.zeros_like(x).requires_grad_())
        got = value(name, zero, pair[1], mask_of(LENGTHS))
        got.backward()
        assert got.isfinite() and all(x.grad is None or x.grad.isfinite().all() for x in tensors(zero))


def values_of_nothing(across_processes=False):
    """{(term, what there is none of): value} of all terms and the example of the docs, without sentences or words."""
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
    known, found = vars(losses) | {"TERMS": dict(losses.TERMS)}, {}
    exec(re.search(r"^```python\n(def _sentence_cosine_term.*?)^```", page, re.S | re.M)[1], known)
    args = argparse.Namespace(distance="cosine", pair_criterion="kl", triple_criterion="mse", window=5, temperature=2.0)
    for what, (b, t) in {"sentences": (0, T), "words": (1, 0), "anything": (0, 0)}.items():
        views = [
            losses.ModelView(
                {
                    **mapped(out, lambda x, b=b, t=t: x[:b, :t].clone().requires_grad_()),
                    "logits": draw(1, b, 3).requires_grad_(),
                },
                layers,
                torch.ones(b, t),
                across_processes,
            )
            for out, layers in zip((outputs(1, 3, 2, 8), outputs(5000, 6, 2, 8)), zip(*PAIRS, strict=True), strict=True)
        ]
        for name, term in known["TERMS"].items():
            found[name, what] = term(*views, {}, args)
    return found


def test_every_term_of_nothing_is_zero_with_a_graph():
    found = values_of_nothing()
    assert {name for name, _ in found} == {*losses.TERMS, "sentence_cosine"}
    # Logits of one sentence without words still are logits, and equal here.
    assert all(value.item() == 0 and value.dtype == torch.float32 and value.requires_grad for value in found.values())
    sum(found.values()).backward()


@pytest.mark.parametrize(
    "s_shape, t_shape, heads",
    [((2, 8), (4, 16), 2), ((6, 24), (4, 8), 4), ((4, 12), (6, 18), 2), ((2, 8), (2, 12), 2)],
    ids=["smaller", "teacher smaller", "gcd", "same heads, other width"],
)
def test_minilm_regroups_heads(s_shape, t_shape, heads):
    assert baselines.relation_heads(s_shape, t_shape) == heads == baselines.relation_heads(t_shape, s_shape)
    student, teacher = outputs(1, 3, *s_shape), outputs(5000, 6, *t_shape)
    got = value("minilm", student, teacher, mask_of(LENGTHS))
    assert got.item() == pytest.approx(slow("minilm", student, teacher, heads), rel=1e-5)


@pytest.mark.parametrize("heads, s_width, t_width", [(2, 8, 12), (3, 18, 12)])
def test_attention_scores_of_unlike_widths(heads, s_width, t_width):
    student, teacher = outputs(1, 3, heads, s_width), outputs(5000, 6, heads, t_width)
    got = value("attention_mse", student, teacher, mask_of(LENGTHS))
    assert got.item() == pytest.approx(slow("attention_mse", student, teacher, heads), rel=1e-5)


@pytest.mark.parametrize("name", ["hidden_cosine", "minilm"])
def test_the_last_layer_is_the_last_of_the_student_however_the_map_is_typed(pair, name):
    expected = value(name, *pair, mask_of(LENGTHS))
    assert torch.equal(value(name, *pair, mask_of(LENGTHS), PAIRS[::-1]), expected)
    assert losses.qkv_pairs({"minilm": 1.0}, PAIRS[::-1]) == [(3, 6)]


def test_padding_stays_out_of_minilm_where_real_scores_are_very_low():
    def out(seed, width):
        queries, keys, values = (300 * draw(seed + i, 1, 3, 1, 4).abs()[:, :width] for i in range(3))
        return {"hidden_states": (), "qkv": {1: (-queries, keys, values)}}

    expected = value("minilm", out(1, 2), out(9, 2), mask_of([2], 2), [(1, 1)])
    got = value("minilm", out(1, 3), out(9, 3), mask_of([2], 3), [(1, 1)])
    torch.testing.assert_close(got, expected)


# --- models -------------------------------------------------------------------------------------------------------


SHAPE = {"vocab_size": 40, "max_position_embeddings": 20, "initializer_range": 0.5}
CONFIGS = {
    "bert": lambda: BertConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, **SHAPE
    ),
    "roberta": lambda: RobertaConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, **SHAPE
    ),
    "distilbert": lambda: DistilBertConfig(dim=8, n_layers=3, n_heads=2, hidden_dim=16, **SHAPE),
}


def make(family, attention="sdpa"):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(CONFIGS[family](), attn_implementation=attention).eval()


@pytest.mark.parametrize("family", CONFIGS)
def test_captured_projections_give_the_attention_of_an_eager_twin(family):
    model, twin = make(family), make(family, "eager")
    model_outputs.add_outputs(model, [1, 3])
    ids, mask = torch.randint(5, 40, (B, T), generator=torch.Generator().manual_seed(1)), mask_of(LENGTHS)
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask)
        expected = twin(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    assert set(out["qkv"]) == {1, 3} and model.config._attn_implementation == "sdpa"
    for layer in (1, 3):
        queries, keys, _ = losses.ModelView(out, (), mask).qkv(layer, 2)
        scores = baselines._scores(queries, keys).masked_fill(mask[:, None, None] == 0, float("-inf"))
        for b, n in enumerate(LENGTHS):
            got, want = scores[b, :, :n].softmax(-1), expected[layer - 1][b, :, :n]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_learned_projections_are_seeded_counted_apart_and_trained():
    first, second, other, plain = (make("bert") for _ in range(4))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        model_outputs.add_outputs(model, projected={"hidden_mse": [1, 3], "embedding_mse": [0]}, width=12, seed=seed)
    weights = [m.projections["hidden_mse"].weight for m in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert cost.count_parameters(first) == cost.count_parameters(plain)
    assert model_outputs.saved_state(first).keys() == plain.state_dict().keys()
    inputs = {"input_ids": torch.full((B, T), 5), "attention_mask": mask_of(LENGTHS)}
    out = first(**inputs, output_hidden_states=True)
    view = losses.ModelView(out, (0, 1, 3), inputs["attention_mask"])
    out_t = outputs(9, 4, 2, 12)
    teacher = losses.ModelView(out_t, (0, 2, 4), inputs["attention_mask"])
    torch.testing.assert_close(view.states(3, "hidden_mse"), out["hidden_states"][3] @ weights[0].T)
    got = [losses.TERMS[name](view, teacher, {}, None) for name in ("hidden_mse", "embedding_mse")]
    real = inputs["attention_mask"].bool()
    for term, pairs, mean in (("hidden_mse", ((1, 2), (3, 4)), got[0]), ("embedding_mse", ((0, 0),), got[1])):
        projection = first.projections[term].weight
        errors = [(out["hidden_states"][s] @ projection.T - out_t["hidden_states"][t])[real] ** 2 for s, t in pairs]
        torch.testing.assert_close(mean, torch.cat(errors).mean())
    sum(got).backward()
    assert all(p.grad.abs().sum() > 0 for p in first.projections.parameters())
    assert "projected" not in first(**inputs)


class TestNeeds:
    def test_projections_are_captured_only_when_a_term_needs_them(self):
        for terms, layers in (("logits", []), ("pkd", []), ("minilm", [3]), ("attention_mse", [1, 3])):
            student, teacher = make("bert"), make("bert")
            wanted = argparse.Namespace(terms={terms: 1.0}, layer_pairs=[(0, 0), (1, 1), (3, 3)])
            model_outputs.add_term_outputs(wanted, student, teacher, 1)
            for model in (student, teacher):
                hooked = [
                    i + 1
                    for i, layer in enumerate(families.encoder_layers(model))
                    if layer.attention.self.query._forward_hooks
                ]
                assert hooked == layers and not hasattr(model, "projections")
                assert bool(model._forward_hooks) == bool(layers)

    def test_every_preset_names_terms_and_options_only(self):
        assert set(losses.PRESETS) >= {"kd", "ckd", "pkd", "tinybert", "distilbert", "minilm", "dynabert"}
        parser = argparse.ArgumentParser()
        add_distillation(parser)
        known = {*losses.TERMS, *vars(parser.parse_args([]))} - {"terms"}
        assert all(set(recipe) <= known for recipe in losses.PRESETS.values())

    @pytest.mark.parametrize(
        "name, pairs, student, said",
        [
            ("pkd", PAIRS, {"hidden_size": 4}, "pkd .* student has 4 and the teacher 8: use hidden_mse"),
            ("hidden_cosine", PAIRS, {"hidden_size": 4}, "hidden_cosine .* or --student_hidden 8"),
            ("attention_mse", PAIRS, {"num_attention_heads": 4}, "4 heads and the teacher 2: use minilm"),
            ("pkd", [(0, 0), (2, 4)], {}, "pkd leaves out the student's last layer and no other"),
            *[(name, [(0, 0)], {}, f"{name} .*only embeddings") for name in TERMS if name != "embedding_mse"],
        ],
    )
    def test_what_shapes_and_layers_cannot_give_is_refused(self, name, pairs, student, said):
        config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2)
        changed = copy.deepcopy(config)
        for key, number in student.items():
            setattr(changed, key, number)
        with pytest.raises(ValueError, match=said) as error:
            losses.check_terms({name: 1.0}, pairs, changed, config)
        assert "\n" not in str(error.value)
        losses.check_terms({name: 1.0}, PAIRS, config, config)


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["pkd", "tinybert", "distilbert", "minilm"])
def test_every_preset_runs(finetune, teacher, tmp_path, preset):
    options = ("--teacher", teacher, "--student_layers", "2", "--terms", preset)
    finetune(*options, "--max_steps", "2", "--output_dir", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    options, recipe = record["options"], losses.PRESETS[preset]
    assert record["status"] == "complete" and record["best"]["step"] == 2
    assert options["terms"] == {name: weight for name, weight in recipe.items() if name in losses.TERMS}
    assert options["hard_weight"] == recipe.get("hard_weight", 0)
    assert options["temperature"] == recipe.get("temperature", 1)
    layers = dict.fromkeys(("hidden_mse", "attention_mse", "embedding_mse"), 1.0)
    assert options["stages"] == {
        "tinybert": [[0.0, layers], [0.5, {"logits": 1.0}]],
        "minilm": [[0.0, {"minilm": 1.0}], [0.5, {"hard": 1.0}]],
    }.get(preset)


def test_terms_alone_train_without_logits_and_under_bf16(finetune, teacher, tmp_path):
    options = (
        *f"--teacher {teacher} --student_layers 2 --hard_weight 1 --terms".split(),
        *(f"{name}=1" for name in TERMS),
    )
    finetune(*options, "--max_steps", "2", "--mixed_precision", "bf16", "--output_dir", tmp_path / "run")


def test_a_narrow_student_resumes_and_saves_a_clean_folder(finetune, teacher, tmp_path, cut_at):
    options = (
        f"--teacher {teacher} --student_layers 2 --student_hidden 24 --terms tinybert "
        "--save_steps 2 --eval_steps 3 --max_steps 6"
    ).split()
    finetune(*options, "--output_dir", tmp_path / "whole")
    cut_at(4)
    with pytest.raises(KeyboardInterrupt):
        finetune(*options, "--output_dir", tmp_path / "cut")
    finetune(*options, "--output_dir", tmp_path / "cut")
    for name in ("model.safetensors", "checkpoints/step-00000006/model.safetensors"):
        a, b = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    initial = torch.nn.init.normal_(
        torch.empty_like(a["projections.hidden_mse.weight"]), std=0.02, generator=torch.Generator().manual_seed(1)
    )
    assert (a["projections.hidden_mse.weight"] - initial).abs().max() > 1e-5  # the projection was trained
    assert "projections.embedding_mse.weight" in a
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cut", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]


def test_wrong_shapes_are_refused_before_anything_is_written(finetune, teacher, tmp_path):
    options = ("--teacher", teacher, "--student_layers", "2", "--output_dir", tmp_path / "run")
    with pytest.raises(ValueError, match="pkd compares states of equal width, the student has 24") as error:
        finetune(*options, "--student_hidden", "24", "--terms", "pkd")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="attention_mse compares head by head, the student has 2 heads"):
        finetune(*options, "--student_heads", "2", "--student_init", "random", "--terms", "tinybert")
    assert not (tmp_path / "run").exists()
