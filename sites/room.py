"""What moves or waits in a treatment room, in a site file: gantry, couch, nozzle, gating."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sites.table import Finite, NotNegative, Positive, Table


class Gantry(Table):
    """Where the beam can come from."""

    kind: Literal["fixed", "rotating"]
    ports_deg: tuple[Finite, ...] = ()
    """Fixed: the ports. Rotating: empty."""
    default_deg: Finite
    tolerance_deg: Positive
    speed_deg_per_s: Positive


class Couch(Table):
    """The patient positioner."""

    tolerance_mm: Positive
    tolerance_deg: Positive
    max_pitch_roll_deg: NotNegative
    range_mm: tuple[Finite, Finite] = (-1000.0, 1000.0)
    """Least and greatest vertical, longitudinal and lateral position."""
    speed_mm_per_s: Positive
    speed_deg_per_s: Positive


class Nozzle(Table):
    """Snout and range modifiers."""

    snout_tolerance_mm: Positive
    snout_speed_mm_per_s: Positive
    insert_time_s: NotNegative


class Gating(Table):
    """Respiratory gating."""

    sources: tuple[str, ...] = ()
    hold_max_s: Positive = 60.0
    """A longer hold interrupts the treatment."""
    holds_max: int = Field(default=1000, ge=1)
