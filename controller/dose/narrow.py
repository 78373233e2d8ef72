"""Packs 32-bit words by dropping bytes that say nothing: frames are mostly small numbers in wide words.

Words go in groups of 16. A group begins with a byte: 1, 2 or 4, the bytes that each of its words is kept in (two's
complement, little endian), and the words follow. The last group is filled up with zeros. Without loss for any words;
what it saves is then zlib's to save on a quarter of the bytes, at a multiple of its speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.compiled import compiled

GROUP = 16


@compiled
def _pack(words, out):
    at = 0
    for first in range(0, words.shape[0], GROUP):
        spread = 0
        for i in range(first, first + GROUP):
            spread |= words[i] ^ (words[i] >> 31)  # the sign bits become zeros
        width = 1 if spread < 0x80 else (2 if spread < 0x8000 else 4)
        out[at] = width
        at += 1
        for i in range(first, first + GROUP):
            w = words[i]
            out[at] = w & 0xFF
            if width > 1:
                out[at + 1] = (w >> 8) & 0xFF
            if width > 2:
                out[at + 2] = (w >> 16) & 0xFF
                out[at + 3] = (w >> 24) & 0xFF
            at += width
    return at


@compiled
def _unpack(data, words):
    """Returns the number of words that the data gave."""
    at = 0
    for first in range(0, words.shape[0], GROUP):
        if at >= data.shape[0]:
            return first
        width = int(data[at])
        if (width != 1 and width != 2 and width != 4) or at + 1 + GROUP * width > data.shape[0]:
            return first
        at += 1
        if width == 1:
            for i in range(GROUP):
                words[first + i] = np.int8(data[at + i])
        elif width == 2:
            for i in range(GROUP):
                words[first + i] = np.int16(np.uint16(data[at + 2 * i]) | np.uint16(data[at + 2 * i + 1]) << 8)
        else:
            for i in range(GROUP):
                k = at + 4 * i
                words[first + i] = np.int32(
                    np.uint32(data[k])
                    | np.uint32(data[k + 1]) << 8
                    | np.uint32(data[k + 2]) << 16
                    | np.uint32(data[k + 3]) << 24
                )
        at += GROUP * width
    return words.shape[0]


def _groups(words: int) -> int:
    return -(-words // GROUP) * GROUP


def pack(words: NDArray[np.int64]) -> bytes:
    """The packed form of 64-bit words."""
    halves = words.view(np.int32)
    filled: NDArray[Any] = np.zeros(_groups(len(halves)), np.int32)
    filled[: len(halves)] = halves
    out = np.empty(len(filled) * 4 + len(filled) // GROUP, np.uint8)
    return out[: _pack(filled, out)].tobytes()


def unpack(data: bytes, words: int) -> NDArray[np.int64]:
    """As many 64-bit words as the data gives, `words` at most; fewer where it is torn or damaged."""
    out: NDArray[Any] = np.zeros(_groups(2 * words), np.int32)
    got = min(int(_unpack(np.frombuffer(data, np.uint8), out)), 2 * words)
    halves: NDArray[np.int32] = out[: got // 2 * 2]
    return halves.view(np.int64)


def warm_up() -> None:
    """Compile, or load from the cache."""
    unpack(pack(np.zeros(GROUP, np.int64)), GROUP)
