"""On a GPU: no preset, stage or kind of task reads the device within a step; a profile of a step, by kernel.

python bench/quick.py [--device cpu]      on a CPU it only shows that it runs to its end
"""

import argparse
from types import SimpleNamespace

import bench_step
import timing
import torch

import losses
from tasks import kinds

SMALL = {"batch": 4, "tokens": "32", "layers": 4, "width": 128, "steps": 1}


def silently(function, device):
    """The first line of the error by which CUDA refuses a reading within the function's second call; "none"."""
    function()
    try:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        function()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return "none"


def kind_losses(name, device):
    """A function that takes the losses of a kind of task, forward and backward."""
    kind = kinds.KINDS[name](
        SimpleNamespace(labels=("a", "b", "c"), limits=(1.0, 5.0) if name == "similarity" else None)
    )
    shape = {"regression": (4, 1), "token": (4, 6, 3), "qa": (4, 6)}.get(name, (4, 3))
    keys = ("start_logits", "end_logits") if name == "qa" else ("logits",)
    out = {key: torch.randn(shape, device=device, requires_grad=True) for key in keys}
    of_labels = {"regression": (4,), "token": (4, 6), "multilabel": (4, 3)}.get(name, (4,))
    keys = ("start_positions", "end_positions") if name == "qa" else ("labels",)
    batch = {key: torch.ones(of_labels, dtype=torch.long, device=device) for key in keys}
    mask = torch.ones(4, 6, dtype=torch.long, device=device)
    args = SimpleNamespace(temperature=2.0)

    def run():
        views = [losses.ModelView(out, (), mask, kind=kind) for _ in range(2)]
        (kind.hard_loss(views[0].logits, kind.labels(batch)) + kind.soft_loss(*views, batch, args)).backward()

    return run


def reads(options):
    """Rows: what, and the reading that was refused."""
    for stage in ("fine-tuning", "pre-training"):
        for preset in losses.PRESETS:
            if preset != "dynabert":  # whose networks have a script of their own
                yield [f"{stage}, {preset}", silently(bench_step.make(stage, preset, options), options.device)]
    for name in kinds.KINDS:
        yield [f"losses of kind {name}", silently(kind_losses(name, options.device), options.device)]


def profile(options):
    """Print the kernels that a step of pre-training with ckd takes longest for, with cuDNN's attention and without."""
    cuda = options.device == "cuda"
    options = SimpleNamespace(
        **(vars(options) | ({"batch": 64, "tokens": "128", "layers": 12, "width": 768} if cuda else {}))
    )
    step = bench_step.make("pre-training", "ckd", options)
    for cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        step()
        with torch.profiler.profile() as found:
            timing.once(step, options.device)
        print(f"\ncuDNN's attention {'on' if cudnn else 'off'}:\n")
        key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
        print(found.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=60))


def main():
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--device", default="cuda", help="cpu or cuda")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    options = SimpleNamespace(**SMALL, **vars(parser.parse_args()))
    print(timing.machine(options.device), "\n")
    timing.table(["a step of", "refused"], reads(options))
    profile(options)


if __name__ == "__main__":
    main()
