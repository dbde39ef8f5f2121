"""Aligned text: a folder of ``iso639-3_Script.txt`` files whose lines translate each other."""

from pathlib import Path

from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import check_language_script
from langsamp_jax.languages.related_codes import suggest


def corpus_files(corpus: Path) -> dict[str, Path]:
    """Finds the text files of a corpus by language-script, sorted. Other files are left alone.

    Raises:
      UserError: the folder is missing, has no ``.txt`` file, or has one whose name is no
        language-script with existing codes.
    """
    corpus = Path(corpus)
    if not corpus.is_dir():
        raise UserError(f"corpus folder {corpus} not found")
    files = {file.stem: file for file in sorted(corpus.glob("*.txt"))}
    if not files:
        raise UserError(f"{corpus} holds no text; expected files such as deu_Latn.txt")
    for name, file in files.items():
        try:
            check_language_script(name)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
    return files


def aligned_corpus(corpus: Path, pivot: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Reads the lines of ``pivot`` and of every language that is aligned with it.

    Returns:
      the lines by language-script, sorted, of one length (see ``aligned_lines``), and the reason
      for each language that is left out: another number of lines, or bytes that are not UTF-8.

    Raises:
      UserError: as ``corpus_files``; the pivot has no file, is no UTF-8, or has no lines.
    """
    files = corpus_files(corpus)
    if pivot not in files:
        raise UserError(
            f"{corpus} has no {pivot}.txt, which the other files are aligned with"
            f"{suggest(pivot, files)}"
        )
    lines, skipped = {pivot: aligned_lines(files.pop(pivot))}, {}
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


def aligned_lines(file: Path) -> list[str]:
    """Reads every line of a file, stripped; an empty one stands for a missing translation.

    Raises:
      UserError: bytes that are not UTF-8; the file and line are named.
    """
    return [line.strip() for line in text_lines(file)]


def text_lines(file: Path) -> list[str]:
    """Reads every line of a UTF-8 file without its line end; raises as ``aligned_lines``."""
    with open(file, "rb") as stream:
        return [_decode(raw, file, number).rstrip("\r\n") for number, raw in enumerate(stream, 1)]


def _decode(raw: bytes, file: Path, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}, line {number}: not UTF-8 ({error.reason} at byte {error.start}); "
            "convert the file"
        ) from None
