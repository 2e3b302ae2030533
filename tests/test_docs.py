"""The blocks of docs/methods.md run, in order, as they stand, on one device as a reader has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"


@pytest.mark.timeout(960)
def test_methods_in_five_lines(tmp_path, one_device):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) > 10
    script = tmp_path / "methods.py"
    script.write_text("\n".join([*blocks, "assert 1e5 < fit.law.optimal(1e21)[0] < 1e13", "print('done')"]))
    found = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | one_device,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert found.returncode == 0 and found.stdout.endswith("done\n"), found.stderr[-3000:]
