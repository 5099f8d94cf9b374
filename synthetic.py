"""Write a small artificial language as GLUE (CoLA), SQuAD and plain-text files, with an untrained BERT that reads it.

Counting words does not solve the acceptability task: an unacceptable sentence is an acceptable one after one edit that
keeps the unigram statistics (a flipped number, another noun class, two words swapped). The first column of the CoLA
files names the edit, agr, det, refl, sel or order, or says "ok". --second_language adds parts of speech, and all of it
in a language with the same grammar and other words.

    python synthetic.py --output_dir data/synthetic
"""

import contextlib
import json
import os
import random
import shutil
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError
from transformers import BertConfig, BertForMaskedLM, BertTokenizer
from transformers.utils.logging import disable_progress_bar

from options import Parser, named_folder, number

GRAMMAR_VERSION = 2  # raise it when a seed gives other files, so that old folders are noticed

# Every noun and adjective begins with a consonant, so that "a" never has to become "an".
MALE = ["man", "boy", "king", "monk"]
FEMALE = ["woman", "girl", "queen", "nun"]
ANIMALS = ["cat", "dog", "bird", "horse"]
THINGS = ["box", "lamp", "boat", "door", "bell", "piano", "coat", "wheel"]
NOUNS = {"animate": MALE + FEMALE + ANIMALS, "thing": THINGS}
OTHER_CLASS = {"animate": "thing", "thing": "animate"}
TRANSITIVE = {  # by the class of the object; the subject is always animate
    "animate": ["chase", "greet", "teach", "praise"],
    "thing": ["repair", "build", "paint", "carry"],
}
INTRANSITIVE = {  # by the class of the subject
    "animate": ["sleep", "sing", "laugh", "jump"],
    "thing": ["rattle", "break", "creak", "leak"],
}
SPEECH = ["say", "know", "think"]
ADJECTIVES = ["small", "big", "tall", "dark", "red", "white"]
ADVERBS = ["quietly", "slowly", "today", "daily", "here"]
PREPOSITIONS = ["near", "behind", "under"]
DETERMINERS = {"sg": ["a", "this", "every"], "pl": ["these", "many", "several"], "any": ["the", "my"]}
OTHER_NUMBER = {"sg": "pl", "pl": "sg"}
IRREGULAR = {"man": "men", "woman": "women"}
REFLEXIVES = ["himself", "herself", "themselves"]
FUNCTION_WORDS = ["that", "and", "does", "do", "not", "who", "what", "where"]
EDIT_WEIGHTS = {"agr": 4, "det": 3, "refl": 3, "sel": 2, "order": 3}
ACCEPTABLE_SHARE = 0.55
MIN_WORDS, MAX_WORDS = 4, 16
FACT_WEIGHTS = {2: 60, 3: 28, 4: 10, 8: 2}  # facts of a SQuAD paragraph; 8 make two windows of 48 tokens
FACT_ADJECTIVE_SHARE = 0.1
# Adjacent words of these roles are never acceptable in the other order.
FIXED_ORDER = {("det", "noun"), ("det", "adj"), ("adj", "noun"), ("prep", "det"), ("verb", "det"), ("verb", "refl")}

# Other languages exchange letters: vowels for vowels, consonants for consonants. Positions in a text stay the same.
SECOND, THIRD = (
    str.maketrans("aeiouAEIOU" + "bcdfghjklmnpqrstvwxyz" + "bcdfghjklmnpqrstvwxyz".upper(), vowels + consonants)
    for vowels, consonants in (
        ("iuaoeIUAOE", "ktrnmbsdgzplvfhjcwyqx" + "ktrnmbsdgzplvfhjcwyqx".upper()),
        ("oaeuiOAEUI", "mlkzqtwvrxhsbgcdnfpjy" + "mlkzqtwvrxhsbgcdnfpjy".upper()),
    )
)
LOANS = 0.15  # share of words that texts of the second language borrow from the first
PARTS_OF_SPEECH = {"bare": "VERB", "prep": "ADP", "that": "SCONJ", "and": "CCONJ", "not": "PART", "refl": "PRON"}


