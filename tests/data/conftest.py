"""Manifests with counts by hand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from langsamp_jax.data.manifest import Counts, Manifest
from langsamp_jax.data.store import Store


@pytest.fixture(scope="session")
def manifest(store_path: Path) -> Manifest:
    return Store(store_path).manifest


@pytest.fixture(scope="session")
def with_train_counts() -> Callable[[Manifest, dict[str, tuple[int, int]]], Manifest]:
    """``with_train_counts(manifest, {"deu_Latn": (lines, rows), ...})``; a row has 100 tokens."""

    def with_train_counts(manifest: Manifest, counts: dict[str, tuple[int, int]]) -> Manifest:
        train = {
            name: Counts(lines, 100 * rows, 0, rows)
            for name, (lines, rows) in sorted(counts.items())
        }
        return dataclasses.replace(manifest, counts={**manifest.counts, "train": train})

    return with_train_counts


@pytest.fixture(scope="session")
def four(manifest, with_train_counts) -> Manifest:
    """Rows 4, 40, 400 and none; lines the other way round."""
    counts = {"aaa_Latn": (900, 4), "bbb_Latn": (90, 40), "ccc_Latn": (9, 400), "ddd_Latn": (3, 0)}
    return with_train_counts(manifest, counts)
