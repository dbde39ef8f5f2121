"""What an ablation reads and measures: a task as one number, its chance level, a text for means."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from langsamp_jax.analysis import neutrality
from langsamp_jax.data.feed import Rows
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation import retrieval, transfer
from langsamp_jax.evaluation.config import FineTuneConfig
from langsamp_jax.evaluation.encoder import reference_text
from langsamp_jax.evaluation.jobs import Journal
from langsamp_jax.evaluation.loss import (
    loss_evaluator,
    own_store,
    store_shares,
    unigram_baseline,
)
from langsamp_jax.evaluation.model import LoadedModel, is_run
from langsamp_jax.hardware.environment import random_key
from langsamp_jax.models.edits import constant_prediction
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.parallel.sharding import use_mesh
from langsamp_jax.training.run import open_run
from langsamp_jax.training.validation import LossEvaluator

ROWS = 8  # of a store, of each language, over which means are taken
_NEVER = 1e-30  # the share of a token that is never predicted
FINE_TUNED = ("taxi1500", "sib200", "ner", "pos")


class Scores(NamedTuple):
    """What a task gives of a model.

    Attributes:
      sums, counts: float64 [units], of rows of text; the value is the ratio of their totals. None
        where a task gives no more than its value.
    """

    value: float
    languages: Mapping[str, float]
    sums: np.ndarray | None = None
    counts: np.ndarray | None = None


class Task(NamedTuple):
    """A task that models are compared on.

    Attributes:
      metric: the name of its value.
      chance: the value without any knowledge.
      sign: 1 where more of the metric is better, -1 where less is.
      score: from a model and a journal for the parts of its evaluation to its scores.
      score_each: the same where each language has a model of its own, from a function of its name;
        None: the task cannot.
      without_context: the scores of a model that is made to know the language alone, which must
        come to chance; None: there is no such model.
    """

    metric: str
    chance: float
    sign: int
    score: Callable[[LoadedModel, Journal], Scores]
    score_each: Callable[[Callable[[str], LoadedModel]], Scores] | None = None
    without_context: Callable[[LoadedModel], Scores] | None = None


def open_task(
    on: str, model: LoadedModel, data: Path, journal: Journal, pivot: str, config: FineTuneConfig
) -> Task:
    """Returns a task by its name.

    Args:
      pivot: the language-script of the queries, or to fine-tune on.

    Raises:
      UserError: the model cannot do it, or as the protocol of the task.
    """
    if on == "mlm":
        return _masked_lm(model, data)
    metric = {"neutrality": "gap"}.get(on, "top10")
    metric = transfer.METRICS[on][0] if on in FINE_TUNED else metric

    def score(model: LoadedModel, journal: Journal) -> Scores:
        if on == "neutrality":
            record = neutrality.evaluate(model, data, journal, pivot, None)
            return Scores(record["mean"]["gap"][-1], {})
        if on in FINE_TUNED:
            record = transfer.evaluate(model, data, journal, on, pivot, config)
        else:
            record = retrieval.evaluate(model, data, journal, on, pivot)
        by_language = {each["language"]: each[metric] for each in record["languages"]}
        return Scores(record["averages"]["all"][metric], by_language)

    return Task(metric, score(untrained(model), journal.under("untrained")).value, 1, score)


def sample(
    model: LoadedModel, data: Path, reference: Path | None
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yields the ids of sentences of each language-script, to take means over.

    Args:
      reference: a folder of text; None: training rows of the run's store, which is where it was or
        at ``data``.

    Raises:
      UserError: there is neither.
    """
    if reference is not None:
        yield from reference_text(model, reference)
        return
    store = is_run(model.path) and own_store(open_run(model.path), data)
    if not store:
        raise UserError("a text is needed over which means are taken: --reference CORPUS")
    train = store.split("train")
    for language, name in enumerate(train.names):
        rows = np.arange(min(ROWS, train.rows[language]))
        tokens, lengths = train.read(np.full_like(rows, language), rows)
        yield name, [row[:length] for row, length in zip(tokens, lengths, strict=True)]


def untrained(model: LoadedModel) -> LoadedModel:
    """Returns a model of the same form with random weights: what the task gives for nothing."""
    with use_mesh(model.mesh):
        params = nn.unbox(init_params(model.model, random_key(0)))
    return dataclasses.replace(model, params=params)


def _masked_lm(model: LoadedModel, data: Path) -> Task:
    """Returns the loss on the validation rows of a store; chance is the unigram loss."""
    if not is_run(model.path):
        raise UserError(f"{model.path} is no run; --on mlm measures runs")
    run, store = open_run(model.path), Store(data)
    evaluators: dict[LangSamp, LossEvaluator] = {}  # by form: leaving out a block makes another

    def evaluator_of(form: LangSamp) -> LossEvaluator:
        if form not in evaluators:
            evaluators[form] = loss_evaluator(run, form, store)
        return evaluators[form]

    def scores(evaluator: LossEvaluator, sums: np.ndarray, counts: np.ndarray) -> Scores:
        language, by_language = evaluator.rows.language, {}
        for i, name in enumerate(evaluator.split.names):
            if (of_it := language == i).any():
                by_language[name] = float(sums[of_it].sum() / counts[of_it].sum())
        return Scores(float(sums.sum() / counts.sum()), by_language, sums, counts)

    def score(model: LoadedModel, journal: Journal) -> Scores:
        evaluator = evaluator_of(model.model)
        return scores(evaluator, *evaluator.by_row(model.params, evaluator.rows))

    def score_each(model_of: Callable[[str], LoadedModel]) -> Scores:
        evaluator = evaluator_of(model.model)
        rows, sums = evaluator.rows, np.zeros((2, evaluator.rows_total))
        for i in np.unique(rows.language):
            of_it = rows.language == i
            params = model_of(evaluator.split.names[i]).params
            sums[:, of_it] = evaluator.by_row(params, Rows(*(field[of_it] for field in rows)))
        return scores(evaluator, *sums)

    def without_context(model: LoadedModel) -> Scores:
        def model_of(name: str) -> LoadedModel:
            known = shares(evaluator.split.names.index(name))
            logits = np.log(np.maximum(known, _NEVER)).astype(np.float32)
            return dataclasses.replace(model, params=constant_prediction(model.params, logits))

        return score_each(model_of)

    evaluator, shares = evaluator_of(model.model), store_shares(store)
    _, counts = evaluator.by_row(model.params, evaluator.rows)
    chance = float(unigram_baseline(evaluator, shares).sum() / counts.sum())
    return Task("loss", chance, -1, score, score_each, without_context)
