"""The safety chain: what it believes, when it opens, and that only arming closes it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.wires.permits import (
    KIND_DROP,
    SOURCE_GUARD,
)
from simulators.plant.build import build_plant
from simulators.plant.chain import receive_permit
from simulators.plant.state import (
    CAUSE_ALLOCATION,
    CAUSE_DOOR,
    CAUSE_DROP,
    CAUSE_ELECTROMETER_2,
    CAUSE_EMERGENCY,
    CAUSE_ENGINE,
    CAUSE_GUARD_SILENCE,
    CAUSE_NONE,
    CAUSE_OPERATOR,
    CAUSE_SEARCH,
    CAUSE_SILENCE,
    ENG_TRIPPED,
    FRAME_NS,
    Plant,
)
from simulators.plant.step import advance_frame
from tests.datagrams import SESSION, TOKEN, fill, permit
from tests.plant_rig import CARBON


class Chain:
    """The plant's chain with a hand on its inputs."""

    def __init__(self) -> None:
        self.plant: Plant = build_plant(CARBON, 1)
        self.plant.parameters["guard_required"] = 0  # but where a test asks for it
        self.state: Any = self.plant.state
        self.state["session"] = SESSION
        self.sequence = 0

    def frames(self, count: int = 1, *, permits: bool = False) -> None:
        for _ in range(count):
            if permits:
                self.permit()
            plant = self.plant
            advance_frame(plant.memory[0], plant.frame_1, plant.frame_2, plant.frame_3)

    def arm(self, token: int = TOKEN) -> None:
        self.state["chain_command"], self.state["chain_command_token"] = 1, token
        self.state["chain_commands"] += 1
        self.frames()

    def receive(self, data: bytes) -> None:
        length = fill(self.plant.permit, data)
        receive_permit(self.plant.memory[0], self.plant.permit, length, int(self.state["t_ns"]))

    def permit(self, **changes: Any) -> None:
        self.sequence += 1
        self.receive(permit(**{"sequence": self.sequence, **changes}))

    @property
    def closed(self) -> bool:
        return bool(self.state["closed"])

    @property
    def cause(self) -> int:
        return int(self.state["cause"])


@pytest.fixture
def chain() -> Chain:
    """Armed and closed."""
    chain = Chain()
    chain.arm()
    chain.frames(3, permits=True)
    assert chain.closed
    return chain


def test_permits_do_not_close_a_chain_that_nobody_armed() -> None:
    chain = Chain()
    chain.frames(10, permits=True)
    assert not chain.closed
    assert chain.state["rejected"] == 10


def test_arming_alone_does_not_close_the_chain() -> None:
    chain = Chain()
    chain.arm()
    chain.frames(10)
    assert not chain.closed
    chain.frames(1, permits=True)
    assert chain.closed


REJECTED: list[tuple[str, dict[str, Any]]] = [
    ("another key", {"key": bytes(16)}),
    ("another session", {"session": SESSION + 1}),
    ("another token", {"token": TOKEN + 1}),
    ("the sequence number of the last", {"sequence": 3}),
    ("an older sequence number", {"sequence": 2}),
    ("an unknown source", {"source": 3}),
    ("an unknown kind", {"kind": 7}),
]


@pytest.mark.parametrize(("what", "changes"), REJECTED, ids=[what for what, _ in REJECTED])
def test_a_wrong_permit_is_rejected_and_does_not_keep_the_chain_closed(
    chain: Chain, what: str, changes: dict[str, Any]
) -> None:
    rejected = int(chain.state["rejected"])
    time_out = int(chain.state["time_out_ns"]) // FRAME_NS
    for _ in range(time_out + 2):
        chain.permit(**changes)
        chain.frames()
    assert chain.state["rejected"] == rejected + time_out + 2
    assert not chain.closed
    assert chain.cause == CAUSE_SILENCE


