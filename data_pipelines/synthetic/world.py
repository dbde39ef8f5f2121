"""A synthetic multilingual world: parallel text whose relatedness and meaning are known.

Languages come in families (see grammar.py); several scripts are letter-for-letter
transliterations. A sentence is the rendering of a language-free meaning, and line i of every file
renders meaning i, so that the files are parallel as far as the shorter one goes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.synthetic import grammar
from data_pipelines.synthetic.grammar import (
    ADJECTIVES,
    ADPOSITIONS,
    ADVERBS,
    CONNECTIVES,
    NAMES,
    NEGATION,
    NOUNS,
    TOPICS,
    VERBS,
    Language,
)
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import new_folder
from langsamp_jax.languages.published import LABELS

HEAD_TO_TAIL = 100  # how many times the largest corpus is as large as the smallest
_ON_TOPIC = 0.9  # share of noun phrases that belong to the topic of their sentence
_TRAIN, _DEV = 0.7, 0.1  # shares of the labelled sentences, as in SIB-200; the rest is test


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


def render(language: Language, meanings: Sequence[Meaning]) -> list[str]:
    """Writes one sentence for each meaning, in roman letters."""
    speaker = _Speaker(language)
    return [speaker.sentence(meaning) for meaning in meanings]


class _Speaker:
    """Renders meanings in a language; holds all its word forms."""

    def __init__(self, language: Language):
        self._family = language.family
        self._order = grammar.WORD_ORDERS[language.family.word_order]
        self._forms = language.forms()

    def sentence(self, meaning: Meaning) -> str:
        """Returns a sentence in roman letters."""
        text = " ".join(self._clause(meaning.first))
        if meaning.second is not None:
            connective = self._forms[meaning.connective][0]
            text = " ".join([text + ",", connective, *self._clause(meaning.second)])
        return text + meaning.punctuation

    def _clause(self, clause: Clause) -> list[str]:
        constituents = {
            "S": self._noun_phrase(clause.subject, grammar.SUBJECT),
            "V": self._verb(clause),
            "O": self._noun_phrase(clause.object, grammar.OBJECT),
            "X": self._oblique(clause),
            "A": [] if clause.adverb is None else [self._forms[clause.adverb][0]],
        }
        return [word for constituent in self._order for word in constituents[constituent]]

    def _noun_phrase(self, phrase: NounPhrase, case: int) -> list[str]:
        words = [self._forms[phrase.noun][case + grammar.MARKERS * phrase.plural]]
        if phrase.adjective is not None:
            place = 0 if self._family.adjective_first else 1
            words.insert(place, self._forms[phrase.adjective][phrase.plural])
        return words if phrase.numeral is None else [str(phrase.numeral), *words]

    def _verb(self, clause: Clause) -> list[str]:
        verb = self._forms[clause.verb][clause.tense + grammar.MARKERS * clause.subject.plural]
        return [self._forms[NEGATION][0], verb] if clause.negated else [verb]

    def _oblique(self, clause: Clause) -> list[str]:
        if clause.oblique is None:
            return []
        phrase = self._noun_phrase(clause.oblique, grammar.OBLIQUE)
        adposition = [self._forms[clause.adposition][0]]
        return adposition + phrase if self._family.prepositions else phrase + adposition


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One language in one script, and the number of its main sentences."""

    language: Language
    script: str
    sentences: int

    @property
    def name(self) -> str:
        """Returns the language-script."""
        return f"{self.language.code}_{self.script}"

    def write(self, lines: Sequence[str], path: Path) -> None:
        """Writes lines of roman letters to a file, in the script of the corpus."""
        letters = str.maketrans(grammar.ALPHABET, grammar.SCRIPTS[self.script])
        text = "".join(line + "\n" for line in lines).translate(letters)
        path.write_bytes(text.encode("utf-8"))


