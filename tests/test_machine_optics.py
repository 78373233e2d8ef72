"""Aiming: known currents, exact inverses over the whole field and all energies, and what the calibration does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.machine.energies import describe_missing_energy, match_energy
from controller.machine.optics import Optics, fwhm_mm, spot_sigma_mm
from controller.machine.physics import rigidity_t_m
from sites.loader import load_site, shipped_sites
from sites.schema import CalibrationPoint, Site

SITES = {name: load_site(name) for name in shipped_sites()}
MACHINES = [(name, machine) for name, site in SITES.items() for machine in site.treatment_machines]
RESOLUTION_MM = 0.01


def with_calibration(site: Site, *points: CalibrationPoint) -> Site:
    return site.model_copy(update={"scanning": site.scanning.model_copy(update={"calibration": points})})


def bare(name: str = "carbon-fixed") -> Site:
    return with_calibration(SITES[name])


def calibrated(**values: Any) -> Site:
    return with_calibration(SITES["carbon-fixed"], CalibrationPoint(**values))


def test_100_mm_at_7_m_needs_the_published_field() -> None:
    site = bare()
    optics = Optics(site, site.treatment_machines["REF-C"], (7000.0, 7000.0))
    for energy, field_t_m in ((120.0, 0.046), (430.0, 0.095)):
        current, _ = optics.currents_a(energy, 100.0, 0.0)
        assert float(current) * site.scanning.x.tesla_metre_per_a == pytest.approx(field_t_m, abs=6e-4)


def test_no_small_angles_are_assumed() -> None:
    site = bare("proton-gantry")
    optics = Optics(site, site.treatment_machines["REF-P"])
    _, current = optics.currents_a(230.0, 0.0, 200.0)
    exact = rigidity_t_m("1H", 230.0) / site.scanning.y.tesla_metre_per_a * math.sin(math.atan(200.0 / 1900.0))
    assert float(current) == pytest.approx(exact, rel=1e-12)
    assert abs(exact / math.cos(math.atan(200.0 / 1900.0)) - exact) > 3.0  # what a tangent would have given


@pytest.mark.parametrize(("name", "machine"), MACHINES)
@settings(max_examples=60, deadline=None)
@given(
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=20),
)
def test_aiming_and_its_inverse_agree_over_field_and_energies_even_after_rounding(
    name: str, machine: str, share: float, places: list[tuple[float, float]]
) -> None:
    site = SITES[name]
    treatment_machine = site.treatment_machines[machine]
    low, high = treatment_machine.energy_min_mev_u, treatment_machine.energy_max_mev_u
    energy = low + share * (high - low)
    x = np.array([px for px, _ in places]) * treatment_machine.field_x_mm
    y = np.array([py for _, py in places]) * treatment_machine.field_y_mm
    optics = Optics(site, treatment_machine)
    ix, iy = optics.currents_a(energy, x, y)
    assert (np.abs(ix) <= site.scanning.x.max_current_a).all()
    assert (np.abs(iy) <= site.scanning.y.max_current_a).all()
    x_back, y_back = optics.position_mm(energy, ix, iy)
    np.testing.assert_allclose(x_back, x, atol=1e-9)
    np.testing.assert_allclose(y_back, y, atol=1e-9)
    x_back, y_back = optics.position_mm(energy, np.round(ix, 3), np.round(iy, 3))
    np.testing.assert_allclose(x_back, x, atol=RESOLUTION_MM)
    np.testing.assert_allclose(y_back, y, atol=RESOLUTION_MM)


@pytest.mark.parametrize(("name", "machine"), MACHINES)
def test_the_strips_see_similar_triangles(name: str, machine: str) -> None:
    site = SITES[name]
    optics = Optics(site, site.treatment_machines[machine])
    distance, vsad = site.dosimetry.strips.distance_mm, site.treatment_machines[machine].vsad_x_mm
    x, y = optics.at_strips_mm(100.0, -50.0)
    assert float(x) == pytest.approx(100.0 * (vsad - distance) / vsad)
    x_back, y_back = optics.at_isocentre_mm(x, y)
    assert (float(x_back), float(y_back)) == pytest.approx((100.0, -50.0))


def test_the_calibration_moves_the_aim_as_its_coefficients_say() -> None:
    site = calibrated(energy_mev_u=200.0, xx=1.01, xy=0.02, yx=-0.03, yy=0.98, x0_mm=0.5, y0_mm=-0.4)
    machine = site.treatment_machines["REF-C"]
    aimed = Optics(site, machine).currents_a(250.0, 50.0, 40.0)
    geometry = Optics(bare(), machine).currents_a(
        250.0, 1.01 * 50.0 + 0.02 * 40.0 + 0.5, -0.03 * 50.0 + 0.98 * 40.0 - 0.4
    )
    np.testing.assert_allclose(aimed, geometry)


def test_the_calibration_is_interpolated_in_energy_and_constant_outside() -> None:
    site = with_calibration(
        SITES["carbon-fixed"],
        CalibrationPoint(energy_mev_u=100.0, x0_mm=1.0, y0_mm=0.0),
        CalibrationPoint(energy_mev_u=200.0, x0_mm=3.0, y0_mm=-2.0),
        CalibrationPoint(energy_mev_u=400.0, x0_mm=3.0, y0_mm=2.0),
    )
    optics = Optics(site, site.treatment_machines["REF-C"])

    def shift(energy: float) -> tuple[float, float]:
        x, y = optics.position_mm(energy, 0.0, 0.0)
        return -float(x), -float(y)

    assert shift(60.0) == pytest.approx((1.0, 0.0))
    assert shift(100.0) == pytest.approx((1.0, 0.0))
    assert shift(150.0) == pytest.approx((2.0, -1.0))
    assert shift(200.0) == pytest.approx((3.0, -2.0))
    assert shift(350.0) == pytest.approx((3.0, 1.0))
    assert shift(430.0) == pytest.approx((3.0, 2.0))


def test_a_current_beyond_all_bending_has_no_position() -> None:
    site = SITES["carbon-fixed"]
    x, _ = Optics(site, site.treatment_machines["REF-C"]).position_mm(100.0, 1e6, 0.0)
    assert np.isnan(x)


def test_spot_sizes_are_interpolated_and_constant_outside() -> None:
    machine = SITES["carbon-fixed"].treatment_machines["REF-C"]
    assert spot_sigma_mm(machine, 332.0) == pytest.approx((1.95, 1.83))
    assert spot_sigma_mm(machine, (211.0 + 332.0) / 2) == pytest.approx((2.09, 1.965))
    assert spot_sigma_mm(machine, 20.0) == pytest.approx((3.40, 3.20))
    assert fwhm_mm(1.95) == pytest.approx(4.59, abs=0.005)


def test_an_energy_near_a_step_of_the_grid_is_set_to_it() -> None:
    site = SITES["carbon-fixed"]
    machine = site.treatment_machines["REF-C"]
    assert match_energy(site, machine, 229.76) == 229.76
    assert match_energy(site, machine, 229.7561) == 229.76
    assert match_energy(site, machine, 430.005) == 430.0
    assert match_energy(site, machine, 54.995) == 55.0


@pytest.mark.parametrize("energy", [54.9, 430.01, 520.0, math.nan, math.inf, 0.0, -100.0])
def test_an_energy_outside_the_machine_is_not_available(energy: float) -> None:
    site = SITES["carbon-fixed"]
    machine = site.treatment_machines["REF-C"]
    assert match_energy(site, machine, energy) is None
    assert "outside the machine's range, 55 to 430 MeV/u" in describe_missing_energy(site, machine, energy)


def test_a_library_replaces_the_grid() -> None:
    site = SITES["carbon-fixed"]
    accelerator = site.accelerator.model_copy(update={"energy_library_mev_u": (100.0, 150.5, 429.0)})
    site = site.model_copy(update={"accelerator": accelerator})
    machine = site.treatment_machines["REF-C"].model_copy(update={"energy_max_mev_u": 400.0})
    assert match_energy(site, machine, 150.504) == 150.5
    assert match_energy(site, machine, 150.51) is None
    assert match_energy(site, machine, 429.0) is None  # the accelerator has it, this machine does not
    assert "not in the machine's table (tolerance 0.006 MeV/u)" in describe_missing_energy(site, machine, 150.51)


@given(st.floats(55.0, 430.0))
def test_a_fine_grid_serves_every_energy_within_the_range(energy: float) -> None:
    site = SITES["carbon-gantry"]
    matched = match_energy(site, site.treatment_machines["REF-C"], energy)
    assert matched is not None
    assert abs(matched - energy) <= 0.005 + 1e-9
