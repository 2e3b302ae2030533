"""The Vision Transformer (arXiv 2010.11929): patches of an image as the tokens of an encoder, and a classifier.

    cfg = vit.Config(image_size=8, patch_size=2, channels=1, classes=10, width=64, heads=4, layers=4, ffn=256)
    params = vit.init(jax.random.key(0), cfg)
    logits = vit.apply(params, images, cfg)                    # [B, 8, 8, 1] -> [B, 10]

A linear map of every patch, learned positions, pre-norm blocks, a final norm, and a linear head on the class token or on the
mean of the patches (`pool`). `BASE_16` is ViT-B/16. There is no dropout and no stochastic depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core.names import nearest_error
from jaxpt.core.spec import ArraySpec
from jaxpt.core.types import Array, Float, Int, Params, PRNGKeyArray
from jaxpt.layers import block as blocks
from jaxpt.layers import masks, norms, stack
from jaxpt.layers.block import Context, Hook
from jaxpt.layers.embeddings import embed
from jaxpt.layers.stack import Hidden, StackConfig

POOLS = ("token", "mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StackConfig):
    """A vision transformer. The architecture's defaults are ViT's, those of images and classes ImageNet's.

    Attributes:
      image_size, patch_size: side of the square image and of a patch, in pixels.
      channels: values of a pixel.
      pool: "token", a learned class token before the patches, or "mean" of the patches' states.
    """

    norm: str = "layer"
    norm_eps: float = 1e-6
    activation: str = "gelu"
    rotary_fraction: float = 0.0
    bias: bool = True
    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    classes: int = 1000
    pool: str = "token"

    @property
    def patches(self) -> int:
        """Patches of an image."""
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not a positive multiple of patch_size={self.patch_size}")
        return (self.image_size // self.patch_size) ** 2


BASE_16 = Config(width=768, layers=12, heads=12, ffn=3072)


def spec(cfg: Config) -> Params:
    """Every array of the model: shape, dtype, logical axes, initializer."""
    if cfg.pool not in POOLS:
        raise nearest_error("pool", cfg.pool, POOLS)
    stddev = 0.02 if cfg.initializer_stddev is None else cfg.initializer_stddev
    table, width = specs.normal(stddev), ("embed", cfg.width)
    pixels = ("features", cfg.patch_size**2 * cfg.channels)
    tree: dict[str, Any] = {
        "patches": blocks.linear_spec(cfg, "patches", width, pixels),
        "blocks": blocks.spec(cfg, (cfg.layers,)),
        "final_norm": norms.spec(cfg.norm, cfg.width, (), cfg.param_dtype),
        "head": blocks.linear_spec(cfg, "head", ("vocab", cfg.classes), width),
    }
    if cfg.pool == "token":
        tree["token"] = ArraySpec((cfg.width,), ("embed",), table, cfg.param_dtype)
    places = (cfg.patches + (cfg.pool == "token"), cfg.width)
    tree["positions"] = ArraySpec(places, ("positions", "embed"), table, cfg.param_dtype)
    return tree


def init(key: PRNGKeyArray, cfg: Config) -> Params:
    """Initial parameters."""
    return specs.init(key, spec(cfg))


def apply(
    params: Params, images: Float[Array, "B height width channels"], cfg: Config, **kwargs: Any
) -> Float[Array, "B V"]:
    """Logits of the classes, in float32. Keyword arguments as for `hidden_states`."""
    final = hidden_states(params, images, cfg, **kwargs).final
    pooled = final[:, 0] if cfg.pool == "token" else final.mean(1)
    return weights.linear(pooled, params["head"]).astype(jnp.float32)


def hidden_states(
    params: Params,
    images: Float[Array, "B height width channels"],
    cfg: Config,
    *,
    path: Sequence[int] | Int[Array, " N"] | None = None,
    capture: bool = False,
    hook: Hook | None = None,
) -> Hidden:
    """Runs the stack over the class token, if there is one, and the patches, row by row.

    Args:
      path, capture, hook: as for `jaxpt.models.decoder.hidden_states`.

    Raises:
      ValueError: images of another size.
    """
    x = weights.linear(cut(images, cfg).astype(cfg.compute_dtype), params["patches"])
    if cfg.pool == "token":
        token = jnp.broadcast_to(params["token"].astype(x.dtype), (len(x), 1, cfg.width))
        x = jnp.concatenate([token, x], axis=1)
    x, positions = embed(params, x, None, cfg.compute_dtype)
    context = Context(masks.full(), positions, None, hook)
    found = stack.run(params["blocks"], x, cfg, context, path, capture, None)
    return found._replace(final=norms.norm(found.final, params["final_norm"], cfg.norm_eps))


def cut(images: Float[Array, "B height width channels"], cfg: Config) -> Float[Array, "B S P"]:
    """The patches of every image, row by row, each one's pixels row by row with the channels last.

    Raises:
      ValueError: images of another size.
    """
    expected = (cfg.image_size, cfg.image_size, cfg.channels)
    if images.shape[1:] != expected:
        raise ValueError(f"images are {images.shape[1:]}, the model's are {expected}")
    side, p = cfg.image_size // cfg.patch_size, cfg.patch_size
    grid = images.reshape(-1, side, p, side, p, cfg.channels)
    return jnp.einsum("brhcwk->brchwk", grid).reshape(-1, cfg.patches, p * p * cfg.channels)
