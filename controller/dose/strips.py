"""The strip planes: charge, place and width of the beam inside a window, and the strips' own pedestals.

Compiled. Sums over strips and frames are integers, so they do not depend on order or batch; what is computed from
them is strict float64.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from drivers.compiled import compiled, compiled_inline
from drivers.wires.frames import STRIPS

PAYLOAD = 16
WINDOW_SIGMA = 6.0


@compiled
def plane_sums(strips, pedestals, first, expected_mm, sigma_mm, pitch_mm):
    """Charge, first and second moment of one plane inside the window around the expected place; strip index - 64."""
    centre = expected_mm / pitch_mm + STRIPS // 2
    half = max(4.0, WINDOW_SIGMA * sigma_mm / pitch_mm)
    low = min(max(int(centre - half), 0), STRIPS - 1)
    high = min(max(int(centre + half), 0), STRIPS - 1)
    charge = strips[PAYLOAD + first + low : PAYLOAD + first + high + 1]
    base = pedestals[first + low : first + high + 1]
    s0 = 0
    s1 = 0
    s2 = 0
    for i in range(charge.shape[0]):  # over slices: computed indices would be asked for their sign at each strip
        q = np.int64(charge[i]) - ((base[i] + 128) >> 8)
        j = i + low - STRIPS // 2
        s0 += q
        s1 += q * j
        s2 += q * j * j
    return s0, s1, s2


@compiled_inline
def centroid_mm(s0, s1, pitch_mm):
    """Centre of charge; strip i covers (i - 64) to (i - 63) pitches."""
    return (float(s1) / float(s0) + 0.5) * pitch_mm


@compiled_inline
def width_mm(s0, s1, s2, pitch_mm):
    """Standard deviation, less the strips' own width (pitch^2 / 12); NaN if not positive."""
    mean = float(s1) / float(s0)
    variance = float(s2) / float(s0) - mean * mean - 1.0 / 12.0
    return sqrt(variance) * pitch_mm if variance > 0.0 else np.nan


@compiled
def learn_pedestals(m, words):
    """Strip pedestals from a frame without beam: running mean over about 64 frames."""
    for i in range(2 * STRIPS):
        m.pedestals[i] += ((np.int64(words[PAYLOAD + i]) << 8) - m.pedestals[i]) >> 6
