"""``prepare --mixture``: any registered seqio Mixture or Task, compiled into a store."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.packing.encoding import combined
from data_pipelines.packing.prepare import existing_manifest
from data_pipelines.packing.provenance import Provenance
from data_pipelines.packing.rows import require_sequence_length
from data_pipelines.packing.runner import LocalRunner, Runner
from data_pipelines.packing.scratch import CHUNKS, hold_output, scratch_folder
from data_pipelines.packing.stages import Encoding, build
from data_pipelines.packing.token_chunks import ChunkWriter
from data_pipelines.seqio_tasks.imports import seqio
from data_pipelines.seqio_tasks.registry import (
    DamagedTask,
    OpenMixture,
    batches,
    import_module,
    number_of_examples,
    open_mixture,
)
from langsamp_jax.data.manifest import SPLITS, Manifest
from langsamp_jax.io.files import write_text

RATES = "mixture.gin"  # beside the manifest


@dataclasses.dataclass(frozen=True)
class TaskName:
    """A Task to be encoded, and the language-script that it is of."""

    task: str
    language_script: str


@dataclasses.dataclass(frozen=True)
class TaskEncoder:
    """Encodes a Task; called as ``encoder(key, name)`` in any process.

    Attributes:
      chunks: the folder that gets the chunks, named after the key.
      module: registers the Task when it is imported.
      skip_damaged: leave out what cannot be read, instead of ending.
    """

    chunks: Path
    module: str | None
    skip_damaged: bool

    def __call__(self, key: str, name: TaskName) -> dict[str, Any]:
        """Writes the chunks of a Task; returns its result, see ``stages.Encoding``.

        Raises:
          UserError: as ``batches``.
        """
        import_module(self.module)
        try:
            return self._encode(key, name, False)
        except DamagedTask as damage:
            if not self.skip_damaged:
                raise
            return {**self._encode(key, name, True), "left_out": damage.files}

    def _encode(self, key: str, name: TaskName, skip_damaged: bool) -> dict[str, Any]:
        task = seqio.TaskRegistry.get(name.task)
        writer = ChunkWriter(
            self.chunks / key, task.output_features["targets"].vocabulary.tokenizer
        )
        digest, examples = hashlib.blake2b(digest_size=16), 0
        for split in SPLITS:
            if split not in task.splits:
                continue
            for ids, lengths in batches(task, split, name.language_script, 1, skip_damaged):
                writer.add(ids, lengths, np.full(len(lengths), split == "validation"))
                digest.update(ids.tobytes())
                examples += len(lengths)
            digest.update(split.encode())
        return {
            "name": name.language_script,
            "pieces": writer.close(),
            "source": [digest.hexdigest()],
            "hygiene": {"lines": examples},
            "text": {"pieces": writer.pieces, "unknown": writer.unknown},
        }


def prepare_mixture(
    mixture: str,
    module: str | None,
    output: Path,
    sequence_length: int = 512,
    skip_damaged: bool = False,
    runner: Runner = LocalRunner(1),  # noqa: B008  it starts no process
) -> Manifest:
    """Packs every Task of a Mixture into a store at ``output``.

    Rows hold the ``targets`` of the split ``train`` and, where a Task has it, ``validation``, in
    the order of the Task, once. A Task of ``register_corpus`` gives the rows that ``prepare``
    makes of the corpus. Several Tasks of one language-script come one after the other, in the
    order of their names. The rates of the Mixture are kept in ``STORE/mixture.gin``.

    Interrupted, the next call keeps the Tasks that are complete. Called again, it returns the
    manifest that exists if the Tasks are the same and know as many examples; it reads no text.

    Args:
      module: registers the Mixture, as ``open_mixture`` has it. Workers import it too.

    Raises:
      UserError: as ``open_mixture`` and ``batches``; no language-script has enough text for one
        row; ``output`` holds something else.
    """
    require_sequence_length(sequence_length)
    output, opened = Path(output), open_mixture(mixture, module)
    settings = {
        "mixture": mixture,
        "tokenizer": opened.vocabulary.tokenizer.fingerprint,
        "sequence_length": sequence_length,
        "tasks": {
            task.name: {split: number_of_examples(task, split) for split in sorted(task.splits)}
            for language in opened.languages
            for task in language.tasks
        },
    }
    manifest = _existing(output, settings)
    if manifest is None:
        with hold_output(output):
            manifest = _compile(opened, module, output, settings, skip_damaged, runner)
    if not (output / RATES).exists():
        write_text(output / RATES, rates_gin(opened, manifest))
    return manifest


def _existing(output: Path, settings: dict[str, Any]) -> Manifest | None:
    """Returns the manifest of the store at ``output`` if it was made with these settings."""
    if not (output / "manifest.json").exists():
        return None
    return existing_manifest(output, Provenance(settings, Provenance.load(output).sources))


def _compile(
    mixture: OpenMixture,
    module: str | None,
    output: Path,
    settings: dict[str, Any],
    skip_damaged: bool,
    runner: Runner,
) -> Manifest:
    """Makes the store at ``output``, which is locked."""
    if module is not None and module.endswith(".py"):
        module = str(Path(module).absolute())  # for workers that run elsewhere
    items = {
        _key(settings, skip_damaged, language.name, task): TaskName(task.name, language.name)
        for language in mixture.languages
        for task in language.tasks
    }
    encoder = TaskEncoder(scratch_folder(output, CHUNKS), module, skip_damaged)
    return build(
        output,
        Encoding(encoder, items, lambda _: 1),
        mixture.vocabulary.tokenizer,
        settings["sequence_length"],
        settings,
        [language.name for language in mixture.languages],
        runner,
    )


def rates_gin(mixture: OpenMixture, manifest: Manifest) -> str:
    """Returns gin settings: the rates of a Mixture for the language-scripts of a store."""
    weights = {
        name: rate for name, rate in mixture.weights.items() if name in manifest.counts["train"]
    }
    lines = (f"  {json.dumps(name)}: {rate!r},\n" for name, rate in weights.items())
    return (
        f"# The rates of the seqio Mixture {mixture.name}.\n"
        'mixture.rule = "weights"\n'
        f"mixture.weights = {{\n{''.join(lines)}}}\n"
    )


def _key(
    settings: dict[str, Any], skip_damaged: bool, language_script: str, task: seqio.Task
) -> str:
    """Returns a name for the chunks of a Task: what changes them changes it, as far as is known."""
    files = {Path(shard) for split in task.splits for shard in task.source.list_shards(split)}
    status = [(file, file.stat()) for file in sorted(files) if file.exists()]
    facts = [
        *(task.name, settings["tokenizer"], settings["tasks"][task.name], skip_damaged),
        task.source,
        *((str(file.absolute()), s.st_size, s.st_mtime_ns) for file, s in status),
    ]
    return f"{language_script}-{combined([f'{value};' for value in facts])}"
