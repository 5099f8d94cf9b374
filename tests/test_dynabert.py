"""DynaBERT: rewiring, sub-networks as slices, the three stages of distill_dynabert.py, and export."""

import json
import math
import types

import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import run_script
from safetensors.torch import load_file
from scipy import stats
from test_report import make_run, write
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

import data
import distill_dynabert
import distill_finetune
import losses
import models
import report
from encoders import families, model_outputs, onnx, students
from engine import cost
from methods import dynabert
from reporting import records, subnetworks

CONFIGS = {
    "bert": BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=40,
        num_labels=3,
    ),
    "roberta": RobertaConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=40,
        num_labels=3,
    ),
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=24, n_layers=4, n_heads=4, hidden_dim=32, num_labels=3, max_position_embeddings=40
    ),
    "electra": ElectraConfig(
        vocab_size=50,
        embedding_size=12,
        hidden_size=24,
        num_hidden_layers=4,
        num_labels=3,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=40,
    ),
}
BATCH = {
    "input_ids": torch.randint(5, 50, (6, 9), generator=torch.Generator().manual_seed(1)),
    "attention_mask": (torch.arange(9) < torch.tensor([9, 5, 9, 3, 7, 2])[:, None]).long(),
}
LABELS = torch.tensor([0, 1, 2, 0, 1, 1])


