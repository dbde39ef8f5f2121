"""What fits on TPU slices, and how long the published training would take there: docs/plan.md.

    python benchmarks/plan.py --output benchmarks/results/plan.json

Each line is `langsamp plan --find_batch` in a process of its own, some minutes each; no TPU is
needed. Lines that the output holds already are kept: remove it to begin again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import record

from langsamp_jax.io.files import write_text
from langsamp_jax.io.progress import table

BATCH = 1024  # rows of a step in the published training

# Model, topology, settings beyond hardware/tpu.gin. Attention dropout keeps the quicker kernels
# from being chosen (see attention.py), so it is left out here.
LINES = [
    ("base", "v5e:4x4", []),
    ("large", "v5e:4x4", []),
    ("base", "v6e:4x4", []),
    ("large", "v6e:4x4", []),
    ("base", "v4:2x2x2", []),
    ("xl", "v5p:4x4x4", ["mesh.data=2", "mesh.fsdp=32"]),
    ("xl", "v6e:16x16", ["mesh.fsdp=64", "mesh.tensor=4"]),
    ("xxl", "v5p:4x4x4", ["mesh.fsdp=16", "mesh.tensor=4"]),
]

_HEADERS = {
    "model": "model",
    "topology": "topology",
    "layout": "data x fsdp x tensor",
    "rows": "rows a chip:",
    "memory": "GiB a chip:.1f",
    "capacity": "of:.1f",
    "sent": "MB sent:,.0f",
    "minimum": "least:,.0f",
    "tokens": "tokens/s:,.0f",
    "mfu": "MFU:.0%",
    "days": "days:.1f",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--only", metavar="MODEL", help="lines of this model")
    args = parser.parse_args()
    done = json.loads(args.output.read_text()) if args.output.exists() else {}
    for model, topology, settings in LINES:
        name = " ".join([model, topology, *settings])
        if name not in done and args.only in (None, model):
            print(name, file=sys.stderr)
            found = _plan(model, topology, settings)
            done[name] = {"model": model, "commit": record.commit(), **found}
            write_text(args.output, json.dumps(done, indent=1) + "\n")
    planned = {name: line for name, line in done.items() if "error" not in line}
    print(table([_row(line) for line in planned.values()], _HEADERS))
    for name in done.keys() - planned.keys():
        print(f"{name}: {done[name]['error']}")


def _plan(model: str, topology: str, settings: list[str]) -> dict[str, Any]:
    files = [f"models/xlmr_{model}.gin", "variants/langsamp.gin", "hardware/tpu.gin"]
    bindings = ["model.attention_dropout=0.0", *settings]
    command = [sys.executable, "-m", "langsamp_jax", "plan", "--topology", topology, "--json"]
    command += ["--find_batch", *(f"--gin_file={file}" for file in files)]
    command += [f"--gin.{binding}" for binding in bindings]
    run = subprocess.run(command, stdout=subprocess.PIPE)
    if run.returncode:  # below 0: killed by a signal, as by an assertion of the TPU compiler
        return {"error": f"the plan ended with {run.returncode}"}
    return json.loads(run.stdout)


def _row(line: dict[str, Any]) -> dict[str, Any]:
    memory, network = line["memory"], line["network"]
    speed = line["estimate"]["overlapped"]
    published = BATCH * line["sequence_length"] * line["estimate"]["num_steps"]
    return {
        "model": line["model"],
        "topology": line["topology"],
        "layout": " x ".join(str(size) for size in line["mesh"].values()),
        "rows": line["rows_per_device"],
        "memory": memory["total"] / 2**30,
        "capacity": memory["capacity"] / 2**30,
        "sent": network["sent"] / 1e6,
        "minimum": network["minimum"] / 1e6,
        "tokens": speed["tokens_per_second"],
        "mfu": speed["mfu"],
        "days": published / speed["tokens_per_second"] / 86_400,
    }


if __name__ == "__main__":
    main()
