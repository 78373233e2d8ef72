"""Delivered against what really happened in a simulated plant: figures that the controller itself never sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.machine.program import LayerProgram

SMALL_COUNTS = 100.0


def truth_figures(
    truths: Sequence[NDArray[Any]],
    units_per_particle: int,
    programs: Sequence[Sequence[LayerProgram]],
    visits: NDArray[Any],
) -> dict[str, Any] | None:
    """Spot dose and position errors of the completed spots.

    `truths`: per field, records (units, x, y) by visit id: charge and charge-weighted position sums.
    `visits`: the journal's visits. Spots of less than 100 counts are judged apart: their error in counts.
    """
    dose: list[NDArray[np.float64]] = []
    small: list[NDArray[np.float64]] = []
    radial: list[NDArray[np.float64]] = []
    totals = []
    for index, field_programs in enumerate(programs):
        if index >= len(truths):
            break
        truth = truths[index]
        done = {int(v["visit"]) for v in visits[(visits["field"] == index) & (visits["flags"] & 0x8000 == 0)]}
        planned_sum = true_sum = 0.0
        for program in field_programs:
            v = program.visits
            if len(v) == 0:
                continue
            # a plant's truth ends with the last visit that got beam; what was stopped before it got none has none
            rows = np.zeros(len(v), truth.dtype)
            begun = v["visit"] < len(truth)
            rows[begun] = truth[v["visit"][begun]]
            particles = rows["units"] / units_per_particle
            complete = np.isin(v["visit"], list(done))
            planned_sum += float(v["particles"][complete].sum())
            true_sum += float(particles[complete].sum())
            spots, at = np.unique(v["spot"], return_inverse=True)
            wanted = np.bincount(at, v["particles"], len(spots))
            got = np.bincount(at, particles, len(spots))
            whole = np.bincount(at, complete, len(spots)) == np.bincount(at, minlength=len(spots))
            tiny = wanted * program.counts_per_particle < SMALL_COUNTS
            dose.append(100.0 * (got / wanted - 1.0)[whole & ~tiny])
            small.append(((got - wanted) * program.counts_per_particle)[whole & tiny])
            with np.errstate(invalid="ignore", divide="ignore"):
                x = np.bincount(at, rows["x"], len(spots)) / np.bincount(at, rows["units"].astype(float), len(spots))
                y = np.bincount(at, rows["y"], len(spots)) / np.bincount(at, rows["units"].astype(float), len(spots))
            first = np.array([np.flatnonzero(at == k)[0] for k in range(len(spots))]) if len(spots) else at
            error = np.hypot(x - v["x_mm"][first], y - v["y_mm"][first])
            radial.append(error[whole & np.isfinite(error)])
        if planned_sum > 0:
            totals.append({"field": index, "particles_error_pct": 100.0 * (true_sum / planned_sum - 1.0)})
    if not dose:
        return None
    d, r, s = np.concatenate(dose), np.concatenate(radial), np.concatenate(small)
    return {
        "spot_dose_error_pct": _four(d, np.abs(d)),
        "spot_position_error_mm": _four(r, r),
        "small_spots": {"count": len(s), "max_error_counts": float(np.abs(s).max()) if len(s) else 0.0},
        "per_field": totals,
    }


def _four(signed: NDArray[np.float64], size: NDArray[np.float64]) -> dict[str, float | None]:
    if len(signed) == 0:
        return dict.fromkeys(("mean", "sd", "rms", "p95", "p99", "max"))
    return {
        "mean": round(float(signed.mean()), 6),
        "sd": round(float(signed.std()), 6),
        "rms": round(float(np.sqrt(np.mean(size**2))), 6),
        "p95": round(float(np.percentile(size, 95)), 6),
        "p99": round(float(np.percentile(size, 99)), 6),
        "max": round(float(size.max()), 6),
    }
