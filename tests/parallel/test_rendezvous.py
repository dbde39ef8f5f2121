"""Processes that meet before they start: who is missing, does not fit or is gone is said."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.parallel.rendezvous import Cluster, Rendezvous

FACTS = {"jax": "1.0"}

# Arguments: the coordinator's address, the number of processes, this one's number, what it does.
MEMBER = """
import os, sys, time
from langsamp_jax.parallel.rendezvous import Cluster, Rendezvous
address, total, number, action = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
rendezvous = Rendezvous(Cluster(address, total, number), {}, 60)
print("go", flush=True)
sys.stdin.readline()
if action == "fail":
    rendezvous.fail("the disk is full", 2)
    os._exit(2)
if action == "done":
    rendezvous.done()
    time.sleep(float(sys.argv[5]))
    os._exit(0)
time.sleep(60)
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def meet(
    port: int, numbers: list[int], total: int = 4, time_limit: float = 30, **changes: object
) -> list[Future]:
    """The rendezvous of some processes, here as threads; ``changes``: ``p2={"jax": "2.0"}``."""

    def one(position: int) -> Rendezvous:
        number = numbers[position]
        facts = changes.get(f"p{number}", FACTS)
        size = changes.get(f"size{number}", total)
        return Rendezvous(Cluster(f"127.0.0.1:{port}", size, number), facts, time_limit)

    with ThreadPoolExecutor(len(numbers)) as pool:
        return [pool.submit(one, position) for position in range(len(numbers))]


def mistakes(found: list[Future]) -> list[str]:
    return [str(future.exception()) for future in found if future.exception() is not None]


def test_all_are_there(port):
    found = meet(port, [3, 0, 2, 1])
    assert mistakes(found) == []
    for future in found:
        future.result().done()


def test_one_is_missing(port):
    found = meet(port, [0, 1, 3], time_limit=1)
    assert len(mistakes(found)) == 3
    for line in mistakes(found):
        assert line.startswith("saw 3 of 4 processes within 1 s: missing 2 (")
        assert f"127.0.0.1:{port}" in line


def test_nobody_at_the_address(port):
    (line,) = mistakes(meet(port, [2], time_limit=0.5))
    assert line.startswith(f"no process 0 at the coordinator's address 127.0.0.1:{port} within")
    assert "Connection refused" in line and "stale" in line


def test_an_address_without_a_machine():
    with pytest.raises(UserError, match=r"nowhere\.invalid:1.*not known|nowhere\.invalid:1.*name"):
        Rendezvous(Cluster("nowhere.invalid:1", 2, 1), FACTS, 0.5)


@pytest.mark.parametrize("talk", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\x00\x12\x04\x00", b"7\n"])
def test_something_else_answers_at_the_address(port, talk):
    """A stale address: the machine has been given to others."""
    with socket.create_server(("127.0.0.1", port)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as connection:
                        connection.sendall(talk)

        threading.Thread(target=answer, daemon=True).start()
        (line,) = mistakes(meet(port, [1], time_limit=1))
    assert f"127.0.0.1:{port}" in line and "no process 0 that waits" in line


def test_a_port_that_is_taken(port, monkeypatch):
    monkeypatch.setattr("langsamp_jax.parallel.rendezvous._PORT_SECONDS", 0)
    with socket.create_server(("", port)):
        (line,) = mistakes(meet(port, [0]))
    assert f"cannot listen at port {port}" in line and "in use" in line


def test_strangers_do_not_disturb(port):
    """What connects by chance, and speaks of something else, is no process."""

    def visit() -> None:
        for talk in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"hello": 1}\n', b"\xff\xfe\n"):
            for _ in range(100):
                with contextlib.suppress(ConnectionRefusedError):
                    with socket.create_connection(("127.0.0.1", port)) as connection:
                        connection.sendall(talk)
                        connection.recv(100)
                    break
                time.sleep(0.05)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, port, [0])
        pool.submit(visit).result()
        others = meet(port, [1, 2, 3])
        assert mistakes(first.result() + others) == []


@pytest.mark.parametrize(
    ("numbers", "changes", "expected"),
    [
        ([0, 1, 2], {"p2": {"jax": "2.0"}}, "process 2 has jax 2.0, process 0 has 1.0"),
        ([0, 1, 2], {"size1": 3}, "process 1 is one of 3, process 0 one of 4"),
        ([0, 1, 1], {}, "two processes say that they are process 1"),
    ],
)
def test_processes_that_do_not_belong_together(port, numbers, changes, expected):
    found = mistakes(meet(port, numbers, time_limit=2, **changes))
    assert expected + ": start all processes with the same command" in found
    assert len(found) == 3, "somebody goes on alone"


@pytest.mark.parametrize("next_one", [1, 2])
def test_a_process_that_is_started_anew_takes_its_place(port, next_one):
    """Whether it is back before the others are there or after: who is gone does not count."""
    identity = {"process": 1, "processes": 3, "facts": FACTS}
    pool = ThreadPoolExecutor(2)
    waiting = [pool.submit(meet, port, [0], total=3)]
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            with socket.create_connection(("127.0.0.1", port)) as early:
                early.sendall((json.dumps(identity) + "\n").encode())
            break
    waiting.append(pool.submit(meet, port, [next_one], total=3))
    time.sleep(0.5)
    found = meet(port, [3 - next_one], total=3)
    assert mistakes(found + [one for each in waiting for one in each.result()]) == []


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }


def member(port: int, total: int, number: int, action: str, *more: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        MEMBER,
        f"127.0.0.1:{port}",
        str(total),
        str(number),
        action,
        *more,
    ]


def start(port: int, *actions: str) -> list[subprocess.Popen]:
    """One process for each action; all have met."""
    processes = [
        subprocess.Popen(
            member(port, len(actions), number, *action.split()),
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, action in enumerate(actions)
    ]
    for process in processes:
        assert process.stdout.readline() == "go\n"
    for process in processes:
        with contextlib.suppress(BrokenPipeError):  # one that was told has ended this one
            process.stdin.write("\n")
            process.stdin.flush()
    return processes


def finish(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    texts = [process.communicate(timeout=30)[1] for process in processes]
    return [process.returncode for process in processes], texts


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_the_others(port, victim):
    processes = start(port, *["wait"] * 3)
    processes[victim].kill()
    codes, texts = finish(processes)
    assert codes == [-signal.SIGKILL if n == victim else 1 for n in range(3)]
    for number in {0, 1, 2} - {victim}:
        start_of_line = f"langsamp: process {number}: ends because of process {victim}: it is gone"
        assert texts[number].startswith(start_of_line) and texts[number].count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_failing_process_ends_the_others_with_its_word(port, failing):
    codes, texts = finish(start(port, *["fail" if n == failing else "wait" for n in range(3)]))
    assert codes == [2, 2, 2]
    for number in {0, 1, 2} - {failing}:
        expected = f"process {number}: ends because of process {failing}: the disk is full\n"
        assert texts[number] == f"langsamp: {expected}"


@pytest.mark.slow
def test_processes_that_are_done_leave_one_after_the_other(port):
    codes, texts = finish(start(port, "done 1", "done 0", "done 0.5"))
    assert (codes, texts) == ([0, 0, 0], ["", "", ""])
