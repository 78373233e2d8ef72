"""The tape: a ring in memory onto which the real-time path copies all that its results depend on.

Every datagram as received, every turn without one that changed something, and the words of asyncio that the path acted
on, each with the local time that the path used. One producer (the path) and one consumer (the recorder's thread). The
path never waits: where the ring is full, recording stops for good, and the tape says so.

An entry is a whole number of 64-bit words: a head, the local time in ns, a body.

    head bits  0 to 7   kind: 1 datagram, 2 turn without datagram, 3 words of asyncio (`ACTED`, one i64 each)
               8 to 15  datagram: 1 intact (whole, ours, right CRC) when it was received, else 0
              16 to 31  bytes of the body, without the zeros that fill up its last word
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.compiled import compiled, records
from drivers.wires.frames import BUFFER_BYTES

KIND_FRAME = 1
KIND_SILENCE = 2
KIND_CONTROL = 3
HEAD_WORDS = 2
ACTED = (
    "permit_on",
    "lease_ns_0",
    "lease_ns_1",
    "drop",
    "reset",
    "log_on",
    "first_visit",
    "last_visit",
    "clear",
)
"""Words of the path's control that its results depend on; keys and tokens are secrets, and only permits need them."""
ENTRY_WORDS = HEAD_WORDS + BUFFER_BYTES // 8
"""Longest entry."""
RING_WORDS = 1 << 23
"""64 MiB: five seconds of frames, the longest that the consumer may be away."""

TAPE = np.dtype(
    [
        ("on", "<i8"),  # 1: recording; the path sets it to 0 when the ring is full
        ("overrun", "<i8"),  # 1: stopped because the ring was full
        ("written", "<i8"),  # words ever written (the path)
        ("taken", "<i8"),  # words ever taken (the consumer)
        ("gap_start", "<i8"),  # words between these two, at the ring's end, are of no entry: the newest such gap
        ("gap_end", "<i8"),
        ("entries", "<i8"),  # entries ever written
        ("known", "<i8", (len(ACTED),)),  # words of asyncio as last written down
        ("known_any", "<i8"),  # 0: none written down yet
    ]
)


@compiled
def _room(tape, ring, words):
    """Place of an entry of so many words in the ring, contiguous; -1: none, recording has stopped."""
    size = ring.shape[0]
    at = tape.written % size
    skip = size - at if at + words > size else 0
    if tape.written + skip + words - tape.taken > size:
        tape.on = 0
        tape.overrun = 1
        return -1
    if skip > 0:
        tape.gap_start = tape.written
        tape.gap_end = tape.written + skip
        tape.written += skip
        at = 0
    return at


@compiled
def note_control(tape, ring, m, now_ns):
    """Write the words of asyncio down if they differ from those written last; call it before the turn they act on."""
    if tape.on == 0:
        return
    c = m.control
    k = tape.known
    if (
        tape.known_any == 1
        and k[0] == c.permit_on
        and k[1] == c.lease_ns_0
        and k[2] == c.lease_ns_1
        and k[3] == c.drop
        and k[4] == c.reset
        and k[5] == c.log_on
        and k[6] == c.first_visit
        and k[7] == c.last_visit
        and k[8] == c.clear
    ):
        return
    at = _room(tape, ring, HEAD_WORDS + 9)
    if at < 0:
        return
    k[0] = c.permit_on
    k[1] = c.lease_ns_0
    k[2] = c.lease_ns_1
    k[3] = c.drop
    k[4] = c.reset
    k[5] = c.log_on
    k[6] = c.first_visit
    k[7] = c.last_visit
    k[8] = c.clear
    tape.known_any = 1
    ring[at] = KIND_CONTROL | (9 * 8) << 16
    ring[at + 1] = now_ns
    for i in range(9):
        ring[at + HEAD_WORDS + i] = k[i]
    tape.entries += 1
    tape.written += HEAD_WORDS + 9


