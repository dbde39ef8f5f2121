"""How a run begins, and how it goes on when the same command is given again."""

import contextlib
import dataclasses
import json
import secrets
import sys
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from langsamp_jax.config import gin_text
from langsamp_jax.data.manifest import Manifest
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.store import Data
from langsamp_jax.errors import UserError
from langsamp_jax.hardware.environment import describe_changes, environment
from langsamp_jax.huggingface.layout import DECIDED_FIELDS
from langsamp_jax.huggingface.pretrained import Pretrained, read_config
from langsamp_jax.huggingface.weights import has_contents
from langsamp_jax.io.files import new_folder, require_absent, write_bytes, write_text
from langsamp_jax.io.storage import absolute
from langsamp_jax.languages.inventory import Inventory
from langsamp_jax.parallel.distributed import is_primary
from langsamp_jax.training.config import TrainConfig
from langsamp_jax.training.optimizer import OptimizerConfig, learning_rate
from langsamp_jax.training.run import RESUMABLE_SETTINGS, Run, open_run, settings_of

# What may differ as long as no step that has been done would have been another one.
LATER_SETTINGS = {"train.num_steps", "mixture.schedule"}


def reopen_run(
    path: Path, done: int, store: Data, configs: list[Any], init_from: Path | None
) -> Run | None:
    """Opens a run for the same command given again, after ``done`` steps in its last checkpoint.

    A setting that changes nothing of the steps so far may differ; it is then written down.

    Returns:
      None where there is no run yet, or none with a checkpoint that other settings could not have:
      it is made anew.

    Raises:
      UserError: ``path`` holds something else, or a run of another model, data or setting.
    """
    if not (path / "run.json").exists():
        require_absent(path)
        return None
    run, settings = open_run(path), settings_of(configs, init_from)
    changed = {
        key: f"{key} = {run.settings.get(key)!r}, now {value!r}"
        for key, value in settings.items()
        if value != run.settings.get(key) and key not in {*RESUMABLE_SETTINGS, "init_from"}
    }
    if done == 0 and not _has_saved(run) and store.manifest.tokenizer == run.tokenizer.fingerprint:
        return _without_checkpoint(run, store, changed, init_from)
    why = ""
    if changed and changed.keys() <= LATER_SETTINGS:
        why = _past_changed(run, done, store, configs)
    if changed and why is not None:
        raise UserError(
            f"{path} holds a run with {', '.join(changed.values())}; use the same settings or "
            f"another --output{why}"
        )
    run.check_store(store)
    if store.manifest.fingerprint != run.store:
        raise UserError(
            f"{path} holds a run on another store than {store.path}; use another --output"
        )
    _check_weights(run, init_from)
    _say_environment(run)
    if changed:
        _say(f"{', '.join(changed.values())}: the steps so far stay as they are")
        settings["init_from"] = run.settings["init_from"]
        run = dataclasses.replace(run, settings=settings)
        _write_settings(run, configs)
    return run


def _has_saved(run: Run) -> bool:
    """Returns whether there is a folder of a checkpoint, be it one that cannot be read."""
    folder = run.checkpoints
    return folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())


def _without_checkpoint(
    run: Run, store: Data, changed: dict[str, str], init_from: Path | None
) -> Run | None:
    """Returns a run that begins at step 0 again, or None where it has to be made anew."""
    was = run.settings["init_from"]
    if was is not None and init_from is None:
        raise UserError(
            f"{run.path} has no checkpoint yet and needs the weights that it was started from: "
            f"give --init_from, it was {was}"
        )
    if store.manifest.fingerprint != run.store:
        changed["store"] = "another store"
    if (init_from is None) != (was is None) or (init_from and not _has_weights(run, init_from)):
        changed["init_from"] = f"--init_from {was}, now {init_from}"
    if not changed:
        return run
    _say(f"{run.path} has no checkpoint yet and is made anew: {', '.join(changed.values())}")
    return None


