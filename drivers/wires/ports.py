"""What a driver needs of a wire: two small Protocols, so that nothing above knows which wire it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from drivers.deadline import Deadline

MAX_READ = 125
MAX_WRITE = 123
MAX_WRITE_READ = 121


@dataclass(frozen=True, slots=True)
class RegisterRequest:
    """One transaction on holding registers: read `count` (FC03), write `data` (FC16), or write, then read (FC23)."""

    read_address: int = 0
    count: int = 0
    write_address: int = 0
    data: bytes = b""
    """Registers to write, each two bytes, big-endian."""


class ModbusPort(Protocol):
    """Holding registers of one device, over Modbus TCP or RTU.

    Raises `LinkLost` (no valid answer by the deadline, port closed, link suspect) and `DeviceRefused`
    (Modbus exception code). `CancelledError` passes through.
    """

    device: str
    stale_answers: int
    """Answers thrown away so far because nobody waited for them."""

    async def connect(self, deadline: Deadline) -> None: ...
    async def close(self) -> None: ...
    async def read(self, address: int, count: int, deadline: Deadline) -> list[int]:
        """FC03, count <= MAX_READ."""
        ...

    async def write(self, address: int, values: Sequence[int], deadline: Deadline) -> None:
        """FC16, len(values) <= MAX_WRITE."""
        ...

    async def write_read(
        self, write_address: int, values: Sequence[int], read_address: int, count: int, deadline: Deadline
    ) -> list[int]:
        """FC23: write, then read, in one round trip."""
        ...

    async def exchange(self, requests: Sequence[RegisterRequest], deadline: Deadline) -> list[bytes]:
        """Requests that do not depend on each other; what each read, as big-endian bytes.

        Some may be under way at once where wire and device allow it, and the device may do them in any order. If one is
        refused, no further ones are sent. Raises what the first one that failed deserves.
        """
        ...


class AsciiPort(Protocol):
    """Checksummed request and answer lines of one device on a serial line."""

    device: str

    @property
    def stale_answers(self) -> int:
        """Answers thrown away so far because nobody waited for them."""
        ...

    async def connect(self, deadline: Deadline) -> None: ...
    async def close(self) -> None: ...
    async def query(self, command: str, deadline: Deadline) -> str:
        """Send one command, return the payload of its answer; raises `LinkLost` or `DeviceRefused`."""
        ...


class RegisterBank(Protocol):
    """The server side: what a simulated device shows behind a Modbus wire."""

    def read(self, address: int, count: int) -> list[int]:
        """Raises `IllegalAddress`."""
        ...

    def write(self, address: int, values: Sequence[int]) -> None:
        """Raises `IllegalAddress`, `IllegalValue` or `DeviceBusy`; all or nothing."""
        ...


class LineDevice(Protocol):
    """The server side of an ASCII line: one command in, one answer payload out."""

    def answer(self, command: str) -> str:
        """Raises `IllegalValue` for a command it refuses."""
        ...


class IllegalAddress(Exception):
    """No such register: Modbus exception 2."""


class IllegalValue(Exception):
    """The device refuses the value: Modbus exception 3."""


class DeviceBusy(Exception):
    """The device cannot do this now: Modbus exception 6."""
