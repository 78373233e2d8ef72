"""Modbus RTU on a serial port, by the library's client: one question at a time, and a link that may be suspect.

RTU has neither connection nor transaction ids: an answer that comes late would be taken for the answer to the next
question. After a question that got no proper answer the link is therefore *suspect*: nothing is asked for the longest
time the device may take to reply, and then an echo (FC08) of a number that was never used before must come back
before any value is believed. A freshly opened line is suspect too, and so is one on which bytes came that nobody had
asked for. Before each question the line must have been silent as long as its last answer took, which catches an
answer that comes twice: it is thrown away and counted, and where it is whole and to the last bit the answer before, the
line needs no proof. What RTU cannot exclude is a duplicate that comes later than that, during another question of
the same kind; heartbeats in what is read tell such a one.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import cast

from pymodbus.client import AsyncModbusSerialClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ModbusPDU
from pymodbus.pdu.diag_message import ReturnQueryDataRequest
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersResponse,
    ReadWriteMultipleRegistersResponse,
    WriteMultipleRegistersResponse,
)

from drivers.deadline import Deadline
from drivers.errors import LinkLost
from drivers.wires.addresses import serial_address
from drivers.wires.modbus_pdu import EXCEPTION, FC_DIAGNOSTICS, FC_READ, FC_WRITE, FC_WRITE_READ, answer_fault
from drivers.wires.modbus_port import CANNOT_OPEN, Exchange, LinkError, RegisterPort
from drivers.wires.virtual_loop import VirtualLoop

DEFAULT_WORST_REPLY_S = 0.25
"""Longest time that an RTU device takes to answer, with the wire; a site value where the device is slower."""

MIN_SILENCE_S = 0.002
"""Least silence between an RTU answer and the next question (the standard asks for 3.5 characters)."""

BITS_PER_BYTE = 10
OWN_FUNCTIONS = frozenset({FC_READ, FC_DIAGNOSTICS, FC_WRITE, FC_WRITE_READ})
FRAME_BYTES = {FC_READ: 5, FC_WRITE_READ: 5, FC_DIAGNOSTICS: 8, FC_WRITE: 8}
"""Of an answer with unit and checksum; FC03 and FC23 have their data on top, an exception has 5."""

# what the library has to say goes to whoever listens to its logger, and not to stderr where nobody does
logging.getLogger("pymodbus").addHandler(logging.NullHandler())


class ModbusRtuPort(RegisterPort):
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
        self._lock = asyncio.Lock()
        self._client: AsyncModbusSerialClient | None = None
        self._in_flight = False
        self._suspect = True
        self._quiet_until_s = float("-inf")
        self._silent_until_s = float("-inf")
        self._nonce: int | None = None
        self._answer = b""
        self._unasked = b""

    @property
    def suspect(self) -> bool:
        """Whether no value may be believed before the next echo."""
        return self._suspect

    async def close(self) -> None:
        self._wanted = False
        self._fail_pending("the port was closed")
        client, self._client = self._client, None
        if client is not None:
            client.close()
        await asyncio.sleep(0)  # one turn, in which the transport lets go of its descriptor

    # ---- questions

    async def _carry_out(self, exchange: Exchange, deadline: Deadline) -> None:
        """One request after the other, each in its turn among the callers of this port."""
        async with deadline.timeout():
            while True:
                async with self._lock:
                    await self._make_ready(deadline)
                    if not exchange.left:
                        return
                    index = exchange.sent
                    message = exchange.messages[index]
                    exchange.sent += 1
                    answer = _message(await self._ask(_Request(message, self._unit)))
                    wrong = answer_fault(exchange.requests[index], message, answer)
                    if wrong:
                        self._distrust()
                        raise LinkError(wrong)
                    exchange.answer(index, answer)
                    if not exchange.left:
                        return

    async def _ask(self, request: ModbusPDU) -> ModbusPDU:
        """Send one request and take its answer; anything else makes the link distrusted."""
        client = self._client
        if client is None:
            raise LinkError("the connection was closed")
        proper = False
        self._in_flight = True
        try:
            answer: ModbusPDU = await client.execute(False, request)
            if answer.function_code & ~EXCEPTION != request.function_code:
                raise LinkError(f"asked with function {request.function_code}, answered with {answer.function_code}")
            proper = True
        except ModbusException as exc:
            raise LinkError(str(exc)) from exc
        finally:  # also on cancellation: the answer may still come
            self._in_flight = False
            if not proper:
                self._distrust()
        return answer

    # ---- the link

    async def _open(self) -> None:
        """Make and connect a client; a fresh one each time, so that no state of an old line is left."""
        if not self._wanted:
            raise LinkError("the port was closed")
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
        for response in (_ReadResponse, _WriteResponse, _WriteReadResponse):
            client.register(response)
        connected = False
        try:
            connected = await client.connect() and self._wanted
        except ModbusException as exc:
            raise LinkError(str(exc)) from exc
        finally:
            if not connected:
                client.close()
        if not connected:
            raise LinkError(CANNOT_OPEN)
        self._client = client

    async def _make_ready(self, deadline: Deadline) -> None:
        loop = asyncio.get_running_loop()
        if self._client is None:
            self._suspect = True
            await self._open()
        while True:
            while self._silent_until_s > loop.time():
                await asyncio.sleep(self._silent_until_s - loop.time())
            self._count_unasked()
            if not self._suspect:
                return
            if self._quiet_until_s >= deadline.at_s:
                wait_s = self._quiet_until_s - loop.time()
                raise LinkLost(
                    self.device,
                    f"{self.address}: an answer is overdue and the link is suspect; wanted {wait_s:.3f} s of quiet, "
                    f"the deadline ({deadline.purpose}) leaves {deadline.remaining_s():.3f} s; ask again later",
                )
            if self._quiet_until_s > loop.time():
                await asyncio.sleep(self._quiet_until_s - loop.time())  # what arrives meanwhile is discarded
            self._count_unasked()
            await self._echo()

    async def _echo(self) -> None:
        """Prove that the device's answers belong to our questions; an old answer or none means another wait."""
        if self._nonce is None:  # a process before this one may have asked: start where it hardly did
            self._nonce = round(asyncio.get_running_loop().time() * 1e6) & 0xFFFF
        self._nonce = (self._nonce + 1) & 0xFFFF
        message = self._nonce.to_bytes(2, "big")
        request = ReturnQueryDataRequest(message, dev_id=self._unit)
        try:
            async with asyncio.timeout(self._worst_reply_s):  # an echo may be lost among old bytes: then try another
                answer = await self._ask(request)
        except TimeoutError:
            return
        except LinkError:
            if self._client is None:
                raise
            return  # an old answer to another function: `_ask` has marked the link suspect again
        if answer.isError():
            raise LinkError(
                f"FC08 echo refused with Modbus exception {answer.exception_code}: RTU needs a device that echoes"
            )
        if getattr(answer, "message", None) == message:
            self._suspect = False
        else:
            self._distrust()

    def _distrust(self) -> None:
        self._suspect = True
        self._quiet_until_s = asyncio.get_running_loop().time() + self._worst_reply_s

    # ---- hooks of the library

    def _packet_seen(self, sending: bool, data: bytes) -> bytes:
        """Keep from the library's decoder what would make it raise, or talk, in the middle of the loop.

        `data` is all that came since the question, less the answer.
        """
        if sending:
            return data
        asked = self._awaits_answer()
        self._silent_from_now(len(data))
        if not asked:
            self._not_asked_for(data)
            return b""
        length = _frame_bytes(data)
        if len(data) > length:
            self._not_asked_for(data[length:], data[:length])
            data = data[:length]
        wrong = self._garbled(data)
        if wrong:
            self._fail_pending(f"garbled answer: {wrong} ({data[:16].hex(' ')})")
            return b""
        self._answer = data
        return data

    def _silent_from_now(self, count: int) -> None:
        """Bytes came, `count` since the last question or answer: ask nothing before the line has been silent."""
        now_s = asyncio.get_running_loop().time()
        self._silent_until_s = now_s + MIN_SILENCE_S + count * BITS_PER_BYTE / self._baud

    def _not_asked_for(self, data: bytes, answer: bytes = b"") -> None:
        """Bytes after the answer: what only repeats it is no sign of an answer gone astray."""
        self._unasked = data
        answer = answer or self._answer
        repeated = answer * (1 + len(data) // len(answer)) if answer else b""
        if not self._suspect and data != repeated[: len(data)]:
            self._distrust()

    def _count_unasked(self) -> None:
        """The line is silent: whole repetitions are thrown away, half of one makes the link suspect."""
        data, self._unasked = self._unasked, b""
        if not data:
            return
        self.stale_answers += 1
        if not self._suspect and (not self._answer or len(data) % len(self._answer)):
            self._distrust()

    def _garbled(self, data: bytes) -> str:
        """Say why these received bytes cannot be an answer; empty: they may be, or may become, one."""
        if data[0] != self._unit:
            return f"unit {data[0]}"
        if len(data) >= 2 and data[1] & ~EXCEPTION not in OWN_FUNCTIONS:
            return f"function {data[1]}"
        return ""

    def _connection_changed(self, connected: bool) -> None:
        """Tell whoever waits for an answer at once that none will come."""
        if not connected:
            self._fail_pending("the connection was closed by the other end")
            self._client = None

    def _fail_pending(self, why: str) -> None:
        if self._awaits_answer() and self._client is not None:
            self._client.ctx.response_future.set_exception(LinkError(why))

    def _awaits_answer(self) -> bool:
        return self._in_flight and self._client is not None and not self._client.ctx.response_future.done()


def _frame_bytes(data: bytes) -> int:
    """Length of the answer that these bytes begin; more than there are, where too few came to tell."""
    if len(data) < 3:
        return len(data)
    if data[1] & EXCEPTION:
        return 5
    function = data[1]
    return FRAME_BYTES.get(function, len(data)) + (data[2] if function in (FC_READ, FC_WRITE_READ) else 0)


# ---- messages as bytes, through the library's framing and checksums


class _Request(ModbusPDU):
    """A request that is packed already."""

    def __init__(self, message: bytes, unit: int) -> None:
        super().__init__(dev_id=unit)
        self.function_code = message[0]
        self._data = message[1:]

    def encode(self) -> bytes:
        return self._data


class _ReadResponse(ReadHoldingRegistersResponse):
    """FC03, left as it came; the library knows its length on the line."""

    data = b""

    def decode(self, data: bytes) -> None:
        self.data = data


class _WriteResponse(WriteMultipleRegistersResponse):
    """FC16, likewise."""

    data = b""

    def decode(self, data: bytes) -> None:
        self.data = data


class _WriteReadResponse(ReadWriteMultipleRegistersResponse):
    """FC23, likewise."""

    data = b""

    def decode(self, data: bytes) -> None:
        self.data = data


def _message(answer: ModbusPDU) -> bytes:
    """The bytes of an answer."""
    if isinstance(answer, _ReadResponse | _WriteResponse | _WriteReadResponse):
        return bytes((answer.function_code,)) + answer.data
    return bytes((answer.function_code | EXCEPTION, answer.exception_code & 0xFF))
