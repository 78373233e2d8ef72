"""The doctor's compiled loops: how late a thread wakes, and a sender of frames that listens for permits."""

from __future__ import annotations

import numpy as np

from controller.bench.reaction_loop import fill
from drivers.compiled import compiled
from drivers.wires.frames import BUFFER_BYTES, FRAME_NS, STREAM_ELECTROMETER_1, STREAM_ELECTROMETER_2, STREAM_SCAN
from drivers.wires.libc import MSG_DONTWAIT, monotonic_ns, recv, send, sleep_until
from drivers.wires.permits import PERMIT_BYTES

REFUSED, PERMITS, LAST_NS, GAP_NS, LATE_NS, FIGURES = 0, 1, 2, 3, 4, 5
"""Words of `pump`'s figures: sends refused, permits, time of the last, longest pause, latest own wake-up; how many."""


@compiled
def wake_ups(late_ns, period_ns):
    """Sleep until each multiple of the period in turn, and note how late that was: i64 [wake-ups]."""
    timespec = np.zeros(2, np.int64)
    due_ns = monotonic_ns(timespec) // period_ns * period_ns + period_ns
    for k in range(late_ns.shape[0]):
        while monotonic_ns(timespec) < due_ns:
            sleep_until(due_ns, timespec)
        now_ns = monotonic_ns(timespec)
        late_ns[k] = now_ns - due_ns
        due_ns = now_ns // period_ns * period_ns + period_ns


@compiled
def listen(fd, answer, figures, now_ns):
    """Take all permits that wait."""
    while recv(np.int32(fd), answer.u8.ctypes.data, np.uint64(BUFFER_BYTES), np.int32(MSG_DONTWAIT)) == PERMIT_BYTES:
        figures[PERMITS] += 1
        if figures[LAST_NS] > 0:
            figures[GAP_NS] = max(figures[GAP_NS], now_ns - figures[LAST_NS])
        figures[LAST_NS] = now_ns


@compiled
def pump(frame_1, frame_2, frame_3, answer, fd_path, fd_permits, start_ns, first, periods, figures):
    """Send the three streams' frames of so many periods, never more than one period at once, and hear the permits.

    After a stall of the sender the missing frames follow without a pause, as devices with a queue would send them.
    """
    timespec = np.zeros(2, np.int64)
    for k in range(first, first + periods):
        due_ns = start_ns + k * FRAME_NS
        while monotonic_ns(timespec) < due_ns:
            sleep_until(due_ns, timespec)
        now_ns = monotonic_ns(timespec)
        figures[LATE_NS] = max(figures[LATE_NS], now_ns - due_ns)
        listen(fd_permits, answer, figures, now_ns)
        if k % 2 == 0:
            length = fill(frame_3, STREAM_SCAN, k, due_ns)
            if send(np.int32(fd_path), frame_3.u8.ctypes.data, np.uint64(length), np.int32(0)) != length:
                figures[REFUSED] += 1
        length = fill(frame_2, STREAM_ELECTROMETER_2, k, due_ns)
        if send(np.int32(fd_path), frame_2.u8.ctypes.data, np.uint64(length), np.int32(0)) != length:
            figures[REFUSED] += 1
        length = fill(frame_1, STREAM_ELECTROMETER_1, k, due_ns)
        if send(np.int32(fd_path), frame_1.u8.ctypes.data, np.uint64(length), np.int32(0)) != length:
            figures[REFUSED] += 1
