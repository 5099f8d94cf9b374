"""Two processes give what one gives with the same effective batch."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import torchrun
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

import distill_dynabert
import distill_finetune
import distill_pretrain
from engine import teacher_cache
from tasks import batching

HEAD = """
import functools, os, pathlib, sys
sys.path.insert(0, os.getcwd())
from accelerate.state import AcceleratorState
import distill_dynabert, distill_finetune, distill_pretrain, training
from encoders import model_outputs
from engine import command_line, cost, teacher_cache
from tasks import plain_text
model_outputs.relation_figures = lambda *_: {{}}  # as the fixture `quick`
cost.measure_latency = functools.partial(cost.measure_latency, seconds=0.0)
step, calls, ends = training.training_step, [], {0}

def ending(*arguments):
    calls.append(1)
    if len(calls) == ends:
        {1}
    return step(*arguments)

training.training_step = ending

def run(script, *options):
    calls.clear()
    AcceleratorState._reset_state(reset_partial_state=True)
    script.main(list(options))
    training.torch.distributed.barrier()
"""
DIES = HEAD.format(3, "if os.environ['RANK'] == '1': raise ValueError('worker 1 is ill')")
CUT = HEAD.format(0, "raise KeyboardInterrupt")


def worded(folder, world):
    """Options of a run on sentences of very different length, where a mean of the processes' means would be another."""
    tags = ["O", "B-x", "I-x"]
    sentences = ["\n".join(f"the {tags[j % 3]}" for j in range(1 + i % 5 * 3)) for i in range(18)]
    (folder / "words.txt").write_text("\n\n".join(sentences))
    config = AutoConfig.from_pretrained(
        world / "bert", id2label=dict(enumerate(tags)), label2id={tag: i for i, tag in enumerate(tags)}
    )
    torch.manual_seed(1)
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder / "tagger")
    AutoTokenizer.from_pretrained(world / "bert").save_pretrained(folder / "tagger")
    return [
        "--task",
        "custom",
        "--kind",
        "token",
        "--train_file",
        folder / "words.txt",
        "--validation_file",
        folder / "words.txt",
        "--teacher",
        folder / "tagger",
        "--student_layers",
        "2",
        "--terms",
        "kd",
        "--hard_weight",
        "0.5",
        "--max_seq_length",
        "12",
        "--num_train_epochs",
        "1",
        "--learning_rate",
        "1e-3",
    ]


def job(script, *options):
    return f"run({script}, {', '.join(repr(str(option)) for option in options)})\n"


