"""S1 as a function: whatever is missing, unknown or old forbids beam, and only a complete standing allows it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlocks.conditions import matrix
from interlocks.invariant import SELF_TESTED, Standing, before_arming, before_beam
from interlocks.slow import Violation

NONCES = {name: 100 + number for number, name in enumerate(SELF_TESTED)}
GOOD = Standing(
    approved=True,
    changed=(),
    field=0,
    field_set_up=0,
    confirmed=True,
    room=(),
    self_tests=NONCES,
    boot_nonces=NONCES,
    silent_streams=(),
    tripped=False,
    permits_fresh=True,
    spill_verified=True,
)
ROOM = Violation("COUCH_MOVED", 2.0, 0.5, "lateral_mm")
WRONG = {
    "not approved": ({"approved": False}, "NOT_READY"),
    "never compared": ({"changed": None}, "PLAN_CHANGED"),
    "plan edited": ({"changed": ("plan.dcm",)}, "PLAN_CHANGED"),
    "no field": ({"field": None, "field_set_up": None}, "NOT_READY"),
    "another field set up": ({"field_set_up": 1}, "NOT_READY"),
    "no field set up": ({"field_set_up": None}, "NOT_READY"),
    "patient not confirmed": ({"confirmed": False}, "NOT_READY"),
    "room not judged": ({"room": None}, "NOT_READY"),
    "couch moved": ({"room": (ROOM,)}, "COUCH_MOVED"),
    "a monitor silent": ({"silent_streams": (2,)}, "STREAM_SILENT_2"),
    "nobody looked at the streams": ({"silent_streams": None}, "NOT_READY"),
    "tripped": ({"tripped": True}, "NOT_READY"),
}
ONLY_BEAM = {
    "chain open": ({"permits_fresh": False}, "NOT_READY"),
    "spill not verified": ({"spill_verified": False}, "NOT_READY"),
}


def test_a_complete_standing_allows_arming_and_beam() -> None:
    assert before_arming(GOOD) == []
    assert before_beam(GOOD) == []


@pytest.mark.parametrize("name", WRONG)
def test_one_thing_missing_forbids_arming_and_beam_and_is_named(name: str) -> None:
    change, condition = WRONG[name]
    standing = replace(GOOD, **change)
    assert [v.id for v in before_arming(standing)] == [condition]
    assert [v.id for v in before_beam(standing)] == [condition]


@pytest.mark.parametrize("name", ONLY_BEAM)
def test_beam_needs_a_closed_chain_and_a_verified_spill_but_arming_does_not(name: str) -> None:
    change, condition = ONLY_BEAM[name]
    assert before_arming(replace(GOOD, **change)) == []
    assert [v.id for v in before_beam(replace(GOOD, **change))] == [condition]


@pytest.mark.parametrize("device", SELF_TESTED)
def test_each_self_test_counts_for_the_boot_in_which_it_passed(device: str) -> None:
    restarted = replace(GOOD, boot_nonces={**NONCES, device: 999})
    unread = replace(GOOD, boot_nonces={k: v for k, v in NONCES.items() if k != device})
    untested = replace(GOOD, self_tests={k: v for k, v in NONCES.items() if k != device})
    for standing in (restarted, unread, untested):
        found = before_beam(standing)
        assert [v.id for v in found] == ["SELF_TEST_MISSING"]
        assert found[0].detail.startswith(device)


def test_a_device_of_which_nothing_is_known_has_passed_no_self_test() -> None:
    unknown = replace(GOOD, boot_nonces={}, self_tests={})
    assert [v.id for v in before_arming(unknown)] == ["SELF_TEST_MISSING"] * len(SELF_TESTED)


@given(st.data())
def test_whatever_is_wrong_together_is_found_together(data: st.DataObject) -> None:
    every = {**WRONG, **ONLY_BEAM}
    names = data.draw(st.lists(st.sampled_from(sorted(every)), unique=True))
    standing = GOOD
    for name in names:
        standing = replace(standing, **every[name][0])
    found = before_beam(standing)
    assert (found == []) == (names == [])
    assert {v.id for v in found} <= {every[name][1] for name in names} | {"NOT_READY"}
    assert all(v.id in matrix() for v in found)


def test_what_forbids_arming_forbids_beam() -> None:
    for change, _ in WRONG.values():
        standing = replace(GOOD, **change)
        assert set(before_arming(standing)) <= set(before_beam(standing))
