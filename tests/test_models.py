"""models.py on tiny random models: layer maps, students, teachers' heads, counts, and what is refused."""

import argparse
import contextlib
import functools
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    DistilBertConfig,
    RobertaConfig,
)

import data
import distill_finetune
import models
from encoders import families, label_names, layer_maps, model_outputs, students
from engine import checks, cost, run_folder
from options import add_models
from tasks import kinds, similarity

V, H, FF, P, T = 40, 8, 16, 20, 6  # vocabulary, width, feed-forward width, positions, tokens of a sequence
NO_YES = ("no", "yes")
AUTO = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "qa": AutoModelForQuestionAnswering,
    "mlm": AutoModelForMaskedLM,
}
ONE_NUMBER = kinds.KINDS["regression"].head
CONFIGS = {
    "bert": lambda layers, hidden=H, **more: BertConfig(
        vocab_size=V,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=FF,
        max_position_embeddings=P,
        **more,
    ),
    "roberta": lambda layers, hidden=H, **more: RobertaConfig(
        vocab_size=V,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=FF,
        max_position_embeddings=P,
        type_vocab_size=1,
        **more,
    ),
    "distilbert": lambda layers, hidden=H, **more: DistilBertConfig(
        vocab_size=V, dim=hidden, n_layers=layers, n_heads=2, hidden_dim=FF, max_position_embeddings=P, **more
    ),
}


def make(family="bert", layers=4, kind="classification", scramble=True, **more):
    """A tiny model; scramble draws every parameter anew, so that no two layers share a bias or a norm."""
    torch.manual_seed(0)
    model = AUTO[kind].from_config(CONFIGS[family](layers, **more)).eval()
    if scramble:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.5)
    return model


def batch(tokens=T):
    ids = torch.arange(5, 5 + tokens)[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "labels": torch.tensor([1]),
        "idx": torch.tensor([0]),
    }


def logits(model):
    with torch.no_grad():
        return model.eval()(**model_outputs.model_inputs(model, batch())).logits


def same(one, other):
    """Whether two modules have the same parameters under the same names."""
    one, other = dict(one.named_parameters()), dict(other.named_parameters())
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def one_line(error):
    assert len(str(error.value).splitlines()) == 1
    return True


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# --- layer maps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_student", "n_teacher", "strategy", "pairs"),
    [
        (6, 12, "uniform", [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),
        (3, 6, "uniform", [(0, 0), (1, 2), (2, 4), (3, 6)]),
        (4, 6, "uniform", [(0, 0), (1, 2), (2, 3), (3, 4), (4, 6)]),
        (1, 2, "uniform", [(0, 0), (1, 2)]),
        (2, 1, "uniform", [(0, 0), (1, 0), (2, 1)]),
        (6, 12, "last", [(0, 0), (1, 7), (2, 8), (3, 9), (4, 10), (5, 11), (6, 12)]),
        (3, 6, "last", [(0, 0), (1, 4), (2, 5), (3, 6)]),
        (4, 6, "last", [(0, 0), (1, 3), (2, 4), (3, 5), (4, 6)]),
        (1, 2, "last", [(0, 0), (1, 2)]),
        (6, 12, "first", [(i, i) for i in range(7)]),
        (1, 2, "first", [(0, 0), (1, 1)]),
        (6, 12, "ends", [(0, 0), (3, 6), (6, 12)]),
        (3, 6, "ends", [(0, 0), (1, 3), (3, 6)]),
        (4, 6, "ends", [(0, 0), (2, 3), (4, 6)]),
        (1, 2, "ends", [(0, 0), (1, 2)]),
        (6, 12, "0:0,1:2,6:12", [(0, 0), (1, 2), (6, 12)]),
        (3, 6, "3:6,1:0", [(3, 6), (1, 0)]),
    ],
)
def test_layer_map(n_student, n_teacher, strategy, pairs):
    assert layer_maps.layer_map(n_student, n_teacher, strategy) == pairs


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("middle", "unknown layer map 'middle': choose uniform, last, first, ends, or pairs"),
        ("", "unknown layer map ''"),
        ("0:0,", "unknown layer map"),
        ("0:-1", "unknown layer map"),
        ("0:0\n", "unknown layer map"),
        ("٣:٣", "unknown layer map"),
        ("0:0,7:12", "pair 7:12 is outside hidden states 0 to 6 and 0 to 12 of the models"),
        ("0:13", "pair 0:13 is outside hidden states"),
        ("1:1,1:1", "holds a pair twice"),
    ],
)
def test_impossible_layer_map(strategy, message):
    with pytest.raises(ValueError, match=message) as error:
        layer_maps.layer_map(6, 12, strategy)
    assert one_line(error)


@pytest.mark.parametrize("strategy", ["first", "last"])
def test_layer_map_of_a_student_deeper_than_its_teacher(strategy):
    with pytest.raises(ValueError, match=f"{strategy}.*at least as deep"):
        layer_maps.layer_map(4, 3, strategy)


