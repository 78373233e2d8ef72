"""One field: layer after layer; while one runs, the next is downloaded and the one before is accounted for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from controller.clock import now_ns
from controller.delivery import layer
from controller.delivery.account import Ledger
from controller.delivery.adaptation import Adaptation
from controller.delivery.run import Run
from controller.delivery.standing import AlreadyTripped
from controller.machine.program import LayerProgram
from drivers.contracts import ChainStatus
from drivers.deadline import Deadline
from drivers.flags import FLAG_CHAIN

COMMAND_S = 5.0
WRAP = 1 << 32
"""The chain's counters of permits have 32 bits."""


async def arm_chain(run: Run) -> None:
    """Close the safety chain: a fresh token, permits that carry it, the stopper open."""
    deadline = Deadline.after(COMMAND_S, "closing the safety chain")
    before = run.seen["safety_chain"].status
    run.arm_token = run.nonce()
    await run.devices.accelerator.open_stopper(deadline)
    await run.devices.safety_chain.arm(run.arm_token, deadline)
    run.guard.arm(run.tally.field_index, run.arm_token, now_ns())
    run.path.permit(run.arm_token)
    run.event("permit", phase="begin", arm_token=run.arm_token)
    try:
        async with deadline.timeout():
            while not run.path.flags & FLAG_CHAIN:
                await run.path.changed()
    except TimeoutError:
        await _say_why_open(run, before)
        raise AlreadyTripped("the safety chain did not close") from None


async def _say_why_open(run: Run, before: ChainStatus) -> None:
    """A chain that was armed and did not close has opened, for its first-out cause, or lacks permits."""
    chain = run.devices.safety_chain
    status = await chain.status(Deadline.after(COMMAND_S, "why the safety chain did not close"))
    if not status.armed and status.open_cause:
        cause = chain.map.register("open_cause").field.label(status.open_cause)
        run.trip("CHAIN_OPENED", detail=f"it did not close when it was armed; its cause is {cause}")
        return
    accepted = (status.permits_received - before.permits_received) % WRAP
    rejected = (status.permits_rejected - before.permits_rejected) % WRAP
    run.trip(
        "NOT_READY",
        detail=f"safety_chain: wanted closed within {COMMAND_S:g} s of arming, got "
        f"{'armed' if status.armed else 'not armed'}, not closed; it took {accepted} permits and rejected {rejected}. "
        f"It needs fresh ones of: {', '.join(run.site.permits.required)}; check the network to it, and the key",
    )


async def disarm_chain(run: Run) -> None:
    """No more permits, chain open, no more spills, stopper closed: only an armed field has it open."""
    deadline = Deadline.after(COMMAND_S, "opening the safety chain")
    run.path.withhold()
    run.guard.disarm(now_ns())
    run.event("permit", phase="end", arm_token=run.arm_token)
    await run.devices.safety_chain.disarm(deadline)
    await run.devices.accelerator.stop(deadline)


async def deliver_layers(run: Run, ledger: Ledger, programs: Sequence[LayerProgram]) -> None:
    """Deliver the layers of an armed field. Cancelled by whoever stops the field; then `stop_field` tidies up."""
    adaptation = Adaptation(run, programs)
    ledger.observe = adaptation.observe
    try:
        await _deliver(run, ledger, programs, adaptation)
    finally:
        ledger.observe = lambda _rows: None


async def _download(run: Run, adaptation: Adaptation, program: LayerProgram, bank: int) -> None:
    table = adaptation.table(program)
    await layer.download(run, program, bank, table)
    adaptation.downloaded(program, table)


async def _arm(run: Run, adaptation: Adaptation, program: LayerProgram, bank: int) -> None:
    offset_a = adaptation.steer(program)
    if run.latch.tripped:
        raise AlreadyTripped("tripped before a layer was armed")
    await layer.arm(run, program, bank, offset_a)


async def _deliver(run: Run, ledger: Ledger, programs: Sequence[LayerProgram], adaptation: Adaptation) -> None:
    first = programs[0]
    await _download(run, adaptation, first, 0)
    request_id = await layer.request(run, first)
    await _arm(run, adaptation, first, 0)
    accounting: asyncio.Task[None] | None = None
    async with asyncio.TaskGroup() as group:
        for index, program in enumerate(programs):
            following = programs[index + 1] if index + 1 < len(programs) else None
            run.tally.layer_index = program.layer_index
            run.tally.energy_mev_u = float("nan")  # not read back yet
            await layer.beam_ready(run, program, request_id)
            run.path.log(True)
            run.layer_runs(True)
            await layer.start(run, program, request_id)
            run.on_change()
            ahead = (
                None
                if following is None
                else group.create_task(_download(run, adaptation, following, (index + 1) % 2), name="download ahead")
            )
            attending = group.create_task(run.devices.scan_controller.attend(), name="steps of the layer")
            await layer.done(run, program, request_id)
            await attending
            run.path.log(False)
            accounted = False
            if following is not None and ahead is not None:
                request_id = await layer.request(run, following)
                run.layer_runs(False)
                await ahead
                ledger.take(run.path.take_measured())  # the layer's last spots as well
                if await ledger.looks_short(program):
                    if accounting is not None:
                        await accounting
                        accounting = None
                    await _account(run, ledger, program)
                    accounted = True
                await _arm(run, adaptation, following, (index + 1) % 2)
            if accounting is not None:
                await accounting
            accounting = None
            if not accounted:
                accounting = group.create_task(_account(run, ledger, program), name="accounting")
    run.layer_runs(False)


async def _account(run: Run, ledger: Ledger, program: LayerProgram) -> None:
    booked = await ledger.account(program)
    if booked != len(program.visits):
        # the engine said "layer done": a layer that is not whole must not pass for one
        layer = f"visits of layer {program.layer_index + 1} in the rings"
        run.trip("COUNTS_DISPUTED", value=float(booked), limit=float(len(program.visits)), detail=layer)
