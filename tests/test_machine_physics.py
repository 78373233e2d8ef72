"""The controller's physics and dosimetry against published values, and round trips of every conversion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.machine.dosimetry import (
    Corrections,
    counts_per_particle,
    ktp,
    measured_corrections,
    nominal_corrections,
    particles_per_meterset,
    particles_per_mu,
    recombination,
)
from controller.machine.overdose import peak_dose_gy_per_particle, range_straggling_cm
from controller.machine.physics import (
    air_stopping_power_mev_cm2_g,
    beta,
    charge_per_particle_c,
    range_water_cm,
    rigidity_t_m,
)
from drivers.errors import Refused
from sites.loader import load_site, shipped_sites
from sites.schema import Site

# ion, MeV/u, beta, B rho (T m): computed from CODATA masses
MOTION = [
    ("1H", 70.0, 0.366, 1.231),
    ("1H", 100.0, 0.428, 1.483),
    ("1H", 150.0, 0.507, 1.839),
    ("1H", 200.0, 0.566, 2.150),
    ("1H", 230.0, 0.596, 2.322),
    ("1H", 250.0, 0.614, 2.432),
    ("12C", 100.0, 0.430, 2.955),
    ("12C", 120.0, 0.464, 3.254),
    ("12C", 200.0, 0.568, 4.285),
    ("12C", 300.0, 0.654, 5.373),
    ("12C", 402.8, 0.716, 6.373),
    ("12C", 430.0, 0.729, 6.624),
]
# protons: PSTAR's CSDA ranges, g/cm2; carbon: ICRU-90 ranges
RANGES = [
    ("1H", 70.0, 4.08, 0.006),
    ("1H", 100.0, 7.718, 0.006),
    ("1H", 150.0, 15.77, 0.006),
    ("1H", 200.0, 25.96, 0.006),
    ("1H", 230.0, 32.95, 0.006),
    ("12C", 100.0, 2.60, 0.002),
    ("12C", 200.0, 8.74, 0.002),
    ("12C", 300.0, 17.32, 0.002),
    ("12C", 430.0, 31.05, 0.002),
]
# keV/mm in air at 20 C and 1013.25 hPa, ion pairs per mm
IONISATION = [
    ("1H", 70.0, 1.018, 29.6),
    ("1H", 150.0, 0.580, 16.9),
    ("1H", 230.0, 0.439, 12.7),
    ("12C", 120.0, 24.3, 701.0),
    ("12C", 200.0, 17.2, 494.0),
    ("12C", 300.0, 13.5, 388.0),
    ("12C", 430.0, 11.2, 323.0),
]
NITROGEN_PAIRS = [
    ("1H", 70.0, 27.1),
    ("1H", 150.0, 15.4),
    ("1H", 230.0, 11.7),
    ("12C", 120.0, 647.0),
    ("12C", 430.0, 298.0),
]
E_C = 1.602176634e-19


@pytest.mark.parametrize(("ion", "energy", "velocity", "rigidity"), MOTION)
def test_velocity_and_rigidity_are_the_published_ones(
    ion: str, energy: float, velocity: float, rigidity: float
) -> None:
    assert beta(ion, energy) == pytest.approx(velocity, abs=6e-4)
    assert rigidity_t_m(ion, energy) == pytest.approx(rigidity, abs=6e-4)


@pytest.mark.parametrize(("ion", "energy", "range_cm", "tolerance"), RANGES)
def test_ranges_in_water_are_the_published_ones(ion: str, energy: float, range_cm: float, tolerance: float) -> None:
    assert range_water_cm(ion, energy) == pytest.approx(range_cm, rel=tolerance)


@pytest.mark.parametrize(("ion", "energy", "loss_kev_mm", "pairs"), IONISATION)
def test_ionisation_in_air_is_the_published_one(ion: str, energy: float, loss_kev_mm: float, pairs: float) -> None:
    loss = air_stopping_power_mev_cm2_g(ion, energy) * 1.2048e-3 * 100.0
    assert loss == pytest.approx(loss_kev_mm, rel=0.005)
    assert charge_per_particle_c(ion, energy, 1.0, "air") / E_C == pytest.approx(pairs, rel=0.005)


@pytest.mark.parametrize(("ion", "energy", "pairs"), NITROGEN_PAIRS)
def test_ionisation_in_nitrogen_is_the_published_one(ion: str, energy: float, pairs: float) -> None:
    assert charge_per_particle_c(ion, energy, 1.0, "nitrogen") / E_C == pytest.approx(pairs, rel=0.006)


def test_charge_follows_the_density_of_the_gas() -> None:
    warm = charge_per_particle_c("12C", 300.0, 5.0, "air", temperature_c=22.0, pressure_hpa=1005.0)
    assert charge_per_particle_c("12C", 300.0, 5.0, "air") / warm == pytest.approx(1.0151, abs=5e-5)
    assert charge_per_particle_c("12C", 300.0, 5.0, "air") == pytest.approx(3.11e-16, rel=0.005)


@pytest.mark.parametrize(("ion", "low", "high"), [("1H", 60.0, 250.0), ("12C", 55.0, 430.0)])
def test_fits_are_smooth_over_the_machines_energies(ion: str, low: float, high: float) -> None:
    energies = np.linspace(low, high, 400)
    ranges = np.array([range_water_cm(ion, energy) for energy in energies])
    losses = np.array([air_stopping_power_mev_cm2_g(ion, energy) for energy in energies])
    assert (np.diff(ranges) > 0).all()
    assert (np.diff(losses) < 0).all()
    assert (np.diff(losses, 2) > 0).all()


def test_ktp_of_a_warm_room_lowers_the_counts() -> None:
    site = load_site("carbon-fixed")
    warm = measured_corrections(22.0, 1005.0, site.dosimetry)
    assert warm.ktp == pytest.approx(1.0151, abs=5e-5)
    at_reference, in_the_room = (
        counts_per_particle(
            site.dosimetry.primary, site.dosimetry, "12C", 250.0, corrections=corrections, rate_per_s=1e7
        )
        for corrections in (nominal_corrections(site.dosimetry), warm)
    )
    assert in_the_room / at_reference == pytest.approx(1 / 1.0151, abs=5e-5)


@pytest.mark.parametrize(
    ("temperature_c", "pressure_hpa"),
    [(math.nan, 1013.0), (20.0, math.inf), (20.0, 0.0), (20.0, -1013.0), (-40.0, 1013.25), (20.0, 700.0), (1e300, 1.0)],
)
def test_absurd_air_is_refused_with_the_reading(temperature_c: float, pressure_hpa: float) -> None:
    with pytest.raises(Refused, match=r"kTP .* outside 0\.9 to 1\.15; check the temperature and pressure sensors"):
        ktp(temperature_c, pressure_hpa, load_site("carbon-fixed").dosimetry)


def test_recombination_lowers_the_counts_at_high_rates() -> None:
    site = load_site("carbon-fixed")
    chamber = site.dosimetry.primary
    assert recombination(chamber, 8e7) == pytest.approx(1.0008)
    slow, fast = (
        counts_per_particle(
            chamber, site.dosimetry, "12C", 300.0, corrections=nominal_corrections(site.dosimetry), rate_per_s=rate
        )
        for rate in (1.0, 8e7)
    )
    assert slow / fast == pytest.approx(1.0008, rel=1e-6)


@pytest.mark.parametrize(
    ("site", "machine", "energy", "particles"),
    [
        ("carbon-fixed", "REF-C", 100.0, 1.25e5),
        ("proton-gantry", "REF-P", 100.0, 4.5e6),
        ("proton-gantry", "TR3", 70.0, 2.107e6),
        ("proton-gantry", "TR3", 244.0, 4.749e6),
    ],
)
def test_particles_per_mu_are_those_of_the_machine(site: str, machine: str, energy: float, particles: float) -> None:
    treatment_machine = load_site(site).treatment_machines[machine]
    assert particles_per_mu(treatment_machine, energy) == pytest.approx(particles, rel=0.005)
    assert particles_per_meterset(treatment_machine, "NP", energy) == 1.0


@pytest.mark.parametrize("name", shipped_sites())
@given(share=st.floats(0, 1), mu=st.floats(0.1, 500.0), ktp_value=st.floats(0.9, 1.15), level=st.integers(0, 6))
def test_mu_to_particles_to_counts_and_back_is_right_to_one_count(
    name: str, share: float, mu: float, ktp_value: float, level: int
) -> None:
    site = SITES[name]
    for machine in site.treatment_machines.values():
        energy = machine.energy_min_mev_u + share * (machine.energy_max_mev_u - machine.energy_min_mev_u)
        per_particle = counts_per_particle(
            site.dosimetry.primary,
            site.dosimetry,
            machine.ion,
            energy,
            corrections=Corrections(ktp_value, 20.0, 1013.25),
            rate_per_s=site.accelerator.intensities_per_s[level % len(site.accelerator.intensities_per_s)],
        )
        counts = round(mu * particles_per_mu(machine, energy) * per_particle)
        mu_back = counts / per_particle / particles_per_mu(machine, energy)
        assert abs(mu_back - mu) * particles_per_mu(machine, energy) * per_particle <= 0.5 + 1e-6
        assert round(mu_back * particles_per_mu(machine, energy) * per_particle) == counts


SITES: dict[str, Site] = {name: load_site(name) for name in shipped_sites()}


@pytest.mark.parametrize(
    ("ion", "energy", "fluence_gy"),
    # By mean stopping powers at the peak, 20 to 30 MeV cm2/g for protons and 500 to 900 for carbon ions, 1e9 protons
    # per cm2 give 3 to 5 Gy and 1e8 carbon ions 8 to 15 Gy: an estimate, so only the size of the bound is tested.
    [("1H", 150.0, (1e9, 3.0)), ("12C", 250.0, (1e8, 8.0))],
)
def test_the_peak_dose_is_an_upper_bound_of_the_right_size(
    ion: str, energy: float, fluence_gy: tuple[float, float]
) -> None:
    fluence_per_cm2, estimate_gy = fluence_gy
    area_cm2 = 2 * math.pi * 0.3 * 0.3
    bound = peak_dose_gy_per_particle(ion, energy, 3.0, 3.0) * fluence_per_cm2 * area_cm2
    assert estimate_gy < bound < 3 * estimate_gy


def test_the_peak_constant_is_the_greatest_smeared_stopping_power() -> None:
    """Integrates the power law over Gaussian straggling numerically, as the derivation says."""
    for ion, energy in (("1H", 150.0), ("12C", 250.0)):
        alpha, p = {"1H": (0.00240, 1.755), "12C": (0.00109, 1.695)}[ion]
        sigma = range_straggling_cm(ion, energy)
        root = np.linspace(0.0, (12 * sigma) ** (1 / p), 100_001)  # r = root^p takes the pole at r = 0 away
        residual = root**p
        best = 0.0
        for centre in np.linspace(-1.0, 3.0, 161) * sigma:
            weight = np.exp(-0.5 * ((residual - centre) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
            best = max(best, float(np.trapezoid(weight, root)) / alpha ** (1 / p))
        nucleons = 12 if ion == "12C" else 1
        dose = nucleons * best * 1.602176634e-13 / (2 * math.pi * 0.2 * 0.3 * 1e-3)
        assert peak_dose_gy_per_particle(ion, energy, 2.0, 3.0) == pytest.approx(dose, rel=2e-3)


def test_straggling_is_that_of_bortfeld_for_protons() -> None:
    assert range_straggling_cm("1H", 150.0) == pytest.approx(0.012 * 15.85**0.935, rel=1e-3)
