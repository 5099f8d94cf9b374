"""Task-agnostic distillation: packing, masks, the chunked head, and distill_pretrain.py through its command line.
Corpora on disk in every form: the same documents and blocks, streamed or not; what is no text is named. Text in
several languages: shares of an epoch, whole texts, losses by language, sentence encoders that stay such.
"""

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import resource
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from accelerate.state import AcceleratorState
from conftest import run_script
from datasets import Dataset, Features, IterableDataset, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

import distill_pretrain
import losses
import trim_vocabulary
from encoders import model_outputs
from engine import checks, command_line, cost, run_folder
from methods import mlm_head
from tasks import documents, plain_text, similarity

CLS, SEP = -1, -2


def pack_slowly(documents, length, cls, sep):
    """What `plain_text.pack` is, block by block."""
    blocks, block = [], [cls]
    for tokens in documents:
        if not tokens:
            continue
        if len(block) > 1:
            if len(block) == length - 2:  # room for a separator or a word, not for both
                block.pop()
            if len(block) > 1 and block[-1] != sep:
                block.append(sep)
        at = 0
        while at < len(tokens):
            take = tokens[at : at + length - 1 - len(block)]
            block += take
            at += len(take)
            if len(block) == length - 1:
                blocks.append([*block, sep])
                block = [cls]
    return blocks


def packed(documents, length, cls=CLS, sep=SEP):
    return plain_text.pack([np.array(tokens, dtype=np.int64) for tokens in documents], length, cls, sep).tolist()


@settings(max_examples=500, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=9), max_size=15), st.integers(3, 9))
def test_packing_equals_the_slow_reference_also_where_a_text_spells_separators(documents, length):
    for cls, sep in ((CLS, SEP), (1, 2)):
        assert packed(documents, length, cls, sep) == pack_slowly(documents, length, cls, sep)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(4, 9))
def test_blocks_are_full_and_separators_stand_where_they_should(sizes, length):
    count = iter(range(10**6))
    documents = [[next(count) for _ in range(size)] for size in sizes]
    blocks = packed(documents, length)
    owner = {token: i for i, document in enumerate(documents) for token in document}
    kept = []
    for block in blocks:
        assert len(block) == length and block[0] == CLS and block[-1] == SEP and CLS not in block[1:]
        inner = block[1:-1]
        assert inner[0] != SEP and inner[-1] != SEP
        for a, b in itertools.pairwise(inner):
            if SEP in (a, b):
                assert (a, b) != (SEP, SEP)
            else:
                assert owner[a] == owner[b]  # no two documents side by side without a separator
        kept += [token for token in inner if token != SEP]
    lost = set(owner) - set(kept)
    last = max(kept, default=-1)
    assert kept == sorted(kept)
    # Lost: what comes after the last block, and last tokens of documents.
    assert all(token > last or token == documents[owner[token]][-1] for token in lost)
    assert len([token for token in owner if token > last]) < 2 * length


PIECES = st.one_of(
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x0b", b" ", "\u00e9".encode()]
    ),
    st.binary(max_size=3),
    st.sampled_from([b"the dog sleeps .", b"a"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=8))
