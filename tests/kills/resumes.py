"""Treatments whose controller is killed, resumed until complete: what each spot got, and where each count is."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.record.journal_reader import read_journal
from controller.record.schema import QUALITY_FORGONE, VISIT_PARTIAL
from tests.kills.plant_view import PlantView
from tests.kills.room import FIELDS, Bench, load, planned_particles
from tests.real_rooms import START_S, Process, delivery, run, spotwise

ENDED_S = 60.0
STARTS = 6
"""A treatment that is not complete after so many parts has failed."""
PREPARING = 0.2
"""Share of the moments before a field is armed."""
ARMING_S = 0.5
COUNTS = 25
"""Of a monitor in each part, against its pedestal: latches are whole numbers, and where rows come from the rings,
monitor 2's pedestal since the layer before is in a layer's first visit."""


async def times_of(bench: Bench, out: Path) -> dict[str, Any]:
    """A treatment that nobody disturbs: seconds from its journal's begin to its first and last beam, and its spots."""
    plant = bench.plant
    mark = _mark(plant)
    journal = out / "journal.bin"
    async with run(bench.room, *delivery(bench.room, out)) as controller:
        await plant.until("a journal", lambda: journal.exists() or not controller.running, START_S, [0.0])
        begun_ns = time.monotonic_ns()
        first = mark["particles"]
        await plant.until("beam", lambda: plant["particles"] > first or not controller.running, START_S, [0.0])
        beam_ns = time.monotonic_ns()
        ended = await controller.ended()
    assert ended.status == 0, ended
    found = judged(bench, out, mark)
    found |= {"first_s": (beam_ns - begun_ns) * 1e-9, "last_s": (plant["beam_last_ns"] - begun_ns) * 1e-9}
    return found


async def resume_once(bench: Bench, number: int, seed: int, undisturbed: dict[str, Any], out: Path) -> dict[str, Any]:
    """One treatment with one to three kills: what became of it, with `problems`."""
    plant = bench.plant
    numbers = random.Random(f"{seed} {number}")
    wanted = numbers.choice((1, 1, 2, 2, 3))
    mark, worst = _mark(plant), [0.0]
    kills: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    begun_s = time.monotonic()
    while len(parts) < STARTS and (not parts or parts[-1]["status"] != 0):
        command = ("-m", "controller.cli", "resume", str(out)) if parts else delivery(bench.room, out)
        async with run(bench.room, *command) as controller:
            if len(kills) < wanted:
                given = (
                    (plant["particles"] - mark["particles"]) / (1 << 20) / float(planned_particles(bench.room).sum())
                )
                struck = await _strike(plant, controller, out, _moment_s(numbers, undisturbed, given), worst)
                if struck is not None:
                    kills.append(struck)
            ended = await controller.ended(ENDED_S)
        parts.append({"status": ended.status, "said": ended.out[-800:] + ended.err[-800:]})
        if ended.status == -signal.SIGKILL:
            await asyncio.sleep(numbers.choice((0.0, 0.3, 1.0, 3.0)))
    result: dict[str, Any] = {
        "kills": kills,
        "statuses": [part["status"] for part in parts],
        "seconds": round(time.monotonic() - begun_s, 1),
        "load": load(),
        "lag_ms": round(worst[0], 2),
    }
    problems = [f"exit status {s} of part {n}" for n, s in enumerate(result["statuses"], 1) if s not in (0, -9)]
    if parts[-1]["status"] == 0:
        result |= judged(bench, out, mark)
        verified = await spotwise(bench.room, "verify", str(out))
        if verified.status != 0:
            problems.append(f"verify: {verified.out[-300:]}")
    result["problems"] = problems + result.get("problems", [])
    if result["problems"]:
        result["said"] = [part["said"] for part in parts]
    return result


def _moment_s(numbers: random.Random, undisturbed: dict[str, Any], given: float) -> float:
    """After a part's journal begins: a fifth of them while it prepares, the others from its arming to its last beam."""
    first_s, last_s = undisturbed["first_s"], undisturbed["last_s"]
    armed_s = max(0.0, first_s - ARMING_S)
    if numbers.random() < PREPARING:
        return numbers.random() * armed_s
    return armed_s + numbers.random() * (first_s - armed_s + (last_s - first_s) * max(0.0, 1.0 - given))


async def _strike(
    plant: PlantView, controller: Process, out: Path, after_s: float, worst: list[float]
) -> dict[str, Any] | None:
    """Kill the controller so long after its part's journal begins; None: it ended before."""
    journal = out / "journal.bin"
    size = journal.stat().st_size if journal.exists() else -1

    def begun() -> bool:
        return (journal.exists() and journal.stat().st_size > size) or not controller.running

    await plant.until("the part's journal", begun, START_S, worst)
    await asyncio.sleep(after_s)
    worst[0] = max(worst[0], plant.lag_ms)
    if not controller.running:
        return None
    names = ("beam_on", "closed", "armed", "eng_visit")
    seen = {name: plant[name] for name in names}
    struck_ns = time.monotonic_ns()
    os.kill(controller.pid, signal.SIGKILL)
    await controller.ended()
    await asyncio.sleep(0.4)
    off_ms = max(0, plant["beam_last_ns"] - struck_ns) * 1e-6
    return {"after_s": round(after_s, 3), **seen, "off_ms": round(off_ms, 3)}


