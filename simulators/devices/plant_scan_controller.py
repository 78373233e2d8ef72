"""The scan controller's registers, bound to the plant's spot engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.registers import RegisterMap, registers_crc32
from drivers.wires.ports import DeviceBusy
from simulators.devices.plant_electrometer import Destination, StreamDestinations
from simulators.devices.register_device import DeviceIdentity, RegisterDevice, TableHooks
from simulators.plant.state import (
    CAPACITY,
    CMD_ABORT,
    CMD_ARM,
    CMD_START,
    ENG_ARMED,
    ENG_HELD,
    ENG_RUNNING,
    RING,
    Plant,
)

ACCEPTED, UNKNOWN, WRONG_STATE, BAD_CRC, BANK_EMPTY, NO_CHAIN = range(6)


class PlantScanController:
    """Two banks, a command mailbox, a ring of results."""

    def __init__(
        self,
        plant: Plant,
        now_ns: Callable[[], int],
        armed: Callable[[int], None],
        streams_changed: Callable[[int, int, Destination], None],
    ) -> None:
        """`armed` is told the first visit of each layer that is armed.

        `streams_changed(3, slot, destination)` is told where frames shall go.
        """
        self._plant = plant
        self._now_ns = now_ns
        self._armed = armed
        self._destinations = StreamDestinations(3, streams_changed)
        self._device: RegisterDevice | None = None

    def _in_use(self, bank: int) -> bool:
        state = self._plant.state
        return state["eng_state"] in (ENG_ARMED, ENG_RUNNING) and state["eng_bank"] == bank

    def check_rows(self, first: int, count: int) -> None:
        """The bank that runs cannot be written."""
        if self._in_use(first // CAPACITY) or self._in_use((first + count - 1) // CAPACITY):
            raise DeviceBusy

    def rows_written(self, first: int, count: int) -> None:
        """Rows of a bank arrived: into the engine's memory."""
        assert self._device is not None
        rows = self._device.rows("visits", first, count)
        bank, start = divmod(first, CAPACITY)
        here = slice(start, start + count)
        self._plant.x_set_ma[bank, here] = np.rint(rows["x_current_a"] * 1000)
        self._plant.y_set_ma[bank, here] = np.rint(rows["y_current_a"] * 1000)
        self._plant.preset[bank, here] = rows["preset_counts"]
        self._plant.time_limit_ms[bank, here] = rows["time_limit_ms"]
        self._plant.flags[bank, here] = rows["flags"]

    def check_heads(self, first: int, count: int) -> None:
        """Nor its head."""
        for bank in range(first, first + count):
            if self._in_use(bank):
                raise DeviceBusy

    def heads_written(self, first: int, count: int) -> None:
        """A bank's head arrived: it says how many rows count."""
        assert self._device is not None
        for bank, head in enumerate(self._device.rows("heads", first, count), first):
            self._plant.first_visit[bank] = head["first_visit"]
            self._plant.early_on[bank] = head["early_on_counts"]
            self._plant.early_off[bank] = head["early_off_counts"]
            self._plant.gated[bank] = head["gated"]
            self._plant.rows[bank] = head["visits"]

    def crc32(self, bank: int) -> int:
        """CRC of a bank's rows in use and head, as they lie in the registers."""
        assert self._device is not None
        rows = int(self._plant.rows[bank])
        words = self._device.words("visits")[bank * CAPACITY : bank * CAPACITY + rows]
        return registers_crc32(words, self._device.words("heads")[bank : bank + 1])

    def command(self, values: dict[str, Any]) -> int:
        """Handler of the command block: refuse what cannot be, else the mailbox."""
        state = self._plant.state
        command = int(values["command"])
        bank = int(values["command_bank"])
        if not CMD_ARM <= command <= CMD_ABORT:
            return UNKNOWN
        if command == CMD_ARM:
            if state["eng_state"] == ENG_RUNNING:
                return WRONG_STATE
            if self._plant.rows[bank] == 0:
                return BANK_EMPTY
            if int(values["command_crc32"]) != self.crc32(bank):
                return BAD_CRC
            self._armed(int(self._plant.first_visit[bank]))
        if command == CMD_START:
            if state["eng_state"] != ENG_ARMED:
                return WRONG_STATE
            if state["closed"] == 0:
                return NO_CHAIN
        aborts = state["eng_command"] == CMD_ABORT and state["eng_commands"] != state["eng_commands_done"]
        if aborts and command != CMD_ABORT:
            return WRONG_STATE  # it is being aborted: nothing of this layer is there to be held or started
        state["eng_command_bank"] = bank
        state["eng_command_token"] = int(values["command_token"])
        state["eng_command_x_ma"] = round(values["command_x_offset_a"] * 1000)
        state["eng_command_y_ma"] = round(values["command_y_offset_a"] * 1000)
        state["eng_command"] = command
        state["eng_commands"] += 1
        return ACCEPTED

    def shown_state(self) -> int:
        """State with held shown as such."""
        state = self._plant.state
        held = state["eng_hold"] or (state["eng_gated"] and not state["gate_open"])
        return ENG_HELD if state["eng_state"] == ENG_RUNNING and held else int(state["eng_state"])

    def results(self, first: int, count: int) -> NDArray[np.void]:
        """Rows of the result ring by their wire numbers."""
        assert self._device is not None
        rows = self._plant.results[np.arange(first, first + count) % RING]
        shown = np.zeros(count, self._device.codec("results").dtype)
        for name in ("visit", "counts", "t_start_ns", "t_end_ns", "beam_on_us", "flags"):
            shown[name] = rows[name]
        shown["x_current_a"] = rows["x_current_ma"] * 1e-3
        shown["y_current_a"] = rows["y_current_ma"] * 1e-3
        return shown

    def acknowledge(self, rows: int) -> None:
        """Setter of `acknowledged`."""
        self._plant.state["results_ack"] = rows

    def device(self, register_map: RegisterMap, identity: DeviceIdentity) -> RegisterDevice:
        """The scan controller behind its register map."""
        state = self._plant.state
        self._device = RegisterDevice(
            register_map,
            identity=identity,
            now_ns=self._now_ns,
            getters={
                "state": self.shown_state,
                "trip": lambda: int(state["eng_trip"]),
                "bank": lambda: int(state["eng_bank"]),
                "visit": lambda: int(state["eng_visit"]),
                "results": lambda: int(state["results"]),
                "x_current_a": lambda: float(state["current_x_ma"]) * 1e-3,
                "y_current_a": lambda: float(state["current_y_ma"]) * 1e-3,
                "x_offset_a": lambda: float(state["eng_offset_x_ma"]) * 1e-3,
                "y_offset_a": lambda: float(state["eng_offset_y_ma"]) * 1e-3,
                "armed_token": lambda: int(state["eng_token"]) if state["eng_state"] in (ENG_ARMED, ENG_RUNNING) else 0,
                "crc32_0": lambda: self.crc32(0),
                "crc32_1": lambda: self.crc32(1),
                "streaming": self._destinations.any,
            },
            setters={"acknowledged": self.acknowledge, **self._destinations.setters()},
            requests={"command": self.command},
            tables={
                "visits": TableHooks(check=self.check_rows, written=self.rows_written),
                "heads": TableHooks(check=self.check_heads, written=self.heads_written),
                "results": TableHooks(read=self.results),
            },
        )
        return self._device
