"""GaLore: its subspace, its equations, the authors' code and optax's, and the sizes of its state."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt.optim import GaloreConfig, warmup_cosine
from jaxpt.optim.galore import finished, refresh_event, scale_by_galore
from jaxpt.optim.projectors import Subspace, back, find, project, shapes
from jaxpt.training.events import every, run
from jaxpt.training.state import create

GOLDEN = Path(__file__).parent / "golden"
EVERYWHERE = ("*",)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def falling(m, n, seed=0):
    """[m, n] with singular values 1, 1/2, 1/4, ..."""
    u, _, v = np.linalg.svd(np.random.default_rng(seed).normal(size=(m, n)), full_matrices=False)
    return jnp.asarray(u @ np.diag(0.5 ** np.arange(min(m, n))) @ v, jnp.float32)


def dense(p, shape):
    """The n x n (or m x m) matrix that projects onto the subspace."""
    return p.T @ p if shape[0] >= shape[1] else p @ p.T


def run_steps(optimizer, start, gradient, steps):
    """Weights after every step, jitted."""
    state, update, params, found = optimizer.init(start), jax.jit(optimizer.update), start, []
    for t in range(steps):
        updates, state = update({k: g[t] for k, g in gradient.items()}, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found, state


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8)], ids=str)
@pytest.mark.parametrize("method", ["svd", "iterate"])
def test_the_projector_is_the_best_of_its_rank(shape, method):
    """P P^T is idempotent, and ||G - back(R)||^2 is the sum of the squares of the singular values left out."""
    g = falling(*shape)
    p = find(g, 3, method)
    assert p.shape == shapes(shape, 3)[0] and project(g, p).shape == shapes(shape, 3)[1]
    onto = dense(p, shape)
    np.testing.assert_allclose(onto @ onto, onto, atol=1e-5)
    left = float(jnp.linalg.norm(g - back(project(g, p), p, shape)))
    tail = np.linalg.svd(np.asarray(g, np.float64), compute_uv=False)[3:]
    assert left == pytest.approx(float(np.sqrt((tail**2).sum())), rel=1e-5 if method == "svd" else 1e-4)


def test_a_square_matrix_is_projected_from_the_right():
    p = find(jnp.asarray([[0.0, 3.0], [0.0, 0.0]]), 1)
    np.testing.assert_allclose(p, [[0.0, 1.0]], atol=1e-6)  # the right singular vector; the left one is (1, 0)


def test_the_largest_entry_of_every_vector_is_positive():
    for shape in ((12, 8), (8, 12)):
        p = find(random(*shape), 4)
        vectors = np.asarray(p if shape[0] >= shape[1] else p.T)
        assert (vectors[np.arange(4), np.abs(vectors).argmax(1)] > 0).all()
        np.testing.assert_allclose(find(-random(*shape), 4), p, atol=1e-5)


def test_iteration_finds_the_subspace_and_the_basis_of_the_svd():
    """Principal angles to the exact subspace below 1e-3, where singular values fall by half each."""
    g = falling(40, 24)
    exact, near = find(g, 4, "svd"), find(g, 4, "iterate")
    cosines = np.linalg.svd(np.asarray(exact @ near.T, np.float64), compute_uv=False)
    assert np.arccos(np.clip(cosines, -1, 1)).max() < 1e-3
    np.testing.assert_allclose(near, exact, atol=1e-3)


def test_stacked_layers_have_a_projector_each():
    g = random(2, 3, 8, 12)
    p = find(g, 3)
    assert p.shape == (2, 3, 8, 3)
    np.testing.assert_allclose(p[1, 2], find(g[1, 2], 3), atol=1e-5)
    np.testing.assert_allclose(project(g, p)[0, 1], project(g[0, 1], p[0, 1]), atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)], ids=str)
def test_of_full_rank_gradient_descent_is_itself_and_adam_is_another(shape):
    """r = min(m, n): back(project(G)) = G, but Adam's normalisation does not commute with the rotation."""
    g = random(*shape)
    p = find(g, 8)
    np.testing.assert_allclose(back(project(g, p), p, shape), g, atol=1e-5)
    rotated = back(jnp.sign(project(g, p)), p, shape)  # Adam's first step
    assert float(jnp.abs(rotated - jnp.sign(g)).max()) > 0.1


