"""The least that the devices of a layout must send, to compare a compiled program with."""

import collections
import math

import jax

from langsamp_jax.models.config import ModelConfig
from langsamp_jax.training.step import TrainState


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

    In each of the ``parts`` of a batch a kernel that is split over ``fsdp`` is gathered for the
    forward and again for the backward pass, and its gradient is reduced and scattered. The table
    of word embeddings is not: see tied_embedding.py. Where copies of a parameter meet different
    rows, their gradients are summed once a step. Over ``tensor`` a layer sums its states twice in
    the forward and twice in the backward pass, and the head its features once in each. A layer that
    is computed again (``remat`` = ``layer``) gathers its states twice more and scatters them once;
    nothing else is counted as sent again. All of it travels in the compute dtype, but the gradient
    of the table in float32.

    Args:
      state: shapes with shardings.
      rows, length, num_targets: rows of a part on one device, and what a row holds.
    """
    item = 2 if model.dtype == "bfloat16" else 4
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    states = rows * length * model.hidden_size * item
    features = rows * num_targets * model.hidden_size * item
    sent: dict[str, float] = collections.defaultdict(float)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        is_table = getattr(path[-1], "key", None) == "word_embeddings"
        split = {axis for axes in leaf.sharding.spec for axis in _names(axes)}
        shard = math.prod(leaf.sharding.shard_shape(leaf.shape))
        if is_table:
            sent["table"] += parts * shard * (item + 4) * _share(fsdp)  # columns for pieces
            sent["table"] += parts * 2 * features * (fsdp - 1)  # to all pieces, and back
        elif "fsdp" in split:
            sent["gather kernels"] += parts * 2 * shard * item * (fsdp - 1)
            sent["scatter gradients"] += parts * shard * item * (fsdp - 1)
        copies = math.prod(mesh.shape[axis] for axis in ("data", "fsdp") if axis not in split)
        sent["sum gradients"] += 2 * shard * (4 if is_table else item) * _share(copies)
    sent["lookup"] = parts * (2 * states * _share(fsdp) + 2 * states * _share(tensor))
    sums = 4 * model.num_hidden_layers * states + 2 * features
    sent["sum activations"] = parts * 2 * sums * _share(tensor)
    if model.remat == "layer":
        again = 3 * model.num_hidden_layers * states
        sent["activations again"] = parts * again * _share(tensor)
    return {name: float(amount) for name, amount in sent.items() if amount}


def _share(devices: int) -> float:
    """What a device of a ring sends of an array to gather it, or to reduce and scatter it."""
    return (devices - 1) / devices


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else axes
