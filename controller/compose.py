"""Puts a run together: the only file of the controller that knows the simulators.

`VirtualWorld` is the room in virtual time: whenever the loop is idle, one compiled function advances plant, frames,
integrator, judge, permits and safety chain together, up to the next timer or to the first thing that a coroutine
must see. The judge is the very function that the real-time thread calls. A frame that never leaves the process
is not given a checksum to be checked at once by its maker (a recorded one is given it, for its later readers);
everything else is as on the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.commands import Commands
from controller.delivery.run import Run
from controller.dose.integrator import ACTION_NONE, handle_frame_at, handle_silence
from controller.dose.memory import MEMORY, Monitor
from controller.dose.path import MonitorPath
from controller.dose.reactor import NEWS_FLAGS
from controller.dose.sender import make_datagram
from controller.dose.tape import TAPE, Tape, bad_datagrams, note_control, note_frame, note_silence, turns_done
from controller.guard_in_room import RoomGuardWires
from controller.machine.program import LayerProgram
from controller.played_faults import Bedside, OwnFaults
from controller.record.truth import truth_figures
from drivers.compiled import array_at, compiled
from drivers.errors import BadInput
from drivers.wires.frames import BUFFER_BYTES, frame_at, frame_bytes, new_buffer, seal
from drivers.wires.latency import WireLatency
from drivers.wires.virtual_loop import VirtualLoop
from interlocks.guard_digest import take_frame
from simulators.broker import broker_process as broker_process
from simulators.datagram_faults import GUARD_LINE, LINES, DatagramFaults, next_due, passes, put_aside, taken
from simulators.fault_kinds import NO_TRIP, REFUSED
from simulators.fault_kinds import Kind as CatalogueFault
from simulators.fault_kinds import Parameter as CatalogueParameter
from simulators.fault_kinds import catalogue as fault_catalogue
from simulators.faults import Action, Fault, Scenario
from simulators.faults import load_faults as load_scenario
from simulators.faults import parse_faults as parse_scenario
from simulators.plant.build import permit_key
from simulators.plant.chain import receive_permit
from simulators.plant.state import FRAME_NS, ION_UNIT
from simulators.plant.state import MEMORY as PLANT_MEMORY
from simulators.plant.step import advance_frame
from simulators.room import Room
from simulators.serve import serve_room as serve_room
from simulators.truth_file import read_truths as read_truths
from sites.schema import Site

__all__ = [
    "ION_UNIT",
    "NO_TRIP",
    "REFUSED",
    "CatalogueFault",
    "CatalogueParameter",
    "Scenario",
    "VirtualWorld",
    "broker_process",
    "fault_catalogue",
    "load_scenario",
    "parse_scenario",
    "read_truths",
    "serve_room",
    "site_key",
    "wire_latencies",
]

PERMIT_BYTES = 64
STALLS = ("loop_stalled", "thread_stalled", "process_stopped", "clock_jump")


GUARD_STREAM = 3
"""Place of electrometer 2's second stream, the guard's, among what streams."""
guard_frame = compiled(take_frame)
RECORDED_NS = 200_000_000
"""The room advances no further at once while frames are recorded: the tape holds more than that."""


@compiled
def show_guard(digest, frame):  # type: ignore[no-untyped-def]  # numba types it
    """A frame of electrometer 2 reaches the guard."""
    guard_frame(digest, frame.i64[1], frame.i64[3], np.int64(frame.u32[8]), np.int64(frame.u32[9]), frame.i64[5])


@compiled
def guard_turn(digest, lines, address, arrives, now_ns):  # type: ignore[no-untyped-def]  # numba types it
    """What the guard receives in this period: what waited for it, and the frame that its stream sends now."""
    at = next_due(lines, now_ns, True)
    while at >= 0:
        show_guard(digest, frame_at(lines.data_at + at * BUFFER_BYTES))
        taken(lines, at)
        at = next_due(lines, now_ns, True)
    if arrives and passes(lines, GUARD_LINE, address, now_ns):
        show_guard(digest, frame_at(address))


@compiled
def answer_frame(plant, m, tape, ring, lines, permit_at, address, stream, now_ns):  # type: ignore[no-untyped-def]  # numba types it
    """A frame arrives that may have come to harm: it is inspected as on the wire; what is decided goes to the chain."""
    before = bad_datagrams(m)
    action = handle_frame_at(m, address, frame_bytes(stream), now_ns, False)
    if tape.on == 1:
        note_frame(tape, ring, frame_at(address), frame_bytes(stream), now_ns, bad_datagrams(m) == before)
    send_permit(plant, m, lines, permit_at, action, now_ns)


@compiled
def send_permit(plant, m, lines, permit_at, action, now_ns):  # type: ignore[no-untyped-def]  # numba types it
    """What was decided goes to the chain, as far as the permits' line lets it."""
    if action == ACTION_NONE:
        return
    permit = frame_at(permit_at)
    make_datagram(m, permit, action, now_ns)
    if passes(lines, 0, permit_at, now_ns):
        receive_permit(plant, permit, PERMIT_BYTES, plant.state.t_ns)


