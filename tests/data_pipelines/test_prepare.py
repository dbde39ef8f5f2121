"""prepare: the reference's packing, a split by the hash of the line, the same bytes every time."""

import functools
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from data_pipelines import prepare as module
from data_pipelines.prepare import line_hash, prepare
from langsamp_jax.store import SPLITS, Manifest, Store


def lines_of(file: Path) -> list[str]:
    lines = [line.strip() for line in file.read_text("utf-8").split("\n")]
    return [line for line in lines if line]


processor_of = functools.cache(
    lambda model: sentencepiece.SentencePieceProcessor(model_file=str(model))
)


def packed(lines: list[str], model: Path, length: int, keep_rest: bool) -> list[list[int]]:
    """The rows of these lines, by the reference's rule and SentencePiece alone."""
    processor = processor_of(model)
    ids = []
    for line in lines:
        ids += [0, *(i + 1 if i else 3 for i in processor.encode(line)), 2]
    rows = [ids[start : start + length] for start in range(0, len(ids), length)]
    return rows if keep_rest else [row for row in rows if len(row) == length]


def rows_of(store: Store, split: str, name: str) -> list[list[int]]:
    """All rows of a language-script, without their padding."""
    opened = store.split(split)
    index = opened.names.index(name)
    row = np.arange(opened.rows[index])
    if not len(row):
        return []
    tokens, lengths = opened.read(np.full(len(row), index), row)
    assert all(np.all(line[size:] == 1) for line, size in zip(tokens, lengths, strict=True))
    return [line[:size].tolist() for line, size in zip(tokens, lengths, strict=True)]


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write(folder: Path, **lines: list[str]) -> Path:
    folder.mkdir()
    for name, text in lines.items():
        (folder / f"{name}.txt").write_text("".join(line + "\n" for line in text), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("length", "fraction", "batch"),
    [(32, 0.1, 20_000), (8, 0.3, 50), (50, 0.5, 7), (512, 0, 1)],
)
def test_rows_counts_and_bytes_are_those_of_the_reference(
    length, fraction, batch, corpus, tokenizer_file, tmp_path, monkeypatch
):
    """However many lines are tokenised together; rows of 8 fill more than one file."""
    monkeypatch.setattr(module, "_LINES_AT_ONCE", batch)
    manifest = prepare(corpus, tokenizer_file, tmp_path / "store", length, fraction)
    store = Store(tmp_path / "store")
    assert store.manifest == manifest
    assert (manifest.sequence_length, manifest.validation_fraction) == (length, fraction)
    files = [file for file in corpus.glob("*.txt") if file.stem not in manifest.skipped]
    assert manifest.names == tuple(sorted(file.stem for file in files))
    for file in files:
        lines = {split: [] for split in SPLITS}
        for line in lines_of(file):
            lines["validation" if line_hash(line) < fraction else "train"].append(line)
        for split in SPLITS:
            expected = packed(lines[split], tokenizer_file, length, split == "validation")
            assert rows_of(store, split, file.stem) == expected
            everything = sum(packed(lines[split], tokenizer_file, length, True), [])
            counts = manifest.counts[split][file.stem]
            assert counts.lines == len(lines[split])
            assert counts.tokens == len(everything)
            assert counts.unknown == everything.count(3)
            assert counts.rows == len(expected)
        assert manifest.sources[file.stem] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_large_languages_fill_several_files(corpus, tokenizer_file, tmp_path):
    manifest = prepare(corpus, tokenizer_file, tmp_path / "store", 8, 0)
    (large,) = [name for name in manifest.names if manifest.counts["train"][name].rows > 2048]
    files = sorted((tmp_path / "store" / "train" / large / "c").rglob("0"))
    assert [file.is_file() for file in files].count(True) >= 2


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_equal_lines_are_on_one_side_only(fraction, tokenizer_file, tmp_path):
    """Within a language and across languages, whatever else the files hold."""
    lines = [f"line number {number}" for number in range(400)]
    corpus = write(
        tmp_path / "corpus",
        qaa_Latn=lines + lines[::2],
        qab_Latn=[f"  {line}\t" for line in lines[::-1]] + ["another"] * 50,
    )
    store = tmp_path / "store"
    prepare(corpus, tokenizer_file, store, 16, fraction)
    processor = processor_of(tokenizer_file)
    sides = {split: set() for split in SPLITS}
    seen = 0
    for split in SPLITS:
        for name in ("qaa_Latn", "qab_Latn"):
            ids = sum(rows_of(Store(store), split, name), [])
            for start in [i for i, token in enumerate(ids) if token == 0]:
                if 2 in ids[start:]:  # what train drops may cut the last line
                    pieces = [i - 1 for i in ids[start + 1 : ids.index(2, start)]]
                    sides[split].add(processor.decode(pieces))
                    seen += 1
    assert seen >= 1048 and len(sides["train"] | sides["validation"]) == 401
    assert not sides["train"] & sides["validation"]
    assert abs(len(sides["validation"]) / 401 - fraction) < 0.06


