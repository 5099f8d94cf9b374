"""The words of a tokenizer and of a model: which of them stay, and both with these alone.

Words are all that the model has a row for: pieces of words, characters, special words. spec: the content of
tokenizer.json, as `json.loads(tokenizer.backend_tokenizer.to_str())` gives it.
"""

import re

import torch

from encoders import families

# --- what a tokenizer holds ----------------------------------------------------------------------------------------


def model_words(spec):
    """Return {word: id} of the tokenizer's own algorithm, in the order of the ids; added words are not among them."""
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, list):
        return {word: i for i, (word, _) in enumerate(vocab)}
    return dict(sorted(vocab.items(), key=lambda item: item[1]))


def all_words(spec):
    """Return {word: id} of all words, those that were added beside the algorithm's own too."""
    return model_words(spec) | {token["content"]: token["id"] for token in spec["added_tokens"]}


def unknown_word(spec):
    """Return the word that stands for what the tokenizer does not know; None where there is none."""
    model = spec["model"]
    if model["type"] != "Unigram":
        return model["unk_token"]
    return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]


def processors_of(spec):
    """Return the tokenizer's post-processors, one after the other."""
    processor = spec["post_processor"]
    return processor["processors"] if processor and processor["type"] == "Sequence" else filter(None, [processor])


def padding_word(spec):
    """Return the word that tokenizer.json itself pads with; None where it does not pad."""
    padding = spec["padding"] or {"pad_id": None}
    return next((word for word, i in all_words(spec).items() if i == padding["pad_id"]), None)


def special_words(spec):
    """Return the words that stay whatever the text: added ones, those for the unknown, padding, bytes and around a
    text.
    """
    words, found = all_words(spec), {unknown_word(spec), padding_word(spec)}
    found |= {token["content"] for token in spec["added_tokens"]}
    for processor in processors_of(spec):
        found |= {word for token in processor.get("special_tokens", {}).values() for word in token["tokens"]}
        found |= {processor[name][0] for name in ("sep", "cls") if name in processor}
    if spec["model"].get("byte_fallback"):
        found |= {word for word in words if re.fullmatch("<0x[0-9A-F]{2}>", word)}
    return found & words.keys()


def bare(spec):
    """Return the function from a word to its characters, without the sign that it goes on or ends a word
    of the text.
    """
    prefix = spec["model"].get("continuing_subword_prefix") or ""
    suffix = spec["model"].get("end_of_word_suffix") or ""
    return lambda word: word.removeprefix(prefix).removesuffix(suffix)


def spelling(spec, word):
    """Return the words of one character that a word would be cut into."""
    prefix = spec["model"].get("continuing_subword_prefix") or ""
    first = prefix * word.startswith(prefix)
    return [(prefix if i else first) + c for i, c in enumerate(word.removeprefix(first))]


def parts(spec):
    """Return {word: the words that it is merged from, of all merges that make it} of BPE; {} of other algorithms."""
    found, prefix = {}, spec["model"].get("continuing_subword_prefix") or ""
    for left, right in spec["model"].get("merges", ()):
        found.setdefault(left + right.removeprefix(prefix), set()).update((left, right))
    return found


# --- which words stay ----------------------------------------------------------------------------------------------


def with_parts(words, merged):
    """Return the words and all that they are merged from, those from which these are merged, and so on; merged:
    `parts`.
    """
    found, open_words = set(), list(words)
    while open_words:
        word = open_words.pop()
        if word not in found:
            found.add(word)
            open_words += merged.get(word, ())
    return found


def staying(spec, counts, named, characters="all"):
    """Return (words that stay whatever their count, how many of them are single characters).

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
    """Return the words that are kept: those that stay, and of the others the most frequent.

    counts: {word: times in the text}. stay: from `staying`. min_count, vocab_size: as the options; a word of BPE brings
    what it is merged from, and is left out if there is no room for that. Raises ValueError if vocab_size is too low.
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

    Words keep their order, and with their scores and merges all that decides how a text is cut; words that were added
    beside the algorithm's own come last, as the tokenizers library numbers them.
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
    """Return {name: id or ids} of the words that a configuration names, as pad_token_id."""
    found = {name: value for name, value in config.to_dict().items() if re.fullmatch(r"\w+_token_ids?", name)}
    return {name: value for name, value in found.items() if isinstance(value, (int, list))}


def counted_ids(config):
    """Return the ids from 0 to that of padding where a model counts positions from there on; none where it counts from
    0.
    """
    return list(range(families.FAMILIES[config.model_type].skipped(config)))


def fixed_ids(config):
    """Return the ids whose words stay for the sake of a model's configuration."""
    named = [value if isinstance(value, list) else [value] for value in config_ids(config).values()]
    return set().union(counted_ids(config), *named)


@torch.no_grad()
def trim_model(model, rows, new_ids):
    """Leave the model, in place, the rows of its word embeddings and of a masked LM's decoder that are named.

    rows: old ids in the order of the new ones. new_ids: {old id: new id}, for those that its configuration names; what
    has no word there becomes None. Raises ValueError if positions would be counted otherwise.
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
        # transformers gives the head's bias and the decoder's one tensor, of which a file then has one name alone.
        decoder.bias = torch.nn.Parameter(decoder.bias.clone())
