"""Labels of concepts: those of a world, words of real text, and which are left out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.synthetic.world import synthesize
from langsamp_jax.languages.aligned_text import parallel_sentences
from langsamp_jax.neurons.concept_labels import FEWEST, halves, label

NAME = "eng_Latn"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("concepts") / "world"
    synthesize(folder, num_languages=3, num_sentences=100, num_held_out=400)
    return folder


def labelled(data: Path, most: int = 50):
    lines, numbers, _ = parallel_sentences(data, 10)
    return label(data, lines, numbers, NAME, most), lines, numbers


def test_concepts_of_a_world_are_those_of_its_lines(world):
    known, lines, numbers = labelled(world / "held_out")
    told = json.loads((world / "world.json").read_text())["concepts"]
    assert len(known.names) >= 5 and known.source.endswith("world.json")
    half = halves(len(numbers))
    for name, has, words in zip(known.names, known.labels.T, known.words, strict=True):
        assert [*map(int, told[name]["lines"].split())] == np.flatnonzero(has).tolist()
        for language, forms in words.items():
            spoken = [bool(set(line.strip(".?!").replace(",", "").split()) & set(forms))
                      for line in lines[language]]  # fmt: skip
            assert (has <= spoken).all(), (name, language)
        assert min(has[half].sum(), has[~half].sum()) >= FEWEST and has.mean() <= 0.075
    counts = known.labels.sum(axis=0)
    assert (np.diff(counts) <= 0).all()  # the commonest first
    phi = np.corrcoef(known.labels.T) - np.eye(len(counts))
    assert np.abs(phi).max() < 0.2
    assert sum(map(len, known.left_out.values())) == len(told) - len(counts)
    assert known.left_out["too rare"] and known.left_out["too common"]
    assert known.families["qaa_Latn"] == known.families["qaa_Cyrl"]


def test_some_of_the_lines_of_a_world(world, tmp_path):
    """A language without a line takes it from all; labels stay with their lines."""
    folder = tmp_path / "world"
    shutil.copytree(world, folder)
    file = folder / "held_out" / "qaa_Latn.txt"
    text = file.read_text("utf-8").splitlines()
    text[:7] = [""] * 7
    file.write_text("\n".join(text) + "\n", "utf-8")
    known, _, numbers = labelled(folder / "held_out")
    assert numbers[0] == 7
    whole, *_ = labelled(world / "held_out")
    name = next(name for name in known.names if name in whole.names)
    np.testing.assert_array_equal(
        known.labels[:, known.names.index(name)], whole.labels[7:, whole.names.index(name)]
    )


def test_at_most_so_many(world):
    known, *_ = labelled(world / "held_out", 3)
    assert len(known.names) == 3 and known.left_out["not asked for"]


@pytest.fixture
def text(tmp_path) -> Path:
    """400 lines: ``river`` or ``rivers`` in 24, ``stone`` in 24, ``glass`` in 28, all others in
    every line or once; ``mossy`` wherever ``stone`` is."""
    rng = np.random.default_rng(0)
    lines = [["within", "the", f"w{chr(97 + i % 26) * 4}x{'y' * (i // 26)}"] for i in range(400)]
    places = rng.permutation(400)
    for k, i in enumerate(places[:76]):
        words = (
            ("Rivers," if k % 2 else "river") if k < 24 else "stone mossy" if k < 48 else "glass"
        )
        lines[i].append(words)
    (tmp_path / "eng_Latn.txt").write_text("\n".join(map(" ".join, lines)) + "\n")
    (tmp_path / "deu_Latn.txt").write_text("\n".join(f"z{i}" for i in range(400)) + "\n")
    return tmp_path


def test_concepts_of_real_text_are_words_of_the_pivot(text):
    known, *_ = labelled(text)
    assert known.names == ["glass", "mossy", "river"]
    assert known.labels.sum(axis=0).tolist() == [28, 24, 24]
    assert known.words[2] == {NAME: ["river", "rivers"]} and known.words[0] == {NAME: ["glass"]}
    assert known.left_out["with another"] == ["stone"] and known.left_out["too common"] == [
        "within"
    ]
    assert len(known.left_out["too rare"]) == 400 and known.source == "words of eng_Latn"


def test_what_cannot_be_labelled_is_refused(text, world, tmp_path_factory, refused):
    lines, numbers, _ = parallel_sentences(text, 10)
    line = refused(label, text, lines, numbers, "fra_Latn", 50)
    assert "fra_Latn" in line and "--pivot" in line
    few = {name: sentences[:30] for name, sentences in lines.items()}
    line = refused(label, text, few, numbers[:30], NAME, 50)
    assert "give more sentences" in line
    folder = tmp_path_factory.mktemp("old")
    (folder / "held_out").mkdir()
    (folder / "world.json").write_text(json.dumps({"language_scripts": {}}))
    line = refused(label, folder / "held_out", lines, numbers, NAME, 50)
    assert "synthesize" in line


def test_halves_are_halves_and_always_the_same():
    half = halves(1001)
    assert half.sum() == 500
    np.testing.assert_array_equal(half, halves(1001))