PAIRS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=4)
EXPLICIT = PAIRS.map(lambda pairs: ",".join(f"{s}:{t}" for s, t in pairs))
WORDS = st.one_of(
    st.sampled_from([*layer_maps.STRATEGIES]), EXPLICIT, st.text("0123:,- ", max_size=12), st.text(max_size=6)
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), WORDS)
def test_any_layer_map_is_refused_or_inside_the_models(n_student, n_teacher, strategy):
    try:
        pairs = layer_maps.layer_map(n_student, n_teacher, strategy)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        assert strategy not in ("uniform", "ends")
        return
    assert pairs
    assert len(set(pairs)) == len(pairs)
    assert all(0 <= s <= n_student and 0 <= t <= n_teacher for s, t in pairs)
    if strategy in layer_maps.STRATEGIES:
        assert pairs[0] == (0, 0)
        assert pairs == sorted(pairs)


def test_aligned_reads_the_depths_and_can_leave_out_the_embeddings():
    student, teacher = make(layers=2), make("distilbert", layers=4)
    assert layer_maps.aligned(student, teacher, "uniform") == [(0, 0), (1, 2), (2, 4)]
    assert layer_maps.aligned(student, teacher, "uniform", no_embeddings=True) == [(1, 2), (2, 4)]
    assert layer_maps.aligned(student, teacher, "0:1,0:0", no_embeddings=True) == [(0, 1)]


# --- students ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_student_config_changes_what_is_asked_for_and_nothing_else(family):
    source = CONFIGS[family](4)
    config = students.student_config(source, layers=2, intermediate=32)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, H, 2)
    student = AUTO["classification"].from_config(config)
    assert len(families.encoder_layers(student)) == 2
    assert {p.shape[0] for p in families.encoder_layers(student)[0].parameters()} == {H, 32}
    assert source.to_dict() == CONFIGS[family](4).to_dict()
    config = students.student_config(source, hidden=12, heads=3)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (4, 12, 3)
    with pytest.raises(ValueError, match="--student_hidden 9 is not a multiple of 2 heads"):
        students.student_config(source, hidden=9)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("init", "copied"), [(None, (2, 4)), ("uniform", (2, 4)), ("first", (1, 2)), ("last", (3, 4))])
def test_student_takes_its_layers_embeddings_and_head_from_the_source(family, init, copied):
    source = make(family)
    student = students.build_student(source, AUTO["classification"], {"layers": 2}, init)
    for layer, number in zip(families.encoder_layers(student), copied, strict=True):
        fits = [i for i, other in enumerate(families.encoder_layers(source), 1) if same(layer, other)]
        assert fits == [number]
    theirs = source.state_dict()
    for name, value in student.state_dict().items():
        assert "layer." in name or torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("family", CONFIGS)
def test_student_of_the_same_depth_is_the_source(family):
    source = make(family, kind="mlm")
    student = students.build_student(source, AUTO["mlm"], {"layers": 4})
    assert same(student, source)
    torch.testing.assert_close(logits(student), logits(source))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert same(source, make(family, kind="mlm"))  # the student's weights are its own


def test_random_copies_nothing():
    source = make()
    student = students.build_student(source, AUTO["classification"], {"layers": 2}, "random")
    theirs = source.state_dict()
    assert not [name for name, value in student.state_dict().items() if torch.equal(value, theirs[name])]


@pytest.mark.parametrize("shape", [{"hidden": 4}, {"intermediate": 32}, {"layers": 2, "hidden": 12, "heads": 3}])
def test_student_of_another_width_starts_at_random_unless_told_otherwise(shape):
    source = make()
    student = students.build_student(source, AUTO["classification"], shape)
    assert not any(same(a, b) for a in families.encoder_layers(student) for b in families.encoder_layers(source))
    assert logits(student).shape == (1, 2)
    with pytest.raises(ValueError, match=r"uniform copies layers .*use --student_init random") as error:
        students.build_student(source, AUTO["classification"], shape, "uniform")
    assert one_line(error)


def test_student_deeper_than_its_source_repeats_layers_in_order():
    source = make(layers=2)
    student = students.build_student(source, AUTO["classification"], {"layers": 5}, "uniform")
    layers, cut = (families.encoder_layers(model) for model in (source, student))
    fits = [[i for i, other in enumerate(layers, 1) if same(layer, other)] for layer in cut]
    assert fits == [[1], [1], [1], [2], [2]]
    with pytest.raises(ValueError, match="at least as deep"):
        students.build_student(source, AUTO["classification"], {"layers": 5}, "last")


def test_copy_weights_names_what_stayed_random():
    source, student = make(kind="mlm"), make(layers=2)
    left = students.copy_weights(student, source, "uniform")
    assert left == ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(
    ("kind", "auto"), [("classification", AutoModelForSequenceClassification), ("mlm", AutoModelForMaskedLM)]
)
@pytest.mark.parametrize("family", CONFIGS)
def test_built_student_saved_and_loaded_again_is_the_same(family, kind, auto, tmp_path):
    student = students.build_student(make(family, kind=kind), AUTO[kind], {"layers": 2})
    student.save_pretrained(tmp_path)
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.num_hidden_layers == 2
    assert same(loaded, student)
    torch.testing.assert_close(logits(loaded), logits(student))
    assert len(families.encoder_layers(AutoModel.from_pretrained(tmp_path))) == 2


