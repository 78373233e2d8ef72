"""Holding registers over Modbus TCP and RTU: `ModbusTcpPort` and `ModbusRtuPort`.

Both ask one question at a time, wait no longer than the caller's deadline, never retry by themselves, and let
cancellation pass. There is no second timeout below the deadline. After a question that got no proper answer:

* TCP closes the connection, and the next call opens a new one within its own deadline. Transaction ids alone would
  keep a late answer from being taken for another's, but not half a late answer from spoiling the framing.
* RTU has neither connection nor transaction ids: an answer that comes late would be taken for the answer to the next
  question. The link is then *suspect*: nothing is asked for the longest time the device may take to reply, and
  then an echo (FC08) of a number that was never used before must come back before any value is believed. A freshly
  opened line is suspect too.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import cast

from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.client.base import ModbusBaseClient
from pymodbus.exceptions import ModbusException, ModbusIOException
from pymodbus.pdu import ModbusPDU
from pymodbus.pdu.diag_message import ReturnQueryDataRequest

from drivers.deadline import Deadline
from drivers.errors import DeviceRefused, LinkLost
from drivers.wires.addresses import serial_address, tcp_address
from drivers.wires.modbus_pdu import (
    FC_DIAGNOSTICS,
    FC_READ,
    FC_WRITE,
    FC_WRITE_READ,
    RESPONSES,
    ReadRequest,
    WriteReadRequest,
    WriteRequest,
)
from drivers.wires.ports import MAX_READ, MAX_WRITE, MAX_WRITE_READ
from drivers.wires.virtual_loop import VirtualLoop

DEFAULT_WORST_REPLY_S = 0.25
"""Longest time in which an RTU device may still answer an old question; a site value where the device is slower."""

EXCEPTION_NAMES = {
    1: "illegal function",
    2: "illegal address",
    3: "illegal value",
    4: "device failure",
    5: "acknowledged, still working",
    6: "device busy",
    10: "gateway path unavailable",
    11: "gateway got no answer",
}

_OWN_FUNCTIONS = frozenset({FC_READ, FC_DIAGNOSTICS, FC_WRITE, FC_WRITE_READ})


class _RegisterPort(ABC):
    """What TCP and RTU share: one question at a time, checks of the answer, errors in the project's terms."""

    def __init__(self, device: str, address: str, unit: int) -> None:
        self.device = device
        self.address = address
        self._unit = unit
        self._lock = asyncio.Lock()
        self._client: ModbusBaseClient | None = None
        self._wanted = False
        self._in_flight = False

    # ---- the port's Protocol

    async def connect(self, deadline: Deadline) -> None:
        """Open the link; a port that is open stays as it is. Raises `LinkLost`."""
        self._wanted = True
        await self._within(deadline, "opening the link", None)

    async def close(self) -> None:
        """Close the link; a question under way fails with `LinkLost`."""
        self._wanted = False
        self._fail_pending("the port was closed")
        self._drop_client()
        await asyncio.sleep(0)  # one turn, in which the transport lets go of its descriptor

    async def read(self, address: int, count: int, deadline: Deadline) -> list[int]:
        """FC03, 1 to `MAX_READ` registers."""
        _check_span("read", address, count, MAX_READ)
        what = f"reading registers {_span(address, count)}"
        request = ReadRequest(address=address, count=count, dev_id=self._unit)
        answer = cast(ModbusPDU, await self._within(deadline, what, request))
        return self._registers(answer, count, what)

    async def write(self, address: int, values: Sequence[int], deadline: Deadline) -> None:
        """FC16, 1 to `MAX_WRITE` registers."""
        words = _words("write", address, values, MAX_WRITE)
        what = f"writing registers {_span(address, len(words))}"
        request = WriteRequest(address=address, registers=words, dev_id=self._unit)
        answer = cast(ModbusPDU, await self._within(deadline, what, request))
        if (answer.address, answer.count) != (address, len(words)):
            self._distrust()
            raise LinkLost(
                self.device,
                f"{self.address}: {what}: the answer speaks of {answer.count} registers from {answer.address}",
            )

    async def write_read(
        self, write_address: int, values: Sequence[int], read_address: int, count: int, deadline: Deadline
    ) -> list[int]:
        """FC23: write 1 to `MAX_WRITE_READ` registers, then read 1 to `MAX_READ`, in one round trip."""
        words = _words("write", write_address, values, MAX_WRITE_READ)
        _check_span("read", read_address, count, MAX_READ)
        what = f"writing registers {_span(write_address, len(words))} and reading {_span(read_address, count)}"
        request = WriteReadRequest(
            read_address=read_address,
            read_count=count,
            write_address=write_address,
            write_registers=words,
            dev_id=self._unit,
        )
        answer = cast(ModbusPDU, await self._within(deadline, what, request))
        return self._registers(answer, count, what)

    # ---- one question

    async def _within(self, deadline: Deadline, what: str, request: ModbusPDU | None) -> ModbusPDU | None:
        """Ask within the deadline; without a request, only make the link ready."""
        started_s = asyncio.get_running_loop().time()
        if not self._wanted:
            raise LinkLost(self.device, f"{self.address}: {what}: the port is not open; call connect first")
        if deadline.remaining_s() <= 0.0:
            raise LinkLost(self.device, f"{self.address}: {what}: the deadline ({deadline.purpose}) was over before")
        try:
            async with deadline.timeout(), self._lock:
                await self._make_ready(deadline)
                if request is None:
                    return None
                answer = await self._ask(request)
        except TimeoutError as exc:
            waited_s = asyncio.get_running_loop().time() - started_s
            raise LinkLost(
                self.device,
                f"{self.address}: {what}: no answer within {waited_s:.3f} s, the deadline of: {deadline.purpose}; "
                "check that the device is on and the wire is whole",
            ) from exc
        except ModbusException as exc:
            raise LinkLost(self.device, f"{self.address}: {what}: {exc}") from exc
        if answer.isError():
            code = answer.exception_code
            name = EXCEPTION_NAMES.get(code, "unknown exception")
            raise DeviceRefused(self.device, f"{self.address}: {what}: Modbus exception {code} ({name})")
        return answer

    async def _ask(self, request: ModbusPDU) -> ModbusPDU:
        """Send one request and take its answer; anything else makes the link distrusted."""
        client = self._client
        if client is None:
            raise ModbusIOException("the connection was closed")
        proper = False
        self._in_flight = True
        try:
            answer: ModbusPDU = await client.execute(False, request)
            if answer.function_code & 0x7F != request.function_code:
                raise ModbusIOException(
                    f"asked with function {request.function_code}, answered with {answer.function_code}"
                )
            proper = True
        finally:  # also on cancellation: the answer may still come
            self._in_flight = False
            if not proper:
                self._distrust()
        return answer

    def _registers(self, answer: ModbusPDU, count: int, what: str) -> list[int]:
        if len(answer.registers) != count:
            self._distrust()
            raise LinkLost(
                self.device, f"{self.address}: {what}: wanted {count} registers, got {len(answer.registers)}"
            )
        return list(answer.registers)

    async def _open(self) -> None:
        """Make and connect a client; a fresh one each time, so that no state of an old connection is left."""
        client = self._new_client() if self._wanted else None
        if client is None:
            raise ModbusIOException("the port was closed")
        for response in RESPONSES:
            client.register(response)
        connected = False
        try:
            connected = await client.connect() and self._wanted
        finally:
            if not connected:
                client.close()
        if not connected:
            raise ModbusIOException("cannot open: refused, unreachable or in use; check that the device is on")
        self._client = client

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    # ---- hooks of the library

    def _packet_seen(self, sending: bool, data: bytes) -> bytes:
        """Keep garbage from the library's decoder, which would raise in the middle of the loop."""
        if sending:
            return data
        wrong = self._garbled(data)
        if wrong:
            self._fail_pending(f"garbled answer: {wrong} ({data[:16].hex(' ')})")
            return b""
        return data

    def _connection_changed(self, connected: bool) -> None:
        """Tell whoever waits for an answer at once that none will come."""
        if not connected:
            self._fail_pending("the connection was closed by the other end")
            self._client = None

    def _fail_pending(self, why: str) -> None:
        if self._in_flight and self._client is not None:
            answer = self._client.ctx.response_future
            if not answer.done():
                answer.set_exception(ModbusIOException(why))

    # ---- what differs

    @abstractmethod
    def _new_client(self) -> ModbusBaseClient: ...

    @abstractmethod
    async def _make_ready(self, deadline: Deadline) -> None: ...

    @abstractmethod
    def _distrust(self) -> None:
        """A question was left without a proper answer."""

    @abstractmethod
    def _garbled(self, data: bytes) -> str:
        """Say why these received bytes cannot be an answer; empty: they may be, or may become, one."""


