"""What a recipe is: a paper's presets, its claim, and one command line for all of them.

    RECIPE = Recipe(paper=9, name="sltrain", ..., presets={"tiny": TINY}, arms=ARMS, claim=claim)
    if __name__ == "__main__":
        sys.exit(RECIPE.main())

What a user types:

    python -m recipes.NAME claim   [--preset P] [--seeds N] [--workers N] [--out DIR] [key=value ...]
    python -m recipes.NAME train   [--preset P] [--arm A] [--out DIR] [key=value ...]
    python -m recipes.NAME compile [--preset P] [--arm A] --topology v5e:4x8 [--suggest] [key=value ...]
    python -m recipes.NAME presets [--preset P]

Keys are dotted fields of the preset; one that does not exist is an error that names the nearest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpt import comparison, reporting
from jaxpt.comparison import Table, Trial
from jaxpt.core import config
from jaxpt.core.files import write_json, write_text
from jaxpt.core.names import nearest_error
from jaxpt.core.processes import restart_with_huge_pages
from jaxpt.data.prepare import prepared
from jaxpt.objectives.phases import last
from jaxpt.pretrain import Pretrain
from jaxpt.sharding import aot, distributed

COMMITTED = Path(__file__).resolve().parent.parent / "docs" / "claims"

Arm = Callable[[Any], Pretrain]  # a preset -> the run of this arm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One paper.

    Attributes:
      paper: number of the paper in the methods table.
      name: of the method and of the file in recipes/.
      family: "weights & optimizers", ...
      module: where the method is implemented.
      presets: name -> frozen dataclass of settings; "tiny" runs on two CPU cores in minutes.
      arms: name -> preset -> run. The first one is the baseline, `method` the paper's.
      says: what the paper claims, in one sentence.
      claim: carries out the comparison, with `Claim.compare`, and adds the checks; the first is the main one.
      committed_preset: the preset whose result is kept in docs/claims.
    """

    paper: int
    name: str
    title: str
    family: str
    module: str
    presets: Mapping[str, Any]
    arms: Mapping[str, Arm]
    method: str
    says: str
    claim: Callable[[Claim], Table]
    committed_preset: str = "tiny"

    def preset(self, name: str, changes: Mapping[str, Any] | None = None) -> Any:
        """A preset by name, with dotted keys replaced."""
        if name not in self.presets:
            raise nearest_error(f"preset of {self.name}", name, self.presets)
        return config.override(self.presets[name], changes or {})

    def arm(self, name: str) -> Arm:
        """An arm by name."""
        if name not in self.arms:
            raise nearest_error(f"arm of {self.name}", name, self.arms)
        return self.arms[name]

    def committed(self) -> dict[str, Any] | None:
        """The result of the claim that is in the repository, or None."""
        path = COMMITTED / self.name / "claim.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def run_claim(
        self,
        preset: str,
        setting: Any,
        folder: Path,
        seeds: int = 3,
        workers: int = 2,
        trials: str | Path | None = None,
    ) -> Table:
        """Carries out the claim; writes claim.json, claim.md and the figures to `folder`.

        Args:
          trials: where finished trials are kept; `folder` by default.
        """
        for make in self.arms.values():  # before there are workers, so that none prepares what another prepares
            if (task := make(setting).data.task) is not None:
                prepared(task)
        start = time.monotonic()
        claim = Claim(self, preset, setting, Path(folder), Path(trials or folder), tuple(range(seeds)), workers)
        table = self.claim(claim)
        seconds = time.monotonic() - start
        found = comparison.summary(table, name=self.name, paper=self.paper, setting=setting, seconds=seconds)
        found |= {"preset": preset, "figures": [path.name for path in claim.figures]}
        write_json(claim.folder / "claim.json", found)
        write_text(claim.folder / "claim.md", reporting.markdown(found, self.title))
        return table

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """The command line; a user's mistake is one line on stderr and exit code 2."""
        parser = _parser(self)
        options, rest = parser.parse_known_args(arguments)
        if arguments is None and options.run is _train:
            restart_with_huge_pages()
        try:
            return options.run(self, options, config.parse_overrides(rest))
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            notes = " ".join(getattr(error, "__notes__", ()))
            print(f"error: {' '.join(f'{error} {notes}'.split())}", file=sys.stderr)
            return 2


@dataclasses.dataclass
class Claim:
    """What `Recipe.claim` is given: the setting, and the referee.

    Attributes:
      seeds: the first is the one that hyperparameters are tuned with.
      folder: of the results.
      trials: finished trials are kept in it, and a killed claim goes on from them.
    """

    recipe: Recipe
    preset: str
    setting: Any
    folder: Path
    trials: Path
    seeds: tuple[int, ...]
    workers: int
    figures: list[Path] = dataclasses.field(default_factory=list)

    def compare(
        self,
        trial: Callable[..., Trial],
        *,
        tune: Mapping[str, Sequence[float]],
        metric: str,
        arms: Sequence[str] | None = None,
    ) -> Table:
        """All arms (or some) under one budget, each at the point that serves it best; see `comparison.compare`."""
        return comparison.compare(
            trial,
            tuple(self.recipe.arms) if arms is None else arms,
            tune=tune,
            seeds=self.seeds,
            metric=metric,
            folder=self.trials,
            setting=self.setting,
            workers=self.workers,
        )

    def figure(self, name: str) -> Path:
        """Where to draw a figure that belongs to the report."""
        path = self.folder / f"{name}.png"
        self.figures.append(path)
        return path


