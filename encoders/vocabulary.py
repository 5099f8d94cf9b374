"""Trimming the vocabulary of a tokenizer and a model: which words stay, and both with these words alone.

A word is anything that the model has a row for: a piece, a character, a special word. spec: the content of
tokenizer.json, `json.loads(tokenizer.backend_tokenizer.to_str())`.
"""

import re

import torch

from encoders import families

# --- what a tokenizer holds ----------------------------------------------------------------------------------------


def model_words(spec):
    """Return {word: id} of the tokenizer's algorithm, in the order of the ids, without added words."""
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, list):
        return {word: i for i, (word, _) in enumerate(vocab)}
    return dict(sorted(vocab.items(), key=lambda item: item[1]))


def all_words(spec):
    """Return {word: id} of all words, added ones included."""
    return model_words(spec) | {token["content"]: token["id"] for token in spec["added_tokens"]}


def unknown_word(spec):
    """Return the unknown word; None if the tokenizer has none."""
    model = spec["model"]
    if model["type"] != "Unigram":
        return model["unk_token"]
    return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]


def processors_of(spec):
    """Return the tokenizer's post-processors, in order."""
    processor = spec["post_processor"]
    return processor["processors"] if processor and processor["type"] == "Sequence" else filter(None, [processor])


def padding_word(spec):
    """Return the word that tokenizer.json pads with; None if it does not pad."""
    padding = spec["padding"] or {"pad_id": None}
    return next((word for word, i in all_words(spec).items() if i == padding["pad_id"]), None)


def special_words(spec):
    """Return the words that always stay: added words, the unknown and padding words, bytes, words around a text."""
    words, found = all_words(spec), {unknown_word(spec), padding_word(spec)}
    found |= {token["content"] for token in spec["added_tokens"]}
    for processor in processors_of(spec):
        found |= {word for token in processor.get("special_tokens", {}).values() for word in token["tokens"]}
        found |= {processor[name][0] for name in ("sep", "cls") if name in processor}
    if spec["model"].get("byte_fallback"):
        found |= {word for word in words if re.fullmatch("<0x[0-9A-F]{2}>", word)}
    return found & words.keys()


def bare(spec):
    """Return the function from a word to its characters, without a continuation prefix or an end-of-word suffix."""
    prefix = spec["model"].get("continuing_subword_prefix") or ""
    suffix = spec["model"].get("end_of_word_suffix") or ""
    return lambda word: word.removeprefix(prefix).removesuffix(suffix)


def spelling(spec, word):
    """Return the single-character words that spell a word."""
    prefix = spec["model"].get("continuing_subword_prefix") or ""
    first = prefix * word.startswith(prefix)
    return [(prefix if i else first) + c for i, c in enumerate(word.removeprefix(first))]


def parts(spec):
    """Return {word: all words that BPE merges it from}; {} for other algorithms."""
    found, prefix = {}, spec["model"].get("continuing_subword_prefix") or ""
    for left, right in spec["model"].get("merges", ()):
        found.setdefault(left + right.removeprefix(prefix), set()).update((left, right))
    return found


# --- which words stay ----------------------------------------------------------------------------------------------


def with_parts(words, merged):
    """Return the words and, recursively, the words that they are merged from; merged: `parts`."""
    found, open_words = set(), list(words)
    while open_words:
        word = open_words.pop()
        if word not in found:
            found.add(word)
            open_words += merged.get(word, ())
    return found


def staying(spec, counts, named, characters="all"):
    """Return (words that stay whatever their count, number of single characters among them).

    counts: {word: times in the text}. named: more words that stay. characters: "all" or "corpus", as the option. A word
    of the text stays if single characters cannot spell it, so that nothing in the text becomes unknown. So does
    Unigram's least likely word, which sets the score of the unknown word.
    """
    words, plain = model_words(spec), bare(spec)
    special = special_words(spec) | set(named)
    used = [word for word in words if counts[word] and word not in special]
    singles = {word for word in words if len(plain(word)) == 1} - special
    if characters == "corpus" and spec["model"]["type"] != "BPE":  # BPE's words may consist of bytes
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
    """Return the words to keep: those that stay, and the most frequent others.

    counts: {word: times in the text}. stay: from `staying`. min_count, vocab_size: as the options. A BPE word brings
    the words that it is merged from, and is left out if they do not fit. Raises ValueError if vocab_size is too low.
    """
    if vocab_size and vocab_size < len(stay):
        raise ValueError(
            f"--vocab_size {vocab_size} is below the {len(stay)} special words and characters that always "
            "stay: raise it, or pass --characters corpus"
        )
    merged, kept, words = parts(spec), set(stay), model_words(spec)
    for word in sorted((w for w in words if counts[w] >= min_count), key=lambda w: (-counts[w], words[w])):
        new = with_parts([word], merged) - kept
        if not vocab_size or len(kept) + len(new) <= vocab_size:
            kept |= new
    return kept


