"""What a probe says of states whose languages are known to be there, or not."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from langsamp_jax.analysis.language_probe import (
    MEANS,
    SEEDS,
    Tokens,
    chance_within_script,
    control_states,
    evaluate,
    held_out,
    judged,
    over_steps,
    probe_seed,
    read_tokens,
    show,
)
from langsamp_jax.cli.main import main
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.batching import split_lines

LAYERS, LANGUAGES, SENTENCES, WIDTH = 2, 4, 90, 16
SCRIPTS = np.array([0, 0, 0, 1])
SAME_SCRIPT = SCRIPTS[:, None] == SCRIPTS
TEST = held_out((LANGUAGES, SENTENCES))


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
    found = probe_seed(tokens(languages=3.0), SAME_SCRIPT, TEST, 0)
    assert found["accuracy"][1] > 0.95 and abs(found["accuracy"][0] - 1 / LANGUAGES) < 0.12
    assert found["cross_entropy"][1] < 0.3 < found["cross_entropy"][0]
    assert np.allclose(np.mean(found["correct"], axis=1), found["accuracy"])
    assert max(found["control"]) < 0.45  # pieces are in no state
    assert found["unseen_tokens"] == 0 and found["unseen_pieces"] is None


def test_scripts_alone_are_no_languages_within_a_script():
    """Over the three languages that share one; the fourth, alone in its script, cannot be wrong."""
    found = probe_seed(tokens(scripts=5.0), SAME_SCRIPT, TEST, 0)
    assert found["accuracy"][1] > 0.4  # the language that is alone in its script, and guesses
    chance = chance_within_script(SAME_SCRIPT)
    assert chance == pytest.approx(1 / 3)
    assert abs(found["within_script"][1] - chance) < 0.12


@pytest.mark.slow
def test_where_each_language_is_alone_in_its_script_nothing_is_within_one():
    alone = np.eye(LANGUAGES, dtype=bool)
    assert probe_seed(tokens(), alone, TEST, 0)["within_script"] is None
    assert chance_within_script(alone) is None
    nothing = {"within_script": None, "chance_within_script": None, "languages_within_script": 0}
    shown = show(over_steps([record_of(tokens()) | nothing]))
    assert "no two languages of one script" in shown and "within a script" not in shown


@pytest.mark.slow
def test_a_probe_that_knows_pieces_does_well_on_the_control_task_and_on_no_new_piece():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(500, 64))
    pieces = rng.integers(0, 12, (LANGUAGES, SENTENCES)) + 100 * np.arange(LANGUAGES)[:, None]
    new = 12 + np.arange(SENTENCES)  # pieces that occur in one sentence alone
    pieces = np.where(rng.random(pieces.shape) < 0.2, pieces // 100 * 100 + new, pieces)
    pieces = pieces.astype(np.int32)
    states = embeddings[pieces][None].astype(np.float32)
    found = probe_seed(Tokens(states, pieces), SAME_SCRIPT, TEST, 0)
    assert found["accuracy"][0] > 0.6 and found["control"][0] > 0.5
    assert found["unseen_pieces"][0] < found["accuracy"][0] - 0.1


def with_content(strength: float, width: int = 64) -> Tokens:
    """A vector of each sentence in all its languages: a translation says the same."""
    rng = np.random.default_rng(1)
    states = rng.normal(size=(LAYERS, LANGUAGES, SENTENCES, width))
    states[1] += strength * rng.normal(size=(SENTENCES, width))
    pieces = rng.integers(10, 40, (LANGUAGES, SENTENCES))
    return Tokens(states.astype(np.float32), pieces.astype(np.int32))


def record_of(given: Tokens, test: np.ndarray = TEST, step: int = 3, **fields: Any) -> dict:
    """A record of a step with the controls of some states."""
    record = dict.fromkeys((*MEANS, "low", "high"), [0.5] * LAYERS) | {"seeds": [[0.5] * LAYERS]}
    record |= {"chance": 0.25, "chance_within_script": 1 / 3, "languages_within_script": 3}
    record |= {"languages": ["qaa_Latn"] * 4, "sentences": SENTENCES, "unseen_tokens": 0}
    record |= {"truncated": 0, "skipped": {}, "step": step}
    return record | {"control_states": control_states(given, test)} | fields


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(with_content(0.0), marks=pytest.mark.slow),
        tokens(languages=3.0),
        pytest.param(with_content(3.0), marks=pytest.mark.slow),
    ],
)
def test_controls_pass_on_honest_states(given):
    found = judged([control_states(given, TEST)])
    assert all(control["ok"] for control in found.values()), found


def test_controls_fail_where_sentences_leak():
    """Sentences that are in training in some languages and in test in others: found although the
    steps before are sound, and named once."""
    number = np.arange(SENTENCES)
    leaking = np.stack([(number + language) % 3 == 0 for language in range(LANGUAGES)])
    steps = [record_of(with_content(0.0), leaking, step) for step in range(3)]
    sound = over_steps(steps)["controls"]
    assert sound["random classes of sentences, p"]["ok"], sound
    leaked = [*steps, record_of(with_content(3.0), leaking, 3)]
    record = over_steps(leaked)
    assert record["controls"]["random classes of sentences, p"]["value"] < 0.01
    lines = [line for line in show(record).splitlines() if "CONTROL FAILED" in line]
    assert len(lines) == 1 and "random classes of sentences, p: 0.0" in lines[0]


def test_many_sound_steps_fail_no_more_often_than_one():
    """Of 100 series of 22 steps without any signal, p is below 0.05 in about 5."""
    rng = np.random.default_rng(0)
    shape = 22, LAYERS, SENTENCES // 3
    failed = 0
    for _ in range(100):
        excess = rng.choice((-1.0, 1.0), shape[-1]) * rng.integers(-2, 3, shape)
        steps = [{"excess": layers.tolist(), "planted": 1.0} for layers in excess]
        failed += not judged(steps)["random classes of sentences, p"]["ok"]
    assert failed <= 12  # more than that have a probability of 0.1 %


def test_the_worst_step_counts_of_the_planted_vector():
    steps = [{"excess": [[0.5, -0.5]], "planted": share} for share in (1.0, 0.9, 0.99)]
    planted = judged(steps)["a planted vector"]
    assert planted == {"value": 0.9, "expected": [0.95, 1.0], "ok": False}


def test_what_was_read_is_shown():
    shown = show(over_steps([record_of(tokens())]))
    assert "4 languages, 90 sentences, step 3; chance 25.0%, within a script 33.3%" in shown
    assert "(3 languages)" in shown and "0 test tokens have a piece" in shown
    assert "cut" not in shown
    shown = show(over_steps([record_of(tokens(), truncated=7, unseen_tokens=1234)]))
    assert "7 sentences were longer" in shown and "1,234 test tokens have a piece" in shown


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
    assert record["languages_within_script"] > 1 and record["sentences"] == 60
    assert "chance 16.7%" in capsys.readouterr().out


def test_too_few_sentences_are_refused(run, tmp_path, write_corpus, capsys):
    corpus = write_corpus(tmp_path / "corpus", qaa_Latn=["a"] * 5, qab_Latn=["b"] * 5)
    call = ["evaluate", "language-probe", "--model", run, "--data", corpus]
    assert main([*map(str, call), "--sentences", "60"]) == 2
    assert "no two languages with 30 aligned lines in common" in capsys.readouterr().err
    assert main([*map(str, call), "--sentences", "29"]) == 2
    assert "--sentences 29: at least 30 are needed" in capsys.readouterr().err


@pytest.mark.slow
def test_languages_that_are_too_sparse_or_unknown_to_the_model_are_skipped(
    random_model, journal, lines, write_corpus, tmp_path
):
    """And do not shrink the others: the first would leave 30 sentences of 62."""
    text = [f"{line} {number}" for number in range(2) for line in lines[:31]]
    sparse = [line if number < 30 else "" for number, line in enumerate(text)]
    names = ("qaa_Cyrl", "qab_Latn", "qac_Latn")
    corpus = write_corpus(tmp_path / "corpus", qaa_Latn=sparse, **dict.fromkeys(names, text))
    record = evaluate(random_model(placement="input"), corpus, journal, 62)
    assert record["languages"] == ["qaa_Cyrl", "qab_Latn"] and record["sentences"] == 62
    assert record["skipped"].keys() == {"qaa_Latn", "qac_Latn"}
    assert "30 lines in common with the others; 31 are needed" in record["skipped"]["qaa_Latn"]
    assert "no language 'qac'" in record["skipped"]["qac_Latn"]
    assert record["within_script"] is record["chance_within_script"] is None


def test_a_model_that_diverged_is_refused(random_model, journal, lines, write_corpus, tmp_path):
    model = random_model()
    broken = jax.tree.map(lambda leaf: leaf * np.nan, model.params)
    corpus = write_corpus(tmp_path / "corpus", qaa_Latn=lines[:30], qab_Latn=lines[:30])
    with pytest.raises(UserError, match="states gives values that are not finite in qaa_Latn"):
        evaluate(dataclasses.replace(model, params=broken), corpus, journal, 30)
