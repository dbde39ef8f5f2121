"""Exports a trained model as a Hugging Face folder, in one of three forms.

The universal encoder with its plain head; the same with one language folded in, a stock model
whose fill-mask is the LangSAMP model for that language; and the full model with its two tables and
the PyTorch code that they need.
"""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from langsamp_jax.errors import UserError
from langsamp_jax.huggingface import layout
from langsamp_jax.huggingface.model_card import TrainingFacts, model_card
from langsamp_jax.io.files import (
    full_disk_as_oserror,
    new_folder,
    write_bytes,
    write_text,
)
from langsamp_jax.languages.inventory import Inventory, TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.text.huggingface_files import write_tokenizer
from langsamp_jax.text.tokenizer import Tokenizer, Vocabulary

VECTORS_FILE = "language_script_vectors.npz"


def require_form(
    path: Path, config: ModelConfig, inventory: Inventory, fold: str | None, full: bool
) -> None:
    """Raises UserError where the model of ``path`` does not know the language-script ``fold``, or
    cannot be exported in this form."""
    if fold is not None:
        inventory.ids(fold)
    if config.placement == "none" and (fold or full):
        raise UserError(f"{path} has no language and script vectors; leave --fold and --full")
    if config.placement == "input" and not (fold or full):
        raise UserError(
            f"{path} has its vectors at the input (model.placement = 'input'), so its encoder "
            "is of no use without a language; export it with --fold NAME or --full"
        )


def export(
    config: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    inventory: Inventory,
    facts: TrainingFacts,
    output: Path,
    fold: str | None = None,
    full: bool = False,
) -> None:
    """Writes a model to the new folder ``output``, in a form that ``require_form`` has allowed.

    Args:
      facts: how it was trained, for its card.
      fold: a language-script to fold in; or
      full: the full model. Neither: the universal encoder.

    Raises:
      UserError: ``output`` exists, or transformers would give other ids than ``tokenizer``.
    """
    if fold is not None:
        params = folded(config, params, inventory.ids(fold))
    vocabulary = tokenizer.vocabulary
    tables = layout.named_tables(config, inventory)
    stored = config if full else dataclasses.replace(config, placement="none")
    description = layout.stock_config(config, vocabulary)
    if full:
        description = layout.full_model_config(description, tables, config.placement)

    with new_folder(output) as folder, full_disk_as_oserror(output):
        write_tokenizer(tokenizer, folder, config.max_length)  # it refuses some: before the rest
        write_text(folder / "config.json", json.dumps(description, indent=1) + "\n")
        tensors = state_dict(stored, params, vocabulary)
        save_weights(folder, tensors)
        if full:
            write_bytes(folder / layout.MODELING_FILE.name, layout.MODELING_FILE.read_bytes())
        if config.placement != "none":
            write_text(folder / "inventory.json", inventory.to_json())
            write_bytes(folder / VECTORS_FILE, labelled_vectors(tables, params["conditioning"]))
        write_text(folder / "README.md", model_card(config, tokenizer, facts, fold, full))


def state_dict(model: ModelConfig, params: Any, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Returns tensors by name, as ``transformers`` saves them: the tied table not stored twice.

    What pads the vocabulary inside the model stays behind.
    """
    first = layout.first_position(model.architecture, vocabulary.pad_id)
    tensors = {}
    for path, name in layout.tensor_names(model).items():
        leaf = params
        for entry in path.split("/"):
            leaf = leaf[entry]
        values = np.asarray(leaf)
        if path in ("word_embeddings", "decoder_bias"):
            values = values[: vocabulary.size]
        if path == "encoder/position_embeddings":
            values = np.pad(values, ((first, 0), (0, 0)))
        values = values.swapaxes(-1, -2) if path.endswith("/kernel") else values
        if "{layer}" in name:
            tensors |= {name.format(layer=i): layer for i, layer in enumerate(values)}
        else:
            tensors[name] = values
    types = layout.stock_config(model, vocabulary)["type_vocab_size"]
    tensors[layout.token_types(model)] = np.zeros((types, model.hidden_size), np.float32)
    return with_decoder_bias(
        {name: np.ascontiguousarray(values, np.float32) for name, values in tensors.items()}
    )


def with_decoder_bias(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds XLM-R's other name for the bias of the decoder.

    Without it older releases of transformers (4.45 and 4.49 of those tried) leave the bias at
    zero, and say nothing.
    """
    if "lm_head.bias" not in tensors:  # BERT
        return tensors
    return {**tensors, "lm_head.decoder.bias": tensors["lm_head.bias"]}


def save_weights(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes ``model.safetensors`` beside ``config.json``, for the same readers."""
    file = folder / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", file)  # the library lets nobody but the owner read it


def folded(config: ModelConfig, params: Any, ids: TableIds) -> Any:
    """Returns parameters that without vectors give what ``params`` give with those of a language.

    The vectors e enter a dense layer, W (h + e) + b = W h + (W e + b): another bias. At the input
    they are added to every word, so to every position.
    """
    tables = params["conditioning"]
    vector = np.zeros(config.hidden_size)
    if config.use_language:
        vector += np.asarray(tables["language"][ids.language], np.float64)
    if config.use_script:
        vector += np.asarray(tables["script"][ids.script], np.float64)
    if config.placement == "input":
        path, change = ("encoder", "position_embeddings"), vector
    else:
        path = ("head", "dense", "bias")
        change = vector @ np.asarray(params["head"]["dense"]["kernel"], np.float64)

    def add(key: Any, leaf: jax.Array) -> Any:
        if tuple(entry.key for entry in key) != path:
            return leaf
        return (np.asarray(leaf, np.float64) + change).astype(np.float32)

    return jax.tree_util.tree_map_with_path(add, params)


def labelled_vectors(names: Inventory, tables: Any) -> bytes:
    """Returns the tables as an ``.npz`` file for analysis: names [n], float32 [n, hidden]."""
    arrays = {}
    if names.languages:
        arrays |= {"languages": names.languages, "language_vectors": np.asarray(tables["language"])}
    if names.scripts:
        arrays |= {"scripts": names.scripts, "script_vectors": np.asarray(tables["script"])}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
