"""Every fault of the catalogue, played in virtual time: it happens, and the treatment ends safe and named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.campaign.truth_dose import LIMIT_GY, truth_dose
from controller.cli import main
from drivers.errors import BadInput
from interlocks.conditions import matrix
from simulators.fault_kinds import NO_TRIP, REFUSED, Kind, catalogue, parse_catalogue
from simulators.faults import load_faults, parse_faults
from simulators.faults_page import entry
from simulators.plant.state import CAUSE_GUARD_SILENCE, CAUSE_SILENCE, ION_UNIT
from tests.delivery_rig import EXAMPLES, Delivery, run_delivery
from tests.make_plan import BeamSpec, LayerSpec, SetupSpec, grid, make_plan, write_plan

PLAN = EXAMPLES / "small_carbon.dcm"
SPIKE = catalogue()["spill_spike"]


def gated(tmp_path: Path) -> Path:
    """A plan that waits for the patient's breathing."""
    beam = BeamSpec(layers=[LayerSpec(250.0, grid(16, 8.0)), LayerSpec(240.0, grid(16, 8.0))])
    return write_plan(
        tmp_path / "gated.dcm", make_plan([beam], setups=[SetupSpec(motion=("GATING", "EXTERNAL_MARKER"))])
    )


def play(kind: Kind, tmp_path: Path, whole: bool = True, **more: Any) -> Delivery:
    """The example of a fault on a plan of a few tens of spots, where it can show."""
    plan = gated(tmp_path) if kind.name.startswith("gate_") else PLAN
    return run_delivery(
        plan, "carbon-fixed", tmp_path / "t", faults=entry(kind, **more), site_name="carbon-fixed", whole=whole
    )


@pytest.mark.parametrize("name", catalogue())
def test_a_fault_ends_as_the_catalogue_says(name: str, tmp_path: Path) -> None:
    kind = catalogue()[name]
    delivery = play(kind, tmp_path, whole=False)
    played = delivery.world.room.player.played
    assert [p.fault.name for p in played if p.fired_ns is not None] == [name]
    status = delivery.outcome.status
    if status == "completed":
        ended = NO_TRIP
    elif status == "refused":
        ended = REFUSED
    else:
        assert delivery.first_out is not None, delivery.outcome.message
        ended = delivery.first_out
    assert ended in kind.expected
    dose = truth_dose(delivery.world.room.truths(), ION_UNIT, delivery.run.programs)
    assert dose.worst_gy < LIMIT_GY, dose
    assert delivery.plant["beam_present"] == 0
    assert delivery.plant["closed"] == 0
    assert delivery.plant["armed"] == 0


@pytest.mark.parametrize("command", ["prepare", "arm", "beam_on", "reset"])
def test_a_command_given_twice_is_refused_and_changes_nothing(command: str, tmp_path: Path) -> None:
    delivery = play(catalogue()["operator_repeats"], tmp_path, command=command)
    assert delivery.outcome.status == "completed"
    assert delivery.summary["spots_delivered"] == delivery.summary["spots_planned"]
    (said,) = [e["text"] for e in delivery.named("warning") if e["text"].startswith("operator: ")]
    assert said.startswith(f"operator: {command} once more: ")


@pytest.mark.parametrize(("what", "named"), [("plan", "plan file"), ("site", "site file"), ("map", "register map")])
def test_what_was_edited_after_the_check_is_named(what: str, named: str, tmp_path: Path) -> None:
    delivery = play(catalogue()["source_edited"], tmp_path, what=what)
    assert [field["complete"] for field in delivery.summary["per_field"]] == [True, False]
    assert delivery.first_out == "PLAN_CHANGED"
    assert named in delivery.named("trip")[0]["detail"]


def test_without_descriptors_the_next_field_is_not_armed(tmp_path: Path) -> None:
    delivery = play(catalogue()["no_descriptors"], tmp_path)
    assert [field["complete"] for field in delivery.summary["per_field"]] == [True, False]
    assert delivery.first_out == "PLAN_CHANGED"
    assert "Too many open files" in delivery.named("trip")[0]["detail"]


