"""Where the optimizer's arrays live: split wherever a dimension is the parameter's own, replicated else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxpt import optim, weights
from jaxpt.core import trees
from jaxpt.sharding import MeshConfig, make_mesh
from jaxpt.training.state import like_parameters, state_shardings

SPEC = {
    "blocks": {
        "up": {"kernel": weights.Dense().spec(24, 16, ("mlp", "embed"), (3,))},
        "down": {"kernel": weights.Dense().spec(16, 24, ("embed", "mlp"), (3,))},
    }
}


def of(cfg):
    """Path below the optimizer's own state -> partition spec, on fsdp 2 x model 4."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, model=4))
    found = state_shardings(SPEC, cfg.make(10), mesh).opt_state[0]
    return {path: sharding.spec for path, sharding in trees.leaves_with_path(found)}


def test_projected_moments_and_projectors_are_split_along_what_they_share_with_the_matrix():
    found = of(optim.GaloreConfig(rank=4))
    up, down = "blocks/up/kernel/w", "blocks/down/kernel/w"
    assert found[f"mu/{up}"] == found[f"nu/{up}"] == PartitionSpec(None, ("model",), None)  # [L, out, r]
    assert found[f"projector/{up}"] == PartitionSpec(None, None, ("fsdp",))  # [L, r, in]
    assert found[f"mu/{down}"] == PartitionSpec(None, None, ("model",))  # [L, r, in]
    assert found[f"projector/{down}"] == PartitionSpec(None, ("fsdp",), None)  # [L, out, r]
    assert found["count"] == PartitionSpec()


def test_codes_are_split_like_the_matrix_and_scales_along_its_rows():
    found = of(optim.Adam8bitConfig())
    assert found["nu/blocks/up/kernel/w/codes"] == PartitionSpec(None, ("model",), ("fsdp",))
    assert found["nu/blocks/up/kernel/w/scales"] == PartitionSpec(None, ("model",), None)


def test_an_array_of_no_parameter_has_no_axes_and_one_of_another_rank_those_it_can():
    like = {
        "mu": {"blocks": {"up": {"kernel": {"w": jnp.zeros((3, 24))}}}},
        "ups": {"kernel": {"w": jnp.zeros((3, 24, 16))}},
        "other": {"blocks": {"up": {"kernel": {"w": jnp.zeros((24, 24, 16, 2))}}}},
    }
    found = like_parameters(jax.eval_shape(lambda: like), SPEC)
    assert found["mu/blocks/up/kernel/w"] == ("layers", "mlp")
    assert found["ups/kernel/w"] == (None, None, None)
    assert found["other/blocks/up/kernel/w"] == (None, "mlp", "embed", None)
