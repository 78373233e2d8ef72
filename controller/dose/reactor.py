"""The inner loop of a treatment in real time, compiled: a frame in, a judgement, a permit or a drop out.

It runs on its own thread without the interpreter lock, so nothing that Python does can delay a drop. Asyncio is woken
through an eventfd, and only for what a coroutine must see: spots come a thousand times a second.
"""

from __future__ import annotations

import numpy as np

from controller.dose.integrator import ACTION_DROP, ACTION_NONE, handle_frame, handle_silence
from controller.dose.sender import make_datagram
from controller.dose.tape import bad_datagrams, note_control, note_frame, note_silence, turns_done
from drivers.compiled import compiled
from drivers.flags import FLAG_ARMED, FLAG_CHAIN, FLAG_HOLD, FLAG_LAYER_DONE, FLAG_SPILL, FLAG_TRIPPED
from drivers.wires.frames import BUFFER_BYTES
from drivers.wires.libc import MSG_DONTWAIT, monotonic_ns, recv, send, write
from drivers.wires.permits import PERMIT_BYTES

NEWS_FLAGS = FLAG_SPILL | FLAG_HOLD | FLAG_ARMED | FLAG_CHAIN | FLAG_LAYER_DONE | FLAG_TRIPPED
"""Flags of stream 3 whose change asyncio is woken for; request and motion change with every spot."""
NEWS_VISITS = 1024
"""Asyncio is also woken each time so many more visits have been measured: about once a second, for displays.

Waking another thread takes up to 30 us on a virtual machine. What must not be missed is drained on a clock of its own.
"""
DROP_COPIES = 3
"""A drop is sent so often at once: a copy may be lost, and a socket reports an old error instead of sending."""
DROP_TRIES = 8


@compiled
def emit(m, permit, action, fd_out, now_ns):
    """Make the datagram that was decided on and send it; what the kernel does not take is counted."""
    make_datagram(m, permit, action, now_ns)
    copies = DROP_COPIES if action == ACTION_DROP else 1
    tries = DROP_TRIES if action == ACTION_DROP else 1
    data = permit.u8.ctypes.data
    for _ in range(tries):
        if send(np.int32(fd_out), data, np.uint64(PERMIT_BYTES), np.int32(MSG_DONTWAIT)) == PERMIT_BYTES:
            copies -= 1
            if copies == 0:
                return
        else:
            m.state.send_errors += 1


@compiled
def news(m):
    """A number that changes when asyncio must look: flags, trips, streams seen, blocks of measured visits."""
    s = m.state
    seen = m.streams[1].seen + m.streams[2].seen + m.streams[3].seen
    return (s.flags_3 & NEWS_FLAGS) + ((seen + 4 * (s.trips + s.measured // NEWS_VISITS)) << 16)


@compiled
def reactor(m, buffer, permit, fd_in, fd_out, event_fd, acted, wished, tape, ring):
    """Serve one thread until control.stop is set.

    `fd_in` is a UDP socket with a receive time-out, `fd_out` a connected one, `event_fd` an eventfd that is written
    whenever `news` changes. `acted` is `m.control` as 64-bit words, `wished` the same words as asyncio writes them:
    taken over once a turn, so that a turn acts on words that stay, and that a `tape` can tell. The permit leaves first.
    """
    timespec = np.zeros(2, np.int64)
    one = np.ones(1, np.int64)
    known = news(m)
    while m.control.stop == 0:
        length = recv(np.int32(fd_in), buffer.u8.ctypes.data, np.uint64(BUFFER_BYTES), np.int32(0))
        now_ns = monotonic_ns(timespec)
        for i in range(acted.shape[0]):
            acted[i] = wished[i]
        if tape.on == 1:
            note_control(tape, ring, m, now_ns)
        bad = bad_datagrams(m)
        done = turns_done(m)
        action = handle_frame(m, buffer, length, now_ns, False) if length >= 0 else handle_silence(m, now_ns)
        if action != ACTION_NONE:
            emit(m, permit, action, fd_out, now_ns)
        m.state.alive += 1
        if length >= 0:
            m.state.lag_max_ns = max(m.state.lag_max_ns, monotonic_ns(timespec) - now_ns)
        if tape.on == 1:
            if length >= 0:
                note_frame(tape, ring, buffer, length, now_ns, bad_datagrams(m) == bad)
            elif action != ACTION_NONE or turns_done(m) != done:
                note_silence(tape, ring, now_ns)
        latest = news(m)
        if latest != known:
            known = latest
            write(np.int32(event_fd), one.ctypes.data, np.uint64(8))
