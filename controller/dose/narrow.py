"""Packs the entries of a tape: what a frame repeats is predicted, and small numbers in wide words are kept in few bits.

First the entries, each 64-bit word on its own: of an intact frame of a known stream the head becomes 16 + stream, and
its time and the eight words of its header become differences from a straight line through the last two of that stream
in the same piece (w - 2 u + v, modulo 2^64; u and v begin as zeros). All other words stay.

Then the 32-bit halves in groups of 8. A group begins with a byte: 4, 8, 16 or 32, the bits that each of its words is
kept in (two's complement, little endian, of two 4-bit words the first in the low half), and the words follow. The
last group is filled up with zeros.

It takes a tenth of zlib's time for nearly its size, and a flipped bit stays in the frame that it is in, or at least
in its stream, where the frames' own CRCs find it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.dose.tape import HEAD_WORDS, KIND_FRAME
from drivers.compiled import compiled
from drivers.wires.frames import frame_bytes

GROUP = 8
SPECIAL = 16
PREDICTED = 9
"""The local time and the header of a frame."""


@compiled
def _stream(words, at, end):
    """Stream of the entry at this word if it is an intact frame, else 0."""
    head = words[at]
    if head & 0xFFFF != (KIND_FRAME | 1 << 8):
        return 0
    stream = words[at + HEAD_WORDS] >> 40 & 0xFF if at + HEAD_WORDS < end else 0
    if stream < 1 or stream > 3 or head != _head(stream):
        return 0
    return stream


@compiled
def _head(stream):
    return KIND_FRAME | 1 << 8 | frame_bytes(stream) << 16


@compiled
def _shorten(words, lines):
    """In place; `lines` is scratch memory, (4, PREDICTED, 2) of zeros."""
    at = 0
    end = words.shape[0]
    while at < end:
        head = words[at]
        stream = _stream(words, at, end)
        if stream > 0:
            words[at] = SPECIAL + stream
            for i in range(PREDICTED):
                w = words[at + 1 + i]
                words[at + 1 + i] = w - 2 * lines[stream, i, 0] + lines[stream, i, 1]
                lines[stream, i, 1] = lines[stream, i, 0]
                lines[stream, i, 0] = w
        at += HEAD_WORDS + ((head >> 16 & 0xFFFF) + 7) // 8


@compiled
def _lengthen(words, lines):
    """The way back, in place; returns the number of words that are whole entries."""
    at = 0
    end = words.shape[0]
    while at < end:
        stream = words[at] - SPECIAL
        if 1 <= stream <= 3:
            head = _head(stream)
        else:
            head = words[at]
            stream = 0
        following = at + HEAD_WORDS + ((head >> 16 & 0xFFFF) + 7) // 8
        if following > end:
            return at
        if stream > 0:
            words[at] = head
            for i in range(PREDICTED):
                w = words[at + 1 + i] + 2 * lines[stream, i, 0] - lines[stream, i, 1]
                words[at + 1 + i] = w
                lines[stream, i, 1] = lines[stream, i, 0]
                lines[stream, i, 0] = w
        at = following
    return end


@compiled
def _pack(words, out):
    at = 0
    for first in range(0, words.shape[0], GROUP):
        spread = 0
        for i in range(first, first + GROUP):
            spread |= words[i] ^ (words[i] >> 31)  # the sign bits become zeros
        width = 0 if spread < 0x8 else (1 if spread < 0x80 else (2 if spread < 0x8000 else 4))
        out[at] = 8 * width if width > 0 else 4
        at += 1
        if width == 0:
            for i in range(0, GROUP, 2):
                out[at + i // 2] = (words[first + i] & 0xF) | (words[first + i + 1] & 0xF) << 4
            at += GROUP // 2
            continue
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
        bits = int(data[at])
        if (bits != 4 and bits != 8 and bits != 16 and bits != 32) or at + 1 + GROUP * bits // 8 > data.shape[0]:
            return first
        at += 1
        if bits == 4:
            for i in range(0, GROUP, 2):
                two = np.int32(data[at + i // 2])
                words[first + i] = ((two & 0xF) ^ 8) - 8
                words[first + i + 1] = ((two >> 4) ^ 8) - 8
        elif bits == 8:
            for i in range(GROUP):
                words[first + i] = np.int8(data[at + i])
        elif bits == 16:
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
        at += GROUP * bits // 8
    return words.shape[0]


def _groups(words: int) -> int:
    return -(-words // GROUP) * GROUP


def _lines() -> NDArray[np.int64]:
    return np.zeros((4, PREDICTED, 2), np.int64)


def pack(entries: NDArray[np.int64]) -> bytes:
    """The packed form of whole entries of a tape."""
    filled: NDArray[Any] = np.zeros(_groups(2 * len(entries)), np.int32)
    words = filled[: 2 * len(entries)].view(np.int64)
    words[:] = entries
    _shorten(words, _lines())
    out = np.empty(len(filled) * 4 + len(filled) // GROUP, np.uint8)
    return out[: _pack(filled, out)].tobytes()


def unpack(data: bytes, words: int) -> NDArray[np.int64]:
    """The entries, `words` long in all; fewer, but whole ones, where the data is torn or damaged."""
    halves: NDArray[Any] = np.empty(_groups(2 * words), np.int32)
    got = min(int(_unpack(np.frombuffer(data, np.uint8), halves)), 2 * words)
    entries: NDArray[np.int64] = halves[: got // 2 * 2].view(np.int64)
    return entries[: int(_lengthen(entries, _lines()))]


def warm_up() -> None:
    """Compile, or load from the cache."""
    unpack(pack(np.array([KIND_FRAME, 0], np.int64)), HEAD_WORDS)
