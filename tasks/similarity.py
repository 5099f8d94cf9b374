"""Sentence encoders: a vector for each text, cosines of pairs, and folders that sentence-transformers opens.

Axes: B texts, T tokens, D width. mask [B, T]: 1 = real token.
"""

import json
import shutil
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers.utils import cached_file

from methods.baselines import sentence_means

MODULE_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")  # of a layer after the encoder


def pooling_of(folder):
    """Return how a sentence-transformers folder pools, "mean" or "cls"; "mean" if the folder does not say.

    Raises ValueError for another pooling, and for layers after the pooling that change cosines.
    """
    if Path(folder).name.endswith("_Transformer") and (Path(folder).parent / "modules.json").is_file():
        folder = Path(folder).parent
    kinds = {module["type"].rpartition(".")[2]: module for module in _json(folder, "modules.json")}
    if unknown := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ValueError(
            f"{folder} has a layer {unknown[0]} after its encoder (modules.json), which is not supported here: take an "
            "encoder with mean or [CLS] pooling alone"
        )
    config = _json(folder, f"{kinds['Pooling']['path']}/config.json") if "Pooling" in kinds else {}
    chosen = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
    chosen = [{"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}.get(name) for name in chosen]
    if isinstance(config.get("pooling_mode"), str):  # newer versions write this instead
        chosen = [config["pooling_mode"]]
    if chosen not in ([], ["mean"], ["cls"]):
        raise ValueError(f"{folder} pools in an unknown way (modules.json): take an encoder with mean or [CLS] pooling")
    return (chosen or ["mean"])[0]


def _json(source, name):
    """Return the content of this JSON file in a folder or on the hub; {} if there is none."""
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def modules_of(source):
    """Return {name: path} of the files that make a folder or hub id a sentence encoder; {} if it is none."""
    modules = _json(source, "modules.json")
    if not modules:
        return {}
    names = ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"]
    names += [f"{module['path']}/{name}" for module in modules if module["path"] for name in MODULE_FILES]
    found = {name: cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in names}
    return {name: path for name, path in found.items() if path}


def copy_modules(files, folder, width):
    """Copy the files of `modules_of` to a saved encoder of this width."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
        if name.endswith("/config.json"):
            config = json.loads(Path(path).read_text(encoding="utf-8"))
            config |= {key: width for key in ("word_embedding_dimension", "embedding_dimension") if key in config}
            _write_json(folder / name, config)


def pooled(hidden, mask, pooling="mean"):
    """Return a vector for each text, float32 [B, D]: the mean of its real tokens' states, or its first; 0 without any.

    hidden [B, T, D]; mask [B, T], 1 = real token, or the bias [B, 1, 1, T] of `model_outputs.model_inputs`, 0 = real.
    """
    real = (mask[:, 0, 0] == 0) if mask.ndim == 4 else mask.bool()
    return torch.where(real[:, :1], hidden[:, 0].float(), 0.0) if pooling == "cls" else sentence_means(hidden, real)


def drop_pooler(model):
    """Remove the pooler of an encoder: nothing reads it, so nothing trains it."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None


def give_vectors(model, pooling):
    """Make an encoder's forward return its texts' vectors as "logits" [B, D]; drop its pooler."""
    drop_pooler(model)

    def extend(model, args, inputs, out):
        """Add the vectors to the output; a forward hook."""
        return {**out, "logits": pooled(out["last_hidden_state"], inputs["attention_mask"], pooling)}

    model.register_forward_hook(extend, with_kwargs=True)


def cosines(vectors):
    """Return the cosines [B] of the two texts of each pair, from vectors [2 B, D] in order; 0 for no vector."""
    first, second = vectors.float().unflatten(0, (-1, 2)).unbind(1)
    return F.cosine_similarity(first, second, dim=-1, eps=1e-12)


def save_pooling(folder, source, width, pooling, max_length, prefix=""):
    """Write the files that sentence-transformers needs beside a saved encoder; the source's normalisation is kept.

    source: the folder or hub id that the encoder comes from. width: of the encoder. prefix: put before every text.
    """
    before = [module["type"].rpartition(".")[2] for module in _json(source, "modules.json")]
    kinds = ["Transformer", "Pooling", *(kind for kind in before if kind == "Normalize")]
    names = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    for name in names[1:]:
        (folder / name).mkdir(exist_ok=True)
    prompts = {"prompts": {"default": prefix}, "default_prompt_name": "default"} if prefix else {}
    _write_json(folder / "modules.json", modules)
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": width,
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_cls_token": pooling == "cls",
        },
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write_json(folder / "config_sentence_transformers.json", prompts)
