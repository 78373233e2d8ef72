"""Time estimates, against sums by hand and against published worked cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.machine.dosimetry import nominal_corrections
from controller.machine.field_program import build_field
from controller.machine.program import LayerProgram
from controller.machine.timing import FieldTime, estimate_field
from controller.plan.load import load_plan
from controller.plan.model import PlanField
from sites.loader import load_site
from sites.schema import Site
from tests.plan_models import layer, plan_field, proton_field, spots

FIXED = load_site("carbon-fixed")
EXTENDED = load_site("carbon-gantry")
PROTON = load_site("proton-gantry")


def with_accelerator(site: Site, **values: Any) -> Site:
    return site.model_copy(update={"accelerator": site.accelerator.model_copy(update=values)})


def programs_of(site: Site, field: PlanField) -> tuple[LayerProgram, ...]:
    return build_field(site, field, 0, nominal_corrections(site.dosimetry))


def estimate(site: Site, field: PlanField) -> FieldTime:
    return estimate_field(site, field, programs_of(site, field))


def falling(*energies: float) -> PlanField:
    return plan_field(*(layer(energy_mev_u=energy) for energy in energies))


def test_parts_add_up() -> None:
    for site, field in ((FIXED, plan_field()), (EXTENDED, plan_field()), (PROTON, proton_field())):
        time = estimate(site, field)
        parts = time.beam_on_s + time.layer_changes_s + time.spill_gaps_s + time.moves_s + time.setup_s
        assert time.total_s == pytest.approx(parts)
        assert time.beam_on_s == pytest.approx(sum(program.beam_time_s for program in programs_of(site, field)))


def test_a_new_energy_of_a_plain_synchrotron_is_a_new_filling_and_the_same_energy_none() -> None:
    assert estimate(FIXED, falling(250.0, 240.0, 230.0)).layer_changes_s == pytest.approx(3 * 2.0)
    assert estimate(FIXED, falling(250.0, 250.0, 240.0)).layer_changes_s == pytest.approx(2 * 2.0)


def test_an_extended_flat_top_steps_down_but_fills_anew_to_step_up() -> None:
    assert estimate(EXTENDED, falling(250.0, 240.0, 230.0)).layer_changes_s == pytest.approx(2.0 + 2 * 0.2)
    assert estimate(EXTENDED, falling(230.0, 240.0, 250.0)).layer_changes_s == pytest.approx(3 * 2.0)


def test_an_extended_flat_top_that_is_over_is_filled_anew() -> None:
    short = with_accelerator(EXTENDED, flat_top_s=0.5)
    assert estimate(short, falling(250.0, 240.0, 230.0)).layer_changes_s == pytest.approx(2.0 + 0.2 + 2.0)


def test_a_used_up_filling_costs_a_gap_whether_by_time_or_by_particles() -> None:
    field = plan_field(spots([(0, 0, 400.0), (4, 0, 400.0)]))
    particles = 800 * 1.25e5 * 2.5**0.77
    by_number = with_accelerator(FIXED, particles_per_spill=particles / 2.5, flat_top_s=0.0)
    assert estimate(by_number, field).spill_gaps_s == pytest.approx(2 * 2.0)
    rate = programs_of(FIXED, field)[0].rate_per_s
    by_time = with_accelerator(FIXED, particles_per_spill=0.0, flat_top_s=particles / rate / 3.5)
    assert estimate(by_time, field).spill_gaps_s == pytest.approx(3 * 2.0)
    for_ever = with_accelerator(FIXED, particles_per_spill=0.0, flat_top_s=0.0)
    assert estimate(for_ever, field).spill_gaps_s == 0.0


def test_absurdly_short_fillings_end_in_an_estimate_not_in_a_loop() -> None:
    tiny = with_accelerator(FIXED, flat_top_s=1e-12, particles_per_spill=1e-3)
    assert estimate(tiny, plan_field()).spill_gaps_s > 1e9


def test_a_cyclotron_steps_slowly_up_and_quickly_down() -> None:
    down = proton_field(*(layer(energy_mev_u=energy, tune_id="4.0") for energy in (150.0, 140.0, 130.0)))
    up = replace(down, layers=down.layers[::-1])
    assert estimate(PROTON, down).layer_changes_s == pytest.approx(5.0 + 2 * 0.6)
    assert estimate(PROTON, up).layer_changes_s == pytest.approx(3 * 5.0)
    assert estimate(PROTON, down).spill_gaps_s == 0.0


def test_moves_cost_time_only_where_beam_is_off() -> None:
    near = estimate(FIXED, plan_field(spots([(0, 0, 2.0), (4, 0, 2.0), (8, 0, 2.0)])))
    assert near.moves_s == pytest.approx(500e-6)  # switching off and on at the layer's start
    field = plan_field(spots([(0, 0, 2.0), (40, 0, 2.0)]))
    visits = programs_of(FIXED, field)[0].visits
    swing_s = abs(float(visits["x_current_a"][1] - visits["x_current_a"][0])) / 1e5
    assert estimate(FIXED, field).moves_s == pytest.approx(500e-6 + swing_s + 200e-6 + 500e-6)


def test_the_slower_axis_decides_a_move() -> None:
    field = proton_field(spots([(0, 0, 2.0), (10, 10, 2.0)], energy_mev_u=120.0, tune_id="4.0"))
    visits = programs_of(PROTON, field)[0].visits
    swings = [abs(float(visits[name][1] - visits[name][0])) for name in ("x_current_a", "y_current_a")]
    slower = max(swings[0] / 7.0e4, swings[1] / 2.5e4)
    assert estimate(PROTON, field).moves_s == pytest.approx(slower + 1500e-6 + 2 * 200e-6)


def test_setup_is_the_slowest_of_gantry_couch_and_inserts_the_short_way_round() -> None:
    assert estimate(EXTENDED, plan_field(gantry_deg=0.0)).setup_s == pytest.approx(1.0)
    assert estimate(EXTENDED, plan_field(gantry_deg=300.0)).setup_s == pytest.approx(60.0 / 3.0)
    couch = replace(plan_field().couch, rotation_deg=330.0)
    assert estimate(FIXED, plan_field(couch=couch)).setup_s == pytest.approx(30.0 / 10.0)


@pytest.mark.parametrize(
    ("rate", "flat_top_s", "gap_s", "published_s"),
    [(8e7, 5.0, 4.0, (24.6, 72.0)), (4e7, 4.0, 2.0, (49.3, 44.0))],
    ids=["8e7 per s, 5 s spills", "4e7 per s, 4 s spills"],
)
def test_a_13243_spot_carbon_plan_takes_the_published_time(
    shared: Path, rate: float, flat_top_s: float, gap_s: float, published_s: tuple[float, float]
) -> None:
    path = shared / "plans" / "trip98" / "TST003_carbon_17layers_13243spots.rst"
    field = load_plan(path, default_gantry_deg=90.0).plan.fields[0]
    site = with_accelerator(FIXED, flat_top_s=flat_top_s, gap_s=gap_s, particles_per_spill=4e8)
    programs = [replace(program, rate_per_s=rate) for program in programs_of(site, field)]
    time = estimate_field(site, field, programs)
    assert time.beam_on_s == pytest.approx(published_s[0], abs=0.1)
    assert time.layer_changes_s + time.spill_gaps_s == pytest.approx(published_s[1], abs=gap_s / 2)
