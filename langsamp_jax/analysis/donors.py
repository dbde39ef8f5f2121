"""Protocol: do the two tables find good languages to fine-tune on, for zero-shot transfer?

For a target language without labelled data, a donor with such data is chosen, and the model that
was fine-tuned on the donor is tested on the target. The definitions are ours (docs/analyses.md):
the published languages, formula and table cannot be recovered.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from langsamp_jax.analysis.geometry import Tables, trained_tables
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.config import FineTuneConfig
from langsamp_jax.evaluation.datasets.layout import TaskData
from langsamp_jax.evaluation.jobs import Journal, say, show_skipped
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.evaluation.statistics import (
    bootstrap_interval,
    cosines,
    rank_correlations,
    relabelling_test,
)
from langsamp_jax.evaluation.transfer import METRICS, evaluate_transfer, read_task
from langsamp_jax.io.progress import table
from langsamp_jax.languages.inventory import split_language_script
from langsamp_jax.languages.typology import Reference, read_references


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Scores of fine-tuned models: float [targets, donors], NaN where none was measured.

    Targets and donors are language-scripts. Where a target is a donor too, its own score is no
    transfer: it may be there, and counts for nothing.
    """

    targets: tuple[str, ...]
    donors: tuple[str, ...]
    scores: np.ndarray

    def zero_shot(self) -> np.ndarray:
        """Returns the scores that count, float64 [targets, donors]; NaN for the others."""
        own = np.array(self.targets)[:, None] == np.array(self.donors)[None, :]
        return np.where(own, np.nan, self.scores)


def evaluate(
    model: LoadedModel,
    data: Path,
    journal: Journal,
    on: str,
    pivot: str,
    names: Sequence[str] | None,
    references: Sequence[Path],
    config: FineTuneConfig,
) -> dict[str, Any]:
    """Measures which donor each way of choosing takes, and how its model does on the targets.

    Args:
      on: the task: ``sib200``, ``taxi1500``, ``ner`` or ``pos``.
      names: donors to choose from, beside the pivot; None: all that the model was trained on.
      references: files, see ``read_references``.

    Returns:
      ``on``, ``metric``, the fields of ``donor_selection`` and ``skipped``.
    """
    distances = [reference for file in references for reference in read_references(file)]
    read, tables = functools.partial(read_task, data, on), trained_tables(model)
    others = names or model.inventory.language_scripts
    transfer, skipped = transfer_matrix(model, on, read, pivot, others, config, journal, say)
    near = similarities(transfer.targets, transfer.donors, tables, distances)
    selection = donor_selection(transfer, near, model.tokens, pivot)
    return {"on": on, "metric": METRICS[on][0], **selection, "skipped": skipped}


def show(record: Mapping[str, Any]) -> str:
    interval = {"low": "from:.3f", "high": "to:.3f"}
    choices = {"choice": "donor by", "targets": "targets:,", "mean": f"{record['metric']}:.3f"}
    means = [{**choice, "common": choice["common"]["mean"]} for choice in record["choices"]]
    shared = max(choice["common"]["targets"] for choice in record["choices"])
    correlations = {"similarity": "similarity", "rho": "rank correlation:.3f", "p": "p:.4f"}
    tables = [
        table(means, {**choices, **interval, "common": f"on the same {shared:,}:.3f"}),
        "",
        table(record["correlations"], {**correlations, **interval}),
    ]
    return "\n".join([*tables, *show_skipped(record)])


def measures(record: Mapping[str, Any]) -> dict[str, float]:
    choices = [choice for choice in record["choices"] if choice["mean"] is not None]
    return {f"{choice['choice']}/{record['metric']}": choice["mean"] for choice in choices}


