"""Protocol: sentence retrieval across languages (SR-B and SR-T).

A sentence is the mean over all of its tokens, specials included, of one layer's states: the 8th
of 12 in the published code, the layer at two thirds of the depth here unless another is asked for.
The pivot's sentences are
the queries, another language's the pool, compared by cosine. The language and script vectors play
no part, except in the input-side ablation, whose encoder needs them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.datasets.pairs import SentencePairs, pairs_of, read_sentence_pairs
from langsamp_jax.evaluation.encoder import Encode, sentence_encoder
from langsamp_jax.evaluation.jobs import Journal, average_measures, by_language, show_languages
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.evaluation.statistics import cosines
from langsamp_jax.languages.aligned_text import aligned_corpus

TOP = (1, 5, 10)
# The published lists of languages.
_PUBLISHED = {
    "retrieval-tatoeba": "sr_tatoeba",
    "retrieval-bible": "sr_bible",
}


def evaluate(
    model: LoadedModel,
    data: Path,
    journal: Journal,
    task: str,
    pivot: str,
    layer: int | Literal["last"] | None = None,
) -> dict[str, Any]:
    """Measures retrieval from the sentences of ``pivot``, a language-script.

    Args:
      data: for ``retrieval-tatoeba`` pairs of files, for ``retrieval-bible`` a folder of aligned
        ones.
      layer: of the states; None: the protocol's.

    Returns:
      ``metric``, ``pivot``, ``layer``, and what ``by_language`` makes of ``evaluate_pairs``.

    Raises:
      UserError: there is no such layer, nothing is aligned with the pivot, or no language can be
        read.
    """
    layer = model.layer(layer)
    read = read_sentence_pairs if task == "retrieval-tatoeba" else folder_pairs
    pairs, skipped = read(data, pivot)
    if not pairs:
        raise UserError(f"{data} has no sentences that are aligned with {pivot}")
    records, unread = evaluate_pairs(sentence_encoder(model, [layer]), pivot, pairs, journal)
    metrics = [f"top{k}" for k in TOP]
    languages = by_language(records, {**skipped, **unread}, metrics, _PUBLISHED[task])
    return {"metric": "top10", "pivot": pivot, "layer": layer, **languages}


def show(record: Mapping[str, Any]) -> str:
    metrics = {"top1": "top-1:.1%", "top5": "top-5:.1%", "top10": "top-10:.1%"}
    chance = {"chance_top1": "chance:.2%", "chance_top10": "chance@10:.2%"}
    tables = show_languages(record, {"sentences": "sentences:,", **metrics, **chance}, metrics)
    return f"{tables}\nmeans of the states of layer {record['layer']}"


measures = average_measures


def folder_pairs(corpus: Path, pivot: str) -> tuple[dict[str, SentencePairs], dict[str, str]]:
    """Reads the pairs of a folder of ``iso639-3_Script.txt`` files in which line i says the same
    everywhere; an empty line is a missing sentence, and that pair is left out.

    Returns:
      the pairs of each language, and why others have none.

    Raises:
      UserError: as ``aligned_corpus``.
    """
    lines, skipped = aligned_corpus(corpus, pivot)
    queries, pairs_by_language = lines.pop(pivot), {}
    for name, pool in lines.items():
        if (pairs := pairs_of(queries, pool)) is not None:
            pairs_by_language[name] = pairs
        else:
            skipped[name] = f"no line that {pivot} has too"
    return pairs_by_language, skipped


def evaluate_pairs(
    encode: Encode, pivot: str, pairs: Mapping[str, SentencePairs], journal: Journal
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measures accuracy at 1, 5 and 10 of every language, beside what picking at random gives.

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
    """Counts the wrong sentences of the pool that are at least as close to query i as sentence i.

    Ties count as wrong, so that a collapsed encoder scores nothing; rounding makes no winner.

    Args:
      queries, pool: float [n, d], row i of one translating row i of the other.

    Returns:
      int64 [n].
    """
    similarity = cosines(queries, pool)
    return (similarity >= np.diag(similarity)[:, None] - 1e-10).sum(axis=1) - 1
