"""Disentangled attention (DeBERTa, arXiv 2006.03654, sec. 3.1; as DeBERTaV3, arXiv 2111.09543, has it) as a score.

    A[i, j] = (Qc_i . Kc_j + Qc_i . Kr_d + Kc_j . Qr_d) / sqrt(3 K),   d = the row for distance i - j

content to content, content to position, position to content. Qr and Kr are a table of relative positions, normalised, times
the layer's own query and key matrices; all layers share the table. The first term is the block's, at `scale`; the score adds
the others:

    relative = Disentangled(buckets=256, max_position=512)
    Context(mask, positions, score(params["relative"], relative, eps), scale=scale(K))

Distances go to rows by log buckets, and only rows that a sequence reaches are multiplied. What a query gives to each of the
S + T - 1 distances is skewed into [S, T] by a reshape: there is no gather over queries and keys.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpt import weights
from jaxpt.core.spec import ArraySpec, normal
from jaxpt.core.types import Array, Float, Params
from jaxpt.layers import norms
from jaxpt.layers.block import Score
from jaxpt.layers.positions import skew

TERMS = 3


@dataclasses.dataclass(frozen=True)
class Disentangled:
    """Attributes:
    buckets: k; distances are told apart up to k/2, and in k/2 steps on a log scale from there on, each way.
    max_position: the distance that the last bucket begins at.
    rows: of the table; 2k where None (DeBERTa), 2k - 1 in GPT-BERT. Distance 0 has row rows // 2.
    """

    buckets: int = 256
    max_position: int = 512
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.buckets < 2 or self.max_position - 1 <= self.buckets // 2:
            raise ValueError(f"need buckets >= 2 and max_position > buckets/2 + 1, got {self}")

    @property
    def size(self) -> int:
        """Rows of the table."""
        return 2 * self.buckets if self.rows is None else self.rows


def log_bucket(distance: np.ndarray, buckets: int, max_position: int) -> np.ndarray:
    """The bucket of each distance: itself up to buckets/2, then logarithmic; buckets - 1 at max_position - 1.

    An odd and monotone function. Distances beyond have buckets beyond, as the authors' code has: who reads a table clips.
    """
    middle = buckets // 2
    size = np.maximum(np.abs(distance), middle).astype(np.float32)
    steps = np.log(size / np.float32(middle)) / np.log(np.float32((max_position - 1) / middle)) * (middle - 1)
    far = np.sign(distance) * (middle + np.ceil(steps).astype(np.int64))
    return np.where(np.abs(distance) <= middle, distance, far).astype(np.int32)


def spec(cfg: Disentangled, width: int, stddev: float = 0.02, dtype: str = "float32") -> Params:
    """{"table": [rows, D], "norm": a LayerNorm}."""
    table = ArraySpec((cfg.size, width), ("positions", "embed"), normal(stddev), dtype)
    return {"table": table, "norm": norms.spec("layer", width, (), dtype)}


def scale(per_head: int) -> float:
    """Of each of the three terms."""
    return 1 / math.sqrt(TERMS * per_head)


def score(p: Params, cfg: Disentangled, eps: float, dtype: str = "float32") -> Score:
    """The two terms with positions, scaled, for layers whose attention has no other positions.

    Args:
      p: as `spec` describes it.
      eps: of the table's norm.
      dtype: of the products.
    """
    table = norms.norm(p["table"], p["norm"], eps).astype(dtype)

    def disentangled(q: Array, k: Array, attention: Params) -> Float[Array, "B H S T"]:
        distances = np.arange(q.shape[1] - 1, -k.shape[1], -1)  # of the last query to the first key, ..., and so on
        reached, of = np.unique(rows(distances, cfg), return_inverse=True)
        q_relative, k_relative = (
            weights.linear(table[reached], attention[name]).reshape(len(reached), heads, -1)[of]
            for name, heads in (("query", q.shape[2]), ("key", k.shape[2]))
        )
        return position_scores(q, k, q_relative, k_relative) * scale(q.shape[-1])

    return disentangled


def rows(distances: np.ndarray, cfg: Disentangled) -> np.ndarray:
    """The row of the table for each distance i - j."""
    found = cfg.size // 2 + log_bucket(distances, cfg.buckets, cfg.max_position)
    return np.clip(found, 0, cfg.size - 1)


def position_scores(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B T G K"],
    q_relative: Float[Array, "N H K"],
    k_relative: Float[Array, "N G K"],
) -> Float[Array, "B H S T"]:
    """Qc_i . Kr + Kc_j . Qr at the distance of each query i and key j, in float32.

    Args:
      q_relative, k_relative: for the N = S + T - 1 distances i - j in descending order, from S - 1 to 1 - T.
    """
    (b, s, h, d), (t, g) = q.shape, k.shape[1:3]
    grouped = q.reshape(b, s, g, h // g, d)
    of_group = q_relative[::-1].reshape(-1, g, h // g, d)  # ascending: a key's queries come in that order
    in_float32: Any = {"preferred_element_type": jnp.float32}
    content_to_position = skew(jnp.einsum("bsgmk,rgk->bgmsr", grouped, k_relative, **in_float32), t)
    position_to_content = skew(jnp.einsum("btgk,rgmk->bgmtr", k, of_group, **in_float32), s)
    return (content_to_position + position_to_content.swapaxes(-1, -2)).reshape(b, h, s, t)
