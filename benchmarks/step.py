"""One optimizer step, ours against PyTorch. Prints one JSON object.

    python benchmarks/step.py [--preset gpu] [--only recipe_float32] [--rounds N] [--rows N]

Ours meets each opponent in turn: two fresh processes with the same weights, the same batches and
the same masked positions make one step each, round after round. Told are the median seconds of
both and the median and quartiles of the ratio within a round. ``first_loss`` is the loss of the
first batch before any update and without dropout, which must be the same for all.

Opponents: ``recipe``, the published LangSAMP in eager ``transformers`` with its gathered head;
``stock``, ``XLMRobertaForMaskedLM`` as it is; ``tuned``, PyTorch at its best: compiled, SDPA, fused
AdamW, gathered head. With ``--output`` elsewhere than ``benchmarks/results``, nothing here changes.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import record
import tabulate
from interleave import Contender, Failed, rounds, spread
from workload import OURS, PRESETS, Workload

TUNED = {"attention": "sdpa", "fused": True, "compiled": True}
OPPONENTS = {  # name -> settings of theirs, dtype of ours
    "cpu": {
        "recipe_float32": ({}, "float32"),
        "stock_float32": ({"gathered": False}, "float32"),
        "recipe_fused_float32": ({"fused": True}, "float32"),
        "tuned_float32": (TUNED, "float32"),
        "recipe_bfloat16": ({"dtype": "bfloat16"}, "bfloat16"),
        "tuned_bfloat16": ({**TUNED, "dtype": "bfloat16"}, "bfloat16"),
    },
    "gpu": {
        "recipe_float16": ({"dtype": "float16"}, "bfloat16"),
        "stock_float16": ({"dtype": "float16", "gathered": False}, "bfloat16"),
        "tuned_bfloat16": ({**TUNED, "dtype": "bfloat16"}, "bfloat16"),
    },
}
OPPONENTS["tiny"] = OPPONENTS["cpu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--only", nargs="+", metavar="OPPONENT", help="some of the opponents")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of the result")
    args = parser.parse_args()
    opponents = OPPONENTS[args.preset]
    if unknown := set(args.only or ()) - set(opponents):
        parser.error(f"no opponent {', '.join(unknown)}; there are {', '.join(opponents)}")
    changes = {name: getattr(args, name) for name in ("rounds", "rows", "dropout")}
    workload = Workload.preset(args.preset, changes)
    if min(workload.rounds, workload.rows) < 1:
        parser.error("--rounds and --rows: expected whole numbers above 0")

    with tempfile.TemporaryDirectory() as folder:
        write_start(workload, Path(folder))
        pairs = {}
        for name in args.only or opponents:
            theirs, dtype = opponents[name]
            settings = {**OURS[args.preset], "dtype": dtype}, theirs
            pairs[name] = found = compare(workload, Path(folder), *settings)
            if device := found.pop("device", None):
                values = {"workload": dataclasses.asdict(workload), **found}
                shape = f"{workload.rows} x {workload.length}, dropout {workload.dropout}"
                record.save(device, "step", f"{name}, {shape}", values, args.output)
    print(table(pairs), file=sys.stderr)
    print(json.dumps({"workload": dataclasses.asdict(workload), "pairs": pairs}, indent=1))


def write_start(workload: Workload, folder: Path) -> None:
    command = [sys.executable, Path(__file__).with_name("start.py")]
    command += [json.dumps(dataclasses.asdict(workload)), folder]
    subprocess.run(command, check=True, stdout=sys.stderr)


def compare(
    workload: Workload, folder: Path, of_ours: dict[str, Any], of_theirs: dict[str, Any]
) -> dict[str, Any]:
    """What both did, and how many times longer the opponent took; or why it came to nothing."""
    shared = {"workload": dataclasses.asdict(workload), "folder": str(folder)}
    found: dict[str, Any] = {}
    try:
        with Contender("step_jax.py", {**shared, "settings": of_ours}) as ours:
            found["device"] = ours.facts["device"]
            with Contender("step_torch.py", {**shared, "settings": of_theirs}) as theirs:
                answers = rounds(ours, theirs, workload.rounds)
    except Failed as failure:
        return {**found, "error": str(failure)}
    steps = zip(*answers, strict=True)
    return {
        **found,
        "ratio": spread([theirs["seconds"] / ours["seconds"] for ours, theirs in steps]),
        "ours": told(ours.facts, answers[0], workload, ours.facts),
        "theirs": told(theirs.facts, answers[1], workload, ours.facts),
    }


def told(
    facts: dict[str, Any], answers: list[dict], workload: Workload, device: dict[str, Any]
) -> dict[str, Any]:
    """The same figures for both sides; MFU (of bfloat16 peak) where the device is known."""
    seconds = [answer["seconds"] for answer in answers]
    median = statistics.median(seconds)
    useful, peak = device["useful_flops"] / median, device["peak_flops"]
    return {
        **facts,
        "seconds": seconds,
        "median_seconds": median,
        "tokens_per_second": workload.tokens_per_step / median,
        "useful_flops_per_second": useful,
        "mfu": useful / peak if peak else None,
        "peak_memory": max(answer["peak_memory"] for answer in answers),
        "losses": [answer["loss"] for answer in answers],
    }


def table(pairs: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, found in pairs.items():
        if "error" in found:
            rows.append([name, found["error"]])
            continue
        ours, theirs, ratio = found["ours"], found["theirs"], found["ratio"]
        rows.append(
            [
                name,
                f"{theirs['median_seconds']:.3f}",
                f"{ours['median_seconds']:.3f}",
                "{:.2f} ({:.2f} to {:.2f})".format(ratio["median"], *ratio["quartiles"]),
                f"{theirs['peak_memory'] / 1e9:.2f}",
                f"{ours['peak_memory'] / 1e9:.2f}",
                f"{theirs['first_loss'] - ours['first_loss']:+.1e}",
            ]
        )
    headers = ["opponent", "seconds", "ours", "ratio", "GB", "ours", "first loss"]
    return tabulate.tabulate(rows, headers, "github", disable_numparse=True)


if __name__ == "__main__":
    main()
