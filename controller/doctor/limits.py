"""What a site demands of its control PC: its own values where it gives them, else what follows from its permits."""

from __future__ import annotations

from dataclasses import dataclass

from controller.delivery.watch import DRAIN_S
from drivers.wires.realtime import RealtimeWishes
from sites.schema import Device, Site

STRICT_TIME_OUT_MS = 50.0
"""Chains this quick need real-time priority; it is the longest time-out that a room with a real device may have."""
LEAST_ASYNCIO_MS = 5.0
BUFFER_MS = 100.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper limits, all in ms but counts."""

    strict: bool
    """The chain is so quick that real-time priority and two cores are demanded."""
    permit_gap_ms: float
    wake_usual_ms: float
    """99.9 % of a real-time thread's wake-ups."""
    wake_late_ms: float
    """Longest."""
    asyncio_late_ms: float
    frames_lost: int
    buffer_ms: float
    """Frames that the socket must hold while its thread does not run; a longer stall opens the chain anyway."""


def limits_of(site: Site) -> Limits:
    """The site's limits, complete."""
    given, permits = site.qualification, site.permits
    # leases are renewed at least each DRAIN_S; what is left of one is how late asyncio may be
    spare_ms = max(permits.lease_ms - 1e3 * DRAIN_S, LEAST_ASYNCIO_MS)
    return Limits(
        strict=not site.all_simulated or permits.time_out_ms <= STRICT_TIME_OUT_MS,
        permit_gap_ms=given.permit_gap_ms or permits.time_out_ms / 2,
        wake_usual_ms=permits.frame_age_max_ms / 2,
        wake_late_ms=given.wake_late_ms or permits.time_out_ms / 4,
        asyncio_late_ms=given.asyncio_late_ms or spare_ms,
        frames_lost=given.frames_lost,
        buffer_ms=min(permits.time_out_ms, BUFFER_MS),
    )


def round_trip_limits_ms(site: Site, device: Device) -> tuple[float, float]:
    """(99 %, longest) of a device's status reads.

    Most must fit well into the poll period. The longest must leave the status younger than `max_age_ms` when the next
    one comes, and be answered within the request's time-out.
    """
    period_ms = 1e3 / device.poll_hz
    longest_ms = min(device.request_timeout_ms, max(device.max_age_ms - period_ms, 0.1 * device.max_age_ms))
    return site.qualification.round_trip_share * period_ms, longest_ms


def realtime_wishes(site: Site) -> RealtimeWishes:
    """What the real-time thread asks of Linux: priority where the chain is quick."""
    return RealtimeWishes(fifo_priority=site.qualification.realtime_priority if limits_of(site).strict else None)
