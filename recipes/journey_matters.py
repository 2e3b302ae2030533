"""The Journey Matters: the average parameter count of a pruned run predicts its loss (arXiv 2501.12486, paper 48).

Dense until a quarter of the compute, pruned by magnitude in small steps until three quarters, then the final mask:

    python -m recipes.journey_matters claim                      # about 4 minutes on two CPU cores
    python -m recipes.journey_matters claim --preset small       # the committed result
    python -m recipes.journey_matters compile --preset paper_162m --topology v5e:2x4

Claim: a run that ends at sparsity s reaches the loss of a dense model with as many parameters as it had on average over
its tokens, at equal tokens and compute: so the final model, half the size of that dense one at 80 %, comes for free. And
of all phases, 25 % to 75 % of the compute are close to the best. The dense models of equal average and of equal final
size have their widths chosen here; every arm tunes its rate on the same grid.
"""

from __future__ import annotations

import dataclasses
import sys

import numpy as np

from jaxpt import plots, proxy
from jaxpt.comparison import Table, Trial
from jaxpt.models import decoder
from jaxpt.pretrain import Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.training.run import RunConfig
from jaxpt.training.surgery import Prunes
from jaxpt.weights import Dense, Masked, pruning
from jaxpt.weights.pruning import PrunePlan, PruneSchedule
from recipes.common import BLOCKS, byte_level, llama, with_embedding, with_form

TOLERANCE = 0.04 / np.log(2)  # the card's 0.04 nats, in bits
SCHEDULE_TOLERANCE = 0.01 / np.log(2)
SPARSITIES = (0.8, 0.4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Pretrain):
    """A run, how it is pruned, and what is tuned.

    Attributes:
      steps_of_pruning: events between the start and the end of pruning.
      stddev: of the embedding's initial values.
      rates: the grid of peak learning rates.
    """

    steps_of_pruning: int = 50
    stddev: float = 0.3
    rates: tuple[float, ...] = (3e-3, 6e-3)


def schedule(setting: Setting, sparsity: float, start: float = 0.25, end: float = 0.75) -> PruneSchedule:
    """When to prune, in shares of the compute."""
    return PruneSchedule(sparsity, start, end, events=setting.steps_of_pruning)


def prunable(setting: Pretrain) -> int:
    """N0: entries of the matrices of the blocks."""
    cfg = setting.model
    query, pairs = cfg.heads * cfg.per_head, cfg.groups * cfg.per_head
    return cfg.layers * cfg.width * (2 * query + 2 * pairs + 3 * cfg.ffn)


def plan(setting: Setting, sparsity: float) -> PrunePlan:
    """The plan of the method's own schedule, with the average it comes to."""
    data = setting.data
    return pruning.plan(
        schedule(setting, sparsity), prunable(setting), data.sequence_length * data.batch_size, updates=setting.run.steps
    )  # fmt: skip


def dense(setting: Setting) -> Pretrain:
    """The model before it is pruned."""
    return with_form(setting, Dense(setting.model.initializer_stddev))


def dense_of(setting: Setting, size: float) -> Pretrain:
    """A dense model whose matrices have so many entries: the width whose usual feed-forward width fits, then the
    feed-forward width that fits exactly."""
    cfg = setting.model
    ratio = cfg.ffn / cfg.width
    step = 2 * cfg.heads  # whole heads of even size, which rotate
    width = max(step, step * round(np.sqrt(size / cfg.layers / (4 + 3 * ratio)) / step))
    ffn = max(1, round((size / cfg.layers - 4 * width**2) / (3 * width)))
    return dense(dataclasses.replace(setting, model=dataclasses.replace(cfg, width=width, ffn=ffn)))


def pruned(setting: Setting, sparsity: float, start: float = 0.25, end: float = 0.75) -> Pretrain:
    """Pruned to this sparsity between these shares of the compute."""
    cfg = with_form(setting, Masked(0.0, stddev=setting.model.initializer_stddev))
    return dataclasses.replace(cfg, events=(Prunes(schedule(setting, sparsity, start, end), BLOCKS),))


ARMS = {
    "dense": dense,
    "80 %": lambda s: pruned(s, 0.8),
    "80 %, dense of its average size": lambda s: dense_of(s, plan(s, 0.8).average),
    "80 %, dense of its final size": lambda s: dense_of(s, 0.2 * prunable(s)),
    "40 %": lambda s: pruned(s, 0.4),
    "40 %, dense of its average size": lambda s: dense_of(s, plan(s, 0.4).average),
    "40 %, dense of its final size": lambda s: dense_of(s, 0.6 * prunable(s)),
    "80 %, pruned from 0 to 50 %": lambda s: pruned(s, 0.8, 0.0, 0.5),
    "80 %, pruned from 50 to 100 %": lambda s: pruned(s, 0.8, 0.5, 1.0),
}


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """One training run, scored."""
    cfg = with_embedding(ARMS[arm](setting), setting.stddev)
    return proxy.score(cfg, rate=point["rate"], init_seed=seed, order_seed=seed)