def transfer_matrix(
    trained: LoadedModel,
    task: str,
    read: Callable[[str], TaskData[Any]],
    pivot: str,
    others: Iterable[str],
    config: FineTuneConfig,
    journal: Journal,
    say: Callable[[str], None],
) -> tuple[Transfer, dict[str, str]]:
    """Fine-tunes on each donor, and tests every language with each: means over seeds.

    Args:
      read: the data of ``task`` with a source language.
      pivot: the donor that the others are compared with.

    Returns:
      the scores, and why a donor or a target is not among them.

    Raises:
      UserError: nothing can be trained on the pivot.
    """
    columns, skipped, metric = {}, {}, METRICS[task][0]
    for donor in dict.fromkeys([pivot, *others]):
        try:
            data = read(donor)
            record = evaluate_transfer(trained, task, data, donor, config, journal, say)
        except UserError as error:
            if donor == pivot:
                raise
            skipped[donor] = str(error)
            continue
        columns[donor] = {scores["language"]: scores[metric] for scores in record["languages"]}
        skipped |= record["skipped"]
        say(f"{donor}: {statistics.fmean(columns[donor].values()):.3f} over all")
    targets = tuple(sorted(set().union(*columns.values())))
    scores = [[column.get(name, np.nan) for column in columns.values()] for name in targets]
    return Transfer(targets, tuple(columns), np.array(scores, np.float64)), skipped


def similarities(
    targets: Sequence[str],
    donors: Sequence[str],
    tables: Tables,
    references: Sequence[Reference] = (),
) -> dict[str, np.ndarray]:
    """Returns how near donors are to targets, by name: float [targets, donors], NaN where unknown.

    ``language vectors`` is cos(E_lang[t], E_lang[d]), and ``language + script vectors`` the same of
    E_lang + E_script, as far as ``tables`` has them; each reference gives its distance, negated.
    """
    (target_codes, target_scripts), (donor_codes, donor_scripts) = (
        zip(*map(split_language_script, names), strict=True) for names in (targets, donors)
    )
    by_name = {}
    if "language" in tables:
        of_targets, of_donors = map(tables["language"].rows, (target_codes, donor_codes))
        by_name["language vectors"] = cosines(of_targets, of_donors)
        if "script" in tables:
            of_targets = of_targets + tables["script"].rows(target_scripts)
            of_donors = of_donors + tables["script"].rows(donor_scripts)
            by_name["language + script vectors"] = cosines(of_targets, of_donors)
    for reference in references:
        by_name[reference.name] = -reference.between(target_codes, donor_codes)
    return by_name


def choose(
    transfer: Transfer,
    similarities: Mapping[str, np.ndarray],
    sizes: Mapping[str, float],
    pivot: str,
) -> dict[str, np.ndarray]:
    """Returns the donor that each way of choosing takes for every target.

    One choice for each of ``similarities``, the most similar donor; ``size``, the donor with the
    most training text; ``English`` (the name of the pivot, where that is another), always the
    pivot; and ``oracle``, the donor with the best score. Only donors whose model was tested on the
    target are chosen from, and never the target itself; of equals, the first.

    Args:
      similarities: float [targets, donors] by name, NaN where unknown.
      sizes: donor -> its training text, in any one unit; donors may be missing.
      pivot: the donor that everyone takes by default.

    Returns:
      int [targets] by choice: the donor's column, or -1 where nothing is known to choose by.
    """
    shape = transfer.scores.shape
    size = np.array([sizes.get(donor, np.nan) for donor in transfer.donors])
    is_pivot = np.where(np.array(transfer.donors) == pivot, 1.0, np.nan)
    preferences = {
        **similarities,
        "size": np.broadcast_to(size, shape),
        _pivot_name(pivot): np.broadcast_to(is_pivot, shape),
        "oracle": transfer.scores,
    }
    tested = ~np.isnan(transfer.zero_shot())
    return {name: _first_best(preference, tested) for name, preference in preferences.items()}


