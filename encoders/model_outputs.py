"""Inputs of a model's forward pass, and its outputs beside logits and hidden states."""

import inspect

import numpy as np
import torch

import losses
from encoders import families, layer_maps
from methods import mlm_head


class MaskedLM(torch.nn.Module):
    """A masked language model that applies its head at the masked positions only, or an encoder without a head.

    forward(inputs, positions [M] in the flattened batch) -> {"hidden_states": tuple of [B, T, D], "features": [M, D],
    "decoder": (weight [V, D], bias [V] or None)}; features times decoder are the logits. An encoder returns
    hidden_states alone. A multilingual head of 119,547 words at all positions would cost as much as twelve layers.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.narrow = None  # the decoder of a frozen model from `mlm_head.narrow_decoder`, made once

    def forward(self, inputs, positions):
        """See the class."""
        hidden = self.model.base_model(**inputs, output_hidden_states=True)["hidden_states"]
        if self.model.base_model is self.model:
            return {"hidden_states": hidden}
        features = families.FAMILIES[self.model.config.model_type].mlm(self.model, hidden[-1].flatten(0, 1)[positions])
        # Views, since DistributedDataParallel looks for the weights in use among the outputs of forward.
        layer = self.model.get_output_embeddings()
        decoder = tuple(None if x is None else x.view_as(x) for x in (layer.weight, layer.bias))
        return {"hidden_states": hidden, "features": features, "decoder": decoder}


def _inner(model):
    """Return the model itself, without MaskedLM around it."""
    return model.model if isinstance(model, MaskedLM) else model


def add_outputs(model, qkv_layers=(), projected=None, width=None, seed=0):
    """Add the inputs of other methods' terms to the output of the model's forward, which becomes a dict.

    qkv_layers: layers, counted as in hidden_states, for out["qkv"]: layer -> queries, keys and values, each [B, T,
    heads, D / heads], taken from the linear layers, so any attention kernel will do. projected: term -> layers, for
    out["projected"]: term -> layer -> hidden states projected to [B, T, width]; the weights, drawn from the seed, are
    parameters in model.projections. All happens within forward, as DDP needs it.
    """
    inner, captured = _inner(model), {}
    for layer in qkv_layers:
        for i, path in enumerate(families.FAMILIES[inner.config.model_type].qkv):
            linear = families.encoder_layers(inner)[layer - 1].get_submodule(path)
            linear.register_forward_hook(lambda _, args, out, key=(layer, i): captured.__setitem__(key, out))
    if projected:
        generator = torch.Generator().manual_seed(seed)
        model.projections = torch.nn.ModuleDict()
        for term in projected:
            linear = torch.nn.Linear(inner.config.hidden_size, width, bias=False)
            torch.nn.init.normal_(linear.weight, std=0.02, generator=generator)  # as BERT's own layers
            model.projections[term] = linear

    def extend(model, args, out):
        """Add captured outputs of linear layers and projected hidden states; a forward hook."""
        out, size = dict(out), inner.config.hidden_size // inner.config.num_attention_heads
        if qkv_layers:
            out["qkv"] = {
                layer: tuple(captured.pop((layer, i)).unflatten(-1, (-1, size)) for i in range(3))
                for layer in qkv_layers
            }
        if projected and "hidden_states" in out:
            with torch.autocast(out["hidden_states"][0].device.type, enabled=False):
                out["projected"] = {
                    term: {layer: model.projections[term](out["hidden_states"][layer].float()) for layer in layers}
                    for term, layers in projected.items()
                }
        return out

    if qkv_layers or projected:
        model.register_forward_hook(extend)


def add_term_outputs(objective, student, teacher, seed):
    """Make both models (or their MaskedLM) return what the objective's terms need besides logits and hidden states."""
    configs = [_inner(model).config for model in (student, teacher)]
    terms, pairs, width = objective.terms, objective.layer_pairs, configs[1].hidden_size
    qkv = losses.qkv_pairs(terms, pairs)
    projected = {} if configs[0].hidden_size == width else losses.projected_layers(terms, pairs)
    add_outputs(student, [s for s, _ in qkv], projected, width, seed)
    add_outputs(teacher, [t for _, t in qkv])


def cast_linears(model, accelerator):
    """Cast the linear layers of a frozen model, or its MaskedLM, once to the precision of autocast.

    Autocast caches casts of weights with a gradient only, so it would cast frozen ones again in each pass. The numbers
    stay the same, with two operations fewer a layer and half the memory. The decoder keeps its precision, as it may be
    the word embedding, too; a MaskedLM gets a cast copy of it. From then on the model runs under autocast only.
    """
    kind, decoder = accelerator.device.type, _inner(model).get_output_embeddings()
    with accelerator.autocast(), torch.no_grad():
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        if isinstance(model, MaskedLM) and decoder:
            model.narrow = mlm_head.narrow_decoder(decoder.weight, decoder.bias)
    for module in model.modules():
        if type(module) is torch.nn.Linear and module is not decoder:
            module.to(dtype)


