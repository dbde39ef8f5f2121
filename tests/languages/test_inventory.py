"""The inventory: rows that never move, codes that exist."""

import csv
import json
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import (
    EMPTY,
    Inventory,
    check_language_script,
    seen_by_xlmr,
    split_language_script,
)

names = st.builds(
    "{}_{}".format,
    st.sampled_from(["deu", "eng", "rus", "srp", "kaz", "qaa", "zho"]),
    st.sampled_from(["Latn", "Cyrl", "Arab", "Hani"]),
)


@given(st.lists(st.lists(names, max_size=5), max_size=5))
def test_extending_appends_and_never_reorders(additions):
    inventory = Inventory(("srp", "deu"), ("Latn",))
    for added in additions:
        larger = inventory.extended(added)
        for field in ("languages", "scripts"):
            old, new = getattr(inventory, field), getattr(larger, field)
            assert new[: len(old)] == old
            assert len(set(new)) == len(new)
            assert list(new[len(old) :]) == sorted(new[len(old) :])
        assert larger.extended(added) == larger
        inventory = larger
    wanted = [name.split("_") for added in additions for name in added]
    assert set(inventory.languages) == {"srp", "deu"} | {language for language, _ in wanted}
    assert set(inventory.scripts) == {"Latn"} | {script for _, script in wanted}
    for language, script in wanted:
        language_row, script_row = inventory.ids(f"{language}_{script}")
        assert inventory.languages[language_row] == language
        assert inventory.scripts[script_row] == script


def test_the_order_of_the_names_does_not_matter():
    some = ["srp_Latn", "deu_Latn", "srp_Cyrl"]
    assert EMPTY.extended(some) == EMPTY.extended(some[::-1])
    rows = ("deu", "srp"), ("Cyrl", "Latn")
    assert EMPTY.extended(iter(some)) == Inventory(*rows, tuple(sorted(some)))


def test_a_language_in_two_scripts_has_one_row():
    inventory = EMPTY.extended(["srp_Latn", "srp_Cyrl", "deu_Latn"])
    (latin, _), (cyrillic, _) = inventory.ids("srp_Latn"), inventory.ids("srp_Cyrl")
    assert latin == cyrillic
    assert inventory.ids("srp_Latn")[1] != inventory.ids("srp_Cyrl")[1]
    assert inventory.ids("deu_Latn")[1] == inventory.ids("srp_Latn")[1]
    assert len(inventory.languages) == 2


def test_json_keeps_the_order():
    inventory = Inventory(("srp", "deu", "aaa"), ("Latn", "Cyrl"))
    assert Inventory.from_json(inventory.to_json()) == inventory
    assert json.loads(inventory.to_json())["languages"] == ["srp", "deu", "aaa"]


def test_unknown_codes_come_with_suggestions():
    inventory = EMPTY.extended(["deu_Latn", "dan_Cyrl"])
    with pytest.raises(UserError, match="no language 'den'; did you mean d..(, d..)?[?]$"):
        inventory.ids("den_Latn")
    with pytest.raises(UserError, match="no script 'Latm'; did you mean Latn[?]$"):
        inventory.ids("deu_Latm")
    with pytest.raises(UserError, match="no language 'xyz'$"):
        inventory.ids("xyz_Latn")


@pytest.mark.parametrize(
    "name",
    ["deu", "deu-Latn", "DEU_Latn", "de_Latn", "deu_latn", "deu_LATN", "deu_Latn ", "deu_Latn\n"]
    + ["", "deu_Latn_x", "düu_Latn", "deu_Lat1", "../_Latn"],
)
def test_other_forms_are_refused(name):
    for call in (split_language_script, check_language_script, EMPTY.ids):
        with pytest.raises(UserError, match="not of the form iso639-3_Script") as refused:
            call(name)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError):
        EMPTY.extended(["deu_Latn", name])


@pytest.mark.parametrize(
    "name",
    # Private use, a macro-language, a family, two that ISO has retired, a merged script, ...
    ["deu_Latn", "zho_Hans", "jpn_Jpan", "qaa_Latn", "qtz_Cyrl", "ara_Arab", "ber_Tfng"]
    + ["ajp_Arab", "cmn_Hani", "qaa_Qaaa", "tlh_Qabx"],
)
def test_codes_that_exist(name):
    check_language_script(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("xxq_Latn", "'xxq' is not an ISO 639-3 language code"),
        ("qzz_Latn", "'qzz' is not an ISO 639-3 language code"),  # beyond the private range
        ("deu_Lant", "'Lant' is not an ISO 15924 script code; did you mean Latn"),
        ("deu_Qaby", "'Qaby' is not an ISO 15924 script code"),  # beyond the private range
        ("deu_Xyzq", "'Xyzq' is not an ISO 15924 script code"),
    ],
)
def test_codes_that_do_not(name, expected):
    with pytest.raises(UserError) as refused:
        check_language_script(name)
    assert str(refused.value).startswith(f"{name!r}: {expected}")


def test_published_tables():
    published = Inventory.published()
    assert (len(published.languages), len(published.scripts)) == (610, 30)
    assert len(set(published.languages)) == 610 and len(set(published.scripts)) == 30
    names = [f"{language}_Latn" for language in published.languages]
    for name in [*names, *(f"deu_{script}" for script in published.scripts)]:
        check_language_script(name)
    assert published.extended(["deu_Latn", "qaa_Cyrl"]).languages == (*published.languages, "qaa")


def test_published_tables_are_those_of_the_publication(shared_data):
    rows = json.loads((shared_data / "langsamp" / "inventory.json").read_text("utf-8"))
    published = Inventory.published()
    assert list(published.languages) == rows["languages"]
    assert list(published.scripts) == rows["scripts"]
    assert published.extended(published.language_scripts) == published


def test_language_scripts_that_xlmr_has_seen(shared_data):
    with open(shared_data / "langsamp" / "glot500c_language_stats.csv", encoding="utf-8") as file:
        records = [record for record in csv.DictReader(file) if record["XLM-R"] == "True"]
    named = {
        f"{record['language']}_{record['script'].strip('[]').strip(chr(39))}" for record in records
    }
    assert seen_by_xlmr() == named
    assert len(named) == 100


def test_names_of_real_corpora_pass(shared_data):
    with open(shared_data / "languages.tsv", encoding="utf-8") as file:
        found = [record["lang_script"] for record in csv.DictReader(file, delimiter="\t")]
    assert len(found) > 500
    for name in found:
        check_language_script(name)


def test_the_published_file_is_installed():
    assert (resources.files("langsamp_jax.languages") / "published_inventory.json").is_file()
