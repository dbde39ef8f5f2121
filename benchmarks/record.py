"""Where results are kept: one file a device, in it one section a benchmark."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


def save(
    device: str, benchmark: str, name: str, values: dict[str, Any], folder: Path = RESULTS
) -> None:
    """Puts ``values``, with versions and commit, as ``name`` under ``benchmark`` of the file.

    Other results in ``<device>.json`` stay as they are, each with the versions that it was made by.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")
    results = json.loads(file.read_text("utf-8")) if file.exists() else {"device": device}
    results.setdefault(benchmark, {})[name] = {**surroundings(), **values}
    file.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def surroundings() -> dict[str, Any]:
    """Versions, commit and number of cores."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"commit": commit(), "versions": versions, "cores": len(os.sched_getaffinity(0))}


def commit() -> str | None:
    """Of the working tree, ``-dirty`` behind it where more than results was changed; None outside
    of git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(RESULTS.parents[1]), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        found = git("rev-parse", "--short=12", "HEAD")
        elsewhere = f":!{RESULTS.relative_to(RESULTS.parents[1])}"
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", elsewhere)
        return f"{found}-dirty" if changed else found
    except (OSError, subprocess.CalledProcessError):
        return None
