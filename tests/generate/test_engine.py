"""Completions against the plain decoding loop, whatever the batch; scores against the full forward pass."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.generate import Engine, Request, steps
from jaxpt.generate.__main__ import main
from jaxpt.generate.engine import bucket
from jaxpt.interop import hugging_face
from jaxpt.interop.chat import ChatML
from jaxpt.interop.text_model import TextModel
from jaxpt.models import decoder, generate
from jaxpt.models.generate import Sampling

SIZES = {"vocab_size": 264, "layers": 2, "width": 16, "heads": 4, "ffn": 24, "initializer_stddev": 0.4}
CONFIGS = {
    "llama": decoder.Config(**SIZES, kv_heads=2),
    "gpt2": decoder.Config(
        **SIZES, norm="layer", activation="gelu_tanh", bias=True, rotary_fraction=0.0, learned_positions=40, tied_head=True
    ),
}  # fmt: skip
PROMPTS = ["a", "another, of more than sixteen bytes", "the third"]
WARM = Sampling(temperature=1.0, top_p=0.95)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """These programs run a few times, on tiny arrays."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def engine(name="llama", stop_ids=(1,)):
    cfg = CONFIGS[name]
    params = jax.jit(lambda key: decoder.init(key, cfg))(jax.random.key(1))
    return Engine.of(TextModel(name, cfg, params, ByteVocabulary(), ChatML(), stop_ids))


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_completions_are_the_argmax_of_the_full_pass(name):
    """Prompts of several lengths, left-padded together; and each log-probability is that of the full pass."""
    e = engine(name, stop_ids=())
    requests = [e.prompt(text, max_new=4) for text in PROMPTS]
    run = jax.jit(lambda p, x: jax.nn.log_softmax(decoder.apply(p, x, CONFIGS[name])[..., :259], -1))
    for request, completion in zip(requests, e.complete(requests, batch_size=4), strict=True):
        whole = np.zeros((1, 40), np.int32)
        whole[0, : len(request.prompt) + 4] = (*request.prompt, *completion.ids)
        expected = np.asarray(run(e.model.params, jnp.asarray(whole)))[0, len(request.prompt) - 1 :][:4]
        assert completion.ids == tuple(expected.argmax(-1))
        np.testing.assert_allclose(completion.logprobs, expected.max(-1), atol=1e-4)
        assert completion.finish == "length"


def test_a_text_follows_from_its_request_alone():
    """Alone, in a batch, in another order, with other neighbours: the same tokens; another seed: others."""
    e = engine()
    requests = [e.prompt(text, max_new=6, seed=i, sampling=WARM) for i, text in enumerate([*PROMPTS, "a"])]
    together = e.complete(requests)
    alone = [e.complete([r])[0] for r in requests]
    backwards = e.complete(requests[::-1])[::-1]
    assert [c.ids for c in together] == [c.ids for c in alone] == [c.ids for c in backwards]
    assert together[0].ids != together[3].ids  # the same prompt with another seed
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_tokens_beyond_the_vocabulary_are_never_drawn():
    """The model has 264 rows, the vocabulary 259 tokens."""
    e = engine()
    requests = [e.prompt("a", max_new=8, seed=i, sampling=Sampling(temperature=50.0)) for i in range(8)]
    assert max(i for c in e.complete(requests) for i in c.ids) < 259


def test_stop_strings_and_end_tokens():
    e = engine(stop_ids=())
    free = e.complete([e.prompt("stop here", max_new=8, seed=3, sampling=WARM)])[0]
    assert len(free.ids) == 8
    cut = free.text[2:4]
    stopped, short = e.complete(
        [
            e.prompt("stop here", max_new=8, seed=3, sampling=WARM, stop=(cut,)),
            e.prompt("stop here", max_new=2, seed=3, sampling=WARM),
        ]
    )
    assert stopped.text == free.text[: free.text.find(cut)] and stopped.finish == "stop"
    assert stopped.ids == free.ids[: len(stopped.ids)] and len(stopped.ids) < 8
    assert short.ids == free.ids[:2] and short.finish == "length"
    ending = engine(stop_ids=(free.ids[2],)).complete([e.prompt("stop here", max_new=8, seed=3, sampling=WARM)])[0]
    first = free.ids.index(free.ids[2])
    assert ending.ids == free.ids[: first + 1] and ending.finish == "stop"


