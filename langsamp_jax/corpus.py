"""Aligned text: a folder of ``iso639-3_Script.txt`` files whose lines translate each other."""

from pathlib import Path

from langsamp_jax.errors import UserError
from langsamp_jax.inventory import check_language_script


def corpus_files(corpus: Path) -> dict[str, Path]:
    """The text files of a corpus by language-script, sorted. Files of other kinds are left alone.

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


def aligned_lines(file: Path) -> list[str]:
    """Every line of a file, stripped; an empty one stands for a missing translation.

    Raises:
      UserError: bytes that are not UTF-8; the file and line are named.
    """
    with open(file, "rb") as stream:
        return [_decode(raw, file, number).strip() for number, raw in enumerate(stream, 1)]


def _decode(raw: bytes, file: Path, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}, line {number}: not UTF-8 ({error.reason} at byte {error.start}); "
            "convert the file"
        ) from None
