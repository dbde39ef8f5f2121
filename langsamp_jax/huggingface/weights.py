"""The tensors of a Hugging Face model folder, read slice by slice.

A safetensors file is opened for each read and closed again: what a memory map has touched counts as
the process's memory for as long as it is open. No pickle is executed: ``.bin`` files are read with
torch's ``weights_only``, which refuses everything but tensors. Files in an object store are copied
to the temporary folder before values are read; the shapes are in the head of a safetensors file.
"""

import contextlib
import functools
import hashlib
import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  makes "bfloat16" a NumPy dtype, for safetensors
import numpy as np
from safetensors import SafetensorError, safe_open

from langsamp_jax.errors import UserError
from langsamp_jax.huggingface.folder import file_names, why_no_weights
from langsamp_jax.io.files import full_disk_as_oserror, require_fetched
from langsamp_jax.io.storage import download, is_remote, location, sizes

Index = tuple[slice, ...]

# In order of preference: one file, or an index that names the file of each tensor.
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_BIN = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SHARD = re.compile(r"(model|pytorch_model)-(\d+)-of-(\d*[1-9]\d*)(\.safetensors|\.bin)")
_PARTS_AT_ONCE = 256  # a touched row maps 64 kB around it
_FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}


class Weights:
    """Gives the tensors of ``folder`` by name: ``shapes[name]``, and float32 values by ``read``.

    A copy of files in an object store is removed with this object, or when the process ends.

    Raises:
      UserError: there are no weights, a file is missing or damaged, or a ``.bin`` holds anything
        but tensors.
    """

    def __init__(self, folder: Path):
        self._tensors: dict[str, tuple[Path, str]] = {}
        self._loaded: dict[Path, dict[str, Any]] = {}  # of .bin files
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files = _files(location(folder))
        for file in self._files:  # messages name the file, never the copy
            if file.suffix == ".bin":
                self._loaded[file] = _load_bin(file, self._copies[file])
                shapes = {name: tuple(tensor.shape) for name, tensor in self._loaded[file].items()}
            else:
                shapes = _shapes(file)
            self._tensors |= {name: (file, name) for name in shapes}
            self.shapes |= shapes

    def contents(self) -> dict[str, dict[str, Any]]:
        """Returns ``bytes`` and ``sha256`` of each file, by its name; reads all of them: seconds
        for a GB."""
        return {file.name: _content(copy) for file, copy in self._copies.items()}

    def rename(self, names: Callable[[str], str]) -> None:
        """Renames every tensor ``name`` to ``names(name)``."""
        self._tensors = {names(name): where for name, where in self._tensors.items()}
        self.shapes = {names(name): shape for name, shape in self.shapes.items()}

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """Reads a part of a tensor, float32.

        Raises:
          UserError: the file is damaged, or a value is not finite.
        """
        return self._read(name, [index])[0]

    def gather(self, name: str, rows: np.ndarray, columns: Index = ()) -> np.ndarray:
        """Reads rows of a tensor, one at least, in any order: float32 [len(rows), ...]."""
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1  # neighbours are read in one go
        runs = np.split(rows, cuts)
        parts = [(slice(int(run[0]), int(run[-1]) + 1), *columns) for run in runs]
        return np.concatenate(self._read(name, parts))

    def _read(self, name: str, parts: list[Index]) -> list[np.ndarray]:
        file, stored = self._tensors[name]
        if file in self._loaded:
            tensor = self._loaded[file][stored]
            _require_float(file, stored, str(tensor.dtype).removeprefix("torch."))
            values = [tensor[part].float().numpy() for part in parts]
        else:
            values = []
            for start in range(0, len(parts), _PARTS_AT_ONCE):
                some = parts[start : start + _PARTS_AT_ONCE]
                values += _slices(file, self._copies[file], stored, some)
        if not all(np.isfinite(value).all() for value in values):
            raise UserError(f"{file}: {stored} has values that are not finite")
        return values

    @functools.cached_property
    def _copies(self) -> dict[Path, Path]:
        """Maps each file to itself, or to a copy where it is in an object store."""
        copies = self._files
        if is_remote(copies[0]):
            scratch = Path(tempfile.mkdtemp(prefix="langsamp-"))
            weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
            with full_disk_as_oserror(scratch):
                copies = download(self._files, scratch)
        return dict(zip(self._files, copies, strict=True))


def has_contents(folder: Path, contents: Mapping[str, Mapping[str, Any]]) -> bool:
    """Returns whether the weights in ``folder`` are those whose ``contents`` were recorded.

    In an object store their names and sizes are compared, so that nothing is copied.
    """
    files = {file.name: file for file in _files(location(folder))}
    if files.keys() != contents.keys():
        return False
    if is_remote(folder):
        there = sizes(folder)
        return all(there[name] == contents[name]["bytes"] for name in files)
    same_size = all(file.stat().st_size == contents[n]["bytes"] for n, file in files.items())
    return same_size and all(_content(file) == contents[n] for n, file in files.items())


