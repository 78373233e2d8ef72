"""The age of the guard's frames: the edge at which one is late, and since when it is."""

from __future__ import annotations

from interlocks.guard_stream import Stream, look


def test_a_frame_at_the_limit_of_its_age_is_not_late_and_beyond_it_is_since_the_first_turn_that_found_it() -> None:
    stream = Stream(nonce=1, offset_ns=0, came_ns=100, made_ns=100)
    assert look(stream, 50, 150).late_ns is None
    late = look(stream, 50, 151)
    assert late.late_ns == 151
    assert look(late, 50, 160).late_ns == 151
    assert look(late, 60, 160).late_ns is None
