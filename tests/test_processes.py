"""Two processes give what one gives with the same effective batch."""
import json
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForTokenClassification, AutoTokenizer

import distill_finetune
import training

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]


def launch(port, *options):
    done = subprocess.run([*TORCHRUN, str(port), *map(str, options)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def common(world, teacher, tmp_path):
    """Options for a run without dropout whose last step leaves one process without an example: 65 = 4 x 16 + 1."""
    return ["--task", "cola", "--data_dir", world / "glue", "--teacher", teacher, "--student_layers", "2",
            "--terms", "ckd", "pkd=1", "hidden_mse=0.1", "attention_mse=0.1", "embedding_mse=0.1", "hidden_cosine=1",
            "minilm=1", "--hard_weight", "0.5", "--max_train_samples", "65", "--max_eval_samples", "33",
            "--max_seq_length", "32", "--num_train_epochs", "1", "--logging_steps", "1"]  # fmt: skip


def test_two_processes_equal_one(finetune, common, tmp_path):
    size = "--per_device_train_batch_size"
    finetune(*common, size, "16", "--output_dir", tmp_path / "one")
    launch(29511, "distill_finetune.py", *common, size, "8", "--save_minutes", "1e-9", "--output_dir", tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two"))
    assert two["inputs"]["number_of_processes"] == two["hardware"]["processes"] == 2
    assert {k: v for k, v in two["inputs"].items() if one["inputs"][k] != v} == {"number_of_processes": 2}
    assert two["steps"] == one["steps"] == 5
    assert two["best"]["metrics"] == pytest.approx(one["best"]["metrics"])
    last = "checkpoints/step-00000005/model.safetensors"
    a, b = (load_file(tmp_path / name / last) for name in ("one", "two"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=2e-5, msg=key)


def test_means_over_words_are_those_of_both_processes(world, tmp_path):
    """Sentences of very different length: a mean of the processes' means would be another."""
    tags = ["O", "B-x", "I-x"]
    sentences = ["\n".join(f"the {tags[j % 3]}" for j in range(1 + i % 5 * 3)) for i in range(18)]
    (tmp_path / "words.txt").write_text("\n\n".join(sentences))
    files = [tmp_path / "words.txt"] * 2
    config = AutoConfig.from_pretrained(world / "bert", id2label=dict(enumerate(tags)),
                                        label2id={tag: i for i, tag in enumerate(tags)})  # fmt: skip
    torch.manual_seed(1)
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path / "t")
    AutoTokenizer.from_pretrained(world / "bert").save_pretrained(tmp_path / "t")
    options = ["--task", "custom", "--kind", "token", "--train_file", files[0], "--validation_file", files[1],
               "--teacher", tmp_path / "t", "--student_layers", "2", "--terms", "kd", "--hard_weight", "0.5",
               "--max_seq_length", "12", "--num_train_epochs", "1", "--learning_rate", "1e-3"]  # fmt: skip
    size = "--per_device_train_batch_size"
    AcceleratorState._reset_state(reset_partial_state=True)
    distill_finetune.main([*map(str, options), size, "6", "--output_dir", str(tmp_path / "1")])
    launch(29516, "distill_finetune.py", *options, size, "3", "--output_dir", tmp_path / "2")
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("1", "2"))
    assert one["steps"] == two["steps"] > 2 and one["best"]["metrics"] == pytest.approx(two["best"]["metrics"])
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("n", range(1, 20))
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_example_of_a_step_goes_to_one_process_once(n, processes):
    indices = list(range(100, 100 + n))
    shares = [training.split_step(indices, 2, processes, rank) for rank in range(processes)]
    assert sorted(i for share in shares for part, _ in share for i in part) == indices
    for parts in zip(*shares, strict=True):
        assert len({weight for _, weight in parts}) == 1
        assert parts[0][1] == pytest.approx(sum(len(part) for part, _ in parts) / n)
    assert sum(weight for _, weight in shares[0]) == pytest.approx(1)


def test_a_worker_that_dies_takes_the_run_down_with_its_message(common, tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, sys\nsys.path.insert(0, os.getcwd())\nimport distill_finetune, training\n"
        "calls, step = [], training.training_step\n\ndef dying(*a):\n    calls.append(1)\n"
        "    if os.environ['RANK'] == '1' and len(calls) == 3:\n        raise ValueError('worker 1 is ill')\n"
        "    return step(*a)\n\ntraining.training_step = dying\ntraining.run_script(distill_finetune.main)\n"
    )
    options = [*common, "--per_device_train_batch_size", "8", "--save_steps", "1", "--output_dir", tmp_path / "run"]
    command = [*TORCHRUN, "29512", str(script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "worker 1 is ill" in done.stderr
    launch(29513, "distill_finetune.py", *options)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["time"]["sessions"] == 2


def test_masked_language_models_too(world, tmp_path):
    config = AutoConfig.from_pretrained(world / "bert")
    torch.manual_seed(1)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "t")
    AutoTokenizer.from_pretrained(world / "bert").save_pretrained(tmp_path / "t")
    options = ["--corpus", world / "text" / "train.txt", "--validation_corpus", world / "text" / "valid.txt",
               "--seq_length", "32", "--teacher", tmp_path / "t", "--student_layers", "2", "--hard_weight", "0.1",
               "--max_train_samples", "17", "--num_train_epochs", "1", "--max_eval_samples", "7"]  # fmt: skip
    size = "--per_device_train_batch_size"
    one = [sys.executable, "distill_pretrain.py", *map(str, options), size, "8", "--output_dir", str(tmp_path / "1")]
    subprocess.run(one, check=True, capture_output=True)
    launch(29514, "distill_pretrain.py", *options, size, "4", "--output_dir", tmp_path / "2")
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("1", "2"))
    assert one["best"]["metrics"] == pytest.approx(two["best"]["metrics"], rel=1e-3)


def test_a_stream_split_between_processes_and_workers_resumes_bit_for_bit(world, tmp_path):
    """Three runs in one launch: whole, cut, resumed."""
    script = tmp_path / "thrice.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, os.getcwd())
from accelerate.state import AcceleratorState
import corpus, distill_pretrain, training
corpus.DOCUMENTS, corpus.POOL = 3, 6
step, calls, ends = training.training_step, [], [0]

def cut(*arguments):
    calls.append(1)
    if len(calls) == ends[0]:
        raise KeyboardInterrupt
    return step(*arguments)

training.training_step = cut
for folder, ends[0] in (("whole", 0), ("cut", 7), ("cut", 0)):
    calls.clear()
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        distill_pretrain.main(sys.argv[1:] + ["--output_dir", r"{tmp_path}/" + folder])
        assert not ends[0]
    except KeyboardInterrupt:
        pass
    training.torch.distributed.barrier()
""")
    launch(29515, script, "--corpus", world / "text" / "train.txt", "--validation_corpus", world / "text" / "valid.txt",
           "--streaming", "--num_workers", "2", "--seq_length", "16", "--teacher", world / "bert",
           "--student_layers", "2", "--max_steps", "8", "--save_steps", "2", "--max_eval_samples", "4",
           "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2")  # fmt: skip
    record = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert record["time"]["sessions"] == 2 and record["hardware"]["processes"] == 2
    checkpoints = [tmp_path / name / "checkpoints" / "step-00000008" for name in ("whole", "cut")]
    positions = [json.loads((folder / "state.json").read_text())["positions"] for folder in checkpoints]
    assert positions[0] == positions[1] and [sorted(of) for of in positions[0]] == [["0", "1"]] * 2
    assert all(worker["pool"] > 0 for of in positions[0] for worker in of.values())
    a, b = (load_file(folder / "model.safetensors") for folder in checkpoints)
    assert all(torch.equal(a[k], b[k]) for k in a)
