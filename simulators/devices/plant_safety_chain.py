"""The safety chain's PLC registers, bound to the plant, with the independent sensors that it carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivers.registers import RegisterMap
from simulators.devices.plant_accelerator import CODES
from simulators.devices.register_device import DeviceIdentity, RegisterDevice
from simulators.plant.build import other_ion
from simulators.plant.physics import IONS
from simulators.plant.state import CHAIN_ARM, CHAIN_DISARM, CHAIN_TEST, TEST_CLOSING, TEST_OPENING, Plant

ACCEPTED, UNKNOWN, NO_SESSION, INPUT_OPEN, TOKEN_USED, STOPPER_OPEN, ARMED, CHOPPER_TEST = range(8)
IS_ARMED, BAD_TIME_OUT = 1, 2


def _turned(port_deg: float, by_deg: float) -> float:
    """Where the beam line really leads; a direction, so that a whole turn is none."""
    return (port_deg + by_deg) % 360.0 if by_deg else port_deg


class PlantSafetyChain:
    """Session, arming, inputs and sensors."""

    def __init__(self, plant: Plant, now_ns: Callable[[], int]) -> None:
        self._plant = plant
        self._now_ns = now_ns
        self._used: set[int] = set()

    def session(self, values: dict[str, Any]) -> int:
        """Handler: a controller opens its session."""
        state = self._plant.state
        if state["armed"] or state["closed"]:
            return IS_ARMED
        time_out_ms = float(values["new_time_out_ms"])
        if not 1.0 <= time_out_ms <= 250.0:
            return BAD_TIME_OUT
        state["session"] = int(values["new_session_nonce"])
        state["time_out_ns"] = round(time_out_ms * 1e6)
        state["sequence_1"] = 0
        state["sequence_2"] = 0
        return ACCEPTED

    def command(self, values: dict[str, Any]) -> int:
        """Handler: arm with a fresh token, disarm, or test the chopper where no beam can pass it."""
        state = self._plant.state
        command = int(values["command"])
        token = int(values["new_arm_token"])
        if command == CHAIN_ARM:
            if self._chopper_test() in (TEST_OPENING, TEST_CLOSING):
                return CHOPPER_TEST
            if state["session"] == 0:
                return NO_SESSION
            inputs = state["door_closed"] and state["room_searched"] and state["room_allocated"]
            if not inputs or state["emergency_stop"] or state["abort_button"] or state["backup_trip"]:
                return INPUT_OPEN
            if token == 0 or token in self._used:
                return TOKEN_USED
            self._used.add(token)
        elif command == CHAIN_TEST:
            if state["stopper_command"] or state["stopper_open"]:
                return STOPPER_OPEN
            if state["armed"] or state["closed"]:
                return ARMED
        elif command != CHAIN_DISARM:
            return UNKNOWN
        state["chain_command"] = command
        state["chain_command_token"] = token
        state["chain_commands"] += 1
        return ACCEPTED

    def _chopper_test(self) -> int:
        """Running from the command on, which the plant takes with its next frame: no old result is taken for a new one.

        Only the plant writes the state: on the real clock it may begin a frame between any two writes from here.
        """
        state = self._plant.state
        asked = state["chain_command"] == CHAIN_TEST and state["chain_commands"] != state["chain_commands_done"]
        return TEST_OPENING if asked else int(state["chopper_test"])

    def device(self, register_map: RegisterMap, identity: DeviceIdentity) -> RegisterDevice:
        """The chain behind its register map."""
        state = self._plant.state
        tune = self._plant.tune
        parameters = self._plant.parameters

        def flag(name: str) -> Callable[[], bool]:
            return lambda: bool(state[name])

        def spilling() -> bool:
            return bool(state["spill_on"])

        def ion() -> str:
            asked = IONS[int(tune[0]["ion"])]
            return other_ion(asked) if parameters["ion_error"] else IONS[int(tune[0]["true_ion"])]

        return RegisterDevice(
            register_map,
            identity=identity,
            now_ns=self._now_ns,
            getters={
                "closed": flag("closed"),
                "armed": flag("armed"),
                "arm_token": lambda: int(state["token"]) if state["armed"] else 0,
                "open_cause": lambda: int(state["cause"]),
                "permits_received": lambda: int(state["permits"]) & 0xFFFFFFFF,
                "permits_rejected": lambda: int(state["rejected"]) & 0xFFFFFFFF,
                "session_nonce": lambda: int(state["session"]),
                "time_out_ms": lambda: float(state["time_out_ns"]) * 1e-6,
                "emergency_stop": flag("emergency_stop"),
                "door_closed": flag("door_closed"),
                "room_searched": flag("room_searched"),
                "room_allocated": flag("room_allocated"),
                "energy_sensor_mev_u": lambda: (
                    float(tune[0]["energy_mev_u"]) + float(parameters["energy_offset_mev_u"]) if spilling() else 0.0
                ),
                "ion_sensor": lambda: CODES[ion()] if spilling() else 0,
                "port_sensor_deg": lambda: _turned(float(tune[0]["port_deg"]), float(parameters["port_error_deg"])),
                "beam_present": flag("beam_present"),
                "chopper_open": flag("beam_on"),
                "chopper_test": self._chopper_test,
                "chopper_close_ms": lambda: float(state["chopper_close_ns"]) * 1e-6,
            },
            requests={"session": self.session, "command": self.command},
        )
