"""A store that grows: what is there stays as it is, and new text follows."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpus import sources
from data_pipelines.corpus.cleaning import CleaningConfig, line_hashes
from data_pipelines.packing import runner
from data_pipelines.packing.prepare import grow, prepare
from data_pipelines.packing.provenance import Provenance
from langsamp_jax.cli.inspect_rows import inspect_rows
from langsamp_jax.data.manifest import SPLITS
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import partial_path
from langsamp_jax.training.config import Configs

LENGTH, FRACTION = 16, 0.2


def numbered(start: int, stop: int, words: str = "a line") -> list[str]:
    return [f"{words} {number}" for number in range(start, stop)]


def rows_of(path: Path, split: str, name: str) -> list[list[int]]:
    """All rows of a language-script, without their padding."""
    opened = Store(path).split(split)
    row = np.arange(opened.rows[opened.names.index(name)])
    if not len(row):
        return []
    tokens, lengths = opened.read(np.full(len(row), opened.names.index(name)), row)
    return [line[:size].tolist() for line, size in zip(tokens, lengths, strict=True)]


@pytest.fixture(scope="session")
def sides(tokenizer_file):
    """``sides(lines)``: the tokens of the lines of each split, by SentencePiece alone."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file))

    def sides(lines: list[str]) -> dict[str, list[int]]:
        found = {split: [] for split in SPLITS}
        for line, value in zip(lines, line_hashes(lines).tolist(), strict=True):
            ids = [0, *(i + 1 if i else 3 for i in processor.encode(line)), 2]
            found["validation" if value / 2**64 < FRACTION else "train"] += ids
        return found

    return sides


def cut(tokens: list[int], keep_rest: bool) -> list[list[int]]:
    rows = [tokens[start : start + LENGTH] for start in range(0, len(tokens), LENGTH)]
    return rows if keep_rest else [row for row in rows if len(row) == LENGTH]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def base(tokenizer_file, tmp_path_factory, write_corpus) -> Path:
    """Two language-scripts with rows, and one with too little text. Not to be written to."""
    folder = tmp_path_factory.mktemp("base")
    texts = {"qaa_Latn": numbered(0, 200), "qab_Latn": numbered(0, 150), "qac_Latn": ["one"]}
    corpus = write_corpus(folder / "corpus", **texts)
    prepare(corpus, tokenizer_file, folder / "store", LENGTH, FRACTION)
    return folder / "store"


def test_a_new_language_leaves_the_files_of_the_others(base, tmp_path, sides, write_corpus):
    before = snapshot(base)
    lines = numbered(0, 180, "new words")
    manifest = grow(base, write_corpus(tmp_path / "more", qaa_Cyrl=lines), tmp_path / "store")
    assert snapshot(base) == before
    assert manifest.names == ("qaa_Cyrl", "qaa_Latn", "qab_Latn")
    old, store = Store(base).manifest, tmp_path / "store"
    assert Store(store).manifest == manifest and manifest.tokenizer == old.tokenizer
    for name in before:
        if name not in ("manifest.json", "origin.json"):
            assert (store / name).read_bytes() == before[name][0]
            if "/" in name:  # not copied
                assert os.path.samefile(store / name, base / name)
    for split in SPLITS:
        for name in old.names:
            assert manifest.counts[split][name] == old.counts[split][name]
        rows = cut(sides(lines)[split], split == "validation")
        assert rows_of(store, split, "qaa_Cyrl") == rows
    assert manifest.skipped == old.skipped
    assert old.files.items() <= manifest.files.items()


