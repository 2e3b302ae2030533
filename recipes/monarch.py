"""Monarch matrices: two block-diagonal factors and permutations (arXiv 2204.00595, paper 20).

Every matrix of the blocks is a Monarch matrix with N = 4 blocks, half the parameters of a square dense one and a third of a
feed-forward one; or for nine tenths of the updates only, dense from then on (reverse sparsification, section 3.2):

    python -m recipes.monarch claim                              # about 3 minutes on two CPU cores
    python -m recipes.monarch claim --preset small               # the committed result
    python -m recipes.monarch compile --preset paper_gpt2_medium --topology v5e:4x4

Claim: Monarch trains to a dense model's quality with twice the speed (ViT-B/16 on ImageNet 78.9 against 78.5 with 33M
parameters in place of 87M), and reverse sparsification does on text (GPT-2 Medium on OpenWebText: perplexity 18.0 both).
Three small experiments: language models on text, also against a dense one with no more operations than reverse
sparsification took; vision transformers on digits; and a regression on a planted Monarch matrix. Low rank and
block-diagonal matrices of the same size run beside it, all arms at the better of two rates.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt import plots, proxy, weights
from jaxpt.comparison import Table, Trial
from jaxpt.core import spec as specs
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Float, Params, PRNGKeyArray
from jaxpt.evaluate.images import digits
from jaxpt.layers.block import BlockConfig
from jaxpt.models import decoder, vit
from jaxpt.objectives import image_classification
from jaxpt.objectives.base import Losses
from jaxpt.optim import AdamConfig
from jaxpt.optim.restarts import RampedAdam, Ramps
from jaxpt.pretrain import DataConfig, Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.sharding import MeshConfig
from jaxpt.training.arrays import Fit, make_fit
from jaxpt.training.run import RunConfig
from jaxpt.training.step import Batch
from jaxpt.training.surgery import Switch
from jaxpt.weights import BlockDiagonal, Dense, LowRank, Monarch
from recipes.common import BLOCKS, byte_level, operations, with_embedding, with_optimizer, with_steps

WITHIN = 0.03 / math.log(2)  # nats as bits: how far reverse sparsification may be behind dense
NOISE = 0.01  # of the planted regression, a share of the outputs' standard deviation
EARLY = "dense, reverse's operations"
DIGITS = vit.Config(
    image_size=8, patch_size=2, channels=1, classes=10, pool="mean", width=64, heads=4, ffn=192, layers=4,
    initializer_stddev=None, unroll=4,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Pretrain):
    """A language model's run, the matrices, and the two experiments without text.

    Attributes:
      blocks: N.
      dense_from: share of all updates after which reverse sparsification goes on dense.
      recovery: updates until the rate is back then (100 in full-size runs).
      stddev: of the embedding's initial values.
      rates: the grid of peak rates of all experiments.
      vision: the classifier of digits.
      vision_steps, vision_batch: its updates, and images in one.
      planted: n of the regression on an n x n Monarch matrix.
      planted_steps, planted_rows: its updates, and samples in all.
    """

    blocks: int = 4
    dense_from: float = 0.9
    recovery: int = 100
    stddev: float = 0.02
    rates: tuple[float, ...] = (3e-3, 6e-3)
    vision: vit.Config = DIGITS
    vision_steps: int = 500
    vision_batch: int = 32
    planted: int = 256
    planted_steps: int = 1000
    planted_rows: int = 4096


def rules(kind: str, cfg: BlockConfig, blocks: int) -> weights.Rules:
    """The matrices of the blocks in this form, with Monarch's number of parameters where there is a choice.

    A Monarch matrix has (in + out) min(in, out) / N: exactly those of rank min / N, and nearly those of a block-diagonal one
    with N max / (in + out) blocks.
    """
    narrow, wide = sorted((cfg.width, cfg.ffn))
    if kind == "block-diagonal":
        square, oblong = (max(1, round(blocks * side / (narrow + side))) for side in (narrow, wide))
        return (f"{BLOCKS}/attention", BlockDiagonal(square)), (f"{BLOCKS}/mlp", BlockDiagonal(oblong))
    forms = {
        "dense": Dense(cfg.initializer_stddev),
        "monarch": Monarch(blocks),
        "low rank": LowRank(-(-narrow // blocks)),
    }
    return ((BLOCKS, forms[kind]),)


def of_kind(setting: Setting, kind: str) -> Setting:
    """The language model with matrices of this kind."""
    model = dataclasses.replace(setting.model, weights=rules(kind, setting.model, setting.blocks))
    return dataclasses.replace(setting, model=model)


def reverse(setting: Setting) -> Pretrain:
    """Monarch, then dense: one schedule, moments afresh and a ramp at the switch."""
    ramps = Ramps(at=(setting.dense_from,), recovery_steps=setting.recovery)
    to = Dense(setting.model.initializer_stddev)
    cfg = dataclasses.replace(of_kind(setting, "monarch"), events=(Switch(ramps, where=BLOCKS, to=to),))
    adam = {name: getattr(setting.optimizer, name) for name in ("b1", "b2", "eps", "weight_decay")}
    return with_optimizer(cfg, RampedAdam, ramps=ramps, **adam)


KINDS = ("dense", "monarch", "low rank", "block-diagonal")
ARMS = {kind: functools.partial(of_kind, kind=kind) for kind in KINDS} | {"reverse": reverse}


def dense_early(setting: Setting) -> Pretrain:
    """Dense, with as many updates as reverse sparsification's operations pay for, the schedule ending with them."""
    costs = {}
    for kind in ("dense", "monarch"):
        cfg = of_kind(setting, kind)
        costs[kind] = operations(cfg)
    (switch,) = Ramps(at=(setting.dense_from,)).updates(setting.run.steps)
    spent = switch * costs["monarch"] + (setting.run.steps - switch) * costs["dense"]
    return with_steps(of_kind(setting, "dense"), round(spent / costs["dense"]))


