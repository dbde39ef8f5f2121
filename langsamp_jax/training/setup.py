"""What a run is made of: mesh, model, objective, optimizer, state. For train, dry run and plan."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from langsamp_jax.data.store import Data
from langsamp_jax.errors import UserError
from langsamp_jax.huggingface.loading import describe, load_params, vocabulary_rows
from langsamp_jax.huggingface.pretrained import Pretrained
from langsamp_jax.languages.inventory import EMPTY, Inventory
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.objectives.base import Objective
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.parallel.distributed import barrier, is_primary
from langsamp_jax.parallel.mesh import data_parallelism, make_mesh, require_model_fits
from langsamp_jax.parallel.sharding import shardings
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.config import Configs
from langsamp_jax.training.optimizer import make_optimizer
from langsamp_jax.training.resume import create_run
from langsamp_jax.training.run import Run, open_run
from langsamp_jax.training.step import TrainState, jit_train_step, make_initialise, make_train_step


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Holds the sizes that come from the data. The defaults are the published run's."""

    vocab_size: int = 401_145
    languages: int = 610
    scripts: int = 30
    sequence_length: int = 512

    @staticmethod
    def of(data: Data, inventory: Inventory) -> "Sizes":
        """Returns the sizes of ``data``, with a table row for each code of ``inventory``."""
        manifest, tables = data.manifest, (len(inventory.languages), len(inventory.scripts))
        return Sizes(manifest.vocabulary.size, *tables, manifest.sequence_length)


@dataclasses.dataclass(frozen=True)
class Setup:
    """Holds what a step is compiled from. Nothing of it is on a device.

    Attributes:
      mesh: None for a dry run, which puts nothing on a device.
      validation: the objective as it is validated: every row with its own language.
      state: shapes and types, with shardings where there is a mesh.
    """

    mesh: jax.sharding.Mesh | None
    objective: Objective
    validation: Objective
    optimizer: optax.GradientTransformation
    state: TrainState

    @property
    def shardings(self) -> TrainState:
        """Returns the sharding of every leaf of the state; there must be a mesh."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)


def set_up(
    configs: Configs, sizes: Sizes, vocabulary: Vocabulary, mesh: jax.sharding.Mesh | None
) -> Setup:
    """Builds model, objective, optimizer and abstract state; nothing is put on a device."""
    model = LangSamp(configs.model, sizes.vocab_size, sizes.languages, sizes.scripts)
    shuffled = configs.model.tables == "shuffled"
    optimizer = make_optimizer(configs.optimizer, configs.train.num_steps)
    boxed = jax.eval_shape(make_initialise(model, optimizer, configs.train.seed))
    state = nn.unbox(boxed)
    if mesh is not None:
        state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            state,
            shardings(boxed, mesh),
        )
    return Setup(
        mesh,
        MaskedLm(model, vocabulary, configs.objective, shuffle_ids=shuffled),
        MaskedLm(model, vocabulary, configs.objective),
        optimizer,
        state,
    )


def set_up_mesh(configs: Configs, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Makes the mesh over ``devices``, all of this run where none are given.

    Raises:
      UserError: the batch or the model cannot be divided among them.
    """
    mesh, train = make_mesh(configs.mesh, devices), configs.train
    unit = data_parallelism(mesh) * train.accumulation_steps
    if train.global_batch_size % unit:
        raise UserError(
            f"train.global_batch_size = {train.global_batch_size}: expected a multiple of {unit} "
            f"({data_parallelism(mesh)} devices x {train.accumulation_steps} accumulation steps)"
        )
    require_model_fits(mesh, configs.model)
    return mesh


def step_function(setup: Setup, configs: Configs) -> jax.stages.Wrapped:
    """Returns the step of a run, to be compiled by its first call or by ``lower``."""
    train = configs.train
    step = make_train_step(setup.objective, setup.optimizer, train.accumulation_steps, train.seed)
    return jit_train_step(step, setup.shardings, setup.mesh)


def table_rows(data: Data, pretrained: Inventory | None) -> Inventory:
    """Returns the rows of a run's two tables: the pretrained ones, then the data's new codes."""
    return (pretrained or EMPTY).extended(data.manifest.names)


def initial_state(
    setup: Setup, configs: Configs, pretrained: Pretrained | None, data: Data
) -> TrainState:
    """Returns the state before the first step, on its shardings: random, or a checkpoint's."""
    model, optimizer, seed = setup.objective.model, setup.optimizer, configs.train.seed
    if pretrained is None:
        initialise = make_initialise(model, optimizer, seed)
        return jax.jit(lambda: nn.unbox(initialise()), out_shardings=setup.shardings)()
    pretrained.check(configs.model)
    rows = vocabulary_rows(pretrained, data.tokenizer())
    inventory = table_rows(data, pretrained.inventory)
    print(describe(pretrained, model, rows, inventory, configs.init), file=sys.stderr)
    places = setup.shardings.params
    params = load_params(pretrained, model, rows, places, configs.init, seed)

    def begin(params: Any) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return jax.jit(begin, donate_argnums=0, out_shardings=setup.shardings)(params)


def start_run(
    path: Path,
    data: Data,
    inventory: Inventory,
    configs: list[Any],
    pretrained: Pretrained | None,
    started: float,
) -> Run:
    """Makes the folder of a new run, by process 0 for all, and opens it.

    Raises:
      UserError: another process does not see it.
    """
    if is_primary():
        create_run(path, data, inventory, configs, pretrained, started)
    barrier("run folder")
    if not (path / "run.json").exists():
        raise UserError(
            f"process 0 has made {path}, which is not seen here: --output must be on a disk that "
            "all processes share"
        )
    return open_run(path)
