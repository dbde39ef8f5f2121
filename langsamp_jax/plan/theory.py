"""The least that the devices of a layout must send, to compare a compiled program with."""

import collections
import math

import jax
import numpy as np

from langsamp_jax.model import ModelConfig
from langsamp_jax.step import TrainState


def minimum_traffic(
    model: ModelConfig,
    state: TrainState,
    mesh: jax.sharding.Mesh,
    rows: int,
    length: int,
    num_targets: int,
    parts: int,
) -> dict[str, float]:
    """Bytes that a device sends in one step, by what for, with the algorithms of rings.

    Everything travels in the compute dtype. In each of the ``parts`` of a batch a parameter that
    is split over ``fsdp`` is gathered for the forward and again for the backward pass, and its
    gradient is reduced and scattered; where copies of it meet different rows, their gradients are
    summed once a step. A lookup in a table that is split over ``fsdp`` sends the vectors, not the
    table. Over ``tensor`` a layer sums its states twice in the forward and twice in the backward
    pass, and the head's inputs once in each. What is computed again is not sent again.

    Args:
      state: shapes with shardings.
      rows, length, num_targets: rows of a part on one device, and what a row holds.
    """
    item = 2 if model.dtype == "bfloat16" else 4
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    sent: dict[str, float] = collections.defaultdict(float)
    for leaf in jax.tree.leaves(state.params):
        split = {axis for part in leaf.sharding.spec for axis in _names(part)}
        shard = math.prod(leaf.sharding.shard_shape(leaf.shape)) * item
        if "fsdp" in split:
            sent["gather parameters"] += 2 * parts * shard * (fsdp - 1)
            sent["scatter gradients"] += parts * shard * (fsdp - 1)
        copies = math.prod(mesh.shape[axis] for axis in ("data", "fsdp") if axis not in split)
        sent["sum gradients"] += 2 * shard * _share(copies)
    states = rows * length * model.hidden_size * item
    sent["embedding lookup"] = parts * 2 * states * _share(fsdp)
    sent["embedding lookup"] += parts * 2 * states * _share(tensor)
    features = rows * num_targets * model.hidden_size * item
    sums = 4 * model.num_hidden_layers * states + 2 * features
    sent["sum activations"] = parts * 2 * sums * _share(tensor)
    return {name: float(amount) for name, amount in sent.items() if amount}


def _share(devices: int) -> float:
    """What a device of a ring sends of an array to gather it, or to reduce and scatter it."""
    return (devices - 1) / devices


def _names(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if part is None else tuple(np.atleast_1d(part).tolist())
