"""Self-tests at prepare: each way to stop the beam is used and measured; one that does not work refuses the part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.delivery.states import State
from drivers.contracts import SELF_TEST_VISIT
from drivers.errors import Refused, Stopped
from interlocks.invariant import SELF_TESTED
from simulators.plant.build import build_plant
from simulators.plant.state import (
    CHAIN_ARM,
    CHAIN_TEST,
    TEST_CLOSING,
    TEST_FAILED,
    TEST_OPENING,
    TEST_PASSED,
)
from simulators.plant.step import advance_frame
from tests.delivery_rig import EXAMPLES, Delivery, counts_accounted, fault, run_delivery
from tests.plant_rig import CARBON
from tests.test_guard_delivery import guarded

PLAN = EXAMPLES / "small_carbon.dcm"
TIME_OUT_MS = 250.0
FROM_THE_START = 'at = { state = "start" }'
SESSION_OPEN = 'at = { state = "prepared" }'
MONITORS = [("electrometer_1", "charge injection"), ("electrometer_2", "charge injection")]
STOPS = [
    ("accelerator", "stopper opens and closes"),
    ("safety_chain", "chopper opens and closes"),
    ("scan_controller", "holds, goes on, aborts"),
    ("safety_chain", "opens by a drop"),
    ("safety_chain", "opens without permits"),
]
GUARD = ("safety_chain", "opens without the guard")


def told(delivery: Delivery) -> list[tuple[str, str]]:
    return [(e["device"], e["what"]) for e in delivery.named("self_test")]


@pytest.mark.parametrize(("site", "guard"), [("carbon-fixed", False), ("proton-gantry", False), ("carbon-fixed", True)])
def test_every_way_to_stop_is_proved_before_the_first_field(site: str, guard: bool, tmp_path: Path) -> None:
    plan = PLAN if site == "carbon-fixed" else EXAMPLES / "demo_proton_1field.dcm"
    room = guarded(site)
    if not guard:
        room = room.model_copy(update={"permits": room.permits.model_copy(update={"required": ("controller",)})})
    delivery = run_delivery(plan, room, tmp_path / "t")
    assert delivery.outcome.status == "completed"
    assert told(delivery) == [*MONITORS, *STOPS, *([GUARD] if guard else [])]
    assert all(e["passed"] for e in delivery.named("self_test"))
    took = {e["what"]: e["measured_ms"] for e in delivery.named("self_test")}
    assert 0.0 <= took["opens by a drop"] <= 2.0
    assert TIME_OUT_MS - 1.0 <= took["opens without permits"] <= TIME_OUT_MS + 2.0
    if guard:
        assert TIME_OUT_MS - 2.0 <= took[GUARD[1]] <= 1.2 * TIME_OUT_MS + 2.0
    prepared = delivery.named("state", state="PREPARED")[0]["t_ns"]
    assert prepared <= 2e9 + TIME_OUT_MS * 1e6 * (2 if guard else 1)
    assert not [e for e in delivery.events if e["event"] in ("trip", "hold", "spill") and e["t_ns"] < prepared]
    assert "Self-tests, without beam" in (tmp_path / "t" / "report.html").read_text(encoding="utf-8")


def test_step_mode_proves_what_its_electrometer_does_instead_of_an_engine(tmp_path: Path) -> None:
    delivery = run_delivery(PLAN, "step-lab", tmp_path / "t")
    assert delivery.outcome.status == "completed"
    assert told(delivery)[: len(MONITORS) + len(STOPS)] == [*MONITORS, *STOPS]


def test_the_engines_test_is_no_visit_of_the_treatment(tmp_path: Path) -> None:
    seen: list[int] = []

    async def operator(delivery: Delivery) -> None:
        await delivery.until(lambda: delivery.plant["eng_visit"] == SELF_TEST_VISIT)
        assert delivery.plant["stopper_open"] == 0
        seen.append(int(delivery.plant["beam_present"]))
        await delivery.until(lambda: delivery.run.state is State.PREPARED)
        assert delivery.run.rings_read == 1
        assert [int(delivery.plant[f"{ring}_ack"]) for ring in ("results", "latches_1", "latches_2")] == [1, 1, 1]

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator)
    assert seen == [0]
    assert delivery.outcome.status == "completed"
    assert SELF_TEST_VISIT not in delivery.visits["visit"]
    assert [e["rows"] for e in delivery.named("counters", phase="field")] == [1, 25]
    assert delivery.named("warning") == []
    counts_accounted(delivery, [0, 1])


FAILING = {
    "chopper stays open": ("chopper_stuck", 1, FROM_THE_START, "chopper_test: wanted passed.*got failed, chopper open"),
    "chopper stays shut": ("chopper_shut", 1, FROM_THE_START, "chopper_test: wanted passed.*got failed, chopper clos"),
    "chopper is open": ("unasked", 1, FROM_THE_START, "chopper_test: wanted passed.*got failed, chopper open"),
    "chain deaf to drops": ("drop_ignored", 1, FROM_THE_START, "opens by a drop: wanted open, drop; got open, permit"),
    "chain does not open": ("time_out_ns", 10**12, SESSION_OPEN, "opens without permits: wanted open, permit_time_out"),
    "chain opens late": ("time_out_ns", 256_000_000, SESSION_OPEN, "without permits: wanted open within 252 ms"),
    "engine does not hold": ("hold_ignored", 1, FROM_THE_START, "aborts, failed: scan_controller: state: .*held.*got"),
    "engine goes on": ("abort_ignored", 1, FROM_THE_START, "scan_controller: state: wanted .*aborted.*got running"),
    "stopper stays": ("stopper_delay_ns", 10**12, FROM_THE_START, "accelerator: stopper_open: wanted True.*got False"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILING)
def test_what_does_not_work_refuses_the_part_and_is_named(name: str, tmp_path: Path) -> None:
    field, value, at, message = FAILING[name]
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=fault(f"plant.{field}", at=at, value=value))
    assert (delivery.outcome.status, delivery.outcome.exit_status) == ("refused", 3)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(delivery.outcome.message)
    failed = delivery.named("self_test", passed=False)
    assert failed[-1]["detail"]
    assert delivery.outcome.message.startswith("self-test")
    assert failed[-1]["what"] in delivery.outcome.message
    assert len(failed) == (3 if name == "chain opens late" else 1)
    assert (delivery.plant["closed"], delivery.plant["armed"]) == (0, 0)
    assert int(delivery.plant["particles"]) == 0
    assert delivery.run.self_tests.keys() <= {"electrometer_1", "electrometer_2"}


def test_a_chain_that_does_not_need_the_guard_although_the_site_does_is_found(tmp_path: Path) -> None:
    scenario = fault("plant.guard_required", at=FROM_THE_START, value=0)
    delivery = run_delivery(PLAN, guarded(), tmp_path / "t", faults=scenario)
    assert delivery.outcome.status == "refused"
    assert "opens without the guard: wanted open, guard_time_out; got open, permit_time_out" in delivery.outcome.message


@pytest.mark.parametrize("device", SELF_TESTED)
def test_a_device_that_was_restarted_after_its_test_arms_nothing(device: str, tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        await delivery.commands.prepare()
        assert delivery.run.self_tests.keys() == set(SELF_TESTED)
        delivery.run.self_tests[device] ^= 1  # the test passed in another boot than the one that answers
        with pytest.raises(Stopped, match=f"SELF_TEST_MISSING.*{device}"):
            await delivery.commands.arm("simulated", "test")

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True)
    assert delivery.first_out == "SELF_TEST_MISSING"
    assert int(delivery.plant["particles"]) == 0


def test_faults_are_placed_in_fields_as_if_there_were_no_self_tests(tmp_path: Path) -> None:
    places = [
        'at = { field = 1, state = "arming" }',
        'at = { layer = 1, state = "armed" }',
        "at = { field = 1, visit = 1 }",
        "at = { field = 2, visit = 3 }",
        "at = { visits = 4 }",
    ]
    scenario = "".join(fault("plant.dead_step", at=place, value=1) for place in places)
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario)
    assert delivery.outcome.status == "completed"
    armed = [e["t_ns"] for e in delivery.named("permit", phase="begin")]
    fired = [played["fired_s"] for played in delivery.world.played]
    assert None not in fired
    first, layer, visit, second, some = (round(t * 1e9) for t in fired)
    assert armed[0] - 100_000_000 < first <= layer <= visit < armed[1]
    assert second > armed[1]
    assert layer < some < armed[1]


# ---- the chain's PLC


class Chopper:
    """The plant with a hand on its chopper's test."""

    def __init__(self) -> None:
        self.plant = build_plant(CARBON, 1)
        self.state: Any = self.plant.state

    def frames(self, count: int) -> None:
        plant = self.plant
        for _ in range(count):
            advance_frame(plant.memory[0], plant.frame_1, plant.frame_2, plant.frame_3)

    def command(self, command: int) -> None:
        self.state["chain_command"] = command
        self.state["chain_command_token"] = 5
        self.state["chain_commands"] += 1

    @property
    def result(self) -> int:
        return int(self.state["chopper_test"])