@pytest.fixture(params=CONFIGS)
def model(request):
    """A random model of each type, its weights large enough for every head to matter."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[request.param]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def logits(model):
    return model(**model_outputs.model_inputs(model, BATCH)).logits


def each_loss(model, batch):
    return F.cross_entropy(model(**model_outputs.model_inputs(model, batch)).logits, LABELS, reduction="none")


# --- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth, dropped", [(0.75, {3, 7, 11}), (0.5, {1, 3, 5, 7, 9, 11}), (1.0, set())])
def test_layers_are_dropped_evenly_as_in_the_paper(depth, dropped):
    config = BertConfig()
    *_, size = (s for s in dynabert.sizes(config, [1.0], sorted({depth, 1.0})) if s.depth == depth)
    assert set(range(12)) - set(size.layers) == dropped


def test_sizes_are_rounded_and_the_full_one_is_last():
    config = types.SimpleNamespace(model_type="bert", num_hidden_layers=6, num_attention_heads=12, intermediate_size=90)
    sizes = dynabert.sizes(config, [1.0, 0.25, 0.75], [0.67, 1.0, 0.5])
    assert [(s.heads, s.neurons, len(s.layers)) for s in sizes] == [
        (3, 22, 3),
        (9, 68, 3),
        (12, 90, 3),
        (3, 22, 4),
        (9, 68, 4),
        (12, 90, 4),
        (3, 22, 6),
        (9, 68, 6),
        (12, 90, 6),
    ]
    assert dynabert.sizes(config, [1.0, 0.0833], [1.0])[0].heads == 1  # as the error of a smaller one says
    assert str(sizes[0]) == "w0.25_d0.5" and str(sizes[-1]) == "w1_d1" and sizes[3].layers == (0, 1, 3, 4)


@pytest.mark.parametrize(
    "widths, depths, message",
    [
        ([1.0, 0.05], [1.0], "--width_mults 0.05 leaves no whole head of 12: take 0.0833 or more"),
        ([1.0, 1.5], [1.0], "--width_mults 1.5 must be above 0 and at most 1"),
        ([1.0, 0.0], [1.0], "--width_mults 0 must be above 0"),
        ([1.0, -1.0], [1.0], "must be above 0"),
        ([1.0, float("nan")], [1.0], "must be above 0"),
        ([0.5], [1.0], "--width_mults 0.5 lacks the full size: add 1.0"),
        ([1.0], [0.5], "--depth_mults 0.5 lacks the full size"),
        ([1.0], [1.0, 0.1], "--depth_mults 0.1 leaves no whole layer of 6"),
        ([1.0], [1.0, 0.5, 0.55], "--depth_mults 0.55 leaves 3 of 6 layers, as another one does"),
        ([1.0, 1.0], [1.0], "--width_mults 1 leaves 12 of 12 heads, as another one does"),
    ],
)
def test_multipliers_that_make_no_sense_are_refused(widths, depths, message):
    config = types.SimpleNamespace(model_type="bert", num_hidden_layers=6, num_attention_heads=12, intermediate_size=90)
    with pytest.raises(ValueError, match=message):
        dynabert.sizes(config, widths, depths)


# --- rewiring ------------------------------------------------------------------------------------------------------


def test_importance_is_the_first_order_change_of_each_examples_loss(model):
    """Against difference quotients in float64: what a head or neuron puts out is shrunk by shrinking what reads it."""
    model.double()
    found, step = dynabert.importance(model, [BATCH], each_loss), 1e-6
    with torch.no_grad():
        before = each_loss(model, BATCH)
        for layer, (heads, neurons) in zip(families.encoder_layers(model), found, strict=True):
            parts = families.layer_parts(layer, model.config)
            for weight, importances, size in ((parts["attended"].weight, heads, 6), (parts["down"].weight, neurons, 1)):
                for i in range(0, len(importances), 3 if size > 1 else 11):
                    kept = weight[:, i * size : (i + 1) * size].clone()
                    weight[:, i * size : (i + 1) * size] *= 1 - step
                    change = (before - each_loss(model, BATCH)).abs().sum() / step
                    weight[:, i * size : (i + 1) * size] = kept
                    assert importances[i].item() == pytest.approx(change.item(), rel=1e-3, abs=1e-6)


def test_importance_does_not_depend_on_the_batches(model):
    one = dynabert.importance(model, [BATCH], each_loss)
    batches = [{k: v[i : i + 1] for k, v in BATCH.items()} for i in range(6)]
    labels = iter(LABELS)
    many = dynabert.importance(
        model,
        batches,
        lambda m, b: F.cross_entropy(
            m(**model_outputs.model_inputs(m, b)).logits, next(labels)[None], reduction="none"
        ),
    )
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(a[1], b[1], rtol=1e-3, atol=1e-6)


def test_a_rewired_network_computes_the_same_in_another_order(model):
    before = logits(model)
    found = dynabert.importance(model, [BATCH], each_loss)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    dynabert.rewire(model, found)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for heads, neurons in dynabert.importance(model, [BATCH], each_loss):  # sorted, and each moved with what it was
        torch.testing.assert_close(heads, heads.sort(descending=True).values, rtol=1e-2, atol=1e-5)
        torch.testing.assert_close(neurons, neurons.sort(descending=True).values, rtol=1e-2, atol=1e-5)


# --- sub-networks --------------------------------------------------------------------------------------------------


def masked(model, size):
    """The sub-network the long way round: a full network with zeros for what is left out, and its layers dropped."""
    twin = type(model)(model.config).eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer in families.encoder_layers(twin):
            parts = families.layer_parts(layer, model.config)
            parts["attended"].weight[:, size.heads * 6 :] = 0
            parts["down"].weight[:, size.neurons :] = 0
    stack = families.encoder_layers(twin)
    for i in sorted(set(range(4)) - set(size.layers), reverse=True):
        del stack[i]
    return twin


def test_a_sub_network_is_a_slice_and_its_export_the_same(model):
    dynabert.make_dynamic(model)
    full = logits(model)
    for size in dynabert.sizes(model.config, [1.0, 0.5, 0.25], [1.0, 0.75, 0.5]):
        dynabert.resize(model, size)
        found = logits(model)
        torch.testing.assert_close(found, logits(masked(model, size)), rtol=1e-4, atol=1e-5)
        small = dynabert.extract(model, size)
        torch.testing.assert_close(found, logits(small), rtol=1e-5, atol=1e-6)
        hidden = model(**model_outputs.model_inputs(model, BATCH), output_hidden_states=True).hidden_states
        assert len(hidden) == len(size.layers) + 1
        shapes = {
            name: tuple(part.weight.shape)
            for layer in families.encoder_layers(small)
            for name, part in families.layer_parts(layer, small.config).items()
        }
        inner, neurons = size.heads * 6, size.neurons
        assert shapes == {
            "query": (inner, 24),
            "key": (inner, 24),
            "value": (inner, 24),
            "attended": (24, inner),
            "up": (neurons, 24),
            "down": (24, neurons),
        }
    dynabert.resize(model)
    assert torch.equal(logits(model), full)


def test_a_student_is_cut_from_a_narrow_sub_network(model, tmp_path):
    size = dynabert.sizes(model.config, [1.0, 0.5], [1.0])[0]
    small, auto = dynabert.extract(model, size), AutoModelForSequenceClassification
    student = students.build_student(small, auto, {"layers": 2}).eval()
    source = families.encoder_layers(small)[1].state_dict()
    copied = families.encoder_layers(student)[0].state_dict()
    assert all(torch.equal(value, source[name]) for name, value in copied.items())
    student.save_pretrained(tmp_path)
    loaded, missing = models.load_model(tmp_path, auto)
    assert not missing and torch.equal(logits(loaded), logits(student))
    assert cost.describe(loaded, 9)["heads"] == 2
    whole = students.build_student(small, auto, {"layers": 2, "heads": 4})
    assert type(whole) is type(model) and not hasattr(whole.config, "kept_heads")
    with pytest.raises(ValueError, match="the student has 4 heads and the teacher 2"):
        losses.check_terms(["attention_mse"], [(1, 1)], model.config, small.config)


def test_gradients_are_those_of_the_slice(model):
    dynabert.make_dynamic(model)
    size = dynabert.sizes(model.config, [1.0, 0.5], [1.0, 0.5])[0]
    small = dynabert.extract(model, size)
    for each in (model, small):
        dynabert.resize(each, size) if each is model else None
        each_loss(each, BATCH).sum().backward()
    wide, narrow = families.encoder_layers(model), families.encoder_layers(small)
    dynabert.resize(model)
    for i, layer in enumerate(wide):
        parts = families.layer_parts(layer, model.config)
        for name, part in parts.items():
            if i not in size.layers:
                assert part.weight.grad is None
                continue
            theirs = families.layer_parts(narrow[size.layers.index(i)], small.config)[name].weight.grad
            rows, columns = theirs.shape
            torch.testing.assert_close(part.weight.grad[:rows, :columns], theirs, rtol=1e-4, atol=1e-5)
            assert not part.weight.grad[rows:].any() and not part.weight.grad[:, columns:].any()


def test_dynaberts_own_objective_is_the_papers():
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    states = [tuple(torch.randn(2, 4, 5) for _ in range(n)) for n in (3, 5)]
    views = [
        losses.ModelView({"hidden_states": h}, layers, mask)
        for h, layers in zip(states, ((0, 1, 2), (0, 2, 4)), strict=True)
    ]
    real = mask.bool()
    expected = sum(F.mse_loss(states[0][s][real], states[1][t][real]) for s, t in ((0, 0), (1, 2), (2, 4)))
    found = losses.TERMS["dynabert_mse"](*views, None, None)
    torch.testing.assert_close(found, expected)


# --- the script ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(world):
    """Run distill_dynabert.py in this process on the artificial CoLA; later options overrule the defaults here."""

    def run(*options):
        run_script(
            distill_dynabert,
            [
                *(
                    f"--task cola --data_dir {world}/glue --max_train_samples 48 --max_eval_samples 24 "
                    "--num_train_epochs 1 --per_device_train_batch_size 16 --max_seq_length 32 "
                    "--logging_steps 1"
                ).split(),
                *map(str, options),
            ],
        )

    return run


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_the_stages_and_an_export(run, teacher, tmp_path, capsys, monkeypatch):
    passes = []
    load = distill_dynabert.distill_finetune.load_everything

    def counted(args):
        """The models of load_everything, the teacher counting its passes with gradients off in training."""
        loaded = load(args)
        if loaded.teacher:
            loaded.teacher.register_forward_hook(lambda model, inputs, out: passes.append(len(out["logits"])))
        return loaded

    monkeypatch.setattr(distill_dynabert.distill_finetune, "load_everything", counted)
    width, depth = ("--width_mults", 1, 0.5), ("--depth_mults", 1, 0.5)
    run("--teacher", teacher, *width, "--output_dir", tmp_path / "width")
    found = record(tmp_path / "width")
    assert passes.count(16) == found["steps"] == 3  # once a batch, whatever the number of widths; others: figures
    assert found["stage"] == "dynabert" and [row["width"] for row in found["subnetworks"]] == [1.0, 0.5]
    assert found["best"]["score"] == pytest.approx(sum(row["score"] for row in found["subnetworks"]) / 2)
    passes.clear()
    run("--teacher", tmp_path / "width", *width, *depth, "--terms", "dynabert", "--output_dir", tmp_path / "depth")
    found = record(tmp_path / "depth")
    assert passes.count(16) == 3 and found["options"]["terms"] == {"logits": 1.0, "dynabert_mse": 1.0}
    sizes = [(row["width"], row["depth"], row["heads"], row["layers"]) for row in found["subnetworks"]]
    assert sizes == [(1.0, 1.0, 4, 4), (0.5, 1.0, 2, 4), (1.0, 0.5, 4, 2), (0.5, 0.5, 2, 2)]
    flops = [row["flops_per_sequence"] for row in found["subnetworks"]]
    assert flops[0] > flops[1] > flops[3] and flops[0] > flops[2] > flops[3]
    assert all(row["latency"]["student_ms"]["1"] > 0 for row in found["subnetworks"])
    run("--student", tmp_path / "depth", *width, *depth, "--output_dir", tmp_path / "labels")
    assert record(tmp_path / "labels")["name"] == "dynabert-labels"
    capsys.readouterr()
    run("--student", tmp_path / "depth", *width, *depth, "--output_dir", tmp_path / "labels")
    assert "complete already" in capsys.readouterr().out
    folders = [str(tmp_path / name) for name in ("width", "depth", "labels")]
    report.main([*folders, "--output_dir", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "minus dynabert-labels" in text  # which has the sizes of dynabert-depth, not those of ckd-width
    assert "minus ckd-width" not in text and (tmp_path / "out" / "report_dynabert.png").is_file()
    row = next(line for line in text.splitlines() if "| dynabert-depth" in line and "| 0.5 " in line)
    shown = [f"{100 * size['score']:.1f} (1)" for size in found["subnetworks"] if size["depth"] == 0.5]
    assert [cell.strip() for cell in row.split("|")[3:5]] == shown
    times = text.partition("### Training time and memory: ")[2].splitlines()
    row = next(line for line in times if "| dynabert-depth" in line)
    spent = record(tmp_path / "depth")
    assert [cell.strip() for cell in row.split("|")[2:4]] == [
        f"{spent['time']['train_s']:.1f}",
        f"{spent['max_mem_gb']:.2f}",
    ]
    whole, _ = models.load_model(tmp_path / "labels", AutoModelForSequenceClassification)
    dynabert.make_dynamic(whole)
    for size in dynabert.sizes(whole.config, [1.0, 0.5], [1.0, 0.5]):
        folder = tmp_path / str(size)
        run("--export", tmp_path / "labels", "--width", size.width, "--depth", size.depth, "--output_dir", folder)
        small, _ = models.load_model(folder, AutoModelForSequenceClassification)
        dynabert.resize(whole, size)
        torch.testing.assert_close(logits(small), logits(whole), rtol=1e-4, atol=1e-5)
        if size.width == 1:
            torch.testing.assert_close(
                logits(AutoModelForSequenceClassification.from_pretrained(folder).eval()), logits(small)
            )
        else:
            with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):  # never silently another model
                AutoModelForSequenceClassification.from_pretrained(folder)
    out = capsys.readouterr().out
    assert "4 of 4 layers, 2 of 4 heads" in out and "opens with models.load_model" in out


@pytest.mark.parametrize("call", [1, 4])  # before there is a checkpoint, and after
def test_a_resumed_run_has_the_same_weights(run, teacher, tmp_path, cut_at, call):
    options = ("--teacher", teacher, "--width_mults", 1, 0.5, "--save_steps", 1, "--num_train_epochs", 2)
    run(*options, "--output_dir", tmp_path / "whole")
    cut_at(call)
    with pytest.raises(KeyboardInterrupt):
        run(*options, "--output_dir", tmp_path / "cut")
    run(*options, "--output_dir", tmp_path / "cut")
    assert record(tmp_path / "cut")["time"]["sessions"] == (1 if call == 1 else 2)  # one that saved nothing is none
    a, b = (load_file(tmp_path / f / "checkpoints/step-00000006/model.safetensors") for f in ("whole", "cut"))
    assert a and all(torch.equal(a[k], b[k]) for k in a)


def test_the_cache_of_the_teacher_is_used(run, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(distill_finetune.teacher_cache, "FOLDER", tmp_path / "cache")
    for name, more in (("plain", ()), ("cached", ("--cache_teacher",))):
        run("--teacher", teacher, "--width_mults", 1, 0.5, *more, "--output_dir", tmp_path / name)
    a, b = (record(tmp_path / name)["best"]["score"] for name in ("plain", "cached"))
    assert a == pytest.approx(b, abs=0.2) and any((tmp_path / "cache").iterdir())


def test_differences_are_paired_by_seed():
    """Against scipy's own interval of a mean, on seeds of which the objectives share three."""
    ours, theirs = {1: 0.50, 2: 0.55, 3: 0.61, 4: 0.9}, {1: 0.48, 2: 0.56, 3: 0.52, 5: 0.1}
    runs = pd.DataFrame(
        [
            {"task": "cola", "name": name, "seed": seed, "subnetworks": [{"width": 0.5, "depth": 1.0, "score": score}]}
            for name, scores in (("ckd-width", ours), ("dynabert-width", theirs))
            for seed, score in scores.items()
        ]
    )
    table = subnetworks.long_table(runs)
    found, said = subnetworks.differences(table, ["ckd-width"], "dynabert-width")
    found = found["ckd-width"]
    assert said.startswith("No difference to dynabert-width is significant")
    gaps = [100 * (ours[seed] - theirs[seed]) for seed in (1, 2, 3)]
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert found["width 0.5"].tolist() == [f"{sum(gaps) / 3:+.1f} [{low:+.1f}, {high:+.1f}] (3)"]
    cells = subnetworks.scores(table, report.summary)["ckd-width"]
    assert cells["width 0.5"].tolist() == ["64.0 ± 17.9 (4)"]


