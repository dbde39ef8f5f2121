"""The synthetic world: reproducible, parallel, and just as world.json says."""

import collections
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from data_pipelines.synthetic import grammar
from data_pipelines.synthetic import world as module
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.datasets.classification import read_sentence_task
from langsamp_jax.languages.inventory import check_language_script

PARAMETERS = {"num_languages": 16, "num_sentences": 1000, "seed": 5, "num_held_out": 50}
SMALL = {"num_languages": 3, "num_sentences": 100, "seed": 0, "num_held_out": 5}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("synthetic") / "world"
    return folder, module.synthesize(folder, **PARAMETERS)


@pytest.fixture(scope="module")
def languages() -> dict[str, grammar.Language]:
    made = grammar.make_languages(PARAMETERS["num_languages"] - 1, PARAMETERS["seed"])
    return {language.code: language for language in made}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def lines_of(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n")
    return text[:-1].split("\n")


def test_same_arguments_same_bytes(made, tmp_path):
    module.synthesize(tmp_path / "again", **PARAMETERS)
    assert contents(tmp_path / "again") == contents(made[0])


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_same_bytes_in_another_process(hash_seed, tmp_path):
    module.synthesize(tmp_path / "here", **SMALL)
    code = (
        "import pathlib, sys; from data_pipelines.synthetic import world as module; "
        f"module.synthesize(pathlib.Path(sys.argv[1]), **{SMALL!r})"
    )
    root = Path(module.__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(tmp_path / "there")]
    subprocess.run(command, check=True, env=environment)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_another_seed_is_another_world(tmp_path):
    module.synthesize(tmp_path / "0", **SMALL)
    module.synthesize(tmp_path / "1", **{**SMALL, "seed": 1})
    one, other = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert one.keys() == other.keys()
    assert not set(one.values()) & set(other.values())


def test_world_json_is_what_is_returned_and_describes_the_files(made):
    folder, world = made
    text = (folder / "world.json").read_text("utf-8")
    assert json.loads(text) == world
    assert text == json.dumps(world, indent=1, ensure_ascii=False) + "\n"
    assert world["parameters"] == PARAMETERS
    files = contents(folder)
    del files["world.json"]
    assert world["files"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    names = {f"{name}.txt" for name in world["language_scripts"]}
    assert set(files) == names | {f"held_out/{name}" for name in [*names, "labels.tsv"]}


def test_concepts_are_in_the_lines_that_world_json_names(made, languages):
    """A line of a concept has a word of it; and what it says is all that its words say."""
    folder, world = made
    names = list(world["language_scripts"])
    texts = {name: lines_of(folder / "held_out" / f"{name}.txt") for name in names}
    spoken = {name: [set(re.findall(r"[^\W\d]+", line)) for line in texts[name]] for name in names}
    held_out = module._held_out_meanings(
        module.meanings(grammar.stream(5, "main"), 1000), 50, seed=5
    )
    lines = {k: set(map(int, v["lines"].split())) for k, v in world["concepts"].items()}
    for name, concept in world["concepts"].items():
        assert list(concept["words"]) == names  # one in 50 is more than one in a hundred
        for language, words in concept["words"].items():
            has = {i for i, line in enumerate(spoken[language]) if line & set(words.split())}
            assert lines[name] <= has, (name, language)  # homonyms have more
    first = held_out[0].first
    assert 0 in lines[f"verb-{first.verb - grammar.VERBS.start}"]
    assert sum(map(len, lines.values())) == sum(len(m.concepts()) for m in held_out)
    assert all(name.split("-")[0] in ("noun", "verb", "adjective") for name in lines)
    latin = world["concepts"]["noun-0"]["words"]["qaa_Latn"].split()
    assert latin == list(dict.fromkeys(languages["qaa"].forms()[0]))


def test_words_of_rare_concepts_are_left_out(tmp_path):
    world = module.synthesize(tmp_path, **SMALL | {"num_held_out": 500})
    counts = [len(concept["lines"].split()) for concept in world["concepts"].values()]
    told = [bool(concept["words"]) for concept in world["concepts"].values()]
    assert told == [count >= 5 for count in counts] and 0 < sum(told) < len(told)


def test_labels_say_what_the_held_out_sentences_are_about(tmp_path):
    module.synthesize(tmp_path, num_languages=2, num_sentences=100, num_held_out=1000)
    data = read_sentence_task(tmp_path / "held_out", "sib200", "qaa_Latn")
    assert (len(data.train.texts), len(data.dev.texts)) == (700, 100)
    assert {len(test.texts) for test in data.test.values()} == {200}
    assert not data.skipped
    test = data.test["qaa_Latn"]
    bag = make_pipeline(CountVectorizer(), MultinomialNB())
    bag.fit(data.train.texts, data.train.labels)
    assert bag.score(test.texts, test.labels) > 0.8
    assert np.bincount(test.labels).max() < 0.5 * len(test.labels)


def test_codes_exist(made):
    for name, about in made[1]["language_scripts"].items():
        check_language_script(name)
        assert name == f"{about['language']}_{about['script']}"


def test_sizes_fall_geometrically_by_a_factor_of_100(made):
    folder, world = made
    sizes = [about["sentences"] for about in world["language_scripts"].values()]
    assert sizes == [len(lines_of(folder / f"{name}.txt")) for name in world["language_scripts"]]
    assert sizes[0] == 1000 and sizes[-1] == 10
    expected = np.geomspace(1000, 10, len(sizes))
    np.testing.assert_allclose(sizes, expected, atol=0.5)


def test_size_family_and_script_are_not_confounded(made):
    table = list(made[1]["language_scripts"].values())
    halves = table[: len(table) // 2], table[len(table) // 2 :]
    for about in ("family", "script", "word_order"):
        assert {row[about] for row in halves[0]} == {row[about] for row in halves[1]}


def test_families_mostly_share_a_script(made):
    """Members in other scripts, and other families in the script, keep the two apart."""
    table = made[1]["language_scripts"].values()
    main_scripts = []
    for family in made[1]["families"]:
        scripts = [row["script"] for row in table if row["family"] == family]
        ((main, number),) = collections.Counter(scripts).most_common(1)
        assert 0.5 < number / len(scripts) < 1
        main_scripts.append(main)
    assert 1 < len(set(main_scripts)) < len(main_scripts)
    for script in made[1]["scripts"]:
        assert len({row["family"] for row in table if row["script"] == script}) > 1


def test_families_are_recorded_as_they_are(made, languages):
    recorded = made[1]["families"]
    assert {code for family in recorded.values() for code in family["distances"]} == set(languages)
    for code, one in languages.items():
        family = recorded[one.family.name]
        assert family["word_order"] == one.family.word_order
        assert family["sound_changes"][code] == list(one.changes)
        assert family["distances"][code] == {
            other.code: grammar.distance(one, other)
            for other in languages.values()
            if other.family == one.family
        }


def test_sentences_have_a_plausible_length_and_a_common_alphabet(made):
    folder, world = made
    for name, about in world["language_scripts"].items():
        letters = set(world["scripts"][about["script"]])
        lines = lines_of(folder / f"{name}.txt") + lines_of(folder / "held_out" / f"{name}.txt")
        for line in lines:
            assert 5 <= len(line.split(" ")) <= 20
            assert line[-1] in ".?!"
            assert set(line[:-1]) <= letters | set("0123456789, ")
            assert all(line.split(" "))


def test_lines_are_parallel(made):
    folder, world = made
    names = list(world["language_scripts"])
    for sub, shared in (("", 10), ("held_out", 50)):
        texts = [lines_of(folder / sub / f"{name}.txt")[:shared] for name in names]
        assert all(len(lines) == shared for lines in texts)
        for parallel in zip(*texts, strict=True):
            numbers = [sorted(w for w in line.split() if w.isdigit()) for line in parallel]
            assert all(found == numbers[0] for found in numbers)
            assert len({(line[-1], line.count(",")) for line in parallel}) == 1


def test_held_out_meanings_are_new_and_distinct(made):
    main = module.meanings(grammar.stream(5, "main"), 1000)
    held_out = module._held_out_meanings(main, 50, seed=5)
    assert len(set(held_out)) == 50
    assert not set(held_out) & set(main)
    folder, world = made
    for name in world["language_scripts"]:
        lines = lines_of(folder / "held_out" / f"{name}.txt")
        assert len(set(lines)) >= 49  # homophones may hide a difference
        assert len(set(lines) - set(lines_of(folder / f"{name}.txt"))) >= 49


def test_held_out_meanings_avoid_main_even_when_drawn_again():
    first = module.meanings(grammar.stream(0, "held out"), 20)
    held_out = module._held_out_meanings(first[:7], 20, seed=0)
    assert held_out[:13] == first[7:]
    assert len(set(held_out)) == 20 and not set(held_out) & set(first[:7])


def test_two_script_language_is_transliterated_letter_for_letter(made):
    folder, world = made
    assert world["two_scripts"] == {"qaa": ["Latn", "Cyrl"]}
    back = str.maketrans(world["scripts"]["Cyrl"], world["scripts"]["Latn"])
    for sub in ("", "held_out"):
        latin = lines_of(folder / sub / "qaa_Latn.txt")
        cyrillic = lines_of(folder / sub / "qaa_Cyrl.txt")
        assert cyrillic != latin[: len(cyrillic)]
        assert [line.translate(back) for line in cyrillic] == latin[: len(cyrillic)]


def test_words_are_zipfian(made):
    words = (made[0] / "qaa_Latn.txt").read_text("utf-8").translate(str.maketrans("", "", ",.?!"))
    counts = np.array(sorted(collections.Counter(words.split()).values(), reverse=True))
    ranks = np.arange(1, 301)
    slope = np.polyfit(np.log(ranks), np.log(counts[:300]), 1)[0]
    assert -1.3 < slope < -0.7
    assert counts[:10].sum() > 0.1 * counts.sum()
    assert np.mean(counts == 1) > 0.3


def test_verbs_prefer_the_nouns_of_their_topic():
    drawn = module.meanings(grammar.stream(0, "test"), 2000)
    same = [
        meaning.first.verb % grammar.TOPICS == meaning.first.object.noun % grammar.TOPICS
        for meaning in drawn
        if meaning.first.object.noun in grammar.NOUNS
    ]
    assert np.mean(same) > 0.75


@pytest.mark.parametrize("count", [2, 3, pytest.param(520, marks=pytest.mark.slow)])
def test_from_the_smallest_world_to_the_largest(count):
    corpora = module.make_corpora(count, 1000, seed=1)
    names = [corpus.name for corpus in corpora]
    assert len(set(names)) == count
    assert len({corpus.language.code for corpus in corpora}) == count - 1
    assert corpora[0].sentences == 1000 and corpora[-1].sentences == 10
    for name in names:
        check_language_script(name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_languages": 1},
        {"num_languages": 521},
        {"num_sentences": 99},
        {"seed": -1},
        {"num_held_out": 0},
    ],
)
def test_bad_arguments_are_refused(wrong, tmp_path):
    with pytest.raises(UserError) as refused:
        module.synthesize(tmp_path / "world", **{**SMALL, **wrong})
    assert str(*wrong.values()) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_running_again_changes_nothing(tmp_path):
    world = module.synthesize(tmp_path / "world", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "world").rglob("*")}
    assert module.synthesize(tmp_path / "world", **SMALL) == world
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "world").rglob("*")}
    assert after == before


