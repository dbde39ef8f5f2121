"""How long a run takes from the command to its first step, without and with the compilation cache.

    python benchmarks/startup.py [--rounds 5]

``langsamp train`` of ``models/tiny.gin``, 64 rows of 128 tokens, on two cores: each round once with
an empty cache and once with what that has left there. The time ends with the line that says that
the first step is done. CPU seconds, of all threads until then, do not depend on what else the
machine does; where it does nothing else, the time is shorter than they are. Prints one JSON object:
medians, and every round.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

CORES, VOCAB, LENGTH, ROWS = 2, 4000, 128, 64
LINE = re.compile(r"first step after ([\d.]+) s, ([\d.]+) s of it compilation")


def make_store(folder: Path) -> Path:
    from data_pipelines.packing.prepare import prepare
    from data_pipelines.synthetic.world import synthesize
    from data_pipelines.tokenizers.training import train_tokenizer

    synthesize(folder / "corpus", num_languages=8, num_sentences=2000, seed=0)
    train_tokenizer(folder / "corpus", VOCAB, folder / "tokenizer.model")
    prepare(folder / "corpus", folder / "tokenizer.model", folder / "store", LENGTH)
    return folder / "store"


def measure(store: Path, output: Path, cache: Path) -> dict[str, float]:
    """Seconds: from the command on; of compilation; and before `train` begins (imports mostly)."""
    command = [sys.executable, "-m", "langsamp_jax", "train", "--gin_file", "models/tiny.gin"]
    command += ["--data", store, "--output", output, "--gin.train.num_steps=1"]
    command += [f"--gin.train.global_batch_size={ROWS}"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = {**kept, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache)}
    started = time.perf_counter()
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        for line in process.stderr:
            if said := LINE.search(line):
                seconds = time.perf_counter() - started
                cpu = psutil.Process(process.pid).cpu_times()
                break
        process.stderr.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu.user + cpu.system, 2),
        "compilation": float(said[2]),
        "before_train": round(seconds - float(said[1]), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # and all that it starts
    rounds = {"cold": [], "warm": []}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder)
        for number in range(args.rounds):
            for kind, found in rounds.items():
                output = folder / f"{kind}{number}"
                found.append(measure(store, output, folder / f"cache{number}"))
    medians = {
        f"{kind}_{what}_median": round(statistics.median(one[what] for one in found), 2)
        for kind, found in rounds.items()
        for what in found[0]
    }
    versions = {"python": platform.python_version(), "jax": version("jax")}
    machine = {"cores": CORES, "load_before": round(load, 1)}
    print(json.dumps({**medians, **rounds, **versions, **machine}, indent=1))


if __name__ == "__main__":
    main()
