"""Simulators as a process of their own: they say when they are ready, end in order, and keep what devices keep."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from drivers.errors import BadInput, Refused
from drivers.wires.frames import decode
from simulators.live import live_path, new_live, read_live
from simulators.plant.build import build_plant
from simulators.plant.state import RING
from simulators.retained import restore_retained, save_retained
from simulators.room import Room
from simulators.serve import main, serve_room
from simulators.truth_file import read_truths, write_truths
from sites.loader import effective_config
from sites.schema import DEVICE_NAMES, Site
from tests.realtime_parts import (
    CARBON,
    driver,
    names_in,
    own_site,
    some_real_port,
    udp_listener,
    until,
    waiting,
)
from tests.wire_parts import within

pytestmark = pytest.mark.real_clock

READY_S = 110.0


@pytest.fixture
def site(free_port: Callable[[], int], tmp_path: Path) -> Site:
    return own_site(free_port, tmp_path)


@asynccontextmanager
async def process(site: Site, folder: Path, *more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m simulators.serve` for a site; killed at the end if it still runs."""
    config = folder / "site.json"
    config.write_text(effective_config(site), encoding="utf-8")
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulators.serve", "--site-config", str(config), "--seed", "1", *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def ready(started: asyncio.subprocess.Process) -> dict[str, object]:
    assert started.stdout is not None
    async with asyncio.timeout(READY_S):
        said: dict[str, object] = json.loads(await started.stdout.readline())
    return said


async def test_a_room_is_served_until_it_is_told_to_end_and_its_counters_survive_a_power_loss(
    site: Site, tmp_path: Path
) -> None:
    state, truth = tmp_path / "state.npz", tmp_path / "truth.npz"
    kept = ("--state", str(state), "--truth", str(truth))
    async with process(site, tmp_path, *kept) as first:
        said = await ready(first)
        assert (said["ready"], said["site"], said["pid"]) == (True, "carbon-fixed", first.pid)
        assert said["devices"] == list(DEVICE_NAMES)
        nonces = set()
        for name in DEVICE_NAMES:
            device = driver(site, name)
            await device.connect(within(60))
            identity = await device.identify(within(60))
            assert (identity.device_id, identity.simulated) == (getattr(site.devices, name).device_id, True)
            nonces.add(identity.boot_nonce)
            await device.close()
        # another room on the same addresses is refused in one line
        async with process(site, tmp_path) as second:
            out, err = await asyncio.wait_for(second.communicate(), READY_S)
        assert (second.returncode, out) == (3, b"")
        assert err.decode().count("\n") == 1
        assert "Address already in use" in err.decode()
        with udp_listener() as listener:
            await stream_to(site, listener)
            shown: set[int] = set()
            await until("ten counts of the pedestal", lambda: len(shown) >= 10 or shown.update(counts_in(listener)))
            first.kill()  # a power loss
            await first.wait()
            last_counts = max(shown | counts_in(listener))
    assert not state.exists()
    assert not truth.exists()
    async with process(site, tmp_path, *kept) as after:
        await ready(after)
        device = driver(site, "electrometer_1")
        await device.connect(within(60))
        assert (await device.identify(within(60))).boot_nonce not in nonces
        assert (await device.status(within(60))).counts >= last_counts  # not one is lost; the pedestal counts on
        await device.close()
        after.send_signal(signal.SIGTERM)
        await asyncio.wait_for(after.communicate(), READY_S)
        assert after.returncode == 0
    assert (state.exists(), live_path(state).exists()) == (True, False)
    assert read_truths(truth) == []  # no beam
    for name in ("gantry", "couch", "nozzle"):
        assert not (tmp_path / name).is_symlink()


