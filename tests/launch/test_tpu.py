"""A TPU slice that is created, lost and created again; two workers, which are processes here."""

import json
import signal

import pytest

pytestmark = pytest.mark.slow

PLACE = ("--zone", "z", "--name", "pod")
UP = ("tpu", *PLACE, "--accelerator", "v5e:2x4", "--pause", "0")


@pytest.fixture
def cloud(launcher):
    """Someone is logged in; the workers have a pip and an uv that do nothing."""
    folder = launcher.folder / "cloud"
    (folder / "account").write_text("someone")
    (folder / "project").write_text("a-project")
    (folder / "installed").mkdir()
    for name in ("python3", "uv"):
        (folder / "installed" / name).write_text(f'#!/bin/bash\necho "{name} $*" >>"$HOME/setup"\n')
        (folder / "installed" / name).chmod(0o755)
    return folder


def calls(cloud) -> list[str]:
    """What was asked of the cloud, without the questions for its state."""
    asked = [json.loads(line)[:2] for line in (cloud / "calls").open()]
    return [verb for _, verb in asked if verb != "describe"]


SETUP_AND_RUN = ["ssh", "scp", "ssh", "ssh"]


def test_up_creates_sets_up_and_runs(launcher, cloud):
    command = launcher.worker({"0/*": 0}, "a b", "it's", "$(touch x)")
    ended = launcher.run(*UP, "--spot", "--", *command)
    assert calls(cloud) == ["create", *SETUP_AND_RUN]
    (create,) = (json.loads(line) for line in (cloud / "calls").open() if '"create"' in line)
    assert create == [
        "tpu-vm", "create", "--accelerator-type=v5litepod-8", "--spot",
        "--version=v2-alpha-tpuv5-lite", "--zone=z", "--quiet",
    ]  # fmt: skip
    for worker in range(2):
        home = cloud / f"worker{worker}"
        assert (home / "langsamp-jax" / "langsamp_jax" / "training" / "loop.py").exists()
        assert (home / "langsamp-jax" / "gin_configs" / "models" / "tiny.gin").exists()
        assert (
            "pip install -q --python .venv -r requirements/core.txt" in (home / "setup").read_text()
        )
        (start,) = launcher.events(worker)
        assert start["arguments"] == ["a b", "it's", "$(touch x)"]
        path = start["environment"]["PATH"].split(":")
        assert path[0] == str(home / "langsamp-jax" / ".venv" / "bin")
        assert f"process {worker} ends" in ended.stdout


def test_a_slice_that_is_there_is_used(launcher, cloud):
    launcher.run("tpu", "create", *PLACE, "--accelerator", "v4:2x2x2")
    assert "--accelerator-type=v4-16" in (cloud / "calls").read_text()
    launcher.run(*UP, "--", *launcher.worker({"0/*": 0}))
    assert calls(cloud) == ["create", *SETUP_AND_RUN]


def test_preempted_twice_and_finished(launcher, cloud):
    command = launcher.worker({"0/1": "preempt", "0/0": 1, "1/0": "preempt", "1/1": 1, "2/*": 0})
    launcher.run(*UP, "--max_restarts", "0", "--", *command)
    again = ["delete", "create", *SETUP_AND_RUN]
    assert calls(cloud) == ["create", *SETUP_AND_RUN, *again, *again]
    assert launcher.starts(2) == [3, 3]


@pytest.mark.parametrize("spot", [True, False])
def test_saved_on_notice(launcher, cloud, spot):
    """A spot slice is given up after 75; another that still stands is used again."""
    command = launcher.worker({"0/*": 75, "1/*": 0})
    launcher.run(*UP, *(["--spot"] if spot else []), "--", *command)
    between = ["delete", "create"] if spot else []
    assert calls(cloud) == ["create", *SETUP_AND_RUN, *between, *SETUP_AND_RUN]


def test_a_crash_is_restarted_on_the_same_slice(launcher, cloud):
    launcher.run(*UP, "--", *launcher.worker({"0/0": "kill", "0/1": 1, "1/*": 0}))
    assert calls(cloud) == ["create", *SETUP_AND_RUN, *SETUP_AND_RUN]
    launcher.run(*UP, "--", *launcher.worker({"2/*": 2}), code=2)
    assert launcher.starts(2) == [3, 3]


