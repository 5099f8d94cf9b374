"""The same distillation on CoLA by this code, torchdistill and TextBrewer: CPU time of a step and of a whole run.

    pip install --no-deps --target peers torchdistill==1.1.5 textbrewer==0.2.1
    python bench/bench_peers.py --peers peers --model my/MiniLM-L6 --data_dir glue

Each run is a process of its own, the sides taking turns; one thread. "Equal terms": the same batches in the same
random order, padded to the longest of the batch, clipping at 1, linear decay and the fused AdamW on all sides. "As
they are": this code groups sentences by length, the others take the optimiser of their examples. The teacher's head
is random, which costs the same. A peer's run is what its example does: read, tokenise, train, score the dev set,
save; this code's is its script, which scores the dev set before the first step, too, draws relations and keeps a
checkpoint with the optimiser: "equal work" is on equal terms without these three. It also measures its latency in
each run, for about two seconds. A step is from one batch to the next. torchdistill imports
torchvision for models of images that are not used here; where it is missing an empty module stands in for it, which
makes torchdistill's run shorter.
"""

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIDES = {  # name -> arguments of a worker
    "ours, kd, equal terms": ["ours", "kd", "--equal"],
    "torchdistill, kd, equal terms": ["torchdistill", "kd", "--equal"],
    "TextBrewer, kd, equal terms": ["textbrewer", "kd", "--equal"],
    "ours, ckd, equal terms": ["ours", "ckd", "--equal"],
    "ours, kd, equal work": ["ours", "kd", "--equal", "--bare"],
    "ours, ckd, equal work": ["ours", "ckd", "--equal", "--bare"],
    "ours, kd, as it is": ["ours", "kd"],
    "torchdistill, kd, as it is": ["torchdistill", "kd"],
    "TextBrewer, kd, as it is": ["textbrewer", "kd"],
    "ours, ckd, as it is": ["ours", "ckd"],
}
RATE, CLIP, LENGTH = 5e-5, 1.0, 128
MARKS = []  # CPU seconds of this process whenever a batch is asked for


class Order:
    """The steps of an epoch in random order, marked when they are asked for; a batch sampler, too."""

    def __init__(self, options, count):
        import torch

        order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
        size = options.batch
        self.steps = [order[i * size : (i + 1) * size] for i in range(options.steps)]

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, at):
        if isinstance(at, int):
            MARKS.append(time.process_time())
        return self.steps[at]

    def __iter__(self):
        return (self[i] for i in range(len(self)))


# --- this code ----------------------------------------------------------------------------------------------------


def ours(options):
    """The script as it is; on equal terms with the others' order of sentences in place of its own."""
    sys.path.insert(0, str(HERE.parent))
    sys.argv = [
        "distill_finetune.py",
        "--task",
        "cola",
        "--data_dir",
        options.data_dir,
        "--teacher",
        options.teacher,
        "--student_layers",
        "3",
        "--terms",
        options.terms,
        "--max_steps",
        str(options.steps),
        "--warmup_ratio",
        "0",
        "--per_device_train_batch_size",
        str(options.batch),
        "--max_seq_length",
        str(LENGTH),
        "--output_dir",
        options.output_dir,
    ]
    from engine.checks import check_finetune
    from options import begin, finetune_parser

    begin(finetune_parser(), check_finetune)  # as the script does, before its other imports
    import distill_finetune
    import training
    from encoders import model_outputs
    from tasks import batching

    step, evaluate = training.training_step, training.evaluate

    def marked(*arguments):
        MARKS.append(time.process_time())
        return step(*arguments)

    training.training_step = marked
    if options.equal:
        batching.grouped_batches = lambda lengths, *_: Order(options, len(lengths)).steps
    if options.bare:
        model_outputs.relation_figures = training.save_checkpoint = lambda *_: {}
        training.evaluate = lambda args, accelerator, recipe, model, state, *more: (
            state["step"] and evaluate(args, accelerator, recipe, model, state, *more)
        )
    distill_finetune.main()


# --- the others ---------------------------------------------------------------------------------------------------


def read(options, name):
    """One of CoLA's files as a Dataset of texts and labels."""
    from datasets import Dataset

    rows = [line.split("\t") for line in (Path(options.data_dir) / "CoLA" / name).read_text("utf-8").splitlines()]
    return Dataset.from_dict({"text": [row[3] for row in rows], "label": [int(row[1]) for row in rows]})


