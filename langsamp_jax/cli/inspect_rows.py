"""Reads what `langsamp inspect` shows: rows of a store, or of a training step as it hides them."""

import bisect
import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from langsamp_jax.data.sampling import Sampler
from langsamp_jax.data.store import Split, Store
from langsamp_jax.errors import UserError
from langsamp_jax.languages.related_codes import suggest
from langsamp_jax.objectives.base import step_keys
from langsamp_jax.objectives.masking import mask_rows
from langsamp_jax.training.config import Configs


@dataclasses.dataclass(frozen=True)
class Row:
    """One row, with what a training step has hidden in it, if it is of a step.

    ``hidden`` positions are those that the step predicts: its targets are ``tokens[hidden]``.
    """

    language: str  # the language-script
    row: int  # its number in the split
    place: int | None  # its position in the batch of the step
    tokens: np.ndarray  # int32 [valid], what stands in the store
    inputs: np.ndarray  # int32 [valid], what the model reads
    hidden: np.ndarray  # bool [valid]
    padding: int  # how many positions of the row hold nothing


def inspect_rows(
    store: Store, configs: Configs, language: str | None, step: int | None, split: str, count: int
) -> tuple[str, list[Row]]:
    """Returns a title and at most ``count`` rows: of a step, or the first of a language-script.

    With neither a step nor a language-script they are those of step 1.

    Raises:
      UserError: the store has no such language-script or rows, the plan no such step.
    """
    if count < 1:
        raise UserError(f"--rows {count}: expected a whole number above 0")
    if language is not None:
        _require_language(store, language)
    if split != "train" and (language is None or step is not None):
        raise UserError(f"--split {split} needs --language and no --step: steps are of training")
    if language is not None and step is None:
        opened = store.split(split)
        total = opened.rows[opened.names.index(language)]
        title = f"the first of {total:,} {split} rows of {language}"
        return title, stored_rows(opened, language, count)
    step = 1 if step is None else step
    train, size = configs.train, configs.train.global_batch_size
    sampler = configs.mixture.sampler(store.manifest, train.seed, train.num_steps, size)
    rows = step_rows(store, configs, sampler, step, language, count)
    return describe_batch(store.manifest.names, sampler, step, size), rows


def stored_rows(split: Split, language: str, count: int) -> list[Row]:
    """Returns the first ``count`` rows of a language-script, with nothing hidden."""
    index = split.names.index(language)
    if not split.rows[index]:
        raise UserError(f"{split.path} has no row of {language}")
    numbers = np.arange(min(count, split.rows[index]))
    read = zip(*split.read(np.full(len(numbers), index), numbers), strict=True)
    nothing = np.zeros(split.sequence_length, bool)
    return [
        _row(language, number, None, tokens, tokens, nothing, length)
        for number, (tokens, length) in enumerate(read)
    ]


def step_rows(
    store: Store, configs: Configs, sampler: Sampler, step: int, language: str | None, count: int
) -> list[Row]:
    """Returns the first ``count`` rows of a training step's batch, hidden as that step hides them.

    Steps are counted as ``metrics.jsonl`` and messages count them: the first is 1.

    Args:
      language: only rows of this language-script; None: of all.

    Raises:
      UserError: the step is not planned, or has no row of ``language``; the next one that has is
        named.
    """
    planned, size = configs.train.num_steps, configs.train.global_batch_size
    if not 1 <= step <= planned:
        raise UserError(
            f"--step {step}: expected 1 to {planned}, the steps planned (train.num_steps)"
        )
    split = store.split("train")
    languages, rows = sampler.batch(step - 1, size)
    places = np.arange(size)
    if language is not None:
        index = split.names.index(language)
        places = np.flatnonzero(languages == index)
        if not len(places):
            later = _next_step(sampler, index, step, planned, size)
            raise UserError(f"step {step} has no row of {language}; {later}")
    places = places[:count]
    tokens, lengths = split.read(languages[places], rows[places])
    keys, _ = step_keys(configs.train.seed, step - 1, size)
    masked = mask_rows(
        keys[places],
        tokens,
        np.arange(split.sequence_length) < lengths[:, None],
        store.manifest.vocabulary,
        configs.objective,
    )
    hidden = np.zeros(tokens.shape, bool)
    np.put_along_axis(hidden, np.asarray(masked.positions), np.asarray(masked.weights), axis=1)
    inputs = np.asarray(masked.inputs)
    return [
        _row(split.names[languages[p]], rows[p], int(p), tokens[i], inputs[i], hidden[i], length)
        for i, (p, length) in enumerate(zip(places, lengths, strict=True))
    ]


def describe_batch(names: Sequence[str], sampler: Sampler, step: int, size: int) -> str:
    """Returns ``step 3: 64 rows of 23 language-scripts: deu_Latn 7, eng_Latn 6, ...``."""
    counts = collections.Counter(sampler.batch(step - 1, size)[0].tolist())
    most = [f"{names[index]} {count}" for index, count in counts.most_common(5)]
    most += ["..."] * (len(counts) > 5)
    return f"step {step}: {size} rows of {len(counts)} language-scripts: {', '.join(most)}"


def _require_language(store: Store, language: str) -> None:
    """Raises UserError where the store does not hold a language-script, with close names."""
    manifest = store.manifest
    if language in manifest.skipped:
        raise UserError(f"{store.path} has no {language}: {manifest.skipped[language]}")
    if language not in manifest.names:
        raise UserError(f"{store.path} has no {language!r}{suggest(language, manifest.names)}")


def _row(
    language: str,
    row: int,
    place: int | None,
    tokens: np.ndarray,
    inputs: np.ndarray,
    hidden: np.ndarray,
    length: int,
) -> Row:
    padding = int(len(tokens) - length)
    valid = (array[:length] for array in (tokens, inputs, hidden))
    return Row(language, int(row), place, *valid, padding)


def _next_step(sampler: Sampler, index: int, step: int, planned: int, size: int) -> str:
    def drawn(steps: int) -> int:
        return int(sampler.drawn(steps * size)[index])

    later = bisect.bisect_right(range(planned + 1), drawn(step), lo=step, key=drawn)
    if later > planned:
        return f"none of the {planned} steps planned has one after it"
    return f"the next that has one is step {later}"
