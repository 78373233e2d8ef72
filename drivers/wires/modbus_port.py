"""What Modbus TCP and RTU ports share: checks before anything is sent, checks of the answer, errors in our terms."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from drivers.deadline import Deadline
from drivers.errors import DeviceRefused, LinkLost
from drivers.wires.modbus_pdu import (
    answered_data,
    check_request,
    describe,
    exception_text,
    pack_words,
    request_message,
    span,
    unpack_words,
)
from drivers.wires.ports import RegisterRequest

CANNOT_OPEN = "cannot open: refused, unreachable or in use; check that the device is on"


class LinkError(Exception):
    """A transaction failed on the wire; its text says why. Ports turn it into `LinkLost`."""


class Exchange:
    """Requests under way, and the answers so far."""

    __slots__ = ("answers", "done", "left", "messages", "requests", "sent", "wanted")

    def __init__(self, requests: Sequence[RegisterRequest], done: asyncio.Future[bool]) -> None:
        self.requests = requests
        self.messages = [request_message(request) for request in requests]
        self.answers: list[bytes | None] = [None] * len(requests)
        self.sent = 0
        """Requests sent."""
        self.wanted = len(requests)
        """Requests to send: fewer than there are, once one was refused."""
        self.left = self.wanted
        """Answers that are still to come."""
        self.done = done
        """True: all are answered. False: the connection was given up before the rest was sent."""

    def answer(self, index: int, message: bytes) -> None:
        """Take one answer."""
        self.answers[index] = message
        self.left -= 1
        if message[0] & 0x80 and self.sent < self.wanted:  # refused: ask no further
            self.left -= self.wanted - self.sent
            self.wanted = self.sent
        if not self.left and not self.done.done():
            self.done.set_result(True)

    def what(self) -> str:
        """The first request without an answer, for messages."""
        if not self.requests:
            return "opening the link"
        answered = sum(answer is not None for answer in self.answers)
        index = next((i for i, answer in enumerate(self.answers) if answer is None), len(self.requests) - 1)
        many = f" ({answered} of {len(self.requests)} requests were answered)" if len(self.requests) > 1 else ""
        return describe(self.requests[index]) + many


class RegisterPort(ABC):
    """A `ModbusPort` but for how its link is opened, used and distrusted."""

    def __init__(self, device: str, address: str, unit: int) -> None:
        self.device = device
        self.address = address
        self.stale_answers = 0
        """Answers that came and nobody waited for; they were thrown away."""
        self._unit = unit
        self._wanted = False

    async def connect(self, deadline: Deadline) -> None:
        """Open the link; a port that is open stays as it is. Raises `LinkLost`."""
        self._wanted = True
        await self._transact((), deadline)

    @abstractmethod
    async def close(self) -> None:
        """Close the link; a question under way fails with `LinkLost`."""

    async def read(self, address: int, count: int, deadline: Deadline) -> list[int]:
        """FC03, 1 to `MAX_READ` registers."""
        return unpack_words((await self.exchange((RegisterRequest(address, count),), deadline))[0])

    async def write(self, address: int, values: Sequence[int], deadline: Deadline) -> None:
        """FC16, 1 to `MAX_WRITE` registers."""
        await self.exchange((RegisterRequest(write_address=address, data=_packed(address, values)),), deadline)

    async def write_read(
        self, write_address: int, values: Sequence[int], read_address: int, count: int, deadline: Deadline
    ) -> list[int]:
        """FC23: write 1 to `MAX_WRITE_READ` registers, then read 1 to `MAX_READ`, in one round trip."""
        if not count:
            raise ValueError(f"read 0 registers at {read_address}: wanted at least 1")
        request = RegisterRequest(read_address, count, write_address, _packed(write_address, values))
        return unpack_words((await self.exchange((request,), deadline))[0])

    async def exchange(self, requests: Sequence[RegisterRequest], deadline: Deadline) -> list[bytes]:
        """Ask all of them within the deadline; what each read, as big-endian bytes (see `ModbusPort`)."""
        for request in requests:
            check_request(request)
        data: list[bytes] = []
        if not requests:
            return data
        for request, answer in zip(requests, await self._transact(requests, deadline), strict=True):
            if answer is None:  # not sent, because another one was refused
                continue
            refusal = exception_text(answer)
            if refusal:
                raise DeviceRefused(self.device, f"{self.address}: {describe(request)}: {refusal}")
            data.append(answered_data(answer))
        return data

    async def _transact(self, requests: Sequence[RegisterRequest], deadline: Deadline) -> list[bytes | None]:
        """Ask within the deadline; without requests, only make the link ready. Answers are proper, or refusals."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        exchange = Exchange(requests, loop.create_future())
        if not self._wanted:
            raise LinkLost(self.device, f"{self.address}: {exchange.what()}: the port is not open; call connect first")
        if deadline.at_s <= started_s:
            raise LinkLost(
                self.device, f"{self.address}: {exchange.what()}: the deadline ({deadline.purpose}) was over before"
            )
        try:
            await self._carry_out(exchange, deadline)
        except TimeoutError as exc:
            waited_s = loop.time() - started_s
            raise LinkLost(
                self.device,
                f"{self.address}: {exchange.what()}: no answer within {waited_s:.3f} s, the deadline of: "
                f"{deadline.purpose}; check that the device is on and the wire is whole",
            ) from exc
        except LinkError as exc:
            raise LinkLost(self.device, f"{self.address}: {exchange.what()}: {exc}") from exc
        return exchange.answers

    @abstractmethod
    async def _carry_out(self, exchange: Exchange, deadline: Deadline) -> None:
        """Open the link if need be, and get all answers. Raises TimeoutError at the deadline, and `LinkError`."""


def _packed(address: int, values: Sequence[int]) -> bytes:
    """Check values before anything is sent: a program error must not leave a link suspect."""
    words = [int(value) for value in values]
    if words and not (min(words) >= 0 and max(words) <= 0xFFFF):
        raise ValueError(f"write registers {span(address, len(words))}: a value is outside 0 to 65535")
    if not words:
        raise ValueError(f"write 0 registers at {address}: wanted at least 1")
    return pack_words(words)
