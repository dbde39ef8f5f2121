"""The compilation cache of the tests, which outlives the clone and which suites share.

JAX writes an entry without a lock and not in one go, so that a reader may find a part of one. A
session therefore compiles into a folder of its own, where links stand for the entries that are
kept, and its end moves the new ones to the others, each by one rename: any number of suites may
run at once.
"""

import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from langsamp_jax.hardware.compilation_cache import processor

KEPT = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    / "langsamp-tests"
    / f"jax-{version('jax')}-{processor()}"  # what another has compiled is of no use
)


def open_session() -> str:
    """Returns the folder of this session, new but in a worker of pytest-xdist."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return os.environ["JAX_COMPILATION_CACHE_DIR"]
    folder = Path(tempfile.mkdtemp(prefix="langsamp-tests-"))
    for entry in KEPT.glob("*-cache"):
        (folder / entry.name).symlink_to(entry)
    return str(folder)


def close_session(folder: str) -> None:
    """Keeps what is new in ``folder``, and removes it.

    What a killed process has left half written is not kept: JAX would not write it again, and its
    warning would stand among the lines of a command that are counted.
    """
    from jax._src.compilation_cache import decompress_executable

    KEPT.mkdir(parents=True, exist_ok=True)
    for entry in Path(folder).glob("*-cache"):
        if entry.is_symlink():
            continue
        try:
            decompress_executable(entry.read_bytes())
        except Exception:  # of whichever library packs them
            continue
        part = KEPT / f"{entry.name}.{os.getpid()}"
        shutil.copyfile(entry, part)
        part.replace(KEPT / entry.name)
    shutil.rmtree(folder)
