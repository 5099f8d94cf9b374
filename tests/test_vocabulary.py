"""trim_vocabulary.py: what a text is cut into and what a model makes of it stay the same; --freeze_embeddings."""

import collections
import functools
import json
import random
import re
import shutil

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from conftest import forked
from datasets import Dataset
from safetensors.torch import load_file, save_file
from test_encoders import BERT_WORDS, ROBERTA_WORDS, TINY, make_tokenizer, tiny
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

import distill_pretrain
import models
import trim_vocabulary
from encoders import vocabulary
from methods import dynabert, mlm_head

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
    "bert": transformers.BertTokenizer,
    "roberta": transformers.RobertaTokenizer,
    "xlm-roberta": transformers.XLMRobertaTokenizer,
    "camembert": transformers.CamembertTokenizer,
    "deberta-v2": transformers.DebertaV2Tokenizer,
    "mpnet": transformers.MPNetTokenizer,
    "albert": transformers.AlbertTokenizer,
}


@functools.cache
def learned(algorithm, *words):
    """tokenizer.json of a tokenizer of all four scripts."""
    return make_tokenizer(algorithm, dict(words), ALL, SIZES[algorithm]).backend_tokenizer.to_str()


def tokenizer_of(name, own_class=False):
    """A tokenizer of all four scripts for a model type, of the type's own class or of the general one."""
    algorithm, words, _ = TINY[name]
    text = learned(algorithm, *words.items())
    if not own_class:
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **words)
    model = json.loads(text)["model"]
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
        [one.tokens for one in batch.encodings] for batch in batches[::-1]
    ]
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


# --- which words stay ----------------------------------------------------------------------------------------------


def random_tokenizer(algorithm, rng):
    """(a tokenizer of few letters, so that much is a tie; its spec; a text with unknown letters, few of its words)."""
    alphabet = "abcdefgh"[: rng.randint(2, 8)]

    def line(strange=""):
        return " ".join(
            rng.choice(("", strange[rng.randrange(3) :][:1])) + "".join(rng.choices(alphabet, k=rng.randint(1, 8)))
            for _ in range(rng.randint(1, 6))
        )

    learned = [line() for _ in range(200)]
    tokenizer = Tokenizer(
        {
            "WordPiece": token_models.WordPiece(unk_token="[U]"),
            "BPE": token_models.BPE(unk_token="[U]"),
            "Unigram": token_models.Unigram(),
        }[algorithm]
    )
    tokenizer.pre_tokenizer = (pre_tokenizers.Metaspace if algorithm == "Unigram" else pre_tokenizers.WhitespaceSplit)()
    options = {"vocab_size": rng.choice([30, 60, 200]), "special_tokens": ["[U]"], "show_progress": False}
    trainer = {"WordPiece": trainers.WordPieceTrainer, "BPE": trainers.BpeTrainer, "Unigram": trainers.UnigramTrainer}
    more = {"unk_token": "[U]"} if algorithm == "Unigram" else {"limit_alphabet": 5}
    tokenizer.train_from_iterator(learned, trainer[algorithm](**options, **more))
    tokenizer = Tokenizer.from_str(tokenizer.to_str())  # as from a file: reading changes the last digit of some scores
    return tokenizer, json.loads(tokenizer.to_str()), [line("xyz") for _ in range(8)] + learned[:5]


def trimmed(spec, kept):
    """The tokenizer with the kept words."""
    new, ids = vocabulary.trim_tokenizer(spec, kept)
    tokenizer = Tokenizer.from_str(json.dumps(new))
    assert tokenizer.get_vocab() == ids
    return tokenizer


