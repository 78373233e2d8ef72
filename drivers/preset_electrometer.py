"""Electrometer 1 in step mode: an electrometer whose spot preset ends beam by itself; the PC only lets visits go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivers.contracts import SpotStatus
from drivers.deadline import Deadline
from drivers.dose_monitor import Electrometer

ARM, HOLD, RESUME, ABORT = 1, 2, 3, 4
SPOT = ("spot_state", "spot_trip", "spot_visit", "spot_waiting")
STATUS = (*SPOT, "last_beam_us", "spots", "spots_acknowledged", "armed_token")


@dataclass(frozen=True, slots=True)
class Preset:
    """What ends a visit."""

    visit: int
    counts: int
    limit_ms: int


class PresetElectrometer(Electrometer):
    """`drivers.contracts.Electrometer` and a spot preset, over a register map of class preset_electrometer."""

    async def arm_layer(
        self, *, first_visit: int, visits: int, early_counts: int, gated: bool, arm_token: int, deadline: Deadline
    ) -> None:
        """Announce a layer; nothing of it goes yet."""
        values = {
            "sequence": ARM,
            "sequence_token": arm_token,
            "sequence_first_visit": first_visit,
            "sequence_visits": visits,
            "sequence_early_counts": early_counts,
            "sequence_gated": gated,
        }
        await self.link.request("sequence", values, deadline)

    async def step(self, go: int, following: Preset | None, deadline: Deadline) -> None:
        """Let visit `go` have beam (0: none) and bring the preset of the one after it: one transaction, read back."""
        values = {"step_visit": go}
        if following is not None:
            values["step_next_visit"] = following.visit
            values["step_next_counts"] = following.counts
            values["step_next_limit_ms"] = following.limit_ms
        await self.link.request("step", values, deadline)

    async def command(self, command: int, deadline: Deadline) -> None:
        """HOLD, RESUME or ABORT; returns when the device has taken it."""
        await self.link.request("sequence", {"sequence": command}, deadline)

    async def spot(self, deadline: Deadline) -> SpotStatus:
        """What the preset is doing, rings and token included."""
        got = await self.link.read(STATUS, deadline)
        return SpotStatus(
            got["spot_state"],
            got["spot_trip"],
            got["spot_visit"],
            got["spot_waiting"],
            got["last_beam_us"],
            got["spots"],
            got["spots_acknowledged"],
            got["armed_token"],
        )

    async def spots(self, first: int, count: int, deadline: Deadline) -> NDArray[np.void]:
        """Rows [first, first + count) of the ring of spots, columns of the map's table."""
        return await self.link.read_rows("spots", first, count, deadline)

    async def acknowledge_spots(self, rows: int, deadline: Deadline) -> None:
        """Rows before this one are journalled and may be overwritten."""
        await self.link.write({"spots_acknowledged": rows}, deadline)

    def label(self, state: int) -> str:
        """Name of a layer's state."""
        return self.map.register("spot_state").field.label(state)
