"""storage.py: what a path is, and one line for each way in which a store does not answer."""

from pathlib import Path

import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.io import storage

pytestmark = pytest.mark.slow


def test_what_a_path_is(s3):
    assert storage.location("a//b") == Path("a/b") and not storage.is_remote(Path("a"))
    place = storage.location("s3://bucket/a/") / "b"
    assert str(place) == "s3://bucket/a/b" and storage.is_remote(place)
    assert storage.absolute(place) is place and storage.location(place) is place
    spec = storage.kvstore(place)
    assert (spec["driver"], spec["bucket"], spec["path"]) == ("s3", "bucket", "a/b/")
    assert spec["endpoint"] == s3.environment["AWS_ENDPOINT_URL"]
    assert storage.kvstore(Path("/a")) == {"driver": "file", "path": "/a/"}


def test_a_folder_is_copied_in_the_order_of_writing(s3, tmp_path):
    place = storage.location(f"s3://bucket/{tmp_path.name}")
    with storage.scratch(place) as folder:
        for name in ("c", "a", "b"):
            (folder / name).write_text(name)
    assert [r.path[-1] for r in s3.requests if r.method == "PUT"] == ["c", "a", "b"]
    assert storage.sizes(place) == {"a": 1, "b": 1, "c": 1}
    with pytest.raises(ZeroDivisionError), storage.scratch(place / "not") as folder:
        (folder / "d").write_text("d")
        raise ZeroDivisionError
    assert "not/d" not in storage.sizes(place)


def test_places_that_cannot_be(command_refused, monkeypatch, s3):
    for place in ("http://host/store", "s3://", "s3:///store"):
        line = command_refused("mixture", "--data", place)
        expected = f"{place}: expected a local path, gs://BUCKET/... or s3://BUCKET/..."
        assert line.startswith(f"langsamp: {expected}")
    words = ["prepare", "--corpus", "c", "--tokenizer", "t", "--output", "s3://bucket/store"]
    line = command_refused(*words)
    assert line.startswith("langsamp: s3://bucket/store: expected a local path")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the extra gcs: pip install 'langsamp-jax\[gcs\]'"):
        storage.location("gs://bucket/store")


def test_stores_that_do_not_answer(s3, command_refused):
    line = command_refused("mixture", "--data", "s3://bucket/nothing")
    assert line.startswith("langsamp: s3://bucket/nothing is no store")
    line = command_refused("mixture", "--data", "s3://no-bucket/store")
    expected = "s3://no-bucket/store cannot be reached: The specified bucket does not exist"
    assert line.startswith(f"langsamp: {expected}")
    s3.refuse = lambda request: True
    line = command_refused("mixture", "--data", "s3://bucket/denied")
    expected = "s3://bucket/denied cannot be reached: Access Denied (check the name, AWS_ACC"
    assert line.startswith(f"langsamp: {expected}")
