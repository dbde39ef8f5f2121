"""prepare --mixture: the bytes of prepare --corpus, and any Task of one's own."""

import dataclasses
import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from data_pipelines.corpus.cleaning import CleaningConfig
from data_pipelines.packing.prepare import prepare
from data_pipelines.seqio_tasks import compile
from data_pipelines.seqio_tasks.compile import prepare_mixture
from data_pipelines.seqio_tasks.tasks import AddLanguageScript, encode_lines, register_corpus
from langsamp_jax.cli.main import main
from langsamp_jax.config import from_gin, parse_gin
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_tasks")]

TEXT = {
    "deu_Latn": [f"ein Satz mit der Zahl {number}" for number in range(90)],
    "gsw_Latn": [f"e Satz mit de Zahl {number}" for number in range(60)],
    "srp_Cyrl": [f"abc {number}" for number in range(40)],
}


def packed(lines: Sequence[str], features: dict, length: int, keep_rest: bool) -> list[list[int]]:
    encode = features["targets"].vocabulary.encode
    ids = [token for line in lines for token in (0, *encode(line), 2)]
    rows = [ids[start : start + length] for start in range(0, len(ids), length)]
    return rows if keep_rest else [row for row in rows if len(row) == length]


def rows_of(store: Path, split: str, name: str) -> list[list[int]]:
    opened = Store(store).split(split)
    index = opened.names.index(name)
    row = np.arange(opened.rows[index])
    tokens, lengths = opened.read(np.full(len(row), index), row)
    return [line[:size].tolist() for line, size in zip(tokens, lengths, strict=True)]


def content(store: Path) -> dict[str, bytes]:
    """The files of a store that do not say how it was made."""
    files = {path.relative_to(store).as_posix(): path for path in store.rglob("*")}
    made = ("origin.json", "mixture.gin")
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if path.is_file() and name not in made and not name.startswith("lines/")
    }


@pytest.mark.parametrize(
    ("length", "fraction", "duplicates"), [(32, 0.1, "drop"), (8, 0.0, "drop"), (50, 0.4, "keep")]
)
def test_a_registered_corpus_gives_the_bytes_of_the_direct_path(
    length, fraction, duplicates, corpus, tokenizer_file, tmp_path
):
    cleaning = CleaningConfig(duplicates=duplicates)
    register_corpus("world", corpus, tokenizer_file, 2.0, fraction, cleaning)
    manifest = prepare_mixture("world", None, tmp_path / "compiled", length)
    direct = prepare(corpus, tokenizer_file, tmp_path / "direct", length, fraction, cleaning)
    assert manifest == direct and len(manifest.names) == 6
    assert content(tmp_path / "compiled") == content(tmp_path / "direct")


