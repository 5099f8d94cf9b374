"""Task-agnostic distillation: packing, masks, the chunked head, and distill_pretrain.py through its command line."""
import contextlib
import itertools
import json
import os
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
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

import corpus
import distill_pretrain
import heads
import losses
import models
import training

CLS, SEP = -1, -2


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(4, 9))
def test_blocks_are_full_and_separators_stand_where_they_should(sizes, length):
    count = iter(range(10**6))
    documents = [[next(count) for _ in range(size)] for size in sizes]
    blocks = corpus.pack(documents, length, CLS, SEP)
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
    st.sampled_from([b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x0b",
                     b" ", "\u00e9".encode()]),
    st.binary(max_size=3), st.sampled_from([b"the dog sleeps .", b"a"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=8))
def test_a_damaged_text_is_refused_by_name_or_read_whole(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("text", numbered=True) / "a.txt"
    path.write_bytes(b"".join(pieces))
    try:
        rows = corpus.load_texts(str(path))["text"][:]
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        with contextlib.suppress(UnicodeDecodeError):  # refused for its bytes, or for holding nothing that can be read
            text = b"".join(pieces).decode("utf-8-sig")
            assert "\0" in text or not text.strip("\ufeff").strip()
    else:
        text = b"".join(pieces).decode()
        assert "".join(rows).strip("\ufeff") == text.replace("\r", "").replace("\n", "").strip("\ufeff")
        lines = text.replace("\r\n", "\n").replace("\r", "\n")
        assert len(rows) == lines.count("\n") + (not lines.endswith("\n"))


@pytest.fixture
def blocks_of(world, tmp_path):
    """The blocks of a text file, cached in tmp_path/cache."""
    tokenizer = AutoTokenizer.from_pretrained(world / "bert")

    def load(path):
        return corpus.load_blocks(str(path), tokenizer, 8, cache_dir=tmp_path / "cache")["input_ids"][:].tolist()

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
    assert {p.name for p in (tmp_path / "cache").rglob("*")} == {cache.name, arrow.name, "checksums.json"}


class TestMasks:
    ids = torch.arange(10, 74).repeat(200, 1)
    special = torch.zeros(100, dtype=torch.bool)
    special[[0, 1, 2, 20]] = True

    def draw(self, ids=None, seeds=None, **options):
        ids = self.ids if ids is None else ids
        return corpus.draw_masks(ids, seeds or range(len(ids)), 0.15, 1, self.special, 100, **options)

    def test_shares_follow_the_rule(self):
        masked, positions, labels = self.draw()
        n = self.ids.numel()
        assert abs(len(positions) / n - 0.15 * 63 / 64) < 0.01
        assert torch.equal(labels, self.ids.flatten()[positions]) and not self.special[labels].any()
        shown = masked.flatten()[positions]
        assert abs((shown == 1).float().mean() - 0.8) < 0.03
        assert abs((shown == labels).float().mean() - 0.1) < 0.03
        untouched = torch.ones(n, dtype=torch.bool)
        untouched[positions] = False
        assert torch.equal(masked.flatten()[untouched], self.ids.flatten()[untouched])

    def test_masks_of_a_row_do_not_depend_on_its_batch_but_on_its_seed(self):
        whole, _, _ = self.draw()
        alone, _, _ = self.draw(self.ids[3:5], [3, 4])
        other, _, _ = self.draw(self.ids[3:5], [33, 44])
        assert torch.equal(whole[3:5], alone) and not torch.equal(whole[3:5], other)

    def test_whole_words_are_masked_together(self):
        starts = torch.ones(100, dtype=torch.bool)
        starts[[31, 32, 41]] = False  # words: 30 31 32 and 40 41
        _, positions, labels = self.draw(starts=starts)
        rows = positions // 64
        for word in ((30, 31, 32), (40, 41)):
            picked = [set(rows[labels == piece].tolist()) for piece in word]
            assert picked[0] and all(p == picked[0] for p in picked)

    def test_at_least_one_token_of_a_row_is_masked(self):
        _, positions, _ = self.draw(torch.full((50, 3), 30), None)
        assert set((positions // 3).tolist()) == set(range(50))


class TestHead:
    def heads(self, bias=True):
        g = torch.Generator().manual_seed(1)
        make = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
        student = [make(7, 6), make(30, 6), make(30) if bias else None]
        return student, heads.Head(make(7, 4), make(30, 4), make(30))

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("chunk", [1, 10**6])
    @pytest.mark.parametrize("kind", ["soft", "hard"])
    def test_chunks_equal_the_whole(self, monkeypatch, kind, chunk, bias):
        monkeypatch.setitem(heads.CHUNK, "cpu", chunk)
        student, teacher = self.heads(bias)
        labels = torch.tensor([0, 3, 29, 3, 5, 6, 7])
        grads = []
        for whole in (False, True):
            leaves = [x if x is None else x.clone().requires_grad_() for x in student]
            head = heads.Head(*leaves)
            if kind == "soft" and whole:
                value = losses.soft_logits(F.linear(*leaves), teacher.logits(slice(None)), temperature=2.0)
            elif kind == "soft":
                value = heads.soft_head_logits(head, teacher, temperature=2.0)
            else:
                value = F.cross_entropy(F.linear(*leaves), labels) if whole else heads.head_cross_entropy(head, labels)
            (3 * value).backward()
            grads.append([value.detach(), *(x.grad for x in leaves if x is not None)])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)

    def test_no_masked_position_gives_zero_with_a_graph(self):
        student, teacher = self.heads()
        leaves = [x.requires_grad_() for x in student]
        empty = heads.Head(leaves[0][:0], *leaves[1:])
        value = heads.soft_head_logits(empty, heads.Head(teacher.inputs[:0], *teacher[1:]))
        value.backward()
        assert value.item() == 0 and leaves[1].grad.abs().sum() == 0

    def test_agreement_counts_rows(self):
        student, teacher = self.heads()
        head = heads.Head(*student)
        assert heads.agreement(head, head).item() == 7
        expected = (F.linear(*student).argmax(-1) == F.linear(*teacher).argmax(-1)).sum()
        assert heads.agreement(head, teacher) == expected


SMALL = {"vocab_size": 40, "max_position_embeddings": 20}
FAMILIES = [
    BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16, **SMALL),
    RobertaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16, **SMALL),
    DistilBertConfig(dim=8, n_heads=2, n_layers=2, hidden_dim=16, **SMALL),
]


