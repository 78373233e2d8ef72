"""Stopping in order: beam off by every way, whatever one of them answers; then what was delivered is booked."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from controller.clock import now_ns
from controller.delivery.account import Ledger
from controller.delivery.proof import prove_beam_off
from controller.delivery.run import Run
from controller.machine.program import LayerProgram
from drivers.deadline import Deadline
from drivers.errors import DeviceError

STOP_S = 3.0
AFTER_STOP_S = 2.0
"""A ring of a layer takes far less; a link that is gone must not make the operator wait."""


async def beam_off(run: Run) -> None:
    """Drop, engine abort, stopper, chain; each tried for itself, each failure written down."""
    run.path.drop()
    run.path.withhold()
    run.guard.disarm(now_ns())
    deadline = Deadline.after(STOP_S, "stopping")

    async def attempt(what: str, action: Coroutine[Any, Any, None]) -> None:
        try:
            await action
        except (DeviceError, TimeoutError) as error:
            run.event("warning", text=f"{what}: {error}")

    async with asyncio.TaskGroup() as group:
        group.create_task(attempt("engine abort", run.devices.scan_controller.abort(deadline)), name="engine abort")
        group.create_task(attempt("stopper", run.devices.accelerator.stop(deadline)), name="stopper")
        group.create_task(attempt("chain", run.devices.safety_chain.disarm(deadline)), name="chain")
        group.create_task(prove_beam_off(run, deadline), name="proof")
    run.event("permit", phase="end", arm_token=run.arm_token)
    run.path.log(False)


async def book_what_was_delivered(run: Run, ledger: Ledger, programs: Sequence[LayerProgram], index: int) -> None:
    """After a stop: the rings hold what the journal does not have yet; where a link is gone, the frames have it too."""
    reachable = True
    for program in programs:
        if reachable:
            try:
                await ledger.account(program, AFTER_STOP_S)
            except* (DeviceError, TimeoutError) as errors:
                reachable = False
                _warn(run, errors)
        if not reachable and ledger.book_frames(program):
            run.event("warning", text=f"layer {program.layer_index + 1}: booked from frames; the rings keep the rows")
    try:
        await ledger.reconcile(index, AFTER_STOP_S)
    except* (DeviceError, TimeoutError) as errors:
        _warn(run, errors)


def _warn(run: Run, errors: BaseExceptionGroup[BaseException]) -> None:
    for error in errors.exceptions:
        run.event("warning", text=f"not all results could be read, the devices keep them: {error}")
