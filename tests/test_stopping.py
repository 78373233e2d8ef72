"""Stopping in order: every way that takes the beam off is gone, each for itself, and beam that stays is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.clock import now_ns
from controller.delivery.guard import NOTHING
from controller.record.schema import QUALITY_FROM_FRAMES
from drivers.flags import FLAG_BEAM
from simulators.plant.state import CAUSE_DROP, CHAIN_DISARM, ENG_ABORTED
from tests.delivery_rig import EXAMPLES, Delivery, counts_accounted, fault, run_delivery

PLAN = EXAMPLES / "small_carbon.dcm"
NAME = "simulated"
WAYS = {"engine abort": "scan_controller", "stopper": "accelerator", "chain": "safety_chain"}


def with_beam(delivery: Delivery) -> bool:
    return int(delivery.world.monitor.state["visits"]) >= 5 and delivery.run.tally.field_index == 0


def obeyed(delivery: Delivery) -> set[str]:
    """Who did what the stop told them."""
    plant = delivery.plant
    told = {
        "engine abort": plant["eng_state"] == ENG_ABORTED,
        "stopper": plant["stopper_command"] == 0,
        "chain": plant["chain_command"] == CHAIN_DISARM,
    }
    return {name for name, so in told.items() if so}


async def given_up(delivery: Delivery, before: Callable[[], None] = lambda: None) -> float:
    """Nothing tripped, but whoever delivered the field is cancelled under beam; seconds until that has ended."""
    await delivery.commands.prepare()
    await delivery.commands.arm(NAME, "the first field")
    field = asyncio.create_task(delivery.commands.beam_on(NAME), name="field")
    await delivery.until(lambda: with_beam(delivery))
    assert obeyed(delivery) == set()
    before()
    begun_ns = now_ns()
    field.cancel()
    await asyncio.wait([field])
    assert field.cancelled()
    return (now_ns() - begun_ns) * 1e-9


def test_a_field_that_is_given_up_loses_its_beam_by_every_way(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        control = delivery.run.path.monitor.control
        wishes: list[object] = []

        def listen() -> None:
            assert (control["permit_on"], control["log_on"]) == (1, 1)
            delivery.run.guard.liar = lambda message: wishes.append(message) or message

        await given_up(delivery, listen)
        assert obeyed(delivery) == set(WAYS)
        assert delivery.plant["cause"] == CAUSE_DROP, "the drop is the fastest of them"
        assert delivery.plant["beam_present"] == 0
        assert (control["permit_on"], control["log_on"]) == (0, 0)
        assert wishes[0] == NOTHING

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True, whole=False)
    assert delivery.named("permit", phase="end")
    assert not delivery.named("trip")


@pytest.mark.parametrize("gone", WAYS)
def test_one_that_does_not_answer_keeps_the_others_from_nothing_and_is_waited_for_three_seconds(
    gone: str, tmp_path: Path
) -> None:
    async def operator(delivery: Delivery) -> None:
        took_s = await given_up(delivery)
        assert took_s == pytest.approx(3.0, abs=0.1)
        assert obeyed(delivery) >= set(WAYS) - {gone}

    scenario = fault(f"wire.{WAYS[gone]}", kind="delay", delay_s=60.0)
    delivery = run_delivery(
        PLAN, "carbon-fixed", tmp_path / "t", script=operator, faults=scenario, alone=True, whole=False
    )
    assert [e["text"] for e in delivery.named("warning") if e["text"].startswith(gone)]


EARLY = "after_visits = 3"
SILENT = {number: fault(f"plant.silent_{number}", at=EARLY, value=1) for number in (1, 2)}
STUCK = fault("plant.chopper_stuck", at=EARLY, value=1) + fault("wire.accelerator", at=EARLY, kind="cut")
"""The accelerator does not hear of the stop: else the end of its spill hides a chopper that does not close."""


@pytest.mark.parametrize("more", ["", *SILENT.values()], ids=["both monitors", "electrometer 2 alone", "1 alone"])
def test_beam_that_a_stop_does_not_end_is_named_by_any_monitor_that_sees_it(more: str, tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        await delivery.until(lambda: with_beam(delivery) or delivery.run.latch.tripped)
        delivery.commands.abort(NAME, "for the test")

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, faults=STUCK + more, whole=False)
    stop, *rest = delivery.named("trip")
    named = [trip for trip in rest if trip["id"] == "BEAM_WITHOUT_REQUEST"]
    assert [(trip["value"], trip["limit"], trip["detail"]) for trip in named] == [(4.0, 2.0, "after the stop")]
    assert named[0]["t_ns"] - stop["t_ns"] == pytest.approx(4_000_000, abs=1_000_000)


@pytest.mark.parametrize("number", SILENT)
def test_what_a_silent_monitor_said_last_is_no_beam_after_the_stop(number: int, tmp_path: Path) -> None:
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=SILENT[number], whole=False)
    assert int(delivery.world.monitor.state[f"flags_{number}"]) & FLAG_BEAM
    assert "BEAM_WITHOUT_REQUEST" not in {trip["id"] for trip in delivery.named("trip")}


def test_monitors_that_stay_silent_are_waited_for_two_milliseconds_before_the_chain_is_asked(tmp_path: Path) -> None:
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=SILENT[1] + SILENT[2], whole=False)
    asked = [e for e in delivery.named("warning") if "the chain's sensor alone" in e["text"]]
    assert 6_000_000 <= asked[0]["t_ns"] - delivery.named("trip")[0]["t_ns"] < 7_900_000


def test_a_frame_of_before_the_proof_time_proves_nothing(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        await delivery.until(lambda: with_beam(delivery))
        delivery.commands.abort(NAME, "for the test")
        for number in SILENT:
            delivery.world.room.plant.parameters[f"silent_{number}"] = 1

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, whole=False)
    assert any("the chain's sensor alone" in e["text"] for e in delivery.named("warning"))
    assert "BEAM_WITHOUT_REQUEST" not in {trip["id"] for trip in delivery.named("trip")}


def test_after_a_stop_the_rings_are_booked_and_agree_with_the_counters(tmp_path: Path) -> None:
    scenario = fault("plant.emergency_stop", value=1)
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario, whole=False)
    assert len(delivery.visits) > 5
    assert not delivery.named("warning")
    assert not (delivery.visits["quality"] & QUALITY_FROM_FRAMES).any()
    counts_accounted(delivery, [0])


def test_rings_that_cannot_be_read_are_told_of_and_the_frames_booked_instead(tmp_path: Path) -> None:
    scenario = fault("wire.electrometer_1", kind="delay", delay_s=60.0)
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario, whole=False)
    assert len(delivery.visits) >= 5
    assert (delivery.visits["quality"] & QUALITY_FROM_FRAMES).all()
    off, told = delivery.named("permit", phase="end")[-1], delivery.named("warning")
    untold = "not all results could be read, the devices keep them: electrometer_1"
    assert [e["text"].startswith(untold) for e in told] == [True, False, True]
    assert told[1]["text"] == "layer 1: booked from frames; the rings keep the rows"
    waited_s = [(e["t_ns"] - off["t_ns"]) * 1e-9 for e in told]
    assert waited_s == pytest.approx([2.0, 2.0, 4.0], abs=0.1), "an operator is not made to wait for long"
