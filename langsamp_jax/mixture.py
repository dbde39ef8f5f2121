"""The mixture: from the counts of a store to the rate of each language-script."""

from typing import Literal

import numpy as np

from langsamp_jax.config import configurable, require
from langsamp_jax.errors import UserError
from langsamp_jax.inventory import seen_by_xlmr
from langsamp_jax.sampling import Sampler, reference_sentences, temperature_rates
from langsamp_jax.store import Manifest

# The keys of ``mixture_table`` and how to print them.
MIXTURE_COLUMNS = {
    "language": "language",
    "lines": "lines:,",
    "rows": "rows:,",
    "tokens": "tokens:,",
    "rate": "p:.6f",
    "epochs": "epochs:.2f",
}


@configurable("mixture")
class MixtureConfig:
    """How often each language-script is drawn.

    ``temperature``: p proportional to min(rows, maximum_rows)^(1/temperature), as seqio has it.
    ``langsamp``: the published code's rule on sentence counts, see ``reference_sentences``;
    language-scripts unknown to XLM-R need ``minimum_sentences`` to take part.
    """

    rule: Literal["temperature", "langsamp"] = "temperature"
    temperature: float = 1 / 0.3
    maximum_rows: int | None = None
    minimum_sentences: int = 30_000

    def check(self) -> None:
        require(self.temperature > 0, self, "temperature", "a number above 0")
        capped = self.maximum_rows is None or self.maximum_rows > 0
        require(capped, self, "maximum_rows", "a whole number above 0")
        require(self.minimum_sentences > 0, self, "minimum_sentences", "a whole number above 0")

    def rates(self, manifest: Manifest) -> np.ndarray:
        """float64 [names]: the rates, summing to 1."""
        if self.rule == "temperature":
            rows = manifest.column("train", "rows")
            return temperature_rates(rows, self.temperature, self.maximum_rows)
        seen = np.array([name in seen_by_xlmr() for name in manifest.names])
        lines = manifest.column("train", "lines")
        quota = reference_sentences(lines, seen, minimum=self.minimum_sentences)
        if not quota.any():
            raise UserError(
                f"mixture.minimum_sentences = {self.minimum_sentences}: no language-script of the "
                "store is XLM-R's or has as many lines"
            )
        return quota / quota.sum()

    def sampler(self, manifest: Manifest, seed: int) -> Sampler:
        return Sampler.create(manifest.column("train", "rows"), self.rates(manifest), seed)


def mixture_table(
    manifest: Manifest, sampler: Sampler, planned_rows: int
) -> list[dict[str, object]]:
    """One record a language-script: what it has, its rate, and its epochs at the planned rows."""
    drawn = sampler.drawn(planned_rows)
    return [
        {
            "language": name,
            "lines": manifest.counts["train"][name].lines,
            "rows": int(rows),
            "tokens": manifest.counts["train"][name].tokens,
            "rate": float(rate),
            "epochs": float(count / rows),
        }
        for name, rows, rate, count in zip(
            manifest.names, sampler.rows, sampler.rates, drawn, strict=True
        )
    ]
