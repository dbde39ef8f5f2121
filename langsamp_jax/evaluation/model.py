"""What is evaluated: the model of a run or of a Hugging Face folder, whichever it is.

So XLM-R, Glot500-m, published LangSAMP checkpoints and our own runs are compared by the same code.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from langsamp_jax.data.feed import place
from langsamp_jax.errors import UserError
from langsamp_jax.huggingface.loading import load_params, vocabulary_rows
from langsamp_jax.huggingface.pretrained import InitConfig, open_pretrained
from langsamp_jax.io.storage import location
from langsamp_jax.languages.inventory import EMPTY, Inventory, TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, param_shapes
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from langsamp_jax.parallel.sharding import batch_sharding
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer
from langsamp_jax.training.run import open_run
from langsamp_jax.training.setup import model_of, restore_params

# A batch fills the cores or the chip and no more: one of a few sentences should not be all padding.
_TOKENS_AT_ONCE = {"cpu": 2048}
_TOKENS_ON_ACCELERATOR = 16384

_NO_IDS = TableIds(0, 0)  # where a model reads none


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with its parameters, a copy on every device.

    Attributes:
      step: of the checkpoint; None for a Hugging Face folder.
      inventory: the names of its language and script rows.
      has_head: False for a plain encoder, which predicts no pieces.
      max_length: the most tokens of a sentence; later positions do not exist or are untrained.
      tokens: what it was trained on of each language-script; empty where that is not known.
    """

    path: Path
    step: int | None
    model: LangSamp
    params: Any
    tokenizer: Tokenizer
    inventory: Inventory
    has_head: bool
    max_length: int
    tokens: dict[str, int]
    mesh: jax.sharding.Mesh

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def tokens_at_once(self) -> int:
        """Of a batch over all devices."""
        platform = self.mesh.devices.flat[0].platform
        return self.mesh.size * _TOKENS_AT_ONCE.get(platform, _TOKENS_ON_ACCELERATOR)

    def place(self, host: Any) -> Any:
        """Puts a batch on the devices, its rows divided among them."""
        return place(host, batch_sharding(self.mesh))

    def encoder_ids(self, language_script: str) -> TableIds:
        """The rows of the tables that the encoder needs: those of the input-side ablation.

        Raises:
          UserError: it needs them and has none for this language-script.
        """
        return self._ids(language_script) if self.config.placement == "input" else _NO_IDS

    def head_ids(self, language_script: str) -> TableIds:
        """The rows of the tables that the language-modelling head needs.

        Raises:
          UserError: the model has tables, and no row for this language-script.
        """
        return _NO_IDS if self.config.placement == "none" else self._ids(language_script)

    def _ids(self, language_script: str) -> TableIds:
        """A table that the model does not have needs no row."""
        any_code, known = self.inventory.extended([language_script]), self.inventory
        tables = Inventory(
            known.languages if self.config.use_language else any_code.languages,
            known.scripts if self.config.use_script else any_code.scripts,
        )
        return tables.ids(language_script)


def load_model(path: Path, step: int | None = None) -> LoadedModel:
    """Opens a run, at the checkpoint of ``step`` (default: the best), or a Hugging Face folder.

    Raises:
      UserError: it is neither, or its files do not fit together.
    """
    path, mesh = location(path), make_mesh(MeshConfig())
    if is_run(path):
        run = open_run(path)
        step, params = restore_params(run, step)
        parts = model_of(run), params, run.tokenizer, run.inventory
        return LoadedModel(path, step, *parts, True, run.sequence_length, run.tokens, mesh)
    if step is not None:
        raise UserError(f"{path} is a Hugging Face model, which has no steps; leave --step")
    return _from_hugging_face(path, mesh)


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run and no Hugging Face model; raises UserError where it is neither."""
    if (path / "run.json").exists():
        return True
    if (path / "config.json").exists():
        return False
    raise UserError(f"{path} is neither a run (run.json) nor a Hugging Face model (config.json)")


def _from_hugging_face(path: Path, mesh: jax.sharding.Mesh) -> LoadedModel:
    pretrained = open_pretrained(path)
    inventory = pretrained.inventory or EMPTY
    fields = {"placement": "none", **pretrained.dropout, **pretrained.fields}
    config, tokenizer = ModelConfig(**fields), _tokenizer(path)
    sizes = len(inventory.languages), len(inventory.scripts)
    model = LangSamp(config, tokenizer.vocab_size, *sizes)
    pretrained.check(config)
    if vocabulary_rows(pretrained, tokenizer) is not None:
        raise UserError(f"{path}: its tokenizer does not fit its {pretrained.vocab_size:,} pieces")
    places = jax.tree.map(lambda _: replicated(mesh), param_shapes(model))
    params = load_params(pretrained, model, None, places, InitConfig(), seed=0)
    parts = model, params, tokenizer, inventory
    return LoadedModel(path, None, *parts, pretrained.has_head, config.max_length, {}, mesh)


def _tokenizer(path: Path) -> Tokenizer:
    names = ("sentencepiece.bpe.model", "tokenizer.json", "vocab.txt")
    for name in names:
        if (path / name).exists():
            return load_tokenizer(path / name)
    raise UserError(f"{path} has no tokenizer ({', '.join(names)})")
