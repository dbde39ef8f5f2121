"""Several processes here: what they are given, and what happens however one of them ends."""

import os
import random
import signal
import socket

import pytest

pytestmark = pytest.mark.slow


def test_processes_find_each_other(launcher):
    command = launcher.worker({"0/*": 0}, "a b", "$(touch x)", "it's", "--name")
    ended = launcher.run(
        "local", "--processes", "3", "--", *command, XLA_FLAGS="--flag", JAX_PLATFORMS="cpu"
    )
    records = [launcher.events(process)[0] for process in range(3)]
    environments = [record["environment"] for record in records]
    assert [e["JAX_PROCESS_ID"] for e in environments] == ["0", "1", "2"]
    assert {e["JAX_NUM_PROCESSES"] for e in environments} == {"3"}
    assert {(e["XLA_FLAGS"], e["JAX_PLATFORMS"]) for e in environments} == {("--flag", "cpu")}
    (address,) = {e["JAX_COORDINATOR_ADDRESS"] for e in environments}
    host, port = address.split(":")
    with socket.create_server((host, int(port))):
        pass
    for record in records:
        assert record["arguments"] == ["a b", "$(touch x)", "it's", "--name"]
    for process in range(3):
        log = (launcher.folder / "logs" / f"process-{process}.log").read_text()
        assert log.splitlines() == [f"process {process} attempt 0", f"process {process} ends"]
        assert [f"[{process}] {line}" for line in log.splitlines()] == [
            line for line in ended.stdout.splitlines() if line.startswith(f"[{process}]")
        ]


@pytest.mark.parametrize("end", [1, "kill", 139], ids=str)
def test_one_that_dies_costs_all_a_restart(launcher, end):
    command = launcher.worker({"0/1": end, "1/*": 0})
    ended = launcher.run("local", "--processes", "3", "--pause", "0", "--", *command)
    assert launcher.starts(3) == [2, 2, 2]
    assert [len(launcher.events(process, "saved")) for process in range(3)] == [1, 0, 1]
    assert "restart 1 of at most 100" in ended.stderr
    ports = {r["environment"]["JAX_COORDINATOR_ADDRESS"] for r in launcher.events(0)}
    assert len(ports) == 2  # not one where the dead may still be asked for
    log = (launcher.folder / "logs" / "process-0.log").read_text()
    assert "attempt 0" in log and "attempt 1" in log


def test_killed_from_outside_at_random(launcher):
    command = launcher.worker({"2/*": 0})
    process = launcher.start("local", "--processes", "4", "--pause", "0", "--", *command)
    chance = random.Random(5)
    for attempt in range(2):
        launcher.wait_for(lambda n=attempt + 1: launcher.starts(4) == [n] * 4)
        os.kill(launcher.events(chance.randrange(4))[-1]["pid"], signal.SIGKILL)
    launcher.finish(process)
    assert launcher.starts(4) == [3] * 4


def test_preempted_is_not_crashed(launcher):
    command = launcher.worker({f"{n}/*": 75 for n in range(4)} | {"4/*": 0})
    ended = launcher.run(
        "local", "--processes", "2", "--pause", "0", "--max_restarts", "0", "--", *command
    )
    assert launcher.starts(2) == [5, 5]
    assert "crash" not in ended.stderr


@pytest.mark.parametrize("code", [2, 130])
def test_final_ends_stop_all(launcher, code):
    command = launcher.worker({"0/1": code})
    launcher.run("local", "--processes", "3", "--", *command, code=code)
    assert launcher.starts(3) == [1, 1, 1]
    assert [len(launcher.events(process, "saved")) for process in range(3)] == [1, 0, 1]


def test_a_users_mistake_counts_before_its_consequences(launcher):
    script = """
        if [[ $JAX_PROCESS_ID == 2 ]]; then touch mistake; exit 2; fi
        until [[ -e mistake ]]; do sleep 0.02; done
        sleep 0.1; exit 1"""
    launcher.run("local", "--processes", "4", "--", "bash", "-c", script, code=2)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_reach_the_processes_and_are_waited_for(launcher, number, code):
    process = launcher.start("local", "--processes", "2", "--", *launcher.worker({}))
    launcher.wait_for(lambda: launcher.starts(2) == [1, 1])
    process.send_signal(number)
    ended = launcher.finish(process, code)
    assert [len(launcher.events(p, "saved")) for p in range(2)] == [1, 1]
    assert "[0] process 0 saved" in ended.stdout and "[1] process 1 saved" in ended.stdout


def test_a_signal_between_two_attempts_ends_the_launcher(launcher):
    command = launcher.worker({"0/*": 1})
    process = launcher.start("local", "--processes", "1", "--pause", "60", "--", *command)
    while "restart 1" not in process.stderr.readline():
        pass
    process.terminate()
    launcher.finish(process, 75)
    assert launcher.starts(1) == [1]


def test_who_does_not_hear_is_killed(launcher):
    deaf = ["bash", "-c", "trap '' TERM; touch $JAX_PROCESS_ID.started; sleep 50 & wait; wait"]
    process = launcher.start("local", "--processes", "2", "--grace", "1", "--", *deaf)
    launcher.wait_for(lambda: len(list(launcher.folder.glob("*.started"))) == 2)
    process.terminate()
    launcher.finish(process, 137)


def test_gives_up_in_one_line(launcher):
    command = launcher.worker({f"{n}/*": 7 for n in range(9)})
    ended = launcher.run("local", "--processes", "2", "--pause", "0", "--", *command, code=7)
    assert launcher.starts(2) == [3, 3]  # three crashes in a row, right after the start
    assert ended.stderr.splitlines()[-1].startswith("launch_tpu.sh: gave up after crash 3")
    ended = launcher.run("local", "--processes", "2", "--max_restarts", "0", "--", *command, code=7)
    assert launcher.starts(2) == [4, 4]
    assert "gave up after crash 1" in ended.stderr