# --- loading ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved models: with a head for two named labels, for two nameless ones, for a number, for words, with none."""
    root = tmp_path_factory.mktemp("models")
    named = {"id2label": dict(enumerate(NO_YES)), "label2id": {word: i for i, word in enumerate(NO_YES)}}
    make(layers=2, **named).save_pretrained(root / "named")
    make(layers=2).to(torch.bfloat16).save_pretrained(root / "nameless")
    make(layers=2, num_labels=1).save_pretrained(root / "number")
    make(layers=2, kind="mlm").save_pretrained(root / "mlm")
    BertModel(CONFIGS["bert"](2)).save_pretrained(root / "encoder")
    return root


@pytest.mark.parametrize(
    ("folder", "kind", "labels"),
    [
        ("named", "classification", NO_YES),
        ("nameless", "classification", NO_YES),
        ("number", "regression", ()),
        ("mlm", "mlm", None),
    ],
)
def test_teacher_is_frozen_in_eval_mode_and_float32(folders, folder, kind, labels):
    teacher = models.load_teacher(str(folders / folder), AUTO[kind], labels=labels)
    assert not teacher.training
    assert {(p.requires_grad, p.dtype) for p in teacher.parameters()} == {(False, torch.float32)}
    if labels:
        assert teacher.config.id2label == dict(enumerate(NO_YES))
    saved = AUTO[kind].from_pretrained(folders / folder, dtype=torch.float32)
    torch.testing.assert_close(logits(teacher), logits(saved), rtol=1e-5, atol=1e-5)
    student = students.build_student(teacher, AUTO[kind], {"layers": 1})
    assert {(p.requires_grad, p.dtype) for p in student.parameters()} == {(True, torch.float32)}


@pytest.mark.parametrize(
    ("folder", "kind", "labels", "message"),
    [
        ("encoder", "classification", NO_YES, "no trained task head .*random.*: make one first: TUNE"),
        ("mlm", "classification", NO_YES, "no trained task head"),
        ("mlm", "regression", (), "no trained task head|another number of labels"),
        ("encoder", "qa", None, "no trained task head"),
        ("encoder", "mlm", None, "no trained language-model head"),
        ("named", "mlm", None, "no trained language-model head"),
        (
            "named",
            "classification",
            ("bad", "yes"),
            r"labels \['no', 'yes'\], the task has \['bad', 'yes'\]: say which is which by --label_map no=bad .*TUNE",
        ),
        ("named", "classification", ("no", "yes", "maybe"), r"trained on labels \['no', 'yes'\]"),
        ("nameless", "classification", ("no", "yes", "maybe"), r"trained on labels \['LABEL_0', 'LABEL_1'\]"),
        ("named", "regression", (), "head for another number of labels"),
    ],
)
def test_teacher_without_the_tasks_head_is_refused(folders, folder, kind, labels, message):
    with pytest.raises(ValueError, match=f"--teacher '.*{folder}'.*{message}") as error:
        models.load_teacher(
            str(folders / folder),
            AUTO[kind],
            labels=labels,
            fine_tune_command="TUNE",
            **ONE_NUMBER if kind == "regression" else {},
        )
    assert one_line(error)


@pytest.mark.parametrize(
    "task, stored, order",
    [
        ("cola", "0 1", [0, 1]),
        ("cola", "unacceptable acceptable", [0, 1]),
        ("cola", "Acceptable not-acceptable", [1, 0]),
        ("cola", "NEGATIVE POSITIVE", None),
        ("sst2", "NEGATIVE POSITIVE", [0, 1]),
        ("sst2", "pos neg", [1, 0]),
        ("sst2", "1 0", [1, 0]),
        ("sst2", "positive positive", None),
        ("sst2", "negative neutral positive", None),
        ("mnli", "CONTRADICTION NEUTRAL ENTAILMENT", [2, 1, 0]),
        ("mnli", "contradiction entailment neutral", [1, 2, 0]),
        ("mnli", "LABEL_0 LABEL_1 LABEL_2", [0, 1, 2]),
        ("mnli", "0 1 2", [0, 1, 2]),
        ("mnli", "LABEL_0 neutral LABEL_2", None),
        ("rte", "not_entailment entailment", [1, 0]),
        ("rte", "contradiction entailment", None),
        ("qqp", "duplicate not_duplicate", [1, 0]),
        ("mrpc", "not_equivalent equivalent", [0, 1]),
        ("mrpc", "not_paraphrase paraphrase", [0, 1]),
        ("wnli", "not_entailment entailment", [0, 1]),
        ("conll2003", "O B-MISC I-MISC B-PER I-PER B-ORG I-ORG B-LOC I-LOC", [0, 3, 4, 5, 6, 7, 8, 1, 2]),
    ],
)
def test_label_names_are_matched_by_spelling_order_and_meaning(task, stored, order):
    assert label_names.of(data.TASKS[task]).order(stored.split()) == order


TWELVE = " ".join(map(str, range(12)))


