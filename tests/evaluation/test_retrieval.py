"""Sentence retrieval: what is ranked, which pairs count, which languages are left out."""

import collections

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.batching import split_lines, truncate
from langsamp_jax.evaluation.datasets.pairs import SentencePairs, read_sentence_pairs
from langsamp_jax.evaluation.encoder import Encoded, sentence_encoder
from langsamp_jax.evaluation.retrieval import evaluate_pairs, folder_pairs, ranks

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


# The table of languages


def by_number(lines, name) -> Encoded:
    """A stand-in: ``17 words`` is the 17th unit vector, in every language; ``long`` is cut."""
    vectors = np.eye(40, dtype=np.float32)[[int(line.split()[0]) for line in lines]]
    return Encoded(vectors[None], np.array(["long" in line for line in lines]))


def evaluated(encode, folder, pivot, journal):
    """The records of a corpus, and why the other languages have none."""
    pairs, skipped = folder_pairs(folder, pivot)
    records, unread = evaluate_pairs(encode, pivot, pairs, journal)
    return records, skipped | unread


def test_the_same_text_is_found_and_collapsed_vectors_are_not(
    corpus, random_model, write_corpus, tmp_path, journal
):
    lines = list(
        dict.fromkeys((corpus / "held_out" / "qaa_Latn.txt").read_text("utf-8").split("\n"))
    )
    lines = [line for line in lines if line]
    folder = write_corpus(tmp_path / "twice", qaa_Latn=lines, qab_Latn=lines)
    encode = sentence_encoder(random_model(96), [2])
    ((record,), skipped) = evaluated(encode, folder, "qaa_Latn", journal)
    assert record == {
        "language": "qab_Latn",
        "sentences": len(lines),
        "truncated": 0,
        **{"top1": 1.0, "top5": 1.0, "top10": 1.0},
        **{f"chance_top{k}": k / len(lines) for k in (1, 5, 10)},
    }
    assert skipped == {}


def test_an_encoder_that_says_one_thing_scores_nothing(random_model, corpus, journal):
    """Every state is the last LayerNorm's bias; means over different lengths differ by rounding."""
    trained = random_model()
    trained.params["encoder"]["layers"]["output_layer_norm"]["scale"] *= 0
    encode = sentence_encoder(trained, [2])
    records, _ = evaluated(encode, corpus / "held_out", "qaa_Latn", journal)
    assert len(records) == 5
    for record in records:
        assert record["sentences"] > 10
        assert (record["top1"], record["top5"], record["top10"]) == (0, 0, 0), record


def test_accuracies_are_shares_of_the_queries(write_corpus, tmp_path, journal):
    """Of 30 sentences 20 stand where they should and 10 are moved by one."""
    straight = [f"{i} a" for i in range(30)]
    moved = [f"{i} b" for i in [*range(20), *range(21, 30), 20]]
    few = straight[:5] + [""] * 25
    folder = write_corpus(tmp_path / "c", qaa_Latn=straight, qab_Latn=moved, qab_Cyrl=few)
    (cyrillic, latin), _ = evaluated(by_number, folder, "qaa_Latn", journal)
    assert (cyrillic["language"], latin["language"]) == ("qab_Cyrl", "qab_Latn")
    assert latin["top1"] == pytest.approx(2 / 3)
    assert (cyrillic["sentences"], cyrillic["top1"]) == (5, 1.0)
    assert [cyrillic[f"chance_top{k}"] for k in (1, 5, 10)] == [0.2, 1.0, 1.0]


