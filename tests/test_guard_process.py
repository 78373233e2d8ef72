"""The guard as a process of its own, on real sockets: attached to, and what it remembers; see also test_kills.py."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.real_rooms import (
    RealRoom,
    beam_is_off,
    delivery,
    make_room,
    processes_of,
    run,
    simulators,
    spotwise,
    status,
    until,
    witness,
)

pytestmark = [pytest.mark.real_clock, pytest.mark.timeout(400)]


@pytest.fixture
def room(tmp_path: Path, free_port: Callable[[], int]) -> RealRoom:
    return make_room(tmp_path, free_port, guard=True)


def guard_pid(room: RealRoom) -> int | None:
    """The process of the guard that a delivery has started."""
    found = [line for line in processes_of(room) if "interlocks.guard_process" in line]
    return int(found[0].split(":")[0]) if found else None


def told(out: Path) -> list[dict[str, Any]]:
    """The guard's own events."""
    return [json.loads(line) for line in (out / "guard-events.jsonl").read_text(encoding="utf-8").splitlines()]


async def test_a_killed_controller_ends_its_guard_which_remembers_what_was_delivered(room: RealRoom) -> None:
    out = room.folder / "out"
    async with simulators(room), witness(room, ("scan_controller",)) as seen:
        async with run(room, *delivery(room, out)) as ours:
            await until("mid-layer", lambda: seen.visit > 60 or not ours.running)
            ours.send(signal.SIGKILL)
            await ours.ended()
        await until("the guard ends", lambda: guard_pid(room) is None)
        # nobody is there to close the stopper or to end the engine's layer
        await beam_is_off(room, "accelerator", "scan_controller")
        counter = (await status(room, "electrometer_2")).counts
    memory = json.loads((out / "guard-state.json").read_text(encoding="utf-8"))
    # the self-tests before arm and close it, too, without beam
    closed = [event for event in told(out) if event["guard"] == "closed" and event["counts"] > 1e4]
    assert len(closed) == 1
    assert memory["fields"]["0"]["counts"] == pytest.approx(closed[0]["counts"])
    assert memory["fields"]["0"]["counts"] > 1e4
    assert memory["open_field"] is None
    assert abs(counter - memory["counter"]) < 1000  # a pedestal's worth


async def test_a_guard_that_runs_already_is_used_and_stays(room: RealRoom) -> None:
    out = room.folder / "out"
    site = ("--site", str(room.site_file))
    state = room.folder / "memory.json"
    command = ("-m", "controller.cli", "guard", str(room.plan), *site, "--state", str(state))
    async with simulators(room), run(room, *command) as guard:
        await guard.said('"ready": true')
        ended = await spotwise(room, *delivery(room, out)[2:])
        assert ended.status == 0, ended
        assert guard.running
        assert not (out / "guard.log").exists()
        assert '"guard": "armed"' in guard.err
        # another plan is not its business
        other = room.folder / "other.dcm"
        other.write_bytes((Path(__file__).parents[1] / "sites/plans/small_carbon.dcm").read_bytes())
        second = ("deliver", str(other), *site, "--out", str(room.folder / "second"))
        ended = await spotwise(room, *second)
        assert ended.status == 3, ended
        assert "supervises another plan" in ended.err
        guard.send(signal.SIGTERM)
        assert (await guard.ended()).status == 0
    memory = json.loads(state.read_text(encoding="utf-8"))
    assert memory["open_field"] is None
    assert memory["fields"]["0"]["counts"] > 1e4


async def test_a_guard_without_its_room_says_so(room: RealRoom) -> None:
    ended = await spotwise(room, "guard", str(room.plan), "--site", str(room.site_file))
    assert ended.status == 3
    assert "electrometer_2" in ended.err
    ended = await spotwise(room, "guard", str(room.site_file), "--site", str(room.site_file))
    assert ended.status == 2
    assert "no plan" in ended.err
