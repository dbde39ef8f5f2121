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

import hashlib
import math
import os
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from langsamp_jax.data.manifest import MEND, ROWS_PER_FILE, Manifest, read_manifest
from langsamp_jax.errors import UserError
from langsamp_jax.io.storage import address, is_remote, kvstore, location, sizes
from langsamp_jax.text.tokenizer import Tokenizer, open_tokenizer

_FILE = r'(?:local file| in) "([^"]+)"'  # in TensorStore's messages
_CACHE_BYTES = 128_000_000  # the indices of the files; without it, every row reads one anew
_REQUESTS = 128  # at once to an object store, where a row is a request of tens of milliseconds


class Store:
    """Opens a store.

    Raises:
      UserError: the folder is no store, or a file of it is missing, truncated or changed.
    """

    def __init__(self, path: Path):
        self.path = location(path)
        self.manifest = read_manifest(self.path)
        size_of = sizes(self.path).get if is_remote(self.path) else self._file_size
        for name, (size, _) in self.manifest.files.items():
            if (actual := size_of(name)) != size:
                file = f"{self.path}/{name}"
                fault = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
                raise UserError(f"the store is damaged: {file} {fault}; {MEND}")

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
            raise UserError(f"the store is damaged: {where}: {_reason(error)}; {MEND}") from error
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


def _reason(error: ValueError) -> str:
    """Returns the innermost of TensorStore's nested messages, without its annotations."""
    text = re.split(r" \[(?:source locations|http_response_\w+)=|\n", str(error))[0]
    return re.sub(rf"^.*{_FILE}:? ?", "", text) or text
