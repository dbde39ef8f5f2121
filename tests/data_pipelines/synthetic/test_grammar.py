"""Invented languages: sound changes by their notation, relatives as near as their tree says."""

import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.synthetic import grammar, world
from langsamp_jax.languages.inventory import check_language_script


@pytest.fixture(scope="module")
def languages() -> tuple[grammar.Language, ...]:
    return grammar.make_languages(15, seed=5)


@pytest.mark.parametrize("script", grammar.SCRIPTS)
def test_script_tables_are_one_to_one_and_stable(script):
    letters = grammar.SCRIPTS[script]
    check_language_script(f"qaa_{script}")
    assert len(letters) == len(set(letters)) == len(grammar.ALPHABET) == 24
    assert unicodedata.normalize("NFKC", letters) == letters
    assert {unicodedata.category(letter) for letter in letters} <= {"Ll", "Lo"}


def changed_letter_by_letter(change: str, word: str) -> str:
    """An interpreter of the notation that shares nothing with grammar.apply_changes."""
    letters, condition = change.split(" /")
    source, target = letters.split(" > ")
    before, after = (condition.strip() or "_").split("_")

    def allowed(neighbour: str, condition: str) -> bool:
        kind = "#" if neighbour == "#" else "V" if neighbour in "aeiou" else "C"
        return not condition or kind in condition or neighbour in condition

    edged = f"#{word}#"
    return "".join(
        target[source.index(letter)].replace("-", "")
        if letter in source and allowed(edged[i], before) and allowed(edged[i + 2], after)
        else letter
        for i, letter in enumerate(word)
    )


def test_notation_by_example():
    cases = {
        "ptk > bdg / V_V": ("apata pat", "abada pat"),
        "s > h / #_": ("sasa", "hasa"),
        "aeiou > ----- / C_#": ("sasa sea", "sas sea"),
        "aou > oua / bdgvz_": ("bada", "bodo"),
        "c > s /": ("cac", "sas"),
    }
    for change, (words, expected) in cases.items():
        assert grammar.apply_changes([change], words.split()) == expected.split()


@given(
    st.lists(st.text(grammar.ALPHABET, min_size=1, max_size=9), min_size=1, max_size=9),
    st.lists(st.sampled_from(grammar.SOUND_CHANGES), max_size=5),
)
def test_sound_changes_follow_their_notation(words, changes):
    expected = words
    for change in changes:
        expected = [changed_letter_by_letter(change, word) for word in expected]
    assert grammar.apply_changes(changes, words) == expected


def test_words_follow_from_the_family_by_the_changes(languages):
    for language in languages:
        forms = language.forms()
        regular = 0
        for concept in grammar.CONCEPTS:
            for affix, form in zip(language.family.affixes(concept), forms[concept], strict=True):
                root = language.family.roots[concept]
                word = root + affix if language.family.suffixing else affix + root
                for change in language.changes:
                    word = changed_letter_by_letter(change, word)
                if affix == "":
                    regular += word == form
                elif language.roots[concept] == root:
                    assert word == form
        assert regular >= 0.9 * len(grammar.CONCEPTS)


@pytest.mark.parametrize("count", [15, 150])
def test_no_word_is_lost_and_few_fall_together(count):
    for language in grammar.make_languages(count, seed=0)[:: count // 15]:
        roots = grammar.apply_changes(language.changes, language.roots)
        assert all(roots)
        assert len(set(roots)) > 0.8 * len(roots)


def test_distances_are_those_of_a_tree(languages):
    """Languages share the changes from before they parted, and none after."""
    distances = {}
    for one, other in itertools.product(languages, repeat=2):
        if one.family != other.family:
            continue
        together = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(one.changes, other.changes, strict=False)
        )
        shared = len(list(together))
        distance = grammar.distance(one, other)
        assert distance == len(one.changes) + len(other.changes) - 2 * shared
        assert distance == grammar.distance(other, one)
        assert (distance == 0) == (one == other)
        distances.setdefault(one.family.name, set()).add(distance)
    assert all(len(found) > 2 for found in distances.values())  # there are sub-branches


def edit_distance(one: str, other: str) -> float:
    """Levenshtein, as a share of the longer word."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, against in enumerate(other, 1):
            substituted = previous + (letter != against)
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, substituted)
    return row[-1] / max(len(one), len(other))


def test_relatives_resemble_each_other_as_recorded():
    sisters, cousins, strangers = [], [], []
    for seed in range(3):
        languages = grammar.make_languages(12, seed)
        words = [grammar.apply_changes(one.changes, one.roots[:50]) for one in languages]
        for i, j in itertools.combinations(range(12), 2):
            pairs = zip(words[i], words[j], strict=True)
            apart = np.mean([edit_distance(*pair) for pair in pairs])
            if languages[i].family != languages[j].family:
                strangers.append(apart)
            elif grammar.distance(languages[i], languages[j]) == 2 * grammar.CHANGES_PER_BRANCH:
                sisters.append(apart)
            else:
                cousins.append(apart)
    assert np.mean(sisters) + 0.05 < np.mean(cousins)
    assert max(sisters + cousins) + 0.05 < min(strangers)


def test_families_share_old_loans_only(languages):
    roots = {language.family.name: language.family.roots for language in languages}
    assert len(roots) == 4
    shared = [
        {concept for concept, (a, b) in enumerate(zip(one, other, strict=True)) if a == b}
        for one, other in itertools.combinations(roots.values(), 2)
    ]
    assert 0.25 < len(shared[0]) / len(grammar.CONCEPTS) < 0.35
    assert all(len(shared[0] ^ other) < 4 for other in shared)  # the same, but for coincidence


def test_proper_names_are_the_same_everywhere(languages):
    last = [language.forms()[grammar.NAMES.start :] for language in languages]
    assert all(forms == last[0] for forms in last)
    assert {len(set(forms)) for forms in last[0]} == {1}


def test_inflection_agrees_and_word_order_follows_the_family(languages):
    old, chase, near, often = (
        words[1]
        for words in (grammar.ADJECTIVES, grammar.VERBS, grammar.ADPOSITIONS, grammar.ADVERBS)
    )
    dogs = world.NounPhrase(noun=3, plural=True, adjective=old, numeral=7)
    cat = world.NounPhrase(noun=4, plural=False, adjective=None, numeral=None)
    clause = world.Clause(dogs, chase, grammar.PAST, True, cat, near, cat, often)
    meaning = world.Meaning(clause, None, None, "?", topic=0)
    for language in languages:
        forms = language.forms()
        noun, adjective = forms[3][3 + grammar.SUBJECT], forms[old][1]
        negated = [forms[grammar.NEGATION][0], forms[chase][3 + grammar.PAST]]
        oblique = [forms[near][0], forms[4][grammar.OBLIQUE]]
        described = [adjective, noun] if language.family.adjective_first else [noun, adjective]
        parts = {
            "S": ["7", *described],
            "V": negated,
            "O": [forms[4][grammar.OBJECT]],
            "X": oblique if language.family.prepositions else oblique[::-1],
            "A": [forms[often][0]],
        }
        order = grammar.WORD_ORDERS[language.family.word_order]
        expected = " ".join(word for part in order for word in parts[part]) + "?"
        assert world.render(language, [meaning]) == [expected]
