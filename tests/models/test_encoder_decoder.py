"""The encoder-decoder against recorded T5s, and what its masks, weight forms, meshes and caches promise."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.interop.families import FAMILIES
from jaxpt.interop.names import Arrays, from_state
from jaxpt.interop.settings import Settings
from jaxpt.layers import block, masks
from jaxpt.models import encoder_decoder, generate_seq2seq
from jaxpt.models.generate import Sampling
from jaxpt.objectives.cross_entropy import cross_entropy
from jaxpt.sharding import MeshConfig, make_mesh, shardings

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ("t5_1_0", "t5_1_1")
SMALL = encoder_decoder.Config(
    vocab_size=31, layers=2, decoder_layers=3, width=16, heads=4, head_dim=6, ffn=24, relative_buckets=8,
    relative_distance=20,
)  # fmt: skip
GREEDY = Sampling(temperature=0)
RNG = np.random.default_rng(0)
INPUTS, TARGETS = jnp.asarray(RNG.integers(1, 31, (8, 10))), jnp.asarray(RNG.integers(1, 31, (8, 7)))
REAL = jnp.asarray(np.arange(10) < np.array([[10], [6], [10], [9], [1], [10], [2], [10]]), jnp.int32)


@functools.cache
def init(cfg=SMALL):
    return jax.jit(lambda key: encoder_decoder.init(key, cfg))(jax.random.key(0))


@jax.jit
def whole(params, inputs, targets, real=None):
    return encoder_decoder.apply(params, inputs, targets, SMALL, segments=real)


@functools.cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    state = Arrays({k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")})
    family = FAMILIES["t5"]
    cfg = family.read(Settings(json.loads(str(arrays["settings"])), name), set(state.names))
    params = from_state(state, family.spec(cfg), family.pieces(cfg))
    return cfg, params, {k: jnp.asarray(v) for k, v in arrays.items() if v.dtype.kind in "if"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attention", ["xla", "blocks"])
def test_states_and_logits_are_t5s(name, attention):
    cfg, params, arrays = golden(name)
    cfg = dataclasses.replace(cfg, attention=attention)

    def run(p):
        states = encoder_decoder.encode(p, arrays["ids"], cfg, segments=arrays["real"]).final
        return states, encoder_decoder.apply(p, arrays["ids"], arrays["targets"], cfg, segments=arrays["real"])

    states, logits = jax.jit(run)(params)
    real = np.asarray(arrays["real"]).astype(bool)
    assert np.abs(np.asarray(states - arrays["encoded"]))[real].max() <= 1e-4
    assert np.abs(np.asarray(logits - arrays["logits"])).max() <= 1e-4
    assert np.std(arrays["logits"]) > 0.15  # the tolerance means something
    assert (cfg.tied_head, cfg.scaled_head) == ((True, True) if name == "t5_1_0" else (False, False))


@pytest.mark.parametrize("name", NAMES)
def test_greedy_decoding_gives_transformers_tokens(name):
    cfg, params, arrays = golden(name)
    extra = {"key": jax.random.key(0), "steps": 12, "sampling": GREEDY, "segments": arrays["real"]}
    found = generate_seq2seq.generate(params, arrays["ids"], cfg, **extra)
    np.testing.assert_array_equal(found, arrays["greedy"])


@pytest.mark.parametrize(
    "cfg", [SMALL, dataclasses.replace(SMALL, kv_heads=2, relative_buckets=0, rotary_fraction=1.0)]
)
def test_a_cache_gives_what_the_whole_sequence_gives(cfg):
    """In pieces of any size; also with rotary positions and grouped heads in the place of T5's."""
    params = init(cfg)
    whole = jax.jit(lambda p: encoder_decoder.apply(p, INPUTS, TARGETS, cfg, segments=REAL))(params)
    decoding = jax.jit(lambda p: generate_seq2seq.start(p, INPUTS, cfg, 9, REAL))(params)
    step = jax.jit(lambda part, decoding: generate_seq2seq.extend(decoding, part, cfg))
    parts = []
    for piece in (TARGETS[:, :3], TARGETS[:, 3:4], TARGETS[:, 4:]):
        found, decoding = step(piece, decoding)
        parts.append(found)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=2e-5)
    assert int(decoding.cache.length) == 7 and decoding.cache.k.shape == (3, 8, 9, cfg.groups, 6)


