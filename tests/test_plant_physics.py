"""The plant's nature against published values and against the controller's model of it; charge is conserved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.machine.dosimetry import counts_per_particle
from controller.machine.physics import air_stopping_power_mev_cm2_g, charge_per_particle_c, rigidity_t_m
from simulators.plant.chambers import drain_share
from simulators.plant.noise import cumulative_table, gauss_table, ripple_table
from simulators.plant.physics import (
    AIR_DENSITY_20C,
    ELEMENTARY_CHARGE_C,
    air_stopping_mev_cm2_g,
    charge_per_ion_c,
    rigidity_tm,
)
from simulators.plant.state import COUNT_UNIT, ENG_DONE, ION_UNIT, STEPS_PER_FRAME
from sites.schema import Site
from tests.plan_models import layer
from tests.plant_rig import CARBON, PROTON, Rig, corrections_of, programs_of

# MeV/u, T m: kinematics with CODATA masses
RIGIDITY = [
    ("1H", 70.0, 1.231),
    ("1H", 100.0, 1.483),
    ("1H", 120.0, 1.633),
    ("1H", 150.0, 1.839),
    ("1H", 200.0, 2.150),
    ("1H", 230.0, 2.322),
    ("1H", 250.0, 2.432),
    ("12C", 80.0, 2.630),
    ("12C", 100.0, 2.955),
    ("12C", 120.0, 3.254),
    ("12C", 150.0, 3.665),
    ("12C", 200.0, 4.285),
    ("12C", 250.0, 4.848),
    ("12C", 300.0, 5.373),
    ("12C", 350.0, 5.871),
    ("12C", 400.0, 6.347),
    ("12C", 430.0, 6.624),
]
# keV per mm of air, ion pairs per mm, C per ion in 5 mm: Bethe with ICRU 90's W, 20 C and 1013.25 hPa
IONISATION = [
    ("1H", 70.0, 1.018, 29.6, 2.37e-17),
    ("1H", 150.0, 0.580, 16.9, 1.35e-17),
    ("1H", 230.0, 0.439, 12.7, 1.02e-17),
    ("12C", 120.0, 24.3, 701.0, 5.61e-16),
    ("12C", 200.0, 17.2, 494.0, 3.96e-16),
    ("12C", 300.0, 13.5, 388.0, 3.11e-16),
    ("12C", 430.0, 11.2, 323.0, 2.59e-16),
]
NITROGEN = [("1H", 70.0, 27.1), ("1H", 230.0, 11.7), ("12C", 120.0, 647.0), ("12C", 300.0, 358.0)]
PLACE = {"temperature_c": 20.0, "pressure_hpa": 1013.25}


@pytest.mark.parametrize(("ion", "energy", "wanted"), RIGIDITY)
def test_rigidity_is_the_published_one(ion: str, energy: float, wanted: float) -> None:
    assert rigidity_tm(ion, energy) == pytest.approx(wanted, abs=6e-4)


@pytest.mark.parametrize(("ion", "energy", "kev_mm", "pairs", "charge"), IONISATION)
def test_ionisation_in_air_is_the_published_one(
    ion: str, energy: float, kev_mm: float, pairs: float, charge: float
) -> None:
    assert air_stopping_mev_cm2_g(ion, energy) * AIR_DENSITY_20C * 100 == pytest.approx(kev_mm, rel=0.005)
    one_mm = charge_per_ion_c(ion, energy, gas="air", gap_mm=1.0, **PLACE)
    assert one_mm / ELEMENTARY_CHARGE_C == pytest.approx(pairs, rel=0.005)
    assert charge_per_ion_c(ion, energy, gas="air", gap_mm=5.0, **PLACE) == pytest.approx(charge, rel=0.005)


@pytest.mark.parametrize(("ion", "energy", "pairs"), NITROGEN)
def test_ionisation_in_nitrogen_is_near_the_published_one(ion: str, energy: float, pairs: float) -> None:
    # air's mass stopping power stands for nitrogen's, which is 0.5 to 0.7 % higher
    one_mm = charge_per_ion_c(ion, energy, gas="nitrogen", gap_mm=1.0, **PLACE)
    assert one_mm / ELEMENTARY_CHARGE_C == pytest.approx(pairs, rel=0.012)


@given(st.sampled_from([("1H", 60.0, 250.0), ("12C", 80.0, 430.0)]), st.floats(0, 1))
def test_nature_and_the_controllers_model_agree_but_are_not_the_same(
    beam: tuple[str, float, float], share: float
) -> None:
    ion, low, high = beam
    energy = low + share * (high - low)
    assert rigidity_tm(ion, energy) == pytest.approx(rigidity_t_m(ion, energy), rel=1e-5)
    assert air_stopping_mev_cm2_g(ion, energy) == pytest.approx(air_stopping_power_mev_cm2_g(ion, energy), rel=2e-3)
    warm = {"temperature_c": 22.0, "pressure_hpa": 1005.0}
    ours = charge_per_particle_c(ion, energy, 5.0, "air", **warm)
    assert charge_per_ion_c(ion, energy, gas="air", gap_mm=5.0, **warm) == pytest.approx(ours, rel=2.5e-3)


@pytest.mark.parametrize("site", [CARBON, PROTON], ids=["carbon", "proton"])
def test_true_counts_per_ion_differ_from_the_calibration_by_no_more_than_the_site_says(site: Site) -> None:
    program = programs_of(site, layer() if site is CARBON else layer(energy_mev_u=120.0, tune_id="4.0"))[0]
    rig = Rig(site)
    rig.request(program.energy_mev_u, program.intensity_level)
    rig.run(300)
    tune = rig.plant.tune[0]
    for number, chamber in ((1, site.dosimetry.primary), (2, site.dosimetry.secondary)):
        calibrated = counts_per_particle(
            chamber, site.dosimetry, program.ion, program.energy_mev_u, corrections=corrections_of(site), rate_per_s=0.0
        )
        off = float(tune[f"counts_{number}"]) / calibrated - 1
        assert 0 < abs(off) < chamber.gain_uncertainty + 0.002, f"chamber {number}: {off:+.4f}"


@given(st.floats(1.0, 1000.0))
def test_charge_drains_with_the_mean_lag_of_the_chamber(lag_us: float) -> None:
    share = drain_share(lag_us) / 65536
    mean_us = 10 * (1 / share - 0.5)
    assert mean_us == pytest.approx(max(lag_us, 5.0), rel=0.02)


def drained(rig: Rig) -> None:
    for number in (1, 2):
        rig.plant.parameters[f"ks_{number}_s"] = 0.0


@pytest.mark.parametrize("site", [CARBON, PROTON], ids=["carbon", "proton"])
def test_counts_and_drifting_charge_are_the_charge_that_came_in_to_the_last_unit(site: Site) -> None:
    program = programs_of(site, layer() if site is CARBON else layer(energy_mev_u=120.0, tune_id="4.0"))[0]
    rig = Rig(site)
    drained(rig)
    rig.ready(program)
    rig.start()
    s, p, tune = rig.state, rig.plant.parameters, rig.plant.tune[0]
    tune["spread_1"] = tune["spread_2"] = 0.0  # every ion frees the mean charge
    for _ in range(200):
        rig.run(7, permits=True)
        for k in (1, 2):
            gain = int(float(tune[f"counts_{k}"]) * COUNT_UNIT)
            pedestal = int(p[f"pedestal_{k}"]) * STEPS_PER_FRAME * int(s["frame"])
            collected = int(s["particles"]) - int(s[f"drift_{k}"])
            assert (int(s[f"counts_{k}"]) - pedestal) * ION_UNIT + int(s[f"rest_{k}"]) == collected * gain
    assert s["eng_state"] == ENG_DONE
    assert s["drift_1"] == s["drift_2"] == 0


def test_recombination_lowers_the_counts_by_ks() -> None:
    program = programs_of(CARBON, layer())[0]
    counts = []
    for ks in (0.0, 1e-9):
        rig = Rig()
        rig.plant.parameters["ks_1_s"] = ks
        rig.plant.parameters["ripple"] = 0.0
        rig.plant.parameters["pedestal_1"] = 0
        rig.deliver(program)
        counts.append(int(rig.state["counts_1"]) / COUNT_UNIT / (int(rig.state["particles"]) / ION_UNIT))
    assert counts[0] / counts[1] == pytest.approx(1 + 1e-9 * program.rate_per_s, rel=2e-4)


def test_truth_holds_every_particle_that_went_through_the_nozzle() -> None:
    for site in (CARBON, PROTON):
        program = programs_of(site, layer() if site is CARBON else layer(energy_mev_u=120.0, tune_id="4.0"))[0]
        rig = Rig(site)
        rig.plant.parameters["leak"] = 0.001
        rig.deliver(program)
        truth = rig.plant.truth
        assert int(truth["units"].sum()) == int(rig.state["particles"]) > 0
        delivered = truth["units"][program.visits["visit"]] / ION_UNIT
        np.testing.assert_allclose(delivered, program.visits["particles"], rtol=0.03)


def test_currents_of_the_controllers_optics_hit_the_spots_in_a_plant_without_errors() -> None:
    program = programs_of(CARBON, layer(x_mm=(-100.0, 100.0, 30.0), y_mm=(-100.0, 70.0, 100.0), meterset=(3.0,) * 3))[0]
    rig = Rig()
    p = rig.plant.parameters
    p["gain_x"] = p["gain_y"] = 1.0
    for name in ("offset_x_mm", "offset_y_mm", "position_noise_mm", "hysteresis_ma", "energy_offset_mev_u"):
        p[name] = 0.0
    rig.deliver(program)
    truth = rig.plant.truth[program.visits["visit"]]
    np.testing.assert_allclose(truth["x"] / truth["units"], program.visits["x_mm"], atol=0.02)
    np.testing.assert_allclose(truth["y"] / truth["units"], program.visits["y_mm"], atol=0.02)


def test_tables_of_noise_are_what_they_say() -> None:
    gauss = gauss_table(3) / 4096
    assert gauss.mean() == pytest.approx(0.0, abs=1e-4)
    assert gauss.std() == pytest.approx(1.0, abs=1e-3)
    assert not np.array_equal(gauss, gauss_table(4) / 4096)
    ripple = ripple_table()
    assert np.sqrt(np.mean(ripple**2)) == pytest.approx(1.0, abs=1e-5)
    table = cumulative_table(4096, 6.0)
    assert (table[0], table[2048], table[-1]) == (0, 16384, 32768)
    assert (np.diff(table) >= 0).all()
