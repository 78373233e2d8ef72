"""`bench reaction`, compiled: the sender that takes turns between the real-time path and a bare echo, and the echo."""

from __future__ import annotations

import numpy as np

from drivers.compiled import compiled
from drivers.flags import FLAG_ARMED, FLAG_BEAM, FLAG_CHAIN, FLAG_HV_OK, FLAG_REQUEST, FLAG_SPILL
from drivers.wires.frames import (
    BUFFER_BYTES,
    FRAME_NS,
    STREAM_ELECTROMETER_1,
    STREAM_ELECTROMETER_2,
    STREAM_SCAN,
    seal,
    write_header,
)
from drivers.wires.libc import MSG_DONTWAIT, monotonic_ns, recv, send, sleep_until
from drivers.wires.permits import KIND_PERMIT, PERMIT_BYTES

NONCE = 7
VISIT_FRAMES = 12
"""Periods of a visit: 1.2 ms, a small carbon spot at 8e7/s."""
COUNTS_PER_FRAME = 400
QUIET_FRAMES = 400
"""Frames without beam before the first visit."""
SILENT_PERIODS = 300
"""Periods before permits are switched on: a permit needs the clocks of all streams, and these 10 ms to settle."""
UNANSWERED_MAX = 3
NEVER = -1
"""In the table of times: no answer within the sockets' time-out."""


@compiled
def visit_of(k):
    """Visit of frame period `k`; 0 before the first."""
    return 0 if k < QUIET_FRAMES else 1 + (k - QUIET_FRAMES) // VISIT_FRAMES


@compiled
def fill(buffer, stream, k, t_ns):
    """Header and CRC of a stream's frame of period `k`; returns its length."""
    visit = visit_of(k)
    beam = visit > 0
    shown = max(0, k - QUIET_FRAMES)  # periods with beam so far
    change = shown // VISIT_FRAMES * VISIT_FRAMES  # those before the running visit
    counts = (shown + 1) * COUNTS_PER_FRAME if beam else 0
    if stream == STREAM_SCAN:
        # requested from the start: the strips show their spot in all frames, which is no pedestal to be learnt
        flags = FLAG_ARMED | FLAG_CHAIN | FLAG_SPILL | FLAG_REQUEST
    else:
        flags = FLAG_HV_OK | (FLAG_BEAM if beam else 0)
    sequence = k // 2 if stream == STREAM_SCAN else k
    change_ns = t_ns - (shown - change) * FRAME_NS - FRAME_NS if beam else 0
    write_header(
        buffer, stream, NONCE + stream, sequence, t_ns, visit, flags, counts, change * COUNTS_PER_FRAME, change_ns
    )
    return seal(buffer, stream)


@compiled
def ask(buffer, length, answer, fd, timespec):
    """Send a datagram, wait for what comes back: ns from before the one to after the other; NEVER without an answer."""
    sent_ns = monotonic_ns(timespec)
    if send(np.int32(fd), buffer.u8.ctypes.data, np.uint64(length), np.int32(0)) != length:
        return NEVER
    got = recv(np.int32(fd), answer.u8.ctypes.data, np.uint64(BUFFER_BYTES), np.int32(0))
    return monotonic_ns(timespec) - sent_ns if got >= 0 else NEVER


@compiled
def drain(fd, answer):
    """Throw away answers that came too late, so that none is taken for the next one's; returns how many."""
    late = 0
    while recv(np.int32(fd), answer.u8.ctypes.data, np.uint64(BUFFER_BYTES), np.int32(MSG_DONTWAIT)) >= 0:
        late += 1
    return late


@compiled
def drive(frame_1, frame_2, frame_3, answer, fd_path, fd_permits, fd_echo, start_ns, first, times_ns, counters):
    """Be the devices from period `first` on, for all of `times_ns`: i64 [periods, 2], to which answer times go.

    Each period sends the frames that are due, electrometer 1's last, and waits for its permit (column 0); half a period
    later the same bytes go to the echo (column 1). Periods below SILENT_PERIODS show that the devices live, and wait
    for no permit. `counters`: late answers, answers that were no permits, permits that did not come.
    """
    timespec = np.zeros(2, np.int64)
    for row in range(times_ns.shape[0]):
        k = first + row
        due_ns = start_ns + k * FRAME_NS
        while monotonic_ns(timespec) < due_ns:
            sleep_until(due_ns, timespec)
        if k % 2 == 0:
            length = fill(frame_3, STREAM_SCAN, k, due_ns)
            send(np.int32(fd_path), frame_3.u8.ctypes.data, np.uint64(length), np.int32(0))
        length = fill(frame_2, STREAM_ELECTROMETER_2, k, due_ns)
        send(np.int32(fd_path), frame_2.u8.ctypes.data, np.uint64(length), np.int32(0))
        length = fill(frame_1, STREAM_ELECTROMETER_1, k, due_ns)
        counters[0] += drain(fd_permits, answer)
        sent_ns = monotonic_ns(timespec)
        send(np.int32(fd_path), frame_1.u8.ctypes.data, np.uint64(length), np.int32(0))
        if k < SILENT_PERIODS:
            continue
        got = recv(np.int32(fd_permits), answer.u8.ctypes.data, np.uint64(BUFFER_BYTES), np.int32(0))
        times_ns[row, 0] = monotonic_ns(timespec) - sent_ns if got == PERMIT_BYTES else NEVER
        if got < 0:
            counters[2] += 1
            if counters[2] > UNANSWERED_MAX:
                return  # something is wrong, and each of them takes the sockets' time-out
        if got == PERMIT_BYTES and answer.u8[5] != KIND_PERMIT:
            counters[1] += 1
        due_ns += FRAME_NS // 2
        while monotonic_ns(timespec) < due_ns:
            sleep_until(due_ns, timespec)
        counters[0] += drain(fd_echo, answer)
        times_ns[row, 1] = ask(frame_1, length, answer, fd_echo, timespec)


@compiled
def echo(buffer, fd_in, fd_out, stop):
    """The least that a reaction can be: receive a datagram, send one of a permit's size; until stop[0] is set."""
    data = buffer.u8.ctypes.data
    while stop[0] == 0:
        if recv(np.int32(fd_in), data, np.uint64(BUFFER_BYTES), np.int32(0)) >= 0:
            send(np.int32(fd_out), data, np.uint64(PERMIT_BYTES), np.int32(MSG_DONTWAIT))