def _content(file: Path) -> dict[str, Any]:
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _slices(file: Path, copy: Path, name: str, parts: list[Index]) -> list[np.ndarray]:
    with _reading(file), safe_open(copy, framework="np") as tensors:
        tensor = tensors.get_slice(name)
        _require_float(file, name, tensor.get_dtype())
        return [np.asarray(tensor[part or slice(None)], np.float32) for part in parts]


def _require_float(file: Path, name: str, dtype: str) -> None:
    """Raises UserError for a tensor of integers or of a type that is not supported."""
    if dtype not in _FLOATS:
        raise UserError(f"{file}: {name} has numbers of type {dtype}, which is not supported")


def _files(folder: Path) -> list[Path]:
    """Returns the files of weights; raises UserError where there are none."""
    for single, index in (_SAFETENSORS, _BIN):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder, folder / index)
    return _numbered_shards(folder)


def _numbered_shards(folder: Path) -> list[Path]:
    """Returns shards that no index names, complete by the numbers in their names.

    Raises:
      UserError: there are no weights, or some of the shards are missing.
    """
    sets: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in file_names(folder):
        if match := _SHARD.fullmatch(name):
            stem, number, total, suffix = match.groups()
            sets.setdefault((stem, total, suffix), {})[int(number)] = name
    faults = []
    for (stem, total, suffix), names in sorted(sets.items()):
        numbers = range(1, int(total) + 1)
        missing = [f"{stem}-{n:05}-of-{total}{suffix}" for n in numbers if n not in names]
        if not missing:
            return [folder / names[n] for n in numbers]
        faults.append(f"{folder} lacks {_some(missing, len(numbers))}")
    raise UserError(faults[0] if faults else why_no_weights(folder))


def _shards(folder: Path, index: Path) -> list[Path]:
    """Returns the files that an index names; raises UserError where one of them is missing."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is damaged ({error})") from None
    here = {name for name in names if isinstance(name, str) and Path(name).name == name}
    missing = names - {name for name in here if (folder / name).is_file()}
    if missing:
        raise UserError(f"{index} names {_some(sorted(map(str, missing)), len(names))}: not there")
    return [folder / name for name in sorted(names)]


def _some(missing: list[str], total: int) -> str:
    """Names the first of the shards that are missing, and counts them."""
    return f"{', '.join(missing[:3])} ({len(missing)} of {total} shards are missing; download them)"


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of a ``.safetensors``; in an object store, from one request for its head."""
    with file.open("rb") as stream:
        start = stream.read(100)
        require_fetched(start, file)
        if is_remote(file):
            size = int.from_bytes(start[:8], "little")
            text = (start[8:] + stream.read(max(0, size - 92)))[:size]
    if not is_remote(file):
        with _reading(file), safe_open(file, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    with _reading(file):
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends = [tensor["data_offsets"][1] for tensor in header.values()]
        if file.stat().length != 8 + size + max(ends, default=0):
            raise ValueError("its length is not what its header says")
        return {name: tuple(tensor["shape"]) for name, tensor in header.items()}


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns what a damaged file makes the block raise into a UserError that names it."""
    try:
        yield
    except (SafetensorError, OSError, EOFError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is damaged or cut short ({reason}); copy it again") from error


def _load_bin(file: Path, copy: Path) -> dict[str, Any]:
    """Reads the tensors of a ``.bin``, mapped from the disk where its form allows it."""
    with copy.open("rb") as stream:
        require_fetched(stream.read(100), file)
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file}: reading .bin weights needs PyTorch (pip install 'langsamp-jax[torch]'); "
            "safetensors files need nothing"
        ) from None
    import pickle
    import warnings

    warnings.filterwarnings("ignore", module="torch._weights_only_unpickler")
    for mmap in (True, False):  # files of before torch 1.6 cannot be mapped
        try:
            loaded = torch.load(copy, map_location="cpu", weights_only=True, mmap=mmap)
            break
        except pickle.UnpicklingError:
            raise UserError(
                f"{file} holds something other than tensors and is refused: loading it could run "
                "code (a safetensors file cannot)"
            ) from None
        except (RuntimeError, EOFError) as error:
            if not mmap:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{file} is damaged or cut short ({reason})") from None
    if not (isinstance(loaded, dict) and all(torch.is_tensor(v) for v in loaded.values())):
        raise UserError(f"{file} is no dictionary of tensors")
    return loaded
