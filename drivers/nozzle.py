"""The nozzle: snout, range shifter and ripple filter, each known by the code it reads back."""

from __future__ import annotations

from drivers.contracts import NozzleStatus
from drivers.deadline import Deadline
from drivers.errors import DeviceError
from drivers.register_client import RegisterDriver
from drivers.registers import RegisterMap, Value
from drivers.verify import Wanted, loop_ns, stopped_on_failure, until
from drivers.wires.ports import ModbusPort

SET, STOP = 1, 2
STATUS = ("snout_code", "snout_mm", "range_shifter_code", "ripple_filter_code", "moving", "fault", "heartbeat")


class Nozzle(RegisterDriver):
    """Contract `drivers.contracts.Nozzle` over a register map of class nozzle."""

    def __init__(self, name: str, port: ModbusPort, register_map: RegisterMap, *, poll_s: float = 0.1) -> None:
        super().__init__(name, port, register_map, poll_s=poll_s)

    async def set(
        self,
        *,
        snout_mm: float | None,
        range_shifter_code: int,
        ripple_filter_code: int,
        snout_tolerance_mm: float,
        deadline: Deadline,
    ) -> NozzleStatus:
        """Bring all three there; returns once codes and position agree and nothing moves.

        `snout_mm` None leaves the snout where it is. Failing or cancelled, it stops the drives.
        """
        snout = "as it is" if snout_mm is None else f"{snout_mm:.1f} mm"

        def agrees(s: NozzleStatus) -> bool:
            return (
                not s.moving
                and s.range_shifter_code == range_shifter_code
                and s.ripple_filter_code == ripple_filter_code
                and (snout_mm is None or abs(s.snout_mm - snout_mm) <= snout_tolerance_mm)
            )

        values: dict[str, Value] = {
            "command": SET,
            "move_snout": snout_mm is not None,
            "target_snout_mm": 0.0 if snout_mm is None else snout_mm,
            "target_range_shifter_code": range_shifter_code,
            "target_ripple_filter_code": ripple_filter_code,
        }
        async with stopped_on_failure(self.stop):
            await self.link.request("command", values, deadline)
            return await until(
                self.name,
                Wanted(
                    "snout, range shifter, ripple filter",
                    f"{snout}, code {range_shifter_code}, code {ripple_filter_code}, at rest",
                    f"{snout_tolerance_mm:g} mm, codes exact",
                ),
                lambda: self._healthy(deadline),
                agrees,
                _text,
                poll_s=self.poll_s,
                deadline=deadline,
            )

    async def stop(self, deadline: Deadline) -> None:
        """Stop all drives; returns at rest."""
        await self.link.request("command", {"command": STOP}, deadline)
        await until(
            self.name,
            Wanted("moving", "False"),
            lambda: self.status(deadline),
            lambda s: not s.moving,
            _text,
            poll_s=self.poll_s,
            deadline=deadline,
        )

    async def status(self, deadline: Deadline) -> NozzleStatus:
        """Read-back, one transaction."""
        t_ns = loop_ns()
        got = await self.link.read(STATUS, deadline)
        return NozzleStatus(t_ns, *(got[name] for name in STATUS))

    async def _healthy(self, deadline: Deadline) -> NozzleStatus:
        status = await self.status(deadline)
        if status.fault:
            raise DeviceError(self.name, f"drive fault ({_text(status)}); clear it at the nozzle")
        return status


def _text(s: NozzleStatus) -> str:
    motion = "moving" if s.moving else "at rest"
    return f"{s.snout_mm:.1f} mm, code {s.range_shifter_code}, code {s.ripple_filter_code}, {motion}"
