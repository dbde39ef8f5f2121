"""The scratch folder: what is left of an unfinished store, and the claim on it.

Its folders keep the names that they had in earlier versions, so that what these left unfinished
is taken up; so do the keys of the results in them.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from langsamp_jax.io.claim import CLAIM, Claim
from langsamp_jax.io.files import partial_path, require_absent

CHUNKS = "pieces"  # what encoding writes
MASKS = "kept"  # what deduplication writes
ARRAYS = "arrays"  # what packing writes
ENCODED, DEDUPLICATED, PACKED = "encode", "select", "pack"  # the results of the three stages


def scratch_folder(output: Path, *parts: str) -> Path:
    """Makes a folder for the unfinished store at ``output``, and returns its path.

    Args:
      parts: the path of a folder in it.
    """
    folder = partial_path(output).joinpath("work", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def hold_output(output: Path) -> Iterator[None]:
    """Keeps ``output`` for the work within; work without any result leaves nothing.

    Raises:
      UserError: ``output`` is no place for a store, or another process is at work on it.
    """
    require_absent(output)
    partial = partial_path(output)
    with Claim(partial / CLAIM, output):
        try:
            yield
        finally:
            if not any((partial / "work" / ENCODED).glob("*.json")):
                shutil.rmtree(partial, ignore_errors=True)
