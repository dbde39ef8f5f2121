"""Sentence retrieval: what is ranked, what a sentence's vector is, which pairs count."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from langsamp_jax.errors import UserError
from langsamp_jax.evaluate.retrieval import evaluate_retrieval, ranks, sentence_encoder
from langsamp_jax.inventory import Inventory
from langsamp_jax.model import LangSamp, ModelConfig, init_params
from langsamp_jax.tokenizer import Tokenizer, load_tokenizer

BOS, EOS = 0, 2
INVENTORY = Inventory(("qaa", "qab"), ("Cyrl", "Latn"))
LAYER = 2  # two thirds of the way through 3


# Ranks


@pytest.mark.parametrize(("n", "width"), [(1, 4), (2, 3), (50, 8), (300, 32)])
def test_ranks_are_those_of_a_full_sort(n, width):
    rng = np.random.default_rng(n)
    pool = rng.normal(size=(n, width))
    queries = pool + rng.normal(size=(n, width))
    similarity = cosine_similarity(queries, pool)
    order = np.argsort(-similarity, axis=1)
    expected = [list(order[i]).index(i) for i in range(n)]
    np.testing.assert_array_equal(ranks(queries, pool), expected)
    assert n < 50 or 0 < np.mean(np.array(expected) < 1) < 1


def test_ranks_know_no_length():
    rng = np.random.default_rng(0)
    queries, pool = rng.normal(size=(40, 8)), rng.normal(size=(40, 8))
    factors = rng.uniform(0.01, 100, (2, 40, 1))
    np.testing.assert_array_equal(
        ranks(queries * factors[0], pool * factors[1]), ranks(queries, pool)
    )


def test_each_sentence_finds_itself():
    vectors = np.random.default_rng(0).normal(size=(100, 16)).astype("f")
    assert not ranks(vectors, vectors).any()


def test_ties_count_as_wrong():
    queries = np.eye(4)
    pool = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    np.testing.assert_array_equal(ranks(queries, pool), [0, 1, 3, 0])


@pytest.mark.parametrize("n", [2, 5, 33, 100, 500])
@pytest.mark.parametrize("width", [32, 33, 768])
def test_a_collapsed_encoder_finds_nothing(n, width):
    """Equal vectors need not have bitwise equal products: those depend on a matrix's tiling."""
    for seed in range(4):
        vector = np.random.default_rng(seed).normal(size=(1, width)).astype("f")
        vectors = np.repeat(vector, n, axis=0)
        np.testing.assert_array_equal(ranks(vectors, vectors.copy()), np.full(n, n - 1))
    np.testing.assert_array_equal(ranks(np.zeros((n, width)), np.zeros((n, width))), n - 1)


def test_rounding_in_a_collapsed_encoder_finds_nothing():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 64)).astype("f")
    queries, pool = (base * (1 + 1e-7 * rng.normal(size=(200, 64)).astype("f")) for _ in range(2))
    np.testing.assert_array_equal(ranks(queries, pool), np.full(200, 199))


# A sentence's vector


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file) -> Tokenizer:
    return load_tokenizer(tokenizer_file)


@pytest.fixture(scope="module")
def lines(corpus) -> list[str]:
    """Different sentences of different lengths, not in order of length."""
    found = (corpus / "held_out" / "qaa_Latn.txt").read_text("utf-8").splitlines()[:40]
    longer = [" ".join(found[i : i + 3]) for i in range(0, 9, 3)]
    return [*found[:20], *longer, *found[20:], found[0].split()[0]]


def model_of(tokenizer: Tokenizer, placement: str = "output", layers: int = 3) -> LangSamp:
    config = ModelConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_length=40,
        placement=placement,
    )
    return LangSamp(config, tokenizer.vocab_size, 2, 2)


def random_params(model: LangSamp):
    rng = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype("f"), shapes)


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(model, params, tokens, mask, language_ids, script_ids):
    ids = language_ids, script_ids
    return model.apply({"params": params}, tokens, mask, *ids, method=model.hidden_states)


def directly(model, params, ids, layer=LAYER, tables=(0, 0)) -> np.ndarray:
    """The mean state of one row of ids, padded to the model's length so that all share a shape."""
    tokens, mask = np.full((1, 40), 1, "i"), np.arange(40)[None] < len(ids)
    tokens[0, : len(ids)] = ids
    tables = (np.array([row], "i") for row in tables)
    states = hidden_states(model, params, tokens, mask, *tables)
    return np.asarray(states[layer, 0, : len(ids)]).mean(axis=0)


