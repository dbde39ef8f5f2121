"""Work in any number of processes gives the same store, and what dies is taken up."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.corpus import sources
from data_pipelines.packing import runner as module
from data_pipelines.packing.prepare import prepare
from data_pipelines.packing.runner import LocalRunner, run
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import partial_path


@pytest.fixture(scope="module")
def four() -> LocalRunner:
    """Four processes, started once for all tests."""
    runner = LocalRunner(4)
    yield runner
    runner.close()


@pytest.fixture(params=[1, pytest.param(4, marks=pytest.mark.slow)])
def runner(request, four) -> LocalRunner:
    return four if request.param == 4 else LocalRunner(1)


@pytest.fixture
def small_work(monkeypatch) -> None:
    """Many items of text, and of rows, for a small corpus. Workers get the items as they are."""
    monkeypatch.setattr(sources, "RANGE_BYTES", 4000)
    monkeypatch.setattr("data_pipelines.packing.rows._FILES_AT_ONCE", 1)


@pytest.mark.slow
def test_four_processes_give_the_bytes_of_one(
    four, small_work, corpus, tokenizer_file, tmp_path, digests
):
    """The largest language has more than a dozen ranges of text and two files of rows."""
    for output, runner in ((tmp_path / "one", LocalRunner(1)), (tmp_path / "four", four)):
        prepare(corpus, tokenizer_file, output, 8, 0.1, runner=runner)
    assert max(file.stat().st_size for file in corpus.glob("*.txt")) > 12 * 4000
    assert list((tmp_path / "one" / "train").glob("*/c/1/0"))
    assert digests(tmp_path / "four") == digests(tmp_path / "one")


# --- items ------------------------------------------------------------------------------------


def square(key: str, item: int) -> dict[str, int]:
    return {"squared": item**2, "process": os.getpid()}


def square_slowly(key: str, item: int) -> dict[str, int]:
    time.sleep(0.01)
    return square(key, item)


def fail(key: str, item: str) -> dict[str, str]:
    """Does what the item says."""
    if item == "user":
        raise UserError("mend this")
    if item == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")
    if item == "nameless":
        raise OSError(errno.ENOSPC, "No space left on device")
    if item == "numpy":
        raise OSError("100 requested and 20 written")
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "defect":
        raise ZeroDivisionError("a defect")
    return {"item": item}


def no_call(key: str, item: object) -> dict[str, object]:
    raise AssertionError("it has a result")


def test_results_stand_in_the_order_of_the_items(runner, tmp_path):
    items, done = {f"key-{n}": n for n in (5, 3, 9, 1, 7, 2)}, []
    results = run(square, tmp_path / "new" / "folder", items, runner, done.append)
    assert list(results) == list(items) and sorted(done) == sorted(items.values())
    assert [result["squared"] for result in results.values()] == [25, 9, 81, 1, 49, 4]
    here = {result["process"] for result in results.values()} == {os.getpid()}
    assert here == (runner._workers == 1)


def test_what_has_a_result_is_not_done_again(runner, tmp_path):
    items = {f"key-{n}": n for n in range(5)}
    results = run(square, tmp_path, items, runner, lambda item: None)
    done = []
    assert run(no_call, tmp_path, items, runner, done.append) == results
    assert done == list(range(5))
    (tmp_path / "key-2.json").write_text('{"resu')
    (tmp_path / "key-4.json").unlink()
    again = run(square, tmp_path, items, runner, lambda item: None)
    assert [r["squared"] for r in again.values()] == [0, 1, 4, 9, 16]
    assert all(again[f"key-{n}"] == results[f"key-{n}"] for n in (0, 1, 3))
    assert {file.name for file in tmp_path.iterdir()} == {f"key-{n}.json" for n in range(5)}


def test_no_items(runner, tmp_path):
    assert run(square, tmp_path, {}, runner, lambda item: None) == {}


@pytest.mark.parametrize(
    ("item", "kind", "words"),
    [
        ("user", UserError, "mend this"),
        ("full", OSError, "[Errno 28] No space left on device: '/some/file'"),
        ("nameless", OSError, "[Errno 28] No space left on device: '{folder}'"),
        ("numpy", OSError, "[Errno 28] No space left on device: '{folder}'"),
        ("defect", ZeroDivisionError, "a defect"),
    ],
)
def test_an_item_that_fails_is_raised_here_and_done_again(item, kind, words, runner, tmp_path):
    with pytest.raises(kind) as error:
        run(fail, tmp_path, {"a": "fine", "b": item}, runner, lambda item: None)
    assert str(error.value) == words.format(folder=tmp_path)
    results = run(square, tmp_path, {"b": 3}, runner, lambda item: None)
    assert results["b"]["squared"] == 9
    assert run(no_call, tmp_path, {"b": 3}, runner, lambda item: None) == results


@pytest.mark.slow
def test_a_worker_that_dies_is_one_line(tmp_path):
    runner = LocalRunner(2)
    with pytest.raises(UserError) as error:
        run(fail, tmp_path, {"a": "killed", "b": "fine"}, runner, lambda item: None)
    runner.close()
    message = str(error.value)
    assert message.startswith("a worker process died") and "\n" not in message
    assert "the same command" in message and "--workers 1" in message
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("workers", [0, -1])
def test_a_number_of_workers_that_is_none(workers):
    with pytest.raises(UserError) as error:
        LocalRunner(workers)
    assert str(error.value) == f"--workers {workers}: expected a whole number above 0"


@pytest.mark.slow
def test_processes_start_when_work_is_long(tmp_path, monkeypatch):
    """By default: a small corpus does not wait for processes that it does not need."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    short = LocalRunner()
    results = run(square, tmp_path / "short", {"a": 1, "b": 2}, short, lambda item: None)
    assert {result["process"] for result in results.values()} == {os.getpid()}
    assert short._executor is None
    monkeypatch.setattr(module, "_SECONDS_ALONE", 0.05)
    long, items = LocalRunner(), {f"key-{n}": n for n in range(40)}
    results = run(square_slowly, tmp_path / "long", items, long, lambda item: None)
    assert [result["squared"] for result in results.values()] == [n**2 for n in range(40)]
    assert os.getpid() in {result["process"] for result in results.values()} != {os.getpid()}
    again = run(square, tmp_path / "again", {"a": 1}, long, lambda item: None)
    assert again["a"]["process"] != os.getpid()  # they are there
    long.close()


