"""What Modbus TCP and RTU ports share: one question at a time, checks of the answer, errors in the project's terms."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

from pymodbus.client.base import ModbusBaseClient
from pymodbus.exceptions import ModbusException, ModbusIOException
from pymodbus.pdu import ModbusPDU

from drivers.deadline import Deadline
from drivers.errors import DeviceRefused, LinkLost
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

OWN_FUNCTIONS = frozenset({FC_READ, FC_DIAGNOSTICS, FC_WRITE, FC_WRITE_READ})


class RegisterPort(ABC):
    """A `ModbusPort` but for how its link is opened, trusted and distrusted."""

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
        self._bytes_came(len(data))
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
        if self._awaits_answer() and self._client is not None:
            self._client.ctx.response_future.set_exception(ModbusIOException(why))

    def _awaits_answer(self) -> bool:
        return self._in_flight and self._client is not None and not self._client.ctx.response_future.done()

    # ---- what differs

    @abstractmethod
    def _new_client(self) -> ModbusBaseClient: ...

    @abstractmethod
    async def _make_ready(self, deadline: Deadline) -> None: ...

    @abstractmethod
    def _distrust(self) -> None:
        """A question was left without a proper answer."""

    @abstractmethod
    def _bytes_came(self, count: int) -> None:
        """Note that bytes arrived: `count` since the last question."""

    @abstractmethod
    def _garbled(self, data: bytes) -> str:
        """Say why these received bytes cannot be an answer; empty: they may be, or may become, one."""


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
