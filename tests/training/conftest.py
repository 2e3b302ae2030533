"""Lets the tests of this folder import `tiny_run`, which is also a program of its own; quick compilation."""

import sys
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tiny_run


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    """Compiles without most optimizations, in half the time, but where runs are compared bit for bit."""
    tiny_run.build.cache_clear()  # what another file has compiled otherwise
    jax.clear_caches()
    if request.module.__name__.endswith("test_faults"):
        yield
        return
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
