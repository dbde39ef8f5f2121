"""The live seqio feed beside the store feed, on the same languages. Prints one JSON object.

    python benchmarks/live_feed.py [--languages N] [--steps N] [--seeds N] [--folder DIR]

A synthetic corpus becomes a seqio Mixture, and this a store. Both feeds are then measured alone,
each in a fresh process: from its start to the first batch, imports included, and tokens a second.
Then a tiny model is trained on both, with the same settings and rates, once for each seed. The
rows are the same, their order is not: the difference between the feeds is to be seen beside the
difference between seeds. Validation is on the same rows in all runs.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LENGTH, VOCAB, FRACTION, TEMPERATURE = 128, 4000, 0.02, 1 / 0.3
BATCH, ROUNDS, STEPS_A_ROUND = 256, 5, 20
MODEL = {
    "model.hidden_size": 64,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 256,
    "model.max_length": LENGTH,
    "optimizer.learning_rate": 3e-3,
    "train.global_batch_size": 32,
    "train.eval_rows": 32,
    "train.log_every": 10,
}


def make_data(folder: Path, languages: int) -> None:
    from data_pipelines.seqio_tasks.compile import prepare_mixture
    from data_pipelines.synthetic.world import synthesize
    from data_pipelines.tokenizers.training import train_tokenizer

    corpus, tokenizer = folder / "corpus", folder / "tokenizer.model"
    synthesize(corpus, num_languages=languages, num_sentences=20_000, seed=0)
    train_tokenizer(corpus, VOCAB, tokenizer)
    (folder / "tasks.py").write_text(
        "from data_pipelines.seqio_tasks.tasks import register_corpus\n"
        f"register_corpus('world', {str(corpus)!r}, {str(tokenizer)!r}, {TEMPERATURE!r}, "
        f"{FRACTION!r})\n"
    )
    prepare_mixture("world", str(folder / "tasks.py"), folder / "store", LENGTH)


def measure(folder: Path, feed_name: str, started: float) -> dict[str, Any]:
    """One feed alone, in this process, which has done nothing else."""
    import jax

    from langsamp_jax.data.feed import Feed
    from langsamp_jax.data.mixture import MixtureConfig
    from langsamp_jax.languages.inventory import EMPTY

    if feed_name == "store":
        from langsamp_jax.data.store import Store

        data, weights = Store(folder / "store"), json.loads((folder / "rates.json").read_text())
    else:
        from data_pipelines.seqio_tasks.live import LiveMixture
        from data_pipelines.seqio_tasks.registry import open_mixture

        mixture = open_mixture("world", str(folder / "tasks.py"))
        data, weights = LiveMixture(mixture, LENGTH, 0, None), mixture.weights
        (folder / "rates.json").write_text(json.dumps(weights))
    names = data.manifest.names
    config = MixtureConfig(rule="weights", weights={name: weights[name] for name in names})
    sampler = config.sampler(data.manifest, 0, 10**6, BATCH)
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    feed = Feed(data.split("train"), sampler, EMPTY.extended(names), BATCH, sharding)
    feed.batch(0)
    first = time.perf_counter() - started
    speeds = []
    for number in range(ROUNDS):
        begin = 1 + number * STEPS_A_ROUND
        started = time.perf_counter()
        for batch in feed.batches(begin, begin + STEPS_A_ROUND):
            batch.tokens.block_until_ready()
        speeds.append(STEPS_A_ROUND * BATCH * LENGTH / (time.perf_counter() - started))
    return {
        "start_to_first_batch_seconds": round(first, 2),
        "tokens_per_second": round(statistics.median(speeds)),
        "tokens_per_second_runs": [round(speed) for speed in speeds],
        "peak_memory_mb": peak_memory_mb(),
        "threads": len(os.listdir("/proc/self/task")),
    }


def peak_memory_mb() -> int:
    """Of this process alone; ``ru_maxrss`` would begin with its parent's."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return round(int(peak[1]) / 1024)


def train(folder: Path, feed_name: str, seed: int, steps: int) -> dict[str, float]:
    run = folder / f"run_{feed_name}_{seed}"
    command = [sys.executable, "-m", "langsamp_jax", "train", "--output", run]
    if feed_name == "store":
        command += ["--data", folder / "store", "--gin_file", folder / "store" / "mixture.gin"]
    else:
        command += ["--mixture", "world", "--module", folder / "tasks.py"]
        command += ["--sequence_length", str(LENGTH)]
    loop = {"num_steps": steps, "eval_every": steps, "checkpoint_every": steps, "seed": seed}
    settings = MODEL | {f"train.{name}": value for name, value in loop.items()}
    command += [f"--gin.{name}={value}" for name, value in settings.items()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [x["train/loss"] for x in lines if "train/loss" in x and x["step"] > 0.8 * steps]
    (loss,) = (line["eval/loss"] for line in lines if "eval/loss" in line)
    return {"seed": seed, "validation_loss": loss, "train_loss": statistics.mean(last)}


def compare(runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Means over the seeds, and how far seeds alone lead apart."""
    losses = {feed: [run["validation_loss"] for run in of] for feed, of in runs.items()}
    means = {feed: statistics.mean(of) for feed, of in losses.items()}
    apart = {f"{feed}_standard_deviation": statistics.stdev(of) for feed, of in losses.items()}
    return {**{f"{feed}_mean": mean for feed, mean in means.items()}, **apart} | {
        "live_minus_store": means["live"] - means["store"]
    }


def main() -> None:
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--languages", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="0: the feeds alone")
    parser.add_argument("--folder", type=Path, help="where to keep the data between calls")
    parser.add_argument("--measure", choices=("live", "store"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.folder, args.measure, started)))
        return
    folder = (args.folder or Path(tempfile.mkdtemp())).absolute()
    try:
        if not (folder / "store" / "manifest.json").exists():
            make_data(folder, args.languages)
        feeds = {}
        for feed_name in ("live", "store"):
            command = [sys.executable, __file__, "--measure", feed_name, "--folder", folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            feeds[feed_name] = json.loads(done.stdout.splitlines()[-1])
        runs: dict[str, list[dict[str, float]]] = {"live": [], "store": []}
        for seed in range(args.seeds):
            for feed_name, of_feed in runs.items():
                of_feed.append(train(folder, feed_name, seed, args.steps))
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    results = {"languages": args.languages, "sequence_length": LENGTH, "feeds": feeds}
    if args.seeds > 1:
        results |= {"steps": args.steps, "runs": runs, "validation_loss": compare(runs)}
    results |= {"cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
