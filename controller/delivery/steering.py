"""Position feedback: how far the spots of a layer lay beside their places, and what the next layers get for it.

Each spot says which offset of the beam would have put it in its place: the offset that it had, less its error. The
median over the spots since the last decision is what the beam asks for. It is followed only where it is certain (by
three standard uncertainties, and by more than monitors of this kind resolve), only by a step a layer, and never beyond
the site's limit: then something is wrong that steering must not cover up. The judge goes on judging each spot against
the plan, whatever was corrected.

What the strip planes cannot see, feedback cannot either: a strip chamber that has itself moved would be followed.
That is what the limit is for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.machine.optics import Optics
from controller.machine.program import LayerProgram
from sites.adaptation import Adaptation
from sites.schema import ScanAxis

Floats = NDArray[np.float64]

CERTAIN = 3.0
"""A correction must exceed its standard uncertainty so many times: noise alone is followed once in 400 layers."""
SMALLEST_MM = 0.05
"""Nothing smaller is corrected; strip monitors of this kind resolve 0.1 to 0.25 mm a spot."""
SPREAD_OF_MEDIAN = 1.2533 * 1.4826
"""Standard error of a median: sqrt(pi / 2) sigma / sqrt(n), sigma = 1.4826 x median absolute deviation (Gaussian)."""
SMALLEST_UNCERTAINTY_MM = 0.01
"""A few spots that happen to agree are no proof of a greater certainty."""
FARTHEST_MM = 1000.0
"""No strip plane is as large."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the spots since the last decision asked for, and what they got; mm at isocentre."""

    spots: int
    error_mm: tuple[float, float]
    """Median error of the spots, x and y, at the offset in force until now."""
    uncertainty_mm: tuple[float, float]
    before_mm: tuple[float, float]
    after_mm: tuple[float, float]
    """Would be, where `beyond`."""
    beyond: bool
    """More than the limit: not applied."""

    @property
    def changed(self) -> bool:
        """The offset is another one than before."""
        return self.after_mm != self.before_mm


class PositionFeedback:
    """The offset of one field's beam, layer by layer."""

    def __init__(self, settings: Adaptation) -> None:
        self._settings = settings
        self._wanted: list[tuple[float, float]] = []
        self.offset_mm = (0.0, 0.0)

    def take(self, x_error_mm: float, y_error_mm: float, offset_mm: tuple[float, float] | None = None) -> None:
        """A spot was measured so far from its place; NaN, or farther than any strip plane sees, is no measurement.

        `offset_mm`: with which its layer was armed; None: the present one.
        """
        x_mm, y_mm = self.offset_mm if offset_mm is None else offset_mm
        if abs(x_error_mm) <= FARTHEST_MM and abs(y_error_mm) <= FARTHEST_MM:  # NaN is not, either
            self._wanted.append((x_mm - x_error_mm, y_mm - y_error_mm))

    def decide(self) -> Decision | None:
        """The next layer's offset, from now on in force unless it is beyond the limit; None: too few spots."""
        if len(self._wanted) < self._settings.position_feedback_spots:
            return None
        wanted = np.array(self._wanted)
        self._wanted.clear()
        middle = np.median(wanted, axis=0)
        spread = np.median(np.abs(wanted - middle), axis=0)
        uncertain = np.maximum(SPREAD_OF_MEDIAN * spread / math.sqrt(len(wanted)), SMALLEST_UNCERTAINTY_MM)
        before = np.array(self.offset_mm)
        change = middle - before
        step = np.where(np.abs(change) > np.maximum(CERTAIN * uncertain, SMALLEST_MM), change, 0.0)
        size = float(np.hypot(*step))
        if size > self._settings.position_feedback_step_mm:
            step *= self._settings.position_feedback_step_mm / size
        after = before + step
        beyond = bool(np.hypot(*after) > self._settings.position_feedback_limit_mm)
        after_mm = _pair(after) if size else self.offset_mm
        decision = Decision(len(wanted), _pair(-change), _pair(uncertain), self.offset_mm, after_mm, beyond)
        if not beyond:
            self.offset_mm = decision.after_mm
        return decision


def offset_currents_a(
    optics: Optics, axes: tuple[ScanAxis, ScanAxis], program: LayerProgram, offset_mm: tuple[float, float]
) -> tuple[float, float]:
    """Currents (A) to add to a layer's set-points for an offset (mm) at isocentre.

    Taken at the middle of the layer: over a field of 220 mm at 9 m the slope of position over current changes by 2e-4,
    which is less than 1 um of the largest offset. No set-point leaves what its supply can give.
    """
    v = program.visits
    middle = float(v["x_mm"].mean()), float(v["y_mm"].mean())
    there = optics.currents_a(program.energy_mev_u, middle[0] + offset_mm[0], middle[1] + offset_mm[1])
    here = optics.currents_a(program.energy_mev_u, *middle)
    found = []
    for axis, name, a, b in zip(axes, ("x_current_a", "y_current_a"), there, here, strict=True):
        lowest, highest = -axis.max_current_a - float(v[name].min()), axis.max_current_a - float(v[name].max())
        found.append(round(min(max(float(a - b), min(lowest, 0.0)), max(highest, 0.0)), 3))
    return found[0], found[1]


def _pair(values: Floats) -> tuple[float, float]:
    return float(values[0]), float(values[1])
