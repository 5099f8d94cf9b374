"""Model cards: what huggingface_hub's own parser reads in them."""

import argparse
import re

import pytest
from huggingface_hub import ModelCard
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import data
import distill_finetune
import distill_pretrain
from engine import card
from tasks import kinds

OF_MLM = {"terms": {"logits": 1.0}, "seq_length": 32, "run_name": "mlm", "seed": 1, "max_eval_samples": 4}
BASE = "---\nlicense: apache-2.0\nbase_model: owner/bert\nlanguage:\n- multilingual\n- af\n---\n\n# Text\n"


def saved(tmp_path, text):
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    return ModelCard.load(tmp_path / "README.md")


def finetune_card(tmp_path, task, metrics, base=None, **options):
    args = argparse.Namespace(
        task=task,
        teacher="t",
        terms={"logits": 1.0},
        run_name="a: 'name' # of: mine",
        seed=1,
        data_dir=None,
        max_eval_samples=0,
        max_seq_length=32,
        validation_file=None,
        dataset_name=None,
        validation_split="validation",
    )
    vars(args).update(options)
    kind = kinds.KINDS[data.TASKS[task].kind](data.TASKS[task])
    text = distill_finetune.model_card(args, kind, {"step": 3, "metrics": metrics}, base or {})
    return saved(tmp_path, text)


def test_two_dev_sets_are_two_splits_of_the_hubs_data_set(tmp_path):
    found = finetune_card(tmp_path, "mnli", {"accuracy_matched": 0.5, "accuracy_mismatched": 0.25})
    assert found.data.model_name == "a: 'name' # of: mine" and found.data.datasets == ["nyu-mll/glue"]
    rows = [
        (r.dataset_type, r.dataset_config, r.dataset_split, r.metric_type, r.metric_value)
        for r in found.data.eval_results
    ]
    assert rows == [
        ("nyu-mll/glue", "mnli", "validation_matched", "accuracy", 0.5),
        ("nyu-mll/glue", "mnli", "validation_mismatched", "accuracy", 0.25),
    ]


@pytest.mark.parametrize(
    "task, names, types, pipeline",
    [
        ("stsb", ("pearson", "spearman"), ["pearsonr", "spearmanr"], "text-classification"),
        ("squad", ("f1", "exact_match"), ["f1", "exact_match"], "question-answering"),
    ],
)
def test_metrics_have_the_hubs_names(tmp_path, task, names, types, pipeline):
    found = finetune_card(tmp_path, task, dict.fromkeys(names, 0.5))
    assert [r.metric_type for r in found.data.eval_results] == types
    assert found.data.pipeline_tag == pipeline == found.data.eval_results[0].task_type


def test_files_are_not_called_a_data_set_of_the_hub_and_an_undefined_score_is_left_out(tmp_path):
    found = finetune_card(
        tmp_path, "custom", {"accuracy": None, "f1": 0.5}, validation_file="my/dev.csv", max_eval_samples=8
    )
    (result,) = found.data.eval_results
    assert (result.dataset_name, result.dataset_type, result.dataset_args) == (
        "dev.csv",
        "custom",
        {"max_eval_samples": 8},
    )
    assert found.data.datasets is None and "accuracy: undefined" in found.text
    assert finetune_card(tmp_path, "cola", {"matthews_correlation": None}).data.eval_results is None


def test_what_is_known_of_the_base_model_is_passed_on(tmp_path, monkeypatch):
    expected = {"base_model": "owner/bert", "license": "apache-2.0", "language": "multilingual"}
    (tmp_path / "model").mkdir()
    saved(tmp_path / "model", BASE)
    assert card.base_metadata(str(tmp_path / "model")) == expected
    found = finetune_card(tmp_path, "cola", {"matthews_correlation": 0.5}, card.base_metadata(str(tmp_path / "model")))
    assert {name: found.data.get(name) for name in expected} == expected
    assert card.base_metadata(str(tmp_path)) == expected  # of a student of that student
    for text in ("# no metadata", "---\n: [\n---\n", ""):
        (tmp_path / "model" / "README.md").write_text(text)
        assert card.base_metadata(str(tmp_path / "model")) == {}

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.repocard.hf_hub_download", offline)
    assert card.base_metadata("bert-base-cased") == {"base_model": "bert-base-cased"}
    name = "bert-base-multilingual-cased"
    assert card.base_metadata(name) == {"base_model": name, "language": "multilingual"}


@pytest.mark.parametrize(
    "corpus, dataset",
    [
        ("README.md", ("README.md", "text", None, "validation")),
        (
            "wikimedia/wikipedia:20231101.en",
            ("wikimedia/wikipedia:20231101.en", "wikimedia/wikipedia", "20231101.en", "train"),
        ),
    ],
)
def test_masked_language_models(tmp_path, corpus, dataset):
    args = argparse.Namespace(corpus=corpus, validation_corpus=None, teacher=None, **OF_MLM)
    found = saved(tmp_path, distill_pretrain.model_card(args, {"step": 1, "metrics": {"perplexity": 9.5}}, {}))
    (result,) = found.data.eval_results
    assert dataset == (result.dataset_name, result.dataset_type, result.dataset_config, result.dataset_split)
    assert (result.task_type, result.metric_type, result.metric_value) == ("fill-mask", "perplexity", 9.5)
    assert found.data.tags == ["mlm"] and found.data.pipeline_tag == "fill-mask"


@pytest.mark.parametrize(
    "task, auto, head",
    [
        ("cola", AutoModelForSequenceClassification, {}),
        ("rte", AutoModelForSequenceClassification, {}),
        ("stsb", AutoModelForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}),
        (
            "goemotions",
            AutoModelForSequenceClassification,
            {"num_labels": 3, "problem_type": "multi_label_classification"},
        ),
        ("conll2003", AutoModelForTokenClassification, {}),
        ("squad", AutoModelForQuestionAnswering, {}),
        ("mlm", AutoModelForMaskedLM, {}),
    ],
)
def test_the_lines_of_use_run_as_pasted(world, tmp_path, monkeypatch, capsys, task, auto, head):
    model = auto.from_pretrained(world / "bert", **head)
    model.config.threshold = 0.0
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(world / "bert").save_pretrained(tmp_path)
    if task == "mlm":
        args = argparse.Namespace(
            corpus=str(tmp_path / "config.json"), validation_corpus=None, teacher="/home/me/bert", **OF_MLM
        )
        found = saved(tmp_path, distill_pretrain.model_card(args, {"step": 1, "metrics": {"perplexity": 9.5}}, {}))
    else:
        found = finetune_card(tmp_path, task, dict.fromkeys(data.TASKS[task].metrics, 0.5), teacher="/home/me/bert")
    assert (
        "/home" not in found.content
        and str(tmp_path) not in found.content
        and "distilled from `bert` with" in found.text
    )
    (code,) = re.findall(r"```python\n(.*?)```", found.text, re.S)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out and ("text_pair" in code) == (task in ("rte", "stsb"))


def test_every_class_that_opens_a_student_has_a_pipeline():
    assert {kind.auto.__name__ for kind in kinds.KINDS.values()} <= set(card.PIPELINES)
    assert {AutoModelForMaskedLM.__name__, AutoModelForSequenceClassification.__name__} <= set(card.PIPELINES)