def average_logits(teacher, others):
    """Make a teacher return the mean of its logits and the logits of other models of its type.

    Hidden states stay its own. The others become part of it: they go to its device, and into its digest, parameters and
    FLOPs.
    """
    teacher.others = torch.nn.ModuleList(others)

    def mean(model, _, inputs, out):
        """Average the logits; a forward hook."""
        inputs = inputs | {"output_hidden_states": False}
        found = [out, *(other(**inputs) for other in model.others)]
        for name in [name for name in out if name.endswith("logits")]:
            out[name] = torch.stack([each[name].float() for each in found]).mean(0)
        return out

    teacher.register_forward_hook(mean, with_kwargs=True)


def compile_models(*models):
    """Compile the models' forward in place, once for all lengths; skip None."""
    for model in filter(None, models):
        training, device = model.training, next(model.parameters()).device
        inputs = {"input_ids": torch.zeros(1, 2, dtype=torch.long, device=device)}
        with torch.no_grad():  # transformers installs hooks at the first pass, which would break the graph
            if isinstance(model, MaskedLM):
                model.eval()(inputs, inputs["input_ids"][0])
            else:  # a whole pass, which also removes what `add_outputs` captures; else there would be a second graph
                model.eval()(**inputs, output_hidden_states=True)
        model.train(training).compile(dynamic=True)


def saved_state(model):
    """Return the model's state dict without what `add_outputs` added to it."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("projections.")}


def model_inputs(model, batch):
    """Return the part of a batch that a model's forward takes: no labels, and token types only if it uses them.

    A batch without a mask has no padding. Where the family allows it, the mask becomes what attention adds to its
    scores, [B, 1, 1, T]. From [B, T] transformers would make it after reading the device, and from bool torch would
    make it in each layer.
    """
    config, inputs = model.config, {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    fast = families.FAMILIES[config.model_type].fast_mask and config._attn_implementation == "sdpa"
    if fast and "attention_mask" in inputs:
        kind, padding = inputs["attention_mask"].device.type, inputs["attention_mask"] == 0
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
        bias = torch.zeros(padding.shape, dtype=dtype, device=padding.device)
        bias.masked_fill_(padding, torch.finfo(dtype).min)  # not -inf: a row of padding alone would become NaN
        inputs["attention_mask"] = bias[:, None, None]
    # The class's forward, since a wrapper of the model's own may hide the signature.
    takes = inspect.signature(type(model).forward).parameters
    if "token_type_ids" in batch and "token_type_ids" in takes and getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = batch["token_type_ids"]
    return inputs


def max_tokens(config):
    """Return the longest input in tokens; RoBERTa and MPNet skip the first rows of their position table."""
    return config.max_position_embeddings - families.FAMILIES[config.model_type].skipped(config)


@torch.no_grad()
def relation_figures(student, teacher, pairs, inputs, tokens):
    """Return {tag: figure} of cosines in one sentence, teacher and student side by side.

    relations/words: between its words, in the last aligned pair of layers; relations/layers: between any two aligned
    layers, for each word. inputs: tensors [1, T] for both models. tokens: the T words. Only the models run under
    autocast.
    """
    from reporting import pictures  # here: matplotlib takes 0.3 s, and runs without a teacher draw nothing

    words, layers, pairs = [], [], layer_maps.LayerPairs(pairs, getattr(pairs, "wr", None), getattr(pairs, "ltr", None))
    for model, own in zip((teacher, student), pairs.sides()[::-1], strict=True):
        encoder = _inner(model).base_model
        hidden = encoder(**model_inputs(encoder, inputs), output_hidden_states=True)["hidden_states"]
        with torch.autocast(hidden[0].device.type, enabled=False):
            unit = [torch.nn.functional.normalize(h[0].float(), dim=-1) for h in hidden]  # [T, D] each
            words.append((unit[own.wr[-1]] @ unit[own.wr[-1]].T).cpu().numpy())
            through = torch.stack([unit[i] for i in own.ltr], 1)  # [T, L, D]
            layers.append((through @ through.mT)[:, *np.triu_indices(len(own.ltr), 1)].cpu().numpy())
    sides, (rows, columns) = pairs.sides()[::-1], np.triu_indices(len(pairs.ltr), 1)
    figures = {"relations/words": pictures.relation_figure(*words, tokens, [str(own.wr[-1]) for own in sides])}
    if len(pairs.ltr) > 1:
        names = [[f"{own.ltr[i]}-{own.ltr[j]}" for i, j in zip(rows, columns, strict=True)] for own in sides]
        figures["relations/layers"] = pictures.relation_figure(*layers, tokens, names)
    return figures
