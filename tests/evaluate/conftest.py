"""Compiles quickly instead of well."""

from collections.abc import Iterator

import jax
import pytest


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
