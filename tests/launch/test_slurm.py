"""The batch script that is submitted, run as Slurm runs it; its tasks are processes here."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from jax._src.clusters import SlurmCluster

pytestmark = pytest.mark.slow

RUN = ("slurm", "--nodes", "2", "--gpus_per_node", "2", "--pause", "0")


class Job:
    """Runs the script that sbatch was given; again, where it asked for that."""

    def __init__(self, launcher):
        self.launcher, self.folder = launcher, launcher.folder / "cluster"
        (self.folder / "state").write_text("RUNNING")
        self.environment = {**launcher.environment, "SLURM_JOB_ID": "7"}

    def start(self) -> subprocess.Popen:
        process = subprocess.Popen(
            [str(self.folder / "job")], env=self.environment, cwd=self.launcher.folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.launcher.started.append(process)
        return process

    def requeued(self) -> bool:
        marker = self.folder / "requeued"
        was = marker.exists()
        marker.unlink(missing_ok=True)
        return was

    def calls(self) -> list[str]:
        file: Path = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def job(launcher):
    job = Job(launcher)

    def submit(*arguments: str) -> Job:
        ended = launcher.run(*RUN, *arguments)
        assert ended.stdout == "Submitted batch job 7\n"
        (job.folder / "job").chmod(0o755)
        return job

    return submit


def directives(job: Job) -> dict[str, str]:
    lines = (job.folder / "job").read_text().splitlines()
    pairs = (line.split("--", 1)[1].partition("=") for line in lines if line.startswith("#SBATCH"))
    return {name: value for name, _, value in pairs}


def test_the_script(launcher, job):
    submitted = job(
        "--time", "1:00:00", "--partition", "gpu", "--account", "us", "--cpus_per_task", "8",
        "--logs", "out", "--", "langsamp", "train",
    )  # fmt: skip
    assert (submitted.folder / "job").read_text().startswith("#!/usr/bin/env bash\n#SBATCH ")
    assert directives(submitted) == {
        "job-name": "langsamp",
        "nodes": "2",
        "ntasks-per-node": "2",
        "gpus-per-node": "2",
        "cpus-per-task": "8",
        "time": "1:00:00",
        "partition": "gpu",
        "account": "us",
        "signal": "TERM@120",
        "requeue": "",
        "open-mode": "append",
        "output": "out/%x-%j.log",
    }
    assert (launcher.folder / "out").is_dir()  # Slurm does not make it


def test_jax_finds_its_place(launcher, job, monkeypatch):
    submitted = job("--", *launcher.worker({"0/*": 0}, "a b", "it's", "$(touch x)"))
    launcher.finish(submitted.start())
    places = set()
    for task in range(4):
        (start,) = launcher.events(task)
        assert start["arguments"] == ["a b", "it's", "$(touch x)"]
        for name, value in start["environment"].items():
            if name.startswith("SLURM_"):
                monkeypatch.setenv(name, value)
        assert SlurmCluster.is_env_present()
        assert SlurmCluster.get_process_count() == 4
        assert SlurmCluster.get_coordinator_address(None, "1234") == "node01:1234"
        places.add((SlurmCluster.get_process_id(), SlurmCluster.get_local_process_id()))
    assert places == {(0, 0), (1, 1), (2, 0), (3, 1)}


def test_saved_before_the_time_is_up_and_requeued(launcher, job):
    submitted = job("--", *launcher.worker({"1/*": 0}))
    process = submitted.start()
    launcher.wait_for(lambda: launcher.starts(4) == [1] * 4)
    for task in (submitted.folder / "tasks").read_text().split():
        os.kill(int(task), signal.SIGTERM)  # what --signal=TERM@120 does
    launcher.finish(process, 75)
    assert submitted.requeued() and submitted.calls() == ["scontrol requeue 7"]
    launcher.finish(submitted.start())
    assert not submitted.requeued()
    assert launcher.starts(4) == [2] * 4


def test_a_signal_to_the_batch_script_saves(launcher, job):
    submitted = job("--", *launcher.worker({}))
    process = submitted.start()
    launcher.wait_for(lambda: launcher.starts(4) == [1] * 4)
    process.terminate()
    launcher.finish(process, 75)
    assert [len(launcher.events(task, "saved")) for task in range(4)] == [1] * 4
    assert submitted.calls() == ["scancel --signal=TERM 7", "scontrol requeue 7"]


def test_cancelled_is_not_requeued(launcher, job):
    submitted = job("--", *launcher.worker({"0/*": 75}))
    (submitted.folder / "state").write_text("CANCELLED")
    launcher.finish(submitted.start(), 75)
    assert not submitted.requeued()


def test_a_crash_is_restarted_in_the_job(launcher, job):
    submitted = job("--", *launcher.worker({"0/1": "kill", "0/*": 1, "1/*": 0}))
    ended = launcher.finish(submitted.start())
    assert launcher.starts(4) == [2] * 4
    assert "exit code 137" in ended.stderr
    assert not submitted.requeued()


def test_a_users_mistake_ends_the_job(launcher, job):
    submitted = job("--", *launcher.worker({"0/*": 2}))
    launcher.finish(submitted.start(), 2)
    assert launcher.starts(4) == [1] * 4


def test_without_gpus_a_task_a_node(launcher):
    ended = launcher.run("slurm", "--nodes", "3", "--", "true", DRY_RUN="1")
    assert "#SBATCH --ntasks-per-node=1\n" in ended.stdout
    assert "--ntasks=3" in ended.stdout and "gpu-bind" not in ended.stdout


def test_refusals(launcher):
    (launcher.folder / "cluster" / "closed").touch()
    ended = launcher.run(*RUN, "--", "true", code=2)
    assert ended.stderr.splitlines() == [
        "sbatch: error: the cluster is closed",
        "launch_tpu.sh: sbatch refused it; what it says is above",
    ]
    (launcher.folder / "tools" / "sbatch").unlink()
    assert "sbatch is not on the PATH" in launcher.refused(*RUN, "--", "true")
