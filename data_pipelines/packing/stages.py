"""From work items that encode text to a finished store: encode, select, pack, assemble.

Everything happens in ``STORE.partial`` beside the store, under names that say what it was made of:
whatever interrupts it, the next call takes up what still fits. A stage begins when the one before
it has ended; within a stage, items run anywhere and in any order.
"""

import contextlib
import dataclasses
import fcntl
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.packing.deduplication import HASHES, Deduplicated, deduplicate
from data_pipelines.packing.encoding import combined
from data_pipelines.packing.provenance import LINES, Provenance, hashes_file
from data_pipelines.packing.rows import number_of_rows, token_stream, write_files
from data_pipelines.packing.runner import Runner, run
from langsamp_jax.data.store import ROWS_PER_FILE, SPLITS, Counts, Manifest, Split, Store, row_files
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import partial_path, promote, require_absent, write_bytes
from langsamp_jax.io.progress import Progress
from langsamp_jax.text.tokenizer import Tokenizer

_METADATA = "zarr.json"
_FILES_AT_ONCE = 4  # that one work item packs


@dataclasses.dataclass(frozen=True)
class Encoding:
    """The first stage of a store.

    Attributes:
      function: ``function(key, item)`` writes pieces into ``folder_of(output, "pieces")``, named
        after the key, and returns ``name`` (of the language-script), ``pieces`` (their names) and
        ``source`` (digests of what was read); and, where there is something to tell, ``hygiene``
        and ``scripts`` (counts) and ``left_out`` (lines for the user).
      items: by keys that change with whatever changes the pieces; in the order of the text.
      size: of an item, for the progress bar.
    """

    function: Callable[[str, Any], dict[str, Any]]
    items: Mapping[str, Any]
    size: Callable[[Any], int]


@dataclasses.dataclass(frozen=True)
class _Language:
    """A language-script between the stages: what is kept of it, and what a base store has."""

    key: str
    pieces: list[str]
    selected: Deduplicated
    base: dict[str, Counts]


@dataclasses.dataclass(frozen=True)
class _Files:
    """Files of one language-script, to be packed: by split, which of an array of how many rows."""

    name: str
    language: _Language
    rows: dict[str, int]
    files: dict[str, range]


