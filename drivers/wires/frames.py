"""Frames: what the monitors and the scan controller stream over UDP, declared once for both ends.

Little endian. Every frame is one datagram:

    offset  type  meaning
         0  u32   magic 'SPW1'
         4  u8    version (1)
         5  u8    stream: 1 electrometer 1, 2 electrometer 2, 3 scan controller
         6  u16   length of the whole datagram
         8  u64   boot nonce of the device
        16  u64   sequence number, from 0 at power-up
        24  i64   device time at the end of the frame, ns on the shared trigger
        32  u32   visit id at the end of the frame (0: none)
        36  u32   flags (FLAG_*)
        40  u64   cumulative counts at the end of the frame (stream 3: of electrometer 1, as the engine counts)
        48  u64   cumulative counts at the last change of visit
        56  i64   device time of that change, ns
        64        payload: stream 1: 128 x strips then 128 y strips, i32; stream 2: none;
                  stream 3: 16 x i32, see SCAN_*
      last  u32   CRC-32 (IEEE 802.3, as zlib) of all bytes before

Streams 1 and 2 run at 10 kHz, stream 3 at 5 kHz; at most one change of visit a frame. Counts are
cumulative, so a lost frame loses no charge. CRC detects errors; it does not authenticate.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from drivers.compiled import array_at, compiled, compiled_inline
from drivers.flags import (
    FLAG_ARMED as FLAG_ARMED,
)
from drivers.flags import (
    FLAG_BEAM as FLAG_BEAM,
)
from drivers.flags import (
    FLAG_CHAIN as FLAG_CHAIN,
)
from drivers.flags import (
    FLAG_GATE_OPEN as FLAG_GATE_OPEN,
)
from drivers.flags import (
    FLAG_HOLD as FLAG_HOLD,
)
from drivers.flags import (
    FLAG_HV_OK as FLAG_HV_OK,
)
from drivers.flags import (
    FLAG_LAYER_DONE as FLAG_LAYER_DONE,
)
from drivers.flags import (
    FLAG_MOVING as FLAG_MOVING,
)
from drivers.flags import (
    FLAG_REQUEST as FLAG_REQUEST,
)
from drivers.flags import (
    FLAG_SATURATED as FLAG_SATURATED,
)
from drivers.flags import (
    FLAG_SPILL as FLAG_SPILL,
)
from drivers.flags import (
    FLAG_TRIPPED as FLAG_TRIPPED,
)

MAGIC = 0x31575053
VERSION = 1
STREAM_ELECTROMETER_1 = 1
STREAM_ELECTROMETER_2 = 2
STREAM_SCAN = 3

STRIPS = 128
STRIP_UNITS_PER_COUNT = 16
"""Strip charge of one plane per count of electrometer 1: the strips' quantum is finer."""
HEADER_BYTES = 64
SCAN_WORDS = 16
(
    SCAN_X_SET_MA,
    SCAN_Y_SET_MA,
    SCAN_X_PRIMARY_MA,
    SCAN_Y_PRIMARY_MA,
    SCAN_X_REDUNDANT_MA,
    SCAN_Y_REDUNDANT_MA,
    SCAN_X_VOLTAGE_MV,
    SCAN_Y_VOLTAGE_MV,
    SCAN_X_FIELD_UTM,
    SCAN_Y_FIELD_UTM,
    SCAN_ENGINE_STATE,
    SCAN_ENGINE_TRIP,
    SCAN_BEAM_ON_US,
    SCAN_RESULTS,
) = range(14)
"""Words of the scan controller's payload; beam_on_us is the running visit's, results the rows ever written."""

FRAME_BYTES = {
    STREAM_ELECTROMETER_1: HEADER_BYTES + 8 * STRIPS + 4,
    STREAM_ELECTROMETER_2: HEADER_BYTES + 4,
    STREAM_SCAN: HEADER_BYTES + 4 * SCAN_WORDS + 4,
}
BUFFER_BYTES = 1408
FRAME_NS = 100_000
"""Period of streams 1 and 2."""
SCAN_FRAME_NS = 200_000

_HEADER = struct.Struct("<IBBHQQqIIQQq")


class FrameBuffer(NamedTuple):
    """One datagram's memory under the types that compiled code needs."""

    u8: Any
    u16: Any
    u32: Any
    i32: Any
    u64: Any
    i64: Any


def new_buffer() -> FrameBuffer:
    """Fresh zeroed memory for one datagram."""
    raw = np.zeros(BUFFER_BYTES, np.uint8)
    return FrameBuffer(
        raw, raw.view(np.uint16), raw.view(np.uint32), raw.view(np.int32), raw.view(np.uint64), raw.view(np.int64)
    )