def text_trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """One language model."""
    cfg = with_embedding((ARMS | {EARLY: dense_early})[arm](setting), setting.stddev)
    return proxy.score(cfg, rate=point["rate"], init_seed=seed, order_seed=seed)


@functools.lru_cache(maxsize=4)
def vision(setting: Setting, kind: str) -> tuple[vit.Config, Fit]:
    """A classifier of this kind, and its training."""
    cfg = dataclasses.replace(setting.vision, weights=rules(kind, setting.vision, setting.blocks))

    def loss(params: Params, batch: Batch, key: PRNGKeyArray) -> Losses:
        return image_classification.loss(params, batch, key, cfg)

    return cfg, make_fit(loss, AdamConfig(), setting.vision_steps)


def vision_trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """One classifier of digits: its error on the validation images in points; tuned on a fifth of the others."""
    start = time.perf_counter()
    cfg, fit = vision(setting, arm.removeprefix("digits, "))
    task = digits()
    images, labels = jnp.asarray(task.train)[..., None], jnp.asarray(task.train_labels)
    held, used = np.arange(len(labels)) % 5 == 0, np.arange(len(labels)) % 5 != 0
    params = vit.init(jax.random.key(seed), cfg)
    data = {"images": images[used], "labels": labels[used]}
    found = fit(params, data, batch_size=setting.vision_batch, rate=point["rate"], seed=seed)
    classify = jax.jit(lambda params, images: jax.nn.log_softmax(vit.apply(params, images, cfg)))
    chosen_by = -classify(found.params, images[held])[jnp.arange(held.sum()), labels[held]].mean()
    right = classify(found.params, jnp.asarray(task.validation)[..., None]).argmax(-1) == task.validation_labels
    rows = setting.vision_steps * setting.vision_batch
    spent = {"steps": setting.vision_steps, "tokens": rows, "unique_tokens": min(rows, int(used.sum()))}
    return _trial(100 * (1 - right.mean()), chosen_by, spent, found, start)


