"""The columns of delivered visits, for many visits at once: what was planned, what the engine saw, what was counted.

A layer has hundreds of visits, and the next one waits for its booking. Each line does for all visits what one would
do for one, in the same order of operations, so that a visit's values do not depend on which others are booked with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.dose.memory import MEASURED_FIELDS, record_type
from controller.machine.program import LayerProgram
from controller.record.schema import (
    QUALITY_FRAMES_LOST,
    QUALITY_NO_POSITION,
    QUALITY_REST_FORGONE,
    QUALITY_SPLIT,
    VISIT_PARTIAL,
)

MEASURED = record_type(MEASURED_FIELDS)
STOPPED = 1
SPLIT = 2
FORGONE = 4
"""Flags of the engine's result rows."""


def fill(
    out: NDArray[Any],
    program: LayerProgram,
    planned: NDArray[Any],
    engine: NDArray[Any] | Mapping[str, Any],
    per_meterset: float,
    part: int,
) -> None:
    """Put in all but counts and position: `planned` and `engine` have a row (or a column's value) for each visit."""
    for name in ("visit", "t_start_ns", "t_end_ns", "beam_on_ns", "x_current_a", "y_current_a"):
        out[name] = engine[name]
    for name in ("spot", "painting"):
        out[name] = planned[name]
    out["field"] = program.field_index
    out["layer"] = program.layer_index
    out["part"] = part
    out["planned_particles"] = planned["particles"]
    out["planned_meterset"] = planned["particles"] / per_meterset
    out["planned_x_mm"] = planned["x_mm"]
    out["planned_y_mm"] = planned["y_mm"]
    flags = np.asarray(engine["flags"]).astype(np.int64)
    out["flags"] = planned["flags"].astype(np.int64) | np.where(flags & STOPPED, VISIT_PARTIAL, 0)
    out["quality"] = engine_quality(flags)


def engine_quality(flags: Any) -> NDArray[np.int64]:
    """What the flags of the engine's result rows say of how visits were given."""
    flags = np.asarray(flags).astype(np.int64)
    found: NDArray[np.int64] = np.where(flags & SPLIT, QUALITY_SPLIT, 0).astype(np.int64)
    found |= np.where(flags & FORGONE, QUALITY_REST_FORGONE, 0).astype(np.int64)
    return found


@dataclass(frozen=True, slots=True)
class Measured:
    """What the frames showed of some visits: a row each, and whether there was one."""

    rows: NDArray[Any]
    found: NDArray[np.bool_]

    @classmethod
    def take_from(cls, measured: dict[int, NDArray[Any]], visits: list[int]) -> Measured:
        """Take the rows of these visits out of a dictionary; rows of zeros where there are none."""
        rows = np.zeros(len(visits), MEASURED)
        found = np.zeros(len(visits), bool)
        for at, visit in enumerate(visits):
            row = measured.pop(visit, None)
            if row is not None:
                rows[at] = row
                found[at] = True
        return cls(rows, found)

    def disputes(self, ends_1: NDArray[np.int64], ends_2: NDArray[np.int64]) -> list[int]:
        """Places where no frame was lost and the frames still say otherwise than the rings."""
        whole = self.found & (self.rows["quality"] & QUALITY_FRAMES_LOST == 0)
        differ = (self.rows["counts_1"] != ends_1) | (self.rows["counts_2"] != ends_2)
        return [int(at) for at in np.flatnonzero(whole & differ)]


def count(
    out: NDArray[Any],
    measured: Measured,
    ends_1: NDArray[np.int64],
    ends_2: NDArray[np.int64],
    seen: NDArray[np.int64],
    last: tuple[int, int, int] | None,
    program: LayerProgram,
    per_meterset: float,
) -> None:
    """Put in counts, particles, meterset and position.

    `ends_*`: latched counts at each visit's end. `last`: visit and latched counts of the visit booked before. A visit
    starts where the frames saw it start, else where the one before it ended, else `seen` before its end: the engine's
    own count of it.
    """
    visits = out["visit"].astype(np.int64)
    before = (-2, 0, 0) if last is None else last  # no visit follows on -2
    follows = np.concatenate(((before[0],), visits[:-1])) == visits - 1
    starts_1 = np.where(follows, np.concatenate(((before[1],), ends_1[:-1])), ends_1 - seen)
    starts_2 = np.where(follows, np.concatenate(((before[2],), ends_2[:-1])), ends_2)
    rows, found = measured.rows, measured.found
    starts_1 = np.where(found, rows["start_1"], starts_1)
    starts_2 = np.where(found & (rows["start_2"] >= 0), rows["start_2"], starts_2)
    out["quality"] |= np.where(found, rows["quality"], QUALITY_FRAMES_LOST | QUALITY_NO_POSITION).astype(np.uint16)
    for name in ("x_mm", "y_mm", "sigma_x_mm", "sigma_y_mm"):
        out[name] = np.where(found, rows[name], np.nan)
    numbers = (
        (1, ends_1 - starts_1, program.counts_per_particle),
        (2, ends_2 - starts_2, program.counts_per_particle_2),
    )
    for number, counts, counts_per_particle in numbers:
        late, pedestal = rows[f"late_{number}"], rows[f"pedestal_{number}"]
        out[f"counts_{number}"] = counts
        out[f"late_counts_{number}"] = late
        out[f"frame_counts_{number}"] = np.where(found, rows[f"delta_{number}"] - late, np.nan)
        out[f"particles_{number}"] = (counts - pedestal + late) / counts_per_particle
        out[f"meterset_{number}"] = out[f"particles_{number}"] / per_meterset
