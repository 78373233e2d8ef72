"""Frames on their way through a process of their own, compiled: a datagram in, the same datagram out."""

from __future__ import annotations

import numpy as np

from drivers.compiled import compiled
from drivers.wires.frames import BUFFER_BYTES
from drivers.wires.libc import MSG_DONTWAIT, recv, send

STREAM_BYTE = 5
"""Where a frame says whose it is."""

# words of the loop's status
STOP, PASSED, SEND_ERRORS = range(3)
STATUS_WORDS = 3


@compiled
def pass_on(buffer, fd, fds, enabled, status):
    """Send each datagram on until status[STOP] is set; `fds` and `enabled`: i32 [4 streams, 2 slots]."""
    data = buffer.u8.ctypes.data
    while status[STOP] == 0:
        length = recv(np.int32(fd), data, np.uint64(BUFFER_BYTES), np.int32(0))
        if length <= STREAM_BYTE:
            continue
        stream = int(buffer.u8[STREAM_BYTE])
        if stream >= fds.shape[0]:
            continue
        for slot in range(fds.shape[1]):
            if enabled[stream, slot] == 1:
                if send(np.int32(fds[stream, slot]), data, np.uint64(length), np.int32(MSG_DONTWAIT)) == length:
                    status[PASSED] += 1
                else:
                    status[SEND_ERRORS] += 1
