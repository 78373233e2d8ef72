"""A layer's presets as the engine gets them: the plan's, moved by what was learned, and never by more than is allowed.

What may move: a spot by 2 % or 2 counts, a field by 0.2 %. It holds for the presets in the table and, separately, for
the counts at which the engine really ends the visits, where `early` is in it as well. The plan's presets stay what
every limit is made from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from controller.machine.program import BEAM_OFF_AFTER, BEAM_OFF_MOVE, LayerProgram

SPOT_SHARE_PERCENT = 2
SPOT_COUNTS = 2
FIELD_SHARE = 0.002
"""Sum of what all layers of a field may end too early or too late, each taken positive, over the field's counts."""
LARGEST = 2**32 - 1
"""The engine's registers hold no more."""

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Table:
    """What the engine is to end a layer's visits by."""

    early_on_counts: int
    early_off_counts: int
    preset_counts: NDArray[np.uint32] = field(repr=False)
    moved_counts: int = 0
    """Counts by which the layer as a whole ends later (negative: earlier) than without adaptation."""


def planned(program: LayerProgram) -> Table:
    """The table as it was made from plan and site."""
    return Table(program.early_on_counts, program.early_off_counts, program.visits["preset_counts"])


def adapted(program: LayerProgram, late_counts: float, allowance_counts: int) -> Table:
    """The table for `late_counts` that come after a beam-off, as near to that as the bounds let it be.

    `allowance_counts`: what is left of the field's 0.2 %.
    """
    if not np.isfinite(late_counts):
        return planned(program)
    presets = program.visits["preset_counts"].astype(np.int64)
    bounds = spot_bounds(program)
    off = goes_off(program)
    # wanted shift of each visit's end: beam-offs come so much sooner, all else stays
    wanted = program.early_off_counts - min(max(late_counts, 0.0), float(LARGEST))
    wanted = round(min(max(wanted, -float(allowance_counts)), float(allowance_counts)))
    ends = np.zeros(len(presets), np.int64)
    at = 0
    for index in range(len(presets)):
        aim = wanted if off[index] else 0
        at = int(min(max(aim, at - bounds[index]), at + bounds[index]))
        ends[index] = at
    # as much as possible by `early`, which is what it means; the rest, where small spots bind, by presets
    share = int(np.abs(ends[off]).min())
    while True:
        early_shift = share if wanted >= 0 else -share
        early = program.early_off_counts - early_shift
        moved = np.diff(ends - np.where(off, early_shift, 0), prepend=0)
        table = presets + moved
        if 0 <= early <= LARGEST and (np.abs(moved) <= bounds).all() and table.min() >= 1 and table.max() <= LARGEST:
            return Table(program.early_on_counts, early, table.astype(np.uint32), int(ends[-1]))
        if share == 0:
            return planned(program)
        share //= 2


def goes_off(program: LayerProgram) -> NDArray[np.bool_]:
    """For each visit: beam goes off when it ends (its flag, a beam-off move to the next, or the layer's end)."""
    flags = program.visits["flags"].astype(np.int64)
    off: NDArray[np.bool_] = (flags & BEAM_OFF_AFTER) != 0
    off[:-1] |= (flags[1:] & BEAM_OFF_MOVE) != 0
    off[-1] = True
    return off


def spot_bounds(program: LayerProgram) -> Integers:
    """Counts by which each visit may move, so that a spot with all its paintings moves by no more than it may."""
    v = program.visits
    # of the plan's layer: a resumed part has its last paintings only, and the others had their share
    paintings = int(v["painting"].max()) + 1
    presets = v["preset_counts"].astype(np.int64)
    bounds: Integers = np.maximum(presets * SPOT_SHARE_PERCENT // 100, SPOT_COUNTS // paintings)
    return bounds
