"""Where in a plan a fault is tried: the states of a room, and the visits at which something begins or ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.plan.model import Plan
from sites.schema import Site

At = dict[str, Any]


def layer_visits(plan: Plan, field: int) -> list[int]:
    """Number of visits of each layer of a field."""
    return [sum(w > 0 for w in layer.meterset) * layer.paintings for layer in plan.fields[field].layers]


BEFORE_END_S = 2e-4
"""Two frames: what begins then is not yet seen when the visit ends."""


def coarse_places(plan: Plan, site: Site, lasts_s: Mapping[tuple[int, int], float]) -> list[At]:
    """Places of a scenario's `at`, from the first preparation to the last visit; the worst ones lie near these.

    `lasts_s`: how long each visit (field from 1, visit) lasts from its first frame on where nothing goes wrong.
    """
    first, last = layer_visits(plan, 0), layer_visits(plan, len(plan.fields) - 1)
    total_first, total_last = sum(first), sum(last)
    final = len(plan.fields)
    places: list[At] = [
        {"field": 1, "visit": 1},
        {"field": 1, "visit": max(1, first[0] // 2)},
        {"field": 1, "visit": first[0]},
        {"field": 1, "visit": min(total_first, first[0] + 1)},
        {"field": 1, "state": "armed"},
        {"field": 1, "state": "arming"},
        {"state": "prepared"},
        {"field": 1, "state": "layer_done"},
        {"field": final, "visit": max(1, total_last - 1)},
        {"field": final, "visit": total_last},
    ]
    for field, visit in (
        (1, first[0]),
        (1, min(total_first, first[0] + 1)),
        (1, max(1, first[0] // 2)),
        (final, total_last),
    ):
        s = lasts_s.get((field, visit), 0.0) - BEFORE_END_S
        if s > 0:
            places.append({"field": field, "visit": visit, "s": round(s, 7)})
    if site.accelerator.kind == "synchrotron":
        places.append({"field": 1, "visit": max(1, first[0] - 1), "state": "beam"})
        places.append({"spill": 2})
    if len(plan.fields) > 1:
        places.append({"field": 1, "state": "field_done"})
        places.append({"field": 2, "visit": max(1, last[0] // 2)})
    return [place for at, place in enumerate(places) if place not in places[:at]]
