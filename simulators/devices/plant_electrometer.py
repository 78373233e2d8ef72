"""An electrometer's registers, bound to one chamber of the plant."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.registers import RegisterMap
from simulators.devices.plant_spot_preset import PlantSpotPreset
from simulators.devices.register_device import DeviceIdentity, RegisterDevice, TableHooks
from simulators.plant.state import CAPACITY, FRAME_NS, RING, Plant
from simulators.plant.step import SELF_TEST_NS
from sites.schema import Site

ACCEPTED, UNKNOWN, WRONG_STATE, BEAM = range(4)
SELF_TEST, RESET_TRIP = 1, 2
Destination = tuple[int, int, bool]
"""IPv4 address as an integer, UDP port, enabled."""


class StreamDestinations:
    """Where a stream's frames go: the registers stream_<slot>_{ipv4,port,enable} of a device."""

    def __init__(self, number: int, changed: Callable[[int, int, Destination], None]) -> None:
        self._number = number
        self._changed = changed
        self._slots: list[Destination] = [(0, 0, False), (0, 0, False)]

    def _set(self, slot: int, index: int, value: Any) -> None:
        parts = list(self._slots[slot])
        parts[index] = value
        self._slots[slot] = (int(parts[0]), int(parts[1]), bool(parts[2]))
        self._changed(self._number, slot, self._slots[slot])

    def setters(self) -> dict[str, Callable[[Any], None]]:
        """Setters for a `RegisterDevice`."""
        names = ("ipv4", "port", "enable")
        return {
            f"stream_{slot}_{name}": partial(self._set, slot, index)
            for slot in (0, 1)
            for index, name in enumerate(names)
        }

    def any(self) -> bool:
        """True where at least one destination is enabled."""
        return any(enabled for _, _, enabled in self._slots)


class PlantElectrometer:
    """Counter, latches, self-test; electrometer 2 also its backup limits."""

    def __init__(
        self,
        plant: Plant,
        site: Site,
        number: int,
        now_ns: Callable[[], int],
        streams_changed: Callable[[int, int, Destination], None],
    ) -> None:
        """`streams_changed(number, slot, destination)` is told where frames shall go."""
        self._plant = plant
        self._site = site
        self._number = number
        self._now_ns = now_ns
        self._destinations = StreamDestinations(number, streams_changed)
        self._device: RegisterDevice | None = None

    def command(self, values: dict[str, Any]) -> int:
        """Handler of the command block."""
        state = self._plant.state
        n = self._number
        command = int(values["command"])
        if command == SELF_TEST:
            if state["beam_present"] or state["request"]:
                return BEAM
            if state[f"self_test_{n}"] == 1:
                return WRONG_STATE
            state[f"self_test_end_{n}_ns"] = state["t_ns"] + SELF_TEST_NS
            state[f"self_test_{n}"] = 1
            return ACCEPTED
        if command == RESET_TRIP:
            if state["beam_present"]:
                return BEAM
            if n == 2:
                state["backup_trip"] = 0
                state["backup_visit"] = 0
            return ACCEPTED
        return UNKNOWN

    def backup_written(self, first: int, count: int) -> None:
        """Backup limits of a bank arrived."""
        assert self._device is not None
        bank, start = divmod(first, CAPACITY)
        rows = self._device.rows("backup", first, count)
        if self._number == 2:
            self._plant.backup[bank, start : start + count] = rows["limit_counts"]

    def heads_written(self, first: int, count: int) -> None:
        """A bank's head arrived."""
        assert self._device is not None
        if self._number == 2:
            for bank, head in enumerate(self._device.rows("heads", first, count), first):
                self._plant.backup_first[bank] = head["first_visit"]
                self._plant.backup_pedestal[bank] = head["pedestal_per_s"]
                self._plant.backup_rate[bank] = round(float(head["rate_limit_per_s"]) * FRAME_NS * 1e-9)

    def latches(self, first: int, count: int) -> NDArray[np.void]:
        """Rows of the latch ring by their wire numbers."""
        assert self._device is not None
        ring = self._plant.latches_1 if self._number == 1 else self._plant.latches_2
        rows = ring[np.arange(first, first + count) % RING]
        shown = np.zeros(count, self._device.codec("latches").dtype)
        shown["visit"] = rows["visit"]
        shown["counts"] = rows["counts"]
        return shown

    def acknowledge(self, rows: int) -> None:
        """Setter of `acknowledged`."""
        self._plant.state[f"latches_{self._number}_ack"] = rows

    def device(
        self, register_map: RegisterMap, identity: DeviceIdentity, preset: PlantSpotPreset | None = None
    ) -> RegisterDevice:
        """The electrometer behind its register map; `preset`: the spot preset that is built into it."""
        state = self._plant.state
        parameters = self._plant.parameters
        n = self._number
        sim = self._site.simulation
        self._device = RegisterDevice(
            register_map,
            identity=identity,
            now_ns=self._now_ns,
            getters={
                "counts": lambda: int(state[f"frame_counts_{n}"]),
                "high_voltage_v": lambda: float(parameters[f"hv_{n}_v"]),
                "temperature_c": lambda: sim.temperature_c + float(parameters[f"temperature_error_{n}_c"]),
                "pressure_hpa": lambda: sim.pressure_hpa + float(parameters[f"pressure_error_{n}_hpa"]),
                "self_test": lambda: int(state[f"self_test_{n}"]),
                "streaming": self._destinations.any,
                "trip": lambda: int(state["backup_trip"]) if n == 2 else 0,
                "trip_visit": lambda: int(state["backup_visit"]) if n == 2 else 0,
                "results": lambda: int(state["results"]),
                **({} if preset is None else preset.getters()),
            },
            setters={
                "acknowledged": self.acknowledge,
                **self._destinations.setters(),
                **({} if preset is None else preset.setters()),
            },
            requests={"command": self.command, **({} if preset is None else preset.requests())},
            tables={
                "backup": TableHooks(written=self.backup_written),
                "heads": TableHooks(written=self.heads_written),
                "latches": TableHooks(read=self.latches),
                **({} if preset is None else preset.tables(register_map)),
            },
        )
        return self._device
