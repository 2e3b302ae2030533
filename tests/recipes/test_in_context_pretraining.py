"""In-context pretraining's recipe: what its tables are, what they are scored on, and that every arm can be trained."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import pretrain
from jaxpt.data.records import TokenRecords
from jaxpt.data.related import whole_documents
from jaxpt.data.related.tables import table_items
from jaxpt.evaluate.in_context import document_loss
from jaxpt.models import decoder
from jaxpt.objectives.causal_lm import CausalLM
from recipes import in_context_pretraining as recipe

MODEL = decoder.Config(layers=1, width=16, heads=2, ffn=24, vocab_size=259, initializer_stddev=None)
TABLES = recipe.Tables(topics=20, per_topic=4, keys=6, table_values=8, sequence_length=72, batch_size=4)


@pytest.fixture
def setting(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPT_CACHE", str(tmp_path))
    return dataclasses.replace(recipe.PRESETS["tiny"], model=MODEL, tables=TABLES, table_steps=3)


def test_a_document_lists_its_topics_table():
    items = table_items(5, 3, 6, 8, 0, "a")
    tables = [dict(pair for pair in item.content.split()) for item in items]
    assert len({item.id for item in items}) == 15 and all(item.bytes == 17 for item in items)
    assert all(sorted(table) == list("abcdef") for table in tables)
    assert all(tables[i] == tables[i - i % 3] for i in range(15))
    assert len({tuple(sorted(t.items())) for t in tables}) == 5
    with pytest.raises(ValueError, match="1 to 26 keys and values, got 27"):
        table_items(1, 1, 27, 3, 0, "a")


def test_the_related_order_puts_topics_together(setting):
    data = recipe.on_tables(setting, "related").data.open(259)
    topic = data.train.document[data.contexts.spans[:, 0]] // 4
    other = recipe.on_tables(setting, "standard").data.open(259)
    same = [(t[1:] == t[:-1]).mean() for t in (topic, other.train.document[other.contexts.spans[:, 0]] // 4)]
    assert same[0] > 0.7 > 0.4 > same[1]


def test_only_the_target_is_scored_and_it_sees_what_is_before_it(setting):
    records: TokenRecords = TABLES.open(259).validation
    units, score = whole_documents(records), pretrain.scorer(CausalLM(model=MODEL))
    params = decoder.init(jax.random.key(0), MODEL)
    targets, size = np.array([1, 3, 5]), int(units.lengths[0])
    seen = document_loss(score, records, units, np.array([[0], [2], [4]]), targets, batch_size=2)(params)
    rows = np.stack([np.concatenate([records[t - 1][:-1], records[t][:-1]]) for t in targets])
    logits = decoder.apply(params, jnp.asarray(rows), MODEL)
    labels = np.stack([records[t][1:] for t in targets])
    logp = jax.nn.log_softmax(logits[:, size:])
    chosen = np.take_along_axis(np.asarray(logp), labels[..., None], -1)[..., 0]
    assert seen == pytest.approx(-chosen[:, :-1].mean(), rel=1e-5)  # the last label is EOS
    alone = document_loss(score, records, units, np.zeros((3, 0), int), targets, batch_size=2)(params)
    assert alone != pytest.approx(seen, rel=1e-4)
    with pytest.raises(ValueError, match="got 2 targets"):
        document_loss(score, records, units, np.zeros((3, 0), int), targets[:2], batch_size=2)


def test_an_arm_on_tables_is_trained_and_judged(setting):
    found = recipe.trial(arm="tables, related", point={"rate": 6e-3}, seed=0, setting=setting)
    assert found.ledger["steps"] == 3
    assert set(found.extra) >= {"after related", "after random"}
    assert found.value == found.extra["after related"]["report"] != found.tuning_value
    assert 1 < found.value < 8
