"""The training story, top to bottom: input, run, mesh, model, state, step, loop."""

import contextlib
import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from langsamp_jax.config import configurable, require
from langsamp_jax.data.feed import Feed
from langsamp_jax.data.mixture import MixtureConfig, mixture_warnings
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.loss import MaskedLmEvaluator, summary
from langsamp_jax.hardware.host_memory import keep_freed, use_one_arena
from langsamp_jax.huggingface.loading import InitConfig, describe, load_params, vocabulary_rows
from langsamp_jax.huggingface.pretrained import Pretrained, open_pretrained
from langsamp_jax.io.progress import Progress
from langsamp_jax.models.attention import describe_kernel, require_available
from langsamp_jax.models.costs import step_flops
from langsamp_jax.models.langsamp import LangSamp, ModelConfig, attention_spec
from langsamp_jax.objectives.masked_lm import ObjectiveConfig
from langsamp_jax.parallel.distributed import (
    AllReduceMax,
    broadcast_from_primary,
    compile_with_barrier,
    is_primary,
    require_same,
)
from langsamp_jax.parallel.sharding import (
    MeshConfig,
    batch_sharding,
    data_parallelism,
    make_mesh,
    require_model_fits,
    shardings,
    use_mesh,
)
from langsamp_jax.parallel.signals import Stopped, StopSignal
from langsamp_jax.training.checkpoint import Checkpoints, latest_step
from langsamp_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from langsamp_jax.training.profiling import Trace
from langsamp_jax.training.run import (
    Data,
    MetricsLog,
    Run,
    reopen_run,
    require_rows_fit,
    settings_of,
    start_run,
    table_rows,
)
from langsamp_jax.training.step import TrainState, jit_train_step, make_initialise, make_train_step
from langsamp_jax.training.timing import Meter, PhaseTimer
from langsamp_jax.training.wandb_log import require_wandb, wandb_log