def everything(options):
    """(training set, dev set, collate function, teacher, student, tokenizer) as the examples of both make them."""
    import torch
    import transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    train, dev = (
        read(options, name).map(
            lambda rows: tokenizer(rows["text"], truncation=True, max_length=LENGTH),
            batched=True,
            remove_columns=["text"],
        )
        for name in ("train.tsv", "dev.tsv")
    )
    teacher = AutoModelForSequenceClassification.from_pretrained(options.teacher).eval()
    student = AutoModelForSequenceClassification.from_pretrained(options.teacher, num_hidden_layers=3)
    pad = DataCollatorWithPadding(tokenizer)

    def collate(rows):
        return {k: v for k, v in pad(rows).items() if k != "labels"}  # no loss on the labels is computed anywhere

    return train, dev, collate, teacher, student, tokenizer


def score(options, student, dev, collate, tokenizer):
    """Score the dev set and save the student."""
    import torch
    from sklearn.metrics import matthews_corrcoef

    student.eval()
    loader, found = torch.utils.data.DataLoader(dev, batch_size=64, collate_fn=collate), []
    with torch.no_grad():
        for batch in loader:
            found += student(**batch).logits.argmax(-1).tolist()
    matthews_corrcoef(dev["label"], found)
    student.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)


class Stub(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchvision and everything in it: empty classes of whatever name is asked for."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        def missing(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module = types.ModuleType(spec.name)
        module.__getattr__ = missing
        return module

    def exec_module(self, module):
        """There is nothing in it."""


@contextlib.contextmanager
def no_torchvision():
    """Where torchvision is not installed an empty one is imported within."""
    if importlib.util.find_spec("torchvision"):
        yield
        return
    stub = Stub()
    sys.meta_path.append(stub)
    for part in ("datasets", "models", "ops", "transforms"):  # as torchvision itself does
        importlib.import_module(f"torchvision.{part}")
    yield
    sys.meta_path.remove(stub)


def torchdistill(options):
    """Its DistillationBox, as examples/hf_transformers/text_classification.py drives it."""
    train, dev, collate, teacher, student, tokenizer = everything(options)
    with no_torchvision():  # after transformers was loaded, which looks for it, too
        import torch
        from torchdistill.core.distillation import get_distillation_box
        from torchdistill.datasets.registry import register_batch_sampler, register_collate_func
    register_collate_func(collate, key="pad")
    register_batch_sampler(lambda sampler: Order(options, len(train)), key="order")
    extra = {"fused": True} if options.equal else {}
    box = get_distillation_box(
        teacher,
        student,
        {"train": train},
        {
            "num_epochs": 1,
            "train_data_loader": {
                "dataset_id": "train",
                "requires_supp": False,
                "collate_fn": "pad",
                "kwargs": {},
                "sampler": {"class_or_func": torch.utils.data.SequentialSampler},
                "batch_sampler": {"key": "order", "kwargs": {}},
            },
            **{
                side: {
                    "forward_proc": "forward_batch_only_as_kwargs",
                    "requires_grad": side == "student",
                    "forward_hook": {"output": ["classifier"]},
                }
                for side in ("teacher", "student")
            },
            "optimizer": {"key": "AdamW", "kwargs": {"lr": RATE, "weight_decay": 0.01, **extra}, "max_grad_norm": CLIP},
            "scheduler": {
                "key": "LinearLR",
                "scheduling_step": 1,
                "kwargs": {"start_factor": 1.0, "end_factor": 0.001, "total_iters": options.steps},
            },
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {
                    "sub_terms": {
                        "kd": {
                            "weight": 1.0,
                            "criterion": {
                                "key": "KDLoss",
                                "kwargs": {
                                    "student_module_path": "classifier",
                                    "student_module_io": "output",
                                    "temperature": 1.0,
                                    "alpha": 0.0,
                                    "teacher_module_path": "classifier",
                                    "teacher_module_io": "output",
                                },
                            },
                        }
                    }
                },
            },
        },
        torch.device("cpu"),
        None,
        False,
        1,
    )
    box.pre_epoch_process(epoch=0)
    for batch in box.train_data_loader:
        loss = box.forward_process(batch, targets=None, supp_dict=None)
        box.post_forward_process(loss=loss)
        loss.item()  # its example shows it
    box.post_epoch_process()
    score(options, student, dev, collate, tokenizer)