@pytest.mark.parametrize(
    "words, stored, order",
    [
        (TWELVE, " ".join(f"LABEL_{i}" for i in range(12)), [*range(12)]),
        (TWELVE, TWELVE, [*range(12)]),
        (TWELVE, "0 1 10 11 2 3 4 5 6 7 8 9", [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]),  # as older runs have saved them
        ("2 0 1", "LABEL_0 LABEL_1 LABEL_2", [2, 0, 1]),
        ("0.0 1.0 2.0", "LABEL_2 LABEL_1 LABEL_0", [2, 1, 0]),
        ("00 01", "LABEL_0 LABEL_1", [0, 1]),
        ("00 01", "1 0", [1, 0]),
        ("1 2 10", "1.0 2.0 10.0", [0, 1, 2]),
        ("-1 0 1", "LABEL_0 LABEL_1 LABEL_2", [0, 1, 2]),
        ("1 2 3", "LABEL_0 LABEL_1 LABEL_2", [0, 1, 2]),
        ("1 2 3", "0 1 2", None),
        ("-1 0", "1 0", None),
        ("10 100", "1.0 10.0", None),
        ("0 1", "LABEL_1 LABEL_2", None),
        ("0 1 2", "LABEL_0 LABEL_1", None),
        ("bad good", "LABEL_1 LABEL_0", [1, 0]),
        ("no yes", "2 1", [1, 0]),
        ("False True", "LABEL_0 LABEL_1", [0, 1]),
        ("1 nan", "1 NaN", [0, 1]),
    ],
)
def test_numbers_as_labels_are_matched_by_value(words, stored, order):
    own = label_names.of(data.TASKS["custom"]._replace(labels=tuple(words.split())))
    assert own.order(stored.split()) == order


def test_labels_of_ones_own_that_differ_in_little_are_not_mixed_up():
    own = label_names.of(data.TASKS["custom"]._replace(labels=("C", "C++", "c", "bad", "BAD!")))
    assert own.order(["BAD!", "c", "C++", "bad", "C"]) == [4, 2, 1, 3, 0]
    assert own.order(["BAD?", "c", "C++", "bad", "C"]) is None


@pytest.mark.parametrize(
    "words, said",
    [
        (["bad"], "'bad' must be a teacher's label"),
        (["=0"], "must be a teacher's label"),
        (["a=0", "a=1"], "'a=1' must be"),
        (["a=0", "b=2"], "names '2': name each of unacceptable, acceptable"),
        (["a=0", "b=0"], "names '0'"),
    ],
)
def test_a_label_map_that_says_nothing_clear_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        label_names.of(data.TASKS["cola"], words)
    assert label_names.of(data.TASKS["cola"], ["a=b=1", "x=UNACCEPTABLE"]).order(["a=b", "x"]) == [1, 0]


def test_student_gets_a_new_head_and_the_tasks_labels(folders):
    student, missing = models.load_model(str(folders / "encoder"), AUTO["classification"], labels=("a", "b", "c"))
    assert missing == ["classifier.bias", "classifier.weight"]
    assert (student.config.id2label, student.config.label2id["b"]) == ({0: "a", 1: "b", 2: "c"}, 1)
    student, missing = models.load_model(str(folders / "encoder"), AUTO["regression"], **ONE_NUMBER)
    assert (student.config.num_labels, student.config.problem_type) == (1, "regression")
    with pytest.raises(ValueError, match=r"--student '.*named' has a head for another number of labels") as error:
        models.load_model(str(folders / "named"), AUTO["classification"], "--student", labels=("a", "b", "c"))
    assert one_line(error)


LOADERS = {
    "config": lambda name: models.load_config(name, "--teacher"),
    "tokenizer": lambda name: models.load_tokenizer(name, "--teacher"),
    "model": lambda name: models.load_model(name, AUTO["mlm"], "--teacher"),
    "teacher": lambda name: models.load_teacher(name, AUTO["mlm"]),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{root}/none", "is not a folder: check the path"),
        ("./none", "is not a folder"),
        ("a/b/c", "is not a folder"),
        ("nobody/nothing", r"is no local folder and could not be had from the Hugging Face hub .*pass its folder"),
        ("{root}/empty", "could not be loaded: "),
        ("{root}/garbled", "could not be loaded: .*config.json"),
    ],
)
def test_model_that_cannot_be_had(loader, name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbled").mkdir()
    (tmp_path / "garbled" / "config.json").write_text("{\n")
    with pytest.raises(ValueError, match=f"--teacher '{name.format(root=tmp_path)}' {message}") as error:
        LOADERS[loader](name.format(root=tmp_path))
    assert one_line(error)


def test_folders_that_hold_no_model_of_their_own_are_named_with_the_remedy(tmp_path):
    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b", "peft_type": "LORA"}')
    with pytest.raises(
        ValueError, match=r"lora' holds an adapter of PEFT .LoRA.*merge_and_unload.*model is a/b"
    ) as error:
        models.load_config(str(adapter), "--teacher")
    assert one_line(error)
    sentences = tmp_path / "st"
    make(kind="mlm").save_pretrained(sentences / "0_Transformer")
    with pytest.raises(
        ValueError, match=r"is of sentence-transformers, whose model is in .*st/0_Transformer: pass that"
    ):
        models.load_config(str(sentences))
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    kinds = [
        {"idx": i, "path": f"{i}_{kind}", "type": f"a.{kind}"} for i, kind in enumerate(("Transformer", "Pooling"))
    ]
    (sentences / "modules.json").write_text(json.dumps(kinds))
    (sentences / "1_Pooling").mkdir()
    (sentences / "1_Pooling/config.json").write_text(json.dumps(pooling))
    assert similarity.pooling_of(str(sentences / "0_Transformer")) == "cls"
    assert models.load_config(str(sentences / "0_Transformer")).num_hidden_layers


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:500])])
def test_weights_missing_or_cut_short(damage, tmp_path):
    make(kind="mlm").save_pretrained(tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"could not be loaded: .+") as error:
        models.load_model(str(tmp_path), AUTO["mlm"])
    assert one_line(error)


