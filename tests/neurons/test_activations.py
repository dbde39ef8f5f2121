"""Which positions are read, against the text; what is pooled there, against loops."""

import math
import re

import numpy as np
import pytest

from langsamp_jax.data.store import Store
from langsamp_jax.evaluation.batching import split_lines
from langsamp_jax.evaluation.encoder import sentence_reader
from langsamp_jax.models.taps import unchanged
from langsamp_jax.neurons.activations import (
    all_tokens,
    among,
    firing,
    flatness,
    over_tokens,
    pieces_of,
    published_flatness,
    word_ends,
)
from langsamp_jax.text.tokenizer import open_tokenizer


def entropy_flatness(row: np.ndarray) -> float:
    positive = [float(a) for a in row if a > 0]
    shares = [a / sum(positive) for a in positive]
    return -sum(p * math.log(p) for p in shares) / math.log(len(row))


def authors_flatness(row: np.ndarray) -> float:
    shifted = [float(a) - float(min(row)) for a in row]
    p = [a / (max(shifted) - float(min(row))) + 1e-32 for a in shifted]
    return -sum(x * math.log2(x) for x in p) / len(row)


def test_flatness_by_hand_and_by_loop():
    rows = np.array([[2, 2, 2, 2], [5, 0, -1, 0], [-1, -2, -1, 0]], np.float32)
    assert flatness(rows) == pytest.approx([1, 0, 0], abs=1e-6)
    rows = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    np.testing.assert_allclose(flatness(rows), [entropy_flatness(r) for r in rows], rtol=1e-5)
    found = published_flatness(rows)
    np.testing.assert_allclose(found, [authors_flatness(r) for r in rows], rtol=1e-5)
    assert max(found) < 0.531  # the most that -p log2 p can be
    assert published_flatness(np.zeros((1, 50), np.float32)) == pytest.approx([0])  # dead neurons


def test_tokens_are_all_but_the_special_ones(tokenizer, lines):
    at, special = all_tokens(tokenizer), {0, 1, 2, tokenizer.vocabulary.mask_id}
    for ids in split_lines(*tokenizer.encode([*lines, "\u4e00"])):
        assert at(ids).tolist() == [int(i) not in special for i in ids]
    assert at(np.array([0, 3, 2])).tolist() == [False, True, False]  # unknown text is text


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_word_ends_are_where_a_space_follows(kind, tokenizer, lines, wordpiece_store):
    """So many as the text has words, and with all before them they spell its words."""
    if kind == "wordpiece":
        tokenizer = open_tokenizer(wordpiece_store)
        assert type(tokenizer).__name__ == "WordPieceTokenizer" and Store(wordpiece_store)
        lines = [re.sub("[^a-z ]", "", line) for line in lines]  # punctuation is words of its own
    at = word_ends(tokenizer)
    for line, ids in zip(lines, split_lines(*tokenizer.encode(lines)), strict=True):
        ends = at(ids)
        words, word = [], ""
        for piece, end in zip(ids[1:-1], ends[1:-1], strict=True):
            word += tokenizer.surfaces[piece].strip()
            if end:
                words.append(word)
                word = ""
        unknown = tokenizer.vocabulary.unk_id in ids
        assert word == "" and not ends[0] and not ends[-1]
        assert len(words) == len(line.split()) if unknown else words == line.split()


def test_positions_among_pieces(tokenizer, lines):
    ids, one = tokenizer.encode(lines[:1])[0], pieces_of(tokenizer, lines[:1])
    assert set(np.flatnonzero(one)) == {*ids.tolist()} - {0, 2}  # no <s>, no </s>
    at = among(all_tokens(tokenizer), one)
    assert at(ids).sum() == len(ids) - 2
    other = tokenizer.encode(lines[1:2])[0]
    assert at(other).tolist() == [bool(one[i]) and i not in (0, 2) for i in other.tolist()]


def test_what_is_pooled_is_what_passes(random_model, lines):
    model = random_model()
    at, lengths = word_ends(model.tokenizer), model.tokenizer.encode(lines)[1]
    lines = [line for line, length in zip(lines, lengths, strict=True) if length <= 40][:8]
    found = sentence_reader(model, (("neurons", firing),), at)(lines, "qaa_Latn").values
    everything = sentence_reader(model, (("neurons", unchanged),))
    expected = []
    for place, line in enumerate(lines):
        ends = at(model.tokenizer.encode([line])[0])
        values = everything([line], "qaa_Latn").values["neurons"][:, 0, : len(ends)][:, ends]
        pooled = {name: leaf[:, place] for name, leaf in found["neurons"].items()}
        np.testing.assert_allclose(pooled["mean"], values.mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(pooled["share"], (values > 0).mean(axis=1), atol=1e-6)
        assert pooled["count"].ravel().tolist() == [ends.sum()] * 3
        expected.append([[[f(row) for f in (entropy_flatness, authors_flatness)] for row in layer]
                         for layer in values])  # fmt: skip
    by_token = np.concatenate(expected, axis=1)  # [layers, tokens, 2]
    found = over_tokens(found["neurons"])
    np.testing.assert_allclose(found, by_token.mean(axis=1), rtol=2e-4)
