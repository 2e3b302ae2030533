"""GPT-BERT: one network trained on causal and on masked next tokens (GPT or BERT: why not both?, arXiv 2410.24159; paper 1).

Some rows of each batch are causal, the others see both sides and predict hidden tokens from the state BEFORE them: an
output means the same in both. LAMB, masks that fall from 30 to 15 %, rows that grow 1, 2, 4 times longer.

    python -m recipes.gpt_bert claim                       # byte level, two layers
    python -m recipes.gpt_bert claim --preset small        # the committed result, about 15 minutes
    python -m recipes.gpt_bert claim --preset babylm_tiny  # English: vocabulary, training, minimal pairs in both modes
    python -m recipes.gpt_bert claim --preset babylm_10m   # the 10M-word track, for a GPU
    python -m recipes.gpt_bert compile --preset paper_10m --topology v5e:4x4

Claim: with equal tokens the hybrid is usable in both modes. Its causal loss is within 0.3 nat of the causal run's, where
the masked run's is more than 1 nat worse; its loss on hidden tokens is within 0.3 nat of the masked run's. Fused scores,
causal plus pseudo-log-likelihood, tell held-out text from the same with two tokens exchanged no worse than the better mode,
less 1 point.

Reconstructed: the release also predicts the token after a masked row, and has dropout. Texts here are not BabyLM's.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt import models, pretrain, proxy
from jaxpt.comparison import Table, Trial
from jaxpt.core.types import Array, Params
from jaxpt.data import vocabularies
from jaxpt.data.loader import single_source
from jaxpt.data.packing import pack
from jaxpt.data.vocabularies import Vocabulary
from jaxpt.data.word_pairs import decoded
from jaxpt.evaluate import both_modes as modes
from jaxpt.evaluate import lexicon
from jaxpt.evaluate.minimal_pairs import Pair, pair_accuracy
from jaxpt.evaluate.phenomena import minimal_pairs
from jaxpt.layers import masks
from jaxpt.models import gpt_bert
from jaxpt.objectives.causal_lm import CausalLM
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.hybrid_lm import HybridLM
from jaxpt.objectives.masked_next_token import MaskedNextToken
from jaxpt.optim import EmaLambConfig
from jaxpt.phased_text import PhasedData
from jaxpt.pretrain import Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.sharding import MeshConfig
from jaxpt.training.run import RunConfig

PAIRS, WINDOW = 128, 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Pretrain):
    """A run, and what is tuned.

    Attributes:
      rates: the grid of peak rates.
      grammar: minimal pairs of each phenomenon of English by which a run is judged as well; 0 where the text is no English.
    """

    rates: tuple[float, ...] = (5e-3, 1e-2)
    grammar: int = 0


def masking(vocab_size: int, rate: float) -> Masking:
    """GPT-BERT's spans; [MASK] is the last id of the vocabulary, which no text has."""
    return Masking(mask_id=vocab_size - 1, vocab_size=vocab_size, rate=rate, by="spans")


def hybrid(setting: Setting, masked: tuple[int, int]) -> Pretrain:
    """The run with this share of masked rows."""
    hidden = masking(setting.model.vocab_size, 0.3)
    return dataclasses.replace(setting, objective=HybridLM(masking=hidden, masked=masked, z_loss=1e-4))


ARMS = {
    "causal": functools.partial(hybrid, masked=(0, 1)),
    "masked": functools.partial(hybrid, masked=(1, 1)),
    "hybrid 1:1": functools.partial(hybrid, masked=(1, 2)),
    "hybrid 1:3": functools.partial(hybrid, masked=(3, 4)),
}


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """One run, tuned by its own objective, judged in both modes. Its value is the causal loss in bits per byte."""
    cfg = ARMS[arm](setting)
    look = functools.partial(both_modes, cfg=cfg)
    found = proxy.score(cfg, rate=point["rate"], init_seed=seed, order_seed=seed, look=look)
    return found if "causal" not in found.extra else dataclasses.replace(found, value=found.extra["bits_per_byte"])


