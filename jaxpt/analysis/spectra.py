"""Singular spectra of weights, whatever their form. SLTrain (arXiv 2406.02214, figures): L = BA learns the head of the
spectrum of W, S fills the tail."""

from __future__ import annotations

import numpy as np

from jaxpt import weights
from jaxpt.core.types import Params


def singular_values(params: Params, where: str = "*") -> dict[str, np.ndarray]:
    """path -> singular values of the dense W [..., min(out, in)], descending, float64, for matrices matching `where`."""
    from jaxpt.core import trees

    found = {p: w for p, w in weights.matrices(params).items() if trees.matches(p, where)}
    return {p: np.linalg.svd(np.asarray(w.dense(), np.float64), compute_uv=False) for p, w in found.items()}


def numerical_rank(values: np.ndarray, tolerance: float = 1e-5) -> int:
    """Number of singular values above tolerance times the largest."""
    return int((values > tolerance * values.max()).sum())
