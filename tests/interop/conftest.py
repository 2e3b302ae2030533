"""Folders as Hugging Face writes them, made from the recorded models; programs compiled quickly instead of well."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent))  # for gguf_writer
GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def golden_folder(tmp_path: Path) -> Callable[[str], tuple[Path, dict[str, np.ndarray]]]:
    """name -> (model folder, recorded arrays)."""

    def make(name: str) -> tuple[Path, dict[str, np.ndarray]]:
        with np.load(GOLDEN / f"{name}.npz") as file:
            arrays = dict(file)
        folder = tmp_path / name
        folder.mkdir()
        state = {k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(str(arrays["settings"]))
        return folder, arrays

    return make


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """These programs run once, on tiny arrays."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
