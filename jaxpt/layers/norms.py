"""RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), computed in float32 whatever comes in."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxpt.core.names import nearest_error
from jaxpt.core.spec import ArraySpec, ones, zeros
from jaxpt.core.types import Array, Float, Params


def spec(kind: str, width: int, stack: tuple[int, ...] = (), dtype: str = "float32") -> dict[str, ArraySpec]:
    """{"scale": [width]}, with {"bias": [width]} for LayerNorm. `kind` is "rms" or "layer"."""
    if kind not in ("rms", "layer"):
        raise nearest_error("norm", kind, ("rms", "layer"))
    shape, axes = (*stack, width), (*("layers",) * len(stack), "norm")
    scale = {"scale": ArraySpec(shape, axes, ones, dtype)}
    return scale if kind == "rms" else {**scale, "bias": ArraySpec(shape, axes, zeros, dtype)}


def standardise(x: Float[Array, "*B D"], eps: float) -> Float[Array, "*B D"]:
    """A LayerNorm without parameters."""
    h = x.astype(jnp.float32)
    h = h - h.mean(-1, keepdims=True)
    return (h * jax.lax.rsqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + eps)).astype(x.dtype)


def norm(x: Float[Array, "*B D"], p: Params, eps: float) -> Float[Array, "*B D"]:
    """Normalises the last axis; a LayerNorm where `p` has a bias, an RMSNorm otherwise."""
    h = x.astype(jnp.float32)
    if "bias" in p:
        h = h - h.mean(-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + eps) * p["scale"].astype(jnp.float32)
    if "bias" in p:
        h = h + p["bias"].astype(jnp.float32)
    return h.astype(x.dtype)
