"""Aligned text: a folder of ``iso639-3_Script.txt`` files whose lines translate each other."""

import collections
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import visible
from langsamp_jax.io.text_lines import VISIBLE, VISIBLE_OR_PRIVATE, read_lines
from langsamp_jax.languages.inventory import check_language_script, is_private_script
from langsamp_jax.languages.related_codes import suggest
from langsamp_jax.languages.unread_text import unread_reasons, unread_text


def corpus_files(corpus: Path) -> dict[str, Path]:
    """Finds the text files of a corpus by language-script, sorted; for others see ``unread``.

    Raises:
      UserError: the folder is missing, has no ``.txt`` file, or has one whose name is no
        language-script with existing codes.
    """
    corpus = Path(corpus)
    if not corpus.is_dir():
        raise UserError(f"corpus folder {corpus} not found")
    files = {file.stem: file for file in visible(corpus, ".txt")}
    if not files:
        raise UserError(f"{corpus} holds no text; expected files such as deu_Latn.txt")
    for name, file in files.items():
        try:
            check_language_script(name)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
    return files


def unread(corpus: Path, files: Mapping[str, Path]) -> dict[str, str]:
    """Returns, by language-script, why what has its name is none of the ``files`` of a corpus."""
    left_out = unread_text(Path(corpus), set(files.values()))
    return unread_reasons(left_out, files, "a file such as deu_Latn.txt")


def aligned_corpus(corpus: Path, pivot: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Reads the lines of ``pivot`` and of every language that is aligned with it.

    Returns:
      the lines by language-script, sorted, of one length (see ``aligned_lines``), and the reason
      for each language that is left out: another number of lines, bytes that are not UTF-8, or
      a file of another form.

    Raises:
      UserError: as ``corpus_files``; the pivot has no file, is no UTF-8, or has no lines.
    """
    files = corpus_files(corpus)
    if pivot not in files:
        raise UserError(
            f"{corpus} has no {pivot}.txt, which the other files are aligned with"
            f"{suggest(pivot, files)}"
        )
    skipped = unread(corpus, files)
    lines = {pivot: aligned_lines(files.pop(pivot))}
    expected = len(lines[pivot])
    if not expected:
        raise UserError(f"{corpus}/{pivot}.txt is empty")
    for name, file in files.items():
        try:
            translations = aligned_lines(file)
        except UserError as error:
            skipped[name] = str(error)
            continue
        if len(translations) == expected:
            lines[name] = translations
        else:
            skipped[name] = f"{file} has {len(translations):,} lines, {pivot}.txt {expected:,}"
    return dict(sorted(lines.items())), skipped


def parallel_sentences(
    corpus: Path, fewest: int
) -> tuple[dict[str, list[str]], np.ndarray, dict[str, str]]:
    """Reads the sentences that are there in every language of a folder of aligned files.

    Languages are taken up from the most complete on, as long as ``fewest`` lines are left that all
    of them have.

    Returns:
      the sentences by language-script, sorted; the numbers of their lines, int64 [sentences], from
      0; and why other languages are left out.

    Raises:
      UserError: as ``corpus_files``; fewer than two languages have so many lines in common.
    """
    files = corpus_files(corpus)
    skipped, lines = unread(corpus, files), {}
    for name, file in files.items():
        try:
            lines[name] = aligned_lines(file)
        except UserError as error:
            skipped[name] = str(error)
    lengths = collections.Counter(map(len, lines.values()))
    length = max(lengths, key=lambda n: (lengths[n], n), default=0)
    present = {name: np.array([*map(bool, text)]) for name, text in lines.items()}
    common, names = np.ones(length, bool), []
    for name in sorted(lines, key=lambda name: (-present[name].sum(), name)):
        if len(lines[name]) != length:
            skipped[name] = f"{files[name]} has {len(lines[name]):,} lines, most files {length:,}"
        elif (both := common & present[name]).sum() < fewest:
            skipped[name] = f"{both.sum():,} lines in common with the others; {fewest:,} are needed"
        else:
            common, names = both, [*names, name]
    if len(names) < 2:
        reasons = "".join(f"; {name}: {why}" for name, why in list(skipped.items())[:1])
        raise UserError(
            f"{corpus} has no two languages with {fewest:,} aligned lines in common{reasons}"
        )
    number = np.flatnonzero(common)
    return {name: [lines[name][i] for i in number] for name in sorted(names)}, number, skipped


def aligned_lines(file: Path) -> list[str]:
    """Reads every line of a file, stripped; one without text stands for a missing translation.

    Raises:
      UserError: bytes that are not UTF-8; the file and line are named.
    """
    private = is_private_script(file.stem.partition("_")[2])
    has_text = (VISIBLE_OR_PRIVATE if private else VISIBLE).search
    return [line.strip() if has_text(line) else "" for line in read_lines(file)]
