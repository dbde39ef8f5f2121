"""XLM-R with a language vector and a script vector in front of the language-modelling head.

Parameters are float32 and carry logical axis names; ``sharding.py`` maps the names to a mesh.
Layers are stacked along a leading axis and scanned, so compilation does not grow with depth.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from langsamp_jax.config import configurable, require
from langsamp_jax.models.attention import AttentionSpec, Implementation, attend
from langsamp_jax.models.embedding import lookup
from langsamp_jax.models.layers import Dense, Dropout, gather_tokens

VOCAB_MULTIPLE = 128  # the vocabulary is padded to this inside the model, so that it can be sharded


@configurable("model")
class ModelConfig:
    """The architecture; XLM-R base unless said otherwise. Sizes of the vocabulary and of the two
    tables come from the data, not from here.

    ``architecture``: ``xlm-roberta``; ``xlm-roberta-xl`` (XL and XXL), which normalises what goes
    into a block and the last output, not what comes out of each; or ``bert`` (multilingual BERT),
    which differs from XLM-R in names and settings only.
    ``placement``: where the language and script vectors are added: to the encoder's ``output``
    (LangSAMP), to the word embeddings at the ``input``, or nowhere (``none``, plain XLM-R).
    ``tables``: how the two tables are trained: as they should be, or as controls, either ``frozen``
    at their random start, or with each row of text taking the ids of a random row of its batch
    (``shuffled``), so that the vectors are there and say nothing.
    ``attention``: its implementation, see ``attention.py``; ``auto`` is the quickest.
    ``remat``: what the backward pass recomputes instead of keeping it: nothing (``none``), all of a
    layer but its matrix products (``products``), or all of it (``layer``).
    """

    architecture: Literal["xlm-roberta", "xlm-roberta-xl", "bert"] = "xlm-roberta"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_length: int = 512
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    placement: Literal["output", "input", "none"] = "output"
    use_language: bool = True
    use_script: bool = True
    tables: Literal["trained", "frozen", "shuffled"] = "trained"
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Implementation = "auto"
    remat: Literal["none", "products", "layer"] = "none"

    def check(self) -> None:
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        for field in (*sizes, "max_length"):
            require(getattr(self, field) > 0, self, field, "a whole number above 0")
        for field in ("hidden_dropout", "attention_dropout"):
            require(0 <= getattr(self, field) < 1, self, field, "0 or more, below 1")
        for field in ("layer_norm_eps", "initializer_range"):
            require(getattr(self, field) > 0, self, field, "a number above 0")
        divides = self.hidden_size % self.num_attention_heads == 0
        require(
            divides, self, "num_attention_heads", f"a divisor of hidden_size {self.hidden_size}"
        )
        chosen = self.placement == "none" or self.use_language or self.use_script
        require(chosen, self, "placement", "'none' where neither language nor script is used")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def norm_first(self) -> bool:
        return self.architecture == "xlm-roberta-xl"


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
        table = _init(config, "vocab", "embed")
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
        language_ids: jax.Array | None = None,
        script_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits of every position: float32 [batch, length, vocab]. For small inputs."""
        ids = language_ids, script_ids
        hidden = self.encode(tokens, attention_mask, *ids, deterministic=deterministic)
        features, size = self.features(hidden, *ids), self.vocab_size
        table = self.word_embeddings[:size].astype(features.dtype)
        return (features @ table.T).astype(jnp.float32) + self.decoder_bias[:size]

    def predict(
        self,
        tokens: jax.Array,
        attention_mask: jax.Array,
        language_ids: jax.Array | None,
        script_ids: jax.Array | None,
        positions: jax.Array,
        deterministic: bool,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What ``decoder_loss`` needs for some positions of each row: int32 [batch, positions].

        Returns:
          features [batch, positions, hidden_size], the tied table (see ``lookup``), and its bias.
        """
        embedded, table = self._embed(tokens, language_ids, script_ids)
        hidden = self.encoder(embedded, attention_mask, deterministic)[0]
        hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
        return self.features(hidden, language_ids, script_ids), table, self.decoder_bias

    def encode(
        self,
        tokens: jax.Array,
        attention_mask: jax.Array,
        language_ids: jax.Array | None = None,
        script_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """The last layer's states. The ids matter with ``placement = input`` only.

        Args:
          tokens: int32 [batch, length].
          attention_mask: bool [batch, length], False on padding.
          language_ids, script_ids: int32 [batch].
          deterministic: without dropout; otherwise the rng ``dropout`` is needed.

        Returns:
          [batch, length, hidden_size] in the compute dtype.
        """
        embedded, _ = self._embed(tokens, language_ids, script_ids)
        return self.encoder(embedded, attention_mask, deterministic)[0]

    def hidden_states(
        self,
        tokens: jax.Array,
        attention_mask: jax.Array,
        language_ids: jax.Array | None = None,
        script_ids: jax.Array | None = None,
    ) -> jax.Array:
        """[layers + 1, batch, length, hidden_size]: the embeddings, then each layer's output."""
        embedded, _ = self._embed(tokens, language_ids, script_ids)
        return self.encoder(embedded, attention_mask, deterministic=True, every_layer=True)[1]

    def features(
        self, hidden: jax.Array, language_ids: jax.Array | None, script_ids: jax.Array | None
    ) -> jax.Array:
        """What the decoder multiplies: [batch, positions, hidden_size] from encoder states."""
        if self.config.placement == "output":
            hidden = hidden + self.conditioning(language_ids, script_ids)[:, None]
        return self.head(hidden)

    def _embed(
        self, tokens: jax.Array, language_ids: jax.Array | None, script_ids: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        embedded, table = lookup(self.word_embeddings, tokens, self.config.dtype)
        if self.config.placement == "input":
            embedded = embedded + self.conditioning(language_ids, script_ids)[:, None]
        return embedded, table


def attention_spec(config: ModelConfig, platform: str, length: int) -> AttentionSpec:
    """What decides how a model attends while it is trained on rows of ``length`` tokens."""
    dropout = config.attention_dropout > 0
    return AttentionSpec(platform, config.dtype, config.head_size, length, dropout)


def init_params(model: LangSamp, key: jax.Array) -> Any:
    """Fresh parameters, each boxed with the logical names of its axes."""
    tokens, ids = jnp.zeros((1, 8), jnp.int32), jnp.zeros(1, jnp.int32)
    return model.init(key, tokens, jnp.ones((1, 8), bool), ids, ids)["params"]


class Conditioning(nn.Module):
    """E_lang[language] + E_script[script], or one of the two."""

    config: ModelConfig
    num_languages: int
    num_scripts: int

    @nn.compact
    def __call__(self, language_ids: jax.Array, script_ids: jax.Array) -> jax.Array:
        config, total = self.config, jnp.zeros((), self.config.dtype)
        if config.use_language:
            total = total + self._vectors("language", self.num_languages, language_ids)
        if config.use_script:
            total = total + self._vectors("script", self.num_scripts, script_ids)
        return total

    def _vectors(self, name: str, rows: int, ids: jax.Array) -> jax.Array:
        config = self.config
        table = self.param(name, _init(config, None, "embed"), (rows, config.hidden_size))
        table = jax.lax.stop_gradient(table) if config.tables == "frozen" else table
        return table[ids].astype(config.dtype)


class Encoder(nn.Module):
    """Learned positions, then the stack of blocks, with a LayerNorm in front of it or behind it.

    Between the blocks the states are a matrix with a row for each token, which lies over all
    devices (``tokens``); inside, each device has all tokens of its rows (``batch``).
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        embedded: jax.Array,
        attention_mask: jax.Array,
        deterministic: bool,
        every_layer: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The last layer's [batch, length, hidden_size]; with ``every_layer`` all of them too."""
        config = self.config
        shape = (config.max_length, config.hidden_size)
        positions = self.param("position_embeddings", _init(config, None, "embed"), shape)
        x = embedded + positions[: embedded.shape[1]].astype(config.dtype)
        x = x.reshape(-1, config.hidden_size)
        layer_norm = _layer_norm(config, "layer_norm")
        x = x if config.norm_first else layer_norm(x)
        x = Dropout(config.hidden_dropout)(x, deterministic)
        x = nn.with_logical_constraint(x, ("tokens", None))

        stack = nn.scan(
            _rematerialised(config),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.num_hidden_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        last, states = stack(config, name="layers")(x, attention_mask, deterministic, every_layer)
        last = layer_norm(last) if config.norm_first else last
        last = last.reshape(embedded.shape)
        if not every_layer:
            return last, None
        states = [part.reshape(-1, *embedded.shape) for part in (x, states[:-1], last)]
        return last, jnp.concatenate(states)


class Block(nn.Module):
    """Self-attention and feed-forward, each a residual with LayerNorm behind it or in front."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, attention_mask: jax.Array, deterministic: bool, every_layer: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        config = self.config
        dropout = Dropout(config.hidden_dropout)
        attention_norm = _layer_norm(config, "attention_layer_norm")
        output_norm = _layer_norm(config, "output_layer_norm")

        def self_attention(x: jax.Array) -> jax.Array:
            y = Attention(config, name="attention")(x, attention_mask, deterministic)
            return dropout(y, deterministic)

        def feed_forward(x: jax.Array) -> jax.Array:
            y = _dense(config, config.intermediate_size, ("embed", "mlp"), "intermediate")(x)
            y = nn.gelu(y, approximate=False)
            y = _dense(config, config.hidden_size, ("mlp", "embed"), "output")(y)
            return dropout(y, deterministic)

        for norm, part in ((attention_norm, self_attention), (output_norm, feed_forward)):
            if config.norm_first:
                x = x + part(gather_tokens(norm(x)))
            else:
                x = norm(x + part(gather_tokens(x)))
            x = nn.with_logical_constraint(x, ("tokens", None))
        return x, x if every_layer else None


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of each row."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, attention_mask: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config
        heads = (*attention_mask.shape, config.num_attention_heads, config.head_size)
        query, key, value = (
            _by_heads(
                _dense(config, config.hidden_size, ("embed", "heads"), name)(x).reshape(heads)
            )
            for name in ("query", "key", "value")
        )
        drops = config.attention_dropout > 0 and not deterministic
        dropout = functools.partial(Dropout(config.attention_dropout), deterministic=False)
        mixed = attend(
            query, key, value, attention_mask, config.attention, dropout if drops else None
        )
        mixed = _by_heads(mixed).reshape(x.shape)
        return _dense(config, config.hidden_size, ("heads", "embed"), "output")(mixed)


class Head(nn.Module):
    """Dense, GELU, LayerNorm: the part of the language-modelling head before the decoder."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        config, shape = self.config, hidden.shape
        x = hidden.reshape(-1, config.hidden_size)
        x = _dense(config, config.hidden_size, ("embed", "mlp"), "dense")(gather_tokens(x))
        x = _layer_norm(config, "layer_norm")(nn.gelu(x, approximate=False))
        return x.reshape(shape)


def _by_heads(x: jax.Array) -> jax.Array:
    """[batch, length, heads, head_size] with the heads split, not the rows once more."""
    return nn.with_logical_constraint(x, ("batch", None, "heads", None))


def _rematerialised(config: ModelConfig) -> type[Block]:
    """``Block``, or one that recomputes in the backward pass what ``config.remat`` says."""
    if config.remat == "none":
        return Block
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return nn.remat(
        Block,
        prevent_cse=False,
        static_argnums=(3, 4),
        policy=policy if config.remat == "products" else None,
    )


def _init(config: ModelConfig, *axes: str | None) -> nn.initializers.Initializer:
    return nn.with_logical_partitioning(nn.initializers.normal(config.initializer_range), axes)


def _dense(config: ModelConfig, features: int, axes: tuple[str, str], name: str) -> Dense:
    return Dense(features, axes, config.dtype, config.initializer_range, name=name)


def _layer_norm(config: ModelConfig, name: str) -> nn.LayerNorm:
    """Statistics in float32 whatever the compute dtype (the library's default)."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=config.dtype, name=name)
