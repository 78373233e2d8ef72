"""All verdicts of a campaign in figures: by fault, by room, by condition; the same verdicts give the same bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from controller.campaign.verdict import SAFE_NAMED, SAFE_UNNAMED, UNSAFE
from interlocks.conditions import matrix

Case = dict[str, Any]


def summarise(results: Iterable[dict[str, Any]], head: dict[str, Any], jobs: int) -> dict[str, Any]:
    """The figures of `campaign --json` without `report`. `jobs`: how many the campaign has, done or not."""
    kept = list(results)
    cases = [case for result in kept for case in result["cases"]]
    played = [case for case in cases if case["fault"] != "none"]
    faults = list(dict.fromkeys(result["what"] for result in kept if result["kind"] != "free"))
    by_fault = {
        fault: _fault([case for result in kept if result["what"] == fault for case in result["cases"]])
        for fault in faults
    }
    conditions = sorted({case["ended"] for case in played} - {"none", "refused", "defect", "unknown"})
    return {
        **{key: head[key] for key in ("definition", "size", "seed", "version")},
        "jobs": jobs,
        "jobs_done": len(kept),
        **_counts(cases),
        "fault_free": len(cases) - len(played),
        "false_trips": sum(case["false_trip"] for case in cases),
        "never_fired": sum(not case["fired"] for case in played),
        "worst_overdose_gy": _worst(cases, "harm_gy"),
        "worst_misplaced_gy": _worst(cases, "misplaced_gy"),
        "worst_unaccounted_gy": _worst(cases, "unaccounted_gy"),
        "by_fault": by_fault,
        "by_room": {room: _counts([c for c in cases if c["room"] == room]) for room in _rooms(cases)},
        "by_condition": {name: _condition(name, [c for c in played if c["ended"] == name]) for name in conditions},
        "raised": sorted({name for case in cases for name in case["trips"]}),
        "coverage": {name: _coverage(name, played) for name in matrix()},
        "passed": _tally([case["passed"] for case in played if case["passed"]]),
        "bad": [case for case in cases if case["verdict"] != SAFE_NAMED],
    }


def _coverage(name: str, cases: Sequence[Case]) -> dict[str, Any]:
    """How often a condition was first-out, latched at all, or the reason of a refusal, and by which faults."""
    word = re.compile(rf"\b{name}\b")
    first = [case for case in cases if case["ended"] == name]
    latched = [case for case in cases if name in case["trips"]]
    refused = [case for case in cases if case["ended"] == "refused" and word.search(case["message"])]
    by = sorted({case["fault"] for case in (*latched, *refused)})
    return {"first_out": len(first), "latched": len(latched), "refused": len(refused), "faults": by}


def _tally(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}


def _rooms(cases: Sequence[Case]) -> list[str]:
    return list(dict.fromkeys(case["room"] for case in cases))


def _counts(cases: Sequence[Case]) -> dict[str, Any]:
    verdicts = [case["verdict"] for case in cases]
    return {
        "cases": len(cases),
        "safe_named": verdicts.count(SAFE_NAMED),
        "safe_unnamed": verdicts.count(SAFE_UNNAMED),
        "unsafe": verdicts.count(UNSAFE),
    }


def _worst(cases: Sequence[Case], key: str) -> float:
    return max((case[key] for case in cases), default=0.0)


def _fault(cases: Sequence[Case]) -> dict[str, Any]:
    worst = max(cases, key=lambda case: case["harm_gy"])
    return {
        **_counts(cases),
        "completed": sum(case["ended"] == "none" for case in cases),
        "passed": _tally([case["passed"] for case in cases if case["passed"]]),
        "never_fired": sum(not case["fired"] for case in cases),
        "worst_overdose_gy": worst["harm_gy"],
        "worst_misplaced_gy": _worst(cases, "misplaced_gy"),
        "worst_unaccounted_gy": _worst(cases, "unaccounted_gy"),
        "worst_scenario": {key: worst[key] for key in ("room", "seed", "place", "scenario", "ended")},
        "by_room": {
            room: {**_counts(mine := [c for c in cases if c["room"] == room]), "worst_gy": _worst(mine, "harm_gy")}
            for room in _rooms(cases)
        },
        "ended": {name: sum(c["ended"] == name for c in cases) for name in sorted({c["ended"] for c in cases})},
    }


def _condition(name: str, cases: Sequence[Case]) -> dict[str, Any]:
    reactions = [case["reaction"] for case in cases if case["reaction"] is not None]
    beyond = [c for c in cases if c["reaction"] and c["reaction"]["trip_to_open_ms"] > matrix()[name].budget_ms]
    return {
        "cases": len(cases),
        "within": len(reactions) - len(beyond),
        "beyond": _tally([case["fault"] for case in beyond]),
        "faults": sorted({case["fault"] for case in cases}),
        **{
            key: _spread([r[key] for r in reactions if r[key] is not None])
            for key in ("fault_to_trip_ms", "trip_to_open_ms", "trip_to_beam_off_ms")
        },
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"least": None, "p50": None, "max": None}
    ordered = sorted(values)
    return {"least": ordered[0], "p50": ordered[math.ceil(0.5 * len(ordered)) - 1], "max": ordered[-1]}
