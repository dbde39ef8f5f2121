"""Growing a store: what a new store takes from its base, the store whose text comes first."""

import functools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from data_pipelines.packing.provenance import LINES, hashes_file
from langsamp_jax.data.manifest import SPLITS, Counts, Manifest
from langsamp_jax.data.store import Split, Store
from langsamp_jax.errors import UserError


def require_hashes(base: Store, names: Iterable[str]) -> None:
    """Raises UserError where the hashes of the lines of a language-script are not complete."""
    for name in sorted(set(base.manifest.names) & set(names)):
        file = hashes_file(base.path, name)
        lines = sum(base.manifest.counts[split][name].lines for split in SPLITS)
        if not file.exists() or file.stat().st_size != 8 * lines:
            raise UserError(f"{file} is missing or damaged; prepare the store again")


def base_counts(base: Store | None, name: str) -> dict[str, Counts]:
    """Returns what the base holds of a language-script, by split; zeros where it holds nothing."""
    if base is None or name not in base.manifest.counts["train"]:
        return dict.fromkeys(SPLITS, Counts(0, 0, 0, 0))
    return {split: base.manifest.counts[split][name] for split in SPLITS}


def tokens_in_rows(counts: Counts, sequence_length: int) -> int:
    """Returns how many tokens stand in rows; those behind the last training row were dropped."""
    return min(counts.tokens, counts.rows * sequence_length)


@functools.lru_cache(maxsize=len(SPLITS))
def open_split(path: Path, fingerprint: str, split: str) -> Split:
    """Opens a split of the base, once in a process: opening looks at every file.

    Args:
      fingerprint: the base's; another store at ``path`` is opened anew.
    """
    return Store(path).split(split)


def merge_base(
    base: Manifest,
    counts: dict[str, dict[str, Counts]],
    skipped: dict[str, str],
    files: dict[str, tuple[int, str]],
) -> tuple[dict[str, dict[str, Counts]], dict[str, str], dict[str, tuple[int, str]]]:
    """Returns the three, which are fields of a manifest, with those of the base added.

    Args:
      counts: of the language-scripts with new text, which include what the base has of them.
      skipped: the language-scripts that fill no row even with the new text.
      files: what was written; a file of the base with the same name is replaced.
    """
    merged = {split: base.counts[split] | counts[split] for split in SPLITS}
    reasons = base.skipped | skipped
    reasons = {name: why for name, why in reasons.items() if name not in counts["train"]}
    return merged, reasons, base.files | files


def link_base(base: Path, store: Path) -> None:
    """Links the files of the base that ``store`` has no file of its own for."""
    for folder in (*SPLITS, LINES):
        for file in (base / folder).rglob("*"):
            target = store / file.relative_to(base)
            if file.is_file() and not target.exists():
                link(file, target)


def link(file: Path, target: Path) -> None:
    """Makes ``target`` a hard link of a file, or a copy where the file system has no links."""
    try:
        os.link(file, target)
    except FileNotFoundError:  # most folders are there: asking for each first takes longer
        target.parent.mkdir(parents=True)
        link(file, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)
