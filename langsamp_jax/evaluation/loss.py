"""Protocol: the objective's loss on every validation row of a store, beside that of unigrams."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from langsamp_jax.data.store import Split, Store
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.jobs import Journal
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.io.progress import table
from langsamp_jax.io.storage import storage_failure
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.parallel.mesh import MeshConfig, data_parallelism, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding, use_mesh
from langsamp_jax.training.run import Run, open_run
from langsamp_jax.training.validation import LossEvaluator

UNIGRAM_TOKENS = 2**22  # the most that are counted of a language; more change its shares little
Shares = Callable[[int], np.ndarray]  # number of a language -> of each token its share

_ROWS_AT_ONCE = 4096  # that are counted
_ROWS_PER_DEVICE = 32

Measure = Callable[[Any], dict[str, Any]]  # of parameters


def evaluate(model: LoadedModel, data: Path, journal: Journal) -> dict[str, Any]:
    """Returns what ``masked_lm_measure`` gives on the store ``data``; it is one part, unrecorded.

    Raises:
      UserError: the model is no run, or the store has other tokens or no validation rows.
    """
    run, store = open_run(model.path), Store(data)
    form = model.path, data, model.model
    return _opened(*form, run.id, store.manifest.fingerprint)(model.params)


@functools.lru_cache(maxsize=1)  # of all steps of a run: one compilation, one baseline
def _opened(path: Path, data: Path, model: LangSamp, run_id: str, fingerprint: str) -> Measure:
    return masked_lm_measure(open_run(path), model, Store(data))


def show(record: Mapping[str, Any]) -> str:
    headers = {"language": "language", "rows": "rows:,", "targets": "targets:,"}
    headers |= {"loss": "loss:.3f", "unigram_loss": "unigram loss:.3f", "below": "below:+.3f"}
    languages = [{**language, "below": below(language)} for language in record["languages"]]
    return table(languages, headers) + "\n" + sentence(record)


def sentence(record: Mapping[str, Any]) -> str:
    """Returns the loss over all languages together beside its baseline, in words."""
    nats = below(record)
    side = f"{abs(nats):.3f} {'below' if nats > 0 else 'above'} the unigram loss"
    return f"loss {record['loss']:.3f} nats, {side} of each language ({record['unigram_loss']:.3f})"


def below(record: Mapping[str, Any]) -> float | None:
    """Returns how far a loss lies below the unigram loss: above 0, more than frequencies tell."""
    return None if record["loss"] is None else record["unigram_loss"] - record["loss"]


def measures(record: Mapping[str, Any]) -> dict[str, float]:
    return {"loss": record["loss"]}


def loss_evaluator(
    run: Run, model: LangSamp, store: Store, max_rows: int | None = None
) -> LossEvaluator:
    """Returns what measures the loss of a run's model on the validation rows of a store.

    Args:
      model: the run's, or an edited one.

    Raises:
      UserError: the store has other tokens than the run, or no validation rows.
    """
    run.check_store(store)
    mesh, split = make_mesh(MeshConfig()), store.split("validation")
    if not split.rows.any():
        raise UserError(f"{store.path} has no validation rows")
    objective = MaskedLm(model, store.manifest.vocabulary, run.config(ObjectiveConfig))
    rows = _ROWS_PER_DEVICE * data_parallelism(mesh)
    return LossEvaluator(objective, split, run.inventory, batch_sharding(mesh), rows, max_rows)


def own_store(run: Run, data: Path | None) -> Store | None:
    """Returns the store that a run was trained on; None where it cannot be found.

    Args:
      data: where it may be, beside the place where it was.
    """
    for place in (data, run.store_path):
        try:
            store = None if place is None else Store(place)
        except Exception as error:  # it is gone, it is no store, or nobody answers
            if not isinstance(error, UserError) and storage_failure(error) is None:
                raise
            continue
        if store is not None and store.manifest.fingerprint == run.store:
            return store
    return None


def masked_lm_measure(run: Run, model: LangSamp, store: Store) -> Measure:
    """Returns a function that measures the loss of parameters on every validation row of a store,
    and that of unigrams on its targets.

    It gives:
      ``loss`` and ``unigram_loss`` over all targets together, ``unigram_tokens`` (the most that
      were counted of a language), and ``languages``: a record each with ``language``, ``rows``,
      ``targets``, ``loss``, ``unigram_loss`` (None: no rows). See ``unigram_losses``.

    Raises:
      UserError: as ``loss_evaluator``.
    """
    evaluator = loss_evaluator(run, model, store)
    split, unigram = evaluator.split, unigram_baseline(evaluator, store_shares(store))

    def measure(params: Any) -> dict[str, Any]:
        with use_mesh(evaluator.everywhere.mesh):
            loss, count = evaluator.totals(params)
        columns = zip(split.names, split.rows, count, loss, unigram, strict=True)
        return {
            "loss": float(loss.sum() / count.sum()),
            "unigram_loss": float(unigram.sum() / count.sum()),
            "unigram_tokens": UNIGRAM_TOKENS,
            "languages": [
                {
                    "language": name,
                    "rows": int(rows),
                    "targets": int(targets),
                    "loss": float(total / targets) if targets else None,
                    "unigram_loss": float(baseline / targets) if targets else None,
                }
                for name, rows, targets, total, baseline in columns
            ],
        }

    return measure


def unigram_baseline(evaluator: LossEvaluator, shares: Shares) -> np.ndarray:
    """Returns ``unigram_losses`` of what an evaluator predicts."""
    with use_mesh(evaluator.everywhere.mesh):
        return unigram_losses(shares, predicted_tokens(evaluator))


def predicted_tokens(evaluator: LossEvaluator) -> list[np.ndarray]:
    """Returns the tokens that masked language modelling predicts, int32 [n] of each language."""
    languages, tokens = [], []
    for language, examples in evaluator.examples():
        row, place = np.nonzero(examples.weights)
        languages.append(language[row])
        tokens.append(np.asarray(examples.targets)[row, place])
    language = np.concatenate(languages)  # in order, as the evaluator takes the rows
    edges = np.searchsorted(language, np.arange(1, len(evaluator.split.names)))
    return np.split(np.concatenate(tokens), edges)


def unigram_losses(shares: Shares, predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Returns what predicting tokens costs a model that knows their language, and nothing else.

    Args:
      shares: see ``unigram_shares``.
      predicted: of each language the tokens that are predicted, int [n].

    Returns:
      float64 [languages], sums in nats.
    """
    return np.array([-np.log(shares(i)[tokens]).sum() for i, tokens in enumerate(predicted)])


