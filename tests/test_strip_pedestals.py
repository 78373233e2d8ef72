"""Strip pedestals are subtracted exactly: what is left of them must not make the width of a weak beam."""

from __future__ import annotations

import numpy as np
import pytest

from controller.dose.memory import Monitor
from controller.dose.strips import PAYLOAD, close_plane, learn_pedestals, plane_sums, width_mm
from drivers.wires.frames import STRIPS

PITCH_MM = 1.65
SIGMA_MM = 2.4
UNITS_A_FRAME = 120
"""A weak beam: eight counts of electrometer 1 in 100 us."""
FRAMES = 400


def noise(rng: np.random.Generator, pedestal: float) -> np.ndarray:
    """The words of a frame without beam: whole units whose mean is the pedestal."""
    words = np.zeros(PAYLOAD + 2 * STRIPS, np.int32)
    words[PAYLOAD:] = np.floor(rng.normal(pedestal + 0.5, 1.4, 2 * STRIPS))
    return words


def measured_width_mm(pedestal: float, seed: int, quiet: int = 6000) -> float:
    """Width of a weak beam on the x plane, after so many quiet frames that taught the pedestals."""
    rng = np.random.default_rng(seed)
    monitor = Monitor()
    m = monitor.memory[0]
    for _ in range(quiet):
        learn_pedestals(m, noise(rng, pedestal))
    edges = (np.arange(STRIPS) - STRIPS // 2 + 0.5) * PITCH_MM
    beam = np.exp(-0.5 * (edges / SIGMA_MM) ** 2)
    beam *= UNITS_A_FRAME / beam.sum()
    for _ in range(FRAMES):
        words = noise(rng, pedestal)
        words[PAYLOAD : PAYLOAD + STRIPS] += rng.poisson(beam).astype(np.int32)
        plane_sums(m, words, 0, 0.0, SIGMA_MM, PITCH_MM)
    s0, s1, s2, _, _ = close_plane(m, 0, 0.0, SIGMA_MM, PITCH_MM, 1.0)
    return float(width_mm(s0, s1, s2, PITCH_MM))


@pytest.mark.parametrize("pedestal", [3.0, 2.5, 2.25, -1.5])
def test_a_weak_beam_is_as_wide_as_it_is_whatever_part_of_a_unit_the_pedestal_has(pedestal: float) -> None:
    widths = [measured_width_mm(pedestal, seed) for seed in range(6)]
    assert np.mean(widths) == pytest.approx(SIGMA_MM, rel=0.03)
    assert np.std(widths) < 0.05 * SIGMA_MM


@pytest.mark.parametrize("words", [3, 0, -7])
def test_a_pedestal_without_noise_is_learned_to_a_hundredth_of_a_unit(words: int) -> None:
    monitor = Monitor()
    m = monitor.memory[0]
    frame = np.full(PAYLOAD + 2 * STRIPS, words, np.int32)
    for _ in range(6000):
        learn_pedestals(m, frame)
    assert np.abs(monitor.memory[0]["pedestals"] / 2**16 - words).max() < 0.01
