"""Self-tests at prepare of every part: each way to stop the beam is used once, without beam, and proved by read-back.

The stopper is closed but for its own test, and nothing is asked of the accelerator. The chain is armed and closed by
the permits of this part's session; the engine runs a table of one visit, which no plan has and no dose is booked to. A
test that fails refuses the part. What passed counts for the boot in which it passed
(`interlocks.invariant.SELF_TESTED`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np

from controller.clock import now_ns
from controller.delivery.run import Run
from drivers.contracts import SELF_TEST_VISIT, EngineStatus, LayerTable
from drivers.deadline import Deadline
from drivers.dose_monitor import Electrometer
from drivers.errors import DeviceError, ReadbackMismatch, Refused
from drivers.flags import FLAG_CHAIN

TEST_S = 3.0
"""The longest that one test may take, beside the chain's time-out."""
LOOK_S = 0.001
SEEN_MS = 2.0
"""From an order to the chain's line in the frames: a turn of the real-time path, and a frame each of both."""
GUARD_TURN = 0.2
"""The guard hears the controller once in so much of the time-out."""
PATIENCE = 3.0
"""A chain that is closed after so many times the limit is not waited for any longer."""
STALLED_TRIES = 3
"""A simulated room shares its PC, which may stand still in the middle of a measurement: it may be measured again."""
PRESET_COUNTS = 1000
LIMIT_MS = 10
BEAM_OFF_BOTH_ENDS = 3
TIME_OUT, DROP, GUARD_TIME_OUT = 1, 2, 10
"""First-out causes of the chain."""
RUNNING, HELD, ABORTED = 2, 3, 5
"""States of the engine."""


async def test_monitors(run: Run, deadline: Deadline) -> None:
    """Charge injection into both electrometers. Raises `Refused`."""
    for device in (run.devices.electrometer_1, run.devices.electrometer_2):
        nonce = run.identities[device.name].boot_nonce
        await _prove(run, device.name, "charge injection", partial(_inject, device, deadline))
        run.self_tests[device.name] = nonce


async def test_stops(run: Run, deadline: Deadline) -> None:
    """Stopper, chopper, chain, engine; the session is open, frames flow and leases are renewed.

    Raises `Refused` that names test, device, wanted and got; the room is left as it was found.
    """
    run.path.load_self_test()
    names = ("accelerator", "safety_chain", "scan_controller")
    nonces = {name: run.identities[name].boot_nonce for name in names}
    try:
        await _test_stops(run, deadline)
    except DeviceError as error:  # between the tests: the chain that is to be armed for one
        raise Refused(f"self-tests: {error}") from error
    finally:
        run.path.withhold()
        run.guard.disarm(now_ns())
        run.path.allow(0, 0)
        await _leave_open(run)
    run.self_tests.update(nonces)


async def _test_stops(run: Run, deadline: Deadline) -> None:
    await _prove(run, "accelerator", "stopper opens and closes", lambda: _stopper(run, deadline.sooner(TEST_S)))
    chain = run.devices.safety_chain
    await _prove(run, "safety_chain", "chopper opens and closes", lambda: chain.test_chopper(deadline.sooner(TEST_S)))
    await _close(run, deadline.sooner(TEST_S))
    await _prove(run, "scan_controller", "holds, goes on, aborts", lambda: _engine(run, deadline.sooner(TEST_S)))
    required, time_out_ms = run.site.permits.required, run.site.permits.time_out_ms
    await _opens(run, "opens by a drop", run.path.drop, DROP, time_out_ms)
    run.path.reset()
    await _until(run, lambda: run.path.trip() is None, deadline.sooner(TEST_S), "latch: wanted clear, got the drop")
    if "controller" in required:
        await _again(run, deadline, "opens without permits", run.path.withhold, TIME_OUT, time_out_ms + SEEN_MS)
    if "guard" in required:
        limit_ms = time_out_ms * (1 + GUARD_TURN) + SEEN_MS
        await _again(
            run, deadline, "opens without the guard", lambda: run.guard.disarm(now_ns()), GUARD_TIME_OUT, limit_ms
        )


