"""Sentence retrieval across languages (the protocol of SR-B and SR-T).

A sentence is the mean over all of its tokens, specials included, of one layer's states: the 8th
of 12 in the published code, the layer at two thirds of the depth here. The pivot's sentences are
the queries, another language's the pool, compared by cosine. The language and script vectors play
no part, except in the input-side ablation, whose encoder needs them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from langsamp_jax.evaluation.datasets.pairs import SentencePairs, pairs_of
from langsamp_jax.evaluation.encoder import Encode
from langsamp_jax.evaluation.journal import Journal
from langsamp_jax.evaluation.statistics import cosines
from langsamp_jax.languages.aligned_text import aligned_corpus

TOP = (1, 5, 10)


def folder_pairs(corpus: Path, pivot: str) -> tuple[dict[str, SentencePairs], dict[str, str]]:
    """The pairs of a folder of ``iso639-3_Script.txt`` files in which line i says the same
    everywhere; an empty line is a missing sentence, and that pair is left out.

    Returns:
      the pairs of each language, and why others have none.

    Raises:
      UserError: as ``aligned_corpus``.
    """
    lines, skipped = aligned_corpus(corpus, pivot)
    queries, found = lines.pop(pivot), {}
    for name, pool in lines.items():
        if (pairs := pairs_of(queries, pool)) is not None:
            found[name] = pairs
        else:
            skipped[name] = f"no line that {pivot} has too"
    return found, skipped


def evaluate_pairs(
    encode: Encode, pivot: str, pairs: Mapping[str, SentencePairs], journal: Journal
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Accuracy at 1, 5 and 10 of every language, beside what picking at random gives.

    Args:
      encode: for one layer, see ``sentence_encoder``. Each sentence of the pivot is encoded once,
        however many languages translate it.

    Returns:
      records with ``language``, ``sentences``, ``truncated`` (of both sides), ``top1``,
      ``chance_top1`` and so on; and why a language that the encoder cannot read has none.

    Raises:
      UserError: the encoder cannot read the pivot.
    """
    queries = sorted({line for pair in pairs.values() for line in pair.pivot})
    row = {line: i for i, line in enumerate(queries)}
    asked = encode(queries, pivot)

    def accuracies(name: str) -> dict[str, Any]:
        rows = [row[line] for line in pairs[name].pivot]
        pool = encode(pairs[name].other, name)
        rank = ranks(asked.vectors[0, rows], pool.vectors[0])
        return {
            "language": name,
            "sentences": len(rank),
            "truncated": int(asked.truncated[rows].sum() + pool.truncated.sum()),
            **{f"top{k}": float((rank < k).mean()) for k in TOP},
            **{f"chance_top{k}": min(1.0, k / len(rank)) for k in TOP},
        }

    return journal.each(pairs, accuracies)


def ranks(queries: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """How many wrong sentences of the pool are at least as close to query i as sentence i is.

    Ties count as wrong, so that a collapsed encoder scores nothing; rounding makes no winner.

    Args:
      queries, pool: float [n, d], row i of one translating row i of the other.

    Returns:
      int64 [n].
    """
    similarity = cosines(queries, pool)
    return (similarity >= np.diag(similarity)[:, None] - 1e-10).sum(axis=1) - 1