@dataclass(frozen=True)
class Word:
    """One word: its form, its role, and the features that the edits use."""

    form: str
    role: str
    lemma: str = ""
    number: str = ""  # of nouns, finite verbs and determiners that show it
    noun_class: str = ""  # of nouns whose class a verb selects
    main: bool = False  # finite verb of the first clause


def add_s(lemma):
    """Return the plural of a noun or the third person singular of a verb."""
    if lemma in IRREGULAR:
        return IRREGULAR[lemma]
    if lemma.endswith(("s", "x", "ch", "sh")):
        return lemma + "es"
    if lemma.endswith("y") and lemma[-2] not in "aeiou":
        return lemma[:-1] + "ies"
    return lemma + "s"


def noun_form(lemma, number):
    """Return the form of a noun in the given number, "sg" or "pl"."""
    return add_s(lemma) if number == "pl" else lemma


def verb_form(lemma, number):
    """Return the present form of a verb, or of the auxiliary "do", for a subject of the given number."""
    if number == "pl":
        return lemma
    return "does" if lemma == "do" else add_s(lemma)


def noun_phrase(rng, noun_class, *, number=None, lemma=None, governed=False):
    """Return (Words, number) of a determiner, perhaps an adjective, and a noun."""
    number = number or rng.choice(["sg", "pl"])
    lemma = lemma or rng.choice(NOUNS[noun_class])
    shown = "any" if rng.random() < 0.4 else number
    words = [Word(rng.choice(DETERMINERS[shown]), "det", number="" if shown == "any" else number)]
    if rng.random() < 0.2:
        words.append(Word(rng.choice(ADJECTIVES), "adj"))
    words.append(Word(noun_form(lemma, number), "noun", lemma, number, noun_class if governed else ""))
    return words, number


def finite_verb(rng, lemma, number, *, main=False):
    """Return the finite verb as a list of Words, sometimes as "does not" and the bare verb."""
    if rng.random() < 0.1:
        return [Word(verb_form("do", number), "verb", "do", number, main=main), Word("not", "not"), Word(lemma, "bare")]
    return [Word(verb_form(lemma, number), "verb", lemma, number, main=main)]


def preposition_phrase(rng):
    """Return a preposition and a noun phrase of either class; in a subject it is a distractor."""
    return [Word(rng.choice(PREPOSITIONS), "prep"), *noun_phrase(rng, rng.choice(list(NOUNS)))[0]]


def modifier(rng, noun_class, number):
    """Return the modifier after a subject noun: nothing, a preposition phrase or a relative clause."""
    kind = rng.random()
    if kind < 0.84:
        return [] if kind < 0.64 else preposition_phrase(rng)
    that = [Word("that", "that")]
    if kind < 0.92:
        inner, inner_number = noun_phrase(rng, "animate")
        return that + inner + finite_verb(rng, rng.choice(TRANSITIVE[noun_class]), inner_number)
    if noun_class == "thing":
        return that + finite_verb(rng, rng.choice(INTRANSITIVE[noun_class]), number)
    target = rng.choice(list(NOUNS))
    return that + finite_verb(rng, rng.choice(TRANSITIVE[target]), number) + noun_phrase(rng, target, governed=True)[0]


