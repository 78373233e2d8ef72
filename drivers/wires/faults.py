"""Faults on a wire, as data: what a run does to the bytes of one address in a window of time.

The servers of the simulated devices pass every request they receive and every reply they send through a `FaultGate`,
on a real loop and on the virtual one alike, so that a fault means the same on both. The connection itself stays up:
a cut wire is half open, as a pulled cable leaves it. Messages keep their order: what follows a delayed message
waits behind it, as behind a slow device.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

FOREVER_NS = 2**63 - 1

Direction = Literal["request", "reply"]


class FaultKind(StrEnum):
    """What happens to a message."""

    CUT = "cut"
    """Nothing passes."""
    DROP = "drop"
    """The message is lost (with `nth`: that one only)."""
    DELAY = "delay"
    """It arrives `delay_ns` later."""
    CORRUPT = "corrupt"
    """One byte is changed."""
    DUPLICATE = "duplicate"
    """It arrives twice."""
    REORDER = "reorder"
    """It arrives after the message that follows it."""
    TORN = "torn"
    """Its first half arrives, the rest `delay_ns` later (0: never)."""
    STALE = "stale"
    """The one before it, of other content, arrives in its place."""
    EXCEPTION = "exception"
    """The device answers with exception `code`, and does nothing (`WireFaults.answering`)."""
    WRONG_UNIT = "wrong_unit"
    """The answer comes from another unit (Modbus), or to another sequence number (ASCII)."""
    FROZEN = "frozen"
    """What is read stands still from its first reading on; writes are obeyed."""


OF_ANSWERS = frozenset({FaultKind.EXCEPTION, FaultKind.WRONG_UNIT, FaultKind.FROZEN})
"""Faults of how a device answers: its server asks for them, bytes pass."""


@dataclass(frozen=True, slots=True)
class WireFault:
    """One fault on one wire. Requests are pieces as received, replies are whole frames or lines."""

    address: str
    """See `drivers.wires.addresses`."""
    kind: FaultKind
    direction: Literal["request", "reply", "both"] = "reply"
    from_ns: int = 0
    until_ns: int = FOREVER_NS
    """The window [from, until), counted from the origin of its `WireFaults`."""
    nth: int | None = None
    """Only the nth message (1 is the first) of a direction inside the window; None: every message."""
    delay_ns: int = 0
    byte: int = 0
    """Index of the byte that CORRUPT changes; negative counts from the end, modulo the message's length."""
    mask: int = 0x01
    """Bits that CORRUPT flips, 1 to 255."""
    code: int = 4
    """Modbus exception of EXCEPTION, 1 to 255."""

    def __post_init__(self) -> None:
        if self.kind is FaultKind.DELAY and self.delay_ns <= 0:
            raise ValueError(f"wire fault on {self.address}: a delay of {self.delay_ns} ns delays nothing")
        if self.kind is FaultKind.EXCEPTION and not 1 <= self.code <= 255:
            raise ValueError(f"wire fault on {self.address}: exception code {self.code} must be 1 to 255")
        if not 1 <= self.mask <= 255:
            raise ValueError(f"wire fault on {self.address}: mask {self.mask} must be 1 to 255")
        if self.nth is not None and self.nth < 1:
            raise ValueError(f"wire fault on {self.address}: nth {self.nth} counts from 1")


