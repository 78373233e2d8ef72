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
from controller.delivery.booking import STOPPED, Measured, count, fill
from controller.delivery.run import Run
from controller.delivery.shortfall import Shortfalls, allowed_lack, find_short, mark_short
from controller.delivery.two_gap import judge_two_gap
from controller.dose.uncertainty import Quiet, refine
from controller.machine.program import LayerProgram
from controller.machine.recombination import TwoGap
from controller.record.schema import (
    QUALITY_FROM_FRAMES,
    QUALITY_NO_POSITION,
    VISIT_DTYPE,
)
from controller.telemetry_sinks import SpotBatcher, SpotPoint
from drivers.deadline import Deadline
from drivers.errors import DeviceError

SPOT_COLUMNS = (
    "visit", "spot", "x_mm", "y_mm", "planned_x_mm", "planned_y_mm", "meterset_1", "meterset_2", "planned_meterset"
)  # fmt: skip
"""Columns of a visit in the order of `SpotPoint`'s fields."""
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
    visits_ns: int = 0
    """How long the booked visits were: pedestal of that time, a pause's too, is in their counts."""


class Ledger:
    """What the frames showed, by visit, until the rings are read; and the field's counters."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.counters = Counters()
        self.settled = True
        """Everything that the rings held is booked, and the retained counters agree with it."""
        self.disputed = False
        """Frames and rings did not agree: a later part looks at both anew."""
        self._measured: dict[int, NDArray[Any]] = {}
        self._unwritten: list[tuple[int, NDArray[Any]]] = []
        self._two_gap = TwoGap()
        self._last: tuple[int, int, int] | None = None  # visit, latched counts of both electrometers
        self._spots = SpotBatcher(run.telemetry)
        self.observe: Callable[[NDArray[Any]], None] = lambda _rows: None
        """Told of measured visits as they come, in their order."""

    def take(self, rows: NDArray[Any]) -> None:
        """Measured visits from the real-time path."""
        if len(rows):
            self._unwritten.append((self.run.tally.field_index, rows))
            self.observe(rows)
        self._measured.update(zip(rows["visit"].tolist(), rows, strict=True))

    def take_unwritten(self) -> list[tuple[int, NDArray[Any]]]:
        """Measured visits that came since the last call, each with the index of its field."""
        came, self._unwritten = self._unwritten, []
        return came

    async def begin_field(self) -> None:
        """Note the retained counters before the field's first count, in the journal and on the disk."""
        deadline = Deadline.after(READ_S, "retained counters")
        one = await self.run.devices.electrometer_1.status(deadline)
        two = await self.run.devices.electrometer_2.status(deadline)
        self.counters = Counters(one.counts, two.counts, begun_ns=now_ns())
        self.settled = False
        limits = self.run.field_limits[self.run.tally.field_index]
        self._write_counters("field", one.counts, two.counts, {} if limits is None else {"limits": list(limits)})
        # on the disk before the first count: after a crash it is known what the counters counted from
        await self.run.journal.sync()
        self._measured.clear()
        self._unwritten.clear()
        self._two_gap = TwoGap()
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
        self._refine(visits, program)
        short = find_short(visits, program, run.planned[program.field_index], run.site.tolerances)
        mark_short(visits, short)
        run.journal.visits(visits)
        run.rings_read = first + count
        assert self._last is not None
        self._write_counters("layer", self._last[1], self._last[2])
        # the rings forget what is acknowledged: it must be on the disk before
        await run.journal.sync()
        await devices.scan_controller.acknowledge(run.rings_read, deadline)
        await devices.electrometer_1.acknowledge(run.rings_read, deadline)
        await devices.electrometer_2.acknowledge(run.rings_read, deadline)
        self._publish(program, visits)
        self._name_short(program, visits, short)
        return count

    def _name_short(self, program: LayerProgram, visits: NDArray[Any], found: Shortfalls) -> None:
        """Too little is a stop, what the engine forwent by its rule an event; all of it is booked by now."""
        run = self.run
        per_meterset = program.particles_per_mu if run.plan.fields[program.field_index].unit == "MU" else 1.0
        for at in np.flatnonzero(found.forgone):
            run.event(
                "forgone",
                field=program.field_index,
                layer=program.layer_index,
                visit=int(visits["visit"][at]),
                spot=int(visits["spot"][at]),
                particles=float(found.lack[at]),
                meterset=float(found.lack[at]) / per_meterset,
                reason="beam went off by a hold, or with the spill, just before the visit's end",
            )
        if found.short.any():
            worst = int(np.argmax(np.where(found.short, found.lack / found.limit, 0.0)))
            per_particle = program.counts_per_particle
            run.trip(
                "SPOT_DOSE_LOW",
                value=float(found.lack[worst]) * per_particle,
                limit=float(found.limit[worst]) * per_particle,
                detail=f"visit {int(visits['visit'][worst])}; {int(found.short.sum())} visits of layer "
                f"{program.layer_index + 1} got too little; resume gives the rest",
            )

    async def looks_short(self, program: LayerProgram) -> bool:
        """Whether the frames show a visit of a layer that ended with too little: then its rings are read at once.

        The rings say why a visit ended; this is asked before the next layer's beam, after which nothing of this one
        could be given any more.
        """
        run = self.run
        numbers = [int(v) for v in program.visits["visit"]]
        await self._wait_measured(numbers[-1:])
        planned = run.planned[program.field_index]
        limit = allowed_lack(program, program.visits["visit"], planned, run.site.tolerances)
        for number, wanted, allowed in zip(numbers, program.visits["particles"], limit, strict=True):
            row = self._measured.get(number)
            if row is not None and wanted - float(row["delta_1"]) / program.counts_per_particle > allowed:
                return True
        return False

    def _write_counters(self, phase: str, counts_1: int, counts_2: int, more: dict[str, Any] | None = None) -> None:
        run = self.run
        run.event(
            "counters",
            phase=phase,
            field=run.tally.field_index,
            rows=run.rings_read,
            counts_1=counts_1,
            counts_2=counts_2,
            **(more or {}),
        )

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
        plan = program.visits
        first = int(plan["visit"][0])
        # all of them before the first is booked: what is refused here must not be half in the sums
        numbers = rows["visit"].astype(np.int64)
        one, two = latches_1["visit"].astype(np.int64), latches_2["visit"].astype(np.int64)
        wrong = (numbers < first) | (numbers >= first + len(plan)) | (one != numbers) | (two != numbers)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise DeviceError(
                "scan_controller",
                f"result ring: visit {numbers[at]}, electrometers latched {one[at]} and {two[at]}; "
                f"wanted one of {first} to {int(plan['visit'][-1])}",
            )
        visits = np.zeros(len(rows), VISIT_DTYPE)
        fill(visits, program, plan[numbers - first], rows, per_meterset, run.part)
        self._count(visits, latches_1["counts"], latches_2["counts"], rows["counts"], program, per_meterset)
        return visits

    def _count(
        self,
        visits: NDArray[Any],
        counts_1: NDArray[Any],
        counts_2: NDArray[Any],
        seen: NDArray[Any],
        program: LayerProgram,
        per_meterset: float,
    ) -> None:
        """Book the counts; frames that disagree with the rings are a trip. `seen`: the engine's own counts."""
        numbers = visits["visit"].tolist()
        ends_1, ends_2 = counts_1.astype(np.int64), counts_2.astype(np.int64)
        measured = Measured.take_from(self._measured, numbers)
        for at in measured.disputes(ends_1, ends_2):
            self.disputed = True
            row = measured.rows[at]
            shown, latched = (int(row["counts_1"]), int(row["counts_2"])), (int(ends_1[at]), int(ends_2[at]))
            self.run.trip(
                "COUNTS_DISPUTED",
                value=float(shown[0] - latched[0]),
                limit=0.0,
                detail=f"visit {numbers[at]}: frames {shown}, rings {latched}",
            )
        count(visits, measured, ends_1, ends_2, seen.astype(np.int64), self._last, program, per_meterset)
        self.counters.booked_1 += int(visits["counts_1"].sum())
        self.counters.booked_2 += int(visits["counts_2"].sum())
        self.counters.visits_ns += int((visits["t_end_ns"] - visits["t_start_ns"]).sum())
        if numbers:
            self._last = (numbers[-1], int(ends_1[-1]), int(ends_2[-1]))

    def book_frames(self, program: LayerProgram) -> int:
        """What the frames showed of a layer whose rings cannot be read: booked so that the record adds up.

        The device rings keep the authoritative rows. The visit that still ran is taken as far as its counts went.
        Returns the number of visits booked.
        """
        first, last = int(program.visits["visit"][0]), int(program.visits["visit"][-1])
        rows = [self._measured.pop(v) for v in sorted(self._measured) if first <= v <= last]
        running = self._running_row()
        booked = 0 if self._last is None else self._last[0]  # from the rings, before their link was gone
        if running is not None and max(first, booked + 1) <= int(running["visit"]) <= last:
            rows.append(running)
        unit = self.run.plan.fields[program.field_index].unit
        per_meterset = program.particles_per_mu if unit == "MU" else 1.0
        shown = np.array(rows, self.run.path.monitor.measured.dtype)
        planned = program.visits[shown["visit"] - first]
        partial = shown["delta_1"] < 0.95 * planned["preset_counts"].astype(np.float64)
        engine = {
            "visit": shown["visit"],
            "t_start_ns": shown["t_start_ns"],
            "t_end_ns": shown["t_end_ns"],
            "beam_on_ns": 0,
            "x_current_a": np.nan,
            "y_current_a": np.nan,
            "flags": np.where(partial, STOPPED, 0),
        }
        visits = np.zeros(len(rows), VISIT_DTYPE)
        fill(visits, program, planned, engine, per_meterset, self.run.part)
        self._measured.update(zip(visits["visit"].tolist(), shown, strict=True))
        ends_2 = np.where(shown["counts_2"] >= 0, shown["counts_2"], shown["start_2"])
        self._count(visits, shown["counts_1"], ends_2, np.zeros(len(rows), np.int64), program, per_meterset)
        visits["quality"] |= QUALITY_FROM_FRAMES
        self._refine(visits, program)
        self.run.journal.visits(visits)
        self._publish(program, visits)
        return len(visits)

    def _refine(self, visits: NDArray[Any], program: LayerProgram) -> None:
        """Recombination at each visit's own rate, uncertainties, and the two chambers against each other."""
        run = self.run
        state = run.path.monitor.state
        quiet = Quiet(int(state["quiet_ns_1"]), int(state["quiet_ns_2"]))
        unit = run.plan.fields[program.field_index].unit
        refine(visits, program, run.site, quiet, program.particles_per_mu if unit == "MU" else 1.0)
        self._two_gap.add(visits)

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
        tally.visits_done += len(visits)
        for meterset_1, meterset_2 in zip(visits["meterset_1"].tolist(), visits["meterset_2"].tolist(), strict=True):
            tally.meterset_1 += meterset_1  # one by one: the sum does not depend on how visits were read
            tally.meterset_2 += meterset_2
        for t_end_ns, *values in zip(
            visits["t_end_ns"].tolist(), *(visits[n].tolist() for n in SPOT_COLUMNS), strict=True
        ):
            point = SpotPoint(*values)
            self._spots.add(t_end_ns, program.field_index, program.layer_index, unit, point)
        self._spots.flush()
        run.on_change()

    async def reconcile(self, field_index: int, limit_s: float = READ_S) -> None:
        """Retained counters against what was booked; the difference is the counts between visits, written down.

        More of them than the pedestal and the field's tolerance explain are a dispute. Where they agree, the rings hold
        no more rows, and no count fell or stood still, the field is settled.
        """
        judge_two_gap(self.run, field_index, self._two_gap)
        deadline = Deadline.after(limit_s, "retained counters")
        retained = [0, 0]
        engine = await self.run.devices.scan_controller.status(deadline)
        untrusted = any(trip.id == "COUNTS_BACKWARDS" for trip in self.run.latch.latched)
        agree = engine.visit == 0 and engine.results == self.run.rings_read and not untrusted
        for number in (1, 2):
            device = self.run.devices.electrometer_1 if number == 1 else self.run.devices.electrometer_2
            status = await device.status(deadline)
            start = self.counters.retained_1 if number == 1 else self.counters.retained_2
            booked = self.counters.booked_1 if number == 1 else self.counters.booked_2
            delivered = status.counts - start
            retained[number - 1] = status.counts
            agree = agree and status.results == self.run.rings_read
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
            between_ns = now_ns() - self.counters.begun_ns - self.counters.visits_ns
            unexplained = delivered - booked - pedestal_per_ns * between_ns
            limit = tolerances.field_dose * booked + tolerances.field_dose_counts
            agree = agree and abs(unexplained) <= limit
            if not self.run.latch.tripped and not abs(unexplained) <= limit:
                self.run.trip(
                    "COUNTS_DISPUTED", value=unexplained, limit=limit, detail=f"electrometer_{number}, between visits"
                )
        if agree and not self.disputed:
            self.settled = True
            self._write_counters("end", retained[0], retained[1])