def make_corpora(num_languages: int, num_sentences: int, seed: int) -> list[Corpus]:
    """Makes the corpora, from the largest to the smallest.

    Languages are dealt to the families in turn, so that size and family are not confounded. Two of
    three members of a family are written in its script, which a few families share, and every
    third in that of its neighbours. The first language is there in a second script as well.
    """
    languages = grammar.make_languages(num_languages - 1, seed)
    families = len({language.family.name for language in languages})
    scripts = list(grammar.SCRIPTS)[: max(2, round(num_languages**0.5) - 1)]
    written = [
        (language, scripts[(number % families + (number // families) % 3 // 2) % len(scripts)])
        for number, language in enumerate(languages)
    ]
    written.insert(num_languages // 2, (languages[0], scripts[1]))
    return [
        Corpus(language, script, round(num_sentences * HEAD_TO_TAIL ** (-k / (num_languages - 1))))
        for k, (language, script) in enumerate(written)
    ]


def synthesize(
    output: Path,
    num_languages: int = 16,
    num_sentences: int = 20000,
    seed: int = 0,
    num_held_out: int = 1000,
) -> dict:
    """Writes a world to the folder ``output``; the same arguments give the same bytes.

    ``output`` gets one text file for each language-script, named ``qaa_Latn.txt`` and so on, one
    sentence a line; ``held_out/`` with files of the same names that render meanings absent from
    the main files; ``held_out/labels.tsv``, the topics of those; and ``world.json``. Where it
    already holds just that, nothing is done.

    Args:
      num_languages: language-scripts, 2 to 520; one language counts twice.
      num_sentences: lines of the largest main file, at least 100. The smallest has a hundredth,
        and the sizes between are geometric.
      num_held_out: lines of each held-out file, at least 1; all meanings are distinct.

    Returns:
      The content of ``world.json``. ``distances`` counts the sound changes that two languages of
      a family do not share; languages of different families share none. Sound changes are in
      the notation of grammar.py; ``files`` has the SHA-256 of each.

    Raises:
      UserError: an argument is out of range, or ``output`` holds something else.
    """
    parameters = {
        "num_languages": num_languages,
        "num_sentences": num_sentences,
        "seed": seed,
        "num_held_out": num_held_out,
    }
    _check(**parameters)
    output = Path(output)
    world = _existing_world(output, parameters)
    if world is not None:
        return world
    with new_folder(output) as folder:
        corpora = make_corpora(num_languages, num_sentences, seed)
        main = meanings(grammar.stream(seed, "main"), num_sentences)
        held_out = _held_out_meanings(main, num_held_out, seed)
        (folder / "held_out").mkdir()
        for corpus in corpora:
            lines = render(corpus.language, held_out + main[: corpus.sentences])
            corpus.write(lines[:num_held_out], folder / "held_out" / f"{corpus.name}.txt")
            corpus.write(lines[num_held_out:], folder / f"{corpus.name}.txt")
        (folder / "held_out" / "labels.tsv").write_text(_labels(held_out), "utf-8")
        world = {
            "parameters": parameters,
            "language_scripts": {corpus.name: _describe(corpus) for corpus in corpora},
            "two_scripts": _in_two_scripts(corpora),
            "families": _families(corpora),
            "scripts": {corpus.script: grammar.SCRIPTS[corpus.script] for corpus in corpora},
            "files": _digests(folder),
        }
        text = json.dumps(world, indent=1, ensure_ascii=False) + "\n"
        (folder / "world.json").write_bytes(text.encode("utf-8"))
    return world


def _labels(meanings: Sequence[Meaning]) -> str:
    """Returns ``labels.tsv``: the topics of held-out sentences as labels of SIB-200, several topics
    a label, in the layout that ``langsamp evaluate sib200 --data OUTPUT/held_out`` reads."""
    labels = LABELS["sib200"]
    rows = ["line\tsplit\tcategory"]
    for number, meaning in enumerate(meanings):
        share = number / len(meanings)
        split = "train" if share < _TRAIN else "dev" if share < _TRAIN + _DEV else "test"
        rows.append(f"{number + 1}\t{split}\t{labels[meaning.topic % len(labels)]}")
    return "".join(row + "\n" for row in rows)


def _check(num_languages: int, num_sentences: int, seed: int, num_held_out: int) -> None:
    """Raises UserError for an argument that is out of range."""
    if not 2 <= num_languages <= 520:
        raise UserError(
            f"a synthetic world has 2 to 520 languages (the codes qaa to qtz), not {num_languages}"
        )
    if num_sentences < HEAD_TO_TAIL:
        raise UserError(
            f"the largest language needs at least {HEAD_TO_TAIL} sentences, not {num_sentences}: "
            "the smallest gets a hundredth"
        )
    if seed < 0:
        raise UserError(f"the seed must not be negative, but it is {seed}")
    if num_held_out < 1:
        raise UserError(f"at least 1 sentence must be held out, not {num_held_out}")


def _existing_world(output: Path, parameters: dict) -> dict | None:
    """Returns the world in ``output`` if its files are those of these parameters, unaltered."""
    try:
        world = json.loads((output / "world.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(world, dict) and world.get("parameters") == parameters
    return world if same and world.get("files") == _digests(output) else None


def _digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file below ``folder`` but ``world.json``, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
    digests.pop("world.json", None)
    return digests


def _held_out_meanings(main: Sequence[Meaning], count: int, seed: int) -> list[Meaning]:
    """Draws ``count`` meanings, all different and none in ``main``."""
    rng = grammar.stream(seed, "held out")
    main_meanings = set(main)
    held_out: dict[Meaning, None] = {}
    while len(held_out) < count:
        new = (meaning for meaning in meanings(rng, count) if meaning not in main_meanings)
        held_out.update(dict.fromkeys(new))
    return list(held_out)[:count]


def _describe(corpus: Corpus) -> dict:
    """Returns an entry of ``language_scripts`` in ``world.json``."""
    return {
        "language": corpus.language.code,
        "script": corpus.script,
        "family": corpus.language.family.name,
        "word_order": corpus.language.family.word_order,
        "sentences": corpus.sentences,
    }


def _in_two_scripts(corpora: Sequence[Corpus]) -> dict:
    """Returns the scripts of each language that has two."""
    scripts: dict[str, list[str]] = {}
    for corpus in corpora:
        scripts.setdefault(corpus.language.code, []).append(corpus.script)
    return {code: both for code, both in scripts.items() if len(both) == 2}


def _families(corpora: Sequence[Corpus]) -> dict:
    """Returns ``families`` of ``world.json``."""
    families = {corpus.language.family.name: corpus.language.family for corpus in corpora}
    languages = {corpus.language.code: corpus.language for corpus in corpora}
    members = {
        name: {code: lang for code, lang in languages.items() if lang.family.name == name}
        for name in families
    }
    return {
        name: {
            "word_order": family.word_order,
            "adjective_first": family.adjective_first,
            "suffixing": family.suffixing,
            "sound_changes": {code: list(lang.changes) for code, lang in members[name].items()},
            "distances": {
                code: {
                    other_code: grammar.distance(language, other)
                    for other_code, other in members[name].items()
                }
                for code, language in members[name].items()
            },
        }
        for name, family in families.items()
    }
