"""Training straight from a seqio Mixture: rows are packed while they are needed, without a store.

For some tens of Tasks. Each is a pipeline of TensorFlow's with threads and buffers of its own, and
going on with a run packs again what it has had; ``langsamp prepare --mixture`` has neither.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipelines.packing.rows import require_sequence_length
from data_pipelines.seqio_tasks.registry import (
    LanguageTasks,
    OpenMixture,
    batches,
    number_of_examples,
)
from langsamp_jax.data.manifest import Counts, Manifest
from langsamp_jax.data.sampling import INFINITE
from langsamp_jax.errors import UserError
from langsamp_jax.io.progress import Progress
from langsamp_jax.text.tokenizer import Tokenizer, Vocabulary

MANY_TASKS = 64  # above which a store is the better way

_WINDOW = 128  # rows; more would mix better and be later to begin
_FAR = 16  # batches; passing over more is worth a word


class LiveMixture:
    """Reads a Mixture through the interface of ``store.Store``, as far as training needs it.

    A language-script is an endless stream of rows. They are packed as a store's: the examples of a
    Task in its own order, epoch after epoch, one after the other, cut into rows; then shuffled
    within a window. Row n is a function of the Mixture, the seed and n. Several Tasks of one
    language-script take turns by their rates, row by row. Validation reads the same first rows as
    it does of a store.

    Args:
      eval_rows: how many rows of each language-script validation has at most; None: all.
    """

    def __init__(
        self, mixture: OpenMixture, sequence_length: int, seed: int, eval_rows: int | None
    ):
        require_sequence_length(sequence_length)
        self.path = Path(mixture.name)
        self._languages = [language for language in mixture.languages if sum(language.rates) > 0]
        self._tokenizer = mixture.vocabulary.tokenizer
        self._seed, self._eval_rows = seed, eval_rows
        none = Counts(0, 0, 0, 0)
        self.manifest = Manifest(
            sequence_length=sequence_length,
            vocabulary=self._tokenizer.vocabulary,
            tokenizer=self._tokenizer.fingerprint,
            counts={
                "train": {
                    language.name: Counts(_examples(language), 0, 0, INFINITE)
                    for language in self._languages
                },
                "validation": {language.name: none for language in self._languages},
            },
            skipped={},
            files={},
        )

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of the Mixture."""
        return self._tokenizer

    def split(self, split: str) -> "LiveSplit | FirstRows":
        """Opens the training rows, or reads the validation rows."""
        length = self.manifest.sequence_length
        if split == "train":
            return LiveSplit(self._languages, length, self._seed)
        vocabulary = self.manifest.vocabulary
        return FirstRows(self._languages, length, vocabulary, self._eval_rows)


