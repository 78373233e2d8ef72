"""What the plant holds true: kinematics and the charge that an ion frees in a gap of gas.

Written apart from the controller's model on purpose: theirs is a calibration, ours is nature. Both are tested
against published values. Source of the formulae: Bethe's stopping power as in ICRU Report 49 (1993), mean excitation
energy of air 85.7 eV; effective charge of Barkas (1963); W values of air from ICRU Report 90 as quoted in
IAEA TRS-398 rev. 1 (2024): 34.44 eV for protons, 34.71 eV for carbon ions; nitrogen 36.6 eV (plausible only).
"""

from __future__ import annotations

import math

PROTON_MEV = 938.272
CARBON_MEV = 11174.86
ELECTRON_EV = 510998.95
ELEMENTARY_CHARGE_C = 1.602176634e-19
AIR_DENSITY_20C = 1.20479e-3
"""g/cm3 at 20 C and 1013.25 hPa."""
NITROGEN_DENSITY_20C = 1.16528e-3

IONS = ("1H", "12C")
_NUCLEONS = {"1H": 1, "12C": 12}
_CHARGE = {"1H": 1, "12C": 6}
_MASS_MEV = {"1H": PROTON_MEV, "12C": CARBON_MEV}
_W_EV = {("1H", "air"): 34.44, ("12C", "air"): 34.71, ("1H", "nitrogen"): 36.6, ("12C", "nitrogen"): 36.6}


def rigidity_tm(ion: str, energy_mev_u: float) -> float:
    """Magnetic rigidity p / q in T m: pc[MeV] / (299.792458 Z)."""
    kinetic = energy_mev_u * _NUCLEONS[ion]
    momentum = math.sqrt(kinetic * (kinetic + 2 * _MASS_MEV[ion]))
    return momentum / (299.792458 * _CHARGE[ion])


def air_stopping_mev_cm2_g(ion: str, energy_mev_u: float) -> float:
    """Mass electronic stopping power of air for the whole ion."""
    mass_u = _MASS_MEV[ion] / _NUCLEONS[ion]
    gamma = 1 + energy_mev_u / mass_u
    beta2 = 1 - 1 / gamma**2
    z = _CHARGE[ion]
    effective = z * (1 - math.exp(-125 * math.sqrt(beta2) * z ** (-2 / 3)))
    bracket = math.log(2 * ELECTRON_EV * beta2 * gamma**2 / 85.7) - beta2
    return 0.307075 * effective**2 / beta2 * 0.49919 * bracket


def charge_per_ion_c(
    ion: str, energy_mev_u: float, *, gas: str, gap_mm: float, temperature_c: float, pressure_hpa: float
) -> float:
    """Charge of one sign freed by one ion crossing the gap."""
    density = AIR_DENSITY_20C if gas == "air" else NITROGEN_DENSITY_20C
    density *= 293.15 / (273.15 + temperature_c) * pressure_hpa / 1013.25
    loss_ev = air_stopping_mev_cm2_g(ion, energy_mev_u) * density * gap_mm / 10 * 1e6
    return loss_ev / _W_EV[(ion, gas)] * ELEMENTARY_CHARGE_C


def ionisation_spread(ion: str, energy_mev_u: float, *, gap_mm: float) -> float:
    """Standard deviation of one ion's charge in the gap over its mean.

    From the number of knock-on electrons, each with probability ~ 1 / E^2 up to what the gap stops: 15 keV at 5 mm of
    air (range ~ E^1.7; ESTAR).
    """
    mass_u = _MASS_MEV[ion] / _NUCLEONS[ion]
    beta2 = 1 - 1 / (1 + energy_mev_u / mass_u) ** 2
    column = AIR_DENSITY_20C * gap_mm / 10
    stopped_mev = 0.015 * (gap_mm / 5.0) ** (1 / 1.7)
    variance = 0.307075 / 2 * _CHARGE[ion] ** 2 * 0.49919 / beta2 * column * stopped_mev
    return math.sqrt(variance) / (air_stopping_mev_cm2_g(ion, energy_mev_u) * column)
