"""Faults of the datagrams between room and controller, compiled: lost, late, repeated, changed, forged.

Line 0 carries the controller's permits, lines 1 to 3 the frames of that stream, line 4 those of electrometer 2 that the
guard receives. What comes later waits in a ring, which
also holds the frames that arrive while nobody receives them (a real-time thread that stands still): as in a kernel's
buffer they come out in their order, and what does not fit is lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.compiled import array_at, compiled, records
from drivers.wires.frames import BUFFER_BYTES, frame_at, seal

KINDS = ("none", "lost", "late", "repeated", "corrupted", "foreign", "replayed")
NONE, LOST, LATE, REPEATED, CORRUPTED, FOREIGN, REPLAYED = range(7)
SLOTS = 4096
WORDS = BUFFER_BYTES // 8
CORRUPTED_BYTE = 45
"""Of a frame: in its counts; of a permit: in what the MAC covers."""
OTHER_BOOT = 0x5A5A5A5A
GUARD_LINE = 4
"""Its datagrams are the very frames of line 2: lost, late, repeated or foreign, never changed in place."""

LINE = np.dtype(
    [
        ("kind", "<i8"),  # NONE to REPLAYED
        ("left", "<i8"),  # datagrams still to be hit, -1: all
        ("every", "<i8"),  # only each so many-th is hit
        ("seen", "<i8"),  # datagrams since the fault began
        ("hit", "<i8"),  # of these: hit
        ("delay_ns", "<i8"),  # LATE, REPEATED
    ]
)
LINES = np.dtype(
    [
        ("on", "<i8"),  # 1: datagrams pass through here
        ("deaf_until_ns", "<i8"),  # the controller's local time until which nobody receives
        ("data_at", "<i8"),  # address of the waiting datagrams
        ("head", "<i8"),
        ("tail", "<i8"),
        ("overflown", "<i8"),  # datagrams lost because the ring was full
        ("line", LINE, (5,)),
        ("due_ns", "<i8", (SLOTS,)),  # -1: gone
        ("of", "<i8", (SLOTS,)),  # the line it is on
    ]
)


class DatagramFaults:
    """The memory of all lines, for Python; compiled code takes `memory[0]` by its address."""

    def __init__(self) -> None:
        self.memory: NDArray[Any] = records(1, LINES)
        self._data: NDArray[np.int64] = np.zeros((SLOTS + 1, WORDS), np.int64)  # the last one: what is replayed
        self.memory["data_at"] = self._data.ctypes.data
        self.memory["line"]["every"] = 1

    def begin(self, line: int, kind: str, *, left: int = -1, every: int = 1, delay_ns: int = 0) -> None:
        """Let a fault act on a line, in place of one that acts there."""
        self.memory["line"][0, line] = (KINDS.index(kind), left, every, 0, 0, delay_ns)
        self.memory["on"] = 1

    def end(self, line: int) -> None:
        """Nothing more happens to new datagrams; what waits still comes."""
        self.memory["line"][0, line]["kind"] = NONE

    def deafen(self, until_ns: int) -> None:
        """Nobody receives until then."""
        self.memory["deaf_until_ns"] = until_ns
        self.memory["on"] = 1


@compiled
def _copy(source_at, target_at):
    source = array_at(source_at, WORDS, np.int64)
    target = array_at(target_at, WORDS, np.int64)
    for i in range(WORDS):
        target[i] = source[i]


@compiled
def put_aside(lines, line, address, due_ns):
    """Keep a datagram until `due_ns`; returns the address of the copy, 0: no room."""
    if lines.tail - lines.head >= SLOTS:
        lines.overflown += 1
        return 0
    at = lines.tail % SLOTS
    kept_at = lines.data_at + at * BUFFER_BYTES
    _copy(address, kept_at)
    lines.due_ns[at] = due_ns
    lines.of[at] = line
    lines.tail += 1
    return kept_at


@compiled
def next_due(lines, now_ns, of_guard):
    """The waiting datagram of the guard, or of all others, that is due first: its place, -1 for none.

    The caller takes it and calls `taken`.
    """
    best = -1
    for number in range(lines.head, lines.tail):
        at = number % SLOTS
        due_ns = lines.due_ns[at]
        if (lines.of[at] == GUARD_LINE) != of_guard:
            continue
        if 0 <= due_ns <= now_ns and (best < 0 or due_ns < lines.due_ns[best]):
            best = at
    return best


@compiled
def taken(lines, at):
    """It has been delivered."""
    lines.due_ns[at] = -1
    while lines.head < lines.tail and lines.due_ns[lines.head % SLOTS] < 0:
        lines.head += 1


@compiled
def passes(lines, line, address, now_ns):
    """What happens to a datagram that leaves now; True: it arrives at once, perhaps changed in place."""
    fault = lines.line[line]
    if fault.kind == NONE:
        return True
    fault.seen += 1
    if fault.left == 0 or fault.seen % fault.every != 0:
        return True
    fault.hit += 1
    if fault.left > 0:
        fault.left -= 1
    if fault.kind == LOST:
        return False
    if fault.kind == LATE:
        put_aside(lines, line, address, now_ns + fault.delay_ns)
        return False
    if fault.kind == REPEATED:
        put_aside(lines, line, address, now_ns + fault.delay_ns)
    elif fault.kind == CORRUPTED:
        frame_at(address).u8[CORRUPTED_BYTE] ^= np.uint8(0x10)
    elif fault.kind == FOREIGN:
        copy_at = put_aside(lines, line, address, now_ns)
        if copy_at != 0:
            copy = frame_at(copy_at)
            copy.u64[1] ^= np.uint64(OTHER_BOOT)
            seal(copy, 2 if line == GUARD_LINE else line)
    elif fault.kind == REPLAYED:
        old_at = lines.data_at + SLOTS * BUFFER_BYTES
        if fault.hit == 1:
            _copy(address, old_at)
        else:
            _copy(old_at, address)
    return True