@pytest.mark.parametrize("algorithm", SIZES)
def test_random_tokenizers_cut_their_text_as_before_and_lose_no_character(algorithm):
    fewer = 0
    for seed in range(12):
        tokenizer, spec, text = random_tokenizer(algorithm, random.Random(seed))
        before = [e.tokens for e in tokenizer.encode_batch(text)]
        word_of = {i: word for word, i in tokenizer.get_vocab().items()}
        counts = collections.Counter(word_of[i] for e in tokenizer.encode_batch(text) for i in e.ids)
        for characters in ("all", "corpus"):
            stay, _ = vocabulary.staying(spec, counts, (), characters)
            new = trimmed(spec, vocabulary.choose(spec, counts, stay))
            fewer += new.get_vocab_size() < tokenizer.get_vocab_size()
            assert [e.tokens for e in new.encode_batch(text)] == before
            for kept in (vocabulary.choose(spec, counts, stay, 3), vocabulary.choose(spec, counts, stay, 1, len(stay))):
                new = trimmed(spec, kept)
                cut = [[i for e in t.encode_batch(text) for i in e.ids] for t in (tokenizer, new)]
                unknown = [ids.count(t.token_to_id("[U]")) for ids, t in zip(cut, (tokenizer, new), strict=True)]
                assert unknown[0] == unknown[1] > 0
    assert fewer > 12


@pytest.mark.parametrize("characters", ["all", "corpus"])
@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "roberta"])
def test_the_words_that_stay_are_those_that_a_slow_count_finds(name, characters, tmp_path, capsys):
    """Special words, characters, words seen twice or the most frequent ones, in BPE with what they are merged from."""
    tokenizer = tokenizer_of(name)
    folder, lines = saved(tmp_path / "old", name, tokenizer), lines_of("ko")
    text = write(tmp_path / "ko.txt", lines)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    counts = collections.Counter(word for line in lines for word in tokenizer.tokenize(line))

    def plain(word):
        return word[2:] if word.startswith("##") else word

    seen = set("".join(map(plain, counts)))
    mandatory = {
        word
        for word in tokenizer.get_vocab()
        if word in tokenizer.all_special_tokens
        or (len(plain(word)) == 1 and (characters == "all" or name == "roberta" or plain(word) in seen))
    }
    if name == "xlm-roberta":  # the least likely word
        lowest = min(score for _, score in model["vocab"])
        if not any(word in mandatory and score == lowest for word, score in model["vocab"]):
            mandatory.add(next(word for word, score in model["vocab"] if score == lowest))

    def needed(word):
        """The word and all that BPE made on the way to it."""
        made = [(a, b) for a, b in model.get("merges", ()) if a + b == word]
        return {word}.union(*(needed(part) for pair in made for part in pair))

    expected = mandatory.union(*(needed(word) for word, count in counts.items() if count >= 2))
    _, after = trim(folder, tmp_path / "twice", text, "--min_count", "2", "--characters", characters)
    assert set(after.get_vocab()) == expected
    said = re.search(r"which make up ([\d.]+) % of the text", capsys.readouterr().out.replace("%", " %"))
    assert float(said[1]) == pytest.approx(100 * sum(counts[word] for word in expected) / counts.total(), abs=0.006)
    size, expected = len(mandatory) + 15, set(mandatory)
    for word in sorted(counts, key=lambda w: (-counts[w], tokenizer.get_vocab()[w])):
        if len(expected | needed(word)) <= size:
            expected |= needed(word)
    _, after = trim(folder, tmp_path / "few", text, "--vocab_size", size, "--characters", characters)
    assert set(after.get_vocab()) == expected and len(after) == size
    unknown = tokenizer.unk_token_id
    assert not any(unknown in after(line)["input_ids"] for line in lines)
    assert [letters(after, line) for line in lines] == [letters(tokenizer, line) for line in lines]


