"""Which tokens are hidden, and what stands in their place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from langsamp_jax.config import configurable, require
from langsamp_jax.text.tokenizer import Vocabulary


@configurable("objective")
class ObjectiveConfig:
    """BERT's masking with a fixed number of targets a row.

    Attributes:
      mask_rate: share of a row's tokens that are targets.
      mask_share: share of the targets that become <mask>.
      random_share: share of the targets that become a random piece; the rest stay.
      logits_at_once: most logits, 4 bytes each, that a device holds at a time.
    """

    mask_rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    logits_at_once: int = 2**27

    def check(self) -> None:
        require(0 < self.mask_rate <= 1, self, "mask_rate", "above 0, at most 1")
        for field in ("mask_share", "random_share"):
            require(0 <= getattr(self, field) <= 1, self, field, "0 to 1")
        together = self.mask_share + self.random_share <= 1 + 1e-9
        require(together, self, "random_share", "at most 1 - mask_share")
        require(self.logits_at_once > 0, self, "logits_at_once", "a whole number above 0")

    def num_targets(self, length: int) -> int:
        """Returns K: how many positions of a row of ``length`` valid tokens are predicted."""
        return max(1, round(self.mask_rate * length))


class Masking(NamedTuple):
    """Holds rows with some positions hidden. K is the same for all, so that shapes are static."""

    inputs: jax.Array  # int32 [batch, length]
    positions: jax.Array  # int32 [batch, K], distinct in a row
    targets: jax.Array  # int32 [batch, K], the tokens that stood there
    weights: jax.Array  # bool [batch, K], False where a short row has fewer targets


def mask_rows(
    keys: jax.Array,
    tokens: jax.Array,
    attention_mask: jax.Array,
    vocabulary: Vocabulary,
    config: ObjectiveConfig,
) -> Masking:
    """Chooses and hides exactly K positions a row, never special tokens or padding.

    A row of n < length valid tokens has round(mask_rate n) targets, at least one. The choice
    depends on the row's key alone, not on the other rows of the batch or where they are computed.

    Args:
      keys: one key a row, [batch].
      tokens: int32 [batch, length].
      attention_mask: bool [batch, length].
    """
    num_targets = config.num_targets(tokens.shape[1])
    specials = jnp.array(sorted(vocabulary.special_ids), jnp.int32)
    targets_by_length = jnp.array([config.num_targets(n) for n in range(tokens.shape[1] + 1)])

    def mask_row(key: jax.Array, row: jax.Array, valid: jax.Array) -> Masking:
        choice_key, action_key, random_key, _ = jax.random.split(key, 4)
        allowed = valid & ~jnp.isin(row, specials)
        score = jnp.where(allowed, jax.random.uniform(choice_key, row.shape), -1.0)
        score, positions = jax.lax.top_k(score, num_targets)
        weights = (score >= 0) & (jnp.arange(num_targets) < targets_by_length[valid.sum()])

        targets = row[positions]
        action = jax.random.uniform(action_key, (num_targets,))
        piece = _random_pieces(random_key, num_targets, vocabulary)
        replacement = jnp.where(
            action < config.mask_share,
            vocabulary.mask_id,
            jnp.where(action < config.mask_share + config.random_share, piece, targets),
        )
        inputs = row.at[positions].set(jnp.where(weights, replacement, targets))
        return Masking(inputs, positions, targets, weights)

    return jax.vmap(mask_row)(keys, tokens, attention_mask)


def _random_pieces(key: jax.Array, count: int, vocabulary: Vocabulary) -> jax.Array:
    """Draws int32 [count], uniform over the pieces that are not special."""
    specials = sorted(vocabulary.special_ids)
    piece = jax.random.randint(key, (count,), 0, vocabulary.size - len(specials))
    for special in specials:  # step over each special id in turn
        piece = piece + (piece >= special)
    return piece
