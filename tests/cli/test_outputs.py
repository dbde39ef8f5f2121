"""Outputs of every kind, for every verb that makes one: it is made there, or refused at once."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langsamp_jax.cli.main import main
from langsamp_jax.io import files
from tests.tiny import SIZES

GIN = [f"--gin.model.{name}={size}" for name, size in SIZES.items()]
GIN += [f"--gin.train.{name}" for name in ("num_steps=4", "global_batch_size=8", "eval_rows=1")]
FOLDERS = ("synthesize", "prepare", "extend", "train", "export", "languages add")
FILES = ("tokenizer train", "mixture", "compare", "evaluate")


@pytest.fixture(scope="module")
def run(make_run, store_path) -> Path:
    return make_run(store_path).path


@pytest.fixture
def command(corpus, tokenizer_file, store_path, run, tmp_path) -> Callable:
    """``command(verb, output)``: the arguments of a quick call."""

    def command(verb: str, output: object) -> list[str]:
        text = ["--corpus", corpus]
        call = {
            "synthesize": ["synthesize", "--languages", 2, "--sentences", 100],
            "prepare": ["prepare", *text, "--tokenizer", tokenizer_file, "--sequence_length", 32],
            "extend": ["tokenizer", "extend", "--base", tokenizer_file, *text, "--new_pieces", 5],
            "train": ["train", "--data", store_path, *GIN],
            "export": ["export", "--run", run, "--full"],
            "languages add": ["languages", "add", "--model", tmp_path / "full"]
            + ["--languages", "quy_Latn", "--start", "random"],
            "tokenizer train": ["tokenizer", "train", *text, "--vocab_size", 300],
            "mixture": ["mixture", "--data", store_path],
            "compare": ["compare", run],
            "evaluate": ["evaluate", "mlm", "--model", run, "--data", store_path],
        }[verb]
        if verb == "languages add":
            main(["export", "--run", str(run), "--full", "--output", str(call[3])])
        option = "--plot" if verb == "mixture" else "--output"
        return [*map(str, call), f"{option}={output}"]

    return command


@pytest.mark.parametrize(
    "verb",
    [pytest.param(verb, marks=[pytest.mark.slow] * (verb == "train")) for verb in FOLDERS],
)
def test_the_working_folder_is_filled(verb, command, tmp_path, monkeypatch):
    arguments = command(verb, ".")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(arguments) == 0
    made = sorted(os.listdir())
    assert made and not [name for name in made if "partial" in name or "claim" in name]


@pytest.mark.parametrize("verb", ["prepare", "export"])
def test_links_and_turns(verb, command, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for output in (tmp_path / "link", tmp_path / "target" / ".." / "new"):
        assert main(command(verb, output)) == 0
    made = [sorted(path.name for path in (tmp_path / at).iterdir()) for at in ("target", "new")]
    assert made[0] == made[1] and (tmp_path / "link").is_symlink()


KINDS = ("a file", "below a file", "a link to nothing", "read-only")
# The system refuses the first file of these two, though not to root, as whom tests may run.
ROOT_MAY = {("train", "read-only"), ("evaluate", "read-only")}


@pytest.mark.parametrize(
    ("verb", "kind"), sorted({(v, k) for v in FOLDERS + FILES for k in KINDS} - ROOT_MAY)
)
def test_no_place_for_it_is_one_line_and_leaves_nothing(
    verb, kind, command, command_refused, tmp_path, monkeypatch
):
    arguments, access = command(verb, "")[:-1], os.access
    place = tmp_path / "at" / "place"
    place.parent.mkdir()
    output = place / "out.svg"
    if kind == "read-only":
        place.mkdir()
        monkeypatch.setattr(
            files.os, "access", lambda path, mode: path != place and access(path, mode)
        )
    elif kind == "below a file":
        place.write_text("mine")
    elif verb in FILES:
        output.mkdir(parents=True)  # what a file is to the other verbs
    else:
        output = place
        place.write_text("mine") if kind == "a file" else place.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    option = "--plot" if verb == "mixture" else "--output"
    assert str(place) in command_refused(*arguments, f"{option}={output}")
    assert sorted(tmp_path.rglob("*")) == before


@settings(max_examples=8)
@given(st.text(st.sampled_from("[]*?{}-%41#'\" ~$&;|:ü日."), min_size=1, max_size=8))
@example("lr[3e-3]")
@example("-a")
@example("$HOME")
@pytest.mark.slow
def test_names_of_stores(tmp_path_factory, corpus, tokenizer_file, name):
    """They are made, opened and drawn from under any name."""
    if not name.strip() or set(name) <= {"."}:
        return
    folder = tmp_path_factory.mktemp("names") / f"in {name}"
    store = folder / name
    prepare = ["prepare", "--corpus", corpus, "--tokenizer", tokenizer_file]
    assert main([*map(str, prepare), "--sequence_length=32", f"--output={store}"]) == 0
    assert main(["inspect", f"--data={store}", "--language=qaa_Latn"]) == 0
    assert main(["mixture", f"--data={store}", "--json"]) == 0
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "a\udce9", "", "gs:/bucket/a", "s3:/bucket/a"])
@pytest.mark.parametrize("verb", ["synthesize", "prepare --corpus c", "train --data s"])
def test_names_that_lead_elsewhere(verb, name, command_refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = command_refused(*verb.split(), f"--output={name}")
    assert "path" in line or "rename that folder" in line
    assert not list(tmp_path.iterdir())
