"""Simulated devices behind their wires: Modbus TCP, Modbus RTU and ASCII lines, on a real loop or a virtual one.

    async with serve_modbus_tcp(bank, "127.0.0.1", 15020) as wire: ...

On a real loop TCP is a real socket and a serial line is a pty, linked under the path that the site gives; on a
`VirtualLoop` both live in its network. Faults act here (see `drivers.wires.faults`): on each piece received and on each
reply sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from drivers.errors import Refused
from drivers.wires.addresses import serial_address, tcp_address
from drivers.wires.faults import WireFaults
from drivers.wires.ports import LineDevice, RegisterBank
from drivers.wires.virtual_loop import VirtualLoop
from simulators.devices.ascii_server import LineServer
from simulators.devices.modbus_server import BankRtuServer, BankTcpServer
from simulators.devices.pty_line import open_pty_line
from simulators.devices.served_wire import ServedWire


async def open_line(
    protocol_factory: Callable[[], asyncio.BaseProtocol], path: str, baud: int
) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
    """Open the device's end of a serial line: a pty linked at `path`, or a line of the virtual network."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualLoop):
        return await loop.create_serial_server(protocol_factory, path, baudrate=baud)
    return open_pty_line(loop, protocol_factory, path)


@asynccontextmanager
async def serve_modbus_tcp(
    bank: RegisterBank, host: str, port: int, *, faults: WireFaults | None = None
) -> AsyncIterator[ServedWire]:
    """Serve a bank on host:port (0: any free port, see `ServedWire.port`) to any number of clients.

    Raises `Refused` if the address cannot be bound.
    """
    wire = ServedWire(tcp_address(host, port), host, port, "")
    server = BankTcpServer(bank, wire, faults)
    if not await server.listen():
        raise Refused(f"{wire.address}: cannot listen; the port is in use or the host is not this PC's")
    listener: Any = server.transport
    wire.port = listener.sockets[0].getsockname()[1]
    wire.address = tcp_address(host, wire.port)
    try:
        yield wire
    finally:
        await server.shutdown()  # type: ignore[no-untyped-call]
        await asyncio.sleep(0)  # one turn, in which the transports let go of their descriptors


@asynccontextmanager
async def serve_modbus_rtu(
    bank: RegisterBank, path: str, baud: int, unit: int, *, faults: WireFaults | None = None
) -> AsyncIterator[ServedWire]:
    """Serve a bank as one unit on a serial line at `path`.

    Raises `Refused` if the path is taken or is no link of ours.
    """
    wire = ServedWire(serial_address(path), "", 0, path)
    server = BankRtuServer(bank, wire, unit, partial(open_line, path=path, baud=baud), faults)
    if not await server.listen():
        raise Refused(f"{wire.address}: cannot open the line; another device is on it")
    try:
        yield wire
    finally:
        await server.shutdown()  # type: ignore[no-untyped-call]
        await asyncio.sleep(0)


@asynccontextmanager
async def serve_ascii(
    device: LineDevice, path: str, baud: int, *, faults: WireFaults | None = None
) -> AsyncIterator[ServedWire]:
    """Serve a device that speaks ASCII lines (see `drivers.wires.serial_line`) at `path`.

    Raises `Refused` if the path is taken or is no link of ours.
    """
    wire = ServedWire(serial_address(path), "", 0, path)
    try:
        transport, _ = await open_line(lambda: LineServer(device, wire, faults), path, baud)
    except OSError as exc:
        raise Refused(f"{wire.address}: cannot open the line: {exc}") from exc
    try:
        yield wire
    finally:
        transport.close()
        await asyncio.sleep(0)
