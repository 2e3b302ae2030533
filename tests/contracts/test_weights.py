"""What every form of a matrix must do. A new form adds a row to FORMS and nothing else."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.sharding import MeshConfig, make_mesh, shardings
from jaxpt.training.checkpoint import Checkpoints, shape_of
from jaxpt.training.state import create

OUT, IN, LAYERS, TOKENS = 24, 16, 3, 8


def any_matrix(rng: np.random.Generator) -> np.ndarray:
    """[L, out, in] that any form without loss can represent."""
    return rng.normal(size=(LAYERS, OUT, IN))


def rank_4(rng: np.random.Generator) -> np.ndarray:
    """[L, out, in] of rank 4."""
    return rng.normal(size=(LAYERS, OUT, 4)) @ rng.normal(size=(LAYERS, 4, IN)) / 2


def slices_of_rank_1(rng: np.random.Generator) -> np.ndarray:
    """[L, out, in] whose slice [l::4, 4 k : 4 k + 4] has rank 1 for all l and k: Monarch with four blocks."""
    u, v = rng.normal(size=(LAYERS, OUT // 4, 4, 4)), rng.normal(size=(LAYERS, 4, 4, IN // 4))
    return np.einsum("nslk,nlkp->nslkp", u, v).reshape(LAYERS, OUT, IN)


def slices_of_rank_2(rng: np.random.Generator) -> np.ndarray:
    """[L, out, in] whose slice [l::4, 8 k : 8 k + 8] has rank 2 for all l and k: Monarch with four by two blocks."""
    u, v = rng.normal(size=(LAYERS, OUT // 4, 4, 2, 2)), rng.normal(size=(LAYERS, 4, 2, 2, IN // 2))
    return np.einsum("nslkc,nlkcp->nslkp", u, v).reshape(LAYERS, OUT, IN) / 2


def block_diagonal(rng: np.random.Generator) -> np.ndarray:
    """[L, out, in] with four blocks on the diagonal."""
    return rng.normal(size=(LAYERS, OUT, IN)) * np.kron(np.eye(4), np.ones((OUT // 4, IN // 4)))


def three_blocks(rng: np.random.Generator) -> np.ndarray:
    """[L, out, in] with three blocks of 8 x 8 of the six there could be, in other places in each layer."""
    mask = np.zeros((LAYERS, 6))
    for layer in mask:
        layer[rng.choice(6, 3, replace=False)] = 1
    return rng.normal(size=(LAYERS, OUT, IN)) * np.kron(mask.reshape(LAYERS, 3, 2), np.ones((1, 8, 8)))


def half_of_the_entries(rng: np.random.Generator) -> np.ndarray:
    """[L, out, in] of which half the entries of every layer are not zero."""
    mask = rng.permuted(np.arange(OUT * IN) < OUT * IN // 2)
    return rng.normal(size=(LAYERS, OUT, IN)) * mask.reshape(OUT, IN)


@dataclasses.dataclass(frozen=True)
class Row:
    """One form, what it can represent exactly, how many entries of one [OUT, IN] matrix it trains, and how many operations
    a token costs the method, where that is not 6 for each of them."""

    form: weights.Form
    representable: Any
    trainable: int
    nominal: int | None = None


FORMS = {
    "dense": Row(weights.Dense(), any_matrix, OUT * IN),
    "dense, normal": Row(weights.Dense(stddev=0.02), any_matrix, OUT * IN),
    "low rank": Row(weights.LowRank(rank=4), rank_4, 4 * (OUT + IN)),
    "low rank, scaled": Row(weights.LowRank(rank=4, alpha=10.0), rank_4, 4 * (OUT + IN)),
    "sparse low rank": Row(
        weights.SparseLowRank(rank=4, density=0.25, alpha=10.0), rank_4, 4 * (OUT + IN) + OUT * IN // 4
    ),
    "sparse low rank, full support": Row(
        weights.SparseLowRank(rank=2, density=1.0), any_matrix, 2 * (OUT + IN) + OUT * IN
    ),
    "sparse, rank 0": Row(weights.SparseLowRank(rank=0, density=1.0), any_matrix, OUT * IN),
    "sparse low rank, uniform tiles": Row(
        weights.SparseLowRank(rank=4, density=0.25, support="uniform_tiles"), rank_4, 4 * (OUT + IN) + OUT * IN // 4
    ),
    "sparse low rank, balanced tiles": Row(
        weights.SparseLowRank(rank=4, density=0.25, support="tile_balanced"), rank_4, 4 * (OUT + IN) + OUT * IN // 4
    ),
    "monarch": Row(weights.Monarch(blocks=4), slices_of_rank_1, 4 * 4 * 4 + 4 * 6 * 4),
    "monarch, block order": Row(
        weights.Monarch(blocks=4, order="block"),
        lambda rng: slices_of_rank_1(rng).reshape(LAYERS, 6, 4, IN).swapaxes(1, 2).reshape(LAYERS, OUT, IN),
        4 * 4 * 4 + 4 * 6 * 4,
    ),
    "monarch, one block": Row(weights.Monarch(blocks=1), any_matrix, IN * (OUT + IN)),
    "block diagonal": Row(weights.BlockDiagonal(blocks=4), block_diagonal, OUT * IN // 4),
    "block sparse": Row(weights.BlockSparse(density=0.5, block=(8, 8)), three_blocks, OUT * IN // 2),
    "block sparse, all blocks": Row(weights.BlockSparse(density=1.0, block=(8, 8)), any_matrix, OUT * IN),
    "masked": Row(weights.Masked(sparsity=0.5), half_of_the_entries, OUT * IN, 3 * OUT * IN),
    "monarch, four by two blocks": Row(weights.Monarch(4, 2), slices_of_rank_2, 4 * 2 * 2 * 8 + 4 * 6 * 4),
    "relora": Row(weights.ReLoRA(rank=4, alpha=2.0), any_matrix, 4 * (OUT + IN), 24 * (OUT + IN) + 4 * OUT * IN),
    "low rank by way of no sparse part": Row(weights.SparseLowRank(rank=4, density=0.0), rank_4, 4 * (OUT + IN)),
}

every_form = pytest.mark.parametrize("name", FORMS)


@functools.cache
def stacked(name: str) -> weights.Matrix:
    """LAYERS matrices with every trainable entry away from its initial value."""
    spec = FORMS[name].form.spec(OUT, IN, ("mlp", "embed"), (LAYERS,))
    trainable, fixed = trees.split(specs.init(jax.random.key(0), spec))
    noise = trees.map_with_path(
        lambda p, x: 0.3 * np.random.default_rng(len(p)).normal(size=x.shape).astype(x.dtype), trainable
    )
    return trees.merge(jax.tree.map(jnp.add, trainable, noise), fixed)


def layer(matrix: weights.Matrix, i: int) -> weights.Matrix:
    return jax.tree.map(lambda t: t[i], matrix)


def inputs(width: int = IN) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, TOKENS // 2, width)).astype(np.float32))


def apply_and_gradients(matrix: weights.Matrix, x: jax.Array) -> tuple[Any, ...]:
    trainable, fixed = trees.split(matrix)
    value, pull = jax.vjp(lambda t, x: trees.merge(t, fixed).apply(x), trainable, x)
    return value, *pull(jnp.cos(jnp.arange(value.size)).reshape(value.shape).astype(value.dtype))


def assert_trees_close(found: Any, expected: Any, atol: float) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), other in zip(trees.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=atol, err_msg=path)


def test_every_family_member_has_a_row():
    assert {type(row.form) for row in FORMS.values()} == set(weights.FORMS.values())


@every_form
def test_apply_is_x_times_the_dense_transpose_with_its_gradients(name):
    """Jitted, against JAX's own derivative of `x @ dense().T`."""
    matrix, x = layer(stacked(name), 0), inputs()
    assert matrix.shape == (OUT, IN) == matrix.dense().shape
    trainable, fixed = trees.split(matrix)
    expected, pull = jax.vjp(lambda t, x: x @ trees.merge(t, fixed).dense().T, trainable, x)
    dy = jnp.cos(jnp.arange(expected.size)).reshape(expected.shape)
    found = jax.jit(apply_and_gradients)(matrix, x)
    assert_trees_close(found, (expected, *pull(dy)), 2e-5)
    assert_trees_close(found, apply_and_gradients(matrix, x), 1e-5)


