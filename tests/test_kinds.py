"""Several labels a text: GoEmotions, the user's own files, binary KL, scores at both thresholds, whole runs. Pairs of
texts compared by the cosine of their vectors, relations between sentences, folders of sentence encoders.
"""

import argparse
import json
import math
import random

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import forked
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from safetensors.torch import load_file
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, f1_score
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import data
import distill_finetune
import losses
import metrics
import relations
from encoders import layer_maps
from tasks import kinds, readers, similarity

NAMES = "joy\nanger\nlove\n"
ROWS = 'good, really\t0,2\tid1\nbad "quoted\t1\tid2\nso so\t2\tid3\n'


def emotions(tmp_path, train=ROWS, names=NAMES, **more):
    folder = tmp_path / "goemotions"
    folder.mkdir(exist_ok=True)
    for name, text in (("labels.txt", names), ("train.tsv", train), ("dev.tsv", ROWS), ("test.tsv", ROWS)):
        (folder / name).write_text(text)
    return argparse.Namespace(
        **{
            "task": "goemotions",
            "kind": None,
            "regression": False,
            "data_dir": str(tmp_path),
            "max_train_samples": 0,
            "max_eval_samples": 2,
            **more,
        }
    )


def test_goemotions_as_its_authors_publish_it(tmp_path):
    args = emotions(tmp_path)
    for args.data_dir in (str(tmp_path), str(tmp_path / "goemotions")):
        task, splits = data.load_examples(args, readers.Skipped())
        assert task.labels == ("joy", "anger", "love")
        assert {k: len(v) for k, v in splits.items()} == {"train": 3, "validation": 2, "test": 3}
        assert splits["train"]["label"] == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
        assert splits["test"]["label"] == [-1] * 3 and splits["train"]["text_a"][1] == 'bad "quoted'


@pytest.mark.parametrize(
    "train, names, said",
    [
        ("a\t0\tx\nb\t1,3\ty\n", NAMES, r"train.tsv, line 2: labels.txt has no label with id '3', only 0 to 2"),
        ("a\t0\tx\nb\t-1\ty\n", NAMES, "line 2: labels.txt has no label with id '-1'"),
        ("a\t0\tx\nb\tjoy\ty\n", NAMES, "line 2: labels.txt has no label with id 'joy'"),
        ("a\t0\tx\nb\t\ty\n", NAMES, "line 2: labels.txt has no label with id ''"),
        ("a\t0\tx\nb\t1,1\ty\n", NAMES, "line 2: '1,1', cut at ',', holds a label twice"),
        ("a\t0\tx\n \t1\ty\n", NAMES, "line 2: the text is empty"),
        ("a\t0\tx\nb\t1\n", NAMES, "line 2: 2 columns where 3 are due"),
        (ROWS, "joy\njoy\n", "labels.txt: a label's name is blank or comes twice"),
        ("", NAMES, "train.tsv: the file is empty"),
    ],
)
def test_a_broken_line_is_named(tmp_path, train, names, said):
    with pytest.raises(ValueError, match=said) as error:
        data.load_examples(emotions(tmp_path, train, names), readers.Skipped())
    assert "\n" not in str(error.value)


def test_skipped_lines_are_counted_and_keep_their_place(tmp_path):
    skipped = readers.Skipped(True)
    _, splits = data.load_examples(emotions(tmp_path, "a\t0\tx\nb\t9\ty\nc\t1,1\tz\nd\t2\tz\n"), skipped)
    assert splits["train"]["text_a"] == ["a", "d"] and splits["train"]["idx"] == [0, 3] and len(skipped.reports) == 2


def test_goemotions_from_the_hub(tmp_path, monkeypatch):
    features = Features(
        {"text": Value("string"), "labels": List(ClassLabel(names=NAMES.split())), "id": Value("string")}
    )
    rows = Dataset.from_dict({"text": ["a", "b"], "labels": [[2, 0], [1]], "id": ["x", "y"]}, features=features)
    monkeypatch.setattr(data, "load_hub", lambda hub: DatasetDict({"train": rows, "validation": rows, "test": rows}))
    task, splits = data.load_examples(emotions(tmp_path, data_dir=None), readers.Skipped())
    assert task.labels == tuple(NAMES.split()) and splits["train"]["label"] == [[1, 0, 1], [0, 1, 0]]
    assert splits["test"]["label"] == [-1, -1] and splits["test"]["idx"] == [0, 1]


