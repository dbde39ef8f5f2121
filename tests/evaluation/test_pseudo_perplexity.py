"""Pseudo-perplexity: the slow loop over PyTorch's model, and whose vectors count."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation import pseudo_perplexity as module
from langsamp_jax.evaluation.batching import split_lines
from langsamp_jax.evaluation.model import load_model
from langsamp_jax.evaluation.pseudo_perplexity import pseudo_perplexity
from langsamp_jax.training.export import export_run

EOS, UNK = 2, 3


def slowly(model, trained, lines: list[str]) -> list[float]:
    """Nats of each token between the specials, each masked in a copy of its own sentence."""
    torch = pytest.importorskip("torch")
    nats = []
    for ids in split_lines(*trained.tokenizer.encode(lines)):
        ids = ids if len(ids) <= 32 else np.append(ids[:31], EOS)
        inside = range(1, len(ids) - 1)
        tokens = torch.tensor(ids).long().repeat(len(inside), 1)
        for row, position in zip(tokens, inside, strict=True):
            row[position] = trained.tokenizer.vocabulary.mask_id
        with torch.no_grad():
            predicted = model(tokens).logits.double().log_softmax(dim=-1)
        nats += [-predicted[i, at, ids[at]].item() for i, at in enumerate(inside)]
    return nats


@pytest.fixture(scope="module")
def pair(stock):
    return stock()


@pytest.fixture(scope="module")
def measure(pair):
    return pseudo_perplexity(pair[1])


def test_it_is_the_slow_loop(pair, measure, lines):
    chosen = [*lines[:3], lines[20], "a", "ж"]  # 20: of three sentences, too long; ж: unknown
    found, nats = measure("qaa_Latn", chosen), slowly(*pair, chosen)
    ids = split_lines(*pair[1].tokenizer.encode(chosen))
    assert [len(row) > 32 for row in ids] == [False, False, False, True, False, False]
    assert found["tokens"] == len(nats) == sum(min(len(row), 32) - 2 for row in ids)
    assert found["pseudo_perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    read = sum(len(line) for line in chosen if line != lines[20])
    read += len(lines[20]) * 30 / (len(ids[3]) - 2)
    bits = sum(nats) / math.log(2) / read
    assert found["bits_per_character"] == pytest.approx(bits, rel=1e-4)
    assert found["unknown"] == sum((row == UNK).sum() for row in ids) / len(nats) > 0
    assert (found["sentences"], found["truncated"]) == (6, 1)
    assert found["language"] == "qaa_Latn"


def test_a_uniform_model(random_model, lines):
    """One that knows nothing has as many choices as there are pieces."""
    trained = random_model(placement="none")
    params = dict(trained.params)
    params["decoder_bias"] = np.zeros_like(params["decoder_bias"])
    params["word_embeddings"] = np.zeros_like(params["word_embeddings"])
    measure = pseudo_perplexity(dataclasses.replace(trained, params=params))
    found = measure("qaa_Latn", lines[:4])
    assert found["pseudo_perplexity"] == pytest.approx(trained.tokenizer.vocab_size, rel=1e-4)
    characters = sum(map(len, lines[:4]))
    bits = found["tokens"] * math.log2(trained.tokenizer.vocab_size) / characters
    assert found["bits_per_character"] == pytest.approx(bits, rel=1e-4)


def test_text_that_the_tokenizer_drops(measure):
    """As a lone zero-width space: it costs nothing and counts for nothing."""
    assert measure("qaa_Latn", ["ab", "\u200b"]) == {**measure("qaa_Latn", ["ab"]), "sentences": 2}
    for nothing in ([], ["\u200b"]):
        with pytest.raises(UserError, match="no tokens"):
            measure("qaa_Latn", nothing)


def test_the_vectors_of_the_language_are_used(make_run, store_path, tmp_path, lines):
    """As in the export with the language folded in; without it they are another model's."""
    run = make_run(store_path)
    export_run(run, tmp_path / "none")
    measures = {None: pseudo_perplexity(load_model(tmp_path / "none"))}
    ours, found = pseudo_perplexity(load_model(run.path)), []
    for name in ("qaa_Latn", "qab_Cyrl"):
        export_run(run, tmp_path / name, fold=name)
        measures[name] = pseudo_perplexity(load_model(tmp_path / name))
        found.append(ours(name, lines[:4])["pseudo_perplexity"])
        folded = measures[name]("eng_Latn", lines[:4])  # the fold decides, not the name
        assert found[-1] == pytest.approx(folded["pseudo_perplexity"], rel=1e-4)
    plain = measures[None]("qaa_Latn", lines[:4])["pseudo_perplexity"]
    logs = np.log([*found, plain])
    assert np.abs(np.subtract.outer(logs, logs))[~np.eye(3, dtype=bool)].min() > 0.01


def test_a_language_without_vector(random_model, lines):
    measure = pseudo_perplexity(random_model())
    with pytest.raises(UserError, match="the model has no language 'qxa'; did you mean qa"):
        measure("qxa_Latn", lines[:2])
    with pytest.raises(UserError, match="the model has no script 'Grek'"):
        measure("qaa_Grek", lines[:2])


def test_a_plain_encoder_is_refused(pair):
    plain = dataclasses.replace(pair[1], has_head=False)
    with pytest.raises(UserError, match="is a plain encoder; .* needs a language-modelling head"):
        pseudo_perplexity(plain)


def test_one_compilation_serves_all_checkpoints(random_model, lines):
    trained = random_model()
    halved = jax.tree.map(lambda leaf: leaf / 2, trained.params)
    other = dataclasses.replace(trained, params=halved)
    first = pseudo_perplexity(trained)("qaa_Latn", lines[:2])
    compiled = module._losses._cache_size()
    second = pseudo_perplexity(other)("qaa_Latn", lines[:2])
    assert module._losses._cache_size() == compiled
    assert first["pseudo_perplexity"] != second["pseudo_perplexity"]
