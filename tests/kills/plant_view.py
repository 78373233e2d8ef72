"""The simulated plant, looked at from another process while it runs: its beam, its chain, with its own monotonic times.

The room's memory is a mapped file; nobody notices that it is read. Nothing of this goes through the controller, the
guard or a stream, so it is true whatever becomes of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.contracts import SELF_TEST_VISIT
from simulators.live import live_path, look_at_live
from simulators.plant.state import COUNT_UNIT, ION_UNIT, RING, STEP_NS

POLL_S = 0.001


class PlantView:
    """One running room."""

    def __init__(self, state_file: Path) -> None:
        """`state_file`: what the room was given as --state."""
        self._state_file = state_file
        self._memory = look_at_live(live_path(state_file))

    def __getitem__(self, name: str) -> int:
        """A word of the plant's state, see `simulators.plant.state.STATE_FIELDS`."""
        return int(self._memory["state"][name][0])

    @property
    def lag_ms(self) -> float:
        """How far the plant is behind the clock; it makes up for that without leaving a frame out."""
        return (time.monotonic_ns() - self["t_ns"]) * 1e-6

    @property
    def particles(self) -> float:
        """That have left the nozzle since the room's start."""
        return self["particles"] / ION_UNIT

    def retained(self, number: int) -> int:
        """What electrometer `number` has counted."""
        return self[f"retained_{number}"] + (self[f"counts_{number}"] >> 24)

    def pedestal_per_s(self, number: int) -> float:
        """Counts that electrometer `number` shows without any beam."""
        return int(self._memory["parameters"][f"pedestal_{number}"][0]) / COUNT_UNIT / (STEP_NS * 1e-9)

    def rings(self, first: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Rows of the engine's and both electrometers' result rings from row `first` on, self-tests left out."""
        at = np.arange(first, self["results"]) % RING
        rows = [self._memory[name][0][at].copy() for name in ("results", "latches_1", "latches_2")]
        ours = rows[0]["visit"] != SELF_TEST_VISIT
        return rows[0][ours], rows[1][ours], rows[2][ours]

    def truths(self) -> list[NDArray[Any]]:
        """What really was delivered, by visit, an array a field begun since the room's start."""
        former: list[NDArray[Any]] = []
        if self._state_file.exists():
            with np.load(self._state_file, allow_pickle=False) as kept:
                names = [name for name in kept.files if name.startswith("truth_")]
                former = [kept[f"truth_{n}"] for n in range(len(names) - 1)]
        return [*former, self._memory["truth"][0].copy()]

    async def until(self, what: str, condition: Callable[[], Any], limit_s: float, worst: list[float]) -> None:
        """Wait for something; the largest lag of the plant meanwhile goes to `worst`."""
        try:
            async with asyncio.timeout(limit_s):
                while not condition():
                    worst[0] = max(worst[0], self.lag_ms)
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise AssertionError(f"waited {limit_s:g} s in vain: {what}") from None
