"""What the allocator of a CPU run does with memory that is freed.

XLA's CPU client asks for all temporaries of a step at once and frees them behind it. The GNU
allocator hands such blocks back to the system and asks for new ones, page by page and zeroed, at
every step. Elsewhere than on Linux with the GNU C library nothing is done here.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h


def use_one_arena() -> None:
    """Lets all threads share the only arena that can hold large blocks. Call it before JAX makes
    its threads."""
    _set(_ARENA_MAX, 1)


def keep_freed() -> None:
    """From now on nothing is handed back: the next step finds what the last one has freed.

    Call it behind what is done once, so that what that has needed is not kept."""
    _set(_MMAP_MAX, 0)
    _set(_TRIM_THRESHOLD, -1)  # never


def _set(parameter: int, value: int) -> None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: Windows
        return
    if hasattr(library, "mallopt"):
        library.mallopt(parameter, value)