@every_form
def test_bfloat16_activations_give_finite_bfloat16_outputs_close_to_float32(name):
    matrix, x = layer(stacked(name), 0), inputs()
    run = jax.jit(apply_and_gradients)
    half, dw, dx = run(matrix, x.astype(jnp.bfloat16))
    assert half.dtype == dx.dtype == jnp.bfloat16
    assert {g.dtype for g in jax.tree.leaves(dw)} == {jnp.dtype("float32")}
    value, *gradients = run(matrix, x)
    for one, other in zip(jax.tree.leaves((half, dw, dx)), jax.tree.leaves((value, gradients)), strict=True):
        assert jnp.isfinite(one).all()
        scale = float(jnp.abs(other).max(initial=1e-6))
        assert float(jnp.abs(one.astype(jnp.float32) - other).max(initial=0)) < 0.06 * scale


@every_form
def test_scan_and_vmap_over_stacked_layers(name):
    stack, x = stacked(name), inputs()
    one_by_one = jnp.stack([layer(stack, i).apply(x) for i in range(LAYERS)])
    _, scanned = jax.jit(lambda s: jax.lax.scan(lambda c, p: (c, p.apply(x)), None, s))(stack)
    mapped = jax.jit(jax.vmap(lambda p: p.apply(x)))(stack)
    np.testing.assert_allclose(scanned, one_by_one, atol=1e-5)
    np.testing.assert_allclose(mapped, one_by_one, atol=1e-5)
    dense = stack.dense()
    assert stack.shape == (OUT, IN) and dense.shape == (LAYERS, OUT, IN)
    np.testing.assert_allclose(dense[1], layer(stack, 1).dense(), atol=1e-6)


