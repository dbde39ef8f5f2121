"""Geometry of the tables: components and neighbours, against other libraries; the record."""

import collections
import json

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr
from sklearn.decomposition import PCA

from data_pipelines.synthetic.world import synthesize
from langsamp_jax.analysis.geometry import Table, geometry, nearest, principal_components
from langsamp_jax.errors import UserError
from langsamp_jax.languages.typology import Reference, read_families, read_references


def table(vectors, prefix: str = "q") -> Table:
    vectors = np.asarray(vectors, np.float32)
    return Table(tuple(f"{prefix}{number:02}" for number in range(len(vectors))), vectors)


def distances(rng: np.random.Generator, n: int, width: int = 6) -> np.ndarray:
    return squareform(pdist(rng.normal(size=(n, width))))


# Principal components


@pytest.mark.parametrize(("n", "width"), [(60, 20), (20, 60), (3, 5), (50, 2)])
def test_components_are_those_of_scikit_learn(n, width):
    vectors = np.random.default_rng(n).normal(size=(n, width)) * np.arange(1, width + 1) + 5
    coordinates, explained = principal_components(vectors)
    reference = PCA(2, svd_solver="full")
    np.testing.assert_allclose(coordinates, reference.fit_transform(vectors), rtol=0, atol=1e-9)
    np.testing.assert_allclose(explained, reference.explained_variance_ratio_, rtol=1e-9)


def test_components_do_not_depend_on_the_order_of_the_rows():
    rng = np.random.default_rng(0)
    vectors, order = rng.normal(size=(30, 8)), rng.permutation(30)
    (one, _), (other, _) = principal_components(vectors), principal_components(vectors[order])
    np.testing.assert_allclose(one[order], other, rtol=0, atol=1e-12)


def test_components_of_a_line():
    coordinates, explained = principal_components(np.array([[0, 0], [-3, -4], [3, 4]], np.float32))
    np.testing.assert_allclose(coordinates, [[0, 0], [-5, 0], [5, 0]], atol=1e-6)
    np.testing.assert_allclose(explained, [1, 0], atol=1e-12)


def test_what_has_no_components_lies_at_the_origin():
    for vectors in (np.ones((1, 4)), np.ones((5, 4)), np.ones((3, 1))):
        coordinates, explained = principal_components(vectors)
        np.testing.assert_array_equal(coordinates, np.zeros((len(vectors), 2)))
        np.testing.assert_array_equal(explained, [0, 0])


# Neighbours


def test_neighbours_worked_by_hand():
    near = nearest(table([[1, 0], [0, 2], [4, 3]]), 2)
    assert [name for name, _ in near["q00"]] == ["q02", "q01"]
    assert [name for name, _ in near["q01"]] == ["q02", "q00"]
    np.testing.assert_allclose([cosine for _, cosine in near["q02"]], [0.8, 0.6], atol=1e-7)


def test_neighbours_that_tie_stand_in_table_order():
    near = nearest(table([[1, 0], [0, 1], [0, 2], [0, 3]]), 5)
    assert [name for name, _ in near["q00"]] == ["q01", "q02", "q03"]
    assert [name for name, _ in near["q02"]] == ["q01", "q03", "q00"]
    assert nearest(table([[1, 0]]), 5) == {"q00": []}
    same = table(np.tile([[3, 1], [-1, 3]], (40, 1)))
    even, odd = same.codes[::2], same.codes[1::2]
    assert [name for name, _ in nearest(same, 79)["q00"]] == [*even[1:], *odd]


# The record


def test_record():
    rng = np.random.default_rng(0)
    tables = {
        "language": table(rng.normal(size=(8, 5))),
        "script": table(rng.normal(size=(3, 5)), "S"),
    }
    codes = ("q06", "xxx", "q00", "q05", "q01", "yyy", "q03")
    reference = Reference("typology", codes, distances(rng, 7))
    few = Reference("genetic", codes[1:5], distances(rng, 4))
    same = Reference("tree", codes, 1 - np.eye(7))
    families = {"q01": "East", "xxx": "West"}
    references = [reference, few, same]
    record = geometry(tables, references, families, {}, permutations=99, neighbours=2)
    assert json.loads(json.dumps(record, allow_nan=False)) == record

    language, script = record["tables"]["language"], record["tables"]["script"]
    assert language["names"] == list(tables["language"].codes)
    assert language["families"] == [None, "East"] + [None] * 6
    for kind, found in record["tables"].items():
        coordinates, explained = principal_components(tables[kind].vectors)
        assert found["coordinates"] == coordinates.tolist()
        assert found["explained"] == explained.tolist()
        assert found["neighbours"] == {
            code: [list(pair) for pair in near] for code, near in nearest(tables[kind], 2).items()
        }
    assert script["correlations"] == [] and "families" not in script

    first, second, third = language["correlations"][::2]
    rows = [6, 0, 5, 1, 3]
    own = pdist(tables["language"].vectors[rows].astype(float), "cosine")
    theirs = squareform(reference.distances[np.ix_([0, 2, 3, 4, 6], [0, 2, 3, 4, 6])])
    assert first.keys() == {"with", "rho", "p", "languages", "permutations"}
    assert (first["with"], first["languages"], first["permutations"]) == ("typology", 5, 99)
    np.testing.assert_allclose(first["rho"], spearmanr(own, theirs).statistic, atol=1e-12)
    assert 0.01 <= first["p"] <= 1
    assert second["rho"] is second["p"] is None
    assert second["languages"] == 3 and "fewer than 4" in second["reason"]
    assert third["rho"] is third["p"] is None and "equally far" in third["reason"]
    within = language["correlations"][1::2]
    assert [each["with"] for each in within] == [f"{r.name} within a script" for r in references]
    assert {each["languages"] for each in within} == {0}  # nothing is known of their scripts


