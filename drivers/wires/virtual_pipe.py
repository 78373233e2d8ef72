"""One end of an in-memory wire: an asyncio transport whose bytes arrive after the wire's latency.

Bytes keep their order, each `write` arrives as one piece, and closing, half-closing, aborting, pausing and flow
control behave as on a socket transport, so that a protocol cannot tell the difference.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

HIGH_WATER_BYTES = 64 * 1024
LOW_WATER_BYTES = 16 * 1024


class Clock(Protocol):
    """What a wire needs of its loop."""

    def time_ns(self) -> int: ...
    def latency_ns(self, address: str) -> int: ...
    def arrive_at_ns(self, when_ns: int, callback: Callable[..., object], *args: Any) -> None: ...
    def call_soon(self, callback: Callable[..., object], *args: Any) -> asyncio.Handle: ...
    def call_exception_handler(self, context: dict[str, Any]) -> None: ...


class VirtualSocket:
    """What `get_extra_info("socket")` gives: names, and options that are kept but mean nothing."""

    family = socket.AF_INET
    type = socket.SOCK_STREAM

    def __init__(self, name: tuple[str, int], peer: tuple[str, int] | None = None) -> None:
        self._name = name
        self._peer = peer
        self._options: dict[tuple[int, int], int | bytes] = {}

    def getsockname(self) -> tuple[str, int]:
        return self._name

    def getpeername(self) -> tuple[str, int]:
        if self._peer is None:
            raise OSError("a listening socket has no peer")
        return self._peer

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self._options[(level, option)] = value

    def getsockopt(self, level: int, option: int) -> int | bytes:
        return self._options.get((level, option), 0)

    def fileno(self) -> int:
        return -1


class VirtualTransport(asyncio.Transport):
    """One end of a pipe. `attach` gives it the other end, `begin` the protocol."""

    def __init__(
        self,
        loop: Clock,
        address: str,
        *,
        extra: dict[str, Any] | None = None,
        byte_ns: int = 0,
        serial: bool = False,
        on_lost: Callable[[VirtualTransport], None] | None = None,
    ) -> None:
        """`byte_ns`: time that one byte occupies the line; `serial`: a line without connections or end of file."""
        super().__init__(extra)
        self._loop = loop
        self._address = address
        self._byte_ns = byte_ns
        self._serial = serial
        self._on_lost = on_lost
        self._protocol: asyncio.BaseProtocol | None = None
        self._peer: VirtualTransport | None = None
        self._inbox: deque[tuple[VirtualTransport, bytes]] = deque()
        self._paused = True
        self._closing = False
        self._lost = False
        self._eof_sent = False
        self._unread_bytes = 0
        self._line_free_ns = 0
        self._last_arrival_ns = 0
        self._high_bytes = HIGH_WATER_BYTES
        self._low_bytes = LOW_WATER_BYTES
        self._writing_paused = False

    def __repr__(self) -> str:
        return f"<VirtualTransport {self._address}{' closing' if self._closing else ''}>"

    def attach(self, peer: VirtualTransport | None) -> None:
        """Give it the other end; None: nobody is there and what is written is lost."""
        self._peer = peer

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the wire to its protocol: `connection_made`, then whatever already arrived."""
        self._protocol = protocol
        protocol.connection_made(self)
        self.resume_reading()

    # ---- receiving

    def _receive(self, sender: VirtualTransport, data: bytes) -> None:
        """Take a piece that arrives; empty means end of file."""
        if self._closing:
            sender._consumed(len(data))
        elif self._paused or self._inbox:
            self._inbox.append((sender, data))
        else:
            self._feed(sender, data)

    def _feed(self, sender: VirtualTransport, data: bytes) -> None:
        sender._consumed(len(data))
        protocol: Any = self._protocol  # duck-typed, as asyncio does: some stream protocols are bare BaseProtocols
        try:
            if data:
                protocol.data_received(data)
            elif not protocol.eof_received():
                self.close()
        except Exception as exc:  # boundary: a protocol's error ends its connection and is reported, as on a socket
            self._loop.call_exception_handler(
                {
                    "message": "Fatal error: a protocol failed on received data.",
                    "exception": exc,
                    "transport": self,
                    "protocol": protocol,
                }
            )
            self._drop(exc)

    def _drain_inbox(self) -> None:
        while self._inbox and not self._paused and not self._closing:
            self._feed(*self._inbox.popleft())

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused and not self._closing:
            self._paused = False
            if self._inbox:
                self._loop.call_soon(self._drain_inbox)

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    # ---- sending

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data: wanted bytes, got {type(data).__name__}")
        if self._eof_sent:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self._closing:
            return
        self._send(bytes(data))

    def _send(self, data: bytes) -> None:
        peer = self._peer
        if peer is None:
            return
        loop = self._loop
        now_ns = loop.time_ns()
        self._line_free_ns = max(self._line_free_ns, now_ns) + len(data) * self._byte_ns
        arrival_ns = max(self._last_arrival_ns, self._line_free_ns + loop.latency_ns(self._address))
        self._last_arrival_ns = arrival_ns
        self._unread_bytes += len(data)
        loop.arrive_at_ns(arrival_ns, peer._receive, self, data)
        if self._unread_bytes > self._high_bytes and not self._writing_paused and self._protocol is not None:
            self._writing_paused = True
            self._protocol.pause_writing()

    def _consumed(self, count: int) -> None:
        self._unread_bytes -= count
        if self._writing_paused and self._unread_bytes <= self._low_bytes:
            self._writing_paused = False
            if self._protocol is not None:
                self._protocol.resume_writing()

    def can_write_eof(self) -> bool:
        return not self._serial

    def write_eof(self) -> None:
        if self._serial:
            raise NotImplementedError(f"{self._address}: a serial line has no end of file")
        if not self._closing and not self._eof_sent:
            self._eof_sent = True
            self._send(b"")

    def get_write_buffer_size(self) -> int:
        return self._unread_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low_bytes, self._high_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high_bytes, self._low_bytes = high, low

    # ---- ending

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Let what was written arrive, then the end of file; `connection_lost(None)` here at the next turn."""
        if self._closing:
            return
        if not self._serial and not self._eof_sent:
            self._send(b"")
        self._end(None)

    def abort(self) -> None:
        """Close at once; the other end gets ConnectionResetError."""
        if not self._closing:
            self._drop(None)

    def _drop(self, exc: Exception | None) -> None:
        peer = self._peer
        if peer is not None and not self._serial:
            reset = ConnectionResetError(f"{self._address}: connection reset by the other end")
            self._loop.arrive_at_ns(self._loop.time_ns() + self._loop.latency_ns(self._address), peer.fail, reset)
        self._end(exc)

    def fail(self, exc: Exception) -> None:
        """Break the wire: `connection_lost(exc)`."""
        if not self._closing:
            self._end(exc)

    def _end(self, exc: Exception | None) -> None:
        self._closing = True
        for sender, data in self._inbox:
            sender._consumed(len(data))
        self._inbox.clear()
        self._loop.call_soon(self._lose, exc)

    def _lose(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        try:
            if self._protocol is not None:
                self._protocol.connection_lost(exc)
        finally:
            if self._on_lost is not None:
                self._on_lost(self)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None, "no protocol before connection_made"
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
