"""A model with the words of some languages only: the same layers, the rows of the words that a text uses.

    python trim_vocabulary.py --model bert-base-multilingual-cased --corpus english.txt korean.txt \
        --output_dir models/bert-en-ko
"""
from options import begin
from options import trim_parser as build_parser

if __name__ == "__main__":
    begin(build_parser())  # before the imports below, which take seconds

import itertools
import json
import re
import time

import numpy as np
import torch
import transformers
from huggingface_hub import ModelCardData
from tokenizers import Tokenizer

import card
import checkpoints
import cli
import corpus
import families
import measure
import models
from readers import read_lines

LINES, CHARACTERS = 1000, 10**6  # of a batch of text at most; one line may be longer
UNKNOWN = 0.5  # share of unknown words from which on a text is taken for one of a language that the model lacks

# --- what a tokenizer holds ----------------------------------------------------------------------------------------
# spec: the content of tokenizer.json. Words are all that the model has a row for: pieces, characters, special words.


def model_words(spec):
    """{word: id} of the tokenizer's own algorithm, in the order of the ids; added words are not among them."""
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, list):
        return {word: i for i, (word, _) in enumerate(vocab)}
    return dict(sorted(vocab.items(), key=lambda item: item[1]))


def unknown_word(spec):
    """The word that stands for what the tokenizer does not know; None where there is none."""
    model = spec["model"]
    if model["type"] != "Unigram":
        return model["unk_token"]
    return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]


def processors_of(spec):
    """The tokenizer's post-processors, one after the other."""
    processor = spec["post_processor"]
    return processor["processors"] if processor and processor["type"] == "Sequence" else filter(None, [processor])


def special_words(spec):
    """The words that stay whatever the text: added ones, the unknown word, those around a text, bytes."""
    found = {token["content"] for token in spec["added_tokens"]} | {unknown_word(spec)} - {None}
    for processor in processors_of(spec):
        found |= {word for token in processor.get("special_tokens", {}).values() for word in token["tokens"]}
        found |= {processor[name][0] for name in ("sep", "cls") if name in processor}
    if spec["model"].get("byte_fallback"):
        found |= {word for word in model_words(spec) if re.fullmatch("<0x[0-9A-F]{2}>", word)}
    return found


def bare(spec):
    """The function from a word to its characters, without the sign that it goes on or ends a word of the text."""
    prefix = spec["model"].get("continuing_subword_prefix") or ""
    suffix = spec["model"].get("end_of_word_suffix") or ""
    return lambda word: word.removeprefix(prefix).removesuffix(suffix)


def spelling(spec, word):
    """The words of one character that a word would be cut into."""
    prefix = spec["model"].get("continuing_subword_prefix") or ""
    first = prefix * word.startswith(prefix)
    return [(prefix if i else first) + c for i, c in enumerate(word.removeprefix(first))]


def parts(spec):
    """{word: the words that it is merged from, of all merges that make it} of BPE; {} of other algorithms."""
    found, prefix = {}, spec["model"].get("continuing_subword_prefix") or ""
    for left, right in spec["model"].get("merges", ()):
        found.setdefault(left + right.removeprefix(prefix), set()).update((left, right))
    return found


# --- which words stay ----------------------------------------------------------------------------------------------


def with_parts(words, merged):
    """The words and all that they are merged from, those from which these are merged, and so on; merged: `parts`."""
    found, open_words = set(), list(words)
    while open_words:
        word = open_words.pop()
        if word not in found:
            found.add(word)
            open_words += merged.get(word, ())
    return found


def staying(spec, counts, named, characters="all"):
    """(words that stay whatever their count, how many of them are single characters).

    counts: {word: times in the text}. named: other words that stay. characters: "all" or "corpus", as the option. Of a
    word of the text that single characters cannot spell, the word itself stays, so that nothing of the text becomes
    unknown; the least likely word of Unigram, too: from its score that of the unknown follows.
    """
    words, plain = model_words(spec), bare(spec)
    special = special_words(spec) | set(named)
    used = [word for word in words if counts[word] and word not in special]
    singles = {word for word in words if len(plain(word)) == 1} - special
    if characters == "corpus" and spec["model"]["type"] != "BPE":  # whose words may be of bytes, not of characters
        seen = set().union(*map(plain, used))
        singles = {word for word in singles if plain(word) in seen}
    found = special | singles
    if spec["model"]["type"] == "BPE":
        return with_parts(found, parts(spec)), len(singles)
    found |= {word for word in used if not all(piece in words for piece in spelling(spec, word))}
    if spec["model"]["type"] == "Unigram":
        scores = dict(spec["model"]["vocab"])
        lowest = min(scores.values())
        if all(scores.get(word) != lowest for word in found):
            found.add(next(word for word, score in scores.items() if score == lowest))
    return found, len(singles)


