"""MLM against CLM for encoders, and CLM first, MLM then (Should We Still Pretrain Encoders with MLM?, arXiv 2507.00994,
paper 69).

One decoder architecture, one schedule of warm-up, constant rate and decay over the whole run, one stream of text. What
changes is the mask and the target: next tokens under a causal mask, or 40 % hidden tokens under a full one. Where a run does
both, weights, moments and rate go on at the switch:

    python -m recipes.mlm_vs_clm claim                     # about 3 minutes on two CPU cores
    python -m recipes.mlm_vs_clm claim --preset small      # the committed result, about 20 minutes
    python -m recipes.mlm_vs_clm compile --preset paper_210m --topology v5e:4x4

Claim: with equal updates, a run that begins with CLM reaches the pure MLM run's loss on hidden tokens, or nearly, although
up to half of its updates were causal; and causal updates are worth much more than none: CLM for three quarters and MLM for
the last beats MLM with that last quarter's updates alone. The paper's strict win over pure MLM is reported, not demanded.

Judged by the loss on 15 % of held-out tokens under a full mask, and by a linear probe of mean states: from which package of
the standard library is a window of 64 tokens. Reconstructed: the paper's switch keeps moments and rate (inferred there).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

from jaxpt import plots, proxy
from jaxpt.comparison import Table, Trial
from jaxpt.core.types import Params
from jaxpt.evaluate import probe
from jaxpt.labelled import package
from jaxpt.layers import masks
from jaxpt.models import decoder
from jaxpt.objectives.causal_lm import CausalLM
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.masked_lm import MaskedLM
from jaxpt.objectives.phases import Phases
from jaxpt.optim import AdamConfig
from jaxpt.pretrain import DataConfig, Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.sharding import MeshConfig
from jaxpt.training.run import RunConfig
from recipes.common import with_embedding, with_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Pretrain):
    """A run, and what is tuned.

    Attributes:
      masked: share of hidden tokens in training; all of them become [MASK].
      judged: share of hidden tokens in the evaluation.
      rates, stddevs: the grid of peak rates and of the embedding's initial standard deviation.
    """

    masked: float = 0.4
    judged: float = 0.15
    rates: tuple[float, ...] = (3e-3, 6e-3)
    stddevs: tuple[float, ...] = (0.02, 0.3)


def hidden(setting: Setting, rate: float) -> MaskedLM:
    """MLM; [MASK] is the last id of the vocabulary, which no text has."""
    size = setting.model.vocab_size
    return MaskedLM(masking=Masking(mask_id=size - 1, vocab_size=size, rate=rate, mask=1.0, random=0.0))


def biphasic(setting: Setting, share: float) -> Pretrain:
    """CLM for this share of the updates, MLM for the rest."""
    parts = ((share, CausalLM()), (1 - share, hidden(setting, setting.masked)))
    return dataclasses.replace(setting, objective=Phases(phases=parts))


ARMS = {
    "MLM": functools.partial(biphasic, share=0.0),
    "CLM 25 %": functools.partial(biphasic, share=0.25),
    "CLM 50 %": functools.partial(biphasic, share=0.5),
    "CLM 75 %": functools.partial(biphasic, share=0.75),
    "CLM": functools.partial(biphasic, share=1.0),
}
SHORT = "MLM, a quarter of the updates"


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """One training run, judged on hidden tokens, and probed."""
    cfg = with_steps(ARMS["MLM"](setting), setting.run.steps // 4) if arm == SHORT else ARMS[arm](setting)
    cfg = with_embedding(cfg, point["embedding stddev"])
    return proxy.score(
        cfg, rate=point["rate"], init_seed=seed, order_seed=seed, objective=hidden(setting, setting.judged),
        look=functools.partial(probes, cfg=cfg),
    )  # fmt: skip


def probes(params: Params, cfg: Pretrain) -> dict[str, Any]:
    """Accuracy of a linear probe of mean states under both masks, and of always saying the same."""
    records = cfg.data.open(cfg.model.vocab_size).train
    windows = probe.labelled_windows(records, package, length=64, per_document=8, documents=10)

    def states(mask: masks.Mask) -> probe.States:
        return lambda params, inputs: decoder.hidden_states(params, inputs, cfg.model, mask=mask).final

    found = {
        f"probe {name}": probe.linear_probe(probe.mean_states(params, windows, states(mask)), windows)
        for name, mask in (("full", masks.full(None)), ("causal", masks.causal(None)))
    }
    return found | {"probe majority": windows.majority, "probe labels": len(windows.names)}


def claim(run: Claim) -> Table:
    """Equal updates and tokens; then MLM with a quarter of them."""
    setting = run.setting
    tune = {"rate": setting.rates, "embedding stddev": setting.stddevs}
    table = run.compare(trial, tune=tune, metric="nats per hidden token")
    table.add(run.compare(trial, tune=tune, metric="nats per hidden token", arms=[SHORT]))
    table.check_better("CLM 75 %, MLM 25 % beats the MLM updates alone", "CLM 75 %", SHORT)
    mixed = min(("CLM 25 %", "CLM 50 %"), key=table.mean)
    behind = table.mean(mixed) - table.mean("MLM")
    table.check(f"{mixed} behind MLM, equal updates", behind, "at most 0.02 nat", behind <= 0.02)
    accuracy = {arm: table.mean_extra(arm, "probe full") for arm in [*ARMS, SHORT]}
    best = max(("CLM 25 %", "CLM 50 %", "CLM 75 %"), key=lambda arm: accuracy[arm])
    gain = accuracy[best] - accuracy["MLM"]
    table.check(f"probe: {best} above MLM", gain, "at least -0.005", gain >= -0.005)

    wins = sum(d > 0 for d in table.differences(mixed, "MLM"))
    table.note(f"The paper's win: {mixed} is {-behind:+.4f} nat better than MLM, in {wins} of {len(run.seeds)} seeds.")
    first = next(iter(table.trials["MLM"].values())).extra
    table.note(
        f"Linear probe, {first['probe labels']} packages (majority {first['probe majority']:.3f}), full mask: "
        + ", ".join(f"{arm} {value:.3f}" for arm, value in accuracy.items())
        + f". The CLM run under its own causal mask: {table.mean_extra('CLM', 'probe causal'):.3f}."
    )
    plots.curves(run.figure("loss"), table.curves(ARMS), title="Training loss; it jumps where the target changes",
                 x="update", y="nats per token")  # fmt: skip
    shares = [(share, arm) for share, arm in zip((0, 25, 50, 75, 100), ARMS, strict=True)]
    by_share = [[(share, table.values(arm)[i]) for share, arm in shares] for i in range(len(run.seeds))]
    plots.curves(run.figure("shares"), {"hidden tokens": by_share}, title="Held-out loss on hidden tokens", x="% CLM first",
                 y="nats per hidden token")  # fmt: skip
    return table


def byte_level(steps: int) -> Setting:
    """Two layers on the source and prose of the Python installation, in bytes."""
    return Setting(
        model=decoder.Config(width=96, heads=4, ffn=256, layers=2, initializer_stddev=None, unroll=2, vocab_size=260),
        data=DataConfig(sequence_length=64, batch_size=16, evaluation_tokens=32_768),
        optimizer=AdamConfig(b2=0.95, schedule="constant", cooldown=0.1, clip=1.0),
        run=RunConfig(steps=steps),
    )


def paper(width: int, layers: int, heads: int, ffn: int) -> Setting:
    """The authors' encoders (EuroBERT's architecture): 42,000 updates of 2.4M tokens, the last 2,000 of them decaying.

    They train on FineWeb-Edu; here default-en unless `data.corpora` says otherwise.
    """
    steps, vocabulary = 42_000, 128_256
    return Setting(
        model=decoder.Config(
            width=width, heads=heads, ffn=ffn, layers=layers, vocab_size=vocabulary, remat="full", rotary_base=10_000.0,
            param_dtype="float32", compute_dtype="bfloat16",
        ),
        data=DataConfig(corpora=("default-en",), vocabulary="sentencepiece:32000", sequence_length=2048, batch_size=1152),
        optimizer=AdamConfig(
            rate=5e-4, b2=0.95, eps=1e-5, weight_decay=0.1, clip=1.0, schedule="constant", warmup=2000 / steps,
            cooldown=2000 / steps,
        ),
        run=RunConfig(steps=steps, evaluate_every=1000, checkpoint_every=1000),
        mesh=MeshConfig(data=1, fsdp=-1),
    )  # fmt: skip


PRESETS = {
    "tiny": byte_level(200),
    "small": dataclasses.replace(byte_level(800), rates=(1.5e-3, 3e-3, 6e-3)),
    "paper_210m": paper(768, 12, 12, 3072),
    "paper_610m": paper(1152, 26, 18, 4096),
    "paper_1b": paper(1728, 28, 27, 5120),
}

RECIPE = Recipe(
    paper=69,
    name="mlm_vs_clm",
    title="MLM against CLM for encoders, and both in one run",
    family="objectives",
    module="jaxpt.objectives.phases",
    presets=PRESETS,
    arms=ARMS,
    method="CLM 25 %",
    says="With equal updates, CLM first and MLM then beats pure MLM (12k to 42k updates, best at 25 to 50 % of CLM).",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