def test_line_hash_is_uniform_and_depends_on_the_text_alone():
    hashes = np.array([line_hash(f"line {number}") for number in range(4000)])
    assert np.all((0 <= hashes) & (hashes < 1)) and len(set(hashes)) == 4000
    assert np.abs(np.histogram(hashes, 10, (0, 1))[0] / 400 - 1).max() < 0.2
    known = hashlib.blake2b("größe".encode(), digest_size=8).hexdigest()
    assert line_hash("größe") == int(known, 16) / 2**64


def test_same_input_same_bytes(store_path, corpus, tokenizer_file, tmp_path):
    prepare(corpus, tokenizer_file, tmp_path / "deep" / "again", 32, 0.1)
    assert digests(tmp_path / "deep" / "again") == digests(store_path)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["again"]
    copied = shutil.copytree(corpus, tmp_path / "elsewhere")
    prepare(copied, shutil.copy(tokenizer_file, tmp_path / "t"), tmp_path / "third", 32, 0.1)
    assert digests(tmp_path / "third") == digests(store_path)


def test_the_store_holds_what_it_lists_and_nothing_else(store_path, tokenizer_file):
    manifest = Store(store_path).manifest
    found = digests(store_path)
    arrays = {
        f"{split}/{name}/zarr.json" for split in SPLITS for name in manifest.names
    }  # for other readers of zarr
    assert found.keys() == {*manifest.files, *arrays, "manifest.json", "tokenizer.model"}
    assert (store_path / "tokenizer.model").read_bytes() == tokenizer_file.read_bytes()
    metadata = json.loads((store_path / "train" / "qaa_Latn" / "zarr.json").read_text())
    assert metadata["shape"] == [manifest.counts["train"]["qaa_Latn"].rows, 32]