def test_the_choppers_test_opens_closes_and_says_how_long_closing_took() -> None:
    chopper = Chopper()
    chopper.command(CHAIN_TEST)
    chopper.frames(2)
    assert chopper.result == TEST_OPENING
    seen = set()
    for _ in range(20):
        chopper.frames(1)
        seen.add((chopper.result, int(chopper.state["beam_on"])))
    assert (TEST_CLOSING, 1) in seen
    assert (chopper.result, int(chopper.state["beam_on"])) == (TEST_PASSED, 0)
    off_ns = int(chopper.plant.parameters["off_delay_ns"])
    assert off_ns <= int(chopper.state["chopper_close_ns"]) <= off_ns + 200_000
    assert int(chopper.state["particles"]) == 0


INTERRUPTED: dict[str, Callable[[Any], object]] = {
    "stopper told to open": lambda s: s.__setitem__("stopper_command", 1),
    "stopper open": lambda s: (s.__setitem__("stopper_open", 1), s.__setitem__("stopper_change_ns", 10**12)),
    "chain armed": lambda s: s.__setitem__("armed", 1),
    "chain closed": lambda s: s.__setitem__("closed", 1),
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_a_chopper_under_test_closes_when_beam_could_come(name: str) -> None:
    chopper = Chopper()
    chopper.command(CHAIN_TEST)
    chopper.frames(2)
    INTERRUPTED[name](chopper.state)
    chopper.frames(1)
    assert chopper.result == TEST_FAILED
    chopper.frames(6)
    assert int(chopper.state["beam_on"]) == 0


@pytest.mark.parametrize(("field", "late"), [("on_delay_ns", TEST_OPENING), ("off_delay_ns", TEST_CLOSING)])
def test_a_slow_chopper_fails_after_five_milliseconds(field: str, late: int) -> None:
    chopper = Chopper()
    chopper.plant.parameters[field] = 4_700_000
    chopper.command(CHAIN_TEST)
    chopper.frames(110)
    assert chopper.result == TEST_PASSED
    chopper = Chopper()
    chopper.plant.parameters[field] = 5_400_000
    chopper.command(CHAIN_TEST)
    seen = set()
    for _ in range(110):
        chopper.frames(1)
        seen.add(chopper.result)
    assert chopper.result == TEST_FAILED
    assert late in seen
    assert TEST_PASSED not in seen


def test_arming_is_no_test_and_a_test_is_no_arming() -> None:
    chopper = Chopper()
    chopper.command(CHAIN_TEST)
    chopper.frames(30)
    assert (int(chopper.state["armed"]), chopper.result) == (0, TEST_PASSED)
    chopper.command(CHAIN_ARM)
    chopper.frames(3)
    assert (int(chopper.state["armed"]), chopper.result, int(chopper.state["beam_on"])) == (1, TEST_PASSED, 0)


def test_the_self_tests_are_in_the_journal_of_a_refused_part_too(tmp_path: Path) -> None:
    scenario = fault("plant.chopper_stuck", at=FROM_THE_START, value=1)
    run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario)
    lines = (tmp_path / "t" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [e for e in map(json.loads, lines) if e["event"] == "self_test"]
    assert [e["passed"] for e in events] == [True, True, True, False]
    assert events[-1]["measured_ms"] is None
    assert "<b>failed</b>" in (tmp_path / "t" / "report.html").read_text(encoding="utf-8")


def test_a_session_that_did_not_run_its_tests_arms_nothing(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        await delivery.commands.prepare()
        delivery.run.self_tests.clear()
        with pytest.raises((Stopped, Refused), match="SELF_TEST_MISSING"):
            await delivery.commands.arm("simulated", "test")

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True)
    missing = {t.detail.partition(":")[0] for t in delivery.run.latch.history if t.id == "SELF_TEST_MISSING"}
    assert missing == set(SELF_TESTED)
