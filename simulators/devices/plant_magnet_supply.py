"""The scan magnets' supplies without a spot engine: two set-points, two read-backs, and frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from drivers.registers import RegisterMap
from simulators.devices.plant_electrometer import Destination, StreamDestinations
from simulators.devices.register_device import DeviceIdentity, RegisterDevice
from simulators.plant.state import Plant


class PlantMagnetSupply:
    """Set-points to the plant, currents from it."""

    def __init__(
        self,
        plant: Plant,
        now_ns: Callable[[], int],
        streams_changed: Callable[[int, int, Destination], None],
    ) -> None:
        """`streams_changed(3, slot, destination)` is told where frames shall go."""
        self._plant = plant
        self._now_ns = now_ns
        self._set_ns = now_ns()
        self._destinations = StreamDestinations(3, streams_changed)

    def _set(self, name: str, value_a: float) -> None:
        set_ma = float(round(value_a * 1000))
        if self._plant.state[name] != set_ma:
            self._plant.state[name] = set_ma
            self._set_ns = self._now_ns()

    def inside_us(self) -> int:
        """Judged by what the currents are now: the plant notes an arrival, but a set-point may be newer than that."""
        state, window_ma = self._plant.state, self._plant.parameters["window_ma"]
        off = max(abs(state["current_x_ma"] - state["set_x_ma"]), abs(state["current_y_ma"] - state["set_y_ma"]))
        arrived_ns = int(state["arrived_ns"])
        if off >= window_ma or arrived_ns < 0:
            return 0
        return min(max(0, self._now_ns() - max(arrived_ns, self._set_ns)) // 1000, 0xFFFF_FFFF)

    def device(self, register_map: RegisterMap, identity: DeviceIdentity) -> RegisterDevice:
        """The supply behind its register map."""
        state = self._plant.state
        return RegisterDevice(
            register_map,
            identity=identity,
            now_ns=self._now_ns,
            getters={
                "x_set_a": lambda: float(state["set_x_ma"]) * 1e-3,
                "y_set_a": lambda: float(state["set_y_ma"]) * 1e-3,
                "x_current_a": lambda: float(state["current_x_ma"]) * 1e-3,
                "y_current_a": lambda: float(state["current_y_ma"]) * 1e-3,
                "inside_us": self.inside_us,
                "streaming": self._destinations.any,
            },
            setters={
                "x_set_a": partial(self._set, "set_x_ma"),
                "y_set_a": partial(self._set, "set_y_ma"),
                **self._destinations.setters(),
            },
        )
