"""Commands of ``langsamp`` in a folder, with a log of what was run, and how long it took."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

LINES = 16  # of what a command prints that the log keeps


def run_missing(commands: Mapping[str, str], folder: Path) -> None:
    """Runs, in ``folder``, every command whose result is not there.

    Args:
      commands: what a command leaves in ``folder`` -> its arguments, with spaces between.
      folder: appended to its ``log.txt`` are commands, the end of their output, wall times and peak
        memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for result, command in commands.items():
        if (folder / result).exists():
            continue
        started = time.perf_counter()
        arguments = [sys.executable, "-m", "langsamp_jax", *command.split()]
        process = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, text=True)
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)  # of this process alone
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds, memory = time.perf_counter() - started, used.ru_maxrss / 1024
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            print("$ langsamp", command, file=log)
            print(*said.splitlines()[-LINES:], sep="\n", file=log)
            print(f"  [{seconds:.0f} s, {memory:.0f} MB, exit {process.returncode}]\n", file=log)
        if process.returncode:
            raise SystemExit(f"langsamp {command}: exit {process.returncode}")
