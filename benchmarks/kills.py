"""Kills one of four processes at a random moment, ten times; the run must end as if nothing was.

    python benchmarks/kills.py [--kills 10] [--seed 0]

Four ``langsamp train`` processes share a run on this machine's CPUs. One of them, drawn anew each
time, gets SIGKILL at a random moment: while all start, or some time after a step that none has done
before. The others must end, by themselves once all have met, and the same command is given again.
The run that has been killed so often is compared with an undisturbed one: parameters bitwise, and
the losses of all steps. No complete checkpoint may be lost. Prints one JSON object.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from process_group import SETTINGS, Group, checkpoints, losses
from record import surroundings

from data_pipelines.packing.prepare import prepare
from data_pipelines.synthetic.world import synthesize
from data_pipelines.tokenizers.training import train_tokenizer
from langsamp_jax.training.checkpoint import restore_params
from langsamp_jax.training.run import open_run

PROCESSES, STEPS = 4, 80
CHANGES = {"train__num_steps": STEPS, "train__checkpoint_every": 5, "train__eval_every": 50}


def make_store(folder: Path) -> Path:
    synthesize(folder / "corpus", num_languages=6, num_sentences=1000, seed=1)
    train_tokenizer(folder / "corpus", 600, folder / "tokenizer.model")
    prepare(folder / "corpus", folder / "tokenizer.model", folder / "store", 32, 0.1)
    return folder / "store"


def steps(run: Path) -> list[int]:
    return [step for step, _ in losses(run)]


def last(items: list) -> int:
    return max(items, default=0)


def kill_one(store: Path, run: Path, chance: random.Random) -> dict:
    """Starts all, kills one, and says what became of the others and of the run."""
    kept, logged, begun = last(checkpoints(run)), last(steps(run)), time.monotonic()
    group = Group(store, run, PROCESSES, **CHANGES)
    starting, wait = chance.random() < 0.3, chance.random()
    if starting:
        time.sleep(20 * wait)
    else:
        group.reach(run, logged + 1)
        time.sleep(6 * wait)
    victim = chance.randrange(PROCESSES)
    assert all(process.poll() is None for process in group.processes.values()), group.said(0)
    moment = time.monotonic()
    codes = group.lose(victim)
    ended = None if codes is None else round(time.monotonic() - moment, 2)
    assert starting or ended, "they do not end by themselves"
    now = last(checkpoints(run))
    assert now >= kept, "a complete checkpoint is lost"
    return {
        "victim": victim,
        "seconds_after_start": round(moment - begun, 1),
        "seconds_until_all_ended": ended,  # None: they were waiting for all to come
        "exit_codes_of_the_others": codes and sorted(set(codes.values())),
        "last_step_logged": last(steps(run)),
        "checkpoint_before": kept,
        "checkpoint_after": now,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder))
        undisturbed, run = Path(folder) / "undisturbed", Path(folder) / "run"
        kills = []
        for number in range(args.kills):
            kills.append(kill_one(store, run, chance))
            print(f"kill {number + 1}: {kills[-1]}", file=sys.stderr, flush=True)
        Group(store, run, PROCESSES, **CHANGES).succeed(1200)
        Group(store, undisturbed, PROCESSES, **CHANGES).succeed(1200)
        (_, ours), (_, theirs) = (
            restore_params(open_run(path), STEPS) for path in (run, undisturbed)
        )
        same = jax.tree.map(np.array_equal, ours, theirs)
        result = {
            "kills": kills,
            "parameters_bitwise_equal": all(jax.tree.leaves(same)),
            "losses_of_all_steps_equal": losses(run) == losses(undisturbed),
            "steps": STEPS,
            "processes": PROCESSES,
            "settings": SETTINGS | {k.replace("__", "."): v for k, v in CHANGES.items()},
        }
    print(json.dumps({**result, **surroundings()}, indent=1))


if __name__ == "__main__":
    main()
