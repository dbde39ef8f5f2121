"""A sentence's vector: PyTorch's, on any number of devices, whatever else is in the batch.

The number of devices is fixed when jax starts, so this file is also the program that is run in a
process of its own: ``test_encoder.py MODEL LINES OUTPUT``.
"""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation import encoder
from langsamp_jax.evaluation.batching import split_lines
from langsamp_jax.evaluation.encoder import protocol_layer, sentence_encoder, sentence_reader
from langsamp_jax.evaluation.model import LoadedModel, load_model
from langsamp_jax.evaluation.pseudo_perplexity import pseudo_perplexity
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.taps import sum_over_positions
from langsamp_jax.text.tokenizer import Tokenizer

BOS, EOS = 0, 2
LAYER = 2  # two thirds of the way through 3


def main(model: Path, lines: Path, output: Path) -> None:
    trained, text = load_model(model), lines.read_text("utf-8").splitlines()
    vectors = sentence_encoder(trained, range(4))(text, "qaa_Latn").vectors
    measured = pseudo_perplexity(trained)("qaa_Latn", text[:5])["pseudo_perplexity"]
    np.savez(output, vectors=vectors, pseudo_perplexity=measured)
    print(jax.device_count())


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(model, params, tokens, mask, ids):
    return model.apply({"params": params}, tokens, mask, ids, method=model.hidden_states)


def directly(trained: LoadedModel, ids, layer=LAYER, tables=(0, 0)) -> np.ndarray:
    """The mean state of one row of ids, padded to the model's length so that all share a shape."""
    length = trained.config.max_length
    tokens, mask = np.full((1, length), 1, "i"), np.arange(length)[None] < len(ids)
    tokens[0, : len(ids)] = ids
    tables = TableIds(*(np.array([row], "i") for row in tables))
    states = hidden_states(trained.model, trained.params, tokens, mask, tables)
    return np.asarray(states[layer, 0, : len(ids)]).mean(axis=0)


def ids_of(tokenizer: Tokenizer, line: str) -> list[int]:
    return tokenizer.encode([line])[0].tolist()


@pytest.fixture(scope="module")
def trained(random_model) -> LoadedModel:
    return random_model()


@pytest.fixture(scope="module")
def encode(trained):
    return sentence_encoder(trained, [LAYER])


@pytest.fixture(scope="module")
def embed(encode):
    return lambda lines, name="qaa_Latn": encode(lines, name).vectors[0]


# PyTorch


@pytest.fixture(scope="module", params=["xlm-roberta", "xlm-roberta-xl"])
def pair(request, stock):
    return stock(request.param)


@pytest.fixture(scope="module")
def theirs(pair, lines) -> np.ndarray:
    """[layers, lines, hidden]: PyTorch's means, of each sentence alone, cut to 32 tokens."""
    torch = pytest.importorskip("torch")
    model, trained = pair
    means = []
    for ids in split_lines(*trained.tokenizer.encode(lines)):
        ids = ids if len(ids) <= 32 else np.append(ids[:31], EOS)
        with torch.no_grad():
            states = model(torch.tensor(ids)[None].long(), output_hidden_states=True).hidden_states
        means.append([state[0].double().mean(dim=0).numpy() for state in states])
    return np.array(means).swapaxes(0, 1)


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    for ours_layer, their_layer in zip(ours, theirs, strict=True):
        scale = np.abs(their_layer).max()  # of XL, whose blocks' outputs are not normalised
        np.testing.assert_allclose(ours_layer, their_layer, rtol=0, atol=1e-5 * max(1, scale / 4))


def test_every_layer_is_that_of_pytorch(pair, theirs, lines):
    _, trained = pair
    ids = split_lines(*trained.tokenizer.encode(lines))
    found = sentence_encoder(trained, range(4))(lines, "qaa_Latn")
    assert found.vectors.dtype == np.float32
    assert found.truncated.tolist() == [len(line) > 32 for line in ids]
    assert 0 < found.truncated.sum() < len(lines) and len(set(map(len, ids))) > 5
    assert_same(found.vectors, theirs)
    assert np.abs(np.diff(theirs, axis=0)).max(axis=(1, 2)).min() > 0.1  # layers differ


