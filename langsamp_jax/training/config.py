"""All that decides a run, besides its data."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from langsamp_jax.config import configurable, from_gin, require
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.errors import UserError
from langsamp_jax.huggingface.pretrained import InitConfig
from langsamp_jax.languages.related_codes import suggest
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.parallel.mesh import MeshConfig
from langsamp_jax.training.optimizer import OptimizerConfig

_CONTINUED = 2e-4  # the highest rate for weights that are trained already; the published is 5e-5


@configurable("train")
class TrainConfig:
    """The loop. Defaults are the published run's where it states them.

    Attributes:
      num_steps: steps of the run; a step is one update.
      global_batch_size: rows of a step, on all devices together.
      accumulation_steps: parts that a batch is cut into to save memory; a step stays one update.
      seed: of the first parameters, the order of the rows, masking and dropout.
      checkpoint_every: steps between checkpoints.
      eval_every: steps between validations.
      eval_rows: rows of each language-script that validation reads, from the first; None: all.
      log_every: steps between lines of the log.
      max_to_keep: checkpoints that are kept, the latest; the best is kept too.
      snapshots: steps whose parameters alone are kept for good, beside those of snapshot_every:
        powers (0, 1, 2, 4, ... and the last), or none.
      snapshot_every: steps between snapshots, from 0 to the last; None: those of snapshots alone.
      early_stopping_patience: validations without a better loss that end the run; None: it ends
        with num_steps.
      profile_steps: [10, 12] records steps 10 to 12 for TensorBoard's profiler.
      wandb_project: project of Weights & Biases that the log goes to as well; None: it does not.
    """

    num_steps: int = 150_000
    global_batch_size: int = 1024
    accumulation_steps: int = 1
    seed: int = 0
    checkpoint_every: int = 5000
    eval_every: int = 5000
    eval_rows: int | None = 64
    log_every: int = 50
    max_to_keep: int = 3
    snapshots: Literal["none", "powers"] = "none"
    snapshot_every: int | None = None
    early_stopping_patience: int | None = None
    profile_steps: list[int] | None = None
    wandb_project: str | None = None

    def check(self) -> None:
        counts = ("num_steps", "global_batch_size", "accumulation_steps", "checkpoint_every")
        for field in (*counts, "eval_every", "log_every", "max_to_keep"):
            require(getattr(self, field) > 0, self, field, "a whole number above 0")
        for field in ("eval_rows", "early_stopping_patience", "snapshot_every"):
            value = getattr(self, field)
            require(value is None or value > 0, self, field, "a whole number above 0, or None")
        steps = self.profile_steps
        pair = steps is None or (len(steps) == 2 and 0 < steps[0] <= steps[1])
        require(pair, self, "profile_steps", "[first, last], or None")
        require(0 <= self.seed < 2**31, self, "seed", "0 to 2147483647")


def snapshot_steps(config: TrainConfig) -> set[int]:
    """Returns the steps of a run whose parameters are kept for good: none, or 0, the last, ..."""
    steps: set[int] = set()
    if config.snapshots == "powers":
        steps |= {2**k for k in range(config.num_steps.bit_length())}
    if config.snapshot_every is not None:
        steps |= set(range(0, config.num_steps, config.snapshot_every))
    return steps and steps | {0, config.num_steps}


@dataclasses.dataclass(frozen=True)
class Configs:
    """The configs of a run, each with its defaults unless another is given."""

    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    init: InitConfig = dataclasses.field(default_factory=InitConfig)

    def all(self) -> list[Any]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def configs_from_gin() -> Configs:
    """Returns the configs of a run as gin has bound them; for the command line.

    Raises:
      UserError: a value of the wrong type, or outside its limits.
    """
    return Configs(*(from_gin(field.default_factory) for field in dataclasses.fields(Configs)))


def with_overrides(configs: Configs, overrides: Mapping[str, Any]) -> Configs:
    """Returns ``configs`` with other values under some gin names: ``{"train.seed": 1}``.

    Raises:
      UserError: there is no such name, or a value is of the wrong type or outside its limits.
    """
    fields: dict[str, dict[str, Any]] = {config.gin_name: {} for config in configs.all()}
    names = [
        f"{config.gin_name}.{field.name}"
        for config in configs.all()
        for field in dataclasses.fields(config)
    ]
    for name, value in overrides.items():
        if name not in names:
            raise UserError(f"there is no setting {name!r}{suggest(str(name), names)}")
        config, _, field = name.partition(".")
        fields[config][field] = value
    changed = (dataclasses.replace(c, **fields[c.gin_name]) for c in configs.all())
    return Configs(*changed)


def rate_warnings(optimizer: OptimizerConfig, init_from: Path | None) -> list[str]:
    """Returns what is said of a rate from scratch for weights that are trained already."""
    if init_from is None or optimizer.learning_rate <= _CONTINUED:
        return []
    return [
        f"optimizer.learning_rate = {optimizer.learning_rate:g} is a rate for random weights; "
        f"above {_CONTINUED:g} it can undo what those of {init_from} have learned: --gin_file "
        "continued.gin has the published 5e-5"
    ]
