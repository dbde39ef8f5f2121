"""What 7,000 languages cost against 610, on the same amount of text. Prints one JSON object.

    python benchmarks/many_languages.py [--folder DIR] [--rounds N]

Two corpora are made, of 610 and of 7,000 existing ISO 639-3 codes, with the same number of
sentences (of random syllables, sizes lognormal), so that only the number of languages differs;
``prepare`` packs both. Then stores are opened and read in fresh processes, the two in turn: open to
first batch (imports apart), tokens a second, peak memory of the whole process, JAX included; and
what ``langsamp mixture`` and ``langsamp train --dry_run`` take from start to end. All medians.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (610, 7000)
SENTENCES, LENGTH, BATCH = 350_000, 128, 1024
TURNS, STEPS = 5, 40
SYLLABLES = ["".join(pair) for pair in itertools.product("bcdfghjklmnprstvz", "aeiou")]


def make_corpus(folder: Path, languages: int) -> None:
    """Files of 8 sentences and more, about ``SENTENCES`` together, of 8 words of 3 syllables."""
    import pycountry

    generator = np.random.default_rng(languages)
    shares = np.exp(generator.normal(0.0, 1.0, languages))
    counts = np.maximum(8, shares / shares.sum() * SENTENCES).astype(int)
    codes = sorted(language.alpha_3 for language in pycountry.languages)
    folder.mkdir(parents=True)
    for code, sentences in zip(codes[:languages], counts.tolist(), strict=True):
        words = ["".join(generator.choice(SYLLABLES, 3)) for _ in range(200)]
        lines = [" ".join(line) for line in generator.choice(words, (sentences, 8))]
        (folder / f"{code}_Latn.txt").write_text("\n".join(lines) + "\n", "utf-8")


def make_tokenizer(file: Path) -> None:
    """A piece a syllable; the one capital says that the vocabulary is cased."""
    pieces = [*SYLLABLES, *(f"##{syllable}" for syllable in SYLLABLES), "A"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    file.write_text("\n".join([*special, *pieces]), "utf-8")


def measure_prepare(corpus: Path, tokenizer: Path, store: Path) -> dict[str, Any]:
    from data_pipelines.packing.prepare import prepare
    from data_pipelines.packing.runner import LocalRunner

    started = time.perf_counter()
    with contextlib.closing(LocalRunner()) as runner:
        manifest = prepare(corpus, tokenizer, store, LENGTH, 0.02, runner=runner)
    processes = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    peak = max(resource.getrusage(who).ru_maxrss for who in processes)  # of the largest one
    return {
        "rows": int(manifest.column("train", "rows").sum()),
        "store_mb": round(sum(size for size, _ in manifest.files.values()) / 1e6, 1),
        "prepare_seconds": round(time.perf_counter() - started, 1),
        "prepare_peak_memory_mb": round(peak / 1024),
    }


def measure_feed(path: Path) -> dict[str, float]:
    import jax

    from langsamp_jax.data.feed import Feed
    from langsamp_jax.data.mixture import MixtureConfig
    from langsamp_jax.data.store import Store
    from langsamp_jax.languages.inventory import EMPTY

    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    started = time.perf_counter()
    store = Store(path)
    manifest = store.manifest
    sampler = MixtureConfig().sampler(manifest, 0, TURNS * STEPS, BATCH)
    feed = Feed(store.split("train"), sampler, EMPTY.extended(manifest.names), BATCH, sharding)
    feed.batch(0)
    opened = time.perf_counter() - started

    speeds = []
    for turn in range(TURNS):
        started = time.perf_counter()
        for batch in feed.batches(turn * STEPS, (turn + 1) * STEPS):
            batch.tokens.block_until_ready()
        speeds.append(STEPS * BATCH * LENGTH / (time.perf_counter() - started))
    return {
        "open_to_first_batch_seconds": opened,
        "tokens_per_second": statistics.median(speeds),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_commands(path: Path) -> dict[str, float]:
    seconds = {}
    for name, verb in {"mixture": ["mixture"], "dry_run": ["train", "--dry_run"]}.items():
        call = [sys.executable, "-m", "langsamp_jax", *verb, "--data", path]
        started = time.perf_counter()
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
        seconds[f"{name}_command_seconds"] = time.perf_counter() - started
    return seconds


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "prepare": measure_prepare,
    "feed": measure_feed,
    "commands": measure_commands,
}


def fresh(measure: str, *paths: Path) -> dict[str, Any]:
    """What a function of ``MEASURES`` gives in a process of its own."""
    call = [sys.executable, __file__, "--measure", measure, "--paths", *map(str, paths)]
    return json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE).stdout)


def compare(folder: Path, rounds: int) -> dict[str, Any]:
    import jax

    stores = {size: folder / f"store_{size}" for size in SIZES}
    make_tokenizer(folder / "vocab.txt")
    facts = {}
    for size, store in stores.items():
        corpus = folder / f"corpus_{size}"
        if not corpus.exists():
            make_corpus(corpus, size)
        facts[size] = fresh("prepare", corpus, folder / "vocab.txt", store)
    runs: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size, store in stores.items():
            runs[size].append(fresh("feed", store) | fresh("commands", store))
    for size in SIZES:
        for key in runs[size][0]:
            facts[size][key] = round(statistics.median(run[key] for run in runs[size]), 3)
    few, many = (facts[size]["tokens_per_second"] for size in SIZES)
    return {
        "languages": {str(size): facts[size] for size in SIZES},
        "tokens_per_second_ratio": round(few / many, 2),
        "sequence_length": LENGTH,
        "batch_size": BATCH,
        "rounds": rounds,
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to keep corpora and stores")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default 5")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--paths", type=Path, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure](*args.paths)))
        return
    folder = args.folder or Path(tempfile.mkdtemp())
    try:
        print(json.dumps(compare(folder, args.rounds), indent=1))
    finally:
        if args.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
