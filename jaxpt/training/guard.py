"""The guard: a thread in every process that ends a run which can no longer go on, and says why.

What a collective operation does when another host has died is to wait, for ever or until some library gives up with a
message about sockets. So every process tells the coordination service every second or two where it is (step, and what it is
doing), process 0 looks whether all of them still do, and the first reason to stop ends all:

  a process stops with an error            the others name it, its host, its step and the error; exit code 1
  a process gives no sign of life          killed, or its machine is gone or frozen; exit code 75
  the watchdog: no progress for too long   the stacks of all threads of all processes; exit code 75

Exit code 75 (EX_TEMPFAIL) means that the same command may be started again as it is. The watchdog also works alone.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax

from jaxpt.sharding.distributed import coordination, coordinator_address, on_abort

AGAIN = 75
COMPUTING = "computing an update"
HOST_WATCHDOG = 3600.0  # seconds, on several processes, where none are given
_runs = 0


class Guard:
    """`with Guard(...) as guard: ... guard.at(step, "evaluating") ...`.

    Args:
      watchdog: seconds without a call of `at` after which everything ends; None for never on one process, an
        hour on several; 0 for never.
      peer_timeout: seconds without a sign of life from another process.
      advice: what to type next, to end every message with.
    """

    def __init__(self, watchdog: float | None, peer_timeout: float, advice: Callable[[], str]) -> None:
        global _runs
        _runs += 1  # the same on all processes: they run the same program
        self.index, self.count = jax.process_index(), jax.process_count()
        self._client: Any = coordination() if self.count > 1 else None
        self._watchdog = (HOST_WATCHDOG if self.count > 1 else 0.0) if watchdog is None else watchdog
        self._peer_timeout, self._advice, self._prefix = peer_timeout, advice, f"jaxpt/run{_runs}"
        self._period = min(2.0, peer_timeout / 4, self._watchdog / 4 if self._watchdog else 2.0)
        self._beat = 0
        self.at(0, "starting")
        self._last: dict[str, bool] = {}  # "done" or "left": the last word of this process
        self._heard: dict[int, tuple[dict[str, Any], float]] = {}
        self._stop, self._failed = threading.Event(), 0.0
        self._cause = False  # whether this process's error is the reason that all stop
        self._thread = threading.Thread(target=self._watch, name="jaxpt-guard", daemon=True)

    def __enter__(self) -> Guard:
        if self._client is not None or self._watchdog:
            if self._client is not None and self.index > 0:
                on_abort(self._explain)  # JAX aborts at once when process 0, the coordinator, is gone
            self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._client is not None:
            self._fail(error)  # the thread goes on: it ends this process if it cannot end by itself
            return
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._client is not None:
            self._last["done"] = True
            self._tell()
            on_abort(None)

    def at(self, step: int, doing: str, patience: float = 1.0) -> None:
        """The main thread makes progress: after update `step`, it now does this, for which it has `patience` times as
        long as usual."""
        self._step, self._doing, self._moved, self._patience = step, doing, time.monotonic(), patience

    def _fail(self, error: BaseException) -> None:
        """This process ends with an error: tells the others, or learns from them what has caused it."""
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            # Mostly another one's fault; the thread ends us if so.
            self._say(f"lost contact ({_line(error)[:160]}); looking for the cause, at most {self._peer_timeout:.0f} s")
            time.sleep(1.5 * self._peer_timeout + 4 * self._period)
        self._failed = time.monotonic()
        self._cause = self._end(f"{self._name(self._me())} stopped after step {self._step}: {_line(error)}", code=1)
        error.add_note(self._advice())
        if self.index == 0:
            self._wait_for_others()
        atexit.register(self._exit)  # runs before JAX's own, which would wait for the others

    def _watch(self) -> None:
        silent = 0
        while not self._stop.wait(self._period):
            if self._watchdog:
                # If even this thread cannot run, because something holds the interpreter, this prints and exits.
                faulthandler.dump_traceback_later(self._watchdog * self._patience + 60, exit=True, file=_stderr())
            if self._client is not None:
                try:
                    self._tell()
                    self._look()
                    silent = 0
                except jax.errors.JaxRuntimeError as error:
                    silent += 1
                    if silent * self._period > self._peer_timeout:
                        self._leave(f"the coordinator {coordinator_address()} no longer answers: {_line(error)}", AGAIN)
            if self._failed and time.monotonic() - self._failed > 2 * self._peer_timeout:
                os._exit(1)  # some library's thread, waiting for the others, keeps the interpreter from ending
            still = time.monotonic() - self._moved
            if self._watchdog and still > self._watchdog * self._patience and not self._failed:
                self._hung()
        if self._watchdog:
            faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        """Whether another process has ended the run; on process 0, whether all are there."""
        ended = self._ended()
        if ended is not None:
            self._obey(ended)
        if self.index == 0 and not self._failed:
            self._listen()
            for i, (told, since) in self._heard.items():
                silent = time.monotonic() - since
                if not told.get("done") and silent > self._peer_timeout:
                    self._end(
                        f"{self._name(told, i)} has given no sign of life for {silent:.0f} s: it was killed, or its "
                        f"machine is gone or frozen; last heard of after step {told['step']}, {told['doing']}",
                        code=AGAIN,
                    )
                    self._obey(self._ended() or {})

    def _listen(self) -> None:
        for key, text in self._client.key_value_dir_get(f"{self._prefix}/alive/"):
            i, told = int(key.rpartition("/")[2]), json.loads(text)
            if i not in self._heard or self._heard[i][0] != told:
                self._heard[i] = (told, time.monotonic())

    def _obey(self, ended: dict[str, Any]) -> None:
        """Another process, or this thread, has ended the run."""
        mine = ended.get("by") == self.index
        if self._failed or not ended or (mine and ended["code"] != AGAIN):
            return
        if ended["code"] != AGAIN:  # an error, which the main thread may be about to raise too
            self._stop.wait(min(5.0, self._peer_timeout))
            if self._failed or self._stop.is_set():
                return
        if ended.get("stacks"):
            self._dump()
        self._leave(ended["message"], ended["code"])

    def _hung(self) -> None:
        stuck = (
            f"no progress for {time.monotonic() - self._moved:.0f} s (watchdog): after step {self._step}, {self._doing}"
        )
        if self._client is None:
            self._dump()
            self._leave(stuck, AGAIN)
        self._listen()
        others = sorted(self._heard.items())
        lines = [f"{self._name(told, i)}: after step {told['step']}, {told['doing']}" for i, (told, _) in others]
        # At the same step, those that compute wait for one that does something else.
        places = {i: (told["step"], told["doing"] == COMPUTING) for i, (told, _) in others}
        behind = [i for i, place in places.items() if place == min(places.values())]
        guess = f". Furthest behind is process {behind[0]}" if len(behind) == 1 else ""
        self._end(f"{stuck}{guess}. " + "; ".join(lines), code=AGAIN, stacks=True)
        self._obey(self._ended() or {"message": stuck, "code": AGAIN, "stacks": True})

    def _end(self, message: str, code: int, stacks: bool = False) -> bool:
        """The reason all processes stop: the first one counts. Returns whether it is this one."""
        reason = {"by": self.index, "message": message, "code": code, "stacks": stacks}
        try:
            self._client.key_value_set(f"{self._prefix}/end/reason", json.dumps(reason))
        except jax.errors.JaxRuntimeError:  # there is one already, or the coordinator is gone
            return False
        return True

    def _ended(self) -> dict[str, Any] | None:
        found = self._client.key_value_dir_get(f"{self._prefix}/end/")
        return json.loads(found[0][1]) if found else None

    def _leave(self, message: str, code: int) -> None:
        """Ends this process from the guard's thread; the main one waits for something that will not come."""
        self._say(f"stops. {message}. {self._advice()}")
        if self._client is not None and self.index == 0:
            self._wait_for_others()
        elif self._client is not None:
            self._last["left"] = True
            self._tell()
        sys.stdout.flush()
        os._exit(code)

    def _wait_for_others(self) -> None:
        """Process 0 holds the coordination service: without it the others cannot read why."""
        deadline = time.monotonic() + self._peer_timeout + 4 * self._period
        while time.monotonic() < deadline:
            self._listen()
            told = [self._heard.get(i, ({}, 0.0)) for i in range(1, self.count)]
            gone = time.monotonic() - self._peer_timeout
            if all(t.get("left") or t.get("done") or since < gone for t, since in told):
                return
            time.sleep(self._period / 4)

    def _explain(self) -> tuple[str, int] | None:
        """What is said of an abort; None where the coordinator is there, and so is not its cause."""
        address = coordinator_address() or ""
        if not _gone(address):
            return None
        me = f"process {self.index} of {self.count} stops"
        why = f"Process 0 ({address}) is gone: it was killed, or its machine is gone"
        return f"{me}. {why}. {self._advice()}", 1 if self._cause else AGAIN

    def _exit(self) -> None:
        """The end of a process that has failed, after its traceback: only now may process 0 go."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._last["left"] = True
        self._tell()
        os._exit(1)

    def _tell(self) -> None:
        """A sign of life."""
        self._beat += 1
        try:
            self._client.key_value_set(
                f"{self._prefix}/alive/{self.index}", json.dumps(self._me()), allow_overwrite=True
            )
        except jax.errors.JaxRuntimeError:
            if not self._last:
                raise

    def _me(self) -> dict[str, Any]:
        place = {"host": socket.gethostname(), "pid": os.getpid(), "step": self._step, "doing": self._doing}
        return place | {"beat": self._beat} | self._last

    def _name(self, told: dict[str, Any], index: int | None = None) -> str:
        index = self.index if index is None else index
        return f"process {index}" + (f" (host {told['host']}, pid {told['pid']})" if "pid" in told else "")

    def _say(self, text: str) -> None:
        me = f"process {self.index} of {self.count}" if self.count > 1 else "this process"
        print(f"jaxpt: {me} {text}", file=sys.stderr, flush=True)

    def _dump(self) -> None:
        self._say("all threads:")
        faulthandler.dump_traceback(file=_stderr(), all_threads=True)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _stderr() -> Any:
    """Where C code can write: what stands for sys.stderr in a notebook or under pytest has no file descriptor."""
    return sys.__stderr__ or 2


def _gone(address: str) -> bool:
    """Whether nobody listens there any more."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError):
        return True
    return False