@configurable("train")
class TrainConfig:
    """The loop. Defaults are the published run's where it states them.

    ``accumulation_steps`` cuts a batch into that many parts to save memory; a step is always one
    update. Validation reads the first ``eval_rows`` rows of each language-script (None: all);
    ``early_stopping_patience`` ends the run after so many validations without a better loss.
    ``profile_steps = [10, 12]`` records steps 10 to 12 for TensorBoard's profiler.
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
    early_stopping_patience: int | None = None
    profile_steps: list[int] | None = None
    wandb_project: str | None = None

    def check(self) -> None:
        counts = ("num_steps", "global_batch_size", "accumulation_steps", "checkpoint_every")
        for field in (*counts, "eval_every", "log_every", "max_to_keep"):
            require(getattr(self, field) > 0, self, field, "a whole number above 0")
        for field in ("eval_rows", "early_stopping_patience"):
            value = getattr(self, field)
            require(value is None or value > 0, self, field, "a whole number above 0, or None")
        steps = self.profile_steps
        pair = steps is None or (len(steps) == 2 and 0 < steps[0] <= steps[1])
        require(pair, self, "profile_steps", "[first, last], or None")
        require(0 <= self.seed < 2**31, self, "seed", "0 to 2147483647")


@dataclasses.dataclass(frozen=True)
class Configs:
    """All that decides a run, besides its data. Made with gin bound, each takes what gin says."""

    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    init: InitConfig = dataclasses.field(default_factory=InitConfig)

    def all(self) -> list[Any]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def train(data: Data, output: Path, configs: Configs, init_from: Path | None = None) -> Run:
    """Trains on ``data``, a store mostly, into the run folder ``output``, or goes on with it.

    Args:
      init_from: a Hugging Face folder whose weights the run starts from; None: random weights.

    Raises:
      Stopped: by SIGTERM or Ctrl-C, on any of the processes, after a checkpoint.
      UserError: bad input, or a loss that is not finite (the last good checkpoint stays).
    """
    config, stopwatch = configs.train, PhaseTimer()
    use_one_arena()

    # Input
    require_wandb(config.wandb_project)
    require_rows_fit(data.path, data.manifest.sequence_length, configs.model)
    plan = config.num_steps, config.global_batch_size
    sampler = configs.mixture.sampler(data.manifest, config.seed, *plan)

    # Mesh
    mesh = make_mesh(configs.mesh)
    require_divisible(config, data_parallelism(mesh))
    require_model_fits(mesh, configs.model)
    rows_sharding = batch_sharding(mesh)

    # Model
    vocabulary = data.manifest.vocabulary
    pretrained = None if init_from is None else open_pretrained(init_from)
    inventory = table_rows(data, pretrained and pretrained.inventory)
    model = LangSamp(
        configs.model, vocabulary.size, len(inventory.languages), len(inventory.scripts)
    )
    platform = mesh.devices.flat[0].platform
    case = attention_spec(configs.model, platform, data.manifest.sequence_length)
    require_available(configs.model.attention, case)
    if platform != "cpu":
        print(describe_kernel(configs.model.attention, case), file=sys.stderr)
    optimizer = make_optimizer(configs.optimizer, config.num_steps)
    boxed = jax.eval_shape(make_initialise(model, optimizer, config.seed))
    state_shardings = shardings(boxed, mesh)

    # State: the last checkpoint or the first state; the run folder is made behind that, so that
    # bad input leaves nothing behind
    run = reopen_run(output, data, configs.all(), init_from)
    facts = {"store": data.manifest.fingerprint, "--output": output, "a run there": run is not None}
    require_same({**settings_of(configs.all(), init_from), **facts})
    start = broadcast_from_primary(0 if run is None else latest_step(run.checkpoints))
    progress = {"best_loss": None, "since_best": 0, "seconds": {}}
    if start == 0:
        state = first_state(model, optimizer, configs, state_shardings, pretrained, data)
    run = run or start_run(output, data, inventory, configs.all(), init_from, stopwatch.began)
    checkpoints = Checkpoints(run.checkpoints, config.max_to_keep)
    if start > 0:
        abstract = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            nn.unbox(boxed),
            state_shardings,
        )
        state, progress = checkpoints.restore(start, abstract)
        print(f"going on from step {start} of {output}", file=sys.stderr)

    # Feed
    for line in mixture_warnings(configs.mixture, data.manifest, sampler, *plan):
        print(textwrap.shorten(line, 400, placeholder=" ..."), file=sys.stderr)
    feed = Feed(data.split("train"), sampler, inventory, config.global_batch_size, rows_sharding)
    evaluator = MaskedLmEvaluator(
        model,
        data.split("validation"),
        inventory,
        vocabulary,
        configs.objective,
        rows_sharding,
        config.global_batch_size // config.accumulation_steps,
        config.eval_rows,
    )

    # Step
    train_step = make_train_step(
        model,
        optimizer,
        vocabulary,
        configs.objective,
        config.accumulation_steps,
        config.seed,
    )
    step_function = compile_with_barrier(jit_train_step(train_step, state_shardings, mesh))
    rate = learning_rate(configs.optimizer, config.num_steps)
    rows, length = config.global_batch_size, data.manifest.sequence_length
    num_targets = configs.objective.num_targets(length)
    useful = step_flops(configs.model, vocabulary.size, rows, length, num_targets)

    # Loop
    if platform == "cpu":
        keep_freed(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    stopwatch.take_up(run.started, progress["seconds"])
    ended, agreed = stopped_early(config, progress), AllReduceMax(mesh)
    project, profiled = (
        (config.wandb_project, config.profile_steps) if is_primary() else (None, None)
    )
    with (
        use_mesh(mesh),
        wandb_log(run, project) as mirror,
        contextlib.closing(MetricsLog(run.path, start, mirror)) as log,
        contextlib.closing(checkpoints),
        contextlib.closing(Trace(run.path, profiled, stopwatch)) as trace,
        StopSignal() as stop,
        Progress("train", config.num_steps, "steps", start) as bar,
        Meter(stopwatch, rows * length, useful, mesh, bar.say) as meter,
        contextlib.closing(feed.batches(start, start if ended else config.num_steps)) as batches,
    ):
        previous = None
        for step, batch in enumerate(stopwatch.inputs(batches), start + 1):
            with trace.step(step, previous):
                state, metrics = step_function(state, batch)
            meter.count(metrics)
            if previous is not None:  # one step behind, so that the device never waits for the host
                loss = check_finite(step - 1, previous, feed)
                bar.advance(1, loss=f"{loss:.3f}")
            previous = metrics
            checkpoints.check()

            stopping = agreed(stop.requested or 0)  # once: the signal can come at any line below
            last = step == config.num_steps or stopping > 0
            if step % config.log_every == 0 or last:
                values = {"train/loss": check_finite(step, metrics, feed)}
                values["train/grad_norm"] = float(metrics["grad_norm"])
                values["learning_rate"] = float(rate(step - 1))
                log.write(step, values | meter.read())

            validation = None
            if evaluator.rows_total and (step % config.eval_every == 0 or step == config.num_steps):
                check_finite(step, metrics, feed)
                with stopwatch.phase("validation"):
                    losses = summary(feed.split.names, *evaluator(state.params))
                log.write(step, losses)
                validation = losses["eval/loss"]
                bar.say(f"step {step:,}: validation loss {validation:.4f}")
                progress = _updated(progress, validation)
                ended = stopped_early(config, progress)

            improved = validation is not None and progress["since_best"] == 0
            if step % config.checkpoint_every == 0 or last or improved or ended:
                check_finite(step, metrics, feed)
                with stopwatch.phase("checkpoint"):
                    progress = {**progress, "seconds": stopwatch.seconds}
                    log.flush()
                    checkpoints.save(step, state, progress, validation)
                    if last or ended:
                        checkpoints.close()  # complete before the word that it is
            if stopping:
                raise Stopped(step, stopping)
            if ended:
                bar.say(f"step {step:,}: no better validation loss for a while, stopped early")
                break
    return run


def first_state(
    model: LangSamp,
    optimizer: optax.GradientTransformation,
    configs: Configs,
    places: TrainState,
    pretrained: Pretrained | None,
    data: Data,
) -> TrainState:
    """The state before the first step, on the shardings ``places``: random, or a checkpoint's."""
    seed = configs.train.seed
    if pretrained is None:
        initialise = make_initialise(model, optimizer, seed)
        return jax.jit(lambda: nn.unbox(initialise()), out_shardings=places)()
    pretrained.check(configs.model)
    rows = vocabulary_rows(pretrained, data.tokenizer())
    inventory = table_rows(data, pretrained.inventory)
    print(describe(pretrained, model, rows, inventory, configs.init), file=sys.stderr)
    params = load_params(pretrained, model, rows, places.params, configs.init, seed)

    def begin(params: Any) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return jax.jit(begin, donate_argnums=0, out_shardings=places)(params)


