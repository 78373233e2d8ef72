"""The real-time path as asyncio sees it: load limits and plans, arm permits, renew leases, drain the rings.

Who runs the path differs (a thread on sockets, or the virtual world); what asyncio may do with it does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from controller.dose.memory import MEASURED_RING, ROW_RING, Monitor
from controller.dose.strips import FRACTION_BITS
from controller.machine.idle_charge import idle_limits
from controller.machine.program import LayerProgram
from drivers.contracts import SELF_TEST_VISIT
from drivers.errors import Refused, SpotwiseError
from drivers.wires.frames import FRAME_NS, STRIP_UNITS_PER_COUNT
from interlocks.numbers import COMMANDED
from sites.schema import Site, Tolerances, TreatmentMachine

LEASE_INTERLOCKS = 0
LEASE_DELIVERY = 1
CLEAR_SHARE = 0.05
"""Of the charge from which position is judged: a strip with this share of it shows a clear signal."""
MOST_FILL = 100.0


class RingOverrun(SpotwiseError):
    """Asyncio was too slow: rows were overwritten before they were read."""


@dataclass(frozen=True, slots=True)
class PathTrip:
    """A condition latched by the real-time path."""

    number: int
    value: float
    limit: float
    t_ns: int
    visit: int


class Recorder(Protocol):
    """Who records the frames, where they are recorded (`controller.record.frame_recorder`)."""

    def field_loaded(self, field: int, visits: int) -> None:
        """A field's visits and limits are in the memory; the next `clear` makes them count."""

    def warnings(self) -> list[str]:
        """What happened to the recording since the last call."""


