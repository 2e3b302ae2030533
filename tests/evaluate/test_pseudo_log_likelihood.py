"""Pseudo-log-likelihood: a loop by hand, what is masked in each mode, the region in which two sentences differ."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.evaluate.minimal_pairs import Pair, pair_accuracy
from jaxpt.evaluate.pseudo_log_likelihood import pseudo_scorer, region_accuracy
from jaxpt.layers import masks
from jaxpt.models import decoder

CFG = decoder.Config(vocab_size=260, width=16, heads=2, ffn=16, layers=1, initializer_stddev=0.4)
MASK, BYTES = 259, ByteVocabulary()


def masked_logits(params, ids, segments):
    """A bidirectional encoder."""
    return decoder.apply(params, ids, CFG, mask=masks.full(segments))


compiled = jax.jit(masked_logits)


@functools.cache
def params():
    return decoder.init(jax.random.key(0), CFG)


def by_hand(text, hidden_at):
    """Sum over tokens of log p with the positions `hidden_at(i)` masked."""
    ids = np.array([2, *BYTES.encode(text), 1])
    total = 0.0
    for i in range(1, len(ids) - 1):
        inputs = ids.copy()
        inputs[hidden_at(i)] = MASK
        logits = compiled(params(), jnp.array(inputs)[None], jnp.ones((1, len(ids)), jnp.int32))
        total += float(jax.nn.log_softmax(logits[0, i])[ids[i]])
    return total


def make(mask, **kwargs):
    return pseudo_scorer(masked_logits, params(), BYTES, mask_id=MASK, max_length=32, mask=mask, **kwargs)


def test_one_token_at_a_time_is_a_loop():
    found = make("token")([("", "ab cd"), ("", "x")])
    expected = [by_hand(t, lambda i: [i]) for t in ("ab cd", "x")]
    np.testing.assert_allclose(found.log_likelihood, expected, rtol=1e-5)
    assert found.tokens.tolist() == [5, 1]


def test_whole_words_hide_what_follows_in_the_word():
    ends = {1: 3, 2: 3, 3: 6, 4: 6, 5: 6}  # "ab", " cd" after BOS
    expected = by_hand("ab cd", lambda i: list(range(i, ends[i])))
    assert make("word")([("", "ab cd")]).log_likelihood[0] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(by_hand("ab cd", lambda i: [i]), rel=1e-4)


def test_a_context_is_seen_but_not_scored():
    found = make("token")([("ab", " c"), ("", "ab c")])
    ids = np.array([2, *BYTES.encode("ab c"), 1])
    total = 0.0
    for i in (3, 4):
        inputs = np.where(np.arange(6) == i, MASK, ids)
        logits = compiled(params(), jnp.array(inputs)[None], jnp.ones((1, 6), jnp.int32))
        total += float(jax.nn.log_softmax(logits[0, i])[ids[i]])
    assert found.log_likelihood[0] == pytest.approx(total, rel=1e-5) and found.tokens.tolist() == [2, 4]


def test_a_frame_of_the_encoders_own_and_no_leak_from_padding():
    framed = make("token", frame=([7, 8], []))
    alone, beside = framed([("", "abc")]), framed([("", "abc"), ("", "abcdefghijklmnop")])
    assert alone.log_likelihood[0] == pytest.approx(beside.log_likelihood[0], rel=1e-5)
    assert alone.log_likelihood[0] != pytest.approx(make("token")([("", "abc")]).log_likelihood[0], rel=1e-4)


def test_minimal_pairs_take_it_as_any_scorer():
    pairs = [Pair("the cat sits", "the cat sit", "x"), Pair("a b", "b a", "y")]
    found = pair_accuracy(make("word"), pairs)
    assert found["accuracy"] == 1 - pair_accuracy(make("word"), [p.swapped() for p in pairs])["accuracy"]


def test_the_region_that_differs_is_masked_at_once():
    pairs = [Pair("the key is old", "the key are old", "x"), Pair("a b", "c d", "y")]
    found = region_accuracy(masked_logits, params(), BYTES, pairs, mask_id=MASK, max_length=32)
    margins = []
    for good, bad, first in ((" is", " are", 8), ("a b", "c d", 1)):
        sums = []
        for word, text in zip((good, bad), pairs[first == 1].__dict__.values(), strict=False):
            ids = np.array([2, *BYTES.encode(text), 1])
            where = np.arange(first, first + len(word))
            logits = compiled(params(), jnp.array(np.where(np.isin(np.arange(len(ids)), where), MASK, ids))[None],
                                   jnp.ones((1, len(ids)), jnp.int32))  # fmt: skip
            log_p = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
            sums.append(log_p[where, ids[where]].sum())
        margins.append(sums[0] - sums[1])
    np.testing.assert_allclose(found.per_item["margin"], margins, rtol=1e-4, atol=1e-5)
    assert found["accuracy"] == np.mean([m > 0 for m in margins])
    swapped = region_accuracy(masked_logits, params(), BYTES, [p.swapped() for p in pairs], mask_id=MASK, max_length=32)
    assert swapped["accuracy"] == 1 - found["accuracy"]


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="did you mean 'word'"):
        make("words")
    with pytest.raises(ValueError, match="two different sentences without contexts"):
        region_accuracy(masked_logits, params(), BYTES, [Pair("a", "a", "x")], mask_id=MASK, max_length=32)
    with pytest.raises(ValueError, match="longer than max_length=32"):
        make("word")([("", "x" * 40)])