def test_called_again_nothing_is_done(corpus, tokenizer_file, tmp_path):
    store = tmp_path / "store"
    manifest = prepare(corpus, tokenizer_file, store, 32, 0.1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare(corpus, tokenizer_file, store, 32, 0.1) == manifest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_empty_folder_may_stand_at_the_output(store_path, corpus, tokenizer_file, tmp_path):
    (tmp_path / "store").mkdir()
    prepare(corpus, tokenizer_file, tmp_path / "store", 32, 0.1)
    assert digests(tmp_path / "store") == digests(store_path)


def test_a_language_with_too_little_text_is_skipped_and_listed(tokenizer_file, tmp_path):
    short = "abc abc"
    corpus = write(
        tmp_path / "corpus", qaa_Latn=["some words here"] * 50, qab_Latn=[short], qac_Latn=[]
    )
    manifest = prepare(corpus, tokenizer_file, tmp_path / "store", 64, 0)
    assert manifest.names == ("qaa_Latn",)
    tokens = len(packed([short], tokenizer_file, 64, True)[0])
    assert manifest.skipped == {
        "qab_Latn": f"{tokens} training tokens do not fill a row of 64",
        "qac_Latn": "0 training tokens do not fill a row of 64",
    }
    assert set(manifest.sources) == {"qaa_Latn", "qab_Latn", "qac_Latn"}
    assert not list((tmp_path / "store").rglob("*qab_Latn*"))
    assert prepare(corpus, tokenizer_file, tmp_path / "store", 64, 0) == manifest


def test_a_language_is_kept_for_its_training_rows_alone(tokenizer_file, tmp_path):
    """Lines that all fall on the validation side make no language to train on, and lines that
    all fall on the training side make one without validation rows."""
    lines = [f"line number {number}" for number in range(300)]
    train = [line for line in lines if line_hash(line) >= 0.5]
    validation = [line for line in lines if line_hash(line) < 0.5]
    corpus = write(tmp_path / "corpus", qaa_Latn=train, qab_Latn=validation, qac_Latn=lines)
    manifest = prepare(corpus, tokenizer_file, tmp_path / "store", 32, 0.5)
    assert manifest.names == ("qaa_Latn", "qac_Latn") and list(manifest.skipped) == ["qab_Latn"]
    counts = manifest.counts["validation"]
    assert (counts["qaa_Latn"].rows, counts["qaa_Latn"].tokens) == (0, 0)
    expected = packed(validation, tokenizer_file, 32, True)
    assert rows_of(Store(tmp_path / "store"), "validation", "qac_Latn") == expected


def test_a_row_is_filled_to_the_last_token(tokenizer_file, tmp_path):
    """Text of exactly so many tokens as rows need leaves no rest on either side."""
    line = "a"
    tokens = len(packed([line], tokenizer_file, 8, True)[0])
    corpus = write(tmp_path / "corpus", qaa_Latn=[line] * 8)
    manifest: Manifest = prepare(corpus, tokenizer_file, tmp_path / "store", 8, 0)
    assert manifest.counts["train"]["qaa_Latn"].rows == tokens
    assert manifest.counts["train"]["qaa_Latn"].tokens == 8 * tokens


def test_byte_order_mark_line_ends_and_empty_lines_do_not_count(tokenizer_file, tmp_path):
    plain = write(tmp_path / "plain", qaa_Latn=["one two", "three", "four five"] * 20)
    other = tmp_path / "other"
    other.mkdir()
    text = "\ufeff" + "\r\n \r\n".join(["one two", " three\t", "four five"] * 20)
    (other / "qaa_Latn.txt").write_bytes(text.encode("utf-8"))
    prepare(plain, tokenizer_file, tmp_path / "a", 16, 0.2)
    prepare(other, tokenizer_file, tmp_path / "b", 16, 0.2)
    one, two = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert one.pop("manifest.json") != two.pop("manifest.json")  # other sources
    assert one == two


def test_real_text_in_many_scripts(shared_data, tmp_path):
    """With the real XLM-R tokenizer, whose unknown characters are counted."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    names = ["deu_Latn", "rus_Cyrl", "hin_Deva", "arb_Arab", "kor_Hang", "amh_Ethi", "bod_Tibt"]
    files = [shared_data / "udhr" / "text" / f"{name}.txt" for name in names]
    for file in files:
        if file.exists():
            shutil.copy(file, corpus)
    model = shared_data / "tokenizers" / "xlmr" / "sentencepiece.bpe.model"
    manifest = prepare(corpus, model, tmp_path / "store", 64, 0)
    assert len(manifest.names) >= 6
    store = Store(tmp_path / "store")
    for name in manifest.names:
        lines = lines_of(corpus / f"{name}.txt")
        assert rows_of(store, "train", name) == packed(lines, model, 64, False)
    assert manifest.counts["train"]["bod_Tibt"].unknown > 100
    assert manifest.counts["train"]["deu_Latn"].unknown == 0
