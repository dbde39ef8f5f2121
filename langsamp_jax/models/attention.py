"""Self-attention in three implementations, and the choice among them.

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
    """All that decides which implementation can run.

    Attributes:
      platform: of the devices: ``cpu``, ``gpu`` or ``tpu``.
      dtype: of queries, keys and values.
      head_size: their numbers per head.
      length: tokens of a row.
      dropout: whether attention weights are dropped.
    """

    platform: str
    dtype: Any
    head_size: int
    length: int
    dropout: bool


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    implementation: Implementation = "auto",
    dropout: Dropout | None = None,
) -> jax.Array:
    """Lets each position attend to the positions of its own segment.

    Under a mesh the kernels run on each device's rows and heads; the logical axis rules say which
    these are. An implementation that cannot run here is replaced by ``xla``, so that a model goes
    to another machine or another length as it is; see ``require_available``.

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
    spec = AttentionSpec(
        platform(), query.dtype, query.shape[-1], query.shape[1], dropout is not None
    )
    match select_kernel(implementation, spec):
        case "cudnn":
            return _per_device(_cudnn)(query, key, value, segments)
        case "splash":
            return _per_device(_splash)(query, key, value, segments)
        case _:
            return _xla(query, key, value, segments, dropout)


def select_kernel(implementation: Implementation, spec: AttentionSpec) -> str:
    """Returns ``xla``, ``cudnn`` or ``splash``: the one asked for, or for ``auto`` the quickest, if
    it can run, else ``xla``."""
    if implementation == "auto":
        worthwhile = spec.platform == "gpu" or spec.length >= SPLASH_LENGTH
        implementation = _kernel(spec.platform) if worthwhile else "xla"
    return "xla" if unsupported_reason(implementation, spec) else implementation


def unsupported_reason(implementation: Implementation, spec: AttentionSpec) -> str | None:
    """Returns why ``implementation`` cannot run; None where it can."""
    if implementation in ("auto", "xla"):
        return None
    gpu = implementation == "cudnn"
    if spec.platform != ("gpu" if gpu else "tpu"):
        return f"it runs on {'GPUs' if gpu else 'TPUs'}, and the devices here are {spec.platform}"
    if spec.dropout:
        return "it cannot drop weights: it needs model.attention_dropout = 0"
    if gpu and _compute_capability() < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 (A100) or later"
    dtype = jnp.dtype(spec.dtype).name
    if gpu and dtype not in ("bfloat16", "float16"):
        return f"it needs model.dtype = 'bfloat16', not {dtype!r}"
    if gpu and (spec.head_size % 8 or spec.head_size > 128):
        return f"it needs a head size of 8, 16, ... or 128, not {spec.head_size}"
    if gpu and spec.length % 2:
        return f"it needs rows of an even number of tokens, not {spec.length}"
    if not gpu and spec.length % SPLASH_BLOCKS[-1]:
        return f"it needs rows of 128, 256, ... tokens, not {spec.length}"
    return None


def require_available(implementation: Implementation, spec: AttentionSpec) -> None:
    """Raises UserError where an implementation that was asked for cannot run."""
    if reason := unsupported_reason(implementation, spec):
        others = " or ".join(
            name for name in get_args(Implementation) if not unsupported_reason(name, spec)
        )
        raise UserError(f"model.attention = {implementation!r}: {reason}; use {others}")


def describe_kernel(implementation: Implementation, spec: AttentionSpec) -> str:
    """Says which implementation runs and, if it is not the device's kernel, why."""
    line, kernel = f"attention: {select_kernel(implementation, spec)}", _kernel(spec.platform)
    reason = unsupported_reason(kernel, spec)
    return f"{line} ({kernel}: {reason})" if reason else line


def _kernel(platform: str) -> str:
    """Returns the fused kernel of a platform; ``xla`` where there is none."""
    return {"gpu": "cudnn", "tpu": "splash"}.get(platform, "xla")


def _compute_capability() -> tuple[int, ...]:
    """Returns that of the NVIDIA GPU here, as in (9, 0); () for GPUs of others."""
    numbers = jax.local_devices(backend="gpu")[0].compute_capability.split(".")
    return tuple(map(int, numbers)) if all(number.isdigit() for number in numbers) else ()


def _per_device(kernel: Any) -> Any:
    """Runs a kernel on each device's rows and heads: the compiler cannot split one itself."""
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    heads = nn.logical_to_mesh_axes(("batch", None, "heads", None))
    rows = PartitionSpec(*heads[:2])
    specs = (heads, heads, heads, rows)
    return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)


def _xla(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, dropout: Dropout | None
) -> jax.Array:
    """Computes the definition.

    On a CPU these transposes, scaled queries and an added mask take three quarters of the time of
    einsums over [batch, length, heads, head_size].
    """
    query, key, value = (x.swapaxes(1, 2) for x in (_scaled(query), key, value))
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores + jnp.where(_mask(segments), 0, -1e30)).astype(value.dtype)
    weights = dropout(weights) if dropout else weights
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2)


def _scaled(query: jax.Array) -> jax.Array:
    return query * query.shape[-1] ** -0.5


def _mask(segments: jax.Array) -> jax.Array:
    """Returns which positions (the last axis) each one attends to: bool [batch, 1, length or 1,
    length].

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