def check_finite(step: int, metrics: dict[str, jax.Array], feed: Feed) -> float:
    """The loss of a step; waits for the device.

    Raises:
      UserError: the loss or the gradient is not finite; the step and its rows are named.
    """
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if np.isfinite(loss) and np.isfinite(norm):
        return loss
    bad = np.flatnonzero(~np.isfinite(np.asarray(metrics["row_loss"])))
    positions = bad if len(bad) else np.arange(feed.batch_size)
    rows = feed.rows(step - 1).describe(feed.split, positions)
    raise UserError(
        f"step {step}: loss {loss}, gradient norm {norm}, in rows {rows}; nothing is saved, "
        "earlier checkpoints are kept (try a lower optimizer.learning_rate)"
    )


def require_divisible(config: TrainConfig, data_parallel: int) -> None:
    """Raises UserError where a batch cannot be cut evenly."""
    unit = data_parallel * config.accumulation_steps
    if config.global_batch_size % unit:
        raise UserError(
            f"train.global_batch_size = {config.global_batch_size}: expected a multiple of {unit} "
            f"({data_parallel} devices x {config.accumulation_steps} accumulation steps)"
        )


def stopped_early(config: TrainConfig, progress: dict[str, Any]) -> bool:
    patience = config.early_stopping_patience
    return patience is not None and progress["since_best"] >= patience


def _updated(progress: dict[str, Any], loss: float) -> dict[str, Any]:
    if progress["best_loss"] is None or loss < progress["best_loss"]:
        return {**progress, "best_loss": loss, "since_best": 0}
    return {**progress, "since_best": progress["since_best"] + 1}
