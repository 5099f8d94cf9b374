"""What a student is trained with: ModelView, and the terms by name.

The relations of CKD stand in relations.py, the masked-LM head in methods/mlm_head.py, other methods' terms in
methods/baselines.py, presets, the recipes of the tasks and the options that choose among them in methods/recipes.py.
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
        # Not F.kl_div: where both say 0 (-inf logits), 0 * (-inf + inf) has to be 0.
        gap = torch.where(log_t > float("-inf"), log_t - log_s, 0.0)
        rows = (log_t.exp() * gap).sum(-1)
        if mask is None:
            count = rows.numel()
        else:
            rows, count = torch.where(mask, rows, 0.0), mask.sum()
        return temperature**2 * masked_mean(rows.sum(), count, across_processes)


class ModelView:
    """What the terms see of one model's outputs: its logits, aligned hidden states, and relations made once a batch.

    out: a transformers ModelOutput or dict. layers: the indices into its hidden_states that are aligned with the other
    model's, in order, or Layers. mask [B, T]: 1 = real token; None: all are. `model_outputs.add_outputs` puts "qkv" and
    "projected" into out. across_processes: whether means are over the batch of all processes, as in
    `relations.masked_mean`. kind: the `kinds.Kind` that knows what of out the logits are and how they are compared;
    None for plain logits [..., C].
    """

    def __init__(self, out, layers, mask, across_processes=False, kind=None):
        self.out, self.layers, self.mask, self.across_processes = out, layers, mask, across_processes
        self.kind, self._relations = kind, {}

    @cached_property
    def logits(self):
        """Logits as the task's kind has them; [..., C]."""
        return self.kind.logits(self.out, self.mask) if self.kind else self.out["logits"]

    @property
    def aligned(self):
        """Aligned hidden states, a tensor [B, T, D] for each of the L layers."""
        return [self.out["hidden_states"][i] for i in self.layers]

    @cached_property
    def hidden(self):
        """Aligned hidden states [B, L, T, D]; a copy, for terms that need them in one tensor."""
        return torch.stack(self.aligned, 1)

    @cached_property
    def valid(self):
        """Return the mask as bool [B, T]."""
        if self.mask is None:
            first = self.out["hidden_states"][0]
            return torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
        return self.mask.bool()

    def states(self, layer, term=None):
        """Hidden states [B, T, D] of a layer, in the teacher's width where the term has a learned projection."""
        projected = self.out.get("projected", {})
        return projected.get(term, self.out["hidden_states"])[layer]

    def heads(self, layer):
        """Return (number of attention heads, width of all of them together) of a layer."""
        heads, size = self.out["qkv"][layer][0].shape[-2:]
        return heads, heads * size

    def qkv(self, layer, heads):
        """Queries, keys and values of a layer, float32 [B, heads, T, D / heads], 0 at padding whatever it held."""
        found = (x.float().flatten(-2) for x in self.out["qkv"][layer])
        found = (torch.where(self.valid[..., None], x, 0.0) for x in found)
        return [x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2) for x in found]

    def mean(self, total, count):
        """`relations.masked_mean` over the batch of this process, or of all of them."""
        return masked_mean(total, count, self.across_processes)

    def relation(self, name, teacher, args):
        """Return one relation between this model, the student, and the teacher's ModelView, float32 scalar.

        All relations of the same layers that args.terms wants are made at once, when the first is asked for: they share
        what they cost. Where args has no terms, all that the aligned layers allow.
        """
        kind, compiled = name.split("_")[0], getattr(args, "compile", False)
        options = args.distance, args.pair_criterion, args.triple_criterion, args.window, compiled
        layers = self.layers_of(kind), teacher.layers_of(kind)
        found = self._relations.setdefault((teacher, layers, options), {})
        if name not in found:
            wanted = getattr(args, "terms", relations.NAMES)
            names = tuple(
                n
                for n in relations.NAMES
                if n == name
                or (
                    n in wanted
                    and len(layers[0]) >= relations.LAYERS[n]
                    and (self.layers_of(n.split("_")[0]), teacher.layers_of(n.split("_")[0])) == layers
                )
            )
            states = (
                [view.out["hidden_states"][i] for i in own] for view, own in zip((self, teacher), layers, strict=True)
            )
            found |= relations.relation_losses(
                *states, self.mask, names, relations.Options(*options), across_processes=self.across_processes
            )
        return found[name]

    def layers_of(self, kind):
        """Return the layers that the relations of a kind, "wr" or "ltr", are made of."""
        return tuple(getattr(self.layers, kind, self.layers))


