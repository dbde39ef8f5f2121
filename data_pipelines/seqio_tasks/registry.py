"""Any registered seqio Task or Mixture: found, checked, and read as ids."""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import absl.logging
import numpy as np

from data_pipelines.seqio_tasks.imports import seqio, tf
from data_pipelines.seqio_tasks.tasks import AddLanguageScript
from data_pipelines.seqio_tasks.vocabulary import CodeVocabulary, TokenizerVocabulary
from langsamp_jax.errors import UserError, moved_module
from langsamp_jax.io.progress import Progress
from langsamp_jax.languages.inventory import check_language_script

_EXAMPLES_AT_ONCE = 1000
_IDS = ("language_ids", "script_ids")
_HINT = (
    "see data_pipelines/seqio_tasks/tasks.py: output_features, and the preprocessors "
    "encode_lines and AddLanguageScript"
)


@dataclasses.dataclass(frozen=True)
class LanguageTasks:
    """The Tasks of one language-script, in the order of their names, and their rates."""

    name: str
    tasks: tuple[seqio.Task, ...]
    rates: tuple[float, ...]


class DamagedTask(UserError):
    """Tells that files of a Task cannot be read to their end."""

    def __init__(self, task: seqio.Task, files: list[str]):
        self.files = files
        super().__init__(
            f"Task {task.name}: damaged: {', '.join(files)}; mend it and go on with the same "
            "command, or leave out what cannot be read with --skip_damaged"
        )


@dataclasses.dataclass(frozen=True)
class OpenMixture:
    """A Mixture, or a single Task, by language-script, these in the order of their names."""

    name: str
    vocabulary: TokenizerVocabulary
    languages: tuple[LanguageTasks, ...]

    @property
    def weights(self) -> dict[str, float]:
        """Returns the rate of each language-script, the sum of those of its Tasks, if above 0."""
        sums = {language.name: sum(language.rates) for language in self.languages}
        return {name: rate for name, rate in sums.items() if rate}

    @property
    def num_tasks(self) -> int:
        """Returns how many Tasks there are, of all language-scripts."""
        return sum(len(language.tasks) for language in self.languages)


def open_mixture(name: str, module: str | None = None) -> OpenMixture:
    """Opens a Mixture that ``module`` registers (``package.module``, or a file) when imported.

    A Task's language-script is that of its preprocessor ``AddLanguageScript``, or, where it has
    none, of its first example.

    Raises:
      UserError: the module cannot be imported, registers no such Mixture or Task, or one of the
        Tasks lacks what training needs.
    """
    import_module(module)
    mixture = _registered(name, module)
    tasks = seqio.get_subtasks(mixture)
    for task in tasks:
        _require_features(task)
    vocabulary = tasks[0].output_features["targets"].vocabulary
    for task in tasks:
        if task.output_features["targets"].vocabulary != vocabulary:
            raise UserError(
                f"{tasks[0].name} and {task.name} have different tokenizers; a Mixture has one"
            )
    rates: dict[str, dict[seqio.Task, float]] = {}
    with Progress("look at the tasks", len(tasks), "tasks") as progress:
        for task in tasks:
            rates.setdefault(_language_script(task), {})[task] = _rate(mixture, task)
            progress.advance(1)
    languages = (
        LanguageTasks(language, tuple(by_task), tuple(by_task.values()))
        for language, by_task in sorted(rates.items())
    )
    return OpenMixture(name, vocabulary, tuple(languages))


def import_module(module: str | None) -> None:
    """Imports a module, or a ``.py`` file, once, for what it registers.

    TensorFlow sees no GPU from then on, and seqio has no line for every Task.
    """
    absl.logging.set_verbosity(absl.logging.ERROR)
    if module is None:
        return
    try:
        if module.endswith(".py"):
            _run_file(Path(module).absolute())
        else:
            if (here := str(Path.cwd())) not in sys.path:
                sys.path.insert(0, here)
            importlib.import_module(module)
    except UserError as error:
        raise UserError(f"--module {module}: {error}") from error
    except Exception as error:  # whatever the user's code does
        reason = moved_module(error) or f"{type(error).__name__}: {error}"
        raise UserError(f"--module {module} cannot be imported: {reason}") from error


