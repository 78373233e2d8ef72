"""Before a resumed part: what the devices retained is read, compared with the journal, booked and acknowledged.

The engine is brought to rest first, so that a visit that still ran is latched. The verdict with all its numbers is one
"reconciliation" event. A dispute ends here, with nothing delivered, unless a named physicist has decided it.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from controller.clock import now_ns
from controller.delivery.comparison import COUNTING, Comparison, Reading, Tail, compare, wanted_rows
from controller.delivery.decision import Decision
from controller.delivery.run import Run
from controller.delivery.tail_visits import by_retained_counter, given_before, tail_visits
from controller.machine.field_program import build_field
from controller.machine.program import LayerProgram
from controller.machine.remaining import remaining_field
from controller.record.carried import Carried
from controller.record.journal import program_head
from drivers.deadline import Deadline
from drivers.errors import Refused
from interlocks.conditions import by_number

REST_S = 3.0
LOOK_S = 0.02
PEDESTAL_S = 1.0
"""How long the pedestal is measured, beam off: to a count a second."""
READ_S = 60.0
KEY = ["part", "field", "visit"]
ACTIVE = (1, 2, 3)
"""Engine armed, running or held."""


async def bring_to_rest(run: Run) -> None:
    """Chain open, no layer armed or running, no visit open: what ran when a controller died is over and latched.

    A chain that was armed and never closed has no time-out to open it, and takes no new session.

    Called before anything is armed, and before any task takes the real-time path's trips.
    """
    deadline = Deadline.after(REST_S, "engine at rest")
    chain = run.devices.safety_chain
    if (await chain.status(deadline)).armed:
        run.event("warning", text="the safety chain was still armed by an earlier run: opened")
        await chain.disarm(deadline)
    engine = run.devices.scan_controller
    status = await engine.status(deadline)
    if status.state in ACTIVE:
        run.event("warning", text=f"the spot engine was still at visit {status.visit} of an earlier run: aborted")
        await engine.abort(deadline)
    while (await engine.status(deadline)).visit:
        if deadline.remaining_s() <= 0:
            raise Refused(f"scan_controller: visit {status.visit} does not end; look at the engine")
        await asyncio.sleep(LOOK_S)
    await asyncio.sleep(LOOK_S)  # the frames show it, too
    trip = run.path.trip()
    if trip is not None:
        # nothing was armed by us: the path judged frames of a run that is over (devices go on streaming)
        run.path.reset()
        await asyncio.sleep(LOOK_S)
        known = by_number().get(trip.number)
        name = "a commanded drop" if known is None else known.id
        run.event("warning", text=f"{name} before the engine was at rest: of the earlier run, not of this part")


async def reconcile(run: Run, carried: Carried, now: datetime, decision: Decision | None) -> NDArray[np.void]:
    """Compare, book, acknowledge; returns all visits of the treatment. Raises `Refused` for a dispute nobody decided.

    The engine is at rest, there is no beam, corrections of this part are in the journal. `now`: UTC.
    """
    deadline = Deadline.after(READ_S, "reconciliation")
    reading = await _read(run, carried, now, deadline)
    planned, programs = _last_programs(run, carried)
    sequence = [int(v) for p in programs for v in p.visits["visit"]]
    wanted = wanted_rows(carried, reading)
    tail = None if wanted is None else await _read_tail(run, *wanted, deadline)
    found = compare(carried, reading, tail, sequence, run.site.tolerances)
    if found.verdict == "dispute" and decision is not None:
        found.verdict = "accepted"
    _write_down(run, carried, found, decision)
    if found.verdict == "dispute":
        await run.journal.sync()
        raise Refused(
            f"DISPUTE between journal and hardware, nothing is delivered: {found.sentence()}. A physicist decides: "
            f"spotwise resume {run.journal.path.parent} --accept-dispute --operator NAME --reason TEXT (the hardware "
            "counter counts; "
            "--trust journal: the journal does)"
        )
    booked = _book(run, carried, found, tail, (planned, programs), decision, reading.pedestal_per_s[1])
    if carried.baseline is not None:
        run.event(
            "counters",
            phase="end",
            field=carried.baseline.field,
            rows=reading.rows[0],
            counts_1=reading.counts[0],
            counts_2=reading.counts[1],
        )
    await run.journal.sync()
    if carried.baseline is not None and not carried.baseline.settled:
        for device in (run.devices.scan_controller, run.devices.electrometer_1, run.devices.electrometer_2):
            await device.acknowledge(reading.rows[0], deadline)
    again = np.isin(carried.visits[KEY], booked[KEY])
    return np.concatenate([carried.visits[~again], booked])


async def _read(run: Run, carried: Carried, now: datetime, deadline: Deadline) -> Reading:
    devices = run.devices
    before = (await devices.electrometer_1.status(deadline), await devices.electrometer_2.status(deadline))
    await asyncio.sleep(PEDESTAL_S)
    after = (await devices.electrometer_1.status(deadline), await devices.electrometer_2.status(deadline))
    engine = await devices.scan_controller.status(deadline)
    pedestal = [
        max(0.0, (b.counts - a.counts) / max(1e-3, (b.t_ns - a.t_ns) * 1e-9))
        for a, b in zip(before, after, strict=True)
    ]
    nonces = {name: str(run.identities[name].boot_nonce) for name in COUNTING}
    base = carried.baseline
    elapsed_s = powered_s = 0.0
    if base is not None:
        elapsed_s = max(0.0, (now - base.moment).total_seconds())
        kept = all(base.nonces.get(name) == nonce for name, nonce in nonces.items())
        # without power there is no pedestal: what is then not known to be pedestal counts as dose
        powered_s = elapsed_s if kept else max(0.0, (base.last_moment - base.moment).total_seconds())
    return Reading(
        rows=(engine.results, after[0].results, after[1].results),
        acknowledged=(engine.acknowledged, after[0].acknowledged, after[1].acknowledged),
        counts=(after[0].counts, after[1].counts),
        pedestal_per_s=(pedestal[0], pedestal[1]),
        nonces=nonces,
        elapsed_s=elapsed_s,
        powered_s=powered_s,
    )


async def _read_tail(run: Run, first: int, count: int, deadline: Deadline) -> Tail:
    devices = run.devices
    return Tail(
        await devices.scan_controller.results(first, count, deadline),
        await devices.electrometer_1.latches(first, count, deadline),
        await devices.electrometer_2.latches(first, count, deadline),
    )


def _last_programs(run: Run, carried: Carried) -> tuple[tuple[LayerProgram, ...], tuple[LayerProgram, ...]]:
    """The last field, whole, and what its part was delivering; made again as then: same plan, same corrections."""
    base = carried.baseline
    if base is None:
        return (), ()
    field = run.plan.fields[base.field]
    planned = build_field(run.site, field, base.field, base.corrections)
    given = given_before(carried, base.field, base.part, planned)
    return planned, remaining_field(run.site, field, planned, given, base.corrections).programs


def _write_down(run: Run, carried: Carried, found: Comparison, decision: Decision | None) -> None:
    base = carried.baseline
    run.event(
        "reconciliation",
        part=carried.parts,
        field_part=None if base is None else base.part,
        verdict=found.verdict,
        reasons=found.reasons,
        tail_rows=found.tail_rows,
        operator="" if decision is None or found.verdict != "accepted" else decision.operator,
        reason="" if decision is None or found.verdict != "accepted" else decision.reason,
        trust=None if decision is None or found.verdict != "accepted" else decision.trust,
        torn=carried.torn,
        **found.numbers,
    )


def _book(
    run: Run,
    carried: Carried,
    found: Comparison,
    tail: Tail | None,
    of_field: tuple[tuple[LayerProgram, ...], tuple[LayerProgram, ...]],
    decision: Decision | None,
    pedestal_2_per_s: float,
) -> NDArray[np.void]:
    """Write what the rings (or a decision) add to the journal; returns it."""
    base = carried.baseline
    if base is None or base.settled:
        return carried.visits[:0]
    unit = run.plan.fields[base.field].unit
    planned, programs = of_field
    rows = (
        tail_visits(carried, tail, programs, planned, run.site.tolerances, unit, pedestal_2_per_s)
        if tail is not None and found.tail_usable
        else carried.since[:0]
    )
    if found.verdict == "accepted" and decision is not None and decision.trust == "hardware":
        extra = by_retained_counter(carried, rows, programs, unit, found.unexplained, now_ns())
        rows = np.concatenate([rows[~np.isin(rows["visit"], extra["visit"])], extra])
    # what was downloaded may be in the bytes that the journal lost: visits without their program say too little
    for program in programs:
        key = (program.field_index, program.layer_index)
        if key not in carried.programs and np.isin(rows["visit"], program.visits["visit"]).any():
            run.journal.program(now_ns(), program_head(program), program.visits)
    run.journal.visits(rows)
    return rows
