"""Text in several languages: shares of an epoch, whole texts, losses by language, sentence encoders that stay such."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

import distill_pretrain
import trim_vocabulary
from engine import checks
from tasks import plain_text, similarity


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
