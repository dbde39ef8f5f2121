"""How far the sampler's running counts stray from their expectation over a whole run.

    python benchmarks/sampler.py [--sentences glot500c_language_stats.csv]

Counts after every step of 150,000 steps of 1,024 rows, for several mixtures of 610 languages
(lognormal sizes), or of the sentence counts in the column ``new_length`` of a CSV file. Prints
one JSON object a mixture: the proven bound, the largest deviation seen, and how many of the
(language, step) pairs were further than one row away.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from langsamp_jax.data.rates import temperature_rates
from langsamp_jax.data.sampling import Allocation, integer_rates

STEPS, BATCH, STEPS_AT_ONCE = 150_000, 1024, 1000


def measure(name: str, sizes: np.ndarray, temperature: float) -> dict[str, object]:
    allocation = Allocation(integer_rates(temperature_rates(sizes, temperature)))
    worst, beyond = 0.0, 0
    for start in range(0, STEPS, STEPS_AT_ONCE):
        row = np.arange(start + 1, start + STEPS_AT_ONCE + 1) * BATCH
        deviation = np.abs(allocation.drawn(row) - row[:, None] * allocation.rates)
        worst, beyond = max(worst, float(deviation.max())), beyond + int((deviation > 1).sum())
    return {
        "mixture": name,
        "languages": len(sizes),
        "temperature": round(temperature, 3),
        "proven_bound_rows": round(float(allocation.deviation_bound.max()), 4),
        "largest_deviation_rows": round(worst, 4),
        "pairs_beyond_one_row": beyond,
        "pairs": STEPS * len(sizes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=Path, help="CSV with a column new_length")
    args = parser.parse_args()
    if args.sentences:
        with open(args.sentences, encoding="utf-8") as file:
            sizes = np.array([int(row["new_length"]) for row in csv.DictReader(file)])
        name, sizes = args.sentences.stem, sizes[sizes > 0]
    else:
        generator = np.random.default_rng(0)
        name, sizes = "lognormal", np.exp(generator.normal(8, 2, 610)).astype(np.int64) + 1
    for temperature in (1.0, 2.0, 1 / 0.3, 100.0):
        print(json.dumps(measure(name, sizes, temperature)), flush=True)


if __name__ == "__main__":
    main()
