"""What a code in another standard, notation or grouping is taken to mean."""

import pycountry
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import EMPTY, Inventory, check_language_script
from langsamp_jax.languages.related_codes import _facts, suggest


def refusal(call, name: str) -> str:
    with pytest.raises(UserError) as refused:
        call(name)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ger_Latn", "deu"),  # ISO 639-2/B
        ("fre_Latn", "fra"),
        ("chi_Hans", "zho"),
        ("alb_Latn", "sqi"),
        ("scc_Cyrl", "srp"),  # ISO 639-2/B, retired
        ("scr_Latn", "hrv"),
        ("mol_Latn", "ron"),
        ("kzj_Latn", "dtp"),
        ("iw_Hebr", "heb_Hebr"),
        ("in_Latn", "ind_Latn"),
        ("zh_Hans", "zho_Hans"),
        ("zh-Hans", "zho_Hans"),
        ("zh-hans-CN", "zho_Hans"),
        ("deu-Latn", "deu_Latn"),
        ("deu_latn", "deu_Latn"),
        ("DEU_Latn", "deu_Latn"),
        ("deu_Latn ", "deu_Latn"),
        ("de", "deu_Latn"),
        ("eng", "eng_Latn"),
        ("srp", "srp_Cyrl, srp_Latn"),
        ("pt_BR", "por_Latn"),
    ],
)
def test_a_code_of_another_standard_or_notation(name, meant):
    assert refusal(check_language_script, name).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    "pair",
    "zho cmn|zho yue|nor nob|nor nno|ara arb|ara arz|msa zsm|msa ind|fas pes|fas prs|swa swh|"
    "est ekk|lav lvs|aze azj|mon khk|sqi als|hbs srp".split("|"),
)
def test_a_macrolanguage_for_its_member_and_the_other_way_round(pair):
    for known, asked in (pair.split(), pair.split()[::-1]):
        inventory = EMPTY.extended([f"{known}_Latn", "qaa_Latn", f"{asked[:2]}x_Latn"])
        message = refusal(inventory.ids, f"{asked}_Latn")
        assert message == f"the model has no language {asked!r}; did you mean {known}?"


def test_scripts_of_the_same_text():
    published = Inventory.published()
    assert refusal(published.ids, "zho_Hans").endswith("no script 'Hans'; did you mean Hani?")
    assert refusal(published.ids, "kor_Kore").endswith("no script 'Kore'; did you mean Hang?")


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("zho_Hans", "cmn_Hani deu_Latn yue_Hani", "cmn_Hani, yue_Hani"),
        ("ara_Arab", "acm_Arab acq_Arab aeb_Arab arb_Arab", "arb_Arab, acm_Arab, acq_Arab"),
        ("zho_Hant", "zho_Hans zho_Latn", "zho_Hans"),
        ("hrv_Latn", "srp_Cyrl srp_Latn", "srp_Latn"),  # of one macrolanguage
        ("iw", "deu_Latn heb_Hebr", "heb_Hebr"),
        ("lrate", "learning_rate seed", "learning_rate"),  # no code: by spelling
    ],
)
def test_what_is_there_decides(name, known, meant):
    assert suggest(name, known.split()) == f"; did you mean {meant}?"


def test_nothing_is_suggested_where_nothing_is_close():
    assert suggest("xyz_Latn", ["deu"]) == "" == suggest("", ["deu_Latn"])


@given(st.text(max_size=12), st.lists(st.from_regex(r"[a-z]{3}_[A-Z][a-z]{3}"), max_size=4))
def test_any_name_gets_nothing_or_what_there_is(name, known):
    hint = suggest(name, known)
    assert hint == "" or hint.removeprefix("; did you mean ")[:-1].split(", ")[0] in known


def test_the_facts_are_codes_of_iso_639_3():
    current = {language.alpha_3: language.scope for language in pycountry.languages}
    macrolanguages, retired = _facts()["macrolanguages"], _facts()["retired"]
    assert {code for code, scope in current.items() if scope == "M"} == macrolanguages.keys()
    assert all(current[code] == "I" for codes in macrolanguages.values() for code in codes)
    assert not retired.keys() & current.keys()
    assert all(code in current for codes in retired.values() for code in codes)
