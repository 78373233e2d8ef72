"""What the simulated devices keep over a power loss: monitor counters, and result rings up to what was acknowledged.

One small npz file, replaced as a whole, so that a reader never finds half of one; on the real clock the room's memory
is a file as well while it runs (`simulators.live`), so that a killed room loses nothing. Boot nonces, self-tests and
the chain's session are not kept: after a power-up they are new, as on a real device.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.errors import BadInput
from simulators.plant.state import MAX_VISITS, RING, TRUTH, Plant

FORMAT = 2
_ACKNOWLEDGED = ("results_ack", "latches_1_ack", "latches_2_ack")
_RINGS = ("results", "latches_1", "latches_2")
_BITS_OF_A_COUNT = 24


@dataclass(frozen=True, slots=True)
class Kept:
    """What else the file holds: for figures against the plant's truth over several parts of a treatment."""

    truths: list[NDArray[Any]]
    """One array a field begun, of `MAX_VISITS` rows."""
    completed: int
    """Last completed visit of the last field."""


def save_retained(
    plant: Plant, site_name: str, path: Path, *, truths: Sequence[NDArray[Any]] = (), completed: int = 0
) -> None:
    """Write counters and unacknowledged ring rows; may be called while the plant runs. Raises OSError."""
    shown = {f"truth_{n}": _used(truth) for n, truth in enumerate(truths)}
    state = plant.state
    results = int(state["results"])
    acknowledged = [int(state[name]) for name in _ACKNOWLEDGED]
    first = max(min(*acknowledged, results), results - RING, 0)
    at = np.arange(first, results) % RING
    rings = {f"ring_{name}": getattr(plant, name)[at] for name in _RINGS}
    # read after the rings: a count may come before its row, never a row before its count
    counts = _counts(plant)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                format=np.int64(FORMAT),
                site=np.array(site_name),
                counts=np.array(counts, np.int64),
                acknowledged=np.array(acknowledged, np.int64),
                first=np.int64(first),
                written=np.int64(results),
                completed=np.int64(completed),
                **rings,
                **shown,
            )
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _used(truth: NDArray[Any]) -> NDArray[Any]:
    used = np.flatnonzero(truth["units"])
    return truth[: used[-1] + 1 if len(used) else 0]


def restore_retained(plant: Plant, site_name: str, path: Path) -> Kept | None:
    """Put what was kept into a plant that does not run yet; None where there is no file.

    Raises `BadInput` for a file that is damaged or another site's.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as kept:
            if int(kept["format"]) != FORMAT:
                raise BadInput(f"{path}: state of format {int(kept['format'])}, want {FORMAT}; remove the file")
            if str(kept["site"]) != site_name:
                raise BadInput(f"{path}: state of the simulators of {kept['site']}, not of {site_name}")
            first, results = int(kept["first"]), int(kept["written"])
            rings = {name: kept[f"ring_{name}"] for name in _RINGS}
            counts, acknowledged = kept["counts"], kept["acknowledged"]
            shown = [kept[f"truth_{n}"] for n in range(sum(name.startswith("truth_") for name in kept.files))]
            completed = int(kept["completed"])
            if any(truth.dtype != TRUTH or len(truth) > MAX_VISITS for truth in shown):
                raise ValueError("truths of another layout")
            at = np.arange(first, results) % RING
            if not 0 <= results - first <= RING or counts.shape != (2,) or acknowledged.shape != (3,):
                raise ValueError("counters that cannot be")
            for name, rows in rings.items():
                if rows.shape != at.shape or rows.dtype != getattr(plant, name).dtype:
                    raise ValueError(f"ring {name} of another layout")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise BadInput(
            f"{path}: no state of simulators: {error}; remove the file to start with new counters"
        ) from error
    for name, rows in rings.items():
        getattr(plant, name)[at] = rows
    _set_counters(plant, results, acknowledged, counts)
    truths = [np.zeros(MAX_VISITS, TRUTH) for _ in shown]
    for truth, found in zip(truths, shown, strict=True):
        truth[: len(found)] = found
    return Kept(truths, completed)


def take_over(plant: Plant, killed: Plant) -> None:
    """Put what a killed room's memory holds into a plant that does not run yet, the present field's truth included."""
    for name in (*_RINGS, "truth"):
        getattr(plant, name)[:] = getattr(killed, name)
    state = killed.state
    _set_counters(plant, int(state["results"]), [int(state[name]) for name in _ACKNOWLEDGED], _counts(killed))
    for name in ("field_completed", "results_seen"):
        plant.state[name] = state[name]


def _counts(plant: Plant) -> list[int]:
    state = plant.state
    return [int(state[f"retained_{n}"]) + (int(state[f"counts_{n}"]) >> _BITS_OF_A_COUNT) for n in (1, 2)]


def _set_counters(plant: Plant, results: int, acknowledged: Sequence[int], counts: Sequence[int]) -> None:
    state = plant.state
    state["results"] = results
    for name, value in zip(_ACKNOWLEDGED, acknowledged, strict=True):
        state[name] = value
    for number, value in zip((1, 2), counts, strict=True):
        state[f"retained_{number}"] = state[f"frame_counts_{number}"] = value
