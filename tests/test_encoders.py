"""Every model type of families.FAMILIES, tiny and random: what the table claims works, and all else is refused. Maps
of layers: of word relations and of layer transforming relations alone, several partners of one layer.
"""

import argparse
import copy
import json
import types
from pathlib import Path

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

import data
import distill_pretrain
import losses
import models
import relations
from encoders import families, label_names, layer_maps, model_outputs, students
from engine import cost, teacher_cache
from tasks import kinds

AUTO = {
    "classification": AutoModelForSequenceClassification,
    "qa": AutoModelForQuestionAnswering,
    "mlm": AutoModelForMaskedLM,
    "token": AutoModelForTokenClassification,
}
BERT_WORDS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_WORDS = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
# model type -> (algorithm of its tokenizer, special words, what its configuration has beside the common shape)
TINY = {
    "bert": ("WordPiece", BERT_WORDS, {}),
    "roberta": ("BPE", ROBERTA_WORDS, {"type_vocab_size": 1}),
    "xlm-roberta": ("Unigram", ROBERTA_WORDS, {"type_vocab_size": 1}),
    "camembert": ("Unigram", ROBERTA_WORDS, {"type_vocab_size": 1}),
    "distilbert": ("WordPiece", BERT_WORDS, {"hidden_dim": 32}),
    "electra": ("WordPiece", BERT_WORDS, {"embedding_size": 8}),
    "deberta-v2": (
        "Unigram",
        BERT_WORDS,
        {
            "relative_attention": True,
            "position_buckets": 4,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
            "conv_kernel_size": 3,
        },
    ),
    "mpnet": ("WordPiece", ROBERTA_WORDS, {}),
    "albert": ("Unigram", BERT_WORDS, {"embedding_size": 8, "num_hidden_groups": 2}),
    "modernbert": ("BPE", BERT_WORDS, {"local_attention": 4, "global_attn_every_n_layers": 2}),
}
PRETRAINED = [name for name, family in families.FAMILIES.items() if family.mlm]
T = 12


def test_every_type_of_the_table_is_tested_and_is_in_the_docs():
    assert list(TINY) == list(families.FAMILIES)
    lines = Path("docs/models.md").read_text(encoding="utf-8").splitlines()
    for name, family in families.FAMILIES.items():
        claims = (True, bool(family.layers), bool(family.qkv), bool(family.mlm))
        row = f"| `{name}` | " + " | ".join("yes" if claim else "no" for claim in claims) + " |"
        assert row in lines, row
    assert sum(line.endswith((" | yes |", " | no |")) for line in lines) == len(TINY)