def test_what_characters_cannot_spell_stays_whole():
    vocab = {"[UNK]": 0, "cat": 1, "dog": 2, "##s": 3, "a": 4, "##b": 5, "ab": 6, "fox": 7}
    tokenizer = Tokenizer(token_models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spec = json.loads(tokenizer.to_str())
    counts = collections.Counter(tokenizer.encode("cats cats dog ab").tokens)
    stay, characters = vocabulary.staying(spec, counts, ())
    assert (stay, characters) == ({"[UNK]", "a", "##b", "##s", "cat", "dog"}, 3)
    new = trimmed(spec, vocabulary.choose(spec, counts, stay, 3))
    assert new.encode("cats dog ab fox").tokens == ["cat", "##s", "dog", "a", "##b", "[UNK]"]


def test_the_score_of_the_unknown_does_not_change():
    """It follows from the least likely word: without that, "xbc" would be cut into the unknown x and "bc"."""
    vocab = {"yy": -3.0, "<unk>": 0.0, "xb": -12.0, "b": -5.0, "c": -12.0, "bc": -1.0, "zz": -30.0, "z": -2.0}
    tokenizer = Tokenizer(token_models.Unigram(list(vocab.items()), unk_id=1))
    spec, counts = json.loads(tokenizer.to_str()), collections.Counter(tokenizer.encode("xbc").tokens)
    assert counts == {"xb": 1, "c": 1}
    stay, _ = vocabulary.staying(spec, counts, ())
    new = trimmed(spec, vocabulary.choose(spec, counts, stay))
    assert set(new.get_vocab()) == {"<unk>", "xb", "b", "c", "zz", "z"} and new.encode("xbc").tokens == ["xb", "c"]
    assert new.encode("b?").ids == [new.token_to_id("b"), new.token_to_id("<unk>")]


def test_bytes_that_stand_for_the_unknown_stay():
    byte_words = [(f"<0x{i:02X}>", -50.0) for i in range(256)]
    tokenizer = Tokenizer(token_models.Unigram([("<unk>", 0.0), ("ab", -1.0), ("cd", -2.0), *byte_words], 0, True))
    spec, counts = json.loads(tokenizer.to_str()), collections.Counter(tokenizer.encode("ab").tokens)
    stay, _ = vocabulary.staying(spec, counts, ())
    new = trimmed(spec, vocabulary.choose(spec, counts, stay))
    assert new.get_vocab_size() == 258 and new.encode("ab\u00e9").tokens == ["ab", "<0xC3>", "<0xA9>"]


# --- odd models and tokenizers -------------------------------------------------------------------------------------


def odd_tokenizer(padding=9):
    """WordPiece with holes in its ids, the special words in the middle, words added beside it, and settings."""
    words = ["the", "dog", "sees", "##s", "cat", "a", "##g", "un", "##seen"]
    ids = dict(zip(words, (0, 1, 3, 4, 5, 6, 7, 20, 21), strict=True))
    ids |= {"[PAD]": padding, "[UNK]": 10, "[CLS]": 15, "[SEP]": 16, "[MASK]": 17}
    backend = Tokenizer(token_models.WordPiece(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    around = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 15), ("[SEP]", 16)]
    )
    backend.post_processor = processors.Sequence([around, processors.ByteLevel(trim_offsets=False)])
    backend.enable_truncation(4)
    backend.enable_padding(pad_id=padding, pad_token="[PAD]")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **BERT_WORDS)


def test_odd_tokenizers_keep_their_settings(tmp_path, capsys):
    """Holes among the ids, padding and cutting in tokenizer.json, ids in the configuration."""
    tokenizer = odd_tokenizer()
    folder = saved(
        tmp_path / "old", "bert", tokenizer, pad_token_id=9, sep_token_id=16, eos_token_id=[16, 20], bos_token_id=12
    )
    text = write(tmp_path / "text.txt", ["the dog sees the dogs", "", "the cat"])  # longer than it is cut to
    before, after = trim(folder, tmp_path / "new", text)
    said = capsys.readouterr().out  # of the whole text, without padding
    assert "8 pieces, 5 different words" in said and "14 words and 15 rows without a word -> 13 words" in said
    assert sorted(after.get_vocab(), key=after.get_vocab().get) == [
        "the",
        "dog",
        "sees",
        "##s",
        "cat",
        "a",
        "##g",
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "un",
    ]
    config = transformers.AutoConfig.from_pretrained(tmp_path / "new")
    assert (config.pad_token_id, config.sep_token_id, config.eos_token_id) == (7, 10, [10, 12])
    assert config.bos_token_id is None  # a row that no word had
    specs = [json.loads((path / "tokenizer.json").read_text()) for path in (folder, tmp_path / "new")]
    assert specs[1]["truncation"] == specs[0]["truncation"] and specs[0]["truncation"]["max_length"] == 4
    assert specs[1]["padding"] == specs[0]["padding"] | {"pad_id": 7} and specs[0]["padding"]["pad_id"] == 9
    for path, tokenizer in ((folder, before), (tmp_path / "new", after)):
        backend = Tokenizer.from_file(str(path / "tokenizer.json"))
        assert [e.tokens for e in backend.encode_batch(["the dog sees the dogs", "the"])] == [
            ["[CLS]", "the", "dog", "[SEP]"],
            ["[CLS]", "the", "[SEP]", "[PAD]"],
        ]
        backend.no_truncation()
        backend.no_padding()
        assert [tokenizer.convert_ids_to_tokens(i) for i in backend.encode("the dogs", "cat").ids] == [
            "[CLS]",
            "the",
            "dog",
            "##s",
            "[SEP]",
            "cat",
            "[SEP]",
        ]
    check_same(before, after, folder, tmp_path / "new", ["the dog sees the dogs", "the cat"])


