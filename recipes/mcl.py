"""MCL: pretraining as a multi-perspective course learner (arXiv 2305.03981, paper 7).

Three courses in place of ELECTRA's one (tokens replaced, swapped and replaced, inserted), and mistakes that are looked at
again in the same update:

    python -m recipes.mcl claim                     # minutes on two CPU cores
    python -m recipes.mcl claim --preset small      # the committed result
    python -m recipes.mcl compile --preset paper_base --topology v5e:4x4

Claim, of the mechanism. As the generator of ELECTRA learns, fewer tokens are replaced and the discriminator's labels lose
their balance; inserted tokens are all to be found whatever the generator does, and the share of all courses stays up. And
self-correction makes the discriminator err on fewer of the tokens that the generator filled, at equal updates. ELECTRA with
as many operations as MCL is reported beside it. The paper's gain on downstream tasks is not claimed at this size.

Reported, too, and no part of the claim: the soup of courses, the average of the three arms' weights, which began with the
same values and saw the same order; uniform, and greedy by the half of the held-out text that rates are chosen by. It has
the operations of all three runs, and none of its own: trials keep their parameters. The authors' weights are not known.

No training code was released: `jaxpt.objectives.courses` says what is reconstructed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt import plots, proxy
from jaxpt.combine.soups import greedy_soup, soup
from jaxpt.comparison import Point, Table, Trial, TrialStore
from jaxpt.core import spec as specs
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Params
from jaxpt.models import encoder
from jaxpt.models.generator import Generator
from jaxpt.objectives.base import Objective
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.courses import COURSES, Courses
from jaxpt.optim import AdamConfig
from jaxpt.pretrain import DataConfig, Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.sharding import MeshConfig
from jaxpt.training.run import RunConfig
from recipes.common import held_out_batches, keep, kept, operations, with_steps

SUMMED = ("steps", "tokens", "flops_nominal", "flops_executed")  # of runs on the same text that end in one model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Pretrain):
    """A run of the discriminator, and what is tuned.

    Attributes:
      generator: its size, and what it shares.
      rate: share of the tokens that every course touches.
      rates: the grid of peak rates.
    """

    generator: Generator = dataclasses.field(default_factory=lambda: Generator(depth=0.5))
    rate: float = 0.15
    rates: tuple[float, ...] = (1e-3, 3e-3)


def taught(setting: Setting, courses: tuple[str, ...] = COURSES, correct: bool = False) -> Pretrain:
    """The run with these courses; [MASK] is the last id of the model, which no text has."""
    size = setting.model.vocab_size
    masking = Masking(mask_id=size - 1, vocab_size=size, rate=setting.rate, mask=1.0, random=0.0)
    objective = Courses(
        model=setting.model, masking=masking, generator=setting.generator, courses=courses, correct=correct
    )
    return dataclasses.replace(setting, objective=objective)


ARMS: dict[str, Callable[[Setting], Pretrain]] = {
    "ELECTRA": functools.partial(taught, courses=("replaced",)),
    "three courses": taught,
    "MCL": functools.partial(taught, correct=True),
}
LONGER = "ELECTRA, equal operations"
UNIFORM, GREEDY = "soup of courses, uniform", "soup of courses, greedy"
MEASURED = ("wrong", "fakes")
Pool = Mapping[str, tuple[Point, Mapping[int, Trial]]]  # arm -> its best point, seed -> trial there


def longer(setting: Setting) -> Pretrain:
    """ELECTRA with as many operations as MCL, which has several passes an update."""
    electra, mcl = ARMS["ELECTRA"](setting), ARMS["MCL"](setting)
    costs = [operations(run) for run in (mcl, electra)]
    return with_steps(electra, round(setting.run.steps * costs[0] / costs[1]))


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting, folder: Path) -> Trial:
    """One training run, and what its two models do on held-out text, at the start and at the end. Parameters of what may
    be an ingredient are kept in `folder`, that of the trials."""
    cfg = longer(setting) if arm == LONGER else ARMS[arm](setting)

    def look(params: Params) -> dict[str, dict[str, float]]:
        if arm in ARMS:
            keep(kept_at(folder, setting, arm, point, seed), params)
        return looked_at(params, cfg, setting)

    found = proxy.score(cfg, rate=point["rate"], init_seed=seed, order_seed=seed, look=look)
    return judged(found) if "end" in found.extra else found  # it diverged


def judged(found: Trial) -> Trial:
    """By the share of wrong verdicts in ELECTRA's course."""
    value, tuning_value = (found.extra[when]["replaced: wrong"] for when in ("end", "tuning"))
    return dataclasses.replace(found, value=value, tuning_value=tuning_value)