def make_tokenizer(algorithm, words, lines, size=None):
    """A small tokenizer of the algorithm, learned from the lines, with the special words where BERT puts them."""
    special = list(words.values())
    tokenizer = Tokenizer(
        {
            "WordPiece": token_models.WordPiece(unk_token=words["unk_token"]),
            "BPE": token_models.BPE(),
            "Unigram": token_models.Unigram(),
        }[algorithm]
    )
    space = {
        "WordPiece": pre_tokenizers.BertPreTokenizer,
        "BPE": pre_tokenizers.ByteLevel,
        "Unigram": pre_tokenizers.Metaspace,
    }[algorithm]()
    common = {"special_tokens": special, "show_progress": False}
    trainer = {
        "WordPiece": trainers.WordPieceTrainer(vocab_size=size or 150, **common),
        "BPE": trainers.BpeTrainer(
            vocab_size=size or 300, **common, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
        "Unigram": trainers.UnigramTrainer(vocab_size=size or 100, **common, unk_token=words["unk_token"]),
    }[algorithm]
    tokenizer.pre_tokenizer = space
    if algorithm == "BPE":
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(lines, trainer)
    cls, sep = words["cls_token"], words["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(word, special.index(word)) for word in (cls, sep)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **words)


def tiny_config(name, layers=4, vocab_size=60, **more):
    _, words, own = TINY[name]
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "pad_token_id": list(words).index("pad_token"),
    }
    if name == "modernbert":
        shape |= {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    if name == "distilbert":
        del shape["intermediate_size"]
    return AutoConfig.for_model(name, **{**shape, **own, **more})


def tiny(name, kind="classification", std=0.3, seed=0, **more):
    torch.manual_seed(seed)
    model = AUTO[kind].from_config(tiny_config(name, **more)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=std)
    return model


def padded(model):
    """A batch of three sentences of different length."""
    ids = torch.randint(5, 60, (3, T), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(T)[None] < torch.tensor([[T], [T - 5], [4]])
    ids[~mask] = model.config.pad_token_id
    types = (torch.arange(T)[None] > 2).long() * mask
    return {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": types}


@pytest.mark.parametrize("kind", ["classification", "token"])
@pytest.mark.parametrize("name", families.FAMILIES)
@torch.no_grad()
def test_logits_of_a_head_come_in_the_order_of_the_tasks_labels(name, kind, tmp_path, capsys):
    model = tiny(name, kind, id2label={0: "Neutral", 1: "CONTRADICTS", 2: "entailment"})
    model.save_pretrained(tmp_path)
    names = label_names.of(data.TASKS["mnli"])
    found, _ = models.load_model(str(tmp_path), AUTO[kind], "--student", labels=names)
    batch = model_outputs.model_inputs(model, padded(model))
    assert torch.equal(found(**batch).logits, model(**batch).logits[..., [2, 0, 1]])
    assert found.config.id2label == dict(enumerate(names.names))
    assert "labels Neutral, CONTRADICTS, entailment are taken as neutral, contradiction, ent" in capsys.readouterr().err
    found.save_pretrained(tmp_path / "again")
    again, _ = models.load_model(str(tmp_path / "again"), AUTO[kind], labels=names)
    assert torch.equal(again(**batch).logits, found(**batch).logits)
    assert "are taken as" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["classification", "qa", "mlm"])
@pytest.mark.parametrize("name", families.FAMILIES)
@torch.no_grad()
def test_outputs_equal_transformers_own_with_a_plain_mask(name, kind):
    model = tiny(name, kind)
    batch = padded(model)
    inputs = model_outputs.model_inputs(model, batch)
    assert (inputs["attention_mask"].ndim == 4) == families.FAMILIES[name].fast_mask
    plain = {key: batch[key] for key in inputs}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        assert "token_type_ids" in plain or name == "distilbert"
    found, expected = (model(**given, output_hidden_states=True) for given in (inputs, plain))
    assert len(found.hidden_states) == model.config.num_hidden_layers + 1
    real = batch["attention_mask"].bool()
    pairs = list(zip(found.hidden_states, expected.hidden_states, strict=True))
    pairs += [(found[key], expected[key]) for key in ("logits", "start_logits", "end_logits") if key in expected]
    for one, other in pairs:
        rows = real if one.shape[:2] == real.shape else slice(None)
        torch.testing.assert_close(one[rows], other[rows], rtol=1e-5, atol=1e-5)
    # And the plain mask hides the padding: the last sentence by itself gives the same.
    alone = model(**{key: value[2:, :4] for key, value in plain.items()}, output_hidden_states=True)
    for one, other in zip(found.hidden_states, alone.hidden_states, strict=True):
        torch.testing.assert_close(one[2:, :4], other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_copy_has_nothing_to_learn_and_another_model_has(name):
    teacher, student, other = tiny(name), tiny(name), tiny(name, seed=1)
    batch, layers = padded(teacher), (0, 2, 4)
    args = types.SimpleNamespace(
        terms=losses.PRESETS["ckd"],
        temperature=2.0,
        distance="cosine",
        pair_criterion="kl",
        triple_criterion="mse",
        window=5,
    )
    views = [
        losses.ModelView(
            model(**model_outputs.model_inputs(model, batch), output_hidden_states=True),
            layers,
            batch["attention_mask"],
        )
        for model in (teacher, student, other)
    ]
    same, different = (
        {name: losses.TERMS[name](view, views[0], batch, args) for name in args.terms} for view in views[1:]
    )
    for term in args.terms:
        assert abs(same[term].item()) < 1e-8 < different[term].item(), term
    different["wr_triple"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in other.parameters())


@pytest.mark.parametrize("name", families.FAMILIES)
def test_longest_input_counts_and_latency(name):
    model = tiny(name)
    longest = model_outputs.max_tokens(model.config)
    found = cost.describe(model, longest)
    assert (found["type"], found["layers"], found["heads"], found["intermediate_size"]) == (name, 4, 2, 32)
    assert found["parameters"] == sum(p.numel() for p in model.parameters()) > found["parameters_without_embeddings"]
    assert found["flops_per_sequence"] > cost.count_flops(model, longest // 2) > 0
    assert cost.measure_latency({"m": model}, longest, batch_sizes=(1,), repeats=1, seconds=0)["m"]["1"] > 0
    if name not in ("deberta-v2", "modernbert"):  # relative positions have no end
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 5))


@pytest.mark.parametrize("name", PRETRAINED)
@torch.no_grad()
def test_head_at_masked_positions_equals_transformers_logits(name):
    model = tiny(name, "mlm")
    batch, positions = padded(model), torch.tensor([1, 5, T + 2, 2 * T + 1])
    out = model_outputs.MaskedLM(model)(model_outputs.model_inputs(model, batch), positions)
    weight, bias = out["decoder"]
    plain = {key: batch[key] for key in model_outputs.model_inputs(model, batch)}
    expected = model(**plain).logits.flatten(0, 1)[positions]
    torch.testing.assert_close(out["features"] @ weight.T + bias, expected, rtol=1e-5, atol=1e-5)


# --- whole scripts ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def save(world, tmp_path_factory):
    """save(name, kind, layers) -> folder of a tiny model of the type and a tokenizer as such models have."""
    lines = [line.split("\t")[-1] for line in (world / "glue" / "CoLA" / "train.tsv").read_text().splitlines()[:200]]
    tokenizers, folders = {}, {}

    def make(name, kind="classification", layers=4):
        if (name, kind, layers) not in folders:
            algorithm, words, _ = TINY[name]
            key = algorithm, words["cls_token"]
            tokenizers[key] = tokenizers.get(key) or make_tokenizer(algorithm, words, lines)
            folder = tmp_path_factory.mktemp(name)
            tiny(name, kind, std=0.05, layers=layers, vocab_size=len(tokenizers[key])).save_pretrained(folder)
            tokenizers[key].save_pretrained(folder)
            folders[name, kind, layers] = str(folder)
        return folders[name, kind, layers]

    return make


@pytest.fixture
def pretrain(world):
    def run(*options):
        AcceleratorState._reset_state(reset_partial_state=True)
        distill_pretrain.main(
            [
                *(
                    f"--corpus {world}/text/valid.txt --seq_length 16 --per_device_train_batch_size 8 "
                    "--max_steps 2 --max_train_samples 16 --max_eval_samples 4"
                ).split(),
                *map(str, options),
            ]
        )

    return run


def check_run(folder, name, student_layers):
    """The run is whole: finite losses in the record, a student of the type that loads without a missing tensor."""
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "complete" and record["model"]["flops_per_sequence"] > 0
    assert (record["model"]["type"], record["model"]["layers"]) == (name, student_layers)
    assert not any(torch.tensor(float(value)).isnan() for value in record["best"]["metrics"].values())


EVERY = ("attention_mse=1", "embedding_mse=1", "hidden_mse=1", "minilm=1")


@pytest.mark.parametrize("name", families.FAMILIES)
def test_finetuning_with_ckd_and_all_terms_that_the_table_claims(name, finetune, save, tmp_path):
    family = families.FAMILIES[name]
    shape = ("--student_layers", "2") if family.layers else ("--student", save(name, layers=2))
    width = ("--student_hidden", "24") if family.layers else ()  # hidden states through a projection
    terms = EVERY if family.qkv else EVERY[1:3]
    finetune(
        "--teacher",
        save(name),
        *shape,
        *width,
        "--terms",
        "ckd",
        *terms,
        "--max_steps",
        "2",
        "--output_dir",
        tmp_path / "run",
    )
    check_run(tmp_path / "run", name, 2)
    model, missing = models.load_model(str(tmp_path / "run"), AUTO["classification"])
    assert not missing and model.config.hidden_size == (24 if width else 16)
    found = pipeline("text-classification", model=str(tmp_path / "run"))("the dog sleeps .")
    assert found[0]["label"] in model.config.label2id and 0 < found[0]["score"] <= 1


@pytest.mark.parametrize("name", ["xlm-roberta", "modernbert"])
def test_question_answering_with_any_tokenizer(name, finetune, save, world, tmp_path):
    """Windows of contexts find the special words of other tokenizers, and the saved student loads whole."""
    finetune(
        "--task",
        "squad",
        "--data_dir",
        world / "squad",
        "--student",
        save(name, "qa"),
        "--max_steps",
        "1",
        "--max_train_samples",
        "16",
        "--max_eval_samples",
        "8",
        "--max_seq_length",
        "36",
        "--doc_stride",
        "4",
        "--max_query_length",
        "12",
        "--output_dir",
        tmp_path / "run",
    )
    check_run(tmp_path / "run", name, 4)
    assert not models.load_model(str(tmp_path / "run"), AUTO["qa"])[1]


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretraining_with_ckd_and_all_terms(name, pretrain, save, tmp_path):
    teacher = save(name, "mlm")
    pretrain(
        *f"--teacher {teacher} --student_layers 2 --terms ckd".split(),
        *EVERY,
        *f"pkd=1 hidden_cosine=1 --hard_weight 1 --output_dir {tmp_path}/run".split(),
    )
    check_run(tmp_path / "run", name, 2)
    # And an encoder that was pre-trained so is a student in fine-tuning.
    assert any("classifier" in name for name in models.load_model(str(tmp_path / "run"), AUTO["classification"])[1])
    found = pipeline("fill-mask", model=str(tmp_path / "run"))
    assert len(found(f"the dog {found.tokenizer.mask_token} .")) == 5


@pytest.mark.parametrize("name", [name for name, family in families.FAMILIES.items() if not family.mlm])
def test_pretraining_by_relations_alone_needs_no_head_and_saves_none(name, pretrain, save, tmp_path):
    shape = ("--student_layers", "2") if families.FAMILIES[name].layers else ("--student", save(name, "mlm", layers=2))
    pretrain("--teacher", save(name, "mlm"), *shape, "--terms", "ckd", "logits=0", "--output_dir", tmp_path / "run")
    check_run(tmp_path / "run", name, 2)
    model, missing = models.load_model(str(tmp_path / "run"), AutoModel)
    assert type(model).__name__ == model.config.architectures[0] and all(key.startswith("pooler.") for key in missing)


@torch.no_grad()
def test_queries_and_keys_of_mpnet_are_those_that_its_attention_is_made_of():
    model = tiny("mpnet").base_model
    batch = {key: value for key, value in padded(model).items() if key != "token_type_ids"}
    model_outputs.add_outputs(model, [1, 4])
    model.config._attn_implementation = "eager"
    out = model(**batch, output_attentions=True)
    outside = torch.where(batch["attention_mask"].bool(), 0.0, -1e9)[:, None, None]
    for layer, qkv in out["qkv"].items():
        q, k, v = (x.transpose(1, 2) for x in qkv)
        bias = model.encoder.compute_position_bias(torch.zeros(3, T, 1))
        assert bias.abs().max() > 0.1
        attention = (q @ k.mT / q.shape[-1] ** 0.5 + bias + outside).softmax(-1)
        torch.testing.assert_close(attention, out["attentions"][layer - 1])
        seen = []
        attended = model.encoder.layer[layer - 1].attention.attn.o
        hook = attended.register_forward_hook(lambda module, args, out, seen=seen: seen.append(args[0]))
        model(**batch)
        hook.remove()
        torch.testing.assert_close((attention @ v).transpose(1, 2).flatten(-2), seen[0])


@pytest.mark.parametrize("name", families.FAMILIES)
def test_what_the_table_does_not_claim_is_refused(name, finetune, pretrain, save, tmp_path):
    family, out = families.FAMILIES[name], ("--output_dir", tmp_path / "run")
    if not family.qkv:
        with pytest.raises(ValueError, match=f"minilm reads queries and keys.*type '{name}', only of bert, roberta"):
            finetune("--teacher", save(name), "--student", save(name, layers=2), "--terms", "minilm", *out)
    if not family.layers:
        for shape in (("--student_layers", "2"), ("--student_intermediate", "8")):
            with pytest.raises(ValueError, match=f"student cannot be cut from a model of type '{name}'"):
                finetune("--teacher", save(name), *shape, *out)
    if not family.mlm:
        with pytest.raises(
            ValueError, match=f"'{name}', whose language-model head is not known here: .*logits=0.* bert"
        ):
            pretrain("--student", save(name, "mlm"), *out)
    assert not (tmp_path / "run").exists()


STRANGERS = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2),
    "t5": lambda: transformers.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    "vit": lambda: transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
    "deberta": lambda: transformers.DebertaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1),
    "bert": lambda: transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, is_decoder=True
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("option", ["--teacher", "--student"])
def test_unknown_types_are_refused_before_anything_is_trained(name, option, finetune, pretrain, world, tmp_path):
    folder, out = tmp_path / name, ("--output_dir", tmp_path / "run")
    STRANGERS[name]().save_pretrained(folder)
    other = ("--student", world / "bert") if option == "--teacher" else ()
    for script in (finetune, pretrain):
        with pytest.raises(ValueError, match=f"{option} '.*' is of type '{name}'.* does not work here: .* bert, ") as e:
            script(option, folder, *other, *out)
        assert "\n" not in str(e.value) and "modernbert" in str(e.value) and not (tmp_path / "run").exists()


def test_layers_of_two_kinds_and_shared_layers_are_not_copied():
    for name in ("albert", "modernbert"):
        with pytest.raises(ValueError, match="cannot be cut"):
            students.build_student(tiny(name), AUTO["classification"], {"layers": 2})


def test_head_of_another_task_is_no_trained_head(save):
    """ModernBERT gives its heads for classes and for questions the same names and shapes."""
    assert AutoModelForSequenceClassification.from_pretrained(save("modernbert")).config.num_labels == 2
    with pytest.raises(ValueError, match="is a ModernBertForSequenceClassification, this task needs a ModernBertForQ"):
        models.load_teacher(save("modernbert"), AUTO["qa"])


class Launches(TorchDispatchMode):
    """Counts the operations."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_a_frozen_teacher_takes_as_many_operations_as_its_equal_when_latency_is_measured():
    """Autocast keeps no cast of a weight that needs no gradient: each pass of the teacher would cast all of its own."""
    student, launches, of_pass = tiny("bert"), Launches(), {}
    teacher = copy.deepcopy(student).requires_grad_(False)
    student.base_model.embeddings.requires_grad_(False)  # as a user may freeze a part of the student
    for name, model in (("student", student), ("teacher", teacher)):
        model.register_forward_pre_hook(lambda *_: setattr(launches, "count", 0))
        model.register_forward_hook(lambda *_, name=name: of_pass.setdefault(name, []).append(launches.count))
    with torch.autocast("cpu", torch.bfloat16), launches:
        cost.measure_latency({"student": student, "teacher": teacher}, 16, (1, 2), repeats=2, seconds=0)
    assert of_pass["student"] == of_pass["teacher"] and len(of_pass["teacher"]) == 6
    assert len(set(of_pass["teacher"][1:])) == 1 < of_pass["teacher"][0] - of_pass["teacher"][1]
    assert not any(p.requires_grad for p in teacher.parameters())
    assert {p.requires_grad for p in student.base_model.embeddings.parameters()} == {False}
    assert all(p.requires_grad for p in student.base_model.encoder.parameters())


@pytest.mark.parametrize(
    "name, kind",
    [
        (name, kind)
        for name, family in families.FAMILIES.items()
        for kind in ("classification", "mlm")
        if kind != "mlm" or family.mlm
    ],
)
@torch.no_grad()
def test_linear_layers_cast_once_give_the_same_to_the_bit_by_fewer_operations(name, kind):
    model = tiny(name, kind).requires_grad_(False)
    if kind == "mlm":
        model, embedding = model_outputs.MaskedLM(model), model.get_input_embeddings()
        given = model_outputs.model_inputs(model.model, padded(model.model)), torch.tensor([1, 4, 9])
    else:
        embedding, given = model.get_input_embeddings(), ()
    named = model_outputs.model_inputs(model, padded(model)) | {"output_hidden_states": True} if not given else {}
    found, counts = [], []
    accelerator = types.SimpleNamespace(
        device=torch.device("cpu"), autocast=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    for _ in range(2):
        with accelerator.autocast(), Launches() as launches:
            out = model(*given, **named)
        found.append([*out["hidden_states"], *([out["features"], *out["decoder"]] if given else [out["logits"]])])
        counts.append(launches.count)
        model_outputs.cast_linears(model, accelerator)
    linears = [m for m in model.modules() if type(m) is torch.nn.Linear and m.weight is not embedding.weight]
    assert len(linears) > 4 and {m.weight.dtype for m in linears} == {torch.bfloat16}
    assert counts[0] - counts[1] >= len(linears)
    assert embedding.weight.dtype == torch.float32
    for one, other in zip(*found, strict=True):
        if one is not None:
            assert one.dtype == other.dtype and torch.equal(one, other)


@torch.no_grad()
def test_evaluation_casts_the_weights_once_not_in_every_batch():
    model, launches, counts = tiny("bert"), Launches(), []
    accelerator = types.SimpleNamespace(
        device=torch.device("cpu"),
        process_index=0,
        num_processes=1,
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
    )
    ids = torch.randint(5, 60, (6, T), generator=torch.Generator().manual_seed(1))
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    kind = kinds.KINDS["classification"](types.SimpleNamespace(labels=("a", "b"), limits=None))
    args = types.SimpleNamespace(per_device_eval_batch_size=2)
    model.register_forward_pre_hook(lambda *_: setattr(launches, "count", 0))
    model.register_forward_hook(lambda *_: counts.append(launches.count))
    with launches:
        words = types.SimpleNamespace(pad_token_id=0)
        found = kinds.predict(kind, model, Dataset.from_dict(rows), words, args, accelerator)
    assert counts[1] == counts[2] < counts[0] - 2 * 4 * 6, counts
    for part, expected in zip(found.split(2), ids.split(2), strict=True):
        with accelerator.autocast():
            batch = {"input_ids": expected, "attention_mask": torch.ones_like(expected)}
            assert torch.equal(part, model(**model_outputs.model_inputs(model, batch)).logits.float())


@pytest.mark.whole
def test_latency_is_of_both_models_and_ends_in_time(monkeypatch):
    student, teacher = tiny("bert"), tiny("distilbert")
    record = cost.latency_record(student, teacher, 16)
    assert record["speedup"]["32"] == round(record["teacher_ms"]["32"] / record["student_ms"]["32"], 3)
    clock, passes = iter(range(10**6)), []
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))  # a pass takes a second
    student.register_forward_pre_hook(lambda *_: passes.append(1))
    assert cost.measure_latency({"student": student}, 16)["student"] == {"1": 1000, "32": 1000}
    assert len(passes) == 4  # for each batch size one that warms up and one that counts


# --- layer maps ------------------------------------------------------------------------------------------------------

OPTIONS = argparse.Namespace(
    distance="cosine", pair_criterion="kl", triple_criterion="mse", window=21, terms=dict.fromkeys(relations.NAMES, 1.0)
)


@pytest.fixture
def outputs():
    """Outputs of a student of 3 layers and a teacher of 6, of other widths, and a mask."""
    torch.manual_seed(0)
    student = [torch.randn(2, 7, 8, requires_grad=True) for _ in range(4)]
    teacher = [torch.randn(2, 7, 12) for _ in range(7)]
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return student, teacher, mask


def values(outputs, pairs, monkeypatch=None):
    """{term: value} of the four relations, and the number of calls by which they were made."""
    student, teacher, mask = outputs
    calls, whole = [], relations.relation_losses
    views = [
        losses.ModelView({"hidden_states": states}, side, mask)
        for states, side in zip((student, teacher), pairs.sides(), strict=True)
    ]
    if monkeypatch:
        monkeypatch.setattr(relations, "relation_losses", lambda *a, **k: calls.append(1) or whole(*a, **k))
    found = {name: losses.TERMS[name](*views, {}, OPTIONS) for name in OPTIONS.terms}
    return found, len(calls)


def alone(outputs, name, pairs):
    """A relation by its own function, of copies of the layers in the order of the pairs."""
    student, teacher, mask = outputs
    states = [torch.stack([model[pair[i]] for pair in pairs], 1) for i, model in enumerate((student, teacher))]
    return getattr(losses, name)(*states, mask)


GENERAL, WR, LTR = [(0, 0), (1, 2), (2, 4), (3, 6)], [(1, 1), (3, 6), (3, 5)], [(0, 0), (1, 3), (2, 3), (3, 6)]


@pytest.mark.parametrize("wr, ltr, calls", [(None, None, 1), (WR, None, 2), (None, LTR, 2), (WR, LTR, 2), (WR, WR, 1)])
def test_each_relation_has_the_layers_of_its_map_also_where_one_comes_twice(outputs, monkeypatch, wr, ltr, calls):
    found, made = values(outputs, layer_maps.LayerPairs(GENERAL, wr, ltr), monkeypatch)
    assert made == calls and list(found) == list(relations.NAMES)
    expected = {name: alone(outputs, name, (wr if name.startswith("wr") else ltr) or GENERAL) for name in found}
    torch.testing.assert_close(found, expected)
    student = outputs[0]
    got, wanted = (torch.autograd.grad(sum(one.values()), student, allow_unused=True) for one in (found, expected))
    assert [x is None for x in got] == [x is None for x in wanted]
    torch.testing.assert_close([x for x in got if x is not None], [x for x in wanted if x is not None])


def test_a_student_layer_with_two_partners_learns_the_mean_of_both(outputs):
    """Of word relations, whose layers do not meet."""
    both, _ = values(outputs, layer_maps.LayerPairs(GENERAL, [(3, 5), (3, 6)]))
    each = [alone(outputs, "wr_triple", [pair]) for pair in ((3, 5), (3, 6))]
    torch.testing.assert_close(both["wr_triple"], sum(each) / 2)


def maps(n_student, n_teacher, **options):
    defaults = {"layer_map": "uniform", "wr_layer_map": None, "ltr_layer_map": None, "no_embeddings": False}
    return layer_maps.layer_maps(argparse.Namespace(**defaults | options), n_student, n_teacher)


def test_maps_of_options():
    found = maps(3, 6, wr_layer_map="last", ltr_layer_map="0:0,1:2,1:4")
    assert found == GENERAL == [*layer_maps.layer_map(3, 6, "uniform")]
    assert (found.wr, found.ltr) == ([(0, 0), (1, 4), (2, 5), (3, 6)], [(0, 0), (1, 2), (1, 4)])
    bare = maps(3, 6, ltr_layer_map="ends", no_embeddings=True)
    assert (bare, bare.wr, bare.ltr) == (GENERAL[1:], GENERAL[1:], [(1, 3), (3, 6)])
    assert losses.teacher_layers({"wr_pair": 1.0}, found) == [0, 4, 5, 6]
    assert losses.teacher_layers({"ltr_pair": 1.0, "logits": 1.0}, found) == [0, 2, 4]
    assert losses.teacher_layers(dict.fromkeys(losses.PRESETS["ckd"], 1.0), found) == [0, 2, 4, 5, 6]
    losses.check_terms({"wr_pair": 1.0}, maps(3, 6, layer_map="0:0", wr_layer_map="last", no_embeddings=True))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"wr_layer_map": "lst"}, "--wr_layer_map: unknown layer map 'lst'"),
        ({"ltr_layer_map": "1:9"}, "--ltr_layer_map: layer map pair 1:9 is outside"),
        ({"wr_layer_map": "1:2,1:2"}, "--wr_layer_map: layer map '1:2,1:2' holds a pair twice"),
        ({"layer_map": "1:9"}, "^layer map pair 1:9"),
    ],
)
def test_a_wrong_map_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        maps(3, 6, **options)


def test_too_few_layers_of_a_map_of_its_own_are_refused():
    with pytest.raises(ValueError, match="ltr_triple relates 3 layers but only 2 are aligned"):
        losses.check_terms({"ltr_triple": 1.0}, maps(3, 6, ltr_layer_map="1:2,3:6"))
    with pytest.raises(ValueError, match="no layers are aligned"):
        losses.check_terms({"wr_pair": 1.0}, maps(3, 6, wr_layer_map="0:0", no_embeddings=True))
    losses.check_terms({"ltr_triple": 1.0}, maps(3, 6, layer_map="3:6", ltr_layer_map="uniform"))


def first_losses(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {name: events.Scalars(f"loss/{name}")[0].value for name in relations.NAMES}


def test_a_whole_run_in_fine_tuning_with_and_without_cache(finetune, teacher, tmp_path, monkeypatch):
    """The first step's losses are those of runs whose one map is that of the relation."""
    monkeypatch.setattr(teacher_cache, "FOLDER", tmp_path / "cache")
    found = {}
    for name, options in (
        ("uniform", ()),
        ("other", ("--layer_map", "0:1,1:4,2:2")),
        ("both", ("--wr_layer_map", "0:1,1:4,2:2")),
        ("cached", ("--wr_layer_map", "0:1,1:4,2:2", "--cache_teacher")),
        ("ltr", ("--ltr_layer_map", "0:1,1:4,2:2")),
    ):
        finetune(
            *f"--teacher {teacher} --student_layers 2 --terms ckd --max_steps 1 --logging_steps 1".split(),
            *options,
            "--output_dir",
            tmp_path / name,
        )
        found[name] = first_losses(tmp_path / name)
    for name, of_words, of_layers in (("both", "other", "uniform"), ("ltr", "uniform", "other")):
        assert found[name] == {
            term: found[of_words if term.startswith("wr") else of_layers][term] for term in relations.NAMES
        }
    assert found["cached"] == pytest.approx(found["both"], rel=1e-2) and found["uniform"] != found["other"]


def test_a_whole_run_in_pre_training(world, tmp_path):
    found = {}
    for name, options in (("uniform", ()), ("other", ("--layer_map", "ends")), ("both", ("--ltr_layer_map", "ends"))):
        AcceleratorState._reset_state(reset_partial_state=True)
        distill_pretrain.main(
            [
                *(
                    f"--corpus {world}/text/train.txt --seq_length 32 --max_eval_samples 2 "
                    f"--teacher {world}/bert --student_layers 3 --student_init random --max_steps 1 "
                    "--per_device_train_batch_size 4 --logging_steps 1"
                ).split(),
                *options,
                "--output_dir",
                str(tmp_path / name),
            ]
        )
        found[name] = first_losses(tmp_path / name)
    assert found["both"] == {
        term: found["uniform" if term.startswith("wr") else "other"][term] for term in relations.NAMES
    }
    assert found["both"]["ltr_pair"] != found["uniform"]["ltr_pair"]
