"""How fast the feed is: 610 languages, 512-token rows, random access. Prints one JSON object.

    python benchmarks/feed.py [--store DIR]

The store is made once (about 0.4 GB of rows, Zipfian tokens, sizes like Glot500-c's) and then
measured in a fresh process: open to first batch, tokens a second, a jump to step 1,000,000, and
the peak memory of the whole process, JAX included.
"""

import argparse
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
from pathlib import Path

import numpy as np

LANGUAGES, LENGTH, BATCH, VOCAB = 610, 512, 1024, 250_002
FAR_STEP = 1_000_000


def make_store(path: Path) -> None:
    import tensorstore as ts

    from langsamp_jax.data.manifest import Counts, Manifest
    from langsamp_jax.data.store import array_spec, file_digest, row_files
    from langsamp_jax.languages.inventory import Inventory
    from langsamp_jax.text.tokenizer import Vocabulary

    generator = np.random.default_rng(0)
    rows = np.clip(np.exp(generator.normal(5.2, 1.5, LANGUAGES)).astype(int), 20, 20_000)
    names = sorted(f"{language}_Latn" for language in Inventory.published().languages)
    counts, files = {}, {}
    for name, size in zip(names, rows.tolist(), strict=True):
        folder = path / "train" / name
        tokens = (generator.zipf(1.2, (size, LENGTH)) % VOCAB).astype(np.uint32)
        array = ts.open(array_spec(folder, size, LENGTH), create=True).result()
        array.write(tokens).result()
        counts[name] = Counts(lines=size * 20, tokens=size * LENGTH, unknown=0, rows=size)
        for file in row_files(size):
            facts = (folder / file).stat().st_size, file_digest(folder / file)
            files[f"train/{name}/{file}"] = facts
    none = dict.fromkeys(names, Counts(0, 0, 0, 0))
    Manifest(
        sequence_length=LENGTH,
        vocabulary=Vocabulary(VOCAB, 0, 1, 2, 3, VOCAB - 1),
        tokenizer="",
        counts={"train": counts, "validation": none},
        skipped={},
        files=files,
    ).save(path)


def measure(path: Path) -> dict[str, object]:
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
    sampler = MixtureConfig().sampler(manifest, 0, num_steps=FAR_STEP, batch_size=BATCH)
    feed = Feed(store.split("train"), sampler, EMPTY.extended(manifest.names), BATCH, sharding)
    feed.batch(0)
    opened = time.perf_counter() - started

    jumps = []
    for step in range(FAR_STEP, FAR_STEP + 15):
        started = time.perf_counter()
        feed.rows(step)
        jumps.append(time.perf_counter() - started)
    started = time.perf_counter()
    feed.batch(2 * FAR_STEP)
    far_batch = time.perf_counter() - started

    speeds = []
    for turn in range(5):
        started = time.perf_counter()
        steps = 40
        for batch in feed.batches(FAR_STEP + turn * steps, FAR_STEP + (turn + 1) * steps):
            batch.tokens.block_until_ready()
        speeds.append(steps * BATCH * LENGTH / (time.perf_counter() - started))
    return {
        "languages": LANGUAGES,
        "rows": int(sampler.rows.sum()),
        "sequence_length": LENGTH,
        "batch_size": BATCH,
        "tokens_per_second": round(statistics.median(speeds)),
        "tokens_per_second_runs": [round(speed) for speed in speeds],
        "open_to_first_batch_seconds": round(opened, 3),
        "step_1000000_rows_seconds": round(statistics.median(jumps), 5),
        "step_2000000_batch_seconds": round(far_batch, 4),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, help="where to keep the store between calls")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.store), indent=1))
        return
    store = args.store or Path(tempfile.mkdtemp()) / "store"
    try:
        if not (store / "manifest.json").exists():
            make_store(store)
        subprocess.run([sys.executable, __file__, "--measure", "--store", store], check=True)
    finally:
        if args.store is None:
            shutil.rmtree(store.parent)


if __name__ == "__main__":
    main()
