"""The real-time path's memory: every field with its unit and meaning, shared by the compiled loop and asyncio.

One record, one writer a part: asyncio writes `control`, `limits` and the visit plan (before the field is armed); the
real-time path writes all the rest. The two rings have one producer and one consumer; an overrun is detected by
comparing counters, never silent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.record.schema import ROW_DTYPE
from drivers.compiled import records
from drivers.wires.frames import SCAN_WORDS, STRIPS, new_buffer

MAX_VISITS = 1 << 17
MEASURED_RING = 1 << 14
ROW_RING = 1 << 15
LEASES = 4
MEAN_VISITS = 20

Fields = tuple[tuple[str, str, str], ...]

CONTROL_FIELDS: Fields = (
    ("permit_on", "i8", "1: permits may be sent (set by arming)"),
    ("session", "u8", "session nonce of the chain"),
    ("token", "u8", "arm token"),
    ("key_0", "u8", "permit key"),
    ("key_1", "u8", "permit key"),
    ("lease_ns_0", "i8", "ns, end of the interlock task's lease"),
    ("lease_ns_1", "i8", "ns, end of the delivery task's lease"),
    ("drop", "i8", "number of a condition: drop now, 0: none"),
    ("reset", "i8", "counter: a change clears the latch"),
    ("log_on", "i8", "1: write rows"),
    ("first_visit", "i8", "lowest visit id that may run (0: none may)"),
    ("last_visit", "i8", "highest visit id that may run"),
    ("clear", "i8", "counter: a change starts a field (sums to zero)"),
    ("stop", "i8", "1: the loop ends"),
)

LIMIT_FIELDS: Fields = (
    ("frame_age_ns", "i8", "ns, no permit for an older frame"),
    ("stale_ns", "i8", "ns, a stream silent for longer trips"),
    ("lease_grace_ns", "i8", "ns after a lease's end, without permits, until it is latched: the chain's time-out"),
    ("spot_dose", "f8", "relative"),
    ("spot_dose_counts", "f8", "counts"),
    ("secondary_counts", "f8", "counts, floor of the secondary spot limit"),
    ("field_counts_1", "f8", "counts of electrometer 1 for the whole field, at most"),
    ("field_counts_2", "f8", "counts of electrometer 2"),
    ("pedestal_per_s", "f8", "counts per second without beam, at most"),
    ("idle_counts_1", "f8", "counts above the field's pedestal while no beam is asked for, at most"),
    ("idle_counts_2", "f8", "counts of electrometer 2"),
    ("disagreement", "f8", "relative"),
    ("disagreement_counts", "f8", "counts from which on both are compared"),
    ("position_mean_mm", "f8", "mm at isocentre"),
    ("width", "f8", "relative"),
    ("minimum_counts", "f8", "counts from which on position and width are judged"),
    ("proof_ns", "i8", "ns, beam this long after the end of a request trips"),
    ("blind_ns", "i8", "ns after a change of visit in which strips are not used"),
    ("window_ma", "f8", "mA, magnet read-back"),
    ("strip_scale_x", "f8", "position at the strips per position at isocentre"),
    ("strip_scale_y", "f8", ""),
    ("pitch_x_mm", "f8", "mm"),
    ("pitch_y_mm", "f8", "mm"),
    ("strip_units_per_count", "i8", "strip charge in a plane per count of electrometer 1"),
    ("lag_1_ns", "f8", "ns, mean delay of chamber 1's charge"),
    ("lag_2_ns", "f8", "ns"),
    ("lost_in_a_row", "i8", "frames"),
    ("lost_per_second", "i8", "frames of 10,000"),
    ("clock_drift_ns", "i8", "ns, a stream's clock offset may move this far in a field"),
    ("known_x_0", "u8", "strips of the x plane that the site knows to be bad: bit i is strip i"),
    ("known_x_1", "u8", "bit i is strip 64 + i"),
    ("known_y_0", "u8", "the same of the y plane"),
    ("known_y_1", "u8", ""),
    ("hot_pedestal", "i8", "2^-16 units, a strip whose pedestal is farther from zero is hot"),
    ("clear_units", "i8", "charge of a strip in a visit from which its signal is clear"),
    ("strips_bad", "i8", "bad strips in a plane, at most"),
    ("bias_share", "f8", "share of the position limit by which bad strips may move a centroid"),
)

STREAM_FIELDS: Fields = (
    ("seen", "i8", "1: a frame has been accepted"),
    ("nonce", "u8", "boot nonce"),
    ("sequence", "i8", "of the newest frame"),
    ("t_ns", "i8", "device time of the newest frame"),
    ("arrival_ns", "i8", "its arrival, local clock"),
    ("offset_ns", "i8", "smallest arrival - device time lately: clock offset and shortest way"),
    ("settled", "i8", "1: the offset is trusted; without it no frame is fresh"),
    ("settle_ns", "i8", "arrival since which the offset has not fallen"),
    ("settle_offset_ns", "i8", "the offset then"),
    ("anchor_ns", "i8", "the offset when it had settled, or when the field began"),
    ("frames", "i8", "accepted"),
    ("lost", "i8", "missing sequence numbers"),
    ("repeated", "i8", "sequence numbers seen before (not integrated again)"),
    ("late", "i8", "older than frame_age_ns on arrival (integrated, not permitted)"),
    ("window_start", "i8", "sequence at which the running second of loss counting began"),
    ("window_lost", "i8", "lost in it"),
    ("base", "f8", "counts per ns without beam when the field began: its pedestal behind the closed stopper"),
    ("idle_ns", "i8", "ns of the field while no beam was asked for, but for the first 10 ms and the last of each time"),
    ("idle_counts", "i8", "counts in them"),
    ("idle_frames", "i8", "frames since this time without request began to count"),
    ("idle_held", "i8", "counts of the last whole block of them: it counts when the next one is whole, too"),
    ("idle_new", "i8", "counts since that block"),
)

STATE_FIELDS: Fields = (
    ("trip", "i8", "number of the latched condition, 0: none"),
    ("trip_value", "f8", "in the condition's unit"),
    ("trip_limit", "f8", "in the condition's unit"),
    ("trip_t_ns", "i8", "device time of the frame that showed it (local time if none did)"),
    ("trip_local_ns", "i8", "local clock"),
    ("trip_visit", "i8", "visit then"),
    ("trips", "i8", "latched so far"),
    ("reset_seen", "i8", "last value of control.reset"),
    ("clear_seen", "i8", "last value of control.clear"),
    ("foreign", "i8", "datagrams that are no frames of ours"),
    ("torn", "i8", "frames of a wrong length"),
    ("corrupt", "i8", "frames with a wrong CRC"),
    ("permits", "i8", "sent"),
    ("permit_sequence", "i8", "of the last permit"),
    ("drops", "i8", "sent"),
    ("drops_for", "i8", "value of `trips` for which the drop was sent"),
    ("flags_1", "i8", "of the newest frame of stream 1"),
    ("flags_2", "i8", ""),
    ("flags_3", "i8", ""),
    ("flags_3_before", "i8", "of the frame of stream 3 before"),
    ("frames_seen_1", "i8", "1: a frame of stream 1 has been integrated"),
    ("frames_seen_2", "i8", ""),
    ("counts_1", "i8", "cumulative, of the newest frame"),
    ("counts_2", "i8", ""),
    ("field_start_1", "i8", "cumulative when the field began, -1: not yet known"),
    ("field_start_2", "i8", ""),
    ("field_start_1_ns", "i8", "device time then"),
    ("field_start_2_ns", "i8", ""),
    ("particles_1", "f8", "of complete visits of the field"),
    ("particles_2", "f8", ""),
    ("visits", "i8", "complete visits of the field"),
    ("request_off_ns", "i8", "device time when the request was last seen to fall"),
    ("unasked_ns", "i8", "ns of beam seen since the request fell, -1: none yet; fades slowly without beam"),
    ("frame_1_ns", "i8", "device time of the newest frame of stream 1 that was integrated"),
    ("delta_0", "i8", "counts of electrometer 1 in the last three frames"),
    ("delta_1", "i8", ""),
    ("delta_2", "i8", ""),
    ("delta2_0", "i8", "counts of electrometer 2 in the last three frames"),
    ("delta2_1", "i8", ""),
    ("delta2_2", "i8", ""),
    ("over_rate", "i8", "frames in a row above the rate limit"),
    ("off_window", "i8", "scan frames in a row outside the magnet window"),
    ("visit_apart", "i8", "scan frames in a row whose visit is not electrometer 1's"),
    ("quiet_ns_1", "i8", "ns of frames without beam, for the pedestal; halved with its counts, so that old ones fade"),
    ("quiet_counts_1", "i8", "counts in them"),
    ("quiet_ns_2", "i8", ""),
    ("quiet_counts_2", "i8", ""),
    ("begun", "i8", "highest visit that has begun in the field"),
    ("measured", "i8", "rows ever written to the ring of measured visits"),
    ("rows", "i8", "rows ever written to the ring of log rows"),
    ("row_flags", "i8", "or of all flags since the last row"),
    ("row_frames_1", "i8", "frames since the last row"),
    ("row_frames_2", "i8", ""),
    ("row_permits", "i8", "permits since the last row"),
    ("row_s1_x", "i8", "strip moments since the last row"),
    ("row_s2_x", "i8", ""),
    ("row_s0_x", "i8", ""),
    ("row_s1_y", "i8", ""),
    ("row_s2_y", "i8", ""),
    ("row_s0_y", "i8", ""),
    ("bad_x", "i8", "bad strips of the x plane"),
    ("bad_y", "i8", ""),
    ("pedestal_frames", "i8", "quiet frames from which strip pedestals were learned"),
    ("mean_count", "i8", "visits in the running mean of position errors"),
    ("alive", "i8", "loop turns, for the watchers"),
    ("lag_max_ns", "i8", "longest frame-to-decision time since last read (real clock)"),
    ("send_errors", "i8", "datagrams that the kernel did not take"),
)

VISIT_FIELDS: Fields = (
    # the running visit, as the frames show it
    ("visit", "i8", "id, 0: none"),
    ("t_start_ns", "i8", "device time"),
    ("counts_1", "i8", "cumulative at its start"),
    ("counts_2", "i8", "cumulative at its start, -1: stream 2 has not shown it yet"),
    ("late_1", "f8", "counts of the visit before that had not arrived at its start"),
    ("late_2", "f8", ""),
    ("s0_x", "i8", "strip sums in the window, made when the visit ends: charge"),
    ("s1_x", "i8", "charge x (strip - 64)"),
    ("s2_x", "i8", "charge x (strip - 64)^2"),
    ("s0_y", "i8", ""),
    ("s1_y", "i8", ""),
    ("s2_y", "i8", ""),
    ("bias_x_mm", "f8", "mm at the strips, made when the visit ends: how far bad strips may have moved the centroid"),
    ("bias_y_mm", "f8", ""),
    ("strip_frames", "i8", "frames used"),
    ("strip_counts", "i8", "counts of electrometer 1 in them"),
    ("part_frames", "i8", "of these, since the beam's place was last judged"),
    ("part_counts", "i8", "counts of electrometer 1 in them"),
    ("part_s0_x", "i8", "strip sums of them in the window, bad strips left out: charge"),
    ("part_s1_x", "i8", "charge x (strip - 64)"),
    ("part_s0_y", "i8", ""),
    ("part_s1_y", "i8", ""),
    ("ended", "i8", "1: electrometer 1 has shown the end of the visit before, electrometer 2 not yet"),
    ("quiet_ns_1", "i8", "ns of the visit's frames without beam: in a hold, or a pause"),
    ("quiet_counts_1", "i8", "counts in them: pedestal, and no estimate of it"),
    ("quiet_ns_2", "i8", ""),
    ("quiet_counts_2", "i8", ""),
    ("lost", "i8", "frames lost during the visit"),
    ("saturated", "i8", "1: saturation seen"),
)

PLAN_FIELDS: Fields = (
    # one row a visit, index = id; written by asyncio before the field is armed
    ("preset", "f8", "counts of electrometer 1"),
    ("expected_2", "f8", "counts of electrometer 2"),
    ("slack_1", "f8", "counts above the preset that may still come: beam-off delay, lag, one frame"),
    ("slack_2", "f8", "counts"),
    ("per_particle_1", "f8", "counts per particle"),
    ("per_particle_2", "f8", ""),
    ("rate_limit", "f8", "counts of electrometer 1 per frame"),
    ("x_strip_mm", "f8", "expected centroid at the strips"),
    ("y_strip_mm", "f8", ""),
    ("sigma_x_strip_mm", "f8", "expected"),
    ("sigma_y_strip_mm", "f8", ""),
    ("fill_x", "f8", "charge of a strip over the geometric mean of its neighbours', for the expected width"),
    ("fill_y", "f8", ""),
    ("position_limit_mm", "f8", "at isocentre, radial"),
    ("time_limit_us", "i8", "us of request"),
)

MEASURED_FIELDS: Fields = (
    ("visit", "i8", "id"),
    ("t_start_ns", "i8", "device time"),
    ("t_end_ns", "i8", "device time"),
    ("start_1", "i8", "cumulative counts of electrometer 1 at the start"),
    ("start_2", "i8", "of electrometer 2, -1: not shown"),
    ("counts_1", "i8", "cumulative at the end"),
    ("counts_2", "i8", "cumulative at the end, -1: stream 2 did not show the change"),
    ("delta_1", "f8", "counts in the visit, pedestal subtracted, late charge booked"),
    ("delta_2", "f8", ""),
    ("pedestal_1", "f8", "counts of pedestal in the visit"),
    ("pedestal_2", "f8", ""),
    ("late_1", "f8", "late charge booked: own that came after, minus the one before's that came in it"),
    ("late_2", "f8", ""),
    ("x_mm", "f8", "at isocentre, NaN: none"),
    ("y_mm", "f8", ""),
    ("sigma_x_mm", "f8", "at isocentre, NaN: none"),
    ("sigma_y_mm", "f8", ""),
    ("strip_counts", "i8", "counts of electrometer 1 in the frames that gave position and width"),
    ("strips_x", "i8", "strip charge in these frames, inside the window around the expected place"),
    ("strips_y", "i8", ""),
    ("strip_bias_mm", "f8", "at isocentre, how far bad strips may have moved the centroid; NaN: no position"),
    ("quality", "i8", "QUALITY_* of controller.record.schema"),
)


def record_type(fields: Fields) -> np.dtype[Any]:
    """The numpy type of a field table."""
    return np.dtype([(name, "<" + kind) for name, kind, _ in fields], align=True)


CONTROL = record_type(CONTROL_FIELDS)
LIMITS = record_type(LIMIT_FIELDS)
STREAM = record_type(STREAM_FIELDS)
STATE = record_type(STATE_FIELDS)
VISIT = record_type(VISIT_FIELDS)
PLAN = record_type(PLAN_FIELDS)
MEASURED = record_type(MEASURED_FIELDS)

MEMORY = np.dtype(
    [
        ("control", CONTROL),
        ("limits", LIMITS),
        ("streams", STREAM, (4,)),  # index: stream number
        ("state", STATE),
        ("running", VISIT),
        ("scan", "<i4", (SCAN_WORDS,)),
        ("pedestals", "<i8", (2 * STRIPS,)),  # of the strips, 2^-16 units
        ("strip_off", "<i8", (2 * STRIPS,)),  # 0: used, -1: bad and left out
        ("strip_faults", "<i8", (2 * STRIPS,)),  # why: STRIP_* bits of controller.dose.strips
        ("strip_sums", "<i8", (2 * STRIPS,)),  # charge of the running visit, 2^-16 units; units once it is closed
        ("errors_x_mm", "<f8", (MEAN_VISITS,)),
        ("errors_y_mm", "<f8", (MEAN_VISITS,)),
        ("plan", PLAN, (MAX_VISITS,)),
        ("measured", MEASURED, (MEASURED_RING,)),
        ("rows", ROW_DTYPE, (ROW_RING,)),
    ],
    align=True,
)


class Monitor:
    """The memory for Python; compiled code takes `memory[0]`, one pointer."""

    def __init__(self) -> None:
        self.memory: NDArray[Any] = records(1, MEMORY)
        self.buffer = new_buffer()
        self.permit = new_buffer()
        self._commands: NDArray[Any] = self.memory["control"]

    @property
    def control(self) -> Any:
        """Where asyncio writes its words; the real-time path's own memory, unless they are kept apart."""
        return self._commands[0]

    def separate_commands(self) -> None:
        """Give asyncio words of its own, for a path on another thread: that one takes them over once a turn."""
        self._commands = self._commands.copy()
        self.memory["control"][0] = self._commands[0]

    @property
    def acted_words(self) -> NDArray[np.int64]:
        """`control` of the memory, on which the path acts, as 64-bit words."""
        return self.memory.view(np.uint8)[: CONTROL.itemsize].view(np.int64)

    @property
    def wished_words(self) -> NDArray[np.int64]:
        """`control` as asyncio writes it, as 64-bit words."""
        return self._commands.view(np.int64) if self._commands.base is None else self.acted_words

    def __getattr__(self, name: str) -> Any:
        """A view of one field of the memory, such as `monitor.state["trip"]`."""
        if name in ("memory", "control") or name not in (MEMORY.names or ()):
            raise AttributeError(name)
        return self.memory[name][0]
