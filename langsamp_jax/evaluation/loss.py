"""Protocol: the objective's loss on every validation row of a store, beside that of unigrams."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from langsamp_jax.data.feed import Rows
from langsamp_jax.data.store import Split, Store
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.jobs import Journal
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.io.progress import table
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.parallel.mesh import MeshConfig, data_parallelism, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding, use_mesh
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.checkpoint import model_of
from langsamp_jax.training.run import Run, open_run
from langsamp_jax.training.validation import LossEvaluator

_ROWS_AT_ONCE = 4096


def evaluate(model: LoadedModel, data: Path, journal: Journal) -> dict[str, Any]:
    """Returns ``evaluate_masked_lm`` of a run and the store ``data``; it is one part, unrecorded.

    Raises:
      UserError: the model is no run, or the store has other tokens or no validation rows.
    """
    return evaluate_masked_lm(open_run(model.path), model.params, Store(data))


def show(record: Mapping[str, Any]) -> str:
    headers = {"language": "language", "rows": "rows:,", "targets": "targets:,"}
    headers |= {"loss": "loss:.3f", "unigram_entropy": "unigram entropy:.3f"}
    together = f"all: loss {record['loss']:.3f}, unigram entropy {record['unigram_entropy']:.3f}"
    return table(record["languages"], headers) + "\n" + together


def measures(record: Mapping[str, Any]) -> dict[str, float]:
    return {"loss": record["loss"]}


def evaluate_masked_lm(
    run: Run, params: Any, store: Store, rows_per_device: int = 32
) -> dict[str, Any]:
    """Measures the loss on every validation row of a store, beside what unigram frequencies give.

    Returns:
      ``loss`` and ``unigram_entropy`` over all rows together, and ``languages``: a record each
      with ``language``, ``rows``, ``targets``, ``loss``, ``unigram_entropy`` (None: no rows).
    """
    run.check_store(store)
    mesh, split = make_mesh(MeshConfig()), store.split("validation")
    if not split.rows.any():
        raise UserError(f"{store.path} has no validation rows")
    objective = MaskedLm(model_of(run), store.manifest.vocabulary, run.config(ObjectiveConfig))
    rows_at_once = rows_per_device * data_parallelism(mesh)
    evaluator = LossEvaluator(objective, split, run.inventory, batch_sharding(mesh), rows_at_once)
    with use_mesh(mesh):
        loss, count = evaluator.totals(params)
    entropy_of_all, entropies = unigram_entropy(split, evaluator.rows, store.manifest.vocabulary)
    columns = zip(split.names, split.rows, loss, count, entropies, strict=True)
    return {
        "loss": float(loss.sum() / count.sum()),
        "unigram_entropy": entropy_of_all,
        "languages": [
            {
                "language": name,
                "rows": int(rows),
                "targets": int(targets),
                "loss": float(total / targets) if targets else None,
                "unigram_entropy": float(entropy) if targets else None,
            }
            for name, rows, total, targets, entropy in columns
        ],
    }


def unigram_entropy(split: Split, rows: Rows, vocabulary: Vocabulary) -> tuple[float, np.ndarray]:
    """Returns the entropy in nats of the non-special tokens of ``rows`` by their own frequencies.

    A model that knows nothing but how often each piece occurs in this very text has this loss.

    Returns:
      over all rows together (the language unknown), and float64 [languages] for each on its own.
    """
    own, pooled = np.full(len(split.names), np.nan), np.zeros(vocabulary.size, np.int64)
    for index in np.unique(rows.language):
        counts = np.zeros(vocabulary.size, np.int64)
        chosen = np.flatnonzero(rows.language == index)
        for start in range(0, len(chosen), _ROWS_AT_ONCE):
            part = chosen[start : start + _ROWS_AT_ONCE]
            tokens, lengths = split.read(rows.language[part], rows.row[part])
            valid = np.arange(split.sequence_length) < lengths[:, None]
            counts += np.bincount(tokens[valid], minlength=vocabulary.size)
        counts[list(vocabulary.special_ids)] = 0
        own[index] = _entropy(counts)
        pooled += counts
    return _entropy(pooled), own


def _entropy(counts: np.ndarray) -> float:
    counts = counts[counts > 0]
    if not counts.size:
        return float("nan")
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())