def soup_trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting, folder: Path, pool: Pool) -> Trial:
    """The average of what every arm of the pool has at its own best point, with the operations of all of them."""
    start, runs = time.perf_counter(), {name: trials[seed] for name, (_, trials) in pool.items()}
    if broken := [name for name, run in runs.items() if not math.isfinite(run.value)]:
        return Trial(math.inf, math.inf, {}, [], extra={"diverged": f"no soup without {broken}"})
    given = [ingredient(name, dict(pool[name][0]), seed, setting, folder) for name in runs]
    params, members = soup(given), tuple(range(len(given)))
    if arm == GREEDY:
        score = functools.partial(right, setting=setting)
        params, members, _ = greedy_soup(given, [-run.tuning_value for run in runs.values()], score)
    ledgers = [run.ledger for run in runs.values()]
    ledger = ledgers[0] | {name: sum(one[name] for one in ledgers) for name in SUMMED}
    extra: dict[str, Any] = looked_at(params, ARMS["MCL"](setting), setting)
    extra["members"] = [list(runs)[i] for i in members]
    return judged(Trial(math.nan, math.nan, ledger, [], time.perf_counter() - start, extra))


def right(params: Params, setting: Setting) -> float:
    """What rates are chosen by, the higher the better."""
    return -shares(params, taught(setting, COURSES[:1]).objective, held_out_batches(setting, "tuning"))["wrong"]


def kept_at(folder: Path, setting: Setting, arm: str, point: dict[str, float], seed: int) -> Path:
    """Beside the trial's own file, so that both are of one setting and of one code."""
    return TrialStore(folder, setting).path(arm, tuple(point.items()), seed).with_suffix(".npy")


def ingredient(arm: str, point: dict[str, float], seed: int, setting: Setting, folder: Path) -> Params:
    """What a trial kept; trained again if the file is gone."""
    cfg, path = ARMS[arm](setting), kept_at(folder, setting, arm, point, seed)
    if not path.is_file():
        keep(path, proxy.train(cfg, rate=point["rate"], init_seed=seed, order_seed=seed).params)
    return kept(path, cfg)


def looked_at(params: Params, cfg: Pretrain, setting: Setting) -> dict[str, dict[str, float]]:
    """Shares of replaced tokens, and of wrong verdicts on what the generator filled: in ELECTRA's course, and in all."""
    spec = cfg.objective.on(cfg.model).spec()
    start = specs.init(jax.random.key(0), spec)
    found: dict[str, dict[str, float]] = {"start": {}, "end": {}, "tuning": {}}
    for name, courses in (("replaced", COURSES[:1]), ("all", COURSES)):
        objective = taught(setting, courses).objective
        for when, tree, part in (("start", start, "report"), ("end", params, "report"), ("tuning", params, "tuning")):
            measured = shares(tree, objective, held_out_batches(setting, part))  # type: ignore[arg-type]
            found[when] |= {f"{name}: {key}": value for key, value in measured.items()}
    return found