def donor_selection(
    transfer: Transfer,
    similarities: Mapping[str, np.ndarray],
    sizes: Mapping[str, float],
    pivot: str,
    seed: int = 0,
    resamples: int = 10_000,
    permutations: int = 9999,
) -> dict[str, Any]:
    """Measures how good the choices of ``choose`` are, and how similarities go with the scores.

    Beside the choices stand ``random``, a donor drawn at random, and ``same script``, one drawn
    from those that are written as the target is: not one draw but the expectation, the mean over
    these donors. Intervals are 95 % percentile bootstraps over targets.

    Args:
      seed, resamples: of the bootstrap.
      permutations: of the test of the correlations, see ``relabelling_test``.

    Returns:
      ``targets``, ``donors``, ``pivot``, ``scores`` (None where none was measured); ``choices``,
      records with ``choice``, its ``mean`` score with ``low`` and ``high``, over ``targets``
      targets, ``left_out`` targets for which it is undefined, ``common`` (the same over the targets
      that every choice has: these means compare), ``chosen`` (target -> donor; empty for the drawn
      ones), and ``against``: for random, same script and English, the mean paired
      ``difference`` to it, ``low``, ``high`` and the ``targets`` that both have; ``correlations``,
      for each similarity the mean over ``targets`` of Spearman's ``rho`` over donors, ``low``,
      ``high`` and ``p``. What has no value is None; so are the ends of an interval over one target.

    Raises:
      UserError: the pivot is no donor, or no model was tested on another language than its own.
    """
    scores = transfer.zero_shot()
    if pivot not in transfer.donors:
        raise UserError(f"{pivot} is none of the donors {', '.join(transfer.donors)}")
    if np.isnan(scores).all():
        raise UserError("no donor's model was tested on another language than its own")
    chosen = choose(transfer, similarities, sizes, pivot)
    reached = _scores_reached(transfer, chosen)
    baselines = ("random", "same script", _pivot_name(pivot))
    order = [*similarities, "size", *baselines, "oracle"]
    defined = np.array([~np.isnan(reached[choice]) for choice in order])
    common = defined[defined.any(axis=1)].all(axis=0)

    def record(choice: str) -> dict[str, Any]:
        values = reached[choice]
        columns = chosen.get(choice, np.full(len(values), -1))
        return {
            "choice": choice,
            **_mean(values, "mean", seed, resamples),
            "left_out": int(np.isnan(values).sum()),
            "common": _mean(np.where(common, values, np.nan), "mean", seed, resamples),
            "chosen": {
                target: transfer.donors[column]
                for target, column in zip(transfer.targets, columns, strict=True)
                if column >= 0
            },
            "against": {
                other: _mean(values - reached[other], "difference", seed, resamples)
                for other in baselines
                if other != choice
            },
        }

    def correlation(name: str) -> dict[str, Any]:
        rho = rank_correlations(similarities[name], scores)
        record = _mean(rho, "rho", seed, resamples)
        p = None
        if record["rho"] is not None:
            p = relabelling_test(similarities[name], scores, permutations, seed)
        return {"similarity": name, **record, "p": p}

    return {
        "targets": list(transfer.targets),
        "donors": list(transfer.donors),
        "pivot": pivot,
        "scores": [[_or_none(score) for score in row] for row in transfer.scores],
        "choices": [record(choice) for choice in order],
        "correlations": [correlation(name) for name in similarities],
    }


def _scores_reached(transfer: Transfer, chosen: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns float64 [targets] by choice, those drawn at random included; NaN: undefined."""
    scores = transfer.zero_shot()
    reached = {
        name: np.where(columns < 0, np.nan, scores[np.arange(len(columns)), columns])
        for name, columns in chosen.items()
    }
    tested = ~np.isnan(scores)
    of_targets, of_donors = (
        np.array([split_language_script(name)[1] for name in names])
        for names in (transfer.targets, transfer.donors)
    )
    reached["random"] = _mean_where(tested, scores)
    reached["same script"] = _mean_where(tested & (of_targets[:, None] == of_donors), scores)
    return reached


def _first_best(preference: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    candidates = np.where(allowed & ~np.isnan(preference), preference, -np.inf)
    return np.where(np.isfinite(candidates.max(axis=1)), candidates.argmax(axis=1), -1)


def _mean(values: np.ndarray, name: str, seed: int, resamples: int) -> dict[str, Any]:
    """Returns the mean over the targets that have a value, with its interval."""
    values = values[~np.isnan(values)]
    record = {name: None, "low": None, "high": None, "targets": len(values)}
    if len(values):
        record[name] = float(values.mean())
    if len(values) > 1:
        low, high = bootstrap_interval(values, seed, resamples)
        record |= {"low": low, "high": high}
    return record


def _mean_where(chosen: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns float64 [targets]: the mean over a target's chosen donors, NaN where it has none."""
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.where(chosen, scores, 0).sum(axis=1) / chosen.sum(axis=1)


def _or_none(score: float) -> float | None:
    return None if np.isnan(score) else float(score)


def _pivot_name(pivot: str) -> str:
    return "English" if split_language_script(pivot)[0] == "eng" else pivot
