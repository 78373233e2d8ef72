"""Set-up of a field: gantry, couch, nozzle, gating; set, read back, written down, then watched."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from controller.delivery.run import Run
from controller.machine.field_program import build_field, treatment_machine
from controller.machine.inserts import match_range_shifter, match_ripple_filter, match_snout
from controller.plan.model import PlanField
from drivers.contracts import CouchStatus, GantryStatus, NozzleStatus
from drivers.deadline import Deadline
from drivers.errors import ReadbackMismatch, Refused
from interlocks.slow import Expected
from sites.schema import Site

SETUP_S = 300.0


@dataclass(frozen=True, slots=True)
class NozzleWanted:
    """What the field wants in the nozzle."""

    snout_code: int | None
    """Identity of the snout that the operator must have mounted; None: the plan does not say."""
    snout_mm: float | None
    range_shifter_code: int
    ripple_filter_code: int


def nozzle_wanted(site: Site, field: PlanField) -> NozzleWanted:
    """Codes and position. Raises `Refused` for what this machine does not have (a check finds it before)."""
    machine = treatment_machine(site, field)
    snout = match_snout(machine, field)
    code = 0
    for setting in field.layers[0].range_shifters if field.layers else ():
        shifter = match_range_shifter(machine, setting)
        if shifter is None:
            raise Refused(f"field {field.name}: range shifter {setting.id!r} is not on this machine")
        code = shifter.code
    ripple = 0
    if field.ripple_filter is not None:
        found = match_ripple_filter(machine, field.ripple_filter)
        if found is None:
            raise Refused(f"field {field.name}: ripple filter {field.ripple_filter!r} is not on this machine")
        ripple = found.code
    return NozzleWanted(None if snout is None else snout.code, field.snout_mm, code, ripple)


def port_deg(site: Site, field: PlanField) -> float:
    """Beam port that the accelerator serves: the fixed port, or 0 for a rotating gantry's line."""
    return field.gantry_deg if site.gantry.kind == "fixed" else 0.0


def check_set_ups(run: Run) -> None:
    """What the set-ups of all fields will ask of this room exists. Raises `Refused`; nothing has moved then."""
    for field in run.plan.fields:
        nozzle_wanted(run.site, field)
    _gating_source(run.site, run)


async def agree_with_guard(run: Run, session: int, deadline: Deadline) -> None:
    """The guard must mean the same as we: all layers of the plan, whatever is delivered already. Raises `Refused`."""
    corrections = run.corrections
    assert corrections is not None
    programs = [build_field(run.site, field, index, corrections) for index, field in enumerate(run.plan.fields)]
    plan = run.plan
    # parts in which no field was ever begun gave nothing, and no guard was told of them
    part = 1 if run.carried is None or run.carried.baseline is None else run.part
    try:
        await run.guard.agree(
            session,
            plan.file_sha256,
            plan.fraction_group,
            part,
            run.fraction,
            run.treatment,
            corrections.ktp,
            programs,
            deadline,
            run.begun_by,
        )
    finally:
        if run.guard.left and not run.guard.latched and run.begun_by is not None:
            operator, reason = run.begun_by
            run.event("reset", operator=operator, reason=reason, ids=list(run.guard.left))
    if run.guard.status is not None:
        run.event("guard", phase="agreed")