@pytest.mark.parametrize("layers", [[0], [1], [2], [3], [3, 1]])
def test_layers_above_are_not_missed(pair, theirs, lines, layers):
    found = sentence_encoder(pair[1], layers)(lines[:9], "qaa_Latn").vectors
    assert_same(found, theirs[layers, :9])


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["xlm-roberta"], indirect=True)
def test_several_devices(pair, theirs, lines, tmp_path):
    """Their number divides neither the lines nor their batches."""
    (tmp_path / "lines.txt").write_text("\n".join(lines[:25]), "utf-8")
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
    }
    files = [pair[1].path, tmp_path / "lines.txt", tmp_path / "found.npz"]
    command = [sys.executable, __file__, *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "8"
    with np.load(tmp_path / "found.npz") as found:
        assert_same(found["vectors"], theirs[:, :25])
        here = pseudo_perplexity(pair[1])("qaa_Latn", lines[:5])["pseudo_perplexity"]
        assert found["pseudo_perplexity"] == pytest.approx(here, rel=1e-5)


# One sentence and others


def test_a_vector_is_the_mean_over_all_tokens(trained, lines, embed):
    vectors = embed(lines)
    assert vectors.shape == (len(lines), 32)
    short = 0
    for line, vector in zip(lines, vectors, strict=True):
        ids = ids_of(trained.tokenizer, line)
        assert (ids[0], ids[-1]) == (BOS, EOS)
        if len(ids) <= 40:
            short += 1
            np.testing.assert_allclose(vector, directly(trained, ids), atol=1e-5)
    assert short > 20


def test_a_sentence_that_is_cut_keeps_its_end(trained, lines, encode):
    line = " ".join(lines[:20])
    ids = ids_of(trained.tokenizer, line)
    assert len(ids) > 80
    found = encode([lines[0], line], "qaa_Latn")
    assert found.truncated.tolist() == [False, True]
    vector = found.vectors[0, 1]
    np.testing.assert_allclose(vector, directly(trained, [*ids[:39], EOS]), atol=1e-5)
    assert np.abs(vector - directly(trained, ids[:40])).max() > 1e-3


@pytest.mark.parametrize("max_length", [40, 35])
def test_sentences_around_the_limits_of_length(max_length, random_model, tokenizer, lines):
    """Padding is rounded up to 40 positions, which a model of 35 does not have."""
    trained = random_model(max_length)
    inner = [i for line in lines for i in ids_of(tokenizer, line)[1:-1]]
    rows = [[BOS, *inner[:words], EOS] for words in (1, 30, max_length - 2, max_length - 1)]

    class Fixed:
        vocabulary = tokenizer.vocabulary

        def encode(self, lines):
            chosen = [rows[int(line)] for line in lines]
            return np.concatenate(chosen).astype("i"), np.array([len(row) for row in chosen])

    fixed = SimpleNamespace(
        **{name: getattr(trained, name) for name in ("model", "params", "max_length", "mesh")},
        **{name: getattr(trained, name) for name in ("encoder_ids", "place", "tokens_at_once")},
        tokenizer=Fixed(),
    )
    encode = sentence_encoder(fixed, [LAYER])
    expected = [directly(trained, row) for row in (*rows[:3], rows[2])]
    for number, vector in enumerate(expected):
        found = encode([str(number)], "qaa_Latn")
        np.testing.assert_allclose(found.vectors[0, 0], vector, atol=1e-5)
        assert found.truncated.tolist() == [number == 3]


def test_the_other_sentences_of_a_batch_do_not_matter(lines, embed):
    many = lines * 3  # several batches
    order = np.random.default_rng(0).permutation(len(many))
    vectors = embed(many)
    shuffled = embed([many[i] for i in order])
    np.testing.assert_allclose(shuffled, vectors[order], atol=1e-5)
    np.testing.assert_allclose(embed(lines[5:6])[0], vectors[5], atol=1e-5)
    assert np.abs(vectors[5] - vectors[6]).max() > 1e-3


def test_no_sentences_have_no_vectors(encode):
    found = encode([], "qaa_Latn")
    assert found.vectors.shape == (1, 0, 32) and found.truncated.shape == (0,)


def test_the_layer_of_the_published_code(random_model, lines):
    """The 8th of 12."""
    trained = random_model(num_hidden_layers=12)
    assert protocol_layer(trained) == 8
    assert protocol_layer(random_model(num_hidden_layers=24)) == 16
    vector = sentence_encoder(trained, [8])(lines[:1], "qaa_Latn").vectors[0, 0]
    ids = ids_of(trained.tokenizer, lines[0])
    np.testing.assert_allclose(vector, directly(trained, ids, layer=8), atol=1e-5)
    assert np.abs(vector - directly(trained, ids, layer=7)).max() > 1e-3


def test_language_and_script_play_no_part_but_at_the_input(random_model, lines, embed):
    latin, cyrillic = embed(lines[:4], "qaa_Latn"), embed(lines[:4], "qab_Cyrl")
    np.testing.assert_array_equal(latin, cyrillic)
    np.testing.assert_array_equal(embed(lines[:4], "xxx_Xxxx"), latin)  # a language it never saw

    trained = random_model(placement="input")
    encode = sentence_encoder(trained, [LAYER])
    for name, tables in (("qaa_Latn", (0, 1)), ("qab_Cyrl", (1, 0))):
        expected = directly(trained, ids_of(trained.tokenizer, lines[0]), tables=tables)
        np.testing.assert_allclose(encode(lines[:4], name).vectors[0, 0], expected, atol=1e-5)
    with pytest.raises(UserError, match="the model has no language 'xxx'"):
        encode(lines[:4], "xxx_Latn")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("site", "part"), [("states", "output"), ("neurons", "intermediate")])
def test_values_that_are_not_finite_are_refused(trained, lines, site, part, value):
    """At any site, of the last layer alone."""
    encoder_params = trained.params["encoder"]
    bias = np.array(encoder_params["layers"][part]["bias"])
    bias[-1, 3] = value
    layers = {
        **encoder_params["layers"],
        part: {**encoder_params["layers"][part], "bias": bias},
    }
    params = {**trained.params, "encoder": {**encoder_params, "layers": layers}}
    read = sentence_reader(
        dataclasses.replace(trained, params=params), ((site, sum_over_positions),)
    )
    with pytest.raises(UserError) as refused:
        read(lines[:2], "qaa_Latn")
    assert str(refused.value) == f"model: {site} gives values that are not finite in qaa_Latn"
    assert sentence_encoder(dataclasses.replace(trained, params=params), [2])(lines[:2], None)


def test_one_compilation_serves_all_checkpoints(random_model, lines):
    trained = random_model()
    halved = jax.tree.map(lambda leaf: leaf / 2, trained.params)
    other = dataclasses.replace(trained, params=halved)
    first = sentence_encoder(trained, [1, 3])(lines, "qaa_Latn").vectors
    compiled = encoder._read._cache_size()
    second = sentence_encoder(other, [1, 3])(lines, "qaa_Latn").vectors
    assert encoder._read._cache_size() == compiled
    assert np.abs(first - second).max() > 0.1


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