def textbrewer(options):
    """Its GeneralDistiller, as the example of its README does."""
    import torch
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    train, dev, collate, teacher, student, tokenizer = everything(options)
    loader = torch.utils.data.DataLoader(train, batch_sampler=Order(options, len(train)), collate_fn=collate)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.01, fused=options.equal or None)
    config = TrainingConfig(device="cpu", output_dir=options.output_dir)

    def adaptor(batch, outputs):
        return {"logits": outputs.logits}

    decay = {"start_factor": 1.0, "end_factor": 0.001, "total_iters": options.steps}
    distiller = GeneralDistiller(config, DistillationConfig(temperature=1), teacher, student, adaptor, adaptor)
    with distiller:
        distiller.train(
            optimizer,
            loader,
            num_epochs=1,
            max_grad_norm=CLIP,
            scheduler_class=torch.optim.lr_scheduler.LinearLR,
            scheduler_args=decay,
        )
    score(options, student, dev, collate, tokenizer)


# --- measuring ----------------------------------------------------------------------------------------------------


def work(options):
    """In a process of its own: run a side and write its milliseconds a step."""
    sys.path.append(options.peers)  # behind all else: the peers may not hide what is installed
    {"ours": ours, "torchdistill": torchdistill, "textbrewer": textbrewer}[options.side](options)
    warm = MARKS[options.steps // 8 :]
    found = 1000 * (warm[-1] - warm[0]) / (len(warm) - 1)
    Path(options.output_dir, "ms.json").write_text(json.dumps(found))


def make_teacher(model, folder):
    """Save the model with a random classifier of two classes."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def run(options, folder, worker):
    """(milliseconds a step, CPU seconds of the whole process) of one run of a worker."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [
            sys.executable,
            __file__,
            "--peers",
            options.peers,
            "--model",
            options.model,
            "--data_dir",
            options.data_dir,
            "--steps",
            str(options.steps),
            "--batch",
            str(options.batch),
            "--worker",
            *worker,
            "--teacher",
            f"{folder}/teacher",
            "--output_dir",
            f"{out}/run",
        ]
        Path(out, "run").mkdir()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(worker)}: {done.stderr[-2000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        total = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return json.loads(Path(out, "run", "ms.json").read_text()), total


def ratios(one, other):
    """Median of the rounds' ratios, with their range."""
    found = sorted(a / b for a, b in zip(one, other, strict=True))
    return f"{statistics.median(found):.2f} [{found[0]:.2f}, {found[-1]:.2f}]"


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", required=True, help="folder that pip installed the two packages into")
    parser.add_argument("--model", required=True, help="encoder to make the teacher of")
    parser.add_argument("--data_dir", required=True, help="folder with CoLA/train.tsv and dev.tsv")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--worker", choices=("ours", "torchdistill", "textbrewer"), dest="side", help=argparse.SUPPRESS)
    for hidden in ("terms", "teacher", "output_dir"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    for hidden in ("equal", "bare"):
        parser.add_argument(f"--{hidden}", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("peers", "model", "data_dir"):
        setattr(options, name, str(Path(getattr(options, name)).resolve()))
    if options.side:
        return work(options)
    found = {name: [] for name in options.sides}
    with tempfile.TemporaryDirectory() as folder:
        make_teacher(options.model, f"{folder}/teacher")
        for _ in range(options.rounds):
            for name in options.sides:
                side, terms, *equal = SIDES[name]
                found[name].append(run(options, folder, [side, "--terms", terms, *equal]))
                print(f"{name}: {found[name][-1][0]:.1f} ms a step, {found[name][-1][1]:.1f} s", file=sys.stderr)
    import timing

    for name in ("torchdistill", "textbrewer", "transformers"):
        path = [options.peers] if name in ("torchdistill", "textbrewer") else sys.path
        version = next(d.version for d in importlib.metadata.distributions(name=name, path=path))
        print(f"{name} {version}", end="; ")
    print(f"{timing.machine('cpu')}. CPU time, one thread, medians of {options.rounds} rounds.\n")
    rows = []
    for name, times in found.items():
        base = found.get("ours, kd, " + name.split(", ")[-1].replace("work", "terms"), times)
        steps, wholes = zip(*times, strict=True)
        base_steps, base_wholes = zip(*base, strict=True)
        rows.append(
            [
                name,
                f"{statistics.median(steps):.0f}",
                ratios(steps, base_steps),
                f"{statistics.median(wholes):.1f}",
                ratios(wholes, base_wholes),
            ]
        )
    timing.table(["side", "step, ms", "step / ours, kd", "run, s", "run / ours, kd"], rows)
    return None


if __name__ == "__main__":
    main()
