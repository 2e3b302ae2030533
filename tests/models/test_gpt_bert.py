"""GPT-BERT computes what its release does, sees what its mask allows and nothing else, and starts as a plain network."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.layers import gated_block, masks
from jaxpt.layers.disentangled import Disentangled
from jaxpt.models import decoder, flops, gpt_bert

CFG = gpt_bert.Config(vocab_size=19, layers=2, width=16, heads=2, ffn=24)
GOLDEN = Path(__file__).parents[1] / "golden" / "gpt_bert.npz"
DOCUMENTS = np.asarray([[1, 1, 1, 2, 2, 2, 2, 0]])


@functools.cache
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def released(cfg, file):
    """Our parameters with the values of the release's."""
    p = {name[2:]: jnp.asarray(x) for name, x in file.items() if name.startswith("p:")}

    def each(form):
        return jnp.stack([p[form.format(i)] for i in range(cfg.layers)])

    def linear(form, part, bias=True):
        out = {"kernel": weights.DenseMatrix(jnp.split(each(form + ".weight"), part[1], 1)[part[0]])}
        return out | ({"bias": jnp.split(each(form + ".bias"), part[1], 1)[part[0]]} if bias else {})

    qk, vg = ("transformer.attention_layers.{}.in_proj_" + name for name in ("qk", "vg"))
    ffn = "transformer.mlp_layers.{}.mlp."
    return {
        "embedding": p["embedding.word_embedding.weight"],
        "relative": {
            "table": p["embedding.relative_embedding"],
            "norm": {"scale": p["embedding.relative_layer_norm.weight"], "bias": p["embedding.relative_layer_norm.bias"]},
        },
        "blocks": {
            "attention": {
                "query": linear(qk, (0, 2)), "key": linear(qk, (1, 2)),
                "value": linear(vg, (0, 2)), "gate": linear(vg, (1, 2)),
                "out": linear("transformer.attention_layers.{}.out_proj", (0, 1)),
            },
            "mlp": {
                "up": linear(ffn + "1", (0, 2), False), "gate": linear(ffn + "1", (1, 2), False),
                "down": linear(ffn + "4", (0, 1), False),
            },
        },
        "aggregate": {f"{s:03d}": p[f"transformer.dwa_modules.alphas.{s}"] for s in range(cfg.sublayers)},
        "head": {
            "dense": {
                "kernel": weights.DenseMatrix(p["classifier.nonlinearity.1.weight"]),
                "bias": p["classifier.nonlinearity.1.bias"],
            },
            "bias": p["classifier.nonlinearity.5.bias"],
        },
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["causal", "full", "documents"])
def test_logits_are_those_of_the_release(kind):
    file = golden()
    # rows longer than its table have buckets up to 512 in the release, whatever the table's size
    cfg = dataclasses.replace(CFG, layers=3, relative=Disentangled(buckets=8, max_position=512, rows=15))
    params = released(cfg, file)
    assert jax.tree.structure(params) == jax.tree.structure(gpt_bert.init(jax.random.key(0), cfg))
    documents = jnp.broadcast_to(jnp.asarray(file["documents"]), file["ids"].shape)
    mask = {"causal": masks.causal(), "full": masks.full(), "documents": masks.full(documents)}[kind]
    found = jax.jit(lambda p, ids: gpt_bert.apply(p, ids, cfg, mask=mask))(params, jnp.asarray(file["ids"]))
    np.testing.assert_allclose(found, file[f"logits_{kind}"], atol=2e-4, rtol=1e-4)


def strong(cfg=CFG):
    """Parameters whose every path matters: sums of all streams, biases that are not zero."""
    tree = gpt_bert.init(jax.random.key(1), cfg)
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return form.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


@pytest.mark.parametrize("kind", ["causal", "full", "documents", "causal documents"])
def test_a_state_depends_on_exactly_what_it_may_see(kind):
    """d logits_t / d embedding_s is 0, not nearly 0, where t may not see s, and something elsewhere."""
    params, segments = strong(), jnp.asarray(DOCUMENTS)
    length = segments.shape[1]
    mask = {
        "causal": masks.causal(), "full": masks.full(), "documents": masks.full(segments),
        "causal documents": masks.causal(segments),
    }[kind]  # fmt: skip
    x = jax.random.normal(jax.random.key(3), (1, length, CFG.width))
    logits = lambda x: gpt_bert.apply(params, x, CFG, mask=mask)[0].sum(-1)  # noqa: E731
    found = np.abs(jax.jit(jax.jacrev(logits))(x)[:, 0]).max(-1)
    order = np.tril(np.ones((length, length), bool)) if "causal" in kind else np.ones((length, length), bool)
    same = (DOCUMENTS.T == DOCUMENTS) & (DOCUMENTS.T > 0) if "documents" in kind else np.ones((length, length), bool)
    allowed = (order & same) | np.eye(length, dtype=bool)
    assert np.array_equal(found != 0, allowed)


