"""DeBERTaV3: ELECTRA-style pretraining with gradient-disentangled embedding sharing (arXiv 2111.09543, paper 6).

A generator wants tokens of one kind close to each other, a discriminator wants them apart. The two have one table (ES), or
two (NES), or the discriminator's is the generator's, behind a stopped gradient, plus a difference of its own (GDES):

    python -m recipes.debertav3 claim                     # minutes on two CPU cores
    python -m recipes.debertav3 claim --preset small      # the committed result, about 15 minutes
    python -m recipes.debertav3 compile --preset paper_base --topology v5e:4x4

Claim, of the mechanism: under GDES the generator trains as if nothing were shared, to the bit, and fills no worse than under
ES; the discriminator's table moves away from it all the same. Reported: mean cosines of the tables of frequent tokens
(section 3.2; NES keeps the generator's close and the discriminator's apart), and the cosine of the two losses' gradients on
the table that ES shares. The paper's gain on downstream tasks is not claimed at this size.

Reconstructed: both models are updated at once, where the authors update the discriminator with the generator's new table;
positions are drawn one by one and not one of every six; lambda is the paper's 50, where the release has 10. Each model has
Adam moments and clipping of its own, as there.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt import plots, proxy
from jaxpt.comparison import Table, Trial
from jaxpt.core.types import Array, Float, Params
from jaxpt.layers.disentangled import Disentangled
from jaxpt.models import encoder
from jaxpt.models.generator import Generator
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.replaced_tokens import ReplacedTokens
from jaxpt.optim import AdamConfig, GroupedConfig
from jaxpt.pretrain import DataConfig, Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.sharding import MeshConfig
from jaxpt.training.run import RunConfig
from recipes.common import held_out_batches

SAME = "largest difference of a held-out loss"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Pretrain):
    """A run of the discriminator, and what is tuned.

    Attributes:
      depth: of the generator, a share of the layers.
      masked: share of the tokens that the generator fills; all of them become [MASK].
      rates: the grid of peak rates.
      frequent: so many tokens, the most frequent ones, are looked at in the tables.
      conflict_batches: held-out batches on which the two losses' gradients are compared.
    """

    depth: float = 0.5
    masked: float = 0.15
    rates: tuple[float, ...] = (1e-3, 3e-3)
    frequent: int = 500
    conflict_batches: int = 20


def shared(setting: Setting, sharing: str) -> Setting:
    """The run with this kind of sharing."""
    size = setting.model.vocab_size
    masking = Masking(mask_id=size - 1, vocab_size=size, rate=setting.masked, mask=1.0, random=0.0)
    generator = Generator(depth=setting.depth, sharing=sharing)
    objective = ReplacedTokens(model=setting.model, masking=masking, generator=generator)
    return dataclasses.replace(setting, objective=objective)


ARMS: dict[str, Callable[[Setting], Setting]] = {
    "ES": functools.partial(shared, sharing="embeddings"),
    "NES": functools.partial(shared, sharing="none"),
    "GDES": functools.partial(shared, sharing="gradient_disentangled"),
}


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """One training run; its value is the generator's loss on held-out tokens."""
    cfg = ARMS[arm](setting)
    alone = dataclasses.replace(_objective(cfg), discriminator_weight=0.0)
    return proxy.score(
        cfg,
        rate=point["rate"],
        init_seed=seed,
        order_seed=seed,
        objective=alone,
        look=functools.partial(looked_at, cfg=cfg),
    )


def looked_at(params: Params, cfg: Setting) -> dict[str, float]:
    """Cosines of the tables, how far apart the two are, and how the two losses pull at what they share."""
    objective = _objective(cfg)
    of_filling, of_judging = (tree["embedding"] for tree in objective.parts(params))
    batches = [batch for batch in held_out_batches(cfg, "report") if batch["segment_ids"].any(-1).all()]
    counts = np.bincount(np.concatenate([b["inputs"][b["segment_ids"] > 0] for b in batches]))
    often = np.argsort(-counts)[: cfg.frequent]
    found = {
        "cosine of G's tokens": float(mean_cosine(of_filling[often])),
        "cosine of D's tokens": float(mean_cosine(of_judging[often])),
        "distance of the tables": float(jnp.linalg.norm(of_judging - of_filling) / jnp.linalg.norm(of_filling)),
    }
    if objective.generator.sharing == "embeddings":
        each = conflicts(params, objective, batches[: cfg.conflict_batches])
        found |= {
            "gradients: cosine": float(np.mean(each)),
            "gradients: share near or below 0": float(np.mean(each < 0.05)),
        }
    return found


def mean_cosine(table: Float[Array, "N D"]) -> Float[Array, ""]:
    """Over all pairs of rows."""
    rows = table / jnp.linalg.norm(table, axis=-1, keepdims=True)
    count = len(rows)
    return ((rows.sum(0) ** 2).sum() - count) / (count * (count - 1))