def test_sub_networks_scored_on_unlike_dev_sets_are_not_compared(tmp_path, capsys):
    size = {"depth": 1.0, "width": 1.0, "parameters": 10.0, "flops_per_sequence": 2e9, "latency": {"student_ms": {}}}
    runs = [
        make_run(
            name,
            seed=seed,
            stage="dynabert",
            subnetworks=[size | {"score": score + 0.1 * seed}],
            data={"validation": {"examples": count, "sha256": str(count)}},
        )
        for name, score, count in (("a", 0.1, 9), ("b", 0.2, 9), ("c", 0.3, 5))
        for seed in (1, 2)
    ]
    runs.append(make_run("kd", data={"validation": {"examples": 5, "sha256": "5"}}))
    report.main([write(tmp_path, *runs)])
    text = capsys.readouterr().out
    assert "### Sub-networks of cola set 1: minus b" in text and "Sub-networks of cola set 2: minus" not in text
    assert "cola set 1 is 9 examples (a, b); cola set 2 is 5 examples (c)" in " ".join(text.split())
    frame, _ = report.read_runs([tmp_path])
    alone = frame[frame["stage"] == "finetune"]
    drawn = subnetworks.panels(frame[frame["stage"] == "dynabert"], alone)
    names = {
        panel["title"]: set(points["name"].astype(str)) for panel, points, _ in drawn if "GFLOPs" in panel["xlabel"]
    }
    assert names == {"cola set 1": {"a", "b"}, "cola set 2": {"c", "kd"}}