def own(tmp_path, rows, separator=";", dev="text,label\nx,a\n"):
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    (tmp_path / "dev.csv").write_text(dev)
    return argparse.Namespace(
        task="custom",
        kind="multilabel",
        regression=False,
        label_separator=separator,
        text_columns=["text"],
        label_column="label",
        train_file=str(tmp_path / "train.csv"),
        validation_file=str(tmp_path / "dev.csv"),
        test_file=None,
        max_train_samples=0,
        max_eval_samples=0,
        hub_dataset=None,
        metrics=[],
    )


def test_own_files(tmp_path):
    task, splits = data.load_examples(own(tmp_path, "x,b; a\ny,\nz,c\n"), readers.Skipped())
    assert task.labels == ("a", "b", "c") and task.kind == "multilabel"
    assert splits["train"]["label"] == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    "rows, said",
    [
        ("x,a;;b\n", "train.csv, line 2: 'a;;b', cut at ';', holds an empty label"),
        ("x,a;b\ny,b;b\n", "line 3: 'b;b', cut at ';', holds a label twice"),
        ("x,a\ny,a\n", "holds only the label"),
        ("x,a;b\ny,1;1.0\n", "line 3: the label '1.0' is written '1' in line 3"),
    ],
)
def test_own_broken_lines(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said):
        data.load_examples(own(tmp_path, rows), readers.Skipped())
    with pytest.raises(ValueError, match=r"dev.csv, line 2: unknown label 'q'"):
        data.load_examples(own(tmp_path, "x,a;b\n", dev="text,label\nx,a;q\n"), readers.Skipped())


@pytest.mark.parametrize("separator", [";", "|"])
def test_labels_with_another_separator_are_no_labels_of_their_own(tmp_path, separator):
    rows = f"x,a{separator} b\ny,b\nz,a{separator}c\n"
    args = own(tmp_path, rows)
    args.label_separator = ","
    with pytest.raises(ValueError, match=rf"and 2 hold '\{separator}': pass --label_separator '\{separator}'"):
        data.load_examples(args, readers.Skipped())


# --- losses and scores ----------------------------------------------------------------------------------------------


def test_the_logits_term_is_the_binary_kl():
    torch.manual_seed(0)
    kind, args = kinds.KINDS["multilabel"](data.TASKS["goemotions"]), argparse.Namespace(temperature=3.0)
    student, teacher = torch.randn(2, 6, 5) * 4
    teacher[0, 0], student[0, 0] = 60.0, -60.0
    student = student.double().float().requires_grad_()
    views = [losses.ModelView({"logits": x}, (), None, kind=kind) for x in (student, teacher)]
    soft = kind.soft_loss(*views, {}, args)
    p, q = (torch.distributions.Bernoulli(logits=x.double() / 3) for x in (teacher, student))
    torch.testing.assert_close(soft.double(), 9 * torch.distributions.kl_divergence(p, q).mean())
    assert torch.autograd.grad(soft, student)[0].isfinite().all()
    labels = torch.randint(2, (6, 5))
    chances = student.double().sigmoid()
    by_hand = -(labels * chances.log() + (1 - labels) * (-student.double()).sigmoid().log()).mean()
    torch.testing.assert_close(kind.hard_loss(student, labels).double(), by_hand)
    assert kind.hard_loss(student[:0], labels[:0]).item() == 0