def test_descriptors_that_come_back_in_time_are_not_missed(tmp_path: Path) -> None:
    assert play(catalogue()["no_descriptors"], tmp_path, for_s=0.01).outcome.status == "completed"


def test_a_monitor_that_stands_still_is_named(tmp_path: Path) -> None:
    delivery = play(catalogue()["monitor_frozen"], tmp_path)
    assert delivery.first_out == "COUNTS_BACKWARDS"  # the frames' count stays behind the one latched at the change
    assert "the count of electrometer 2 stands still" in delivery.named("trip")[0]["detail"]


def test_a_real_time_thread_that_hangs_is_named_in_half_a_second_wherever_it_was(tmp_path: Path) -> None:
    # before the first visit nothing waits for a frame but the interlock task
    delivery = play(catalogue()["thread_stalled"], tmp_path, ms=20_000.0, at={"field": 1, "visit": 1})
    assert delivery.first_out == "REALTIME_SILENT"
    assert 450.0 < delivery.named("trip")[0]["value"] < 500.0
    assert delivery.plant["closed"] == 0


@pytest.mark.parametrize(("name", "counts"), [("permits_lost", "rejected 0"), ("permits_forged", "rejected 494")])
def test_a_chain_that_never_gets_our_permits_is_not_closed_and_the_trip_says_what_it_got(
    name: str, counts: str, tmp_path: Path
) -> None:
    delivery = play(catalogue()[name], tmp_path, at={"field": 1, "state": "field_done"})
    assert delivery.first_out == "NOT_READY"
    detail = delivery.named("trip")[0]["detail"]
    assert "safety_chain: wanted closed within 5 s of arming, got armed, not closed" in detail
    assert counts in detail
    assert "controller, guard" in detail


def test_telemetry_that_fails_costs_nothing_but_telemetry(tmp_path: Path) -> None:
    delivery = play(catalogue()["broker_gone"], tmp_path)
    assert delivery.outcome.status == "completed"
    assert delivery.run.telemetry.failed > 10


def test_a_killed_controller_leaves_the_room_safe_and_the_record_open(tmp_path: Path) -> None:
    delivery = play(catalogue()["process_killed"], tmp_path)
    assert delivery.plant["closed"] == 0
    # its guard ends with it: whose permits are missed first is a matter of a millisecond
    assert delivery.plant["cause"] in (CAUSE_SILENCE, CAUSE_GUARD_SILENCE)
    assert delivery.summary["unclosed"]


def test_what_is_expected_of_a_fault_is_in_the_matrix() -> None:
    for kind in catalogue().values():
        assert kind.expected
        assert set(kind.expected) <= {*matrix(), NO_TRIP, REFUSED}, kind.name


def test_every_parameter_has_a_default_inside_its_range() -> None:
    for kind in catalogue().values():
        for parameter in kind.parameters.values():
            if parameter.choices:
                assert parameter.default in parameter.choices, f"{kind.name}.{parameter.name}"
            else:
                assert parameter.least <= float(parameter.default) <= parameter.most, f"{kind.name}.{parameter.name}"


def test_a_fault_comes_where_its_place_says(tmp_path: Path) -> None:
    scenario = entry(SPIKE, at={"field": 2, "visit": 5}, factor=10)
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario)
    assert [field["complete"] for field in delivery.summary["per_field"]] == [True, False]
    assert int(delivery.visits["visit"][-1]) in (5, 6)


def test_a_fault_in_a_layer_comes_after_the_layers_before(tmp_path: Path) -> None:
    scenario = entry(catalogue()["chain_button"], at={"field": 1, "layer": 2, "state": "running"})
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario)
    first = int(delivery.run.programs[0][1].visits["visit"][0])
    assert set(range(1, first)) <= set(delivery.visits["visit"].tolist())
    assert delivery.first_out == "CHAIN_OPENED"


