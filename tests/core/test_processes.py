"""A program can start itself anew with large pages, once, and keeps what the user has tuned."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import os, sys
from jaxpt.core.processes import restart_with_huge_pages
print("start", os.getpid(), flush=True)
restart_with_huge_pages()
print(os.environ["GLIBC_TUNABLES"], sys.argv[1:])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has tunables")
@pytest.mark.parametrize("tuned", [None, "glibc.malloc.check=0"])
def test_a_program_starts_again_once_as_the_same_process_with_the_same_arguments(tuned):
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    env |= {} if tuned is None else {"GLIBC_TUNABLES": tuned}
    lines = subprocess.check_output([sys.executable, "-c", CODE, "a", "--b=c"], text=True, env=env).splitlines()
    assert lines[-1] == f"{tuned or 'glibc.malloc.hugetlb=1'} ['a', '--b=c']"
    assert len(lines) == (3 if tuned is None else 2)
    assert len(set(lines[:-1])) == 1
