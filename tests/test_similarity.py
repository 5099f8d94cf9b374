"""Pairs of texts compared by the cosine of their vectors, relations between sentences, folders of sentence encoders."""

import json
import math
import random

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import forked
from safetensors.torch import load_file
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer

import distill_finetune
import losses
import relations
from encoders import layer_maps
from tasks import similarity


@pytest.fixture
def encoder(world, tmp_path):
    """Folder of an encoder without any head."""
    torch.manual_seed(3)
    AutoModel.from_pretrained(world / "bert").save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(world / "bert").save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def files(world, tmp_path):
    """Pairs with a score from 1 to 5, as tsv, and texts alone, a line each with a blank one between."""
    lines = [line.split("\t")[3] for line in (world / "glue" / "CoLA" / "train.tsv").read_text().splitlines()[:60]]
    rng = random.Random(0)
    rows = [(rng.choice(lines), rng.choice(lines), f"{rng.uniform(1, 5):.2f}") for _ in range(40)]
    (tmp_path / "pairs.tsv").write_text("one\ttwo\tscore\n" + "".join("\t".join(row) + "\n" for row in rows))
    (tmp_path / "texts.txt").write_text("\n\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def run(files, encoder):
    """Run distill_finetune.py on the pairs; later options overrule the defaults here."""

    def call(*options):
        AcceleratorState._reset_state(reset_partial_state=True)
        distill_finetune.main(
            list(
                map(
                    str,
                    [
                        *(
                            f"--task custom --kind similarity --train_file {files}/pairs.tsv "
                            f"--validation_file {files}/pairs.tsv --text_columns one two --label_column score "
                            "--max_seq_length 32 --per_device_train_batch_size 8 --max_steps 6 --logging_steps 2"
                        ).split(),
                        *options,
                    ],
                )
            )
        )

    return call


def vectors_of(folder, texts, prefix="", first=False):
    """Pooled by hand, a text at a time: no padding, no mask."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        ids = tokenizer(prefix + text, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            states = model(**ids).last_hidden_state[0]
        found.append(states[0] if first else states.mean(0))
    return torch.stack(found)


def expected_score(folder, files, **options):
    """Spearman of the cosines by SciPy."""
    rows = [line.split("\t") for line in (files / "pairs.tsv").read_text().splitlines()[1:]]
    one, two = (vectors_of(folder, [row[i] for row in rows], **options).double() for i in (0, 1))
    cosines = (one * two).sum(1) / one.norm(dim=1) / two.norm(dim=1)
    return spearmanr(cosines.numpy(), [float(row[2]) for row in rows]).statistic


def test_trained_on_scores_and_scored_as_by_hand(run, files, encoder, tmp_path):
    run(
        "--student",
        encoder,
        "--text_prefix",
        "the ",
        "--learning_rate",
        "1e-3",
        "--output_dir",
        tmp_path / "run",
        "--save",
        "last",
        "--do_predict",
        "--test_file",
        files / "pairs.tsv",
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["last"]["score"] == pytest.approx(expected_score(tmp_path / "run", files, prefix="the "), abs=1e-6)
    before = AutoModel.from_pretrained(encoder).state_dict()
    after = AutoModel.from_pretrained(tmp_path / "run").state_dict()
    assert not torch.equal(before["encoder.layer.0.output.dense.weight"], after["encoder.layer.0.output.dense.weight"])
    lines = (tmp_path / "run" / "predictions.tsv").read_text().splitlines()
    assert len(lines) == 41 and lines[40].startswith("39\t")
    rows = [line.split("\t") for line in (files / "pairs.tsv").read_text().splitlines()[1:]]
    one, two = (vectors_of(tmp_path / "run", [rows[7][i]], "the ") for i in (0, 1))
    assert float(lines[8].split("\t")[1]) == pytest.approx(float((one * two).sum() / one.norm() / two.norm()), abs=1e-5)


@pytest.mark.parametrize("terms", ["kd", "ckd sentence_pair=1 sentence_triple=10"])
def test_distilled_on_pairs_with_and_without_the_cache_alike(run, encoder, tmp_path, terms, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    for name, more in (("live", []), ("cached", ["--cache_teacher"])):
        run(
            *f"--teacher {encoder} --student_layers 2 --terms".split(),
            *terms.split(),
            "--output_dir",
            tmp_path / name,
            *more,
        )
        found.append(json.loads((tmp_path / name / "run.json").read_text())["best"]["score"])
    assert found[0] == pytest.approx(found[1], abs=0.02)


def test_distilled_on_texts_alone_by_relations(run, files, encoder, tmp_path):
    options = (
        f"--teacher {encoder} --student_layers 2 --student_hidden 16 --student_heads 2 "
        "--student_intermediate 32 --terms ckd logits=0 sentence_pair=1 sentence_triple=10 "
        f"--learning_rate 1e-2 --max_steps 30 --train_file {files}/texts.txt "
        f"--output_dir {tmp_path}/run"
    ).split()
    run(*options)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["train_examples"] == 60 and record["status"] == "complete"
    assert record["best"]["score"] == pytest.approx(expected_score(tmp_path / "run", files), abs=1e-6)


def test_an_interrupted_run_ends_with_the_same_weights(run, encoder, tmp_path, cut_at, monkeypatch):
    options = (f"--teacher {encoder} --student_layers 2 --terms kd --save last --save_steps 2 --output_dir").split()
    run(*options, tmp_path / "whole")
    cut_at(4)
    with pytest.raises(KeyboardInterrupt):
        run(*options, tmp_path / "cut")
    monkeypatch.undo()
    run(*options, tmp_path / "cut")
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert not any("pooler" in name for name in whole) and all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--text_columns", "one"], "compares two texts: name both columns"),
        (["--train_file", "texts.txt"], "logits compares cosines of pairs"),
        (
            ["--train_file", "texts.txt", "--terms", "ckd", "logits=0", "--hard_weight", "1"],
            "single texts without labels",
        ),
        (["--train_file", "texts.txt", "--held_out", "0.2", "--terms", "ckd", "logits=0"], "held_out needs labels"),
        (["--metrics", "accuracy"], "accuracy' is not a metric of similarity"),
    ],
)
def test_what_cannot_be_is_one_line(files, encoder, options, said, monkeypatch):
    monkeypatch.chdir(files)
    status, stderr = forked(
        distill_finetune,
        *(
            "--task custom --kind similarity --train_file pairs.tsv --validation_file pairs.tsv "
            "--text_columns one two --label_column score --teacher encoder --student_layers 2"
        ).split(),
        *options,
    )
    assert status == 2 and said in stderr and len(stderr.splitlines()) == 1, stderr
    assert not (files / "runs").exists()


def test_a_prefix_is_for_pairs_only(world, finetune):
    with pytest.raises(ValueError, match="--text_prefix is for --kind similarity"):
        finetune("--student", world / "bert", "--text_prefix", "query: ")


class TestPooling:
    def test_padding_and_an_empty_text_count_nothing(self):
        torch.manual_seed(0)
        hidden, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 0, 0, 0], [1] * 5, [0] * 5])
        hidden[0, 2:], hidden[2] = math.nan, math.inf
        for form in (mask, mask.bool(), torch.where(mask == 0, -1e30, 0.0)[:, None, None]):
            got = similarity.pooled(hidden, form)
            torch.testing.assert_close(got[0], hidden[0, :2].mean(0))
            torch.testing.assert_close(got[1], hidden[1].mean(0))
            assert not got[2].any()
            got = similarity.pooled(hidden, form, "cls")
            assert torch.equal(got[:2], hidden[:2, 0]) and not got[2].any()
        assert similarity.cosines(torch.zeros(2, 4)).tolist() == [0.0]

    def test_what_is_saved_is_read_again_and_a_teacher_passes_its_own_on(self, run, encoder, files, tmp_path):
        similarity.save_pooling(encoder, encoder, 32, "cls", 64)
        modules = json.loads((encoder / "modules.json").read_text())
        modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
        (encoder / "modules.json").write_text(json.dumps(modules))
        run("--teacher", encoder, "--student_layers", "2", "--terms", "kd", "--output_dir", tmp_path / "run")
        folder = tmp_path / "run"
        assert similarity.pooling_of(encoder) == similarity.pooling_of(folder) == "cls"
        kinds = [module["type"].split(".")[-1] for module in json.loads((folder / "modules.json").read_text())]
        assert kinds == ["Transformer", "Pooling", "Normalize"] and (folder / "2_Normalize").is_dir()
        record = json.loads((folder / "run.json").read_text())
        assert record["best"]["score"] == pytest.approx(expected_score(folder, files, first=True), abs=1e-6)

    @pytest.mark.parametrize(
        "modules, config, said",
        [
            (["Transformer", "Pooling", "Dense"], {}, "has a layer Dense after its encoder"),
            (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "pools in an unknown way"),
            (
                ["Transformer", "Pooling"],
                {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
                "pools in",
            ),
        ],
    )
    def test_another_pooling_is_refused(self, tmp_path, modules, config, said):
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
        (tmp_path / "modules.json").write_text(
            json.dumps(
                [
                    {"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
                    for i, kind in enumerate(modules)
                ]
            )
        )
        with pytest.raises(ValueError, match=said):
            similarity.pooling_of(tmp_path)
        assert similarity.pooling_of(tmp_path / "1_Pooling") == "mean"


class TestRelationsBetweenSentences:
    @pytest.fixture
    def views(self):
        torch.manual_seed(1)
        student = [torch.randn(6, 7, 12, requires_grad=True) for _ in range(3)]
        teacher = [torch.randn(6, 7, 20) for _ in range(5)]
        mask = (torch.arange(7) < torch.tensor([7, 3, 1, 5, 0, 2])[:, None]).long()
        for states in (*student, *teacher):
            states.data[mask == 0] = math.nan
        pairs = layer_maps.LayerPairs([(0, 0), (1, 2), (2, 4)])
        s_layers, t_layers = pairs.sides()
        return (
            losses.ModelView({"hidden_states": student}, s_layers, mask),
            losses.ModelView({"hidden_states": teacher}, t_layers, mask),
        )

    @pytest.mark.parametrize("options", [{}, {"pair_criterion": "mse", "triple_criterion": "huber", "distance": "l2"}])
    @pytest.mark.parametrize("name", ["sentence_pair", "sentence_triple"])
    def test_are_relations_of_the_means_as_defined(self, views, name, options):
        args = relations.Options(**options)
        got = losses.TERMS[name](*views, {}, args)
        sets = []
        for view in views:
            states = view.out["hidden_states"][view.layers[-1]].double()
            there = [(i, int(row.sum())) for i, row in enumerate(view.mask) if row.any()]
            sets.append(torch.stack([states[i, :count].mean(0) for i, count in there]))
        word = name.replace("sentence", "wr")
        criterion = args.pair_criterion if name.endswith("pair") else args.triple_criterion
        expected = relations.as_defined(
            word,
            *(x[None, None] for x in sets),
            torch.ones(1, 5),
            distance=args.distance,
            criterion=criterion,
            window=None,
        )
        torch.testing.assert_close(got.double(), expected.detach(), rtol=1e-4, atol=1e-7)
        got.backward()
        grads = [states.grad for states in views[0].out["hidden_states"]]
        assert grads[0] is None and grads[1] is None and grads[2][views[0].mask == 1].abs().sum() > 0
        assert grads[2].isfinite().all() and not grads[2][views[0].mask == 0].any()

    def test_vectors_by_squared_error(self, views):
        alike = losses.ModelView(
            {"hidden_states": [x[..., :12] for x in views[1].out["hidden_states"]]}, views[1].layers, views[1].mask
        )
        got, each = losses.TERMS["sentence_mse"](views[0], alike, {}, None), []
        for i, count in enumerate(views[0].mask.sum(1).tolist()):
            if count:
                s, t = views[0].out["hidden_states"][2][i, :count], alike.out["hidden_states"][4][i, :count]
                each.append((s.mean(0) - t.mean(0)).square().mean())
        torch.testing.assert_close(got, torch.stack(each).mean())
        got.backward()
        grad = views[0].out["hidden_states"][2].grad
        assert grad.isfinite().all() and not grad[views[0].mask == 0].any()

    def test_a_narrow_student_has_its_vectors_projected(self, run, files, encoder, tmp_path):
        run(
            *(
                f"--teacher {encoder} --student_layers 1 --student_hidden 16 --student_heads 2 "
                f"--terms sentence_mse=1 --train_file {files}/texts.txt --output_dir {tmp_path}/run"
            ).split()
        )
        names = load_file(tmp_path / "run" / "model.safetensors")
        assert names and not any("projection" in name for name in names)

    @pytest.mark.parametrize("name, count", [("sentence_pair", 1), ("sentence_triple", 2)])
    def test_a_batch_without_relations_is_0_with_a_graph(self, views, name, count):
        few = [
            losses.ModelView(
                {"hidden_states": [x[:count] for x in view.out["hidden_states"]]}, view.layers, view.mask[:count]
            )
            for view in views
        ]
        value = losses.TERMS[name](*few, {}, relations.Options())
        assert value.item() == 0 and value.requires_grad
