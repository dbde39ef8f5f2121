"""The folder of a run: what it was started with, its metrics, and everything a checkpoint needs.

RUN/run.json           the resolved configs, the store and tokenizer it was started with
RUN/config.gin         the operative gin
RUN/tokenizer.model (tokenizer.json if WordPiece), RUN/inventory.json
RUN/metrics.jsonl, RUN/tensorboard/, RUN/checkpoints/
"""

import contextlib
import dataclasses
import json
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from langsamp_jax.config import operative_config
from langsamp_jax.data.store import Manifest, Split
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import (
    growing_file,
    new_folder,
    require_absent,
    write_bytes,
    write_text,
)
from langsamp_jax.io.storage import absolute, is_remote, location
from langsamp_jax.languages.inventory import EMPTY, Inventory
from langsamp_jax.models.langsamp import LangSamp, ModelConfig, init_params
from langsamp_jax.parallel.distributed import barrier, is_primary
from langsamp_jax.parallel.sharding import MeshConfig, make_mesh, replicated
from langsamp_jax.text.tokenizer import Tokenizer, open_tokenizer
from langsamp_jax.training.checkpoint import Checkpoints

# What may differ when a run is taken up again: it changes what a step computes by rounding at most.
RESUMABLE_SETTINGS = {
    "train.checkpoint_every",
    "train.eval_every",
    "train.log_every",
    "train.max_to_keep",
    "train.early_stopping_patience",
    "train.profile_steps",
    "train.wandb_project",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "model.remat",
    "model.attention",
    "objective.logits_at_once",
}
_SECONDS_BETWEEN_OBJECTS = 30.0  # a long run's metrics are a megabyte or two


class Data(Protocol):
    """What a run is trained on: a ``Store``, or a seqio Mixture that is packed meanwhile."""

    path: Path
    manifest: Manifest

    def tokenizer(self) -> Tokenizer: ...

    def split(self, split: str) -> Split: ...


@dataclasses.dataclass(frozen=True)
class Run:
    """An opened run folder: what is needed to rebuild its model and read its text."""

    path: Path
    id: str  # for those who keep records of many runs
    started: float  # seconds since the epoch
    settings: dict[str, Any]  # "model.hidden_size" -> value, of every config
    inventory: Inventory
    tokenizer: Tokenizer
    store: str  # fingerprint of the store it is trained on
    sequence_length: int  # of that store; later positions of the model are untrained
    tokens: dict[str, int]  # training tokens of each of its language-scripts
    lines: dict[str, int] | None  # the same of lines and rows; None: an older run has not written
    rows: dict[str, int] | None  # them down

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def config(self, cls: type) -> Any:
        """The frozen config of class ``cls`` that the run was started with."""
        prefix = cls.gin_name + "."
        fields = {
            k.removeprefix(prefix): v for k, v in self.settings.items() if k.startswith(prefix)
        }
        return cls(**fields)

    def model(self) -> LangSamp:
        inventory = self.inventory
        sizes = self.tokenizer.vocab_size, len(inventory.languages), len(inventory.scripts)
        return LangSamp(self.config(ModelConfig), *sizes)

    def shapes(self) -> Any:
        """Shape and type of every parameter, without a device."""
        return nn.unbox(jax.eval_shape(lambda: init_params(self.model(), jax.random.key(0))))

    def check_store(self, store: Data) -> None:
        """Raises UserError where a store has another tokenizer, long rows or unknown languages."""
        size = store.manifest.vocabulary.size
        if store.manifest.tokenizer != self.tokenizer.fingerprint:
            raise UserError(
                f"{store.path} was prepared with another tokenizer ({size} ids) than the run in "
                f"{self.path} ({self.tokenizer.vocab_size} ids)"
            )
        length = store.manifest.sequence_length
        require_rows_fit(store.path, length, self.config(ModelConfig))
        for name in store.manifest.names:
            self.inventory.ids(name)

    def load_params(self, step: int | None = None) -> tuple[int, Any]:
        """The parameters saved at ``step``, by default the one with the best validation loss.

        Returns:
          the step and the parameters, a copy on every device.
        """
        if not self.checkpoints.is_dir():
            raise UserError(f"{self.path} has no checkpoint yet")
        everywhere = replicated(make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1)))
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
            self.shapes(),
        )
        with contextlib.closing(Checkpoints.reader(self.checkpoints)) as checkpoints:
            chosen = step
            if step is None:
                chosen = checkpoints.latest if checkpoints.best is None else checkpoints.best
            if chosen not in checkpoints.steps:
                there = ", ".join(map(str, checkpoints.steps)) or "none"
                raise UserError(
                    f"{self.path} has no checkpoint of step {chosen}; there are {there}"
                )
            return chosen, checkpoints.restore_params(chosen, abstract)


def require_rows_fit(where: str | Path, length: int, model: ModelConfig) -> None:
    """Raises UserError where rows of ``length`` tokens are longer than a model's positions."""
    if length > model.max_length:
        raise UserError(
            f"{where} has rows of {length} tokens, model.max_length is {model.max_length}; "
            "raise it or make the rows shorter with --sequence_length"
        )