def ids_of(tokenizer: Tokenizer, line: str) -> list[int]:
    return tokenizer.encode([line])[0].tolist()


@pytest.fixture(scope="module")
def embed(tokenizer):
    model = model_of(tokenizer)
    return sentence_encoder(model, random_params(model), tokenizer, INVENTORY)


def test_a_vector_is_the_mean_over_all_tokens(tokenizer, lines, embed):
    model = model_of(tokenizer)
    params, vectors = random_params(model), embed(lines, "qaa_Latn")
    assert vectors.shape == (len(lines), 32)
    short = 0
    for line, vector in zip(lines, vectors, strict=True):
        ids = ids_of(tokenizer, line)
        assert (ids[0], ids[-1]) == (BOS, EOS)
        if len(ids) <= 40:
            short += 1
            np.testing.assert_allclose(vector, directly(model, params, ids), atol=1e-5)
    assert short > 20


def test_a_sentence_that_is_cut_keeps_its_end(tokenizer, lines, embed):
    model = model_of(tokenizer)
    line = " ".join(lines[:20])
    ids = ids_of(tokenizer, line)
    assert len(ids) > 80
    vector, params = embed([lines[0], line], "qaa_Latn")[1], random_params(model)
    np.testing.assert_allclose(vector, directly(model, params, [*ids[:39], EOS]), atol=1e-5)
    without = directly(model, params, ids[:40])
    assert np.abs(vector - without).max() > 1e-3


@pytest.mark.parametrize("words", [1, 30, 38, 39])
def test_sentences_around_the_limits_of_length(words, tokenizer, lines, embed):
    """Of 3, 32, 40 and 41 tokens: lengths are rounded up to 32, the model has 40 positions."""
    inner = [i for line in lines for i in ids_of(tokenizer, line)[1:-1]][:words]

    class Fixed:
        vocabulary = tokenizer.vocabulary

        def encode(self, lines):
            row = np.array([BOS, *inner, EOS], np.int32)
            return np.tile(row, len(lines)), np.full(len(lines), len(row), np.int64)

    model = model_of(tokenizer)
    params = random_params(model)
    fixed = sentence_encoder(model, params, Fixed(), INVENTORY)
    expected = directly(model, params, [BOS, *inner[:38], EOS])
    np.testing.assert_allclose(fixed(["x"], "qaa_Latn")[0], expected, atol=1e-5)


def test_the_other_sentences_of_a_batch_do_not_matter(lines, embed):
    many = lines * 3  # three batches
    order = np.random.default_rng(0).permutation(len(many))
    vectors = embed(many, "qaa_Latn")
    shuffled = embed([many[i] for i in order], "qaa_Latn")
    np.testing.assert_allclose(shuffled, vectors[order], atol=1e-5)
    np.testing.assert_allclose(embed(lines[5:6], "qaa_Latn")[0], vectors[5], atol=1e-5)
    assert np.abs(vectors[5] - vectors[6]).max() > 1e-3


def test_the_layer_of_the_published_code(tokenizer, lines):
    """The 8th of 12."""
    model = model_of(tokenizer, layers=12)
    params = random_params(model)
    vector = sentence_encoder(model, params, tokenizer, INVENTORY)(lines[:1], "qaa_Latn")[0]
    ids = ids_of(tokenizer, lines[0])
    np.testing.assert_allclose(vector, directly(model, params, ids, layer=8), atol=1e-5)
    assert np.abs(vector - directly(model, params, ids, layer=7)).max() > 1e-3


def test_language_and_script_play_no_part_but_at_the_input(tokenizer, lines, embed):
    latin, cyrillic = embed(lines[:4], "qaa_Latn"), embed(lines[:4], "qab_Cyrl")
    np.testing.assert_array_equal(latin, cyrillic)
    np.testing.assert_array_equal(embed(lines[:4], "xxx_Xxxx"), latin)  # a language it never saw

    model = model_of(tokenizer, "input")
    params = random_params(model)
    encode = sentence_encoder(model, params, tokenizer, INVENTORY)
    for name, tables in (("qaa_Latn", (0, 1)), ("qab_Cyrl", (1, 0))):
        expected = directly(model, params, ids_of(tokenizer, lines[0]), tables=tables)
        np.testing.assert_allclose(encode(lines[:4], name)[0], expected, atol=1e-5)
    with pytest.raises(UserError, match="the model has no language 'xxx'"):
        encode(lines[:4], "xxx_Latn")


