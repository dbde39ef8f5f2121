"""prepare, interrupted: killed at any moment and called again, it gives the same bytes."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import prepare as module
from data_pipelines.prepare import prepare
from data_pipelines.tokenizer_training import train_tokenizer
from langsamp_jax.files import partial_path
from langsamp_jax.store import Store

# A child that prepares, and dies of SIGKILL when Python opens, renames or removes a file or
# folder for the n-th time, or says how often that happened. Each line of its input is OUTPUT n;
# forks save the imports.
CHILD = """
import os, signal, sys
from pathlib import Path
from data_pipelines.prepare import prepare

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
    """How many moments an uninterrupted call has."""
    return killer(tmp_path_factory.mktemp("moments") / "store", NEVER)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the row files of the languages that ``folder`` records as complete."""
    recorded = [file.stem for file in folder.glob("???_????.json")]
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for name in recorded
        for path in folder.glob(f"*/{name}/**/*")
        if path.is_file()
    }


def still_there(done: dict[str, tuple[int, int]], store: Path) -> bool:
    return all(
        ((store / name).stat().st_ino, (store / name).stat().st_mtime_ns) == was
        for name, was in done.items()
    )


def test_killed_once_at_many_moments(killer, moments, store_path, tmp_path):
    chosen = np.random.default_rng(0).permutation(np.arange(1, moments + 1))[:8]
    partly = 0
    for moment in [1, *chosen.tolist()]:
        output = tmp_path / str(moment)
        assert killer(output, moment) is None
        assert not output.exists()
        done = finished(partial_path(output))
        partly += 0 < len(done)
        killer(output, NEVER)
        assert digests(output) == digests(store_path)
        assert still_there(done, output)
        assert not partial_path(output).exists()
    assert partly > 2


def test_killed_again_and_again(killer, moments, store_path, tmp_path):
    """Each call dies a little later than the last; what is complete is never done again."""
    output, done, deaths = tmp_path / "store", {}, 0
    while killer(output, 12 + 2 * deaths) is None:
        done |= {name: was for name, was in finished(partial_path(output)).items()}
        deaths += 1
        assert deaths < moments
    assert deaths > 3 and len(done) > 10
    assert digests(output) == digests(store_path)
    assert still_there(done, output)


def test_killed_at_the_very_end(killer, moments, store_path, tmp_path):
    """After the last language nothing is left that needs its text: no language is done again."""
    for before_the_end in range(8):
        output = tmp_path / str(before_the_end)
        assert killer(output, moments - before_the_end) is None
        rows = {
            path.relative_to(partial_path(output)): path.stat().st_mtime_ns
            for path in partial_path(output).glob("*/*/c/*/0")
        }
        assert len(rows) == len(Store(store_path).manifest.files)
        killer(output, NEVER)
        assert digests(output) == digests(store_path)
        assert {name: (output / name).stat().st_mtime_ns for name in rows} == rows


def test_killed_at_random_times(corpus, tokenizer_file, store_path, tmp_path):
    """Also in the middle of what TensorStore and SentencePiece do."""
    code = (
        "import sys; from pathlib import Path; from data_pipelines.prepare import prepare\n"
        "print(flush=True); prepare(*map(Path, sys.argv[1:]), 32, 0.1)"
    )
    command = [sys.executable, "-c", code, corpus, tokenizer_file, tmp_path / "store"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for seconds in (0.02, 0.05, 0.08):
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        child.stdout.readline()
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        child.communicate()
    prepare(corpus, tokenizer_file, tmp_path / "store", 32, 0.1)
    assert digests(tmp_path / "store") == digests(store_path)


def interrupt_after(languages: int, monkeypatch, *args) -> None:
    """Calls prepare, which is interrupted at the end of the language after so many."""
    pack, packed = module._pack, []

    def pack_some(file, store, name, *rest):
        packed.append(name)
        counts = pack(file, store, name, *rest)
        if len(packed) > languages:
            raise KeyboardInterrupt
        return counts

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_pack", pack_some)
        prepare(*args)


@pytest.fixture
def interrupted(corpus, tokenizer_file, tmp_path, monkeypatch) -> Path:
    """An output whose partial form has three complete languages and part of a fourth."""
    output = tmp_path / "store"
    interrupt_after(3, monkeypatch, corpus, tokenizer_file, output, 32, 0.1)
    assert not output.exists()
    assert len(list(partial_path(output).glob("*.json"))) == 3
    return output


def repacked(monkeypatch) -> list[str]:
    """Fills up with the language-scripts that are packed from now on."""
    pack, names = module._pack, []
    monkeypatch.setattr(module, "_pack", lambda *args: names.append(args[2]) or pack(*args))
    return names


def test_taken_up_after_ctrl_c(interrupted, corpus, tokenizer_file, store_path, monkeypatch):
    names = repacked(monkeypatch)
    prepare(corpus, tokenizer_file, interrupted, 32, 0.1)
    assert names == list(Store(store_path).manifest.names[3:])
    assert digests(interrupted) == digests(store_path)


@pytest.mark.parametrize(("length", "fraction"), [(16, 0.1), (32, 0.2), (64, 0)])
def test_work_of_other_settings_is_not_used(
    length, fraction, interrupted, corpus, tokenizer_file, tmp_path
):
    prepare(corpus, tokenizer_file, interrupted, length, fraction)
    prepare(corpus, tokenizer_file, tmp_path / "fresh", length, fraction)
    assert digests(interrupted) == digests(tmp_path / "fresh")


def test_changed_settings_after_the_very_end_and_halfway_again(
    corpus, tokenizer_file, tmp_path, monkeypatch
):
    """What the first call left must not pass for the second's work, or stand in its way."""
    output = tmp_path / "store"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "promote", lambda *_: signal.raise_signal(signal.SIGINT))
        prepare(corpus, tokenizer_file, output, 32, 0.1)
    interrupt_after(3, monkeypatch, corpus, tokenizer_file, output, 16, 0.1)
    prepare(corpus, tokenizer_file, output, 16, 0.1)
    prepare(corpus, tokenizer_file, tmp_path / "fresh", 16, 0.1)
    assert digests(output) == digests(tmp_path / "fresh")


