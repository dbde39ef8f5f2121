"""Invented languages: families with roots and grammar, sound changes, and script tables.

A language is its family's proto-language after a list of regular sound changes. Inside this
module every word is in the roman letters of ``ALPHABET``, one letter for each phoneme.

A sound change is a string in the linguists' notation: ``ptk > bdg / V_V`` turns p into b, t into
d and k into g, each between vowels. ``-`` is loss, ``V`` any vowel, ``C`` any consonant, ``#`` the
edge of a word; several letters on one side of ``_`` are alternatives, and none there or nothing
after ``/`` is no condition. A change meets all letters of a word at once; changes apply in order.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

VOWELS = "aeiou"
CONSONANTS = "ptkbdgfvszxhcmnlryw"
ALPHABET = VOWELS + CONSONANTS

# For each script one letter per letter of ALPHABET. None is a combining mark, and none is changed
# by NFKC, so normalizing text never breaks the correspondence.
SCRIPTS = {
    "Latn": ALPHABET,
    "Cyrl": "аеиоупткбдгфвсзхһчмнлрјԝ",
    "Deva": "अएइओउपतकबदगफवसजखहचमनलरयभ",
    "Arab": "اعيوضپتكبدگفڤسزخهچمنلرجق",
    "Grek": "αειουπτκβδγφθσζχηξμνλρψω",
    "Geor": "აეიოუპტკბდგფვსზხჰჩმნლრყღ",
    "Hebr": "אעיוםפתקבדגףטסזחהצמנלרץכ",
    "Armn": "աեիուպտկբդգֆվսզխհչմնլրյօ",
    "Beng": "অএইওউপতকবদগফভসজখহচমনলরযশ",
    "Ethi": "አኤኢኦኡፐተከበደገፈቨሰዘኸሀቸመነለረየወ",
}

# Concepts are numbers. The content words of a topic are those with the same remainder modulo
# TOPICS, from its most common to its rarest.
TOPICS = 20
NOUNS = range(0, 280)
VERBS = range(280, 400)
ADJECTIVES = range(400, 480)
ADVERBS = range(480, 500)
CONTENT = range(0, 500)
NEGATION = 500
ADPOSITIONS = range(501, 505)
CONNECTIVES = range(505, 508)
CONCEPTS = range(0, 508)
NAMES = range(508, 568)  # proper names: nouns that no language inflects or changes

# Columns of a paradigm, for the singular; the plural's follow. An adjective has the first only.
SUBJECT, OBJECT, OBLIQUE = range(3)
PRESENT, PAST, FUTURE = range(3)
MARKERS = 3

# Constituents in order: S subject, V verb, O object, X oblique, A adverb. Languages that put the
# verb before the object have prepositions, and the others have postpositions.
WORD_ORDERS = {"SVO": "SAVOX", "SOV": "SXOAV", "VSO": "VASOX", "OVS": "XOVAS"}

# Only one change loses vowels, and every root has two or more: no word is ever lost entirely.
SOUND_CHANGES = (
    "ptk > bdg / V_V",
    "bdg > vzy / V_V",
    "ptk > fsx / #_",
    "ptk > fsx / V_",
    "bdg > ptk / #_",
    "bdgvz > ptkfs / _#",
    "ptk > bdg / mn_",
    "k > c / _ei",
    "g > y / _ei",
    "td > cz / _i",
    "c > s /",
    "c > k / _aou",
    "s > h / #_",
    "s > z / V_V",
    "z > r / V_",
    "s > c / _iu",
    "h > - /",
    "x > h /",
    "x > k / _C#",
    "f > h / #_",
    "f > p /",
    "v > w /",
    "w > v / _V",
    "w > g / #_",
    "y > z / #_",
    "g > x /",
    "b > m / _C#",
    "d > l / V_V",
    "r > l /",
    "l > r / V_V",
    "l > w / _C#",
    "l > y / _i",
    "r > z / _ei",
    "n > l / #_",
    "n > m / _#pb",
    "m > n / _#td",
    "aeiou > ----- / C_#",
    "eo > iu / _#",
    "eo > ia / #C_C",
    "a > o / _mnlrw",
    "a > e / _CV#",
    "aeo > eio / _szc",
    "iu > eo / _xhrl",
    "u > i / ptkc_",
    "o > u /",
    "e > i / _C",
    "aou > oua / bdgvz_",
    "i > e / C_#",
)
CHANGES_PER_BRANCH = 3
_LEAST_ALTERED = 0.05  # a change that alters fewer of the family's words is passed over,
_MOST_MERGED = 0.02  # and so is one that takes away more of their distinct forms

_LOANS = 0.3  # of the content words: old loans that every family has
_REPLACED = 0.05  # of a language's content words: not those of its family


def stream(seed: int, purpose: str) -> np.random.Generator:
    """Returns the random numbers for one purpose, the same on every platform, apart from others."""
    sequence = np.random.SeedSequence(seed, spawn_key=tuple(purpose.encode()))
    return np.random.Generator(np.random.Philox(sequence))


@dataclasses.dataclass(frozen=True)
class Phonology:
    """The sounds of the roots of a proto-language; letters stand from common to rare."""

    onsets: str
    vowels: str
    codas: str
    closed: float  # share of syllables with a coda
    bare: float  # share of words that begin with a vowel

    def syllable(self, rng: np.random.Generator) -> str:
        """Draws a syllable."""
        coda = _common(rng, self.codas) if rng.random() < self.closed else ""
        return _common(rng, self.onsets) + _common(rng, self.vowels) + coda

    def roots(self, rng: np.random.Generator, count: int) -> list[str]:
        """Draws ``count`` different roots of two or three syllables."""
        roots: dict[str, None] = {}
        while len(roots) < count:
            syllables = 2 if rng.random() < 0.6 else 3
            root = "".join(self.syllable(rng) for _ in range(syllables))
            roots[root[1:] if rng.random() < self.bare else root] = None
        return list(roots)


def _common(rng: np.random.Generator, letters: str) -> str:
    """Draws one of ``letters``, the earlier ones more often."""
    return letters[int(len(letters) * rng.random() ** 2)]


@dataclasses.dataclass(frozen=True)
class Family:
    """A proto-language. Paradigms are affixes: singular columns, then plural columns."""

    name: str
    phonology: Phonology
    word_order: str  # a key of WORD_ORDERS
    adjective_first: bool
    suffixing: bool
    noun_affixes: tuple[str, ...]  # [2 * MARKERS]: subject, object, oblique
    verb_affixes: tuple[str, ...]  # [2 * MARKERS]: present, past, future; the number is S's
    adjective_affixes: tuple[str, ...]  # [2]
    roots: tuple[str, ...]  # [CONCEPTS]

    @property
    def prepositions(self) -> bool:
        return self.word_order.index("V") < self.word_order.index("O")

    def affixes(self, concept: int) -> tuple[str, ...]:
        """Returns the affixes of a concept, by column of its paradigm."""
        if concept in NOUNS:
            return self.noun_affixes
        if concept in VERBS:
            return self.verb_affixes
        if concept in ADJECTIVES:
            return self.adjective_affixes
        return ("",)


@dataclasses.dataclass(frozen=True)
class Language:
    """A member of a family: ``roots`` (the family's but for the replaced), then ``changes``."""

    code: str
    family: Family
    changes: tuple[str, ...]
    roots: tuple[str, ...]  # [CONCEPTS]
    names: tuple[str, ...]  # [NAMES]

    def forms(self) -> list[tuple[str, ...]]:
        """Returns [CONCEPTS + NAMES] the inflected forms of each, by column of its paradigm."""
        paradigms = [self.family.affixes(concept) for concept in CONCEPTS]
        inflected = [
            root + affix if self.family.suffixing else affix + root
            for root, affixes in zip(self.roots, paradigms, strict=True)
            for affix in affixes
        ]
        changed = iter(apply_changes(self.changes, inflected))
        forms = [tuple(next(changed) for _ in affixes) for affixes in paradigms]
        return forms + [(name,) * (2 * MARKERS) for name in self.names]


def apply_changes(changes: Iterable[str], words: Sequence[str]) -> list[str]:
    """Returns ``words`` after every change in turn (see the module's notation)."""
    text = "\n" + "\n".join(words) + "\n"
    for change in changes:
        pattern, replacement = _compiled(change)
        text = pattern.sub(lambda match, letters=replacement: letters[match[0]], text)
    return text[1:-1].split("\n")


@functools.cache
def _compiled(change: str) -> tuple[re.Pattern[str], dict[str, str]]:
    """Returns a pattern for the letters that change, in words between newlines, and the changes."""
    source, target, condition = re.fullmatch(r"(\w+) > ([\w-]+) /(.*)", change).groups()
    classes = {"V": VOWELS, "C": CONSONANTS, "#": "\n"}
    before, _, after = "".join(classes.get(c, c) for c in condition.strip()).partition("_")
    behind = f"(?<=[{before}])" if before else ""
    ahead = f"(?=[{after}])" if after else ""
    letters = {old: new.strip("-") for old, new in zip(source, target, strict=True)}
    return re.compile(f"{behind}[{source}]{ahead}"), letters


def distance(first: Language, second: Language) -> int:
    """Counts the sound changes that separate two languages of one family since they parted."""
    shared = 0
    for first_change, second_change in zip(first.changes, second.changes, strict=False):
        if first_change != second_change:
            break
        shared += 1
    return len(first.changes) + len(second.changes) - 2 * shared


def make_languages(count: int, seed: int) -> tuple[Language, ...]:
    """Makes ``count`` languages (1 to 520), dealt in turn to about sqrt(count) families."""
    rng = stream(seed, "loans")
    letters = "".join(rng.permutation(list(CONSONANTS)))
    anywhere = Phonology(letters, VOWELS, letters[:6], closed=0.3, bare=0.1)
    names = tuple(anywhere.roots(rng, len(NAMES)))
    words = anywhere.roots(rng, len(CONTENT))
    borrowed = rng.random(len(CONTENT)) < _LOANS
    loans = {concept: words[concept] for concept in CONTENT if borrowed[concept]}

    languages: dict[int, Language] = {}
    families = round(count**0.5)
    for number in range(families):
        family = _make_family(number, loans, seed)
        members = range(number, count, families)
        for member, changes in _branches(members, (), family.roots, stream(seed, family.name)):
            code = "q" + chr(ord("a") + member // 26) + chr(ord("a") + member % 26)
            roots = _replace_some(family, stream(seed, code))
            languages[member] = Language(code, family, changes, roots, names)
    return tuple(languages[member] for member in range(count))


def _make_family(number: int, loans: dict[int, str], seed: int) -> Family:
    """Makes a family; ``loans`` are roots by concept, which all families share."""
    name = f"family_{number + 1:02d}"
    rng = stream(seed, f"proto {name}")
    consonants = "".join(rng.permutation(list(CONSONANTS)))[: rng.integers(11, 16)]
    phonology = Phonology(
        onsets=consonants,
        vowels="".join(rng.permutation(list(VOWELS)))[: rng.integers(3, 6)],
        codas=consonants[: rng.integers(2, 6)],
        closed=0.6 * rng.random(),
        bare=0.3 * rng.random(),
    )
    own = phonology.roots(rng, len(CONCEPTS))
    syllables: dict[str, None] = {}
    while len(syllables) < 6:
        syllables[phonology.syllable(rng)] = None
    noun_plural, object_, oblique, verb_plural, past, future = syllables
    return Family(
        name=name,
        phonology=phonology,
        word_order=tuple(WORD_ORDERS)[number % len(WORD_ORDERS)],
        adjective_first=bool(rng.random() < 0.5),
        suffixing=bool(rng.random() < 0.75),
        noun_affixes=_paradigm(noun_plural, object_, oblique),
        verb_affixes=_paradigm(verb_plural, past, future),
        adjective_affixes=("", noun_plural if rng.random() < 0.5 else ""),
        roots=tuple(loans.get(concept, own[concept]) for concept in CONCEPTS),
    )


def _paradigm(plural: str, *markers: str) -> tuple[str, ...]:
    """Returns the affixes for the singular, then those for the plural."""
    return tuple(number + marker for number in ("", plural) for marker in ("", *markers))


def _branches(
    members: Sequence[int],
    changes: tuple[str, ...],
    words: Sequence[str],
    rng: np.random.Generator,
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields each member with its changes: a tree in which every fork halves the members.

    ``changes`` are those that all members share, and ``words`` the family's roots after them.
    """
    if len(members) == 1:
        yield members[0], changes
        return
    middle = (len(members) + 1) // 2
    new: tuple[str, ...] = ()
    for half in (members[:middle], members[middle:]):
        new, changed = _innovate(words, {*changes, *new}, rng)  # never what the sister does
        yield from _branches(half, changes + new, changed, rng)


def _innovate(
    words: Sequence[str], excluded: set[str], rng: np.random.Generator
) -> tuple[tuple[str, ...], Sequence[str]]:
    """Draws CHANGES_PER_BRANCH changes that suit ``words``, none ``excluded``.

    A language cannot afford to lose many distinctions, so the changes it makes keep most of them.
    Returns the changes, and the words after them.
    """
    new: tuple[str, ...] = ()
    for choice in rng.permutation(len(SOUND_CHANGES)):
        change = SOUND_CHANGES[choice]
        if change in excluded:
            continue
        changed = apply_changes([change], words)
        altered = sum(before != after for before, after in zip(words, changed, strict=True))
        distinct = len(set(changed)) / len(set(words))
        if altered >= _LEAST_ALTERED * len(words) and distinct >= 1 - _MOST_MERGED:
            new, words = (*new, change), changed
        if len(new) == CHANGES_PER_BRANCH:
            break
    return new, words


def _replace_some(family: Family, rng: np.random.Generator) -> tuple[str, ...]:
    """Returns the roots of a language: those of its family, some content words replaced."""
    coined = family.phonology.roots(rng, len(CONTENT))
    replaced = rng.random(len(CONTENT)) < _REPLACED
    own = {concept: coined[concept] for concept in CONTENT if replaced[concept]}
    return tuple(own.get(concept, family.roots[concept]) for concept in CONCEPTS)
