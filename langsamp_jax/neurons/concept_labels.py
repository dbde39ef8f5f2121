"""Which of parallel sentences have which concept: from a synthetic world, or by the pivot's words.

Translations have the same concepts, so one language is labelled and the others by line number; no
lexicon is needed. Of a synthetic world the concepts are known: the nouns, verbs and adjectives of
the meanings, in ``world.json`` above the folder ``held_out``. On real text a concept is a word of
the pivot language, in lower case: at least 5 letters, and a final s is no part of it where the
rest is a word of the text too. That rule is ours; it knows neither lemmas nor senses. What is in
more than 7.5 % of the lines is left out: on real text that is mostly grammar.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from langsamp_jax.errors import UserError

FEWEST = 8  # lines with a concept, in each half of the lines
_WORD = re.compile(r"[^\W\d_]{5,}")
_COMMON = 0.075  # of the lines have a concept, at most
_PHI = 0.2  # correlation over the lines that two concepts may have


@dataclasses.dataclass(frozen=True)
class Concepts:
    """The concepts of some sentences, from the commonest on.

    Attributes:
      labels: bool [sentences, concepts].
      words: of each concept by language-script the words that say it, as far as they are known.
      left_out: the names of others, by why they are left out.
      families: of language-scripts, as far as they are known.
      source: what they are from.
    """

    names: list[str]
    labels: np.ndarray
    words: list[dict[str, list[str]]]
    left_out: dict[str, list[str]]
    families: dict[str, str]
    source: str


def halves(sentences: int) -> np.ndarray:
    """Returns bool [sentences], which half each belongs to: at random, always the same."""
    return np.random.default_rng(0).permutation(sentences) % 2 == 1


def label(
    data: Path, lines: Mapping[str, Sequence[str]], numbers: np.ndarray, pivot: str, most: int
) -> Concepts:
    """Labels the sentences of a folder.

    Args:
      lines: by language-script, of all as many.
      numbers: int [sentences], of their lines in the files, from 0.
      pivot: whose words are the concepts of real text.
      most: how many concepts are kept.

    Raises:
      UserError: the world has no concepts; the pivot is none of the languages; fewer than two
        concepts are left, as the others occur too rarely or together with one.
    """
    world, families = data.parent / "world.json", {}
    if data.name == "held_out" and world.exists():
        source = str(world)
        found, families = _of_world(world, numbers)
    elif pivot in lines:
        found, source = _of_words(lines[pivot], pivot), f"words of {pivot}"
    else:
        raise UserError(
            f"{data} has no lines of {pivot}, whose words are the concepts; name another --pivot"
        )
    return _chosen(found, families, source, most, len(numbers))


_Found = dict[str, tuple[np.ndarray, dict[str, list[str]]]]  # name: which sentences, words


def _of_world(file: Path, numbers: np.ndarray) -> tuple[_Found, dict[str, str]]:
    try:
        world = json.loads(file.read_text("utf-8"))
        families = {name: about["family"] for name, about in world["language_scripts"].items()}
        return {
            name: (
                np.isin(numbers, [*map(int, concept["lines"].split())]),
                {language: words.split() for language, words in concept["words"].items()},
            )
            for name, concept in world["concepts"].items()
        }, families
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{file} tells no concepts, or is damaged; make the world again with langsamp "
            "synthesize, in another folder"
        ) from None


def _of_words(lines: Sequence[str], pivot: str) -> _Found:
    texts = [set(_WORD.findall(line.lower())) for line in lines]
    count = collections.Counter(word for text in texts for word in text)
    forms: dict[str, list[str]] = {}
    for word in sorted(count):
        stem = word.removesuffix("s")
        forms.setdefault(stem if stem in count else word, []).append(word)
    where: dict[str, np.ndarray] = {}
    for i, text in enumerate(texts):
        for word in text:
            where.setdefault(word, np.zeros(len(lines), bool))[i] = True
    found = {name: np.any([where[form] for form in these], axis=0) for name, these in forms.items()}
    return {name: (has, {pivot: forms[name]}) for name, has in found.items()}


def _chosen(
    found: _Found, families: dict[str, str], source: str, most: int, sentences: int
) -> Concepts:
    """Keeps the commonest that are in enough lines of each half and go with none before them."""
    half, names, columns = halves(sentences), [], np.zeros((0, sentences))
    left_out = {"too rare": [], "too common": [], "with another": [], "not asked for": []}
    ranked = sorted(found, key=lambda name: (-found[name][0].sum(), name))
    for name in ranked:
        has = found[name][0]
        column = (has - has.mean()) / (max(has.std(), 1e-9) * sentences**0.5)
        if min(has[half].sum(), has[~half].sum()) < FEWEST:
            left_out["too rare"].append(name)
        elif has.mean() > _COMMON:
            left_out["too common"].append(name)
        elif len(names) == most:
            left_out["not asked for"].append(name)
        elif (np.abs(columns @ column) >= _PHI).any():
            left_out["with another"].append(name)
        else:
            names, columns = [*names, name], np.vstack([columns, column])
    if len(names) < 2:
        commonest = f", {ranked[0]}, is in {found[ranked[0]][0].sum()}" if ranked else " is none"
        raise UserError(
            f"{source}: {len(names)} concepts are in {FEWEST} lines of each half of {sentences}, 2 "
            f"are needed; the commonest{commonest}: give more sentences"
        )
    labels = np.stack([found[name][0] for name in names], axis=1)
    words = [found[name][1] for name in names]
    return Concepts(names, labels, words, left_out, families, source)
