"""prepare: the reference's packing, a split by the hash of the line, the same bytes every time."""

import functools
import gzip
import hashlib
import json
import math
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from data_pipelines.corpus import sources
from data_pipelines.corpus.cleaning import CleaningConfig, line_hashes
from data_pipelines.packing import deduplication, token_chunks
from data_pipelines.packing.prepare import prepare
from data_pipelines.packing.provenance import Provenance
from langsamp_jax.data.manifest import SPLITS, Manifest
from langsamp_jax.data.store import Store


def lines_of(file: Path) -> list[str]:
    """Each text once, where it comes first."""
    lines = [line.strip() for line in file.read_text("utf-8").split("\n")]
    return list(dict.fromkeys(line for line in lines if line))


def is_validation(line: str, fraction: float) -> bool:
    digest = hashlib.blake2b(line.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < fraction


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


@pytest.mark.parametrize(
    ("length", "fraction", "size"),
    [(32, 0.1, None), (8, 0.3, 5000), (50, 0.5, 700), (512, 0, 100)],
)
def test_rows_and_counts_are_those_of_the_reference(
    length, fraction, size, corpus, tokenizer_file, tmp_path, monkeypatch
):
    """However the text is cut for the work; rows of 8 fill more than one file."""
    if size is not None:
        monkeypatch.setattr(sources, "RANGE_BYTES", 8 * size)
        monkeypatch.setattr(sources, "_BLOCK_BYTES", size)
        monkeypatch.setattr(token_chunks, "CHUNK_TOKENS", size)
        monkeypatch.setattr(deduplication, "_BUCKET_LINES", size)
        monkeypatch.setattr("data_pipelines.packing.rows._FILES_AT_ONCE", 1)
    manifest = prepare(corpus, tokenizer_file, tmp_path / "store", length, fraction)
    store = Store(tmp_path / "store")
    assert store.manifest == manifest and manifest.sequence_length == length
    provenance = Provenance.load(store.path)
    assert provenance.settings["validation_fraction"] == fraction
    files = [file for file in corpus.glob("*.txt") if file.stem not in manifest.skipped]
    assert manifest.names == tuple(sorted(file.stem for file in files))
    for file in files:
        lines = {split: [] for split in SPLITS}
        for line in lines_of(file):
            lines["validation" if is_validation(line, fraction) else "train"].append(line)
        for split in SPLITS:
            expected = packed(lines[split], tokenizer_file, length, split == "validation")
            assert rows_of(store, split, file.stem) == expected
            everything = sum(packed(lines[split], tokenizer_file, length, True), [])
            counts = manifest.counts[split][file.stem]
            assert counts.lines == len(lines[split])
            assert counts.tokens == len(everything)
            assert counts.unknown == everything.count(3)
            assert counts.rows == len(expected)
        text = [line for line in file.read_text("utf-8").split("\n") if line.strip()]
        met = provenance.report[file.stem]["hygiene"]
        assert (met["lines"], met["duplicates"]) == (len(text), len(text) - len(lines_of(file)))


def test_large_languages_fill_several_files(corpus, tokenizer_file, tmp_path):
    manifest = prepare(corpus, tokenizer_file, tmp_path / "store", 8, 0)
    (large,) = [name for name in manifest.names if manifest.counts["train"][name].rows > 2048]
    rows = manifest.counts["train"][large].rows
    files = {f for f in manifest.files if f.startswith(f"train/{large}/")}
    assert files == {f"train/{large}/c/{shard}/0" for shard in range(math.ceil(rows / 2048))}
    assert all((tmp_path / "store" / file).is_file() for file in files) and len(files) >= 2


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_equal_lines_are_on_one_side_only(
    fraction, duplicates, tokenizer_file, tmp_path, write_corpus
):
    """Within a language and across languages, whatever else the files hold."""
    lines = [f"line number {number}" for number in range(400)]
    corpus = write_corpus(
        tmp_path / "corpus",
        qaa_Latn=lines + lines[::2],
        qab_Latn=[f"  {line}\t" for line in lines[::-1]] + ["another"] * 50,
    )
    store = tmp_path / "store"
    prepare(corpus, tokenizer_file, store, 16, fraction, CleaningConfig(duplicates=duplicates))
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
    read = {"drop": 801, "keep": 1050}[duplicates]
    assert read - 4 < seen <= read  # of each language and split the last line may be cut
    assert len(sides["train"] | sides["validation"]) >= 400
    assert not sides["train"] & sides["validation"]
    assert abs(len(sides["validation"]) / 401 - fraction) < 0.06


def test_line_hashes_are_uniform_and_depend_on_the_text_alone():
    hashes = line_hashes([f"line {number}" for number in range(4000)])
    assert hashes.dtype == np.uint64 and len(set(hashes.tolist())) == 4000
    assert np.abs(np.histogram(hashes / 2.0**64, 10, (0, 1))[0] / 400 - 1).max() < 0.2
    known = hashlib.blake2b("größe".encode(), digest_size=8).hexdigest()
    assert line_hashes(["a", "größe"])[1] == int(known, 16)


def test_same_input_same_bytes(store_path, corpus, tokenizer_file, tmp_path, digests):
    prepare(corpus, tokenizer_file, tmp_path / "deep" / "again", 32, 0.1)
    assert digests(tmp_path / "deep" / "again") == digests(store_path)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["again"]
    copied = shutil.copytree(corpus, tmp_path / "elsewhere")
    prepare(copied, shutil.copy(tokenizer_file, tmp_path / "t"), tmp_path / "third", 32, 0.1)
    assert digests(tmp_path / "third") == digests(store_path)


def test_the_store_holds_what_it_lists_and_nothing_else(store_path, tokenizer_file, digests):
    manifest = Store(store_path).manifest
    found = digests(store_path)
    assert all(
        (store_path / file).stat().st_size == size
        and hashlib.blake2b((store_path / file).read_bytes(), digest_size=8).hexdigest() == digest
        for file, (size, digest) in manifest.files.items()
    )
    arrays = {  # for other readers of zarr
        f"{split}/{name}/zarr.json" for split in SPLITS for name in manifest.names
    }
    hashes = {f"lines/{name}.u64" for name in manifest.names}
    own = {"manifest.json", "origin.json", "tokenizer.model"}
    assert found.keys() == {*manifest.files, *arrays, *hashes, *own}
    assert (store_path / "tokenizer.model").read_bytes() == tokenizer_file.read_bytes()
    metadata = json.loads((store_path / "train" / "qaa_Latn" / "zarr.json").read_text())
    assert metadata["shape"] == [manifest.counts["train"]["qaa_Latn"].rows, 32]


def test_the_hashes_of_all_lines_are_kept(store_path, corpus):
    """Of both splits, sorted: what new text is compared with."""
    for name in Store(store_path).manifest.names:
        lines = lines_of(corpus / f"{name}.txt")
        found = np.fromfile(store_path / "lines" / f"{name}.u64", "<u8")
        assert found.tolist() == sorted(line_hashes(lines).tolist())


@pytest.mark.parametrize("range_bytes", [8 << 20, 3000])
def test_called_again_nothing_is_done(range_bytes, corpus, tokenizer_file, tmp_path, monkeypatch):
    """Also on text that is read in several ranges, of plain and compressed files."""
    monkeypatch.setattr(sources, "RANGE_BYTES", range_bytes)
    corpus, store = shutil.copytree(corpus, tmp_path / "corpus"), tmp_path / "store"
    compressed = gzip.compress((corpus / "qab_Cyrl.txt").read_bytes())
    (corpus / "qab_Cyrl.txt.gz").write_bytes(compressed)
    (corpus / "qab_Cyrl.txt").unlink()
    manifest = prepare(corpus, tokenizer_file, store, 32, 0.1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare(corpus, tokenizer_file, store, 32, 0.1) == manifest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_empty_folder_may_stand_at_the_output(
    store_path, corpus, tokenizer_file, tmp_path, digests
):
    (tmp_path / "store").mkdir()
    prepare(corpus, tokenizer_file, tmp_path / "store", 32, 0.1)
    assert digests(tmp_path / "store") == digests(store_path)


def test_a_language_with_too_little_text_is_skipped_and_listed(
    tokenizer_file, tmp_path, write_corpus
):
    short = "abc abc"
    long = [f"some words here {number}" for number in range(50)]
    corpus = write_corpus(tmp_path / "corpus", qaa_Latn=long, qab_Latn=[short], qac_Latn=[])
    manifest = prepare(corpus, tokenizer_file, tmp_path / "store", 64, 0)
    assert manifest.names == ("qaa_Latn",)
    tokens = len(packed([short], tokenizer_file, 64, True)[0])
    assert manifest.skipped == {
        "qab_Latn": f"{tokens} training tokens do not fill a row of 64",
        "qac_Latn": "0 training tokens do not fill a row of 64",
    }
    provenance = Provenance.load(tmp_path / "store")
    assert set(provenance.sources) == set(provenance.report) == {"qaa_Latn", "qab_Latn", "qac_Latn"}
    assert not list((tmp_path / "store").rglob("*qab_Latn*"))
    assert prepare(corpus, tokenizer_file, tmp_path / "store", 64, 0) == manifest


def test_a_language_is_kept_for_its_training_rows_alone(tokenizer_file, tmp_path, write_corpus):
    """Lines that all fall on the validation side make no language to train on, and lines that
    all fall on the training side make one without validation rows."""
    lines = [f"line number {number}" for number in range(300)]
    train = [line for line in lines if not is_validation(line, 0.5)]
    validation = [line for line in lines if is_validation(line, 0.5)]
    corpus = write_corpus(tmp_path / "corpus", qaa_Latn=train, qab_Latn=validation, qac_Latn=lines)
    manifest = prepare(corpus, tokenizer_file, tmp_path / "store", 32, 0.5)
    assert manifest.names == ("qaa_Latn", "qac_Latn") and list(manifest.skipped) == ["qab_Latn"]
    counts = manifest.counts["validation"]
    assert (counts["qaa_Latn"].rows, counts["qaa_Latn"].tokens) == (0, 0)
    expected = packed(validation, tokenizer_file, 32, True)
    assert rows_of(Store(tmp_path / "store"), "validation", "qac_Latn") == expected


def test_a_row_is_filled_to_the_last_token(tokenizer_file, tmp_path, write_corpus):
    """Text of exactly so many tokens as rows need leaves no rest on either side."""
    line = "a"
    tokens = len(packed([line], tokenizer_file, 8, True)[0])
    corpus = write_corpus(tmp_path / "corpus", qaa_Latn=[line] * 8)
    manifest: Manifest = prepare(
        corpus, tokenizer_file, tmp_path / "store", 8, 0, CleaningConfig(duplicates="keep")
    )
    assert manifest.counts["train"]["qaa_Latn"].rows == tokens
    assert manifest.counts["train"]["qaa_Latn"].tokens == 8 * tokens


def test_byte_order_mark_line_ends_and_empty_lines_do_not_count(
    tokenizer_file, tmp_path, digests, write_corpus
):
    plain = write_corpus(tmp_path / "plain", qaa_Latn=["one two", "three", "four five"] * 20)
    other = tmp_path / "other"
    other.mkdir()
    text = "\ufeff" + "\r\n \r\n".join(["one two", " three\t", "four five"] * 20)
    (other / "qaa_Latn.txt").write_bytes(text.encode("utf-8"))
    keep = CleaningConfig(duplicates="keep")
    prepare(plain, tokenizer_file, tmp_path / "a", 16, 0.2, keep)
    prepare(other, tokenizer_file, tmp_path / "b", 16, 0.2, keep)
    one, two = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert one.pop("origin.json") != two.pop("origin.json")  # other sources
    assert one == two
    report = Provenance.load(tmp_path / "b").report["qaa_Latn"]["hygiene"]
    assert {name: count for name, count in report.items() if count} == {"lines": 60}


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
        lines = list(dict.fromkeys(unicodedata.normalize("NFC", line) for line in lines))
        assert rows_of(store, "train", name) == packed(lines, model, 64, False)
    assert manifest.counts["train"]["bod_Tibt"].unknown > 100
    assert manifest.counts["train"]["deu_Latn"].unknown == 0
