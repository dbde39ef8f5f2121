"""The train step, compiled from shapes alone for devices that may not be there."""

import dataclasses
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from langsamp_jax.data.feed import Batch
from langsamp_jax.data.store import Store
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.parallel.sharding import (
    batch_sharding,
    data_parallelism,
    make_mesh,
    require_model_fits,
    shardings,
    use_mesh,
)
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.loop import Configs, require_divisible
from langsamp_jax.training.optimizer import make_optimizer
from langsamp_jax.training.run import require_rows_fit, table_rows
from langsamp_jax.training.step import TrainState, jit_train_step, make_initialise, make_train_step


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What comes from the data. The defaults are the published run's."""

    vocab_size: int = 401_145
    languages: int = 610
    scripts: int = 30
    sequence_length: int = 512


def sizes_of(store: Store) -> Sizes:
    manifest, inventory = store.manifest, table_rows(store, None)
    return Sizes(
        manifest.vocabulary.size,
        len(inventory.languages),
        len(inventory.scripts),
        manifest.sequence_length,
    )


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler's word that a program does not fit, in bytes of one device."""

    needs: float  # besides the state and the batch
    capacity: float


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    mesh: jax.sharding.Mesh
    state: TrainState  # shapes with shardings
    program: jax.stages.Compiled | TooLarge

    @property
    def too_large(self) -> bool:
        return isinstance(self.program, TooLarge)


def compile_step(configs: Configs, sizes: Sizes, devices: Sequence[jax.Device]) -> CompiledStep:
    """Compiles what ``train`` would run. Takes from seconds to minutes, and no device.

    Raises:
      UserError: a mesh, a batch or a model that do not fit together.
    """
    train = configs.train
    mesh = make_mesh(configs.mesh, devices)
    require_divisible(train, data_parallelism(mesh))
    require_model_fits(mesh, configs.model)
    require_rows_fit("the plan", sizes.sequence_length, configs.model)
    model = LangSamp(configs.model, sizes.vocab_size, sizes.languages, sizes.scripts)
    optimizer = make_optimizer(configs.optimizer, train.num_steps)
    boxed = jax.eval_shape(make_initialise(model, optimizer, train.seed))
    places = shardings(boxed, mesh)
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        nn.unbox(boxed),
        places,
    )
    vocabulary = Vocabulary(sizes.vocab_size, 0, 1, 2, 3, sizes.vocab_size - 1)
    step = make_train_step(
        model, optimizer, vocabulary, configs.objective, train.accumulation_steps, train.seed
    )
    with use_mesh(mesh):
        batch = abstract_batch(train.global_batch_size, sizes.sequence_length, mesh)
        lowered = jit_train_step(step, places, mesh).lower(state, batch)
        try:
            program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            program = read_too_large(str(error))
            if program is None:
                raise
    return CompiledStep(mesh, state, program)


def abstract_batch(rows: int, length: int, mesh: jax.sharding.Mesh) -> Batch:
    def array(dtype: jax.typing.DTypeLike, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))

    tokens, valid = array(jnp.int32, rows, length), array(jnp.bool_, rows, length)
    return Batch(tokens, valid, array(jnp.int32, rows), array(jnp.int32, rows))


def read_too_large(message: str) -> TooLarge | None:
    """What a TPU's compiler says in place of a program; None where it is about something else."""
    number = r"([\d.]+[KMGT]?)"
    needs = re.search(rf"HLO temporaries \({number}\) exceeds available HBM \({number}\)", message)
    used = re.search(rf"Used {number} of {number} hbm", message)
    found = needs or used
    return TooLarge(_bytes(found[1]), _bytes(found[2])) if found else None


def _bytes(text: str) -> float:
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(text.rstrip("KMGT")) * scale.get(text[-1], 1)