def test_tables_say_what_the_score_is_and_where_a_size_is_missing():
    size = {"depth": 1.0, "score": 0.5, "parameters": 1e6, "flops": 1e9, "ms": 1.0, "1": 1.0, "32": math.nan}
    runs = pd.DataFrame(
        [
            {
                "stage": "dynabert",
                "task": "mrpc",
                "name": name,
                "seed": 1,
                "metric": "accuracy",
                "best": {"metrics": {}},
                "last": {"metrics": {}},
                "subnetworks": [size | {"width": w} for w in (1.0, width)],
            }
            for name, width in (("ckd-width", 0.5), ("dynabert-width", 0.75))
        ]
    )
    heading, table, *_ = subnetworks.tables(runs, None, report.grid_markdown, report.summary)
    assert "mean of F1 and acc x 100" in heading
    kept_last = runs.assign(options=[{"save": "last"}] * 2)
    assert "last checkpoint" in subnetworks.tables(kept_last, None, report.grid_markdown, report.summary)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["method", "depth", "width 1", "width 0.75", "width 0.5"]
    assert rows[2][2:] == ["50.0 (1)", "-", "50.0 (1)"] and rows[3][2:] == ["50.0 (1)", "50.0 (1)", "-"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda run: run.pop("subnetworks"), "subnetworks is missing"),
        (lambda run: run.update(subnetworks=[]), "subnetworks is missing or no list"),
        (lambda run: run["subnetworks"][0].update(width="wide"), "subnetworks.0.width is 'wide'"),
        (lambda run: run["subnetworks"].append(run["subnetworks"][0]), "width 1.0, depth 1.0 twice"),
    ],
)
def test_a_damaged_record_is_named(change, message):
    row = {
        "width": 1.0,
        "depth": 1.0,
        "parameters": 10,
        "flops_per_sequence": 10,
        "score": 0.5,
        "latency": {"student_ms": {"1": 1.0}, "speedup": {"1": 1.0, "32": 1.0}},
    }
    run = {"subnetworks": [row]}
    assert records.subnetworks(run)[0]["flops"] == 10
    change(run)
    with pytest.raises(records.ReportError, match=message):
        records.subnetworks(run)


