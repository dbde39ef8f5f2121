"""Adds rows for new languages and scripts to the two tables of a full model."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.huggingface import layout
from langsamp_jax.huggingface.export import (
    VECTORS_FILE,
    labelled_vectors,
    save_weights,
    with_decoder_bias,
)
from langsamp_jax.huggingface.pretrained import Pretrained, open_pretrained, read_config
from langsamp_jax.io.files import (
    full_disk_as_oserror,
    new_folder,
    require_absent,
    write_bytes,
    write_text,
)
from langsamp_jax.languages.inventory import Inventory, check_language_script
from langsamp_jax.languages.typology import read_families
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.text.row_map import NEW_ROW_SCALE

_TABLES = {"languages": "conditioning/language", "scripts": "conditioning/script"}
_COPIED_FILES = (
    "sentencepiece.bpe.model",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


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
      families: a file that says which family a language is of, see ``typology.read_families``;
        for ``start="family"``.

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
    new = old.extended(names)
    named = layout.named_tables(config, new)
    if (named.languages, named.scripts) == (old.languages, old.scripts):
        raise UserError(f"{model} has rows for {', '.join(names)} already")

    first_values = _first_values(start, old, names, families)
    tensors = _tensors(pretrained, config)
    tables, records = {}, []
    for table, path in _TABLES.items():
        before, after = getattr(old, table), getattr(named, table)
        if after:
            tensor = layout.tensor_names(config)[path]
            sources = {code: first_values(table, code) for code in after[len(before) :]}
            generator = np.random.default_rng((seed, *map(ord, table)))
            tensors[tensor] = _grown(tensors[tensor], list(sources.values()), generator)
            tables[table.removesuffix("s")] = tensors[tensor]
            records += [
                {
                    "table": table.removesuffix("s"),
                    "row": after.index(code),
                    "code": code,
                    "start": _describe_start(before, rows),
                }
                for code, rows in sources.items()
            ]

    stock, _ = read_config(model)
    stock |= {"model_type": config.architecture, "dtype": "float32", "torch_dtype": "float32"}
    description = layout.full_model_config(stock, named, config.placement)
    with new_folder(output) as folder, full_disk_as_oserror(output):
        for file in (Path(model) / name for name in _COPIED_FILES):
            if file.exists():
                shutil.copy(file, folder)
        write_text(folder / "config.json", json.dumps(description, indent=1) + "\n")
        write_text(folder / "inventory.json", new.to_json())
        write_text(folder / "README.md", _model_card(model, names, records))
        write_bytes(folder / layout.MODELING_FILE.name, layout.MODELING_FILE.read_bytes())
        write_bytes(folder / VECTORS_FILE, labelled_vectors(named, tables))
        save_weights(folder, tensors)
    return records


def _grown(
    values: np.ndarray, sources: Sequence[list[int]], generator: np.random.Generator
) -> np.ndarray:
    """Appends to a table a row for each of ``sources``: the mean of those rows, or random."""
    rows = [
        values[source].mean(axis=0)
        if source
        else generator.normal(0, NEW_ROW_SCALE, values.shape[1])
        for source in sources
    ]
    return np.concatenate([values, np.array(rows).reshape(-1, values.shape[1])]).astype(np.float32)


def _first_values(
    start: str, old: Inventory, names: Sequence[str], families: Path | None
) -> Callable[[str, str], list[int]]:
    """Returns a function from (table, new code) to the old rows to average; none: random.

    ``names`` are the language-scripts that are added.
    """
    if start == "random":
        return lambda table, code: []
    if start not in ("script", "family"):
        language, script = old.ids(start)
        return lambda table, code: [language if table == "languages" else script]
    if (start == "family") != (families is not None):
        raise UserError("--start family and --families FILE.tsv are given together or not at all")
    family = read_families(families) if families else {}

    def similar_rows(table: str, code: str) -> list[int]:
        if table == "scripts":
            return list(range(len(old.scripts)))
        if start == "family":
            group = family.get(code, "")
            similar = {known for known in old.languages if group and family.get(known) == group}
        else:
            scripts = {name[4:] for name in names if name[:3] == code}
            group = ", ".join(sorted(scripts))
            similar = {name[:3] for name in old.language_scripts if name[4:] in scripts}
        if not similar:
            raise UserError(
                f"the model has no language of the {start} of {code} ({group or 'unknown'}); "
                "choose another --start"
            )
        return [row for row, known in enumerate(old.languages) if known in similar]

    return similar_rows


def _tensors(pretrained: Pretrained, config: ModelConfig) -> dict[str, np.ndarray]:
    """Reads all tensors of a full model; token types are zero where a published one lacks them."""
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


def _describe_start(codes: Sequence[str], rows: Sequence[int]) -> str:
    """Says what a new row began as."""
    if not rows:
        return "random"
    return codes[rows[0]] if len(rows) == 1 else f"mean of {len(rows)}"


def _model_card(model: Path, names: Sequence[str], records: Sequence[dict[str, Any]]) -> str:
    """Returns the model's card with a table of what was added."""
    file = Path(model) / "README.md"
    card = file.read_text("utf-8") if file.exists() else "# LangSAMP model\n"
    rows = [f"| {r['table']} | {r['code']} | {r['row']} | {r['start']} |" for r in records]
    added = f"## Added, not yet trained: {', '.join(names)}"
    return "\n".join(
        [card, added, "", "| table | code | row | starts as |", "|---|---|--:|---|", *rows, ""]
    )
