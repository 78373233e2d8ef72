"""Stopping in order: beam off by every way, whatever one of them answers; then what was delivered is booked."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from controller.clock import now_ns
from controller.delivery.account import Ledger
from controller.delivery.run import Run
from controller.machine.program import LayerProgram
from drivers.deadline import Deadline
from drivers.errors import DeviceError
from drivers.flags import FLAG_BEAM

ELECTROMETERS = (1, 2)
STOP_S = 3.0
DROP_MS = 2.0
"""A commanded drop leaves with the next turn of the real-time path, after a millisecond at most."""
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
        group.create_task(_prove_beam_off(run), name="proof")
    run.event("permit", phase="end", arm_token=run.arm_token)
    run.path.log(False)


async def _prove_beam_off(run: Run) -> None:
    """The chopper must be seen to obey the drop; the stopper, which closes meanwhile, is slower and would hide it.

    The real-time path keeps its first condition, so it says nothing of beam after a trip: that is said here. Each
    monitor speaks for itself: one of which no frame came in the proof time last said how it was before the stop.
    """
    streams, state, proof_ms = run.path.monitor.streams, run.path.monitor.state, run.site.tolerances.beam_off_proof_ms
    await asyncio.sleep(DROP_MS * 1e-3)
    frames = {number: int(streams[number]["frames"]) for number in ELECTROMETERS}
    await asyncio.sleep(proof_ms * 1e-3)
    if any(int(streams[n]["frames"]) > frames[n] and int(state[f"flags_{n}"]) & FLAG_BEAM for n in ELECTROMETERS):
        run.trip("BEAM_WITHOUT_REQUEST", value=proof_ms + DROP_MS, limit=proof_ms, detail="after the stop")


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