@pytest.mark.parametrize(
    "options, message",
    [
        ((), "pass --teacher, a run of the task's teacher"),
        (("--teacher", "TEACHER", "--student", "TEACHER"), "--student is for training on the labels"),
        (("--teacher", "TEACHER", "--depth_mults", 1, 0.5), "--depth_mults is for the second stage"),
        (("--student", "TEACHER"), "is no run of this script"),
        (("--teacher", "TEACHER", "--width", 0.5), "--width says what --export writes"),
        (("--teacher", "TEACHER", "--width_mults", 1, 0.1), "leaves no whole head of 4"),
        (("--teacher", "TEACHER", "--width_mults", 0.5), "lacks the full size"),
        (("--teacher", "TEACHER", "--terms", "minilm"), "minilm compares attention heads"),
        (("--teacher", "TEACHER", "--terms", "ckd", "logits=0"), "trains no task head"),
        (("--teacher", "TEACHER", "--layer_map", "0:0,4:4,5:4"), "is outside hidden states"),
        (("--student", "TEACHER", "--terms", "ckd"), "--terms is for distilling from a teacher"),
        (("--student", "TEACHER", "--cache_teacher"), "--cache_teacher keeps what a teacher says"),
        (("--student", "TEACHER", "--label_map", "a=0", "b=1"), "--label_map is for the names of a teacher's labels"),
        (("--task", "ax", "--teacher", "TEACHER"), "no dev set"),
        (("--export", "TEACHER"), "--export needs --output_dir"),
        (("--export", "TEACHER", "--output_dir", "NEW"), "is no run of distill_dynabert.py"),
    ],
)
def test_mistakes_end_before_anything_is_written(run, teacher, tmp_path, options, message):
    options = [str(o).replace("TEACHER", str(teacher)).replace("NEW", str(tmp_path / "new")) for o in options]
    if "--export" not in options:
        options += ["--output_dir", str(tmp_path / "new")]
    with pytest.raises(ValueError, match=message):
        run(*options)
    assert not (tmp_path / "new").exists()