def saved(folder, state, **shape):
    """A folder with a BERT's config.json and these tensors."""
    CONFIGS["bert"](**{"layers": 2, **shape}).save_pretrained(folder)
    save_file({name: value.clone() for name, value in state.items()}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


WHOLE = make(layers=2).state_dict()
ENCODER = {name: value for name, value in WHOLE.items() if name.startswith("bert.")}
LOST = {
    "renamed": ({f"x.{name}": value for name, value in WHOLE.items()}, {}, r"embeddings\.LayerNorm\.bias.* x\.bert"),
    "one renamed": (
        {n.replace("0.attention.self.query", "0.q"): v for n, v in WHOLE.items()},
        {},
        r"lack 2 tensors .*0\.attention\.self\.query\.bias.*hold 2 unknown ones.*layer\.0\.q",
    ),
    "layers": (WHOLE, {"layers": 3}, r"lack 16 tensors .*bert\.encoder\.layer\.2\."),
    "layers of an encoder": ({n.removeprefix("bert."): v for n, v in ENCODER.items()}, {"layers": 3}, r"layer\.2\."),
    "words": ({n: v for n, v in WHOLE.items() if "word_emb" not in n}, {}, r"first bert\.embeddings\.word_embeddings"),
    "empty": ({"nothing": torch.zeros(1)}, {}, "lack"),
}


@pytest.mark.parametrize("case", LOST)
@pytest.mark.parametrize("kind", ["classification", "mlm"])
def test_weights_that_did_not_load_are_an_error_that_names_them(case, kind, tmp_path):
    state, shape, message = LOST[case]
    folder = saved(tmp_path, state, **shape)
    for load in (models.load_model, functools.partial(models.load_teacher, need_head=False)):
        with pytest.raises(ValueError, match=message) as error:
            load(folder, AUTO[kind])
        assert one_line(error)


PARTS = {
    "classification": ("classifier.weight", "bert.pooler.dense.weight"),
    "mlm": ("cls.predictions.transform.dense.weight", "cls.predictions.bias"),
}


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind in PARTS for part in PARTS[kind]])
def test_a_part_of_a_head_is_not_taken_for_none(kind, part, tmp_path):
    model = AUTO[kind].from_config(make(layers=2).config)
    state, whole = model.state_dict(), saved(tmp_path / "whole", model.state_dict())
    assert not models.load_model(whole, AUTO[kind])[1]
    gone = [name for name, value in state.items() if value.data_ptr() == state[part].data_ptr()]
    folder = saved(tmp_path / "part", {name: value for name, value in state.items() if name not in gone})
    with pytest.raises(ValueError, match=f"hold a part of a head only: ({'|'.join(gone)}) is missing") as error:
        models.load_model(folder, AUTO[kind])
    assert one_line(error)
    head = {name for name in state if not name.startswith("bert.") or "pooler" in name}
    folder = saved(tmp_path / "none", {name: value for name, value in state.items() if name not in head})
    assert part in models.load_model(folder, AUTO[kind])[1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_an_error_that_names_them(value, tmp_path):
    name = "bert.encoder.layer.1.output.dense.bias"
    spoilt = WHOLE[name].clone()
    spoilt[3] = value
    folder = saved(tmp_path, WHOLE | {name: spoilt})
    with pytest.raises(ValueError, match=f"1 of its tensors hold NaN or infinity, first {name}") as error:
        models.load_model(folder, AUTO["classification"])
    assert one_line(error)


def test_a_fresh_pooler_is_for_students_only(tmp_path):
    """Files of masked language models have no pooler, which a classifier of BERT needs."""
    folder = saved(tmp_path, {n: v for n, v in WHOLE.items() if "pooler" not in n})
    missing = ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
    assert models.load_model(folder, AUTO["classification"])[1] == missing
    with pytest.raises(ValueError, match=r"no trained task head .bert\.pooler\.dense\.bias.* would be random"):
        models.load_teacher(folder, AUTO["classification"])


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({}, None),
        ({"cls.predictions.bias": V, "cls.seq_relationship.weight": V, "qa_outputs.bias": 2}, None),
        ({"bert.embeddings.position_ids": P}, None),
        ({"bert.encoder.layer.2.output.dense.bias": H}, "hold 1 tensors .*bert.encoder.layer.2.output.dense.bias"),
        ({f"adapter.{i}": H for i in range(5)}, "hold 5 tensors .*adapter.0, adapter.1, adapter.2"),
    ],
)
def test_tensors_that_nothing_takes_are_named_on_stderr(extra, said, tmp_path, capsys, monkeypatch):
    folder = saved(tmp_path, WHOLE | {name: torch.zeros(size) for name, size in extra.items()})
    assert not models.load_model(folder, AUTO["classification"])[1]
    lines = [line for line in capsys.readouterr().err.splitlines() if "tensors" in line]
    assert len(lines) == bool(said) and all(re.search(said, line) for line in lines)
    monkeypatch.setenv("RANK", "1")  # of several processes one speaks
    models.load_model(folder, AUTO["classification"])
    assert "tensors" not in capsys.readouterr().err


