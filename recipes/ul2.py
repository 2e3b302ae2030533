"""One model for many ways of hiding text (UL2: Unifying Language Learning Paradigms, arXiv 2205.05131, paper 37).

One encoder-decoder, one stream of text, one budget. What changes is how a window is cut into inputs and targets: short
spans (R, T5's pretraining), the rest of the window (S, a prefix language model), long or many spans (X), or a mixture of
seven such denoisers whose inputs begin with a mode token:

    python -m recipes.ul2 claim                     # minutes on two CPU cores
    python -m recipes.ul2 claim --preset small      # the committed result
    python -m recipes.ul2 compile --preset paper_20b --topology v5e:16x16

Claim: every specialist is best at its own task and bad at another's; the mixture is near the best at all three. Gate: the
mixture has the smallest regret at its worst task, regret being nats per target token behind the best arm at that task. And
its mode token carries information: with another mode's token it continues text worse.

Judged by the loss on held-out text of each task's denoisers, drawn equally often. Specialists begin with a mode token as
well, the same for every task, so that inputs, operations and parameters of all arms are equal. At windows of 64 tokens UL2's
mean lengths 3, 8 and 64 become 3, 4 and 8 (chosen here). Every arm's rate is tuned on the task that it trains.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import sys
import time
from typing import Any

from jaxpt import plots, proxy
from jaxpt.comparison import Table, Trial
from jaxpt.models import encoder_decoder
from jaxpt.objectives.corruption.denoisers import UL2, Denoiser, Mixture
from jaxpt.objectives.seq2seq_denoising import Seq2SeqDenoising
from jaxpt.optim import AdafactorConfig, AdamConfig
from jaxpt.pretrain import DataConfig, Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.sharding import MeshConfig
from jaxpt.training.run import NonFiniteError, RunConfig
from recipes.common import with_embedding

TASKS = ("R", "S", "X")
METRIC = "nats per target token, mean of three tasks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Pretrain):
    """A run, its mixture, and what is tuned.

    Attributes:
      denoisers: of the mixture; those of a mode are what a specialist trains.
      sentinels: how many; they are the last ids of the model's vocabulary, and the mode tokens come right before them.
      eos_id: of the text's vocabulary.
      rates, stddevs: the grid of peak rates and of the embedding's initial standard deviation.
    """

    denoisers: tuple[Denoiser, ...] = UL2
    sentinels: int = 100
    eos_id: int = 1
    rates: tuple[float, ...] = (3e-3, 6e-3)
    stddevs: tuple[float, ...] = (0.3,)

    def mixture(self, modes: str, tokens: str) -> Seq2SeqDenoising:
        """The denoisers of some modes, equally often; the modes R, S, X have the mode tokens of these names."""
        top = self.model.vocab_size - self.sentinels
        ids = {name: top - len(TASKS) + i for i, name in enumerate(TASKS)}
        named = tuple((mode, ids[token]) for mode, token in zip(TASKS, tokens, strict=True))
        return Seq2SeqDenoising(
            mixture=Mixture(
                denoisers=self.denoisers, modes=named, sentinel=self.model.vocab_size - 1, sentinels=self.sentinels,
                eos_id=self.eos_id, rates=tuple(float(d.mode in modes) for d in self.denoisers),
            )
        )  # fmt: skip


# arm -> the modes it trains, and the tokens that it has for R, S and X
MODES = {"R only": ("R", "RRR"), "S only": ("S", "SSS"), "mixture": ("RSX", "RSX")}
WRONG = "SRX"  # R's token where text is to be continued


def arm(setting: Setting, name: str) -> Pretrain:
    """The run that trains these denoisers."""
    return dataclasses.replace(setting, objective=setting.mixture(*MODES[name]))


ARMS = {name: functools.partial(arm, name=name) for name in MODES}


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """One training run, tuned by what it trains and judged at every task."""
    start = time.perf_counter()
    cfg = with_embedding(ARMS[arm](setting), point["embedding stddev"])
    try:
        trained = proxy.train(cfg, rate=point["rate"], init_seed=seed, order_seed=seed)
    except NonFiniteError as error:
        return Trial(math.inf, math.inf, {}, [], time.perf_counter() - start, {"diverged": str(error)})

    def nats(modes: str, tokens: str) -> float:
        return trained.score("report", setting.mixture(modes, tokens))["loss"]

    tokens = MODES[arm][1]
    found = {task: nats(task, tokens) for task in TASKS}
    if len(set(tokens)) > 1:
        found["S, wrong token"] = nats("S", WRONG)
    return Trial(
        value=statistics.fmean(found[task] for task in TASKS),
        tuning_value=trained.score("tuning")["loss"],
        ledger=trained.result.ledger.to_dict(),
        curve=trained.result.curve,
        seconds=time.perf_counter() - start,
        extra=found,
    )


def regrets(table: Table, seed: int) -> dict[str, float]:
    """Each arm's largest distance, over the tasks, from the arm that is best there."""
    found = {arm: trials[seed].extra for arm, trials in table.trials.items()}
    best = {task: min(of.get(task, math.inf) for of in found.values()) for task in TASKS}
    return {arm: max(of.get(task, math.inf) - best[task] for task in TASKS) for arm, of in found.items()}