def test_a_damaged_text_is_refused_by_name_or_read_whole(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("text", numbered=True) / "a.txt"
    path.write_bytes(b"".join(pieces))
    try:
        rows = plain_text.load_texts(str(path))["text"][:]
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        with contextlib.suppress(UnicodeDecodeError):  # refused for its bytes, or for holding nothing that can be read
            text = b"".join(pieces).decode("utf-8-sig")
            assert "\0" in text or not text.strip("\ufeff").strip()
    else:
        text = b"".join(pieces).decode()
        lines = text.removeprefix("\ufeff").replace("\r", "\n").split("\n")  # blank ones say nothing
        assert [row for row in rows if row] == [line for line in lines if line]


@pytest.fixture
def blocks_of(world, tmp_path):
    """The blocks of a text file, cached in tmp_path/cache."""
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")

    def load(path):
        return plain_text.load_blocks(str(path), tokenizer, 8, cache_dir=tmp_path / "cache")["input_ids"][:]

    return load


def test_the_cache_belongs_to_the_text_and_not_to_its_name_or_time(blocks_of, tmp_path):
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("the dog sleeps .\n" * 20)
    before = blocks_of(a)
    b.write_bytes(a.read_bytes())
    assert blocks_of(b) == before and len(list((tmp_path / "cache").iterdir())) == 1
    time = a.stat().st_mtime_ns
    a.write_text("the cat sleeps .\n" * 20)
    os.utime(a, ns=(time, time))
    after = blocks_of(a)
    assert after != before and len(after) == len(before) and len(list((tmp_path / "cache").iterdir())) == 2
    assert blocks_of(b) == before


def test_a_damaged_text_cache_is_refused_and_a_killed_build_is_not_used(blocks_of, tmp_path):
    (tmp_path / "a.txt").write_text("the dog sleeps .\n" * 20)
    blocks = blocks_of(tmp_path / "a.txt")
    (cache,) = (tmp_path / "cache").iterdir()
    arrow = next(cache.glob("*.arrow"))
    kept = arrow.read_bytes()
    for damaged in (bytes(len(kept)), kept[:-1], kept[:200] + b"\1" + kept[201:], None):
        arrow.write_bytes(damaged) if damaged else arrow.unlink()
        with pytest.raises(ValueError, match=rf"{cache} is damaged \(.*{arrow.name}.*\): delete this folder, then run"):
            blocks_of(tmp_path / "a.txt")
    killed = cache.rename(cache.with_name(f".tmp-{cache.name}"))
    (killed / arrow.name).write_bytes(bytes(len(kept)))
    (killed / "text").mkdir()
    assert blocks_of(tmp_path / "a.txt") == blocks
    assert {p.name for p in (tmp_path / "cache").rglob("*")} == {
        cache.name,
        arrow.name,
        "blocks.json",
        "checksums.json",
    }


def test_a_full_disk_is_one_line_and_leaves_no_cache(blocks_of, tmp_path):
    """Files that cannot grow are to writers what a full disk is."""
    (tmp_path / "a.txt").write_text("the dog sleeps . " * 100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(
            run_folder.TrainingError, match=r"text-\w+ cannot be written \(File too large\): make room, then"
        ):
            blocks_of(tmp_path / "a.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "cache").iterdir())


def test_blocks_do_not_depend_on_the_number_of_processes(world, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")
    monkeypatch.setattr(plain_text, "DOCUMENTS", 7)
    load = lambda n: plain_text.load_blocks(str(world / "text" / "train.txt"), tokenizer, 16, n, tmp_path / str(n))  # noqa: E731
    one, three = load(1), load(3)
    assert one["input_ids"][:] == three["input_ids"][:] and len(list(tmp_path.glob("3/*/*.arrow"))) == 3
    assert one.features["input_ids"].feature.dtype == ("uint8" if len(tokenizer) <= 256 else "uint16")
    texts = (world / "text" / "train.txt").read_text().splitlines()
    slow = []
    for at in range(0, len(texts), 7):
        ids = tokenizer(texts[at : at + 7], add_special_tokens=False)["input_ids"]
        slow += pack_slowly(ids, 16, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert one["input_ids"][:] == slow
    wanted = [len(one) - 1, 0, 5, 5]
    assert plain_text.Rows(one)[wanted].tolist() == plain_text.Rows(three)[wanted].tolist() == one[wanted]["input_ids"]
    part = three.select(range(4, len(three) - 1))
    assert plain_text.Rows(part)[[0, len(part) - 1]].tolist() == [slow[4], slow[len(three) - 2]]


@pytest.mark.parametrize(
    "size, kind",
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32"), (119547, "uint32")],
)
def test_ids_take_the_narrowest_integer_that_holds_the_vocabulary(size, kind):
    assert plain_text.id_type(size) == kind and np.array([size - 1]).astype(kind)[0] == size - 1


class TestStream:
    @pytest.fixture
    def stream(self, world, tmp_path, monkeypatch):
        """Make a Stream of 8 words a block, of `files` files or one, whose pools are small."""
        monkeypatch.setattr(plain_text, "DOCUMENTS", 3)
        tokenizer = AutoTokenizer.from_pretrained(world / "bert")
        lines = (world / "text" / "train.txt").read_text().splitlines(keepends=True)[:50]

        def make(share=(0, 1), position=None, files=1, seed=1):
            for i in range(files):
                (tmp_path / f"{i}.txt").write_text("".join(lines[i::files]))
            texts = plain_text.load_texts(str(tmp_path), streaming=True)
            return plain_text.Stream(texts, plain_text.cutter(tokenizer, 8), seed, share, position, pool=20)

        return make

    def one_pass(self, stream):
        """The blocks of one pass over the share."""
        blocks = []
        while len(blocks) < 10_000:
            block = stream.take(1)[0].tolist()
            if blocks and stream.position["batch"] == 0 and stream.position["at"] == 1:
                return blocks  # the first block of the next pass
            blocks.append(block)
        raise AssertionError("no end")

    @pytest.mark.parametrize("files", [1, 4], ids=["one file", "a file for each"])
    def test_each_block_comes_from_exactly_one_share(self, stream, files):
        shares = [self.one_pass(stream((i, 4), files=files)) for i in range(4)]
        assert all(shares)
        if files == 1:
            assert sorted(itertools.chain(*shares)) == sorted(self.one_pass(stream()))
        owners = {}
        for i, share in enumerate(shares):
            for block in share:
                owners.setdefault(tuple(block), set()).add(i)
        assert sum(len(of) == 1 for of in owners.values()) > 0.9 * len(owners)  # a sentence may stand there twice

    @pytest.mark.parametrize("files, share", [(1, (0, 1)), (1, (2, 3)), (4, (1, 2)), (3, (1, 2))])
    def test_it_goes_on_where_it_was_without_reading_what_came_before(self, stream, files, share):
        whole, positions, blocks = stream(share, files=files), [], []
        for _ in range(60):
            blocks.append(whole.take(3))
            positions.append(json.loads(json.dumps(whole.position)))
        assert positions[-1]["pool"] > 3
        for at in range(0, 50, 3):
            again = stream(share, positions[at], files)
            for expected in blocks[at + 1 :][:10]:
                assert np.array_equal(again.take(3), expected)

    def test_only_the_pool_is_tokenised_again(self, stream):
        whole = stream()
        whole.take(61)
        calls, again = [], stream(position=whole.position)
        cut, again.cut = again.cut, lambda texts: (calls.append(1), cut(texts))[1]
        assert whole.position["pool"] >= 2 and np.array_equal(again.take(1), whole.take(1)) and not calls

    def test_pools_are_shuffled_by_the_seed_and_passes_differ(self, stream):
        first, other = self.one_pass(stream()), self.one_pass(stream(seed=2))
        again = stream()
        again.take(len(first))
        second = again.take(len(first)).tolist()
        assert sorted(first) == sorted(other) == sorted(second) and first != other and first != second


class TestMasks:
    ids = np.tile(np.arange(10, 74), (200, 1))
    special = np.zeros(100, dtype=bool)
    special[[0, 1, 2, 20]] = True

    def draw(self, ids=None, seeds=None, **options):
        ids = self.ids if ids is None else ids
        seeds = plain_text.row_seeds(1, 0, range(len(ids))) if seeds is None else seeds
        return plain_text.draw_masks(ids, seeds, 0.15, 1, self.special, 100, **options)

    def test_shares_follow_the_rule(self):
        masked, positions, labels = self.draw()
        ids = torch.from_numpy(self.ids)
        n = ids.numel()
        assert abs(len(positions) / n - 0.15 * 63 / 64) < 0.01
        assert torch.equal(labels, ids.flatten()[positions]) and not self.special[labels].any()
        shown = masked.flatten()[positions]
        assert abs((shown == 1).float().mean() - 0.8) < 0.03
        assert abs((shown == labels).float().mean() - 0.1) < 0.03
        untouched = torch.ones(n, dtype=torch.bool)
        untouched[positions] = False
        assert torch.equal(masked.flatten()[untouched], ids.flatten()[untouched])

    def test_masks_of_a_row_do_not_depend_on_its_batch_but_on_its_seed(self):
        whole, _, _ = self.draw()
        alone, _, _ = self.draw(self.ids[3:5], plain_text.row_seeds(1, 0, [3, 4]))
        other, _, _ = self.draw(self.ids[3:5], plain_text.row_seeds(1, 0, [33, 44]))
        assert torch.equal(whole[3:5], alone) and not torch.equal(whole[3:5], other)

    def picks(self, seed, epoch, blocks, length=64):
        """Bool [N, length]: what is masked in these blocks, where everything may be."""
        ids = np.full((len(blocks), length), 50)
        _, positions, _ = self.draw(ids, plain_text.row_seeds(seed, epoch, blocks))
        found = np.zeros(ids.size, dtype=bool)
        found[positions.numpy()] = True
        return found.reshape(ids.shape)

    @pytest.mark.parametrize("other", [(1, 1), (2, 0), (1, 2**63), (0, 1)], ids=str)
    def test_epochs_and_seeds_draw_independently(self, other):
        """Two independent draws agree in 0.15^2 of the places; neighbouring numbers must not be neighbours in masks."""
        n = 4000
        a, b = self.picks(1, 0, range(n)), self.picks(*other, range(n))
        for shift in (0, 1, 7):
            both = (a[shift:] & b[: n - shift]).mean()
            assert abs(both - 0.0225) < 5 * (0.0225 * 0.9775 / a.size) ** 0.5
        assert abs(a.mean() - 0.15) < 5 * (0.1275 / a.size) ** 0.5

    def test_places_of_a_row_and_rows_are_independent_and_every_place_is_as_likely(self):
        a = self.picks(3, 5, range(10**6, 10**6 + 8000))
        error = (0.0225 * 0.9775 / a.size) ** 0.5
        for lag in (1, 2, 3, 8, 32):
            assert abs((a[:, lag:] & a[:, :-lag]).mean() - 0.0225) < 6 * error
            assert abs((a[lag:] & a[:-lag]).mean() - 0.0225) < 6 * error
        counts = a.sum(0)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
        per_row = np.bincount(a.sum(1), minlength=65)  # binomial, but for rows where one was forced
        expected = scipy.stats.binom.pmf(np.arange(65), 64, 0.15) * len(a)
        keep = expected > 20
        expected = expected[keep] * per_row[keep].sum() / expected[keep].sum()
        assert scipy.stats.chisquare(per_row[keep], expected).pvalue > 1e-4

    def test_random_words_are_spread_over_the_vocabulary(self):
        ids = np.full((4000, 128), 1)
        masked, positions, _ = plain_text.draw_masks(
            ids, plain_text.row_seeds(1, 0, range(4000)), 0.15, 0, np.zeros(50, dtype=bool), 50
        )
        shown = masked.flatten()[positions].numpy()
        counts = np.bincount(shown[shown > 1], minlength=50)[2:]
        assert len(shown[shown > 1]) > 5000 and scipy.stats.chisquare(counts).pvalue > 1e-4

    def test_whole_words_are_masked_together(self):
        starts = np.ones(100, dtype=bool)
        starts[[31, 32, 41]] = False  # words: 30 31 32 and 40 41
        _, positions, labels = self.draw(starts=starts)
        rows = positions // 64
        for word in ((30, 31, 32), (40, 41)):
            picked = [set(rows[labels == piece].tolist()) for piece in word]
            assert picked[0] and all(p == picked[0] for p in picked)

    def test_at_least_one_token_of_a_row_is_masked(self):
        _, positions, _ = self.draw(np.full((50, 3), 30))
        assert set((positions // 3).tolist()) == set(range(50))


class TestHead:
    def heads(self, bias=True):
        g = torch.Generator().manual_seed(1)
        make = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
        student = [make(7, 6), make(30, 6), make(30) if bias else None]
        return student, mlm_head.Head(make(7, 4), make(30, 4), make(30))

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("chunk", [1, 10**6])
    @pytest.mark.parametrize("kind", ["soft", "hard"])
    def test_chunks_equal_the_whole(self, monkeypatch, kind, chunk, bias):
        monkeypatch.setitem(mlm_head.CHUNK, "cpu", chunk)
        student, teacher = self.heads(bias)
        labels = torch.tensor([0, 3, 29, 3, 5, 6, 7])
        grads = []
        for whole in (False, True):
            leaves = [x if x is None else x.clone().requires_grad_() for x in student]
            head = mlm_head.Head(*leaves)
            if kind == "soft" and whole:
                value = losses.soft_logits(F.linear(*leaves), teacher.logits(slice(None)), temperature=2.0)
            elif kind == "soft":
                value = mlm_head.soft_head_logits(head, teacher, temperature=2.0)
            else:
                value = (
                    F.cross_entropy(F.linear(*leaves), labels) if whole else mlm_head.head_cross_entropy(head, labels)
                )
            (3 * value).backward()
            grads.append([value.detach(), *(x.grad for x in leaves if x is not None)])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)

    def test_no_masked_position_gives_zero_with_a_graph(self):
        student, teacher = self.heads()
        leaves = [x.requires_grad_() for x in student]
        empty = mlm_head.Head(leaves[0][:0], *leaves[1:])
        value = mlm_head.soft_head_logits(empty, mlm_head.Head(teacher.inputs[:0], *teacher[1:]))
        value.backward()
        assert value.item() == 0 and leaves[1].grad.abs().sum() == 0

    def test_agreement_counts_rows(self):
        student, teacher = self.heads()
        head = mlm_head.Head(*student)
        assert mlm_head.agreement(head, head).item() == 7
        expected = (F.linear(*student).argmax(-1) == F.linear(*teacher).argmax(-1)).sum()
        assert mlm_head.agreement(head, teacher) == expected


SMALL = {"vocab_size": 40, "max_position_embeddings": 20}
FAMILIES = [
    BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16, **SMALL),
    RobertaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16, **SMALL),
    DistilBertConfig(dim=8, n_heads=2, n_layers=2, hidden_dim=16, **SMALL),
]


@pytest.mark.parametrize("config", FAMILIES, ids=lambda c: c.model_type)
def test_the_head_at_masked_positions_equals_the_models_own_logits(config):
    model = AutoModelForMaskedLM.from_config(config).eval()
    masked = model_outputs.MaskedLM(model)
    inputs = {"input_ids": torch.randint(4, 40, (3, 9)), "attention_mask": torch.ones(3, 9, dtype=torch.long)}
    positions = torch.tensor([1, 8, 20, 26])
    out = masked(inputs, positions)
    got = mlm_head.Head(out["features"], *out["decoder"]).logits(slice(None))
    expected = model(**inputs).logits.flatten(0, 1)[positions]
    torch.testing.assert_close(got, expected)
    assert len(out["hidden_states"]) == 3


@pytest.fixture
def pretrain(world, tmp_path, monkeypatch):
    """Run distill_pretrain.py in this process on the artificial text; later options overrule the defaults here."""
    monkeypatch.chdir(tmp_path)

    def run(*options):
        run_script(
            distill_pretrain,
            [
                *(
                    f"--corpus {world}/text/train.txt --validation_corpus {world}/text/valid.txt "
                    "--seq_length 32 --max_eval_samples 8 --per_device_train_batch_size 4 --max_steps 6 "
                    "--logging_steps 2"
                ).split(),
                *map(str, options),
            ],
        )

    return run


@pytest.fixture
def student_options(world):
    return "--teacher", world / "bert", "--student_layers", "2", "--terms", "ckd"


@pytest.mark.whole
def test_plain_pre_training_then_distillation_then_fine_tuning(pretrain, finetune, world, tmp_path):
    pretrain(
        *(
            f"--student {world}/bert --max_steps 20 --learning_rate 1e-3 --eval_steps 10 "
            f"--output_dir {tmp_path}/teacher"
        ).split()
    )
    record = json.loads((tmp_path / "teacher" / "run.json").read_text())
    losses_seen = [entry["metrics"]["mlm_loss"] for entry in record["history"]]
    assert record["metric"] == "mlm_loss" and losses_seen[-1] < losses_seen[0]
    assert record["name"] == "mlm" and 0 < record["tokens_seen"] <= 20 * 4 * 32
    pretrain(
        *(
            f"--teacher {tmp_path}/teacher --student_layers 2 --hard_weight 0.5 --whole_word_mask "
            f"--output_dir {tmp_path}/student"
        ).split()
    )
    record = json.loads((tmp_path / "student" / "run.json").read_text())
    assert {
        "mlm_loss",
        "perplexity",
        "teacher_agreement",
        "logits",
        "wr_pair",
        "wr_triple",
        "ltr_pair",
        "ltr_triple",
    } == set(record["best"]["metrics"])
    assert record["best"]["loss"] == record["best"]["metrics"]["mlm_loss"]
    assert record["accounting"]["hours_for_one_epoch_of_english_wikipedia"] > 0
    events = EventAccumulator(str(tmp_path / "student")).Reload()
    assert events.Tags()["images"] == ["relations/words", "relations/layers"]
    assert [e.step for e in events.Scalars("eval/loss")] == [0, 6]
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert model.config.num_hidden_layers == 2
    text = AutoTokenizer.from_pretrained(tmp_path / "student")("the dog runs .", return_tensors="pt")
    assert model(**text).logits.shape[-1] == model.config.vocab_size
    finetune("--student", tmp_path / "student", "--max_steps", "1", "--output_dir", tmp_path / "cola")


@pytest.mark.parametrize(
    "way, named",
    [
        ("the same", "train.txt"),
        ("link", "dev.txt"),
        ("copy", "dev.txt"),
        ("inside", "b.txt"),
        ("folders", "c.txt"),
        ("other", None),
        ("of one size", None),
        ("hub", "owner/name:en"),
        ("other hub", None),
    ],
)
def test_a_validation_corpus_that_is_trained_on_is_named(way, named, tmp_path):
    train, dev, text = tmp_path / "train.txt", tmp_path / "dev.txt", "a line\nof text\n"
    train.write_text(text)
    dev.write_text(text if way == "copy" else text.replace("line", "lime") if way == "of one size" else "else\n")
    if way == "link":
        dev.unlink()
        dev.symlink_to(train)
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        for name in "abc":
            same = way in ("inside", "folders") and name == named[0]
            (tmp_path / folder / f"{name}.txt").write_text(name if same else f"{name} of {folder}")
    pairs = {
        "the same": (train, train),
        "inside": (tmp_path / "x", tmp_path / "x" / "b.txt"),
        "folders": (tmp_path / "x", f"{tmp_path}/y/[b-c].txt"),
        "hub": (named, named),
        "other hub": ("owner/name:en", "owner/name:de"),
    }
    found = plain_text.shared_file(*map(str, pairs.get(way, (train, dev))))
    assert (found if way == "hub" or not found else os.path.basename(found)) == named


def test_blocks_are_drawn_from_the_whole_corpus(pretrain, student_options, world, tmp_path, capsys):
    """The same ones in every run, and read as they are; a validation corpus that is trained on is named."""
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")
    seen = []
    for seed in (1, 7):
        args = distill_pretrain.build_parser().parse_args(
            (
                f"--corpus {world}/text/train.txt --validation_corpus {world}/text/train.txt "
                f"--seq_length 8 --student {world}/bert --max_train_samples 20 --max_eval_samples 10 "
                f"--seed {seed}"
            ).split()
        )
        distill_pretrain.check_args(args)
        (blocks,), (held_out,), *_ = (of.values() for of in distill_pretrain.load_everything(args)[1:3])
        seen.append((blocks["input_ids"][:], held_out["input_ids"][:]))
        assert "train.txt of --validation_corpus is a part of --corpus too" in capsys.readouterr().err
    whole = plain_text.load_blocks(*args.corpus, tokenizer, 8)["input_ids"][:]
    assert seen[0] == seen[1] and list(map(len, seen[0])) == [20, 10] and len(whole) > 100
    for found in seen[0]:
        places = [whole.index(block) for block in found]
        assert places == sorted(places) and places[0] < len(whole) / 3 and places[-1] > len(whole) * 2 / 3
    assert plain_text.Rows(blocks)[[3, 0, 19]].tolist() == [seen[0][0][i] for i in (3, 0, 19)]
    pretrain(*student_options, "--max_train_samples", "4", "--output_dir", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["train_examples"] == 4
    assert "warning" not in capsys.readouterr().err


def test_a_teacher_without_head_gives_relations_but_no_logits(pretrain, world, tmp_path, capsys):
    AutoModel.from_pretrained(world / "bert").save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(world / "bert").save_pretrained(tmp_path / "encoder")
    options = ("--teacher", tmp_path / "encoder", "--student_layers", "2", "--output_dir", tmp_path / "run")
    with pytest.raises(ValueError, match=r"no trained language-model head .*leave out logits"):
        pretrain(*options)
    pretrain(*options, "--terms", "ckd", "logits=0")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    older = record | {"options": record["options"] | {"corpus": record["options"]["corpus"][0]}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(older))  # of when there was one text only
    pretrain(*options, "--terms", "ckd", "logits=0")
    assert "complete already" in capsys.readouterr().out
    assert record["metric"] == "relation_loss" and "mlm_loss" not in record["best"]["metrics"]
    weights, metrics = record["options"]["terms"], record["best"]["metrics"]
    assert metrics["relation_loss"] == pytest.approx(sum(w * metrics[name] for name, w in weights.items()))
    for who, folder in (("model", "run"), ("teacher", "encoder")):  # what nothing trains is not counted
        size = cost.describe(AutoModel.from_pretrained(tmp_path / folder), record[who]["seq_length"])
        assert {key: record[who][key] for key in ("layers", "flops_per_sequence")} == {
            key: size[key] for key in ("layers", "flops_per_sequence")
        }


LANGUAGES = ["--corpus", "a={world}/text/train.txt", "b={world}/text/valid.txt", "--per_device_train_batch_size", "8"]


WHOLE = [*LANGUAGES, "--whole_texts", "--terms", "ckd", "logits=0", "sentence_pair=1", "sentence_triple=10"]


@pytest.mark.parametrize("more", [LANGUAGES, WHOLE, ["--streaming"], ["--streaming", "--num_workers", "2"]], ids=len)
def test_a_resumed_run_has_the_same_weights_bit_for_bit(
    pretrain, student_options, tmp_path, monkeypatch, cut_at, more, world
):
    more = [word.format(world=world) for word in more]
    monkeypatch.setattr(plain_text, "DOCUMENTS", 3)
    monkeypatch.setattr(plain_text, "POOL", 10)  # so that a position lies behind the first pools
    options = (*student_options, "--save_steps", "2", "--gradient_accumulation_steps", "2", *more)
    pretrain(*options, "--output_dir", tmp_path / "whole")
    cut_at(6)
    with pytest.raises(KeyboardInterrupt):
        pretrain(*options, "--output_dir", tmp_path / "cut")
    if "--streaming" in more:
        state = json.loads((tmp_path / "cut" / "checkpoints" / "step-00000004" / "state.json").read_text())
        (positions,) = state["positions"]
        assert len(positions) == max(1, len(more) - 1) and all(p["pool"] > 0 for p in positions.values())
        with pytest.raises(ValueError, match=rf"was begun with --num_workers {len(positions)}: a stream goes on with"):
            pretrain(*options, "--num_workers", "5", "--output_dir", tmp_path / "cut")
    pretrain(*options, "--output_dir", tmp_path / "cut")
    name = "checkpoints/step-00000006/model.safetensors"
    a, b = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_stages_with_a_head_that_waits_and_the_last_model_kept(pretrain, world, tmp_path):
    options = ("--teacher", world / "bert", "--student_layers", "2", "--eval_steps", "2", "--learning_rate", "1e-3")
    pretrain(*options, *f"--stages wr_pair 0.5 logits hard=1..0 --save last --output_dir {tmp_path}/run".split())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["metric"] == "mlm_loss" and [e["step"] for e in record["history"]] == [2, 4, 6]
    assert record["best"]["step"] in (4, 6) and all("mlm_loss" in e["metrics"] for e in record["history"])
    assert record["options"]["stages"] == [[0.0, {"wr_pair": 1.0}], [0.5, {"logits": 1.0, "hard": [1.0, 0.0]}]]
    assert "step 6:" in (tmp_path / "run" / "README.md").read_text()
    # A preset's stages are those of fine-tuning; relations alone have their own score.
    pretrain(*options, "--terms", "minilm", "--output_dir", tmp_path / "minilm")
    record = json.loads((tmp_path / "minilm" / "run.json").read_text())
    assert record["metric"] == "relation_loss" and record["options"]["stages"] is None


def test_narrower_students_and_other_terms_train_too(pretrain, world, tmp_path):
    pretrain(
        *(
            f"--teacher {world}/bert --student_layers 2 --student_hidden 64 "
            f"--terms tinybert attention_mse=0 --max_steps 2 --output_dir {tmp_path}/run"
        ).split()
    )
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert not [name for name in kept if "projections" in name]
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "run").config.hidden_size == 64


@pytest.mark.parametrize(
    "options, said",
    [
        (["--corpus", "/nowhere/text"], "no such file, folder or glob"),
        (["--corpus", "*.nothing"], "no file matches"),
        (["--corpus", "{tmp}/empty.txt"], r"empty.txt: the file is empty"),
        (["--corpus", "{tmp}/blank.txt"], r"blank.txt: holds no text"),
        (["--corpus", "{tmp}/latin.txt"], r"latin.txt, line 2: not UTF-8"),
        (["--corpus", "{tmp}/folder"], "no .txt file in this folder"),
        (["--corpus", "{tmp}/short.txt"], "shorter than one block of 32 tokens"),
        (["--corpus", "{tmp}/short.txt", "--streaming"], "short.txt': the text.* is shorter than one block: lower"),
        (["--corpus", ""], "--corpus '' names nothing"),
        (["--validation_corpus", " "], "--validation_corpus ' ' names nothing.* or leave it out"),
        (["--validation_corpus", "{tmp}/unknown.txt"], "100% of the words to evaluate on are unknown"),
        (["--teacher", "{tmp}/maskless"], "maskless.* has no mask_token"),
        (["--teacher", "{tmp}/whole", "--whole_word_mask"], "needs a WordPiece vocabulary"),
        (["--seq_length", "1000"], "exceeds the model's 384 positions"),
        (["--streaming", "--max_steps", "0"], "pass --max_steps"),
        (["--streaming", "--whole_texts"], "--streaming reads full blocks of one language"),
        (["--corpus", "en={tmp}/short.txt", "{tmp}/short.txt"], "short.txt' has no language and others have"),
        (["--corpus", "{tmp}/short.txt", "/nowhere/text"], "no such file, folder or glob"),
        (["--mlm_probability", "0"], "leaves the language-model head nothing to predict"),
        (["--terms", "ckd", "wr_pears=1"], "unknown term"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_before_anything_is_written(pretrain, world, student_options, tmp_path, options, said):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_bytes(b"\n \n")
    (tmp_path / "latin.txt").write_bytes(b"good\nna\xefve\n")
    (tmp_path / "short.txt").write_text("the dog runs .")
    (tmp_path / "folder").mkdir()
    (tmp_path / "unknown.txt").write_text("\u4e00 " * 100)
    shutil.copytree(world / "bert", tmp_path / "maskless")
    maskless = AutoTokenizer.from_pretrained(world / "bert").backend_tokenizer
    PreTrainedTokenizerFast(
        tokenizer_object=maskless, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(tmp_path / "maskless")
    shutil.copytree(world / "bert", tmp_path / "whole")
    whole = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "dog": 5}, "[UNK]"))
    PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    ).save_pretrained(tmp_path / "whole")
    options = [option.format(tmp=tmp_path) for option in options]
    with pytest.raises(ValueError, match=said) as error:
        pretrain(*student_options, "--output_dir", tmp_path / "run", *options)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


# --- documents -------------------------------------------------------------------------------------------------------

TEXTS = [
    "the dog sleeps .",
    'a "quoted" bird , and\ttabs',
    "",
    "the caf\u00e9 sees\u2028 one cat .",
    "2020-01-01",
    "None",
    "{1}",
    "12",
    "nan",
] * 3


def table(column="text"):
    return pd.DataFrame({"id": range(len(TEXTS)), column: TEXTS})


def json_lines(texts=TEXTS, **options):
    rows = ({"id": i, "text": text, "more": [{}, i]} for i, text in enumerate(texts))
    return "".join(json.dumps(row, **options) + "\n" for row in rows)


def parquet(frame):
    out = io.BytesIO()
    frame.to_parquet(out)
    return out.getvalue()


FORMS = {
    "a.txt": "\n".join(TEXTS),
    "no_ending": "\r\n".join(TEXTS),
    "mac.txt": "\r".join(TEXTS),
    "a.jsonl": json_lines(),
    "a.ndjson": json_lines(ensure_ascii=False),
    "a.json": json_lines(),
    "b.txt": json_lines(),
    "list.json": json.dumps([{"text": text} for text in TEXTS], indent=1),
    "a.csv": table().to_csv(index=False),
    "a.parquet": parquet(table()),
    "c.txt": parquet(table()),
    "large.parquet": parquet(table().astype({"text": "string"})),
}
PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts_of(path, tmp_path, **options):
    """The documents of a corpus, read both ways."""
    whole = plain_text.load_texts(str(path), cache_dir=str(tmp_path / "copy"), **options)["text"][:]
    assert whole == [row["text"] for row in plain_text.load_texts(str(path), streaming=True, **options)]
    return whole


@pytest.mark.parametrize("packed", ["", *PACKERS, "nameless"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_holds_the_same_documents(tmp_path, name, packed):
    content = FORMS[name] if isinstance(FORMS[name], bytes) else FORMS[name].encode()
    path = tmp_path / (name + packed.replace("nameless", ""))
    path.write_bytes(PACKERS.get(packed, gzip.compress)(content) if packed else content)
    if packed and content.startswith(b"PAR1"):  # it packs itself
        with pytest.raises(ValueError, match="Parquet"):
            texts_of(path, tmp_path)
    else:
        assert texts_of(path, tmp_path) == TEXTS


def test_blocks_do_not_depend_on_the_form_but_their_cache_does(world, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")
    lines = (world / "text" / "train.txt").read_text().splitlines()[:60]
    one, other = write(tmp_path / "a.txt", "\n".join(lines)), write(tmp_path / "a.jsonl", json_lines(lines))
    load = lambda path, **options: plain_text.load_blocks(path, tokenizer, 8, 1, tmp_path / "cache", **options)  # noqa: E731
    assert load(one)["input_ids"][:] == load(other)["input_ids"][:] and len(list((tmp_path / "cache").iterdir())) == 2
    streams = [
        plain_text.Stream(plain_text.load_texts(path, streaming=True), plain_text.cutter(tokenizer, 8), 1, pool=20)
        for path in (one, other)
    ]
    assert np.array_equal(streams[0].take(50), streams[1].take(50))
    # The same bytes by another name are other documents, and so is another column of the same file.
    text = '"text","body"\n' + "".join(f'"{a}","{b}"\n' for a, b in zip(lines, lines[::-1], strict=True))
    found = [
        load(write(tmp_path / name, text), **options)["input_ids"][:]
        for name, options in (("b.txt", {}), ("b.csv", {}), ("b.csv", {"column": "body"}))
    ]
    assert found[1] == load(one)["input_ids"][:] and found[0] != found[1] != found[2]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8), min_size=1))
def test_tables_keep_any_text(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("texts", numbered=True)
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["text"], *([text.replace("\r", "")] for text in texts)])
    files = {"a.jsonl": json_lines(texts), "a.csv": out.getvalue(), "a.parquet": parquet(pd.DataFrame({"text": texts}))}
    for name, content in files.items():
        expected = [text.replace("\r", "") if name == "a.csv" else text for text in texts]
        read = (row["text"] for row in documents.documents([write(folder / name, content)], "text"))
        if any(text.strip() for text in expected):
            assert list(read) == expected, name
        else:
            with pytest.raises(ValueError, match="holds no text"):
                list(read)


def test_another_column_and_nulls(tmp_path):
    frame = table("body")
    frame.loc[1, "body"] = None
    files = {"a.parquet": parquet(frame), "a.jsonl": frame.to_json(orient="records", lines=True)}
    for name, content in files.items():
        path = write(tmp_path / name, content)
        assert texts_of(path, tmp_path, column="body") == [TEXTS[0], "", *TEXTS[2:]]
        with pytest.raises(ValueError, match=rf"{name}.*: has no column 'text' but id, body; name .* by --text_column"):
            texts_of(path, tmp_path)


def archive(make, content=b"the dog sleeps ."):
    """The bytes of a zip or tar archive with one file."""
    out = io.BytesIO()
    if make == "zip":
        with zipfile.ZipFile(out, "w") as f:
            f.writestr("a.txt", content)
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as f:
            info = tarfile.TarInfo("a.txt")
            info.size = len(content)
            f.addfile(info, io.BytesIO(content))
    return out.getvalue()


LONG = "the dog sleeps .\n" * 9000
HALF = slice(0, -300)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.docx", archive("zip"), "a.docx: is a zip archive or a document of an office program, not UTF-8 text"),
        ("a.tar.gz", archive("tar"), "a.tar.gz: is a tar archive"),
        ("a.txt", b"%PDF-1.7\n\xe2\n", "a.txt: is a PDF"),
        ("a.txt.zst", b"\x28\xb5\x2f\xfd\0\0", "is packed by zstd"),
        ("a.txt", "\ufeffa b".encode("utf-16-le"), "is UTF-16"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "is a pointer of Git LFS"),
        ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "not a Parquet file"),
        ("a.csv", parquet(table())[4:], "not UTF-8|NUL"),
        ("a.bin", bytes(range(256)), "line 1: holds a NUL"),
        ("a.txt", b"ab\ncaf\xe9\n", "a.txt, line 2: not UTF-8"),
        ("a.txt", "<?xml version='1.0'?>\n<a>b</a>", "XML or HTML; extract the text first"),
        ("a.xml.bz2", bz2.compress(b" <mediawiki xml:lang='en'>\n<page>"), "XML or HTML"),
        ("a", "\n\n<!DOCTYPE html>\n<html>", "XML or HTML"),
        ("a.txt.gz", gzip.compress(LONG.encode())[HALF], "a.txt.gz: cannot be read whole .*; download it again"),
        ("a.txt", bz2.compress(LONG.encode())[:-9], "a.txt: cannot be read whole"),
        ("a.txt.xz", lzma.compress(LONG.encode())[:-40], "cannot be read whole"),
        ("a.parquet", parquet(table())[:-50], "a.parquet: not a Parquet file"),
        ("a.jsonl", json_lines() + '{"text": "a', f"a.jsonl, line {len(TEXTS) + 1}: not valid JSON"),
        ("a.jsonl", json_lines() + '["a"]\n', f"line {len(TEXTS) + 1}: not a JSON object with the columns as keys"),
        ("a.jsonl", json_lines() + '\n{"id": 1}\n', f"line {len(TEXTS) + 2}: has no column 'text' but id"),
        ("a.jsonl", json_lines() + '{"text": ["a"]}\n', f"line {len(TEXTS) + 1}: column 'text' holds a list, not text"),
        ("a.jsonl", '{"text": " "}\n{"text": null}\n', "a.jsonl: holds no text"),
        ("a.jsonl", "", "the file is empty"),
        ("a.csv", 'text\n"ab\n', "a.csv, line 2: .* never closed\\); mend the quotes$"),
        ("a.csv", "id,text\n1,a\n2\n", "a.csv, line 3: 1 columns where 2 are due .*; mend the line$"),
        ("a.parquet", parquet(pd.DataFrame({"text": [1, 2]})), "column 'text' holds .*int64.*, not text"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, name, content, said):
    path = write(tmp_path / name, content)
    for streaming in (False, True):
        with pytest.raises(ValueError, match=said) as error:
            plain_text.load_texts(path, streaming=streaming, cache_dir=str(tmp_path / "copy"))
        assert path in str(error.value) and "\n" not in str(error.value)


def test_a_hole_in_a_parquet_file_is_found_before_training(tmp_path):
    content = bytearray(parquet(pd.DataFrame({"text": [f"the dog {i} sleeps ." for i in range(3000)]})))
    content[2000:2400] = bytes(400)
    path = write(tmp_path / "a.parquet", bytes(content))
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"a.parquet: cannot be read whole \(.*\); write it again"):
            plain_text.load_texts(path, streaming=streaming, cache_dir=str(tmp_path / "copy"))


def test_folders_are_read_if_they_hold_one_form(tmp_path):
    a = tmp_path / "a"
    (a / "deep").mkdir(parents=True)
    write(a / "1.jsonl", json_lines(["one dog"]))
    write(a / "deep" / "2.json.gz", gzip.compress(json_lines(["two cats"]).encode()))
    write(a / "README.md", "# Not a document")
    assert texts_of(a, tmp_path) == ["one dog", "two cats"]
    write(a / "3.txt", "three birds")
    with pytest.raises(ValueError, match=r"several forms \(1 .jsonl, 1 .txt, 1 .json\); name those to read by a glob"):
        documents.find_files(str(a))
    assert [str(a / "3.txt")] == documents.find_files(f"{a}/**/*.txt")
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="a folder that `datasets` has saved; write it as Parquet"):
        documents.find_files(str(tmp_path / "saved"))
    for missing in ("no.txt", "owner/no.txt", "owner/no.jsonl.gz"):  # no id of the hub is looked for
        with pytest.raises(ValueError, match="no such file, folder or glob"):
            plain_text.load_texts(missing)


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_the_column_of_a_data_set_of_the_hub(world, tmp_path, monkeypatch, streaming):
    lines = (world / "text" / "train.txt").read_text().splitlines()[:40]
    rows = {"id": list(range(41)), "body": [None, *lines], "tags": [["a"]] * 41}
    whole = Dataset.from_dict(
        rows, features=Features({"id": Value("int64"), "body": Value("string"), "tags": List(Value("string"))})
    )
    nameless = IterableDataset.from_generator(lambda: iter(whole))  # says nothing of its columns
    for data in (whole.to_iterable_dataset(), nameless) if streaming else (whole,):
        monkeypatch.setattr(plain_text, "load_hub", lambda *_, data=data, **__: data)
        texts = plain_text.load_texts("owner/news:small", streaming=streaming, column="body")
        assert [row["text"] for row in texts] == [None, *lines]
        with pytest.raises(ValueError, match="corpus 'owner/news': has no column 'text' but id, body, tags; name"):
            plain_text.load_texts("owner/news", streaming=streaming)
        if data is not nameless:
            with pytest.raises(ValueError, match=r"column 'tags' holds List\(.*\), not text"):
                plain_text.load_texts("owner/news", streaming=streaming, column="tags")
        tokenizer = AutoTokenizer.from_pretrained(world / "bert")
        if streaming:  # a null is a text without words
            assert plain_text.Stream(texts, plain_text.cutter(tokenizer, 8), 1).take(3).shape == (3, 8)
        else:
            assert len(plain_text.load_blocks("owner/news", tokenizer, 8, 1, tmp_path / "cache", column="body"))