@compiled
def harmed_turn(plant, m, tape, ring, lines, frames_at, permit_at, streams, streaming, now_ns):  # type: ignore[no-untyped-def]  # numba types it
    """One period in which datagrams may come to harm, or nobody receives them."""
    deaf = now_ns < lines.deaf_until_ns
    if not deaf:
        if tape.on == 1:
            note_control(tape, ring, m, now_ns)
        at = next_due(lines, now_ns, False)
        while at >= 0:
            address = lines.data_at + at * BUFFER_BYTES
            if lines.of[at] == 0:
                receive_permit(plant, frame_at(address), PERMIT_BYTES, plant.state.t_ns)
            else:
                answer_frame(plant, m, tape, ring, lines, permit_at, address, lines.of[at], now_ns)
            taken(lines, at)
            at = next_due(lines, now_ns, False)
    for k in range(3):
        if streams >> k & 1 == 0 or streaming[k] == 0:
            continue
        address = frames_at[k]
        seal(frame_at(address), k + 1)
        if deaf:
            put_aside(lines, k + 1, address, lines.deaf_until_ns)
        elif passes(lines, k + 1, address, now_ns):
            answer_frame(plant, m, tape, ring, lines, permit_at, address, k + 1, now_ns)
    if not deaf:
        before = turns_done(m)
        action = handle_silence(m, now_ns)
        if tape.on == 1 and (action != ACTION_NONE or turns_done(m) != before):
            note_silence(tape, ring, now_ns)
        send_permit(plant, m, lines, permit_at, action, now_ns)


