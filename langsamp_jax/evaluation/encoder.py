"""Sentences to vectors: the mean over the tokens of what some layers give."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.evaluation.batching import bucketed_batches, repeat_ids, split_lines, truncate
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.parallel.sharding import use_mesh
from langsamp_jax.text.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """What an ``Encode`` gives of some sentences."""

    vectors: np.ndarray  # float32 [layers, sentences, hidden_size]
    truncated: np.ndarray  # bool [sentences]: which were longer than the model


Encode = Callable[[Sequence[str], str | None], Encoded]


class EncoderModel(Protocol):
    """What is read here of a ``LoadedModel``, where its members are described."""

    model: LangSamp
    params: Any
    tokenizer: Tokenizer
    max_length: int
    mesh: jax.sharding.Mesh

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tokens_at_once(self) -> int: ...

    def place(self, host: Any) -> Any: ...

    def encoder_ids(self, language_script: str | None) -> TableIds: ...


def protocol_layer(trained: EncoderModel) -> int:
    """Returns the layer that retrieval looks at, two thirds up; the embeddings are layer 0."""
    return round(trained.config.num_hidden_layers * 2 / 3)


def sentence_encoder(trained: EncoderModel, layers: Sequence[int]) -> Encode:
    """Returns a function from sentences of a language-script to their vectors at ``layers``.

    A vector is the mean over all of a sentence's tokens, specials included. Layer 0 is the
    embeddings; layers above the highest that is asked for are not computed. Longer sentences are
    cut to ``trained.max_length`` tokens.
    """
    model, params = lower_layers(trained.model, trained.params, max(layers))
    vocabulary = trained.tokenizer.vocabulary

    def encode(lines: Sequence[str], language_script: str | None) -> Encoded:
        sentences = split_lines(*trained.tokenizer.encode(lines))
        sentences, truncated = truncate(sentences, trained.max_length, vocabulary.eos_id)
        tables = trained.encoder_ids(language_script)
        limits = trained.max_length, trained.tokens_at_once, trained.mesh.size
        batches = []
        with use_mesh(trained.mesh):
            for batch in bucketed_batches(sentences, vocabulary.pad_id, *limits):
                ids = repeat_ids(tables, len(batch.tokens))
                arguments = trained.place((batch.tokens, batch.attention_mask, ids))
                means = _mean_states(model, tuple(layers), params, *arguments)
                batches.append((batch.chosen, means))
        vectors = np.zeros((len(layers), len(lines), model.config.hidden_size), np.float32)
        for chosen, means in batches:  # now, so that the devices never waited for the host
            vectors[:, chosen] = np.asarray(means, np.float32)[:, : len(chosen)]
        return Encoded(vectors, truncated)

    return encode


@functools.partial(jax.jit, static_argnums=(0, 1))  # compiled once for all checkpoints
def _mean_states(
    model: LangSamp,
    layers: tuple[int, ...],
    params: Any,
    tokens: jax.Array,
    attention_mask: jax.Array,
    ids: TableIds,
) -> jax.Array:
    """Returns float32 [layers, rows, hidden_size]; 0 for a row without tokens."""
    inputs = tokens, attention_mask, ids
    states = model.apply({"params": params}, *inputs, method=model.hidden_states)
    weight = attention_mask[..., None].astype(jnp.float32)
    sums = (states[jnp.array(layers)] * weight).sum(axis=2)
    return sums / jnp.maximum(weight.sum(axis=1), 1)


def lower_layers(model: LangSamp, params: Any, layer: int) -> tuple[LangSamp, Any]:
    """Returns the model cut off above a layer, whose states stay what they were.

    An encoder that normalises in front of its blocks does so behind the last one too: it keeps one
    block more, so that what was in the middle is not taken for the end.
    """
    config = model.config
    num_layers = min(config.num_hidden_layers, max(1, layer + config.norm_first))
    if num_layers == config.num_hidden_layers:
        return model, params
    encoder = params["encoder"]
    blocks = jax.tree.map(lambda leaf: leaf[:num_layers], encoder["layers"])
    params = {**params, "encoder": {**encoder, "layers": blocks}}
    config = dataclasses.replace(config, num_hidden_layers=num_layers)
    return model.clone(config=config), params
