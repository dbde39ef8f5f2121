"""store.py: a store that was copied to an object store is the same store, at few requests."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.data.manifest import ROWS_PER_FILE
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.io.storage import location

pytestmark = pytest.mark.slow


def all_rows(split) -> tuple[np.ndarray, np.ndarray]:
    language = np.repeat(np.arange(len(split.names)), split.rows)
    first = np.cumsum(split.rows) - split.rows
    return language, np.arange(len(language)) - first[language]


def of_rows(requests) -> list:
    return [r for r in requests if "/c/" in r.path]


def test_the_same_rows(put, store_path):
    remote, local = Store(location(put(store_path, "store"))), Store(store_path)
    assert remote.manifest == local.manifest
    assert remote.tokenizer().fingerprint == local.tokenizer().fingerprint
    for name in ("train", "validation"):
        where = all_rows(local.split(name))
        for ours, theirs in zip(
            remote.split(name).read(*where), local.split(name).read(*where), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_opening_asks_for_no_file_of_rows(s3, put, store_path):
    url = put(store_path, "store")
    Store(location(url)).split("train")
    assert not of_rows(s3.requests)
    listings = [r for r in s3.requests if "list-type=2" in r.query]
    assert len(s3.requests) <= 5 and len(listings) <= 2, s3.requests


def test_a_row_is_one_request_and_an_index_once_a_file(s3, put, store_path):
    split = Store(location(put(store_path, "store"))).split("train")
    language, row = all_rows(split)
    s3.requests.clear()
    one_of_each = np.unique(language, return_index=True)[1]
    split.read(language[one_of_each], row[one_of_each])
    assert row.max() < ROWS_PER_FILE  # one file each
    asked = of_rows(s3.requests)
    assert all(request.range for request in asked) and len(asked) == 2 * len(one_of_each)
    s3.requests.clear()
    some = np.random.default_rng(0).permutation(len(language))[:20]
    split.read(language[some], row[some])
    assert 0 < len(of_rows(s3.requests)) <= len(some)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_copy(put, store_path, tmp_path, damage, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(store_path, copy)
    file = sorted((copy / "train").rglob("c/*/0"))[0]
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    url = put(copy, "store")
    assert main(["mixture", "--data", url]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"{url}/{file.relative_to(copy).as_posix()}" in line
    assert ("is missing" if damage == "missing" else "bytes instead of") in line


def test_a_flipped_byte(put, store_path, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(store_path, copy)
    file = sorted((copy / "train").rglob("c/*/0"))[2]
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    url = put(copy, "store")
    split = Store(location(url)).split("train")
    with pytest.raises(UserError) as error:
        split.read(*all_rows(split))
    name = file.relative_to(copy).as_posix()
    assert str(error.value).startswith(f"the store is damaged: {url}/{name}: ")


def test_rows_that_may_not_be_read(s3, put, store_path):
    url = put(store_path, "store")
    split = Store(location(url)).split("train")
    s3.refuse = lambda request: "/c/" in request.path
    with pytest.raises(UserError, match=rf"^{url}/train/.*/c/0/0 cannot be read: Acc"):
        split.read(*all_rows(split))


def test_a_copy_by_a_plain_tool_and_back(put, store_path, tmp_path, digests):
    url, back = put(store_path, "store"), tmp_path / "back"
    for name in digests(store_path):
        (back / name).parent.mkdir(parents=True, exist_ok=True)
        (back / name).write_bytes((location(url) / name).read_bytes())
    assert digests(back) == digests(store_path)
    Store(Path(back))
