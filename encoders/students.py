"""The student: its configuration, and its weights, copied from the layers of another model."""

import copy
import re

import torch

from encoders import families, layer_maps
from engine import cost

# Parameters that may be dropped: heads of another task, and position_ids of old files.
DROPPED = re.compile(
    r"(cls|lm_head|pooler|classifier|pre_classifier|sop_classifier|qa_outputs|head|decoder|vocab_\w+|"
    r"predictions|\w+_predictions|generator_lm_head)\.|.*\bposition_ids$"
)


def student_config(source, layers=None, hidden=None, heads=None, intermediate=None):
    """Return a copy of a configuration with another shape; None keeps the source's number. Raises ValueError."""
    config = copy.deepcopy(source)
    names = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    names["hidden_dim" if config.model_type == "distilbert" else "intermediate_size"] = intermediate
    if hasattr(config, "pooler_hidden_size"):  # DeBERTa's; it follows the width
        names["pooler_hidden_size"] = hidden
    for name, value in names.items():
        if value is not None:
            setattr(config, name, value)
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"--student_hidden {config.hidden_size} is not a multiple of {config.num_attention_heads} heads: "
            "choose --student_heads that divides it"
        )
    return config


def check_size(config, auto):
    """Raise ValueError if a student of this configuration does not fit into the machine's memory.

    It takes 16 bytes a parameter on a CPU (weight, gradient, two moments of AdamW), else 4 on its way to the device.
    """
    counts = []
    for layers in (1, 2):  # all layers are alike; to make a thousand takes long even without storage
        small = copy.deepcopy(config)
        small.num_hidden_layers = layers
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in auto.from_config(small, trust_remote_code=False).parameters()))
    total = counts[0] + (config.num_hidden_layers - 1) * (counts[1] - counts[0])
    needed, there = total * (4 if torch.cuda.is_available() else 16), cost.machine_memory()
    if needed > there:
        raise ValueError(
            f"a student of {config.num_hidden_layers} layers, width {config.hidden_size} has {total:.3g} parameters, "
            f"which take {needed / 1e9:.3g} GB to train, and this machine has {there / 1e9:.3g} GB: lower "
            "--student_layers, --student_hidden or --student_intermediate"
        )


def copy_weights(student, source, init):
    """Copy the source's layers into the student by an initialisation strategy, and all other weights of equal shape.

    init: "uniform", "first" or "last", as in `layer_map`. Returns the names of the student's parameters that keep their
    random values. Raises ValueError if the layers' shapes or heads differ.
    """
    to_layers, from_layers = families.encoder_layers(student), families.encoder_layers(source)
    if student.config.num_attention_heads != source.config.num_attention_heads:
        raise ValueError(
            f"--student_init {init} copies layers with {source.config.num_attention_heads} heads, the student has "
            f"{student.config.num_attention_heads}: use --student_init random"
        )
    for s, t in layer_maps.layer_map(len(to_layers), len(from_layers), init)[1:]:
        try:
            # A student more than twice as deep maps its first layers to the embeddings: they take layer 1.
            to_layers[s - 1].load_state_dict(from_layers[max(t, 1) - 1].state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"--student_init {init} copies layers of width {source.config.hidden_size}, the student's shape "
                "differs: use --student_init random"
            ) from error
    state = source.state_dict()
    inside = {id(p) for p in to_layers.parameters()}
    left = []
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if id(parameter) in inside:
                continue
            if name in state and state[name].shape == parameter.shape:
                parameter.copy_(state[name])
            else:
                left.append(name)
    return left


def build_student(source, auto, shape, init=None):
    """Return a student of the given shape, initialised from the layers of the source model.

    source: a model with the head of the class auto. shape: keyword arguments of `student_config`. init: "uniform",
    "first", "last", or "random", which copies nothing; None: "uniform" if the widths are equal, else "random". The
    student of a source with fewer heads than its width allows (`models.narrow`) has as many, unless the shape gives
    heads or width.
    """
    families.check_layers_known(source.config, type(source).__name__)
    config = student_config(source.config, **shape)
    if hasattr(config, "kept_heads") and not (shape.get("heads") or shape.get("hidden")):
        student = type(source)._from_config(config, attn_implementation=source.config._attn_implementation)
    else:
        vars(config).pop("kept_heads", None)
        student = auto.from_config(
            config, attn_implementation=source.config._attn_implementation, trust_remote_code=False
        )
    if init is None:
        shapes = [
            [model.config.num_attention_heads, *(p.shape for p in families.encoder_layers(model)[0].parameters())]
            for model in (student, source)
        ]
        init = "uniform" if shapes[0] == shapes[1] else "random"
    if init != "random":
        copy_weights(student, source, init)
    return student
