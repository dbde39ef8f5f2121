"""The command keeps what it has compiled, where the user wants it, and lives without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from langsamp_jax.hardware import compilation_cache
from langsamp_jax.hardware.compilation_cache import keep_compiled


@pytest.fixture
def bare(monkeypatch, tmp_path) -> Path:
    """An environment that says nothing of the cache, with a home; the home."""
    for name in list(os.environ):
        if name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    # so that what is set here is gone afterwards
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return tmp_path


def test_it_is_in_the_users_cache_folder(bare):
    keep_compiled()
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder.is_dir() and folder.parent == bare / ".cache" / "langsamp"


def testprocessors_with_other_instructions_share_nothing(bare, monkeypatch):
    folders = set()
    for processor in ("one", "another"):
        monkeypatch.setattr(compilation_cache, "processor", lambda name=processor: name)
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        keep_compiled()
        folders.add(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert len(folders) == 2


def test_what_the_user_has_set_stays(bare):
    for folder in ("/elsewhere", ""):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        keep_compiled()
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == folder


def test_no_cache_where_nothing_can_be_written(bare):
    os.environ["XDG_CACHE_HOME"] = "/proc/no"
    keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.slow
def test_a_second_command_compiles_nothing(bare, store_path):
    """JAX says for every program whether it was found."""
    code = (
        "import sys, collections\n"
        "from langsamp_jax.cli.main import main\n"
        "from langsamp_jax.hardware.compilation_cache import keep_compiled\n"
        "keep_compiled()\n"
        "import jax\n"
        "seen = collections.Counter()\n"
        "jax.monitoring.register_event_listener(lambda event, **_: seen.update([event]))\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(*(seen['/jax/compilation_cache/cache_' + what] for what in ('hits', 'misses')))"
    )
    call = ["train", "--data", store_path, "--gin_file", "models/tiny.gin"]
    call += ["--gin.train.num_steps=1", "--gin.train.global_batch_size=8"]
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    counts = []
    for run in ("first", "second"):
        command = [sys.executable, "-c", code, *call, "--output", bare / run]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        counts.append([int(count) for count in done.stdout.split()[-2:]])
    (_, missed), (hits, missed_again) = counts
    assert missed > 0 and hits >= missed and missed_again == 0
