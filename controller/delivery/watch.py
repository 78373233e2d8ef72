"""The tasks beside the delivery: device polls, the interlock task, the journal's drain, and the real-time path's news.

None of them is ever asked by the delivery sequence; each latches what it finds, and the sequence is stopped by that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.clock import now_ns
from controller.delivery.account import Ledger
from controller.delivery.identities import ask_identities
from controller.delivery.run import Run
from controller.delivery.seen import visits_from_frames
from controller.delivery.standing import judge_room, standing, trip_on
from controller.delivery.states import State
from controller.dose.path import LEASE_DELIVERY, LEASE_INTERLOCKS, PathTrip, RingOverrun
from controller.record.journal import JournalDiskError
from controller.record.schema import VISIT_DTYPE
from drivers.deadline import Deadline
from drivers.errors import DeviceError, LinkLost, Refused
from drivers.flags import FLAG_HOLD, FLAG_REQUEST, FLAG_SPILL
from interlocks.conditions import by_number
from interlocks.invariant import before_beam
from interlocks.numbers import CHAIN_OPENED, COUNTS_BACKWARDS, MONITORS_DISAGREE
from interlocks.slow import judge_frames

STREAMS = {1: "electrometer 1", 2: "electrometer 2", 3: "scan controller"}
STOPPED_NS = 3_000_000
"""A stream this far behind the newest one has stopped, as far as words go; the path judges by permits.stale_ms."""
JUDGE_S = 0.04
DRAIN_S = 0.05
SYNC_S = 1.0
STOP_S = 3.0
GUARD_SILENT_MS = 120.0
"""The guard speaks every 50 ms at least; silent for longer, it is worth saying where the chain has opened."""


@dataclass
class Holds:
    """Holds of the present field."""

    since_ns: int | None = None
    count: int = 0


class Watch:
    """All background tasks of a run."""

    def __init__(self, run: Run, ledger: Ledger) -> None:
        self.run = run
        self.ledger = ledger
        self.holds = Holds()
        self._ready = asyncio.Event()
        self._spill = False
        self._detailed: tuple[int, str] | None = None
        self._escalate = asyncio.Event()
        self._stale: set[str] = set()

    def begin_field(self) -> None:
        """Holds are counted a field."""
        self.holds = Holds()

    def start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Start them; the caller cancels them at the end of the run."""
        run = self.run
        tasks = [
            group.create_task(
                self._poll(name, device.poll_hz, device.max_age_ms, device.request_timeout_ms), name=f"poll {name}"
            )
            for name, device in run.site.devices.items()
        ]
        tasks.append(group.create_task(ask_identities(run), name="identities"))
        tasks.append(group.create_task(self._interlocks(), name="interlocks"))
        tasks.append(group.create_task(self._drain(), name="journal"))
        tasks.append(group.create_task(self._news(), name="real-time news"))
        tasks.append(group.create_task(self._close_stopper(), name="escalation"))
        return tasks

    async def ready(self, deadline: Deadline) -> None:
        """Wait until every device has a status and all streams run. Raises `Refused` that names what is missing."""
        names = [name for name, _ in self.run.site.devices.items()]
        try:
            async with deadline.timeout():
                while not (self.run.path.alive and all(name in self.run.seen for name in names)):
                    await asyncio.sleep(0.01)
        except TimeoutError as error:
            missing = [f"no status of {name}" for name in names if name not in self.run.seen]
            if not self.run.path.alive:
                frames = self.run.site.streams.frames
                missing.append(f"not all three streams of frames arrive at {frames.host}:{frames.port}")
            raise Refused(f"{deadline.purpose}: {'; '.join(missing)}; check devices and network") from error

    async def _poll(self, name: str, poll_hz: float, max_age_ms: float, timeout_ms: float) -> None:
        status: Callable[[Deadline], Awaitable[Any]] = getattr(self.run.devices, name).status
        simulated = getattr(self.run.site.devices, name).kind == "simulated"
        period_s = 1.0 / poll_hz
        while True:
            try:
                got = await status(Deadline.after(max(timeout_ms, max_age_ms) * 1e-3, f"status of {name}"))
            except LinkLost as error:
                self._take_trip()
                self.run.trip("LINK_LOST", detail=str(error))
                self._publish(name, simulated, "down", None)
            except DeviceError as error:
                self._take_trip()
                self.run.trip("DEVICE_ERROR", detail=str(error))
                self._publish(name, simulated, "suspect", None)
            else:
                self.run.note(name, got, round(max_age_ms * 1e6))
                self._publish(name, simulated, "up", got)
            self._warn_of_stale(name)
            await asyncio.sleep(period_s)

    def _warn_of_stale(self, name: str) -> None:
        """Once a device: answers that nobody waited for harm nothing, and are a sign of a bad line all the same."""
        count = getattr(self.run.devices, name).stale_answers
        if count and name not in self._stale:
            self._stale.add(name)
            text = f"{name}: answers come that nobody asked for, late ones or repetitions; they are thrown away"
            self.run.event("warning", text=f"{text}. Check line and device")

    def _publish(self, name: str, simulated: bool, link: str, status: Any) -> None:
        values = {} if status is None else {f: getattr(status, f) for f in status.__slots__ if f != "t_ns"}
        age_ms = None if status is None else (now_ns() - status.t_ns) * 1e-6
        self.run.telemetry.publish(
            f"devices/{name}",
            {
                "t_ns": now_ns(),
                "device": name,
                "link": link,
                "simulated": simulated,
                "age_ms": age_ms,
                "values": values,
            },
        )

    async def _interlocks(self) -> None:
        run = self.run
        lease_ns = round(run.site.permits.lease_ms * 1e6)
        silent_ns = round((run.site.permits.stale_ms + run.site.permits.time_out_ms) * 1e6)
        while True:
            self._take_trip()
            self._hear_guard()
            t_ns = now_ns()
            if run.state is State.INTERRUPTED and self.holds.since_ns is not None:
                self.holds.since_ns = t_ns  # the operator's pause is no hold of the gate, and may last
            hold_s = 0.0 if self.holds.since_ns is None else (t_ns - self.holds.since_ns) * 1e-9
            room = judge_room(run, t_ns, hold_s=hold_s, holds=self.holds.count)
            trip_on(run, room)
            if run.path.permitting:
                trip_on(run, judge_frames(run.path.newest_arrival_ns(), t_ns, silent_ns))
            if run.state is State.DELIVERING and run.path.flags & FLAG_REQUEST:
                trip_on(run, before_beam(standing(run, room)))
            run.path.renew(LEASE_INTERLOCKS, now_ns() + lease_ns)
            await asyncio.sleep(JUDGE_S)

    async def _drain(self) -> None:
        run = self.run
        lease_ns = round(run.site.permits.lease_ms * 1e6)
        synced = now_ns()
        real = not getattr(asyncio.get_running_loop(), "virtual", False)
        pending: asyncio.Task[None] | None = None
        try:
            while True:
                self.drain()
                if real:
                    # a killed process loses what came since
                    run.journal.seen(self._seen())
                    run.journal.flush()
                if pending is not None and pending.done():
                    pending.result()
                    pending = None
                if pending is None and now_ns() - synced > SYNC_S * 1e9:
                    # beside us: a slow disk must not cost us our lease
                    synced = now_ns()
                    pending = asyncio.create_task(run.journal.sync(), name="journal sync")
                run.path.renew(LEASE_DELIVERY, now_ns() + lease_ns)
                await asyncio.sleep(DRAIN_S)
        except (JournalDiskError, RingOverrun) as error:
            run.trip("DISK", detail=str(error))
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.wait([pending])

    def drain(self) -> None:
        """Rows to the journal, measured visits to the ledger."""
        self.run.journal.rows(self.run.path.take_rows())
        self.ledger.take(self.run.path.take_measured())
        for text in self.run.path.recording_warnings():
            self.run.event("warning", text=text)

    def _seen(self) -> NDArray[Any]:
        """What the ledger was given since the last call, as visits of the journal."""
        run = self.run
        found = [
            visits_from_frames(rows, run.programs[field], run.plan.fields[field].unit, run.part)
            for field, rows in self.ledger.take_unwritten()
        ]
        return np.concatenate([np.zeros(0, VISIT_DTYPE), *found])

    async def _close_stopper(self) -> None:
        """At once, whether or not a delivery is under way that would be stopped: an armed room has the stopper open."""
        while True:
            await self._escalate.wait()
            self._escalate.clear()
            try:
                await self.run.devices.accelerator.stop(Deadline.after(STOP_S, "escalation to the stopper"))
            except DeviceError as error:
                self.run.event("warning", text=f"stopper: {error}")

    async def _news(self) -> None:
        run = self.run
        while True:
            await run.path.changed()
            self._look()

    def _detail(self, trip: PathTrip) -> str:
        """The visit, and which streams had stopped when the trip was first looked at: a cause behind the cause."""
        if self._detailed is None or self._detailed[0] != trip.t_ns:
            streams = self.run.path.monitor.streams
            newest_ns = max(int(streams[number]["t_ns"]) for number in STREAMS)
            words = [f"visit {trip.visit}"] if trip.visit else []
            words += [
                f"no frames of {name} any more"
                for number, name in STREAMS.items()
                if newest_ns - int(streams[number]["t_ns"]) > STOPPED_NS
            ]
            if trip.number in (MONITORS_DISAGREE, COUNTS_BACKWARDS):
                words += self._stands_still()
            silence_ms = self.run.guard.silence_ms(now_ns())
            if trip.number == CHAIN_OPENED and silence_ms is not None and silence_ms > GUARD_SILENT_MS:
                words.append(f"nothing heard of the guard for {silence_ms:.0f} ms")
            self._detailed = (trip.t_ns, "; ".join(words))
        return self._detailed[1]

    def _stands_still(self) -> list[str]:
        """A monitor whose count stood still over the last three frames while the other one's went on."""
        state = self.run.path.monitor.state
        went = {1: sum(int(state[f"delta_{k}"]) for k in range(3)), 2: sum(int(state[f"delta2_{k}"]) for k in range(3))}
        return [
            f"the count of {STREAMS[number]} stands still while {STREAMS[other]} counts"
            for number, other in ((1, 2), (2, 1))
            if went[number] == 0 < went[other]
        ]

    def _take_trip(self) -> None:
        """Latch what the real-time path has latched: it was there before anything that a task finds now.

        Asyncio may have stood still meanwhile, and then its timers may come before the path's news.
        """
        run = self.run
        trip = run.path.trip()
        if trip is not None and trip.number in by_number():
            if trip.number == CHAIN_OPENED:
                if not run.latch.tripped:
                    self._own_lease()
                self._hear_guard()  # it says why before it lets go
            if by_number()[trip.number].escalate and not run.latch.tripped:
                self._escalate.set()
            run.trip(
                by_number()[trip.number].id,
                # what a flag says has no numbers
                value=trip.value if trip.value or trip.limit else None,
                limit=trip.limit if trip.value or trip.limit else None,
                detail=self._detail(trip),
                t_cause_ns=trip.t_ns,
            )

    def _own_lease(self) -> None:
        """A chain that opened because we had stopped permitting: our lease ran out first, and is the cause."""
        out_ms = self.run.path.leases_out_ms()
        if out_ms > 0:
            self.run.trip(
                "LEASE_EXPIRED", value=out_ms, limit=self.run.site.permits.lease_ms, detail="permits had ended"
            )

    def _hear_guard(self) -> None:
        """Say to the guard that we live, and latch what it has latched: it was there before the chain opened."""
        found = self.run.guard.turn(now_ns())
        if found is not None:
            self.run.trip(found.id, value=found.value, limit=found.limit, detail=found.detail)

    def _look(self) -> None:
        run = self.run
        self._take_trip()
        flags = run.path.flags
        spill = bool(flags & FLAG_SPILL)
        if spill != self._spill:
            self._spill = spill
            if spill:
                run.spill_since_ns = now_ns()
            run.event("spill", phase="begin" if spill else "end")
        held = bool(flags & FLAG_HOLD) and run.state is not State.CHECKED  # prepare's own test of it is none
        if held and self.holds.since_ns is None:
            paused = run.state is State.INTERRUPTED
            between = not run.spill_verified.is_set()
            self.holds.since_ns = now_ns()
            self.holds.count += not (paused or between)
            cause = "operator" if paused else ("spill not yet verified" if between else "gate")
            run.event("hold", phase="begin", cause=cause)
        elif not held and self.holds.since_ns is not None:
            self.holds.since_ns = None
            run.event("hold", phase="end", cause="")
        run.on_change()