def test_top_k_worked_by_hand(journal):
    """Query i is nearest to i of the pool but for i others: its rank is i."""
    n = 12
    queries = np.eye(n, dtype=np.float32)
    pool = np.zeros((n, n), np.float32)
    for i in range(n):  # column i: what the sentences of the pool have of query i
        pool[:, i] = np.where(np.arange(n) == i, 0.5, np.where((np.arange(n) - i) % n <= i, 0.6, 0))
    pool = np.hstack([pool, np.sqrt(16 - (pool**2).sum(axis=1, keepdims=True))])  # all as long
    queries = np.hstack([queries, np.zeros((n, 1), np.float32)])
    vectors = {"qaa_Latn": queries, "qab_Latn": pool}
    number = {f"{i:02}": i for i in range(n)}

    def encode(lines, name):
        return Encoded(vectors[name][[number[line] for line in lines]][None], np.zeros(len(lines)))

    pairs = {"qab_Latn": SentencePairs(list(number), list(number), 0)}
    ((record,), _) = evaluate_pairs(encode, "qaa_Latn", pairs, journal)
    np.testing.assert_array_equal(ranks(queries, pool), range(n))
    assert [record[f"top{k}"] for k in (1, 5, 10)] == [1 / 12, 5 / 12, 10 / 12]
    assert [record[f"chance_top{k}"] for k in (1, 5, 10)] == [1 / 12, 5 / 12, 10 / 12]


def test_a_missing_line_leaves_out_the_pair(write_corpus, tmp_path, journal):
    pivot, other = ([f"{i} {word}" for i in range(12)] for word in "ab")
    pivot[3] = other[5] = other[11] = ""
    folder = write_corpus(tmp_path / "c", qaa_Latn=pivot, qab_Latn=other)
    ((record,), _) = evaluated(by_number, folder, "qaa_Latn", journal)
    assert (record["sentences"], record["top1"]) == (9, 1.0)  # misaligned, nothing would be found
    assert record["chance_top1"] == 1 / 9


def test_sentences_that_are_cut_are_counted_on_both_sides(write_corpus, tmp_path, journal):
    pivot = ["0 long", "1 a", "2 long", "3 a"]
    one, two = ["0 long", "1 long", "", "3 b"], ["", "1 b", "2 b", "3 b"]
    folder = write_corpus(tmp_path / "c", qaa_Latn=pivot, qab_Latn=one, qab_Cyrl=two)
    records, _ = evaluated(by_number, folder, "qaa_Latn", journal)
    assert {r["language"]: r["truncated"] for r in records} == {"qab_Latn": 3, "qab_Cyrl": 1}


def test_each_sentence_of_the_pivot_is_encoded_once(journal):
    asked = collections.Counter()

    def counting(lines, name):
        asked.update((name, line) for line in lines)
        return by_number(lines, name)

    pivots = {"qab_Latn": ["1", "2", "3"], "qac_Latn": ["3", "4"], "qad_Latn": ["2", "4", "1"]}
    pairs = {name: SentencePairs(lines, lines, 0) for name, lines in pivots.items()}
    records, _ = evaluate_pairs(counting, "qaa_Latn", pairs, journal)
    assert [record["top1"] for record in records] == [1, 1, 1]
    assert {line: n for (name, line), n in asked.items() if name == "qaa_Latn"} == {
        line: 1 for line in "1234"
    }
    assert set(asked.values()) == {1}


def test_what_cannot_be_measured_is_named(write_corpus, tmp_path, journal, random_model):
    """Another number of lines, nothing in common, bytes that are no text, no row in the tables."""
    lines = ["1 a", "2 b", ""]
    others = {
        "qab_Cyrl": lines,
        "qac_Latn": lines,
        "qad_Latn": lines[:2],
        "qae_Latn": ["", "", "c"],
    }
    folder = write_corpus(tmp_path / "c", qaa_Latn=lines, **others)
    (folder / "qaf_Latn.txt").write_bytes(b"1 a\n2 \xff\n\n")
    encode = sentence_encoder(random_model(placement="input"), [2])
    (record,), skipped = evaluated(encode, folder, "qaa_Latn", journal)
    assert record["language"] == "qab_Cyrl" and record["sentences"] == 2
    expected = {
        "qac_Latn": "the model has no language 'qac'; did you mean qa",
        "qad_Latn": "qad_Latn.txt has 2 lines, qaa_Latn.txt 3",
        "qae_Latn": "no line that qaa_Latn has too",
        "qaf_Latn": "qaf_Latn.txt, line 2: not UTF-8",
    }
    assert sorted(skipped) == list(expected)
    for name, why in expected.items():
        assert why in skipped[name]


