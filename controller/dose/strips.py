"""The strip planes: charge, place and width of the beam inside a window, the strips' pedestals, and bad strips.

Compiled. Sums over strips and frames are integers, so they do not depend on order or batch; what is computed from
them is strict float64.

A strip is bad because the site says so, because it is silent while the strips on both sides carry a clear signal
(dead), or because it shows charge where none can be (hot): its pedestal is far off, or it towers over both neighbours.
Beams are bell-shaped, and a bell's logarithm is a parabola: a strip's charge is the geometric mean of its
neighbours' times exp(1 / (2 (sigma / pitch)^2)). So one bad strip between good ones is filled; of several in a row
none is, and what they may have held bounds how far the centroid can be off.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from controller.record.schema import QUALITY_STRIP_BAD, QUALITY_STRIP_FOUND
from drivers.compiled import compiled, compiled_inline
from drivers.wires.frames import STRIPS
from interlocks.realtime import judge_strips

PAYLOAD = 16
WINDOW_SIGMA = 6.0
STRIP_KNOWN = 1
"""Bad by the site file."""
STRIP_DEAD = 2
STRIP_HOT = 4
DEAD_SHARE = 10
"""A strip is dead with less than a tenth of what the weaker of its neighbours has: of a bell it has more than that."""
DEAD_RUN = 3
"""Strips in a row that may be found dead at once: a wider gap is more likely one between beam and a hot strip."""
HOT_FACTOR = 3.0
"""A strip is hot with more than three times what a bell allows it beside its stronger neighbour."""
NOISE_UNITS = 4
"""A signal is clear above this much a frame: three times the noise of a strip."""
FRACTION_BITS = 16
"""Pedestals, and a visit's sums until it is closed, have so many bits after the point: half a unit a frame on every
strip, rounded away, would make the width of a weak beam: it grows with the frames as the charge does."""
HALF = 1 << (FRACTION_BITS - 1)
PEDESTAL_SHIFT = 9
"""A pedestal is the mean of about 2^9 quiet frames, one in eight: what is left of their noise is in every frame."""
FIRST_SHIFT = 6
FIRST_FRAMES = 512
"""Until so many have been learned, the mean is one of 2^6: it begins at zero."""
FILL_UNCERTAINTY = 0.25
"""Of a filled strip's charge: what a width that is off by its own limit (20 %) makes of it at sigma = pitch."""


@compiled
def window(expected_mm, sigma_mm, pitch_mm):
    """First and last strip whose charge counts: six sigma, at least four strips, to each side."""
    centre = expected_mm / pitch_mm + STRIPS // 2
    half = max(4.0, WINDOW_SIGMA * sigma_mm / pitch_mm)
    low = min(max(int(centre - half), 0), STRIPS - 1)
    high = min(max(int(centre + half), 0), STRIPS - 1)
    return low, high


@compiled
def plane_sums(m, strips, first, expected_mm, sigma_mm, pitch_mm):
    """Charge, first and second moment of one plane in one frame, bad strips left out; strip index - 64.

    Each strip's charge is also added to its sum over the visit.
    """
    low, high = window(expected_mm, sigma_mm, pitch_mm)
    charge = strips[PAYLOAD + first + low : PAYLOAD + first + high + 1]
    base = m.pedestals[first + low : first + high + 1]
    off = m.strip_off[first + low : first + high + 1]
    sums = m.strip_sums[first + low : first + high + 1]
    s0 = 0
    s1 = 0
    s2 = 0
    for i in range(charge.shape[0]):  # over slices: computed indices would be asked for their sign at each strip
        exact = ((np.int64(charge[i]) << FRACTION_BITS) - base[i]) & ~off[i]
        sums[i] += exact
        q = (exact + HALF) >> FRACTION_BITS
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
def silent(m, left, right):
    """True where all strips between these two have less than a tenth of what the weaker one has."""
    least = min(m.strip_sums[left], m.strip_sums[right])
    most = m.strip_sums[left + 1]
    for i in range(left + 2, right):
        most = max(most, m.strip_sums[i])
    return DEAD_SHARE * most < least


@compiled
def find_bad(m, first, low, high, fill):
    """Mark strips that the sums of this visit show as dead or hot; returns how many were found."""
    off = m.strip_off
    sums = m.strip_sums
    clear = max(m.limits.clear_units, NOISE_UNITS * m.running.strip_frames)
    found = 0
    for left in range(first + low, first + high):
        if off[left] != 0 or sums[left] < clear:
            continue
        for run in range(1, DEAD_RUN + 1):
            right = left + run + 1
            if right > first + high or off[right - 1] != 0 or DEAD_SHARE * sums[right - 1] >= sums[left]:
                break
            if off[right] == 0 and sums[right] >= clear and silent(m, left, right):
                for i in range(left + 1, right):
                    set_off(m, i, STRIP_DEAD)
                found += run
                break
    for k in range(first + low + 1, first + high):
        if off[k - 1] == 0 and off[k] == 0 and off[k + 1] == 0:
            most = float(max(sums[k - 1], sums[k + 1], 0))
            if sums[k] >= clear and float(sums[k]) > HOT_FACTOR * max(fill, 1.0) * most:
                set_off(m, k, STRIP_HOT)
                found += 1
    return found


