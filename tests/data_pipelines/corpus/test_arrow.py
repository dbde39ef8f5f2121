"""Arrow files: the texts that `datasets` wrote, row for row; damage is named, never passed over."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.corpus import arrow
from langsamp_jax.errors import UserError

ODD = ["", " ", "a\nb", "c\r\nd\n", "🦊\u200d🔥", "NUL \0 inside", "\ufeffmark", "x" * 3_000_000]


def lines_of(texts: list[str | None]) -> bytes:
    return b"".join(t.replace("\n", " ").encode() + b"\n" for t in texts if t is not None)


def saved(folder: Path, texts: list[str | None], **options) -> Path:
    Dataset.from_dict({"dataset": ["x"] * len(texts), "text": texts}).save_to_disk(
        folder, **options
    )
    return folder


def read(folder: Path) -> list[str]:
    return [text.decode() for file in arrow.data_files(folder) for text in arrow.texts(file)]


def streamed(texts: list[str], rows_a_batch: int, new=pa.ipc.new_stream) -> bytes:
    table, sink = pa.table({"text": texts}), io.BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_a_batch)
    return sink.getvalue()


@given(
    texts=st.lists(st.none() | st.text(st.characters(codec="utf-8")), max_size=30),
    num_shards=st.integers(1, 3),
    large=st.booleans(),
)
def test_texts_are_those_of_datasets(texts, num_shards, large, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrow") / "deu_Latn"
    features = Features({"text": Value("large_string" if large else "string")})
    dataset = Dataset.from_dict({"text": texts}, features)
    dataset.save_to_disk(folder, num_shards=min(num_shards, max(1, len(texts))))
    expected = [text for text in Dataset.load_from_disk(folder)["text"] if text is not None]
    assert read(folder) == expected
    blocks = [b for file in arrow.data_files(folder) for b in arrow.blocks(file)]
    assert b"".join(blocks) == lines_of(texts)


def test_odd_and_long_texts_stay_whole(tmp_path):
    assert read(saved(tmp_path / "d", ODD)) == ODD


def test_blocks_are_whole_lines_of_about_a_megabyte(tmp_path):
    texts = [f"{i} " + "wörter " * (i % 40) for i in range(30_000)] + [ODD[-1], "last"]
    (file,) = arrow.data_files(saved(tmp_path / "d", texts))
    blocks = list(arrow.blocks(file))
    assert b"".join(blocks) == lines_of(texts)
    assert all(block.endswith(b"\n") for block in blocks)
    assert all(2**20 <= len(block) < 2**20 + 1000 for block in blocks[:-2])


def test_a_dataset_without_a_row_has_no_file(tmp_path):
    assert arrow.data_files(saved(tmp_path / "d", [])) == []


def test_the_split_train_of_a_dataset_dict_is_taken(tmp_path):
    DatasetDict(
        train=Dataset.from_dict({"text": ["seen"]}), test=Dataset.from_dict({"text": ["unseen"]})
    ).save_to_disk(tmp_path / "deu_Latn")
    assert read(tmp_path / "deu_Latn") == ["seen"]
    DatasetDict(test=Dataset.from_dict({"text": ["x"]})).save_to_disk(tmp_path / "swh_Latn")
    with pytest.raises(UserError, match="swh_Latn is a DatasetDict without the split train"):
        arrow.data_files(tmp_path / "swh_Latn")


def test_files_come_in_the_order_of_the_dataset(tmp_path):
    parts = [Dataset.from_dict({"text": [f"part {i}"]}) for i in (2, 0, 1)]
    concatenate_datasets(parts).save_to_disk(tmp_path, num_shards=3)
    state = json.loads((tmp_path / "state.json").read_text())
    state["_data_files"].reverse()
    (tmp_path / "state.json").write_text(json.dumps(state))
    (tmp_path / "cache-0123456789abcdef.arrow").write_bytes(b"what map left there")
    assert read(tmp_path) == ["part 1", "part 0", "part 2"]
    assert read(tmp_path) == Dataset.load_from_disk(tmp_path)["text"][:]


def test_files_without_a_list_are_sorted(tmp_path):
    for name in ("b.arrow", "a.arrow"):
        (tmp_path / name).write_bytes(streamed([name], 1))
    assert read(tmp_path) == ["a.arrow", "b.arrow"]


def test_other_folders_have_no_data_files(tmp_path):
    (tmp_path / "deu_Latn.txt").write_text("x")
    assert arrow.data_files(tmp_path) == []


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("lost", [0, 2])
def test_a_missing_file_of_a_dataset_is_named(lost, listed, tmp_path):
    saved(tmp_path, ["a", "b", "c"], num_shards=3)
    (tmp_path / f"data-0000{lost}-of-00003.arrow").unlink()
    if not listed:
        (tmp_path / "state.json").unlink()
    with pytest.raises(UserError, match=f"{tmp_path} lacks data-0000{lost}-of-00003.arrow"):
        arrow.data_files(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"_data_files": ["x"]}'])
def test_a_damaged_list_of_files_is_named(content, tmp_path):
    saved(tmp_path, ["a"])
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path / 'state.json'} is damaged"):
        arrow.data_files(tmp_path)


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    Dataset.from_dict({"sentence": ["a"], "source": ["b"]}).save_to_disk(tmp_path)
    (file,) = arrow.data_files(tmp_path)
    with pytest.raises(UserError) as error:
        list(arrow.texts(file))
    expected = f"{file} has no column 'text'; its columns are ['sentence', 'source']"
    assert str(error.value) == expected


def test_a_column_of_no_strings_is_refused(tmp_path):
    Dataset.from_dict({"text": [1, 2]}).save_to_disk(tmp_path)
    (file,) = arrow.data_files(tmp_path)
    with pytest.raises(UserError, match="the column 'text' holds int64; expected strings"):
        list(arrow.texts(file))


NEW = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}


def assert_damaged(file: Path) -> None:
    with pytest.raises(UserError) as error:
        list(arrow.texts(file))
    assert str(error.value).startswith(f"{file} is damaged: ")
    assert "\n" not in str(error.value) and str(error.value)[-2:] != ": "


@pytest.mark.parametrize("kind", NEW)
def test_a_file_that_is_cut_off_anywhere_is_damaged(kind, tmp_path):
    file = tmp_path / "data.arrow"
    whole = streamed([f"line {i}" for i in range(6)], 2, NEW[kind])
    file.write_bytes(whole)
    assert list(arrow.texts(file)) == [f"line {i}".encode() for i in range(6)]
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        assert_damaged(file)


@pytest.mark.parametrize("kind", NEW)
def test_what_follows_the_end_of_a_file_is_damage(kind, tmp_path):
    file = tmp_path / "data.arrow"
    whole = streamed(["a"], 1, NEW[kind])
    for more in (b"\0", whole[:-1], streamed(["b"], 1)):
        file.write_bytes(whole + more)
        assert_damaged(file)


@pytest.mark.parametrize("kind", NEW)
def test_flipped_bits_give_all_rows_or_an_error(kind, tmp_path):
    file = tmp_path / "data.arrow"
    whole = streamed([f"line {i}" for i in range(6)], 3, NEW[kind])
    refused = 0
    for position in range(0, 8 * len(whole), 3):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        file.write_bytes(flipped)
        try:
            assert len(list(arrow.texts(file))) == 6
        except UserError as error:
            assert str(error).startswith(str(file)) and "\n" not in str(error)
            refused += 1
    assert refused > len(whole) / 4


@pytest.mark.parametrize(
    "content", [b"", b"Guten Tag\n" * 100, b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_what_is_no_arrow_file_is_damaged(content, tmp_path):
    (tmp_path / "data.arrow").write_bytes(content)
    assert_damaged(tmp_path / "data.arrow")


def test_text_that_is_no_utf8_is_damage(tmp_path):
    file = tmp_path / "data.arrow"
    file.write_bytes(streamed(["täglich"], 1).replace("ä".encode(), b"\xff\xfe"))
    assert_damaged(file)


def test_memory_is_that_of_a_batch(tmp_path):
    """200 MB of text are read by a process that may hold 60 MB more than it starts with."""
    row = "wörter " * 1000
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as sink:
        batch = pa.record_batch({"text": [row] * 1000})
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            for _ in range(25):
                writer.write_batch(batch)
    code = (
        "import resource, sys, pyarrow.ipc; from data_pipelines.corpus import arrow\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak(); size = sum(map(len, arrow.blocks(sys.argv[1])))\n"
        "print(size, peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data.arrow")],
        capture_output=True,
        text=True,
        check=True,
    )
    size, grown = map(int, done.stdout.split())
    assert size == 25_000 * (len(row.encode()) + 1)
    assert grown < 60


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "data.arrow").write_bytes(streamed(["a"], 1))
    monkeypatch.setitem(sys.modules, "pyarrow.ipc", None)
    with pytest.raises(UserError, match=r"pip install 'langsamp-jax\[data\]'"):
        list(arrow.texts(tmp_path / "data.arrow"))


@pytest.mark.parametrize("kind", NEW)
def test_a_bucket_is_read_like_a_folder(kind, bucket):
    folder = bucket / "deu_Latn" / "train"
    folder.mkdir(parents=True)
    texts = [f"line {i}" for i in range(5000)]
    (folder / "data.arrow").write_bytes(streamed(texts, 1000, NEW[kind]))
    (file,) = arrow.data_files(bucket / "deu_Latn")
    assert isinstance(file, epath.Path) and str(file).startswith("gs://")
    assert b"".join(arrow.blocks(file)) == lines_of(texts)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="gs://.*/data.arrow is damaged: "):
        list(arrow.texts(file))