def _past_changed(run: Run, done: int, store: Data, configs: list[Any]) -> str | None:
    """Returns why the ``done`` steps were others under ``configs``; None where they were not."""
    new = {type(config): config for config in configs}
    both = [{cls: run.config(cls) for cls in new}, new]
    if new[TrainConfig].num_steps < done:
        return f"; it has {done} steps already"
    rates = [
        np.asarray(learning_rate(config[OptimizerConfig], config[TrainConfig].num_steps)(steps))
        for config in both
        for steps in [np.arange(done)]
    ]
    if not np.array_equal(*rates):
        return "; the learning rate of the steps so far depends on it"
    size = new[TrainConfig].global_batch_size
    samplers = [
        config[MixtureConfig].sampler(
            store.manifest, config[TrainConfig].seed, config[TrainConfig].num_steps, size
        )
        for config in both
    ]
    drawn = [
        [(start, *phase.weights) for start, phase in zip(s.starts, s.allocations, strict=True)]
        for s in samplers
    ]
    past = [[phase for phase in phases if phase[0] < done * size] for phases in drawn]
    return None if past[0] == past[1] else "; the rows of the steps so far depend on it"


def _check_weights(run: Run, init_from: Path | None) -> None:
    """Raises UserError where ``init_from`` holds other weights than the run was started from."""
    if init_from is None:
        return
    if run.settings["init_from"] is None:
        raise UserError(f"{run.path} was started from random weights; leave --init_from")
    if not (init_from / "config.json").exists():
        _say(f"--init_from {init_from} is gone; {run.path} does not need it any more")
    elif is_primary() and not _has_weights(run, init_from):  # once: it reads all of them
        raise UserError(
            f"{init_from} does not hold the weights that {run.path} was started from; leave "
            "--init_from, or use another --output"
        )


def _has_weights(run: Run, init_from: Path) -> bool:
    """Returns whether a folder holds the weights of the run; of an older run its place is known."""
    if run.weights is None:
        return run.settings["init_from"] == str(absolute(init_from))
    return has_contents(init_from, run.weights)


def _say_environment(run: Run) -> None:
    if run.environment and (changes := describe_changes(run.environment, environment())):
        _say(f"{run.path} was started with {', '.join(changes)}: results differ by rounding")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def model_sizes(output: Path | None, init_from: Path | None) -> dict[str, Any]:
    """Returns the settings that weights decide, by their gin names.

    Those of the folder ``init_from``; where it is left out or gone, those of the run in ``output``
    that was started from such a folder.

    Raises:
      UserError: there is no such folder, and no run; or one of them is damaged.
    """
    is_run = output is not None and (output / "run.json").exists()
    if init_from is not None and (not is_run or (init_from / "config.json").exists()):
        return {f"model.{name}": value for name, value in read_config(init_from)[1].items()}
    settings = open_run(output).settings if is_run else {}
    names = DECIDED_FIELDS if settings.get("init_from") else ()
    return {f"model.{name}": settings[f"model.{name}"] for name in names}


def create_run(
    path: Path,
    store: Data,
    inventory: Inventory,
    configs: list[Any],
    pretrained: Pretrained | None,
    started: float,
) -> None:
    """Makes the folder of a new run that was started at ``started`` (seconds since the epoch).

    A run without a checkpoint that is there already becomes the new one.
    """
    tokenizer, manifest = store.tokenizer(), store.manifest
    record = {
        "id": secrets.token_hex(6),
        "started": started,
        "settings": settings_of(configs, pretrained and pretrained.path),
        "tokenizer": tokenizer.fingerprint,
        "store": manifest.fingerprint,
        "store_path": str(absolute(store.path)),
        "sequence_length": manifest.sequence_length,
        **{field: _train_counts(manifest, field) for field in ("tokens", "lines", "rows")},
        "weights": pretrained and pretrained.weights.contents(),
        "environment": environment(),
    }
    there = (path / "run.json").exists()
    if there:
        epath.Path(path / "snapshots").rmtree(missing_ok=True)  # of the run that it was
    with contextlib.nullcontext(path) if there else new_folder(path) as folder:
        write_bytes(folder / tokenizer.file_name, tokenizer.model)
        write_text(folder / "inventory.json", inventory.to_json())
        write_text(folder / "config.gin", gin_text(configs))
        write_text(folder / "run.json", _json(record))


def _write_settings(run: Run, configs: list[Any]) -> None:
    """Writes what the run goes on with into its files."""
    if is_primary():
        record = json.loads((run.path / "run.json").read_bytes())
        write_text(run.path / "config.gin", gin_text(configs))
        write_text(run.path / "run.json", _json({**record, "settings": run.settings}))


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"


def _train_counts(manifest: Manifest, field: str) -> dict[str, int]:
    return dict(zip(manifest.names, manifest.column("train", field).tolist(), strict=True))
