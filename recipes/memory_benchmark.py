"""Memory-efficient pretraining, all methods side by side (arXiv 2505.22922, GaLore 2403.03507, Fira 2410.01623; paper 10).

Forms of the weights, and optimizers that keep less: one model, one text, one grid of rates and embedding scales for every
arm; loss at equal tokens, and for what needs fewer operations also at equal operations; bytes as compiled; speed.

    python -m recipes.memory_benchmark claim                     # about 6 minutes on two CPU cores
    python -m recipes.memory_benchmark claim --preset small      # the committed result
    python -m recipes.memory_benchmark claim --preset gpu_60m    # the 60M model, on one GPU
    python -m recipes.memory_benchmark compile --preset paper_1b --arm fira --topology v5e:2x4

Claim: full rank with a tuned optimizer is best, updates of high rank (SLTrain, Fira, GaLore) beat pure low rank, Fira
beats GaLore, and GaLore needs new projectors. The change W - W_0 of a trained matrix has rank r with one projector for
the whole run, more with new ones, and full rank with Fira.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxpt import plots, proxy
from jaxpt.comparison import Table, Trial
from jaxpt.core import spec as specs
from jaxpt.core.types import Params
from jaxpt.measure import Measured, measure
from jaxpt.models import decoder
from jaxpt.optim import Adam8bitConfig, FiraConfig, GaloreConfig, RampedAdam, Ramps, RestartSchedule, StableSpamConfig
from jaxpt.pretrain import Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.training.run import RunConfig
from jaxpt.training.surgery import Merges
from jaxpt.weights import Dense, Form, LowRank, Masked, Monarch, ReLoRA, SparseLowRank
from recipes.common import byte_level, llama, operations, with_embedding, with_form, with_optimizer, with_steps

LOOKED_AT = "mlp/up"  # of layer 0: the matrix whose change is ranked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Pretrain):
    """A run, what the methods need, and what is tuned.

    Attributes:
      rank: of factors and projectors.
      density, multiple: of SLTrain's sparse part; its number of values is rounded down to a multiple, which chips share.
      alpha: of low-rank factors; 1 for the scale of B A where it is None.
      blocks: of Monarch matrices.
      sparsity: of the static mask.
      gap: updates between two projectors of GaLore and Fira.
      every, recovery: updates between restarts (and merges), and until the rate is back.
      scale: GaLore's and Fira's, of what comes back from the subspace.
      rates, stddevs: the grid of peak rates and of the embedding's initial standard deviation.
    """

    rank: int = 12
    density: float = 0.15
    multiple: int = 1
    alpha: float | None = None
    blocks: int = 4
    sparsity: float = 0.75
    gap: int = 50
    every: int = 70
    recovery: int = 10
    scale: float = 0.25
    rates: tuple[float, ...] = (4e-3, 1.2e-2)
    stddevs: tuple[float, ...] = (0.02, 0.3)


def full_rank(s: Setting) -> Pretrain:
    """W, Adam."""
    return with_form(s, Dense(s.model.initializer_stddev))


def adam_8bit(s: Setting) -> Pretrain:
    """W, Adam with moments of 8 bits."""
    return with_optimizer(full_rank(s), Adam8bitConfig)


def stable_spam(s: Setting) -> Pretrain:
    """W, Stable-SPAM, its cosine over the whole run and its resets as far apart as the restarts here."""
    return with_optimizer(full_rank(s), StableSpamConfig, total=s.run.steps, gap=s.every)


def galore(s: Setting, gap: int | None = 0) -> Pretrain:
    """W, Adam in a subspace of rank r."""
    gap = s.gap if gap == 0 else gap
    return with_optimizer(full_rank(s), GaloreConfig, rank=s.rank, gap=gap, scale=s.scale, projector=_projector(s))


def galore_frozen(s: Setting) -> Pretrain:
    """The same with the first projector throughout."""
    return galore(s, None)


def fira(s: Setting) -> Pretrain:
    """GaLore and the rest of the gradient, scaled."""
    return with_optimizer(
        full_rank(s), FiraConfig, rank=s.rank, gap=s.gap, alpha=s.scale, projector=_projector(s)
    )  # fmt: skip


def low_rank(s: Setting) -> Pretrain:
    """B A, Adam."""
    return with_form(s, LowRank(s.rank, s.alpha))


def sltrain(s: Setting) -> Pretrain:
    """B A + S, Adam."""
    return with_form(s, SparseLowRank(s.rank, s.density, s.alpha, s.multiple))


def restarted(s: Setting, arm: Callable[[Setting], Pretrain]) -> Pretrain:
    """With balanced factors and fresh moments every so many updates."""
    restarts = RestartSchedule(every=s.every, recovery_steps=s.recovery)
    return dataclasses.replace(with_optimizer(arm(s), RampedAdam, ramps=restarts), events=(restarts,))


def relora(s: Setting) -> Pretrain:
    """W_0 + B A with merges; no full-rank start, as in the papers' tables."""
    ramps = Ramps(every=s.every, recovery_steps=s.recovery)
    cfg = with_form(s, ReLoRA(s.rank, s.alpha, s.model.initializer_stddev))
    return dataclasses.replace(with_optimizer(cfg, RampedAdam, ramps=ramps), events=(Merges(ramps),))


