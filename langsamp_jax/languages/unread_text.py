"""What a folder has of a language-script and no reader takes: it is named, not passed over.

Hidden files, documents about a corpus, the metadata of Hugging Face ``datasets``, and a folder
``held_out``, which is kept out on purpose, are no text.
"""

import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import files_below, visible
from langsamp_jax.languages.inventory import check_language_script

HELD_OUT = "held_out"
_NO_TEXT = re.compile(r"README.*|LICENSE.*|.*\.md|(dataset_info|state|dataset_dict)\.json", re.I)
_NAMED = 5  # of the files that are not read


class Unread(NamedTuple):
    """A file or folder that is not read; ``name`` is the language-script that it is named after."""

    name: str
    path: Path


def carried_name(file_name: str) -> str | None:
    """Returns the language-script that a name begins with, however it is spelt.

    ``deu_Latn`` for ``deu_Latn.txt.zst``, ``DEU-LATN_part1.csv`` and ``deu_Latn``; None for a name
    that begins with no two codes that exist.
    """
    codes = re.match(r"([a-z]{3})[-_]([a-z]{4})(?![a-z])", file_name, re.IGNORECASE)
    if codes is None:
        return None
    name = f"{codes[1].lower()}_{codes[2].title()}"
    try:
        check_language_script(name)
    except UserError:
        return None
    return name


def unread_text(corpus: Path, read: Collection[Path]) -> list[Unread]:
    """Lists what carries the name of a language-script, by its own name or its folder's.

    Args:
      read: the files that are read.
    """
    unread = []
    for path in visible(corpus):
        name = carried_name(path.name)
        if not path.is_dir():
            files = [(name, path)]
        elif name is not None:  # an empty folder stands for itself
            files = [(name, file) for file in list(files_below(path)) or [path]]
        else:
            below = visible(path) if path.name != HELD_OUT else []
            files = [(carried_name(file.name), file) for file in below]
        unread += [
            Unread(carried, file)
            for carried, file in files
            if carried is not None and file not in read and not _NO_TEXT.fullmatch(file.name)
        ]
    return unread


def say_unread(unread: Sequence[Unread], expected: str) -> None:
    """Names on standard error the first files that are not read, and says what is ``expected``."""
    if unread:
        names = ", ".join(str(path) for _, path in unread[:_NAMED])
        more = f" and {len(unread) - _NAMED:,} more" if len(unread) > _NAMED else ""
        print(f"not read: {names}{more}; expected {expected}", file=sys.stderr, flush=True)


def unread_reasons(
    unread: Sequence[Unread], read: Collection[str], expected: str
) -> dict[str, str]:
    """Returns why there is nothing of a language-script; of one that is ``read``, by its file."""
    return {
        path.name if name in read else name: f"{path} is not read; expected {expected}"
        for name, path in unread
    }
