"""The judge of simulated treatments against cases that can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from controller.campaign.truth_dose import TruthDose, truth_dose
from controller.machine.overdose import peak_dose_gy_per_particle
from controller.machine.program import VISIT_PLAN_DTYPE, LayerProgram

UNITS = 1 << 20
SIGMA_MM = 3.0
ENERGY = 200.0
PEAK_GY = peak_dose_gy_per_particle("12C", ENERGY, SIGMA_MM, SIGMA_MM)
TRUTH = np.dtype([("units", "<i8"), ("x", "<f8"), ("y", "<f8")])
Spot = tuple[float, float, float]


def layer(spots: Sequence[Spot], first_visit: int = 1) -> LayerProgram:
    """A layer of spots (x, y, particles)."""
    visits = np.zeros(len(spots), VISIT_PLAN_DTYPE)
    visits["visit"] = first_visit + np.arange(len(spots))
    for row, (x_mm, y_mm, particles) in zip(visits, spots, strict=True):
        row["x_mm"], row["y_mm"], row["particles"] = x_mm, y_mm, particles
    return LayerProgram(0, 0, ENERGY, ENERGY, "12C", 0, 1e8, 1.0, 1.0, 1.0, 0, 0, SIGMA_MM, SIGMA_MM, 1.0, 1.0, visits)


def given(*spots: Spot) -> NDArray[Any]:
    """A field's truth: visit 0, then the visits from 1 on."""
    truth = np.zeros(len(spots) + 10, TRUTH)
    for visit, (x_mm, y_mm, particles) in enumerate(spots):
        units = round(particles * UNITS)
        truth[visit] = (units, units * x_mm, units * y_mm)
    return truth


NOTHING = (0.0, 0.0, 0.0)


def judged(truth: NDArray[Any], *spots: Spot) -> TruthDose:
    return truth_dose([truth], UNITS, [[layer(spots)]])


def test_as_planned_nothing_is_too_much() -> None:
    dose = judged(given(NOTHING, (1.0, 2.0, 1e6), (9.0, 2.0, 1e6)), (1.0, 2.0, 1e6), (9.0, 2.0, 1e6))
    assert dose == TruthDose(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1)


def test_too_many_ions_in_one_spot_count_with_its_peak() -> None:
    dose = judged(given(NOTHING, (0.0, 0.0, 1.3e6)), (0.0, 0.0, 1e6))
    assert dose.excess_gy == pytest.approx(0.3e6 * PEAK_GY)
    assert dose.worst_gy == pytest.approx(0.3e6 * PEAK_GY)
    # one spot's area is the area of its Gaussian: the average is its peak
    assert dose.average_gy == pytest.approx(0.3e6 * PEAK_GY)
    assert dose.excess_particles == pytest.approx(0.3e6)
    assert dose.misplaced_gy == pytest.approx(0.0, abs=1e-12)


def test_neighbours_add_by_their_distance() -> None:
    apart = 3.0
    dose = judged(given(NOTHING, (0.0, 0.0, 1.1e6), (apart, 0.0, 1.2e6)), (0.0, 0.0, 1e6), (apart, 0.0, 1e6))
    overlap = math.exp(-0.5 * (apart / SIGMA_MM) ** 2)
    assert dose.excess_gy == pytest.approx((0.2e6 + 0.1e6 * overlap) * PEAK_GY)


def test_what_is_missing_in_one_spot_makes_up_for_nothing_in_another() -> None:
    dose = judged(given(NOTHING, (0.0, 0.0, 1.1e6), (2.0, 0.0, 0.2e6)), (0.0, 0.0, 1e6), (2.0, 0.0, 1e6))
    assert dose.excess_gy == pytest.approx(0.1e6 * PEAK_GY)
    assert dose.worst_gy == pytest.approx(0.1e6 * PEAK_GY)


def test_a_spot_beside_its_place_counts_where_it_came() -> None:
    dose = judged(given(NOTHING, (4.0, 0.0, 1e6)), (0.0, 0.0, 1e6))
    assert dose.excess_gy == 0.0
    assert dose.misplaced_gy == pytest.approx(1e6 * PEAK_GY * (1.0 - math.exp(-0.5 * (4.0 / SIGMA_MM) ** 2)))
    assert dose.worst_gy == pytest.approx(dose.misplaced_gy)


def test_a_field_shifted_as_a_whole_hurts_at_its_edge() -> None:
    row = [(float(x), 0.0, 1e6) for x in range(0, 60, 2)]
    shifted = given(NOTHING, *[(x + 1.0, y, n) for x, y, n in row])
    alone = judged(given(NOTHING, (1.0, 0.0, 1e6)), (0.0, 0.0, 1e6))
    dose = judged(shifted, *row)
    inside = judged(given(NOTHING, *[(x + 1.0, y, n) for x, y, n in row]), *[(x + 1.0, y, n) for x, y, n in row])
    assert inside.worst_gy == pytest.approx(0.0, abs=1e-12)
    assert dose.misplaced_gy > alone.misplaced_gy


def test_beam_outside_any_visit_is_all_too_much() -> None:
    dose = judged(given((5.0, 5.0, 2e5), (0.0, 0.0, 1e6)), (0.0, 0.0, 1e6))
    assert dose.unplanned_particles == pytest.approx(2e5)
    assert dose.excess_gy == pytest.approx(2e5 * PEAK_GY)


def test_the_worst_field_is_told() -> None:
    fine, bad = given(NOTHING, (0.0, 0.0, 1e6)), given(NOTHING, (0.0, 0.0, 1.5e6))
    program = layer([(0.0, 0.0, 1e6)])
    dose = truth_dose([fine, bad], UNITS, [[program], [program]])
    assert (dose.field, dose.excess_gy) == (2, pytest.approx(0.5e6 * PEAK_GY))


def test_without_beam_there_is_nothing_to_judge() -> None:
    assert judged(given(NOTHING, NOTHING), (0.0, 0.0, 1e6)).field == 0
