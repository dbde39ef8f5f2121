"""The mixture: from the counts of a store to the rate of each language-script, at every step."""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from langsamp_jax.config import configurable, require
from langsamp_jax.data.sampling import (
    PERIOD,
    Sampler,
    integer_rates,
    limited_rows,
    reference_sentences,
    temperature_rates,
)
from langsamp_jax.data.store import Manifest
from langsamp_jax.errors import UserError
from langsamp_jax.io.progress import table
from langsamp_jax.languages.inventory import seen_by_xlmr

_OTHERS = "*"  # in maximum_count: every language-script that is not named
_COLUMNS_OF_RATES = 4  # of a longer schedule the table shows as many, evenly spaced
_REPEATED_MOST = 10


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
        """The step from which each mixture holds, and the mixture: the first from step 0."""
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
        """float64 [names]: the rates before the limit on repetitions, summing to 1."""
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
        """The language-scripts that the rule does not draw from, and why."""
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
        """The stream of rows for a run of ``num_steps`` batches.

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
            weights = [integer_rates(of_phase) for of_phase in rates]
        else:
            weights = self._limited(rows, rates, np.diff([*starts, num_steps * batch_size]))
        return Sampler.in_phases(rows, starts, weights, seed)

    def _limited(
        self, rows: np.ndarray, rates: np.ndarray, lengths: np.ndarray
    ) -> list[np.ndarray]:
        """The rows that each phase draws from each language-script: int64 [names] a phase.

        A phase may use up as much of a limit as has been wanted up to its end of all that the
        phases want: none is left without by the ones before it.
        """
        wanted = np.cumsum(rates * lengths[:, None], axis=0)
        share = wanted / np.where(wanted[-1] > 0, wanted[-1], 1)
        limit = np.floor(self.maximum_epochs * rows)
        given, weights = np.zeros_like(rows), []
        for rate, length, part in zip(rates, lengths.tolist(), share, strict=True):
            most = np.floor(limit * part).astype(np.int64) - given
            there = int(most[rate > 0].sum())
            if there < length or length > PERIOD:
                can = f"the store can give {there:,}" if there < length else f"{PERIOD:,} can be"
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


def mixture_table(
    manifest: Manifest, sampler: Sampler, num_steps: int, batch_size: int
) -> list[dict[str, Any]]:
    """One record a language-script: what it has, and what the planned run draws.

    ``rates``: p by the step from which it holds; ``rate``: their mean over the run; ``drawn``:
    rows; ``epochs``: passes over its rows.
    """
    planned = num_steps * batch_size
    steps = [start // batch_size for start in sampler.starts]
    rates = np.array([allocation.rates for allocation in sampler.allocations])
    mean = np.diff([*sampler.starts, planned]) @ rates / planned
    columns = zip(manifest.names, sampler.rows, mean, rates.T, sampler.drawn(planned), strict=True)
    return [
        {
            "language": name,
            "lines": manifest.counts["train"][name].lines,
            "rows": int(rows),
            "tokens": manifest.counts["train"][name].tokens,
            "rate": float(rate),
            "rates": dict(zip(steps, of_phases.tolist(), strict=True)),
            "drawn": int(drawn),
            "epochs": float(drawn / max(1, rows)),
        }
        for name, rows, rate, of_phases, drawn in columns
    ]


def mixture_report(
    config: MixtureConfig, manifest: Manifest, sampler: Sampler, num_steps: int, batch_size: int
) -> str:
    """The table for people: every language-script, those repeated most, sums, who is left out."""
    records = mixture_table(manifest, sampler, num_steps, batch_size)
    steps = list(records[0]["rates"])
    shown = np.linspace(0, len(steps) - 1, min(len(steps), _COLUMNS_OF_RATES)).round().astype(int)
    headers = {"language": "language", "lines": "lines:,", "rows": "rows:,", "tokens": "tokens:,"}
    for step in (steps[index] for index in shown):
        headers[f"p{step}"] = f"p from {step:,}:.6f" if len(steps) > 1 else "p:.6f"
    headers["epochs"] = "epochs:,.2f"
    flat = [
        {**record, **{f"p{step}": p for step, p in record["rates"].items()}} for record in records
    ]
    parts = [table(flat, headers), ""]

    repeated = [record for record in flat if record["epochs"] > 1]
    repeated.sort(key=lambda record: (-record["epochs"], -record["rows"]))
    if repeated:
        most = table(repeated[:_REPEATED_MOST], {**headers, "drawn": "drawn:,"})
        parts += [f"{len(repeated):,} of {len(flat):,} are repeated, these most of all:", most, ""]

    lines, rows, tokens = (
        sum(record[field] for record in records) for field in ("lines", "rows", "tokens")
    )
    planned = num_steps * batch_size
    parts += [
        f"{len(records):,} language-scripts: {lines:,} lines, {rows:,} rows, {tokens:,} tokens",
        f"{num_steps:,} steps of {batch_size:,} rows: {planned:,} rows, "
        f"{planned / rows:,.2f} times the store",
    ]
    return "\n".join([*parts, *mixture_warnings(config, manifest, sampler, num_steps, batch_size)])


def mixture_warnings(
    config: MixtureConfig, manifest: Manifest, sampler: Sampler, num_steps: int, batch_size: int
) -> list[str]:
    """What a user may not expect of the planned run, a line each.

    Language-scripts that get no row, by reason and name; how many stand at the limit on
    repetitions; entries of the schedule that come too late.
    """
    drawn = sampler.drawn(num_steps * batch_size)
    phases = config.phases()
    left_out = [phase.left_out(manifest) for step, phase in phases if step < num_steps]
    by_reason: dict[str, list[str]] = {}
    for index in np.flatnonzero(drawn == 0):
        name = manifest.names[index]
        why = {reasons.get(name, "less than one row of the plan") for reasons in left_out}
        by_reason.setdefault("; ".join(sorted(why)), []).append(name)
    number = f"of {len(drawn):,}"
    lines = [
        f"never drawn, {why}: {len(names):,} {number}: {', '.join(names)}"
        for why, names in by_reason.items()
    ]
    if config.maximum_epochs is not None:
        at_limit = (drawn > 0) & (drawn == np.floor(config.maximum_epochs * sampler.rows))
        limit = f"{config.maximum_epochs:g} epochs"
        lines.append(f"at the limit of {limit}: {at_limit.sum():,} {number}")
    behind = [step for step, _ in phases if step >= num_steps]
    return [*lines, *(f"mixture.schedule: step {step:,} is behind the last one" for step in behind)]


def _seen(manifest: Manifest) -> np.ndarray:
    return np.array([name in seen_by_xlmr() for name in manifest.names])


def _require_known(field: str, names: Iterable[str], manifest: Manifest) -> None:
    """Raises UserError where the store has no language-script, or no row, of such a name."""
    rows = dict(zip(manifest.names, manifest.column("train", "rows"), strict=True))
    for name in sorted(names):
        if name not in rows:
            close = difflib.get_close_matches(name, rows, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"mixture.{field}: {name} is not in the store{meant}")
        if not rows[name]:
            raise UserError(f"mixture.{field}: {name} has no training row in the store")
