"""A saved model as ONNX: `python -m encoders.onnx FOLDER` writes FOLDER/model.onnx, of any batch size and length."""

import argparse
from pathlib import Path

import torch
import transformers

import models
from encoders import model_outputs
from engine import command_line


def write_onnx(model, tokenizer, path):
    """Write the model as ONNX. Raises ValueError if its outputs differ from PyTorch's, or if a package is missing."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise ValueError("ONNX needs more packages: pip install onnx onnxscript onnxruntime") from error
    texts = ["a text", "a longer text, so that the first one has padding"]  # without padding the mask would be dropped
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    batch = {name: batch[name] for name in model_outputs.model_inputs(model, batch)}  # DistilBERT takes no token types
    with torch.no_grad():
        expected = model(**batch)
        torch.onnx.export(
            model,
            (),
            path,
            kwargs=batch,
            input_names=list(batch),
            output_names=list(expected),
            dynamic_shapes={name: {0: "batch", 1: "length"} for name in batch},
            dynamo=True,
        )
        shorter = tokenizer(texts[:1], return_tensors="pt")
        batch = {name: shorter[name] for name in batch}
        expected = model(**batch)
    found = onnxruntime.InferenceSession(path).run(list(expected), {k: v.numpy() for k, v in batch.items()})
    worst = max(float((torch.from_numpy(f) - e).abs().max()) for f, e in zip(found, expected.values(), strict=True))
    if not worst < 1e-3:
        raise ValueError(f"{path}: logits in ONNX Runtime differ from PyTorch's by {worst:.2g}: not exported")
    print(f"{path.name}: logits in ONNX Runtime differ from PyTorch's by at most {worst:.1g}")


def main(argv=None):
    """Export the model of the folder that the command line names, an ordinary student or a sub-network."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="a saved model")
    folder = parser.parse_args(argv).folder
    command_line.quiet()
    name = (models.load_config(str(folder), "FOLDER").architectures or [""])[0]
    auto = getattr(transformers, name, None)
    if auto is None:
        raise ValueError(f"{folder}: its config.json names no class of transformers as its architecture")
    model, _ = models.load_model(str(folder), auto, "FOLDER")
    write_onnx(model.eval(), models.load_tokenizer(str(folder)), folder / "model.onnx")


if __name__ == "__main__":
    command_line.run_script(main)