def test_generation_feeds_back_its_own_tokens_and_stops():
    params = init()
    extra = {"key": jax.random.key(1), "steps": 6, "segments": REAL, "start_id": 3}
    greedy = generate_seq2seq.generate(params, INPUTS, SMALL, sampling=GREEDY, **extra)
    fed = jnp.concatenate([jnp.full((8, 1), 3), greedy[:, :-1]], 1)
    again = whole(params, INPUTS, fed, REAL).argmax(-1)
    np.testing.assert_array_equal(greedy, again)
    stop = int(greedy[0, 2])
    stopped = generate_seq2seq.generate(params, INPUTS, SMALL, sampling=GREEDY, stop_id=stop, **extra)
    for row, full in zip(np.asarray(stopped), np.asarray(greedy), strict=True):
        end = next((i for i, t in enumerate(full) if t == stop), len(full))
        assert row.tolist() == [*full[:end], *[stop] * (len(full) - end)]
    drawn = generate_seq2seq.generate(params, INPUTS, SMALL, **extra)
    alone = generate_seq2seq.generate(params, INPUTS[:1], SMALL, **(extra | {"segments": REAL[:1]}))
    np.testing.assert_array_equal(drawn[:1], alone)  # a row does not depend on its batch


def reached(segments, target_segments):
    """[i, j]: whether the loss at target i depends on input j; and on target j."""
    params = init()
    x, y = params["embedding"][INPUTS[:1]], params["embedding"][TARGETS[:1]]

    def at(x, y, i):
        states = encoder_decoder.encode(params, x, SMALL, segments=segments).final
        extra = {"segments": segments, "target_segments": target_segments}
        hidden = encoder_decoder.decode(params, y, states, SMALL, **extra).final
        weight = (jnp.arange(7) == i).astype(jnp.float32)[None]
        return cross_entropy(hidden, encoder_decoder.head(params), TARGETS[:1], weight)[0].sum()

    gradients = jax.jit(jax.vmap(jax.grad(at, argnums=(0, 1)), in_axes=(None, None, 0)))(x, y, jnp.arange(7))
    return tuple(np.abs(np.asarray(g[:, 0])).max(-1) > 0 for g in gradients)


def test_targets_see_every_input_and_only_the_targets_before():
    of_inputs, of_targets = reached(None, None)
    assert of_inputs.all()
    np.testing.assert_array_equal(of_targets, np.tril(np.ones((7, 7), bool)))


def test_padding_and_other_examples_have_exactly_no_influence():
    of_inputs, _ = reached(jnp.asarray([[1] * 6 + [0] * 4]), None)
    np.testing.assert_array_equal(of_inputs, np.broadcast_to(np.arange(10) < 6, (7, 10)))
    of, to = np.asarray([1, 1, 1, 2, 2, 2, 2, 2, 0, 0]), np.asarray([1, 1, 2, 2, 2, 2, 0])
    of_inputs, of_targets = reached(jnp.asarray(of)[None], jnp.asarray(to)[None])
    np.testing.assert_array_equal(of_inputs, (to[:, None] == of) & (to[:, None] != 0))
    same = (to[:, None] == to) & (to[:, None] != 0) & np.tril(np.ones((7, 7), bool))
    np.testing.assert_array_equal(of_targets, same | (np.eye(7, dtype=bool) & (to == 0)))  # the residual stream


def test_padded_and_packed_examples_are_as_alone():
    params = init()
    run = jax.jit(lambda x, y, s, t: encoder_decoder.apply(params, x, y, SMALL, segments=s, target_segments=t))
    segments = jnp.asarray([[1] * 3 + [2] * 5 + [0] * 2])
    found = run(INPUTS[:1], TARGETS[:1], segments, jnp.asarray([[1] * 2 + [2] * 4 + [0]]))
    for inputs, targets in ((slice(0, 3), slice(0, 2)), (slice(3, 8), slice(2, 6))):
        alone = whole(params, INPUTS[:1, inputs], TARGETS[:1, targets])
        np.testing.assert_allclose(found[:, targets], alone, atol=1e-5)


def test_eight_devices_and_eager_code_give_what_one_compiled_device_gives():
    def loss(p, inputs, targets, real):
        states = encoder_decoder.encode(p, inputs, SMALL, segments=real).final
        hidden = encoder_decoder.decode(p, targets, states, SMALL, segments=real).final
        return cross_entropy(hidden, encoder_decoder.head(p), targets, jnp.ones(targets.shape))[0].mean()

    params, batch = init(), (INPUTS, TARGETS, REAL)
    value, gradients = jax.jit(jax.value_and_grad(loss))(params, *batch)
    np.testing.assert_allclose(loss(params, *batch), value, rtol=1e-5)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(encoder_decoder.spec(SMALL), mesh))
        assert (
            len({str(s.index) for s in placed["decoder"]["blocks"]["cross"]["key"]["kernel"].w.addressable_shards}) == 4
        )
        found, others = jax.jit(jax.value_and_grad(loss))(placed, *batch)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    for (path, one), other in zip(trees.leaves_with_path(gradients), jax.tree.leaves(others), strict=True):
        assert jnp.abs(one).max() > 0, path
        np.testing.assert_allclose(other, one, atol=1e-4 * float(jnp.abs(one).max()), err_msg=path)


