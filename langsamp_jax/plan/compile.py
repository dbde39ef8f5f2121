"""The train step, compiled from shapes alone for devices that may not be there."""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from langsamp_jax.data.feed import Batch
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.objectives.base import Objective
from langsamp_jax.parallel.sharding import batch_sharding, use_mesh
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.config import Configs
from langsamp_jax.training.run import require_rows_fit
from langsamp_jax.training.setup import Sizes, set_up, set_up_mesh, step_function
from langsamp_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler's word that a program does not fit, in bytes of one device.

    Attributes:
      needs: besides the state and the batch.
    """

    needs: float
    capacity: float


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What was compiled, and what came of it.

    Attributes:
      state: shapes with shardings.
    """

    mesh: jax.sharding.Mesh
    objective: Objective
    state: TrainState
    program: jax.stages.Compiled | TooLarge

    @property
    def too_large(self) -> bool:
        return isinstance(self.program, TooLarge)


def compile_step(configs: Configs, sizes: Sizes, devices: Sequence[jax.Device]) -> CompiledStep:
    """Compiles what ``train`` would run. Takes from seconds to minutes, and no device.

    Raises:
      UserError: a mesh, a batch or a model that do not fit together.
    """
    mesh = set_up_mesh(configs, devices)
    require_rows_fit("the plan", sizes.sequence_length, configs.model)
    vocabulary = Vocabulary(sizes.vocab_size, 0, 1, 2, 3, sizes.vocab_size - 1)
    setup = set_up(configs, sizes, vocabulary, mesh)
    with use_mesh(mesh):
        batch = abstract_batch(configs.train.global_batch_size, sizes.sequence_length, mesh)
        lowered = step_function(setup, configs).lower(setup.state, batch)
        try:
            program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            program = read_too_large(str(error))
            if program is None:
                raise
    return CompiledStep(mesh, setup.objective, setup.state, program)


def abstract_batch(rows: int, length: int, mesh: jax.sharding.Mesh) -> Batch:
    """Returns the shapes of a batch with their shardings."""

    def array(dtype: jax.typing.DTypeLike, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))

    tokens, valid = array(jnp.int32, rows, length), array(jnp.bool_, rows, length)
    return Batch(tokens, valid, TableIds(array(jnp.int32, rows), array(jnp.int32, rows)))


def read_too_large(message: str) -> TooLarge | None:
    """Reads what a TPU's compiler says in place of a program; None where it says something else."""
    number = r"([\d.]+[KMGT]?)"
    needs = re.search(rf"HLO temporaries \({number}\) exceeds available HBM \({number}\)", message)
    used = re.search(rf"Used {number} of {number} hbm", message)
    amounts = needs or used
    return TooLarge(_bytes(amounts[1]), _bytes(amounts[2])) if amounts else None


def _bytes(text: str) -> float:
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(text.rstrip("KMGT")) * scale.get(text[-1], 1)