@compiled
def advance_world(  # type: ignore[no-untyped-def]  # numba types it
    plant_at,
    monitor_at,
    frame_1_at,
    frame_2_at,
    frame_3_at,
    permit_at,
    streaming,
    latency_ns,
    until_ns,
    tape_at,
    ring,
    guard_digest,
    lines_at,
):
    """Run whole frames until `until_ns`, or until the flags that asyncio watches change or a trip latches.

    Memories and buffers come by address: to hand over records from Python takes 20 us a call, and passing buffers on
    as arrays counts references at each call. Returns the time reached: the end of the last whole frame.
    """
    plant = array_at(plant_at, 1, PLANT_MEMORY)[0]
    m = array_at(monitor_at, 1, MEMORY)[0]
    tape = array_at(tape_at, 1, TAPE)[0]
    frame_1 = frame_at(frame_1_at)
    frame_2 = frame_at(frame_2_at)
    frame_3 = frame_at(frame_3_at)
    permit = frame_at(permit_at)
    lines = array_at(lines_at, 1, LINES)[0]
    recording = tape.on == 1
    s = plant.state
    flags = m.state.flags_3 & NEWS_FLAGS
    trips = m.state.trips
    while s.t_ns + FRAME_NS <= until_ns:
        streams = advance_frame(plant, frame_1, frame_2, frame_3)
        now_ns = s.t_ns + latency_ns
        to_guard = streams & 2 != 0 and streaming[GUARD_STREAM] == 1
        if lines.on == 1:
            guard_turn(guard_digest, lines, frame_2_at, to_guard, now_ns)
        elif to_guard:
            show_guard(guard_digest, frame_2)
        if lines.on == 1:
            frames_at = (frame_1_at, frame_2_at, frame_3_at)
            harmed_turn(plant, m, tape, ring, lines, frames_at, permit_at, streams, streaming, now_ns)
        for k in range(3 if lines.on == 0 else 0):
            action = ACTION_NONE
            if recording:
                note_control(tape, ring, m, now_ns)
            if streams >> k & 1 == 1 and streaming[k] == 1:
                if k == 0:
                    action = handle_frame_at(m, frame_1_at, 0, now_ns, True)
                    if recording:
                        note_frame(tape, ring, frame_1, seal(frame_1, 1), now_ns, True)
                elif k == 1:
                    action = handle_frame_at(m, frame_2_at, 0, now_ns, True)
                    if recording:
                        note_frame(tape, ring, frame_2, seal(frame_2, 2), now_ns, True)
                else:
                    action = handle_frame_at(m, frame_3_at, 0, now_ns, True)
                    if recording:
                        note_frame(tape, ring, frame_3, seal(frame_3, 3), now_ns, True)
            elif k == 0:
                before = turns_done(m)
                action = handle_silence(m, now_ns)
                if recording and (action != ACTION_NONE or turns_done(m) != before):
                    note_silence(tape, ring, now_ns)
            if action != ACTION_NONE:
                make_datagram(m, permit, action, now_ns)
                receive_permit(plant, permit, PERMIT_BYTES, s.t_ns)
        if m.state.flags_3 & NEWS_FLAGS != flags or m.state.trips != trips:
            break
        if s.wake_visit > 0 and s.eng_visit >= s.wake_visit:
            break
    return s.t_ns


