"""Weights of the terms and of the loss on the labels, and their change over the steps: --stages."""

import math
from typing import NamedTuple

MAX_WEIGHT = 1e9  # with it a loss and its gradient still fit float32
HARD = "hard"  # the name of the loss on the true labels


def weight_of(option, word, text):
    """Return the weight in a word of an option. Raises ValueError if it is none."""
    try:
        weight = float(text)
    except ValueError:
        weight = float("nan")
    if not 0 <= weight <= MAX_WEIGHT:
        name = word.partition("=")[0]
        raise ValueError(f"{option} {word!r}: the weight must be a number >= 0 and at most {MAX_WEIGHT:g}: {name}=1")
    return weight


def split(words):
    """Return the stages of ["wr_pair", "0.5", "logits=2"]: [[0.0, ["wr_pair"]], [0.5, ["logits=2"]]].

    A number begins a stage. Raises ValueError unless it is a share of the steps, from 0 to 1, above the one before.
    """
    stages = [[0.0, []]]
    for word in words:
        try:
            begin = float(word)
        except ValueError:
            stages[-1][1].append(word)
            continue
        first = len(stages) == 1 and not stages[0][1]
        if not (begin == 0 if first else stages[-1][0] < begin < 1):
            raise ValueError(f"--stages {word!r}: a stage begins at a share of the steps, rising from 0 to below 1")
        if not first:
            stages.append([begin, []])
    return stages


def parse(stages, weights, terms):
    """Return the stages of `split` with their weights: [[0.0, {"wr_pair": 1.0}], [0.5, {"logits": [0.0, 1.0]}]].

    weights: of terms and "hard", for names without a weight of their own. terms: all names. name=weight is constant;
    name=first..last changes evenly and becomes [first, last]. Raises ValueError for an unknown name, one without a
    weight, one given twice, or a stage that trains nothing.
    """
    found = []
    for begin, words in stages:
        found.append([begin, {}])
        for word in words:
            name, equals, text = word.partition("=")
            if name not in (*terms, HARD):
                raise ValueError(f"--stages {word!r}: unknown term {name!r}, choose from: {', '.join(terms)}, {HARD}")
            if name in found[-1][1]:
                raise ValueError(f"--stages names {name!r} twice in the stage from {begin:g}: name it once")
            if not equals and not weights.get(name):
                option = "--hard_weight" if name == HARD else "--terms"
                raise ValueError(f"--stages {name!r} has no weight: write {name}=1, or give it one by {option}")
            ends = (text.split("..") if text.count("..") == 1 else [text]) if equals else [weights[name]]
            ends = [weight_of("--stages", word, end) for end in ends]
            found[-1][1][name] = ends[0] if len(set(ends)) == 1 else ends
        found[-1][1] = {name: found[-1][1][name] for name in (*terms, HARD) if found[-1][1].get(name)}
        if not any(w[0] if isinstance(w, list) else w for w in found[-1][1].values()):
            said = f"--stages: nothing is trained where the stage from {begin:g} on begins"
            raise ValueError(f"{said}: name a term with a weight that begins above 0")
    return found


def resolve(args, terms, named, own, pretraining):
    """Convert args.stages for `Objective.at`; args.terms and args.hard_weight become the largest weights of all stages.

    terms: all names. named: those given besides the preset, and "hard" if it was. own: whether the stages were given,
    not taken from the preset. pretraining: use only the first stage of a preset. Raises ValueError.
    """
    weights = args.terms | {HARD: args.hard_weight}
    parts = split(args.stages if own else args.stages.split())
    told = {word.partition("=")[0] for _, words in parts for word in words}
    more = [name for name in weights if name in named - told and weights[name]]
    if own and more:
        raise ValueError(f"--stages trains {more[0]!r} at no time, which was given a weight: name it in a stage")
    if not own:  # terms named besides the preset are part of all its stages
        parts = [[begin, [name for name in words if weights.get(name)] + more] for begin, words in parts]
        parts = [part for part in parts if part[1]][: 1 if pretraining else None]
        parts[0][0] = 0.0
    args.stages, largest = parse(parts, weights, terms), {}
    for _, now in args.stages:
        for name, weight in now.items():
            largest[name] = max(largest.get(name, 0.0), *(weight if isinstance(weight, list) else [weight]))
    args.terms = {name: largest[name] for name in terms if name in largest}
    args.hard_weight = largest.get(HARD, 0.0)
    if not args.terms:
        raise ValueError("--stages: nothing would be distilled; name a term, or leave out --teacher")
    if len(args.stages) == 1 and not any(isinstance(weight, list) for weight in args.stages[0][1].values()):
        args.stages = None  # constant weights


class Objective(NamedTuple):
    """What a student is trained with, from checked options and the depths of the models."""

    terms: dict  # {name: weight}; with stages the largest of each
    hard_weight: float  # of the loss on the true labels
    temperature: float
    distance: str
    pair_criterion: str
    triple_criterion: str
    window: int | None
    compile: bool
    stages: list | None  # as `parse` returns them; None: the weights are constant
    layer_pairs: list  # aligned layers, a LayerPairs; empty without a teacher

    @property
    def weights(self):
        """Return {name: weight} of the terms and of the loss on the labels."""
        return self.terms | ({HARD: self.hard_weight} if self.hard_weight else {})

    def at(self, progress):
        """Return the objective of a step; progress: the share of the steps done before it, 0 to 1.

        It leaves out terms of weight 0. Without stages it is always the same.
        """
        if not self.stages:
            return self
        at = max(i for i, (begin, _) in enumerate(self.stages) if begin <= progress)
        begin, weights = self.stages[at]
        end = self.stages[at + 1][0] if at + 1 < len(self.stages) else 1.0
        share = (progress - begin) / (end - begin)
        now = {name: w[0] + (w[1] - w[0]) * share if isinstance(w, list) else w for name, w in weights.items()}
        now = {name: weight for name, weight in now.items() if weight}
        return self._replace(hard_weight=now.pop(HARD, 0.0), terms=now)

    def head_trained(self, progress):
        """Return whether logits or labels, which alone train the head, had a weight up to the step at `progress`."""
        begins = [begin for begin, _ in self.stages or () if begin <= progress]
        return any({"logits", HARD} & {*self.at(p).weights} for p in (*begins, progress))

    def check_steps(self, steps):
        """Raise ValueError if a stage gets none of this number of steps."""
        stages = self.stages or []
        firsts = [math.ceil(begin * steps - 1e-9) for begin, _ in stages] + [steps]
        for (begin, _), first, after in zip(stages, firsts, firsts[1:], strict=False):
            if first >= after:
                raise ValueError(f"--stages: the stage from {begin:g} on has none of {steps} steps: train longer")


def objective_of(args, layer_pairs=()):
    """Return the Objective of options checked by `recipes.check_args`; without a teacher, the labels alone."""
    hard_weight = args.hard_weight if args.teacher else args.hard_weight or 1.0
    own = {name: getattr(args, name) for name in Objective._fields if name not in ("hard_weight", "layer_pairs")}
    return Objective(**own, hard_weight=hard_weight, layer_pairs=layer_pairs)
