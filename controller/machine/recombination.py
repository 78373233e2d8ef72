"""Recombination: what of the freed charge an ion chamber does not collect, and what two unequal gaps say about it.

All formulas are here, once:

* Volume recombination of a continuous beam in a parallel-plate chamber (Mie 1904; Greening, Phys. Med. Biol. 9 (1964)
  143; ICRU Report 34): 1 / f = 1 + m^2 d^4 q / (6 V^2), with m^2 = 3.97e14 s V^2 / (m C), gap d, voltage V and freed
  charge per volume and time q. While it is small it is linear in the rate: ks = 1 + a R, a ~ d^5 / (V^2 d) = d^4 / V^2
  at equal ionisation density.
* A reading that is not corrected yet shows R0 = R / ks, so ks = 1 / (1 - a R0).
* Two gaps: both chambers see the same particles, so the ratio of what they show uncorrected is
  r0 (1 + a2 R) / (1 + a1 R), nearly r0 (1 - (a1 - a2) R): its slope over the rate is a1 - a2, whatever the gains.
"""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.record.schema import QUALITY_SPLIT

M2 = 3.97e14
"""s V^2 / (m C), air at 20 C and 1013.25 hPa (ICRU Report 34)."""


def ks_at(a_s: float, rate_per_s: float) -> float:
    """Factor that corrects a reading at a true particle rate; `a_s` in s."""
    return 1.0 + a_s * rate_per_s


def ks_of_raw_rate(a_s: float, raw_rate_per_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same from the rate as read, uncorrected. Where that is absurd (a R0 near 1) at most 2."""
    share = np.clip(a_s * raw_rate_per_s, 0.0, 0.5)
    result: NDArray[np.float64] = 1.0 / (1.0 - share)
    return result


def greening_a_s(gap_mm: float, voltage_v: float, charge_per_particle_c: float, sigma_mm: float) -> float:
    """Recombination per particle rate, s, of a round Gaussian beam: for planning, and to hold a site's value against.

    Averaged over the charge, a Gaussian beam has the density charge / (4 pi sigma^2 gap).
    """
    gap_m, sigma_m = gap_mm * 1e-3, sigma_mm * 1e-3
    density = charge_per_particle_c / (4.0 * pi * sigma_m**2 * gap_m)
    return M2 * gap_m**4 * density / (6.0 * voltage_v**2)


class TwoGap:
    """Adds up the visits of a field, and gives a1 - a2 from them: a weighted straight line through ratio over rate."""

    def __init__(self) -> None:
        self._sums: NDArray[np.float64] = np.zeros(6)
        self.visits = 0
        self.rate_min_per_s = np.inf
        self.rate_max_per_s = 0.0

    def add(self, visits: NDArray[Any]) -> None:
        """Rows of `VISIT_DTYPE` with both readings, `ks_1`, `ks_2` and uncertainties.

        A visit in more than one stretch of beam has no rate of its own: while beam comes and goes it is requested, but
        not there. One such visit with its low apparent rate would decide the slope of a small field.
        """
        v = visits[(visits["particles_1"] > 0) & (visits["particles_2"] > 0) & (visits["beam_on_ns"] > 0)]
        v = v[v["quality"] & QUALITY_SPLIT == 0]
        v = v[np.isfinite(v["ks_1"]) & np.isfinite(v["u_particles_1"]) & np.isfinite(v["u_particles_2"])]
        if len(v) == 0:
            return
        rate = v["particles_1"] / (v["beam_on_ns"] * 1e-9)
        ratio = (v["particles_1"] / v["ks_1"]) / (v["particles_2"] / v["ks_2"])
        spread = (v["u_particles_1"] / v["particles_1"]) ** 2 + (v["u_particles_2"] / v["particles_2"]) ** 2
        w = 1.0 / (spread * ratio**2)
        x, y = rate * 1e-8, ratio
        self._sums += [np.sum(w), np.sum(w * x), np.sum(w * y), np.sum(w * x * x), np.sum(w * x * y), np.sum(w * y * y)]
        self.visits += len(v)
        self.rate_min_per_s = min(self.rate_min_per_s, float(rate.min()))
        self.rate_max_per_s = max(self.rate_max_per_s, float(rate.max()))

    def result(self) -> tuple[float, float] | None:
        """(a1 - a2, standard uncertainty), s; None where fewer than 20 visits, or one rate only, tell nothing.

        The uncertainty is that of the weights, or of the scatter about the line where this is greater.
        """
        s, sx, sy, sxx, sxy, syy = (float(value) for value in self._sums)
        if self.visits < 20:
            return None
        determinant = s * sxx - sx * sx
        if not determinant > 1e-9 * s * sxx:
            return None
        slope = (s * sxy - sx * sy) / determinant
        start = (sxx * sy - sx * sxy) / determinant
        chi2 = max(0.0, syy - start * sy - slope * sxy) / (self.visits - 2)
        u = (s / determinant) ** 0.5 * max(1.0, chi2**0.5)
        return -slope / start * 1e-8, u / abs(start) * 1e-8
