"""The checks of the training scripts' options: what goes together, and what follows from what was given.

Like options.py they import neither torch nor anything that imports it. The exceptions are kinds of the user's own data
and terms that no preset has, which only the code itself knows.
"""

import re
from pathlib import Path

import data
from encoders import layer_maps
from methods import recipes


def check_finetune(args):
    """Check the options of distill_finetune.py and fill in what follows from others; raises ValueError."""
    words = args.terms
    data.check_args(args)
    _check_kind(args)
    check_models(args)
    _check_distilling(args)
    if args.task == "ax" and (args.teacher or not args.do_predict):
        raise ValueError("--task ax is prediction only: pass --student (a model trained on mnli) and --do_predict")
    headed = data.kind_of(args) != "similarity"  # similarity compares the encoder's own vectors
    if headed:
        _check_head(args, words)
    if args.more_teachers and (not args.teacher or data.kind_of(args) == "similarity"):
        raise ValueError("--more_teachers adds to the logits of --teacher, and this run has none: leave it out")
    if args.class_weights and data.kind_of(args) in ("regression", "similarity", "multilabel", "qa"):
        raise ValueError("--class_weights is for tasks with one of some classes for each text or word: leave it out")
    if args.class_weights and args.teacher and not args.hard_weight:
        raise ValueError("--class_weights is for the loss on the labels, which has no weight: add --hard_weight 1")
    if args.do_predict and args.task == "custom" and not (args.test_file or args.hub_dataset):
        raise ValueError("--do_predict needs --test_file: a file without labels to predict")
    if args.task == "ax" and not args.run_name:
        args.run_name = re.sub(r"[^\w.+-]+", "-", args.student).strip("-.") or Path(args.student).resolve().name
    args.run_name = args.run_name or ("-".join(words).replace("=", "") if args.teacher else "finetune")
    _name_folder(args, args.dataset_name or args.task)


def check_pretrain(args):
    """Check the options of distill_pretrain.py and fill in what follows from others; raises ValueError."""
    words = args.terms
    check_models(args)
    _check_distilling(args, pretraining=True)
    for name in ("corpus", "validation_corpus"):
        by_language(getattr(args, name) or (), f"--{name}")
    args.whole_texts |= any(name.startswith("sentence_") for name in args.terms)
    if args.mlm_probability is None:
        args.mlm_probability = 0.0 if args.whole_texts and headless(args) and not args.whole_word_mask else 0.15
    if not args.mlm_probability and not headless(args):
        raise ValueError("--mlm_probability 0 leaves the language-model head nothing to predict: raise it")
    if args.streaming and (args.whole_texts or len(by_language(args.corpus)) > 1):
        raise ValueError("--streaming reads full blocks of one language: leave it out for whole texts and for several")
    if args.streaming and not (args.max_steps and args.validation_corpus):
        raise ValueError("--streaming knows no epochs and holds nothing out: pass --max_steps and --validation_corpus")
    args.run_name = args.run_name or ("-".join(words).replace("=", "") if args.teacher else "mlm")
    _name_folder(args, "pretrain")


def check_dynabert(args):
    """Check the options of distill_dynabert.py and fill in what follows from others; raises ValueError."""
    words = args.terms
    if args.export:
        if not args.output_dir:
            raise ValueError("--export needs --output_dir: a new folder for the sub-network")
        return
    for name in ("width", "depth"):
        if name in args.asked:
            raise ValueError(f"--{name} says what --export writes: pass --export too, or use --{name}_mults")
    if args.task is None:
        raise ValueError(f"--task is missing: pass one of {', '.join(data.TASKS)}")
    if args.task == "ax":
        raise ValueError("--task ax has no dev set to choose sub-networks by: train on mnli")
    if args.teacher and args.student:
        raise ValueError("--student is for training on the labels (stage 3): leave it out with --teacher")
    if not args.teacher and not args.student:
        raise ValueError("pass --teacher, a run of the task's teacher or of stage 1, or --student, a run of stage 2")
    deep = any(mult != 1 for mult in args.depth_mults)
    if deep and "dynabert" in words and not any(word.startswith("dynabert_mse=") for word in words):
        args.terms = [*words, "dynabert_mse=1"]  # DynaBERT's weight in this stage
    data.check_args(args)
    _check_kind(args)
    _check_distilling(args, schedule=False)  # a recipe's schedule is for a student of one size
    if args.terms.keys() - recipes.PRESETS["ckd"].keys() - recipes.PRESETS["dynabert"].keys():
        _check_sliced(args, words)
    _check_head(args, words)
    stage = "labels" if args.student else "depth" if deep else "width"
    args.run_name = args.run_name or "-".join([*(words if args.teacher else ["dynabert"]), stage]).replace("=", "")
    _name_folder(args, args.dataset_name or args.task)
    args.student = args.student or args.teacher  # a copy of the teacher