def test_a_teacher_of_another_task_is_refused_with_a_command_that_is_not(run, teacher, world, tmp_path, monkeypatch):
    (tmp_path / "MNLI").mkdir()
    for name in ("train", "dev_matched", "dev_mismatched"):
        (tmp_path / "MNLI" / f"{name}.tsv").write_text(
            "sentence1\tsentence2\tgold_label\n"
            + "".join(f"the dog runs\t{i} dogs run\t{word}\n" for i in range(3) for word in data.TASKS["mnli"].labels)
        )
    with pytest.raises(ValueError, match="was trained on labels") as error:
        run("--task", "mnli", "--data_dir", tmp_path, "--teacher", teacher, "--output_dir", tmp_path / "new")
    _, _, command = str(error.value).partition("python distill_finetune.py ")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google-bert").mkdir()
    (tmp_path / "google-bert" / "bert-base-multilingual-cased").symlink_to(
        world / "bert"
    )  # which cannot be loaded here
    AcceleratorState._reset_state(reset_partial_state=True)
    distill_finetune.main([*command.split(), "--data_dir", ".", "--max_steps", "1"])
    run("--task", "mnli", "--data_dir", ".", "--teacher", "runs/mnli/teacher/seed1", "--max_steps", 1)
    for script, cut in ((distill_dynabert, ()), (distill_finetune, ("--student_layers", "2"))):
        with pytest.raises(
            ValueError, match=r"distill_finetune.py --task custom \.\.\. --student google-bert/bert-base-multi"
        ):
            AcceleratorState._reset_state(reset_partial_state=True)
            script.main(
                [
                    "--task",
                    "custom",
                    "--teacher",
                    str(teacher),
                    *cut,
                    "--train_file",
                    str(three(tmp_path)),
                    "--validation_file",
                    str(three(tmp_path)),
                ]
            )