def test_ten_languages_of_odd_text_give_the_bytes_of_the_direct_path(tokenizer_file, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [f"line number {number}" for number in range(150)]
    odd = {
        "qaa_Latn": lines + lines[::2],
        "qab_Latn": [f"\t {line}\r" for line in lines],
        "qac_Latn": ["\ufeffmark", *lines, "nul\x00 and \x1b bell\x07"],
        "qad_Latn": ["e\u0301", "é", "\u1112\u1161\u11ab", *lines[:50]],
        "qae_Latn": ["", " ", "\u2028", *lines[:80], ""],
        "qaf_Cyrl": ["строка", *lines[:30]],
        "qag_Latn": ["short"],
        "qah_Latn": [""],
        "qai_Latn": ["the same line"] * 200,
    }
    for name, text in odd.items():
        (folder / f"{name}.txt").write_bytes("\n".join(text).encode())
    (folder / "qaj_Latn.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "qak_Latn").mkdir()
    for part in (0, 1):
        half = "".join(f"{line}\n" for line in lines[part::2])
        (folder / "qak_Latn" / f"{part}.txt").write_text(half)
    register_corpus("odd", folder, tokenizer_file, 1.0, 0.2)
    manifest = prepare_mixture("odd", None, tmp_path / "compiled", 16)
    direct = prepare(folder, tokenizer_file, tmp_path / "direct", 16, 0.2)
    assert manifest == direct and len(manifest.names) + len(manifest.skipped) == 11
    assert content(tmp_path / "compiled") == content(tmp_path / "direct")


def test_the_command_compiles_in_several_processes(corpus, tokenizer_file, tmp_path, capsys):
    """The workers import the module themselves."""
    module = tmp_path / "my_tasks.py"
    module.write_text(
        "from data_pipelines.seqio_tasks.tasks import register_corpus\n"
        f"register_corpus('mine', {str(corpus)!r}, {str(tokenizer_file)!r}, "
        "validation_fraction=0.1)\n"
    )
    call = ["prepare", "--mixture", "mine", "--module", module, "--sequence_length", 32]
    call += ["--workers", 2, "--output", tmp_path / "store"]
    assert main([str(argument) for argument in call]) == 0
    assert "qaa_Latn" in capsys.readouterr().out
    prepare(corpus, tokenizer_file, tmp_path / "direct", 32, 0.1)
    assert content(tmp_path / "store") == content(tmp_path / "direct")


def test_tasks_of_ones_own_are_packed_in_their_order(add_task, features, tmp_path):
    """A function, a text file and TFRecords; nested; two Tasks of one language-script."""
    german, swiss, serbian = TEXT.values()
    add_task("zeitung", "deu_Latn", german[:50], german[50:70])
    add_task("bibel", "deu_Latn", german[70:] * 2)
    vocabulary = features["targets"].vocabulary
    (tmp_path / "gsw.txt").write_text("".join(f"{line}\n" for line in swiss))
    seqio.TaskRegistry.add(
        "schwiiz",
        seqio.TextLineDataSource({"train": str(tmp_path / "gsw.txt")}),
        preprocessors=[encode_lines(vocabulary), AddLanguageScript("gsw_Latn", features)],
        output_features=features,
    )
    write_records(tmp_path / "srp.tfrecord", serbian)
    seqio.TaskRegistry.add(
        "srpski",
        records([tmp_path / "srp.tfrecord"]),
        preprocessors=[encode_lines(vocabulary), AddLanguageScript("srp_Cyrl", features)],
        output_features=features,
    )
    seqio.MixtureRegistry.add("german", [("zeitung", 3.0), ("bibel", 1.0)])
    seqio.MixtureRegistry.add("all", [("german", 0.5), ("schwiiz", 0.25), ("srpski", 0.125)])
    manifest = prepare_mixture("all", None, tmp_path / "store", 16)
    assert manifest.names == ("deu_Latn", "gsw_Latn", "srp_Cyrl")
    expected = {
        ("train", "deu_Latn"): german[70:] * 2 + german[:50],
        ("train", "gsw_Latn"): swiss,
        ("train", "srp_Cyrl"): serbian,
        ("validation", "deu_Latn"): german[50:70],
    }
    for (split, name), lines in expected.items():
        rows = packed(lines, features, 16, split == "validation")
        assert rows_of(tmp_path / "store", split, name) == rows
        assert manifest.counts[split][name].lines == len(lines)
    assert manifest.column("validation", "rows").tolist()[1:] == [0, 0]

    parse_gin([str(tmp_path / "store" / "mixture.gin")], [])
    rates = from_gin(MixtureConfig).rates(manifest)
    np.testing.assert_allclose(rates, np.array([0.5, 0.25, 0.125]) / 0.875)

    prepare_mixture("schwiiz", None, tmp_path / "one", 16)
    one = packed(swiss, features, 16, False)
    assert rows_of(tmp_path / "one", "train", "gsw_Latn") == one


def test_rates_are_those_of_seqio_for_what_stands_in_the_store(corpus, tokenizer_file, tmp_path):
    mixture = register_corpus("world", corpus, tokenizer_file, 1.5, 0.1)
    manifest = prepare_mixture("world", None, tmp_path / "store", 256)
    assert manifest.skipped, "a language-script too small for one row"
    parse_gin([str(tmp_path / "store" / "mixture.gin")], [])
    rates = np.array(
        [mixture.get_rate(seqio.TaskRegistry.get(f"world:{name}")) for name in manifest.names]
    )
    np.testing.assert_allclose(from_gin(MixtureConfig).rates(manifest), rates / rates.sum())


def test_ids_without_the_preprocessor_name_the_language_script(add_task, features, tmp_path):
    """Users may add the two features in their own way, one id a token too."""
    numbers = (features["language_ids"].vocabulary.encode("srp")[0], 0)

    def add_ids(dataset: tf.data.Dataset) -> tf.data.Dataset:
        def add(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            same = tf.ones_like(example["targets"])
            return {
                **example,
                "language_ids": same * numbers[0],
                "script_ids": same * numbers[1],
            }

        return dataset.map(add)

    per_token = {
        key: feature if key == "targets" else dataclasses.replace(feature, rank=1)
        for key, feature in features.items()
    }
    steps = [encode_lines(features["targets"].vocabulary), add_ids]
    add_task("own", "srp_Cyrl", TEXT["srp_Cyrl"], preprocessors=steps, output_features=per_token)
    manifest = prepare_mixture("own", None, tmp_path / "store", 16)
    assert manifest.names == ("srp_Cyrl",)
    rows = packed(TEXT["srp_Cyrl"], features, 16, False)
    assert rows_of(tmp_path / "store", "train", "srp_Cyrl") == rows


def test_called_again_it_returns_what_stands(add_task, tmp_path):
    add_task("one", "deu_Latn", TEXT["deu_Latn"])
    store = tmp_path / "store"
    manifest = prepare_mixture("one", None, store, 16)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare_mixture("one", None, store, 16) == manifest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(UserError, match="holds something else"):
        prepare_mixture("one", None, store, 32)


def test_interrupted_it_takes_up_the_tasks_that_are_complete(
    corpus, tokenizer_file, tmp_path, monkeypatch
):
    register_corpus("world", corpus, tokenizer_file, 2.0, 0.1)
    encode, begun = compile.batches, []

    def stop_at_the_fourth(task, split, *arguments):
        begun.append(task.name)
        if len(set(begun)) == 4:
            raise KeyboardInterrupt
        return encode(task, split, *arguments)

    monkeypatch.setattr(compile, "batches", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        prepare_mixture("world", None, tmp_path / "store", 32)
    first = set(begun[:-1])
    begun.clear()
    monkeypatch.setattr(
        compile, "batches", lambda task, *a: begun.append(task.name) or encode(task, *a)
    )
    prepare_mixture("world", None, tmp_path / "store", 32)
    assert len(first) == 3 and len(set(begun)) == 3 and not first & set(begun)
    prepare(corpus, tokenizer_file, tmp_path / "direct", 32, 0.1)
    assert content(tmp_path / "store") == content(tmp_path / "direct")


def test_the_rates_of_a_store_that_stands_are_written_again(add_task, tmp_path):
    """As after a kill between the store and its rates."""
    add_task("one", "deu_Latn", TEXT["deu_Latn"])
    prepare_mixture("one", None, tmp_path / "store", 16)
    rates = tmp_path / "store" / "mixture.gin"
    written = rates.read_bytes()
    rates.unlink()
    prepare_mixture("one", None, tmp_path / "store", 16)
    assert rates.read_bytes() == written


def test_a_source_may_know_the_size_of_one_split_only(features, tmp_path):
    lines = TEXT["deu_Latn"]
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(lines),
        ["train", "validation"],
        num_input_examples={"train": len(lines)},
    )
    steps = [encode_lines(features["targets"].vocabulary), AddLanguageScript("deu_Latn", features)]
    seqio.TaskRegistry.add("half", source, features, steps)
    seqio.MixtureRegistry.add("halves", ["half"], default_rate=seqio.mixing_rate_num_examples)
    prepare_mixture("halves", None, tmp_path / "store", 16)
    assert '"deu_Latn": 90.0,' in (tmp_path / "store" / "mixture.gin").read_text()


def test_damaged_records_are_named_and_left_out_when_asked_to(features, tmp_path, mixture_refused):
    """The records before the damage, and the other files, are there."""
    lines, files = TEXT["deu_Latn"], [tmp_path / f"{part}.tfrecord" for part in range(3)]
    for part, file in enumerate(files):
        write_records(file, lines[part * 30 : part * 30 + 30])
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 255
    files[1].write_bytes(data)
    steps = [
        encode_lines(features["targets"].vocabulary),
        AddLanguageScript("deu_Latn", features),
    ]
    seqio.TaskRegistry.add("broken", records(files), features, steps)
    line = mixture_refused("broken", tmp_path / "store")
    assert f"Task broken: damaged: {files[1]};" in line and "--skip_damaged" in line
    manifest = prepare_mixture("broken", None, tmp_path / "store", 16, skip_damaged=True)
    assert 60 < manifest.counts["train"]["deu_Latn"].lines < 90
    read = sum(rows_of(tmp_path / "store", "train", "deu_Latn"), [])
    for line in [*lines[:28], *lines[60:88]]:  # what fills no row is dropped
        (ids,) = packed([line], features, 100, True)
        assert np.array(ids).tobytes() in np.array(read).tobytes()
    assert str(files[1]) in (tmp_path / "store" / "origin.json").read_text()


def test_a_missing_file_is_named(features, tmp_path, mixture_refused):
    file = tmp_path / "gone.tfrecord"
    write_records(file, TEXT["deu_Latn"])
    steps = [
        encode_lines(features["targets"].vocabulary),
        AddLanguageScript("deu_Latn", features),
    ]
    source = records([file])
    seqio.TaskRegistry.add("gone", source, features, steps)
    listed = source.list_shards("train")
    os.remove(file)
    source.list_shards = lambda split: listed
    assert "gone.tfrecord" in mixture_refused("gone", tmp_path / "store")


def write_records(file: Path, lines: Sequence[str]) -> None:
    with tf.io.TFRecordWriter(str(file)) as writer:
        for line in lines:
            text = tf.train.Feature(bytes_list=tf.train.BytesList(value=[line.encode()]))
            example = tf.train.Example(features=tf.train.Features(feature={"text": text}))
            writer.write(example.SerializeToString())


def records(files: Sequence[Path]) -> seqio.TFExampleDataSource:
    return seqio.TFExampleDataSource(
        {"train": [str(file) for file in files]}, {"text": tf.io.FixedLenFeature([], tf.string)}
    )
