"""Attention: each implementation that runs here against the others. Prints one JSON object.

    python benchmarks/attention.py [--lengths 128 512] [--tokens N] [--rounds N]
    python benchmarks/attention.py --topology v5e:2x2

One layer of XLM-R base, forward and backward, with as many tokens at every length; a text fills
half of a row or more. Told are, for padded rows and for rows packed from several texts, the median
milliseconds of a device whose implementations take turns, and the largest difference from XLA's
with float32 throughout, as a share of the largest value. Exit 1 where that is more than rounding.

With ``--topology`` the programs are compiled for a TPU that is not there: told are the bytes that a
chip moves and its temporary memory, both as the compiler counts them.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import record
import tabulate
from step_jax import device_name

from langsamp_jax.hardware.devices import peak_flops
from langsamp_jax.models.attention import AttentionSpec, attend, unsupported_reason
from langsamp_jax.parallel.sharding import use_mesh
from langsamp_jax.plan.topology import compile_only_devices

HEADS, HEAD_SIZE = 12, 64
CALLS = 10  # in a measurement, so that launching weighs little
ROUNDING = {"bfloat16": 0.02, "float32": 1e-4}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--tokens", type=int, help="at every length; 65,536, on a CPU 2,048")
    parser.add_argument("--dtype", choices=ROUNDING, default="bfloat16")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--topology", help="compile for this TPU instead, such as v5e:2x2")
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of the result")
    args = parser.parse_args()
    args.tokens = args.tokens or (65_536 if args.topology or not on_cpu() else 2048)
    device, name, rows = compiled(args) if args.topology else measured(args)
    values = {"heads": HEADS, "head_size": HEAD_SIZE, "tokens": args.tokens, "measured": rows}
    print(tabulate.tabulate(rows, headers="keys", floatfmt=".3g"), file=sys.stderr)
    print(json.dumps(values, indent=1))
    record.save(device, "attention", f"{name}, {args.dtype}", values, args.output)
    return int(any(row.get("difference", 0) > ROUNDING[args.dtype] for row in rows))


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def measured(args: argparse.Namespace) -> tuple[str, str, list[dict[str, Any]]]:
    """The device, what to file the result under, and a row for each length and implementation."""
    rows, platform = [], jax.default_backend()
    peak = peak_flops(jax.local_devices()[0].device_kind)
    for length in args.lengths:
        case = AttentionSpec(platform, args.dtype, HEAD_SIZE, length, dropout=False)
        names = [name for name in ("xla", "cudnn", "splash") if not unsupported_reason(name, case)]
        for kind, segments in make_segments(args.tokens // length, length).items():
            arrays = make_arrays(args.tokens // length, length, args.dtype)
            exact = layer("xla")(*(x.astype("float32") for x in arrays), segments)
            functions = {name: layer(name) for name in names}
            differences = {
                name: difference(function(*arrays, segments), exact, segments != 0)
                for name, function in functions.items()
            }
            seconds = in_turn(functions, (*arrays, segments), args.rounds)
            flops = 12 * args.tokens * length * HEADS * HEAD_SIZE  # 2 products forward, 4 backward
            for name in names:
                rows.append(
                    {
                        "length": length,
                        "texts": kind,
                        "implementation": name,
                        "milliseconds": 1e3 * seconds[name],
                        "times xla": seconds["xla"] / seconds[name],
                        "of peak": flops / seconds[name] / peak if peak else None,
                        "difference": differences[name],
                    }
                )
    return device_name(), "run", rows


def compiled(args: argparse.Namespace) -> tuple[str, str, list[dict[str, Any]]]:
    """Likewise, for one chip of a machine that is not there."""
    devices = np.array(compile_only_devices(args.topology))
    kinds = (jax.sharding.AxisType.Auto,) * 3
    axes = ("data", "fsdp", "tensor")
    mesh = jax.sharding.Mesh(devices.reshape(-1, 1, 1), axes, axis_types=kinds)
    rows = []
    for length in args.lengths:
        shape = (args.tokens // length * devices.size, length, HEADS, HEAD_SIZE)
        for name in ("xla", "splash"):
            with use_mesh(mesh):
                spec = nn.logical_to_mesh_axes(("batch",))
                place = jax.sharding.NamedSharding(mesh, spec)
                array = jax.ShapeDtypeStruct(shape, args.dtype, sharding=place)
                segments = jax.ShapeDtypeStruct(shape[:2], bool, sharding=place)
                program = layer(name).lower(*[array] * 4, segments).compile()
            rows.append(
                {
                    "length": length,
                    "implementation": name,
                    "gigabytes moved": program.cost_analysis()["bytes accessed"] / 1e9,
                    "temporary gigabytes": program.memory_analysis().temp_size_in_bytes / 1e9,
                }
            )
    return devices.flat[0].device_kind, f"compiled for {args.topology}", rows


def layer(name: str) -> jax.stages.Wrapped:
    """Output and gradients of query, key and value; only text has an effect on the loss."""

    @jax.jit
    def run(query, key, value, gradient, segments):
        output, pull = jax.vjp(lambda *qkv: attend(*qkv, segments, name), query, key, value)
        return output, *pull(jnp.where(segments[..., None, None] != 0, gradient, 0))

    return run


def make_arrays(batch: int, length: int, dtype: str) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (batch, length, HEADS, HEAD_SIZE), dtype) for key in keys]


def make_segments(batch: int, length: int) -> dict[str, jax.Array]:
    """``padded``: bool, one text a row; ``packed``: int32, three texts a row and some padding."""
    rng, positions = np.random.default_rng(0), np.arange(length)
    ends = np.sort(rng.integers(1, length + 1, (batch, 3)))
    numbers = 1 + (positions[None, :, None] >= ends[:, None]).sum(-1)
    padded = positions < rng.integers(length // 2, length + 1, (batch, 1))
    packed = np.where(numbers > 3, 0, numbers).astype(np.int32)
    return {"padded": jnp.asarray(padded), "packed": jnp.asarray(packed)}


def difference(found: tuple, exact: tuple, text: jax.Array) -> float:
    """The largest, where there is text; inf where padding has a gradient or anything is no
    number."""
    worst = 0.0
    for ours, true in zip(found, exact, strict=True):
        error = jnp.abs(ours.astype("float32") - true)[text].max() / jnp.abs(true[text]).max()
        worst = max(worst, float(error) if jnp.isfinite(ours).all() else np.inf)
    clean = not any(bool(gradient[~text].any()) for gradient in found[1:])
    return worst if clean else np.inf


def in_turn(functions: dict[str, Callable], arguments: tuple, rounds: int) -> dict[str, float]:
    """The median seconds of a call of each."""
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            for _ in range(CALLS):
                output = function(*arguments)
            jax.block_until_ready(output)
            seconds[name].append((time.perf_counter() - started) / CALLS)
    return {name: float(np.median(values)) for name, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
