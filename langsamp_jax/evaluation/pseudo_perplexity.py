"""Protocol: pseudo-perplexity, how well a masked LM predicts a token from all the others.

Every token of a sentence is masked in turn, alone (Salazar et al. 2020, Masked Language Model
Scoring). A tokenizer with longer pieces has fewer and harder ones to predict, so models with
different tokenizers are compared by bits per character.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.batching import bucketed_batches, repeat_ids, split_lines, truncate
from langsamp_jax.evaluation.jobs import Journal, average_measures, by_language, show_languages
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.languages.aligned_text import aligned_lines, corpus_files, unread
from langsamp_jax.objectives.masked_lm import MaskedExamples, MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.parallel.sharding import use_mesh


def evaluate(model: LoadedModel, data: Path, journal: Journal, sentences: int) -> dict[str, Any]:
    """Measures the first ``sentences`` lines of each language of a corpus folder.

    Returns:
      ``metric``, and what ``by_language`` makes of the records of ``pseudo_perplexity``.

    Raises:
      UserError: the model has no head, or no language can be read.
    """
    files, measure = corpus_files(data), pseudo_perplexity(model)

    def language(name: str) -> dict[str, Any]:
        lines = [line for line in aligned_lines(files[name]) if line]
        return measure(name, lines[:sentences])

    records, skipped = journal.each(files, language)
    metrics = ["bits_per_character", "pseudo_perplexity", "unknown"]
    skipped = {**unread(data, files), **skipped}
    return {"metric": metrics[0], **by_language(records, skipped, metrics)}


def show(record: Mapping[str, Any]) -> str:
    metrics = {"bits_per_character": "bits a character:.3f"}
    metrics |= {"pseudo_perplexity": "pseudo-perplexity:,.1f", "unknown": "unknown:.1%"}
    return show_languages(record, {"sentences": "sentences:,", **metrics}, metrics)


measures = average_measures


def pseudo_perplexity(trained: LoadedModel) -> Callable[[str, Sequence[str]], dict[str, Any]]:
    """Returns a function that measures lines of a language-script.

    It gives ``sentences``, ``truncated`` (cut to the model's length), ``tokens`` without specials,
    ``unknown`` (those of them that are the unknown piece, which is easy to predict and says
    little), ``pseudo_perplexity``: exp of the mean loss of a token, and ``bits_per_character``.

    Raises:
      UserError: the model is a plain encoder, without a head.
    """
    if not trained.has_head:
        raise UserError(
            f"{trained.path} is a plain encoder; pseudo-perplexity needs a language-modelling head"
        )
    vocabulary = trained.tokenizer.vocabulary
    objective = MaskedLm(trained.model, vocabulary, ObjectiveConfig())

    def measure(name: str, lines: Sequence[str]) -> dict[str, Any]:
        tables = trained.head_ids(name)
        sentences = split_lines(*trained.tokenizer.encode(lines))
        cut, longer = truncate(sentences, trained.max_length, vocabulary.eos_id)
        masked = [copy for ids in cut for copy in _each_masked(ids, vocabulary.mask_id)]
        if not masked:
            raise UserError("no tokens")
        rows, positions, targets = (list(column) for column in zip(*masked, strict=True))
        limits = trained.max_length, trained.tokens_at_once, trained.mesh.size
        losses = []
        with use_mesh(trained.mesh):
            for padded in bucketed_batches(rows, vocabulary.pad_id, *limits):
                size, chosen = len(padded.tokens), padded.chosen
                ids = repeat_ids(tables, size)
                at = _column([positions[i] for i in chosen], size)
                aim = _column([targets[i] for i in chosen], size)
                weights = (np.arange(size) < len(chosen))[:, None]
                examples = MaskedExamples(*padded[1:], ids, at, aim, weights)
                losses.append(_losses(objective, trained.params, trained.place(examples)))
        nats = float(sum(np.asarray(batch_losses, np.float64).sum() for batch_losses in losses))
        # The share that is not cut off. A tokenizer may drop all of a line: a zero-width space.
        share = [(len(a) - 2) / max(1, len(b) - 2) for a, b in zip(cut, sentences, strict=True)]
        characters = sum(len(line) * part for line, part in zip(lines, share, strict=True))
        return {
            "language": name,
            "sentences": len(lines),
            "truncated": int(longer.sum()),
            "tokens": len(rows),
            "unknown": sum(target == vocabulary.unk_id for target in targets) / len(rows),
            "pseudo_perplexity": math.exp(nats / len(rows)),
            "bits_per_character": nats / math.log(2) / characters,
        }

    return measure


@functools.partial(jax.jit, static_argnums=0)  # compiled once for all checkpoints
def _losses(objective: MaskedLm, params: Any, examples: MaskedExamples) -> jax.Array:
    """Returns the loss of each row, float32 [rows]."""
    return objective.loss(params, examples, None)[1][0]


def _each_masked(ids: np.ndarray, mask_id: int) -> list[tuple[np.ndarray, int, int]]:
    """Returns for every token but specials a copy with it masked, its position, and its id."""
    copies = []
    for position in range(1, len(ids) - 1):
        copy = ids.copy()
        copy[position] = mask_id
        copies.append((copy, position, int(ids[position])))
    return copies


def _column(values: list[int], rows: int) -> np.ndarray:
    """Returns int32 [rows, 1], zeros behind the values."""
    return np.pad(np.array(values, np.int32), (0, rows - len(values)))[:, None]
