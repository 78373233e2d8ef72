"""The simulated patient positioner: six axes behind the line commands of its map."""

from __future__ import annotations

from collections.abc import Callable

from drivers.line_commands import LineValue, format_answer, parse_command
from drivers.register_codec import LimitError
from drivers.registers import RegisterMap
from drivers.wires.ports import IllegalValue
from simulators.devices.axis import Axis
from simulators.devices.register_device import DeviceIdentity, heartbeat

LENGTHS = ("vertical_mm", "longitudinal_mm", "lateral_mm")
ANGLES = ("rotation_deg", "pitch_deg", "roll_deg")


class SimulatedCouch:
    """A `LineDevice`. Every axis starts at 0.

    Fault seam: `axes[name].stuck`, `axes[name].creep_per_s` (mm/s, deg/s), `stuck` (all at once), `fault`.
    """

    def __init__(
        self,
        now_ns: Callable[[], int],
        register_map: RegisterMap,
        identity: DeviceIdentity,
        *,
        speed_mm_per_s: float,
        speed_deg_per_s: float,
    ) -> None:
        self._now_ns = now_ns
        self._map = register_map
        self._identity = identity
        self._boot_ns = now_ns()
        self.axes = {name: Axis(now_ns, 0.0, speed_mm_per_s) for name in LENGTHS}
        self.axes |= {name: Axis(now_ns, 0.0, speed_deg_per_s) for name in ANGLES}
        self._fault = False

    @property
    def moving(self) -> bool:
        """Whether any drive is on."""
        return any(axis.moving for axis in self.axes.values())

    @property
    def stuck(self) -> bool:
        """Fault: the drives push, nothing moves."""
        return any(axis.stuck for axis in self.axes.values())

    @stuck.setter
    def stuck(self, on: bool) -> None:
        for axis in self.axes.values():
            axis.stuck = on

    @property
    def fault(self) -> bool:
        """Fault: drive error; all axes stop, moves are refused."""
        return self._fault

    @fault.setter
    def fault(self, on: bool) -> None:
        self._fault = on
        if on:
            self._stop()

    def answer(self, command: str) -> str:
        """Answer one line. Raises `IllegalValue` for a line that the map does not allow, or during a fault."""
        try:
            known, values = parse_command(self._map, command)
        except LimitError as error:
            raise IllegalValue(f"couch: {error}") from error
        answers: dict[str, Callable[[], dict[str, LineValue]]] = {
            "identify": self._identify,
            "status": self._status,
            "move": lambda: self._move(values),
            "stop": self._stop,
        }
        return format_answer(known, answers[known.name]())

    def _identify(self) -> dict[str, LineValue]:
        return {
            "device_id": self._identity.device_id,
            "simulated": True,
            "map_sha256": self._map.map_sha256,
            "boot_nonce": self._identity.boot_nonce,
            "uptime_s": (self._now_ns() - self._boot_ns) // 1_000_000_000,
        }

    def _status(self) -> dict[str, LineValue]:
        positions: dict[str, LineValue] = {name: axis.position for name, axis in self.axes.items()}
        beat = heartbeat(self._now_ns() - self._boot_ns)
        return {**positions, "moving": self.moving, "fault": self.fault, "heartbeat": beat}

    def _move(self, targets: dict[str, LineValue]) -> dict[str, LineValue]:
        if self._fault:
            raise IllegalValue("couch: drive fault")
        for name, target in targets.items():
            if target is not None:
                self.axes[name].move(float(target))
        return targets

    def _stop(self) -> dict[str, LineValue]:
        for axis in self.axes.values():
            axis.stop()
        return {}
