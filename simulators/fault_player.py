"""Plays a scenario on a room: waits for each fault's place, makes its changes, takes them back, remembers all of it.

What lies outside the room (the controller's host, its operator) is handed to whoever put the run together, by
`outside`. Where the treatment is, is read from the plant; a run that knows its plan says it better, by `plan`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from drivers.contracts import SELF_TEST_VISIT
from drivers.wires.addresses import serial_address, tcp_address
from drivers.wires.faults import FOREVER_NS, FaultKind, WireFault, WireFaults
from simulators.fault_places import Place, Whereabouts, reached
from simulators.faults import Action, Fault, changed, is_ramp
from simulators.plant.state import ACC_CHANGING, ENG_ARMED, ENG_DONE, ENG_IDLE, ENG_RUNNING, Plant
from sites.schema import Device, Site

POLL_S = 0.005
RAMP_S = 0.02
NO_VISIT = 0

Undo = Callable[[], None] | None
Outside = Callable[[Fault, Action], Undo]
Moment = Callable[[Fault], Awaitable[None]]
"""Waits, at a fault's place, for what it is about where that only comes later; who waits in vain never fired."""


class PlayedRoom(Protocol):
    """What a player needs of a room."""

    site: Site
    plant: Plant
    wire_faults: WireFaults
    woken: asyncio.Event

    @property
    def begun_ns(self) -> int | None:
        """When the first layer was armed, plant time."""


class PlanPlaces(Protocol):
    """Who knows the plan: which field is under way, and with which visits its layers begin."""

    def field_number(self) -> int:
        """From 1 on; 0: none yet."""

    def layer_number(self, visit: int) -> int:
        """Of a visit of the present field, from 1 on."""


@dataclass
class Played:
    """What became of a fault."""

    fault: Fault
    fired_ns: int | None = None
    ended_ns: int | None = None

    def as_record(self) -> dict[str, Any]:
        """For faults.json; times in s of the plant's clock, None: never."""
        return {
            "name": self.fault.name,
            "parameters": dict(self.fault.parameters),
            "at": self.fault.place.words(),
            "for_s": self.fault.for_s,
            "fired_s": _seconds(self.fired_ns),
            "ended_s": _seconds(self.ended_ns),
        }


def _seconds(t_ns: int | None) -> float | None:
    return None if t_ns is None else round(t_ns * 1e-9, 6)


