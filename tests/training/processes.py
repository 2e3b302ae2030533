"""Tiny runs on several real processes of this machine, which talk over loopback.

    python tests/training/processes.py DATA FOLDER '[{"out": ..., "mesh": [2, 2]}, {...}]' DEVICES

Starts one process for each element, with DEVICES CPU devices each, as the element (a `tiny_run.Tiny`) says. All are forked
from this one after the imports, which would cost seconds each. Process I writes to FOLDER/I.out and FOLDER/I.err.
Prints the exit codes and seconds of all as a line of JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path

import grain  # noqa: F401  (imported before the fork)
import orbax.checkpoint  # noqa: F401
import tiny_run


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def let_every_process_cache() -> None:
    """JAX lets the first process alone write what it compiled, though on CPUs each has programs of its own; they would all
    be compiled again by every run of a test. Where its insides are not as expected, they are."""
    from jax._src import compiler, distributed

    write = getattr(compiler, "_cache_write", None)
    if write is None:
        return

    def as_the_first(*args: object, **kwargs: object) -> None:
        own, distributed.global_state.process_id = distributed.global_state.process_id, 0
        try:
            write(*args, **kwargs)
        finally:
            distributed.global_state.process_id = own

    compiler._cache_write = as_the_first


def child(index: int, count: int, port: int, devices: int, folder: Path, data: str, tiny: str) -> None:
    """One process of the run; does not return."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{index}.{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    start = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(count), "--process-id", str(index)]
    sys.argv = [tiny_run.__file__, data, tiny, *start]
    let_every_process_cache()
    try:
        tiny_run.main()
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    raise SystemExit(0)


def main() -> None:
    """Forks, waits, reports."""
    data, folder, runs, devices = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
    folder.mkdir(parents=True, exist_ok=True)
    port, pids, start = free_port(), {}, time.monotonic()
    for index, tiny in enumerate(runs):
        pid = os.fork()
        if pid == 0:
            return child(index, len(runs), port, devices, folder, data, json.dumps(tiny))
        pids[pid] = index
        (folder / f"{index}.pid").write_text(str(pid))
    codes, seconds = {}, {}
    while pids:
        pid, status = os.wait()
        index = pids.pop(pid)
        codes[index], seconds[index] = os.waitstatus_to_exitcode(status), round(time.monotonic() - start, 2)
    print(json.dumps({"codes": codes, "seconds": seconds}))
    return None


if __name__ == "__main__":
    main()