def test_words_added_beside_the_algorithms_own_come_last(tmp_path):
    tokenizer = tokenizer_of("deberta-v2")
    tokenizer.add_tokens(["<user>", AddedToken("[EXTRA]", special=True)])
    folder = saved(tmp_path / "old", "deberta-v2", tokenizer)
    lines = [line + " <user> x" for line in lines_of("en")]
    before, after = trim(folder, tmp_path / "new", write(tmp_path / "en.txt", lines))
    assert after.convert_ids_to_tokens([len(after) - 2, len(after) - 1]) == ["<user>", "[EXTRA]"]
    check_same(before, after, folder, tmp_path / "new", lines[::9])


@pytest.mark.parametrize("name", ["roberta", "mpnet"])
def test_positions_are_counted_from_the_same_id_on(name, tmp_path):
    """RoBERTa counts them from the id of padding on, so ids below it may not move up."""
    words = {"zzz": 0, "<pad>": 1, "qqq": 2, "<s>": 3, "</s>": 4, "<unk>": 5, "<mask>": 6, "the": 7, "dog": 8, "cat": 9}
    backend = Tokenizer(token_models.WordPiece(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.RobertaProcessing(("</s>", 4), ("<s>", 3))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **ROBERTA_WORDS)
    folder = saved(tmp_path / "old", name, tokenizer, pad_token_id=1, bos_token_id=3, eos_token_id=4)
    before, after = trim(folder, tmp_path / "new", write(tmp_path / "text.txt", ["the dog"]))
    assert after.pad_token_id == 1 and "zzz" in after.get_vocab() and not {"qqq", "cat"} & {*after.get_vocab()}
    check_same(before, after, folder, tmp_path / "new", ["the dog", "the the dog dog"])


def logits_of(both, tokenizers, text):
    """The logits of two models for a text, each with its tokenizer."""
    return [
        model(**tokenizer(text, return_tensors="pt")).logits for model, tokenizer in zip(both, tokenizers, strict=True)
    ]


@torch.no_grad()
def test_heads_precision_and_what_the_files_lack_stay(tmp_path):
    tokenizer, text = tokenizer_of("bert"), write(tmp_path / "en.txt", lines_of("en"))
    untied = saved(tmp_path / "untied", "bert", tokenizer, tie_word_embeddings=False)
    check_same(*trim(untied, tmp_path / "untied-new", text), untied, tmp_path / "untied-new", lines_of("en")[:5])
    task = saved(tmp_path / "task", "bert", tokenizer, "classification", id2label={0: "no", 1: "yes", 2: "maybe"})
    before, after = trim(task, tmp_path / "task-new", text)
    both = [AutoModelForSequenceClassification.from_pretrained(path).eval() for path in (task, tmp_path / "task-new")]
    assert torch.equal(*logits_of(both, (before, after), lines_of("en")[1]))
    assert both[1].config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    half = tiny("bert", "mlm", vocab_size=len(tokenizer)).base_model.half()
    half.save_pretrained(tmp_path / "half")
    state = load_file(tmp_path / "half" / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "pooler" not in k}, tmp_path / "half" / "model.safetensors", {"format": "pt"}
    )
    tokenizer.save_pretrained(tmp_path / "half")
    trim(tmp_path / "half", tmp_path / "half-new", text)
    found = load_file(tmp_path / "half-new" / "model.safetensors")
    assert {v.dtype for v in found.values()} == {torch.float16}
    assert found.keys() == {k for k in state if "pooler" not in k}


