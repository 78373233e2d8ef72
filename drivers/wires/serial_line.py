"""ASCII lines with a sequence number and a checksum: the codec, and `AsciiLinePort` that speaks it.

    request   :SS command*CCCC CR LF      (no spaces; SS sequence, CCCC checksum, both upper-case hex)
    answer    ;SS payload*CCCC CR LF
    refusal   !SS code,text*CCCC CR LF

The answer echoes the request's sequence number, so that one that comes late is recognised and dropped. A line that is
broken, too long or has a wrong checksum is dropped; the next line starts afresh. The byte table is in docs/wires.md.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from enum import Enum

import serial
import serial_asyncio_fast

from drivers.deadline import Deadline
from drivers.errors import DeviceRefused, LinkLost
from drivers.wires.addresses import serial_address
from drivers.wires.virtual_loop import VirtualLoop

MAX_LINE = 256
"""Longest line in bytes, with CR and LF."""
MAX_TEXT = MAX_LINE - 10
"""Longest command or payload."""

ECHO_COMMAND = "ECHO "
"""Answered by the line itself with the rest of the command: proves that an answer belongs to this session."""

_TEXT = re.compile(r"[ -~]*")
_RESERVED = frozenset(":;!*")
_LINE = re.compile(rb"([:;!])([0-9A-F]{2})([^:;!*\x00-\x1f\x7f-\xff]*)\*([0-9A-F]{4})\r?")


class LineKind(Enum):
    """First byte of a line."""

    REQUEST = b":"
    ANSWER = b";"
    REFUSAL = b"!"


@dataclass(frozen=True, slots=True)
class Line:
    """One line, decoded."""

    kind: LineKind
    sequence: int
    """0 to 255."""
    text: str


def crc16(data: bytes) -> int:
    """CRC-16/MODBUS (polynomial 0x8005 reflected, start 0xFFFF): 0x4B37 for b"123456789"."""
    crc = 0xFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc


def _crc_entry(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0xA001 if byte & 1 else 0)
    return byte


_CRC_TABLE = [_crc_entry(byte) for byte in range(256)]


def encode_line(line: Line) -> bytes:
    """Bytes of a line. Raises ValueError for text that does not fit the protocol."""
    if not 0 <= line.sequence <= 255:
        raise ValueError(f"sequence {line.sequence}: wanted 0 to 255")
    if not _TEXT.fullmatch(line.text) or _RESERVED & set(line.text):
        raise ValueError(f"{line.text!r}: wanted printable ASCII without any of : ; ! *")
    if len(line.text) > MAX_TEXT:
        raise ValueError(f"{len(line.text)} characters: at most {MAX_TEXT} fit in a line")
    body = line.kind.value + f"{line.sequence:02X}{line.text}".encode("ascii")
    return body + f"*{crc16(body):04X}\r\n".encode("ascii")


def decode_line(data: bytes) -> Line | None:
    """Decode one line without its LF; None if it is no whole, intact line. Garbage before it is skipped."""
    start = max(data.rfind(b":"), data.rfind(b";"), data.rfind(b"!"))
    if start < 0:
        return None
    match = _LINE.fullmatch(data, start)
    if match is None or crc16(data[start : match.start(4) - 1]) != int(match[4], 16):
        return None
    return Line(LineKind(match[1]), int(match[2], 16), match[3].decode("ascii"))


class LineBuffer:
    """Cuts a stream of bytes into lines; keeps at most one line's worth."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self.broken = 0
        """Lines dropped because they were broken or too long."""

    def feed(self, data: bytes) -> list[Line]:
        """Take bytes, return the intact lines that they complete."""
        lines: list[Line] = []
        *whole, rest = (self._rest + data).split(b"\n")
        for raw in whole:
            line = None if self._skipping or len(raw) >= MAX_LINE else decode_line(raw)
            self._skipping = False
            if line is not None:
                lines.append(line)
            elif raw.strip():
                self.broken += 1
        if len(rest) >= MAX_LINE:
            self._skipping = True
            rest = b""
        self._rest = rest
        return lines


class _LineProtocol(asyncio.Protocol):
    """Hands the one awaited answer to whoever asked."""

    def __init__(self) -> None:
        self._buffer = LineBuffer()
        self.awaited: tuple[int, asyncio.Future[Line]] | None = None
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.stale = 0
        """Answers dropped because nobody waited for their sequence number."""

    @property
    def broken(self) -> int:
        return self._buffer.broken

    def data_received(self, data: bytes) -> None:
        for line in self._buffer.feed(data):
            if line.kind is LineKind.REQUEST:
                continue  # our own request, echoed by the adapter
            if self.awaited is None or self.awaited[0] != line.sequence or self.awaited[1].done():
                self.stale += 1
            else:
                self.awaited[1].set_result(line)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(exc)
        if self.awaited is not None and not self.awaited[1].done():
            self.awaited[1].set_exception(ConnectionError(f"the line was lost: {exc}"))