@compiled_inline
def frame_at(address):
    """The buffer at an address, whose owner keeps it alive meanwhile; handing it on costs nothing."""
    return FrameBuffer(
        array_at(address, BUFFER_BYTES, np.uint8),
        array_at(address, BUFFER_BYTES // 2, np.uint16),
        array_at(address, BUFFER_BYTES // 4, np.uint32),
        array_at(address, BUFFER_BYTES // 4, np.int32),
        array_at(address, BUFFER_BYTES // 8, np.uint64),
        array_at(address, BUFFER_BYTES // 8, np.int64),
    )


def _crc_tables() -> np.ndarray[Any, Any]:
    tables = np.zeros((16, 256), np.uint32)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
        tables[0, byte] = crc
    for row in range(1, 16):
        for byte in range(256):
            previous = int(tables[row - 1, byte])
            tables[row, byte] = (previous >> 8) ^ int(tables[0, previous & 0xFF])
    return tables


CRC_TABLES = _crc_tables()


@compiled_inline
def _crc_of(word, row):
    """Share of a 32-bit word in the CRC, `row` + 1 bytes before the end of its step."""
    return (
        CRC_TABLES[row + 3, word & np.uint32(0xFF)]
        ^ CRC_TABLES[row + 2, (word >> np.uint32(8)) & np.uint32(0xFF)]
        ^ CRC_TABLES[row + 1, (word >> np.uint32(16)) & np.uint32(0xFF)]
        ^ CRC_TABLES[row, word >> np.uint32(24)]
    )


@compiled
def crc32_words(words, count):
    """CRC-32 of the first `count` (a multiple of 4) 32-bit little-endian words.

    Sixteen bytes a step (after Kounavis and Berry, 2005, who take eight): all but the first word of a step can be
    looked up before the step before is done.
    """
    crc = np.uint32(0xFFFFFFFF)
    for i in range(0, count, 4):
        crc = (
            _crc_of(words[i + 1], 8) ^ _crc_of(words[i + 2], 4) ^ _crc_of(words[i + 3], 0) ^ _crc_of(words[i] ^ crc, 12)
        )
    return crc ^ np.uint32(0xFFFFFFFF)


@compiled_inline
def frame_bytes(stream):
    """Length of a datagram of this stream; 0 for an unknown stream."""
    if stream == 1:
        return 1092
    if stream == 2:
        return 68
    if stream == 3:
        return 132
    return 0


@compiled
def write_header(buffer, stream, nonce, sequence, t_ns, visit, flags, counts, counts_at_change, t_change_ns):
    """Fill in the header; the payload is the caller's, the CRC `seal`'s."""
    buffer.u32[0] = MAGIC
    buffer.u8[4] = VERSION
    buffer.u8[5] = stream
    buffer.u16[3] = frame_bytes(stream)
    buffer.u64[1] = nonce
    buffer.u64[2] = sequence
    buffer.i64[3] = t_ns
    buffer.u32[8] = visit
    buffer.u32[9] = flags
    buffer.i64[5] = counts
    buffer.i64[6] = counts_at_change
    buffer.i64[7] = t_change_ns


@compiled
def seal(buffer, stream):
    """Write the CRC; returns the length of the datagram."""
    length = frame_bytes(stream)
    words = length // 4 - 1
    buffer.u32[words] = crc32_words(buffer.u32, words)
    return length


FRAME_OK = 0
FRAME_SHORT = 1
FRAME_FOREIGN = 2
FRAME_CORRUPT = 3


@compiled
def inspect(buffer, length):
    """Is this datagram a whole, intact frame? FRAME_OK, _SHORT (torn), _FOREIGN (not ours), _CORRUPT (CRC)."""
    if length < HEADER_BYTES + 4:
        return FRAME_SHORT
    if buffer.u32[0] != np.uint32(MAGIC) or buffer.u8[4] != VERSION:
        return FRAME_FOREIGN
    expected = frame_bytes(int(buffer.u8[5]))
    if expected == 0:
        return FRAME_FOREIGN
    if length != expected or buffer.u16[3] != expected:
        return FRAME_SHORT
    words = expected // 4 - 1
    if crc32_words(buffer.u32, words) != buffer.u32[words]:
        return FRAME_CORRUPT
    return FRAME_OK


class Frame(NamedTuple):
    """A decoded frame, for tools and tests; the real-time path reads the buffer itself."""

    stream: int
    boot_nonce: int
    sequence: int
    t_ns: int
    visit: int
    flags: int
    counts: int
    counts_at_change: int
    t_change_ns: int
    words: tuple[int, ...]


def encode(frame: Frame) -> bytes:
    """Plain Python encoder, independent of the compiled one."""
    body = _HEADER.pack(
        MAGIC,
        VERSION,
        frame.stream,
        FRAME_BYTES[frame.stream],
        frame.boot_nonce,
        frame.sequence,
        frame.t_ns,
        frame.visit,
        frame.flags,
        frame.counts,
        frame.counts_at_change,
        frame.t_change_ns,
    ) + struct.pack(f"<{len(frame.words)}i", *frame.words)
    data = body + struct.pack("<I", zlib.crc32(body))
    if len(data) != FRAME_BYTES[frame.stream]:
        raise ValueError(f"stream {frame.stream}: frame of {len(data)} bytes, want {FRAME_BYTES[frame.stream]}")
    return data


def decode(data: bytes) -> Frame | None:
    """Plain Python decoder; None for anything that is not a whole, intact frame."""
    if len(data) < HEADER_BYTES + 4:
        return None
    magic, version, stream, length, *rest = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or FRAME_BYTES.get(stream) != len(data) or length != len(data):
        return None
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        return None
    words = struct.unpack(f"<{(len(data) - HEADER_BYTES - 4) // 4}i", data[HEADER_BYTES:-4])
    nonce, sequence, t_ns, visit, flags, counts, counts_at_change, t_change_ns = rest
    return Frame(stream, nonce, sequence, t_ns, visit, flags, counts, counts_at_change, t_change_ns, words)
