"""Modbus messages of the three functions that carry all traffic, packed in one go.

The library's own classes pack register by register and format every message as text for a log line that is off. These
replace them through its public hooks (`client.register`, `custom_pdu=`) and cost about half. Decoding never raises:
a message of the wrong length decodes to counts that cannot match, and whoever asked says so in its own terms.
Layouts: Modbus Application Protocol 1.1b3, 6.3, 6.12, 6.17.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from pymodbus.pdu import ModbusPDU
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersRequest,
    ReadHoldingRegistersResponse,
    ReadWriteMultipleRegistersRequest,
    ReadWriteMultipleRegistersResponse,
    WriteMultipleRegistersRequest,
    WriteMultipleRegistersResponse,
)

FC_READ = 3
FC_DIAGNOSTICS = 8
FC_WRITE = 16
FC_WRITE_READ = 23

_TWO = struct.Struct(">HH")
_WRITE_HEAD = struct.Struct(">HHB")
_WRITE_READ_HEAD = struct.Struct(">HHHHB")


@lru_cache(maxsize=256)
def _words(count: int) -> struct.Struct:
    return struct.Struct(f">{count}H")


def pack_words(values: Sequence[int]) -> bytes:
    """Registers as big-endian bytes; raises struct.error outside 0 to 65535."""
    return _words(len(values)).pack(*values)


def unpack_words(data: bytes) -> list[int]:
    """Big-endian bytes as registers; an odd byte at the end is dropped."""
    return list(_words(len(data) // 2).unpack_from(data))


def _counted_words(data: bytes) -> list[int]:
    """Registers behind a byte count; empty if the count does not fit the data."""
    if not data or data[0] % 2 or data[0] != len(data) - 1:
        return []
    return unpack_words(data[1:])


class ReadRequest(ReadHoldingRegistersRequest):
    """FC03 request."""

    def encode(self) -> bytes:
        return _TWO.pack(self.address, self.count)

    def decode(self, data: bytes) -> None:
        self.address, self.count = _TWO.unpack(data) if len(data) == 4 else (0, 0)

    def __str__(self) -> str:
        return "ReadRequest"


class ReadResponse(ReadHoldingRegistersResponse):
    """FC03 response."""

    def encode(self) -> bytes:
        packed = pack_words(self.registers)
        return bytes((len(packed),)) + packed

    def decode(self, data: bytes) -> None:
        self.registers = _counted_words(data)

    def __str__(self) -> str:
        return "ReadResponse"


class WriteRequest(WriteMultipleRegistersRequest):
    """FC16 request."""

    def encode(self) -> bytes:
        count = len(self.registers)
        return _WRITE_HEAD.pack(self.address, count, 2 * count) + pack_words(self.registers)

    def decode(self, data: bytes) -> None:
        """Leave `registers` empty unless count, byte count and length agree."""
        self.registers = []
        if len(data) >= 5:
            self.address, self.count, byte_count = _WRITE_HEAD.unpack_from(data)
            if byte_count == 2 * self.count == len(data) - 5:
                self.registers = unpack_words(data[5:])

    def __str__(self) -> str:
        return "WriteRequest"


class WriteResponse(WriteMultipleRegistersResponse):
    """FC16 response."""

    def encode(self) -> bytes:
        return _TWO.pack(self.address, self.count)

    def decode(self, data: bytes) -> None:
        self.address, self.count = _TWO.unpack(data) if len(data) == 4 else (-1, -1)

    def __str__(self) -> str:
        return "WriteResponse"


class WriteReadRequest(ReadWriteMultipleRegistersRequest):
    """FC23 request."""

    def encode(self) -> bytes:
        count = len(self.write_registers)
        head = _WRITE_READ_HEAD.pack(self.read_address, self.read_count, self.write_address, count, 2 * count)
        return head + pack_words(self.write_registers)

    def decode(self, data: bytes) -> None:
        """Leave `write_registers` empty unless count, byte count and length agree."""
        self.write_registers = []
        if len(data) >= 9:
            self.read_address, self.read_count, self.write_address, count, byte_count = _WRITE_READ_HEAD.unpack_from(
                data
            )
            if byte_count == 2 * count == len(data) - 9:
                self.write_registers = unpack_words(data[9:])

    def __str__(self) -> str:
        return "WriteReadRequest"


class WriteReadResponse(ReadWriteMultipleRegistersResponse):
    """FC23 response."""

    def encode(self) -> bytes:
        packed = pack_words(self.registers)
        return bytes((len(packed),)) + packed

    def decode(self, data: bytes) -> None:
        self.registers = _counted_words(data)

    def __str__(self) -> str:
        return "WriteReadResponse"


REQUESTS: list[type[ModbusPDU]] = [ReadRequest, WriteRequest, WriteReadRequest]
RESPONSES: list[type[ModbusPDU]] = [ReadResponse, WriteResponse, WriteReadResponse]
