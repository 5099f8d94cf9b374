"""Tokenizers of every make: whose characters and words their pieces are, and vocabularies as people have made them."""

import argparse
import itertools
import json
import random
import unicodedata

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from datasets import Dataset
from tokenizers import Regex, Tokenizer, processors, trainers
from tokenizers import models as token_models
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import distill_pretrain
import models
from tasks import plain_text, squad, tagging

WORDS = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
LINES = [
    "the quick brown fox (and a cat), said Dr. O'Neill's friend in New-York for $10,000 I think",
    "naïve cafe\u0301s e\u0323\u0301 ﬁne oﬃce ½ ① ǆ ß ﷺ Ω İs 東京タワー ｶﾞ 北京。 한국어 \u1112\u1161\u11ab",
    "हिन्दी शंख में שָׁלוֹם กำไทย น้ำ 😀😀 👨\u200d👩\u200d👧 x\u00ady a\u200db y\ufe0f",
]
TEMPLATE = processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
)


def learned(model, cut, normalizer=None, processor=TEMPLATE, **options):
    """A small tokenizer of a model, a pre-tokenizer and a normalizer, learned from LINES."""
    kind, trainer = {
        "bpe": (token_models.BPE, trainers.BpeTrainer),
        "word": (token_models.WordPiece, trainers.WordPieceTrainer),
        "unigram": (token_models.Unigram, trainers.UnigramTrainer),
    }[model]
    tokenizer = Tokenizer(kind(**{} if model == "unigram" else {"unk_token": "<unk>"}))
    if cut:
        tokenizer.pre_tokenizer = cut
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(
        LINES * 4, trainer(vocab_size=480, special_tokens=list(WORDS.values()), show_progress=False, **options)
    )
    tokenizer.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **WORDS)


def of_bytes(*cut, prefix=True, trim=True, **options):
    """Byte-level BPE as RoBERTa has it, behind pre-tokenizers of its own as RobBERT has them."""
    cut = pre.Sequence([*cut, pre.ByteLevel(add_prefix_space=prefix)])
    ends = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=trim, add_prefix_space=prefix)
    return learned("bpe", cut, **{"processor": ends, **options}, initial_alphabet=pre.ByteLevel.alphabet())


def of_sentences(cut, **options):
    return learned("unigram", cut, **options, unk_token="<unk>")


SPLIT = pre.WhitespaceSplit(), pre.Punctuation()
MAKES = {
    "bert": lambda: learned("word", pre.BertPreTokenizer(), norm.BertNormalizer()),
    "bert cased": lambda: learned("word", pre.BertPreTokenizer(), norm.BertNormalizer(lowercase=False)),
    "word pieces of NFC": lambda: learned("word", pre.BertPreTokenizer(), norm.NFC()),
    "gpt2": lambda: of_bytes(
        prefix=False, processor=processors.Sequence([processors.ByteLevel(trim_offsets=False), TEMPLATE])
    ),
    "gpt2 trimmed": lambda: of_bytes(
        prefix=False,
        processor=processors.Sequence([processors.ByteLevel(trim_offsets=True, add_prefix_space=False), TEMPLATE]),
    ),
    "roberta": lambda: of_bytes(prefix=False),
    "roberta with prefix": lambda: of_bytes(),
    "roberta with prefix, untrimmed": lambda: of_bytes(trim=False),
    "modernbert": lambda: of_bytes(prefix=False, processor=TEMPLATE, normalizer=norm.NFC()),
    "robbert": lambda: of_bytes(*SPLIT),
    "robbert, untrimmed": lambda: of_bytes(*SPLIT, trim=False),
    "robbert without prefix": lambda: of_bytes(*SPLIT, prefix=False),
    "robbert of regular expressions": lambda: of_bytes(pre.Whitespace()),
    "robbert in a sequence": lambda: of_bytes(
        *SPLIT, processor=processors.Sequence([processors.ByteLevel(trim_offsets=True), TEMPLATE])
    ),
    "robbert of NFKC": lambda: of_bytes(*SPLIT, normalizer=norm.NFKC()),
    "xlm-roberta": lambda: of_sentences(
        pre.Metaspace(), normalizer=norm.Sequence([norm.Nmt(), norm.NFKC(), norm.Replace(Regex(" {2,}"), " ")])
    ),
    "unigram": lambda: of_sentences(pre.Metaspace()),
    "unigram of split words": lambda: of_sentences(pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()])),
    "albert": lambda: of_sentences(
        pre.Metaspace(), normalizer=norm.Sequence([norm.Strip(), norm.NFKD(), norm.StripAccents(), norm.Lowercase()])
    ),
    "llama": lambda: learned("bpe", None, norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")])),
}
ACROSS_BLANKS = {"llama"}  # whose pieces may hold the end of a word and the next
FOR_TEXTS = {"gpt2", "gpt2 trimmed", "roberta", "modernbert", "llama"}  # cut a given word as if no blank were before it


