"""Which intensity a layer gets: the highest that is measurable and safe.

Its shortest visit must still be measured and ended, and a beam that runs away stopped before it has given too much.

Every limit is an upper bound on the rate, so the choice is the highest of the site's levels below the least bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.machine.dosimetry import model_counts_per_particle
from controller.machine.runaway import EXCESS_LIMIT_GY, runaways
from sites.schema import Chamber, Site

ION_MOBILITY_M2_V_S = 1.6e-4
"""Slow ions in air at normal density (ICRU 31 gives 1.2e-4 to 1.9e-4); nitrogen's are no slower."""
SHORTEST_VISIT_S = 1e-3
DRIFT_TIMES = 3.0
RIPPLE_SHARE = 0.01
"""Discrete mode: what the beam does while it goes off may vary by this share of the smallest visit (rms)."""
EARLY_OFF_MARGIN = 1.5
"""A visit that ends with beam off must be this much larger than what still arrives after the decision."""


@dataclass(frozen=True, slots=True)
class RateBound:
    """One reason why the rate may not be higher."""

    rate_per_s: float
    reason: str
    visit: int | None = None
    """Index of the visit that sets the bound, if one does."""
    rule: str = "SPOT_TOO_SHORT"
    """What is broken where no level serves."""


@dataclass(frozen=True, slots=True)
class Intensity:
    """Result of the choice."""

    level: int | None
    """Index into the site's intensities; None where even the lowest is too high."""
    rate_per_s: float
    """Of that level; of the lowest one where none serves."""
    bound: RateBound
    """The tightest bound."""


def drift_time_s(chamber: Chamber) -> float:
    """Longest collection time of ions, gap^2 / (mobility x voltage)."""
    gap_m = chamber.gap_mm * 1e-3
    return gap_m * gap_m / (ION_MOBILITY_M2_V_S * chamber.high_voltage_v)


def choose_intensity(
    site: Site,
    ion: str,
    energy_mev_u: float,
    particles: NDArray[np.float64],
    beam_off_after: NDArray[np.bool_],
    peak_gy: float,
    *,
    rest_of: float | None = None,
) -> Intensity:
    """Choose the level for a layer's visits: their particles, and whether beam goes off at the end of each.

    `peak_gy`: dose of one particle at its spot's centre (`controller.machine.overdose`). Visits must not be empty.
    `rest_of`: the visits are one, the rest of a visit of so many particles that an earlier part began: its errors count
    as shares of that, and its position was measured before, so it may be as short as beam and charge allow.
    Which limit decides is in the result, for messages.
    """
    smallest_at = int(np.argmin(particles))
    smallest = float(particles[smallest_at])
    accelerator, dosimetry = site.accelerator, site.dosimetry
    bounds = []

    drift = max(drift_time_s(dosimetry.primary), drift_time_s(dosimetry.secondary))
    shortest = max(SHORTEST_VISIT_S if rest_of is None else 0.0, DRIFT_TIMES * drift)
    bounds.append(
        RateBound(
            smallest / shortest,
            f"its smallest visit has {smallest:.4g} particles and must last at least {shortest * 1e3:.3g} ms",
            smallest_at,
        )
    )
    beam_off_s = accelerator.beam_off_delay_us * 1e-6
    if site.scanning.mode == "discrete" and accelerator.ripple_rms * beam_off_s > 0:
        bounds.append(
            RateBound(
                RIPPLE_SHARE * (rest_of or smallest) / (accelerator.ripple_rms * beam_off_s),
                f"its smallest visit has {smallest:.4g} particles, of which ripple while the beam goes off may be 1 %",
                smallest_at,
            )
        )
    late_s = dosimetry.primary.lag_us * 1e-6 + beam_off_s
    if beam_off_after.any() and late_s > 0:
        off_at = int(np.argmin(np.where(beam_off_after, particles, np.inf)))
        smallest_off = float(particles[off_at])
        bounds.append(
            RateBound(
                smallest_off / (EARLY_OFF_MARGIN * late_s),
                f"a visit of {smallest_off:.4g} particles ends with beam off, and beam and charge come for "
                f"{late_s * 1e6:.4g} us after the decision",
                off_at,
            )
        )
    for name, chamber in (("primary", dosimetry.primary), ("secondary", dosimetry.secondary)):
        counts = model_counts_per_particle(chamber, dosimetry, ion, energy_mev_u)
        highest = chamber.saturation_counts_per_s / (site.tolerances.rate_factor * counts)
        bounds.append(RateBound(highest, f"the {name} chamber's electrometer would saturate at a surge"))

    for runaway in runaways(site):
        reason = f"{runaway.what} would give {EXCESS_LIMIT_GY:g} Gy too much"
        bounds.append(RateBound(runaway.highest_rate_per_s(peak_gy), reason, rule="RATE_UNSAFE"))

    bound = min(bounds, key=lambda item: item.rate_per_s)
    rates = site.accelerator.intensities_per_s
    serving = [level for level, rate in enumerate(rates) if rate <= bound.rate_per_s * (1.0 + 1e-9)]
    if not serving:
        return Intensity(None, rates[0], bound)
    return Intensity(serving[-1], rates[serving[-1]], bound)