@functools.lru_cache(maxsize=4)
def regression(setting: Setting, kind: str) -> tuple[Any, Fit]:
    """An n x n matrix of this kind, and its training."""
    form = rules(kind, BlockConfig(width=setting.planted, ffn=setting.planted), setting.blocks)[0][1]

    def loss(params: Params, batch: Batch, key: PRNGKeyArray) -> Losses:
        sums = jnp.square(params["kernel"].apply(batch["x"]) - batch["y"]).mean(-1)
        return Losses(sums, jnp.ones_like(sums), {})

    spec = {"kernel": form.spec(setting.planted, setting.planted, ("embed", "embed"))}
    return spec, make_fit(loss, AdamConfig(floor=0.0), setting.planted_steps)


def planted(setting: Setting, seed: int, rows: int, part: str) -> Batch:
    """Samples of Y = X M*^T + noise, Y of standard deviation 1, for the seed's Monarch matrix M*."""
    form, n, key = Monarch(setting.blocks), setting.planted, fold(jax.random.key(seed), "planted")
    matrix = specs.init(key, form.spec(n, n, ("embed", "embed"))).dense()
    x = jax.random.normal(fold(key, part, "x"), (rows, n))
    y = x @ (matrix * jnp.sqrt(n / jnp.sum(matrix**2))).T
    return {"x": x, "y": y + NOISE * jax.random.normal(fold(key, part, "noise"), y.shape)}


def regression_trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """One regression: squared error on new samples over the noise's, 1 for M* itself."""
    start = time.perf_counter()
    spec, fit = regression(setting, arm.removeprefix("planted, "))
    params = specs.init(jax.random.key(seed), spec)
    data = planted(setting, seed, setting.planted_rows, "training")
    found = fit(params, data, batch_size=256, rate=point["rate"], seed=seed)

    def error(part: str) -> Float[Array, ""]:
        batch = planted(setting, seed, 1024, part)
        return jnp.mean(jnp.square(found.params["kernel"].apply(batch["x"]) - batch["y"])) / NOISE**2

    spent = {"steps": setting.planted_steps, "tokens": setting.planted_steps * 256}
    return _trial(error("report"), error("tuning"), spent | {"unique_tokens": setting.planted_rows}, found, start)


