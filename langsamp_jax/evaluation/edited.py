"""A model after edits, and the means over a text that some of them put in."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.encoder import EncoderModel, sentence_reader
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.languages.aligned_text import aligned_lines, corpus_files
from langsamp_jax.models.edits import Edit, apply_edits
from langsamp_jax.models.taps import sum_over_positions

SENTENCES = 100  # of each language, whose tokens a mean is taken over


def edited(model: LoadedModel, edits: Sequence[Edit], reference: Path | None) -> LoadedModel:
    """Returns the model after ``edits``.

    Args:
      reference: a folder of text, ``iso639-3_Script.txt``, for edits that put in a mean.

    Raises:
      UserError: the model lacks what an edit is about; a mean is needed, and there is no text.
    """
    means = reference_means(model, edits, reference)
    changed, params = apply_edits(edits, model.model, model.params, means)
    return dataclasses.replace(model, model=changed, params=params)


def reference_means(
    model: EncoderModel, edits: Sequence[Edit], reference: Path | None
) -> dict[str, Any]:
    """Returns the means that ``edits`` need, as ``apply_edits`` takes them."""
    sites = sorted({edit.site for edit in edits if edit.site})
    if not sites:
        return {}
    if reference is None:
        edit = next(str(edit) for edit in edits if edit.site)
        raise UserError(f"{edit} needs a text over which the mean is: --reference CORPUS")
    return site_means(model, sites, reference_text(reference))


def reference_text(corpus: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields each language-script of a folder of text with its first sentences."""
    for name, file in corpus_files(corpus).items():
        yield name, [line for line in aligned_lines(file) if line][:SENTENCES]


def site_means(
    model: EncoderModel, sites: Collection[str], text: Iterable[tuple[str, Sequence[str]]]
) -> dict[str, Any]:
    """Returns, of each site, the mean over all tokens of a text, float32 [layers, width].

    Args:
      text: sentences by language-script.
    """
    read = sentence_reader(model, tuple((site, sum_over_positions) for site in sites))
    sums, tokens = dict.fromkeys(sites, 0.0), 0.0
    for name, sentences in text:
        values = read(sentences, name).values
        for site in sites:
            total, count = (part.sum(axis=1, dtype=np.float64) for part in values[site])
            sums[site] = sums[site] + total
        tokens += count[0]
    return {site: jnp.asarray(total / tokens, jnp.float32) for site, total in sums.items()}
