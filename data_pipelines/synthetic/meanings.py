"""Meanings: what the sentences of a synthetic world say, in no language, and their concepts."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data_pipelines.synthetic import grammar
from data_pipelines.synthetic.grammar import (
    ADJECTIVES,
    ADPOSITIONS,
    ADVERBS,
    CONNECTIVES,
    NAMES,
    NOUNS,
    TOPICS,
    VERBS,
)

_ON_TOPIC = 0.9  # share of noun phrases that belong to the topic of their sentence
_KINDS = {"noun": NOUNS, "verb": VERBS, "adjective": ADJECTIVES}  # of concepts


@dataclasses.dataclass(frozen=True)
class NounPhrase:
    noun: int  # of NOUNS or NAMES; a name stands alone
    plural: bool
    adjective: int | None
    numeral: int | None  # written in digits, with the plural


@dataclasses.dataclass(frozen=True)
class Clause:
    subject: NounPhrase
    verb: int
    tense: int
    negated: bool
    object: NounPhrase
    adposition: int | None  # of the oblique, present together with it
    oblique: NounPhrase | None
    adverb: int | None


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The meaning of a sentence: one clause with an oblique, or two without and a connective."""

    first: Clause
    connective: int | None
    second: Clause | None
    punctuation: str
    topic: int = dataclasses.field(compare=False)  # of most of its words

    def concepts(self) -> set[int]:
        """Returns the nouns, verbs and adjectives that it has; names are none."""
        clauses = [clause for clause in (self.first, self.second) if clause is not None]
        phrases = [phrase for c in clauses for phrase in (c.subject, c.object, c.oblique) if phrase]
        words = [*(clause.verb for clause in clauses), *(phrase.noun for phrase in phrases)]
        words += [phrase.adjective for phrase in phrases if phrase.adjective is not None]
        return {word for word in words if word not in NAMES}


def meanings(rng: np.random.Generator, count: int) -> list[Meaning]:
    """Draws ``count`` independent meanings; the same one can occur again."""
    topics = _zipfian(rng, TOPICS, count)
    joined = rng.random(count) < 0.35
    first = _clauses(rng, topics, with_oblique=~joined)
    second = _clauses(rng, topics, with_oblique=np.zeros(count, bool))
    connectives = CONNECTIVES.start + _zipfian(rng, len(CONNECTIVES), count)
    punctuation = np.array([".", "?", "!"])[np.searchsorted([0.85, 0.95], rng.random(count))]
    return list(
        map(
            Meaning,
            first,
            _only_where(joined, connectives.tolist()),
            _only_where(joined, second),
            punctuation.tolist(),
            topics.tolist(),
        )
    )


def _clauses(
    rng: np.random.Generator, topics: np.ndarray, with_oblique: np.ndarray
) -> Iterator[Clause]:
    """Draws a clause for each topic, int [topics]; ``with_oblique`` is bool [topics]."""
    count = len(topics)
    adpositions = ADPOSITIONS.start + _zipfian(rng, len(ADPOSITIONS), count)
    return map(
        Clause,
        _noun_phrases(rng, topics),
        _words(rng, VERBS, topics).tolist(),
        _zipfian(rng, grammar.MARKERS, count).tolist(),
        (rng.random(count) < 0.15).tolist(),
        _noun_phrases(rng, topics),
        _only_where(with_oblique, adpositions.tolist()),
        _only_where(with_oblique, _noun_phrases(rng, topics)),
        _only_where(rng.random(count) < 0.3, _words(rng, ADVERBS, topics).tolist()),
    )


def _noun_phrases(rng: np.random.Generator, topics: np.ndarray) -> Iterator[NounPhrase]:
    """Draws a noun phrase for each topic, most of them on it."""
    count = len(topics)
    topics = np.where(rng.random(count) < _ON_TOPIC, topics, _zipfian(rng, TOPICS, count))
    named = rng.random(count) < 0.1
    counted = ~named & (rng.random(count) < 0.2)
    described = ~named & (rng.random(count) < 0.4)
    plural = ~named & (counted | (rng.random(count) < 0.3))
    names = NAMES.start + _zipfian(rng, len(NAMES), count)
    return map(
        NounPhrase,
        np.where(named, names, _words(rng, NOUNS, topics)).tolist(),
        plural.tolist(),
        _only_where(described, _words(rng, ADJECTIVES, topics).tolist()),
        _only_where(counted, rng.integers(2, 100, count).tolist()),
    )


def _words(rng: np.random.Generator, words: range, topics: np.ndarray) -> np.ndarray:
    """Draws int [topics], one concept of ``words`` for each topic."""
    return words.start + topics + TOPICS * _zipfian(rng, len(words) // TOPICS, len(topics))


def _zipfian(rng: np.random.Generator, kinds: int, count: int) -> np.ndarray:
    """Draws int64 [count] ranks below ``kinds``, rank r in proportion to 1 / (r + 1)."""
    cumulative = np.cumsum(1 / np.arange(1, kinds + 1))
    return np.searchsorted(cumulative[:-1] / cumulative[-1], rng.random(count), side="right")


def _only_where(present: np.ndarray, values: Iterable) -> list:
    """Returns ``values`` with None where ``present`` is False."""
    return [value if here else None for here, value in zip(present, values, strict=True)]


def concept_lines(meanings: Sequence[Meaning]) -> dict[int, list[int]]:
    """Returns which meanings have each concept that occurs, both from 0 and in order."""
    lines: dict[int, list[int]] = {}
    for line, meaning in enumerate(meanings):
        for concept in meaning.concepts():
            lines.setdefault(concept, []).append(line)
    return dict(sorted(lines.items()))


def concept_name(concept: int) -> str:
    """Returns what ``world.json`` calls a concept, such as ``noun-0``, the commonest of a topic."""
    kind, words = next(item for item in _KINDS.items() if concept in item[1])
    return f"{kind}-{concept - words.start}"
