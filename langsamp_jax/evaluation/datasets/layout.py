"""What an evaluation task is trained and tested on, and where its files lie.

Training is on one language, the source; every language that has a test set is tested. What is
wrong with the source is the user's to settle; another language is skipped, with the reason.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from fontTools import unicodedata

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import files_below, visible
from langsamp_jax.languages.inventory import (
    check_language_script,
    in_right_form,
    is_language_script,
)
from langsamp_jax.languages.published import published_languages
from langsamp_jax.languages.related_codes import suggest

SPLITS = ("train", "dev", "test")
_SUFFIXES = ("", ".tsv", ".txt", ".conllu", ".iob2")
_NAMED = 10  # languages with training data, where the source has none
CODE = r"[a-z]{3}(?:_[A-Z][a-z]{3})?"  # of a language, with or without its script


class HasText(Protocol):
    """Examples of a task: they know what they are written in."""

    @property
    def text(self) -> str:
        """Returns all of the text, from which a script can be told."""


Examples = TypeVar("Examples", bound=HasText)


@dataclasses.dataclass(frozen=True)
class TaskData(Generic[Examples]):
    """One task.

    ``labels`` are the classes in the order of their ids; ``train`` and ``dev`` are of the source
    language; ``test`` is by language-script, sorted, the source among them where it has a test
    set; ``skipped`` says by language why it is not there.
    """

    labels: tuple[str, ...]
    train: Examples
    dev: Examples
    test: dict[str, Examples]
    skipped: dict[str, str]


def source_files(folder: Path, source: str) -> tuple[str, list[Path], list[Path]]:
    """Finds the name that files give the source language, and those of its train and dev sets.

    Raises:
      UserError: the folder, or one of the two sets, is missing.
    """
    if not folder.is_dir():
        raise UserError(f"data folder {folder} not found")
    for name in (source, source.partition("_")[0]):
        train, dev = (split_files(folder, name, split) for split in ("train", "dev"))
        if train and dev:
            return name, train, dev
        if train or dev:
            missing = "dev" if train else "train"
            raise UserError(
                f"{folder} has no {missing} set of the source language {name}; add it, or choose "
                "another source"
            )
    others = [
        name
        for name in _names(folder)
        if all(split_files(folder, name, split) for split in ("train", "dev"))
    ]
    alternatives = f", as there is of {', '.join(others[:_NAMED])}" if others else ""
    raise UserError(
        f"{folder} has no training data of {source}{alternatives}: expected {source}/train.tsv or "
        f"{source}/TREEBANK/train.tsv (also .txt, .conllu, .iob2 or no ending), or "
        f"{source}_train.tsv, each with its dev"
    )


def read_tests(
    folder: Path, source: str, task: str, read: Callable[[list[Path]], Examples]
) -> tuple[dict[str, Examples], dict[str, str]]:
    """Reads the test set of every language of a folder, and why a language has none.

    Args:
      source: the name that the files give the source language; its errors are not passed over.
      task: whose published list names languages that the files give no script, see
        ``language_script``.
      read: the files of one language -> its examples; raises UserError.
    """
    test, skipped = {}, {}
    for name in _names(folder):
        try:
            _check_name(folder / name)
            files = split_files(folder, name, "test")
            if not files:
                skipped[name] = f"{folder / name} has no test set{_other_forms(folder, name)}"
                continue
            examples = read(files)
            full_name = language_script(name, examples.text, task)
            if full_name in test:
                raise UserError(f"{files[0]}: there is another test set of {full_name}; keep one")
            test[full_name] = examples
        except UserError as error:
            if name == source:
                raise
            skipped[name] = str(error)
    return dict(sorted(test.items())), skipped


def split_files(folder: Path, name: str, split: str) -> list[Path]:
    """Finds the files of a split of a language, sorted: NAME_SPLIT.tsv, or those in its folder.

    There, in the folder itself and in the folder of each treebank, a file is called after the
    split (``test.tsv``) or ends in it (``en_ewt-ud-test.conllu``).

    Raises:
      UserError: two files of a folder are the same split.
    """
    if (file := folder / f"{name}_{split}.tsv").is_file():
        return [file]
    files = []
    if (home := folder / name).is_dir():
        for place in (home, *(path for path in visible(home) if path.is_dir())):
            split_paths = [
                path
                for path in visible(place)
                if path.suffix in _SUFFIXES and re.search(rf"(^|[-_]){split}$", path.stem)
                if path.is_file()
            ]
            if len(split_paths) > 1:
                names = " and ".join(path.name for path in split_paths)
                raise UserError(f"{place} has several {split} sets, {names}; keep one")
            files += split_paths
    return files


def language_script(code: str, text: str, task: str) -> str:
    """Returns ``deu_Latn`` for ``deu``; a language-script stays as it is.

    The published list of the task decides where it has the language in one script, so that
    averages compare (Tatoeba's Uzbek is ``uzb_Cyrl`` there, though most of it is in Latin
    script); where it does not, the script of most letters of ``text`` does.
    """
    if is_language_script(code):
        return code
    published = [name for name in published_languages(task) if name.startswith(f"{code}_")]
    return published[0] if len(published) == 1 else f"{code}_{_script(text)}"


def _script(text: str) -> str:
    """Returns the ISO 15924 code of most letters; kana is Japanese, text without any is Zyyy."""
    letters: Counter[str] = Counter()
    for character, count in Counter(text).items():
        script = unicodedata.script(character)
        if script not in ("Zyyy", "Zinh", "Zzzz"):
            letters["Jpan" if script in ("Hira", "Kana") else script] += count
    return max(letters, key=letters.__getitem__, default="Zyyy")


def _names(folder: Path) -> list[str]:
    """Lists what a folder has a folder or a file NAME_test of, in whatever form that is."""
    flat = (re.match(rf"({CODE})_test\b", path.name, re.IGNORECASE) for path in visible(folder))
    folders = {path.name for path in visible(folder) if path.is_dir()}
    return sorted({match[1] for match in flat if match} | folders)


def _other_forms(folder: Path, name: str) -> str:
    """Returns the end of a message: the first test set of a name whose form is not read, if any."""
    flat = [path for path in visible(folder) if path.name.startswith(f"{name}_test")]
    below = files_below(folder / name) if (folder / name).is_dir() else ()
    named = (path for path in below if re.match(r"(.*[-_])?test\b", path.name, re.IGNORECASE))
    first = next(iter([*flat, *named]), None)
    return "" if first is None else f"; {first.name} is not read, .tsv is"


def _check_name(path: Path) -> None:
    if not re.fullmatch(CODE, path.name):
        raise UserError(
            f"{path}: the name is not of the form iso639-3_Script, as deu_Latn is"
            f"{suggest(path.name, in_right_form(path.name))}"
        )
    check_language_script(path.name if is_language_script(path.name) else f"{path.name}_Latn")
