"""What neurons do over a text, pooled by sentence; and which positions of a sentence are read."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr

from langsamp_jax.models.taps import mean_over_positions, share_above_zero
from langsamp_jax.text.tokenizer import Tokenizer, WordPieceTokenizer

Positions = Callable[[np.ndarray], np.ndarray]  # int32 [tokens] -> bool [tokens], see encoder.py


def firing(values: jax.Array, positions: jax.Array) -> dict[str, jax.Array]:
    """Pools what neurons give, as a tap (see ``models/taps.py``) of the site ``neurons``.

    Returns:
      float32 by row: ``mean`` and ``share`` above zero, [rows, neurons]; ``flatness`` [rows, 2],
      the mean over the positions of ``flatness`` and of ``published_flatness``; and ``count`` of
      the positions, [rows, 1].
    """
    values = values.astype(jnp.float32)
    flat = jnp.stack([flatness(values), published_flatness(values)], axis=-1)
    return {
        "mean": mean_over_positions(values, positions),
        "share": share_above_zero(values, positions),
        "flatness": mean_over_positions(flat, positions),
        "count": positions.sum(axis=1, keepdims=True),
    }


def flatness(values: jax.Array) -> jax.Array:
    """Returns how evenly neurons share what they give above zero, from 0 (one gives all) to 1.

    It is H(p) / log n of p_j = max(a_j, 0) / sum max(a, 0), over the last axis; 0 where no neuron
    gives anything. Ours; see ``published_flatness``.
    """
    positive = jnp.maximum(values, 0)
    total = positive.sum(axis=-1, keepdims=True)
    entropy = entr(positive / jnp.where(total > 0, total, 1)).sum(axis=-1)
    return entropy / np.log(max(2, values.shape[-1]))


def published_flatness(values: jax.Array) -> jax.Array:
    """Returns -mean_j p_j log2 p_j of p = (a - min a) / (max(a - min a) - min a) + 1e-32.

    That is the formula of the authors of arXiv 2310.15552 in their own scripts. p sums to no 1, as
    its denominator mixes shifted with other values; they add it up over all tokens. Where the
    denominator is 0, as of neurons that all give 0, it is taken as 1.
    """
    least = values.min(axis=-1, keepdims=True)
    shifted = values - least
    spread = shifted.max(axis=-1, keepdims=True) - least
    p = shifted / jnp.where(spread == 0, 1, spread) + 1e-32
    return -(p * jnp.log2(p)).mean(axis=-1)


def all_tokens(tokenizer: Tokenizer) -> Positions:
    """Returns the positions of all tokens but special ones; unknown text is text."""
    is_token = _are_tokens(tokenizer)
    return lambda ids: is_token[ids]


def word_ends(tokenizer: Tokenizer) -> Positions:
    """Returns the position of the last piece of each word: of what stands between spaces.

    Where a text has no spaces, as in Chinese, a word is a sentence.
    """
    begins = np.array([surface.startswith(" ") for surface in tokenizer.surfaces])
    begins[[tokenizer.vocabulary.bos_id, tokenizer.vocabulary.eos_id]] = True
    begins[tokenizer.vocabulary.unk_id] = isinstance(tokenizer, WordPieceTokenizer)  # a whole word
    is_text = tokenizer.is_text
    return lambda ids: is_text[ids] & np.append(begins[ids[1:]], True)


def among(positions: Positions, pieces: np.ndarray) -> Positions:
    """Returns those of ``positions`` whose piece is one of ``pieces``, bool [vocabulary]."""
    return lambda ids: positions(ids) & pieces[ids]


def pieces_of(tokenizer: Tokenizer, lines: Iterable[str]) -> np.ndarray:
    """Returns which pieces occur in a text, bool [vocabulary]; special ones do not count."""
    counts = np.bincount(tokenizer.encode([*lines])[0], minlength=tokenizer.vocab_size)
    return (counts > 0) & _are_tokens(tokenizer)


def _are_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """Returns bool [vocabulary]: all but the special ones; unknown text is text."""
    vocabulary, are = tokenizer.vocabulary, np.ones(tokenizer.vocab_size, bool)
    are[[i for i in vocabulary.special_ids if i != vocabulary.unk_id]] = False
    return are


def over_tokens(readings: dict[str, Any]) -> np.ndarray:
    """Returns the mean flatness over all positions that were read, float [layers, 2]."""
    count = readings["count"].astype(np.float64)
    return (readings["flatness"] * count).sum(axis=1) / np.maximum(count.sum(axis=1), 1)