async def _prove(run: Run, device: str, what: str, test: Callable[[], Awaitable[float]]) -> None:
    """One test: journalled whether it passes or not. Raises `Refused` that names it."""
    try:
        measured_ms = await test()
    except (DeviceError, Refused) as error:
        _write_down(run, device, what, None, None, passed=False, detail=str(error))
        raise Refused(f"self-test of {device}, {what}, failed: {error}") from error
    _write_down(run, device, what, measured_ms, None, passed=True)


def _write_down(
    run: Run,
    device: str,
    what: str,
    measured_ms: float | None,
    limit_ms: float | None,
    *,
    passed: bool,
    detail: str = "",
) -> None:
    measured_ms = None if measured_ms is None else round(measured_ms, 6)
    run.event(
        "self_test", device=device, what=what, measured_ms=measured_ms, limit_ms=limit_ms, passed=passed, detail=detail
    )


async def _inject(device: Electrometer, deadline: Deadline) -> float:
    return await _timed(device.self_test(deadline))


async def _timed(work: Awaitable[None]) -> float:
    began_ns = now_ns()
    await work
    return (now_ns() - began_ns) * 1e-6


async def _until(run: Run, so: Callable[[], bool], deadline: Deadline, otherwise: str) -> None:
    while not so():
        if deadline.remaining_s() <= 0:
            raise Refused(f"self-test: {otherwise}")
        await asyncio.sleep(LOOK_S)


async def _stopper(run: Run, deadline: Deadline) -> float:
    """Closed and released first, then open, then closed, each by its switch."""
    accelerator = run.devices.accelerator
    await accelerator.stop(deadline)
    status = await accelerator.status(deadline)
    if status.beam_enabled:
        raise ReadbackMismatch("accelerator", "beam_enabled: wanted False before the self-tests, got True")
    await accelerator.open_stopper(deadline)
    return await _timed(accelerator.stop(deadline))


async def _close(run: Run, deadline: Deadline) -> None:
    """Arm the chain with a fresh token and let permits close it."""
    run.arm_token = run.nonce()
    await run.devices.safety_chain.arm(run.arm_token, deadline)
    run.guard.arm(0, run.arm_token, now_ns())
    run.path.permit(run.arm_token)
    wanted = "safety_chain: closed: wanted True with permits of all that the site requires, got False"
    await _until(run, lambda: bool(run.path.flags & FLAG_CHAIN), deadline, wanted)


async def _again(
    run: Run, deadline: Deadline, what: str, withdraw: Callable[[], None], cause: int, limit_ms: float
) -> None:
    """Close the chain and see it open, up to three times in a room that shares its PC."""
    for left in reversed(range(STALLED_TRIES if run.site.all_simulated else 1)):
        await _close(run, deadline.sooner(TEST_S))
        try:
            await _opens(run, what, withdraw, cause, limit_ms)
        except TooLate:
            if left == 0:
                raise
        else:
            return


class TooLate(Refused):
    """The chain opened for the right cause, but not in time."""


async def _opens(run: Run, what: str, withdraw: Callable[[], None], cause: int, limit_ms: float) -> None:
    """Withdraw what the chain needs, and see it open in time and for that cause."""
    withhold_ms = run.site.permits.time_out_ms / 2
    stream = run.path.monitor.streams[3]
    began_ns = now_ns()

    def frame_ms() -> float:
        """Age of the newest frame's content: a look that comes late has seen what was then."""
        return max(0.0, (int(stream["t_ns"]) + int(stream["offset_ns"]) - began_ns) * 1e-6)

    withdraw()
    shut_ms = looked_ms = 0.0
    while run.path.flags & FLAG_CHAIN and looked_ms <= PATIENCE * limit_ms:
        shut_ms = frame_ms()
        if looked_ms >= withhold_ms:
            run.path.withhold()  # so late that it is the other's silence that opens; a fall is no surprise then
        await asyncio.sleep(LOOK_S)
        looked_ms = (now_ns() - began_ns) * 1e-6
    open_ms = frame_ms()
    run.guard.disarm(now_ns())
    run.path.withhold()
    status = await run.devices.safety_chain.status(Deadline.after(TEST_S, what))
    label = run.devices.safety_chain.map.register("open_cause").field.label
    problem = late = ""
    if status.closed or status.armed or status.open_cause != cause:
        got = f"{'closed' if status.closed else 'open'}, {label(status.open_cause)}"
        problem = f"safety_chain: {what}: wanted open, {label(cause)}; got {got}"
    elif not shut_ms <= limit_ms:
        late = f"safety_chain: {what}: wanted open within {limit_ms:g} ms, got closed after {shut_ms:.3f} ms"
    _write_down(run, "safety_chain", what, open_ms, limit_ms, passed=not (problem or late), detail=problem or late)
    if problem:
        raise Refused(f"self-test: {problem}")
    if late:
        raise TooLate(f"self-test: {late}")