def test_the_hand_case():
    """G = [[2, 1], [1, 2]], r = 1: P = (1, 1)/sqrt 2, R = (3, 3)/sqrt 2, N = (1, 1), W moves by -rate scale .70711."""
    optimizer = GaloreConfig(rank=1, where=EVERYWHERE, schedule="constant", rate=0.1, warmup=0.0, scale=0.25).make(10)
    params = {"w": jnp.zeros((2, 2))}
    updates, state = optimizer.update({"w": jnp.asarray([[2.0, 1.0], [1.0, 2.0]])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], np.full((2, 2), -0.1 * 0.25 * 0.70711), rtol=1e-4)
    np.testing.assert_allclose(state[0].projector["w"], [[0.70711, 0.70711]], rtol=1e-4)


@pytest.mark.parametrize(("case", "gap"), [("frozen", None), ("refreshed", 4)])
def test_the_authors_code_step_by_step(case, gap):
    """`galore-torch` in float32 over 10 steps, weight decay included; the vector is not projected."""
    golden = np.load(GOLDEN / "galore.npz")
    start = {k: jnp.asarray(golden[f"start/{k}"]) for k in ("tall", "wide", "square", "vector")}
    scaled = scale_by_galore(Subspace(rank=3, gap=gap, where=EVERYWHERE), 0.25)
    optimizer = finished(scaled, 1e-2, weight_decay=0.1, decay=EVERYWHERE)
    found, _ = run_steps(optimizer, start, {k: golden[f"gradient/{k}"] for k in start}, 10)
    for name in start:
        for t, params in enumerate(found):
            np.testing.assert_allclose(params[name], golden[f"{case}/{name}"][t], atol=1e-5, err_msg=f"{name} {t}")


def test_optax_where_it_means_the_same():
    """`optax.contrib.galore` projects the larger dimension, the authors and we the smaller one, so only square matrices are
    left: those it projects from the other side, which transposing turns into ours. It adds eps after the bias correction, so
    eps is 0 here; its signs are the library's, so the projector is found once."""
    start = {"a": random(8, 8), "b": random(10, 10, seed=1)}
    gradient = {k: random(6, *x.shape, seed=len(x)) for k, x in start.items()}
    ours = optax.chain(scale_by_galore(Subspace(rank=3, gap=100, where=EVERYWHERE), 0.5, eps=0.0), optax.scale(-1e-2))
    found, _ = run_steps(ours, start, gradient, 6)
    settings = {"rank": 3, "update_proj_gap": 100, "scale": 0.5, "base_optimizer": optax.scale_by_adam(eps=0.0)}
    theirs = optax.contrib.galore(1e-2, **settings)
    transposed = {k: jnp.swapaxes(g, 1, 2) for k, g in gradient.items()}
    expected, _ = run_steps(theirs, {k: x.T for k, x in start.items()}, transposed, 6)
    for name in start:
        np.testing.assert_allclose(found[-1][name], expected[-1][name].T, atol=1e-5)
    tall = {"w": random(12, 8)}
    assert theirs.init(tall)[0].projector["w"].shape == (12, 3)
    assert ours.init(tall)[0].projector["w"].shape == (3, 8)


def test_moments_stay_when_the_projector_changes():
    optimizer = scale_by_galore(Subspace(rank=2, gap=2, where=EVERYWHERE), 1.0)
    params = {"w": random(8, 6)}
    state, seen = optimizer.init(params), []
    for t in range(5):
        g = {"w": random(8, 6, seed=t)}
        old, (_, state) = state, optimizer.update(g, state)
        seen.append(not np.allclose(state.projector["w"], old.projector["w"]))
        r = project(g["w"], state.projector["w"])
        np.testing.assert_allclose(state.mu["w"], 0.9 * old.mu["w"] + 0.1 * r, atol=1e-6)
    assert seen == [True, False, True, False, True]


