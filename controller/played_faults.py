"""What a fault scenario does on this side of the wires: to the operator's commands and to the controller's host.

In virtual time only, where room and controller are one process. The room's own faults are the simulators' matter
(`simulators.fault_player`); `controller.compose` hands over what it cannot reach.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from controller.blind_controller import stay_blind
from controller.commands import Commands
from controller.delivery.run import Run
from controller.delivery.states import UndefinedTransition
from controller.record.disk import Disk
from drivers.errors import Refused, Stopped
from drivers.wires.guard_link import LayerLimits, Message, Session, Wish
from interlocks.roles import SIMULATED

SOON_S = 0.001
Undo = Callable[[], None] | None
SPARE = 0
"""Descriptors that may still be opened when there are none left."""


Lie = Callable[[Message], Message | None]


def _wish(change: Callable[[Wish], Wish | None]) -> Lie:
    return lambda m: change(m) if isinstance(m, Wish) and m.layer >= 0 else m


def _limits(change: Callable[[LayerLimits], LayerLimits]) -> Lie:
    return lambda m: change(m) if isinstance(m, LayerLimits) else m


def _session(change: Callable[[Session], Session]) -> Lie:
    return lambda m: change(m) if isinstance(m, Session) else m


LIES: Mapping[str, Lie] = {
    "silent": lambda m: None if isinstance(m, Wish) else m,
    "layer": _wish(lambda m: m._replace(layer=m.layer + 1)),
    "visits": _wish(lambda m: m._replace(last_visit=max(m.first_visit, m.last_visit - 3))),
    "unnamed": _wish(lambda m: m._replace(layer=-1, first_visit=0, last_visit=0)),
    "particles": _limits(lambda m: m._replace(particles=m.particles * 1.002)),
    "energy": _limits(lambda m: m._replace(energy_mev_u=m.energy_mev_u + 0.02)),
    "ktp": _session(lambda m: m._replace(ktp=m.ktp * 1.004)),
    "part": _session(lambda m: m._replace(part=m.part + 1)),
    "plan": _session(lambda m: m._replace(plan_sha256=bytes(32))),
}
"""What a defective controller makes of a message to the guard; None: it says nothing."""
LEVELS = {"weaker": -2, "stronger": 2}
"""How many of the site's intensities off a defective controller says a layer's to be."""


def other_level(intensities_per_s: Sequence[float], by: int) -> Lie:
    """Another intensity of the site than the one that layers are requested with; the last one where there is none."""

    def level(m: LayerLimits) -> LayerLimits:
        at = intensities_per_s.index(m.rate_per_s) + by
        return m._replace(rate_per_s=intensities_per_s[min(max(at, 0), len(intensities_per_s) - 1)])

    return _limits(level)


class FailingDisk(Disk):
    """A disk that takes nothing from its nth write on (1 is the next one), `count` times (0: ever after)."""

    def __init__(self, nth: int, count: int, errno: int) -> None:
        self._writes = 0
        self._nth = nth
        self._end = nth + count if count else None
        self._errno = errno

    def write(self, file: int, data: memoryview) -> int:
        self._writes += 1
        if self._writes >= self._nth and (self._end is None or self._writes < self._end):
            raise OSError(self._errno, os.strerror(self._errno))
        return super().write(file, data)


class DeadDisk(Disk):
    """The disk of a process that lives no more: what it means to write, nobody writes."""

    def write(self, file: int, data: memoryview) -> int:
        del file
        return len(data)


class BrokenSink:
    """Telemetry that fails at every message."""

    def publish(self, topic_name: str, payload: Mapping[str, Any]) -> None:
        del payload
        raise ConnectionResetError(f"no broker any more: {topic_name}")


class Bedside:
    """Who looks at patient and position before each arming in a simulated room; a scenario says what is wrong."""

    def __init__(self) -> None:
        self._wrong: list[tuple[str, asyncio.Event]] = []

    async def find(self, what: str) -> None:
        """Find patient, position or field wrong at the next look; returns when that has come."""
        looked = asyncio.Event()
        self._wrong.append((what, looked))
        await looked.wait()

    def look(self, field: int, patient: str) -> tuple[int, str, bool]:
        """What is found where `field` (from 0) and the plan's patient are wanted: field, patient, position is right."""
        wrong = {what for what, _ in self._wrong}
        for _, looked in self._wrong:
            looked.set()
        self._wrong.clear()
        return field + ("field" in wrong), "somebody else" if "patient" in wrong else patient, "position" not in wrong


