"""Which words a document would say (PROP: Pre-training with Representative Words Prediction, arXiv 2010.10137, paper 47).

A query is a sample of its document's language model. So a ranker can be pretrained without queries: of two equally long word
sets drawn from a document's smoothed unigram model, the likelier one must score higher. Documents are the docstrings of the
Python installation.

    python -m recipes.prop claim                     # minutes on two CPU cores
    python -m recipes.prop claim --preset small      # the committed result, about 15 minutes

Claim: an encoder pretrained with hidden words and with pairs ranks new pairs of held-out documents, and finds the document
of a query, without any labelled query; one pretrained with hidden words alone, on the same rows, does not. The control's
untrained head, with the pooled layer under it, is trained on the same pairs for 100 updates, its encoder frozen.

It does not hold at this size: after 800 updates, or 400 of pairs alone, new pairs are ordered by chance, though 16 pairs
are learned by heart in 20. Frequencies say nothing (50 % right); the number of a set's words
that stand in the document does (54 % right, 45 % ties), and two layers do not learn to match words in 13,000 pairs.

Judged by the share of wrongly ordered pairs among those with the larger half of score gaps, and by known-item search: the
query is a docstring's first sentence, removed from it, against 20 other docstrings. The paper's fine-tuning on Robust04,
ClueWeb09-B, Gov2 and MQ2007/8 needs data that nobody can redistribute here, and is not repeated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt import plots, proxy
from jaxpt.comparison import Table, Trial
from jaxpt.core.types import Array, Params
from jaxpt.data.word_pairs import Pairs, Special, WordPairs, stacked
from jaxpt.data.word_statistics import words
from jaxpt.models import encoder
from jaxpt.objectives import representative_words
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.representative_words import RepresentativeWords
from jaxpt.optim import AdamConfig
from jaxpt.pretrain import Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.sharding import MeshConfig
from jaxpt.training.run import NonFiniteError, RunConfig

HEAD = ("pooler", "word_score")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Pretrain):
    """A run, and what is tuned.

    Attributes:
      rates: the grid of peak rates.
      head_updates: of the control's head.
      searches, distractors: queries of the known-item search, and other documents of each.
    """

    rates: tuple[float, ...] = (1e-3, 2e-3)
    head_updates: int = 100
    searches: int = 100
    distractors: int = 20


def pretraining(setting: Setting, share_words: float) -> Pretrain:
    """Hidden words, and pairs with this weight."""
    size = setting.model.vocab_size
    cls, sep, mask = Special.of(size)
    masking = Masking(mask_id=mask, vocab_size=size, special_ids=(0, 1, 2, cls, sep), by="units")
    return dataclasses.replace(setting, objective=RepresentativeWords(masking=masking, share_words=share_words))


ARMS = {
    "hidden words": functools.partial(pretraining, share_words=0.0),
    "hidden words and pairs": functools.partial(pretraining, share_words=1.0),
}
CONTROL, METHOD = ARMS


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """One training run, tuned by what it trains, judged on pairs and by search."""
    start, cfg = time.perf_counter(), ARMS[arm](setting)
    try:
        trained = proxy.train(cfg, rate=point["rate"], init_seed=seed, order_seed=seed)
    except NonFiniteError as error:
        return Trial(math.inf, math.inf, {}, [], time.perf_counter() - start, {"diverged": str(error)})
    pairs: Pairs = trained.data  # type: ignore[assignment]
    params = with_head(trained.params, pairs, cfg, seed) if arm == CONTROL else trained.params
    extra = search(params, pairs, setting)
    return Trial(
        value=pair_error(params, pairs, cfg),
        tuning_value=trained.score("tuning")["loss"],
        ledger=trained.result.ledger.to_dict(),
        curve=trained.result.curve,
        seconds=time.perf_counter() - start,
        extra=extra,
    )


@functools.partial(jax.jit, static_argnums=2)
def states(params: Params, rows: dict[str, Array], model: encoder.Config) -> Array:
    """The encoder's states of rows [N, S], the first token's alone [N, 1, D]."""
    extra = {"token_types": rows["token_types"], "segments": rows["segment_ids"]}
    return encoder.apply(params, rows["inputs"], model, **extra)[:, :1]


def flat(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows [2 B, S] of a batch of pairs."""
    return {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in ("inputs", "token_types", "segment_ids")}


def with_head(params: Params, pairs: Pairs, cfg: Any, seed: int) -> Params:
    """The parameters with the pooled layer and the head trained on training pairs, everything below them frozen."""
    optimizer = AdamConfig(rate=1e-2, schedule="linear").make(cfg.head_updates)
    loader = pairs.loader(seed=seed + 1)

    @jax.jit
    def step(head: Params, state: Any, first: Array) -> tuple[Params, Any]:
        def loss(head: Params) -> Array:
            s = representative_words.scores(head, first).reshape(-1, 2)
            return representative_words.pair_loss(s[:, 0], s[:, 1]).mean()

        updates, state = optimizer.update(jax.grad(loss)(head), state, head)
        return jax.tree.map(jnp.add, head, updates), state

    head = {name: params[name] for name in HEAD}
    state = optimizer.init(head)
    for i in range(cfg.head_updates):
        head, state = step(head, state, states(params, flat(loader.batch(i)), cfg.model))
    return params | head


