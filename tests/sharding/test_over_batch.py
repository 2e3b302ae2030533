"""SLTrain under fsdp: the same numbers as on one device, small arrays stored in shares, and W itself never sent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.sharding import MeshConfig, hlo, make_mesh, over_batch, shardings
from jaxpt.sharding.collectives import collectives
from jaxpt.sharding.topology import CHIPS
from pallas_kernels.common.call import mesh_objection

OUT, IN, ROWS, LENGTH = 48, 32, 8, 4
FORM = weights.SparseLowRank(rank=8, density=0.25, alpha=4.0, multiple=8)


def matrix():
    found = specs.init(jax.random.key(0), FORM.spec(OUT, IN, ("mlp", "embed")))
    noise = jax.random.normal(jax.random.key(1), found.b.shape)
    return found.replace(b=noise)


def inputs():
    return jax.random.normal(jax.random.key(2), (ROWS, LENGTH, IN))


def value_and_gradients(w, x):
    trainable, fixed = trees.split(w)

    def loss(t, x):
        return jnp.sum(jnp.sin(trees.merge(t, fixed).apply(x)))

    return jax.value_and_grad(loss, (0, 1))(trainable, x)


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 4, "model": 2}], ids=str)
def test_a_sharded_sparse_low_rank_matrix_gives_the_values_and_gradients_of_one_device(sizes):
    expected = jax.jit(value_and_gradients)(matrix(), inputs())
    mesh = make_mesh(MeshConfig(**{"data": 1} | sizes))
    with jax.set_mesh(mesh):
        placed = jax.device_put(matrix(), shardings(FORM.spec(OUT, IN, ("mlp", "embed")), mesh))
        found = jax.jit(value_and_gradients)(placed, inputs())
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_every_array_of_the_form_is_split_over_fsdp():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    spec = FORM.spec(OUT, IN, ("mlp", "embed"))
    for array, sharding in zip(jax.tree.leaves(spec), jax.tree.leaves(shardings(spec, mesh)), strict=True):
        assert np.prod(sharding.shard_shape(array.shape)) * 8 == array.size


def test_no_collective_carries_w_or_its_gradient():
    """What is sent for one matrix is its factors and values, less than an eighth of W at this rank and density."""
    out, inp = 512, 384
    form = weights.SparseLowRank(rank=8, density=0.02, multiple=8)
    spec, mesh = form.spec(out, inp, ("mlp", "embed")), make_mesh(MeshConfig(data=1, fsdp=8))
    shapes = jax.tree.map(
        lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), specs.abstract(spec), shardings(spec, mesh)
    )
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    x = jax.ShapeDtypeStruct((64, 16, inp), jnp.float32, sharding=rows)
    with jax.set_mesh(mesh):
        places = (jax.tree.map(lambda s: s.sharding, trees.split(shapes)[0]), rows)
        program = hlo.parse(
            jax.jit(value_and_gradients, out_shardings=(None, places)).lower(shapes, x).compile().as_text()
        )
    largest = [
        scope[name].nbytes
        for computation in program.computations.values()
        for scope in (computation,)
        for i in computation.values()
        if i.opcode.startswith(("all-gather", "all-reduce", "reduce-scatter", "all-to-all"))
        for name in i.operands
        if name in scope
    ]
    assert largest and max(largest) < out * inp * 4 / 8
    assert sum(c.bytes for c in collectives(program, mesh, CHIPS["v5e"])) < out * inp * 4


def test_over_batch_is_the_function_itself_without_a_mesh_and_where_rows_cannot_be_split():
    def double(x, y):
        return 2 * x + y

    assert over_batch(double, jnp.ones(3), jnp.ones(())).tolist() == [3, 3, 3]
    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=8))):
        assert over_batch(double, jnp.ones(3), jnp.ones(())).tolist() == [3, 3, 3]


def test_over_batch_inside_itself_splits_once():
    def double(x, y):
        return 2 * x + y

    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=8))):
        nested = jax.jit(lambda x, y: over_batch(lambda x, y: over_batch(double, x, y), x, y))
        assert nested(jnp.ones((8, 2)), jnp.ones(())).tolist() == [[3, 3]] * 8


def test_the_number_of_values_is_rounded_down_to_a_multiple():
    assert weights.SparseLowRank(density=0.03).nnz(2048, 2048) == 125829
    assert weights.SparseLowRank(density=0.03, multiple=256).nnz(2048, 2048) == 125696


@pytest.mark.parametrize(
    ("sizes", "rows", "objects"),
    [
        ({"fsdp": 8}, 8, False),
        ({"data": 2, "fsdp": 4}, 16, False),
        ({"fsdp": 4, "model": 2}, 8, True),
        ({"fsdp": 8}, 3, True),
    ],
    ids=str,
)
def test_a_kernel_is_advised_against_where_devices_would_repeat_rows(sizes, rows, objects):
    with jax.set_mesh(make_mesh(MeshConfig(**({"data": 1} | sizes)))):
        advice = mesh_objection(rows)
    assert (advice is not None) == objects
    assert mesh_objection(rows) is None
