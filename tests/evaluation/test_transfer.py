"""Zero-shot transfer: where labels lie, what is scored, and what becomes of seeds and languages."""

import dataclasses
import json
import statistics

import jax
import numpy as np
import pytest
import sklearn.metrics

from langsamp_jax.analysis.donors import transfer_matrix
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.config import FineTuneConfig
from langsamp_jax.evaluation.datasets.classification import ClassificationSet
from langsamp_jax.evaluation.datasets.layout import TaskData
from langsamp_jax.evaluation.datasets.tagging import UPOS, TaggingSet, read_tagging_task
from langsamp_jax.evaluation.finetune import NO_LABEL, LabelledExamples
from langsamp_jax.evaluation.jobs import Journal
from langsamp_jax.evaluation.model import LoadedModel, load_model
from langsamp_jax.evaluation.transfer import (
    averages_over_seeds,
    evaluate_transfer,
    label_sentences,
    label_words,
    scores_of,
)
from langsamp_jax.languages.published import LABELS, averages
from langsamp_jax.text.huggingface_files import write_tokenizer
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer

ZERO_WIDTH_SPACE = "\u200b"  # the tokenizer drops it
LANGUAGES = ("qaa_Latn", "qab_Latn", "xho_Latn")  # the model has no vector of the last one
QUICK = FineTuneConfig(learning_rate=1e-3, num_epochs=2, batch_size=8, num_seeds=2)


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(tokenizer, folder, max_length=32)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def lines(corpus) -> list[str]:
    files = sorted((corpus / "held_out").glob("*.txt"))
    return [line for file in files for line in file.read_text("utf-8").splitlines()]


# Where labels lie


def tagged(sentences: list[list[str]]) -> TaggingSet:
    """Every word with another tag than those around it."""
    tags = [[UPOS[i % len(UPOS)] for i in range(len(words))] for words in sentences]
    return TaggingSet(sentences, tags)


def assert_as_word_ids(
    tokenizer, theirs, examples: TaggingSet, max_length: int
) -> LabelledExamples:
    """The tokens are those of ``transformers``, and so are the positions of the first pieces."""
    ours = label_words(tokenizer, examples, max_length, UPOS)
    encoded = theirs(
        examples.words, is_split_into_words=True, truncation=True, max_length=max_length
    )
    for i, (tags, tokens, labels) in enumerate(
        zip(examples.tags, ours.tokens, ours.labels, strict=True)
    ):
        assert tokens.tolist() == encoded.input_ids[i]
        expected, before = [], None
        for word in encoded.word_ids(i):
            first = word is not None and word != before
            expected.append(UPOS.index(tags[word]) if first else NO_LABEL)
            before = word
        assert labels.tolist() == expected
    return ours


@pytest.mark.parametrize("max_length", [256, 12])
def test_first_pieces_are_those_of_transformers(max_length, tokenizer, theirs, lines):
    examples = tagged([line.split() for line in lines[::7]])
    ours = assert_as_word_ids(tokenizer, theirs, examples, max_length)
    pieces = theirs(examples.words, is_split_into_words=True).input_ids
    longer = sum(len(row) > max_length for row in pieces)
    assert ours.truncated == longer
    assert (longer > 20) == (max_length == 12)
    assert any(len(row) > 2 * len(words) for row, words in zip(pieces, examples.words, strict=True))


@pytest.mark.slow
def test_real_words_have_their_labels_where_transformers_has_them(shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(shared_data / "tokenizers" / "xlmr" / "sentencepiece.bpe.model")
    write_tokenizer(ours, tmp_path, max_length=512)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "ud").mkdir()
    for name in ("eng_Latn", "zho_Hant", "arb_Arab"):
        (tmp_path / "ud" / name).symlink_to(shared_data / "ud_pos" / name)
    data = read_tagging_task(tmp_path / "ud", "pos")
    assert data.test.keys() == {"eng_Latn", "zho_Hant", "arb_Arab"}
    for examples in data.test.values():
        # The two kinds of tokenizer disagree on a few words, see the tests of tokenizer files.
        some = [
            (words, tags)
            for words, tags in zip(examples.words[:200], examples.tags, strict=False)
            if _encoded_alike(ours, theirs, words)
        ]
        assert len(some) > 150
        assert_as_word_ids(ours, theirs, TaggingSet(*map(list, zip(*some, strict=True))), 64)


