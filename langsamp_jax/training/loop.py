"""Training from top to bottom: input, mesh, model, state, feed; then the loop."""

import contextlib
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from langsamp_jax.data.feed import Feed
from langsamp_jax.data.mixture_report import mixture_warnings
from langsamp_jax.data.store import Data
from langsamp_jax.errors import UserError
from langsamp_jax.hardware.cpu import keep_freed, use_one_arena
from langsamp_jax.hardware.environment import environment
from langsamp_jax.huggingface.pretrained import open_pretrained
from langsamp_jax.io.claim import CLAIM, Claim
from langsamp_jax.io.progress import Progress
from langsamp_jax.models.attention import describe_kernel, require_available
from langsamp_jax.models.transformer import attention_spec
from langsamp_jax.parallel.distributed import (
    AllReduceMax,
    broadcast_from_primary,
    compile_with_barrier,
    is_primary,
    require_same,
)
from langsamp_jax.parallel.sharding import batch_sharding, use_mesh
from langsamp_jax.parallel.signals import Stopped, StopSignal
from langsamp_jax.training.checkpoint import Checkpoints, latest_step, snapshot_plan
from langsamp_jax.training.config import Configs, TrainConfig, rate_warnings, snapshot_steps
from langsamp_jax.training.metrics import MetricsLog, require_wandb, wandb_log
from langsamp_jax.training.optimizer import learning_rate
from langsamp_jax.training.resume import reopen_run
from langsamp_jax.training.run import Run, require_rows_fit, settings_of
from langsamp_jax.training.setup import (
    Setup,
    Sizes,
    initial_state,
    set_up,
    set_up_mesh,
    start_run,
    step_function,
    table_rows,
)
from langsamp_jax.training.step import TrainState
from langsamp_jax.training.timing import Meter, PhaseTimer, Trace
from langsamp_jax.training.validation import LossEvaluator, SentenceCosine, collapse_warning

# Measures of the parameters, by the names that metrics.jsonl has. The same on every process.
Evaluator = Callable[[Any], dict[str, float]]

SELECTED_BY = "eval/loss"  # the measure, lower is better, of the best checkpoint and early stopping


