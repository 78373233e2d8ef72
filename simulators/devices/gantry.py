"""The simulated gantry, or the port selector of a fixed beam line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from drivers.registers import RegisterMap
from simulators.devices.axis import Axis
from simulators.devices.register_device import DeviceIdentity, RegisterDevice

MOVE, STOP = 1, 2
OK, UNKNOWN, FAULT, NO_SUCH_PORT = range(4)


class SimulatedGantry:
    """One axis in degrees, 0 to 360; with `ports_deg` only those targets exist.

    Fault seam: `stuck`, `creep_deg_per_s`, `fault` (drive off where it stands, moves refused).
    """

    def __init__(
        self, now_ns: Callable[[], int], *, speed_deg_per_s: float, start_deg: float, ports_deg: Sequence[float] = ()
    ) -> None:
        self._now_ns = now_ns
        self._axis = Axis(now_ns, start_deg, speed_deg_per_s)
        self._ports_deg = tuple(ports_deg)
        self._fault = False

    @property
    def angle_deg(self) -> float:
        """True angle."""
        return self._axis.position

    @property
    def moving(self) -> bool:
        """Whether the drive is on."""
        return self._axis.moving

    @property
    def stuck(self) -> bool:
        """Fault: the drive pushes, nothing moves."""
        return self._axis.stuck

    @stuck.setter
    def stuck(self, on: bool) -> None:
        self._axis.stuck = on

    @property
    def creep_deg_per_s(self) -> float:
        """Fault: the gantry drifts."""
        return self._axis.creep_per_s

    @creep_deg_per_s.setter
    def creep_deg_per_s(self, value: float) -> None:
        self._axis.creep_per_s = value

    @property
    def fault(self) -> bool:
        """Fault: drive error."""
        return self._fault

    @fault.setter
    def fault(self, on: bool) -> None:
        self._fault = on
        if on:
            self._axis.stop()

    def command(self, values: dict[str, Any]) -> int:
        """Handler of the request block `command`."""
        if values["command"] == STOP:
            self._axis.stop()
            return OK
        if values["command"] != MOVE:
            return UNKNOWN
        if self._fault:
            return FAULT
        if self._ports_deg and values["target_deg"] not in self._ports_deg:
            return NO_SUCH_PORT
        self._axis.move(values["target_deg"])
        return OK

    def device(self, register_map: RegisterMap, identity: DeviceIdentity) -> RegisterDevice:
        """The gantry behind its register map."""
        return RegisterDevice(
            register_map,
            identity=identity,
            now_ns=self._now_ns,
            getters={"angle_deg": lambda: self.angle_deg, "moving": lambda: self.moving, "fault": lambda: self.fault},
            requests={"command": self.command},
        )
