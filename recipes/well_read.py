"""Well-read students learn better: pre-train the small model, too, before it is distilled (arXiv 1908.08962, paper 60).

    pre-training (MLM)  ->  distillation of a fine-tuned teacher on unlabelled windows  ->  fine-tuning on labels

Every baseline is a list of these stages. The task is to tell from which package of the standard library a window of 48
tokens is; 400 windows have labels, thousands have none, and the documents that are tested are in no stage:

    python -m recipes.well_read claim                     # about 3 minutes on two CPU cores
    python -m recipes.well_read claim --preset small      # the committed result, about 15 minutes
    python -m recipes.well_read compile --preset paper_tiny --topology v5e:2x4

Claim: for small models, pre-training and then distillation beats pre-training and fine-tuning, and distillation from random
values, which beats plain fine-tuning. All arms have as many updates of the task, at their best rate; the student's
pre-training, the same for every task, is reported. `train` and `compile` run the first stage of an arm.

Reported beside it, not part of the claim: a student that is not pre-trained and begins with the bottom layers of a deeper
model, as DistilBERT and PKD do. That is the teacher as pre-training left it; where the student is narrower, which cannot
take the teacher's layers, a model of the student's width and the teacher's depth that was pre-trained for as many updates.

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
import time
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
from jaxpt.layers import stack
from jaxpt.models import encoder
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.distillation import MINIATURES, Distillation, cache_teacher
from jaxpt.objectives.masked_lm import MaskedLM
from jaxpt.optim import AdamConfig
from jaxpt.pretrain import Pretrain
from jaxpt.recipe import Claim, Recipe
from jaxpt.sharding import MeshConfig
from jaxpt.stages import Stage, in_a_row, run_stages
from jaxpt.training.checkpoint import restore_params_only
from jaxpt.training.run import RunConfig

Kind = Literal["mlm", "truncated", "distil", "finetune"]
PLANS: dict[str, tuple[Kind, ...]] = {
    "fine-tuning": ("finetune",),
    "pre-training, fine-tuning": ("mlm", "finetune"),
    "distillation": ("distil",),
    "pre-training, distillation": ("mlm", "distil"),
    "truncation, distillation": ("truncated", "distil"),
    "all three": ("mlm", "distil", "finetune"),
}
BEST, TRUNCATED = "pre-training, distillation", "truncation, distillation"
GROUPS = (("fine-tuning", "pre-training, fine-tuning"), ("distillation", BEST, TRUNCATED), ("all three",))


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
    """The stages one after the other, each from what the one before left; every optimizer starts afresh.

    "truncated" is no stage of the student: the next one begins with the parameters of `truncated`.
    """
    own = [kind for kind in kinds if kind != "truncated"]
    return in_a_row({kind: stage(setting, kind) for kind in own}, None if own == list(kinds) else "truncated")


def first_stage(setting: Setting, arm: str) -> Pretrain:
    """What an arm begins with."""
    first = PLANS[arm][0]
    return stage(deep(setting), "mlm") if first == "truncated" else stage(setting, first)


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
    if deep(setting).model != setting.teacher:
        run_stages(pretrained_distillation(("mlm",), deep(setting)), folder / "deep")
    objective = stage(own, "finetune").objective.on(dataclasses.replace(own.model, pooler=True))
    data = opened(own, "transfer")
    for name, inputs in (("tested", data.tested()[0]), ("transfer", data.inputs)):
        write_array(folder / f"{name}.npy", cache_teacher(objective, found["finetune"].state.params, inputs))
    return folder


def deep(setting: Setting) -> Setting:
    """The student's width with the teacher's depth and updates of pre-training: the teacher itself, if that is as wide."""
    model = dataclasses.replace(setting.model, layers=setting.teacher.layers, unroll=setting.teacher.unroll)
    return dataclasses.replace(setting, model=model, mlm_steps=setting.teacher_mlm_steps)


def truncated(setting: Setting, folder: Path) -> Params:
    """What pre-training left in the folder of `teach`: embeddings, and as many of the bottom layers as a student has."""
    run = stage(own := deep(setting), "mlm")
    where = folder / ("runs" if own.model == setting.teacher else "deep") / "mlm"
    params = restore_params_only(where, specs.abstract(run.objective.on(run.model).spec()))
    return stack.bottom(params, setting.model.layers)


def opened(setting: Setting, part: str) -> WindowData:
    """The windows of a part, with gold labels."""
    return dataclasses.replace(setting.data, part=part).open(setting.model.vocab_size)


def taught(setting: Setting) -> Setting:
    """The setting with the number of classes that the text has, and with a teacher's targets."""
    known = dataclasses.replace(setting, classes=len(opened(setting, "labelled").known.names))
    return dataclasses.replace(known, targets=str(teach(known) / "transfer.npy"))