# --- tokenizer and model with these words --------------------------------------------------------------------------


def trim_tokenizer(spec, kept):
    """Return (the spec with the kept words alone, {word: new id} in the order of the ids).

    Words keep their order, scores and merges, which decide how a text is cut. Added words come last, as the tokenizers
    library numbers them.
    """
    before, old, words = spec, spec["model"], model_words(spec)
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
        new["merges"] = [
            [left, right] for left, right in old["merges"] if {left, right, left + right.removeprefix(prefix)} <= kept
        ]
    spec = spec | {"model": new, "added_tokens": [token | {"id": ids[token["content"]]} for token in added]}
    if spec["padding"]:
        spec["padding"] = spec["padding"] | {"pad_id": ids.get(padding_word(before), 0)}
    processors = [_renumbered(processor, ids) for processor in processors_of(spec)]
    if processors:
        several = spec["post_processor"]["type"] == "Sequence"
        spec["post_processor"] = spec["post_processor"] | {"processors": processors} if several else processors[0]
    return spec, ids


def _renumbered(processor, ids):
    """Return a post-processor with the new ids of its words."""
    new = {name: [processor[name][0], ids[processor[name][0]]] for name in ("sep", "cls") if name in processor}
    if "special_tokens" in processor:
        new["special_tokens"] = {
            name: token | {"ids": [ids[word] for word in token["tokens"]]}
            for name, token in processor["special_tokens"].items()
        }
    return processor | new


def config_ids(config):
    """Return {name: id or ids} of a configuration's entries such as pad_token_id."""
    found = {name: value for name, value in config.to_dict().items() if re.fullmatch(r"\w+_token_ids?", name)}
    return {name: value for name, value in found.items() if isinstance(value, (int, list))}


def counted_ids(config):
    """Return the ids from 0 to padding's if a model counts positions after them; [] if it counts from 0."""
    return list(range(families.FAMILIES[config.model_type].skipped(config)))


def fixed_ids(config):
    """Return the ids whose words must stay because of a model's configuration."""
    named = [value if isinstance(value, list) else [value] for value in config_ids(config).values()]
    return set().union(counted_ids(config), *named)


@torch.no_grad()
def trim_model(model, rows, new_ids):
    """Trim the model in place to these rows of its word embeddings and of a masked LM's decoder.

    rows: old ids in the order of the new ones. new_ids: {old id: new id}, for the ids in its configuration; an id
    without a word becomes None. Raises ValueError if positions would change.
    """
    counted = counted_ids(model.config)
    if rows[: len(counted)] != counted:
        raise ValueError(
            f"a model of type {model.config.model_type!r} counts positions from the id of padding on, but "
            f"its tokenizer has no word for an id up to {counted[-1]}: it cannot be trimmed"
        )
    decoder = model.get_output_embeddings()
    tensors = [model.get_input_embeddings().weight]
    tensors += [decoder.weight, decoder.bias] if decoder else []
    for tensor in {x.data_ptr(): x for x in tensors if x is not None}.values():  # tied ones once
        tensor[: len(rows)] = tensor[rows]
    for name, value in config_ids(model.config).items():
        found = [new_ids[i] for i in (value if isinstance(value, list) else [value]) if i in new_ids]
        setattr(model.config, name, found if isinstance(value, list) else found[0] if found else None)
    model.resize_token_embeddings(len(rows))
    decoder = model.get_output_embeddings()
    if decoder and decoder.bias is not None and not model.config.tie_word_embeddings:
        # transformers shares one tensor between the head's bias and the decoder's; a file would hold one name only.
        decoder.bias = torch.nn.Parameter(decoder.bias.clone())