# The table of languages


def write(folder: Path, **languages: list[str]) -> Path:
    folder.mkdir()
    for name, lines in languages.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def by_number(lines, name) -> np.ndarray:
    """A stand-in: ``17 words`` is the 17th unit vector, in every language."""
    assert all(lines) or name == "qaa_Latn"
    return np.eye(40)[[int(line.split()[0]) if line else 39 for line in lines]]


def test_the_same_text_is_found_and_collapsed_vectors_are_not(corpus, embed, tmp_path):
    lines = list(
        dict.fromkeys((corpus / "held_out" / "qaa_Latn.txt").read_text("utf-8").split("\n"))
    )
    lines = [line for line in lines if line]
    folder = write(tmp_path / "twice", qaa_Latn=lines, qab_Latn=lines)
    (record,) = evaluate_retrieval(embed, folder, "qaa_Latn")
    assert record == {
        "language": "qab_Latn",
        "sentences": len(lines),
        "top1": 1.0,
        "top10": 1.0,
        "chance_top1": 1 / len(lines),
        "chance_top10": 10 / len(lines),
    }
    (record,) = evaluate_retrieval(lambda x, _: np.ones((len(x), 32)), folder, "qaa_Latn")
    assert (record["top1"], record["top10"]) == (0.0, 0.0)


def test_an_encoder_that_says_one_thing_scores_nothing(tokenizer, corpus):
    """Every state is the last LayerNorm's bias; means over different lengths differ by rounding."""
    model = model_of(tokenizer)
    params = random_params(model)
    params["encoder"]["layers"]["output_layer_norm"]["scale"] *= 0
    embed = sentence_encoder(model, params, tokenizer, INVENTORY)
    records = evaluate_retrieval(embed, corpus / "held_out", "qaa_Latn")
    assert len(records) == 5
    for record in records:
        assert record["sentences"] > 10
        assert (record["top1"], record["top10"]) == (0.0, 0.0), record


def test_accuracies_are_shares_of_the_queries(tmp_path):
    """Of 30 sentences 20 stand where they should and 10 are moved by one."""
    straight = [f"{i} a" for i in range(30)]
    moved = [f"{i} b" for i in [*range(20), *range(21, 30), 20]]
    folder = write(tmp_path / "c", qaa_Latn=straight, qab_Latn=moved, qab_Cyrl=straight[:5])
    cyrillic, latin = evaluate_retrieval(by_number, folder, "qaa_Latn")
    assert (cyrillic["language"], latin["language"]) == ("qab_Cyrl", "qab_Latn")
    assert latin["top1"] == pytest.approx(2 / 3)
    assert (cyrillic["sentences"], cyrillic["top1"]) == (5, 1.0)  # the shorter file decides
    assert (cyrillic["chance_top1"], cyrillic["chance_top10"]) == (0.2, 1.0)


def test_a_missing_line_leaves_out_the_pair(tmp_path):
    pivot, other = ([f"{i} {word}" for i in range(12)] for word in "ab")
    pivot[3] = other[5] = other[11] = ""
    folder = write(tmp_path / "c", qaa_Latn=pivot, qab_Latn=other)
    (record,) = evaluate_retrieval(by_number, folder, "qaa_Latn")
    assert (record["sentences"], record["top1"]) == (9, 1.0)  # misaligned, nothing would be found
    assert record["chance_top1"] == 1 / 9


def test_what_cannot_be_measured_is_refused(tmp_path):
    folder = write(tmp_path / "c", qaa_Latn=["1 a", ""], qab_Latn=["", "2 b"])
    with pytest.raises(UserError, match=r"has no eng_Latn\.txt .*--pivot"):
        evaluate_retrieval(by_number, folder, "eng_Latn")
    with pytest.raises(UserError, match="no sentences that are aligned with qaa_Latn"):
        evaluate_retrieval(by_number, folder, "qaa_Latn")
    with pytest.raises(UserError, match="not found"):
        evaluate_retrieval(by_number, tmp_path / "nowhere", "qaa_Latn")
