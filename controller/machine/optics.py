"""Where the beam goes for given magnet currents, and which currents put it at a place.

One magnet bends by sin(theta) = k I / (B rho); from its virtual source at distance SAD the beam then meets the
isocentre plane at x = SAD tan(theta). No small angles are assumed. The site's calibration, an affine map per energy
fitted to measured spots (cross terms included), says which point to aim at so that the beam arrives where it should.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from controller.machine.physics import rigidity_t_m
from sites.schema import Site, TreatmentMachine

CURRENT_RESOLUTION_A = 0.001
"""Set-points are sent in mA."""

Floats = NDArray[np.float64]


class Optics:
    """Scan magnets of one room, for one treatment machine."""

    def __init__(self, site: Site, machine: TreatmentMachine, vsad_mm: tuple[float, float] | None = None) -> None:
        """Use the machine's virtual source distances (x, y), mm, or others if given."""
        self._vsad_x, self._vsad_y = vsad_mm or (machine.vsad_x_mm, machine.vsad_y_mm)
        self._ion = machine.ion
        self._k_x = site.scanning.x.tesla_metre_per_a
        self._k_y = site.scanning.y.tesla_metre_per_a
        self._calibration = site.scanning.calibration
        distance = site.dosimetry.strips.distance_mm
        self.strip_scale_x = (self._vsad_x - distance) / self._vsad_x
        """Position at the strip planes = this x position at isocentre."""
        self.strip_scale_y = (self._vsad_y - distance) / self._vsad_y

    def currents_a(self, energy_mev_u: float, x_mm: ArrayLike, y_mm: ArrayLike) -> tuple[Floats, Floats]:
        """Currents (A) that put the beam at x, y at isocentre; not rounded to the supplies' resolution."""
        (xx, xy, yx, yy), (x0, y0) = self._map(energy_mev_u)
        x = np.asarray(x_mm, dtype=np.float64)
        y = np.asarray(y_mm, dtype=np.float64)
        rigidity = rigidity_t_m(self._ion, energy_mev_u)
        return (
            rigidity / self._k_x * np.sin(np.arctan((xx * x + xy * y + x0) / self._vsad_x)),
            rigidity / self._k_y * np.sin(np.arctan((yx * x + yy * y + y0) / self._vsad_y)),
        )

    def position_mm(self, energy_mev_u: float, x_a: ArrayLike, y_a: ArrayLike) -> tuple[Floats, Floats]:
        """Position at isocentre (mm) for given currents: the exact inverse of `currents_a`.

        NaN for a current that would bend the beam by 90 degrees or more.
        """
        rigidity = rigidity_t_m(self._ion, energy_mev_u)
        with np.errstate(invalid="ignore"):
            x = self._vsad_x * np.tan(np.arcsin(np.asarray(x_a, dtype=np.float64) * self._k_x / rigidity))
            y = self._vsad_y * np.tan(np.arcsin(np.asarray(y_a, dtype=np.float64) * self._k_y / rigidity))
        (xx, xy, yx, yy), (x0, y0) = self._map(energy_mev_u)
        determinant = xx * yy - xy * yx
        return (
            (yy * (x - x0) - xy * (y - y0)) / determinant,
            (xx * (y - y0) - yx * (x - x0)) / determinant,
        )

    def at_strips_mm(self, x_mm: ArrayLike, y_mm: ArrayLike) -> tuple[Floats, Floats]:
        """Positions in the strip planes for positions at isocentre, by similar triangles."""
        return (
            np.asarray(x_mm, dtype=np.float64) * self.strip_scale_x,
            np.asarray(y_mm, dtype=np.float64) * self.strip_scale_y,
        )

    def at_isocentre_mm(self, x_strip_mm: ArrayLike, y_strip_mm: ArrayLike) -> tuple[Floats, Floats]:
        """Positions at isocentre for positions in the strip planes."""
        return (
            np.asarray(x_strip_mm, dtype=np.float64) / self.strip_scale_x,
            np.asarray(y_strip_mm, dtype=np.float64) / self.strip_scale_y,
        )

    def _map(self, energy_mev_u: float) -> tuple[tuple[float, float, float, float], tuple[float, float]]:
        """Calibration at an energy: interpolated between its points, constant outside, identity without any."""
        points = self._calibration
        if not points:
            return (1.0, 0.0, 0.0, 1.0), (0.0, 0.0)
        low, high, share = points[0], points[0], 0.0
        if energy_mev_u >= points[-1].energy_mev_u:
            low = high = points[-1]
        else:
            for left, right in itertools.pairwise(points):
                if left.energy_mev_u <= energy_mev_u < right.energy_mev_u:
                    low, high = left, right
                    share = (energy_mev_u - left.energy_mev_u) / (right.energy_mev_u - left.energy_mev_u)
        mix = [
            (1.0 - share) * a + share * b
            for a, b in (
                (low.xx, high.xx),
                (low.xy, high.xy),
                (low.yx, high.yx),
                (low.yy, high.yy),
                (low.x0_mm, high.x0_mm),
                (low.y0_mm, high.y0_mm),
            )
        ]
        return (mix[0], mix[1], mix[2], mix[3]), (mix[4], mix[5])


def spot_sigma_mm(machine: TreatmentMachine, energy_mev_u: float) -> tuple[float, float]:
    """Expected sigma (x, y) in air at isocentre, mm: interpolated in the machine's table, constant outside it."""
    table = machine.spot_sizes
    energies = [point.energy_mev_u for point in table]
    return (
        float(np.interp(energy_mev_u, energies, [point.sigma_x_mm for point in table])),
        float(np.interp(energy_mev_u, energies, [point.sigma_y_mm for point in table])),
    )


def fwhm_mm(sigma_mm: float) -> float:
    """Full width at half maximum of a Gaussian of that sigma: 2 sqrt(2 ln 2) sigma."""
    return 2.0 * math.sqrt(2.0 * math.log(2.0)) * sigma_mm
