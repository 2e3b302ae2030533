"""Importing the package, its models or a recipe loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "seqio", "tensorflow_datasets", "apache_beam", "torch", "transformers", "matplotlib", "sklearn")


@pytest.mark.parametrize(
    "module",
    ["jaxpt", "jaxpt.models", "jaxpt.models.decoder", "jaxpt.pretrain", "jaxpt.data.prepare", "recipes.sltrain"],
)
def test_no_heavy_import(module):
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
