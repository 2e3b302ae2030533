"""Runs claims and keeps their results: docs/claims/NAME, and the table docs/claims.md over all of them.

scripts/claims                       every recipe, at the preset whose result is kept
scripts/claims sltrain monarch       these
scripts/claims --table               only the table, from the results that are there
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import recipes
from jaxpt import reporting
from jaxpt.core.files import write_text
from jaxpt.recipe import COMMITTED, Recipe


def main() -> int:
    """Runs what was asked for, one claim after the other, two trials at a time; then writes the table."""
    parser = argparse.ArgumentParser(prog="scripts/claims", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes; all of them by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    for name in [] if options.table else options.names or recipes.names():
        recipe = recipes.load(name)
        print(f"{name}: preset {recipe.committed_preset}", flush=True)
        setting = recipe.preset(recipe.committed_preset)
        table = recipe.run_claim(
            recipe.committed_preset,
            setting,
            COMMITTED / name,
            options.seeds,
            options.workers,
            trials=f"runs/{name}/claim",
        )
        print(f"{name}: {table.verdict}", flush=True)
    path = COMMITTED.parent / "claims.md"
    write_text(path, page([recipes.load(name) for name in recipes.names()]))
    print(path.relative_to(COMMITTED.parent.parent))
    return 0


def page(found: list[Recipe]) -> str:
    """docs/claims.md: every method, what its paper claims, what was measured here."""
    rows = [["paper", "method", "the paper's claim", "measured here", "effect, 95 % interval", "result"]]
    for r in sorted(found, key=lambda recipe: recipe.paper):
        rows += [[str(r.paper), r.name, r.says, *_measured(r.name, r.committed())]]
    return "\n\n".join(
        [
            "# Claims",
            "Each method against its tuned baselines at a size that two CPU cores reach. Made by `scripts/claims`.",
            reporting.table(rows),
            "The effect is the first check of the claim, in its own metric, positive in favour of the method; every "
            "check, seed and cost is on the method's page.",
        ]
    ) + "\n"  # fmt: skip


def _measured(name: str, claim: dict[str, Any] | None) -> list[str]:
    if claim is None:
        return ["", "", "not run"]
    first = claim["checks"][0]
    effect = f"{first['value']:+.4f}" if first["value"] is not None else "diverged"
    effect += f", {reporting.interval(first)}" if first["interval"] else ""
    return [f"[{first['what']}](claims/{name}/claim.md)", effect, claim["verdict"]]


if __name__ == "__main__":
    sys.exit(main())
