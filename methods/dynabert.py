"""DynaBERT (arXiv:2004.04037): rewiring by importance, and sub-networks as slices of one model.

The width is the share of attention heads and feed-forward neurons of each layer, the depth the share of layers. A
sub-network, a `Size`, consists of the first heads and neurons of evenly spread layers. Rewiring therefore puts the
important ones first.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

import models
from encoders import families, students


class Size(NamedTuple):
    """A sub-network: its multipliers of width and depth, and the numbers that follow."""

    width: float
    depth: float
    heads: int
    neurons: int
    layers: tuple  # numbers of its layers in the full network, from 0

    def __str__(self):
        return f"w{self.width:g}_d{self.depth:g}"


def sizes(config, width_mults, depth_mults):
    """Return the Sizes of all widths at all depths, the smallest first and the full network last.

    Depth d of L layers keeps round(d * L) of them; the i-th is layer floor(i * L / kept). Raises ValueError for a
    multiplier that is not above 0 and at most 1, leaves no whole head, neuron or layer, or gives the same size as
    another one, and if 1.0 is missing.
    """
    count, heads, neurons = config.num_hidden_layers, config.num_attention_heads, families.feed_forward_size(config)
    kept = {"width": {}, "depth": {}}
    for name, mults in (("width", width_mults), ("depth", depth_mults)):
        for mult in sorted(mults):
            if not 0 < mult <= 1:
                raise ValueError(f"--{name}_mults {mult:g} must be above 0 and at most 1, as in 1.0 0.75 0.5")
            what, whole = ("layer", count) if name == "depth" else ("head", heads)
            if mult * whole < 0.99 or (name == "width" and round(mult * neurons) < 1):
                least = f"{1 / whole:.3g}"
                raise ValueError(f"--{name}_mults {mult:g} leaves no whole {what} of {whole}: take {least} or more")
            size = round(mult * whole)
            if size in kept[name].values():
                raise ValueError(
                    f"--{name}_mults {mult:g} leaves {size} of {whole} {what}s, as another one does: drop it"
                )
            kept[name][mult] = size
        if 1.0 not in kept[name]:
            raise ValueError(f"--{name}_mults {' '.join(f'{m:g}' for m in mults)} lacks the full size: add 1.0")
    return [
        Size(width, depth, few, round(width * neurons), tuple(i * count // layers for i in range(layers)))
        for depth, layers in kept["depth"].items()
        for width, few in kept["width"].items()
    ]


# --- one network of many sizes -----------------------------------------------------------------------------------


class Sliced(torch.nn.Linear):
    """A Linear that uses only its first outputs and inputs, all if None. The product has that smaller size."""

    outputs = inputs = None

    def forward(self, x):
        """Compute the outputs in use."""
        if self.outputs is None and self.inputs is None:
            return super().forward(x)
        bias = None if self.bias is None else self.bias[: self.outputs]
        return F.linear(x, self.weight[: self.outputs, : self.inputs], bias)


class Stack(torch.nn.ModuleList):
    """Layers of which a pass uses only those in `kept`, all if None."""

    kept = None

    def __iter__(self):
        layers = list(super().__iter__())
        return iter(layers if self.kept is None else [layers[i] for i in self.kept])


def make_dynamic(model):
    """Let `resize` change the size of the model, in place; parameters and their names stay. Returns the model."""
    stack = families.encoder_layers(model)
    stack.__class__ = Stack  # parameters and hooks stay, for DDP, checkpoints and save_pretrained
    for layer in stack:
        for linear in families.layer_parts(layer, model.config).values():
            linear.__class__ = Sliced
    return model


def resize(model, size=None):
    """Set the sub-network that passes through a dynamic model use from now on; None: the full network."""
    stack = families.encoder_layers(model)
    stack.kept = None
    for layer in stack:
        parts = families.layer_parts(layer, model.config)
        full = size is None or size.width == 1
        inner = None if full else size.heads * (model.config.hidden_size // model.config.num_attention_heads)
        neurons = None if full else size.neurons
        for name in ("query", "key", "value"):
            parts[name].outputs = inner
        parts["attended"].inputs, parts["up"].outputs, parts["down"].inputs = inner, neurons, neurons
    stack.kept = None if size is None or size.depth == 1 else size.layers


def extract(model, size):
    """Return a sub-network as a model of its own with smaller linear layers, on the model's device, in eval mode.

    If it has fewer heads than its width divides into, config.kept_heads says how many.
    """
    config = students.student_config(model.config, layers=len(size.layers), intermediate=size.neurons)
    vars(config).pop("dynabert", None)
    cls = type(model)
    if size.heads < config.num_attention_heads:
        config.kept_heads, cls = size.heads, models.narrow(cls)
    with torch.device(model.device):
        small = cls._from_config(config, attn_implementation=model.config._attn_implementation)
    state, prefix = model.state_dict(), f"{model.base_model_prefix}.{families.FAMILIES[config.model_type].layers}."
    with torch.no_grad():
        for name, value in small.state_dict().items():
            if name.startswith(prefix):
                at, rest = name.removeprefix(prefix).split(".", 1)
                name = f"{prefix}{size.layers[int(at)]}.{rest}"
            value.copy_(state[name][tuple(slice(n) for n in value.shape)])
    return small.eval()


# --- rewiring ----------------------------------------------------------------------------------------------------


def importance(model, batches, loss):
    """Return how much each head and neuron matters: the first-order change of the loss if it were removed.

    model: in eval mode. batches: dicts of tensors. loss(model, batch) -> losses of the examples, [B]. Returns for each
    layer (heads [H], neurons [I]): the sum over examples of |d loss / d gate|, where a gate of 1 multiplies the output
    of the head or neuron; with the absolute value no example's gain makes up for another's loss. Parameters get no
    gradients. Source: section 2.1 of arXiv:2004.04037, after arXiv:1905.10650.
    """
    heads = model.config.num_attention_heads
    parts = [families.layer_parts(layer, model.config) for layer in families.encoder_layers(model)]
    counts = [n for part in parts for n in (heads, part["down"].in_features)]
    gates, found = [], [torch.zeros(n, device=model.device) for n in counts]

    def gate(width):
        """Return a hook that multiplies the input of a linear layer, in groups of `width`, by new gates."""

        def hook(module, args):
            x = args[0]
            gates.append(x.new_ones(len(x), x.shape[-1] // width, requires_grad=True))
            return (x * gates[-1].repeat_interleave(width, -1)[:, None],)

        return hook

    hooks = [
        part[name].register_forward_pre_hook(gate(part["attended"].in_features // heads if n == 0 else 1))
        for part in parts
        for n, name in enumerate(("attended", "down"))
    ]
    try:
        for batch in batches:
            gates.clear()
            with torch.enable_grad():
                grads = torch.autograd.grad(loss(model, batch).sum(), gates)
            found = [total + grad.abs().sum(0) for total, grad in zip(found, grads, strict=True)]
    finally:
        for hook in hooks:
            hook.remove()
    return list(zip(found[::2], found[1::2], strict=True))


@torch.no_grad()
def rewire(model, importances):
    """Sort heads and neurons of every layer by importance, in place, the most important first.

    importances: from `importance`. The full network computes the same as before, except for the order of sums.
    """
    for layer, (heads, neurons) in zip(families.encoder_layers(model), importances, strict=True):
        parts = families.layer_parts(layer, model.config)
        size = parts["attended"].in_features // len(heads)
        order = torch.argsort(heads, descending=True, stable=True)
        inner = (order[:, None] * size + torch.arange(size, device=order.device)).flatten()
        order = torch.argsort(neurons, descending=True, stable=True)
        for name, index in (("query", inner), ("key", inner), ("value", inner), ("up", order)):
            parts[name].weight.copy_(parts[name].weight[index])
            if parts[name].bias is not None:
                parts[name].bias.copy_(parts[name].bias[index])
        for name, index in (("attended", inner), ("down", order)):
            parts[name].weight.copy_(parts[name].weight[:, index])
