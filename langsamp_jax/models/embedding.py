"""The word embeddings at both ends of the model: lookup, and cross-entropy of the tied decoder.

On a mesh the table [vocab, hidden] lies with its pieces along ``tensor`` and its columns along
``fsdp``. Neither end ever gathers it:

* lookup: each device looks its columns up for all rows of its ``fsdp`` group, then the group
  exchanges columns for rows (all-to-all);
* decoder: the group exchanges columns for pieces, so that each device has all of some pieces, and
  gathers the features instead, which are far smaller. Each computes the logits of its own pieces.

The gradients of both ends are added up before they are reduced over ``data``: one reduction of a
table, not two. For that, ``lookup`` hands on one copy of the table for each ``data`` replica.
Derivatives are written out, so that what is communicated is what stands here; and those of the
decoder come out of the forward pass, which then need not compute its logits twice.
"""

import functools

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
    """The embeddings of tokens, and the table for the decoder.

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
    local, mine = _own_pieces(_gather(tokens, "fsdp"), table.shape[0])
    columns = jnp.where(mine[..., None], table[local].astype(dtype), 0)
    columns = _psum(columns, "tensor")
    return _exchange(columns, "fsdp", split_axis=0, concat_axis=2), table[None]


def _scatter(tokens: jax.Array, embedded: jax.Array, copy: jax.Array) -> jax.Array:
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
    """Cross-entropy of the tied decoder, in nats: logits = features @ table.T + bias.

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
    total, each, *gradients = _on_mesh(
        functools.partial(_decoder, vocab_size, logits_at_once, differentiate=True),
        (_ROWS, _COPIES, _BIAS, _ROWS, _ROWS),
        (P(), _ROWS, _ROWS, _COPIES, _BIAS),
        *(features, table, bias, targets, weights),
    )
    return (total, each), gradients


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
):
    """``decoder_loss`` of one device, and the gradients of its inputs if wanted."""
    dtype, rows = features.dtype, copy.shape[1]
    shards = _size("fsdp")
    padded = -(-rows // shards) * shards
    table = jnp.pad(copy[0].astype(dtype), ((0, padded - rows), (0, 0)))
    table = _exchange(table, "fsdp", split_axis=0, concat_axis=1)
    first = _index("fsdp") * len(table)  # of this device's pieces, among those of its fsdp group
    bias = jax.lax.dynamic_slice_in_dim(jnp.pad(bias, (0, padded - rows)), first, len(table))
    own = first + jnp.arange(len(table))
    valid = (own < rows) & (own + _index("tensor") * rows < vocab_size)
    bias = jnp.where(valid, bias, -jnp.inf)
    features, targets, weights = (_gather(x, "fsdp") for x in (features, targets, weights))
    targets = targets - first - _index("tensor") * rows  # other devices' are out of range

    positions = len(features)
    least = -(-positions * len(table) // logits_at_once)
    counts = range(max(1, min(least, positions)), positions + 1)
    chunks = next(count for count in counts if positions % count == 0)

    def visit(sums, chunk):
        part, part_targets, part_weights = chunk
        logits = matmul_nt(part, table) + bias
        highest = _pmax(logits.max(axis=1), *_PIECES)
        normaliser = _psum(jnp.exp(logits - highest[:, None]).sum(axis=1), *_PIECES)
        normaliser = highest + jnp.log(normaliser)
        here = part_targets[:, None] == jnp.arange(len(table))
        target_logits = _psum(jnp.where(here, logits, 0).sum(axis=1), *_PIECES)
        loss = jnp.where(part_weights, normaliser - target_logits, 0)
        if not differentiate:
            return sums, (loss, None)
        probabilities = jnp.exp(logits - normaliser[:, None])
        slopes = jnp.where(part_weights[:, None], probabilities - here, 0)
        table_sum, bias_sum = sums
        slopes = slopes.astype(dtype)
        ones = jnp.ones(len(part), dtype)  # a product: XLA sums columns slowly on a CPU
        bias_sum = bias_sum + jnp.matmul(ones, slopes, preferred_element_type=jnp.float32)
        table_part = matmul_tn(slopes, part)
        return (table_sum + table_part, bias_sum), (loss, product(slopes, table))

    zeros = jnp.zeros(table.shape, jnp.float32), jnp.zeros(len(table), jnp.float32)
    parts = features, targets, weights
    if chunks == 1:  # spares the pass over zeros
        sums, (each, slopes) = visit((0.0, 0.0), parts)
    else:
        parts = jax.tree.map(lambda x: x.reshape(chunks, -1, *x.shape[1:]), parts)
        sums, outputs = jax.lax.scan(visit, zeros, parts)
        each, slopes = jax.tree.map(lambda x: x.reshape(positions, *x.shape[2:]), outputs)
    own = positions // shards
    each_own = jax.lax.dynamic_slice_in_dim(each, _index("fsdp") * own, own)
    total = _psum(each.sum(), "data")
    if not differentiate:
        return total, each_own
    table_sum, bias_sum = sums
    slopes = _psum(_reduce_scatter(slopes, "fsdp"), "tensor")
    table_sum = _exchange(table_sum.astype(dtype), "fsdp", split_axis=1, concat_axis=0)[:rows]
    bias_sum = _psum(_gather(bias_sum, "fsdp")[:rows], "data")
    return total, each_own, slopes, table_sum.astype(jnp.float32)[None], bias_sum


def _own_pieces(tokens: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """The row of each token among those of this device, and whether it is one of them."""
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
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def _index(axis: str) -> jax.Array | int:
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
    """Not ``psum_scatter``: the TPU compiler makes an all-reduce of it here, of twice the bytes."""
    if _size(axis) == 1:
        return x
    parts = jax.lax.all_to_all(x.reshape(_size(axis), -1, *x.shape[1:]), axis, 0, 0)
    return parts.sum(0, dtype=jnp.float32).astype(x.dtype)


def _exchange(x: jax.Array, axis: str, split_axis: int, concat_axis: int) -> jax.Array:
    if _size(axis) == 1:
        return x
    return jax.lax.all_to_all(x, axis, split_axis, concat_axis, tiled=True)
