"""How long a message travels on a virtual wire: seeded, so that the same seed gives the same run.

Each wire draws from a generator of its own, made from the seed and the wire's address. What happens on one wire
therefore never shifts the draws of another.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Latency = Callable[[str], int]
"""Address of the wire -> travel time in ns of the next message on it (one way)."""


@dataclass(frozen=True, slots=True)
class WireLatency:
    """One-way travel time of a message: uniform within mean * (1 +- jitter)."""

    mean_us: float
    jitter: float = 0.0
    """Share of the mean, 0 to 1."""

    def __post_init__(self) -> None:
        if not (self.mean_us >= 0.0 and 0.0 <= self.jitter <= 1.0):
            raise ValueError(f"wire latency: mean {self.mean_us} us must be >= 0, jitter {self.jitter} within 0 to 1")


TCP_DEFAULT = WireLatency(500.0, 0.1)
SERIAL_DEFAULT = WireLatency(3000.0, 0.1)


def seeded_latency(
    seed: int,
    *,
    tcp: WireLatency = TCP_DEFAULT,
    serial: WireLatency = SERIAL_DEFAULT,
    wires: Mapping[str, WireLatency] | None = None,
) -> Latency:
    """Latencies for a run; `wires` overrides single addresses (see `drivers.wires.addresses`)."""
    special = dict(wires or {})
    draws: dict[str, Callable[[], int]] = {}

    def source(address: str) -> Callable[[], int]:
        wire = special.get(address) or (serial if address.startswith("serial:") else tcp)
        digest = hashlib.sha256(f"{seed}|{address}".encode()).digest()
        generator = random.Random(int.from_bytes(digest[:8], "big"))
        low = round(wire.mean_us * 1000.0 * (1.0 - wire.jitter))
        span = round(wire.mean_us * 1000.0 * 2.0 * wire.jitter)
        if span == 0:
            return lambda: low
        return lambda: low + int(generator.random() * span)

    def latency(address: str) -> int:
        draw = draws.get(address)
        if draw is None:
            draw = draws[address] = source(address)
        return draw()

    return latency
