"""Every interlock has something in the shipped campaign that raises it: the extra scenarios, played as they stand.

15 s of CPU in all; the treatments of the room `following`, two fields of five layers each, are the longest.
"""

from __future__ import annotations

import pytest

from controller.campaign.case import Case, play
from controller.campaign.definition import Extra, Room, shipped
from controller.campaign.jobs import Job, run_job
from controller.campaign.summary import summarise
from drivers.errors import BadInput
from interlocks.conditions import matrix

CERTAIN = [extra for extra in shipped().extras if len(extra.expected) == 1 and extra.expected != ("none",)]
"""Scenarios that are there for the sake of one condition."""
HEAD = {"definition": "", "size": "full", "seed": 0, "version": ""}


@pytest.mark.parametrize("extra", CERTAIN, ids=lambda extra: extra.name)
def test_a_scenario_for_one_condition_raises_it_first_and_is_safe(extra: Extra) -> None:
    (condition,) = extra.expected
    summary = summarise([run_job(Job(extra.name, "extra", extra.room, extra.name, (0,)))], HEAD, 1)
    assert (summary["unsafe"], summary["never_fired"], summary["bad"]) == (0, 0, [])
    raised = summary["coverage"][condition]
    assert raised["first_out"] + raised["refused"] == 1


def test_what_no_fault_of_the_catalogue_is_sure_to_raise_has_a_scenario_of_its_own() -> None:
    named = {condition for extra in CERTAIN for condition in extra.expected}
    assert named <= set(matrix())
    assert {name for name in named if name.startswith("GUARD_")} == {
        *("GUARD_COUNTS", "GUARD_BEAM_TIME", "GUARD_RATE", "GUARD_FRAMES", "GUARD_MONITOR"),
        *("GUARD_LIMITS", "GUARD_CORRECTIONS", "GUARD_RETAINED", "GUARD_PLAN"),
    }


def test_a_stop_that_nobody_can_prove_is_named_behind_what_made_it_so() -> None:
    extra = next(extra for extra in shipped().extras if "BEAM_OFF_UNPROVED" in extra.expected)
    (case,) = run_job(Job(extra.name, "extra", extra.room, extra.name, (0,)))["cases"]
    assert (case["verdict"], case["ended"]) == ("safe_named", "STREAM_SILENT_1")
    assert "BEAM_OFF_UNPROVED" in case["trips"]


def test_a_pause_within_a_visit_is_no_dispute_of_the_counts_between_visits() -> None:
    scenario = '[[fault]]\nname = "operator_pauses"\ns = 50\nat = { field = 1, visit = 6 }\n'
    verdict = play(Case(shipped().rooms["fixed"], 0, scenario))
    assert (verdict.verdict, verdict.ended, verdict.facts.settled) == ("safe_named", "none", True)


def test_a_room_may_change_what_its_site_says_of_scanning_and_nothing_that_a_site_does_not_know() -> None:
    learning = shipped().rooms["learning"]
    assert learning.load().scanning.learn_early
    assert not Room("plain", learning.plan, learning.site).load().scanning.learn_early
    with pytest.raises(BadInput, match="learn_erly"):
        Room("wrong", learning.plan, learning.site, scanning=(("learn_erly", True),)).load()