def pair_error(params: Params, pairs: Pairs, cfg: Pretrain) -> float:
    """Share of wrongly ordered held-out pairs, of those whose gap is above the median."""
    right, gaps = [], []
    for batch in pairs.held_out("report"):
        s = np.asarray(representative_words.scores(params, states(params, flat(batch), cfg.model))).reshape(-1, 2)
        there = batch["segment_ids"].any((1, 2))
        right += (s[:, 0] > s[:, 1])[there].tolist()
        gaps += batch["gap"][there].tolist()
    clear = np.asarray(gaps) > np.median(gaps)
    return 1 - float(np.asarray(right)[clear].mean())


def search(params: Params, pairs: Pairs, setting: Setting) -> dict[str, Any]:
    """Mean reciprocal ranks of the model and of query likelihood, with and without the words of the first sentence."""
    collection, texts = pairs.collections["validation"], pairs.texts["validation"]
    known = [i for i in range(len(texts)) if collection.length[i] and len(query_of(texts[i])[0]) >= 2]
    rng, of_model, of_likelihood = np.random.default_rng(11), [], []
    for wanted in known[: setting.searches]:
        query, rest = query_of(texts[wanted])
        others = rng.choice([i for i in known if i != wanted], setting.distractors, replace=False).tolist()
        found = [rest, *(query_of(texts[i])[1] for i in others)]
        rows = stacked([pairs.rows.row(query, text) for text in found])
        s = representative_words.scores(params, states(params, rows, setting.model))
        of_model.append(reciprocal_rank(np.asarray(s)))
        asked, size = collection.ids(query), len(collection.vocabulary)
        counts = [np.bincount(collection.ids(words(text)), minlength=size) for text in found]
        of_likelihood.append(reciprocal_rank(np.asarray([collection.likelihood_of(asked, tf) for tf in counts])))
    return {"MRR": statistics.fmean(of_model), "MRR of query likelihood": statistics.fmean(of_likelihood)}


def query_of(text: str) -> tuple[list[str], str]:
    """(at most six words of the first sentence, the rest of the text)."""
    first, _, rest = text.partition("\n\n") if "\n\n" in text else text.partition(". ")
    return list(dict.fromkeys(words(first)))[:6] if words(rest) else [], rest


def reciprocal_rank(scores: np.ndarray) -> float:
    """Of the first document; of equal scores it is the last."""
    return 1 / int((scores >= scores[0]).sum())


def claim(run: Claim) -> Table:
    """Equal rows and updates."""
    setting = run.setting
    table = run.compare(trial, tune={"rate": setting.rates}, metric="share of pairs in the wrong order")
    table.require_equal("parameters", "tokens", "flops_nominal")
    accuracy = 1 - table.mean(METHOD)
    table.check("pairs in the right order", accuracy, "at least 0.75", accuracy >= 0.75)
    table.check_better("pairs beat hidden words alone", METHOD, CONTROL)
    mrr = {arm: table.mean_extra(arm, "MRR") for arm in ARMS}
    gain = mrr[METHOD] - mrr[CONTROL]
    table.check("known-item search: MRR above the control's", gain, "at least 0.1", gain >= 0.1)
    likelihood = next(iter(table.trials[METHOD].values())).extra.get("MRR of query likelihood", math.nan)
    table.note(
        f"MRR of one document among {setting.distractors + 1}: "
        + ", ".join(f"{arm} {value:.3f}" for arm, value in mrr.items())
        + f"; query likelihood, which labels the pairs, {likelihood:.3f}."
    )
    table.note(f"The control's pairs in the right order: {1 - table.mean(CONTROL):.3f} (expected below 0.65).")
    curves = table.curves(ARMS)
    plots.curves(run.figure("loss"), curves, title="Training loss", x="update", y="loss")
    return table


def miniature(steps: int) -> Setting:
    """Two layers on rows of 96 tokens."""
    return Setting(
        model=encoder.Config(
            vocab_size=4224, width=128, heads=4, ffn=256, layers=2, learned_positions=96, pooler=True, mlm_head=True,
            unroll=2,
        ),
        data=WordPairs(),  # type: ignore[arg-type]
        optimizer=AdamConfig(clip=1.0, schedule="linear"),
        run=RunConfig(steps=steps),
    )  # fmt: skip


def paper() -> Setting:
    """BERT-base for 400,000 updates of 64 pairs in rows of 512, from scratch; the authors start from BERT's weights.

    They train on Wikipedia or MS MARCO documents; here default-en unless `data.corpora` says otherwise.
    """
    steps = 400_000
    return Setting(
        model=encoder.Config(
            vocab_size=30_592, width=768, heads=12, ffn=3072, layers=12, pooler=True, mlm_head=True, remat="full",
            compute_dtype="bfloat16",
        ),
        data=WordPairs(
            corpora=("default-en",), vocabulary="bpe:30522", sequence_length=512, batch_size=64, validation=0.01
        ),  # type: ignore[arg-type]
        optimizer=AdamConfig(rate=2e-5, warmup=0.1, weight_decay=0.01, clip=1.0, schedule="linear", floor=0.0),
        run=RunConfig(steps=steps, evaluate_every=5000, checkpoint_every=5000),
        mesh=MeshConfig(data=1, fsdp=-1),
    )  # fmt: skip


PRESETS = {
    "tiny": dataclasses.replace(miniature(200), rates=(1e-3,)),
    "small": miniature(800),
    "paper_base": paper(),
}

RECIPE = Recipe(
    paper=47,
    name="prop",
    title="Representative words prediction for retrieval",
    family="objectives",
    module="jaxpt.objectives.representative_words",
    presets=PRESETS,
    arms=ARMS,
    method=METHOD,
    says="Rankers pretrained to tell the likelier of two word sets of a document beat BERT's on five retrieval tasks.",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