def folder_of(output: Path, *parts: str) -> Path:
    """A folder for the work on the store at ``output``."""
    folder = partial_path(output).joinpath("work", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Keeps ``output`` for the work within, until it or its process ends.

    Raises:
      UserError: ``output`` holds something else, or another call is at work on it.
    """
    require_absent(output)
    with open(folder_of(output) / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another call is at work on {output}; wait for it or name another --output"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def build(
    output: Path,
    encoding: Encoding,
    tokenizer: Tokenizer,
    sequence_length: int,
    settings: dict[str, Any],
    names: list[str],
    runner: Runner,
    base: Store | None = None,
) -> Manifest:
    """Makes the store at ``output``.

    Args:
      settings: stored as the origin's.
      names: language-scripts that are reported even if they have no text.
      base: a store whose language-scripts come first. Untouched ones are linked, not copied; the
        rows of the others stay where they are, and new text begins behind them.

    Raises:
      UserError: an item's, or no language-script has enough text for one row.
    """
    work = folder_of(output)
    drop_duplicates = settings.get("duplicates") == "drop"
    encoded = _stage("encode", encoding.function, work, encoding.items, runner, encoding.size)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    pieces: dict[str, list[str]] = {name: [] for name in names}
    for result in encoded.values():
        results.setdefault(result["name"], []).append(result)
        pieces.setdefault(result["name"], []).extend(result["pieces"])

    of = "" if base is None else base.manifest.fingerprint
    keys = {n: f"{n}-{combined([of, str(drop_duplicates), *parts])}" for n, parts in pieces.items()}
    known = {name: None if base is None else hashes_file(base.path, name) for name in pieces}
    chosen = _stage(
        "select",
        functools.partial(_select, work, drop_duplicates),
        work,
        {keys[name]: (pieces[name], known[name]) for name in pieces},
        runner,
        lambda item: len(item[0]),
    )
    languages = {
        name: _Language(
            keys[name], pieces[name], Deduplicated(**chosen[keys[name]]), _base_counts(base, name)
        )
        for name in sorted(pieces)
    }
    counts = {
        split: {n: _counts(lang, split, sequence_length) for n, lang in languages.items()}
        for split in SPLITS
    }
    kept = {name: lang for name, lang in languages.items() if counts["train"][name].rows}
    untouched = () if base is None else set(base.manifest.names) - set(languages)
    if not kept and not untouched:
        shutil.rmtree(partial_path(output))
        raise UserError(
            f"no language-script has enough text for one row of {sequence_length} tokens; "
            "add text or lower --sequence_length"
        )

    to_pack = {
        f"{lang.key}-{sequence_length}-{number}": item
        for name, lang in kept.items()
        for number, item in enumerate(_files(name, lang, {s: counts[s][name] for s in SPLITS}))
    }
    of_base = None if base is None else (base.path, of)
    packer = functools.partial(_pack, work, of_base, sequence_length, tokenizer.vocabulary.pad_id)
    packed = _stage("pack", packer, work, to_pack, runner, lambda _: 1)
    files = {file: tuple(facts) for result in packed.values() for file, facts in result.items()}
    origin = _origin(settings, results, languages, base)
    skipped = {
        name: f"{c.tokens} training tokens do not fill a row of {sequence_length}"
        for name, c in counts["train"].items()
        if not c.rows
    }
    return _assemble(output, kept, counts, skipped, files, origin, tokenizer, sequence_length, base)


def _stage(
    name: str,
    function: Callable[[str, Any], dict[str, Any]],
    work: Path,
    items: Mapping[str, Any],
    runner: Runner,
    size: Callable[[Any], int],
) -> dict[str, dict[str, Any]]:
    with Progress(f"prepare: {name}", sum(map(size, items.values())), "") as progress:
        return run(function, work / name, items, runner, lambda item: progress.advance(size(item)))


def _select(
    work: Path, drop_duplicates: bool, key: str, item: tuple[list[str], Path | None]
) -> dict[str, Any]:
    pieces, known = item
    keep = work / "kept" / key
    keep.mkdir(parents=True, exist_ok=True)
    paths = [work / "pieces" / piece for piece in pieces]
    known = known if known is not None and known.exists() else None
    return dataclasses.asdict(deduplicate(paths, keep, drop_duplicates, known))


def _base_counts(base: Store | None, name: str) -> dict[str, Counts]:
    if base is None or name not in base.manifest.counts["train"]:
        return dict.fromkeys(SPLITS, Counts(0, 0, 0, 0))
    return {split: base.manifest.counts[split][name] for split in SPLITS}


def _base_tokens(language: _Language, split: str, sequence_length: int) -> int:
    """How many tokens of the base store come first: what fell behind its last row stays out."""
    base = language.base[split]
    return min(base.tokens, base.rows * sequence_length)


def _counts(language: _Language, split: str, sequence_length: int) -> Counts:
    base, new = language.base[split], language.selected
    tokens = sum(new.tokens[split])
    stream = _base_tokens(language, split, sequence_length) + tokens
    return Counts(
        lines=base.lines + new.lines[split],
        tokens=base.tokens + tokens,
        unknown=base.unknown + new.unknown[split],
        rows=number_of_rows(stream, split, sequence_length),
    )


def _files(name: str, language: _Language, counts: dict[str, Counts]) -> list[_Files]:
    """The files to write, some at a time: all but those that a base store has filled."""
    rows = {split: counts[split].rows for split in SPLITS}
    todo = [
        (split, file)
        for split in SPLITS
        for file in range(language.base[split].rows // ROWS_PER_FILE, len(row_files(rows[split])))
    ]
    items = []
    for first in range(0, len(todo), _FILES_AT_ONCE):
        files: dict[str, range] = {}
        for split, file in todo[first : first + _FILES_AT_ONCE]:
            files[split] = range(files.get(split, range(file, file)).start, file + 1)
        items.append(_Files(name, language, rows, files))
    return items


def _pack(
    work: Path,
    base: tuple[Path, str] | None,
    sequence_length: int,
    pad_id: int,
    key: str,
    item: _Files,
) -> dict[str, Any]:
    """Returns the bytes and the digest of each file, by its path in the store."""
    lang, written = item.language, {}
    for split, files in item.files.items():
        before = None
        if lang.base[split].rows:
            opened = _open_base(*base, split)
            before = opened, opened.names.index(item.name)
        tokens = token_stream(
            before,
            _base_tokens(lang, split, sequence_length),
            [work / "pieces" / piece for piece in lang.pieces],
            lang.selected.tokens[split],
            work / "kept" / lang.key,
            split,
            files.start * ROWS_PER_FILE * sequence_length,
        )
        array = _array(work, lang, split, sequence_length)
        facts = write_files(array, files, item.rows[split], sequence_length, pad_id, tokens)
        written |= {f"{split}/{item.name}/{file}": fact for file, fact in facts.items()}
    return written


@functools.lru_cache(maxsize=len(SPLITS))
def _open_base(path: Path, fingerprint: str, split: str) -> Split:
    """Opened once in a process: opening looks at every file."""
    return Store(path).split(split)


def _array(work: Path, language: _Language, split: str, sequence_length: int) -> Path:
    return work / "arrays" / f"{language.key}-{sequence_length}" / split


def _origin(
    settings: dict[str, Any],
    results: dict[str, list[dict[str, Any]]],
    languages: dict[str, _Language],
    base: Store | None,
) -> Provenance:
    before = Provenance(settings, {}) if base is None else Provenance.load(base.path)
    sources, report = dict(before.sources), dict(before.report)
    for name, parts in sorted(results.items()):
        text = combined([digest for part in parts for digest in part["source"]])
        added_to = any(languages[name].base[split].rows for split in SPLITS)  # not: was skipped
        sources[name] = [*(sources[name] if added_to else []), text]
        counts = [part.get("hygiene", {}) for part in parts]
        counts.append({"duplicates": languages[name].selected.duplicates})
        old = report.get(name, {})
        report[name] = {
            "hygiene": _sum([old.get("hygiene", {}), *counts]),
            "scripts": _sum([old.get("scripts", {}), *(part.get("scripts", {}) for part in parts)]),
            "left_out": [line for part in (old, *parts) for line in part.get("left_out", [])],
        }
    return Provenance(settings, dict(sorted(sources.items())), dict(sorted(report.items())))


def _sum(counts: list[Mapping[str, int]]) -> dict[str, int]:
    keys = sorted({key for count in counts for key in count})
    return {key: sum(count.get(key, 0) for count in counts) for key in keys}


def _assemble(
    output: Path,
    kept: dict[str, _Language],
    counts: dict[str, dict[str, Counts]],
    skipped: dict[str, str],
    files: dict[str, tuple[int, str]],
    origin: Provenance,
    tokenizer: Tokenizer,
    sequence_length: int,
    base: Store | None,
) -> Manifest:
    """Links everything into a folder, which becomes the store, and removes the work."""
    partial, work = partial_path(output), folder_of(output)
    store = partial / "store"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    for path in files:
        split, name, file = path.split("/", 2)
        _link(_array(work, kept[name], split, sequence_length) / file, store / path)
    for split, name in {tuple(path.split("/")[:2]) for path in files}:
        metadata = _array(work, kept[name], split, sequence_length) / _METADATA
        _link(metadata, store / split / name / _METADATA)
    for name, lang in kept.items():
        hashes = work / "kept" / lang.key / HASHES
        if hashes.exists():
            _link(hashes, hashes_file(store, name))

    all_counts = {split: {n: counts[split][n] for n in kept} for split in SPLITS}
    if base is not None:
        old = base.manifest
        for folder in (*SPLITS, LINES):
            _link_missing(base.path / folder, store / folder)
        files = {**old.files, **files}
        all_counts = {split: old.counts[split] | all_counts[split] for split in SPLITS}
        skipped = {n: why for n, why in {**old.skipped, **skipped}.items() if n not in kept}
    names = sorted(all_counts["train"])
    manifest = Manifest(
        sequence_length=sequence_length,
        vocabulary=tokenizer.vocabulary,
        tokenizer=tokenizer.fingerprint,
        counts={split: {name: all_counts[split][name] for name in names} for split in SPLITS},
        skipped=dict(sorted(skipped.items())),
        files={
            (path := f"{split}/{name}/{file}"): files[path]
            for split in SPLITS
            for name in names
            for file in row_files(all_counts[split][name].rows)
        },
    )
    write_bytes(store / tokenizer.file_name, tokenizer.model)
    origin.save(store)
    manifest.save(store)
    os.sync()
    promote(store, output)
    shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _link_missing(folder: Path, target: Path) -> None:
    for file in folder.rglob("*"):
        linked = target / file.relative_to(folder)
        if file.is_file() and not linked.exists():
            _link(file, linked)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except FileNotFoundError:  # most folders are there: asking for each first takes longer
        target.parent.mkdir(parents=True)
        _link(file, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)
