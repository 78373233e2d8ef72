"""How well each visit is known: particles at the visit's own rate, and the standard uncertainties of dose and place.

Type A (per visit, independent of the others): `u_particles_1`, `u_particles_2`, `u_x_mm`, `u_y_mm`. Type B (common to
all visits, relative): `u_common_1`, `u_common_2`. Both are standard uncertainties as in the GUM (JCGM 100:2008).
docs/dosimetry.md has the budget with its formulas, sources and a comparison with simulated truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.dose.strips import WINDOW_SIGMA
from controller.machine.physics import AIR_DENSITY_G_CM3, IONS, air_stopping_power_mev_cm2_g, beta
from controller.machine.program import BEAM_OFF_AFTER, BEAM_OFF_MOVE, LayerProgram
from controller.machine.recombination import ks_at, ks_of_raw_rate
from controller.record.schema import QUALITY_SPLIT
from drivers.wires.frames import FRAME_NS, STRIP_UNITS_PER_COUNT
from sites.schema import Chamber, Dosimetry, Site

LATCH_COUNTS2 = 1.0 / 6.0
"""Variance of a difference of two counts, each cut off to a whole number: 1/12 each."""
RIPPLE_SHARE = 0.4
"""Of the ripple that is in a rate read 0.2 ms before it is used: 2 pi x 300 Hz x 0.2 ms."""
RATE_FRAMES = 3
KEV = 1e-3

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quiet:
    """How long both monitors' pedestals were measured, ns."""

    span_1_ns: int
    span_2_ns: int


def escape_energy_mev(gap_mm: float) -> float:
    """Energy of an electron whose range in air is the gap: faster ones leave with most of their energy.

    Range in mg/cm2: 412 T^(1.265 - 0.0954 ln T), T in MeV (Katz and Penfold, Rev. Mod. Phys. 24 (1952) 28).
    """
    wanted = AIR_DENSITY_G_CM3 * 1e3 * gap_mm / 10.0
    low, high = 1.0 * KEV, 1.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        if 412.0 * middle ** (1.265 - 0.0954 * math.log(middle)) < wanted:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def ionisation_spread(ion: str, energy_mev_u: float, gap_mm: float) -> float:
    """Standard deviation of one particle's charge over its mean.

    Variance of the energy left in the gap: xi T (Bohr 1915), xi = 0.1535 MeV cm2/g z^2 (Z/A) rho d / beta^2, T the
    energy above which electrons escape.
    """
    thickness = AIR_DENSITY_G_CM3 * gap_mm / 10.0
    xi_mev = 0.153537 * IONS[ion].charge ** 2 * 0.49919 / beta(ion, energy_mev_u) ** 2 * thickness
    loss_mev = air_stopping_power_mev_cm2_g(ion, energy_mev_u) * thickness
    return math.sqrt(xi_mev * escape_energy_mev(gap_mm)) / loss_mev


def common(chamber: Chamber, dosimetry: Dosimetry, ks: Floats) -> Floats:
    """Relative standard uncertainty that all visits share: calibration, air density, recombination."""
    temperature = dosimetry.temperature_uncertainty_k / (273.15 + dosimetry.reference_temperature_c)
    pressure = dosimetry.pressure_uncertainty_hpa / dosimetry.reference_pressure_hpa
    recombined = (ks - 1.0) * chamber.ks_uncertainty
    result: Floats = np.sqrt(chamber.gain_uncertainty**2 + temperature**2 + pressure**2 + recombined**2)
    return result


def refine(visits: NDArray[Any], program: LayerProgram, site: Site, quiet: Quiet, per_meterset: float) -> None:
    """Correct particles and meterset of booked visits for recombination at their own rate, and add uncertainties.

    In place; `visits` are of one layer, in order, booked with ks at the layer's nominal rate. A visit without a
    beam-on time (booked from frames) keeps that.
    """
    dosimetry = site.dosimetry
    seconds = visits["beam_on_ns"] * 1e-9
    known = seconds > 0
    for number, chamber, quiet_ns, per in (
        (1, dosimetry.primary, quiet.span_1_ns, program.counts_per_particle),
        (2, dosimetry.secondary, quiet.span_2_ns, program.counts_per_particle_2),
    ):
        level = ks_at(chamber.ks_per_particle_s, program.rate_per_s)
        booked = visits[f"particles_{number}"].copy()
        with np.errstate(divide="ignore", invalid="ignore"):
            raw_rate = np.where(known, booked / level / np.where(known, seconds, 1.0), 0.0)
        ks = np.where(known, ks_of_raw_rate(chamber.ks_per_particle_s, raw_rate), level)
        visits[f"ks_{number}"] = ks
        visits[f"particles_{number}"] = booked * (ks / level)
        visits[f"meterset_{number}"] = visits[f"particles_{number}"] / per_meterset
        rate = np.where(known, raw_rate, program.rate_per_s)
        visits[f"u_particles_{number}"] = _independent(visits, program, site, chamber, rate, per, quiet_ns)
        visits[f"u_common_{number}"] = common(chamber, dosimetry, ks)
    _place(visits, program, site)