def test_every_permit_and_every_drop_is_counted(chain: Chain) -> None:
    before = int(chain.state["permits"])
    chain.permit()
    assert chain.state["permits"] == before + 1
    chain.permit(kind=KIND_DROP)
    assert chain.state["permits"] == before + 2
    assert chain.state["rejected"] == 0


def test_after_a_trip_permits_with_the_token_of_before_are_rejected(chain: Chain) -> None:
    chain.permit(kind=KIND_DROP)
    before = int(chain.state["permits"])
    chain.frames(5, permits=True)
    assert chain.state["rejected"] == 5
    assert chain.state["permits"] == before


def test_a_torn_permit_is_rejected(chain: Chain) -> None:
    before = int(chain.state["permits"])
    chain.receive(permit(sequence=99)[:60])
    assert chain.state["rejected"] == 1
    assert chain.state["permits"] == before


def test_a_guards_permit_is_not_the_controllers(chain: Chain) -> None:
    for _ in range(int(chain.state["time_out_ns"]) // FRAME_NS + 2):
        chain.permit(source=SOURCE_GUARD)
        chain.frames()
    assert chain.cause == CAUSE_SILENCE


def test_where_both_are_required_one_alone_is_not_enough() -> None:
    chain = Chain()
    chain.plant.parameters["guard_required"] = 1
    chain.arm()
    chain.frames(5, permits=True)
    assert not chain.closed
    chain.permit(source=SOURCE_GUARD)
    chain.frames(1, permits=True)
    assert chain.closed
    chain.frames(int(chain.state["time_out_ns"]) // FRAME_NS + 2, permits=True)
    assert chain.cause == CAUSE_GUARD_SILENCE


def test_a_guards_permit_that_is_sent_again_is_rejected_and_does_not_keep_the_chain_closed() -> None:
    chain = Chain()
    chain.plant.parameters["guard_required"] = 1
    chain.arm()
    chain.permit(source=SOURCE_GUARD)
    again = chain.sequence
    chain.frames(2, permits=True)
    assert chain.closed
    for _ in range(int(chain.state["time_out_ns"]) // FRAME_NS + 2):
        chain.receive(permit(source=SOURCE_GUARD, sequence=again))
        chain.frames(1, permits=True)
    assert chain.cause == CAUSE_GUARD_SILENCE


def test_where_the_controller_is_not_required_the_guards_permits_are_enough_and_needed() -> None:
    chain = Chain()
    chain.plant.parameters["controller_required"] = 0
    chain.plant.parameters["guard_required"] = 1
    chain.arm()
    assert not chain.closed
    chain.permit(source=SOURCE_GUARD)
    chain.frames()
    assert chain.closed
    chain.frames(int(chain.state["time_out_ns"]) // FRAME_NS + 2)
    assert chain.cause == CAUSE_GUARD_SILENCE


def test_a_permit_of_the_very_first_nanosecond_counts() -> None:
    chain = Chain()
    chain.arm()
    length = fill(chain.plant.permit, permit())
    receive_permit(chain.plant.memory[0], chain.plant.permit, length, 0)
    chain.frames()
    assert chain.closed


@pytest.mark.parametrize("time_out_ms", [1, 10, 250])
def test_silence_opens_the_chain_with_the_first_frame_after_the_time_out(chain: Chain, time_out_ms: int) -> None:
    chain.state["time_out_ns"] = time_out_ms * 1_000_000
    chain.permit()
    last_ns = int(chain.state["t_ns"])
    chain.frames(time_out_ms * 10 + 1)
    assert chain.closed
    chain.frames()
    assert not chain.closed
    assert chain.cause == CAUSE_SILENCE
    assert chain.state["open_ns"] - last_ns == time_out_ms * 1_000_000 + FRAME_NS


def test_a_drop_opens_at_once_and_permits_do_not_close_again(chain: Chain) -> None:
    chain.permit(kind=KIND_DROP, reason=8)
    assert not chain.closed
    assert chain.cause == CAUSE_DROP
    chain.frames(50, permits=True)
    assert not chain.closed
    assert chain.cause == CAUSE_DROP


def test_a_drop_disarms_a_chain_that_has_not_closed_yet() -> None:
    chain = Chain()
    chain.arm()
    chain.permit(kind=KIND_DROP)
    assert chain.cause == CAUSE_DROP
    chain.frames(5, permits=True)
    assert not chain.closed


def test_a_drop_is_no_cause_for_a_chain_that_nobody_armed() -> None:
    chain = Chain()
    chain.permit(kind=KIND_DROP)
    assert chain.cause == CAUSE_NONE


def test_a_chain_with_the_fault_that_drops_do_nothing_still_opens_by_silence(chain: Chain) -> None:
    chain.plant.parameters["drop_ignored"] = 1
    chain.permit(kind=KIND_DROP)
    chain.frames(1, permits=True)
    assert chain.closed
    chain.frames(int(chain.state["time_out_ns"]) // FRAME_NS + 2)
    assert chain.cause == CAUSE_SILENCE


def test_permits_that_come_back_after_silence_do_not_close_the_chain(chain: Chain) -> None:
    chain.frames(int(chain.state["time_out_ns"]) // FRAME_NS + 2)
    assert not chain.closed
    chain.frames(50, permits=True)
    assert not chain.closed
    chain.arm(TOKEN + 1)
    chain.frames(10, permits=True)
    assert not chain.closed, "permits still carry the old token"
    for _ in range(2):
        chain.permit(token=TOKEN + 1)
        chain.frames()
    assert chain.closed
    assert chain.cause == CAUSE_NONE


INPUTS = [
    ("emergency_stop", 1, CAUSE_EMERGENCY),
    ("door_closed", 0, CAUSE_DOOR),
    ("room_searched", 0, CAUSE_SEARCH),
    ("room_allocated", 0, CAUSE_ALLOCATION),
    ("abort_button", 1, CAUSE_OPERATOR),
    ("backup_trip", 1, CAUSE_ELECTROMETER_2),
    ("eng_state", ENG_TRIPPED, CAUSE_ENGINE),
]


@pytest.mark.parametrize(("name", "value", "cause"), INPUTS)
def test_every_input_opens_the_chain_within_a_frame_and_latches(
    chain: Chain, name: str, value: int, cause: int
) -> None:
    good = int(chain.state[name])
    chain.state[name] = value
    chain.frames(1, permits=True)
    assert not chain.closed
    assert chain.cause == cause
    chain.state[name] = good
    chain.frames(20, permits=True)
    assert not chain.closed
    assert chain.cause == cause


@pytest.mark.parametrize(("name", "value", "cause"), INPUTS)
def test_an_open_input_keeps_an_armed_chain_open(name: str, value: int, cause: int) -> None:
    chain = Chain()
    chain.state[name] = value
    chain.arm()
    chain.frames(20, permits=True)
    assert not chain.closed
    assert chain.cause == cause


def test_the_first_cause_is_kept(chain: Chain) -> None:
    chain.state["door_closed"] = 0
    chain.frames(1, permits=True)
    chain.state["emergency_stop"] = 1
    chain.permit(kind=KIND_DROP)
    chain.frames(10, permits=True)
    assert chain.cause == CAUSE_DOOR


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["permit", "wait", "old", "drop", "arm", "door", "shut"]), max_size=60))
def test_the_chain_is_never_closed_without_arming_since_it_opened(events: list[str]) -> None:
    chain = Chain()
    chain.state["time_out_ns"] = 3 * FRAME_NS
    armed = False
    was_closed = False
    for event in events:
        if event == "arm":
            chain.arm()
            armed = True
        elif event == "permit":
            chain.permit()
        elif event == "old":
            chain.receive(permit(sequence=chain.sequence))
        elif event == "drop":
            chain.permit(kind=KIND_DROP)
        elif event in ("door", "shut"):
            chain.state["door_closed"] = event == "shut"
        else:
            chain.frames(3)
        chain.frames()
        if chain.closed and not was_closed:
            assert armed, "it closed without having been armed since it opened last"
            armed = False
        was_closed = chain.closed