def train(data: Data, output: Path, configs: Configs, init_from: Path | None = None) -> Run:
    """Trains on ``data``, a store mostly, into the run folder ``output``, or goes on with it.

    Args:
      init_from: a Hugging Face folder whose weights the run starts from; None: random weights.

    One call at a time holds ``output``.

    Raises:
      Stopped: by SIGTERM or Ctrl-C, on any of the processes, after a checkpoint.
      UserError: bad input, or a loss that is not finite (the last good checkpoint stays).
    """
    config, timer = configs.train, PhaseTimer()
    use_one_arena()

    # Input
    require_wandb(config.wandb_project)
    require_rows_fit(data.path, data.manifest.sequence_length, configs.model)
    planned = config.num_steps, config.global_batch_size
    sampler = configs.mixture.sampler(data.manifest, config.seed, *planned)

    # Mesh
    mesh = set_up_mesh(configs)
    rows_sharding = batch_sharding(mesh)

    # The same on all processes
    there = (output / "run.json").exists()
    facts = {"store": data.manifest.fingerprint, "--output": output, "a run there": there}
    facts |= {"environment": environment()["flags"]}
    require_same({**settings_of(configs.all(), init_from), **facts})

    with Claim(output / CLAIM, output) if is_primary() else contextlib.nullcontext() as claim:
        # The run, where it is there already, and how far it is
        start = broadcast_from_primary(latest_step(output / "checkpoints"))
        run = reopen_run(output, start, data, configs.all(), init_from)

        # Model
        pretrained = None if init_from is None or start > 0 else open_pretrained(init_from)
        inventory = run.inventory if run else table_rows(data, pretrained and pretrained.inventory)
        platform = mesh.devices.flat[0].platform
        spec = attention_spec(configs.model, platform, data.manifest.sequence_length)
        require_available(configs.model.attention, spec)
        if platform != "cpu":
            print(describe_kernel(configs.model.attention, spec), file=sys.stderr)
        setup = set_up(configs, Sizes.of(data, inventory), data.manifest.vocabulary, mesh)

        # State: of the last checkpoint, or the first one. The run is made behind that, so that bad
        # input leaves nothing behind.
        if start == 0:
            state = initial_state(setup, configs, pretrained, data)
            progress = {"best_loss": None, "since_best": 0, "seconds": {}}
        if run is None:
            run = start_run(output, data, inventory, configs.all(), pretrained, timer.began)
        wanted = snapshot_steps(config)
        checkpoints = Checkpoints(run.checkpoints, config.max_to_keep, claim, wanted)
        if start > 0:
            state, progress = checkpoints.restore(start, setup.state)
            print(f"going on from step {start} of {output}", file=sys.stderr)
        del pretrained  # and with it the copy of weights in an object store

        # Feed and validation
        lines = mixture_warnings(configs.mixture, data.manifest, sampler, *planned)
        lines += rate_warnings(configs.optimizer, init_from)
        for line in [*lines, *snapshot_plan(config, state.params)]:
            print(textwrap.shorten(line, 400, placeholder=" ..."), file=sys.stderr)
        size = config.global_batch_size
        feed = Feed(data.split("train"), sampler, inventory, size, rows_sharding)
        validation = data.split("validation")
        rows_at_once = size // config.accumulation_steps
        loss = LossEvaluator(
            setup.validation, validation, inventory, rows_sharding, rows_at_once, config.eval_rows
        )
        evaluators = [loss, SentenceCosine(setup.objective.model, loss)] if loss.rows_total else []

        # Loop
        if platform == "cpu":
            keep_freed(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        timer.resume(run.started, progress["seconds"])
        fit(setup, configs, feed, evaluators, run, checkpoints, start, state, progress, timer)
    return run


def fit(
    setup: Setup,
    configs: Configs,
    feed: Feed,
    evaluators: Sequence[Evaluator],
    run: Run,
    checkpoints: Checkpoints,
    start: int,
    state: TrainState,
    progress: dict[str, Any],
    timer: PhaseTimer,
) -> None:
    """Minimises the objective of ``setup`` from ``state``, after ``start`` steps, to the last one.

    What the objective is, what the feed gives and what the evaluators measure is not known here.
    ``progress`` is what a checkpoint holds beside the state. The state is not waited for: one that
    does not fit into memory fails in the step.
    """
    config = configs.train
    step_and_metrics = compile_with_barrier(step_function(setup, configs))
    rate = learning_rate(configs.optimizer, config.num_steps)
    size = config.global_batch_size, feed.split.sequence_length
    useful_flops = setup.objective.step_flops(*size)
    ended, agree = stopped_early(config, progress), AllReduceMax(setup.mesh)
    with (
        use_mesh(setup.mesh),
        wandb_log(run, config.wandb_project) as mirror,
        contextlib.closing(MetricsLog(run.path, start, mirror)) as log,
        contextlib.closing(checkpoints),
        contextlib.closing(Trace(run.path, config.profile_steps, timer)) as trace,
        StopSignal() as signal,
        Progress("train", config.num_steps, "steps", start) as bar,
        Meter(timer, math.prod(size), useful_flops, setup.mesh, bar.say) as meter,
        contextlib.closing(feed.batches(start, start if ended else config.num_steps)) as batches,
    ):
        checkpoints.snapshot(start, state.params)
        previous = None
        for step, batch in enumerate(timer.inputs(batches), start + 1):
            with trace.step(step, previous):
                state, metrics = step_and_metrics(state, batch)
            meter.count(metrics)
            if previous is not None:  # one step behind, so that the device never waits for the host
                bar.advance(1, loss=f"{check_finite(step - 1, previous, feed):.3f}")
            previous = metrics
            checkpoints.check()

            stopping = agree(signal.requested or 0)  # once: the signal can come at any line below
            last = step == config.num_steps or stopping > 0
            if step % config.log_every == 0 or last:
                values = {"train/loss": check_finite(step, metrics, feed)}
                values["train/grad_norm"] = float(metrics["grad_norm"])
                values["learning_rate"] = float(rate(step - 1))
                log.write(step, values | meter.read())

            measured = {}
            if evaluators and (step % config.eval_every == 0 or step == config.num_steps):
                check_finite(step, metrics, feed)
                with timer.phase("validation"):
                    measured = _validated(step, evaluators, state.params, log, bar.say)
                progress = _updated(progress, measured[SELECTED_BY])
                ended = stopped_early(config, progress)

            ending = last or ended
            improved = bool(measured) and progress["since_best"] == 0
            saving = step % config.checkpoint_every == 0 or improved or ending
            if saving or checkpoints.wants(step):
                check_finite(step, metrics, feed)
                with timer.phase("checkpoint"):
                    checkpoints.snapshot(step, state.params, last=ended)
                    if saving:
                        progress = {**progress, "seconds": timer.seconds}
                        log.flush()
                        checkpoints.save(step, state, progress, measured.get(SELECTED_BY))
                    if ending:
                        checkpoints.close()  # complete before the word that it is
            if stopping:
                raise Stopped(step, stopping)
            if ended:
                bar.say(f"step {step:,}: no better validation loss for a while, stopped early")
                break


def _validated(
    step: int,
    evaluators: Sequence[Evaluator],
    params: Any,
    log: MetricsLog,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Returns the measures of the parameters after a step; they are logged, the loss is said."""
    measured = {}
    for evaluator in evaluators:
        measured |= evaluator(params)
    log.write(step, measured)
    say(f"step {step:,}: validation loss {measured[SELECTED_BY]:.4f}")
    if warning := collapse_warning(step, measured):
        say(warning)
    return measured


def check_finite(step: int, metrics: dict[str, jax.Array], feed: Feed) -> float:
    """Waits for the device, and returns the loss of a step.

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
        "earlier checkpoints are kept (try a lower optimizer.learning_rate in another --output)"
    )


def stopped_early(config: TrainConfig, progress: dict[str, Any]) -> bool:
    """Returns whether validation has not improved for as long as ``early_stopping_patience``."""
    patience = config.early_stopping_patience
    return patience is not None and progress["since_best"] >= patience


def _updated(progress: dict[str, Any], loss: float) -> dict[str, Any]:
    if progress["best_loss"] is None or loss < progress["best_loss"]:
        return {**progress, "best_loss": loss, "since_best": 0}
    return {**progress, "since_best": progress["since_best"] + 1}
