"""Operations, bytes and collectives of a compiled program are those of what runs, loops multiplied out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxpt.sharding import MeshConfig, collectives, cost, hlo, make_mesh
from jaxpt.sharding.topology import CHIPS

LAYERS, ROWS, WIDTH = 6, 32, 64


def stack(w, x, unroll=1):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w, unroll=unroll)[0]


def compiled(unroll=1):
    shapes = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), "float32"), jax.ShapeDtypeStruct((ROWS, WIDTH), "float32")
    return jax.jit(stack, static_argnums=2).lower(*shapes, unroll).compile()


def test_a_scanned_stack_counts_as_the_unrolled_one_where_xla_counts_one_layer():
    one_layer = 2 * ROWS * WIDTH * WIDTH
    scanned, unrolled = compiled(), compiled(LAYERS)
    assert scanned.cost_analysis()["flops"] < 1.2 * one_layer  # what has to be corrected
    assert unrolled.cost_analysis()["flops"] == pytest.approx(LAYERS * one_layer, rel=0.05)
    for program in (hlo.parse(scanned.as_text()), hlo.parse(unrolled.as_text())):
        assert cost.flops(program) == LAYERS * one_layer and not program.uncounted_loops


def test_a_loop_inside_a_loop_multiplies():
    def nested(w, x):
        return jax.lax.fori_loop(0, 5, lambda _, x: stack(w, x), x)

    shapes = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), "float32"), jax.ShapeDtypeStruct((ROWS, WIDTH), "float32")
    program = hlo.parse(jax.jit(nested).lower(*shapes).compile().as_text())
    assert cost.flops(program) == 5 * LAYERS * 2 * ROWS * WIDTH * WIDTH


def test_a_loop_of_unknown_length_is_counted_once_and_named():
    def until_large(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 1e6, lambda x: x @ w, x)

    program = hlo.parse(jax.jit(until_large).lower(jnp.ones((4, 8)), jnp.ones((8, 8))).compile().as_text())
    assert cost.flops(program) == 2 * 4 * 8 * 8 and len(program.uncounted_loops) == 1


def test_bytes_are_at_least_what_is_read_and_written_and_a_layer_reads_its_own_weights_only():
    program = hlo.parse(compiled().as_text())
    weights, activations = LAYERS * WIDTH * WIDTH * 4, LAYERS * ROWS * WIDTH * 4
    assert weights + activations < cost.bytes_accessed(program) < 3 * weights + 12 * activations


def sharded(fn, mesh, *arguments):
    shapes = [jax.ShapeDtypeStruct(s, "float32", sharding=NamedSharding(mesh, PartitionSpec(*p))) for s, p in arguments]
    with jax.set_mesh(mesh):
        return hlo.parse(jax.jit(fn).lower(*shapes).compile().as_text())


def test_collectives_have_the_axis_the_bytes_and_the_count_of_their_loop():
    """x [rows over fsdp] times a stack of matrices whose columns are over model: one all-reduce over model a layer."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, model=4))

    def two_matrices(stack, x):
        def layer(x, w):
            hidden = jax.lax.with_sharding_constraint(x @ w, PartitionSpec("fsdp", "model"))
            return jax.lax.with_sharding_constraint(hidden @ w.T, PartitionSpec("fsdp", None)), None

        return jax.lax.scan(layer, x, stack)[0]

    shapes = ((LAYERS, WIDTH, WIDTH), (None, None, "model")), ((ROWS, WIDTH), ("fsdp", None))
    (found,) = collectives.collectives(sharded(two_matrices, mesh, *shapes), mesh, CHIPS["v5e"])
    payload = ROWS // 2 * WIDTH * 4
    assert (found.kind, found.axes, found.count, found.devices) == ("all-reduce", "model", LAYERS, 4)
    assert found.bytes == LAYERS * payload * 2 * 3 / 4 and found.seconds > 0


def test_an_all_gather_sends_the_other_shares():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    program = sharded(
        lambda x: jax.lax.with_sharding_constraint(x * 2, PartitionSpec()), mesh, ((64, 8), ("fsdp", None))
    )
    (found,) = collectives.collectives(program, mesh, CHIPS["v5e"])
    assert (found.kind, found.axes, found.bytes) == ("all-gather", "fsdp", 3 * 16 * 8 * 4)


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,4},{1,5}}", [0, 4]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups={}", list(range(8))),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [0, 4]),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", [0, 1]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=3] {'a'}", []),
        ("source_target_pairs={{0,2},{2,0}}", [0, 2]),
        ("nothing", []),
    ],
)
def test_every_way_of_writing_a_group(text, group):
    instruction = hlo.Instruction("x", "all-gather", (), (), text, False)
    assert collectives._group(instruction, make_mesh(MeshConfig(fsdp=4))) == group


@pytest.mark.parametrize(
    ("n_in", "kernel", "out", "stride", "low", "dilate", "window_dilate"),
    [(8, 3, 8, 1, 1, 1, 1), (1, 2, 2, 1, 1, 1, 1), (5, 2, 3, 2, 0, 1, 1), (4, 3, 7, 1, 1, 2, 1), (9, 3, 5, 1, 0, 1, 2)],
)
def test_padding_and_holes_of_a_convolution_are_not_counted(n_in, kernel, out, stride, low, dilate, window_dilate):
    real = np.zeros(out * stride + kernel * window_dilate + n_in * dilate + low)
    real[low : low + n_in * dilate : dilate] = 1
    expected = sum(int(real[o * stride + k * window_dilate]) for o in range(out) for k in range(kernel))
    assert cost._valid(n_in, kernel, out, stride, low, dilate, window_dilate) == expected


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation in this compiled program of 5 characters"):
        hlo.parse("hello")