class AsciiLinePort:
    """One device on a serial port, 8N1, one question at a time; on a `VirtualLoop` a line of its network.

    After a lost line the next query opens the port again within its own deadline. Every opening asks for an echo,
    so that an answer meant for a process before this one is never taken for ours.
    """

    def __init__(self, device: str, path: str, baud: int) -> None:
        self.device = device
        self.address = serial_address(path)
        self._path = path
        self._baud = baud
        self._lock = asyncio.Lock()
        self._wanted = False
        self._transport: asyncio.Transport | None = None
        self._protocol: _LineProtocol | None = None
        self._closing: asyncio.Future[BaseException | None] | None = None
        self._sequence = 0

    @property
    def stale_answers(self) -> int:
        """Answers on the open line that came too late and were dropped."""
        return self._protocol.stale if self._protocol is not None else 0

    @property
    def broken_lines(self) -> int:
        """Lines on the open line that failed the codec and were dropped."""
        return self._protocol.broken if self._protocol is not None else 0

    async def connect(self, deadline: Deadline) -> None:
        """Open the port; an open one stays as it is. Raises `LinkLost`."""
        self._wanted = True
        await self._within(deadline, None)

    async def close(self) -> None:
        """Close the port; a query under way fails with `LinkLost`."""
        self._wanted = False
        self._drop()
        await self._closed()

    async def _closed(self) -> None:
        """Wait until the transport dropped last has let go of the port, which is opened exclusively."""
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def query(self, command: str, deadline: Deadline) -> str:
        """Send a command, return its answer's payload. Raises `LinkLost`, `DeviceRefused`; ValueError for bad text."""
        encode_line(Line(LineKind.REQUEST, 0, command))  # a program error must show before anything is sent
        answer = await self._within(deadline, command)
        assert answer is not None
        if answer.kind is LineKind.REFUSAL:
            raise DeviceRefused(self.device, f"{self.address}: command {command!r} refused: {answer.text}")
        return answer.text

    async def _within(self, deadline: Deadline, command: str | None) -> Line | None:
        what = "opening the line" if command is None else f"command {command!r}"
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        if not self._wanted:
            raise LinkLost(self.device, f"{self.address}: {what}: the port is not open; call connect first")
        if deadline.remaining_s() <= 0.0:
            raise LinkLost(self.device, f"{self.address}: {what}: the deadline ({deadline.purpose}) was over before")
        try:
            async with deadline.timeout(), self._lock:
                await self._make_ready()
                return None if command is None else await self._ask(command)
        except TimeoutError as exc:
            raise LinkLost(
                self.device,
                f"{self.address}: {what}: no answer within {loop.time() - started_s:.3f} s, the deadline of: "
                f"{deadline.purpose}; check that the device is on and the wire is whole",
            ) from exc
        except OSError as exc:  # also pyserial's SerialException
            self._drop()
            raise LinkLost(self.device, f"{self.address}: {what}: {exc}") from exc

    async def _make_ready(self) -> None:
        if self._protocol is not None and not self._protocol.lost.done():
            return
        self._drop()
        await self._closed()
        if not self._wanted:
            raise ConnectionError("the port was closed")
        transport, protocol = await self._open()
        self._transport, self._protocol = transport, protocol
        proven = False
        try:
            nonce = f"{round(asyncio.get_running_loop().time() * 1e6) & 0xFFFFFFFF:08X}"
            answer = await self._ask(ECHO_COMMAND + nonce)
            proven = answer.kind is LineKind.ANSWER and answer.text == nonce
        finally:
            if not proven:
                self._drop()
        if not proven:
            raise ConnectionError("the echo on opening came back wrong; ask again")

    async def _open(self) -> tuple[asyncio.Transport, _LineProtocol]:
        loop = asyncio.get_running_loop()
        if isinstance(loop, VirtualLoop):
            return await loop.create_serial_connection(_LineProtocol, self._path, baudrate=self._baud)
        port = serial.Serial(self._path, baudrate=self._baud, exclusive=True, timeout=0, write_timeout=0)
        return await serial_asyncio_fast.connection_for_serial(loop, _LineProtocol, port)  # type: ignore[return-value]

    async def _ask(self, command: str) -> Line:
        transport, protocol = self._transport, self._protocol
        if transport is None or protocol is None:
            raise ConnectionError("the port was closed")
        self._sequence = (self._sequence + 1) & 0xFF
        future: asyncio.Future[Line] = asyncio.get_running_loop().create_future()
        protocol.awaited = (self._sequence, future)
        try:
            transport.write(encode_line(Line(LineKind.REQUEST, self._sequence, command)))
            return await future
        finally:
            protocol.awaited = None

    def _drop(self) -> None:
        transport, protocol = self._transport, self._protocol
        self._transport = self._protocol = None
        if protocol is not None and protocol.awaited is not None and not protocol.awaited[1].done():
            protocol.awaited[1].set_exception(ConnectionError("the port was closed"))
        if transport is not None:
            transport.abort()  # close would wait until a dead device has read what was written
        if protocol is not None:
            self._closing = protocol.lost
