"""SLTrain's form of a matrix: support, scale, initial values, and the published parameter counts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.models import decoder
from jaxpt.weights.sparse_low_rank import random_support
from jaxpt.weights.supports import balanced_tiles, slots_for_uniform, uniform_tiles
from pallas_kernels.sparse_low_rank.layout import EMPTY, flat_positions

# size -> layers, width, ffn, heads, rank, density, then millions of parameters: full, low-rank, SLTrain
PAPER = {
    "60m": (8, 512, 1376, 8, 128, 0.03, 58.1, 42.8, 43.5),
    "130m": (12, 768, 2048, 12, 256, 0.03, 134.1, 94.0, 96.5),
    "350m": (24, 1024, 2736, 16, 256, 0.03, 368.0, 185.2, 194.3),
    "1b": (24, 2048, 5461, 32, 512, 0.03, 1339.1, 609.3, 645.5),
}


def paper_spec(layers, width, ffn, heads, form):
    rules = () if form is None else (("blocks", form),)
    cfg = decoder.Config(vocab_size=32_000, layers=layers, width=width, ffn=ffn, heads=heads, weights=rules)
    return decoder.spec(cfg)


def closed_form(layers, width, ffn, rank, density):
    """Sum over q, k, v, o, gate, up, down of (m + n) r + int(density m n), + 2 * 32000 d + (2 L + 1) d."""
    shapes = [(width, width)] * 4 + [(ffn, width)] * 2 + [(width, ffn)]
    linears = sum((m + n) * rank + int(density * m * n) for m, n in shapes)
    return layers * linears + 2 * 32_000 * width + (2 * layers + 1) * width


@pytest.mark.parametrize("size", PAPER)
def test_parameter_counts_of_the_paper(size):
    layers, width, ffn, heads, rank, density, *published = PAPER[size]
    forms = (None, weights.LowRank(rank), weights.SparseLowRank(rank, density))
    found = [specs.count(paper_spec(layers, width, ffn, heads, form)) for form in forms]
    assert [round(n / 1e6, 1) for n in found] == published
    assert found[1:] == [closed_form(layers, width, ffn, rank, d) for d in (0.0, density)]


def test_parameter_counts_at_7b():
    """The table has no 7B row: the closed form, and the full model's usual count."""
    layers, width, ffn, heads = 32, 4096, 11_008, 32
    assert round(specs.count(paper_spec(layers, width, ffn, heads, None)) / 1e6, 1) == 6738.4
    for density in (0.0, 0.05):
        form = weights.SparseLowRank(1024, density)
        found = specs.count(paper_spec(layers, width, ffn, heads, form))
        assert found == closed_form(layers, width, ffn, 1024, density)


def test_the_support_is_counted_in_bytes_and_not_in_parameters():
    form = weights.SparseLowRank(rank=4, density=0.1)
    spec = form.spec(20, 30, ("mlp", "embed"), (3,))
    nnz = int(0.1 * 20 * 30)
    assert specs.count(spec) == 3 * (4 * 50 + nnz)
    assert specs.nbytes(spec) == 4 * 3 * (4 * 50 + 2 * nnz)


def test_support_is_exact_sorted_without_duplicates_and_different_in_every_layer():
    form, m, n = weights.SparseLowRank(rank=2, density=0.03), 100, 130
    matrix = specs.init(jax.random.key(0), form.spec(m, n, ("mlp", "embed"), (4,)))
    support = np.asarray(matrix.support)
    assert support.shape == (4, int(0.03 * m * n)) and support.dtype == np.int32
    assert (np.diff(support, axis=1) > 0).all() and support.min() >= 0 and support.max() < m * n
    assert len({row.tobytes() for row in support}) == 4
    again = specs.init(jax.random.key(0), form.spec(m, n, ("mlp", "embed"), (4,)))
    np.testing.assert_array_equal(again.support, support)