def _word_pairs(layer_pairs):
    """Return the aligned pairs of the word relations."""
    return list(getattr(layer_pairs, "wr", layer_pairs))


def _ltr_pairs(layer_pairs):
    """Return the aligned pairs of the layer transforming relations."""
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
    """Return the last of the aligned pairs of the word relations."""
    return sorted(_word_pairs(layer_pairs))[-1:]


def _between_sentences(name, student, teacher, args):
    """Return a word relation with the batch's sentences in place of words: means of their real words' states, last
    layer.
    """
    (s, t), pooled = _last_words(list(zip(student.layers_of("wr"), teacher.layers_of("wr"), strict=True)))[0], []
    for view, layer in ((student, s), (teacher, t)):  # one set of B sentences
        pooled.append([baselines.sentence_means(view.out["hidden_states"][layer], student.valid)[None]])
    options = relations.Options(args.distance, args.pair_criterion, args.triple_criterion, window=None)
    there = student.valid.any(1)[None]
    return relations.relation_losses(*pooled, there, (name,), options, across_processes=student.across_processes)[name]


@needs(states=_last_words)
def _sentence_pair_term(student, teacher, batch, args):
    """`wr_pair` one level above words: similarities of every two sentences of the batch. Ours, not the paper's."""
    return _between_sentences("wr_pair", student, teacher, args)


@needs(states=_last_words)
def _sentence_triple_term(student, teacher, batch, args):
    """`wr_triple` one level above words: angles of every three sentences of the batch. Ours, not the paper's."""
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
    """Return what is minimised, the sum of weight x term, and its parts: (scalar, {name: unweighted scalar}).

    student, teacher: ModelViews of one batch; without terms the teacher may be None. recipe: `term_weights.Objective`.
    hard_loss(): the loss on the true labels, called where it has a weight; its name is `term_weights.HARD`.
    """
    values = {name: TERMS[name](student, teacher, batch, recipe) for name in recipe.terms}
    if hard_loss and recipe.hard_weight:
        values[term_weights.HARD] = hard_loss()
    # Here `values["agreement"] = ...` adds a scalar that has no weight to TensorBoard.
    return sum(weight * values[name] for name, weight in recipe.weights.items() if name in values), values


def needs_of(name):
    """Return the `Needs` that stand beside a term's function; by default all aligned hidden states."""
    return getattr(TERMS[name], "needs", Needs())


def teacher_layers(terms, layer_pairs):
    """Return the teacher's hidden states that the terms read, in order; [] for terms that need none."""
    return sorted({t for name in terms for _, t in needs_of(name).states(layer_pairs)})


def qkv_pairs(terms, layer_pairs):
    """Return the pairs of layers whose queries, keys and values the terms read, in order; [] for terms
    that need none.
    """
    return sorted({pair for name in terms for pair in needs_of(name).qkv(layer_pairs)})


def projected_layers(terms, layer_pairs):
    """Return {term: student layers that it compares through a learned projection where widths differ}."""
    return {name: [s for s, _ in needs_of(name).states(layer_pairs)] for name in terms if needs_of(name).projected}


def check_terms(terms, layer_pairs, student=None, teacher=None):
    """Raise ValueError for a term that the aligned layers or the shapes of the models cannot give.

    student, teacher: the models' configurations, which terms with a check of shapes look at.
    """
    for name in terms:
        needed = needs_of(name)
        read = [found for found in (needed.states, needed.qkv) if found is not nothing]
        if not read or any(found(layer_pairs) for found in read):
            pass
        elif not layer_pairs or name in relations.NAMES:
            raise ValueError("no layers are aligned: widen --layer_map or drop --no_embeddings")
        else:
            raise ValueError(f"{name} compares transformer layers but only embeddings are aligned: widen --layer_map")
        if needed.check:
            needed.check(name, layer_pairs, student, teacher)


def no_rows(out):
    """Return a batch, or a model's outputs for it, without any example; still with a graph: every term of them is 0."""
    if isinstance(out, torch.Tensor):
        return out[:0]
    if isinstance(out, tuple):
        return tuple(no_rows(x) for x in out)
    return type(out)({k: no_rows(v) for k, v in out.items()}) if isinstance(out, dict) else out


def several_processes():
    """Return whether torch.distributed is running, so that means over a batch are those of all processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