def test_a_chain_that_opens_while_it_is_armed_says_why(tmp_path: Path) -> None:
    scenario = entry(catalogue()["chain_button"], at={"field": 1, "state": "arming"}, button="abort_button")
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario, whole=False)
    assert delivery.first_out == "CHAIN_OPENED"
    assert "operator_abort" in delivery.run.latch.history[0].detail
    assert int(delivery.plant["particles"]) == 0


def test_a_stream_that_falls_silent_between_two_layers_is_named(tmp_path: Path) -> None:
    scenario = entry(catalogue()["stream_silent"], at={"field": 1, "state": "layer_done"})
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario, whole=False)
    assert delivery.first_out == f"STREAM_SILENT_{catalogue()['stream_silent'].parameters['stream'].default}"


def test_the_counts_of_a_monitor_that_stood_still_are_never_settled(tmp_path: Path) -> None:
    scenario = entry(catalogue()["monitor_frozen"], at={"field": 1, "state": "field_done"})
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario, whole=False)
    assert delivery.first_out == "COUNTS_BACKWARDS"
    assert delivery.named("reconcile")
    assert delivery.named("counters")[-1]["phase"] != "end"


def test_two_faults_of_a_scenario_both_happen(tmp_path: Path) -> None:
    early = entry(catalogue()["spill_ends_early"])
    late = entry(catalogue()["chain_button"], at={"field": 2, "visit": 3})
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=early + late)
    assert [p.fired_ns is not None for p in delivery.world.room.player.played] == [True, True]
    assert delivery.first_out == "CHAIN_OPENED"


def test_what_a_fault_changed_comes_back(tmp_path: Path) -> None:
    scenario = entry(catalogue()["chamber_gain"], factor=0.999, for_s=0.01)
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario)
    played = delivery.world.room.player.played[0]
    assert delivery.outcome.status == "completed"
    assert played.ended_ns is not None
    assert played.fired_ns is not None
    assert played.ended_ns - played.fired_ns == 10_000_000
    assert delivery.world.room.plant.parameters["gain_1"] == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[fault]]\nname = "spill_spikes"\nat = { s = 1 }', r"line 2: fault 1: .*did you mean 'spill_spike'"),
        ('\n[[fault]]\nname = "spill_spike"\n\nfaktor = 3\nat = { s = 1 }', r"line 5: .*did you mean 'factor'"),
        ('[[fault]]\nname = "spill_spike"\nfactor = 30\nat = { s = 1 }', r"line 3: .*factor is 30 , want 1 to 10"),
        ('[[fault]]\nname = "spill_spike"\nfactor = "x"\nat = { s = 1 }', r"line 3: .*must be a number"),
        ('[[fault]]\nname = "magnet_stuck"\naxis = "z"\nat = { s = 1 }', r"line 3: .*want one of x, y"),
        ('[[fault]]\nname = "spill_spike"', "exactly one of at, at_s and after_visits"),
        ('[[fault]]\nname = "spill_spike"\nat = { feild = 1 }', r"line 3: .*did you mean 'field'"),
        ('[[fault]]\nname = "spill_spike"\nat = { visit = 0 }', "a whole number from 1 on"),
        ('[[fault]]\nname = "spill_spike"\nat = { state = "armd" }', "did you mean 'armed'"),
        ('[[fault]]\nname = "spill_spike"\nat = { s = -1 }', "not negative"),
        ('[[fault]]\nname = "spill_spike"\nat = 3', "at must be a table"),
        ('[[fault]]\nname = "spill_spike"\nat = {}', "at is empty"),
        ('[[fault]]\nname = "spill_spike"\nat = { visits = 3, field = 1 }', "counts over all fields"),
        ('[[fault]]\nname = "counter_fell"\nat = { s = 1 }\nfor_s = 1', "line 4: .*takes no for_s"),
        ('[[fault]]\ntarget = "plant.lek"\nvalue = 1\nat_s = 1', "did you mean 'leak'"),
        ('[[fault]]\ntarget = "plant.leak"\nvalu = 1\nat_s = 1', r"line 3: .*did you mean 'value'"),
    ],
)
def test_what_means_nothing_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        load_faults(path)