class ModbusTcpPort(_RegisterPort):
    """Modbus TCP; see the module's text for what happens after a timeout."""

    def __init__(self, device: str, host: str, port: int, *, unit: int = 1) -> None:
        super().__init__(device, tcp_address(host, port), unit)
        self._host = host
        self._port = port

    def _new_client(self) -> ModbusBaseClient:
        return AsyncModbusTcpClient(
            self._host,
            port=self._port,
            name=self.device,
            timeout=cast(float, None),  # none below the caller's deadline
            retries=0,
            reconnect_delay=0,
            trace_packet=self._packet_seen,
            trace_connect=self._connection_changed,
        )

    async def _make_ready(self, deadline: Deadline) -> None:
        if self._client is None:
            await self._open()

    def _distrust(self) -> None:
        self._drop_client()

    def _garbled(self, data: bytes) -> str:
        if len(data) < 8:
            return ""
        length = int.from_bytes(data[4:6], "big")
        function = data[7]
        if data[2] or data[3]:
            return "protocol id is not 0"
        if not 3 <= length <= 254:
            return f"length {length}"
        if function & 0x7F not in _OWN_FUNCTIONS or (function & 0x80 and length != 3):
            return f"function {function}"
        return ""


class ModbusRtuPort(_RegisterPort):
    """Modbus RTU, 8N1, on a serial port; see the module's text for suspect links.

    The device must answer FC08/0 (return query data). On a `VirtualLoop` the path is a line of its network.
    """

    def __init__(
        self, device: str, path: str, baud: int, unit: int, *, worst_reply_s: float = DEFAULT_WORST_REPLY_S
    ) -> None:
        super().__init__(device, serial_address(path), unit)
        self._path = path
        self._baud = baud
        self._worst_reply_s = worst_reply_s
        self._suspect = True
        self._quiet_until_s = float("-inf")
        self._nonce: int | None = None

    @property
    def suspect(self) -> bool:
        """Whether no value may be believed before the next echo."""
        return self._suspect

    def _new_client(self) -> ModbusBaseClient:
        client = AsyncModbusSerialClient(
            self._path,
            baudrate=self._baud,
            name=self.device,
            timeout=cast(float, None),  # none below the caller's deadline
            retries=0,
            reconnect_delay=0,
            trace_packet=self._packet_seen,
            trace_connect=self._connection_changed,
        )
        loop = asyncio.get_running_loop()
        if isinstance(loop, VirtualLoop):
            client.ctx.call_create = partial(
                loop.create_serial_connection, client.ctx.handle_new_connection, self._path, baudrate=self._baud
            )
        return client

    async def _make_ready(self, deadline: Deadline) -> None:
        loop = asyncio.get_running_loop()
        if self._client is None:
            self._suspect = True
            await self._open()
        while self._suspect:
            if self._quiet_until_s >= deadline.at_s:
                wait_s = self._quiet_until_s - loop.time()
                raise LinkLost(
                    self.device,
                    f"{self.address}: an answer is overdue and the link is suspect; wanted {wait_s:.3f} s of quiet, "
                    f"the deadline ({deadline.purpose}) leaves {deadline.remaining_s():.3f} s; ask again later",
                )
            if self._quiet_until_s > loop.time():
                await asyncio.sleep(self._quiet_until_s - loop.time())  # what arrives meanwhile is discarded
            await self._echo()

    async def _echo(self) -> None:
        """Prove that the device's answers belong to our questions; an old answer means another wait."""
        if self._nonce is None:  # a process before this one may have asked: start where it hardly did
            self._nonce = round(asyncio.get_running_loop().time() * 1e6) & 0xFFFF
        self._nonce = (self._nonce + 1) & 0xFFFF
        message = self._nonce.to_bytes(2, "big")
        request = ReturnQueryDataRequest(message, dev_id=self._unit)
        try:
            answer = await self._ask(request)
        except ModbusIOException:
            if self._client is None:
                raise
            return  # an old answer to another function: `_ask` has marked the link suspect again
        if answer.isError():
            raise ModbusIOException(
                f"FC08 echo refused with Modbus exception {answer.exception_code}: RTU needs a device that echoes"
            )
        if getattr(answer, "message", None) == message:
            self._suspect = False
        else:
            self._distrust()

    def _distrust(self) -> None:
        self._suspect = True
        self._quiet_until_s = asyncio.get_running_loop().time() + self._worst_reply_s

    def _garbled(self, data: bytes) -> str:
        if data[0] != self._unit:
            return f"unit {data[0]}"
        if len(data) >= 2 and data[1] & 0x7F not in _OWN_FUNCTIONS:
            return f"function {data[1]}"
        return ""


def _span(address: int, count: int) -> str:
    return f"{address}..{address + count - 1}" if count != 1 else f"{address}"


def _check_span(verb: str, address: int, count: int, limit: int) -> None:
    if not 1 <= count <= limit:
        raise ValueError(f"{verb} {count} registers at {address}: one message takes 1 to {limit}")
    if not 0 <= address <= 0x10000 - count:
        raise ValueError(f"{verb} registers {_span(address, count)}: outside 0 to 65535")


def _words(verb: str, address: int, values: Sequence[int], limit: int) -> list[int]:
    """Check values before anything is sent: a program error must not leave a link suspect."""
    words = [int(value) for value in values]
    _check_span(verb, address, len(words), limit)
    if words and not (min(words) >= 0 and max(words) <= 0xFFFF):
        raise ValueError(f"{verb} registers {_span(address, len(words))}: a value is outside 0 to 65535")
    return words
