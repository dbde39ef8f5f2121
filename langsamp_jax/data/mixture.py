"""The mixture: from the counts of a store to the rate of each language-script, at every step."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from langsamp_jax.config import configurable, require
from langsamp_jax.data.manifest import Manifest
from langsamp_jax.data.rates import limited_rows, reference_sentences, temperature_rates
from langsamp_jax.data.sampling import PERIOD, Sampler, integer_rates
from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import seen_by_xlmr
from langsamp_jax.languages.related_codes import suggest

_OTHERS = "*"  # in maximum_count: every language-script that is not named


@configurable("mixture")
class MixtureConfig:
    """How often each language-script is drawn.

    Attributes:
      rule: temperature: p proportional to min(n, maximum_count)^(1/temperature), as seqio has it;
        langsamp: the published code's rule on sentence counts (reference_sentences); weights: p
        proportional to weights.
      temperature: of rule temperature; 1 is in proportion, more is closer to uniform.
      count: what n counts: training rows, lines or tokens (seqio and the papers: lines).
      maximum_count: most that n counts as: one number for all, or a number by name, "*" for all
        others; None: no limit.
      minimum_sentences: of rule langsamp: what a language-script unknown to XLM-R needs to take
        part.
      weights: of rule weights: a number by name; who is not named is not drawn.
      maximum_epochs: how often the planned run may pass over the rows of any language-script,
        whatever the rule; what one has too much goes to the others in proportion.
      schedule: the mixture by step: [{"from_step": 50_000, "temperature": 2.0}, ...]. From that
        step on the mixture is this one with those fields replaced, not those of the entry before.
    """

    rule: Literal["temperature", "langsamp", "weights"] = "temperature"
    temperature: float = 1 / 0.3
    count: Literal["rows", "lines", "tokens"] = "rows"
    maximum_count: int | dict[str, int] | None = None
    minimum_sentences: int = 30_000
    weights: dict[str, float] | None = None
    maximum_epochs: float | None = None
    schedule: list[dict[str, Any]] | None = None

    def check(self) -> None:
        require(self.temperature > 0, self, "temperature", "a number above 0")
        caps = self._caps().values()
        require(all(cap > 0 for cap in caps), self, "maximum_count", "whole numbers above 0")
        require(self.minimum_sentences > 0, self, "minimum_sentences", "a whole number above 0")
        limited = self.maximum_epochs is None or 0 < self.maximum_epochs < PERIOD
        require(limited, self, "maximum_epochs", f"a number above 0, below {PERIOD}")
        weights = (self.weights or {}).values()
        usable = all(0 <= w < math.inf for w in weights) and (self.weights is None or any(weights))
        require(usable, self, "weights", "numbers of 0 or more, one at least above 0")
        if (self.rule == "weights") != (self.weights is not None):
            raise UserError(
                f"mixture.rule = {self.rule!r} with mixture.weights = {self.weights!r}: weights "
                'are for rule "weights", which needs them'
            )
        if self.schedule is not None:
            self.phases()

    def phases(self) -> list[tuple[int, "MixtureConfig"]]:
        """Returns each mixture and the step from which it holds; the first holds from step 0."""
        phases = [(0, dataclasses.replace(self, schedule=None))]
        for entry in self.schedule or []:
            where = f"mixture.schedule: {entry!r}"
            step = entry.get("from_step")
            if type(step) is not int or step <= phases[-1][0]:
                raise UserError(f"{where}: from_step: expected a step behind {phases[-1][0]}")
            changes = {field: value for field, value in entry.items() if field != "from_step"}
            fields = {field.name for field in dataclasses.fields(self)}
            fields -= {"schedule", "maximum_epochs"}  # these are of the whole run
            if unknown := sorted(set(changes) - fields):
                raise UserError(f"{where}: {unknown[0]} is none of {', '.join(sorted(fields))}")
            try:
                phases.append((step, dataclasses.replace(phases[0][1], **changes)))
            except UserError as error:
                raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
        return phases

    def rates(self, manifest: Manifest) -> np.ndarray:
        """Returns the rates before the limit on repetitions, float64 [names], summing to 1."""
        rows = manifest.column("train", "rows")
        if not rows.any():
            raise UserError("the store has no training rows: its text is shorter than one row")
        if self.rule == "temperature":
            counts = np.where(rows > 0, manifest.column("train", self.count), 0)
            return temperature_rates(counts, self.temperature, self._maximum(manifest))
        if self.rule == "weights":
            _require_known("weights", self.weights, manifest)
            quota = np.array([self.weights.get(name, 0) for name in manifest.names], np.float64)
        else:
            lines = manifest.column("train", "lines")
            quota = reference_sentences(lines, _seen(manifest), minimum=self.minimum_sentences)
        quota = np.where(rows > 0, quota, 0)
        if not quota.any():
            reasons = "; ".join(sorted(set(self.left_out(manifest).values())))
            raise UserError(f"the mixture draws from no language-script: {reasons}")
        return quota / quota.sum()

    def left_out(self, manifest: Manifest) -> dict[str, str]:
        """Returns the language-scripts that the rule does not draw from, and why."""
        rows, lines = manifest.column("train", "rows"), manifest.column("train", "lines")
        reasons = {}
        if self.rule == "langsamp":
            few = ~_seen(manifest) & (lines < self.minimum_sentences)
            why = f"below mixture.minimum_sentences = {self.minimum_sentences}, and not XLM-R's"
            reasons |= {manifest.names[index]: why for index in np.flatnonzero(few)}
        if self.rule == "weights":
            why = "no weight above 0 in mixture.weights"
            reasons |= {name: why for name in manifest.names if not self.weights.get(name)}
        empty = "the training text is shorter than one row"
        return reasons | {manifest.names[index]: empty for index in np.flatnonzero(rows == 0)}

    def sampler(self, manifest: Manifest, seed: int, num_steps: int, batch_size: int) -> Sampler:
        """Returns the stream of rows for a run of ``num_steps`` batches.

        Without ``maximum_epochs`` it does not depend on ``num_steps``, but for the entries of the
        schedule that no step reaches.

        Raises:
          UserError: a name that is not in the store, nothing to draw, or a plan of more rows than
            ``maximum_epochs`` lets the store give.
        """
        phases = [(step, config) for step, config in self.phases() if step < num_steps]
        starts = [step * batch_size for step, _ in phases]
        rates = np.array([config.rates(manifest) for _, config in phases])
        rows = manifest.column("train", "rows")
        if self.maximum_epochs is None:
            weights = [integer_rates(phase_rates) for phase_rates in rates]
        else:
            weights = self._limited(rows, rates, np.diff([*starts, num_steps * batch_size]))
        return Sampler.in_phases(rows, starts, weights, seed)

    def _limited(
        self, rows: np.ndarray, rates: np.ndarray, lengths: np.ndarray
    ) -> list[np.ndarray]:
        """Returns the rows that each phase draws, int64 [names] a phase.

        A phase may use up as much of a limit as has been wanted up to its end of all that the
        phases want: none is left without by the ones before it.
        """
        wanted = np.cumsum(rates * lengths[:, None], axis=0)
        share = wanted / np.where(wanted[-1] > 0, wanted[-1], 1)
        limit = np.floor(self.maximum_epochs * rows)
        given, weights = np.zeros_like(rows), []
        for rate, length, part in zip(rates, lengths.tolist(), share, strict=True):
            most = np.floor(limit * part).astype(np.int64) - given
            available = int(most[rate > 0].sum())
            if available < length or length > PERIOD:
                can = f"{PERIOD:,} can be"
                if available < length:
                    can = f"the store can give {available:,}"
                which = f"phase {len(weights) + 1} of the schedule" if len(rates) > 1 else "the run"
                raise UserError(
                    f"mixture.maximum_epochs = {self.maximum_epochs}: {which} plans {length:,} "
                    f"rows, {can} at that limit; raise it, or lower train.num_steps"
                )
            weights.append(limited_rows(rate, length, most))
            given += weights[-1]
        return weights

    def _caps(self) -> dict[str, int]:
        if isinstance(self.maximum_count, int):
            return {_OTHERS: self.maximum_count}
        return self.maximum_count or {}

    def _maximum(self, manifest: Manifest) -> np.ndarray:
        caps = self._caps()
        _require_known("maximum_count", caps.keys() - {_OTHERS}, manifest)
        others = caps.get(_OTHERS, np.inf)
        return np.array([caps.get(name, others) for name in manifest.names])


def _seen(manifest: Manifest) -> np.ndarray:
    return np.array([name in seen_by_xlmr() for name in manifest.names])


def _require_known(field: str, names: Iterable[str], manifest: Manifest) -> None:
    """Raises UserError where the store has no language-script, or no row, of such a name."""
    rows = dict(zip(manifest.names, manifest.column("train", "rows"), strict=True))
    for name in sorted(names):
        if name not in rows:
            raise UserError(f"mixture.{field}: {name} is not in the store{suggest(name, rows)}")
        if not rows[name]:
            raise UserError(f"mixture.{field}: {name} has no training row in the store")
