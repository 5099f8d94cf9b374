"""Tables of what a student is trained with: PRESETS of --terms, RECIPES of the tasks, and the options that follow.

It imports nothing slow, so that a script can check its options before torch is loaded. `losses` offers all of it, and
has the terms themselves.
"""

import argparse
import re
from typing import NamedTuple

from methods import term_weights

# Each preset holds weights of terms and the options that its method needs. It only fills what the user left open.
# Where a source says nothing, the choice is ours: the shares of the steps (the papers train their parts one after the
# other, with their own epochs and learning rates), and one of the values that a paper searches.
PRESETS = {
    # Hinton et al., arXiv:1503.02531, add a small weight on the labels and search the temperature; the user may too.
    "kd": {"logits": 1.0},
    # arXiv:2109.08359 on CoLA, at temperature 1. With a task, RECIPES sets weights and temperature.
    "ckd": {"logits": 1.0, "wr_pair": 1.0, "wr_triple": 10.0, "ltr_pair": 1.0, "ltr_triple": 10.0},
    # arXiv:1908.09355: (1 - alpha) labels + alpha logits + beta * pkd, searched over alpha 0.2, 0.5, 0.7, temperature
    # 5, 10, 20 and beta 10, 100, 500, 1000. These values are in the middle.
    "pkd": {"logits": 0.5, "pkd": 100.0, "hard_weight": 0.5, "temperature": 10.0},
    # arXiv:1909.10351: first the layers, for 10 or 20 epochs, then the logits alone, for 3, at temperature 1; in
    # pre-training the layers alone. lambda = 1 for every layer. The paper sums over layers, these terms are means: for
    # its proportions multiply hidden_mse and attention_mse by the number of layers.
    "tinybert": {
        "logits": 1.0,
        "hidden_mse": 1.0,
        "attention_mse": 1.0,
        "embedding_mse": 1.0,
        "temperature": 1.0,
        "stages": "hidden_mse attention_mse embedding_mse 0.5 logits",
    },
    # The authors' published command for pre-training: alpha_ce 5, alpha_mlm 2, alpha_cos 1, temperature 2; the paper
    # gives none. In fine-tuning, which is ours, the task's labels take the place of the masked words.
    "distilbert": {"logits": 5.0, "hidden_cosine": 1.0, "hard_weight": 2.0, "temperature": 2.0},
    # arXiv:2002.10957: both parts unweighted, in pre-training and alone; then fine-tuning on the labels.
    "minilm": {"minilm": 1.0, "hard_weight": 1.0, "stages": "minilm 0.5 hard"},
    # arXiv:2004.04037: the lambdas of the stage of widths; distill_dynabert.py sets 1 and 1 in the stage of depths.
    "dynabert": {"logits": 1.0, "dynabert_mse": 0.1, "temperature": 1.0},
}
OPTIONS = ("hard_weight", "temperature", "stages")  # entries of a preset that are no terms


class Recipe(NamedTuple):
    """What a task's students are trained with. The weights are as published, for logits that are not scaled by T^2."""

    temperature: float
    pair: float  # weight of wr_pair and ltr_pair
    triple: float  # weight of wr_triple and ltr_triple
    learning_rate: float
    epochs: float


# Published for a 6-layer student of BERT base (arXiv:2109.08359), unless a comment says otherwise.
RECIPES = {
    "cola": Recipe(3, 1, 10, 5e-5, 4),
    "sst2": Recipe(4, 100, 1000, 4e-5, 4),
    "mrpc": Recipe(4, 1, 1, 3e-5, 4),
    "stsb": Recipe(1, 0.1, 0.1, 5e-5, 4),
    "qqp": Recipe(2, 10, 10, 5e-5, 4),
    "mnli": Recipe(4, 100, 1, 4e-5, 4),
    "qnli": Recipe(3, 10, 1, 4e-5, 4),
    "rte": Recipe(3, 1, 10, 5e-5, 6),
    "wnli": Recipe(3, 1, 10, 5e-5, 4),  # not published: CoLA's
    # Not published: CoLA's weights at temperature 1.
    "squad": Recipe(1, 1, 10, 5e-5, 3),
    "squad_v2": Recipe(1, 1, 10, 5e-5, 3),
    "conll2003": Recipe(1, 1, 10, 5e-5, 4),
    "wnut17": Recipe(1, 1, 10, 5e-5, 4),
    "conll2000": Recipe(1, 1, 10, 5e-5, 4),
    "goemotions": Recipe(1, 1, 10, 5e-5, 4),  # CoLA's temperature, 3, was worse
    "scitldr": Recipe(1, 1, 10, 5e-5, 4),
    "cnn_dailymail": Recipe(1, 1, 10, 5e-5, 4),
    "custom": Recipe(1, 1, 10, 5e-5, 3),  # also for tasks without a line here: the options' own defaults
}
SCHEDULE = ("--learning_rate", "--num_train_epochs")  # set by recipes, but no options of distilling