@every_form
def test_split_and_merge_are_inverse_and_count_the_trainable_entries(name):
    stack = stacked(name)
    trainable, fixed = trees.split(stack)
    merged = trees.merge(trainable, fixed)
    assert jax.tree.structure(merged) == jax.tree.structure(stack)
    assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(stack), strict=True))
    assert specs.count(stack) == LAYERS * FORMS[name].trainable == sum(x.size for x in jax.tree.leaves(trainable))
    assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(trainable))


@every_form
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_spec_says_shapes_dtypes_and_bytes(name, dtype):
    spec = FORMS[name].form.spec(OUT, IN, ("mlp", "embed"), (LAYERS,), dtype)
    assert spec.shape == (OUT, IN)
    matrix = jax.eval_shape(lambda: specs.init(jax.random.key(0), spec))
    assert jax.tree.structure(specs.abstract(spec)) == jax.tree.structure(matrix)
    for (path, one), other in zip(trees.leaves_with_path(spec), jax.tree.leaves(matrix), strict=True):
        assert (one.shape, jnp.dtype(one.dtype)) == (other.shape, other.dtype), path
        assert one.axes[0] == "layers"
    assert specs.nbytes(spec) == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(matrix))
    assert {x.dtype for x in jax.tree.leaves(trees.split(matrix)[0])} == {jnp.dtype(dtype)}


@every_form
def test_a_mesh_of_two_by_four_gives_what_one_device_gives(name):
    stack, x = stacked(name), inputs()
    spec = FORMS[name].form.spec(OUT, IN, ("mlp", "embed"), (LAYERS,))
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, model=4))

    def run(stack, x):
        mapped = jax.vmap(apply_and_gradients, in_axes=(0, None))
        return mapped(stack, x)

    expected = jax.jit(run)(stack, x)
    with jax.set_mesh(mesh):
        placed = jax.device_put(stack, shardings(spec, mesh))
        found = jax.jit(run)(placed, x)
    assert_trees_close(found, expected, 1e-5)


@every_form
def test_a_representable_matrix_survives_the_way_from_dense_and_back(name):
    row = FORMS[name]
    w = jnp.asarray(row.representable(np.random.default_rng(2)), jnp.float32)
    tree = {
        "a": {"kernel": weights.DenseMatrix(w)},
        "b": {"kernel": weights.DenseMatrix(w)},
        "c": jnp.ones(3),
    }
    there = weights.convert(jax.random.key(0), tree, where="a/*", to=row.form)
    assert isinstance(there["a"]["kernel"], type(stacked(name)))
    assert specs.count(there["a"]) == LAYERS * row.trainable
    assert jax.tree.structure(there["a"]["kernel"]) == jax.tree.structure(stacked(name))
    np.testing.assert_array_equal(there["b"]["kernel"].w, w)
    np.testing.assert_allclose(there["a"]["kernel"].dense(), w, atol=2e-5)
    back = weights.convert(jax.random.key(1), there, where="a", to=weights.Dense())
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    np.testing.assert_allclose(back["a"]["kernel"].w, w, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, row in FORMS.items() if row.representable is any_matrix])
def test_a_lossless_form_converts_to_itself(name):
    """Any matrix of the form -> dense -> the form: the same dense matrix."""
    matrix = stacked(name)
    again = FORMS[name].form.from_dense(jax.random.key(3), matrix.dense())
    np.testing.assert_allclose(again.dense(), matrix.dense(), atol=2e-5)


@every_form
def test_cost_is_positive_grows_with_tokens_and_nominal_counts_what_the_method_needs(name):
    matrix = layer(stacked(name), 0)
    small, large = matrix.cost(100), matrix.cost(200)
    row = FORMS[name]
    assert small.nominal == 100 * (row.nominal or 6 * row.trainable) and large.nominal == 2 * small.nominal
    assert 0 < small.executed < large.executed


@every_form
def test_forms_are_hashable_and_equal_by_value(name):
    form = FORMS[name].form
    assert hash(form) == hash(dataclasses.replace(form)) and form == dataclasses.replace(form)


def test_a_checkpoint_holds_every_form_bit_for_bit(tmp_path):
    state = create({f"w{i}": stacked(name) for i, name in enumerate(FORMS)}, optax.sgd(0.1))
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(state, {})
    found, _ = checkpoints.restore(lambda step: jax.tree.map(shape_of, state))
    checkpoints.close()
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for (path, one), other in zip(trees.leaves_with_path(found), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype, path
        np.testing.assert_array_equal(one, other, path)


def test_converting_nothing_is_an_error_that_lists_the_matrices():
    tree = {"blocks": {"up": {"kernel": weights.DenseMatrix(jnp.ones((2, 3)))}}}
    with pytest.raises(ValueError, match="no matrix matches 'block/up'.*blocks/up/kernel"):
        weights.convert(jax.random.key(0), tree, where="block/up", to=weights.LowRank(rank=1))
