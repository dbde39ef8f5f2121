"""``prepare``: from a corpus to a packed store, on all cores or on a Beam runner."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.corpus.cleaning import CleaningConfig
from data_pipelines.corpus.held_out import HeldOut, read_held_out
from data_pipelines.corpus.sources import (
    TextRange,
    find_sources,
    range_digests,
    text_ranges,
    unread_files,
)
from data_pipelines.packing.encoding import TextEncoder, combined
from data_pipelines.packing.grow import require_hashes
from data_pipelines.packing.provenance import Provenance
from data_pipelines.packing.rows import require_sequence_length
from data_pipelines.packing.runner import LocalRunner, Runner
from data_pipelines.packing.scratch import CHUNKS, hold_output, scratch_folder
from data_pipelines.packing.stages import Encoding, build
from langsamp_jax.data.manifest import Manifest
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import full_disk_as_oserror, partial_path, write_bytes
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the bytes of a store, beside the text itself."""

    tokenizer: str  # fingerprint
    sequence_length: int
    validation_fraction: float
    normalization: str
    duplicates: str
    held_out: str | None  # digest of the texts

    def __post_init__(self) -> None:
        require_sequence_length(self.sequence_length)
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
    cleaning: CleaningConfig = CleaningConfig(),  # noqa: B008  frozen
    held_out: Sequence[Path] = (),
    skip_damaged: bool = False,
    runner: Runner = LocalRunner(1),  # noqa: B008  it starts no process
) -> Manifest:
    """Packs every language-script of ``corpus`` into a store at ``output``.

    Packing is the reference's: each line tokenised with ``<s>`` and ``</s>``, the lines of one
    language-script concatenated and cut into rows, the rest dropped. A line goes to validation if
    its hash falls below ``validation_fraction``, so equal lines are on one side only, in all
    languages; there the rest is kept as a shorter last row. The same input gives the same bytes,
    whatever runs the work.

    The work is done in a scratch folder beside ``output``; interrupted, the next call resumes it.
    Called again on the same input, it returns the manifest of the store that exists.

    Args:
      held_out: files and folders of evaluation text; lines that occur there are left out.
      skip_damaged: leave out files and lines that cannot be read, and say so in ``origin.json``.
      runner: where the work is done; by default in this process.

    Raises:
      UserError: bad input (see ``find_sources``), a damaged file, no language with enough text for
        one row, or an ``output`` that holds something else.
    """
    output, model = Path(output), load_tokenizer(tokenizer)
    texts = read_held_out(held_out) if held_out else None
    settings = Settings(
        model.fingerprint,
        sequence_length,
        float(validation_fraction),
        cleaning.normalization,
        cleaning.duplicates,
        None if texts is None else _digest(texts.hashes),
    )
    sources = find_sources(corpus)
    unread = _unread(corpus, sources)
    digests = _digests(sources) if output.exists() else {}
    provenance = Provenance(dataclasses.asdict(settings), digests)
    if (manifest := existing_manifest(output, provenance)) is not None:
        return manifest
    with hold_output(output):
        return _build(output, sources, model, settings, texts, unread, skip_damaged, runner, None)


def grow(
    base: Path,
    corpus: Path,
    output: Path,
    held_out: Sequence[Path] = (),
    skip_damaged: bool = False,
    runner: Runner = LocalRunner(1),  # noqa: B008  it starts no process
) -> Manifest:
    """Makes a store of the text of the store ``base`` and, behind it, that of ``corpus``.

    The tokenizer and the settings are those of ``base``. Its rows keep their numbers and its lines
    their side; new lines that it has already are duplicates; text that it was made of is not added
    again. ``base`` is not changed: what stays is linked.

    Raises:
      UserError: as ``prepare``; ``base`` was not made from a corpus, or with other held-out texts.
    """
    store, texts = Store(base), read_held_out(held_out) if held_out else None
    before = Provenance.load(store.path)
    try:
        settings = Settings(**before.settings)
    except TypeError:
        raise UserError(f"{base} was not made from a corpus, so none can be added") from None
    if (None if texts is None else _digest(texts.hashes)) != settings.held_out:
        raise UserError(f"{base} was made with other --held_out texts; name the same ones")
    sources = find_sources(corpus)
    digests = _digests(sources)
    old = {name for name, (digest,) in digests.items() if digest in before.sources.get(name, [])}
    added = {name: files for name, files in sources.items() if name not in old}
    if not added:
        raise UserError(f"{base} holds all text of {corpus} already")
    if settings.duplicates == "drop":
        require_hashes(store, added)
    in_base = {name: before.sources[name] for name in store.manifest.names}  # not what it skipped
    merged = {name: [*in_base.get(name, []), *digests[name]] for name in added}
    provenance = Provenance(before.settings, {**before.sources, **merged})
    if (manifest := existing_manifest(output, provenance)) is not None:
        return manifest
    model, unread = store.tokenizer(), _unread(corpus, sources)
    with hold_output(output):
        return _build(output, added, model, settings, texts, unread, skip_damaged, runner, store)


