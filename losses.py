"""What a student is trained with: ModelView, and the terms by name.

Elsewhere: CKD's relations (relations.py), the masked-LM head (methods/mlm_head.py), other methods' terms
(methods/baselines.py), presets, the recipes of the tasks and the options that choose among them (methods/recipes.py).
Axes: B batch, L aligned layers, T tokens, D width, C classes. mask [B, T]: 1 = real token.
"""

from functools import cached_property

import torch

import relations
from methods import baselines, term_weights
from methods.baselines import Needs, needs, nothing
from methods.mlm_head import soft_head_logits
from methods.recipes import PRESETS as PRESETS  # offered here too
from methods.recipes import RECIPES as RECIPES
from methods.recipes import check_args as check_args
from methods.recipes import parse_terms as parse_terms
from relations import check_layers, masked_mean
from relations import ltr_pair as ltr_pair  # the four are offered here by name
from relations import ltr_triple as ltr_triple
from relations import wr_pair as wr_pair
from relations import wr_triple as wr_triple


def soft_logits(student, teacher, *, temperature=1.0, mask=None, across_processes=False):
    """Temperature-scaled distillation of logits: T^2 * KL(teacher || student).

    student, teacher [..., C]: logits of any float type; gradients flow to the student only. temperature: > 0.
    mask [...]: rows that count, all by default. Returns the mean over these rows (all leading axes), float32 scalar.
    The factor T^2 keeps the gradient's size over temperatures. across_processes: as in `relations.masked_mean`.
    Raises ValueError for a temperature that is not positive. Source: Hinton et al., arXiv:1503.02531.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive: try 1.0")
    with torch.autocast(student.device.type, enabled=False):
        log_s = (student.float() / temperature).log_softmax(-1)
        log_t = (teacher.detach().float() / temperature).log_softmax(-1)
        # Not F.kl_div: it gives NaN for a class that both models exclude by a logit of -inf.
        gap = torch.where(log_t > float("-inf"), log_t - log_s, 0.0)
        rows = (log_t.exp() * gap).sum(-1)
        if mask is None:
            count = rows.numel()
        else:
            rows, count = torch.where(mask, rows, 0.0), mask.sum()
        return temperature**2 * masked_mean(rows.sum(), count, across_processes)


class ModelView:
    """One model's outputs as the terms read them: logits, aligned hidden states, and relations, computed once a batch.

    out: a transformers ModelOutput or dict; `model_outputs.add_outputs` adds "qkv" and "projected" to it. layers: the
    indices of the aligned hidden_states, in order, or Layers. mask [B, T]: 1 = real token; None: all tokens are real.
    across_processes: take means over the batch of all processes, as in `relations.masked_mean`. kind: the `kinds.Kind`
    that finds and compares the logits of out; None for plain logits [..., C].
    """

    def __init__(self, out, layers, mask, across_processes=False, kind=None):
        self.out, self.layers, self.mask, self.across_processes = out, layers, mask, across_processes
        self.kind, self._relations = kind, {}

    @cached_property
    def logits(self):
        """Return the logits [..., C] that the task's kind compares."""
        return self.kind.logits(self.out, self.mask) if self.kind else self.out["logits"]

    @property
    def aligned(self):
        """Return the L aligned hidden states, each [B, T, D]."""
        return self._hidden(self.layers)

    def _hidden(self, layers):
        return [self.out["hidden_states"][i] for i in layers]

    @cached_property
    def hidden(self):
        """Return the aligned hidden states as one tensor [B, L, T, D], a copy."""
        return torch.stack(self.aligned, 1)

    @cached_property
    def valid(self):
        """Return the mask as bool [B, T]."""
        if self.mask is None:
            first = self.out["hidden_states"][0]
            return torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
        return self.mask.bool()

    def states(self, layer, term=None):
        """Return a layer's hidden states [B, T, D], in the teacher's width if the term has a learned projection."""
        projected = self.out.get("projected", {})
        return projected.get(term, self.out["hidden_states"])[layer]

    def heads(self, layer):
        """Return (number of attention heads, width of all of them together) of a layer."""
        heads, size = self.out["qkv"][layer][0].shape[-2:]
        return heads, heads * size

    def qkv(self, layer, heads):
        """Return a layer's queries, keys and values, float32 [B, heads, T, D / heads], 0 at padding."""
        found = (x.float().flatten(-2) for x in self.out["qkv"][layer])
        found = (torch.where(self.valid[..., None], x, 0.0) for x in found)
        return [x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2) for x in found]

    def mean(self, total, count):
        """Return `relations.masked_mean` over the batch of this process or, with across_processes, of all."""
        return masked_mean(total, count, self.across_processes)

    def relation(self, name, teacher, args):
        """Return one relation between this model, the student, and the teacher's ModelView, float32 scalar.

        The first call computes all relations of the same layers that args.terms names, because together they cost
        little more than one. Without args.terms it computes all that the aligned layers allow.
        """
        layers = self._layers(teacher, name)
        compiled = getattr(args, "compile", False)
        options = relations.Options(args.distance, args.pair_criterion, args.triple_criterion, args.window, compiled)
        found = self._relations.setdefault((teacher, layers, options), {})
        if name not in found:
            wanted = {name, *getattr(args, "terms", relations.NAMES)}
            possible = [n for n in relations.NAMES if n == name or len(layers[0]) >= relations.LAYERS[n]]
            names = tuple(n for n in possible if n in wanted and self._layers(teacher, n) == layers)
            student, other = self._hidden(layers[0]), teacher._hidden(layers[1])
            found |= relations.relation_losses(
                student, other, self.mask, names, options, across_processes=self.across_processes
            )
        return found[name]

    def layers_of(self, kind):
        """Return the layers that relations of a kind, "wr" or "ltr", compare."""
        return tuple(getattr(self.layers, kind, self.layers))

    def _layers(self, teacher, name):
        """Return both models' layers of the relation of this name."""
        kind = name.split("_")[0]
        return self.layers_of(kind), teacher.layers_of(kind)