def test_a_stream_that_breaks_off_names_the_corpus_and_says_how_to_go_on(world):
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")

    def rows():
        yield from ({"text": "the dog sees the cat ."} for _ in range(3 * plain_text.DOCUMENTS))
        raise ConnectionError("Server Disconnected") from OSError("peer closed connection")

    texts = IterableDataset.from_generator(rows, features=plain_text.FEATURES)
    stream = plain_text.Stream(texts, plain_text.cutter(tokenizer, 8), 1, pool=500, name="--corpus 'owner/news'")
    stream.take(500)
    with pytest.raises(run_folder.TrainingError) as error:
        stream.take(10_000)
    assert str(error.value) == (
        "--corpus 'owner/news': the text cannot be read any further: peer closed connection; once it "
        "can, the same command continues from its last checkpoint"
    )


class Broken(torch.utils.data.Dataset):
    """Rows that cannot be read."""

    def __len__(self):
        return 1

    def __getitem__(self, i):
        try:
            raise OSError("peer closed connection")
        except OSError as error:
            raise self.error("--corpus 'owner/news': broke off\nthe same command goes on") from error


@pytest.mark.parametrize("error, status", [(run_folder.TrainingError, 1), (ValueError, 2)])
def test_an_error_in_a_worker_is_told_without_its_traceback(capsys, error, status):
    Broken.error = error
    loader = torch.utils.data.DataLoader(Broken(), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(SystemExit) as stop:
        command_line.run_script(lambda: list(loader))
    said = capsys.readouterr().err
    assert stop.value.code == status
    assert said.partition(": error: ")[2] == "--corpus 'owner/news': broke off the same command goes on\n"


# --- languages -------------------------------------------------------------------------------------------------------


def test_a_word_may_name_its_language(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x=1.txt").write_text("a file with a sign in its name")
    assert checks.by_language(["x=1.txt", "a/b"]) == {"": ["x=1.txt", "a/b"]}
    assert checks.by_language(["en=a", "ko=b=c", "en=d/*"]) == {"en": ["a", "d/*"], "ko": ["b=c"]}
    for words, said in (
        (["en=a", "b"], "'b' has no language and others have"),
        (["en= "], "'en= ' names nothing"),
        ([""], "'' names nothing"),
    ):
        with pytest.raises(ValueError, match=said):
            checks.by_language(words)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 3))
