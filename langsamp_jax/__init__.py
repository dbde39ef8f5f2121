"""LangSAMP-JAX: multilingual encoder pretraining with language and script embeddings.

    import langsamp_jax

    run = langsamp_jax.train("store", "run", gin_files=["small_text.gin"])
    model = langsamp_jax.load_model(run.path)  # or the folder of any Hugging Face encoder
    vectors = model.encode(["Guten Morgen.", "Wie geht es?"])  # float32 [2, hidden size]
    model.fill_mask("Ich trinke <mask>.", "deu_Latn")  # [[(" Tee", 0.31), ...]]

What is named in ``__all__`` is promised to users, and loaded when it is asked for.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langsamp_jax.data.store import Store
    from langsamp_jax.evaluation.model import load_model
    from langsamp_jax.training.run import Run

__version__ = "0.1.0"
__all__ = ["Store", "load_model", "train"]

_MODULES = {"Store": "langsamp_jax.data.store", "load_model": "langsamp_jax.evaluation.model"}


def train(
    store: "str | PurePath | Store",
    output: str | PurePath,
    overrides: Mapping[str, Any] | None = None,
    gin_files: Sequence[str] = (),
    init_from: str | PurePath | None = None,
) -> "Run":
    """Trains on a store into the run folder ``output``, or goes on with the run there.

    It is ``langsamp train``: the same settings give the same run.

    Args:
      store: a folder that ``langsamp prepare`` has made, or an open ``Store``.
      overrides: settings by their gin names, ``{"train.num_steps": 100}``; they win.
      gin_files: settings in files, as ``--gin_file`` takes them; ``small_text.gin`` is a small
        model. They replace whatever gin has bound in this process.
      init_from: a Hugging Face folder whose weights and sizes the run starts from; None: random.

    Returns:
      the run; ``load_model(run.path)`` opens its best checkpoint.

    Raises:
      UserError: a setting or a file is not as it should be, or the loss is not finite.
      Stopped: by SIGTERM or Ctrl-C, after a checkpoint; the same call goes on.
    """
    from langsamp_jax.config import parse_gin
    from langsamp_jax.data.store import Store
    from langsamp_jax.io.storage import location
    from langsamp_jax.training import loop
    from langsamp_jax.training.config import Configs, configs_from_gin, with_overrides
    from langsamp_jax.training.resume import model_sizes

    configs, start = Configs(), None if init_from is None else location(init_from)
    if gin_files:
        parse_gin(gin_files, [])
        configs = configs_from_gin()
    output = location(output)
    settings = {**model_sizes(output, start), **(overrides or {})}
    data = store if isinstance(store, Store) else Store(store)
    return loop.train(data, output, with_overrides(configs, settings), start)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
