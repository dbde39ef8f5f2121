"""prepare, interrupted: killed at any moment and called again, it gives the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.corpus.cleaning import CleaningConfig
from data_pipelines.packing import runner, stages
from data_pipelines.packing.prepare import prepare
from data_pipelines.tokenizers.training import train_tokenizer
from langsamp_jax.data.store import Store
from langsamp_jax.io.files import partial_path

pytestmark = pytest.mark.slow

# A child that prepares, and dies of SIGKILL when Python opens, renames or removes a file or
# folder for the n-th time, or says how often that happened. Each line of its input is OUTPUT n;
# forks save the imports.
CHILD = """
import os, signal, sys
from pathlib import Path
from data_pipelines.packing.prepare import prepare

corpus, tokenizer = map(Path, sys.argv[1:])
seen = last = 0
WATCHED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}

def watch(event, arguments):
    global seen
    if last and event in WATCHED and "partial" in str(arguments[0]):
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
for line in sys.stdin:
    output, number = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        last = int(number)
        prepare(corpus, tokenizer, Path(output), 32, 0.1)
        print(seen, flush=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status:
        print("killed" if os.WIFSIGNALED(status) else "failed", flush=True)
"""
NEVER = 10**9


@pytest.fixture(scope="module")
def killer(corpus, tokenizer_file):
    command = [sys.executable, "-c", CHILD, str(corpus), str(tokenizer_file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:

        def call(output: Path, moment: int) -> int | None:
            """None where prepare was killed, else the moments that it had."""
            child.stdin.write(f"{output}\t{moment}\n")
            child.stdin.flush()
            answer = child.stdout.readline().strip()
            return None if answer == "killed" else int(answer)

        yield call
        child.stdin.close()


@pytest.fixture(scope="module")
def moments(killer, tmp_path_factory) -> int:
    """Counts the moments of an uninterrupted call."""
    return killer(tmp_path_factory.mktemp("moments") / "store", NEVER)


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the row files that are recorded as complete, by their name in a store."""
    done = {}
    for record in folder.glob("work/pack/*.json"):
        arrays = folder / "work" / "arrays" / record.stem.rpartition("-")[0]
        for name in json.loads(record.read_text("utf-8"))["result"]:
            split, _, file = name.split("/", 2)
            status = (arrays / split / file).stat()
            done[name] = status.st_ino, status.st_mtime_ns
    return done


def still_there(done: dict[str, tuple[int, int]], store: Path) -> bool:
    return all(
        ((store / name).stat().st_ino, (store / name).stat().st_mtime_ns) == was
        for name, was in done.items()
    )


def test_killed_once_at_many_moments(killer, moments, store_path, tmp_path, digests):
    chosen = np.random.default_rng(0).permutation(np.arange(1, moments))[:12]
    partly = 0
    for moment in [1, *chosen.tolist()]:
        output = tmp_path / str(moment)
        assert killer(output, moment) is None
        if output.exists():  # killed while the work was removed: the store must be whole
            assert digests(output) == digests(store_path)
        done = finished(partial_path(output)) if not output.exists() else {}
        partly += 0 < len(done)
        assert killer(output, NEVER) <= moments
        assert digests(output) == digests(store_path)
        assert still_there(done, output)
        assert not partial_path(output).exists()
    assert partly > 2


def test_killed_again_and_again(killer, moments, store_path, tmp_path, digests):
    """Each call dies a little later than the last; what is complete is never done again."""
    output, done, deaths = tmp_path / "store", {}, 0
    while killer(output, 30 + 4 * deaths) is None:
        done |= finished(partial_path(output))
        deaths += 1
        assert deaths < moments
    assert deaths > 3 and len(done) > 3
    assert digests(output) == digests(store_path)
    assert still_there(done, output)


def test_killed_at_the_very_end(killer, moments, store_path, tmp_path, digests):
    """No row is written again, and nothing is left beside the store."""
    stood = set()
    for before_the_end in range(8):
        output = tmp_path / str(before_the_end)
        assert killer(output, moments - before_the_end) is None
        folder = output if output.exists() else partial_path(output)
        stood.add(output.exists())
        rows = {path.stat().st_ino for path in folder.rglob("c/*/0")}
        assert len(rows) == len(Store(store_path).manifest.files)
        killer(output, NEVER)
        assert digests(output) == digests(store_path)
        assert {path.stat().st_ino for path in output.rglob("c/*/0")} == rows
        assert not partial_path(output).exists()
    assert stood == {False, True}


def test_killed_at_random_times(corpus, tokenizer_file, store_path, tmp_path, digests):
    """Also in the middle of what TensorStore and SentencePiece do."""
    code = (
        "import sys; from pathlib import Path; from data_pipelines.packing.prepare import prepare\n"
        "print(flush=True); prepare(*map(Path, sys.argv[1:]), 32, 0.1)"
    )
    command = [sys.executable, "-c", code, corpus, tokenizer_file, tmp_path / "store"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for seconds in (0.02, 0.06, 0.12, 0.2, 0.3):
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        child.stdout.readline()
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        child.communicate()
    prepare(corpus, tokenizer_file, tmp_path / "store", 32, 0.1)
    assert digests(tmp_path / "store") == digests(store_path)


def record_items(monkeypatch) -> list[str]:
    """Fills up with the items of work that are done from now on."""
    leave, items = runner._leave_result, []

    def leave_and_record(function, folder, entry):
        items.append(f"{folder.name}/{entry[0]}")
        leave(function, folder, entry)

    monkeypatch.setattr(runner, "_leave_result", leave_and_record)
    return items


def interrupt_after(number: int, monkeypatch, *args) -> None:
    """Calls prepare, which is interrupted at the end of the item after so many."""
    leave, items = runner._leave_result, []

    def leave_some(function, folder, entry):
        items.append(entry)
        if len(items) > number:
            function(*entry)
            raise KeyboardInterrupt
        leave(function, folder, entry)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "_leave_result", leave_some)
        prepare(*args)


STAGES = [3, 9, 16]  # items done: in the middle of encoding, selecting and packing


@pytest.fixture(params=STAGES)
def interrupted(request, corpus, tokenizer_file, tmp_path, monkeypatch) -> Path:
    """An output whose partial form has some of the work, and one item that is not recorded."""
    output = tmp_path / "store"
    interrupt_after(request.param, monkeypatch, corpus, tokenizer_file, output, 32, 0.1)
    assert not output.exists()
    results = [file.parent.name for file in partial_path(output).glob("work/*/*.json")]
    assert len(results) == request.param
    assert len(set(results)) == 1 + STAGES.index(request.param)
    return output


def test_taken_up_after_ctrl_c(
    interrupted, corpus, tokenizer_file, store_path, tmp_path, monkeypatch, digests
):
    results = len(list(partial_path(interrupted).glob("work/*/*.json")))
    items = record_items(monkeypatch)
    prepare(corpus, tokenizer_file, tmp_path / "fresh", 32, 0.1)
    everything = items.copy()
    items.clear()
    prepare(corpus, tokenizer_file, interrupted, 32, 0.1)
    assert items == everything[results:]
    assert digests(interrupted) == digests(store_path)


@pytest.mark.parametrize(("length", "fraction"), [(16, 0.1), (32, 0.2), (64, 0)])
def test_work_of_other_settings_is_not_used(
    length, fraction, interrupted, corpus, tokenizer_file, tmp_path, digests
):
    prepare(corpus, tokenizer_file, interrupted, length, fraction)
    prepare(corpus, tokenizer_file, tmp_path / "fresh", length, fraction)
    assert digests(interrupted) == digests(tmp_path / "fresh")


def test_work_of_another_cleaning_is_not_used(
    interrupted, corpus, tokenizer_file, tmp_path, digests
):
    cleaning, held_out = (
        CleaningConfig(duplicates="keep"),
        [corpus / "held_out", corpus / "qab_Cyrl.txt"],
    )
    for output in (interrupted, tmp_path / "fresh"):
        prepare(corpus, tokenizer_file, output, 32, 0.1, cleaning, held_out)
    assert digests(interrupted) == digests(tmp_path / "fresh")


def test_another_length_needs_no_text_again(corpus, tokenizer_file, tmp_path, monkeypatch, digests):
    """After the very end of a call, with the next interrupted halfway again."""
    output = tmp_path / "store"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "promote", lambda *_: signal.raise_signal(signal.SIGINT))
        prepare(corpus, tokenizer_file, output, 32, 0.1)
    interrupt_after(3, monkeypatch, corpus, tokenizer_file, output, 16, 0.1)
    items = record_items(monkeypatch)
    prepare(corpus, tokenizer_file, output, 16, 0.1)
    assert {item.partition("/")[0] for item in items} == {"pack"}
    prepare(corpus, tokenizer_file, tmp_path / "fresh", 16, 0.1)
    assert digests(output) == digests(tmp_path / "fresh")


