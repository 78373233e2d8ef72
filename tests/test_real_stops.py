"""Stopping on the real clock: whatever ends a delivery, the beam goes off, a cause is named, the record adds up.

Bounds are judged on the plant's own clock, from frames that a witness gets beside the controller.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.record.journal_reader import read_journal
from tests.brokers import mosquitto
from tests.real_rooms import (
    Ended,
    RealRoom,
    beam_is_off,
    delivery,
    make_room,
    processes_of,
    run,
    scenario,
    simulators,
    spotwise,
    stands_still,
    status,
    striking,
    summary,
    until,
    witness,
    written,
)

pytestmark = [pytest.mark.real_clock, pytest.mark.timeout(400)]

FRAME_NS = 100_000
SILENCE = 1
"""Cause of the chain's opening: no permits (see the register map)."""
WITH_TELEMETRY = (r"(?m)^enabled = false", "enabled = true")


@pytest.fixture
def room(tmp_path: Path, free_port: Callable[[], int]) -> RealRoom:
    return make_room(tmp_path, free_port)


def interrupted(ended: Ended, out: Path) -> dict[str, Any]:
    """Exit 4 without a traceback, a named first cause, and a partial record that adds up."""
    assert ended.status == 4, ended
    assert "Traceback" not in ended.err, ended
    return partial_record(out)


def partial_record(out: Path) -> dict[str, Any]:
    got = summary(out)
    assert got["outcome"] == "interrupted"
    assert got["spots_delivered"] < got["spots_planned"]
    with read_journal(out / "journal.bin") as journal:
        visits = journal.part_visits if hasattr(journal, "part_visits") else journal.visits
        events = journal.events
    assert got["mu_primary"] == pytest.approx(float(visits["meterset_1"].sum()), rel=1e-8)
    for event in events:
        if event["event"] == "reconcile":  # every count is a visit's or came between visits
            number = int(event["device"][-1])
            assert event["retained"] == event["journal"] + event["between_visits"]
            assert event["journal"] == int(visits[f"counts_{number}"].sum())
    return got


def first_out(got: dict[str, Any]) -> str:
    return next(str(trip["id"]) for trip in got["trips"] if trip["first_out"])