def _word_pairs(layer_pairs):
    """Return the pairs of layers that word relations compare."""
    return list(getattr(layer_pairs, "wr", layer_pairs))


def _ltr_pairs(layer_pairs):
    """Return the pairs of layers that layer transforming relations compare."""
    return list(getattr(layer_pairs, "ltr", layer_pairs))


def _enough_layers(name, layer_pairs, student, teacher):
    check_layers(name, len(_ltr_pairs(layer_pairs)))


@needs(states=nothing)
def _logits_term(student, teacher, batch, args):
    if "head" in student.out:  # masked language modelling
        return soft_head_logits(
            student.out["head"],
            teacher.out["head"],
            temperature=args.temperature,
            across_processes=student.across_processes,
            compiled=getattr(args, "compile", False),
        )
    if student.kind:
        return student.kind.soft_loss(student, teacher, batch, args)
    return soft_logits(
        student.logits, teacher.logits, temperature=args.temperature, across_processes=student.across_processes
    )


@needs(states=_word_pairs)
def _wr_pair_term(student, teacher, batch, args):
    return student.relation("wr_pair", teacher, args)


@needs(states=_word_pairs)
def _wr_triple_term(student, teacher, batch, args):
    return student.relation("wr_triple", teacher, args)


@needs(states=_ltr_pairs, check=_enough_layers)
def _ltr_pair_term(student, teacher, batch, args):
    return student.relation("ltr_pair", teacher, args)


@needs(states=_ltr_pairs, check=_enough_layers)
def _ltr_triple_term(student, teacher, batch, args):
    return student.relation("ltr_triple", teacher, args)


def _last_words(layer_pairs):
    """Return the last pair of layers that word relations compare."""
    return sorted(_word_pairs(layer_pairs))[-1:]


def _between_sentences(name, student, teacher, args):
    """Return a word relation whose words are the batch's sentences: the means of their last layer's states."""
    (s, t), pooled = _last_words(list(zip(student.layers_of("wr"), teacher.layers_of("wr"), strict=True)))[0], []
    for view, layer in ((student, s), (teacher, t)):  # one set of B sentences
        pooled.append([baselines.sentence_means(view.out["hidden_states"][layer], student.valid)[None]])
    options = relations.Options(args.distance, args.pair_criterion, args.triple_criterion, window=None)
    there = student.valid.any(1)[None]
    return relations.relation_losses(*pooled, there, (name,), options, across_processes=student.across_processes)[name]


