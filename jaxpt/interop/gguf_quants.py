"""Dequantisation of GGUF's blocks to float32, bit-equal to the format's reference.

A block holds `weights` consecutive entries of a row in `nbytes` bytes: scales in 16-bit floats, then small integers.

    Q4_0   w = d (q - 8)          32 weights, 4 bits; entry j < 16 in the low half of byte j, entry 16 + j in the high half
    Q4_1   w = d q + m            as Q4_0
    Q8_0   w = d q                32 weights, signed bytes
    Q4_K   w = d s q - e m        256 weights, 8 groups of 32 with 6-bit scales s and minima m
    Q6_K   w = d s q              256 weights, 16 groups of 16 with signed 8-bit scales s, q from -32 to 31
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np


class Block(NamedTuple):
    """A number format: its name, entries and bytes per block, and blocks uint8 [N, nbytes] -> float32 [N, weights]."""

    name: str
    weights: int
    nbytes: int
    values: Callable[[np.ndarray], np.ndarray]


def _plain(dtype: type) -> Callable[[np.ndarray], np.ndarray]:
    return lambda blocks: blocks.view(dtype).astype(np.float32)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The 16-bit float at this byte of every block, [N, 1]."""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """[N, B] bytes -> [N, 2 B] integers 0 to 15, low halves first."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks[:, 4:]).astype(np.float32)
    values *= _half(blocks, 0)
    values += _half(blocks, 2)
    return values


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    low, mid, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=1).astype(np.float32)
    minima = np.concatenate([mid & 63, (high >> 4) | (mid >> 6) << 4], axis=1).astype(np.float32)
    q = blocks[:, 16:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15
    scales, minima = (_half(blocks, 0) * scales)[..., None], (_half(blocks, 2) * minima)[..., None]
    return (scales * q.reshape(-1, 8, 32).astype(np.float32) - minima).reshape(-1, 256)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    q = (low.reshape(-1, 8, 32) | high.reshape(-1, 8, 32) << 4).astype(np.int8) - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scales[..., None] * q.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, 256)


BLOCKS: dict[int, Block] = {
    0: Block("F32", 1, 4, _plain(np.float32)),
    1: Block("F16", 1, 2, _plain(np.float16)),
    2: Block("Q4_0", 32, 18, _q4_0),
    3: Block("Q4_1", 32, 20, _q4_1),
    8: Block("Q8_0", 32, 34, _q8_0),
    12: Block("Q4_K", 256, 144, _q4_k),
    14: Block("Q6_K", 256, 210, _q6_k),
    30: Block("BF16", 1, 2, _plain(ml_dtypes.bfloat16)),
}
