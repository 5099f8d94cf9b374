"""Trim a model to the words of some languages: the same layers, with the rows of the words that a text uses.

    python trim_vocabulary.py --model google-bert/bert-base-multilingual-cased --corpus english.txt korean.txt \
        --output_dir models/bert-en-ko
"""

from options import begin
from options import trim_parser as build_parser

if __name__ == "__main__":
    begin(build_parser())  # before the imports below, which take seconds

import itertools
import json
import time
from collections import Counter

import numpy as np
import transformers
from huggingface_hub import ModelCardData
from tokenizers import Tokenizer

import data
import models
from encoders import families, vocabulary
from engine import card, checkpoints, checks, command_line, cost
from tasks import plain_text, similarity

LINES, CHARACTERS = 1000, 10**6  # limits of a batch of text; a single line may be longer
UNKNOWN = 0.5  # share of unknown words; from there on the model does not know the text's language

# --- the text ------------------------------------------------------------------------------------------------------


def source_of(name, column):
    """Return the rows of a text, to be read repeatedly; column: a table's text. Raises ValueError for a wrong name."""
    return plain_text.load_texts(name, streaming=True, column=column)


def batches(source):
    """Yield the texts of rows in lists."""
    batch, size = [], 0
    for text in (row["text"] for row in source):
        if text and text.strip():
            batch.append(text)
            size += len(text)
        if len(batch) == LINES or size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def count_ids(tokenizer, source, size):
    """Return how often each id occurs in a text, int64 [size]."""
    counts = np.zeros(size, dtype=np.int64)
    for batch in batches(source):
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        ids = np.fromiter(itertools.chain.from_iterable(e.ids for e in encodings), dtype=np.int64)
        counts += np.bincount(ids, minlength=size)
    return counts


def count_words(tokenizer, spec, sources, model):
    """Return {word: times in all texts}; print a line for each text.

    sources: {name: from `source_of`}. model: its name in errors. Raises ValueError for a text that is empty or in a
    language that the model does not know.
    """
    ids, plain, unknown = vocabulary.all_words(spec), vocabulary.bare(spec), vocabulary.unknown_word(spec)
    lettered = np.zeros(max(ids.values()) + 1, dtype=bool)
    lettered[[i for word, i in ids.items() if any(c.isalpha() for c in plain(word))]] = True
    lettered[[ids[word] for word in vocabulary.special_words(spec)]] = False
    total = np.zeros(len(lettered), dtype=np.int64)
    for name, source in sources.items():
        counts = count_ids(tokenizer, source, len(lettered))
        if not counts.any():
            raise ValueError(f"--corpus {name!r} holds no text: pass one that does, or leave it out")
        lost = counts[ids[unknown]] if unknown in ids else 0
        share = lost / max(1, lost + counts[lettered].sum())  # of words with letters; every model knows full stops
        if share >= UNKNOWN:
            raise ValueError(
                f"--corpus {name!r}: {share:.0%} of its words are unknown to the tokenizer of {model}, "
                "which was not made for this language: take another model"
            )
        print(
            f"{name}: {counts.sum():,} pieces, {(counts > 0).sum():,} different words, {share:.2%} unknown", flush=True
        )
        total += counts
    return {word: int(total[i]) for word, i in ids.items()}


def compare(before, after, source, unknown):
    """Return (number of a text's pieces before, share of pieces that change, shares unknown before and after).

    A piece is unchanged if the same place of the text gives the same word. unknown: the unknown word.
    """
    whole, same, lost = 0, 0, [0, 0]
    for batch in batches(source):
        for pair in zip(*(t.encode_batch(batch, add_special_tokens=False) for t in (before, after)), strict=True):
            old, new = (
                Counter(zip(e.offsets, e.tokens, strict=True)) for e in pair
            )  # bytes of a character may share both
            whole, same = whole + old.total(), same + (old & new).total()
            lost = [n + e.tokens.count(unknown) for n, e in zip(lost, pair, strict=True)]
    whole = max(1, whole)
    return whole, 1 - same / whole, lost[0] / whole, lost[1] / whole


# --- the script ----------------------------------------------------------------------------------------------------


def check_args(args):
    """Check the options before anything is loaded. Raises ValueError."""
    for option, names in (("model", [args.model]), ("corpus", args.corpus), ("held_out", args.held_out)):
        if any(not name.strip() for name in names):
            raise ValueError(f"--{option} '' names nothing: is a variable unset?")
    checks.by_language(args.corpus)
    checkpoints.check_new(args.output_dir)


def load(name):
    """Return (model in the class and precision of its files, parameters that these lack, tokenizer, its spec)."""
    config, what = models.load_config(name, "--model"), f"--model {name!r}"
    families.family(config, what)
    tokenizer = models.load_tokenizer(name, "--model")
    spec = json.loads(tokenizer.backend_tokenizer.to_str())  # now: a first use would change its padding and truncation
    models.check_tokenizer(tokenizer, config, what, transformers.AutoModel)
    if spec["model"]["type"] not in ("WordPiece", "Unigram", "BPE"):
        raise ValueError(f"{what}: its tokenizer is {spec['model']['type']}; take one of WordPiece, Unigram or BPE")
    known = getattr(transformers, (config.architectures or [""])[0], None)
    if known is None:
        raise ValueError(f"{what}: its config.json names no class of transformers as its architecture: add it")
    model, missing = models.load_model(name, known, "--model", dtype="auto")
    return model, missing, tokenizer, spec