def test_defaults_are_filled_in() -> None:
    (fault,) = parse_faults('[[fault]]\nname = "spill_spike"\nat = { s = 1 }')
    assert fault.parameters == {"factor": 4.0}
    assert [(a.kind, a.name, a.how, a.amount) for a in fault.actions] == [("plant", "rate_scale", "scale", 4.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nside = 'air'\nwhat = ''\nexpected = []\ndo = []\nexample = {}", "side is 'air'"),
        ("[a]\nside = 'wire'", "no do, example, expected, what"),
        ("[a]\nnonsense = 1", "want a table with keys"),
        ("[a]\nside = 'wire'\nwhat = ''\nexpected = []\nexample = {}\ndo = [{ target = 'plant.x' }]", "exactly one of"),
        (
            "[a]\nside = 'wire'\nwhat = ''\nexpected = []\nexample = {}\ndo = [{ target = 'plant.x', value = 'y' }]",
            "'y' is no parameter",
        ),
    ],
)
def test_a_catalogue_that_could_not_work_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_catalogue(text)


def test_a_scenario_is_in_the_record_and_what_never_fired_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(entry(catalogue()["spill_ends_early"]) + entry(SPIKE, at={"spill": 99}))
    out = tmp_path / "t"
    given = [str(PLAN), "--site", "carbon-fixed", "--clock", "virtual", "--fault", str(scenario), "--out", str(out)]
    assert main(["deliver", *given, "--json"]) == 0
    said = capsys.readouterr()
    assert "fault 2 (spill_spike at spill 99) never fired" in said.err
    faults = json.loads(said.out)["faults"]
    assert faults["sha256"] == hashlib.sha256(scenario.read_bytes()).hexdigest()
    assert [fault["fired_s"] is None for fault in faults["played"]] == [False, True]
    assert json.loads((out / "run.json").read_text())["fault_scenario"]["text"] == scenario.read_text()
    assert json.loads((out / "summary.json").read_text())["faults"] == faults
    page = (out / "report.html").read_text()
    assert faults["sha256"] in page
    assert "never fired" in page
    assert main(["verify", str(out)]) == 0


@pytest.mark.parametrize(
    ("at", "why"),
    [
        ({"field": 7}, "field 7: the plan has 2 fields"),
        ({"field": 2, "layer": 3}, "layer 3: field B_VERTICAL has 2 layers"),
        ({"layer": 3}, "layer 3: the plan has at most 2 layers"),
        ({"field": 1, "visit": 99999}, "visit 99999: field A_LATERAL has 24 visits"),
        ({"visits": 49}, "visits 49: the plan has 48 in all"),
    ],
)
def test_a_place_that_the_plan_does_not_have_is_refused_before_anything_is_written(
    at: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario, out = tmp_path / "scenario.toml", tmp_path / "t"
    scenario.write_text(entry(SPIKE, at=at))
    room = ["--site", "carbon-fixed", "--clock", "virtual", "--fault", str(scenario)]
    assert main(["deliver", str(PLAN), *room, "--out", str(out)]) == 2
    assert why in capsys.readouterr().err
    assert not out.exists()


def test_a_fault_of_the_virtual_clock_alone_is_refused_on_the_real_one(tmp_path: Path) -> None:
    scenario = parse_faults(entry(SPIKE))
    only_virtual = replace(scenario, faults=(replace(scenario.faults[0], clocks=("virtual",)),))
    with pytest.raises(BadInput, match="spill_spike can be played with --clock virtual only"):
        only_virtual.check_clock("real", "scenario.toml")
