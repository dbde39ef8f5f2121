"""The scripts in ``examples/`` and the page about Python run as they stand."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import langsamp_jax
from langsamp_jax.evaluation.encoder import protocol_layer, sentence_encoder
from langsamp_jax.evaluation.retrieval import ranks

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_there_are_three_scripts_of_under_100_lines_that_show_their_command():
    names = [file.name for file in EXAMPLES]
    assert names == ["encode_and_search.py", "language_vectors.py", "train_on_your_text.py"]
    for file in EXAMPLES:
        text = file.read_text("utf-8")
        assert text.count("\n") < 100
        assert f"    python examples/{file.name} " in text


@pytest.mark.slow
def test_search_gives_the_accuracy_of_the_retrieval_protocol(run, corpus):
    text = corpus / "held_out"
    other = next(file.stem for file in sorted(text.glob("*.txt")) if file.stem != "qaa_Latn")
    done = example("encode_and_search.py", run, text, "--queries", "qaa_Latn", "--pool", other)
    assert done.returncode == 0, done.stderr
    model = langsamp_jax.load_model(run)
    encode = sentence_encoder(model, [protocol_layer(model)])
    lines = [(text / f"{n}.txt").read_text("utf-8").splitlines() for n in ("qaa_Latn", other)]
    both = [pair for pair in zip(*lines, strict=True) if all(pair)]
    sides = [encode(side, "qaa_Latn").vectors[0] for side in zip(*both, strict=True)]
    expected = (ranks(*sides) == 0).mean()
    chance = f"chance: {1 / len(both):.1%}"
    assert f"nearest for {expected:.1%} of {len(both)} sentences; {chance}" in done.stdout
    assert both[0][0] in done.stdout


@pytest.mark.slow
def test_language_vectors_are_compared_with_scripts_and_families(run, corpus):
    done = example("language_vectors.py", run, "--families", corpus / "world.json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    model = langsamp_jax.load_model(run)
    codes, table = model.inventory.languages, np.asarray(model.params["conditioning"]["language"])
    assert [line[:3] for line in lines[: len(codes)]] == list(codes)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(len(codes))
    for line, row in zip(lines, cosines, strict=False):
        assert line[5:13] == f"{codes[row.argmax()]} {row.max():.2f}"[:8]
    for line, kind in zip(lines[len(codes) :], ("script", "family"), strict=True):
        found = re.fullmatch(
            rf"{kind}: the nearest is of the same one for (\d+\.\d)% of {len(codes)} languages; "
            r"chance: (\d+\.\d)%, p = (\d\.\d{3})",
            line,
        )
        share, chance, p = map(float, found.groups())
        assert 0 <= share <= 100 and 0 < chance < 100 and 0 < p <= 1


def test_mistakes_are_one_line(run, corpus, tmp_path, store_path):
    search = "encode_and_search.py", run, corpus, "--queries", "qaa_Latn", "--pool", "qzz_Latn"
    for call, line in [
        (search, f"encode_and_search.py: {corpus / 'qzz_Latn.txt'} not found\n"),
        (("train_on_your_text.py", tmp_path / "no", tmp_path / "x"), "not found\n"),
        (("language_vectors.py", store_path), "is neither a run"),
    ]:
        done = example(*call)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert line in done.stderr


@pytest.mark.slow
def test_training_on_a_folder_of_text_ends_with_its_validation_loss(corpus, tmp_path):
    sizes = ["--vocab_size", 600, "--sequence_length", 32, "--steps", 20, "--batch_size", 16]
    call = "train_on_your_text.py", corpus, tmp_path / "out", *sizes
    done = example(*call)
    assert done.returncode == 0, done.stderr
    loss, guess = map(
        float, re.search(r"loss (\S+) nats a token; guessing evenly: (\S+)\n", done.stdout).groups()
    )
    assert loss < guess == pytest.approx(math.log(602), abs=1e-3)
    assert langsamp_jax.load_model(tmp_path / "out" / "run").step == 20
    again = example(*call)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_the_page_about_python_runs(tmp_path, store_path, run, monkeypatch):
    """Its snippets, one after the other, with small sizes for the real ones."""
    text = (ROOT / "docs" / "python.md").read_text("utf-8")
    train, encode, vectors = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.setattr(langsamp_jax, "train", lambda *given, **more: calls.append((given, more)))
    calls, names = [], {}
    exec(train, names)
    (given, more), *rest = calls
    assert not rest and given[:2] == ("store", "run") and set(more) <= {"gin_files", "init_from"}
    monkeypatch.undo()
    load_model = langsamp_jax.load_model
    monkeypatch.setattr(langsamp_jax, "load_model", lambda path: load_model(run), raising=False)
    for code in (encode, vectors):
        exec(code.replace("deu_", "qaa_").replace('"deu"', '"qaa"'), names)
    assert names["vectors"].shape == (2, 32)
    assert len(names["filled"]) == 1 and len(names["filled"][0]) == 5
    assert names["vector"].shape == (32,)