def clause(rng, *, main=False, plain=False):
    """Return an acceptable clause as a list of Words; `plain` leaves out modifiers of the subject."""
    kind = rng.choices(["intransitive", "transitive", "reflexive"], [3, 5, 3])[0]
    if kind == "intransitive":
        subject_class = rng.choice(list(NOUNS))
        subject, number = noun_phrase(rng, subject_class)
        rest = finite_verb(rng, rng.choice(INTRANSITIVE[subject_class]), number, main=main)
        tail = rng.random()
        rest += [Word(rng.choice(ADVERBS), "adv")] if tail < 0.4 else preposition_phrase(rng) if tail < 0.7 else []
    elif kind == "transitive":
        subject_class, target = "animate", rng.choice(list(NOUNS))
        subject, number = noun_phrase(rng, subject_class)
        rest = finite_verb(rng, rng.choice(TRANSITIVE[target]), number, main=main)
        rest += noun_phrase(rng, target, governed=True)[0]
    else:
        subject_class, reflexive = "animate", rng.choices(REFLEXIVES, [3, 3, 4])[0]
        group = {"himself": MALE, "herself": FEMALE, "themselves": MALE + FEMALE}[reflexive]
        number = "pl" if reflexive == "themselves" else "sg"
        subject, _ = noun_phrase(rng, subject_class, number=number, lemma=rng.choice(group))
        rest = finite_verb(rng, rng.choice(TRANSITIVE["animate"]), number, main=main) + [Word(reflexive, "refl")]
    if not plain:
        subject = subject + modifier(rng, subject_class, number)
    return subject + rest


def acceptable(rng):
    """Return an acceptable sentence of MIN_WORDS to MAX_WORDS Words, without its full stop."""
    while True:
        kind = rng.random()
        if kind < 0.86:
            words = clause(rng, main=True)
        elif kind < 0.93:
            subject, number = noun_phrase(rng, "animate", lemma=rng.choice(MALE + FEMALE))
            verb = finite_verb(rng, rng.choice(SPEECH), number, main=True)
            words = subject + verb + [Word("that", "that")] + clause(rng, plain=True)
        else:
            words = clause(rng, main=True, plain=True) + [Word("and", "and")] + clause(rng, plain=True)
        if MIN_WORDS <= len(words) <= MAX_WORDS:
            return words


def reorder(rng, words):
    """Return the words with two neighbours exchanged, or with the verb moved across its object or to the front."""
    swaps = [i for i in range(len(words) - 1) if (words[i].role, words[i + 1].role) in FIXED_ORDER]
    at = next(i for i, word in enumerate(words) if word.main)
    if rng.random() < 0.6:
        i = rng.choice(swaps)
        return words[:i] + [words[i + 1], words[i]] + words[i + 2 :]
    rest = words[:at] + words[at + 1 :]
    if at + 1 < len(words) and words[at + 1].role == "det" and "and" not in {word.role for word in words}:
        return rest + [words[at]]
    return [words[at]] + rest


def edited(rng, words, kind, i):
    """Return the words after the edit `kind` at position i (order chooses its own position)."""
    if kind == "order":
        return reorder(rng, words)
    word = words[i]
    number = OTHER_NUMBER.get(word.number)
    if kind == "agr":
        new = replace(word, form=verb_form(word.lemma, number), number=number)
    elif kind == "det":
        new = replace(word, form=rng.choice(DETERMINERS[number]), number=number)
    elif kind == "refl":
        # These odds keep himself : herself : themselves at 3 : 3 : 4 in the edited sentences too.
        himself, herself, themselves = REFLEXIVES
        if word.form == themselves:
            form = rng.choice([himself, herself])
        else:
            form = themselves if rng.random() < 2 / 3 else herself if word.form == himself else himself
        new = replace(word, form=form)
    else:
        lemma = rng.choice(NOUNS[OTHER_CLASS[word.noun_class]])
        new = replace(word, form=noun_form(lemma, word.number), lemma=lemma)
    return words[:i] + [new] + words[i + 1 :]


