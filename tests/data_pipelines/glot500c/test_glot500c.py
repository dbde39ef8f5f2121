"""Glot500-c through TFDS: the texts that `datasets` saved, and text files, in their order."""

import functools
import gzip
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import seqio
import tensorflow_datasets as tfds
from datasets import Dataset, DatasetDict
from tensorflow_datasets.core import shuffle

from data_pipelines import glot500c
from data_pipelines.corpus import arrow
from data_pipelines.seqio_tasks.tasks import AddLanguageScript, encode_lines, output_features
from data_pipelines.seqio_tasks.vocabulary import TokenizerVocabulary
from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import Inventory
from langsamp_jax.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

ODD = ["", " a\nb ", "🦊\u200d🔥", "NUL \0 inside", "\ufeffmark", "x" * 3_000_000, "last\r"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    return tmp_path / "corpus"


def load(root: Path, name: str) -> list[str]:
    """The texts of a language-script; the dataset is made in the folder beside ``root``."""
    config = tfds.download.DownloadConfig(manual_dir=root)
    examples = tfds.load(
        f"glot500c/{name}",
        data_dir=root.parent / "tfds",
        split="train",
        download_and_prepare_kwargs={"download_config": config},
    )
    return [example["text"].decode() for example in examples.as_numpy_iterator()]


def refused(root: Path, name: str) -> str:
    with pytest.raises(UserError) as error:
        load(root, name)
    assert not list((root.parent / "tfds" / "glot500c" / name).glob("*"))
    return str(error.value)


def test_there_is_a_config_for_every_published_language_script():
    configs = [config.name for config in glot500c.Builder.BUILDER_CONFIGS]
    assert configs == list(Inventory.published().language_scripts)


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("split", [False, True])
def test_saved_datasets_come_back_text_for_text(split, num_shards, root):
    texts = [*ODD, *(f"sentence {i}" for i in range(2500))]
    dataset = Dataset.from_dict({"dataset": ["x"] * len(texts), "text": texts})
    if split:
        DatasetDict(train=dataset, test=Dataset.from_dict({"text": ["unseen"]})).save_to_disk(
            root / "deu_Latn", num_shards={"train": num_shards, "test": 1}
        )
    else:
        dataset.save_to_disk(root / "deu_Latn", num_shards=num_shards)
    assert load(root, "deu_Latn") == texts


def test_missing_texts_give_no_example(root):
    Dataset.from_dict({"text": ["a", None, "b"]}).save_to_disk(root / "deu_Latn")
    assert load(root, "deu_Latn") == ["a", "b"]


@pytest.mark.parametrize("place", ["deu_Latn.txt", "deu_Latn.txt.gz", "deu_Latn/a.txt"])
def test_text_files_come_back_line_for_line(place, root):
    lines = [f"Zeile {i}\u2028" for i in range(2000)] + [" 🦊 NUL \0 ", "last"]
    data = ("\ufeff" + "\n\r\n".join(lines)).encode()
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).write_bytes(gzip.compress(data) if place.endswith(".gz") else data)
    assert load(root, "deu_Latn") == lines


def test_empty_lines_give_no_example(root):
    (root / "deu_Latn.txt").write_bytes("\ufeff\n\n eins\r\n\r\nzwei\n\n".encode())
    assert load(root, "deu_Latn") == [" eins", "zwei"]


def test_files_of_a_folder_are_in_the_order_of_their_names(root):
    (root / "deu_Latn").mkdir()
    (root / "deu_Latn" / "b.txt").write_text("three\n")
    (root / "deu_Latn" / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo"))
    assert load(root, "deu_Latn") == ["one", "two", "three"]


def test_the_order_is_kept_where_texts_do_not_fit_into_memory(root, monkeypatch):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    texts = [f"sentence {i}" for i in range(500)]
    Dataset.from_dict({"text": texts}).save_to_disk(root / "deu_Latn", num_shards=3)
    assert load(root, "deu_Latn") == texts


def test_a_part_of_what_tfds_sorts_has_70_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "texts", lambda file: [b"x" * 2**20] * 210)
    builder = tfds.builder("glot500c/deu_Latn", data_dir=tmp_path)
    keys = [key for key, _ in builder._generate_examples([tmp_path / "a.arrow"])]
    assert keys == sorted(set(keys))
    parts = [shuffle.get_bucket_number(key, shuffle.BUCKETS_NUMBER) for key in keys]
    assert [parts.count(part) for part in range(4)] == [66, 66, 65, 13]


def test_a_bucket_is_read_like_a_folder(bucket, root):
    (bucket / "swh_Latn").mkdir(parents=True)
    (bucket / "swh_Latn" / "a.txt.gz").write_bytes(gzip.compress(b"moja\nmbili\n"))
    Dataset.from_dict({"text": ODD}).save_to_disk(root / "deu_Latn" / "train")
    (bucket / "deu_Latn" / "train").mkdir(parents=True)
    for file in (root / "deu_Latn" / "train").iterdir():
        (bucket / "deu_Latn" / "train" / file.name).write_bytes(file.read_bytes())
    config = tfds.download.DownloadConfig(manual_dir=bucket)
    for name, texts in {"deu_Latn": ODD, "swh_Latn": ["moja", "mbili"]}.items():
        builder = tfds.builder(f"glot500c/{name}", data_dir=root)
        builder.download_and_prepare(download_config=config)
        examples = builder.as_dataset("train").as_numpy_iterator()
        assert [example["text"].decode() for example in examples] == texts


