"""trim_vocabulary.py: what a text is cut into and what a model makes of it stay the same."""
import json
import random
import re

import pytest
import torch
import transformers
from test_families import TINY, make_tokenizer, tiny
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import trim_vocabulary

SCRIPTS = {"en": (0x61, 26), "ru": (0x430, 32), "ko": (0xAC00, 40), "zh": (0x4E00, 40)}  # first letter, how many


def lines_of(language, count=60, seed=0):
    """Lines of made-up words, some frequent and some seen once, with full stops, digits and blanks in a row."""
    rng = random.Random(language)
    first, letters = SCRIPTS[language]
    syllables = ["".join(chr(first + rng.randrange(letters)) for _ in range(rng.randint(1, 3))) for _ in range(30)]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(150)]
    rng, lines = random.Random(seed), []
    for i in range(count):
        chosen = [words[min(int(rng.expovariate(0.05)), 149)] for _ in range(rng.randint(1, 9))]
        lines.append(("  " if i % 7 == 0 else " ").join(chosen) + rng.choice([".", "", ", 42", "!"]))
    return lines


ALL = [line for language in SCRIPTS for line in lines_of(language, 150)]
SIZES = {"WordPiece": 600, "BPE": 600, "Unigram": 500}
# The classes that transformers takes for these tokenizers, of which some make them by rules of their own.
CLASSES = {
    "bert": transformers.BertTokenizer, "roberta": transformers.RobertaTokenizer,
    "xlm-roberta": transformers.XLMRobertaTokenizer, "camembert": transformers.CamembertTokenizer,
    "deberta-v2": transformers.DebertaV2Tokenizer, "mpnet": transformers.MPNetTokenizer,
    "albert": transformers.AlbertTokenizer,
}  # fmt: skip


def tokenizer_of(name, own_class=False):
    """A tokenizer of all four scripts for a model type, of the type's own class or of the general one."""
    algorithm, words, _ = TINY[name]
    general = make_tokenizer(algorithm, words, ALL, SIZES[algorithm])
    if not own_class:
        return general
    model = json.loads(general.backend_tokenizer.to_str())["model"]
    vocab = [tuple(pair) for pair in model["vocab"]] if algorithm == "Unigram" else model["vocab"]
    merges = {"merges": [tuple(pair) for pair in model["merges"]]} if algorithm == "BPE" else {}
    cased = {"do_lower_case": False} if algorithm == "WordPiece" else {}
    return CLASSES[name](vocab=vocab, **merges, **cased, **words)


def saved(folder, name, tokenizer, kind="mlm", **more):
    """The folder with a tiny model of the type, 7 rows more than words, and the tokenizer."""
    rows = max(tokenizer.get_vocab().values()) + 8
    tiny(name, kind, vocab_size=rows, **more).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def trim(folder, out, *options):
    """The script on a folder; (the tokenizer before, the one after)."""
    trim_vocabulary.main(["--model", str(folder), "--output_dir", str(out), "--corpus", *map(str, options)])
    return AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(out)


@torch.no_grad()
def check_same(before, after, folder, out, texts, auto=AutoModelForMaskedLM):
    """Texts are cut into the same words, and hidden states and what gives the logits are the same to the bit."""
    models = [auto.from_pretrained(path).eval() for path in (folder, out)]
    old = before.get_vocab()
    rows = [old[word] for word, _ in sorted(after.get_vocab().items(), key=lambda item: item[1])]
    assert models[1].get_input_embeddings().num_embeddings == models[1].config.vocab_size == len(rows) < len(old)
    decoders = [model.get_output_embeddings() for model in models]
    if decoders[0]:
        assert torch.equal(decoders[0].weight[rows], decoders[1].weight)
        assert decoders[0].bias is None or torch.equal(decoders[0].bias[rows], decoders[1].bias)
    for text in texts:
        pair = [tokenizer(*text) if isinstance(text, tuple) else tokenizer(text) for tokenizer in (before, after)]
        assert pair[0].tokens() == pair[1].tokens()
        batches = [{k: torch.tensor([v[:36]]) for k, v in one.items() if k != "token_type_ids"} for one in pair]
        first, second = (m(**b, output_hidden_states=True) for m, b in zip(models, batches, strict=True))
        for one, other in zip(first.hidden_states, second.hidden_states, strict=True):
            assert torch.equal(one, other)
        if decoders[0]:  # the last columns of a product of another width are summed in another order
            torch.testing.assert_close(first.logits[..., rows], second.logits, rtol=0, atol=1e-5)


def letters(tokenizer, text):
    """The characters of a text as the tokenizer's words have them, without its signs of beginning and going on."""
    return re.sub("##|[ \u2581]", "", "".join(tokenizer.tokenize(text)))


@pytest.mark.parametrize("name, own_class", [(name, False) for name in TINY] + [(name, True) for name in CLASSES])
@torch.no_grad()
def test_a_text_of_the_corpus_has_the_same_words_states_and_logits(name, own_class, tmp_path):
    folder = saved(tmp_path / "old", name, tokenizer_of(name, own_class))
    languages = ("en",) if own_class and name == "albert" else ("en", "ko")  # it takes Hangul apart and knows no part
    files = [write(tmp_path / f"{language}.txt", lines_of(language)) for language in languages]
    before, after = trim(folder, tmp_path / "new", *files)
    assert type(before) is type(after) and len(after) < len(before) * 0.8
    texts = [line for language in languages for line in lines_of(language)]
    check_same(before, after, folder, tmp_path / "new", texts[::3] + [(texts[1], texts[2])])
    AutoModel.from_pretrained(tmp_path / "new")
    # Special words, padding and what stands around a text.
    assert before.special_tokens_map == after.special_tokens_map
    batches = [t([texts[0], texts[1] + texts[2]], padding=True) for t in (before, after)]
    assert [[one.tokens for one in batch.encodings] for batch in batches][::-1] == [
        [one.tokens for one in batch.encodings] for batch in batches[::-1]]
    assert batches[0]["attention_mask"] == batches[1]["attention_mask"]
    config = transformers.AutoConfig.from_pretrained(tmp_path / "new")
    assert after.convert_ids_to_tokens(config.pad_token_id) == before.pad_token
    # Other scripts: nothing beyond the last row, nothing unknown that single characters spell.
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "new")
    for text in lines_of("ru") + lines_of("zh"):
        ids = after(text)["input_ids"]
        assert max(ids) < config.vocab_size
        if before.unk_token_id not in before(text)["input_ids"]:
            assert after.unk_token_id not in ids and letters(after, text) == letters(before, text)
    model(torch.tensor([ids[:30]]))
