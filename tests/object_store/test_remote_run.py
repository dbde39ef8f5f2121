"""A run whose data, output and start are in an object store ends where the same run on a disk does,
also when it is killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store
from langsamp_jax.io.storage import location
from langsamp_jax.training.checkpoint import latest_step, restore_params, saved_steps
from langsamp_jax.training.run import open_run

pytestmark = pytest.mark.slow

STEPS = 9
SETTINGS = {
    "train.global_batch_size": 8,
    "train.num_steps": STEPS,
    "train.log_every": 1,
    "train.checkpoint_every": 3,
    "train.eval_every": 3,
    "train.snapshots": "powers",
    "train.eval_rows": 2,
    "optimizer.learning_rate": 1e-3,
}


def arguments(data: object, run: object, start: object) -> list[str]:
    command = ["train", "--data", data, "--output", run, "--init_from", start]
    return [*map(str, command), *(f"--gin.{name}={value}" for name, value in SETTINGS.items())]


def launch(arguments: Sequence[str], **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "langsamp_jax", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


def launch_two(arguments: Sequence[str]) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
    each = [dict(zip(names, (address, "2", number), strict=True)) for number in "01"]
    return [launch(arguments, **environment) for environment in each]


def ended(processes: Sequence[subprocess.Popen]) -> list[tuple[int, str]]:
    """The exit code of each and what it has said."""
    said = [process.communicate(timeout=900)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def records(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_bytes().decode().splitlines()
    keep = ("step", "train/loss", "eval/loss")
    return [{k: v for k, v in json.loads(line).items() if k in keep} for line in lines]


@pytest.fixture(scope="module")
def start(store_path: Path, tmp_path_factory: pytest.TempPathFactory, make_checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("start") / "xlmr"
    make_checkpoint(folder, "xlm-roberta", Store(store_path).manifest.vocabulary.size)
    return folder


@pytest.fixture(scope="module")
def on_disk(store_path: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("disk") / "run"
    output, _ = (process := launch(arguments(store_path, run, start))).communicate(timeout=900)
    assert process.returncode == 0, output
    return run


def test_killed_in_a_save_it_ends_as_on_a_disk(
    s3, put, store_path, start, on_disk, tmp_path, capsys
):
    data, weights = put(store_path, "store"), put(start, "start")
    run = location(f"s3://bucket/{tmp_path.name}/run")
    process = launch(arguments(data, run, weights))

    def kill(request) -> bool:  # when the save of step 6 has all but its last object
        last = request.path == f"/bucket/{tmp_path.name}/run/checkpoints/6/commit_success.txt"
        if last and request.method == "PUT":
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            return True
        return False

    s3.refuse = kill
    output, _ = process.communicate(timeout=900)
    assert process.returncode == -signal.SIGKILL, output
    s3.refuse = lambda request: False
    assert (run / "checkpoints" / "6" / "state").is_dir()
    assert latest_step(run / "checkpoints") == 3
    assert {line["step"] for line in records(run)} >= {1, 2, 3}

    output, _ = (process := launch(arguments(data, run, weights))).communicate(timeout=900)
    assert process.returncode == 0, output
    assert f"going on from step 3 of {run}" in output
    (_, ours), (_, theirs) = (restore_params(open_run(path), STEPS) for path in (run, on_disk))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert records(run) == records(on_disk)
    for step in (steps := saved_steps(on_disk / "snapshots")):
        (_, ours), (_, theirs) = (restore_params(open_run(path), step) for path in (run, on_disk))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert saved_steps(run / "snapshots") == steps == [0, 1, 2, 4, 8, 9]
    assert len(list((run / "tensorboard").iterdir())) == 2

    # What is made of it
    for where in (run, on_disk):
        table, model = tmp_path / f"{where.parent.name}.json", tmp_path / f"{where.parent.name}.hf"
        capsys.readouterr()
        evaluate = ["evaluate", "mlm", "--model", str(where), "--data", str(data)]
        assert main([*evaluate, "--output", str(table)]) == 0, capsys.readouterr().err
        assert main(["export", "--run", str(where), "--output", str(model)]) == 0
    tables = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*.json"))]
    assert len(tables) == 2 and all(table.pop("seconds") and table.pop("model") for table in tables)
    assert tables[0] == tables[1]
    exports = [(file / "model.safetensors").read_bytes() for file in tmp_path.glob("*.hf")]
    assert len(exports) == 2 and exports[0] == exports[1]


def test_two_processes_share_it_are_stopped_and_go_on(
    s3, put, store_path, start, on_disk, tmp_path
):
    data, weights = put(store_path, "store"), put(start, "start")
    run = location(f"s3://bucket/{tmp_path.name}/run")
    processes = launch_two(arguments(data, run, weights))

    def stop(request) -> bool:  # when the save of step 3 is complete
        if request.method == "PUT" and request.path.endswith("/checkpoints/3/commit_success.txt"):
            processes[1].send_signal(signal.SIGTERM)
        return False

    s3.refuse = stop
    for code, said in ended(processes):
        assert code == 75, said
    s3.refuse = lambda request: False
    step = latest_step(run / "checkpoints")
    assert 3 < step < STEPS

    (code, said), (other, more) = ended(launch_two(arguments(data, run, weights)))
    assert (code, other) == (0, 0), said + more
    assert f"going on from step {step} of {run}" in said
    for ours, theirs in zip(records(run), records(on_disk), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_what_may_not_be_written(s3, put, store_path, start, tmp_path, capsys):
    data, run = put(store_path, "store"), f"s3://bucket/{tmp_path.name}/run"
    for name in ("/run/run.json", "/run/checkpoints/3/state"):
        s3.refuse = lambda request, name=name: request.method == "PUT" and name in request.path
        assert main(arguments(data, run, start)) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("langsamp: ") and "denied" in line.lower(), line
    s3.refuse = lambda request: False
    assert latest_step(location(run) / "checkpoints") == 0


def test_an_export_and_its_start_from_there(s3, put, store_path, start, on_disk, tmp_path):
    model = f"s3://bucket/{tmp_path.name}/model"
    assert main(["export", "--run", str(on_disk), "--output", model]) == 0
    assert main(["export", "--run", str(on_disk), "--output", str(tmp_path / "model")]) == 0
    for file in (tmp_path / "model").iterdir():
        assert (location(model) / file.name).read_bytes() == file.read_bytes()
    dry = ["train", "--data", str(store_path), "--init_from", model, "--dry_run"]
    assert main(dry) == 0
    table = location(f"s3://bucket/{tmp_path.name}/mlm.json")
    evaluate = ["evaluate", "mlm", "--model", str(on_disk), "--data", str(store_path)]
    assert main([*evaluate, "--output", str(table)]) == 0
    assert json.loads(table.read_bytes())["task"] == "mlm"
