"""Relativity, ranges and ionisation of the beam, as the controller needs them.

Energies are kinetic, per nucleon (MeV/u; for protons that is MeV). The simulators have their own physics on
purpose; a test holds both against published tables.

Sources: CODATA 2022 (constants); the mass of the bare carbon nucleus is 12 u less six electrons plus their binding
energy; stopping powers and ranges are fits to the Bethe formula with I = 78 eV for water (ICRU 90), which agree
with the ranges of PSTAR within 0.6 % (0.1 % with the I of PSTAR); W values from ICRU 90 as used in IAEA TRS-398 rev. 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ELEMENTARY_CHARGE_C = 1.602176634e-19
JOULE_PER_MEV = 1.602176634e-13
SPEED_OF_LIGHT_M_PER_S = 299_792_458.0
_U_MEV = 931.49410372
_ELECTRON_MEV = 0.51099895069

REFERENCE_TEMPERATURE_C = 20.0
REFERENCE_PRESSURE_HPA = 1013.25
AIR_DENSITY_G_CM3 = 1.2048e-3
"""Dry air at 20 C and 1013.25 hPa (ICRU)."""
NITROGEN_TO_AIR = 0.974
"""Energy loss per length in nitrogen over that in air, both at 20 C and 1013.25 hPa (0.972 to 0.975 from 70 MeV up)."""
W_NITROGEN_EV = 36.6
"""Mean energy per ion pair in nitrogen."""

Gas = Literal["air", "nitrogen"]


@dataclass(frozen=True, slots=True)
class Ion:
    """A fully stripped ion, and the fits that describe it.

    `air_fit`: ln S = a x^3 + b x^2 + c x + d with x = ln E: mass stopping power of air for the whole ion, MeV cm2/g
    (residual below 1.6e-4). `range_fit`: the same form for ln R, CSDA range in water, cm (residual below 0.03 mm).
    Both are fitted for 60 to 250 MeV protons and 80 to 430 MeV/u carbon ions; a little below they extrapolate smoothly.
    """

    name: str
    nucleons: int
    charge: int
    rest_energy_mev: float
    w_air_ev: float
    air_fit: tuple[float, float, float, float]
    range_fit: tuple[float, float, float, float]


IONS = {
    "1H": Ion(
        "1H",
        1,
        1,
        938.27208943,
        34.44,
        (0.01934042, -0.21469233, 0.00444070, 4.50704615),
        (-0.01410082, 0.16374543, 1.16745458, -5.42376570),
    ),
    "12C": Ion(
        "12C",
        12,
        6,
        12 * _U_MEV - 6 * _ELECTRON_MEV + 0.00103,
        34.71,
        (0.02163605, -0.24860373, 0.17204782, 7.80823426),
        (-0.01696719, 0.20714397, 0.94753394, -6.14349259),
    ),
}


def _cubic(fit: tuple[float, float, float, float], x: float) -> float:
    a, b, c, d = fit
    return math.exp(((a * x + b) * x + c) * x + d)


def beta(ion: str, energy_mev_u: float) -> float:
    """Velocity over that of light: sqrt(1 - 1/gamma^2), gamma = 1 + T / (M c^2)."""
    gamma = 1.0 + IONS[ion].nucleons * energy_mev_u / IONS[ion].rest_energy_mev
    return math.sqrt(1.0 - 1.0 / (gamma * gamma))


def momentum_mev_c(ion: str, energy_mev_u: float) -> float:
    """Momentum of the whole ion, MeV/c: p c = sqrt(T (T + 2 M c^2)), T the total kinetic energy."""
    total_mev = IONS[ion].nucleons * energy_mev_u
    return math.sqrt(total_mev * (total_mev + 2.0 * IONS[ion].rest_energy_mev))


def rigidity_t_m(ion: str, energy_mev_u: float) -> float:
    """Magnetic rigidity B rho, tesla metre: p / (Z e), which is p c [MeV] / (299.792458 Z)."""
    return momentum_mev_c(ion, energy_mev_u) / (SPEED_OF_LIGHT_M_PER_S * 1e-6 * IONS[ion].charge)


def range_water_cm(ion: str, energy_mev_u: float) -> float:
    """CSDA range in water, cm. For limits and displays; a machine's own range table comes from commissioning."""
    return _cubic(IONS[ion].range_fit, math.log(energy_mev_u))


def air_stopping_power_mev_cm2_g(ion: str, energy_mev_u: float) -> float:
    """Mass stopping power of air for the whole ion, MeV cm2/g."""
    return _cubic(IONS[ion].air_fit, math.log(energy_mev_u))


def charge_per_particle_c(
    ion: str,
    energy_mev_u: float,
    gap_mm: float,
    gas: Gas,
    *,
    temperature_c: float = REFERENCE_TEMPERATURE_C,
    pressure_hpa: float = REFERENCE_PRESSURE_HPA,
) -> float:
    """Charge (C) that one particle frees in a chamber's gap, all of it collected.

    q = e x gap x density x S / W, the density that of an ideal gas at the given temperature and pressure.
    """
    density = AIR_DENSITY_G_CM3 * (273.15 + REFERENCE_TEMPERATURE_C) / (273.15 + temperature_c)
    density *= pressure_hpa / REFERENCE_PRESSURE_HPA
    loss_ev = air_stopping_power_mev_cm2_g(ion, energy_mev_u) * density * (gap_mm / 10.0) * 1e6
    if gas == "nitrogen":
        return ELEMENTARY_CHARGE_C * loss_ev * NITROGEN_TO_AIR / W_NITROGEN_EV
    return ELEMENTARY_CHARGE_C * loss_ev / IONS[ion].w_air_ev
