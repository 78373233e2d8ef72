"""A defective controller, for campaigns: its real-time path has no limit of dose, rate, time, place or leak any more.

What devices say of themselves (high voltage, saturation, trips, boot nonces) and which visit runs it still reads. The
limits are taken away in its memory from outside, whenever it has loaded a field, so that its judgements are the shipped
ones: what ends such a treatment is the hardware, the guard, or nobody.
"""

from __future__ import annotations

import asyncio
import math

from controller.dose.memory import Monitor

LOOK_S = 0.001
NO_COUNTS = (
    "spot_dose_counts",
    "secondary_counts",
    "field_counts_1",
    "field_counts_2",
    "idle_counts_1",
    "idle_counts_2",
)
NO_MEASURE = (
    "pedestal_per_s",
    "disagreement",
    "position_mean_mm",
    "width",
    "minimum_counts",
    "window_ma",
    "bias_share",
)
NEVER = ("proof_ns", "strips_bad", "clock_drift_ns")
NEVER_NS = 1 << 62


def take_limits(monitor: Monitor) -> None:
    """Nothing that is counted, timed or measured is too much from now on, until a field is loaded."""
    limits = monitor.limits
    for name in (*NO_COUNTS, *NO_MEASURE):
        limits[name] = math.inf
    for name in NEVER:
        limits[name] = NEVER_NS
    monitor.plan["rate_limit"] = math.inf
    monitor.plan["time_limit_us"] = NEVER_NS


async def stay_blind(monitor: Monitor) -> None:
    """Take the limits away after every loading of a field; never returns."""
    loaded = -1
    while True:
        now = int(monitor.control["clear"])
        if now != loaded:
            take_limits(monitor)
            loaded = now
        await asyncio.sleep(LOOK_S)