def both_modes(params: Params, cfg: Pretrain) -> dict[str, Any]:
    """Held-out nats per token, causal and hidden, and accuracy on exchanged tokens."""
    data = cfg.data.open(cfg.model.vocab_size)
    causal = data.evaluation(proxy.scorer(CausalLM(model=cfg.model)), "report")(params)
    judged = MaskedNextToken(model=cfg.model, masking=masking(cfg.model.vocab_size, 0.15))
    hidden = data.evaluation(proxy.scorer(judged), "report", likelihood=False)(params)
    numbers = {"bits_per_byte": causal["bits_per_byte"], "causal": causal["nats_per_token"], "masked": hidden["loss"]}
    told = grammar(params, cfg) if isinstance(cfg, Setting) and cfg.grammar else {}
    return numbers | exchanged(params, cfg, windows_of(data)) | told


def grammar(params: Params, cfg: Setting) -> dict[str, float]:
    """Mean accuracy over phenomena of minimal pairs in words of the training text: in each mode, and fused."""
    pairs, vocabulary = english_pairs(cfg.data, cfg.model.vocab_size, cfg.grammar)
    scorers = modes.both_modes(
        params, cfg.model, vocabulary, mask_id=cfg.model.vocab_size - 1, max_length=cfg.data.sequence_length
    )
    return {f"grammar {mode}": pair_accuracy(score, pairs)["accuracy"] for mode, score in scorers.items()}


@functools.lru_cache(maxsize=1)
def english_pairs(data: pretrain.DataConfig, vocab_size: int, each: int) -> tuple[list[Pair], Vocabulary]:
    """Minimal pairs in words that the training text has, and its vocabulary."""
    records = data.open(vocab_size).train
    vocabulary = vocabularies.load(records.folder / "vocabulary")
    words = lexicon.from_text(decoded(records, vocabulary))
    return [pair for of_one in minimal_pairs(0, words, each).values() for pair in of_one], vocabulary


def windows_of(data: pretrain.Data) -> np.ndarray:
    """[PAIRS, WINDOW] token ids of held-out documents."""
    loader = single_source(data.validation, pack(data.validation, WINDOW, "concatenate"), PAIRS)
    return np.asarray(loader.batch(0)["inputs"])


def exchanged(params: Params, cfg: Pretrain, windows: np.ndarray) -> dict[str, float]:
    """Share of windows that are likelier than with two neighbouring tokens exchanged: causal, pseudo, and their sum."""
    rng, bad = np.random.default_rng(0), windows.copy()
    for row in bad:
        different = np.flatnonzero(row[1:-1] != row[2:]) + 1
        if len(different):
            at = rng.choice(different)
            row[[at, at + 1]] = row[[at + 1, at]]
    kept = (bad != windows).any(1)
    causal, pseudo = (
        np.asarray(score(params, windows[kept], cfg.model)) - np.asarray(score(params, bad[kept], cfg.model))
        for score in (causal_score, pseudo_score)
    )
    scores = {"causal": causal, "pseudo": pseudo, "fused": causal + pseudo}
    return {f"pairs {name}": float(((x > 0) + 0.5 * (x == 0)).mean()) for name, x in scores.items()}


@functools.partial(jax.jit, static_argnames="cfg")
def causal_score(params: Params, ids: Array, cfg: Any) -> Array:
    """[N]: log p of the tokens after the first."""
    log_p = jax.nn.log_softmax(models.of(cfg).apply(params, ids, cfg)[:, :-1])
    return jnp.take_along_axis(log_p, ids[:, 1:, None], -1).sum((1, 2))


@functools.partial(jax.jit, static_argnames="cfg")
def pseudo_score(params: Params, ids: Array, cfg: Any) -> Array:
    """[N]: sum of log p of each token after the first, hidden alone and read one position before, given all others."""

    def one(at: Array) -> Array:
        hidden = jnp.where(jnp.arange(ids.shape[1]) == at, cfg.vocab_size - 1, ids)
        states = models.of(cfg).hidden_states(params, hidden, cfg, mask=masks.full()).final
        read = models.of(cfg).readout(params, jax.lax.dynamic_slice_in_dim(states, at - 1, 1, 1), cfg)
        log_p = jax.nn.log_softmax(read.logits())[:, 0]
        return jnp.take_along_axis(log_p, jnp.take(ids, at, axis=1)[:, None], -1)[:, 0]

    return jax.lax.map(one, jnp.arange(1, ids.shape[1])).sum(0)


