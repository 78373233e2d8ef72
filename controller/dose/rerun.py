"""Runs the integrator once more on a tape: the very functions that the real-time path called, in the order of the tape.

Whatever comes out of it (a row, a measured visit, a trip) is marked with the frame that it came out with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.dose.integrator import ACTION_NONE, handle_frame, handle_silence
from controller.dose.memory import MEASURED_RING, ROW_RING, Monitor
from controller.dose.sender import make_datagram
from controller.dose.tape import HEAD_WORDS, KIND_CONTROL, KIND_FRAME, KIND_SILENCE, bad_datagrams
from drivers.compiled import compiled

DONE = 0
FIELD_DUE = 1
"""The next entry's `clear` begins a field whose limits must be loaded first."""
VERDICT_DIFFERS = 2
"""A datagram is not what it was when it was recorded (intact, or not); it has been handled all the same."""
UNKNOWN_ENTRY = 3
STEP_ENTRIES = 8192
"""Entries a call, at most: fewer rows and visits than their rings hold come out of them."""
TRIPS = 64

MARK = np.dtype(
    [
        ("entry", "<i8"),  # number of the entry in the recording, from 0
        ("t_local_ns", "<i8"),
        ("stream", "<i8"),  # of the newest intact frame: stream, sequence, device time
        ("sequence", "<i8"),
        ("t_ns", "<i8"),
        ("frames", "<i8"),  # intact frames so far
    ]
)
"""A place in the recording: an entry, and the newest frame there."""
TRIP = np.dtype(
    [("number", "<i8"), ("value", "<f8"), ("limit", "<f8"), ("t_ns", "<i8"), ("visit", "<i8"), ("mark", MARK)]
)


@compiled
def _mark(to, frame):
    to.entry = frame.entry
    to.t_local_ns = frame.t_local_ns
    to.stream = frame.stream
    to.sequence = frame.sequence
    to.t_ns = frame.t_ns
    to.frames = frame.frames


@compiled
def _obey(m, words, at):
    c = m.control
    c.permit_on = words[at]
    c.lease_ns_0 = words[at + 1]
    c.lease_ns_1 = words[at + 2]
    c.drop = words[at + 3]
    c.reset = words[at + 4]
    c.log_on = words[at + 5]
    c.first_visit = words[at + 6]
    c.last_visit = words[at + 7]
    c.clear = words[at + 8]


@compiled
def rerun(m, words, at, loaded, entries, buffer, permit, frame, rows, measured, trips):
    """Handle up to `entries` entries from word `at` on; `loaded` is the `clear` whose limits are in the memory.

    `frame` is the mark of where it is; `rows` and `measured` are marks, in step with the rings of the memory;
    `trips` takes the latched conditions, in a ring too. Returns (why it ended, the next entry's word).
    """
    s = m.state
    for _ in range(entries):
        if at >= words.shape[0]:
            break
        head = words[at]
        kind = head & 0xFF
        size = head >> 16 & 0xFFFF
        now_ns = words[at + 1]
        body = at + HEAD_WORDS
        following = body + (size + 7) // 8
        if following > words.shape[0] or (kind == KIND_CONTROL and size != 72) or size > buffer.u8.shape[0]:
            return UNKNOWN_ENTRY, at
        row, visit, latched = s.rows, s.measured, s.trips
        action = ACTION_NONE
        right = True
        if kind == KIND_CONTROL:
            if words[body + 8] != m.control.clear and words[body + 8] != loaded:
                return FIELD_DUE, at
            _obey(m, words, body)
        elif kind == KIND_FRAME:
            for i in range(following - body):
                buffer.i64[i] = words[body + i]
            bad = bad_datagrams(m)
            action = handle_frame(m, buffer, size, now_ns, False)
            intact = bad_datagrams(m) == bad
            right = intact == (head >> 8 & 0xFF == 1)
            frame.t_local_ns = now_ns
            if intact:
                frame.stream = buffer.u8[5]
                frame.sequence = buffer.i64[2]
                frame.t_ns = buffer.i64[3]
                frame.frames += 1
        elif kind == KIND_SILENCE:
            frame.t_local_ns = now_ns
            action = handle_silence(m, now_ns)
        else:
            return UNKNOWN_ENTRY, at
        if action != ACTION_NONE:
            make_datagram(m, permit, action, now_ns)
        while row < s.rows:
            _mark(rows[row % rows.shape[0]], frame)
            row += 1
        while visit < s.measured:
            _mark(measured[visit % measured.shape[0]], frame)
            visit += 1
        if s.trips != latched:
            trip = trips[latched % trips.shape[0]]
            trip.number = s.trip
            trip.value = s.trip_value
            trip.limit = s.trip_limit
            trip.t_ns = s.trip_t_ns
            trip.visit = s.trip_visit
            _mark(trip.mark, frame)
        frame.entry += 1
        at = following
        if not right:
            return VERDICT_DIFFERS, at
    return DONE, at


class Rerun:
    """The integrator's memory during a rerun, and what has come out of it since it was last asked."""

    def __init__(self, limits: bytes, state: bytes) -> None:
        self.monitor = Monitor()
        memory = self.monitor.memory
        memory["limits"] = np.frombuffer(limits, memory["limits"].dtype)
        memory["state"] = np.frombuffer(state, memory["state"].dtype)
        self.loaded = int(memory["state"]["clear_seen"][0])
        self.frame: NDArray[Any] = np.zeros(1, MARK)
        self._rows: NDArray[Any] = np.zeros(ROW_RING, MARK)
        self._measured: NDArray[Any] = np.zeros(MEASURED_RING, MARK)
        self._trips: NDArray[Any] = np.zeros(TRIPS, TRIP)
        self._taken = dict.fromkeys(("rows", "measured", "trips"), 0)

    def load_field(self, clear: int, limits: bytes, plan: bytes) -> None:
        """Limits and visits of the field that begins with this `clear`."""
        memory = self.monitor.memory
        memory["limits"] = np.frombuffer(limits, memory["limits"].dtype)
        rows = np.frombuffer(plan, memory["plan"].dtype)
        memory["plan"][0][:] = np.zeros(1, rows.dtype)
        memory["plan"][0][: len(rows)] = rows
        self.loaded = clear

    def step(self, words: NDArray[np.int64], at: int) -> tuple[int, int]:
        """Go on from word `at`, for a while; returns why it ended and the next word."""
        monitor = self.monitor
        why, following = rerun(
            monitor.memory[0],
            words,
            at,
            self.loaded,
            STEP_ENTRIES,
            monitor.buffer,
            monitor.permit,
            self.frame[0],
            self._rows,
            self._measured,
            self._trips,
        )
        return int(why), int(following)

    def new_rows(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Log rows since the last call, and their marks."""
        return self._new("rows", self.monitor.rows, self._rows)

    def new_visits(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Measured visits since the last call, and their marks."""
        return self._new("measured", self.monitor.measured, self._measured)

    def new_trips(self) -> NDArray[Any]:
        """Conditions latched since the last call."""
        return self._new("trips", self._trips, self._trips)[0]

    def _new(self, what: str, ring: NDArray[Any], marks: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        written = int(self.monitor.state[what])
        which = np.arange(self._taken[what], written)
        self._taken[what] = written
        return ring[which % len(ring)], marks[which % len(marks)]
