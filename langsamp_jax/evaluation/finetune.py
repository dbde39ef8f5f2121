"""Fine-tuning of an encoder with a small head, for whole sentences or for each word.

The protocol of XTREME, Glot500 and LangSAMP: train on the source language, keep the epoch that is
best on its development set, and test on every language as it is. The language and script vectors
play no part, except in the input-side ablation. Both kinds of task label positions: a sentence has
one label, at ``<s>``; a word has its own at its first piece.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.batching import bucketed_batches, padded, repeat_ids
from langsamp_jax.evaluation.config import Protocol
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.hardware.environment import random_key
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.models.layers import Dropout
from langsamp_jax.parallel.sharding import use_mesh
from langsamp_jax.training.optimizer import OptimizerConfig, make_optimizer
from langsamp_jax.training.step import TrainState

NO_LABEL = -1


class LabelledExamples(NamedTuple):
    """Examples: int32 [length] tokens of each, and int32 [width] labels of its first positions,
    ``NO_LABEL`` where there is none."""

    tokens: list[np.ndarray]
    labels: list[np.ndarray]
    truncated: int = 0  # examples that lost their end


class TaskHead(nn.Module):
    """XLM-R's classification head, or its linear head for tokens (``pooled`` False)."""

    config: ModelConfig
    num_labels: int
    pooled: bool

    @nn.compact
    def __call__(self, states: jax.Array, deterministic: bool) -> jax.Array:
        """Returns float32 logits [batch, width, num_labels] of states [batch, width, hidden]."""
        dense = functools.partial(
            nn.Dense, kernel_init=nn.initializers.normal(self.config.initializer_range)
        )
        dropout = Dropout(self.config.hidden_dropout)
        x = dropout(states.astype(jnp.float32), deterministic)
        if self.pooled:
            x = dropout(nn.tanh(dense(self.config.hidden_size, name="dense")(x)), deterministic)
        return dense(self.num_labels, name="output")(x)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """What a step of fine-tuning is compiled from; equal recipes share a compilation."""

    model: LangSamp
    head: TaskHead
    optimizer: OptimizerConfig
    num_updates: int

    def make_optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.optimizer, self.num_updates)

    def logits(self, params, tokens, attention_mask, ids, dropout_key=None) -> jax.Array:
        sure = dropout_key is None
        rngs = ({}, {})
        if not sure:
            rngs = [{"dropout": key} for key in jax.random.split(dropout_key)]
        inputs = tokens, attention_mask, ids
        states = self.model.apply(
            {"params": params["model"]}, *inputs, sure, rngs=rngs[0], method=self.model.encode
        )
        states = states[:, :1] if self.head.pooled else states
        return self.head.apply({"params": params["head"]}, states, sure, rngs=rngs[1])


