"""What is evaluated: the model of a run or of a Hugging Face folder, whichever it is.

So XLM-R, Glot500-m, published LangSAMP checkpoints and our own runs are compared by the same code.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

import jax
import numpy as np

from langsamp_jax.data.feed import place
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.batching import bucketed_batches, repeat_ids, split_lines
from langsamp_jax.evaluation.encoder import (
    Encode,
    protocol_layer,
    reference_means,
    sentence_encoder,
)
from langsamp_jax.huggingface.folder import why_no_model
from langsamp_jax.huggingface.loading import load_params, vocabulary_rows
from langsamp_jax.huggingface.pretrained import InitConfig, open_pretrained
from langsamp_jax.io.storage import location
from langsamp_jax.languages.inventory import EMPTY, Inventory, TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.edits import Edit, apply_edits
from langsamp_jax.models.langsamp import LangSamp, param_shapes
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from langsamp_jax.parallel.sharding import batch_sharding, use_mesh
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer
from langsamp_jax.training.checkpoint import model_of, restore_params
from langsamp_jax.training.run import open_run

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
    _encoders: dict[int, Encode] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def tokens_at_once(self) -> int:
        """Returns the most tokens of a batch over all devices."""
        platform = self.mesh.devices.flat[0].platform
        return self.mesh.size * _TOKENS_AT_ONCE.get(platform, _TOKENS_ON_ACCELERATOR)

    def place(self, host: Any) -> Any:
        """Puts a batch on the devices, its rows divided among them."""
        return place(host, batch_sharding(self.mesh))

    def edited(self, edits: Sequence[Edit], reference: Path | None = None) -> "LoadedModel":
        """Returns the model after edits of its parameters, see ``models/edits.py``.

        Args:
          reference: a folder of text, ``iso639-3_Script.txt``, for edits that put in a mean.

        Raises:
          UserError: it lacks what an edit is about; a mean is needed, and there is no text.
        """
        means = reference_means(self, edits, reference)
        model, params = apply_edits(edits, self.model, self.params, means)
        return dataclasses.replace(self, model=model, params=params)

    def encode(
        self, sentences: Sequence[str], language: str | None = None, layer: int | None = None
    ) -> np.ndarray:
        """Returns a vector of each sentence: the mean over its tokens of one layer's states.

        Sentences longer than ``max_length`` tokens are cut.

        Args:
          language: the language-script of all of them, ``deu_Latn``. Only a model with its vectors
            at the input reads it.
          layer: by default the one that the retrieval protocol compares, two thirds of the way up;
            0 is the embeddings.

        Returns:
          float32 [sentences, hidden_size].

        Raises:
          UserError: there is no such layer, or the model needs a language and has no vector of it.
        """
        if isinstance(sentences, str):
            raise UserError("encode takes a list of sentences; put the one sentence in a list")
        layer = self.layer(layer)
        if layer not in self._encoders:
            self._encoders[layer] = sentence_encoder(self, [layer])
        return self._encoders[layer](sentences, language).vectors[0]

    def layer(self, layer: int | Literal["last"] | None) -> int:
        """Returns the number of a layer; None: the one that the retrieval protocol compares.

        Raises:
          UserError: there is no such layer; those that there are are named.
        """
        top = self.config.num_hidden_layers
        number = {None: protocol_layer(self), "last": top}.get(layer, layer)
        if not 0 <= number <= top:
            raise UserError(f"layer {layer}: {self.path} has the layers 0 (embeddings) to {top}")
        return number

    def fill_mask(
        self, text: str, language: str | None = None, top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """Predicts what stands at each mask of a text, all from the same context.

        Args:
          text: has the tokenizer's mask, ``<mask>`` or ``[MASK]``, once or more.
          language: the language-script whose vectors the head adds, ``deu_Latn``; a model without
            such vectors needs none.
          top: how many pieces are named.

        Returns:
          for each mask, in order, the ``top`` likeliest pieces as they read in a text, with a space
          where a word begins, and their probabilities among all pieces; the likeliest first.

        Raises:
          UserError: the model has no head, or no vector of this language; the text has no mask or
            is longer than ``max_length`` tokens.
        """
        if not self.has_head:
            raise UserError(f"{self.path} is a plain encoder; fill_mask needs a model with a head")
        if top < 1:
            raise UserError(f"top = {top}: expected a whole number above 0")
        ids, vocabulary = self._masked_ids(text), self.tokenizer.vocabulary
        positions = np.flatnonzero(ids == vocabulary.mask_id)
        shape = vocabulary.pad_id, self.max_length, 1, self.mesh.size  # the smallest batch
        (batch,) = bucketed_batches([ids], *shape)
        rows = len(batch.tokens)
        tables = repeat_ids(self.head_ids(language), rows)
        places = np.tile(positions.astype(np.int32), (rows, 1))
        with use_mesh(self.mesh):
            inputs = self.place((batch.tokens, batch.attention_mask, tables, places))
            probabilities = np.asarray(_probabilities(self.model, self.params, *inputs))[0]
        likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        return [
            [(self.tokenizer.surfaces[piece], float(row[piece])) for piece in pieces]
            for pieces, row in zip(likeliest, probabilities, strict=True)
        ]

    def _masked_ids(self, text: str) -> np.ndarray:
        """Returns the ids of a text in which the name of the mask is the mask, int32 [tokens].

        What stands between two masks is tokenized for itself, as ``transformers`` does it.
        """
        vocabulary = self.tokenizer.vocabulary
        mask = self.tokenizer.pieces[vocabulary.mask_id]
        parts = split_lines(*self.tokenizer.encode(text.split(mask)))
        if len(parts) < 2:
            raise UserError(f"the text has no {mask}: put it where a piece is to be predicted")
        ids = [parts[0][:-1]]  # from <s> on
        for part in parts[1:]:
            ids += [np.array([vocabulary.mask_id], np.int32), part[1:-1]]
        ids = np.concatenate([*ids, parts[-1][-1:]])  # to </s>
        if len(ids) > self.max_length:
            raise UserError(
                f"the text has {len(ids)} tokens, {self.path} reads {self.max_length}; shorten it"
            )
        return ids

    def encoder_ids(self, language_script: str | None) -> TableIds:
        """Returns the rows of the tables that the encoder needs, for the input-side ablation only.

        Raises:
          UserError: it needs them and has none for this language-script.
        """
        return self._ids(language_script) if self.config.placement == "input" else _NO_IDS

    def head_ids(self, language_script: str | None) -> TableIds:
        """Returns the rows of the tables that the language-modelling head needs.

        Raises:
          UserError: the model has tables, and no row for this language-script.
        """
        return _NO_IDS if self.config.placement == "none" else self._ids(language_script)

    def _ids(self, language_script: str | None) -> TableIds:
        """Returns the rows of a language-script; a table that the model lacks needs none."""
        if language_script is None:
            raise UserError(f"{self.path} needs the language of the text, for example deu_Latn")
        any_code, own = self.inventory.extended([language_script]), self.inventory
        tables = Inventory(
            own.languages if self.config.use_language else any_code.languages,
            own.scripts if self.config.use_script else any_code.scripts,
        )
        return tables.ids(language_script)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(
    model: LangSamp,
    params: Any,
    tokens: jax.Array,
    attention_mask: jax.Array,
    ids: TableIds,
    positions: jax.Array,
) -> jax.Array:
    """Computes those of all pieces at some positions of each row: float32 [rows, positions,
    vocabulary]."""
    inputs = tokens, attention_mask, ids, positions, True
    features, table, bias = model.apply({"params": params}, *inputs, method=model.predict)
    table = table[0].astype(features.dtype)  # the copies on the replicas are one and the same
    logits = (features @ table.T).astype(np.float32) + bias
    return jax.nn.softmax(logits[..., : model.vocab_size])


def load_model(path: str | PurePath, step: int | None = None) -> LoadedModel:
    """Opens a run, at a checkpoint or snapshot (default: the best checkpoint), or a Hugging Face
    folder.

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
    """Returns whether ``path`` is a run, not a Hugging Face model.

    Raises:
      UserError: it is neither.
    """
    if (path / "run.json").exists():
        return True
    if reason := why_no_model(path):
        raise UserError(reason)
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
