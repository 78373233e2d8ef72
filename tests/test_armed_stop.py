"""What stops a treatment while nobody commands anything stops it in order by itself, once, and before any reset."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controller.delivery.guard import NOTHING
from controller.delivery.states import State
from drivers.errors import Refused, Stopped
from simulators.plant.state import CHAIN_DISARM
from tests.delivery_rig import EXAMPLES, Delivery, run_delivery

PLAN = EXAMPLES / "small_carbon.dcm"
NAME = "simulated"


async def armed(delivery: Delivery) -> None:
    await delivery.commands.prepare()
    await delivery.commands.arm(NAME, "the first field")
    assert at_rest(delivery) == set()


def at_rest(delivery: Delivery) -> set[str]:
    """Of everything that arming brings about, what is undone."""
    plant, run = delivery.plant, delivery.run
    undone = {
        "stopper": plant["stopper_open"] == 0,
        "chain": (plant["closed"], plant["armed"], plant["chain_command"]) == (0, 0, CHAIN_DISARM),
        "permits": run.path.monitor.control["permit_on"] == 0,
        "guard": run.guard._wish == NOTHING,
    }
    return {name for name, so in undone.items() if so}


EVERYTHING = {"stopper", "chain", "permits", "guard"}


def stopped_once(delivery: Delivery) -> None:
    """One beam-off after the arming, one booking, and the field's counters settled."""
    begun = [e["t_ns"] for e in delivery.named("permit", phase="begin")][-1]
    assert len([e for e in delivery.named("permit", phase="end") if e["t_ns"] > begun]) == 1
    assert [e["device"] for e in delivery.named("reconcile")] == ["electrometer_1", "electrometer_2"]
    assert len(delivery.named("counters", phase="end")) == 1


def test_a_door_that_opens_in_an_armed_room_stops_it_before_any_command(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands = delivery.commands
        await armed(delivery)
        delivery.plant["door_closed"] = 0
        await delivery.until(lambda: commands.state is State.TRIPPED)
        delivery.plant["door_closed"] = 1
        with pytest.raises(Refused, match="still being stopped"):
            commands.reset(NAME, "quick")
        await asyncio.sleep(1.0)
        assert at_rest(delivery) == EVERYTHING
        commands.reset(NAME, "door closed again")
        assert commands.state is State.TERMINATED
        await asyncio.sleep(10.0)
        assert at_rest(delivery) == EVERYTHING
        with pytest.raises(Stopped):
            await commands.beam_on(NAME)

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True)
    assert delivery.first_out is None  # it was reset
    assert delivery.run.latch.history[0].id == "CHAIN_OPENED"
    assert delivery.named("warning") == []  # the proof among others
    stopped_once(delivery)
    assert delivery.plant["particles"] == 0


@pytest.mark.parametrize("how", ["abort", "abort and beam on", "trip, then beam on, twice", "abort and arm"])
def test_a_command_that_comes_with_the_stop_waits_for_it_and_there_is_no_second_one(how: str, tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands = delivery.commands
        await armed(delivery)
        if how.startswith("abort"):
            commands.abort(NAME, "for the test")
        else:
            delivery.run.trip("DISK")
        if how.endswith("beam on") or how.endswith("twice"):
            with pytest.raises(Stopped):
                await commands.beam_on(NAME)
            assert at_rest(delivery) == EVERYTHING
        if how.endswith("twice"):
            with pytest.raises(Stopped):
                await commands.beam_on(NAME)
        if how.endswith("arm"):
            await asyncio.sleep(0.01)  # the stop is under way
            with pytest.raises(Stopped):
                await commands.arm(NAME, "again")
            assert at_rest(delivery) == EVERYTHING

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True)
    assert at_rest(delivery) == EVERYTHING
    stopped_once(delivery)


def test_a_command_that_is_cancelled_while_it_stops_leaves_the_stop_to_its_end(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands = delivery.commands
        await armed(delivery)
        field = asyncio.create_task(commands.beam_on(NAME), name="field")
        await delivery.until(lambda: delivery.plant["beam_present"])
        commands.abort(NAME, "for the test")
        await asyncio.sleep(0.002)
        field.cancel()
        with pytest.raises(asyncio.CancelledError):
            await field

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True)
    assert at_rest(delivery) == EVERYTHING
    stopped_once(delivery)
    assert len(delivery.visits) > 0


def test_a_trip_in_an_operators_pause_stops_in_order(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands = delivery.commands
        await armed(delivery)
        field = asyncio.create_task(commands.beam_on(NAME), name="field")
        await delivery.until(lambda: delivery.plant["beam_present"])
        await commands.pause(NAME)
        delivery.plant["door_closed"] = 0
        await delivery.until(lambda: commands.state is State.TRIPPED)
        with pytest.raises(Refused, match="still being stopped"):
            commands.reset(NAME, "quick")
        await asyncio.sleep(1.0)
        assert at_rest(delivery) == EVERYTHING
        with pytest.raises(Stopped):
            await field

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True)
    stopped_once(delivery)


@pytest.mark.parametrize("by", ["its end", "a defect"])
def test_who_leaves_an_armed_room_leaves_nothing_armed(by: str, tmp_path: Path) -> None:
    seen: list[Delivery] = []

    async def operator(delivery: Delivery) -> None:
        seen.append(delivery)
        await armed(delivery)
        if by == "a defect":
            raise ZeroDivisionError

    if by == "its end":
        run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True)
    else:
        with pytest.raises(BaseExceptionGroup) as error:
            run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True, whole=False)
        assert error.group_contains(ZeroDivisionError)
    assert at_rest(seen[0]) == EVERYTHING