class WireFaults:
    """The faults of a run. `origin_ns`: time on the loop's clock from which the windows count."""

    def __init__(self, faults: Iterable[WireFault] = (), *, origin_ns: int = 0) -> None:
        self.origin_ns = origin_ns
        self._faults: list[WireFault] = []
        self._seen: dict[tuple[int, Direction], int] = {}
        self._last: dict[tuple[str, Direction], list[bytes]] = {}
        self._held: dict[tuple[int, Direction], bytes] = {}
        self.applied: list[tuple[int, WireFault]] = []
        """(time since the origin in ns, fault), in order: what was really done."""
        for fault in faults:
            self.add(fault)

    def add(self, fault: WireFault) -> None:
        """Add a fault while the run is under way."""
        self._faults.append(fault)

    def answering(self, address: str, t_ns: int) -> WireFault | None:
        """The fault, if any, of how the device at this address answers a request at `t_ns` on the loop's clock."""
        since_ns = t_ns - self.origin_ns
        for index, fault in enumerate(self._faults):
            if fault.kind in OF_ANSWERS and fault.address == address and self._hits(index, fault, "reply", since_ns):
                return fault
        return None

    def _hits(self, index: int, fault: WireFault, direction: Direction, since_ns: int) -> bool:
        """Whether a message that comes is one that the fault means; it is noted."""
        if not fault.from_ns <= since_ns < fault.until_ns:
            return False
        number = self._seen.get((index, direction), 0) + 1
        self._seen[(index, direction)] = number
        if fault.nth is not None and number != fault.nth:
            return False
        self.applied.append((since_ns, fault))
        return True

    def pass_on(self, address: str, direction: Direction, data: bytes, t_ns: int) -> list[tuple[int, bytes]]:
        """Return what becomes of a message at `t_ns` on the loop's clock: 0 to n times (delay in ns, bytes)."""
        since_ns = t_ns - self.origin_ns
        messages = [(0, data)]
        for index, fault in enumerate(self._faults):
            if fault.address != address or fault.direction not in (direction, "both") or fault.kind in OF_ANSWERS:
                continue
            held = self._held.pop((index, direction), None)
            if self._hits(index, fault, direction, since_ns):
                messages = [
                    m for delay_ns, piece in messages for m in self._harm(index, fault, direction, delay_ns, piece)
                ]
            if held is not None:
                messages.append((0, held))
        last = self._last.setdefault((address, direction), [])
        if not last or last[-1] != data:
            self._last[(address, direction)] = [*last[-1:], data]
        return messages

    def _harm(
        self, index: int, fault: WireFault, direction: Direction, delay_ns: int, data: bytes
    ) -> list[tuple[int, bytes]]:
        match fault.kind:
            case FaultKind.DELAY:
                return [(delay_ns + fault.delay_ns, data)]
            case FaultKind.CORRUPT:
                at = fault.byte % len(data)
                return [(delay_ns, data[:at] + bytes([data[at] ^ fault.mask]) + data[at + 1 :])]
            case FaultKind.DUPLICATE:
                return [(delay_ns, data)] * 2
            case FaultKind.TORN:
                half = (len(data) + 1) // 2
                rest = [(delay_ns + fault.delay_ns, data[half:])] if fault.delay_ns else []
                return [(delay_ns, data[:half]), *rest]
            case FaultKind.STALE:
                before = [piece for piece in self._last.get((fault.address, direction), []) if piece != data]
                return [(delay_ns, before[-1] if before else data)]
            case FaultKind.REORDER:
                self._held[(index, direction)] = data
                return []
        return []  # cut, drop


class FaultGate:
    """One direction of one connection: bytes go in, and leave at `sink` as the faults let them."""

    def __init__(
        self, faults: WireFaults | None, address: str, direction: Direction, sink: Callable[[bytes], None]
    ) -> None:
        self._faults = faults
        self._address = address
        self._direction: Direction = direction
        self._sink = sink
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def push(self, data: bytes) -> None:
        """Let a message through, now, later, changed or not at all."""
        if self._faults is None:
            self._sink(data)
            return
        now_s = asyncio.get_running_loop().time()
        for delay_ns, piece in self._faults.pass_on(self._address, self._direction, data, round(now_s * 1e9)):
            if delay_ns == 0 and not self._waiting:
                self._sink(piece)
                continue
            due_s = now_s + delay_ns / 1e9
            if self._waiting:
                due_s = max(due_s, self._waiting[-1][0])
            self._waiting.append((due_s, piece))
            if self._timer is None:
                self._set_timer()

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_at(self._waiting[0][0], self._release)

    def _release(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        while self._waiting and self._waiting[0][0] <= now_s:
            self._sink(self._waiting.popleft()[1])
        if self._waiting:
            self._set_timer()

    def close(self) -> None:
        """Forget what is still waiting."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