def three(folder):
    """A file of three classes in the folder."""
    path = folder / "three.csv"
    path.write_text("text,label\na,x\nb,y\nc,z\n")
    return path


def test_a_type_whose_heads_are_not_known_is_refused(run, world, tmp_path):
    config = ModernBertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, pad_token_id=0
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "modern")
    with pytest.raises(ValueError, match="whose heads and neurons are not known here: take a model of type bert"):
        run("--teacher", tmp_path / "modern", "--output_dir", tmp_path / "new")


def test_heads_are_not_sorted_by_texts_without_labels(teacher, tmp_path):
    words = ["acceptable", "unacceptable"] * 4
    (tmp_path / "train.csv").write_text("text\n" + "ba bo\n" * 8)
    (tmp_path / "dev.csv").write_text("text,label\n" + "".join(f"ba bo,{word}\n" for word in words))
    with pytest.raises(ValueError, match="which the training texts lack"):
        distill_dynabert.main(
            (
                f"--task custom --train_file {tmp_path}/train.csv --validation_file {tmp_path}/dev.csv "
                f"--teacher {teacher} --output_dir {tmp_path}/new"
            ).split()
        )
    assert not (tmp_path / "new").exists()


def test_an_export_of_what_was_not_trained_or_over_something_is_refused(run, teacher, tmp_path):
    run("--teacher", teacher, "--width_mults", 1, 0.5, "--max_steps", 1, "--output_dir", tmp_path / "width")
    with pytest.raises(ValueError, match=r"--width 0.25 was not trained in .*: take one of 1, 0.5"):
        run("--export", tmp_path / "width", "--width", 0.25, "--output_dir", tmp_path / "new")
    with pytest.raises(ValueError, match=r"--depth 0.5 was not trained"):
        run("--export", tmp_path / "width", "--depth", 0.5, "--output_dir", tmp_path / "new")
    with pytest.raises(ValueError, match="is there already"):
        run("--export", tmp_path / "width", "--output_dir", teacher)
    run("--export", tmp_path / "width", "--width", 0.5, "--output_dir", tmp_path / "small")
    with pytest.raises(ValueError, match="is an exported sub-network"):
        run("--teacher", tmp_path / "small", "--output_dir", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["bert", "distilbert"])  # the latter takes no token types, which the tokenizer makes
def test_onnx_says_what_torch_says(run, teacher, tmp_path, capsys, kind):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    config = CONFIGS[kind].__class__(**CONFIGS[kind].to_dict() | {"vocab_size": len(tokenizer)})
    config.dynabert = {"width_mults": [1.0, 0.5], "depth_mults": [1.0]}
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "width")
    tokenizer.save_pretrained(tmp_path / "width")
    run("--export", tmp_path / "width", "--width", 0.5, "--output_dir", tmp_path / "small")
    onnx.main([str(tmp_path / "small")])
    assert (tmp_path / "small" / "model.onnx").is_file() and "ONNX Runtime differ" in capsys.readouterr().out
