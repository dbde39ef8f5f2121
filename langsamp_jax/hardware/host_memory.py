"""What the allocator of a CPU run does with memory that is freed.

XLA's CPU client asks for all temporaries of a step at once and frees them behind it. The GNU
allocator hands such blocks back to the system and asks for new ones, page by page and zeroed, at
every step. Elsewhere than on Linux with the GNU C library nothing is done here.
"""

import ctypes
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h
_ROOM = 5  # times what a run holds between steps


def use_one_arena() -> None:
    """Lets all threads share the only arena that can keep large blocks. Call it before JAX makes
    its threads."""
    _set(_ARENA_MAX, 1)


def keep_freed(held: int) -> None:
    """From now on nothing is handed back: the next step finds what the last one has freed.

    Call it behind what is done once, so that what that has needed is not kept. A step can begin
    before the block of the last one is freed, and a process comes to hold two or three of them.
    Nothing is done, therefore, where less than five times ``held``, the bytes of the training
    state, are available.
    """
    if _available() >= _ROOM * held:
        _set(_MMAP_MAX, 0)
        _set(_TRIM_THRESHOLD, -1)  # never


def _set(parameter: int, value: int) -> None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: Windows
        return
    if hasattr(library, "mallopt"):
        library.mallopt(parameter, value)


def _available() -> int:
    """Bytes that can be had without swapping; 0 where the system does not say it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if "MemAvailable" in line) * 1024
    except (OSError, StopIteration):
        return 0
