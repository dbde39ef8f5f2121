"""The word embeddings at both ends of the model: lookup, and cross-entropy of the tied decoder.

On a mesh the table [vocab, hidden] lies with its pieces along ``tensor`` and its columns along
``fsdp``. Neither end ever gathers it. Each exchanges (all-to-all) columns for rows within an
``fsdp`` group, here of two devices, A and B:

              columns                         columns
            +----+----+                     +---------+
            |    |    |                     |    A    |
      rows  | A  | B  |   -- exchange -->   +---------+
            |    |    |                     |    B    |
            +----+----+                     +---------+

* lookup: the rows are those of the batch. Each device looks its columns up for the rows of the
  whole group; the exchange leaves it its own rows, whole.
* decoder: the rows are the pieces of the table. The exchange leaves each device some pieces, whole.
  It gathers the group's features, which are far smaller, and computes the logits of its pieces.

The backward pass exchanges the gradients the other way.

The gradients of both ends are added up before they are reduced over ``data``: one reduction of a
table, not two. For that, ``lookup`` hands on one copy of the table for each ``data`` replica.
Derivatives are written out, so that what is communicated is what stands here; and those of the
decoder come out of the forward pass, which then need not compute its logits twice.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from langsamp_jax.hardware.cpu import matmul_nt, matmul_tn, product

_ROWS = P(("data", "fsdp"))
_TABLE = P("tensor", "fsdp")
_COPIES = P("data", "tensor", "fsdp")
_BIAS = P("tensor")
_PIECES = ("tensor", "fsdp")  # the axes that the decoder's pieces are divided by


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table: jax.Array, tokens: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """Looks up the embeddings of tokens, and hands on the table for the decoder.

    Args:
      table: float32 [vocab, hidden].
      tokens: int32 [batch, length].

    Returns:
      [batch, length, hidden] in ``dtype``, and float32 [data, vocab, hidden], a copy on each
      replica, to be given to ``decoder_loss``.
    """
    return _on_mesh(
        functools.partial(_lookup, dtype=dtype), (_TABLE, _ROWS), (_ROWS, _COPIES), table, tokens
    )


def _lookup_forward(table, tokens, dtype):
    return lookup(table, tokens, dtype), tokens


def _lookup_backward(dtype, tokens, cotangents):
    gradient = _on_mesh(_scatter, (_ROWS, _ROWS, _COPIES), _TABLE, tokens, *cotangents)
    return gradient, None


lookup.defvjp(_lookup_forward, _lookup_backward)


def _lookup(table: jax.Array, tokens: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """Computes ``lookup`` on one device."""
    local, mine = _own_pieces(_gather(tokens, "fsdp"), table.shape[0])
    columns = jnp.where(mine[..., None], table[local].astype(dtype), 0)
    columns = _psum(columns, "tensor")
    return _exchange(columns, "fsdp", split_axis=0, concat_axis=2), table[None]


def _scatter(tokens: jax.Array, embedded: jax.Array, copy: jax.Array) -> jax.Array:
    """Adds the gradient of the embeddings to that of the table's copy, on one device."""
    local, mine = _own_pieces(_gather(tokens, "fsdp"), copy.shape[1])
    columns = _exchange(embedded, "fsdp", split_axis=2, concat_axis=0).astype(copy.dtype)
    gradient = copy[0].at[local].add(jnp.where(mine[..., None], columns, 0))
    return _psum(gradient, "data")


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def decoder_loss(
    features: jax.Array,
    table: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    vocab_size: int,
    logits_at_once: int,
) -> tuple[jax.Array, jax.Array]:
    """Computes the cross-entropy of the tied decoder, in nats: logits = features @ table.T + bias.

    Logits are products in the dtype of ``features``, summed and normalised in float32. At most
    ``logits_at_once`` of them exist on a device at a time.

    Args:
      features: [n, hidden].
      table: float32 [data, padded vocab, hidden], from ``lookup``.
      bias: float32 [padded vocab].
      targets: int32 [n].
      weights: bool [n]; positions without weight cost nothing.
      vocab_size: rows of the table from here on take no part.

    Returns:
      float32 [] the sum over all positions, and float32 [n] the loss of each. Only the sum can be
      differentiated.
    """
    return _on_mesh(
        functools.partial(_decoder, vocab_size, logits_at_once, differentiate=False),
        (_ROWS, _COPIES, _BIAS, _ROWS, _ROWS),
        (P(), _ROWS),
        *(features, table, bias, targets, weights),
    )


