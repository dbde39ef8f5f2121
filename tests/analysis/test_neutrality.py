"""Language neutrality against loops over pairs of sentences, and where it must be nothing."""

import itertools

import numpy as np
import pytest

from langsamp_jax.analysis.neutrality import MEASURES, evaluate_neutrality
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.encoder import Encoded, sentence_encoder

LAYERS, HIDDEN = 3, 8


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def slowly(a: dict[int, np.ndarray], b: dict[int, np.ndarray]) -> dict[str, float]:
    """Every measure at one layer, from the vectors of two languages by line."""
    found = {}
    for suffix in ("", "_centred"):
        x, y = a, b
        if suffix:
            x, y = (
                {i: v - np.mean(list(z.values()), axis=0) for i, v in z.items()} for z in (a, b)
            )
        both = sorted(a.keys() & b.keys())
        matched = [cosine(x[i], y[i]) for i in both]
        other = [cosine(x[i], y[j]) for i in both for j in both if i != j]
        found |= {f"matched{suffix}": np.mean(matched), f"random{suffix}": np.mean(other)}
        found[f"gap{suffix}"] = np.mean(matched) - np.mean(other)
    right = []
    for first, second in ((a, b), (b, a)):
        for i in both:
            right.append(max(both, key=lambda j: cosine(first[i], second[j])) == i)
    return found | {"top1": np.mean(right)}


def stand_in(vectors: dict[str, np.ndarray]):
    """An encoder of lines that are numbers; ``vectors`` are [layers, lines, hidden]."""

    def encode(lines, name) -> Encoded:
        if name not in vectors:
            raise UserError(f"no language {name}")
        chosen = vectors[name][:, [int(line) for line in lines]]
        return Encoded(chosen.astype(np.float32), np.array([line == "4" for line in lines]))

    return encode


@pytest.fixture
def evaluate(journal):
    def evaluate(vectors, lines):
        return evaluate_neutrality(stand_in(vectors), LAYERS, HIDDEN, lines, journal)

    return evaluate


def test_it_is_the_loop_over_pairs_of_sentences(evaluate):
    """Of translations that are somewhat alike, in a cone; each language lacks other lines."""
    rng = np.random.default_rng(0)
    meaning = rng.normal(size=(LAYERS, 12, HIDDEN))
    names, vectors, lines = ("qaa_Latn", "qab_Cyrl", "qac_Latn", "qad_Latn"), {}, {}
    for name in names:
        cone = 2 * rng.normal(size=(LAYERS, 1, HIDDEN))
        vectors[name] = meaning + cone + 0.7 * rng.normal(size=meaning.shape)
        lines[name] = [str(i) for i in range(12)]
    for name, missing in (("qab_Cyrl", (0, 5)), ("qac_Latn", (5, 6, 11)), ("qad_Latn", range(11))):
        for i in missing:
            lines[name][i] = ""
    found = evaluate(vectors, lines)
    assert found["languages"] == list(names) and found["skipped"] == {}
    # 11 is the only line of qad: it has one in common with two, none with qac
    assert found["pairs"] == [[0, 1], [0, 2], [1, 2]]
    assert found["sentences"] == [10, 9, 8]
    assert found["truncated"] == 3  # 4 is in three of them
    for number, (first, second) in enumerate(found["pairs"]):
        for layer in range(LAYERS):
            sides = [
                {int(i): vectors[names[side]][layer, int(i)] for i in lines[names[side]] if i}
                for side in (first, second)
            ]
            expected = slowly(*sides)
            assert list(expected) != [] and set(expected) == set(MEASURES)
            for measure, value in expected.items():
                assert found[measure][number][layer] == pytest.approx(value, abs=3e-6), measure
    for measure in MEASURES:
        assert found["mean"][measure] == pytest.approx(np.mean(found[measure], axis=0).tolist())
    assert 0.2 < np.mean(found["top1"]) < 1
    assert np.abs(found["random"]).max() > 0.3 > 3 * np.abs(found["random_centred"]).max()


