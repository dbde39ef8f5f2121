"""Translated sentence pairs for retrieval, a language a pair of files: Tatoeba and its like."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.datasets.layout import CODE, language_script
from langsamp_jax.io.files import visible
from langsamp_jax.languages.aligned_text import aligned_lines


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """Sentences of the pivot and of another language; i translates i.

    ``missing`` counts the pairs that lack one of the two; they are in neither list.
    """

    pivot: list[str]
    other: list[str]
    missing: int


def pairs_of(pivot: Sequence[str], other: Sequence[str]) -> SentencePairs | None:
    """Pairs as many lines, an empty one being a missing sentence; returns None without a pair."""
    both = [pair for pair in zip(pivot, other, strict=True) if all(pair)]
    if not both:
        return None
    return SentencePairs(*map(list, zip(*both, strict=True)), missing=len(pivot) - len(both))


def read_sentence_pairs(
    folder: Path, pivot: str = "eng_Latn"
) -> tuple[dict[str, SentencePairs], dict[str, str]]:
    """Reads the pairs of every language with the pivot.

    Args:
      folder: for each language two files of as many lines, ``tatoeba.deu-eng.deu`` and
        ``tatoeba.deu-eng.eng`` (LASER, XTREME) or ``tatoeba.deu_Latn-eng_Latn.deu_Latn`` and
        ``tatoeba.deu_Latn-eng_Latn.eng_Latn`` (Glot500, LangSAMP). The first part of the names
        may be another, such as ``bible``.

    Returns:
      the pairs by language-script, sorted (for codes without a script see ``language_script``),
      and the reason for each language that is left out, by the code in the names of its files.

    Raises:
      UserError: the folder is missing or holds no pair with the pivot, or a language twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"data folder {folder} not found")
    short = pivot.partition("_")[0]
    name = re.compile(rf"(\w+\.({CODE})-({pivot}|{short}))\.({CODE})(\.\w+)*")
    named = [match for path in visible(folder) if (match := name.fullmatch(path.name))]
    matches = [match for match in named if match[5] is None]
    pairs: dict[str, SentencePairs] = {}
    skipped = {
        match[2]: f"{folder / match.string} is not read; expected {match[1]}.{match[4]}"
        for match in named
        if match[5] is not None and match[2] not in {whole[2] for whole in matches}
    }
    for stem, code, pivot_code in dict.fromkeys(match.groups()[:3] for match in matches):
        try:
            read = _read_pair(folder / f"{stem}.{pivot_code}", folder / f"{stem}.{code}")
        except UserError as error:
            skipped[code] = str(error)
            continue
        language = language_script(code, "\n".join(read.other), "sr_tatoeba")
        if language in pairs:
            raise UserError(f"{folder} has pairs of {language} twice, also {stem}.{code}; keep one")
        pairs[language] = read
    if not matches:
        raise UserError(
            f"{folder} has no pairs with {pivot}: expected files such as "
            f"tatoeba.deu-{short}.deu or tatoeba.deu_Latn-{pivot}.deu_Latn"
        )
    return dict(sorted(pairs.items())), skipped


def _read_pair(pivot: Path, other: Path) -> SentencePairs:
    for file in (pivot, other):
        if not file.is_file():
            raise UserError(f"{file} is missing")
    pivot_lines, other_lines = aligned_lines(pivot), aligned_lines(other)
    if len(pivot_lines) != len(other_lines):
        raise UserError(
            f"{other} has {len(other_lines):,} lines, {pivot.name} {len(pivot_lines):,}"
        )
    pairs = pairs_of(pivot_lines, other_lines)
    if pairs is None:
        raise UserError(f"{other} has no sentence that is in {pivot.name} too")
    return pairs