class RunPlaces:
    """Where a run is in its plan (`simulators.fault_player.PlanPlaces`)."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def field_number(self) -> int:
        """Of the field that is armed or delivered, from 1 on."""
        return self._run.tally.field_index + 1

    def layer_number(self, visit: int) -> int:
        """Layer of a visit of this field, from 1 on; layers without visits count."""
        programs = self._run.programs[self._run.tally.field_index]
        begun = [p.layer_index for p in programs if len(p.visits) and int(p.visits["visit"][0]) <= visit]
        return 1 + begun[-1] if begun else 0


def _at_bedside(action: Action) -> bool:
    return (action.kind, action.how) == ("operator", "confirms")


class VirtualWorld:
    """A `drivers.wires.virtual_loop.World` around one simulated room and the controller's real-time path."""

    def __init__(self, site: Site, seed: int, *, state: Path | None = None) -> None:
        """`state`: what an earlier room of this kind retained (`save`); None: a new room."""
        self.site = site
        self.room = Room(site, seed, streams_changed=self._streams_changed)
        if state is not None:
            self.room.restore(state)
        self.monitor = Monitor()
        self.path: MonitorPath | None = None
        self._tape = Tape()
        self._tape_address = self._tape.memory.ctypes.data
        self._recorded: Callable[[], None] = lambda: None
        self._streaming = np.zeros(4, np.int64)
        self._permit = new_buffer()
        self._guard = RoomGuardWires(self._guard_permit)
        self.lines = DatagramFaults()
        self._own_faults: OwnFaults | None = None
        self._bedside = Bedside()
        self._looked_at = False
        """A scenario has something to find at the bedside."""
        self._lies: list[Action] = []
        """Of a controller that is defective from its beginning."""
        self._ahead_ns = 0
        self.room.player.outside = self._outside
        self.room.player.moment = self._moment
        self._latency_ns = round(site.simulation.datagram_latency_us * 1000)
        self._frame_end_ns = 0
        self._find_memories()

    def _find_memories(self) -> None:
        self._state = self.monitor.state  # a view: to look it up anew costs as much as a frame
        plant = self.room.plant
        memories = (plant.memory, self.monitor.memory)
        buffers = (plant.frame_1, plant.frame_2, plant.frame_3, self.monitor.permit)
        self._addresses = [*(a.ctypes.data for a in memories), *(b.u8.ctypes.data for b in buffers)]

    def _streams_changed(self, number: int, slot: int, destination: tuple[int, int, bool]) -> None:
        if slot == 0:
            self._streaming[number - 1] = int(destination[2])
        elif number == 2:
            self._streaming[GUARD_STREAM] = int(destination[2])

    def _guard_permit(self, data: bytes) -> None:
        plant = self.room.plant
        self._permit.u8[: len(data)] = np.frombuffer(data, np.uint8)
        receive_permit(plant.memory[0], self._permit, len(data), int(plant.state["t_ns"]))

    def record(self, tape: Tape, recorded: Callable[[], None]) -> None:
        """Before the run: keep a tape of all frames; `recorded` is called whenever the room has advanced."""
        self._tape = tape
        self._tape_address = tape.memory.ctypes.data
        self._recorded = recorded

    def run_to(self, t_ns: int) -> int:
        """Advance the room; tell the path if something happened."""
        t_ns -= self._ahead_ns
        if t_ns < self._frame_end_ns + FRAME_NS:
            return t_ns + self._ahead_ns  # no whole frame fits in: nothing happens
        if self._tape.on:
            t_ns = min(t_ns, int(self.room.plant.state["t_ns"]) + RECORDED_NS)
        state = self._state
        before = (int(state["flags_3"]) & NEWS_FLAGS, int(state["trips"]))
        reached = advance_world(
            *self._addresses,
            self._streaming,
            self._latency_ns + self._ahead_ns,
            t_ns,
            self._tape_address,
            self._tape.ring,
            self._guard.digest,
            self.lines.memory.ctypes.data,
        )
        self._recorded()
        self._frame_end_ns = int(reached)
        plant = self.room.plant.state
        woken = 0 < int(plant["wake_visit"]) <= int(plant["eng_visit"])
        if woken:
            plant["wake_visit"] = 0
            asyncio.get_running_loop().call_soon(self.room.woken.set)
        after = (int(state["flags_3"]) & NEWS_FLAGS, int(state["trips"]))
        if after != before and self.path is not None:
            asyncio.get_running_loop().call_soon(self.path.notify)
            return int(reached) + self._ahead_ns
        return (int(reached) if woken else t_ns) + self._ahead_ns

    def alive(self) -> bool:
        """The plant always goes on."""
        return True

    @asynccontextmanager
    async def serve(self, faults: Iterable[Fault]) -> AsyncIterator[MonitorPath]:
        """Serve the room on the running virtual loop; yields the controller's real-time path."""
        faults = tuple(faults)
        self._looked_at = any(_at_bedside(action) for fault in faults for action in fault.actions)
        self.path = MonitorPath(self.site, self.monitor)
        self.path.guard_wires = self._guard
        async with self.room.serve():
            play = asyncio.create_task(self.room.play(faults), name="faults")
            try:
                yield self.path
            finally:
                play.cancel()
                await asyncio.wait((play,))
                if not play.cancelled():
                    play.result()  # a scenario that failed was not played: never silently
                if self._own_faults is not None:
                    await self._own_faults.close()

    @property
    def played(self) -> list[dict[str, Any]]:
        """What has become of the faults so far."""
        return [played.as_record() for played in self.room.player.played]

    def follow(self, run: Run, commands: Commands) -> None:
        """From now on, faults are placed by the plan that this run delivers, in whichever part of it."""
        self._own_faults = OwnFaults(run, commands)
        for action in self._lies:
            self._own_faults.host(action.how, action.settings)
        self.room.player.plan = RunPlaces(run)
        if self._looked_at:
            run.look = self._bedside.look

    def wait_idle(self, seconds: float) -> None:
        """Before the run: so long nobody used the room, devices on; their counters counted their pedestals."""
        self.room.wait_idle(seconds)

    def save(self, path: Path) -> None:
        """Keep what the room's devices retain over a loss of power, for a later part of the treatment."""
        self.room.save(path)

    def lose_controller(self) -> MonitorPath:
        """The controller is gone, the plant lives on: frames and permits of the old one end now.

        Returns the path of a new one, which nobody has given a key, a session or a field.
        """
        self.monitor = Monitor()
        self._find_memories()
        self._guard.dead = True  # it ends with its controller
        self._guard = RoomGuardWires(self._guard_permit)
        self.path = MonitorPath(self.site, self.monitor)
        self.path.guard_wires = self._guard
        return self.path

    async def _moment(self, fault: Fault) -> None:
        """Wait for what a fault of the bedside is about: that somebody looks."""
        for action in fault.actions:
            if _at_bedside(action):
                await self._bedside.find(str(action.settings["what"]))

    def _outside(self, fault: Fault, action: Action) -> Callable[[], None] | None:
        """Faults of what lies between room and controller, of the controller's host, and of its operator."""
        if action.kind in ("frames", "permits"):
            return self._datagrams(action)
        if action.how == "guard_killed":
            self._guard.dead = True
            return None
        if _at_bedside(action):
            return None  # it was found, at its moment
        if action.how in STALLS:
            self._stall(action.how, round(float(action.settings["ms"]) * 1e6))
            return None
        own = self._own_faults
        if own is None and action.how == "lies":
            self._lies.append(action)
            return None
        if own is None:
            raise BadInput(f"fault {fault.name}: nobody has opened a session at {fault.place.words()}; try 'prepared'")
        if action.kind == "operator":
            return own.operator(action.how, action.settings)
        if action.how == "process_killed":
            self.lose_controller()
        return own.host(action.how, action.settings)

    def _datagrams(self, action: Action) -> Callable[[], None]:
        given = {key: float(value) for key, value in action.settings.items()}
        line = int(action.name or 0)
        ns = round(given.get("delay_ms", 0.0) * 1e6)
        left, every = int(given.get("count", 0)) or -1, int(given.get("every", 1))
        self.lines.begin(line, action.how, left=left, every=every, delay_ns=ns)
        return lambda: self.lines.end(line)

    def _stall(self, how: str, ns: int) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        if how == "clock_jump":
            self._ahead_ns += ns
            loop.jump_ns(ns)
        if how in ("thread_stalled", "process_stopped"):
            self.lines.deafen(int(self.room.plant.state["t_ns"]) + self._latency_ns + self._ahead_ns + ns)
        if how in ("loop_stalled", "process_stopped"):
            loop.block_ns(ns)

    def truth(self, programs: list[list[LayerProgram]], delivered: NDArray[Any]) -> dict[str, Any] | None:
        """Errors against what really happened in the plant."""
        return truth_figures(self.room.truths(), ION_UNIT, programs, delivered)


def wire_latencies(site: Site) -> tuple[WireLatency, WireLatency]:
    """(TCP, serial) latencies of the site's virtual wires, one way."""
    sim = site.simulation
    return WireLatency(sim.modbus_latency_us, 0.1), WireLatency(sim.serial_latency_us, 0.1)


def site_key(site: Site) -> bytes:
    """The permit key of the site."""
    return permit_key(site)
