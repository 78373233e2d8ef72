"""A spot that the machine itself ends with too little is named, stops what follows, and is made good by a resume."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from controller.compose import VirtualWorld
from controller.delivery.shortfall import find_short, mark_short
from controller.machine.dosimetry import nominal_corrections
from controller.machine.field_program import build_field
from controller.machine.program import LayerProgram
from controller.machine.remaining import Given, remaining_field
from controller.plan.load import load_plan
from controller.record.journal_reader import read_journal
from controller.record.schema import (
    QUALITY_FRAMES_LOST,
    QUALITY_REST_FORGONE,
    VISIT_DTYPE,
    VISIT_PARTIAL,
    VISIT_SHORT,
)
from sites.loader import load_site
from tests.delivery_rig import EXAMPLES
from tests.resume_rig import counts_agree, lose_and_resume, spot_errors

PLAN = EXAMPLES / "small_carbon.dcm"


async def chopper_too_fast(world: VirtualWorld) -> None:
    """From the first visit on beam is off at once, 250 us before the presets expect it."""
    while not int(world.room.plant.state["eng_visit"]):
        await asyncio.sleep(0.0005)
    world.room.plant.parameters["off_delay_ns"] = 0
    await asyncio.Event().wait()


async def chopper_repaired(world: VirtualWorld) -> None:
    world.room.plant.parameters["off_delay_ns"] = 250_000


def test_a_chopper_that_closes_too_soon_stops_the_treatment_and_a_resume_gives_the_rest(tmp_path: Path) -> None:
    found = lose_and_resume(PLAN, "carbon-fixed", tmp_path / "t", [chopper_too_fast], meanwhile=chopper_repaired)
    with read_journal(found.directory / "journal.bin") as journal:
        first, second = (part.events for part in journal.parts)
        visits = journal.visits.copy()
    trip = next(e for e in first if e["event"] == "trip")
    assert trip["id"] == "SPOT_DOSE_LOW"
    assert trip["value"] > trip["limit"]
    short = visits[visits["flags"] & VISIT_SHORT != 0]
    assert len(short)
    assert (short["flags"] & VISIT_PARTIAL != 0).all()
    # nothing of the next layer was begun: the guard's limits would not let a part go back
    assert visits["layer"][visits["part"] == short["part"][0]].max() == short["layer"][0]
    assert not any(e["event"] == "trip" for e in second)
    assert found.outcome.status == "completed"
    assert np.abs(spot_errors(found)[0]).max() < 5.0
    counts_agree(found)


def programs() -> tuple[LayerProgram, ...]:
    site, plan = load_site("carbon-fixed"), load_plan(PLAN, default_gantry_deg=0.0).plan
    return build_field(site, plan.fields[0], 0, nominal_corrections(site.dosimetry))


def booked(program: LayerProgram, share: float) -> np.ndarray:
    visits = np.zeros(len(program.visits), VISIT_DTYPE)
    visits["visit"] = program.visits["visit"]
    visits["planned_particles"] = program.visits["particles"]
    visits["particles_1"] = share * program.visits["particles"]
    return visits


@pytest.mark.parametrize(
    ("share", "flags", "quality", "short", "forgone"),
    [
        (0.951, 0, 0, False, False),
        (0.949, 0, 0, True, False),
        (0.949, VISIT_PARTIAL, 0, False, False),  # stopped: partial anyhow
        (0.949, 0, QUALITY_REST_FORGONE, False, True),
        (0.949, 0, QUALITY_FRAMES_LOST, False, False),  # the charge that drifts is not known
        (0.80, 0, QUALITY_FRAMES_LOST, True, False),
    ],
)
def test_a_visit_is_short_below_its_tolerance_unless_something_else_ended_it(
    share: float, flags: int, quality: int, short: bool, forgone: bool
) -> None:
    planned = programs()
    visits = booked(planned[0], share)
    visits["flags"], visits["quality"] = flags, quality
    found = find_short(visits, planned[0], planned, load_site("carbon-fixed").tolerances)
    assert found.short.all() == found.short.any() == short
    assert found.forgone.all() == found.forgone.any() == forgone
    mark_short(visits, found)
    assert (visits["flags"] == (VISIT_PARTIAL | VISIT_SHORT if short else flags)).all()


def test_a_part_that_gives_a_rest_is_judged_by_the_plan_of_the_whole_visit() -> None:
    planned = programs()
    visits = booked(planned[0], 0.0)
    visits["planned_particles"] = 0.2 * planned[0].visits["particles"]
    visits["particles_1"] = 0.17 * planned[0].visits["particles"]  # 85 % of the rest, 97 % of the visit
    tolerances = load_site("carbon-fixed").tolerances
    assert not find_short(visits, planned[0], planned, tolerances).short.any()


def test_what_short_visits_in_mid_layer_lack_is_given_by_programs_of_their_own_before_the_rest_of_the_layer() -> None:
    site, plan = load_site("carbon-fixed"), load_plan(PLAN, default_gantry_deg=0.0).plan
    planned = programs()
    given = Given.nothing(sum(len(p.visits) for p in planned))
    ids = planned[0].visits["visit"]
    given.begun[ids[:10]] = given.complete[ids[:10]] = True
    given.complete[ids[[3, 7]]] = False
    given.short[ids[[3, 7]]] = True
    given.particles_1[ids[:10]] = planned[0].visits["particles"][:10]
    given.particles_1[ids[[3, 7]]] *= 0.8
    left = remaining_field(site, plan.fields[0], planned, given, nominal_corrections(site.dosimetry))
    assert left.forgone == ()
    assert [p.visits["visit"].tolist() for p in left.programs[:3]] == [[ids[3]], [ids[7]], ids[10:].tolist()]
    assert left.programs[0].visits["particles"][0] == pytest.approx(0.2 * planned[0].visits["particles"][3])
    # once the next layer was begun there is no way back: it is said, and forgone
    given.begun[planned[1].visits["visit"][0]] = given.complete[planned[1].visits["visit"][0]] = True
    given.begun[ids] = given.complete[ids] = True
    given.complete[ids[[3, 7]]] = False
    left = remaining_field(site, plan.fields[0], planned, given, nominal_corrections(site.dosimetry))
    assert [f.row for f in left.forgone] == [3, 7]
    assert {f.reason for f in left.forgone} == {"a later layer was begun"}
