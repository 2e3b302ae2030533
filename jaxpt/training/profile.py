"""A trace of some updates for XProf and TensorBoard: `RunConfig(profile="10:12")` -> OUT/profile.

    tensorboard --logdir OUT/profile         (with `pip install xprof tensorboard`), tab "Profile"

Process 0 alone writes. Updates appear as steps named "train".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import jax

from jaxpt.training.run import profile_window

FOLDER = "profile"


class Trace:
    """The trace of a window of updates.

    Args:
      window: "START:END", both included; None for no trace. What a resumed run has behind it is not traced.
      out: the run's folder.
    """

    def __init__(self, window: str | None, out: str | None) -> None:
        self._window = None if window is None or jax.process_index() else profile_window(window)
        self._folder, self._running = Path(str(out)) / FOLDER, False

    def before(self, update: int, wait: Callable[[], None]) -> AbstractContextManager[object]:
        """Starts the trace if it is time, after `wait` for earlier updates; the context for sending this one."""
        if self._window is not None and not self._running and self._window[0] <= update <= self._window[1]:
            wait()
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=update)

    def after(self, update: int, wait: Callable[[], None]) -> None:
        """Ends the trace after its last update, once the device is done with it."""
        if self._running and self._window is not None and update >= self._window[1]:
            wait()
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self._running:
            jax.profiler.stop_trace()
            self._running, self._window = False, None
