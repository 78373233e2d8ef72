"""The analysis of hazards names what exists, and nothing that exists is missing from it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from interlocks.conditions import matrix
from interlocks.hazards import Scenario, analysis, parse_analysis
from simulators.fault_kinds import catalogue

TESTS = Path(__file__).parent
SCENARIOS = [
    pytest.param(scenario, id=f"{unsafe.id}: {scenario.how}")
    for unsafe in analysis().unsafe
    for scenario in unsafe.scenarios
]


@cache
def functions(file: str) -> frozenset[str]:
    """The tests of a file below tests/, without running it."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return frozenset(name for name in found if name.startswith("test_"))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_answers_a_scenario_exists(scenario: Scenario) -> None:
    assert set(scenario.conditions) <= set(matrix())
    assert set(scenario.faults) <= set(catalogue())
    for test in scenario.tests:
        file, _, function = test.partition("::")
        assert functions(file), f"{file} has no tests"
        assert not function or function in functions(file), test


@pytest.mark.parametrize("condition", matrix())
def test_every_condition_answers_a_scenario_of_a_hazard_that_it_is_for(condition: str) -> None:
    answered = [u for u in analysis().unsafe if any(condition in s.conditions for s in u.scenarios)]
    assert answered
    assert set(matrix()[condition].hazards) & {hazard for unsafe in answered for hazard in unsafe.hazards}


@pytest.mark.parametrize("fault", catalogue())
def test_every_fault_provokes_a_scenario(fault: str) -> None:
    assert [s for u in analysis().unsafe for s in u.scenarios if fault in s.faults]


def test_every_hazard_has_an_unsafe_control_action_and_every_action_a_way_to_be_unsafe() -> None:
    found = analysis()
    assert {h.id for h in found.hazards} == {hazard for unsafe in found.unsafe for hazard in unsafe.hazards}
    assert {a.id for a in found.actions} == {unsafe.action for unsafe in found.unsafe}


ROWS = """
[[hazard]]
id = "H1"
title = "t"
harm = "h"
[[action]]
id = "A1"
by = "a"
to = "b"
what = "c"
[[outside]]
what = "w"
who = "x"
[[accident]]
what = "an accident"
lesson = "l"
answers = ["U1"]
[[unsafe]]
id = "U1"
action = "A1"
kind = "wrong"
what = "w"
hazards = ["H1"]
[[unsafe.scenario]]
how = "somehow"
conditions = ["SATURATED"]
faults = []
tests = []
"""


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('kind = "wrong"', 'kind = "odd"', "U1: kind is 'odd'"),
        ('action = "A1"', 'action = "A2"', "no control action 'A2'"),
        ('hazards = ["H1"]', "hazards = []", "U1: hazards"),
        ('conditions = ["SATURATED"]', "conditions = []", "nothing answers 'somehow'"),
        ('answers = ["U1"]', 'answers = ["U9"]', "an accident: answers"),
    ],
)
def test_an_analysis_with_a_hole_is_refused(before: str, after: str, message: str) -> None:
    assert parse_analysis(ROWS).unsafe[0].scenarios[0].how == "somehow"
    with pytest.raises(ValueError, match=message):
        parse_analysis(ROWS.replace(before, after))
