"""The whole table for one GPU, in one command; results go to ``results/<device>.json``.

    python benchmarks/gpu.py [--rows 32 128] [--dropout 0.1 0] [--output DIR]

The step against PyTorch at each number of rows of 512 tokens, with XLM-R's dropout and without
(attention kernels do not drop weights), parity and speed of the kernels, and the cost of the
language tables. What does not fit into the memory of the GPU is told as such. Needed are this
project, JAX with its CUDA plugin, PyTorch for CUDA and ``transformers``; nothing is downloaded.
Each part is filed as soon as it is done, so that a run that was cut short is not lost.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import record

HERE = Path(__file__).parent
NEEDED = {  # module -> where it comes from
    "jax": "jax[cuda13]",
    "flax": "flax",
    "optax": "optax",
    "gin": "gin-config",
    "tensorstore": "tensorstore",
    "safetensors": "safetensors",
    "sentencepiece": "sentencepiece",
    "tokenizers": "tokenizers",
    "tabulate": "tabulate",
    "torch": "torch",
    "transformers": "transformers",
}
PROBE = "import jax, torch; print(jax.default_backend() == 'gpu' and torch.cuda.is_available())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=("gpu", "tiny"), default="gpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 128], help="of a step")
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.1, 0.0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of the result")
    args = parser.parse_args()
    if absent := [name for module, name in NEEDED.items() if not importlib.util.find_spec(module)]:
        sys.exit(f"not installed: {', '.join(absent)}; pip install {' '.join(absent)}")
    probe = [sys.executable, "-c", PROBE]
    if (
        args.preset == "gpu"
        and "True" not in subprocess.run(probe, capture_output=True, text=True).stdout
    ):
        sys.exit("JAX and PyTorch do not both see a GPU; --preset tiny tries this on the CPU")

    shared = ["--output", args.output]
    timed = ["--preset", args.preset, "--rounds", args.rounds]
    parts: list[list[object]] = [
        ["step.py", *timed, "--rows", rows, "--dropout", dropout]
        for rows in args.rows
        for dropout in args.dropout
    ]
    parts += [["attention.py"], ["overhead.py", *timed, "--starts", 1]]
    failed = [part[0] for part in parts if not run([*part, *shared])]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the results of the others are filed")


def run(part: list[object]) -> bool:
    """Runs one benchmark; its JSON is filed, so what is shown are its table and the time."""
    script, *arguments = map(str, part)
    print(f"\n== {script} {' '.join(arguments)}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    print(f"   {seconds:.0f} s, exit {done.returncode}", file=sys.stderr, flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
