"""The table `dosimetry` of a site file: dose monitors, strip planes, and the air they stand in."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sites.table import Finite, Fraction, NotNegative, Positive, Table


class Chamber(Table):
    """One integral ionisation chamber with its electrometer."""

    gap_mm: Positive
    high_voltage_v: Positive
    gas: Literal["air", "nitrogen"]
    quantum_fc: Annotated[float, Field(gt=0, le=10.0)]
    """Charge per count."""
    gain: Positive = 1.0
    """Calibration factor: true charge per particle = gain x model charge per particle."""
    gain_uncertainty: Fraction = 0.01
    lag_us: NotNegative
    """Mean delay of collected charge behind the beam (ion drift)."""
    ks_per_particle_s: NotNegative = 0.0
    """Volume recombination: ks = 1 + this x particles/s."""
    ks_uncertainty: Fraction = 0.2
    """Relative standard uncertainty of that."""
    saturation_counts_per_s: Positive


StripNumber = Annotated[int, Field(ge=0, le=127)]


class Strips(Table):
    """The strip planes in front of isocentre (electrometer 1)."""

    count: Literal[128] = 128
    pitch_x_mm: Positive
    pitch_y_mm: Positive
    distance_mm: NotNegative
    """From the strip planes to isocentre, along the beam."""
    bad_x: tuple[StripNumber, ...] = ()
    """Strips known to be dead or hot, 0 to 127: filled from their neighbours, and the spots say so."""
    bad_y: tuple[StripNumber, ...] = ()
    bad_max: int = Field(default=4, ge=0, le=64)
    """More bad strips than this in a plane, known ones included, stop the beam."""
    hot_units: Positive = 50.0
    """A strip whose pedestal is farther from zero than this (1/16 count a frame) is hot."""
    noise_units: NotNegative = 2.0
    """Standard deviation of a strip's reading in a frame, in the same units."""
    bias_share: Positive = 0.5
    """Bad strips that may move a centroid by more than this share of its position limit stop the beam."""

    @model_validator(mode="after")
    def _few_bad(self) -> Self:
        for axis, bad in (("x", self.bad_x), ("y", self.bad_y)):
            if len(set(bad)) != len(bad) or len(bad) > self.bad_max:
                raise ValueError(f"bad_{axis}: must name each strip once, and no more than bad_max = {self.bad_max}")
        return self


class Dosimetry(Table):
    """Dose monitors and the air they stand in."""

    primary: Chamber
    secondary: Chamber
    strips: Strips
    reference_temperature_c: Finite = 20.0
    reference_pressure_hpa: Positive = 1013.25
    temperature_uncertainty_k: NotNegative = 0.5
    """Standard uncertainty of the sensor, and of the air in the chambers against it."""
    pressure_uncertainty_hpa: NotNegative = 1.0
    two_gap_limit: Positive = 0.002
    """Relative dose at the highest intensity by which the chambers may disagree on recombination."""
    ktp_min: Positive = 0.9
    ktp_max: Positive = 1.15
