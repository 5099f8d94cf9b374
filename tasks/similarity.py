"""Sentence encoders: texts pooled to one vector each, pairs compared by the cosine, folders that sentence-transformers
opens.

Axes: B texts, T tokens, D width. mask [B, T]: 1 = real token.
"""

import json
import shutil
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers.utils import cached_file

from methods.baselines import sentence_means

MODULE_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")  # of a layer behind the encoder


def pooling_of(folder):
    """Return how a sentence-transformers folder pools, "mean" or "cls"; "mean" where the folder does not say.

    Raises ValueError for another pooling, and for a folder with layers behind the pooling that change cosines.
    """
    if Path(folder).name.endswith("_Transformer") and (Path(folder).parent / "modules.json").is_file():
        folder = Path(folder).parent
    modules = _said(folder, "modules.json")
    if not modules:
        return "mean"
    kinds = {module["type"].rpartition(".")[2]: module for module in modules}
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise ValueError(
            f"{folder} has a layer {unknown[0]} behind its encoder (modules.json), which is not copied "
            "here: take an encoder with mean or [CLS] pooling alone"
        )
    said = _said(folder, f"{kinds['Pooling']['path']}/config.json") if "Pooling" in kinds else {}
    chosen = [name for name, on in said.items() if name.startswith("pooling_mode_") and on]
    chosen = [{"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}.get(name) for name in chosen]
    if isinstance(said.get("pooling_mode"), str):  # as newer versions write it
        chosen = [said["pooling_mode"]]
    if len(chosen) > 1 or chosen[:1] not in ([], ["mean"], ["cls"]):
        raise ValueError(
            f"{folder} pools in a way that is not known here (modules.json): take an encoder with mean or [CLS] pooling"
        )
    return (chosen or ["mean"])[0]


def _said(source, name):
    """Return the JSON file of this name in a folder or on the hub; {} where there is none."""
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}


def modules_of(source):
    """Return {name: path} of the files that make a sentence encoder of an encoder's folder or hub id; {} where it is
    none.
    """
    modules = _said(source, "modules.json")
    below = [f"{module['path']}/{name}" for module in modules or () if module["path"] for name in MODULE_FILES]
    names = (
        ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", *below] if modules else ()
    )
    found = {name: cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in names}
    return {name: path for name, path in found.items() if path}


def copy_modules(files, folder, width):
    """Put files of `modules_of` beside a saved encoder of this width, as their own encoder has them."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
        if name.endswith("/config.json"):
            said = json.loads(Path(path).read_text(encoding="utf-8"))
            said |= {key: width for key in ("word_embedding_dimension", "embedding_dimension") if key in said}
            (folder / name).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def pooled(hidden, mask, pooling="mean"):
    """One vector for each text, float32 [B, D]: the mean of its real tokens' states, or its first one; 0 without any.

    hidden [B, T, D]; mask [B, T], 1 = real token, or the bias [B, 1, 1, T] of `model_outputs.model_inputs`, 0 there.
    """
    real = (mask[:, 0, 0] == 0) if mask.ndim == 4 else mask.bool()
    return torch.where(real[:, :1], hidden[:, 0].float(), 0.0) if pooling == "cls" else sentence_means(hidden, real)


def drop_pooler(model):
    """Take the pooler out of an encoder alone, where nothing reads and so nothing trains it."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None


def give_vectors(model, pooling):
    """Make an encoder's forward return its texts' vectors as "logits" [B, D]; drop its pooler."""
    drop_pooler(model)

    def extend(model, args, inputs, out):
        """Return the hook that adds them."""
        return {**out, "logits": pooled(out["last_hidden_state"], inputs["attention_mask"], pooling)}

    model.register_forward_hook(extend, with_kwargs=True)


def cosines(vectors):
    """Cosines [B] of the two texts of each pair, whose vectors [2 B, D] stand one after the other; 0 for no vector."""
    first, second = vectors.float().unflatten(0, (-1, 2)).unbind(1)
    return F.cosine_similarity(first, second, dim=-1, eps=1e-12)


def save_pooling(folder, source, width, pooling, max_length, prefix=""):
    """Write what sentence-transformers needs beside a saved encoder; its own normalisation goes along.

    source: the folder or hub id that the encoder comes from. width: of the encoder. prefix: put before every text.
    """
    before = [module["type"].rpartition(".")[2] for module in _said(source, "modules.json") or ()]
    kinds = ["Transformer", "Pooling", *(kind for kind in before if kind == "Normalize")]
    names = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    for name in names[1:]:
        (folder / name).mkdir(exist_ok=True)
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_cls_token": pooling == "cls",
        },
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"default": prefix}, "default_prompt_name": "default"}
        if prefix
        else {},
    }
    for path, content in files.items():
        (folder / path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
