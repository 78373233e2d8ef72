"""The interlock matrix: complete, the same as the real-time path's numbers, and refused by name where it is wrong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from interlocks import numbers
from interlocks.conditions import PLACES, by_number, matrix, parse_matrix

ROOT = Path(__file__).parents[1]


def all_numbers() -> dict[str, int]:
    found = {name: value for name, value in vars(numbers).items() if name.isupper() and isinstance(value, int)}
    return {name: value for name, value in found.items() if value != numbers.NONE}


def test_the_matrix_and_the_numbers_are_the_same() -> None:
    wanted = {name: value for name, value in all_numbers().items() if value != numbers.COMMANDED}
    assert {condition.id: number for number, condition in by_number().items()} == wanted


def test_every_condition_says_where_how_fast_and_what_to_do() -> None:
    for condition in matrix().values():
        assert condition.where in PLACES
        assert 0 < condition.budget_ms <= 2000
        assert condition.hint.endswith((".", "?"))
        assert len(condition.cause) > 10
        in_frames = condition.where in ("realtime", "engine", "electrometer_2", "chain")
        assert in_frames == (condition.number is not None), condition.id
        if in_frames:
            assert condition.budget_ms <= 2.0


OPERATORS_TO_RESET = {
    *("FRAME_LOSS_1", "FRAME_LOSS_2", "FRAME_LOSS_3", "STREAM_SILENT_1", "STREAM_SILENT_2", "STREAM_SILENT_3"),
    *(
        "SPOT_POSITION",
        "POSITION_MEAN",
        "SPOT_WIDTH",
        "SPOT_TIME",
        "MAGNET_READBACK",
        "ENGINE_TRIPPED",
        "CHAIN_OPENED",
        "LEASE_EXPIRED",
        "SPOT_NOT_SEEN",
        "PORT_SENSOR",
        "ACCELERATOR_STATE",
        "GANTRY_MOVED",
        "COUCH_MOVED",
        "NOZZLE_WRONG",
        "GATING_FAULT",
        "HOLD_TOO_LONG",
        "NO_BEAM",
        "CHAIN_INPUT",
        "STATUS_STALE",
        "STATUS_FROZEN",
        "LINK_LOST",
        "DEVICE_ERROR",
        "DISK",
        "OPERATOR_ABORT",
        "NOT_READY",
        "CLOCK_DRIFT",
        "GUARD_FRAMES",
        "GUARD_CHAIN",
        "GUARD_CONTROLLER",
        "GUARD_PLAN",
        "GUARD_DISK",
        "GUARD_SILENT",
        "REALTIME_SILENT",
    ),
}
"""Where what went wrong is seen and cured in the room, and dose is in no doubt. All others are a physicist's."""


def test_what_a_condition_does_is_decided_and_not_drifted_into() -> None:
    rows = matrix().values()
    assert {c.id for c in rows if c.reset == "operator"} == OPERATORS_TO_RESET
    assert {c.id for c in rows if c.escalate} == {"BEAM_WITHOUT_REQUEST", "PEDESTAL_HIGH", "IDLE_CHARGE"}
    # before there is beam nothing needs to be dropped; all else drops at once, and latches
    assert {c.id for c in rows if c.action != "drop"} == {
        *("GUARD_PLAN", "GUARD_LIMITS", "GUARD_CORRECTIONS", "RECOMBINATION")
    }
    assert {c.action for c in rows} == {"drop", "inhibit"}
    assert {c.id for c in rows if not c.latch} == {"GUARD_PLAN", "GUARD_LIMITS", "GUARD_CORRECTIONS"}


LONGEST_MS = {"realtime": 1.0, "engine": 1.0, "electrometer_2": 1.0, "chain": 1.0, "task": 500.0, "guard": 100.0}
OTHERWISE_MS = {
    # silence is known after its limit only; statuses are polled, the room's slowest; what is asked of a disk may wait
    2.0: ("STREAM_SILENT_1", "STREAM_SILENT_2", "STREAM_SILENT_3"),
    50.0: ("OPERATOR_ABORT",),
    100.0: (
        "STATUS_STALE",
        "STATUS_FROZEN",
        "DEVICE_ERROR",
        "BEAM_OFF_CHANGED",
        "POSITION_FEEDBACK_BOUND",
        "NOT_READY",
    ),
    200.0: ("HOLD_TOO_LONG", "NO_BEAM", "GUARD_SILENT", "REALTIME_SILENT", "GUARD_CHAIN", "GUARD_CONTROLLER"),
    600.0: ("LINK_LOST",),
    1000.0: (
        *("GATING_FAULT", "COUNTS_DISPUTED", "RECOMBINATION", "SPOT_DOSE_LOW"),
        *("GUARD_ENERGY", "GUARD_ION", "GUARD_PORT", "GUARD_DISK"),
    ),
    1600.0: ("GANTRY_MOVED", "COUCH_MOVED", "NOZZLE_WRONG"),
    2000.0: ("GUARD_PLAN", "GUARD_LIMITS", "GUARD_CORRECTIONS"),
}


def test_no_condition_takes_longer_than_was_decided() -> None:
    decided = {name: budget_ms for budget_ms, names in OTHERWISE_MS.items() for name in names}
    assert set(decided) <= set(matrix())
    for condition in matrix().values():
        longest_ms = decided.get(condition.id, LONGEST_MS[condition.where])
        assert condition.budget_ms <= longest_ms, f"{condition.id}: decide, and write it into OTHERWISE_MS"


def test_the_guard_judges_what_bears_its_name_and_nothing_else() -> None:
    # that the guard itself has fallen silent is for the controller to see
    named = {name for name in matrix() if name.startswith("GUARD_")} - {"GUARD_SILENT"}
    assert {c.id for c in matrix().values() if c.where == "guard"} == named


def test_every_condition_of_the_matrix_is_judged_somewhere_and_every_judged_one_is_in_it() -> None:
    said = set()
    for folder in ("controller", "interlocks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                    if name in ("trip", "Violation", "Finding", "judge_age", "judge_jump"):
                        said.add(node.args[0].value)
    said = {name for name in said if isinstance(name, str) and name}
    assert said <= set(matrix())
    assert {c.id for c in matrix().values() if c.number is None} - said == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('where = "task"', 'where = "moon"'), "condition A: where is 'moon'"),
        (('unit = ""\n', 'unit = ""\ncolour = "red"\n'), "unknown keys"),
        (('id = "B"', 'id = "A"'), "unique"),
        (("number = 2", "number = 1"), "unique"),
        (('hint = "Look."\n', ""), "no hint"),
        (('action = "drop"', 'action = "hope"'), "action is 'hope'"),
        (('reset = "operator"', 'reset = "anybody"'), "reset is 'anybody'"),
        (('hazards = ["H1"]', "hazards = []"), "hazards is empty"),
        (("budget_ms = 1.0", "budget_ms = 0.0"), "budget_ms"),
    ],
)
def test_a_wrong_matrix_is_refused_by_name(change: tuple[str, str], message: str) -> None:
    row = '[[condition]]\nid = "{}"\nnumber = {}\nwhere = "task"\ncause = "x"\nunit = ""\n'
    row += 'hazards = ["H1"]\nsignals = "x"\nlimit = "y"\naction = "drop"\nlatch = true\nreset = "operator"\n'
    row += 'budget_ms = 1.0\nhint = "Look."\n'
    text = row.format("A", 1) + row.format("B", 2)
    assert len(parse_matrix(text)) == 2
    with pytest.raises(ValueError, match=message):
        parse_matrix(text.replace(*change))