def test_work_of_another_tokenizer_is_not_used(interrupted, corpus, tmp_path, digests):
    other = tmp_path / "other.model"
    train_tokenizer(corpus, 300, other)
    prepare(corpus, other, interrupted, 32, 0.1)
    prepare(corpus, other, tmp_path / "fresh", 32, 0.1)
    assert digests(interrupted) == digests(tmp_path / "fresh")


@pytest.mark.parametrize("number", STAGES)
def test_work_on_other_text_is_not_used(
    number, corpus, tokenizer_file, tmp_path, monkeypatch, digests
):
    """One of the languages has new text, one is gone, and one is new."""
    changed, output = shutil.copytree(corpus, tmp_path / "changed"), tmp_path / "store"
    interrupt_after(number, monkeypatch, changed, tokenizer_file, output, 32, 0.1)
    with open(changed / "qaa_Latn.txt", "a", encoding="utf-8") as file:
        file.write("one more line\n")
    (changed / "qaa_Cyrl.txt").rename(changed / "qaz_Cyrl.txt")
    items = record_items(monkeypatch)
    prepare(changed, tokenizer_file, output, 32, 0.1)
    names = {item[: len("encode/qaa_Latn")] for item in items}
    assert {"encode/qaa_Latn", "encode/qaz_Cyrl"} <= names and "encode/qab_Cyrl" not in names
    prepare(changed, tokenizer_file, tmp_path / "fresh", 32, 0.1)
    assert digests(output) == digests(tmp_path / "fresh")


def test_damaged_results_are_done_again(interrupted, corpus, tokenizer_file, store_path, digests):
    """As a machine that loses power leaves them: empty, or cut."""
    for number, file in enumerate(sorted(partial_path(interrupted).glob("work/*/*.json"))):
        file.write_bytes(file.read_bytes()[: number * 7])
    prepare(corpus, tokenizer_file, interrupted, 32, 0.1)
    assert digests(interrupted) == digests(store_path)
