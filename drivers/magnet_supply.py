"""The scan magnets' supplies where no spot engine sits above them: set, and prove that the currents are there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from drivers.contracts import MagnetReadback
from drivers.deadline import Deadline
from drivers.errors import ReadbackMismatch
from drivers.register_client import RegisterDriver
from drivers.streaming import stream_to

READBACK = ("x_set_a", "y_set_a", "x_current_a", "y_current_a", "inside_us", "heartbeat")
RESOLUTION_A = 0.0005
"""Half a step of the set-point registers."""
TIMER_S = 0.0012
"""An event loop's timer may come so late: nearer to its time than this, asking is better than sleeping."""
PATIENCE_S = 1.0
"""Beyond the time that a move takes by its data sheet; beam is off meanwhile, so only time is lost."""


@dataclass(frozen=True, slots=True)
class SupplyLimits:
    """What counts as having arrived; values of the site."""

    window_a: float
    """Measured current within this of the set-point."""
    settle_us: float
    """For so long, so that the field has followed."""
    slew_a_per_s: float


class MagnetSupply(RegisterDriver):
    """Contract `drivers.contracts.MagnetSupply` over a register map of class magnet_supply."""

    async def stream_to(self, host: str, port: int, slot: int, deadline: Deadline) -> None:
        """Send frames to host:port; returns when the destination reads back and frames leave."""
        await stream_to(self, host, port, slot, deadline)

    async def set(self, x_a: float, y_a: float, deadline: Deadline) -> None:
        """Write both set-points and read them back, in one transaction; the currents follow."""
        await self.link.write({"x_set_a": x_a, "y_set_a": y_a}, deadline)

    async def readback(self, deadline: Deadline) -> MagnetReadback:
        """Set-points as the supply holds them, measured currents, and for how long they have agreed."""
        got = await self.link.read(READBACK, deadline)
        return MagnetReadback(
            got["x_set_a"],
            got["y_set_a"],
            got["x_current_a"],
            got["y_current_a"],
            float(got["inside_us"]),
            got["heartbeat"],
        )

    async def reach(
        self, x_a: float, y_a: float, limits: SupplyLimits, sent_s: float, move_s: float, deadline: Deadline
    ) -> MagnetReadback:
        """Wait until both currents are inside the window around (x_a, y_a) and have settled.

        `sent_s`: when the set-points were written (loop time); `move_s`: how long the move takes by data sheet.
        Raises `ReadbackMismatch` when it takes far longer.
        """
        loop = asyncio.get_running_loop()
        wait_s = sent_s + move_s - TIMER_S - loop.time()
        if wait_s > TIMER_S:
            await asyncio.sleep(wait_s)
        while True:
            got = await self.readback(deadline)
            if arrived(got, x_a, y_a, limits):
                return got
            if loop.time() > sent_s + move_s + PATIENCE_S:
                raise ReadbackMismatch(self.name, _complaint(got, x_a, y_a, limits))


def arrived(got: MagnetReadback, x_a: float, y_a: float, limits: SupplyLimits) -> bool:
    """True where the supply holds these set-points, measures them, and has done so for the settling time."""
    return (
        abs(got.x_set_a - x_a) <= RESOLUTION_A
        and abs(got.y_set_a - y_a) <= RESOLUTION_A
        and abs(got.x_current_a - x_a) <= limits.window_a
        and abs(got.y_current_a - y_a) <= limits.window_a
        and got.inside_us >= limits.settle_us
    )


def _complaint(got: MagnetReadback, x_a: float, y_a: float, limits: SupplyLimits) -> str:
    return (
        f"x_current_a, y_current_a: wanted {x_a:.3f} A, {y_a:.3f} A (tolerance {limits.window_a:g} A for "
        f"{limits.settle_us:g} us), got {got.x_current_a:.3f} A, {got.y_current_a:.3f} A for {got.inside_us:g} us "
        f"at set-points {got.x_set_a:.3f} A, {got.y_set_a:.3f} A; check the supply"
    )