def store_shares(store: Store) -> Shares:
    """Returns ``unigram_shares`` of the training rows of a store."""
    vocabulary = store.manifest.vocabulary
    return unigram_shares(store.split("train"), vocabulary.special_ids, vocabulary.size)


def unigram_shares(train: Split, special: Sequence[int], size: int) -> Shares:
    """Returns how a model predicts that knows the language of a token, and nothing else.

    It predicts token t of language l with the share of t among the training tokens of l, smoothed
    as Witten and Bell (1991; Chen and Goodman, 1999) do:

        q_l(t) = (n_l(t) + m_l p(t)) / (n_l + m_l)

    n_l(t) counts t in the training rows of l, n_l all its tokens, and m_l how many different ones
    there are. p is the same share over the rows of all languages, smoothed in the same way with
    the uniform one, so that no token has probability 0. Special tokens are never predicted, and
    count nowhere. Of a language with more than ``UNIGRAM_TOKENS``, so many are counted, in rows
    that are spaced evenly.

    Args:
      train: the rows to count.
      special: ids of the special tokens.
      size: of the vocabulary.

    Returns:
      a function from the number of a language to q, float64 [size].
    """
    counts = [_counted(train, language, special, size) for language in range(len(train.names))]
    pooled = np.zeros(size, np.int64)
    for tokens, number in counts:
        pooled[tokens] += number
    uniform = np.full(size, 1 / (size - len(special)))
    everywhere = _witten_bell(pooled, uniform)

    def shares(language: int) -> np.ndarray:
        own = np.zeros(size, np.int64)
        tokens, number = counts[language]
        own[tokens] = number
        return _witten_bell(own, everywhere)

    return shares


def _witten_bell(counts: np.ndarray, prior: np.ndarray) -> np.ndarray:
    different = max(1, np.count_nonzero(counts))  # of a language without rows, the prior
    return (counts + different * prior) / (counts.sum() + different)


def _counted(
    train: Split, language: int, special: Sequence[int], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of a language that occur in its training rows, and how often."""
    rows, counts = int(train.rows[language]), np.zeros(size, np.int64)
    chosen = min(rows, -(-UNIGRAM_TOKENS // train.sequence_length))
    spaced = np.arange(chosen) * rows // max(1, chosen)
    for start in range(0, chosen, _ROWS_AT_ONCE):
        row = spaced[start : start + _ROWS_AT_ONCE]
        tokens, lengths = train.read(np.full_like(row, language), row)
        valid = np.arange(train.sequence_length) < lengths[:, None]
        counts += np.bincount(tokens[valid], minlength=size)
    counts[list(special)] = 0
    occurring = np.flatnonzero(counts)
    return occurring, counts[occurring]