def test_an_epoch_has_the_smoothed_shares_of_its_languages(numbers, exponent, epoch):
    sizes = {f"l{i}": size for i, size in enumerate(numbers)}
    counts = plain_text.shares(sizes, exponent)
    powers = np.array(numbers, dtype=float) ** exponent
    assert sum(counts.values()) == sum(numbers)
    assert np.abs(np.array(list(counts.values())) - sum(numbers) * powers / powers.sum()).max() <= len(numbers)
    order = plain_text.epoch_order(sizes, counts, 7, epoch).tolist()
    assert len(set(order)) == len(order) == sum(numbers)  # a block that comes again has another number, other masks
    assert order == plain_text.epoch_order(sizes, counts, 7, epoch).tolist()
    seen, start = Counter(number % sum(numbers) for number in order), 0
    for name, size in sizes.items():
        own = [seen[i] for i in range(start, start + size)]
        assert sum(own) == counts[name] and max(own) - min(own) <= 1
        start += size


def test_the_texts_of_one_language_are_in_the_order_that_they_always_had():
    counts = plain_text.shares({"": 50}, 0.3)
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(3 * 1_000_003 + 2))
    assert torch.equal(plain_text.epoch_order({"": 50}, counts, 3, 2), expected)


def test_a_whole_text_is_what_the_tokenizer_makes_of_it(world, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")
    texts = ["the dog sleeps .", "", "a", "the boy " * 20, " ", "this girl greets the man ."]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    options = {"cache_dir": tmp_path / "cache"}
    rows = plain_text.load_blocks(str(tmp_path / "a.txt"), tokenizer, 10, whole=True, **options)
    full = plain_text.load_blocks(str(tmp_path / "a.txt"), tokenizer, 10, **options)
    expected = tokenizer([t for t in texts if t.strip()], truncation=True, max_length=10, padding="max_length")
    assert rows["input_ids"][:] == expected["input_ids"] and full["input_ids"][:] != expected["input_ids"]
    lengths = plain_text.Rows(rows).lengths(tokenizer.pad_token_id)
    assert lengths.tolist() == [sum(row) for row in expected["attention_mask"]]
    args = distill_pretrain.build_parser().parse_args(
        ["--corpus", "x", "--teacher", "t", "--student_layers", "1", "--terms", "sentence_pair=1", "--seq_length", "10"]
    )
    distill_pretrain.check_args(args)
    kept = plain_text.Rows(rows)
    collate = distill_pretrain.make_collate(args, lambda i: (kept[i], None), tokenizer, len(tokenizer))
    batch, alone = collate([0, 1], 0), tokenizer(["the dog sleeps .", "a"], padding=True, return_tensors="pt")
    assert all(torch.equal(batch[name], alone[name]) for name in ("input_ids", "attention_mask"))  # nothing is masked
    assert not len(batch["labels"])


@pytest.mark.parametrize(
    "options, probability, whole",
    [
        (["--terms", "ckd"], 0.15, False),
        (["--terms", "ckd", "logits=0"], 0.15, False),
        (["--terms", "ckd", "logits=0", "--whole_texts"], 0.0, True),
        (["--terms", "ckd", "sentence_pair=1"], 0.15, True),
        (["--terms", "sentence_mse=1", "--mlm_probability", "0.2"], 0.2, True),
    ],
)
def test_what_is_masked_and_packed_follows_from_the_terms(options, probability, whole):
    args = distill_pretrain.build_parser().parse_args(
        ["--corpus", "x", "--teacher", "t", "--student_layers", "1", *options]
    )
    distill_pretrain.check_args(args)
    assert (args.mlm_probability, args.whole_texts) == (probability, whole)


def test_losses_by_language_and_a_student_that_stays_a_sentence_encoder(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line.split(" . ")[0][:60] for line in (world / "text" / "train.txt").read_text().splitlines()]
    for name, part in {"a": lines[:30], "b": lines[30:40], "held": lines[20:]}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(part) + "\n")
    AcceleratorState._reset_state(reset_partial_state=True)
    words = ["--corpus", "one=a.txt", "two=b.txt", "--teacher", str(world / "bert"), "--student_layers", "1"]
    words += ["--student_hidden", "32", "--terms", "wr_pair=1", "sentence_pair=3", "--seq_length", "24"]
    words += ["--validation_corpus", "one=a.txt", "two=held.txt", "--max_eval_samples", "11", "--max_steps", "1"]
    distill_pretrain.main([*words, "--output_dir", "run"])
    assert "one 30 blocks, 27 in an epoch; two 10 blocks, 13 in an epoch" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    found = record["best"]["metrics"]
    assert record["data"]["validation"]["examples"] == 10 and found["relation_loss_one"] != found["relation_loss_two"]
    for name in ("relation_loss", "wr_pair", "sentence_pair"):
        mark = "_" if name == "relation_loss" else "/"
        own = [found[f"{name}{mark}{language}"] for language in ("one", "two")]
        assert found[name] == pytest.approx(sum(own) / 2)
    tags = EventAccumulator(str(tmp_path / "run")).Reload().Tags()["scalars"]
    assert {"eval/relation_loss_two", "eval/sentence_pair/one"} <= set(tags)
    assert 0 < record["tokens_seen"] < 32 * 24  # padding does not count
    assert similarity.pooling_of(tmp_path / "run") == "mean"
    assert json.loads((tmp_path / "run/1_Pooling/config.json").read_text())["word_embedding_dimension"] == 32


