"""How much each block changes the states: what could tell beforehand which can be left out."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.evaluation.batching import bucketed_batches, repeat_ids
from langsamp_jax.evaluation.encoder import EncoderModel
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.models.taps import unchanged
from langsamp_jax.parallel.sharding import use_mesh

_TAPS = tuple((site, unchanged) for site in ("states", "attention", "feed_forward"))


def influences(
    model: EncoderModel, text: Iterable[tuple[str, Sequence[np.ndarray]]]
) -> dict[str, list[float]]:
    """Returns three predictors of what a layer is worth, means over the tokens of a text.

    Args:
      text: by language-script the ids of sentences, int32 [tokens] each.

    Returns:
      by layer: ``block``, 1 - cosine of what goes into a block and what comes out (block influence,
      Men et al. 2024); ``attention`` and ``ffn``, the norm of what the sub-layer adds relative to
      that of what goes into the block.
    """
    total = 0.0
    pad, limits = model.tokenizer.vocabulary.pad_id, (model.tokens_at_once, model.mesh.size)
    with use_mesh(model.mesh):
        for name, sentences in text:
            tables = model.encoder_ids(name)
            for batch in bucketed_batches(sentences, pad, model.max_length, *limits):
                ids = repeat_ids(tables, len(batch.tokens))
                inputs = model.place((batch.tokens, batch.attention_mask, ids))
                sums = _sums(model.model, model.params, *inputs)
                total = total + np.asarray(sums, np.float64)
    means = total[:3] / total[3]
    return dict(zip(("block", "attention", "ffn"), means.tolist(), strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _sums(
    model: LangSamp, params: Any, tokens: jax.Array, attention_mask: jax.Array, ids: TableIds
) -> jax.Array:
    """Returns float32 [4, layers]: sums of the three over tokens, and the number of tokens."""
    inputs = tokens, attention_mask, ids, _TAPS
    read = model.apply({"params": params}, *inputs, method=model.read)
    read = {site: values.astype(jnp.float32) for site, values in read.items()}
    before, after = read["states"][:-1], read["states"][1:]
    if model.config.norm_first:  # the last states are behind the final norm, which is no block's
        after = before + read["attention"] + read["feed_forward"]
    norm = jnp.linalg.norm(before, axis=-1)
    cosine = (before * after).sum(axis=-1) / (norm * jnp.linalg.norm(after, axis=-1))
    parts = [1 - cosine]
    parts += [jnp.linalg.norm(read[s], axis=-1) / norm for s in ("attention", "feed_forward")]
    weight = attention_mask.astype(jnp.float32)
    return jnp.stack([(part * weight).sum(axis=(1, 2)) for part in (*parts, jnp.ones_like(norm))])
