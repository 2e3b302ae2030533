"""The blocks of docs/methods.md run, in order, as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"


@pytest.mark.filterwarnings("ignore::jaxpt.analysis.scaling_laws.FitWarning")
def test_methods_in_five_lines():
    known: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) > 10
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), known)
    assert 1e5 < known["fit"].law.optimal(1e21)[0] < 1e13
