"""The tables of a treatment machine: what a TreatmentMachineName in a plan means in this room."""

from __future__ import annotations

import itertools
from typing import Self

from pydantic import Field, model_validator

from sites.table import Finite, IonName, Positive, Table


class MuCalibration(Table):
    """Particles per MU: coefficient x (E / reference)^exponent, E in MeV/u."""

    particles_per_mu: Positive
    reference_mev_u: Positive
    exponent: Finite


class RangeShifter(Table):
    """A range shifter that this machine has."""

    id: str
    wet_mm: Positive
    code: int = Field(ge=1, le=65535)
    """Coded identity that the nozzle reads back."""


class Snout(Table):
    """A snout that this machine has."""

    id: str
    code: int = Field(ge=1, le=65535)
    min_mm: Finite
    max_mm: Finite


class RippleFilter(Table):
    """A ripple filter that this machine has."""

    id: str
    code: int = Field(ge=1, le=65535)
    thickness_mm: Positive


class SpotSize(Table):
    """Expected spot sigma in air at isocentre at one energy; interpolated linearly."""

    energy_mev_u: Positive
    sigma_x_mm: Positive
    sigma_y_mm: Positive


class TreatmentMachine(Table):
    """What a TreatmentMachineName in a plan means in this room."""

    ion: IonName
    vsad_x_mm: Positive
    vsad_y_mm: Positive
    energy_min_mev_u: Positive
    energy_max_mev_u: Positive
    field_x_mm: Positive
    """Largest |x| at isocentre."""
    field_y_mm: Positive
    spot_min_mu: Positive
    spot_max_mu: Positive
    spot_min_particles: Positive
    spot_max_particles: Positive
    mu: MuCalibration
    range_shifters: tuple[RangeShifter, ...] = ()
    snouts: tuple[Snout, ...] = ()
    ripple_filters: tuple[RippleFilter, ...] = ()
    tune_ids: tuple[str, ...] = Field(min_length=1)
    spot_sizes: tuple[SpotSize, ...] = Field(min_length=1)
    """Rising energies; constant outside."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        pairs = (
            ("energy_max_mev_u", self.energy_min_mev_u, self.energy_max_mev_u),
            ("spot_max_mu", self.spot_min_mu, self.spot_max_mu),
            ("spot_max_particles", self.spot_min_particles, self.spot_max_particles),
        )
        for key, low, high in pairs:
            if high <= low:
                raise ValueError(f"{key}: must be above {key.replace('max', 'min')}")
        energies = [size.energy_mev_u for size in self.spot_sizes]
        if any(b <= a for a, b in itertools.pairwise(energies)):
            raise ValueError("spot_sizes: energies must rise")
        for key, ids in (
            ("range_shifters", [item.id for item in self.range_shifters]),
            ("snouts", [item.id for item in self.snouts]),
            ("ripple_filters", [item.id for item in self.ripple_filters]),
        ):
            if len(set(ids)) < len(ids):
                raise ValueError(f"{key}: an id occurs twice")
        return self
