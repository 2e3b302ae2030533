"""Safetensors, alone or in shards with an index, opened with distrust.

The `safetensors` library checks each file (header size, offsets, that nothing overlaps or is left over); here a shard
index is checked: it may name files of its own folder only, and must agree with what they hold. Pickled weights
(`pytorch_model.bin` and the like) are refused, since to read one is to run it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpt.core.files import write_json
from jaxpt.data.documents import DataError
from jaxpt.interop.settings import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclasses.dataclass(frozen=True)
class SafetensorsState:
    """The tensors of a folder, read on demand: a `jaxpt.interop.names.State`."""

    file_of: Mapping[str, Path]
    handles: Mapping[Path, Any]

    @property
    def names(self) -> Iterable[str]:
        return self.file_of

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.handles[self.file_of[name]].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Number format as safetensors spells it, such as "BF16"."""
        return self.handles[self.file_of[name]].get_slice(name).get_dtype()

    def read(self, name: str) -> np.ndarray:
        return self.handles[self.file_of[name]].get_tensor(name)


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[SafetensorsState]:
    """The tensors of model.safetensors, or of the shards that the index beside it lists.

    Raises:
      DataError: neither is there, or one is corrupt, truncated, or says what is not so.
    """
    with contextlib.ExitStack() as stack:
        if (folder / INDEX).is_file():
            listed = _index(folder / INDEX)
        elif (folder / SINGLE).is_file():
            listed = None
        else:
            raise _nothing(folder)
        paths = [folder / SINGLE] if listed is None else sorted({folder / file for file in listed.values()})
        handles = {path: stack.enter_context(_open(path)) for path in paths}
        file_of: dict[str, Path] = {}
        for path, handle in handles.items():
            for name in handle.keys():  # noqa: SIM118 (not a dict)
                if name in file_of:
                    raise DataError(f"tensor {name!r} is both in {file_of[name]} and in {path}")
                file_of[name] = path
        for name, file in (listed or {}).items():
            if file_of.get(name) != folder / file:
                raise DataError(f"{folder / INDEX} says that {name!r} is in {file}, which does not hold it")
        yield SafetensorsState(file_of, handles)


def write_folder(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> None:
    """Writes model.safetensors, or shards of about `shard_bytes` and their index; each file whole or not at all.

    Raises:
      ValueError: no positive `shard_bytes`.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be positive, got {shard_bytes}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
        parts: list[tuple[Path, list[str]]] = []
        total = 0
        for shard in _shards(tensors, shard_bytes):
            total += sum(array.nbytes for array in shard.values())
            parts.append((Path(scratch) / str(len(parts)), list(shard)))
            _save(parts[-1][0], shard)
        for stale in [folder / INDEX, *folder.glob("model*.safetensors")]:  # only now that the new ones are whole
            stale.unlink(missing_ok=True)
        names = [SINGLE] if len(parts) == 1 else _numbered(len(parts))
        for (path, _), name in zip(parts, names, strict=True):
            os.replace(path, folder / name)
    if len(parts) > 1:
        weight_map = {tensor: name for (_, held), name in zip(parts, names, strict=True) for tensor in held}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _index(path: Path) -> dict[str, str]:
    """tensor -> file name, every name a plain one."""
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise DataError(f"{path}: weight_map should be a table of tensor names and files, got {str(found)[:80]}")
    for tensor, file in found.items():
        plain = isinstance(file, str) and file == os.path.basename(file) and "\\" not in file
        if not plain or not file.endswith(".safetensors"):
            raise DataError(
                f"{path} puts tensor {tensor!r} into {str(file)[:120]!r}; "
                "only *.safetensors files of its own folder are read"
            )
        if not (path.parent / file).is_file():
            raise DataError(f"{path.parent / file}, listed in {path}, is missing")
    return found


def _open(path: Path) -> Any:
    import safetensors

    try:
        return safetensors.safe_open(path, framework="np")
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a whole safetensors file: {error}") from None


def _nothing(folder: Path) -> DataError:
    if not folder.is_dir():
        return DataError(f"{folder} is not a folder; give one with config.json and {SINGLE}")
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        return DataError(
            f"{folder} holds its weights as {pickles[0]}, a pickle: to read it would run code from the file. "
            f"Convert it to {SINGLE} with the software it came from"
        )
    return DataError(f"{folder} has neither {SINGLE} nor {INDEX}")


def _shards(tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, array in tensors:
        if shard and size + array.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = array
        size += array.nbytes
    yield shard


def _save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, path, metadata={"format": "pt"})  # transformers insists on this


def _numbered(count: int) -> list[str]:
    return [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
