"""Names of labels: a task's, those that other people's models have for the same, and the order between the two."""

import re
from decimal import Decimal
from typing import NamedTuple

# Names without case, blanks and punctuation that mean the same; a name may stand in one line only.
SYNONYMS = (
    ("unacceptable", "ungrammatical", "notacceptable", "notgrammatical"),
    ("acceptable", "grammatical"),
    ("negative", "neg"),
    ("positive", "pos"),
    ("notequivalent", "nonequivalent", "notparaphrase", "nonparaphrase", "notduplicate", "nonduplicate"),
    ("equivalent", "paraphrase", "duplicate", "isduplicate"),
    ("entailment", "entail", "entails", "entailed"),
    ("neutral",),
    ("contradiction", "contradict", "contradicts", "contradictory"),
    ("notentailment", "nonentailment", "notentail", "notentailed"),
)
CANONICAL = {name: names[0] for names in SYNONYMS for name in names}


# A number as tables have it; Python's float() also takes 1_5, infinity and digits of other scripts.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)


def numeric(word):
    """What a word says if it is a finite decimal number, exactly; None if it is none."""
    word = word.strip()
    return Decimal(word) if NUMBER.fullmatch(word) else None


def in_order(words):
    """Words of labels in the order of their ids: by value where all are numbers, else as text; a list."""
    values = {word: numeric(word) for word in words}
    return sorted(values, key=str if None in values.values() else lambda word: (values[word], word))


def plain(name):
    """The name without case, blanks and punctuation."""
    return re.sub(r"[\W_]+", "", name).casefold()


def canonical(name):
    """The first of the names that mean the same."""
    return CANONICAL.get(plain(name), plain(name))


class Labels(NamedTuple):
    """The labels of a task, in the order of their ids.

    words: as its files spell them. names: as a saved model says them. given: {another model's name: word or name}, what
    the user says of a model, which comes before all matching.
    """

    words: tuple
    names: tuple
    given: dict

    def number(self, name):
        """The id of a word or name, by the first likeness that decides; None if none does."""
        for key in (str, str.casefold, plain, canonical):
            found = [i for i, own in enumerate(zip(self.words, self.names, strict=True)) if key(name) in map(key, own)]
            if len(found) == 1:
                return found[0]
        return None

    def order(self, stored):
        """For each label its place among the names that a model has stored; None if these say something else.

        LABEL_k is the word k where the words are the numbers from 0 on. Else LABEL_0, LABEL_1, ... say nothing and are
        taken in order, as numbers are where the task's words are none.
        """
        given = self.given if set(self.given) == set(stored) else {}
        numbers = [self.number(given.get(name, name)) for name in stored]
        if not given and numbers == [None] * len(stored) and all(re.fullmatch(r"(LABEL_)?\d+", s) for s in stored):
            counted = set(self.words) == set(map(str, range(len(stored))))
            numbers = [self.words.index(str(k)) if counted else k for k in range(len(stored))]
        places = {number: place for place, number in enumerate(numbers)}
        if len(stored) != len(self.words) or set(places) != set(range(len(self.words))):
            return None
        return [places[i] for i in range(len(self.words))]


def of(task, label_map=None):
    """The Labels of a data.Task; label_map: words of --label_map, as NEGATIVE=0. Raises ValueError if one is none."""
    given = {}
    for word in label_map or ():
        theirs, _, ours = word.rpartition("=")
        if not theirs or theirs in given:
            raise ValueError(
                f"--label_map {word!r} must be a label of the teacher, each once, and this task's, as in bad=0 good=1"
            )
        given[theirs] = ours
    labels = Labels(tuple(task.labels), tuple(task.names or task.labels), given)
    numbers = [labels.number(ours) for ours in given.values()]
    for ours, number in zip(given.values(), numbers, strict=True):
        if number is None or numbers.count(number) > 1:
            raise ValueError(
                f"--label_map names {ours!r}: this task's labels are "
                f"{', '.join(labels.names) or 'numbers'}, each to be named once"
            )
    return labels


def stored_names(config):
    """The label names of a model's configuration, in the order of its logits."""
    return [str(config.id2label[i]) for i in sorted(config.id2label)]
