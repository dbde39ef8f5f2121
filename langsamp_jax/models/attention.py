"""Self-attention in three implementations, and which of them runs where.

``xla`` runs everywhere and is the definition; it keeps a weight for every pair of positions.
``cudnn`` (GPU) and ``splash`` (TPU) are fused kernels that never write the weights to memory.
They give what ``xla`` gives, up to rounding, and know no dropout on the weights: splash has none,
and cuDNN's draws from a state of its own, so that a resumed or recomputed step would drop others.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from langsamp_jax.errors import UserError
from langsamp_jax.hardware.devices import platform
from langsamp_jax.models.config import Implementation

Dropout = Callable[[jax.Array], jax.Array]

SPLASH_BLOCKS = (512, 256, 128)  # the largest that divides the length; 128 lanes at least

# From here on ``auto`` takes splash: it moves a third of the bytes. At 128 tokens it moves as many.
SPLASH_LENGTH = 512


class AttentionSpec(NamedTuple):
    """All that decides which implementation can run."""

    platform: str  # of the devices: cpu, gpu or tpu
    dtype: Any  # of queries, keys and values
    head_size: int
    length: int
    dropout: bool  # of the weights


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    implementation: Implementation = "auto",
    dropout: Dropout | None = None,
) -> jax.Array:
    """What each position gathers from the positions of its own segment.

    Under a mesh the kernels run on each device's rows and heads; the logical axis rules say which
    these are. An implementation that cannot run in this case is replaced by ``xla``, so that a
    model goes to another machine or another length as it is; see ``require_available``.

    Args:
      query, key, value: [batch, length, heads, head_size].
      segments: bool [batch, length], False on padding, which comes last; or int32 [batch, length]
        with the number of the text that a position belongs to, 0 on padding.
      implementation: the one to use, or ``auto`` for the quickest that can run.
      dropout: what is done to the weights, [batch, heads, length, length].

    Returns:
      [batch, length, heads, head_size] in the dtype of ``value``. Padding changes nothing at other
      positions; what it gets itself is finite and means nothing.
    """
    case = AttentionSpec(
        platform(), query.dtype, query.shape[-1], query.shape[1], dropout is not None
    )
    match select_kernel(implementation, case):
        case "cudnn":
            return _per_device(_cudnn)(query, key, value, segments)
        case "splash":
            return _per_device(_splash)(query, key, value, segments)
        case _:
            return _xla(query, key, value, segments, dropout)


def select_kernel(implementation: Implementation, case: AttentionSpec) -> str:
    """``xla``, ``cudnn`` or ``splash``: the wish, or the quickest for ``auto``, if it can run."""
    if implementation == "auto":
        worthwhile = case.platform == "gpu" or case.length >= SPLASH_LENGTH
        implementation = _kernel(case.platform) if worthwhile else "xla"
    return "xla" if unsupported_reason(implementation, case) else implementation


def unsupported_reason(implementation: Implementation, case: AttentionSpec) -> str | None:
    """Why ``implementation`` cannot run in this case; None where it can."""
    if implementation in ("auto", "xla"):
        return None
    gpu = implementation == "cudnn"
    if case.platform != ("gpu" if gpu else "tpu"):
        return f"it runs on {'GPUs' if gpu else 'TPUs'}, and the devices here are {case.platform}"
    if case.dropout:
        return "it cannot drop weights: it needs model.attention_dropout = 0"
    if gpu and _compute_capability() < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 (A100) or later"
    dtype = jnp.dtype(case.dtype).name
    if gpu and dtype not in ("bfloat16", "float16"):
        return f"it needs model.dtype = 'bfloat16', not {dtype!r}"
    if gpu and (case.head_size % 8 or case.head_size > 128):
        return f"it needs a head size of 8, 16, ... or 128, not {case.head_size}"
    if gpu and case.length % 2:
        return f"it needs rows of an even number of tokens, not {case.length}"
    if not gpu and case.length % SPLASH_BLOCKS[-1]:
        return f"it needs rows of 128, 256, ... tokens, not {case.length}"
    return None


def require_available(implementation: Implementation, case: AttentionSpec) -> None:
    """Raises UserError where an implementation that was asked for cannot run."""
    if reason := unsupported_reason(implementation, case):
        others = " or ".join(
            name for name in get_args(Implementation) if not unsupported_reason(name, case)
        )
        raise UserError(f"model.attention = {implementation!r}: {reason}; use {others}")


def describe_kernel(implementation: Implementation, case: AttentionSpec) -> str:
    """Which implementation runs, and what keeps the device's kernel from running, if anything."""
    line, kernel = f"attention: {select_kernel(implementation, case)}", _kernel(case.platform)
    reason = unsupported_reason(kernel, case)
    return f"{line} ({kernel}: {reason})" if reason else line


def _kernel(platform: str) -> str:
    """The fused kernel of a platform; ``xla`` where there is none."""
    return {"gpu": "cudnn", "tpu": "splash"}.get(platform, "xla")


def _compute_capability() -> tuple[int, ...]:
    """Of the NVIDIA GPU here, as in (9, 0); () for GPUs of others."""
    numbers = jax.local_devices(backend="gpu")[0].compute_capability.split(".")
    return tuple(map(int, numbers)) if all(number.isdigit() for number in numbers) else ()


def _per_device(kernel: Any) -> Any:
    """The compiler cannot split a kernel over devices: each runs it on its rows and heads."""
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    heads = nn.logical_to_mesh_axes(("batch", None, "heads", None))
    rows = PartitionSpec(*heads[:2])
    specs = (heads, heads, heads, rows)
    return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)


def _xla(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, dropout: Dropout | None
) -> jax.Array:
    """On a CPU these transposes, scaled queries and an added mask take three quarters of the time
    of einsums over [batch, length, heads, head_size]."""
    query, key, value = (x.swapaxes(1, 2) for x in (_scaled(query), key, value))
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores + jnp.where(_mask(segments), 0, -1e30)).astype(value.dtype)
    weights = dropout(weights) if dropout else weights
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2)


def _scaled(query: jax.Array) -> jax.Array:
    return query * query.shape[-1] ** -0.5


def _mask(segments: jax.Array) -> jax.Array:
    """bool [batch, 1, length or 1, length]: which positions (the last axis) each one attends to.

    Padding of a packed row attends to padding: a position with nothing at all to attend to is what
    kernels give NaN for.
    """
    if segments.dtype == bool:
        return segments[:, None, None, :]
    return (segments[:, :, None] == segments[:, None, :])[:, None]


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    if segments.dtype != bool:
        return attention(query, key, value, mask=_mask(segments))
    lengths = jnp.maximum(segments.sum(1, dtype=jnp.int32), 1)  # no row is all padding to cuDNN
    mixed = attention(query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths)
    # Behind the end of a row the kernel leaves whatever the memory held.
    return jnp.where(segments[:, :, None, None], mixed, 0)


def _splash(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import (  # only a TPU needs it
        splash_attention_kernel as kernel,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, length, heads, _ = query.shape
    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute")
    names += ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    attention = kernel.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((length, length))] * heads),
        block_sizes=kernel.BlockSizes(**dict.fromkeys(names, block), use_fused_bwd_kernel=True),
        head_shards=1,
        q_seq_shards=1,
    )
    query, key, value = (x.swapaxes(1, 2) for x in (_scaled(query), key, value))
    ids = segments.astype(jnp.int32)
    mixed = jax.vmap(attention)(query, key, value, kernel.SegmentIds(ids, ids))
    return mixed.swapaxes(1, 2)
