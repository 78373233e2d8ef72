"""How old electrometer 2's newest frame is, by the device's own time: its clock against the guard's. Pure functions.

The offset between the clocks is the smallest (arrival - device time) that there was: that of the frame that was least
on its way. What another takes longer is its age, however lately it came. Clocks drift, so the offset may rise slowly; a
queue that grows as slowly would hide in that, so while a field is armed it rises by so much and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

DRIFT_SHARE = 10_000
"""The offset may rise by one part in so many: 100 ppm. Quartz clocks keep within 50."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What came of the stream of frames, on the guard's clock."""

    nonce: int
    """Of the device's power-up: another one has another clock."""
    offset_ns: int
    came_ns: int
    """When the newest frame came."""
    made_ns: int
    """When it was measured."""
    late_ns: int | None = None
    """The turn that first found it too old for a permit; None: it is not."""


def follow(before: Stream | None, nonce: int, t_ns: int, now_ns: int, most_ns: int | None) -> Stream:
    """A newer frame, of device time `t_ns`, has come; `most_ns` bounds the offset while a field is armed."""
    offset_ns = now_ns - t_ns
    late_ns = None
    if before is not None and before.nonce == nonce:
        offset_ns = min(offset_ns, before.offset_ns + (now_ns - before.came_ns) // DRIFT_SHARE)
        if most_ns is not None:
            offset_ns = min(offset_ns, most_ns)
        late_ns = before.late_ns
    return Stream(nonce, offset_ns, now_ns, t_ns + offset_ns, late_ns)


def look(stream: Stream, limit_ns: int, now_ns: int) -> Stream:
    """At a turn: since which one the newest frame is older than `limit_ns`.

    A turn that comes late, on a stalled computer, is one turn: it makes nothing last.
    """
    if now_ns - stream.made_ns <= limit_ns:
        return replace(stream, late_ns=None)
    return stream if stream.late_ns is not None else replace(stream, late_ns=now_ns)
