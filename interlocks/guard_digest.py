"""What the guard keeps of electrometer 2's frames between two turns: a few whole numbers, no more.

`take_frame` is written so that it runs as plain Python in the guard's process and compiled in a room in virtual time:
one source, so that both judge the same. Lost frames lose nothing: counts are cumulative, and times are differences.
"""

from __future__ import annotations

from typing import Any

from drivers.flags import FLAG_BEAM

(
    FRAMES,  # taken so far
    NONCE,  # of the device's power-up
    RESTARTS,  # frames whose nonce was another than the frame's before
    T_NS,  # device time of the newest
    COUNTS,  # cumulative, newest
    FLAGS,  # newest
    FLAGS_ALL,  # flags that all frames since the last turn had
    FLAGS_ANY,  # flags that any of them had
    SHOWN,  # visit in the newest frame; 0: none runs
    VISIT,  # the one that began last
    AGAIN,  # visits that began though they, or a later one, had begun before
    FELL,  # largest fall of the counter
    BEAM_NS,  # time with beam
    FLANKS,  # times that beam went off
    QUIET_NS,  # time without beam
    QUIET_COUNTS,  # counted in it
) = range(16)
WORDS = 16
ALL_FLAGS = 0xFFFFFFFF


def new_digest(digest: Any) -> None:
    """Forget everything."""
    for word in range(WORDS):
        digest[word] = 0
    digest[FLAGS_ALL] = ALL_FLAGS


def begin_turn(digest: Any) -> None:
    """After a judgement: flags are collected anew."""
    digest[FLAGS_ALL] = ALL_FLAGS
    digest[FLAGS_ANY] = 0


def begin_field(digest: Any) -> None:
    """At arming: visits, falls, beam time and flanks are counted anew; what the pedestal is stays known."""
    digest[SHOWN] = 0
    digest[VISIT] = 0
    digest[AGAIN] = 0
    digest[FELL] = 0
    digest[BEAM_NS] = 0
    digest[FLANKS] = 0


def take_frame(digest: Any, nonce: int, t_ns: int, visit: int, flags: int, counts: int) -> None:
    """Take one whole frame; one that is not newer than the last is passed over."""
    if digest[FRAMES] > 0 and nonce == digest[NONCE]:
        span_ns = t_ns - digest[T_NS]
        if span_ns <= 0:
            return
        counted = counts - digest[COUNTS]
        digest[FELL] = max(digest[FELL], -counted)
        before = digest[FLAGS] & FLAG_BEAM
        if flags & FLAG_BEAM != 0:
            digest[BEAM_NS] += span_ns
        elif before != 0:
            digest[FLANKS] += 1
        else:
            digest[QUIET_NS] += span_ns
            digest[QUIET_COUNTS] += counted
    elif digest[FRAMES] > 0:
        digest[RESTARTS] += 1
    digest[FRAMES] += 1
    digest[NONCE] = nonce
    digest[T_NS] = t_ns
    digest[COUNTS] = counts
    digest[FLAGS] = flags
    digest[FLAGS_ALL] &= flags
    digest[FLAGS_ANY] |= flags
    if visit > 0 and visit != digest[SHOWN]:
        if visit <= digest[VISIT]:
            digest[AGAIN] += 1
        digest[VISIT] = visit
    digest[SHOWN] = visit
