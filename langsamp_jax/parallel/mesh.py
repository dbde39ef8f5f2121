"""The mesh: how the devices of a run are arranged."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from langsamp_jax.config import configurable, require
from langsamp_jax.errors import UserError
from langsamp_jax.hardware.environment import open_devices
from langsamp_jax.models.config import VOCAB_MULTIPLE, ModelConfig


@configurable("mesh")
class MeshConfig:
    """How many devices lie along each axis; -1 for all that are left (one axis at most).

    Attributes:
      data: devices that the rows of a batch are split over; -1: all that are left.
      fsdp: devices that rows and parameters are split over; -1: all that are left.
      tensor: devices that the matrix products of a layer are split over; -1: all that are left.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def check(self) -> None:
        for axis in ("data", "fsdp", "tensor"):
            size = getattr(self, axis)
            require(size > 0 or size == -1, self, axis, "a number of devices, or -1 for the rest")
        single = (self.data, self.fsdp, self.tensor).count(-1) <= 1
        require(single, self, "data", "-1 on one axis at most")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh over ``devices``, all of this run where none are given.

    Raises:
      UserError: the mesh's shape does not fit their number.
    """
    devices = open_devices() if devices is None else devices
    shape, count = [config.data, config.fsdp, config.tensor], len(devices)
    if -1 in shape:
        shape[shape.index(-1)] = max(1, count // -int(np.prod(shape)))
    if int(np.prod(shape)) != count:
        raise UserError(
            f"mesh.data, mesh.fsdp, mesh.tensor = {config.data}, {config.fsdp}, {config.tensor} "
            f"do not multiply to the {count} devices here"
        )
    # An axis of a TPU's torus is split only where no other assignment is left.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)


def require_model_fits(mesh: Mesh, model: ModelConfig) -> None:
    """Raises UserError where a mesh axis does not divide what it splits."""
    split = {
        "fsdp": {"hidden_size": model.hidden_size},
        "tensor": {
            "num_attention_heads": model.num_attention_heads,
            "intermediate_size": model.intermediate_size,
            "hidden_size": model.hidden_size,
            "vocabulary multiple": VOCAB_MULTIPLE,
        },
    }
    for axis, sizes in split.items():
        for name, size in sizes.items():
            if size % mesh.shape[axis]:
                raise UserError(f"mesh.{axis} = {mesh.shape[axis]} does not divide {name} = {size}")


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that keeps a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def data_parallelism(mesh: Mesh) -> int:
    """Returns into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
