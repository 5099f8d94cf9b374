"""Maps of layers: of word relations and of layer transforming relations alone, several partners of one layer."""

import argparse

import pytest
import torch
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import distill_pretrain
import losses
import relations
from encoders import layer_maps
from engine import teacher_cache

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