def unacceptable(rng, words):
    """Return the name of an edit that applies to this acceptable sentence, and the edited sentence."""
    places = {
        "agr": [i for i, word in enumerate(words) if word.role == "verb"],
        "det": [i for i, word in enumerate(words) if word.role == "det" and word.number],
        "refl": [i for i, word in enumerate(words) if word.role == "refl"],
        "sel": [i for i, word in enumerate(words) if word.noun_class],
        "order": [0],
    }
    kinds = [kind for kind in EDIT_WEIGHTS if places[kind]]
    kind = rng.choices(kinds, [EDIT_WEIGHTS[k] for k in kinds])[0]
    return kind, edited(rng, words, kind, rng.choice(places[kind]))


def as_text(words, mark="."):
    """Return Words, or strings, as one written sentence."""
    text = " ".join(word if isinstance(word, str) else word.form for word in words)
    return text[0].upper() + text[1:] + mark


def acceptability(rng, size, seen):
    """Return `size` rows (edit, label, sentence) with sentences that are not in the set `seen`; add them to it."""
    rows = []
    while len(rows) < size:
        kind, words = "ok", acceptable(rng)
        if rng.random() >= ACCEPTABLE_SHARE:
            kind, words = unacceptable(rng, words)
        text = as_text(words)
        if text not in seen:
            seen.add(text)
            rows.append((kind, int(kind == "ok"), text))
    return rows


def write_lines(path, lines):
    """Write lines as UTF-8 with Unix line ends, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def write_cola(folder, args, seen):
    """Write train.tsv, dev.tsv and test.tsv as CoLA publishes them."""
    rng = random.Random(f"{args.seed}-cola")
    # Dev and test come first, so that the training size does not change them.
    for split, size in {"dev": args.dev_size, "test": args.dev_size, "train": args.train_size}.items():
        rows = acceptability(rng, size, seen)
        if split == "test":
            lines = ["index\tsentence"] + [f"{i}\t{text}" for i, (_, _, text) in enumerate(rows)]
        else:
            lines = [f"{kind}\t{label}\t{'' if label else '*'}\t{text}" for kind, label, text in rows]
        write_lines(folder / f"{split}.tsv", lines)


def write_text(folder, args, seen, name="text"):
    """Write train.txt and valid.txt, a paragraph a line, without sentences of the CoLA files; name: of the draw."""
    rng = random.Random(f"{args.seed}-{name}")
    for split, size in {"valid": max(1, args.text_size // 10), "train": args.text_size}.items():
        lines = []
        for _ in range(size):
            texts = [as_text(acceptable(rng)) for _ in range(rng.randint(4, 8))]
            lines.append(" ".join(text for text in texts if text not in seen) or texts[0])
        write_lines(folder / f"{split}.txt", lines)


def plain_noun_phrase(rng, lemma):
    """Return (words, number) of a determiner, rarely an adjective, and the noun, as strings."""
    number = rng.choice(["sg", "pl"])
    words = [rng.choice(DETERMINERS[rng.choice(["any", number])]), noun_form(lemma, number)]
    if rng.random() < FACT_ADJECTIVE_SHARE:
        words.insert(1, rng.choice(ADJECTIVES))
    return words, number


def fact(rng, nouns, verbs):
    """Return (sentence, [(question, answer words)]) about nouns and a verb, which it takes out of the pools."""
    kind = rng.choice([kind for kind in verbs if verbs[kind]])
    lemma = verbs[kind].pop()
    subject, number = plain_noun_phrase(rng, nouns["animate"].pop())
    target, _ = plain_noun_phrase(rng, nouns[kind].pop())
    asked = {"animate": "who", "thing": "what"}[kind]
    finite, tail = verb_form(lemma, number), [verb_form("do", number), "the", subject[-1], lemma]
    # The last two name the noun of the answer: they are easier, and a model learns them first.
    questions = [
        (as_text([asked, *tail], "?"), target),
        (as_text(["who", add_s(lemma), "the", target[-1]], "?"), subject),
        (as_text(["what", target[-1], *tail], "?"), target),
        (as_text(["what", subject[-1], finite, "the", target[-1]], "?"), subject),
    ]
    return as_text([*subject, finite, *target]), questions


def paragraph(rng):
    """Return (context, answerable, impossible): questions with answer words and offset, and questions without.

    Two facts of a paragraph share no noun and no verb, so one sentence answers a question, though the question's form
    fits the others just as well.
    """
    nouns = {key: rng.sample(lemmas, len(lemmas)) for key, lemmas in NOUNS.items()}
    verbs = {key: rng.sample(lemmas, len(lemmas)) for key, lemmas in TRANSITIVE.items()}
    facts = [fact(rng, nouns, verbs) for _ in range(rng.choices(list(FACT_WEIGHTS), FACT_WEIGHTS.values())[0])]
    context = " ".join(sentence for sentence, _ in facts)
    answerable, start = [], 0
    for sentence, questions in facts:
        for question, words in questions:
            # Lower case, since a subject begins its sentence. Every noun occurs once, so the place is unique.
            answerable.append((question, words, start + sentence.lower().index(" ".join(words))))
        start += len(sentence) + 1
    # The subject of one fact with the verb of another: the words occur, the answer does not.
    heads = [question[:-1].split() for _, ((question, _), *_) in facts]
    pairs = zip(heads, heads[1:] + heads[:1], strict=True)
    impossible = [" ".join([*mine[:1], *other[1:-1], mine[-1]]) + "?" for mine, other in pairs]
    return context, answerable, impossible


def gold_answers(rng, context, words, start, several):
    """Return one gold answer, as in SQuAD's training sets, or one to three nested ones, as in its dev sets."""
    spans = [(start, start + len(" ".join(words)))]
    if several:
        # Shorter spans leave out the determiner, then also the adjective, and end at the same place.
        shorter = [len(" ".join(words[:k])) + 1 for k in range(1, len(words))]
        spans += [(start + skip, spans[0][1]) for skip in shorter[: rng.randint(0, 2)]]
    return [{"text": context[a:b], "answer_start": a} for a, b in spans]


