"""The simulated respiratory gating device: a breathing curve, and a gate that is open around exhale.

The curve is that of Lujan et al., Med. Phys. 26 (1999) 715: exhale is flat and long, sin^4 about it. The gate
is open in the first `duty` of each period, and exhale lies in the middle of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from drivers.registers import RegisterMap
from simulators.devices.register_device import DeviceIdentity, RegisterDevice

OK, NO_SUCH_SOURCE, FAULT = range(3)


class SimulatedGating:
    """Source 0: off, gate always open; sources 1 to `sources`: the breathing curve.

    Fault seam: `fault` (no signal: gate closed), `stuck` (None, or the state in which the gate line hangs).
    """

    def __init__(
        self,
        now_ns: Callable[[], int],
        *,
        sources: int,
        period_s: float,
        duty: float,
        selected: Callable[[int], None] | None = None,
        forced: Callable[[bool | None], None] | None = None,
    ) -> None:
        """For a plant that carries the gate line itself: `selected(source)` is told of each change of source.

        `forced(state)` is told where a fault holds the line: open, closed, or (None) not any more.
        """
        self._now_ns = now_ns
        self._sources = sources
        self._period_ns = round(period_s * 1e9)
        self._open_ns = round(period_s * duty * 1e9)
        self._selected = selected
        self._forced = forced
        self.source = 0
        self._fault = False
        self._stuck: bool | None = None

    @property
    def fault(self) -> bool:
        """No usable signal: the gate is closed."""
        return self._fault

    @fault.setter
    def fault(self, value: bool) -> None:
        self._fault = value
        self._tell()

    @property
    def stuck(self) -> bool | None:
        """The state in which the gate line hangs, None: it does not."""
        return self._stuck

    @stuck.setter
    def stuck(self, value: bool | None) -> None:
        self._stuck = value
        self._tell()

    def _tell(self) -> None:
        if self._forced is not None:
            self._forced(self._stuck if self._stuck is not None else False if self._fault else None)

    def gate_open(self, now_ns: int) -> bool:
        """State of the gate line at a time."""
        if self.stuck is not None:
            return self.stuck
        if self.fault:
            return False
        return self.source == 0 or now_ns % self._period_ns < self._open_ns

    def amplitude(self, now_ns: int) -> float:
        """Breathing signal, 0 exhaled to 1 inhaled; 0 with the source off or lost."""
        if self.fault or self.source == 0:
            return 0.0
        phase = (now_ns - self._open_ns // 2) % self._period_ns / self._period_ns
        return math.sin(math.pi * phase) ** 4

    def select(self, values: dict[str, Any]) -> int:
        """Handler of the request block `select`."""
        source = values["select_source"]
        if source > self._sources:
            return NO_SUCH_SOURCE
        if self.fault and source:
            return FAULT
        self.source = source
        if self._selected is not None:
            self._selected(source)
        return OK

    def device(self, register_map: RegisterMap, identity: DeviceIdentity) -> RegisterDevice:
        """The gating device behind its register map."""
        return RegisterDevice(
            register_map,
            identity=identity,
            now_ns=self._now_ns,
            getters={
                "source": lambda: self.source,
                "gate_open": lambda: self.gate_open(self._now_ns()),
                "amplitude": lambda: self.amplitude(self._now_ns()),
                "fault": lambda: self.fault,
            },
            requests={"select": self.select},
        )
