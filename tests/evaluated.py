"""Small models to evaluate: made by hand, of a run, or read from a Hugging Face folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from langsamp_jax.evaluation.jobs import Journal
from langsamp_jax.evaluation.model import LoadedModel, load_model
from langsamp_jax.languages.inventory import Inventory
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer
from langsamp_jax.training.run import Run
from tests.tiny import SIZES, random_params

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
def words(corpus: Path) -> list[str]:
    """Different short words of one language."""
    text = (corpus / "held_out" / "qaa_Latn.txt").read_text("utf-8")
    return list(dict.fromkeys(word for word in text.split() if len(word) < 6))


@pytest.fixture(scope="module")
def run(store_path: Path, make_run: Callable[..., Run]) -> Path:
    """A run with a checkpoint of step 3; the evaluations in it are those of the module alone."""
    return make_run(store_path).path


@pytest.fixture(scope="session")
def random_model(tokenizer: Tokenizer) -> Callable[..., LoadedModel]:
    """``random_model(**model)``: 3 layers of 32 with large weights, languages qaa and qab."""

    def random_model(max_length: int = LENGTH, **fields: Any) -> LoadedModel:
        sizes = SIZES | {"num_hidden_layers": 3, "max_length": max_length}
        model = LangSamp(ModelConfig(**sizes | fields), tokenizer.vocab_size, 2, 2)
        params = random_params(model)
        mesh, path = make_mesh(MeshConfig()), Path("model")
        known = tokenizer, INVENTORY, True, max_length, {}
        return LoadedModel(path, None, model, params, *known, mesh)

    return random_model


@pytest.fixture(scope="session")
def stock(tmp_path_factory, tokenizer_file, tokenizer, make_checkpoint) -> Callable[..., Any]:
    """``stock(kind)``: a random masked LM in PyTorch, and the same opened from its folder."""

    def stock(kind: str = "xlm-roberta", file: Path = tokenizer_file) -> tuple[Any, LoadedModel]:
        folder, size = tmp_path_factory.mktemp("stock") / "model", load_tokenizer(file).vocab_size
        theirs = make_checkpoint(folder, kind, size)
        shutil.copy(file, folder / "sentencepiece.bpe.model")
        return theirs, load_model(folder)

    return stock


@pytest.fixture
def journal(tmp_path: Path):
    with Journal(tmp_path / "result.json", {}) as journal:
        yield journal
