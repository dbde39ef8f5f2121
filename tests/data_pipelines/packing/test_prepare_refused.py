"""prepare, refused: one line that names the file, and nothing at the output."""

import os
import subprocess
from pathlib import Path

import pytest
import sentencepiece

from data_pipelines.packing import runner
from data_pipelines.packing.prepare import Settings, prepare
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import partial_path


@pytest.fixture
def mine(tmp_path) -> Path:
    """A corpus of two languages to spoil."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("qaa_Latn", "qab_Latn"):
        lines = "".join(f"a few words {number}\n" for number in range(20))
        (folder / f"{name}.txt").write_text(lines, "utf-8")
    return folder


def refused(*args, output: Path, begun: bool = False) -> str:
    """The one line of the UserError; what was there before is all that is there after, but for
    the work beside the output if it had ``begun``."""
    before = snapshot(output.parent)
    with pytest.raises(UserError) as error:
        prepare(*args)
    after, partial = snapshot(output.parent), str(partial_path(output))
    assert begun == (partial in after)
    assert {path: data for path, data in after.items() if not path.startswith(partial)} == before
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
    message = refused(corpus, tokenizer_file, output, output=output)
    assert message.startswith("no language-script has enough text for one row of 512 tokens")


def test_too_little_text_for_any_row(mine, tokenizer_file, tmp_path):
    output = tmp_path / "store"
    message = refused(mine, tokenizer_file, output, 4096, output=output)
    assert "4096" in message and "--sequence_length" in message


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
    """Found before anything is packed; what was encoded waits for the file to be mended."""
    file, output = mine / "qab_Latn.txt", tmp_path / "store"
    text = file.read_bytes()
    file.write_bytes(b"words\n" * 300 + b"caf\xe9\n" + b"words\n")
    message = refused(mine, tokenizer_file, output, 32, output=output, begun=True)
    assert not list(partial_path(output).rglob("zarr.json"))
    assert f"{file}, line 301: not UTF-8 (" in message and "--skip_damaged" in message
    file.write_bytes(text)
    prepare(mine, tokenizer_file, output, 32)
    assert Store(output).manifest.names == ("qaa_Latn", "qab_Latn")
    assert not partial_path(output).exists()


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
        settings = Settings("", length, fraction, "NFC", "drop", None)
        assert (settings.sequence_length, settings.validation_fraction) == (length, fraction)


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


@pytest.mark.parametrize("name", ["manifest.json", "train/qaa_Latn/c/0/0", "origin.json"])
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


def test_a_disk_that_fills_up_sooner_or_later(small_disk, corpus, tokenizer_file, store_path):
    """In a chunk, in a mask, in a row file, in a result, in the tokenizer or the manifest:
    each call ends with the file that found no room, and the last, with enough, with the store."""
    output, kibibytes, full = small_disk / "store", 4, 0
    while not output.exists():
        room = ["mount", "-o", f"remount,size={kibibytes}k", str(small_disk)]
        subprocess.run(room, check=True, capture_output=True)
        try:
            prepare(corpus, tokenizer_file, output, 32, 0.1)
        except OSError as error:
            assert "No space left" in str(error) and str(small_disk) in str(error)
            assert not output.exists()
            kibibytes, full = kibibytes + 36, full + 1
    assert Store(output).manifest == Store(store_path).manifest
    assert full > 20


def test_two_calls_on_one_output(mine, tokenizer_file, tmp_path, monkeypatch):
    """The second is refused while the first is at work, which is not disturbed."""
    output, refusals = tmp_path / "store", []
    leave = runner._leave_result

    def leave_and_call_again(function, folder, entry):
        leave(function, folder, entry)
        with pytest.raises(UserError) as error:
            prepare(mine, tokenizer_file, output, 32, 0.1)
        refusals.append(str(error.value))

    monkeypatch.setattr(runner, "_leave_result", leave_and_call_again)
    manifest = prepare(mine, tokenizer_file, output, 32, 0.1)
    [line] = set(refusals)
    assert line.startswith(f"{output} is held by process {os.getpid()} on ")
    assert line.endswith("; wait for it or name another --output")
    assert Store(output).manifest == manifest and not partial_path(output).exists()
