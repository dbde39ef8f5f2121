"""Reads a checked checkpoint into sharded parameters.

Each device's part of a parameter is filled chunk by chunk, so a host holds one chunk besides what
its devices hold, whatever the size of the model and however it is sharded.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.hardware.environment import random_key
from langsamp_jax.huggingface import layout
from langsamp_jax.huggingface.pretrained import InitConfig, Pretrained
from langsamp_jax.huggingface.weights import Index
from langsamp_jax.io.progress import Progress
from langsamp_jax.languages.inventory import Inventory
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.text.huggingface_files import read_pieces
from langsamp_jax.text.row_map import RowMap, new_rows, row_map
from langsamp_jax.text.tokenizer import Tokenizer

_CHUNK_BYTES = 8_000_000

Read = Callable[[Index], np.ndarray]


def load_params(
    pretrained: Pretrained,
    model: LangSamp,
    rows: RowMap | None,
    shardings: Any,
    config: InitConfig,
    seed: int,
) -> Any:
    """Returns the parameters of ``model`` with the values of a checkpoint that fits it.

    What the checkpoint does not hold starts at random from ``seed``: the head of a plain encoder,
    the two tables, the rows that a table has beyond the checkpoint's.

    Args:
      pretrained: checked against ``model``, see ``Pretrained.check``.
      rows: which rows of the vocabulary go where, see ``vocabulary_rows``.
      shardings: a NamedSharding for each parameter.

    Raises:
      UserError: a file of the checkpoint is damaged.
    """
    _require_tied(pretrained)
    reader = _Reader(pretrained, model, rows, config, seed)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, random_key(seed))))
    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)
    places = dict(zip((_path(key) for key, _ in flat), jax.tree.leaves(shardings), strict=True))

    absent = [path for path in places if not reader.has(path)]
    fresh = _fresh(model, absent, places, seed)
    leaves = []
    with Progress("reading weights", len(flat), "parameters") as progress:
        for key, leaf in flat:
            if (path := _path(key)) in fresh:
                leaves.append(fresh[path])
            else:
                leaves.append(assemble(leaf.shape, places[path], reader.of(path)))
            progress.advance(1)
    return jax.tree.unflatten(tree, leaves)


def describe(
    pretrained: Pretrained,
    model: LangSamp,
    rows: RowMap | None,
    inventory: Inventory,
    config: InitConfig,
) -> str:
    """Says where the parameters come from, in a few lines: nothing starts at random unsaid."""
    sizes = model.config
    lines = [
        f"start: {pretrained.path} ({sizes.architecture}, {sizes.num_hidden_layers} layers of "
        f"{sizes.hidden_size}, {pretrained.vocab_size:,} pieces)"
    ]
    if rows is not None:
        new = int((rows.carried < 0).sum())
        how = "the mean of what spelled them" if config.new_pieces == "mean" else "random"
        unspelled = f" ({rows.unspelled:,} with an unknown part: random)"
        lines.append(
            f"  new pieces: {new:,}, {how}{unspelled if config.new_pieces == 'mean' else ''}"
        )
    if not pretrained.has_head:
        lines.append("  it is a plain encoder: the language-modelling head starts at random")
    if (known := pretrained.inventory) is not None:
        named = layout.named_tables(sizes, inventory)
        for kind in ("languages", "scripts"):
            if new := getattr(named, kind)[len(getattr(known, kind)) :]:
                lines.append(f"  new {kind}, random: {', '.join(new)}")
    elif sizes.placement != "none":
        lines.append("  the language and script vectors start at random")
    if rows is None and model.vocab_size < pretrained.vocab_size:
        unused = pretrained.vocab_size - model.vocab_size
        lines.append(f"  not used: {unused:,} embeddings behind the last piece")
    if sizes.architecture == "bert":
        lines.append("  not used: the vector of a second text segment")
    if pretrained.not_used:
        lines.append(f"  not used: {', '.join(pretrained.not_used)}")
    return "\n".join(lines)


def vocabulary_rows(pretrained: Pretrained, tokenizer: Tokenizer) -> RowMap | None:
    """Finds which row of the checkpoint each piece of ``tokenizer`` takes; None: the same rows.

    Raises:
      UserError: the tokenizer is neither the checkpoint's nor an extension of it, or the
        checkpoint's does not fit its weights.
    """
    path, size = pretrained.path, pretrained.vocab_size
    old = read_pieces(path)
    if old is None:
        if size == tokenizer.vocab_size:
            return None
        raise UserError(
            f"{path} has {size:,} embeddings and no tokenizer to tell whose they are; the text's "
            f"tokenizer has {tokenizer.vocab_size:,} pieces"
        )
    if len(old.pieces) != size and not is_padded(len(old.pieces), size):
        raise UserError(
            f"{path}: its tokenizer has {len(old.pieces):,} pieces, its weights {size:,}; the "
            "tokenizer is of another model"
        )
    new_pieces = tokenizer.pieces
    return None if old.pieces == new_pieces else row_map(old, new_pieces, tokenizer.scores)


def is_padded(pieces: int, rows: int) -> bool:
    """Returns whether ``rows`` is ``pieces`` rounded up to a multiple of 8, 16, ... or 1,024.

    So do the published XL and XXL (250,880 rows for XLM-R's 250,002 pieces), and the option
    ``pad_to_multiple_of`` of ``transformers``.
    """
    multiple = min(1024, rows & -rows)  # the largest power of two that divides the rows
    return multiple >= 8 and 0 < rows - pieces < multiple


def _require_tied(pretrained: Pretrained) -> None:
    """Raises UserError where a checkpoint stores the decoder again, and not as the embeddings."""
    weights = pretrained.weights
    tied = layout.tied_names(pretrained.fields["architecture"])
    for copy, name in tied.items():
        if copy not in weights.shapes:
            continue
        rows = weights.shapes[name][0]
        step = _CHUNK_BYTES // (4 * int(np.prod(weights.shapes[name][1:])))
        parts = [(slice(start, min(start + step, rows)),) for start in range(0, rows, step)]
        if weights.shapes[copy] != weights.shapes[name] or not all(
            np.array_equal(weights.read(copy, part), weights.read(name, part)) for part in parts
        ):
            raise UserError(f"{pretrained.path}: {copy} is not {name}; untied is not supported")


def assemble(shape: tuple[int, ...], sharding: jax.sharding.Sharding, read: Read) -> jax.Array:
    """Makes a sharded float32 array of what ``read(index)`` gives, chunk by chunk along axis 0."""
    replicas = defaultdict(list)
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        replicas[bounds].append(device)
    arrays = []
    for bounds, devices in replicas.items():
        local = tuple(stop - start for start, stop in bounds)
        (first, last), rest = bounds[0], tuple(slice(*pair) for pair in bounds[1:])
        step = max(1, _CHUNK_BYTES * local[0] // (4 * int(np.prod(local))))
        if step >= local[0]:
            whole = read((slice(first, last), *rest))
            arrays += [jax.device_put(whole, device) for device in devices]
            continue
        parts = [jnp.zeros(local, device=device) for device in devices]
        for start in range(first, last, step):
            chunk = read((slice(start, min(start + step, last)), *rest))
            for i, device in enumerate(devices):
                parts[i] = _write(parts[i], jax.device_put(chunk, device), start - first)
        arrays += parts
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


@jax.jit(donate_argnums=0)
def _write(whole: jax.Array, chunk: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, chunk, start, 0)


class _Reader:
    """Gives any part of any parameter that the checkpoint holds."""

    def __init__(
        self,
        pretrained: Pretrained,
        model: LangSamp,
        rows: RowMap | None,
        config: InitConfig,
        seed: int,
    ):
        self._pretrained, self._weights = pretrained, pretrained.weights
        self._model, self._rows, self._config, self._seed = model, rows, config, seed
        self._names = layout.tensor_names(model.config)

    def has(self, path: str) -> bool:
        """Returns whether the checkpoint holds a parameter."""
        if path.startswith("conditioning/"):
            return self._pretrained.inventory is not None
        return self._pretrained.has_head or not path.startswith(("head/", "decoder_bias"))

    def of(self, path: str) -> Read:
        """Returns the function that reads any part of a parameter."""
        name = self._names[path]
        if path in ("word_embeddings", "decoder_bias"):
            return lambda index: self._vocabulary(name, index)
        if path == "encoder/position_embeddings":
            return lambda index: self._positions(name, index)
        if path.startswith("conditioning/"):
            return lambda index: self._table(name, index)
        transposed = path.endswith("/kernel")
        if "{layer}" not in name:
            return lambda index: self._tensor(name, index, transposed)
        return lambda index: np.stack(
            [
                self._tensor(name.format(layer=layer), index[1:], transposed)
                for layer in range(index[0].start, index[0].stop)
            ]
        )

    def _tensor(self, name: str, index: Index, transposed: bool) -> np.ndarray:
        if transposed:
            return self._weights.read(name, index[::-1]).T
        return self._weights.read(name, index)

    def _positions(self, name: str, index: Index) -> np.ndarray:
        """Reads positions, with the token-type vector of the first segment added."""
        rows, columns = index
        first = layout.first_position(self._model.config.architecture, self._pretrained.pad_id)
        moved = slice(rows.start + first, rows.stop + first)
        positions = self._weights.read(name, (moved, columns))
        if not self._pretrained.has_token_types:
            return positions
        types = layout.token_types(self._model.config)
        return positions + self._weights.read(types, (slice(0, 1), columns))

    def _vocabulary(self, name: str, index: Index) -> np.ndarray:
        """Reads rows of the embeddings or the decoder's bias; what pads the vocabulary is zero."""
        rows, *columns = index
        pieces = _below(self._model.vocab_size, rows)
        if self._rows is None:
            values = self._weights.read(name, (pieces, *columns))
        else:
            width = self._model.config.hidden_size
            values = new_rows(
                self._rows,
                pieces,
                lambda old: self._weights.gather(name, old, tuple(columns)),
                self._config.new_pieces,
                self._seed,
                (width, columns[0]) if columns else None,
            )
        padding = rows.stop - rows.start - len(values)
        return np.pad(values, [(0, padding)] + [(0, 0)] * len(columns))

    def _table(self, name: str, index: Index) -> np.ndarray:
        """Reads rows of languages or scripts; those behind the checkpoint's start at random."""
        rows, columns = index
        num_old, width = self._weights.shapes[name]
        old = self._weights.read(name, (_below(num_old, rows), columns))
        deviation = self._model.config.initializer_range
        is_script = name.endswith(layout.SCRIPT_TABLE)
        new = [
            np.random.default_rng((self._seed, is_script, row)).normal(0, deviation, width)[columns]
            for row in range(max(num_old, rows.start), rows.stop)
        ]
        return np.concatenate([old, np.array(new, np.float32).reshape(-1, old.shape[1])])


def _fresh(
    model: LangSamp, absent: list[str], places: dict[str, Any], seed: int
) -> dict[str, jax.Array]:
    """Initialises the ``absent`` parameters at random, by path; no others are computed."""
    if not absent:
        return {}

    def initialise() -> dict[str, jax.Array]:
        params = nn.unbox(init_params(model, random_key(seed)))
        flat, _ = jax.tree_util.tree_flatten_with_path(params)
        return {_path(key): leaf for key, leaf in flat if _path(key) in absent}

    return jax.jit(initialise, out_shardings={path: places[path] for path in absent})()


def _below(size: int, rows: slice) -> slice:
    """Returns the part of ``rows`` that a table of ``size`` rows has.

    Where it has none, [0:0]: safetensors refuses [size:size].
    """
    return slice(rows.start, min(rows.stop, size)) if rows.start < size else slice(0, 0)


def _path(key: Any) -> str:
    """Returns ``encoder/layers/...`` from a key path of JAX."""
    return "/".join(entry.key for entry in key)