def existing_manifest(output: Path, provenance: Provenance) -> Manifest | None:
    """Returns the manifest of the store at ``output`` if there is one of that provenance."""
    if not (output / "manifest.json").exists():
        return None
    manifest = Store(output).manifest
    if Provenance.load(output) != provenance:
        return None
    shutil.rmtree(partial_path(output), ignore_errors=True)  # of a call stopped at its very end
    return manifest


def store_tokenizer(output: Path, tokenizer: Tokenizer) -> Path:
    """Puts the tokenizer where every worker finds it, under a name that says which one it is."""
    file = scratch_folder(output, "tokenizers", tokenizer.fingerprint) / tokenizer.file_name
    if not file.exists():
        write_bytes(file, tokenizer.model)
    return file


def _build(
    output: Path,
    sources: dict[str, list[Path]],
    tokenizer: Tokenizer,
    settings: Settings,
    held_out: HeldOut | None,
    unread: dict[str, list[str]],
    skip_damaged: bool,
    runner: Runner,
    base: Store | None,
) -> Manifest:
    """Makes the store at ``output``, which is locked; the arguments are those of ``Encoding``."""
    held_out_file = None
    if held_out is not None:
        held_out_file = scratch_folder(output) / f"held_out-{settings.held_out}.npy"
        with full_disk_as_oserror(held_out_file):
            np.save(held_out_file, held_out.hashes)
    encoder = TextEncoder(
        scratch_folder(output, CHUNKS),
        store_tokenizer(output, tokenizer),
        CleaningConfig(settings.normalization, settings.duplicates),
        settings.validation_fraction,
        held_out_file,
        skip_damaged,
    )
    ranges = [  # absolute, for workers that run elsewhere
        text
        for name, files in sources.items()
        for text in text_ranges(name, [file.absolute() for file in files])
    ]
    encoding = Encoding(
        encoder,
        {_key(settings, skip_damaged, text): text for text in ranges},
        lambda text: text.stop - text.start,
        held_out,
        unread,
    )
    return build(
        output,
        encoding,
        tokenizer,
        settings.sequence_length,
        dataclasses.asdict(settings),
        list(sources),
        runner,
        base,
    )


def _key(settings: Settings, skip_damaged: bool, text: TextRange) -> str:
    """Returns a name for the chunks of a range: what changes them changes it."""
    status = text.file.stat()
    facts = {
        **dataclasses.asdict(settings),
        "sequence_length": None,  # rows are cut later
        "skip_damaged": skip_damaged,
        "rules": 2,  # of reading and cleaning; earlier ones made other lines of the same bytes
        "file": [str(text.file), status.st_size, status.st_mtime_ns],
        "range": [text.start, text.stop],
    }
    return f"{text.name}-{combined([json.dumps(facts)])}"


def _digests(sources: dict[str, list[Path]]) -> dict[str, list[str]]:
    """Returns the digest of the text of each language-script, as ``Provenance.sources`` has it."""
    digests = {}
    for name, files in sources.items():
        by_file = [range_digests(file, 0, file.stat().st_size) for file in files]
        digests[name] = [combined([digest for of_file in by_file for digest in of_file])]
    return digests


def _unread(corpus: Path, sources: dict[str, list[Path]]) -> dict[str, list[str]]:
    """Returns the files of a corpus that are not read, by language-script."""
    unread: dict[str, list[str]] = {}
    for name, path in unread_files(corpus, sources):
        unread.setdefault(name, []).append(str(path.relative_to(corpus)))
    return unread


def _digest(texts: np.ndarray) -> str:
    return combined([texts.tobytes().hex()])
