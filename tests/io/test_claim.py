"""Claims: one holder at a time; of those that have ended nobody has to wait for long."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.io.claim import CLAIM, Claim

SECONDS = 0.1

HOLD = """
import pathlib, sys, time
from langsamp_jax.io.claim import Claim
with Claim(pathlib.Path(sys.argv[1]), pathlib.Path("run"), 0.1):
    print("held", flush=True)
    time.sleep(60)
"""


def claim(folder: Path, elsewhere: bool = False) -> Claim:
    made = Claim(folder / CLAIM, folder, SECONDS)
    if elsewhere:
        made._record["place"] = "another machine"
    return made


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error, claim(folder):
        pytest.fail("two hold it")
    return str(error.value)


def test_the_second_is_refused_in_one_line_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "new" / "run"
    with claim(folder) as first:
        line = refusal(folder)
        assert line.startswith(f"{folder} is held by process {os.getpid()} on ")
        assert line.endswith("; wait for it or name another --output")
        time.sleep(3 * SECONDS)
        first.require_held()
    assert not folder.exists()
    with claim(folder):
        (folder / "file").write_text("text")
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_killed_holder_is_followed_at_once(tmp_path, capsys):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / CLAIM], stdout=-1)
    assert process.stdout.readline() == b"held\n"
    assert f"process {process.pid} on " in refusal(tmp_path)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, though nobody was told yet
    began = time.monotonic()
    with claim(tmp_path):
        assert time.monotonic() - began < 3 * SECONDS
    assert capsys.readouterr().err.endswith(", which has ended: taken over\n")
    process.communicate()
    assert not list(tmp_path.iterdir())


def test_another_process_of_the_same_number_is_not_the_holder(tmp_path):
    with claim(tmp_path):
        record = json.loads((tmp_path / CLAIM).read_text())
        (tmp_path / CLAIM).write_text(json.dumps(record | {"token": "old", "start": "1"}))
        with claim(tmp_path):
            pass


@pytest.mark.parametrize("text", [None, "", "[1", "{}"], ids=["whole", "empty", "cut", "no facts"])
def test_what_does_not_change_for_a_while_is_stale(text, tmp_path, capsys):
    with claim(tmp_path, elsewhere=True):
        text = (tmp_path / CLAIM).read_text() if text is None else text
    (tmp_path / CLAIM).write_text(text)
    with claim(tmp_path):
        pass
    seeing, taken = capsys.readouterr().err.splitlines()
    assert seeing.endswith(": 0 s to see if it works") and taken.endswith(" ended: taken over")
    assert not list(tmp_path.iterdir())


def test_a_holder_on_another_machine_is_seen_at_work(tmp_path):
    with claim(tmp_path, elsewhere=True):
        assert f"process {os.getpid()} on " in refusal(tmp_path)


def test_one_that_gives_back_meanwhile_is_followed(tmp_path):
    with claim(tmp_path, elsewhere=True):
        left = (tmp_path / CLAIM).read_text()
    (tmp_path / CLAIM).write_text(left)
    threading.Timer(SECONDS, (tmp_path / CLAIM).unlink).start()
    with claim(tmp_path) as second:
        second.require_held()


def test_of_many_at_once_one_holds(tmp_path):
    held, start, over = [], threading.Barrier(8), threading.Barrier(8)

    def contend() -> None:
        start.wait()
        try:
            with claim(tmp_path) as mine:
                held.append(mine)
                over.wait()
        except UserError:
            over.wait()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and not list(tmp_path.iterdir())


def test_who_has_lost_it_is_told_and_leaves_it_to_the_other(tmp_path):
    other = json.dumps({"token": "other", "pid": 7, "host": "n3", "since": 0})
    with claim(tmp_path) as lost:
        (tmp_path / CLAIM).write_text(other)
        time.sleep(2 * SECONDS)
        with pytest.raises(UserError, match="is held by process 7 on n3, since .* and no more"):
            lost.require_held()
    assert (tmp_path / CLAIM).read_text() == other
