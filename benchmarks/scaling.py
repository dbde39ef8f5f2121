"""What 1 to 8 devices send one another in a step, against the least that a layout needs.

    python benchmarks/scaling.py [--devices 1 2 4 8] [--rows N] [--rounds N]

The real train step is compiled for simulated devices of this host, as many rows on each device,
and split in one of three ways: ``data`` (every device holds the whole model), ``fsdp`` and
``tensor`` (all rows on all devices). Counted are the bytes that a device sends, by kind, each
collective in a loop as often as it runs; theory is ``langsamp_jax/plan/roofline.py``. The bytes are
what this host's compiler makes of the step; for a TPU's, see ``langsamp plan``. With few rows it
may send activations where theory gathers parameters, and fewer bytes than theory. Simulated devices
share the cores of one host, so the seconds of a step grow with the devices, and say nothing of a
machine where each has its own; they are there to show that the steps run. Prints one JSON object.
"""

import argparse
import collections
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import record
import tabulate

LAYOUTS = ("data", "fsdp", "tensor")
MODEL = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
}
VOCABULARY, LENGTH = 8192, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rows", type=int, default=8, help="on each device")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of the result")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(*args.devices, args.rows, args.rounds) < 1:
        parser.error("--devices, --rows and --rounds: expected whole numbers above 0")
    if args.measure:
        print(json.dumps(measure(args.measure, args.rows, args.rounds)))
        return

    found = []
    for devices in args.devices:  # a process each: their number is fixed once jax has started
        command = [sys.executable, __file__, "--measure", devices]
        command += ["--rows", args.rows, "--rounds", args.rounds]
        done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE)
        device, measured = json.loads(done.stdout)
        found += measured
    model = {**MODEL, "vocabulary": VOCABULARY, "length": LENGTH, "rows_on_each": args.rows}
    values = {"model": model, "layouts": found}
    record.save(device, "scaling", f"{args.rows} x {LENGTH} on each", values, args.output)
    print(table(found), file=sys.stderr)
    print(json.dumps(values, indent=1))


def measure(devices: int, rows: int, rounds: int) -> tuple[str, list[dict[str, Any]]]:
    """The name of the device, and every layout that differs on so many."""
    import jax
    from step_jax import device_name

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    layouts = LAYOUTS if devices > 1 else LAYOUTS[:1]
    return device_name(), [measure_layout(layout, devices, rows, rounds) for layout in layouts]


def measure_layout(layout: str, devices: int, rows: int, rounds: int) -> dict[str, Any]:
    import jax

    from langsamp_jax.models.config import ModelConfig
    from langsamp_jax.objectives.masking import ObjectiveConfig
    from langsamp_jax.parallel.mesh import MeshConfig
    from langsamp_jax.plan.collectives import collectives
    from langsamp_jax.plan.compile import compile_step
    from langsamp_jax.plan.hlo import parse
    from langsamp_jax.plan.roofline import minimum_traffic
    from langsamp_jax.training.config import Configs, TrainConfig
    from langsamp_jax.training.setup import Sizes

    total = rows * devices
    configs = Configs(
        train=TrainConfig(global_batch_size=total),
        model=ModelConfig(**MODEL),
        mesh=MeshConfig(**{"data": 1, layout: devices}),
    )
    sizes = Sizes(vocab_size=VOCABULARY, sequence_length=LENGTH)
    step = compile_step(configs, sizes, jax.devices())
    mesh = dict(step.mesh.shape)
    sent: dict[str, float] = collections.defaultdict(float)
    for collective in collectives(parse(step.program.as_text()), mesh):
        sent[collective.kind] += collective.wire
    least = minimum_traffic(
        configs.model,
        step.state,
        step.mesh,
        total // (mesh["data"] * mesh["fsdp"]),
        LENGTH,
        ObjectiveConfig().num_targets(LENGTH),
        parts=1,
    )
    return {
        "devices": devices,
        "layout": layout,
        "sent": dict(sent),
        "sent_together": sum(sent.values()),
        "least": least,
        "least_together": sum(least.values()),
        "seconds": step_seconds(step.program, rounds),
    }


def step_seconds(program: Any, rounds: int) -> float:
    """The median of ``rounds`` steps behind a first one, on ones: arithmetic does not mind."""
    import jax
    import jax.numpy as jnp

    state, batch = jax.tree.map(
        lambda leaf, place: jax.device_put(jnp.ones(leaf.shape, leaf.dtype), place),
        program.in_avals[0],
        program.input_shardings[0],
    )
    seconds = []
    for _ in range(1 + rounds):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(program(state, batch))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def table(found: list[dict[str, Any]]) -> str:
    rows = []
    for values in found:
        least, sent = values["least_together"], values["sent_together"]
        kinds = sorted(values["sent"].items(), key=lambda item: -item[1])
        rows.append(
            [
                values["devices"],
                values["layout"],
                f"{least / 1e6:.2f}",
                f"{sent / 1e6:.2f}",
                f"{sent / least:.2f}" if least else "",
                ", ".join(f"{kind} {amount / 1e6:.2f}" for kind, amount in kinds),
                f"{values['seconds']:.3f}",
            ]
        )
    headers = ["devices", "layout", "least MB", "sent MB", "ratio", "by kind", "seconds"]
    return tabulate.tabulate(rows, headers, "github", disable_numparse=True)


if __name__ == "__main__":
    main()
