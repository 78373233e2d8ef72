"""The age of the guard's frames: the edge at which one is late, and since when it is."""

from __future__ import annotations

from interlocks.guard_judge import judge_late
from interlocks.guard_stream import Stream, look


def test_a_frame_at_the_limit_of_its_age_is_not_late_and_beyond_it_is_since_the_first_turn_that_found_it() -> None:
    stream = Stream(nonce=1, offset_ns=0, came_ns=100, made_ns=100)
    assert look(stream, 50, 150).late_ns is None
    late = look(stream, 50, 151)
    assert late.late_ns == 151
    assert look(late, 50, 160).late_ns == 151
    assert look(late, 60, 160).late_ns is None


def test_frames_that_come_late_are_a_finding_once_that_has_lasted_too_long() -> None:
    stream = Stream(nonce=1, offset_ns=0, came_ns=9_000_000, made_ns=1_000_000, late_ns=5_000_000)
    assert judge_late(stream, 2_000_000, 4_000_000, 9_000_000) is None
    found = judge_late(stream, 2_000_000, 4_000_000, 9_000_001)
    assert found is not None
    assert (found.id, found.limit, found.detail) == ("GUARD_FRAMES", 2.0, "frames of electrometer 2 come late")
    assert abs(found.value - 8.000001) < 1e-9
    assert judge_late(look(stream, 10_000_000, 9_000_001), 2_000_000, 4_000_000, 9_000_001) is None
    assert judge_late(None, 2_000_000, 4_000_000, 9_000_001) is None
