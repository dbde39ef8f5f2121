"""The launcher on a PATH that holds stand-ins for the tools of the clusters, and no real ones."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
COMMANDS = "bash cat date dirname env grep mkdir rm seq setsid sleep tail timeout touch wc".split()


class Launcher:
    """Runs launch_tpu.sh in a folder of its own, and knows what the workers recorded there."""

    script = HERE.parents[1] / "launch_tpu.sh"

    def __init__(self, folder: Path, tools: Path):
        self.folder = folder
        self.environment = {
            "PATH": str(tools),
            "HOME": str(folder),
            "CLOUD": str(folder / "cloud"),
            "CLUSTER": str(folder / "cluster"),
        }
        self.started: list[subprocess.Popen] = []

    def worker(self, plan: dict[str, Any], *arguments: str) -> list[str]:
        """The command of a worker; see worker.py."""
        program = str(HERE / "worker.py")
        return [sys.executable, "-S", program, str(self.folder), json.dumps(plan), *arguments]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [str(self.script), *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def finish(self, process: subprocess.Popen, code: int = 0) -> subprocess.CompletedProcess:
        output, errors = process.communicate(timeout=900)
        assert process.returncode == code, (output, errors)
        return subprocess.CompletedProcess(process.args, code, output, errors)

    def run(self, *arguments: str, code: int = 0, **environment: str):
        return self.finish(self.start(*arguments, **environment), code)

    def refused(self, *arguments: str, **environment: str) -> str:
        """The one line with which the launcher exits with 2."""
        ended = self.run(*arguments, code=2, **environment)
        assert ended.stdout == "" and ended.stderr.count("\n") == 1, ended
        return ended.stderr

    def events(self, process: int, event: str = "start") -> list[dict[str, Any]]:
        file = self.folder / f"{process}.jsonl"
        records = [json.loads(line) for line in file.open()] if file.exists() else []
        return [record for record in records if record["event"] == event]

    def starts(self, count: int) -> list[int]:
        return [len(self.events(process)) for process in range(count)]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 250
        while not condition():
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.05)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in COMMANDS:
        (tools / name).symlink_to(shutil.which(name))
    (tools / "python3").symlink_to(sys.executable)
    for file in (HERE / "stand_ins").iterdir():
        (tools / file.name).symlink_to(file)
    for name in ("cloud", "cluster"):
        (tmp_path / name).mkdir()
    launcher = Launcher(tmp_path, tools)
    yield launcher
    for process in launcher.started:
        process.terminate()  # it takes along what it has started
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for file in tmp_path.glob("*.jsonl"):  # a failed test leaves nothing running
        for line in file.open():
            pid = json.loads(line).get("pid")
            if pid and str(tmp_path).encode() in _command_line(pid):
                os.kill(pid, 9)


def _command_line(pid: int) -> bytes:
    file = Path(f"/proc/{pid}/cmdline")
    return file.read_bytes() if file.exists() else b""
