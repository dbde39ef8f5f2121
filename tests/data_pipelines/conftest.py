"""A bucket without a network."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from etils.epath import backend


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> epath.Path:
    """``gs://...``, which TensorFlow, by which buckets are read, keeps in memory."""
    for method in ("open", "exists", "isdir", "listdir", "makedirs", "stat"):
        monkeypatch.setattr(
            backend.tf_backend, method, _in_memory(getattr(backend.tf_backend, method))
        )
    return epath.Path(f"gs://{tmp_path.name}")


def _in_memory(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda path, *args, **options: method(
        str(path).replace("gs://", "ram://"), *args, **options
    )


@pytest.fixture
def no_tasks() -> Iterator[None]:
    """No seqio Task or Mixture is registered, before the test and after it."""
    import seqio

    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        registry.reset()
    yield
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        registry.reset()