def test_what_is_no_corpus_is_refused(write_corpus, tmp_path):
    folder = write_corpus(tmp_path / "c", qaa_Latn=["1 a"], qab_Latn=["2 b"])
    with pytest.raises(UserError, match=r"has no eng_Latn\.txt"):
        folder_pairs(folder, "eng_Latn")
    with pytest.raises(UserError, match="not found"):
        folder_pairs(tmp_path / "nowhere", "qaa_Latn")


# Real text, PyTorch's vectors, a sort of all of them


@pytest.fixture(scope="module")
def multilingual(stock, shared_data):
    return stock("xlm-roberta", shared_data / "tokenizers/xlmr/sentencepiece.bpe.model")


@pytest.mark.slow
def test_tatoeba(shared_data, multilingual, journal):
    torch = pytest.importorskip("torch")
    model, trained = multilingual
    read, _ = read_sentence_pairs(shared_data / "tatoeba")
    pairs = {
        name: SentencePairs(read[name].pivot[:150], read[name].other[:150], 0)
        for name in ("deu_Latn", "ell_Grek", "jpn_Jpan")
    }
    records, skipped = evaluate_pairs(sentence_encoder(trained, [2]), "eng_Latn", pairs, journal)

    def theirs(lines: list[str]) -> np.ndarray:
        ids, _ = truncate(split_lines(*trained.tokenizer.encode(lines)), 32, 2)
        mask = torch.tensor(np.arange(32) < np.array([[len(row)] for row in ids]))
        tokens = torch.ones((len(ids), 32), dtype=torch.long)
        for row, found in zip(tokens, ids, strict=True):
            row[: len(found)] = torch.tensor(found)
        with torch.no_grad():
            states = model.roberta(tokens, attention_mask=mask.long(), output_hidden_states=True)
        states = states.hidden_states[2].double() * mask[..., None]
        return (states.sum(dim=1) / mask.sum(dim=1, keepdim=True)).numpy()

    assert [record["language"] for record in records] == list(pairs) and not skipped
    for record, pair in zip(records, pairs.values(), strict=True):
        queries, pool = theirs(pair.pivot), theirs(pair.other)
        queries, pool = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, pool))
        order = np.argsort(-(queries @ pool.T), axis=1)
        for k in (1, 5, 10):
            right = sum(i in order[i, :k] for i in range(150))
            assert record[f"top{k}"] == right / 150
    german = records[0]  # shares words and digits with English
    assert 0 < german["top1"] < german["top5"] < german["top10"] < 1


def test_the_last_hit_of_real_vectors(shared_data, multilingual):
    """Each rank is the place in a sort of all cosines."""
    pair = read_sentence_pairs(shared_data / "tatoeba")[0]["nld_Latn"]
    encode = sentence_encoder(multilingual[1], [2])
    queries = encode(pair.pivot[:400], "eng_Latn").vectors[0]
    pool = encode(pair.other[:400], "nld_Latn").vectors[0]
    similarity = cosine_similarity(queries.astype(np.float64), pool.astype(np.float64))
    order = np.argsort(-similarity, axis=1, kind="stable")
    expected = np.argmax(order == np.arange(400)[:, None], axis=1)
    found = ranks(queries, pool)
    twice = len(pair.other[:400]) - len(set(pair.other[:400]))
    assert (found != expected).sum() <= 2 * twice  # a sentence that is there twice ties with itself
    assert (found >= expected).all() and len(set(found)) > 100