def test_it_starts_as_the_network_without_sums():
    """Bit for bit: alphas that are one-hot on the newest stream add nothing, round nothing.

    Operation by operation: compiled whole, the two programs are fused, and so rounded, differently.
    """
    params, ids = gpt_bert.init(jax.random.key(0), CFG), jnp.arange(12).reshape(1, 12) % CFG.vocab_size
    states = gpt_bert.hidden_states(params, ids, CFG, capture=True)

    def plain(params):
        x = gpt_bert.norms.standardise(params["embedding"][ids], CFG.norm_eps)
        score = gpt_bert.relative.score(params["relative"], CFG.relative, CFG.norm_eps)
        positions = jnp.arange(12)[None]
        context = gpt_bert.Context(masks.causal(), positions, score, scale=gpt_bert.relative.scale(CFG.per_head))
        for i in range(CFG.layers):
            p = jax.tree.map(lambda t: t[i], params["blocks"])  # noqa: B023
            x = x + gated_block.attention(x, p["attention"], CFG, context)
            x = x + gated_block.mlp(x, p["mlp"], CFG)
        return x

    assert np.array_equal(states.final, plain(params))
    assert states.layers.shape == (CFG.layers + 1, 1, 12, CFG.width)
    assert not np.array_equal(gpt_bert.hidden_states(strong(), ids, CFG).final, plain(strong()))


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [
        ({"vocab_size": 8192, "layers": 12, "width": 384, "heads": 6, "ffn": 1280}, 30e6),
        ({"vocab_size": 16384, "layers": 12, "width": 768, "heads": 12, "ffn": 2560}, 119e6),
    ],
    ids=["10M words", "100M words"],
)
def test_the_submissions_have_their_number_of_parameters(sizes, parameters):
    cfg = gpt_bert.Config(**sizes)
    d, f, v, layers = cfg.width, cfg.ffn, cfg.vocab_size, cfg.layers
    by_hand = v * d + 63 * d + 2 * d + layers * (5 * d * d + 5 * d + 3 * d * f) + d * d + d + v
    by_hand += sum(s + 2 for s in range(2 * layers))
    assert specs.count(gpt_bert.spec(cfg)) == by_hand
    assert by_hand == pytest.approx(parameters, rel=0.01)


def test_initial_values_are_cut_and_shrink_with_depth():
    cfg = dataclasses.replace(CFG, layers=8, width=64, ffn=128)
    params, stddev = gpt_bert.init(jax.random.key(0), cfg), np.sqrt(2 / (5 * 64))
    for name in ("up", "gate", "down"):
        w = np.asarray(params["blocks"]["mlp"][name]["kernel"].w)
        ratio = w.std((1, 2)) / w[0].std()
        np.testing.assert_allclose(ratio, 1 / np.sqrt(1 + np.arange(8)), rtol=0.05)
        assert np.abs(w[0]).max() <= 2.0001 * stddev * np.sqrt(0.5)
    query = np.asarray(params["blocks"]["attention"]["query"]["kernel"].w)
    assert 1.9 * stddev < np.abs(query).max() <= 2.0001 * stddev
    assert np.abs(params["relative"]["table"]).max() <= 2.0001 * stddev


def test_matrices_take_forms_by_their_paths():
    cfg = dataclasses.replace(CFG, weights=(("blocks/mlp", weights.LowRank(3)), ("head/dense", weights.LowRank(2))))
    params = gpt_bert.init(jax.random.key(0), cfg)
    for matrix in (params["blocks"]["mlp"]["up"]["kernel"], params["head"]["dense"]["kernel"]):
        assert isinstance(matrix, weights.LowRankMatrix)
    assert isinstance(params["blocks"]["attention"]["query"]["kernel"], weights.DenseMatrix)
    ids = jnp.zeros((1, 4), jnp.int32)
    assert np.isfinite(gpt_bert.apply(params, ids, cfg)).all()
    less = flops.of(params, cfg, 2, 8).nominal
    assert less < flops.of(gpt_bert.spec(CFG), CFG, 2, 8).nominal


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputation_changes_no_gradient(remat):
    params, ids = strong(), jnp.arange(8).reshape(1, 8)

    def gradient(cfg):
        return jax.jit(jax.grad(lambda p: jnp.square(gpt_bert.apply(p, ids, cfg)).mean()))(params)

    found = gradient(dataclasses.replace(CFG, remat=remat))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gradient(CFG)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_it_does_not_have_is_refused():
    for name, value in (("rotary_fraction", 1.0), ("kv_heads", 1), ("norm", "rms"), ("post_norm", True)):
        with pytest.raises(ValueError, match=f"GPT-BERT has {name}="):
            dataclasses.replace(CFG, **{name: value})
    with pytest.raises(ValueError, match="did you mean 'full'"):
        dataclasses.replace(CFG, remat="ful")
    with pytest.raises(TypeError, match="no count of operations"):
        flops.of({}, object(), 1, 1)


def test_operations_are_the_matrices_and_the_attention():
    batch, length, d, f = 2, 8, CFG.width, CFG.ffn
    tokens = batch * length
    by_hand = 6 * tokens * (CFG.layers * (5 * d * d + 3 * d * f) + d * d + d * CFG.vocab_size)
    by_hand += 6 * CFG.layers * batch * length**2 * d * 1 + 6 * tokens * 2 * CFG.layers * 15 * d
    assert flops.of(gpt_bert.spec(CFG), CFG, batch, length).nominal == by_hand
    plain = decoder.Config(vocab_size=19, layers=2)
    assert flops.of(decoder.spec(plain), plain, 2, 8) == flops.decoder_flops(decoder.spec(plain), plain, 2, 8)
