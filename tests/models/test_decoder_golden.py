"""Our logits against Hugging Face's, recorded by scripts/make_golden.py, on the same random weights."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.interop.families import FAMILIES
from jaxpt.interop.names import Arrays, from_state
from jaxpt.models import decoder, generate

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = {
    "llama": "llama",
    "llama_tied": "llama",
    "gpt2": "gpt2",
    "neox_parallel": "gpt_neox",
    "neox_sequential": "gpt_neox",
}
TOLERANCE = 1e-4


@functools.cache
def golden(name: str):
    with np.load(GOLDEN / f"decoder_{name}.npz") as file:
        arrays = dict(file)
    cfg = decoder.Config(**json.loads(str(arrays.pop("config"))))
    state = {k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")}
    params = from_state(Arrays(state), decoder.spec(cfg), FAMILIES[NAMES[name]].pieces(cfg))
    return cfg, params, jnp.asarray(arrays["ids"]), arrays["logits"], arrays["hidden"]


@pytest.mark.parametrize("name", NAMES)
def test_the_mapped_tree_has_exactly_the_shapes_of_the_spec(name):
    cfg, params, *_ = golden(name)
    expected = {path: (x.shape, x.dtype) for path, x in trees.leaves_with_path(specs.abstract(decoder.spec(cfg)))}
    assert {path: (x.shape, x.dtype) for path, x in trees.leaves_with_path(params)} == expected


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_hidden_states(name):
    cfg, params, ids, logits, hidden = golden(name)
    cfg = dataclasses.replace(cfg, attention="xla")
    found = jax.jit(lambda p: decoder.hidden_states(p, ids, cfg, capture=True))(params)
    assert np.abs(np.asarray(found.layers[:-1]) - hidden).max() <= TOLERANCE
    assert np.abs(np.asarray(decoder.logits(params, found.final, cfg)) - logits).max() <= TOLERANCE
    assert np.std(logits) > 0.5  # the tolerance means something


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_unrolled_layers_with_attention_in_blocks(name):
    cfg, params, ids, logits, _ = golden(name)
    unrolled = dataclasses.replace(cfg, unroll=cfg.layers, attention="blocks")
    found = jax.jit(lambda p: decoder.apply(p, ids, unrolled))(params)
    assert np.abs(np.asarray(found) - logits).max() <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_logits_under_remat(name):
    cfg, params, ids, logits, _ = golden(name)
    found = jax.jit(lambda p: decoder.apply(p, ids, dataclasses.replace(cfg, remat="full")))(params)
    assert np.abs(np.asarray(found) - logits).max() <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_decoding_with_a_cache_follows_the_recorded_logits(name):
    cfg, params, ids, logits, _ = golden(name)
    cache = generate.empty_cache(cfg, *ids.shape)
    step = jax.jit(lambda part, cache: generate.extend(params, part, cfg, cache))
    parts = []
    for piece in (ids[:, :12], ids[:, 12:]):
        found, cache = step(piece, cache)
        parts.append(found)
    assert np.abs(np.concatenate(parts, 1) - logits).max() <= TOLERANCE