async def test_streams_that_leave_through_a_process_of_their_own_can_be_killed_alone(
    site: Site, tmp_path: Path
) -> None:
    async with process(site, tmp_path, "--streams-apart") as room:
        await ready(room)
        with udp_listener() as listener:
            await stream_to(site, listener)
            await until("frames", lambda: counts_in(listener))
            first = streams_of(room.pid)
            os.kill(first, signal.SIGKILL)
            device = driver(site, "electrometer_1")
            await device.connect(within(60))
            await until("the room knows", lambda: streams_of(room.pid) != first)
            counts_in(listener)
            counted = (await device.status(within(60))).counts  # the electrometer counts on
            await until("frames again", lambda: max(counts_in(listener), default=0) >= counted)
            await device.close()
        room.send_signal(signal.SIGTERM)
        await asyncio.wait_for(room.communicate(), READY_S)
    assert room.returncode == 0


async def stream_to(site: Site, listener: socket.socket) -> None:
    """Have electrometer 1 stream to a socket."""
    device = driver(site, "electrometer_1")
    await device.connect(within(60))
    await device.stream_to("127.0.0.1", listener.getsockname()[1], 0, within(60))
    await device.close()


def counts_in(listener: socket.socket) -> set[int]:
    """The counts that all frames waiting there show."""
    return {frame.counts for frame in map(decode, waiting(listener)) if frame is not None}


