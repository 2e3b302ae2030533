"""SPDF: sparse pre-training and dense fine-tuning (arXiv 2303.10464, paper 16).

Three quarters of the entries of every matrix of the blocks are masked at random from the start and never trained; then the
mask is dropped, the missing entries start at zero, and all of them are fine-tuned on another kind of text:

    python -m recipes.spdf claim                                 # about 3 minutes on two CPU cores
    python -m recipes.spdf claim --preset small                  # the committed result
    python -m recipes.spdf compile --preset paper_gpt3_xl --topology v5e:4x4

Claim: after dense fine-tuning, a model that was pre-trained at 75 % sparsity is no worse than a dense one (GPT-3 XL: 2.5
times fewer operations of pre-training), and dense fine-tuning beats sparse fine-tuning of the same model. Here it is
pre-trained on Python's source and fine-tuned on its documentation; every arm tunes the rate of its fine-tuning.
"""

from __future__ import annotations

import dataclasses
import functools
import sys

import jax
import numpy as np

from jaxpt import plots, proxy, weights
from jaxpt.comparison import Table, Trial
from jaxpt.core.types import Params
from jaxpt.models import decoder
from jaxpt.optim import AdamConfig
from jaxpt.pretrain import DataConfig, Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.sharding import MeshConfig
from jaxpt.training.run import RunConfig
from jaxpt.weights import Dense, Masked
from recipes.common import BLOCKS, byte_level, with_embedding, with_form, with_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Pretrain):
    """Pre-training, and the fine-tuning that follows it.

    Attributes:
      pretraining_rate: peak rate of the first stage, the same for all arms, as in the paper.
      then: corpora of the second stage.
      then_steps: updates of the second stage.
      rates: the grid of peak rates of the second stage.
      stddev: of the embedding's initial values.
    """

    pretraining_rate: float = 6e-3
    then: tuple[str, ...] = ("python-prose",)
    then_steps: int = 150
    rates: tuple[float, ...] = (1e-3, 3e-3, 6e-3)
    stddev: float = 0.3


def sparse(setting: Setting, sparsity: float) -> Pretrain:
    """Static random masks, as many ones in every matrix."""
    if not sparsity:
        return with_form(setting, Dense(setting.model.initializer_stddev))
    return with_form(setting, Masked(sparsity, stddev=setting.model.initializer_stddev))


@dataclasses.dataclass(frozen=True)
class Stages:
    """What an arm does: the sparsity of its pre-training (None for none at all), and whether the mask is dropped then."""

    sparsity: float | None
    densify: bool = True


STAGES = {
    "dense": Stages(0.0),
    "50 % sparse, then dense": Stages(0.5),
    "75 % sparse, then dense": Stages(0.75),
    "75 % sparse throughout": Stages(0.75, densify=False),
    "not pre-trained": Stages(None),
}
ARMS = {arm: functools.partial(sparse, sparsity=stages.sparsity or 0.0) for arm, stages in STAGES.items()}


def second(setting: Setting, stages: Stages) -> Pretrain:
    """The fine-tuning of an arm."""
    cfg = sparse(setting, 0.0 if stages.densify else stages.sparsity or 0.0)
    data = dataclasses.replace(setting.data, corpora=setting.then)
    return dataclasses.replace(with_steps(cfg, setting.then_steps), data=data)


@functools.lru_cache(maxsize=8)
def pretrained(setting: Setting, sparsity: float, seed: int) -> tuple[Params, float, float]:
    """Parameters, their bits per byte, and the nominal operations they took."""
    cfg = with_embedding(sparse(setting, sparsity), setting.stddev)
    found = proxy.train(cfg, rate=setting.pretraining_rate, init_seed=seed, order_seed=seed)
    return found.params, found.score("report")["bits_per_byte"], found.result.ledger.flops_nominal


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """Both stages; the value is the second one's."""
    stages = STAGES[arm]
    cfg = with_embedding(second(setting, stages), setting.stddev)
    params, first, flops = None, None, 0.0
    if stages.sparsity is not None:
        params, first, flops = pretrained(setting, stages.sparsity, seed)
        if stages.densify and stages.sparsity:
            params = weights.convert(jax.random.key(seed), params, where=BLOCKS, to=Dense())
    found = proxy.score(cfg, rate=point["rate"], init_seed=seed, order_seed=seed, params=params)
    return dataclasses.replace(found, extra=found.extra | {"pretrained": first, "pretraining_flops": flops})