class FaultPlayer:
    """One room's scenario."""

    def __init__(self, room: PlayedRoom) -> None:
        self._room = room
        self.played: list[Played] = []
        self.outside: Outside | None = None
        self.plan: PlanPlaces | None = None
        self.moment: Moment | None = None
        self._field = 0
        self._token = 0
        self._layers: list[int] = []
        self._results_field = 0
        self._start: tuple[int, int] | None = None

    async def play(self, faults: Iterable[Fault]) -> None:
        """Make the faults of a scenario happen; ends with the last one's end."""
        self.played = [Played(fault) for fault in faults]
        pending = list(self.played)
        async with asyncio.TaskGroup() as group:
            while pending:
                here = self.look()
                due = [p for p in pending if reached(p.fault.place, here)]
                for played in due:
                    pending.remove(played)
                    group.create_task(self._play(played), name=f"fault {played.fault.name}")
                if pending:
                    await self._wait([p.fault.place for p in pending], here)

    async def _wait(self, places: list[Place], here: Whereabouts) -> None:
        """Until the next look: a poll, or the visit that somebody waits for."""
        visits = [p.visit for p in places if p.visit is not None and p.field in (None, here.field)]
        state = self._room.plant.state
        state["wake_visit"] = min((v for v in visits if v > here.visit), default=NO_VISIT)
        self._room.woken.clear()
        try:
            async with asyncio.timeout(POLL_S):
                await self._room.woken.wait()
        except TimeoutError:
            pass

    def look(self) -> Whereabouts:
        """Where the treatment is."""
        state = self._room.plant.state
        results = int(state["results"])
        # self-tests arm with the stopper closed, and belong to no field
        arming = bool(state["armed"]) and bool(state["stopper_command"])
        token = int(state["token"]) if arming else 0
        if token and token != self._token:
            self._token = token
            if self._field == 0 or results > self._results_field:
                self._field += 1
                self._layers = []
                self._results_field = results
        engine = int(state["eng_state"])
        if engine in (ENG_ARMED, ENG_RUNNING):
            first = int(self._room.plant.first_visit[int(state["eng_bank"])])
            if first == SELF_TEST_VISIT:
                engine = ENG_IDLE
            elif first not in self._layers:
                self._layers.append(first)
        if self._start is None and self._room.begun_ns is not None:
            self._start = (results, int(state["spill"]) - int(state["spill_on"]))
        start = self._start or (results, int(state["spill"]))
        visit = int(state["eng_visit"])
        if visit == SELF_TEST_VISIT:
            visit = NO_VISIT
        layer = len(self._layers)
        if self.plan is not None and self._layers:
            layer = self.plan.layer_number(visit or self._layers[-1])
        return Whereabouts(
            begun=self._start is not None,
            visits=results - start[0],
            field=self._field if self.plan is None else self.plan.field_number(),
            layer=layer,
            visit=visit,
            spill=int(state["spill"]) - start[1],
            states=frozenset(self._states(engine, arming)),
        )

    def _states(self, engine: int, arming: bool) -> list[str]:
        state = self._room.plant.state
        held = engine == ENG_RUNNING and (state["eng_hold"] or (state["eng_gated"] and not state["gate_open"]))
        facts = {
            "start": True,
            "prepared": state["session"] != 0,
            "arming": arming and not self._layers,
            "armed": engine == ENG_ARMED,
            "changing_energy": state["acc_state"] == ACC_CHANGING,
            "running": engine == ENG_RUNNING,
            "beam": bool(state["beam_present"]),
            "held": bool(held),
            "layer_done": engine == ENG_DONE and bool(state["armed"]),
            "field_done": not state["armed"] and bool(self._layers),
        }
        return [name for name, so in facts.items() if so]

    async def _play(self, played: Played) -> None:
        fault = played.fault
        wait_s = fault.place.s or 0.0
        if fault.place.only_time:
            wait_s -= (self._now_ns() - (self._room.begun_ns or 0)) * 1e-9
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if self.moment is not None:
            await self.moment(fault)
        ramps = [action for action in fault.actions if is_ramp(action)]
        begun_ns = self._now_ns()
        played.fired_ns = begun_ns
        undo = [self._do(fault, action) for action in fault.actions if action not in ramps]
        olds = [(action, *self._quantity(action)) for action in ramps]
        end_ns = None if fault.for_s is None else begun_ns + round(fault.for_s * 1e9)
        while olds and (end_ns is None or self._now_ns() < end_ns):
            left_s = RAMP_S if end_ns is None else min(RAMP_S, (end_ns - self._now_ns()) * 1e-9)
            await asyncio.sleep(left_s)
            for action, old, write in olds:
                write(changed(action, old, (self._now_ns() - begun_ns) * 1e-9))
        if end_ns is None:
            return
        await asyncio.sleep(max(0.0, (end_ns - self._now_ns()) * 1e-9))
        for back in undo:
            if back is not None:
                back()
        for _, old, write in olds:
            write(old)
        played.ended_ns = self._now_ns()

    def _now_ns(self) -> int:
        return int(self._room.plant.state["t_ns"])

    def _do(self, fault: Fault, action: Action) -> Undo:
        if action.kind in ("plant", "device"):
            old, write = self._quantity(action)
            write(changed(action, old))
            return lambda: write(old)
        if action.kind == "wire":
            self._wire(fault, action)
            return None  # its window ends by itself
        if self.outside is None:
            raise RuntimeError(f"fault {fault.name}: nobody here can play a fault of the {action.kind}")
        return self.outside(fault, action)

    def _quantity(self, action: Action) -> tuple[float, Callable[[float], None]]:
        """The present value of what an action changes, and how to change it."""
        if action.kind == "device":
            return _attribute(self._room, action.name)
        plant = self._room.plant
        record = plant.parameters if action.name in plant.parameters.dtype.names else plant.state
        integer = record.dtype[action.name].kind in "iu"

        def write(value: float) -> None:
            record[action.name] = round(value) if integer else value

        return record[action.name].item(), write

    def _wire(self, fault: Fault, action: Action) -> None:
        device: Device = getattr(self._room.site.devices, action.name)
        a = device.address
        address = tcp_address(a.host, a.port) if a.wire == "modbus_tcp" else serial_address(a.path)
        start = round(asyncio.get_running_loop().time() * 1e9) - self._room.wire_faults.origin_ns
        settings = action.settings
        self._room.wire_faults.add(
            WireFault(
                address,
                FaultKind(action.how),
                direction="both" if action.how == "cut" else "reply",
                from_ns=start,
                until_ns=FOREVER_NS if fault.for_s is None else start + round(fault.for_s * 1e9),
                nth=int(settings["nth"]) if settings.get("nth") else None,
                delay_ns=round(float(settings.get("delay_s", 0.0)) * 1e9),
                code=int(settings.get("code", 0)),
            )
        )


def _attribute(room: Any, name: str) -> tuple[float, Callable[[float], None]]:
    *path, attribute = name.split(".")
    owner: Any = room
    for part in path:
        owner = owner[part] if isinstance(owner, dict) else getattr(owner, part)
    old = getattr(owner, attribute)

    def write(value: float | bool | None) -> None:
        if value is old or value is None:
            setattr(owner, attribute, old)
        elif isinstance(old, bool) or attribute == "stuck":
            setattr(owner, attribute, bool(value))
        else:
            setattr(owner, attribute, float(value) if isinstance(old, float) else round(value))

    return old or 0.0, write
