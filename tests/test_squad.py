"""SQuAD: reading, windows, the search for answers, the official scores, and a run through the command line."""

import argparse
import json
import shutil
import unicodedata

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertTokenizerFast

import data
import distill_finetune
import losses
import metrics
from tasks import kinds, readers, squad


def squad_file(path, qas, context="The cat sat on the mat ."):
    article = {"title": "t", "paragraphs": [{"context": context, "qas": qas}]}
    path.write_text(json.dumps({"version": "1.1", "data": [article]}))
    return path


def qa(key="q1", text="cat", start=4, **more):
    return {"id": key, "question": "who ?", "answers": [{"text": text, "answer_start": start}], **more}


class TestReading:
    def test_questions_answers_and_impossible_ones(self, tmp_path):
        path = squad_file(tmp_path / "f.json", [qa(), {**qa("q2"), "answers": [], "is_impossible": True}])
        rows = squad.read_squad(path, True, readers.Skipped())
        assert rows["id"] == ["q1", "q2"] and rows["texts"] == [["cat"], []] and rows["starts"] == [[4], []]

    @pytest.mark.parametrize(
        "qas, said",
        [
            ([qa(start=5)], "question 'q1': the answer 'cat' is not at answer_start 5"),
            ([qa(start=-3)], "is not at answer_start"),
            ([qa(text="")], "is not at answer_start"),
            ([qa(), qa()], "'q1' comes twice"),
            ([{**qa(), "answers": []}], "no answers and is not marked"),
            ([{**qa(), "answers": [], "is_impossible": True}], "use --task squad_v2"),
            ([{"id": "q9"}], "'q9' is not in SQuAD's format"),
            ([["odd"]], "is not in SQuAD's format"),
            ([], "holds no questions"),
        ],
    )
    def test_a_broken_question_is_named_with_its_file(self, tmp_path, qas, said):
        path = squad_file(tmp_path / "f.json", qas)
        with pytest.raises(ValueError, match=said) as error:
            squad.read_squad(path, False, readers.Skipped())
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    def test_a_part_of_the_questions_is_of_all_articles(self, tmp_path):
        for name, count in (("train-v1.1.json", 60), ("dev-v1.1.json", 40)):
            articles = [
                {
                    "title": c,
                    "paragraphs": [
                        {"context": f"{c} The cat", "qas": [qa(f"{c}{i}", start=6) for i in range(count // 2)]}
                    ],
                }
                for c in "ab"
            ]
            (tmp_path / name).write_text(json.dumps({"version": "1.1", "data": articles}))
        for _ in range(2):
            args = argparse.Namespace(task="squad", data_dir=str(tmp_path), max_train_samples=20, max_eval_samples=10)
            splits = squad.load_questions(args, readers.Skipped())
            assert {k: len(v) for k, v in splits.items()} == {"train": 20, "validation": 10}
            assert all({text[0] for text in split["context"]} == {"a", "b"} for split in splits.values())

    def test_bad_examples_are_counted_where_skipping_was_asked_for(self, tmp_path):
        skipped = readers.Skipped(True)
        rows = squad.read_squad(squad_file(tmp_path / "f.json", [qa(start=5), qa("q2")]), False, skipped)
        assert rows["id"] == ["q2"] and len(skipped.reports) == 1 and "'q1'" in skipped.reports[0]

    @pytest.mark.parametrize("second", [qa(text="mat", start=19), {**qa(), "answers": [], "is_impossible": True}])
    def test_an_id_that_comes_twice_in_v2(self, tmp_path, second):
        path = squad_file(tmp_path / "f.json", [qa(), second, qa("q2")])
        with pytest.raises(ValueError, match=r"f\.json: the question id 'q1' comes twice"):
            squad.read_squad(path, True, readers.Skipped())
        skipped = readers.Skipped(True)
        rows = squad.read_squad(path, True, skipped)
        assert rows["id"] == ["q1", "q2"] and rows["texts"][0] == ["cat"] and len(skipped.reports) == 1

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_damaged_files_end_in_one_line_or_in_all_their_questions(self, tmp_path_factory, data_):
        path = squad_file(tmp_path_factory.mktemp("fuzz") / "f.json", [qa(), qa("q2", "mat", 19)])
        raw = bytearray(path.read_bytes())
        for _ in range(data_.draw(st.integers(1, 4))):
            at = data_.draw(st.integers(0, len(raw) - 1))
            raw[at : at + data_.draw(st.integers(0, 3))] = data_.draw(st.binary(max_size=3))
        path.write_bytes(raw)
        try:
            rows = squad.read_squad(path, False, readers.Skipped())
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            questions = [q for a in json.loads(raw.decode())["data"] for p in a["paragraphs"] for q in p["qas"]]
            assert len(rows) == len(questions)


@pytest.fixture
def args():
    return argparse.Namespace(max_seq_length=24, max_query_length=5, doc_stride=6)


@pytest.fixture
def tokenizer(world):
    return AutoTokenizer.from_pretrained(world / "bert")


def test_windows_cover_the_context_and_hold_the_answers(world, tokenizer, args, tmp_path):
    questions = squad.read_squad(world / "squad" / "dev-v2.0.json", True, readers.Skipped())
    cut = squad.windows(questions, tokenizer, args, tmp_path)
    covered, answered = [set() for _ in range(len(questions))], set()
    for row in cut:
        source = questions[row["question"]]
        assert len(row["input_ids"]) <= 24 and row["input_ids"][0] == tokenizer.cls_token_id
        covered[row["question"]] |= {i for a, b in row["offsets"] if a >= 0 for i in range(a, b)}
        assert row["offsets"].index(next(o for o in row["offsets"] if o[0] >= 0)) <= 5 + 2  # [CLS] question [SEP]
        if row["start_positions"]:
            span = row["offsets"][row["start_positions"]][0], row["offsets"][row["end_positions"]][1]
            assert source["context"][slice(*span)] == source["texts"][0]
            answered.add(row["question"])
        else:
            assert row["end_positions"] == 0
    for i, source in enumerate(questions):
        assert covered[i] == {k for k, c in enumerate(source["context"]) if not c.isspace()}
        assert (i in answered) == bool(source["texts"])


HINDI = "दिल्ली भारत की राजधानी है और इसकी जनसंख्या बहुत बड़ी है । यमुना नदी यहाँ बहती है ।"
THAI = "กรุงเทพ เป็น เมือง ที่ ใหญ่ ที่สุด ใน ประเทศ ไทย น้ำ และ ผู้คน"
HEBREW = "\u200fשָׁלוֹם\u200f עוֹלָם , café naïve\u0301 ."  # noqa: RUF001


@pytest.fixture(scope="module")
def stripping(tmp_path_factory):
    """An uncased WordPiece tokenizer, which drops combining marks (and cuts before vowel signs it keeps)."""
    letters = sorted(set(unicodedata.normalize("NFD", (HINDI + THAI + HEBREW + "who?").lower())) - {" "})
    path = tmp_path_factory.mktemp("stripping") / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return BertTokenizerFast(str(path), do_lower_case=True, strip_accents=True)


@pytest.mark.parametrize("context", [HINDI, THAI, HEBREW], ids=["hindi", "thai", "hebrew"])
def test_an_answer_is_taught_by_the_tokens_that_overlap_it(stripping, args, tmp_path, context):
    """Every substring as the answer, those that begin or end with a blank or within a letter and its marks too."""
    spans = [(a, b) for a in range(len(context)) for b in range(a + 1, min(a + 9, len(context) + 1))]
    qas = [qa(f"{a}-{b}", context[a:b], a) for a, b in spans]
    questions = squad.read_squad(squad_file(tmp_path / "f.json", qas, context), False, readers.Skipped())
    cut = squad.windows(questions, stripping, args, tmp_path)
    tokens = stripping(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = {i for a, b in tokens for i in range(a, b)}
    dropped = {i for i, c in enumerate(context) if i not in inside and unicodedata.category(c)[0] == "M"}
    assert dropped  # a mark that was dropped is its letter's
    tokens = [(a, next(i for i in range(b, len(context) + 1) if i not in dropped)) for a, b in tokens]
    given = set()
    for row in cut:
        a, b = spans[row["question"]]
        due = [(x, y) for x, y in tokens if x < b and y > a]
        here = [tuple(offset) for offset in row["offsets"]]
        if due and set(due) <= set(here):
            assert here[row["start_positions"] : row["end_positions"] + 1] == due
            given.add(row["question"])
        else:
            assert row["start_positions"] == row["end_positions"] == 0
    begins, ends = map(set, zip(*tokens, strict=True))
    near = {i for i in given if spans[i][0] not in begins or spans[i][1] not in ends}
    assert given == {i for i, (a, b) in enumerate(spans) if any(x < b and y > a for x, y in tokens)}
    said = squad.inexact_answers(questions, cut)
    lost = len(spans) - len(given)
    assert near and said.startswith(
        f"{len(near) + lost} of {len(spans)} training answers cannot be given exactly: {len(near)} are extended"
    )
    assert f"; {lost} have no token" in said


def test_answers_that_tokens_give_as_they_stand_need_no_report(world, tokenizer, args, tmp_path):
    questions = squad.read_squad(world / "squad" / "dev-v2.0.json", True, readers.Skipped())
    assert squad.inexact_answers(questions, squad.windows(questions, tokenizer, args, tmp_path)) == ""


def test_an_answer_longer_than_a_window_counts_as_none(stripping, args, tmp_path):
    path = squad_file(tmp_path / "f.json", [qa(text=THAI, start=0)], THAI)
    questions = squad.read_squad(path, False, readers.Skipped())
    cut = squad.windows(questions, stripping, args, tmp_path)
    assert len(cut) > 1 and not any(cut["start_positions"]) and not any(cut["end_positions"])
    assert squad.inexact_answers(questions, cut).startswith("1 of 1 training answers cannot be given exactly: 0 are")


def test_the_cache_is_keyed_by_all_that_windows_depend_on(world, tokenizer, args, tmp_path):
    questions = squad.read_squad(world / "squad" / "dev-v1.1.json", False, readers.Skipped())
    squad.windows(questions, tokenizer, args, tmp_path)
    squad.windows(questions, tokenizer, args, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    args.doc_stride = 4
    squad.windows(questions, tokenizer, args, tmp_path)
    squad.windows(questions.select(range(5)), tokenizer, args, tmp_path)
    tokenizer.add_tokens(["zebra"])
    squad.windows(questions, tokenizer, args, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_the_tokenizer_is_left_alike_by_windows_that_are_made_and_by_those_that_are_there(
    world, tokenizer, args, tmp_path
):
    questions = squad.read_squad(world / "squad" / "dev-v1.1.json", False, readers.Skipped())
    before, saved = tokenizer.backend_tokenizer.to_str(), []
    for _ in range(2):
        squad.windows(questions, tokenizer, args, tmp_path / "cache")
        tokenizer.save_pretrained(tmp_path / "saved")
        saved.append((tmp_path / "saved" / "tokenizer.json").read_bytes())
    assert saved[0] == saved[1] and tokenizer.backend_tokenizer.to_str() == before
    data.tokenize(Dataset.from_dict({"text_a": ["a b"], "label": [1]}), tokenizer, 8)
    assert tokenizer.backend_tokenizer.to_str() == before


def middle_zeroed(file):
    raw = file.read_bytes()
    file.write_bytes(raw[: len(raw) // 2] + b"\0" * 64 + raw[len(raw) // 2 + 64 :])


@pytest.mark.parametrize(
    "damage",
    [
        middle_zeroed,
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
    ],
)
def test_damaged_windows_are_named_with_the_remedy(world, tokenizer, args, tmp_path, damage):
    questions = squad.read_squad(world / "squad" / "dev-v1.1.json", False, readers.Skipped())
    whole = squad.windows(questions, tokenizer, args, tmp_path)[:]
    (folder,) = tmp_path.iterdir()
    damage(folder / "windows.arrow")
    with pytest.raises(ValueError, match=rf"{folder} is damaged \(.*windows\.arrow.*\): delete this folder") as error:
        squad.windows(questions, tokenizer, args, tmp_path)
    assert "\n" not in str(error.value)
    shutil.rmtree(folder)
    assert squad.windows(questions, tokenizer, args, tmp_path)[:] == whole


def test_what_a_killed_build_left_is_neither_used_nor_kept(world, tokenizer, args, tmp_path):
    questions = squad.read_squad(world / "squad" / "dev-v1.1.json", False, readers.Skipped())
    whole = squad.windows(questions, tokenizer, args, tmp_path)[:]
    (folder,) = tmp_path.iterdir()
    left = folder.rename(folder.with_name(f".tmp-{folder.name}"))
    middle_zeroed(left / "windows.arrow")
    (left / "tmpx2y3").write_bytes(b"half")
    assert squad.windows(questions, tokenizer, args, tmp_path)[:] == whole
    assert list(tmp_path.iterdir()) == [folder]
    assert {path.name for path in folder.iterdir()} == {"windows.arrow", "checksums.json"}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 6), st.integers(1, 5))
def test_best_spans_equal_the_search_one_by_one(seed, size, n_best, longest):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, size, generator=generator)
    context = torch.rand(3, size, generator=generator) < 0.7
    score, start, end = squad.best_spans(logits, context, n_best, longest)
    for i in range(3):
        inside = [k for k in range(size) if context[i, k]]
        starts, ends = (sorted(inside, key=lambda k, s=side: -logits[i, s, k])[:n_best] for side in (0, 1))
        spans = [(float(logits[i, 0, a] + logits[i, 1, b]), a, b) for a in starts for b in ends if a <= b < a + longest]
        if spans:
            assert (score[i].item(), start[i].item(), end[i].item()) == pytest.approx(max(spans))
        else:
            assert score[i] == float("-inf")


def test_answers_are_the_best_over_the_windows_of_a_question(tokenizer, world, args, tmp_path):
    questions = squad.read_squad(world / "squad" / "dev-v1.1.json", False, readers.Skipped())
    cut = squad.windows(questions, tokenizer, args, tmp_path)
    logits = torch.zeros(len(cut), 2, 24)
    for i, row in enumerate(cut):
        if row["start_positions"]:
            logits[i, 0, row["start_positions"]] = logits[i, 1, row["end_positions"]] = 5.0
    found = squad.answers(questions, cut, logits, 20, 30)
    assert {key: text for key, (text, _) in found.items()} == {q["id"]: q["texts"][0] for q in questions}
    assert all(difference == -10.0 for _, difference in found.values())


# Prediction, gold texts, (exact match, F1) by the official scripts of SQuAD 1.1 and 2.0.
WORKED = [
    ("the Cat!", ["cat"], (1, 1), (1, 1)),
    ("a big cat", ["cat", "big cat"], (1, 1), (1, 1)),
    ("big dog", ["a big cat", "dog house"], (0, 0.5), (0, 0.5)),
    ("cat cat sat", ["cat sat sat"], (0, 2 / 3), (0, 2 / 3)),
    ("", ["cat"], (0, 0), (0, 0)),
    ("café", ["cafe"], (0, 0), (0, 0)),
    ("Éire\u2019s coast", ["éire\u2019s coast"], (1, 1), (1, 1)),
    ("Éire\u2019s coast", ["Éire's coast"], (0, 0.5), (0, 0.5)),  # drops ASCII punctuation only
    ("1,000", ["1000"], (1, 1), (1, 1)),
    ("theatre", ["atre"], (0, 0), (0, 0)),
    ("an", ["the"], (1, 0), (1, 1)),
]


@pytest.mark.parametrize("prediction, golds, v1, v2", WORKED)
def test_scores_equal_the_official_evaluation(prediction, golds, v1, v2):
    assert metrics.squad_scores(prediction, golds) == pytest.approx(v1)
    assert metrics.squad_scores(prediction, golds, True) == pytest.approx(v2)


def test_impossible_questions_of_v2():
    assert metrics.squad_scores("", [], True) == (1, 1)
    assert metrics.squad_scores("cat", [], True) == (0, 0)


def test_totals_are_means_over_the_questions():
    answers = {str(i): (prediction, 0.0) for i, (prediction, *_) in enumerate(WORKED)}
    got, texts = metrics.squad_metrics(answers, {str(i): row[1] for i, row in enumerate(WORKED)})
    assert got["exact_match"] == pytest.approx(sum(v1[0] for _, _, v1, _ in WORKED) / len(WORKED))
    assert got["f1"] == pytest.approx(sum(v1[1] for _, _, v1, _ in WORKED) / len(WORKED))
    assert texts == {key: text for key, (text, _) in answers.items()}


INFINITE = float("inf")
V2_ROWS = st.lists(
    st.tuples(
        st.sampled_from(["cat", "dog", "cat dog", "the", ""]),
        st.sampled_from([-INFINITE, -2, -1, 0, 1, INFINITE]),
        st.sampled_from([[], ["cat"], ["the"], ["cat", "big dog"]]),
    ),
    min_size=1,
    max_size=8,
)


def v2_case(rows):
    answers = {str(i): (text, float(difference)) for i, (text, difference, _) in enumerate(rows)}
    return answers, {str(i): gold for i, (_, _, gold) in enumerate(rows)}


@settings(max_examples=100, deadline=None)
@given(V2_ROWS)
def test_the_threshold_is_the_best_that_can_be_applied(rows):
    answers, golds = v2_case(rows)
    got, texts = metrics.squad_metrics(answers, golds, True)

    def at(limit):
        chosen = {k: text if min(max(d, -1e9), 1e9) <= limit else "" for k, (text, d) in answers.items()}
        return sum(metrics.squad_scores(chosen[k], golds[k], True)[1] for k in golds) / len(golds), chosen

    assert got["f1"] == pytest.approx(max(at(limit)[0] for limit in (-2e9, -1e9, -2, -1, 0, 1, 1e9)))
    assert at(got["null_threshold"]) == (pytest.approx(got["f1"]), texts)
    assert got["f1_at_0"] == pytest.approx(at(0)[0])


@settings(max_examples=200, deadline=None)
@given(V2_ROWS)
def test_best_scores_of_v2_are_the_official_ones(rows):
    """The official rule, prefix by prefix: base of the unanswerable, then every question in the order of its odds."""
    answers, golds = v2_case(rows)
    got, _ = metrics.squad_metrics(answers, golds, True)
    order = sorted(answers, key=lambda k: answers[k][1])
    for i, name in enumerate(("exact", "f1")):
        points = [
            metrics.squad_scores(answers[k][0], golds[k], True)[i] if golds[k] else -(answers[k][0] != "")
            for k in order
        ]
        totals = [sum(not g for g in golds.values()) + sum(points[:n]) for n in range(len(order) + 1)]
        first = totals.index(max(totals))
        assert got[f"best_{name}"] == pytest.approx(totals[first] / len(order))
        expected = answers[order[first - 1]][1] if first else 0.0
        assert got[f"best_{name}_thresh"] == min(max(expected, -1e9), 1e9)
    json.dumps(got, allow_nan=False)


def test_the_best_exact_match_has_a_threshold_of_its_own():
    answers = {"a": ("cat", -2.0), "b": ("dog", -1.0), "c": ("big dog", 1.0), "d": ("big cat", 1.0)}
    golds = {"a": ["cat"], "b": [], "c": ["big dog house"], "d": ["big cat door"]}
    got, _ = metrics.squad_metrics(answers, golds, True)
    assert got["best_exact"] == 0.5 and got["best_exact_thresh"] == -2.0 and got["best_f1_thresh"] == 1.0
    assert got["f1"] == got["best_f1"] == pytest.approx(2.6 / 4) and got["exact_match"] == 0.25


def test_a_difference_that_is_no_number_is_not_scored():
    with pytest.raises(ValueError, match="question 'b' is not a number"):
        metrics.squad_metrics({"a": ("x", 0.0), "b": ("y", float("nan"))}, {"a": ["x"], "b": []}, True)


def test_the_logit_term_sees_no_padding():
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    student, teacher = torch.randn(2, 1, 5), torch.randn(2, 1, 5)
    values = []
    for junk in (0.0, 99.0):
        views = []
        for x in (student, teacher):
            x = torch.where(mask.bool(), x, junk)
            views.append(
                losses.ModelView({"start_logits": x[0], "end_logits": x[1]}, (), mask, kind=kinds.KINDS["qa"](None))
            )
        values.append(losses.TERMS["logits"](*views, {}, argparse.Namespace(temperature=2.0)))
    torch.testing.assert_close(values[0], values[1])
    expected = losses.soft_logits(student[:, :, :3], teacher[:, :, :3], temperature=2.0)
    torch.testing.assert_close(values[0], expected)


@pytest.mark.parametrize("task", ["squad", "squad_v2"])
def test_teacher_and_student_through_the_command_line(world, tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)  # the cache
    common = (
        f"--task {task} --data_dir {world}/squad --max_seq_length 64 --max_query_length 16 "
        "--doc_stride 16 --max_steps 2"
    ).split()
    teacher = ["--student", str(world / "bert"), "--output_dir", "teacher"]
    student = ["--teacher", "teacher", "--student_layers", "2", "--hard_weight", "1", "--output_dir", "s"]
    for options in (teacher, student):
        AcceleratorState._reset_state(reset_partial_state=True)
        distill_finetune.main(common + options)
    record = json.loads((tmp_path / "s" / "run.json").read_text())
    assert {"f1", "exact_match"} <= set(record["best"]["metrics"]) and record["metric"] == "f1"
    v2 = {"null_threshold", "best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"}
    assert v2 & set(record["best"]["metrics"]) == (v2 if task == "squad_v2" else set())
    predictions = json.loads((tmp_path / "s" / "predictions.json").read_text())
    dev = squad.read_squad(world / "squad" / squad.FILES[task][1], task == "squad_v2", readers.Skipped())
    assert set(predictions) == set(dev["id"]) and all(isinstance(text, str) for text in predictions.values())
    assert AutoModelForQuestionAnswering.from_pretrained(tmp_path / "s").config.num_hidden_layers == 2


def test_no_room_for_a_context_is_refused(finetune, world, tmp_path):
    with pytest.raises(ValueError, match=r"leaves no room for a context.*--max_seq_length 384"):
        finetune(
            *(
                f"--task squad --data_dir {world}/squad --student {world}/bert --max_seq_length 128 "
                f"--output_dir {tmp_path}/run"
            ).split()
        )