@torch.no_grad()
def test_a_sub_network_of_fewer_heads_can_be_trimmed(tmp_path):
    model, tokenizer = tiny("bert", vocab_size=600), tokenizer_of("bert")
    narrow = dynabert.extract(model, dynabert.sizes(model.config, [0.5, 1.0], [1.0])[0])
    narrow.save_pretrained(tmp_path / "old")
    tokenizer.save_pretrained(tmp_path / "old")
    before, after = trim(tmp_path / "old", tmp_path / "new", write(tmp_path / "en.txt", lines_of("en")))
    loaded = [models.load_model(tmp_path / name, AutoModelForSequenceClassification)[0] for name in ("old", "new")]
    assert loaded[1].config.kept_heads == 1
    assert torch.equal(*logits_of(loaded, (before, after), lines_of("en")[1]))


# --- the text ------------------------------------------------------------------------------------------------------


def test_what_changed_in_a_held_out_text_is_counted_place_by_place(tmp_path, capsys):
    """Beside a slow count by the offsets of both tokenizers; bytes of one character share theirs."""
    for name in ("bert", "roberta"):
        folder, seen, other = saved(tmp_path / name, name, tokenizer_of(name)), lines_of("ko"), lines_of("ko", seed=1)
        other = [f"{line} {lines_of('zh')[i]} \U00010000" for i, line in enumerate(other)]  # F0 90 80 80
        files = [write(tmp_path / "seen.txt", seen), "--held_out", write(tmp_path / "other.txt", other)]
        tokenizers = trim(folder, tmp_path / f"{name}-new", *files, tmp_path / "seen.txt", "--min_count", "2")
        said = capsys.readouterr().out
        for path, lines in ((tmp_path / "other.txt", other), (tmp_path / "seen.txt", seen)):
            places = []
            for tokenizer in tokenizers:
                found = [tokenizer(line, add_special_tokens=False).encodings[0] for line in lines]
                places.append(
                    [(i, *place) for i, one in enumerate(found) for place in zip(one.offsets, one.tokens, strict=True)]
                )
            same, left = 0, list(places[1])
            for place in places[0]:
                if place in left:
                    left.remove(place)
                    same += 1
            assert 0 < same < len(places[0]) + (lines == seen)
            assert f"{path}: of {len(places[0])} pieces {1 - same / len(places[0]):.2%} are others now" in said.replace(
                ",", ""
            )


def test_text_is_read_as_it_is_needed_and_counted_over_all_sources(tmp_path):
    read = []

    def endless():
        for number in range(10**9):
            read.append(number)
            yield {"text": "the dog" * (5000 if number > 2500 else 1)}

    batches = trim_vocabulary.batches(endless())
    assert [len(next(batches)) for _ in range(2)] == [1000, 1000] and len(read) == 2000
    assert [len(next(batches)) for _ in range(2)][1] < 40 and len(read) < 2600  # long lines, few of them
    (tmp_path / "texts").mkdir()
    for i in range(3):
        rows = ["the dog", "", "dogs the"] * 700
        write(tmp_path / "texts" / f"{i}.txt", rows)
        write(tmp_path / f"{i}.jsonl", [json.dumps({"words": row, "a cat": 1}) for row in rows])
    tokenizer, spec = odd_tokenizer(), json.loads(odd_tokenizer().backend_tokenizer.to_str())
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    for names in (("texts", "texts/[01].txt"), ("*.jsonl", "[01].jsonl")):
        sources = {name: trim_vocabulary.source_of(str(tmp_path / name), "words") for name in names}
        sources["of the hub"] = Dataset.from_dict({"text": ["a dog", None, "a"]})
        counts = trim_vocabulary.count_words(backend, spec, sources, "model")
        assert {word: n for word, n in counts.items() if n} == {"the": 7000, "dog": 7001, "##s": 3500, "a": 2}