def _encoded_alike(ours: Tokenizer, theirs, words: list[str]) -> bool:
    ids, lengths = ours.encode(words)
    apart = np.split(ids, np.cumsum(lengths)[:-1])
    return all(
        len(mine) > 2 and mine.tolist() == theirs([word], is_split_into_words=True).input_ids
        for mine, word in zip(apart, words, strict=True)
    )


def test_a_word_that_the_tokenizer_drops_is_unknown(tokenizer, lines):
    vocabulary = tokenizer.vocabulary
    assert tokenizer.encode([ZERO_WIDTH_SPACE])[0].tolist() == [0, 2]
    first, last = lines[0].split()[:2]
    examples = TaggingSet([[first, ZERO_WIDTH_SPACE, last]], [["NOUN", "SYM", "VERB"]])
    (tokens,), (labels,), truncated = label_words(tokenizer, examples, 64, UPOS)
    pieces = [tokenizer.encode([word])[0][1:-1].tolist() for word in (first, last)]
    assert tokens.tolist() == [0, *pieces[0], vocabulary.unk_id, *pieces[1], 2]
    assert labels[labels != NO_LABEL].tolist() == [UPOS.index(t) for t in ("NOUN", "SYM", "VERB")]
    assert labels[1 + len(pieces[0])] == UPOS.index("SYM")
    assert truncated == 0


def test_words_that_are_cut_off_are_not_scored(tokenizer, lines):
    words = " ".join(lines[:6]).split()
    (tokens,), (labels,), truncated = label_words(tokenizer, tagged([words]), 16, UPOS)
    assert len(tokens) == len(labels) == 16 and tokens[-1] == 2
    ends = np.cumsum([len(tokenizer.encode([word])[0]) - 2 for word in words])
    begins = 1 + ends - np.diff(ends, prepend=0)
    assert (labels != NO_LABEL).sum() == (begins < 15).sum() < len(words)
    assert truncated == 1


def test_the_label_of_a_sentence_is_one(tokenizer, lines):
    texts = [lines[0], " ".join(lines[:9])]
    short, long = ([*tokenizer.encode([text])[0]] for text in texts)
    examples = ClassificationSet(texts, np.array([3, 5], np.int32))
    found = label_sentences(tokenizer, examples, len(short))
    assert [labels.tolist() for labels in found.labels] == [[3], [5]]
    assert [row.tolist() for row in found.tokens] == [short, [*long[: len(short) - 1], 2]]
    assert found.truncated == 1


# Scores


def labelled(rows: list[list[int]]) -> LabelledExamples:
    rows = [np.array(row) for row in rows]
    return LabelledExamples(rows, rows)


def test_scores_of_sentences_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 6, (2, 50))
    scores = scores_of("taxi1500", LABELS["taxi1500"])
    found = scores(labelled(true[:, None].tolist()), list(predicted[:, None]))
    assert found == pytest.approx(
        {
            "macro_f1": sklearn.metrics.f1_score(true, predicted, average="macro"),
            "accuracy": sklearn.metrics.accuracy_score(true, predicted),
        }
    )


def test_scores_of_words_worked_by_hand():
    names = ("O", "B-LOC", "I-LOC", "B-PER")
    # B-LOC I-LOC and B-PER are to be found in the first; pieces without a label do not count.
    examples = labelled([[NO_LABEL, 1, NO_LABEL, 2, 0, 3, NO_LABEL], [NO_LABEL, 0]])
    predicted = [np.array([1, 2, 0, 0]), np.array([3])]
    found = scores_of("ner", names)(examples, predicted)
    assert found == {"entity_f1": 0.5, "precision": 0.5, "recall": 0.5}
    # ADJ, NOUN NOUN and VERB: runs of equal tags are one for the published figure
    names = UPOS
    adjective, noun, verb = map(UPOS.index, ("ADJ", "NOUN", "VERB"))
    examples = labelled([[adjective, noun, noun, verb]])
    found = scores_of("pos", names)(examples, [np.array([adjective, noun, verb, verb])])
    assert found == {"tag_f1": pytest.approx(1 / 3), "accuracy": 0.75}


