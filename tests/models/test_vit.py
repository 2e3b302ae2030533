"""The vision transformer: the paper's counts, and what it must be able to tell apart."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.models import vit
from jaxpt.objectives import image_classification
from jaxpt.weights import Monarch

SMALL = vit.Config(
    image_size=8, patch_size=4, channels=2, classes=5, width=16, heads=2, layers=2, ffn=24, initializer_stddev=0.3
)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 2)), jnp.float32)


def test_parameters_of_vit_b_dense_and_all_monarch():
    assert specs.count(vit.spec(vit.BASE_16)) == 86_567_656
    monarch = dataclasses.replace(vit.BASE_16, weights=(("blocks", Monarch(4)),))
    assert specs.count(vit.spec(monarch)) / 1e6 == pytest.approx(33.48, abs=0.005)


def test_patches_are_cut_row_by_row():
    rows, columns = np.indices((8, 8))
    images = jnp.asarray(np.stack([rows, columns], -1)[None], jnp.float32)
    found = np.asarray(vit.cut(images, SMALL)).reshape(4, 4, 4, 2)
    for number, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        np.testing.assert_array_equal(found[number], images[0, row : row + 4, column : column + 4])


@pytest.mark.parametrize("pool", vit.POOLS)
def test_logits_use_every_patch_of_their_image_and_no_other_image(pool):
    cfg = dataclasses.replace(SMALL, pool=pool)
    params = vit.init(jax.random.key(0), cfg)
    jacobian = jax.jit(jax.jacrev(lambda images: vit.apply(params, images, cfg)))(IMAGES)  # [B, V, B, ...]
    assert jacobian.shape == (3, 5, *IMAGES.shape)
    assert jnp.isfinite(jacobian).all()
    size = np.abs(np.asarray(jacobian)).max((1, 5))  # over classes and channels: [B, B, height, width]
    same = np.eye(3, dtype=bool)
    assert not size[~same].any()
    assert (size[same] > 0).all()


@pytest.mark.parametrize("pool", vit.POOLS)
def test_every_parameter_has_a_gradient(pool):
    cfg = dataclasses.replace(SMALL, pool=pool)
    params = vit.init(jax.random.key(0), cfg)
    batch = {"images": IMAGES, "labels": jnp.asarray([0, 4, 2])}

    def loss(params):
        found = image_classification.loss(params, batch, None, cfg)
        return found.sums.sum(), found

    (value, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    logits = vit.apply(params, IMAGES, cfg)
    expected = -jax.nn.log_softmax(logits)[jnp.arange(3), batch["labels"]]
    np.testing.assert_allclose(found.sums, expected, rtol=1e-5)
    assert found.metrics["accuracy"] == (float((logits.argmax(-1) == batch["labels"]).sum()), 3.0)
    for path, leaf in trees.leaves_with_path(gradient):
        if path != "blocks/attention/key/bias":  # adds the same to all scores of a query
            assert (jnp.abs(leaf).max() > 1e-6 * value).all(), path


def test_the_order_of_the_patches_matters():
    cfg = dataclasses.replace(SMALL, pool="mean")
    params = vit.init(jax.random.key(0), cfg)
    swapped = jnp.roll(IMAGES, 4, axis=2)
    apart = jnp.abs(vit.apply(params, IMAGES, cfg) - vit.apply(params, swapped, cfg)).max()
    assert apart > 1e-3
    blind = params | {"positions": jnp.zeros_like(params["positions"])}
    np.testing.assert_allclose(vit.apply(blind, IMAGES, cfg), vit.apply(blind, swapped, cfg), atol=1e-5)


def test_wrong_sizes_and_names_are_refused():
    params = vit.init(jax.random.key(0), SMALL)
    with pytest.raises(ValueError, match=r"images are \(8, 6, 2\), the model's are \(8, 8, 2\)"):
        vit.apply(params, IMAGES[:, :, :6], SMALL)
    with pytest.raises(ValueError, match="image_size=8 is not a positive multiple of patch_size=3"):
        vit.spec(dataclasses.replace(SMALL, patch_size=3))
    with pytest.raises(ValueError, match="did you mean 'token'"):
        vit.spec(dataclasses.replace(SMALL, pool="tokens"))