def test_what_makes_a_sentence_encoder_goes_along_with_the_students_width(tmp_path):
    assert similarity.modules_of(str(tmp_path)) == {}
    source, target = tmp_path / "source", tmp_path / "target"
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    modules = [
        {"path": (i and f"{i}_{kind}") or "", "type": f"sentence_transformers.{kind}"} for i, kind in enumerate(kinds)
    ]
    files = {
        "modules.json": modules,
        "config_sentence_transformers.json": {"prompts": {"query": "query: "}},
        "1_Pooling/config.json": {"embedding_dimension": 20, "pooling_mode": ["max", "cls"]},
        "2_Dense/config.json": {"in_features": 20, "out_features": 8},
        "2_Dense/model.safetensors": [1.5],
        "README.md": "not this one",
    }
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(json.dumps(content))
    similarity.copy_modules(similarity.modules_of(str(source)), target, 12)
    there = {str(p.relative_to(target)): json.loads(p.read_text()) for p in target.rglob("*") if p.is_file()}
    changed = {"1_Pooling/config.json": {"embedding_dimension": 12, "pooling_mode": ["max", "cls"]}}
    assert there == {name: of for name, of in files.items() if name != "README.md"} | changed


def test_a_trimmed_sentence_encoder_stays_one(world, tmp_path, capsys):
    shutil.copytree(world / "bert", tmp_path / "teacher")
    similarity.save_pooling(tmp_path / "teacher", str(tmp_path), 128, "cls", 64, "the ")
    words = ["--corpus", f"en={world}/text/valid.txt", "--held_out", f"en={world}/text/train.txt"]
    trim_vocabulary.main(["--model", str(tmp_path / "teacher"), *words, "--output_dir", str(tmp_path / "few")])
    assert similarity.pooling_of(tmp_path / "few") == "cls" and "train.txt: of " in capsys.readouterr().out
    for name, path in similarity.modules_of(str(tmp_path / "teacher")).items():
        assert json.loads((tmp_path / "few" / name).read_text()) == json.loads(Path(path).read_text())
