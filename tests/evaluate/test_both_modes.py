"""Both readings of one network: the causal one is its loss, the hidden one reads a position earlier; and their sum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.evaluate.both_modes import both_modes
from jaxpt.layers import masks
from jaxpt.models import gpt_bert

CFG = gpt_bert.Config(vocab_size=260, layers=1, width=16, heads=2, ffn=16)
MASK, BYTES = 259, ByteVocabulary()
TEXTS = [("", "ab cd"), ("one", " two")]


def test_each_mode_is_a_loop_by_hand():
    params = gpt_bert.init(jax.random.key(0), CFG)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), params)
    scorers = both_modes(params, CFG, BYTES, mask_id=MASK, max_length=32)
    found = {mode: score(TEXTS) for mode, score in scorers.items()}

    def log_p(ids, mask):
        padded = np.zeros(16, np.int32)  # one shape for all
        padded[: len(ids)] = ids
        segments = jnp.asarray(np.arange(16) < len(ids), jnp.int32)[None]
        return jax.nn.log_softmax(apply(params, padded[None], mask(segments))[0])

    apply = jax.jit(lambda params, ids, mask: gpt_bert.apply(params, ids, CFG, mask=mask))
    for row, (context, text) in enumerate(TEXTS):
        ids = np.array([BYTES.bos_id, *BYTES.encode(context), *BYTES.encode(text), BYTES.eos_id])
        scored = range(1 + len(context), len(ids) - 1)
        causal = sum(float(log_p(ids, masks.causal)[i - 1, ids[i]]) for i in scored)
        pseudo = 0.0
        for i in scored:
            hidden = ids.copy()
            hidden[i] = MASK
            pseudo += float(log_p(hidden, masks.full)[i - 1, ids[i]])
        np.testing.assert_allclose(found["causal"].log_likelihood[row], causal, rtol=1e-5)
        np.testing.assert_allclose(found["pseudo"].log_likelihood[row], pseudo, rtol=1e-5)
        np.testing.assert_allclose(found["fused"].log_likelihood[row], causal + pseudo, rtol=1e-5)
    assert found["fused"].tokens.tolist() == [5, 4]
