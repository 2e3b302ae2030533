"""Well-read students learn better: pre-train the small model, too, before it is distilled (arXiv 1908.08962, paper 60).

    pre-training (MLM)  ->  distillation of a fine-tuned teacher on unlabelled windows  ->  fine-tuning on labels

Every baseline is a list of these stages. The task is to tell from which package of the standard library a window of 48
tokens is; 400 windows have labels, thousands have none, and the documents that are tested are in no stage:

    python -m recipes.well_read claim                     # about 3 minutes on two CPU cores
    python -m recipes.well_read claim --preset small      # the committed result
    python -m recipes.well_read compile --preset paper_tiny --topology v5e:2x4

Claim: for small models, pre-training and then distillation beats pre-training and fine-tuning, and distillation from random
values, which beats plain fine-tuning. All arms have as many updates of the task, at their best rate; the student's
pre-training, the same for every task, is reported. `train` and `compile` run the first stage of an arm.

Reconstructed: next sentence prediction is left out; students see the same text as the teacher, as in the paper's ablation.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxpt import comparison
from jaxpt.comparison import Table, Trial
from jaxpt.core import config
from jaxpt.core import spec as specs
from jaxpt.core.files import write_array
from jaxpt.core.names import nearest_error
from jaxpt.core.types import Params
from jaxpt.data.corpora import cache_dir
from jaxpt.data.held_out import Part
from jaxpt.labelled import WindowConfig, WindowData
from jaxpt.models import encoder
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.distillation import MINIATURES, Distillation, cache_teacher
from jaxpt.objectives.masked_lm import MaskedLM
from jaxpt.optim import AdamConfig
from jaxpt.pretrain import Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.sharding import MeshConfig
from jaxpt.stages import Stage, run_stages
from jaxpt.training.run import RunConfig

Kind = Literal["mlm", "distil", "finetune"]
PLANS: dict[str, tuple[Kind, ...]] = {
    "fine-tuning": ("finetune",),
    "pre-training, fine-tuning": ("mlm", "finetune"),
    "distillation": ("distil",),
    "pre-training, distillation": ("mlm", "distil"),
    "all three": ("mlm", "distil", "finetune"),
}
GROUPS = (("fine-tuning", "pre-training, fine-tuning"), ("distillation", "pre-training, distillation"), ("all three",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Pretrain):
    """The student, its teacher, and the stages. `run.steps` are the updates of a task's stage.

    Attributes:
      teacher: the teacher's model.
      classes: of the task.
      mlm_steps, teacher_mlm_steps: updates of pre-training.
      mlm_rate, teacher_rate: of pre-training, and of the teacher's fine-tuning.
      targets: file with the teacher's probabilities of the transfer windows; a claim makes it.
      rates: the grid of the task's peak rates.
    """

    model: encoder.Config
    data: WindowConfig
    teacher: encoder.Config
    classes: int = 16
    mlm_steps: int
    teacher_mlm_steps: int
    mlm_rate: float = 2e-3
    teacher_rate: float = 1e-3
    targets: str | None = None
    rates: tuple[float, ...] = (2e-3,)


def stage(setting: Setting, kind: Kind) -> Pretrain:
    """The run of one stage of the student."""
    if kind not in ("mlm", "distil", "finetune"):
        raise nearest_error("stage", kind, ("mlm", "distil", "finetune"))
    fields: dict[str, Any] = {f.name: getattr(setting, f.name) for f in dataclasses.fields(Pretrain)}
    data = setting.data
    if kind == "mlm":
        size = setting.model.vocab_size
        fields |= {
            "model": dataclasses.replace(setting.model, mlm_head=True, pooler=False),
            "objective": MaskedLM(masking=Masking(mask_id=size - 1, vocab_size=size)),
            "data": dataclasses.replace(data, part="general"),
            "optimizer": dataclasses.replace(setting.optimizer, rate=setting.mlm_rate),
            "run": dataclasses.replace(setting.run, steps=setting.mlm_steps),
        }
    else:
        part, targets = ("transfer", setting.targets) if kind == "distil" else ("labelled", None)
        fields |= {
            "model": dataclasses.replace(setting.model, mlm_head=False, pooler=True),
            "objective": Distillation(classes=setting.classes),
            "data": dataclasses.replace(data, part=part, teacher=targets),
        }
    return Pretrain(**fields)


def pretrained_distillation(kinds: Sequence[Kind], setting: Setting) -> tuple[Stage, ...]:
    """The stages one after the other, each from what the one before left; every optimizer starts afresh."""
    before: list[str | None] = [None, *kinds[:-1]]
    return tuple(Stage(name=k, run=stage(setting, k), start=b) for k, b in zip(kinds, before, strict=True))


def first_stage(setting: Setting, arm: str) -> Pretrain:
    """What an arm begins with."""
    return stage(setting, PLANS[arm][0])


ARMS = {arm: functools.partial(first_stage, arm=arm) for arm in PLANS}


def teach(setting: Setting) -> Path:
    """The folder with the teacher's probabilities, transfer.npy and tested.npy; it is trained on first use, and goes on
    where it was stopped."""
    identity = json.dumps([config.to_dict(setting), comparison.source_hash()], sort_keys=True)
    folder = cache_dir() / "teachers" / f"well_read-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if (folder / "transfer.npy").is_file():
        return folder
    own = dataclasses.replace(
        setting, model=setting.teacher, mlm_steps=setting.teacher_mlm_steps, mlm_rate=setting.teacher_rate,
        optimizer=dataclasses.replace(setting.optimizer, rate=setting.teacher_rate),
    )  # fmt: skip
    found = run_stages(pretrained_distillation(("mlm", "finetune"), own), folder / "runs")
    objective = stage(own, "finetune").objective.on(dataclasses.replace(own.model, pooler=True))
    data = opened(own, "transfer")
    for name, inputs in (("tested", data.tested()[0]), ("transfer", data.inputs)):
        write_array(folder / f"{name}.npy", cache_teacher(objective, found["finetune"].state.params, inputs))
    return folder


def opened(setting: Setting, part: str) -> WindowData:
    """The windows of a part, with gold labels."""
    return dataclasses.replace(setting.data, part=part).open(setting.model.vocab_size)


def taught(setting: Setting) -> Setting:
    """The setting with the number of classes that the text has, and with a teacher's targets."""
    known = dataclasses.replace(setting, classes=len(opened(setting, "labelled").known.names))
    return dataclasses.replace(known, targets=str(teach(known) / "transfer.npy"))


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """All stages of an arm; the error rate on tested windows."""
    cfg = taught(setting)
    cfg = dataclasses.replace(
        cfg, init_seed=seed, data=dataclasses.replace(cfg.data, seed=seed),
        optimizer=dataclasses.replace(cfg.optimizer, rate=point["rate"]),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found = run_stages(pretrained_distillation(PLANS[arm], cfg), folder)
    last = found[PLANS[arm][-1]]
    objective = Distillation(model=dataclasses.replace(cfg.model, pooler=True), classes=cfg.classes)
    data = opened(cfg, "labelled")
    error = {part: 1 - accuracy(objective, last.state.params, data, part) for part in ("report", "tuning")}
    ours = cache_teacher(objective, last.state.params, data.tested()[0]).argmax(1)
    theirs = np.load(Path(cfg.targets or "").parent / "tested.npy").argmax(1)
    extra = {
        "agreement": float((ours == theirs).mean()),
        "teacher error": float((theirs != data.tested()[1]).mean()),
        "majority error": 1 - data.known.majority,
        "pre-training tokens": found["mlm"].ledger.to_dict()["tokens"] if "mlm" in found else 0,
        "classes": cfg.classes,
    }
    return Trial(error["report"], error["tuning"], last.ledger.to_dict(), last.curve, extra=extra)


def accuracy(objective: Distillation, params: Params, data: WindowData, part: Part) -> float:
    """Share of tested windows whose class is told."""
    inputs, labels = data.tested(part)
    return float((cache_teacher(objective, params, inputs).argmax(1) == labels).mean())


def claim(run: Claim) -> Table:
    """Equal updates of the task; labels and transfer windows are different texts, so that arms are compared by group."""
    taught(run.setting)  # trained before there are workers
    tables = [
        run.compare(trial, tune={"rate": run.setting.rates}, metric="error rate", arms=list(arms)) for arms in GROUPS
    ]
    table = tables[0]
    for other in tables[1:]:
        table.add(other)
    best = "pre-training, distillation"
    table.check_better("both beat pre-training and fine-tuning", best, "pre-training, fine-tuning")
    table.check_better("both beat distillation from random values", best, "distillation")
    table.check_better("both beat plain fine-tuning", best, "fine-tuning")
    table.check_better("distillation beats plain fine-tuning", "distillation", "fine-tuning")
    agreement = {arm: _mean(table, arm, "agreement") for arm in PLANS}
    more = agreement[best] - agreement["distillation"]
    table.check("agreement with the teacher, with pre-training above without", more, "above 0", more > 0)
    first = next(iter(table.trials[best].values())).extra
    table.note(
        f"{first['classes']} classes; error of the teacher {first['teacher error']:.3f}, of the most frequent class "
        f"{first['majority error']:.3f}. Agreement with the teacher: "
        + ", ".join(f"{arm} {value:.3f}" for arm, value in agreement.items()) + "."
    )  # fmt: skip
    sizes = [specs.count(encoder.spec(m)) for m in (run.setting.teacher, run.setting.model)]
    table.note(f"Teacher {sizes[0]:,} and student {sizes[1]:,} parameters. Pre-training of the student, "
               f"{first['pre-training tokens']:,.0f} tokens, is not in its ledger: it serves every task.")  # fmt: skip
    return table


def _mean(table: Table, arm: str, name: str) -> float:
    return statistics.fmean(t.extra[name] for t in table.trials[arm].values())


def laptop(width: int, teacher: int, steps: int, mlm_steps: int, **own: Any) -> Setting:
    """A student of two layers and a teacher of three, on the source of the standard library."""
    shared: dict[str, Any] = {"vocab_size": 2176, "learned_positions": 64, "token_types": 0, "norm_eps": 1e-6}
    return Setting(
        model=encoder.Config(layers=2, width=width, heads=4, ffn=4 * width, unroll=2, **shared),
        teacher=encoder.Config(layers=3, width=teacher, heads=4, ffn=4 * teacher, unroll=3, **shared),
        data=WindowConfig(batch_size=32),
        optimizer=AdamConfig(clip=1.0, weight_decay=0.01),
        run=RunConfig(steps=steps, quiet=True, tensorboard=False),
        mlm_steps=mlm_steps,
        **own,
    )


def paper(layers: int, width: int) -> Setting:
    """BERT's pre-training of a miniature; the teacher is BERT-Large. They train on BooksCorpus and Wikipedia, here
    default-en."""
    steps = 1_000_000
    return Setting(
        model=MINIATURES[layers, width],
        teacher=encoder.Config(vocab_size=30_522, layers=24, width=1024, heads=16, ffn=4096, remat="full"),
        data=WindowConfig(
            corpora=("default-en",), vocabulary="sentencepiece:30000", sequence_length=512, batch_size=256
        ),
        optimizer=AdamConfig(rate=1e-4, weight_decay=0.01, warmup=0.1, schedule="linear", floor=0.0, clip=1.0),
        run=RunConfig(steps=20_000, evaluate_every=1000, checkpoint_every=1000),
        mesh=MeshConfig(data=1, fsdp=-1),
        mlm_steps=steps,
        teacher_mlm_steps=steps,
        mlm_rate=1e-4,
        teacher_rate=1e-4,
        rates=(3e-4, 1e-4, 5e-5, 3e-5),
    )


PRESETS = {
    "tiny": laptop(48, 96, steps=100, mlm_steps=150, teacher_mlm_steps=250),
    "small": laptop(48, 192, steps=400, mlm_steps=600, teacher_mlm_steps=1200, rates=(1e-3, 3e-3)),
    "paper_tiny": paper(2, 128),
    "paper_mini": paper(4, 256),
    "paper_small": paper(4, 512),
    "paper_medium": paper(8, 512),
}

RECIPE = Recipe(
    paper=60,
    name="well_read",
    title="Well-read students: pre-trained distillation",
    family="distillation",
    module="jaxpt.objectives.distillation",
    presets=PRESETS,
    arms=ARMS,
    method="pre-training, distillation",
    says="A small model that is pre-trained and then distilled beats one that is only one of the two.",
    claim=claim,
    committed_preset="small",
)

if __name__ == "__main__":
    sys.exit(RECIPE.main())
