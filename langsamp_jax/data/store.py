"""The packed store: token rows of each language-script as zarr3 arrays beside one manifest.

    STORE/manifest.json                 counts, file sizes, vocabulary; sealed with a hash of itself
    STORE/tokenizer.model               what the rows were made with; tokenizer.json if WordPiece
    STORE/train/deu_Latn/               uint32 [rows, sequence_length], one row per inner chunk
    STORE/validation/deu_Latn/          the same; only its last row may be shorter
    STORE/origin.json, STORE/lines/     how it was made, for ``prepare``; not needed to read it

Rows are compressed and checksummed one by one (zstd, crc32c), so that random rows are cheap and
a flipped byte is an error that names its file. The shapes stand in the manifest, so that
opening reads nothing else.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import write_text
from langsamp_jax.io.storage import address, is_remote, kvstore, location, sizes
from langsamp_jax.text.tokenizer import Tokenizer, Vocabulary, open_tokenizer

SPLITS = ("train", "validation")
ROWS_PER_FILE = 2048  # a random read of a file not in the cache first reads 16 bytes a row of index

_FORMAT = "langsamp-store/3"
_FILE = r'(?:local file| in) "([^"]+)"'  # in TensorStore's messages
_MEND = "remove the store and prepare it again"
_CACHE_BYTES = 128_000_000  # the indices of the files; without it, every row reads one anew
_REQUESTS = 128  # at once to an object store, where a row is a request of tens of milliseconds


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


class Store:
    """Opens a store.

    Raises:
      UserError: the folder is no store, or a file of it is missing, truncated or changed.
    """

    def __init__(self, path: Path):
        self.path = location(path)
        self.manifest = _read_manifest(self.path)
        size_of = sizes(self.path).get if is_remote(self.path) else self._file_size
        for name, (size, _) in self.manifest.files.items():
            if (actual := size_of(name)) != size:
                file = f"{self.path}/{name}"
                fault = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
                raise UserError(f"the store is damaged: {file} {fault}; {_MEND}")

    def _file_size(self, name: str) -> int | None:
        try:
            return os.stat(f"{self.path}/{name}").st_size  # making a Path takes longer than stat
        except FileNotFoundError:
            return None

    def tokenizer(self) -> Tokenizer:
        """Reads the tokenizer; raises UserError where it is another than at preparation."""
        tokenizer = open_tokenizer(self.path)
        if tokenizer.fingerprint != self.manifest.tokenizer:
            file = self.path / tokenizer.file_name
            raise UserError(f"{file} is not the tokenizer that this store was prepared with")
        return tokenizer

    def split(self, split: str) -> "Split":
        return Split(self, split)


class Split:
    """Reads the rows of one split, addressed by (language index, row index).

    Attributes:
      names: the language-scripts, in manifest order.
      rows: int64 [languages].
    """

    def __init__(self, store: Store, split: str):
        manifest = store.manifest
        self.path = store.path / split
        self.names = manifest.names
        self.sequence_length = manifest.sequence_length
        self.rows = manifest.column(split, "rows")
        self._tokens = manifest.column(split, "tokens")
        self._first = np.cumsum(self.rows) - self.rows
        context = ts.Context(
            {
                "cache_pool": {"total_bytes_limit": _CACHE_BYTES},
                "gcs_request_concurrency": {"limit": _REQUESTS},
                "s3_request_concurrency": {"limit": _REQUESTS},
            }
        )
        opening = [
            ts.open(
                {
                    **array_spec(
                        self.path / name, int(rows), self.sequence_length, manifest.rows_per_file
                    ),
                    "recheck_cached_data": "open",  # a store does not change: no stat for each row
                },
                assume_metadata=True,
                open=True,
                context=context,
            )
            for name, rows in zip(self.names, self.rows, strict=True)
            if rows
        ]
        self._all = ts.concat([array.result() for array in opening], axis=0) if opening else None

    def read(self, language: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads any rows of any languages in one go.

        Args:
          language, row: int64 [n].

        Returns:
          tokens: int32 [n, sequence_length], and lengths: int32 [n], how many of them are valid.

        Raises:
          UserError: a row cannot be read as it was written; its file is named.
        """
        try:
            tokens = self._all[self._first[language] + row].read().result()
        except ValueError as error:  # TensorStore's DATA_LOSS, NOT_FOUND, FAILED_PRECONDITION
            file = re.search(_FILE, str(error))
            where = address(self.path, file.group(1)) if file else self.path
            if re.match("PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE", str(error)):
                raise UserError(f"{where} cannot be read: {_reason(error)}") from error
            raise UserError(f"the store is damaged: {where}: {_reason(error)}; {_MEND}") from error
        remaining = self._tokens[language] - row * self.sequence_length
        return tokens.view(np.int32), np.minimum(remaining, self.sequence_length).astype(np.int32)


class Data(Protocol):
    """Names what a run is trained on: a ``Store``, or a seqio Mixture that is packed meanwhile."""

    path: Path
    manifest: Manifest

    def tokenizer(self) -> Tokenizer: ...

    def split(self, split: str) -> Split: ...


def array_spec(
    path: Path, rows: int, sequence_length: int, rows_per_file: int = ROWS_PER_FILE
) -> dict[str, Any]:
    """Returns the TensorStore spec of one language-script's array."""
    inner = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 3}},
        {"name": "crc32c"},
    ]
    sharding = {
        "chunk_shape": [1, sequence_length],
        "codecs": inner,
        "index_codecs": [inner[0], inner[2]],
    }
    # A file has 16 bytes of index for every row that it could hold: no more than there are.
    grid = {"chunk_shape": [min(rows, rows_per_file), sequence_length]}
    return {
        "driver": "zarr3",
        "kvstore": kvstore(path),
        "fill_missing_data_reads": False,
        "metadata": {
            "shape": [rows, sequence_length],
            "data_type": "uint32",
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": grid},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
    }


def file_digest(file: Path) -> str:
    """Returns a hash of the bytes of a file of rows."""
    return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()


def row_files(rows: int) -> list[str]:
    """Returns the files, relative to an array's folder, that hold its rows."""
    return [f"c/{shard}/0" for shard in range(math.ceil(rows / ROWS_PER_FILE))]


def _read_manifest(store: Path) -> Manifest:
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
        raise UserError(f"the store is damaged: {file} was cut or changed; {_MEND}") from error


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _reason(error: ValueError) -> str:
    """Returns the innermost of TensorStore's nested messages, without its annotations."""
    text = re.split(r" \[(?:source locations|http_response_\w+)=|\n", str(error))[0]
    return re.sub(rf"^.*{_FILE}:? ?", "", text) or text
