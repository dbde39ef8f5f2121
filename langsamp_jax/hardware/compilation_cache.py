"""The compilation cache: what was compiled is kept, so that a run starts sooner the next time."""

import hashlib
import os
import platform
from pathlib import Path


def keep_compiled() -> None:
    """Turns on JAX's compilation cache, in the user's cache folder. Call it before jax is imported.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder, ``JAX_ENABLE_COMPILATION_CACHE=false`` turns
    it off. Where no folder can be written to there is no cache.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = caches / "langsamp" / f"jax-{processor()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def processor() -> str:
    """Returns a name of this kind of processor.

    What is compiled for one kind may crash another, and hosts of a cluster often share a home.
    """
    instructions = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = (line for line in file if line.startswith(("flags", "Features")))
            instructions = next(lines, instructions)
    return hashlib.sha256((platform.machine() + instructions).encode()).hexdigest()[:12]
