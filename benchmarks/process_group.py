"""Several ``langsamp train`` processes on this machine, as a launcher would start them."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = 50
SETTINGS = {
    "model.hidden_size": 32,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 64,
    "model.max_length": 32,
    "train.global_batch_size": 8,
    "train.num_steps": STEPS,
    "train.log_every": 1,
    "train.checkpoint_every": STEPS // 2,
    "train.eval_every": STEPS,
    "train.eval_rows": 2,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 5,
}
# Most of the work of so small a run is compilation.
FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="


class Group:
    """``number`` processes with ``devices`` each, that train on ``store`` into ``run``.

    Args:
      arguments: of one process only, by its number: what differs from the others.
    """

    def __init__(
        self,
        store: Path,
        run: Path,
        number: int,
        devices: int = 1,
        arguments: dict[int, Sequence[str]] | None = None,
        absent: Sequence[int] = (),
        **changes: object,
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        settings = SETTINGS | {name.replace("__", "."): v for name, v in changes.items()}
        command = [sys.executable, "-m", "langsamp_jax", "train", "--data", store, "--output", run]
        command += [f"--gin.{name}={value}" for name, value in settings.items()]
        self.logs = [run.with_name(f"{run.name}.{n}.log") for n in range(number)]
        self.processes: dict[int, subprocess.Popen] = {}
        for n in set(range(number)) - set(absent):
            environment = {
                **os.environ,
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(number),
                "JAX_PROCESS_ID": str(n),
                "XLA_FLAGS": FLAGS + str(devices),
                "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            }
            own = [*map(str, command), *(arguments or {}).get(n, ())]
            with open(self.logs[n], "w") as log:
                self.processes[n] = subprocess.Popen(
                    own, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
                )

    def finish(self, seconds: float = 240) -> dict[int, int]:
        """Waits for all processes; gives their exit codes."""
        deadline = time.monotonic() + seconds
        try:
            for process in self.processes.values():
                process.wait(max(0.1, deadline - time.monotonic()))
        finally:
            self.kill()
        return {n: process.returncode for n, process in self.processes.items()}

    def succeed(self, seconds: float = 240) -> str:
        """Waits until all have ended with 0; gives what process 0 has said."""
        codes = self.finish(seconds)
        assert set(codes.values()) == {0}, "\n".join(map(self.said, codes))
        return self.said(0)

    def said(self, number: int) -> str:
        return self.logs[number].read_text()

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def reach(self, run: Path, step: int) -> None:
        """Waits until ``run`` has logged ``step``."""
        while not any(number >= step for number, _ in losses(run)):
            time.sleep(0.02)
            running = [process.poll() is None for process in self.processes.values()]
            assert all(running), "\n".join(map(self.said, self.processes))

    def lose(self, victim: int, patience: float = 20) -> dict[int, int] | None:
        """Sends SIGKILL to ``victim`` and waits until the others have ended, too.

        Returns:
          the exit codes of the others; None where they had to be ended, as a launcher does it:
          while they wait for all to come, they wait for one that is gone as well.
        """
        self.processes[victim].kill()
        try:
            codes = self.finish(patience)
        except subprocess.TimeoutExpired:
            return None
        del codes[victim]
        assert not {0, 2, 75} & set(codes.values()), "\n".join(map(self.said, codes))
        return codes


def losses(run: Path) -> list[tuple[int, float]]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(line["step"], line["train/loss"]) for line in records if "train/loss" in line]


def checkpoints(run: Path) -> list[int]:
    """The complete ones."""
    found = (path.name for path in (run / "checkpoints").glob("*"))
    return sorted(int(name) for name in found if re.fullmatch(r"\d+", name))