def choose(spec, counts, stay, min_count=1, vocab_size=None):
    """The words that are kept: those that stay, and of the others the most frequent.

    counts: {word: times in the text}. stay: from `staying`. min_count, vocab_size: as the options; a word of BPE brings
    what it is merged from, and is left out if there is no room for that. Raises ValueError if vocab_size is too low.
    """
    if vocab_size and vocab_size < len(stay):
        raise ValueError(f"--vocab_size {vocab_size} is below the {len(stay)} special words and characters that always "
                         "stay: raise it, or pass --characters corpus")  # fmt: skip
    merged, kept, words = parts(spec), set(stay), model_words(spec)
    for word in sorted((w for w in words if counts[w] >= min_count), key=lambda w: (-counts[w], words[w])):
        new = with_parts([word], merged) - kept
        if not vocab_size or len(kept) + len(new) <= vocab_size:
            kept |= new
    return kept


# --- tokenizer and model with these words --------------------------------------------------------------------------


def trim_tokenizer(spec, kept):
    """(the spec with the kept words alone, {word: new id} in the order of the ids).

    Words keep their order, and with their scores and merges all that decides how a text is cut; words that were added
    beside the algorithm's own come last, as the tokenizers library numbers them.
    """
    old, words = spec["model"], model_words(spec)
    added = sorted(spec["added_tokens"], key=lambda token: token["id"])
    inside = [word for word in words if word in kept]
    order = inside + [token["content"] for token in added if token["content"] not in words]
    ids = {word: i for i, word in enumerate(order)}
    if old["type"] == "Unigram":
        vocab = [[word, score] for word, score in old["vocab"] if word in kept]
        new = old | {"vocab": vocab, "unk_id": ids.get(unknown_word(spec))}
    else:
        new = old | {"vocab": {word: ids[word] for word in inside}}
    if old["type"] == "BPE":
        prefix = old["continuing_subword_prefix"] or ""
        new["merges"] = [[left, right] for left, right in old["merges"]
                         if {left, right, left + right.removeprefix(prefix)} <= kept]  # fmt: skip
    spec = spec | {"model": new, "added_tokens": [token | {"id": ids[token["content"]]} for token in added]}
    if spec["padding"]:
        spec["padding"] = spec["padding"] | {"pad_id": ids[spec["padding"]["pad_token"]]}
    processors = [_renumbered(processor, ids) for processor in processors_of(spec)]
    if processors:
        several = spec["post_processor"]["type"] == "Sequence"
        spec["post_processor"] = spec["post_processor"] | {"processors": processors} if several else processors[0]
    return spec, ids


def _renumbered(processor, ids):
    """A post-processor with the new ids of its words."""
    new = {name: [processor[name][0], ids[processor[name][0]]] for name in ("sep", "cls") if name in processor}
    if "special_tokens" in processor:
        new["special_tokens"] = {name: token | {"ids": [ids[word] for word in token["tokens"]]}
                                 for name, token in processor["special_tokens"].items()}  # fmt: skip
    return processor | new


def config_ids(config):
    """{name: id or ids} of the words that a configuration names, as pad_token_id."""
    found = {name: value for name, value in config.to_dict().items() if re.fullmatch(r"\w+_token_ids?", name)}
    return {name: value for name, value in found.items() if isinstance(value, (int, list))}


@torch.no_grad()
def trim_model(model, rows, new_ids):
    """Leave the model, in place, the rows of its word embeddings and of a masked LM's decoder that are named.

    rows: old ids in the order of the new ones. new_ids: {old id: new id}, for those that its configuration names; what
    has no word there becomes None. Raises ValueError if positions would be counted otherwise.
    """
    fixed = families.FAMILIES[model.config.model_type].skipped(model.config)
    if rows[:fixed] != list(range(fixed)):
        raise ValueError(f"a model of type {model.config.model_type!r} counts positions from the ids of its first "
                         f"{fixed} words on, of which this one lacks some: it cannot be trimmed")  # fmt: skip
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    tensors = [x for layer in filter(None, layers) for x in (layer.weight, getattr(layer, "bias", None))]
    for tensor in {x.data_ptr(): x for x in tensors if x is not None}.values():  # tied ones once
        tensor[: len(rows)] = tensor[rows]
    for name, value in config_ids(model.config).items():
        found = [new_ids[i] for i in (value if isinstance(value, list) else [value]) if i in new_ids]
        setattr(model.config, name, found if isinstance(value, list) else found[0] if found else None)
    model.resize_token_embeddings(len(rows))


