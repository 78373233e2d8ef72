"""The real-time judgements once more in plain Python, beside `controller.dose.reference`: the first condition wins.

It is told by the integrator what happens and remembers the first thing that was wrong. Commands and leases are
asyncio's affair and are not judged here; silence is, from the turn on in which permits are on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from controller.dose.memory import MAX_VISITS, MEAN_VISITS, Monitor
from controller.dose.reference import Integrator, Moments, Row, Visit, plain, plain_plan
from drivers.flags import (
    FLAG_ARMED,
    FLAG_BEAM,
    FLAG_CHAIN,
    FLAG_HV_OK,
    FLAG_MOVING,
    FLAG_REQUEST,
    FLAG_SATURATED,
    FLAG_TRIPPED,
)
from drivers.wires.frames import (
    SCAN_BEAM_ON_US,
    SCAN_ENGINE_TRIP,
    SCAN_X_PRIMARY_MA,
    SCAN_X_REDUNDANT_MA,
    SCAN_X_SET_MA,
    SCAN_Y_PRIMARY_MA,
    SCAN_Y_REDUNDANT_MA,
    SCAN_Y_SET_MA,
    STRIPS,
    Frame,
)
from interlocks import numbers


@dataclass(frozen=True, slots=True)
class FirstOut:
    """The first condition, as the real-time path latches it."""

    number: int
    visit: int
    value: float
    limit: float


class Judge:
    """Listens to an `Integrator`; `first_out` is the first condition that held."""

    def __init__(self, monitor: Monitor) -> None:
        """Limits, plan and allowed visits are copied from a real-time memory that is ready for a field."""
        self.integrator = Integrator(plain(monitor.limits), plain_plan(monitor), self)
        control = plain(monitor.control)
        self.first_visit, self.last_visit = control["first_visit"], control["last_visit"]
        self.permit_on = False
        self.first_out: FirstOut | None = None
        self._unasked_ns: int | None = None
        self._begun = 0
        self._over_rate = self._off_window = self._apart = 0
        self._errors: list[tuple[float, float]] = []

    def _trip(self, number: int, value: float, limit: float) -> None:
        if self.first_out is None:
            self.first_out = FirstOut(number, self.integrator.visit.id, float(value), float(limit))

    def _limit(self, name: str) -> Any:
        return self.integrator.limits[name]

    def lost(self, stream: int, lost: int, in_second: int) -> None:
        """Three in a row, or more than 0.1 % in a second."""
        for count, limit, hit in (
            (lost, self._limit("lost_in_a_row"), lost >= self._limit("lost_in_a_row")),
            (in_second, self._limit("lost_per_second"), in_second > self._limit("lost_per_second")),
        ):
            if hit:
                self._trip(numbers.FRAME_LOSS_1 + stream - 1, count, limit)

    def restarted(self, stream: int) -> None:
        """Another boot nonce."""
        self._trip(numbers.DEVICE_RESTARTED, stream, 0.0)

    def visit_changes(self, before: Visit, visit: int) -> None:
        """Only allowed visits, upwards, each once, none passed over without a frame lost."""
        if visit == 0:
            return
        allowed = range(self.first_visit, self.last_visit + 1)
        following = max(self._begun + 1, self.first_visit)
        if visit not in allowed or not 0 <= visit - following <= before.lost:
            self._trip(numbers.VISIT_SEQUENCE, visit, self.last_visit)
        self._begun = max(self._begun, visit if visit < MAX_VISITS else 0)

    def turn(self, now_ns: int) -> None:
        """Silence."""
        for stream, channel in self.integrator.channels.items():
            silence_ns = now_ns - channel.arrival_ns
            if self.permit_on and (channel.newest is None or silence_ns > self._limit("stale_ns")):
                self._trip(numbers.STREAM_SILENT_1 + stream - 1, silence_ns * 1e-6, self._limit("stale_ns") * 1e-6)

    def quiet(self, counts: int, span_ns: int) -> None:
        """Counts without beam."""
        per_s = abs(float(counts)) / float(span_ns) * 1e9
        if span_ns >= 200_000_000 and per_s > self._limit("pedestal_per_s"):
            self._trip(numbers.PEDESTAL_HIGH, per_s, self._limit("pedestal_per_s"))

    def idle(self, stream: int, counts: int) -> None:
        """Counts of the field without request; its pedestal is not known to this judge, and taken as none."""
        limit = self._limit(f"idle_counts_{stream}")
        if self.permit_on and abs(counts) > limit:
            self._trip(numbers.IDLE_CHARGE, counts, limit)

    def strips_bad(self, bad: set[int]) -> None:
        """More than the site allows, in one plane."""
        in_x = sum(i < STRIPS for i in bad)
        most = max(in_x, len(bad) - in_x)
        if most > self._limit("strips_bad"):
            self._trip(numbers.STRIPS_BAD, most, self._limit("strips_bad"))

    def clock_moved(self, moved_ns: int) -> None:
        """Farther than clocks do."""
        self._trip(numbers.CLOCK_DRIFT, moved_ns * 1e-6, self._limit("clock_drift_ns") * 1e-6)

    def frame_integrated(self, frame: Frame, delta: int, before: Frame | None) -> None:
        """All that one frame shows."""
        if frame.stream == 3:
            self._scan(frame, 0 if before is None else before.flags)
            return
        first = frame.stream == 1
        span_ns = 0 if before is None else max(0, frame.t_ns - before.t_ns)
        if not frame.flags & FLAG_HV_OK:
            self._trip(numbers.HIGH_VOLTAGE_1 if first else numbers.HIGH_VOLTAGE_2, 0.0, 0.0)
        if frame.flags & FLAG_SATURATED:
            self._trip(numbers.SATURATED, delta if first else 0.0, 0.0)
        if first:
            self._unrequested(frame, span_ns)
        elif frame.flags & FLAG_TRIPPED:
            self._trip(numbers.BACKUP_TRIPPED, 0.0, 0.0)
        least = min(delta, frame.counts - frame.counts_at_change)
        if least < -self._limit("spot_dose_counts"):
            self._trip(numbers.COUNTS_BACKWARDS, least, -self._limit("spot_dose_counts"))
        channel = self.integrator.channels[frame.stream]
        field = frame.counts - channel.start_counts  # the field's pedestal: as in `idle`
        limit = self._limit(f"field_counts_{frame.stream}")
        if field > limit:
            self._trip(numbers.FIELD_DOSE_PRIMARY if first else numbers.FIELD_DOSE_SECONDARY, field, limit)
        if self.integrator.visit.id > 0:
            if first:
                self._primary(frame, delta, span_ns)
            else:
                self._secondary(frame)

    def _dose(self, frame: Frame, start: int) -> float:
        """Counts of the visit since a start, less the pedestal."""
        bound = float(self._limit("pedestal_per_s")) * 1e-9
        rate = min(max(self.integrator.channels[frame.stream].pedestal(), -bound), bound)
        visit = self.integrator.visit
        return float(frame.counts - start) - visit.pedestal(frame.stream, rate, frame.t_ns - visit.t_start_ns)

    def _unrequested(self, frame: Frame, span_ns: int) -> None:
        """Beam adds up from the fall of the request on; without beam it is forgotten at an eighth of the pace."""
        if self.integrator.flags(3) & FLAG_REQUEST and self.integrator.visit.id > 0:
            self._unasked_ns = None
        elif (frame.flags | self.integrator.flags(2)) & FLAG_BEAM:
            self._unasked_ns = 0 if self._unasked_ns is None else self._unasked_ns + span_ns
            if self._unasked_ns > self._limit("proof_ns"):
                self._trip(numbers.BEAM_WITHOUT_REQUEST, self._unasked_ns * 1e-6, self._limit("proof_ns") * 1e-6)
        elif self._unasked_ns is not None:
            self._unasked_ns = max(0, self._unasked_ns - span_ns // 8)

    def _primary(self, frame: Frame, delta: int, span_ns: int) -> None:
        visit = self.integrator.visit
        plan = self.integrator.planned(visit.id)
        counts = self._dose(frame, visit.counts_1)
        preset = plan["preset"]
        limit = preset + max(preset * self._limit("spot_dose"), self._limit("spot_dose_counts")) + plan["slack_1"]
        if counts > limit:
            self._trip(numbers.SPOT_DOSE_PRIMARY, counts, limit)
        frames = max(1, (span_ns + 50_000) // 100_000)
        self._over_rate = self._over_rate + 1 if delta > plan["rate_limit"] * frames else 0
        if self._over_rate >= 2:
            self._trip(numbers.RATE_HIGH, delta / frames, plan["rate_limit"])

    def _secondary(self, frame: Frame) -> None:
        visit, row = self.integrator.visit, self.integrator.open_row
        if visit.counts_2 is None or visit.counts_2 < 0:
            return
        plan = self.integrator.planned(visit.id)
        expected = plan["expected_2"]
        if row is not None:
            expected += self.integrator.planned(row.visit)["expected_2"]
        limit = expected + max(expected * self._limit("spot_dose"), self._limit("secondary_counts")) + plan["slack_2"]
        counts = self._dose(frame, visit.counts_2)
        if counts > limit:
            self._trip(numbers.SPOT_DOSE_SECONDARY, counts, limit)

    def _scan(self, frame: Frame, flags_before: int) -> None:
        flags, words = frame.flags, frame.words
        if flags & FLAG_REQUEST and self.integrator.visit.id > 0:
            self._unasked_ns = None
        if flags & FLAG_TRIPPED:
            self._trip(numbers.ENGINE_TRIPPED, words[SCAN_ENGINE_TRIP], 0.0)
        if self.permit_on and flags_before & FLAG_CHAIN and not flags & FLAG_CHAIN:
            self._trip(numbers.CHAIN_OPENED, 0.0, 1.0)
        off_ma = max(
            abs(words[a] - words[b])
            for a, b in (
                (SCAN_X_PRIMARY_MA, SCAN_X_SET_MA),
                (SCAN_Y_PRIMARY_MA, SCAN_Y_SET_MA),
                (SCAN_X_REDUNDANT_MA, SCAN_X_PRIMARY_MA),
                (SCAN_Y_REDUNDANT_MA, SCAN_Y_PRIMARY_MA),
            )
        )
        bad = flags & FLAG_ARMED and flags & FLAG_REQUEST and off_ma > self._limit("window_ma")
        self._off_window = self._off_window + 1 if bad else 0
        if self._off_window >= (5 if (flags | flags_before) & FLAG_MOVING else 3):
            self._trip(numbers.MAGNET_READBACK, off_ma * 1e-3, self._limit("window_ma") * 1e-3)
        newest = self.integrator.channels[1].newest
        other_ns = 0 if newest is None else newest.t_ns
        shown = self.integrator.visit.id
        self._apart = self._apart + 1 if frame.visit != shown and frame.t_ns - other_ns < 300_000 else 0
        if self._apart >= 5:
            self._trip(numbers.VISIT_SEQUENCE, frame.visit, shown)
        if 0 < frame.visit < MAX_VISITS:
            limit_us = self.integrator.planned(frame.visit)["time_limit_us"]
            if words[SCAN_BEAM_ON_US] > limit_us:
                self._trip(numbers.SPOT_TIME, words[SCAN_BEAM_ON_US] * 1e-3, limit_us * 1e-3)

    def part_complete(self, visit: Visit, counts: int, x: Moments, y: Moments, rest: bool) -> None:
        """Where the beam was in a part of a visit; bad strips are left out, and twice as much is allowed then."""
        plan = self.integrator.planned(visit.id)
        doubt = 2.0 if self.integrator.bad else 1.0
        seen = min(x.s0, y.s0) / self._limit("strip_units_per_count")
        if seen < 0.5 / doubt * counts:
            if not rest:
                self._trip(numbers.SPOT_NOT_SEEN, seen, 0.5 / doubt * counts)
            return
        off = [
            (plane.centre_mm(self._limit(f"pitch_{axis}_mm")) - plan[f"{axis}_strip_mm"])
            / self._limit(f"strip_scale_{axis}")
            for axis, plane in (("x", x), ("y", y))
        ]
        error = math.sqrt(off[0] * off[0] + off[1] * off[1])
        if error > doubt * plan["position_limit_mm"]:
            self._trip(numbers.SPOT_POSITION, error, doubt * plan["position_limit_mm"])

    def row_complete(self, row: Row) -> None:
        """Dose, agreement, position, width, running mean."""
        plan = self.integrator.planned(row.visit)
        for number, dose, wanted, floor in (
            (numbers.SPOT_DOSE_PRIMARY, row.delta_1, plan["preset"], self._limit("spot_dose_counts")),
            (numbers.SPOT_DOSE_SECONDARY, row.delta_2, plan["expected_2"], self._limit("secondary_counts")),
        ):
            limit = wanted + max(wanted * self._limit("spot_dose"), floor)
            if dose > limit:
                self._trip(number, dose, limit)
        one, two = self.integrator.particles_1, self.integrator.particles_2
        if max(one, two) * plan["per_particle_1"] > self._limit("disagreement_counts"):
            difference = abs(two - one) / max(one, two)
            if difference > self._limit("disagreement"):
                self._trip(numbers.MONITORS_DISAGREE, difference, self._limit("disagreement"))
        seen = min(row.strips_x, row.strips_y) / self._limit("strip_units_per_count")
        if row.strip_counts >= 2 * self._limit("minimum_counts") and seen < 0.5 * row.strip_counts:
            self._trip(numbers.SPOT_NOT_SEEN, seen, 0.5 * row.strip_counts)
        self.strips_bad(self.integrator.bad)
        if not math.isnan(row.x_mm):
            self._place(row)

    def _place(self, row: Row) -> None:
        plan = self.integrator.planned(row.visit)
        bias_limit = self._limit("bias_share") * plan["position_limit_mm"]
        if row.strip_bias_mm > bias_limit:
            self._trip(numbers.STRIP_BIAS, row.strip_bias_mm, bias_limit)
        scale_x, scale_y = self._limit("strip_scale_x"), self._limit("strip_scale_y")
        dx, dy = row.x_mm - plan["x_strip_mm"] / scale_x, row.y_mm - plan["y_strip_mm"] / scale_y
        error = math.sqrt(dx * dx + dy * dy)
        if error > plan["position_limit_mm"]:
            self._trip(numbers.SPOT_POSITION, error, plan["position_limit_mm"])
        for sigma, expected in (
            (row.sigma_x_mm, plan["sigma_x_strip_mm"] / scale_x),
            (row.sigma_y_mm, plan["sigma_y_strip_mm"] / scale_y),
        ):
            deviation = 1.0 if math.isnan(sigma) else abs(sigma / expected - 1.0) if expected > 0 else 0.0
            if expected > 0 and deviation > self._limit("width"):
                self._trip(numbers.SPOT_WIDTH, deviation, self._limit("width"))
        self._errors.append((dx, dy))
        last = self._errors[-MEAN_VISITS:]
        if len(last) == MEAN_VISITS:
            mean = math.hypot(sum(x for x, _ in last) / MEAN_VISITS, sum(y for _, y in last) / MEAN_VISITS)
            if mean > self._limit("position_mean_mm"):
                self._trip(numbers.POSITION_MEAN, mean, self._limit("position_mean_mm"))
