"""Step mode: how much more than its preset a spot can get, and how long beam can be off before it, at the worst.

Over-delivery. The electrometer ends a spot, so the PC has no part in it: between a set-point that was written and one
that was verified there is no beam (0 particles, however long the PC stalls), and after the go only the preset ends it.
What comes after the preset's last count is rate x (beam-off delay + drift of the charge), which the preset allows for
at the nominal rate (`early_off_counts`); what it cannot know is

    rate x (beam-off delay + lag) x RIPPLE_SIGMAS x ripple                       the rate in that moment
  + rate x electrometer reaction x (1 + RIPPLE_SIGMAS x ripple)                  counts before the output falls
  + rate x lag x exp(-TAIL_LAGS)                                                 charge that drifts after the tail

and one count. The site's tolerance is that of the interlock SPOT_DOSE_PRIMARY: max(spot_dose x preset,
spot_dose_counts).

Dead time, from the end of a spot's beam to the next spot's: the tail, a look that just missed it, the look that sees
it, set-points, slew and settling, two read-backs (the first may come too early), the go, and beam-on delay. Each
transaction counts with its link's 99th percentile, the PC's own timer with that of its lateness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.machine.program import LayerProgram
from drivers.errors import SpotwiseError
from sites.schema import Site, Stepping

RIPPLE_SIGMAS = 3.0
TAIL_LAGS = 8.0
"""The electrometer waits for so many lags of the slower chamber after the beam-off delay."""
LOOKS, SETS, READBACKS, GOES = 2, 1, 2, 1

SPOT_BOUND_DTYPE = np.dtype(
    [
        ("visit", "<u4"),
        ("spot", "<u4"),
        ("excess_counts", "<f8"),  # bound on counts beyond the preset
        ("excess_limit_counts", "<f8"),
        ("dead_ms", "<f8"),  # bound on beam-off time before the visit, 0 for a layer's first
        ("time_ms", "<f8"),  # dead time and beam
    ]
)


@dataclass(frozen=True, slots=True)
class Latency:
    """Times (ms) of what was asked of one link, or of the PC's timer."""

    name: str
    count: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, name: str, times_s: list[float]) -> Latency:
        """Percentiles of measured times, to a microsecond."""
        ms = np.asarray(times_s) * 1e3
        p50, p99, p999, longest = (round(float(np.percentile(ms, share)), 3) for share in (50.0, 99.0, 99.9, 100.0))
        return cls(name, len(ms), p50, p99, p999, longest)


@dataclass(frozen=True, slots=True)
class Latencies:
    """What a step is made of, as measured."""

    supply: Latency
    electrometer: Latency
    timer: Latency


NO_LATENCY = Latency("none", 0, 0.0, 0.0, 0.0, 0.0)
DATA_SHEET = Latencies(NO_LATENCY, NO_LATENCY, NO_LATENCY)
"""What a check can know: the devices alone."""


def stepping(site: Site) -> Stepping:
    """The site's limits of step mode."""
    if site.scanning.stepping is None:
        raise SpotwiseError(f"site {site.name} has a spot engine: there are no steps to judge")
    return site.scanning.stepping


def host_ms(latencies: Latencies) -> float:
    """The PC's and the links' part of a dead time."""
    return (
        (LOOKS + GOES) * latencies.electrometer.p99_ms
        + (SETS + READBACKS) * latencies.supply.p99_ms
        + latencies.timer.p99_ms
    )


def spot_bounds(site: Site, program: LayerProgram, latencies: Latencies = DATA_SHEET) -> NDArray[np.void]:
    """Bounds of every visit of a layer, `SPOT_BOUND_DTYPE`."""
    visits = program.visits
    bounds = np.zeros(len(visits), SPOT_BOUND_DTYPE)
    if not len(visits):
        return bounds
    accelerator, tolerances, chambers = site.accelerator, site.tolerances, site.dosimetry
    bounds["visit"], bounds["spot"] = visits["visit"], visits["spot"]
    off_s, lag_s = accelerator.beam_off_delay_us * 1e-6, chambers.primary.lag_us * 1e-6
    surge = RIPPLE_SIGMAS * accelerator.ripple_rms
    particles = program.rate_per_s * (
        (off_s + lag_s) * surge
        + stepping(site).electrometer_reaction_us * 1e-6 * (1.0 + surge)
        + lag_s * math.exp(-TAIL_LAGS)
    )
    preset = visits["preset_counts"].astype(np.float64)
    bounds["excess_counts"] = particles * program.counts_per_particle + 1.0
    bounds["excess_limit_counts"] = np.maximum(tolerances.spot_dose * preset, tolerances.spot_dose_counts)

    travel_s = np.zeros(len(visits))
    for name, axis in (("x_current_a", site.scanning.x), ("y_current_a", site.scanning.y)):
        step = np.abs(np.diff(visits[name], prepend=visits[name][0]))
        np.maximum(travel_s, step / axis.slew_a_per_s + axis.settle_us * 1e-6, out=travel_s)
    tail_s = off_s + TAIL_LAGS * max(chambers.primary.lag_us, chambers.secondary.lag_us) * 1e-6
    device_ms = (travel_s + tail_s + accelerator.beam_on_delay_us * 1e-6) * 1e3
    bounds["dead_ms"] = device_ms + host_ms(latencies)
    bounds["dead_ms"][0] = 0.0  # a layer's first visit waits for its energy far longer
    bounds["time_ms"] = bounds["dead_ms"] + visits["particles"] / program.rate_per_s * 1e3
    return bounds


@dataclass(frozen=True, slots=True)
class StepProblem:
    """One spot that cannot be held in tolerance."""

    rule: str
    layer: int
    spot: int
    visit: int
    value: float
    limit: float
    reason: str


def step_problems(site: Site, program: LayerProgram, latencies: Latencies = DATA_SHEET) -> Iterator[StepProblem]:
    """Spots of a layer whose bounds are beyond what the site tolerates, each with its reason."""
    dead_limit_ms = stepping(site).dead_time_ms
    host = host_ms(latencies)
    for bound in spot_bounds(site, program, latencies):
        place = program.layer_index, int(bound["spot"]), int(bound["visit"])
        excess, excess_limit, dead_ms = (float(bound[n]) for n in ("excess_counts", "excess_limit_counts", "dead_ms"))
        if not excess <= excess_limit:
            reason = f"up to {excess:.3g} counts beyond its preset, tolerated are {excess_limit:.3g}"
            yield StepProblem("STEP_EXCESS", *place, excess, excess_limit, reason)
        if not dead_ms <= dead_limit_ms:
            reason = (
                f"beam off for up to {dead_ms:.3g} ms before it, {host:.3g} ms of it PC and links; the site tolerates "
                f"{dead_limit_ms:g} ms"
            )
            yield StepProblem("STEP_DEAD_TIME", *place, dead_ms, dead_limit_ms, reason)
