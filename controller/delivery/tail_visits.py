"""Rows of the result rings that no running controller read, as visits of the journal; and what no ring explains.

The counts are the electrometers', to the count. Where the journal still has the same visit as the frames showed it
(real clock), its position, width, pedestal and late charge are taken from there. Else the position is the engine's
currents' to say, and the charge that drifts over from visit to visit is the site's model of it: `early_on_counts`, what
is in the chamber at the layer's rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.delivery.booking import STOPPED, engine_quality
from controller.delivery.comparison import Tail, starts
from controller.delivery.shortfall import find_short, mark_short
from controller.machine.program import BEAM_OFF_AFTER, LayerProgram
from controller.machine.remaining import Given
from controller.record.carried import Carried
from controller.record.schema import (
    ADDED_IN_2,
    QUALITY_FRAMES_LOST,
    QUALITY_FROM_COUNTER,
    QUALITY_FROM_FRAMES,
    QUALITY_FROM_RINGS,
    QUALITY_NO_POSITION,
    VISIT_DTYPE,
    VISIT_PARTIAL,
    VISIT_SHORT,
)
from sites.schema import Tolerances

FROM_FRAMES = ("x_mm", "y_mm", "sigma_x_mm", "sigma_y_mm", "late_counts_1", "late_counts_2")


def given_before(carried: Carried, field: int, part: int, planned: Sequence[LayerProgram]) -> Given:
    """What parts before `part` gave to a field."""
    visits = carried.visits
    return given_by(visits[(visits["field"] == field) & (visits["part"] < part)], planned)


def given_by(visits: NDArray[np.void], planned: Sequence[LayerProgram]) -> Given:
    """Sum up the visits of one field."""
    count = sum(len(program.visits) for program in planned)
    given = Given.nothing(count)
    ids = visits["visit"]
    np.add.at(given.particles_1, ids, visits["particles_1"])
    np.add.at(given.particles_2, ids, visits["particles_2"])
    given.begun[ids] = True
    given.short[ids[(visits["flags"] & VISIT_SHORT) != 0]] = True
    given.complete[ids[(visits["flags"] & VISIT_PARTIAL) == 0]] = True
    return given


def program_of_visit(programs: Sequence[LayerProgram], visit: int) -> LayerProgram | None:
    """The program that has a visit."""
    for program in programs:
        if len(program.visits) and int(program.visits["visit"][0]) <= visit <= int(program.visits["visit"][-1]):
            return program
    return None


def tail_visits(
    carried: Carried,
    tail: Tail,
    programs: Sequence[LayerProgram],
    planned_programs: Sequence[LayerProgram],
    tolerances: Tolerances,
    unit: str,
    pedestal_2_per_s: float,
) -> NDArray[np.void]:
    """Rows of `VISIT_DTYPE` for all rows of the tail, of the part that delivered them.

    A visit that ran when the controller died stays open until somebody ends it, and its latched counts hold the
    pedestal of that time. The dose is therefore by the engine's own count of electrometer 1, with beam only, and by
    electrometer 2 less its pedestal. What ended short of its plan is marked so (`delivery.shortfall`).

    `programs`: what that part delivered; `planned_programs`: the whole field's.
    """
    base = carried.baseline
    assert base is not None
    rows = np.zeros(len(tail.engine), VISIT_DTYPE)
    first = {number: starts(carried, tail, number) for number in (1, 2)}
    shown = {int(r["visit"]): r for r in carried.seen if r["part"] == base.part and r["field"] == base.field}
    for i, (out, row) in enumerate(zip(rows, tail.engine, strict=True)):
        visit = int(row["visit"])
        program = program_of_visit(programs, visit)
        assert program is not None  # the comparison has seen to it
        planned = program.visits[visit - int(program.visits["visit"][0])]
        stopped = bool(int(row["flags"]) & STOPPED)
        _fill(out, program, planned, base.part, unit)
        for name in ("t_start_ns", "t_end_ns", "beam_on_ns", "x_current_a", "y_current_a"):
            out[name] = row[name]
        out["flags"] = int(planned["flags"]) | (VISIT_PARTIAL if stopped else 0)
        out["quality"] = QUALITY_FROM_RINGS | int(engine_quality(row["flags"]))
        out["counts_1"] = tail.end(1, i) - first[1][i]
        out["counts_2"] = tail.end(2, i) - first[2][i]
        seen = shown.get(visit)
        if seen is not None and int(seen["counts_1"]) == int(out["counts_1"]):
            for name in FROM_FRAMES:
                out[name] = seen[name]
            out["frame_counts_1"], out["frame_counts_2"] = seen["frame_counts_1"], seen["frame_counts_2"]
            out["quality"] |= int(seen["quality"]) & ~QUALITY_FROM_FRAMES
        else:
            out["quality"] |= QUALITY_FRAMES_LOST | QUALITY_NO_POSITION
            _late_by_model(out, i, tail, planned, program, stopped=stopped)
        idle_ns = int(row["t_end_ns"]) - int(row["t_start_ns"]) - int(row["beam_on_ns"])
        if i > 0:
            idle_ns += int(row["t_start_ns"]) - int(tail.engine["t_end_ns"][i - 1])
        idle = (int(out["counts_1"]) - int(row["counts"]), pedestal_2_per_s * max(0, idle_ns) * 1e-9)
        _dose(out, program, unit, idle)
        mark_short(rows[i : i + 1], find_short(rows[i : i + 1], program, planned_programs, tolerances))
    return rows


def _late_by_model(out: Any, i: int, tail: Tail, planned: Any, program: LayerProgram, *, stopped: bool) -> None:
    """Charge that came after the visit, minus charge of the one before that came in it; see `controller.dose`."""
    follows = i > 0 and int(tail.engine["t_start_ns"][i]) == int(tail.engine["t_end_ns"][i - 1])
    row = int(planned["visit"]) - int(program.visits["visit"][0])
    came_on = follows or (i == 0 and row > 0)
    before_off = row > 0 and int(program.visits["flags"][row - 1]) & BEAM_OFF_AFTER
    inherits = came_on and row > 0 and not before_off
    leaves = not stopped and not int(planned["flags"]) & BEAM_OFF_AFTER
    for number, per_particle in ((1, program.counts_per_particle), (2, program.counts_per_particle_2)):
        drifting = program.early_on_counts / program.counts_per_particle * per_particle
        out[f"late_counts_{number}"] = drifting * (int(leaves) - int(inherits))


def _fill(out: Any, program: LayerProgram, planned: Any, part: int, unit: str) -> None:
    per_meterset = program.particles_per_mu if unit == "MU" else 1.0
    for name in ("visit", "spot", "painting"):
        out[name] = planned[name]
    out["field"], out["layer"], out["part"] = program.field_index, program.layer_index, part
    out["planned_particles"] = planned["particles"]
    out["planned_meterset"] = planned["particles"] / per_meterset
    out["planned_x_mm"], out["planned_y_mm"] = planned["x_mm"], planned["y_mm"]
    for name in (
        "x_mm", "y_mm", "sigma_x_mm", "sigma_y_mm", "x_current_a", "y_current_a", "frame_counts_1", "frame_counts_2",
        *ADDED_IN_2,
    ):  # fmt: skip
        out[name] = np.nan


def _dose(out: Any, program: LayerProgram, unit: str, idle: tuple[float, float] = (0.0, 0.0)) -> None:
    """Particles and meterset from counts. `idle`: counts of both monitors that came without beam."""
    per_meterset = program.particles_per_mu if unit == "MU" else 1.0
    for number, per_particle in ((1, program.counts_per_particle), (2, program.counts_per_particle_2)):
        own = int(out[f"counts_{number}"]) - idle[number - 1] + float(out[f"late_counts_{number}"])
        out[f"particles_{number}"] = own / per_particle
        out[f"meterset_{number}"] = out[f"particles_{number}"] / per_meterset


def by_retained_counter(
    carried: Carried,
    tail: NDArray[np.void],
    programs: Sequence[LayerProgram],
    unit: str,
    unexplained: tuple[int, int],
    t_ns: int,
) -> NDArray[np.void]:
    """Visits for counts that are in the retained counters and in no ring, in the order of delivery.

    They are taken to have gone where beam would have gone: to the first visit that is not complete up to its preset,
    then to the next. Counts beyond the last visit of the field stay with that one. `t_ns`: where the journal says
    nothing of their time.
    """
    base = carried.baseline
    assert base is not None
    left = max(0, unexplained[0])
    share_2 = max(0, unexplained[1]) / left if left else 0.0
    known = {int(r["visit"]): r for r in (*carried.since, *tail)}
    rows: list[NDArray[np.void]] = []
    order = [(program, planned) for program in programs for planned in program.visits]
    for program, planned in order:
        before = known.get(int(planned["visit"]))
        if before is not None and not int(before["flags"]) & VISIT_PARTIAL:
            continue
        if left <= 0:
            break
        out = np.zeros(1, VISIT_DTYPE)
        if before is not None:
            out[0] = before
        else:
            _fill(out[0], program, planned, base.part, unit)
            out["t_start_ns"] = out["t_end_ns"] = carried.last_ns if base.part == carried.parts else t_ns
            out["flags"] = planned["flags"]
        room = max(0, int(planned["preset_counts"]) - int(out["counts_1"][0]))
        taken = min(left, room)
        left -= taken
        out["counts_1"] += taken
        out["counts_2"] += round(taken * share_2)
        whole = taken >= room
        out["flags"] = int(out["flags"][0]) & ~(VISIT_PARTIAL | VISIT_SHORT) | (0 if whole else VISIT_PARTIAL)
        out["quality"] |= QUALITY_FROM_COUNTER | QUALITY_NO_POSITION | QUALITY_FRAMES_LOST
        _dose(out[0], program, unit)
        rows.append(out)
    found: NDArray[np.void] = np.concatenate([np.zeros(0, VISIT_DTYPE), *rows])
    if left > 0 and order:
        program, planned = order[-1]
        if len(found) == 0 or found["visit"][-1] != planned["visit"]:
            found = np.append(found, np.array([known[int(planned["visit"])]], VISIT_DTYPE))
        found["counts_1"][-1] += left
        found["counts_2"][-1] += round(left * share_2)
        found["quality"][-1] |= QUALITY_FROM_COUNTER
        _dose(found[-1], program, unit)
    return found