def change_a_file(folder: Path) -> None:
    (folder / "qaa_Latn.txt").write_text("changed\n")


def remove_a_file(folder: Path) -> None:
    (folder / "held_out" / "qaa_Latn.txt").unlink()


def add_a_file(folder: Path) -> None:
    (folder / "mine.txt").write_text("mine\n")


def break_world_json(folder: Path) -> None:
    (folder / "world.json").write_text("[")


def empty_world_json(folder: Path) -> None:
    (folder / "world.json").write_text("[]")


@pytest.mark.parametrize(
    "meddle", [change_a_file, remove_a_file, add_a_file, break_world_json, empty_world_json]
)
def test_a_folder_that_holds_something_else_is_left_alone(meddle, tmp_path):
    module.synthesize(tmp_path / "world", **SMALL)
    meddle(tmp_path / "world")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="already holds something else"):
        module.synthesize(tmp_path / "world", **SMALL)
    assert contents(tmp_path) == before


def test_another_world_is_not_overwritten(tmp_path):
    module.synthesize(tmp_path / "world", **SMALL)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="already holds something else"):
        module.synthesize(tmp_path / "world", **{**SMALL, "seed": 1})
    assert contents(tmp_path) == before


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module.Corpus, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        module.synthesize(tmp_path / "world", **SMALL)
    assert list(tmp_path.iterdir()) == []
