"""Fira: the hand case, both residuals, the limiter, and the authors' code step by step."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt.optim.fira import limited, outer, scale_by_fira
from jaxpt.optim.projectors import Subspace, find, project

GOLDEN = Path(__file__).parent / "golden"


def subspace(rank, gap=None):
    return Subspace(rank=rank, gap=gap, where=("*",))


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def first_update(g, **kwargs):
    optimizer = scale_by_fira(subspace(kwargs.pop("rank", 1)), **kwargs)
    params = {"w": jnp.zeros_like(g)}
    return optimizer.update({"w": g}, optimizer.init(params))[0]["w"]


@pytest.mark.parametrize(("residual", "diagonal", "other"), [("paper", 0.23570, -0.23570), ("code", 0.76603, 0.29463)])
def test_the_hand_case(residual, diagonal, other):
    """G = [[2, 1], [1, 2]], r = 1: phi = sqrt 2 / 3, and the direction is alpha .70711 + E."""
    found = first_update(jnp.asarray([[2.0, 1.0], [1.0, 2.0]]), alpha=0.25, residual=residual)
    expected = 0.25 * 0.70711 + np.array([[diagonal, other], [other, diagonal]])
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_row_without_a_part_inside_has_no_part_outside():
    """G = diag(3, 1): the second row's R is 0, so W[1, 1] stays as it is."""
    found = first_update(jnp.asarray([[3.0, 0.0], [0.0, 1.0]]))
    assert found[1, 1] == 0 and found[0, 0] > 0


def test_of_full_rank_with_alpha_1_there_is_no_residual():
    for shape in ((12, 8), (8, 12)):
        g = random(*shape)
        p = find(g, 8)
        r = project(g, p)
        np.testing.assert_allclose(outer(g, r, jnp.sign(r), p, 1.0), jnp.zeros(shape), atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)], ids=str)
def test_the_scale_is_one_number_per_row_or_column(shape):
    """The norms run along the rank: a right projector scales rows, a left one columns."""
    g = random(*shape)
    p = find(g, 3)
    r = project(g, p)
    n = jnp.sin(7 * r)
    ratio = outer(g, r, n, p, 0.0) / g
    along = 1 if shape[0] >= shape[1] else 0
    np.testing.assert_allclose(ratio, np.broadcast_to(np.take(np.asarray(ratio), [0], along), shape), rtol=1e-4)
    phi = np.linalg.norm(n, axis=along) / np.linalg.norm(r, axis=along)
    np.testing.assert_allclose(np.take(np.asarray(ratio), 0, along), phi, rtol=1e-4)


def test_the_residual_grows_by_gamma_at_most_and_counts_from_the_limited_norm():
    """G times 10 at step 2: ||E_2|| = 1.01 ||E_1||; and at step 3, 1.01^2 ||E_1||."""
    g, optimizer = random(12, 8), scale_by_fira(subspace(3))
    state, norms = optimizer.init({"w": g}), []
    for factor in (1.0, 10.0, 100.0):
        _, state = jax.jit(optimizer.update)({"w": factor * g}, state)
        norms.append(float(state.norms["w"]))
    np.testing.assert_allclose(np.array(norms) / norms[0], [1.0, 1.01, 1.01**2], rtol=1e-6)


def test_the_limiter_leaves_the_first_and_smaller_residuals_alone():
    e, yes, no = random(2, 4, 6), jnp.asarray(True), jnp.asarray(False)
    norm = jnp.linalg.norm(e, axis=(1, 2))
    for before, first in ((0 * norm, yes), (norm, no), (2 * norm, no)):
        found, kept = limited(e, before, first, 1.01)
        np.testing.assert_allclose(found, e, rtol=1e-6)
        np.testing.assert_allclose(kept, norm, rtol=1e-6)
    found, kept = limited(e, norm * jnp.asarray([0.5, 1.0]), no, 1.01)
    np.testing.assert_allclose(kept, norm * np.array([0.505, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=(1, 2)), kept, rtol=1e-5)


@pytest.mark.parametrize(("case", "gap"), [("frozen", None), ("refreshed", 4)])
def test_the_authors_code_step_by_step(case, gap):
    """`fira` in float32 over 10 steps; its residual is "code"."""
    golden = np.load(GOLDEN / "fira.npz")
    params = {k: jnp.asarray(golden[f"start/{k}"]) for k in ("tall", "wide", "square", "vector")}
    optimizer = optax.chain(scale_by_fira(subspace(3, gap), 0.25, "code"), optax.scale(-1e-2))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t in range(10):
        updates, state = update({k: golden[f"gradient/{k}"][t] for k in params}, state)
        params = optax.apply_updates(params, updates)
        for name, x in params.items():
            np.testing.assert_allclose(x, golden[f"{case}/{name}"][t], atol=1e-5, err_msg=f"{name} {t}")


def test_an_unknown_residual_is_an_error():
    with pytest.raises(ValueError, match="unknown residual 'papers'; did you mean 'paper'"):
        scale_by_fira(subspace(1), residual="papers")
