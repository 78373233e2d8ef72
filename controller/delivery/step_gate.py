"""Step mode's gate at prepare: PC and links are timed here and now; a plan beyond them is refused.

A check knows the devices by data sheet only; this adds what a transaction takes today. Nothing has moved yet, no beam
is allowed, and nobody else uses the links.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from controller.delivery.run import Run
from controller.machine.step_feasibility import Latencies, Latency, host_ms, spot_bounds, step_problems, stepping
from drivers.deadline import Deadline
from drivers.errors import Refused
from drivers.step_engine import StepEngine

MEASURE_S = 3.0
"""A slow link is not timed for longer: it has shown what it is."""
FEWEST = 20
TIMERS = 100
TIMER_S = 0.001
SHOWN = 10


async def step_gate(run: Run) -> None:
    """Measure, write down, and raise `Refused` that names the spots. Does nothing where a spot engine steps."""
    engine = run.devices.scan_controller
    if not isinstance(engine, StepEngine):
        return
    transactions = stepping(run.site).transactions
    latencies = Latencies(
        supply=await _timed("scan_controller", engine.supply.readback, transactions),
        electrometer=await _timed("electrometer_1", engine.electrometer.spot, transactions),
        timer=await _timer_lateness(),
    )
    problems = [
        (program.field_index, problem)
        for programs in run.programs
        for program in programs
        for problem in step_problems(run.site, program, latencies)
    ]
    run.event("step_gate", **_figures(run, latencies), refused=len(problems))
    if problems:
        lines = [
            f"beam {run.plan.fields[field].number}, layer {p.layer}, spot {p.spot} (visit {p.visit}): "
            f"[{p.rule}] {p.reason}"
            for field, p in problems
        ]
        more = [] if len(lines) <= SHOWN else [f"and {len(lines) - SHOWN} more"]
        timed = ", ".join(
            f"{t.name} {t.p50_ms:g}/{t.p99_ms:g}/{t.max_ms:g} ms"
            for t in (latencies.supply, latencies.electrometer, latencies.timer)
        )
        raise Refused(
            "step mode cannot hold this site's tolerances with this PC and these links (p50/p99/max: "
            f"{timed}):\n  " + "\n  ".join([*lines[:SHOWN], *more])
        )


async def _timed(name: str, ask: Callable[[Deadline], Awaitable[object]], transactions: int) -> Latency:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + MEASURE_S
    times_s: list[float] = []
    while len(times_s) < transactions and (len(times_s) < FEWEST or loop.time() < end_s):
        begun_s = loop.time()
        await ask(Deadline.after(MEASURE_S, f"timing of {name}"))
        times_s.append(loop.time() - begun_s)
    return Latency.of(name, times_s)


async def _timer_lateness() -> Latency:
    loop = asyncio.get_running_loop()
    late_s: list[float] = []
    for _ in range(TIMERS):
        wanted_s = loop.time() + TIMER_S
        await asyncio.sleep(TIMER_S)
        late_s.append(max(0.0, loop.time() - wanted_s))
    return Latency.of("timer", late_s)


def _figures(run: Run, latencies: Latencies) -> dict[str, Any]:
    """What the journal keeps: the latencies, and the worst spot of each kind."""
    worst_excess = worst_dead_ms = worst_time_ms = 0.0
    for programs in run.programs:
        for program in programs:
            if not len(program.visits):
                continue
            bounds = spot_bounds(run.site, program, latencies)
            worst_excess = max(worst_excess, float((bounds["excess_counts"] / bounds["excess_limit_counts"]).max()))
            worst_dead_ms = max(worst_dead_ms, float(bounds["dead_ms"].max()))
            worst_time_ms = max(worst_time_ms, float(bounds["time_ms"].max()))
    return {
        "links": [asdict(t) for t in (latencies.supply, latencies.electrometer, latencies.timer)],
        "host_ms": round(host_ms(latencies), 3),
        "worst_excess_of_tolerance": round(worst_excess, 6),
        "stalled_pc_particles": 0,
        "worst_dead_ms": round(worst_dead_ms, 3),
        "dead_limit_ms": stepping(run.site).dead_time_ms,
        "worst_time_ms": round(worst_time_ms, 3),
    }