def open_run(path: Path) -> Run:
    """Raises UserError where ``path`` is no run or its files do not fit together."""
    path = location(path)
    if not (path / "run.json").exists():
        raise UserError(f"{path} is no run (it has no run.json)")
    try:
        record = json.loads((path / "run.json").read_bytes())
        identity = record["id"], record["started"]
        settings, fingerprint = record["settings"], record["tokenizer"]
        data = record["store"], record["sequence_length"], record["tokens"]
        counts = record.get("lines"), record.get("rows")
        inventory = Inventory.from_json((path / "inventory.json").read_bytes())
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: run.json or inventory.json is damaged ({error})") from None
    tokenizer = open_tokenizer(path)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(f"{path / tokenizer.file_name} is not the tokenizer of this run")
    return Run(path, *identity, settings, inventory, tokenizer, *data, *counts)


def reopen_run(path: Path, store: Data, configs: list[Any], init_from: Path | None) -> Run | None:
    """Opens a run for the same command given again; None where there is no run yet.

    Raises:
      UserError: ``path`` holds something else, or a run of another model, data or setting.
    """
    path = location(path)
    if not (path / "run.json").exists():
        require_absent(path)
        return None
    run, settings = open_run(path), settings_of(configs, init_from)
    changed = [
        key
        for key in settings
        if settings[key] != run.settings.get(key) and key not in RESUMABLE_SETTINGS
    ]
    if changed:
        was = ", ".join(
            f"{key} = {run.settings.get(key)!r}, now {settings[key]!r}" for key in changed
        )
        raise UserError(f"{path} holds a run with {was}; use the same settings or another --output")
    run.check_store(store)
    if store.manifest.fingerprint != run.store:
        raise UserError(
            f"{path} holds a run on another store than {store.path}; use another --output"
        )
    return run


def start_run(
    path: Path,
    store: Data,
    inventory: Inventory,
    configs: list[Any],
    init_from: Path | None,
    started: float,
) -> Run:
    """Makes the folder of a new run that was started at ``started`` (seconds since the epoch).

    Process 0 does it for all.

    Raises:
      UserError: another process does not see it.
    """
    if is_primary():
        _make_folder(path, store, inventory, configs, init_from, started)
    barrier("run folder")
    if not (path / "run.json").exists():
        raise UserError(
            f"process 0 has made {path}, which is not seen here: --output must be on a disk that "
            "all processes share"
        )
    return open_run(path)


def _make_folder(
    path: Path,
    store: Data,
    inventory: Inventory,
    configs: list[Any],
    init_from: Path | None,
    started: float,
) -> None:
    tokenizer, manifest = store.tokenizer(), store.manifest
    record = {
        "id": secrets.token_hex(6),
        "started": started,
        "settings": settings_of(configs, init_from),
        "tokenizer": tokenizer.fingerprint,
        "store": manifest.fingerprint,
        "sequence_length": manifest.sequence_length,
        **{field: _train_counts(manifest, field) for field in ("tokens", "lines", "rows")},
    }
    with new_folder(path) as folder:
        write_bytes(folder / tokenizer.file_name, tokenizer.model)
        write_text(folder / "inventory.json", inventory.to_json())
        write_text(folder / "config.gin", operative_config())
        write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")


def _train_counts(manifest: Manifest, field: str) -> dict[str, int]:
    return dict(zip(manifest.names, manifest.column("train", field).tolist(), strict=True))


def table_rows(store: Data, known: Inventory | None) -> Inventory:
    """The rows of the two tables of a run: those that are known, then the store's new codes."""
    return (known or EMPTY).extended(store.manifest.names)


def settings_of(configs: list[Any], init_from: Path | None) -> dict[str, Any]:
    """Every setting by its gin name, and what the run starts from."""
    settings = {
        f"{config.gin_name}.{name}": value
        for config in configs
        for name, value in dataclasses.asdict(config).items()
    }
    return {**settings, "init_from": None if init_from is None else str(absolute(init_from))}


class MetricsLog:
    """One JSON object a line in ``metrics.jsonl``, and the same scalars for TensorBoard.

    Lines after ``step`` are of work that was lost with an interrupted run, and are dropped; so
    are TensorBoard's, by the session that starts here. Writing is not in the background: a disk
    that fills up raises here. In an object store a file is written anew to grow: not for every
    line, but before a checkpoint. ``mirror`` is called with all that is written. Of several
    processes the first one writes.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        mirror: Callable[[int, dict[str, float]], None] | None = None,
    ):
        self._mirror = mirror
        self._writes = is_primary()
        if not self._writes:
            return
        file = run / "metrics.jsonl"
        kept = [line for line in read_metrics(file) if line["step"] <= step]
        self._stream = growing_file(file, b"".join(map(_line, kept)))
        events = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._board = RecordWriter(growing_file(run / "tensorboard" / events))
        self._pause = _SECONDS_BETWEEN_OBJECTS if is_remote(run) else 0.0
        self._flushed = time.monotonic()
        self._event(0, file_version="brain.Event:2")
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._writes:
            return
        self._stream.write(_line({"step": step, **values}))
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._event(step, summary=Summary(value=scalars))
        if time.monotonic() - self._flushed >= self._pause:
            self.flush()
        if self._mirror is not None:
            self._mirror(step, values)

    def flush(self) -> None:
        """All that was written outlives the process from here on; a checkpoint needs that."""
        if not self._writes:
            return
        self._stream.flush()
        self._board.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        if not self._writes:
            return
        self._stream.close()
        self._board.close()

    def _event(self, step: int, **content: Any) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        self._board.write(event.SerializeToString())


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The whole lines of ``metrics.jsonl``; the last may be half written, or cut by a kill.

    Raises ValueError where another line is no JSON.
    """
    text = file.read_bytes().decode() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
