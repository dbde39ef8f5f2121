"""What a folder is from which no model can be read: in one line, with what to do about it."""

import json
import re
from pathlib import Path
from typing import Any

from langsamp_jax.io.storage import is_remote, sizes

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_UNREAD = {".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite", ".safetensors", ".bin"}


def why_no_model(path: Path) -> str | None:
    """Says what ``path`` is in place of a Hugging Face model's folder; None where it may be one, or
    is nothing that is known."""
    if (adapter := path / "adapter_config.json").exists():
        base = _read(adapter, {}).get("base_model_name_or_path")
        return (
            f"{path} is a PEFT adapter of {base}, without the model's own weights; merge the two "
            "(merge_and_unload), save_pretrained the result, and name that folder"
        )
    if (path / "config.json").exists():
        return None
    if (path / "run.json").exists():
        return f"{path} is a run; export it first: langsamp export --run {path} --output FOLDER"
    if is_remote(path):
        return None
    if path.is_file():
        return f"{path} is a file; name its folder, which has config.json and the weights"
    if not path.exists() and _HUB_NAME.fullmatch(str(path)):
        fetch = f"hf download {path} --local-dir {path.name}"
        return f"there is no folder {path}; if it is a model of the Hugging Face hub: {fetch}"
    inner = _model_within(path)
    return inner and f"{path} holds a model, and is none itself; name {inner}"


def why_no_weights(folder: Path) -> str:
    """Says why a folder has none of the files from which weights are read."""
    names = file_names(folder)
    gone = [name for name in names if (folder / name).is_symlink() and not (folder / name).exists()]
    unread = [name for name in names if Path(name).suffix in _UNREAD and name not in gone]
    line = f"{folder} has no weights (no model.safetensors, no pytorch_model.bin)"
    if gone:
        line += f"; {', '.join(gone[:3])} links to a file that is gone: download the model again"
    elif unread:
        line += (
            f"; {', '.join(unread[:3])} is not read: load the model with transformers, and "
            "save_pretrained it"
        )
    return line


def file_names(folder: Path) -> list[str]:
    """Lists the files in a folder and in the folders in it, by their names there."""
    if is_remote(folder):
        return sorted(sizes(folder))
    files = [*folder.glob("*"), *folder.glob("*/*")]
    return sorted(file.relative_to(folder).as_posix() for file in files if not file.is_dir())


def _model_within(path: Path) -> Path | None:
    """Finds the model in a folder of the hub's cache, or of sentence-transformers."""
    main, modules = path / "refs" / "main", path / "modules.json"
    revisions = [main.read_text("utf-8").strip()] if main.is_file() else []
    revisions += sorted(file.name for file in (path / "snapshots").glob("*"))
    parts = _read(modules, []) if modules.is_file() else []
    parts = [str(part.get("path")) for part in parts if isinstance(part, dict)]
    parts += [f"snapshots/{revision}" for revision in revisions]
    return next((path / part for part in parts if (path / part / "config.json").exists()), None)


def _read(file: Path, damaged: Any) -> Any:
    """Reads JSON of the type of ``damaged``, which is returned for anything else."""
    try:
        value = json.loads(file.read_bytes())
    except ValueError:
        return damaged
    return value if isinstance(value, type(damaged)) else damaged