def test_within_a_script_shows_what_scripts_hide():
    """Relatives lie together; those of one script, who are mostly relatives, were pushed apart."""
    rng = np.random.default_rng(0)
    family, script = np.repeat(np.arange(6), 8), np.tile([0, 0, 0, 0, 0, 1, 1, 1], 6)
    script = (family + script) % 3
    points = rng.normal(size=(6, 64))[family] + 2 * rng.normal(size=(48, 64))
    for each in range(3):
        there = script == each
        points[there] -= 0.95 * points[there].mean(axis=0) + 0.2 * points[there].sum(axis=0) / 16
    language = table(points)
    tree = Reference("tree", language.codes, (family[:, None] != family).astype(float))
    scripts = {code: "ABC"[each] for code, each in zip(language.codes, script, strict=True)}
    scripts.pop("q00")  # of which no text is known
    found = geometry({"language": language}, [tree], {}, scripts, permutations=999)
    everywhere, within = found["tables"]["language"]["correlations"]
    assert everywhere["rho"] < within["rho"] - 0.1 and within["p"] < 0.01
    assert (everywhere["languages"], within["languages"]) == (48, 47)

    alone = dict.fromkeys(language.codes[1:], "A") | {"q00": "B"}
    found = geometry({"language": language}, [tree], {}, alone, permutations=9)
    assert found["tables"]["language"]["correlations"][1]["languages"] == 47


def test_model_with_one_table():
    rng = np.random.default_rng(0)
    for kind in ("language", "script"):
        record = geometry({kind: table(rng.normal(size=(5, 4)))}, [], {}, {})
        assert list(record["tables"]) == [kind]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [(np.zeros((0, 4)), "no row of the script table"), ([[1, np.nan]], "not finite")],
)
def test_refused(vectors, message):
    with pytest.raises(UserError, match=message):
        geometry({"script": table(vectors)}, [], {}, {})


def test_table_that_has_learned_the_tree(tmp_path):
    """Families begin far apart; each sound change moved a language, and its heirs, a step."""
    world = synthesize(tmp_path / "world", 17, 100, num_held_out=1)
    (tree,) = read_references(tmp_path / "world" / "world.json")
    families = read_families(tmp_path / "world" / "world.json")
    rng = np.random.default_rng(0)
    steps = collections.defaultdict(lambda: rng.normal(size=256))

    def vector(code: str) -> np.ndarray:
        changes = world["families"][families[code]]["sound_changes"][code]
        path = [(families[code], *changes[:count]) for count in range(1, len(changes) + 1)]
        return 3 * steps[families[code]] + sum(steps[node] for node in path)

    language = Table(tree.codes, np.array([vector(code) for code in tree.codes]))
    found = geometry({"language": language}, [tree], families, {}, permutations=999)
    correlation = found["tables"]["language"]["correlations"][0]
    assert correlation["languages"] == 16 and correlation["p"] == 1 / 1000
    for code, near in found["tables"]["language"]["neighbours"].items():
        closest = [tree.between([code], [other])[0, 0] for other, _ in near]
        assert closest == sorted(closest)
        relatives = {other for other in tree.codes if families[other] == families[code]}
        assert {other for other, _ in near[: len(relatives) - 1]} == relatives - {code}


def test_real_tables_of_noise_find_nothing(shared_data):
    references = read_references(shared_data / "typology" / "uriel_subset.npz")
    codes = references[0].codes[::5]
    noise = Table(codes, np.random.default_rng(0).normal(size=(len(codes), 32)))
    scripts = dict.fromkeys(codes[::2], "Latn") | dict.fromkeys(codes[1::2], "Cyrl")
    found = geometry({"language": noise}, references, {}, scripts, permutations=199)
    for correlation in found["tables"]["language"]["correlations"]:
        assert abs(correlation["rho"]) < 0.1 and correlation["p"] > 0.01
