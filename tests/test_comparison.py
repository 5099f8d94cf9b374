"""Terms of the methods CKD is compared with, against slow references from the papers, and through the command line."""

import argparse
import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, RobertaConfig

import losses
from encoders import families, model_outputs
from engine import cost
from methods import baselines
from options import add_distillation

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
class TestTerms:
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
