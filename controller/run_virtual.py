"""`spotwise deliver --clock virtual`: a treatment in one process, as fast as it computes, the same each time."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from controller.commands import Commands
from controller.compose import VirtualWorld, load_scenario, site_key, wire_latencies
from controller.delivery.run import Run
from controller.display import Display
from controller.plan.check import CheckReport
from controller.record.faults_played import FAULTS, write_played
from controller.record.frame_recorder import FrameRecorder
from controller.record.journal_reader import read_journal
from controller.session import Order, Outcome, deliver
from controller.telemetry_sinks import LatestSink
from drivers.errors import Refused
from drivers.wires.virtual_loop import run_virtual

STATE = "room-state.npz"


def deliver_virtual(order: Order, report: CheckReport, faults: Path | None) -> Outcome:
    """Deliver; writes the journal and truth.json. Ctrl-C and SIGTERM abort the treatment in order.

    The room's retained counters and rings outlive the process in `room-state.npz`, for a later part.
    """
    scenario = () if faults is None else load_scenario(faults)
    state = order.out / STATE
    if order.part > 1 and not state.exists():
        raise Refused(
            f"{state}: missing: the simulated room was in the process that delivered, and died with it, counters and "
            "all; in virtual time the same plan, site and seed give the same treatment again"
        )
    world = VirtualWorld(order.site, order.seed, state=state if order.part > 1 else None)
    if order.carried is not None and order.epoch is not None:
        world.wait_idle((order.epoch - order.carried.ended).total_seconds())
    again = "" if order.part == 1 else f"|{order.part}"  # a later part's nonces are its own
    numbers = random.Random(f"{order.seed}|{order.site.name}{again}")
    displays: list[Display] = []
    handlers: dict[int, Any] = {}

    def watch(run: Run, commands: Commands) -> None:
        displays.append(Display(run, sys.stderr, report.time_s))
        world.follow(run, commands)

        loop = asyncio.get_running_loop()

        def stop(number: int, _frame: FrameType | None) -> None:
            # a signal may come in the middle of anything: it waits for its turn in the loop
            loop.call_soon_threadsafe(commands.abort, order.operator, f"signal {signal.Signals(number).name}")

        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, stop)

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    recorder: FrameRecorder | None = None

    async def main() -> tuple[Outcome, Run]:
        async with world.serve(scenario) as path:
            if recorder is not None:
                recorder.attach(path)
            return await deliver(
                order,
                report,
                path,
                site_key(order.site),
                LatestSink(),
                nonce=lambda: numbers.getrandbits(63) | 1,
                watch=watch,
            )

    tcp, serial = wire_latencies(order.site)
    with ExitStack() as stack:
        if order.frames_bytes:
            recorder = stack.enter_context(
                FrameRecorder(order.out, world.monitor, limit_bytes=order.frames_bytes, threaded=False)
            )
            world.record(recorder.tape, recorder.advance)
        stack.callback(restore)
        outcome, run = run_virtual(_closing(main, displays), world, seed=order.seed, tcp=tcp, serial=serial)
    if faults is not None:
        write_played(order.out / FAULTS, world.played)
    world.save(state)
    with read_journal(order.out / "journal.bin") as journal:
        truth = world.truth([list(programs) for programs in run.planned], journal.visits)
    if truth is not None and order.site.all_simulated:
        (order.out / "truth.json").write_text(json.dumps(truth, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return outcome


async def _closing(main: Any, displays: list[Display]) -> tuple[Outcome, Run]:
    try:
        result: tuple[Outcome, Run] = await main()
        return result
    finally:
        for display in displays:
            display.close()
