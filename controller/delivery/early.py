"""Early presets: how much charge comes after a spot's end, learned from beam-offs.

The engine ends a visit `early` before its cumulative target, because beam and drifting charge still follow. Where beam
goes off, the electrometer's counter shows afterwards how much really followed. Counts over the layer's rate are a time:
the beam-off delay and the mean lag of the charge together, which layers of any energy share. (Where beam stays on, what
still drifts is counted with the next visit and cannot be told apart; `early_on_counts` stays the site's.)

A hold or the end of a spill may have stopped a visit before its target. Nothing is learned from what follows, until a
visit that beam ran through to its end shows again where the engine's target is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from controller.delivery.early_table import Table, goes_off
from controller.machine.program import LayerProgram
from controller.record.schema import QUALITY_FRAMES_LOST, QUALITY_SATURATED
from sites.schema import Site

KEPT = 50
"""Beam-offs remembered per intensity: the newest count."""
CERTAIN = 2.0
"""What was learned replaces what was known only if it differs by more than so many standard uncertainties,"""
SMALLEST_US = 10.0
"""and by more than this, a step of the engine: beam-offs within a spill share its ripple, and are less independent."""
SIGMA_OF_MAD = 1.4826
"""Standard deviation over median absolute deviation, of a Gaussian."""
ERROR_OF_MEDIAN = 1.2533
"""Standard error of a median of n: this x sigma / sqrt(n), the root of pi / 2."""
STEP_US = 10.0
"""The engine switches beam off on a grid of this; its rms is the least spread that beam-offs can have."""
INTERRUPTED_NS = 20_000_000
"""A visit that lasts longer than twice its beam time and this was held, or waited for a spill; no move takes 10 ms."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long charge comes after the end of a spot, at one intensity."""

    after_us: float
    """Beam-off delay and lag together."""
    uncertainty_us: float
    spots: int
    layers: tuple[int, ...]
    """Indices of the layers that it was learned in."""


@dataclass(frozen=True, slots=True)
class Change:
    """Beam-off is not what it was."""

    difference_us: float
    reference: str


class LayerMeter:
    """Measures the beam-offs of one layer as its visits come in."""

    def __init__(self, program: LayerProgram, table: Table, tail_ns: float) -> None:
        """`table`: as downloaded; `tail_ns`: how long the engine goes on counting when beam is off."""
        self._program = program
        self._tail_ns = tail_ns
        self._targets = np.cumsum(table.preset_counts.astype(np.int64))
        self._table = table
        self._off = goes_off(program)
        self._per_us = program.rate_per_s * program.counts_per_particle * 1e-6
        self._start = 0
        self._pedestal = 0.0
        self._shift: float | None = None
        """Counts by which the engine's targets are known to be off the table's; None: not known."""
        self._last = -1
        self._waiting: float | None = None

    def take(self, row: Any) -> list[float]:
        """A measured visit of this layer (`controller.dose.memory.MEASURED`); returns times (us) that it settles."""
        v = self._program.visits
        index = int(np.searchsorted(v["visit"], int(row["visit"])))
        if index == 0:
            self._start, self._shift = int(row["start_1"]), 0.0
        elif index != self._last + 1:
            self._shift = self._waiting = None
        if index != 0 and self._last < 0:
            return []  # the layer's start was not seen: there is nothing to count from
        self._last = index
        planned_ns = float(v["particles"][index]) / self._program.rate_per_s * 1e9
        lasted_ns = int(row["t_end_ns"]) - int(row["t_start_ns"])
        if index == 0 or self._off[index - 1]:
            # the engine counts while it requests beam and for the tail: not the pedestal of the move before
            moved_ns = max(0.0, lasted_ns - planned_ns - (self._tail_ns if self._off[index] else 0.0))
            self._pedestal += float(row["pedestal_1"]) * moved_ns / max(lasted_ns, 1)
        counted = int(row["counts_1"]) - self._start - self._pedestal
        if lasted_ns > 2.0 * planned_ns + INTERRUPTED_NS:
            self._shift = self._waiting = None
            return []
        settled = [] if self._waiting is None else [self._waiting]
        self._waiting = None
        target = float(self._targets[index])
        if not self._off[index]:
            if self._shift is None:
                self._shift = counted - (target - self._table.early_on_counts)
            return settled
        own = int(row["counts_1"]) - int(row["start_1"])
        doubtful = int(row["quality"]) & (QUALITY_FRAMES_LOST | QUALITY_SATURATED)
        if self._shift is None or doubtful or own < 0.5 * float(self._table.preset_counts[index]):
            return settled
        time_us = (counted - (target + self._shift - self._table.early_off_counts)) / self._per_us
        if index + 1 == len(v):
            return [*settled, time_us]
        self._waiting = time_us  # whether it ended by itself shows when the next visit was not held up
        return settled


class BeamOffLearner:
    """What the beam-offs of a field say, by intensity level."""

    def __init__(self, site: Site) -> None:
        self._settings = site.scanning
        self.known_us = site.accelerator.beam_off_delay_us + site.dosimetry.primary.lag_us
        self._times: dict[int, deque[tuple[float, int]]] = {}
        self._learned: dict[int, float] = {}

    def take(self, level: int, layer: int, time_us: float) -> Change | None:
        """A beam-off was measured; says so where the newest ones together are beyond the site's limit."""
        if not math.isfinite(time_us):
            return None
        times = self._times.setdefault(level, deque(maxlen=KEPT))
        times.append((time_us, layer))
        newest = [t for t, _ in times][-self._settings.learn_early_spots :]
        if len(newest) < self._settings.learn_early_spots:
            return None
        middle = float(np.median(newest))
        references = [("the site's value", self.known_us)]
        if level in self._learned:
            references.append(("learned before in this field", self._learned[level]))
        for name, reference_us in references:
            if not abs(middle - reference_us) <= self._settings.beam_off_change_us:
                return Change(middle - reference_us, name)
        return None

    def estimate(self, level: int) -> Estimate | None:
        """Median of the newest beam-offs at an intensity, of all where it has too few; None: too few in all."""
        least = self._settings.learn_early_spots
        times = list(self._times.get(level, ()))
        if len(times) < least:
            times = [sample for _, samples in sorted(self._times.items()) for sample in samples]
        if len(times) < least:
            return None
        values = np.array([t for t, _ in times])
        middle = float(np.median(values))
        spread = max(SIGMA_OF_MAD * float(np.median(np.abs(values - middle))), STEP_US / math.sqrt(12.0))
        uncertain = ERROR_OF_MEDIAN * spread / math.sqrt(len(values))
        return Estimate(middle, uncertain, len(values), tuple(sorted({layer for _, layer in times})))

    def learn(self, level: int, estimate: Estimate) -> float:
        """Take an estimate over where it is certain enough; returns the time (us) to deliver by at this intensity."""
        known = self._learned.get(level, self.known_us)
        if abs(estimate.after_us - known) > max(CERTAIN * estimate.uncertainty_us, SMALLEST_US):
            known = self._learned[level] = estimate.after_us
        return known


def counts_after(program: LayerProgram, time_us: float) -> float:
    """Counts of electrometer 1 that come in that time (us) at the layer's rate."""
    return program.rate_per_s * program.counts_per_particle * time_us * 1e-6
