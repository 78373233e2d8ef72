"""Holding registers over Modbus TCP and RTU: `ModbusTcpPort` and `ModbusRtuPort`.

Both ask one question at a time, wait no longer than the caller's deadline, never retry by themselves, and let
cancellation pass. There is no second timeout below the deadline. After a question that got no proper answer:

* TCP closes the connection, and the next call opens a new one within its own deadline. Transaction ids alone would
  keep a late answer from being taken for another's, but not half a late answer from spoiling the framing.
* RTU has neither connection nor transaction ids: an answer that comes late would be taken for the answer to the next
  question. The link is then *suspect*: nothing is asked for the longest time the device may take to reply, and
  then an echo (FC08) of a number that was never used before must come back before any value is believed. A freshly
  opened line is suspect too, and so is one on which bytes came that nobody had asked for. Before each question the
  line must have been silent as long as its last answer took, which catches an answer that comes twice. What
  RTU cannot exclude is a duplicate that comes later than that, during another question of the same kind.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import cast

from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.client.base import ModbusBaseClient
from pymodbus.exceptions import ModbusIOException
from pymodbus.pdu.diag_message import ReturnQueryDataRequest

from drivers.deadline import Deadline
from drivers.errors import LinkLost
from drivers.wires.addresses import serial_address, tcp_address
from drivers.wires.modbus_port import OWN_FUNCTIONS, RegisterPort
from drivers.wires.virtual_loop import VirtualLoop

DEFAULT_WORST_REPLY_S = 0.25
"""Longest time that an RTU device takes to answer, with the wire; a site value where the device is slower."""

MIN_SILENCE_S = 0.002
"""Least silence between an RTU answer and the next question (the standard asks for 3.5 characters)."""

BITS_PER_BYTE = 10


class ModbusTcpPort(RegisterPort):
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

    def _bytes_came(self, count: int) -> None:
        """Leave it to the transaction ids."""

    def _garbled(self, data: bytes) -> str:
        if len(data) < 8:
            return ""
        length = int.from_bytes(data[4:6], "big")
        function = data[7]
        if data[2] or data[3]:
            return "protocol id is not 0"
        if not 3 <= length <= 254:
            return f"length {length}"
        if function & 0x7F not in OWN_FUNCTIONS or (function & 0x80 and length != 3):
            return f"function {function}"
        return ""


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
        self._suspect = True
        self._quiet_until_s = float("-inf")
        self._silent_until_s = float("-inf")
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
        while True:
            if self._silent_until_s > loop.time():
                await asyncio.sleep(self._silent_until_s - loop.time())
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

    def _bytes_came(self, count: int) -> None:
        now_s = asyncio.get_running_loop().time()
        self._silent_until_s = now_s + MIN_SILENCE_S + count * BITS_PER_BYTE / self._baud
        if not self._awaits_answer() and not self._suspect:
            self._distrust()

    def _garbled(self, data: bytes) -> str:
        if data[0] != self._unit:
            return f"unit {data[0]}"
        if len(data) >= 2 and data[1] & 0x7F not in OWN_FUNCTIONS:
            return f"function {data[1]}"
        return ""
