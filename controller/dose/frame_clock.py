"""Which frames count, and how old they are: sequence, loss, and the offset between a device's clock and ours.

Compiled. The offset is the smallest (arrival - device time) lately; a frame's age is what it takes longer than that.
"""

from __future__ import annotations

from drivers.compiled import compiled_inline
from drivers.wires.frames import FRAME_NS
from interlocks.numbers import CLOCK_DRIFT, DEVICE_RESTARTED, FRAME_LOSS_1
from interlocks.realtime import latch

ROW_NS = 200_000
SETTLE_NS = 10_000_000
"""An offset is trusted once it has not fallen for so long: a socket's old frames drain faster than new ones come."""
SETTLE_FALL_NS = 20_000
"""A fall by less is the wire's jitter; a queue that drains falls by 100 us a frame."""
OFFSET_CREEP_NS = 10
"""The clock offset may rise by this much a frame (100 ppm of a 100-us period): device clocks drift."""


@compiled_inline
def accept(m, stream, nonce, sequence, t_ns, now_ns):
    """Sequence, clock and loss accounting of one intact frame; False for one that must not be integrated (again)."""
    r = m.streams[stream]
    if r.seen == 0 or nonce != r.nonce:
        if r.seen == 1:
            latch(m, DEVICE_RESTARTED, float(stream), 0.0, t_ns, now_ns)
        r.seen = 1
        r.nonce = nonce
        r.sequence = sequence - 1
        r.t_ns = t_ns - 1
        r.offset_ns = now_ns - t_ns
        r.settled = 0
        r.settle_ns = now_ns
        r.settle_offset_ns = r.offset_ns
        r.window_start = sequence
        r.window_lost = 0
    if sequence <= r.sequence or t_ns <= r.t_ns:
        r.repeated += 1
        return False
    lost = sequence - r.sequence - 1
    if sequence - r.window_start >= 10_000:
        r.window_start = sequence
        r.window_lost = 0
    if lost > 0:
        r.lost += lost
        r.window_lost += lost
        m.running.lost += lost
        if lost >= m.limits.lost_in_a_row:
            latch(m, FRAME_LOSS_1 + stream - 1, float(lost), float(m.limits.lost_in_a_row), t_ns, now_ns)
        elif r.window_lost > m.limits.lost_per_second:
            latch(m, FRAME_LOSS_1 + stream - 1, float(r.window_lost), float(m.limits.lost_per_second), t_ns, now_ns)
    r.sequence = sequence
    r.t_ns = t_ns
    r.arrival_ns = now_ns
    r.offset_ns = min(r.offset_ns + OFFSET_CREEP_NS, now_ns - t_ns)
    r.frames += 1
    follow_clock(m, stream, t_ns, now_ns)
    if now_ns - t_ns - r.offset_ns > m.limits.frame_age_ns:
        r.late += 1
    return True


@compiled_inline
def follow_clock(m, stream, t_ns, now_ns):
    """Trust the offset once it has settled; from then on it may not move far in a field.

    It creeps by design, with the device's clock: without a bound a queue that grows as slowly would hide in it, and
    old frames would look fresh for ever. It may not fall far either: then it was not settled when it was trusted.
    """
    r = m.streams[stream]
    if r.settled == 0:
        if r.offset_ns < r.settle_offset_ns - SETTLE_FALL_NS:
            r.settle_offset_ns = r.offset_ns
            r.settle_ns = now_ns
        elif now_ns - r.settle_ns >= SETTLE_NS:
            r.settled = 1
            r.anchor_ns = r.offset_ns
    elif abs(r.offset_ns - r.anchor_ns) > m.limits.clock_drift_ns:
        moved_ms = float(r.offset_ns - r.anchor_ns) * 1e-6
        latch(m, CLOCK_DRIFT, moved_ms, float(m.limits.clock_drift_ns) * 1e-6, t_ns, now_ns)


@compiled_inline
def anchor_clocks(m):
    """A field begins, or a reset lets the beam go on: from here on the offsets may move."""
    for stream in range(1, 4):
        m.streams[stream].anchor_ns = m.streams[stream].offset_ns


@compiled_inline
def is_fresh(m, now_ns):
    """True while the newest frames of all three streams are young enough for a permit: it rests on each of them.

    Asked with a frame of electrometer 1: the newest of the two others is up to a period older without being late.
    """
    if m.streams[1].settled + m.streams[2].settled + m.streams[3].settled < 3:
        return False
    oldest = max(
        now_ns - m.streams[1].t_ns - m.streams[1].offset_ns,
        now_ns - m.streams[2].t_ns - m.streams[2].offset_ns - FRAME_NS,
        now_ns - m.streams[3].t_ns - m.streams[3].offset_ns - ROW_NS,
    )
    return oldest <= m.limits.frame_age_ns
