"""Spots for a spherical target in a water phantom: where the example plans get their layers from.

Not a planning system: ranges come from a power law, weights from a plain formula, and the dose that results is
of no clinical meaning. What matters is that every number is one that a machine could be asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))


@dataclass(frozen=True, slots=True)
class Ion:
    """A kind of particle, its calibration and its beam."""

    nucleons: int
    charge: int
    energy_step_mev_u: float
    """Energies are rounded to this."""
    sigmas_mm: tuple[tuple[float, float, float], ...]
    """(energy MeV/u, sigma x mm, sigma y mm) in air at the isocentre, rising energies."""

    def energy_mev_u(self, depth_mm: float) -> float:
        """Energy with this range in water.

        R = 0.0022 cm x E^1.77 for protons (Bortfeld and Schlegel, Phys. Med. Biol. 41, 1996), scaled by A / Z^2.
        """
        proton_range_cm = depth_mm / 10.0 * self.charge**2 / self.nucleons
        energy = math.pow(proton_range_cm / 0.0022, 1.0 / 1.77)
        return round(round(energy / self.energy_step_mev_u) * self.energy_step_mev_u, 6)

    def particles_per_mu(self, energy_mev_u: float) -> float:
        """Calibration of the reference machines: 4.5e6 (E / 100 MeV/u)^0.77 / Z^2."""
        return 4.5e6 * math.pow(energy_mev_u / 100.0, 0.77) / self.charge**2

    def spot_fwhm_mm(self, energy_mev_u: float) -> tuple[float, float]:
        """Full width at half maximum in air at the isocentre (x, y), mm, to 0.01 mm."""
        for low, high in zip(self.sigmas_mm, self.sigmas_mm[1:], strict=False):
            if low[0] <= energy_mev_u <= high[0]:
                share = (energy_mev_u - low[0]) / (high[0] - low[0])
                sigmas = (low[axis] + share * (high[axis] - low[axis]) for axis in (1, 2))
                x, y = (round(sigma * FWHM_PER_SIGMA, 2) for sigma in sigmas)
                return x, y
        raise ValueError(f"energy {energy_mev_u} MeV/u: outside the table of spot sizes")


CARBON = Ion(
    nucleons=12,
    charge=6,
    energy_step_mev_u=0.01,
    sigmas_mm=((144.0, 2.52, 2.37), (211.0, 2.23, 2.10), (332.0, 1.95, 1.83)),
)
PROTON = Ion(
    nucleons=1,
    charge=1,
    energy_step_mev_u=0.1,
    sigmas_mm=((112.5, 4.48, 4.29), (129.8, 4.28, 4.10), (150.4, 4.07, 3.90), (162.9, 3.97, 3.80)),
)


@dataclass(frozen=True, slots=True)
class Sphere:
    """A target, seen from one direction, and how it is to be filled."""

    depth_mm: float
    """Depth of its centre in water."""
    radius_mm: float
    layers: int
    spacing_mm: float
    peak_particles: float
    """Of a spot in the middle of the deepest layer."""
    least_mu: float
    """No spot has less."""
    most_spots: int | None = None
    """In a layer; None: as many as fit."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """A target that gets its dose in a few strong spots far from each other, as in lattice and GRID irradiation."""

    depths_mm: tuple[float, ...]
    """Of the layers in water, deepest first."""
    side: int
    """Spots in a row, and rows."""
    spacing_mm: float
    particles: float
    """Of each spot."""


@dataclass(frozen=True, slots=True)
class SpotLayer:
    """One layer, spots in the order of delivery."""

    energy_mev_u: float
    fwhm_mm: tuple[float, float]
    xy_mm: tuple[tuple[float, float], ...]
    mu: tuple[float, ...]


def fill(ion: Ion, target: Sphere | Lattice) -> tuple[SpotLayer, ...]:
    """Fill a target with layers, deepest first."""
    return _fill_lattice(ion, target) if isinstance(target, Lattice) else _fill_sphere(ion, target)


def _fill_lattice(ion: Ion, lattice: Lattice) -> tuple[SpotLayer, ...]:
    layers = []
    for depth_mm in lattice.depths_mm:
        energy = ion.energy_mev_u(depth_mm)
        half = (lattice.side - 1) / 2.0
        xy = []
        for row in range(lattice.side):
            columns = range(lattice.side) if row % 2 == 0 else range(lattice.side - 1, -1, -1)
            xy += [((i - half) * lattice.spacing_mm, (half - row) * lattice.spacing_mm) for i in columns]
        mu = round(lattice.particles / ion.particles_per_mu(energy), 3)
        layers.append(SpotLayer(energy, ion.spot_fwhm_mm(energy), tuple(xy), (mu,) * len(xy)))
    return tuple(layers)


def _fill_sphere(ion: Ion, sphere: Sphere) -> tuple[SpotLayer, ...]:
    """Fill a sphere with layers, deepest first, spots row by row and back (boustrophedon).

    Weights fall towards shallower layers, as they do where deeper ones have already passed through, and
    towards the rim of a layer.
    """
    layers = []
    thickness_mm = 2.0 * sphere.radius_mm / sphere.layers
    for index in range(sphere.layers):
        offset_mm = sphere.radius_mm - (index + 0.5) * thickness_mm
        rim_mm = math.sqrt(sphere.radius_mm**2 - offset_mm**2)
        energy = ion.energy_mev_u(sphere.depth_mm + offset_mm)
        xy = _rows(rim_mm, sphere.spacing_mm)[: sphere.most_spots]
        share = 1.0 if index == 0 else 0.85 - 0.05 * index
        peak_mu = sphere.peak_particles * share / ion.particles_per_mu(energy)
        mu = (round(max(sphere.least_mu, peak_mu * (1 - 0.98 * (math.hypot(*at) / rim_mm) ** 6)), 3) for at in xy)
        layers.append(SpotLayer(energy, ion.spot_fwhm_mm(energy), tuple(xy), tuple(mu)))
    return tuple(layers)


def _rows(rim_mm: float, spacing_mm: float) -> list[tuple[float, float]]:
    steps = math.floor(rim_mm / spacing_mm)
    spots = []
    for row, j in enumerate(range(steps, -steps - 1, -1)):
        columns = range(-steps, steps + 1) if row % 2 == 0 else range(steps, -steps - 1, -1)
        in_row = ((i * spacing_mm, j * spacing_mm) for i in columns)
        spots += [at for at in in_row if math.hypot(*at) <= rim_mm * (1 + 1e-9)]
    return spots
