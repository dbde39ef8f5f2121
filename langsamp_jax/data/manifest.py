"""The manifest of a store: what it holds, sealed with a hash of itself."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import write_text
from langsamp_jax.text.tokenizer import Vocabulary

SPLITS = ("train", "validation")
ROWS_PER_FILE = 2048  # a random read of a file not in the cache first reads 16 bytes a row of index
MEND = "remove the store and prepare it again"

_FORMAT = "langsamp-store/3"


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts what one split holds of one language-script.

    ``tokens`` are those of the text with ``<s>`` and ``</s>``; what is left after the last full
    row is dropped from training and kept as a shorter last row for validation.
    """

    lines: int
    tokens: int
    unknown: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Describes the store: ``counts[split][name]``, ``skipped[name]`` = why, and
    ``files[path]`` = bytes and ``file_digest``."""

    sequence_length: int
    vocabulary: Vocabulary
    tokenizer: str
    counts: dict[str, dict[str, Counts]]
    skipped: dict[str, str]
    files: dict[str, tuple[int, str]]
    rows_per_file: int = ROWS_PER_FILE

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the language-scripts, sorted; every array of the store follows this order."""
        return tuple(self.counts["train"])

    def column(self, split: str, field: str) -> np.ndarray:
        """Returns one count of every language-script, int64 [names]."""
        return np.array([getattr(self.counts[split][n], field) for n in self.names], np.int64)

    @property
    def fingerprint(self) -> str:
        """Returns the SHA-256 of it all: other rows or another tokenizer give another."""
        return _seal(self._body())

    def save(self, store: Path) -> None:
        body = {**self._body(), "seal": self.fingerprint}
        write_text(store / "manifest.json", json.dumps(body, indent=1) + "\n")

    def _body(self) -> dict[str, Any]:
        return {"format": _FORMAT, **dataclasses.asdict(self)}


def read_manifest(store: Path) -> Manifest:
    """Reads the manifest of a store; raises UserError where the folder is none, or damaged."""
    file = store / "manifest.json"
    if not file.exists():
        raise UserError(
            f"{store} is no store (it has no manifest.json); make one: langsamp prepare"
        )
    try:
        body = json.loads(file.read_bytes())
        seal = body.pop("seal")
        layout = body.pop("format")
        if layout != _FORMAT:
            raise UserError(f"{file}: format {layout!r}, this version reads {_FORMAT!r}")
        if seal != _seal({"format": layout, **body}):
            raise ValueError("the seal does not fit")
        counts = {
            split: {name: Counts(**fields) for name, fields in languages.items()}
            for split, languages in body.pop("counts").items()
        }
        vocabulary = Vocabulary(*body.pop("vocabulary"))
        files = {name: (size, digest) for name, (size, digest) in body.pop("files").items()}
        return Manifest(counts=counts, vocabulary=vocabulary, files=files, **body)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"the store is damaged: {file} was cut or changed; {MEND}") from error


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
