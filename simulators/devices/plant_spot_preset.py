"""The spot preset of electrometer 1 in step mode: registers bound to the plant's counting of visits.

The PC announces a layer, brings presets one ahead, and lets one visit at a time go; counting and ending are the
plant's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.registers import RegisterMap, TableCodec
from simulators.devices.register_device import Getter, RequestHandler, Setter, TableHooks
from simulators.plant.state import (
    CAPACITY,
    CMD_ABORT,
    CMD_ARM,
    CMD_HOLD,
    CMD_RESUME,
    CMD_START,
    ENG_ARMED,
    ENG_HELD,
    ENG_RUNNING,
    RING,
    SUB_MOVE,
    Plant,
)

ACCEPTED, UNKNOWN, WRONG_STATE, WRONG_VISIT, NO_PRESET, NO_CHAIN = range(6)
ARM, HOLD, RESUME, ABORT = 1, 2, 3, 4
BEAM_OFF_BOTH_ENDS = 3


class PlantSpotPreset:
    """One layer's presets, as they come."""

    def __init__(self, plant: Plant, armed: Callable[[int], None]) -> None:
        """`armed` is told the first visit of each layer that is armed."""
        self._plant = plant
        self._armed = armed
        self._bank = 0

    def _post(self, command: int, token: int = 0) -> None:
        state = self._plant.state
        aborts = state["eng_command"] == CMD_ABORT and state["eng_commands"] != state["eng_commands_done"]
        if aborts and command != CMD_ABORT:
            return  # it is being aborted: nothing of this layer is there to be held or started
        state["eng_command_bank"] = self._bank
        state["eng_command_token"] = token
        state["eng_command"] = command
        state["eng_commands"] += 1

    def sequence(self, values: dict[str, Any]) -> int:
        """Handler of the block for a whole layer."""
        command = int(values["sequence"])
        if command == ARM:
            return self._arm(values)
        if command not in (HOLD, RESUME, ABORT):
            return UNKNOWN
        self._post({HOLD: CMD_HOLD, RESUME: CMD_RESUME, ABORT: CMD_ABORT}[command])
        return ACCEPTED

    def _arm(self, values: dict[str, Any]) -> int:
        plant, state = self._plant, self._plant.state
        if state["eng_state"] == ENG_RUNNING:
            return WRONG_STATE
        first, visits = int(values["sequence_first_visit"]), int(values["sequence_visits"])
        if first < 1 or not 1 <= visits <= CAPACITY:
            return WRONG_VISIT
        # electrometer 2 finds a visit's limit by its id: use the bank in which it has it
        self._bank = int(np.argmax(plant.backup_first == first))
        plant.first_visit[self._bank] = first
        plant.rows[self._bank] = visits
        plant.early_on[self._bank] = plant.early_off[self._bank] = int(values["sequence_early_counts"])
        plant.gated[self._bank] = int(values["sequence_gated"])
        state["step_rows"] = 0
        state["step_go"] = 0
        self._armed(first)
        self._post(CMD_ARM, int(values["sequence_token"]))
        return ACCEPTED

    def step(self, values: dict[str, Any]) -> int:
        """Handler of the block for one visit: everything is judged before anything is done."""
        plant, state = self._plant, self._plant.state
        go, following = int(values["step_visit"]), int(values["step_next_visit"])
        first, rows = int(plant.first_visit[self._bank]), int(state["step_rows"])
        if state["eng_state"] not in (ENG_ARMED, ENG_RUNNING):
            return WRONG_STATE
        if go:
            if go != (first if state["eng_state"] == ENG_ARMED else int(state["eng_visit"])) or go <= state["step_go"]:
                return WRONG_VISIT
            if go - first >= rows:
                return NO_PRESET
            if state["eng_state"] == ENG_RUNNING and state["eng_sub"] != SUB_MOVE:
                return WRONG_STATE
            if state["closed"] == 0 or state["token"] != state["eng_token"]:
                return NO_CHAIN
        if following:
            ahead = following - max(go, int(state["eng_visit"]), first - 1)
            if following != first + rows or rows >= plant.rows[self._bank] or ahead > 1:
                return WRONG_VISIT
            if values["step_next_counts"] < 1:
                return NO_PRESET
            plant.preset[self._bank, rows] = values["step_next_counts"]
            plant.time_limit_ms[self._bank, rows] = values["step_next_limit_ms"]
            plant.flags[self._bank, rows] = BEAM_OFF_BOTH_ENDS
            state["step_rows"] = rows + 1
        if go:
            state["step_go"] = go
            if state["eng_state"] == ENG_ARMED:
                self._post(CMD_START)
        return ACCEPTED

    def shown_state(self) -> int:
        """State with held shown as such."""
        state = self._plant.state
        held = state["eng_hold"] or (state["eng_gated"] and not state["gate_open"])
        return ENG_HELD if state["eng_state"] == ENG_RUNNING and held else int(state["eng_state"])

    def waiting(self) -> bool:
        """The visit on the line has its preset, and no go yet."""
        state = self._plant.state
        moving = state["eng_state"] == ENG_RUNNING and state["eng_sub"] == SUB_MOVE
        return bool(moving and state["step_go"] < state["eng_visit"])

    def spots(self, codec: TableCodec, first: int, count: int) -> NDArray[np.void]:
        """Rows of the ring by their wire numbers."""
        rows = self._plant.results[np.arange(first, first + count) % RING]
        shown = np.zeros(count, codec.dtype)
        for name in ("visit", "counts", "t_start_ns", "t_end_ns", "beam_on_us", "flags"):
            shown[name] = rows[name]
        return shown

    def _acknowledge(self, rows: int) -> None:
        self._plant.state["results_ack"] = rows

    def getters(self) -> dict[str, Getter]:
        """For the electrometer's register device."""
        state = self._plant.state
        return {
            "spot_state": self.shown_state,
            "spot_trip": lambda: int(state["eng_trip"]),
            "spot_visit": lambda: int(state["eng_visit"]),
            "spot_waiting": self.waiting,
            "last_beam_us": lambda: int(self._plant.results[(state["results"] - 1) % RING]["beam_on_us"]),
            "spots": lambda: int(state["results"]),
            "armed_token": lambda: int(state["eng_token"]) if state["eng_state"] in (ENG_ARMED, ENG_RUNNING) else 0,
        }

    def setters(self) -> dict[str, Setter]:
        """For the electrometer's register device."""
        return {"spots_acknowledged": self._acknowledge}

    def requests(self) -> dict[str, RequestHandler]:
        """For the electrometer's register device."""
        return {"sequence": self.sequence, "step": self.step}

    def tables(self, register_map: RegisterMap) -> dict[str, TableHooks]:
        """For the electrometer's register device."""
        codec = TableCodec(register_map.table("spots"))
        return {"spots": TableHooks(read=lambda first, count: self.spots(codec, first, count))}