def claim(run: Claim) -> Table:
    """Pairs at two sparsities, three schedules, and which count of parameters explains the losses."""
    setting = run.setting
    table = run.compare(trial, tune={"rate": setting.rates}, metric="bits_per_byte")
    for sparsity in SPARSITIES:
        arm = f"{sparsity:.0%}".replace("%", " %")
        apart = float(np.mean(table.differences(arm, f"{arm}, dense of its average size")))
        table.check(
            f"pruned to {arm} reaches a dense model of its average size",
            apart,
            f"within {TOLERANCE:.3f} bits per byte",
            abs(apart) <= TOLERANCE,
        )
        table.check_better(
            f"pruned to {arm} beats a dense model of its final size", arm, f"{arm}, dense of its final size"
        )
    schedules = {arm: table.mean(arm) for arm in ARMS if arm == "80 %" or "pruned from" in arm}
    behind = schedules["80 %"] - min(schedules.values())
    seen = "" if behind <= SCHEDULE_TOLERANCE else ", which is more than the paper's claim allows"
    table.note(
        f"Of three schedules to 80 %, 25 to 75 % of the compute is {behind:.4f} bits per byte behind the best{seen}: "
        + ", ".join(f"{arm} {value:.4f}" for arm, value in schedules.items()) + "."
    )  # fmt: skip
    counts = {arm: _counts(setting, arm) for arm in ARMS if "pruned from" not in arm}
    spread = {name: _residual([c[i] for c in counts.values()], [table.mean(arm) for arm in counts])
              for i, name in enumerate(("initial", "average", "final"))}  # fmt: skip
    table.check(
        "the average size explains the losses better than the initial or the final size: residual",
        spread["average"],
        f"below {spread['initial']:.4f} (initial) and {spread['final']:.4f} (final), bits per byte",
        spread["average"] < min(spread["initial"], spread["final"]),
    )
    averages = ", ".join(f"{s:.0%}: {plan(setting, s).average / prunable(setting):.4f}" for s in SPARSITIES)
    table.note(f"Average over initial size by the plans: {averages}. Operations of pruned runs are nominal: a mask of "
               "single entries saves no time.")  # fmt: skip
    plots.points(
        run.figure("sizes"), {arm: (c[1], table.values(arm)) for arm, c in counts.items()},
        title="Loss against the average number of entries", x="average entries of the blocks' matrices",
        y="bits per byte", log_x=True,
    )  # fmt: skip
    return table


def _counts(setting: Setting, arm: str) -> tuple[float, float, float]:
    """Initial, average and final number of entries of an arm's matrices."""
    cfg = ARMS[arm](setting)
    size = prunable(cfg)
    if not cfg.events:
        return size, size, size
    sparsity = next(event.schedule.s_final for event in cfg.events if isinstance(event, Prunes))
    return size, plan(setting, sparsity).average, (1 - sparsity) * size


def _residual(sizes: list[float], losses: list[float]) -> float:
    """Root mean square around a parabola in log size: what a size leaves unexplained."""
    x = np.log(sizes)
    return float(np.sqrt(np.mean((np.polyval(np.polyfit(x, losses, 2), x) - losses) ** 2)))


def paper(width: int, ffn: int, layers: int, heads: int, steps: int) -> Setting:
    """A LLaMA-2-style model. The paper's shapes, batch and schedule are not public: 10 times 20 tokens a parameter here."""
    fields = llama("60m", steps, steps // 50, clip=1.0)
    model = dataclasses.replace(fields["model"], width=width, ffn=ffn, layers=layers, heads=heads)
    return Setting(stddev=0.02, **{**fields, "model": model})


TINY = Setting(steps_of_pruning=20, **byte_level(steps=200))
PRESETS = {
    "tiny": TINY,
    "small": dataclasses.replace(
        TINY, steps_of_pruning=50, run=RunConfig(steps=600),
        model=decoder.Config(width=128, heads=4, ffn=344, layers=2, initializer_stddev=None, unroll=2),
    ),
    "paper_162m": paper(768, 2048, 20, 12, steps=250_000),
}  # fmt: skip

RECIPE = Recipe(
    paper=48,
    name="journey_matters",
    title="The Journey Matters: average parameter count unifies sparse and dense scaling",
    family="weights & optimizers",
    module="jaxpt.weights.pruning",
    presets=PRESETS,
    arms=ARMS,
    method="80 %",
    says="A pruned run reaches the loss of a dense model of its average size (4 pairs; mean error of the law 0.016).",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
