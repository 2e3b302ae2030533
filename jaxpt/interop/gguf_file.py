"""GGUF files (versions 2 and 3) opened with distrust: every count and offset is held against the size of the file.

Layout: "GGUF", version, tensor count, metadata count; metadata as (key, type, value); tensors as (name, dimensions with
the fastest first, number format, offset); padding to `general.alignment`; the data.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpt.data.documents import DataError
from jaxpt.interop.gguf_quants import BLOCKS, Block

STRING, ARRAY = 8, 9
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
SMALLEST_ENTRY, SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8  # bytes
MAX_DIMENSIONS, MAX_ALIGNMENT = 4, 2**16


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Shape with the slowest dimension first, number format, and where its bytes are in the file."""

    shape: tuple[int, ...]
    block: Block
    start: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class GGUF:
    """A file: metadata by key, tensors by name; a `jaxpt.interop.names.State` that dequantises what is read."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    data: Any

    @property
    def names(self) -> Iterable[str]:
        return self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """The tensor in float32."""
        tensor = self.tensors[name]
        raw = np.frombuffer(self.data, np.uint8, tensor.nbytes, tensor.start)
        return tensor.block.values(raw.reshape(-1, tensor.block.nbytes)).reshape(tensor.shape)


def open_file(path: str | Path) -> GGUF:
    """Reads everything but the data, which stays on disk.

    Raises:
      DataError: the file is missing, is not GGUF, is truncated, or claims what cannot be.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise DataError(f"{path} cannot be read: {error}") from None
    reader = _Reader(data, str(path))
    if reader.take(4) != b"GGUF":
        raise reader.error("it does not begin with GGUF")
    version = reader.number("<u4")
    if version not in (2, 3):
        raise reader.error(f"version {version}, expected 2 or 3 (little endian)")
    tensor_count, entry_count = reader.number("<u8"), reader.number("<u8")
    reader.expect_room(entry_count, SMALLEST_ENTRY, "metadata entries")
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = reader.text()
        if key in metadata:
            raise reader.error(f"metadata key {key!r} twice")
        metadata[key] = reader.value(reader.number("<u4"))
    reader.expect_room(tensor_count, SMALLEST_TENSOR, "tensors")
    return GGUF(path, metadata, _tensors(reader, tensor_count, metadata.get("general.alignment", 32)), data)


def _tensors(reader: _Reader, count: int, alignment: Any) -> dict[str, Tensor]:
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise reader.error(f"general.alignment is {alignment!r}, expected a power of two up to {MAX_ALIGNMENT}")
    listed = [_entry(reader) for _ in range(count)]
    start = -(-reader.at // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, shape, block, offset in listed:
        nbytes = math.prod(shape) // block.weights * block.nbytes
        if name in tensors:
            raise reader.error(f"tensor {name!r} twice")
        if offset % alignment or start + offset + nbytes > len(reader.data):
            where = f"{nbytes} bytes at {start + offset}"
            raise reader.error(f"tensor {name!r} of shape {shape} needs {where}, the file has {len(reader.data)}")
        tensors[name] = Tensor(shape, block, start + offset, nbytes)
    return tensors


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], Block, int]:
    """(name, shape, number format, offset) of the next tensor."""
    name, dimensions = reader.text(), reader.number("<u4")
    if not 0 < dimensions <= MAX_DIMENSIONS:
        raise reader.error(f"tensor {name!r} has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
    shape = tuple(reader.number("<u8") for _ in range(dimensions))[::-1]
    kind, offset = reader.number("<u4"), reader.number("<u8")
    if kind not in BLOCKS:
        known = ", ".join(block.name for block in BLOCKS.values())
        raise reader.error(f"tensor {name!r} is in number format {kind}; those read are {known}")
    if not all(shape) or shape[-1] % BLOCKS[kind].weights:
        raise reader.error(f"tensor {name!r} of shape {shape} is not made of blocks of {BLOCKS[kind].weights}")
    return name, shape, BLOCKS[kind], offset


@dataclasses.dataclass
class _Reader:
    """Takes bytes in order and says where it stopped when there are too few."""

    data: Any
    path: str
    at: int = 0

    def error(self, what: str) -> DataError:
        return DataError(f"{self.path} is not a usable GGUF file: {what}")

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise self.error(f"{count} bytes wanted at {self.at}, but it ends at {len(self.data)}; is it truncated?")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        kind = np.dtype(code)
        return np.frombuffer(self.take(kind.itemsize), kind)[0].item()

    def expect_room(self, count: int, smallest: int, what: str) -> None:
        """Refuses a count of things that the rest of the file cannot hold, before anything is made for them."""
        left = len(self.data) - self.at
        if count * smallest > left:
            raise self.error(f"it claims {count} {what}, but only {left} bytes follow")

    def text(self) -> str:
        raw = self.take(struct.unpack("<Q", self.take(8))[0])
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"a string before byte {self.at} is not UTF-8: {error}") from None

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise self.error(f"metadata of type {kind} before byte {self.at}")
        inner, count = self.number("<u4"), self.number("<u8")
        if inner == STRING:
            self.expect_room(count, 8, "strings")
            return [self.text() for _ in range(count)]
        if inner not in SCALARS:
            raise self.error(f"an array of type {inner} before byte {self.at}; only numbers and strings are read")
        return np.frombuffer(self.take(count * np.dtype(SCALARS[inner]).itemsize), SCALARS[inner]).tolist()
