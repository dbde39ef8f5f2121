"""The folder of a run: what it was started with, its metrics, and everything a checkpoint needs.

RUN/run.json           the resolved configs; the store, the tokenizer and the weights it was started
                       with, by their content; versions and device
RUN/config.gin         the operative gin
RUN/tokenizer.model (tokenizer.json if WordPiece), RUN/inventory.json
RUN/metrics.jsonl, RUN/tensorboard/, RUN/checkpoints/, RUN/snapshots/
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from langsamp_jax.data.store import Data
from langsamp_jax.errors import UserError
from langsamp_jax.io.storage import absolute, location
from langsamp_jax.languages.inventory import Inventory
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.text.tokenizer import Tokenizer, open_tokenizer

# What may differ when a run is resumed: it changes what a step computes by rounding at most.
RESUMABLE_SETTINGS = {
    "train.checkpoint_every",
    "train.eval_every",
    "train.log_every",
    "train.max_to_keep",
    "train.snapshots",
    "train.snapshot_every",
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


@dataclasses.dataclass(frozen=True)
class Run:
    """Holds the record of a run: what is needed to rebuild its model and read its text.

    Opening one loads neither Flax nor Orbax; ``setup.py`` builds the model and reads checkpoints.
    """

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
    # By name, the bytes and SHA-256 of the files of weights that it was started from.
    weights: dict[str, dict[str, Any]] | None  # None: from none, or an older run
    environment: dict[str, Any] | None  # see hardware/environment.py; None: an older run
    store_path: str | None  # where the store was at the start; None: an older run

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    def config(self, cls: type) -> Any:
        """Returns the frozen config of class ``cls`` that the run was started with."""
        prefix = cls.gin_name + "."
        fields = {
            k.removeprefix(prefix): v for k, v in self.settings.items() if k.startswith(prefix)
        }
        return cls(**fields)

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


def require_rows_fit(where: str | Path, length: int, model: ModelConfig) -> None:
    """Raises UserError where rows of ``length`` tokens are longer than a model's positions."""
    if length > model.max_length:
        raise UserError(
            f"{where} has rows of {length} tokens, model.max_length is {model.max_length}; "
            "raise it or make the rows shorter with --sequence_length"
        )


def open_run(path: Path) -> Run:
    """Opens the run in the folder ``path``.

    Raises:
      UserError: it is no run, or its files do not fit together.
    """
    path = location(path)
    if not (path / "run.json").exists():
        raise UserError(f"{path} is no run (it has no run.json)")
    try:
        record = json.loads((path / "run.json").read_bytes())
        identity = record["id"], record["started"]
        settings, fingerprint = record["settings"], record["tokenizer"]
        data = record["store"], record["sequence_length"], record["tokens"]
        names = ("lines", "rows", "weights", "environment", "store_path")
        later = (record.get(field) for field in names)
        inventory = Inventory.from_json((path / "inventory.json").read_bytes())
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: run.json or inventory.json is damaged ({error})") from None
    tokenizer = open_tokenizer(path)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(f"{path / tokenizer.file_name} is not the tokenizer of this run")
    return Run(path, *identity, settings, inventory, tokenizer, *data, *later)


def settings_of(configs: list[Any], init_from: Path | None) -> dict[str, Any]:
    """Returns every setting by its gin name, and what the run starts from."""
    settings = {
        f"{config.gin_name}.{name}": value
        for config in configs
        for name, value in dataclasses.asdict(config).items()
    }
    return {**settings, "init_from": None if init_from is None else str(absolute(init_from))}


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Reads the whole lines of ``metrics.jsonl``; the last may be half written, or cut by a kill.

    Raises:
      ValueError: another line is no JSON.
    """
    text = file.read_bytes().decode() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
