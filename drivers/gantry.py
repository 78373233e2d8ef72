"""The gantry, or the port of a fixed beam line: move, and know that it arrived."""

from __future__ import annotations

from drivers.contracts import GantryStatus
from drivers.deadline import Deadline
from drivers.errors import DeviceError
from drivers.register_client import RegisterDriver
from drivers.registers import RegisterMap
from drivers.verify import Wanted, loop_ns, stopped_on_failure, until
from drivers.wires.ports import ModbusPort

MOVE, STOP = 1, 2
STATUS = ("heartbeat", "angle_deg", "moving", "fault")


def angle_between(a_deg: float, b_deg: float) -> float:
    """Smallest angle between two directions, 0 to 180 degrees."""
    return abs((a_deg - b_deg + 180.0) % 360.0 - 180.0)


class Gantry(RegisterDriver):
    """Contract `drivers.contracts.Gantry` over a register map of class gantry."""

    def __init__(self, name: str, port: ModbusPort, register_map: RegisterMap, *, poll_s: float = 0.1) -> None:
        super().__init__(name, port, register_map, poll_s=poll_s)

    async def move(self, angle_deg: float, tolerance_deg: float, deadline: Deadline) -> GantryStatus:
        """Move; returns once within tolerance and at rest. Failing or cancelled, it stops the gantry.

        Raises `ReadbackMismatch` at the deadline with the angle reached, `DeviceError` on a drive fault.
        """
        async with stopped_on_failure(self.stop):
            started = await self.status(deadline)
            await self.link.request("command", {"command": MOVE, "target_deg": angle_deg}, deadline)
            return await until(
                self.name,
                Wanted("angle", f"{angle_deg:.2f} deg, at rest", f"{tolerance_deg:g} deg"),
                lambda: self._healthy(deadline),
                lambda s: not s.moving and angle_between(s.angle_deg, angle_deg) <= tolerance_deg,
                lambda s: f"{s.angle_deg:.2f} deg, {'moving' if s.moving else 'at rest'}, from {started.angle_deg:.2f}",
                poll_s=self.poll_s,
                deadline=deadline,
            )

    async def stop(self, deadline: Deadline) -> None:
        """Stop; returns at rest."""
        await self.link.request("command", {"command": STOP}, deadline)
        await until(
            self.name,
            Wanted("moving", "False"),
            lambda: self.status(deadline),
            lambda s: not s.moving,
            lambda s: f"moving at {s.angle_deg:.2f} deg",
            poll_s=self.poll_s,
            deadline=deadline,
        )

    async def status(self, deadline: Deadline) -> GantryStatus:
        """Read-back, one transaction."""
        t_ns = loop_ns()
        got = await self.link.read(STATUS, deadline)
        return GantryStatus(t_ns, got["angle_deg"], got["moving"], got["fault"], got["heartbeat"])

    async def _healthy(self, deadline: Deadline) -> GantryStatus:
        status = await self.status(deadline)
        if status.fault:
            raise DeviceError(self.name, f"drive fault at {status.angle_deg:.2f} deg; clear it at the gantry")
        return status
