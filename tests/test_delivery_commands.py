"""What an operator can do, and when: the state table, pause and resume, abort, reset, and what is refused."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import numpy as np
import pydicom
import pytest

from controller.delivery.states import TABLE, Event, State, UndefinedTransition, follow
from drivers.errors import Refused, Stopped
from sites.loader import load_site
from tests.delivery_rig import EXAMPLES, Delivery, counts_accounted, fault, run_delivery
from tests.make_plan import BeamSpec, LayerSpec, grid, make_plan, write_plan

PLAN = EXAMPLES / "small_carbon.dcm"
NAME = "simulated"


def visits_done(delivery: Delivery) -> int:
    before = delivery.run.state in (State.CHECKED, State.PREPARED)  # then it is the self-test's, or another field's
    return 0 if before else int(delivery.world.monitor.state["visits"])


def beam_off(delivery: Delivery) -> None:
    assert delivery.plant["beam_present"] == 0
    assert delivery.plant["beam_on"] == 0


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_event_in_every_state_is_in_the_table_or_refused_by_name(state: State, event: Event) -> None:
    if event in TABLE[state]:
        assert follow(state, event) is TABLE[state][event]
    else:
        with pytest.raises(UndefinedTransition, match=f"'{event.value}' is not possible in state {state.value}"):
            follow(state, event)


def test_from_every_state_but_a_trip_beam_needs_arming_again() -> None:
    assert {s for s in State if Event.BEAM_ON in TABLE[s]} == {State.ARMED}
    assert {s for s in State if TABLE[s].get(Event.RESUME) is State.DELIVERING} == {State.INTERRUPTED}
    assert TABLE[State.TRIPPED] == {Event.RESET: State.TERMINATED}
    beam_possible = {State.PREPARED, State.ARMED, State.DELIVERING, State.INTERRUPTED}
    assert all(Event.TRIP in TABLE[s] and Event.ABORT in TABLE[s] for s in beam_possible)


def test_a_pause_in_mid_layer_holds_the_beam_and_resume_completes_every_spot(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        await delivery.until(lambda: visits_done(delivery) >= 5)
        await delivery.commands.pause(NAME)
        assert delivery.commands.state is State.INTERRUPTED
        await asyncio.sleep(0.005)
        done = visits_done(delivery)
        particles = int(delivery.plant["particles"])
        await asyncio.sleep(3.0)  # longer than a hold of the gate may last here
        beam_off(delivery)
        assert delivery.plant["closed"] == 1  # permits go on: a pause is no trip
        assert (visits_done(delivery), int(delivery.plant["particles"])) == (done, particles)
        await delivery.commands.resume(NAME)
        assert delivery.commands.state is State.DELIVERING

    site = load_site("carbon-fixed")
    site = site.model_copy(update={"gating": site.gating.model_copy(update={"hold_max_s": 1.0})})
    delivery = run_delivery(PLAN, site, tmp_path / "t", script=operator)
    assert delivery.outcome.status == "completed"
    assert delivery.summary["spots_delivered"] == delivery.summary["spots_planned"] == 48
    assert abs(delivery.truth["spot_dose_error_pct"]["mean"]) < 1.0
    assert delivery.truth["spot_dose_error_pct"]["max"] < 3.0
    assert [e["state"] for e in delivery.named("state")].count("INTERRUPTED") == 1
    assert delivery.named("hold", phase="begin")[0]["cause"] == "operator"
    counts_accounted(delivery, [0, 1])


@pytest.mark.parametrize("moment", ["beam off between layers", "energy is asked for", "last spot of the field"])
def test_a_pause_between_layers_lets_nothing_start(moment: str, tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        run = delivery.run
        if moment == "beam off between layers":
            await delivery.until(lambda: run.tally.layer_index == 1)
        elif moment == "energy is asked for":
            await delivery.until(lambda: run.state is State.DELIVERING)
        else:
            await delivery.until(lambda: visits_done(delivery) >= 23)
        await delivery.commands.pause(NAME)
        await asyncio.sleep(0.005)
        particles = int(delivery.plant["particles"])
        await asyncio.sleep(3.0)
        beam_off(delivery)
        assert int(delivery.plant["particles"]) == particles
        assert run.state is State.INTERRUPTED
        await delivery.commands.resume(NAME)

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator)
    assert delivery.outcome.status == "completed"
    assert delivery.summary["spots_delivered"] == 48


def test_pausing_again_and_again_delivers_each_spot_once(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        await delivery.until(lambda: visits_done(delivery) >= 1)
        for _ in range(12):
            if delivery.run.state is State.DELIVERING:
                await delivery.commands.pause(NAME)
                await asyncio.sleep(0.05)
                await delivery.commands.resume(NAME)
            await asyncio.sleep(0.003)

    plan = make_plan([BeamSpec(layers=[LayerSpec(250.0, grid(36, 20.0)), LayerSpec(240.0, grid(36, 20.0))])])
    delivery = run_delivery(write_plan(tmp_path / "p.dcm", plan), "carbon-fixed", tmp_path / "t", script=operator)
    assert delivery.outcome.status == "completed"
    assert len(delivery.visits) == len(np.unique(delivery.visits["visit"])) == 72
    assert len(delivery.named("command", name="pause")) >= 5
    assert abs(delivery.truth["per_field"][0]["particles_error_pct"]) < 0.5
    counts_accounted(delivery, [0])


@pytest.mark.parametrize("moment", ["preparation", "set-up", "gantry moves", "energy change", "spots", "pause"])
def test_an_abort_ends_the_treatment_whenever_it_comes(moment: str, tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        run = delivery.run
        if moment == "preparation":
            await asyncio.sleep(0.05)
            assert run.state is State.CHECKED
        elif moment == "set-up":
            await delivery.until(lambda: run.state is State.PREPARED)
        elif moment == "gantry moves":
            await delivery.until(lambda: delivery.world.room.gantry.moving)
        elif moment == "energy change":
            await delivery.until(lambda: run.state is State.DELIVERING)
        else:
            await delivery.until(lambda: visits_done(delivery) >= 5)
        if moment == "pause":
            await delivery.commands.pause(NAME)
            await asyncio.sleep(1.0)
        delivery.commands.abort(NAME, "because of the test")
        delivery.commands.abort(NAME, "twice")

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator)
    assert (delivery.outcome.status, delivery.outcome.exit_status) == ("interrupted", 4)
    assert "because of the test" in delivery.outcome.message
    assert delivery.first_out == "OPERATOR_ABORT"
    assert delivery.run.state is State.TERMINATED  # an operator's wish is no fault: nothing is there to be reset
    assert len(delivery.named("command", name="abort")) == 1
    beam_off(delivery)
    assert (delivery.plant["closed"], delivery.plant["stopper_open"]) == (0, 0)
    assert not delivery.world.room.gantry.moving
    assert not delivery.world.room.couch.moving
    wanted = {"spots": range(5, 9), "pause": range(5, 9), "gantry moves": (24,)}.get(moment, (0,))
    assert delivery.summary["spots_delivered"] in wanted
    record = delivery.directory / "record.dcm"
    if moment in ("spots", "pause"):
        counts_accounted(delivery, [0])
        beams = pydicom.dcmread(record).TreatmentSessionIonBeamSequence
        assert beams[0].TreatmentTerminationStatus == "OPERATOR"


def test_commands_out_of_turn_are_refused_and_change_nothing(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands = delivery.commands
        with pytest.raises(UndefinedTransition, match="'arm' is not possible in state CHECKED"):
            await commands.arm(NAME, "too early")
        with pytest.raises(UndefinedTransition):
            await commands.pause(NAME)
        await commands.prepare()
        with pytest.raises(UndefinedTransition, match="'prepare' is not possible in state PREPARED"):
            await commands.prepare()
        with pytest.raises(UndefinedTransition, match="'beam_on' is not possible in state PREPARED"):
            await commands.beam_on(NAME)
        with pytest.raises(Refused, match="operator ' '"):
            await commands.arm(" ", "unknown")
        with pytest.raises(UndefinedTransition):
            commands.reset(NAME, "nothing is tripped")
        await commands.arm(NAME, "the first field")
        token = delivery.run.arm_token
        with pytest.raises(UndefinedTransition, match="'arm' is not possible in state ARMED"):
            await commands.arm(NAME, "again")
        assert delivery.run.arm_token == token
        with pytest.raises(Refused, match="operator ''"):
            await commands.beam_on("")
        assert delivery.plant["particles"] == 0
        await commands.beam_on(NAME)
        assert commands.state is State.PREPARED
        await commands.arm(NAME, "the second field")
        await commands.beam_on(NAME)
        assert commands.state is State.COMPLETED
        commands.abort(NAME, "after the end")
        with pytest.raises(UndefinedTransition):
            await commands.arm(NAME, "a third field")

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True)
    assert delivery.summary is not None
    assert delivery.summary["outcome"] == "completed"
    assert [e["name"] for e in delivery.named("command")] == ["arm", "beam_on", "arm", "beam_on"]
    counts_accounted(delivery, [0, 1])


def test_a_reset_needs_a_name_a_reason_and_the_cause_gone(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands = delivery.commands
        await commands.prepare()
        await commands.arm(NAME, "test")
        with pytest.raises(Stopped, match="CHAIN_OPENED"):
            await commands.beam_on(NAME)
        assert commands.state is State.TRIPPED
        with pytest.raises(Refused, match="operator ' '"):
            commands.reset(" ", "a reason")
        with pytest.raises(Refused, match="a named operator and a reason"):
            commands.reset(NAME, "  ")
        await asyncio.sleep(1.0)
        with pytest.raises(Refused, match="the cause is still there: CHAIN_INPUT emergency_stop"):
            commands.reset(NAME, "the button is still pressed")
        assert commands.state is State.TRIPPED
        for command in (commands.arm(NAME, "no"), commands.beam_on(NAME), commands.prepare()):
            with pytest.raises((Stopped, UndefinedTransition)):
                await command
        await asyncio.sleep(2.0)
        assert commands.state is State.TRIPPED  # the cause is gone, the trip stays
        commands.reset(NAME, "button released, room searched")
        assert commands.state is State.TERMINATED
        with pytest.raises((Stopped, UndefinedTransition)):
            await commands.arm(NAME, "the same part again")

    scenario = fault("plant.emergency_stop", value=1, for_s=3.0)
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario, script=operator, alone=True)
    resets = delivery.named("reset")
    assert [(e["operator"], e["reason"]) for e in resets] == [(NAME, "button released, room searched")]
    assert "CHAIN_OPENED" in resets[0]["ids"]
    assert delivery.sink.latest("interlocks")["clear"] is True  # type: ignore[index]
    beam_off(delivery)


def test_a_pause_that_the_engine_does_not_take_is_a_trip(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        await delivery.until(lambda: visits_done(delivery) >= 6)
        with pytest.raises(Stopped):
            await delivery.commands.pause(NAME)

    scenario = fault("wire.scan_controller", at="after_visits = 3", kind="cut")
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario, script=operator)
    assert delivery.outcome.status == "interrupted"
    assert delivery.run.state is State.TRIPPED
    beam_off(delivery)


def test_a_fault_during_a_pause_trips_and_cannot_be_resumed(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        await delivery.until(lambda: visits_done(delivery) >= 5)
        await delivery.commands.pause(NAME)
        await delivery.until(lambda: delivery.run.state is State.TRIPPED)
        with pytest.raises(UndefinedTransition, match="'resume' is not possible in state TRIPPED"):
            await delivery.commands.resume(NAME)

    scenario = fault("gantry.creep_deg_per_s", value=1)
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario, script=operator)
    assert delivery.first_out == "GANTRY_MOVED"
    assert delivery.outcome.exit_status == 4


def test_a_treatment_that_is_given_up_leaves_no_beam(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands = delivery.commands
        await commands.prepare()
        await commands.arm(NAME, "test")
        task = asyncio.create_task(commands.beam_on(NAME))
        await delivery.until(lambda: delivery.plant["beam_present"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        beam_off(delivery)
        assert (delivery.plant["closed"], delivery.plant["stopper_command"]) == (0, 0)

    run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True)


@pytest.mark.parametrize("command", ["prepare", "arm", "beam_on"])
def test_the_second_click_of_a_double_one_is_refused_and_the_first_one_holds(command: str, tmp_path: Path) -> None:
    refused: list[str] = []

    async def twice(delivery: Delivery, name: str) -> None:
        commands = delivery.commands
        calls = {
            "prepare": commands.prepare,
            "arm": lambda: commands.arm(NAME, "test"),
            "beam_on": lambda: commands.beam_on(NAME),
        }
        first = asyncio.create_task(calls[name](), name="first click")
        await asyncio.sleep(0.001)
        if name == command:
            with pytest.raises(UndefinedTransition) as error:
                await calls[name]()
            refused.append(str(error.value))
        await first

    async def operator(delivery: Delivery) -> None:
        await twice(delivery, "prepare")
        while delivery.commands.state is not State.COMPLETED:
            await twice(delivery, "arm")
            await twice(delivery, "beam_on")

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True)
    assert delivery.outcome.status == "completed"
    assert delivery.summary["spots_delivered"] == 48
    assert refused
    assert abs(delivery.truth["spot_dose_error_pct"]["mean"]) < 1.0


def test_after_its_end_a_treatment_takes_no_commands(tmp_path: Path) -> None:
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t")
    assert delivery.outcome.status == "completed"
    with pytest.raises(UndefinedTransition, match="has ended"):
        asyncio.run(delivery.commands.arm(NAME, "test"))
    with pytest.raises(UndefinedTransition, match="has ended"):
        delivery.commands.reset(NAME, "test")
    delivery.commands.abort(NAME, "test")
    assert delivery.run.latch.history == ()