CODE = """
from pathlib import Path
Path({marker!r}).write_text("executed")
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizerFast
class Config(BertConfig): model_type = {model_type!r}
class Model(BertForSequenceClassification): pass
class Masked(BertForMaskedLM): pass
class Words(BertTokenizerFast): pass
"""


@pytest.mark.parametrize("model_type", ["bert", "stranger"])
def test_code_in_a_models_folder_is_not_executed(model_type, tmp_path, monkeypatch):
    """Not even where a pipe answers transformers' question with yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder, marker = Path(tokenizer(tmp_path / "m", "abc")), tmp_path / "marker"
    make(layers=2).save_pretrained(folder)
    (folder / "code.py").write_text(CODE.format(marker=str(marker), model_type=model_type))
    autos = {
        "AutoConfig": "code.Config",
        "AutoModelForSequenceClassification": "code.Model",
        "AutoModelForMaskedLM": "code.Masked",
        "AutoTokenizer": ["code.Words", "code.Words"],
    }
    for name in ("config.json", "tokenizer_config.json"):
        old = json.loads((folder / name).read_text()) | {"auto_map": autos}
        old |= {"model_type": model_type} if name == "config.json" else {"tokenizer_class": "Words"}
        (folder / name).write_text(json.dumps(old))
    for load in (
        models.load_config,
        models.load_tokenizer,
        lambda name: models.load_model(name, AUTO["mlm"]),
        lambda name: models.load_model(name, AUTO["classification"]),
        lambda name: models.load_teacher(name, AUTO["classification"]),
    ):
        with contextlib.suppress(ValueError):
            load(str(folder))
        assert not marker.exists()


def tokenizer(folder, words):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def test_folder_without_tokenizer_files_gives_no_made_up_tokenizer(folders, tmp_path):
    assert models.load_tokenizer(tokenizer(tmp_path / "a", "ab"))("a b")["input_ids"] == [2, 5, 6, 3]
    with pytest.raises(ValueError, match=r"tokenizer of '.*named' has no words: tokenizer\.json is missing") as error:
        models.load_tokenizer(str(folders / "named"))
    assert one_line(error)


@pytest.mark.parametrize(("words", "fits"), [("abc", True), ("acb", False), ("ab", False), ("abd", False)])
def test_check_vocabulary(words, fits, tmp_path):
    student = models.load_tokenizer(tokenizer(tmp_path / "s", words))
    teacher = models.load_tokenizer(tokenizer(tmp_path / "t", "abc"))
    if fits:
        models.check_vocabulary(student, teacher, "S", "T")
        return
    message = rf"student 'S' \({5 + len(words)} words\) and teacher 'T' \(8 words\) have different vocabularies"
    with pytest.raises(ValueError, match=message):
        models.check_vocabulary(student, teacher, "S", "T")


# --- options ----------------------------------------------------------------------------------------------------


def parse(*options):
    parser = argparse.ArgumentParser()
    add_models(parser)
    return parser.parse_args(list(options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--student is missing"),
        (("--teacher", ""), "--teacher '' names no model"),
        (("--teacher", "", "--student", "s"), "--teacher '' names no model"),
        (("--teacher", "t", "--student", " "), "--student ' ' names no model"),
        (("--teacher", "t"), "pass --student .*or --student_layers"),
        (("--student", "s", "--student_init", "random"), "--student_init random is for a student built"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        checks.check_models(parse(*options))


@pytest.fixture
def trained(tmp_path):
    """A teacher's folder with its tokenizer."""
    folder = tokenizer(tmp_path / "teacher", "abc")
    make(layers=4, id2label=dict(enumerate(NO_YES))).save_pretrained(folder)
    return folder


def test_load_pair_cuts_the_student_from_the_teacher_or_from_its_own_source(trained, tmp_path):
    other = tokenizer(tmp_path / "other", "abc")
    torch.manual_seed(5)
    AutoModel.from_config(CONFIGS["bert"](2)).save_pretrained(other)
    for options, layers, source in (
        (("--teacher", trained, "--student_layers", "2"), 2, trained),
        (("--teacher", trained, "--student", other), 2, other),
        (("--teacher", trained, "--student", other, "--student_layers", "1"), 1, other),
        (("--student", trained), 4, trained),
    ):
        args = parse(*options)
        checks.check_models(args)
        student, teacher, words = models.load_pair(args, AUTO["classification"], labels=NO_YES)
        assert len(families.encoder_layers(student)) == layers
        theirs = AutoModel.from_pretrained(source).embeddings
        assert same(student.base_model.embeddings, theirs)
        assert all(p.requires_grad for p in student.parameters())
        assert (teacher is None) == ("--teacher" not in options)
        assert words("a")["input_ids"] == [2, 5, 3]


def test_load_pair_refuses_another_vocabulary(trained, tmp_path):
    other = tokenizer(tmp_path / "other", "abd")
    make(layers=2).save_pretrained(other)
    args = parse("--teacher", trained, "--student", other)
    with pytest.raises(ValueError, match="different vocabularies"):
        models.load_pair(args, AUTO["classification"], labels=NO_YES)