def _parser(recipe: Recipe) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m recipes.{recipe.name}",
        description=recipe.title,
        epilog="Settings are changed by dotted keys: model.width=128 optimizer.rate=1e-3. An unknown key is an error.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="claim|train|compile|presets")

    claim = commands.add_parser("claim", help="the small experiment against its tuned baselines", allow_abbrev=False)
    claim.add_argument("--preset", default="tiny", help=f"one of {', '.join(recipe.presets)}")
    claim.add_argument("--seeds", type=int, default=3, help="runs of every arm at its best point")
    claim.add_argument("--workers", type=int, default=2, help="trials at a time, one core each")
    claim.add_argument("--out", type=Path, help=f"folder of the results (runs/{recipe.name}/claim-PRESET)")
    claim.set_defaults(run=_claim)

    train = commands.add_parser("train", help="one run; typed again, it goes on where it stopped", allow_abbrev=False)
    train.add_argument("--preset", default="tiny", help=f"one of {', '.join(recipe.presets)}")
    train.add_argument("--arm", default=recipe.method, help=f"one of {', '.join(map(repr, recipe.arms))}")
    train.add_argument("--out", type=Path, help=f"folder of the run (runs/{recipe.name}/PRESET-ARM)")
    distributed.add_arguments(train)
    train.set_defaults(run=_train)

    ahead = commands.add_parser("compile", help="the training step for a TPU slice, without one", allow_abbrev=False)
    ahead.add_argument("--preset", default="tiny", help=f"one of {', '.join(recipe.presets)}")
    ahead.add_argument("--arm", default=recipe.method, help=f"one of {', '.join(map(repr, recipe.arms))}")
    aot.add_arguments(ahead)
    ahead.set_defaults(run=_compile)

    presets = commands.add_parser("presets", help="the resolved settings as JSON", allow_abbrev=False)
    presets.add_argument("--preset", help="only this one")
    presets.set_defaults(run=_presets)
    return parser


def _claim(recipe: Recipe, options: argparse.Namespace, changes: Mapping[str, str]) -> int:
    if options.seeds < 1 or options.workers < 0:
        raise ValueError(f"need --seeds >= 1 and --workers >= 0, got {options.seeds} and {options.workers}")
    setting = recipe.preset(options.preset, changes)
    folder = options.out or Path("runs") / recipe.name / f"claim-{options.preset}"
    recipe.run_claim(options.preset, setting, folder, options.seeds, options.workers)
    reporting.show(json.loads((folder / "claim.json").read_text()), recipe.title)
    print(f"report: {folder / 'claim.md'}")
    return 0


def _train(recipe: Recipe, options: argparse.Namespace, changes: Mapping[str, str]) -> int:
    from jaxpt import pretrain

    distributed.initialize(options.coordinator, options.num_processes, options.process_id)
    setting = recipe.preset(options.preset, changes)
    folder = options.out or Path("runs") / recipe.name / f"{options.preset}-{reporting.slug(options.arm)}"
    result = pretrain.run(pretrain.at(recipe.arm(options.arm)(setting), folder))
    for name, value in {**result.ledger.to_dict(), **(result.evaluation or {})}.items():
        print(f"{name:28s} {value:,.4f}" if isinstance(value, float) else f"{name:28s} {value:,}")
    print(f"files: {folder}   curves: tensorboard --logdir {folder / 'tensorboard'}")
    return 0


def _compile(recipe: Recipe, options: argparse.Namespace, changes: Mapping[str, str]) -> int:
    cfg = recipe.arm(options.arm)(recipe.preset(options.preset, changes))
    job = aot.Job(
        cfg.model,
        cfg.optimizer.make(cfg.run.steps),
        batch=cfg.data.batch_size,
        length=cfg.data.sequence_length,
        accumulate=cfg.accumulate,
        clip=cfg.optimizer.clip,
        mesh=cfg.mesh,
        name=f"{recipe.name} {options.preset}, {options.arm}",
        objective=last(cfg.objective),
        shapes=cfg.data.batch_shapes,
    )
    return aot.run(options, job)


def _presets(recipe: Recipe, options: argparse.Namespace, changes: Mapping[str, str]) -> int:
    names = recipe.presets if options.preset is None else (options.preset,)
    print(json.dumps({name: config.to_dict(recipe.preset(name, changes)) for name in names}, indent=1))
    return 0
