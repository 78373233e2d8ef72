"""The simulated nozzle: a snout on a drive, and two changers that take a while."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from drivers.registers import RegisterMap
from simulators.devices.axis import Axis
from simulators.devices.register_device import DeviceIdentity, RegisterDevice

SET, STOP = 1, 2
OK, UNKNOWN, FAULT, NO_SUCH_PART = range(4)
BETWEEN = 65535
"""Code shown while a changer is on its way."""


class Changer:
    """Holds one of several coded parts, or none (0); changing takes a time. Fault seam: `stuck`."""

    def __init__(self, now_ns: Callable[[], int], codes: Collection[int], change_time_ns: int) -> None:
        self._now_ns = now_ns
        self.codes = frozenset(codes) | {0}
        self._change_time_ns = change_time_ns
        self._code = 0
        self._ready_ns = now_ns()
        self.stuck = False
        """Fault: a change that was begun never ends."""

    @property
    def code(self) -> int:
        """Code of the part in the beam."""
        return BETWEEN if self.moving else self._code

    @property
    def moving(self) -> bool:
        """Whether it is between two parts."""
        if self._now_ns() < self._ready_ns:
            # A stuck changer needs its full time again once it is freed.
            if self.stuck:
                self._ready_ns = self._now_ns() + self._change_time_ns
            return True
        return False

    def change(self, code: int) -> None:
        """Bring a part into the beam."""
        if code != self._code or self.moving:
            self._ready_ns = self._now_ns() + self._change_time_ns
        self._code = code


class SimulatedNozzle:
    """Snout, range shifter changer, ripple filter changer.

    Fault seam: `snout.stuck`, `snout.creep_per_s` (mm/s), `range_shifter.stuck`, `ripple_filter.stuck`,
    `wrong_range_shifter_code` (what the code reader says instead), `fault`.
    """

    def __init__(
        self,
        now_ns: Callable[[], int],
        *,
        snout_code: int,
        snout_mm: float,
        snout_speed_mm_per_s: float,
        insert_time_s: float,
        range_shifter_codes: Collection[int],
        ripple_filter_codes: Collection[int],
    ) -> None:
        self._now_ns = now_ns
        self.snout_code = snout_code
        self.snout = Axis(now_ns, snout_mm, snout_speed_mm_per_s)
        change_time_ns = round(insert_time_s * 1e9)
        self.range_shifter = Changer(now_ns, range_shifter_codes, change_time_ns)
        self.ripple_filter = Changer(now_ns, ripple_filter_codes, change_time_ns)
        self.wrong_range_shifter_code: int | None = None
        self._fault = False

    @property
    def fault(self) -> bool:
        """Fault: drive error; the snout stops, new settings are refused."""
        return self._fault

    @fault.setter
    def fault(self, on: bool) -> None:
        self._fault = on
        if on:
            self.snout.stop()

    @property
    def moving(self) -> bool:
        """Whether any drive is on."""
        return self.snout.moving or self.range_shifter.moving or self.ripple_filter.moving

    def command(self, values: dict[str, Any]) -> int:
        """Handler of the request block `command`. A changer on its way always ends in a part, even on stop."""
        if values["command"] == STOP:
            self.snout.stop()
            return OK
        if values["command"] != SET:
            return UNKNOWN
        if self._fault:
            return FAULT
        shifter, ripple = values["target_range_shifter_code"], values["target_ripple_filter_code"]
        if shifter not in self.range_shifter.codes or ripple not in self.ripple_filter.codes:
            return NO_SUCH_PART
        self.range_shifter.change(shifter)
        self.ripple_filter.change(ripple)
        if values["move_snout"]:
            self.snout.move(values["target_snout_mm"])
        return OK

    def shown_range_shifter_code(self) -> int:
        """What the code reader says."""
        wrong = self.wrong_range_shifter_code
        return self.range_shifter.code if wrong is None else wrong

    def device(self, register_map: RegisterMap, identity: DeviceIdentity) -> RegisterDevice:
        """The nozzle behind its register map."""
        return RegisterDevice(
            register_map,
            identity=identity,
            now_ns=self._now_ns,
            getters={
                "snout_code": lambda: self.snout_code,
                "snout_mm": lambda: self.snout.position,
                "range_shifter_code": self.shown_range_shifter_code,
                "ripple_filter_code": lambda: self.ripple_filter.code,
                "moving": lambda: self.moving,
                "fault": lambda: self.fault,
            },
            requests={"command": self.command},
        )
