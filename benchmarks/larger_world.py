"""LangSAMP on a synthetic world of 60 language-scripts: what appears with more languages and steps.

    python benchmarks/larger_world.py --output world

Retrieval while it trains, the language vectors against the family tree, and donors for a topic
task, all where the truth is known. About an hour on two cores. Given again, it goes on: what stands
in OUTPUT stays. Prints tables in Markdown; OUTPUT/log.txt says what was run.
"""

import argparse
import json
import statistics
from pathlib import Path

import tabulate
from commands import run_missing

LANGUAGES, STEPS, EVERY, DONORS = 60, 6000, 500, 24
TRAIN = (
    "--gin_file study.gin --gin_file variants/langsamp.gin --data store --output run"
    f" --gin.train.num_steps={STEPS} --gin.train.checkpoint_every={EVERY}"
    f" --gin.train.eval_every={EVERY} --gin.train.max_to_keep={STEPS // EVERY}"
)
PREPARE = "--output store --sequence_length 64 --validation_fraction 0.05"
TREE = "--references corpus/world.json"
FINETUNE = "--gin.finetune.learning_rate=1e-3 --gin.finetune.num_epochs=6"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    output = parser.parse_args().output
    world = {
        "corpus": f"synthesize --output corpus --languages {LANGUAGES}",
        "my.model": "tokenizer train --corpus corpus --vocab_size 10000 --output my.model",
        "store": f"prepare --corpus corpus --tokenizer my.model {PREPARE}",
        f"run/checkpoints/{STEPS}": f"train {TRAIN}",
    }
    run_missing(world, output)
    run_missing(evaluations(output / "corpus" / "world.json"), output)
    print(rising(output), geometry(output), donors(output), sep="\n\n")


def evaluations(world: Path) -> dict[str, str]:
    """What each command leaves -> the command."""
    retrieval = "evaluate retrieval-bible --model run --data corpus/held_out --pivot qaa_Latn"
    # From the largest corpus to the smallest, the families in turn: as many of each.
    largest = list(json.loads(world.read_text("utf-8"))["language_scripts"])[:DONORS]
    chosen = f"--pivot qaa_Latn --donors {' '.join(largest)} --gin.finetune.num_seeds=1"
    return {
        **{
            f"retrieval_{step}.json": f"{retrieval} --step {step} --output retrieval_{step}.json"
            for step in range(EVERY, STEPS + 1, EVERY)
        },
        "run/evaluation/geometry.json": "evaluate geometry --model run"
        f" {TREE} --families corpus/world.json --step {STEPS}",
        "run/evaluation/donors.json": "evaluate donors --model run"
        f" --data corpus/held_out {TREE} --step {STEPS} {chosen} {FINETUNE}",
    }


def rising(folder: Path) -> str:
    """Mean top-10 accuracy of thirds of the languages by the size of their corpora."""
    steps = range(EVERY, STEPS + 1, EVERY)
    sizes = json.loads((folder / "corpus/world.json").read_text("utf-8"))["language_scripts"]
    largest = sorted(sizes, key=lambda name: -sizes[name]["sentences"])
    third = len(largest) // 3
    groups = {
        "all": largest,
        f"largest {third}": largest[:third],
        f"middle {third}": largest[third : 2 * third],
        f"smallest {third}": largest[2 * third :],
    }
    rows = {name: [name] for name in groups}
    for step in steps:
        found = json.loads((folder / f"retrieval_{step}.json").read_bytes())["languages"]
        reached = {each["language"]: each["top10"] for each in found}
        for name, members in groups.items():
            values = [reached[member] for member in members if member in reached]
            rows[name].append(f"{statistics.fmean(values):.1%}")
    headers = ["top-10 at step", *steps]
    return tabulate.tabulate(rows.values(), headers, "github", disable_numparse=True)


def geometry(folder: Path) -> str:
    found = json.loads((folder / "run/evaluation/geometry.json").read_bytes())
    rows = [
        [each["with"], each["languages"], f"{each['rho']:.3f}", f"{each['p']:.4f}"]
        for each in found["tables"]["language"]["correlations"]
    ]
    headers = ["distances", "languages", "rho", "p"]
    return tabulate.tabulate(rows, headers, "github", disable_numparse=True)


def donors(folder: Path) -> str:
    found = json.loads((folder / "run/evaluation/donors.json").read_bytes())
    choices = [
        [
            each["choice"],
            each["targets"],
            *_cells(each, "mean"),
            *_cells(each["against"].get("random", {}), "difference"),
            *_cells(each["against"].get("same script", {}), "difference"),
        ]
        for each in found["choices"]
    ]
    headers = ["donor by", "targets", "macro-F1", "95 %"]
    headers += ["less random", "95 %", "less same script", "95 %"]
    chosen = tabulate.tabulate(choices, headers, "github", disable_numparse=True)
    correlations = [
        [each["similarity"], each["targets"], *_cells(each, "rho"), f"{each['p']:.4f}"]
        for each in found["correlations"]
    ]
    headers = ["similarity", "targets", "rho with transfer", "95 %", "p"]
    near = tabulate.tabulate(correlations, headers, "github", disable_numparse=True)
    return f"{chosen}\n\n{near}"


def _cells(record: dict, name: str) -> tuple[str, str]:
    if record.get(name) is None:
        return "", ""
    return f"{record[name]:.3f}", f"{record['low']:.3f} to {record['high']:.3f}"


if __name__ == "__main__":
    main()