def test_a_cone_is_no_neutrality(evaluate):
    """Raw cosines are high for all pairs; the gap is not."""
    rng = np.random.default_rng(0)
    vectors = {
        name: 20 + rng.normal(size=(LAYERS, 30, HIDDEN)) for name in ("qaa_Latn", "qab_Latn")
    }
    found = evaluate(vectors, dict.fromkeys(vectors, [str(i) for i in range(30)]))["mean"]
    assert min(found["matched"] + found["random"]) > 0.99
    assert max(map(abs, found["gap"])) < 0.001
    assert max(map(abs, found["gap_centred"])) < 0.2


def test_translations_that_are_the_same(evaluate):
    same = np.random.default_rng(0).normal(size=(LAYERS, 20, HIDDEN))
    names = ("qaa_Latn", "qab_Latn")
    found = evaluate(dict.fromkeys(names, same), dict.fromkeys(names, [str(i) for i in range(20)]))
    assert found["top1"] == [[1.0] * LAYERS]
    assert found["matched"][0] == pytest.approx([1] * LAYERS)
    assert min(found["gap"][0] + found["gap_centred"][0]) > 0.9


def test_a_collapsed_encoder_has_no_gap(random_model, corpus, journal):
    """Every state is a LayerNorm's bias; means over different lengths differ by rounding."""
    trained = random_model()
    trained.params["encoder"]["layers"]["output_layer_norm"]["scale"] *= 0
    names = ("qaa_Latn", "qab_Latn")
    text = (corpus / "held_out" / "qaa_Latn.txt").read_text("utf-8").splitlines()[:60]
    lines = {names[0]: text, names[1]: [line[len(line) // 2 :].strip() for line in text]}
    found = evaluate_neutrality(sentence_encoder(trained, [1, 3]), 2, 32, lines, journal)
    assert found["matched"][0] == pytest.approx([1, 1])
    for measure in ("gap", "matched_centred", "random_centred", "gap_centred"):
        assert found[measure][0] == pytest.approx([0, 0], abs=3e-6), measure
    assert found["top1"] == [[0, 0]]


def test_twins_do_not_find_their_translation(evaluate):
    """Sentences 0 and 1 are the same in both languages: which is which, nobody knows."""
    vectors = np.random.default_rng(0).normal(size=(LAYERS, 5, HIDDEN))
    vectors[:, 1] = vectors[:, 0]
    names = ("qaa_Latn", "qab_Latn")
    found = evaluate(dict.fromkeys(names, vectors), dict.fromkeys(names, list("01234")))
    assert found["top1"] == [pytest.approx([3 / 5] * LAYERS)]


def test_languages_that_cannot_be_read(evaluate):
    rng = np.random.default_rng(0)
    names = ("qaa_Latn", "qac_Latn", "qad_Latn")
    vectors = {name: rng.normal(size=(LAYERS, 6, HIDDEN)) for name in names}
    lines = {name: list("012345") for name in (*names, "qab_Latn")}
    found = evaluate(vectors, dict(sorted(lines.items())))
    assert found["skipped"] == {"qab_Latn": "no language qab_Latn"}
    assert found["languages"] == list(names)
    assert found["pairs"] == [list(pair) for pair in itertools.combinations(range(3), 2)]
    for number, (first, second) in enumerate(found["pairs"]):
        sides = (dict(enumerate(vectors[names[side]][0])) for side in (first, second))
        expected = slowly(*sides)["matched"]
        assert found["matched"][number][0] == pytest.approx(expected, abs=3e-6)


def test_nothing_in_common_is_refused(evaluate):
    vectors = dict.fromkeys(("qaa_Latn", "qab_Latn"), np.ones((LAYERS, 4, HIDDEN)))
    lines = {"qaa_Latn": ["0", "1", "2", ""], "qab_Latn": ["", "", "2", "3"]}
    with pytest.raises(UserError, match="no two languages have two lines in common"):
        evaluate(vectors, lines)
    del vectors["qab_Latn"]
    with pytest.raises(UserError, match="no two languages .*; qab_Latn: no language qab_Latn"):
        evaluate(vectors, dict.fromkeys(lines, ["0", "1"]))
