"""LangSAMP against its ablations and controls: seven variants, some seeds each, one table.

    langsamp synthesize --output corpus
    langsamp tokenizer train --corpus corpus --vocab_size 6000 --output my.model
    langsamp prepare --corpus corpus --tokenizer my.model --output store --sequence_length 64
    python benchmarks/study.py --data store --held_out corpus/held_out --pivot qaa_Latn \
        --references corpus/world.json --output study

Some minutes a run on two cores. Given again, it goes on: finished runs and evaluations stay. Any
other text will do: a store, and a folder of aligned text that was held out of it; for hundreds of
languages give --gin_file small_text.gin, which starts more slowly. Writes OUTPUT/compared.json and
prints its table in Markdown.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import tabulate

VARIANTS = ("vanilla", "langsamp", "language_only", "script_only")
VARIANTS += ("input_side", "shuffled_ids", "frozen_tables")
TABLE = {
    "mlm/loss": "validation loss",
    "retrieval-bible/all/top1": "retrieval, top-1",
    "retrieval-bible/all/top10": "retrieval, top-10",
    "neutrality/last layer/gap": "gap, last layer",
    "neutrality/last layer/gap_centred": "gap, centred",
    "neutrality/last layer/top1": "top-1 of all pairs, last layer",
    "pseudo-perplexity/all/bits_per_character": "bits a character",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="STORE")
    parser.add_argument("--held_out", type=Path, required=True, metavar="CORPUS")
    parser.add_argument("--pivot", default="eng_Latn", metavar="NAME")
    parser.add_argument("--references", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--gin_file", default="study.gin", metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    runs = []
    for seed in range(args.seeds):  # seed by seed, so that a part of the study compares too
        for variant in VARIANTS:
            run = args.output / "runs" / f"{variant}_{seed}"
            gin = f"--gin_file={args.gin_file}", f"--gin_file=variants/{variant}.gin"
            where = f"--data={args.data}", f"--output={run}", f"--gin.train.seed={seed}"
            _langsamp("train", *gin, *where)
            for task, *rest in _tasks(args, variant):
                if not (run / "evaluation" / f"{task}.json").exists():
                    _langsamp("evaluate", task, f"--model={run}", *rest)
            runs.append(run)
    runs.sort(key=lambda run: VARIANTS.index(run.name.rpartition("_")[0]))
    compared = args.output / "compared.json"
    _langsamp("compare", *map(str, runs), f"--output={compared}")
    print(markdown(json.loads(compared.read_text())))


def markdown(compared: dict) -> str:
    """Means and, for all but the first variant, the difference to it with its interval."""
    rows = []
    for measure, title in TABLE.items():
        found = {r["variant"]: r for r in compared["measures"] if r["measure"] == measure}
        rows += [[title, name, *_cells(found[name])] for name in VARIANTS if name in found]
    headers = ["measure", "variant", "seeds", "mean", "std", "difference", "95 %"]
    return tabulate.tabulate(rows, headers, "github", disable_numparse=True)


def _cells(record: dict) -> Iterator[str]:
    yield str(record["seeds"])
    yield f"{record['mean']:.4f}"
    yield "" if record["std"] is None else f"{record['std']:.4f}"
    yield "" if "difference" not in record else f"{record['difference']:+.4f}"
    interval = record.get("low") is not None
    yield f"{record['low']:+.4f} to {record['high']:+.4f}" if interval else ""


def _tasks(args: argparse.Namespace, variant: str) -> Iterator[list[str]]:
    text = f"--data={args.held_out}"
    yield ["mlm", f"--data={args.data}"]
    yield ["retrieval-bible", text, f"--pivot={args.pivot}"]
    yield ["neutrality", text, f"--pivot={args.pivot}", "--sentences=500"]
    yield ["pseudo-perplexity", text, "--sentences=20"]
    if args.references and variant not in ("vanilla", "script_only"):
        yield ["geometry", "--references", *map(str, args.references)]


def _langsamp(*arguments: str) -> None:
    command = [sys.executable, "-m", "langsamp_jax", *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