def squad_articles(rng, size, split, seen, *, impossible_share=0.0):
    """Return SQuAD articles with `size` questions in all, about contexts that are not in the set `seen`."""
    articles, count = [], 0
    while count < size:
        paragraphs = []
        while count < size and len(paragraphs) < 4:
            context, answerable, impossible = paragraph(rng)
            if context in seen:
                continue
            seen.add(context)
            qas = []
            for question, words, start in rng.sample(answerable, min(4, len(answerable), size - count)):
                qa = {"id": f"{split}-{count:06d}", "question": question}
                if impossible_share:
                    qa["is_impossible"] = bool(impossible) and rng.random() < impossible_share
                if qa.get("is_impossible"):
                    qa |= {"question": impossible.pop(), "answers": []}
                else:
                    qa["answers"] = gold_answers(rng, context, words, start, several=split.startswith("dev"))
                qas.append(qa)
                count += 1
            paragraphs.append({"context": context, "qas": qas})
        articles.append({"title": f"Synthetic_{split}_{len(articles):04d}", "paragraphs": paragraphs})
    return articles


def write_squad(folder, args):
    """Write train and dev files of SQuAD 1.1 and of SQuAD 2.0; about a third of the questions of 2.0 have no answer."""
    for version, share in {"1.1": 0.0, "2.0": 1 / 3}.items():
        rng = random.Random(f"{args.seed}-squad-{version}")
        seen = set()
        for split, size in {"dev": args.squad_dev_size, "train": args.squad_train_size}.items():
            articles = squad_articles(rng, size, f"{split}-v{version}", seen, impossible_share=share)
            text = json.dumps({"version": version if share == 0 else "v2.0", "data": articles})
            write_lines(folder / f"{split}-v{version}.json", [text])