class FineTuner:
    """The compiled functions of one task, for as many seeds as are wanted."""

    def __init__(
        self, trained: LoadedModel, protocol: Protocol, num_labels: int, num_examples: int
    ):
        self.trained, self.protocol = trained, protocol
        head = TaskHead(trained.config, num_labels, protocol.pooled)
        optimizer = OptimizerConfig(protocol.learning_rate, clip_norm=protocol.clip_norm)
        # The published schedule is as long as if every part were an update.
        scheduled = protocol.num_epochs * math.ceil(num_examples / protocol.part_size)
        self._recipe = _Recipe(trained.model, head, optimizer, scheduled)

    def start(self, seed: int) -> TrainState:
        """Returns the trained encoder and a random head: ``model`` and ``head`` of ``params``."""
        width = jnp.zeros((1, 1, self.trained.config.hidden_size))
        head = self._recipe.head.init(random_key(seed), width, True)["params"]
        params = jax.tree.map(jnp.copy, {"model": self.trained.params, "head": head})
        optimizer = self._recipe.make_optimizer()
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def update(
        self, state: TrainState, examples: LabelledExamples, ids: TableIds, seed: int
    ) -> tuple[TrainState, jax.Array]:
        """Takes one step on the mean loss over the labels of ``examples``; uses ``state`` up.

        Args:
          ids: rows of the language and script tables, for an encoder that needs them.

        Returns:
          the new state, and float32 [] the loss before it.
        """
        devices = self.trained.mesh.size
        rows = -(-len(examples.tokens) // devices) * devices
        longest = max(map(len, examples.tokens))
        length = max(16, 1 << (longest - 1).bit_length())  # few shapes: each compiles for long
        length = min(length, self.protocol.max_length, self.trained.max_length)
        pad_id = self.trained.tokenizer.vocabulary.pad_id
        tokens, attention_mask = padded(examples.tokens, rows, length, pad_id)
        labels = np.full((rows, 1 if self.protocol.pooled else length), NO_LABEL, np.int32)
        for row, label in zip(labels, examples.labels, strict=False):
            row[: len(label)] = label
        batch = tokens, attention_mask, repeat_ids(ids, rows), labels
        with use_mesh(self.trained.mesh):
            return _update(self._recipe, state, *self.trained.place(batch), random_key(seed))

    def predict(self, params: Any, examples: LabelledExamples, ids: TableIds) -> list[np.ndarray]:
        """Returns int [labels], the most likely label where an example has one, for each."""
        trained, outputs = self.trained, []
        pad_id = trained.tokenizer.vocabulary.pad_id
        limits = trained.max_length, trained.tokens_at_once, trained.mesh.size
        with use_mesh(trained.mesh):
            for batch in bucketed_batches(examples.tokens, pad_id, *limits):
                arguments = batch.tokens, batch.attention_mask, repeat_ids(ids, len(batch.tokens))
                best = _best(self._recipe, params, *trained.place(arguments))
                outputs.append((batch.chosen, best))
        predicted: list[Any] = [None] * len(examples.tokens)
        for chosen, best in outputs:
            for index, row in zip(chosen, np.asarray(best), strict=False):
                labels = examples.labels[index]
                predicted[index] = row[: len(labels)][labels != NO_LABEL]
        return predicted


@functools.partial(jax.jit, static_argnums=0)
def _best(recipe: _Recipe, params, tokens, attention_mask, ids) -> jax.Array:
    return recipe.logits(params, tokens, attention_mask, ids).argmax(axis=-1)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update(recipe: _Recipe, state, tokens, attention_mask, ids, labels, key):
    key = jax.random.fold_in(key, state.step)

    def mean_loss(params: Any) -> jax.Array:
        logits = recipe.logits(params, tokens, attention_mask, ids, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels.clip(0))
        weights = (labels != NO_LABEL).astype(jnp.float32)
        return (losses * weights).sum() / jnp.maximum(weights.sum(), 1)

    loss, gradients = jax.value_and_grad(mean_loss)(state.params)
    optimizer = recipe.make_optimizer()
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), loss


def batches(count: int, protocol: Protocol, seed: int, epoch: int) -> list[np.ndarray]:
    """Lists the examples of each update of an epoch, in an order that (seed, epoch) decides."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    whole = [order[i : i + protocol.batch_size] for i in range(0, count, protocol.batch_size)]
    size = protocol.part_size
    return [batch[(len(batch) - 1) // size * size :] for batch in whole]  # only the last part


def finetune(
    tuner: FineTuner,
    train: LabelledExamples,
    dev: LabelledExamples,
    ids: TableIds,
    seed: int,
    score: Callable[[Sequence[np.ndarray]], float],
    say: Callable[[str], None],
) -> tuple[Any, dict[str, Any]]:
    """Trains through all epochs.

    Args:
      score: of predictions for ``dev``; the higher the better.
      say: is told of each epoch.

    Returns:
      the parameters after the first of the best epochs, and its ``epoch`` (from 1), ``dev`` score
      and mean training ``loss``.

    Raises:
      UserError: the loss is no longer finite.
    """
    state, best, best_params = tuner.start(seed), None, None
    for epoch in range(1, tuner.protocol.num_epochs + 1):
        losses = []
        for chosen in batches(len(train.tokens), tuner.protocol, seed, epoch):
            batch = LabelledExamples(
                [train.tokens[i] for i in chosen], [train.labels[i] for i in chosen]
            )
            state, loss = tuner.update(state, batch, ids, seed)
            losses.append(loss)
        mean = float(np.mean([float(loss) for loss in losses]))
        if not math.isfinite(mean):
            raise UserError(
                f"seed {seed}, epoch {epoch}: the loss is {mean}; lower finetune.learning_rate"
            )
        record = {"epoch": epoch, "dev": score(tuner.predict(state.params, dev, ids)), "loss": mean}
        say(f"seed {seed}, epoch {epoch}: loss {mean:.4f}, dev {record['dev']:.4f}")
        if best is None or record["dev"] > best["dev"]:
            best, best_params = record, jax.tree.map(jnp.copy, state.params)
    return best_params, best
