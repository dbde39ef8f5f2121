"""The code gives bit for bit what that of commit 592d2a0 gave: see `witness/make.py`.

Nothing here imports the package: the command line and the formats of files are what stays. Stores,
corpora and exports are the same on every machine. What is trained or measured is the same where
processor and JAX are those of `witness/environment.json`; on others it may differ by rounding.
"""

import json
import os
import shutil
import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "witness"
WITNESS = Path(os.environ.get("WITNESS", HERE))  # one that was made on this machine, or the usual


def load_make() -> Any:
    """Imports `witness/make.py`, which is in no package."""
    spec = spec_from_file_location("witness_make", HERE / "make.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()


def expected(name: str) -> Any:
    return json.loads((WITNESS / f"{name}.json").read_text("utf-8"))


SAME_ARITHMETIC = make.environment() == expected("environment")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled code: of this session alone, so that all of it is compiled by the code under test,
    and once."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def langsamp(tmp_path: Path, cache: Path):
    """``langsamp(command)`` runs it in ``tmp_path``."""
    return lambda command: make.langsamp(command, tmp_path, cache)


def put(folder: Path, *names: str) -> None:
    """Copies parts of the witness to ``folder``, the tokenizer to all that need it."""
    for name in names:
        shutil.copytree(WITNESS / name, folder / name)
        if name in ("store", "run"):
            shutil.copy(WITNESS / "tokenizer.model", folder / name)


def assert_same_files(found: Path, wanted: Path) -> None:
    """Every file, and the bytes of every file."""
    files = [
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (found, wanted)
    ]
    assert sorted(files[0]) == sorted(files[1])
    assert [name for name in files[1] if files[0][name] != files[1][name]] == []


def assert_same_numbers(found: Any, wanted: Any) -> None:
    """Compares the texts of all numbers where the arithmetic is the same; else, with a warning,
    five digits of each."""
    if SAME_ARITHMETIC:
        assert json.dumps(found, indent=1) == json.dumps(wanted, indent=1)
    else:
        warnings.warn("compared to five digits: this is not the witness's arithmetic", stacklevel=2)
        assert_close(found, wanted)


def assert_close(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        found, wanted = list(found.values()), list(wanted.values())
    if isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    else:
        assert found == wanted


def assert_same_end(run: Path) -> None:
    """The parameters and the optimizer's state at the last step."""
    found, wanted = make.state(run, make.STEPS), expected("state")
    if not SAME_ARITHMETIC:  # then the last validation loss speaks for the values
        found, wanted = ({name: s[name][:2] for name in s} for s in (found, wanted))
    assert found == wanted


def test_the_corpus_is_written_as_before(tmp_path, langsamp):
    langsamp(make.SYNTHESIZE)
    corpus = tmp_path / "corpus"
    (corpus / "held_out" / "labels.tsv").unlink()
    for file in (corpus / "held_out").iterdir():
        lines = file.read_text("utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[: make.HELD_OUT_LINES]), "utf-8")
    found, wanted = (folder / "world.json" for folder in (corpus, WITNESS / "corpus"))
    world = json.loads(found.read_bytes())
    del world["concepts"]  # which the witness did not tell
    found.write_text(json.dumps(world, indent=1, ensure_ascii=False) + "\n", "utf-8")
    assert found.read_bytes() == wanted.read_bytes()
    # Its digests stand for the lines that are cut off here.
    assert_same_files(corpus, WITNESS / "corpus")


@pytest.mark.skipif(not SAME_ARITHMETIC, reason="SentencePiece rounds otherwise here")
def test_the_tokenizer_is_trained_as_before(tmp_path, langsamp):
    put(tmp_path, "corpus")
    langsamp(make.TOKENIZER)
    found, wanted = (folder / "tokenizer.model" for folder in (tmp_path, WITNESS))
    assert found.read_bytes() == wanted.read_bytes()


def test_the_store_is_packed_as_before(tmp_path, langsamp):
    put(tmp_path, "corpus")
    shutil.copy(WITNESS / "tokenizer.model", tmp_path)
    langsamp(make.PREPARE)
    found, wanted = (folder / "tokenizer.model" for folder in (tmp_path / "store", WITNESS))
    assert found.read_bytes() == wanted.read_bytes()
    found.unlink()  # the witness has it once, not once more in its store
    found, wanted = (folder / "store" / "origin.json" for folder in (tmp_path, WITNESS))
    origin = json.loads(found.read_bytes())
    for facts in origin["report"].values():
        del facts["text"]  # counts of pieces that stand for text, which the witness did not tell
    assert origin == json.loads(wanted.read_bytes())
    shutil.copy(wanted, found)
    assert_same_files(tmp_path / "store", WITNESS / "store")


@pytest.mark.parametrize("form", make.EXPORTS)
def test_a_checkpoint_is_exported_as_before(form, tmp_path, langsamp):
    put(tmp_path, "run")
    langsamp([*make.EXPORT, *make.EXPORTS[form]])
    assert make.digests(tmp_path / "exported") == expected("exports")[form]


@pytest.mark.slow
def test_a_run_goes_on_as_before(tmp_path, langsamp):
    put(tmp_path, "store", "run")
    langsamp(make.TRAIN)
    later = [line for line in expected("metrics") if line["step"] > make.KEPT]
    assert sum("train/loss" in line for line in later) == 10
    found = [line for line in make.metrics(tmp_path / "run") if line["step"] > make.KEPT]
    assert_same_numbers(found, later)
    assert_same_end(tmp_path / "run")


@pytest.mark.slow
def test_a_run_starts_as_before(tmp_path, langsamp):
    put(tmp_path, "store")
    langsamp(make.TRAIN)
    run = tmp_path / "run"
    assert_same_numbers(make.metrics(run), expected("metrics"))
    assert_same_end(run)
    own_bytes, witness_bytes = (
        [(folder / name).read_bytes() for name in ("config.gin", "inventory.json")]
        for folder in (run, WITNESS / "run")
    )
    for setting in (b"train.snapshots = 'none'\n", b"train.snapshot_every = None\n"):
        assert own_bytes[0].count(setting) == 1  # which the witness did not tell
        own_bytes[0] = own_bytes[0].replace(setting, b"")
    assert own_bytes == witness_bytes
    found, wanted = (
        json.loads((folder / "run.json").read_text("utf-8")) for folder in (run, WITNESS / "run")
    )
    own = ("id", "started")
    # What the witness did not tell; two settings, which do nothing unless they are asked for.
    assert Path(found.pop("store_path")) == tmp_path / "store"
    assert found["settings"].pop("train.snapshots") == "none"
    assert found["settings"].pop("train.snapshot_every") is None
    assert list(found) == [*wanted, "weights", "environment"]
    assert [k for k in wanted if k not in own and found[k] != wanted[k]] == []


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=() if task == "mlm" else pytest.mark.slow)
        for task in make.EVALUATIONS
    ],
)
def test_a_checkpoint_is_evaluated_as_before(task, tmp_path, langsamp):
    put(tmp_path, "corpus", "store", "run")
    langsamp(make.EVALUATIONS[task])
    records = make.result(tmp_path / f"{task}.json"), expected("evaluations")[task]
    for record in records if task == "mlm" else ():
        # The baseline is another one on purpose: that of the witness was the entropy of the
        # validation tokens under their own frequencies. Losses, rows and targets are the same.
        for part in (record, *record["languages"]):
            for field in ("unigram_entropy", "unigram_loss", "unigram_tokens"):
                part.pop(field, None)
    assert_same_numbers(*records)
