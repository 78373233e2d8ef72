"""Datagrams for tests: put into a buffer as a socket would, and permits with one thing wrong."""

from __future__ import annotations

import numpy as np

from drivers.wires.frames import (
    BUFFER_BYTES,
    FrameBuffer,
    new_buffer,
)
from drivers.wires.permits import (
    KIND_PERMIT,
    PERMIT_BYTES,
    SOURCE_CONTROLLER,
    key_words,
    write_permit,
)
from simulators.plant.build import permit_key
from tests.plant_rig import CARBON


def fill(buffer: FrameBuffer, data: bytes) -> int:
    """Put a datagram where the socket would; what lay there before stays behind it."""
    kept = data[:BUFFER_BYTES]
    buffer.u8[: len(kept)] = np.frombuffer(kept, np.uint8)
    return len(data)


KEY = permit_key(CARBON)
SESSION, TOKEN = 0xABCDEF, 0x1234


def permit(
    *,
    kind: int = KIND_PERMIT,
    source: int = SOURCE_CONTROLLER,
    session: int = SESSION,
    token: int = TOKEN,
    sequence: int = 1,
    t_ns: int = 0,
    age_us: int = 0,
    reason: int = 0,
    key: bytes = KEY,
) -> bytes:
    buffer = new_buffer()
    write_permit(
        buffer,
        kind,
        source,
        np.uint64(session),
        np.uint64(token),
        np.uint64(sequence),
        t_ns,
        age_us,
        reason,
        key_words(key),
    )
    return bytes(buffer.u8[:PERMIT_BYTES])
