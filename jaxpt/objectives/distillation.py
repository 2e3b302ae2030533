"""Classification of texts with soft targets: -sum_y p_T(y | x) log p_S(y | x) (arXiv 1908.08962, Well-Read Students, 3).

    student = Distillation(model=encoder.Config(pooler=True, ...), classes=8)      # batches hold target_probabilities [B, C]
    probabilities = cache_teacher(student_of_the_teacher, teacher_params, inputs)   # once, in float32

The targets are a teacher's plain probabilities: temperature 1, no hidden states, no gold labels. Against one-hot targets it
is the usual cross-entropy, so that fine-tuning is the same objective. The teacher's entropy in it has no gradient.
The classifier is a linear map of the pooled first token (`encoder.pooled`). Recipe: recipes/well_read.py.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt import weights
from jaxpt.core.types import Array, Float, Int, Params, PRNGKeyArray
from jaxpt.layers import block
from jaxpt.models import encoder, flops
from jaxpt.objectives.base import Losses, Objective
from jaxpt.weights import Cost

# (layers, width) of the released miniatures: heads of 64, feed-forward of 4 widths, BERT's uncased vocabulary.
MINIATURES = {
    (layers, width): encoder.Config(
        layers=layers, width=width, heads=width // 64, ffn=4 * width, vocab_size=30_522, pooler=True
    )
    for layers in (2, 4, 6, 8, 10, 12)
    for width in (128, 256, 512, 768)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Objective):
    """A classifier on an encoder with pooler=True.

    Attributes:
      classes: C.
    """

    classes: int

    def check(self) -> None:
        if not isinstance(self.model, encoder.Config) or not self.model.pooler:
            raise ValueError("a classifier needs an encoder with pooler=True")
        if self.classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, got {self.classes}")

    def spec(self) -> Params:
        sizes = (("features", self.classes), ("embed", self.model.width))
        return encoder.spec(self.model) | {"classifier": block.linear_spec(self.model, "classifier", *sizes, bias=True)}

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray | None) -> Losses:
        return loss(params, batch, key, self)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        head = flops.product(batch_size, self.classes, self.model.width)
        return flops.total(flops.encoder_flops(params, self.model, batch_size, sequence_length), head)


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray | None, cfg: Distillation) -> Losses:
    """Losses of a batch, one text a row, with the metric "accuracy": how often the target's best class was the model's.

    Args:
      batch: inputs [B, S] int; target_probabilities [B, C]; optional: example_weight [B], segment_ids [B, S] (0 is padding).
      key: unused, the objective draws nothing.

    Raises:
      ValueError: targets of another number of classes.
    """
    targets = batch["target_probabilities"]
    if targets.shape[1] != cfg.classes:
        raise ValueError(f"target_probabilities are {targets.shape}, the model has {cfg.classes} classes")
    found = logits(params, batch["inputs"], cfg, batch.get("segment_ids"))
    weight = batch.get("example_weight", jnp.ones(len(targets), jnp.float32))
    right = (found.argmax(-1) == targets.argmax(-1)).astype(jnp.float32)
    return Losses(soft_ce(found, targets, weight), weight, {"accuracy": ((weight * right).sum(), weight.sum())})


def logits(
    params: Params, inputs: Int[Array, "B S"], cfg: Distillation, segments: Int[Array, "B S"] | None = None
) -> Float[Array, "B C"]:
    """The classifier's logits, in float32."""
    hidden = encoder.apply(params, inputs, cfg.model, segments=segments)
    return weights.linear(encoder.pooled(params, hidden), params["classifier"]).astype(jnp.float32)


def soft_ce(
    student_logits: Float[Array, "B C"], teacher_probs: Float[Array, "B C"], weight: Float[Array, " B"] | None = None
) -> Float[Array, " B"]:
    """Cross-entropy with soft targets in nats, times the weight of each row."""
    found = -(teacher_probs.astype(jnp.float32) * jax.nn.log_softmax(student_logits.astype(jnp.float32))).sum(-1)
    return found if weight is None else weight * found


def cache_teacher(
    cfg: Distillation, params: Params, inputs: Int[np.ndarray, "N S"], batch_size: int = 64
) -> Float[np.ndarray, "N C"]:
    """The teacher's probabilities of many texts, float32. An encoder has no dropout to be switched off."""
    found = []
    for start in range(0, len(inputs), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(inputs) - 1)  # the last batch is filled up
        found.append(np.asarray(_probabilities(params, jnp.asarray(inputs[rows]), cfg)))
    return np.concatenate(found)[: len(inputs)]


@functools.partial(jax.jit, static_argnames=("cfg",))
def _probabilities(params: Params, inputs: Array, cfg: Distillation) -> Array:
    return jax.nn.softmax(logits(params, inputs, cfg), -1)
