"""Our scorer against lm-evaluation-harness: what it recorded of a LLaMA in PyTorch, and what it says when it runs us."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers

from jaxpt.data.documents import Document
from jaxpt.data.vocabularies import HFVocabulary
from jaxpt.evaluate.documents import documents_bits_per_byte, text_windows
from jaxpt.evaluate.multiple_choice import Item, multiple_choice
from jaxpt.evaluate.scoring import Scorer, decoder_tokens, on_texts
from jaxpt.interop.families import FAMILIES
from jaxpt.interop.names import Arrays, from_state
from jaxpt.models import decoder

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = {
    "acc": "accuracy",
    "acc_norm": "accuracy_characters",
    "acc_bytes": "accuracy_bytes",
    "acc_mutual_info": "accuracy_information",
}
LENGTH = 64


@functools.cache
def golden():
    return json.loads((GOLDEN / "lm_eval.json").read_text(encoding="utf-8"))


@functools.cache
def vocabulary():
    return HFVocabulary(tokenizers.Tokenizer.from_str(json.dumps(golden()["tokenizer"])))


@functools.cache
def llama():
    with np.load(GOLDEN / "decoder_llama.npz") as file:
        arrays = dict(file)
    cfg = decoder.Config(**json.loads(str(arrays.pop("config"))))
    state = {k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")}
    return cfg, from_state(Arrays(state), decoder.spec(cfg), FAMILIES["llama"].pieces(cfg))


@functools.cache
def score():
    cfg, params = llama()
    return functools.partial(Scorer(decoder_tokens(cfg), LENGTH), params)


def items():
    return [Item(i["context"], tuple(i["choices"]), i["answer"]) for i in golden()["items"]]


def test_log_likelihoods_of_200_items_are_the_harnesses():
    pairs = [(i.context, i.delimiter + c) for i in items() for c in i.choices]
    found = on_texts(score(), vocabulary())(pairs)
    unconditional = on_texts(score(), vocabulary())([("", c) for _, c in pairs]).log_likelihood
    expected, greedy, at = golden()["log_likelihoods"], golden()["greedy"], 0
    assert len(expected) == 200
    for values, flags, item in zip(expected, greedy, items(), strict=True):
        n = len(item.choices)
        np.testing.assert_allclose(found.log_likelihood[at : at + n], values[:n], atol=1e-4, rtol=0)
        np.testing.assert_allclose(unconditional[at : at + n], values[n:], atol=1e-4, rtol=0)
        assert found.greedy[at : at + n].tolist() == flags[:n]
        at += n
    assert np.std(found.log_likelihood) > 5  # the tolerance means something


def test_accuracies_are_the_harnesses():
    report = multiple_choice(on_texts(score(), vocabulary()), items())
    assert {name: report[ours] for name, ours in NAMES.items()} == pytest.approx(golden()["accuracies"], abs=1e-12)
    assert len(set(golden()["accuracies"].values())) == 4  # the four rules differ on these items


def test_rolling_log_likelihoods_and_bits_per_byte_are_the_harnesses():
    documents = [Document(f"d{i}", "all", "", text, "") for i, text in enumerate(golden()["texts"])]
    report = documents_bits_per_byte(score(), documents, vocabulary(), LENGTH, context="max")
    np.testing.assert_allclose(-report.per_item["nats"], golden()["rolling"], atol=1e-4, rtol=1e-6)
    assert report["bits_per_byte"] == pytest.approx(golden()["bits_per_byte"], rel=1e-6)
    assert max(len(vocabulary().encode(d.text)) for d in documents) > 2 * LENGTH


@pytest.fixture(scope="module")
def harness():
    return pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")


def test_the_harness_runs_our_model_with_the_same_result(harness, tmp_path):
    from lm_eval.tasks import TaskManager

    import jaxpt.evaluate.lm_eval as ours

    (tmp_path / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in golden()["items"]), encoding="utf-8")
    metrics = "".join(f"  - metric: {name}\n" for name in NAMES)
    (tmp_path / "questions.yaml").write_text(
        "task: questions\noutput_type: multiple_choice\ndoc_to_text: '{{context}}'\ndoc_to_choice: choices\n"
        "doc_to_target: answer\ndataset_path: json\nvalidation_split: validation\ndataset_kwargs:\n  data_files:\n"
        f"    validation: {tmp_path / 'items.jsonl'}\nmetric_list:\n{metrics}"
    )
    cfg, params = llama()
    found = harness.simple_evaluate(
        model="jaxpt",
        model_args={"score": score(), "vocabulary": vocabulary(), "max_length": LENGTH},
        tasks=["questions"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    results = found["results"]["questions"]
    assert {name: results[f"{name},none"] for name in NAMES} == pytest.approx(golden()["accuracies"], abs=1e-12)
    samples = sorted(found["samples"]["questions"], key=lambda s: s["doc_id"])
    for sample, values in zip(samples, golden()["log_likelihoods"], strict=True):
        np.testing.assert_allclose([float(r[0][0]) for r in sample["resps"]], values, atol=1e-4, rtol=0)
    model = ours.JaxptLM.of_decoder(params, cfg, vocabulary(), LENGTH)
    requests = [_request((text,)) for text in golden()["texts"]]
    np.testing.assert_allclose(model.loglikelihood_rolling(requests), golden()["rolling"], atol=1e-4, rtol=1e-6)


def test_our_windows_are_the_harnesses(harness):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    text = golden()["texts"][-1]
    theirs = [
        make_disjoint_window(w)
        for w in get_rolling_token_windows(vocabulary().encode(text), vocabulary().bos_id, LENGTH, 1)
    ]
    assert [tuple(map(list, w)) for w in theirs] == [
        (list(w.context), list(w.continuation)) for w in text_windows(vocabulary(), text, LENGTH)
    ]


def test_the_harness_generates_with_our_model(harness):
    from jaxpt.evaluate.lm_eval import JaxptLM

    cfg, params = llama()
    model = JaxptLM.of_decoder(params, cfg, vocabulary(), LENGTH)
    context = golden()["items"][1]["context"]
    asked = {"until": [], "max_gen_toks": 6, "do_sample": False}
    long, short = model.generate_until([_request((context, asked)), _request(("ba", asked))])
    ids = [vocabulary().bos_id, *vocabulary().encode(context)]
    for _ in range(6):
        ids.append(int(decoder.apply(params, jax.numpy.array([ids]), cfg)[0, -1].argmax()))
    new = ids[-6:]
    stop = new.index(vocabulary().eos_id) if vocabulary().eos_id in new else 6
    assert long == vocabulary().decode(new[:stop])
    assert short == model.generate_until([_request(("ba", asked))])[0]  # whatever shares the batch
    stopped = model.generate_until([_request((context, asked | {"until": [long[2]]}))])[0]
    assert stopped == long.split(long[2])[0]
    with pytest.raises(ValueError, match="made without a `generate` function"):
        JaxptLM(score(), vocabulary(), LENGTH).generate_until([_request((context, asked))])


def _request(arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type="loglikelihood", doc={}, arguments=arguments, idx=0)