def recipe_of(task):
    """Return the Recipe of a task."""
    return RECIPES.get(task, RECIPES["custom"])


def ckd_weights(recipe, temperature):
    """Return {term: weight} of CKD's relations times temperature^2, because the logits term is scaled by it."""
    pair, triple = recipe.pair * temperature**2, recipe.triple * temperature**2
    return {"wr_pair": pair, "wr_triple": triple, "ltr_pair": pair, "ltr_triple": triple}


def all_terms(names=()):
    """Return the names of all terms in their order; names: terms that must be among them.

    `losses.TERMS` has them all, but importing it takes seconds, so it is asked only for a name that no preset has.
    """
    known = dict.fromkeys(name for preset in PRESETS.values() for name in preset if name not in OPTIONS)
    if set(names) <= set(known):
        return tuple(known)
    import losses

    return tuple(losses.TERMS)


def parse_terms(words):
    """Return {"logits": 1.0, ..., "wr_triple": 5.0} for ["ckd", "wr_triple=5"]; weights of 0 are left out.

    A preset's weights fill what was not given by name, wherever it stands. Raises ValueError for an unknown term or
    preset, two presets, a term given twice, a weight that is not a finite number >= 0, or no term above 0.
    """
    given, preset, terms = {}, None, all_terms(word.partition("=")[0] for word in words if "=" in word)
    for word in words:
        name, equals, weight = word.partition("=")
        if not equals:
            if name not in PRESETS:
                known = f"a preset ({', '.join(PRESETS)}) nor name=weight with a name of: {', '.join(terms)}"
                raise ValueError(f"--terms {word!r} is neither {known}")
            if preset:
                raise ValueError(f"--terms names two presets, {preset!r} and {name!r}: give one, then name=weight")
            preset = name
            continue
        if name == term_weights.HARD:
            raise ValueError(f"--terms {word!r}: the labels are no term: pass --hard_weight {weight or 1}")
        if name not in terms:
            raise ValueError(f"--terms {word!r}: unknown term {name!r}, choose from: {', '.join(terms)}")
        if name in given:
            raise ValueError(f"--terms gives {name!r} twice: give it once")
        given[name] = term_weights.weight_of("--terms", word, weight)
    weights = {**PRESETS.get(preset, {}), **given}
    weights = {name: weights[name] for name in all_terms(given) if weights.get(name)}
    if not weights:
        raise ValueError(f"--terms {' '.join(words)!r}: every weight is 0, nothing would be distilled; try --terms ckd")
    return weights


def check_args(args, pretraining=False, schedule=True):
    """Check and convert the options of distilling in place; args.terms becomes {name: weight}.

    Presets fill what was not given. With a teacher, so does the recipe of args.task: args.filled, a dict, holds what
    the recipe filled, and args.unfilled the values that options would have without it. With stages, args.stages becomes
    what `term_weights.Objective` reads, else None; args.terms and args.hard_weight then hold the largest weights of all
    stages. pretraining: as in `term_weights.resolve`. schedule: whether recipes set learning rate and epochs. Without
    args.teacher the terms become {}. Raises ValueError, also for an option of distilling that was given without a
    teacher.
    """
    typed = list(dict.fromkeys(vars(args).pop("typed", [])))
    distilling = [option for option in typed if option not in SCHEDULE]
    if distilling and not args.teacher:
        raise ValueError(f"{', '.join(distilling)} is for distilling from a teacher: pass --teacher, or leave it out")
    task = getattr(args, "task", None) if args.teacher else None
    plain = argparse.Namespace(**vars(args))
    _resolve(plain, typed, None, False, pretraining)
    args.filled = _resolve(args, typed, task and recipe_of(task), schedule, pretraining)
    args.unfilled = {name: value for name, value in vars(plain).items() if value != getattr(args, name)}
    args.unfilled.pop("asked", None)
    if args.unfilled:
        args.asked = sorted({*getattr(args, "asked", ()), *args.unfilled})


