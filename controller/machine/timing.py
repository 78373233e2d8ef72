"""How long a field takes, from the site's published values alone: what `check` shows before there is any log.

Beam at its nominal intensity, no ripple, no time for messages: a machine that keeps to its data sheet. The moves in
raster mode cost nothing while beam stays on, as their particles count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.machine.program import BEAM_OFF_AFTER, BEAM_OFF_MOVE, LayerProgram
from controller.plan.model import PlanField
from sites.schema import Accelerator, Site


@dataclass(frozen=True, slots=True)
class FieldTime:
    """Where the time of a field goes."""

    beam_on_s: float
    layer_changes_s: float
    """New energies: filling anew, or stepping the energy."""
    spill_gaps_s: float
    """Filling anew because a filling was used up."""
    moves_s: float
    """Magnet moves with beam off, settling, and switching beam off and on."""
    setup_s: float
    """Gantry, couch rotation and inserts, from the room's default."""
    total_s: float


@dataclass(slots=True)
class _Filling:
    """What is left of the present filling of a synchrotron."""

    time_s: float = 0.0
    particles: float = 0.0


def estimate_field(
    site: Site, field: PlanField, programs: Sequence[LayerProgram], before: PlanField | None = None
) -> FieldTime:
    """Estimate the time of one field; `programs` are those of `build_field`.

    The first energy costs as much as a change to a higher one: the machine's state before is not known.
    """
    accelerator = site.accelerator
    filling = _Filling()
    beam_on = layer_changes = spill_gaps = moves = 0.0
    energy: float | None = None
    for program in programs:
        if not len(program.visits):
            continue
        change, fresh = _energy_change_s(accelerator, energy, program.energy_mev_u, filling)
        layer_changes += change
        energy = program.energy_mev_u
        if fresh:
            filling.time_s, filling.particles = _full(accelerator)
        particles = program.visits["particles"]
        visit_s = particles / program.rate_per_s
        before_s = _beam_off_times_s(site, program)
        beam_on += float(visit_s.sum())
        moves += float(before_s.sum())
        if accelerator.kind == "synchrotron":
            spill_gaps += accelerator.gap_s * _refills(accelerator, filling, visit_s, before_s, program.rate_per_s)
    setup = _setup_s(site, field, before)
    total = beam_on + layer_changes + spill_gaps + moves + setup
    return FieldTime(beam_on, layer_changes, spill_gaps, moves, setup, total)


def _full(accelerator: Accelerator) -> tuple[float, float]:
    return accelerator.flat_top_s or math.inf, accelerator.particles_per_spill or math.inf


def _energy_change_s(
    accelerator: Accelerator, before: float | None, energy: float, filling: _Filling
) -> tuple[float, bool]:
    """Time of an energy change, and whether it comes with a new filling."""
    if before is not None and energy == before:
        return 0.0, False
    falls = before is not None and energy < before
    if accelerator.kind == "cyclotron":
        return (accelerator.energy_step_s if falls else accelerator.energy_step_up_s), False
    lasts = filling.particles > 0 and filling.time_s > accelerator.energy_step_s
    if falls and lasts and accelerator.extended_flat_top:
        filling.time_s -= accelerator.energy_step_s
        return accelerator.energy_step_s, False
    return accelerator.gap_s, True


def _beam_off_times_s(site: Site, program: LayerProgram) -> NDArray[np.float64]:
    """Time (s) from the end of the visit before to beam at this one, for each visit; 0 where beam stays on."""
    visits = program.visits
    waits = np.zeros(len(visits))
    for name, axis in (("x_current_a", site.scanning.x), ("y_current_a", site.scanning.y)):
        step = np.abs(np.diff(visits[name], prepend=visits[name][0]))
        np.maximum(waits, np.where(step > 0, step / axis.slew_a_per_s + axis.settle_us * 1e-6, 0.0), out=waits)
    switching = (site.accelerator.beam_off_delay_us + site.accelerator.beam_on_delay_us) * 1e-6
    after_off = np.concatenate([[False], (visits["flags"][:-1] & BEAM_OFF_AFTER) != 0])
    moved_off = (visits["flags"] & BEAM_OFF_MOVE) != 0
    return np.where(moved_off | after_off, waits + switching, 0.0)


def _refills(
    accelerator: Accelerator,
    filling: _Filling,
    visit_s: NDArray[np.float64],
    before_s: NDArray[np.float64],
    rate_per_s: float,
) -> int:
    """Use the filling for a layer's visits, and count how often a new one is needed."""
    refills = 0
    full_s, full_particles = _full(accelerator)
    full_beam_s = min(full_s, full_particles / rate_per_s)
    for wait_s, beam_s in zip(before_s.tolist(), visit_s.tolist(), strict=True):
        filling.time_s -= wait_s
        left_s = beam_s
        usable_s = min(filling.time_s, filling.particles / rate_per_s)
        if usable_s < left_s:
            left_s -= max(usable_s, 0.0)
            needed = max(math.ceil(left_s / full_beam_s), 1)
            left_s -= (needed - 1) * full_beam_s
            refills += needed
            filling.time_s, filling.particles = full_s, full_particles
        filling.time_s -= left_s
        filling.particles -= left_s * rate_per_s
    return refills


def _setup_s(site: Site, field: PlanField, before: PlanField | None) -> float:
    """Gantry, couch rotation and inserts move together; the slowest counts. Both start where the field before was."""
    gantry_deg = site.gantry.default_deg if before is None else before.gantry_deg
    couch_deg = 0.0 if before is None else before.couch.rotation_deg
    turn = abs(field.gantry_deg - gantry_deg) % 360.0
    couch = abs(field.couch.rotation_deg - couch_deg) % 360.0
    return max(
        min(turn, 360.0 - turn) / site.gantry.speed_deg_per_s,
        min(couch, 360.0 - couch) / site.couch.speed_deg_per_s,
        site.nozzle.insert_time_s,
    )