def test_more_text_follows_what_is_there(base, tmp_path, sides, write_corpus):
    """Old rows keep their numbers; validation fills its last row; what training had dropped
    behind its last row stays out, and lines that are there already are dropped."""
    old, new = numbered(0, 200), numbered(200, 320)
    store = tmp_path / "store"
    manifest = grow(
        base, write_corpus(tmp_path / "more", qaa_Latn=[*old[50:90], *new, *new[:5]]), store
    )
    for split in SPLITS:
        first = rows_of(base, split, "qaa_Latn")
        tokens = sum(first, []) + sides(new)[split]
        found = rows_of(store, split, "qaa_Latn")
        assert found == cut(tokens, split == "validation")
        full = [row for row in first if len(row) == LENGTH]
        assert found[: len(full)] == full and len(found) > len(first)
        before, counts = Store(base).manifest.counts[split]["qaa_Latn"], manifest.counts[split]
        both = [sides(lines)[split] for lines in (old, new)]
        assert counts["qaa_Latn"].tokens == sum(map(len, both))
        assert counts["qaa_Latn"].unknown == sum(tokens.count(3) for tokens in both)
        assert counts["qaa_Latn"].lines - before.lines == sides(new)[split].count(0)
        assert counts["qab_Latn"] == Store(base).manifest.counts[split]["qab_Latn"]
    met = Provenance.load(store).report["qaa_Latn"]["hygiene"]
    assert (met["lines"], met["duplicates"]) == (200 + 165, 45)


def test_a_language_without_enough_text_before(base, tmp_path, sides, write_corpus):
    """Its few lines were not stored: they are lines like any other."""
    lines = ["one", *numbered(0, 60)]
    manifest = grow(base, write_corpus(tmp_path / "more", qac_Latn=lines), tmp_path / "store")
    assert manifest.names == ("qaa_Latn", "qab_Latn", "qac_Latn") and manifest.skipped == {}
    for split in SPLITS:
        rows = cut(sides(lines)[split], split == "validation")
        assert rows_of(tmp_path / "store", split, "qac_Latn") == rows


def test_grown_twice(base, tmp_path, sides, digests, write_corpus):
    """A language-script and another one, and then both again; the second base may go."""
    parts = [numbered(n, n + 70) for n in (200, 250, 310)]
    grow(base, write_corpus(tmp_path / "a", qaa_Latn=parts[0], qad_Latn=parts[0]), tmp_path / "one")
    more = write_corpus(tmp_path / "b", qaa_Latn=parts[1], qad_Latn=parts[1])
    manifest = grow(tmp_path / "one", more, tmp_path / "two")
    before = digests(tmp_path / "two")
    for split in SPLITS:
        tokens = sum(rows_of(base, split, "qaa_Latn"), [])
        seen = set(numbered(0, 200))
        for part in parts[:2]:
            tokens += sides([line for line in part if line not in seen])[split]
            seen |= set(part)
            rows = cut(tokens, split == "validation")
            tokens = sum(rows, [])
        assert rows_of(tmp_path / "two", split, "qaa_Latn") == rows
    shutil.rmtree(tmp_path / "one")
    assert Store(tmp_path / "two").manifest == manifest and digests(tmp_path / "two") == before


def test_the_same_text_again_is_refused(base, tmp_path, write_corpus):
    """The base's own corpus, a copy of a part of it, and what it has grown by."""
    copy = shutil.copytree(base.parent / "corpus", tmp_path / "copy")
    (copy / "qab_Latn.txt").unlink()
    grown = tmp_path / "grown"
    grow(base, write_corpus(tmp_path / "more", qaa_Latn=numbered(200, 300)), grown)
    for store, corpus in ((base, copy), (grown, copy), (grown, tmp_path / "more")):
        with pytest.raises(UserError) as error:
            grow(store, corpus, tmp_path / "store")
        assert str(error.value) == f"{store} holds all text of {corpus} already"
        assert not (tmp_path / "store").exists()
        assert not partial_path(tmp_path / "store").exists()


