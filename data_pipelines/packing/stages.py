"""From work items that encode text to a finished store: encode, deduplicate, pack, assemble.

Everything happens in ``STORE.partial`` beside the store, under names that say what it was made of:
whatever interrupts it, the next call takes up what still fits. A stage begins when the one before
it has ended; within a stage, items run anywhere and in any order.
"""

import dataclasses
import functools
import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.corpus.held_out import HeldOut
from data_pipelines.packing import grow
from data_pipelines.packing.deduplication import HASHES, Deduplicated, deduplicate
from data_pipelines.packing.encoding import combined
from data_pipelines.packing.provenance import Provenance, hashes_file
from data_pipelines.packing.rows import Language, Packer, array_folder, pack_items
from data_pipelines.packing.runner import Runner, run
from data_pipelines.packing.scratch import (
    CHUNKS,
    DEDUPLICATED,
    ENCODED,
    MASKS,
    PACKED,
    scratch_folder,
)
from langsamp_jax.data.manifest import SPLITS, Counts, Manifest
from langsamp_jax.data.store import Store, row_files
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import partial_path, promote, write_bytes
from langsamp_jax.io.progress import Progress
from langsamp_jax.text.tokenizer import Tokenizer

_METADATA = "zarr.json"


@dataclasses.dataclass(frozen=True)
class Encoding:
    """The first stage of a store.

    Attributes:
      function: ``function(key, item)`` writes chunks into ``scratch_folder(output, CHUNKS)``, named
        after the key, and returns ``name`` (of the language-script), ``pieces`` (the names of the
        chunks) and ``source`` (digests of what was read); and, where there is something to tell,
        ``hygiene``, ``scripts`` and ``text`` (counts), ``left_out`` (lines for the user) and
        ``held_out`` (places in the hashes of ``held_out``, of what was found there).
      items: by keys that change with whatever changes the chunks; in the order of the text.
      size: of an item, for the progress bar.
      held_out: what was to be left out.
      unread: the files of the corpus that are no item, by language-script.
    """

    function: Callable[[str, Any], dict[str, Any]]
    items: Mapping[str, Any]
    size: Callable[[Any], int]
    held_out: HeldOut | None = None
    unread: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)


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
      settings: stored as those of the provenance.
      names: language-scripts that are reported even if they have no text.
      base: a store whose language-scripts come first. Untouched ones are linked, not copied; the
        rows of the others stay where they are, and new text begins behind them.

    Raises:
      UserError: an item's, or no language-script has enough text for one row.
    """
    scratch = scratch_folder(output)
    results = _encode(scratch, encoding, names, runner)
    drop_duplicates = settings.get("duplicates") == "drop"
    languages = _deduplicate(scratch, results, drop_duplicates, runner, base)

    counts = {
        split: {name: lang.counts(split, sequence_length) for name, lang in languages.items()}
        for split in SPLITS
    }
    filled = {name: lang for name, lang in languages.items() if counts["train"][name].rows}
    untouched = () if base is None else set(base.manifest.names) - set(languages)
    lost = {
        name: sum(result.get("hygiene", {}).get("held_out", 0) for result in of_name)
        for name, of_name in results.items()
        if not any(counts[split][name].lines for split in SPLITS)
    }
    if not filled and not untouched:
        shutil.rmtree(partial_path(output))
        if sum(lost.values()):
            raise UserError(
                f"everything was held out, {sum(lost.values()):,} lines: --held_out names the "
                "text of the corpus"
            )
        raise UserError(
            f"no language-script has enough text for one row of {sequence_length} tokens; "
            "add text or lower --sequence_length"
        )

    base_reference = None if base is None else (base.path, base.manifest.fingerprint)
    pad_id = tokenizer.vocabulary.pad_id
    packer = Packer(scratch, base_reference, sequence_length, pad_id)
    files = _pack(packer, filled, counts, runner)
    manifest = _manifest(filled, counts, lost, files, tokenizer, sequence_length, base)
    provenance = _provenance(settings, encoding, results, languages, base)
    links = _links(scratch, filled, files, sequence_length)
    _assemble(output, links, manifest, provenance, tokenizer, base)
    return manifest


def _encode(
    scratch: Path, encoding: Encoding, names: list[str], runner: Runner
) -> dict[str, list[dict[str, Any]]]:
    """Returns the results of the items of each language-script, in the order of the text."""
    encoded = _run_stage(
        "encode", encoding.function, scratch / ENCODED, encoding.items, runner, encoding.size
    )
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for result in encoded.values():
        results.setdefault(result["name"], []).append(result)
    return results


def _deduplicate(
    scratch: Path,
    results: dict[str, list[dict[str, Any]]],
    drop_duplicates: bool,
    runner: Runner,
    base: Store | None,
) -> dict[str, Language]:
    """Returns every language-script, sorted by name, with what is left of its new text."""
    chunks = {
        name: [chunk for result in of_name for chunk in result["pieces"]]
        for name, of_name in results.items()
    }
    fingerprint = "" if base is None else base.manifest.fingerprint
    keys = {
        name: f"{name}-{combined([fingerprint, str(drop_duplicates), *names])}"
        for name, names in chunks.items()
    }
    base_hashes = {name: None if base is None else hashes_file(base.path, name) for name in chunks}
    deduplicated = _run_stage(
        "deduplicate",
        functools.partial(_deduplicate_item, scratch, drop_duplicates),
        scratch / DEDUPLICATED,
        {keys[name]: (chunks[name], base_hashes[name]) for name in chunks},
        runner,
        lambda item: len(item[0]),
    )
    return {
        name: Language(
            keys[name],
            chunks[name],
            Deduplicated(**deduplicated[keys[name]]),
            grow.base_counts(base, name),
        )
        for name in sorted(chunks)
    }


def _deduplicate_item(
    scratch: Path, drop_duplicates: bool, key: str, item: tuple[list[str], Path | None]
) -> dict[str, Any]:
    """Deduplicates the chunks of one language-script; returns a ``Deduplicated`` as a dict."""
    names, base_hashes = item
    masks = scratch / MASKS / key
    masks.mkdir(parents=True, exist_ok=True)
    chunks = [scratch / CHUNKS / name for name in names]
    if base_hashes is not None and not base_hashes.exists():
        base_hashes = None
    return dataclasses.asdict(deduplicate(chunks, masks, drop_duplicates, base_hashes))


def _pack(
    packer: Packer,
    languages: dict[str, Language],
    counts: dict[str, dict[str, Counts]],
    runner: Runner,
) -> dict[str, tuple[int, str]]:
    """Returns the bytes and the digest of each file that was written, by its path in the store."""
    items = {
        f"{language.key}-{packer.sequence_length}-{number}": item
        for name, language in languages.items()
        for number, item in enumerate(
            pack_items(name, language, {split: counts[split][name].rows for split in SPLITS})
        )
    }
    packed = _run_stage("pack", packer, packer.scratch / PACKED, items, runner, lambda _: 1)
    return {file: tuple(facts) for result in packed.values() for file, facts in result.items()}


def _run_stage(
    title: str,
    function: Callable[[str, Any], dict[str, Any]],
    results: Path,
    items: Mapping[str, Any],
    runner: Runner,
    size: Callable[[Any], int],
) -> dict[str, dict[str, Any]]:
    """Runs a stage under a progress bar; returns the results of its items (see ``run``)."""
    with Progress(f"prepare: {title}", sum(map(size, items.values())), "") as progress:
        return run(function, results, items, runner, lambda item: progress.advance(size(item)))


def _manifest(
    languages: dict[str, Language],
    counts: dict[str, dict[str, Counts]],
    lost: dict[str, int],
    files: dict[str, tuple[int, str]],
    tokenizer: Tokenizer,
    sequence_length: int,
    base: Store | None,
) -> Manifest:
    """Describes the store of ``languages``, those that fill a row, and of the base.

    Args:
      lost: of language-scripts without a line, how many were held out.
    """
    skipped = {
        name: f"everything was held out, {lost[name]:,} lines"
        if lost.get(name)
        else f"{train.tokens} training tokens do not fill a row of {sequence_length}"
        for name, train in counts["train"].items()
        if not train.rows
    }
    counts = {split: {name: counts[split][name] for name in languages} for split in SPLITS}
    if base is not None:
        counts, skipped, files = grow.merge_base(base.manifest, counts, skipped, files)
    names = sorted(counts["train"])
    return Manifest(
        sequence_length=sequence_length,
        vocabulary=tokenizer.vocabulary,
        tokenizer=tokenizer.fingerprint,
        counts={split: {name: counts[split][name] for name in names} for split in SPLITS},
        skipped=dict(sorted(skipped.items())),
        files={
            (path := f"{split}/{name}/{file}"): files[path]
            for split in SPLITS
            for name in names
            for file in row_files(counts[split][name].rows)
        },
    )


def _provenance(
    settings: dict[str, Any],
    encoding: Encoding,
    results: dict[str, list[dict[str, Any]]],
    languages: dict[str, Language],
    base: Store | None,
) -> Provenance:
    """Adds the digests and the counts of the new text to the provenance of the base."""
    before = Provenance(settings, {}) if base is None else Provenance.load(base.path)
    sources, report = dict(before.sources), dict(before.report)
    for name, new in sorted(results.items()):
        text = combined([digest for result in new for digest in result["source"]])
        added_to = any(languages[name].base[split].rows for split in SPLITS)  # not: was skipped
        sources[name] = [*(sources[name] if added_to else []), text]
        duplicates = {"hygiene": {"duplicates": languages[name].new.duplicates}}
        facts = [report.get(name, {}), *new, duplicates]
        report[name] = {
            "hygiene": _sum([fact.get("hygiene", {}) for fact in facts]),
            "scripts": _sum([fact.get("scripts", {}) for fact in facts]),
            "text": _sum([fact.get("text", {}) for fact in facts]),
            "left_out": [line for fact in facts for line in fact.get("left_out", [])],
        }
    for name, files in encoding.unread.items():
        empty = {"hygiene": {}, "scripts": {}, "text": {}, "left_out": []}
        report.setdefault(name, empty)["unread"] = files
    matches = {}
    if encoding.held_out is not None:
        new = [result for of_name in results.values() for result in of_name]
        matches = encoding.held_out.matches(
            itertools.chain.from_iterable(result.get("held_out", ()) for result in new),
            sum(result.get("hygiene", {}).get("held_out", 0) for result in new),
        )
    sources, report = dict(sorted(sources.items())), dict(sorted(report.items()))
    return Provenance(settings, sources, report, matches)


def _sum(counts: list[Mapping[str, int]]) -> dict[str, int]:
    keys = sorted({key for count in counts for key in count})
    return {key: sum(count.get(key, 0) for count in counts) for key in keys}


def _links(
    scratch: Path,
    languages: dict[str, Language],
    files: dict[str, tuple[int, str]],
    sequence_length: int,
) -> dict[Path, Path]:
    """Returns which file of the scratch folder becomes which file of the store, by the latter."""
    links = {}
    for path in files:
        split, name, file = path.split("/", 2)
        array = array_folder(scratch, languages[name], split, sequence_length)
        links[Path(path)] = array / file
        links[Path(split, name, _METADATA)] = array / _METADATA
    for name, language in languages.items():
        hashes = scratch / MASKS / language.key / HASHES
        if hashes.exists():
            links[hashes_file(Path(), name)] = hashes
    return links


def _assemble(
    output: Path,
    links: dict[Path, Path],
    manifest: Manifest,
    provenance: Provenance,
    tokenizer: Tokenizer,
    base: Store | None,
) -> None:
    """Links everything into a folder, which becomes the store, and removes the scratch folder."""
    partial = partial_path(output)
    store = partial / "store"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    for path, file in links.items():
        grow.link(file, store / path)
    if base is not None:
        grow.link_base(base.path, store)
    write_bytes(store / tokenizer.file_name, tokenizer.model)
    provenance.save(store)
    manifest.save(store)
    os.sync()
    promote(store, output)
    shutil.rmtree(partial, ignore_errors=True)
