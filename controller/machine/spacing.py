"""How near the neighbours of spots are: needed to keep position limits below the distance to the next spot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAME_PLACE_MM = 1e-3
"""Spots nearer than this are the same place, not neighbours."""


def nearest_neighbour_mm(x_mm: NDArray[np.float64], y_mm: NDArray[np.float64], within_mm: float) -> NDArray[np.float64]:
    """Distance from each spot to its nearest neighbour, infinite where none is within `within_mm`.

    Spots sorted along the longer axis are compared with the next one, the one after that, and so on, until no
    pair is near enough any more: as many steps as spots in a strip of that width.
    """
    count = len(x_mm)
    nearest = np.full(count, np.inf)
    if count < 2:
        return nearest
    along, across = (x_mm, y_mm) if len(np.unique(x_mm)) >= len(np.unique(y_mm)) else (y_mm, x_mm)
    order = np.lexsort((across, along))
    first, second = along[order], across[order]
    best = np.full(count, np.inf)
    for step in range(1, count):
        apart = first[step:] - first[:-step]
        if apart.min() > within_mm:  # sorted: all later steps are farther still
            break
        distance = np.hypot(apart, second[step:] - second[:-step])
        distance[(distance <= SAME_PLACE_MM) | (distance > within_mm)] = np.inf
        np.minimum(best[:-step], distance, out=best[:-step])
        np.minimum(best[step:], distance, out=best[step:])
    nearest[order] = best
    return nearest