@pytest.mark.parametrize("stream", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
async def test_a_silent_stream_stops_the_beam_and_is_named(room: RealRoom, stream: int) -> None:
    out = room.folder / "out"
    faults = scenario(room, striking(f"plant.silent_{stream}", "value = 1"))
    async with simulators(room, faults), run(room, *delivery(room, out)) as controller:
        ended = await controller.ended()
        await beam_is_off(room)
    got = interrupted(ended, out)
    # what the silent one no longer contradicts may be noticed before its silence is; the cause then says who is silent
    sooner = {1: "SPOT_DOSE_SECONDARY", 2: "MONITORS_DISAGREE", 3: "STREAM_SILENT_3"}
    assert first_out(got) in (f"STREAM_SILENT_{stream}", sooner[stream])
    assert first_out(got) in ended.out
    if first_out(got) != f"STREAM_SILENT_{stream}":
        assert f"no frames of electrometer {stream} any more" in ended.out
    assert 0 < got["mu_primary"] < got["mu_planned"]


LONG = pytest.mark.slow  # the same by another wire; in virtual time all of them are played each time


@pytest.mark.parametrize(
    "device",
    [
        "scan_controller",
        "safety_chain",
        *(pytest.param(name, marks=LONG) for name in ("accelerator", "electrometer_1", "gantry", "couch")),
    ],
)
async def test_a_cut_wire_stops_the_beam_and_is_named(room: RealRoom, device: str) -> None:
    out = room.folder / "out"
    faults = scenario(room, striking(f"wire.{device}", 'kind = "cut"'))
    async with simulators(room, faults), run(room, *delivery(room, out)) as controller:
        ended = await controller.ended()
        await beam_is_off(room, device)
    got = interrupted(ended, out)
    assert first_out(got) in ("LINK_LOST", "STATUS_STALE")
    assert f"({device}" in ended.out
    assert got["mu_primary"] > 0


async def test_a_fault_of_the_catalogue_is_played_on_the_real_clock_where_deliver_starts_the_simulators(
    room: RealRoom,
) -> None:
    out = room.folder / "out"
    faults = scenario(room, 'name = "wire_frozen"\ndevice = "safety_chain"\nat = { field = 1, visit = 60 }')
    async with run(room, *delivery(room, out, "--fault", str(faults))) as controller:
        ended = await controller.ended()
    got = interrupted(ended, out)
    assert first_out(got) == "STATUS_FROZEN"
    (played,) = got["faults"]["played"]
    assert played["name"] == "wire_frozen"
    assert played["fired_s"] is not None
    assert got["mu_primary"] > 0


async def test_a_killed_controller_leaves_an_open_chain_and_a_record_up_to_the_last_tenth_of_a_second(
    room: RealRoom,
) -> None:
    out = room.folder / "out"
    async with simulators(room), witness(room) as seen, run(room, *delivery(room, out)) as controller:
        await until("mid-layer", lambda: 100 < seen.visit < 300)
        controller.send(signal.SIGKILL)
        ended = await controller.ended()
        dead_ns = time.monotonic_ns()
        assert ended.status == -signal.SIGKILL
        await until("the chain opens", seen.chain_opened_ns)
        chain = await status(room, "safety_chain")
        assert (chain.closed, chain.open_cause) == (False, SILENCE)
        opened_ns = seen.chain_opened_ns()
        assert opened_ns is not None
        # a permit that was on its way when the controller died counts from its arrival; stream 3 has 5 frames a ms
        assert opened_ns <= dead_ns + room.site.permits.time_out_ms * 1e6 + 3 * FRAME_NS
        delay_ns = (room.site.accelerator.beam_off_delay_us + 8 * room.site.dosimetry.secondary.lag_us) * 1000
        last_beam_ns = seen.last_beam_ns()
        assert last_beam_ns is not None
        assert last_beam_ns <= opened_ns + delay_ns + 2 * FRAME_NS
    problems = await spotwise(room, "verify", str(out), "--json")
    assert problems.status == 3
    assert "never closed" in problems.out
    rebuilt = await spotwise(room, "report", str(out))
    assert rebuilt.status == 0, rebuilt
    assert "never closed" in rebuilt.out
    got = partial_record(out)
    # 0.1 s are fifteen visits of this layer; a PC that stalls may make it some more
    assert 50 < got["spots_delivered"] < 300
    missing = got["unclosed"][0]
    assert missing["visits_from_frames"] == got["spots_delivered"]
    assert missing["not_written_s"] == pytest.approx(0.35)
    again = await spotwise(room, "verify", str(out), "--json")
    assert again.status == 3
    said = json.loads(again.out)["problems"]
    assert len(said) == 1
    assert "never closed" in said[0]
    assert not processes_of(room)


HANGS = """
import asyncio, sys, time
import controller.session as session
original = session.deliver
async def hanging(order, report, path, key, sink, **more):
    loop = asyncio.get_running_loop()
    def look():
        if 60 < path.monitor.running["visit"] < 300:  # the self-test of the engine has a visit beyond
            print("hangs", flush=True)
            time.sleep(2.0)
        else:
            loop.call_later(0.02, look)
    look()
    return await original(order, report, path, key, sink, **more)
import controller.run_real as run_real
run_real.deliver = hanging
from controller.cli import main
sys.exit(main(sys.argv[1:]))
"""


async def test_where_only_asyncio_hangs_the_lease_ends_the_permits(room: RealRoom) -> None:
    out = room.folder / "out"
    async with simulators(room), witness(room) as seen:
        async with run(room, "-c", HANGS, *delivery(room, out)[2:]) as controller:
            await controller.said("hangs")
            hangs_ns = time.monotonic_ns()
            await until("the chain opens", seen.chain_opened_ns)
            opened_ns = seen.chain_opened_ns()
            assert opened_ns is not None
            permits = room.site.permits
            assert opened_ns <= hangs_ns + (permits.lease_ms + permits.time_out_ms) * 1e6 + 3 * FRAME_NS
            assert controller.running
            ended = await controller.ended()
        await beam_is_off(room)
    got = interrupted(ended, out)
    assert first_out(got) in ("LEASE_EXPIRED", "CHAIN_OPENED")
    assert "LEASE_EXPIRED" in {trip["id"] for trip in got["trips"]}


async def test_a_controller_that_stands_still_for_two_seconds_has_lost_the_beam(room: RealRoom) -> None:
    out = room.folder / "out"
    async with simulators(room), witness(room) as seen, run(room, *delivery(room, out)) as controller:
        await until("mid-layer", lambda: 60 < seen.visit < 300)
        controller.send(signal.SIGSTOP)
        await until("every thread stands still", lambda: stands_still(controller.pid))
        still_ns = time.monotonic_ns()
        await asyncio.sleep(2.0)
        opened_ns = seen.chain_opened_ns()
        assert opened_ns is not None
        assert (await status(room, "safety_chain")).open_cause == SILENCE
        controller.send(signal.SIGCONT)
        ended = await controller.ended()
        await beam_is_off(room)
    got = interrupted(ended, out)
    assert opened_ns <= still_ns + room.site.permits.time_out_ms * 1e6 + 3 * FRAME_NS
    assert first_out(got)


WHEN = {
    "start": "",
    "preparation": '"event":"device"',
    "set-up": '"state":"PREPARED"',
    "mid-layer": '"phase":"start"',
}
"""What the journal has said by then."""


@pytest.mark.parametrize(
    ("when", "number"),
    [
        ("start", signal.SIGINT),
        ("start", signal.SIGTERM),
        ("preparation", signal.SIGINT),
        ("set-up", signal.SIGTERM),
        ("mid-layer", signal.SIGINT),
        ("mid-layer", signal.SIGTERM),
    ],
)
async def test_a_signal_ends_the_delivery_in_order(
    tmp_path: Path, free_port: Callable[[], int], when: str, number: signal.Signals
) -> None:
    room = make_room(tmp_path, free_port, WITH_TELEMETRY, snout_mm=300.0 if when == "set-up" else 515.0)
    out = room.folder / "out"
    async with run(room, *delivery(room, out)) as controller:
        if when == "start":
            await until("simulators start", (out / "simulators.log").exists)
        else:
            await until(when, lambda: written(out, WHEN[when]))
        controller.send(number)
        ended = await controller.ended()
    assert ended.status == 4, ended
    assert "Traceback" not in ended.err, ended
    assert number.name in ended.out + ended.err
    await until("no orphan", lambda: not processes_of(room), 5.0)
    if when in ("set-up", "mid-layer"):
        got = interrupted(ended, out)
        assert first_out(got) == "OPERATOR_ABORT"
        assert written(out, '"state":"ARMED"') == (when == "mid-layer")
        assert (await spotwise(room, "verify", str(out))).status == 0


async def test_killed_simulators_end_the_delivery_and_the_record_comes_from_frames(room: RealRoom) -> None:
    out = room.folder / "out"
    async with simulators(room) as devices, witness(room) as seen, run(room, *delivery(room, out)) as controller:
        await until("mid-layer", lambda: 60 < seen.visit < 300)
        devices.send(signal.SIGKILL)
        ended = await controller.ended()
    got = interrupted(ended, out)
    assert first_out(got) in ("LINK_LOST", *(f"STREAM_SILENT_{n}" for n in (1, 2, 3)))
    assert got["mu_primary"] > 0
    assert "from frames" in (out / "events.jsonl").read_text(encoding="utf-8")


async def test_telemetry_without_a_broker_is_no_business_of_the_beam(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    room = make_room(
        tmp_path,
        free_port,
        WITH_TELEMETRY,
        ("embedded_broker = true", "embedded_broker = false"),
    )
    async with run(room, *delivery(room, room.folder / "out")) as controller:
        ended = await controller.ended()
    assert ended.status == 0, ended
    assert summary(room.folder / "out")["outcome"] == "completed"
    conditions = json.loads((room.folder / "out" / "run.json").read_text(encoding="utf-8"))["real_time"]
    assert conditions["granted"]["timer_slack_ns"] == 1
    assert conditions["collections"]["in_layers"] == 0
    assert conditions["collections"]["collections"] >= 2  # one after each layer


async def test_a_broker_that_dies_in_mid_run_is_no_business_of_the_beam(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    room = make_room(tmp_path, free_port, WITH_TELEMETRY)
    async with run(room, *delivery(room, room.folder / "out")) as controller:
        await controller.said("DELIVERING")
        for line in processes_of(room):
            if "simulators.broker" in line:
                os.kill(int(line.split(":")[0]), signal.SIGKILL)
                break
        else:
            raise AssertionError("no broker runs")
        ended = await controller.ended()
    assert ended.status == 0, ended
    assert summary(room.folder / "out")["outcome"] == "completed"


async def test_a_real_broker_gets_every_documented_topic(
    tmp_path: Path, free_port: Callable[[], int], program: Callable[[str], str]
) -> None:
    reader, port = program("mosquitto_sub"), free_port()
    room = make_room(
        tmp_path,
        free_port,
        WITH_TELEMETRY,
        (r"mqtt://127.0.0.1:\d+", f"mqtt://127.0.0.1:{port}"),
    )
    async with (
        mosquitto(program("mosquitto"), tmp_path, port),
        run(room, *delivery(room, room.folder / "out")) as controller,
    ):
        listening = await asyncio.create_subprocess_exec(
            *(reader, "-h", "127.0.0.1", "-p", str(port), "-t", "spotwise/#", "-F", "%t"),
            stdout=asyncio.subprocess.PIPE,
        )
        ended = await controller.ended()
        assert not any("simulators.broker" in line for line in processes_of(room))
        await asyncio.sleep(0.2)
        listening.terminate()
        heard, _ = await listening.communicate()
    assert ended.status == 0, ended
    topics = {line.removeprefix(f"spotwise/{room.site.name}/v1/") for line in heard.decode().split()}
    devices = {f"devices/{name}" for name, _ in room.site.devices.items()}
    assert {"state", "interlocks", "availability", "spots", "layer"} | devices <= topics


async def test_a_second_controller_is_refused_and_a_dead_ones_lock_is_not_in_the_way(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    room = make_room(tmp_path, free_port, snout_mm=100.0)  # eight seconds of set-up, in which the first one is busy
    async with simulators(room):
        async with run(room, *delivery(room, room.folder / "first")) as first:
            await until("set-up", lambda: written(room.folder / "first", '"state":"PREPARED"'))
            async with run(room, *delivery(room, room.folder / "second")) as second:
                refused = await second.ended()
            assert first.running
            assert refused.status == 3, refused
            assert "another controller runs" in refused.err
            assert "Traceback" not in refused.err
            first.send(signal.SIGKILL)
            await first.ended()
        assert list(room.folder.glob("*.lock"))
        async with run(room, *delivery(room, room.folder / "third")) as third:
            ended = await third.ended()
    assert ended.status == 0, ended


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))


async def test_a_full_disk_stops_the_beam_and_what_was_written_stays_readable(room: RealRoom) -> None:
    out = room.folder / "out"
    async with simulators(room):
        async with run(room, *delivery(room, out), preexec_fn=_small_files) as controller:
            ended = await controller.ended()
        await beam_is_off(room)
    assert ended.status == 4, ended
    assert "Traceback" not in ended.err, ended
    assert "DISK" in ended.out + ended.err
    rebuilt = await spotwise(room, "report", str(out))
    assert rebuilt.status == 0, rebuilt
    partial_record(out)


@pytest.mark.slow
async def test_a_killed_and_resumed_treatment_verifies_while_its_simulators_still_run_and_after_their_end(
    room: RealRoom,
) -> None:
    out = room.folder / "out"
    async with run(room, *delivery(room, out)) as controller:
        await controller.said("DELIVERING")
        await asyncio.sleep(0.5)
        controller.send(signal.SIGKILL)
        await controller.ended()
    try:
        resumed = await spotwise(room, "resume", str(out))
        assert resumed.status == 0, resumed
        verified = await spotwise(room, "verify", str(out))
        assert verified.status == 0, verified
        (survivors,) = [line for line in processes_of(room) if "simulators.serve" in line]
    finally:
        for line in processes_of(room):
            if "simulators.serve" in line:
                os.kill(int(line.split(":")[0]), signal.SIGTERM)
    assert survivors
    await until("the simulators end", lambda: not processes_of(room))
    assert not (out / "simulators-state.live").exists()
    verified = await spotwise(room, "verify", str(out))
    assert verified.status == 0, verified
    (out / "identity.dcm").write_bytes(b"another")
    assert (await spotwise(room, "verify", str(out))).status == 3