def with_weights(s: Setting, make: Callable[[Setting], Form]) -> Pretrain:
    """Another form, Adam."""
    return with_form(s, make(s))


ARMS: dict[str, Callable[[Setting], Pretrain]] = {
    "full rank": full_rank,
    "adam 8 bit": adam_8bit,
    "stable-spam": stable_spam,
    "galore": galore,
    "galore, one projector": galore_frozen,
    "fira": fira,
    "low rank": low_rank,
    "low rank, restarts": functools.partial(restarted, arm=low_rank),
    "sltrain": sltrain,
    "sltrain, restarts": functools.partial(restarted, arm=sltrain),
    "relora": relora,
    "monarch": functools.partial(with_weights, make=lambda s: Monarch(s.blocks)),
    "masked": functools.partial(with_weights, make=lambda s: Masked(s.sparsity, stddev=s.model.initializer_stddev)),
}
LONGER = ", equal operations"
OF_FEWER_OPERATIONS = ("low rank", "low rank, restarts", "sltrain", "sltrain, restarts", "monarch", "masked")
PROJECTED = ("galore", "galore, one projector", "fira")


def _projector(s: Setting) -> str:
    """By iteration in the papers' sizes, where a singular value decomposition on a TPU is slow and cannot be split."""
    return "svd" if s.model.width <= 1024 else "iterate"


def longer(s: Setting, arm: str) -> Pretrain:
    """The arm with as many updates as full rank's operations pay for."""
    share = operations(ARMS[arm](s)) / operations(full_rank(s))
    return ARMS[arm](with_steps(s, round(s.run.steps / share)))


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """One training run, scored; the first seed of what is projected also ranks the change of a matrix."""
    cfg = longer(setting, arm.removesuffix(LONGER)) if arm.endswith(LONGER) else ARMS[arm](setting)
    cfg = with_embedding(cfg, point["embedding stddev"])
    look = functools.partial(rank_of_change, cfg=cfg, seed=seed) if arm in PROJECTED and seed == 0 else None
    return proxy.score(cfg, rate=point["rate"], init_seed=seed, order_seed=seed, look=look)


def rank_of_change(params: Params, cfg: Pretrain, seed: int) -> dict[str, Any]:
    """Numerical rank of W - W_0, to 1e-4 of its largest singular value."""
    start = specs.init(jax.random.key(seed), decoder.spec(cfg.model))
    w, w0 = (_matrix(p) for p in (params, start))
    values = np.linalg.svd(w - w0, compute_uv=False)
    return {"rank of change": int((values > 1e-4 * values[0]).sum())}


def _matrix(params: Params) -> np.ndarray:
    room, name = LOOKED_AT.split("/")
    return np.asarray(params["blocks"][room][name]["kernel"].w[0], np.float64)


