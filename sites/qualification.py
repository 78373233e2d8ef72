"""The table that says what `spotwise doctor` demands of the control PC and its links."""

from __future__ import annotations

from pydantic import Field

from sites.table import NotNegative, Positive, Table


class Qualification(Table):
    """Limits of the daily qualification; those left out follow from `permits` (`controller/doctor/limits.py`).

    Defaults given here are plausible only, of no publication.
    """

    file: str | None = None
    """Where the result is kept; default ~/.local/state/spotwise/qualification-SITE-HOST.json."""
    seconds: Positive = 5.0
    """How long timers and streams are watched; a shorter watch does not qualify."""
    reads: int = Field(default=100, ge=20)
    """Status reads of each device."""
    realtime_priority: int = Field(default=20, ge=1, le=99)
    """SCHED_FIFO priority that the real-time thread asks for in a room with a real device."""
    permit_gap_ms: Positive | None = None
    """Longest pause between two permits; default half the chain's time-out."""
    wake_late_ms: Positive | None = None
    """Latest wake-up of a real-time thread; default a quarter of the chain's time-out."""
    asyncio_late_ms: Positive | None = None
    """Latest asyncio timer, longest collection; default lease_ms less the 50 ms between two renewals."""
    frames_lost: int = Field(default=0, ge=0)
    """Frames lost on loopback at 10 kHz."""
    round_trip_share: Positive = 0.5
    """99 % of a device's status reads take at most this share of its poll period."""
    wall_clock_error_ms: Positive = 1000.0
    """Largest error of the wall clock, which dates records; nothing that protects reads it."""
    disk_sync_ms: Positive = 500.0
    """Longest write of half a second of journal to the disk; layers wait for it between spills."""
    output_qa: bool = False
    """Arming asks for today's output QA."""
    output_qa_limit: Positive = 0.02
    """Largest deviation of the measured output factor from 1."""
    disk_free_gib: NotNegative = 1.0
    """Room for treatment directories."""
