"""What the language and script tables cost: a LangSAMP step against a vanilla one.

    python benchmarks/overhead.py [--preset gpu] [--languages 610] [--starts N] [--rounds N]

Two fresh processes on the same batches make one step each, round after round, as in ``step.py``:
one without tables, one with. A few per cent between two processes are where their memory happens
to lie, so each pair is started several times, and ``control`` is vanilla against itself: what it
shows is what cannot be told apart. Time is the ratio within a round, and that of the quickest steps
of both, since whatever else a machine does only adds to a step; memory is what the compiled
step asks for (its arguments and temporaries) and the peak of the process, or of the device. Prints
one JSON object.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import record
import tabulate
from interleave import Contender, rounds, spread
from workload import BATCHES, OURS, PRESETS, Workload, random_batches

VANILLA = {"placement": "none"}
DTYPE = {"cpu": "float32", "gpu": "bfloat16", "tiny": "float32"}
COMPARED = ("parameters", "compiled_bytes", "peak_memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--languages", type=int, nargs="+", default=[10, 610, 7000])
    parser.add_argument("--starts", type=int, default=3, help="how often a pair is started")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of the result")
    args = parser.parse_args()
    changes = {"rounds": args.rounds, "rows": args.rows}
    workload = Workload.preset(args.preset, changes)
    settings = {"dtype": DTYPE[args.preset], **OURS[args.preset]}
    counts = min(workload.rounds, workload.rows, args.starts, *args.languages)
    if counts < 1:
        parser.error("--languages, --starts, --rounds, --rows: expected whole numbers above 0")

    variants = {"control": (workload, {**settings, **VANILLA})}
    for count in args.languages:
        variants[str(count)] = dataclasses.replace(workload, languages=count), settings
    found = {}
    for name, (work, chosen) in variants.items():
        device, found[name] = compare(work, chosen, args.starts)
        values = {"workload": dataclasses.asdict(work), **settings, **found[name]}
        shape = f"{work.rows} x {work.length}"
        record.save(device, "overhead", f"{name}, {shape}", values, args.output)
    print(table(found), file=sys.stderr)
    print(json.dumps(found, indent=1))


def compare(
    workload: Workload, settings: dict[str, Any], starts: int
) -> tuple[str, dict[str, Any]]:
    """The device, and ``settings`` against the same without tables, over all rounds and starts."""
    ratios, quickest, measured = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / BATCHES, **random_batches(workload))
        shared = {"workload": dataclasses.asdict(workload), "folder": folder}
        for _ in range(starts):
            with (
                Contender("step_jax.py", {**shared, "settings": {**settings, **VANILLA}}) as plain,
                Contender("step_jax.py", {**shared, "settings": settings}) as other,
            ):
                answers = rounds(plain, other, workload.rounds)
                seconds = [[answer["seconds"] for answer in side] for side in answers]
                ratios.append([b / a for a, b in zip(*seconds, strict=True)])
                quickest.append(min(seconds[1]) / min(seconds[0]))
                both = zip((plain, other), answers, strict=True)
                measured.append([memory(contender.facts, said) for contender, said in both])
        device = plain.facts["device"]
    return device, {
        "time_ratio": spread([ratio for start in ratios for ratio in start]),
        "time_ratio_of_each_start": [statistics.median(start) for start in ratios],
        "quickest_ratio": statistics.median(quickest),
        **{
            f"{name}_{side}": statistics.median(pair[index][name] for pair in measured)
            for name in COMPARED
            for index, side in enumerate(("vanilla", "langsamp"))
        },
    }


def memory(facts: dict[str, Any], answers: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "parameters": facts["parameters"],
        "compiled_bytes": facts["argument_bytes"] + facts["temporary_bytes"],
        "peak_memory": max(answer["peak_memory"] for answer in answers),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, values in found.items():
        ratio = values["time_ratio"]
        changes = [values[f"{what}_langsamp"] / values[f"{what}_vanilla"] for what in COMPARED]
        rows.append(
            [
                name,
                f"{ratio['median'] - 1:+.2%}",
                "{:+.2%} to {:+.2%}".format(*(bound - 1 for bound in ratio["interval"])),
                f"{values['quickest_ratio'] - 1:+.2%}",
                *(f"{change - 1:+.2%}" for change in changes),
            ]
        )
    headers = [
        "languages",
        "time",
        "95 %",
        "quickest",
        "parameters",
        "compiled memory",
        "peak memory",
    ]
    return tabulate.tabulate(rows, headers, "github", disable_numparse=True)


if __name__ == "__main__":
    main()
