"""Which device holds what: one table from logical axis names to the axes of the mesh."""

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding

# Every parameter and activation axis has one of these names. Batches are split over ``data`` and
# ``fsdp``; parameters over ``fsdp`` along the embedding and over ``tensor`` along the rest. With
# both at 1 this is plain data parallelism.
RULES = (
    ("batch", ("data", "fsdp")),
    ("tokens", ("data", "fsdp", "tensor")),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("layers", None),
)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Lets the logical names of activations mean axes of ``mesh`` within the block."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its rows over the devices."""
    return NamedSharding(mesh, nn.logical_to_mesh_axes(("batch",), RULES))


def shardings(abstract: Any, mesh: Mesh) -> Any:
    """Returns the NamedSharding of every leaf of a tree whose leaves carry logical axis names."""
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(abstract), mesh, RULES)
