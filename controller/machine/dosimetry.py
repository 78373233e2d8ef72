"""From particles to monitor counts and MU, and back, with the corrections applied once.

The convention, everywhere in Spotwise: corrected = raw x kTP x ks, hence

    raw counts = particles x charge per particle / (quantum x kTP x ks).

Warm or thin air makes open chambers read less: at 22 C and 1005 hPa kTP is 1.0151, so 1/1.0151 of the counts mean
the same dose. kTP is frozen for a part; ks follows from the chosen intensity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from controller.machine.physics import charge_per_particle_c
from controller.machine.recombination import ks_at
from controller.plan.model import MetersetUnit
from drivers.errors import Refused
from sites.schema import Chamber, Dosimetry, TreatmentMachine


@dataclass(frozen=True, slots=True)
class Corrections:
    """Corrections of a part, with the readings that they came from."""

    ktp: float
    temperature_c: float
    pressure_hpa: float


def ktp(temperature_c: float, pressure_hpa: float, dosimetry: Dosimetry) -> float:
    """Density correction of an open chamber: ((273.15 + T) / (273.15 + T0)) x (P0 / P)  (IAEA TRS-398).

    Raises `Refused` for readings that are no numbers, or that give a value outside the site's limits: then the
    sensor is wrong, or the room is no place to treat in.
    """
    value = math.nan
    if math.isfinite(temperature_c) and math.isfinite(pressure_hpa) and pressure_hpa > 0:
        value = (273.15 + temperature_c) / (273.15 + dosimetry.reference_temperature_c)
        value *= dosimetry.reference_pressure_hpa / pressure_hpa
    if not dosimetry.ktp_min <= value <= dosimetry.ktp_max:
        raise Refused(
            f"dose monitors: kTP {value:.4f} from {temperature_c:.2f} C and {pressure_hpa:.2f} hPa is outside "
            f"{dosimetry.ktp_min} to {dosimetry.ktp_max}; check the temperature and pressure sensors"
        )
    return value


def measured_corrections(temperature_c: float, pressure_hpa: float, dosimetry: Dosimetry) -> Corrections:
    """Corrections for a part, from the readings at its start. Raises `Refused` as `ktp` does."""
    return Corrections(ktp(temperature_c, pressure_hpa, dosimetry), temperature_c, pressure_hpa)


def nominal_corrections(dosimetry: Dosimetry) -> Corrections:
    """Corrections at the reference conditions (kTP = 1): for checks before the room's sensors are known."""
    return Corrections(1.0, dosimetry.reference_temperature_c, dosimetry.reference_pressure_hpa)


def recombination(chamber: Chamber, rate_per_s: float) -> float:
    """Give ks of a chamber at a particle rate: linear in the rate, as volume recombination is while it is small."""
    return ks_at(chamber.ks_per_particle_s, rate_per_s)


def model_counts_per_particle(chamber: Chamber, dosimetry: Dosimetry, ion: str, energy_mev_u: float) -> float:
    """Counts per particle at the site's reference conditions and vanishing rate: before kTP and ks."""
    charge_c = chamber.gain * charge_per_particle_c(
        ion,
        energy_mev_u,
        chamber.gap_mm,
        chamber.gas,
        temperature_c=dosimetry.reference_temperature_c,
        pressure_hpa=dosimetry.reference_pressure_hpa,
    )
    return charge_c / (chamber.quantum_fc * 1e-15)


def counts_per_particle(
    chamber: Chamber,
    dosimetry: Dosimetry,
    ion: str,
    energy_mev_u: float,
    *,
    corrections: Corrections,
    rate_per_s: float,
) -> float:
    """Raw counts per particle of one chamber, as its electrometer will show them."""
    model = model_counts_per_particle(chamber, dosimetry, ion, energy_mev_u)
    return model / (corrections.ktp * recombination(chamber, rate_per_s))


def particles_per_mu(machine: TreatmentMachine, energy_mev_u: float) -> float:
    """Particles per MU, the machine's convention: coefficient x (E / reference)^exponent."""
    mu = machine.mu
    return float(mu.particles_per_mu * (energy_mev_u / mu.reference_mev_u) ** mu.exponent)


def particles_per_meterset(machine: TreatmentMachine, unit: MetersetUnit, energy_mev_u: float) -> float:
    """Particles per unit of meterset: 1 for NP, the calibration for MU."""
    return particles_per_mu(machine, energy_mev_u) if unit == "MU" else 1.0