def test_what_is_there_already_is_left_alone_beside_what_is_new(
    base, tmp_path, digests, write_corpus
):
    """The corpus of the base with one more file gives what that file alone gives."""
    copy = shutil.copytree(base.parent / "corpus", tmp_path / "copy")
    lines = numbered(0, 80, "other")
    (copy / "qad_Latn.txt").write_text("".join(line + "\n" for line in lines), "utf-8")
    grow(base, copy, tmp_path / "one")
    grow(base, write_corpus(tmp_path / "alone", qad_Latn=lines), tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_called_again_nothing_is_done(base, tmp_path, write_corpus):
    more, store = write_corpus(tmp_path / "more", qaa_Latn=numbered(200, 300)), tmp_path / "store"
    manifest, before = grow(base, more, store), snapshot(store)
    assert grow(base, more, store) == manifest and snapshot(store) == before
    other = write_corpus(tmp_path / "other", qaa_Latn=numbered(300, 400))
    for output in (store, base):
        with pytest.raises(UserError) as error:
            grow(base, other, output)
        assert str(error.value).startswith(f"{output} already holds something else")
    assert snapshot(store) == before


def test_more_text_than_a_file_holds(tokenizer_file, tmp_path, digests, monkeypatch, write_corpus):
    """A base of 2 files of 2,048 rows and a part of a third grows to 5: the full ones are linked,
    also where each file is packed alone; the last one of the base is not changed."""
    monkeypatch.setattr("data_pipelines.packing.rows._FILES_AT_ONCE", 1)
    lines = [f"{n} {n * n} {n * n * n} and on" for n in range(2700)]
    small, base = write_corpus(tmp_path / "small", qaa_Latn=lines[:1500]), tmp_path / "base"
    before = prepare(small, tokenizer_file, base, 8, 0.1).counts["train"]["qaa_Latn"].rows
    assert 2 * 2048 < before < 3 * 2048
    was = snapshot(base)
    more = write_corpus(tmp_path / "more", qaa_Latn=lines)
    after = grow(base, more, tmp_path / "store").counts["train"]["qaa_Latn"].rows
    assert 4 * 2048 < after
    assert snapshot(base) == was
    first, grown = (rows_of(path, "train", "qaa_Latn") for path in (base, tmp_path / "store"))
    assert grown[:before] == first and len(grown) == after
    for number in range(3):
        file = f"train/qaa_Latn/c/{number}/0"
        assert os.path.samefile(base / file, tmp_path / "store" / file) == (number < 2)
    monkeypatch.undo()
    grow(base, more, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(tmp_path / "store")


def test_ids_and_other_readers(base, tmp_path, write_corpus):
    """All readers of a store read a grown one; batches of it have the new rows."""
    more = write_corpus(tmp_path / "more", qaa_Latn=numbered(200, 300), qae_Latn=numbered(0, 90))
    manifest = grow(base, more, tmp_path / "store")
    store = Store(tmp_path / "store")
    assert store.tokenizer().fingerprint == Store(base).tokenizer().fingerprint
    _, rows = inspect_rows(store, Configs(), "qaa_Latn", None, "train", 3)
    assert [list(row.tokens) for row in rows] == rows_of(base, "train", "qaa_Latn")[:3]
    sampler = MixtureConfig().sampler(manifest, 0, num_steps=20, batch_size=64)
    language, row = sampler.batch(0, 64 * 20)
    tokens, lengths = store.split("train").read(language, row)
    assert set(language.tolist()) == {0, 1, 2} and np.all(lengths == LENGTH)
    assert np.all(tokens < manifest.vocabulary.size)


few = st.lists(st.sampled_from(numbered(0, 60)), max_size=50)


@settings(max_examples=12)
@given(texts=st.lists(few, min_size=1, max_size=4), range_bytes=st.integers(50, 1000))
def test_any_texts_in_any_number_of_steps(
    texts, range_bytes, tokenizer_file, sides, tmp_path_factory, write_corpus
):
    """As lists in memory. What has no row of training is not there, nor are its lines known."""
    folder = tmp_path_factory.mktemp("steps")
    store, read = folder / "0", set()
    seen, tokens = set(), {split: [] for split in SPLITS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "RANGE_BYTES", range_bytes)
        prepare(
            write_corpus(folder / "corpus", qaz_Latn=numbered(0, 20)),
            tokenizer_file, store, LENGTH, FRACTION,
        )  # fmt: skip
        for number, text in enumerate(texts, 1):
            corpus, before = write_corpus(folder / f"corpus-{number}", qaa_Latn=text), store
            store = folder / str(number)
            if tuple(text) in read:
                with pytest.raises(UserError, match="holds all text"):
                    grow(before, corpus, store)
                store = before
                continue
            if not tokens["train"]:  # nothing of it stands
                read.clear()
            read.add(tuple(text))
            manifest = grow(before, corpus, store)
            new = sides([line for line in dict.fromkeys(text) if line not in seen])
            rows = {s: cut(tokens[s] + new[s], s == "validation") for s in SPLITS}
            assert ("qaa_Latn" in manifest.names) == bool(rows["train"])
            if rows["train"]:
                assert all(rows_of(store, split, "qaa_Latn") == rows[split] for split in SPLITS)
                seen, tokens = seen | set(text), {s: sum(rows[s], []) for s in SPLITS}


@pytest.mark.parametrize("number", [1, 5, 9])
def test_interrupted_and_continued(number, base, tmp_path, digests, monkeypatch, write_corpus):
    monkeypatch.setattr(sources, "RANGE_BYTES", 600)
    more = write_corpus(tmp_path / "more", qaa_Latn=numbered(100, 300), qae_Latn=numbered(0, 90))
    before, leave, items = snapshot(base), runner._leave_result, []

    def leave_some(function, folder, entry):
        items.append(entry)
        if len(items) > number:
            signal.raise_signal(signal.SIGINT)
        leave(function, folder, entry)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "_leave_result", leave_some)
        grow(base, more, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    grow(base, more, tmp_path / "store")
    grow(base, more, tmp_path / "fresh")
    assert digests(tmp_path / "store") == digests(tmp_path / "fresh")
    assert snapshot(base) == before and not partial_path(tmp_path / "store").exists()


def test_the_settings_are_those_of_the_base(tokenizer_file, tmp_path, sides, write_corpus):
    """Duplicates are kept, text is not normalised, and the same texts are held out."""
    held_out = write_corpus(tmp_path / "held_out", a=["a line 7", "a line 207"])
    cleaning, base = CleaningConfig("none", "keep"), tmp_path / "base"
    corpus = write_corpus(tmp_path / "corpus", qaa_Latn=numbered(0, 100))
    prepare(corpus, tokenizer_file, base, LENGTH, FRACTION, cleaning, [held_out])
    assert not (base / "lines").exists()
    more = write_corpus(tmp_path / "more", qaa_Latn=["u\u0308ber", *numbered(90, 250)])
    for wrong in ([], [tmp_path / "more"]):
        with pytest.raises(UserError) as error:
            grow(base, more, tmp_path / "store", wrong)
        assert "--held_out" in str(error.value)
    grow(base, more, tmp_path / "store", [held_out])
    new = ["u\u0308ber", *(line for line in numbered(90, 250) if line != "a line 207")]
    for split in SPLITS:
        tokens = sum(rows_of(base, split, "qaa_Latn"), []) + sides(new)[split]
        rows = cut(tokens, split == "validation")
        assert rows_of(tmp_path / "store", split, "qaa_Latn") == rows


def test_a_base_that_is_none(base, tmp_path, write_corpus):
    more = write_corpus(tmp_path / "more", qaa_Latn=["x"])
    with pytest.raises(UserError, match="is no store"):
        grow(tmp_path / "more", more, tmp_path / "store")
    damaged = shutil.copytree(base, tmp_path / "damaged")
    (damaged / "origin.json").unlink()
    with pytest.raises(UserError) as error:
        grow(damaged, more, tmp_path / "store")
    assert str(error.value).startswith(f"{damaged / 'origin.json'} is missing or damaged")
    assert not partial_path(tmp_path / "store").exists()


@pytest.mark.parametrize("keep", [None, 0, 8, -8])
def test_a_base_that_does_not_know_its_lines(keep, base, tmp_path, write_corpus):
    """Else lines that are there would be added again."""
    damaged = shutil.copytree(base, tmp_path / "damaged")
    file = damaged / "lines" / "qaa_Latn.u64"
    data = file.read_bytes()
    file.unlink()
    if keep is not None:
        file.write_bytes(data[:keep])
    more = write_corpus(tmp_path / "more", qaa_Latn=numbered(100, 300))
    with pytest.raises(UserError) as error:
        grow(damaged, more, tmp_path / "store")
    assert str(error.value) == f"{file} is missing or damaged; prepare the store again"
    grow(damaged, write_corpus(tmp_path / "other", qab_Latn=numbered(100, 300)), tmp_path / "store")