def conflicts(params: Params, objective: ReplacedTokens, batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    """The cosine of the two losses' gradients on the generator's table, on each batch."""

    def loss(table: Array, batch: dict[str, Array], weights: dict[str, Any]) -> Array:
        tree = params | {"generator": params["generator"] | {"embedding": table}}
        only = dataclasses.replace(objective, **weights)
        losses = only.loss(tree, only.prepare(jax.random.key(0), batch), jax.random.key(0))
        return losses.sums.sum() / losses.weights.sum()

    @jax.jit
    def cosine(batch: dict[str, Array]) -> Array:
        alone = ({"discriminator_weight": 0.0}, {"generator_weight": 0.0})
        one, other = (jax.grad(loss)(params["generator"]["embedding"], batch, weights) for weights in alone)
        return (one * other).sum() / (jnp.linalg.norm(one) * jnp.linalg.norm(other))

    return np.array([cosine({k: jnp.asarray(x) for k, x in batch.items()}) for batch in batches])


def claim(run: Claim) -> Table:
    """Equal updates and tokens."""
    setting = run.setting
    table = run.compare(trial, tune={"rate": setting.rates}, metric="the generator's nats per hidden token")
    tuned = [abs(table.tuning["GDES"][p] - value) for p, value in table.tuning["NES"].items()]
    apart = max(*tuned, *map(abs, table.differences("GDES", "NES")))
    table.check(f"GDES's generator is NES's: {SAME}", apart, "0 exactly", apart == 0)
    behind = [(a - b) / b for a, b in zip(table.values("GDES"), table.values("ES"), strict=True)]
    table.check("GDES's generator behind ES's", max(behind), "at most 2 % in some seed", min(behind) <= 0.02)
    moved = min(table.extras("GDES", "distance of the tables"))
    table.check("GDES: |E_delta| / |E_G|", moved, "above 0.05", moved > 0.05)
    for name in ("cosine of G's tokens", "cosine of D's tokens", "distance of the tables"):
        table.note(f"{name}: " + ", ".join(f"{arm} {table.mean_extra(arm, name):.3f}" for arm in ARMS) + ".")
    cosine, low = (table.mean_extra("ES", f"gradients: {of}") for of in ("cosine", "share near or below 0"))
    table.note(
        f"Under ES the two losses' gradients on the table have a cosine of {cosine:.3f}; it is below 0.05 on {low:.0%} of "
        "the batches."
    )
    plots.curves(run.figure("loss"), table.curves(ARMS), title="Training loss", x="update", y="L_G + 50 L_D")
    return table


def _objective(cfg: Pretrain) -> ReplacedTokens:
    if not isinstance(cfg.objective, ReplacedTokens):
        raise ValueError(f"expected replaced-token detection, got {type(cfg.objective).__name__}")
    return cfg.objective


def both(adam: AdamConfig, **schedule: Any) -> GroupedConfig:
    """Each model with moments and clipping of its own."""
    return GroupedConfig(**schedule, groups=(("generator", 1.0, adam), ("discriminator", 1.0, adam)))


def deberta(**sizes: Any) -> encoder.Config:
    """DeBERTaV3's architecture."""
    return encoder.Config(
        **sizes, learned_positions=0, token_types=0, norm_eps=1e-7, rtd_head="token_and_first", unroll=2
    )


def small(steps: int) -> Setting:
    """Two layers on the source and prose of the Python installation, in 2048 tokens; the generator has one."""
    return Setting(
        model=deberta(
            vocab_size=2176, layers=2, width=96, heads=3, ffn=256, decoder_positions=64,
            disentangled=Disentangled(buckets=16, max_position=64),
        ),
        data=DataConfig(vocabulary="bpe:2048", sequence_length=64, batch_size=16, evaluation_tokens=32_768),
        optimizer=both(AdamConfig(b2=0.98, eps=1e-6, weight_decay=0.01, clip=1.0), schedule="linear"),
        run=RunConfig(steps=steps),
    )  # fmt: skip


def paper(width: int, layers: int, depth: float, rate: float) -> Setting:
    """The authors' runs, but for dropout: 500,000 updates of 8192 sequences.

    They train on 160 GB of text with 128,000 SentencePiece tokens; here default-en unless `data.corpora` says otherwise,
    with a vocabulary that so little text can fill. The model has the paper's.
    """
    steps = 500_000
    model = deberta(
        vocab_size=128_128, layers=layers, width=width, heads=width // 64, ffn=4 * width, decoder_positions=512,
        disentangled=Disentangled(), remat="full", compute_dtype="bfloat16",
    )  # fmt: skip
    return Setting(
        model=model,
        depth=depth,
        data=DataConfig(
            corpora=("default-en",), vocabulary="sentencepiece:32000", sequence_length=512, batch_size=8192,
            packing="concatenate",
        ),
        optimizer=both(
            AdamConfig(b2=0.98, eps=1e-6, weight_decay=0.01, clip=1.0), rate=rate, schedule="linear",
            warmup=10_000 / steps, floor=0.0,
        ),
        run=RunConfig(steps=steps, evaluate_every=10_000, checkpoint_every=10_000),
        mesh=MeshConfig(data=1, fsdp=-1),
        rates=(rate,),
    )  # fmt: skip


PRESETS = {
    "tiny": small(200),
    "small": dataclasses.replace(small(800), rates=(1e-3, 2e-3, 4e-3)),
    "paper_xsmall": paper(384, 12, 1 / 2, 6e-4),
    "paper_small": paper(768, 6, 1 / 2, 6e-4),
    "paper_base": paper(768, 12, 1 / 2, 6e-4),
    "paper_large": paper(1024, 24, 1 / 2, 3e-4),
}

RECIPE = Recipe(
    paper=6,
    name="debertav3",
    title="DeBERTaV3: gradient-disentangled embedding sharing",
    family="objectives",
    module="jaxpt.objectives.replaced_tokens",
    presets=PRESETS,
    arms=ARMS,
    method="GDES",
    says="Stopping the discriminator's gradient into the shared table keeps the generator as good as unshared ones.",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
