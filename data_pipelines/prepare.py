"""From a corpus to a packed store: tokenise, split, pack, write. Interrupted, it continues."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorstore as ts

from langsamp_jax.corpus import content_hash, corpus_files, read_lines
from langsamp_jax.errors import UserError
from langsamp_jax.files import (
    full_disk_as_oserror,
    partial_path,
    promote,
    require_absent,
    write_bytes,
    write_text,
)
from langsamp_jax.progress import Progress
from langsamp_jax.store import ROWS_PER_FILE, SPLITS, Counts, Manifest, Store, array_spec, row_files
from langsamp_jax.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer

_LINES_AT_ONCE = 20_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the bytes of a store, beside the text itself."""

    tokenizer: str  # fingerprint
    sequence_length: int
    validation_fraction: float

    def __post_init__(self) -> None:
        if not 8 <= self.sequence_length <= 65536:
            raise UserError(f"--sequence_length {self.sequence_length}: expected 8 to 65536 tokens")
        if not 0 <= self.validation_fraction < 1:
            raise UserError(
                f"--validation_fraction {self.validation_fraction}: expected 0 or more, below 1"
            )


def prepare(
    corpus: Path,
    tokenizer: Path,
    output: Path,
    sequence_length: int = 512,
    validation_fraction: float = 0.01,
) -> Manifest:
    """Packs every language-script of ``corpus`` into a store at ``output``.

    Packing is the reference's: each line tokenised with ``<s>`` and ``</s>``, the lines of one
    file concatenated and cut into rows, the rest dropped. A line goes to validation if its hash
    falls below ``validation_fraction``, so equal lines are on one side only, in all languages;
    there the rest is kept as a shorter last row. The same input gives the same bytes.

    The work is done beside ``output``. Interrupted, the next call takes up the languages that
    are complete there. Called again on the same input, it returns what stands.

    Raises:
      UserError: bad input (see ``corpus_files``, ``read_lines``), no language with enough text
        for one row, or an ``output`` that holds something else.
    """
    output, model = Path(output), load_tokenizer(tokenizer)
    settings = Settings(model.fingerprint, sequence_length, float(validation_fraction))
    files = corpus_files(corpus)
    sources = {name: content_hash(file) for name, file in files.items()}
    if (standing := _standing(output, settings, sources)) is not None:
        return standing
    require_absent(output)

    partial = partial_path(output)
    if (standing := _standing(partial, settings, sources)) is not None:
        return _complete(partial, output, standing)  # interrupted at the very end
    partial.mkdir(parents=True, exist_ok=True)
    for left_over in ("manifest.json", *TOKENIZER_FILES):
        (partial / left_over).unlink(missing_ok=True)
    total = sum(file.stat().st_size for file in files.values())
    with Progress("prepare", total, "bytes") as progress:
        for name, file in files.items():
            if _recorded(partial, name, settings, sources[name]) is None:
                counts = _pack(file, partial, name, model, settings, progress)
                record = {"settings": dataclasses.asdict(settings), "source": sources[name]}
                record["counts"] = {split: dataclasses.asdict(c) for split, c in counts.items()}
                write_text(_record_file(partial, name), json.dumps(record))
            else:
                progress.advance(file.stat().st_size)

    counts = {name: _recorded(partial, name, settings, sources[name]) for name in files}
    if not any(split["train"].rows for split in counts.values()):
        shutil.rmtree(partial)
        raise UserError(
            f"no language of {corpus} has enough text for one row of {sequence_length} tokens; "
            "add text or lower --sequence_length"
        )
    manifest = _manifest(partial, counts, model, settings, sources)
    write_bytes(partial / model.file_name, model.model)
    manifest.save(partial)
    return _complete(partial, output, manifest)


def _pack(
    file: Path, store: Path, name: str, model: Tokenizer, settings: Settings, progress: Progress
) -> dict[str, Counts]:
    """Writes the arrays of one language-script."""
    vocabulary = model.vocabulary
    writers = {
        split: _Writer(store / split / name, settings.sequence_length, vocabulary.pad_id)
        for split in SPLITS
    }
    lines, unknown = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    position = 0
    for end, batch in _line_batches(file):
        sides = {split: [] for split in SPLITS}
        for line in batch:
            held_out = line_hash(line) < settings.validation_fraction
            sides["validation" if held_out else "train"].append(line)
        for split, part in sides.items():
            ids, _ = model.encode(part)
            writers[split].add(ids)
            lines[split] += len(part)
            unknown[split] += int(np.count_nonzero(ids == vocabulary.unk_id))
        progress.advance(end - position, language=name)
        position = end
    rows = {
        "train": writers["train"].finish(keep_rest=False),
        "validation": writers["validation"].finish(keep_rest=True),
    }
    return {s: Counts(lines[s], writers[s].tokens, unknown[s], rows[s]) for s in SPLITS}