@compiled
def note_frame(tape, ring, buffer, length, now_ns, intact):
    """Copy a datagram of `length` bytes that the path has just handled at `now_ns`."""
    if tape.on == 0:
        return
    length = min(length, buffer.u8.shape[0])
    body = (length + 7) // 8
    at = _room(tape, ring, HEAD_WORDS + body)
    if at < 0:
        return
    ring[at] = KIND_FRAME | (1 if intact else 0) << 8 | length << 16
    ring[at + 1] = now_ns
    for i in range(body):
        ring[at + HEAD_WORDS + i] = buffer.i64[i]
    if length % 8 != 0:  # what the buffer holds beyond is an older datagram's
        ring[at + HEAD_WORDS + body - 1] &= (1 << (8 * (length % 8))) - 1
    tape.entries += 1
    tape.written += HEAD_WORDS + body


@compiled
def note_silence(tape, ring, now_ns):
    """Write down a turn without datagram."""
    if tape.on == 0:
        return
    at = _room(tape, ring, HEAD_WORDS)
    if at < 0:
        return
    ring[at] = KIND_SILENCE
    ring[at + 1] = now_ns
    tape.entries += 1
    tape.written += HEAD_WORDS


@compiled
def bad_datagrams(m):
    """Datagrams so far that were no intact frames; a turn that leaves it as it was had an intact one."""
    return m.state.foreign + m.state.torn + m.state.corrupt


@compiled
def turns_done(m):
    """A number that grows with all that a turn without datagram may do but pass: latch, obey a reset or a new field."""
    return m.state.trips + m.state.reset_seen + m.state.clear_seen


class Tape:
    """The ring for Python; compiled code takes `memory[0]` and `ring`. Without words it records nothing, for ever."""

    def __init__(self, words: int = 0) -> None:
        self.memory: NDArray[Any] = records(1, TAPE)
        self.ring: NDArray[np.int64] = np.empty(max(words, 1), np.int64)
        self.ring.fill(0)  # the memory is there before the path wants it
        self.memory["on"] = 1 if words else 0
        self._seen = 0

    @property
    def on(self) -> bool:
        """Recording goes on."""
        return bool(self.memory["on"][0])

    @property
    def overrun(self) -> bool:
        """The consumer was away for too long; recording stopped."""
        return bool(self.memory["overrun"][0])

    def stop(self) -> None:
        """Record no more."""
        self.memory["on"] = 0

    def waiting(self) -> int:
        """Words that can be taken."""
        return int(self.memory["written"][0] - self.memory["taken"][0])

    def take(self, *, settled: bool) -> NDArray[np.int64]:
        """Entries since the last call, without gaps (a copy).

        `settled`: the path is not running (virtual time, or ended). Else only what was written before the
        previous call is taken: then it is surely in memory, in whatever order the processor wrote it.
        """
        written = int(self.memory["written"][0])
        end, self._seen = (written if settled else self._seen), written
        taken = int(self.memory["taken"][0])
        gap = (int(self.memory["gap_start"][0]), int(self.memory["gap_end"][0]))
        # fewer words than the ring holds can wait, so the newest gap is the only one among them
        ranges = [(taken, gap[0]), (gap[1], end)] if taken <= gap[0] < end else [(taken, end)]
        pieces = [piece for first, last in ranges for piece in self._copies(first, last)]
        self.memory["taken"] = end
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    def _copies(self, first: int, last: int) -> Iterator[NDArray[np.int64]]:
        size = len(self.ring)
        while first < last:
            at = first % size
            words = min(last - first, size - at)
            yield self.ring[at : at + words].copy()
            first += words


@compiled
def survey(words, count):
    """Entries in the first `count` words, and the times of the first and the last of them."""
    at = 0
    entries = 0
    last = at
    while at + HEAD_WORDS <= count:
        last = at
        entries += 1
        at += HEAD_WORDS + ((words[at] >> 16 & 0xFFFF) + 7) // 8
    return entries, words[1], words[last + 1]