def test_the_trimmed_model_is_teacher_and_source_of_students(world, finetune, tmp_path, capsys):
    trim(world / "bert", tmp_path / "few", world / "text" / "train.txt", "--min_count", "3")
    AcceleratorState._reset_state(reset_partial_state=True)
    distill_pretrain.main(
        (
            f"--teacher {tmp_path}/few --student_layers 2 --corpus {world}/text/train.txt "
            f"--seq_length 16 --max_steps 2 --output_dir {tmp_path}/student"
        ).split()
    )
    finetune("--student", tmp_path / "student", "--max_steps", "2", "--output_dir", tmp_path / "cola")
    finetune(
        *(
            f"--teacher {tmp_path}/cola --student_layers 1 --terms kd --max_steps 2 --output_dir {tmp_path}/small"
        ).split()
    )
    sizes = {AutoModel.from_pretrained(tmp_path / name).config.vocab_size for name in ("few", "student", "small")}
    assert len(sizes) == 1 and sizes != {AutoTokenizer.from_pretrained(world / "bert").vocab_size}


# --- mistakes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """A folder with models and texts, good and bad ones."""
    folder = tmp_path_factory.mktemp("mistakes")
    english = make_tokenizer("WordPiece", BERT_WORDS, lines_of("en", 150), 300)
    saved(folder / "model", "bert", english)
    for name, text in (("en", "\n".join(lines_of("en"))), ("empty", ""), ("blank", "\n  \n\n"), ("latin", "\xe9t\xe9")):
        (folder / f"{name}.txt").write_text(text, encoding="latin-1")
    write(folder / "ko.txt", [line + ". 1, 2 abc" for line in lines_of("ko") if line.count(" ") > 2])
    shutil.copytree(folder / "model", folder / "small")
    tiny("bert", "mlm", vocab_size=len(english) - 1).save_pretrained(folder / "small")
    shutil.copytree(folder / "model", folder / "nameless")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "nameless" / "config.json").write_text(json.dumps(config | {"architectures": None}))
    transformers.RobertaConfig(**SMALL).save_pretrained(folder / "slow")
    (folder / "slow" / "vocab.txt").write_text("the 9\ndog@@ 8\n")
    (folder / "slow" / "bpe.codes").write_text("t h 9\nth e</w> 8\n")
    (folder / "slow" / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    level = Tokenizer(
        token_models.WordLevel({word: i for i, word in enumerate([*BERT_WORDS.values(), "the"])}, "[UNK]")
    )
    level.post_processor = english.backend_tokenizer.post_processor
    saved(folder / "level", "bert", PreTrainedTokenizerFast(tokenizer_object=level, **BERT_WORDS))
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    return folder


SMALL = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
    "options, said",
    [
        (["--corpus", "ko.txt"], "--corpus '.*ko.txt': 7\\d% of its words are unknown to the tokenizer of .*model"),
        (["--corpus", "en.txt", "ko.txt"], "--corpus '.*ko.txt': 7"),
        (["--corpus", "empty.txt"], "empty.txt: the file is empty"),
        (["--corpus", "blank.txt"], "blank.txt: holds no text"),
        (["--corpus", "latin.txt"], "latin.txt, line 1: not UTF-8"),
        (["--corpus", "none.txt"], "corpus '.*none.txt': no such file, folder or glob"),
        (["--corpus", "en.txt", "--held_out", "none.txt"], "corpus '.*none.txt': no such file, folder or glob"),
        (["--corpus", ""], "--corpus '' names nothing"),
        (["--corpus", "en.txt", "--min_count", "0"], "argument --min_count: '0' must be"),
        (["--corpus", "en.txt", "--vocab_size", "9"], "--vocab_size 9 is below the \\d+ special words and characters"),
        (["--corpus", "en.txt", "--output_dir", "full"], "--output_dir .*full is there already: choose a new folder"),
        (["--corpus", "none.txt", "--output_dir", "full"], "--output_dir .*full is there already: choose a new folder"),
        (["--corpus", "en.txt", "--output_dir", "full/mine.txt"], "--output_dir .*mine.txt is there already"),
        (
            ["--corpus", "en.txt", "--output_dir", "full/mine.txt/new"],
            "--output_dir .*new cannot be made, .*mine.txt is",
        ),
        (["--corpus", "en.txt", "--output_dir", ""], "argument --output_dir: '' names no folder"),
        (["--corpus", "en.txt", "--model", "slow"], "--model '.*slow' has no fast tokenizer"),
        (["--corpus", "en.txt", "--model", "level"], "--model '.*level': its tokenizer is WordLevel"),
        (["--corpus", "en.txt", "--model", "small"], "has words up to number \\d+, .* only rows up to \\d+: resize"),
        (["--corpus", "en.txt", "--model", "nameless"], "--model '.*nameless': its config.json names no class"),
        (["--corpus", "en.txt", "--model", "none"], "--model '.*none' is not a folder"),
    ],
)
def test_a_mistake_ends_in_one_line_and_leaves_nothing(options, said, mistakes):
    before = {path: path.stat().st_mtime_ns for path in mistakes.rglob("*")}
    names = {"--model": "model", "--output_dir": "new"}
    words = [word if word.startswith("--") or word.isdigit() or not word else str(mistakes / word) for word in options]
    for name, default in names.items():
        words += [] if name in words else [name, str(mistakes / default)]
    status, stderr = forked(trim_vocabulary, *words)
    assert status == 2 and stderr.count("\n") == 1 and re.search(said, stderr), stderr
    assert {path: path.stat().st_mtime_ns for path in mistakes.rglob("*")} == before