@pytest.fixture
def runs(once, world, teacher, monkeypatch):
    """Folder of runs in one process and in two, those in two of one launch, after another one that died."""

    def make(folder):
        # 65 = 4 x 16 + 1: the last step leaves one process without an example. There is no dropout.
        common = [
            "--task",
            "cola",
            "--data_dir",
            world / "glue",
            "--teacher",
            teacher,
            "--student_layers",
            "2",
            "--max_train_samples",
            "65",
            "--max_eval_samples",
            "33",
            "--max_seq_length",
            "32",
            "--num_train_epochs",
            "1",
            "--logging_steps",
            "1",
        ]
        every = [
            *common,
            "--terms",
            "ckd",
            "pkd=1",
            "hidden_mse=0.1",
            "attention_mse=0.1",
            "embedding_mse=0.1",
            "hidden_cosine=1",
            "minilm=1",
            "--hard_weight",
            "0.5",
            "--stages",
            "wr_pair",
            "wr_triple",
            "ltr_pair",
            "ltr_triple",
            "hidden_mse",
            "0.4",
            "logits=0.5..1",
            "hard",
            "pkd",
            "hidden_mse",
            "attention_mse",
            "embedding_mse",
            "hidden_cosine",
            "minilm",
            "wr_pair",
        ]  # at first nothing trains the head
        cached = [*common, "--terms", "ckd", "--cache_teacher"]
        sizes = [*common[:6], *common[8:], "--width_mults", "1", "0.5", "--terms", "ckd", "--hard_weight", "0.5"]
        text = ["--corpus", world / "text" / "train.txt", "--validation_corpus", world / "text" / "valid.txt"]
        masked = [
            *text,
            "--seq_length",
            "32",
            "--teacher",
            world / "bert",
            "--student_layers",
            "2",
            "--hard_weight",
            "0.1",
            "--max_train_samples",
            "17",
            "--num_train_epochs",
            "1",
            "--max_eval_samples",
            "7",
        ]
        staged = [
            *masked[:-6],
            "--max_train_samples",
            "33",
            "--num_train_epochs",
            "1",
            "--max_eval_samples",
            "7",
            "--terms",
            "ckd",
            "--stages",
            "wr_pair",
            "0.5",
            "logits",
            "hard",
        ]  # at first nothing trains the head
        frozen = [*masked, "--freeze_embeddings"]
        stream = [
            *text,
            "--streaming",
            "--num_workers",
            "2",
            "--seq_length",
            "16",
            "--teacher",
            world / "bert",
            "--student_layers",
            "2",
            "--max_steps",
            "8",
            "--save_steps",
            "2",
            "--max_eval_samples",
            "4",
            "--per_device_train_batch_size",
            "4",
            "--gradient_accumulation_steps",
            "2",
        ]
        words = worded(folder, world)
        size, to = "--per_device_train_batch_size", "--output_dir"
        monkeypatch.setattr(teacher_cache, "FOLDER", folder / "one-cache")
        monkeypatch.chdir(folder)
        for script, options, name in (
            (distill_finetune, every + [size, "16"], "one"),
            (distill_finetune, cached + [size, "16"], "one-cached"),
            (distill_finetune, words + [size, "6"], "one-words"),
            (distill_dynabert, sizes + [size, "16"], "one-sizes"),
            (distill_pretrain, masked + [size, "8"], "one-masked"),
            (distill_pretrain, staged + [size, "8"], "one-staged"),
            (distill_pretrain, frozen + [size, "8"], "one-frozen"),
        ):
            AcceleratorState._reset_state(reset_partial_state=True)
            script.main([*map(str, options), to, str(folder / name)])
        monkeypatch.undo()
        dying = [*every, size, "8", "--save_steps", "1", to, folder / "died"]
        (folder / "dies.py").write_text(
            DIES + "command_line.run_script(lambda: " + job("distill_finetune", *dying).strip() + ")\n"
        )
        done = torchrun(folder / "dies.py")
        assert done.returncode != 0 and "worker 1 is ill" in done.stderr, done.stderr[-2000:]
        (folder / "jobs.py").write_text(
            CUT
            + f"teacher_cache.FOLDER = pathlib.Path({str(folder / 'two-cache')!r})\n"
            + job("distill_finetune", *every, size, "8", "--save_minutes", "1e-9", to, folder / "two")
            + f"sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_comparison\n"
            + "assert not any(map(float, test_comparison.values_of_nothing(across_processes=True).values()))\n"
            + job("distill_finetune", *dying)
            + job("distill_finetune", *cached, size, "8", to, folder / "two-cached")
            + job("distill_finetune", *words, size, "3", to, folder / "two-words")
            + job("distill_dynabert", *sizes, size, "8", to, folder / "two-sizes")
            + job("distill_pretrain", *masked, size, "4", to, folder / "two-masked")
            + job("distill_pretrain", *staged, size, "4", to, folder / "two-staged")
            + job("distill_pretrain", *frozen, size, "4", to, folder / "two-frozen")
            + "plain_text.DOCUMENTS, plain_text.POOL = 3, 6\n"
            + job("distill_pretrain", *stream, to, folder / "whole")
            + "ends = 7\ntry:\n    "
            + job("distill_pretrain", *stream, to, folder / "cut")
            + "except KeyboardInterrupt:\n    training.torch.distributed.barrier()\nelse:\n    raise SystemExit(9)\n"
            + "ends = 0\n"
            + job("distill_pretrain", *stream, to, folder / "cut")
        )
        done = torchrun(folder / "jobs.py")
        assert done.returncode == 0, done.stderr[-2000:]

    return once("two-processes", make)


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_means_over_words_are_those_of_both_processes(runs):
    one, two = record(runs / "one-words"), record(runs / "two-words")
    assert one["steps"] == two["steps"] > 2 and one["best"]["metrics"] == pytest.approx(two["best"]["metrics"])
    a, b = (load_file(runs / f"{name}-words" / "model.safetensors") for name in ("one", "two"))
    for key in a:
        if not key.endswith("key.bias"):  # whose gradient is 0 but for rounding, which AdamW takes for a direction
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("kind", ["", "-cached", "-sizes"])
def test_two_processes_equal_one(runs, kind):
    one, two = record(runs / f"one{kind}"), record(runs / f"two{kind}")
    assert two["inputs"]["number_of_processes"] == two["hardware"]["processes"] == 2
    assert {k: v for k, v in two["inputs"].items() if one["inputs"][k] != v} == {"number_of_processes": 2}
    assert two["steps"] == one["steps"] == 5
    assert two["best"]["metrics"] == pytest.approx(one["best"]["metrics"])
    last = "checkpoints/step-00000005/model.safetensors"
    a, b = (load_file(runs / f"{name}{kind}" / last) for name in ("one", "two"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("n", range(1, 20))
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_example_of_a_step_goes_to_one_process_once(n, processes):
    indices = list(range(100, 100 + n))
    shares = [batching.split_step(indices, 2, processes, rank) for rank in range(processes)]
    assert sorted(i for share in shares for part, _ in share for i in part) == indices
    for parts in zip(*shares, strict=True):
        assert len({weight for _, weight in parts}) == 1
        assert parts[0][1] == pytest.approx(sum(len(part) for part, _ in parts) / n)
    assert sum(weight for _, weight in shares[0]) == pytest.approx(1)


def test_a_worker_that_dies_takes_the_run_down_and_the_run_goes_on(runs):
    assert record(runs / "died")["time"]["sessions"] == 2 and record(runs / "died")["status"] == "complete"


@pytest.mark.parametrize("kind", ["masked", "staged", "frozen"])
def test_masked_language_models_too(runs, kind):
    one, two = record(runs / f"one-{kind}"), record(runs / f"two-{kind}")
    assert one["best"]["metrics"] == pytest.approx(two["best"]["metrics"], rel=1e-3)
    a, b = (load_file(runs / f"{name}-{kind}" / "model.safetensors") for name in ("one", "two"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=2e-5, msg=key)


def test_a_stream_split_between_processes_and_workers_resumes_bit_for_bit(runs):
    """Three runs: whole, cut, resumed."""
    cut = record(runs / "cut")
    assert cut["time"]["sessions"] == 2 and cut["hardware"]["processes"] == 2
    checkpoints = [runs / name / "checkpoints" / "step-00000008" for name in ("whole", "cut")]
    positions = [json.loads((folder / "state.json").read_text())["positions"] for folder in checkpoints]
    assert positions[0] == positions[1] and [sorted(of) for of in positions[0]] == [["0", "1"]] * 2
    assert all(worker["pool"] > 0 for of in positions[0] for worker in of.values())
    a, b = (load_file(folder / "model.safetensors") for folder in checkpoints)
    assert all(torch.equal(a[k], b[k]) for k in a)
