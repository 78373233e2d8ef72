"""Visits that the machine ended by itself, and that got less than the plan wants by more than the spot tolerance.

The engine ends a visit `early`, before its target: where beam goes off sooner than the site says (or the field has
learned), or charge is missing, what was counted on does not come, and no preset notices. Within a layer the cumulative
targets give it to the visit after (decision 0005); of the last visit before beam-off it is missing for good.

Judged where the layer's result rows are booked, since only these say why a visit ended. What an abort or a trip stopped
is partial anyhow. What the engine itself forwent, because a hold or the end of a spill came with less than half of
`early` to go, is its stated rule: written down, no trip. A part that gives a rest is judged by the whole visit's plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.machine.program import LayerProgram
from controller.record.schema import (
    QUALITY_FRAMES_LOST,
    QUALITY_REST_FORGONE,
    VISIT_PARTIAL,
    VISIT_SHORT,
)
from sites.schema import Tolerances

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Shortfalls:
    """What booked visits lack beyond their tolerance."""

    lack: Floats
    """Particles that each visit is below what it was to get; all of them, in their order."""
    limit: Floats
    """By how many particles it may be."""
    short: NDArray[np.bool_]
    """Beyond, and nobody has said why."""
    forgone: NDArray[np.bool_]
    """Beyond, by the engine's rule for rests."""


def allowed_lack(program: LayerProgram, visits: Any, planned: Sequence[LayerProgram], tolerances: Tolerances) -> Floats:
    """By how many particles each of these visits of a layer may stay below: of its plan over all parts.

    `visits`: ids. `planned`: the field's whole programs, by layer.
    """
    whole = planned[program.layer_index].visits
    particles = whole["particles"][np.asarray(visits).astype(np.int64) - int(whole["visit"][0])]
    limit: Floats = np.maximum(
        tolerances.spot_dose * particles, tolerances.spot_dose_counts / program.counts_per_particle
    )
    return limit


def find_short(
    visits: NDArray[Any], program: LayerProgram, planned: Sequence[LayerProgram], tolerances: Tolerances
) -> Shortfalls:
    """Judge booked visits of a layer (rows of `VISIT_DTYPE`, in this part's order).

    Where frames were lost, the charge that drifts from visit to visit is not known: it may be missing, too.
    """
    limit = allowed_lack(program, visits["visit"], planned, tolerances)
    drifting = program.early_on_counts / program.counts_per_particle
    limit = limit + np.where(visits["quality"] & QUALITY_FRAMES_LOST, drifting, 0.0)
    lack: Floats = visits["planned_particles"] - visits["particles_1"]
    beyond = (lack > limit) & (visits["flags"] & VISIT_PARTIAL == 0)
    by_rule = (visits["quality"] & QUALITY_REST_FORGONE) != 0
    return Shortfalls(lack, limit, beyond & ~by_rule, beyond & by_rule)


def mark_short(visits: NDArray[Any], found: Shortfalls) -> None:
    """In the journal they are not complete: a resume gives what is missing."""
    visits["flags"] |= np.where(found.short, VISIT_PARTIAL | VISIT_SHORT, 0).astype(np.uint16)