def test_work_of_another_tokenizer_is_not_used(interrupted, corpus, tmp_path):
    other = tmp_path / "other.model"
    train_tokenizer(corpus, 300, other)
    prepare(corpus, other, interrupted, 32, 0.1)
    prepare(corpus, other, tmp_path / "fresh", 32, 0.1)
    assert digests(interrupted) == digests(tmp_path / "fresh")


def test_work_on_other_text_is_not_used(interrupted, corpus, tokenizer_file, tmp_path, monkeypatch):
    """One of the complete languages has new text, one is gone, and one is new."""
    changed = shutil.copytree(corpus, tmp_path / "changed")
    with open(changed / "qaa_Latn.txt", "a", encoding="utf-8") as file:
        file.write("one more line\n")
    (changed / "qaa_Cyrl.txt").rename(changed / "qaz_Cyrl.txt")
    names = repacked(monkeypatch)
    prepare(changed, tokenizer_file, interrupted, 32, 0.1)
    assert names[0] == "qaa_Latn" and "qab_Cyrl" not in names and names[-1] == "qaz_Cyrl"
    prepare(changed, tokenizer_file, tmp_path / "fresh", 32, 0.1)
    assert digests(interrupted) == digests(tmp_path / "fresh")


def test_records_say_what_they_are_of(interrupted, tokenizer_file):
    record = json.loads((partial_path(interrupted) / "qaa_Latn.json").read_text("utf-8"))
    fingerprint = hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()
    assert record["settings"]["tokenizer"] == fingerprint
    assert record["settings"]["sequence_length"] == 32
