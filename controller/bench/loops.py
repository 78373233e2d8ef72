"""The compiled loops of the benches: feeding frames to the integrator, sending them, echoing them."""

from __future__ import annotations

import numpy as np

from controller.dose.integrator import handle_frame_at
from drivers.compiled import compiled
from drivers.wires.frames import BUFFER_BYTES
from drivers.wires.libc import MSG_DONTWAIT, recv, send


@compiled
def judge(monitors, address, stride, count, times_ns):
    """Judge `count` datagrams, one each `stride` bytes from `address` on; returns the sum of the actions decided.

    The memory comes as an array of one: a single record of this size takes 15 us to hand over from Python.
    """
    m = monitors[0]
    actions = 0
    for k in range(count):
        actions += handle_frame_at(m, address + k * stride, 0, times_ns[k], True)
    return actions


@compiled
def echo(buffer, fd_in, fd_out, answer_bytes, stop):
    """The least that a reaction can be: receive a datagram, send one back; until `stop[0]` is set.

    The answer carries the datagram's word at 24 (a time) at 32, as a permit carries its own.
    """
    data = buffer.u8.ctypes.data
    served = 0
    while stop[0] == 0:
        length = recv(np.int32(fd_in), data, np.uint64(BUFFER_BYTES), np.int32(0))
        if length >= 0:
            buffer.i64[4] = buffer.i64[3]
            send(np.int32(fd_out), data, np.uint64(answer_bytes), np.int32(MSG_DONTWAIT))
            served += 1
    return served
