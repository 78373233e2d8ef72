"""`bench download`: a layer of 779 visits through our driver, against a raw socket that sends the same bytes.

The server is the simulated scan controller, in a process of its own, over TCP on loopback. Our side is the driver that
delivers: packs the table, writes it, reads every register back, compares, compares the engine's CRC. Its requests are
written down once; the raw side sends the very same ones to the same server, one after the other. All take turns. Since
the driver has as many requests under way as the site allows, two more are timed: our driver with one request at a
time, and a raw writer that sends as many at once (`raw_in_flight`).
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.attach import room_simulators
from controller.bench.figures import BenchResult, Surroundings, percentiles, ratio
from controller.bench.plan import SPOTS_PER_LAYER, write_plan
from controller.bench.raw_modbus import RawModbus
from controller.bench.virtual import bench_site, checked
from controller.machine.dosimetry import nominal_corrections
from controller.machine.field_program import build_field
from drivers.contracts import LayerTable
from drivers.deadline import Deadline
from drivers.errors import SpotwiseError
from drivers.registers import load_map
from drivers.scan_controller import ScanController
from drivers.wires.modbus import ModbusTcpPort
from drivers.wires.modbus_pdu import request_message, tcp_frame
from drivers.wires.ports import RegisterRequest
from sites.schema import Device, Site, TcpAddress

REPEATS = 200
LAYER = 10
"""Of the benches' plan."""


def free_ports(count: int) -> list[int]:
    """TCP ports of loopback that nobody uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def own_site(site: Site, folder: Path) -> Site:
    """The site on addresses of this bench's own: a room that runs on the site's is not disturbed."""
    ports = iter(free_ports(2 + sum(isinstance(d.address, TcpAddress) for _, d in site.devices.items())))
    devices: dict[str, Device] = {}
    for name, device in site.devices.items():
        change: dict[str, Any] = (
            {"port": next(ports)} if isinstance(device.address, TcpAddress) else {"path": str(folder / name)}
        )
        devices[name] = device.model_copy(update={"address": device.address.model_copy(update=change)})
    streams = site.streams
    return site.model_copy(
        update={
            "devices": site.devices.model_copy(update=devices),
            "streams": streams.model_copy(
                update={
                    "frames": streams.frames.model_copy(update={"port": next(ports)}),
                    "permits": streams.permits.model_copy(update={"port": next(ports)}),
                }
            ),
        }
    )


class _WrittenDown(ModbusTcpPort):
    """A port that keeps what it sends."""

    def __init__(self, device: str, host: str, port: int) -> None:
        super().__init__(device, host, port)
        self.sent: list[bytes] = []

    async def exchange(self, requests: Sequence[RegisterRequest], deadline: Deadline) -> list[bytes]:
        self.sent += [tcp_frame(len(self.sent) + n, self.unit, request_message(r)) for n, r in enumerate(requests)]
        return await super().exchange(requests, deadline)


def layer_table(site: Site, folder: Path, spots: int) -> LayerTable:
    """What a delivery downloads for one layer of the benches' plan."""
    report = checked(write_plan(folder / "layer.rst", range(LAYER, LAYER + 1), spots), site)
    if report.loaded is None:
        raise SpotwiseError("the bench's plan could not be read")
    program = build_field(site, report.loaded.plan.fields[0], 0, nominal_corrections(site.dosimetry))[0]
    v = program.visits
    return LayerTable(
        first_visit=int(v["visit"][0]),
        x_current_a=v["x_current_a"],
        y_current_a=v["y_current_a"],
        preset_counts=v["preset_counts"],
        time_limit_ms=v["time_limit_ms"],
        flags=v["flags"],
        early_on_counts=program.early_on_counts,
        early_off_counts=program.early_off_counts,
        gated=False,
    )


@dataclass(frozen=True, slots=True)
class _Times:
    """Times in ms of downloads that took turns, by how they were made, and the requests of one."""

    ms: dict[str, list[float]]
    requests: list[bytes]
    in_flight: int


async def _race(site: Site, table: LayerTable, repeats: int) -> _Times:
    device = site.devices.scan_controller
    address = device.address
    if not isinstance(address, TcpAddress):
        raise SpotwiseError("the bench's scan controller must be on Modbus TCP")
    host, number, in_flight = address.host, address.port, address.in_flight
    register_map = load_map(device.map)
    ports = {
        "ours": ModbusTcpPort("scan_controller", host, number, in_flight=in_flight),
        "one_at_a_time": ModbusTcpPort("scan_controller", host, number),
    }
    writer = _WrittenDown("scan_controller", host, number)
    raw = RawModbus(host, number)
    ms: dict[str, list[float]] = {"ours": [], "one_at_a_time": [], "raw": [], "raw_in_flight": []}
    try:
        for port in (*ports.values(), writer):
            await port.connect(_deadline())
        await ScanController("scan_controller", writer, register_map).download(0, table, _deadline())
        requests = writer.sent
        drivers = {name: ScanController("scan_controller", port, register_map) for name, port in ports.items()}
        for turn in range(repeats + 1):
            for name, times in ms.items():
                begun = time.perf_counter()
                if name in drivers:
                    await drivers[name].download(0, table, _deadline())
                else:
                    _check(raw.ask_all(requests, in_flight if name == "raw_in_flight" else 1))
                if turn > 0:  # the first one finds cold caches
                    times.append((time.perf_counter() - begun) * 1e3)
    finally:
        raw.close()
        for port in (*ports.values(), writer):
            await port.close()
    return _Times(ms, requests, in_flight)


def _check(answers: list[bytes]) -> None:
    refused = sum(answer[7] & 0x80 != 0 for answer in answers)
    if refused:
        raise SpotwiseError(f"raw Modbus: {refused} of {len(answers)} requests were answered with exceptions")


def _deadline() -> Deadline:
    return Deadline.after(60.0, "download of the bench")


async def _run(site: Site, folder: Path, spots: int, repeats: int) -> _Times:
    table = layer_table(site, folder, spots)
    async with room_simulators(site, 0, folder):
        return await _race(site, table, repeats)


def bench_download(*, quick: bool = False) -> BenchResult:
    """Run it."""
    with tempfile.TemporaryDirectory(prefix="spotwise-bench-") as name:
        folder = Path(name)
        site = own_site(bench_site(), folder)
        spots, repeats = (20, 3) if quick else (SPOTS_PER_LAYER, REPEATS)
        around = Surroundings()
        times = asyncio.run(_run(site, folder, spots, repeats))
        context = around.context()
    requests = times.requests
    figures = {name: percentiles(ms) for name, ms in times.ms.items()}
    ours = figures.pop("ours")
    one_at_a_time = figures.pop("one_at_a_time")
    return BenchResult(
        name="download",
        unit="ms a layer",
        ours=ours,
        yardsticks=figures,
        ratios={name: ratio(ours, yardstick) for name, yardstick in figures.items()},
        details={
            "visits": spots,
            "repeats": repeats,
            "in_flight": times.in_flight,
            "ours_one_at_a_time": one_at_a_time,
            "one_at_a_time_over_raw": ratio(one_at_a_time, figures["raw"]),
            "requests": len(requests),
            "request_bytes": sum(len(request) for request in requests),
            "functions": {
                f"FC{code:02d}": sum(r[7] == code for r in requests) for code in sorted({r[7] for r in requests})
            },
        },
        context=context,
    )