def test_a_language_script_without_text_is_told_which_there_are(root):
    (root / "fra_Latn.txt").write_text("un\n")
    (root / "README.md").write_text("x")
    Dataset.from_dict({"text": ["moja"]}).save_to_disk(root / "swh_Latn")
    (root / "deu_Latn").mkdir()  # empty
    expected = f"{root} has no text of deu_Latn; it has fra_Latn, swh_Latn"
    assert refused(root, "deu_Latn") == expected


def test_a_missing_folder_gets_the_instructions(tmp_path):
    with pytest.raises(AssertionError, match="corpus does not exist or is empty.*") as error:
        load(tmp_path / "corpus", "deu_Latn")
    assert "deu_Latn.txt" in str(error.value)


@pytest.mark.parametrize("second", ["fra_Latn.txt.gz", "fra_Latn/a.txt", "fra_Latn/a.arrow"])
def test_two_sources_are_refused(second, root):
    (root / "fra_Latn.txt").write_text("un\n")
    (root / "fra_Latn").mkdir()
    (root / second).write_bytes(b"deux\n")
    message = refused(root, "fra_Latn")
    assert message.startswith("fra_Latn has two sources, ")
    assert str(root / "fra_Latn.txt") in message and str(root / second.split("/")[0]) in message


@pytest.mark.parametrize(
    ("place", "damage", "expected"),
    [
        ("a.arrow", lambda data: data[:-8], " is damaged: it is cut off"),
        ("a.arrow", lambda data: data[: len(data) // 2], " is damaged: "),
        ("a.txt.gz", lambda data: data[:-9], " is damaged: "),
        ("a.txt.gz", lambda data: b"no gzip", " is damaged: "),
        ("a.txt.gz", lambda data: data[:20] + b"\xff\xff" + data[22:], " is damaged: "),
        ("a.txt", lambda data: data[:-4] + b"\xff\xff", ", line 2000: not UTF-8"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_left(place, damage, expected, root):
    texts = [f"Satz {i}" for i in range(2000)]
    if place.endswith(".arrow"):
        Dataset.from_dict({"text": texts}).save_to_disk(root.parent / "saved")
        data = (root.parent / "saved" / "data-00000-of-00001.arrow").read_bytes()
    else:
        data = "\n".join(texts).encode()
        data = gzip.compress(data) if place.endswith(".gz") else data
    file = root / "deu_Latn" / place
    file.parent.mkdir()
    file.write_bytes(damage(data))
    assert refused(root, "deu_Latn").startswith(f"{file}{expected}")


@pytest.fixture
def registered(root: Path, tokenizer_file: Path) -> Iterator[dict[str, list[str]]]:
    """Registers what the documentation of ``glot500c`` shows, for two language-scripts."""
    texts = {
        "deu_Latn": [f"Satz {i}" for i in range(40)],
        "swh_Latn": [f"sentensi {i}" for i in range(5)],
    }
    Dataset.from_dict({"text": texts["deu_Latn"]}).save_to_disk(root / "deu_Latn", num_shards=2)
    (root / "swh_Latn.txt").write_text("\n".join(texts["swh_Latn"]))
    for name in texts:
        load(root, name)
    lines = textwrap.dedent(glot500c.__doc__.split("with a module of these lines:\n")[1])
    names = {
        "names": list(texts),
        "data_dir": root.parent / "tfds",
        "seqio": seqio,
        "functools": functools,
        "TokenizerVocabulary": TokenizerVocabulary,
        "output_features": output_features,
        "encode_lines": encode_lines,
        "AddLanguageScript": AddLanguageScript,
    }
    exec(lines.replace("xlmr/sentencepiece.bpe.model", str(tokenizer_file)), names)
    yield texts
    seqio.MixtureRegistry.remove("glot500c")
    for name in texts:
        seqio.TaskRegistry.remove(f"glot500c:{name}")


def test_seqio_reads_it(registered, tokenizer_file):
    tokenizer = load_tokenizer(tokenizer_file)
    mixture = seqio.get_mixture_or_task("glot500c")
    for number, (name, texts) in enumerate(registered.items()):
        task = seqio.get_mixture_or_task(f"glot500c:{name}")
        source = task.source.get_dataset("train", shuffle=False).as_numpy_iterator()
        assert [example["text"].decode() for example in source] == texts
        examples = list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
        for text, example in zip(texts, examples, strict=True):
            assert example["targets"].tolist() == tokenizer.encode([text])[0].tolist()
            assert example["language_ids"] == number and example["script_ids"] == 0
        assert mixture.get_rate(task) == pytest.approx(len(texts) ** 0.3)
