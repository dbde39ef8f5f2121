"""XLM-R with a language vector and a script vector in front of the language-modelling head.

Parameters are float32 and carry logical axis names; ``sharding.py`` maps the names to a mesh.
Layers are stacked along a leading axis and scanned, so compilation does not grow with depth.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from langsamp_jax.config import configurable, require

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
    ``remat``: ``layer`` recomputes each layer in the backward pass instead of keeping it.
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
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "layer"] = "none"

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

    The decoder is tied to the word embeddings and is applied by the objective, in chunks; see
    ``decoder``.
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
        features = self.features(hidden, *ids)
        table, bias = self.decoder()
        return (features @ table.T).astype(jnp.float32)[..., : self.vocab_size] + bias[
            : self.vocab_size
        ]

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
        embedded = self._embed(tokens, language_ids, script_ids)
        return self.encoder(embedded, attention_mask, deterministic)[0]

    def hidden_states(
        self,
        tokens: jax.Array,
        attention_mask: jax.Array,
        language_ids: jax.Array | None = None,
        script_ids: jax.Array | None = None,
    ) -> jax.Array:
        """[layers + 1, batch, length, hidden_size]: the embeddings, then each layer's output."""
        embedded = self._embed(tokens, language_ids, script_ids)
        return self.encoder(embedded, attention_mask, deterministic=True, every_layer=True)[1]

    def features(
        self, hidden: jax.Array, language_ids: jax.Array | None, script_ids: jax.Array | None
    ) -> jax.Array:
        """What the decoder multiplies: [batch, positions, hidden_size] from encoder states."""
        if self.config.placement == "output":
            hidden = hidden + self.conditioning(language_ids, script_ids)[:, None]
        return self.head(hidden)

    def decoder(self) -> tuple[jax.Array, jax.Array]:
        """The tied table [padded vocab, hidden_size] in the compute dtype, the bias in float32."""
        return self.word_embeddings.astype(self.config.dtype), self.decoder_bias

    def _embed(
        self, tokens: jax.Array, language_ids: jax.Array | None, script_ids: jax.Array | None
    ) -> jax.Array:
        embedded = self.word_embeddings[tokens].astype(self.config.dtype)
        if self.config.placement == "input":
            embedded = embedded + self.conditioning(language_ids, script_ids)[:, None]
        return embedded


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
        config, init = self.config, _init(self.config, None, "embed")
        total = jnp.zeros((), config.dtype)
        if config.use_language:
            table = self.param("language", init, (self.num_languages, config.hidden_size))
            total = total + table[language_ids].astype(config.dtype)
        if config.use_script:
            table = self.param("script", init, (self.num_scripts, config.hidden_size))
            total = total + table[script_ids].astype(config.dtype)
        return total


class Encoder(nn.Module):
    """Learned positions, then the stack of blocks, with a LayerNorm in front of it or behind it."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        embedded: jax.Array,
        attention_mask: jax.Array,
        deterministic: bool,
        every_layer: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        config = self.config
        length = embedded.shape[1]
        shape = (config.max_length, config.hidden_size)
        positions = self.param("position_embeddings", _init(config, None, "embed"), shape)
        x = embedded + positions[:length].astype(config.dtype)
        layer_norm = _layer_norm(config, "layer_norm")
        x = x if config.norm_first else layer_norm(x)
        x = nn.Dropout(config.hidden_dropout)(x, deterministic)
        x = nn.with_logical_constraint(x, ("batch", "length", None))

        block = (
            nn.remat(Block, prevent_cse=False, static_argnums=(3, 4))
            if config.remat == "layer"
            else Block
        )
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.num_hidden_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        last, states = stack(config, name="layers")(x, attention_mask, deterministic, every_layer)
        last = layer_norm(last) if config.norm_first else last
        return last, jnp.concatenate([x[None], states[:-1], last[None]]) if every_layer else None


class Block(nn.Module):
    """Self-attention and feed-forward, each a residual with LayerNorm behind it or in front."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, attention_mask: jax.Array, deterministic: bool, every_layer: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        config = self.config
        dropout = nn.Dropout(config.hidden_dropout, deterministic=deterministic)
        attention_norm = _layer_norm(config, "attention_layer_norm")
        output_norm = _layer_norm(config, "output_layer_norm")

        def attend(x: jax.Array) -> jax.Array:
            return Attention(config, name="attention")(x, attention_mask, deterministic)

        def feed_forward(x: jax.Array) -> jax.Array:
            y = _dense(config, config.intermediate_size, "intermediate", ("embed", "mlp"))(x)
            y = nn.gelu(y, approximate=False)
            return _dense(config, config.hidden_size, "output", ("mlp", "embed"))(y)

        if config.norm_first:
            x = x + dropout(attend(attention_norm(x)))
            x = x + dropout(feed_forward(output_norm(x)))
        else:
            x = attention_norm(x + dropout(attend(x)))
            x = output_norm(x + dropout(feed_forward(x)))
        x = nn.with_logical_constraint(x, ("batch", "length", None))
        return x, x if every_layer else None


class Attention(nn.Module):
    """Multi-head self-attention; padding is never attended to."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, attention_mask: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config
        heads = (*x.shape[:2], config.num_attention_heads, config.head_size)
        query, key, value = (
            _dense(config, config.hidden_size, name, ("embed", "heads"))(x).reshape(heads)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = scores / config.head_size**0.5
        scores = jnp.where(attention_mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = nn.softmax(scores).astype(config.dtype)
        weights = nn.Dropout(config.attention_dropout)(weights, deterministic)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return _dense(config, config.hidden_size, "output", ("heads", "embed"))(mixed)


class Head(nn.Module):
    """Dense, GELU, LayerNorm: the part of the language-modelling head before the decoder."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        x = _dense(self.config, self.config.hidden_size, "dense", ("embed", "mlp"))(hidden)
        return _layer_norm(self.config, "layer_norm")(nn.gelu(x, approximate=False))


def _init(config: ModelConfig, *axes: str | None) -> nn.initializers.Initializer:
    return nn.with_logical_partitioning(nn.initializers.normal(config.initializer_range), axes)


def _dense(config: ModelConfig, features: int, name: str, axes: tuple[str, str]) -> nn.Dense:
    """A dense layer whose kernel is [in, out] with these logical names."""
    return nn.Dense(
        features,
        dtype=config.dtype,
        kernel_init=_init(config, *axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        name=name,
    )


def _layer_norm(config: ModelConfig, name: str) -> nn.LayerNorm:
    """Statistics in float32 whatever the compute dtype (the library's default)."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=config.dtype, name=name)
