"""Metrics: scikit-learn for labels; a slow segmentation and worked cases for entities."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.evaluation.metrics import accuracy, bare_tag_f1, entity_scores, macro_f1

BIO = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1))
def test_as_scikit_learn(pairs):
    true, predicted = np.array(pairs, np.int32).T
    assert accuracy(true, predicted) == sklearn.metrics.accuracy_score(true, predicted)
    expected = sklearn.metrics.f1_score(true, predicted, average="macro")
    assert macro_f1(true, predicted) == pytest.approx(expected, abs=1e-15)


def test_a_label_counts_where_it_is_true_or_predicted():
    assert macro_f1([0, 0], [0, 0]) == 1  # the other labels of the task are nowhere
    assert macro_f1([0, 0], [0, 5]) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1(["a", "b"], ["a", "c"]) == pytest.approx(1 / 3)


def segments(tags):
    """Entities of one sentence, from the definition: look for where each begins and ends."""
    found = []
    for start, tag in enumerate(tags):
        before = tags[start - 1] if start else "O"
        begins = tag[0] == "B" or (tag[0] == "I" and before[2:] != tag[2:])
        if begins:
            end = start + 1
            while end < len(tags) and tags[end] == f"I-{tag[2:]}":
                end += 1
            found.append((tag[2:], start, end))
    return found


@given(st.lists(st.lists(st.tuples(BIO, BIO), min_size=1, max_size=8), min_size=1, max_size=4))
def test_entities_as_defined(sentences):
    true = [[a for a, _ in sentence] for sentence in sentences]
    predicted = [[b for _, b in sentence] for sentence in sentences]
    expected, found = (
        [(i, *entity) for i, tags in enumerate(side) for entity in segments(tags)]
        for side in (true, predicted)
    )
    correct = sum(entity in expected for entity in found)
    scores = entity_scores(true, predicted)
    assert scores.precision == (correct / len(found) if found else 0)
    assert scores.recall == (correct / len(expected) if expected else 0)
    both = len(expected) + len(found)
    assert scores.f1 == pytest.approx(2 * correct / both if both else 0)


@pytest.mark.parametrize(
    ("true", "predicted", "correct"),
    [
        ("O B-PER I-PER O", "O B-PER I-PER O", (1, 1, 1)),
        ("O B-PER I-PER O", "O I-PER I-PER O", (1, 1, 1)),  # I- after O begins one
        ("B-PER I-PER", "B-PER B-PER", (0, 1, 2)),
        ("B-PER I-LOC", "B-PER B-LOC", (2, 2, 2)),  # and so does I- of another type
        ("B-PER I-PER", "B-PER O", (0, 1, 1)),  # too short is wrong
        ("B-PER I-PER E-PER", "B-PER I-PER I-PER", (1, 1, 1)),
        ("S-PER S-PER", "B-PER B-PER", (2, 2, 2)),
        ("B-PER E-PER I-PER", "B-PER I-PER B-PER", (2, 2, 2)),  # after E- another begins
        ("E-PER E-PER", "B-PER B-PER", (2, 2, 2)),
        ("S-PER I-PER", "S-PER B-PER", (2, 2, 2)),  # and so after S-
        ("S-PER E-PER", "B-PER B-PER", (2, 2, 2)),
        ("B-A-B I-A-B", "B-A-B I-B", (0, 1, 2)),  # only the first dash parts prefix and type
        ("B I", "B I", (1, 1, 1)),  # without types
        ("O O", "O O", (0, 0, 0)),
        ("O O", "B-PER O", (0, 0, 1)),
    ],
)
def test_entities_by_hand(true, predicted, correct):
    right, expected, found = correct
    scores = entity_scores([true.split()], [predicted.split()])
    assert scores.precision == (right / found if found else 0)
    assert scores.recall == (right / expected if expected else 0)
    assert scores.f1 == pytest.approx(2 * right / (expected + found) if expected + found else 0)


def test_no_entity_goes_over_the_end_of_a_sentence():
    scores = entity_scores([["B-PER"], ["I-PER"]], [["B-PER"], ["B-PER"]])
    assert (scores.precision, scores.recall) == (1, 1)


def test_tags_and_predictions_are_of_the_same_words():
    with pytest.raises(ValueError):
        entity_scores([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="another number of tags"):
        entity_scores([["O", "O"]], [["O"]])


@pytest.mark.parametrize(
    ("true", "predicted", "f1"),
    [
        # Entities OUN 0-1, ERB 2 against OUN 0, ERB 1-2.
        ("NOUN NOUN VERB", "NOUN VERB VERB", 0),
        ("NOUN NOUN VERB", "NOUN NOUN ADP", 1 / 2),
        ("DET ADJ NOUN", "DET ADJ NOUN", 1),
        # One YM each: 3 true, 2 of 3 found, the third is an UNCT.
        ("SYM SYM SYM", "SYM SYM PUNCT", 2 / 3),
        ("SCONJ VERB", "CCONJ VERB", 1),
        # CONJ 0, CONJ 1 against CONJ 1 alone: the S begins one and the C before it is lost.
        ("SCONJ SCONJ", "CCONJ SCONJ", 2 / 3),
        # CONJ 0 and CONJ 0-1: what goes on after S keeps its beginning.
        ("SCONJ CCONJ", "SCONJ SCONJ", 1 / 2),
        ("NOUN X VERB", "NOUN X VERB", 1),
        # The X at the end is no entity: one of one, and one of two.
        ("NOUN X", "NOUN VERB", 2 / 3),
    ],
)
def test_bare_tags_as_seqeval_takes_them(true, predicted, f1):
    assert bare_tag_f1([true.split()], [predicted.split()]) == pytest.approx(f1)


def test_an_x_that_begins_a_sentence_has_no_beginning_of_its_own():
    # Entities: OUN 0, and for X, at 2, one from 0 to 2; against OUN 0 and ERB 2. ERB 3 in both.
    true = [["NOUN"], ["X", "VERB"]]
    predicted = [["NOUN"], ["ADP", "VERB"]]
    assert bare_tag_f1(true, predicted) == pytest.approx(2 / 3)
    assert bare_tag_f1([["X", "VERB"]], [["X", "VERB"]]) == 1
    # Alone it is none at all, but in the first sentence it begins one that nothing ends.
    assert bare_tag_f1([["NOUN"], ["X"]], [["NOUN"], ["VERB"]]) == pytest.approx(2 / 3)
