"""A bucket without a network; seqio Tasks of lines in memory."""

from collections.abc import Callable, Iterator, Sequence
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


@pytest.fixture
def features(tokenizer_file: Path) -> dict[str, Any]:
    """The features of Tasks in three language-scripts."""
    from data_pipelines.seqio_tasks.tasks import output_features
    from data_pipelines.seqio_tasks.vocabulary import TokenizerVocabulary

    names = ["deu_Latn", "gsw_Latn", "srp_Cyrl"]
    return output_features(TokenizerVocabulary(tokenizer_file), names)


@pytest.fixture
def add_task(features: dict[str, Any]) -> Callable[..., Any]:
    """``add_task(name, language_script, train, validation)``: a Task of lines in memory."""
    import seqio
    import tensorflow as tf

    from data_pipelines.seqio_tasks.tasks import AddLanguageScript, encode_lines

    def add_task(
        name: str,
        language_script: str,
        train: Sequence[str],
        validation: Sequence[str] | None = None,
        **changes: object,
    ) -> Any:
        lines = {"train": train} | ({} if validation is None else {"validation": validation})
        source = seqio.FunctionDataSource(
            lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(lines[split]), lines
        )
        vocabulary = features["targets"].vocabulary
        steps = [encode_lines(vocabulary), AddLanguageScript(language_script, features)]
        arguments = {"preprocessors": steps, "output_features": features, **changes}
        return seqio.TaskRegistry.add(name, source, **arguments)

    return add_task


@pytest.fixture
def mixture_refused(refused: Callable[..., str]) -> Callable[..., str]:
    """``mixture_refused(mixture, output, module, **options)``: the one line of
    ``prepare_mixture``; there is no output."""
    from data_pipelines.seqio_tasks.compile import prepare_mixture

    def mixture_refused(
        name: str, output: Path, module: str | None = None, **options: object
    ) -> str:
        line = refused(prepare_mixture, name, module, output, 16, **options)
        assert not output.exists()
        return line

    return mixture_refused
