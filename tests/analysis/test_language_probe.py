"""What a probe says of states whose languages are known to be there, or not."""

import json

import numpy as np
import pytest

from langsamp_jax.analysis.language_probe import (
    SEEDS,
    Tokens,
    controls,
    over_steps,
    probe_seed,
    read_tokens,
    show,
)
from langsamp_jax.cli.main import main
from langsamp_jax.evaluation.batching import split_lines

LAYERS, LANGUAGES, SENTENCES, WIDTH = 2, 4, 90, 16
SCRIPTS = np.array([0, 0, 0, 1])
SAME_SCRIPT = SCRIPTS[:, None] == SCRIPTS


def tokens(seed: int = 0, scripts: float = 0.0, languages: float = 0.0) -> Tokens:
    """Layer 0 is noise, layer 1 has a vector of the language and of the script; pieces are shared
    by all languages."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(LAYERS, LANGUAGES, SENTENCES, WIDTH))
    states[1] += languages * rng.normal(size=(LANGUAGES, 1, WIDTH))
    states[1] += scripts * rng.normal(size=(2, WIDTH))[SCRIPTS][:, None]
    pieces = rng.integers(10, 40, (LANGUAGES, SENTENCES))
    return Tokens(states.astype(np.float32), pieces.astype(np.int32))


def test_a_language_is_told_where_it_is():
    found = probe_seed(tokens(languages=3.0), SAME_SCRIPT, 0)
    assert found["accuracy"][1] > 0.95 and abs(found["accuracy"][0] - 1 / LANGUAGES) < 0.12
    assert found["cross_entropy"][1] < 0.3 < found["cross_entropy"][0]
    assert np.allclose(np.mean(found["correct"], axis=1), found["accuracy"])
    assert max(found["control"]) < 0.45  # pieces are in no state
    assert found["unseen_tokens"] == 0 and found["unseen_pieces"] is None


def test_scripts_alone_are_no_languages_within_a_script():
    found = probe_seed(tokens(scripts=5.0), SAME_SCRIPT, 0)
    assert found["accuracy"][1] > 0.4  # the language that is alone in its script, and guesses
    chance = (1 / SAME_SCRIPT.sum(axis=1)).mean()
    assert abs(found["within_script"][1] - chance) < 0.12


@pytest.mark.slow
def test_a_probe_that_knows_pieces_does_well_on_the_control_task_and_on_no_new_piece():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(500, 64))
    pieces = rng.integers(0, 12, (LANGUAGES, SENTENCES)) + 100 * np.arange(LANGUAGES)[:, None]
    new = 12 + np.arange(SENTENCES)  # pieces that occur in one sentence alone
    pieces = np.where(rng.random(pieces.shape) < 0.2, pieces // 100 * 100 + new, pieces)
    pieces = pieces.astype(np.int32)
    states = embeddings[pieces][None].astype(np.float32)
    found = probe_seed(Tokens(states, pieces), SAME_SCRIPT, 0)
    assert found["accuracy"][0] > 0.6 and found["control"][0] > 0.5
    assert found["unseen_pieces"][0] < found["accuracy"][0] - 0.1


@pytest.mark.slow
def test_controls_pass_on_honest_states_and_fail_where_sentences_leak():
    for strength in (0.0, 3.0):
        found = controls(tokens(languages=strength))
        assert all(control["ok"] for control in found.values()), found
    ok = {"value": 0.7, "expected": [0.4, 0.6], "ok": False}
    record = {"step": 3, "controls": {"halves of a language": ok}, "languages": ["qaa_Latn"]}
    arrays = ("accuracy", "cross_entropy", "control", "unseen_pieces", "within_script")
    record |= dict.fromkeys((*arrays, "low", "high"), [0.5]) | {"seeds": [[0.5]]}
    record |= {"chance": 0.5, "chance_within_script": 1.0, "unseen_tokens": 0, "skipped": {}}
    text = show(over_steps([record | {"sentences": 90, "truncated": 0}]))
    assert "CONTROL FAILED: halves of a language: 0.7, expected [0.4, 0.6]" in text


def test_a_token_is_never_special_and_the_same_at_every_step(random_model, lines):
    model = random_model()
    special = model.tokenizer.vocabulary.special_ids
    text = {"qaa_Latn": lines[:8], "qab_Latn": lines[8:16]}
    first, cut = read_tokens(model, text)
    ids = split_lines(*model.tokenizer.encode(lines[:16]))
    assert len(first) == SEEDS and cut == sum(len(sentence) > 40 for sentence in ids)
    for each in first:
        assert each.states.shape == (4, 2, 8, 32)
        for sentence, piece in zip(ids, each.pieces.ravel(), strict=True):
            assert piece in sentence and piece not in special
    assert any((first[0].pieces != other.pieces).any() for other in first[1:])
    again, _ = read_tokens(model, text)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.states, other.states)
    # Layer 0 of a token is a function of its piece and its place; here: of the right sentence.
    alone, _ = read_tokens(model, {"qaa_Latn": lines[2:3]})
    for one, other in zip(first, alone, strict=True):
        np.testing.assert_allclose(one.states[:, 0, 2], other.states[:, 0, 0], atol=1e-5)


@pytest.mark.slow
def test_the_command(run, corpus, capsys):
    held_out = corpus / "held_out"
    call = ["evaluate", "language-probe", "--model", run, "--data", held_out, "--sentences", "60"]
    assert main([*map(str, call)]) == 0, capsys.readouterr().err
    record = json.loads((run / "evaluation" / "language-probe.json").read_bytes())
    assert record["steps"] == [3] and record["layers"] == 4
    names = sorted(file.stem for file in held_out.glob("*.txt"))
    assert record["languages"] == names and record["chance"] == 1 / len(names)
    for name in ("accuracy", "control", "low", "high"):
        assert len(record[name]) == 1 and len(record[name][0]) == 4
    assert all(control["ok"] for control in record["controls"].values())
    assert "chance 16.7%" in capsys.readouterr().out


def test_too_few_sentences_are_refused(run, tmp_path, write_corpus, capsys):
    corpus = write_corpus(tmp_path / "corpus", qaa_Latn=["a"] * 5, qab_Latn=["b"] * 5)
    call = ["evaluate", "language-probe", "--model", run, "--data", corpus]
    assert main([*map(str, call)]) == 2
    assert "no two languages with 30 aligned lines in common" in capsys.readouterr().err