def claim(run: Claim) -> Table:
    """Equal updates, tokens and operations."""
    setting = run.setting
    table = run.compare(trial, tune={"rate": setting.rates, "embedding stddev": setting.stddevs}, metric=METRIC)
    table.require_equal("parameters", "tokens", "flops_nominal")
    worst = {seed: regrets(table, seed) for seed in run.seeds}
    wins = sum(min(found, key=lambda arm: found[arm]) == "mixture" for found in worst.values())
    margin = statistics.fmean(min(v for k, v in w.items() if k != "mixture") - w["mixture"] for w in worst.values())
    table.check("regret at the worst task: mixture below either specialist", margin,
                f"above 0 in every seed (in {wins} of {len(worst)})", wins == len(worst))  # fmt: skip
    gain = table.mean_extra("mixture", "S, wrong token") - table.mean_extra("mixture", "S")
    table.check("S: the wrong mode token costs the mixture", gain, "at least 0.02 nat", gain >= 0.02)

    means = {arm: {task: table.mean_extra(arm, task) for task in TASKS} for arm in ARMS}
    for task, other in (("R", "S"), ("S", "R")):
        own, wrong = f"{task} only", f"{other} only"
        table.check(f"{task}: {own} beats {wrong}", means[wrong][task] - means[own][task], "above 0",
                    means[own][task] < means[wrong][task])  # fmt: skip
        share = means["mixture"][task] / means[own][task] - 1
        table.note(f"At {task} the mixture is {share:+.1%} from the specialist in nats (expected within 5 to 10 %).")
    for name, found in means.items():
        table.note(f"{name}: " + ", ".join(f"{task} {value:.3f}" for task, value in found.items()) + " nats.")
    curves = table.curves(ARMS)
    plots.curves(run.figure("loss"), curves, title="Training loss, each arm on what it trains", x="update",
                 y="nats per target token")  # fmt: skip
    return table


SCALED = tuple(
    d if d.mean_length is None else dataclasses.replace(d, mean_length={3.0: 3.0, 8.0: 4.0, 64.0: 8.0}[d.mean_length])
    for d in UL2
)


def miniature(steps: int) -> Setting:
    """Two layers each on the source and prose of the Python installation, in windows of 64 of 2,048 word pieces."""
    return Setting(
        model=encoder_decoder.Config(vocab_size=2176, width=128, heads=4, ffn=256, layers=2, unroll=2),
        data=DataConfig(vocabulary="bpe:2048", sequence_length=64, batch_size=32, evaluation_tokens=32_768),
        optimizer=AdamConfig(clip=1.0),
        run=RunConfig(steps=steps),
        denoisers=SCALED,
        sentinels=16,
    )


def paper(steps: int, batch_size: int, **model: Any) -> Setting:
    """The authors' runs: 512 inputs and targets, Adafactor at 1 / sqrt(max(step, 10^4)), no dropout.

    They train on C4 with T5's vocabulary; here default-en unless `data.corpora` says otherwise.
    """
    return Setting(
        model=encoder_decoder.Config(
            vocab_size=32_128, remat="full", param_dtype="float32", compute_dtype="bfloat16", **model
        ),
        data=DataConfig(
            corpora=("default-en",), vocabulary="sentencepiece:32000", sequence_length=512, batch_size=batch_size
        ),
        optimizer=AdafactorConfig(warmup=10_000 / steps),
        run=RunConfig(steps=steps, evaluate_every=5000, checkpoint_every=5000),
        mesh=MeshConfig(data=1, fsdp=-1),
    )  # fmt: skip


PRESETS = {
    "tiny": dataclasses.replace(miniature(150), rates=(6e-3,)),
    "small": miniature(800),
    "paper_base": paper(500_000, 128, width=768, heads=12, ffn=2048, layers=12),
    "paper_20b": paper(2_000_000, 1024, width=4096, heads=16, head_dim=256, ffn=16_384, layers=32, activation="swiglu"),
}

RECIPE = Recipe(
    paper=37,
    name="ul2",
    title="A mixture of denoisers against span corruption and prefix language modeling",
    family="objectives",
    module="jaxpt.objectives.seq2seq_denoising",
    presets=PRESETS,
    arms=ARMS,
    method="mixture",
    says="A mixture of denoisers beats T5's and GPT's objectives across fine-tuning and one-shot tasks (+43.6 % over T5's).",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
