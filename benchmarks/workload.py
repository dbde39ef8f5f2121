"""What the contenders of a benchmark work on: sizes, weights and batches, the same for all."""

import dataclasses
from pathlib import Path
from typing import Any, Self

import numpy as np

WEIGHTS, BATCHES, TABLES = "weights", "batches.npz", "tables.npz"
LEARNING_RATE, CLIP_NORM = 5e-5, 1.0


@dataclasses.dataclass(frozen=True)
class Workload:
    """One optimizer step of XLM-R base, unless said otherwise. Rows are full: no padding."""

    rows: int
    length: int
    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    languages: int = 610
    scripts: int = 30
    dropout: float = 0.1
    warmup: int = 2
    rounds: int = 10

    @property
    def architecture(self) -> dict[str, Any]:
        """The fields of ``ModelConfig`` that all contenders share."""
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        return {
            **{name: getattr(self, name) for name in sizes},
            "hidden_dropout": self.dropout,
            "attention_dropout": self.dropout,
        }

    @property
    def tokens_per_step(self) -> int:
        return self.rows * self.length

    @classmethod
    def preset(cls, name: str, changes: dict[str, Any]) -> Self:
        given = {key: value for key, value in changes.items() if value is not None}
        return dataclasses.replace(PRESETS[name], **given)


PRESETS = {
    "cpu": Workload(rows=16, length=128, vocab_size=250_002),
    "gpu": Workload(rows=64, length=512, vocab_size=401_145, warmup=3, rounds=30),
    "tiny": Workload(
        rows=4,
        length=32,
        vocab_size=503,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        languages=10,
        scripts=3,
        rounds=4,
    ),
}

# Settings of ours besides the dtype: on a CPU, what saves memory and costs no time.
OURS = {"cpu": {"remat": "products"}, "gpu": {}, "tiny": {"remat": "products"}}


def random_batches(workload: Workload, seed: int = 0) -> dict[str, np.ndarray]:
    """int32 tokens [steps, rows, length], ``<s>`` first, ``</s>`` last; ids [steps, rows]."""
    steps, generator = workload.warmup + workload.rounds, np.random.default_rng(seed)
    shape = steps, workload.rows, workload.length
    tokens = generator.integers(4, workload.vocab_size - 1, shape, np.int32)
    tokens[..., 0], tokens[..., -1] = 0, 2
    return {
        "tokens": tokens,
        "language_ids": generator.integers(0, workload.languages, shape[:2], np.int32),
        "script_ids": generator.integers(0, workload.scripts, shape[:2], np.int32),
    }


def load_batches(folder: Path) -> list[dict[str, np.ndarray]]:
    """One dictionary a step."""
    with np.load(folder / BATCHES) as arrays:
        every = {name: arrays[name] for name in arrays.files}
    return [{name: array[i] for name, array in every.items()} for i in range(len(every["tokens"]))]