def line_hash(line: str) -> float:
    """A number in [0, 1) that depends on the text of the line alone."""
    digest = hashlib.blake2b(line.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def _line_batches(file: Path) -> Iterator[tuple[int, list[str]]]:
    batch: list[str] = []
    end = 0
    for end, line in read_lines(file):
        batch.append(line)
        if len(batch) == _LINES_AT_ONCE:
            yield end, batch
            batch = []
    yield end, batch


class _Writer:
    """Cuts a stream of tokens into rows and writes them a whole file at a time."""

    def __init__(self, path: Path, sequence_length: int, pad_id: int):
        self._path, self._length, self._pad_id = path, sequence_length, pad_id
        self._pending: list[np.ndarray] = []
        self._rows = 0
        self.tokens = 0
        shutil.rmtree(path, ignore_errors=True)

    def add(self, ids: np.ndarray) -> None:
        self._pending.append(ids)
        self.tokens += len(ids)
        if self.tokens - self._rows * self._length >= ROWS_PER_FILE * self._length:
            self._flush()

    def finish(self, keep_rest: bool) -> int:
        """Writes what is left, a shorter last row too if ``keep_rest``; returns the rows."""
        rest = self.tokens % self._length
        if keep_rest and rest:
            self._pending.append(np.full(self._length - rest, self._pad_id, np.int32))
        self._flush(last=True)
        if self._rows:
            with full_disk_as_oserror(self._path):
                ts.open(array_spec(self._path, self._rows, self._length), create=True).result()
        return self._rows

    def _flush(self, last: bool = False) -> None:
        ids = np.concatenate(self._pending) if self._pending else np.zeros(0, np.int32)
        rows = len(ids) // self._length
        if not last:
            rows -= rows % ROWS_PER_FILE
        used = rows * self._length
        self._pending = [ids[used:]]
        if rows:
            start, stop = self._rows, self._rows + rows
            array = ts.open(
                array_spec(self._path, stop, self._length), assume_metadata=True, open=True
            )
            tokens = ids[:used].reshape(rows, self._length).astype(np.uint32)
            with full_disk_as_oserror(self._path):
                array.result()[start:stop].write(tokens).result()
            self._rows = stop


def _manifest(
    store: Path,
    counts: dict[str, dict[str, Counts]],
    model: Tokenizer,
    settings: Settings,
    sources: dict[str, str],
) -> Manifest:
    kept = [name for name, c in counts.items() if c["train"].rows]
    skipped = {
        name: f"{c['train'].tokens} training tokens do not fill a row of {settings.sequence_length}"
        for name, c in counts.items()
        if not c["train"].rows
    }
    files = [
        f"{split}/{name}/{file}"
        for split in SPLITS
        for name in kept
        for file in row_files(counts[name][split].rows)
    ]
    return Manifest(
        sequence_length=settings.sequence_length,
        vocabulary=model.vocabulary,
        tokenizer=settings.tokenizer,
        validation_fraction=settings.validation_fraction,
        counts={split: {name: counts[name][split] for name in kept} for split in SPLITS},
        skipped=skipped,
        sources=sources,
        files={file: (store / file).stat().st_size for file in files},
    )


def _standing(output: Path, settings: Settings, sources: dict[str, str]) -> Manifest | None:
    """The manifest at ``output`` if it was made of the same input."""
    if not (output / "manifest.json").exists():
        return None
    manifest = Store(output).manifest
    made_of = Settings(manifest.tokenizer, manifest.sequence_length, manifest.validation_fraction)
    return manifest if (made_of, manifest.sources) == (settings, sources) else None


def _record_file(partial: Path, name: str) -> Path:
    return partial / f"{name}.json"


def _recorded(
    partial: Path, name: str, settings: Settings, source: str
) -> dict[str, Counts] | None:
    """The counts of a language-script that is complete in ``partial`` for the same input."""
    file = _record_file(partial, name)
    if not file.exists():
        return None
    record = json.loads(file.read_bytes())
    if record["settings"] != dataclasses.asdict(settings) or record["source"] != source:
        return None
    return {split: Counts(**fields) for split, fields in record["counts"].items()}


def _complete(partial: Path, output: Path, manifest: Manifest) -> Manifest:
    """Removes what a store does not hold (records, languages skipped or gone) and renames it."""
    for split in SPLITS:
        for folder in (partial / split).glob("*"):
            if folder.name not in manifest.names:
                shutil.rmtree(folder)
    for file in partial.glob("*_*.json"):
        file.unlink()
    promote(partial, output)
    return manifest
