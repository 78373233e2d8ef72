"""What a layer becomes for the machine: one row a visit, and the few numbers that hold for all of them.

A visit is one stay of the beam at one spot in one painting. Visit ids number a field's visits from 1 on, in
the order of delivery; zero-weight spots get none.

How the spot engine ends visits (the rule that presets are made for): it counts electrometer 1 only
while beam is requested and for a tail window after, from the start of the layer; visit k ends when

    counted >= preset_1 + ... + preset_k - early

where early is `early_on_counts` where the beam stays on into visit k + 1 (charge still drifting in the chamber),
and `early_off_counts` where it goes off (the same, and the beam-off delay). Targets are cumulative, so what one visit
gets too much the next gets less; nothing adds up over a layer. A visit that a hold or the end of a spill stops with
less than half of `early` to go is over: so small a portion cannot be given, and no other spot may get it. With the
safety chain open it is not over but stopped: a later part may give the rest at a lower intensity. While beam is still
on after its request fell, visits end by `early_on_counts`, as with request.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BEAM_OFF_MOVE = 1
"""Visit flag: the move to this visit is made with beam off."""
BEAM_OFF_AFTER = 2
"""Visit flag: beam goes off when this visit ends (a gap follows, discrete mode, or the layer's end)."""

VISIT_PLAN_DTYPE = np.dtype(
    [
        ("visit", "<u4"),  # id, from 1, consecutive in a field
        ("painting", "<u2"),  # from 0
        ("spot", "<u4"),  # index in the plan's layer
        ("x_mm", "<f8"),  # planned, at isocentre
        ("y_mm", "<f8"),
        ("particles", "<f8"),  # planned, this painting
        ("meterset", "<f8"),  # planned, this painting, in the field's unit
        ("x_current_a", "<f8"),  # set-points, rounded to the engine's resolution
        ("y_current_a", "<f8"),
        ("preset_counts", "<u4"),  # electrometer 1
        ("expected_counts_2", "<f8"),  # electrometer 2
        ("backup_counts", "<u4"),  # electrometer 2's own limit for this visit
        ("time_limit_ms", "<u2"),  # beam-on time
        ("flags", "<u2"),
        ("x_strip_mm", "<f8"),  # expected centroid at the strip plane
        ("y_strip_mm", "<f8"),
        ("position_limit_mm", "<f8"),  # at isocentre
    ]
)


@dataclass(frozen=True, eq=False)
class LayerProgram:
    """One layer, ready to be downloaded."""

    field_index: int
    layer_index: int
    plan_energy_mev_u: float
    energy_mev_u: float
    """Set energy: the machine's nearest to the plan's."""
    ion: str
    intensity_level: int
    """Index into the site's intensities."""
    rate_per_s: float
    counts_per_particle: float
    """Electrometer 1, corrections of this part included."""
    counts_per_particle_2: float
    particles_per_mu: float
    early_on_counts: int
    early_off_counts: int
    sigma_x_mm: float
    """Expected sigma at isocentre."""
    sigma_y_mm: float
    strip_scale_x: float
    """Position at the strips = this x position at isocentre."""
    strip_scale_y: float
    visits: NDArray[np.void] = field(repr=False)
    """`VISIT_PLAN_DTYPE`, in order of delivery; empty for a layer of zero-weight spots only."""

    @property
    def beam_time_s(self) -> float:
        """Ideal beam-on time."""
        return float(self.visits["particles"].sum()) / self.rate_per_s
