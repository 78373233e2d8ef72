"""The pieces that a campaign is cut into: a hunt, a scenario of its own, or some fault-free treatments, each by itself.

A job is data and its result is data, so that it can run in this process, in another, or on another computer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from controller.campaign.case import Case, play
from controller.campaign.definition import Definition, shipped
from controller.campaign.search import hunt
from controller.compose import fault_catalogue

FREE_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Job:
    """One piece."""

    name: str
    """Of its file, unique in a campaign."""
    kind: str
    """hunt, extra or free"""
    room: str
    what: str
    """The fault, or the extra scenario."""
    seeds: tuple[int, ...]
    coarse: int = 0
    refine: int = 0


def jobs_of(definition: Definition, size: str, seed: int) -> list[Job]:
    """All jobs of a campaign, in order."""
    return [*_hunts(definition, size, seed), *_extras(definition, seed), *_free(definition, size, seed)]


def _hunts(definition: Definition, size: str, seed: int) -> Iterator[Job]:
    chosen = definition.sizes[size]
    for fault in fault_catalogue():
        for room in definition.rooms.values():
            if fault not in definition.faults_of(room):
                continue
            name = f"hunt-{room.name}-{fault}-{seed}"
            yield Job(name, "hunt", room.name, fault, (seed,), chosen.coarse, chosen.refine)


def _extras(definition: Definition, seed: int) -> Iterator[Job]:
    for extra in definition.extras:
        yield Job(f"extra-{re.sub(r'[^a-z0-9]+', '_', extra.name)}-{seed}", "extra", extra.room, extra.name, (seed,))


def _free(definition: Definition, size: str, seed: int) -> Iterator[Job]:
    rooms = [room.name for room in definition.rooms.values()]
    total = definition.sizes[size].fault_free
    for index, room in enumerate(rooms):
        share = total // len(rooms) + (index < total % len(rooms))
        seeds = [seed * 1_000_000 + k for k in range(share)]
        for first in range(0, share, FREE_AT_ONCE):
            yield Job(
                f"free-{room}-{seed}-{first:04d}", "free", room, "none", tuple(seeds[first : first + FREE_AT_ONCE])
            )


def run_job(job: Job) -> dict[str, Any]:
    """Play a job of the shipped definition; the result is ready for JSON, and the same wherever it runs."""
    definition = shipped()
    room = definition.rooms[job.room]
    if job.kind == "hunt":
        verdicts = hunt(room, job.what, job.seeds[0], coarse=job.coarse, refine=job.refine)
    elif job.kind == "extra":
        extra = next(e for e in definition.extras if e.name == job.what)
        verdicts = [play(Case(room, seed, extra.scenario, extra.expected)) for seed in job.seeds]
    else:
        verdicts = [play(Case(room, seed)) for seed in job.seeds]
    return {"job": job.name, "kind": job.kind, "what": job.what, "cases": [v.as_json() for v in verdicts]}
