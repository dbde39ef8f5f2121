"""Masked language modelling: what predicting the hidden tokens costs."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from langsamp_jax.data.feed import Batch
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.costs import step_flops
from langsamp_jax.models.embedding import decoder_loss
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.objectives.masking import ObjectiveConfig, mask_rows
from langsamp_jax.text.tokenizer import Vocabulary


class MaskedExamples(NamedTuple):
    """Holds what the loss reads: the fields of ``Masking``, and what the model takes with them."""

    inputs: jax.Array
    attention_mask: jax.Array
    ids: TableIds
    positions: jax.Array
    targets: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True)
class MaskedLm:
    """Sums the cross-entropy of hidden tokens. See ``objectives/base.py`` for the contract.

    Attributes:
      shuffle_ids: the control that gives each row the table rows of a random row of its batch.
    """

    model: LangSamp
    vocabulary: Vocabulary
    config: ObjectiveConfig
    shuffle_ids: bool = False

    def prepare(self, keys: jax.Array, batch: Batch) -> MaskedExamples:
        ids = _shuffled(keys, batch.ids) if self.shuffle_ids else batch.ids
        rows = batch.tokens, batch.attention_mask
        masking = mask_rows(keys, *rows, self.vocabulary, self.config)
        return MaskedExamples(attention_mask=batch.attention_mask, ids=ids, **masking._asdict())

    def loss(
        self, params: Any, examples: MaskedExamples, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        dropout = dropout_key is not None and self.model.config.has_dropout
        features, table, bias = self.model.apply(
            {"params": params},
            examples.inputs,
            examples.attention_mask,
            examples.ids,
            examples.positions,
            deterministic=not dropout,
            rngs={"dropout": dropout_key} if dropout else None,
            method=self.model.predict,
        )
        total, losses = decoder_loss(
            features.reshape(-1, features.shape[-1]),
            table,
            bias,
            examples.targets.reshape(-1),
            examples.weights.reshape(-1),
            self.model.vocab_size,
            self.config.logits_at_once,
        )
        row_sums = losses.reshape(examples.weights.shape).sum(axis=1)
        return total, (row_sums, examples.weights.sum(axis=1).astype(jnp.float32))

    def step_flops(self, rows: int, length: int) -> float:
        model, num_targets = self.model, self.config.num_targets(length)
        return step_flops(model.config, model.vocab_size, rows, length, num_targets)


def _shuffled(keys: jax.Array, ids: TableIds) -> TableIds:
    """Returns the ids of the rows in a random order, which every row's key has a part in."""
    shuffle_keys = jax.vmap(lambda key: jax.random.split(key, 4)[3])(keys)
    order = jnp.argsort(jax.vmap(jax.random.uniform)(shuffle_keys))
    return jax.tree.map(lambda rows: rows[order], ids)