@pytest.fixture(scope="module", params=MAKES)
def make(request):
    return request.param, MAKES[request.param]()


def random_text(draw, count):
    """(words, text): words of LINES, some decomposed, between them a blank or several."""
    words = [draw.choice(" ".join(LINES).split()) for _ in range(count)]
    words = [unicodedata.normalize("NFD", word) if draw.random() < 0.2 else word for word in words]
    return words, "".join(word + draw.choice((" ", " ", " ", "  ", "\u00a0", "\n")) for word in words).strip()


def in_words(text, begin, end):
    """Where the words begin and end in which the characters begin:end stand."""
    blank = [i for i, c in enumerate(text) if c.isspace()]
    return max((i + 1 for i in blank if i < begin), default=0), min((i for i in blank if i >= end), default=len(text))


def begins_letter(text, i):
    """Whether the character i is no combining mark, and no vowel or final consonant of a Korean syllable."""
    inner = "HANGUL JUNGSEONG", "HANGUL JONGSEONG"
    return unicodedata.category(text[i])[0] != "M" and not unicodedata.name(text[i], "").startswith(inner)


@pytest.mark.parametrize("length", [28, 300])
def test_an_answers_tokens_give_its_text(make, tmp_path, length):
    """Answers from any letter to any other: all of them, and of no other word; whole words exactly."""
    name, tokenizer = make
    draw, rows = random.Random(1), []
    for number in range(60):
        _, text = random_text(draw, draw.randint(1, 14))
        letters = [i for i, c in enumerate(text) if c.isprintable() and c != " " and begins_letter(text, i)]
        begin, last = sorted(draw.choices(letters, k=2))
        begin, end = in_words(text, begin, begin + 1) if number % 2 else (begin, last + 1)
        rows.append(
            {"id": str(number), "question": "who ?", "context": text, "texts": [text[begin:end]], "starts": [begin]}
        )
    args = argparse.Namespace(max_seq_length=length, max_query_length=8, doc_stride=12)
    before = tokenizer.backend_tokenizer.to_str()
    cut = squad.windows(Dataset.from_list(rows, features=squad.FEATURES), tokenizer, args, tmp_path)
    assert tokenizer.backend_tokenizer.to_str() == before
    answered = set()
    for window in cut:
        row = rows[window["question"]]
        if not window["start_positions"]:
            continue
        text, (begin,), (answer,) = row["context"], row["starts"], row["texts"]
        first, last = (window["offsets"][window[key]] for key in ("start_positions", "end_positions"))
        found = text[first[0] : last[1]]
        assert first[0] <= begin and begin + len(answer) <= last[1], (answer, found)
        assert found == found.strip() and found
        if name not in ACROSS_BLANKS:
            left, right = in_words(text, begin, begin + len(answer))
            assert left <= first[0] and last[1] <= right, (answer, found)
            if (left, right) == (begin, begin + len(answer)):
                assert found == answer and window["answer"] == squad.EXACT
        answered.add(window["question"])
    assert len(answered) == len(rows) or (length < 100 and len(answered) > len(rows) / 3)


def test_a_words_pieces_are_its_own(make):
    """Those that it has alone, behind a blank where one is before it; whatever blanks are words, or in them."""
    name, tokenizer = make
    draw, same = random.Random(2), 0
    odd = ["\u00a0", "\u3000", "\u2028", "\x85", "\x1f", "\x0b", "\u200d", "10 000", "a\u00a0b", "\u00b4", "\u0301"]
    for _ in range(60):
        words, _ = random_text(draw, draw.randint(1, 14))
        words = [draw.choice(odd) if draw.random() < 0.1 else word for word in words]
        ((*cut,),) = tagging.pieces([words], tokenizer)
        whole = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        assert len(cut) == len(words) and [*itertools.chain(*cut)] == whole
        if name in ACROSS_BLANKS:
            continue
        for i, (word, ids) in enumerate(zip(words, cut, strict=True)):
            if word not in odd and not (i and words[i - 1] in odd) and not (i + 1 < len(words) and words[i + 1] in odd):
                assert ids == tokenizer((" " if i else "") + word, add_special_tokens=False)["input_ids"], word
        given = tokenizer(words, is_split_into_words=True, add_special_tokens=False)
        if given["input_ids"] == whole:
            same += 1
            assert cut == [
                [piece for piece, at in zip(whole, given.word_ids(), strict=True) if at == i] for i in range(len(words))
            ]
    assert same > 40 or name in FOR_TEXTS