@needs(states=_last_words)
def _sentence_pair_term(student, teacher, batch, args):
    """Compare the similarities of every two sentences of the batch. Ours, not the paper's."""
    return _between_sentences("wr_pair", student, teacher, args)


@needs(states=_last_words)
def _sentence_triple_term(student, teacher, batch, args):
    """Compare the angles of every three sentences of the batch. Ours, not the paper's."""
    return _between_sentences("wr_triple", student, teacher, args)


# name -> (student, teacher, batch, args) -> scalar. student, teacher: ModelView; batch: the collated inputs; args:
# `term_weights.Objective`.
TERMS = {
    "logits": _logits_term,
    "wr_pair": _wr_pair_term,
    "wr_triple": _wr_triple_term,
    "ltr_pair": _ltr_pair_term,
    "ltr_triple": _ltr_triple_term,
    "sentence_pair": _sentence_pair_term,
    "sentence_triple": _sentence_triple_term,
    "sentence_mse": baselines.sentence_mse,
    "pkd": baselines.pkd,
    "hidden_mse": baselines.hidden_mse,
    "attention_mse": baselines.attention_mse,
    "embedding_mse": baselines.embedding_mse,
    "hidden_cosine": baselines.hidden_cosine,
    "minilm": baselines.minilm,
    "dynabert_mse": baselines.dynabert_mse,
}


def objective(student, teacher, batch, recipe, hard_loss=None):
    """Return the weighted sum of all terms, which training minimises, and the terms: (scalar, {name: scalar}).

    student, teacher: ModelViews of one batch; without terms the teacher may be None. recipe: `term_weights.Objective`.
    hard_loss(): returns the loss on the true labels; called if it has a weight, and named `term_weights.HARD`.
    """
    values = {name: TERMS[name](student, teacher, batch, recipe) for name in recipe.terms}
    if hard_loss and recipe.hard_weight:
        values[term_weights.HARD] = hard_loss()
    # Here `values["agreement"] = ...` adds a scalar that has no weight to TensorBoard.
    return sum(weight * values[name] for name, weight in recipe.weights.items() if name in values), values


def needs_of(name):
    """Return what a term's function declared with `@needs`; by default all aligned hidden states."""
    return getattr(TERMS[name], "needs", Needs())


def teacher_layers(terms, layer_pairs):
    """Return the teacher's hidden states that the terms read, in order; [] if none do."""
    return sorted({t for name in terms for _, t in needs_of(name).states(layer_pairs)})


def qkv_pairs(terms, layer_pairs):
    """Return the pairs of layers whose queries, keys and values the terms read, in order; [] if none do."""
    return sorted({pair for name in terms for pair in needs_of(name).qkv(layer_pairs)})


def projected_layers(terms, layer_pairs):
    """Return {term: student layers that it projects to the teacher's width where widths differ}."""
    return {name: [s for s, _ in needs_of(name).states(layer_pairs)] for name in terms if needs_of(name).projected}


def check_terms(terms, layer_pairs, student=None, teacher=None):
    """Raise ValueError for a term that the aligned layers or the models' shapes do not allow.

    student, teacher: the models' configurations, for terms that check shapes.
    """
    for name in terms:
        needed = needs_of(name)
        read = [found for found in (needed.states, needed.qkv) if found is not nothing]
        if read and not any(found(layer_pairs) for found in read):
            if not layer_pairs or name in relations.NAMES:
                raise ValueError("no layers are aligned: widen --layer_map or drop --no_embeddings")
            raise ValueError(f"{name} compares transformer layers but only embeddings are aligned: widen --layer_map")
        if needed.check:
            needed.check(name, layer_pairs, student, teacher)


def no_rows(out):
    """Return a batch or a model's outputs without any example; they keep their graph, and every term of them is 0."""
    if isinstance(out, torch.Tensor):
        return out[:0]
    if isinstance(out, tuple):
        return tuple(no_rows(x) for x in out)
    return type(out)({k: no_rows(v) for k, v in out.items()}) if isinstance(out, dict) else out


def several_processes():
    """Return whether torch.distributed runs, so that a batch's means are taken over all processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
