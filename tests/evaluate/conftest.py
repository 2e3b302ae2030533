"""Compiles quickly instead of well, and lets these tests import `hugging_face_names` of the models' tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request) -> Iterator[None]:
    """These programs run a few times, on tiny arrays, but for the one that trains."""
    if request.module.__name__.endswith("test_grammar_model"):
        yield
        return
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