# --- death ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def larger(corpus, tmp_path_factory) -> Path:
    """Twelve languages that take a worker about a quarter of a second each."""
    folder = tmp_path_factory.mktemp("larger") / "corpus"
    folder.mkdir()
    lines = (corpus / "qaa_Latn.txt").read_text("utf-8").splitlines()
    for number in range(12):
        text = "".join(f"{line} {turn} {number}\n" for turn in range(4) for line in lines)
        (folder / f"qb{chr(97 + number)}_Latn.txt").write_text(text, "utf-8")
    return folder


def workers_of(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def alive(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    began = time.monotonic()
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() - began < 60
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_killed_in_every_way_and_continued(larger, tokenizer_file, tmp_path, digests):
    """All processes at once; the first alone, whose workers end by themselves; a worker alone,
    which is one line and exit 2. Each time the same command goes on where it was."""
    output = tmp_path / "store"
    command = [sys.executable, "-m", "langsamp_jax", "prepare", "--corpus", larger]
    command += ["--tokenizer", tokenizer_file, "--output", output, "--sequence_length", "32"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def results() -> int:
        return len(list(partial_path(output).glob("work/*/*.json")))

    def start(until: int) -> subprocess.Popen:
        """The command, at the moment when it has so many results."""
        process = subprocess.Popen(
            [*command, "--workers", "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_until(lambda: results() >= until, process)
        return process

    everything = start(until=2)
    os.killpg(everything.pid, signal.SIGKILL)
    everything.communicate()
    assert 2 <= results() < 12 and not output.exists()

    first = start(until=results() + 2)
    workers = workers_of(first.pid)
    assert len(workers) == 2
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, workers)))
    first.communicate()

    before = results()
    worker = start(until=before + 1)
    os.kill(workers_of(worker.pid)[0], signal.SIGKILL)
    printed, said = worker.communicate()
    assert worker.returncode == 2 and printed == "" and not output.exists()
    taken_over, line = said.splitlines()
    assert taken_over.endswith("which has ended: taken over")
    assert line.startswith("langsamp: a worker process died")

    done = {file: file.stat().st_mtime_ns for file in partial_path(output).glob("work/*/*.json")}
    assert len(done) > before
    last = start(until=len(done) + 1)
    assert all(not f.exists() or f.stat().st_mtime_ns == was for f, was in done.items())
    _, said = last.communicate()
    assert (last.returncode, said) == (0, "")
    prepare(larger, tokenizer_file, tmp_path / "whole", 32)
    assert digests(output) == digests(tmp_path / "whole")
    assert not partial_path(output).exists()


@pytest.mark.slow
def test_a_full_disk_in_a_worker_is_one_line(
    small_disk, four, corpus, tokenizer_file, store_path, digests
):
    output = small_disk / "store"
    with pytest.raises(OSError) as full:
        prepare(corpus, tokenizer_file, output, 32, 0.1, runner=four)
    assert full.value.errno == errno.ENOSPC and str(small_disk) in str(full.value)
    assert not output.exists()
    room = ["mount", "-o", "remount,size=16m", str(small_disk)]
    subprocess.run(room, check=True, capture_output=True)
    prepare(corpus, tokenizer_file, output, 32, 0.1, runner=four)
    assert digests(output) == digests(store_path)
