"""The scratch folder: what is left of an unfinished store, and the lock on it.

Its folders keep the names that they had in earlier versions, so that what these left unfinished
is taken up; so do the keys of the results in them.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from langsamp_jax.errors import UserError
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
def lock_output(output: Path) -> Iterator[None]:
    """Keeps ``output`` for the work within, until it or its process ends.

    Raises:
      UserError: ``output`` holds something else, or another call is at work on it.
    """
    require_absent(output)
    with open(scratch_folder(output) / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another call is at work on {output}; wait for it or name another --output"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
