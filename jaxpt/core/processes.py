"""What processes need before they work: an end with their parent, and memory in large pages."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import platform
import sys
import threading


def die_with_parent() -> None:
    """For a worker's start: it ends when its parent is killed, so that none works on beside the next one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent.sentinel,), daemon=True).start()


def _wait_and_exit(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def huge_pages() -> dict[str, str]:
    """Environment in which a new process's large arrays come in pages of 2 MiB instead of 4 KiB (glibc 2.35 or later).

    XLA's CPU programs take their temporaries from the system anew at every call and fault in every page: a training
    step was a quarter faster with large pages (docs/benchmarks.md). Empty where the user has tuned glibc already.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return {}
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def restart_with_huge_pages() -> None:
    """Starts this program anew, in the same process, if it does not have `huge_pages` yet. For a program's first line."""
    wanted = huge_pages()
    if wanted:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)
