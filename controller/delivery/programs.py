"""What a part delivers: the plan's programs in the part's counts, less what earlier parts gave, with its limits.

The limit of a field counts over all its parts: a resumed part gets the field's limit minus what was delivered, in this
part's counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controller.clock import now_ns
from controller.delivery.run import Run
from controller.delivery.tail_visits import given_by
from controller.dose.path import whole_field_limits
from controller.machine.field_program import build_field
from controller.machine.remaining import Forgone, Given, remaining_field
from controller.record.schema import ADDED_IN_2, QUALITY_FORGONE, QUALITY_NO_POSITION, VISIT_DTYPE
from drivers.errors import Refused


def build_programs(run: Run, visits: NDArray[np.void]) -> None:
    """Build all fields; `visits`: what earlier parts delivered. Raises `Refused` where the limits leave too little."""
    assert run.corrections is not None
    for index, field in enumerate(run.plan.fields):
        planned = build_field(run.site, field, index, run.corrections)
        given = given_by(visits[visits["field"] == index], planned)
        left = remaining_field(run.site, field, planned, given, run.corrections)
        run.planned.append(planned)
        run.programs.append(left.programs)
        run.field_limits.append(_limits_left(run, index, given))
        for forgone in left.forgone:
            _write_down(run, forgone)


def _limits_left(run: Run, index: int, given: Given) -> tuple[float, float] | None:
    if not given.any:
        return None
    planned, delivered = np.zeros(2), np.zeros(2)
    for program in run.planned[index]:
        v = program.visits
        planned += (v["preset_counts"].sum(dtype="f8"), v["expected_counts_2"].sum())
        delivered += (
            given.particles_1[v["visit"]].sum() * program.counts_per_particle,
            given.particles_2[v["visit"]].sum() * program.counts_per_particle_2,
        )
    limits = whole_field_limits(float(planned[0]), float(planned[1]), run.site.tolerances)
    left = (limits[0] - float(delivered[0]), limits[1] - float(delivered[1]))
    wanted = (
        sum(float(p.visits["preset_counts"].sum(dtype="f8")) for p in run.programs[index]),
        sum(float(p.visits["expected_counts_2"].sum()) for p in run.programs[index]),
    )
    for number in (1, 2):
        if 0 < wanted[number - 1] > left[number - 1]:
            raise Refused(
                f"field {run.plan.fields[index].name}: electrometer {number}: the rest wants {wanted[number - 1]:.0f} "
                f"counts, {left[number - 1]:.0f} are left of the field's limit of {limits[number - 1]:.0f} after what "
                "was delivered; a physicist must look at the counts of the parts before"
            )
    return left


def _write_down(run: Run, forgone: Forgone) -> None:
    """An event, and a visit without beam that closes the spot's account."""
    program = forgone.program
    planned = program.visits[forgone.row]
    per_meterset = program.particles_per_mu if run.plan.fields[program.field_index].unit == "MU" else 1.0
    run.event(
        "forgone",
        field=program.field_index,
        layer=program.layer_index,
        visit=int(planned["visit"]),
        spot=int(planned["spot"]),
        particles=forgone.particles,
        meterset=forgone.particles / per_meterset,
        reason=forgone.reason,
    )
    row = np.zeros(1, VISIT_DTYPE)
    for name in ("visit", "spot", "painting"):
        row[name] = planned[name]
    row["field"], row["layer"], row["part"] = program.field_index, program.layer_index, run.part
    row["t_start_ns"] = row["t_end_ns"] = now_ns()
    row["quality"] = QUALITY_FORGONE | QUALITY_NO_POSITION
    row["planned_x_mm"], row["planned_y_mm"] = planned["x_mm"], planned["y_mm"]
    for name in ("x_mm", "y_mm", "sigma_x_mm", "sigma_y_mm", "x_current_a", "y_current_a", *ADDED_IN_2):
        row[name] = np.nan
    run.journal.visits(row)
