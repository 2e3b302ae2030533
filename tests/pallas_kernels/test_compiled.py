"""What the compilers say: TPU kernels for v5e, v5p and v6e, Triton for an H100, from a machine that has neither.

All of the TPU part runs in one worker: its compiler takes a lock. Where it is not installed, the tests that need it are
reported as skipped.
"""

from __future__ import annotations

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import optim, weights
from jaxpt.models import decoder
from jaxpt.objectives import causal_lm
from jaxpt.training import state as states
from jaxpt.training.step import make_step
from pallas_kernels import aot, bench, explain, tune
from pallas_kernels.cases import cases, with_gradients
from pallas_kernels.common import chips, tuning

needs_compiler = [
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the tpu extra)"),
    pytest.mark.xdist_group("libtpu"),
]
TPU = pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])


def tpu(test):
    for mark in needs_compiler:
        test = mark(test)
    return test


def shapes(variant):
    given = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in variant.arguments]
    return [*given, jax.eval_shape(variant.fn, *given)]


def compiled(chip, operation, variant, size="square-1024", tokens=4096, backward=False):
    case = cases(operation, size, tokens)[0]
    found = case.variants[variant]
    *given, dy = shapes(found)
    fn, given = (with_gradients(found), [*given, dy]) if backward else (found.fn, given)
    return aot.compile_for(aot.tpu_mesh(chip), fn, *given), case


@tpu
@TPU
@pytest.mark.parametrize(
    ("operation", "variant"),
    [
        ("sparse_low_rank", "pallas_tpu"),
        ("monarch", "pallas_tpu, block order"),
        ("monarch", "pallas_tpu, canonical order"),
        ("block_sparse", "pallas_tpu"),
    ],
)
def test_forward_and_backward_compile_without_a_temporary_of_the_size_of_the_weight(chip, operation, variant):
    report, case = compiled(chip, operation, variant, backward=True)
    assert report.text.count("tpu_custom_call") >= 2
    cores = chips.CHIPS[chip].cores  # each sums its own part of the weights' gradients, in float32
    assert report.temporary < cores * 1024 * 1024 * 2 and report.flops > 2 * case.flops


@tpu
@pytest.mark.parametrize("order", ["block", "canonical"])
def test_fused_monarch_moves_the_least_bytes_and_the_plain_einsum_several_times_that(order):
    report, case = compiled("v5e", "monarch", f"pallas_tpu, {order} order")
    assert report.bytes_accessed <= 1.3 * case.nbytes
    plain, _ = compiled("v5e", "monarch", "authors' einsum")
    assert plain.bytes_accessed >= 4 * case.nbytes


@tpu
def test_a_whole_training_step_with_every_kernel_compiles():
    """A stacked, scanned, rematerialised decoder in which each form has its kernel, chosen by "auto"."""
    rules = (
        ("*/query", weights.SparseLowRank(rank=128, density=0.03, support="tile_balanced")),
        ("*/up", weights.Monarch(blocks=4)),
        ("*/down", weights.BlockSparse(density=0.25)),
    )
    cfg = decoder.Config(
        vocab_size=512, layers=2, width=512, heads=4, ffn=1376, weights=rules, compute_dtype="bfloat16", remat="full"
    )
    optimizer = optim.adam(1e-3)
    step = make_step(lambda p, b, k: causal_lm.loss(p, b, k, cfg), optimizer)
    mesh = aot.tpu_mesh("v5e")
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda: states.create(decoder.init(jax.random.key(0), cfg), optimizer))
        ids = jax.ShapeDtypeStruct((8, 512), jnp.int32)
        batch = {"inputs": ids, "labels": ids, "loss_weight": jax.ShapeDtypeStruct(ids.shape, jnp.float32)}
    report = aot.compile_for(mesh, lambda s, b: step.run(s, b), state, batch)
    for kernel in (
        "sparse_low_rank_forward",
        "sparse_low_rank_gradients",
        "monarch_forward",
        "monarch_backward",
        "block_sparse_forward",
        "block_sparse_gradients",
    ):
        assert kernel in report.text, kernel


@pytest.mark.parametrize(
    ("operation", "kernels"), [("monarch", 2), ("block_sparse", 3)], ids=["monarch", "block_sparse"]
)
def test_gpu_kernels_lower_to_triton_for_an_h100(operation, kernels):
    case = cases(operation, "square-1024", 8192)[0]
    variant = case.variants[next(n for n in case.variants if "pallas_gpu" in n)]
    text = aot.lower_for_h100(with_gradients(variant), *shapes(variant))
    assert text.count("@__gpu$xla.gpu.triton") == kernels