def _trial(value: Any, tuning: Any, spent: dict[str, int], found: Any, start: float) -> Trial:
    value, tuning = (math.inf if found.diverged else float(x) for x in (value, tuning))
    every = max(1, len(found.losses) // 60)
    curve = [(step + 1, float(loss)) for step, loss in enumerate(found.losses) if step % every == 0]
    used = {name: float(n) for name, n in spent.items()} | {"parameters": float(specs.count(found.params))}
    return Trial(value, tuning, used, curve, time.perf_counter() - start)


def claim(run: Claim) -> Table:
    """Text, then digits and the planted matrix."""
    tune = {"rate": run.setting.rates}
    table = run.compare(text_trial, tune=tune, metric="bits_per_byte")
    table.add(run.compare(text_trial, tune=tune, metric="bits_per_byte", arms=(EARLY,)))
    behind = -float(np.mean(table.differences("reverse", "dense")))
    table.check("reverse sparsification behind dense, equal updates", behind, f"at most {WITHIN:.3f} (0.03 nats)",
                behind <= WITHIN)  # fmt: skip
    table.check_better("reverse sparsification beats all Monarch", "reverse", "monarch")
    table.check_better("reverse sparsification beats dense at equal operations", "reverse", EARLY)
    saved = {arm: next(iter(table.trials[arm].values())).ledger["flops_nominal"] for arm in table.trials}
    table.note(
        f"Operations over dense, head and attention counted: all Monarch {saved['monarch'] / saved['dense']:.3f}, "
        f"reverse sparsification {saved['reverse'] / saved['dense']:.3f}; dense has "
        f"{dense_early(run.setting).run.steps} updates for the latter, not {run.setting.run.steps}."
    )
    gains = [float(np.mean(table.differences("monarch", arm))) for arm in ("low rank", "block-diagonal", "dense")]
    table.note("Monarch on text gains {:+.4f} bits per byte over low rank and {:+.4f} over block-diagonal of its size, "
               "and {:+.4f} over dense.".format(*gains))  # fmt: skip
    _digits(run, table)
    _planted(run, table)
    plots.curves(
        run.figure("loss"), table.curves(ARMS),
        title="Training loss on text, every arm at its best rate", x="update", y="nats per byte",
    )  # fmt: skip
    return table


def _digits(run: Claim, table: Table) -> None:
    arms = {kind: f"digits, {kind}" for kind in KINDS}
    found = run.compare(
        vision_trial, tune={"rate": run.setting.rates}, metric="error in points", arms=tuple(arms.values())
    )  # fmt: skip
    behind = found.mean(arms["monarch"]) - found.mean(arms["dense"])
    table.check("digits: points of accuracy that Monarch is behind dense", behind, "at most 1", behind <= 1)
    found.check_better(
        "digits: points of accuracy of Monarch over block-diagonal", arms["monarch"], arms["block-diagonal"]
    )
    table.checks += found.checks
    table.note(f"Accuracy on digits in points: {_results(found, lambda error: 100 - error)}.")


def _planted(run: Claim, table: Table) -> None:
    arms = ("planted, monarch", "planted, low rank")
    found = run.compare(regression_trial, tune={"rate": run.setting.rates}, metric="error over noise", arms=arms)
    ours, theirs = (max(found.values(arms[0])), min(found.values(arms[1])))
    table.check(
        "planted matrix: Monarch's squared error over the noise's, worst seed", ours, "at most 1.5", ours <= 1.5
    )
    table.check(
        "planted matrix: low rank's over Monarch's, closest seed", theirs / ours, "above 20", theirs > 20 * ours
    )
    table.note(f"Squared error over the noise's on the planted matrix: {_results(found, lambda error: error)}.")


def _results(table: Table, shown: Any) -> str:
    """Arm by arm, with parameters and the chosen rate: what the first table's columns say of its own arms."""
    rows = []
    for arm, trials in table.trials.items():
        size, rate = next(iter(trials.values())).ledger["parameters"], dict(table.points[arm])["rate"]
        rows.append(f"{arm.split(', ')[1]} {shown(table.mean(arm)):.2f} ({size:,.0f} parameters, rate {rate:g})")
    return ", ".join(rows)


SMALL = Setting(stddev=0.3, recovery=10, **byte_level(steps=500))
PRESETS = {
    "tiny": dataclasses.replace(
        SMALL, recovery=3, run=RunConfig(steps=100), vision=dataclasses.replace(DIGITS, layers=2, unroll=2),
        vision_steps=150, planted_steps=400,
    ),
    "small": SMALL,
    "paper_gpt2_medium": Setting(  # OpenWebText, 400,000 updates of 512 x 1024 tokens
        model=decoder.Config(
            width=1024, ffn=4096, layers=24, heads=16, vocab_size=50_304, norm="layer", norm_eps=1e-5,
            activation="gelu_tanh", rotary_fraction=0.0, learned_positions=1024, bias=True, tied_head=True,
            compute_dtype="bfloat16", remat="full",
        ),
        data=DataConfig(corpora=("default-en",), vocabulary="bpe:50257", sequence_length=1024, batch_size=512),
        optimizer=AdamConfig(rate=6e-4, schedule="linear", warmup=0.01, floor=0.0, weight_decay=0.1, clip=1.0),
        run=RunConfig(steps=400_000, evaluate_every=1000, checkpoint_every=1000),
        mesh=MeshConfig(data=1, fsdp=-1),
    ),
}  # fmt: skip

RECIPE = Recipe(
    paper=20,
    name="monarch",
    title="Monarch matrices and reverse sparsification",
    family="weights & optimizers",
    module="jaxpt.weights.monarch",
    presets=PRESETS,
    arms=ARMS,
    method="reverse",
    says="As good as dense with half the operations, from scratch (ViT) or dense for the last tenth (GPT-2 Medium).",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
