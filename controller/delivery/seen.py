"""Visits as the frames showed them, for the journal while their layer runs: what a killed controller leaves behind.

The rings of the devices hold the authoritative rows, and are read when the layer has ended; until then this is what is
known. It counts only where the part was never closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.machine.program import LayerProgram
from controller.record.schema import ADDED_IN_2, QUALITY_FROM_FRAMES, VISIT_DTYPE

SAME = ("t_start_ns", "t_end_ns", "visit", "x_mm", "y_mm", "sigma_x_mm", "sigma_y_mm", "quality")


def visits_from_frames(rows: NDArray[Any], programs: Sequence[LayerProgram], unit: str, part: int) -> NDArray[Any]:
    """Rows of `VISIT_DTYPE` for measured visits (`controller.dose.memory.MEASURED`) of one field, in order.

    Beam-on time and currents are the engine's to say: 0 and NaN. Counts of electrometer 2 are 0 where its stream did
    not show them. `unit`: of the field's meterset, MU or NP.
    """
    found = [_of_layer(rows, program, unit, part) for program in programs if len(program.visits)]
    return np.concatenate([np.zeros(0, VISIT_DTYPE), *found])


def _of_layer(rows: NDArray[Any], program: LayerProgram, unit: str, part: int) -> NDArray[Any]:
    first, last = int(program.visits["visit"][0]), int(program.visits["visit"][-1])
    rows = rows[(rows["visit"] >= first) & (rows["visit"] <= last)]
    planned = program.visits[rows["visit"] - first]
    per_meterset = program.particles_per_mu if unit == "MU" else 1.0
    visits = np.zeros(len(rows), VISIT_DTYPE)
    for name in SAME:
        visits[name] = rows[name]
    for name in ("spot", "painting", "flags"):
        visits[name] = planned[name]
    visits["field"], visits["layer"], visits["part"] = program.field_index, program.layer_index, part
    visits["quality"] |= QUALITY_FROM_FRAMES
    visits["planned_particles"] = planned["particles"]
    visits["planned_meterset"] = planned["particles"] / per_meterset
    visits["planned_x_mm"], visits["planned_y_mm"] = planned["x_mm"], planned["y_mm"]
    for name in ADDED_IN_2:
        visits[name] = np.nan
    visits["x_current_a"] = visits["y_current_a"] = np.nan
    shown_2 = (rows["counts_2"] >= 0) & (rows["start_2"] >= 0)
    counts = (rows["counts_1"] - rows["start_1"], np.where(shown_2, rows["counts_2"] - rows["start_2"], 0))
    per_particle = (program.counts_per_particle, program.counts_per_particle_2)
    for number in (1, 2):
        late = np.nan_to_num(rows[f"late_{number}"])
        visits[f"counts_{number}"] = counts[number - 1]
        visits[f"late_counts_{number}"] = late
        visits[f"frame_counts_{number}"] = rows[f"delta_{number}"] - late
        own = counts[number - 1] - np.nan_to_num(rows[f"pedestal_{number}"]) + late
        visits[f"particles_{number}"] = own / per_particle[number - 1]
    visits["particles_2"][~shown_2] = 0.0
    for number in (1, 2):
        visits[f"meterset_{number}"] = visits[f"particles_{number}"] / per_meterset
    return visits