async def set_up(run: Run, index: int) -> None:
    """Set a field up and verify it; from then on the interlock task watches that nothing moves."""
    site = run.site
    field = run.plan.fields[index]
    devices = run.devices
    deadline = Deadline.after(SETUP_S, f"set-up of field {field.name}")
    wanted = nozzle_wanted(site, field)
    source = _gating_source(site, run)
    run.field_set_up = None
    run.confirmation, run.field_confirmed = None, None
    run.set_ups += 1
    run.expected = Expected()
    async with asyncio.TaskGroup() as group:
        gantry = group.create_task(
            devices.gantry.move(field.gantry_deg, site.gantry.tolerance_deg, deadline), name="gantry"
        )
        couch = group.create_task(_move_couch(run, field, deadline), name="couch")
        nozzle = group.create_task(
            devices.nozzle.set(
                snout_mm=wanted.snout_mm,
                range_shifter_code=wanted.range_shifter_code,
                ripple_filter_code=wanted.ripple_filter_code,
                snout_tolerance_mm=site.nozzle.snout_tolerance_mm,
                deadline=deadline,
            ),
            name="nozzle",
        )
        group.create_task(devices.gating.select(source, deadline), name="gating")
    _check_snout(nozzle.result(), wanted)
    gating = await devices.gating.status(deadline)
    run.note("gating", gating)
    for name, result in (("gantry", gantry.result()), ("couch", couch.result()), ("nozzle", nozzle.result())):
        run.note(name, result)
    run.note("safety_chain", await devices.safety_chain.status(deadline))
    _write_down(run, index, field, gantry.result(), couch.result(), nozzle.result(), wanted)
    run.event("setup", field=index, device="gating", quantity="source", set=source, readback=gating.source, unit="")
    run.expected = Expected(
        gantry_deg=field.gantry_deg,
        gantry_tolerance_deg=site.gantry.tolerance_deg,
        couch=couch.result(),
        couch_tolerance_mm=site.couch.tolerance_mm,
        couch_tolerance_deg=site.couch.tolerance_deg,
        nozzle=nozzle.result(),
        snout_tolerance_mm=site.nozzle.snout_tolerance_mm,
        gating_source=source,
        hold_max_s=site.gating.hold_max_s,
        holds_max=site.gating.holds_max,
        chain=True,
    )
    run.field_set_up = index


def _gating_source(site: Site, run: Run) -> int:
    if run.plan.gating is None or run.plan.gating[0] != "GATING":
        return 0
    name = run.plan.gating[1]
    if name not in site.gating.sources:
        raise Refused(f"gating source {name!r} is not in this room; it has {', '.join(site.gating.sources) or 'none'}")
    return 1 + site.gating.sources.index(name)


async def _move_couch(run: Run, field: PlanField, deadline: Deadline) -> CouchStatus:
    c = field.couch
    return await run.devices.couch.move(
        vertical_mm=c.vertical_mm,
        longitudinal_mm=c.longitudinal_mm,
        lateral_mm=c.lateral_mm,
        rotation_deg=c.rotation_deg,
        pitch_deg=c.pitch_deg,
        roll_deg=c.roll_deg,
        tolerance_mm=run.site.couch.tolerance_mm,
        tolerance_deg=run.site.couch.tolerance_deg,
        deadline=deadline,
    )


def _check_snout(status: NozzleStatus, wanted: NozzleWanted) -> None:
    if wanted.snout_code is not None and status.snout_code != wanted.snout_code:
        raise ReadbackMismatch(
            "nozzle",
            f"snout_code: wanted {wanted.snout_code}, got {status.snout_code}; mount the field's snout",
        )


def _write_down(
    run: Run,
    index: int,
    field: PlanField,
    gantry: GantryStatus,
    couch: CouchStatus,
    nozzle: NozzleStatus,
    wanted: NozzleWanted,
) -> None:
    def write(device: str, quantity: str, set_to: Any, readback: Any, unit: str) -> None:
        run.event("setup", field=index, device=device, quantity=quantity, set=set_to, readback=readback, unit=unit)

    write("gantry", "angle_deg", field.gantry_deg, gantry.angle_deg, "deg")
    for axis in ("vertical_mm", "longitudinal_mm", "lateral_mm", "rotation_deg", "pitch_deg", "roll_deg"):
        write("couch", axis, getattr(field.couch, axis), getattr(couch, axis), axis.rpartition("_")[2])
    write("nozzle", "snout_code", wanted.snout_code, nozzle.snout_code, "")
    write("nozzle", "snout_mm", wanted.snout_mm, nozzle.snout_mm, "mm")
    write("nozzle", "range_shifter_code", wanted.range_shifter_code, nozzle.range_shifter_code, "")
    write("nozzle", "ripple_filter_code", wanted.ripple_filter_code, nozzle.ripple_filter_code, "")