def _check_head(args, words):
    """Raise ValueError if a student with a teacher has no term that trains its task head."""
    if args.teacher and headless(args):
        raise ValueError(f"--terms {' '.join(words)} trains no task head: add logits=1 or --hard_weight 1")


def _check_sliced(args, words):
    """Raise ValueError for terms that compare attention heads; only losses.py, which imports torch, knows these."""
    import losses
    from methods import baselines

    for name in args.terms:
        if losses.needs_of(name).qkv is not baselines.nothing:
            raise ValueError(f"--terms {' '.join(words)}: {name} compares attention heads: use ckd, dynabert or kd")


def headless(args):
    """Return whether nothing trains a language-model head, so that the models are encoders without one."""
    return bool(args.terms) and "logits" not in args.terms and not args.hard_weight


def by_language(words, option="--corpus"):
    """Return {language: its texts} of words TEXT or LANGUAGE=TEXT; the language of texts without one is "".

    Raises ValueError for a word that names no text, and if only some texts have a language.
    """
    found = {}
    for word in words:
        named = re.match(r"[\w-]+=", word) and not Path(word).exists()
        name, _, text = word.partition("=") if named else ("", "", word)
        if not text.strip():
            more = "" if option == "--corpus" else ", or leave it out"
            raise ValueError(f"{option} {word!r} names nothing: pass a file, folder, glob or hub id{more}")
        found.setdefault(name, []).append(text)
    if "" in found and len(found) > 1:
        raise ValueError(f"{option} {found[''][0]!r} has no language and others have: write LANGUAGE=TEXT for all")
    return found


# --- checks that the scripts share --------------------------------------------------------------------------------


def student_shape(args):
    """Return the options of the student's shape that were given, as arguments of `students.student_config`."""
    given = {name: getattr(args, f"student_{name}") for name in ("layers", "hidden", "heads", "intermediate")}
    return {name: value for name, value in given.items() if value is not None}


def check_models(args):
    """Check the options that name and shape the two models."""
    shape = student_shape(args)
    for name in ("teacher", "student"):
        value = getattr(args, name)
        if value is not None and not value.strip():
            raise ValueError(f"--{name} {value!r} names no model: pass a hub id or folder, or leave the option out")
    if not args.teacher and not args.student:
        raise ValueError("--student is missing: pass a hub id or folder, e.g. google-bert/bert-base-multilingual-cased")
    if not args.student and not shape:
        raise ValueError("pass --student (hub id or folder), or --student_layers to cut a student from the teacher")
    if args.student_init and not shape:
        raise ValueError(f"--student_init {args.student_init} is for a student built with --student_layers: add that")


def _check_kind(args):
    """Check the kind and metrics of the user's own data. Only tasks/kinds.py, which imports torch, knows the kinds."""
    if args.task == "custom":
        from tasks import kinds

        kinds.chosen(args)


def _check_distilling(args, **options):
    """Check and convert the options of distilling and of the teacher; options: as in `recipes.check_args`."""
    recipes.check_args(args, **options)
    layer_maps.check_maps(args)
    if getattr(args, "label_map", None) and not args.teacher and args.task != "ax":
        raise ValueError("--label_map is for the names of a teacher's labels: pass --teacher, or leave it out")
    if getattr(args, "cache_teacher", False) and not args.teacher:
        raise ValueError("--cache_teacher keeps what a teacher says: pass --teacher, or leave it out")


def _name_folder(args, task):
    """Check args.run_name and fill in args.output_dir."""
    check_name(args.run_name)
    args.output_dir = args.output_dir or f"runs/{task}/{args.run_name}/seed{args.seed}"


def check_name(name):
    """Raise ValueError unless a --run_name can name a folder."""
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ValueError(f"--run_name {name!r} becomes a folder: use letters, digits and . _ + - only, no dot first")
