"""`bench step`: what the PC and the link add to a spot in step mode, against a point of a bluesky `list_scan`.

The room is the simulated laboratory in a process of its own, over TCP on loopback, with continuous beam and a chain
that wants no permits: nothing but steps. Both sides take turns with the same layer. A spot's host time is by the
devices' own clock, from the ring of spots:

    end of this visit - end of the one before - beam-on time - tail - slew and settling of the magnets

so what is left is what came from the PC and the wire. Ours is `drivers.step_engine.StepEngine` as it delivers.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.attach import room_simulators
from controller.bench.bluesky_scan import BlueskyScan, bluesky_version
from controller.bench.download import own_site
from controller.bench.figures import BenchResult, Surroundings, percentiles, ratio
from controller.delivery.devices import RoomDevices, open_devices, step_engine
from drivers.contracts import LayerTable
from drivers.deadline import Deadline
from drivers.errors import SpotwiseError
from drivers.magnet_supply import MagnetSupply
from drivers.preset_electrometer import PresetElectrometer
from drivers.registers import load_map
from drivers.scan_controller import ABORTED, LAYER_DONE, TRIPPED
from drivers.step_engine import StepEngine
from drivers.wires.modbus import ModbusTcpPort
from drivers.wires.ports import ModbusPort, RegisterRequest
from sites.loader import load_site
from sites.schema import Site, TcpAddress

SITE = "step-lab"
SPOTS, TURNS = 200, 5
ENERGY_MEV_U = 240.0
PRESET_COUNTS, LIMIT_MS = 400, 1000
STEP_A = 8.0
TOKEN = 77
READY = 2
LIMIT_COUNTS = 0xFFFF_FFFF
RATE_LIMIT_PER_S = 4.0e9
Transaction = tuple[str, int, tuple[int, ...], int]
"""Function, address that is written (or read, where nothing is written), words written, registers read."""


@dataclass
class CountedPort:
    """A port that keeps what it asks."""

    port: ModbusPort
    device: str
    asked: list[Transaction] = field(default_factory=list)
    stale_answers: int = 0

    async def connect(self, deadline: Deadline) -> None:
        await self.port.connect(deadline)

    async def close(self) -> None:
        await self.port.close()

    async def read(self, address: int, count: int, deadline: Deadline) -> list[int]:
        self.asked.append(("FC03", address, (), count))
        return await self.port.read(address, count, deadline)

    async def write(self, address: int, values: Sequence[int], deadline: Deadline) -> None:
        self.asked.append(("FC16", address, tuple(values), 0))
        await self.port.write(address, values, deadline)

    async def write_read(
        self, write_address: int, values: Sequence[int], read_address: int, count: int, deadline: Deadline
    ) -> list[int]:
        self.asked.append(("FC23", write_address, tuple(values), count))
        return await self.port.write_read(write_address, values, read_address, count, deadline)

    async def exchange(self, requests: Sequence[RegisterRequest], deadline: Deadline) -> list[bytes]:
        for r in requests:
            words = tuple(int.from_bytes(r.data[at : at + 2], "big") for at in range(0, len(r.data), 2))
            function = "FC03" if not words else "FC23" if r.count else "FC16"
            self.asked.append((function, r.write_address if words else r.read_address, words, r.count))
        return await self.port.exchange(requests, deadline)


@dataclass(frozen=True, slots=True)
class Turn:
    """One run through the layer."""

    host_us: NDArray[np.float64] = field(repr=False)
    """Per spot, but the first."""
    visits: tuple[int, ...]
    counts: NDArray[np.int64] = field(repr=False)
    asked: tuple[Transaction, ...] = field(repr=False)


def lab_site(folder: Path) -> Site:
    """The laboratory on addresses of this bench's own, with continuous beam and a chain without watchdog."""
    site = own_site(load_site(SITE), folder)
    accelerator = site.accelerator.model_copy(
        update={"kind": "cyclotron", "flat_top_s": 0.0, "particles_per_spill": 0.0, "extraction_rise_ms": 0.0}
    )
    return site.model_copy(
        update={"accelerator": accelerator, "permits": site.permits.model_copy(update={"required": ()})}
    )