class LiveSplit:
    """The training rows, with the interface of ``store.Split``.

    They are cheap to read in ascending order of each language-script; further on, all rows
    between are packed; further back, all from the first.
    """

    def __init__(self, languages: list[LanguageTasks], sequence_length: int, seed: int):
        self.names = tuple(language.name for language in languages)
        self.sequence_length = sequence_length
        self.rows = np.full(len(languages), INFINITE)
        self._streams = [
            _Stream(functools.partial(endless_rows, language, sequence_length, [seed, number]))
            for number, language in enumerate(languages)
        ]

    def read(self, language: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads rows, as ``store.Split.read`` does."""
        order = np.lexsort((row, language))
        chosen, first = np.unique(language[order], return_index=True)
        starts = [
            (self._streams[n], int(r)) for n, r in zip(chosen, row[order][first], strict=True)
        ]
        before = sum(stream.distance(start) for stream, start in starts)
        if before > _FAR * len(row):
            with Progress("pack the rows before", before, "rows") as progress:
                for stream, start in starts:
                    progress.advance(stream.distance(start))
                    stream.forward(start)
        tokens = np.empty((len(row), self.sequence_length), np.int32)
        for i in order:
            tokens[i] = self._streams[language[i]].read(int(row[i]))
        return tokens, np.full(len(row), self.sequence_length, np.int32)


class FirstRows:
    """The first validation rows of each language-script, in memory, as a ``store.Split``."""

    def __init__(
        self,
        languages: list[LanguageTasks],
        sequence_length: int,
        vocabulary: Vocabulary,
        most: int | None,
    ):
        self.names = tuple(language.name for language in languages)
        self.sequence_length = sequence_length
        rows = [
            list(itertools.islice(_validation(language, sequence_length), most))
            for language in languages
        ]
        self.rows = np.array([len(of_language) for of_language in rows], np.int64)
        self._first = np.cumsum(self.rows) - self.rows
        all_rows = list(itertools.chain.from_iterable(rows))
        self._lengths = np.array([len(row) for row in all_rows], np.int32)
        self._tokens = np.full((len(all_rows), sequence_length), vocabulary.pad_id, np.int32)
        for tokens, row in zip(self._tokens, all_rows, strict=True):
            tokens[: len(row)] = row

    def read(self, language: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads rows, as ``store.Split.read`` does."""
        index = self._first[language] + row
        return self._tokens[index], self._lengths[index]


class _Stream:
    """An endless sequence that ``begin`` starts, read by position."""

    def __init__(self, begin: Callable[[], Iterator[np.ndarray]]):
        self._begin, self._rows, self._next = begin, begin(), 0

    def distance(self, position: int) -> int:
        """Returns how many elements must be passed over to come to one."""
        return position - self._next if position >= self._next else position

    def forward(self, position: int) -> None:
        """Makes an element the next to be read; begins anew if it lies behind."""
        if position < self._next:
            self._rows, self._next = self._begin(), 0
        for _ in range(position - self._next):
            next(self._rows)
        self._next = position

    def read(self, position: int) -> np.ndarray:
        """Returns one element."""
        self.forward(position)
        self._next += 1
        return next(self._rows)


def endless_rows(
    language: LanguageTasks, sequence_length: int, seed: list[int]
) -> Iterator[np.ndarray]:
    """Yields the training rows of a language-script, int32 [sequence_length], without end."""
    rng = np.random.default_rng(seed)
    rates = np.array(language.rates) / sum(language.rates)
    tasks = [
        packed(batches(task, "train", language.name, None, seed=seed[0]), sequence_length)
        for task in language.tasks
    ]

    def in_turn() -> Iterator[np.ndarray]:
        while True:
            task = rng.choice(len(tasks), p=rates)
            row = next(tasks[task], ())
            if len(row) < sequence_length:  # for ever is not over unless there was nothing
                raise UserError(f"Task {language.tasks[task].name} has no training examples")
            yield row

    rows = in_turn()
    window = list(itertools.islice(rows, _WINDOW))
    for row in rows:
        index = rng.integers(len(window))
        yield window[index]
        window[index] = row


def packed(
    examples: Iterable[tuple[np.ndarray, np.ndarray]], sequence_length: int
) -> Iterator[np.ndarray]:
    """Cuts the ids of ``examples`` (see ``batches``) into rows; the last may be shorter."""
    pending = np.zeros(0, np.int32)
    for ids, _ in examples:
        pending = np.concatenate([pending, ids])
        full = len(pending) - len(pending) % sequence_length
        yield from pending[:full].reshape(-1, sequence_length)
        pending = pending[full:]
    if len(pending):
        yield pending


def _validation(language: LanguageTasks, sequence_length: int) -> Iterator[np.ndarray]:
    """Yields the validation rows of a language-script; the last may be shorter."""
    tasks = [task for task in language.tasks if "validation" in task.splits]
    examples = (batches(task, "validation", language.name) for task in tasks)
    return packed(itertools.chain.from_iterable(examples), sequence_length)


def _examples(language: LanguageTasks) -> int:
    """Returns how many training examples there are, as far as their sources know."""
    return sum(number_of_examples(task, "train") or 0 for task in language.tasks)
