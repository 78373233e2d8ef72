"""From layers to programs: every number that ends or limits beam, on plans small enough to follow by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.machine.dosimetry import Corrections, measured_corrections, nominal_corrections
from controller.machine.field_program import build_field, field_counts, treatment_machine
from controller.machine.intensity import choose_intensity, drift_time_s
from controller.machine.layer_program import POSITION_LIMIT_FLOOR_MM, LayerRefused
from controller.machine.optics import Optics, spot_sigma_mm
from controller.machine.overdose import peak_dose_gy_per_particle
from controller.machine.program import BEAM_OFF_AFTER, BEAM_OFF_MOVE, LayerProgram
from controller.machine.runaway import runaways
from controller.machine.spacing import nearest_neighbour_mm
from controller.machine.wrong_monitor import visit_dose_gy, wrong_monitor_excess_gy
from controller.plan.model import Layer, PlanField
from drivers.errors import Refused
from sites.loader import load_site
from sites.schema import Site
from tests.plan_models import layer, plan_field, proton_field, spots

CARBON = load_site("carbon-fixed")
PROTON = load_site("proton-gantry")


def changed(site: Site, section: str, **values: Any) -> Site:
    return site.model_copy(update={section: getattr(site, section).model_copy(update=values)})


def build(site: Site, field: PlanField, corrections: Corrections | None = None) -> tuple[LayerProgram, ...]:
    return build_field(site, field, 0, corrections or nominal_corrections(site.dosimetry))


def one(site: Site, field_layer: Layer, **changes: Any) -> LayerProgram:
    make = proton_field if site is PROTON else plan_field
    return build(site, make(field_layer, **changes))[0]


def test_visits_are_numbered_over_the_field_and_zero_weight_spots_get_none() -> None:
    first = spots([(0, 0, 2.0), (4, 0, 0.0), (8, 0, 2.0)])
    empty = spots([(0, 0, 0.0)], energy_mev_u=245.0)
    last = spots([(0, 0, 2.0)], energy_mev_u=240.0)
    programs = build(CARBON, plan_field(first, empty, last))
    assert [program.visits["visit"].tolist() for program in programs] == [[1, 2], [], [3]]
    assert programs[0].visits["spot"].tolist() == [0, 2]
    assert [program.layer_index for program in programs] == [0, 1, 2]
    assert programs[1].beam_time_s == 0.0


def test_paintings_follow_each_other_each_in_the_listed_order() -> None:
    visits = one(CARBON, spots([(8, 0, 3.0), (0, 0, 6.0), (4, 0, 4.5)], paintings=3)).visits
    assert visits["painting"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert visits["spot"].tolist() == [0, 1, 2] * 3
    assert visits["x_mm"].tolist() == [8, 0, 4] * 3
    assert visits["meterset"].tolist() == [1.0, 2.0, 1.5] * 3


def test_particles_are_meterset_times_calibration_or_the_meterset_itself() -> None:
    mu = one(CARBON, layer())
    assert mu.visits["particles"][0] == pytest.approx(2.0 * 1.25e5 * 2.5**0.77)
    assert mu.particles_per_mu == pytest.approx(1.25e5 * 2.5**0.77)
    particles = one(CARBON, layer(meterset=(3e5,) * 9), unit="NP")
    assert particles.visits["particles"].tolist() == [3e5] * 9
    assert particles.particles_per_mu == mu.particles_per_mu


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.5, 50.0), min_size=1, max_size=40),
    st.integers(1, 7),
    st.floats(0.95, 1.1),
)
def test_presets_are_whole_and_their_sum_is_right_to_one_count(
    metersets: list[float], paintings: int, ktp_value: float
) -> None:
    points = [(2.0 * index, 0.0, meterset) for index, meterset in enumerate(metersets)]
    corrections = Corrections(ktp_value, 20.0, 1013.25)
    program = build(CARBON, plan_field(spots(points, paintings=paintings)), corrections)[0]
    exact = program.visits["particles"] * program.counts_per_particle
    presets = program.visits["preset_counts"].astype(float)
    assert np.abs(np.cumsum(presets) - np.cumsum(exact)).max() <= 0.5 + 1e-6
    assert np.abs(presets - exact).max() <= 1.0 + 1e-6
    total = sum(metersets) * program.particles_per_mu * program.counts_per_particle
    assert abs(presets.sum() - total) <= 0.5 + 1e-6


def test_warm_thin_air_lowers_presets_and_expected_counts() -> None:
    field = plan_field(layer(meterset=(50.0,) * 9))
    nominal, warm = (
        build(CARBON, field, corrections)[0].visits
        for corrections in (nominal_corrections(CARBON.dosimetry), measured_corrections(22.0, 1005.0, CARBON.dosimetry))
    )
    assert nominal["preset_counts"].sum() / warm["preset_counts"].sum() == pytest.approx(1.0151, abs=5e-5)
    assert nominal["expected_counts_2"].sum() / warm["expected_counts_2"].sum() == pytest.approx(1.0151, abs=5e-5)


def test_currents_have_the_resolution_of_the_register_and_hit_the_spot() -> None:
    program = one(CARBON, layer())
    visits = program.visits
    for name in ("x_current_a", "y_current_a"):
        np.testing.assert_allclose(visits[name] * 1000, np.rint(visits[name] * 1000), atol=1e-6)
    optics = Optics(CARBON, CARBON.treatment_machines["REF-C"])
    x, y = optics.position_mm(program.energy_mev_u, visits["x_current_a"], visits["y_current_a"])
    np.testing.assert_allclose(x, visits["x_mm"], atol=0.01)
    np.testing.assert_allclose(y, visits["y_mm"], atol=0.01)
    np.testing.assert_allclose(visits["x_strip_mm"], visits["x_mm"] * 8000 / 9000)
    assert program.strip_scale_y == pytest.approx(7500 / 8500)


def test_raster_beam_goes_off_over_gaps_and_at_the_layers_end_only() -> None:
    flags = one(CARBON, spots([(0, 0, 2.0), (4, 0, 2.0), (30, 0, 2.0), (38, 0, 2.0)])).visits["flags"].tolist()
    assert flags == [BEAM_OFF_MOVE, BEAM_OFF_AFTER, BEAM_OFF_MOVE, BEAM_OFF_AFTER]  # 8 mm is still no gap


def test_discrete_beam_goes_off_for_every_move() -> None:
    visits = one(PROTON, spots([(0, 0, 2.0), (2, 0, 2.0)], energy_mev_u=120.0, tune_id="4.0")).visits
    assert visits["flags"].tolist() == [BEAM_OFF_MOVE | BEAM_OFF_AFTER] * 2


def test_early_counts_are_what_still_arrives_after_the_decision() -> None:
    program = one(CARBON, layer())
    per_s = program.rate_per_s * program.counts_per_particle
    assert program.early_on_counts == round(per_s * 50e-6)
    assert program.early_off_counts == round(per_s * 300e-6)


def test_the_backup_is_the_share_or_the_floor_and_what_arrives_late() -> None:
    visits_of = one(CARBON, spots([(0, 0, 2.0), (4, 0, 15.0)]))
    visits, expected = visits_of.visits, visits_of.visits["expected_counts_2"]
    late = visits_of.rate_per_s * 280e-6 * visits_of.counts_per_particle_2
    share = CARBON.tolerances.secondary_spot * expected
    assert share.min() > CARBON.tolerances.secondary_spot_counts
    np.testing.assert_array_equal(visits["backup_counts"], np.ceil(expected + share + late))
    loose = changed(CARBON, "tolerances", secondary_spot_counts=3e4)
    visits = one(loose, spots([(0, 0, 2.0), (4, 0, 15.0)])).visits
    np.testing.assert_array_equal(visits["backup_counts"], np.ceil(visits["expected_counts_2"] + 3e4))


def test_the_backup_of_a_large_spot_is_capped_where_all_its_excess_gives_a_quarter_gray() -> None:
    program = one(CARBON, spots([(0, 0, 100.0)]))
    visit = program.visits[0]
    excess = (visit["backup_counts"] - visit["expected_counts_2"]) / program.counts_per_particle_2
    # until the chain has turned, the charge is collected and beam is off; and electrometer 2 may read 0.3 % low
    excess += program.rate_per_s * (100e-6 + 30e-6 + 250e-6) + 0.003 * visit["particles"]
    dose = excess * peak_dose_gy_per_particle("12C", program.energy_mev_u, program.sigma_x_mm, program.sigma_y_mm)
    assert dose == pytest.approx(0.25, rel=1e-3)
    assert visit["backup_counts"] < 1.05 * visit["expected_counts_2"]


def test_the_cap_leaves_good_beam_what_both_gains_may_be_apart() -> None:
    visit = one(CARBON, spots([(0, 0, 400.0)])).visits[0]
    assert visit["backup_counts"] == math.ceil(visit["expected_counts_2"] * 1.006)


def test_the_cap_never_goes_below_the_floor() -> None:
    floor = changed(CARBON, "tolerances", secondary_spot_counts=50_000.0)
    visit = one(floor, spots([(0, 0, 400.0)])).visits[0]
    assert visit["backup_counts"] == math.ceil(visit["expected_counts_2"] + 50_000.0)


def test_only_a_visit_above_what_the_gains_are_known_to_can_exceed_the_limit_with_monitor_1_wrong() -> None:
    program = one(CARBON, spots([(0, 0, 2.0), (4, 0, 100.0), (8, 0, 400.0)]))
    excess_gy, dose_gy = wrong_monitor_excess_gy(CARBON, program), visit_dose_gy(program)
    late_gy = 2.0 * program.rate_per_s * 380e-6 * dose_gy[0] / program.visits["particles"][0]
    assert excess_gy[0] == pytest.approx(0.05 * dose_gy[0] + 0.003 * dose_gy[0] + late_gy, rel=0.2)
    assert excess_gy[1] == pytest.approx(0.25, rel=1e-3)
    # 0.6 % apart and 0.3 % of its own, and what comes after the decision
    assert excess_gy[2] == pytest.approx(0.009 * dose_gy[2] + late_gy / 2.0, rel=1e-2)


def test_time_limits_are_twice_the_planned_time_and_at_least_the_floor() -> None:
    program = one(CARBON, spots([(0, 0, 0.9), (4, 0, 400.0)]))
    planned_ms = program.visits["particles"] / program.rate_per_s * 1e3
    assert planned_ms[0] < 5.0
    assert program.visits["time_limit_ms"].tolist() == [10, math.ceil(2 * planned_ms[1])]


def test_a_spot_longer_than_the_timer_is_refused() -> None:
    tight = changed(CARBON, "tolerances", spot_time_factor=1000.0)
    with pytest.raises(LayerRefused, match=r"\[SPOT_TOO_LONG\] beam 1, layer 0, spot 1: it takes .* exceeds 65535 ms"):
        one(tight, spots([(0, 0, 0.2), (4, 0, 40.0)]))


def test_position_limits_stay_below_the_distance_to_the_next_spot() -> None:
    points = [(0, 0, 2.0), (1.0, 0, 2.0), (50, 0, 2.0), (50.2, 0, 2.0), (90, 0, 2.0), (90, 0, 2.0), (70, 0, 0.0)]
    visits = one(CARBON, spots(points, paintings=2)).visits
    assert (
        visits["position_limit_mm"].tolist()
        == [
            *(0.75, 0.75, POSITION_LIMIT_FLOOR_MM, POSITION_LIMIT_FLOOR_MM),
            *([pytest.approx(max(1.0, 0.5 * 2.14), abs=0.05)] * 2),
        ]
        * 2
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-20, 20), st.integers(-20, 20)), max_size=60),
    st.floats(0.1, 12.0),
)
def test_nearest_neighbours_are_those_that_comparing_all_pairs_gives(
    places: list[tuple[int, int]], within_mm: float
) -> None:
    x = np.array([px for px, _ in places], dtype=float) * 0.7
    y = np.array([py for _, py in places], dtype=float) * 1.3
    found = nearest_neighbour_mm(x, y, within_mm)
    for index in range(len(places)):
        distances = np.hypot(x - x[index], y - y[index])
        near = distances[(distances > 1e-3) & (distances <= within_mm)]
        assert found[index] == pytest.approx(near.min() if len(near) else math.inf)


HARMLESS = 1e-12
"""Gy of a particle: so little that no rate is unsafe."""


def all_off(count: int) -> np.ndarray[Any, Any]:
    return np.ones(count, dtype=bool)


@pytest.mark.parametrize(
    ("particles", "level", "reason"),
    [(2.1e3, 0, "must last at least 1 ms"), (8.1e3, 2, "1 ms"), (3.3e4, 4, "1 ms"), (1e7, 6, "saturate")],
)
def test_the_highest_level_is_taken_at_which_the_smallest_visit_lasts(
    particles: float, level: int, reason: str
) -> None:
    choice = choose_intensity(CARBON, "12C", 250.0, np.array([particles, 1e7]), ~all_off(2), HARMLESS)
    assert choice.level == level
    assert choice.rate_per_s == CARBON.accelerator.intensities_per_s[level]
    assert reason in choice.bound.reason


def test_three_drift_times_count_where_they_are_longer_than_a_millisecond() -> None:
    primary = CARBON.dosimetry.primary.model_copy(update={"high_voltage_v": 400.0})
    assert drift_time_s(primary) == pytest.approx(390e-6, rel=0.01)  # 5 mm, 400 V
    assert drift_time_s(CARBON.dosimetry.primary) == pytest.approx(104e-6, rel=0.01)  # 5 mm, 1500 V
    slow = changed(CARBON, "dosimetry", primary=primary)
    choice = choose_intensity(slow, "12C", 250.0, np.array([8.1e3]), ~all_off(1), HARMLESS)
    assert choice.level == 1
    assert "1.17 ms" in choice.bound.reason


def test_ripple_while_the_beam_goes_off_limits_discrete_spots() -> None:
    rough = changed(PROTON, "accelerator", ripple_rms=0.3, beam_off_delay_us=250.0)
    choice = choose_intensity(rough, "1H", 150.0, np.array([1e6]), all_off(1), HARMLESS)
    assert choice.bound.rate_per_s == pytest.approx(0.01 * 1e6 / (0.3 * 250e-6))
    assert choice.rate_per_s == 8e7
    assert "ripple" in choice.bound.reason


def test_a_visit_that_ends_with_beam_off_must_exceed_what_arrives_late() -> None:
    slow = changed(CARBON, "accelerator", beam_off_delay_us=2000.0)
    particles = np.array([4e4, 5e5])
    assert choose_intensity(slow, "12C", 250.0, particles, np.array([False, True]), HARMLESS).rate_per_s == 3.2e7
    choice = choose_intensity(slow, "12C", 250.0, particles, np.array([True, False]), HARMLESS)
    assert choice.bound.rate_per_s == pytest.approx(4e4 / (1.5 * 2050e-6))
    assert choice.bound.visit == 0


@pytest.mark.parametrize(("site", "energy"), [(CARBON, 80.0), (CARBON, 250.0), (CARBON, 430.0), (PROTON, 150.0)])
def test_no_level_lets_a_runaway_beam_give_a_quarter_of_a_gray(site: Site, energy: float) -> None:
    ion, machine = site.accelerator.ions[0], next(iter(site.treatment_machines.values()))
    peak_gy = peak_dose_gy_per_particle(ion, energy, *spot_sigma_mm(machine, energy))
    choice = choose_intensity(site, ion, energy, np.array([1e12]), all_off(1), peak_gy)
    levels = site.accelerator.intensities_per_s
    assert choice.level is not None
    higher = levels[choice.level + 1]
    assert all(r.excess_gy(choice.rate_per_s, peak_gy) < 0.25 for r in runaways(site))
    assert any(r.excess_gy(higher, peak_gy) >= 0.25 for r in runaways(site))
    assert choice.bound.rule == "RATE_UNSAFE"


def test_what_a_runaway_beam_gives_is_counted_from_the_sites_delays() -> None:
    spike, stuck, beside = runaways(CARBON)
    # ten times: a ninth of a frame below the limit of 2, a frame, 30 us of lag, a turn of the chain, 250 us of chopper
    assert spike.excess_s == pytest.approx(10 * (11.11e-6 + 100e-6 + 30e-6 + 100e-6 + 250e-6), rel=1e-4)
    assert stuck.excess_s == pytest.approx(2e-3 + 0.3e-3 + 2.5e-3)
    # half a part of 1.5 ms, 1.4 of rest, 0.3 after the move, a part; two frames, 50 us of lag, 250 us of chopper
    assert beside.excess_s == pytest.approx(0.75e-3 + 1.4e-3 + 0.3e-3 + 1.5e-3 + 0.2e-3 + 50e-6 + 250e-6)
    assert spike.excess_gy(spike.highest_rate_per_s(1e-6), 1e-6) == pytest.approx(0.25)


def test_no_level_runs_an_electrometer_near_saturation() -> None:
    narrow = CARBON.dosimetry.secondary.model_copy(update={"saturation_counts_per_s": 2e6})
    choice = choose_intensity(
        changed(CARBON, "dosimetry", secondary=narrow), "12C", 250.0, np.array([1e7]), all_off(1), HARMLESS
    )
    assert "secondary chamber's electrometer would saturate" in choice.bound.reason
    assert choice.rate_per_s == 1.6e7


def test_a_spot_that_no_level_serves_is_refused_by_name() -> None:
    with pytest.raises(LayerRefused) as caught:
        one(CARBON, spots([(0, 0, 2.0), (4, 0, 0.005), (8, 0, 2.0)]))
    assert caught.value.rule == "SPOT_TOO_SHORT"
    assert str(caught.value).startswith(
        "[SPOT_TOO_SHORT] beam 1, layer 0, spot 1: its smallest visit has 1266 particles"
    )
    assert "the lowest intensity is 2e+06/s" in str(caught.value)


def test_a_visit_below_one_count_is_refused() -> None:
    coarse = CARBON.dosimetry.primary.model_copy(update={"gain": 1e-4})
    with pytest.raises(LayerRefused, match=r"SPOT_NOT_MEASURABLE.*0\.\d+ monitor counts in a painting, at least 1"):
        one(changed(CARBON, "dosimetry", primary=coarse), spots([(0, 0, 0.1)]))


def test_an_energy_that_is_not_there_is_refused() -> None:
    with pytest.raises(LayerRefused, match=r"ENERGY_UNAVAILABLE.*energy 500 MeV/u is outside .* 55 to 430"):
        one(CARBON, layer(energy_mev_u=500.0))


def test_counts_of_a_field_add_up_and_their_limits_are_a_per_cent_above() -> None:
    programs = build(CARBON, plan_field())
    counts = field_counts(programs, CARBON.tolerances)
    assert counts.planned_1 == sum(int(program.visits["preset_counts"].sum()) for program in programs)
    assert counts.limit_1 == counts.planned_1 + max(200, round(0.01 * counts.planned_1))
    exact = sum(float((p.visits["particles"] * p.counts_per_particle_2).sum()) for p in programs)
    assert counts.planned_2 == pytest.approx(exact)
    small = field_counts(build(CARBON, plan_field(spots([(0, 0, 0.5)]))), CARBON.tolerances)
    assert small.limit_1 == small.planned_1 + 200


def test_a_field_without_a_machine_name_has_the_sites_choice_for_its_ion() -> None:
    assert treatment_machine(PROTON, proton_field(machine_name="")) is PROTON.treatment_machines["REF-P"]
    with pytest.raises(Refused, match=r"MACHINE_UNKNOWN.*no machine for 12C, only REF-P"):
        treatment_machine(PROTON, plan_field(machine_name=""))
    with pytest.raises(Refused, match=r"no machine X9, only REF-C"):
        treatment_machine(CARBON, plan_field(machine_name="X9"))


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = build(CARBON, plan_field()), build(CARBON, plan_field())
    assert [p.visits.tobytes() for p in first] == [p.visits.tobytes() for p in second]
    assert replace(first[0], visits=second[0].visits) != first[0]  # programs compare by identity: arrays do not hash