class MonitorPath:
    """Asyncio's side of the real-time memory."""

    def __init__(self, site: Site, monitor: Monitor) -> None:
        self.monitor = monitor
        self.site = site
        self.recorder: Recorder | None = None
        self.guard_wires: Any = None
        """Wires of a guard in this process (virtual clock); None: the guard has sockets of its own."""
        self._changed = asyncio.Event()
        self._measured_read = 0
        self._rows_read = 0
        self._load_site(site)

    def _load_site(self, site: Site) -> None:
        limits = self.monitor.limits
        t = site.tolerances
        limits["frame_age_ns"] = round(site.permits.frame_age_max_ms * 1e6)
        limits["stale_ns"] = round(site.permits.stale_ms * 1e6)
        limits["lease_grace_ns"] = round(site.permits.time_out_ms * 1e6)
        limits["spot_dose"] = t.spot_dose
        limits["spot_dose_counts"] = t.spot_dose_counts
        limits["secondary_counts"] = t.secondary_spot_counts
        limits["pedestal_per_s"] = t.pedestal_counts_per_s
        limits["disagreement"] = t.monitor_disagreement
        limits["disagreement_counts"] = t.monitor_disagreement_counts
        limits["position_mean_mm"] = t.position_mean_mm
        limits["width"] = t.width
        limits["minimum_counts"] = t.minimum_counts
        limits["proof_ns"] = round(t.beam_off_proof_ms * 1e6)
        settle_us = max(site.scanning.x.settle_us, site.scanning.y.settle_us)
        limits["blind_ns"] = round((settle_us + 2 * site.dosimetry.primary.lag_us) * 1000)
        limits["window_ma"] = 2e3 * max(site.scanning.x.window_a, site.scanning.y.window_a)
        limits["pitch_x_mm"] = site.dosimetry.strips.pitch_x_mm
        limits["pitch_y_mm"] = site.dosimetry.strips.pitch_y_mm
        limits["strip_units_per_count"] = STRIP_UNITS_PER_COUNT
        limits["lag_1_ns"] = site.dosimetry.primary.lag_us * 1000
        limits["lag_2_ns"] = site.dosimetry.secondary.lag_us * 1000
        limits["lost_in_a_row"] = 3
        limits["lost_per_second"] = 10
        limits["clock_drift_ns"] = round(site.permits.clock_drift_max_ms * 1e6)
        strips = site.dosimetry.strips
        for axis, bad in (("x", strips.bad_x), ("y", strips.bad_y)):
            limits[f"known_{axis}_0"], limits[f"known_{axis}_1"] = (
                sum(1 << (i - first) for i in bad if first <= i < first + 64) for first in (0, 64)
            )
        limits["hot_pedestal"] = round(strips.hot_units * (1 << FRACTION_BITS))
        limits["clear_units"] = round(t.minimum_counts * STRIP_UNITS_PER_COUNT * CLEAR_SHARE)
        limits["strips_bad"] = strips.bad_max
        limits["bias_share"] = strips.bias_share
        state = self.monitor.state
        state["field_start_1"] = state["field_start_2"] = -1
        state["unasked_ns"] = -1
        state["request_off_ns"] = -(10**12)
        limits["field_counts_1"] = limits["field_counts_2"] = 0.0
        limits["strip_scale_x"] = limits["strip_scale_y"] = 1.0

    def load_key(self, key: bytes, session: int) -> None:
        """Key of the permits and nonce of the session with the chain."""
        control = self.monitor.control
        control["key_0"], control["key_1"] = np.frombuffer(key, "<u8")
        control["session"] = session

    def load_field(
        self,
        machine: TreatmentMachine,
        programs: Sequence[LayerProgram],
        field_limits: tuple[float, float] | None = None,
    ) -> None:
        """Put a field's visits and limits into the memory; its sums start at zero.

        `field_limits`: counts that both monitors may still count in this field, where an earlier part delivered some
        of it; None: what the programs want and the site's tolerance.
        """
        total = sum(len(p.visits) for p in programs)
        if total >= SELF_TEST_VISIT:
            raise Refused(f"a field of {total} visits; the real-time path holds {SELF_TEST_VISIT - 1}")
        site = self.site
        t = site.tolerances
        plan = self.monitor.plan
        plan[:] = np.zeros(1, plan.dtype)
        off_s = (site.accelerator.beam_off_delay_us + 8 * site.dosimetry.primary.lag_us) * 1e-6 + FRAME_NS * 1e-9
        counts_1 = counts_2 = 0.0
        strips = site.dosimetry.strips
        for program in programs:
            if len(program.visits) == 0:
                continue
            v = program.visits
            rows = plan[int(v["visit"][0]) : int(v["visit"][-1]) + 1]
            rows["preset"] = v["preset_counts"]
            rows["expected_2"] = v["expected_counts_2"]
            rate_1 = program.rate_per_s * program.counts_per_particle
            rate_2 = program.rate_per_s * program.counts_per_particle_2
            rows["slack_1"] = rate_1 * off_s * (1 + site.accelerator.ripple_rms * 3)
            rows["slack_2"] = rate_2 * off_s * (1 + site.accelerator.ripple_rms * 3)
            rows["per_particle_1"] = program.counts_per_particle
            rows["per_particle_2"] = program.counts_per_particle_2
            rows["rate_limit"] = t.rate_factor * rate_1 * FRAME_NS * 1e-9 + t.spot_dose_counts
            rows["x_strip_mm"] = v["x_strip_mm"]
            rows["y_strip_mm"] = v["y_strip_mm"]
            rows["sigma_x_strip_mm"] = program.sigma_x_mm * program.strip_scale_x
            rows["sigma_y_strip_mm"] = program.sigma_y_mm * program.strip_scale_y
            for axis, pitch_mm in (("x", strips.pitch_x_mm), ("y", strips.pitch_y_mm)):
                widths = rows[f"sigma_{axis}_strip_mm"] / pitch_mm
                rows[f"fill_{axis}"] = np.minimum(np.exp(0.5 / (widths * widths + 1 / 12)), MOST_FILL)
            rows["position_limit_mm"] = v["position_limit_mm"]
            rows["time_limit_us"] = v["time_limit_ms"].astype(np.int64) * 1000
            counts_1 += float(v["preset_counts"].sum())
            counts_2 += float(v["expected_counts_2"].sum())
        limits = self.monitor.limits
        if field_limits is None:
            field_limits = whole_field_limits(counts_1, counts_2, t)
        limits["field_counts_1"], limits["field_counts_2"] = field_limits
        limits["idle_counts_1"], limits["idle_counts_2"] = idle_limits(programs)
        distance = strips.distance_mm
        limits["strip_scale_x"] = (machine.vsad_x_mm - distance) / machine.vsad_x_mm
        limits["strip_scale_y"] = (machine.vsad_y_mm - distance) / machine.vsad_y_mm
        control = self.monitor.control
        control["first_visit"] = control["last_visit"] = 0
        if self.recorder is not None:
            self.recorder.field_loaded(programs[0].field_index if programs else -1, total)
        control["clear"] += 1

    def load_self_test(self) -> None:
        """Put the engine's self-test into the memory, and nothing else: whatever is more than noise trips."""
        t = self.site.tolerances
        plan = self.monitor.plan
        plan[:] = np.zeros(1, plan.dtype)
        row = plan[SELF_TEST_VISIT]
        row["preset"] = row["expected_2"] = t.field_dose_counts
        row["rate_limit"] = t.spot_dose_counts
        limits = self.monitor.limits
        limits["field_counts_1"], limits["field_counts_2"] = whole_field_limits(0.0, 0.0, t)
        limits["idle_counts_1"] = limits["idle_counts_2"] = t.field_dose_counts
        self.allow(SELF_TEST_VISIT, SELF_TEST_VISIT)
        if self.recorder is not None:
            self.recorder.field_loaded(-1, SELF_TEST_VISIT)
        self.monitor.control["clear"] += 1

    def allow(self, first_visit: int, last_visit: int) -> None:
        """Only these visits may run now."""
        self.monitor.control["first_visit"] = first_visit
        self.monitor.control["last_visit"] = last_visit

    def permit(self, token: int) -> None:
        """Permits with this token may leave from now on; a drop commanded meanwhile stands until a reset."""
        self.monitor.control["token"] = token
        self.monitor.control["permit_on"] = 1

    def withhold(self) -> None:
        """No more permits."""
        self.monitor.control["permit_on"] = 0

    def log(self, on: bool) -> None:
        """Write 200-us rows, or not."""
        self.monitor.control["log_on"] = 1 if on else 0

    def drop(self, number: int = COMMANDED) -> None:
        """Trip now, from asyncio: the drop leaves with the next turn of the loop."""
        self.monitor.control["drop"] = number

    def reset(self) -> None:
        """Clear the latch; the operator's part is the caller's. Permits leave again only once the chain is armed."""
        self.monitor.control["permit_on"] = 0
        self.monitor.control["drop"] = 0
        self.monitor.control["reset"] += 1

    def recording_warnings(self) -> list[str]:
        """What the journal is to say of the recording of frames since the last call."""
        return [] if self.recorder is None else self.recorder.warnings()

    def renew(self, lease: int, until_ns: int) -> None:
        """A slow task says that it lives."""
        self.monitor.control[f"lease_ns_{lease}"] = until_ns

    @property
    def flags(self) -> int:
        """Flags of the scan controller's newest frame."""
        return int(self.monitor.state["flags_3"])

    @property
    def alive(self) -> bool:
        """All three streams have been seen."""
        return all(bool(self.monitor.streams[n]["seen"]) for n in (1, 2, 3))

    def silent_since(self, t_ns: int) -> tuple[int, ...]:
        """Streams that have sent no frame since then."""
        streams = self.monitor.streams
        return tuple(n for n in (1, 2, 3) if not streams[n]["seen"] or int(streams[n]["arrival_ns"]) < t_ns)

    def newest_arrival_ns(self) -> int:
        """When the last frame, of any stream, was taken in."""
        return max(int(self.monitor.streams[n]["arrival_ns"]) for n in (1, 2, 3))

    @property
    def permitting(self) -> bool:
        """Permits are wanted: a field is armed, or being armed."""
        return bool(self.monitor.control["permit_on"] == 1)

    def trip(self) -> PathTrip | None:
        """The latched condition."""
        s = self.monitor.state
        if s["trip"] == 0:
            return None
        return PathTrip(
            int(s["trip"]), float(s["trip_value"]), float(s["trip_limit"]), int(s["trip_t_ns"]), int(s["trip_visit"])
        )

    def leases_out_ms(self) -> float:
        """How long before the latched condition the first of the leases had run out; 0 where none had."""
        control = self.monitor.control
        ends = min(int(control[f"lease_ns_{lease}"]) for lease in (LEASE_INTERLOCKS, LEASE_DELIVERY))
        return max(0, int(self.monitor.state["trip_local_ns"]) - ends) * 1e-6

    def notify(self) -> None:
        """Something that a coroutine must see happened (called on the loop)."""
        self._changed.set()

    async def changed(self) -> None:
        """Wait for the next notification."""
        self._changed.clear()
        await self._changed.wait()

    def take_measured(self) -> NDArray[Any]:
        """Measured visits of plans since the last call (a copy). Raises `RingOverrun`."""
        rows, self._measured_read = _take(
            self.monitor.measured, int(self.monitor.state["measured"]), self._measured_read, MEASURED_RING
        )
        of_plans: NDArray[Any] = rows[rows["visit"] != SELF_TEST_VISIT]
        return of_plans

    def take_rows(self) -> NDArray[Any]:
        """Log rows since the last call (a copy). Raises `RingOverrun`."""
        rows, self._rows_read = _take(self.monitor.rows, int(self.monitor.state["rows"]), self._rows_read, ROW_RING)
        return rows


def whole_field_limits(counts_1: float, counts_2: float, tolerances: Tolerances) -> tuple[float, float]:
    """Counts at which a field of so many counts is stopped, on both monitors: the whole field, all parts together."""
    share, floor = 1 + tolerances.field_dose, tolerances.field_dose_counts
    return counts_1 * share + floor, counts_2 * share + floor


def _take(ring: NDArray[Any], written: int, read: int, size: int) -> tuple[NDArray[Any], int]:
    if written - read > size:
        raise RingOverrun(f"ring of {size} rows: {written - read} written since it was last read; rows are lost")
    rows = ring[np.arange(read, written) % size]
    return rows, written
