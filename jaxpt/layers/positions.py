"""Rotary positions (RoFormer, arXiv 2104.09864) in the half-split layout of LLaMA and GPT-NeoX, whole or partial."""

from __future__ import annotations

import jax.numpy as jnp

from jaxpt.core.types import Array, Float, Int


def rotary(
    x: Float[Array, "B S H K"], positions: Int[Array, "B S"], base: float = 10_000.0, fraction: float = 1.0
) -> Float[Array, "B S H K"]:
    """Rotates the first `fraction` of each head's dimensions by angles position / base^(2i/d); the rest passes through."""
    rotated = int(x.shape[-1] * fraction)
    if rotated % 2:
        raise ValueError(f"rotary needs an even number of dimensions, got {rotated} of {x.shape[-1]} ({fraction=})")
    inverse = base ** (-jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    angles = positions.astype(jnp.float32)[:, :, None, None] * inverse
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., : rotated // 2].astype(jnp.float32), x[..., rotated // 2 : rotated].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., rotated:]], -1) if rotated < x.shape[-1] else turned