def claim(run: Claim) -> Table:
    """Everything at equal tokens, then what is cheaper at equal operations, then bytes and speed."""
    setting = run.setting
    tune = {"rate": setting.rates, "embedding stddev": setting.stddevs}
    table = run.compare(trial, tune=tune, metric="bits_per_byte")
    for arm in OF_FEWER_OPERATIONS:
        best = {name: (value,) for name, value in table.points[arm]}
        table.add(run.compare(trial, tune=best, metric="bits_per_byte", arms=[arm + LONGER]))
    found = measure({arm: make(setting) for arm, make in ARMS.items()})
    for arm, measured in found.items():
        for each in table.trials[arm].values():
            each.ledger.update({"bytes_peak": measured.peak, "tokens_per_second": measured.tokens_per_second})

    table.check_better("SLTrain beats low rank", "sltrain", "low rank")
    table.check_better("Fira beats low rank", "fira", "low rank")
    table.check_better("GaLore beats low rank", "galore", "low rank")
    table.check_better("Fira beats GaLore", "fira", "galore")
    table.check_better("new projectors beat one", "galore", "galore, one projector")
    ranks = {arm: table.trials[arm][0].extra["rank of change"] for arm in PROJECTED}
    full = min(_shape(setting))
    table.check("rank of W - W_0, one projector", ranks["galore, one projector"], f"= r = {setting.rank}",
                ranks["galore, one projector"] == setting.rank)  # fmt: skip
    table.check("rank of W - W_0, GaLore", ranks["galore"], f"> 2 r = {2 * setting.rank}",
                ranks["galore"] > 2 * setting.rank)  # fmt: skip
    table.check("rank of W - W_0, Fira", ranks["fira"], f"= full = {full}", ranks["fira"] == full)
    order = sorted(ARMS, key=table.mean)
    table.note("Best to worst at equal tokens: " + ", ".join(f"{arm} {table.mean(arm):.4f}" for arm in order) + ".")
    for arm in OF_FEWER_OPERATIONS:
        value, full_value = table.mean(arm + LONGER), table.mean("full rank")
        table.note(f"{arm}, trained for full rank's operations: {value:.4f} against full rank's {full_value:.4f}.")
    table.note("Peak: arguments, results and temporaries of the compiled step. Tokens/s: updates of all arms in turns, on "
               "all cores.")  # fmt: skip
    _draw(run, table, found)
    return table


def _shape(setting: Setting) -> tuple[int, int]:
    return setting.model.width, setting.model.ffn


def _draw(run: Claim, table: Table, found: dict[str, Measured]) -> None:
    plots.points(
        run.figure("pareto"), {arm: (m.persistent / 1e6, table.values(arm)) for arm, m in found.items()},
        title="Loss against memory between updates, equal tokens", x="MB of weights, fixed arrays and optimizer",
        y="bits per byte",
    )  # fmt: skip
    plots.points(
        run.figure("peak"), {arm: (m.peak / 1e6, table.values(arm)) for arm, m in found.items()},
        title="Loss against memory of the compiled step, equal tokens", x="MB at the peak", y="bits per byte",
    )  # fmt: skip
    plots.curves(run.figure("loss"), table.curves(ARMS), title="Training loss, every arm at its best point", x="update",
                 y="nats per byte")  # fmt: skip


def paper(size: str, rank: int, alpha: float, steps: int, warmup: int, **own: Any) -> Setting:
    """The papers' settings: projectors every 200 updates, restarts too."""
    fields = llama(size, steps, warmup)
    return Setting(
        rank=rank, alpha=alpha, **{"density": 0.03, "gap": 200, "every": 200, "stddevs": (0.02,), **own}, **fields
    )


TINY = Setting(every=30, gap=25, **byte_level(steps=150))
GPU = paper("60m", rank=128, alpha=32, steps=1_000, warmup=100)
PRESETS = {
    "tiny": TINY,
    "small": dataclasses.replace(TINY, every=70, gap=50, run=RunConfig(steps=500)),
    "gpu_60m": dataclasses.replace(
        GPU, rates=(1e-3, 4e-3), data=dataclasses.replace(GPU.data, batch_size=128),
        model=dataclasses.replace(GPU.model, remat="none"),
    ),
    "paper_60m": paper("60m", rank=128, alpha=32, steps=11_000, warmup=1_100),
    "paper_130m": paper("130m", rank=256, alpha=16, steps=22_000, warmup=2_200),
    "paper_350m": paper("350m", rank=256, alpha=16, steps=65_000, warmup=6_500),
    "paper_1b": paper("1b", rank=512, alpha=8, steps=140_000, warmup=10_000, scale=0.0625),
    "paper_7b": paper("7b", rank=1024, alpha=8, steps=150_000, warmup=15_000, density=0.05, gap=500, scale=0.0625),
}  # fmt: skip

RECIPE = Recipe(
    paper=10,
    name="memory_benchmark",
    title="Memory-efficient pretraining: forms of weights and optimizers side by side",
    family="weights & optimizers",
    module="jaxpt.optim.galore",
    presets=PRESETS,
    arms=ARMS,
    method="fira",
    says="Tuned full rank is best; SLTrain, Fira and GaLore beat low rank (1B: GaLore 15.57, Fira 15.10).",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
