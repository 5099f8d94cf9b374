"""Layer maps: which layer of the student learns from which layer of the teacher."""

import argparse
import re

STRATEGIES = {  # name -> (layers of the student, of the teacher) -> pairs
    "uniform": lambda s, t: [(i, round(i * t / s)) for i in range(s + 1)],
    "last": lambda s, t: [(0, 0)] + [(i, i + t - s) for i in range(1, s + 1)],
    "first": lambda s, t: [(i, i) for i in range(s + 1)],
    "ends": lambda s, t: sorted({(0, 0), (s // 2, t // 2 if s > 1 else 0), (s, t)}),
}
DEEPEST = 9999  # layers, since explicit pairs have at most four digits


class LayerPairs(list):
    """Aligned pairs (student layer, teacher layer), counted as in hidden_states.

    wr and ltr: the pairs of the word and of the layer transforming relations, the same unless they have their own map.
    """

    def __init__(self, pairs, wr=None, ltr=None):
        super().__init__(pairs)
        self.wr, self.ltr = (list(pairs if own is None else own) for own in (wr, ltr))

    def sides(self):
        """Return (the student's, the teacher's) Layers."""
        return tuple(
            Layers([pair[i] for pair in self], [pair[i] for pair in self.wr], [pair[i] for pair in self.ltr])
            for i in (0, 1)
        )


class Layers(tuple):
    """One side of LayerPairs: a model's layers in the order of the pairs; wr and ltr: those of the relations."""

    def __new__(cls, layers, wr, ltr):
        self = super().__new__(cls, layers)
        self.wr, self.ltr = tuple(wr), tuple(ltr)
        return self


def layer_map(n_student, n_teacher, strategy):
    """Return aligned pairs [(student index, teacher index), ...] over hidden_states, where 0 is the embedding output.

    n_student, n_teacher: numbers of layers. strategy: "uniform" (s with round(s * n_teacher / n_student)), "first" (s
    with s), "last" (the last n_student layers, and the embeddings), "ends" (embeddings, middle, last), or explicit
    pairs as "0:0,1:2,6:12". Raises ValueError for an unknown strategy or a pair outside the models.
    """
    if strategy in ("first", "last") and n_student > n_teacher:
        raise ValueError(
            f"layer map {strategy!r} needs a teacher at least as deep as the student, not {n_teacher} layers for "
            f"{n_student}: use 'uniform' or explicit pairs"
        )
    if strategy in STRATEGIES:
        return STRATEGIES[strategy](n_student, n_teacher)
    if not re.fullmatch(r"\d{1,4}:\d{1,4}(,\d{1,4}:\d{1,4})*", strategy, re.ASCII):
        raise ValueError(
            f"unknown layer map {strategy!r}: choose {', '.join(STRATEGIES)}, or pairs student:teacher as in 0:0,6:12"
        )
    pairs = [tuple(int(i) for i in pair.split(":")) for pair in strategy.split(",")]
    for s, t in pairs:
        if s > n_student or t > n_teacher:
            raise ValueError(
                f"layer map pair {s}:{t} is outside hidden states 0 to {n_student} and 0 to {n_teacher} of the models"
            )
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"layer map {strategy!r} holds a pair twice: give every pair once")
    return pairs


def aligned(student, teacher, strategy, no_embeddings=False):
    """Return the LayerPairs of one layer map of two models; no_embeddings leaves out (0, 0)."""
    options = argparse.Namespace(layer_map=strategy, wr_layer_map=None, ltr_layer_map=None, no_embeddings=no_embeddings)
    return layer_maps(options, student.config.num_hidden_layers, teacher.config.num_hidden_layers)


def layer_maps(args, n_student, n_teacher):
    """Return the LayerPairs of the options' layer maps for these numbers of layers; --no_embeddings drops (0, 0).

    Raises ValueError as `layer_map` does, naming the option of a map that is not --layer_map.
    """

    def pairs(option):
        """Return the (student, teacher) layers of one option; None if it is left out."""
        strategy = getattr(args, option)
        try:
            found = layer_map(n_student, n_teacher, strategy) if strategy else ()
        except ValueError as error:
            raise ValueError(f"--{option}: {error}" if option != "layer_map" else str(error)) from error
        return [pair for pair in found if not (args.no_embeddings and pair == (0, 0))] if strategy else None

    return LayerPairs(*map(pairs, ("layer_map", "wr_layer_map", "ltr_layer_map")))


def check_maps(args):
    """Raise ValueError for a layer map of the options that fits no two models, however deep."""
    layer_maps(args, DEEPEST, DEEPEST)
