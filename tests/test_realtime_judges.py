"""The real-time judgements one by one: at the very limit nothing latches, just beyond it the condition does.

They are called as the path calls them, on a memory that no frame has reached: what a test does not set is good.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from drivers.compiled import compiled
from interlocks import numbers
from interlocks.realtime import (
    PEDESTAL_SPAN_NS,
    SEEN_SHARE,
    begin_part,
    judge_part,
    judge_pedestal,
    judge_sequence,
    judge_strips,
    judge_visit,
    judge_width,
)
from tests.plan_models import spots
from tests.plant_rig import CARBON, monitor_path, programs_of

PROGRAM = programs_of(CARBON, spots([(2.0 * k, 0.0, 2.0) for k in range(25)]))[0]
UNITS = 1 << 20
"""Charge on the strips of one plane, where only the place matters."""


@compiled
def judge_first_row(m):
    """`judge_visit` of the first row of the ring."""
    judge_visit(m, m.measured[0], 10, 20)


class Judge:
    """A memory, and what it latches."""

    def __init__(self) -> None:
        self.monitor = monitor_path(CARBON, [PROGRAM]).monitor
        self.memory: Any = self.monitor.memory[0]
        self.limits: Any = self.monitor.limits
        self.state: Any = self.monitor.state
        self.running: Any = self.monitor.running
        self.control: Any = self.monitor.control
        self.plan: Any = self.monitor.plan[1]
        self.plan["y_strip_mm"] = 12.0  # not in the middle, where a wrong sign would not show
        self.running["visit"] = 1
        self.row: Any = self.monitor.measured[0]
        self.row["visit"] = 1
        self.row["delta_1"], self.row["delta_2"] = self.plan["preset"], self.plan["expected_2"]
        self.row["strip_counts"] = 1000
        self.row["strips_x"] = self.row["strips_y"] = 1000.0 * float(self.limits["strip_units_per_count"])
        for axis in ("x", "y"):
            scale = float(self.limits[f"strip_scale_{axis}"])
            self.row[f"{axis}_mm"] = float(self.plan[f"{axis}_strip_mm"]) / scale
            self.row[f"sigma_{axis}_mm"] = float(self.plan[f"sigma_{axis}_strip_mm"]) / scale

    def found(self) -> int:
        """What has been latched; forgotten with that."""
        number = int(self.state["trip"])
        self.state["trip"] = 0
        return number

    def visit(self) -> int:
        judge_first_row(self.memory)
        return self.found()

    def part(self, *, rest: bool = False) -> int:
        judge_part(self.memory, rest, 10, 20)
        return self.found()

    def show(self, counts: int, *, x_mm: float = 0.0, y_mm: float = 0.0, seen: float = 1.0) -> None:
        """A part of the visit: its counts, how far from its place, and the share of its charge on the strips."""
        units = round(counts * int(self.limits["strip_units_per_count"]) * seen)
        self.running["part_frames"], self.running["part_counts"] = 15, counts
        for axis, off_mm in (("x", x_mm), ("y", y_mm)):
            place_mm = float(self.plan[f"{axis}_strip_mm"]) + off_mm * float(self.limits[f"strip_scale_{axis}"])
            self.running[f"part_s0_{axis}"] = units
            self.running[f"part_s1_{axis}"] = round(units * (place_mm / float(self.limits[f"pitch_{axis}_mm"]) - 0.5))


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.mark.parametrize("counts", [1, -1])
def test_a_pedestal_is_judged_from_its_least_time_on_and_of_either_sign(judge: Judge, counts: int) -> None:
    judge_pedestal(judge.memory, counts * 10**6, PEDESTAL_SPAN_NS - 1, 10, 20)
    assert judge.found() == numbers.NONE
    judge_pedestal(judge.memory, counts * 10**6, PEDESTAL_SPAN_NS, 10, 20)
    assert judge.found() == numbers.PEDESTAL_HIGH
    judge.limits["pedestal_per_s"] = 1234.0 / float(PEDESTAL_SPAN_NS) * 1e9
    judge_pedestal(judge.memory, counts * 1234, PEDESTAL_SPAN_NS, 10, 20)
    assert judge.found() == numbers.NONE
    judge_pedestal(judge.memory, counts * 1235, PEDESTAL_SPAN_NS, 10, 20)
    assert judge.found() == numbers.PEDESTAL_HIGH


@pytest.mark.parametrize(
    ("begun", "lost", "visit", "good"),
    [
        (0, 0, 5, True),
        (0, 0, 4, False),
        (0, 0, 6, False),
        (0, 1, 6, True),
        (0, 1, 7, False),
        (5, 0, 5, False),
        (5, 0, 6, True),
        (5, 0, 7, False),
        (5, 1, 7, True),
        (5, 1, 8, False),
        (5, 0, 0, True),
        (7, 0, 6, False),
        (8, 0, 9, True),
        (9, 0, 10, False),
        (0, 9, 4, False),
        (8, 9, 10, False),
    ],
)
def test_the_visits_of_a_layer_from_5_to_9_come_in_their_order_and_once(
    judge: Judge, begun: int, lost: int, visit: int, good: bool
) -> None:
    judge.control["first_visit"], judge.control["last_visit"] = 5, 9
    judge.state["begun"], judge.running["lost"] = begun, lost
    judge_sequence(judge.memory, visit, 10, 20)
    assert judge.found() == (numbers.NONE if good else numbers.VISIT_SEQUENCE)


def test_a_good_visit_latches_nothing(judge: Judge) -> None:
    assert judge.visit() == numbers.NONE


@pytest.mark.parametrize("wanted", [10.0, 1000.0])
@pytest.mark.parametrize(
    ("delta", "plan", "floor", "number"),
    [
        ("delta_1", "preset", "spot_dose_counts", numbers.SPOT_DOSE_PRIMARY),
        ("delta_2", "expected_2", "secondary_counts", numbers.SPOT_DOSE_SECONDARY),
    ],
)
def test_a_visit_may_have_its_tolerance_and_not_more(
    judge: Judge, wanted: float, delta: str, plan: str, floor: str, number: int
) -> None:
    judge.plan[plan] = wanted
    more = max(wanted * float(judge.limits["spot_dose"]), float(judge.limits[floor]))
    judge.row[delta] = wanted + more
    assert judge.visit() == numbers.NONE
    judge.row[delta] = wanted + more + 0.5
    assert judge.visit() == number


@pytest.mark.parametrize(("more", "less"), [("particles_1", "particles_2"), ("particles_2", "particles_1")])
def test_the_monitors_are_compared_once_there_are_counts_enough_and_may_differ_by_the_limit(
    judge: Judge, more: str, less: str
) -> None:
    judge.plan["per_particle_1"] = 0.5
    judge.limits["disagreement_counts"] = 500.0
    judge.limits["disagreement"] = (1024.0 - 1000.0) / 1024.0
    judge.state[more], judge.state[less] = 1024.0, 1000.0
    assert judge.visit() == numbers.NONE
    judge.state[less] = 999.0
    assert judge.visit() == numbers.MONITORS_DISAGREE
    judge.state[more], judge.state[less] = 1000.0, 0.0
    assert judge.visit() == numbers.NONE, "too few counts to tell"
    judge.state[more] = 1001.0
    assert judge.visit() == numbers.MONITORS_DISAGREE


@pytest.mark.parametrize("plane", ["strips_x", "strips_y"])
def test_half_of_a_visits_charge_must_show_in_each_plane_once_it_is_enough(judge: Judge, plane: str) -> None:
    all_of_it = float(judge.row[plane])
    judge.row[plane] = SEEN_SHARE * all_of_it
    assert judge.visit() == numbers.NONE
    judge.row[plane] = 0.49 * all_of_it
    assert judge.visit() == numbers.SPOT_NOT_SEEN
    judge.row[plane] = 0.0
    judge.row["strip_counts"] = enough = round(2.0 * float(judge.limits["minimum_counts"]))
    assert judge.visit() == numbers.SPOT_NOT_SEEN
    judge.row["strip_counts"] = enough - 1
    assert judge.visit() == numbers.NONE


def test_bad_strips_are_judged_with_a_visit(judge: Judge) -> None:
    judge.state["bad_x"] = judge.limits["strips_bad"] + 1
    assert judge.visit() == numbers.STRIPS_BAD


def test_bad_strips_may_move_a_centroid_by_their_share_of_its_limit(judge: Judge) -> None:
    judge.row["strip_bias_mm"] = limit = float(judge.limits["bias_share"]) * float(judge.plan["position_limit_mm"])
    assert judge.visit() == numbers.NONE
    judge.row["strip_bias_mm"] = 1.01 * limit
    assert judge.visit() == numbers.STRIP_BIAS


@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_spot_may_be_as_far_off_as_its_limit_in_each_axis(judge: Judge, axis: str) -> None:
    judge.limits["strip_scale_x"] = judge.limits["strip_scale_y"] = 1.0
    judge.plan["x_strip_mm"], judge.plan["y_strip_mm"] = 16.0, 12.0
    judge.plan["sigma_x_strip_mm"] = judge.plan["sigma_y_strip_mm"] = 4.0
    judge.row["sigma_x_mm"] = judge.row["sigma_y_mm"] = 4.0
    judge.row["x_mm"], judge.row["y_mm"] = 16.0, 12.0
    judge.plan["position_limit_mm"] = 0.75
    for sign in (-1.0, 1.0):
        judge.row[f"{axis}_mm"] = float(judge.plan[f"{axis}_strip_mm"]) + sign * 0.75
        assert judge.visit() == numbers.NONE
        judge.row[f"{axis}_mm"] = float(judge.plan[f"{axis}_strip_mm"]) + sign * 0.76
        assert judge.visit() == numbers.SPOT_POSITION


@pytest.mark.parametrize("axis", ["x", "y"])
def test_the_width_of_each_axis_is_judged(judge: Judge, axis: str) -> None:
    judge.row[f"sigma_{axis}_mm"] *= 1.01 + float(judge.limits["width"])
    assert judge.visit() == numbers.SPOT_WIDTH


@pytest.mark.parametrize("axis", ["x", "y"])
def test_the_mean_of_twenty_errors_may_be_its_limit_in_each_axis(judge: Judge, axis: str) -> None:
    size = judge.monitor.memory["errors_x_mm"].shape[-1]
    judge.limits["strip_scale_x"] = judge.limits["strip_scale_y"] = 1.0
    judge.plan["x_strip_mm"], judge.plan["y_strip_mm"] = 16.0, 12.0
    judge.plan["sigma_x_strip_mm"] = judge.plan["sigma_y_strip_mm"] = 4.0
    judge.row["sigma_x_mm"] = judge.row["sigma_y_mm"] = 4.0
    judge.row["x_mm"], judge.row["y_mm"] = 16.0, 12.0
    judge.row[f"{axis}_mm"] += 0.5
    judge.limits["position_mean_mm"] = 0.5
    assert [judge.visit() for _ in range(size + 1)] == [numbers.NONE] * (size + 1)
    judge.row[f"{axis}_mm"] += 0.25
    judge.state["mean_count"] = 0
    found = [judge.visit() for _ in range(size)]
    assert found == [numbers.NONE] * (size - 1) + [numbers.POSITION_MEAN]


def test_a_visit_without_a_place_is_not_in_the_mean(judge: Judge) -> None:
    judge.row["x_mm"] = judge.row["y_mm"] = math.nan
    assert judge.visit() == numbers.NONE
    assert judge.state["mean_count"] == 0


def test_a_part_is_judged_once_it_has_the_charge_to_tell_and_then_forgotten(judge: Judge) -> None:
    enough = round(2.0 * float(judge.limits["minimum_counts"]))
    judge.show(enough - 1, x_mm=9.0)
    assert judge.part() == numbers.NONE
    assert judge.running["part_counts"] == enough - 1
    judge.show(enough, x_mm=9.0)
    assert judge.part() == numbers.SPOT_POSITION
    parts = [name for name in judge.running.dtype.names if name.startswith("part_")]
    assert len(parts) == 6
    assert [int(judge.running[name]) for name in parts] == [0] * 6


def test_a_part_begins_with_nothing(judge: Judge) -> None:
    judge.show(1000)
    begin_part(judge.memory)
    assert [int(judge.running[n]) for n in judge.running.dtype.names if n.startswith("part_")] == [0] * 6


@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_part_may_be_as_far_off_as_a_spot_and_twice_as_far_with_a_bad_strip(judge: Judge, axis: str) -> None:
    limit_mm = float(judge.plan["position_limit_mm"])
    off: Callable[[float], None] = lambda share: judge.show(1000, **{f"{axis}_mm": share * limit_mm})  # noqa: E731
    for sign in (-1, 1):
        off(0.99 * sign)
        assert judge.part() == numbers.NONE
        off(1.01 * sign)
        assert judge.part() == numbers.SPOT_POSITION
    for bad_x, bad_y in ((1, 0), (0, 1), (1, 1)):
        judge.state["bad_x"], judge.state["bad_y"] = bad_x, bad_y
        off(1.99)
        assert judge.part() == numbers.NONE
        off(2.01)
        assert judge.part() == numbers.SPOT_POSITION


def test_a_part_at_its_very_limit_is_good(judge: Judge) -> None:
    judge.limits["strip_scale_x"] = judge.limits["strip_scale_y"] = 1.0
    judge.limits["pitch_x_mm"] = judge.limits["pitch_y_mm"] = 2.0
    judge.plan["x_strip_mm"], judge.plan["y_strip_mm"], judge.plan["position_limit_mm"] = 16.0, 12.0, 0.75
    judge.show(1024, x_mm=0.75)
    assert judge.part() == numbers.NONE
    judge.show(1024, x_mm=0.76)
    assert judge.part() == numbers.SPOT_POSITION


@pytest.mark.parametrize("plane", ["part_s0_x", "part_s0_y"])
def test_half_of_a_parts_charge_must_show_in_each_plane_but_for_the_rest_of_a_visit(judge: Judge, plane: str) -> None:
    judge.show(1000, seen=SEEN_SHARE)
    assert judge.part() == numbers.NONE
    for rest, number in ((False, numbers.SPOT_NOT_SEEN), (True, numbers.NONE)):
        judge.show(1000)
        judge.running[plane] = int(judge.running[plane]) * 49 // 100
        assert judge.part(rest=rest) == number
    judge.state["bad_x"] = 1
    judge.show(1000, seen=SEEN_SHARE / 2)
    assert judge.part() == numbers.NONE


@pytest.mark.parametrize("plane", ["bad_x", "bad_y"])
def test_so_many_strips_of_a_plane_may_be_bad(judge: Judge, plane: str) -> None:
    judge.state[plane] = judge.limits["strips_bad"]
    judge_strips(judge.memory, 10, 20)
    assert judge.found() == numbers.NONE
    judge.state[plane] += 1
    judge_strips(judge.memory, 10, 20)
    assert judge.found() == numbers.STRIPS_BAD


@pytest.mark.parametrize(
    ("sigma_mm", "expected_mm", "good"),
    [
        (4.0, 4.0, True),
        (5.0, 4.0, True),
        (5.01, 4.0, False),
        (3.0, 4.0, True),
        (2.99, 4.0, False),
        (math.nan, 4.0, False),
        (4.0, 0.0, True),
        (4.0, -1.0, True),
    ],
)
def test_a_width_may_differ_by_its_limit_and_none_is_not_a_good_one(
    judge: Judge, sigma_mm: float, expected_mm: float, good: bool
) -> None:
    judge.limits["width"] = 0.25
    judge_width(judge.memory, sigma_mm, expected_mm, 10, 20)
    assert judge.found() == (numbers.NONE if good else numbers.SPOT_WIDTH)
