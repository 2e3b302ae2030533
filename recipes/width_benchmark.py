"""Where two effects start as models widen: SLTrain at the paper's density, and restarts of low rank (papers 9 and 10).

The papers train widths 512 to 2048 and see both. Of S's 3 % a row has 15 entries at width 512, and 3 at width 96: here both
methods and what they are held against, low rank of equal rank and of equal parameters, run at several widths, each of them
tuned on the same grid by the same rule at every width, on the same text, one number of updates for all:

    python -m recipes.width_benchmark claim                     # two narrow widths, about 3 minutes on two CPU cores
    python -m recipes.width_benchmark claim --preset small      # the committed result, about an hour

Ranks grow with the width (an eighth of it), as the papers' do. Claim: at the largest width that is reached here, SLTrain at
density .03 beats low rank of its number of parameters, and restarts beat low rank without. What the same differences are at
each width, tuned and untuned (every form at one point of the grid), is noted and drawn.

At widths 192 and 288 the lower of the two rates is the best of every form, and for SLTrain at 288 still too high: one of
three seeds breaks away. A third, lower rate is what to add next.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

from jaxpt import plots, proxy
from jaxpt.comparison import Point, Table, Trial, label
from jaxpt.pretrain import Pretrain
from jaxpt.recipe import Claim, Recipe
from recipes import lowrank_restarts, sltrain
from recipes.common import byte_level, with_embedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(sltrain.Setting, lowrank_restarts.Setting):
    """A run at the widest of `widths`; rank, feed-forward and widths of heads are in proportion at the others.

    Attributes:
      widths: ascending.
    """

    widths: tuple[int, ...]


ARMS: dict[str, Callable[[Setting], Pretrain]] = {
    "low rank": sltrain.low_rank,
    "low rank, equal parameters": sltrain.low_rank_matched,
    "sltrain": sltrain.sltrain,
    "restarts": lowrank_restarts.restarts,
    "reset only": lowrank_restarts.reset_only,
}
# what is held against what
PAIRS = {
    "SLTrain, equal parameters": ("sltrain", "low rank, equal parameters"),
    "SLTrain, equal rank": ("sltrain", "low rank"),
    "restarts": ("restarts", "low rank"),
    "reset alone": ("reset only", "low rank"),
}


def at_width(setting: Setting, width: int) -> Setting:
    """The setting with matrices of another width."""

    def scaled(size: int) -> int:
        return size * width // setting.model.width

    model = dataclasses.replace(setting.model, width=width, ffn=scaled(setting.model.ffn))
    return dataclasses.replace(setting, model=model, rank=scaled(setting.rank))


def name(arm: str, width: int) -> str:
    """An arm of the comparison."""
    return f"{arm}, width {width}"


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """One training run, scored."""
    form, width = arm.rsplit(", width ", 1)
    cfg = with_embedding(ARMS[form](at_width(setting, int(width))), point["embedding stddev"])
    return proxy.score(cfg, rate=point["rate"], init_seed=seed, order_seed=seed)


def claim(run: Claim) -> Table:
    """Every form at every width."""
    setting = run.setting
    tune = {"rate": setting.rates, "embedding stddev": setting.stddevs}
    arms = [name(arm, width) for width in setting.widths for arm in ARMS]
    table = run.compare(trial, tune=tune, metric="bits_per_byte", arms=arms)
    widest = setting.widths[-1]
    table.check_better(
        f"SLTrain at density {setting.density:g} beats low rank at equal parameters, width {widest}",
        name("sltrain", widest), name("low rank, equal parameters", widest),
    )  # fmt: skip
    table.check_better(
        f"restarts beat low rank, width {widest}", name("restarts", widest), name("low rank", widest)
    )  # fmt: skip

    gains: dict[str, list[list[tuple[float, float]]]] = {}
    for pair, (arm, baseline) in PAIRS.items():
        found = {w: table.differences(name(arm, w), name(baseline, w)) for w in setting.widths}
        gains[pair] = [[(w, found[w][i]) for w in setting.widths] for i in range(len(run.seeds))]
        tuned = ", ".join(f"{_mean(each):+.4f} at {w} ({_wins(each)})" for w, each in found.items())
        point, untuned = _untuned(table, setting, arm, baseline)
        table.note(
            f"{pair}, bits per byte gained over {baseline}: {tuned}. With both at {label(point)}, one seed: {untuned}."
        )
    plots.curves(run.figure("gain"), gains, title="Gain over low rank by width, every form tuned at every width", x="width",
                 y="bits per byte")  # fmt: skip
    return table


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _wins(values: list[float]) -> str:
    return f"better in {sum(v > 0 for v in values)} of {len(values)}"


def _untuned(table: Table, setting: Setting, arm: str, baseline: str) -> tuple[Point, str]:
    """What somebody sees who takes one setting for all: the first point of the grid."""
    point = next(iter(table.tuning[name(arm, setting.widths[0])]))
    gains = [(w, table.tuning[name(baseline, w)][point] - table.tuning[name(arm, w)][point]) for w in setting.widths]
    return point, ", ".join(f"{gain:+.4f} at {w}" for w, gain in gains)


def preset(widths: tuple[int, ...], steps: int, every: int) -> Setting:
    """A byte-level model of these widths, four heads, factors of rank width/8."""
    fields, widest = byte_level(steps), widths[-1]
    fields["model"] = dataclasses.replace(fields["model"], width=widest, ffn=widest * 8 // 3)
    return Setting(
        widths=widths, rank=widest // 8, density=sltrain.PAPER_DENSITY, every=every, rates=(4e-3, 1.2e-2), **fields
    )  # fmt: skip


PRESETS = {
    "tiny": preset((48, 96), steps=100, every=25),
    "small": preset((48, 96, 192, 288), steps=300, every=40),
}

RECIPE = Recipe(
    paper=10,
    name="width_benchmark",
    title="Where SLTrain at density .03 and restarts of low rank start to gain, by width",
    family="weights & optimizers",
    module="jaxpt.weights.sparse_low_rank",
    presets=PRESETS,
    arms=ARMS,
    method="sltrain",
    says="At widths 512 to 2048, 3 % of sparse entries (paper 9) and restarts (paper 10) lift low rank to full rank's loss.",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
