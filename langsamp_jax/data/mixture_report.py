"""What a planned run draws from each language-script, as records, as a table and as warnings."""

from typing import Any

import numpy as np

from langsamp_jax.data.manifest import Manifest
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.sampling import Sampler
from langsamp_jax.io.progress import table

_RATE_COLUMNS = 4  # of a longer schedule the table shows as many, evenly spaced
_REPEATED_MOST = 10


def mixture_table(
    manifest: Manifest, sampler: Sampler, num_steps: int, batch_size: int
) -> list[dict[str, Any]]:
    """Returns a record of each language-script: what it has, and what the planned run draws.

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
            "rates": dict(zip(steps, phase_rates.tolist(), strict=True)),
            "drawn": int(drawn),
            "epochs": float(drawn / max(1, rows)),
        }
        for name, rows, rate, phase_rates, drawn in columns
    ]


def mixture_report(
    config: MixtureConfig, manifest: Manifest, sampler: Sampler, num_steps: int, batch_size: int
) -> str:
    """Returns the table for people: each language-script, the most repeated, sums, the left out."""
    records = mixture_table(manifest, sampler, num_steps, batch_size)
    steps = list(records[0]["rates"])
    shown = np.linspace(0, len(steps) - 1, min(len(steps), _RATE_COLUMNS)).round().astype(int)
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
    """Returns what a user may not expect of the planned run, a line each.

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
    if config.maximum_count is not None and config.rule != "temperature":
        lines.append(f"mixture.maximum_count: the rule {config.rule} has no use for it")
    behind = [step for step, _ in phases if step >= num_steps]
    return [*lines, *(f"mixture.schedule: step {step:,} is behind the last one" for step in behind)]