@pytest.mark.parametrize("config", FAMILIES, ids=lambda c: c.model_type)
def test_the_head_at_masked_positions_equals_the_models_own_logits(config):
    model = AutoModelForMaskedLM.from_config(config).eval()
    masked = models.MaskedLM(model)
    inputs = {"input_ids": torch.randint(4, 40, (3, 9)), "attention_mask": torch.ones(3, 9, dtype=torch.long)}
    positions = torch.tensor([1, 8, 20, 26])
    out = masked(inputs, positions)
    got = heads.Head(out["features"], *masked.decoder).logits(slice(None))
    expected = model(**inputs).logits.flatten(0, 1)[positions]
    torch.testing.assert_close(got, expected)
    assert len(out["hidden_states"]) == 3


@pytest.fixture
def pretrain(world, tmp_path, monkeypatch):
    """Run distill_pretrain.py in this process on the artificial text; later options overrule the defaults here."""
    monkeypatch.chdir(tmp_path)

    def run(*options):
        AcceleratorState._reset_state(reset_partial_state=True)
        distill_pretrain.main([
            "--corpus", str(world / "text" / "train.txt"), "--validation_corpus", str(world / "text" / "valid.txt"),
            "--seq_length", "32", "--max_eval_samples", "8", "--per_device_train_batch_size", "4", "--max_steps", "6",
            "--logging_steps", "2", *map(str, options),
        ])  # fmt: skip

    return run


@pytest.fixture
def student_options(world):
    return "--teacher", world / "bert", "--student_layers", "2", "--terms", "ckd"


