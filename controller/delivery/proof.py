"""The proof that beam is off after a stop (S10): by every monitor that still sends frames, else by the chain's sensor.

A monitor that has fallen silent proves nothing, and the other one may show beam; where neither sends frames any more,
the chain's PLC is asked at once. Where that does not answer either, nobody knows: that is a condition of its own.
"""

from __future__ import annotations

import asyncio

from controller.clock import now_ns
from controller.delivery.run import Run
from drivers.deadline import Deadline
from drivers.errors import DeviceError
from drivers.flags import FLAG_BEAM

DROP_MS = 2.0
"""A commanded drop leaves with the next turn of the real-time path, after a millisecond at most."""
LATE_MS = 2.0
"""Frames come ten a millisecond: a monitor whose newest is later than this sends none."""
LOOK_S = 0.0005
MONITORS = (1, 2)


async def prove_beam_off(run: Run, deadline: Deadline) -> None:
    """The chopper must be seen to obey the drop; the stopper, which closes meanwhile, is slower and would hide it.

    The real-time path keeps its first condition, so it says nothing of beam after a trip: that is said here. Latches
    `BEAM_WITHOUT_REQUEST` or `BEAM_OFF_UNPROVED`; never raises for what a device does.
    """
    proof_ms = run.site.tolerances.beam_off_proof_ms
    asked_ns = now_ns()
    await asyncio.sleep((proof_ms + DROP_MS) * 1e-3)
    end_ns = now_ns() + round(LATE_MS * 1e6)
    proving: set[int] = set()
    while True:
        for number in MONITORS:
            if number not in proving and _frame_ns(run, number) >= asked_ns + proof_ms * 1e6:
                proving.add(number)
                if int(run.path.monitor.state[f"flags_{number}"]) & FLAG_BEAM:
                    _still_beam(run, proof_ms)
        if len(proving) == len(MONITORS) or now_ns() >= end_ns:
            break
        await asyncio.sleep(LOOK_S)
    if not proving:
        await _by_the_chain(run, proof_ms, deadline)


def _frame_ns(run: Run, number: int) -> int:
    """When the newest frame of a stream was made, on our clock; never its arrival: an old one may come late."""
    stream = run.path.monitor.streams[number]
    return int(stream["t_ns"]) + int(stream["offset_ns"])


async def _by_the_chain(run: Run, proof_ms: float, deadline: Deadline) -> None:
    try:
        status = await run.devices.safety_chain.status(deadline)
    except (DeviceError, TimeoutError) as error:
        run.trip("BEAM_OFF_UNPROVED", detail=f"no frames of electrometers 1 and 2 after the stop; {error}")
        return
    if status.beam_present:
        _still_beam(run, proof_ms, ", by the chain's sensor; no frames of electrometers 1 and 2")
    else:
        text = "no frames of electrometers 1 and 2 after the stop: that beam is off is said by the chain's sensor alone"
        run.event("warning", text=text)


def _still_beam(run: Run, proof_ms: float, by: str = "") -> None:
    run.trip("BEAM_WITHOUT_REQUEST", value=proof_ms + DROP_MS, limit=proof_ms, detail=f"after the stop{by}")