# --- vocabularies with duplicates and holes -------------------------------------------------------------------------


def word_pieces(folder, words, **config):
    """Folder of a tiny BERT whose vocab.txt has these words, and no other file of a tokenizer unless config has any."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=len(special) + len(words), **shape)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join([*special, *words]) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


LETTERS = "abcdefghij"
# A word twice makes a hole: the later number is the word's. 300 holes, and 10 words behind them.
TWICE = [*LETTERS * 30, "##x", "##y", *LETTERS, "##y"]


def test_the_largest_id_counts_where_words_stand_twice(tmp_path):
    folder = word_pieces(tmp_path / "m", TWICE)
    tokenizer = models.load_tokenizer(folder)
    assert len(tokenizer) == 17 and len(TWICE) == 313
    (tmp_path / "text.txt").write_text("a bx cyx\nj ixy h\n" * 50)
    blocks = plain_text.load_blocks(str(tmp_path / "text.txt"), tokenizer, 8, 1, tmp_path / "cache")
    assert set(itertools.chain(*blocks["input_ids"])) == {2, 3, 305, 307, 308, 309, 314, 315, 316, 317}
    starts = plain_text.word_starts(tokenizer)
    assert len(starts) == 318 and np.flatnonzero(~starts).tolist() == [305, 317]


def test_only_a_vocabulary_of_word_pieces_has_inner_pieces():
    """RoBERTa's has the words ## and ####, which are no inner pieces."""
    bytes_ = of_bytes()
    bytes_.add_tokens(["##", "####"])
    for tokenizer in (bytes_, learned("word", pre.BertPreTokenizer(), continuing_subword_prefix="")):
        with pytest.raises(ValueError, match="needs a WordPiece vocabulary"):
            plain_text.word_starts(tokenizer)


def test_whole_words_of_such_a_vocabulary_are_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a bx cyx\nj ixy h\n" * 60)
    AcceleratorState._reset_state(reset_partial_state=True)
    distill_pretrain.main(
        [
            "--student",
            word_pieces(tmp_path / "m", TWICE),
            "--corpus",
            "text.txt",
            "--whole_word_mask",
            "--seq_length",
            "8",
            "--max_steps",
            "2",
            "--per_device_train_batch_size",
            "4",
            "--output_dir",
            "run",
        ]
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"
    saved = models.load_tokenizer("run")
    assert saved("a bx")["input_ids"] == models.load_tokenizer("m")("a bx")["input_ids"]


# --- capitals -------------------------------------------------------------------------------------------------------

CASED = ["the", "cat", "The", "CAT", "##S", "##s", "Éire"]


def said_of(folder, capsys):
    """(what is printed while the tokenizer of a folder is loaded, pieces of a text)."""
    capsys.readouterr()
    found = models.load_tokenizer(folder).tokenize("The CATS")
    return capsys.readouterr().err, found


def test_a_cased_vocabulary_that_is_lower_cased_is_named_with_the_remedy(tmp_path, capsys):
    bare = word_pieces(tmp_path / "bare", CASED)
    said, found = said_of(bare, capsys)
    assert found == ["the", "cat", "##s"] and said.count("\n") == 1
    assert f"tokenizer of {bare!r} lower-cases every text, so 4 of its 12 words, such as 'The', never occur" in said
    for config in ({"do_lower_case": False}, {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}):
        (tmp_path / "bare" / "tokenizer_config.json").write_text(json.dumps(config))  # the remedy
        assert said_of(bare, capsys) == ("", ["The", "CAT", "##S"])
    models.load_tokenizer(bare).save_pretrained(bare)
    (tmp_path / "bare" / "tokenizer_config.json").unlink()  # tokenizer.json alone does not keep the capitals
    said, found = said_of(bare, capsys)
    assert ("never occur" in said) == (found != ["The", "CAT", "##S"])


def test_nothing_is_said_of_an_uncased_vocabulary(tmp_path, capsys, world):
    """Special words have capitals everywhere, and a rare letter has got a small one since the vocabulary was made."""
    words = [*(a + b for a in LETTERS for b in "klmnopqrst"), *"stuvwxyz", "\u13a0"]
    assert said_of(word_pieces(tmp_path / "m", words), capsys)[0] == "" == said_of(str(world / "bert"), capsys)[0]
    for name in ("bert", "bert cased", "robbert", "xlm-roberta", "albert"):
        MAKES[name]().save_pretrained(tmp_path / name)
        assert said_of(str(tmp_path / name), capsys)[0] == ""