async def _engine(run: Run, deadline: Deadline) -> float:
    """A visit that gets no beam: held, resumed, aborted; returns how long the hold took to show, ms."""
    devices = run.devices
    engine = devices.scan_controller
    before = await engine.status(deadline)
    floor = round(run.site.tolerances.field_dose_counts)
    await devices.electrometer_2.load_backup(0, SELF_TEST_VISIT, np.array([floor], np.uint32), floor / 1e-4, deadline)
    await engine.download(0, _table(), deadline)
    await engine.arm(0, run.arm_token, deadline)
    await engine.start(deadline)
    await _shows(run, RUNNING, "running", deadline)
    began_ns = now_ns()
    await engine.hold(True, deadline)
    await _shows(run, HELD, "held", deadline)
    took_ms = (now_ns() - began_ns) * 1e-6
    await engine.hold(False, deadline)
    await _shows(run, RUNNING, "running again", deadline)
    await engine.abort(deadline)
    await _shows(run, ABORTED, "aborted", deadline)
    await _skip_row(run, before, deadline)
    return took_ms


def _table() -> LayerTable:
    """One visit at the centre; nothing but beam could end it."""
    return LayerTable(
        first_visit=SELF_TEST_VISIT,
        x_current_a=np.zeros(1),
        y_current_a=np.zeros(1),
        preset_counts=np.array([PRESET_COUNTS], np.uint32),
        time_limit_ms=np.array([LIMIT_MS], np.uint16),
        flags=np.array([BEAM_OFF_BOTH_ENDS], np.uint16),
        early_on_counts=0,
        early_off_counts=0,
        gated=False,
    )


async def _shows(run: Run, wanted: int, word: str, deadline: Deadline) -> None:
    limit = deadline.sooner(TEST_S / 6)
    while (status := await run.devices.scan_controller.status(limit)).state != wanted:
        if limit.remaining_s() <= 0.01:
            raise ReadbackMismatch("scan_controller", f"state: wanted {word} ({wanted}), got {status.state}")
        await asyncio.sleep(0.005)


async def _skip_row(run: Run, before: EngineStatus, deadline: Deadline) -> None:
    """The visit's row in the three rings: proved to be without beam, acknowledged, and read no more."""
    devices = run.devices
    rings = (devices.scan_controller, devices.electrometer_1, devices.electrometer_2)
    rows = before.results + 1
    limit = deadline.sooner(TEST_S / 6)
    while any(got != rows for got in [(await ring.status(limit)).results for ring in rings]):
        if limit.remaining_s() <= 0.01:
            raise ReadbackMismatch("scan_controller", f"results: wanted {rows} in all three rings after the self-test")
        await asyncio.sleep(0.005)
    row = (await devices.scan_controller.results(before.results, 1, deadline))[0]
    if int(row["visit"]) != SELF_TEST_VISIT or int(row["beam_on_ns"]) != 0:
        got = f"visit {int(row['visit'])}, {int(row['beam_on_ns'])} ns"
        raise ReadbackMismatch("scan_controller", f"results: wanted visit {SELF_TEST_VISIT} without beam, got {got}")
    if before.acknowledged >= before.results:  # else they belong to a treatment that was cut off, which wants them all
        for ring in rings:
            await ring.acknowledge(rows, deadline)


async def _leave_open(run: Run) -> None:
    """Chain open, engine at rest, stopper closed, whatever one of them answers."""
    deadline = Deadline.after(TEST_S, "end of the self-tests")
    for what, close in (
        ("chain", run.devices.safety_chain.disarm),
        ("engine", run.devices.scan_controller.abort),
        ("stopper", run.devices.accelerator.stop),
    ):
        try:
            await close(deadline)
        except DeviceError as error:
            run.event("warning", text=f"{what}: {error}")
