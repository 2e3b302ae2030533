"""One run at a time in a folder: OUT/lock.json names the process that writes there.

The holder rewrites the file every few seconds. A lock is stale, and taken over, when its process is gone from this host,
or when its host does not rewrite it while we watch. Clocks of different hosts are never compared.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from jaxpt.core.files import write_json

NAME = "lock.json"
REFRESH, PATIENCE = 5.0, 30.0  # seconds


class LockError(RuntimeError):
    """Another run writes to the folder."""


class Lock:
    """The lock of a folder, held from here to `release()`.

    Args:
      refresh: seconds between two signs of life.
      patience: seconds a lock of another host is watched for one.

    Raises:
      LockError: another run holds it.
    """

    def __init__(self, out: str | Path, *, refresh: float = REFRESH, patience: float = PATIENCE) -> None:
        self.path = Path(out) / NAME
        self._mine: dict[str, Any] = {"token": uuid.uuid4().hex, **_myself(), "beat": 0}
        self._refresh, self._stop, self._lost = refresh, threading.Event(), False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            self._refuse_or_remove(patience)
        self._thread = threading.Thread(target=self._keep, name="jaxpt-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LockError where another run has taken the folder, for example after this one was frozen for long."""
        if self._lost:
            holder = _read(self.path) or {}
            raise LockError(f"{self.path.parent} was taken over by {_name(holder)}; this run writes nothing more there")

    def release(self) -> None:
        """Gives the folder back."""
        self._stop.set()
        self._thread.join()
        if (_read(self.path) or {}).get("token") == self._mine["token"]:
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Makes the file whole or not at all; False where there is one."""
        partial = self.path.with_name(f".{NAME}.{self._mine['token']}")
        partial.write_text(json.dumps(self._mine))
        try:
            os.link(partial, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with self.path.open("x") as file:
                    file.write(partial.read_text())
            except FileExistsError:
                return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    def _refuse_or_remove(self, patience: float) -> None:
        """Looks at the lock that is there: raises if its run lives, removes it if not."""
        holder = _read(self.path)
        if holder is None and not self.path.exists():
            return
        if holder is not None and holder.get("host") == self._mine["host"]:
            alive = _started(int(holder["pid"])) == holder["started"] and holder["boot"] == self._mine["boot"]
        else:  # of another host, or not readable
            alive = self._beats(holder, patience)
        if alive:
            raise LockError(
                f"{self.path.parent} is in use by {_name(holder or {})}; wait for that run, stop it, or start in "
                "another folder (--out)"
            )
        stale = self.path.with_name(f".{NAME}.stale.{self._mine['token']}")
        try:
            os.rename(self.path, stale)  # of several that come for the same stale lock, one succeeds
        except FileNotFoundError:
            return
        stale.unlink()

    def _beats(self, holder: dict[str, Any] | None, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            time.sleep(min(0.5, patience / 10))
            if _read(self.path) != holder:
                return self.path.exists()
        return False

    def _keep(self) -> None:
        while not self._stop.wait(self._refresh):
            held = _read(self.path)
            if held is not None and held.get("token") != self._mine["token"]:
                self._lost = True
                return
            self._mine["beat"] += 1
            try:
                write_json(self.path, self._mine)
            except OSError:  # a full or slow disk; the next round tries again
                continue


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "boot": _boot(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _name(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "a run whose lock cannot be read"
    return f"process {holder['pid']} on host {holder['host']} since {holder['since']}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return (
        found
        if isinstance(found, dict) and {"token", "host", "pid", "started", "boot", "since"} <= set(found)
        else None
    )


def _started(pid: int) -> str | None:
    """When a process of this host started, in ticks since boot: process ids are used again. None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _alive_without_proc(pid)
    return None if fields[0] == "Z" else fields[19]


def _alive_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