def write_tags(folder, args):
    """Write train.conllu and dev.conllu: sentences with the part of speech of every word."""
    rng = random.Random(f"{args.seed}-tags")
    for split, size in {"dev": args.dev_size, "train": args.train_size // 8}.items():
        lines = []
        for _ in range(size):
            for i, word in enumerate([*acceptable(rng), Word(".", "punct")], 1):
                tag = "AUX" if word.lemma == "do" else PARTS_OF_SPEECH.get(word.role, word.role.upper())
                lines.append(f"{i}\t{word.form}\t_\t{tag}" + "\t_" * 6)
            lines.append("")
        write_lines(folder / f"{split}.conllu", lines)


def write_second_language(folder, args, seen):
    """Write text/, squad/ and ud/ of the second language; its evaluation files are translations of the first's.

    Its texts are new ones with LOANS, from which a model learns that the two languages share a grammar.
    """
    rng = random.Random(f"{args.seed}-loans")
    write_text(folder / "second" / "text", args, seen, "second")
    for path in sorted((folder / "second" / "text").iterdir()):
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [" ".join(w if rng.random() < LOANS else w.translate(SECOND) for w in words) for words in lines]
        write_lines(path, lines)
    rows = [line.split("\t", 2) for line in (folder / "ud" / "dev.conllu").read_text(encoding="utf-8").splitlines()]
    lines = ["\t".join([row[0], row[1].translate(SECOND), row[2]]) if len(row) > 1 else "" for row in rows]
    write_lines(folder / "second" / "ud" / "dev.conllu", lines)
    squad = json.loads((folder / "squad" / "dev-v1.1.json").read_text(encoding="utf-8"))
    for text in (part for article in squad["data"] for part in article["paragraphs"]):
        text["context"] = text["context"].translate(SECOND)
        for qa in text["qas"]:
            qa["question"] = qa["question"].translate(SECOND)
            qa["answers"] = [answer | {"text": answer["text"].translate(SECOND)} for answer in qa["answers"]]
    write_lines(folder / "second" / "squad" / "dev-v1.1.json", [json.dumps(squad)])


def vocabulary(languages=()):
    """Return the WordPiece vocabulary: special tokens, punctuation, word forms, then single characters.

    languages: more languages for the word forms.
    """
    forms = [form for lemmas in NOUNS.values() for lemma in lemmas for form in (lemma, add_s(lemma))]
    verbs = [*SPEECH, *(v for table in (TRANSITIVE, INTRANSITIVE) for lemmas in table.values() for v in lemmas)]
    forms += [form for lemma in verbs for form in (lemma, add_s(lemma))]
    forms += ADJECTIVES + ADVERBS + PREPOSITIONS + REFLEXIVES + FUNCTION_WORDS
    forms += [determiner for group in DETERMINERS.values() for determiner in group]
    forms += [form.translate(language) for language in languages for form in forms]
    # With characters the tokenizer reads words that are not in the language.
    characters = list("abcdefghijklmnopqrstuvwxyz0123456789")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,?!'\"-:;()", *forms, *characters]
    return list(dict.fromkeys(pieces + ["##" + character for character in characters]))


def write_bert(folder, args):
    """Write a 4-layer BERT with seeded, untrained weights and its tokenizer as a Hugging Face folder."""
    vocab = vocabulary((SECOND, THIRD) if args.second_language else ())
    write_lines(folder / "vocab.txt", vocab)
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=True, model_max_length=384)
    # Larger initial weights and no dropout: this size learns faster from little data.
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=384,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        model = BertForMaskedLM(config)
    disable_progress_bar()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def build_parser():
    """Return the command line's parser."""
    parser = Parser(prog="synthetic.py", description=__doc__.split("\n")[0])
    add, size = parser.add_argument, number(int, 1)
    add("--output_dir", type=named_folder, required=True, help="folder for glue/, squad/, text/ and bert/")
    add("--overwrite", action="store_true", help="replace files written there with other options")
    add("--second_language", action="store_true", help="also ud/, second/, and a model of a third language's words")
    add("--train_size", type=size, default=32000, help="CoLA training sentences")
    add("--dev_size", type=size, default=1000, help="CoLA dev sentences, and as many test sentences")
    add("--text_size", type=size, default=2000, help="paragraphs of train.txt; valid.txt has a tenth")
    add("--squad_train_size", type=size, default=16000, help="SQuAD training questions per version")
    add("--squad_dev_size", type=size, default=500, help="SQuAD dev questions per version")
    add("--seed", type=number(int, -(2**63), 2**63 - 1), default=1, help="seed of sentences and weights")
    return parser