def test_generation_on_a_mesh_gives_the_same_tokens():
    extra = {"key": jax.random.key(1), "steps": 4, "sampling": GREEDY, "segments": REAL}
    alone = generate_seq2seq.generate(init(), INPUTS, SMALL, **extra)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(init(), shardings(encoder_decoder.spec(SMALL), mesh))
        np.testing.assert_array_equal(generate_seq2seq.generate(placed, INPUTS, SMALL, **extra), alone)


def test_matrices_take_the_form_of_their_path():
    rules = (("decoder/blocks/cross", weights.LowRank(rank=3)), ("*/mlp/*", weights.BlockDiagonal(blocks=2)))
    cfg = dataclasses.replace(SMALL, weights=rules)
    found = {path: type(w).__name__ for path, w in weights.matrices(encoder_decoder.spec(cfg)).items()}
    assert len(found) == 4 + 3 + 4 + 4 + 3 + 1
    for path, name in found.items():
        low, diagonal = path.startswith("decoder/blocks/cross/"), "/mlp/" in path
        assert name == ("LowRankMatrix" if low else "BlockDiagonalMatrix" if diagonal else "DenseMatrix"), path
    shape = jax.eval_shape(
        lambda p: encoder_decoder.apply(p, INPUTS, TARGETS, cfg), specs.abstract(encoder_decoder.spec(cfg))
    )
    assert shape.shape == (8, 7, 31)


def test_initial_matrices_have_t5s_variances():
    cfg = encoder_decoder.Config(vocab_size=400, layers=4, width=64, heads=4, head_dim=32, ffn=96)
    params = init(cfg)
    blocks = params["decoder"]["blocks"]
    for p, stddev in (
        (blocks["cross"]["query"], (64 * 32) ** -0.5), (blocks["attention"]["key"], 64**-0.5),
        (blocks["cross"]["out"], (4 * 32) ** -0.5), (blocks["mlp"]["gate"], 64**-0.5),
        (blocks["mlp"]["down"], 96**-0.5), (params["head"], 64**-0.5),
    ):  # fmt: skip
        np.testing.assert_allclose(jnp.std(p["kernel"].w), stddev, rtol=0.03)
    np.testing.assert_allclose(jnp.std(params["embedding"]), 1.0, rtol=0.03)
    states = jax.jit(lambda p: encoder_decoder.apply(p, INPUTS, TARGETS, cfg))(params)
    assert 0.5 < float(jnp.std(states)) < 2  # logits of about unit variance
    plain = encoder_decoder.spec(dataclasses.replace(cfg, initializer_stddev=0.1))["encoder"]["blocks"]["mlp"]["up"]
    leaf = plain["kernel"].w
    np.testing.assert_allclose(jnp.std(leaf.init(jax.random.key(0), leaf.shape, jnp.float32)), 0.1, rtol=0.03)


def test_remat_paths_and_capture():
    params = init()
    full = whole(params, INPUTS, TARGETS)
    remat = dataclasses.replace(SMALL, remat="full")
    np.testing.assert_allclose(
        jax.jit(lambda p: encoder_decoder.apply(p, INPUTS, TARGETS, remat))(params), full, atol=1e-5
    )

    @jax.jit
    def along(p):
        states = encoder_decoder.encode(p, INPUTS, SMALL, path=(0, 1), capture=True)
        return states, encoder_decoder.decode(p, TARGETS, states.final, SMALL, path=(0, 1, 2), capture=True)

    states, hidden = along(params)
    assert states.layers.shape == (3, 8, 10, 16)
    assert hidden.layers.shape == (4, 8, 7, 16)
    np.testing.assert_allclose(encoder_decoder.logits(params, hidden.final), full, atol=1e-5)


def test_logical_axes_cover_both_stacks():
    axes = {path: x.axes for path, x in trees.leaves_with_path(encoder_decoder.spec(SMALL))}
    assert axes["decoder/blocks/cross/key/kernel/w"] == ("layers", "kv_heads", "embed")
    assert axes["encoder/relative"] == ("positions", "heads") and axes["head/kernel/w"] == ("vocab", "embed")
    assert not any("bias" in path for path in axes)
    assert (
        specs.count(encoder_decoder.spec(dataclasses.replace(SMALL, tied_head=True)))
        == specs.count(encoder_decoder.spec(SMALL)) - 31 * 16
    )


def test_bad_calls_say_what_was_wrong():
    states = encoder_decoder.encode(init(), INPUTS, SMALL).final
    with pytest.raises(ValueError, match="without the segments of the inputs"):
        encoder_decoder.decode(init(), TARGETS, states, SMALL, target_segments=jnp.ones((8, 7), int))
    layer = jax.tree.map(lambda t: t[0], init()["decoder"]["blocks"])
    context = block.Context(masks.causal(), jnp.zeros((8, 10), int))
    with pytest.raises(ValueError, match="has cross-attention; its context needs a memory"):
        block.block(states, layer, SMALL, context)