def size(model, missing, spec):
    """Return (million parameters, MB of weights and tokenizer.json that `save` writes)."""
    weights = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if name not in missing)
    file = len(json.dumps(spec, ensure_ascii=False).encode())
    return cost.count_parameters(model)[0] / 1e6, (weights + file) / 1e6


def same_tokenizer(one, other):
    """Return whether two specs are equal, up to an error in the last of 16 digits of a score that was read."""
    scores = []
    for spec in (one, other):
        vocab = spec["model"]["vocab"]
        scores.append([score for _, score in vocab] if isinstance(vocab, list) else [])
    one, other = (spec | {"model": spec["model"] | {"vocab": vocabulary.model_words(spec)}} for spec in (one, other))
    return one == other and np.allclose(*scores, rtol=1e-12, atol=0)


def save(args, folder, model, missing, tokenizer, spec, said):
    """Write model, tokenizer, card and the files of a sentence encoder; return the tokenizer, read from there.

    Raises ValueError if it differs, since its class builds it by rules of its own.
    """
    state = {name: value for name, value in model.state_dict().items() if name not in missing}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    similarity.copy_modules(similarity.modules_of(args.model), folder, model.config.hidden_size)
    text = json.dumps(spec, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    saved = models.load_tokenizer(folder)
    read = saved.backend_tokenizer
    if not same_tokenizer(json.loads(read.to_str()), json.loads(Tokenizer.from_str(text).to_str())):
        raise ValueError(
            f"--model {args.model!r} cannot be trimmed: its {type(tokenizer).__name__} changes the tokenizer"
        )
    metadata = ModelCardData(library_name="transformers", **card.base_metadata(args.model))
    (folder / "README.md").write_text(
        f"---\n{metadata.to_yaml()}\n---\n\n# {args.output_dir.name}\n\n`{args.model}` with the words of "
        f"{', '.join(f'`{name}`' for name in args.corpus)}: {said}.\n",
        encoding="utf-8",
    )
    data.whole_texts(saved)
    return read


def trim(args, model, missing, spec, counts):
    """Trim the model in place; return (the trimmed spec of its tokenizer, a sentence on what changed).

    missing: parameters that its files lack. counts: {word: times in the text} of all words.
    """
    ids, fixed = vocabulary.all_words(spec), vocabulary.fixed_ids(model.config)
    named = {word for word, i in ids.items() if i in fixed}
    stay, characters = vocabulary.staying(spec, counts, named, args.characters)
    kept = vocabulary.choose(spec, counts, stay, args.min_count, args.vocab_size)
    new, new_ids = vocabulary.trim_tokenizer(spec, kept)
    before, rows = size(model, missing, spec), model.get_input_embeddings().num_embeddings
    vocabulary.trim_model(model, [ids[word] for word in new_ids], {ids[word]: i for word, i in new_ids.items()})
    after = size(model, missing, new)
    share = sum(counts[word] for word in new_ids) / sum(counts.values())
    unnamed = f" and {rows - len(ids):,} rows without a word" if rows > len(ids) else ""
    return new, (
        f"{len(ids):,} words{unnamed} -> {len(new_ids):,} words ({characters:,} single characters), which "
        f"make up {share:.2%} of the text; {before[0]:.1f} -> {after[0]:.1f} million parameters; "
        f"{before[1]:.1f} -> {after[1]:.1f} MB"
    )


def main(argv=None):
    """Run the script with the given arguments, sys.argv's by default."""
    args, begun = build_parser().parse_args(argv), time.perf_counter()
    check_args(args)
    command_line.quiet()
    texts, others = (
        itertools.chain(*checks.by_language(words, option).values())
        for option, words in (("--corpus", args.corpus), ("--held_out", args.held_out))
    )
    sources = {name: source_of(name, args.text_column) for name in texts}
    held_out = {name: source_of(name, args.text_column) for name in others}
    model, missing, tokenizer, spec = load(args.model)
    data.whole_texts(tokenizer)
    backend = tokenizer.backend_tokenizer
    counts = count_words(backend, spec, sources, args.model)
    new_spec, said = trim(args, model, missing, spec, counts)
    with checkpoints.new_folder(args.output_dir) as folder:
        now = save(args, folder, model, missing, tokenizer, new_spec, said)
        unknown = vocabulary.unknown_word(spec)
        compared = {name: compare(backend, now, source, unknown) for name, source in held_out.items()}
    for name, (pieces, others, before, after) in compared.items():
        print(f"{name}: of {pieces:,} pieces {others:.2%} are others now; unknown before {before:.2%}, now {after:.2%}")
    print(f"{args.output_dir}: {said}; {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    command_line.run_script(main)
