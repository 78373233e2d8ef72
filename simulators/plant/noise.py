"""Seeded noise without state: a number is a function of (seed, index, channel), whatever way time is cut."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np

from drivers.compiled import compiled_inline

GAUSS_SIZE = 1 << 16
RIPPLE_FRAMES = 200


@compiled_inline
def splitmix64(x):
    """One round of SplitMix64 (Steele, Lea, Flood 2014)."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled_inline
def hash_of(seed, index, channel):
    """64 random bits of (seed, index, channel)."""
    return splitmix64(splitmix64(seed ^ np.uint64(channel)) + np.uint64(index))


@compiled_inline
def unit_noise(plant, index, channel):
    """A normal deviate (mean 0, sd 1) of (seed, index, channel)."""
    bits = hash_of(plant.parameters.seed, index, channel)
    return plant.gauss[bits & np.uint64(GAUSS_SIZE - 1)] * (1.0 / 4096.0)


def ripple_table() -> np.ndarray:
    """Mains harmonics of the extracted intensity, one entry a frame over 20 ms, rms 1, rounded to 2^-20.

    50 Hz and 300 Hz lines: what the power supplies of a synchrotron leave on a slow extraction.
    """
    t = np.arange(RIPPLE_FRAMES) / 10_000.0
    wave = np.sin(2 * np.pi * 50 * t) + 0.8 * np.sin(2 * np.pi * 300 * t + 0.7)
    wave /= np.sqrt(np.mean(wave**2))
    return np.round(wave * 2**20) / 2**20


def gauss_table(seed: int) -> np.ndarray:
    """Normal deviates x 4096 as int16, in seeded order; exactly mean 0 and sd 1 up to rounding."""
    rng = np.random.Generator(np.random.PCG64(seed))
    values = rng.standard_normal(GAUSS_SIZE)
    values = (values - values.mean()) / values.std()
    rounded: np.ndarray = np.clip(np.round(values * 4096), -32768, 32767).astype(np.int16)
    return rounded


def cumulative_table(steps: int, half_width: float) -> np.ndarray:
    """Cumulative normal distribution at `steps` + 1 points from -half_width to +half_width sigma, x 2^15."""
    z = np.linspace(-half_width, half_width, steps + 1)
    return np.round([(0.5 + 0.5 * erf(v / sqrt(2))) * 32768 for v in z]).astype(np.int32)
