"""SIGTERM and SIGINT as a question asked between two steps, instead of a death in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax


class Interrupts:
    """`with Interrupts() as stop: ... if stop(t): ...`. A second signal acts as without this.

    On several hosts JAX's own preemption notice answers, so that all of them stop at the same step; SIGINT
    is left alone.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exc: object) -> None:
        for number in list(self._before):
            self._restore(number)

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore(number)

    def _restore(self, number: int) -> None:
        handler = self._before.pop(number, None)
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