def test_what_fails_while_it_is_written_leaves_nothing_and_an_empty_folder_is_filled(mistakes, tmp_path, monkeypatch):
    class Broken(RuntimeError):
        pass

    def fail(*args, **options):
        raise Broken

    (tmp_path / "new").mkdir()
    monkeypatch.setattr(trim_vocabulary.card, "base_metadata", fail)
    with pytest.raises(Broken):
        trim(mistakes / "model", tmp_path / "new", mistakes / "en.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    _, after = trim(mistakes / "model", "new", mistakes / "en.txt")
    assert len(after) < 300 and [path.name for path in tmp_path.iterdir()] == ["new"]
    assert trim(mistakes / "model", tmp_path / "a" / "b", mistakes / "en.txt")[1].get_vocab() == after.get_vocab()


def test_a_tokenizer_class_with_rules_of_its_own_is_refused_if_it_makes_another_one(mistakes, tmp_path, monkeypatch):
    """Its check is of what is read, with scores as they are read: the last digit may differ."""
    spec = json.loads((mistakes / "model" / "tokenizer.json").read_text())
    assert trim_vocabulary.same_tokenizer(spec, json.loads(json.dumps(spec)))
    assert not trim_vocabulary.same_tokenizer(spec, spec | {"normalizer": {"type": "NFC"}})
    one, other, third = ({"model": {"vocab": [["a", score], ["b", -2.0]]}} for score in (-0.1, -0.1 - 1e-16, -0.1001))
    assert trim_vocabulary.same_tokenizer(one, other) and not trim_vocabulary.same_tokenizer(one, third)
    read = trim_vocabulary.models.load_tokenizer

    def other_rules(name, *what):
        tokenizer = read(name, *what)
        if str(name).endswith(".tmp"):
            tokenizer.add_tokens(["more"])
        return tokenizer

    monkeypatch.setattr(trim_vocabulary.models, "load_tokenizer", other_rules)
    with pytest.raises(ValueError, match=r"cannot be trimmed: its \w+ changes the tokenizer"):
        trim(mistakes / "model", tmp_path / "new", mistakes / "en.txt")
    assert not list(tmp_path.iterdir())


# --- frozen word embeddings ----------------------------------------------------------------------------------------


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_frozen_embeddings_stay_and_all_else_is_trained(finetune, teacher, tmp_path, cut_at, monkeypatch):
    options = (
        f"--teacher {teacher} --student_layers 2 --terms kd --max_steps 4 --save_steps 2 --keep_optimizer --save last"
    ).split()
    finetune(*options, "--output_dir", tmp_path / "free")
    finetune(*options, "--freeze_embeddings", "--output_dir", tmp_path / "frozen")
    start, free, frozen = weights(teacher), weights(tmp_path / "free"), weights(tmp_path / "frozen")
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(frozen[name], start[name]) and not torch.equal(free[name], start[name])
    assert {k: v.shape for k, v in frozen.items()} == {k: v.shape for k, v in free.items()}
    for key in ("bert.embeddings.position_embeddings.weight", "bert.encoder.layer.0.output.dense.weight"):
        assert not torch.equal(frozen[key], start[key])
    configs = [(tmp_path / run / "config.json").read_text() for run in ("free", "frozen")]
    assert configs[0] == configs[1]
    held = [
        torch.load(tmp_path / run / "checkpoints" / "step-00000004" / "optimizer.bin")["state"]
        for run in ("free", "frozen")
    ]
    shapes = [[tuple(one["exp_avg"].shape) for one in state.values()] for state in held]
    assert sorted(shapes[0]) == sorted([*shapes[1], tuple(start[name].shape)])
    cut_at(4)
    with pytest.raises(KeyboardInterrupt):
        finetune(*options, "--freeze_embeddings", "--output_dir", tmp_path / "cut")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="freeze_embeddings"):
        finetune(*options, "--output_dir", tmp_path / "cut")
    finetune(*options, "--freeze_embeddings", "--output_dir", tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["time"]["sessions"] == 2
    resumed = weights(tmp_path / "cut")
    assert all(torch.equal(resumed[key], frozen[key]) for key in frozen)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_decoder_is_frozen_along_but_for_its_bias(tied, world, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(world / "bert", tie_word_embeddings=tied)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.01)
    model.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(world / "bert").save_pretrained(tmp_path / "teacher")
    AcceleratorState._reset_state(reset_partial_state=True)
    distill_pretrain.main(
        (
            f"--teacher {tmp_path}/teacher --student_layers 2 --corpus {world}/text/train.txt "
            f"--seq_length 16 --max_steps 3 --freeze_embeddings --output_dir {tmp_path}/run "
            "--save last"
        ).split()
    )
    before, after = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("teacher", "run"))
    for part, same in (("get_input_embeddings", True), ("get_output_embeddings", tied)):
        assert torch.equal(getattr(before, part)().weight, getattr(after, part)().weight) == same
    assert not torch.equal(before.get_output_embeddings().bias, after.get_output_embeddings().bias)