@pytest.mark.parametrize("degenerate", ["no", "a label missing", "no label at all", "constant", "one example"])
def test_scores_are_scikit_learns(degenerate):
    torch.manual_seed(1)
    logits, labels = torch.randn(40, 4), torch.randint(2, (40, 4))
    logits += 1.5 * labels
    if degenerate == "a label missing":
        labels[:, 2] = 0
    elif degenerate == "no label at all":
        labels[:] = 0
    elif degenerate == "constant":
        logits[:] = 0.25
    elif degenerate == "one example":
        logits, labels = logits[:1], labels[:1]
    got = metrics.label_set_metrics(logits, labels)
    y, chances = labels.numpy(), logits.double().sigmoid().numpy()

    def f1(limit, average):
        return f1_score(y, chances >= limit, average=average, zero_division=0)

    for average in ("micro", "macro"):
        assert got[f"{average}_f1_at_0.5"] == f1(0.5, average)
        assert got[f"{average}_f1"] == f1(got["threshold"], average)
    assert got["micro_f1"] == pytest.approx(max(f1(limit, "micro") for limit in np.unique(chances)))
    with pytest.warns() if "label" in degenerate or degenerate == "one example" else np.errstate():
        assert got["mean_average_precision"] == pytest.approx(average_precision_score(y, chances))
    assert all(np.isfinite(value) and 0 <= value <= 1 for value in got.values())


def test_logits_that_are_not_finite_are_not_scored():
    logits = torch.zeros(3, 2)
    logits[1, 0] = float("nan")
    with pytest.raises(ValueError, match="the first for example 1"):
        metrics.label_set_metrics(logits, torch.ones(3, 2, dtype=torch.long))


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def world_of_labels(tmp_path):
    """GoEmotions of the artificial language: each label is a word that stands in the text."""
    draw, words = random.Random(0), ("dog", "cat", "bird")
    folder = tmp_path / "goemotions"
    folder.mkdir()
    (folder / "labels.txt").write_text("\n".join(words) + "\n")
    for name, count in (("train", 64), ("dev", 24), ("test", 8)):
        rows = []
        for i in range(count):
            chosen = sorted(draw.sample(range(3), draw.choice((1, 1, 2))))
            text = " and ".join(f"the {words[j]} runs" for j in chosen)
            rows.append(f"{text} .\t{','.join(map(str, chosen))}\tid{i}\n")
        (folder / f"{name}.tsv").write_text("".join(rows))
    return tmp_path


def test_a_whole_run(world, world_of_labels, tmp_path):
    def run(name, *options):
        AcceleratorState._reset_state(reset_partial_state=True)
        distill_finetune.main(
            [
                *(
                    f"--task goemotions --data_dir {world_of_labels} --per_device_train_batch_size 16 "
                    "--max_seq_length 24 --learning_rate 2e-3 --logging_steps 2 "
                    f"--output_dir {tmp_path}/{name}"
                ).split(),
                *map(str, options),
            ]
        )
        return json.loads((tmp_path / name / "run.json").read_text())

    teacher = run("teacher", "--student", world / "bert", "--num_train_epochs", "4")
    record = run(
        "run",
        *(
            f"--teacher {tmp_path}/teacher --student_layers 2 --terms ckd --hard_weight 0.5 "
            "--num_train_epochs 1 --do_predict"
        ).split(),
    )
    best = record["best"]["metrics"]
    assert set(best) == {
        "micro_f1",
        "macro_f1",
        "micro_f1_at_0.5",
        "macro_f1_at_0.5",
        "threshold",
        "mean_average_precision",
    }
    assert record["best"]["score"] == pytest.approx((best["micro_f1"] + best["macro_f1"]) / 2)
    assert teacher["best"]["metrics"]["mean_average_precision"] > 0.6
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.problem_type == "multi_label_classification" and model.config.id2label[2] == "bird"
    assert model.config.threshold == best["threshold"]
    lines = (tmp_path / "run" / "predictions.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and [line.split("\t")[0] for line in lines[1:]] == [str(i) for i in range(8)]
    assert {word for line in lines[1:] for word in line.split("\t")[1].split(",")} <= {"dog", "cat", "bird", ""}
    assert "mean_average_precision" in (tmp_path / "run" / "README.md").read_text()


# --- similarity ------------------------------------------------------------------------------------------------------


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
