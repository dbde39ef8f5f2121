"""Head and tail as published, and unweighted averages over what has a value."""

import json
from importlib import resources

import pytest

from langsamp_jax.languages.inventory import seen_by_xlmr
from langsamp_jax.languages.published import averages, is_head, published_languages

COUNTS = {
    "sr_bible": (94, 275),
    "sr_tatoeba": (70, 28),
    "taxi1500": (90, 264),
    "sib200": (78, 94),
    "ner": (89, 75),
    "pos": (63, 28),
}


@pytest.mark.parametrize("task", COUNTS)
def test_published_lists_are_whole(task):
    groups = list(published_languages(task).values())
    assert (groups.count("head"), groups.count("tail")) == COUNTS[task]


def test_published_lists_are_the_source(shared_data):
    lists = json.loads((shared_data / "langsamp" / "task_languages.json").read_text("utf-8"))
    for task in COUNTS:
        found = {group: sorted(names) for group, names in lists[task].items()}
        expected: dict[str, list[str]] = {"head": [], "tail": []}
        for name, group in published_languages(task).items():
            expected[group].append(name)
        assert found == expected


@pytest.mark.parametrize("task", COUNTS)
def test_every_list_is_followed(task):
    for name, group in published_languages(task).items():
        assert is_head(name) == (group == "head"), name


def test_all_that_xlmr_has_seen_is_head():
    assert all(map(is_head, seen_by_xlmr()))


@pytest.mark.parametrize(
    "name",
    "zho_Hans zho_Hant cmn_Hans khk_Cyrl pbt_Arab pbu_Arab uzn_Latn ydd_Hebr ekk_Latn kor_Kore "
    "jpn_Jpan jav_Latn srp_Cyrl".split(),
)
def test_other_codes_of_languages_of_xlmr_are_head(name):
    assert is_head(name)


@pytest.mark.parametrize(
    "name",
    # Tail in the published lists, or in a script of which XLM-R has seen nothing, or unknown.
    "als_Latn nob_Latn lvs_Latn npi_Deva ory_Orya plt_Latn azj_Latn kmr_Latn uzb_Cyrl hin_Latn "
    "uzn_Cyrl yue_Hant san_Thai arb_Latn jav_Java bos_Cyrl ang_Latn kzj_Latn".split(),
)
def test_the_rest_is_tail(name):
    assert not is_head(name)


def test_flores_gains_six_head_languages_over_the_published_list(shared_data):
    names = [file.stem for file in (shared_data / "flores_sib200" / "text").glob("*.txt")]
    assert {name for name in names if is_head(name)} - set(published_languages("sib200")) == {
        "zho_Hans",
        "zho_Hant",
        "khk_Cyrl",
        "pbt_Arab",
        "uzn_Latn",
        "ydd_Hebr",
    }


def test_averages_are_over_languages():
    records = [
        {"language": "deu_Latn", "f1": 0.9, "sentences": 1000},
        {"language": "zho_Hans", "f1": 0.6, "sentences": 10},
        {"language": "yor_Latn", "f1": 0.3, "sentences": 10},
    ]
    assert averages(records, ["f1"]) == {
        "all": {"languages": 3, "f1": pytest.approx(0.6)},
        "head": {"languages": 2, "f1": pytest.approx(0.75)},
        "tail": {"languages": 1, "f1": 0.3},
        "latin": {"languages": 2, "f1": pytest.approx(0.6)},
        "non_latin": {"languages": 1, "f1": 0.6},
    }


def test_what_has_no_value_is_left_out_and_said():
    records = [
        {"language": "deu_Latn", "f1": None, "accuracy": 0.5},
        {"language": "rus_Cyrl", "f1": 0.0, "accuracy": 1.0},
    ]
    found = averages(records, ["f1", "accuracy"])
    assert found["all"] == {"languages": 2, "f1": 0, "f1_languages": 1, "accuracy": 0.75}
    assert found["latin"] == {"languages": 1, "f1": None, "f1_languages": 0, "accuracy": 0.5}
    assert found["non_latin"] == {"languages": 1, "f1": 0, "accuracy": 1}
    assert "tail" not in found
    assert averages([], ["f1"]) == {}


def test_the_lists_are_installed():
    assert (resources.files("langsamp_jax.languages") / "published_task_languages.json").is_file()


def test_published_averages_are_over_the_published_languages():
    records = [{"language": name, "top10": score} for name, score in (("deu_Latn", 0.5),)]
    records += [{"language": "xho_Latn", "top10": 1.0}, {"language": "qaa_Latn", "top10": 0.0}]
    found = averages(records, ["top10"], "sr_tatoeba")
    assert (found["all"]["languages"], found["all"]["top10"]) == (3, 0.5)
    assert set(published_languages("sr_tatoeba")) >= {"deu_Latn", "xho_Latn"}
    assert found["published"] == {"languages": 2, "top10": 0.75}
    assert "published" not in averages(records, ["top10"])
    assert "published" not in averages(records[2:], ["top10"], "sr_tatoeba")
