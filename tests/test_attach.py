"""A run on the real clock finds its simulators: all there, none there, or half a room, which is refused."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.attach import answering, room_simulators
from drivers.errors import Refused
from simulators.room import Room
from simulators.truth_file import read_truths
from sites.schema import Site
from tests.realtime_parts import driver, left_by_a_killed_simulator, names_in, own_site
from tests.wire_parts import within

pytestmark = pytest.mark.real_clock


@pytest.fixture
def site(free_port: Callable[[], int], tmp_path: Path) -> Site:
    return own_site(free_port, tmp_path)


async def test_where_none_answers_they_are_started_and_ended(site: Site, tmp_path: Path) -> None:
    scenario = tmp_path / "faults.toml"
    scenario.write_text('[[fault]]\ntarget = "plant.silent_1"\nvalue = 1\nat_s = 1.0\n', encoding="utf-8")
    async with room_simulators(site, 1, tmp_path, scenario) as simulators:
        assert simulators.started
        assert simulators.granted["timer_slack_ns"] == 1
        chain = driver(site, "safety_chain")
        await chain.connect(within(60))
        assert (await chain.status(within(60))).closed is False
        await chain.close()
        assert all([await answering(device) for _, device in site.devices.items()])
        # a second run finds them and leaves them alone
        async with room_simulators(site, 1, tmp_path) as others:
            assert (others.started, others.truth_path) == (False, None)
        with pytest.raises(Refused, match="run already and cannot be given faults"):
            async with room_simulators(site, 1, tmp_path, scenario):
                pass
        assert await answering(site.devices.gantry)
    assert not any([await answering(device) for _, device in site.devices.items()])
    assert simulators.truth_path is not None
    assert read_truths(simulators.truth_path) == []
    assert "ends: {'frames':" in (tmp_path / "simulators.log").read_text(encoding="utf-8")
    assert (tmp_path / "simulators-state.npz").is_file()


async def test_half_a_room_is_refused_and_both_halves_are_named(site: Site, tmp_path: Path) -> None:
    real = {"gating": site.devices.gating.model_copy(update={"kind": "real"})}
    almost = site.model_copy(update={"devices": site.devices.model_copy(update=real)})
    async with Room(almost, 1).serve():
        assert not await answering(site.devices.gating)  # nothing is served on a real device's address
        async with room_simulators(almost, 1, tmp_path) as simulators:
            assert not simulators.started
        with pytest.raises(Refused, match=r"some simulated devices answer \(accelerator, .*nozzle, safety_chain\)"):
            async with room_simulators(site, 1, tmp_path):
                pass
        with pytest.raises(
            Refused, match=rf"others do not \(gating \(127.0.0.1:{site.devices.gating.address.port}\)\)"
        ):
            async with room_simulators(site, 1, tmp_path):
                pass
    assert not (tmp_path / "simulators.log").exists()


async def test_a_line_left_by_a_killed_simulator_does_not_answer(site: Site) -> None:
    left_by_a_killed_simulator(Path(site.devices.gantry.address.path))
    assert not await answering(site.devices.gantry)


async def test_a_site_without_simulated_devices_needs_none(site: Site, tmp_path: Path) -> None:
    real = {name: device.model_copy(update={"kind": "real"}) for name, device in site.devices.items()}
    site = site.model_copy(update={"devices": site.devices.model_copy(update=real)})
    async with room_simulators(site, 1, tmp_path) as simulators:
        assert not simulators.started
    assert names_in(tmp_path) == set()


async def test_why_simulators_do_not_come_up_is_said(site: Site, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", site.streams.permits.port))
        with pytest.raises(Refused, match=r"simulators: ended with status 3: udp://.*Address already in use.*log\)"):
            async with room_simulators(site, 1, tmp_path):
                pass


async def test_a_run_that_fails_ends_the_simulators_that_it_started(site: Site, tmp_path: Path) -> None:
    with pytest.raises(asyncio.CancelledError):  # noqa: PT012
        async with room_simulators(site, 1, tmp_path) as simulators:
            assert simulators.started
            raise asyncio.CancelledError
    assert not any([await answering(device) for _, device in site.devices.items()])
    assert "truth.npz" in names_in(tmp_path)