def test_streamed_pieces_are_the_text():
    e = engine()
    for request in (e.prompt("stream", max_new=12, seed=5, sampling=WARM), e.chat([("user", "hi")], max_new=4)):
        pieces = list(e.stream(request))
        assert "".join(pieces) == e.complete([request])[0].text
        assert len(pieces) > 1


def test_scores_are_those_of_the_full_pass():
    e, run = engine(), jax.jit(lambda p, x: jax.nn.log_softmax(decoder.apply(p, x, CONFIGS["llama"]), -1))
    pairs = [([5], [7, 8]), (list(range(3, 20)), [30]), ([9, 9, 9], list(range(40, 60)))]
    for (prompt, continuation), found in zip(pairs, e.score(pairs, batch_size=2), strict=True):
        whole = np.zeros((1, 32), np.int32)
        whole[0, : len(prompt) + len(continuation)] = [*prompt, *continuation]
        rows = np.asarray(run(e.model.params, jnp.asarray(whole)))[0, len(prompt) - 1 :]
        expected = rows[np.arange(len(continuation)), continuation]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_scores_of_samples_are_the_logprobs_they_came_with():
    e = engine("gpt2", stop_ids=())
    request = e.prompt("sample", max_new=8, seed=1, sampling=Sampling(temperature=0.7))
    completion = e.complete([request])[0]
    (found,) = e.score([(request.prompt, completion.ids)])
    assert found.shape == (8,)
    assert (np.asarray(completion.logprobs) >= found - 1e-4).all()  # drawn among 259 tokens, scored among 264


def test_layers_apart_give_the_logits_of_the_scan():
    e, cfg = engine(), CONFIGS["llama"]
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 259, (2, 12)))
    cache = generate.empty_cache(cfg, 2, 16)
    expected, _ = jax.jit(lambda p, x, c: generate.extend(p, x, cfg, c))(e.model.params, ids, cache)
    state, parts = steps.empty_state(cfg, 2, 16), []
    for piece in (ids[:, :7], ids[:, 7:8], ids[:, 8:]):
        x, state = steps.extend(e.layers, e.around, piece, jnp.ones(piece.shape, bool), cfg, state)
        parts.append(steps.logits(e.around, x, cfg))
    np.testing.assert_allclose(jnp.concatenate(parts, 1), expected, atol=1e-4)
    assert int(state.length) == 12


def test_buckets_are_few_and_hold_what_they_must():
    sizes = sorted({bucket(n) for n in range(1, 1025)})
    assert sizes == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert all(bucket(n) >= n for n in range(1, 1025))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Request(()), "needs a prompt"),
        (lambda: Request((1,), max_new=0), "max_new=0"),
        (lambda: Request((1,), seed=-1), "seed=-1"),
        (lambda: Request((1,), stop=("",)), "must not be empty"),
        (lambda: engine().complete([Request((300,))]), "prompt token 300"),
        (lambda: engine().complete([Request((1,))], batch_size=0), "batch_size"),
        (lambda: engine().score([([1], [])]), "at least one token"),
        (lambda: engine("gpt2").complete([Request((5,) * 30, max_new=20)]), "50 tokens .* gpt2 has 40"),
        (lambda: Engine(TextModel("m", CONFIGS["llama"], {}, ByteVocabulary(), None, ()), [], {}).chat([]), "no chat"),
    ],
)
def test_bad_requests_say_what_was_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_requests_give_no_completions():
    assert engine().complete([]) == []


def test_the_command_prints_a_text(tmp_path, capsys, monkeypatch):
    """A folder that `save` wrote is generated from; mistakes are one line on stderr."""
    monkeypatch.setenv("JAXPT_CACHE", str(tmp_path / "cache"))
    kept = jax.config.jax_compilation_cache_dir
    e = engine("gpt2")
    hugging_face.save(tmp_path / "model", e.model.params, e.model.cfg, vocabulary=ByteVocabulary())
    options = ["--prompt", "some text", "--max-new", "6", "--temperature", "1", "--seed", "3"]
    assert main(["--model", str(tmp_path / "model"), *options]) == 0
    shown = capsys.readouterr()
    request = e.prompt("some text", max_new=6, seed=3, sampling=Sampling(temperature=1.0))
    assert shown.out == e.complete([request])[0].text + "\n"
    assert "loaded in" in shown.err
    assert main(["--model", str(tmp_path / "model"), "--chat", "hi"]) == 2
    assert main(["--model", "smolm2", "--chat", "hi"]) == 2
    assert "no chat format" in (said := capsys.readouterr().err) and "did you mean 'smollm2'" in said
    jax.config.update("jax_compilation_cache_dir", kept)
