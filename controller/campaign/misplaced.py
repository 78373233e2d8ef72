"""Ions that came further from their planned place than the position limit, and what they give at the worst point.

The plant's truth has, per visit, the number of ions, their mean place and their mean squared distance. Where part of a
visit's ions stand together at another place (a magnet that jumps, a beam that shifts), mean m and mean square q of the
distance from the planned place give both: they stand q / m away, and are m^2 / q of all. Ions that came on the way from
the visit before look like a group two thirds of the way back, three quarters of them: such a group is spread over the
way. Anything else that is spread counts as one group: an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.campaign.truth_dose import truth_dose
from controller.machine.program import LayerProgram

ALONG = 0.9
"""Cosine to the way from the visit before, from which ions count as being on it."""
STEP_SIGMAS = 0.5
"""Between two groups of those that are spread over the way."""


def nothing_planned(program: LayerProgram) -> LayerProgram:
    """The same visits at the same places, none of which is to get anything."""
    visits = program.visits.copy()
    visits["particles"] = 0.0
    return replace(program, visits=visits)


def misplaced(
    truths: Sequence[NDArray[Any]],
    units_per_particle: int,
    programs: Sequence[Sequence[LayerProgram]],
    calm: Sequence[NDArray[Any]] = (),
) -> tuple[float, float]:
    """Gy at the worst point from misplaced ions, and from them and ions too many together.

    `calm`: truths of the same treatment without fault. What a visit's ions stand off as a whole (calibration, noise) is
    taken from there, or else a small offset of all would pass for a great one of a few.
    """
    far, all_of_them = [], []
    for index, (truth, layers) in enumerate(zip(truths, programs, strict=False)):
        moved, whole = _field(truth, layers, calm[index] if index < len(calm) else truth[:0])
        far.append(moved)
        all_of_them.append(whole)
    nothing = [[nothing_planned(p) for p in layers] for layers in programs]
    alone = truth_dose(far, units_per_particle, nothing).excess_gy
    return alone, truth_dose(all_of_them, units_per_particle, programs).excess_gy


def _field(
    truth: NDArray[Any], layers: Sequence[LayerProgram], calm: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The misplaced ions of a field as rows of their own beyond its visits; and these with what stayed in place."""
    used = np.flatnonzero(truth["units"])
    last = max([0, *used.tolist()[-1:], *(int(p.visits["visit"][-1]) for p in layers if len(p.visits))])
    stay = truth[: last + 1].copy()
    groups: list[tuple[int, float, float]] = []
    for program in layers:
        places = np.stack([program.visits["x_mm"], program.visits["y_mm"]], axis=1)
        for at, row in enumerate(program.visits):
            visit = int(row["visit"])
            before = places[at - 1] if at else None
            usual = _moments(calm[visit], places[at]) if visit < len(calm) else (np.zeros(2), 0.0)
            limit_mm = float(row["position_limit_mm"])
            found = _groups(stay[visit], places[at], usual, limit_mm, before, program.sigma_x_mm)
            for units, x_mm, y_mm in found:
                stay["units"][visit] -= units
                stay["x"][visit] -= units * x_mm
                stay["y"][visit] -= units * y_mm
            groups += found
    far = np.zeros(last + 1 + len(groups), truth.dtype)
    for at, (units, x_mm, y_mm) in enumerate(groups, last + 1):
        far["units"][at], far["x"][at], far["y"][at] = units, units * x_mm, units * y_mm
    whole = far.copy()
    whole[: last + 1] = stay
    return far, whole


def _moments(truth: Any, place: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Mean and mean square of the distance from a place, mm and mm2."""
    units = int(truth["units"])
    if units == 0:
        return np.zeros(2), 0.0
    mean = np.array([float(truth["x"]), float(truth["y"])]) / units - place
    return mean, max(0.0, float(truth["rr"]) / units - 2.0 * float(place @ (place + mean)) + float(place @ place))


def _groups(
    truth: Any,
    place: NDArray[Any],
    usual: tuple[NDArray[Any], float],
    limit_mm: float,
    before: NDArray[Any] | None,
    sigma_mm: float,
) -> list[tuple[int, float, float]]:
    """Misplaced ions of a visit: units and place of each group. `usual`: moments of the visit without fault."""
    units = int(truth["units"])
    if units == 0:
        return []
    mean, square = _moments(truth, place)
    # about the place where the visit usually stands: the square of a sum is not the sum of the squares
    mean = mean - usual[0]
    square = max(0.0, square - usual[1] - 2.0 * float(mean @ usual[0]))
    mean2 = float(mean @ mean)
    if mean2 <= 0.0 or square <= limit_mm * math.sqrt(mean2):
        return []
    share = min(1.0, mean2 / square)
    away = mean * max(1.0, square / mean2)
    if before is not None:
        way = before - place
        length = float(np.hypot(*way))
        along = float(away @ way) / length if length else 0.0
        if length > limit_mm and along > ALONG * float(np.hypot(*away)) and 0.5 * length <= along <= 0.8 * length:
            count = max(1, math.ceil(length / (STEP_SIGMAS * sigma_mm)))
            each = round(min(1.0, share / 0.75) * units / count)
            steps = [place + way * (k + 0.5) / count for k in range(count)]
            return [(each, float(x), float(y)) for x, y in steps if math.hypot(x - place[0], y - place[1]) > limit_mm]
    x_mm, y_mm = place + away
    return [(round(share * units), float(x_mm), float(y_mm))]