def _mark(plant: PlantView) -> dict[str, Any]:
    """What the room's counters say before a treatment."""
    truths = plant.truths()
    return {
        "counts": [plant.retained(1), plant.retained(2)],
        "results": plant["results"],
        "particles": plant["particles"],
        "t_ns": plant["t_ns"],
        "fields": len(truths) if truths[-1]["units"].any() else len(truths) - 1,
    }


def judged(bench: Bench, out: Path, mark: dict[str, Any]) -> dict[str, Any]:
    """A complete treatment against the plant: spots, counts, visits."""
    plant, problems = bench.plant, []
    wanted = planned_particles(bench.room)
    truths = plant.truths()[mark["fields"] :]
    if len(truths) != FIELDS:
        return {"problems": [f"{len(truths)} fields were begun, not {FIELDS}"]}
    got = np.array([_units(truth, wanted.shape[1]) for truth in truths])
    percent = 100.0 * (got / wanted - 1.0)
    tolerances = bench.room.site.tolerances
    if np.abs(percent).max() > 100.0 * tolerances.spot_dose:
        at = np.unravel_index(int(np.abs(percent).argmax()), percent.shape)
        problems.append(f"field {at[0] + 1} visit {at[1] + 1}: {percent[at]:.2f} %")
    with read_journal(out / "journal.bin") as journal:
        visits = journal.booked[(journal.booked["quality"] & QUALITY_FORGONE) == 0]
        forgone = int(((journal.booked["quality"] & QUALITY_FORGONE) != 0).sum())
        done = journal.booked[(journal.booked["flags"] & VISIT_PARTIAL) == 0]
        verdicts = [event["verdict"] for event in journal.events if event["event"] == "reconciliation"]
    if len(np.unique(done[["field", "visit"]])) != len(done) or len(done) != wanted.size:
        problems.append(f"{len(done)} visits completed, {wanted.size} planned")
    unaccounted = _unaccounted(plant, visits, mark, problems)
    if json.loads((out / "summary.json").read_text(encoding="utf-8"))["outcome"] != "completed":
        problems.append("not completed by its summary")
    return {
        "spot_percent": {
            "mean": round(float(percent.mean()), 4),
            "sd": round(float(percent.std()), 4),
            "max": round(float(np.abs(percent).max()), 4),
            "most": round(float(percent.max()), 4),
        },
        "field_percent": [round(float(100.0 * (g.sum() / w.sum() - 1.0)), 4) for g, w in zip(got, wanted, strict=True)],
        "forgone": forgone,
        "verdicts": verdicts,
        "unaccounted": unaccounted,
        "problems": problems,
    }


def _units(truth: NDArray[Any], visits: int) -> NDArray[np.float64]:
    found = np.zeros(visits)
    rows = truth["units"][1 : visits + 1]
    found[: len(rows)] = rows / (1 << 20)
    return found


def _unaccounted(plant: PlantView, visits: NDArray[Any], mark: dict[str, Any], problems: list[str]) -> list[float]:
    """Counts of each monitor that neither a visit nor its pedestal explains; and rings against the journal."""
    engine, *latches = plant.rings(mark["results"])
    visits = visits[np.lexsort((visits["t_end_ns"], visits["part"]))]
    if visits["visit"].tolist() != engine["visit"].tolist():
        problems.append(f"{len(visits)} visits in the journal, {len(engine)} in the rings, or others")
        return []
    in_visits_s = float((engine["t_end_ns"] - engine["t_start_ns"]).sum()) * 1e-9
    apart_s = (plant["t_ns"] - mark["t_ns"]) * 1e-9 - in_visits_s
    found, parts = [], int(visits["part"].max())
    for number, latched in enumerate(latches, 1):
        booked = visits[f"counts_{number}"]
        follows = engine["t_start_ns"][1:] == engine["t_end_ns"][:-1]
        if not np.array_equal(booked[1:][follows], np.diff(latched["counts"])[follows]):
            problems.append(f"electrometer {number}: counts in the journal are not those of its ring")
        counted = plant.retained(number) - mark["counts"][number - 1]
        left = counted - int(booked.sum()) - plant.pedestal_per_s(number) * apart_s
        found.append(round(left, 1))
        if abs(left) > COUNTS * parts:
            problems.append(f"electrometer {number}: {left:.1f} counts unaccounted for")
    return found
