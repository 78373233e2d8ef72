"""The hunt for the worst place and moment of one fault in one room: first far and wide, then around the worst.

First every place of `places` with strengths drawn from the catalogue's ranges. Then, around the case with the greatest
dose too much at the worst point, the moment is moved in whole frames by a golden section, each step a treatment; the
number of steps is bounded. What is played follows from definition and seed alone, so hunts can run anywhere.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.campaign.case import Case, calm, play, prepared
from controller.campaign.definition import Room
from controller.campaign.places import At, coarse_places
from controller.campaign.strengths import Values, draw_values, example_values, is_weaker, scenario_text
from controller.campaign.verdict import Verdict
from controller.compose import CatalogueFault, fault_catalogue

FRAME_S = 1e-4
SPAN_S = 0.02
"""After a place, in which its worst moment is looked for: two visits of carbon, and the longest frame-to-chain path."""
GOLDEN = 0.618
AROUND_END = (-6, 8)
"""Frames around a place shortly before a visit's end."""
WITHOUT_BEAM = ("prepared", "arming", "armed", "layer_done", "field_done")
WORTH_GY = 1e-5
"""A worst point with less is not worth a closer look."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One case of a hunt before it is played."""

    values: Values
    at: At


def hunt(
    room: Room,
    fault: str,
    seed: int,
    *,
    coarse: int,
    refine: int,
    player: Callable[[Case], Verdict] = play,
) -> list[Verdict]:
    """Play the cases of one fault in one room. `coarse` 0: all places."""
    kind = fault_catalogue()[fault]
    numbers = random.Random(f"{seed}|{room.name}|{fault}")
    trials = _coarse(room, kind, numbers, coarse, seed)
    played = [(trial, player(_case(room, kind, trial, seed))) for trial in trials]
    trial, worst = max(played, key=lambda pair: pair[1].facts.harm_gy)
    found = [verdict for _, verdict in played]
    if worst.facts.harm_gy < WORTH_GY:
        return found

    begin_s = float(trial.at.get("s", 0.0))

    def excess(frames: int) -> float:
        moved = Trial(trial.values, {**trial.at, "s": round(begin_s + frames * FRAME_S, 7)})
        found.append(player(_case(room, kind, moved, seed)))
        return found[-1].facts.harm_gy

    low, high = (0, round(SPAN_S / FRAME_S)) if begin_s == 0.0 else AROUND_END
    golden_section(excess, max(low, math.ceil(-begin_s / FRAME_S)), high, refine)
    return found


def _coarse(room: Room, kind: CatalogueFault, numbers: random.Random, count: int, seed: int) -> list[Trial]:
    site, report = prepared(room)
    assert report.loaded is not None
    places = coarse_places(report.loaded.plan, site, calm(room, seed).lasts_s)
    if "for_s" in kind.example:  # what passes must pass while there is beam
        places = [place for place in places if place.get("state") not in WITHOUT_BEAM]
    choices = max((len(p.choices) for p in kind.parameters.values()), default=0)
    if count:
        places = numbers.sample(places, min(count, len(places)))
    while len(places) < min(choices, count or choices):
        places.append(numbers.choice(places))
    example = kind.example["at"]
    if example.get("state") in ("start", "prepared", "arming"):
        # it does nothing later: what it changes is looked at before the first layer; every word of it, there
        places = [dict(example) for _ in range(max(1, choices))] + places
    values = draw_values(kind, len(places), numbers)
    if not count:  # and the example itself
        places.insert(0, places[0])
        values.insert(0, example_values(kind))
    return [Trial(v, at) for v, at in zip(values, places, strict=True)]


def _case(room: Room, kind: CatalogueFault, trial: Trial, seed: int) -> Case:
    return Case(
        room=room,
        seed=seed,
        scenario=scenario_text(kind, trial.values, trial.at),
        expected=kind.expected,
        harmless=is_weaker(kind, trial.values),
    )


def golden_section(value: Callable[[int], float], low: int, high: int, steps: int) -> None:
    """Look for the greatest value of an integer argument in `steps` evaluations; the caller keeps what it saw."""
    seen: dict[int, float] = {}

    def at(place: float) -> float:
        whole = round(place)
        if whole not in seen:
            seen[whole] = value(whole)
        return seen[whole]

    a, b = float(low), float(high)
    c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    while len(seen) < steps and b - a > 2:
        left = at(c)
        if len(seen) >= steps:
            return
        if left >= at(d):
            b, d = d, c
            c = b - GOLDEN * (b - a)
        else:
            a, c = c, d
            d = a + GOLDEN * (b - a)


def as_json(verdicts: list[Verdict]) -> list[Mapping[str, Any]]:
    """For the store."""
    return [verdict.as_json() for verdict in verdicts]
