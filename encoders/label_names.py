"""Names of labels: a task's, other models' names for the same labels, and the order that matches them."""

import re
from decimal import Decimal
from typing import NamedTuple

# Names that mean the same, without case, blanks and punctuation; a name is in one line only.
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
# Numbers as people write them; Python would also accept 1_5, nan and infinity.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?")


def number_of(text):
    """Return a text's number, exact, with digits of any script; None if it is not a number."""
    text = text.strip()
    return Decimal(text) if NUMBER.fullmatch(text) else None


def in_order(words):
    """Return labels as a list, sorted by value if all are numbers, else in the given order."""
    return list(words) if None in map(number_of, words) else sorted(words, key=number_of)


def plain(name):
    """Return a name without case, blanks and punctuation, or the value of a number."""
    value = number_of(name)
    return re.sub(r"[\W_]+", "", name).casefold() if value is None else value


def canonical(name):
    """Return the first of the SYNONYMS of a name."""
    return CANONICAL.get(plain(name), plain(name))


class Labels(NamedTuple):
    """The labels of a task, in the order of their ids.

    words: as its files spell them. names: as saved models have them. given: {another model's name: word or name}, from
    the user, which overrides all matching.
    """

    words: tuple
    names: tuple
    given: dict

    def number(self, name):
        """Return the id of a word or name, by the strictest comparison that finds exactly one; None if none does."""
        for key in (str, str.casefold, plain, canonical):
            found = [i for i, own in enumerate(zip(self.words, self.names, strict=True)) if key(name) in map(key, own)]
            if len(found) == 1:
                return found[0]
        return None

    def order(self, stored):
        """Return the place of each label among a model's stored names; None if these are other labels.

        LABEL_k, or the number k, means the word k if the words are the numbers 0 to n-1. Otherwise such names are
        taken in order.
        """
        given = self.given if set(self.given) == set(stored) else {}
        numbers = [self.number(given.get(name, name)) for name in stored]
        generic = [re.fullmatch(r"(?:LABEL_)?(\d{1,9})", name) for name in stored]
        if not given and numbers == [None] * len(stored) and all(generic):
            ks, values = [int(match[1]) for match in generic], [number_of(word) for word in self.words]
            known = values if set(values) == set(range(len(values))) else sorted(ks)
            numbers = [known.index(k) if k in known else None for k in ks]
        places = {number: place for place, number in enumerate(numbers)}
        if len(stored) != len(self.words) or set(places) != set(range(len(self.words))):
            return None
        return [places[i] for i in range(len(self.words))]


def of(task, label_map=None):
    """Return the Labels of a data.Task; label_map: of --label_map, as NEGATIVE=0. Raises ValueError for a wrong one."""
    given = {}
    for word in label_map or ():
        theirs, _, ours = word.rpartition("=")
        if not theirs or theirs in given:
            raise ValueError(
                f"--label_map {word!r} must be a teacher's label, once, and this task's, as in bad=0 good=1"
            )
        given[theirs] = ours
    labels = Labels(tuple(task.labels), tuple(task.names or task.labels), given)
    numbers = [labels.number(ours) for ours in given.values()]
    for ours, number in zip(given.values(), numbers, strict=True):
        if number is None or numbers.count(number) > 1:
            raise ValueError(f"--label_map names {ours!r}: name each of {', '.join(labels.names) or 'numbers'} once")
    return labels


def stored_names(config):
    """Return the label names of a model's configuration, in the order of its logits."""
    return [str(config.id2label[i]) for i in sorted(config.id2label)]
