"""Where models keep their languages, over training: what the vectors change, and two claims.

    python benchmarks/inside.py --output inside [--seeds 3] [--real REAL]

LangSAMP, the same model without vectors and one with shuffled ids, on the 16-language world of
``langsamp synthesize``, some seeds each, with snapshots; then the probe, neurons, concepts at every
snapshot and ablation at the end. With --real, the folder of a finished real_evaluation.py, also
its one run, on FLORES. Hours on two cores. Given again, it goes on: what stands in OUTPUT stays.
Prints tables in Markdown; OUTPUT/log.txt says what was run, how long it took and its peak memory.
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tabulate
from commands import run_missing

from langsamp_jax.evaluation.statistics import mean_difference

VARIANTS = ("vanilla", "langsamp", "shuffled_ids")  # differences are to the first
STEPS = 500
WORLD = {
    "corpus": "synthesize --output corpus",
    "my.model": "tokenizer train --corpus corpus --vocab_size 6000 --output my.model",
    "store": "prepare --corpus corpus --tokenizer my.model --output store --sequence_length 64",
}
OVER_STEPS = ("language-probe", "neurons", "concepts")
CHANGES = {  # measure -> title
    "language-probe-steps/last layer/accuracy": "probe, last layer, accuracy",
    "language-probe-steps/last layer/selectivity": "probe, last layer, less control task",
    "neurons-steps/selectivity": "neurons, separability",
    "neurons-steps/outer - middle": "neurons, outer less middle layers",
    "neurons-steps/clamped, above matched": "own neurons at 0, loss above matched",
    "concepts-steps/shared": "concepts, O*, all pairs",
    "concepts-steps/two_scripts/shared": "concepts, O*, one language in two scripts",
    "concepts-steps/forcing across/rise": "concepts, forcing across languages, nats",
    "ablation/all attention, mean/drop": "ablation, all attention",
    "ablation/all ffn, mean/drop": "ablation, all feed-forward",
}
# The last step, and the last less the first, of a result -> its title.
CLAIMS: dict[str, tuple[str, Callable[[Mapping[str, Any], int], float]]] = {
    "outer less middle layers, separability": (
        "neurons",
        lambda record, step: record["contrasts"][step]["outer - middle"]["value"],
    ),
    "O* of concepts, all pairs": (
        "concepts",
        lambda record, step: record["overall"]["shared"][step],
    ),
    "O* of concepts, other languages in two scripts": (
        "concepts",
        lambda record, step: record["pairs"]["other_script"]["overall"]["shared"][step],
    ),
    "O* of concepts, one language in two scripts": (
        "concepts",
        lambda record, step: record["pairs"]["two_scripts"]["overall"]["shared"][step],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--real", type=Path, metavar="DIR", help="of real_evaluation.py")
    args = parser.parse_args()
    output: Path = args.output
    run_missing(WORLD, output)
    for seed in range(args.seeds):  # seed by seed, so that a part of the study compares too
        for variant in VARIANTS:
            run_missing(commands(variant, seed), output)
    names = [run_name(variant, seed) for variant in VARIANTS for seed in range(args.seeds)]
    (output / "compared.json").unlink(missing_ok=True)  # it may be of fewer seeds
    run_missing({"compared.json": f"compare {' '.join(names)} --output compared.json"}, output)
    compared = json.loads((output / "compared.json").read_text("utf-8"))
    tables = [changes(compared), claims(output, args.seeds), controls(output, names)]
    if args.real is not None:
        run_missing(real_commands(), args.real)
        tables += [controls(args.real, ["run"])]
    print(*tables, costs(output / "log.txt"), sep="\n\n")


def run_name(variant: str, seed: int) -> str:
    return f"runs/{variant}_{seed}"


def commands(variant: str, seed: int) -> dict[str, str]:
    """What each command leaves -> the command."""
    run = run_name(variant, seed)
    gin = f"--gin_file study.gin --gin_file variants/{variant}.gin --gin.train.seed={seed}"
    snapshots = f"--gin.train.num_steps={STEPS} --gin.train.snapshots=powers"
    evaluations = {
        f"{run}/evaluation/{task}-steps.json": f"evaluate {task} --model {run}"
        " --data corpus/held_out --step all"
        for task in OVER_STEPS
    }
    return {
        f"{run}/checkpoints/{STEPS}": f"train {gin} {snapshots} --data store --output {run}",
        **evaluations,
        f"{run}/evaluation/ablation.json": f"evaluate ablation --on mlm --model {run} --data store",
        f"{run}/report/index.html": f"report --run {run}",
    }


def real_commands() -> dict[str, str]:
    flores = "--data data/flores_sib200/text --step 0 64 1200"
    options = {"language-probe": "--sentences 150", "neurons": "--sentences 200"}
    options["concepts"] = "--pivot eng_Latn --sentences 1000"
    return {
        **{
            f"run/evaluation/{task}-steps.json": f"evaluate {task} --model run {flores}"
            f" {options[task]}"
            for task in OVER_STEPS
        },
        "run/evaluation/ablation.json": "evaluate ablation --on mlm --model run --data store",
    }


def changes(compared: Mapping[str, Any]) -> str:
    """Means over seeds and, for all but the first variant, the difference to it."""
    rows = []
    for measure, title in CHANGES.items():
        of_measure = [row for row in compared["measures"] if row["measure"] == measure]
        for row in of_measure:
            difference = row.get("difference")
            ends = difference, row.get("low"), row.get("high")
            rows.append([title, row["variant"], f"{row['mean']:.4f}", interval(*ends)])
    headers = ["measure, last step", "variant", "mean", "less vanilla (95 %)"]
    return tabulate.tabulate(rows, headers, "github", disable_numparse=True)


def claims(output: Path, seeds: int) -> str:
    """Each measure at the last step, and by how much it has changed since step 0; the intervals
    are Student's over seeds."""
    rows = []
    for title, (task, value) in CLAIMS.items():
        for variant in VARIANTS:
            results = {
                seed: json.loads((evaluation(output, run_name(variant, seed), task)).read_text())
                for seed in range(seeds)
            }
            last = {seed: value(result, -1) for seed, result in results.items()}
            first = {seed: value(result, 0) for seed, result in results.items()}
            at_end = mean_difference(last, dict.fromkeys(last, 0.0))[:3]
            risen = mean_difference(last, first)[:3]
            rows.append([title, variant, interval(*at_end), interval(*risen)])
    headers = ["measure", "variant", f"step {STEPS}", "less step 0"]
    return tabulate.tabulate(rows, headers, "github", disable_numparse=True)


