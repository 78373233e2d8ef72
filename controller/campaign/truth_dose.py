"""How much too much a simulated treatment gave at its worst point, in Gy, from what really happened in the plant.

Each ion is given the peak of its spot's dose kernel (`controller.machine.overdose`: an upper bound of the physical dose
at the spot's centre, at the worst depth), spread laterally as a Gaussian with the spot's planned sigmas. Doses of
overlapping spots add, those of different energies too, as if all peaks lay at one depth: an upper bound, as a limit
on harm wants it. The controller never sees any of this during a treatment.

    excess      ions above what a visit was to get, and all ions outside any planned visit
    misplaced   what the ions give where they came, less what as many would have given where they belong
    worst       both together; what is missing elsewhere makes up for nothing, unless it is missing at that very point
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.machine.overdose import peak_dose_gy_per_particle
from controller.machine.program import LayerProgram
from controller.machine.runaway import EXCESS_LIMIT_GY

Floats = NDArray[np.float64]

LIMIT_GY = EXCESS_LIMIT_GY
"""Excess at the worst point from which a treatment counts as unsafe (design brief, from IEC 60601-2-64)."""
NEGLIGIBLE_GY = 1e-6
CHUNK = 256
_AREA_SIDE = math.sqrt(2.0 * math.pi)


@dataclass(frozen=True, slots=True)
class TruthDose:
    """Figures of a whole treatment: the worst field's."""

    excess_gy: float
    """At the worst point, from ions too many."""
    misplaced_gy: float
    """At the worst point, from ions beside their place."""
    worst_gy: float
    """At the worst point, from both."""
    average_gy: float
    """Excess of the worst field, over the field's area."""
    excess_particles: float
    """All fields."""
    unplanned_particles: float
    """Of these: outside any planned visit."""
    field: int
    """Field of the worst point, from 1 on; 0: none had beam."""


@dataclass(frozen=True, slots=True)
class _Sources:
    """Gaussian spots: centre, sigma, dose at the centre."""

    x_mm: Floats
    y_mm: Floats
    sigma_x_mm: Floats
    sigma_y_mm: Floats
    gy: Floats

    def dose_at(self, x_mm: Floats, y_mm: Floats) -> Floats:
        """Sum of all at each point."""
        kept = np.abs(self.gy) > NEGLIGIBLE_GY / max(1, len(self.gy))
        x, y, wx, wy, gy = (a[kept] for a in (self.x_mm, self.y_mm, self.sigma_x_mm, self.sigma_y_mm, self.gy))
        dose = np.zeros(len(x_mm))
        for first in range(0, len(x_mm), CHUNK):
            here = slice(first, first + CHUNK)
            dx = (x_mm[here, None] - x) / wx
            dy = (y_mm[here, None] - y) / wy
            dose[here] = np.exp(-0.5 * (dx * dx + dy * dy)) @ gy
        return dose


def truth_dose(
    truths: Sequence[NDArray[Any]], units_per_particle: int, programs: Sequence[Sequence[LayerProgram]]
) -> TruthDose:
    """Judge a treatment. `truths`: per field, records (units, x, y) by visit id, as `record.truth` takes them."""
    fields = [
        _field(truth, units_per_particle, layers, number)
        for number, (truth, layers) in enumerate(zip(truths, programs, strict=False), 1)
    ]
    with_beam = [field for field in fields if field is not None]
    if not with_beam:
        return TruthDose(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
    worst = max(with_beam, key=lambda f: f.worst_gy)
    return TruthDose(
        excess_gy=max(f.excess_gy for f in with_beam),
        misplaced_gy=max(f.misplaced_gy for f in with_beam),
        worst_gy=worst.worst_gy,
        average_gy=max(f.average_gy for f in with_beam),
        excess_particles=sum(f.excess_particles for f in with_beam),
        unplanned_particles=sum(f.unplanned_particles for f in with_beam),
        field=worst.field,
    )


def _field(
    truth: NDArray[Any], units_per_particle: int, programs: Sequence[LayerProgram], number: int
) -> TruthDose | None:
    used = np.flatnonzero(truth["units"])
    layers = [p for p in programs if len(p.visits)]
    if len(used) == 0 or not layers:
        return None
    got = truth["units"][used] / units_per_particle
    x = truth["x"][used] / truth["units"][used]
    y = truth["y"][used] / truth["units"][used]
    # what was planned of the visits that had beam; an unplanned one counts with the field's worst kernel
    kernels = [peak_dose_gy_per_particle(p.ion, p.energy_mev_u, p.sigma_x_mm, p.sigma_y_mm) for p in layers]
    worst = layers[int(np.argmax(kernels))]
    count = 1 + max(int(used[-1]), *(int(p.visits["visit"][-1]) for p in layers))
    planned, px, py = np.zeros(count), np.full(count, np.nan), np.full(count, np.nan)
    peak = np.full(count, max(kernels))
    wx, wy = np.full(count, worst.sigma_x_mm), np.full(count, worst.sigma_y_mm)
    for program, kernel in zip(layers, kernels, strict=True):
        at = program.visits["visit"]
        planned[at] = program.visits["particles"]
        px[at], py[at] = program.visits["x_mm"], program.visits["y_mm"]
        peak[at], wx[at], wy[at] = kernel, program.sigma_x_mm, program.sigma_y_mm
    wanted = planned[used]
    peak, wx, wy = peak[used], wx[used], wy[used]
    px = np.where(np.isnan(px[used]), x, px[used])
    py = np.where(np.isnan(py[used]), y, py[used])
    excess = np.maximum(got - wanted, 0.0)
    within = got - excess

    def peak_of(came: Floats, belonged: Floats) -> float:
        sources = _Sources(
            np.concatenate([x, px]),
            np.concatenate([y, py]),
            np.concatenate([wx, wx]),
            np.concatenate([wy, wy]),
            np.concatenate([came * peak, -belonged * peak]),
        )
        return max(0.0, float(sources.dose_at(x, y).max()))

    lengths = (float(np.ptp(px)) + _AREA_SIDE * float(wx.max()), float(np.ptp(py)) + _AREA_SIDE * float(wy.max()))
    integral = float((excess * peak * 2.0 * math.pi * wx * wy).sum())
    return TruthDose(
        excess_gy=peak_of(excess, np.zeros(len(used))),
        misplaced_gy=peak_of(within, within),
        worst_gy=peak_of(got, within),
        average_gy=integral / (lengths[0] * lengths[1]),
        excess_particles=float(excess.sum()),
        unplanned_particles=float(got[wanted == 0.0].sum()),
        field=number,
    )
