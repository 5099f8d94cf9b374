"""Two processes give what one gives with the same effective batch."""

import json
from pathlib import Path

import pytest
import test_losses
import torch
from accelerate.state import AcceleratorState
from conftest import in_two_processes, torchrun
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

import distill_dynabert
import distill_finetune
import distill_pretrain
from engine import teacher_cache
from tasks import batching, plain_text

DIES = """
import os, sys
sys.path.insert(0, os.getcwd())
import distill_finetune, training
from engine import command_line
step, calls = training.training_step, []

def ending(*arguments):
    calls.append(1)
    if len(calls) == 3 and os.environ["RANK"] == "1":
        raise ValueError("worker 1 is ill")
    return step(*arguments)

training.training_step = ending
command_line.run_script(distill_finetune.main)
"""


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
    return (
        f"--task custom --kind token --train_file {folder}/words.txt --validation_file {folder}/words.txt "
        f"--teacher {folder}/tagger --student_layers 2 --terms kd --hard_weight 0.5 --max_seq_length 12 "
        "--num_train_epochs 1 --learning_rate 1e-3"
    )


def run(script, options, folder):
    AcceleratorState._reset_state(reset_partial_state=True)
    script.main([*options.split(), "--output_dir", str(folder)])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def jobs(folder, world, teacher):
    """{name: (script, options, examples of a step of all processes)} of what two processes do as one."""
    # 65 = 4 x 16 + 1: the last step leaves one process without an example. There is no dropout.
    common = (
        f"--task cola --data_dir {world}/glue --teacher {teacher} --max_train_samples 65 --max_eval_samples 33 "
        "--max_seq_length 32 --num_train_epochs 1 --logging_steps 1 "
    )
    every = (  # in the first stage nothing trains the head
        "--terms ckd pkd=1 hidden_mse=0.1 attention_mse=0.1 embedding_mse=0.1 hidden_cosine=1 minilm=1 "
        "--hard_weight 0.5 --stages wr_pair wr_triple ltr_pair ltr_triple hidden_mse "
        "0.4 logits=0.5..1 hard pkd hidden_mse attention_mse embedding_mse hidden_cosine minilm wr_pair"
    )
    masked = text(world) + (
        f"--seq_length 32 --teacher {world}/bert --student_layers 2 --hard_weight 0.1 --num_train_epochs 1 "
        "--max_eval_samples 7 --max_train_samples "
    )
    return {
        "": (distill_finetune, f"{common} --student_layers 2 {every}", 16),
        "-cached": (distill_finetune, f"{common} --student_layers 2 --terms ckd --cache_teacher", 16),
        "-words": (distill_finetune, worded(folder, world), 6),
        "-sizes": (distill_dynabert, f"{common} --width_mults 1 0.5 --terms ckd --hard_weight 0.5", 16),
        "-masked": (distill_pretrain, f"{masked} 17", 8),
        "-staged": (distill_pretrain, f"{masked} 33 --terms ckd --stages wr_pair 0.5 logits hard", 8),
        "-frozen": (distill_pretrain, f"{masked} 17 --freeze_embeddings", 8),
    }


def text(world):
    return f"--corpus {world}/text/train.txt --validation_corpus {world}/text/valid.txt "


@pytest.fixture
def runs(once, world, teacher, monkeypatch, cut_at):
    """Folder of runs in one process and in two; one of those in two went on after one of its processes had died."""

    def make(folder):
        each, size = jobs(folder, world, teacher), "--per_device_train_batch_size"
        stream = text(world) + (
            f"--streaming --num_workers 2 --seq_length 16 --teacher {world}/bert --student_layers 2 --max_steps 8 "
            f"--save_steps 2 --max_eval_samples 4 {size} 4 --gradient_accumulation_steps 2"
        )
        dying = f"{each[''][1]} {size} 8 --save_steps 1"
        monkeypatch.setattr(teacher_cache, "FOLDER", folder / "one-cache")
        monkeypatch.chdir(folder)
        for name, (script, options, examples) in each.items():
            run(script, f"{options} {size} {examples}", folder / f"one{name}")
        monkeypatch.chdir(Path(__file__).parents[1])
        (folder / "dies.py").write_text(DIES)
        done = torchrun(folder / "dies.py", *dying.split(), "--output_dir", folder / "died")
        assert done.returncode != 0 and "worker 1 is ill" in done.stderr, done.stderr[-2000:]

        def work():
            monkeypatch.setattr(teacher_cache, "FOLDER", folder / "two-cache")
            for name, (script, options, examples) in each.items():
                save = "" if name else "--save_minutes 1e-9"
                run(script, f"{options} {size} {examples // 2} {save}", folder / f"two{name}")
            assert not any(map(float, test_losses.values_of_nothing(across_processes=True).values()))
            run(distill_finetune, dying, folder / "died")
            plain_text.DOCUMENTS, plain_text.POOL = 3, 6
            run(distill_pretrain, stream, folder / "whole")
            cut_at(7)
            with pytest.raises(KeyboardInterrupt):
                run(distill_pretrain, stream, folder / "cut")
            torch.distributed.barrier()
            run(distill_pretrain, stream, folder / "cut")

        in_two_processes(work)

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
