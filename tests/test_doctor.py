"""The doctor says whether PC and links are fit; a room with a real device is made ready only where they are, today."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.doctor.command import format_doctor
from controller.doctor.host import asyncio_item, collection_items, disk_items, scheduler_items
from controller.doctor.items import Item, at_most, worst
from controller.doctor.limits import limits_of, realtime_wishes, round_trip_limits_ms
from controller.doctor.links import key_item
from controller.doctor.qualification import (
    Here,
    demand_qualification,
    here_and_now,
    qualification_path,
    read_qualification,
    why_unfit,
    write_qualification,
)
from controller.doctor.streams import stream_items
from drivers.errors import BadInput
from simulators.devices.register_device import RegisterDevice
from simulators.realtime import RoomThread
from simulators.room import Room
from sites.loader import load_site
from sites.schema import DEVICE_NAMES, Qualification
from tests.real_rooms import (
    ROOT,
    Ended,
    Process,
    RealRoom,
    delivery,
    make_room,
    processes_of,
    run,
    simulators,
    until,
    written,
)

pytestmark = [pytest.mark.real_clock, pytest.mark.timeout(400)]
CARBON = load_site("carbon-fixed")
HERE = Here("carbon-fixed", "ab" * 32, "control-pc", "0.1.0", "2026-11-22", 5.0)
GOOD = {
    "format": 1,
    **dataclasses.asdict(HERE),
    "verdict": "warn",
    "items": [{"name": "disk sync", "verdict": "ok"}, {"name": "wall clock", "verdict": "warn"}],
}
CONNECTED = '"event":"device"'
"""In a journal: a device was connected, and said who it is."""
QUICK = (
    '[qualification]\nfile = "{file}"\nseconds = 0.3\nreads = 20\n\n'
    '[record]\npseudonym_key_file = "{file}.pseudonyms"\n\n[operators]'
)


def with_qualification(folder: Path) -> tuple[str, str]:
    """An edit of a room's site file: short measurements, kept in the room's folder."""
    return (r"(?m)^\[operators\]", QUICK.format(file=folder / "qualification.json"))


def test_a_qualification_of_today_here_holds_also_with_warnings() -> None:
    assert why_unfit(GOOD, HERE) is None
    assert why_unfit({**GOOD, "seconds": 20.0}, HERE) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"date": "2026-11-21"}, "another day: wanted 2026-11-22, got 2026-11-21"),
        ({"host": "laptop"}, "another host: wanted control-pc, got laptop"),
        ({"site": "proton-gantry"}, "another site"),
        ({"site_sha256": "cd" * 32}, "another content of the site file"),
        ({"version": "0.0.9"}, "another version of Spotwise: wanted 0.1.0, got 0.0.9"),
        ({"format": 2}, "format 2, wanted 1"),
        ({"seconds": 4.9}, "watched for 4.9 s; wanted 5 s"),
        ({"seconds": float("nan")}, "watched for nan s"),
        ({"seconds": None}, "watched for None s"),
        ({"items": []}, "no measurement"),
        ({"items": None}, "no measurement"),
        ({"items": ["ok"]}, "no item: 'ok'"),
        ({"items": [{"name": "x", "verdict": "fine"}]}, "worse than the limits: x"),
        ({"verdict": "fail"}, "worse than the limits: verdict 'fail'"),
        ({"verdict": None}, "worse than the limits"),
        (
            {"items": [{"name": "a"} | at_most("pause of permits", 6.0, 5.0, "ms", "x").to_json()]},
            "worse than the limits: pause of permits 6.0 ms, limit 5.0",
        ),
    ],
)
def test_a_qualification_that_does_not_hold_says_why(change: dict[str, Any], why: str) -> None:
    said = why_unfit({**GOOD, **change}, HERE)
    assert said is not None
    assert why in said


def test_none_is_no_qualification() -> None:
    assert why_unfit(None, HERE) == "there is none"
    assert why_unfit({}, HERE) is not None


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [(0.0, "ok"), (5.0, "ok"), (5.1, "warn"), (10.0, "warn"), (10.1, "fail"), (float("nan"), "fail")],
)
def test_near_a_limit_is_a_warning_and_beyond_it_or_no_reading_fails(measured: float, verdict: str) -> None:
    item = at_most("x", measured, 10.0, "ms", "do this")
    assert item.verdict == verdict
    assert bool(item.advice) == (verdict != "ok")
    json.dumps(item.to_json(), allow_nan=False)
    assert worst((item, Item("y", "ok"))) == verdict


def test_nothing_measured_is_not_fit() -> None:
    assert worst(()) == "fail"


def test_limits_follow_from_the_chains_time_out_and_the_leases() -> None:
    loose = limits_of(CARBON)
    assert (loose.strict, loose.permit_gap_ms, loose.wake_late_ms) == (False, 125.0, 62.5)
    assert (loose.wake_usual_ms, loose.asyncio_late_ms, loose.buffer_ms) == (2.5, 50.0, 100.0)
    permits = CARBON.permits.model_copy(update={"time_out_ms": 10.0, "lease_ms": 60.0, "frame_age_max_ms": 2.0})
    quick = limits_of(CARBON.model_copy(update={"permits": permits}))
    assert (quick.strict, quick.permit_gap_ms, quick.wake_late_ms) == (True, 5.0, 2.5)
    assert (quick.wake_usual_ms, quick.asyncio_late_ms, quick.buffer_ms) == (1.0, 10.0, 10.0)
    own = CARBON.model_copy(update={"qualification": Qualification(permit_gap_ms=3.0, asyncio_late_ms=4.0)})
    assert (limits_of(own).permit_gap_ms, limits_of(own).asyncio_late_ms) == (3.0, 4.0)
    assert round_trip_limits_ms(CARBON, CARBON.devices.gating) == (100.0, 500.0)
    assert round_trip_limits_ms(CARBON, CARBON.devices.accelerator) == (50.0, 300.0)


def test_a_quick_chain_has_the_real_time_thread_ask_for_priority() -> None:
    assert realtime_wishes(CARBON).fifo_priority is None
    permits = CARBON.permits.model_copy(update={"time_out_ms": 10.0})
    assert realtime_wishes(CARBON.model_copy(update={"permits": permits})).fifo_priority == 20


def test_the_file_is_where_the_site_or_the_user_keeps_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = qualification_path(CARBON)
    assert path.parent == tmp_path / "spotwise"
    assert re.fullmatch(r"qualification-carbon-fixed-[A-Za-z0-9.-]+\.json", path.name)
    given = CARBON.model_copy(update={"qualification": Qualification(file="here.json")})
    assert qualification_path(given) == Path("here.json")


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "q.json"
    write_qualification(path, GOOD)
    assert read_qualification(path) == GOOD
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_qualification(path, {"seconds": float("nan")})
    assert read_qualification(path) == GOOD
    with pytest.raises(BadInput, match=r"cannot be written: .*; give another --out"):
        write_qualification(path / "below.json", GOOD)
    assert [p.name for p in path.parent.iterdir()] == ["q.json"]
    path.write_text("[1]")
    assert read_qualification(path) is None
    path.write_bytes(b"\xff{")
    assert read_qualification(path) is None


async def examined(room: RealRoom, *arguments: str) -> Ended:
    """Run the doctor to its end; the first time on a PC it compiles."""
    async with run(room, "-m", "controller.cli", "doctor", *arguments) as process:
        return await process.ended(300)


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["verdict"] for item in result["items"]}


def result_of(ended: Ended) -> dict[str, Any]:
    """The JSON object; the exit status must say the same."""
    assert "Traceback" not in ended.err, ended
    loaded: dict[str, Any] = json.loads(ended.out)
    assert ended.status == (3 if loaded["verdict"] == "fail" else 0), ended
    return loaded


async def test_the_doctor_starts_the_simulated_room_looks_at_everything_and_leaves_nothing(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    room = make_room(tmp_path, free_port, with_qualification(tmp_path))
    result = result_of(await examined(room, "--site", str(room.site_file), "--json"))
    assert read_qualification(tmp_path / "qualification.json") == {k: v for k, v in result.items() if k != "file"}
    seen = verdicts(result)
    for name in DEVICE_NAMES:
        assert seen[f"{name}: identity"] == "ok"
        assert f"{name}: status, p99" in seen
        assert result["devices"][name]["simulated"] is True
        assert int(result["devices"][name]["boot_nonce"]) > 0
    (lost,) = [item for item in result["items"] if item["name"] == "frames lost on loopback"]
    assert "of 7500 judged" in lost["detail"]
    expected = {
        "clock step",
        "wall clock",
        "disk sync",
        "disk space",
        "permit key",
        "real-time priority",
        "asyncio timer",
    }
    assert expected | {"pause of permits", "collection, heap frozen", "time stolen by the host"} <= set(seen)
    assert all(item["advice"] for item in result["items"] if item["verdict"] != "ok")
    today = dataclasses.replace(here_and_now(room.site), date=result["date"])  # midnight may have passed
    assert (why_unfit(result, today) is None) == (result["verdict"] != "fail")
    assert processes_of(room) == []


async def test_the_doctor_attaches_to_running_simulators_and_says_who_answers_in_a_real_devices_place(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    edits = [
        with_qualification(tmp_path),
        (r"(?m)^key_hex = .*$", key_file(tmp_path)),
        (r"(?m)^time_out_ms = .*$", "time_out_ms = 50.0"),
    ]
    room = make_room(tmp_path, free_port, *edits)
    real = declared_real(room)
    async with simulators(room):
        ended = await examined(room, "--site", str(real), "--out", str(tmp_path / "q.json"))
        assert ended.status == 3, ended
        assert "the site says real, the device says simulated" in ended.out
        assert f"NOT fit to deliver today; kept in {tmp_path / 'q.json'}" in ended.out
        wrong = [
            name
            for name, verdict in verdicts(read_qualification(tmp_path / "q.json") or {}).items()
            if verdict == "fail"
        ]
        assert [name for name in wrong if "identity" in name] == ["gating: identity"]
    ended = await examined(room, "--site", str(real), "--out", str(tmp_path / "q.json"))
    assert ended.status == 3, ended  # the real one does not answer; nothing is started in its place
    failed = [
        item for item in (read_qualification(tmp_path / "q.json") or {})["items"] if item["name"] == "gating: link"
    ]
    assert [item["verdict"] for item in failed] == ["fail"]
    assert "check the device" in failed[0]["advice"]


async def test_a_bad_site_or_place_is_bad_input(tmp_path: Path, free_port: Callable[[], int]) -> None:
    room = make_room(tmp_path, free_port, with_qualification(tmp_path))
    missing = await examined(room, "--site", str(tmp_path / "none.toml"))
    assert missing.status == 2, missing
    site = str(room.site_file)
    nowhere = await examined(room, "--site", site, "--directory", str(tmp_path / "none"), "--json")
    assert nowhere.status == 2, nowhere
    assert "give another --directory" in json.loads(nowhere.out)["message"]


def key_file(folder: Path) -> str:
    """A key that only its owner reads; the line of the site file."""
    key = folder / "permits.key"
    key.write_bytes(bytes(range(16)))
    key.chmod(0o600)
    return f'key_file = "{key}"'


def declared_real(room: RealRoom) -> Path:
    """The room's site file with gating declared as a real device."""
    text, found = re.subn(r'(\[devices\.gating\]\nkind = )"simulated"', r'\1"real"', room.site_file.read_text())
    assert found == 1
    path = room.folder / "real.toml"
    path.write_text(text)
    return path


