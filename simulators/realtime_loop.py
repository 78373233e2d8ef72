"""The room in real time, compiled: one frame each 100 us, permits in, frames out, never the interpreter.

A frame leaves when the time it describes is over. After a stall the missing frames are made one after the other
without sleeping: late data, as from a real device whose network was held up.
"""

from __future__ import annotations

import numpy as np

from drivers.compiled import compiled
from drivers.wires.frames import BUFFER_BYTES, FRAME_NS, seal
from drivers.wires.libc import MSG_DONTWAIT, monotonic_ns, recv, send, sleep_until
from simulators.plant.chain import receive_permit
from simulators.plant.step import advance_frame

PERMITS_PER_FRAME = 64
"""More waiting datagrams than this are left for the next frame: a flood must not hold up time."""

# words of the loop's status
STOP, FRAMES, SENT, SEND_ERRORS, LATE_MAX_NS, LATE_FRAMES = range(6)
STATUS_WORDS = 6


@compiled
def take_permits(plant, permit, permit_fd):
    """All waiting datagrams (but no flood) reach the watchdog at the start of the frame."""
    for _ in range(PERMITS_PER_FRAME):
        length = recv(np.int32(permit_fd), permit.u8.ctypes.data, np.uint64(BUFFER_BYTES), np.int32(MSG_DONTWAIT))
        if length < 0:
            return
        receive_permit(plant, permit, length, plant.state.t_ns)


@compiled
def send_frame(buffer, stream, fds, enabled, status):
    """Seal a frame and send it to each enabled destination of its stream."""
    length = seal(buffer, stream)
    for slot in range(fds.shape[1]):
        if enabled[stream, slot] == 1:
            data = buffer.u8.ctypes.data
            if send(np.int32(fds[stream, slot]), data, np.uint64(length), np.int32(MSG_DONTWAIT)) == length:
                status[SENT] += 1
            else:
                status[SEND_ERRORS] += 1  # nobody listens there, or the buffer is full: as on a real network


@compiled
def run_room(plant, frame_1, frame_2, frame_3, permit, permit_fd, fds, enabled, status):
    """Run the plant in step with CLOCK_MONOTONIC until status[STOP] is set.

    `fds` and `enabled`: i32 [4 streams, 2 slots], connected UDP sockets and 1 where frames shall go there.
    """
    timespec = np.zeros(2, np.int64)
    while status[STOP] == 0:
        due_ns = plant.state.t_ns + FRAME_NS
        now_ns = monotonic_ns(timespec)
        if now_ns < due_ns:
            sleep_until(due_ns, timespec)
            now_ns = monotonic_ns(timespec)
            if now_ns < due_ns:
                continue
        late_ns = now_ns - due_ns
        status[LATE_MAX_NS] = max(status[LATE_MAX_NS], late_ns)
        if late_ns > FRAME_NS:
            status[LATE_FRAMES] += 1
        take_permits(plant, permit, permit_fd)
        streams = advance_frame(plant, frame_1, frame_2, frame_3)
        if streams & 1:
            send_frame(frame_1, 1, fds, enabled, status)
        if streams & 2:
            send_frame(frame_2, 2, fds, enabled, status)
        if streams & 4:
            send_frame(frame_3, 3, fds, enabled, status)
        status[FRAMES] += 1
