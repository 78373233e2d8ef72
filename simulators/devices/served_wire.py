"""What a server tells about the wire it serves."""

from __future__ import annotations

from dataclasses import dataclass

from simulators.devices.frozen import FrozenBank


@dataclass(slots=True)
class ServedWire:
    """A wire that is being served, and what has happened on it."""

    address: str
    host: str
    """Empty on a serial line."""
    port: int
    """The port that was bound; 0 on a serial line."""
    path: str
    """Empty on TCP."""
    requests: int = 0
    """Requests understood, including those answered with an exception."""
    failures: int = 0
    """Requests in which the simulated device itself failed (exception 4; logged)."""
    garbage: int = 0
    """Times that bytes were thrown away, or a connection closed, because they were no request."""
    frozen: FrozenBank | None = None
    """What the device reads like while a fault freezes it, for all its connections."""