# --- the text ------------------------------------------------------------------------------------------------------


def batches(name):
    """The lines of a corpus in lists, as it is read; name: as --corpus."""
    files = corpus.find_files(name)
    if files:
        texts = (text for file in files for _, text in read_lines(file))
    else:
        texts = (row["text"] for row in corpus.load_texts(name, streaming=True))
    batch, size = [], 0
    for text in texts:
        if text.strip():
            batch.append(text)
            size += len(text)
        if len(batch) == LINES or size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def count_ids(tokenizer, name, size):
    """Times that each id, below size, stands in a corpus, int64 [size]; the tokenizer cuts a batch on all cores."""
    counts = np.zeros(size, dtype=np.int64)
    for batch in batches(name):
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        ids = np.fromiter(itertools.chain.from_iterable(e.ids for e in encodings), dtype=np.int64)
        counts += np.bincount(ids, minlength=size)
    return counts


def count_corpora(args, tokenizer, spec):
    """{word: times in all of --corpus}, a printed line for each; ValueError for one that is empty or not understood."""
    ids, unknown, plain = tokenizer.get_vocab(with_added_tokens=True), unknown_word(spec), bare(spec)
    lettered = np.zeros(max(ids.values()) + 1, dtype=bool)
    lettered[[i for word, i in ids.items() if any(c.isalpha() for c in plain(word))]] = True
    lettered[[ids[word] for word in special_words(spec) if word in ids]] = False
    total = np.zeros(len(lettered), dtype=np.int64)
    for name in args.corpus:
        counts = count_ids(tokenizer, name, len(lettered))
        if not counts.any():
            raise ValueError(f"--corpus {name!r} holds no text: pass one that does, or leave it out")
        lost = counts[ids[unknown]] if unknown in ids else 0
        share = lost / max(1, lost + counts[lettered].sum())  # of words with letters: full stops are known everywhere
        if share >= UNKNOWN:
            raise ValueError(f"--corpus {name!r}: the tokenizer of {args.model} knows {1 - share:.0%} of its words, so "
                             "it is in a language that this model was not made for: take another model")  # fmt: skip
        print(f"{name}: {counts.sum():,} pieces, {(counts > 0).sum():,} different words, {share:.2%} unknown",
              flush=True)  # fmt: skip
        total += counts
    return {word: int(total[i]) for word, i in ids.items()}


def compare(before, after, name, unknown):
    """(pieces that a text is cut into before, shares of them that are others after, that are unknown before and after).

    A piece is the same after if the same place of the text is the same word. unknown: the word for what is not known.
    """
    whole = same = 0
    lost = [0, 0]
    for batch in batches(name):
        for pair in zip(*(t.encode_batch(batch, add_special_tokens=False) for t in (before, after)), strict=True):
            found = [set(zip(e.tokens, e.offsets, strict=True)) for e in pair]
            whole += len(pair[0].tokens)
            same += sum(one in found[1] for one in zip(pair[0].tokens, pair[0].offsets, strict=True))
            lost = [n + e.tokens.count(unknown) for n, e in zip(lost, pair, strict=True)]
    if not whole:
        raise ValueError(f"--held_out {name!r} holds no text: pass one that does, or leave it out")
    return whole, 1 - same / whole, lost[0] / whole, lost[1] / whole


# --- the script ----------------------------------------------------------------------------------------------------


def check_args(args):
    """Check the options before anything is loaded; raises ValueError."""
    for option, names in (("model", [args.model]), ("corpus", args.corpus), ("held_out", [args.held_out])):
        if any(name is not None and not name.strip() for name in names):
            raise ValueError(f"--{option} '' names nothing: is a variable unset?")
    checkpoints.check_new(args.output_dir)


def load(name):
    """(model in the class and precision of its files, names of parameters that these lack, tokenizer)."""
    config, what = models.load_config(name, "--model"), f"--model {name!r}"
    families.family(config, what)
    tokenizer = models.load_tokenizer(name, "--model")
    models.check_tokenizer(tokenizer, config, what, transformers.AutoModel)
    kind = tokenizer.backend_tokenizer.model.__class__.__name__
    if kind not in ("WordPiece", "Unigram", "BPE"):
        raise ValueError(f"{what} has a tokenizer of the kind {kind}, of which no words can be left out: take one with "
                         "WordPiece, Unigram or BPE")  # fmt: skip
    known = getattr(transformers, (config.architectures or [""])[0], None)
    if known is None:
        raise ValueError(f"{what}: its config.json names no class of transformers as its architecture: add it, as in "
                         '"architectures": ["BertForMaskedLM"]')  # fmt: skip
    model, missing = models.load_model(name, known, "--model", dtype="auto")
    return model, missing, tokenizer


