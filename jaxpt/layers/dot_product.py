"""softmax(Q K^T / sqrt(K) + score) V under any mask, by the best kept implementation for the platform.

    xla      `jax.nn.dot_product_attention`, everywhere, any mask and score
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

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")


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
    return _general(q, k, v, mask, bias, scale, "cudnn" if chosen == "cudnn" else "xla")


def choose(
    implementation: str, q: Float[Array, "B S H K"], k: Float[Array, "B T G K"], mask: Mask, bias: Any = None
) -> str:
    """The implementation that will run: the one asked for, or for "auto" the platform's best that fits."""
    if implementation not in IMPLEMENTATIONS:
        raise nearest_error("attention implementation", implementation, IMPLEMENTATIONS)
    if implementation != "auto":
        return implementation
    on, half = platform(), q.dtype in (jnp.bfloat16, jnp.float16)
    if on == "tpu" and bias is None and mask.simple and q.shape[1] == k.shape[1] and q.shape[1] % 128 == 0:
        return "splash"
    if on == "gpu" and half and bias is None and q.shape[1] == k.shape[1] and q.shape[-1] % 8 == 0:
        return "cudnn"
    return "xla"


def _general(q: Any, k: Any, v: Any, mask: Mask, bias: Any, scale: float, implementation: str) -> Array:
    if mask.causal and mask.segments is None and mask.simple:
        return jax.nn.dot_product_attention(
            q, k, v, bias, is_causal=True, scale=scale, implementation=implementation
        )
    visible = to_array(mask, q.shape[1], k.shape[1])
    heads = None if visible is None else visible[:, None]
    out = jax.nn.dot_product_attention(q, k, v, bias, heads, scale=scale, implementation=implementation)
    if visible is None:
        return out
    return jnp.where(visible.any(-1)[:, :, None, None], out, 0)


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