def claim(run: Claim) -> Table:
    """Losses after fine-tuning, and how much of the gap of pre-training is left."""
    table = run.compare(trial, tune={"rate": run.setting.rates}, metric="bits_per_byte")
    table.check_better(
        "dense fine-tuning beats sparse fine-tuning", "75 % sparse, then dense", "75 % sparse throughout"
    )
    table.check_better("sparse pre-training beats none", "75 % sparse, then dense", "not pre-trained")
    before = {arm: table.extras(arm, "pretrained") for arm, stages in STAGES.items() if stages.sparsity is not None}
    for arm in ("50 % sparse, then dense", "75 % sparse, then dense"):
        gap = float(np.mean(np.subtract(before[arm], before["dense"])))
        left = float(np.mean(table.differences("dense", arm)))
        if arm.startswith("75"):
            table.check("share of the gap of pre-training that dense fine-tuning closes, 75 %", 1 - left / gap,
                        "above 0.3", 1 - left / gap > 0.3)  # fmt: skip
        table.note(f"{arm}: {gap:+.4f} bits per byte behind dense after pre-training, {left:+.4f} after fine-tuning.")
    flops = {arm: table.extras(arm, "pretraining_flops")[0] for arm in ("dense", "75 % sparse, then dense")}
    share = flops["75 % sparse, then dense"] / flops["dense"]
    table.note(f"Nominal operations of pre-training at 75 % over dense, head and attention counted dense: {share:.3f}. A "
               "mask of single entries saves no time on matrix units.")  # fmt: skip
    plots.curves(
        run.figure("loss"), table.curves(),
        title="Fine-tuning, every arm at its best rate", x="update", y="nats per byte",
    )  # fmt: skip
    return table


def paper(width: int, layers: int, heads: int, steps: int, batch: int, rate: float) -> Setting:
    """GPT-2 Small and GPT-3 XL as the paper trains them on the Pile: 20 tokens a parameter, sequences of 2048."""
    return Setting(
        pretraining_rate=rate,
        stddev=0.02,
        model=decoder.Config(
            width=width, ffn=4 * width, layers=layers, heads=heads, vocab_size=50_304, norm="layer", norm_eps=1e-5,
            activation="gelu_tanh", rotary_fraction=0.0, learned_positions=2048, bias=True, tied_head=True,
            param_dtype="float32", compute_dtype="bfloat16", remat="full",
        ),
        data=DataConfig(corpora=("default-en",), vocabulary="bpe:50257", sequence_length=2048, batch_size=batch),
        optimizer=AdamConfig(rate=rate, b2=0.95, weight_decay=0.1, clip=1.0, warmup=0.01),
        run=RunConfig(steps=steps, evaluate_every=1000, checkpoint_every=1000),
        mesh=MeshConfig(data=1, fsdp=-1),
    )  # fmt: skip


TINY_FIELDS = byte_level(steps=200)
TINY = Setting(
    then_steps=60, **{**TINY_FIELDS, "data": dataclasses.replace(TINY_FIELDS["data"], corpora=("python-code",))}
)  # fmt: skip
PRESETS = {
    "tiny": TINY,
    "small": dataclasses.replace(TINY, then_steps=150, run=RunConfig(steps=800)),
    "paper_gpt2_small": paper(768, 12, 12, steps=4_800, batch=256, rate=6e-4),
    "paper_gpt3_xl": paper(2048, 24, 16, steps=25_000, batch=512, rate=2e-4),
}

RECIPE = Recipe(
    paper=16,
    name="spdf",
    title="SPDF: sparse pre-training and dense fine-tuning",
    family="weights & optimizers",
    module="jaxpt.weights.masked",
    presets=PRESETS,
    arms=ARMS,
    method="75 % sparse, then dense",
    says="Pre-trained at 75 % sparsity with 2.5 times fewer operations, GPT-3 XL is as good after dense fine-tuning.",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
