"""The store: any rows in any order, and no damage that goes unnoticed."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.data.manifest import SPLITS, Manifest
from langsamp_jax.data.store import Split, Store
from langsamp_jax.errors import UserError


@pytest.fixture
def damaged(store_path, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(store_path, tmp_path / "store")


def read_all(split: Split) -> tuple[np.ndarray, np.ndarray]:
    language = np.repeat(np.arange(len(split.rows)), split.rows)
    row = np.concatenate([np.arange(rows) for rows in split.rows])
    return split.read(language, row)


@pytest.fixture(scope="module", params=SPLITS)
def whole(request, store_path) -> tuple[Split, np.ndarray, np.ndarray]:
    split = Store(store_path).split(request.param)
    return (split, *read_all(split))


def refused(call, *named: object) -> str:
    """The message of the UserError of ``call``: one line that has all of ``named``."""
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(str(name) in message for name in named), message
    return message


def test_names_are_sorted_and_rows_are_counted(whole, corpus):
    split, tokens, _ = whole
    assert split.names == tuple(sorted(file.stem for file in corpus.glob("*.txt")))
    assert tokens.shape == (split.rows.sum(), 32) and tokens.dtype == np.int32
    assert np.all(split.rows > 0)


def test_only_the_last_validation_row_of_a_language_is_shorter(whole):
    split, tokens, lengths = whole
    last = np.cumsum(split.rows) - 1
    assert np.all(np.delete(lengths, last) == 32)
    assert np.all((1 <= lengths) & (lengths <= 32)) and lengths.dtype == np.int32
    shorter = split.path.name == "validation"
    assert np.any(lengths < 32) == shorter
    assert np.array_equal(tokens == 1, np.arange(32) >= lengths[:, None])


@given(data=st.data())
def test_rows_are_read_in_any_order_and_again(data, whole):
    split, tokens, lengths = whole
    chosen = np.array(data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=40)), int)
    first = np.cumsum(split.rows) - split.rows
    language = np.searchsorted(first, chosen, side="right") - 1
    found, found_lengths = split.read(language, chosen - first[language])
    assert np.array_equal(found, tokens[chosen])
    assert np.array_equal(found_lengths, lengths[chosen])


def test_a_language_may_have_no_validation_rows(store_path):
    """Nor need it have a folder there."""
    store = Store(store_path)
    counts = {split: dict(of) for split, of in store.manifest.counts.items()}
    counts["validation"]["qaa_Latn"] = dataclasses.replace(
        counts["validation"]["qaa_Latn"], lines=0, tokens=0, rows=0
    )
    whole = store.split("validation")
    store.manifest = dataclasses.replace(store.manifest, counts=counts)
    without = store.split("validation")
    for name in ("qaa_Cyrl", "qab_Cyrl"):  # on either side of it
        index = np.full(3, whole.names.index(name))
        for one, other in zip(
            whole.read(index, np.arange(3)), without.read(index, np.arange(3)), strict=True
        ):
            assert np.array_equal(one, other)


def test_manifest_survives_saving(store_path, tmp_path):
    manifest = Store(store_path).manifest
    manifest.save(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == (store_path / "manifest.json").read_bytes()
    assert set(manifest.files) == {
        file.relative_to(store_path).as_posix() for file in store_path.glob("*/*/c/*/0")
    }


def test_tokenizer_is_the_one_of_the_rows(store_path, tokenizer_file):
    assert Store(store_path).tokenizer().model == tokenizer_file.read_bytes()


def test_a_folder_that_is_no_store(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        refused(lambda folder=folder: Store(folder), folder, "is no store", "langsamp prepare")


@pytest.mark.parametrize("split", SPLITS)
def test_a_missing_or_cut_file_is_named_on_opening(split, damaged):
    file = damaged / split / "qab_Cyrl" / "c" / "0" / "0"
    data = file.read_bytes()
    for wrong in (data[:-1], data + b"\0", b""):
        file.write_bytes(wrong)
        refused(lambda: Store(damaged), file, f"{len(wrong)} bytes", len(data))
    file.unlink()
    refused(lambda: Store(damaged), file, "is missing")
    file.write_bytes(data)
    Store(damaged)


def test_a_file_that_vanishes_while_open_is_named(damaged):
    split = Store(damaged).split("train")
    shutil.rmtree(damaged / "train" / "qab_Cyrl")
    refused(lambda: read_all(split), damaged / "train" / "qab_Cyrl")


@pytest.mark.parametrize("place", [0, 1, 99, 10_000, -40_000, -32_772, -20_000, -4, -1])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_in_a_row_file_is_found(place, bit, damaged):
    """The last 32,772 bytes are the index; most of it is of rows that the file has not."""
    file = damaged / "train" / "qaa_Latn" / "c" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)
    refused(lambda: read_all(Store(damaged).split("train")), "damaged", file)


def test_random_flipped_bytes_in_row_files_are_found(damaged):
    rng = np.random.default_rng(0)
    files = sorted(damaged.glob("*/*/c/*/0"))
    for _ in range(30):
        file = files[rng.integers(len(files))]
        data = file.read_bytes()
        place = rng.integers(len(data))
        changed = bytes([data[place] ^ int(rng.integers(1, 256))])
        file.write_bytes(data[:place] + changed + data[place + 1 :])
        split = file.relative_to(damaged).parts[0]
        refused(lambda split=split: read_all(Store(damaged).split(split)), "damaged", file)
        file.write_bytes(data)


def test_rows_beside_a_damaged_one_can_be_read(damaged, store_path):
    """Each row has its own checksum, so that a batch without the damaged row is no error."""
    file = damaged / "train" / "qaa_Latn" / "c" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    split, (intact, _) = Store(damaged).split("train"), read_all(Store(store_path).split("train"))
    language = np.array([split.names.index("qaa_Latn")])
    first, number = split.rows[: language[0]].sum(), split.rows[language[0]]
    readable = 0
    for row in range(number):
        try:
            assert np.array_equal(split.read(language, np.array([row]))[0][0], intact[first + row])
            readable += 1
        except UserError:
            pass
    assert readable == number - 1


def test_no_changed_byte_gives_another_manifest(damaged):
    file = damaged / "manifest.json"
    data, manifest = file.read_bytes(), Store(damaged).manifest
    rng = np.random.default_rng(0)
    found = 0
    for place in [*range(60), *rng.integers(0, len(data), 150), *range(-90, 0)]:
        changed = bytearray(data)
        changed[place] ^= int(rng.integers(1, 256))
        file.write_bytes(changed)
        try:  # white space may become other white space
            assert Store(damaged).manifest == manifest
        except UserError as error:
            assert str(file) in str(error)
            found += 1
    assert found > 250


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", "null", '{"seal": 1}', "\0" * 100])
def test_a_manifest_that_is_none(text, damaged):
    (damaged / "manifest.json").write_text(text)
    refused(lambda: Store(damaged), damaged / "manifest.json")


def test_every_cut_manifest_is_found(damaged):
    file = damaged / "manifest.json"
    data = file.read_bytes()
    for size in [*range(0, len(data) - 1, 97), len(data) - 2]:  # the last byte ends the line
        file.write_bytes(data[:size])
        refused(lambda: Store(damaged), file, "cut or changed")


def test_another_format_is_named(damaged, monkeypatch):
    manifest = Store(damaged).manifest
    monkeypatch.setattr("langsamp_jax.data.manifest._FORMAT", "langsamp-store/99")
    manifest.save(damaged)
    monkeypatch.undo()
    refused(lambda: Store(damaged), damaged / "manifest.json", "langsamp-store/99")


def test_a_swapped_tokenizer_is_found(damaged, tokenizer_file):
    file = damaged / "tokenizer.model"
    data = bytearray(tokenizer_file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    refused(Store(damaged).tokenizer, file)
    file.unlink()
    refused(Store(damaged).tokenizer, file, "not found")


def test_the_manifest_is_plain_json(store_path):
    """With everything by name, for people and other programs."""
    body = json.loads((store_path / "manifest.json").read_text("utf-8"))
    assert body.keys() - {"format", "seal"} == {f.name for f in dataclasses.fields(Manifest)}
    assert body["counts"]["train"]["qaa_Latn"].keys() == {"lines", "tokens", "unknown", "rows"}