@compiled
def set_off(m, k, why):
    """Use a strip no more."""
    if m.strip_off[k] == 0:
        if k < STRIPS:
            m.state.bad_x += 1
        else:
            m.state.bad_y += 1
    m.strip_off[k] = -1
    m.strip_faults[k] |= why


@compiled
def fill_strip(m, k, first, low, high, fill):
    """Charge that a bad strip is given, and how far off that may be."""
    left = k - 1
    while left >= first + low and m.strip_off[left] != 0:
        left -= 1
    right = k + 1
    while right <= first + high and m.strip_off[right] != 0:
        right += 1
    a = float(max(m.strip_sums[left], 0)) if left >= first + low else 0.0
    b = float(max(m.strip_sums[right], 0)) if right <= first + high else 0.0
    missing = right - left - 1
    if missing == 1 and left >= first + low and right <= first + high:
        charge = sqrt(a * b) * fill
        return int(charge), FILL_UNCERTAINTY * charge
    most = max(a, b)
    if most > 0.0:
        for _ in range((missing + 1) * (missing + 1) // 4):
            most *= fill
    return 0, most


@compiled
def close_plane(m, first, expected_mm, sigma_mm, pitch_mm, fill):
    """A visit's charge, first and second moment in one plane, with bad strips filled.

    Also how far its centroid may be off by bad strips (mm at the strips), and the row's quality bits.
    """
    low, high = window(expected_mm, sigma_mm, pitch_mm)
    for i in range(first + low, first + high + 1):
        m.strip_sums[i] = (m.strip_sums[i] + HALF) >> FRACTION_BITS
    quality = QUALITY_STRIP_FOUND if find_bad(m, first, low, high, fill) > 0 else 0
    s0 = 0
    s1 = 0
    s2 = 0
    bad = 0
    for i in range(low, high + 1):
        q = m.strip_sums[first + i]
        if m.strip_off[first + i] != 0:
            bad += 1
            q = np.int64(fill_strip(m, first + i, first, low, high, fill)[0])
        j = i - STRIPS // 2
        s0 += q
        s1 += q * j
        s2 += q * j * j
    bias_mm = 0.0
    if bad > 0:
        quality |= QUALITY_STRIP_BAD
        if s0 > 0:
            mean = float(s1) / float(s0)
            for i in range(low, high + 1):
                if m.strip_off[first + i] != 0:
                    doubt = fill_strip(m, first + i, first, low, high, fill)[1]
                    bias_mm += doubt * abs(float(i - STRIPS // 2) - mean) / float(s0) * pitch_mm
    return s0, s1, s2, bias_mm, quality


@compiled
def known_strips(m):
    """Leave out what the site knows to be bad."""
    limits = m.limits
    for i in range(STRIPS):
        bit = np.uint64(i % 64)
        word_x = limits.known_x_0 if i < 64 else limits.known_x_1
        word_y = limits.known_y_0 if i < 64 else limits.known_y_1
        if (word_x >> bit) & np.uint64(1) != 0:
            set_off(m, i, STRIP_KNOWN)
        if (word_y >> bit) & np.uint64(1) != 0:
            set_off(m, STRIPS + i, STRIP_KNOWN)


@compiled
def learn_pedestals(m, words):
    """Strip pedestals from a frame without beam: running means. Returns the farthest from zero."""
    most = 0
    shift = FIRST_SHIFT if m.state.pedestal_frames < FIRST_FRAMES else PEDESTAL_SHIFT
    m.state.pedestal_frames += 1
    for i in range(2 * STRIPS):
        m.pedestals[i] += ((np.int64(words[PAYLOAD + i]) << FRACTION_BITS) - m.pedestals[i]) >> shift
        most = max(most, abs(m.pedestals[i]))
    return most


@compiled
def find_hot(m, t_ns, now_ns):
    """A pedestal is far off: mark the strips that have such a one."""
    for i in range(2 * STRIPS):
        if abs(m.pedestals[i]) > m.limits.hot_pedestal and m.strip_off[i] == 0:
            set_off(m, i, STRIP_HOT)
    judge_strips(m, t_ns, now_ns)