def _resolve(args, typed, recipe, schedule, pretraining):
    """Do the work of `check_args` with this recipe or None; return {term or option: value} that the recipe filled."""
    words, args.terms = args.terms, parse_terms(args.terms)
    chosen = next((word for word in words if word in PRESETS), None)
    preset, given = PRESETS.get(chosen, {}), {word.partition("=")[0] for word in words if "=" in word}
    for name in OPTIONS:
        if name in preset and f"--{name}" not in typed:
            setattr(args, name, preset[name])
            args.asked = [*getattr(args, "asked", []), name]
    own = "--stages" in typed
    told = {word.partition("=")[0] for _, part in term_weights.split(args.stages) for word in part} if own else set()
    filled = {}
    if recipe:
        left = {name for name in ("temperature", "learning_rate", "num_train_epochs") if f"--{name}" not in typed}
        filled = _of_recipe(args, left - preset.keys(), {*args.terms, *told}, recipe, schedule)
        vars(args).update(filled)
    _check_numbers(args)
    if recipe and chosen == "ckd":
        weights = {k: v for k, v in ckd_weights(recipe, args.temperature).items() if k not in given}
        args.terms |= weights
        filled |= weights
    if not args.teacher:
        args.terms = {}
    elif args.stages:
        named = given - preset.keys() | ({term_weights.HARD} if "--hard_weight" in typed else set())
        term_weights.resolve(args, all_terms({*args.terms, *told} - {term_weights.HARD}), named, own, pretraining)
    return {name: value for name, value in filled.items() if name in args.terms or name not in PRESETS["ckd"]}


def _of_recipe(args, left, terms, recipe, schedule):
    """Return {option: value} of a recipe for the options in `left`; terms: the names of all that are trained."""
    found = {}
    if "temperature" in left and "logits" in terms:
        found["temperature"] = float(recipe.temperature)
    if schedule and "learning_rate" in left:
        found["learning_rate"] = recipe.learning_rate
    if schedule and "num_train_epochs" in left and not args.max_steps:
        found["num_train_epochs"] = float(recipe.epochs)
    return found


def _check_numbers(args):
    """Check the options of the relations and the numbers; args.window becomes a number, or None for all words."""
    if not re.fullmatch(r"\d{1,6}|all", args.window, re.ASCII):
        raise ValueError(f"--window {args.window!r} must be an odd number or 'all'")
    args.window = None if args.window == "all" else int(args.window)
    if args.window is not None and (args.window < 3 or args.window % 2 == 0):
        odd = max(3, args.window // 2 * 2 + 1)
        raise ValueError(f"--window {args.window} must be odd and at least 3, such as {odd}, or 'all'")
    if args.pair_criterion == "kl" and args.distance != "cosine":
        raise ValueError(
            f"criterion 'kl' needs distance 'cosine', not {args.distance!r}: pass --pair_criterion mse, l1 or huber"
        )
    if not 0.01 <= args.temperature <= 1000:  # beyond, logits are all alike or overflow
        raise ValueError(f"--temperature {args.temperature} must be positive, from 0.01 to 1000")
    if not 0 <= args.hard_weight <= term_weights.MAX_WEIGHT:
        raise ValueError(f"--hard_weight {args.hard_weight} must be 0 or more, at most {term_weights.MAX_WEIGHT:g}")


def filled_line(args):
    """Return a line with what the task's recipe filled, as it would be typed; "" if it filled nothing."""
    filled = getattr(args, "filled", None)
    if not filled:
        return ""
    short = {name: f"{value:g}" if float(f"{value:g}") == value else repr(value) for name, value in filled.items()}
    weights = [f"{name}={value}" for name, value in short.items() if name in PRESETS["ckd"]]
    options = [f"--{name} {value}" for name, value in short.items() if name not in PRESETS["ckd"]]
    words = ([f"--terms ckd {' '.join(weights)}"] if weights else []) + options
    return f"the recipe of {args.task} (RECIPES in methods/recipes.py) fills what was not typed: {' '.join(words)}"
