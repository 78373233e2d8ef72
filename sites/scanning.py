"""The table `scanning` of a site file: scanning magnets, their calibration, and the spot engine."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sites.adaptation import Adaptation
from sites.table import Finite, Fraction, NotNegative, Positive, Table, rising


class ScanAxis(Table):
    """One scanning magnet with its supply."""

    tesla_metre_per_a: Positive
    """Integrated field per ampere (calibrated)."""
    max_current_a: Positive
    slew_a_per_s: Positive
    settle_us: NotNegative
    """Time after a step until the field is inside the window."""
    window_a: Positive
    """Read-back window: beam starts only inside it."""
    uncertainty: Fraction
    """Relative standard uncertainty of the calibration."""


class CalibrationPoint(Table):
    """Correction of aim at one energy, fitted to measured spots; mm at isocentre.

    For the beam to arrive at (x, y), the magnets are set as if geometry alone had to reach
    (x', y') = (xx x + xy y + x0, yx x + yy y + y0).
    """

    energy_mev_u: Positive
    xx: Finite = 1.0
    xy: Finite = 0.0
    yx: Finite = 0.0
    yy: Finite = 1.0
    x0_mm: Finite = 0.0
    y0_mm: Finite = 0.0


class Stepping(Table):
    """What a laboratory without a spot engine must hold in step mode; `check` and prepare refuse what cannot."""

    electrometer_reaction_us: NotNegative
    """From the preset's last count to the fall of its output."""
    dead_time_ms: Positive
    """Longest time from the end of one spot's beam to the next spot's, with the host's and the links' share."""
    transactions: int = Field(default=500, ge=100, le=10_000)
    """How many of each link are timed at prepare."""


class Scanning(Adaptation):
    """Scan magnets and the spot engine, and what may follow its measurements."""

    engine: Literal["device", "step"] = "device"
    """device: a spot engine steps the magnets and ends spots. step: plain supplies and an electrometer with a spot
    preset; the PC sets magnets and presets spot by spot, the electrometer ends the spot."""
    stepping: Stepping | None = None
    """Engine step: its limits."""
    x: ScanAxis
    y: ScanAxis
    mode: Literal["raster", "discrete"]
    gap_beam_off_mm: Positive
    """Raster: a move longer than this is made with beam off."""
    max_visits_per_layer: int = Field(default=16384, ge=1, le=16384)
    calibration: tuple[CalibrationPoint, ...] = ()
    """Rising energies; interpolated linearly, held constant outside. Empty: no correction."""

    @model_validator(mode="after")
    def _stepping(self) -> Self:
        if (self.engine == "step") != (self.stepping is not None):
            raise ValueError("stepping: must be given with engine step, and only then")
        if self.engine == "step" and self.mode != "discrete":
            raise ValueError("mode: engine step needs discrete: nothing moves the magnets while beam is on")
        return self

    @model_validator(mode="after")
    def _usable_calibration(self) -> Self:
        if not rising(point.energy_mev_u for point in self.calibration):
            raise ValueError("calibration: energies must rise")
        for point in self.calibration:
            # With these bounds no mix of two points can be singular, and no axis swapped or mirrored.
            if not (0.5 <= point.xx <= 2 and 0.5 <= point.yy <= 2 and max(abs(point.xy), abs(point.yx)) <= 0.2):
                raise ValueError(
                    f"calibration: at {point.energy_mev_u:g} MeV/u xx and yy must be 0.5 to 2, xy and yx -0.2 to 0.2"
                )
        return self
