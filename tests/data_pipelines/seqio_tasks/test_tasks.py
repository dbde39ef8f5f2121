"""Tasks and their vocabularies: seqio's conventions, XLM-R's ids, the lines of a corpus."""

import copy
import hashlib
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import seqio
import tensorflow as tf

from data_pipelines.corpus.cleaning import CleaningConfig
from data_pipelines.seqio_tasks.tasks import (
    AddLanguageScript,
    encode_lines,
    output_features,
    register_corpus,
)
from data_pipelines.seqio_tasks.vocabulary import CodeVocabulary, TokenizerVocabulary
from langsamp_jax.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_tasks")]

LINES = [f"line number {number}" for number in range(120)]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Repeated lines, within a language-script and across two, and characters to be composed."""
    folder = tmp_path / "small"
    folder.mkdir()
    texts = {
        "qaa_Latn": [*LINES, *LINES[::3], "cafe\u0301", "", "  café "],
        "qab_Cyrl": LINES[::-1],
        "qac_Latn": ["a few words"],
    }
    for name, lines in texts.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return folder


def expected_lines(file: Path, split: str, fraction: float, drop: bool = True) -> list[str]:
    """Computes what a Task must give, by the standard library alone."""
    lines = [unicodedata.normalize("NFC", x).strip() for x in file.read_text("utf-8").split("\n")]
    lines = [line for line in lines if line]
    lines = list(dict.fromkeys(lines)) if drop else lines

    def held_out(line: str) -> bool:
        digest = hashlib.blake2b(line.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 < fraction

    return [line for line in lines if held_out(line) == (split == "validation")]


def examples(task: str, split: str = "train", **options: object) -> list[dict[str, np.ndarray]]:
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        split=split, num_epochs=1, **{"shuffle": False, **options}
    )
    return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("fraction", [0.0, 0.25])
@pytest.mark.parametrize("duplicates", ["drop", "keep"])
def test_tasks_give_the_lines_of_the_corpus_in_order(fraction, duplicates, small, tokenizer_file):
    cleaning = CleaningConfig(duplicates=duplicates)
    register_corpus("small", small, tokenizer_file, 2.0, fraction, cleaning)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file))
    for file in sorted(small.glob("*.txt")):
        task = seqio.TaskRegistry.get(f"small:{file.stem}")
        assert set(task.splits) == ({"train", "validation"} if fraction else {"train"})
        for split in task.splits:
            lines = expected_lines(file, split, fraction, duplicates == "drop")
            found = examples(task.name, split)
            assert [example["targets"].tolist() for example in found] == [
                [0, *(i + 1 if i else 3 for i in processor.encode(line)), 2] for line in lines
            ]
            assert task.num_input_examples(split) == len(lines)
            for example in found:
                codes = [
                    task.output_features[key].vocabulary.decode([int(example[key])])
                    for key in ("language_ids", "script_ids")
                ]
                assert "_".join(codes) == file.stem
    if fraction:
        sides = [seqio.MixtureRegistry.get("small").num_input_examples(s) for s in task.splits]
        assert min(sides) > 20


@pytest.mark.parametrize("temperature", [1.0, 1 / 0.7, 2.0, 1 / 0.3, 100.0])
def test_rates_follow_the_temperature(temperature, small, tokenizer_file):
    mixture = register_corpus("small", small, tokenizer_file, temperature, 0.25)
    for task in mixture.tasks:
        file = small / f"{task.name.removeprefix('small:')}.txt"
        lines = len(expected_lines(file, "train", 0.25))
        assert mixture.get_rate(task) == pytest.approx(lines ** (1 / temperature))
        assert mixture.get_rate(task) == seqio.mixing_rate_num_examples(
            task, temperature=temperature
        )


def test_seqio_can_shuffle_shard_and_trim_them(small, tokenizer_file):
    register_corpus("small", small, tokenizer_file)
    plain = {example["targets"].tobytes() for example in examples("small:qab_Cyrl")}
    shuffled = examples("small:qab_Cyrl", shuffle=True, seed=1)
    assert {example["targets"].tobytes() for example in shuffled} == plain
    assert [e["targets"].tobytes() for e in shuffled] != [
        e["targets"].tobytes() for e in examples("small:qab_Cyrl")
    ]
    parts = [examples("small:qab_Cyrl", shard_info=seqio.ShardInfo(i, 3)) for i in range(3)]
    assert {e["targets"].tobytes() for part in parts for e in part} == plain
    assert sum(map(len, parts)) == len(plain)
    trimmed = examples("small:qab_Cyrl", sequence_length={"targets": 3})
    assert {len(example["targets"]) for example in trimmed} == {3}
    mixed = examples("small", seed=0)
    assert {int(example["script_ids"]) for example in mixed} == {0, 1}


def test_the_same_call_again_changes_nothing_and_another_one_is_refused(small, tokenizer_file):
    mixture = register_corpus("small", small, tokenizer_file)
    assert register_corpus("small", small, tokenizer_file) is mixture
    with pytest.raises(UserError, match="'small'; choose another name"):
        register_corpus("small", small, tokenizer_file, validation_fraction=0.5)
    seqio.TaskRegistry.add("new:qab_Cyrl", mixture.tasks[0].source, mixture.output_features)
    with pytest.raises(UserError, match="'new:qab_Cyrl'; choose another name"):
        register_corpus("new", small, tokenizer_file)
    assert "new:qaa_Latn" not in seqio.TaskRegistry.names()
    with pytest.raises(UserError, match="temperature 0"):
        register_corpus("other", small, tokenizer_file, temperature=0)
    with pytest.raises(UserError, match="not found"):
        register_corpus("other", small / "no", tokenizer_file)


def test_text_that_is_not_utf8_names_file_and_line(small, tokenizer_file):
    with open(small / "qac_Latn.txt", "ab") as stream:
        stream.write(b"good\n\xff bad\n")
    register_corpus("small", small, tokenizer_file)
    with pytest.raises(UserError, match=r"qac_Latn.txt, line 3: not UTF-8"):
        examples("small:qac_Latn")


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_vocabulary_has_the_ids_of_a_store(kind, tokenizer_file, request):
    file = tokenizer_file
    if kind == "wordpiece":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
        file = request.getfixturevalue("tmp_path") / "vocab.txt"
        file.write_text("\n".join([*special, "A", *letters, *(f"##{x}" for x in letters)]))
    vocabulary = TokenizerVocabulary(file)
    ours = vocabulary.tokenizer.vocabulary
    special = vocabulary.bos_id, vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id
    assert special == ours[1:5]
    assert (vocabulary.vocab_size, vocabulary.extra_ids) == (ours.size, 0)
    for text in ("abc de", "a", "", "<s> [MASK] </s>", "中文 x"):
        ids, _ = vocabulary.tokenizer.encode([text])
        assert vocabulary.encode(text) == ids[1:-1].tolist()
        encoded = vocabulary.encode_tf(tf.constant(text))
        assert encoded.dtype == tf.int32 and encoded.numpy().tolist() == vocabulary.encode(text)
        assert vocabulary.decode_tf(encoded).numpy().decode() == vocabulary.decode(ids[1:-1])


def test_vocabulary_keeps_seqios_contract(tokenizer_file, tmp_path):
    vocabulary = TokenizerVocabulary(tokenizer_file)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file))
    text = "abe cade"
    ids = vocabulary.encode(text)
    assert vocabulary.unk_id not in ids
    assert vocabulary.decode(ids) == processor.decode(processor.encode(text)) == text
    behind = [*ids, vocabulary.eos_id, *ids]  # text ends with the first </s>
    assert vocabulary.decode(behind) == text
    assert vocabulary.decode([vocabulary.bos_id, *ids, vocabulary.pad_id]) == text
    assert vocabulary.decode([10**6]) == vocabulary.decode([vocabulary.unk_id])
    both = vocabulary.decode_tf(tf.constant([ids, ids[::-1]])).numpy().tolist()
    assert both == [text.encode(), vocabulary.decode(ids[::-1]).encode()]
    ragged = vocabulary.encode_lines_tf(tf.constant([text, "", text])).to_list()
    assert ragged == [[0, *ids, 2], [0, 2], [0, *ids, 2]]

    again = pickle.loads(pickle.dumps(vocabulary))
    moved = tmp_path / "moved.model"
    moved.write_bytes(tokenizer_file.read_bytes())
    assert vocabulary == again == copy.deepcopy(vocabulary) == TokenizerVocabulary(moved)
    assert again.encode(text) == ids
    assert vocabulary != seqio.ByteVocabulary() and str(tokenizer_file) in str(vocabulary)
    with pytest.raises(UserError, match="not found"):
        TokenizerVocabulary(tmp_path / "none.model").encode(text)


def test_vocabulary_works_in_seqios_own_preprocessors(tokenizer_file):
    vocabulary = TokenizerVocabulary(tokenizer_file)
    task = seqio.TaskRegistry.add(
        "plain",
        seqio.FunctionDataSource(
            lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices({"targets": LINES}),
            ["train"],
        ),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": seqio.Feature(vocabulary)},
    )
    for example, line in zip(examples(task.name), LINES, strict=True):
        assert example["targets"].tolist() == [*vocabulary.encode(line), 2]
        assert example["targets_pretokenized"].decode() == line


def test_codes_and_their_numbers():
    vocabulary = CodeVocabulary(["deu", "gsw", "zul"])
    assert vocabulary.encode("gsw") == [1] and vocabulary.decode([2]) == "zul"
    assert vocabulary.vocab_size == 3
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id) == (None, None, None)
    assert vocabulary.encode_tf(tf.constant("zul")).numpy().tolist() == [2]
    assert vocabulary.decode_tf(tf.constant([[0], [2]])).numpy().tolist() == [b"deu", b"zul"]
    assert vocabulary == pickle.loads(pickle.dumps(vocabulary)) != CodeVocabulary(["deu"])
    with pytest.raises(UserError, match="'xho'"):
        vocabulary.encode("xho")
    with pytest.raises(tf.errors.InvalidArgumentError):
        vocabulary.encode_tf(tf.constant("xho"))
    with pytest.raises(UserError, match="twice"):
        CodeVocabulary(["deu", "deu"])


def test_preprocessors_of_a_task_of_ones_own(tokenizer_file, tmp_path):
    file = tmp_path / "german.txt"
    file.write_text("".join(f"{line}\n" for line in LINES))
    vocabulary = TokenizerVocabulary(tokenizer_file)
    features = output_features(vocabulary, ["gsw_Latn", "deu_Latn", "srp_Cyrl"])
    task = seqio.TaskRegistry.add(
        "german",
        source=seqio.TextLineDataSource({"train": str(file)}),
        preprocessors=[encode_lines(vocabulary), AddLanguageScript("deu_Latn", features)],
        output_features=features,
    )
    found = examples(task.name)
    assert [e["targets"].tolist() for e in found] == [
        [0, *vocabulary.encode(line), 2] for line in LINES
    ]
    assert {(int(e["language_ids"]), int(e["script_ids"])) for e in found} == {(0, 1)}
    with pytest.raises(UserError, match="'yor'"):
        AddLanguageScript("yor_Latn", features)
    with pytest.raises(UserError, match="form iso639-3_Script"):
        AddLanguageScript("German", features)
