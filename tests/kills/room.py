"""The room in which processes are killed: accelerator, streams, guard and controller, each a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.kills.plant_view import PlantView
from tests.make_plan import BeamSpec, LayerSpec, make_plan, write_plan
from tests.ports import free_port
from tests.real_rooms import Process, RealRoom, make_room, processes_of, run

FIELDS, ENERGIES = 2, (250.0, 240.0)
SPOTS = 100
STREAMS, GUARD = "simulators.stream_process", "interlocks.guard_process"


def plan_file(path: Path) -> Path:
    """Two fields of two layers of a hundred spots, from 0.6 to 3 MU."""
    side = 10
    beams = []
    for number in range(1, FIELDS + 1):
        layers = []
        for k, energy_mev_u in enumerate(ENERGIES):
            spots = [
                ((i % side - 4.5) * 4.0, (i // side - 4.5) * 4.0, 0.6 + 2.4 * ((37 * (i + 13 * k)) % 101) / 100.0)
                for i in range(SPOTS)
            ]
            layers.append(LayerSpec(energy_mev_u, spots))
        beams.append(BeamSpec(number=number, name=f"F{number}", layers=layers, snout_mm=515.0))
    return write_plan(path, make_plan(beams))


@dataclass(slots=True)
class Bench:
    """A room that runs."""

    room: RealRoom
    process: Process
    plant: PlantView

    def pid_of(self, module: str) -> int:
        """The newest process that runs a module; 0: none."""
        found = [int(line.split(":")[0]) for line in processes_of(self.room) if module in line]
        return max(found, default=0)


def _room_in(folder: Path) -> RealRoom:
    folder.mkdir(parents=True)
    return replace(make_room(folder, free_port, guard=True), plan=plan_file(folder / "plan.dcm"))


@asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    """The shipped carbon room with guard, on addresses of its own, its streams apart, and a plan for it."""
    room = _room_in(folder)
    state = folder / "room.npz"
    where = ("--site", str(room.site_file), "--state", str(state))
    async with run(room, "-m", "controller.cli", "simulate", *where, "--streams-apart") as process:
        await process.said('"ready": true')
        yield Bench(room, process, PlantView(state))
        if process.running:
            process.send(signal.SIGTERM)
            await process.ended()


def load() -> float:
    """Of the last minute."""
    return round(os.getloadavg()[0], 2)