def check_args(args):
    """Raise ValueError if the folder holds files that were made with other options."""
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise ValueError(f"--output_dir {args.output_dir} is a file: name a folder")
    names = ("glue", "squad", "text", "bert", "ud", "second")
    present = [name for name in names if (args.output_dir / name).exists()]
    if args.overwrite or not present:
        return
    old, now, remedy = read_record(args.output_dir), options(args), "choose another --output_dir or add --overwrite"
    if old is None:
        raise ValueError(f"{args.output_dir} holds {', '.join(present)}, but not from this script: {remedy}")
    if differing := [name for name in {**now, "second_language": None} if old.get(name) != now.get(name)]:
        raise ValueError(f"{args.output_dir} was written with other {', '.join(differing)}: {remedy}")


def options(args):
    """Return the options that determine the files, as a dict."""
    names = ("train_size", "dev_size", "text_size", "squad_train_size", "squad_dev_size", "seed")
    found = {"grammar_version": GRAMMAR_VERSION, **{name: getattr(args, name) for name in names}}
    return found | ({"second_language": True} if args.second_language else {})  # older folders have no such entry


def read_record(folder):
    """Return synthetic.json of the folder as a dict; None if it is missing or unreadable."""
    try:
        return json.loads((folder / "synthetic.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_all(args):
    """Write all files to a temporary folder, then move them to their places; a failure leaves the old files."""
    folder, record = args.output_dir, options(args)
    temporary, new = folder / ".tmp-synthetic", not folder.exists()
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
        temporary.mkdir(parents=True)
        seen = set()
        write_cola(temporary / "glue" / "CoLA", args, seen)
        write_text(temporary / "text", args, seen)
        write_squad(temporary / "squad", args)
        if args.second_language:
            write_tags(temporary / "ud", args)
            write_second_language(temporary, args, seen)
        write_bert(temporary / "bert", args)
        files = [path.relative_to(temporary) for path in sorted(temporary.rglob("*")) if path.is_file()]
        for name, complete in (("incomplete", False), ("complete", True)):
            write_lines(temporary / name, [json.dumps({**record, "complete": complete}, indent=2)])
        os.replace(temporary / "incomplete", folder / "synthetic.json")
        for path in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / path, folder / path)
        os.replace(temporary / "complete", folder / "synthetic.json")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # after a failure it is empty


def main(argv=None):
    """Write all files, unless they are already complete with the same options.

    A user's mistake ends in one line and exit status 2, a folder that cannot be written in one line and status 1.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    folder = args.output_dir
    try:
        check_args(args)
        if read_record(folder) == {**options(args), "complete": True} and not args.overwrite:
            print(f"{folder}: already written with these options")
            return
        write_all(args)
    except ValueError as error:
        parser.error(str(error))
    except Exception as error:
        # A full disk is an OSError in Python, a SafetensorError in safetensors and a plain Exception in tokenizers.
        if not isinstance(error, (OSError, SafetensorError)) and type(error) is not Exception:
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        parser.exit(
            1,
            f"synthetic.py: error: {folder} cannot be written ({reason}): make room or choose another "
            "--output_dir; what was there before is unchanged\n",
        )
    print(
        f"{folder}: {args.train_size} + {args.dev_size} sentences, {args.squad_train_size} + {args.squad_dev_size} "
        f"questions, {args.text_size} paragraphs"
    )


if __name__ == "__main__":
    main()
