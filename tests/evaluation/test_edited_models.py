"""The mean that an edit puts in is that of all tokens of a text, whatever the batches."""

import numpy as np
import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.encoder import (
    SENTENCES,
    reference_text,
    sentence_encoder,
    sentence_ids,
    sentence_reader,
    site_means,
)
from langsamp_jax.models.edits import parse_edit
from langsamp_jax.models.taps import SITES, unchanged


@pytest.mark.slow
def test_a_mean_is_over_tokens_not_over_sentences(random_model, lines):
    model = random_model()
    text = [("qaa_Latn", lines[:4]), ("qab_Latn", lines[20:23])]
    ids = [(name, sentence_ids(model, part)[0]) for name, part in text]
    means = site_means(model, SITES, ids)
    sums, tokens = dict.fromkeys(SITES, 0.0), 0
    for line in [*lines[:4], *lines[20:23]]:  # alone, and so without padding but for the bucket's
        count = len(model.tokenizer.encode([line])[0])
        read = sentence_reader(model, tuple((site, unchanged) for site in SITES))
        for site, values in read([line], "qaa_Latn").values.items():
            sums[site] = sums[site] + values[:, 0, : min(count, 40)].sum(axis=1, dtype=np.float64)
        tokens += min(count, 40)
    for site in SITES:
        expected = sums[site] / tokens
        np.testing.assert_allclose(means[site], expected, atol=2e-6 * np.abs(expected).max())


def test_a_mean_needs_tokens(random_model, refused):
    for text in ([], [("qaa_Latn", [])]):
        assert "no tokens" in refused(site_means, random_model(), ("states",), text)


def test_the_text_is_the_first_sentences_of_each_language(random_model, tmp_path):
    for name in ("qaa_Latn", "qab_Latn"):
        lines = [f"{name} {i}" for i in range(SENTENCES + 5)]
        (tmp_path / f"{name}.txt").write_text("\n".join([lines[0], "", *lines[1:]]), "utf-8")
    model = random_model()
    found = dict(reference_text(model, tmp_path))
    assert list(found) == ["qaa_Latn", "qab_Latn"]
    expected, _ = sentence_ids(model, [f"qab_Latn {i}" for i in range(SENTENCES)])
    assert [*map(list, found["qab_Latn"])] == [*map(list, expected)]


def test_an_edited_model_is_evaluated_as_any_other(random_model, lines):
    model = random_model()
    before = model.encode(lines[:3], layer=3)
    other = model.edited([parse_edit("block@0-1"), parse_edit("ffn@2")], None)
    assert other.config.num_hidden_layers == 1
    vectors = sentence_encoder(other, [0, 1])(lines[:3], None).vectors
    np.testing.assert_array_equal(vectors[0], model.encode(lines[:3], layer=0))
    assert np.abs(vectors[1] - before).max() > 0.1
    np.testing.assert_array_equal(model.encode(lines[:3], layer=3), before)
    with pytest.raises(UserError, match="layer 2: .* has the layers 0 .* to 1"):
        other.encode(lines[:3], layer=2)
    with pytest.raises(UserError, match=r"ffn@0=mean needs a text .*: --reference CORPUS"):
        model.edited([parse_edit("attention@0"), parse_edit("ffn@0=mean")], None)
