"""The addresses of a virtual loop: who listens where, and how two ends of a wire find each other.

TCP: `listen` and `dial`, with refused connections and ephemeral ports. Serial: `open_server_line` puts a device on
a path, `open_line` opens that path exclusively, as a serial port is opened; a line has no connection, so the
device does not notice who comes and goes, and what it says to nobody is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from drivers.wires.addresses import same_host, serial_address, tcp_address
from drivers.wires.virtual_pipe import Clock, VirtualSocket, VirtualTransport

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)
FIRST_EPHEMERAL_PORT = 49152
BITS_PER_BYTE = 10
"""8 data bits, start and stop bit."""


class NetworkLoop(Clock, Protocol):
    """A clock that can also wait."""

    def wait_ns(self, delay_ns: int) -> Coroutine[Any, Any, None]: ...


class VirtualServer(asyncio.AbstractServer):
    """What `create_server` returns."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        network: VirtualNetwork,
        name: tuple[str, int],
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        serving: bool,
    ) -> None:
        self._loop = loop
        self._network = network
        self.name = name
        self.protocol_factory = protocol_factory
        self._serving = serving
        self._closed = asyncio.Event()
        self._sockets: tuple[VirtualSocket, ...] = (VirtualSocket(name),)
        self.clients: dict[VirtualTransport, None] = {}

    @property
    def sockets(self) -> tuple[VirtualSocket, ...]:
        return self._sockets

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return self._serving

    async def start_serving(self) -> None:
        self._serving = True

    async def serve_forever(self) -> None:
        self._serving = True
        try:
            await self._closed.wait()
        finally:
            self.close()

    def close(self) -> None:
        """Stop listening; connections that are open stay open."""
        self._serving = False
        self._sockets = ()
        self._network.forget(self)
        self._closed.set()

    def close_clients(self) -> None:
        for transport in list(self.clients):
            transport.close()

    def abort_clients(self) -> None:
        for transport in list(self.clients):
            transport.abort()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    def lost(self, transport: VirtualTransport) -> None:
        """Forget a connection that ended."""
        self.clients.pop(transport, None)


class VirtualNetwork:
    """All listeners and serial lines of one loop."""

    def __init__(self, loop: NetworkLoop) -> None:
        self._loop = loop
        self._listeners: dict[tuple[str, int], VirtualServer] = {}
        self._lines: dict[str, VirtualTransport] = {}
        self._open_paths: dict[str, VirtualTransport] = {}
        self._next_port = FIRST_EPHEMERAL_PORT

    def _ephemeral_port(self) -> int:
        self._next_port += 1
        return self._next_port - 1

    # ---- TCP

    def listen(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str,
        port: int,
        serving: bool,
    ) -> VirtualServer:
        """Start a listener; raises OSError if the address is taken."""
        name = (same_host(host), port or self._ephemeral_port())
        if name in self._listeners:
            raise OSError(98, f"{tcp_address(*name)}: address already in use on the virtual network")
        server = self._listeners[name] = VirtualServer(loop, self, name, protocol_factory, serving)
        return server

    def forget(self, server: VirtualServer) -> None:
        """Remove a listener."""
        if self._listeners.get(server.name) is server:
            del self._listeners[server.name]

    def _listener(self, host: str, port: int) -> VirtualServer | None:
        server = self._listeners.get((same_host(host), port)) or self._listeners.get(("0.0.0.0", port))
        return server if server is not None and server.is_serving() else None

    async def dial(
        self,
        protocol_factory: Callable[[], ProtocolT],
        host: str,
        port: int,
        local: tuple[str, int] | None,
    ) -> tuple[VirtualTransport, ProtocolT]:
        """One round trip, then two connected transports; raises ConnectionRefusedError."""
        loop = self._loop
        address = tcp_address(host, port)
        await loop.wait_ns(loop.latency_ns(address))
        server = self._listener(host, port)
        if server is None:
            await loop.wait_ns(loop.latency_ns(address))
            raise ConnectionRefusedError(111, f"{address}: connection refused, nothing listens on the virtual network")
        here = local or (same_host(host), self._ephemeral_port())
        near = VirtualTransport(loop, address, extra=_names(here, server.name))
        far = VirtualTransport(loop, address, extra=_names(server.name, here), on_lost=server.lost)
        near.attach(far)
        far.attach(near)
        server.clients[far] = None
        far.begin(server.protocol_factory())
        connected = False
        try:
            await loop.wait_ns(loop.latency_ns(address))
            protocol = protocol_factory()
            near.begin(protocol)
            connected = True
        finally:
            if not connected:
                near.abort()
        return near, protocol

    # ---- serial

    def open_server_line(
        self, protocol_factory: Callable[[], ProtocolT], path: str, baudrate: int
    ) -> tuple[VirtualTransport, ProtocolT]:
        """Put a device on a path. Raises OSError if another device is there."""
        if path in self._lines:
            raise OSError(98, f"{serial_address(path)}: another device is already on this virtual line")

        def gone(transport: VirtualTransport) -> None:
            del self._lines[path]
            client = self._open_paths.get(path)
            if client is not None:
                client.attach(None)
                client.fail(OSError(5, f"{serial_address(path)}: the line was hung up"))

        transport = self._end_of_line(path, baudrate, gone)
        self._lines[path] = transport
        protocol = protocol_factory()
        transport.begin(protocol)
        return transport, protocol

    def open_line(
        self, protocol_factory: Callable[[], ProtocolT], path: str, baudrate: int
    ) -> tuple[VirtualTransport, ProtocolT]:
        """Open a path. Raises FileNotFoundError without a device on it, OSError (busy) if it is open already."""
        device = self._lines.get(path)
        if device is None:
            raise FileNotFoundError(2, f"{serial_address(path)}: no device on this virtual line")
        if path in self._open_paths:
            raise OSError(16, f"{serial_address(path)}: the port is already open (opened exclusively)")

        def gone(transport: VirtualTransport) -> None:
            del self._open_paths[path]
            device.attach(None)

        transport = self._end_of_line(path, baudrate, gone)
        self._open_paths[path] = transport
        transport.attach(device)
        device.attach(transport)
        protocol = protocol_factory()
        transport.begin(protocol)
        return transport, protocol

    def _end_of_line(self, path: str, baudrate: int, gone: Callable[[VirtualTransport], None]) -> VirtualTransport:
        byte_ns = BITS_PER_BYTE * 1_000_000_000 // baudrate if baudrate else 0
        return VirtualTransport(self._loop, serial_address(path), byte_ns=byte_ns, serial=True, on_lost=gone)


def _names(here: tuple[str, int], there: tuple[str, int]) -> dict[str, Any]:
    return {"sockname": here, "peername": there, "socket": VirtualSocket(here, there)}