def streams_of(room: int) -> int:
    """The process through which a room's frames leave."""
    children = Path(f"/proc/{room}/task/{room}/children").read_text(encoding="ascii").split()
    found = [int(pid) for pid in children if b"simulators.stream_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found[0] if found else 0


async def test_simulators_without_a_controller_end_by_themselves(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "truth.npz"
    await serve_room(site, 1, truth_path=truth, orphan_s=0.2)
    assert json.loads(capsys.readouterr().out)["pid"] == os.getpid()
    assert read_truths(truth) == []
    assert [t.name for t in threading.enumerate() if t.name == "room"] == []


async def test_taken_addresses_are_refused_and_nothing_is_left_running(site: Site) -> None:
    port = site.devices.gating.address.port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(Refused, match=f"tcp://127.0.0.1:{port}: cannot listen"):
            await serve_room(site, 1)
    line = Path(site.devices.couch.address.path)
    some_real_port(line)
    with pytest.raises(Refused, match="is no link to a pty"):
        await serve_room(site, 1)
    assert line.name in names_in(line.parent)
    assert [t.name for t in threading.enumerate() if t.name == "room"] == []


async def test_a_site_of_real_devices_has_nothing_to_simulate(site: Site) -> None:
    real = {name: device.model_copy(update={"kind": "real"}) for name, device in site.devices.items()}
    with pytest.raises(Refused, match="every device is real"):
        await serve_room(site.model_copy(update={"devices": site.devices.model_copy(update=real)}), 1)


def test_a_wrong_command_line_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--site", "no-such-site"]) == 2
    assert main(["--site-config", str(tmp_path / "none.json")]) == 2
    assert main(["--site", "carbon-fixed", "--faults", str(tmp_path / "none.toml")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert ["no such site" in errors[0], "effective site" in errors[1], "fault scenario" in errors[2]] == [True] * 3
    assert len(errors) == 3


def test_retained_registers_come_back_as_they_were(tmp_path: Path) -> None:
    kept = tmp_path / "state.npz"
    plant = build_plant(CARBON, 1)
    state = plant.state
    results = RING + 7  # the ring has gone round
    state["results"] = results
    state["results_ack"], state["latches_1_ack"], state["latches_2_ack"] = results - 3, results - 5, results
    state["counts_1"] = 1234 << 24
    for number in range(results - 5, results):
        plant.results[number % RING]["visit"] = number
        plant.latches_1[number % RING]["counts"] = 10 * number
        plant.latches_2[number % RING]["counts"] = 20 * number
    save_retained(plant, "carbon-fixed", kept)
    again = build_plant(CARBON, 2)
    assert restore_retained(again, "carbon-fixed", kept)
    assert int(again.state["retained_1"]) == int(state["retained_1"]) + 1234
    assert int(again.state["frame_counts_2"]) == int(state["retained_2"])
    for name in ("results", "results_ack", "latches_1_ack", "latches_2_ack"):
        assert again.state[name] == state[name]
    for ring in ("results", "latches_1", "latches_2"):
        at = np.arange(results - 5, results) % RING
        assert np.array_equal(getattr(again, ring)[at], getattr(plant, ring)[at])
    # and the devices show what was acknowledged
    room = Room(CARBON, 2)
    assert restore_retained(room.plant, "carbon-fixed", kept)
    scan, electrometer = room.bank("scan_controller"), room.bank("electrometer_1")
    assert scan.get("acknowledged") == results - 3
    assert electrometer.get("acknowledged") == results - 5
    assert electrometer.get("counts") == int(again.state["retained_1"])
    assert list(tmp_path.iterdir()) == [kept]


def test_a_killed_room_is_what_its_memory_was(tmp_path: Path) -> None:
    state = tmp_path / "state.npz"
    room = Room(CARBON, 1, plant=new_live(live_path(state), "carbon-fixed"))
    plant = room.plant
    plant.truth["units"][3] = 5  # of the first field
    plant.state["results"] = 1
    plant.results["visit"][0] = 3
    room.field_begins = lambda: room.save(state)
    room._layer_armed(1)
    plant.truth["units"][2] = 7  # of the second
    plant.state["results"] = 2
    plant.results["visit"][1] = 2
    plant.state["results_ack"] = 1
    plant.state["counts_2"] = 99 << 24
    retained = int(plant.state["retained_2"])
    again = Room(CARBON, 2)
    assert again.restore(state, read_live(live_path(state), "carbon-fixed"))
    assert int(again.plant.state["retained_2"]) == retained + 99
    assert again.plant.results["visit"][:2].tolist() == [3, 2]
    assert (int(again.plant.state["results"]), int(again.plant.state["results_ack"])) == (2, 1)
    first, second = again.truths()
    assert (int(first["units"][3]), int(second["units"][2])) == (5, 7)
    again._layer_armed(3)  # the second field goes on
    assert len(again.truths()) == 2
    again._layer_armed(1)  # and is over
    assert len(again.truths()) == 3
    with pytest.raises(BadInput, match="of carbon-fixed, not of carbon-gantry"):
        read_live(live_path(state), "carbon-gantry")
    live_path(state).write_bytes(b"SPWPLANT")
    with pytest.raises(BadInput, match="remove the file"):
        read_live(live_path(state), "carbon-fixed")


def test_a_state_that_cannot_be_used_is_refused_and_named(tmp_path: Path) -> None:
    kept = tmp_path / "state.npz"
    plant = build_plant(CARBON, 1)
    assert not restore_retained(plant, "carbon-fixed", kept)
    save_retained(plant, "carbon-fixed", kept)
    with pytest.raises(BadInput, match="of the simulators of carbon-fixed, not of carbon-gantry"):
        restore_retained(plant, "carbon-gantry", kept)
    before = plant.memory.copy()
    whole = kept.read_bytes()
    for damaged in (b"", b"PK", whole[: len(whole) // 2], b"x" * 5000):
        kept.write_bytes(damaged)
        with pytest.raises(BadInput, match="remove the file"):
            restore_retained(plant, "carbon-fixed", kept)
    assert np.array_equal(plant.memory, before)


def test_truths_are_written_up_to_the_last_visit_with_beam(tmp_path: Path) -> None:
    path = tmp_path / "truth.npz"
    room = Room(CARBON, 1)
    first, second, empty = (np.zeros_like(room.plant.truth) for _ in range(3))
    first["units"][[1, 5]] = 7, 9
    second["units"][2] = 3
    second["x"][2] = -1.5
    write_truths(path, [first, second, empty])
    got = read_truths(path)
    assert [len(field) for field in got] == [6, 3]
    assert np.array_equal(got[0], first[:6])
    assert float(got[1]["x"][2]) == -1.5
    path.write_bytes(b"no zip")
    with pytest.raises(BadInput, match="no truths"):
        read_truths(path)