def test_auto_picks_by_platform_and_shape_and_says_why():
    """On an H100: Monarch's kernel where its middle fits, XLA where it does not and for sparse plus low rank."""

    def chosen(operation, size, **kwargs):
        variant = cases(operation, size, 8192)[0].variants["xla" if operation != "monarch" else "xla, block order"]
        return explain(operation, *shapes(variant)[:-1], **kwargs)

    with aot.h100():
        assert chips.current() is chips.CHIPS["h100"]
        assert chosen("monarch", "square-1024").implementation == "pallas_gpu"
        assert "registers" in chosen("monarch", "square-4096").reason
        assert "would lose" in chosen("sparse_low_rank", "square-1024").reason
        assert chosen("block_sparse", "square-1024", out_size=1024).implementation == "pallas_gpu"
        with pytest.raises(ValueError, match="this is a gpu, not a tpu"):
            chosen("monarch", "square-1024", implementation="pallas_tpu")
    assert chosen("monarch", "square-1024").reason == "there is no kernel for the CPU"
    with pytest.raises(ValueError, match="unknown operation 'monarc'; did you mean 'monarch'"):
        explain("monarc")


def test_the_bench_refuses_to_time_interpreted_kernels_and_checks_what_it_times(tmp_path, capsys):
    out = tmp_path / "bench.json"
    arguments = ["--operation", "monarch", "--size", "square-256", "--tokens", "64", "--rounds", "2"]
    assert bench.main([*arguments, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "interpreted on a CPU" in printed and " x dense" in printed
    rows = json.loads(out.read_text())["rows"]
    refused = {r["variant"] for r in rows if "refused" in r}
    timed = {r["variant"] for r in rows if "seconds" in r}
    assert refused == {f"{k}, {o} order" for k in ("pallas_tpu", "pallas_gpu") for o in ("block", "canonical")}
    assert timed == {"dense", "authors' einsum", "xla, block order", "xla, canonical order"}
    assert all(r["seconds"] > 0 for r in rows if r["variant"] in timed)


def test_the_bench_reports_a_wrong_variant_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(bench, "check", lambda case, name: 0.5)
    assert bench.main(["--operation", "block_sparse", "--size", "square-256", "--tokens", "32", "--rounds", "1"]) == 1
    assert "differs from the reference by 5.0e-01" in capsys.readouterr().out


def test_the_table_covers_shapes_and_the_search_replaces_its_own_entries():
    found = tuning.sizes("sparse_low_rank", chips.CHIPS["v6e"], {"in": 2048, "out": 2048})
    assert found["panel"] == 1024
    assert tuning.sizes("monarch", chips.CHIPS["h200"], {"in": 8, "out": 8}) == tuning.sizes(
        "monarch", chips.CHIPS["h100"], {"in": 8, "out": 8}
    )
    with tuning.use("monarch", {"tokens": 1}):
        assert tuning.sizes("monarch", None, {"in": 8}) == {"tokens": 1}
    old = tune.entry("monarch", "v5e", {"in": 8}, {"tokens": 1}, "compiled")
    new = tune.entry("monarch", "v5e", {"in": 8}, {"tokens": 2}, "timed")
    other = tune.entry("monarch", "v5p", {"in": 8}, {"tokens": 3}, "timed")
    assert json.loads(tune.merge([old, other], [new])) == [other, new]
    with pytest.raises(ValueError, match="run on a TPU or GPU, or give --compile-for"):
        tune.main(["monarch"])
    with pytest.raises(ValueError, match="no kernel of sparse_low_rank for gpu"):
        tune.candidates("sparse_low_rank", "gpu")


def test_batches_are_divided_over_a_mesh_and_gradients_summed(monkeypatch):
    """A kernel under jit on eight devices: each takes its rows; the weights' gradients are those of the whole batch."""
    from jaxpt.sharding import MeshConfig, make_mesh
    from pallas_kernels.monarch import monarch
    from pallas_kernels.monarch.reference import monarch_reference

    rng = np.random.default_rng(0)
    sizes = ((16, 3, 32), (4, 4, 2, 8), (4, 8, 8))
    args = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in sizes]

    def gradients(fn):
        return jax.jit(jax.grad(lambda *t: jnp.sum(jnp.sin(fn(*t))), argnums=(0, 1, 2)))

    expected = gradients(monarch_reference)(*args)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=4))):
        found = gradients(functools.partial(monarch, implementation="pallas_tpu"))(*args)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
