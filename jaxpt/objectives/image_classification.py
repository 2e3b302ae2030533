"""Classification of images by a vision transformer: -log p(label | image)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxpt.core.types import Params, PRNGKeyArray
from jaxpt.models import vit
from jaxpt.objectives.base import Losses


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray | None, cfg: vit.Config) -> Losses:
    """Losses of a batch of images, with the metric "accuracy".

    Args:
      batch: images [B, height, width, channels] float; labels [B] int.
      key: unused, the objective draws nothing.
    """
    logits, labels = vit.apply(params, batch["images"], cfg), batch["labels"]
    one = jnp.ones(len(labels), jnp.float32)
    correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    sums = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Losses(sums, one, {"accuracy": (correct.sum(), one.sum())})