class RoomWithARealDevice(Room):
    """Everything is simulated, but gating says that it is real: what a swapped-in device would say."""

    def bank(self, name: str) -> RegisterDevice:
        device = super().bank(name)
        if name == "gating":
            device.set("simulated", False)
        return device


@asynccontextmanager
async def at_a_terminal(room: RealRoom, *command: str) -> AsyncIterator[Process]:
    """Run a command whose input is a terminal."""
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=theirs,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=room.environment,
        )
        os.close(theirs)
        started = Process(process)
        try:
            yield started
        finally:
            await started.end()
    finally:
        os.close(ours)


async def test_a_room_with_a_real_device_is_made_ready_only_on_a_qualified_pc(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    edits = [
        with_qualification(tmp_path),
        (r"(?m)^key_hex = .*$", key_file(tmp_path)),
        (r"(?m)^time_out_ms = .*$", "time_out_ms = 50.0"),
        (r"(?m)^names = .*$", 'names = ["A. Operator"]'),
    ]
    simulated = make_room(tmp_path, free_port, *edits)
    real = declared_real(simulated)
    room = dataclasses.replace(simulated, site_file=real, site=load_site(str(real)))
    who = ("--operator", "A. Operator", "--reason", "test")
    kept = tmp_path / "qualification.json"
    plant = RoomWithARealDevice(simulated.site, 1, boot="test")

    with RoomThread(plant):
        async with plant.serve():
            async with at_a_terminal(room, *delivery(room, tmp_path / "none", *who)) as process:
                ended = await process.ended(200)
            assert ended.status == 3, ended
            assert "no qualification of this PC for today" in ended.err
            assert "there is none; run spotwise doctor" in ended.err
            assert not written(tmp_path / "none", CONNECTED)

            result = result_of(await examined(room, "--site", str(real), "--json"))
            found = verdicts(result)
            assert {found[f"{name}: identity"] for name in DEVICE_NAMES} == {"ok"}
            stored = read_qualification(kept)
            assert stored is not None
            # how this PC fares is not what is tested here: a busy one may be unfit for 50 ms
            for item in stored["items"]:
                item["verdict"] = "ok" if item["verdict"] == "fail" else item["verdict"]
            kept.write_text(json.dumps({**stored, "verdict": "warn"}))
            out = tmp_path / "qualified"
            async with at_a_terminal(room, *delivery(room, out, *who)) as process:
                await until("devices are identified", lambda: written(out, CONNECTED) or not process.running)
                if process.running:
                    process.send(signal.SIGTERM)
                ended = await process.ended()
            assert written(out, CONNECTED), ended
            assert ended.status in (3, 4), ended  # a busy PC may be stopped by its 50 ms first
            assert "qualification" not in ended.err


def test_a_room_that_is_all_simulated_needs_no_qualification(tmp_path: Path) -> None:
    own = Qualification(file=str(tmp_path / "none.json"))
    demand_qualification(CARBON.model_copy(update={"qualification": own}))


async def test_the_streams_item_counts_every_frame_and_fails_beyond_the_sites_limits() -> None:
    quick = Qualification(seconds=0.2)
    site = CARBON.model_copy(update={"qualification": quick})
    items, granted = await stream_items(site, limits_of(site))
    lost, pause, buffer = items
    assert "of 5000 judged" in lost.detail
    assert lost.measured is not None
    assert lost.verdict == ("ok" if lost.measured == 0 else "fail")
    assert (granted["receive_buffer_bytes"], buffer.unit) != (0, "")
    tight = CARBON.model_copy(update={"qualification": quick.model_copy(update={"permit_gap_ms": 1e-6})})
    _, pause, _ = (await stream_items(tight, limits_of(tight)))[0]
    assert pause.verdict == "fail"
    assert pause.advice


async def test_timers_collections_and_the_disk_fail_beyond_the_sites_limits(tmp_path: Path) -> None:
    demands = Qualification(seconds=0.05, asyncio_late_ms=1e-9, wake_late_ms=1e-9, disk_sync_ms=1e-9, disk_free_gib=1e9)
    site = CARBON.model_copy(update={"qualification": demands})
    limits = limits_of(site)
    items = [await asyncio_item(site, limits), *collection_items(limits), *disk_items(site, tmp_path)]
    items += scheduler_items(site, limits)[0]
    failed = {item.name for item in items if item.verdict == "fail"}
    assert failed >= {"asyncio timer", "collection, heap frozen", "disk sync", "disk space", "wake-ups, longest"}
    assert "collection, whole heap" not in failed
    assert os.listdir(tmp_path) == []  # what the disk was tried with is gone


@pytest.mark.parametrize(
    ("content", "mode", "verdict"),
    [(bytes(16), 0o600, "ok"), (bytes(16), 0o644, "warn"), (bytes(15), 0o600, "fail"), (None, 0, "fail")],
)
def test_the_permit_key_must_be_there_whole_and_its_owners(
    content: bytes | None, mode: int, verdict: str, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    permits = CARBON.permits.model_copy(update={"key_hex": None, "key_file": str(path)})
    assert key_item(CARBON.model_copy(update={"permits": permits})).verdict == verdict


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("ok", "fit to deliver today;"), ("warn", "fit to deliver today, with warnings;"), ("fail", "NOT fit to deliver")],
)
def test_the_doctors_last_line_is_a_sentence(verdict: str, said: str) -> None:
    result = {"site": "s", "host": "h", "date": "d", "version": "v", "items": [], "verdict": verdict, "file": "q.json"}
    assert format_doctor(result).splitlines()[-1].startswith(said)
