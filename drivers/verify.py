"""Set and verify: the one way in which a driver waits for a device to be where it was told to be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from drivers.deadline import Deadline
from drivers.errors import DeviceError, LinkLost, ReadbackMismatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T = TypeVar("T")

SHORTEST_PAUSE_S = 0.001
STOP_S = 1.0
"""How long a failed or cancelled move tries to stop its device."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is being waited for, in words, for the message if it does not come."""

    quantity: str
    value: str
    tolerance: str = "exact"


def loop_ns() -> int:
    """The running loop's time in integer nanoseconds."""
    return round(asyncio.get_running_loop().time() * 1e9)


async def until(
    device: str,
    wanted: Wanted,
    read: Callable[[], Awaitable[T]],
    agrees: Callable[[T], bool],
    show: Callable[[T], str],
    *,
    poll_s: float,
    deadline: Deadline,
) -> T:
    """Read every `poll_s` until the read-back agrees, and return it.

    Raises `ReadbackMismatch` at the deadline, naming the last read-back; whatever `read` raises passes
    through, except a `LinkLost` of a read that was begun with less than `poll_s` to go: then the last
    read-back tells more.
    """
    got: T | None = None
    while True:
        remaining_s = deadline.remaining_s()
        try:
            got = await read()
        except LinkLost as error:
            if got is None or remaining_s > poll_s:
                raise
            raise _mismatch(device, wanted, show(got), deadline) from error
        if agrees(got):
            return got
        # The pauses shrink towards the deadline, so that the last read lies close before it.
        pause_s = min(poll_s, deadline.remaining_s() / 2)
        if pause_s < SHORTEST_PAUSE_S:
            raise _mismatch(device, wanted, show(got), deadline)
        await asyncio.sleep(pause_s)


async def set_and_verify(
    device: str,
    wanted: Wanted,
    write: Callable[[], Awaitable[None]],
    read: Callable[[], Awaitable[T]],
    *,
    agrees: Callable[[T], bool],
    show: Callable[[T], str],
    poll_s: float,
    deadline: Deadline,
) -> T:
    """Write once, then read until it agrees; see `until`."""
    await write()
    return await until(device, wanted, read, agrees, show, poll_s=poll_s, deadline=deadline)


@asynccontextmanager
async def stopped_on_failure(stop: Callable[[Deadline], Awaitable[None]]) -> AsyncIterator[None]:
    """Stop the device if the move inside fails, meets its deadline or is cancelled; then let that pass on."""
    try:
        yield
    except (DeviceError, asyncio.CancelledError) as error:
        try:
            await stop(Deadline.after(STOP_S, "stop after a failed move"))
        except DeviceError as second:
            error.add_note(f"and stopping it failed: {second}")
        raise


def _mismatch(device: str, wanted: Wanted, got: str, deadline: Deadline) -> ReadbackMismatch:
    return ReadbackMismatch(
        device,
        f"{wanted.quantity}: wanted {wanted.value} (tolerance {wanted.tolerance}), got {got} "
        f"at the deadline ({deadline.purpose}); check the device, then try again",
    )