def trial(*, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
    """All stages of an arm; the error rate on tested windows."""
    start, cfg = time.perf_counter(), taught(setting)
    cfg = dataclasses.replace(
        cfg, init_seed=seed, data=dataclasses.replace(cfg.data, seed=seed),
        optimizer=dataclasses.replace(cfg.optimizer, rate=point["rate"]),
    )  # fmt: skip
    teacher = Path(cfg.targets or "").parent
    given = {"truncated": truncated(cfg, teacher)} if "truncated" in PLANS[arm] else {}
    with tempfile.TemporaryDirectory() as folder:
        found = run_stages(pretrained_distillation(PLANS[arm], cfg), folder, given)
    last = found[PLANS[arm][-1]]
    objective = Distillation(model=dataclasses.replace(cfg.model, pooler=True), classes=cfg.classes)
    data, answers = opened(cfg, "labelled"), lambda rows: cache_teacher(objective, last.state.params, rows).argmax(1)
    parts: tuple[Part, ...] = ("report", "tuning")
    value, tuning_value = (float((answers(rows) != labels).mean()) for rows, labels in map(data.tested, parts))
    ours = answers(data.tested()[0])
    theirs = np.load(teacher / "tested.npy").argmax(1)
    extra = {
        "agreement": float((ours == theirs).mean()),
        "teacher error": float((theirs != data.tested()[1]).mean()),
        "majority error": 1 - data.known.majority,
        "pre-training tokens": found["mlm"].ledger.to_dict()["tokens"] if "mlm" in found else 0,
        "classes": cfg.classes,
    }
    seconds = time.perf_counter() - start
    return Trial(value, tuning_value, last.ledger.to_dict(), last.curve, seconds, extra)


def claim(run: Claim) -> Table:
    """Equal updates of the task; labels and transfer windows are different texts, so that arms are compared by group."""
    taught(run.setting)  # trained before there are workers
    how: dict[str, Any] = {"tune": {"rate": run.setting.rates}, "metric": "error rate"}
    table, *others = [run.compare(trial, arms=arms, **how) for arms in GROUPS]
    for other in others:
        table.add(other)
    table.check_better("both beat pre-training and fine-tuning", BEST, "pre-training, fine-tuning")
    table.check_better("both beat distillation from random values", BEST, "distillation")
    table.check_better("both beat plain fine-tuning", BEST, "fine-tuning")
    table.check_better("distillation beats plain fine-tuning", "distillation", "fine-tuning")
    agreement = {arm: table.mean_extra(arm, "agreement") for arm in PLANS}
    more = agreement[BEST] - agreement["distillation"]
    table.check("agreement with the teacher, with pre-training above without", more, "above 0", more > 0)
    first = next(iter(table.trials[BEST].values())).extra
    table.note(
        f"{first['classes']} classes; error of the teacher {first['teacher error']:.3f}, of the most frequent class "
        f"{first['majority error']:.3f}. Agreement with the teacher: "
        + ", ".join(f"{arm} {value:.3f}" for arm, value in agreement.items()) + "."
    )  # fmt: skip
    sizes = [specs.count(encoder.spec(m)) for m in (run.setting.teacher, run.setting.model)]
    table.note(f"Teacher {sizes[0]:,} and student {sizes[1]:,} parameters. Pre-training of the student, "
               f"{first['pre-training tokens']:,.0f} tokens, is not in its ledger: it serves every task.")  # fmt: skip
    gains, whole = table.differences(BEST, TRUNCATED), deep(run.setting)
    table.note(f"Bottom layers of {whole.model.layers}, {whole.model.width} wide and pre-trained for {whole.mlm_steps:,} "
               f"updates, in place of a student's ({run.setting.mlm_steps:,}): error {table.mean(TRUNCATED):.3f}; the "
               f"student's own pre-training is better by {statistics.fmean(gains):+.3f}, in {sum(d > 0 for d in gains)} "
               f"of {len(gains)} seeds.")  # fmt: skip
    return table


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


PAPER = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512)}
PRESETS = {
    "tiny": laptop(48, 96, steps=100, mlm_steps=150, teacher_mlm_steps=250),
    "small": laptop(48, 192, steps=400, mlm_steps=600, teacher_mlm_steps=1200, rates=(1e-3, 3e-3)),
    **{f"paper_{name}": paper(*of) for name, of in PAPER.items()},
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
