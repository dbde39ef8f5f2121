"""How much of a step on a CPU is matrix products: what they would take alone, ours and PyTorch's.

    python benchmarks/products.py [--rounds N]

Every product of dense layers and decoder in one step of ``step.py``'s CPU workload, forward and
for both gradients, in the form in which the model asks for it; attention's few are left out.
``step_seconds`` is the sum over a step, each product as often as
it runs: no step can be quicker with these products. Prints one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import record
import tabulate
import torch
from step_jax import device_name
from workload import PRESETS

from langsamp_jax.hardware.cpu import keep_freed, matmul_nt, matmul_tn, product, use_one_arena
from langsamp_jax.objectives.masking import ObjectiveConfig

FORMS = {  # name -> (ours, PyTorch's, shapes of both operands for x [m, k] @ w [k, n])
    "forward": (product, torch.matmul, ("mk", "kn")),
    "gradient of x": (matmul_nt, lambda g, w: g @ w.T, ("mn", "kn")),
    "gradient of w": (matmul_tn, lambda x, g: x.T @ g, ("mk", "mn")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of the result")
    args = parser.parse_args()
    use_one_arena()
    keep_freed(held=0)
    found = {dtype: measure(dtype, args.rounds) for dtype in ("float32", "bfloat16")}
    record.save(device_name(), "products", "step.py's cpu workload", found, args.output)
    print(tabulate.tabulate(*table(found), "github", floatfmt=".1f"), file=sys.stderr)
    print(json.dumps(found, indent=1))


def products() -> dict[tuple[int, int, int], int]:
    """(m, k, n) -> how many in a forward pass. The decoder's three are written as if the gradient
    of its features, slopes @ table, were the forward one."""
    work = PRESETS["cpu"]
    tokens, hidden, inner = work.tokens_per_step, work.hidden_size, work.intermediate_size
    targets = work.rows * ObjectiveConfig().num_targets(work.length)
    layers = work.num_hidden_layers
    return {
        (tokens, hidden, hidden): 4 * layers,
        (tokens, hidden, inner): layers,
        (tokens, inner, hidden): layers,
        (targets, work.vocab_size, hidden): 1,
    }


def measure(dtype: str, rounds: int) -> dict:
    """GFLOP/s of every product, and the seconds of all that a step needs."""
    rates, seconds = {}, {"ours": 0.0, "torch": 0.0}
    for (m, k, n), count in products().items():
        sizes = {"m": m, "k": k, "n": n}
        for name, (ours, theirs, shapes) in FORMS.items():
            arrays = [np.ones([sizes[axis] for axis in shape], np.float32) for shape in shapes]
            least = least_seconds(ours, theirs, arrays, dtype, rounds)
            for side, one in least.items():
                seconds[side] += count * one
            label = f"{name}, {m} x {k} x {n}"
            rates[label] = {side: 2e-9 * m * k * n / one for side, one in least.items()}
    return {"gflops": rates, "step_seconds": seconds}


def least_seconds(
    ours: Callable, theirs: Callable, arrays: list[np.ndarray], dtype: str, rounds: int
) -> dict[str, float]:
    """Of both, the least of some rounds: it is about what the processor can do, and whatever else
    the machine does only adds. One after the other: PyTorch's threads spin for a while after each
    product, and would slow down what comes between."""
    of_jax = [jnp.asarray(array, dtype) for array in arrays]
    of_torch = [torch.from_numpy(array).to(getattr(torch, dtype)) for array in arrays]
    compiled = jax.jit(ours)
    calls = {
        "ours": lambda: compiled(*of_jax).block_until_ready(),
        "torch": lambda: theirs(*of_torch),
    }
    least = {}
    for side, call in calls.items():
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        least[side] = min(seconds)
        time.sleep(0.3)
    return least


def table(found: dict) -> tuple[list, list]:
    rows = [
        [dtype, label, *rates.values()]
        for dtype, values in found.items()
        for label, rates in values["gflops"].items()
    ]
    rows += [
        [dtype, "seconds of a step", *values["step_seconds"].values()]
        for dtype, values in found.items()
    ]
    return rows, ["dtype", "product, m x k x n", "GFLOP/s", "PyTorch"]


if __name__ == "__main__":
    main()
