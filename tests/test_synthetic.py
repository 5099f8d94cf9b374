"""The artificial language: files, offsets, tokenizer, and that counting words does not solve it."""

import json
import re
import resource

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import synthetic
from tasks import readers, tagging

SIZES = {"train_size": 3000, "dev_size": 1000, "text_size": 60, "squad_train_size": 120, "squad_dev_size": 160}


def write(folder, seed=1, more=(), **sizes):
    argv = ["--output_dir", str(folder), "--seed", str(seed), *more]
    for name, value in {**SIZES, **sizes}.items():
        argv += [f"--{name}", str(value)]
    synthetic.main(argv)
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def cola_rows(folder, split):
    lines = (folder / "glue" / "CoLA" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


def questions(folder, name):
    for article in json.loads((folder / "squad" / name).read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                yield article["title"], paragraph["context"], qa


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("synthetic") / "data")


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    small = {"train_size": 50, "dev_size": 20, "text_size": 10, "squad_train_size": 20, "squad_dev_size": 10}
    one, same, other = (contents(write(tmp_path / str(i), seed, **small)) for i, seed in enumerate((1, 1, 2)))
    assert one == same
    assert one.keys() == other.keys()
    fixed = {"bert/config.json", "bert/tokenizer.json", "bert/tokenizer_config.json", "bert/vocab.txt"}
    assert {name for name in one if one[name] == other[name]} == fixed


def test_dev_does_not_depend_on_the_training_size(tmp_path, folder):
    other = write(tmp_path / "data", train_size=10, squad_train_size=4)
    for name in ("glue/CoLA/dev.tsv", "glue/CoLA/test.tsv", "squad/dev-v1.1.json", "squad/dev-v2.0.json"):
        assert (other / name).read_bytes() == (folder / name).read_bytes()


def test_finished_folder_is_kept_and_other_options_are_refused(tmp_path, capsys):
    small = {"train_size": 20, "dev_size": 10, "text_size": 5, "squad_train_size": 8, "squad_dev_size": 4}
    data = write(tmp_path / "data", **small)
    before = contents(data)
    write(data, **small)
    with pytest.raises(SystemExit) as error:
        write(data, seed=2, **small)
    assert error.value.code == 2
    assert "other seed" in capsys.readouterr().err
    assert contents(data) == before
    (data / "synthetic.json").unlink()
    with pytest.raises(SystemExit):
        write(data, **small)


@pytest.mark.parametrize("largest", [500, 3_000, 200_000], ids=["text", "tokenizer", "weights"])
def test_a_disk_that_takes_no_more_is_one_line_and_changes_nothing(tmp_path, capsys, largest):
    small = {"train_size": 20, "dev_size": 10, "text_size": 5, "squad_train_size": 8, "squad_dev_size": 4}
    data = write(tmp_path / "data", **small)
    before = contents(data)
    (data / ".tmp-synthetic").mkdir()
    (data / ".tmp-synthetic" / "left").write_text("by a process that was killed")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        for folder, more in ((data, ["--overwrite"]), (tmp_path / "new", [])):
            with pytest.raises(SystemExit) as error:
                write(folder, seed=2, more=more, **small)
            said = capsys.readouterr().err.splitlines()
            assert error.value.code == 1 and len(said) == 1 and f"{folder} cannot be written (" in said[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(data) == before and not (tmp_path / "new").exists()
    write(data, seed=2, more=["--overwrite"], **small)
    assert {path.name for path in data.iterdir()} == {"glue", "squad", "text", "bert", "synthetic.json"}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as error:
        write(tmp_path / "file" / "data")
    said = capsys.readouterr().err
    assert error.value.code == 1 and "cannot be written (Not a directory)" in said and len(said.splitlines()) == 1


def test_files_of_others_stay_when_ours_are_replaced(tmp_path):
    small = {"train_size": 20, "dev_size": 10, "text_size": 5, "squad_train_size": 8, "squad_dev_size": 4}
    data = write(tmp_path / "data", **small)
    (data / "glue" / "SST-2").mkdir()
    (data / "glue" / "SST-2" / "train.tsv").write_text("real")
    before = contents(data)
    write(data, seed=2, more=["--overwrite"], **small)
    after = contents(data)
    assert after["glue/SST-2/train.tsv"] == b"real" and after.keys() == before.keys()
    assert after["glue/CoLA/train.tsv"] != before["glue/CoLA/train.tsv"]


def test_sizes_below_one_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        write(tmp_path / "data", dev_size=0)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert "--dev_size: '0' must be a whole number at least 1" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_a_folder_without_a_name_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("", " "):
        with pytest.raises(SystemExit) as error:
            synthetic.main(["--output_dir", name])
        assert error.value.code == 2
        said = capsys.readouterr().err
        assert f"--output_dir: {name!r} names no folder" in said and len(said.splitlines()) == 1
    assert not contents(tmp_path)


def test_cola_files_look_as_published(folder):
    for split, size in (("train", SIZES["train_size"]), ("dev", SIZES["dev_size"])):
        rows = cola_rows(folder, split)
        assert len(rows) == size
        assert all(len(row) == 4 and (row[1], row[2]) in {("1", ""), ("0", "*")} for row in rows)
        assert all((row[0] == "ok") == (row[1] == "1") for row in rows)
        assert all(4 <= len(row[3].split()) <= 16 and row[3][0].isupper() and row[3][-1] == "." for row in rows)
        assert 0.5 < sum(row[1] == "1" for row in rows) / size < 0.7
        assert {row[0] for row in rows} == {"ok", *synthetic.EDIT_WEIGHTS}
    header, *rows = cola_rows(folder, "test")
    assert header == ["index", "sentence"]
    assert [row[0] for row in rows] == [str(i) for i in range(SIZES["dev_size"])]
    assert {len(row) for row in rows} == {2}


def test_no_sentence_stands_in_two_places(folder):
    sentences = [row[-1] for split in ("train", "dev", "test") for row in cola_rows(folder, split)[split == "test" :]]
    assert len(sentences) == len(set(sentences))
    held_out = {row[-1] for split in ("dev", "test") for row in cola_rows(folder, split)}
    for name in ("train.txt", "valid.txt"):
        text = (folder / "text" / name).read_text(encoding="utf-8").replace("\n", " ")
        assert not held_out & {sentence.strip() + "." for sentence in text.split(".")}


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_offsets_are_exact(folder, version):
    contexts, ids = {}, []
    for split in ("train", "dev"):
        rows = list(questions(folder, f"{split}-v{version}.json"))
        assert len(rows) == SIZES[f"squad_{split}_size"]
        contexts[split] = {context for _, context, _ in rows}
        for _, context, qa in rows:
            ids.append(qa["id"])
            assert qa["question"][0].isupper() and qa["question"][-1] == "?"
            assert bool(qa["answers"]) != qa.get("is_impossible", False)
            assert len(qa["answers"]) <= (3 if split == "dev" else 1)
            for answer in qa["answers"]:
                start, text = answer["answer_start"], answer["text"]
                assert context[start : start + len(text)] == text
                # Whole words: what stands on either side is a border.
                assert start == 0 or context[start - 1] == " "
                assert context[start + len(text)] in " ."
        if split == "dev":
            assert {len(qa["answers"]) for *_, qa in rows} >= {1, 2, 3}
        impossible = sum(qa.get("is_impossible", False) for *_, qa in rows)
        assert impossible == 0 if version == "1.1" else 0.15 < impossible / len(rows) < 0.5
    assert len(ids) == len(set(ids))
    assert not contexts["train"] & contexts["dev"]


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_questions_are_answered_by_exactly_one_sentence(folder, version):
    """All nouns and the verb of a question stand in one sentence, which holds the answer; of an impossible one nowhere.

    Other sentences of the same kind are there: question word and form alone do not find the answer.
    """
    lemma_of = {
        form: lemma
        for pool in (synthetic.NOUNS, synthetic.TRANSITIVE)
        for lemmas in pool.values()
        for lemma in lemmas
        for form in (lemma, synthetic.add_s(lemma))
    }
    checked, sharing = {False: 0, True: 0}, 0
    for _, context, qa in questions(folder, f"train-v{version}.json"):
        wanted = {lemma_of[word] for word in qa["question"][:-1].lower().split() if word in lemma_of}
        sentences = [(s, {lemma_of[w] for w in s.lower().split() if w in lemma_of}) for s in context[:-1].split(". ")]
        matching = [sentence for sentence, lemmas in sentences if wanted <= lemmas]
        impossible = qa.get("is_impossible", False)
        checked[impossible] += 1
        assert len(wanted) >= 2 and len(sentences) >= 2
        assert len(matching) == (0 if impossible else 1)
        if not impossible:
            begin = context.index(matching[0])
            assert begin <= qa["answers"][0]["answer_start"] < begin + len(matching[0])
            assert qa["answers"][0]["text"] in matching[0]
        elif len({s for s, lemmas in sentences if wanted & lemmas}) > 1:
            sharing += 1
    assert checked[False] > 20 and (version == "1.1" or checked[True] == sharing > 5)


def test_tokenizer_knows_every_word(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    texts = [row[-1] for split in ("train", "dev", "test") for row in cola_rows(folder, split)[split == "test" :]]
    lines = (folder / "text" / "train.txt").read_text(encoding="utf-8").splitlines()
    squad = list(questions(folder, "train-v2.0.json")) + list(questions(folder, "dev-v1.1.json"))
    texts += lines + [context for _, context, _ in squad] + [qa["question"] for *_, qa in squad]
    encoded = tokenizer(texts)["input_ids"]
    assert tokenizer.unk_token_id not in {token for ids in encoded for token in ids}
    # One piece a word: [CLS], the words, the full stops and question marks, [SEP].
    for text, ids in zip(texts, encoded, strict=True):
        assert len(ids) == 2 + len(text.split()) + text.count(".") + text.count("?")
    assert tokenizer.unk_token_id not in tokenizer("Unseen words, 42 of them!")["input_ids"]


def test_bert_folder_loads_as_a_pretrained_model(folder):
    config = AutoConfig.from_pretrained(folder / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    assert config.vocab_size == len(tokenizer)
    one, two = (AutoModelForSequenceClassification.from_pretrained(folder / "bert").bert for _ in range(2))
    one.pooler = two.pooler = None  # as in published BERT folders for masked words, the pooler is not stored
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def bag_of_words(tokenizer, sentences):
    counts = torch.zeros(len(sentences), len(tokenizer))
    for row, ids in zip(counts, tokenizer(sentences, add_special_tokens=False)["input_ids"], strict=True):
        row.index_add_(0, torch.tensor(ids), torch.ones(len(ids)))
    return counts


def matthews(predicted, labels):
    return torch.corrcoef(torch.stack([predicted.float(), labels.float()]))[0, 1].nan_to_num(0.0).item()


def fit_bag_of_words(features, labels):
    weight = torch.zeros(features.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        scores = features @ weight[:-1] + weight[-1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def test_counting_words_does_not_solve_the_task(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    data = {}
    for split in ("train", "dev"):
        rows = cola_rows(folder, split)
        labels = torch.tensor([float(row[1]) for row in rows])
        data[split] = bag_of_words(tokenizer, [row[3] for row in rows]), labels
    weight = fit_bag_of_words(*data["train"])
    features, labels = data["dev"]
    assert matthews(features @ weight[:-1] + weight[-1] > 0, labels) < 0.3
    # The same regression does learn what counts can tell, so the bound above says something.
    plural = (features[:, tokenizer.convert_tokens_to_ids("the")] > 0).float()
    weight = fit_bag_of_words(features, plural)
    assert matthews(features @ weight[:-1] + weight[-1] > 0, plural) > 0.9


def test_a_second_language_has_the_same_grammar_and_other_words(tmp_path, capsys):
    sizes = {"train_size": 80, "dev_size": 20, "text_size": 20, "squad_train_size": 8, "squad_dev_size": 20}
    data, plain = write(tmp_path / "two", more=["--second_language"], **sizes), write(tmp_path / "one", **sizes)
    for name in ("text/train.txt", "squad/dev-v1.1.json", "glue/CoLA/train.tsv"):
        assert (data / name).read_bytes() == (plain / name).read_bytes()
    first, second = ((data / x / "text/train.txt").read_text() for x in (".", "second"))
    words = [set(re.findall("[a-z]+", text.lower())) for text in (first, second)]
    shared = len([w for w in second.lower().split() if w.strip(".") in words[0]]) / len(second.split())
    assert 0.1 < shared < 0.2 and len(words[1] - words[0]) > 0.8 * len(words[0])
    one, other = (list(questions(data / x, "dev-v1.1.json")) for x in (".", "second"))
    for (_, context, qa), (_, translated, theirs) in zip(one, other, strict=True):
        assert context.translate(synthetic.SECOND) == translated and qa["id"] == theirs["id"]
        for answer in theirs["answers"]:
            at = answer["answer_start"]
            assert translated[at : at + len(answer["text"])] == answer["text"]
    tags = [
        tagging.read_columns(data / x / "ud/dev.conllu", 1, "upos", readers.Skipped(), True) for x in (".", "second")
    ]
    assert [s.tags for s in tags[0]] == [s.tags for s in tags[1]] and len(tags[0]) == 20
    assert not {w for s in tags[0] for w in s.words if len(w) > 1} & {w for s in tags[1] for w in s.words}
    tokenizer = AutoTokenizer.from_pretrained(data / "bert")
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words[0] | words[1])
    with pytest.raises(SystemExit):
        write(data, **sizes)
    assert "other second_language" in capsys.readouterr().err
