"""Which language to fine-tune on: do the two tables find good donors for zero-shot transfer?

For a target language without labelled data, a donor with such data is chosen, and the model that
was fine-tuned on the donor is tested on the target. Here are the statistics of the choices; the
scores come from elsewhere. The definitions are ours (docs/analyses.md): the published languages,
formula and table cannot be recovered.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap, rankdata

from langsamp_jax.analysis.geometry import Tables
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.statistics import cosines
from langsamp_jax.io.progress import Progress
from langsamp_jax.languages.inventory import split_language_script
from langsamp_jax.languages.typology import Reference

_FEWEST = 3  # donors that a target's rank correlation needs


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
        """The scores that count, float64 [targets, donors]; NaN for the others."""
        own = np.array(self.targets)[:, None] == np.array(self.donors)[None, :]
        return np.where(own, np.nan, self.scores)


def similarities(
    targets: Sequence[str],
    donors: Sequence[str],
    tables: Tables,
    references: Sequence[Reference] = (),
) -> dict[str, np.ndarray]:
    """How near each donor is to each target, by name: float [targets, donors], NaN where unknown.

    ``language vectors`` is cos(E_lang[t], E_lang[d]), and ``language + script vectors`` the same of
    E_lang + E_script, as far as ``tables`` has them; each reference gives its distance, negated.
    """
    (target_codes, target_scripts), (donor_codes, donor_scripts) = (
        zip(*map(split_language_script, names), strict=True) for names in (targets, donors)
    )
    found = {}
    if "language" in tables:
        of_targets, of_donors = map(tables["language"].rows, (target_codes, donor_codes))
        found["language vectors"] = cosines(of_targets, of_donors)
        if "script" in tables:
            of_targets = of_targets + tables["script"].rows(target_scripts)
            of_donors = of_donors + tables["script"].rows(donor_scripts)
            found["language + script vectors"] = cosines(of_targets, of_donors)
    for reference in references:
        found[reference.name] = -reference.between(target_codes, donor_codes)
    return found


def choose(
    transfer: Transfer,
    similarities: Mapping[str, np.ndarray],
    sizes: Mapping[str, float],
    pivot: str,
) -> dict[str, np.ndarray]:
    """The donor that each way of choosing takes for every target.

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
    return {name: _first_best(each, tested) for name, each in preferences.items()}


def donor_selection(
    transfer: Transfer,
    similarities: Mapping[str, np.ndarray],
    sizes: Mapping[str, float],
    pivot: str,
    seed: int = 0,
    resamples: int = 10_000,
    permutations: int = 9999,
) -> dict[str, Any]:
    """How good the choices of ``choose`` are, and how each similarity goes with the scores.

    Beside the choices stand ``random``, a donor drawn at random, and ``same script``, one drawn
    from those that are written as the target is: not one draw but the expectation, the mean over
    these donors. Intervals are 95 % percentile bootstraps over targets.

    Args:
      seed, resamples: of the bootstrap.
      permutations: of the test of the correlations, see ``relabelling_test``.

    Returns:
      ``targets``, ``donors``, ``pivot``, ``scores`` (None where none was measured); ``choices``,
      records with ``choice``, its ``mean`` score with ``low`` and ``high``, over ``targets``
      targets, ``left_out`` targets for which it is undefined, ``chosen`` (target -> donor; empty
      for the drawn ones), and ``against``: for random, same script and English, the mean paired
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
    baselines = ("random", "same script", _pivot_name(pivot))
    order = [*similarities, "size", *baselines, "oracle"]

    def record(choice: str) -> dict[str, Any]:
        values = reached[choice]
        columns = chosen.get(choice, np.full(len(values), -1))
        return {
            "choice": choice,
            **_mean(values, "mean", seed, resamples),
            "left_out": int(np.isnan(values).sum()),
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
        found = _mean(rho, "rho", seed, resamples)
        p = None
        if found["rho"] is not None:
            p = relabelling_test(similarities[name], scores, permutations, seed)
        return {"similarity": name, **found, "p": p}

    return {
        "targets": list(transfer.targets),
        "donors": list(transfer.donors),
        "pivot": pivot,
        "scores": [[_or_none(score) for score in row] for row in transfer.scores],
        "choices": [record(choice) for choice in order],
        "correlations": [correlation(name) for name in similarities],
    }


def rank_correlations(similarity: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Spearman's rho along each row, over the entries that both have.

    Args:
      similarity, scores: float [targets, donors], NaN where there is no value.

    Returns:
      float64 [targets]; NaN where fewer than 3 entries are left, or all are equal.
    """
    missing = np.isnan(similarity) | np.isnan(scores)
    count = (~missing).sum(axis=1, keepdims=True)
    first, second = (
        np.where(missing, 0, rankdata(masked, axis=1, nan_policy="omit") - (count + 1) / 2)
        for masked in (np.where(missing, np.nan, values) for values in (similarity, scores))
    )
    with np.errstate(invalid="ignore"):  # 0 / 0: all equal
        rho = (first * second).sum(axis=1) / np.sqrt(
            (first**2).sum(axis=1) * (second**2).sum(axis=1)
        )
    return np.where(count[:, 0] < _FEWEST, np.nan, rho)


def relabelling_test(
    similarity: np.ndarray, scores: np.ndarray, permutations: int = 9999, seed: int = 0
) -> float:
    """p of the mean of ``rank_correlations``, one-sided, by relabelling the donors.

    A donor that is good for all targets makes the correlations of the targets depend on each other,
    so each permutation moves the donors of all targets together: the same donors, their
    similarities exchanged. Flipping the signs of the targets' correlations would take one lucky
    donor for as many findings as there are targets. p is (1 + permutations whose mean is at least
    that found) / (1 + permutations); with d donors it cannot fall below about 1 / d!.
    """
    similarity = np.where(np.isnan(scores), np.nan, similarity)  # a language's own goes nowhere
    found = np.nanmean(rank_correlations(similarity, scores))
    rng = np.random.default_rng(seed)
    lower = 0
    with Progress("relabelling donors", permutations, "permutations") as progress:
        for _ in range(permutations):
            order = rng.permutation(similarity.shape[1])
            rho = rank_correlations(similarity[:, order], scores)
            rho = rho[~np.isnan(rho)]
            lower += bool(len(rho)) and rho.mean() < found - 1e-10
            progress.advance(1)
    return float((1 + permutations - lower) / (1 + permutations))


def _first_best(preference: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    known = np.where(allowed & ~np.isnan(preference), preference, -np.inf)
    return np.where(np.isfinite(known.max(axis=1)), known.argmax(axis=1), -1)


def _mean(values: np.ndarray, name: str, seed: int, resamples: int) -> dict[str, Any]:
    """The mean over the targets that have a value, with its interval."""
    values = values[~np.isnan(values)]
    found = {name: None, "low": None, "high": None, "targets": len(values)}
    if len(values):
        found[name] = float(values.mean())
    if len(values) > 1:
        sample = bootstrap(
            (values,), np.mean, n_resamples=resamples, method="percentile", rng=seed
        ).confidence_interval
        found |= {"low": float(sample.low), "high": float(sample.high)}
    return found


def _mean_where(chosen: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """float64 [targets]: the mean over a target's chosen donors, NaN where it has none."""
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.where(chosen, scores, 0).sum(axis=1) / chosen.sum(axis=1)


def _or_none(score: float) -> float | None:
    return None if np.isnan(score) else float(score)


def _pivot_name(pivot: str) -> str:
    return "English" if split_language_script(pivot)[0] == "eng" else pivot
