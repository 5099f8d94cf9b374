"""Task-agnostic distillation: packing, masks, the chunked head, and distill_pretrain.py through its command line."""

import contextlib
import itertools
import json
import os
import resource
import shutil

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import run_script
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
from encoders import model_outputs
from engine import cost, run_folder
from methods import mlm_head
from tasks import plain_text

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