def _decoder_forward(features, table, bias, targets, weights, vocab_size, logits_at_once):
    total, losses, *gradients = _on_mesh(
        functools.partial(_decoder, vocab_size, logits_at_once, differentiate=True),
        (_ROWS, _COPIES, _BIAS, _ROWS, _ROWS),
        (P(), _ROWS, _ROWS, _COPIES, _BIAS),
        *(features, table, bias, targets, weights),
    )
    return (total, losses), gradients


def _decoder_backward(vocab_size, logits_at_once, gradients, cotangents):
    scale, _ = cotangents
    return *(gradient * scale.astype(gradient.dtype) for gradient in gradients), None, None


decoder_loss.defvjp(_decoder_forward, _decoder_backward)


def _decoder(
    vocab_size: int,
    logits_at_once: int,
    features: jax.Array,
    copy: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    differentiate: bool,
) -> tuple[jax.Array, ...]:
    """Computes ``decoder_loss`` on one device, and the gradients of its inputs if wanted."""
    rows = copy.shape[1]
    pieces = _local_pieces(copy[0], bias, vocab_size, features.dtype)
    features, targets, weights = (_gather(x, "fsdp") for x in (features, targets, weights))
    targets = targets - pieces.first - _index("tensor") * rows  # other devices' are out of range
    examples = _Examples(features, targets, weights)

    positions = len(features)
    chunks = _number_of_chunks(positions, len(pieces.table), logits_at_once)
    chunk_loss = functools.partial(_chunk_loss, pieces, differentiate)
    if chunks == 1:  # spares the pass over zeros
        sums, (losses, feature_gradients) = chunk_loss((0.0, 0.0), examples)
    else:
        zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (pieces.table, pieces.bias))
        examples = jax.tree.map(lambda x: x.reshape(chunks, -1, *x.shape[1:]), examples)
        sums, outputs = jax.lax.scan(chunk_loss, zeros, examples)
        losses, feature_gradients = jax.tree.map(
            lambda x: x.reshape(positions, *x.shape[2:]), outputs
        )
    own = positions // _size("fsdp")
    own_losses = jax.lax.dynamic_slice_in_dim(losses, _index("fsdp") * own, own)
    total = _psum(losses.sum(), "data")
    if not differentiate:
        return total, own_losses
    return total, own_losses, *_reduce_gradients(feature_gradients, *sums, rows)


class _Pieces(NamedTuple):
    """The part of the decoder that one device computes: ``n`` pieces, with all their columns."""

    table: jax.Array  # [n, hidden], in the compute dtype
    bias: jax.Array  # float32 [n], -inf where there is no piece
    first: jax.Array | int  # the number of the first among those of the fsdp group


class _Examples(NamedTuple):
    """Positions whose loss is computed: those of a whole fsdp group, or a chunk of them."""

    features: jax.Array  # [positions, hidden]
    targets: jax.Array  # int32 [positions], among the pieces of this device or out of their range
    weights: jax.Array  # bool [positions]


def _local_pieces(columns: jax.Array, bias: jax.Array, vocab_size: int, dtype: Any) -> _Pieces:
    """Exchanges columns for pieces, and sees to it that no other piece has a probability.

    Args:
      columns: float32 [rows, hidden / fsdp], this device's part of the table.
      bias: float32 [rows].
    """
    rows, shards = len(columns), _size("fsdp")
    padding = -rows % shards
    table = jnp.pad(columns.astype(dtype), ((0, padding), (0, 0)))
    table = _exchange(table, "fsdp", split_axis=0, concat_axis=1)
    first = _index("fsdp") * len(table)
    bias = jax.lax.dynamic_slice_in_dim(jnp.pad(bias, (0, padding)), first, len(table))
    own = first + jnp.arange(len(table))
    valid = (own < rows) & (own + _index("tensor") * rows < vocab_size)
    return _Pieces(table, jnp.where(valid, bias, -jnp.inf), first)


