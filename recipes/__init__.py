"""One file per paper, named after the method: presets, arms, claim, command line. `python -m recipes` lists them."""

from __future__ import annotations

import importlib
import pkgutil

from jaxpt.recipe import Recipe


def names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - {"__main__", "claims", "common"})


def load(name: str) -> Recipe:
    """The recipe of that name."""
    return importlib.import_module(f"recipes.{name}").RECIPE
