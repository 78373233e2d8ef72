"""What a session must say before any field may be armed: the plan, the room, and every layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from drivers.errors import BadInput
from drivers.wires.guard_link import AGREED, WAITING
from interlocks.guard_agreement import Air, reference_counts
from interlocks.guard_numbers import expected_fields
from tests.guard_talk import COUNTER, MS, RULES, SITE, START_NS, Talk, plan, site_with


def test_a_controller_that_means_the_plan_is_agreed_with_and_told_so() -> None:
    talk = Talk()
    assert talk.status.state == WAITING
    talk.agreed()
    assert (talk.refused, talk.latched) == ("", "")
    status = talk.status
    assert (status.state, status.pid, status.plan_sha256.hex(), status.fraction_group) == (AGREED, 77, plan().sha256, 1)
    assert (status.condition, status.detail, status.delivered_counts_2) == ("", "", 0.0)
    assert math.isnan(status.value)


def test_nothing_is_agreed_until_every_layer_was_said() -> None:
    talk = Talk()
    talk.session()
    for field, layer in ((0, 0), (0, 1), (1, 0)):
        talk.say(talk.limits(field, layer))
        assert talk.status.state == WAITING
    talk.say(talk.limits(1, 1))
    assert talk.status.state == AGREED


@pytest.mark.parametrize(
    ("changes", "condition", "words"),
    [
        ({"plan_sha256": bytes(32)}, "GUARD_PLAN", plan().sha256[:16]),
        ({"fraction_group": 2}, "GUARD_LIMITS", "fraction group"),
        ({"fields": 3}, "GUARD_LIMITS", "fields"),
        ({"layers": 5}, "GUARD_LIMITS", "layers"),
        ({"ktp": 1.0031}, "GUARD_CORRECTIONS", "the controller's"),
        ({"ktp": 0.9969}, "GUARD_CORRECTIONS", "the controller's"),
        ({"ktp": math.nan}, "GUARD_CORRECTIONS", "the controller's"),
        ({"part": 2}, "GUARD_RETAINED", "nothing of the parts before"),
    ],
)
def test_a_session_about_something_else_is_refused_and_never_permitted(
    changes: dict[str, Any], condition: str, words: str
) -> None:
    talk = Talk().agreed(**changes)
    assert talk.refused == talk.status.condition == condition
    assert words in talk.status.detail
    assert ("refused", condition) in [(name, values.get("id")) for name, values in talk.events]
    talk.pass_ms(1)
    talk.wish()
    assert (talk.status.state, talk.turn()) == (WAITING, False)


@pytest.mark.parametrize("ktp", [1.0029, 0.9971])
def test_two_sensors_of_one_room_may_differ_a_little(ktp: float) -> None:
    talk = Talk()
    talk.session(ktp=ktp)
    assert talk.refused == ""


def test_a_plan_that_cannot_be_read_any_more_is_refused_and_another_file_is_another_plan() -> None:
    talk = Talk()
    talk.plan = replace(plan(), sha256="00" * 32, fields=plan().fields[:1])
    talk.session()
    assert talk.refused == "GUARD_PLAN"
    talk.session(plan_sha256=bytes(32), fields=1, layers=2)
    assert talk.refused == ""

    def unreadable() -> Any:
        raise BadInput("gone")

    talk.mind.agreement._read = unreadable
    talk.session(plan_sha256=bytes(32), fields=1, layers=2)
    assert (talk.refused, talk.status.detail) == ("GUARD_PLAN", "gone")


def test_another_layer_in_the_place_of_one_is_nothing_said_of_that_one() -> None:
    talk = Talk()
    talk.session()
    for field, layer in ((0, 0), (0, 1), (1, 0)):
        talk.say(talk.limits(field, layer))
    talk.say(talk.limits(1, 1)._replace(layer=7))
    assert talk.refused == "GUARD_LIMITS"
    assert "field 2, layer 2: nothing said" in talk.status.detail


def test_a_layer_that_differs_is_refused_and_stays_refused() -> None:
    talk = Talk()
    talk.session()
    wrong = talk.limits(0, 1)._replace(particles=talk.limits(0, 1).particles * 1.002)
    for said in (talk.limits(0, 0), wrong, talk.limits(1, 0), talk.limits(1, 1)):
        talk.say(said)
    assert (talk.refused, talk.status.state) == ("GUARD_LIMITS", WAITING)
    assert "field 1, layer 2: particles" in talk.status.detail
    talk.say(talk.limits(0, 1))
    assert (talk.refused, talk.status.state) == ("GUARD_LIMITS", WAITING)
    talk.agreed()  # another session does better
    assert (talk.refused, talk.status.state) == ("", AGREED)


def test_the_first_layer_that_differs_is_the_one_that_is_named() -> None:
    talk = Talk()
    talk.session()
    for layer in (1, 0):
        talk.say(talk.limits(0, layer)._replace(particles=1.0))
    talk.say(talk.limits(1, 0))
    talk.say(talk.limits(1, 1))
    assert "field 1, layer 1: particles" in talk.status.detail


def test_what_was_agreed_on_is_not_changed_afterwards() -> None:
    talk = Talk().agreed()
    before = dict(talk.mind.agreement._layers)
    talk.say(talk.limits(0, 0)._replace(rate_per_s=8e7, particles=1e9))
    assert talk.mind.agreement._layers == before
    assert [name for name, _ in talk.events].count("agreed") == 1


def test_the_limits_are_made_with_the_corrections_and_rates_that_were_agreed_on() -> None:
    talk = Talk().running()
    own = expected_fields(SITE, plan())[0].layers[0]
    assert talk.mind.armed is not None
    limits = talk.mind.armed.limits
    assert limits is not None
    assert limits.counts == pytest.approx(1.01 * own.counts_2 + 200, rel=1e-3)
    assert limits.beam_ns == pytest.approx(1.2e9 * own.particles / 2e6)


@pytest.mark.parametrize(
    ("age_ms", "refused"), [(8 * RULES.max_age_ms, ""), (8 * RULES.max_age_ms + 0.001, "GUARD_CORRECTIONS")]
)
def test_the_air_was_read_lately(age_ms: float, refused: str) -> None:
    talk = Talk(air=Air(START_NS - round(age_ms * MS), 20.0, 1013.25, COUNTER))
    talk.session()
    assert talk.refused == refused


def test_without_any_reading_of_the_air_or_with_an_impossible_one_nothing_is_agreed() -> None:
    talk = Talk()
    talk.mind.air = None
    talk.session()
    assert talk.refused == "GUARD_CORRECTIONS"
    talk = Talk(air=Air(START_NS, 9.9, 1013.25, COUNTER))
    talk.session(ktp=0.9655)
    assert (talk.refused, "temperature" in talk.status.detail) == ("GUARD_CORRECTIONS", True)


@pytest.mark.parametrize(("before", "refused"), [(1.0 / 1.0499, ""), (1.0 / 1.0501, "GUARD_CORRECTIONS")])
def test_the_air_does_not_jump_between_two_treatments(before: float, refused: str) -> None:
    talk = Talk()
    talk.remembers(ktp=before)
    talk.session()
    assert talk.refused == refused
    assert talk.memory.ktp == (before if refused else pytest.approx(1.0))


@pytest.mark.parametrize(
    ("gain", "refused"), [(0.8, ""), (1.25, ""), (0.7999, "GUARD_CORRECTIONS"), (1.2501, "GUARD_CORRECTIONS")]
)
def test_the_gain_of_electrometer_2_is_plausible(gain: float, refused: str) -> None:
    dosimetry = {"secondary": SITE.dosimetry.secondary.model_copy(update={"gain": gain})}
    talk = Talk(site=site_with(dosimetry=dosimetry))
    talk.session()
    assert talk.refused == refused


@pytest.mark.parametrize(("factor", "refused"), [(1.0 / 1.0199, ""), (1.0 / 1.0201, "GUARD_CORRECTIONS")])
def test_the_calibration_does_not_jump_between_two_treatments(factor: float, refused: str) -> None:
    talk = Talk()
    now = reference_counts(SITE)
    assert now == pytest.approx(0.0560, rel=0.05)  # of carbon at 150 MeV/u
    talk.remembers(counts_per_particle=now * factor)
    talk.session()
    assert talk.refused == refused
    assert talk.memory.counts_per_particle == (now * factor if refused else now)