@pytest.mark.parametrize(
    "shape",
    [
        ("--student_hidden", "1000000"),
        ("--student_intermediate", "10000000"),
        ("--student_layers", "1000", "--student_hidden", "100000"),
    ],
)
def test_a_student_larger_than_the_memory_is_refused_before_it_is_built(trained, shape, monkeypatch):
    monkeypatch.setattr(cost, "machine_memory", lambda: 10**9)
    with pytest.raises(ValueError, match=r"a student of .* parameters, .* GB .* this machine has 1 GB: lower") as error:
        models.load_pair(parse("--teacher", trained, *shape), AUTO["classification"], labels=NO_YES)
    assert one_line(error)


def test_memory_that_a_student_needs_is_counted_from_one_layer(monkeypatch):
    config = CONFIGS["bert"](7)
    needed = 16 * sum(p.numel() for p in make(layers=7).parameters())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cost, "machine_memory", lambda: needed)
    before = torch.get_rng_state()
    students.check_size(config, AUTO["classification"])
    assert torch.equal(torch.get_rng_state(), before)  # the student's random weights do not depend on the check
    monkeypatch.setattr(cost, "machine_memory", lambda: needed - 1)
    with pytest.raises(ValueError, match="a student of 7 layers, width 8"):
        students.check_size(config, AUTO["classification"])


def test_heads_that_do_not_divide_the_width(trained):
    with pytest.raises(ValueError, match="--student_hidden 8 is not a multiple of 7 heads"):
        models.load_pair(parse("--teacher", trained, "--student_heads", "7"), AUTO["classification"], labels=NO_YES)


def change(name, **values):
    def damage(folder):
        old = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: v for k, v in (old | values).items() if v is not None}))

    return damage


def add_words(folder, number):
    words = models.load_tokenizer(str(folder))
    words.add_tokens([f"new{i}" for i in range(number)])
    words.save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda folder: add_words(folder, V - 8), "classification", None),
        (lambda folder: add_words(folder, V - 7), "mlm", f"has words up to number {V}, .* rows up to {V - 1}"),
        (change("tokenizer_config.json", pad_token=None), "classification", "has no pad_token"),
        (change("tokenizer_config.json", cls_token=None), "classification", "has no cls_token"),
        (change("tokenizer_config.json", sep_token=None), "mlm", "has no sep_token"),
        (change("tokenizer_config.json", mask_token=None), "mlm", "has no mask_token"),
        (change("tokenizer_config.json", mask_token=None), "classification", None),
        (
            change(
                "tokenizer.json",
                post_processor={"type": "ByteLevel", "trim_offsets": True, "use_regex": True, "add_prefix_space": True},
            ),
            "classification",
            r"puts no \[CLS\] and \[SEP\] around a text",
        ),
    ],
)
def test_tokenizer_that_does_not_fit_is_refused(damage, kind, message, tmp_path):
    folder = Path(tokenizer(tmp_path / "m", "abc"))
    change("tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")(folder)  # no word by default
    make(layers=2, kind=kind).save_pretrained(folder)
    damage(folder)
    args = parse("--student", str(folder))
    if not message:
        models.load_pair(args, AUTO[kind], labels=NO_YES)
        return
    with pytest.raises(ValueError, match=f"tokenizer of --student '.*' {message}") as error:
        models.load_pair(args, AUTO[kind], labels=NO_YES)
    assert one_line(error)


# --- inputs and counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "types"), [("bert", True), ("roberta", False), ("distilbert", False)])
def test_model_inputs_leave_out_labels_and_token_types_that_a_model_has_not(family, types):
    model, given_batch = make(family), batch()
    inputs = model_outputs.model_inputs(model, given_batch)
    assert set(inputs) == {"input_ids", "attention_mask"} | ({"token_type_ids"} if types else set())
    assert all(inputs[name] is given_batch[name] for name in inputs if name != "attention_mask")
    given_batch["attention_mask"] = torch.tensor([[1] * (given_batch["input_ids"].shape[1] - 2) + [0, 0]])
    plain = {name: given_batch[name] for name in inputs}
    expected, got = (
        model.eval()(**given, output_hidden_states=True).hidden_states[-1][:, :-2]
        for given in (plain, model_outputs.model_inputs(model, given_batch))
    )
    torch.testing.assert_close(got, expected)
    del given_batch["token_type_ids"]
    assert set(model_outputs.model_inputs(model, given_batch)) == {"input_ids", "attention_mask"}
    assert model(**model_outputs.model_inputs(model, batch())).logits.shape == (1, 2)


@pytest.mark.parametrize(("family", "longest"), [("bert", P), ("distilbert", P), ("roberta", P - 2)])
def test_max_tokens_is_the_longest_input_that_a_model_takes(family, longest):
    model = make(family)
    assert model_outputs.max_tokens(model.config) == longest
    model(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))


EMBEDDINGS = (V + P + 2) * H + 2 * H  # words, positions, token types; norm
LAYER = 4 * (H * H + H) + 2 * H + (H * FF + FF) + (FF * H + H) + 2 * H  # attention; norm; feed-forward; norm


def test_count_parameters_by_hand():
    heads = H * H + H + 3 * H + 3  # pooler, classifier
    assert cost.count_parameters(make(layers=2, num_labels=3)) == (EMBEDDINGS + 2 * LAYER + heads, 2 * LAYER + heads)
    head = H * H + H + 2 * H + V  # transform, norm, bias; the decoder is the word embedding, counted once
    assert cost.count_parameters(make(layers=2, kind="mlm")) == (EMBEDDINGS + 2 * LAYER + head, 2 * LAYER + head)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("tokens", [1, T])
