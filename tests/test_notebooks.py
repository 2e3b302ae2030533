"""Every notebook runs from top to bottom in an empty folder, and the outputs that are committed are its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 200_000  # bytes of a committed notebook, its pictures included


def outputs(notebook):
    """(cell index, text) of everything a notebook shows, pictures left out."""
    for index, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            shown = {name: text for name, text in output.get("data", {}).items() if name != "image/png"}
            yield index, json.dumps([output.get("text", ""), shown, output.get("traceback", "")])


def test_there_are_three():
    assert [path.name for path in NOTEBOOKS] == ["01_weights.ipynb", "02_data.ipynb", "03_claim.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_top_to_bottom(path, tmp_path, one_device):
    import nbformat
    from nbclient import NotebookClient

    # One device, as a reader has, and nothing of this user's: no prepared data, no IPython start-up files.
    cache, ipython = tmp_path / "cache", tmp_path / "ipython"
    own = {"JAX_PLATFORMS": "cpu", "JAXPT_CACHE": str(cache), "IPYTHONDIR": str(ipython)}
    env = os.environ | one_device | own
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    work = tmp_path / "work"
    work.mkdir()
    notebook = nbformat.read(path, 4)
    client = NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(work)}})
    client.execute(env=env)  # raises at the first cell that fails

    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    for index, text in outputs(notebook):
        for place in (str(tmp_path), str(ROOT), sys.prefix, str(Path.home()) + os.sep):
            assert place not in text, f"cell {index} shows a path of this machine: {text}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs(path):
    """Executed in order, without errors or warnings, small, and free of the paths of whoever ran it."""
    notebook = json.loads(path.read_text())
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in codes] == list(range(1, len(codes) + 1))
    assert any(cell["outputs"] for cell in codes)
    assert path.stat().st_size < LARGEST
    for index, text in outputs(notebook):
        for sign in ("/tmp/", "/home/", "/root/", "/Users/", "/work/", "site-packages", "Warning", "Traceback"):
            assert sign not in text, f"cell {index} of {path.name} shows {sign!r}: {text}"
    assert not any("execution" in cell["metadata"] for cell in codes), "times of execution belong to one machine"
