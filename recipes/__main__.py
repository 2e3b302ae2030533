"""python -m recipes [--json]: every method, its paper, where it lives, how to run it, and what its claim came to."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import recipes
from jaxpt.recipe import Recipe


def main() -> int:
    """Prints the methods table."""
    parser = argparse.ArgumentParser(prog="python -m recipes", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the same as a JSON list")
    options = parser.parse_args()
    found = sorted((recipes.load(name) for name in recipes.names()), key=lambda recipe: recipe.paper)
    if options.json:
        print(json.dumps([described(recipe) for recipe in found], indent=1))
    else:
        show(found)
    return 0


def described(recipe: Recipe) -> dict[str, Any]:
    """One row of the table."""
    return {
        "paper": recipe.paper,
        "name": recipe.name,
        "title": recipe.title,
        "family": recipe.family,
        "module": recipe.module,
        "recipe": f"recipes/{recipe.name}.py",
        "presets": list(recipe.presets),
        "claim": recipe.committed(),
    }


def show(found: list[Recipe]) -> None:
    """The table on a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("paper", "name", "title", "family", "module", "presets", "claim")
    for recipe in found:
        claim = recipe.committed()
        verdict = "not run" if claim is None else claim["verdict"]
        presets = ", ".join(recipe.presets)
        table.add_row(str(recipe.paper), recipe.name, recipe.title, recipe.family, recipe.module, presets, verdict)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
