"""All language-scripts of several corpora together: prepare, mix, train 100 steps, count the draws.

    python benchmarks/all_languages.py --corpora udhr/text bible/text flores_sib200/text \\
        --tokenizer sentencepiece.bpe.model --folder OUT

Text of one language-script in several corpora is joined. The draws are counted in the batches that
the feed gives for the steps of the run, by their language and script ids, and compared with what
the rates ask for. Prints one JSON object and writes OUT/languages.md, a table of every
language-script.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tabulate

STEPS, BATCH, LENGTH = 100, 64, 128
GIN = ["--gin_file", "small_text.gin", f"--gin.train.num_steps={STEPS}"]
GIN += [f"--gin.train.global_batch_size={BATCH}", "--gin.model.hidden_size=64"]
GIN += ["--gin.optimizer.learning_rate=3e-3", "--gin.train.eval_every=100"]
GIN += ["--gin.train.eval_rows=4", "--gin.train.log_every=10"]


def join(corpora: list[Path], folder: Path) -> None:
    folder.mkdir()
    for corpus in corpora:
        for file in sorted(corpus.glob("*.txt")):
            with open(folder / file.name, "ab") as joined:
                joined.write(file.read_bytes().rstrip(b"\n") + b"\n")


def timed(*arguments: object) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "langsamp_jax", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return round(time.perf_counter() - started, 1)


def count_draws(store_path: Path) -> dict[str, dict[str, float]]:
    """What each language-script was given in the batches of all steps, and what its rate asks."""
    import jax

    from langsamp_jax.config import parse_gin
    from langsamp_jax.data.feed import Feed
    from langsamp_jax.data.store import Store
    from langsamp_jax.languages.inventory import EMPTY
    from langsamp_jax.training.config import configs_from_gin

    parse_gin([GIN[1]], [line.removeprefix("--gin.") for line in GIN[2:]])
    configs, store = configs_from_gin(), Store(store_path)
    sampler = configs.mixture.sampler(store.manifest, configs.train.seed, STEPS, BATCH)
    inventory = EMPTY.extended(store.manifest.names)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    feed = Feed(store.split("train"), sampler, inventory, BATCH, sharding)
    drawn = np.zeros((len(inventory.languages), len(inventory.scripts)), int)
    for batch in feed.batches(0, STEPS):
        np.add.at(drawn, tuple(map(np.asarray, batch.ids)), 1)
    (allocation,) = sampler.allocations
    rates, bound = allocation.rates, allocation.deviation_bound
    return {
        name: {
            "rate": float(rates[index]),
            "expected": float(rates[index] * STEPS * BATCH),
            "drawn": int(drawn[inventory.ids(name)]),
            "bound": float(bound[index]),
        }
        for index, name in enumerate(store.manifest.names)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=Path, nargs="+", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    corpus, store, run = (args.folder / name for name in ("corpus", "store", "run"))
    join(args.corpora, corpus)

    seconds = {
        "prepare": timed(
            *("prepare", "--corpus", corpus, "--tokenizer", args.tokenizer, "--output", store),
            *("--sequence_length", LENGTH),
        ),
        "mixture": timed(
            *("mixture", "--data", store, "--plot", args.folder / "mixture.png", *GIN)
        ),
        "train": timed("train", "--data", store, "--output", run, *GIN),
    }
    manifest = json.loads((store / "manifest.json").read_text("utf-8"))
    hygiene = json.loads((store / "origin.json").read_text("utf-8"))["report"]
    draws = count_draws(store)
    counts = manifest["counts"]["train"]
    headers = ["language-script", "lines", "tokens", "rows", "unknown", "p", "asked for", "drawn"]
    table = [
        [
            name,
            f"{c['lines']:,}",
            f"{c['tokens']:,}",
            f"{c['rows']:,}",
            f"{c['unknown'] / c['tokens']:.2%}",
            f"{d['rate']:.6f}",
            f"{d['expected']:.2f}",
            d["drawn"],
        ]
        for name, c, d in ((n, counts[n], draws[n]) for n in counts)
    ]
    align = ["left", *["right"] * (len(headers) - 1)]
    rows = tabulate.tabulate(table, headers, "github", disable_numparse=True, colalign=align)
    (args.folder / "languages.md").write_text(rows + "\n", "utf-8")
    logged = [json.loads(line) for line in open(run / "metrics.jsonl", encoding="utf-8")]
    losses = [record["train/loss"] for record in logged if "train/loss" in record]
    away = {name: abs(d["drawn"] - d["expected"]) for name, d in draws.items()}
    evaluated = [key for record in logged for key in record if key.startswith("eval/loss/")]
    print(
        json.dumps(
            {
                "language_scripts": len(draws),
                "skipped": manifest["skipped"],
                "scripts": len({name[4:] for name in draws}),
                **{key: sum(c[key] for c in counts.values()) for key in ("lines", "tokens")},
                "rows": sum(c["rows"] for c in counts.values()),
                "hygiene": {
                    key: sum(facts["hygiene"].get(key, 0) for facts in hygiene.values())
                    for key in sorted({k for facts in hygiene.values() for k in facts["hygiene"]})
                },
                "steps": STEPS,
                "rows_a_step": BATCH,
                "language_scripts_drawn": sum(d["drawn"] > 0 for d in draws.values()),
                "fewest_draws": min(d["drawn"] for d in draws.values()),
                "most_draws": max(d["drawn"] for d in draws.values()),
                "largest_deviation_rows": round(max(away.values()), 3),
                "proven_bound_rows": round(max(d["bound"] for d in draws.values()), 3),
                "train_loss_first": losses[0],
                "train_loss_last": losses[-1],
                "language_scripts_with_a_validation_loss": len(set(evaluated)),
                "seconds": seconds,
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
