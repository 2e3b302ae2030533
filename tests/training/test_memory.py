"""The analytic memory model: what is passed in is exact, the total is the TPU compiler's to 10 %, all in milliseconds."""

from __future__ import annotations

import time

import jax
import numpy as np
import pytest

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.models import decoder
from jaxpt.optim import adam
from jaxpt.sharding import MeshConfig, aot, make_mesh
from jaxpt.training import memory

MIB = 2**20
SIZES = {  # width, ffn, layers, heads, rank, alpha, density of SLTrain's models
    "60m": (512, 1376, 8, 8, 128, 32.0, 0.03),
    "1b": (2048, 5461, 24, 32, 512, 8.0, 0.03),
    "7b": (4096, 11008, 32, 32, 1024, 8.0, 0.05),
}


def config(size: str, arm: str = "full", **changes) -> decoder.Config:
    width, ffn, layers, heads, rank, alpha, density = SIZES[size]
    form = weights.SparseLowRank(rank, density, alpha, multiple=256)
    given = {"vocab_size": 32000, "layers": layers, "width": width, "heads": heads, "ffn": ffn, "remat": "full"}
    rules = (("blocks", form),) if arm == "sltrain" else ()
    return decoder.Config(
        **given | {"weights": rules, "param_dtype": "bfloat16", "compute_dtype": "bfloat16"} | changes
    )


def estimate(cfg, batch=512, fsdp=1, accumulate=1, **sizes):
    return memory.estimate(
        decoder.spec(cfg), adam(1e-3), cfg, batch, 256, sizes={"fsdp": fsdp} | sizes, accumulate=accumulate
    )


# MiB of what is passed in and of temporaries, as compiled for v5e by `python -m recipes.sltrain compile` (libtpu 0.0.42.1).
COMPILED = [
    ("1b", "full", 512, 32, 1, 241.2, 1650.9),  # v5e:4x8
    ("1b", "sltrain", 512, 32, 1, 120.7, 1582.7),  # v5e:4x8
    ("1b", "full", 512, 4, 8, 1915.9, 4557.8),  # v5e:2x2
    ("60m", "full", 64, 4, 1, 83.2, 173.3),  # v5e:2x2
    ("7b", "full", 512, 4, 8, 9639.9, 16596.0),  # v6e:2x2
    # Not among those that the constants were fitted to:
    ("7b", "sltrain", 512, 4, 8, 4808.7, 9871.4),  # v6e:2x2
    ("1b", "sltrain", 512, 1, 32, 3832.7, 6594.6),  # v5e:1x1
]


@pytest.mark.parametrize(("size", "arm", "batch", "fsdp", "accumulate", "passed", "temporaries"), COMPILED)
def test_the_total_is_the_compiled_one_to_a_tenth(size, arm, batch, fsdp, accumulate, passed, temporaries):
    found = estimate(config(size, arm), batch, fsdp, accumulate)
    assert found.passed_in / MIB == pytest.approx(passed, rel=0.01)
    assert found.total / MIB == pytest.approx(passed + temporaries, rel=0.10)


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "model": 4}], ids=str)
@pytest.mark.parametrize("arm", ["full", "sltrain"])
def test_what_is_passed_in_is_what_the_shardings_say(arm, sizes):
    cfg = config("60m", arm, layers=2)
    spec = decoder.spec(cfg)
    mesh = make_mesh(MeshConfig(**{"data": 1} | sizes))
    state, _ = aot.abstract_state(spec, adam(1e-3), mesh)
    found = estimate(cfg, batch=64, **sizes)
    for name, tree in (("parameters", state.trainable), ("optimizer", state.opt_state), ("fixed", state.fixed)):
        assert getattr(found, name) == pytest.approx(aot.shard_bytes(tree), abs=8)


def test_it_takes_milliseconds():
    cfg = config("1b", "sltrain")
    estimate(cfg, fsdp=32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        estimate(cfg, fsdp=32)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5  # 40 ms alone on a core


def test_less_is_kept_where_more_is_recomputed_and_where_it_is_split_or_run_in_pieces():
    kept = [estimate(config("1b", remat=remat)).saved for remat in ("none", "dots", "full")]
    assert kept == sorted(kept, reverse=True) and kept[0] > 4 * kept[-1]
    assert estimate(config("1b"), fsdp=4, model=2).total < estimate(config("1b"), fsdp=4).total
    assert estimate(config("1b"), accumulate=8).saved == estimate(config("1b")).saved / 8
    assert estimate(config("1b", "sltrain")).total < estimate(config("1b")).total
    moments = estimate(config("1b")).optimizer / estimate(config("1b", param_dtype="float32")).optimizer
    assert moments == pytest.approx(0.5, rel=1e-6)


def test_the_papers_formula_stands_beside_it():
    """SLTrain at 1B: 4.16 GB of weights, moments and indices; ours is less, for its indices take 4 bytes and not 8."""
    cfg = config("1b", "sltrain", weights=(("blocks", weights.SparseLowRank(512, 0.03, 8.0)),))
    spec = decoder.spec(cfg)
    both = memory.side_by_side(spec, estimate(cfg))
    assert both["paper"] / 1e9 == pytest.approx(4.16, abs=0.01)
    indices = sum(w.support.size for w in weights.matrices(spec).values() if hasattr(w, "support"))
    assert both["paper"] - both["estimate"] == pytest.approx(4 * indices, abs=64)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown remat policy 'ful'; did you mean 'full'"):
        estimate(config("60m", remat="ful"))
    with pytest.raises(ValueError, match="a batch of 512 sequences cannot be shared evenly by 96"):
        estimate(config("60m"), fsdp=32, accumulate=3)


def test_moments_of_a_shape_that_no_parameter_has_are_whole_on_every_chip():
    import optax

    cfg = config("60m", layers=1)
    step = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda n: 1.0))
    spec = decoder.spec(cfg)
    one = memory.estimate(spec, step, cfg, 64, 256, sizes={"fsdp": 8})
    assert one.optimizer == pytest.approx(2 * one.parameters + 8, abs=1)
    assert np.isclose(specs.nbytes(jax.eval_shape(step.init, specs.abstract(spec))), 2 * specs.nbytes(spec) + 8)
