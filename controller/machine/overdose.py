"""An upper bound on the dose that one particle adds at the centre of its spot, for limits on over-delivery.

Derivation. In the power law R = alpha T^p between energy and range (Bragg and Kleeman; alpha and p fitted to ranges
in water), a particle with residual range r loses dT/dr = r^(1/p - 1) / (p alpha^(1/p)), which has no bound as r goes
to 0; range straggling, a Gaussian of sigma_R, smears it (Bortfeld, Med. Phys. 24, 1997), so that the highest mean
loss anywhere in depth is

    S_peak = C_p sigma_R^(1/p - 1) / (p alpha^(1/p)),   C_p = max over z of E[max(z + Z, 0)^(1/p - 1)], Z normal.

Laterally the spot is a Gaussian with the sigmas in air. So, per particle,

    D = S_peak / (density x 2 pi sigma_x sigma_y).

It is an upper bound for a real beam: fragmentation and nuclear loss, scattering in the patient, momentum spread and
ripple filters all lower the peak, and none of them is counted here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from controller.machine.physics import IONS, JOULE_PER_MEV, range_water_cm
from controller.machine.program import LayerProgram


@dataclass(frozen=True, slots=True)
class _PowerLaw:
    alpha_cm: float
    p: float
    peak: float
    """C_p above."""


_LAWS = {
    "1H": _PowerLaw(0.00240, 1.755, 0.9572),
    "12C": _PowerLaw(0.00109, 1.695, 0.9437),
}


def range_straggling_cm(ion: str, energy_mev_u: float) -> float:
    """Sigma of the range, cm: 0.012 R^0.935 for protons (Bortfeld 1997), less by sqrt(A) for heavier ions.

    At equal range, relative straggling falls with the square root of the mass (Rossi, High-Energy Particles).
    """
    return 0.012 * math.pow(range_water_cm(ion, energy_mev_u), 0.935) / math.sqrt(IONS[ion].nucleons)


def peak_dose_gy_per_particle(ion: str, energy_mev_u: float, sigma_x_mm: float, sigma_y_mm: float) -> float:
    """Upper bound of the physical dose (Gy) of one particle at its spot's centre, at the worst depth, in water."""
    law = _LAWS[ion]
    slope = 1.0 / law.p - 1.0
    straggling = range_straggling_cm(ion, energy_mev_u)
    loss_mev_u_cm = law.peak * math.pow(straggling, slope) / (law.p * math.pow(law.alpha_cm, 1.0 / law.p))
    loss_mev_cm = IONS[ion].nucleons * loss_mev_u_cm
    area_cm2 = 2.0 * math.pi * (sigma_x_mm / 10.0) * (sigma_y_mm / 10.0)
    return loss_mev_cm * JOULE_PER_MEV / (area_cm2 * 1e-3)  # 1e-3 kg in a cm3 of water


def peak_gy(program: LayerProgram) -> float:
    """The same for the spots of a layer."""
    return peak_dose_gy_per_particle(program.ion, program.energy_mev_u, program.sigma_x_mm, program.sigma_y_mm)