def test_no_room_at_first_is_the_end_and_later_is_waited_for(launcher, cloud):
    (cloud / "full").touch()
    command = launcher.worker({"0/0": "preempt", "0/1": 1, "1/*": 0})
    ended = launcher.run(*UP, "--", *command, code=2)
    assert "no more capacity" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("launch_tpu.sh: there is no slice")
    (cloud / "full").unlink()
    process = launcher.start(*UP, "--", *command)
    launcher.wait_for(lambda: launcher.starts(2) == [1, 1])
    (cloud / "full").touch()
    launcher.wait_for(lambda: calls(cloud)[-2:] == ["create", "create"])
    (cloud / "full").unlink()
    launcher.finish(process)
    assert launcher.starts(2) == [2, 2]


def test_queued(launcher, cloud):
    command = launcher.worker({"0/1": "preempt", "0/0": 1, "1/*": 0})
    launcher.run(*UP, "--queued", "--", *command)
    asked = [json.loads(line) for line in (cloud / "calls").open()]
    made = [call for call in asked if call[1] in ("create", "delete")]
    assert [call[:2] for call in made] == [
        ["queued-resources", verb] for verb in ("create", "delete", "create")
    ]
    assert {"--node-id=pod", "--runtime-version=v2-alpha-tpuv5-lite"} <= set(made[0])
    assert "--force" in made[1]
    assert launcher.starts(2) == [2, 2]


def test_a_broken_connection_costs_nothing(launcher, cloud):
    (cloud / "break").touch()
    command = ["bash", "-c", 'echo start >>"$HOME/starts"; sleep 3; echo end']
    ended = launcher.run(*UP, "--", *command)
    assert not (cloud / "break").exists()
    assert [(cloud / f"worker{n}" / "starts").read_text() for n in range(2)] == ["start\n"] * 2
    assert ended.stdout.count("end\n") == 2


def test_a_lost_launcher_is_replaced(launcher, cloud):
    """The run goes on without it; the next one stops that, which saves, and goes on from there."""
    command = launcher.worker({"1/*": 0})
    first = launcher.start(*UP, "--", *command)
    launcher.wait_for(lambda: launcher.starts(2) == [1, 1])
    first.kill()
    launcher.run(*UP, "--", *command)
    assert [len(launcher.events(worker, "saved")) for worker in range(2)] == [1, 1]
    assert launcher.starts(2) == [2, 2]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_reach_the_workers_and_are_waited_for(launcher, cloud, number, code):
    process = launcher.start(*UP, "--spot", "--", *launcher.worker({}))
    launcher.wait_for(lambda: launcher.starts(2) == [1, 1])
    process.send_signal(number)
    launcher.finish(process, code)
    assert [len(launcher.events(worker, "saved")) for worker in range(2)] == [1, 1]
    assert "delete" not in calls(cloud)


def test_the_actions_one_by_one(launcher, cloud):
    launcher.run("tpu", "create", *PLACE, "--accelerator", "v6e:4x4", "--runtime", "mine")
    launcher.run("tpu", "setup", *PLACE)
    launcher.run("tpu", "run", *PLACE, "--", *launcher.worker({"0/*": 0}))
    assert "--version=mine" in (cloud / "calls").read_text()
    logs = launcher.start("tpu", "logs", *PLACE)
    assert logs.stdout.readline() == "process 0 attempt 0\n"
    logs.terminate()
    launcher.run("tpu", "delete", *PLACE, "--project", "p")
    assert calls(cloud) == ["create", *SETUP_AND_RUN, "ssh", "delete"]
    assert "--project=p" in (cloud / "calls").read_text().splitlines()[-1]


def test_without_account_project_or_tool(launcher, cloud):
    command = launcher.worker({})
    (cloud / "project").write_text("(unset)")
    assert "no project" in launcher.refused(*UP, "--", *command)
    (cloud / "account").unlink()
    assert "gcloud auth login" in launcher.refused(*UP, "--", *command)
    (launcher.folder / "tools" / "gcloud").unlink()
    assert "gcloud is not on the PATH" in launcher.refused(*UP, "--", *command)
    assert not (cloud / "calls").exists()