def test_plain_pre_training_then_distillation_then_fine_tuning(pretrain, finetune, world, tmp_path):
    pretrain("--student", world / "bert", "--max_steps", "20", "--learning_rate", "1e-3", "--eval_steps", "10",
             "--output_dir", tmp_path / "teacher")  # fmt: skip
    record = json.loads((tmp_path / "teacher" / "run.json").read_text())
    losses_seen = [entry["metrics"]["mlm_loss"] for entry in record["history"]]
    assert record["metric"] == "mlm_loss" and losses_seen[-1] < losses_seen[0]
    assert record["name"] == "mlm" and 0 < record["tokens_seen"] <= 20 * 4 * 32
    pretrain("--teacher", tmp_path / "teacher", "--student_layers", "2", "--hard_weight", "0.5", "--whole_word_mask",
             "--output_dir", tmp_path / "student")  # fmt: skip
    record = json.loads((tmp_path / "student" / "run.json").read_text())
    assert {"mlm_loss", "perplexity", "teacher_agreement", "logits", "wr_pair", "wr_triple", "ltr_pair", "ltr_triple"} \
        == set(record["best"]["metrics"])  # fmt: skip
    assert record["accounting"]["hours_for_one_epoch_of_english_wikipedia"] > 0
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert model.config.num_hidden_layers == 2
    text = AutoTokenizer.from_pretrained(tmp_path / "student")("the dog runs .", return_tensors="pt")
    assert model(**text).logits.shape[-1] == model.config.vocab_size
    finetune("--student", tmp_path / "student", "--max_steps", "1", "--output_dir", tmp_path / "cola")


def test_a_teacher_without_head_gives_relations_but_no_logits(pretrain, world, tmp_path):
    AutoModel.from_pretrained(world / "bert").save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(world / "bert").save_pretrained(tmp_path / "encoder")
    options = ("--teacher", tmp_path / "encoder", "--student_layers", "2", "--output_dir", tmp_path / "run")
    with pytest.raises(ValueError, match=r"no trained language-model head .*leave out logits"):
        pretrain(*options)
    pretrain(*options, "--terms", "ckd", "logits=0")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["metric"] == "relation_loss" and "mlm_loss" not in record["best"]["metrics"]
    weights, metrics = record["options"]["terms"], record["best"]["metrics"]
    assert metrics["relation_loss"] == pytest.approx(sum(w * metrics[name] for name, w in weights.items()))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_resumed_run_has_the_same_weights_bit_for_bit(pretrain, student_options, tmp_path, monkeypatch, streaming):
    options = (*student_options, "--save_steps", "2", "--gradient_accumulation_steps", "2")
    options += ("--streaming",) * streaming
    pretrain(*options, "--output_dir", tmp_path / "whole")
    step, calls = training.training_step, []


    def cut(*arguments):
        calls.append(1)
        return step(*arguments) if len(calls) < 4 else 1 / 0

    monkeypatch.setattr(training, "training_step", cut)
    with pytest.raises(ZeroDivisionError):
        pretrain(*options, "--output_dir", tmp_path / "cut")
    monkeypatch.setattr(training, "training_step", step)
    pretrain(*options, "--output_dir", tmp_path / "cut")
    name = "checkpoints/step-00000006/model.safetensors"
    a, b = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_narrower_students_and_other_terms_train_too(pretrain, world, tmp_path):
    pretrain("--teacher", world / "bert", "--student_layers", "2", "--student_hidden", "64", "--terms", "tinybert",
             "attention_mse=0", "--max_steps", "2", "--output_dir", tmp_path / "run")  # fmt: skip
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
        (["--corpus", "{tmp}/short.txt", "--streaming"], "shorter than one block of 32 tokens"),
        (["--corpus", ""], "--corpus '' names nothing"),
        (["--validation_corpus", " "], "--validation_corpus ' ' names nothing.* or leave it out"),
        (["--validation_corpus", "{tmp}/unknown.txt"], "hold no token that could be masked"),
        (["--teacher", "{tmp}/maskless"], "maskless.* has no mask_token"),
        (["--seq_length", "1000"], "exceeds the model's 384 positions"),
        (["--streaming", "--max_steps", "0"], "pass --max_steps"),
        (["--streaming", "--num_workers", "2"], "must be 0"),
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
    PreTrainedTokenizerFast(tokenizer_object=maskless, pad_token="[PAD]", cls_token="[CLS]",
                            sep_token="[SEP]").save_pretrained(tmp_path / "maskless")  # fmt: skip
    options = [option.format(tmp=tmp_path) for option in options]
    with pytest.raises(ValueError, match=said) as error:
        pretrain(*student_options, "--output_dir", tmp_path / "run", *options)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
