"""softmax(Q K^T / sqrt(K) + score) V under any mask, by the best kept implementation for the platform.

xla      `jax.nn.dot_product_attention`, everywhere, any mask and score
blocks   the same sum in the layout and order a CPU likes, skipping key blocks that causal order hides; any mask
cudnn    the same function through cuDNN's flash attention (GPU, 16-bit)
splash   JAX's Pallas splash attention (TPU), for masks that are causal order and segments
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxpt.core.names import nearest_error
from jaxpt.core.types import Array, Float
from jaxpt.layers.masks import Mask, to_array
from jaxpt.sharding import partition_spec, platform

IMPLEMENTATIONS = ("auto", "xla", "blocks", "cudnn", "splash")
CAUSAL_BLOCKS = 2  # measured best of 1, 2, 4 at S = 256, forward and backward (scripts/bench_training.py)


def dot_product_attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    mask: Mask,
    *,
    bias: Float[Array, "#B #H S T"] | None = None,
    scale: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "B S H K"]:
    """Attention with H query heads over G key/value heads (H a multiple of G). Queries that see no key give 0.

    Args:
      bias: added to the scaled logits: relative positions, disentangled scores.
      scale: of the logits; 1/sqrt(K) by default.
    """
    chosen = choose(implementation, q, k, mask, bias)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if chosen == "splash":
        return _splash(q, k, v, mask, scale)
    if chosen == "blocks":
        return _blocks(q, k, v, mask, bias, scale)
    return _general(q, k, v, mask, bias, scale, "cudnn" if chosen == "cudnn" else "xla")


def choose(
    implementation: str, q: Float[Array, "B S H K"], k: Float[Array, "B T G K"], mask: Mask, bias: Any = None
) -> str:
    """The implementation that will run: the one asked for, or for "auto" the platform's best that fits."""
    if implementation not in IMPLEMENTATIONS:
        raise nearest_error("attention implementation", implementation, IMPLEMENTATIONS)
    if implementation == "splash":
        _check_splash(q, k, mask, bias)
    if implementation != "auto":
        return implementation
    on, half = platform(), q.dtype in (jnp.bfloat16, jnp.float16)
    if on == "tpu" and bias is None and mask.simple and q.shape[1] == k.shape[1] and q.shape[1] % 128 == 0:
        return "splash"
    if on == "gpu" and half and bias is None and q.shape[1] == k.shape[1] and q.shape[-1] % 8 == 0:
        return "cudnn"
    return "blocks" if on == "cpu" else "xla"


def _general(q: Any, k: Any, v: Any, mask: Mask, bias: Any, scale: float, implementation: Any) -> Array:
    if mask.causal and mask.segments is None and mask.simple and bias is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=scale, implementation=implementation)
    visible = to_array(mask, q.shape[1], k.shape[1])
    visible = None if visible is None else visible[:, None]
    if bias is not None:  # the library masks with a finite number, which a bias of -inf on all seen keys would undercut
        reachable = bias > -jnp.inf
        visible = reachable if visible is None else visible & reachable
    out = jax.nn.dot_product_attention(q, k, v, bias, visible, scale=scale, implementation=implementation)
    if visible is None:
        return out
    return jnp.where(visible.any(-1, keepdims=True).swapaxes(1, 2), out, 0)


