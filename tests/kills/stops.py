"""One process stopped or killed at a random moment, and what became of the beam: judged at the plant."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

from tests.kills.plant_view import PlantView
from tests.kills.room import GUARD, STREAMS, Bench, load
from tests.real_rooms import START_S, Process, delivery, run, stands_still, summary

KINDS = (
    "controller killed",
    "controller stopped",
    "guard killed",
    "guard stopped",
    "streams killed",
    "streams stopped",
    "asyncio blocked",
)
FRAME_MS = 0.1
DISARMED = 7
"""The chain's cause where the controller opened it."""
ENDED_S = 60.0
STOPPED_S = 1.5
QUIET_S = 1.0
HANG_S = 2.0
BLOCKABLE = f"""
import ctypes, signal, sys, time
def block(*_):
    print("blocked at", time.monotonic_ns(), flush=True, file=sys.stderr)
    if time.monotonic_ns() % 2:
        time.sleep({HANG_S})  # asyncio stands still, other threads of the interpreter go on
    else:
        ctypes.PyDLL(None).usleep({round(HANG_S * 1e6)})  # the interpreter stands still
signal.signal(signal.SIGUSR1, block)
from controller.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The program as it is, but that a signal blocks asyncio."""
NAMED = {
    "controller stopped": {"LEASE_EXPIRED", "CHAIN_OPENED", "GUARD_CONTROLLER", "GUARD_SILENT", "STATUS_STALE"},
    "guard killed": {"CHAIN_OPENED", "GUARD_SILENT"},
    "guard stopped": {"CHAIN_OPENED", "GUARD_SILENT"},
    "streams killed": set(),
    "streams stopped": set(),
    "asyncio blocked": {"LEASE_EXPIRED", "CHAIN_OPENED", "GUARD_CONTROLLER", "STATUS_STALE"},
}


def limit_ms(bench: Bench) -> float:
    """Lease and time-out of the permits, and what the chopper and a frame either side take."""
    permits = bench.room.site.permits
    return permits.lease_ms + permits.time_out_ms + _machine_ms(bench)


def bound_ms(bench: Bench, kind: str) -> float:
    """What follows for this kind: only for asyncio does the lease count; others end permits at once."""
    lease_ms = bench.room.site.permits.lease_ms if kind == "asyncio blocked" else 0.0
    return lease_ms + bench.room.site.permits.time_out_ms + _machine_ms(bench)


def _machine_ms(bench: Bench) -> float:
    return bench.room.site.accelerator.beam_off_delay_us * 1e-3 + 3 * FRAME_MS


async def beam_phase_s(bench: Bench, out: Path) -> float:
    """How long a treatment that nobody disturbs takes from its first arming to its last beam."""
    plant = bench.plant
    async with run(bench.room, *delivery(bench.room, out)) as controller:
        await plant.until("armed", lambda: plant["armed"] or not controller.running, START_S, [0.0])
        begun_ns = time.monotonic_ns()
        ended = await controller.ended()
    assert ended.status == 0, ended
    return (plant["beam_last_ns"] - begun_ns) * 1e-9


async def stop_once(bench: Bench, kind: str, share: float, phase_s: float, out: Path) -> dict[str, Any]:
    """Deliver, and strike `share` of the beam phase after the first arming; what happened, with `problems`."""
    plant, room = bench.plant, bench.room
    worst = [0.0]
    at_begin = plant["particles"]
    command = delivery(room, out)
    if kind == "asyncio blocked":
        command = ("-c", BLOCKABLE, *command[2:])
    async with run(room, *command) as controller:
        await plant.until("armed", lambda: plant["armed"] or not controller.running, START_S, worst)
        begun_ns = time.monotonic_ns()
        await asyncio.sleep(max(0.0, share * phase_s))
        if not controller.running:
            return await _over(kind, share, controller, worst)
        pid = {"g": bench.pid_of(GUARD), "s": bench.pid_of(STREAMS)}.get(kind[0], controller.pid)
        number = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "blocked": signal.SIGUSR1}[kind.split()[1]]
        worst[0] = max(worst[0], plant.lag_ms)
        before = _look(plant)
        struck_ns = time.monotonic_ns()
        os.kill(pid, number)
        if number == signal.SIGUSR1:
            await controller.said("blocked at")
            found = re.search(r"blocked at (\d+)", controller.err)
            assert found is not None
            struck_ns = int(found[1])
        still_ms = 0.0
        if number == signal.SIGSTOP:  # its threads run on until each has seen the signal
            await plant.until("every thread stands still", lambda: stands_still(pid), ENDED_S, worst)
            still_ms = (time.monotonic_ns() - struck_ns) * 1e-6
        opened_ns = await _while_stopped(plant, number, worst)
        last_beam_ns = plant["beam_last_ns"]
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        ended = await controller.ended(ENDED_S)
    if kind == "controller killed":
        await plant.until("the guard ends", lambda: not bench.pid_of(GUARD), ENDED_S, worst)
    late = _look(plant)
    await asyncio.sleep(QUIET_S)
    after = _look(plant)
    got = summary(out) if (out / "summary.json").exists() and kind != "controller killed" else {}
    begun = before["particles"] > at_begin
    # before a field, in the self-tests, or with the chain open, what stood still may go on: beam comes later, rightly
    goes_on = number in (signal.SIGSTOP, signal.SIGUSR1) and not (begun and before["closed"])
    first = next((str(trip["id"]) for trip in got.get("trips", ()) if trip["first_out"]), "")
    result: dict[str, Any] = {
        "kind": kind,
        "share": round(share, 4),
        "moment_s": round((struck_ns - begun_ns) * 1e-9, 3),
        "beam": bool(before["beam_on"]),
        "closed": bool(before["closed"]),
        "armed": bool(before["armed"]),
        "off_ms": round(max(0, (last_beam_ns if goes_on else after["beam_last_ns"]) - struck_ns) * 1e-6, 3),
        "opened_ms": None if opened_ns is None else round((opened_ns - struck_ns) * 1e-6, 3),
        "still_ms": round(still_ms, 3),
        "bound_ms": bound_ms(bench, kind),
        "limit_ms": limit_ms(bench),
        "cause": after["cause"],
        "status": ended.status,
        "first_out": first,
        "begun": begun,
        "goes_on": goes_on,
        "particles": round((after["particles"] - before["particles"]) / (1 << 20)),
        "load": load(),
        "lag_ms": round(worst[0], 2),
    }
    result["problems"] = _problems(result, before, late, after)
    if result["problems"]:
        result["said"] = ended.out[-1500:] + ended.err[-1500:]
    return result


