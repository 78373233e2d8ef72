"""Ions that came further from their planned place than the position limit, and what they give at the worst point.

The plant's truth has, per visit, the number of ions, their mean place and their mean squared distance. Where part of a
visit's ions stand together at another place (a magnet that jumps, a beam that shifts), mean m and mean square q of the
distance from the planned place give both: they stand q / m away, and are m^2 / q of all. Where they are spread, as on
the way between two spots, the same numbers describe them as few and far, which errs on the side of too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.campaign.truth_dose import truth_dose
from controller.machine.program import LayerProgram


def nothing_planned(program: LayerProgram) -> LayerProgram:
    """The same visits at the same places, none of which is to get anything."""
    visits = program.visits.copy()
    visits["particles"] = 0.0
    return replace(program, visits=visits)


def misplaced(
    truths: Sequence[NDArray[Any]], units_per_particle: int, programs: Sequence[Sequence[LayerProgram]]
) -> tuple[float, float]:
    """Gy at the worst point from misplaced ions, and from them and ions too many together."""
    far, wanted = [], []
    for truth, layers in zip(truths, programs, strict=False):
        moved, plans = _field(truth, layers)
        far.append(moved)
        wanted.append(plans)
    nothing = [[nothing_planned(p) for p in layers] for layers in wanted]
    alone = truth_dose(far, units_per_particle, nothing).excess_gy
    return alone, truth_dose(truths, units_per_particle, wanted).excess_gy


def _field(truth: NDArray[Any], layers: Sequence[LayerProgram]) -> tuple[NDArray[Any], list[LayerProgram]]:
    """The misplaced ions of a field as a truth of their own, and the plan less them: they count as ions too many."""
    far = np.zeros_like(truth)
    plans = []
    for program in layers:
        visits = program.visits.copy()
        at = visits["visit"]
        units = truth["units"][at].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            x, y = truth["x"][at] / units, truth["y"][at] / units
            px, py = visits["x_mm"], visits["y_mm"]
            mean2 = (x - px) ** 2 + (y - py) ** 2
            square = truth["rr"][at] / units - 2.0 * (px * x + py * y) + px * px + py * py
            share = np.clip(mean2 / square, 0.0, 1.0)
            away = square / np.sqrt(mean2)
        beyond = np.flatnonzero((units > 0) & (away > visits["position_limit_mm"]))
        scale = away[beyond] / np.sqrt(mean2[beyond])
        moved = units[beyond] * share[beyond]
        rows = at[beyond]
        far["units"][rows] = np.round(moved).astype(np.int64)
        far["x"][rows] = far["units"][rows] * (px[beyond] + (x - px)[beyond] * scale)
        far["y"][rows] = far["units"][rows] * (py[beyond] + (y - py)[beyond] * scale)
        # who is elsewhere leaves no room in the plan: those that stay are judged against what was to come, less them
        visits["particles"][beyond] = np.maximum(0.0, visits["particles"][beyond] * (1.0 - share[beyond]))
        plans.append(replace(program, visits=visits))
    return far, plans
