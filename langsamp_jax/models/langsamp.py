"""XLM-R with a language vector and a script vector in front of the language-modelling head.

Parameters are float32 and carry logical axis names; ``parallel/sharding.py`` maps the names to a
mesh.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from langsamp_jax.hardware.environment import random_key
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.config import VOCAB_MULTIPLE, ModelConfig
from langsamp_jax.models.embedding import lookup
from langsamp_jax.models.layers import gather_tokens
from langsamp_jax.models.taps import Taps, unchanged
from langsamp_jax.models.transformer import Encoder, dense, layer_norm, normal_init


class LangSamp(nn.Module):
    """Encoder, language and script tables, and language-modelling head.

    The decoder is tied to the word embeddings and is applied by the objective, in chunks.
    """

    config: ModelConfig
    vocab_size: int
    num_languages: int
    num_scripts: int

    def setup(self) -> None:
        config = self.config
        table = normal_init(config, "vocab", "embed")
        padded = -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self.word_embeddings = self.param("word_embeddings", table, (padded, config.hidden_size))
        bias = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
        self.decoder_bias = self.param("decoder_bias", bias, (padded,))
        self.encoder = Encoder(config)
        self.head = Head(config)
        if config.placement != "none":
            self.conditioning = Conditioning(config, self.num_languages, self.num_scripts)

    def __call__(
        self,
        tokens: jax.Array,
        attention_mask: jax.Array,
        ids: TableIds | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Computes all logits, float32 [batch, length, vocab], of small inputs."""
        hidden = self.encode(tokens, attention_mask, ids, deterministic)
        features, size = self.features(hidden, ids), self.vocab_size
        table = self.word_embeddings[:size].astype(features.dtype)
        return (features @ table.T).astype(jnp.float32) + self.decoder_bias[:size]

    def predict(
        self,
        tokens: jax.Array,
        attention_mask: jax.Array,
        ids: TableIds | None,
        positions: jax.Array,
        deterministic: bool,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Computes what ``decoder_loss`` needs for some positions of each row.

        Args:
          positions: int32 [batch, positions]; the others as ``encode``.

        Returns:
          features [batch, positions, hidden_size], the tied table (see ``lookup``), and its bias.
        """
        embedded, table = self._embed(tokens, ids)
        hidden = self.encoder(embedded, attention_mask, deterministic)[0]
        hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
        return self.features(hidden, ids), table, self.decoder_bias

    def encode(
        self,
        tokens: jax.Array,
        attention_mask: jax.Array,
        ids: TableIds | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Computes the last layer's states. The ids matter with ``placement = input`` only.

        Args:
          tokens: int32 [batch, length].
          attention_mask: bool [batch, length], False on padding.
          ids: rows of the two tables, int32 [batch] each.
          deterministic: without dropout; otherwise the rng ``dropout`` is needed.

        Returns:
          [batch, length, hidden_size] in the compute dtype.
        """
        embedded, _ = self._embed(tokens, ids)
        return self.encoder(embedded, attention_mask, deterministic)[0]

    def read(
        self,
        tokens: jax.Array,
        attention_mask: jax.Array,
        ids: TableIds | None,
        taps: Taps,
        positions: jax.Array | None = None,
    ) -> dict[str, Any]:
        """Reads the encoder from inside, without dropout.

        Args:
          taps: see ``models/taps.py``.
          positions: bool [batch, length], what the taps are asked about; None: all tokens.

        Returns:
          what the tap of each site gives of each layer; of ``states`` the embeddings first.
        """
        embedded, _ = self._embed(tokens, ids)
        positions = attention_mask if positions is None else positions
        return self.encoder(embedded, attention_mask, True, taps, positions)[1]

    def hidden_states(
        self, tokens: jax.Array, attention_mask: jax.Array, ids: TableIds | None = None
    ) -> jax.Array:
        """Computes the states in front of the first layer and behind each, without dropout:
        [layers + 1, batch, length, hidden_size]."""
        return self.read(tokens, attention_mask, ids, (("states", unchanged),))["states"]

    def features(self, hidden: jax.Array, ids: TableIds | None) -> jax.Array:
        """Computes what the decoder multiplies from states, both [batch, positions, hidden_size].

        With ``placement = output`` the language and script vectors are added here.
        """
        if self.config.placement == "output":
            hidden = hidden + self.conditioning(ids)[:, None]
        return self.head(hidden)

    def _embed(self, tokens: jax.Array, ids: TableIds | None) -> tuple[jax.Array, jax.Array]:
        """Looks up the tokens; also returns the table, for the decoder (see ``lookup``)."""
        embedded, table = lookup(self.word_embeddings, tokens, self.config.dtype)
        if self.config.placement == "input":
            embedded = embedded + self.conditioning(ids)[:, None]
        return embedded, table


class Conditioning(nn.Module):
    """E_lang[language] + E_script[script], or one of the two: [batch, hidden_size]."""

    config: ModelConfig
    num_languages: int
    num_scripts: int

    @nn.compact
    def __call__(self, ids: TableIds) -> jax.Array:
        config, vectors = self.config, jnp.zeros((), self.config.dtype)
        if config.use_language:
            vectors = vectors + self._rows("language", self.num_languages, ids.language)
        if config.use_script:
            vectors = vectors + self._rows("script", self.num_scripts, ids.script)
        return vectors

    def _rows(self, name: str, rows: int, ids: jax.Array) -> jax.Array:
        """Returns the rows ``ids`` of a table, which is a parameter."""
        config = self.config
        table = self.param(name, normal_init(config, None, "embed"), (rows, config.hidden_size))
        table = jax.lax.stop_gradient(table) if config.tables == "frozen" else table
        return table[ids].astype(config.dtype)


class Head(nn.Module):
    """Dense, GELU, LayerNorm: the part of the language-modelling head before the decoder."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        config, shape = self.config, hidden.shape
        x = hidden.reshape(-1, config.hidden_size)
        x = dense(config, config.hidden_size, ("embed", "mlp"), "dense")(gather_tokens(x))
        x = layer_norm(config, "layer_norm")(nn.gelu(x, approximate=False))
        return x.reshape(shape)


def param_shapes(model: LangSamp) -> Any:
    """Returns shape and type of every parameter, without a device."""
    return nn.unbox(jax.eval_shape(lambda: init_params(model, random_key(0))))


def init_params(model: LangSamp, key: jax.Array) -> Any:
    """Draws fresh parameters, each boxed with the logical names of its axes."""
    tokens, row = jnp.zeros((1, 8), jnp.int32), jnp.zeros(1, jnp.int32)
    return model.init(key, tokens, jnp.ones((1, 8), bool), TableIds(row, row))["params"]