def evaluation(output: Path, run: str, task: str) -> Path:
    return output / run / "evaluation" / f"{task}-steps.json"


def controls(output: Path, runs: list[str]) -> str:
    """How many controls there were and which failed, with what was found."""
    rows = []
    for task in (*(f"{task}-steps" for task in OVER_STEPS), "ablation"):
        found, failed = 0, []
        for run in runs:
            result = json.loads((output / run / "evaluation" / f"{task}.json").read_text("utf-8"))
            found += len(result["controls"])
            failed += [
                f"{Path(run).name}: {name} {control['value']:.4g}, expected {control['expected']}"
                for name, control in result["controls"].items()
                if not control["ok"]
            ]
        rows.append([task.removesuffix("-steps"), found, "; ".join(failed) or "none"])
    return tabulate.tabulate(rows, ["evaluation", "controls", "failed"], "github")


def costs(log: Path) -> str:
    """The median time and the greatest memory of each verb."""
    pattern = r"^\$ langsamp (train|evaluate \S+|report) .*?\n  \[(\d+) s, (\d+) MB, exit 0\]$"
    found: dict[str, list[tuple[int, int]]] = {}
    for verb, seconds, memory in re.findall(pattern, log.read_text("utf-8"), re.M | re.S):
        found.setdefault(verb, []).append((int(seconds), int(memory)))
    rows = [
        [verb, sorted(seconds for seconds, _ in of)[len(of) // 2], max(mb for _, mb in of)]
        for verb, of in found.items()
    ]
    return tabulate.tabulate(rows, ["verb", "seconds", "peak memory, MB"], "github")


def interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    return f"{value:+.4f}" + ("" if low is None else f" ({low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