class OwnFaults:
    """Plays faults of operator and host on one run."""

    def __init__(self, run: Run, commands: Commands) -> None:
        self._run = run
        self._commands = commands
        self._tasks: set[asyncio.Task[None]] = set()
        self._limits: tuple[int, int] | None = None

    def operator(self, how: str, settings: Mapping[str, float | str]) -> Undo:
        """Something that a human does at the wrong time, or to the wrong file."""
        if how == "command":
            task = asyncio.create_task(self._command(str(settings["command"])), name="operator once more")
            self._tasks.add(task)
            return None
        if how == "edited":
            return self._edit(str(settings["what"]))
        if how == "aborts":
            self._commands.abort(SIMULATED, "pressed in a scenario")
            return None
        if how == "pauses":
            self._tasks.add(asyncio.create_task(self._pause(float(settings["s"])), name="operator pauses"))
            return None
        raise RuntimeError(f"no operator does {how!r}")

    async def _pause(self, seconds: float) -> None:
        try:
            await self._commands.pause(SIMULATED)
            await asyncio.sleep(seconds)
            await self._commands.resume(SIMULATED)
        except (Refused, Stopped, UndefinedTransition) as error:
            self._run.event("warning", text=f"operator: {error}")

    async def _command(self, name: str) -> None:
        commands = self._commands
        try:
            if name == "arm":
                await commands.arm(SIMULATED, "once more")
            elif name == "beam_on":
                await commands.beam_on(SIMULATED)
            elif name == "prepare":
                await commands.prepare()
            else:
                commands.reset(SIMULATED, "by habit")
        except (Refused, Stopped, UndefinedTransition) as error:
            self._run.event("warning", text=f"operator: {name} once more: {error}")

    def _edit(self, what: str) -> Undo:
        """What was checked is no longer what lies there: it is the memory of the check that changes here.

        The files themselves belong to whoever plays the scenario.
        """
        before = self._run.sources
        if before is None:
            raise RuntimeError("nobody said what was checked")
        if what == "plan":
            self._run.sources = replace(before, plan_file_sha256="0" * 64)
        elif what == "site":
            known = before.site_name or before.site.name
            other = before.site.model_copy(update={"name": f"{before.site.name}-as-checked"})
            self._run.sources = replace(before, site=other, site_name=known)
        else:
            first, *rest = before.maps
            self._run.sources = replace(before, maps=(replace(first, version=first.version + 1), *rest))
        return lambda: setattr(self._run, "sources", before)

    def host(self, how: str, settings: Mapping[str, float | str]) -> Undo:
        """Something that happens to this PC."""
        if how == "disk":
            numbers = (int(settings[key]) for key in ("nth", "count", "errno"))
            return self._disk(FailingDisk(*numbers))
        if how == "process_killed":
            self._disk(DeadDisk())
            return None
        if how == "broker_gone":
            telemetry = self._run.telemetry
            whole, telemetry.sink = telemetry.sink, BrokenSink()
            return lambda: setattr(telemetry, "sink", whole)
        if how == "no_descriptors":
            self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (SPARE, self._limits[1]))
            return self._descriptors
        if how == "lies":
            return self._lie(str(settings["what"]))
        if how == "blind":
            monitor = self._run.path.monitor
            self._tasks.add(asyncio.create_task(stay_blind(monitor), name="a controller without limits"))
            return None
        if how == "self_test_forgotten":
            self._run.self_tests.pop(str(settings["device"]), None)
            return None
        raise RuntimeError(f"no host does {how!r}")

    def _lie(self, what: str) -> Undo:
        """A defective controller: what it says to the guard is not what it does."""

        async def lie() -> None:
            while not self._run.guard.attached:
                await asyncio.sleep(SOON_S)
            self._run.guard.liar = told

        levels = self._run.site.accelerator.intensities_per_s
        told = other_level(levels, LEVELS[what]) if what in LEVELS else LIES[what]
        self._tasks.add(asyncio.create_task(lie(), name="a lie to the guard"))
        return lambda: setattr(self._run.guard, "liar", None)

    def _disk(self, disk: Disk) -> Undo:
        journal = self._run.journal
        whole = journal.change_disk(disk)

        def repaired() -> None:
            journal.change_disk(whole)

        return repaired

    def _descriptors(self) -> None:
        if self._limits is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)
            self._limits = None

    async def close(self) -> None:
        """After the run: what must not outlive it ends, and commands that failed say so."""
        self._descriptors()
        for task in self._tasks:
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                task.result()