async def _over(kind: str, share: float, controller: Process, worst: list[float]) -> dict[str, Any]:
    """The treatment ended before it was struck: in order, or by itself."""
    ended = await controller.ended()
    over = {"kind": kind, "share": round(share, 4), "over": True, "status": ended.status, "load": load()}
    over["lag_ms"] = round(worst[0], 2)
    if ended.status != 0:
        over |= {"problems": [f"exit status {ended.status} by itself"], "said": ended.out[-1500:] + ended.err[-1500:]}
    return over


async def _while_stopped(plant: PlantView, number: int, worst: list[float]) -> int | None:
    """Watch the plant while it must notice; when its chain opened first, by its clock."""
    until_s = time.monotonic() + (HANG_S if number == signal.SIGUSR1 else STOPPED_S)
    opened_ns, was_closed = None, plant["closed"]
    while time.monotonic() < until_s:
        worst[0] = max(worst[0], plant.lag_ms)
        if opened_ns is None and was_closed and not plant["closed"]:
            opened_ns = plant["open_ns"]
        await asyncio.sleep(0.001)
    return opened_ns


def _look(plant: PlantView) -> dict[str, int]:
    names = ("beam_on", "beam_last_ns", "particles", "closed", "armed", "cause", "open_ns", "permits", "t_ns")
    return {name: plant[name] for name in names}


def _problems(result: dict[str, Any], before: dict[str, int], late: dict[str, int], after: dict[str, int]) -> list[str]:
    found = []
    if result["off_ms"] > result["limit_ms"]:
        found.append("beam off later than lease and time-out")
    elif result["off_ms"] > result["bound_ms"] + result["still_ms"]:
        found.append("beam off later than what follows for this kind")
    if after["closed"]:  # armed it may be: without a permit for that token, which nobody sends any more, it stays open
        found.append("the chain is not open")
    if after["permits"] != late["permits"]:
        found.append("permits go on")
    if after["particles"] != late["particles"]:
        found.append("particles later")
    if before["closed"] and (result["opened_ms"] is None or result["opened_ms"] > result["limit_ms"]):
        found.append("the chain did not open in time")
    if before["closed"] and not after["cause"]:
        found.append("the chain names no cause")
    kind = result["kind"]
    if result["status"] == 0 and after["cause"] == DISARMED and result["opened_ms"] is not None:
        return found  # the treatment was over before anybody could notice
    wanted = (4,) if result["begun"] and before["closed"] else (0, 3, 4) if result["goes_on"] else (3, 4)
    if kind == "controller killed":
        wanted = (-signal.SIGKILL,)
    if result["status"] not in wanted:
        found.append(f"exit status {result['status']}")
    elif result["status"] == 4 and not result["first_out"]:
        found.append("the journal names no cause")
    elif NAMED.get(kind) and result["begun"] and before["closed"] and result["first_out"] not in NAMED[kind]:
        found.append(f"another cause: {result['first_out']}")
    return found


def share_of(seed: int, number: int) -> float:
    """The moment of a trial, as a share of the beam phase."""
    return random.Random(f"{seed} {number}").random()
