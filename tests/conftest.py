"""A small world for all tests: a corpus, a tokenizer trained on it, and a store of both.

Beside it, files and corpora by hand, and what a user's mistake must come to: one line.
"""

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.compilation import close_session, open_session

# Before jax is imported anywhere; processes that tests start inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = open_session()
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = "-1"  # with a bound it would wait for a lock
# Most of what so small models take is compiling: without LLVM's passes a third to a half less.
# ``optimized`` is for what must be compiled as a user's program is.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import gin
import jax
import pytest
from hypothesis import settings

from data_pipelines.packing.prepare import prepare
from data_pipelines.synthetic.world import synthesize
from data_pipelines.tokenizers.training import train_tokenizer
from langsamp_jax.cli.main import main
from langsamp_jax.errors import UserError

pytest_plugins = ["tests.checkpoints", "tests.evaluated"]

# A job in the background of a shell ignores these, and so would all that tests start and signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No deadline: a loaded machine is no failure. Derandomized: the same examples in every run.
settings.register_profile("langsamp", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("langsamp")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Keeps what has been compiled; what a worker has is its session's."""
    if not hasattr(config, "workerinput"):
        close_session(os.environ["JAX_COMPILATION_CACHE_DIR"])


# Each is a unit of --dist loadfile, and the end waits for whichever begins last.
LONGEST = (
    *("test_processes.py", "test_interrupted.py", "test_remote_run.py", "test_devices.py"),
    *("test_snapshots.py", "test_finetune.py", "test_live.py", "test_training.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first; all else stays in its order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 language-scripts with 1,000 to 10 lines, one language in two scripts; ``held_out/``."""
    folder = tmp_path_factory.mktemp("world") / "corpus"
    synthesize(folder, num_languages=6, num_sentences=1000, seed=1, num_held_out=100)
    return folder


@pytest.fixture(scope="session")
def tokenizer_file(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 pieces trained on ``corpus``."""
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(corpus, 600, file)
    return file


@pytest.fixture(scope="session")
def store_path(
    corpus: Path, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """``corpus`` in rows of 32 tokens, a tenth of its lines held out. Not to be written to."""
    store = tmp_path_factory.mktemp("store") / "store"
    prepare(corpus, tokenizer_file, store, sequence_length=32, validation_fraction=0.1)
    return store


@pytest.fixture(scope="session")
def write_files() -> Callable[[Path, Mapping[str, str | bytes]], Path]:
    """``write_files(folder, {"deu_Latn/test.tsv": text, ...})``: gives the folder."""

    def write_files(folder: Path, files: Mapping[str, str | bytes]) -> Path:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            data = text if isinstance(text, bytes) else text.encode("utf-8")
            (folder / name).write_bytes(data)
        return folder

    return write_files


@pytest.fixture(scope="session")
def write_corpus() -> Callable[..., Path]:
    """``write_corpus(folder, qaa_Latn=[line, ...], ...)``: a new folder of text by language."""

    def write_corpus(folder: Path, **languages: Sequence[str]) -> Path:
        folder.mkdir(parents=True)
        for name, lines in languages.items():
            (folder / f"{name}.txt").write_text("".join(line + "\n" for line in lines), "utf-8")
        return folder

    return write_corpus


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """``refused(call, *arguments, **options)``: the one line of the UserError of that call."""

    def refused(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            call(*arguments, **options)
        line = str(error.value)
        assert "\n" not in line, line
        return line

    return refused


@pytest.fixture
def command_refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``command_refused("train", "--data", store, ...)``: the one line that ``langsamp`` prints
    of a bad call, and nothing else; it exits with 2."""

    def command_refused(*arguments: object) -> str:
        capsys.readouterr()
        try:
            status, start = main([str(argument) for argument in arguments]), "langsamp: "
        except SystemExit as stop:  # argparse's own way out, which names the verb
            status, start = stop.code, "langsamp"
        printed, line = capsys.readouterr()
        assert (status, printed) == (2, ""), line
        assert line.count("\n") == 1 and line.endswith("\n") and line.startswith(start), line
        return line

    return command_refused


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """``digests(folder)``: the hash of every file in it, by its path there."""

    def digests(folder: Path) -> dict[str, str]:
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return digests


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data in ``shared/data`` beside the checkout; the test is skipped where there is none."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data in shared/data beside the checkout")
    return folder


@pytest.fixture(autouse=True)
def clear_gin(monkeypatch: pytest.MonkeyPatch):
    """Every test starts and ends with no bindings and no folders in which gin looks for files."""
    monkeypatch.setattr("gin.config._LOCATION_PREFIXES", [""])
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """Compiles as a user's program is compiled: where numbers are compared closely with those of
    another implementation. What has been compiled otherwise is forgotten."""
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB; the test is skipped where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