def size_mb(model, spec):
    """10^6 bytes that weights and tokenizer.json take on the disk."""
    tensors = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    return (sum(tensors.values()) + len(json.dumps(spec, ensure_ascii=False).encode())) / 1e6


def same_tokenizer(one, other):
    """Whether two specs say the same; scores are read from a file with an error in the last of 16 digits."""
    scores = []
    for spec in (one, other):
        vocab = spec["model"]["vocab"]
        scores.append([score for _, score in vocab] if isinstance(vocab, list) else [])
    one, other = (spec | {"model": spec["model"] | {"vocab": model_words(spec)}} for spec in (one, other))
    return one == other and np.allclose(*scores, rtol=1e-12, atol=0)


def save(args, folder, model, missing, tokenizer, spec, said):
    """Write model, tokenizer and card into the folder; the tokenizer as it is read from there.

    Raises ValueError if that is another one, as one that its class makes by rules of its own may be.
    """
    state = {name: value for name, value in model.state_dict().items() if name not in missing}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    text = json.dumps(spec, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    read = models.load_tokenizer(folder).backend_tokenizer
    if not same_tokenizer(json.loads(read.to_str()), json.loads(Tokenizer.from_str(text).to_str())):
        raise ValueError(f"--model {args.model!r}: a {type(tokenizer).__name__} makes another tokenizer of the kept "
                         "words: it cannot be trimmed")  # fmt: skip
    data = ModelCardData(library_name="transformers", **card.base_metadata(args.model))
    (folder / "README.md").write_text(
        f"---\n{data.to_yaml()}\n---\n\n# {args.output_dir.name}\n\n`{args.model}` with the words that "
        f"{', '.join(f'`{name}`' for name in args.corpus)} uses: {said}.\n", encoding="utf-8")  # fmt: skip
    return read


def main(argv=None):
    """Run the script with the given arguments, sys.argv's by default."""
    args, begun = build_parser().parse_args(argv), time.perf_counter()
    check_args(args)
    cli.quiet()
    model, missing, tokenizer = load(args.model)
    spec, backend = json.loads(tokenizer.backend_tokenizer.to_str()), tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    counts, ids = count_corpora(args, backend, spec), backend.get_vocab(with_added_tokens=True)
    named = set(range(families.FAMILIES[model.config.model_type].skipped(model.config)))
    for value in config_ids(model.config).values():
        named |= set(value) if isinstance(value, list) else {value}
    stay, characters = staying(spec, counts, {word for word, i in ids.items() if i in named}, args.characters)
    new_spec, new_ids = trim_tokenizer(spec, choose(spec, counts, stay, args.min_count, args.vocab_size))
    before = len(ids), measure.count_parameters(model)[0], size_mb(model, spec)
    trim_model(model, [ids[word] for word in new_ids], {ids[word]: i for word, i in new_ids.items()})
    after = len(new_ids), measure.count_parameters(model)[0], size_mb(model, new_spec)
    said = (f"{before[0]:,} -> {after[0]:,} words ({characters:,} of them single characters), {before[1] / 1e6:.1f} -> "
            f"{after[1] / 1e6:.1f} million parameters, {before[2]:.1f} -> {after[2]:.1f} MB")  # fmt: skip
    with checkpoints.new_folder(args.output_dir) as folder:
        now = save(args, folder, model, missing, tokenizer, new_spec, said)
        lines = [f"{args.output_dir}: {said}"]
        share = sum(counts[word] for word in new_ids) / sum(counts.values())
        if share < 1:
            lines.append(f"these words are {share:.3%} of the text's")
        if args.held_out:
            now.no_truncation()
            now.no_padding()
            whole, other, *lost = compare(backend, now, args.held_out, unknown_word(spec))
            lines.append(f"{args.held_out}: of {whole:,} pieces {other:.3%} are others now; unknown before "
                         f"{lost[0]:.3%}, now {lost[1]:.3%}")  # fmt: skip
    print(*lines, f"{time.perf_counter() - begun:.0f} s", sep="\n")


if __name__ == "__main__":
    cli.run_script(main)
