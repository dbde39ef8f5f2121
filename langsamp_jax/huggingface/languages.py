"""``langsamp languages add``: new rows for the two tables of a full model."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from langsamp_jax.errors import UserError
from langsamp_jax.files import (
    full_disk_as_oserror,
    new_folder,
    require_absent,
    write_bytes,
    write_text,
)
from langsamp_jax.huggingface import layout
from langsamp_jax.huggingface.export import VECTORS_FILE, labelled_vectors, with_decoder_bias
from langsamp_jax.huggingface.full_model import MODELING_FILE, full_model_config
from langsamp_jax.huggingface.pretrained import Pretrained, open_pretrained, read_config
from langsamp_jax.inventory import (
    Inventory,
    check_language_script,
    published_language_scripts,
    split_language_script,
)
from langsamp_jax.model import ModelConfig

_SCALE = 0.02  # standard deviation of random rows, as in the published code
_WRITTEN_ANEW = {"config.json", "inventory.json", VECTORS_FILE, MODELING_FILE.name}


def add_languages(
    model: Path,
    names: Sequence[str],
    start: str,
    output: Path,
    families: Path | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Copies a full model to ``output`` with rows for new languages and scripts appended.

    The rows that are there keep their numbers and values. ``start`` is ``script`` or ``family``
    (the mean over the model's languages of the same; of a new script, over all scripts), a
    language-script whose rows are copied, or ``random`` (N(0, 0.02)).

    Args:
      families: a text file with a language code and the name of its family on each line,
        separated by a tab; for ``start="family"``.

    Returns:
      one record for each new row: ``table``, ``row``, ``code``, ``start`` (what it began as).

    Raises:
      UserError: the folder is no full model, a name does not exist or all have their rows
        already, or there is nothing to take the mean of.
    """
    require_absent(output)
    for name in names:
        check_language_script(name)
    pretrained = open_pretrained(model)
    config = ModelConfig(**pretrained.fields)
    pretrained.check(config)
    if (old := pretrained.inventory) is None:
        raise UserError(f"{model} has no language and script tables; export a run with --full")
    new = layout.named_tables(config, old.extended(names))
    if new == old:
        raise UserError(f"{model} has rows for {', '.join(names)} already")
    written = _language_scripts(model)
    first_values = _first_values(start, old, written, families)

    tensors = _tensors(pretrained, config)
    paths = layout.tensor_names(config)
    records = []
    for table, before, after in (
        ("language", old.languages, new.languages),
        ("script", old.scripts, new.scripts),
    ):
        if not after:
            continue
        values = tensors[paths[f"conditioning/{table}"]]
        generator = np.random.default_rng((seed, table == "script"))
        rows = [values]
        for row, code in enumerate(after[len(before) :], len(before)):
            sources = first_values(table, code, names)
            drawn = generator.normal(0, _SCALE, (1, values.shape[1]))
            rows.append(values[sources].mean(axis=0, keepdims=True) if sources else drawn)
            began = _said([before[source] for source in sources]) if sources else "random"
            records.append({"table": table, "row": row, "code": code, "start": began})
        tensors[paths[f"conditioning/{table}"]] = np.concatenate(rows).astype(np.float32)

    with new_folder(output) as folder, full_disk_as_oserror(output):
        for file in sorted(Path(model).iterdir()):
            weights = file.suffix in (".safetensors", ".bin") or file.name.endswith(".index.json")
            if file.is_file() and not weights and file.name not in _WRITTEN_ANEW:
                shutil.copy(file, folder)
        stock, _ = read_config(model)
        stock |= {"model_type": config.architecture, "dtype": "float32", "torch_dtype": "float32"}
        description = full_model_config(stock, new, config.placement)
        write_text(folder / "config.json", json.dumps(description, indent=1) + "\n")
        write_bytes(folder / MODELING_FILE.name, MODELING_FILE.read_bytes())
        everything = {
            "language_scripts": sorted({*written, *names}),
            "languages": new.languages,
            "scripts": new.scripts,
        }
        write_text(folder / "inventory.json", json.dumps(everything, indent=1) + "\n")
        tables = {
            table: tensors[paths[f"conditioning/{table}"]]
            for table in ("language", "script")
            if f"conditioning/{table}" in paths
        }
        write_bytes(folder / VECTORS_FILE, labelled_vectors(new, tables))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return records


def _first_values(
    start: str, old: Inventory, written: Sequence[str], families: Path | None
) -> Callable[[str, str, Sequence[str]], list[int]]:
    """A function from (table, new code, the names that are added) to the rows to take the mean of.

    No row: a random start.
    """
    if start == "random":
        return lambda table, code, names: []
    if start not in ("script", "family"):
        language, script = old.ids(start)
        return lambda table, code, names: [language if table == "language" else script]
    if (start == "family") != (families is not None):
        raise UserError("--start family and --families FILE.tsv are given together or not at all")
    family = _read_families(families) if families else {}

    def like(table: str, code: str, names: Sequence[str]) -> list[int]:
        if table == "script":
            return list(range(len(old.scripts)))
        if start == "family":
            what = family.get(code)
            near = {known for known in old.languages if what and family.get(known) == what}
        else:
            pairs = [split_language_script(name) for name in names]
            what = ", ".join(sorted({script for language, script in pairs if language == code}))
            known = [split_language_script(name) for name in written]
            near = {language for language, script in known if script in what.split(", ")}
        if not near:
            raise UserError(
                f"the model has no language of the {start} of {code} ({what or 'unknown'}); "
                "choose another --start"
            )
        return [row for row, known in enumerate(old.languages) if known in near]

    return like


def _tensors(pretrained: Pretrained, config: ModelConfig) -> dict[str, np.ndarray]:
    """All tensors of a full model; the published checkpoints lack the token types."""
    names = [
        name.format(layer=layer)
        for name in layout.tensor_names(config).values()
        for layer in range(config.num_hidden_layers if "{layer}" in name else 1)
    ]
    types = layout.token_types(config)
    if pretrained.has_token_types:
        names.append(types)
    tensors = {name: pretrained.weights.read(name) for name in names}
    zeros = np.zeros((1, config.hidden_size), np.float32)
    return with_decoder_bias({types: zeros, **tensors})


def _language_scripts(model: Path) -> list[str]:
    """The language-scripts that the model was trained on, as far as they are known."""
    file = Path(model) / "inventory.json"
    if not file.exists():
        return published_language_scripts()
    try:
        return list(json.loads(file.read_text("utf-8"))["language_scripts"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged; export the run again") from None


def _read_families(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--families {file} cannot be read ({error})") from None
    families = {}
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if len(fields) != 2:
            raise UserError(f"{file}, line {number}: expected a code, a tab and a family")
        families[fields[0]] = fields[1].strip()
    return families


def _said(codes: Sequence[str]) -> str:
    return codes[0] if len(codes) == 1 else f"mean of {len(codes)}"