def bench_table(spots: int) -> LayerTable:
    """A zigzag of equal spots."""
    rows = np.arange(spots, dtype=np.float64)
    return LayerTable(
        first_visit=1,
        x_current_a=STEP_A * (rows % 8),
        y_current_a=STEP_A * (rows // 8 % 8),
        preset_counts=np.full(spots, PRESET_COUNTS, np.uint32),
        time_limit_ms=np.full(spots, LIMIT_MS, np.uint16),
        flags=np.full(spots, 3, np.uint16),
        early_on_counts=0,
        early_off_counts=20,
        gated=False,
    )


class Laboratory:
    """The bench's room as connected."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.devices: RoomDevices = open_devices(site)
        ports = []
        for name in ("scan_controller", "electrometer_1"):
            address = getattr(site.devices, name).address
            if not isinstance(address, TcpAddress):
                raise SpotwiseError(f"the bench's {name} must be on Modbus TCP")
            ports.append(CountedPort(ModbusTcpPort(name, address.host, address.port), name))
        self.ports = tuple(ports)
        supply = MagnetSupply("scan_controller", ports[0], load_map(site.devices.scan_controller.map))
        electrometer = PresetElectrometer("electrometer_1", ports[1], load_map(site.devices.electrometer_1.map))
        self.engine: StepEngine = step_engine(site, supply, electrometer)

    async def open(self, stack: AsyncExitStack, spots: int) -> None:
        """Connect, ask for beam, close the chain."""
        d, deadline = self.devices, Deadline.after(30.0, "bench: the laboratory")
        for device in (d.accelerator, d.safety_chain, d.electrometer_2, self.engine.supply, self.engine.electrometer):
            await device.connect(deadline)
            stack.push_async_callback(device.close)
        limits = np.full(spots, LIMIT_COUNTS, np.uint32)
        await d.electrometer_2.load_backup(0, 1, limits, RATE_LIMIT_PER_S, deadline)
        await d.accelerator.open_stopper(deadline)
        request = await d.accelerator.request(
            ion="12C", energy_mev_u=ENERGY_MEV_U, intensity_level=0, port_deg=0.0, optics=0, deadline=deadline
        )
        async with deadline.timeout():
            while True:
                status = await d.accelerator.status(deadline)
                if status.state == READY and status.request_id == request:
                    break
                await asyncio.sleep(0.01)
        await d.safety_chain.open_session(1, 250.0, deadline)
        await d.safety_chain.arm(TOKEN, deadline)
        async with deadline.timeout():
            while not (await d.safety_chain.status(deadline)).closed:
                await asyncio.sleep(0.01)

    async def arm(self, table: LayerTable) -> int:
        """Arm a layer through our driver; returns how many rows the ring had."""
        deadline = Deadline.after(10.0, "bench: arming")
        before = (await self.engine.status(deadline)).results
        await self.engine.download(0, table, deadline)
        await self.engine.arm(0, TOKEN, deadline)
        for port in self.ports:
            port.asked.clear()
        return before

    async def ours(self, table: LayerTable) -> Turn:
        """Step through a layer as a delivery does."""
        before = await self.arm(table)
        await self.engine.start(Deadline.after(10.0, "bench: start"))
        await self.engine.attend()
        asked = tuple(t for port in self.ports for t in port.asked)
        return await self.turn(before, table, asked)

    async def turn(self, before: int, table: LayerTable, asked: tuple[Transaction, ...]) -> Turn:
        """When the layer is done, what its ring says."""
        deadline = Deadline.after(10.0, "bench: end of the layer")
        async with deadline.timeout():
            while (status := await self.engine.status(deadline)).state != LAYER_DONE:
                if status.state in (ABORTED, TRIPPED):
                    raise SpotwiseError(f"bench step: the preset stopped by itself at visit {status.visit}: {status}")
                await asyncio.sleep(0.002)
        rows = await self.engine.results(before, len(table.x_current_a), deadline)
        await self.engine.acknowledge(before + len(rows), deadline)
        accelerator, chambers = self.site.accelerator, self.site.dosimetry
        tail_us = accelerator.beam_off_delay_us + 8 * max(chambers.primary.lag_us, chambers.secondary.lag_us)
        limits = self.engine.limits
        step_a = np.maximum(np.abs(np.diff(table.x_current_a)), np.abs(np.diff(table.y_current_a)))
        own_us = rows["beam_on_ns"][1:] * 1e-3 + tail_us + step_a / limits.slew_a_per_s * 1e6 + limits.settle_us
        host_us = np.diff(rows["t_end_ns"]) * 1e-3 - own_us
        return Turn(host_us, tuple(int(v) for v in rows["visit"]), rows["counts"].astype(np.int64), asked)


def run_turns(folder: Path, spots: int, turns: int) -> tuple[list[Turn], list[Turn]]:
    """Ours and bluesky's (none where it is not installed), in turns; the first turn of each finds cold caches."""
    site, table = lab_site(folder), bench_table(spots)
    ours: list[Turn] = []
    theirs: list[Turn] = []
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            runner.run(_enter(stack, site, folder))
            laboratory = Laboratory(site)
            runner.run(laboratory.open(stack, spots))
            scan = None if bluesky_version() is None else BlueskyScan(site, laboratory.engine.limits)
            if scan is not None:
                stack.callback(scan.close)
            for _ in range(turns + 1):
                ours.append(runner.run(laboratory.ours(table)))
                if scan is not None:
                    before = runner.run(laboratory.arm(table))
                    scan.run(table)  # bluesky brings its own event loop
                    theirs.append(runner.run(laboratory.turn(before, table, scan.asked())))
        finally:
            runner.run(stack.aclose())
    return ours[1:], theirs[1:]


async def _enter(stack: AsyncExitStack, site: Site, folder: Path) -> None:
    await stack.enter_async_context(room_simulators(site, 0, folder))


def bench_step(*, quick: bool = False) -> BenchResult:
    """Run it."""
    spots, turns = (6, 1) if quick else (SPOTS, TURNS)
    with tempfile.TemporaryDirectory(prefix="spotwise-bench-") as name:
        around = Surroundings()
        ours, theirs = run_turns(Path(name), spots, turns)
        context = around.context(bluesky=bluesky_version() or "not installed: pip install spotwise[bench]")
    figures = percentiles(np.concatenate([t.host_us for t in ours]))
    yardsticks = {"bluesky": percentiles(np.concatenate([t.host_us for t in theirs]))} if theirs else {}
    each = {side: runs for side, runs in (("ours", ours), ("bluesky", theirs)) if runs}
    return BenchResult(
        name="step",
        unit="us a spot",
        ours=figures,
        yardsticks=yardsticks,
        ratios={name: ratio(figures, row) for name, row in yardsticks.items()},
        details={
            "spots": spots,
            "turns": turns,
            "transactions_per_spot": {
                side: round(sum(len(t.asked) for t in runs) / (spots * turns), 2) for side, runs in each.items()
            },
        },
        context=context,
    )
