"""The scoring core: what a naive loop over unpadded sequences finds, in few shapes, whatever shares the batch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxpt.data.vocabularies import ByteVocabulary, HFVocabulary
from jaxpt.evaluate import scoring
from jaxpt.evaluate.scoring import Request, Row, Scorer, decoder_tokens, encode_pair, from_hidden, on_texts
from jaxpt.models import decoder
from jaxpt.objectives.cross_entropy import cross_entropy
from jaxpt.sharding import MeshConfig, make_mesh
from jaxpt.weights import DenseMatrix

CFG = decoder.Config(vocab_size=61, width=16, heads=2, ffn=24, layers=2, initializer_stddev=0.4)
TOKENS = decoder_tokens(CFG)


@functools.cache
def params():
    return decoder.init(jax.random.key(0), CFG)


def requests(n, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, longest, (n, 2))
    return [Request(rng.integers(0, 61, a).tolist(), rng.integers(0, 61, b).tolist()) for a, b in sizes]


def naive(request, max_length):
    ids = (request.context + request.continuation)[-(max_length + 1) :]
    log_p = jax.nn.log_softmax(decoder.apply(params(), jnp.array([ids[:-1]]), CFG)[0])
    n = len(request.continuation)
    rows = np.asarray(log_p, np.float64)[len(log_p) - n :]
    return rows[np.arange(n), request.continuation].sum(), (rows.argmax(-1) == request.continuation).all()


def test_log_likelihoods_are_those_of_a_loop_without_padding():
    given = [*requests(12), Request([5], [7]), Request([1] * 90, [3, 4])]  # the last loses the left of its context
    found = Scorer(TOKENS, 64)(params(), given)
    expected = [naive(r, 64) for r in given]
    np.testing.assert_allclose(found.log_likelihood, [x for x, _ in expected], rtol=1e-5)
    assert found.greedy.tolist() == [bool(g) for _, g in expected]
    assert found.tokens.tolist() == [len(r.continuation) for r in given]
    assert found.log_likelihood.dtype == np.float64


def test_the_greedy_continuation_is_greedy_and_no_other_is():
    ids = [3]
    for _ in range(5):
        ids.append(int(decoder.apply(params(), jnp.array([ids]), CFG)[0, -1].argmax()))
    wrong = [*ids[:4], (ids[4] + 1) % 61, ids[5]]
    found = Scorer(TOKENS, 64)(params(), [Request(ids[:1], ids[1:]), Request(ids[:1], wrong[1:])])
    assert found.greedy.tolist() == [True, False]


def test_what_shares_the_batch_does_not_matter():
    given, scorer = requests(40), Scorer(TOKENS, 80)
    together = scorer(params(), given).log_likelihood
    alone = np.concatenate([scorer(params(), [r]).log_likelihood for r in given[:8]])
    np.testing.assert_allclose(together[:8], alone, rtol=1e-5)
    np.testing.assert_allclose(scorer(params(), given[::-1]).log_likelihood[::-1], together, rtol=1e-5)


def test_few_shapes_compile_and_a_second_call_compiles_nothing():
    shapes = []

    def tokens(p, batch):
        shapes.append(batch["inputs"].shape)
        return TOKENS(p, batch)

    scorer = Scorer(tokens, 80, batch_tokens=512)
    scorer(params(), requests(300))
    assert len(shapes) == len(set(shapes)) <= len(scorer.lengths)
    before = len(shapes)
    scorer(params(), requests(300, seed=1))
    scorer(jax.tree.map(jnp.zeros_like, params()), requests(300, seed=2))
    assert len(shapes) <= before + 1  # at most a length that the first set did not have
    assert all(rows * length <= 512 or rows == 1 for rows, length in shapes)


def test_a_mesh_scores_the_same():
    given = requests(20)
    found = Scorer(TOKENS, 80, mesh=make_mesh(MeshConfig(data=4, model=2)))(params(), given)
    np.testing.assert_allclose(found.log_likelihood, Scorer(TOKENS, 80)(params(), given).log_likelihood, rtol=1e-5)


def test_chunks_of_positions_change_nothing_and_bound_the_logits(monkeypatch):
    hidden = jax.random.normal(jax.random.key(1), (3, 24, 16))
    head = DenseMatrix(jax.random.normal(jax.random.key(2), (61, 16)))
    labels = jax.random.randint(jax.random.key(3), (3, 24), 0, 61)
    whole = from_hidden(hidden, head, labels)
    sums, correct = cross_entropy(hidden, head, labels, jnp.ones((3, 24)))
    np.testing.assert_allclose(whole.nats.sum(-1), sums, rtol=1e-5)
    np.testing.assert_array_equal(whole.greedy.sum(-1), correct)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 3 * 61 * 4)
    jaxpr = jax.make_jaxpr(from_hidden)(hidden, head, labels)
    sizes = [np.prod(v.aval.shape) for e in _equations(jaxpr.jaxpr) for v in e.outvars if v.aval.shape]
    assert max(sizes) <= max(3 * 61 * 4, hidden.size) < 3 * 24 * 61
    np.testing.assert_allclose(from_hidden(hidden, head, labels).nats, whole.nats, rtol=1e-5)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                if hasattr(inner, "jaxpr"):
                    yield from _equations(inner.jaxpr if hasattr(inner.jaxpr, "eqns") else inner.jaxpr.jaxpr)


def test_weights_choose_what_counts():
    rng = np.random.default_rng(0)
    row = Row(rng.integers(0, 61, 9), rng.integers(0, 61, 9), np.array([0, 1, 0, 0, 1, 0, 0, 0, 0.5], np.float32))
    scorer = Scorer(TOKENS, 16)
    found, each = scorer.rows(params(), [row]), scorer.tokens(params(), [row])[0]
    assert found.log_likelihood[0] == pytest.approx(-(each.nats[1] + each.nats[4] + 0.5 * each.nats[8]))
    assert found.tokens.tolist() == [3]


def test_float32_log_softmax_of_half_precision_logits():
    logits = scoring.from_logits(lambda p, b: p[b["inputs"]].astype(jnp.bfloat16))
    table = jax.random.normal(jax.random.key(0), (61, 61)) * 5
    given = [Request([4], [8])]
    exact = jax.nn.log_softmax(table[4].astype(jnp.bfloat16).astype(jnp.float32))[8]
    found = Scorer(logits, 16)(table, given)
    assert found.log_likelihood[0] == pytest.approx(float(exact), rel=1e-6)


def test_pairs_of_texts_are_cut_where_the_context_ends():
    bytes_ = ByteVocabulary()
    assert encode_pair(bytes_, "ab ", "cd") == Request([2, 100, 101], [35, 102, 103])  # the space moves
    assert encode_pair(bytes_, "", "é") == Request([2], bytes_.encode("é"))
    merges = tokenizers.Tokenizer(tokenizers.models.BPE({"<eos>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    merging = HFVocabulary(merges)
    assert encode_pair(merging, "aa", "b") == Request([0, 1], [3])  # the token across the border counts
    assert encode_pair(merging, "ab", "b") == Request([0, 3], [2])
    assert encode_pair(merging, "a", "b") == Request([0], [3])


def test_what_cannot_be_scored_is_refused():
    scorer = Scorer(TOKENS, 16)
    with pytest.raises(ValueError, match="a continuation of 17 tokens does not fit in max_length=16"):
        scorer(params(), [Request([1], [2] * 17)])
    with pytest.raises(ValueError, match="a request needs a context"):
        scorer(params(), [Request([], [2])])
    with pytest.raises(ValueError, match="a row of 20 inputs is longer than max_length=16"):
        scorer.tokens(params(), [Row(*np.ones((3, 20), np.int32))])
    with pytest.raises(ValueError, match="nothing to score in '' after 'ab'"):
        on_texts(functools.partial(scorer, params()), ByteVocabulary())([("ab", "")])
    with pytest.raises(ValueError, match="must be positive"):
        Scorer(TOKENS, 0)
    assert scorer(params(), []).log_likelihood.shape == (0,)