def _blocks(q: Any, k: Any, v: Any, mask: Mask, bias: Any, scale: float) -> Array:
    """Queries in blocks, heads before positions: XLA's CPU backend multiplies [B, G, .] batches at twice the speed of the
    interleaved layout, and a block of early queries never touches the keys that causal order hides from all of it."""
    (b, s, h, d), (t, g) = q.shape, k.shape[1:3]
    q = (q * scale).reshape(b, s, g, h // g, d).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    visible = to_array(mask, s, t)
    skip = mask.causal and mask.prefix is None and mask.query_start is None and s == t and s % CAUSAL_BLOCKS == 0
    length = s // CAUSAL_BLOCKS if skip else s
    parts = []
    for start in range(0, s, length):
        rows, seen = slice(start, start + length), start + length if skip else t
        logits = jnp.einsum("bghsk,bgtk->bghst", q[:, :, :, rows], k[:, :, :seen]).astype(jnp.float32)
        if bias is not None:
            full = jnp.broadcast_to(bias, (b, h, s, t))[:, :, rows, :seen]
            logits = logits + full.reshape(b, g, h // g, length, seen)
        parts.append(_softmax_times(logits, v[:, :, :seen], None if visible is None else visible[:, rows, :seen]))
    out = jnp.concatenate(parts, 3) if len(parts) > 1 else parts[0]
    return out.transpose(0, 3, 1, 2, 4).reshape(b, s, h, d).astype(v.dtype)


def _softmax_times(logits: Array, v: Array, visible: Array | None) -> Array:
    """softmax over the visible keys, times v; 0 where none is visible. Normalised after the product: fewer divisions."""
    if visible is not None:
        logits = jnp.where(visible[:, None, None], logits, -jnp.inf)
    peak = jax.lax.stop_gradient(jnp.maximum(logits.max(-1, keepdims=True), jnp.finfo(jnp.float32).min))
    weights = jnp.exp(logits - peak)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bghst,bgtk->bghsk", weights.astype(v.dtype), v).astype(jnp.float32)
    return out / jnp.where(total == 0, 1.0, total)


def _check_splash(q: Any, k: Any, mask: Mask, bias: Any) -> None:
    """Refuses what the kernel would silently leave out."""
    if bias is not None or not mask.simple:
        what = "a bias or score" if bias is not None else "this mask"
        raise ValueError(f'attention="splash" knows only causal order and segments, not {what}; use "auto" or "xla"')
    if q.shape[1] != k.shape[1] or q.shape[1] % 128:
        raise ValueError(
            f'attention="splash" needs as many keys as queries, a multiple of 128, got {k.shape[1]} keys and '
            f'{q.shape[1]} queries; use "auto" or "xla"'
        )


def _splash(q: Any, k: Any, v: Any, mask: Mask, scale: float) -> Array:
    """Splash attention per shard of the ambient mesh: batch and heads are split, sequences are whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _splash_local(q, k, v, mask.segments, causal=mask.causal, scale=scale)
    sizes = dict(mesh.shape)
    heads = partition_spec(("batch", "sequence", "heads", "head_dim"), q.shape, sizes)
    groups = partition_spec(("batch", "sequence", "kv_heads", "head_dim"), k.shape, sizes)
    if heads[2] != groups[2]:  # key/value heads that do not divide the axis would meet the wrong queries
        k, v = (jnp.repeat(t, q.shape[2] // k.shape[2], axis=2) for t in (k, v))
        groups = heads
    segments = partition_spec(("batch", "sequence"), q.shape[:2], sizes)
    local = functools.partial(_splash_local, causal=mask.causal, scale=scale)
    specs = (heads, groups, groups, None if mask.segments is None else segments)
    # check_vma: pallas_call does not say how its outputs vary over the mesh
    return jax.shard_map(local, in_specs=specs, out_specs=heads, check_vma=False)(q, k, v, mask.segments)


def _splash_local(q: Any, k: Any, v: Any, segments: Any, *, causal: bool, scale: float) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads, groups = q.shape[1], q.shape[2], k.shape[2]
    one = masks.CausalMask((length, length)) if causal else masks.FullMask((length, length))
    attend = kernel.make_splash_mqa_single_device(
        masks.MultiHeadMask([one] * (heads // groups)), interpret=platform() != "tpu"
    )
    # [B, S, H, K] -> [B, G, H/G, S, K]: one multi-query problem per key/value head
    q = (q * scale).reshape(q.shape[0], length, groups, heads // groups, -1).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    ids = None if segments is None else kernel.SegmentIds(segments, segments)
    over_groups = jax.vmap(attend, in_axes=(0, 0, 0, None))
    out = jax.vmap(over_groups, in_axes=(0, 0, 0, None if ids is None else 0))(q, k, v, ids)
    out = out.transpose(0, 3, 1, 2, 4).reshape(out.shape[0], length, heads, -1)
    return out if segments is None else jnp.where(segments[:, :, None, None] != 0, out, 0)
