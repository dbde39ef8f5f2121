"""Beam gives the store that this process gives."""

import errno
import tempfile

import pytest

from data_pipelines.corpus import sources
from data_pipelines.packing.prepare import prepare
from data_pipelines.packing.runner import run
from langsamp_jax.cli.main import main
from langsamp_jax.errors import UserError

pytest.importorskip("apache_beam")

from data_pipelines.packing.beam import BeamRunner

pytestmark = pytest.mark.slow

TWO_PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Beam leaves an empty folder behind, where temporary ones are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def double(key: str, item: int) -> dict[str, int]:
    if item == 13:
        raise UserError("13 cannot be doubled")
    if item == 14:
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")
    return {"doubled": 2 * item}


@pytest.mark.parametrize("options", [[], TWO_PROCESSES], ids=["threads", "processes"])
def test_beam_gives_the_bytes_of_one_process(
    options, corpus, tokenizer_file, tmp_path, monkeypatch, digests
):
    monkeypatch.setattr(sources, "RANGE_BYTES", 20_000)
    monkeypatch.setattr("data_pipelines.packing.rows._FILES_AT_ONCE", 1)
    prepare(corpus, tokenizer_file, tmp_path / "one", 8, 0.1)
    prepare(corpus, tokenizer_file, tmp_path / "beam", 8, 0.1, runner=BeamRunner(options))
    assert digests(tmp_path / "beam") == digests(tmp_path / "one")


def test_every_item_is_done_once(tmp_path):
    items, done = {f"key-{n}": n for n in range(8)}, []
    (tmp_path / "key-3.json").write_text('{"result": {"doubled": "before"}}')
    results = run(double, tmp_path, items, BeamRunner([]), done.append)
    assert [result["doubled"] for result in results.values()] == [0, 2, 4, "before", 8, 10, 12, 14]
    assert sorted(done) == list(range(8))
    assert run(double, tmp_path, items, BeamRunner([]), done.append) == results


@pytest.mark.parametrize(("item", "kind"), [(13, UserError), (14, OSError)])
def test_an_item_that_fails_is_raised_here(item, kind, tmp_path):
    with pytest.raises(kind) as error:
        run(double, tmp_path, {"a": 1, "b": item}, BeamRunner([]), lambda item: None)
    expected = {13: "13 cannot be doubled", 14: "[Errno 28] No space left on device: '/some/file'"}
    assert str(error.value) == expected[item]


@pytest.mark.parametrize(
    "options", [["--direct_num_workers=many"], ["--direct_running_mode=everywhere"], ["--runner"]]
)
def test_options_that_beam_refuses_are_one_line(options):
    with pytest.raises(UserError) as error:
        BeamRunner(options)
    message = str(error.value)
    assert "\n" not in message and options[0].partition("=")[0] in message


def test_the_command(corpus, tokenizer_file, tmp_path, store_path, digests, capfd):
    words = ["prepare", "--corpus", corpus, "--tokenizer", tokenizer_file]
    words += ["--output", tmp_path / "store", "--sequence_length", 32]
    words += ["--validation_fraction", 0.1, "--runner", "beam"]
    assert main([*map(str, words), "--beam_options=--direct_num_workers=1"]) == 0
    assert digests(tmp_path / "store") == digests(store_path)
    assert str(tmp_path / "store") in capfd.readouterr().out
    assert main([*map(str, words), "--beam_options=--direct_num_workers=many"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("langsamp: ") and said.count("\n") == 1