def batches(
    task: seqio.Task,
    split: str,
    language_script: str,
    epochs: int | None = 1,
    skip_damaged: bool = False,
    seed: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the examples of a Task in its order, some at a time; ``epochs`` None: for ever.

    Args:
      skip_damaged: leaves out the records that cannot be read.
      seed: of preprocessors that draw at random.

    Yields:
      ``ids`` int32 [tokens], the ``targets`` one after the other, and ``lengths`` int64
      [examples], none 0.

    Raises:
      UserError: a file of the Task is damaged, it is named; an example is not of
        ``language_script``; an id is not in the vocabulary.
    """
    size = task.output_features["targets"].vocabulary.vocab_size
    for example in _examples(task, split, epochs, skip_damaged, seed, _EXAMPLES_AT_ONCE):
        names = {
            _name(task, *codes)
            for codes in {*zip(*(example[k][0].tolist() for k in _IDS), strict=True)}
        }
        if names - {language_script}:
            raise UserError(
                f"Task {task.name} has examples of {', '.join(sorted(names))}; make a Task of each"
            )
        ids, lengths = example["targets"]
        if len(ids) and not 0 <= ids.min() <= ids.max() < size:
            raise UserError(
                f"Task {task.name} has targets from {ids.min()} to {ids.max()}, but its vocabulary "
                f"has {size} ids"
            )
        yield ids, lengths[lengths > 0]


def number_of_examples(task: seqio.Task, split: str) -> int | None:
    """Returns how many examples the source of a Task has before preprocessing, None if unknown."""
    try:
        return task.num_input_examples(split)
    except KeyError:  # told of other splits only
        return None


def damaged_files(task: seqio.Task, split: str) -> list[str]:
    """Lists the files of a Task that cannot be read to their end."""
    shards = list(task.source.list_shards(split))
    damaged = []
    for index, shard in enumerate(shards):
        shard_info = seqio.ShardInfo(index, len(shards)) if len(shards) > 1 else None
        dataset = task.source.get_dataset(split, shuffle=False, shard_info=shard_info)
        try:
            for _ in dataset:
                pass
        except tf.errors.DataLossError:
            damaged.append(shard)
    return damaged


def _examples(
    task: seqio.Task,
    split: str,
    epochs: int | None,
    skip_damaged: bool,
    seed: int,
    at_once: int,
) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Yields batches: for each of the three features its values, and how many each example has."""
    if skip_damaged:
        task = task.replace(source=_readable(task.source))
    tf.random.set_seed(seed)
    with _errors_named(task, split):
        dataset = task.get_dataset(
            split=split,
            shuffle=False,
            num_epochs=epochs,
            trim_output_features=False,
            try_in_mem_cache=epochs is None,
        )
        dataset = dataset.map(lambda example: {key: example[key] for key in ("targets", *_IDS)})
        batched = iter(dataset.ragged_batch(at_once))
    while True:
        with _errors_named(task, split):  # not around the yield: it may end in a dying interpreter
            batch = next(batched, None)
        if batch is None:
            return
        yield {key: _flat(value) for key, value in batch.items()}


def _flat(values: tf.Tensor | tf.RaggedTensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of a batch, one after the other, and how many each example has."""
    if isinstance(values, tf.RaggedTensor):
        return values.flat_values.numpy(), values.row_lengths().numpy()
    array = values.numpy()
    return array.reshape(-1), np.full(len(array), array[:1].size, np.int64)


def _readable(source: seqio.DataSource) -> seqio.DataSource:
    """Wraps a source: behind a damaged record, it goes on with the next file."""

    def dataset(split: str, shuffle_files: bool) -> tf.data.Dataset:
        return source.get_dataset(split, shuffle=shuffle_files).ignore_errors()

    return seqio.FunctionDataSource(dataset, source.splits)


@contextlib.contextmanager
def _errors_named(task: seqio.Task, split: str) -> Iterator[None]:
    """Turns what is wrong with the files of a Task into a UserError that names them."""
    try:
        yield
    except tf.errors.DataLossError as error:
        raise DamagedTask(task, damaged_files(task, split) or [f"its split {split}"]) from error
    except ValueError as error:
        if not str(error).startswith("Task "):  # seqio's own words of features and caches
            raise
        raise UserError(f"Task {task.name}: {error}; {_HINT}") from error
    except tf.errors.NotFoundError as error:
        raise UserError(f"Task {task.name}: {error.message.splitlines()[0]}") from error
    except tf.errors.OpError as error:  # a UserError inside tf.data comes as the text of its trace
        own = re.search(r"\bUserError: (.+)", error.message)
        if own is None:
            raise
        raise UserError(own[1]) from error


def _registered(name: str, module: str | None) -> seqio.Task | seqio.Mixture:
    """Returns a registered Mixture or Task; raises UserError with the names that are close."""
    try:
        return seqio.get_mixture_or_task(name)
    except ValueError:
        mixtures, tasks = sorted(seqio.MixtureRegistry.names()), sorted(seqio.TaskRegistry.names())
    names = [*mixtures, *tasks]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")
    hint = f"there are {shown}" if names else "there is none; --module names what registers it"
    if close:
        hint = f"did you mean {', '.join(close)}? {hint[0].upper()}{hint[1:]}"
    after = "" if module is None else f" after importing {module}"
    raise UserError(f"no seqio Mixture or Task {name!r}{after}; {hint}")


def _require_features(task: seqio.Task) -> None:
    """Raises UserError for a Task that lacks a feature, its vocabulary or the split train."""
    wanted = {
        "targets": TokenizerVocabulary,
        "language_ids": CodeVocabulary,
        "script_ids": CodeVocabulary,
    }
    features = task.output_features
    for name, vocabulary in wanted.items():
        if name not in features:
            raise UserError(
                f"Task {task.name} has the features {', '.join(features)}, but no {name}; {_HINT}"
            )
        if not isinstance(features[name].vocabulary, vocabulary):
            other = type(features[name].vocabulary).__name__
            raise UserError(
                f"Task {task.name}: the vocabulary of {name} is a {other}, expected a "
                f"{vocabulary.__name__}; {_HINT}"
            )
    if "train" not in task.splits:
        raise UserError(f"Task {task.name} has no split train, only {', '.join(task.splits)}")


def _language_script(task: seqio.Task) -> str:
    """Returns the language-script of a Task, see ``open_mixture``."""
    names = [s.language_script for s in task.preprocessors if isinstance(s, AddLanguageScript)]
    if names:
        name = names[-1]
    else:
        first = next(_examples(task, "train", 1, True, 0, 1), None)
        if first is None:
            raise UserError(f"Task {task.name} has no training examples")
        name = _name(task, *(first[key][0][0] for key in _IDS))
    try:
        check_language_script(name)
    except UserError as error:
        raise UserError(f"Task {task.name}: {error}") from None
    return name


def _name(task: seqio.Task, *rows: int) -> str:
    """Returns ``deu_Latn`` for the ids in the features of a Task."""
    codes = [task.output_features[key].vocabulary.codes for key in _IDS]
    for key, of_key, row in zip(_IDS, codes, rows, strict=True):
        if not 0 <= row < len(of_key):
            raise UserError(f"Task {task.name}: {key} {row}, but there are {len(of_key)} codes")
    return "_".join(of_key[row] for of_key, row in zip(codes, rows, strict=True))


def _rate(mixture: seqio.Task | seqio.Mixture, task: seqio.Task) -> float:
    """Returns the rate of a Task in a Mixture, at least 0 and finite."""
    if isinstance(mixture, seqio.Task):
        return 1.0
    try:
        rate = mixture.get_rate(task)
    except (TypeError, ValueError, KeyError) as error:  # a source that does not know its size
        raise UserError(
            f"{mixture.name}: the rate of {task.name} cannot be computed ({error}); give its "
            "source num_input_examples, or the Mixture a number"
        ) from error
    if not 0 <= rate < float("inf"):
        raise UserError(f"{mixture.name}: the rate of {task.name} is {rate}")
    return rate


@functools.cache
def _run_file(file: Path) -> None:
    """Runs a Python file, once in a process."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
