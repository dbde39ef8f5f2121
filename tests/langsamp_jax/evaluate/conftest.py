"""Small models to evaluate, made by hand or read from a Hugging Face folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from langsamp_jax.evaluate.journal import Journal
from langsamp_jax.evaluate.trained import Trained, open_trained
from langsamp_jax.inventory import Inventory
from langsamp_jax.model import LangSamp, ModelConfig, init_params
from langsamp_jax.sharding import MeshConfig, make_mesh
from langsamp_jax.tokenizer import Tokenizer, load_tokenizer

INVENTORY = Inventory(("qaa", "qab"), ("Cyrl", "Latn"))
LENGTH = 40


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_file)


@pytest.fixture(scope="session")
def lines(corpus: Path) -> list[str]:
    """Different sentences of different lengths, not in order of length."""
    found = (corpus / "held_out" / "qaa_Latn.txt").read_text("utf-8").splitlines()[:40]
    longer = [" ".join(found[i : i + 3]) for i in range(0, 9, 3)]
    return [*found[:20], *longer, *found[20:], found[0].split()[0]]


@pytest.fixture(scope="session")
def random_model(tokenizer: Tokenizer) -> Callable[..., Trained]:
    """``random_model(**model)``: 3 layers of 32 with large weights, languages qaa and qab."""

    def random_model(max_length: int = LENGTH, **fields: Any) -> Trained:
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
        sizes |= {"intermediate_size": 64, "max_length": max_length}
        model = LangSamp(ModelConfig(**sizes | fields), tokenizer.vocab_size, 2, 2)
        rng = np.random.default_rng(0)
        shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
        params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype("f"), shapes)
        mesh, path = make_mesh(MeshConfig()), Path("model")
        known = tokenizer, INVENTORY, True, max_length, {}
        return Trained(path, None, model, params, *known, mesh)

    return random_model


@pytest.fixture(scope="session")
def stock(tmp_path_factory, tokenizer_file, tokenizer, make_checkpoint) -> Callable[..., Any]:
    """``stock(kind)``: a random masked LM in PyTorch, and the same opened from its folder."""

    def stock(kind: str = "xlm-roberta", file: Path = tokenizer_file) -> tuple[Any, Trained]:
        folder, size = tmp_path_factory.mktemp("stock") / "model", load_tokenizer(file).vocab_size
        theirs = make_checkpoint(folder, kind, size)
        shutil.copy(file, folder / "sentencepiece.bpe.model")
        return theirs, open_trained(folder)

    return stock


@pytest.fixture
def journal(tmp_path: Path):
    with Journal(tmp_path / "result.json", {}) as journal:
        yield journal


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """``write(folder, qaa_Latn=[line, ...], ...)``: a corpus."""

    def write(folder: Path, **languages: list[str]) -> Path:
        folder.mkdir()
        for name, lines in languages.items():
            (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", "utf-8")
        return folder

    return write