@pytest.mark.parametrize("soft", [True, False])
def test_no_gradient_of_a_frozen_decoder_is_made(soft, monkeypatch):
    """The others are the same; nothing as large as the vocabulary times the width is taken for it."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((7, 5), (90, 5), (90,)))
    labels, teacher = torch.randint(90, (7,), generator=generator), mlm_head.Head(inputs + 1, weight * 2, bias)
    made, add = [], mlm_head._add_product
    monkeypatch.setattr(mlm_head, "_add_product", lambda *words: made.append(1) or add(*words))
    grads = []
    for trained in (True, False):
        made.clear()
        leaves = [tensor.clone().requires_grad_() for tensor in (inputs, weight, bias)]
        leaves[1].requires_grad_(trained)
        head = mlm_head.Head(*leaves)
        value = mlm_head.soft_head_logits(head, teacher) if soft else mlm_head.head_cross_entropy(head, labels)
        value.backward()
        assert bool(made) == trained
        grads.append([leaf.grad for leaf in leaves])
    assert grads[1][1] is None and grads[0][1].abs().sum() > 0
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][2], grads[1][2])


def test_random_embeddings_are_not_frozen(finetune, teacher, tmp_path):
    for shape in (("--student_hidden", "32", "--student_intermediate", "32"), ("--student_init", "random")):
        with pytest.raises(ValueError, match="--freeze_embeddings would leave random word embeddings"):
            finetune(
                *f"--teacher {teacher} --student_layers 1".split(),
                *shape,
                *f"--freeze_embeddings --output_dir {tmp_path}/new".split(),
            )
    assert not (tmp_path / "new").exists()