def shares(params: Params, objective: Objective, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """wrong and fakes of `courses.of_corrupted`, over all batches."""
    counts, total = _counts(objective), dict.fromkeys(MEASURED, np.zeros(2))
    for number, batch in enumerate(batches):
        given = {name: jnp.asarray(x) for name, x in batch.items()}
        for name, pair in counts(params, given, jnp.asarray(number)).items():
            total[name] = total[name] + np.asarray(pair, np.float64)
    return {name: float(part / whole) for name, (part, whole) in total.items()}


@functools.lru_cache(maxsize=4)
def _counts(objective: Objective) -> Callable[..., dict[str, tuple[Array, Array]]]:
    """(parameters, batch, its number) -> sum and count of each of MEASURED; compiled once for all that is looked at."""

    @jax.jit
    def counts(params: Params, batch: dict[str, Array], number: Array) -> dict[str, tuple[Array, Array]]:
        key = fold(jax.random.key(0), number)
        found = objective.loss(params, objective.prepare(key, batch), key).metrics
        return {name: found[name] for name in MEASURED}

    return counts


def claim(run: Claim) -> Table:
    """Equal updates and tokens; then ELECTRA with equal operations."""
    setting = run.setting
    tune, metric = {"rate": setting.rates}, "share of filled tokens judged wrongly"
    one = functools.partial(trial, folder=run.trials)
    table = run.compare(one, tune=tune, metric=metric)
    table.add(run.compare(one, tune=tune, metric=metric, arms=[LONGER]))
    add_soups(table, run, metric)
    fall = [1 - t.extra["end"]["replaced: fakes"] / t.extra["start"]["replaced: fakes"] for t in _of(table, "ELECTRA")]
    table.check("ELECTRA: replaced tokens become fewer by", min(fall), "above 5 %", min(fall) > 0.05)
    share = [t.extra[when]["all: fakes"] for t in _of(table, "MCL") for when in ("start", "end")]
    table.check("three courses: share of replaced tokens", min(share), "at least 0.12", min(share) >= 0.12)
    wrong = {arm: [t.extra["end"]["all: wrong"] for t in _of(table, arm)] for arm in ("three courses", "MCL")}
    gains = [1 - b / a for a, b in zip(*wrong.values(), strict=True)]
    table.check(
        "self-correction: fewer wrong verdicts on filled tokens, by", min(gains), "at least 2 % in all seeds",
        min(gains) >= 0.02,
    )  # fmt: skip
    for name in ("replaced: fakes", "all: fakes", "replaced: wrong", "all: wrong"):
        each = ", ".join(
            f"{arm} {np.mean([t.extra['end'][name] for t in _of(table, arm)]):.3f}" for arm in table.trials
        )
        table.note(f"At the end, {name}: {each}.")
    plots.curves(run.figure("loss"), table.curves(ARMS), title="Training loss; each arm's own", x="update", y="L")
    return table


def add_soups(table: Table, run: Claim, metric: str) -> None:
    """The soups' rows, and what they cost."""
    best = {"rate": (dict(table.points["MCL"])["rate"],)}  # only names the rows: every ingredient has its own best rate
    cook = functools.partial(
        soup_trial, folder=run.trials, pool={arm: (table.points[arm], table.trials[arm]) for arm in ARMS}
    )
    table.add(run.compare(cook, tune=best, metric=metric, arms=[UNIFORM, GREEDY]))
    operations_of = [t.ledger.get("flops_nominal", math.nan) for t in (_of(table, UNIFORM)[0], _of(table, "MCL")[0])]
    members = "; ".join(", ".join(t.extra.get("members", ())) for t in _of(table, GREEDY))
    table.note(
        f"A soup is of {len(ARMS)} runs ({', '.join(ARMS)}, each at its own best rate) with {operations_of[0]:.3g} "
        f"operations, {operations_of[0] / operations_of[1]:.2f} times MCL's. Members of the greedy one, by seed: {members}."
    )


def _of(table: Table, arm: str) -> list[Trial]:
    return [trial for _, trial in sorted(table.trials[arm].items())]


def small(steps: int) -> Setting:
    """Two layers on the source and prose of the Python installation, in 2048 tokens; the generator has one."""
    return Setting(
        model=encoder.Config(
            vocab_size=2176, layers=2, width=96, heads=3, ffn=256, learned_positions=64, token_types=0, rtd_head="token",
            unroll=2, norm_eps=1e-6,
        ),
        data=DataConfig(vocabulary="bpe:2048", sequence_length=64, batch_size=16, evaluation_tokens=32_768),
        optimizer=AdamConfig(b2=0.98, eps=1e-6, weight_decay=0.01, schedule="linear", clip=1.0),
        run=RunConfig(steps=steps),
    )  # fmt: skip


def paper(width: int, layers: int, generator: float) -> Setting:
    """The setting of this family of methods, but for dropout and relative positions: 125,000 updates of 2048 x 512 tokens.

    They train on Wikipedia and BooksCorpus; here default-en unless `data.corpora` says otherwise.
    """
    steps = 125_000
    return Setting(
        model=encoder.Config(
            vocab_size=32_896, layers=layers, width=width, heads=width // 64, ffn=4 * width, rtd_head="token",
            remat="full", compute_dtype="bfloat16",
        ),
        generator=Generator(depth=generator),
        data=DataConfig(
            corpora=("default-en",), vocabulary="bpe:32768", sequence_length=512, batch_size=2048, packing="concatenate"
        ),
        optimizer=AdamConfig(
            rate=5e-4, b2=0.98, eps=1e-6, weight_decay=0.01, clip=1.0, schedule="linear", warmup=10_000 / steps, floor=0.0
        ),
        run=RunConfig(steps=steps, evaluate_every=5000, checkpoint_every=5000),
        mesh=MeshConfig(data=1, fsdp=-1),
        rates=(5e-4,),
    )  # fmt: skip


PRESETS = {
    "tiny": small(200),
    "small": small(800),
    "paper_small": paper(384, 12, 1 / 3),
    "paper_base": paper(768, 12, 1 / 3),
    "paper_large": paper(1024, 24, 1 / 4),
}

RECIPE = Recipe(
    paper=7,
    name="mcl",
    title="MCL: courses of replaced, swapped and inserted tokens, with self-correction",
    family="objectives",
    module="jaxpt.objectives.courses",
    presets=PRESETS,
    arms=ARMS,
    method="MCL",
    says="Three detection courses and self-correction beat ELECTRA at equal steps (2.8 points of GLUE at base size).",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
