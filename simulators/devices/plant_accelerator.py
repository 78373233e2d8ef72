"""The accelerator's registers, bound to the plant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivers.registers import RegisterMap
from simulators.devices.register_device import DeviceIdentity, RegisterDevice
from simulators.plant.build import write_request
from simulators.plant.physics import IONS
from simulators.plant.state import ACC_FAULT, Plant
from sites.schema import Site

CODES = {"1H": 1001, "12C": 6012}
NAMES = {code: name for name, code in CODES.items()}
ACCEPTED, BAD_ION, BAD_ENERGY, BAD_LEVEL, BAD_PORT, IN_FAULT, BAD_OPTICS = range(7)
RELEASE, OPEN_STOPPER, STOP = 1, 2, 3


class PlantAccelerator:
    """Requests and commands go to the plant's mailboxes; read-backs are what the plant is in."""

    def __init__(self, plant: Plant, site: Site, now_ns: Callable[[], int]) -> None:
        self._plant = plant
        self._site = site
        self._now_ns = now_ns
        self._device: RegisterDevice | None = None

    def request(self, values: dict[str, Any]) -> int:
        """Handler of the request block: judge, then hand over."""
        a = self._site.accelerator
        state = self._plant.state
        if state["acc_state"] == ACC_FAULT:
            return IN_FAULT
        ion = NAMES.get(int(values["request_ion"]))
        if ion is None or ion not in a.ions:
            return BAD_ION
        energy = float(values["request_energy_mev_u"])
        if not a.energy_min_mev_u <= energy <= a.energy_max_mev_u:
            return BAD_ENERGY
        level = int(values["request_intensity_level"])
        optics = int(values["request_optics"])
        if level >= len(a.intensities_per_s):
            return BAD_LEVEL
        if optics >= len(self._site.treatment_machines):
            return BAD_OPTICS
        port = float(values["request_port_deg"])
        ports = self._site.gantry.ports_deg
        if ports and all(abs(port - p) > self._site.gantry.tolerance_deg for p in ports):
            return BAD_PORT
        write_request(self._plant, self._site, ion=ion, energy_mev_u=energy, level=level, port_deg=port, optics=optics)
        assert self._device is not None
        state["acc_new_request"] = int(self._device.get("request_counter"))
        return ACCEPTED

    def command(self, values: dict[str, Any]) -> int:
        """Handler of the command block."""
        state = self._plant.state
        command = int(values["command"])
        if command not in (RELEASE, OPEN_STOPPER, STOP):
            return 1
        if command in (RELEASE, STOP):
            state["acc_release"] = 1
        if command in (OPEN_STOPPER, STOP):
            wanted = 1 if command == OPEN_STOPPER else 0
            if state["stopper_command"] != wanted:
                state["stopper_change_ns"] = state["t_ns"] + self._plant.parameters["stopper_delay_ns"]
                state["stopper_command"] = wanted
        return ACCEPTED

    def device(self, register_map: RegisterMap, identity: DeviceIdentity) -> RegisterDevice:
        """The accelerator behind its register map."""
        state = self._plant.state
        tune = self._plant.tune
        offset = self._plant.parameters["energy_offset_mev_u"]
        self._device = RegisterDevice(
            register_map,
            identity=identity,
            now_ns=self._now_ns,
            getters={
                "state": lambda: int(state["acc_state"]),
                "state_request": lambda: int(state["acc_request"]) & 0xFFFF,
                "energy_mev_u": lambda: float(tune[0]["energy_mev_u"]) + float(offset) / 2 * (state["spill"] > 0),
                "ion": lambda: CODES[IONS[int(tune[0]["ion"])]] if state["spill"] > 0 else 0,
                "port_deg": lambda: float(tune[0]["port_deg"]),
                "intensity_level": lambda: int(tune[0]["level"]),
                "optics": lambda: int(tune[0]["optics"]),
                "spill": lambda: int(state["spill"]),
                "beam_enabled": lambda: bool(state["acc_cycling"]),
                "stopper_open": lambda: bool(state["stopper_open"]),
            },
            requests={"request": self.request, "command": self.command},
        )
        return self._device
