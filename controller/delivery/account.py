"""Every count accounted for: the three result rings, read and acknowledged, become the journal's visits.

The rings of engine and electrometers are latched by one trigger, so a row number means the same visit in all
three. The electrometers' latched counters are authoritative for dose; what the real-time path measured from frames
adds position, width, pedestal and late charge, and must agree to the count where no frame was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.clock import now_ns
from controller.delivery.run import Run
from controller.machine.program import LayerProgram
from controller.record.schema import (
    QUALITY_FRAMES_LOST,
    QUALITY_FROM_FRAMES,
    QUALITY_NO_POSITION,
    QUALITY_SPLIT,
    VISIT_DTYPE,
    VISIT_PARTIAL,
)
from controller.telemetry_sinks import SpotBatcher, SpotPoint
from drivers.deadline import Deadline
from drivers.errors import DeviceError

STOPPED = 1
SPLIT = 2
READ_S = 10.0
MEASURED_WAIT_S = 0.5


@dataclass
class Counters:
    """Retained counters of both electrometers when the field began, and counts booked to visits since."""

    retained_1: int = 0
    retained_2: int = 0
    booked_1: int = 0
    booked_2: int = 0
    begun_ns: int = 0


class Ledger:
    """What the frames showed, by visit, until the rings are read; and the field's counters."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.counters = Counters()
        self._measured: dict[int, NDArray[Any]] = {}
        self._unwritten: list[tuple[int, NDArray[Any]]] = []
        self._last: tuple[int, int, int] | None = None  # visit, latched counts of both electrometers
        self._spots = SpotBatcher(run.telemetry)
        self.observe: Callable[[NDArray[Any]], None] = lambda _rows: None
        """Told of measured visits as they come, in their order."""

    def take(self, rows: NDArray[Any]) -> None:
        """Measured visits from the real-time path."""
        if len(rows):
            self._unwritten.append((self.run.tally.field_index, rows))
            self.observe(rows)
        for row in rows:
            self._measured[int(row["visit"])] = row

    def take_unwritten(self) -> list[tuple[int, NDArray[Any]]]:
        """Measured visits that came since the last call, each with the index of its field."""
        came, self._unwritten = self._unwritten, []
        return came

    async def begin_field(self) -> None:
        """Note the retained counters before the field's first count."""
        deadline = Deadline.after(READ_S, "retained counters")
        one = await self.run.devices.electrometer_1.status(deadline)
        two = await self.run.devices.electrometer_2.status(deadline)
        self.counters = Counters(one.counts, two.counts, begun_ns=now_ns())
        self._measured.clear()
        self._unwritten.clear()
        self._last = None

    async def account(self, program: LayerProgram, limit_s: float = READ_S) -> int:
        """Read what the rings hold of this layer, book it, journal it, acknowledge it. Returns the number of visits."""
        run = self.run
        devices = run.devices
        deadline = Deadline.after(limit_s, f"result rings of layer {program.layer_index + 1}")
        status = await devices.scan_controller.status(deadline)
        first = run.rings_read
        count = min(status.results - first, len(program.visits))  # the next layer may run already
        if count == 0:
            return 0
        head = int((await devices.scan_controller.results(first, 1, deadline))["visit"][0])
        if not int(program.visits["visit"][0]) <= head <= int(program.visits["visit"][-1]):
            return 0  # what comes next in the rings is of a later layer: this one is booked
        count = min(count, int(program.visits["visit"][-1]) - head + 1)
        async with asyncio.TaskGroup() as group:
            engine = group.create_task(devices.scan_controller.results(first, count, deadline), name="engine ring")
            latch_1 = group.create_task(devices.electrometer_1.latches(first, count, deadline), name="ring 1")
            latch_2 = group.create_task(devices.electrometer_2.latches(first, count, deadline), name="ring 2")
        rows = engine.result()
        await self._wait_measured([int(v) for v in rows["visit"]])
        visits = self._book(program, rows, latch_1.result(), latch_2.result())
        run.journal.visits(visits)
        run.rings_read = first + count
        await devices.scan_controller.acknowledge(run.rings_read, deadline)
        await devices.electrometer_1.acknowledge(run.rings_read, deadline)
        await devices.electrometer_2.acknowledge(run.rings_read, deadline)
        self._publish(program, visits)
        return count

    async def _wait_measured(self, visits: list[int]) -> None:
        """The path publishes a visit with the frame after its end: give it that long, no longer."""
        end = asyncio.get_running_loop().time() + MEASURED_WAIT_S
        while any(v not in self._measured for v in visits) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.005)
            self.take(self.run.path.take_measured())

    def _book(
        self, program: LayerProgram, rows: NDArray[Any], latches_1: NDArray[Any], latches_2: NDArray[Any]
    ) -> NDArray[Any]:
        run = self.run
        unit = run.plan.fields[program.field_index].unit
        per_meterset = program.particles_per_mu if unit == "MU" else 1.0
        visits = np.zeros(len(rows), VISIT_DTYPE)
        plan = program.visits
        first = int(plan["visit"][0])
        # all of them before the first is booked: what is refused here must not be half in the sums
        for row, one, two in zip(rows, latches_1, latches_2, strict=True):
            visit = int(row["visit"])
            if not 0 <= visit - first < len(plan) or int(one["visit"]) != visit or int(two["visit"]) != visit:
                raise DeviceError(
                    "scan_controller",
                    f"result ring: visit {visit}, electrometers latched {int(one['visit'])} and {int(two['visit'])}; "
                    f"wanted one of {first} to {int(plan['visit'][-1])}",
                )
        for out, row, one, two in zip(visits, rows, latches_1, latches_2, strict=True):
            visit = int(row["visit"])
            self._fill(out, program, plan[visit - first], row, per_meterset)
            self._counts(out, visit, int(one["counts"]), int(two["counts"]), int(row["counts"]), program)
            out["meterset_1"] = out["particles_1"] / per_meterset
            out["meterset_2"] = out["particles_2"] / per_meterset
        return visits

    def _fill(self, out: Any, program: LayerProgram, planned: Any, row: Any, per_meterset: float) -> None:
        out["visit"] = row["visit"]
        out["spot"] = planned["spot"]
        out["painting"] = planned["painting"]
        out["field"] = program.field_index
        out["layer"] = program.layer_index
        out["part"] = self.run.part
        out["t_start_ns"] = row["t_start_ns"]
        out["t_end_ns"] = row["t_end_ns"]
        out["beam_on_ns"] = row["beam_on_ns"]
        out["planned_particles"] = planned["particles"]
        out["planned_meterset"] = planned["particles"] / per_meterset
        out["planned_x_mm"] = planned["x_mm"]
        out["planned_y_mm"] = planned["y_mm"]
        out["x_current_a"] = row["x_current_a"]
        out["y_current_a"] = row["y_current_a"]
        out["flags"] = int(planned["flags"]) | (VISIT_PARTIAL if int(row["flags"]) & STOPPED else 0)
        out["quality"] = QUALITY_SPLIT if int(row["flags"]) & SPLIT else 0
        out["x_mm"] = out["y_mm"] = out["sigma_x_mm"] = out["sigma_y_mm"] = np.nan

    def _counts(self, out: Any, visit: int, end_1: int, end_2: int, seen: int, program: LayerProgram) -> None:
        """`seen`: the engine's own count of the visit, for one whose start neither frames nor rings show."""
        measured = self._measured.pop(visit, None)
        follows = self._last is not None and self._last[0] == visit - 1
        start_1, start_2 = (
            (self._last[1], self._last[2]) if follows and self._last is not None else (end_1 - seen, end_2)
        )
        pedestal_1 = pedestal_2 = late_1 = late_2 = 0.0
        if measured is not None:
            start_1 = int(measured["start_1"])
            start_2 = int(measured["start_2"]) if measured["start_2"] >= 0 else start_2
            pedestal_1, pedestal_2 = float(measured["pedestal_1"]), float(measured["pedestal_2"])
            late_1, late_2 = float(measured["late_1"]), float(measured["late_2"])
            out["quality"] |= int(measured["quality"])
            for name in ("x_mm", "y_mm", "sigma_x_mm", "sigma_y_mm"):
                out[name] = measured[name]
            lost = bool(int(measured["quality"]) & QUALITY_FRAMES_LOST)
            shown = (int(measured["counts_1"]), int(measured["counts_2"]))
            if not lost and shown != (end_1, end_2):
                self.run.trip(
                    "COUNTS_DISPUTED",
                    value=float(shown[0] - end_1),
                    limit=0.0,
                    detail=f"visit {visit}: frames {shown}, rings {(end_1, end_2)}",
                )
        else:
            out["quality"] |= QUALITY_FRAMES_LOST | QUALITY_NO_POSITION
        out["counts_1"] = end_1 - start_1
        out["counts_2"] = end_2 - start_2
        out["late_counts_1"], out["late_counts_2"] = late_1, late_2
        out["frame_counts_1"] = np.nan if measured is None else float(measured["delta_1"]) - late_1
        out["frame_counts_2"] = np.nan if measured is None else float(measured["delta_2"]) - late_2
        out["particles_1"] = (end_1 - start_1 - pedestal_1 + late_1) / program.counts_per_particle
        out["particles_2"] = (end_2 - start_2 - pedestal_2 + late_2) / program.counts_per_particle_2
        self.counters.booked_1 += end_1 - start_1
        self.counters.booked_2 += end_2 - start_2
        self._last = (visit, end_1, end_2)

    def book_frames(self, program: LayerProgram) -> int:
        """What the frames showed of a layer whose rings cannot be read: booked so that the record adds up.

        The device rings keep the authoritative rows. The visit that still ran is taken as far as its counts went.
        Returns the number of visits booked.
        """
        first, last = int(program.visits["visit"][0]), int(program.visits["visit"][-1])
        rows = [self._measured.pop(v) for v in sorted(self._measured) if first <= v <= last]
        running = self._running_row()
        if running is not None and first <= int(running["visit"]) <= last:
            rows.append(running)
        unit = self.run.plan.fields[program.field_index].unit
        per_meterset = program.particles_per_mu if unit == "MU" else 1.0
        visits = np.zeros(len(rows), VISIT_DTYPE)
        for out, row in zip(visits, rows, strict=True):
            planned = program.visits[int(row["visit"]) - first]
            partial = row["delta_1"] < 0.95 * float(planned["preset_counts"])
            engine = {
                "visit": row["visit"],
                "t_start_ns": row["t_start_ns"],
                "t_end_ns": row["t_end_ns"],
                "beam_on_ns": 0,
                "x_current_a": np.nan,
                "y_current_a": np.nan,
                "flags": STOPPED if partial else 0,
            }
            self._fill(out, program, planned, engine, per_meterset)
            self._measured[int(row["visit"])] = row
            end_2 = int(row["counts_2"]) if row["counts_2"] >= 0 else int(row["start_2"])
            self._counts(out, int(row["visit"]), int(row["counts_1"]), end_2, 0, program)
            out["quality"] |= QUALITY_FROM_FRAMES
            out["meterset_1"] = out["particles_1"] / per_meterset
            out["meterset_2"] = out["particles_2"] / per_meterset
        self.run.journal.visits(visits)
        self._publish(program, visits)
        return len(visits)

    def _running_row(self) -> NDArray[Any] | None:
        """The visit that the path still sees as running, as a measured row without position."""
        monitor = self.run.path.monitor
        running, state = monitor.running, monitor.state
        if running["visit"] <= 0:
            return None
        row = np.zeros((), monitor.measured.dtype)
        row["visit"] = running["visit"]
        row["t_start_ns"] = running["t_start_ns"]
        row["t_end_ns"] = monitor.streams[1]["t_ns"]
        row["start_1"], row["counts_1"] = running["counts_1"], state["counts_1"]
        row["start_2"] = running["counts_2"]
        row["counts_2"] = state["counts_2"] if running["counts_2"] >= 0 else -1
        row["delta_1"] = float(state["counts_1"]) - float(running["counts_1"]) - float(running["late_1"])
        row["late_1"], row["late_2"] = -running["late_1"], -running["late_2"]
        row["x_mm"] = row["y_mm"] = row["sigma_x_mm"] = row["sigma_y_mm"] = row["delta_2"] = np.nan
        row["quality"] = QUALITY_NO_POSITION
        return row

    def _publish(self, program: LayerProgram, visits: NDArray[Any]) -> None:
        run = self.run
        unit = run.plan.fields[program.field_index].unit
        tally = run.tally
        for v in visits:
            tally.visits_done += 1
            tally.meterset_1 += float(v["meterset_1"])
            tally.meterset_2 += float(v["meterset_2"])
            self._spots.add(
                int(v["t_end_ns"]),
                program.field_index,
                program.layer_index,
                unit,
                SpotPoint(
                    visit=int(v["visit"]),
                    spot=int(v["spot"]),
                    x_mm=float(v["x_mm"]),
                    y_mm=float(v["y_mm"]),
                    planned_x_mm=float(v["planned_x_mm"]),
                    planned_y_mm=float(v["planned_y_mm"]),
                    meterset_primary=float(v["meterset_1"]),
                    meterset_secondary=float(v["meterset_2"]),
                    meterset_planned=float(v["planned_meterset"]),
                ),
            )
        self._spots.flush()
        run.on_change()

    async def reconcile(self, field_index: int, limit_s: float = READ_S) -> None:
        """Retained counters against what was booked; the difference is the counts between visits, written down.

        More of them than the pedestal and the field's tolerance explain are a dispute.
        """
        deadline = Deadline.after(limit_s, "retained counters")
        for number in (1, 2):
            device = self.run.devices.electrometer_1 if number == 1 else self.run.devices.electrometer_2
            status = await device.status(deadline)
            start = self.counters.retained_1 if number == 1 else self.counters.retained_2
            booked = self.counters.booked_1 if number == 1 else self.counters.booked_2
            delivered = status.counts - start
            self.run.event(
                "reconcile",
                field=field_index,
                device=f"electrometer_{number}",
                retained=delivered,
                ring=booked,
                journal=booked,
                between_visits=delivered - booked,
            )
            state, tolerances = self.run.path.monitor.state, self.run.site.tolerances
            pedestal_per_ns = int(state[f"quiet_counts_{number}"]) / max(1, int(state[f"quiet_ns_{number}"]))
            unexplained = delivered - booked - pedestal_per_ns * (now_ns() - self.counters.begun_ns)
            limit = tolerances.field_dose * booked + tolerances.field_dose_counts
            if not self.run.latch.tripped and not abs(unexplained) <= limit:
                self.run.trip(
                    "COUNTS_DISPUTED", value=unexplained, limit=limit, detail=f"electrometer_{number}, between visits"
                )
