"""A boot nonce of long ago says nothing of the device that answers now: identities have an age, and it is judged."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from controller.delivery.identities import ROUNDS, answer_s, oldest_identity_ns
from controller.delivery.standing import standing
from controller.delivery.states import State
from drivers.deadline import Deadline
from drivers.errors import DeviceError, Refused
from interlocks.invariant import before_arming
from interlocks.slow import Violation, judge_identities
from sites.loader import load_site, shipped_sites
from tests.delivery_rig import EXAMPLES, Delivery, run_delivery

PLAN = EXAMPLES / "small_carbon.dcm"
NAME = "simulated"
STALE_S = oldest_identity_ns(load_site("carbon-fixed")) * 1e-9


@pytest.mark.parametrize("age_ns", [-1, 0, 5_000, 5_001])
def test_an_identity_counts_until_its_limit_and_not_from_the_future(age_ns: int) -> None:
    found = judge_identities({"couch": 10_000 - age_ns}, ["couch"], 10_000, 5_000)
    fresh = 0 <= age_ns <= 5_000
    assert found == ([] if fresh else [Violation("STATUS_STALE", age_ns * 1e-6, 0.005, "identity of couch")])


def test_a_device_that_never_said_who_it_is_is_named() -> None:
    (found,) = judge_identities({}, ["couch"], 0, 5_000)
    assert (found.id, found.detail) == ("STATUS_STALE", "identity of couch: none at all")


@pytest.mark.parametrize("site", shipped_sites())
def test_lines_that_need_all_their_time_may_miss_an_answer_and_the_limit_is_half_a_minute_at_most(site: str) -> None:
    room = load_site(site)
    answers_s = [answer_s(device) for _, device in room.devices.items()]
    assert oldest_identity_ns(room) * 1e-9 >= ROUNDS * (sum(answers_s) + 0.5 * len(answers_s)) + max(answers_s)
    assert oldest_identity_ns(room) <= 30e9


class Answers:
    """Makes the room's devices answer otherwise when they are asked who they are."""

    def __init__(self, delivery: Delivery) -> None:
        self.asked: dict[str, int] = {}
        self._devices = delivery.run.devices
        self._site = delivery.run.site

    def of(self, name: str, *, fails: Any, slow: bool = False) -> None:
        """`fails(n)`: the n-th question from now on, from 1, gets no answer; `slow`: it takes all its time."""
        device = getattr(self._devices, name)
        identify = device.identify
        needs_s = answer_s(getattr(self._site.devices, name)) - 0.05

        async def answer(deadline: Deadline) -> Any:
            self.asked[name] = self.asked.get(name, 0) + 1
            if slow:
                await asyncio.sleep(needs_s)
            if fails(self.asked[name]):
                raise DeviceError(name, "its identity cannot be read")
            return await identify(deadline)

        device.identify = answer

    def all(self, **how: Any) -> None:
        """Every device."""
        for name, _ in self._site.devices.items():
            self.of(name, **how)


def test_an_armed_room_in_which_one_device_no_longer_says_who_it_is_is_stopped(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands, run = delivery.commands, delivery.run
        await commands.prepare()
        await commands.arm(NAME, "the first field")
        answers = Answers(delivery)
        still_down = [True]
        answers.of("accelerator", fails=lambda _: still_down[0])
        await asyncio.sleep(STALE_S - 6.0)
        assert commands.state is State.ARMED
        await asyncio.sleep(7.0)
        assert commands.state is State.TRIPPED
        assert "accelerator" not in standing(run).boot_nonces
        missing = [v.detail for v in before_arming(standing(run)) if v.id == "SELF_TEST_MISSING"]
        assert missing == ["accelerator: none passed since it was powered up"]
        with pytest.raises(Refused, match="cause is still there: STATUS_STALE identity of accelerator"):
            commands.reset(NAME, "too early")
        still_down[0] = False
        await asyncio.sleep(6.0)
        commands.reset(NAME, "it answers again")

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True, whole=False)
    (trip,) = delivery.named("trip")
    assert (trip["id"], trip["detail"]) == ("STATUS_STALE", "identity of accelerator")
    assert trip["limit"] == pytest.approx(STALE_S * 1e3)
    assert trip["limit"] < trip["value"] <= trip["limit"] + 50.0


def test_a_room_of_slow_lines_that_miss_every_other_answer_is_not_stopped(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands = delivery.commands
        await commands.prepare()
        await commands.arm(NAME, "the first field")
        answers = Answers(delivery)
        answers.all(fails=lambda n: n % 2 == 1, slow=True)
        await asyncio.sleep(4 * STALE_S)
        assert commands.state is State.ARMED
        assert min(answers.asked.values()) >= 6

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True, whole=False)
    assert delivery.named("trip") == []
