"""Precisions and signals of devices that are not here, by what torch would say of them."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

import distill_finetune
import training
from encoders import model_outputs
from engine import checkpoints

ARGS = {"mixed_precision": "no", "tf32": False}


@pytest.fixture
def card(monkeypatch):
    """card(capability): torch says that there is a GPU of this compute capability."""

    def pretend(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")

    return pretend


def check(**options):
    training.check_precision(SimpleNamespace(**(ARGS | options)))


def test_float32_on_a_card_says_what_is_faster_and_bf16_is_refused_where_it_is_emulated(card, capsys):
    card(9)
    check()
    assert "--tf32" in capsys.readouterr().err
    check(mixed_precision="bf16")
    card(7)
    check()
    check(mixed_precision="fp16")
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="bf16: Card only emulates it: use fp16"):
        check(mixed_precision="bf16")


def test_tf32_is_for_products_but_those_of_relations(card, capsys):
    from relations import full_float32

    backend = torch.backends.cuda.matmul
    before = backend.fp32_precision
    card(9)
    try:
        check(tf32=True)
        assert capsys.readouterr().err == "" and backend.fp32_precision == "tf32"
        with full_float32("cpu"):
            assert backend.fp32_precision == "ieee"
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


@pytest.mark.parametrize("options, name", [({"tf32": True}, "--tf32"), ({"mixed_precision": "fp16"}, "fp16")])
def test_what_a_cpu_has_not_is_refused(options, name):
    with pytest.raises(ValueError, match=f"{name} needs a CUDA device"):
        check(**options)


@pytest.mark.parametrize("there, hidden", [(True, None), (True, ""), (False, None)])
def test_a_driver_without_a_device_is_warned_of(monkeypatch, capsys, there, hidden):
    monkeypatch.setattr(training.Path, "exists", lambda path: there)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    check()
    assert ("torch sees no CUDA device" in capsys.readouterr().err) == (there and hidden is None)


def test_sigusr1_stops_a_run_as_sigterm_does():
    with training.stop_signals() as asked:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert training._agreed(SimpleNamespace(num_processes=1), asked, False, False) == (signal.SIGUSR1, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert training._agreed(SimpleNamespace(num_processes=1), asked, True, False) == (signal.SIGTERM, True)


def test_the_digest_of_random_states_knows_the_cards(monkeypatch):
    before = checkpoints.rng_digest()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.zeros(16, dtype=torch.uint8)])
    assert checkpoints.rng_digest() == checkpoints.rng_digest() != before


def test_the_end_of_an_epoch_makes_no_checkpoint_before_its_time(world, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(
        training, "save_checkpoint", lambda accelerator, folder, state, keep: steps.append(state["step"])
    )
    options = ["--task", "cola", "--data_dir", world / "glue", "--student", world / "bert", "--max_train_samples", 16]
    options += ["--num_train_epochs", 2, "--per_device_train_batch_size", 8, "--max_eval_samples", 8]
    distill_finetune.main(list(map(str, [*options, "--output_dir", tmp_path / "run"])))
    assert steps == [4]


def test_the_mask_as_a_bias_says_the_same_as_a_mask():
    torch.manual_seed(1)
    config = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    batch = {"input_ids": torch.randint(40, (3, 9)), "attention_mask": torch.ones(3, 9, dtype=torch.long)}
    batch["attention_mask"][1, 4:] = 0
    for half in (False, True):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            inputs = model_outputs.model_inputs(model, batch)
            assert inputs["attention_mask"].dtype == (torch.bfloat16 if half else torch.float32)
            torch.testing.assert_close(model(**inputs).logits, model(**batch).logits)
    full = model(input_ids=batch["input_ids"], attention_mask=torch.ones(3, 9)).logits
    assert torch.equal(model(**model_outputs.model_inputs(model, {"input_ids": batch["input_ids"]})).logits, full)
