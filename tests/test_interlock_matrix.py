"""The interlock matrix: complete, the same as the real-time path's numbers, and refused by name where it is wrong."""

from __future__ import annotations

import pytest

from interlocks import numbers
from interlocks.conditions import PLACES, by_number, matrix, parse_matrix


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('where = "task"', 'where = "moon"'), "where is 'moon'"),
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
