"""A whole treatment: connect, prepare, then field by field; its end is always written down.

`Treatment` is what the command API drives. Background tasks live as long as the `async with`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

import numpy as np

from controller.clock import now_ns
from controller.delivery.account import Ledger
from controller.delivery.backup_trip import CONDITION, what_cut
from controller.delivery.confirming import confirm, require_confirmation
from controller.delivery.devices import close_devices, connect_devices
from controller.delivery.field import arm_chain, deliver_layers, disarm_chain
from controller.delivery.identities import renew_identities
from controller.delivery.integrity import what_changed
from controller.delivery.one_stop import OneStop
from controller.delivery.programs import build_programs
from controller.delivery.reconcile import bring_to_rest, reconcile
from controller.delivery.roles import demand_reset_role
from controller.delivery.run import Run
from controller.delivery.self_tests import test_monitors, test_stops
from controller.delivery.setup import agree_with_guard, check_set_ups, set_up
from controller.delivery.standing import AlreadyTripped, judge_room, require_arming
from controller.delivery.states import TABLE, Event, State, UndefinedTransition, follow
from controller.delivery.step_gate import step_gate
from controller.delivery.stopping import beam_off, book_what_was_delivered
from controller.delivery.watch import Watch
from controller.doctor.output_qa import demand_output_qa
from controller.doctor.qualification import demand_qualification
from controller.dose.path import RingOverrun
from controller.machine.dosimetry import measured_corrections
from controller.machine.field_program import treatment_machine
from controller.machine.program import LayerProgram
from controller.record.journal import JournalDiskError
from controller.record.schema import VISIT_DTYPE
from drivers.deadline import Deadline
from drivers.errors import DeviceError, LinkLost, Refused, Stopped

PREPARE_S = 30.0
HOLD_S = 2.0


class Treatment:
    """One part of a treatment on one room."""

    def __init__(self, run: Run, key: bytes) -> None:
        self.run = run
        self.ledger = Ledger(run)
        # of the spots, as in summary and record: a beam's own meterset may differ in the last digit
        run.tally.meterset_planned = math.fsum(w for f in run.plan.fields for layer in f.layers for w in layer.meterset)
        self.watch = Watch(run, self.ledger)
        self._key = key
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._fields = list(range(len(run.plan.fields)))
        """Indexes of the fields that are not yet done."""
        self._delivering: Sequence[LayerProgram] = ()
        """Layers of the field that is being delivered: what the rings may hold rows of."""
        self._connected = False
        self._prepared = False
        self._stop = OneStop(run.stop, self._group, self._stop_in_order)
        self._ended = False
        self._cut = ""
        """Which limit electrometer 2 says that it has cut at."""

    async def __aenter__(self) -> Treatment:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._leave()
        finally:
            for task in self._tasks:
                task.cancel()
            try:
                await self._group.__aexit__(kind, error, trace)
            finally:
                if self._connected:
                    await close_devices(self.run.devices)

    async def _leave(self) -> None:
        """Nobody is left to command: a stop that is under way comes to its end, and nothing stays armed."""
        await self._stop.settled()
        if self.run.path.permitting:
            await beam_off(self.run)

    @property
    def fields_left(self) -> int:
        """Fields not yet done."""
        return len(self._fields)

    @property
    def _next_field(self) -> int:
        return self._fields[0]

    async def prepare(self) -> None:
        """Connect, identify, self-test, freeze corrections, open the session, build the programs.

        Raises `Refused` where the room or the plan does not allow a delivery, `Stopped` where the operator aborted;
        nothing has moved then.
        """
        run = self.run
        follow(run.state, Event.PREPARE)
        with self._alone("preparation"):
            run.publish_interlocks()
            failure = await self._race(self._prepare(), "preparation")
        if run.state is State.TERMINATED:
            raise Stopped(self._why())
        for leaf in failure:
            if isinstance(leaf, DeviceError | TimeoutError):
                raise Refused(f"preparation: {str(leaf) or 'deadline missed'}") from leaf
            if not isinstance(leaf, asyncio.CancelledError):
                raise leaf
        if run.stop.is_set():
            raise Refused(self._why())
        run.go(Event.PREPARE)
        self._prepared = True
        self._tasks.append(self._stop.watch())

    async def _prepare(self) -> None:
        run = self.run
        site = run.site
        demand_qualification(site)
        demand_output_qa(site)
        check_set_ups(run)
        deadline = Deadline.after(PREPARE_S, "preparation")
        self._connected = True
        asked_ns = now_ns()
        run.identities = await connect_devices(site, run.devices)
        run.identified_ns = dict.fromkeys(run.identities, asked_ns)
        for name, identity in run.identities.items():
            run.event(
                "device",
                device=name,
                id=identity.device_id,
                simulated=identity.simulated,
                map_sha256=identity.map_sha256,
                boot_nonce=str(identity.boot_nonce),
            )
        await bring_to_rest(run)
        await self._freeze_corrections(deadline)
        visits = np.zeros(0, VISIT_DTYPE)
        if run.carried is not None:
            visits = await reconcile(run, run.carried, self._utc(), run.decision)
        await self._self_tests(deadline)
        build_programs(run, visits)
        self._fields = [i for i in self._fields if run.carried is None or any(len(p.visits) for p in run.programs[i])]
        run.tally.spots_total = sum(len(p.visits) for programs in run.programs for p in programs)
        await step_gate(run)
        session = run.nonce()
        run.path.load_key(self._key, session)
        await run.devices.safety_chain.open_session(session, site.permits.time_out_ms, deadline)
        await agree_with_guard(run, session, deadline)
        frames = site.streams.frames
        for device in (run.devices.electrometer_1, run.devices.electrometer_2, run.devices.scan_controller):
            await device.stream_to(frames.host, frames.port, 0, deadline)
        rings = await run.devices.scan_controller.status(deadline)
        if rings.acknowledged < rings.results:
            rows = f"rows {rings.acknowledged} to {rings.results - 1}"
            run.event("warning", text=f"the rings hold {rows} that nobody acknowledged: another treatment was cut off")
        await renew_identities(run, deadline)
        self._tasks = self.watch.start(self._group)
        await self.watch.ready(deadline)
        await test_stops(run, deadline)
        run.rings_read = (await run.devices.scan_controller.status(deadline)).results

    def _utc(self) -> datetime:
        return self.run.epoch + timedelta(microseconds=now_ns() // 1000)

    async def _self_tests(self, deadline: Deadline) -> None:
        for device in (self.run.devices.electrometer_1, self.run.devices.electrometer_2):
            status = await device.status(deadline)
            if status.tripped and self.run.decision is not None:
                await device.reset_trip(deadline)
                self.run.event("warning", text=f"{device.name}: backup trip reset by {self.run.decision.operator}")
            elif status.tripped:
                raise Refused(
                    f"{device.name}: its backup limit is tripped; a physicist resets it (spotwise resume "
                    f"{self.run.journal.path.parent} --accept-dispute --operator NAME --reason TEXT does it, too)"
                )
        await test_monitors(self.run, deadline)

    async def _freeze_corrections(self, deadline: Deadline) -> None:
        run = self.run
        one = await run.devices.electrometer_1.status(deadline)
        two = await run.devices.electrometer_2.status(deadline)
        dosimetry = run.site.dosimetry
        run.corrections = measured_corrections(one.temperature_c, one.pressure_hpa, dosimetry)
        other = measured_corrections(two.temperature_c, two.pressure_hpa, dosimetry)
        if not abs(other.ktp / run.corrections.ktp - 1) < 0.003:
            raise Refused(
                f"electrometer_2: kTP {other.ktp:.4f} differs from electrometer_1's {run.corrections.ktp:.4f} by more "
                f"than 0.3 %; check the temperature and pressure sensors"
            )
        run.event(
            "corrections",
            ktp=run.corrections.ktp,
            temperature_c=run.corrections.temperature_c,
            pressure_hpa=run.corrections.pressure_hpa,
        )

    async def arm(self, operator: str, reason: str) -> None:
        """Set the next field up where that is still to do, and close the chain. Raises `Refused` without output QA."""
        run = self.run
        demand_output_qa(run.site)
        with self._alone("arming"):
            await self._or_stop_at_once(Event.ARM)
            run.event("command", name="arm", operator=operator, reason=reason)
            index = self._next_field
            run.tally.field_index = index
            await self._or_stop(self._arm(index), "arming")
            run.go(Event.ARM)

    async def _arm(self, index: int) -> None:
        run = self.run
        self._verify_sources()
        if run.field_set_up != index:
            await set_up(run, index)
        require_confirmation(run, index)
        machine = treatment_machine(run.site, run.plan.fields[index])
        run.path.load_field(machine, run.programs[index], run.field_limits[index])
        await self.ledger.begin_field()
        self.watch.begin_field()
        require_arming(run)
        await arm_chain(run)

    async def set_up(self, operator: str) -> None:
        """Set the next field up, so that an operator can look at patient and position before arming."""
        run = self.run
        with self._alone("set-up"):
            await self._or_stop_at_once(Event.ARM)
            run.event("command", name="set_up", operator=operator, reason="")
            run.tally.field_index = self._next_field
            await self._or_stop(self._set_up(self._next_field), "set-up")

    async def _set_up(self, index: int) -> None:
        self._verify_sources()
        await set_up(self.run, index)

    def confirm(self, operator: str, field: int, *, patient_ok: bool, position_ok: bool) -> None:
        """Note patient and position of the next field (from 0). Raises `Refused`; written down either way."""
        run = self.run
        self._not_ended()
        follow(run.state, Event.ARM)
        if self._stop.busy:
            raise Refused(f"not confirmed: {self._stop.busy} is under way")
        confirm(run, operator, field, self._next_field, patient_ok=patient_ok, position_ok=position_ok)

    def _verify_sources(self) -> None:
        """Before anything moves for the field: the plan that was checked, or none."""
        run = self.run
        run.changed = None if run.sources is None else what_changed(run.sources)
        if run.changed is None or run.changed:
            detail = "; ".join(run.changed or ("not compared with what was checked",))
            run.trip("PLAN_CHANGED", detail=detail)
            raise AlreadyTripped("PLAN_CHANGED")

    async def beam_on(self, operator: str) -> None:
        """Deliver the armed field; returns when it is complete. Raises `Stopped`."""
        with self._alone("delivery"):
            await self._beam_on(operator)

    async def _beam_on(self, operator: str) -> None:
        run = self.run
        await self._or_stop_at_once(Event.BEAM_ON)
        run.event("command", name="beam_on", operator=operator, reason="")
        run.go(Event.BEAM_ON)
        index = self._next_field
        programs = [p for p in run.programs[index] if len(p.visits)]
        self._delivering = programs
        if programs:
            await self._or_stop(deliver_layers(run, self.ledger, programs), "delivery")
        await self._or_stop(self._close_field(index), "end of field")
        while run.state is State.INTERRUPTED:  # a pause that came too late to hold anything still wants its resume
            await self._or_stop(self._wait_resumed(), "pause")
        self._delivering = ()
        self._fields.pop(0)
        run.go(Event.COMPLETE if self.fields_left == 0 else Event.FIELD_DONE)

    async def _close_field(self, index: int) -> None:
        run = self.run
        await disarm_chain(run)
        await self.ledger.reconcile(index)
        self.watch.drain()
        await run.journal.sync()

    async def _wait_resumed(self) -> None:
        await self.run.resumed.wait()

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """One of prepare, arm and beam on at a time: the second click of a double one is refused.

        Raises `UndefinedTransition`, also after the treatment has ended.
        """
        self._not_ended()
        with self._stop.alone(what):
            yield

    def _not_ended(self) -> None:
        if self._ended:
            raise UndefinedTransition("the treatment has ended; what is left is a new part")

    async def _or_stop_at_once(self, event: Event) -> None:
        """Refuse a command that the state does not know; what was stopped since the last one stays stopped."""
        if self.run.stop.is_set():
            await self._stopped()
        follow(self.run.state, event)

    async def _race(self, work: Coroutine[Any, Any, None], what: str) -> list[BaseException]:
        """Do the work until it ends or the run is stopped; returns what it failed of, nothing where it did not.

        Whether the run was stopped is the caller's to ask, and still true when this returns.
        """
        task = asyncio.create_task(work, name=what)
        stop = asyncio.create_task(self.run.stop.wait(), name="stop")
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            stop.cancel()
            await asyncio.wait((task, stop))
        return _leaves(asyncio.CancelledError() if task.cancelled() else task.exception())

    async def _or_stop(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Do the work unless a trip or an abort comes first; a device's failure is a trip."""
        run = self.run
        try:
            failure = await self._race(work, what)
        except asyncio.CancelledError:
            # somebody gave this treatment up, or a task beside it died of a defect: no beam without us
            await beam_off(run)
            raise
        if not failure and not run.stop.is_set():
            return
        defect = self._name_failure(failure, what)
        if defect is not None:
            await beam_off(run)
            raise defect
        await self._stopped()

    def _name_failure(self, failure: list[BaseException], what: str) -> BaseException | None:
        """Latch what the work failed of; returns what no interlock has a name for."""
        for leaf in failure:
            if isinstance(leaf, LinkLost):
                self.run.trip("LINK_LOST", detail=str(leaf))
            elif isinstance(leaf, DeviceError):
                self.run.trip("DEVICE_ERROR", detail=str(leaf))
            elif isinstance(leaf, TimeoutError):
                self.run.trip("DEVICE_ERROR", detail=f"{what}: deadline missed")
            elif isinstance(leaf, JournalDiskError | RingOverrun):
                self.run.trip("DISK", detail=str(leaf))
            elif not isinstance(leaf, asyncio.CancelledError | AlreadyTripped):
                return leaf
        return None

    def _why(self) -> str:
        first = self.run.latch.first_out
        if first is None:
            return "stopped"
        return f"{first.message()} {self._cut}".rstrip() if first.id == CONDITION else first.message()

    async def _stopped(self) -> None:
        await self._stop.done()
        raise Stopped(self._why())

    async def _stop_in_order(self) -> None:
        run = self.run
        await beam_off(run)
        run.layer_runs(False)
        # the last frames after beam-off still belong to the log
        await asyncio.sleep(0.02)
        self._drain()
        if self._delivering or not self.ledger.settled:
            await book_what_was_delivered(run, self.ledger, self._delivering, self._next_field)
        self._cut = await what_cut(run)
        try:
            await run.journal.sync()
        except JournalDiskError as error:
            run.trip("DISK", detail=str(error))

    def _drain(self) -> None:
        try:
            self.watch.drain()
        except RingOverrun as error:
            self.run.trip("DISK", detail=str(error))

    async def pause(self, operator: str) -> None:
        """Beam off at once by the engine's hold, nothing starts, the field stays armed.

        Raises `Stopped` where the engine does not hold: that is a trip.
        """
        run = self.run
        self._not_ended()
        run.go(Event.PAUSE, f"operator {operator}")
        run.event("command", name="pause", operator=operator, reason="")
        run.resumed.clear()
        await self._hold(True, "pause")

    async def resume(self, operator: str) -> None:
        """End an operator's pause. Raises `Stopped` as `pause` does."""
        run = self.run
        self._not_ended()
        run.go(Event.RESUME, f"operator {operator}")
        run.event("command", name="resume", operator=operator, reason="")
        if run.spill_verified.is_set():
            await self._hold(False, "resume")
        if run.state is State.DELIVERING:  # not paused anew meanwhile
            run.resumed.set()

    async def _hold(self, on: bool, what: str) -> None:
        deadline = Deadline.after(HOLD_S, what)
        try:
            async with deadline.timeout(), self.run.engine:
                await self.run.devices.scan_controller.hold(on, deadline)
        except (DeviceError, TimeoutError) as error:
            defect = self._name_failure([error], what)
            assert defect is None
            raise Stopped(self._why()) from error

    def abort(self, operator: str, cause: str) -> None:
        """Stop for good; whoever prepares, arms or delivers sees `Stopped`. After the end it does nothing."""
        run = self.run
        if self._ended or run.stop.is_set() or Event.ABORT not in TABLE[run.state]:
            return
        run.event("command", name="abort", operator=operator, reason=cause)
        run.trip("OPERATOR_ABORT", detail=cause, leads=Event.ABORT)

    def reset(self, operator: str, reason: str) -> None:
        """Clear the latch after a trip.

        Raises `UndefinedTransition` where nothing is tripped, `Refused` without a name and a reason, before
        everything has stopped, while a cause is still there, or where a condition is not this person's to reset.
        """
        run = self.run
        self._not_ended()
        follow(run.state, Event.RESET)
        if not self._stop.over:
            raise Refused("not reset: the treatment is still being stopped; wait for its end")
        if not operator.strip() or not reason.strip():
            raise Refused("a reset needs a named operator and a reason")
        demand_reset_role(run.site, operator, [*(t.id for t in run.latch.latched), *run.guard.latched])
        still = judge_room(run, now_ns())
        if still:
            causes = "; ".join(f"{found.id} {found.detail}".rstrip() for found in still)
            raise Refused(f"not reset: the cause is still there: {causes}")
        cleared = run.latch.reset(operator, reason)
        run.path.reset()
        run.guard.reset(operator, reason)
        run.event("reset", operator=operator, reason=reason, ids=[t.id for t in cleared])
        run.go(Event.RESET, reason)
        run.publish_interlocks()

    async def finish(self, outcome: str) -> None:
        """Close the part in the journal."""
        run = self.run
        self._ended = True
        if self._prepared and (run.stop.is_set() or run.path.permitting):
            await self._stop.done()
        self._drain()
        run.journal.end(
            now_ns(),
            {
                "outcome": outcome,
                "visits": run.tally.visits_done,
                "counts_1": self.ledger.counters.booked_1,
                "counts_2": self.ledger.counters.booked_2,
                "settled": self.ledger.settled,
            },
        )
        await run.journal.sync()


def _leaves(error: BaseException | None) -> list[BaseException]:
    if error is None:
        return []
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]
