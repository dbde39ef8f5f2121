"""A synthetic multilingual world: parallel text whose relatedness and meaning are known.

Languages come in families (see grammar.py); several scripts are letter-for-letter
transliterations. A sentence is the rendering of a language-free meaning, and line i of every file
renders meaning i, so that the files are parallel as far as the shorter one goes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.synthetic import grammar
from data_pipelines.synthetic.grammar import NEGATION, Language
from data_pipelines.synthetic.meanings import (
    Clause,
    Meaning,
    NounPhrase,
    concept_lines,
    concept_name,
    meanings,
)
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import new_folder
from langsamp_jax.languages.published import LABELS

HEAD_TO_TAIL = 100  # how many times the largest corpus is as large as the smallest
_COMMON = 0.01  # of the held-out lines have a concept whose words are told
_TRAIN, _DEV = 0.7, 0.1  # shares of the labelled sentences, as in SIB-200; the rest is test


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
        text = self.spell("".join(line + "\n" for line in lines))
        path.write_bytes(text.encode("utf-8"))

    def spell(self, text: str) -> str:
        """Returns a text of roman letters in the script of the corpus."""
        return text.translate(str.maketrans(grammar.ALPHABET, grammar.SCRIPTS[self.script]))


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
      the notation of grammar.py; ``files`` has the SHA-256 of each. ``concepts`` has the nouns,
      verbs and adjectives of the held-out lines: the ``lines`` of each, from 0, and of those in
      every hundredth line the ``words``, all forms, by language-script; spaces stand between.

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
            "concepts": _concepts(corpora, held_out),
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


def _concepts(corpora: Sequence[Corpus], meanings: Sequence[Meaning]) -> dict:
    """Returns ``concepts`` of ``world.json``, with a string for each list: thousands of numbers,
    and words in every language, would be as many lines."""
    forms = {corpus.language.code: corpus.language.forms() for corpus in corpora}
    concepts = {}
    for concept, lines in concept_lines(meanings).items():
        words = {
            corpus.name: corpus.spell(" ".join(dict.fromkeys(forms[corpus.language.code][concept])))
            for corpus in corpora
            if len(lines) >= _COMMON * len(meanings)
        }
        concepts[concept_name(concept)] = {"lines": " ".join(map(str, lines)), "words": words}
    return concepts


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