def test_without_a_gap_the_weights_move_in_a_subspace_of_the_rank():
    """rank(W_T - W_0) is exactly r without refresh and above 2 r with it."""
    start, gradient = {"w": random(16, 12)}, {"w": random(12, 16, 12, seed=5)}
    ranks = {}
    for gap in (None, 3):
        optimizer = optax.chain(scale_by_galore(Subspace(rank=3, gap=gap, where=EVERYWHERE)), optax.scale(-1e-2))
        found, _ = run_steps(optimizer, start, gradient, 12)
        values = np.linalg.svd(np.asarray(found[-1]["w"] - start["w"], np.float64), compute_uv=False)
        ranks[gap] = int((values > 1e-4 * values[0]).sum())
    assert ranks[None] == 3 and ranks[3] > 6


def test_sizes_of_the_state():
    """2 r n + r m numbers for an m x n matrix projected from the left; Adam's 2 m n where a dimension is not above r."""
    params = {"left": random(8, 20), "right": random(20, 8), "thin": random(4, 30), "vector": random(7)}
    state = scale_by_galore(Subspace(rank=4, where=EVERYWHERE)).init(params)

    def count(name):
        return sum(x.size for tree in (state.mu, state.nu, state.projector) if (x := tree[name]) is not None)

    assert count("left") == 2 * 4 * 20 + 4 * 8 == count("right")
    assert count("thin") == 2 * 4 * 30 and count("vector") == 14


def test_only_dense_matrices_of_the_blocks_are_projected_by_default():
    subspace = Subspace(rank=4)
    assert subspace.projects("blocks/attention/query/kernel/w", (2, 8, 8))
    for path in ("embedding", "head/kernel/w", "blocks/mlp/up/kernel/v", "blocks/attention/query/bias"):
        assert not subspace.projects(path, (8, 8))
    assert not subspace.projects("blocks/mlp/up/kernel/w", (2, 4, 8))


def test_the_projector_can_be_found_outside_the_step():
    """With inside=False a matrix stands still until the event has run, and the compiled update holds no decomposition."""
    subspace = Subspace(rank=2, where=("w",), inside=False)
    optimizer = optax.chain(scale_by_galore(subspace), optax.scale_by_learning_rate(warmup_cosine(1e-2, 10, 1)))
    g = {"w": random(8, 6), "b": random(6)}
    state = create(g, optimizer)
    update = jax.jit(optimizer.update)
    updates, _ = update(g, state.opt_state, g)
    assert not updates["w"].any() and updates["b"].all()
    for transform, there in ((optimizer, False), (scale_by_galore(Subspace(rank=2, where=("w",))), True)):
        text = jax.jit(transform.update).lower(g, transform.init(g), g).as_text()
        assert ("lapack" in text) == there
    event = every(2, refresh_event(subspace, lambda step, state: jax.tree.map(lambda x: x * step, g)))
    state = run([event], 2, 10, state)
    np.testing.assert_allclose(state.opt_state[0].projector["w"], find(g["w"], 2), atol=1e-5)
    assert update(g, state.opt_state, g)[0]["w"].all()


def test_refreshing_without_projectors_is_an_error():
    state = create({"w": random(8, 6)}, optax.adam(1e-3))
    with pytest.raises(ValueError, match="no projectors to refresh"):
        refresh_event(Subspace(rank=2), lambda step, state: state.trainable)(1, state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank and gap must be at least 1, got rank=0"),
        ({"gap": 0}, "got rank=128 and gap=0"),
        ({"projector": "svg"}, "unknown projector 'svg'; did you mean 'svd'"),
    ],
    ids=str,
)
def test_impossible_settings_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        GaloreConfig(**wrong)
