"""Two integral chambers with electrometers: charge drifts, is collected, converted, counted; nothing is lost.

The charge that ions free is collected with a lag (first order, `drain` of what drifts per 10 us), so a tail
follows beam-off. Recombination and saturation act on what is collected.
"""

from __future__ import annotations

from drivers.compiled import compiled, compiled_inline
from simulators.plant.state import COUNT_UNIT, ION_UNIT, STEP_NS

FLUSH = 4096
"""Ion units below which the rest of a tail is collected at once (0.4 % of one ion)."""


@compiled_inline
def _drain(drift, share):
    if drift < FLUSH:
        return drift
    return (drift * share) >> 16


@compiled_inline
def gain_units(counts_per_ion, ks_s, rate_units_ns, factor):
    """Count units per ion at this rate: 1 / ks of what is freed is collected."""
    rate_per_s = float(rate_units_ns) * (1e9 / ION_UNIT)
    return int(counts_per_ion * max(0.0, factor) / (1.0 + ks_s * rate_per_s) * COUNT_UNIT)


@compiled
def advance_chambers(plant, units, gain_1, gain_2):
    """One step: `units` of ions passed both chambers."""
    p = plant.parameters
    s = plant.state
    s.drift_1 += units
    out = _drain(s.drift_1, p.drain_1)
    s.drift_1 -= out
    total = s.rest_1 + out * gain_1
    s.counts_1 += total >> 20
    s.rest_1 = total & (ION_UNIT - 1)
    s.drift_2 += units
    out = _drain(s.drift_2, p.drain_2)
    s.drift_2 -= out
    total = s.rest_2 + out * gain_2
    s.counts_2 += total >> 20
    s.rest_2 = total & (ION_UNIT - 1)
    s.counts_1 += p.pedestal_1
    s.counts_2 += p.pedestal_2


@compiled
def idle_chambers(plant, steps):
    """`steps` steps without beam or tail: pedestals only."""
    p = plant.parameters
    s = plant.state
    s.counts_1 += steps * p.pedestal_1
    s.counts_2 += steps * p.pedestal_2


def drain_share(lag_us: float) -> int:
    """Share (2^-16) collected per step for a mean lag: lag = step x (1 / share - 1/2)."""
    share = 1.0 / (lag_us * 1000.0 / STEP_NS + 0.5)
    return min(65536, max(64, round(share * 65536)))