def test_averages_over_seeds_are_those_of_each_seed():
    rng, names = np.random.default_rng(0), ("deu_Latn", "rus_Cyrl", "ace_Latn", "ace_Arab")
    values = rng.random((4, 3))
    records = [
        {"language": name, "macro_f1_seeds": row.tolist()}
        for name, row in zip(names, values, strict=True)
    ]
    found = averages_over_seeds(records, ["macro_f1"], "sib200")
    groups = {"all": [0, 1, 2, 3], "head": [0, 1], "tail": [2, 3]}
    groups |= {"latin": [0, 2], "non_latin": [1, 3]}
    assert found.keys() >= groups.keys()
    for group, rows in groups.items():
        means = values[rows].mean(axis=0)
        expected = {
            "languages": len(rows),
            "macro_f1": means.mean(),
            "macro_f1_std": means.std(ddof=1),
        }
        assert found[group] == pytest.approx(expected)
    single = [{**record, "macro_f1_seeds": record["macro_f1_seeds"][:1]} for record in records]
    assert averages_over_seeds(single, ["macro_f1"], "sib200")["all"]["macro_f1_std"] is None


# Languages and seeds


def topics(count: int, seed: int, words: list[str]) -> ClassificationSet:
    """Sentences of random words, the first of which tells the topic."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, count).astype(np.int32)
    texts = [" ".join([words[label], *rng.choice(words[7:], 2)]) for label in labels]
    return ClassificationSet(texts, labels)


@pytest.fixture(scope="module")
def data(words) -> TaskData[ClassificationSet]:
    test = {
        name: topics(20, i, words) for i, name in enumerate(("qaa_Latn", "qab_Latn", "xho_Latn"))
    }
    return TaskData(
        LABELS["sib200"], topics(20, 10, words), topics(20, 11, words), test, {"x": "why"}
    )


@pytest.fixture(scope="module")
def trained(run) -> LoadedModel:
    return load_model(run)


def evaluated(trained, data, output, source="qaa_Latn", config=QUICK) -> tuple[dict, list[str]]:
    said = []
    with Journal(output, {}) as journal:
        found = evaluate_transfer(trained, "sib200", data, source, config, journal, said.append)
    return found, said


@pytest.fixture(scope="module")
def result(trained, data, tmp_path_factory) -> tuple[dict, list[str], list[dict]]:
    """The result, what was said, and the parts."""
    output = tmp_path_factory.mktemp("result") / "sib200.json"
    found, said = evaluated(trained, data, output)
    parts = output.with_name("sib200.json.parts").read_text().splitlines()
    return found, said, [json.loads(line) for line in parts]


@pytest.mark.slow
def test_a_language_has_the_mean_and_deviation_of_the_seeds(result):
    found, said, (_, *parts) = result
    assert [part["part"] for part in parts] == ["qaa_Latn, seed 0", "qaa_Latn, seed 1"]
    assert [record["language"] for record in found["languages"]] == [
        "qaa_Latn",
        "qab_Latn",
        "xho_Latn",
    ]
    assert found["skipped"] == {"x": "why"}
    assert len(said) == 4
    different = 0
    for record in found["languages"]:
        for metric in ("macro_f1", "accuracy"):
            values = [part["result"]["languages"][record["language"]][metric] for part in parts]
            assert record[f"{metric}_seeds"] == values
            assert record[metric] == pytest.approx(np.mean(values))
            assert record[f"{metric}_std"] == pytest.approx(statistics.stdev(values))
            different += values[0] != values[1]
    assert different
    means = averages(found["languages"], ["macro_f1"])
    assert found["averages"].keys() >= means.keys() == {"all", "head", "tail", "latin"}
    for group, mean in means.items():
        assert found["averages"][group]["macro_f1"] == pytest.approx(mean["macro_f1"])
    for number, (seed, part) in enumerate(zip(found["seeds"], parts, strict=True)):
        kept = {key: value for key, value in part["result"].items() if key != "languages"}
        assert seed == {"seed": number, **kept}
        assert 1 <= seed["epoch"] <= 2
    protocol = found["protocol"]
    assert (protocol["num_epochs"], protocol["max_length"], protocol["parts"]) == (2, 160, 2)


@pytest.mark.slow
def test_a_finished_seed_is_not_trained_again(result, trained, data, tmp_path):
    found, said, (settings, first, _) = result
    output = tmp_path / "sib200.json"
    lines = [json.dumps(record) for record in (settings, first)]
    output.with_name("sib200.json.parts").write_text("\n".join(lines) + '\n{"part": "qaa')
    again, new = evaluated(trained, data, output)
    assert again == found
    assert new == said[2:] and all(line.startswith("seed 1") for line in new)


@pytest.mark.slow
def test_a_language_without_vectors_is_skipped(make_run, store_path, data, tmp_path):
    """The encoder of the input-side ablation needs them."""
    trained = load_model(make_run(store_path, placement="input").path)
    quick = dataclasses.replace(QUICK, num_epochs=1, num_seeds=1)
    found, _ = evaluated(trained, data, tmp_path / "a.json", config=quick)
    assert [record["language"] for record in found["languages"]] == ["qaa_Latn", "qab_Latn"]
    assert found["languages"][0]["macro_f1_std"] is None
    assert found["skipped"].keys() == {"x", "xho_Latn"}
    assert found["skipped"]["xho_Latn"].startswith("the model has no language 'xho'")
    with pytest.raises(UserError, match="the model has no language 'xho'"):
        evaluated(trained, data, tmp_path / "b.json", source="xho_Latn")


def test_nothing_to_test_is_said_before_anything_is_trained(trained, data, tmp_path):
    with pytest.raises(UserError) as refused:
        evaluated(trained, dataclasses.replace(data, test={}), tmp_path / "a.json")
    assert str(refused.value) == "no language can be tested; x: why"


@pytest.mark.slow
def test_loss_that_is_not_finite_is_said(trained, data, tmp_path):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, trained.params)
    broken = dataclasses.replace(trained, params=broken)
    with pytest.raises(UserError, match=r"seed 0, epoch 1: the loss is nan; lower finetune\.learn"):
        evaluated(broken, data, tmp_path / "a.json")


# Donors


@pytest.mark.slow
def test_a_column_for_each_donor(trained, data, words, tmp_path):
    train = {"qaa_Latn": data.train, "qab_Latn": topics(16, 12, words)}

    def read(source: str) -> TaskData[ClassificationSet]:
        if source not in train:
            raise UserError(f"no training data of {source}")
        test = {
            name: part
            for name, part in data.test.items()
            if (name, source) != ("xho_Latn", "qab_Latn")
        }
        return dataclasses.replace(data, train=train[source], test=test)

    def matrix(pivot: str, others: list[str]):
        with Journal(tmp_path / "donors.json", {}) as journal:
            arguments = trained, "sib200", read, pivot, others, quick, journal, said.append
            return transfer_matrix(*arguments)

    quick, said = dataclasses.replace(QUICK, num_seeds=1), []
    found, skipped = matrix("qab_Latn", ["qaa_Latn", "qab_Latn", "xho_Latn"])
    assert found.donors == ("qab_Latn", "qaa_Latn")
    assert found.targets == LANGUAGES
    assert np.isnan(found.scores).tolist() == [[False, False], [False, False], [True, False]]
    assert skipped == {"x": "why", "xho_Latn": "no training data of xho_Latn"}
    parts = (tmp_path / "donors.json.parts").read_text().splitlines()
    first = json.loads(parts[1])
    assert first["part"] == "qab_Latn, seed 0"
    expected = {name: scores["macro_f1"] for name, scores in first["result"]["languages"].items()}
    assert dict(zip(LANGUAGES[:2], found.scores[:2, 0], strict=True)) == expected
    with pytest.raises(UserError, match="no training data of xho_Latn"):
        matrix("xho_Latn", ["qaa_Latn"])
