"""The table `accelerator` of a site file: the machine up to the nozzle."""

from __future__ import annotations

import itertools
from typing import Literal, Self

from pydantic import Field, model_validator

from sites.table import Fraction, IonName, NotNegative, Positive, Table, rising


class Accelerator(Table):
    """The machine up to the nozzle: energies, intensities, time structure."""

    kind: Literal["synchrotron", "cyclotron"]
    ions: tuple[IonName, ...] = Field(min_length=1)
    energy_min_mev_u: Positive
    energy_max_mev_u: Positive
    energy_grid_mev_u: Positive = 0.01
    energy_library_mev_u: tuple[Positive, ...] = ()
    """If not empty, only these energies exist and the grid is ignored."""
    energy_tolerance_mev_u: Positive = 0.006
    """A plan energy within this of an available one is set to that one; else it is refused."""
    energy_sensor_tolerance_mev_u: Positive = 0.2
    """Independent sensor against the set energy."""
    intensities_per_s: tuple[Positive, ...] = Field(min_length=1)
    """Particles per second of each level, rising, neighbours at most a factor 2 apart."""
    ripple_rms: Fraction
    """Intensity ripple that the machine is specified to stay below (rms, relative)."""
    flat_top_s: NotNegative
    """Longest extraction from one filling; 0: continuous beam."""
    gap_s: NotNegative
    """From the end of one flat-top to the start of the next, same or new energy."""
    particles_per_spill: NotNegative
    """Particles in one filling; 0: unlimited."""
    extraction_rise_ms: NotNegative
    extended_flat_top: bool = False
    """Multiple-energy extraction: falling energies follow inside one filling."""
    energy_step_s: NotNegative = 0.0
    """Energy change inside an extended flat-top, or of a cyclotron's degrader, downwards."""
    energy_step_up_s: NotNegative = 0.0
    """Energy change upwards of a cyclotron's degrader and beam line."""
    beam_on_delay_us: NotNegative
    beam_off_delay_us: NotNegative

    @model_validator(mode="after")
    def _levels(self) -> Self:
        levels = self.intensities_per_s
        if not rising(levels):
            raise ValueError("intensities_per_s: levels must rise")
        if not rising(self.energy_library_mev_u):
            raise ValueError("energy_library_mev_u: energies must rise")
        if any(b > 2.0000001 * a for a, b in itertools.pairwise(levels)):
            raise ValueError("intensities_per_s: neighbouring levels must be at most a factor 2 apart")
        if self.energy_max_mev_u <= self.energy_min_mev_u:
            raise ValueError("energy_max_mev_u: must be above energy_min_mev_u")
        return self