def claim(run: Claim) -> Table:
    """Equal updates and tokens."""
    table = run.compare(trial, tune={"rate": run.setting.rates}, metric="bits per byte (causal)")
    mean = table.mean_extra
    best = "hybrid 1:1"
    behind = mean(best, "causal") - mean("causal", "causal")
    table.check("hybrid behind causal, nats in causal mode", behind, "at most 0.3", behind <= 0.3)
    worse = mean("masked", "causal") - mean("causal", "causal")
    table.check("masked alone behind causal in causal mode", worse, "more than 1", worse > 1)
    behind = mean(best, "masked") - mean("masked", "masked")
    table.check("hybrid behind masked, nats per hidden token", behind, "at most 0.3", behind <= 0.3)
    gain = mean(best, "pairs fused") - max(mean(best, "pairs causal"), mean(best, "pairs pseudo"))
    table.check("fused above the better mode, exchanged tokens", gain, "at least -0.01", gain >= -0.01)
    tests = ("pairs", "grammar") if run.setting.grammar else ("pairs",)
    names = ["causal", "masked", *(f"{test} {mode}" for test in tests for mode in ("causal", "pseudo", "fused"))]
    for arm in ARMS:
        table.note(f"{arm}: " + ", ".join(f"{name} {mean(arm, name):.3f}" for name in names))
    return table


def setting(
    steps: int, rows: int, length: int, data: dict[str, Any], optimizer: dict[str, Any], **model: Any
) -> Setting:
    """GPT-BERT's schedules at any size; 15 of 16 rows are masked where every phase has a multiple of 16."""
    share = (15, 16) if rows % 64 == 0 else (1, 2)
    return Setting(
        model=gpt_bert.Config(**model),
        objective=HybridLM(masking=masking(model["vocab_size"], 0.3), masked=share, z_loss=1e-4),
        data=PhasedData(sequence_length=length, batch_size=rows, steps=steps, **data),
        optimizer=EmaLambConfig(**{"warmup": 0.016, "cooldown": 0.016, "clip": 2.0} | optimizer),
        run=RunConfig(steps=steps),
    )  # fmt: skip


BYTES = {"vocab_size": 260, "layers": 2, "width": 96, "heads": 4, "ffn": 192}
SMALL = {"vocab_size": 8192, "layers": 12, "width": 384, "heads": 6, "ffn": 1280}
ENGLISH = {"corpora": ("default-en",), "vocabulary": "bpe:8000"}
FEW = {"corpora": ("kjv", "fortunes"), "vocabulary": "bpe:2048", "evaluation_tokens": 32_768}  # a million words


def paper(steps: int, vocabulary: int, rate: float, **model: Any) -> Setting:
    """The submission: 32,768 rows of 128 tokens an update, 15/16 of them masked. Texts: default-en unless told otherwise."""
    text = {"corpora": ("default-en",), "vocabulary": f"bpe:{vocabulary}", "grow": 0.25}
    found = setting(steps, 32_768, 128, text, {"rate": rate}, remat="full", compute_dtype="bfloat16", **model)
    run = dataclasses.replace(found.run, evaluate_every=500, checkpoint_every=500)
    return dataclasses.replace(found, run=run, mesh=MeshConfig(data=1, fsdp=-1))


PRESETS = {
    "tiny": setting(200, 16, 64, {"evaluation_tokens": 32_768}, {"warmup": 0.1, "cooldown": 0.1}, **BYTES),
    "small": setting(800, 16, 64, {"evaluation_tokens": 32_768}, {"warmup": 0.1, "cooldown": 0.1}, **BYTES),
    "babylm_tiny": dataclasses.replace(
        setting(500, 32, 64, FEW, {"warmup": 0.1}, vocab_size=2176, layers=3, width=128, heads=4, ffn=256), grammar=40
    ),
    "babylm_10m": dataclasses.replace(
        setting(7812, 512, 128, ENGLISH, {}, **SMALL), grammar=500, rates=(7e-3, 1.41e-2)
    ),
    "paper_10m": paper(7812, 8000, 1.41e-2, **SMALL),
    "paper_100m": paper(15_625, 16_000, 1e-2, vocab_size=16_384, layers=12, width=768, heads=12, ffn=2560),
}  # fmt: skip

RECIPE = Recipe(
    paper=1,
    name="gpt_bert",
    title="GPT-BERT: causal and masked next tokens in one network",
    family="objectives",
    module="jaxpt.objectives.hybrid_lm",
    presets=PRESETS,
    arms=ARMS,
    method="hybrid 1:1",
    says="A hybrid of causal and masked next-token prediction won both text tracks of BabyLM 2024.",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
