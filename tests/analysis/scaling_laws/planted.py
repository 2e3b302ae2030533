"""A planted Chinchilla law and runs that follow it.

Fits here take 8 to 16 starts where the default is 48, and bootstraps 20 to 60 draws where the default is 1000.
"""

from __future__ import annotations

import functools

import numpy as np

from jaxpt.analysis import scaling_laws as s

TRUTH = s.BESIROGLU
SIZES = np.array([0.15, 0.3, 0.6, 1.4])
fit = functools.partial(s.fit_chinchilla, starts=8)


def points(count=245, seed=0):
    """N 4e7 to 1.6e10, C 6e18 to 3e21, both even in logs."""
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(np.log(4e7), np.log(1.6e10), count))
    C = np.exp(rng.uniform(np.log(6e18), np.log(3e21), count))
    return N, C / (6 * N)


def noisy(noise, seed=1):
    N, D = points()
    return N, D, TRUTH.loss(N, D) * np.exp(noise * np.random.default_rng(seed).normal(size=len(N)))