def test_the_support_is_uniform_over_tiles():
    """Entries per 128 x 128 tile against the hypergeometric law: mean 491.5, deviation 21.8."""
    m = n = 1024
    nnz, tile = int(0.03 * m * n), 128 * 128
    support = np.asarray(random_support(m * n)(jax.random.key(3), (2, nnz), jnp.int32))
    for row in support:
        counts = np.bincount((row // n // 128) * (n // 128) + row % n // 128, minlength=(m // 128) * (n // 128))
        expected = nnz * tile / (m * n)
        deviation = stats.hypergeom(m * n, tile, nnz).std()
        assert abs(expected - 491.5) < 0.1 and abs(deviation - 21.8) < 1.0
        tiles = counts.size
        # the counts sum to nnz: squares over the hypergeometric variance are tiles / (tiles - 1) chi2
        statistic = ((counts - expected) ** 2).sum() / deviation**2 * (tiles - 1) / tiles
        assert 1e-3 < stats.chi2(tiles - 1).cdf(statistic) < 1 - 1e-3


def test_initial_values():
    form, m, n = weights.SparseLowRank(rank=8, density=0.25, alpha=16), 200, 150
    matrix = specs.init(jax.random.key(1), form.spec(m, n, ("mlp", "embed")))
    bound = 1 / np.sqrt(n)
    assert matrix.scale == 2.0 and not matrix.b.any()
    for values in (matrix.a, matrix.v):
        assert 0.98 * bound < float(jnp.abs(values).max()) <= bound
        assert abs(float(values.mean())) < 0.1 * bound
    dense = np.asarray(matrix.dense()).reshape(-1)  # B = 0: W = S
    np.testing.assert_array_equal(dense[np.asarray(matrix.support)], matrix.v)
    assert np.count_nonzero(dense) == matrix.v.size


def test_the_scale_touches_the_low_rank_part_only_and_its_gradient_is_chained():
    form = weights.SparseLowRank(rank=3, density=0.2)
    base = specs.init(jax.random.key(0), form.spec(12, 10, ("mlp", "embed")))
    base = base.replace(b=jax.random.normal(jax.random.key(1), base.b.shape))
    x, dy = (jax.random.normal(jax.random.key(i), s) for i, s in ((2, (7, 10)), (3, (7, 12))))

    def run(scale):
        scaled = base.replace(scale=scale)
        split = trees.split(scaled)
        value, pull = jax.vjp(lambda t: trees.merge(t, split[1]).apply(x), split[0])
        return value, pull(dy)[0], scaled.dense()

    (one, g1, w1), (four, g4, w4) = run(1.0), run(4.0)
    np.testing.assert_allclose(four - one, 3.0 * x @ (base.b @ base.a).T, atol=1e-4)
    np.testing.assert_allclose(w4 - w1, 3.0 * base.b @ base.a, atol=1e-5)
    np.testing.assert_allclose(g4.a, 4.0 * g1.a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(g4.b, 4.0 * g1.b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(g4.v, g1.v, rtol=1e-6)


def test_scale_is_alpha_over_rank():
    for form in (weights.SparseLowRank, weights.LowRank):
        assert form(rank=8, alpha=32).scale == 4.0
        assert form(rank=8).scale == 1.0
        assert form(rank=0, alpha=32).scale == 1.0


def test_the_support_never_reaches_the_optimizer():
    form = weights.SparseLowRank(rank=2, density=0.1)
    trainable, fixed = trees.split({"kernel": form.spec(10, 10, ("mlp", "embed"))})
    assert [p for p, _ in trees.leaves_with_path(trainable)] == ["kernel/b", "kernel/a", "kernel/v"]
    assert [p for p, _ in trees.leaves_with_path(fixed)] == ["kernel/support"]


def test_cost_counts_what_the_kernel_multiplies():
    """Nominal: 6 per trainable entry and token. Executed: densify twice, three dense products, the cheaper
    low-rank gradients; checked against the operations XLA counts in the compiled forward and backward."""
    m, n, r = 64, 96, 8
    matrix = specs.init(jax.random.key(0), weights.SparseLowRank(rank=r, density=0.1).spec(m, n, ("mlp", "embed")))
    for tokens in (16, 256):
        nominal, executed = matrix.cost(tokens)
        assert nominal == 6 * tokens * (r * (m + n) + matrix.v.size)
        low_rank = 4 * tokens * r * (m + n) if tokens == 16 else 4 * m * n * r
        assert executed == 6 * tokens * m * n + 4 * m * n * r + low_rank

        def both(x, b, a, v, dy, matrix=matrix):
            value, pull = jax.vjp(lambda x, b, a, v: matrix.replace(b=b, a=a, v=v).apply(x), x, b, a, v)
            return value, pull(dy)

        x, dy = jnp.ones((tokens, n)), jnp.ones((tokens, m))
        counted = jax.jit(both).lower(x, matrix.b, matrix.a, matrix.v, dy).compile().cost_analysis()["flops"]
        # the compiler shares one densify between forward and backward here; a training step does not
        assert executed - 2 * m * n * r <= 1.02 * counted and counted <= 1.1 * executed


@pytest.mark.parametrize("density", [-0.1, 1.5])
def test_an_impossible_density_is_an_error(density):
    with pytest.raises(ValueError, match=f"density {density} is not between 0 and 1"):
        weights.SparseLowRank(density=density).spec(8, 8, ("mlp", "embed"))


def test_a_matrix_beyond_32_bit_positions_is_an_error():
    with pytest.raises(ValueError, match="64-bit positions"):
        random_support(2**31)


def test_from_dense_matches_w_on_its_support_and_its_svd_elsewhere():
    w = jax.random.normal(jax.random.key(0), (2, 12, 10))
    form = weights.SparseLowRank(rank=3, density=0.3, alpha=6.0)
    matrix = form.from_dense(jax.random.key(1), w)
    dense = np.asarray(matrix.dense()).reshape(2, -1)
    for layer in range(2):
        support = np.asarray(matrix.support[layer])
        np.testing.assert_allclose(dense[layer, support], np.asarray(w[layer]).reshape(-1)[support], atol=1e-5)
        u, s, vt = np.linalg.svd(np.asarray(w[layer]), full_matrices=False)
        low = ((u[:, :3] * s[:3]) @ vt[:3]).reshape(-1)
        rest = np.setdiff1d(np.arange(120), support)
        np.testing.assert_allclose(dense[layer, rest], low[rest], atol=1e-5)
    lower = dataclasses.replace(form, rank=11)
    with pytest.raises(ValueError, match="rank 11 is above"):
        lower.from_dense(jax.random.key(1), w)


def test_supports_by_tile_hold_what_they_say():
    """Uniform tiles: nnz distinct positions, room to spare. Balanced: the same share of every tile, ragged ones included."""
    m, n, nnz = 200, 300, 1800
    slots = slots_for_uniform(m, n, nnz)
    for draw, expected in ((uniform_tiles(m, n, nnz), nnz), (balanced_tiles(m, n, 0.03), None)):
        p = np.asarray(draw(jax.random.key(0), (2, 2, 3, slots), jnp.int16))
        assert not np.array_equal(p[0], p[1])
        for one in p:
            flat = np.asarray(flat_positions(jnp.asarray(one), m, n))
            inside = flat[one != EMPTY]
            assert inside.max() < m * n and len(set(inside)) == inside.size and (flat[one == EMPTY] >= m * n).all()
            if expected:
                assert inside.size == expected
            else:
                areas = np.outer([128, 72], [128, 128, 44])
                np.testing.assert_array_equal((one != EMPTY).sum(-1), np.round(0.03 * areas))
    assert slots_for_uniform(2048, 2048, int(0.03 * 2048**2)) == 640