def _number_of_chunks(positions: int, pieces: int, logits_at_once: int) -> int:
    """Returns the least divisor of ``positions`` with which a chunk has few enough logits."""
    least = -(-positions * pieces // logits_at_once)
    counts = range(max(1, min(least, positions)), positions + 1)
    return next(count for count in counts if positions % count == 0)


def _chunk_loss(
    pieces: _Pieces,
    differentiate: bool,
    sums: tuple[jax.Array, jax.Array],
    examples: _Examples,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]:
    """Computes the loss of some positions; the body of a scan over them.

    Args:
      sums: the gradients of table and bias so far, float32.

    Returns:
      ``sums`` with those of this chunk; and the losses float32 [positions], with the gradient of
      the features as far as these pieces make it, [positions, hidden], if wanted.
    """
    features, targets, weights = examples
    dtype = features.dtype
    logits = matmul_nt(features, pieces.table) + pieces.bias
    highest = _pmax(logits.max(axis=1), *_PIECES)
    normaliser = _psum(jnp.exp(logits - highest[:, None]).sum(axis=1), *_PIECES)
    normaliser = highest + jnp.log(normaliser)
    is_target = targets[:, None] == jnp.arange(len(pieces.table))
    target_logits = _psum(jnp.where(is_target, logits, 0).sum(axis=1), *_PIECES)
    losses = jnp.where(weights, normaliser - target_logits, 0)
    if not differentiate:
        return sums, (losses, None)
    probabilities = jnp.exp(logits - normaliser[:, None])
    slopes = jnp.where(weights[:, None], probabilities - is_target, 0).astype(dtype)
    table_sum, bias_sum = sums
    ones = jnp.ones(len(features), dtype)  # a product: XLA sums columns slowly on a CPU
    bias_sum = bias_sum + jnp.matmul(ones, slopes, preferred_element_type=jnp.float32)
    table_sum = table_sum + matmul_tn(slopes, features)
    return (table_sum, bias_sum), (losses, product(slopes, pieces.table))


def _reduce_gradients(
    features: jax.Array, table: jax.Array, bias: jax.Array, rows: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients as the arguments of ``decoder_loss`` lie: to each device its own rows
    of the features, and pieces exchanged back for columns. ``lookup`` sums the table's copies."""
    dtype = features.dtype
    features = _psum(_reduce_scatter(features, "fsdp"), "tensor")
    columns = _exchange(table.astype(dtype), "fsdp", split_axis=1, concat_axis=0)[:rows]
    bias = _psum(_gather(bias, "fsdp")[:rows], "data")
    return features, columns.astype(jnp.float32)[None], bias


def _own_pieces(tokens: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """Returns the row of each token among those of this device, and whether it is one of them."""
    local = tokens - _index("tensor") * rows
    mine = (local >= 0) & (local < rows)
    return jnp.where(mine, local, 0), mine


# What follows does nothing along an axis of one device, so that all above also runs on no mesh.


def _on_mesh(function, in_specs, out_specs, *arguments):
    """Calls ``function`` on each device with its parts, where a mesh is set."""
    if jax.sharding.get_abstract_mesh().size <= 1:
        return function(*arguments)
    mapped = jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return mapped(*arguments)


def _size(axis: str) -> int:
    """Returns the number of devices along a mesh axis."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def _index(axis: str) -> jax.Array | int:
    """Returns the number of this device along a mesh axis."""
    return jax.lax.axis_index(axis) if _size(axis) > 1 else 0


def _psum(x: jax.Array, *axes: str) -> jax.Array:
    axes = tuple(axis for axis in axes if _size(axis) > 1)
    return jax.lax.psum(x, axes) if axes else x


def _pmax(x: jax.Array, *axes: str) -> jax.Array:
    axes = tuple(axis for axis in axes if _size(axis) > 1)
    return jax.lax.pmax(x, axes) if axes else x


def _gather(x: jax.Array, axis: str) -> jax.Array:
    return jax.lax.all_gather(x, axis, tiled=True) if _size(axis) > 1 else x


def _reduce_scatter(x: jax.Array, axis: str) -> jax.Array:
    """Sums ``x`` over the devices of an axis and gives each its part of the rows.

    Not by ``psum_scatter``: the TPU compiler makes an all-reduce of it here, of twice the bytes.
    """
    if _size(axis) == 1:
        return x
    parts = jax.lax.all_to_all(x.reshape(_size(axis), -1, *x.shape[1:]), axis, 0, 0)
    return parts.sum(0, dtype=jnp.float32).astype(x.dtype)


def _exchange(x: jax.Array, axis: str, split_axis: int, concat_axis: int) -> jax.Array:
    """Sends each device of an axis its part of ``split_axis``, and joins what comes along
    ``concat_axis``."""
    if _size(axis) == 1:
        return x
    return jax.lax.all_to_all(x, axis, split_axis, concat_axis, tiled=True)
