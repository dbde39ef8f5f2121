"""Makes the witness: what the code of commit 592d2a0 made of a small corpus, bit for bit.

    git worktree add before 592d2a0
    python tests/witness/make.py --code before

Everything goes through the command line, as `tests/test_witness.py` does with the code of today.
Made again, it differs in the times, in the random id of the run and in the random
names of files inside its checkpoint. On a processor of another kind the arithmetic rounds
otherwise; there, `--output FOLDER` makes a witness of its own, and the variable WITNESS=FOLDER has
the test compare with that one.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorstore as ts

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

KEPT, STEPS = 20, 30  # the step of the checkpoint in the witness, and the last one recorded
HELD_OUT_LINES = 20  # of each language-script in the witness; the command writes a thousand

_SETTINGS = {
    "model.hidden_size": 32,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 64,
    "model.max_length": 64,
    "model.hidden_dropout": 0.1,
    "model.attention_dropout": 0.1,
    "model.initializer_range": 0.05,
    "train.num_steps": STEPS,
    "train.global_batch_size": 16,
    "train.accumulation_steps": 2,
    "train.checkpoint_every": 10,
    "train.eval_every": 10,
    "train.eval_rows": 4,
    "train.log_every": 1,
    "optimizer.learning_rate": 2e-3,
    "optimizer.warmup_steps": 5,
}

# The paths are relative, because some results name them.
SYNTHESIZE = "synthesize --output corpus --languages 4 --sentences 400 --seed 7".split()
TOKENIZER = "tokenizer train --corpus corpus --vocab_size 400 --output tokenizer.model".split()
PREPARE = (
    "prepare --corpus corpus --tokenizer tokenizer.model --output store --workers 1 "
    "--sequence_length 32 --validation_fraction 0.1"
).split()
TRAIN = "train --data store --output run".split()
TRAIN += [f"--gin.{name}={value}" for name, value in _SETTINGS.items()]
EXPORT = f"export --run run --step {KEPT} --output exported".split()
EXPORTS = {"encoder": [], "fold": ["--fold", "qaa_Cyrl"], "full": ["--full"]}
_ALIGNED = ["--data", "corpus/held_out"]
_EVALUATIONS = {
    "mlm": ["--data", "store"],
    "neutrality": [*_ALIGNED, "--pivot", "qaa_Latn"],
    "retrieval-bible": [*_ALIGNED, "--pivot", "qaa_Latn"],
    "pseudo-perplexity": [*_ALIGNED, "--sentences", "5"],
    "geometry": "--references corpus/world.json --families corpus/world.json".split(),
}
EVALUATIONS = {
    task: ["evaluate", task, "--model", "run", "--step", str(KEPT)]
    + ["--output", f"{task}.json", *options]
    for task, options in _EVALUATIONS.items()
}


def langsamp(command: Sequence[str], folder: Path, cache: Path, code: Path = ROOT) -> None:
    """Runs ``command`` in ``folder`` with the code of the checkout ``code``.

    The environment is written out: settings of JAX and XLA that the caller may have, and which
    change what is computed, do not reach the command. ``cache`` is for compiled code.
    """
    handed_on = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
    environment = {name: os.environ[name] for name in handed_on if name in os.environ}
    environment |= {
        "PYTHONPATH": str(code.resolve()),
        "HOME": str(cache),
        "LANG": "C.UTF-8",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    program = [sys.executable, "-m", "langsamp_jax", *command]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ended = subprocess.run(program, cwd=folder, env=environment, **streams)
    assert ended.returncode == 0, f"{' '.join(command)}: exit {ended.returncode}\n{ended.stdout}"


def environment() -> dict[str, Any]:
    """All that bits of the arithmetic depend on; the number of threads is not among it."""
    facts: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else ():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = facts.get("flags", facts.get("Features", "")).split()
    vectors = ("sse", "ssse", "avx", "fma", "f16c", "amx", "asimd", "sve", "bf16", "fphp")
    return {
        "machine": platform.machine(),
        "processor": [facts.get(name) for name in ("vendor_id", "cpu family", "model")],
        "instructions": sorted(flag for flag in flags if flag.startswith(vectors)),
        "packages": {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
    }


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that hold a loss, without what is a matter of time."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    chosen = ("step", "learning_rate")
    return [
        {
            name: value
            for name, value in line.items()
            if name in chosen or name.startswith(("train/", "eval/"))
        }
        for line in lines
    ]


def state(run: Path, step: int) -> dict[str, list[Any]]:
    """Type, shape and SHA-256 of each array of a checkpoint: parameters and optimizer.

    They are read with TensorStore, as they lie there; JAX has no part in it.
    """
    folder = (run / "checkpoints" / str(step) / "state").resolve()
    listed = json.loads((folder / "array_metadatas" / "process_0").read_text("utf-8"))
    found = {}
    for name in sorted(
        entry["array_metadata"]["param_name"] for entry in listed["array_metadatas"]
    ):
        kvstore = {"driver": "ocdbt", "base": folder.as_uri(), "path": f"{name}/"}
        array = ts.open({"driver": "zarr", "kvstore": kvstore}).result().read().result()
        bits = hashlib.sha256(array.tobytes()).hexdigest()
        found[name] = [str(array.dtype), list(array.shape), bits]
    return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of an exported folder, and of each tensor in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    found = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in zip(names, files, strict=True)
    }
    file = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(file[:8], "little")
    for name, entry in sorted(json.loads(file[8:start]).items()):
        if name != "__metadata__":
            first, last = (start + offset for offset in entry["data_offsets"])
            found[f"model.safetensors {name}"] = hashlib.sha256(file[first:last]).hexdigest()
    return found


def result(file: Path) -> dict[str, Any]:
    """What an evaluation found, without the seconds that it took, the summary of its numbers and
    the versions."""
    found = json.loads(file.read_text("utf-8"))
    beside = ("seconds", "measures", "environment")
    return {name: value for name, value in found.items() if name not in beside}


def make(code: Path, output: Path) -> None:
    """Writes all that the test compares with, and what it starts from, to ``output``."""
    expected = {"environment": environment(), "exports": {}, "evaluations": {}}
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as work:
        folder, cache = Path(work), Path(cache)

        def call(command: Sequence[str]) -> None:
            langsamp(command, folder, cache, code)

        call(SYNTHESIZE)
        (folder / "corpus" / "held_out" / "labels.tsv").unlink()
        for file in (folder / "corpus" / "held_out").iterdir():
            lines = file.read_text("utf-8").splitlines(keepends=True)
            file.write_text("".join(lines[:HELD_OUT_LINES]), "utf-8")
        for command in (TOKENIZER, PREPARE, TRAIN):
            call(command)
        expected["metrics"] = metrics(folder / "run")
        expected["state"] = state(folder / "run", STEPS)
        for form, options in EXPORTS.items():
            call([*EXPORT, *options])
            expected["exports"][form] = digests(folder / "exported")
            shutil.rmtree(folder / "exported")
        for task, command in EVALUATIONS.items():
            call(command)
            expected["evaluations"][task] = result(folder / f"{task}.json")

        _as_at_step(folder / "run", KEPT)
        (folder / "store" / "tokenizer.model").unlink()  # the test puts copies of it there
        (folder / "run" / "tokenizer.model").unlink()
        output.mkdir(parents=True, exist_ok=True)
        for name in ("corpus", "store", "run"):
            shutil.rmtree(output / name, ignore_errors=True)
            shutil.copytree(folder / name, output / name)
        shutil.copy(folder / "tokenizer.model", output)
    for name, content in expected.items():
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (output / f"{name}.json").write_text(text, "utf-8")


def _as_at_step(run: Path, step: int) -> None:
    """Makes a finished run what it was at ``step``, and takes out what names the machine."""
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != str(step):
            shutil.rmtree(checkpoint)
    for note in run.rglob("commit_success.txt"):  # a sentence with the absolute path; not read
        note.unlink()
    for folder in ("tensorboard", "evaluation"):  # the first has the name of the host
        shutil.rmtree(run / folder, ignore_errors=True)
    file = run / "metrics.jsonl"
    lines = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the witness again.")
    parser.add_argument("--code", type=Path, default=ROOT, help="a checkout (default: this one)")
    parser.add_argument("--output", type=Path, default=HERE, help="default: beside this file")
    arguments = parser.parse_args()
    make(arguments.code, arguments.output)


if __name__ == "__main__":
    main()
