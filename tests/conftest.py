"""Eight CPU devices for every test, so that meshes are real, and the declared array shapes checked at every call."""

import os
import sys
import types
from importlib.metadata import version

# Child processes inherit the flags; of two that contradict each other the last one counts. Without the fusion emitters
# the CPU's compiler takes 40 % less time, most of what the tests take; after jax 0.10 there is no such switch.
os.environ.setdefault("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
if version("jax").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# JAX must start after the settings above.
import jax
import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

checker = types.ModuleType("jaxpt_type_checker")  # the hook takes a name; an int is a float here, as everywhere
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # type: ignore[attr-defined]
sys.modules[checker.__name__] = checker
# Not jaxpt.weights: its dataclasses hold specs, shapes and shardings as well as the arrays they are declared to hold.
# Not pallas_kernels: operations there check the shapes they are given themselves, and kernels are also given references.
install_import_hook(["jaxpt.layers", "jaxpt.models", "jaxpt.objectives"], f"{checker.__name__}.check")


@pytest.fixture(scope="session")
def one_device() -> dict[str, str]:
    """What a child process's environment needs so that it has one device, as a reader has."""
    return {"XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"}


def pytest_configure(config: pytest.Config) -> None:
    """What one test, worker or child process has compiled serves the others, and the next run of the tests."""
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("programs").resolve()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


LONGEST = ("test_hosts", "test_scaling", "test_sltrain", "test_docs", "test_notebooks", "test_compiled", "test_faults")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (`--dist loadgroup`) the tests of a file stay together, in order: they share fixtures and
    what they have compiled. Files that hold the TPU compiler stay together too, by their own mark. The files that take
    minutes come first, so that no process is left with one of them when the others are done."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
