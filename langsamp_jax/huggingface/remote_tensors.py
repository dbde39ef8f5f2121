"""The tensors of a safetensors file in an object store, read by ranges of bytes.

The form is https://huggingface.co/docs/safetensors: 8 bytes with the length of the header, the
header in JSON, the tensors one after the other, row by row.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from langsamp_jax.io.storage import read_ranges

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_GAP_BYTES = 256_000  # what lies between is sooner read than a further request answered
_BLOCK_BYTES = 8_000_000  # of neighbours that are read together
_BLOCKS_AT_ONCE = 32


class RemoteTensors:
    """``shapes[name]`` and ``dtypes[name]`` (safetensors' names) of an open file.

    Raises:
      ValueError: the header cannot be, or the file is shorter than it says.
    """

    def __init__(self, file: Path):
        self._file = file
        size = file.stat().length
        length = int.from_bytes(self._bytes([(0, 8)])[0], "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = json.loads(self._bytes([(8, 8 + length)])[0])
        header.pop("__metadata__", None)
        self.shapes = {name: tuple(facts["shape"]) for name, facts in header.items()}
        self.dtypes = {name: facts["dtype"] for name, facts in header.items()}
        self._starts = {n: 8 + length + facts["data_offsets"][0] for n, facts in header.items()}
        if (end := 8 + length + max(f["data_offsets"][1] for f in header.values())) != size:
            raise ValueError(f"{size} bytes instead of {end}")

    def read(self, name: str, parts: Sequence[tuple[slice, ...]]) -> list[np.ndarray]:
        """Parts of a tensor of floats, float32; whole rows are read for each."""
        shape, dtype = self.shapes[name], np.dtype(_DTYPES[self.dtypes[name]])
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        spans = [(part[0] if part else slice(None)).indices(shape[0])[:2] for part in parts]
        values: list[np.ndarray] = [np.empty(0)] * len(parts)
        blocks = _blocks(spans, row_bytes)
        for i in range(0, len(blocks), _BLOCKS_AT_ONCE):
            some = blocks[i : i + _BLOCKS_AT_ONCE]
            bounds = [(spans[b[0]][0], max(spans[part][1] for part in b)) for b in some]
            start = self._starts[name]
            data = self._bytes([(start + a * row_bytes, start + z * row_bytes) for a, z in bounds])
            for block, (first, _), found in zip(some, bounds, data, strict=True):
                rows = np.frombuffer(found, dtype).reshape(-1, *shape[1:])
                for part in block:
                    a, z = spans[part]
                    chosen = rows[a - first : z - first][(slice(None), *parts[part][1:])]
                    values[part] = chosen.astype(np.float32)
        return values

    def _bytes(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        return read_ranges(self._file, ranges)


def _blocks(spans: list[tuple[int, int]], row_bytes: int) -> list[list[int]]:
    """The spans of rows, by number and in the order of their rows, in groups of neighbours."""
    blocks: list[list[int]] = []
    end = 0
    for part in sorted(range(len(spans)), key=spans.__getitem__):
        start, stop = spans[part]
        close = (start - end) * row_bytes <= _GAP_BYTES
        if blocks and close and (stop - spans[blocks[-1][0]][0]) * row_bytes <= _BLOCK_BYTES:
            blocks[-1].append(part)
            end = max(end, stop)
        else:
            blocks.append([part])
            end = stop
    return blocks
