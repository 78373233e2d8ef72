"""The room in which processes are killed: accelerator, streams, guard and controller, each a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.kills.plant_view import PlantView
from tests.make_plan import BeamSpec, LayerSpec, make_plan, write_plan
from tests.ports import free_port
from tests.real_rooms import Process, RealRoom, make_room, processes_of, run

FIELDS, ENERGIES = 2, (250.0, 240.0)
SPOTS = 100
STREAMS, GUARD = "simulators.stream_process", "interlocks.guard_process"


def _spots(layer: int) -> list[tuple[float, float, float]]:
    """x and y in mm, and MU from 0.6 to 3, of a layer's spots."""
    side = 10
    return [
        ((i % side - 4.5) * 4.0, (i // side - 4.5) * 4.0, 0.6 + 2.4 * ((37 * (i + 13 * layer)) % 101) / 100.0)
        for i in range(SPOTS)
    ]


def plan_file(path: Path) -> Path:
    """Two fields of two layers of a hundred spots."""
    layers = [LayerSpec(energy_mev_u, _spots(k)) for k, energy_mev_u in enumerate(ENERGIES)]
    beams = [BeamSpec(number=n, name=f"F{n}", layers=layers, snout_mm=515.0) for n in range(1, FIELDS + 1)]
    return write_plan(path, make_plan(beams))


def planned_particles(room: RealRoom) -> NDArray[np.float64]:
    """Of each field and visit, by the site's calibration of the MU."""
    mu = room.site.treatment_machines["REF-C"].mu
    layers = [
        [weight * mu.particles_per_mu * (energy / mu.reference_mev_u) ** mu.exponent for _, _, weight in _spots(k)]
        for k, energy in enumerate(ENERGIES)
    ]
    return np.tile(np.concatenate(layers), (FIELDS, 1))


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