def test_count_flops_by_hand(layers, tokens):
    # Multiply-adds of the projections, of scores and context, of the feed-forward layers.
    layer = 4 * tokens * H * H + 2 * tokens * tokens * H + 2 * tokens * H * FF
    classifier = H * H + 2 * H
    model = make(layers=layers)
    assert cost.count_flops(model, tokens) == 2 * (layers * layer + classifier)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert model.config._attn_implementation == "sdpa"
    mlm = make(layers=layers, kind="mlm")
    assert cost.count_flops(mlm, tokens) == 2 * (layers * layer + tokens * (H * H + H * V))


@pytest.mark.parametrize("family", CONFIGS)
def test_describe_names_the_shape_of_every_family(family):
    model = make(family)
    found = cost.describe(model, T)
    assert (found["layers"], found["hidden_size"], found["heads"], found["intermediate_size"]) == (4, H, 2, FF)
    assert (found["type"], found["vocab_size"], found["seq_length"]) == (family, V, T)
    assert found["flops_per_sequence"] == cost.count_flops(model, T) > 0
    assert found["parameters"] == sum(p.numel() for p in model.parameters())


def test_several_teachers_are_the_mean_of_their_logits_and_the_hidden_states_of_the_first(world):
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(world / "bert", num_labels=3)
    three = [AutoModelForSequenceClassification.from_config(config).eval() for _ in range(3)]
    batch = {"input_ids": torch.tensor([[2, 9, 10, 11, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    with torch.no_grad():
        alone = [model(**batch, output_hidden_states=True) for model in three]
        digest = run_folder.digest_model(three[0])
        model_outputs.average_logits(three[0], three[1:])
        out = three[0](**model_outputs.model_inputs(three[0], batch), output_hidden_states=True)
    torch.testing.assert_close(out.logits, sum(each.logits for each in alone) / 3)
    assert all(map(torch.equal, out.hidden_states, alone[0].hidden_states))
    assert run_folder.digest_model(three[0]) != digest  # and so the cache's key
    assert not any(parameter.requires_grad for parameter in three[0].requires_grad_(False).others.parameters())


def test_a_teacher_of_another_type_or_vocabulary_is_refused(world, tmp_path):
    first = argparse.Namespace(config=AutoConfig.from_pretrained(world / "bert"))
    tokenizer, kind = AutoTokenizer.from_pretrained(world / "bert"), kinds.KINDS["classification"](data.TASKS["cola"])

    def refused(said):
        args = argparse.Namespace(more_teachers=[str(tmp_path)], label_map=None)
        with pytest.raises(ValueError, match=said):
            distill_finetune.more_teachers(args, kind, first, tokenizer, "a command")

    (tmp_path / "config.json").write_text('{"model_type": "electra"}')
    refused("is of type 'electra', --teacher of 'bert': take teachers of one type")
    shutil.copytree(world / "bert", tmp_path, dirs_exist_ok=True)
    refused("carries no trained task head .* make one first: a command")
    tokenizer.add_tokens(["another"])
    refused("has another vocabulary than --teacher")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.whole
def test_the_figures_of_relations_hold_the_cosines_of_words_and_of_layers(world, masked):
    auto = AutoModelForMaskedLM if masked else AutoModelForSequenceClassification
    teacher = auto.from_pretrained(world / "bert").eval()
    torch.manual_seed(3)
    student = students.build_student(teacher, auto, {"layers": 2, "hidden": 32, "heads": 4}, "random").eval()
    pairs, ids = [(0, 0), (1, 2), (2, 3)], torch.tensor([[2, 9, 10, 11, 3]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    both = [model_outputs.MaskedLM(m) if masked else m for m in (student, teacher)]
    figures = model_outputs.relation_figures(*both, pairs, batch, ["[CLS]", "a", "b", "c", "[SEP]"])
    assert list(figures) == ["relations/words", "relations/layers"]
    cosine = torch.nn.functional.cosine_similarity
    for at, (model, layers) in enumerate(((teacher, [0, 2, 3]), (student, [0, 1, 2]))):
        with torch.no_grad():
            hidden = model(**batch, output_hidden_states=True).hidden_states
        words, of_layers = (figures[name].axes[at].images[0].get_array() for name in figures)
        last = hidden[layers[-1]][0]
        torch.testing.assert_close(torch.tensor(words.data), cosine(last[:, None], last[None], dim=-1))
        expected = [cosine(hidden[layers[i]][0], hidden[layers[j]][0], dim=-1) for i, j in ((0, 1), (0, 2), (1, 2))]
        torch.testing.assert_close(torch.tensor(of_layers.data), torch.stack(expected, 1))
    assert [ax.get_title() for ax in figures["relations/words"].axes[:2]] == ["teacher\nlayer 3", "student\nlayer 2"]
    ticks = [[tick.get_text() for tick in ax.get_xticklabels()] for ax in figures["relations/layers"].axes[:2]]
    assert ticks == [["0-2", "0-3", "2-3"], ["0-1", "0-2", "1-2"]]
    assert list(model_outputs.relation_figures(*both, pairs[2:], batch, list("abcde"))) == ["relations/words"]