def _independent(
    visits: NDArray[Any],
    program: LayerProgram,
    site: Site,
    chamber: Chamber,
    rate_per_s: Floats,
    per_particle: float,
    quiet_ns: int,
) -> Floats:
    """Type A of the particles: whole counts, pedestal, late charge, ionisation."""
    flags = visits["flags"].astype(np.int64)
    ends = (flags & BEAM_OFF_MOVE == 0).astype(float) + (flags & BEAM_OFF_AFTER == 0)
    span_ns = (visits["t_end_ns"] - visits["t_start_ns"]).astype(float)
    lag_s = chamber.lag_us * 1e-6
    rippled = rate_per_s * per_particle * lag_s * RIPPLE_SHARE * site.accelerator.ripple_rms
    rounded2 = LATCH_COUNTS2 * (lag_s / (RATE_FRAMES * FRAME_NS * 1e-9)) ** 2
    pedestal2 = LATCH_COUNTS2 * (span_ns / max(quiet_ns, FRAME_NS)) ** 2
    spread = ionisation_spread(program.ion, program.energy_mev_u, chamber.gap_mm)
    particles = np.maximum(visits["planned_particles"], 1.0)
    ionised2 = particles * (spread * per_particle) ** 2
    # beam that came back just before the end is in one or two of the frames only that the late charge is read from
    split = visits["quality"].astype(np.int64) & QUALITY_SPLIT != 0
    came_back2 = np.where(split, (rate_per_s * per_particle * lag_s / RATE_FRAMES) ** 2, 0.0)
    variance = LATCH_COUNTS2 + ends * (rippled**2 + rounded2 + came_back2) + pedestal2 + ionised2
    result: Floats = np.sqrt(variance) / per_particle
    return result


def _place(visits: NDArray[Any], program: LayerProgram, site: Site) -> None:
    """Type A of the centroid, mm at isocentre: particles, strip noise and pedestal, pitch, the way to the spot."""
    strips = site.dosimetry.strips
    particles = np.maximum(visits["planned_particles"], 1.0)
    charge = particles * program.counts_per_particle * STRIP_UNITS_PER_COUNT
    rate = np.maximum(program.rate_per_s, 1.0)
    frames = np.maximum(particles / rate / (FRAME_NS * 1e-9), 1.0)
    spread = ionisation_spread(program.ion, program.energy_mev_u, site.dosimetry.primary.gap_mm)
    span_s = np.maximum(visits["t_end_ns"] - visits["t_start_ns"], FRAME_NS) * 1e-9
    moved_with_beam = visits["flags"].astype(np.int64) & BEAM_OFF_MOVE == 0
    for axis, sigma_mm, scale, pitch_mm, magnet in (
        ("x", program.sigma_x_mm, program.strip_scale_x, strips.pitch_x_mm, site.scanning.x),
        ("y", program.sigma_y_mm, program.strip_scale_y, strips.pitch_y_mm, site.scanning.y),
    ):
        counted2 = sigma_mm**2 * (1.0 + spread**2) / particles
        half = max(4.0, WINDOW_SIGMA * sigma_mm * scale / pitch_mm)
        arms2 = half * (half + 1.0) * (2.0 * half + 1.0) / 3.0 * (pitch_mm / scale) ** 2
        noise2 = arms2 * (frames * strips.noise_units**2 + frames**2 / 12.0) / charge**2
        ratio = math.pi * sigma_mm * scale / pitch_mm
        sampled = pitch_mm / scale / math.pi * math.exp(-2.0 * ratio**2) / math.sqrt(2.0)
        step_mm = np.abs(np.diff(visits[f"planned_{axis}_mm"], prepend=visits[f"planned_{axis}_mm"][:1]))
        step_a = np.abs(np.diff(visits[f"{axis}_current_a"], prepend=visits[f"{axis}_current_a"][:1]))
        way_s = np.nan_to_num(step_a) / magnet.slew_a_per_s / 2.0 + magnet.settle_us * 1e-6 / 5.0
        way = np.where(moved_with_beam, step_mm * way_s / span_s, 0.0)
        u = np.sqrt(counted2 + noise2 + sampled**2 + way**2)
        visits[f"u_{axis}_mm"] = np.where(np.isfinite(visits[f"{axis}_mm"]), u, np.nan)
