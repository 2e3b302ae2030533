"""Which implementation of an operation runs, and a sentence that says why.

An operation gives two lists of objections per implementation: what makes it impossible ("limit"), and what makes it a bad
choice ("advice"). An implementation that was asked for by name runs unless it is impossible, which is an error; "auto"
takes the kernel of the platform unless there is an objection of either kind, and then XLA.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxpt.core.names import nearest_error
from jaxpt.sharding import platform

OPERATIONS = ("block_sparse", "monarch", "sparse_low_rank")
IMPLEMENTATIONS = ("auto", "reference", "xla", "pallas_tpu", "pallas_gpu")
KERNEL = {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}

Objection = Callable[[str], str | None]  # implementation -> why not, or None


class Choice(NamedTuple):
    """An implementation and the reason it was taken."""

    implementation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.implementation}: {self.reason}"


def choose(operation: str, requested: str, limit: Objection, advice: Objection) -> Choice:
    """The implementation that runs.

    Raises:
      ValueError: an unknown name, or one that cannot run here with these arguments.
    """
    if requested not in IMPLEMENTATIONS:
        raise nearest_error("implementation", requested, IMPLEMENTATIONS)
    here = platform()
    if requested != "auto":
        objection = _elsewhere(requested, here) or limit(requested)
        if objection:
            raise ValueError(f"{operation} cannot run as {requested!r}: {objection}")
        kernel_on_cpu = here == "cpu" and requested.startswith("pallas")
        return Choice(requested, "asked for by name" + (", interpreted on the CPU" if kernel_on_cpu else ""))
    kernel = KERNEL.get(here)
    if kernel is None:
        return Choice("xla", "there is no kernel for the CPU")
    objection = limit(kernel) or advice(kernel)
    return Choice("xla", f"not {kernel}: {objection}") if objection else Choice(kernel, f"the kernel for {here}")


def interpret() -> bool:
    """Whether kernels are to be interpreted: on a CPU that compiles for nothing else."""
    return platform() == "cpu"


def _elsewhere(implementation: str, here: str) -> str | None:
    """Why a kernel of one accelerator cannot run on another. On a CPU both are interpreted."""
    wanted = {kernel: name for name, kernel in KERNEL.items()}.get(implementation)
    return None if wanted is None or here in ("cpu", wanted) else f"this is a {here}, not a {wanted}"


def explain(operation: str, *args: Any, **kwargs: Any) -> Choice:
    """What `implementation` (default "auto") would run for these arguments, and why. Arrays or their shapes will do."""
    if operation not in OPERATIONS:
        raise nearest_error("operation", operation, OPERATIONS)
    return importlib.import_module(f"pallas_kernels.{operation}").choice(*args, **kwargs)
