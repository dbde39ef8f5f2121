"""prepare, refused: one line that names the file, and nothing at the output."""

import subprocess
from pathlib import Path

import pytest
import sentencepiece

from data_pipelines.prepare import Settings, prepare
from langsamp_jax.errors import UserError
from langsamp_jax.store import Store


@pytest.fixture
def mine(tmp_path) -> Path:
    """A corpus of two languages to spoil."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("qaa_Latn", "qab_Latn"):
        (folder / f"{name}.txt").write_text("a few words\n" * 20, "utf-8")
    return folder


def refused(*args, output: Path) -> str:
    """The one line of the UserError; what was there before is all that is there after."""
    before = snapshot(output.parent)
    with pytest.raises(UserError) as error:
        prepare(*args)
    assert snapshot(output.parent) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def test_a_missing_or_empty_corpus(tokenizer_file, tmp_path):
    output = tmp_path / "store"
    for name in ("none", "empty"):
        message = refused(tmp_path / name, tokenizer_file, output, output=output)
        assert str(tmp_path / name) in message
        (tmp_path / "empty").mkdir(exist_ok=True)


@pytest.mark.parametrize("text", ["", "\n\n \n\t\n", "\ufeff"])
def test_a_corpus_of_empty_files(text, tokenizer_file, tmp_path):
    corpus, output = tmp_path / "mine", tmp_path / "store"
    corpus.mkdir()
    for name in ("deu_Latn", "eng_Latn"):
        (corpus / f"{name}.txt").write_text(text, "utf-8")
    assert str(corpus) in refused(corpus, tokenizer_file, output, output=output)


def test_too_little_text_for_any_row(mine, tokenizer_file, tmp_path):
    output = tmp_path / "store"
    message = refused(mine, tokenizer_file, output, 4096, output=output)
    assert str(mine) in message and "4096" in message and "--sequence_length" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("german", "not of the form iso639-3_Script"),
        ("xxq_Latn", "not an ISO 639-3 language code"),
        ("deu_Lant", "not an ISO 15924 script code; did you mean Latn"),
    ],
)
def test_a_file_name_that_is_no_language_script(name, expected, mine, tokenizer_file, tmp_path):
    file, output = mine / f"{name}.txt", tmp_path / "store"
    file.write_text("words\n")
    message = refused(mine, tokenizer_file, output, output=output)
    assert str(file) in message and expected in message


def test_bytes_that_are_not_utf8(mine, tokenizer_file, tmp_path):
    """Found before anything is packed, though the file comes last."""
    file, output = mine / "qab_Latn.txt", tmp_path / "store"
    file.write_bytes(b"words\n" * 300 + b"caf\xe9\n" + b"words\n")
    message = refused(mine, tokenizer_file, output, output=output)
    assert f"{file}, line 301" in message and "UTF-8" in message


def test_a_tokenizer_that_is_none(mine, tmp_path):
    file, output = tmp_path / "tokenizer.model", tmp_path / "store"
    assert str(file) in refused(mine, file, output, output=output)
    file.write_bytes(b"no model")
    assert f"{file} is not a SentencePiece model" in refused(mine, file, output, output=output)
    with open(file, "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a few words", "and more"] * 9),
            model_writer=stream,
            vocab_size=20,
            hard_vocab_limit=False,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            minloglevel=2,
        )
    message = refused(mine, file, output, output=output)
    assert str(file) in message and "<pad> <unk> <s>" in message
    assert str(tmp_path) in refused(mine, tmp_path, output, output=output)


@pytest.mark.parametrize("length", [7, 0, -1, 65_537])
def test_a_bad_sequence_length(length, mine, tokenizer_file, tmp_path):
    output = tmp_path / "store"
    message = refused(mine, tokenizer_file, output, length, output=output)
    assert f"--sequence_length {length}: expected 8 to 65536" in message


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_bad_validation_fraction(fraction, mine, tokenizer_file, tmp_path):
    output = tmp_path / "store"
    message = refused(mine, tokenizer_file, output, 32, fraction, output=output)
    assert f"--validation_fraction {fraction}: expected" in message


def test_limits_themselves_are_allowed():
    for length, fraction in [(8, 0.0), (65_536, 0.999)]:
        assert Settings("", length, fraction).sequence_length == length


def test_an_output_that_holds_something_else(mine, tokenizer_file, tmp_path):
    output = tmp_path / "store"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    message = refused(mine, tokenizer_file, output, output=output)
    assert message.startswith(f"{output} already holds something else")
    file = output / "notes.txt"
    message = refused(mine, tokenizer_file, file, output=file)
    assert message.startswith(f"{file} already holds something else")
    message = refused(mine, tokenizer_file, mine, output=mine)  # the corpus itself
    assert message.startswith(f"{mine} already holds something else")


@pytest.mark.parametrize(("length", "fraction"), [(16, 0.1), (32, 0.2)])
def test_a_store_of_other_settings_is_not_overwritten(
    length, fraction, mine, tokenizer_file, tmp_path
):
    output = tmp_path / "store"
    prepare(mine, tokenizer_file, output, 32, 0.1)
    message = refused(mine, tokenizer_file, output, length, fraction, output=output)
    assert message.startswith(f"{output} already holds something else")


def test_a_store_of_other_text_is_not_overwritten(mine, tokenizer_file, tmp_path):
    output = tmp_path / "store"
    prepare(mine, tokenizer_file, output, 32, 0.1)
    with open(mine / "qab_Latn.txt", "a") as file:
        file.write("more\n")
    message = refused(mine, tokenizer_file, output, 32, 0.1, output=output)
    assert message.startswith(f"{output} already holds something else")


@pytest.mark.parametrize("name", ["manifest.json", "train/qaa_Latn/c/0/0"])
def test_a_damaged_store_is_not_taken_for_a_whole_one(name, mine, tokenizer_file, tmp_path):
    output = tmp_path / "store"
    prepare(mine, tokenizer_file, output, 32, 0.1)
    (output / name).write_bytes((output / name).read_bytes()[:-9])
    message = refused(mine, tokenizer_file, output, 32, 0.1, output=output)
    assert "damaged" in message and str(output / name) in message


def test_a_full_disk(small_disk, corpus, tokenizer_file, store_path):
    """Nothing at the output; with more room the next call goes on."""
    output = small_disk / "store"
    with pytest.raises(OSError) as full:
        prepare(corpus, tokenizer_file, output, 32, 0.1)
    assert not isinstance(full.value, UserError)
    message = str(full.value)
    assert "\n" not in message and str(output) in message and "No space left" in message
    assert not output.exists()
    room = ["mount", "-o", "remount,size=16m", str(small_disk)]
    subprocess.run(room, check=True, capture_output=True)
    prepare(corpus, tokenizer_file, output, 32, 0.1)
    assert Store(output).manifest == Store(store_path).manifest
    assert {str(p.relative_to(output)) for p in output.rglob("*")} == {
        str(p.relative_to(store_path)) for p in store_path.rglob("*")
    }


@pytest.mark.parametrize("kibibytes", [4, 64, 440, 600, 800, 900, 924, 948])
def test_a_disk_that_fills_up_sooner_or_later(
    kibibytes, small_disk, corpus, tokenizer_file, store_path
):
    """In a row file, in an index, in a record, in the tokenizer or in the manifest."""
    room = ["mount", "-o", f"remount,size={kibibytes}k", str(small_disk)]
    subprocess.run(room, check=True, capture_output=True)
    output = small_disk / "store"
    try:
        prepare(corpus, tokenizer_file, output, 32, 0.1)
    except OSError as full:
        assert "No space left" in str(full) and str(small_disk) in str(full)
        assert not output.exists()
    else:
        assert Store(output).manifest == Store(store_path).manifest
