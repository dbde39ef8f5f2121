"""Distances and families of languages: what is read from which file, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cosine

from langsamp_jax.languages.typology import Reference, read_families, read_references

LANGUAGES = np.array(["deu", "nld", "arb", "eus"])
KNN = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]], np.float16)
FAM = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]], bool)


@pytest.fixture
def uriel(tmp_path: Path) -> Path:
    file = tmp_path / "uriel.npz"
    np.savez(file, langs=LANGUAGES, knn=KNN, fam=FAM)
    return file


# Distances


def test_distances_are_cosine_distances(uriel):
    typology, genetic = read_references(uriel)
    assert (typology.name, genetic.name) == ("typology", "genetic")
    for reference, features in ((typology, KNN), (genetic, FAM)):
        known = [code for code, row in zip(LANGUAGES, features, strict=True) if row.any()]
        rows = features[: len(known)].astype(float)
        expected = [[cosine(one, other) for other in rows] for one in rows]
        np.testing.assert_allclose(reference.between(known, known), expected, rtol=0, atol=1e-12)


def test_language_without_features_is_left_out(uriel):
    typology, genetic = read_references(uriel)
    assert "eus" in typology.codes and "eus" not in genetic.codes


def test_macrolanguage_is_read_as_its_member_and_the_other_way_round(uriel, tmp_path):
    typology, _ = read_references(uriel)
    np.testing.assert_array_equal(
        typology.between(["ara"], ["deu", "arb"]), [[typology.between(["arb"], ["deu"])[0, 0], 0]]
    )
    np.savez(tmp_path / "both.npz", langs=np.array(["zho", "ara", "arb"]), knn=KNN[:3], fam=FAM[:3])
    typology, _ = read_references(tmp_path / "both.npz")
    assert typology.between(["cmn"], ["zho"]) == 0
    assert typology.between(["ara"], ["arb"]) > 0.5  # a file that has both is believed
    assert len(set(typology.codes)) == len(typology.codes) == 4


def test_unknown_codes_have_no_distance():
    reference = Reference("known", ("a", "b"), np.array([[0, 3], [3, 0]]))
    found = reference.between(["b", "x", "a"], ["a", "y"])
    np.testing.assert_array_equal(found, [[3, np.nan], [np.nan, np.nan], [0, np.nan]])


def test_tree_of_a_synthetic_world(corpus):
    world = json.loads((corpus / "world.json").read_text())
    (tree,) = read_references(corpus / "world.json")
    languages = {fields["language"]: fields["family"] for fields in _texts(world)}
    assert tree.name == "tree" and set(tree.codes) == set(languages)
    related, unrelated = [], set()
    for one in languages:
        for other in languages:
            (distance,) = tree.between([one], [other])[0]
            if languages[one] == languages[other]:
                assert distance == world["families"][languages[one]]["distances"][one][other]
                related.append(distance)
            else:
                unrelated.add(distance)
    assert len(unrelated) == 1 and unrelated.pop() > max(related) > 0


def _texts(world: dict) -> list[dict]:
    return list(world["language_scripts"].values())


def test_real_languages(shared_data):
    for reference in read_references(shared_data / "typology" / "uriel_subset.npz"):
        dutch, japanese, english = reference.between(["deu"], ["nld", "jpn", "eng"])[0]
        assert dutch < english < japanese, reference.name
        assert len(reference.codes) > 500
        assert ((reference.distances >= 0) & (reference.distances <= 1)).all()
        np.testing.assert_array_equal(reference.distances, reference.distances.T)
        np.testing.assert_array_equal(np.diag(reference.distances), 0)


# Families


def test_families_without_a_header(tmp_path):
    file = tmp_path / "families.tsv"
    file.write_text("deu\tIndo-European\narb_Arab\tAfro-Asiatic \njpn\t\n", "utf-8")
    families = {"deu": "Indo-European", "arb": "Afro-Asiatic", "ara": "Afro-Asiatic"}
    assert read_families(file) == families


@pytest.mark.parametrize("code", ["iso639_3", "code", "lang_script"])
@pytest.mark.parametrize("family", ["family_glottolog", "family"])
def test_families_with_a_header(tmp_path, code, family):
    lines = [["name", family, code], ["German", "Indo-European", "deu"], ["Signs", "Deaf", ""]]
    if code == "lang_script":
        lines = [line[:2] + [line[2].replace("deu", "deu_Latn")] for line in lines]
        lines.append(["German", "Indo-European", "deu_Runr"])
    file = tmp_path / "families.tsv"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map("\t".join, lines)).encode())
    assert read_families(file) == {"deu": "Indo-European"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_marks_in_a_table_of_families(end, tmp_path):
    lines = ["iso639_3\tfamily", "deu\tIndo\u2028European", "fin\tUralic", ""]
    (tmp_path / "f.tsv").write_bytes(("\ufeff" + end.join(lines)).encode())
    assert read_families(tmp_path / "f.tsv") == {"deu": "Indo\u2028European", "fin": "Uralic"}


def test_a_mark_before_json(corpus, tmp_path):
    (tmp_path / "world.json").write_bytes(
        b"\xef\xbb\xbf" + (corpus / "world.json").read_bytes().replace(b"\n", b"\r\n")
    )
    assert read_families(tmp_path / "world.json") == read_families(corpus / "world.json")


def test_families_of_a_synthetic_world(corpus):
    world = json.loads((corpus / "world.json").read_text())
    families = read_families(corpus / "world.json")
    assert families == {fields["language"]: fields["family"] for fields in _texts(world)}
    assert len(set(families.values())) > 1


def test_real_families(shared_data):
    families = read_families(shared_data / "languages.tsv")
    assert families["deu"] == families["hin"] == families["fas"] == "Indo-European"
    assert families["fin"] == families["hun"] == families["est"] == "Uralic"
    assert families["eus"] == "Basque" and len(families) > 550
    everyone = read_families(shared_data / "typology" / "glottolog_languages.tsv")
    assert len(everyone) > 7000
    assert all(everyone[code] == family for code, family in families.items() if code in everyone)


# Bad input


def npz(**changed) -> dict[str, np.ndarray]:
    arrays = {"langs": LANGUAGES, "knn": KNN, "fam": FAM} | changed
    return {name: array for name, array in arrays.items() if array is not None}


BAD_ARRAYS = {
    "an array missing": npz(fam=None),
    "pickled": npz(langs=np.array(["deu", "nld", "arb", "eus"], object)),
    "a row too few": npz(knn=KNN[:3]),
    "one dimension": npz(fam=FAM[:, 0]),
    "no number": npz(knn=np.where(KNN > 0, KNN, np.nan)),
    "text": npz(knn=KNN.astype(str)),
    "a language twice": npz(langs=np.array(["deu", "nld", "arb", "deu"])),
    "numbers for languages": npz(langs=np.arange(4)),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_arrays_of_another_kind_are_refused(tmp_path, what, refused):
    np.savez(tmp_path / "bad.npz", **BAD_ARRAYS[what])
    assert str(tmp_path / "bad.npz") in refused(read_references, tmp_path / "bad.npz")


def test_damaged_arrays_are_refused(uriel, tmp_path, refused):
    np.save(tmp_path / "single.npy", KNN)
    for file in (tmp_path / "absent.npz", tmp_path, tmp_path / "single.npy"):
        assert str(file) in refused(read_references, file)
    np.savez_compressed(uriel, langs=LANGUAGES, knn=np.ones((4, 500)), fam=FAM)
    whole = uriel.read_bytes()
    middle = len(whole) // 2
    for data in (b"", b"text", whole[:middle], whole[: middle - 9] + b"damaged!" + whole[middle:]):
        uriel.write_bytes(data)
        assert str(uriel) in refused(read_references, uriel)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"families": []}', '{"families": {}}', '{"families": {"a": {}}}']
    + ['{"families": {"a": {"distances": {"qaa": {"qab": 1}}}}}', "\udcff"],
)
@pytest.mark.parametrize("read", [read_references, read_families])
def test_other_json_is_refused(tmp_path, read, text, refused):
    (tmp_path / "world.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    for file in (tmp_path / "world.json", tmp_path / "absent.json"):
        assert str(file) in refused(read, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deu Germanic\n", "line 1: expected a code, a tab and a family"),
        ("deu\tGermanic\n\nnld\tGermanic\n", "line 2: expected a code, a tab and a family"),
        ("name\tcode\tbranch\n", "line 1: expected a code, a tab and a family"),
        ("code\tname\tfamily\ndeu\tGermanic\n", "line 2: expected 3 columns"),
        ("deu\tGermanic\nnld\tGermanic\ndeu\tUralic\n", "line 3: deu is Uralic here and Germanic"),
    ],
)
def test_families_of_another_form_are_refused(tmp_path, text, message, refused):
    file = tmp_path / "families.tsv"
    file.write_text(text, "utf-8")
    line = refused(read_families, file)
    assert str(file) in line and message in line
