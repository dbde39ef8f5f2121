"""Accuracy and F1, exactly as scikit-learn and seqeval compute them, in NumPy alone."""

import dataclasses
from collections.abc import Sequence

import numpy as np


def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Returns the share of equal labels; both [n], n > 0."""
    return float(np.mean(np.asarray(true) == np.asarray(predicted)))


def macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """Returns the unweighted mean of the F1 of every label in ``true`` or ``predicted``.

    ``sklearn.metrics.f1_score(average="macro")``: a label that neither holds does not count, one
    that only one of them holds counts as 0.

    Args:
      true, predicted: labels [n], n > 0.
    """
    labels, ids = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    true_ids, predicted_ids = np.split(ids, 2)
    correct = np.bincount(true_ids[true_ids == predicted_ids], minlength=len(labels))
    return float(np.mean(2 * correct / np.bincount(ids)))  # 2 TP / (TP + FN + TP + FP)


@dataclasses.dataclass(frozen=True)
class EntityScores:
    """Micro-averaged over all entities; 0 where there is nothing to divide by."""

    precision: float
    recall: float
    f1: float


def entity_scores(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> EntityScores:
    """Scores of the entities that BIO (or BIOES) tags mark: right are those of one type and span.

    As ``seqeval`` 1.2.2 does by default, which is as conlleval does: an I- tag after O, or after
    another type, begins an entity. Tags of any form pass, see ``bare_tag_f1``.

    Args:
      true, predicted: the tags of every sentence; both with the same lengths.
    """
    pairs = list(zip(true, predicted, strict=True))
    if any(len(a) != len(b) for a, b in pairs):
        raise ValueError("a sentence has another number of tags than predictions")
    true_entities, predicted_entities = _entities(true), _entities(predicted)
    correct = len(true_entities & predicted_entities)
    precision = correct / len(predicted_entities) if predicted_entities else 0.0
    recall = correct / len(true_entities) if true_entities else 0.0
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return EntityScores(precision, recall, f1)


def bare_tag_f1(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Returns the F1 of the published part-of-speech evaluation: seqeval's, over bare tags.

    No linguistic measure, and here only to compare with published numbers; ``accuracy`` over
    tokens is the usual one. seqeval 1.2.2 takes the first letter of a tag for its prefix and the
    rest for its type: NOUN is an entity of type OUN that goes on as long as the type does. So

    - a run of equal tags is one entity, right only as a whole: where both of NOUN NOUN are to be
      found, NOUN VERB finds nothing;
    - S is the prefix of entities of one word: a run of SCONJ or SYM is as many entities;
    - SCONJ and CCONJ are of one type, CONJ: one predicted for the other is right, and where they
      stand side by side, entities are lost or too long;
    - X has no rest and gets the type of O: beside the end of a sentence, its entity is lost or too
      long.

    Args:
      true, predicted: universal part-of-speech tags of every sentence, of the same lengths.
    """
    return entity_scores(true, predicted).f1


def _entities(sentences: Sequence[Sequence[str]]) -> set[tuple[str, int, int]]:
    """Returns (type, first, last) of every entity, by position, each sentence followed by an O.

    With what seqeval keeps from one sentence to the next: the place where the last entity began.
    """
    entities = set()
    before, type_before, first = "O", "", 0
    for position, tag in enumerate(tag for sentence in sentences for tag in (*sentence, "O")):
        now, type_now = tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"
        changes = type_now != type_before
        if before in "ES" or (before in "BI" and now in "BSO") or (before not in "O." and changes):
            entities.add((type_before, first, position - 1))
        if now in "BS" or (before in "ESO" and now in "EI") or (now not in "O." and changes):
            first = position
        before, type_before = now, type_now
    return entities
